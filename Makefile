# `make demo` and `make test` are all a user needs; each does its own set-up. See README.md.

PARTS := libtorch tokenizer udhr seaweedfs

.PHONY: demo test lint bench build setup

demo: build
	scripts/demo

test: build
	scripts/setup python megatron grpcurl
	cargo test --workspace --no-fail-fast

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

bench: build
	scripts/setup python
	cargo build -p polo-store --features testing --example random_corpus
	bench/run

build: setup
	cargo build --workspace

setup:
	scripts/setup $(PARTS)
