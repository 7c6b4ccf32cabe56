"""How many of CIFAR-10's test images a bundled classifier gets right, without any code of Aerie's: Pillow decodes
them, and ONNX Runtime runs the graph.

    pip install numpy onnxruntime pillow pyarrow
    python tests/python/picture_accuracy.py models/bundles/pictures cifar10/test.parquet
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("images", type=pathlib.Path, help="a .parquet file in Hugging Face's layout")
    args = parser.parse_args()

    manifest = tomllib.loads((args.bundle / "manifest.toml").read_text())
    mean, std = (numpy.float32(manifest["input"][name]) for name in ("mean", "std"))
    table = pyarrow.parquet.read_table(args.images)
    column = "image" if "image" in table.column_names else "img"
    pixels = [pixels_of(it["bytes"]) for it in table.column(column).to_pylist()]
    expected = (manifest["input"]["height"], manifest["input"]["width"], 3)
    assert all(it.shape == expected for it in pixels), f"images that are not {expected} have to be resized"
    pixels = ((numpy.stack(pixels) / numpy.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    labels = table.column("label").to_numpy()

    session = onnxruntime.InferenceSession(args.bundle / "model.onnx")
    batches = (numpy.ascontiguousarray(pixels[at : at + ROWS]) for at in range(0, len(pixels), ROWS))
    logits = numpy.concatenate([session.run(["logits"], {"pixels": it})[0] for it in batches])
    right = int((logits.argmax(1) == labels).sum())
    print(f"{right} of {len(labels)} are right: {100 * right / len(labels):.2f} %")


def pixels_of(encoded: bytes) -> numpy.ndarray:
    return numpy.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))


main()
