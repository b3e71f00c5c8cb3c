//! The driver on real mounts: everything in this test crate needs a machine that allows them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on says so by panicking"
)]

#[path = "../kit/mod.rs"]
mod kit;

// The name in front is what a machine without mounts leaves these tests out by.
#[path = "."]
mod mounts {
    mod faults;
    mod publish;
    mod recovery;
    mod refuse;
    mod republish;
    mod signals;
    mod stop;
    mod unpublish;
}
