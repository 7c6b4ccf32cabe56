#!/usr/bin/env bash
# Puts a CPU-only libtorch into .deps/libtorch, out of the wheels of PyTorch and two of its needs.
# Usage: export/setup/libtorch.sh [PREFIX]; does nothing where the pinned version is there already.
set -euo pipefail

torch=2.13.0
cudart=13.0.96
cupti=13.0.85
prefix=${1:-"$(dirname "$0")/../../.deps/libtorch"}
if [ "$(uname -m)" != x86_64 ]; then
    echo "no pinned libtorch for $(uname -m): install $torch yourself and set LIBTORCH" >&2
    exit 1
fi

stamp="torch-$torch-cudart-$cudart-cupti-$cupti-1"
if [ "$(cat "$prefix/.stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip_download() {
    python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps \
        --dest "$work" --only-binary=:all: "$@"
}
echo "fetching libtorch $torch (540 MB)" >&2
# C++ knows no Python version; one is named so that any machine gets the same files.
pip_download --implementation cp --python-version 3.11 --abi cp311 \
    --platform manylinux_2_28_x86_64 "torch==$torch"
# libtorch_cpu needs these two even where there is no GPU: its profiler is linked to them.
pip_download "nvidia-cuda-runtime==$cudart" "nvidia-cuda-cupti==$cupti"

rm -rf "$prefix"
mkdir -p "$prefix"
python3 - "$work" "$prefix" <<'PY'
import glob, sys, zipfile

work, prefix = sys.argv[1:]
wanted = ("torch/include/", "torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1",
          "nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/lib/libcupti.so.13")
for wheel in glob.glob(f"{work}/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(prefix, [it for it in archive.namelist() if it.startswith(wanted)])
PY

# The wheel's libtorch.so insists on libtorch_cuda.so: an empty library over libtorch_cpu replaces it.
lib="$prefix/torch/lib"
c++ -shared -o "$lib/libtorch.so" -x c++ /dev/null -Wl,-soname,libtorch.so -Wl,--no-as-needed \
    -L"$lib" -ltorch_cpu -lc10 '-Wl,-rpath,$ORIGIN' -Wl,--allow-shlib-undefined
echo "$torch+cpu" >"$prefix/torch/build-version"
echo "$stamp" >"$prefix/.stamp"
