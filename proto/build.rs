//! Compiles the `.proto` files with protox, in Rust: no `protoc` is needed.

use std::error::Error;

/// Files compiled, relative to `proto/`. Each is written from the published field numbers.
const FILES: [&str; 7] = [
    "csi/v1/csi.proto",
    "pluginregistration/v1/registration.proto",
    "countersign/agent/v1/agent.proto",
    "countersign/issuer/v1/issuer.proto",
    "spiffe/workload/workload.proto",
    "spiffe/broker/broker.proto",
    "spire/delegated/delegated.proto",
];

/// Messages that carry a token, a key or a secret. They get a `Debug` of our own (`src/redacted.rs`)
/// in place of the derived one, so that no log line, error or panic can print them.
const SECRET: [&str; 12] = [
    "csi.v1.NodePublishVolumeRequest",
    "countersign.agent.v1.PublishRequest",
    "countersign.agent.v1.Token",
    "countersign.issuer.v1.SignRequest",
    "countersign.issuer.v1.MintJwtRequest",
    "countersign.issuer.v1.MintJwtResponse",
    "countersign.issuer.v1.Proof",
    ".X509SVID",
    "spiffe.broker.X509SVID",
    "spiffe.broker.JWTSVID",
    "spire.api.agent.delegatedidentity.v1.X509SVIDWithKey",
    "spire.api.agent.delegatedidentity.v1.JWTSVID",
];

fn main() -> Result<(), Box<dyn Error>> {
    let set = protox::compile(FILES, ["proto"])?;
    tonic_prost_build::configure().skip_debug(SECRET).compile_fds(set)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
