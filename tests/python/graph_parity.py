"""Checks an exported model's two graphs with `onnx` and runs them beside each other.

Usage: graph_parity.py RAGGED PORTABLE LIBRARY TOLERANCE

RAGGED runs with the operators of LIBRARY, its state bound in place, three sessions in one ragged
step with uneven chunks; PORTABLE runs one token of each session at a time. Exits 1 if a logit differs by more
than TOLERANCE.
"""

import sys

import numpy as np
import onnx
import onnxruntime as ort

TOKENS = 40
SESSIONS = 3
LANES = [3, 0, 1]  # of 4; nobody names lane 2


def session(path, library=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(library)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def check(path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def state(model, rows):
    """State full of what must not come through."""
    fields = [it for it in model.get_inputs() if it.name.startswith("state.")]
    return {it.name: np.full([rows, *it.shape[1:]], np.nan, np.float32) for it in fields}


def portable_logits(path, tokens):
    model = session(path)
    names = [it.name for it in model.get_outputs()]
    carry, logits = state(model, SESSIONS), []
    for position in range(tokens.shape[1]):
        step = {
            "tokens": tokens[:, position],
            "positions": np.full(SESSIONS, position, np.int64),
            "fresh": np.full(SESSIONS, position == 0),
        }
        found = dict(zip(names, model.run(None, step | carry)))
        carry = {name: found[f"{name}.next"] for name in carry}
        logits.append(found["logits"])
    return np.stack(logits, axis=1)


class Ragged:
    """A graph with the operators of a library, its state bound in place."""

    def __init__(self, path, library, lanes):
        self.model = session(path, library)
        named = state(self.model, lanes)
        self.arena = {name: ort.OrtValue.ortvalue_from_numpy(it) for name, it in named.items()}

    def step(self, segments):
        """Logits after each `(lane, position, tokens)`; position 0 begins a session."""
        lanes, positions, chunks = zip(*segments)
        step = {
            "tokens": np.concatenate(chunks),
            "segments": np.cumsum([0, *map(len, chunks)]).astype(np.int32),
            "lanes": np.array(lanes, np.int32),
            "positions": np.array(positions, np.int64),
            "fresh": np.array(positions) == 0,
        }
        binding = self.model.io_binding()
        for name, value in step.items():
            binding.bind_cpu_input(name, value)
        for name, value in self.arena.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(f"{name}.next", value)
        binding.bind_output("logits")
        self.model.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()


def ragged_answers(path, library, tokens, rng):
    """Yields session, position and logits of what the ragged graph answers."""
    graph = Ragged(path, library, lanes=4)
    done, total = [0] * SESSIONS, tokens.shape[1]
    while min(done) < total:
        live = [it for it in rng.permutation(SESSIONS) if done[it] < total]
        ends = [min(total, done[it] + int(rng.integers(1, 15))) for it in live]
        chunks = [tokens[it, done[it] : end] for it, end in zip(live, ends)]
        logits = graph.step([(LANES[it], done[it], chunk) for it, chunk in zip(live, chunks)])
        for it, end, row in zip(live, ends, logits):
            done[it] = end
            yield it, end - 1, row
    for name, value in graph.arena.items():
        if not np.isnan(value.numpy()[2]).all():
            sys.exit(f"{name}: lane 2 was written, though no step names it")


def main():
    ragged, portable, library, tolerance = sys.argv[1:]
    check(ragged)
    check(portable)
    rng = np.random.default_rng(0)
    vocab = session(portable).get_outputs()[0].shape[1]
    tokens = rng.integers(0, vocab, (SESSIONS, TOKENS))
    expected = portable_logits(portable, tokens)
    answers, worst = 0, 0.0
    for it, position, row in ragged_answers(ragged, library, tokens, rng):
        difference = float(np.abs(row - expected[it, position]).max())
        answers += 1
        worst = max(worst, np.inf if np.isnan(difference) else difference)
    print(f"{answers} answers, worst difference {worst:.2e}, largest logit {np.abs(expected).max():.2f}")
    sys.exit(float(tolerance) < worst)


if __name__ == "__main__":
    main()
