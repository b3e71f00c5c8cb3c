//! A Kubernetes of one node, made of its real parts, in namespaces of its own: everything that is tried on a cluster
//! is tried on this one, and it takes seconds to be there.

pub mod admission;
pub mod audit;
pub mod bench;
pub mod canary;
pub mod cases;
pub mod cgroups;
pub mod chart;
pub mod cluster;
pub mod images;
pub mod kubelet;
pub mod layout;
pub mod misplaced;
pub mod names;
pub mod namespace;
pub mod node;
pub mod parts;
pub mod pki;
pub mod pods;
pub mod refusing;
pub mod scan;
pub mod secrets;
pub mod target;
pub mod tools;
pub mod version;
pub mod world;
