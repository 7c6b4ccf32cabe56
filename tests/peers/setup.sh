#!/usr/bin/env bash
# Makes .deps/peers with the Python programs that peers.py runs beside Aerie. It takes half an hour on two
# cores: llama.cpp is compiled with all instructions of this machine but the tiles of AMX, whose kernels there
# end with an illegal instruction.
# Usage: tests/peers/setup.sh [PREFIX]; does nothing where the pinned versions, made by this script, are there already.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
prefix=${1:-"$here/../../.deps/peers"}
stamp=$(cat "$here/requirements.txt" "${BASH_SOURCE[0]}" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$prefix/.stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

rm -rf "$prefix"
# Without a pip of its own: not every Python ships what `venv` needs to make one.
python3 -m venv --without-pip "$prefix"
flags=
if [ "$(uname -m)" = x86_64 ]; then flags=-mno-amx-int8; fi
CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_C_FLAGS=$flags -DCMAKE_CXX_FLAGS=$flags" nice -n 19 \
    python3 -m pip --python "$prefix/bin/python" install --disable-pip-version-check \
    --no-binary llama-cpp-python --requirement "$here/requirements.txt"
echo "$stamp" >"$prefix/.stamp"
