//! The step graph on ONNX Runtime, with every buffer bound once and reused.
//!
//! The state arena is bound as input and output of the same memory, which only the C interface can
//! say; hence the unsafe code. A buffer is bound again only when the extent of its tensor changes,
//! and the tensor of each extent is made once, so a warm step allocates nothing here.

#![allow(unsafe_code, reason = "binding one buffer as input and output takes the C interface")]

#[cfg(test)]
mod tests;

use std::{
    env,
    ffi::{CString, c_void},
    fmt,
    hint::black_box,
    ops::Range,
    path::PathBuf,
    ptr::NonNull,
    sync::{Arc, Mutex, PoisonError},
};

use aerie_models::{Manifest, TensorSpec, bundle::MODEL_FILE};
use ort::{
    AsPointer as _,
    environment::Environment,
    memory::MemoryInfo,
    ortsys,
    session::{IoBinding, Session, builder::SessionBuilder},
    sys,
    value::{PrimitiveTensorElementType, Shape, TensorRefMut},
};
use thiserror::Error;

use crate::device::{
    Batch, Device, DeviceDims, DeviceError, DeviceSpec, Lane,
    files::BundleFiles,
    initializers::{External, ExternalError, WeightType, externals},
};

/// Where ONNX Runtime is if `ORT_DYLIB_PATH` does not say.
const RUNTIME: &str = "libonnxruntime.so";

/// Option of a session: where the files are that its graph refers to. It looks for them there even if it is lent all
/// weights that are in them.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// ONNX Runtime, loaded; one for the whole process.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: Environment,
    /// Held while a session is made. Two that bring the same operators must not be made at once: ONNX
    /// Runtime looks for their domain, then adds it, and refuses whoever comes second.
    making: Arc<Mutex<()>>,
}

/// A bundle's step graph on some cores.
pub struct OrtDevice {
    // Fields are dropped in this order: first who points, then what is pointed to.
    binding: IoBinding,
    session: Session,
    tokens: Port<i64>,
    segments: Port<i32>,
    lanes: Port<i32>,
    positions: Port<i64>,
    fresh: Port<bool>,
    logits: Port<f32>,
    states: Vec<State>,
    _weights: Vec<Lent>,
    /// Whose bytes the weights are.
    _files: Arc<BundleFiles>,
    dims: DeviceDims,
}

/// Why a model is not on a device.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(
        "{}: no ONNX Runtime there; set ORT_DYLIB_PATH to libonnxruntime.so",
        path.display()
    )]
    NoRuntime { path: PathBuf },
    #[error("onnx runtime: {0}")]
    Ort(#[from] ort::Error),
    #[error("step graph lacks the {kind} {name:?}")]
    Missing { kind: &'static str, name: String },
    #[error("the graph {problem}")]
    Classifier { problem: String },
    #[error(transparent)]
    Weights(#[from] ExternalError),
    #[error("{name:?} has {row} elements for each of {rows} rows: there is no memory for them")]
    Memory { name: String, rows: usize, row: usize },
}

impl Runtime {
    /// Loads the library that `ORT_DYLIB_PATH` names.
    ///
    /// # Errors
    /// If it is not there or cannot be used.
    pub fn load() -> Result<Self, LoadError> {
        let path = env::var_os("ORT_DYLIB_PATH").map_or_else(|| RUNTIME.into(), PathBuf::from);
        // A bare name is looked up by the system's loader, and only a path can be checked.
        if path.components().nth(1).is_some() && !path.exists() {
            return Err(LoadError::NoRuntime { path });
        }
        keep_blocks_apart();
        let builder = ort::init_from(&path).map_err(|_| LoadError::NoRuntime { path })?;
        Ok(builder.with_telemetry(false).build()?.into())
    }
}

/// Holds glibc to what it does at first: blocks above 128 KiB are maps of their own, which go back to the
/// system when they are freed. Left to itself it raises that limit with the first large block that is
/// freed, and each session would hold on to twice as much as its graph takes.
#[cfg(target_env = "gnu")]
fn keep_blocks_apart() {
    // SAFETY: the call takes two numbers and may be made at any time; one that it does not like it
    // ignores.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) };
}

#[cfg(not(target_env = "gnu"))]
fn keep_blocks_apart() {}

impl From<Environment> for Runtime {
    /// The runtime that a process has loaded already: it may have one environment only.
    fn from(environment: Environment) -> Self {
        Self { environment, making: Arc::default() }
    }
}

impl OrtDevice {
    /// Loads the bundle that `files` are of. The weights are read where they are mapped, so that
    /// devices share them.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(
        runtime: &Runtime,
        files: &Arc<BundleFiles>,
        manifest: &Manifest,
        spec: &DeviceSpec,
        config: crate::scheduler::Config,
    ) -> Result<Self, LoadError> {
        let (session, weights) = open(runtime, files, spec)?;
        let mut binding = session.create_binding()?;

        let vocab = manifest.model.vocab;
        let (tokens_max, lanes) = (config.step_tokens_max as usize, config.lanes_max as usize);
        let port = |name: &str, rows: usize| Port::new(&session, name, rows, &[]);
        let (tokens, positions) = (port("tokens", tokens_max)?, port("positions", lanes)?);
        let port = |name: &str, rows: usize| Port::new(&session, name, rows, &[]);
        let (segments, lane_rows) = (port("segments", lanes + 1)?, port("lanes", lanes)?);
        let fresh = Port::new(&session, "fresh", lanes, &[])?;
        let logits = Port::new(&session, "logits", lanes, &[i64::from(vocab)])?;
        let states = manifest
            .layout()
            .fields()
            .map(|field| State::bind(&session, &mut binding, field, lanes))
            .collect::<Result<_, _>>()?;
        let dims = DeviceDims {
            lanes: config.lanes_max,
            tokens_max: config.step_tokens_max,
            vocab,
            state_bytes: manifest.layout().bytes(),
        };
        let lanes = lane_rows;
        Ok(Self {
            binding,
            session,
            tokens,
            segments,
            lanes,
            positions,
            fresh,
            logits,
            states,
            _weights: weights,
            _files: Arc::clone(files),
            dims,
        })
    }
}

/// A session of the graph in a bundle, and what it borrows of the bundle's files: both have to outlive it.
pub(super) fn open(
    runtime: &Runtime,
    files: &BundleFiles,
    spec: &DeviceSpec,
) -> Result<(Session, Vec<Lent>), LoadError> {
    let mut builder = options(Session::builder(&runtime.environment)?, spec)?
        .with_config_entry(EXTERNAL_FOLDER, files.dir().to_string_lossy())
        .map_err(|error| ort::Error::new(error.to_string()))?;
    let model = files.bytes(MODEL_FILE);
    let weights = Lent::all(&mut builder, model, files)?;
    let _making = runtime.making.lock().unwrap_or_else(PoisonError::into_inner);
    Ok((builder.commit_from_memory(model)?, weights))
}

impl Device for OrtDevice {
    fn dims(&self) -> DeviceDims {
        self.dims
    }

    fn step(&mut self, batch: &Batch) -> Result<&[f32], DeviceError> {
        let n_segments = batch.len();
        let mut run = || {
            self.tokens.set(&mut self.binding, &batch.tokens)?;
            self.segments.set(&mut self.binding, &batch.segments)?;
            self.lanes.set(&mut self.binding, &batch.lanes)?;
            self.positions.set(&mut self.binding, &batch.positions)?;
            self.fresh.set(&mut self.binding, &batch.fresh)?;
            self.logits.bind(&mut self.binding, n_segments)?;
            self.session.run_binding(&self.binding).map(drop)
        };
        run().map_err(|error: ort::Error| DeviceError(error.to_string()))?;
        Ok(&self.logits.buffer.as_slice()[..n_segments * self.dims.vocab as usize])
    }

    fn read_part(&self, lane: Lane, at: usize, part: &mut [u8]) {
        let (mut skip, mut rest) = (at, part);
        for state in &self.states {
            let values = skipped(state.row(lane), &mut skip, rest.len());
            let field;
            (field, rest) = rest.split_at_mut(values.len() * size_of::<f32>());
            for (bytes, value) in field.chunks_exact_mut(4).zip(&state.row(lane)[values]) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        assert!(skip == 0 && rest.is_empty(), "a part is of one state");
    }

    fn write_part(&mut self, lane: Lane, at: usize, part: &[u8]) {
        let (mut skip, mut rest) = (at, part);
        for state in &mut self.states {
            let values = skipped(state.row(lane), &mut skip, rest.len());
            let field;
            (field, rest) = rest.split_at(values.len() * size_of::<f32>());
            let row = &mut state.row_mut(lane)[values];
            for (value, bytes) in row.iter_mut().zip(field.chunks_exact(4)) {
                *value = f32::from_le_bytes(bytes.try_into().expect("chunks of four"));
            }
        }
        assert!(skip == 0 && rest.is_empty(), "a part is of one state");
    }
}

/// Which elements of `row`, a field of a state, are among the `n_bytes` that come after `skip` from its beginning on; takes
/// what it has of them off `skip`.
fn skipped(row: &[f32], skip: &mut usize, n_bytes: usize) -> Range<usize> {
    let first = (*skip / size_of::<f32>()).min(row.len());
    *skip -= first * size_of::<f32>();
    first..(first + n_bytes / size_of::<f32>()).min(row.len())
}

impl fmt::Debug for OrtDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrtDevice").field("dims", &self.dims).finish_non_exhaustive()
    }
}

/// A weight that a session reads where it is mapped. Has to outlive the session.
pub(super) struct Lent {
    value: NonNull<sys::OrtValue>,
}

impl Lent {
    /// Lends a session all weights of `model` that lie in other files.
    fn all(
        builder: &mut SessionBuilder,
        model: &[u8],
        files: &BundleFiles,
    ) -> Result<Vec<Self>, LoadError> {
        let mut lent = Vec::new();
        for weight in externals(model)? {
            let value = Self::new(&weight, weight.find(files)?)?;
            let name = c_name(&weight.name);
            // SAFETY: the builder and the value are live, and the name, which is copied, ends in a
            // zero.
            ortsys![unsafe AddInitializer(builder.ptr_mut(), name.as_ptr(), value.value.as_ptr())?];
            lent.push(value);
        }
        Ok(lent)
    }

    fn new(weight: &External, bytes: &[u8]) -> ort::Result<Self> {
        let element = match weight.element {
            WeightType::F32 => sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
            WeightType::F16 => {
                sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
            }
            WeightType::U8 => sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        };
        let memory = MemoryInfo::default();
        let data = bytes.as_ptr().cast::<c_void>().cast_mut();
        let (shape, mut value) = (&weight.shape, std::ptr::null_mut());
        // SAFETY: `bytes` are as many as the shape asks for and aligned, which `External` has seen to;
        // initializers are only read, and `OrtDevice` keeps the map until its session is gone.
        ortsys![unsafe CreateTensorWithDataAsOrtValue(
            memory.ptr(), data, bytes.len(), shape.as_ptr(), shape.len(), element, &mut value
        )?];
        Ok(Self { value: NonNull::new(value).expect("there is a value where there is no error") })
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: the value is ours, and the session that read it has gone before.
        ortsys![unsafe ReleaseValue(self.value.as_ptr())];
    }
}

/// Threads on the device's cores, and our operators. Threads wait for each other spinning, as a step
/// has hundreds of parts of a few microseconds; between steps nothing spins, since the cores are shared
/// with the threads that serve sockets.
fn options(builder: SessionBuilder, spec: &DeviceSpec) -> Result<SessionBuilder, LoadError> {
    let plain = |error: ort::Error<_>| ort::Error::new(error.to_string());
    let cores = match spec.cores {
        Some((first, last)) => (first..=last).collect(),
        None => (0..available_cores()).collect::<Vec<u32>>(),
    };
    let mut builder = builder
        .with_operators(aerie_ops::ort::domain()?)
        .map_err(plain)?
        .with_intra_threads(cores.len())
        .map_err(plain)?
        .with_inter_threads(1)
        .map_err(plain)?
        .with_intra_op_spinning(true)
        .map_err(plain)?
        .with_config_entry("session.force_spinning_stop", "1")
        .map_err(plain)?;
    if spec.cores.is_some() && 1 < cores.len() {
        // The thread that runs the step is one of the pool and pins itself; ONNX Runtime counts
        // cores from 1 and wants the affinities of all others.
        let others: Vec<String> = cores[1..].iter().map(|core| (core + 1).to_string()).collect();
        builder = builder
            .with_config_entry("session.intra_op_thread_affinities", others.join(";"))
            .map_err(plain)?;
    }
    Ok(builder)
}

fn available_cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// What ports are made of.
trait Element: PrimitiveTensorElementType + Copy + Default + fmt::Debug + 'static {}

impl<T: PrimitiveTensorElementType + Copy + Default + fmt::Debug + 'static> Element for T {}

/// An input or output whose first axis changes from step to step.
struct Port<T: Element> {
    name: CString,
    is_input: bool,
    /// The axes after the first.
    row: Vec<i64>,
    /// By extent, made when first met; they point into `buffer`.
    tensors: Vec<Option<TensorRefMut<'static, T>>>,
    bound: Option<usize>,
    buffer: Buffer<T>,
}

/// One tensor of the state arena, for all lanes.
struct State {
    _tensor: TensorRefMut<'static, f32>,
    /// Of one lane.
    elements: usize,
    buffer: Buffer<f32>,
}

/// Memory at a fixed address that ONNX Runtime reads and writes while a step runs, and we between
/// steps. References to it live no longer than the borrow of the buffer.
struct Buffer<T> {
    data: NonNull<[T]>,
}

impl<T: Element> Port<T> {
    /// A port with room for `rows` rows.
    fn new(session: &Session, name: &str, rows: usize, row: &[i64]) -> Result<Self, LoadError> {
        let is_input = session.inputs().iter().any(|input| input.name() == name);
        if !is_input && !session.outputs().iter().any(|output| output.name() == name) {
            return Err(missing("input or output", name));
        }
        let elements: i64 = row.iter().product();
        let elements = usize::try_from(elements).expect("extents are positive");
        Ok(Self {
            name: c_name(name),
            is_input,
            row: row.to_vec(),
            tensors: (0..=rows).map(|_| None).collect(),
            bound: None,
            buffer: Buffer::new(name, rows, elements)?,
        })
    }

    /// Fills the port of an input and binds it.
    fn set(&mut self, binding: &mut IoBinding, values: &[T]) -> ort::Result<()> {
        self.buffer.as_mut_slice()[..values.len()].copy_from_slice(values);
        self.bind(binding, values.len())
    }

    /// Binds the first `rows` rows, unless they are what is bound.
    fn bind(&mut self, binding: &mut IoBinding, rows: usize) -> ort::Result<()> {
        if self.bound == Some(rows) {
            return Ok(());
        }
        let slot = &mut self.tensors[rows];
        let tensor = match slot {
            Some(tensor) => tensor,
            None => {
                let mut shape = vec![i64::try_from(rows).expect("rows are counted by u32")];
                shape.extend(&self.row);
                slot.insert(self.buffer.tensor(shape)?)
            }
        };
        self.bound = None;
        // SAFETY: binding and tensor are live, the name ends in a zero. The binding keeps a
        // reference to the value; the memory that this points to is `self.buffer`, which
        // `OrtDevice` drops after the binding.
        if self.is_input {
            ortsys![unsafe BindInput(binding.ptr_mut(), self.name.as_ptr(), tensor.ptr())?];
        } else {
            ortsys![unsafe BindOutput(binding.ptr_mut(), self.name.as_ptr(), tensor.ptr())?];
        }
        self.bound = Some(rows);
        Ok(())
    }
}

impl State {
    /// Allocates `field` for all lanes and binds it as input and output.
    fn bind(
        session: &Session,
        binding: &mut IoBinding,
        field: &TensorSpec,
        lanes: usize,
    ) -> Result<Self, LoadError> {
        let input = format!("state.{}", field.path);
        let output = format!("{input}.next");
        if !session.inputs().iter().any(|it| it.name() == input) {
            return Err(missing("input", &input));
        }
        if !session.outputs().iter().any(|it| it.name() == output) {
            return Err(missing("output", &output));
        }
        let elements = usize::try_from(field.elements()).expect("a state fits in memory");
        let mut buffer = Buffer::new(&input, lanes, elements)?;
        let extent = |n: u64| i64::try_from(n).expect("extents are far below 2^63");
        let mut shape = vec![extent(lanes as u64)];
        shape.extend(field.shape.iter().copied().map(extent));
        let tensor = buffer.tensor(shape)?;
        let (input, output) = (c_name(&input), c_name(&output));
        // SAFETY: binding and tensor are live, the names end in a zero. That input and output are
        // one buffer is what the operators expect: they write only rows of lanes that a step names.
        // The memory outlives the binding: `OrtDevice` drops it afterwards.
        ortsys![unsafe BindInput(binding.ptr_mut(), input.as_ptr(), tensor.ptr())?];
        ortsys![unsafe BindOutput(binding.ptr_mut(), output.as_ptr(), tensor.ptr())?];
        Ok(Self { _tensor: tensor, elements, buffer })
    }

    fn row(&self, lane: Lane) -> &[f32] {
        &self.buffer.as_slice()[lane.0 as usize * self.elements..][..self.elements]
    }

    fn row_mut(&mut self, lane: Lane) -> &mut [f32] {
        &mut self.buffer.as_mut_slice()[lane.0 as usize * self.elements..][..self.elements]
    }
}

impl<T: Element> Buffer<T> {
    /// A buffer of zeros for `rows` rows of `row` elements, which are what a bundle says.
    fn new(name: &str, rows: usize, row: usize) -> Result<Self, LoadError> {
        // A vector of zeros takes no memory until it is used, but has no way to say that there is none;
        // one without elements has, and the compiler is not to see that nobody needs it.
        let mut probe = Vec::<T>::new();
        let len = rows.checked_mul(row).filter(|it| probe.try_reserve_exact(*it).is_ok());
        drop(black_box(probe));
        let Some(len) = len else {
            return Err(LoadError::Memory { name: name.to_owned(), rows, row });
        };
        let data = vec![T::default(); len].into_boxed_slice();
        Ok(Self { data: NonNull::from(Box::leak(data)) })
    }

    /// A tensor over the beginning of the buffer; it must not be used once the buffer is gone.
    fn tensor(&mut self, shape: Vec<i64>) -> ort::Result<TensorRefMut<'static, T>> {
        let elements: i64 = shape.iter().product();
        assert!(usize::try_from(elements).is_ok_and(|n| n <= self.data.len()), "{shape:?}");
        // SAFETY: the memory holds as many elements as the shape asks for. It is initialised and
        // stays where it is until the buffer is dropped, which owners do after the tensor.
        unsafe {
            TensorRefMut::from_raw(
                MemoryInfo::default(),
                self.data.as_ptr().cast::<c_void>(),
                Shape::new(shape),
            )
        }
    }

    fn as_slice(&self) -> &[T] {
        // SAFETY: the memory is ours and initialised; ONNX Runtime touches it only within a step,
        // for which the device is borrowed mutably.
        unsafe { self.data.as_ref() }
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and `self` is borrowed mutably.
        unsafe { self.data.as_mut() }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: `data` comes from `Box::leak` in `new`, and nobody else frees it.
        drop(unsafe { Box::from_raw(self.data.as_ptr()) });
    }
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("names of a graph have no zero")
}

pub(super) fn missing(kind: &'static str, name: &str) -> LoadError {
    LoadError::Missing { kind, name: name.to_owned() }
}
