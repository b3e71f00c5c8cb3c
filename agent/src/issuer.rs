//! The embedded issuer.
