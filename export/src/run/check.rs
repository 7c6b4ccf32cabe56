//! What a run has to say for there to be a training.

use std::ops::{
    Bound::{self, Excluded, Included, Unbounded},
    RangeBounds,
};

use thiserror::Error;

use crate::run::{
    AdamwConfig, Data, Flatness, GradientNormForm, Optimizer, Run, SgdConfig, TrainConfig,
};

/// Why a run cannot be trained; fields are called as in `run.toml`.
#[derive(Debug, Error)]
pub enum RunError {
    #[error("{field} is {found}; it must be {expected}")]
    Range { field: &'static str, found: f64, expected: &'static str },
    #[error("{field} is {found}, which leaves nothing of {steps} steps")]
    Steps { field: &'static str, found: u64, steps: u64 },
    #[error(
        "the gradient's norm of a language model needs a radius (--gradient-norm-radius): its kernels are \
         differentiated once"
    )]
    TwiceDifferentiated,
}

/// Where a number may lie, and how that is said.
type Allowed = ((Bound<f64>, Bound<f64>), &'static str);

const POSITIVE: Allowed = ((Excluded(0.0), Excluded(f64::INFINITY)), "above 0");
const NOT_NEGATIVE: Allowed = ((Included(0.0), Excluded(f64::INFINITY)), "0 or more");
const DECAY: Allowed = ((Included(0.0), Excluded(1.0)), "in 0..1");
const SHARE: Allowed = ((Excluded(0.0), Included(1.0)), "above 0, at most 1");
const PART: Allowed = ((Excluded(0.0), Excluded(1.0)), "above 0 and below 1");
const COUNT: Allowed = ((Included(1.0), Unbounded), "1 or more");

impl Run {
    /// Holds every number to what can be trained with.
    ///
    /// # Errors
    /// [`RunError`], naming the field.
    pub fn checked(self) -> Result<Self, RunError> {
        self.train.check()?;
        match self.optimizer {
            Optimizer::Adamw(it) => it.check()?,
            Optimizer::Sgd(it) => it.check()?,
        }
        self.data.check()?;
        match (&self.data, self.train.flatness) {
            (Data::Text(_), Flatness::GradientNorm { form: GradientNormForm::Exact, .. }) => {
                Err(RunError::TwiceDifferentiated)
            }
            _ => Ok(self),
        }
    }
}

impl TrainConfig {
    fn check(&self) -> Result<(), RunError> {
        hold("accumulate", self.accumulate.into(), COUNT)?;
        hold("learning_rate", self.learning_rate, POSITIVE)?;
        hold("final_share", self.final_share, NOT_NEGATIVE)?;
        hold("average", self.average.unwrap_or(0.0), DECAY)?;
        let counts = [
            ("steps", self.steps),
            ("checkpoint_every", self.checkpoint_every),
            ("valid_every", self.valid_every),
            ("log_every", self.log_every),
        ];
        counts.into_iter().try_for_each(|(field, found)| hold(field, found as f64, COUNT))?;
        let late = match self.flatness {
            Flatness::Off => 0,
            Flatness::Sam { radius, share, after } => {
                hold("sam radius", radius, POSITIVE)?;
                hold("sam share", share, SHARE)?;
                after
            }
            Flatness::GradientNorm { lambda, form } => {
                hold("gradient-norm lambda", lambda, NOT_NEGATIVE)?;
                if let GradientNormForm::Difference { radius } = form {
                    hold("gradient-norm radius", radius, POSITIVE)?;
                }
                0
            }
        };
        for (field, found) in [("warmup", self.warmup), ("sam after", late)] {
            if self.steps <= found {
                return Err(RunError::Steps { field, found, steps: self.steps });
            }
        }
        Ok(())
    }
}

impl AdamwConfig {
    fn check(self) -> Result<(), RunError> {
        hold("beta1", self.beta1, DECAY)?;
        hold("beta2", self.beta2, DECAY)?;
        hold("decay", self.decay, NOT_NEGATIVE)?;
        hold("clip", self.clip, POSITIVE)
    }
}

impl SgdConfig {
    fn check(self) -> Result<(), RunError> {
        hold("momentum", self.momentum, DECAY)?;
        hold("decay", self.decay, NOT_NEGATIVE)?;
        self.clip.map_or(Ok(()), |clip| hold("clip", clip, POSITIVE))
    }
}

impl Data {
    fn check(&self) -> Result<(), RunError> {
        let holdout = match self {
            Self::Text(it) => {
                hold("rows", it.rows.into(), COUNT)?;
                hold("time", it.time.into(), COUNT)?;
                it.holdout
            }
            Self::Images(it) => it.holdout,
        };
        holdout.map_or(Ok(()), |share| hold("holdout", share, PART))
    }
}

fn hold(field: &'static str, found: f64, (range, expected): Allowed) -> Result<(), RunError> {
    // A NaN is in no range.
    range.contains(&found).then_some(()).ok_or(RunError::Range { field, found, expected })
}
