#!/usr/bin/env bash
# Puts ONNX Runtime's shared library into .deps/onnxruntime, out of the wheel of its Python package.
# Usage: ops/setup/onnxruntime.sh [PREFIX]; does nothing where the pinned version is there already.
set -euo pipefail

version=1.32.0
prefix=${1:-"$(dirname "$0")/../../.deps/onnxruntime"}
case "$(uname -m)" in
x86_64) sha256=5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d ;;
*)
    echo "no pinned ONNX Runtime for $(uname -m): install $version yourself and set ORT_DYLIB_PATH" >&2
    exit 1
    ;;
esac

stamp="onnxruntime-$version"
if [ "$(cat "$prefix/.stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "fetching ONNX Runtime $version (28 MB)" >&2
# The library is the same in the wheel of every Python version; one is named, so that the hash holds.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" \
    --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 \
    --platform manylinux_2_28_x86_64 "onnxruntime==$version"
wheel=$(echo "$work"/onnxruntime-*.whl)
echo "$sha256  $wheel" | sha256sum --check --quiet

rm -rf "$prefix"
mkdir -p "$prefix"
python3 - "$wheel" "$version" "$prefix/libonnxruntime.so" <<'PY'
import shutil, sys, zipfile

wheel, version, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    with archive.open(f"onnxruntime/capi/libonnxruntime.so.{version}") as source:
        with open(target, "wb") as out:
            shutil.copyfileobj(source, out)
PY
echo "$stamp" >"$prefix/.stamp"
