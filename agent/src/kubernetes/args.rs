//! Where the API server is and how to be known there: flags that agent and issuer share.

use std::path::PathBuf;

use clap::Args;
use http::Uri;

/// Where a pod finds its API server's certificate authority.
const CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// Where a pod finds its token for the API server.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Flags for reaching the API server. In a pod their defaults are right.
#[derive(Debug, Clone, Args)]
pub struct ApiArgs {
    /// The API server, such as `https://10.0.0.1:6443`; else from `KUBERNETES_SERVICE_HOST` and _PORT
    #[arg(long, env = "COUNTERSIGN_KUBERNETES_URL")]
    pub kubernetes_url: Option<String>,
    /// PEM file with the API server's certificate authority
    #[arg(long, env = "COUNTERSIGN_KUBERNETES_CA", default_value = CA)]
    pub kubernetes_ca: PathBuf,
    /// File with the token for the API server; read again as it rotates
    #[arg(long, env = "COUNTERSIGN_KUBERNETES_TOKEN", default_value = TOKEN)]
    pub kubernetes_token: PathBuf,
    /// Set by Kubernetes in every pod
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true)]
    pub kubernetes_service_host: Option<String>,
    /// Set by Kubernetes in every pod
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", hide = true)]
    pub kubernetes_service_port: Option<u16>,
}

/// An API server and what is shown to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `https://HOST:PORT`.
    pub url: Uri,
    /// PEM file of its certificate authority.
    pub ca: PathBuf,
    /// File of the token shown to it.
    pub token: PathBuf,
}

impl ApiArgs {
    /// The API server; or what is wrong with `--kubernetes-url`, which `needed_by` needs.
    pub fn server(&self, needed_by: &str) -> Result<Server, String> {
        let text = match (&self.kubernetes_url, &self.kubernetes_service_host) {
            (Some(url), _) => url.clone(),
            (None, Some(host)) => {
                let port = self.kubernetes_service_port.unwrap_or(443);
                // An IPv6 address has colons, and needs brackets in a URL.
                if host.contains(':') {
                    format!("https://[{host}]:{port}")
                } else {
                    format!("https://{host}:{port}")
                }
            }
            (None, None) => {
                return Err(format!(
                    "is needed outside a pod with {needed_by}, such as https://10.0.0.1:6443"
                ));
            }
        };
        let uri: Option<Uri> = text.trim_end_matches('/').parse().ok();
        let fit = |uri: &Uri| {
            uri.scheme_str() == Some("https")
                && uri.authority().is_some()
                && uri.path() == "/"
                && uri.query().is_none()
        };
        let url = uri
            .filter(fit)
            .ok_or_else(|| "must be https://HOST:PORT: tokens are not sent in the clear".to_owned())?;
        Ok(Server { url, ca: self.kubernetes_ca.clone(), token: self.kubernetes_token.clone() })
    }
}
