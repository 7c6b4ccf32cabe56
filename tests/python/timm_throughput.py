"""Times NFNet-F0 in Aerie's server beside ONNX Runtime on timm's own export, and beside timm itself.

Usage: timm_throughput.py AERIE_EXPORT AERIE_SERVE [ROUNDS]

Weights are random. All sides have two threads and images of 192 by 192 pixels, which the model is configured for,
in f32. The server is asked over HTTP with tensors in binary, as a client elsewhere would; the others are called
within this process. Sides take turns, round by round, since machines drift: what is told are medians, and the median of each round's ratio to timm. The
time to load is from nothing to the first answer to one image, of which the server's has its start in it. Needs
what is in parity.txt.
"""

import concurrent.futures
import http.client
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime
import timm
import torch
from safetensors.torch import load_file
from timm.utils.onnx import onnx_export

from timm_parity import moved, save

NAME = "dm_nfnet_f0"
EXTENT = 192
BATCHES = [1, 16]
THREADS = 2
# Clients that ask for one image each, at once.
CLIENTS = 16


class Eager:
    """timm's model as PyTorch runs it."""

    def __init__(self, folder):
        self.model = timm.create_model(NAME).eval()
        self.model.load_state_dict(load_file(folder / "model.safetensors"))

    def __call__(self, pixels):
        with torch.inference_mode():
            return self.model(torch.from_numpy(pixels)).numpy()


class OnnxRuntime:
    """timm's own export in ONNX Runtime."""

    def __init__(self, graph):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, pixels):
        return self.session.run(None, {self.session.get_inputs()[0].name: pixels})[0]


class Aerie:
    """A server of its own, over HTTP."""

    def __init__(self, program, bundle, scratch):
        addresses = scratch / "addresses"
        addresses.unlink(missing_ok=True)
        any_port = "127.0.0.1:0"
        self.server = subprocess.Popen([
            program, "--model", bundle, "--data", scratch / "data", "--addresses", addresses, "--grpc", any_port,
            "--http", any_port, "--rest", any_port, "--log", "warn",
        ])
        while not addresses.exists() or not addresses.read_text():
            assert self.server.poll() is None, "the server has gone"
            time.sleep(0.002)
        url = next(it for it in addresses.read_text().split() if it.endswith("/v2"))
        self.address = url.split("/")[2]
        self.connection = http.client.HTTPConnection(self.address)

    def __call__(self, pixels, connection=None):
        connection = connection or self.connection
        body = pixels.tobytes()
        tensor = {
            "name": "pixels", "shape": pixels.shape, "datatype": "FP32",
            "parameters": {"binary_data_size": len(body)},
        }
        wanted = {"name": "logits", "parameters": {"binary_data": True}}
        head = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        connection.request("POST", f"/v2/models/{NAME}/infer", head + body, headers)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status == 200, said
        length = int(answer.headers["Inference-Header-Content-Length"])
        return np.frombuffer(said[length:], np.float32).reshape(len(pixels), -1)

    def clients(self, image, count):
        """Has `count` clients ask for one image each, at once."""
        def ask(connection):
            self(image, connection)
        connections = [http.client.HTTPConnection(self.address) for _ in range(count)]
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            def ask_all():
                list(pool.map(ask, connections))
            ask_all()
            begun = time.perf_counter()
            ask_all()
            return time.perf_counter() - begun

    def close(self):
        self.server.terminate()
        self.server.wait()


def timed(call, *args):
    begun = time.perf_counter()
    call(*args)
    return time.perf_counter() - begun


def main():
    export, serve = (pathlib.Path(it).resolve() for it in sys.argv[1:3])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 7
    torch.set_num_threads(THREADS)
    print(f"timm {timm.__version__}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        folder, bundle, graph = scratch / NAME, scratch / "bundle" / NAME, str(scratch / "timm.onnx")
        model = moved(NAME)
        save(model, NAME, folder)
        subprocess.run([export, "import", "--from", folder, "--out", bundle], check=True)
        onnx_export(
            timm.create_model(NAME, exportable=True, scriptable=True), graph, dynamic_size=False, batch_size=1,
            input_size=(3, EXTENT, EXTENT), check=False,
        )
        rng = np.random.default_rng(1)
        images = {it: rng.standard_normal((it, 3, EXTENT, EXTENT), np.float32) for it in BATCHES}

        def loaded(make):
            begun = time.perf_counter()
            side = make()
            side(images[1])
            return side, time.perf_counter() - begun

        makers = {
            "timm": lambda: Eager(folder),
            "ONNX Runtime": lambda: OnnxRuntime(graph),
            "Aerie": lambda: Aerie(serve, bundle, scratch),
        }
        sides, loads = {}, {name: [] for name in makers}
        for number in range(3):
            for name, make in makers.items():
                if number and name == "Aerie":
                    sides[name].close()
                sides[name], took = loaded(make)
                loads[name].append(took)
        difference = np.abs(sides["Aerie"](images[1]) - sides["timm"](images[1])).max()
        print(f"largest difference of logits between Aerie and timm: {difference:.1e}", flush=True)

        rates = {}
        try:
            for number in range(rounds):
                for batch, pixels in images.items():
                    for name, side in sides.items():
                        side(pixels)
                        took = statistics.median(timed(side, pixels) for _ in range(max(1, 4 // batch)))
                        rates.setdefault((f"batch {batch}", name), []).append(batch / took)
                took = sides["Aerie"].clients(images[1], CLIENTS)
                rates.setdefault((f"{CLIENTS} clients of one", "Aerie"), []).append(CLIENTS / took)
                print(f"round {number + 1} of {rounds}", flush=True)
        finally:
            sides["Aerie"].close()

        print(f"{'':<20}{'':<14}{'images/s':>10}{'of timm':>9}")
        for (what, name), found in rates.items():
            beside = rates[("batch 1" if what == "batch 1" else f"batch {BATCHES[-1]}", "timm")]
            ratio = statistics.median(a / b for a, b in zip(found, beside))
            print(f"{what:<20}{name:<14}{statistics.median(found):>10.2f}{ratio:>9.2f}")
        for name, found in loads.items():
            print(f"{'load, first answer':<20}{name:<14}{statistics.median(found):>8.2f} s")


if __name__ == "__main__":
    main()
