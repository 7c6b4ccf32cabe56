"""Runs one model through Hugging Face's transformers and through graphs that Aerie exports of it.

Usage: transformers_parity.py AERIE_EXPORT LIBRARY

`make parity` installs what this needs (parity.txt) and runs it. The weights are those of
tests/goldens/narrow, whose answers come from Google's code. Under Hugging Face's names they are saved
as a checkpoint, which AERIE_EXPORT imports as a graph for the operators of LIBRARY and as a portable
one. All have to agree within TOLERANCE, where a window of W + 1 in transformers is our W.

What transformers is known to get wrong is expected to be wrong: were it right one day, this says so.
Exits 1 if anything is not as expected.
"""

import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

import graph_parity

GOLDENS = pathlib.Path(__file__).resolve().parents[1] / "goldens"
GOLDEN = "narrow"

# f32 noise on logits of order 1.
TOLERANCE = 1e-5
# A defect shows in logits by more than this: four orders above the noise.
DEFECT = 0.1

# Google's names, part by part.
PARTS = {
    "blocks": "layers", "recurrent_block": "temporal_block", "attention_block": "temporal_block",
    "a_param": "recurrent_param", "proj_q": "q_proj", "proj_k": "k_proj", "proj_v": "v_proj",
    "proj_final": "o_proj", "ffw_down": "down_proj", "scale": "weight", "w": "weight", "b": "bias",
}


def hugging_face_names(weights):
    """Google's parameters by the names and with the axes that Hugging Face gives them."""
    for name, value in weights.items():
        parts = [PARTS.get(part, part) for part in name.split(".")]
        if name == "embedder.input_embedding":
            yield "model.embed_tokens.weight", value
            yield "lm_head.weight", value
        elif "ffw_up" in name:
            # Both maps up are in one tensor: the gate's, then the other.
            for half, target in enumerate(("gate_proj", "up_proj")):
                cut = value[half].T if parts[-1] == "weight" else value[half, 0, 0]
                yield ".".join(["model", *parts[:-2], target, parts[-1]]), cut
        elif "_gate." in name:
            gate = parts[-2].replace("a_gate", "recurrent_gate")
            yield ".".join(["model", *parts[:-2], f"{gate}_{parts[-1]}"]), value
        elif name.endswith("conv_1d.w"):
            yield ".".join(["model", *parts]), value.T[:, None]
        else:
            yield ".".join(["model", *parts]), value


class Reference:
    """transformers with the golden weights and an attention window that is theirs."""

    def __init__(self, weights, heads, window, **changed):
        vocab, width = weights["embedder.input_embedding"].shape
        config = {
            "vocab_size": vocab,
            "hidden_size": width,
            "lru_width": weights["blocks.0.recurrent_block.rg_lru.a_param"].size,
            "intermediate_size": 2 * weights["blocks.0.mlp_block.ffw_up.w"].shape[-1],
            "num_hidden_layers": sum(it.endswith("channel_pre_norm.scale") for it in weights),
            "num_attention_heads": heads,
            "num_key_value_heads": 1,
            "attention_window_size": window,
            "pad_token_id": None,
        }
        self.model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**config | changed)).eval()
        state = {
            name: torch.tensor(np.ascontiguousarray(value))
            for name, value in hugging_face_names(weights)
        }
        self.model.load_state_dict(state)

    def whole(self, tokens, **inputs):
        """Logits of one pass, without a cache."""
        return self.model(tokens[None], use_cache=False, **inputs).logits[0].numpy()

    def cache(self):
        """A cache of one's own, and the state on the module zeroed, which there is but one of."""
        self.model._setup_cache(self.model.config, 1, "cpu", torch.float32)
        return DynamicCache(config=self.model.config)

    def advance(self, tokens, cache):
        return self.model(tokens[None], past_key_values=cache, use_cache=True).logits[0].numpy()

    def chunks(self, tokens, cuts):
        """Logits of a pass over each of the chunks that end at `cuts`, and one over the rest."""
        cache = self.cache()
        rows = [self.advance(it, cache) for it in torch.tensor_split(tokens, cuts)]
        return np.concatenate(rows)


class Ledger:
    def __init__(self):
        self.is_good = True

    def line(self, is_good, what, found):
        self.is_good &= bool(is_good)
        print(f"{'ok ' if is_good else 'BAD'}  {what:<70} {found}")

    def agree(self, what, found, expected):
        off = np.abs(found - expected).max()
        self.line(off < TOLERANCE, what, f"within {off:.1e}")

    def differ(self, what, found, expected):
        """A known defect: somewhere it is off by far more than noise."""
        off = np.abs(found - expected).max()
        self.line(off > DEFECT, f"known defect: {what}", f"off by {off:.1e}")

    def raises(self, what, action):
        """A known defect that ends in an error."""
        try:
            action()
            self.line(False, f"known defect: {what}", "no error")
        except RuntimeError:
            self.line(True, f"known defect: {what}", "an error")


def compare(ledger, reference, tokens, google):
    """transformers beside Google's code, whose answers are stored."""
    whole = reference.whole(tokens)
    ledger.agree("transformers, window W + 1, one pass: Google's code", whole, google)
    for prefill in (2, 5, 8):
        logits = reference.chunks(tokens, list(range(prefill, len(tokens))))
        ledger.agree(f"transformers, decoding after {prefill} tokens: Google's code", logits, google)


def compare_graphs(ledger, bundles, library, reference, sessions):
    """Both graphs with three sessions, against transformers with each alone."""
    expected = np.stack([reference.whole(it) for it in sessions])
    tokens = sessions.numpy()
    portable = graph_parity.portable_logits(str(bundles["portable"]), tokens)
    ledger.agree("portable graph, three sessions token by token: transformers", portable, expected)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        answers = graph_parity.ragged_answers(str(bundles["ragged"]), library, tokens, rng)
        named, positions, found = map(np.array, zip(*answers))
        what = f"ragged graph, three sessions in chunks, seed {seed}: transformers"
        ledger.agree(what, found, expected[named, positions])


def known_defects(ledger, weights, heads, window, reference, sessions):
    """What a user of transformers would meet; right answers are those of `reference` alone."""
    tokens, other = sessions[0], sessions[1]
    right = reference.whole(tokens)
    narrow = Reference(weights, heads, window)
    ledger.differ("a window of W sees W keys, not W + 1", narrow.whole(tokens), right)

    pads = torch.zeros(3, dtype=torch.long)
    mask = torch.cat([pads, torch.ones_like(tokens)])[None]
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    padded = reference.whole(torch.cat([pads, tokens]), attention_mask=mask, position_ids=places)
    ledger.differ("left padding leaks into the sequence", padded[len(pads) :], right)

    chunked = reference.chunks(tokens, [6])
    ledger.differ("a prompt in two chunks is not the prompt", chunked, right)

    cut = 5
    mine, theirs = reference.cache(), DynamicCache(config=reference.model.config)
    rows = [reference.advance(tokens[:cut], mine)]
    reference.advance(other[:cut], theirs)
    rows += [reference.advance(tokens[it : it + 1], mine) for it in range(cut, len(tokens))]
    ledger.differ("sessions with a cache each share a state", np.concatenate(rows), right)

    twice = torch.arange(len(tokens)).repeat(2)[None]
    packed = reference.whole(tokens.repeat(2), position_ids=twice)
    ledger.differ("documents in one row see each other", packed[len(tokens) :], right)

    far = torch.arange(len(tokens))[None] + 2**24 + 1
    shifted = [reference.whole(tokens, position_ids=it) for it in (far, far - 2**24)]
    ledger.differ("positions beyond 2^24 are rounded", *shifted)

    capless = Reference(weights, heads, window + 1, logits_soft_cap=0.0)
    ledger.differ("a soft cap of 0 makes all logits 0", capless.whole(tokens), right)

    alone = tokens[:1]
    ledger.raises("a prompt of one token where R is not D", lambda: reference.chunks(alone, []))


def export(program, checkpoint, out, *flags):
    command = [program, "import", "--from", checkpoint, "--out", out, *flags]
    command += ["--tokenizer", GOLDENS / "tokenizer.json"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return out / "model.onnx"


def main():
    program, library = sys.argv[1:]
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    weights = load_file(GOLDENS / f"{GOLDEN}.safetensors")
    golden = load_file(GOLDENS / f"{GOLDEN}.answers.safetensors")
    with safe_open(GOLDENS / f"{GOLDEN}.answers.safetensors", "np") as file:
        said = dict(it.split("=") for it in file.metadata()["given"].split())
    window, heads = int(said["window"]), int(said["heads"])
    tokens = torch.tensor(golden["tokens"])
    sessions = torch.stack([tokens, tokens.flip(0), tokens.roll(5)])

    print(f"transformers {transformers.__version__}, torch {torch.__version__}, "
          f"{len(tokens)} tokens, W = {window}, logits up to {np.abs(golden['full']).max():.2f}")
    ledger = Ledger()
    reference = Reference(weights, heads, window + 1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder = pathlib.Path(folder)
        # The checkpoint says W, as published ones do.
        Reference(weights, heads, window).model.save_pretrained(folder / "checkpoint")
        checkpoint, google = folder / "checkpoint", GOLDENS / f"{GOLDEN}.safetensors"
        bundles = {
            "ragged": export(program, checkpoint, folder / "ragged"),
            "portable": export(program, checkpoint, folder / "portable", "--portable"),
        }
        flags = ["--window", said["window"], "--soft-cap", said["soft_cap"], "--name", "ragged"]
        same = export(program, google, folder / "google", *flags)
        is_same = same.read_bytes() == bundles["ragged"].read_bytes()
        what = "graphs imported by Google's names and by Hugging Face's"
        ledger.line(is_same, what, "the same bytes" if is_same else "other bytes")
        compare(ledger, reference, tokens, golden["full"])
        compare_graphs(ledger, bundles, library, reference, sessions)
        known_defects(ledger, weights, heads, window, reference, sessions)
    sys.exit(not ledger.is_good)


if __name__ == "__main__":
    main()
