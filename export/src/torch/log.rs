//! What a training says: a line of the CSV log, and a bar or plain lines on standard error.

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

/// First line of the log.
const HEADER: &str = "step,tokens,seconds,train_loss,valid_loss,bits_per_byte,learning_rate,\
                      gradient_norm,tokens_per_second";

/// One line of the log. Losses are in nats per token.
#[derive(Clone, Copy, Debug)]
pub struct Line {
    pub step: u64,
    pub tokens: u64,
    /// Time spent training since the run began.
    pub seconds: f64,
    /// Mean since the line before.
    pub train_loss: f64,
    /// Over the whole validation text, where it was just measured.
    pub valid: Option<Valid>,
    pub learning_rate: f64,
    pub gradient_norm: f64,
    pub tokens_per_second: f64,
}

/// Loss over a validation text.
#[derive(Clone, Copy, Debug)]
pub struct Valid {
    /// Nats per token.
    pub loss: f64,
    pub bits_per_byte: f64,
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
    pub fn open(path: &Path, step: u64) -> io::Result<Self> {
        let before = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let is_kept = |line: &&str| {
            line.split(',').next().and_then(|it| it.parse().ok()).is_some_and(|it: u64| it <= step)
        };
        let kept = before.lines().skip(1).filter(is_kept).map(|it| format!("{it}\n"));
        fs::write(path, format!("{HEADER}\n{}", kept.collect::<String>()))?;
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
    let [loss, bits] = match line.valid {
        Some(it) => [format!("{:.5}", it.loss), format!("{:.5}", it.bits_per_byte)],
        None => [String::new(), String::new()],
    };
    format!(
        "{},{},{:.1},{:.5},{loss},{bits},{:.3e},{:.4},{:.0}",
        line.step,
        line.tokens,
        line.seconds,
        line.train_loss,
        line.learning_rate,
        line.gradient_norm,
        line.tokens_per_second,
    )
}

/// Where the run stands, for whoever watches: a bar on a terminal, otherwise a line now and then.
#[derive(Debug)]
pub enum Display {
    Bar(ProgressBar),
    Lines { steps: u64 },
}

impl Display {
    /// A display of a run of `steps` steps that stands at `step`.
    pub fn new(steps: u64, step: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines { steps };
        }
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}, {eta} left")
            .expect("the template is well-formed");
        let bar = ProgressBar::new(steps).with_position(step).with_style(style);
        Self::Bar(bar.with_elapsed(Duration::ZERO))
    }

    /// Shows how far the run is.
    pub fn advance(&self, step: u64) {
        if let Self::Bar(bar) = self {
            bar.set_position(step);
        }
    }

    /// Shows what was just logged.
    pub fn show(&self, line: &Line) {
        let mut text = format!("loss {:.3}", line.train_loss);
        if let Some(it) = line.valid {
            text += &format!(", valid {:.4} ({:.4} bits/byte)", it.loss, it.bits_per_byte);
        }
        text += &format!(", {:.0} tokens/s", line.tokens_per_second);
        match self {
            Self::Bar(bar) if line.valid.is_some() => bar.println(format!("{} {text}", line.step)),
            Self::Bar(bar) => bar.set_message(text),
            Self::Lines { steps } => {
                let left = seconds_left(line, *steps);
                eprintln!("step {}/{steps}, {text}, {left:.0} s left", line.step);
            }
        }
    }
}

fn seconds_left(line: &Line, steps: u64) -> f64 {
    let tokens_per_step = line.tokens as f64 / line.step as f64;
    (steps - line.step) as f64 * tokens_per_step / line.tokens_per_second
}
