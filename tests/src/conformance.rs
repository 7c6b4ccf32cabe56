//! Problems that every implementation of an operator has to solve, and the implementations: the
//! kernels on slices, the operators through ONNX Runtime, and a naive reference in f64.

pub mod model;
pub mod problem;
pub mod reference;
pub mod runtime;
pub mod slices;

pub use problem::{Problem, Session};

use crate::eager::Step;

/// Something that advances the state of lanes by ragged steps.
pub trait Implementation {
    fn name(&self) -> &'static str;

    /// Runs one step of the problem that this was made for: `inputs` are packed rows, `states` hold
    /// all lanes and are advanced in place. Returns the packed rows of `y`, or why the step is
    /// refused.
    fn step(
        &mut self,
        step: &Step,
        inputs: &[Vec<f32>],
        states: &mut [Vec<f32>],
    ) -> Result<Vec<f32>, String>;
}

/// Every stepping implementation of `problem`.
pub fn implementations(problem: &Problem) -> Vec<Box<dyn Implementation>> {
    vec![
        Box::new(slices::Slices::new(problem)),
        Box::new(runtime::Runtime::new(problem, 1)),
        Box::new(runtime::Runtime::new(problem, 2)),
    ]
}
