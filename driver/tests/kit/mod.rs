//! What the tests of the driver stand on: a private mount namespace with a kubelet directory in it, the real driver
//! as a process of its own, and an agent that does as it is told.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test crate uses its own part of the kit")]

pub mod agent;
pub mod driver;
pub mod ground;
pub mod signaller;

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Waits until `holds`; for things that another process does in its own time.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < patience, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}
