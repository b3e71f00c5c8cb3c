//! Kills: at random moments while everything is busy, and at every step of the driver's.

mod points;
mod random;
mod slots;

use std::process::ExitCode;
use std::time::Duration;

use countersign_tests::harness::{Needs, case, case_within, main as run};

fn main() -> ExitCode {
    let most = Duration::from_secs(120) + Duration::from_secs(2) * random::kills();
    run(vec![
        case("soak::the_driver_dies_at_every_step", Needs::Mounts, points::the_driver_dies_at_every_step),
        case(
            "soak::the_agent_dies_while_the_driver_is_at_a_step",
            Needs::Mounts,
            points::the_agent_dies_while_the_driver_is_at_a_step,
        ),
        case_within(most, "soak::kills_at_random_moments", Needs::Mounts, random::kills_at_random_moments),
    ])
}
