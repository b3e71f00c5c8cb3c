//! Everything a pod and an operator are promised of the store `vault`: against a real Vault, and against a server
//! that lies where a real one cannot be made to.

#![expect(clippy::indexing_slicing, reason = "what is missing fails the test")]

mod asking;
mod audit;
mod clock;
mod clouds;
mod demo;
mod engines;
mod events;
mod example;
mod explain;
mod hour;
mod ill;
mod leases;
mod lies;
mod logins;
mod many;
mod migrate;
mod openbao;
mod outage;
mod refusals;
mod secrecy;
mod standby;
mod tokens;
mod wire;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut cases = example::cases();
    cases.extend(logins::cases());
    cases.extend(refusals::cases());
    cases.extend(engines::cases());
    cases.extend(clouds::cases());
    cases.extend(leases::cases());
    cases.extend(tokens::cases());
    cases.extend(outage::cases());
    cases.extend(ill::cases());
    cases.extend(hour::cases());
    cases.extend(standby::cases());
    cases.extend(many::cases());
    cases.extend(clock::cases());
    cases.extend(migrate::cases());
    cases.extend(audit::cases());
    cases.extend(secrecy::cases());
    cases.extend(lies::cases());
    cases.extend(wire::cases());
    cases.extend(explain::cases());
    cases.extend(events::cases());
    cases.extend(openbao::cases());
    cases.extend(demo::cases());
    countersign_tests::harness::main(cases)
}
