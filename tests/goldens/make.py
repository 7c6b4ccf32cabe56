"""Writes the files beside this one: what Google's own code computes, for the tests of exactness.

    python make.py            # writes all of them
    python make.py --check    # recomputes the answers from the files' weights, and compares

Needs the packages that tests/python/parity.txt pins, which `make parity` puts into .deps/parity. The
files are committed, so that Rust tests need no Python. For every model there are

NAME.safetensors            weights as `aerie-export import` reads them: the names of Google's
                            PyTorch code, or the flattened tree of their JAX code
NAME.answers.safetensors    what the shapes do not tell, as metadata `given`: `window=3 soft_cap=30.0
                            embedding_scale=true heads=3`; and the tensors
    tokens                  [T]
    full                    [T, V], logits of one pass over all tokens
    decode                  [T, V], logits of a pass over the first tokens, then of one at a time
    rg_lru.N                [R], state of block N after the last token
    conv.N                  [3, R], oldest first
    keys.N, values.N        [W, d], oldest first, keys rotated: Google keeps W of the W + 1 that count

The PyTorch code is what is written down. That the JAX code agrees with it, that decoding agrees with
the whole pass, and that every tensor of a model shows in its logits is asserted on the way.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from recurrentgemma import common
from recurrentgemma.jax import griffin as griffin_jax
from recurrentgemma.torch import griffin as griffin_torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

HERE = pathlib.Path(__file__).parent

# f32 noise between two orders of summation, on logits of order 1.
TOLERANCE = 1e-5
# What a tensor that is left out must change at least.
VISIBLE = 1e-3

# Blocks of the gates are as many as heads. Extents are odd on purpose: R on either side of D, heads
# that do not fill four, patterns that end anywhere.
MODELS = {
    "narrow": {
        "seed": 1, "layout": "torch", "blocks": "RRAR", "vocab": 29, "width": 24, "heads": 3,
        "lru": 36, "mlp": 40, "window": 3, "cap": 30.0, "scale": True,
    },
    "odd": {
        "seed": 2, "layout": "jax", "blocks": "RRARR", "vocab": 17, "width": 16, "heads": 2,
        "lru": 10, "mlp": 22, "window": 5, "cap": 0.0, "scale": False,
    },
    "deep": {
        "seed": 3, "layout": "torch", "blocks": "RRARRAR", "vocab": 31, "width": 32, "heads": 2,
        "lru": 20, "mlp": 16, "window": 8, "cap": 5.0, "scale": False,
    },
    "single": {
        "seed": 4, "layout": "jax", "blocks": "RRA", "vocab": 23, "width": 20, "heads": 1,
        "lru": 28, "mlp": 60, "window": 5, "cap": 0.0, "scale": True,
    },
    "five": {
        "seed": 5, "layout": "torch", "blocks": "RRARRA", "vocab": 13, "width": 40, "heads": 5,
        "lru": 20, "mlp": 12, "window": 3, "cap": 0.0, "scale": False,
    },
    "hawk": {
        "seed": 6, "layout": "torch", "blocks": "RRRR", "vocab": 19, "width": 12, "heads": 3,
        "lru": 18, "mlp": 18, "window": 3, "cap": 8.0, "scale": True,
    },
}


def griffin_config(it):
    kinds = {"R": common.TemporalBlockType.RECURRENT, "A": common.TemporalBlockType.ATTENTION}
    return common.GriffinConfig(
        vocab_size=it["vocab"],
        width=it["width"],
        mlp_expanded_width=it["mlp"],
        num_heads=it["heads"],
        block_types=tuple(kinds[kind] for kind in it["blocks"]),
        embeddings_scale_by_sqrt_dim=it["scale"],
        attention_window_size=it["window"],
        logits_soft_cap=it["cap"],
        lru_width=it["lru"],
    )


def tokens_of(it):
    rng = np.random.default_rng(it["seed"])
    return rng.integers(0, it["vocab"], 3 * it["window"] + 5)


def random_weights(it):
    """Google's initialisation, with all that it leaves at zero or near it moved away."""
    torch.manual_seed(it["seed"])
    model = griffin_torch.Griffin(griffin_config(it), gradient_checkpointing=False)
    weights = {}
    for name, value in model.state_dict().items():
        noise = torch.randn(value.shape)
        if name.endswith((".scale", ".bias", ".b")):
            value = value + 0.2 * noise
        elif name.endswith("conv_1d.w"):
            value = 0.5 * noise
        elif name.endswith("a_param"):
            value = value + noise
        elif name.endswith(("linear_out.weight", "proj_final.weight", "ffw_down.weight")):
            # As large as what they are added to, so that no block hides behind another.
            value = noise / value.shape[1] ** 0.5
        weights[name] = value.numpy()
    return weights


def jax_tree(weights):
    """The tree of the JAX code: `blocks.N` is one name, dense kernels are `[in, out]`."""
    tree = {}
    for name, value in weights.items():
        if name.endswith(".weight"):
            name, value = name.removesuffix("weight") + "kernel", value.T
        *path, leaf = name.split(".")
        if path[0] == "blocks":
            path = [".".join(path[:2]), *path[2:]]
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return {"params": tree}


def flattened(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}/")
        else:
            yield prefix + name, np.ascontiguousarray(value)


def torch_names(weights):
    """The other way round: names and axes of the PyTorch code, whatever the layout of the file."""
    found = {}
    for name, value in weights.items():
        name = name.removeprefix("params/").replace("/", ".")
        if name.endswith(".kernel"):
            name, value = name.removesuffix("kernel") + "weight", np.ascontiguousarray(value.T)
        found[name] = value
    return found


class Torch:
    def __init__(self, it, weights):
        self.model = griffin_torch.Griffin(griffin_config(it), gradient_checkpointing=False)
        self.model.load_state_dict({name: torch.tensor(it) for name, it in weights.items()})

    def run(self, tokens, start=0, cache=None):
        positions = torch.arange(start, start + len(tokens))[None]
        with torch.inference_mode():
            logits, cache = self.model(torch.tensor(tokens)[None], positions, cache)
        return logits[0].numpy(), cache


class Jax:
    def __init__(self, it, weights):
        model = griffin_jax.Griffin(griffin_config(it), gradient_checkpointing=False)
        self.apply = jax.jit(model.apply)
        self.tree = jax_tree(weights)

    def run(self, tokens, start=0, cache=None):
        positions = jnp.arange(start, start + len(tokens))[None]
        logits, cache = self.apply(self.tree, jnp.asarray(tokens)[None], positions, cache)
        return np.asarray(logits[0]), cache


def decode(model, tokens, prefill):
    """Logits of every position, those after `prefill` tokens one by one, and the last cache."""
    logits, cache = model.run(tokens[:prefill])
    rows = [logits]
    for position in range(prefill, len(tokens)):
        logits, cache = model.run(tokens[position : position + 1], position, cache)
        rows.append(logits)
    return np.concatenate(rows), cache


def state(it, cache, tokens):
    """The state by our names, keys and values by ascending position."""
    found = {}
    for layer, kind in enumerate(it["blocks"]):
        block = cache[f"blocks.{layer}"]
        if kind == "R":
            found[f"rg_lru.{layer}"] = np.asarray(block.rg_lru_state)[0]
            found[f"conv.{layer}"] = np.asarray(block.conv1d_state)[0]
        else:
            rows = [position % it["window"] for position in range(tokens - it["window"], tokens)]
            found[f"keys.{layer}"] = np.asarray(block.keys)[0, rows, 0]
            found[f"values.{layer}"] = np.asarray(block.values)[0, rows, 0]
    return found


def worst(a, b):
    return float(np.abs(a - b).max())


def agree(what, a, b):
    difference = worst(a, b)
    if not difference < TOLERANCE:
        sys.exit(f"{what}: differ by {difference:.1e}")
    return difference


def answers(name, it, weights):
    """What the PyTorch code says, after what is promised above has been seen to hold."""
    tokens = tokens_of(it)
    model = Torch(it, weights)
    full, cache = model.run(tokens)
    found = state(it, cache, len(tokens))
    stepped, cache = decode(model, tokens, it["window"] + 2)
    off = [agree(f"{name}: decoding and the whole pass", stepped, full)]
    off.append(agree(f"{name}: decoding from the first token", decode(model, tokens, 1)[0], full))
    for field, value in state(it, cache, len(tokens)).items():
        off.append(agree(f"{name}: {field} by decoding", value, found[field]))
    between = []
    other = Jax(it, weights)
    logits, cache = other.run(tokens)
    between.append(agree(f"{name}: JAX", logits, full))
    between.append(agree(f"{name}: JAX, decoding", decode(other, tokens, it["window"] + 2)[0], full))
    for field, value in state(it, cache, len(tokens)).items():
        between.append(agree(f"{name}: {field} in JAX", value, found[field]))
    for left_out in weights:
        others = {key: it * (key != left_out) for key, it in weights.items()}
        change = worst(Torch(it, others).run(tokens)[0], full)
        if not change > VISIBLE:
            sys.exit(f"{name}: without {left_out} logits change by {change:.1e} only")
    print(
        f"{name}: {len(tokens)} tokens, logits up to {np.abs(full).max():.2f}, "
        f"decoding within {max(off):.1e}, JAX within {max(between):.1e}"
    )
    return {"tokens": tokens, "full": full, "decode": stepped, **found}


def metadata(it):
    """What the importer has to be told; in one entry, since entries have no order in the file."""
    scale = str(it["scale"]).lower()
    fields = f"window={it['window']} soft_cap={it['cap']} embedding_scale={scale}"
    return {"given": f"{fields} heads={it['heads']}"}


def write(name, it):
    weights = random_weights(it)
    found = answers(name, it, weights)
    stored = dict(flattened(jax_tree(weights))) if it["layout"] == "jax" else weights
    stored = {key: np.ascontiguousarray(value) for key, value in stored.items()}
    save_file(stored, HERE / f"{name}.safetensors")
    save_file(found, HERE / f"{name}.answers.safetensors", metadata(it))


def check(name, it):
    stored = load_file(HERE / f"{name}.answers.safetensors")
    with safe_open(HERE / f"{name}.answers.safetensors", "np") as file:
        if file.metadata() != metadata(it):
            sys.exit(f"{name}: written for {file.metadata()}, not for {metadata(it)}")
    found = answers(name, it, torch_names(load_file(HERE / f"{name}.safetensors")))
    if found.keys() != stored.keys():
        sys.exit(f"{name}: written are {sorted(stored)}, not {sorted(found)}")
    for field, value in found.items():
        agree(f"{name}: {field} as written and as computed", value, stored[field])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    each = check if parser.parse_args().check else write
    torch.set_num_threads(1)
    for name, it in MODELS.items():
        each(name, it)


if __name__ == "__main__":
    main()
