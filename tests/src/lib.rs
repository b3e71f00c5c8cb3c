//! The test kit: a kubelet stand-in, a cluster's tokens, the real binaries as processes, and what the demo, the
//! tests and the benchmarks share.

pub mod bench;
pub mod demo;
pub mod harness;
pub mod http;
pub mod kubelet;
pub mod link;
pub mod machine;
pub mod mount;
pub mod node;
pub mod pods;
pub mod processes;
pub mod reader;
pub mod scratch;
pub mod store;
pub mod tokens;
mod wall;
