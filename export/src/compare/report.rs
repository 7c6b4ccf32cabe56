//! The figures of all bundles: a table for people, JSON for programs.

#[cfg(test)]
mod tests;

use std::fmt;

use aerie_models::Precision;
use serde::Serialize;

use crate::{compare::tally::Figures, data::sessions::Session};

/// What bundles made of a text; the first is the one that the others are held against.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Name of the text's file or folder.
    text: String,
    text_bytes: u64,
    sessions: usize,
    /// Tokens that were predicted.
    tokens: usize,
    pub(super) bundles: Vec<Row>,
}

/// What one bundle made of it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    /// Name of its folder.
    pub(super) bundle: String,
    pub(super) precision: Precision,
    /// Of the inputs of products: 32 as they come, 8 rounded.
    pub(super) activation_bits: u32,
    /// Of all files.
    pub(super) bytes: u64,
    /// Of the graph's parameters, for each of the model's.
    pub(super) weight_bits: f64,
    #[serde(flatten)]
    pub(super) figures: Figures,
}

impl Report {
    pub(super) fn new(text: String, sessions: &[Session], bundles: Vec<Row>) -> Self {
        Self {
            text,
            text_bytes: sessions.iter().map(|it| it.text_bytes).sum(),
            sessions: sessions.len(),
            tokens: sessions.iter().map(|it| it.ids.len() - 1).sum(),
            bundles,
        }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("figures have a JSON form") + "\n"
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { text, text_bytes, sessions, tokens, bundles } = self;
        writeln!(f, "{text}: {tokens} tokens in {sessions} sessions, {text_bytes} bytes")?;
        writeln!(f)?;
        let header = [
            "bundle",
            "weights",
            "inputs",
            "bytes",
            "bits/weight",
            "nats/token",
            "perplexity",
            "bits/byte",
            "KL mean",
            "KL 99%",
            "other choice",
        ];
        let mut lines = vec![header.map(str::to_owned)];
        lines.extend(bundles.iter().map(Row::cells));
        let width = |column: usize| lines.iter().map(|it| it[column].chars().count()).max();
        let widths: [usize; 11] = std::array::from_fn(|it| width(it).unwrap_or_default());
        for line in &lines {
            let [name, figures @ ..] = line;
            write!(f, "{name:<width$}", width = widths[0])?;
            for (figure, width) in figures.iter().zip(&widths[1..]) {
                write!(f, "  {figure:>width$}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Row {
    fn cells(&self) -> [String; 11] {
        let Self { bundle, precision, activation_bits, bytes, weight_bits, figures } = self;
        let inputs = if *activation_bits == 32 { "f32" } else { "8 bits" };
        [
            bundle.clone(),
            precision.name().to_owned(),
            inputs.to_owned(),
            bytes.to_string(),
            format!("{weight_bits:.2}"),
            format!("{:.4}", figures.nats_per_token),
            format!("{:.3}", figures.perplexity),
            format!("{:.4}", figures.bits_per_byte),
            format!("{:.6}", figures.kl_nats_mean),
            format!("{:.6}", figures.kl_nats_p99),
            format!("{:.2} %", 100.0 * figures.other_choice),
        ]
    }
}
