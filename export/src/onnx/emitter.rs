//! Draws a model as a graph. What each operation becomes is here for the ragged step with our
//! operators; what it becomes in standard operators alone is in [`portable`].

use std::cell::RefCell;

use aerie_models::{
    AttentionDims, Backend, Carry, ModelConfig, ParameterSpec, Path, Precision, TensorSpec,
    backend::{
        Normed, Then, gated_in_parts, gated_rg_lru_in_parts, pair_in_parts, qkv_in_parts,
        then_in_parts,
    },
    decoder,
};
use aerie_ops::{
    matmul::Format,
    schema::{self, OpSchema},
};

use crate::onnx::{
    graph::{Attribute, Dim, Edge, Elements, Graph, Op},
    packed, portable,
    proto::DataType,
};

/// Which operators a graph may use, and so what a step of it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// A ragged step over packed tokens with the operators of the domain `aerie`.
    Ragged,
    /// One token of each session, standard operators only: for runtimes without ours.
    ///
    /// | input | shape | output | shape |
    /// |---|---|---|---|
    /// | `tokens`, `positions` | i64 `[B]` | `logits` | f32 `[B, V]` |
    /// | `fresh` | bool `[B]` | | |
    /// | `state.<path>` | `[B, …]` | `state.<path>.next` | `[B, …]` |
    Portable,
}

/// Draws a step of `config` with matrices stored in `precision`; it says what they are computed with.
///
/// # Panics
/// If `target` has no operators for `precision`: see [`Target::has`].
pub fn emit(config: &ModelConfig, target: Target, precision: Precision) -> Graph {
    assert!(target.has(precision), "{target:?} in {precision:?}");
    let emitter = Emitter::new(target, precision);
    let tokens = emitter.step.tokens.clone();
    let layout = Carry::layout(config);
    let carry = layout.map(|spec| {
        let name = state_name(spec);
        emitter.graph.borrow_mut().input(&name, DataType::F32, &emitter.state_dims(spec))
    });
    let (logits, carry) = decoder::step(config, &emitter, &tokens, &carry);

    let vocab = Dim::Fixed(config.vocab.into());
    emitter.output(&logits, "logits", &[Dim::Symbol("B"), vocab]);
    for (edge, spec) in carry.fields().zip(layout.fields()) {
        emitter.output(edge, &format!("{}.next", state_name(spec)), &emitter.state_dims(spec));
    }
    emitter.graph.into_inner()
}

impl Target {
    /// Whether there are operators for weights in `precision`.
    pub fn has(self, precision: Precision) -> bool {
        self == Self::Ragged || packed::format(precision).is_none()
    }
}

/// Place of the nodes that choose each segment's last row.
pub(crate) const LAST_ROWS: &str = "last_rows";

/// What the graph calls the input that holds a field of the carry.
pub fn state_name(spec: &TensorSpec) -> String {
    format!("state.{}", spec.path)
}

/// Reads a model as a graph.
#[derive(Debug)]
pub(crate) struct Emitter {
    target: Target,
    precision: Precision,
    /// The inputs that describe the step.
    pub(crate) step: Step,
    graph: RefCell<Graph>,
}

/// Inputs that describe a step.
#[derive(Debug)]
pub(crate) struct Step {
    tokens: Edge,
    pub(crate) positions: Edge,
    pub(crate) fresh: Edge,
    /// How tokens are packed, where there may be more than one of a session.
    packing: Option<Packing>,
}

#[derive(Debug)]
struct Packing {
    segments: Edge,
    lanes: Edge,
}

impl Emitter {
    fn new(target: Target, precision: Precision) -> Self {
        let mut graph = Graph::default();
        let mut input = |name, element, letter| graph.input(name, element, &[Dim::Symbol(letter)]);
        let step = match target {
            Target::Ragged => {
                let tokens = input("tokens", DataType::I64, "N");
                let packing = Packing {
                    segments: input("segments", DataType::I32, "S"),
                    lanes: input("lanes", DataType::I32, "B"),
                };
                let positions = input("positions", DataType::I64, "B");
                let fresh = input("fresh", DataType::Bool, "B");
                Step { tokens, positions, fresh, packing: Some(packing) }
            }
            Target::Portable => Step {
                tokens: input("tokens", DataType::I64, "B"),
                positions: input("positions", DataType::I64, "B"),
                fresh: input("fresh", DataType::Bool, "B"),
                packing: None,
            },
        };
        Self { target, precision, step, graph: RefCell::new(graph) }
    }

    /// Extents of a state tensor: a row for each lane, or for each session of the step.
    fn state_dims(&self, spec: &TensorSpec) -> Vec<Dim> {
        let rows = Dim::Symbol(if self.target == Target::Ragged { "L" } else { "B" });
        [rows].into_iter().chain(spec.shape.iter().map(|&extent| Dim::Fixed(extent))).collect()
    }

    fn output(&self, edge: &Edge, name: &str, dims: &[Dim]) {
        self.graph.borrow_mut().output(edge, name, DataType::F32, dims);
    }

    /// Adds a node of one output.
    pub(crate) fn op(&self, place: &str, op: Op, inputs: &[&Edge]) -> Edge {
        let [edge] = self.graph.borrow_mut().node(place, op, inputs, ["y"]);
        edge
    }

    /// Adds a node of a standard operator without attributes.
    pub(crate) fn standard(&self, place: &str, name: &'static str, inputs: &[&Edge]) -> Edge {
        self.op(place, Op::standard(name), inputs)
    }

    /// Converts the elements of `x`.
    pub(crate) fn cast(&self, place: &str, x: &Edge, element: DataType) -> Edge {
        let to = Attribute::Int(i32::from(element).into());
        self.op(place, Op::standard("Cast").with("to", to), &[x])
    }

    /// A constant vector of f32.
    pub(crate) fn f32s(&self, values: &[f32]) -> Edge {
        let bytes = values.iter().flat_map(|it| it.to_le_bytes()).collect();
        self.constant("f32", DataType::F32, values, bytes)
    }

    /// A constant vector of f64.
    pub(crate) fn f64s(&self, values: &[f64]) -> Edge {
        let bytes = values.iter().flat_map(|it| it.to_le_bytes()).collect();
        self.constant("f64", DataType::F64, values, bytes)
    }

    /// A constant vector of i32.
    fn i32s(&self, values: &[i32]) -> Edge {
        let bytes = values.iter().flat_map(|it| it.to_le_bytes()).collect();
        self.constant("i32", DataType::I32, values, bytes)
    }

    /// A constant vector of i64.
    pub(crate) fn i64s(&self, values: &[i64]) -> Edge {
        let bytes = values.iter().flat_map(|it| it.to_le_bytes()).collect();
        self.constant("i64", DataType::I64, values, bytes)
    }

    /// A constant vector, called after its elements, or after how it starts and a hash of it all.
    fn constant<T: std::fmt::Display>(
        &self,
        kind: &str,
        element: DataType,
        values: &[T],
        bytes: Vec<u8>,
    ) -> Edge {
        const SHOWN_MAX: usize = 4;
        let shown: Vec<_> = values.iter().take(SHOWN_MAX).map(ToString::to_string).collect();
        let mut name = format!("constant.{kind}.[{}", shown.join(","));
        if SHOWN_MAX < values.len() {
            let hash = blake3::hash(&bytes).to_hex();
            name.push_str(&format!(",... {} {}", values.len(), &hash[..8]));
        }
        name.push(']');
        let shape = vec![values.len() as u64];
        self.graph.borrow_mut().constant(&name, element, shape, Elements::Here(bytes))
    }

    /// Adds a node of our domain; the table of schemas says whether it is well made.
    fn kernel<const OUTPUTS: usize>(
        &self,
        schema: &OpSchema,
        place: &str,
        inputs: &[&Edge],
        attributes: Vec<(&'static str, Attribute)>,
    ) -> [Edge; OUTPUTS] {
        let given = attributes.iter().map(|(name, _)| *name);
        assert!(
            given.eq(schema.attributes.iter().map(|it| it.name)),
            "{}: attributes",
            schema.name
        );
        let required = schema.inputs.iter().filter(|it| !it.optional).count();
        let count = required..=schema.inputs.len();
        assert!(count.contains(&inputs.len()), "{}: inputs", schema.name);
        assert_eq!(OUTPUTS, schema.outputs.len(), "{}: outputs", schema.name);
        let ports = std::array::from_fn(|port| schema.outputs[port].name);
        let op = Op { name: schema.name, domain: schema::DOMAIN, attributes };
        let mut graph = self.graph.borrow_mut();
        graph.uses_op(schema.name, schema.version);
        graph.node(place, op, inputs, ports)
    }

    /// A product with packed weights, if they are to be packed.
    fn packed_product(
        &self,
        x: &Edge,
        weight: &Edge,
        bias: Option<&Edge>,
        then: Option<Then>,
        residual: Option<&Edge>,
    ) -> Option<Edge> {
        let mut attributes = self.packed_attributes(&[weight])?;
        let (gelu, soft_cap) = match then {
            None => (0, 0.0),
            Some(Then::Gelu) => (1, 0.0),
            Some(Then::SoftCap(cap)) => (0, cap),
        };
        attributes.push(("gelu", Attribute::Int(gelu)));
        attributes.push(("soft_cap", Attribute::Float(soft_cap)));
        assert!(residual.is_none() || bias.is_some(), "what may be left out comes last");
        let inputs: Vec<&Edge> = [x, weight].into_iter().chain(bias).chain(residual).collect();
        let [y] = self.kernel(&schema::PACKED_MATMUL, weight.place(), &inputs, attributes);
        Some(y)
    }

    /// Has the weights of a product packed, if they are to be, all in one way; gives the attributes
    /// that say how.
    fn packed_attributes(&self, weights: &[&Edge]) -> Option<Vec<(&'static str, Attribute)>> {
        let format = packed::format(self.precision)?;
        let packed = weights.iter().map(|weight| self.pack(format, weight));
        let mut attributes = packed.last()?;
        let activation_bits = if format == Format::Bf16 { 32 } else { 8 };
        attributes.push(("activation_bits", Attribute::Int(activation_bits)));
        Some(attributes)
    }

    /// Has `weight` packed; gives the attributes that say how.
    fn pack(&self, format: Format, weight: &Edge) -> Vec<(&'static str, Attribute)> {
        let how =
            |spec: &ParameterSpec| packed::packing(format, spec).expect("a product has a matrix");
        let it = self.graph.borrow_mut().pack(weight, how);
        let int = |value: usize| Attribute::Int(value.try_into().expect("extents are below 2^32"));
        vec![
            ("bits", int(format.bits())),
            ("inputs", int(it.groups * it.inputs)),
            ("outputs", int(it.groups * it.outputs)),
        ]
    }

    /// Adds a node that joins two branches; it belongs to what holds the second.
    fn join(&self, name: &'static str, a: &Edge, b: &Edge) -> Edge {
        self.standard(parent(b.place()), name, &[a, b])
    }
}

/// The place that holds `place`.
pub(crate) fn parent(place: &str) -> &str {
    place.rsplit_once('.').map_or("", |(parent, _)| parent)
}

impl Backend for Emitter {
    type Tensor = Edge;

    fn parameter(&self, path: &Path, spec: ParameterSpec) -> Edge {
        // Vectors are few and steer everything (norms, the recurrence): they stay as they are.
        if self.precision == Precision::F16 && 1 < spec.shape.len() {
            let cast = format!("{path}/Cast");
            if let Some(edge) = self.graph.borrow().edge(&cast) {
                return edge;
            }
            let stored = self.graph.borrow_mut().parameter(path.as_str(), DataType::F16, spec);
            return self.cast(path.as_str(), &stored, DataType::F32);
        }
        self.graph.borrow_mut().parameter(path.as_str(), DataType::F32, spec)
    }

    fn gather(&self, table: &Edge, tokens: &Edge) -> Edge {
        if let Some(format) = packed::format(self.precision) {
            let attributes = self.pack(format, table);
            let inputs = [table, tokens];
            let [y] = self.kernel(&schema::PACKED_GATHER, table.place(), &inputs, attributes);
            return y;
        }
        self.standard(table.place(), "Gather", &[table, tokens])
    }

    fn linear(&self, x: &Edge, weight: &Edge, bias: Option<&Edge>) -> Edge {
        if let Some(y) = self.packed_product(x, weight, bias, None, None) {
            return y;
        }
        // As fast as MatMul on the transpose, and the weight stays as the checkpoint has it: so one
        // table serves both ends of a tied embedding.
        let op = Op::standard("Gemm").with("transB", Attribute::Int(1));
        let inputs: Vec<&Edge> = [x, weight].into_iter().chain(bias).collect();
        self.op(weight.place(), op, &inputs)
    }

    fn linear_then(&self, x: &Edge, weight: &Edge, bias: Option<&Edge>, then: Then) -> Edge {
        self.packed_product(x, weight, bias, Some(then), None)
            .unwrap_or_else(|| then_in_parts(self, &self.linear(x, weight, bias), then))
    }

    fn linear_plus(&self, residual: &Edge, x: &Edge, [weight, bias]: [&Edge; 2]) -> Edge {
        self.packed_product(x, weight, Some(bias), None, Some(residual))
            .unwrap_or_else(|| self.add(residual, &self.linear(x, weight, Some(bias))))
    }

    fn linear_pair(
        &self,
        z: &Normed<Edge>,
        [gelu_weight, gelu_bias]: [&Edge; 2],
        [weight, bias]: [&Edge; 2],
    ) -> [Edge; 2] {
        let Some(mut attributes) = self.packed_attributes(&[gelu_weight, weight]) else {
            return pair_in_parts(self, z, [gelu_weight, gelu_bias], [weight, bias]);
        };
        attributes.push(("epsilon", Attribute::Float(z.epsilon)));
        let inputs = [&z.x, &z.weight, gelu_weight, weight, gelu_bias, bias];
        self.kernel(&schema::PACKED_PAIR, parent(weight.place()), &inputs, attributes)
    }

    fn qkv(&self, z: &Normed<Edge>, [q, k, v]: [&Edge; 3]) -> [Edge; 3] {
        let (Some(mut attributes), Some(narrow)) =
            (self.packed_attributes(&[q]), self.packed_attributes(&[k, v]))
        else {
            return qkv_in_parts(self, z, [q, k, v]);
        };
        let outputs = narrow.into_iter().find(|(name, _)| *name == "outputs");
        let (_, head_dim) = outputs.expect("attributes say how many outputs there are");
        attributes.extend([("head_dim", head_dim), ("epsilon", Attribute::Float(z.epsilon))]);
        let inputs = [&z.x, &z.weight, q, k, v];
        self.kernel(&schema::PACKED_QKV, parent(q.place()), &inputs, attributes)
    }

    fn gated_linear(
        &self,
        z: &Normed<Edge>,
        [gate, gate_bias]: [&Edge; 2],
        [up, up_bias]: [&Edge; 2],
    ) -> Edge {
        let Some(mut attributes) = self.packed_attributes(&[gate, up]) else {
            return gated_in_parts(self, z, [gate, gate_bias], [up, up_bias]);
        };
        attributes.push(("epsilon", Attribute::Float(z.epsilon)));
        let inputs = [&z.x, &z.weight, gate, up, gate_bias, up_bias];
        let place = parent(parent(up.place()));
        let [y] = self.kernel(&schema::PACKED_GATED, place, &inputs, attributes);
        y
    }

    fn block_diagonal(&self, x: &Edge, weight: &Edge, bias: &Edge) -> Edge {
        if let Some(y) = self.packed_product(x, weight, Some(bias), None, None) {
            return y;
        }
        match self.target {
            Target::Ragged => {
                let inputs = [x, weight, bias];
                let [y] = self.kernel(&schema::BLOCK_DIAGONAL, weight.place(), &inputs, vec![]);
                y
            }
            Target::Portable => portable::block_diagonal(self, x, weight, bias),
        }
    }

    fn add(&self, a: &Edge, b: &Edge) -> Edge {
        self.join("Add", a, b)
    }

    fn mul(&self, a: &Edge, b: &Edge) -> Edge {
        self.join("Mul", a, b)
    }

    fn scale(&self, x: &Edge, factor: f32) -> Edge {
        self.standard(x.place(), "Mul", &[x, &self.f32s(&[factor])])
    }

    fn gelu(&self, x: &Edge) -> Edge {
        let op = Op::standard("Gelu").with("approximate", Attribute::Text("tanh"));
        self.op(x.place(), op, &[x])
    }

    fn tanh(&self, x: &Edge) -> Edge {
        self.standard(x.place(), "Tanh", &[x])
    }

    fn rms_norm(&self, x: &Edge, weight: &Edge, epsilon: f32) -> Edge {
        match self.target {
            Target::Ragged => {
                let attributes = vec![("epsilon", Attribute::Float(epsilon))];
                let [y] = self.kernel(&schema::RMS_NORM, weight.place(), &[x, weight], attributes);
                y
            }
            Target::Portable => portable::rms_norm(self, x, weight, epsilon),
        }
    }

    fn last_rows(&self, x: &Edge) -> Edge {
        let Some(Packing { segments, .. }) = &self.step.packing else {
            return x.clone();
        };
        let place = LAST_ROWS;
        let bounds = [&self.i64s(&[1]), &self.i64s(&[i64::MAX])];
        let ends = self.standard(place, "Slice", &[segments, bounds[0], bounds[1]]);
        let one = self.i32s(&[1]);
        let rows = self.standard(place, "Sub", &[&ends, &one]);
        self.standard(place, "Gather", &[x, &rows])
    }

    fn causal_conv1d(&self, x: &Edge, weight: &Edge, bias: &Edge, state: &Edge) -> (Edge, Edge) {
        let Some(Packing { segments, lanes }) = &self.step.packing else {
            return portable::causal_conv1d(self, x, weight, bias, state);
        };
        let inputs = [x, weight, bias, segments, lanes, &self.step.fresh, state];
        let [y, next] = self.kernel(&schema::CAUSAL_CONV1D, weight.place(), &inputs, vec![]);
        (y, next)
    }

    fn rg_lru(
        &self,
        x: &Edge,
        gate_a: &Edge,
        gate_x: &Edge,
        p: &Edge,
        state: &Edge,
    ) -> (Edge, Edge) {
        let Some(Packing { segments, lanes }) = &self.step.packing else {
            return portable::rg_lru(self, x, [gate_a, gate_x], p, state);
        };
        let inputs = [x, gate_a, gate_x, p, segments, lanes, &self.step.fresh, state];
        let [y, next] = self.kernel(&schema::RG_LRU, parent(p.place()), &inputs, vec![]);
        (y, next)
    }

    fn gated_rg_lru(
        &self,
        x: &Edge,
        gates: [[&Edge; 2]; 2],
        p: &Edge,
        times: &Edge,
        state: &Edge,
    ) -> (Edge, Edge) {
        let [[a, a_bias], [i, i_bias]] = gates;
        let (Some(Packing { segments, lanes }), Some(attributes)) =
            (&self.step.packing, self.packed_attributes(&[a, i]))
        else {
            return gated_rg_lru_in_parts(self, x, gates, p, times, state);
        };
        let steps = [segments, lanes, &self.step.fresh];
        let inputs = [&[x, a, i, a_bias, i_bias, p, times][..], &steps, &[state]].concat();
        let place = parent(p.place());
        let [y, next] = self.kernel(&schema::PACKED_RG_LRU, place, &inputs, attributes);
        (y, next)
    }

    fn local_attention(
        &self,
        dims: AttentionDims,
        [q, k, v]: [&Edge; 3],
        keys: &Edge,
        values: &Edge,
    ) -> (Edge, [Edge; 2]) {
        let Some(Packing { segments, lanes }) = &self.step.packing else {
            return portable::local_attention(self, dims, [q, k, v], [keys, values]);
        };
        let Step { positions, fresh, .. } = &self.step;
        let inputs = [q, k, v, segments, lanes, positions, fresh, keys, values];
        let AttentionDims { heads, head_dim, window, rotary_dims } = dims;
        let int = |value: u32| Attribute::Int(value.into());
        let attributes = vec![
            ("heads", int(heads)),
            ("head_dim", int(head_dim)),
            ("window", int(window)),
            ("rotary_dims", int(rotary_dims)),
        ];
        let place = parent(q.place());
        let [y, keys, values] = self.kernel(&schema::LOCAL_ATTENTION, place, &inputs, attributes);
        (y, [keys, values])
    }
}
