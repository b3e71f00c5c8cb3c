//! Kills, at random moments and at chosen ones.
fn main() -> std::process::ExitCode {
    countersign_tests::harness::main(Vec::new())
}
