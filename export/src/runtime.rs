//! ONNX Runtime, for the commands that run graphs: its library, and a step graph with the state of its
//! sessions. Which tokens are run, and what is made of the answers, is theirs.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    thread,
};

use aerie_models::{Carry, ModelConfig, TensorSpec};
use ort::{
    environment::Environment,
    session::{Session, SessionInputValue, SessionOutputs, builder::SessionBuilder},
    value::{DynValue, Tensor},
};
use prost::Message;
use thiserror::Error;

use crate::onnx::{Target, emitter::state_name, proto};

/// How graphs are run, as command lines ask for it.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// ONNX Runtime's library [default: $ORT_DYLIB_PATH, or the one that `make` fetched]
    #[arg(long, value_name = "FILE")]
    onnxruntime: Option<PathBuf>,
    /// Threads of a graph [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl Options {
    /// Loads the library.
    ///
    /// # Errors
    /// See [`Runtime::load`].
    pub(crate) fn load(&self) -> Result<Runtime, RuntimeError> {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads.map_or_else(cores, usize::from);
        Runtime::load(self.onnxruntime.as_deref(), threads)
    }
}

/// Why a graph does not run.
#[derive(Debug, Error)]
pub enum RuntimeError {
    #[error(
        "ONNX Runtime: {}: there is no such library; `make` fetches one, --onnxruntime names another",
        path.display()
    )]
    NoLibrary { path: PathBuf },
    #[error("ONNX Runtime: {0}")]
    Load(String),
    #[error("ONNX Runtime: {0}")]
    Ort(#[from] ort::Error),
    #[error("the graph has no output {name}")]
    NoOutput { name: String },
}

/// Where `make` puts ONNX Runtime, from the root of the repository.
const LIBRARY: &str = ".deps/onnxruntime/libonnxruntime.so";
/// Where the runtime looks for the external data of a graph that it gets from memory.
const DATA_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// The library, loaded.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    environment: Environment,
    /// Of each graph.
    threads: usize,
}

impl Runtime {
    /// Loads `library`, or the one that the environment or `make` has put in place.
    ///
    /// # Errors
    /// If there is none, or it cannot be loaded.
    pub(crate) fn load(library: Option<&Path>, threads: usize) -> Result<Self, RuntimeError> {
        let path = match library {
            Some(path) => path.to_owned(),
            None => env::var_os("ORT_DYLIB_PATH").map_or_else(|| LIBRARY.into(), PathBuf::from),
        };
        if !path.exists() {
            return Err(RuntimeError::NoLibrary { path });
        }
        let builder =
            ort::init_from(&path).map_err(|error| RuntimeError::Load(error.to_string()))?;
        Ok(Self { environment: builder.with_telemetry(false).build()?, threads })
    }

    /// Opens the step of `config` that lies in `file`.
    ///
    /// # Errors
    /// If the runtime refuses it.
    pub(crate) fn open(
        &self,
        file: &Path,
        config: &ModelConfig,
        target: Target,
    ) -> Result<StepGraph, RuntimeError> {
        let session = self.builder(target)?.commit_from_file(file)?;
        Ok(StepGraph::new(session, config, target))
    }

    /// Opens a ragged step of `config` whose external data lies in `dir`.
    ///
    /// # Errors
    /// If the runtime refuses it.
    pub(crate) fn open_edited(
        &self,
        model: &proto::Model,
        dir: &Path,
        config: &ModelConfig,
    ) -> Result<StepGraph, RuntimeError> {
        let target = Target::Ragged;
        let builder = self.builder(target)?;
        let mut builder =
            builder.with_config_entry(DATA_FOLDER, dir.to_string_lossy()).map_err(plain)?;
        let session = builder.commit_from_memory(&model.encode_to_vec())?;
        Ok(StepGraph::new(session, config, target))
    }

    fn builder(&self, target: Target) -> Result<SessionBuilder, RuntimeError> {
        let builder = Session::builder(&self.environment)?;
        let builder = builder.with_intra_threads(self.threads).map_err(plain)?;
        // Graphs of several bundles take turns: those that wait are not to hold the cores.
        let builder = builder.with_intra_op_spinning(false).map_err(plain)?;
        match target {
            Target::Ragged => {
                Ok(builder.with_operators(aerie_ops::ort::domain()?).map_err(plain)?)
            }
            Target::Portable => Ok(builder),
        }
    }
}

/// The error without the builder that it brings back.
fn plain<T>(error: ort::Error<T>) -> ort::Error {
    ort::Error::new(error.to_string())
}

/// A graph with the state of its sessions.
#[derive(Debug)]
pub(crate) struct StepGraph {
    session: Session,
    target: Target,
    layout: Vec<TensorSpec>,
    /// By the name of the input; none before the first [`StepGraph::reset`].
    state: BTreeMap<String, DynValue>,
}

/// The next tokens of one session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) lane: u32,
    /// Tokens of the session before these; at 0 it begins.
    pub(crate) position: usize,
    pub(crate) tokens: &'a [u32],
}

/// What a step gives besides the state.
#[derive(Debug)]
pub(crate) struct Outputs<'s>(SessionOutputs<'s>);

impl StepGraph {
    fn new(session: Session, config: &ModelConfig, target: Target) -> Self {
        let layout = Carry::layout(config).fields().cloned().collect();
        Self { session, target, layout, state: BTreeMap::new() }
    }

    pub(crate) fn is_ragged(&self) -> bool {
        self.target == Target::Ragged
    }

    /// Voids all sessions: `lanes` rows of what no computation may let through.
    pub(crate) fn reset(&mut self, lanes: usize) -> Result<(), RuntimeError> {
        for spec in &self.layout {
            let row = usize::try_from(spec.elements()).expect("a row is in memory");
            let shape: Vec<usize> = [lanes as u64]
                .iter()
                .chain(&spec.shape)
                .map(|&extent| usize::try_from(extent).expect("a row is in memory"))
                .collect();
            let void = Tensor::from_array((shape, vec![f32::NAN; lanes * row]))?;
            self.state.insert(state_name(spec), void.into_dyn());
        }
        Ok(())
    }

    /// Advances the sessions that `segments` names.
    pub(crate) fn step(&mut self, segments: &[Segment<'_>]) -> Result<Outputs<'_>, RuntimeError> {
        let tokens: Vec<i64> =
            segments.iter().flat_map(|it| it.tokens).copied().map(i64::from).collect();
        let positions: Vec<i64> = segments.iter().map(|it| it.position as i64).collect();
        let fresh: Vec<bool> = segments.iter().map(|it| it.position == 0).collect();
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = vec![
            ("tokens".into(), Tensor::from_array(([tokens.len()], tokens))?.into()),
            ("positions".into(), Tensor::from_array(([positions.len()], positions))?.into()),
            ("fresh".into(), Tensor::from_array(([fresh.len()], fresh))?.into()),
        ];
        if self.target == Target::Ragged {
            let mut bounds = vec![0i32];
            for segment in segments {
                let tokens = i32::try_from(segment.tokens.len()).expect("tokens fit a step");
                bounds.push(bounds.last().copied().unwrap_or_default() + tokens);
            }
            let lanes: Vec<i32> = segments.iter().map(|it| it.lane.cast_signed()).collect();
            inputs.push(("segments".into(), Tensor::from_array(([bounds.len()], bounds))?.into()));
            inputs.push(("lanes".into(), Tensor::from_array(([lanes.len()], lanes))?.into()));
        }
        for (name, value) in std::mem::take(&mut self.state) {
            inputs.push((name.into(), value.into()));
        }

        let mut outputs = self.session.run(inputs)?;
        for spec in &self.layout {
            let name = state_name(spec);
            let next = format!("{name}.next");
            let value = outputs.remove(&next).ok_or(RuntimeError::NoOutput { name: next })?;
            self.state.insert(name, value);
        }
        Ok(Outputs(outputs))
    }
}

impl Outputs<'_> {
    /// The elements of the output called `name`.
    pub(crate) fn floats(&self, name: &str) -> Result<&[f32], RuntimeError> {
        let no_output = || RuntimeError::NoOutput { name: name.to_owned() };
        let (_, elements) = self.0.get(name).ok_or_else(no_output)?.try_extract_tensor::<f32>()?;
        Ok(elements)
    }
}

/// The library with one thread for all tests, since a process may have one environment only; where
/// there is none, this says so.
#[cfg(test)]
pub(crate) fn shared() -> Option<&'static Runtime> {
    use std::sync::OnceLock;

    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| match Runtime::load(None, 1) {
        Ok(runtime) => Some(runtime),
        Err(RuntimeError::NoLibrary { .. }) => None,
        Err(error) => panic!("{error}"),
    });
    if runtime.is_none() {
        eprintln!("skipped: there is no ONNX Runtime; `make` fetches it");
    }
    runtime.as_ref()
}
