//! Permission bits, as a pod writes them.

use super::Problem;

/// Reads three or four octal digits that let somebody read and nobody do anything else.
///
/// The volume is mounted read-only and noexec, so a bit that lets write or execute would promise what the mount
/// refuses; setuid and its kin mean nothing on a nosuid mount.
pub(super) fn parse(text: &str) -> Result<u32, Problem> {
    let digits = matches!(text.len(), 3 | 4) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| digits);
    let Some(mode) = mode else {
        return Err(Problem::new("mode is not three or four octal digits; write for example mode=0440"));
    };
    if mode & 0o7000 != 0 {
        return Err(Problem::new(format!(
            "mode={mode:04o} has setuid, setgid or sticky bits, which the nosuid volume ignores; write mode={:04o}",
            readable(mode)
        )));
    }
    if mode & 0o333 != 0 {
        return Err(Problem::new(format!(
            "mode={mode:04o} has write or execute bits, but the volume is read-only and noexec; write mode={:04o}",
            readable(mode)
        )));
    }
    if mode == 0 {
        return Err(Problem::new("mode=0000 lets nobody read the file; write for example mode=0440"));
    }
    Ok(mode)
}

/// The nearest mode that would be accepted.
fn readable(mode: u32) -> u32 {
    match mode & 0o444 {
        0 => 0o440,
        bits => bits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (text, mode) in
            [("0400", 0o400), ("400", 0o400), ("0440", 0o440), ("444", 0o444), ("0004", 0o004)]
        {
            assert_eq!(parse(text), Ok(mode));
        }
        let octal = "mode is not three or four octal digits; write for example mode=0440";
        for (text, problem) in [
            ("", octal),
            ("4", octal),
            ("00440", octal),
            ("0o44", octal),
            ("+440", octal),
            ("0489", octal),
            ("r--", octal),
            (
                "4400",
                "mode=4400 has setuid, setgid or sticky bits, which the nosuid volume ignores; write mode=0400",
            ),
            (
                "0640",
                "mode=0640 has write or execute bits, but the volume is read-only and noexec; write mode=0440",
            ),
            (
                "0755",
                "mode=0755 has write or execute bits, but the volume is read-only and noexec; write mode=0444",
            ),
            (
                "0111",
                "mode=0111 has write or execute bits, but the volume is read-only and noexec; write mode=0440",
            ),
            ("000", "mode=0000 lets nobody read the file; write for example mode=0440"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), problem, "{text}");
        }
    }
}
