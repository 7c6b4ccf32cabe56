//! `aerie-export spp`: how signals propagate through a network, block by block, beside what its
//! equations predict (Brock, De and Smith 2021, arXiv:2101.08692, §2).

mod plot;
#[cfg(test)]
mod tests;

use std::{
    fmt, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use aerie_models::{
    ImageConfig, Init, ParameterSpec, Parametric,
    images::{
        Observed,
        config::{Beta, Norm, Padding, Shortcut},
        network, presets,
    },
};
use anyhow::{Context, bail, ensure};
use serde::Serialize;
use tch::{Device, Kind, Tensor, no_grad};

use crate::{
    checkpoint::{RunDir, write_atomically},
    data::images::{AheadLimits, Dataset, Split, batches::in_order},
    torch::{
        images::{ImageReading, Mode, Scaled},
        parameters::Parameters,
    },
};

/// What passes, when theory has what it asks for.
const TOLERANCES: Tolerances = Tolerances { variance: 0.1, branch: 0.15, squared_mean: 0.05 };

/// Shows how signals propagate through networks at their beginning, or as trained
#[derive(Debug, clap::Args)]
#[command(after_help = "\
For each block: the mean over channels of the variance of what it gives, of the variance of its
residual branch before that is scaled, and of the squared mean of what it gives. A network without
normalisation that is well made keeps the first where theory has it, the second at 1, and the third at
0. Theory knows no edges and no pictures: the default feeds noise to the first block and wraps maps
around, and where a shortcut would take means of 2x2, which level out noise and not pictures, it takes
one pixel of each four. --edges shows the network as it is in use. Theory speaks of networks at their
beginning whose branches end with 1; of others, and of what comes of pictures, nothing is predicted.

Examples:
  aerie-export spp nf-resnet-50 bare-resnet-50 bn-resnet-50 --out spp.svg
  aerie-export spp nfnet-f0 --input cifar10/test.parquet --size 64 --out f0.svg
  aerie-export spp runs/pictures --input cifar10/test.parquet --size 32 --out run.svg
Writes FILE, and beside it the same as .csv and .json. Exits with 1 if a network is not as predicted.")]
pub struct Args {
    /// Presets, files in the presets' format, or run directories
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// Picture to write: .svg
    #[arg(long, value_name = "FILE", default_value = "spp.svg")]
    out: PathBuf,
    /// What goes in: noise to the first block (blocks), noise as pixels (noise), or a data set's path
    #[arg(long, value_name = "WHAT", default_value = "blocks")]
    input: String,
    /// Images
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    images: u16,
    /// Pixels of each side of what goes in
    #[arg(long, value_name = "PIXELS", default_value_t = 32, value_parser = clap::value_parser!(u16).range(8..=1024))]
    size: u16,
    /// Networks that are drawn and averaged over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    seeds: u16,
    /// Set the number at the end of every branch, which begins at 0 and would hide it [default: 1; as
    /// trained for run directories]
    #[arg(long, value_name = "GAIN")]
    skip_gain: Option<f64>,
    /// Leave zeros around maps and means in shortcuts, as they are in use
    #[arg(long)]
    edges: bool,
    /// Draw variances on a logarithmic axis
    #[arg(long)]
    log: bool,
}

/// What is seen of a network.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Propagation {
    pub model: String,
    /// Index of the first block of each stage.
    pub stage_starts: Vec<usize>,
    /// In order; none if the network has nothing that theory speaks of.
    pub blocks: Vec<BlockSignal>,
    pub verdict: Verdict,
    /// What was held to the predictions.
    pub tolerances: Tolerances,
    /// Why it is not as predicted; none if it is, or if nothing is predicted.
    pub complaints: Vec<String>,
}

/// Whether a network is as its equations predict.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Pass,
    Fail,
    /// Nothing is predicted of it.
    Unpredicted,
}

/// How far a network may be from what is predicted of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Tolerances {
    /// How far a variance may be off, as a share of what is predicted.
    pub variance: f64,
    /// How far the variance of a branch may be off 1.
    pub branch: f64,
    /// Largest squared mean.
    pub squared_mean: f64,
}

/// Moments of one block, averaged over channels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BlockSignal {
    /// Variance that the equations predict of what the block gives; none where they do not.
    pub predicted: Option<f64>,
    /// Variance of what it gives.
    pub variance: f64,
    /// Variance of its residual branch, channels weighed, nothing scaled yet.
    pub branch_variance: f64,
    /// Square of the mean of what it gives.
    pub squared_mean: f64,
}

/// Runs the command.
///
/// # Errors
/// If a model or the images cannot be read, or a file cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(args.out.extension().is_some_and(|it| it == "svg"), "--out: a .svg file is expected");
    let input = Input::new(args)?;
    let mut found = Vec::new();
    for name in &args.models {
        found.push(propagation(&Subject::new(name, args)?, &input, args)?);
    }
    for (extension, text) in [("csv", csv(&found)), ("json", serde_json::to_string_pretty(&found)?)]
    {
        write_atomically(&args.out.with_extension(extension), text.as_bytes())?;
    }
    write_atomically(&args.out, plot::draw(&found, args.log)?.as_bytes())?;
    let mut out = io::stdout();
    for it in &found {
        write!(out, "{it}")?;
    }
    ensure!(found.iter().all(|it| it.complaints.is_empty()), "signals are not as predicted");
    Ok(())
}

/// A network to look at.
struct Subject {
    name: String,
    config: ImageConfig,
    /// Where its parameters are; none if they are drawn.
    run: Option<RunDir>,
}

impl Subject {
    fn new(name: &str, args: &Args) -> anyhow::Result<Self> {
        let path = Path::new(name);
        let (config, run) = if path.is_dir() {
            let dir = RunDir::new(path);
            let run = dir.run()?;
            let (config, _) =
                run.images().with_context(|| format!("{name}: not of a classifier"))?;
            (config.clone(), Some(dir))
        } else if let Some(config) = presets::preset(name) {
            (config, None)
        } else if path.is_file() {
            let text = fs::read_to_string(path).with_context(|| name.to_owned())?;
            (toml::from_str(&text).with_context(|| name.to_owned())?, None)
        } else {
            let names: Vec<_> = presets::names().collect();
            bail!("{name} is no run directory, no file, and none of {}", names.join(", "));
        };
        let config = match &*args.input {
            _ if args.edges => config,
            "blocks" => {
                ImageConfig { padding: Padding::Circular, shortcut: Shortcut::Strided, ..config }
            }
            _ => ImageConfig { padding: Padding::Circular, ..config },
        };
        let short = path.file_name().map_or_else(|| name.into(), |it| it.to_string_lossy());
        Ok(Self { name: short.into_owned(), config, run })
    }

    fn parameters(&self, seed: u64) -> anyhow::Result<Parameters> {
        let Some(dir) = &self.run else {
            return Ok(Parameters::init(&self.config, seed, Kind::Float));
        };
        let step = dir.latest()?.with_context(|| format!("{}: no checkpoint yet", self.name))?;
        Ok(Parameters::load(&self.config, &step.model()?, Kind::Float)?)
    }
}

/// What goes in.
enum Input {
    /// Noise, to the first block.
    Blocks,
    /// `[B, 3, H, W]`, to the stem.
    Pixels(Tensor),
}

impl Input {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let [images, size] = [args.images, args.size].map(i64::from);
        Ok(match &*args.input {
            "blocks" => Self::Blocks,
            "noise" => {
                tch::manual_seed(0);
                Self::Pixels(Tensor::randn([images, 3, size, size], (Kind::Float, Device::Cpu)))
            }
            path => {
                let set = Arc::new(Dataset::open(Path::new(path), Split::Train)?);
                let mut preprocessing = presets::small_input();
                (preprocessing.height, preprocessing.width) = (args.size.into(), args.size.into());
                let limits = AheadLimits { threads_max: 1, ready_max: 1 };
                let mut batches = in_order(&set, &preprocessing, args.images.into(), limits);
                let batch = batches.next().context("the data set is empty")??;
                Self::Pixels(Tensor::from_slice(&batch.pixels).view([-1, 3, size, size]))
            }
        })
    }
}

fn propagation(subject: &Subject, input: &Input, args: &Args) -> anyhow::Result<Propagation> {
    let config = &subject.config;
    let at_beginning = subject.run.is_none().then_some(1.0);
    let skip_gain = args.skip_gain.or(at_beginning);
    let blocks = config.blocks() as usize;
    let mut sums = vec![[0.0; 3]; blocks];
    for seed in 0..u64::from(args.seeds) {
        let parameters = subject.parameters(seed + 1)?;
        if let Some(gain) = skip_gain {
            open_branches(config, &parameters, gain);
        }
        for (sum, found) in sums.iter_mut().zip(moments(config, &parameters, input, args, seed)) {
            *sum = [0, 1, 2].map(|at| sum[at] + found[at] / f64::from(args.seeds));
        }
    }
    let is_predicted = matches!(input, Input::Blocks)
        && config.norm == Norm::Off
        && config.shortcut == Shortcut::Strided
        && config.beta == Beta::Predicted
        && at_beginning.is_some()
        && skip_gain == at_beginning;
    let predicted = config.predicted_variances().into_iter().map(|it| is_predicted.then_some(it));
    let blocks: Vec<BlockSignal> = predicted
        .zip(sums)
        .map(|(predicted, [variance, branch_variance, squared_mean])| BlockSignal {
            predicted,
            variance,
            branch_variance,
            squared_mean,
        })
        .collect();
    let mut start = 0;
    let stage_starts = config.stages.iter().map(|it| {
        start += it.depth as usize;
        start - it.depth as usize
    });
    let (model, stage_starts) = (subject.name.clone(), stage_starts.collect());
    let complaints = complaints(&blocks);
    let verdict = match &*complaints {
        _ if !is_predicted => Verdict::Unpredicted,
        [] => Verdict::Pass,
        _ => Verdict::Fail,
    };
    let tolerances = TOLERANCES;
    Ok(Propagation { model, stage_starts, blocks, verdict, tolerances, complaints })
}

/// Sets the number at the end of every branch.
fn open_branches(config: &ImageConfig, parameters: &Parameters, gain: f64) {
    // Gains of last convolutions that begin at 0 do the same.
    let begins_closed = |path: &&aerie_models::Path, spec: &ParameterSpec| {
        path.as_str().ends_with("gain") && matches!(spec.init, Init::Zeros | Init::Constant(0.0))
    };
    no_grad(|| {
        for (path, spec) in &config.parameters() {
            if begins_closed(&path, spec) {
                let _ = parameters.at(path).tensor.shallow_clone().fill_(gain);
            }
        }
    });
}

/// Variance, branch variance and squared mean of every block.
fn moments(
    config: &ImageConfig,
    parameters: &Parameters,
    input: &Input,
    args: &Args,
    seed: u64,
) -> Vec<[f64; 3]> {
    let mut found = Vec::new();
    let mut branch = 0.0;
    // Norms over the batch are those of training.
    let mode = if config.norm == Norm::Batch { Mode::Training { seed } } else { Mode::Evaluation };
    let reading = ImageReading::new(parameters, mode).observed(|at, x| {
        let (variance, mean) = x.var_mean_dim(&[0i64, 2, 3][..], false, false);
        let variance = variance.mean(Kind::Double).double_value(&[]);
        match at {
            Observed::Branch => branch = variance,
            Observed::Block => {
                let squared = mean.square().mean(Kind::Double).double_value(&[]);
                found.push([variance, branch, squared]);
            }
        }
    });
    no_grad(|| match input {
        Input::Pixels(pixels) => {
            network::logits(config, &reading, &Scaled::of(pixels.shallow_clone()));
        }
        Input::Blocks => {
            tch::manual_seed(seed.cast_signed());
            let [images, size] = [args.images, args.size].map(i64::from);
            let shape = [images, config.stem_width.into(), size, size];
            let noise = Tensor::randn(shape, (Kind::Float, Device::Cpu));
            network::blocks(config, &reading, Scaled::of(noise));
        }
    });
    drop(reading);
    found
}

/// What is not as predicted; a NaN is not.
fn complaints(blocks: &[BlockSignal]) -> Vec<String> {
    let Tolerances { variance, branch, squared_mean } = TOLERANCES;
    let mut complaints = Vec::new();
    for (number, it) in blocks.iter().enumerate() {
        let Some(predicted) = it.predicted else { continue };
        let checks = [
            ("variance", it.variance, predicted, variance * predicted),
            ("variance of the branch", it.branch_variance, 1.0, branch),
            ("squared mean", it.squared_mean, 0.0, squared_mean),
        ];
        for (what, found, expected, tolerance) in checks {
            let is_near = (found - expected).abs() <= tolerance;
            if !is_near {
                complaints.push(format!(
                    "block {number}: {what} {found:.3}, {expected:.3} is predicted, \
                     give or take {tolerance:.3}"
                ));
            }
        }
    }
    complaints
}

impl fmt::Display for Propagation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.model)?;
        writeln!(
            f,
            "  {:>5} {:>10} {:>10} {:>10} {:>12}",
            "block", "predicted", "variance", "branch", "squared mean"
        )?;
        for (number, it) in self.blocks.iter().enumerate() {
            let predicted = it.predicted.map_or_else(|| "-".to_owned(), |it| format!("{it:.3}"));
            let mark = if self.stage_starts.contains(&number) { "|" } else { " " };
            let BlockSignal { variance, branch_variance, squared_mean, .. } = it;
            writeln!(
                f,
                "{mark} {number:>5} {predicted:>10} {variance:>10.3} {branch_variance:>10.3} \
                 {squared_mean:>12.4}"
            )?;
        }
        match self.verdict {
            Verdict::Unpredicted => writeln!(f, "  nothing is predicted of this network\n"),
            Verdict::Pass => {
                let Tolerances { variance, branch, squared_mean } = self.tolerances;
                let percent = 100.0 * variance;
                writeln!(
                    f,
                    "  PASS: variances within {percent} % of what is predicted, of branches 1 within \
                     {branch}, squared means at most {squared_mean}\n"
                )
            }
            Verdict::Fail => {
                const SHOWN: usize = 4;
                writeln!(f, "  FAIL")?;
                self.complaints.iter().take(SHOWN).try_for_each(|it| writeln!(f, "    {it}"))?;
                match self.complaints.len().checked_sub(SHOWN) {
                    Some(more) if 0 < more => writeln!(f, "    and {more} more\n"),
                    _ => writeln!(f),
                }
            }
        }
    }
}

/// A line for each block of each network.
fn csv(found: &[Propagation]) -> String {
    let mut text = "model,block,predicted,variance,branch_variance,squared_mean\n".to_owned();
    for it in found {
        for (number, block) in it.blocks.iter().enumerate() {
            let predicted = block.predicted.map_or_else(String::new, |it| format!("{it:.6}"));
            let BlockSignal { variance, branch_variance, squared_mean, .. } = block;
            text += &format!(
                "{},{number},{predicted},{variance:.6},{branch_variance:.6},{squared_mean:.6}\n",
                it.model
            );
        }
    }
    text
}
