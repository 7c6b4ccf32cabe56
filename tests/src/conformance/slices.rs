//! The kernels on plain slices.

use aerie_ops::{
    Serial,
    causal_conv1d::{CausalConv1d, causal_conv1d},
    local_attention::{AttentionInputs, LocalAttention, Rings},
    rg_lru::{RgLru, RgLruInputs},
    segments::{RawSegments, SegmentsReader},
};

use super::{Implementation, Problem};
use crate::eager::Step;

#[derive(Debug)]
pub struct Slices {
    problem: Problem,
    reader: SegmentsReader,
    attention: Option<LocalAttention>,
}

impl Slices {
    pub fn new(problem: &Problem) -> Self {
        let attention = match problem {
            Problem::LocalAttention { dims } => Some(LocalAttention::new(*dims)),
            Problem::CausalConv1d { .. } | Problem::RgLru { .. } => None,
        };
        Self { problem: problem.clone(), reader: SegmentsReader::default(), attention }
    }
}

impl Implementation for Slices {
    fn name(&self) -> &'static str {
        "slices"
    }

    fn step(
        &mut self,
        step: &Step,
        inputs: &[Vec<f32>],
        states: &mut [Vec<f32>],
    ) -> Result<Vec<f32>, String> {
        let row: usize = self.problem.state_shapes()[0].1.iter().product();
        let (tokens, lanes) =
            (inputs[0].len() / self.problem.output_width(), states[0].len() / row);
        let raw = RawSegments { cuts: &step.cuts, lanes: &step.lanes, fresh: &step.fresh };
        let segments = self.reader.read(raw, tokens, lanes).map_err(|e| e.to_string())?;
        let mut y = vec![0.0; inputs[0].len()];
        match &self.problem {
            Problem::CausalConv1d { weight, bias, .. } => {
                let conv = CausalConv1d { weight, bias };
                causal_conv1d(&conv, &segments, &inputs[0], &mut states[0], &mut y, &Serial);
            }
            Problem::RgLru { p, .. } => {
                let inputs = RgLruInputs {
                    x: &inputs[0],
                    gate_a: &inputs[1],
                    gate_x: &inputs[2],
                    times: None,
                };
                RgLru::new(p).run(&segments, inputs, &mut states[0], &mut y, &Serial);
            }
            Problem::LocalAttention { .. } => {
                let positions = segments.positions(&step.positions).map_err(|e| e.to_string())?;
                let [keys, values] = states else { panic!("attention has two states") };
                let inputs = AttentionInputs { q: &inputs[0], k: &inputs[1], v: &inputs[2] };
                let attention = self.attention.as_mut().expect("made for this problem");
                attention.run(
                    &segments,
                    &positions,
                    inputs,
                    Rings { keys, values },
                    &mut y,
                    &Serial,
                );
            }
        }
        Ok(y)
    }
}
