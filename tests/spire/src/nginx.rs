//! Debian's nginx, serving TLS with the certificate and key of a volume: as a process of the node, and as a pod.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_cluster::images::{self, Image};
use countersign_cluster::pods::PATH;
use countersign_cluster::tools::installed;
use countersign_tests::processes::{Process, privileged};

use crate::program::{certificate, s_client};

/// How long it may take to start, on a busy machine.
const START: Duration = Duration::from_secs(30);
/// Where it listens on the node.
const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8444);
/// The image of a pod that is one.
pub const IMAGE: &str = "localhost/nginx:1";
/// Where it listens in a pod.
pub const PORT: u16 = 8443;

/// One nginx. It ends when it is dropped.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
}

impl Nginx {
    /// Starts one that serves `tls.crt` and `tls.key` of a volume.
    pub async fn start(directory: &Path, volume: &Path) -> Result<Self> {
        let home = directory.join("nginx");
        fs::create_dir_all(&home)?;
        let (root, volume) = (home.display().to_string(), volume.display().to_string());
        fs::write(home.join("nginx.conf"), configuration(&root, &ADDRESS.to_string(), &volume))?;
        let mut command = privileged(&program()?);
        command.arg("-c").arg(home.join("nginx.conf")).arg("-p").arg(&home);
        let mut nginx = Self { process: Process::start("nginx", command, &home.join("log"))? };
        let listens = async || tokio::net::TcpStream::connect(ADDRESS).await.is_ok();
        nginx.process.wait_until(START, "listening", listens).await?;
        Ok(nginx)
    }

    /// Has it read its files again, as its own `-s reload` does.
    pub fn reload(&self) -> Result<()> {
        self.process.reload()
    }

    /// The certificate that a client is shown, in DER.
    pub fn serves(&self) -> Result<Vec<u8>> {
        certificate(&s_client(&ADDRESS.to_string())?.output()?.stdout)
    }

    /// Ends it, once it is sure that it has not complained.
    pub fn end(self) -> Result<()> {
        content(&fs::read_to_string(self.process.log())?)?;
        self.process.kill()
    }
}

/// Makes [`IMAGE`] and hands it to the node: nginx with the files of a volume at the usual place, by an image's user.
pub fn image(directory: &Path) -> Result<()> {
    let conf = configuration("/tmp", &PORT.to_string(), PATH);
    let image = Image {
        name: IMAGE,
        programs: &[(&program()?, "/bin/nginx")],
        files: &[("/etc/nginx/nginx.conf", &conf)],
        entrypoint: &["/bin/nginx", "-c", "/etc/nginx/nginx.conf", "-p", "/tmp"],
    };
    let archive = directory.join("nginx.tar");
    images::make(&archive, &image)?;
    images::load(&archive)
}

/// The certificate that a client is shown which believes nobody but the roots in the file `roots`, in DER. The server has
/// proved then that the key is its own.
pub fn shown(address: SocketAddr, roots: &Path) -> Result<Vec<u8>> {
    let mut client = s_client(&address.to_string())?;
    let output = client.arg("-verify_return_error").arg("-CAfile").arg(roots).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stdout));
    certificate(&output.stdout)
}

/// That an nginx has logged this and has not complained: of a key that is another certificate's, it would.
pub fn content(said: &str) -> Result<()> {
    let bad = ["[emerg]", "[alert]", "[crit]", "[error]"].iter().any(|level| said.contains(level));
    ensure!(!bad, "{said}");
    Ok(())
}

fn program() -> Result<std::path::PathBuf> {
    installed("nginx").context("apt-get install nginx-light")
}

fn configuration(root: &str, listen: &str, volume: &str) -> String {
    format!(
        "daemon off; worker_processes 1; pid {root}/pid; error_log stderr notice;\n\
         events {{}}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
           uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
           server {{ listen {listen} ssl; ssl_certificate {volume}/tls.crt; ssl_certificate_key {volume}/tls.key; }}\n\
         }}\n"
    )
}
