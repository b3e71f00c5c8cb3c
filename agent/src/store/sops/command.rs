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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn sops(arguments: &[&str], directory: &Path) -> Result<(), String> {
        let arguments = arguments.iter().map(|argument| argument.replace('@', directory.to_str().unwrap()));
        let cli = Cli::try_parse_from(std::iter::once("sops".to_owned()).chain(arguments));
        run(cli.map_err(|error| error.to_string())?.args).map_err(|error| error.to_string())
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    /// The public key in a key file that `keygen` wrote.
    fn public(path: &Path) -> String {
        KeyRing::parse(&std::fs::read(path).unwrap()).unwrap().recipients().next().unwrap()
    }

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        sops(&["keygen", "--output", "@/key"], directory.path()).unwrap();
        assert_eq!(mode(&path), 0o600);
        let before = std::fs::read_to_string(&path).unwrap();
        assert!(before.contains(&format!("# public key: {}", public(&path))), "as age-keygen writes it");
        let error = sops(&["keygen", "-o", "@/key"], directory.path()).unwrap_err();
        assert!(error.contains("exists already"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        sops(&["keygen", "-o", "@/key"], directory.path()).unwrap();
        let recipient = public(&directory.path().join("key"));
        let file = directory.path().join("a.yaml");
        std::fs::write(&file, "a: hunter2\n").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        let opened_before = std::fs::File::open(&file).unwrap();
        sops(&["encrypt", "--age", &recipient, "--in-place", "@/a.yaml"], directory.path()).unwrap();
        assert_eq!(
            io::read_to_string(opened_before).unwrap(),
            "a: hunter2\n",
            "readers of the old one keep it"
        );
        assert!(!std::fs::read_to_string(&file).unwrap().contains("hunter2"));
        assert_eq!(mode(&file), 0o640);
        sops(&["decrypt", "--age-key-file", "@/key", "@/a.yaml"], directory.path()).unwrap();
        let error = sops(&["encrypt", "--age", &recipient, "-i", "@/a.yaml"], directory.path()).unwrap_err();
        assert!(error.contains("a.yaml: encrypted already"), "{error}");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 2, "nothing is left beside it");
    }

    #[test]
    fn comments_are_not_lost_in_place() {
        let directory = tempfile::tempdir().unwrap();
        sops(&["keygen", "-o", "@/key"], directory.path()).unwrap();
        let recipient = public(&directory.path().join("key"));
        std::fs::write(directory.path().join("a.yaml"), "# why\na: b\n").unwrap();
        let error = sops(&["encrypt", "--age", &recipient, "-i", "@/a.yaml"], directory.path()).unwrap_err();
        assert!(error.contains("has 1 comments"), "{error}");
        sops(&["encrypt", "--age", &recipient, "-o", "@/b.yaml", "@/a.yaml"], directory.path()).unwrap();
        assert!(directory.path().join("b.yaml").exists());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let directory = tempfile::tempdir().unwrap();
        sops(&["keygen", "-o", "@/key"], directory.path()).unwrap();
        let recipient = public(&directory.path().join("key"));
        std::fs::write(directory.path().join("a.env"), "A=hunter2").unwrap();
        std::fs::write(directory.path().join("a.yaml"), "a: hunter2").unwrap();
        for (arguments, words) in [
            (&["encrypt", "--age", &recipient, "@/a.env"][..], "a.env is neither .yaml, .yml nor .json"),
            (&["encrypt", "--age", &recipient, "@/none.yaml"], "none.yaml does not exist"),
            (&["encrypt", "--age", "age1nonsense", "@/a.yaml"], "age1nonsense"),
            (&["encrypt", "@/a.yaml"], "--age"),
            (&["encrypt", "--age", &recipient, "-i", "-o", "@/b", "@/a.yaml"], "cannot be used with"),
            (&["decrypt", "--age-key-file", "@/key", "@/a.yaml"], "a.yaml: not encrypted"),
            (&["decrypt", "--age-key-file", "@/a.yaml", "@/a.yaml"], "a.yaml holds something in line 1"),
            (
                &["encrypt", "--age", &recipient, "-o", "@/none/b.yaml", "@/a.yaml"],
                "b.yaml cannot be written",
            ),
        ] {
            let error = sops(arguments, directory.path()).unwrap_err();
            assert!(error.contains(words) && !error.contains("hunter2"), "{error}");
        }
    }
}
