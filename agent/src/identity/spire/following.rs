//! Streams that are followed for ever.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::sleep;
use tonic::{Response, Status, Streaming};

use super::backoff::Backoff;
use super::socket::Socket;

/// First and longest pause before a stream is begun anew.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Follows a stream of the SPIRE agent behind `socket`, and begins it anew whenever it ends: after pauses that grow until a
/// message is one that `take` can use. What is wrong is `trouble`'s each time, a refusal in the words of `meaning`.
pub(super) async fn follow<M, Opening>(
    socket: &Socket,
    open: impl Fn() -> Opening,
    meaning: impl Fn(&Status) -> String,
    take: impl Fn(M) -> bool,
    trouble: impl Fn(String),
) -> Infallible
where
    Opening: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let mut backoff = Backoff::new(PAUSE);
    loop {
        let problem = match open().await {
            Err(status) => meaning(&status),
            Ok(answer) => {
                let mut stream = answer.into_inner();
                loop {
                    match stream.message().await {
                        Ok(Some(message)) => {
                            if take(message) {
                                backoff.reset();
                            }
                        }
                        Ok(None) => break format!("{socket}: SPIRE ended the stream"),
                        Err(status) => break meaning(&status),
                    }
                }
            }
        };
        trouble(problem);
        sleep(backoff.next()).await;
    }
}
