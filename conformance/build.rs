//! Compiles the stand-in controller's protocol with protox: no `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let set = protox::compile(["controller.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).compile_fds(set)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
