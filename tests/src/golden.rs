//! Small models and what Google's own code answers for them: the files of `tests/goldens`, which
//! `make.py` there writes and describes. Weights are read as `aerie-export import` reads them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aerie_export::{
    emit::{self, Options, Source},
    import::{Given, Request, import},
    onnx::Target,
};
use aerie_models::{BlockCarry, Carry, Manifest, ModelConfig, ParameterSpec, Precision, census};
use safetensors::SafeTensors;

use crate::{eager::Step, random::Random};

/// All of them.
pub const NAMES: [&str; 6] = ["narrow", "odd", "deep", "single", "five", "hawk"];

/// What f32 may do to logits of order 1. Two orders of summation in Google's own code, PyTorch beside
/// JAX or one pass beside decoding, are up to 5.5e-6 apart on these models.
pub const TOLERANCE: f64 = 1e-5;

/// A session's state by the fields of the carry.
pub type State = Carry<Vec<f32>>;

/// A model with its answers.
#[derive(Debug)]
pub struct Golden {
    pub name: &'static str,
    pub tokens: Vec<i64>,
    /// Logits of every token, by one pass over all.
    pub full: Vec<Vec<f32>>,
    /// The same by decoding.
    pub decode: Vec<Vec<f32>>,
    source: Source,
    /// State after the last token, by the names in the file.
    state: BTreeMap<String, Vec<f32>>,
}

impl Golden {
    /// Reads and imports the model called `name`.
    ///
    /// # Panics
    /// If it is not there or not as `make.py` writes it.
    pub fn open(name: &'static str) -> Self {
        let path = folder().join(format!("{name}.answers.safetensors"));
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("safetensors");
        let metadata = header.metadata().as_ref().expect("make.py writes metadata");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");

        let source = source(name, &metadata["given"]);
        let vocab = source.config.vocab as usize;
        let logits = |field| floats(&file, field).chunks(vocab).map(<[f32]>::to_vec).collect();
        let (full, decode) = (logits("full"), logits("decode"));
        let tokens = file.tensor("tokens").expect("tokens").data().chunks_exact(8);
        let tokens = tokens.map(|it| i64::from_le_bytes(it.try_into().expect("eight bytes")));
        let is_state = |field: &&str| field.contains('.');
        let state = file.names().into_iter().filter(is_state);
        let state = state.map(|field| (field.to_owned(), floats(&file, field))).collect();
        Self { name, tokens: tokens.collect(), full, decode, source, state }
    }

    pub fn config(&self) -> &ModelConfig {
        &self.source.config
    }

    /// The parameters by their places in the walk.
    pub fn parameters(&self) -> BTreeMap<String, Vec<f32>> {
        let load = |(path, spec): (aerie_models::Path, ParameterSpec)| {
            let values = self.source.weights.load(path.as_str(), &spec);
            (path.to_string(), values.unwrap_or_else(|e| panic!("{e}")))
        };
        census::parameters(self.config()).into_iter().map(load).collect()
    }

    /// Writes the model as a bundle into `folder`, which does not exist yet.
    pub fn emit(&self, target: Target, precision: Precision, folder: &Path) -> Manifest {
        let name = self.name.to_owned();
        let options = Options { name, target, precision, force: false };
        emit::emit(&self.source, &options, folder).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Largest difference between `logits` and Google's at `position`, of both their ways.
    pub fn distance(&self, position: usize, logits: &[f32]) -> f64 {
        let far = |expected: &[Vec<f32>]| distance(logits, &expected[position]);
        far(&self.full).max(far(&self.decode))
    }

    /// Largest difference between a state after the last token and Google's.
    ///
    /// Their ring has `W` rows and ours one more, so that they have forgotten the oldest key.
    pub fn state_distance(&self, state: &State) -> f64 {
        let mut worst = 0.0f64;
        for (layer, block) in state.blocks.iter().enumerate() {
            let mut compare = |field: &str, found: &[f32]| {
                worst = worst.max(distance(found, &self.state[&format!("{field}.{layer}")]));
            };
            match block {
                BlockCarry::Recurrent { conv, rg_lru } => {
                    compare("conv", conv);
                    compare("rg_lru", rg_lru);
                }
                BlockCarry::Attention { keys, values } => {
                    compare("keys", &self.by_position(keys));
                    compare("values", &self.by_position(values));
                }
            }
        }
        worst
    }

    /// The rows of a ring that belong to the last `W` tokens, oldest first.
    fn by_position(&self, ring: &[f32]) -> Vec<f32> {
        let (window, dim) = (self.config().window as usize, self.config().head_dim as usize);
        let last = self.tokens.len() - window..self.tokens.len();
        last.flat_map(|position| &ring[position % (window + 1) * dim..][..dim]).copied().collect()
    }

    /// Tokens of a session that is somebody else's.
    pub fn other_tokens(&self, seed: u64) -> Vec<i64> {
        let mut random = Random::new(seed);
        let mut token = || random.below(self.config().vocab as usize);
        (0..self.tokens.len()).map(|_| i64::try_from(token()).expect("ids are small")).collect()
    }

    /// A step over `tokens` from `position` on, and those tokens.
    pub fn chunk(&self, lane: usize, position: usize, end: usize) -> (Step, &[i64]) {
        (Step::one(end - position, lane, position), &self.tokens[position..end])
    }
}

/// Largest difference; infinite if it is no number.
///
/// # Panics
/// If there are more of one than of the other.
pub fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "one expectation for each");
    let off = |(&a, &b): (&f32, &f32)| {
        let off = (f64::from(a) - f64::from(b)).abs();
        if off.is_nan() { f64::INFINITY } else { off }
    };
    found.iter().zip(expected).map(off).fold(0.0, f64::max)
}

/// The model as the importer gives it, told what no shape tells: `window=3 soft_cap=0.0 …`.
fn source(name: &str, given: &str) -> Source {
    let said = given.split(' ').map(|it| it.split_once('=').expect("a field and its value"));
    let said: BTreeMap<&str, &str> = said.collect();
    let number = |field: &str| said[field].parse::<f32>().expect("a number");
    let extent = |field: &str| said[field].parse::<u32>().expect("an extent");
    let cap = number("soft_cap");
    let given = Given {
        heads: Some(extent("heads")),
        window: extent("window"),
        scale_embedding: said["embedding_scale"] == "true",
        logits_soft_cap: (cap != 0.0).then_some(cap),
    };
    let from = folder().join(format!("{name}.safetensors"));
    let request = Request { from: &from, tokenizer: None, given: Some(given), data: None };
    import(&request).unwrap_or_else(|e| panic!("{e}")).source
}

fn floats(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let bytes = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}")).data();
    bytes.chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().expect("four bytes"))).collect()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens")
}
