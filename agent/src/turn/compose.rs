//! From what was gathered to the set of files; which of them are left out when something was withdrawn, and which stay as
//! they were because they can't be made.

use std::time::SystemTime;

use super::draft::{Draft, Made, made, may_stay, needs, restore, set, stay};
use super::mixture::Mixture;
use crate::Error;
use crate::files::FileSet;
use crate::request::{Content, FileSpec, Reference};
use crate::volume::{Inputs, Lacking, Volume};

/// What rendering all files came to.
pub(super) enum Composed {
    /// All files. What they lack is told with the inputs, which are now what the files show.
    Files(FileSet),
    /// These have to be looked up first.
    Needs(Vec<Reference>),
}

/// Renders the files of `volume` from `inputs`. `wall` is the time of day; in the `last` round nothing more is looked up.
///
/// A file that can't be made holds up none that has nothing to do with it. It is made from its secrets as they were before;
/// where those are not at hand, because another agent had them, it stays as it is. Either goes for all files that are made
/// from the same secrets, for these change together.
///
/// # Errors
/// What keeps all files as they are: of a pod that is about to start anything that can't be made, and of one that runs
/// its X.509-SVID, or a file that should stay and can't be read.
pub(super) fn compose(
    volume: &Volume,
    inputs: &mut Inputs,
    wall: SystemTime,
    last: bool,
) -> Result<Composed, Error> {
    let (mut lacking, mut failed) = (None, None);
    let mut drafts = Vec::with_capacity(volume.request.files.len());
    for spec in &volume.request.files {
        let ended = ended(spec, inputs, wall).filter(|_| volume.wipes());
        let left_out = ended.is_some();
        let made = match ended.map_or_else(|| made(spec, inputs, volume.capacity, last), Err) {
            Ok(rendered) => Made::Rendered(rendered),
            Err(error) if left_out || (volume.wipes() && error.is_withdrawal()) => {
                Met::with(&mut lacking, error, &spec.key);
                Made::Withdrawn
            }
            Err(error) => {
                Met::with(&mut failed, error.clone(), &spec.key);
                Made::Failed(error)
            }
        };
        drafts.push(Draft { spec, made });
    }
    let stays = |draft: &Draft<'_>| !draft.failed() || (volume.established && may_stay(draft.spec));
    if let Some(failed) = failed.take_if(|_| !drafts.iter().all(stays)) {
        return Err(failed.told());
    }
    let wanted = needs(&drafts);
    if !wanted.is_empty() {
        return Ok(Composed::Needs(wanted));
    }
    let mut mixture = Mixture::new(inputs, volume.written.as_ref());
    restore(&mut drafts, &mut mixture, volume.capacity, last);
    let older = mixture.into_older();
    let wanted = needs(&drafts);
    if !wanted.is_empty() {
        return Ok(Composed::Needs(wanted));
    }
    let mut unshown = stay(volume, &mut drafts)?;
    let needed = drafts.iter().map(Draft::bytes).sum();
    if volume.established && needed > volume.capacity {
        // Secrets have grown. Without them there is room for SVIDs, which have not.
        let error = Error::TooLarge { needed, capacity: volume.capacity };
        for draft in drafts.iter_mut().filter(|draft| draft.spec.sources().next().is_some()) {
            if !matches!(draft.made, Made::Withdrawn) {
                draft.made = Made::Failed(error.clone());
                Met::with(&mut failed, error.clone(), &draft.spec.key);
            }
        }
        unshown.extend(stay(volume, &mut drafts)?);
    }
    if let Some(before) = &volume.written {
        for source in &older {
            let answer = before.secrets.get(source);
            inputs.secrets.extend(answer.map(|answer| (source.clone(), answer.clone())));
        }
        inputs.hold_as(before, &older);
        inputs.hold_as(before, &unshown);
    }
    let left_out = lacking.as_ref().map_or(0, |met: &Met<'_>| met.files);
    let error = lacking.or(failed).map(Met::told);
    inputs.lacking = error.map(|error| Lacking { files: left_out, error, unshown });
    Ok(Composed::Files(set(volume, drafts)))
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
    let ends = written.jwts.values().flatten().map(|jwt| jwt.expires);
    let ends = ends.chain([written.identity.x509.not_after]);
    let wall = if withdrawn { ends.max().map_or(wall, |end| end.max(wall)) } else { wall };
    if !volume.wipes() || written.identity.x509.not_after > wall {
        return None;
    }
    let mut inputs = written.clone();
    let Ok(Composed::Files(files)) = compose(volume, &mut inputs, wall, true) else { return None };
    inputs.lacking = inputs.lacking.map(|lacking| Lacking { error: error.clone(), ..lacking });
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
        Content::Jwt { audience } => inputs.jwts.get(audience)?.as_ref().ok()?.expires,
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
