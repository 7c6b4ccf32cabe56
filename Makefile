# Aerie from a fresh machine: Rust, Python 3 with pip, make and a C++ compiler are all it takes.
# Everything else comes from package registries, into .deps/ and target/.

.PHONY: help demo build test soak fuzz lint bench python parity aarch64 cuda clean-deps

help: ## what you are reading
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

demo: build ## serve the bundled models, stream a tale over QUIC, have a picture classified (no libtorch)
	@clients/demo.sh

build: .deps/onnxruntime ## the server and the client, optimised
	cargo build --release -p aerie-serve -p aerie-client

test: .deps/onnxruntime .deps/libtorch python ## every test there is
	cargo build --workspace
	cargo test --workspace

soak: build ## hundreds of sessions on few lanes, the server killed again and again, for AERIE_SOAK_SECONDS
	cargo run --release -p aerie-tests --example soak

fuzz: export AERIE_FUZZ_SECONDS ?= 180
fuzz: .deps/onnxruntime .deps/libtorch ## every reader of bytes from outside, for AERIE_FUZZ_SECONDS each
	RUST_BACKTRACE=0 cargo test --lib -p aerie-export -p aerie-models -p aerie-ops -p aerie-serve fuzzed_ -- --nocapture

lint: .deps/libtorch ## formatting and clippy, warnings being errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

bench: .deps/onnxruntime .deps/libtorch ## kernels beside the memory bandwidth measured in the same run
	cargo bench -p aerie-ops -p aerie-state-cache -p aerie-serve
	cargo bench -p aerie-export --bench scan

python: ## what the tests run Aerie against, and its Python client: onnxruntime, grpcio, mypy, tritonclient (450 MB)
	@tests/setup/python.sh
	@tests/setup/python.sh .deps/triton tests/python/triton.txt

parity: ## Google's code, transformers and timm beside ours (Python packages of 6 GB, CUDA's among them)
	@tests/setup/python.sh .deps/parity tests/python/parity.txt
	cargo build -p aerie-export --no-default-features -p aerie-ops
	.deps/parity/bin/python tests/goldens/make.py --check
	.deps/parity/bin/python tests/python/transformers_parity.py target/debug/aerie-export target/debug/libaerie_ops.so
	.deps/parity/bin/python tests/python/timm_parity.py target/debug/aerie-export

aarch64: ## tests of the kernels on three emulated 64-bit Arm processors (160 MB where QEMU is missing)
	@ops/setup/aarch64.sh

.deps/onnxruntime: ops/setup/onnxruntime.sh
	@ops/setup/onnxruntime.sh && touch $@

.deps/libtorch: export/setup/libtorch.sh
	@export/setup/libtorch.sh && touch $@

cuda: .deps/libtorch ## libtorch's half for NVIDIA GPUs, for `aerie-export train --device cuda` (3 GB)
	@export/setup/libtorch-cuda.sh

clean-deps: ## remove what was fetched
	rm -rf .deps
