#!/usr/bin/env bash
# Puts libtorch's half for NVIDIA GPUs, and what it needs of CUDA 13, beside the libtorch in .deps/libtorch, for
# `aerie-export train --device cuda`. The driver is the machine's own.
# Usage: export/setup/libtorch-cuda.sh [PREFIX]; does nothing where the pinned version is there already.
set -euo pipefail

torch=2.13.0
# What the wheel of that version asks for.
needs=(
    "cuda-toolkit[cublas,cufft,cufile,curand,cusolver,cusparse,nvjitlink,nvrtc]==13.0.3"
    nvidia-cudnn-cu13==9.20.0.48 nvidia-cusparselt-cu13==0.8.1 nvidia-nccl-cu13==2.29.7 nvidia-nvshmem-cu13==3.4.5
)
prefix=${1:-"$(dirname "$0")/../../.deps/libtorch"}
case "$(cat "$prefix/.stamp" 2>/dev/null)" in
    torch-$torch-*) ;;
    *)
        echo "$prefix has no libtorch $torch: export/setup/libtorch.sh comes first" >&2
        exit 1
        ;;
esac

stamp="torch-$torch-${needs[*]}-1"
if [ "$(cat "$prefix/.stamp-cuda" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

# Beside what it makes, since the system's temporary folder may be too small.
work=$(mktemp -d -p "$prefix")
trap 'rm -rf "$work"' EXIT
pip_download() {
    python3 -m pip download --quiet --disable-pip-version-check --no-cache-dir --dest "$work" --only-binary=:all: "$@"
}
echo "fetching libtorch $torch for CUDA (3 GB on disk)" >&2
pip_download --no-deps --implementation cp --python-version 3.11 --abi cp311 \
    --platform manylinux_2_28_x86_64 "torch==$torch"
pip_download "${needs[@]}"

# In a folder of its own: torch-sys, which links what lies in torch/lib, is to make the same programs as without.
python3 - "$work" "$prefix" <<'PY'
import glob, os, shutil, sys, zipfile

work, prefix = sys.argv[1:]
own = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_cuda_linalg.so", "libtorch_nvshmem.so")
for wheel in glob.glob(f"{work}/*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            folder, file = os.path.split(name)
            if folder == "torch/lib" and file in own:
                target = f"{prefix}/torch/lib-cuda/{file}"
            elif name.startswith("nvidia/") and ".so" in file:
                target = f"{prefix}/{name}"
            else:
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(name) as found, open(target, "wb") as out:
                shutil.copyfileobj(found, out, 1 << 20)
PY
echo "$stamp" >"$prefix/.stamp-cuda"
