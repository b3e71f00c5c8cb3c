use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertificateParams, KeyPair};

use super::*;
use crate::issuer::tests::cluster::{Cluster, clock, pass, write};

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

/// As after a leap of the clock: the new roots are published and not here yet.
#[tokio::test]
async fn a_call_outlasts_a_bundle_that_is_about_to_be_renewed() {
    let cluster = Cluster::new();
    let replicas = two(&cluster, &root(2100));
    replicas.call(|_| async { Ok(()) }).await.unwrap();
    let path = cluster.path("roots.pem");
    write(&path, root(2001).as_bytes());
    let renewed = async {
        tokio::time::sleep(LOOK * 2).await;
        write(&path, root(2100).as_bytes());
    };
    tokio::join!(replicas.call(|_| async { Ok(()) }), renewed).0.unwrap();
}

#[tokio::test]
async fn a_connection_is_another_one_when_it_is_old() {
    let cluster = Cluster::new();
    let replicas = two(&cluster, &root(2100));
    let made = async || {
        let mut made: Vec<_> = replicas.candidates().await.unwrap();
        made.sort_by_key(|replica| replica.address);
        made.into_iter().map(|replica| replica.until).collect::<Vec<_>>()
    };
    let first = made().await;
    assert_eq!(first.len(), 2);
    pass(Duration::from_secs(7 * 60)).await;
    assert_eq!(made().await, first);
    pass(Duration::from_secs(6 * 60)).await;
    let second = made().await;
    assert!(first.iter().zip(&second).all(|(first, second)| second > first), "{first:?} {second:?}");
    assert_eq!(made().await, second);
}
