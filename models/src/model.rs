//! A model of any kind, where it does not matter which.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{
    backend::ParameterSpec,
    census,
    config::{Family, ModelConfig},
    images::{self, ImageConfig},
    path::Path,
};

/// What has parameters.
pub trait Parametric {
    /// Every parameter, by path.
    fn parameters(&self) -> BTreeMap<Path, ParameterSpec>;

    /// Elements of all parameters together.
    fn elements(&self) -> u64 {
        self.parameters().values().map(|it| it.shape.iter().product::<u64>()).sum()
    }
}

impl Parametric for ModelConfig {
    fn parameters(&self) -> BTreeMap<Path, ParameterSpec> {
        census::parameters(self)
    }
}

impl Parametric for ImageConfig {
    fn parameters(&self) -> BTreeMap<Path, ParameterSpec> {
        images::census::parameters(self)
    }
}

/// A configuration of either kind; `family` tells which.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Model {
    Language(ModelConfig),
    Images(ImageConfig),
}

impl Parametric for Model {
    fn parameters(&self) -> BTreeMap<Path, ParameterSpec> {
        match self {
            Self::Language(config) => config.parameters(),
            Self::Images(config) => config.parameters(),
        }
    }
}

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = toml::Table::deserialize(deserializer)?;
        let family = table.get("family").cloned().ok_or_else(|| Error::missing_field("family"))?;
        let parsed = match Family::deserialize(family) {
            Ok(_) => ModelConfig::deserialize(table).map(Self::Language),
            Err(_) => ImageConfig::deserialize(table).map(Self::Images),
        };
        parsed.map_err(|error| D::Error::custom(error.message()))
    }
}
