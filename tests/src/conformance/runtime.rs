//! The operators as ONNX Runtime runs them.

use std::{fmt, sync::OnceLock};

use ort::{
    environment::Environment,
    memory::Allocator,
    session::{Session, SessionInputValue},
    value::Tensor,
};

use super::{Implementation, Problem, model};
use crate::eager::Step;

/// A session of one node. Every other step binds state as input and output of one buffer; the steps
/// between leave the outputs to the runtime, so that the operator copies.
pub struct Runtime {
    problem: Problem,
    session: Session,
    threads: usize,
    in_place: bool,
}

/// ONNX Runtime, loaded: a process may have one environment only.
///
/// # Panics
/// If it is not where `ORT_DYLIB_PATH` says.
pub fn environment() -> &'static Environment {
    static ENVIRONMENT: OnceLock<Environment> = OnceLock::new();
    ENVIRONMENT
        .get_or_init(|| ort::init().with_telemetry(false).build().unwrap_or_else(|e| panic!("{e}")))
}

impl Runtime {
    /// # Panics
    /// If ONNX Runtime is not where `ORT_DYLIB_PATH` says or refuses the operator.
    pub fn new(problem: &Problem, threads: usize) -> Self {
        let bytes = model::one_node(problem.schema(), &problem.attributes());
        let session = Self::open(&bytes, threads).unwrap_or_else(|e| panic!("{e}"));
        Self { problem: problem.clone(), session, threads, in_place: false }
    }

    fn open(model: &[u8], threads: usize) -> ort::Result<Session> {
        Session::builder(environment())?
            .with_intra_threads(threads)?
            .with_operators(aerie_ops::ort::domain()?)?
            .commit_from_memory(model)
    }

    /// Everything but the states, by name.
    fn feeds(
        &self,
        step: &Step,
        inputs: &[Vec<f32>],
    ) -> ort::Result<Vec<(&'static str, SessionInputValue<'static>)>> {
        let mut feeds = Vec::new();
        for ((name, width), rows) in self.problem.input_widths().into_iter().zip(inputs) {
            feeds.push((name, f32s(&[rows.len() / width, width], rows)?.into()));
        }
        for (name, shape, data) in self.problem.parameters() {
            feeds.push((name, f32s(&shape, data)?.into()));
        }
        let Step { cuts, lanes, positions, fresh } = step;
        feeds.push(("segments", Tensor::from_array(([cuts.len()], cuts.clone()))?.into()));
        feeds.push(("lanes", Tensor::from_array(([lanes.len()], lanes.clone()))?.into()));
        feeds.push(("fresh", Tensor::from_array(([fresh.len()], fresh.clone()))?.into()));
        if matches!(self.problem, Problem::LocalAttention { .. }) {
            let positions = Tensor::from_array(([positions.len()], positions.clone()))?;
            feeds.push(("positions", positions.into()));
        }
        Ok(feeds)
    }

    /// The states as tensors of the runtime's own memory.
    fn states(&self, states: &[Vec<f32>]) -> ort::Result<Vec<(&'static str, Tensor<f32>)>> {
        let shapes = self.problem.state_shapes();
        let tensor = |((name, shape), data): ((&'static str, Vec<usize>), &Vec<f32>)| {
            let lanes = data.len() / shape.iter().product::<usize>();
            let shape: Vec<usize> = [lanes].into_iter().chain(shape).collect();
            Ok((name, f32s(&shape, data)?))
        };
        shapes.into_iter().zip(states).map(tensor).collect()
    }

    fn step_copied(
        &mut self,
        step: &Step,
        inputs: &[Vec<f32>],
        states: &mut [Vec<f32>],
    ) -> ort::Result<Vec<f32>> {
        let mut feeds = self.feeds(step, inputs)?;
        for (name, tensor) in self.states(states)? {
            feeds.push((name, tensor.into()));
        }
        let outputs = self.session.run(feeds)?;
        for ((name, _), state) in self.problem.state_shapes().into_iter().zip(states) {
            let next = outputs[format!("{name}_next")].try_extract_tensor::<f32>()?.1;
            state.copy_from_slice(next);
        }
        Ok(outputs["y"].try_extract_tensor::<f32>()?.1.to_vec())
    }

    fn step_in_place(
        &mut self,
        step: &Step,
        inputs: &[Vec<f32>],
        states: &mut [Vec<f32>],
    ) -> ort::Result<Vec<f32>> {
        let feeds = self.feeds(step, inputs)?;
        let mut tensors = self.states(states)?;
        let mut binding = self.session.create_binding()?;
        for (name, value) in &feeds {
            binding.bind_input(*name, &**value)?;
        }
        for (name, tensor) in &mut tensors {
            binding.bind_input(*name, tensor)?;
            binding.bind_output(format!("{name}_next"), tensor)?;
        }
        binding.bind_output_to_device("y", &ort::memory::MemoryInfo::default())?;
        let outputs = self.session.run_binding(&binding)?;
        let y = outputs["y"].try_extract_tensor::<f32>()?.1.to_vec();
        drop(outputs);
        for ((_, tensor), state) in tensors.iter().zip(states) {
            state.copy_from_slice(tensor.extract_tensor().1);
        }
        Ok(y)
    }
}

impl Implementation for Runtime {
    fn name(&self) -> &'static str {
        if self.threads == 1 { "runtime" } else { "runtime with threads" }
    }

    fn step(
        &mut self,
        step: &Step,
        inputs: &[Vec<f32>],
        states: &mut [Vec<f32>],
    ) -> Result<Vec<f32>, String> {
        self.in_place = !self.in_place;
        let outcome = if self.in_place {
            self.step_in_place(step, inputs, states)
        } else {
            self.step_copied(step, inputs, states)
        };
        outcome.map_err(|e| e.to_string())
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("threads", &self.threads).finish_non_exhaustive()
    }
}

fn f32s(shape: &[usize], data: &[f32]) -> ort::Result<Tensor<f32>> {
    let mut tensor = Tensor::<f32>::new(&Allocator::default(), shape.to_vec())?;
    tensor.extract_tensor_mut().1.copy_from_slice(data);
    Ok(tensor)
}
