#!/usr/bin/env python3
"""Has pictures classified over the Open Inference Protocol by Triton's own client, over gRPC and HTTP.

Usage: triton_pictures.py GRPC_HOST:PORT HTTP_HOST:PORT MODEL SIDE MEAN STD ROWS_MAX PICTURE

The model takes pictures of SIDE by SIDE pixels as they are, less MEAN and by STD, which are numbers for red, green and blue
with commas between. Writes one to PICTURE. Prints its label, and how far the logits of a picture alone are from those in a
batch, at most.
"""

import queue
import struct
import sys
import zlib

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException

INVALID = {over_grpc: "INVALID_ARGUMENT", over_http: "400"}


def png(rgb):
    """A PNG of [H, W, 3] bytes."""
    height, width, _ = rgb.shape
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pixels(module, values):
    tensor = module.InferInput("pixels", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    return tensor


def images(module, files):
    tensor = module.InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object))
    return tensor


def logits(client, module, tensor, **asked):
    return client.infer(MODEL, [tensor], **asked).as_numpy("logits")


def refused(call, status, words):
    try:
        call()
    except InferenceServerException as error:
        assert status in str(error.status()), f"{error.status()} is not {status}: {error}"
        assert words in error.message(), error
    else:
        raise AssertionError(f"nothing was refused with {words!r}")


def describes_itself(client, module):
    as_json = {"as_json": True} if module is over_grpc else {}
    metadata = client.get_model_metadata(MODEL, **as_json)
    shapes = {
        it["name"]: (it["datatype"], [int(n) for n in it["shape"]])
        for it in metadata["inputs"] + metadata["outputs"]
    }
    classes = shapes["logits"][1][1]
    assert shapes == {
        "image": ("BYTES", [-1]),
        "pixels": ("FP32", [-1, 3, -1, -1]),
        "logits": ("FP32", [-1, classes]),
        "probabilities": ("FP32", [-1, classes]),
        "labels": ("BYTES", [-1]),
    }, shapes
    assert client.is_model_ready(MODEL)
    return classes


def one_answer(clients, rgb, values):
    """Pixels and pictures, raw, typed and in JSON, over both wires: the same logits."""
    grpc, http = clients
    expected = logits(grpc, over_grpc, pixels(over_grpc, values))
    files = [png(it) for it in rgb]
    same = [
        logits(http, over_http, pixels(over_http, values)),
        logits(grpc, over_grpc, images(over_grpc, files)),
        logits(http, over_http, images(over_http, files)),
    ]
    plain = over_http.InferInput("pixels", values.shape, "FP32")
    plain.set_data_from_numpy(values, binary_data=False)
    wanted = [over_http.InferRequestedOutput("logits", binary_data=False)]
    same.append(logits(http, over_http, plain, outputs=wanted))
    for other in same:
        assert np.array_equal(other, expected), np.abs(other - expected).max()
    return expected


def alone_or_in_company(grpc, values, together):
    """How far the logits of a picture alone are from those of a batch."""
    alone = [logits(grpc, over_grpc, pixels(over_grpc, it[None])) for it in values]
    return np.abs(np.concatenate(alone) - together).max()


def labels_and_probabilities(clients, values, expected):
    n, classes = expected.shape
    for client, module in zip(clients, (over_grpc, over_http)):
        result = client.infer(MODEL, [pixels(module, values)], request_id="p")
        probabilities, labels = result.as_numpy("probabilities"), result.as_numpy("labels")
        powers = np.exp(expected - expected.max(axis=1, keepdims=True))
        # f32, and as many additions as classes.
        assert np.allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-6)
        assert labels.shape == (n,)
        outputs = [
            module.InferRequestedOutput(name, class_count=3)
            for name in ("labels", "logits", "probabilities")
        ]
        top = client.infer(MODEL, [pixels(module, values)], outputs=outputs)
        for name, scores in (("logits", expected), ("probabilities", probabilities)):
            texts = top.as_numpy(name)
            assert texts.shape == (n, 3), texts
            for row, scored, label in zip(texts, scores, labels):
                order = np.argsort(-scored, kind="stable")[:3]
                found = [it.decode().split(":", 2) for it in row]
                assert [int(it[1]) for it in found] == order.tolist(), (found, scored)
                assert np.allclose([float(it[0]) for it in found], scored[order], atol=1e-6)
                assert found[0][2] == label.decode()
        assert np.array_equal(top.as_numpy("labels"), top.as_numpy("probabilities"))


def streamed(grpc, values, expected):
    responses = queue.Queue()
    grpc.start_stream(callback=lambda result, error: responses.put((result, error)))
    for i, row in enumerate(values):
        grpc.async_stream_infer(MODEL, [pixels(over_grpc, row[None])], request_id=str(i))
    for _ in values:
        result, error = responses.get(timeout=60)
        assert error is None, error
        response = result.get_response()
        assert response.parameters["triton_final_response"].bool_param
        assert np.allclose(result.as_numpy("logits")[0], expected[int(response.id)], atol=1e-5)
    grpc.stop_stream()


def many_at_once(grpc, values, expected, n_requests=64):
    """Requests that come together run together."""
    [before] = grpc.get_inference_statistics(MODEL, as_json=True)["model_stats"]
    pending = queue.Queue()
    for i in range(n_requests):
        row = values[i % len(values)][None]
        grpc.async_infer(
            MODEL,
            [pixels(over_grpc, row)],
            callback=lambda result, error, i=i: pending.put((i, result, error)),
            priority=1 + i % 2,
        )
    for _ in range(n_requests):
        i, result, error = pending.get(timeout=60)
        assert error is None, error
        assert np.allclose(result.as_numpy("logits")[0], expected[i % len(values)], atol=1e-5)
    [after] = grpc.get_inference_statistics(MODEL, as_json=True)["model_stats"]
    counts = ("inference_count", "execution_count")
    rows, runs = (int(after[it]) - int(before.get(it, 0)) for it in counts)
    assert rows == n_requests and runs < rows, (rows, runs)
    assert 1 < max(int(it["batch_size"]) for it in after["batch_stats"]), after


def mistakes(clients, values, rows_max):
    for client, module in zip(clients, (over_grpc, over_http)):
        def infer(tensor, **asked):
            return lambda: client.infer(MODEL, [tensor], **asked)

        invalid, fine = INVALID[module], pixels(module, values)
        refused(infer(images(module, [b"GIF89a"])), invalid, "neither JPEG nor PNG")
        refused(infer(images(module, [png(np.zeros((7, 5, 3), np.uint8)), b""])), invalid, "[")
        bomb = png(np.zeros((1, 1, 3), np.uint8)).replace(
            struct.pack(">II", 1, 1), struct.pack(">II", 60_000, 60_000)
        )
        refused(infer(images(module, [bomb])), invalid, "[0]")
        many = np.repeat(values[:1], rows_max + 1, axis=0)
        refused(infer(pixels(module, many)), invalid, f"1 to {rows_max}")
        refused(infer(pixels(module, values[:, :1])), invalid, "[n, 3, H, W]")
        refused(infer(pixels(module, values[:, :, :0])), invalid, "pixels are taken")
        # Larger pictures count by their pixels, up to a batch of those that the model was measured with.
        side = values.shape[2]
        many = np.zeros((rows_max // 4 + 1, 3, 2 * side, 2 * side), np.float32)
        assert len(logits(client, module, pixels(module, many[1:]))) == rows_max // 4
        refused(infer(pixels(module, many)), invalid, f"1 to {rows_max // 4} are taken")
        large = np.zeros((1, 3, rows_max * side, side + 1), np.float32)
        refused(infer(pixels(module, large)), invalid, "as many pixels are taken as")
        refused(infer(fine, priority=3), invalid, "priority")
        refused(infer(fine, sequence_id=1, sequence_start=True), invalid, "sequence")
        refused(infer(fine, parameters={"max_tokens": 1}), invalid, "max_tokens")
        refused(
            infer(fine, timeout=1), "DEADLINE" if module is over_grpc else "504", "timeout"
        )
        refused(lambda: client.infer(MODEL, []), invalid, "image or pixels")


def main():
    side, rows_max = int(SIDE), int(ROWS_MAX)
    mean, std = (np.array(it.split(","), np.float32)[:, None, None] for it in (MEAN, STD))
    grpc = over_grpc.InferenceServerClient(GRPC)
    http = over_http.InferenceServerClient(HTTP, concurrency=2)
    clients = (grpc, http)
    classes = [describes_itself(grpc, over_grpc), describes_itself(http, over_http)]
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (5, side, side, 3), dtype=np.uint8)
    planes = rgb.transpose(0, 3, 1, 2).astype(np.float32)
    values = (planes / np.float32(255) - mean) / std
    expected = one_answer(clients, rgb, values)
    assert expected.shape == (5, classes[0]) and classes[0] == classes[1]
    difference = alone_or_in_company(grpc, values, expected)
    labels_and_probabilities(clients, values, expected)
    streamed(grpc, values, expected)
    many_at_once(grpc, values, expected)
    mistakes(clients, values, rows_max)
    with open(PICTURE, "wb") as file:
        file.write(png(rgb[0]))
    labels = grpc.infer(MODEL, [pixels(over_grpc, values[:1])]).as_numpy("labels")
    print(labels[0].decode(), difference)


if __name__ == "__main__":
    GRPC, HTTP, MODEL, SIDE, MEAN, STD, ROWS_MAX, PICTURE = sys.argv[1:]
    main()
