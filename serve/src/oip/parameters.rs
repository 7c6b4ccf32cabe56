//! Parameters of a request: named values, of which each is taken once and none is left over.

use std::collections::HashMap;

use aerie_proto::inference::{InferParameter, infer_parameter::ParameterChoice};

use crate::admission::Reject;

/// The parameters of one request.
#[derive(Debug)]
pub struct Parameters(HashMap<String, InferParameter>);

/// Of a parameter's name, as far as it is told in an error.
const NAME_CHARS_MAX: usize = 64;

impl Parameters {
    /// At most `n_max` of them.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if they are more.
    pub fn new(parameters: HashMap<String, InferParameter>, n_max: u32) -> Result<Self, Reject> {
        if parameters.len() <= n_max as usize {
            return Ok(Self(parameters));
        }
        let problem = format!("are {}; at most {n_max} are allowed", parameters.len());
        Err(Reject::Invalid { field: "parameters", problem })
    }

    /// Takes a value as it is.
    pub fn take(&mut self, name: &str) -> Option<ParameterChoice> {
        self.0.remove(name)?.parameter_choice
    }

    /// Takes a flag; false if it is not there.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if it is something else.
    pub fn take_flag(&mut self, name: &'static str) -> Result<bool, Reject> {
        match self.take(name) {
            None => Ok(false),
            Some(ParameterChoice::BoolParam(flag)) => Ok(flag),
            Some(_) => Err(not(name, "true or false")),
        }
    }

    /// Takes a whole number from 0 on.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if it is something else, or too large.
    pub fn take_count<T: TryFrom<u64>>(&mut self, name: &'static str) -> Result<Option<T>, Reject> {
        let count = match self.take(name) {
            None => return Ok(None),
            Some(ParameterChoice::Uint64Param(n)) => Some(n),
            Some(ParameterChoice::Int64Param(n)) => u64::try_from(n).ok(),
            Some(_) => None,
        };
        let count = count.and_then(|n| T::try_from(n).ok());
        count.map(Some).ok_or_else(|| not(name, "a whole number, and not too large"))
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if it is something else.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "f32 is what samplers compute with"
    )]
    pub fn take_number(&mut self, name: &'static str) -> Result<Option<f32>, Reject> {
        match self.take(name) {
            None => Ok(None),
            Some(ParameterChoice::DoubleParam(x)) => Ok(Some(x as f32)),
            Some(ParameterChoice::Int64Param(n)) => Ok(Some(n as f32)),
            Some(ParameterChoice::Uint64Param(n)) => Ok(Some(n as f32)),
            Some(_) => Err(not(name, "a number")),
        }
    }

    /// Takes a text.
    ///
    /// # Errors
    /// [`Reject::Invalid`] if it is something else.
    pub fn take_text(&mut self, name: &'static str) -> Result<Option<String>, Reject> {
        match self.take(name) {
            None => Ok(None),
            Some(ParameterChoice::StringParam(text)) => Ok(Some(text)),
            Some(_) => Err(not(name, "a string")),
        }
    }

    /// Passes if all have been taken: what nobody knows is a mistake that should not go unnoticed.
    ///
    /// # Errors
    /// [`Reject::Invalid`] that names one which has not.
    pub fn finish(self) -> Result<(), Reject> {
        // The same one each time, whatever the order in a map.
        let Some(name) = self.0.into_keys().min() else { return Ok(()) };
        let name: String = name.chars().take(NAME_CHARS_MAX).collect();
        let problem = format!("have {name:?}, which means nothing to this model");
        Err(Reject::Invalid { field: "parameters", problem })
    }
}

/// The parameter `name` is not what it should be.
pub(super) fn not(name: &'static str, expected: &str) -> Reject {
    Reject::Invalid { field: name, problem: format!("is not {expected}") }
}
