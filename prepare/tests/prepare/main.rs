//! `polo prepare` as people run it, with the real tokenizer (`scripts/setup tokenizer`).
#![allow(missing_docs)]

mod bad_inputs;
mod basics;
mod cleaning;
mod cluster;
mod formats;
mod peer;
mod perplexity;
mod restart;
mod support;
