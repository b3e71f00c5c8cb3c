//! Countersign against a real Vault: a server with TLS, raft storage and an audit file, PostgreSQL behind its
//! database engine, a server that lies where a real one can't be made to, and all of it around a node of the kit.

pub mod api;
pub mod audit;
pub mod authority;
pub mod aws;
pub mod bench;
pub mod demo;
pub mod impostor;
pub mod ingress;
pub mod liar;
pub mod page;
pub mod postgres;
pub mod server;
pub mod world;
