//! The agent of Countersign: it holds identities, talks to stores and to the issuer, and writes files into the
//! directories that the driver hands it. It holds secrets and no power.

pub mod admin;
pub mod answers;
pub mod audit;
pub mod cache;
pub mod clock;
pub mod config;
pub mod error;
pub mod explain;
pub mod files;
pub mod hardening;
pub mod identity;
pub mod issuer;
pub mod keeper;
pub mod kubernetes;
pub mod log;
pub mod mailbox;
pub mod metrics;
pub mod notify;
pub mod render;
pub mod request;
pub mod run;
pub mod secret;
pub mod service;
pub mod signals;
pub mod sources;
pub mod spiffe;
pub mod store;
#[cfg(test)]
mod testing;
pub mod turn;
pub mod volume;

pub use error::Error;
