//! Files on their way: rendered, or why not, and what stands in for those that can't be.

use std::collections::BTreeSet;

use super::ROUNDS;
use super::mixture::Mixture;
use crate::Error;
use crate::files::{FileSet, default_mode};
use crate::render::{Material, Rendered, render};
use crate::request::{Content, FileSpec, Reference, Source};
use crate::volume::Volume;

/// One file on its way.
pub(super) struct Draft<'v> {
    pub(super) spec: &'v FileSpec,
    pub(super) made: Made,
}

pub(super) enum Made {
    Rendered(Rendered),
    /// What it is made from was withdrawn, and the pod wants it left out then.
    Withdrawn,
    /// It can't be made.
    Failed(Error),
    /// It is made from the same as one that can't be.
    Tied,
}

/// Renders one file. In the `last` round it has to do with what is at hand.
pub(super) fn made(
    spec: &FileSpec,
    material: &impl Material,
    limit: u64,
    last: bool,
) -> Result<Rendered, Error> {
    let rendered = render(spec, material, limit)?;
    if last && matches!(rendered, Rendered::Needs(_)) {
        return Err(Error::Template {
            key: spec.key.clone(),
            problem: format!(
                "asks for ever more secrets after {ROUNDS} rounds; name them without one another's help"
            ),
        });
    }
    Ok(rendered)
}

/// Whether the file may be older than those beside it. An X.509-SVID's chain, key and bundle are one.
pub(super) fn may_stay(spec: &FileSpec) -> bool {
    match &spec.content {
        Content::Secret(_) | Content::Template(_) | Content::Bundle { .. } | Content::Jwt { .. } => true,
        Content::X509Chain
        | Content::X509Key
        | Content::X509Bundle
        | Content::X509Pair
        | Content::X509ChainDer
        | Content::X509KeyDer
        | Content::X509BundleDer
        | Content::X509BundleJks
        | Content::X509Pkcs12
        | Content::X509BundlePkcs12
        | Content::BundleFiles => false,
    }
}

pub(super) fn needs(drafts: &[Draft<'_>]) -> Vec<Reference> {
    let needs = drafts.iter().filter_map(|draft| match &draft.made {
        Made::Rendered(Rendered::Needs(references)) => Some(references),
        Made::Rendered(_) | Made::Withdrawn | Made::Failed(_) | Made::Tied => None,
    });
    needs.flatten().cloned().collect()
}

/// Makes files that failed from older secrets, as far as such are at hand, and with them all that are made from the same.
pub(super) fn restore(drafts: &mut [Draft<'_>], mixture: &mut Mixture<'_>, limit: u64, last: bool) {
    loop {
        let mut failed = drafts.iter().filter(|draft| draft.failed());
        let remedy = failed.find_map(|draft| mixture.remedy(draft.spec, limit));
        let Some(older) = remedy else { return };
        mixture.revert(&older);
        for draft in drafts.iter_mut().filter(|draft| !matches!(draft.made, Made::Withdrawn)) {
            if draft.spec.sources().any(|source| older.contains(&source)) {
                let made = made(draft.spec, &*mixture, limit, last);
                draft.made = made.map_or_else(Made::Failed, Made::Rendered);
            }
        }
    }
}

/// Has files that failed stay as they are in the directory, and with them all that are made from the same secrets.
/// Returns those secrets.
pub(super) fn stay(volume: &Volume, drafts: &mut [Draft<'_>]) -> Result<BTreeSet<Source>, Error> {
    let mut unshown = BTreeSet::new();
    loop {
        let known = unshown.len();
        for draft in &mut *drafts {
            let shares = || draft.spec.sources().any(|source| unshown.contains(&source));
            if matches!(draft.made, Made::Rendered(_)) && shares() {
                draft.made = Made::Tied;
            }
            if matches!(draft.made, Made::Failed(_) | Made::Tied) {
                unshown.extend(draft.spec.sources());
            }
        }
        if unshown.len() == known {
            break;
        }
    }
    for draft in drafts {
        let failed = match &draft.made {
            Made::Rendered(_) | Made::Withdrawn => continue,
            Made::Failed(error) => Some(error),
            Made::Tied => None,
        };
        let directory = volume.directory.as_ref().ok_or(Error::NoDirectory)?;
        let held = directory.held(&draft.spec.path)?;
        if let (None, Some(error)) = (&held, failed)
            && !may_lack(volume, draft.spec)
        {
            return Err(error.clone().asked_by([draft.spec.key.as_str()]));
        }
        draft.made = Made::Rendered(held.map_or(Rendered::Omitted, Rendered::File));
    }
    Ok(unshown)
}

/// Whether the directory may have been without the file until now.
fn may_lack(volume: &Volume, spec: &FileSpec) -> bool {
    volume.wipes() || matches!(&spec.content, Content::Secret(reference) if reference.optional)
}

pub(super) fn set(volume: &Volume, drafts: Vec<Draft<'_>>) -> FileSet {
    let mut files = FileSet::default();
    for Draft { spec, made } in drafts {
        let mode = spec.mode.unwrap_or_else(|| default_mode(volume.fs_group));
        match made {
            Made::Rendered(Rendered::File(content)) => files.insert(spec.path.clone(), content, mode),
            Made::Rendered(Rendered::Files(contents)) => {
                for (path, content) in contents {
                    files.insert(path, content, mode);
                }
            }
            Made::Rendered(Rendered::Omitted | Rendered::Needs(_))
            | Made::Withdrawn
            | Made::Failed(_)
            | Made::Tied => {}
        }
    }
    files
}

impl Draft<'_> {
    pub(super) fn failed(&self) -> bool {
        matches!(self.made, Made::Failed(_))
    }

    /// As many as it will have.
    pub(super) fn bytes(&self) -> u64 {
        match &self.made {
            Made::Rendered(Rendered::File(content)) => content.len() as u64,
            Made::Rendered(Rendered::Files(files)) => {
                files.iter().map(|(_, content)| content.len() as u64).sum()
            }
            Made::Rendered(Rendered::Omitted | Rendered::Needs(_))
            | Made::Withdrawn
            | Made::Failed(_)
            | Made::Tied => 0,
        }
    }
}
