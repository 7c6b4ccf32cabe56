#!/usr/bin/env python3
"""Aerie beside other systems: the same extents, the same cores, turns round by round.

    tests/peers/setup.sh                                    # once; half an hour
    cargo build --release -p aerie-export --no-default-features
    cargo build --release --manifest-path tests/peers/candle/Cargo.toml --target-dir target/candle
    tests/peers/peers.py --preset griffin-small-512 --folder /tmp/small

makes the models with random weights that are missing in the folder, starts every system in a process of its
own, and lets them take turns: each turn is some steps of decoding with N sessions, or of reading a prompt.
Before each turn all rest for a second, and memory is read, so that a figure can be held against what the
machine could do at that moment. Medians are shown, and medians of each round's ratio to Aerie. `--json` writes
what `aerie-export bench plot --draw sessions` draws.

| system | what runs | precisions |
|---|---|---|
| aerie | the step graph on ONNX Runtime with our operators, as in the server, without server and wire | all |
| llama.cpp | a Llama of the same width, hidden width, layers and vocabulary and of the same number of weights | all |
| candle | its RecurrentGemma | q4, q8 |
| transformers | its RecurrentGemma | f32, bf16 |
| onnxruntime | our portable graph, standard operators alone; reads no prompts | f32 |

All sessions have read 8 tokens when they decode: a Llama's cost grows with what it has read, a Griffin's ends
with its window. q4 is llama.cpp's Q4_0 and q8 its Q8_0, which have 4.5 and 8.5 bits a weight; ours
have 4.25 and 8.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXPORT = ROOT / "target/release/aerie-export"
CANDLE = ROOT / "target/candle/release/candle-peer"
# Before a turn: threads of the one before look for work for some tenths of a second yet.
REST_SECONDS = 1
PRECISIONS = {
    "aerie": ["q4", "q8", "bf16", "f32"],
    "llama.cpp": ["q4", "q8", "bf16", "f32"],
    "candle": ["q4", "q8"],
    "transformers": ["bf16", "f32"],
    "onnxruntime": ["f32"],
}


class System:
    """A program that answers orders."""

    def __init__(self, name, precision, command, model, environment, log):
        self.name, self.precision, self.log = name, precision, log
        self.process = subprocess.Popen(
            [str(it) for it in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(log, "w"),
            env=environment,
            text=True,
        )
        # Of the files, or what the program says where there are none.
        self.model_bytes = sum(it.stat().st_size for it in model) or self.ask("bytes")["bytes"]

    def ask(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} {self.precision} ended at {order}; {self.log} may tell why")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def emit(folder, args, precision, portable=False):
    """The bundle of the preset, made if it is missing."""
    out = folder / (f"{precision}-portable" if portable else precision)
    if not out.exists():
        print(f"making {out}", file=sys.stderr)
        subprocess.run(
            [EXPORT, "emit", "--random", args.preset, "--precision", precision, "--out", out]
            + ["--name", "aerie"] + ["--portable"] * portable,
            check=True,
        )
    return out


def gguf(folder, name, write, extents, precision):
    """A file of weights, made if it is missing."""
    out = folder / f"{name}-{precision}.gguf"
    if not out.exists():
        print(f"making {out}", file=sys.stderr)
        part = out.with_suffix(".part")
        write(part, extents, precision)
        part.rename(out)
    return out


def start(name, precision, args, extents, environment):
    """The system called `name` with weights of `precision`."""
    import models

    folder, sessions_max = args.folder, str(max(args.sessions, default=1))

    def system(command, *model):
        log = folder / f"{name}-{precision}.log"
        return System(name, precision, command, model, environment, log)

    if name == "aerie":
        bundle = emit(folder, args, precision)
        command = [EXPORT, "bench", "turns", bundle, "--position", "8", "--lanes", sessions_max]
        return system(command + ["--threads", str(args.threads)], *bundle.glob("model.onnx*"))
    if name == "onnxruntime":
        bundle = emit(folder, args, precision, portable=True)
        return system([sys.executable, HERE / "peer_onnxruntime.py", bundle], *bundle.glob("model.onnx*"))
    if name == "transformers":
        manifest = emit(folder, args, "q4") / "manifest.toml"
        return system([sys.executable, HERE / "peer_transformers.py", manifest, precision])
    if name == "llama.cpp":
        model = gguf(folder, "llama", models.write_llama, extents, precision)
        return system([sys.executable, HERE / "peer_llama_cpp.py", model, sessions_max], model)
    model = gguf(folder, "recurrent-gemma", models.write_recurrent_gemma, extents, precision)
    config = folder / "candle.json"
    config.write_text(json.dumps(candle_config(extents)))
    return system([CANDLE, config, model], model)


def candle_config(extents):
    """The extents as Candle reads them."""
    return {
        "num_hidden_layers": extents["layers"],
        "vocab_size": extents["vocab"],
        "hidden_size": extents["width"],
        "intermediate_size": 2 * extents["mlp_width"],
        "num_attention_heads": extents["heads"],
        "num_key_value_heads": 1,
        "head_dim": extents["head_dim"],
        "lru_width": extents["recurrence_width"],
        "attention_window_size": extents["window"],
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "hidden_activation": "gelu_pytorch_tanh",
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "block_types": ["recurrent", "recurrent", "attention"],
        "attention_bias": False,
    }


def measure(systems, tasks, rounds):
    """Turns of every system at every task: `{(system, task): [{"seconds", "read_bytes_per_s"}]}`."""
    turns = {}
    for at in range(rounds):
        for task in tasks:
            for system in systems:
                print(f"\rround {at + 1} of {rounds}: {json.dumps(task)} {system.name} {system.precision}"
                      + 20 * " ", end="", file=sys.stderr)
                time.sleep(REST_SECONDS)
                read = systems[0].ask("read")["read_bytes_per_s"]
                seconds = system.ask(task)["seconds"]
                if seconds is not None:
                    turn = {"seconds": seconds, "read_bytes_per_s": read}
                    turns.setdefault((system, json.dumps(task)), []).append(turn)
    print(file=sys.stderr)
    return turns


def median(values):
    return statistics.median(values)


def step(system, task, turns):
    """What `aerie-export bench` calls a step."""
    seconds = median(it["seconds"] for it in turns)
    shares = [system.model_bytes / it["read_bytes_per_s"] / it["seconds"] for it in turns]
    return {
        "system": system.name,
        "precision": system.precision,
        "task": task,
        "position": 8,
        "work": {"bytes": system.model_bytes, "multiply_adds": 0},
        "seconds": seconds,
        "read_bytes_per_s": median(it["read_bytes_per_s"] for it in turns),
        "of_limit": median(shares),
        "turns": turns,
    }


def tokens(task):
    return task["decode"]["sessions"] if "decode" in task else task["prompt"]["tokens"]


def show(systems, tasks, turns):
    """The table, by precision: tokens a second, and how many times as fast Aerie is."""
    names = [f"{kind} {tokens(it)}" for it in tasks for kind in it]
    print(f"{'':30}" + "".join(f"{it:>22}" for it in names))
    for system in systems:
        ours = next(it for it in systems if it.name == "aerie" and it.precision == system.precision)
        cells = []
        for task in tasks:
            theirs = turns.get((system, json.dumps(task)))
            if not theirs:
                cells.append("-")
                continue
            rate = tokens(task) / median(it["seconds"] for it in theirs)
            pairs = zip(turns[ours, json.dumps(task)], theirs)
            ratio = median(b["seconds"] / a["seconds"] for a, b in pairs)
            cells.append(f"{rate:.1f} tok/s, {ratio:.2f}x")
        label = f"{system.name} {system.precision}, {system.model_bytes / 1e6:.0f} MB"
        print(f"{label:30}" + "".join(f"{it:>22}" for it in cells))
    print("x: Aerie's speed with the same precision over this system's, median of the rounds' ratios")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="griffin-small-512", help="extents of the models")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where models are kept")
    parser.add_argument("--systems", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS),
                        help="beside Aerie, which is always there")
    parser.add_argument("--precisions", nargs="+", default=["q4", "q8", "bf16", "f32"],
                        choices=["q4", "q8", "bf16", "f32"])
    parser.add_argument("--sessions", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--prompts", type=int, nargs="*", default=[128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=pathlib.Path, help="write the figures of every round here")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)

    library = ROOT / ".deps/onnxruntime/libonnxruntime.so"
    environment = {"ORT_DYLIB_PATH": str(library), **os.environ, "PEER_THREADS": str(args.threads),
                   "OMP_NUM_THREADS": str(args.threads), "RAYON_NUM_THREADS": str(args.threads)}
    with open(emit(args.folder, args, "q4") / "manifest.toml", "rb") as file:
        extents = tomllib.load(file)["model"]
    names = ["aerie", *(it for it in PRECISIONS if it in args.systems and it != "aerie")]
    systems = [start(name, precision, args, extents, environment)
               for precision in args.precisions for name in names if precision in PRECISIONS[name]]
    tasks = [{"decode": {"sessions": it}} for it in args.sessions]
    tasks += [{"prompt": {"tokens": it}} for it in args.prompts]
    limits = systems[0].ask("limits")["limits"]
    bundles = [it.ask("bundle")["bundle"] for it in systems if it.name == "aerie"]
    try:
        turns = measure(systems, tasks, args.rounds)
    finally:
        for system in systems:
            system.close()
    show(systems, tasks, turns)
    steps = [step(system, json.loads(task), it) for (system, task), it in turns.items()]
    if args.json:
        report = {"limits": limits, "bundles": bundles, "steps": steps}
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
