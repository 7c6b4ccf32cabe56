//! Registration with ONNX Runtime: every schema as a custom operator, in process through [`domain`],
//! or in any host that loads this crate as a shared library and calls [`RegisterCustomOps`].
//!
//! Values are read through the C interface: ONNX Runtime hands a kernel the *same* buffer as a
//! state's input and output, of which Rust must never see two references.

#![allow(unsafe_code, reason = "the boundary to ONNX Runtime is its C interface")]

use std::{
    cell::RefCell,
    ffi::{CString, c_void},
    fmt,
    marker::PhantomData,
    ops::{Range, RangeInclusive},
    ptr, slice,
    sync::{Mutex, OnceLock, PoisonError},
};

use ort::{
    AsPointer, Error, ErrorCode, Result,
    operator::{
        BoxedKernel, ComputeContext, Kernel, KernelContext, Operator, OperatorDomain,
        OperatorInput, OperatorOutput, ShapeInferenceContext,
    },
    ortsys, sys,
    value::{SymbolicDimensions, TensorElementType, TensorValueType, ValueType},
};

use crate::{
    Parallel,
    block_diagonal::{BlockDiagonal, block_diagonal},
    causal_conv1d::{CausalConv1d, causal_conv1d},
    local_attention::{AttentionInputs, LocalAttention, LocalAttentionDims, Rings},
    matmul::{self, Activations, Format, MatMul, Packing, Scratch, Then, Weights, matmuls},
    rg_lru::{RgLru, RgLruInputs},
    rms_norm::rms_norm,
    schema::{DOMAIN, DOMAIN_VERSION, Element, OpSchema, Port, SCHEMAS},
    segments::{RawSegments, Segments, SegmentsReader},
    shape::{Letters, RANK_MAX, Shape},
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

fn invalid(schema: &OpSchema, message: impl fmt::Display) -> Error {
    Error::new_with_code(ErrorCode::InvalidArgument, format!("{}: {message}", schema.name))
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

/// Products with packed weights of the same inputs.
struct PackedProduct {
    extents: PackedExtents,
    activations: Activations,
    form: Form,
}

/// Which products, and what they become.
#[derive(Clone, Copy)]
enum Form {
    /// One, followed by something.
    One(Then<'static>),
    /// Two of a norm, the first through GELU.
    Pair { epsilon: f32 },
    /// Queries, keys and values of a norm.
    Qkv { epsilon: f32, head_dim: usize },
    /// Two of a norm, of which one gates the other.
    Gated { epsilon: f32 },
    /// Two that become a recurrence's gates.
    Gates,
}

/// Memory that products need while they run.
#[derive(Default)]
struct Desk {
    /// Inputs or results that no one else needs to see.
    floats: Vec<f32>,
    scratch: Scratch,
}

thread_local! {
    /// Nodes run one after the other, so that all of a session share one.
    static DESK: RefCell<Desk> = RefCell::default();
}

/// What the attributes say of packed weights.
#[derive(Clone, Copy)]
struct PackedExtents {
    format: Format,
    /// Of all groups.
    inputs: usize,
    /// Of all groups.
    outputs: usize,
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
            Self::Packed(PackedProduct { extents, form, .. })
            | Self::PackedRgLru(PackedProduct { extents, form, .. }, _) => {
                set('D', extents.inputs);
                set('R', extents.outputs);
                if let Form::Qkv { head_dim, .. } = *form {
                    set('d', head_dim);
                }
            }
            Self::PackedGather { extents, .. } => {
                set('D', extents.inputs);
                set('R', extents.outputs);
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

impl PackedProduct {
    fn new(schema: &OpSchema, context: &KernelContext<'_>) -> Result<Self> {
        let extents = PackedExtents::new(schema, context)?;
        let activations = match (extent(context, "activation_bits")?, extents.format) {
            (32, _) => Activations::F32,
            (8, Format::Q8 | Format::Q4) => Activations::I8,
            (found, _) => {
                return Err(Error::new(format!(
                    "activation_bits is {found}; 32 is supported, and 8 with weights of 8 or 4"
                )));
            }
        };
        let epsilon = || context.get("epsilon").ok_or_else(|| missing("epsilon"));
        let form = match schema.name {
            "PackedMatMul" => Form::One(follows(context)?),
            "PackedPair" => Form::Pair { epsilon: epsilon()? },
            "PackedQkv" => {
                let head_dim = extent(context, "head_dim")?;
                if head_dim == 0 {
                    return Err(Error::new("head_dim must be at least 1"));
                }
                Form::Qkv { epsilon: epsilon()?, head_dim }
            }
            "PackedGated" => Form::Gated { epsilon: epsilon()? },
            _ => Form::Gates,
        };
        Ok(Self { extents, activations, form })
    }

    fn compute(&self, call: &mut Call<'_>, threads: &IntraOp) -> Result<()> {
        DESK.with_borrow_mut(|desk| self.compute_at(desk, call, threads))
    }

    fn compute_at(&self, desk: &mut Desk, call: &mut Call<'_>, threads: &IntraOp) -> Result<()> {
        let packing = self.extents.packing(call, 'P')?;
        match self.form {
            Form::One(then) => {
                let mut product = self.product(call, packing, "weight", then);
                product.weights.bias = call.optional_input("bias");
                if let Some(residual) = call.optional_input("residual") {
                    product.then = self.plus(call.signature.schema, residual)?;
                }
                let (x, y) = (call.input("x"), call.output("y")?);
                matmuls([product], x, [y], &mut desk.scratch, threads);
            }
            Form::Pair { epsilon } => {
                let mut products = [("first", Then::Gelu), ("second", Then::Nothing)]
                    .map(|(weight, then)| self.product(call, packing, weight, then));
                products[0].weights.bias = Some(call.input("first_bias"));
                products[1].weights.bias = Some(call.input("second_bias"));
                let ys = [call.output("y")?, call.output("u")?];
                desk.matmuls(call, epsilon, products, ys, threads);
            }
            Form::Qkv { epsilon, head_dim } => {
                let narrow = PackedExtents { outputs: head_dim, ..self.extents };
                let narrow = narrow.packing(call, 'U')?;
                let products = [("q_weight", packing), ("k_weight", narrow), ("v_weight", narrow)]
                    .map(|(weight, packing)| self.product(call, packing, weight, Then::Nothing));
                let ys = [call.output("q")?, call.output("k")?, call.output("v")?];
                desk.matmuls(call, epsilon, products, ys, threads);
            }
            Form::Gates => unreachable!("they are no operator of their own"),
            Form::Gated { epsilon } => {
                let up = Weights { packed: call.input("up"), bias: Some(call.input("up_bias")) };
                let mut product = self.product(call, packing, "gate", Then::GeluTimes(up));
                product.weights.bias = Some(call.input("gate_bias"));
                let ys = [call.output("y")?];
                desk.matmuls(call, epsilon, [product], ys, threads);
            }
        }
        Ok(())
    }

    /// A product with one of the weights, without a bias.
    fn product<'c>(
        &self,
        call: &Call<'c>,
        packing: Packing,
        weight: &str,
        then: Then<'c>,
    ) -> MatMul<'c> {
        let weights = Weights { packed: call.input(weight), bias: None };
        MatMul { packing, weights, then, activations: self.activations }
    }

    /// What a recurrence takes, its gates among it.
    fn rg_lru_inputs<'c>(
        &self,
        desk: &'c mut Desk,
        call: &Call<'c>,
        packing: Packing,
        threads: &IntraOp,
    ) -> RgLruInputs<'c> {
        let mut products = ["a_weight", "x_weight"]
            .map(|weight| self.product(call, packing, weight, Then::Nothing));
        products[0].weights.bias = Some(call.input("a_bias"));
        products[1].weights.bias = Some(call.input("x_bias"));
        let x: &[f32] = call.input("x");
        desk.floats.resize(desk.floats.len().max(2 * x.len()), 0.0);
        let (gate_a, gate_x) = desk.floats[..2 * x.len()].split_at_mut(x.len());
        matmuls(products, x, [&mut *gate_a, &mut *gate_x], &mut desk.scratch, threads);
        RgLruInputs { x, gate_a, gate_x, times: Some(call.input("times")) }
    }

    /// What adds `residual`.
    fn plus<'a>(&self, schema: &OpSchema, residual: &'a [f32]) -> Result<Then<'a>> {
        match self.form {
            Form::One(Then::Nothing) => Ok(Then::Plus(residual)),
            _ => Err(invalid(schema, "residual is added to what has neither gelu nor soft_cap")),
        }
    }
}

impl Desk {
    /// Products of the norm of `x`.
    fn matmuls<const N: usize>(
        &mut self,
        call: &Call<'_>,
        epsilon: f32,
        products: [MatMul<'_>; N],
        ys: [&mut [f32]; N],
        threads: &IntraOp,
    ) {
        let x: &[f32] = call.input("x");
        self.floats.resize(self.floats.len().max(x.len()), 0.0);
        let normed = &mut self.floats[..x.len()];
        rms_norm(epsilon, call.input("norm"), x, normed, threads);
        matmuls(products, normed, ys, &mut self.scratch, threads);
    }
}

/// What the attributes say of what follows a product.
fn follows(context: &KernelContext<'_>) -> Result<Then<'static>> {
    let gelu = extent(context, "gelu")?;
    let soft_cap: f32 = context.get("soft_cap").ok_or_else(|| missing("soft_cap"))?;
    match gelu {
        0 if soft_cap == 0.0 => Ok(Then::Nothing),
        0 if soft_cap.is_finite() && 0.0 < soft_cap => Ok(Then::SoftCap(soft_cap)),
        1 if soft_cap == 0.0 => Ok(Then::Gelu),
        _ => Err(Error::new(format!(
            "gelu is {gelu} and soft_cap {soft_cap}; gelu is 0 or 1, soft_cap finite and not negative, \
             and not both are set"
        ))),
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

impl PackedExtents {
    /// Reads the attributes, and looks for scales that would spoil every result: weights are part of a
    /// file that anybody may have written.
    fn new(schema: &OpSchema, context: &KernelContext<'_>) -> Result<Self> {
        let extents = Self::read(context)?;
        for (idx, port) in schema.inputs.iter().enumerate() {
            if port.element != Element::U8 {
                continue;
            }
            let Ok(weights) = context.constant_input::<TensorValueType<u8>>(idx) else { continue };
            let (shape, packed) = weights.extract_tensor();
            let groups = shape.first().and_then(|it| usize::try_from(*it).ok());
            let outputs = match port.shape.contains('U') {
                true => extent(context, "head_dim")?,
                false => extents.outputs,
            };
            // What does not fit is refused when it is met.
            let packing = groups.and_then(|groups| Self { outputs, ..extents }.in_groups(groups));
            let packing = packing.filter(|it| it.shape().iter().product::<usize>() == packed.len());
            if let Some(wrong) = packing.and_then(|it| it.wrong_scale(packed)) {
                return Err(Error::new(format!("{}: {wrong}", port.name)));
            }
        }
        Ok(extents)
    }

    fn read(context: &KernelContext<'_>) -> Result<Self> {
        let bits = extent(context, "bits")?;
        let format = Format::ALL.into_iter().find(|it| it.bits() == bits);
        let format =
            format.ok_or_else(|| Error::new(format!("bits is {bits}; weights have 16, 8 or 4")))?;
        let (inputs, outputs) = (extent(context, "inputs")?, extent(context, "outputs")?);
        if inputs == 0 || outputs == 0 {
            return Err(Error::new("inputs and outputs must be at least 1"));
        }
        Ok(Self { format, inputs, outputs })
    }

    /// How weights of `groups` groups lie, if they can be as many.
    fn in_groups(self, groups: usize) -> Option<Packing> {
        let Self { format, inputs, outputs } = self;
        let divides = 0 < groups && inputs.is_multiple_of(groups) && outputs.is_multiple_of(groups);
        divides.then(|| Packing {
            format,
            groups,
            inputs: inputs / groups,
            outputs: outputs / groups,
        })
    }

    /// How the weights of `call` lie whose panels are the letter `panels`.
    fn packing(self, call: &Call<'_>, panels: char) -> Result<Packing> {
        let Self { inputs, outputs, .. } = self;
        let found = ['G', panels, 'Y'].map(|letter| call.extent(letter));
        let groups = found[0];
        let packing = self.in_groups(groups);
        let schema = call.signature.schema;
        match packing {
            Some(it) if it.shape() == found && it.inputs <= matmul::INPUTS_MAX => Ok(it),
            Some(it) if it.shape() == found => {
                let (found, max) = (it.inputs, matmul::INPUTS_MAX);
                Err(invalid(schema, format_args!("{found} inputs; at most {max} are supported")))
            }
            Some(it) => {
                let expected = it.shape();
                let message = format_args!("weight has shape {found:?}; {expected:?} is needed");
                Err(invalid(schema, message))
            }
            None => {
                let message = format_args!(
                    "weight has {groups} groups, which do not divide {inputs} inputs and {outputs} outputs"
                );
                Err(invalid(schema, message))
            }
        }
    }
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

/// A schema with its shapes parsed and its attributes known.
struct Signature {
    schema: &'static OpSchema,
    letters: Letters,
    inputs: Vec<Shape>,
    outputs: Vec<Shape>,
}

impl Node {
    fn new(schema: &'static OpSchema, kind: Kind) -> Self {
        let parse = |ports: &[Port]| ports.iter().map(|port| Shape::parse(port.shape)).collect();
        let (inputs, outputs) = (parse(schema.inputs), parse(schema.outputs));
        let signature = Signature { schema, letters: kind.letters(), inputs, outputs };
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
                let packing = gates.extents.packing(&call, 'P')?;
                let (y, state) = (call.output("y")?, call.state("state", "state_next")?);
                DESK.with_borrow_mut(|desk| {
                    let inputs = gates.rg_lru_inputs(desk, &call, packing, &threads);
                    recurrence.of(&call).run(&segments, inputs, state, y, &threads);
                });
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
            Kind::PackedGather { extents, rows } => {
                let packing = extents.packing(&call, 'P')?;
                if packing.groups != 1 {
                    let message =
                        format_args!("weight has {} groups; a table has 1", packing.groups);
                    return Err(invalid(call.signature.schema, message));
                }
                read_rows(call.input("tokens"), packing.outputs, rows)
                    .map_err(|e| invalid(call.signature.schema, e.message()))?;
                matmul::gather(packing, call.input("weight"), rows, call.output("y")?, &threads);
            }
        }
        threads.outcome()
    }
}

/// The rows of a table of `outputs` rows that `tokens` name.
fn read_rows(tokens: &[i64], outputs: usize, rows: &mut Vec<usize>) -> Result<()> {
    rows.clear();
    for (at, &token) in tokens.iter().enumerate() {
        let row = usize::try_from(token).ok().filter(|&row| row < outputs).ok_or_else(|| {
            Error::new(format!("token {at} is {token}; the table has {outputs} rows"))
        })?;
        rows.push(row);
    }
    Ok(())
}

/// ONNX Runtime's own threads.
struct IntraOp {
    context: *const sys::OrtKernelContext,
    failure: Mutex<Option<Error>>,
}

// SAFETY: the context is only used by the thread that computes, in `for_each`, which ONNX Runtime
// allows; the failure is behind a lock.
unsafe impl Sync for IntraOp {}

impl IntraOp {
    fn new(context: *const sys::OrtKernelContext) -> Self {
        Self { context, failure: Mutex::new(None) }
    }

    /// Whether every tile ran.
    fn outcome(self) -> Result<()> {
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
struct Call<'a> {
    signature: &'a Signature,
    context: *mut sys::OrtKernelContext,
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
    fn read(signature: &'a Signature, context: &'a ComputeContext) -> Result<Self> {
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
    fn input<T: Tensor>(&self, name: &str) -> &'a [T] {
        let idx = self.input_index(name);
        assert_eq!(self.signature.schema.inputs[idx].element, T::ELEMENT, "type of {name}");
        // SAFETY: ONNX Runtime holds inputs to the types that `SchemaOperator::inputs` states and
        // keeps them alive and unchanged during the call; `output` and `state` give away no memory
        // that an input overlaps; `read_fresh` has looked at bools.
        unsafe { self.inputs[idx].slice() }
    }

    /// The elements of an input that may be left out, unless it is.
    fn optional_input<T: Tensor>(&self, name: &str) -> Option<&'a [T]> {
        let given = !self.inputs[self.input_index(name)].data.is_null();
        given.then(|| self.input(name))
    }

    /// What `letter` stands for.
    fn extent(&self, letter: char) -> usize {
        let value = self.letters.get(letter).expect("a letter of an input's shape");
        usize::try_from(value).expect("extents are not negative")
    }

    fn segments(&self, reader: &mut SegmentsReader) -> Result<Segments<'a>> {
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
    fn output(&mut self, name: &str) -> Result<&'a mut [f32]> {
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
    fn state(&mut self, name: &str, next: &str) -> Result<&'a mut [f32]> {
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
trait Tensor {
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
