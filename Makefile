# `make demo` and `make test` are all a user needs; each does its own set-up. See README.md.

PARTS := libtorch tokenizer udhr seaweedfs

.PHONY: demo test soak lint bench bench-elastic bench-control build setup

demo: build
	scripts/demo

test: build
	scripts/setup python megatron grpcurl rclone
	python3 -m unittest discover bench
	cargo test --workspace --no-fail-fast

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

build: setup
	cargo build --workspace

setup:
	scripts/setup $(PARTS)
