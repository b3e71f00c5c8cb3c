//! `sops keygen`, `sops encrypt` and `sops decrypt`: enough to make a store's files without another tool.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use age::secrecy::ExposeSecret;
use age::x25519;
use clap::Subcommand;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags};

use crate::clock::Clock;

use super::emit;
use super::file;
use super::flaw::Flaw;
use super::format::Format;
use super::keys::KeyRing;
use super::read;
use super::tree::Value;
use super::write;

/// Arguments of `sops`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make an age key; its public part is what files are encrypted to
    Keygen {
        /// Write the key here, with mode 0600; an existing file is left alone. Without it, to standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Encrypt the values of a YAML or JSON file
    Encrypt {
        /// Public age keys to encrypt to
        #[arg(long = "age", value_name = "RECIPIENT", value_delimiter = ',', required = true)]
        recipients: Vec<x25519::Recipient>,
        /// Replace the file
        #[arg(short, long, conflicts_with = "output")]
        in_place: bool,
        /// Write the encrypted file here. Without it, to standard output
        #[arg(short, long, value_name = "OUT")]
        output: Option<PathBuf>,
        /// The plain file, named .yaml, .yml or .json
        file: PathBuf,
    },
    /// Decrypt a file to standard output
    Decrypt {
        /// File with age keys
        #[arg(long, value_name = "KEYS")]
        age_key_file: PathBuf,
        /// The encrypted file, named .yaml, .yml or .json
        file: PathBuf,
    },
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The file is not as it should be.
    #[error("{}: {flaw}", path.display())]
    Flawed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// The file cannot be worked on.
    #[error("{} {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The rest of the sentence.
        problem: String,
    },
    /// Standard output was closed.
    #[error("writing to standard output")]
    Output(#[from] io::Error),
}

/// Does what `args` say.
///
/// # Errors
/// [`CommandError`], with the file and what to do.
pub fn run(args: Args) -> Result<(), CommandError> {
    let clock = Clock::system();
    match args.action {
        Action::Keygen { output } => keygen(output.as_deref(), clock),
        Action::Encrypt { recipients, in_place, output, file } => {
            let output = if in_place { Some(file.as_path()) } else { output.as_deref() };
            encrypt(&file, &recipients, in_place, output, clock)
        }
        Action::Decrypt { age_key_file, file } => decrypt(&age_key_file, &file),
    }
}

fn keygen(output: Option<&Path>, clock: Clock) -> Result<(), CommandError> {
    let identity = x25519::Identity::generate();
    let public = identity.to_public();
    let secret = identity.to_string();
    let created = humantime::format_rfc3339_seconds(clock.wall());
    let write = |out: &mut dyn Write| {
        writeln!(out, "# created: {created}\n# public key: {public}\n{}", secret.expose_secret())
    };
    if let Some(path) = output {
        replace(path, Mode::from_raw_mode(0o600), RenameFlags::NOREPLACE, |file| write(file))?;
        writeln!(io::stdout(), "{public}")?;
    } else {
        write(&mut io::stdout().lock())?;
        writeln!(io::stderr(), "public key: {public}")?;
    }
    Ok(())
}

fn encrypt(
    path: &Path,
    recipients: &[x25519::Recipient],
    in_place: bool,
    output: Option<&Path>,
    clock: Clock,
) -> Result<(), CommandError> {
    let (content, format) = load(path)?;
    let flawed = |flaw| CommandError::Flawed { path: path.to_owned(), flaw };
    let encrypted = write::encrypt(&content, format, recipients, clock.wall()).map_err(flawed)?;
    if encrypted.comments > 0 && in_place {
        return Err(CommandError::File {
            path: path.to_owned(),
            problem: format!(
                "has {} comments, which would be lost; take them out, or write elsewhere with --output",
                encrypted.comments
            ),
        });
    }
    emit_to(&encrypted.document, format, output, path)?;
    if encrypted.comments > 0 {
        writeln!(io::stderr(), "left out {} comments of {}", encrypted.comments, path.display())?;
    }
    Ok(())
}

fn decrypt(key_file: &Path, path: &Path) -> Result<(), CommandError> {
    let keys = KeyRing::parse(&read_file(key_file)?)
        .map_err(|problem| CommandError::File { path: key_file.to_owned(), problem })?;
    let (content, format) = load(path)?;
    let document = read::decrypt(&content, format, &keys)
        .map_err(|flaw| CommandError::Flawed { path: path.to_owned(), flaw })?;
    emit_to(&document, format, None, path)
}

fn emit_to(
    document: &Value,
    format: Format,
    output: Option<&Path>,
    source: &Path,
) -> Result<(), CommandError> {
    match output {
        Some(path) => {
            let mode = std::fs::metadata(source).map_or(0o600, |metadata| {
                std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
            });
            replace(path, Mode::from_raw_mode(mode), RenameFlags::empty(), |file| {
                let mut out = io::BufWriter::new(file);
                emit::write(document, format, &mut out)?;
                out.flush()
            })
        }
        None => Ok(emit::write(document, format, &mut io::stdout().lock())?),
    }
}

fn load(path: &Path) -> Result<(zeroize::Zeroizing<Vec<u8>>, Format), CommandError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let (format, _) = Format::of(name).ok_or_else(|| CommandError::File {
        path: path.to_owned(),
        problem: "is neither .yaml, .yml nor .json; other forms are not supported".into(),
    })?;
    Ok((read_file(path)?, format))
}

fn read_file(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, CommandError> {
    File::open(path)
        .map_err(file::Trouble::from)
        .and_then(|mut file| file::read(&mut file))
        .map(|(content, _)| content)
        .map_err(|trouble| CommandError::File { path: path.to_owned(), problem: trouble.problem() })
}

/// Writes a file beside `path` and renames it there, so that nobody ever sees half of it.
fn replace(
    path: &Path,
    mode: Mode,
    how: RenameFlags,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), CommandError> {
    let fail = |error: io::Error| CommandError::File {
        path: path.to_owned(),
        problem: if error.kind() == io::ErrorKind::AlreadyExists {
            "exists already; choose another name or remove it".into()
        } else {
            format!("cannot be written: {error}")
        },
    };
    let name = path.file_name().ok_or_else(|| fail(io::ErrorKind::InvalidInput.into()))?;
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| fail(io::ErrorKind::Other.into()))?;
    let temporary =
        path.with_file_name(format!(".{}.{:016x}", name.to_string_lossy(), u64::from_ne_bytes(random)));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let written = rustix::fs::openat(CWD, &temporary, flags, Mode::from_raw_mode(0o600))
        .map_err(io::Error::from)
        .and_then(|descriptor| {
            let mut file = File::from(descriptor);
            write(&mut file)?;
            rustix::fs::fchmod(&file, mode)?;
            file.sync_all()?;
            Ok(rustix::fs::renameat_with(CWD, &temporary, CWD, path, how)?)
        });
    written.map_err(|error| {
        // It may not even exist, and what went wrong first is what there is to say.
        std::fs::remove_file(&temporary).ok();
        fail(error)
    })
}
