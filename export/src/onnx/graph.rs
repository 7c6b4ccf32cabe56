//! A graph in the making: edges, nodes and the constants that they read. Knows the format, not the
//! models; parameters are noted here and get their elements when the graph is written.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use aerie_models::ParameterSpec;
use aerie_ops::matmul::{Order, Packing};

use crate::onnx::{
    fold::Fold,
    proto::{self, AttributeKind, DataType, Dimension, Extent, Shape, TensorType, Type, ValueInfo},
};

/// What flows between nodes; cheap to clone.
///
/// A node's edges are called `<place>/<operator>`, so that a profile reads like the model.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Edge(Rc<str>);

/// A graph whose parameters have no elements yet.
#[derive(Debug, Default)]
pub struct Graph {
    nodes: Vec<proto::Node>,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
    /// In the order of their first use.
    constants: Vec<Constant>,
    /// Index into `constants` by name.
    constant_indices: HashMap<String, usize>,
    /// Nodes that have asked for a name, by the name.
    namesakes: HashMap<String, u32>,
    /// Version of each operator used that is not the standard's.
    ops: BTreeMap<&'static str, u32>,
}

/// An initializer to be.
#[derive(Clone, Debug)]
pub(crate) struct Constant {
    pub(crate) name: String,
    pub(crate) element: DataType,
    pub(crate) shape: Vec<u64>,
    pub(crate) elements: Elements,
}

/// Where the elements of a [`Constant`] come from.
#[derive(Clone, Debug)]
pub(crate) enum Elements {
    /// Little-endian bytes.
    Here(Vec<u8>),
    /// A parameter of the model: asked for, by the constant's name, when the graph is written.
    Parameter(ParameterSpec),
    /// What several parameters and factors come to, when the graph is written.
    Folded(Fold),
    /// A parameter that is packed for our products when the graph is written.
    Packed(ParameterSpec, Packing, Order),
}

/// An operator with its attributes.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) name: &'static str,
    /// Empty for the standard's.
    pub(crate) domain: &'static str,
    pub(crate) attributes: Vec<(&'static str, Attribute)>,
}

#[derive(Clone, Debug)]
pub(crate) enum Attribute {
    Float(f32),
    Int(i64),
    Text(&'static str),
    Ints(Cow<'static, [i64]>),
}

/// Extent of one axis of an input or output.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dim {
    Fixed(u64),
    /// A letter of the step graph; equal letters are equal extents.
    Symbol(&'static str),
}

impl Edge {
    pub(crate) fn name(&self) -> &str {
        &self.0
    }

    /// The place in the walk that the edge comes from: its name without operator and port, and
    /// for a parameter without `weight`.
    pub(crate) fn place(&self) -> &str {
        let name = self.0.split('/').next().expect("a split has a first part");
        [".weight", "_weight"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
    }
}

impl Graph {
    /// Nodes in the order in which they were added.
    pub fn nodes(&self) -> &[proto::Node] {
        &self.nodes
    }

    /// Version of each operator used that is not the standard's.
    pub fn ops(&self) -> &BTreeMap<&'static str, u32> {
        &self.ops
    }

    pub(crate) fn constants(&self) -> &[Constant] {
        &self.constants
    }

    /// The graph as the format has it, with `initializer` for its constants.
    pub(crate) fn into_proto(self, name: String, initializer: Vec<proto::Tensor>) -> proto::Graph {
        let Self { nodes: node, inputs: input, outputs: output, .. } = self;
        proto::Graph { node, name, initializer, input, output }
    }

    /// Adds an input of the graph.
    pub(crate) fn input(&mut self, name: &str, element: DataType, dims: &[Dim]) -> Edge {
        self.inputs.push(value_info(name, element, dims));
        Edge(name.into())
    }

    /// Makes `edge` an output of the graph called `name`.
    pub(crate) fn output(&mut self, edge: &Edge, name: &str, element: DataType, dims: &[Dim]) {
        for node in &mut self.nodes {
            let ends = node.input.iter_mut().chain(&mut node.output);
            ends.filter(|it| ***it == *edge.0).for_each(|it| name.clone_into(it));
        }
        self.outputs.push(value_info(name, element, dims));
    }

    /// A parameter of the model, stored as `element`.
    pub(crate) fn parameter(&mut self, name: &str, element: DataType, spec: ParameterSpec) -> Edge {
        let shape = spec.shape.clone();
        self.constant(name, element, shape, Elements::Parameter(spec))
    }

    /// Has the parameter that `edge` is packed for our products; says how it lies. A parameter that
    /// is packed already stays as it is.
    pub(crate) fn pack(
        &mut self,
        edge: &Edge,
        how: impl FnOnce(&ParameterSpec) -> (Packing, Order),
    ) -> Packing {
        let constant = &mut self.constants[self.constant_indices[edge.name()]];
        let spec = match &constant.elements {
            Elements::Packed(_, packing, _) => return *packing,
            Elements::Parameter(spec) => spec.clone(),
            Elements::Here(_) | Elements::Folded(_) => {
                panic!("{} is no parameter", edge.name())
            }
        };
        let (packing, order) = how(&spec);
        constant.element = DataType::U8;
        constant.shape = packing.shape().map(|extent| extent as u64).to_vec();
        constant.elements = Elements::Packed(spec, packing, order);
        packing
    }

    /// A constant of the graph; one that exists by this name is taken to be the same.
    pub(crate) fn constant(
        &mut self,
        name: &str,
        element: DataType,
        shape: Vec<u64>,
        elements: Elements,
    ) -> Edge {
        if !self.constant_indices.contains_key(name) {
            self.constant_indices.insert(name.to_owned(), self.constants.len());
            self.constants.push(Constant { name: name.to_owned(), element, shape, elements });
        }
        Edge(name.into())
    }

    /// The edge that a node called `name` has made, if there is one.
    pub(crate) fn edge(&self, name: &str) -> Option<Edge> {
        self.namesakes.contains_key(name).then(|| Edge(name.into()))
    }

    /// Notes that an operator of our domain is used.
    pub(crate) fn uses_op(&mut self, name: &'static str, version: u32) {
        self.ops.insert(name, version);
    }

    /// Adds a node at `place`; its outputs are called after `ports`, or after the node where there
    /// is but one.
    pub(crate) fn node<const OUTPUTS: usize>(
        &mut self,
        place: &str,
        op: Op,
        inputs: &[&Edge],
        ports: [&str; OUTPUTS],
    ) -> [Edge; OUTPUTS] {
        let mut name =
            if place.is_empty() { op.name.into() } else { format!("{place}/{}", op.name) };
        let namesakes = self.namesakes.entry(name.clone()).or_default();
        *namesakes += 1;
        if 1 < *namesakes {
            name = format!("{name}_{namesakes}");
        }
        let edges = ports.map(|port| {
            Edge(if OUTPUTS == 1 { name.as_str().into() } else { format!("{name}:{port}").into() })
        });
        self.nodes.push(proto::Node {
            input: inputs.iter().map(|it| it.name().to_owned()).collect(),
            output: edges.iter().map(|it| it.name().to_owned()).collect(),
            name,
            op_type: op.name.to_owned(),
            attribute: op.attributes.into_iter().map(|(name, it)| it.into_proto(name)).collect(),
            domain: op.domain.to_owned(),
        });
        edges
    }
}

impl Op {
    /// An operator of the standard.
    pub(crate) fn standard(name: &'static str) -> Self {
        Self { name, domain: "", attributes: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, attribute: Attribute) -> Self {
        self.attributes.push((name, attribute));
        self
    }
}

impl Attribute {
    fn into_proto(self, name: &str) -> proto::Attribute {
        let mut it = proto::Attribute { name: name.to_owned(), ..proto::Attribute::default() };
        match self {
            Self::Float(value) => {
                it.f = Some(value);
                it.set_kind(AttributeKind::Float);
            }
            Self::Int(value) => {
                it.i = Some(value);
                it.set_kind(AttributeKind::Int);
            }
            Self::Text(value) => {
                it.s = Some(value.as_bytes().to_vec());
                it.set_kind(AttributeKind::String);
            }
            Self::Ints(values) => {
                it.ints = values.to_vec();
                it.set_kind(AttributeKind::Ints);
            }
        }
        it
    }
}

fn value_info(name: &str, element: DataType, dims: &[Dim]) -> ValueInfo {
    let extent = |dim: &Dim| match *dim {
        Dim::Fixed(extent) => {
            Extent::Fixed(i64::try_from(extent).expect("extents of a configuration are 32 bits"))
        }
        Dim::Symbol(letter) => Extent::Symbol(letter.to_owned()),
    };
    let dim = dims.iter().map(|dim| Dimension { extent: Some(extent(dim)) }).collect();
    let tensor = TensorType { element: element.into(), shape: Some(Shape { dim }) };
    ValueInfo { name: name.to_owned(), r#type: Some(Type { tensor: Some(tensor) }) }
}
