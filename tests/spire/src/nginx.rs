//! Debian's nginx, serving TLS with the certificate and key of a volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use countersign_cluster::tools::installed;
use countersign_tests::processes::{Process, privileged};
use x509_parser::prelude::Pem;

/// How long it may take to start, on a busy machine.
const START: Duration = Duration::from_secs(30);
/// Where it listens.
const ADDRESS: &str = "127.0.0.1:8444";

/// One nginx. It ends when it is dropped.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    openssl: PathBuf,
}

impl Nginx {
    /// Starts one that serves `tls.crt` and `tls.key` of a volume.
    pub async fn start(directory: &Path, volume: &Path) -> Result<Self> {
        let home = directory.join("nginx");
        fs::create_dir_all(&home)?;
        let (root, volume) = (home.display(), volume.display());
        let config = format!(
            "daemon off; worker_processes 1; pid {root}/pid; error_log stderr notice;\n\
             events {{}}\n\
             http {{\n\
               access_log off;\n\
               client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/fastcgi;\n\
               uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
               server {{ listen {ADDRESS} ssl; ssl_certificate {volume}/tls.crt; ssl_certificate_key {volume}/tls.key; }}\n\
             }}\n"
        );
        fs::write(home.join("nginx.conf"), config)?;
        let program = installed("nginx").context("apt-get install nginx-light")?;
        let mut command = privileged(&program);
        command.arg("-c").arg(home.join("nginx.conf")).arg("-p").arg(&home);
        let mut nginx = Self {
            process: Process::start("nginx", command, &home.join("log"))?,
            openssl: installed("openssl")?,
        };
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
        let output = Command::new(&self.openssl)
            .args(["s_client", "-connect", ADDRESS])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()?;
        // What is said around the block is skipped.
        let pem = Pem::iter_from_buffer(&output.stdout).next().context("nginx shows no certificate")??;
        ensure!(pem.label == "CERTIFICATE", "{}", pem.label);
        Ok(pem.contents)
    }

    /// Ends it, once it is sure that it has not complained.
    pub fn end(self) -> Result<()> {
        let said = fs::read_to_string(self.process.log())?;
        ensure!(!said.contains("[emerg]") && !said.contains("[error]"), "{said}");
        self.process.kill()
    }
}
