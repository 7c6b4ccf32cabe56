//! What a training does to its pictures, as `run.toml` has it.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use thiserror::Error;

use crate::data::images::{augment::Crop, rand_augment::RandAugment, sampler::BatchShape};

/// What a training does to its pictures.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct BatchOptions {
    /// Rows of a batch, or different pictures of one if the multiplicity makes it grow.
    pub batch: u32,
    /// `n`: augmentations of each picture within a batch.
    #[serde(default = "one")]
    pub multiplicity: u32,
    #[serde(default)]
    pub multiplicity_mode: Multiplicity,
    /// None takes what the preprocessing takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<Crop>,
    /// Whether half of the draws are mirrored.
    #[serde(default)]
    pub flip: bool,
    /// `α` of MixUp's Beta distribution (Zhang et al. 2018, arXiv:1710.09412); none leaves it out.
    /// Of MixUp and CutMix, every other row gets the one, and those between the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup_alpha: Option<f64>,
    /// Whether there is CutMix (Yun et al. 2019, arXiv:1905.04899).
    #[serde(default)]
    pub cutmix: bool,
    /// After mixing; none leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rand_augment: Option<RandAugment>,
    /// Share of a target that goes to all classes alike.
    #[serde(default)]
    pub label_smoothing: f32,
}

/// What becomes larger with the multiplicity.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Multiplicity {
    /// Nothing: the batch keeps its rows and has fewer pictures.
    #[default]
    Fixed,
    /// The batch, by `n`.
    Growing,
}

/// Why options are refused.
#[derive(Debug, Error, PartialEq)]
pub enum OptionsError {
    #[error("{field} is {found}; {min} to {max} is supported")]
    Range { field: &'static str, found: f64, min: f64, max: f64 },
    #[error("batch is {batch}, which multiplicity {multiplicity} does not divide")]
    Multiplicity { batch: u32, multiplicity: u32 },
    #[error("{field} begins with {low}, which is above its end {high}")]
    Order { field: &'static str, low: f64, high: f64 },
    #[error("a batch has one picture only, but mixing takes two different ones")]
    Alone,
}

impl BatchOptions {
    /// Batches of `batch` pictures as they are.
    pub fn plain(batch: u32) -> Self {
        Self {
            batch,
            multiplicity: 1,
            multiplicity_mode: Multiplicity::Fixed,
            crop: None,
            flip: false,
            mixup_alpha: None,
            cutmix: false,
            rand_augment: None,
            label_smoothing: 0.0,
        }
    }

    /// The same options if they are sound, for those who put some together field by field.
    ///
    /// # Errors
    /// [`OptionsError`], naming the field.
    pub fn checked(self) -> Result<Self, OptionsError> {
        for (field, found, min, max) in self.ranges() {
            if !(min..=max).contains(&found) {
                return Err(OptionsError::Range { field, found, min, max });
            }
        }
        if let Some(Crop::Resized { area, aspect }) = self.crop {
            for (field, [low, high]) in [("crop.area", area), ("crop.aspect", aspect)] {
                if high < low {
                    return Err(OptionsError::Order { field, low, high });
                }
            }
        }
        let Self { batch, multiplicity, .. } = self;
        match self.multiplicity_mode {
            Multiplicity::Fixed if !batch.is_multiple_of(multiplicity) => {
                return Err(OptionsError::Multiplicity { batch, multiplicity });
            }
            Multiplicity::Growing if ROWS_MAX < f64::from(batch) * f64::from(multiplicity) => {
                let (field, found) = ("batch · multiplicity", f64::from(batch * multiplicity));
                return Err(OptionsError::Range { field, found, min: 1.0, max: ROWS_MAX });
            }
            Multiplicity::Fixed | Multiplicity::Growing => {}
        }
        if self.mixes() && self.shape().pictures < 2 {
            return Err(OptionsError::Alone);
        }
        Ok(self)
    }

    /// Different pictures of a batch, and draws of each.
    pub fn shape(&self) -> BatchShape {
        let pictures = match self.multiplicity_mode {
            Multiplicity::Fixed => self.batch / self.multiplicity,
            Multiplicity::Growing => self.batch,
        };
        BatchShape { pictures, multiplicity: self.multiplicity }
    }

    /// `B`: rows of a batch.
    pub fn rows(&self) -> u32 {
        let BatchShape { pictures, multiplicity } = self.shape();
        pictures * multiplicity
    }

    /// Whether rows are made of two pictures.
    pub fn mixes(&self) -> bool {
        self.cutmix || self.mixup_alpha.is_some()
    }

    /// Bounds of numbers, as `(field, found, least, most)`.
    fn ranges(&self) -> Vec<(&'static str, f64, f64, f64)> {
        let mut ranges = vec![
            ("batch", f64::from(self.batch), 1.0, ROWS_MAX),
            ("multiplicity", f64::from(self.multiplicity), 1.0, 1024.0),
            ("label_smoothing", f64::from(self.label_smoothing), 0.0, 0.999),
        ];
        ranges.extend(self.mixup_alpha.map(|it| ("mixup_alpha", it, 0.01, 4.0)));
        match self.crop {
            None => {}
            Some(Crop::Padded { padding, .. }) => {
                ranges.push(("crop.padding", f64::from(padding), 1.0, 1024.0));
            }
            Some(Crop::Resized { area, aspect }) => {
                ranges.extend(area.map(|it| ("crop.area", it, 1e-4, 1.0)));
                ranges.extend(aspect.map(|it| ("crop.aspect", it, 0.01, 100.0)));
            }
        }
        if let Some(it) = &self.rand_augment {
            ranges.push(("rand_augment.layers", f64::from(it.layers), 1.0, 16.0));
            ranges.push(("rand_augment.magnitude", it.magnitude, 0.0, 30.0));
            let pixels = f64::from(it.cutout_pixels);
            ranges.push(("rand_augment.cutout_pixels", pixels, 0.0, 4096.0));
            let pixels = f64::from(it.translate_pixels);
            ranges.push(("rand_augment.translate_pixels", pixels, 0.0, 4096.0));
        }
        ranges
    }
}

/// Most rows of a batch.
const ROWS_MAX: f64 = 65_536.0;

fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for BatchOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)?.checked().map_err(D::Error::custom)
    }
}

impl Serialize for BatchOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}
