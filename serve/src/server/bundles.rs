//! Bundles on their way to models that are served. What takes long is done side by side: hashes here,
//! vocabularies here, sessions by the workers; nothing is served before all are there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use aerie_models::{
    Manifest,
    bundle::{AnyManifest, TOKENIZER_FILE},
    census,
    images::{ImageConfig, census as image_census},
};
use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::task::JoinHandle;
use tracing::info;

use super::{StartError, spawn_blocking};
use crate::{
    classifier::Handle,
    config::Config,
    device::files::BundleFiles,
    service::{Classifier, Hosted},
    sessions::Fingerprint,
    text::{Tokenizer, Vocabulary},
};

/// A bundle whose manifest has been read, and whose files have yet to be held to it.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    dir: PathBuf,
    pub(super) manifest: Manifest,
    pub(super) fingerprint: Fingerprint,
    pub(super) files: Arc<BundleFiles>,
    /// Gives the vocabulary to the worker of each device.
    pub(super) vocabulary: Receiver<Arc<Vocabulary>>,
}

/// The same of a classifier.
#[derive(Clone, Debug)]
pub(super) struct ClassifierDraft {
    dir: PathBuf,
    pub(super) manifest: Manifest<ImageConfig>,
    pub(super) files: Arc<BundleFiles>,
}

/// All bundles of a server, by what they hold.
#[derive(Debug, Default)]
pub(super) struct Drafts {
    pub(super) models: Vec<Draft>,
    /// Where each vocabulary is to be sent.
    pub(super) senders: Vec<Sender<Arc<Vocabulary>>>,
    pub(super) classifiers: Vec<ClassifierDraft>,
}

/// Reads the manifests.
pub(super) async fn read(config: &Config) -> Result<Drafts, StartError> {
    let (dirs, devices) = (config.models.clone(), config.devices.len());
    let drafts = super::blocking(move || {
        let mut drafts = Drafts::default();
        dirs.iter().try_for_each(|dir| drafts.open(dir, devices)).map(|()| drafts)
    });
    let drafts = drafts.await?;
    let models = drafts.models.iter().map(|it| &it.manifest.name);
    let classifiers = drafts.classifiers.iter().map(|it| &it.manifest.name);
    let names: Vec<&String> = models.chain(classifiers).collect();
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            return Err(StartError::DuplicateModel { name: (*name).clone() });
        }
    }
    Ok(drafts)
}

/// Holds all files to their manifests.
pub(super) async fn verify(drafts: &Drafts) -> Result<(), StartError> {
    all(&drafts.models, Draft::verify).await?;
    all(&drafts.classifiers, ClassifierDraft::verify).await.map(drop)
}

/// Reads the vocabularies and sends them to the workers.
pub(super) async fn host(
    drafts: &[Draft],
    senders: Vec<Sender<Arc<Vocabulary>>>,
) -> Result<Vec<Hosted>, StartError> {
    let hosted = all(drafts, Draft::host).await?;
    for (hosted, sender) in hosted.iter().zip(senders) {
        // A worker that has ended needs none, and there is room for those of all.
        while sender.try_send(Arc::clone(&hosted.vocabulary)).is_ok() {}
        info!(model = hosted.name, parameters = hosted.parameters, "bundle opened");
    }
    Ok(hosted)
}

/// Runs `f` for each draft on a thread of its own.
async fn all<D: Clone + Send + 'static, T: Send + 'static>(
    drafts: &[D],
    f: fn(&D) -> Result<T, StartError>,
) -> Result<Vec<T>, StartError> {
    let spawn = |draft: &D| {
        let draft = draft.clone();
        spawn_blocking(move || f(&draft))
    };
    let tasks: Vec<JoinHandle<_>> = drafts.iter().map(spawn).collect();
    let mut results = Vec::with_capacity(tasks.len());
    for task in tasks {
        results.push(task.await.expect("it does not panic, and nobody aborts it")?);
    }
    Ok(results)
}

impl Drafts {
    /// Reads the manifest of the bundle in `dir`, for as many devices, and maps the files.
    pub(super) fn open(&mut self, dir: &Path, devices: usize) -> Result<(), StartError> {
        let bundle_error = |source| StartError::Bundle { path: dir.to_owned(), source };
        let op_version = |op: &str| aerie_ops::schema::schema(op).map(|schema| schema.version);
        match AnyManifest::read(dir, op_version).map_err(bundle_error)? {
            AnyManifest::Language(manifest) => {
                let (draft, sender) = Draft::new(dir, manifest, devices)?;
                self.models.push(draft);
                self.senders.push(sender);
            }
            AnyManifest::Images(manifest) => {
                let files = Arc::new(BundleFiles::open(dir, &manifest).map_err(bundle_error)?);
                self.classifiers.push(ClassifierDraft { dir: dir.to_owned(), manifest, files });
            }
        }
        Ok(())
    }
}

impl ClassifierDraft {
    fn verify(&self) -> Result<(), StartError> {
        let error = |source| StartError::Bundle { path: self.dir.clone(), source };
        self.files.verify(&self.manifest).map_err(error)
    }

    /// What is served once there are `workers`.
    pub(super) fn host(&self, workers: Vec<Handle>) -> Classifier {
        let Manifest { name, model, interface, .. } = &self.manifest;
        let parameters = image_census::parameter_total(model);
        info!(model = name, parameters, "bundle opened");
        Classifier {
            name: name.clone(),
            family: format!("{:?}", model.family).to_lowercase(),
            fingerprint: self.manifest.fingerprint(),
            parameters,
            input: Arc::new(interface.input.clone()),
            labels: interface.labels.clone(),
            workers,
        }
    }
}

impl Draft {
    fn new(
        dir: &Path,
        manifest: Manifest,
        devices: usize,
    ) -> Result<(Self, Sender<Arc<Vocabulary>>), StartError> {
        let bundle_error = |source| StartError::Bundle { path: dir.to_owned(), source };
        // A portable graph steps a whole batch of states; ours names lanes of an arena.
        if manifest.ops.is_empty() {
            return Err(StartError::Portable { path: dir.to_owned(), name: manifest.name });
        }
        let files = Arc::new(BundleFiles::open(dir, &manifest).map_err(bundle_error)?);
        let (sender, vocabulary) = bounded(devices);
        let (dir, fingerprint) = (dir.to_owned(), manifest.fingerprint());
        Ok((Self { dir, manifest, fingerprint, files, vocabulary }, sender))
    }

    fn verify(&self) -> Result<(), StartError> {
        let error = |source| StartError::Bundle { path: self.dir.clone(), source };
        self.files.verify(&self.manifest).map_err(error)
    }

    /// Reads the vocabulary.
    fn host(&self) -> Result<Hosted, StartError> {
        let error = |source| StartError::Tokenizer { path: self.dir.clone(), source };
        let manifest = self.manifest.clone();
        let tokenizer = Tokenizer::parse(self.files.bytes(TOKENIZER_FILE)).map_err(error)?;
        let vocabulary = tokenizer.vocabulary(manifest.model.vocab).map_err(error)?;
        Ok(Hosted {
            name: manifest.name.clone(),
            fingerprint: self.fingerprint,
            parameters: census::parameter_total(&manifest.model),
            tokenizer,
            vocabulary: Arc::new(vocabulary),
            manifest,
        })
    }
}
