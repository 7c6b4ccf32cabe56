//! ONNX Runtime, for the commands that run graphs: its library, and a step graph with the state of its
//! sessions. Which tokens are run, and what is made of the answers, is theirs.

#[cfg(feature = "torch")]
pub(crate) mod classifier;

use std::{
    env,
    path::{Path, PathBuf},
    thread,
};

use aerie_models::{Carry, ModelConfig, TensorSpec};
use ort::{
    environment::Environment,
    memory::{Allocator, MemoryInfo},
    session::{IoBinding, Session, SessionOutputs, builder::SessionBuilder},
    value::Tensor,
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
        Runtime::load(self.onnxruntime.as_deref(), self.threads())
    }

    pub(crate) fn threads(&self) -> usize {
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        self.threads.map_or_else(cores, usize::from)
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
        StepGraph::new(self.builder(target)?.commit_from_file(file)?, layout(config), target)
    }

    /// Opens the step in `file` whose state is `layout`, and has its runs traced into a file whose path
    /// begins with `trace`; [`StepGraph::end_trace`] tells which.
    ///
    /// # Errors
    /// If the runtime refuses it.
    pub(crate) fn open_traced(
        &self,
        file: &Path,
        layout: Vec<TensorSpec>,
        target: Target,
        trace: &Path,
    ) -> Result<StepGraph, RuntimeError> {
        let mut builder = self.builder(target)?.with_profiling(trace).map_err(plain)?;
        StepGraph::new(builder.commit_from_file(file)?, layout, target)
    }

    /// Opens a ragged graph in `file` that is no model and has no state.
    ///
    /// # Errors
    /// If the runtime refuses it.
    pub(crate) fn open_stateless(&self, file: &Path) -> Result<StepGraph, RuntimeError> {
        let target = Target::Ragged;
        StepGraph::new(self.builder(target)?.commit_from_file(file)?, Vec::new(), target)
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
        StepGraph::new(builder.commit_from_memory(&model.encode_to_vec())?, layout(config), target)
    }

    fn builder(&self, target: Target) -> Result<SessionBuilder, RuntimeError> {
        let builder = Session::builder(&self.environment)?;
        let builder = builder.with_intra_threads(self.threads).map_err(plain)?;
        // As the server has it: threads spin for each other within a step, and not between steps, so
        // that graphs that wait for their turn do not hold the cores.
        let builder = builder.with_intra_op_spinning(true).map_err(plain)?;
        let builder =
            builder.with_config_entry("session.force_spinning_stop", "1").map_err(plain)?;
        match target {
            Target::Ragged => {
                Ok(builder.with_operators(aerie_ops::ort::domain()?).map_err(plain)?)
            }
            Target::Portable => Ok(builder),
        }
    }
}

/// The state of one session of `config`.
pub(crate) fn layout(config: &ModelConfig) -> Vec<TensorSpec> {
    Carry::layout(config).fields().cloned().collect()
}

/// The error without the builder that it brings back.
fn plain<T>(error: ort::Error<T>) -> ort::Error {
    ort::Error::new(error.to_string())
}

/// A graph with the state of its sessions.
///
/// With our operators the state is bound as input and output of one buffer, as the server does; a
/// portable graph is given two that change places.
#[derive(Debug)]
pub(crate) struct StepGraph {
    binding: IoBinding,
    session: Session,
    target: Target,
    layout: Vec<TensorSpec>,
    /// Outputs that are no state.
    answers: Vec<String>,
    /// In the order of the layout; none before the first [`StepGraph::reset`].
    states: Vec<State>,
    /// Whether a step has run since the states were bound.
    has_run: bool,
    /// Since the graph was opened.
    runs: usize,
}

/// One tensor of the state, for all lanes.
#[derive(Debug)]
struct State {
    name: String,
    tensor: Tensor<f32>,
    /// What a step writes; none where it writes `tensor`.
    next: Option<Tensor<f32>>,
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
    fn new(
        session: Session,
        layout: Vec<TensorSpec>,
        target: Target,
    ) -> Result<Self, RuntimeError> {
        let binding = session.create_binding()?;
        let is_state = |output: &str| {
            let states = layout.iter().map(state_name);
            states.map(|it| format!("{it}.next")).any(|it| it == output)
        };
        let answers = session.outputs().iter().map(|it| it.name().to_owned());
        let answers = answers.filter(|it| !is_state(it)).collect();
        let (states, has_run, runs) = (Vec::new(), false, 0);
        Ok(Self { binding, session, target, layout, answers, states, has_run, runs })
    }

    pub(crate) fn is_ragged(&self) -> bool {
        self.target == Target::Ragged
    }

    /// Steps that were run since the graph was opened.
    pub(crate) fn runs(&self) -> usize {
        self.runs
    }

    /// Ends the trace of a graph that was opened with one; gives the file that it is in.
    ///
    /// # Errors
    /// If the runtime cannot write it.
    pub(crate) fn end_trace(mut self) -> Result<PathBuf, RuntimeError> {
        Ok(self.session.end_profiling()?.into())
    }

    /// Voids all sessions: `lanes` rows of what no computation may let through.
    pub(crate) fn reset(&mut self, lanes: usize) -> Result<(), RuntimeError> {
        self.fill(lanes, |_| f32::NAN)
    }

    /// Makes `lanes` sessions whose state has `value` of its index at each place of each tensor.
    pub(crate) fn fill(
        &mut self,
        lanes: usize,
        value: impl Fn(usize) -> f32,
    ) -> Result<(), RuntimeError> {
        self.states.clear();
        self.has_run = false;
        let allocator = Allocator::default();
        for spec in &self.layout {
            let axes = [lanes as u64].into_iter().chain(spec.shape.iter().copied());
            let shape: Vec<usize> =
                axes.map(|it| usize::try_from(it).expect("a row is in memory")).collect();
            let mut tensor = Tensor::<f32>::new(&allocator, shape.clone())?;
            let elements = tensor.extract_tensor_mut().1;
            elements.iter_mut().enumerate().for_each(|(index, it)| *it = value(index));
            let next = match self.target {
                Target::Ragged => None,
                Target::Portable => Some(Tensor::<f32>::new(&allocator, shape)?),
            };
            let mut state = State { name: state_name(spec), tensor, next };
            state.bind(&mut self.binding)?;
            self.states.push(state);
        }
        Ok(())
    }

    /// Advances the sessions that `segments` names.
    pub(crate) fn step(&mut self, segments: &[Segment<'_>]) -> Result<Outputs<'_>, RuntimeError> {
        self.bind(segments)?;
        self.run()
    }

    /// Has the following runs advance the sessions that `segments` names.
    pub(crate) fn bind(&mut self, segments: &[Segment<'_>]) -> Result<(), RuntimeError> {
        let tokens: Vec<i64> =
            segments.iter().flat_map(|it| it.tokens).copied().map(i64::from).collect();
        let positions: Vec<i64> = segments.iter().map(|it| it.position as i64).collect();
        let fresh: Vec<bool> = segments.iter().map(|it| it.position == 0).collect();
        let binding = &mut self.binding;
        binding.bind_input("tokens", &Tensor::from_array(([tokens.len()], tokens))?)?;
        binding.bind_input("positions", &Tensor::from_array(([positions.len()], positions))?)?;
        binding.bind_input("fresh", &Tensor::from_array(([fresh.len()], fresh))?)?;
        if self.target == Target::Ragged {
            let mut bounds = vec![0i32];
            for segment in segments {
                let tokens = i32::try_from(segment.tokens.len()).expect("tokens fit a step");
                bounds.push(bounds.last().copied().unwrap_or_default() + tokens);
            }
            let lanes: Vec<i32> = segments.iter().map(|it| it.lane.cast_signed()).collect();
            binding.bind_input("segments", &Tensor::from_array(([bounds.len()], bounds))?)?;
            binding.bind_input("lanes", &Tensor::from_array(([lanes.len()], lanes))?)?;
        }
        // Their extents follow from the segments, and what a run has once made is kept for the next.
        for answer in &self.answers {
            binding.bind_output_to_device(answer, &MemoryInfo::default())?;
        }
        Ok(())
    }

    /// Runs the step that is bound.
    pub(crate) fn run(&mut self) -> Result<Outputs<'_>, RuntimeError> {
        if self.has_run {
            for state in &mut self.states {
                state.advance(&mut self.binding)?;
            }
        }
        self.has_run = true;
        self.runs += 1;
        Ok(Outputs(self.session.run_binding(&self.binding)?))
    }
}

impl State {
    fn bind(&mut self, binding: &mut IoBinding) -> ort::Result<()> {
        binding.bind_input(&self.name, &self.tensor)?;
        let next = self.next.as_mut().unwrap_or(&mut self.tensor);
        binding.bind_output(format!("{}.next", self.name), next)
    }

    /// Makes what the last step wrote what the next one reads.
    fn advance(&mut self, binding: &mut IoBinding) -> ort::Result<()> {
        if let Some(next) = &mut self.next {
            std::mem::swap(&mut self.tensor, next);
            self.bind(binding)?;
        }
        Ok(())
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
