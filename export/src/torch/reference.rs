//! Models as libtorch computes them in f64: what `verify` holds other readings against.

use aerie_models::{ImageConfig, ModelConfig, images::network};
use tch::{Kind, Tensor, no_grad};

use crate::{
    checkpoint::Tensors,
    torch::{
        images::{ImageReading, Mode, Scaled},
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

/// Logits `[B, K]` of `pixels` of shape `[B, 3, H, W]`.
///
/// # Errors
/// If `tensors` are not the parameters of `config`.
pub fn classify(
    config: &ImageConfig,
    tensors: &Tensors,
    shape: [usize; 4],
    pixels: &[f32],
) -> Result<Vec<f64>, ParametersError> {
    let parameters = Parameters::load(config, tensors, Kind::Double)?;
    let pixels = Tensor::from_slice(pixels).to_kind(Kind::Double);
    let pixels = Scaled::of(pixels.reshape(shape.map(|it| it as i64)));
    let reading = ImageReading::new(&parameters, Mode::Evaluation);
    let logits = no_grad(|| network::logits(config, &reading, &pixels));
    Ok(Vec::try_from(logits.tensor().flatten(0, -1))
        .expect("a flat tensor of f64 is a vector of f64"))
}
