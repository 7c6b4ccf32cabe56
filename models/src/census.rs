//! The reading that only counts: walks a model and notes its parameters.

use std::{cell::RefCell, collections::BTreeMap};

use crate::{
    backend::{AttentionDims, Backend, ParameterSpec},
    carry::Carry,
    config::ModelConfig,
    decoder,
    path::Path,
};

/// Every parameter of `config`, by path.
pub fn parameters(config: &ModelConfig) -> BTreeMap<Path, ParameterSpec> {
    let census = Census::default();
    decoder::step(config, &census, &(), &Carry::layout(config).map(|_| ()));
    census.found.into_inner()
}

/// Parameters of `config`, the tied embedding counted once.
pub fn parameter_total(config: &ModelConfig) -> u64 {
    parameters(config).values().map(|spec| spec.shape.iter().product::<u64>()).sum()
}

#[derive(Debug, Default)]
struct Census {
    found: RefCell<BTreeMap<Path, ParameterSpec>>,
}

impl Backend for Census {
    type Tensor = ();

    fn parameter(&self, path: &Path, spec: ParameterSpec) {
        // The head reads the embedding's table again: one parameter, met twice.
        self.found.borrow_mut().insert(path.clone(), spec);
    }

    fn gather(&self, _table: &(), _tokens: &()) {}
    fn linear(&self, _x: &(), _weight: &(), _bias: Option<&()>) {}
    fn block_diagonal(&self, _x: &(), _weight: &(), _bias: &()) {}
    fn add(&self, _a: &(), _b: &()) {}
    fn mul(&self, _a: &(), _b: &()) {}
    fn scale(&self, _x: &(), _factor: f32) {}
    fn gelu(&self, _x: &()) {}
    fn tanh(&self, _x: &()) {}
    fn rms_norm(&self, _x: &(), _weight: &(), _epsilon: f32) {}
    fn last_rows(&self, _x: &()) {}

    fn causal_conv1d(&self, _x: &(), _weight: &(), _bias: &(), _state: &()) -> ((), ()) {
        ((), ())
    }

    fn rg_lru(&self, _x: &(), _a: &(), _i: &(), _p: &(), _state: &()) -> ((), ()) {
        ((), ())
    }

    fn local_attention(
        &self,
        _dims: AttentionDims,
        _qkv: [&(); 3],
        _keys: &(),
        _values: &(),
    ) -> ((), [(); 2]) {
        ((), [(), ()])
    }
}
