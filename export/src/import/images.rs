//! Classifiers as timm publishes them: one safetensors file, and a `config.json` that names the
//! architecture and says how pictures are prepared.

#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use aerie_models::{
    ImageConfig, Pictures, Provenance,
    images::{
        preprocessing::{Interpolation, Preprocessing, Resize},
        presets,
    },
};
use serde::Deserialize;

use crate::{
    emit::{
        self,
        images::{ImageSource, labels, numbers},
    },
    import::{ImportError, find, hugging_face::CONFIG_FILE, io_error},
    onnx::weights::Checkpoint,
};

/// Largest `config.json` that is read.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// What is to be imported.
#[derive(Clone, Copy, Debug)]
pub struct ImageRequest<'a> {
    /// Folder or file.
    pub from: &'a Path,
    /// Name of a preset; none if the checkpoint's own configuration tells.
    pub preset: Option<&'a str>,
    /// File with a model in the presets' format, which is taken instead.
    pub model: Option<&'a Path>,
    /// File with the names of the classes, one a line.
    pub labels: Option<&'a Path>,
    /// What the weights were trained on, in words.
    pub data: Option<&'a str>,
}

/// What timm writes beside a checkpoint, as far as it is of interest here.
#[derive(Debug, Deserialize)]
struct Config {
    architecture: String,
    #[serde(default)]
    num_classes: Option<u32>,
    #[serde(default)]
    label_names: Option<Vec<String>>,
    #[serde(default)]
    pretrained_cfg: Option<Pretrained>,
}

/// How timm prepares pictures.
#[derive(Debug, Deserialize)]
struct Pretrained {
    input_size: [u32; 3],
    #[serde(default)]
    test_input_size: Option<[u32; 3]>,
    crop_pct: f64,
    #[serde(default)]
    test_crop_pct: Option<f64>,
    #[serde(default)]
    crop_mode: Option<String>,
    #[serde(default)]
    interpolation: Option<String>,
    mean: [f32; 3],
    std: [f32; 3],
}

/// Reads a classifier's checkpoint as far as its elements; none if what is asked for is no classifier.
///
/// # Errors
/// See [`ImportError`]; nothing was written then.
pub fn import(request: &ImageRequest<'_>) -> Result<Option<ImageSource>, ImportError> {
    let named = request.preset.is_some() || request.model.is_some();
    let path = match find(request.from) {
        Ok(path) => path,
        Err(error) if named => return Err(error),
        // It is said again of what it is then taken for.
        Err(_) => return Ok(None),
    };
    let config_path = path.with_file_name(CONFIG_FILE);
    let beside = config(&config_path, named)?;
    let Some(name) = request
        .preset
        .map(str::to_owned)
        .or_else(|| beside.as_ref().map(|it| format!("timm/{}", it.architecture)))
    else {
        let Some(model) = request.model else { return Ok(None) };
        return source(request, &path, read_model(model)?, beside.as_ref(), None).map(Some);
    };
    let mut model = match request.model {
        Some(file) => read_model(file)?,
        None => presets::preset(&name)
            .ok_or_else(|| ImportError::Architecture { path: path.clone(), found: name.clone() })?,
    };
    if let Some(classes) = beside.as_ref().and_then(|it| it.num_classes) {
        model = ImageConfig { classes, ..model }
            .checked()
            .map_err(|source| ImportError::ImageConfig { path: config_path, source })?;
    }
    source(request, &path, model, beside.as_ref(), presets::input(&name)).map(Some)
}

/// Reads the configuration beside a checkpoint, if it is of a classifier.
fn config(path: &Path, named: bool) -> Result<Option<Config>, ImportError> {
    let Ok(metadata) = fs::metadata(path) else { return Ok(None) };
    if CONFIG_BYTES_MAX < metadata.len() {
        let (found_bytes, max_bytes) = (metadata.len(), CONFIG_BYTES_MAX);
        return Err(ImportError::TooLarge { path: path.to_owned(), found_bytes, max_bytes });
    }
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    let json = |source| ImportError::Json { path: path.to_owned(), source };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(json)?;
    if value.get("architecture").is_none() {
        return Ok(None);
    }
    // A configuration of another writer is of no interest where the model is named.
    match serde_json::from_value(value) {
        Ok(config) => Ok(Some(config)),
        Err(_) if named => Ok(None),
        Err(source) => Err(json(source)),
    }
}

fn read_model(path: &Path) -> Result<ImageConfig, ImportError> {
    let text = fs::read_to_string(path).map_err(io_error(path))?;
    toml::from_str(&text)
        .map_err(|source| ImportError::Model { path: path.to_owned(), source: Box::new(source) })
}

fn source(
    request: &ImageRequest<'_>,
    path: &Path,
    config: ImageConfig,
    beside: Option<&Config>,
    input: Option<Preprocessing>,
) -> Result<ImageSource, ImportError> {
    let weights = Checkpoint::open(path, &config)?;
    let config_path = || path.with_file_name(CONFIG_FILE);
    let input = match beside.and_then(|it| it.pretrained_cfg.as_ref()) {
        Some(it) => it.preprocessing(config_path())?,
        None => input.ok_or_else(|| ImportError::NoInput { path: config_path() })?,
    };
    let labels = match (request.labels, beside.and_then(|it| it.label_names.clone())) {
        (Some(file), _) => labels(file, config.classes)?,
        (None, Some(names)) if names.len() == config.classes as usize => names,
        (None, _) => numbers(config.classes),
    };
    let name = path.file_stem().map(|it| it.to_string_lossy()).unwrap_or_default();
    let data = request.data.map_or_else(|| format!("unknown: imported {name}"), str::to_owned);
    Ok(ImageSource {
        config,
        weights: Box::new(weights),
        pictures: Pictures { input, labels },
        provenance: Provenance { tool: emit::tool(), data, ..Provenance::default() },
    })
}

impl Pretrained {
    fn preprocessing(&self, path: PathBuf) -> Result<Preprocessing, ImportError> {
        let [_, height, width] = self.test_input_size.unwrap_or(self.input_size);
        let field = |field, found: &str, expected: &str| {
            let (found, expected) = (found.to_owned(), expected.to_owned());
            ImportError::Field { path: path.clone(), field, found, expected }
        };
        let preprocessing = Preprocessing {
            height,
            width,
            resize: match self.crop_mode.as_deref().unwrap_or("center") {
                "squash" => Resize::Squash,
                "center" => Resize::Crop,
                other => return Err(field("crop_mode", other, "squash or center")),
            },
            crop_share: self.test_crop_pct.unwrap_or(self.crop_pct),
            interpolation: match self.interpolation.as_deref().unwrap_or("bicubic") {
                "bicubic" => Interpolation::Bicubic,
                "bilinear" => Interpolation::Bilinear,
                other => return Err(field("interpolation", other, "bicubic or bilinear")),
            },
            mean: self.mean,
            std: self.std,
        };
        preprocessing.checked().map_err(|source| ImportError::Input { path, source })
    }
}
