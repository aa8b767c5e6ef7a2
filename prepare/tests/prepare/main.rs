//! `polo prepare` as people run it, with the real tokenizer (`scripts/setup tokenizer`).
#![allow(missing_docs)]

mod basics;
mod cleaning;
mod cluster;
mod formats;
mod peer;
mod restart;
mod support;
