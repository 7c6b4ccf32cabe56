"""Runs classifiers through timm and through the graphs that Aerie imports of their weights.

Usage: timm_parity.py AERIE_EXPORT

`make parity` installs what this needs (parity.txt) and runs it. Weights are random, and moved off where
training begins: numbers at the ends of residual branches and gains begin at 0 there, and would hide
whatever is wrong within. Each model is saved as timm publishes it (model.safetensors, config.json), imported
by AERIE_EXPORT, and run by ONNX Runtime on images of even, odd and unequal extents.

Each point in which published codes differ is then set to what timm does not do, and has to show: as large a
difference as it makes is expected. Exits 1 if anything is not as expected.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime
import timm
import torch
from safetensors.torch import save_file

# Of logits of order 1, summed in f32 in another order.
TOLERANCE = 1e-4
MODELS = [
    "test_nfnet", "nf_resnet50", "nf_regnet_b1", "nfnet_l0", "eca_nfnet_l0", "nfnet_f0", "dm_nfnet_f0",
]
# Least difference, as a share of the largest logit, that each change makes of dm_nfnet_f0.
CONTROLS = [
    ("standardised with the paper's epsilon", ('standardise = "add"', 'standardise = "max"'), 5e-3),
    ("symmetric padding", ('padding = "same"', 'padding = "symmetric"'), 5e-2),
    ("GELU by tanh", ('activation = "gelu"', 'activation = "gelu-tanh"'), 5e-5),
    ("gains of quadrature", ('gains = "deepmind"', 'gains = "exact"'), 1e-3),
]


def moved(name):
    """A model of timm's with random weights, none of which is where training begins."""
    torch.manual_seed(sum(name.encode()))
    model = timm.create_model(name).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn_like(value)
            if key.endswith("skipinit_gain"):
                value.copy_(torch.empty_like(value).uniform_(0.5, 1.5))
            elif key.endswith("gain"):
                value.copy_(value.clamp_min(0.5) * (1 + 0.2 * noise))
            elif key.endswith("bias"):
                value.add_(0.05 * noise)
    return model


def save(model, name, folder):
    """What timm publishes of a model."""
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    given = model.pretrained_cfg
    keys = ["input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std"]
    config = {
        "architecture": name,
        "num_classes": model.num_classes,
        "pretrained_cfg": {key: given[key] for key in keys if given.get(key) is not None},
    }
    (folder / "config.json").write_text(json.dumps(config))


def imported(program, folder, out, *options):
    subprocess.run([program, "import", "--from", folder, "--out", out, *options], check=True)
    return onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])


def preset_of(bundle):
    """The bundle's model as a file of its own."""
    text = (bundle / "manifest.toml").read_text()
    model = text.split("[model]\n")[1].split("[provenance]")[0]
    return model.replace("[model.", "[").replace("[[model.", "[[")


def compare(model, session, size):
    """Largest logit, and the largest difference of one, over images of several extents."""
    scale, worst = 0.0, 0.0
    for extent in [(2, size, size), (1, size + 1, size - 7), (1, size + 8, size + 16)]:
        pixels = torch.randn(extent[0], 3, *extent[1:])
        with torch.no_grad():
            expected = model(pixels).numpy()
        found = session.run(["logits"], {"pixels": pixels.numpy()})[0]
        scale = max(scale, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(found - expected).max()))
    return scale, worst


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    failed = False

    def say(what, figure, holds):
        nonlocal failed
        failed |= not holds
        print(f"{what:<58} {figure:>9.1e}  {'ok' if holds else 'NOT AS EXPECTED'}", flush=True)

    print(f"timm {timm.__version__}, torch {torch.__version__}, onnxruntime {onnxruntime.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        for name in MODELS:
            model = moved(name)
            save(model, name, scratch / name)
            session = imported(program, scratch / name, scratch / f"{name}-bundle")
            scale, worst = compare(model, session, 96)
            say(f"{name}: difference of logits up to {scale:.2f}", worst, worst <= TOLERANCE)
        # The last model is the one whose code others have written anew.
        for number, (what, (old, new), least) in enumerate(CONTROLS):
            text = preset_of(scratch / f"{name}-bundle")
            assert old in text, f"{old} is not in the model"
            changed = scratch / "changed.toml"
            changed.write_text(text.replace(old, new))
            out = scratch / f"control-{number}"
            session = imported(program, scratch / name, out, "--model", changed)
            scale, worst = compare(model, session, 96)
            say(f"{name}, {what}: share of the largest logit", worst / scale, least <= worst / scale)
        # A variance divided by N - 1: the same as gains that are smaller by its root.
        state = model.state_dict()
        for key in [key for key in state if key.endswith(".gain")]:
            inputs = state[key.replace("gain", "weight")][0].numel()
            state[key] = state[key] * ((inputs - 1) / inputs) ** 0.5
        save_file(state, scratch / name / "model.safetensors")
        session = imported(program, scratch / name, scratch / "control-variance")
        scale, worst = compare(model, session, 96)
        what = "variance of a sample: share of the largest logit"
        say(f"{name}, {what}", worst / scale, 1e-2 <= worst / scale)
    sys.exit(failed)


if __name__ == "__main__":
    main()
