//! From what was gathered to the set of files, and which of them are left out when something was withdrawn.

use std::time::SystemTime;

use crate::Error;
use crate::files::{FileSet, default_mode};
use crate::render::{Rendered, render};
use crate::request::{Content, FileSpec, Reference};
use crate::secret::Secret;
use crate::volume::{Inputs, Lacking, Volume};

/// What rendering all files came to.
pub(super) enum Composed {
    /// All files, and what they lack by the pod's own wish.
    Files(FileSet, Option<Lacking>),
    /// These have to be looked up first.
    Needs(Vec<Reference>),
}

/// Renders the files of `volume` from `inputs`. `wall` is the time of day.
///
/// # Errors
/// What keeps the files as they are: everything that the pod has not asked to be wiped for.
pub(super) fn compose(volume: &Volume, inputs: &Inputs, wall: SystemTime) -> Result<Composed, Error> {
    let mut files = FileSet::default();
    let (mut lacking, mut failed, mut stale) = (None, None, None);
    let mut needs = Vec::new();
    for spec in &volume.request.files {
        if let Some(error) = ended(spec, inputs, wall).filter(|_| volume.wipes()) {
            Met::with(&mut lacking, error, &spec.key);
            continue;
        }
        match render(spec, inputs, volume.capacity) {
            Ok(Rendered::File(content)) => {
                let mode = spec.mode.unwrap_or_else(|| default_mode(volume.fs_group));
                files.insert(spec.path.clone(), content, mode);
            }
            Ok(Rendered::Files(contents)) => {
                let mode = spec.mode.unwrap_or_else(|| default_mode(volume.fs_group));
                for (path, content) in contents {
                    files.insert(path, content, mode);
                }
            }
            Ok(Rendered::Omitted) => {}
            Ok(Rendered::Needs(references)) => needs.extend(references),
            Err(error) if volume.wipes() && error.is_withdrawal() => {
                Met::with(&mut lacking, error, &spec.key);
            }
            Err(error) => match bundle_held(volume, spec) {
                // Made from nothing that another file is made from: it stays, and holds up no SVID that is renewed.
                Some(held) => {
                    let mode = spec.mode.unwrap_or_else(|| default_mode(volume.fs_group));
                    files.insert(spec.path.clone(), held, mode);
                    Met::with(&mut stale, error, &spec.key);
                }
                None => Met::with(&mut failed, error, &spec.key),
            },
        }
    }
    if let Some(failed) = failed {
        return Err(failed.told());
    }
    let lacking = lacking.map(|met| Lacking { files: met.files, error: met.told() });
    let lacking = lacking.or_else(|| stale.map(|met: Met<'_>| Lacking { files: 0, error: met.told() }));
    Ok(if needs.is_empty() { Composed::Files(files, lacking) } else { Composed::Needs(needs) })
}

/// The trust bundle in the file of `spec`, if it is one and the pod has it.
fn bundle_held(volume: &Volume, spec: &FileSpec) -> Option<Secret> {
    let directory = volume.directory.as_ref().filter(|_| volume.established)?;
    matches!(spec.content, Content::Bundle { .. }).then(|| directory.held(&spec.path))?
}

/// The first error met, and the keys of all files that met the same.
struct Met<'v> {
    error: Error,
    keys: Vec<&'v str>,
    /// How many files met any.
    files: usize,
}

impl<'v> Met<'v> {
    fn with(met: &mut Option<Self>, error: Error, key: &'v str) {
        match met {
            None => *met = Some(Self { error, keys: vec![key], files: 1 }),
            Some(met) => {
                met.files += 1;
                if met.error == error {
                    met.keys.push(key);
                }
            }
        }
    }

    fn told(self) -> Error {
        self.error.asked_by(self.keys)
    }
}

/// The files of a volume whose identity has ended, for `error`, and whose pod wants its SVIDs removed then: those that
/// were made from secrets, as they were last, for nobody can be asked about them any more.
pub(super) fn lapsed(volume: &Volume, wall: SystemTime, error: &Error) -> Option<(FileSet, Inputs)> {
    let written = volume.written.as_ref()?;
    // An identity that was taken back is as good as ended, and so is every token of it.
    let withdrawn = matches!(error, Error::IdentityWithdrawn { .. });
    let ends = written.jwts.values().map(|jwt| jwt.expires).chain([written.identity.x509.not_after]);
    let wall = if withdrawn { ends.max().map_or(wall, |end| end.max(wall)) } else { wall };
    if !volume.wipes() || written.identity.x509.not_after > wall {
        return None;
    }
    let mut inputs = written.clone();
    let Ok(Composed::Files(files, lacking)) = compose(volume, &inputs, wall) else { return None };
    inputs.lacking = lacking.map(|lacking| Lacking { error: error.clone(), ..lacking });
    Some((files, inputs))
}

/// Whether rendering `inputs` again could leave out something that was written from the same.
pub(super) fn ages(volume: &Volume, inputs: &Inputs, wall: SystemTime) -> bool {
    volume.wipes() && volume.request.files.iter().any(|spec| ended(spec, inputs, wall).is_some())
}

/// Why the SVID that `spec` asks for is of no use any more.
fn ended(spec: &FileSpec, inputs: &Inputs, wall: SystemTime) -> Option<Error> {
    let end = match &spec.content {
        Content::X509Chain
        | Content::X509Key
        | Content::X509Pair
        | Content::X509ChainDer
        | Content::X509KeyDer
        | Content::X509Pkcs12 => inputs.identity.x509.not_after,
        Content::Jwt { audience } => inputs.jwts.get(audience)?.expires,
        // A bundle vouches for others, who have not ended.
        Content::X509Bundle
        | Content::X509BundleDer
        | Content::X509BundleJks
        | Content::X509BundlePkcs12
        | Content::Bundle { .. }
        | Content::BundleFiles
        | Content::Secret(_)
        | Content::Template(_) => return None,
    };
    (end <= wall).then(|| Error::IdentityUnavailable { problem: "the SVID has ended".to_owned() })
}
