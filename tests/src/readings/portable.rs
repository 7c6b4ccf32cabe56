//! The graph of standard operators on ONNX Runtime: one token of each session per run, states in and
//! out by value.

use aerie_export::onnx::{Target, emitter::state_name};
use aerie_models::{Carry, Precision, TensorSpec, bundle::MODEL_FILE};
use ort::{
    session::{Session, SessionInputValue},
    value::Tensor,
};

use super::{LANES, Reading};
use crate::{
    conformance::runtime,
    eager::Step,
    golden::{Golden, State},
};

#[derive(Debug)]
pub(super) struct Portable {
    session: Session,
    layout: Carry<TensorSpec>,
    lanes: Vec<State>,
}

/// A session's next token.
struct Row {
    lane: usize,
    token: i64,
    position: i64,
    fresh: bool,
}

impl Portable {
    pub(super) fn new(golden: &Golden) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let bundle = folder.path().join(golden.name);
        golden.emit(Target::Portable, Precision::F32, &bundle);
        let open = || -> ort::Result<Session> {
            Session::builder(runtime::environment())?
                .with_intra_threads(1)?
                .commit_from_file(bundle.join(MODEL_FILE))
        };
        let session = open().unwrap_or_else(|e| panic!("{e}"));
        let layout = Carry::layout(golden.config());
        let lanes = vec![layout.map(|_| Vec::new()); LANES];
        Self { session, layout, lanes }
    }

    /// Advances each row by its token; returns their logits.
    fn run(&mut self, rows: &[Row]) -> ort::Result<Vec<Vec<f32>>> {
        let n = rows.len();
        let tokens: Vec<i64> = rows.iter().map(|it| it.token).collect();
        let positions: Vec<i64> = rows.iter().map(|it| it.position).collect();
        let fresh: Vec<bool> = rows.iter().map(|it| it.fresh).collect();
        let mut inputs: Vec<(String, SessionInputValue<'_>)> = vec![
            ("tokens".to_owned(), Tensor::from_array(([n], tokens))?.into()),
            ("positions".to_owned(), Tensor::from_array(([n], positions))?.into()),
            ("fresh".to_owned(), Tensor::from_array(([n], fresh))?.into()),
        ];
        for (idx, spec) in self.layout.fields().enumerate() {
            let field =
                |row: &Row| self.lanes[row.lane].fields().nth(idx).expect("a field").clone();
            let extents = [n as u64].into_iter().chain(spec.shape.iter().copied());
            let shape: Vec<usize> = extents.map(|it| usize::try_from(it).expect("small")).collect();
            let data: Vec<f32> = rows.iter().flat_map(field).collect();
            inputs.push((state_name(spec), Tensor::from_array((shape, data))?.into()));
        }
        let outputs = self.session.run(inputs)?;
        let split = |name: &str| -> ort::Result<Vec<Vec<f32>>> {
            let data = outputs[name].try_extract_tensor::<f32>()?.1;
            Ok(data.chunks(data.len() / n).map(<[f32]>::to_vec).collect())
        };
        let next = self.layout.map(|spec| split(&format!("{}.next", state_name(spec))));
        for (at, row) in rows.iter().enumerate() {
            self.lanes[row.lane] = next.map(|field| field.as_ref().expect("a state")[at].clone());
        }
        split("logits")
    }
}

impl Reading for Portable {
    fn name(&self) -> &'static str {
        "the portable graph"
    }

    /// Its products may take another way for another number of rows.
    fn is_invariant(&self) -> bool {
        false
    }

    fn step(&mut self, step: &Step, tokens: &[i64]) -> Vec<Vec<f32>> {
        let cut = |at: usize| usize::try_from(step.cuts[at]).expect("cuts are not negative");
        let mut logits = vec![Vec::new(); step.lanes.len()];
        for t in 0.. {
            let named: Vec<usize> =
                (0..logits.len()).filter(|&segment| cut(segment) + t < cut(segment + 1)).collect();
            if named.is_empty() {
                break;
            }
            let row = |&segment: &usize| Row {
                lane: usize::try_from(step.lanes[segment]).expect("lanes are not negative"),
                token: tokens[cut(segment) + t],
                position: step.positions[segment] + i64::try_from(t).expect("few tokens"),
                fresh: step.fresh[segment] && t == 0,
            };
            let rows: Vec<Row> = named.iter().map(row).collect();
            let found = self.run(&rows).unwrap_or_else(|e| panic!("{e}"));
            for (segment, found) in named.into_iter().zip(found) {
                logits[segment] = found;
            }
        }
        logits
    }

    fn state(&self, lane: usize) -> State {
        self.lanes[lane].clone()
    }

    fn set_state(&mut self, lane: usize, state: &State) {
        self.lanes[lane] = state.clone();
    }
}
