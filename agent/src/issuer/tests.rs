//! The issuer and the agent's client of it, end to end over real TLS.

mod calls;
pub(crate) mod cluster;
mod fleet;
mod life;
mod relay;
