//! Polo's gRPC interface: the types and services generated from `polo/v1/polo.proto` (training) and
//! `polo/v1/prepare.proto` (preparing a corpus).
//!
//! Nothing but generated code lives here. Start reading in the `.proto` files: their comments are the documentation.

/// Version 1 of the interface.
pub mod v1 {
    #![allow(missing_docs, unused_qualifications, clippy::all)]
    tonic::include_proto!("polo.v1");
}

/// The encoded descriptors of the interface, for gRPC server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/polo.bin"));
