//! The network that all configurations describe: a stem, residual blocks with pre-activation, a head.

use crate::{
    backend::{Init, ParameterSpec, Role},
    images::{
        backend::{BranchScale, ChannelWeights, Conv, ImageBackend, Observed, WeighedConv},
        config::{
            Attention, AttentionPlace, BlockForm, BranchEnd, HeadInit, ImageConfig, Shortcut,
            Stage, Stem,
        },
        layers::{AttentionLayer, ConvLayer, activation},
    },
    path::Path,
};

/// Logits `[B, K]` of `pixels` `[B, 3, H, W]`, which are normalised.
pub fn logits<B: ImageBackend>(config: &ImageConfig, backend: &B, pixels: &B::Tensor) -> B::Tensor {
    let root = Path::root();
    let x = stem(config, backend, &root.child("stem"), pixels);
    head(config, backend, &root, &blocks(config, backend, x))
}

/// Colours of a pixel.
const COLOURS: u32 = 3;

fn stem<B: ImageBackend>(
    config: &ImageConfig,
    backend: &B,
    path: &Path,
    pixels: &B::Tensor,
) -> B::Tensor {
    let width = config.stem_width;
    let layer = |inputs, outputs, kernel, stride| {
        let conv = Conv { kernel, stride, padding: config.padding, groups: 1 };
        ConvLayer { inputs, outputs, conv, gain: 1.0 }
    };
    let first = |kernel, stride| {
        let layer = layer(COLOURS, width, kernel, stride);
        layer.apply(config, backend, &path.child("conv"), pixels)
    };
    match config.stem {
        Stem::Small => first(3, 1),
        Stem::Three => first(3, 2),
        Stem::SevenPool => backend.max_pool(&first(7, 2), config.padding),
        Stem::Quad => {
            let widths = [COLOURS, 16, 32, 64, width];
            let mut x = pixels.clone();
            for (number, stride) in [(1, 2), (2, 1), (3, 1), (4, 2)] {
                if 1 < number {
                    let norm = path.child(format!("norm{number}"));
                    x = activation(config, backend, &norm, &x, widths[number - 1]);
                }
                let layer = layer(widths[number - 1], widths[number], 3, stride);
                x = layer.apply(config, backend, &path.child(format!("conv{number}")), &x);
            }
            x
        }
    }
}

/// Runs all blocks on `x` `[B, C, H, W]`, with the channels that the stem gives.
pub fn blocks<B: ImageBackend>(config: &ImageConfig, backend: &B, x: B::Tensor) -> B::Tensor {
    let mut x = x;
    let mut inputs = config.stem_width;
    let mut scalars = config.betas().into_iter().zip(config.drop_rates());
    for (number, stage) in config.stages.iter().enumerate() {
        let path = Path::root().child("stages").child(number);
        for index in 0..stage.depth {
            let (beta, drop_rate) = scalars.next().expect("every block has its numbers");
            let block = Block { config, stage, inputs, is_first: index == 0, beta, drop_rate };
            x = block.apply(backend, &path.child(index), &x);
            backend.observe(Observed::Block, &x);
            inputs = stage.width;
        }
    }
    x
}

/// One residual block: `x + α · f(x/β)`, or, where the shape changes, `shortcut(z) + α · f(z)` with
/// `z = γ g(x)/β` (Brock, De and Smith 2021, arXiv:2101.08692, §3).
struct Block<'a> {
    config: &'a ImageConfig,
    stage: &'a Stage,
    inputs: u32,
    is_first: bool,
    beta: f64,
    drop_rate: f64,
}

impl Block<'_> {
    fn apply<B: ImageBackend>(&self, backend: &B, path: &Path, x: &B::Tensor) -> B::Tensor {
        let config = self.config;
        let z = activation(config, backend, &path.child("norm1"), x, self.inputs);
        let z = backend.scale(&z, self.beta.recip());
        let shortcut = if self.changes_shape() {
            self.shortcut(backend, &path.child("downsample").child("conv"), &z)
        } else {
            x.clone()
        };
        let branch = self.branch(backend, path, z);
        backend.add(&branch, &shortcut)
    }

    fn changes_shape(&self) -> bool {
        self.inputs != self.stage.width || self.stride() != 1
    }

    fn stride(&self) -> u32 {
        if self.is_first { self.stage.stride } else { 1 }
    }

    fn shortcut<B: ImageBackend>(&self, backend: &B, path: &Path, z: &B::Tensor) -> B::Tensor {
        let (z, stride) = match self.config.shortcut {
            Shortcut::Strided => (z.clone(), self.stride()),
            Shortcut::Averaged if self.stride() == 1 => (z.clone(), 1),
            Shortcut::Averaged => (backend.mean_pool(z), 1),
        };
        let layer = self.layer(self.inputs, self.stage.width, 1, stride);
        layer.apply(self.config, backend, path, &z)
    }

    /// `α · f(z)`.
    fn branch<B: ImageBackend>(&self, backend: &B, path: &Path, z: B::Tensor) -> B::Tensor {
        let (layers, names) = self.layers();
        let last = layers.len() - 1;
        let [middle, end] = self.attention(backend, path);
        let skip = (self.config.branch_end == BranchEnd::SkipInit).then(|| {
            let spec = ParameterSpec { shape: vec![], init: Init::Zeros, role: Role::Steering };
            backend.parameter(&path.child("skipinit_gain"), spec)
        });
        let scale = || BranchScale {
            skip: skip.as_ref(),
            factor: self.config.alpha,
            drop_share: self.drop_rate,
            rescale: self.config.stochastic_depth.rescale,
        };
        let mut h = z;
        for (index, (layer, name)) in layers.iter().zip(names).enumerate() {
            if 0 < index {
                let norm = path.child(format!("norm{}", &name["conv".len()..]));
                h = activation(self.config, backend, &norm, &h, layer.inputs);
            }
            let (weight, bias) = layer.parameters(self.config, backend, &path.child(name));
            let attention = match index {
                it if it == last => end.weights(),
                it if it + 1 == last => middle.weights(),
                _ => ChannelWeights::Off,
            };
            let (weight, bias) = (&weight, bias.as_ref());
            let end = (index == last).then(scale);
            let conv = WeighedConv { weight, bias, conv: layer.conv, attention, end };
            h = backend.weighed_conv(&h, &conv);
        }
        h
    }

    /// What weighs the channels before the last convolution, and after it; at most one of the two.
    fn attention<B: ImageBackend>(
        &self,
        backend: &B,
        path: &Path,
    ) -> [AttentionLayer<B::Tensor>; 2] {
        let attention = self.config.attention;
        let place = match attention {
            Attention::Off => return [AttentionLayer::Off, AttentionLayer::Off],
            Attention::SqueezeExcite { place, .. } | Attention::Eca { place } => place,
        };
        match place {
            AttentionPlace::Middle => {
                let path = path.child("attn");
                let layer = AttentionLayer::new(attention, backend, &path, self.middle());
                [layer, AttentionLayer::Off]
            }
            AttentionPlace::Last => {
                let path = path.child("attn_last");
                let layer = AttentionLayer::new(attention, backend, &path, self.stage.width);
                [AttentionLayer::Off, layer]
            }
        }
    }

    fn middle(&self) -> u32 {
        if self.is_first { self.stage.first_middle } else { self.stage.middle }
    }

    /// The branch's convolutions with their names; norms and activations between them.
    fn layers(&self) -> (Vec<ConvLayer>, &'static [&'static str]) {
        let (inputs, middle, width) = (self.inputs, self.middle(), self.stage.width);
        let stride = self.stride();
        let grouped = |stride| {
            let mut layer = self.layer(middle, middle, 3, stride);
            layer.conv.groups = middle.checked_div(self.stage.group_width).unwrap_or(1);
            layer
        };
        let mut layers = match self.config.block {
            BlockForm::Basic => {
                vec![self.layer(inputs, width, 3, stride), self.layer(width, width, 3, 1)]
            }
            BlockForm::Bottleneck => vec![
                self.layer(inputs, middle, 1, 1),
                grouped(stride),
                self.layer(middle, width, 1, 1),
            ],
            BlockForm::LongBottleneck => vec![
                self.layer(inputs, middle, 1, 1),
                grouped(stride),
                grouped(1),
                self.layer(middle, width, 1, 1),
            ],
        };
        if self.config.branch_end == BranchEnd::ZeroGain {
            layers.last_mut().expect("a branch has convolutions").gain = 0.0;
        }
        let names: &[_] = match self.config.block {
            BlockForm::Basic => &["conv1", "conv2"],
            BlockForm::Bottleneck => &["conv1", "conv2", "conv3"],
            BlockForm::LongBottleneck => &["conv1", "conv2", "conv2b", "conv3"],
        };
        (layers, names)
    }

    fn layer(&self, inputs: u32, outputs: u32, kernel: u32, stride: u32) -> ConvLayer {
        let conv = Conv { kernel, stride, padding: self.config.padding, groups: 1 };
        ConvLayer { inputs, outputs, conv, gain: 1.0 }
    }
}

fn head<B: ImageBackend>(
    config: &ImageConfig,
    backend: &B,
    root: &Path,
    x: &B::Tensor,
) -> B::Tensor {
    let width = config.stages.last().map_or(config.stem_width, |it| it.width);
    let (x, width) = match config.head_width {
        None => (x.clone(), width),
        Some(outputs) => {
            let conv = Conv { kernel: 1, stride: 1, padding: config.padding, groups: 1 };
            let layer = ConvLayer { inputs: width, outputs, conv, gain: 1.0 };
            (layer.apply(config, backend, &root.child("final_conv"), x), outputs)
        }
    };
    let x = activation(config, backend, &root.child("final_norm"), &x, width);
    let x = backend.dropout(&backend.global_mean(&x), config.dropout);
    let path = root.child(HEAD);
    let init = match config.head_init {
        HeadInit::Normal => Init::Normal { std: 0.01 },
        HeadInit::Zeros => Init::Zeros,
    };
    let shape = [config.classes, width].map(u64::from).to_vec();
    let weight =
        backend.parameter(&path.child("weight"), ParameterSpec { shape, init, role: Role::Matrix });
    let shape = vec![config.classes.into()];
    let spec = ParameterSpec { shape, init: Init::Zeros, role: Role::Steering };
    let bias = backend.parameter(&path.child("bias"), spec);
    backend.classify(&x, &weight, &bias)
}

/// Where the head's parameters are.
const HEAD: &str = "head.fc";

/// Whether the parameter at `path` is the head's weight, which is never clipped by units.
pub fn is_head_weight(path: &Path) -> bool {
    path.as_str() == "head.fc.weight"
}
