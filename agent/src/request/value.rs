//! The values that are neither a reference nor a template: each read once.

use std::sync::Arc;

use super::{FilePath, OnRevoked, Problem, mode};
use crate::spiffe::TrustDomain;

pub(super) fn audience(value: &str) -> Result<String, Problem> {
    let value = value.trim_ascii();
    if value.is_empty() {
        return Err(Problem::new(
            "the audience is empty; write for whom the token is, such as https://api.example.com",
        ));
    }
    if value.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Problem::new(
            "the audience holds white space; one token is for one audience, so ask for another file",
        ));
    }
    if value.len() > 1024 {
        return Err(Problem::new(format!(
            "the audience has {} bytes; at most 1024 are possible",
            value.len()
        )));
    }
    Ok(value.to_owned())
}

/// A trust domain's name, and whether the pod can do without its bundle.
pub(super) fn trust_domain(value: &str) -> Result<(TrustDomain, bool), Problem> {
    let value = value.trim_ascii();
    let (name, optional) = match value.split_once('?') {
        None => (value, false),
        Some((name, "optional")) => (name, true),
        Some(_) => {
            return Err(Problem::new("the only option of a trust domain is \"optional\""));
        }
    };
    let name = name.strip_prefix("spiffe://").unwrap_or(name);
    let parsed = name.parse().map_err(|_| {
        Problem::new("not a trust domain's name; write one of a-z 0-9 . _ -, such as partner.example")
    })?;
    Ok((parsed, optional))
}

/// What spiffe-helper's examples call the files, for programs that are configured for it.
const SPIFFE_HELPER: (&str, &str) = ("spiffe-helper", "svid.pem,svid_key.pem,svid_bundle.pem");

/// The name of a file with an SVID or a part of one, and the mode that is wished for.
pub(super) fn svid_file(value: &str) -> Result<(FilePath, Option<u32>), Problem> {
    let value = value.trim_ascii();
    let Some((name, option)) = value.split_once('?') else {
        return Ok((FilePath::parse(value)?, None));
    };
    let Some(bits) = option.strip_prefix("mode=") else {
        return Err(Problem::new("the only option of an SVID's file is its mode, such as tls.key?mode=0400"));
    };
    Ok((FilePath::parse(name)?, Some(mode::parse(bits)?)))
}

/// Three files, each with the mode that is wished for.
pub(super) fn x509_names(value: &str) -> Result<[(FilePath, Option<u32>); 3], Problem> {
    let value = if value.trim_ascii() == SPIFFE_HELPER.0 { SPIFFE_HELPER.1 } else { value };
    let names: Vec<&str> = value.split(',').map(str::trim_ascii).collect();
    match names.as_slice() {
        &[chain, key, bundle] => Ok([svid_file(chain)?, svid_file(key)?, svid_file(bundle)?]),
        others => Err(Problem::new(format!(
            "names {} files, but three are needed: chain, key and bundle, such as tls.crt,tls.key,ca.crt",
            if value.trim_ascii().is_empty() { 0 } else { others.len() }
        ))),
    }
}

/// The name that a registration entry gives its SVID (SPIFFE Workload API §5.2.1).
pub(crate) fn hint(value: &str) -> Result<Arc<str>, Problem> {
    if (1..=1024).contains(&value.len()) && !value.chars().any(char::is_control) {
        Ok(value.into())
    } else {
        Err(Problem::new(
            "a hint has 1 to 1024 printable bytes; write the one of the registration entry that is meant",
        ))
    }
}

pub(super) fn on_revoked(value: &str) -> Result<OnRevoked, Problem> {
    match value {
        "keep" => Ok(OnRevoked::Keep),
        "wipe" => Ok(OnRevoked::Wipe),
        _ => Err(Problem::new(
            "neither \"keep\" nor \"wipe\"; write \"wipe\" to have the files of a withdrawn secret removed",
        )),
    }
}

pub(super) fn flag(value: &str) -> Result<bool, Problem> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(Problem::new("neither \"true\" nor \"false\"; write \"true\", or leave it out")),
    }
}

// The admission policy has read inject and these two before the pod was made; here they are only kept from being
// nonsense.

pub(super) fn mount_path(value: &str) -> Result<(), Problem> {
    let relative = value.strip_prefix('/').filter(|rest| !rest.is_empty());
    let parts = relative.map(|rest| rest.trim_end_matches('/').split('/'));
    let sound = |mut parts: std::str::Split<'_, char>| {
        parts.all(|part| {
            !matches!(part, "" | "." | "..") && !part.contains(|c: char| c.is_control() || c == ':')
        })
    };
    if parts.is_some_and(sound) {
        Ok(())
    } else {
        Err(Problem::new(
            "not an absolute path; write one without . and .., such as /var/run/secrets/countersign",
        ))
    }
}

pub(super) fn containers(value: &str) -> Result<(), Problem> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let name = |name: &str| {
        (1..=63).contains(&name.len())
            && name.bytes().all(legal)
            && !name.starts_with('-')
            && !name.ends_with('-')
    };
    if value.split(',').map(str::trim_ascii).all(name) {
        Ok(())
    } else {
        Err(Problem::new("not a list of container names; write them with commas between, such as app,worker"))
    }
}
