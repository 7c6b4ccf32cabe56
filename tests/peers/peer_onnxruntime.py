#!/usr/bin/env python3
"""ONNX Runtime from Python with the portable graph, standard operators alone: `peer_onnxruntime.py BUNDLE`.

It reads one token of each session in a run, so there are no prompts to read at once.
"""

import pathlib
import sys

import numpy as np
import onnxruntime

import turns


class OnnxRuntime:
    def __init__(self, bundle):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = turns.threads()
        # Spinning within a run and not between runs, as our graphs have it: others wait for their turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(
            str(pathlib.Path(bundle) / "model.onnx"), options, ["CPUExecutionProvider"]
        )

    def value(self, array):
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def decode(self, sessions):
        binding = self.session.io_binding()
        feeds = {
            "tokens": np.arange(1, sessions + 1, dtype=np.int64),
            "positions": np.full(sessions, turns.POSITION, dtype=np.int64),
            "fresh": np.zeros(sessions, dtype=bool),
        }
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, self.value(array))
        states = {
            it.name: [np.full([sessions, *it.shape[1:]], 0.1, dtype=np.float32) for _ in range(2)]
            for it in self.session.get_inputs()
            if it.name.startswith("state.")
        }
        states = {name: [self.value(it) for it in pair] for name, pair in states.items()}
        binding.bind_output("logits", "cpu")

        def step():
            for name, pair in states.items():
                binding.bind_ortvalue_input(name, pair[0])
                binding.bind_ortvalue_output(f"{name}.next", pair[1])
                pair.reverse()
            self.session.run_with_iobinding(binding)

        return step

    def prompt(self, tokens):
        return None


if __name__ == "__main__":
    turns.serve(OnnxRuntime(sys.argv[1]))
