//! One call of a kernel by ONNX Runtime: its threads, its inputs and outputs as slices.
//!
//! Values are read through the C interface: ONNX Runtime hands a kernel the *same* buffer as a
//! state's input and output, of which Rust must never see two references.

#![allow(unsafe_code, reason = "the boundary to ONNX Runtime is its C interface")]

use std::{
    ffi::c_void,
    fmt,
    marker::PhantomData,
    ops::Range,
    ptr, slice,
    sync::{Mutex, PoisonError},
};

use ort::{AsPointer, Error, ErrorCode, Result, operator::ComputeContext, ortsys, sys};

use crate::{
    Parallel,
    schema::{Element, OpSchema, Port},
    segments::{RawSegments, Segments, SegmentsReader},
    shape::{Letters, RANK_MAX, Shape},
};

/// A schema with its shapes parsed and its attributes known.
pub(super) struct Signature {
    pub(super) schema: &'static OpSchema,
    letters: Letters,
    inputs: Vec<Shape>,
    outputs: Vec<Shape>,
}

impl Signature {
    /// `letters` are what attributes tell.
    pub(super) fn new(schema: &'static OpSchema, letters: Letters) -> Self {
        let parse = |ports: &[Port]| ports.iter().map(|port| Shape::parse(port.shape)).collect();
        let (inputs, outputs) = (parse(schema.inputs), parse(schema.outputs));
        Self { schema, letters, inputs, outputs }
    }
}

/// ONNX Runtime's own threads.
pub(super) struct IntraOp {
    context: *const sys::OrtKernelContext,
    failure: Mutex<Option<Error>>,
}

// SAFETY: the context is only used by the thread that computes, in `for_each`, which ONNX Runtime
// allows; the failure is behind a lock.
unsafe impl Sync for IntraOp {}

impl IntraOp {
    pub(super) fn new(context: *const sys::OrtKernelContext) -> Self {
        Self { context, failure: Mutex::new(None) }
    }

    /// Whether every tile ran.
    pub(super) fn outcome(self) -> Result<()> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

// SAFETY: `KernelContext_ParallelFor` calls back once for each index and returns when all are done.
unsafe impl Parallel for IntraOp {
    fn for_each(&self, tiles: usize, body: &(dyn Fn(usize) + Sync)) {
        unsafe extern "C" fn tile(body: *mut c_void, tile: usize) {
            // SAFETY: `body` is the reference that `for_each` holds until all tiles are done.
            let body = unsafe { &*body.cast::<&(dyn Fn(usize) + Sync)>() };
            body(tile);
        }
        let parallel_for = || -> Result<()> {
            let body = ptr::from_ref(&body).cast_mut().cast();
            ortsys![unsafe KernelContext_ParallelFor(self.context, tile, tiles, 0, body)?];
            Ok(())
        };
        if let Err(e) = parallel_for() {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
        }
    }
}

/// Inputs of an operator, at most.
const INPUTS_MAX: usize = 11;

/// Outputs of an operator, at most.
const OUTPUTS_MAX: usize = 3;

/// One call of a kernel: inputs whose shapes fit the schema, and outputs yet to be asked for.
///
/// Slices that it gives live as long as the call of the kernel, `'a`.
pub(super) struct Call<'a> {
    pub(super) signature: &'a Signature,
    pub(super) context: *mut sys::OrtKernelContext,
    letters: Letters,
    inputs: [Buffer; INPUTS_MAX],
    /// Outputs already given away.
    outputs: [Buffer; OUTPUTS_MAX],
    lifetime: PhantomData<&'a ComputeContext>,
}

/// Memory of a value.
#[derive(Clone, Copy)]
struct Buffer {
    data: *mut c_void,
    elements: usize,
    bytes: usize,
}

impl<'a> Call<'a> {
    /// Reads the inputs and fits their shapes to the schema.
    pub(super) fn read(signature: &'a Signature, context: &'a ComputeContext) -> Result<Self> {
        let schema = signature.schema;
        let mut call = Self {
            signature,
            context: context.ptr().cast_mut(),
            letters: signature.letters,
            inputs: [Buffer::NONE; INPUTS_MAX],
            outputs: [Buffer::NONE; OUTPUTS_MAX],
            lifetime: PhantomData,
        };
        for (idx, (port, shape)) in schema.inputs.iter().zip(&signature.inputs).enumerate() {
            let Some(value) = call.input_value(idx)? else { continue };
            let mut dims = [0; RANK_MAX];
            let dims = read_dims(value, &mut dims, port).map_err(|e| invalid(schema, e))?;
            shape
                .bind(&mut call.letters, dims, [port.name, port.shape])
                .map_err(|e| invalid(schema, e))?;
            call.inputs[idx] = Buffer::of(value.cast_mut(), dims, port)?;
        }
        if let Some(letter) = "DRKCHd".chars().find(|&letter| call.letters.get(letter) == Some(0)) {
            return Err(invalid(schema, format_args!("{letter} is 0; it must be at least 1")));
        }
        if schema.inputs.iter().any(|port| port.name == FRESH) {
            call.read_fresh()?;
        }
        Ok(call)
    }

    /// An input; none if it may be and is left out.
    fn input_value(&self, idx: usize) -> Result<Option<*const sys::OrtValue>> {
        let schema = self.signature.schema;
        let port = &schema.inputs[idx];
        let mut inputs = 0;
        ortsys![unsafe KernelContext_GetInputCount(self.context, &mut inputs)?];
        let mut value = ptr::null();
        if idx < inputs {
            ortsys![unsafe KernelContext_GetInput(self.context, idx, &mut value)?];
        }
        if value.is_null() && !port.optional {
            return Err(invalid(schema, format_args!("{} is missing", port.name)));
        }
        Ok((!value.is_null()).then_some(value))
    }

    /// Refuses bytes that are no `bool`.
    fn read_fresh(&self) -> Result<()> {
        let buffer = self.inputs[self.input_index(FRESH)];
        // SAFETY: the runtime keeps inputs alive and unchanged during the call; any byte is a `u8`.
        let bytes = unsafe { buffer.slice::<u8>() };
        match bytes.iter().find(|&&byte| 1 < byte) {
            Some(byte) => {
                let message = format_args!("fresh holds a byte of value {byte}; bools are 0 or 1");
                Err(invalid(self.signature.schema, message))
            }
            None => Ok(()),
        }
    }

    /// The elements of an input that is no state.
    pub(super) fn input<T: Tensor>(&self, name: &str) -> &'a [T] {
        let idx = self.input_index(name);
        assert_eq!(self.signature.schema.inputs[idx].element, T::ELEMENT, "type of {name}");
        // SAFETY: ONNX Runtime holds inputs to the types that `SchemaOperator::inputs` states and
        // keeps them alive and unchanged during the call; `output` and `state` give away no memory
        // that an input overlaps; `read_fresh` has looked at bools.
        unsafe { self.inputs[idx].slice() }
    }

    /// The elements of an input that may be left out, unless it is.
    pub(super) fn optional_input<T: Tensor>(&self, name: &str) -> Option<&'a [T]> {
        let given = !self.inputs[self.input_index(name)].data.is_null();
        given.then(|| self.input(name))
    }

    /// What `letter` stands for.
    pub(super) fn extent(&self, letter: char) -> usize {
        let value = self.letters.get(letter).expect("a letter of an input's shape");
        usize::try_from(value).expect("extents are not negative")
    }

    pub(super) fn segments(&self, reader: &mut SegmentsReader) -> Result<Segments<'a>> {
        let raw = RawSegments {
            cuts: self.input("segments"),
            lanes: self.input("lanes"),
            fresh: self.input(FRESH),
        };
        reader
            .read(raw, self.extent('N'), self.extent('L'))
            .map_err(|e| invalid(self.signature.schema, e))
    }

    /// Memory for an output, which may overlap nothing.
    pub(super) fn output(&mut self, name: &str) -> Result<&'a mut [f32]> {
        let buffer = self.output_buffer(name)?;
        for (port, input) in self.signature.schema.inputs.iter().zip(&self.inputs) {
            if buffer.overlaps(input) {
                let message = format_args!("{name} is bound to memory of {}", port.name);
                return Err(invalid(self.signature.schema, message));
            }
        }
        // SAFETY: the runtime keeps the output alive during the call, and no other slice overlaps it.
        Ok(unsafe { buffer.slice_mut() })
    }

    /// The state to work on in place: the output, which is either the same memory as the input or
    /// becomes its copy.
    pub(super) fn state(&mut self, name: &str, next: &str) -> Result<&'a mut [f32]> {
        let buffer = self.output_buffer(next)?;
        let own = self.input_index(name);
        for (idx, (port, input)) in
            self.signature.schema.inputs.iter().zip(&self.inputs).enumerate()
        {
            let same = idx == own && buffer.data == input.data;
            if !same && buffer.overlaps(input) {
                let message = format_args!("{next} is bound to memory of {}", port.name);
                return Err(invalid(self.signature.schema, message));
            }
        }
        let state = self.inputs[own];
        if buffer.data != state.data {
            // SAFETY: both are alive, of the same length, and do not overlap.
            unsafe { buffer.data.copy_from_nonoverlapping(state.data, buffer.bytes) };
        }
        // SAFETY: the runtime keeps the output alive during the call, and no other slice overlaps it:
        // nothing reads the input of a state through `input`.
        Ok(unsafe { buffer.slice_mut() })
    }

    /// Memory for an output, of the shape that the inputs ask for and given away once.
    fn output_buffer(&mut self, name: &str) -> Result<Buffer> {
        let schema = self.signature.schema;
        let idx = schema.outputs.iter().position(|port| port.name == name);
        let idx = idx.expect("an output of the schema");
        let mut dims = [0; RANK_MAX];
        let dims = self.signature.outputs[idx].extents(&self.letters, &mut dims);
        let mut value = ptr::null_mut();
        let context = self.context;
        ortsys![unsafe KernelContext_GetOutput(context, idx, dims.as_ptr(), dims.len(), &mut value)?];
        if value.is_null() {
            return Err(invalid(schema, format_args!("{name} is missing")));
        }
        let buffer = Buffer::of(value, dims, &schema.outputs[idx])?;
        for (port, other) in schema.outputs.iter().zip(&self.outputs) {
            if buffer.overlaps(other) {
                let message = format_args!("{name} is bound to memory of {}", port.name);
                return Err(invalid(schema, message));
            }
        }
        self.outputs[idx] = buffer;
        Ok(buffer)
    }

    fn input_index(&self, name: &str) -> usize {
        let idx = self.signature.schema.inputs.iter().position(|port| port.name == name);
        idx.expect("an input of the schema")
    }
}

/// Name of the input that says which lanes are void.
const FRESH: &str = "fresh";

/// The extents of a value, into `dims`.
fn read_dims<'d>(
    value: *const sys::OrtValue,
    dims: &'d mut [i64; RANK_MAX],
    port: &Port,
) -> Result<&'d [i64]> {
    let mut info = ptr::null_mut();
    ortsys![unsafe GetTensorTypeAndShape(value, &mut info)?];
    let mut rank = 0;
    let mut read = || -> Result<()> {
        ortsys![unsafe GetDimensionsCount(info, &mut rank)?];
        if RANK_MAX < rank {
            let Port { name, shape, .. } = port;
            return Err(Error::new(format!("{name} has {rank} axes; its shape is [{shape}]")));
        }
        ortsys![unsafe GetDimensions(info, dims.as_mut_ptr(), rank)?];
        Ok(())
    };
    let outcome = read();
    ortsys![unsafe ReleaseTensorTypeAndShapeInfo(info)];
    outcome.map(|()| &dims[..rank])
}

impl Buffer {
    const NONE: Self = Self { data: ptr::null_mut(), elements: 0, bytes: 0 };

    /// The memory of `value`, whose extents are `dims`.
    fn of(value: *mut sys::OrtValue, dims: &[i64], port: &Port) -> Result<Self> {
        let elements = dims.iter().try_fold(1usize, |product, &extent| {
            product.checked_mul(usize::try_from(extent).ok()?)
        });
        let bytes = elements.and_then(|elements| elements.checked_mul(bytes_of(port.element)));
        let (Some(elements), Some(bytes)) = (elements, bytes) else {
            return Err(Error::new(format!("{} does not fit in memory: {dims:?}", port.name)));
        };
        let mut data = ptr::null_mut();
        ortsys![unsafe GetTensorMutableData(value, &mut data)?];
        Ok(Self { data, elements, bytes })
    }

    fn overlaps(&self, other: &Self) -> bool {
        let addresses = |it: &Self| it.data.addr()..it.data.addr() + it.bytes;
        let (a, b): (Range<usize>, Range<usize>) = (addresses(self), addresses(other));
        a.start.max(b.start) < a.end.min(b.end)
    }

    /// # Safety
    /// The memory holds values of `T`, lives for `'a` and nobody writes to it meanwhile.
    unsafe fn slice<'a, T>(self) -> &'a [T] {
        if self.elements == 0 {
            return &[];
        }
        // SAFETY: by contract; tensors that are not empty have aligned memory.
        unsafe { slice::from_raw_parts(self.data.cast(), self.elements) }
    }

    /// # Safety
    /// The memory holds `f32`s, lives for `'a` and nobody else reads or writes it meanwhile.
    unsafe fn slice_mut<'a>(self) -> &'a mut [f32] {
        if self.elements == 0 {
            return &mut [];
        }
        // SAFETY: by contract; tensors that are not empty have aligned memory.
        unsafe { slice::from_raw_parts_mut(self.data.cast(), self.elements) }
    }
}

fn bytes_of(element: Element) -> usize {
    match element {
        Element::Bool | Element::U8 => 1,
        Element::F32 | Element::I32 => 4,
        Element::I64 => 8,
    }
}

/// Rust's name for an element type.
pub(super) trait Tensor {
    const ELEMENT: Element;
}

impl Tensor for bool {
    const ELEMENT: Element = Element::Bool;
}

impl Tensor for f32 {
    const ELEMENT: Element = Element::F32;
}

impl Tensor for i32 {
    const ELEMENT: Element = Element::I32;
}

impl Tensor for i64 {
    const ELEMENT: Element = Element::I64;
}

impl Tensor for u8 {
    const ELEMENT: Element = Element::U8;
}

pub(super) fn invalid(schema: &OpSchema, message: impl fmt::Display) -> Error {
    Error::new_with_code(ErrorCode::InvalidArgument, format!("{}: {message}", schema.name))
}
