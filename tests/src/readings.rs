//! Readings of a golden model that keep the states of sessions, behind one trait: what serves is held
//! to the same answers as what it is made of.

mod device;
mod portable;

use std::fmt;

use aerie_models::{Carry, Precision};

use crate::{
    eager::{self, Arena, Model, Step},
    golden::{Golden, State},
};

/// Sessions that a reading has room for: more than a golden model has tokens.
pub const LANES: usize = 32;

/// Something that advances sessions by ragged steps.
pub trait Reading: fmt::Debug {
    fn name(&self) -> &'static str;

    /// Whether a session's numbers are the same to the bit however it is cut and in any company.
    fn is_invariant(&self) -> bool;

    /// Advances the segments of `step`; returns the logits of each one's last token.
    ///
    /// # Panics
    /// If the step is refused.
    fn step(&mut self, step: &Step, tokens: &[i64]) -> Vec<Vec<f32>>;

    /// What a session has in `lane`.
    fn state(&self, lane: usize) -> State;

    /// Puts a session into `lane`.
    fn set_state(&mut self, lane: usize, state: &State);
}

/// Every reading of `golden`, all lanes full of what must not come through.
pub fn all(golden: &Golden) -> Vec<Box<dyn Reading>> {
    let mut all: Vec<Box<dyn Reading>> = vec![
        Box::new(Eager::new(golden)),
        Box::new(device::Server::new(golden, Precision::F32)),
        Box::new(portable::Portable::new(golden)),
    ];
    all.iter_mut().for_each(|it| fill(it.as_mut(), golden));
    all
}

/// The server's device with the weights of `golden` rounded, all lanes full of what must not come through.
pub fn rounded(golden: &Golden, precision: Precision) -> Box<dyn Reading> {
    let mut reading = Box::new(device::Server::new(golden, precision));
    fill(reading.as_mut(), golden);
    reading
}

fn fill(reading: &mut dyn Reading, golden: &Golden) {
    let layout = Carry::layout(golden.config());
    let void = layout.map(|spec| vec![f32::NAN; usize::try_from(spec.elements()).expect("small")]);
    (0..LANES).for_each(|lane| reading.set_state(lane, &void));
}

/// The kernels on plain buffers.
#[derive(Debug)]
struct Eager {
    model: Model,
    arena: Arena,
}

impl Eager {
    fn new(golden: &Golden) -> Self {
        let model = Model::with_parameters(golden.config().clone(), golden.parameters());
        let arena = model.arena(LANES);
        Self { model, arena }
    }
}

impl Reading for Eager {
    fn name(&self) -> &'static str {
        "eager"
    }

    fn is_invariant(&self) -> bool {
        true
    }

    fn step(&mut self, step: &Step, tokens: &[i64]) -> Vec<Vec<f32>> {
        let logits = self.model.step(step, tokens, &mut self.arena);
        logits.chunks(self.model.config().vocab as usize).map(<[f32]>::to_vec).collect()
    }

    fn state(&self, lane: usize) -> State {
        eager::lane(&self.arena, lane)
    }

    fn set_state(&mut self, lane: usize, state: &State) {
        eager::set_lane(&mut self.arena, lane, state);
    }
}
