//! The agent of Countersign: it holds identities, talks to stores and to the issuer, and writes files into the
//! directories that the driver hands it. It holds secrets and no power.

pub mod clock;
pub mod error;
pub mod files;
pub mod identity;
pub mod issuer;
pub mod render;
pub mod request;
pub mod secret;
pub mod spiffe;
pub mod store;

pub use error::Error;
