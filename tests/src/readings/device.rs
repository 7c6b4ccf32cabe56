//! The ragged graph as the server runs it: on its own device, every lane bound in place.

use std::{ops::Range, sync::Arc};

use aerie_export::onnx::Target;
use aerie_models::{Carry, Precision};
use aerie_serve::{
    device::{Batch, Device as _, DeviceSpec, Lane, files::BundleFiles, ort as device},
    scheduler::Config,
};
use tempfile::TempDir;

use super::{LANES, Reading};
use crate::{
    conformance::runtime,
    eager::Step,
    golden::{Golden, State},
};

/// Every prefix of a golden model's tokens fits into one step.
const STEP_TOKENS_MAX: u32 = 512;

#[derive(Debug)]
pub(super) struct Server {
    device: device::OrtDevice,
    ranges: Carry<Range<u64>>,
    /// The bundle that the device may still read from.
    _folder: TempDir,
}

impl Server {
    pub(super) fn new(golden: &Golden, precision: Precision) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let bundle = folder.path().join(golden.name);
        let manifest = golden.emit(Target::Ragged, precision, &bundle);
        let lanes_max = u32::try_from(LANES).expect("a few lanes");
        let config = Config { lanes_max, step_tokens_max: STEP_TOKENS_MAX };
        let runtime = device::Runtime::from(runtime::environment().clone());
        let spec = DeviceSpec { cores: Some((0, 0)) };
        let files = BundleFiles::open(&bundle, &manifest).unwrap_or_else(|e| panic!("{e}"));
        let files = Arc::new(files);
        let device = device::OrtDevice::load(&runtime, &files, &manifest, &spec, config);
        let device = device.unwrap_or_else(|e| panic!("{e}"));
        Self { device, ranges: manifest.layout().byte_ranges(), _folder: folder }
    }

    fn record(&self) -> Vec<u8> {
        vec![0; usize::try_from(self.device.dims().state_bytes).expect("a small state")]
    }
}

impl Reading for Server {
    fn name(&self) -> &'static str {
        "the server's device"
    }

    fn is_invariant(&self) -> bool {
        true
    }

    fn step(&mut self, step: &Step, tokens: &[i64]) -> Vec<Vec<f32>> {
        let batch = Batch {
            tokens: tokens.to_vec(),
            segments: step.cuts.clone(),
            lanes: step.lanes.clone(),
            positions: step.positions.clone(),
            fresh: step.fresh.clone(),
        };
        let vocab = self.device.dims().vocab as usize;
        let logits = self.device.step(&batch).unwrap_or_else(|e| panic!("{e}"));
        logits.chunks(vocab).map(<[f32]>::to_vec).collect()
    }

    fn state(&self, lane: usize) -> State {
        let mut record = self.record();
        self.device.read_lane(named(lane), &mut record);
        self.ranges.map(|range| {
            let bytes = &record[index(range.start)..index(range.end)];
            let float = |it: &[u8]| f32::from_le_bytes(it.try_into().expect("four bytes"));
            bytes.chunks_exact(4).map(float).collect()
        })
    }

    fn set_state(&mut self, lane: usize, state: &State) {
        let mut record = self.record();
        for (range, values) in self.ranges.fields().zip(state.fields()) {
            let bytes: Vec<u8> = values.iter().flat_map(|it| it.to_le_bytes()).collect();
            record[index(range.start)..index(range.end)].copy_from_slice(&bytes);
        }
        self.device.write_lane(named(lane), &record);
    }
}

fn named(lane: usize) -> Lane {
    Lane(u32::try_from(lane).expect("a few lanes"))
}

fn index(byte: u64) -> usize {
    usize::try_from(byte).expect("a small state")
}
