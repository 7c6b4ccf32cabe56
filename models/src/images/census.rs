//! The reading that only counts: parameters, and multiplications at some size of image.

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use crate::{
    backend::{ParameterSpec, Role},
    images::{
        activation::Activation,
        backend::{Conv, ImageBackend},
        config::{ImageConfig, Padding, Standardise},
        network,
    },
    path::Path,
};

/// Every parameter of `config`, by path; running averages are among them.
pub fn parameters(config: &ImageConfig) -> BTreeMap<Path, ParameterSpec> {
    walk(config, 32, 32).found.into_inner()
}

/// Numbers that `config` learns.
pub fn parameter_total(config: &ImageConfig) -> u64 {
    let specs = parameters(config);
    let learnt = specs.values().filter(|it| it.role != Role::Average);
    learnt.map(|it| it.shape.iter().product::<u64>()).sum()
}

/// Multiplications with weights, for one image of `height · width` pixels.
pub fn macs(config: &ImageConfig, height: u32, width: u32) -> u64 {
    walk(config, height, width).macs.get()
}

fn walk(config: &ImageConfig, height: u32, width: u32) -> Census {
    let census = Census::default();
    let extent = |it: u32| u64::from(it);
    network::logits(config, &census, &vec![1, 3, extent(height), extent(width)]);
    census
}

/// Notes parameters and multiplications; a tensor is its shape.
#[derive(Debug, Default)]
struct Census {
    found: RefCell<BTreeMap<Path, ParameterSpec>>,
    macs: Cell<u64>,
}

impl ImageBackend for Census {
    type Tensor = Vec<u64>;

    fn parameter(&self, path: &Path, spec: ParameterSpec) -> Vec<u64> {
        let shape = spec.shape.clone();
        self.found.borrow_mut().insert(path.clone(), spec);
        shape
    }

    fn standardise(
        &self,
        weight: &Vec<u64>,
        _gain: &Vec<u64>,
        _how: Standardise,
        _factor: f64,
    ) -> Vec<u64> {
        weight.clone()
    }

    fn conv2d(
        &self,
        x: &Vec<u64>,
        weight: &Vec<u64>,
        _bias: Option<&Vec<u64>>,
        conv: Conv,
    ) -> Vec<u64> {
        let pad = |extent: u64| match conv.padding {
            Padding::Same => extent.div_ceil(conv.stride.into()),
            Padding::Symmetric | Padding::Circular => (extent - 1) / u64::from(conv.stride) + 1,
        };
        let y = vec![x[0], weight[0], pad(x[2]), pad(x[3])];
        assert_eq!(x[1], weight[1] * u64::from(conv.groups), "channels of {x:?}, {weight:?}");
        let taps = weight[1] * weight[2] * weight[3];
        self.macs.set(self.macs.get() + y.iter().product::<u64>() * taps);
        y
    }

    fn mean_pool(&self, x: &Vec<u64>) -> Vec<u64> {
        vec![x[0], x[1], x[2].div_ceil(2), x[3].div_ceil(2)]
    }

    fn max_pool(&self, x: &Vec<u64>, _padding: Padding) -> Vec<u64> {
        self.mean_pool(x)
    }

    fn global_mean(&self, x: &Vec<u64>) -> Vec<u64> {
        vec![x[0], x[1], 1, 1]
    }

    fn activate(&self, x: &Vec<u64>, _activation: Activation) -> Vec<u64> {
        x.clone()
    }

    fn sigmoid(&self, x: &Vec<u64>) -> Vec<u64> {
        x.clone()
    }

    fn scale(&self, x: &Vec<u64>, _factor: f64) -> Vec<u64> {
        x.clone()
    }

    fn add(&self, a: &Vec<u64>, b: &Vec<u64>) -> Vec<u64> {
        assert_eq!(a, b, "both have one shape");
        a.clone()
    }

    fn gate(&self, x: &Vec<u64>, _gate: &Vec<u64>) -> Vec<u64> {
        x.clone()
    }

    fn conv_channels(&self, x: &Vec<u64>, weight: &Vec<u64>) -> Vec<u64> {
        self.macs.set(self.macs.get() + x[1] * weight[2]);
        x.clone()
    }

    fn classify(&self, x: &Vec<u64>, weight: &Vec<u64>, _bias: &Vec<u64>) -> Vec<u64> {
        self.macs.set(self.macs.get() + weight.iter().product::<u64>());
        vec![x[0], weight[0]]
    }

    fn batch_norm(&self, x: &Vec<u64>, _parameters: [&Vec<u64>; 4]) -> Vec<u64> {
        x.clone()
    }

    fn group_norm(&self, x: &Vec<u64>, _parameters: [&Vec<u64>; 2], _groups: u32) -> Vec<u64> {
        x.clone()
    }
}
