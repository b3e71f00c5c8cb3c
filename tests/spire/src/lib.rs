//! A real SPIRE, server and agent, on a real node with the chart installed: what Countersign does with it is tried on
//! the real thing.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

mod authorities;
pub mod bench;
pub mod charts;
pub mod controller;
pub mod entry;
pub mod files;
pub mod nginx;
pub mod page;
pub mod postgres;
pub mod program;
pub mod spire;
pub mod vault;
pub mod world;
