//! The model as libtorch computes it in f64: what `verify` holds other readings against.

use aerie_models::ModelConfig;
use tch::Kind;

use crate::{
    checkpoint::Tensors,
    torch::{
        parameters::{Parameters, ParametersError},
        sample::Session,
    },
};

/// Logits after each of `tokens`, read one by one.
///
/// # Errors
/// If `tensors` are not the parameters of `config`.
pub fn logits(
    config: &ModelConfig,
    tensors: &Tensors,
    tokens: &[u32],
) -> Result<Vec<Vec<f64>>, ParametersError> {
    let parameters = Parameters::load(config, tensors, Kind::Double)?;
    let mut session = Session::new(config, &parameters);
    Ok(tokens.iter().map(|&token| session.feed(&[token])).collect())
}
