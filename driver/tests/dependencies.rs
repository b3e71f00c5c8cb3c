//! What is linked into the process with power: no TLS, no name resolution, no HTTP client, no templates, nothing of
//! Kubernetes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on says so by panicking"
)]

use std::collections::BTreeSet;
use std::process::Command;

/// Names, or with a star at their end what names begin with.
const NEVER: &[&str] = &[
    // TLS and cryptography beyond the one hash
    "rustls*",
    "tokio-rustls",
    "webpki*",
    "openssl*",
    "native-tls",
    "tokio-native-tls",
    "boring*",
    "ring",
    "aws-lc-*",
    "schannel",
    "security-framework*",
    "x509-*",
    "rcgen",
    "jsonwebtoken",
    "age*",
    "rsa",
    "p256",
    "ecdsa",
    // names and networks
    "hickory*",
    "trust-dns*",
    "socks",
    "quinn*",
    "h3*",
    "if-addrs",
    // HTTP clients and servers of others
    "reqwest",
    "hyper-rustls",
    "hyper-tls",
    "ureq",
    "isahc",
    "curl*",
    "actix*",
    "warp",
    // Kubernetes
    "kube*",
    "k8s-openapi",
    "spiffe*",
    // templates and document languages
    "minijinja*",
    "tera",
    "handlebars",
    "askama",
    "liquid*",
    "serde_yaml*",
    "serde-saphyr",
    "saphyr*",
    "toml*",
    "ron",
    // what makes it large
    "regex*",
    "regex-automata",
    "aho-corasick",
    "prometheus*",
    "countersign-agent",
    "rops",
];

/// How many crates are linked at most, ours included. A new one is a decision: raise this with the reason in the
/// commit message.
const MOST: usize = 90;

fn linked() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", "countersign-driver", "-e", "normal,no-proc-macro"])
        .args(["--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn nothing_that_speaks_to_a_network_is_linked() {
    let linked = linked();
    assert!(
        linked.contains("tonic") && linked.contains("rustix"),
        "this is not the driver's tree: {linked:?}"
    );
    for never in NEVER {
        let found: Vec<_> = linked
            .iter()
            .filter(|name| match never.strip_suffix('*') {
                Some(beginning) => name.starts_with(beginning),
                None => name == never,
            })
            .collect();
        assert!(found.is_empty(), "{found:?} must not be linked into the driver");
    }
}

#[test]
fn it_stays_small() {
    let linked = linked();
    assert!(linked.len() <= MOST, "{} crates are linked: {linked:#?}", linked.len());
}
