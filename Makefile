# `make demo` and `make test` are all a user needs; each does its own set-up. See README.md.

PARTS := libtorch tokenizer udhr seaweedfs
# cpu: everything. cuda: polo-worker-cuda, the worker for NVIDIA GPUs; neither rebuilds the other.
FLAVOUR := cpu

.PHONY: demo test test-gpu soak lint bench bench-elastic bench-control build build-cpu build-cuda setup

demo: build
	scripts/demo

test: build
	scripts/setup python megatron grpcurl rclone moto azurite
	python3 -m unittest discover bench
	cargo test --workspace --no-fail-fast

# What needs an NVIDIA GPU, and nothing else does: the data plane's contract on the real NCCL.
test-gpu:
	scripts/setup libtorch libtorch-cuda
	cargo test -p polo-worker --features cuda --test plane -- --ignored --test-threads 1 processes::over_nccl

soak: build
	POLO_SIM_RUNS=$${POLO_SIM_RUNS:-100000} cargo test -p polo-sim --test simulation every_run -- --nocapture

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

bench: build
	scripts/setup python
	cargo build -p polo-store --features testing --example random_corpus
	bench/run

bench-elastic: build
	scripts/setup torchft
	cargo build -p polo-store --features testing --example random_corpus
	bench/elastic

bench-control: build
	ulimit -n 12000; cargo run -p polo-coordinator --example fake_workers -- --num-workers 10,100,1000,2000,5000
	ulimit -n 12000; cargo run -p polo-coordinator --example fake_workers -- --num-workers 10000 --heartbeat-timeout-ms 15000

build: build-$(FLAVOUR)

build-cpu: setup
	cargo build --workspace

# Of the whole workspace, so that dependencies are those that the CPU flavour has built.
build-cuda:
	scripts/setup libtorch libtorch-cuda
	cargo build --workspace --features polo-worker/cuda --bin polo-worker-cuda

setup:
	scripts/setup $(PARTS)
