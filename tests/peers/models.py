"""Files of models with random weights, of the same extents as a bundle, for systems that read GGUF.

llama.cpp has no Griffin: it gets a Llama with the same width, hidden width, layers and vocabulary, and as many
heads for keys and values as bring the bytes of its weights nearest to the bundle's. Candle has RecurrentGemma
and gets that. Weights are one drawn block over and over: drawing billions of numbers takes minutes, and what
they are does not matter to the speed.
"""

import gguf
import numpy as np

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8": gguf.GGMLQuantizationType.Q8_0,
    "q4": gguf.GGMLQuantizationType.Q4_0,
}
# Weights that are drawn: whole rows of every extent that occurs.
DRAWN = 1 << 20


class Writer:
    """A file of tensors, which are written one after the other."""

    def __init__(self, path, arch, kind):
        self.file = gguf.GGUFWriter(path, arch)
        self.kind = kind
        weights = 0.02 * np.random.default_rng(1).standard_normal(DRAWN, dtype=np.float32)
        self.drawn = gguf.quantize(weights.reshape(1, -1), kind).view(np.uint8).reshape(-1)
        self.tensors = []

    def matrix(self, name, *shape):
        """Weights that are multiplied with, `shape` with its fastest axis last."""
        block, block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        assert shape[-1] % block == 0, (name, shape)
        self.tensors.append((name, shape, self.kind, int(np.prod(shape)) // block * block_bytes))

    def vector(self, name, *shape):
        """Weights in f32."""
        kind = gguf.GGMLQuantizationType.F32
        self.tensors.append((name, shape, kind, 4 * int(np.prod(shape))))

    def close(self):
        for name, shape, kind, size in self.tensors:
            # The writer wants the shape in bytes for what it calls raw.
            raw = [*shape[:-1], size // int(np.prod(shape[:-1]))]
            self.file.add_tensor_info(name, raw, np.dtype(np.uint8), size, kind)
        self.file.write_header_to_file()
        self.file.write_kv_data_to_file()
        self.file.write_ti_data_to_file()
        for _, _, kind, size in self.tensors:
            if kind == self.kind != gguf.GGMLQuantizationType.F32:
                self.file.write_tensor_data(np.resize(self.drawn, size))
            else:
                ones = np.full(size // 4, 0.02, dtype=np.float32)
                self.file.write_tensor_data(ones.view(np.uint8))
        self.file.close()


def recurrent_layers(extents):
    """How many layers of a bundle are recurrent; every third one is attention."""
    return extents["layers"] - extents["layers"] // 3


def kv_heads(extents):
    """Heads for keys and values that a Llama needs to have as many weights in its attention as a Griffin has
    in attention and recurrence together."""
    width, recurrence, heads = extents["width"], extents["recurrence_width"], extents["heads"]
    layers, recurrent = extents["layers"], recurrent_layers(extents)
    gates = 2 * recurrence * recurrence // extents["gate_blocks"]
    head_dim = extents["head_dim"]
    wanted = recurrent * (3 * width * recurrence + gates) + (layers - recurrent) * (
        2 * width * width + 2 * width * head_dim
    )

    def distance(kv):
        return abs(layers * (2 * width * width + 2 * kv * width * head_dim) - wanted)

    return min((it for it in range(1, heads + 1) if heads % it == 0), key=distance)


def write_llama(path, extents, precision):
    """A Llama that llama.cpp reads."""
    width, hidden, head_dim = extents["width"], extents["mlp_width"], extents["head_dim"]
    kv = kv_heads(extents)
    writer = Writer(path, "llama", TYPES[precision])
    file = writer.file
    file.add_block_count(extents["layers"])
    file.add_context_length(8192)
    file.add_embedding_length(width)
    file.add_feed_forward_length(hidden)
    file.add_head_count(extents["heads"])
    file.add_head_count_kv(kv)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_dimension_count(head_dim)
    file.add_vocab_size(extents["vocab"])
    file.add_tokenizer_model("no_vocab")
    # Without an output matrix the table serves at both ends, as a Griffin's does.
    writer.matrix("token_embd.weight", extents["vocab"], width)
    writer.vector("output_norm.weight", width)
    for layer in range(extents["layers"]):
        block = f"blk.{layer}."
        writer.vector(block + "attn_norm.weight", width)
        writer.matrix(block + "attn_q.weight", width, width)
        writer.matrix(block + "attn_k.weight", kv * head_dim, width)
        writer.matrix(block + "attn_v.weight", kv * head_dim, width)
        writer.matrix(block + "attn_output.weight", width, width)
        writer.vector(block + "ffn_norm.weight", width)
        writer.matrix(block + "ffn_gate.weight", hidden, width)
        writer.matrix(block + "ffn_up.weight", hidden, width)
        writer.matrix(block + "ffn_down.weight", width, hidden)
    writer.close()


def write_recurrent_gemma(path, extents, precision):
    """A RecurrentGemma with Hugging Face's names, which Candle reads."""
    width, hidden = extents["width"], extents["mlp_width"]
    recurrence, blocks = extents["recurrence_width"], extents["gate_blocks"]
    writer = Writer(path, "recurrent_gemma", TYPES[precision])

    def linear(name, outputs, inputs, bias=True):
        writer.matrix(name + ".weight", outputs, inputs)
        if bias:
            writer.vector(name + ".bias", outputs)

    writer.matrix("embed_tokens.weight", extents["vocab"], width)
    writer.vector("final_norm.weight", width)
    for layer in range(extents["layers"]):
        block = f"layers.{layer}."
        for norm in ["temporal_pre_norm", "channel_pre_norm"]:
            writer.vector(f"{block}{norm}.weight", width)
        linear(block + "mlp_block.gate_proj", hidden, width)
        linear(block + "mlp_block.up_proj", hidden, width)
        linear(block + "mlp_block.down_proj", width, hidden)
        block += "temporal_block."
        if layer % 3 == 2:
            linear(block + "q_proj", width, width, bias=False)
            linear(block + "k_proj", extents["head_dim"], width, bias=False)
            linear(block + "v_proj", extents["head_dim"], width, bias=False)
            linear(block + "o_proj", width, width)
            continue
        linear(block + "linear_y", recurrence, width)
        linear(block + "linear_x", recurrence, width)
        linear(block + "linear_out", width, recurrence)
        writer.vector(block + "conv_1d.weight", recurrence, 1, 4)
        writer.vector(block + "conv_1d.bias", recurrence)
        block += "rg_lru."
        writer.vector(block + "recurrent_param", recurrence)
        for gate in ["input_gate", "recurrent_gate"]:
            # Candle multiplies with these in f32, whatever they are stored in.
            writer.vector(f"{block}{gate}_weight", blocks, recurrence // blocks, recurrence // blocks)
            writer.vector(f"{block}{gate}_bias", blocks, recurrence // blocks)
    writer.close()
