//! What each operator is called, takes and gives: one table that the emitter and every registration
//! read.

#[cfg(test)]
mod tests;

/// Domain of all operators.
pub const DOMAIN: &str = "aerie";
/// Opset version of the domain.
pub const DOMAIN_VERSION: u32 = 3;

/// An operator as the graph sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OpSchema {
    pub name: &'static str,
    /// Raised whenever the meaning changes; a bundle says which it was written for.
    pub version: u32,
    pub inputs: &'static [Port],
    pub outputs: &'static [Port],
    /// Names of the attributes, all required.
    pub attributes: &'static [Attribute],
    /// What it computes, as an equation.
    pub equation: &'static str,
}

/// An input or output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Port {
    pub name: &'static str,
    pub element: Element,
    /// In the letters of `aerie-models`; `L` is the number of lanes, `S` that of segments plus 1;
    /// `G P Y` are the groups, panels and bytes of packed weights, `U` the panels of narrower ones.
    pub shape: &'static str,
    /// Whether it may be left out; such inputs come last.
    pub optional: bool,
}

/// An attribute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attribute {
    pub name: &'static str,
    pub kind: AttributeKind,
}

/// Type of an attribute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AttributeKind {
    Float,
    Int,
}

/// Element type of a port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Element {
    Bool,
    F32,
    I32,
    I64,
    U8,
}

/// The operator called `name` in the domain.
pub fn schema(name: &str) -> Option<&'static OpSchema> {
    SCHEMAS.iter().find(|it| it.name == name)
}

/// Every operator.
pub const SCHEMAS: &[OpSchema] = &[
    RMS_NORM,
    BLOCK_DIAGONAL,
    CAUSAL_CONV1D,
    RG_LRU,
    PACKED_RG_LRU,
    LOCAL_ATTENTION,
    PACKED_MATMUL,
    PACKED_PAIR,
    PACKED_QKV,
    PACKED_GATED,
    PACKED_GATHER,
];

pub const RMS_NORM: OpSchema = OpSchema {
    name: "RmsNorm",
    version: 1,
    inputs: &[f32("x", "N D"), f32("weight", "D")],
    outputs: &[f32("y", "N D")],
    attributes: &[float("epsilon")],
    equation: "y = x / sqrt(mean(x^2) + epsilon) * (1 + weight)",
};

pub const BLOCK_DIAGONAL: OpSchema = OpSchema {
    name: "BlockDiagonal",
    version: 1,
    inputs: &[f32("x", "N R"), f32("weight", "K R/K R/K"), f32("bias", "R")],
    outputs: &[f32("y", "N R")],
    attributes: &[],
    equation: "y[n, k o + j] = sum_i x[n, k o + i] weight[k, i, j] + bias[k o + j], o = R/K",
};

pub const CAUSAL_CONV1D: OpSchema = OpSchema {
    name: "CausalConv1d",
    version: 1,
    inputs: &[
        f32("x", "N R"),
        f32("weight", "C R"),
        f32("bias", "R"),
        SEGMENTS,
        LANES,
        FRESH,
        f32("state", "L C-1 R"),
    ],
    outputs: &[f32("y", "N R"), f32("state_next", "L C-1 R")],
    attributes: &[],
    equation: "y[t] = bias + sum_s weight[C-1-s] * x[t-s]; state holds the last C-1 inputs, oldest first",
};

pub const RG_LRU: OpSchema = OpSchema {
    name: "RgLru",
    version: 1,
    inputs: &[
        f32("x", "N R"),
        f32("gate_a", "N R"),
        f32("gate_x", "N R"),
        f32("p", "R"),
        SEGMENTS,
        LANES,
        FRESH,
        f32("state", "L R"),
    ],
    outputs: &[f32("y", "N R"), f32("state_next", "L R")],
    attributes: &[],
    equation: "l = -8 sigmoid(gate_a) softplus(p); h[t] = exp(l) h[t-1] + sqrt(1 - exp(2 l)) \
               sigmoid(gate_x) x[t]; y = h; at the first token of a fresh segment a = 0 and m = 1",
};

pub const LOCAL_ATTENTION: OpSchema = OpSchema {
    name: "LocalAttention",
    version: 1,
    inputs: &[
        f32("q", "N H*d"),
        f32("k", "N d"),
        f32("v", "N d"),
        SEGMENTS,
        LANES,
        port("positions", Element::I64, "B"),
        FRESH,
        f32("keys", "L W+1 d"),
        f32("values", "L W+1 d"),
    ],
    outputs: &[f32("y", "N H*d"), f32("keys_next", "L W+1 d"), f32("values_next", "L W+1 d")],
    attributes: &[int("heads"), int("head_dim"), int("window"), int("rotary_dims")],
    equation: "y = softmax(rope(q) keys^T / sqrt(d)) values over keys at q-W ..= q; the key of \
               position p is kept, rotated, in row p mod (W+1)",
};

/// The weights are laid out as [`crate::matmul::packing`] says; `D` and `R` are the attributes
/// `inputs` and `outputs`.
pub const PACKED_MATMUL: OpSchema = OpSchema {
    name: "PackedMatMul",
    version: 3,
    inputs: &[
        f32("x", "N D"),
        packed("weight"),
        Port { optional: true, ..f32("bias", "R") },
        Port { optional: true, ..f32("residual", "N R") },
    ],
    outputs: &[f32("y", "N R")],
    attributes: &[
        int("bits"),
        int("inputs"),
        int("outputs"),
        int("activation_bits"),
        int("gelu"),
        float("soft_cap"),
    ],
    equation: "y[n, g o + j] = bias[g o + j] + sum_i x[n, g k + i] weight[g, j, i], k = D/G, o = R/G; \
               bits of a weight are 16, 8 or 4; with activation_bits 8, x is rounded to bytes with a scale \
               for each 256 inputs, with 32 it is taken as it is; with gelu 1 it ends with GELU in its \
               tanh form, with a soft_cap c that is not 0 with c tanh(y / c), with a residual by adding it",
};

/// Two products as [`PACKED_MATMUL`]'s of the same inputs, which are normalised first.
pub const PACKED_PAIR: OpSchema = OpSchema {
    name: "PackedPair",
    version: 3,
    inputs: &[
        f32("x", "N D"),
        f32("norm", "D"),
        packed("first"),
        packed("second"),
        f32("first_bias", "R"),
        f32("second_bias", "R"),
    ],
    outputs: &[f32("y", "N R"), f32("u", "N R")],
    attributes: NORMED_PRODUCT,
    equation: "y = gelu(z first + first_bias), u = z second + second_bias, GELU in its tanh form, \
               z = RmsNorm(x, norm)",
};

/// Three products as [`PACKED_MATMUL`]'s of the same inputs, which are normalised first; `R` and `d`
/// are the attributes `outputs` and `head_dim`.
pub const PACKED_QKV: OpSchema = OpSchema {
    name: "PackedQkv",
    version: 3,
    inputs: &[
        f32("x", "N D"),
        f32("norm", "D"),
        packed("q_weight"),
        port("k_weight", Element::U8, "G U Y"),
        port("v_weight", Element::U8, "G U Y"),
    ],
    outputs: &[f32("q", "N R"), f32("k", "N d"), f32("v", "N d")],
    attributes: &[
        int("bits"),
        int("inputs"),
        int("outputs"),
        int("activation_bits"),
        int("head_dim"),
        float("epsilon"),
    ],
    equation: "q = z q_weight, k = z k_weight, v = z v_weight, z = RmsNorm(x, norm)",
};

/// Two products as [`PACKED_MATMUL`]'s of the same inputs, which are normalised first, joined.
pub const PACKED_GATED: OpSchema = OpSchema {
    name: "PackedGated",
    version: 3,
    inputs: &[
        f32("x", "N D"),
        f32("norm", "D"),
        packed("gate"),
        packed("up"),
        f32("gate_bias", "R"),
        f32("up_bias", "R"),
    ],
    outputs: &[f32("y", "N R")],
    attributes: NORMED_PRODUCT,
    equation: "y = gelu(z gate + gate_bias) * (z up + up_bias), GELU in its tanh form, \
               z = RmsNorm(x, norm)",
};

/// [`RG_LRU`] with its gates' projections, which are products as [`PACKED_MATMUL`]'s.
pub const PACKED_RG_LRU: OpSchema = OpSchema {
    name: "PackedRgLru",
    version: 3,
    inputs: &[
        f32("x", "N R"),
        packed("a_weight"),
        packed("x_weight"),
        f32("a_bias", "R"),
        f32("x_bias", "R"),
        f32("p", "R"),
        f32("times", "N R"),
        SEGMENTS,
        LANES,
        FRESH,
        f32("state", "L R"),
    ],
    outputs: &[f32("y", "N R"), f32("state_next", "L R")],
    attributes: &[int("bits"), int("inputs"), int("outputs"), int("activation_bits")],
    equation: "y = times * RgLru(x, x a_weight + a_bias, x x_weight + x_bias, p)",
};

/// The weights are laid out as for [`PACKED_MATMUL`], in one group whose outputs are the table's rows.
pub const PACKED_GATHER: OpSchema = OpSchema {
    name: "PackedGather",
    version: 2,
    inputs: &[packed("weight"), port("tokens", Element::I64, "N")],
    outputs: &[f32("y", "N D")],
    attributes: &[int("bits"), int("inputs"), int("outputs")],
    equation: "y[n, i] = weight[tokens[n], i]",
};

/// What is told of products with packed weights of normalised inputs.
const NORMED_PRODUCT: &[Attribute] =
    &[int("bits"), int("inputs"), int("outputs"), int("activation_bits"), float("epsilon")];

const SEGMENTS: Port = port("segments", Element::I32, "S");
const LANES: Port = port("lanes", Element::I32, "B");
const FRESH: Port = port("fresh", Element::Bool, "B");

const fn port(name: &'static str, element: Element, shape: &'static str) -> Port {
    Port { name, element, shape, optional: false }
}

/// Weights laid out as [`crate::matmul::packing`] says.
const fn packed(name: &'static str) -> Port {
    port(name, Element::U8, "G P Y")
}

const fn f32(name: &'static str, shape: &'static str) -> Port {
    port(name, Element::F32, shape)
}

const fn float(name: &'static str) -> Attribute {
    Attribute { name, kind: AttributeKind::Float }
}

const fn int(name: &'static str) -> Attribute {
    Attribute { name, kind: AttributeKind::Int }
}
