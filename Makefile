# `make demo` and `make test` are all a user needs; each does its own set-up. See README.md.

PARTS := libtorch tokenizer udhr seaweedfs
# cpu: everything. cuda: polo-worker-cuda, the worker for NVIDIA GPUs; neither rebuilds the other.
FLAVOUR := cpu

.PHONY: demo demo-marco images test test-gpu bench-gpu gpu-programs soak lint bench bench-elastic bench-control build build-cpu build-cuda setup

demo: build
	scripts/demo

demo-marco: build
	scripts/setup rclone libreoffice-help
	scripts/demo-marco

# Container images of the flavour, for podman or docker: images/README.md.
IMAGES_cpu := coordinator worker
IMAGES_cuda := worker-cuda

images: build-cpu build-$(FLAVOUR)
	images/build $(IMAGES_$(FLAVOUR))

# Not of `build`: tests have features of their own, and make the same programs with them.
test: setup
	scripts/setup python megatron grpcurl grpcio rotel tensorboard rclone moto azurite kenlm prometheus browser kubernetes checkov podman
	cargo test --workspace --no-run
	python3 -m unittest discover bench
	python3 -m unittest discover scripts
	third_party/browser/bin/python -m unittest discover cli/tests/page
	cargo test --workspace --no-fail-fast

# What needs an NVIDIA GPU.
GPU_PROGRAMS := target/gpu

test-gpu: gpu-programs
	bench/gpu test --programs $(GPU_PROGRAMS) --python third_party/python/bin/python

bench-gpu: gpu-programs
	bench/gpu bench --programs $(GPU_PROGRAMS) --python third_party/python/bin/python

gpu-programs: build-cpu build-cuda
	scripts/setup python
	cargo test --workspace --features polo-worker/cuda --test plane --no-run
	cargo build -p polo-store --features testing --example random_corpus
	bench/gpu bundle $(GPU_PROGRAMS)
	ln -sfn "$$(readlink -f third_party/libtorch-cuda/lib)" $(GPU_PROGRAMS)/lib

soak: build
	POLO_SIM_RUNS=$${POLO_SIM_RUNS:-100000} cargo test -p polo-sim --test simulation every_run -- --nocapture

# Each reader of bytes from outside, one after the other, for so many seconds each.
fuzz: build
	POLO_FUZZ_SECONDS=$${POLO_FUZZ_SECONDS:-600} cargo test --workspace fuzz_ -- --nocapture --test-threads 1

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

bench: build
	scripts/setup python loaders
	cargo build -p polo-store --features testing --example random_corpus
	cargo build -p polo-worker --example read_samples
	bench/run
	bench/loader

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
