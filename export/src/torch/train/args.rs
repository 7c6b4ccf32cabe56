//! The options of a new run, and what they make.

use std::{fs, path::PathBuf};

use aerie_models::{
    Model,
    images::{self, preprocessing::Preprocessing},
    presets,
};
use anyhow::{Context, bail, ensure};
use tch::Device;

use crate::{
    checkpoint::{RunDir, TOKENIZER_FILE},
    data::{
        images::{
            BatchOptions, Multiplicity,
            augment::{Crop, Fill},
            rand_augment::RandAugment,
        },
        tokenizer,
    },
    run::{
        AdamwConfig, Data, Documents, Flatness, GradientNormForm, ImageData, Matmul, Optimizer,
        Run, SgdConfig, TextData, TrainConfig,
    },
    torch::device,
};

/// Trains a language model on text, or a classifier on images.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export tokenizer --text tales.train.txt --vocab 4096 --out tokenizer.json
  aerie-export train --run runs/tales --preset tales --tokenizer tokenizer.json \\
      --text tales.train.txt --valid tales.valid.txt --documents headings
  aerie-export train --run runs/tales --resume
  aerie-export train --run runs/pictures --preset nf-wrn-16-4 --images train.parquet --valid test.parquet

SIGINT and SIGTERM write a checkpoint before the program ends; --resume goes on from the newest one,
bit for bit as if nothing had happened (on the same machine's CPU, with the same number of threads).
Everything that fixes a run is in its run.toml.")]
pub struct Args {
    /// Run directory: made by a new run, read by --resume
    #[arg(long, value_name = "DIR")]
    pub(super) run: PathBuf,
    /// Go on with the run; all options are the run's own
    #[arg(long, conflicts_with_all = ["preset", "model", "valid", "holdout", "TextArgs", "ImageArgs",
          "OptionArgs", "OptimizerArgs"])]
    pub(super) resume: bool,
    /// Stop after this step, with a checkpoint; the learning rate still aims at --steps
    #[arg(long, value_name = "STEP", default_value_t = u64::MAX, hide_default_value = true)]
    pub(super) until: u64,
    /// Threads of libtorch; all cores if left out
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<i32>,
    /// Where to train: cpu, cuda or cuda:N; a run may go on elsewhere
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device::parse)]
    pub(super) device: Device,
    /// A model by its name; a wrong one prints the list
    #[arg(long, value_name = "NAME", required_unless_present_any = ["resume", "model"])]
    preset: Option<String>,
    /// A model by a file in the presets' format
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    model: Option<PathBuf>,
    /// Data to validate on, of the kind that is trained on
    #[arg(long, value_name = "PATH")]
    valid: Option<PathBuf>,
    /// Validate on this share of the data instead: the end of a text, images drawn by chance
    #[arg(long, value_name = "SHARE", conflicts_with = "valid")]
    holdout: Option<f64>,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    options: OptionArgs,
    #[command(flatten)]
    optimizer: OptimizerArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Text")]
#[group(conflicts_with = "ImageArgs")]
struct TextArgs {
    /// Text to train on: a file, or a folder of .txt files
    #[arg(long, value_name = "PATH", requires = "tokenizer", conflicts_with = "images",
          required_unless_present_any = ["resume", "images"])]
    text: Option<PathBuf>,
    /// Tokens of the text: what `aerie-export tokenizer` made, or a tokenizer.json of Hugging Face
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// What begins a document, besides <|endoftext|> and files
    #[arg(long, value_enum, default_value_t)]
    documents: Documents,
    /// Rows of a batch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rows: u32,
    /// Tokens of a row
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    time: u32,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Images")]
struct ImageArgs {
    /// Images to train on: a .parquet file, CIFAR's own files, or a folder with a folder for each class
    #[arg(long, value_name = "PATH")]
    images: Option<PathBuf>,
    /// Train on this many of the images, drawn by chance, always the same ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    images_max: Option<u64>,
    /// Height and width of what the network sees [default: those that the preset is made for, or 32]
    #[arg(long, value_name = "PIXELS")]
    size: Option<u32>,
    /// Images of a batch
    #[arg(long, value_name = "N", default_value_t = 128)]
    batch: u32,
    /// Augmentations of each image within a batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    multiplicity: u32,
    /// Let the batch grow with --multiplicity instead of having fewer images
    #[arg(long)]
    growing: bool,
    /// Crop a rectangle of 8 to 100 % of the area, instead of moving the image by an eighth
    #[arg(long)]
    resized_crop: bool,
    /// Show images as they are: neither moved nor mirrored
    #[arg(long, conflicts_with = "resized_crop")]
    plain: bool,
    /// Mix pairs of images, with this parameter of the Beta distribution
    #[arg(long, value_name = "ALPHA")]
    mixup: Option<f64>,
    /// Put a rectangle of one image into another
    #[arg(long)]
    cutmix: bool,
    /// RandAugment: operations on each image, and their strength, of 10
    #[arg(long, num_args = 2, value_names = ["LAYERS", "MAGNITUDE"])]
    rand_augment: Option<Vec<f64>>,
    /// Share of each target that goes to all classes alike
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    label_smoothing: f32,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
struct OptionArgs {
    /// Batches to one optimiser step
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    accumulate: u32,
    /// Optimiser steps
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// [default: 2e-3 for AdamW; 0.1 for each 256 images of a step for SGD]
    #[arg(long, value_name = "RATE")]
    learning_rate: Option<f64>,
    /// Learning rate at the end, as a share of --learning-rate
    #[arg(long, value_name = "SHARE", default_value_t = 0.05)]
    final_share: f64,
    /// Steps over which the learning rate rises [default: 100, or a tenth of --steps if that is less]
    #[arg(long, value_name = "N")]
    warmup: Option<u64>,
    /// Keep an average of the parameters, and validate and emit that
    #[arg(long, value_name = "DECAY")]
    average: Option<f64>,
    /// Sharpness-aware minimisation: how far up the slope the gradient is taken
    #[arg(long, value_name = "RADIUS", conflicts_with = "gradient_norm")]
    sam: Option<f64>,
    /// Share of the batch by which --sam climbs
    #[arg(long, value_name = "SHARE", default_value_t = 0.2, requires = "sam")]
    sam_share: f64,
    /// Steps that are taken without --sam, before it
    #[arg(long, value_name = "STEPS", default_value_t = 0, requires = "sam")]
    sam_after: u64,
    /// Add this quarter-fold square of the gradient's norm to the loss of each batch
    #[arg(long, value_name = "LAMBDA")]
    gradient_norm: Option<f64>,
    /// Take the gradient of --gradient-norm from two gradients this far apart, such as 0.1, instead of
    /// differentiating twice, as language models cannot be
    #[arg(long, value_name = "RADIUS", requires = "gradient_norm")]
    gradient_norm_radius: Option<f64>,
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Arithmetic of matrix products and convolutions; with bf16 a classifier's maps are bf16, too
    #[arg(long, value_enum, default_value_t)]
    matmul: Matmul,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
    /// Steps between validations
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    valid_every: u64,
    /// Steps between lines of the log
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    log_every: u64,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Optimiser")]
struct OptimizerArgs {
    /// [default: adamw for text, sgd for images]
    #[arg(long, value_enum)]
    optimizer: Option<OptimizerKind>,
    /// [default: 0.1 for AdamW, 5e-5 for SGD] Weight decay of matrices
    #[arg(long, value_name = "RATE")]
    decay: Option<f64>,
    /// AdamW: largest norm of all gradients together [default: 1]. SGD: largest norm of a unit's gradient,
    /// as a share of its weights' norm; 0 clips nothing [default: 25.6 by the images of a step, within
    /// 0.01 to 0.2]
    #[arg(long, value_name = "NORM")]
    clip: Option<f64>,
    /// AdamW: [default: 0.9]
    #[arg(long, value_name = "SHARE")]
    beta1: Option<f64>,
    /// AdamW: [default: 0.98]
    #[arg(long, value_name = "SHARE")]
    beta2: Option<f64>,
    /// SGD: [default: 0.9]
    #[arg(long, value_name = "SHARE")]
    momentum: Option<f64>,
    /// SGD: do not look ahead along the momentum
    #[arg(long)]
    no_nesterov: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum OptimizerKind {
    Adamw,
    Sgd,
}

/// Writes what fixes a new run.
pub(super) fn begin(args: &Args, dir: &RunDir) -> anyhow::Result<()> {
    ensure!(!dir.exists(), "{}: a run is here already; --resume goes on", args.run.display());
    let model = model(args)?;
    let data = match (&model, &args.text.text, &args.images.images) {
        (Model::Language(_), Some(text), None) => Data::Text(text_data(args, text.clone())),
        (Model::Images(_), None, Some(images)) => Data::Images(image_data(args, images.clone())?),
        (Model::Language(_), ..) => bail!("--text is needed: the model is one of language"),
        (Model::Images(_), ..) => bail!("--images is needed: the model is a classifier"),
    };
    let optimizer = optimizer(&args.optimizer, &data, args.options.accumulate)?;
    let run = Run { train: config(args, &data, optimizer), model, data, optimizer }.checked()?;
    let mut tokenizer = None;
    if let (Model::Language(model), Some(path)) = (&run.model, &args.text.tokenizer) {
        let vocab = tokenizer::load(path)?.get_vocab_size(true);
        ensure!(
            vocab == model.vocab as usize,
            "{}: {vocab} tokens, but the model's vocab is {}",
            path.display(),
            model.vocab
        );
        tokenizer = Some(path);
    }
    dir.create(&run)?;
    if let Some(path) = tokenizer {
        fs::copy(path, dir.path().join(TOKENIZER_FILE))
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn model(args: &Args) -> anyhow::Result<Model> {
    match (&args.preset, &args.model) {
        (Some(name), _) => {
            let language = presets::preset(name).map(Model::Language);
            let found = language.or_else(|| images::presets::preset(name).map(Model::Images));
            found.with_context(|| {
                let names: Vec<_> = presets::names().chain(images::presets::names()).collect();
                format!("--preset: no preset is called {name:?}; there are {}", names.join(", "))
            })
        }
        (None, Some(path)) => {
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            toml::from_str(&text).with_context(|| path.display().to_string())
        }
        (None, None) => bail!("one of --preset and --model is needed"),
    }
}

fn text_data(args: &Args, text: PathBuf) -> TextData {
    let TextArgs { documents, rows, time, .. } = args.text;
    let (valid, holdout) = (args.valid.clone(), args.holdout);
    TextData { text, valid, holdout, documents, rows, time }
}

fn image_data(args: &Args, images: PathBuf) -> anyhow::Result<ImageData> {
    let it = &args.images;
    let made_for = args.preset.as_deref().and_then(images::presets::input);
    let made_for = made_for.unwrap_or_else(images::presets::small_input);
    let size = it.size.unwrap_or(made_for.height);
    let crop = match (it.plain, it.resized_crop) {
        (true, _) => None,
        (false, true) => Some(Crop::Resized { area: [0.08, 1.0], aspect: [3.0 / 4.0, 4.0 / 3.0] }),
        (false, false) => Some(Crop::Padded { padding: (size / 8).max(1), fill: Fill::Reflect }),
    };
    let rand_augment = it.rand_augment.as_deref().map(|it| {
        let [found, magnitude] = [it[0], it[1]];
        #[expect(clippy::float_cmp, reason = "a count that was read as a number is one exactly")]
        let layers = (1..=16).find(|&it| f64::from(it) == found);
        let layers = layers
            .with_context(|| format!("--rand-augment: {found} layers; 1 to 16 are expected"))?;
        anyhow::Ok(RandAugment::for_side(layers, magnitude, size))
    });
    let batch = BatchOptions {
        batch: it.batch,
        multiplicity: it.multiplicity,
        multiplicity_mode: if it.growing { Multiplicity::Growing } else { Multiplicity::Fixed },
        crop,
        flip: !it.plain,
        mixup_alpha: it.mixup,
        cutmix: it.cutmix,
        rand_augment: rand_augment.transpose()?,
        label_smoothing: it.label_smoothing,
    };
    let preprocessing = Preprocessing { height: size, width: size, ..made_for };
    Ok(ImageData {
        images,
        valid: args.valid.clone(),
        holdout: args.holdout,
        images_max: it.images_max,
        preprocessing: preprocessing.checked().context("--size")?,
        batch: batch.checked()?,
    })
}

fn optimizer(args: &OptimizerArgs, data: &Data, accumulate: u32) -> anyhow::Result<Optimizer> {
    let kind = args.optimizer.unwrap_or(match data {
        Data::Text(_) => OptimizerKind::Adamw,
        Data::Images(_) => OptimizerKind::Sgd,
    });
    let of_adamw = args.beta1.is_some() || args.beta2.is_some();
    let of_sgd = args.momentum.is_some() || args.no_nesterov;
    Ok(match kind {
        OptimizerKind::Adamw => {
            ensure!(!of_sgd, "--momentum and --no-nesterov are options of SGD, not of AdamW");
            let clip = args.clip.unwrap_or(1.0);
            let (beta1, beta2) = (args.beta1.unwrap_or(0.9), args.beta2.unwrap_or(0.98));
            Optimizer::Adamw(AdamwConfig { beta1, beta2, decay: args.decay.unwrap_or(0.1), clip })
        }
        OptimizerKind::Sgd => {
            ensure!(!of_adamw, "--beta1 and --beta2 are options of AdamW, not of SGD");
            Optimizer::Sgd(SgdConfig {
                momentum: args.momentum.unwrap_or(0.9),
                nesterov: !args.no_nesterov,
                decay: args.decay.unwrap_or(5e-5),
                clip: Some(args.clip.unwrap_or_else(|| clip(data, accumulate)))
                    .filter(|&it| it != 0.0),
            })
        }
    })
}

/// How much of its weights' norm a unit's gradient may have. The paper's 0.01 is for 1024 images and more, and
/// fewer bear more (Brock et al. 2021, arXiv:2102.06171, §4.1): here, at 128, 0.2 costs nothing and 0.05 a
/// fifth of the accuracy.
fn clip(data: &Data, accumulate: u32) -> f64 {
    match data {
        Data::Text(_) => 0.01,
        Data::Images(data) => {
            let images = f64::from(data.batch.rows()) * f64::from(accumulate);
            (25.6 / images).clamp(0.01, 0.2)
        }
    }
}

/// How a new run goes.
fn config(args: &Args, data: &Data, optimizer: Optimizer) -> TrainConfig {
    let it = &args.options;
    let default_rate = match (optimizer, data) {
        (Optimizer::Adamw(_), _) => 2e-3,
        (Optimizer::Sgd(_), Data::Text(_)) => 0.1,
        (Optimizer::Sgd(_), Data::Images(data)) => {
            0.1 * f64::from(data.batch.rows()) * f64::from(it.accumulate) / 256.0
        }
    };
    let learning_rate = it.learning_rate.unwrap_or(default_rate);
    TrainConfig {
        accumulate: it.accumulate,
        steps: it.steps,
        learning_rate,
        final_share: it.final_share,
        warmup: it.warmup.unwrap_or_else(|| 100.min(it.steps / 10)),
        seed: it.seed,
        matmul: it.matmul,
        flatness: flatness(it),
        average: it.average,
        checkpoint_every: it.checkpoint_every,
        valid_every: it.valid_every,
        log_every: it.log_every,
    }
}

/// What the gradient is to be taken of.
fn flatness(it: &OptionArgs) -> Flatness {
    match (it.sam, it.gradient_norm) {
        (Some(radius), _) => Flatness::Sam { radius, share: it.sam_share, after: it.sam_after },
        (None, Some(lambda)) => {
            let difference = |radius| GradientNormForm::Difference { radius };
            let form = it.gradient_norm_radius.map_or(GradientNormForm::Exact, difference);
            Flatness::GradientNorm { lambda, form }
        }
        (None, None) => Flatness::Off,
    }
}
