//! What a training says: a line of the CSV log, and a bar or plain lines on standard error.

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use crate::checkpoint::write_atomically;
use indicatif::{ProgressBar, ProgressStyle};

/// What a training counts, and by what it is scored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// Scored by bits per byte of text.
    Tokens,
    /// Scored by the share that is classified right.
    Images,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Images => "images",
        }
    }

    fn score(self) -> &'static str {
        match self {
            Self::Tokens => "bits_per_byte",
            Self::Images => "accuracy",
        }
    }

    /// First line of the log.
    fn header(self) -> String {
        let (name, score) = (self.name(), self.score());
        format!(
            "step,{name},seconds,train_loss,valid_loss,{score},learning_rate,gradient_norm,clipped,\
             {name}_per_second"
        )
    }
}

/// One line of the log. Losses are in nats per token or image.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub step: u64,
    /// Tokens or images.
    pub seen: u64,
    /// Time spent training since the run began.
    pub seconds: f64,
    /// Mean since the line before.
    pub train_loss: f64,
    /// Over all of the validation data, where it was just measured.
    pub valid: Option<Valid>,
    pub learning_rate: f64,
    pub gradient_norm: f64,
    /// Share of the units whose gradients were clipped, where they ever are.
    pub clipped: Option<f64>,
    pub seen_per_second: f64,
}

/// Loss over validation data.
#[derive(Clone, Copy, Debug)]
pub struct Valid {
    /// Nats per token or image.
    pub loss: f64,
    /// Bits per byte of text, or the share of images that is classified right.
    pub score: f64,
}

/// The CSV file of a run.
#[derive(Debug)]
pub struct Log {
    file: File,
}

impl Log {
    /// Opens the log at `path`, without what lies after `step`: that is done again.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, unit: Unit, step: u64) -> anyhow::Result<Self> {
        let before = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let is_kept = |line: &&str| {
            line.split(',').next().and_then(|it| it.parse().ok()).is_some_and(|it: u64| it <= step)
        };
        let kept = before.lines().skip(1).filter(is_kept).map(|it| format!("{it}\n"));
        let kept = format!("{}\n{}", unit.header(), kept.collect::<String>());
        write_atomically(path, kept.as_bytes())?;
        Ok(Self { file: OpenOptions::new().append(true).open(path)? })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, line: &Line) -> io::Result<()> {
        writeln!(self.file, "{}", csv(line))
    }
}

fn csv(line: &Line) -> String {
    let clipped = line.clipped.map_or_else(String::new, |it| format!("{it:.4}"));
    let [loss, score] = match line.valid {
        Some(it) => [format!("{:.5}", it.loss), format!("{:.5}", it.score)],
        None => [String::new(), String::new()],
    };
    format!(
        "{},{},{:.1},{:.5},{loss},{score},{:.3e},{:.4},{clipped},{:.0}",
        line.step,
        line.seen,
        line.seconds,
        line.train_loss,
        line.learning_rate,
        line.gradient_norm,
        line.seen_per_second,
    )
}

/// Where the run stands, for whoever watches: a bar on a terminal, otherwise a line now and then.
#[derive(Debug)]
pub struct Display {
    unit: Unit,
    steps: u64,
    /// None where nobody looks.
    bar: Option<ProgressBar>,
}

impl Display {
    /// A display of a run of `steps` steps that stands at `step`.
    pub fn new(unit: Unit, steps: u64, step: u64) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left")
                .expect("the template is well-formed");
            let bar = ProgressBar::new(steps).with_position(step).with_style(style);
            bar.with_elapsed(Duration::ZERO)
        });
        Self { unit, steps, bar }
    }

    /// Shows how far the run is.
    pub fn advance(&self, step: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(step);
        }
    }

    /// Says something beside.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }

    /// Shows what was just logged.
    pub fn show(&self, line: &Line) {
        let mut text = format!("loss {:.3}", line.train_loss);
        if let Some(it) = line.valid {
            let score = match self.unit {
                Unit::Tokens => format!("{:.4} bits/byte", it.score),
                Unit::Images => format!("{:.2} % right", 100.0 * it.score),
            };
            text += &format!(", valid {:.4} ({score})", it.loss);
        }
        if let Some(it) = line.clipped {
            text += &format!(", {:.1} % clipped", 100.0 * it);
        }
        text += &format!(", {:.0} {}/s", line.seen_per_second, self.unit.name());
        match &self.bar {
            Some(bar) if line.valid.is_some() => bar.println(format!("{} {text}", line.step)),
            Some(bar) => bar.set_message(text),
            None => {
                let left = seconds_left(line, self.steps);
                eprintln!("step {}/{}, {text}, {left:.0} s left", line.step, self.steps);
            }
        }
    }
}

fn seconds_left(line: &Line, steps: u64) -> f64 {
    let seen_per_step = line.seen as f64 / line.step as f64;
    (steps - line.step) as f64 * seen_per_step / line.seen_per_second
}
