//! Putting right what a crash left, at any step of [`Directory::replace`](super::Directory::replace).
//!
//! | crash | left | put right |
//! |---|---|---|
//! | while a generation was written | the generation, unused | it goes after the grace |
//! | before `..data` was renamed | `..links_tmp`, `..data_tmp`, perhaps fewer visible links | removed; links made again |
//! | after it | `..links_tmp`, missing visible links, the old generation | the same |
//! | while an old generation was removed | a part of it | it goes after the grace |

use std::collections::BTreeSet;

use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;
use tokio::time::Instant;

use super::{DATA, DATA_NEXT, Directory, During, GRACE, Generation, LINKS_NEXT, link, tree};
use crate::Error;

impl Directory {
    pub(super) fn sweep(&mut self, now: Instant) -> Result<(), Error> {
        self.current = self.read_current().during("reading ..data")?;
        let mut linked = BTreeSet::new();
        for name in tree::names(&self.root).during("listing the root")? {
            let in_use = self.current.as_ref();
            if name == DATA || in_use.is_some_and(|current| current.name == name) {
                continue;
            }
            if in_use.is_some_and(|current| current.names.contains(&name)) && self.is_visible_link(&name) {
                linked.insert(name);
            } else if name.starts_with("..") && name != DATA_NEXT && name != LINKS_NEXT {
                self.superseded.push((name, now + GRACE));
            } else {
                tree::remove(&self.root, &name).during("removing what a crash left")?;
            }
        }
        let wanted = self.current.iter().flat_map(|current| &current.names);
        for name in wanted.filter(|name| !linked.contains(*name)) {
            link(&self.root, name).during("making a visible link again")?;
        }
        Ok(())
    }

    /// The generation that `..data` names; if that is none, `..data` goes.
    fn read_current(&self) -> Result<Option<Generation>, Errno> {
        let target = match fs::readlinkat(&self.root, DATA, Vec::new()) {
            Ok(target) => target.into_string().ok(),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::INVAL) => None,
            Err(kind) => return Err(kind),
        };
        let name = target.filter(|name| name.starts_with("..") && name.len() > 2 && !name.contains('/'));
        if let Some(name) = name {
            match tree::directory(&self.root, &name).and_then(|generation| tree::names(&generation)) {
                Ok(names) => {
                    return Ok(Some(Generation { name, names: names.into_iter().collect(), digest: None }));
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(kind) => return Err(kind),
            }
        }
        tree::remove(&self.root, DATA)?;
        Ok(None)
    }

    fn is_visible_link(&self, name: &str) -> bool {
        let is_link = fs::statat(&self.root, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
        is_link
            && fs::readlinkat(&self.root, name, Vec::new())
                .is_ok_and(|target| target.to_bytes() == format!("{DATA}/{name}").as_bytes())
    }
}
