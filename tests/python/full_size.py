"""RecurrentGemma at its real size: a checkpoint as Hugging Face keeps it, imported, beside transformers.

Usage: full_size.py 2b|9b FOLDER AERIE_EXPORT LIBRARY [--layers N] [--precision TYPE] [--import-only]

In FOLDER/checkpoint are random weights in bf16, with the names and shapes of transformers' own model, in shards
of at most 5 GB with their index; they are kept for the next time. AERIE_EXPORT imports them with TYPE, f32 or bf16
(the sums of products are f32 in both), and what it holds in memory meanwhile is watched. Then a prompt that is
longer than the attention's window goes through transformers in f32, in one pass, and through the bundle in
Python's ONNX Runtime with the operators of LIBRARY, in chunks. Exits 1 if a logit differs by more than TOLERANCE.

In f32 the models take 10.7 GB (2B) and 34 GB (9B) of memory; --layers makes shallower ones.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

import graph_parity

# f32 noise on logits of order 1, of sums of thousands.
TOLERANCE = 1e-4
SHARD_BYTES_MAX = 5_000_000_000
# How many tokens longer than the window the prompt is.
BEYOND = 70
CHUNK_MAX = 512

# What the released configurations say (RecurrentGemma report, table 1), besides transformers' defaults.
SIZES = {
    "2b": {
        "hidden_size": 2560,
        "lru_width": 2560,
        "intermediate_size": 15360,
        "num_hidden_layers": 26,
        "num_attention_heads": 10,
    },
    "9b": {
        "hidden_size": 4096,
        "lru_width": 4096,
        "intermediate_size": 24576,
        "num_hidden_layers": 38,
        "num_attention_heads": 16,
    },
}


def config(size, layers):
    extents = SIZES[size] | ({"num_hidden_layers": layers} if layers else {})
    return RecurrentGemmaConfig(
        vocab_size=256000, num_key_value_heads=1, attention_window_size=2048, **extents
    )


def draw(name, shape):
    """Weights with which activations stay of order 1 and every tensor shows."""
    if name.endswith("recurrent_param"):
        # Forgets as at the beginning of training: 0.9 to 0.999 a token (De et al. 2024, arXiv:2402.19427, §2.4).
        kept = torch.empty(shape).uniform_(0.9, 0.999)
        return (-kept.log() / 8).expm1().log().bfloat16()
    if len(shape) == 1 or "bias" in name:
        return 0.1 * torch.randn(shape, dtype=torch.bfloat16)
    # A gate's blocks are [heads, inputs, outputs]; a convolution is [channels, 1, taps].
    inputs = shape[1] if len(shape) == 3 and "gate" in name else shape[-1]
    return torch.randn(shape, dtype=torch.bfloat16) * inputs**-0.5


def write(folder, config):
    """The checkpoint, shard by shard; the index last, so that what has one is whole."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = RecurrentGemmaForCausalLM(config)
    shapes = {name: it.shape for name, it in model.named_parameters()}
    shards, size = [[]], 0
    for name, shape in shapes.items():
        size += 2 * shape.numel()
        if size > SHARD_BYTES_MAX:
            shards.append([])
            size = 2 * shape.numel()
        shards[-1].append(name)
    torch.manual_seed(1)
    places = {}
    for at, names in enumerate(shards, 1):
        file = f"model-{at:05}-of-{len(shards):05}.safetensors"
        save_file({it: draw(it, shapes[it]) for it in names}, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
        print(f"wrote {file}")
    config.save_pretrained(folder)
    shutil.copy(pathlib.Path(__file__).parents[2] / "models/bundles/tales/tokenizer.json", folder)
    total = sum(2 * it.numel() for it in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def watched(command):
    """Runs `command`; the most anonymous and the most resident memory that it had, in MB."""
    process = subprocess.Popen(command)
    most = {"RssAnon": 0, "VmHWM": 0}

    def watch():
        while process.poll() is None:
            try:
                lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            for name, found in (it.split(":", 1) for it in lines):
                if name in most:
                    most[name] = max(most[name], int(found.split()[0]) // 1000)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        sys.exit(f"{command[0]} ended with {code}")
    return most


def reference(folder, tokens, positions):
    """transformers' logits of one pass at `positions`; its window counts the token itself."""
    window = RecurrentGemmaConfig.from_pretrained(folder).attention_window_size + 1
    model = RecurrentGemmaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attention_window_size=window
    ).eval()
    with torch.inference_mode():
        kept = torch.tensor(positions)
        return model(torch.tensor(tokens)[None], use_cache=False, logits_to_keep=kept).logits[0].numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("program")
    parser.add_argument("library")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--precision", default="bf16", help="any, if nothing is to be compared")
    parser.add_argument("--import-only", action="store_true")
    args = parser.parse_args()
    if args.precision not in ("f32", "bf16") and not args.import_only:
        parser.error("weights of other types than f32 and bf16 are other weights: --import-only")

    checkpoint, bundle = args.folder / "checkpoint", args.folder / args.precision
    wanted = config(args.size, args.layers)
    if not (checkpoint / "model.safetensors.index.json").exists():
        write(checkpoint, wanted)
    found = RecurrentGemmaConfig.from_pretrained(checkpoint)
    if (found.hidden_size, found.num_hidden_layers) != (wanted.hidden_size, wanted.num_hidden_layers):
        sys.exit(f"{checkpoint} is of another size; remove it, or name another folder")

    command = [args.program, "import", "--from", checkpoint, "--out", bundle, "--force"]
    begin = time.monotonic()
    most = watched(command + ["--precision", args.precision])
    seconds = time.monotonic() - begin
    print(f"imported in {seconds:.0f} s; at most {most['RssAnon']} MB of memory of its own, "
          f"{most['VmHWM']} MB with pages of files")
    if args.import_only:
        return

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, wanted.vocab_size, wanted.attention_window_size + BEYOND)
    ends = [1]
    while ends[-1] < len(tokens):
        ends.append(min(len(tokens), ends[-1] + int(rng.integers(1, CHUNK_MAX))))
    graph = graph_parity.Ragged(bundle / "model.onnx", args.library, lanes=1)
    rows, begin = [], 0
    for end in ends:
        rows += list(graph.step([(0, begin, tokens[begin:end])]))
        begin = end
    found = np.stack(rows)
    del graph
    expected = reference(checkpoint, tokens, [it - 1 for it in ends])
    worst = np.abs(found - expected).max(axis=1)
    for end, it in zip(ends, worst):
        print(f"after {end:5} tokens: within {it:.1e}")
    print(f"largest logit {np.abs(expected).max():.2f}, worst difference {worst.max():.2e}")
    sys.exit(not worst.max() < TOLERANCE)


if __name__ == "__main__":
    main()
