#!/usr/bin/env python3
"""Decoding speed of Aerie beside Hugging Face's RecurrentGemma of the same extents, in one run.

    pip install torch transformers
    aerie-export emit --random griffin-100m-8h --seed 1 --name bench --out /tmp/bench
    tests/python/bench_transformers.py /tmp/bench

Both sides use all cores and f32, and see a prompt of a few tokens and 64 new ones. The sides take
turns within each round, because a machine's speed drifts; what counts is the median of the rounds'
ratios.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOKENS = 64
PROMPT_TOKENS = 8


def hugging_face():
    """RecurrentGemma with the extents of the preset `griffin-100m-8h` and random weights."""
    config = transformers.RecurrentGemmaConfig(
        vocab_size=32000,
        hidden_size=768,
        lru_width=1024,
        intermediate_size=2 * 2304,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=1,
        attention_window_size=1025,
    )
    torch.manual_seed(1)
    return transformers.RecurrentGemmaForCausalLM(config).eval()


def decode(model, sessions):
    """Tokens a second of `sessions` sequences in one batch."""
    prompt = torch.randint(1, 32000, (sessions, PROMPT_TOKENS))
    began = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(
            prompt, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=0
        )
    seconds = time.perf_counter() - began
    assert out.shape == (sessions, PROMPT_TOKENS + TOKENS)
    return sessions * TOKENS / seconds


def bench(address, sessions):
    """Tokens a second of `sessions` streams through the server, the wire included."""
    output = subprocess.run(
        [ROOT / "target/release/aerie", "--server", address, "bench", "--json"]
        + ["--streams", str(sessions), "--tokens", str(TOKENS), "--duration", "5"]
        + ["--prompt", "a king!!"],
        check=True,
        capture_output=True,
    )
    report = json.loads(output.stdout)
    assert not report["requests_failed"], report
    return report["tokens_per_second"]


def serve(bundle, folder):
    """A server of `bundle` on all cores, and its address."""
    addresses = folder / "addresses"
    environment = {"ORT_DYLIB_PATH": str(ROOT / ".deps/onnxruntime/libonnxruntime.so"), **os.environ}
    server = subprocess.Popen(
        [ROOT / "target/release/aerie-serve", "--model", bundle, "--data", folder / "data"]
        + ["--addresses", addresses, "--log", "warn", "--device", f"cpu:0-{os.cpu_count() - 1}"]
        + ["--grpc", "127.0.0.1:0", "--quic", "127.0.0.1:0", "--http", "127.0.0.1:0"],
        env=environment,
    )
    for _ in range(600):
        if addresses.exists() and addresses.read_text().endswith("\n"):
            return server, addresses.read_text().split()[0]
        if server.poll() is not None:
            break
        time.sleep(0.1)
    sys.exit("the server did not start")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 32])
    args = parser.parse_args()

    torch.set_num_threads(os.cpu_count())
    model = hugging_face()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"{sum(it.numel() for it in model.parameters()) / 1e6:.1f} M parameters, "
          f"{os.cpu_count()} cores, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        server, address = serve(args.bundle, pathlib.Path(folder))
        try:
            print(f"{'sessions':>8} {'Hugging Face':>14} {'Aerie':>10} {'ratio':>7}")
            for sessions in args.sessions:
                rounds = [(decode(model, sessions), bench(address, sessions))
                          for _ in range(args.rounds)]
                theirs, ours = (statistics.median(side) for side in zip(*rounds))
                ratio = statistics.median(b / a for a, b in rounds)
                print(f"{sessions:>8} {theirs:>8.1f} tok/s {ours:>4.0f} tok/s {ratio:>6.2f}x")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
