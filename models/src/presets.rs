//! The sizes that have a name, kept as TOML beside this crate.

#[cfg(test)]
mod tests;

use crate::config::ModelConfig;

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        /// Every preset as `(name, TOML)`, in the order in which `--help` lists them.
        const PRESETS: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../presets/", $name, ".toml")))),*];
    };
}

presets![
    "tiny",
    "tales",
    "tales-hawk",
    "tales-mqa",
    "shakespeare",
    "griffin-small-512",
    "hawk-small-512",
    "mqa-small-512",
    "griffin-100m",
    "griffin-100m-8h",
    "griffin-200m",
    "griffin-400m",
    "griffin-1.3b",
    "griffin-3b",
    "griffin-7b",
    "griffin-14b",
    "recurrentgemma-2b",
    "recurrentgemma-9b",
];

/// Names of all presets.
pub fn names() -> impl Iterator<Item = &'static str> {
    PRESETS.iter().map(|(name, _)| *name)
}

/// The configuration called `name`; none if there is no such preset.
pub fn preset(name: &str) -> Option<ModelConfig> {
    let (_, text) = PRESETS.iter().find(|(it, _)| *it == name)?;
    Some(toml::from_str(text).expect("presets are parsed by a test"))
}
