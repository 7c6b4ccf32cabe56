//! The parameters of a model as libtorch tensors, by path.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, f64::consts::TAU, iter::zip};

use aerie_models::{Init, ParameterSpec, Parametric, Path, Role};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};
use thiserror::Error;

use crate::{
    chance,
    checkpoint::{Tensors, Values},
};

/// Every parameter of a model, in the order of paths.
#[derive(Debug)]
pub struct Parameters {
    by_path: BTreeMap<Path, Parameter>,
    kind: Kind,
    device: Device,
}

/// One parameter.
#[derive(Debug)]
pub struct Parameter {
    /// A leaf; gradients flow into it unless training only averages in it.
    pub tensor: Tensor,
    pub role: Role,
}

/// A checkpoint does not hold the parameters of the model.
#[derive(Debug, Error)]
pub enum ParametersError {
    #[error("the checkpoint lacks {0}")]
    Missing(String),
    #[error("the checkpoint holds {0}, which the model does not have")]
    Unknown(String),
    #[error("the checkpoint's {name} has shape {found:?}; the model's has {expected:?}")]
    Shape { name: String, found: Vec<usize>, expected: Vec<u64> },
}

impl Parameters {
    /// Makes every parameter of `config` according to its specification, from `seed` and its place
    /// in the order of paths alone.
    pub fn init(config: &impl Parametric, seed: u64, kind: Kind) -> Self {
        let specs = config.parameters();
        let by_path = zip(0u64.., specs).map(|(stream, (path, spec))| {
            let mut rng = chance::source(seed, "initial values", stream);
            let values = draw(&spec, &mut rng);
            (path, Parameter { tensor: leaf(&values, &spec, kind), role: spec.role })
        });
        Self { by_path: by_path.collect(), kind, device: Device::Cpu }
    }

    /// Takes the parameters of `config` from a checkpoint.
    ///
    /// # Errors
    /// [`ParametersError`] if one is missing, of another shape, or too many.
    pub fn load(
        config: &impl Parametric,
        tensors: &Tensors,
        kind: Kind,
    ) -> Result<Self, ParametersError> {
        let specs = config.parameters();
        if let Some(name) =
            tensors.keys().find(|name| !specs.keys().any(|it| it.as_str() == **name))
        {
            return Err(ParametersError::Unknown(name.clone()));
        }
        let by_path = specs.into_iter().map(|(path, spec)| {
            let found = tensors
                .get(path.as_str())
                .ok_or_else(|| ParametersError::Missing(path.to_string()))?;
            if !found.shape.iter().map(|&it| it as u64).eq(spec.shape.iter().copied()) {
                let (name, found) = (path.to_string(), found.shape.clone());
                return Err(ParametersError::Shape { name, found, expected: spec.shape });
            }
            let values: Vec<f64> = found.values.iter().copied().map(f64::from).collect();
            let tensor = leaf(&values, &spec, kind);
            Ok((path, Parameter { tensor, role: spec.role }))
        });
        Ok(Self { by_path: by_path.collect::<Result<_, _>>()?, kind, device: Device::Cpu })
    }

    /// The same parameters on `device`; new ones are on the CPU.
    pub fn to_device(self, device: Device) -> Self {
        let moved = self.by_path.into_iter().map(|(path, it)| {
            let learnt = it.role != Role::Average;
            let tensor = it.tensor.detach().to_device(device).set_requires_grad(learnt);
            (path, Parameter { tensor, ..it })
        });
        Self { by_path: moved.collect(), device, ..self }
    }

    /// Element type of all parameters, and where they are.
    pub fn options(&self) -> (Kind, Device) {
        (self.kind, self.device)
    }

    /// The parameter at `path`.
    ///
    /// # Panics
    /// If the model has none there: paths come from the walk that made the parameters.
    pub fn at(&self, path: &Path) -> &Parameter {
        self.by_path.get(path).unwrap_or_else(|| panic!("no parameter at {path}"))
    }

    /// The token table, which is the head's too.
    pub fn embedding(&self) -> &Tensor {
        &self.at(&Path::root().child("embed_tokens").child("weight")).tensor
    }

    /// All parameters in the order of paths.
    pub fn iter(&self) -> impl Iterator<Item = (&Path, &Parameter)> {
        self.by_path.iter()
    }

    /// Those that gradients flow into.
    pub fn learnt(&self) -> impl Iterator<Item = (&Path, &Tensor)> {
        let learnt = self.iter().filter(|(_, it)| it.role != Role::Average);
        learnt.map(|(path, it)| (path, &it.tensor))
    }

    /// The values as a checkpoint holds them.
    pub fn values(&self) -> Tensors {
        self.iter().map(|(path, it)| (path.to_string(), values(&it.tensor))).collect()
    }
}

/// Shape and values of a tensor.
pub(crate) fn values(tensor: &Tensor) -> Values {
    let extent = |&it: &i64| usize::try_from(it).expect("extents are not negative");
    let shape = tensor.size().iter().map(extent).collect();
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float);
    let flat = flat.flatten(0, -1).contiguous();
    Values { shape, values: Vec::try_from(flat).expect("a flat tensor of f32 is a vector of f32") }
}

fn leaf(values: &[f64], spec: &ParameterSpec, kind: Kind) -> Tensor {
    let shape: Vec<i64> = spec.shape.iter().map(|&it| it as i64).collect();
    Tensor::from_slice(values)
        .to_kind(kind)
        .reshape(shape)
        .set_requires_grad(spec.role != Role::Average)
}

/// The first values of a parameter.
fn draw(spec: &ParameterSpec, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let elements = spec.shape.iter().product::<u64>();
    let mut draw = || match spec.init {
        Init::Zeros => 0.0,
        Init::Constant(value) => value,
        Init::Normal { std } => std * normal(rng),
        Init::RgLruCode { rho_min, rho_max } => {
            let squared = uniform(rng, rho_min.powi(2) + 1e-8, rho_max.powi(2) + 1e-8);
            (squared.sqrt().recip() - 1.0).ln()
        }
        Init::RgLruPaper { a_min, a_max } => {
            (uniform(rng, a_min, a_max).powf(0.125).recip() - 1.0).ln()
        }
    };
    (0..elements).map(|_| draw()).collect()
}

fn uniform(rng: &mut ChaCha8Rng, lo: f64, hi: f64) -> f64 {
    lo + (hi - lo) * rng.random::<f64>()
}

/// A standard normal, by Box and Muller's transform; one of each pair is thrown away.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (TAU * rng.random::<f64>()).cos()
}
