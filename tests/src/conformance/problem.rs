//! The recurrent operators with their parameters, and sessions to run through them.

use aerie_ops::{
    local_attention::LocalAttentionDims,
    schema::{CAUSAL_CONV1D, LOCAL_ATTENTION, OpSchema, RG_LRU},
};

use crate::random::Random;

/// An operator with its parameters.
#[derive(Clone, Debug)]
pub enum Problem {
    CausalConv1d { taps: usize, width: usize, weight: Vec<f32>, bias: Vec<f32> },
    RgLru { width: usize, p: Vec<f32> },
    LocalAttention { dims: LocalAttentionDims },
}

/// What one session feeds an operator: for each input, one row for each token.
#[derive(Clone, Debug)]
pub struct Session {
    pub tokens: usize,
    /// In the order of the schema; rows of [`Problem::input_widths`].
    pub inputs: Vec<Vec<f32>>,
}

impl Problem {
    /// One of each operator; widths leave a remainder at every vector width.
    pub fn all() -> Vec<Self> {
        let mut random = Random::new(11);
        vec![
            Self::CausalConv1d {
                taps: 4,
                width: 83,
                weight: random.normals(4 * 83, 0.5),
                bias: random.normals(83, 0.5),
            },
            // From hardly any memory to more than a session's length.
            Self::RgLru { width: 83, p: (0..83u16).map(|i| f32::from(i) * 0.15 - 9.0).collect() },
            Self::attention(5, 7),
        ]
    }

    /// Local attention with `heads` heads of 40 over a window of `window`.
    pub fn attention(heads: usize, window: usize) -> Self {
        let dims = LocalAttentionDims { heads, head_dim: 40, window, rotary_dims: 20 };
        Self::LocalAttention { dims }
    }

    pub fn schema(&self) -> &'static OpSchema {
        match self {
            Self::CausalConv1d { .. } => &CAUSAL_CONV1D,
            Self::RgLru { .. } => &RG_LRU,
            Self::LocalAttention { .. } => &LOCAL_ATTENTION,
        }
    }

    /// Names and widths of the inputs that have a row for each token.
    pub fn input_widths(&self) -> Vec<(&'static str, usize)> {
        match self {
            Self::CausalConv1d { width, .. } => vec![("x", *width)],
            Self::RgLru { width, .. } => {
                ["x", "gate_a", "gate_x"].map(|name| (name, *width)).to_vec()
            }
            Self::LocalAttention { dims } => {
                let LocalAttentionDims { heads, head_dim, .. } = *dims;
                vec![("q", heads * head_dim), ("k", head_dim), ("v", head_dim)]
            }
        }
    }

    /// Width of a row of `y`.
    pub fn output_width(&self) -> usize {
        self.input_widths()[0].1
    }

    /// Names and shapes of a lane's states.
    pub fn state_shapes(&self) -> Vec<(&'static str, Vec<usize>)> {
        match self {
            Self::CausalConv1d { taps, width, .. } => vec![("state", vec![taps - 1, *width])],
            Self::RgLru { width, .. } => vec![("state", vec![*width])],
            Self::LocalAttention { dims } => {
                let ring = vec![dims.window + 1, dims.head_dim];
                vec![("keys", ring.clone()), ("values", ring)]
            }
        }
    }

    /// Names, shapes and values of the parameters.
    pub fn parameters(&self) -> Vec<(&'static str, Vec<usize>, &[f32])> {
        match self {
            Self::CausalConv1d { taps, width, weight, bias } => {
                vec![("weight", vec![*taps, *width], weight), ("bias", vec![*width], bias)]
            }
            Self::RgLru { width, p } => vec![("p", vec![*width], p)],
            Self::LocalAttention { .. } => Vec::new(),
        }
    }

    /// Names and values of the attributes.
    pub fn attributes(&self) -> Vec<(&'static str, usize)> {
        match self {
            Self::CausalConv1d { .. } | Self::RgLru { .. } => Vec::new(),
            Self::LocalAttention { dims } => vec![
                ("heads", dims.heads),
                ("head_dim", dims.head_dim),
                ("window", dims.window),
                ("rotary_dims", dims.rotary_dims),
            ],
        }
    }

    /// States of `lanes` lanes, all `element`.
    pub fn states(&self, lanes: usize, element: f32) -> Vec<Vec<f32>> {
        let row = |shape: &[usize]| shape.iter().product::<usize>();
        self.state_shapes().iter().map(|(_, shape)| vec![element; lanes * row(shape)]).collect()
    }

    /// A session of `tokens` random rows.
    pub fn session(&self, seed: u64, tokens: usize) -> Session {
        let mut random = Random::new(seed);
        let widths = self.input_widths();
        let inputs = widths.iter().map(|(_, width)| random.normals(tokens * width, 1.5)).collect();
        Session { tokens, inputs }
    }
}

impl Session {
    /// The rows of tokens `from..to`.
    pub fn rows(&self, from: usize, to: usize) -> Vec<Vec<f32>> {
        let row = |input: &Vec<f32>| input.len() / self.tokens;
        self.inputs.iter().map(|it| it[from * row(it)..to * row(it)].to_vec()).collect()
    }
}
