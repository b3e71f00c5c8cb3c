//! The store over a directory that changes.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tempfile::TempDir;
use tonic::Code;

use super::*;
use crate::store::allow::RuleText;

struct Rig {
    directory: TempDir,
    key: TempDir,
}

fn clock() -> Clock {
    // Later than any file of these tests, so that their stamps count as settled.
    Clock::pinned(SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40))
}

impl Rig {
    fn new() -> Self {
        let rig = Self { directory: tempfile::tempdir().unwrap(), key: tempfile::tempdir().unwrap() };
        rig.set_key(&["first"]);
        std::fs::create_dir(rig.path("pay")).unwrap();
        rig.put("pay/db.yaml", "encrypted-suffix.yaml");
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn key_path(&self) -> PathBuf {
        self.key.path().join("key.txt")
    }

    fn set_key(&self, names: &[&str]) {
        let text: String = names
            .iter()
            .map(|name| std::fs::read_to_string(kit("keys").join(format!("{name}.txt"))).unwrap())
            .collect();
        self.set_key_text(&text);
    }

    fn set_key_text(&self, text: &str) {
        let new = self.key.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, PermissionsExt::from_mode(0o400)).unwrap();
        std::fs::rename(new, self.key_path()).unwrap();
    }

    /// Replaces a file as one should: by rename.
    fn put(&self, name: &str, fixture_name: &str) {
        self.put_text(name, &fixture(fixture_name));
    }

    fn put_text(&self, name: &str, text: &str) {
        let new = self.path(".new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path(name)).unwrap();
    }

    fn config(&self) -> SopsConfig {
        let rule = |id: &str, paths: &[&str]| {
            RuleText { id: id.into(), paths: paths.iter().map(|&p| p.into()).collect() }.try_into().unwrap()
        };
        SopsConfig {
            hint: None,
            directory: self.directory.path().into(),
            age_key_file: self.key_path(),
            allow: vec![
                rule("spiffe://td/ns/*/sa/*", &["{ns}/**", "shared"]),
                rule("spiffe://td/admin", &["**"]),
            ],
        }
    }

    fn open(&self) -> SopsStore {
        SopsStore::open("app", self.config(), clock()).unwrap()
    }
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn source(path: &str) -> Source {
    Source { store: "app".into(), path: path.into(), version: None, options: BTreeMap::new() }
}

async fn fetch(store: &SopsStore, path: &str) -> Result<Fetched, Error> {
    store.fetch(&id("spiffe://td/ns/pay/sa/api"), &source(path)).await
}

async fn refused(store: &SopsStore, path: &str) -> Error {
    fetch(store, path).await.unwrap_err()
}

#[tokio::test]
async fn a_file_is_found_with_and_without_its_ending() {
    let rig = Rig::new();
    let store = rig.open();
    let first = fetch(&store, "pay/db").await.unwrap();
    assert_eq!(text(at(&first.document, "password_enc")), "hunter2-suffix");
    assert_eq!(first.version.len(), 32);
    let second = fetch(&store, "pay/db.yaml").await.unwrap();
    assert!(Arc::ptr_eq(&first.document, &second.document), "one decryption serves both");
    rig.put("pay/api.json", "binary.json");
    assert!(fetch(&store, "pay/api").await.is_ok());
    rig.put("pay/api.yml", "encrypted-suffix.yaml");
    let error = refused(&store, "pay/api").await;
    assert!(error.to_string().contains("pay/api.yml and pay/api.json are both there"), "{error}");
    assert!(fetch(&store, "pay/api.json").await.is_ok());
}

#[tokio::test]
async fn identities_share_a_decryption_and_only_what_each_may_read() {
    let rig = Rig::new();
    let store = rig.open();
    let [other, admin] = ["spiffe://td/ns/pay/sa/other", "spiffe://td/admin"].map(id);
    let wanted = source("pay/db");
    let (one, other, admin) =
        tokio::join!(fetch(&store, "pay/db"), store.fetch(&other, &wanted), store.fetch(&admin, &wanted),);
    let (one, other, admin) = (one.unwrap(), other.unwrap(), admin.unwrap());
    assert!(Arc::ptr_eq(&one.document, &other.document) && Arc::ptr_eq(&one.document, &admin.document));
    for stranger in ["spiffe://td/ns/shop/sa/api", "spiffe://other/ns/pay/sa/api", "spiffe://td/x"] {
        let error = store.fetch(&id(stranger), &source("pay/db")).await.unwrap_err();
        assert_eq!(error.code(), Code::PermissionDenied);
        let text = error.to_string();
        assert!(
            text.contains(stranger) && text.contains("paths: [\"pay/db\"]") && text.contains("app:pay/db"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn denial_comes_before_the_file_and_tells_nothing_of_it() {
    let rig = Rig::new();
    let store = rig.open();
    std::fs::create_dir(rig.path("shop")).unwrap();
    rig.put_text("shop/broken.yaml", "hunter2: [");
    let messages: Vec<_> = [refused(&store, "shop/broken").await, refused(&store, "shop/nothing").await]
        .map(|error| {
            assert_eq!(error.code(), Code::PermissionDenied);
            error.to_string().replace("broken", "*").replace("nothing", "*")
        })
        .into();
    assert_eq!(messages[0], messages[1], "what is there looks like what is not");
}

#[tokio::test]
async fn no_rules_allow_nothing() {
    let rig = Rig::new();
    let store = SopsStore::open("app", SopsConfig { allow: Vec::new(), ..rig.config() }, clock()).unwrap();
    assert_eq!(refused(&store, "pay/db").await.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn what_is_missing_lists_what_may_be_seen() {
    let rig = Rig::new();
    let store = rig.open();
    for name in ["pay/queue.json", "pay/.hidden.yaml", "pay/readme.txt", "shared.yaml", "private.yaml"] {
        rig.put("pay/db.yaml", "encrypted-suffix.yaml");
        std::fs::write(rig.path(name), "x").unwrap();
    }
    let error = refused(&store, "pay/bd").await;
    assert_eq!(error.code(), Code::NotFound);
    let text = error.to_string();
    assert!(
        text.ends_with("no file pay/bd.yaml, pay/bd.yml, pay/bd.json; there is pay/db, pay/queue"),
        "{text}"
    );
    let text = refused(&store, "pay/deep/er").await.to_string();
    assert!(text.ends_with("beside it is nothing that spiffe://td/ns/pay/sa/api may read"), "{text}");
    std::fs::remove_file(rig.path("shared.yaml")).unwrap();
    let text = refused(&store, "shared").await.to_string();
    assert!(!text.contains("private") && !text.contains("there is"), "{text}");
}

#[tokio::test]
async fn other_forms_of_sops_are_refused_by_name() {
    let rig = Rig::new();
    let store = rig.open();
    for form in ["app.env", "app.ini"] {
        std::fs::write(rig.path(&format!("pay/{form}")), fixture(form)).unwrap();
        let error = refused(&store, &format!("pay/{form}")).await;
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("dotenv, ini and binary"), "{error}");
    }
}

#[tokio::test]
async fn a_changed_file_is_read_again_and_an_unchanged_one_is_not() {
    let rig = Rig::new();
    let store = rig.open();
    let first = fetch(&store, "pay/db").await.unwrap();
    let same = fetch(&store, "pay/db").await.unwrap();
    assert!(Arc::ptr_eq(&first.document, &same.document) && first.version == same.version);

    rig.put("pay/db.yaml", "two-recipients.yaml");
    let second = fetch(&store, "pay/db").await.unwrap();
    assert_ne!(first.version, second.version);

    // Written in place.
    std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(rig.path("pay/db.yaml"))
        .unwrap()
        .write_all(fixture("encrypted-suffix.yaml").as_bytes())
        .unwrap();
    let third = fetch(&store, "pay/db").await.unwrap();
    assert_eq!((&third.version, &*third.document), (&first.version, &*first.document));

    // Another inode, the same content.
    rig.put("pay/db.yaml", "encrypted-suffix.yaml");
    let fourth = fetch(&store, "pay/db").await.unwrap();
    assert!(Arc::ptr_eq(&third.document, &fourth.document), "equal versions are equal documents");
}

/// A change within one tick of the kernel's clock may leave every time as it was. Until a stamp is older than that, the
/// content is compared.
#[tokio::test]
async fn a_fresh_stamp_is_not_trusted() {
    let rig = Rig::new();
    let store = SopsStore::open("app", rig.config(), Clock::pinned(SystemTime::UNIX_EPOCH)).unwrap();
    let first = fetch(&store, "pay/db").await.unwrap();
    let path = rig.path("pay/db.yaml");
    let times = std::fs::metadata(&path).unwrap();
    let other = fixture("encrypted-suffix.yaml").replace("name: visible", "name: Visible");
    std::fs::write(&path, other).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_times(std::fs::FileTimes::new().set_modified(times.modified().unwrap())).unwrap();
    assert!(matches!(refused(&store, "pay/db").await, Error::Unusable { .. }));
    drop(first);
}

#[tokio::test]
async fn a_document_lives_as_long_as_somebody_holds_it() {
    let rig = Rig::new();
    let store = rig.open();
    let document = Arc::downgrade(&fetch(&store, "pay/db").await.unwrap().document);
    assert_eq!(document.strong_count(), 0, "the store keeps no plain text of its own");
    assert!(fetch(&store, "pay/db").await.is_ok());
    rig.put("pay/other.yaml", "encrypted-suffix.yaml");
    let _held = fetch(&store, "pay/other").await.unwrap();
    assert_eq!(store.0.documents.lock().unwrap().len(), 1, "nor a growing list of names");
}

#[tokio::test]
async fn a_file_that_breaks_and_heals() {
    let rig = Rig::new();
    let store = rig.open();
    let good = fetch(&store, "pay/db").await.unwrap();
    let file = fixture("encrypted-suffix.yaml");
    for broken in [&file[..file.len() / 2], "hunter2: [", "", "password: hunter2\n"] {
        rig.put_text("pay/db.yaml", broken);
        let error = refused(&store, "pay/db").await;
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().starts_with("store app: pay/db.yaml"), "{error}");
    }
    rig.put("pay/db.yaml", "encrypted-suffix.yaml");
    assert_eq!(fetch(&store, "pay/db").await.unwrap().version, good.version);
    std::fs::remove_file(rig.path("pay/db.yaml")).unwrap();
    assert_eq!(refused(&store, "pay/db").await.code(), Code::NotFound);
}

#[tokio::test]
async fn readers_never_see_a_mixture_while_files_are_replaced() {
    let rig = Rig::new();
    let store = rig.open();
    let first = fetch(&store, "pay/db").await.unwrap();
    rig.put("pay/db.yaml", "two-recipients.yaml");
    let second = fetch(&store, "pay/db").await.unwrap();
    let versions = [first.version, second.version];
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..200 {
                rig.put("pay/db.yaml", ["encrypted-suffix.yaml", "two-recipients.yaml"][round % 2]);
            }
        });
        let wanted = Wanted::parse(&source("pay/db")).unwrap();
        while !writer.is_finished() {
            let got = store.0.document(&id("spiffe://td/ns/pay/sa/api"), &wanted).unwrap();
            assert!(versions.contains(&got.version));
        }
    });
}

/// As kubelet mounts a `ConfigMap`: `db.yaml` → `..data/db.yaml`, `..data` → `..<time>`.
#[tokio::test]
async fn a_mounted_config_map() {
    let rig = Rig::new();
    let mount = |generation: &str, fixture_name: &str| {
        std::fs::create_dir(rig.path(generation)).unwrap();
        std::fs::write(rig.path(generation).join("shared.yaml"), fixture(fixture_name)).unwrap();
        symlink(generation, rig.path("..data_tmp")).unwrap();
        std::fs::rename(rig.path("..data_tmp"), rig.path("..data")).unwrap();
    };
    mount("..one", "encrypted-suffix.yaml");
    symlink("..data/shared.yaml", rig.path("shared.yaml")).unwrap();
    let store = rig.open();
    let one = fetch(&store, "shared").await.unwrap();
    mount("..two", "two-recipients.yaml");
    std::fs::remove_dir_all(rig.path("..one")).unwrap();
    let two = fetch(&store, "shared").await.unwrap();
    assert_ne!(one.version, two.version);
    let error = store.fetch(&id("spiffe://td/admin"), &source("..data/shared")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "no way around the rules: {error}");
}

/// As git-sync does it: the directory itself is a symlink that is swapped.
#[tokio::test]
async fn a_directory_that_is_swapped_as_a_whole() {
    let rig = Rig::new();
    let checkouts = tempfile::tempdir().unwrap();
    let checkout = |name: &str, fixture_name: &str| {
        std::fs::create_dir(checkouts.path().join(name)).unwrap();
        std::fs::write(checkouts.path().join(name).join("shared.yaml"), fixture(fixture_name)).unwrap();
        symlink(name, checkouts.path().join("new")).unwrap();
        std::fs::rename(checkouts.path().join("new"), checkouts.path().join("current")).unwrap();
    };
    checkout("one", "encrypted-suffix.yaml");
    let config = SopsConfig { directory: checkouts.path().join("current"), ..rig.config() };
    let store = SopsStore::open("app", config, clock()).unwrap();
    let one = fetch(&store, "shared").await.unwrap();
    checkout("two", "two-recipients.yaml");
    assert_ne!(one.version, fetch(&store, "shared").await.unwrap().version);
    std::fs::remove_file(checkouts.path().join("current")).unwrap();
    let error = refused(&store, "shared").await;
    assert_eq!(error.code(), Code::Unavailable, "{error}");
}

#[tokio::test]
async fn symlinks_out_of_the_directory() {
    let rig = Rig::new();
    let store = rig.open();
    symlink(kit("fixtures/encrypted-suffix.yaml"), rig.path("pay/out.yaml")).unwrap();
    symlink("../../../../../../../../etc/passwd", rig.path("pay/passwd.yaml")).unwrap();
    for name in ["pay/out", "pay/passwd"] {
        let error = refused(&store, name).await;
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.to_string().contains("leads out of the store's directory"), "{error}");
    }
}

#[tokio::test]
async fn files_that_are_none() {
    let rig = Rig::new();
    let store = rig.open();
    std::fs::create_dir(rig.path("pay/folder.yaml")).unwrap();
    assert!(refused(&store, "pay/folder").await.to_string().contains("is no regular file"));
    std::fs::File::create(rig.path("pay/large.yaml")).unwrap().set_len(file::MAX_FILE_BYTES + 1).unwrap();
    assert!(refused(&store, "pay/large").await.to_string().contains("is larger than 4194304 bytes"));
}

#[tokio::test]
async fn another_key_is_taken_up_and_a_lost_one_noticed() {
    let rig = Rig::new();
    let store = rig.open();
    rig.put("pay/db.yaml", "stranger.yaml");
    let error = refused(&store, "pay/db").await;
    assert!(error.to_string().contains("it is encrypted to age1"), "{error}");
    rig.set_key(&["first", "third"]);
    let held = fetch(&store, "pay/db").await.unwrap();
    rig.set_key(&["first"]);
    assert!(
        matches!(refused(&store, "pay/db").await, Error::Unusable { .. }),
        "held, but no longer ours to open"
    );
    drop(held);
    rig.set_key_text("nothing\n");
    assert!(refused(&store, "pay/db").await.to_string().contains("line 1"));
    std::fs::remove_file(rig.key_path()).unwrap();
    let error = refused(&store, "pay/db").await.to_string();
    assert!(error.contains("the age key file") && error.contains("does not exist"), "{error}");
}

#[test]
fn what_is_checked_at_the_start() {
    let rig = Rig::new();
    let open = |config| SopsStore::open("app", config, clock()).unwrap_err().to_string();
    let error = open(SopsConfig { directory: "/nonexistent/x".into(), ..rig.config() });
    assert!(error.contains("store app: the directory /nonexistent/x does not exist"), "{error}");
    let error = open(SopsConfig { directory: rig.key_path(), ..rig.config() });
    assert!(error.contains("is no directory"), "{error}");
    let error = open(SopsConfig { age_key_file: "/nonexistent/k".into(), ..rig.config() });
    assert!(error.contains("the age key file /nonexistent/k does not exist"), "{error}");
    for (mode, ok) in
        [(0o400, true), (0o600, true), (0o440, true), (0o640, true), (0o444, false), (0o602, false)]
    {
        std::fs::set_permissions(rig.key_path(), PermissionsExt::from_mode(mode)).unwrap();
        let opened = SopsStore::open("app", rig.config(), clock());
        assert_eq!(opened.is_ok(), ok, "{mode:o}: {opened:?}");
        if let Err(error) = opened {
            assert!(error.to_string().contains(&format!("has mode {mode:04o}")), "{error}");
        }
    }
}

#[tokio::test]
async fn versions_and_options_are_wrong_requests() {
    let rig = Rig::new();
    let store = rig.open();
    let identity = id("spiffe://td/ns/pay/sa/api");
    let error =
        store.fetch(&identity, &Source { version: Some("2".into()), ..source("pay/db") }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let options = BTreeMap::from([("namespace".to_owned(), "x".to_owned())]);
    let error = store.fetch(&identity, &Source { options, ..source("pay/db") }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
}

/// Whatever goes wrong, neither errors nor logs nor `Debug` show a value, a key or a hash of values.
#[test]
fn nothing_secret_is_ever_said() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let mut said = String::new();
    // While there is one dispatcher only, tracing asks that of the thread that comes to a callsite first, which may be
    // another test's, and stays with the answer.
    let _second = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new());
    tracing::subscriber::with_default(subscriber, || {
        tracing::callsite::rebuild_interest_cache();
        let rig = Rig::new();
        let store = rig.open();
        let wanted = Wanted::parse(&source("pay/db")).unwrap();
        let mut ask = || {
            let answer = store.0.document(&id("spiffe://td/ns/pay/sa/api"), &wanted);
            said.extend([format!("{answer:?} {store:?}\n")]);
            if let Err(error) = answer {
                said.extend([format!("{error} {}\n", tonic::Status::from(error.clone()))]);
            }
        };
        let whole = std::fs::read_to_string(kit("plain/everything.yaml")).unwrap();
        let sealed = fixture("everything.yaml");
        ask();
        for text in [
            // A plain file put there by mistake, and damaged ones.
            whole.clone(),
            format!("{whole}\n  bad"),
            format!("{whole}text: hunter2\n"),
            format!("{whole}x: !hunter2 hunter2\n"),
            format!("{whole}sops: hunter2\n"),
            format!("{whole}sops:\n  mac: hunter2\n  lastmodified: hunter2\n"),
            whole.replace("text: hunter2-text", "text: [hunter2"),
            whole.replace("text: hunter2-text", "text: *hunter2"),
            sealed.replace("host_unencrypted: db.example", "host_unencrypted: hunter2"),
            sealed.replace("host_unencrypted: db.example", "host: hunter2"),
            sealed.replace("type:str", "type:hunter2"),
            sealed.replace("recipient: age1", "recipient: hunter2"),
            sealed.replace("-----BEGIN", "hunter2"),
            sealed.replace("type:str", "type:int"),
            fixture("stranger.yaml"),
            fixture("comment-regex.yaml"),
        ] {
            rig.put_text("pay/db.yaml", &text);
            ask();
        }
        rig.put("pay/db.yaml", "everything.yaml");
        ask();
        let key = std::fs::read_to_string(kit("keys/first.txt")).unwrap();
        for text in [
            key.replace("AGE-SECRET-KEY-1", "AGE-SECRET-KEY-2"),
            key.to_lowercase(),
            format!("{key}hunter2\n"),
        ] {
            rig.set_key_text(&text);
            ask();
        }
    });
    said.push_str(&String::from_utf8(log.0.lock().unwrap().clone()).unwrap());
    assert!(said.contains("document decrypted") && said.contains("MAC does not match"), "{said}");
    let key = std::fs::read_to_string(kit("keys/first.txt")).unwrap();
    let secret = key.lines().last().unwrap().trim_start_matches("AGE-SECRET-KEY-1");
    assert!(secret.len() > 50);
    for canary in ["hunter2", secret, &secret.to_lowercase(), "ENC[AES256_GCM,data:f"] {
        assert!(!said.contains(canary), "{canary} in {said}");
    }
    for line in said.lines() {
        let longest = line.split(|c: char| !c.is_ascii_hexdigit()).map(str::len).max().unwrap_or_default();
        assert!(longest < 64, "a hash of values in {line}");
    }
}

#[test]
fn the_configuration_of_the_interface_opens() {
    #[derive(Deserialize)]
    struct Stores {
        stores: BTreeMap<String, crate::store::config::StoreConfig>,
    }
    let rig = Rig::new();
    let text = format!(
        "stores: {{ app: {{ type: sops, directory: {}, ageKeyFile: {}, allow: [ {{ id: \"spiffe://td/ns/*/sa/*\", paths: [\"pay/*\"] }} ] }} }}",
        rig.directory.path().display(),
        rig.key_path().display()
    );
    let parsed: Stores = serde_saphyr::from_str(&text).unwrap();
    for (name, config) in parsed.stores {
        crate::store::Store::open(&name, config, clock(), &crate::store::vault::Families::default()).unwrap();
    }
}
