#!/usr/bin/env bash
# Makes .deps/venv with the Python programs that the tests run Aerie against.
# Usage: tests/setup/python.sh [PREFIX [REQUIREMENTS]]; does nothing where the pinned versions are there
# already.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
prefix=${1:-"$here/../../.deps/venv"}
requirements=${2:-"$here/../python/requirements.txt"}
stamp=$(sha256sum "$requirements" | cut -d' ' -f1)
if [ "$(cat "$prefix/.stamp" 2>/dev/null)" = "$stamp" ]; then exit 0; fi

echo "fetching the Python packages of $(basename "$requirements")" >&2
rm -rf "$prefix"
# Without a pip of its own: not every Python ships what `venv` needs to make one.
python3 -m venv --without-pip "$prefix"
python3 -m pip --python "$prefix/bin/python" install --quiet --disable-pip-version-check \
    --only-binary=:all: --requirement "$requirements"
echo "$stamp" >"$prefix/.stamp"
