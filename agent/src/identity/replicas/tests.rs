use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::issuer::tests::cluster::{Cluster, clock, write};

/// Two replicas that nobody connects to: what they answer is up to the test.
fn two(cluster: &Cluster, root: &str) -> Replicas {
    let path = cluster.path("roots.pem");
    write(&path, root.as_bytes());
    Replicas::new("127.0.0.1:1,127.0.0.1:2".to_owned(), Trust::file(path, clock()), clock())
}

fn root(end: i32) -> String {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2000, 1, 1);
    params.not_after = rcgen::date_time_ymd(end, 1, 1);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn told<T>(result: Result<T, Unanswered>) -> String {
    match result {
        Ok(_) => panic!("an answer"),
        Err(Unanswered::Refused(status)) => panic!("a refusal, which is final: {status}"),
        Err(Unanswered::Unable(problem) | Unanswered::Unreached(problem)) => problem,
    }
}

#[tokio::test]
async fn a_replica_of_an_older_version_is_passed_over_and_named() {
    let cluster = Cluster::new();
    let replicas = two(&cluster, &root(2100));
    let asked = AtomicUsize::new(0);
    // While the issuer is rolled, the first is old and the second is new.
    let answer = replicas.call(|_| async {
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Status::unimplemented("")),
            _ => Ok("signed"),
        }
    });
    assert_eq!(answer.await.unwrap(), "signed");
    let problem = told(replicas.call(|_| async { Err::<(), _>(Status::unimplemented("")) }).await);
    assert!(problem.contains("it does not know this call: it is of another version"), "{problem}");
}

#[tokio::test]
async fn a_bundle_whose_time_is_over_is_named() {
    let cluster = Cluster::new();
    let answer = async |root: &str| two(&cluster, root).call(|_| async { Ok(()) }).await;
    let problem = told(answer(&root(2001)).await);
    assert!(
        problem.contains("roots.pem: every certificate in it has expired; a running issuer"),
        "{problem}"
    );
    // One that has ended beside one that has not is what every rotation leaves for a while.
    answer(&(root(2001) + &root(2100))).await.unwrap();
}
