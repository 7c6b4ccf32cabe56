"""How many of CIFAR-10's test images a bundled classifier gets right, without any code of Aerie's: Pillow decodes
them, and ONNX Runtime runs the graph. With `--server` a server that has the bundle is sent the files, too.

    pip install numpy onnxruntime pillow pyarrow tritonclient[http]
    aerie-serve --model models/bundles/pictures --rest 127.0.0.1:8000
    python tests/python/picture_accuracy.py models/bundles/pictures cifar10/test.parquet --server 127.0.0.1:8000
"""

import argparse
import io
import pathlib
import tomllib

import numpy
import onnxruntime
import PIL.Image
import pyarrow.parquet

ROWS = 250
# As many as a server takes at once unless it is told otherwise.
SERVED_ROWS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("images", type=pathlib.Path, help="a .parquet file in Hugging Face's layout")
    parser.add_argument("--server", help="HOST:PORT of `aerie-serve --rest`")
    args = parser.parse_args()

    manifest = tomllib.loads((args.bundle / "manifest.toml").read_text())
    table = pyarrow.parquet.read_table(args.images)
    column = "image" if "image" in table.column_names else "img"
    files = [it["bytes"] for it in table.column(column).to_pylist()]
    labels = table.column("label").to_numpy()
    say("ONNX Runtime", by_onnxruntime(args.bundle, manifest["input"], files), labels)
    if args.server:
        say("the server", by_server(args.server, manifest["name"], files), labels)


def by_onnxruntime(bundle: pathlib.Path, shown: dict, files: list[bytes]) -> numpy.ndarray:
    pixels = [pixels_of(it) for it in files]
    expected = (shown["height"], shown["width"], 3)
    assert all(it.shape == expected for it in pixels), f"images that are not {expected} have to be resized"
    mean, std = (numpy.float32(shown[name]) for name in ("mean", "std"))
    pixels = ((numpy.stack(pixels) / numpy.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(bundle / "model.onnx")
    batches = (numpy.ascontiguousarray(pixels[at : at + ROWS]) for at in range(0, len(pixels), ROWS))
    return numpy.concatenate([session.run(["logits"], {"pixels": it})[0] for it in batches])


def by_server(address: str, model: str, files: list[bytes]) -> numpy.ndarray:
    import tritonclient.http

    client = tritonclient.http.InferenceServerClient(address)
    logits = []
    for at in range(0, len(files), SERVED_ROWS):
        rows = numpy.array(files[at : at + SERVED_ROWS], dtype=object)
        tensor = tritonclient.http.InferInput("image", [len(rows)], "BYTES")
        tensor.set_data_from_numpy(rows)
        outputs = [tritonclient.http.InferRequestedOutput("logits")]
        logits.append(client.infer(model, [tensor], outputs=outputs).as_numpy("logits"))
    return numpy.concatenate(logits)


def say(who: str, logits: numpy.ndarray, labels: numpy.ndarray) -> None:
    right = int((logits.argmax(1) == labels).sum())
    print(f"{who}: {right} of {len(labels)} are right: {100 * right / len(labels):.2f} %")


def pixels_of(encoded: bytes) -> numpy.ndarray:
    return numpy.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))


main()
