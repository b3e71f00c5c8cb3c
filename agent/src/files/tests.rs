//! On real file systems: `/dev/shm`, and in [`mounts`] detached tmpfs as the driver makes them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::inotify;
use tempfile::TempDir;

use super::*;
use crate::request::FilePath;
use crate::secret::Secret;

const ROOMY: u64 = 4 << 20;

fn shm() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn descriptor(path: &Path) -> OwnedFd {
    fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn open(path: &Path) -> Directory {
    Directory::open(&descriptor(path), ROOMY, Instant::now()).unwrap()
}

fn set(files: &[(&str, &str)]) -> FileSet {
    let mut set = FileSet::default();
    for (path, content) in files {
        set.insert(FilePath::parse(path).unwrap(), Secret::from((*content).to_owned()), default_mode(None));
    }
    set
}

fn replace(directory: &mut Directory, files: &[(&str, &str)]) -> Change {
    directory.replace(&set(files), &Clock::system()).unwrap()
}

/// Every entry of the volume by its path: the content of a file, `-> target` of a link, `/` of a directory.
fn listing(root: &Path) -> BTreeMap<String, String> {
    fn walk(directory: &Path, prefix: &str, into: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_symlink() {
                into.insert(
                    name,
                    format!("-> {}", std::fs::read_link(entry.path()).unwrap().to_str().unwrap()),
                );
            } else if kind.is_dir() {
                walk(&entry.path(), &format!("{name}/"), into);
                into.insert(name, "/".to_owned());
            } else {
                into.insert(name, std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }
    let mut entries = BTreeMap::new();
    walk(root, "", &mut entries);
    entries
}

/// What a pod sees: the visible names and the contents behind them.
fn visible(root: &Path) -> BTreeMap<String, String> {
    fn walk(directory: &Path, prefix: &str, into: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if prefix.is_empty() && name.starts_with("..") {
                continue;
            }
            if path.metadata().unwrap().is_dir() {
                walk(&path, &format!("{prefix}{name}/"), into);
            } else {
                into.insert(format!("{prefix}{name}"), std::fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(root, "", &mut files);
    files
}

fn pairs(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(name, content)| ((*name).to_owned(), (*content).to_owned())).collect()
}

#[test]
fn a_volume_looks_as_kubelet_s_do() {
    let dir = shm();
    let mut directory = open(dir.path());
    let change = replace(&mut directory, &[("password", "p"), ("tls/key", "k"), ("tls/sub/crt", "c")]);
    assert_eq!(change, Change::Replaced { files: 3, bytes: 3 });
    let generation = directory.generation().unwrap().to_owned();
    let (time, random) = generation.strip_prefix("..").unwrap().split_once('.').unwrap();
    assert!(time.len() == 19 && time.bytes().all(|b| b.is_ascii_digit() || b == b'_'), "{generation}");
    assert!(random.len() == 8 && random.bytes().all(|b| b.is_ascii_hexdigit()), "{generation}");
    let inside = |name: &str| format!("{generation}/{name}");
    let expected: BTreeMap<String, String> = [
        ("..data".to_owned(), format!("-> {generation}")),
        ("password".to_owned(), "-> ..data/password".to_owned()),
        ("tls".to_owned(), "-> ..data/tls".to_owned()),
        (generation.clone(), "/".to_owned()),
        (inside("password"), "p".to_owned()),
        (inside("tls"), "/".to_owned()),
        (inside("tls/key"), "k".to_owned()),
        (inside("tls/sub"), "/".to_owned()),
        (inside("tls/sub/crt"), "c".to_owned()),
    ]
    .into();
    assert_eq!(listing(dir.path()), expected);
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        [mode("password"), mode("tls/key"), mode("tls"), mode("..data")],
        [0o444, 0o444, 0o755, 0o755]
    );
}

#[test]
fn modes_are_the_files_own() {
    assert_eq!((default_mode(None), default_mode(Some(2000))), (0o444, 0o440));
    let dir = shm();
    let mut wanted = FileSet::default();
    for mode in [0o400, 0o440, 0o444, 0o004] {
        wanted.insert(FilePath::parse(&format!("f{mode:o}")).unwrap(), Secret::from("x".to_owned()), mode);
    }
    open(dir.path()).replace(&wanted, &Clock::system()).unwrap();
    for mode in [0o400, 0o440, 0o444, 0o004] {
        let there = dir.path().join(format!("f{mode:o}")).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(there, mode);
    }
}

#[test]
fn the_same_files_are_not_written_again() {
    let dir = shm();
    let files = [("a", "1"), ("b/c", "2")];
    let mut directory = open(dir.path());
    replace(&mut directory, &files);
    let before = listing(dir.path());
    let inode = std::fs::metadata(dir.path().join("a")).unwrap().ino();
    assert_eq!(replace(&mut directory, &files), Change::Unchanged);
    drop(directory);

    let mut again = open(dir.path());
    assert_eq!(replace(&mut again, &files), Change::Unchanged, "after a restart the files are compared");
    assert_eq!(replace(&mut again, &files), Change::Unchanged);
    assert_eq!(listing(dir.path()), before);
    assert_eq!(std::fs::metadata(dir.path().join("a")).unwrap().ino(), inode);
}

#[test]
fn any_difference_is_written() {
    let base = [("a", "1"), ("b/c", "2")];
    let mut other_mode = set(&base);
    other_mode.insert(FilePath::parse("a").unwrap(), Secret::from("1".to_owned()), 0o400);
    for (what, changed) in [
        ("content", set(&[("a", "x"), ("b/c", "2")])),
        ("length", set(&[("a", "11"), ("b/c", "2")])),
        ("shorter", set(&[("a", ""), ("b/c", "2")])),
        ("one more", set(&[("a", "1"), ("b/c", "2"), ("b/d", "")])),
        ("one less", set(&[("a", "1")])),
        ("another place", set(&[("a", "1"), ("c", "2")])),
        ("contents swapped", set(&[("a", "2"), ("b/c", "1")])),
        ("mode", other_mode),
        ("nothing", FileSet::default()),
    ] {
        for restarted in [false, true] {
            let dir = shm();
            let mut directory = open(dir.path());
            replace(&mut directory, &base);
            if restarted {
                drop(directory);
                directory = open(dir.path());
            }
            let change = directory.replace(&changed, &Clock::system()).unwrap();
            assert!(matches!(change, Change::Replaced { .. }), "{what}, restarted: {restarted}");
        }
    }
}

#[test]
fn contents_longer_than_one_read_are_compared_to_the_end() {
    let dir = shm();
    let mut text = "x".repeat(10_000);
    let mut directory = open(dir.path());
    replace(&mut directory, &[("a", &text)]);
    let mut directory = open(dir.path());
    assert_eq!(replace(&mut directory, &[("a", &text)]), Change::Unchanged);
    text.replace_range(9_999.., "y");
    let mut directory = open(dir.path());
    assert!(matches!(replace(&mut directory, &[("a", &text)]), Change::Replaced { .. }));
}

#[test]
fn names_come_and_go() {
    let dir = shm();
    let mut directory = open(dir.path());
    for files in [
        &[("a", "1"), ("b", "1")][..],
        &[("a", "2"), ("c", "2")],
        &[("a/x", "3"), ("a/y/z", "3"), ("b", "3")],
        &[("a", "4")],
        &[],
        &[("a", "5"), ("b", "5")],
    ] {
        replace(&mut directory, files);
        assert_eq!(visible(dir.path()), pairs(files));
        directory.retire(Instant::now() + GRACE);
        let mut rest: Vec<String> = listing(dir.path())
            .into_keys()
            .filter(|name| name.starts_with("..") && !name.contains('/'))
            .collect();
        rest.retain(|name| name != directory.generation().unwrap());
        assert_eq!(rest, [DATA]);
    }
}

#[test]
fn a_replaced_generation_stays_for_the_grace() {
    let dir = shm();
    let mut directory = open(dir.path());
    assert_eq!(directory.retire(Instant::now()), None);
    replace(&mut directory, &[("a", "1")]);
    let first = dir.path().join(directory.generation().unwrap()).join("a");
    let held = descriptor(&dir.path().join(DATA));
    let before = Instant::now();
    replace(&mut directory, &[("a", "2")]);
    let after = Instant::now();

    let next = directory.retire(after).unwrap();
    assert!(next >= before + GRACE && next <= after + GRACE);
    assert_eq!(std::fs::read_to_string(&first).unwrap(), "1");
    assert_eq!(directory.retire(next), None);
    assert!(!first.exists());
    // A directory that is held but gone is empty: the grace is what such a reader has.
    assert_eq!(fs::openat(&held, "a", OFlags::RDONLY, Mode::empty()).unwrap_err(), Errno::NOENT);
    assert_eq!(visible(dir.path()), pairs(&[("a", "2")]));
}

#[test]
fn too_large_is_found_out_before_anything_is_written() {
    let dir = shm();
    let mut directory = Directory::open(&descriptor(dir.path()), 10, Instant::now()).unwrap();
    replace(&mut directory, &[("a", "0123456789")]);
    let before = listing(dir.path());
    let error = directory.replace(&set(&[("a", "0123456789"), ("b", "x")]), &Clock::system()).unwrap_err();
    assert_eq!(error, Error::TooLarge { needed: 11, capacity: 10 });
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn what_a_crash_leaves_is_put_right() {
    type Damage = fn(&Path);
    let link = |from: &str, to: &Path| std::os::unix::fs::symlink(from, to).unwrap();
    let crashes: [(&str, Damage); 12] = [
        ("nothing", |_| {}),
        ("empty generation", |root| {
            std::fs::create_dir(root.join("..2026_01_01_00_00_00.00000000")).unwrap();
        }),
        ("half a generation", |root| {
            std::fs::create_dir_all(root.join("..2026_01_01_00_00_00.00000000/b/d")).unwrap();
            std::fs::write(root.join("..2026_01_01_00_00_00.00000000/b/c"), "half").unwrap();
        }),
        ("..links_tmp", |root| {
            std::fs::create_dir(root.join("..links_tmp")).unwrap();
            std::os::unix::fs::symlink("..data/z", root.join("..links_tmp/z")).unwrap();
        }),
        ("..data_tmp", |root| {
            std::fs::create_dir(root.join("..2026_01_01_00_00_00.00000000")).unwrap();
            std::os::unix::fs::symlink("..2026_01_01_00_00_00.00000000", root.join("..data_tmp")).unwrap();
        }),
        ("a visible link removed before the rename", |root| std::fs::remove_file(root.join("a")).unwrap()),
        ("every visible link removed", |root| {
            std::fs::remove_file(root.join("a")).unwrap();
            std::fs::remove_file(root.join("b")).unwrap();
        }),
        ("a visible link that points nowhere", |root| {
            std::os::unix::fs::symlink("..data/gone", root.join("gone")).unwrap();
        }),
        ("a visible link that points elsewhere", |root| {
            std::fs::remove_file(root.join("a")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", root.join("a")).unwrap();
        }),
        ("a half removed generation", |root| {
            std::fs::create_dir(root.join("..2025_01_01_00_00_00.00000000")).unwrap();
            std::fs::write(root.join("..2025_01_01_00_00_00.00000000/a"), "old").unwrap();
        }),
        ("..data_tmp as a directory", |root| std::fs::create_dir_all(root.join("..data_tmp/x")).unwrap()),
        ("a stranger", |root| std::fs::write(root.join("stranger"), "x").unwrap()),
    ];
    for (what, damage) in crashes {
        let dir = shm();
        let files = [("a", "1"), ("b/c", "2")];
        replace(&mut open(dir.path()), &files);
        let clean = listing(dir.path());
        damage(dir.path());

        let mut directory = open(dir.path());
        assert_eq!(visible(dir.path()), pairs(&files), "{what}");
        directory.retire(Instant::now() + GRACE);
        assert_eq!(listing(dir.path()), clean, "{what}");
        assert_eq!(replace(&mut directory, &files), Change::Unchanged, "{what}");

        // The next change works as well when nothing waits for the grace.
        damage(dir.path());
        let mut directory = open(dir.path());
        replace(&mut directory, &[("a", "3"), ("d", "3")]);
        assert_eq!(visible(dir.path()), pairs(&[("a", "3"), ("d", "3")]), "{what}");
    }

    for (what, target) in [
        ("nowhere", "..2026_01_01_00_00_00.00000000"),
        ("outside", "/etc"),
        ("above", ".."),
        ("deeper", "..x/y"),
        ("a file", "..file"),
    ] {
        let dir = shm();
        std::fs::write(dir.path().join("..file"), "x").unwrap();
        link(target, &dir.path().join(DATA));
        link("..data/a", &dir.path().join("a"));
        let mut directory = open(dir.path());
        assert_eq!(directory.generation(), None, "{what}");
        directory.retire(Instant::now() + GRACE);
        assert_eq!(listing(dir.path()), BTreeMap::new(), "{what}");
        replace(&mut directory, &[("a", "1")]);
        assert_eq!(visible(dir.path()), pairs(&[("a", "1")]), "{what}");
    }
}

#[test]
fn a_generation_that_a_reader_resolved_before_the_crash_stays_for_the_grace() {
    let dir = shm();
    let mut directory = open(dir.path());
    replace(&mut directory, &[("a", "1")]);
    let held = descriptor(&dir.path().join(DATA));
    replace(&mut directory, &[("a", "2")]);
    drop(directory);
    let mut directory = open(dir.path());
    assert!(fs::openat(&held, "a", OFlags::RDONLY, Mode::empty()).is_ok());
    assert!(directory.retire(Instant::now()).is_some());
    assert_eq!(directory.retire(Instant::now() + GRACE), None);
}

#[test]
fn symbolic_links_are_not_followed() {
    let outside = shm();
    std::fs::write(outside.path().join("precious"), "p").unwrap();
    let dir = shm();
    replace(&mut open(dir.path()), &[("a", "1")]);
    std::os::unix::fs::symlink(outside.path(), dir.path().join("..2020_01_01_00_00_00.00000000")).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("..links_tmp")).unwrap();
    let mut directory = open(dir.path());
    directory.retire(Instant::now() + GRACE);
    replace(&mut directory, &[("b", "1")]);
    directory.wipe();
    assert_eq!(visible(outside.path()), pairs(&[("precious", "p")]));
    assert_eq!(listing(dir.path()), BTreeMap::new());
}

#[test]
fn a_wiped_volume_is_empty_and_its_bytes_are_gone() {
    let dir = shm();
    let mut directory = open(dir.path());
    let long = "secret".repeat(2000);
    replace(&mut directory, &[("a", &long), ("b/c", "secret")]);
    let mut held = std::fs::File::open(dir.path().join("a")).unwrap();
    replace(&mut directory, &[("a", "other")]);
    directory.wipe();
    assert_eq!(listing(dir.path()), BTreeMap::new());
    let mut bytes = Vec::new();
    held.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, vec![0; long.len()]);
}

/// The files of one moment: each says which moment that was.
fn moment(n: usize) -> FileSet {
    let mut set = FileSet::default();
    for file in 0..5 {
        let text = format!("{n:08}").repeat(1 + file * 200);
        set.insert(FilePath::parse(&format!("f{file}")).unwrap(), Secret::from(text), 0o444);
    }
    // Every other moment has one name more.
    if n.is_multiple_of(2) {
        set.insert(FilePath::parse("even/n").unwrap(), Secret::from(format!("{n:08}")), 0o444);
    }
    set
}

/// Reads one moment through one descriptor of `..data`; panics if it is not whole.
fn read_moment(root: &OwnedFd) -> usize {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let data = fs::openat(root, DATA, flags | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let read = |name: &str| -> Result<String, Errno> {
        let mut text = String::new();
        let mut file = std::fs::File::from(fs::openat(&data, name, flags, Mode::empty())?);
        file.read_to_string(&mut text).unwrap();
        Ok(text)
    };
    let first = read("f0").unwrap();
    for file in 0..5 {
        assert_eq!(read(&format!("f{file}")).unwrap(), first.repeat(1 + file * 200), "torn");
    }
    let n: usize = first.parse().unwrap();
    match read("even/n") {
        Ok(text) => assert_eq!(text, first, "torn"),
        Err(kind) => assert!(kind == Errno::NOENT && n % 2 == 1, "missing"),
    }
    n
}

/// Looks at every visible name as a pod does; panics if one that is there and stays does not open.
fn look_at_names(root: &Path) {
    for name in ["f0", "f4", "even"] {
        let path = root.join(name);
        let Ok(before) = path.symlink_metadata() else {
            assert_eq!(name, "even", "a name that stays was missing");
            continue;
        };
        if let Err(error) = path.metadata() {
            let after = path.symlink_metadata();
            assert!(
                after.is_err() || after.is_ok_and(|after| after.ino() != before.ino()),
                "dangling {name}: {error}"
            );
        }
    }
}

fn readers_see_whole_moments(root: &Path, replacements: usize) {
    let mut directory = open(root);
    directory.replace(&moment(0), &Clock::system()).unwrap();
    let done = AtomicBool::new(false);
    let (done, rounds) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let root = descriptor(root);
                    let (mut last, mut rounds) = (0, 0);
                    while !done.load(Ordering::Relaxed) {
                        let n = read_moment(&root);
                        assert!(n >= last, "went back");
                        (last, rounds) = (n, rounds + 1);
                    }
                    rounds
                })
            })
            .chain([scope.spawn(|| {
                let mut rounds = 0;
                while !done.load(Ordering::Relaxed) {
                    look_at_names(root);
                    rounds += 1;
                }
                rounds
            })])
            .collect();
        for n in 1..=replacements {
            directory.replace(&moment(n), &Clock::system()).unwrap();
            directory.retire(Instant::now());
        }
        done.store(true, Ordering::Relaxed);
        let rounds: Vec<usize> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        (true, rounds)
    });
    assert!(done && rounds.iter().all(|rounds| *rounds > 0), "{rounds:?}");
}

#[test]
fn readers_see_whole_moments_while_files_change() {
    readers_see_whole_moments(shm().path(), 2000);
}

/// What inotify tells of the root while the files become `files`.
fn events(
    dir: &TempDir,
    directory: &mut Directory,
    files: &[(&str, &str)],
) -> Vec<(inotify::ReadFlags, String)> {
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
    inotify::add_watch(&watch, dir.path(), inotify::WatchFlags::ALL_EVENTS).unwrap();
    replace(directory, files);
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(&watch, &mut buffer);
    let mut seen = Vec::new();
    while let Ok(event) = reader.next() {
        let name = event.file_name().map(|name| name.to_str().unwrap().to_owned()).unwrap_or_default();
        seen.push((event.events(), name));
    }
    seen
}

fn place(seen: &[(inotify::ReadFlags, String)], what: inotify::ReadFlags, name: &str) -> usize {
    seen.iter()
        .position(|(events, seen)| events.contains(what) && seen == name)
        .unwrap_or_else(|| panic!("no {what:?} of {name}: {seen:?}"))
}

#[test]
fn watchers_see_data_moved_into_place_and_no_visible_name_change() {
    let dir = shm();
    let mut directory = open(dir.path());
    replace(&mut directory, &[("a", "1")]);
    let seen = events(&dir, &mut directory, &[("a", "2")]);
    let made = place(&seen, inotify::ReadFlags::CREATE, directory.generation().unwrap());
    let linked = place(&seen, inotify::ReadFlags::CREATE, DATA_NEXT);
    let moved = place(&seen, inotify::ReadFlags::MOVED_TO, DATA);
    assert!(made < linked && linked < moved, "{seen:?}");
    assert!(!seen.iter().any(|(_, name)| name == "a"), "{seen:?}");
}

#[test]
fn names_go_before_the_files_change_and_come_after() {
    let dir = shm();
    let mut directory = open(dir.path());
    replace(&mut directory, &[("stays", "1"), ("goes", "1")]);
    let seen = events(&dir, &mut directory, &[("stays", "2"), ("comes", "2")]);
    let goes = place(&seen, inotify::ReadFlags::DELETE, "goes");
    let moved = place(&seen, inotify::ReadFlags::MOVED_TO, DATA);
    let comes = place(&seen, inotify::ReadFlags::MOVED_TO, "comes");
    assert!(goes < moved && moved < comes, "{seen:?}");
    assert!(!seen.iter().any(|(_, name)| name == "stays"), "{seen:?}");
}

/// Runs the test `name` of this module again in a process of its own, after `setup` in a shell.
fn alone(name: &str, setup: &str, root: &Path) {
    // Its output is shown when it fails only: its own count of tests is not another count.
    let output = Command::new("/bin/sh")
        .args(["-ec", &format!("{setup}; exec \"$0\" --exact \"$1\" --test-threads=1")])
        .arg(std::env::current_exe().unwrap())
        .arg(format!("{}::{name}", module_path!().split_once("::").unwrap().1))
        .env("COUNTERSIGN_TEST_ROOT", root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn alone_in() -> Option<std::path::PathBuf> {
    std::env::var_os("COUNTERSIGN_TEST_ROOT").map(Into::into)
}

#[test]
fn a_umask_does_not_shut_directories() {
    let Some(root) = alone_in() else {
        let dir = shm();
        alone("a_umask_does_not_shut_directories", "umask 077", dir.path());
        let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode("..data"), mode("a"), mode("a/b"), mode("a/b/c")], [0o755, 0o755, 0o755, 0o444]);
        return;
    };
    replace(&mut open(&root), &[("a/b/c", "1")]);
}

#[test]
fn without_descriptors_the_files_stay() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Some(root) = alone_in() else {
        let dir = shm();
        alone("without_descriptors_the_files_stay", "true", dir.path());
        assert_eq!(visible(dir.path()), pairs(&[("a", "2")]));
        return;
    };
    let mut directory = open(&root);
    replace(&mut directory, &[("a", "1"), ("b/c", "1")]);
    let clean = listing(&root);
    let limit = getrlimit(Resource::Nofile);
    let next = u64::try_from(rustix::fd::AsRawFd::as_raw_fd(&descriptor(&root))).unwrap();
    for free in 0..2 {
        setrlimit(Resource::Nofile, Rlimit { current: Some(next + free), ..limit }).unwrap();
        let error =
            directory.replace(&set(&[("a", "2"), ("b/c", "2"), ("d", "2")]), &Clock::system()).unwrap_err();
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(matches!(error, Error::Directory { kind: Errno::MFILE, .. }), "{error}");
        assert_eq!(error.code(), tonic::Code::ResourceExhausted);
        assert_eq!(listing(&root), clean);
    }
    replace(&mut directory, &[("a", "2")]);
    assert_eq!(visible(&root), pairs(&[("a", "2")]));
}

/// Tests that need to mount.
mod mounts {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    };
    use rustix::thread::{Gid, Uid};

    use super::*;

    /// A tmpfs that is attached nowhere, as the driver makes it; its path for looking at it.
    fn detached(options: &[(&str, &str)]) -> (OwnedFd, std::path::PathBuf) {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        for (key, value) in options {
            fsconfig_set_string(&context, *key, *value).unwrap();
        }
        fsconfig_create(&context).unwrap();
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).unwrap();
        let path = format!("/proc/self/fd/{}/.", rustix::fd::AsRawFd::as_raw_fd(&mount)).into();
        (mount, path)
    }

    #[test]
    fn readers_see_whole_moments_on_a_tmpfs() {
        let (_mount, path) = detached(&[("size", "256m")]);
        readers_see_whole_moments(&path, 500);
    }

    #[test]
    fn a_full_volume_keeps_its_files() {
        // Sixteen pages: three generations of five files.
        let (mount, path) = detached(&[("size", "65536")]);
        let mut directory = Directory::open(&mount, ROOMY, Instant::now()).unwrap();
        let small = |text: &str| set(&["a", "b", "c", "d/e", "f"].map(|name| (name, text)));
        for n in 0..20 {
            directory.replace(&small(&n.to_string()), &Clock::system()).unwrap();
            let text = n.to_string();
            assert_eq!(visible(&path), pairs(&["a", "b", "c", "d/e", "f"].map(|name| (name, text.as_str()))));
        }
        directory.retire(Instant::now() + GRACE);
        let before = listing(&path);
        let page = "x".repeat(4096);
        let names: Vec<String> = (0..12).map(|n| format!("large{n}")).collect();
        let large: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), page.as_str())).collect();
        for _ in 0..3 {
            let error = directory.replace(&set(&large), &Clock::system()).unwrap_err();
            assert_eq!(error, Error::Directory { operation: "writing a file", kind: Errno::NOSPC });
            assert_eq!(error.code(), tonic::Code::ResourceExhausted);
            assert_eq!(listing(&path), before, "nothing is left of the try");
        }
        directory.replace(&small("after"), &Clock::system()).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("d/e")).unwrap(), "after");
    }

    #[test]
    fn every_inode_that_is_missing_is_found_out_in_time() {
        // With one inode more each time, another step is the one that fails.
        let mut failed = std::collections::BTreeSet::new();
        for inodes in 12..30 {
            let (mount, path) = detached(&[("size", "1m"), ("nr_inodes", &inodes.to_string())]);
            let mut directory = Directory::open(&mount, ROOMY, Instant::now()).unwrap();
            if directory.replace(&set(&[("a", "1"), ("b/c", "1")]), &Clock::system()).is_err() {
                continue;
            }
            let before = listing(&path);
            let next = [("a", "2"), ("d/e", "2"), ("f", "2"), ("g", "2")];
            match directory.replace(&set(&next), &Clock::system()) {
                Ok(_) => assert_eq!(visible(&path), pairs(&next)),
                Err(Error::Directory { operation, kind: Errno::NOSPC }) => {
                    assert_eq!(listing(&path), before, "{operation}");
                    failed.insert(operation);
                }
                Err(error) => panic!("{error}"),
            }
        }
        for operation in
            ["making a file", "making ..links_tmp", "making a visible link", "linking ..data_tmp"]
        {
            assert!(failed.contains(operation), "{operation} never failed: {failed:?}");
        }
    }

    /// Tests that need more than one uid besides: root's, for in a user namespace only one is mapped.
    mod uids {
        use super::*;

        #[test]
        fn an_owner_without_power_gives_files_to_the_pod_s_group() {
            let (mount, path) =
                detached(&[("size", "1m"), ("mode", "2755"), ("uid", "65532"), ("gid", "4711")]);
            // A thread's identity is its own in the kernel, and it loses every capability with it.
            std::thread::scope(|scope| {
                scope
                    .spawn(|| {
                        let (uid, gid) = (Uid::from_raw(65532), Gid::from_raw(65532));
                        rustix::thread::set_thread_groups(&[]).unwrap();
                        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
                        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
                        let mut directory = Directory::open(&mount, ROOMY, Instant::now()).unwrap();
                        let mut wanted = FileSet::default();
                        for name in ["a", "b/c/d"] {
                            let path = FilePath::parse(name).unwrap();
                            wanted.insert(path, Secret::from("1".to_owned()), default_mode(Some(4711)));
                        }
                        directory.replace(&wanted, &Clock::system()).unwrap();
                        replace(&mut directory, &[("a", "2"), ("b/c/d", "2")]);
                        directory.retire(Instant::now() + GRACE);
                        directory.replace(&wanted, &Clock::system()).unwrap();
                        let mut directory = Directory::open(&mount, ROOMY, Instant::now()).unwrap();
                        assert_eq!(directory.replace(&wanted, &Clock::system()), Ok(Change::Unchanged));
                    })
                    .join()
                    .unwrap();
            });
            for (name, mode) in
                [("..data", 0o2755), ("b", 0o2755), ("b/c", 0o2755), ("a", 0o440), ("b/c/d", 0o440)]
            {
                let there = path.join(name).metadata().unwrap();
                assert_eq!((there.uid(), there.gid()), (65532, 4711), "{name}");
                assert_eq!(there.permissions().mode() & 0o7777, mode, "{name}");
            }
        }
    }
}

#[test]
fn what_differs_is_what_comes_goes_or_has_other_bytes_or_another_mode() {
    let dir = shm();
    let mut directory = open(dir.path());
    assert!(directory.differing(&set(&[("a", "1")])).is_empty(), "nothing was there before");
    replace(
        &mut directory,
        &[("same", "1"), ("bytes", "1"), ("goes/x", "1"), ("longer", "1"), ("mode", "1")],
    );
    let mut next = set(&[("same", "1"), ("bytes", "2"), ("comes/x", "1"), ("longer", "12")]);
    next.insert(FilePath::parse("mode").unwrap(), Secret::from("1".to_owned()), 0o400);
    let differing: Vec<_> = directory.differing(&next).into_iter().collect();
    assert_eq!(differing, ["bytes", "comes/x", "goes/x", "longer", "mode"]);
}
