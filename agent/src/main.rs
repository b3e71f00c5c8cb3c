//! Starts the agent or the issuer.

fn main() {}
