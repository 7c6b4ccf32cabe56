#!/usr/bin/env bash
# Checks aerie-ops for 64-bit Arm and runs its tests there, emulated: once for each set of instructions that
# kernels choose from. What is missing comes from package registries into .deps/aarch64, without root.
# Usage: ops/setup/aarch64.sh [CARGO TEST ARGUMENTS]
set -euo pipefail

cd "$(dirname "$0")/../.."
prefix=$PWD/.deps/aarch64
target=aarch64-unknown-linux-musl
zig=0.17.1
mkdir -p "$prefix"

qemu=$(command -v qemu-aarch64 qemu-aarch64-static "$prefix/qemu/usr/bin/qemu-aarch64-static" | head -1 || true)
if [ -z "$qemu" ]; then
    echo "fetching qemu-user-static (63 MB)" >&2
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    if ! (cd "$work" && apt-get -qq download qemu-user-static); then
        echo "no qemu-aarch64: install the package that has it, qemu-user on Debian and Fedora" >&2
        exit 1
    fi
    dpkg-deb -x "$work"/qemu-user-static_*.deb "$prefix/qemu"
    qemu=$prefix/qemu/usr/bin/qemu-aarch64-static
fi

# Something that criterion depends on is C, which no test ends up with.
if [ "$(cat "$prefix/.zig" 2>/dev/null)" != "$zig" ]; then
    echo "fetching Zig's C compiler $zig (101 MB)" >&2
    rm -rf "$prefix/zig"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --only-binary=:all: --target "$prefix/zig" "ziglang==$zig"
    echo "$zig" >"$prefix/.zig"
fi

if ! rustup target list --installed | grep -qx "$target"; then
    rustup target add "$target"
fi

export ZIG_GLOBAL_CACHE_DIR=$prefix/zig-cache
export CC_aarch64_unknown_linux_musl="$prefix/zig/ziglang/zig cc -target aarch64-linux-musl"
export AR_aarch64_unknown_linux_musl="$prefix/zig/ziglang/zig ar"
# Zig has other names for targets than those that would be added.
export CRATE_CC_NO_DEFAULTS=1
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUSTFLAGS="-C linker=rust-lld -C link-self-contained=yes"

options=(-p aerie-ops --no-default-features --target "$target")
cargo clippy "${options[@]}" --lib --tests -- -D warnings
# What each processor is to choose; see `ops/src/isa/tests.rs`.
for machine in cortex-a72:Widening neoverse-n1:Dotprod max:I8mm; do
    cpu=${machine%:*}
    echo "aerie-ops on $cpu" >&2
    export AERIE_DOTS=${machine#*:}
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER="$qemu -cpu $cpu"
    cargo test "${options[@]}" --lib "$@"
done
