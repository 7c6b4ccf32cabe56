//! Products with packed weights as operators: what their attributes say, which products they are, and
//! what is done before and after at once.

use std::cell::RefCell;

use ort::{Error, Result, operator::KernelContext, value::TensorValueType};

use super::{
    call::{Call, IntraOp, invalid},
    extent, missing,
};
use crate::{
    matmul::{self, Activations, Format, MatMul, Packing, Scratch, Then, Weights, matmuls},
    rg_lru::RgLruInputs,
    rms_norm::rms_norm,
    schema::{Element, OpSchema},
};

/// Products with packed weights of the same inputs.
pub(super) struct PackedProduct {
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
pub(super) struct PackedExtents {
    format: Format,
    /// Of all groups.
    inputs: usize,
    /// Of all groups.
    outputs: usize,
}

impl PackedProduct {
    pub(super) fn new(schema: &OpSchema, context: &KernelContext<'_>) -> Result<Self> {
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

    pub(super) fn compute(&self, call: &mut Call<'_>, threads: &IntraOp) -> Result<()> {
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

    /// Computes a recurrence's gates, and runs it on what it takes.
    pub(super) fn gate(
        &self,
        call: &Call<'_>,
        threads: &IntraOp,
        run: impl FnOnce(RgLruInputs<'_>),
    ) -> Result<()> {
        let packing = self.extents.packing(call, 'P')?;
        let mut products = ["a_weight", "x_weight"]
            .map(|weight| self.product(call, packing, weight, Then::Nothing));
        products[0].weights.bias = Some(call.input("a_bias"));
        products[1].weights.bias = Some(call.input("x_bias"));
        let x: &[f32] = call.input("x");
        DESK.with_borrow_mut(|Desk { floats, scratch }| {
            floats.resize(floats.len().max(2 * x.len()), 0.0);
            let (gate_a, gate_x) = floats[..2 * x.len()].split_at_mut(x.len());
            matmuls(products, x, [&mut *gate_a, &mut *gate_x], scratch, threads);
            run(RgLruInputs { x, gate_a, gate_x, times: Some(call.input("times")) });
        });
        Ok(())
    }

    /// What the attributes say about the letters of the shapes.
    pub(super) fn letters(&self) -> Vec<(char, usize)> {
        let mut letters = self.extents.letters().to_vec();
        if let Form::Qkv { head_dim, .. } = self.form {
            letters.push(('d', head_dim));
        }
        letters
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

impl PackedExtents {
    pub(super) fn letters(self) -> [(char, usize); 2] {
        [('D', self.inputs), ('R', self.outputs)]
    }

    /// Reads rows of a table; `rows` is memory for which.
    pub(super) fn gather(
        self,
        call: &mut Call<'_>,
        rows: &mut Vec<usize>,
        threads: &IntraOp,
    ) -> Result<()> {
        let schema = call.signature.schema;
        let packing = self.packing(call, 'P')?;
        if packing.groups != 1 {
            let message = format_args!("weight has {} groups; a table has 1", packing.groups);
            return Err(invalid(schema, message));
        }
        read_rows(call.input("tokens"), packing.outputs, rows)
            .map_err(|e| invalid(schema, e.message()))?;
        matmul::gather(packing, call.input("weight"), rows, call.output("y")?, threads);
        Ok(())
    }

    /// Reads the attributes, and looks for scales that would spoil every result: weights are part of a
    /// file that anybody may have written.
    pub(super) fn new(schema: &OpSchema, context: &KernelContext<'_>) -> Result<Self> {
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
