//! The command line, read once into what the driver runs with.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use clap::Parser;

use crate::log::{Format, Severity};
use crate::signaller;

/// The CSI node driver of Countersign.
///
/// Serves kubelet's calls, mounts a tmpfs for each volume and hands it to the agent that fills it. It speaks over
/// Unix sockets only. Every option can be given by the environment too.
#[derive(Debug, Parser)]
#[command(
    name = "countersign-driver",
    version,
    after_help = "`countersign-driver probe` says whether the one that runs answers; `countersign-driver signaller` sends \
                  the signals that pods asked for."
)]
pub struct CommandLine {
    /// Name of this node, as its Node object has it
    #[arg(long, env = "COUNTERSIGN_NODE_ID")]
    pub node_id: String,
    /// Name of the CSI driver, as its object in the cluster has it
    #[arg(long, env = "COUNTERSIGN_DRIVER_NAME", default_value = "csi.countersign.dev")]
    pub driver_name: String,
    /// Kubelet's root directory, written as kubelet writes it
    #[arg(long, env = "COUNTERSIGN_KUBELET_ROOT", default_value = "/var/lib/kubelet")]
    pub kubelet_root: String,
    /// Uid of the pod that this driver runs in, if it runs in one: kubelet has to have that pod below the kubelet root
    #[arg(long, env = "COUNTERSIGN_POD_UID")]
    pub pod_uid: Option<String>,
    /// Path of the CSI socket, the same for kubelet as for the driver [default: `csi.sock` in the directory of this
    /// driver's name in `plugins` below the kubelet root]
    #[arg(long, env = "COUNTERSIGN_CSI_SOCKET")]
    pub csi_socket: Option<PathBuf>,
    /// Directory in which kubelet looks for plugins [default: `plugins_registry` below the kubelet root]
    #[arg(long, env = "COUNTERSIGN_REGISTRATION_DIR")]
    pub registration_dir: Option<PathBuf>,
    /// Directory shared with the agent
    #[arg(long, env = "COUNTERSIGN_LINK_DIR")]
    pub link_dir: PathBuf,
    /// Uid the agent runs as: the only one that the driver hands volumes to
    #[arg(long, env = "COUNTERSIGN_AGENT_UID", default_value_t = 65532)]
    pub agent_uid: u32,
    /// Most bytes of one volume's files together, such as 512KiB or 4MiB
    #[arg(long, env = "COUNTERSIGN_VOLUME_CAPACITY", default_value = "4MiB")]
    pub volume_capacity: String,
    /// Clone volumes once they are attached, as kernels before 6.15 need it [default: whatever this kernel can]
    #[arg(long, env = "COUNTERSIGN_CLONE_ATTACHED")]
    pub clone_attached: bool,
    /// Directory of the signaller's socket [default: no signals are sent, and volumes that ask for one are refused]
    #[arg(long, env = "COUNTERSIGN_SIGNALS")]
    pub signals: Option<PathBuf>,
    /// Take service account tokens from the volume context, where kubelet 1.34 and older put them
    #[arg(long, env = "COUNTERSIGN_TOKENS_FROM_CONTEXT")]
    pub tokens_from_context: bool,
    /// Shape of the log lines
    #[arg(long, env = "COUNTERSIGN_LOG_FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Least severe level that is logged
    #[arg(long, env = "COUNTERSIGN_LOG_LEVEL", default_value = "info")]
    pub log_level: Severity,
}

/// What the driver runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name.
    pub node_id: String,
    /// The driver's name: letters, digits, `-`, `.`, `_`; begins and ends with a letter.
    pub driver_name: String,
    /// The kubelet root: absolute, without a slash at its end.
    pub kubelet_root: String,
    /// Uid of the driver's own pod: one component of a path.
    pub pod_uid: Option<String>,
    /// The CSI socket.
    pub csi_socket: PathBuf,
    /// The registration socket.
    pub registration_socket: PathBuf,
    /// The directory shared with the agent.
    pub link_dir: PathBuf,
    /// The uid the agent has to have.
    pub agent_uid: u32,
    /// Most bytes of one generation of a volume's files.
    pub volume_capacity: NonZeroU64,
    /// Clone attached mounts without trying the newer way.
    pub clone_attached: bool,
    /// Directory of the signaller's socket; none: no signals are sent.
    pub signals: Option<PathBuf>,
    /// Take tokens from the volume context.
    pub tokens_from_context: bool,
}

/// Most bytes of a CSI node id, by the CSI specification.
const LONGEST_NODE_ID: usize = 256;
/// Most bytes of a driver's name, by the CSI specification.
const LONGEST_DRIVER_NAME: usize = 63;
/// Most bytes of the path of a Unix socket: unix(7), less the zero at its end.
const LONGEST_SOCKET_PATH: usize = 107;
/// Longest name of a socket in the link directory, with its slash.
const LINK_SOCKET: usize = "/driver-status.sock".len();
/// Bounds of a volume's capacity in bytes: one page, and what no one wants in memory.
const CAPACITIES: std::ops::RangeInclusive<u64> = 4096..=1 << 30;

impl TryFrom<CommandLine> for Config {
    /// Every mistake, one line each.
    type Error = Vec<String>;

    fn try_from(line: CommandLine) -> Result<Self, Vec<String>> {
        let mut mistakes = Vec::new();
        let mut require = |holds: bool, mistake: &dyn Fn() -> String| {
            if !holds {
                mistakes.push(mistake());
            }
        };
        let root = line.kubelet_root.trim_end_matches('/').to_owned();
        let csi_socket = line
            .csi_socket
            .unwrap_or_else(|| Path::new(&root).join("plugins").join(&line.driver_name).join("csi.sock"));
        let registry = line.registration_dir.unwrap_or_else(|| Path::new(&root).join("plugins_registry"));
        // Kubelet sends the percent-encoded path of this socket as the authority of its requests. HTTP/2 stacks
        // take a percent sign in the part before an at sign only, so the name has to have one.
        let registration_socket = registry.join(format!("{}@reg.sock", line.driver_name));
        let capacity =
            bytes(&line.volume_capacity).filter(|bytes| CAPACITIES.contains(bytes)).and_then(NonZeroU64::new);

        require((1..=LONGEST_NODE_ID).contains(&line.node_id.len()), &|| {
            format!("--node-id must have 1 to {LONGEST_NODE_ID} bytes, not {}", line.node_id.len())
        });
        require(is_driver_name(&line.driver_name), &|| {
            format!(
                "--driver-name {:?} must have at most {LONGEST_DRIVER_NAME} letters, digits, `-`, `.` and `_`, a \
                 letter first and last",
                line.driver_name
            )
        });
        require(root.starts_with('/'), &|| {
            format!("--kubelet-root {:?} must be an absolute path other than /", line.kubelet_root)
        });
        let is_uid = |uid: &String| !uid.is_empty() && !uid.contains('/') && !uid.starts_with('.');
        require(line.pod_uid.as_ref().is_none_or(is_uid), &|| {
            format!("--pod-uid {:?} must be the uid of a pod", line.pod_uid.as_deref().unwrap_or_default())
        });
        for (option, path) in [
            ("--csi-socket", &csi_socket),
            ("--registration-dir", &registration_socket),
            ("--link-dir", &line.link_dir),
        ] {
            let longest = LONGEST_SOCKET_PATH - if option == "--link-dir" { LINK_SOCKET } else { 0 };
            require(path.is_absolute(), &|| format!("{option} {} must be an absolute path", path.display()));
            require(path.as_os_str().len() <= longest, &|| {
                format!(
                    "{option} {} is longer than the {longest} bytes that a socket's path may have",
                    path.display()
                )
            });
        }
        require(
            line.signals.as_deref().is_none_or(|path| signaller::fits(path, LONGEST_SOCKET_PATH)),
            &|| "--signals must be an absolute path, short enough for that of a socket in it".to_owned(),
        );
        require(capacity.is_some(), &|| {
            format!(
                "--volume-capacity {:?} must be a size from 4KiB to 1GiB, such as 4MiB",
                line.volume_capacity
            )
        });
        match capacity {
            Some(volume_capacity) if mistakes.is_empty() => Ok(Self {
                node_id: line.node_id,
                driver_name: line.driver_name,
                kubelet_root: root,
                pod_uid: line.pod_uid,
                csi_socket,
                registration_socket,
                link_dir: line.link_dir,
                agent_uid: line.agent_uid,
                volume_capacity,
                clone_attached: line.clone_attached,
                signals: line.signals,
                tokens_from_context: line.tokens_from_context,
            }),
            _ => Err(mistakes),
        }
    }
}

fn is_driver_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    name.len() <= LONGEST_DRIVER_NAME
        && name.bytes().all(inner)
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.ends_with(|last: char| last.is_ascii_alphabetic())
}

/// Reads a size: a whole number, and a binary unit if any.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit: u64 = match unit {
        "" | "B" => 1,
        "Ki" | "KiB" => 1 << 10,
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(more: &[&str]) -> Result<Config, Vec<String>> {
        linked("/run/countersign", more)
    }

    fn linked(directory: &str, more: &[&str]) -> Result<Config, Vec<String>> {
        let line = ["countersign-driver", "--node-id", "n1", "--link-dir", directory];
        CommandLine::try_parse_from(line.iter().chain(more)).unwrap().try_into()
    }

    #[test]
    fn little_has_to_be_said() {
        let config = config(&[]).unwrap();
        assert_eq!(config.csi_socket, Path::new("/var/lib/kubelet/plugins/csi.countersign.dev/csi.sock"));
        let registration = "/var/lib/kubelet/plugins_registry/csi.countersign.dev@reg.sock";
        assert_eq!(config.registration_socket, Path::new(registration));
        assert_eq!((config.agent_uid, config.volume_capacity.get()), (65532, 4 << 20));
    }

    #[test]
    fn a_slash_at_the_end_of_the_root_does_not_matter() {
        assert_eq!(config(&["--kubelet-root", "/data/kubelet//"]).unwrap().kubelet_root, "/data/kubelet");
    }

    #[test]
    fn sizes() {
        for (text, size) in [
            ("4096", Some(4096)),
            ("5B", Some(5)),
            ("4MiB", Some(4 << 20)),
            ("64Ki", Some(64 << 10)),
            ("1GiB", Some(1 << 30)),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
        for text in ["", "MiB", "4MB", "-1", "4.5MiB", "4 MiB", "18446744073709551615KiB", "4m", "٤MiB"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let long = format!("/{}", "x".repeat(120));
        let line = [
            "--driver-name=a@b",
            "--kubelet-root=/",
            "--pod-uid=a/b",
            "--volume-capacity=3MB",
            "--csi-socket=csi.sock",
            "--signals=signals",
        ];
        let told = linked(&long, &line).unwrap_err().join("\n");
        for option in [
            "--driver-name",
            "--kubelet-root",
            "--pod-uid",
            "--link-dir",
            "--volume-capacity",
            "--csi-socket",
            "--signals",
        ] {
            assert!(told.contains(option), "{option} in {told}");
        }
    }

    #[test]
    fn driver_names() {
        for name in ["csi.countersign.dev", "a", "A-1_b"] {
            assert!(is_driver_name(name), "{name}");
        }
        for name in ["", "1a", "a1", "a.", "-a", "a@b", "a/b", "a b", &"a".repeat(64)] {
            assert!(!is_driver_name(name), "{name}");
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }
}
