//! A Kubernetes of one node, made of its real parts, in namespaces of its own: everything that is tried on a cluster
//! is tried on this one, and it takes seconds to be there.

pub mod chart;
pub mod cluster;
pub mod images;
pub mod layout;
pub mod namespace;
pub mod names;
pub mod parts;
pub mod pki;
pub mod pods;
pub mod secrets;
pub mod target;
pub mod tools;
