//! What a cluster's ingress does for the issuer's documents: TLS of a known authority outside, plain HTTP within.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::authority::Authority;
use countersign_tests::node::free_address;

/// Serves for as long as it is kept.
#[derive(Debug)]
pub struct Ingress {
    address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Ingress {
    /// Forwards to a server in the clear.
    pub async fn start(authority: &Authority, to: SocketAddr) -> Result<Self> {
        let address = free_address()?;
        let acceptor = TlsAcceptor::from(Arc::new(authority.certificate_at(address)?.server()?));
        let listener = TcpListener::bind(address).await?;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    let (Ok(mut outside), Ok(mut inside)) =
                        (acceptor.accept(stream).await, TcpStream::connect(to).await)
                    else {
                        return;
                    };
                    // Whoever closes, closes both.
                    drop(copy_bidirectional(&mut outside, &mut inside).await);
                });
            }
        });
        Ok(Self { address, _serving: serving })
    }

    /// Where it is reached.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}
