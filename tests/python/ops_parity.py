"""Loads the operator library into Python's onnxruntime and compares every operator with numpy.

Usage: ops_parity.py LIBRARY

Each operator runs as a graph of one node over a few ragged steps, with state bound in place and with
state copied. References are plain numpy in float64, written from the equations of the schemas.
Exits 1 if a result is off.
"""

import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

F32, I32, I64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL

LANES = 5
# Steps of (segments' lengths, lanes, positions, fresh): lane 3 goes from 0 to 21 in uneven chunks,
# lane 2 is never named.
STEPS = [
    ([4, 1, 7], [3, 0, 1], [0, 0, 0], [True, True, True]),
    ([1, 9], [1, 3], [7, 4], [False, False]),
    ([8, 2, 1], [3, 4, 0], [13, 0, 1], [False, True, False]),
]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def session(library, op, inputs, outputs, **attributes):
    """A graph of one node; `inputs` and `outputs` are pairs of name and element type."""
    node = helper.make_node(op, [n for n, _ in inputs], [n for n, _ in outputs], domain="aerie", **attributes)
    info = lambda pairs: [helper.make_tensor_value_info(n, t, None) for n, t in pairs]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("aerie", 1)]
    graph = helper.make_graph([node], op, info(inputs), info(outputs))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.register_custom_ops_library(library)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Check:
    def __init__(self):
        self.failures = 0

    def close(self, what, found, expected, tolerance):
        worst = float(np.max(np.abs(found - expected), initial=0.0))
        ok = worst <= tolerance
        self.failures += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {what}: worst difference {worst:.2e}, tolerance {tolerance:.0e}")

    def equal(self, what, found, expected):
        ok = np.array_equal(found, expected)
        self.failures += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {what}")


def run_in_place(it, feeds, states):
    """Runs with each state bound as input and output of one buffer; returns `y`."""
    binding = it.io_binding()
    binding.bind_output("y")
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in states.items()}
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(name + "_next", value)
    it.run_with_iobinding(binding)
    y = binding.copy_outputs_to_cpu()[0]  # in the order of binding
    for name, value in values.items():
        states[name][...] = value.numpy()
    return y


def recurrent(check, op, it, reference, states, make_feeds, tolerance):
    """Drives `STEPS` through the operator, in place and copied, beside the reference."""
    in_place = {name: array.copy() for name, array in states.items()}
    copied = {name: array.copy() for name, array in states.items()}
    exact = {name: array.astype(np.float64) for name, array in states.items()}
    for number, (lengths, lanes, positions, fresh) in enumerate(STEPS):
        feeds = make_feeds(sum(lengths))
        cut = {
            "segments": np.cumsum([0] + lengths).astype(np.int32),
            "lanes": np.array(lanes, np.int32),
            "fresh": np.array(fresh),
        }
        if "positions" in [i.name for i in it.get_inputs()]:
            cut["positions"] = np.array(positions, np.int64)
        expected = np.concatenate([
            reference(
                {k: v[start:end].astype(np.float64) for k, v in feeds.items()},
                {name: array[lane] for name, array in exact.items()},
                position,
                is_fresh,
            )
            for start, end, lane, position, is_fresh in zip(
                cut["segments"], cut["segments"][1:], lanes, positions, fresh
            )
        ])
        y = run_in_place(it, {**feeds, **cut, **it.constants}, in_place)
        results = it.run(None, {**feeds, **cut, **it.constants, **copied})
        results = dict(zip([o.name for o in it.get_outputs()], results))
        copied = {name: results[name + "_next"] for name in states}
        check.close(f"{op}, step {number}, y", y, expected, tolerance)
        check.equal(f"{op}, step {number}, in place = copied", y, results["y"])
        for name in states:
            check.close(f"{op}, step {number}, {name}", in_place[name], exact[name], tolerance)
            check.equal(f"{op}, step {number}, {name}, in place = copied", in_place[name], copied[name])
            check.equal(f"{op}, step {number}, {name} of the lane never named", in_place[name][2], states[name][2])


class Node:
    """A session with the feeds that do not change from step to step."""

    def __init__(self, it, constants):
        self.it, self.constants = it, constants

    def __getattr__(self, name):
        return getattr(self.it, name)


STEP_INPUTS = [("segments", I32), ("lanes", I32), ("fresh", BOOL)]


def rms_norm(check, library, rng):
    it = session(library, "RmsNorm", [("x", F32), ("weight", F32)], [("y", F32)], epsilon=1e-6)
    x, w = rng.normal(size=(7, 33)).astype(np.float32), rng.normal(size=33).astype(np.float32)
    expected = x / np.sqrt(np.mean(np.float64(x) ** 2, axis=1, keepdims=True) + 1e-6) * (1.0 + w)
    check.close("RmsNorm", it.run(None, {"x": x, "weight": w})[0], expected, 1e-5)


def block_diagonal(check, library, rng):
    it = session(library, "BlockDiagonal", [("x", F32), ("weight", F32), ("bias", F32)], [("y", F32)])
    blocks, width = 3, 40
    x = rng.normal(size=(9, blocks * width)).astype(np.float32)
    w = rng.normal(size=(blocks, width, width)).astype(np.float32)
    b = rng.normal(size=blocks * width).astype(np.float32)
    expected = np.einsum("nki,kij->nkj", np.float64(x).reshape(9, blocks, width), w).reshape(9, -1) + b
    check.close("BlockDiagonal", it.run(None, {"x": x, "weight": w, "bias": b})[0], expected, 1e-4)


def causal_conv1d(check, library, rng):
    width, taps = 70, 4
    inputs = [("x", F32), ("weight", F32), ("bias", F32), *STEP_INPUTS, ("state", F32)]
    it = session(library, "CausalConv1d", inputs, [("y", F32), ("state_next", F32)])
    w, b = rng.normal(size=(taps, width)).astype(np.float32), rng.normal(size=width).astype(np.float32)

    def reference(feeds, state, _, fresh):
        past = np.zeros_like(state["state"]) if fresh else state["state"]
        x = np.concatenate([past, feeds["x"]])
        state["state"][...] = x[-(taps - 1):]
        return np.stack([b + np.sum(w * x[t:t + taps], axis=0) for t in range(len(feeds["x"]))])

    states = {"state": rng.normal(size=(LANES, taps - 1, width)).astype(np.float32)}
    make = lambda n: {"x": rng.normal(size=(n, width)).astype(np.float32)}
    recurrent(check, "CausalConv1d", Node(it, {"weight": w, "bias": b}), reference, states, make, 1e-5)


def rg_lru(check, library, rng):
    width = 300
    inputs = [("x", F32), ("gate_a", F32), ("gate_x", F32), ("p", F32), *STEP_INPUTS, ("state", F32)]
    it = session(library, "RgLru", inputs, [("y", F32), ("state_next", F32)])
    p = rng.uniform(-8, 3, size=width).astype(np.float32)

    def reference(feeds, state, _, fresh):
        h, y = state["state"], []
        for t, (x, gate_a, gate_x) in enumerate(zip(feeds["x"], feeds["gate_a"], feeds["gate_x"])):
            log_a = -8 * sigmoid(gate_a) * np.log1p(np.exp(np.float64(p)))
            first = fresh and t == 0
            a, m = (0, 1) if first else (np.exp(log_a), np.sqrt(-np.expm1(2 * log_a)))
            h[...] = a * (0 if first else h) + m * sigmoid(gate_x) * x
            y.append(h.copy())
        return np.stack(y)

    states = {"state": rng.normal(size=(LANES, width)).astype(np.float32)}
    make = lambda n: {k: rng.normal(size=(n, width)).astype(np.float32) * 2 for k in ["x", "gate_a", "gate_x"]}
    recurrent(check, "RgLru", Node(it, {"p": p}), reference, states, make, 1e-5)


def local_attention(check, library, rng):
    heads, dim, window, rotary = 5, 40, 6, 20
    slots = window + 1
    inputs = [("q", F32), ("k", F32), ("v", F32), ("segments", I32), ("lanes", I32), ("positions", I64)]
    inputs += [("fresh", BOOL), ("keys", F32), ("values", F32)]
    outputs = [("y", F32), ("keys_next", F32), ("values_next", F32)]
    attributes = {"heads": heads, "head_dim": dim, "window": window, "rotary_dims": rotary}
    it = session(library, "LocalAttention", inputs, outputs, **attributes)

    def rope(x, position):
        angle = position * 10000.0 ** (-2 * np.arange(rotary // 2) / rotary)
        low, high = x[..., :rotary // 2], x[..., rotary // 2:rotary]
        turned = [low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)]
        return np.concatenate([*turned, x[..., rotary:]], axis=-1)

    def reference(feeds, state, position, fresh):
        if fresh:
            state["keys"][...], state["values"][...] = 0, 0
        y = []
        for t in range(len(feeds["q"])):
            at = position + t
            q = rope(feeds["q"][t].reshape(heads, dim), at)
            state["keys"][at % slots] = rope(feeds["k"][t], at)
            state["values"][at % slots] = feeds["v"][t]
            seen = [p % slots for p in range(max(0, at - window), at + 1)]
            scores = q @ state["keys"][seen].T / np.sqrt(dim)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            y.append((weights / weights.sum(axis=1, keepdims=True) @ state["values"][seen]).reshape(-1))
        return np.stack(y)

    states = {k: rng.normal(size=(LANES, slots, dim)).astype(np.float32) for k in ["keys", "values"]}
    make = lambda n: {
        "q": rng.normal(size=(n, heads * dim)).astype(np.float32) * 2,
        "k": rng.normal(size=(n, dim)).astype(np.float32) * 2,
        "v": rng.normal(size=(n, dim)).astype(np.float32),
    }
    recurrent(check, "LocalAttention", Node(it, {}), reference, states, make, 1e-5)


def refusals(check, library):
    """A step that does not hold together is an error that names the field, not a wild write."""
    inputs = [("x", F32), ("gate_a", F32), ("gate_x", F32), ("p", F32), *STEP_INPUTS, ("state", F32)]
    it = session(library, "RgLru", inputs, [("y", F32), ("state_next", F32)])
    x = np.zeros((2, 8), np.float32)
    good = {"x": x, "gate_a": x, "gate_x": x, "p": x[0], "state": np.zeros((LANES, 8), np.float32)}
    good |= {"segments": np.array([0, 1, 2], np.int32), "lanes": np.array([0, 1], np.int32)}
    good |= {"fresh": np.array([True, True])}
    it.run(None, good)
    for name, bad, expected in [
        ("lanes", np.array([0, LANES], np.int32), "lanes[1] is 5; lanes are 0..5"),
        ("lanes", np.array([0, -1], np.int32), "lanes[1] is -1; lanes are 0..5"),
        ("lanes", np.array([3, 3], np.int32), "lanes[1] is 3, which an earlier segment already has"),
        ("segments", np.array([0, 2, 1], np.int32), "segment 1 is tokens 2..1"),
        ("segments", np.array([0, 1, 3], np.int32), "segments end at 3, but the step has 2 tokens"),
        ("gate_a", x[:1], "gate_a has extent 1 on axis 0 of [N R]; 2 is needed"),
        ("p", x, "p has 2 axes; its shape is [R]"),
    ]:
        try:
            it.run(None, {**good, name: bad})
            message = "no error"
        except Exception as e:
            message = str(e)
        check.equal(f"refuses {name}: {expected}", expected in message, True)


def main():
    library = sys.argv[1]
    check, rng = Check(), np.random.default_rng(7)
    for compare in [rms_norm, block_diagonal, causal_conv1d, rg_lru, local_attention]:
        compare(check, library, rng)
    refusals(check, library)
    sys.exit(1 if check.failures else 0)


if __name__ == "__main__":
    main()
