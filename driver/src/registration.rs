//! Registration with kubelet, without a sidecar.
//!
//! Kubelet watches its registry directory for sockets, asks each who it is, and tells it how the registration went.

use std::path::{Path, PathBuf};
use std::time::Duration;

use countersign_proto::registration::registration_server::{Registration, RegistrationServer};
use countersign_proto::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use hyper::body::Incoming;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::codegen::Service as _;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};

use crate::error::{Error, sentence};
use crate::serving::{self, Answer, not_offered, service_of};
use crate::sockets::{self, Audience};

/// Versions of CSI that kubelet is told, as its own registrar says it.
const VERSIONS: &str = "1.0.0";
/// Wait before the socket is made anew after kubelet refused the driver, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How the registration stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Kubelet has not said anything yet.
    #[default]
    Waiting,
    /// Kubelet has taken the driver up.
    Registered,
    /// Kubelet has refused it, and said why.
    Refused(String),
}

/// Who this driver is.
#[derive(Clone, Debug)]
pub struct Plugin {
    /// Its name.
    pub name: String,
    /// Path of its CSI socket as kubelet sees it.
    pub endpoint: String,
}

struct Service {
    plugin: Plugin,
    standing: watch::Sender<Standing>,
}

#[tonic::async_trait]
impl Registration for Service {
    async fn get_info(&self, _request: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: self.plugin.name.clone(),
            endpoint: self.plugin.endpoint.clone(),
            supported_versions: vec![VERSIONS.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            tracing::info!("kubelet has registered the driver");
            self.standing.send_replace(Standing::Registered);
        } else {
            tracing::error!(error = status.error, "kubelet has refused the driver");
            self.standing.send_replace(Standing::Refused(status.error));
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Serves the registration socket until `stop`, then removes it. After a refusal the socket is made anew, which
/// is how kubelet is asked again.
///
/// # Errors
/// [`Error::Path`] when it can't listen at `path`.
pub async fn serve(
    path: PathBuf,
    plugin: Plugin,
    standing: watch::Sender<Standing>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut pause = AGAIN.0;
    while !stop.is_cancelled() {
        let listener = sockets::listen(&path, Audience::Owner)?;
        let service = Service { plugin: plugin.clone(), standing: standing.clone() };
        let refused = until_refused(listener, service, standing.subscribe(), &stop).await;
        withdraw(&path);
        if refused {
            stop.run_until_cancelled(sleep(pause)).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }
    Ok(())
}

/// Serves until `stop` or until kubelet refuses the driver; says whether it did.
async fn until_refused(
    listener: UnixListener,
    service: Service,
    mut standing: watch::Receiver<Standing>,
    stop: &CancellationToken,
) -> bool {
    standing.mark_unchanged();
    let ended = stop.child_token();
    let registrar = RegistrationServer::new(service);
    let services = move |request: http::Request<Incoming>| -> Answer {
        match service_of(&request) {
            RegistrationServer::<Service>::NAME => registrar.clone().call(request),
            _ => not_offered(),
        }
    };
    let conversations = serving::serve(listener, services, ended.clone());
    let mut refused = false;
    let watched = async {
        loop {
            tokio::select! {
                () = ended.cancelled() => return,
                changed = standing.changed() => if changed.is_err() { return },
            }
            if matches!(*standing.borrow_and_update(), Standing::Refused(_)) {
                refused = true;
                ended.cancel();
            }
        }
    };
    tokio::join!(conversations, watched);
    refused
}

fn withdraw(path: &Path) {
    if let Err(source) = sockets::remove(path) {
        let error = Error::Path { step: "remove", path: path.to_owned(), source };
        tracing::warn!(error = sentence(&error), "the registration socket stays");
    }
}
