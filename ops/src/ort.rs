//! Registration with ONNX Runtime: every schema as a custom operator, in process through [`domain`],
//! or in any host that loads this crate as a shared library and calls [`RegisterCustomOps`].

#![allow(unsafe_code, reason = "the boundary to ONNX Runtime is its C interface")]

mod call;
mod packed;

use std::{ffi::CString, ops::RangeInclusive, ptr, sync::OnceLock};

use ort::{
    AsPointer, Error, Result,
    operator::{
        BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorDomain,
        OperatorInput, OperatorOutput, ShapeInferenceContext,
    },
    sys,
    value::{SymbolicDimensions, TensorElementType, TensorValueType, ValueType},
};

use self::{
    call::{Call, IntraOp, Signature, invalid},
    packed::{PackedExtents, PackedProduct},
};
use crate::{
    block_diagonal::{BlockDiagonal, block_diagonal},
    causal_conv1d::{CausalConv1d, causal_conv1d},
    local_attention::{AttentionInputs, LocalAttention, LocalAttentionDims, Rings},
    rg_lru::{RgLru, RgLruInputs},
    rms_norm::rms_norm,
    schema::{DOMAIN, DOMAIN_VERSION, Element, OpSchema, SCHEMAS},
    segments::SegmentsReader,
    shape::Letters,
};

/// The operators, for [`ort::session::builder::SessionBuilder::with_operators`].
///
/// # Errors
/// If ONNX Runtime refuses an operator.
pub fn domain() -> Result<OperatorDomain> {
    SCHEMAS
        .iter()
        .try_fold(OperatorDomain::new(DOMAIN)?, |domain, schema| domain.add(SchemaOperator(schema)))
}

/// Adds the operators to a host's session options: what `register_custom_ops_library` looks up.
///
/// # Safety
/// `options` and `base` are what ONNX Runtime passes: live session options and its API.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn RegisterCustomOps(
    options: *mut sys::OrtSessionOptions,
    base: *const sys::OrtApiBase,
) -> sys::OrtStatusPtr {
    // SAFETY: the caller passes a live API base.
    let get_api = unsafe { (*base).GetApi };
    // SAFETY: asking for a version is always allowed; null says that the host is older.
    let api = unsafe { get_api(sys::ORT_API_VERSION) };
    if api.is_null() {
        // SAFETY: every host has version 1, and that makes statuses.
        let create_status = unsafe { (*get_api(1)).CreateStatus };
        let message = c"aerie operators need ONNX Runtime 1.18 or newer";
        // SAFETY: `message` is a C string and is copied.
        return unsafe { create_status(sys::OrtErrorCode::ORT_FAIL, message.as_ptr()) };
    }
    // From here on this library talks to the host's runtime; later registrations change nothing.
    // SAFETY: `api` is not null and is a table of functions that lives as long as the host.
    ort::set_api(unsafe { ptr::read(api) });
    match leaked_domain() {
        // SAFETY: `options` is live and the domain never dies.
        Ok(domain) => unsafe { (ort::api().AddCustomOpDomain)(options, domain) },
        Err(message) => {
            let create_status = ort::api().CreateStatus;
            // SAFETY: `message` is a C string and is copied.
            unsafe { create_status(sys::OrtErrorCode::ORT_FAIL, message.as_ptr()) }
        }
    }
}

/// The one domain of all sessions of a host. It is never freed: sessions may outlive any moment at
/// which we could.
fn leaked_domain() -> std::result::Result<*mut sys::OrtCustomOpDomain, CString> {
    struct Leaked(*mut sys::OrtCustomOpDomain);
    // SAFETY: the domain is not changed after it was made; ONNX Runtime only reads it.
    unsafe impl Send for Leaked {}
    // SAFETY: as above.
    unsafe impl Sync for Leaked {}

    static DOMAIN: OnceLock<std::result::Result<Leaked, CString>> = OnceLock::new();
    let made = DOMAIN.get_or_init(|| match domain() {
        Ok(domain) => Ok(Leaked(Box::leak(Box::new(domain)).ptr().cast_mut())),
        Err(e) => Err(CString::new(e.to_string()).unwrap_or_default()),
    });
    made.as_ref().map(|leaked| leaked.0).map_err(Clone::clone)
}

/// An operator as its schema describes it.
struct SchemaOperator(&'static OpSchema);

impl Operator for SchemaOperator {
    type Kernel<'a> = BoxedKernel<'a>;

    fn name(&self) -> &str {
        self.0.name
    }

    fn versions(&self) -> RangeInclusive<u32> {
        self.0.version..=DOMAIN_VERSION
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        self.0.inputs.iter().map(|port| match port.optional {
            false => OperatorInput::required(element_type(port.element)),
            true => OperatorInput::optional(element_type(port.element)),
        })
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        self.0.outputs.iter().map(|port| OperatorOutput::required(element_type(port.element)))
    }

    fn create_kernel<'a>(&self, context: &KernelContext<'a>) -> Result<BoxedKernel<'a>> {
        let kind = Kind::new(self.0, context).map_err(|e| invalid(self.0, e.message()))?;
        Ok(Box::new(Node::new(self.0, kind)))
    }

    /// An axis of an output has the extent of the first axis of an input that is written alike, or of
    /// the attribute that tells it.
    fn infer_shape(&self, context: &mut ShapeInferenceContext) -> Result<()> {
        let inputs = context.inputs();
        let mut known: Vec<(&str, (i64, String))> = Vec::new();
        for (port, input) in self.0.inputs.iter().zip(&inputs) {
            if let ValueType::Tensor { shape, dimension_symbols, .. } = input {
                let extents = shape.iter().copied().zip(dimension_symbols.iter().cloned());
                known.extend(port.shape.split(' ').zip(extents));
            }
        }
        for (letter, attribute) in [("D", "inputs"), ("R", "outputs"), ("d", "head_dim")] {
            if self.0.attributes.iter().any(|it| it.name == attribute) {
                known.insert(0, (letter, (context.attr(attribute)?, String::new())));
            }
        }
        for (idx, output) in self.0.outputs.iter().enumerate() {
            let axis = |axis| match known.iter().find(|(written, _)| *written == axis) {
                Some((_, (extent, symbol))) if 0 <= *extent || !symbol.is_empty() => {
                    (*extent, symbol.clone())
                }
                // What is unknown has to have a name, or it is taken for an extent of -1.
                _ => (-1, format!("some {axis}")),
            };
            let (extents, symbols): (Vec<_>, Vec<_>) = output.shape.split(' ').map(axis).unzip();
            let ty = element_type(output.element);
            let (shape, dimension_symbols) = (extents.into(), SymbolicDimensions::new(symbols));
            context.set_output(idx, &ValueType::Tensor { ty, shape, dimension_symbols })?;
        }
        Ok(())
    }
}

fn element_type(element: Element) -> TensorElementType {
    match element {
        Element::Bool => TensorElementType::Bool,
        Element::F32 => TensorElementType::Float32,
        Element::I32 => TensorElementType::Int32,
        Element::I64 => TensorElementType::Int64,
        Element::U8 => TensorElementType::Uint8,
    }
}

/// A kernel with its attributes and memory.
enum Kind {
    RmsNorm { epsilon: f32 },
    BlockDiagonal,
    CausalConv1d,
    RgLru(Recurrence),
    PackedRgLru(PackedProduct, Recurrence),
    LocalAttention(Box<LocalAttention>),
    Packed(PackedProduct),
    PackedGather { extents: PackedExtents, rows: Vec<usize> },
}

/// A recurrence, and whether its parameter never changes.
struct Recurrence {
    rg_lru: RgLru,
    constant: bool,
}

/// Largest attribute that is an extent, as for the extents of a model.
const EXTENT_MAX: i64 = 1 << 24;

impl Kind {
    fn new(schema: &'static OpSchema, context: &KernelContext<'_>) -> Result<Self> {
        match schema.name {
            "RmsNorm" => {
                let epsilon = context.get("epsilon").ok_or_else(|| missing("epsilon"))?;
                Ok(Self::RmsNorm { epsilon })
            }
            "BlockDiagonal" => Ok(Self::BlockDiagonal),
            "CausalConv1d" => Ok(Self::CausalConv1d),
            "RgLru" => Ok(Self::RgLru(Recurrence::new(schema, context))),
            "PackedRgLru" => Ok(Self::PackedRgLru(
                PackedProduct::new(schema, context)?,
                Recurrence::new(schema, context),
            )),
            "LocalAttention" => {
                let attention = LocalAttention::new(attention_dims(context)?);
                Ok(Self::LocalAttention(Box::new(attention)))
            }
            "PackedMatMul" | "PackedPair" | "PackedQkv" | "PackedGated" => {
                Ok(Self::Packed(PackedProduct::new(schema, context)?))
            }
            "PackedGather" => Ok(Self::PackedGather {
                extents: PackedExtents::new(schema, context)?,
                rows: Vec::new(),
            }),
            name => Err(Error::new(format!("{name} has a schema but no kernel"))),
        }
    }

    /// What the attributes say about the letters of the shapes.
    fn letters(&self) -> Letters {
        let mut letters = Letters::unknown();
        let mut set = |letter, extent: usize| {
            // `extent` has held attributes to `EXTENT_MAX`.
            letters.set(letter, extent as i64);
        };
        match self {
            Self::LocalAttention(attention) => {
                let dims = attention.dims();
                set('H', dims.heads);
                set('d', dims.head_dim);
                set('W', dims.window);
            }
            Self::Packed(product) | Self::PackedRgLru(product, _) => {
                product.letters().into_iter().for_each(|(letter, extent)| set(letter, extent));
            }
            Self::PackedGather { extents, .. } => {
                extents.letters().into_iter().for_each(|(letter, extent)| set(letter, extent));
            }
            Self::RmsNorm { .. } | Self::BlockDiagonal | Self::CausalConv1d | Self::RgLru(_) => {}
        }
        letters
    }
}

impl Recurrence {
    fn new(schema: &OpSchema, context: &KernelContext<'_>) -> Self {
        let port = schema.inputs.iter().position(|port| port.name == "p");
        match port.map(|idx| context.constant_input::<TensorValueType<f32>>(idx)) {
            Some(Ok(p)) => Self { rg_lru: RgLru::new(p.extract_tensor().1), constant: true },
            _ => Self { rg_lru: RgLru::new(&[]), constant: false },
        }
    }

    /// The recurrence with the parameter of `call`.
    fn of(&mut self, call: &Call<'_>) -> &RgLru {
        if !self.constant {
            self.rg_lru.set(call.input("p"));
        }
        &self.rg_lru
    }
}

/// An attribute that is an extent.
fn extent(context: &KernelContext<'_>, name: &str) -> Result<usize> {
    let found = context.get::<i64>(name).ok_or_else(|| missing(name))?;
    usize::try_from(found)
        .ok()
        .filter(|_| found <= EXTENT_MAX)
        .ok_or_else(|| Error::new(format!("{name} is {found}; at most {EXTENT_MAX} is supported")))
}

fn attention_dims(context: &KernelContext<'_>) -> Result<LocalAttentionDims> {
    let dims = LocalAttentionDims {
        heads: extent(context, "heads")?,
        head_dim: extent(context, "head_dim")?,
        window: extent(context, "window")?,
        rotary_dims: extent(context, "rotary_dims")?,
    };
    if dims.heads == 0 || dims.head_dim == 0 {
        return Err(Error::new("heads and head_dim must be at least 1"));
    }
    if dims.head_dim < dims.rotary_dims || !dims.rotary_dims.is_multiple_of(2) {
        return Err(Error::new(format!(
            "rotary_dims is {}; it must be even and at most head_dim {}",
            dims.rotary_dims, dims.head_dim
        )));
    }
    Ok(dims)
}

fn missing(attribute: &str) -> Error {
    Error::new(format!("attribute {attribute} is missing or of another type"))
}

/// A node of a graph.
struct Node {
    signature: Signature,
    kind: Kind,
    reader: SegmentsReader,
}

impl Node {
    fn new(schema: &'static OpSchema, kind: Kind) -> Self {
        let signature = Signature::new(schema, kind.letters());
        Self { signature, kind, reader: SegmentsReader::default() }
    }
}

impl Kernel for Node {
    fn compute(&mut self, context: &ComputeContext) -> Result<()> {
        let Self { signature, kind, reader } = self;
        let mut call = Call::read(signature, context)?;
        let threads = IntraOp::new(call.context);
        match kind {
            Kind::RmsNorm { epsilon } => {
                let (weight, x) = (call.input("weight"), call.input("x"));
                rms_norm(*epsilon, weight, x, call.output("y")?, &threads);
            }
            Kind::BlockDiagonal => {
                let blocks = call.extent('K');
                let (weight, bias) = (call.input("weight"), call.input("bias"));
                let projection = BlockDiagonal { blocks, weight, bias };
                block_diagonal(&projection, call.input("x"), call.output("y")?, &threads);
            }
            Kind::CausalConv1d => {
                let segments = call.segments(reader)?;
                let conv = CausalConv1d { weight: call.input("weight"), bias: call.input("bias") };
                let (x, y) = (call.input("x"), call.output("y")?);
                let state = call.state("state", "state_next")?;
                causal_conv1d(&conv, &segments, x, state, y, &threads);
            }
            Kind::RgLru(recurrence) => {
                let segments = call.segments(reader)?;
                let inputs = RgLruInputs {
                    x: call.input("x"),
                    gate_a: call.input("gate_a"),
                    gate_x: call.input("gate_x"),
                    times: None,
                };
                let (y, state) = (call.output("y")?, call.state("state", "state_next")?);
                recurrence.of(&call).run(&segments, inputs, state, y, &threads);
            }
            Kind::PackedRgLru(gates, recurrence) => {
                let segments = call.segments(reader)?;
                let (y, state) = (call.output("y")?, call.state("state", "state_next")?);
                gates.gate(&call, &threads, |inputs| {
                    recurrence.of(&call).run(&segments, inputs, state, y, &threads);
                })?;
            }
            Kind::LocalAttention(attention) => {
                let segments = call.segments(reader)?;
                let positions = segments
                    .positions(call.input("positions"))
                    .map_err(|e| invalid(call.signature.schema, e))?;
                let inputs =
                    AttentionInputs { q: call.input("q"), k: call.input("k"), v: call.input("v") };
                let y = call.output("y")?;
                let keys = call.state("keys", "keys_next")?;
                let values = call.state("values", "values_next")?;
                let rings = Rings { keys, values };
                attention.run(&segments, &positions, inputs, rings, y, &threads);
            }
            Kind::Packed(product) => product.compute(&mut call, &threads)?,
            Kind::PackedGather { extents, rows } => extents.gather(&mut call, rows, &threads)?,
        }
        threads.outcome()
    }
}
