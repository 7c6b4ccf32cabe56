//! Draws a classifier as a graph of standard operators. Whatever is constant is in the weights by then:
//! their standardisation, gains, `β`, `α`, the numbers at the ends of branches, the doubling of channel
//! weights.
//!
//! | input | shape | output | shape |
//! |---|---|---|---|
//! | `pixels` | f32 `[B, 3, H, W]`, normalised | `logits` | f32 `[B, K]` |

#[cfg(test)]
pub(crate) mod tests;

use std::cell::RefCell;

use aerie_models::{
    ImageConfig, ParameterSpec, Path, Precision,
    images::{
        ChannelWeights, Conv, ImageBackend, WeighedConv,
        activation::Activation,
        channel_logits,
        config::{Padding, Standardise},
        network,
    },
};

use crate::onnx::{
    Weights, WeightsError,
    fold::Fold,
    graph::{Attribute, Dim, Edge, Elements, Graph, Op},
    proto::DataType,
};

/// Draws `config` with matrices stored in `precision`, f32 or f16. Of `weights`, only the numbers at the
/// ends of branches are read.
///
/// # Errors
/// If they cannot be.
pub fn emit(
    config: &ImageConfig,
    precision: Precision,
    weights: &dyn Weights,
) -> Result<Graph, WeightsError> {
    let emitter =
        Emitter { graph: RefCell::default(), precision, weights, error: RefCell::default() };
    let dims = [Dim::Symbol("B"), Dim::Fixed(3), Dim::Symbol("H"), Dim::Symbol("W")];
    let pixels = emitter.graph.borrow_mut().input("pixels", DataType::F32, &dims);
    let logits = network::logits(config, &emitter, &Flow::map(pixels));
    let dims = [Dim::Symbol("B"), Dim::Fixed(config.classes.into())];
    let logits = emitter.plain(&logits);
    emitter.graph.borrow_mut().output(&logits, "logits", DataType::F32, &dims);
    match emitter.error.into_inner() {
        Some(error) => Err(error),
        None => Ok(emitter.graph.into_inner()),
    }
}

/// What goes from node to node.
#[derive(Clone, Debug)]
enum Flow {
    /// `factor` times what the edge carries; whoever takes it has the factor in its weights.
    Map { edge: Edge, factor: f64 },
    /// A weight that is not in the graph yet.
    Parameter(Fold),
}

impl Flow {
    fn map(edge: Edge) -> Self {
        Self::Map { edge, factor: 1.0 }
    }

    fn fold(&self) -> &Fold {
        match self {
            Self::Parameter(fold) => fold,
            Self::Map { edge, .. } => panic!("{} is no parameter", edge.name()),
        }
    }

    /// Edge and factor.
    fn parts(&self) -> (&Edge, f64) {
        match self {
            Self::Map { edge, factor } => (edge, *factor),
            Self::Parameter(fold) => panic!("{} is a parameter", fold.name),
        }
    }
}

/// Reads a classifier as a graph.
struct Emitter<'a> {
    graph: RefCell<Graph>,
    precision: Precision,
    weights: &'a dyn Weights,
    /// What went wrong first.
    error: RefCell<Option<WeightsError>>,
}

impl Emitter<'_> {
    fn node(&self, place: &str, op: Op, inputs: &[&Edge]) -> Edge {
        let [edge] = self.graph.borrow_mut().node(place, op, inputs, ["y"]);
        edge
    }

    fn standard(&self, place: &str, name: &'static str, inputs: &[&Edge]) -> Edge {
        self.node(place, Op::standard(name), inputs)
    }

    /// A weight as a constant of the graph. Vectors are few and stay f32.
    fn constant(&self, fold: &Fold) -> Edge {
        let is_half = self.precision == Precision::F16 && 1 < fold.spec.shape.len();
        let element = if is_half { DataType::F16 } else { DataType::F32 };
        let (shape, elements) = (fold.spec.shape.clone(), Elements::Folded(fold.clone()));
        let edge = self.graph.borrow_mut().constant(&fold.name, element, shape, elements);
        if !is_half {
            return edge;
        }
        let to = Attribute::Int(i32::from(DataType::F32).into());
        self.node(&fold.name, Op::standard("Cast").with("to", to), &[&edge])
    }

    fn i64s(&self, name: &str, values: &[i64]) -> Edge {
        let bytes = values.iter().flat_map(|it| it.to_le_bytes()).collect();
        let shape = vec![values.len() as u64];
        self.graph.borrow_mut().constant(name, DataType::I64, shape, Elements::Here(bytes))
    }

    /// The edge with its factor in it.
    #[expect(clippy::float_cmp, reason = "a factor of 1 is no factor")]
    #[expect(clippy::cast_possible_truncation, reason = "a factor, rounded to f32")]
    fn plain(&self, flow: &Flow) -> Edge {
        let (edge, factor) = flow.parts();
        if factor == 1.0 {
            return edge.clone();
        }
        let factor = factor as f32;
        let (name, bytes) = (format!("constant.f32.[{factor}]"), factor.to_le_bytes().to_vec());
        let elements = Elements::Here(bytes);
        let factor = self.graph.borrow_mut().constant(&name, DataType::F32, vec![1], elements);
        self.standard(edge.place(), "Mul", &[edge, &factor])
    }

    /// The number at the end of a branch; 0 if it cannot be read.
    fn number(&self, fold: &Fold) -> f64 {
        match fold.load(self.weights) {
            Ok(values) => f64::from(values[0]),
            Err(error) => {
                self.error.borrow_mut().get_or_insert(error);
                0.0
            }
        }
    }

    /// What `attention` multiplies the channels of `x` by, the doubling left out; its first weight is
    /// divided by `factor`.
    fn gates(&self, x: &Flow, attention: &ChannelWeights<'_, Flow>, factor: f64) -> Flow {
        let over = |it: &Flow| Flow::Parameter(it.fold().times(factor.recip()));
        let logits = match *attention {
            ChannelWeights::Off => panic!("nothing weighs the channels"),
            ChannelWeights::SqueezeExcite { reduce: [weight, bias], expand } => {
                let weight = over(weight);
                let divided = ChannelWeights::SqueezeExcite { reduce: [&weight, bias], expand };
                channel_logits(self, x, &divided)
            }
            ChannelWeights::Eca(weight) => {
                channel_logits(self, x, &ChannelWeights::Eca(&over(weight)))
            }
        };
        let logits = logits.expect("something weighs the channels");
        self.sigmoid(&logits)
    }
}

impl ImageBackend for Emitter<'_> {
    type Tensor = Flow;

    fn parameter(&self, path: &Path, spec: ParameterSpec) -> Flow {
        Flow::Parameter(Fold::new(path.to_string(), spec))
    }

    fn standardise(&self, weight: &Flow, gain: &Flow, how: Standardise, factor: f64) -> Flow {
        let (weight, gain) = (weight.fold(), gain.fold());
        let standardised = Some((how, gain.name.clone(), gain.spec.clone()));
        Flow::Parameter(Fold { standardised, ..weight.times(factor) })
    }

    fn conv2d(&self, x: &Flow, weight: &Flow, bias: Option<&Flow>, conv: Conv) -> Flow {
        let (edge, factor) = x.parts();
        let weight = self.constant(&weight.fold().times(factor));
        let bias = bias.map(|it| self.constant(it.fold()));
        let edge = match conv.padding {
            Padding::Circular if 1 < conv.kernel => {
                let half = i64::from(conv.kernel / 2);
                let pads = [0, 0, half, half, 0, 0, half, half];
                let pads = self.i64s(&format!("constant.pads.{half}"), &pads);
                let op = Op::standard("Pad").with("mode", Attribute::Text("wrap"));
                &self.node(weight.place(), op, &[edge, &pads])
            }
            _ => edge,
        };
        let mut op = Op::standard("Conv");
        if conv.groups != 1 {
            op = op.with("group", Attribute::Int(conv.groups.into()));
        }
        if conv.stride != 1 {
            op = op.with("strides", ints(vec![conv.stride.into(); 2]));
        }
        op = match conv.padding {
            _ if conv.kernel == 1 => op,
            Padding::Same => op.with("auto_pad", Attribute::Text("SAME_UPPER")),
            Padding::Symmetric => op.with("pads", ints(vec![(conv.kernel / 2).into(); 4])),
            Padding::Circular => op,
        };
        let inputs: Vec<&Edge> = [edge, &weight].into_iter().chain(&bias).collect();
        Flow::map(self.node(weight.place(), op, &inputs))
    }

    fn mean_pool(&self, x: &Flow) -> Flow {
        let (edge, factor) = x.parts();
        let op = Op::standard("AveragePool")
            .with("kernel_shape", ints(vec![2, 2]))
            .with("strides", ints(vec![2, 2]))
            .with("auto_pad", Attribute::Text("SAME_UPPER"))
            .with("count_include_pad", Attribute::Int(0));
        Flow::Map { edge: self.node(edge.place(), op, &[edge]), factor }
    }

    fn max_pool(&self, x: &Flow, padding: Padding) -> Flow {
        let edge = self.plain(x);
        let op = Op::standard("MaxPool")
            .with("kernel_shape", ints(vec![3, 3]))
            .with("strides", ints(vec![2, 2]));
        let op = match padding {
            Padding::Same => op.with("auto_pad", Attribute::Text("SAME_UPPER")),
            Padding::Symmetric | Padding::Circular => op.with("pads", ints(vec![1; 4])),
        };
        Flow::map(self.node(edge.place(), op, &[&edge]))
    }

    fn global_mean(&self, x: &Flow) -> Flow {
        let (edge, factor) = x.parts();
        let axes = self.i64s("constant.axes.[2,3]", &[2, 3]);
        Flow::Map { edge: self.standard(edge.place(), "ReduceMean", &[edge, &axes]), factor }
    }

    fn activate(&self, x: &Flow, activation: Activation) -> Flow {
        let edge = self.plain(x);
        let place = edge.place().to_owned();
        Flow::map(match activation {
            Activation::Relu => self.standard(&place, "Relu", &[&edge]),
            Activation::Gelu => self.standard(&place, "Gelu", &[&edge]),
            Activation::GeluTanh => {
                let op = Op::standard("Gelu").with("approximate", Attribute::Text("tanh"));
                self.node(&place, op, &[&edge])
            }
            Activation::Silu => {
                let gate = self.standard(&place, "Sigmoid", &[&edge]);
                self.standard(&place, "Mul", &[&edge, &gate])
            }
        })
    }

    fn sigmoid(&self, x: &Flow) -> Flow {
        let edge = self.plain(x);
        Flow::map(self.standard(edge.place(), "Sigmoid", &[&edge]))
    }

    fn scale(&self, x: &Flow, factor: f64) -> Flow {
        match x {
            Flow::Map { edge, factor: before } => {
                Flow::Map { edge: edge.clone(), factor: before * factor }
            }
            Flow::Parameter(fold) => Flow::Parameter(fold.times(factor)),
        }
    }

    fn add(&self, a: &Flow, b: &Flow) -> Flow {
        let [a, b] = [a, b].map(|it| self.plain(it));
        Flow::map(self.standard(a.place(), "Add", &[&a, &b]))
    }

    fn gate(&self, x: &Flow, gate: &Flow) -> Flow {
        let ((x, x_factor), (gate, gate_factor)) = (x.parts(), gate.parts());
        let edge = self.standard(gate.place(), "Mul", &[x, gate]);
        Flow::Map { edge, factor: x_factor * gate_factor }
    }

    fn conv_channels(&self, x: &Flow, weight: &Flow) -> Flow {
        let (edge, factor) = x.parts();
        let fold = weight.fold();
        let half = i64::try_from(fold.spec.shape[2] / 2).expect("kernels are small");
        let weight = self.constant(&fold.times(factor));
        let row = self.i64s("constant.shape.[0,1,-1]", &[0, 1, -1]);
        let row = self.standard(weight.place(), "Reshape", &[edge, &row]);
        let op = Op::standard("Conv").with("pads", ints(vec![half; 2]));
        let row = self.node(weight.place(), op, &[&row, &weight]);
        let map = self.i64s("constant.shape.[0,-1,1,1]", &[0, -1, 1, 1]);
        Flow::map(self.standard(weight.place(), "Reshape", &[&row, &map]))
    }

    fn classify(&self, x: &Flow, weight: &Flow, bias: &Flow) -> Flow {
        let (edge, factor) = x.parts();
        let weight = self.constant(&weight.fold().times(factor));
        let bias = self.constant(bias.fold());
        let x = self.standard(weight.place(), "Flatten", &[edge]);
        let op = Op::standard("Gemm").with("transB", Attribute::Int(1));
        Flow::map(self.node(weight.place(), op, &[&x, &weight, &bias]))
    }

    fn batch_norm(&self, x: &Flow, parameters: [&Flow; 4]) -> Flow {
        let edge = self.plain(x);
        let parameters = parameters.map(|it| self.constant(it.fold()));
        let [weight, bias, mean, variance] = parameters.each_ref();
        let inputs = [&edge, weight, bias, mean, variance];
        Flow::map(self.standard(weight.place(), "BatchNormalization", &inputs))
    }

    fn group_norm(&self, x: &Flow, parameters: [&Flow; 2], groups: u32) -> Flow {
        let edge = self.plain(x);
        let [weight, bias] = parameters.map(|it| self.constant(it.fold()));
        let groups = Attribute::Int(groups.into());
        let op = Op::standard("GroupNormalization").with("num_groups", groups);
        Flow::map(self.node(weight.place(), op, &[&edge, &weight, &bias]))
    }

    /// `c · attention(conv(x))` with `c = 2 · α · skip` in the convolution's weight and bias, and out of
    /// the first weight of `attention` again, which looks at the outputs. Where `c` is too small to
    /// divide by, it is multiplied with what weighs the channels.
    fn weighed_conv(&self, x: &Flow, it: &WeighedConv<'_, Flow>) -> Flow {
        let end = it.end.as_ref();
        let mut factor = end.map_or(1.0, |end| end.factor);
        factor *= end.and_then(|it| it.skip).map_or(1.0, |it| self.number(it.fold()));
        let is_weighed = !matches!(it.attention, ChannelWeights::Off);
        if is_weighed {
            factor *= 2.0;
        }
        // Weights of 16 bits have fewer bits left where they are small.
        let least = if self.precision == Precision::F16 { 1e-2 } else { 1e-6 };
        let divides = !is_weighed || least <= factor.abs();
        let in_weights = if divides { factor } else { 1.0 };
        let times = |it: &Flow| Flow::Parameter(it.fold().times(in_weights));
        let h = self.conv2d(x, &times(it.weight), it.bias.map(times).as_ref(), it.conv);
        if !is_weighed {
            return h;
        }
        let gates = self.gates(&h, &it.attention, in_weights);
        let gates = if divides { gates } else { self.scale(&gates, factor) };
        let gates = Flow::map(self.plain(&gates));
        self.gate(&h, &gates)
    }
}

fn ints(values: Vec<i64>) -> Attribute {
    Attribute::Ints(values.into())
}
