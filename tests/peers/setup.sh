#!/usr/bin/env bash
# Makes .deps/peers with the Python programs that peers.py runs beside Aerie. It takes half an hour on two
# cores: llama.cpp is compiled with all instructions of this machine.
# Usage: tests/peers/setup.sh [PREFIX]; does nothing where the pinned versions are there already.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
prefix=${1:-"$here/../../.deps/peers"}
stamp=$(sha256sum "$here/requirements.txt" | cut -d' ' -f1)
if [ "$(cat "$prefix/.stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

rm -rf "$prefix"
# Without a pip of its own: not every Python ships what `venv` needs to make one.
python3 -m venv --without-pip "$prefix"
CMAKE_ARGS="-DGGML_NATIVE=ON" nice -n 19 \
    python3 -m pip --python "$prefix/bin/python" install --disable-pip-version-check \
    --no-binary llama-cpp-python --requirement "$here/requirements.txt"
echo "$stamp" >"$prefix/.stamp"
