//! Files of the real sops and of our own, whole and damaged, and the store over them. The files under tests/sops are
//! described there.

mod files;
mod store;

use std::path::{Path, PathBuf};

use super::*;

fn kit(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/sops").join(path)
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(kit("fixtures").join(name)).unwrap()
}

fn ring(names: &[&str]) -> KeyRing {
    let text: String = names
        .iter()
        .map(|name| std::fs::read_to_string(kit("keys").join(format!("{name}.txt"))).unwrap())
        .collect();
    KeyRing::parse(text.as_bytes()).unwrap()
}

fn text(node: &Node) -> &str {
    match node {
        Node::Text(secret) | Node::Number(secret) => std::str::from_utf8(secret.expose()).unwrap(),
        Node::Map(_) | Node::List(_) | Node::Bool(_) | Node::Null => panic!("{node:?}"),
    }
}

/// The member that a path of keys and indices leads to.
fn at<'a>(node: &'a Node, path: &str) -> &'a Node {
    path.split('.').fold(node, |node, part| match node {
        Node::Map(members) => &members[part],
        Node::List(nodes) => &nodes[part.parse::<usize>().unwrap()],
        Node::Text(_) | Node::Number(_) | Node::Bool(_) | Node::Null => panic!("{part} of {node:?}"),
    })
}
