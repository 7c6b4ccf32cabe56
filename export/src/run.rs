//! Everything that fixes a training, as `run.toml` holds it.

mod check;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

use aerie_models::{ImageConfig, Model, ModelConfig, images::preprocessing::Preprocessing};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::data::images::BatchOptions;

pub use check::RunError;

/// A training.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct Run {
    pub model: Model,
    pub data: Data,
    pub train: TrainConfig,
    pub optimizer: Optimizer,
}

/// What a model is trained on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Data {
    Text(TextData),
    Images(ImageData),
}

/// Text, for language models.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TextData {
    /// Text to train on: a file, or a folder of `.txt` files.
    pub text: PathBuf,
    /// Text to validate on; none if `holdout` cuts it from `text`, or if there is no validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// Share of `text`, taken from its end, that is validated on instead of trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout: Option<f64>,
    pub documents: Documents,
    /// Rows of a batch.
    pub rows: u32,
    /// Tokens of a row.
    pub time: u32,
}

/// Images with labels, for classifiers.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ImageData {
    /// Images to train on: parquet, CIFAR's files, or a folder for each class.
    pub images: PathBuf,
    /// Images to validate on; none if `holdout` takes them from `images`, or if there is no validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// Share of `images`, drawn by chance, that is validated on instead of trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout: Option<f64>,
    /// How many of the images are trained on, drawn by chance; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_max: Option<u64>,
    /// What the network is shown of an image.
    pub preprocessing: Preprocessing,
    pub batch: BatchOptions,
}

/// How a training goes, whatever it is on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Batches whose gradients are added up before one optimiser step.
    pub accumulate: u32,
    /// Optimiser steps of the whole run.
    pub steps: u64,
    pub learning_rate: f64,
    /// Learning rate at the end of the cosine, as a share of `learning_rate`.
    pub final_share: f64,
    /// Steps over which the learning rate rises from zero.
    pub warmup: u64,
    pub seed: u64,
    pub matmul: Matmul,
    /// What the gradient is taken of, beside the loss.
    #[serde(default, skip_serializing_if = "Flatness::is_off")]
    pub flatness: Flatness,
    /// Largest decay of the average of parameters that is validated and emitted; none if the last ones are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average: Option<f64>,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Steps between two validations.
    pub valid_every: u64,
    /// Steps between two lines of the log.
    pub log_every: u64,
}

/// How parameters follow from gradients.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Optimizer {
    Adamw(AdamwConfig),
    Sgd(SgdConfig),
}

/// Options of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AdamwConfig {
    pub beta1: f64,
    pub beta2: f64,
    /// Decoupled weight decay of matrices; recurrence, norms and biases never decay.
    pub decay: f64,
    /// Largest norm of all gradients together; larger ones are scaled down to it.
    pub clip: f64,
}

/// Options of stochastic gradient descent.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SgdConfig {
    pub momentum: f64,
    /// Whether the step looks ahead along the momentum (Nesterov 1983).
    pub nesterov: bool,
    /// Weight decay of matrices, added to their gradients; gains, numbers at the ends of branches, norms
    /// and biases never decay.
    pub decay: f64,
    /// Largest norm of a unit's gradient as a share of its weights' norm; none if nothing is clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

/// What makes training prefer flat places.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Flatness {
    #[default]
    Off,
    /// The gradient is taken `radius` up the slope of the first `share` of the same batch (Foret et al.
    /// 2021, arXiv:2010.01412; Brock et al. 2021, arXiv:2102.06171, for the share), in all steps but the first
    /// `after`: where a training ends depends on how its last steps are taken, and these cost more (Zhou et
    /// al. 2024, arXiv:2410.10373).
    Sam {
        radius: f64,
        share: f64,
        #[serde(default, skip_serializing_if = "is_zero")]
        after: u64,
    },
    /// `lambda/4 · ‖∇C‖²` of each batch is added to the loss `C` (Smith et al. 2021, arXiv:2101.12176,
    /// §4).
    GradientNorm { lambda: f64, form: GradientNormForm },
}

impl Flatness {
    fn is_off(&self) -> bool {
        *self == Self::Off
    }

    /// What it is in `step`, of which the first is 1.
    pub fn at(self, step: u64) -> Self {
        match self {
            Self::Sam { after, .. } if step <= after => Self::Off,
            it => it,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How the gradient of a gradient's norm is computed.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GradientNormForm {
    /// By differentiating twice.
    Exact,
    /// By the difference of two gradients, the other one `radius` up the slope (Karakida et al. 2023,
    /// arXiv:2210.02720, whose step is a factor of the gradient). Of a smooth network it differs from the exact
    /// one in proportion to the radius, and by rounding, which is divided by it. Where there are kinks (ReLU) it
    /// sees those within the radius, which differentiating twice passes over.
    Difference { radius: f64 },
}

/// Where one document ends and the next begins, besides at `<|endoftext|>` and at the ends of files.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Documents {
    /// Nowhere else.
    #[default]
    Files,
    /// Before every heading: a paragraph of one line that is all capitals or begins with `CHAPTER`.
    Headings,
}

/// Arithmetic of matrix products and convolutions while learning; parameters stay f32.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Matmul {
    #[default]
    F32,
    /// Operands rounded to bfloat16, sums in f32, and a classifier's maps kept in bfloat16: several times
    /// faster where the CPU has AMX, nearly twice for classifiers where it has AVX512_BF16.
    Bf16,
}

impl Run {
    /// The language model and its text, if that is what the run is about.
    pub fn language(&self) -> Option<(&ModelConfig, &TextData)> {
        match (&self.model, &self.data) {
            (Model::Language(model), Data::Text(data)) => Some((model, data)),
            _ => None,
        }
    }

    /// The classifier and its images, if that is what the run is about.
    pub fn images(&self) -> Option<(&ImageConfig, &ImageData)> {
        match (&self.model, &self.data) {
            (Model::Images(model), Data::Images(data)) => Some((model, data)),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Run {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)?.checked().map_err(D::Error::custom)
    }
}

impl Serialize for Run {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}
