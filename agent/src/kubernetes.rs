//! The API server, as far as we need it: a handful of verbs in JSON, and the watch of one object.
//!
//! No redirect is followed, for every request carries a token. Token and certificate authority are read again as
//! they rotate. What is asked for is always one named object, so that the rights for it can name it too.

pub mod args;
mod client;
pub mod duties;
mod error;
pub mod events;
mod object;
pub(crate) mod pods;
mod quiet;
pub mod taint;
mod watch;

pub use args::{ApiArgs, Server};
#[cfg(test)]
pub(crate) use client::DEADLINE;
pub(crate) use client::{Api, Caller, Patch};
pub(crate) use error::{ApiError, speakable};
pub use object::ObjectName;
pub(crate) use object::{ConfigMap, Meta, Resource};
pub(crate) use watch::{Look, follow};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
