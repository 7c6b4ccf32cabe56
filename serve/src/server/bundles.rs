//! Bundles on their way to models that are served. What takes long is done side by side: hashes here,
//! vocabularies here, sessions by the workers; nothing is served before all are there.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use aerie_models::{Manifest, bundle::TOKENIZER_FILE, census};
use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::task::JoinHandle;
use tracing::info;

use super::{StartError, spawn_blocking};
use crate::{
    config::Config,
    device::files::BundleFiles,
    service::Hosted,
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

/// Reads the manifests; where each vocabulary is to be sent comes beside.
pub(super) async fn read(
    config: &Config,
) -> Result<(Vec<Draft>, Vec<Sender<Arc<Vocabulary>>>), StartError> {
    let (dirs, devices) = (config.models.clone(), config.devices.len());
    let open =
        move || dirs.iter().map(|dir| Draft::open(dir, devices)).collect::<Result<Vec<_>, _>>();
    let (drafts, senders): (Vec<Draft>, Vec<_>) = super::blocking(open).await?.into_iter().unzip();
    for (i, Draft { manifest, .. }) in drafts.iter().enumerate() {
        if drafts[..i].iter().any(|other| other.manifest.name == manifest.name) {
            return Err(StartError::DuplicateModel { name: manifest.name.clone() });
        }
    }
    Ok((drafts, senders))
}

/// Holds all files to their manifests.
pub(super) async fn verify(drafts: &[Draft]) -> Result<(), StartError> {
    all(drafts, Draft::verify).await.map(drop)
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
async fn all<T: Send + 'static>(
    drafts: &[Draft],
    f: fn(&Draft) -> Result<T, StartError>,
) -> Result<Vec<T>, StartError> {
    let spawn = |draft: &Draft| {
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

impl Draft {
    /// Reads the manifest of the bundle in `dir`, for as many devices, and maps the files.
    pub(super) fn open(
        dir: &Path,
        devices: usize,
    ) -> Result<(Self, Sender<Arc<Vocabulary>>), StartError> {
        let bundle_error = |source| StartError::Bundle { path: dir.to_owned(), source };
        let op_version = |op: &str| aerie_ops::schema::schema(op).map(|schema| schema.version);
        let manifest = Manifest::read(dir, op_version).map_err(bundle_error)?;
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
