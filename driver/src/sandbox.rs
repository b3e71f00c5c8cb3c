//! A seccomp filter for the whole process: Unix sockets only, no other programs, no way around it.
//!
//! The driver has to be privileged to mount. This takes from it, for good and before it listens to anybody, what
//! somebody who got hold of it would want next.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

use crate::error::Error;

/// Calls that make a socket, their first argument the address family.
const SOCKETS: &[libc::c_long] = &[libc::SYS_socket, libc::SYS_socketpair];

/// Calls that are refused whatever their arguments.
const REFUSED: &[libc::c_long] = &[
    // Make a socket without `socket`, or get one from another process.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_pidfd_getfd,
    // Descriptors come in this way; the driver only ever sends them.
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    // Run another program, or work in another process.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_setns,
    // Change the kernel, or look into it.
    libc::SYS_bpf,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // Read keys that others left.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// On `x86_64` each call has a second number, for programs with 32-bit pointers: the same with this bit.
#[cfg(target_arch = "x86_64")]
const X32: libc::c_long = 0x4000_0000;

/// Calls that have a number of their own there: execve, ptrace, recvmsg, recvmmsg, `kexec_load`,
/// `process_vm_readv`, `process_vm_writev`, execveat (`arch/x86/entry/syscalls/syscall_64.tbl`).
#[cfg(target_arch = "x86_64")]
const X32_ONLY: &[libc::c_long] = &[520, 521, 519, 537, 528, 539, 540, 545];

/// Calls that send signals and have a number of their own there: `rt_sigqueueinfo`, `rt_tgsigqueueinfo`; and ioctl.
#[cfg(target_arch = "x86_64")]
const X32_SIGNALS: &[libc::c_long] = &[524, 536, 514];

/// Installs the filter in every thread of this process. It cannot be taken back.
///
/// # Errors
/// [`Error::Sandbox`]; the process must not go on then.
pub fn install() -> Result<(), Error> {
    let unix = u64::try_from(libc::AF_UNIX).unwrap_or_default();
    // The kernel looks at the family as an int: the upper half of the register does not matter.
    let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, unix).map_err(backend)?;
    let other = SeccompRule::new(vec![other]).map_err(backend)?;
    let sockets = numbers(SOCKETS).map(|number| (number, vec![other.clone()])).collect();
    let refused = numbers(REFUSED).map(|number| (number, Vec::new()));
    #[cfg(target_arch = "x86_64")]
    let refused = refused.chain(X32_ONLY.iter().map(|number| (number | X32, Vec::new())));
    let filters = [(sockets, libc::EAFNOSUPPORT), (refused.collect(), libc::EPERM)]
        .map(|(rules, errno)| program(rules, errno));
    for filter in filters {
        apply_filter_all_threads(&filter?).map_err(Error::Sandbox)?;
    }
    Ok(())
}

/// Calls that send a signal to who is named by a number.
const SIGNALS: &[libc::c_long] = &[
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
];
/// fcntl(2): who gets the signal of a descriptor that is ready, and which one (`F_SETOWN`, `F_SETSIG`, `F_SETOWN_EX`).
const OWNERS: [u64; 3] = [8, 10, 15];
/// ioctl(2): the same (`FIOSETOWN`, `SIOCSPGRP`).
const SOCKET_OWNERS: [u64; 2] = [0x8901, 0x8902];

/// Leaves of all signals these, and of all ways to send them `pidfd_send_signal`. It cannot be taken back; beside
/// [`install`], for a process that may signal others.
///
/// # Errors
/// [`Error::Sandbox`]; the process must not go on then.
pub fn leave_only(signals: &[i32]) -> Result<(), Error> {
    let argument = |number: u8, operator: SeccompCmpOp, value: u64| {
        SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value).map_err(backend)
    };
    let rule = |conditions: Vec<SeccompCondition>| SeccompRule::new(conditions).map_err(backend);
    let others = signals
        .iter()
        .map(|signal| argument(1, SeccompCmpOp::Ne, u64::from(signal.unsigned_abs())))
        .collect::<Result<Vec<_>, Error>>()?;
    let others = vec![rule(others)?];
    let commands = |values: &[u64]| {
        values
            .iter()
            .map(|value| rule(vec![argument(1, SeccompCmpOp::Eq, *value)?]))
            .collect::<Result<Vec<_>, Error>>()
    };
    // A limit that is passed is a signal, too: prlimit64 for another process than this one.
    let limits = vec![rule(vec![argument(0, SeccompCmpOp::Ne, 0)?])?];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        numbers(SIGNALS).map(|number| (number, Vec::new())).collect();
    for (call, refused) in [
        (libc::SYS_pidfd_send_signal, others),
        (libc::SYS_fcntl, commands(&OWNERS)?),
        (libc::SYS_ioctl, commands(&SOCKET_OWNERS)?),
        (libc::SYS_prlimit64, limits),
    ] {
        rules.extend(numbers(&[call]).map(|number| (number, refused.clone())));
    }
    #[cfg(target_arch = "x86_64")]
    rules.extend(X32_SIGNALS.iter().map(|number| (number | X32, Vec::new())));
    apply_filter_all_threads(&program(rules, libc::EPERM)?).map_err(Error::Sandbox)
}

fn numbers(calls: &[libc::c_long]) -> impl Iterator<Item = i64> {
    #[cfg(target_arch = "x86_64")]
    return calls.iter().flat_map(|number| [*number, number | X32]);
    #[cfg(not(target_arch = "x86_64"))]
    return calls.iter().copied();
}

/// Refuses what the rules match with `errno`, and lets everything else pass.
fn program(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> Result<BpfProgram, Error> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(backend)?;
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).map_err(backend)?;
    BpfProgram::try_from(filter).map_err(backend)
}

fn backend(error: seccompiler::BackendError) -> Error {
    Error::Sandbox(seccompiler::Error::Backend(error))
}
