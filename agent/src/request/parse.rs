//! From a pod's attributes to a [`Request`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::key::Key;
use super::value::{
    audience, containers, flag, hint, mount_path, on_revoked, svid_file, trust_domain, x509_names,
};
use super::{
    Content, DEFAULT_REFRESH, FilePath, FileSpec, OnChange, OnRevoked, Problem, Reference, Request,
    StoreNames, Template, duration,
};
use crate::Error;

/// The most files one volume may hold: two generations of them and their links fit the volume's inodes.
const MAX_FILES: usize = 512;
/// The most bytes of keys and values together: what Kubernetes allows a pod's annotations.
const MAX_ATTRIBUTE_BYTES: usize = 256 * 1024;
/// The longest key, in bytes: the longest path, and a domain before it.
const MAX_KEY_BYTES: usize = 4095 + 32;
/// What the draft SPIFFE Filesystem Delivery calls key and chain, and how it calls a trust domain's bundle after the domain's name.
const CREDENTIALS: &str = "credential-bundle.private-key.x509.pem";
pub(super) const BUNDLE_SUFFIX: &str = ".spiffe-trust-bundle.x509.pem";
/// The key of a problem that is nobody's own.
const WHOLE: &str = "volume attributes";

impl Request {
    /// Reads the attributes of one volume, whose references may name `stores`.
    ///
    /// # Errors
    /// [`Error::Request`] or [`Error::Template`] with the key at fault, of several the first in the keys' order.
    pub fn parse<K: Into<String>, V: Into<String>>(
        attributes: impl IntoIterator<Item = (K, V)>,
        stores: &StoreNames,
    ) -> Result<Self, Error> {
        let mut sorted = BTreeMap::new();
        let mut bytes = 0usize;
        for (key, value) in attributes {
            let (key, value) = (key.into(), value.into());
            bytes = bytes.saturating_add(key.len()).saturating_add(value.len());
            if sorted.contains_key(&key) {
                return Err(Error::request(shown(&key), "given twice; give it once"));
            }
            sorted.insert(key, value);
        }
        if bytes > MAX_ATTRIBUTE_BYTES {
            let problem = format!(
                "keys and values have {bytes} bytes, at most {MAX_ATTRIBUTE_BYTES} are possible; ask for less, or in two volumes"
            );
            return Err(Error::request(WHOLE, problem));
        }
        let mut files = Files::default();
        let mut choices = Choices::default();
        for (key, value) in sorted {
            read(&mut files, &mut choices, &key, &value, stores)?;
        }
        let Choices { refresh, on_revoked, stale_ok, on_change, hint } = choices;
        Ok(Self { files: files.finish()?, refresh, on_revoked, stale_ok, on_change, hint })
    }
}

/// As much of a key as a message can bear.
fn shown(key: &str) -> String {
    if is_printable(key) {
        return key.to_owned();
    }
    key.chars().filter(|c| !c.is_control()).take(60).chain("…".chars()).collect()
}

/// Only an unknown key, or one with a wrong file name, can be longer than a message should be.
fn is_printable(key: &str) -> bool {
    key.len() <= MAX_KEY_BYTES && !key.chars().any(char::is_control)
}

/// What holds for the whole volume.
struct Choices {
    refresh: Duration,
    on_revoked: OnRevoked,
    stale_ok: bool,
    on_change: Option<OnChange>,
    hint: Option<Arc<str>>,
}

impl Default for Choices {
    fn default() -> Self {
        Self {
            refresh: DEFAULT_REFRESH,
            on_revoked: OnRevoked::default(),
            stale_ok: false,
            on_change: None,
            hint: None,
        }
    }
}

/// Reads one attribute: a file, or something that holds for all of them.
fn read(
    files: &mut Files,
    choices: &mut Choices,
    key: &str,
    value: &str,
    stores: &StoreNames,
) -> Result<(), Error> {
    if !is_printable(key) {
        let problem = format!(
            "the key has {} bytes or a control character; at most {MAX_KEY_BYTES} printable ones are possible",
            key.len()
        );
        return Err(Error::request(shown(key), problem));
    }
    let at = |problem: Problem| Error::request(key, problem.to_string());
    match Key::parse(key).map_err(at)? {
        Key::Secret(path) => {
            let reference = Reference::parse(value, stores).map_err(at)?;
            files.add(key, path, reference.mode, Content::Secret(reference))?;
        }
        Key::Template(path) => {
            let template = Template::parse(value, stores)
                .map_err(|problem| Error::Template { key: key.to_owned(), problem: problem.to_string() })?;
            files.add(key, path, None, Content::Template(template))?;
        }
        Key::Jwt(path) => {
            let audience = audience(value).map_err(at)?;
            files.add(key, path, None, Content::Jwt { audience })?;
        }
        Key::Bundle(path) => {
            let (trust_domain, optional) = trust_domain(value).map_err(at)?;
            files.add(key, path, None, Content::Bundle { trust_domain, optional })?;
        }
        Key::Pem => {
            let (path, mode) = svid_file(value).map_err(at)?;
            files.add(key, path, mode, Content::X509Pair)?;
        }
        Key::Der => {
            let [chain, private_key, bundle] = x509_names(value).map_err(at)?;
            files.add(key, chain.0, chain.1, Content::X509ChainDer)?;
            files.add(key, private_key.0, private_key.1, Content::X509KeyDer)?;
            files.add(key, bundle.0, bundle.1, Content::X509BundleDer)?;
        }
        Key::Pkcs12 => {
            let (path, mode) = svid_file(value).map_err(at)?;
            files.add(key, path, mode, Content::X509Pkcs12)?;
        }
        Key::Pkcs12Truststore => {
            let (path, mode) = svid_file(value).map_err(at)?;
            files.add(key, path, mode, Content::X509BundlePkcs12)?;
        }
        Key::JksTruststore => {
            let (path, mode) = svid_file(value).map_err(at)?;
            files.add(key, path, mode, Content::X509BundleJks)?;
        }
        Key::Folder => {
            let folder = value.trim_ascii();
            let inside = |name: &str| FilePath::parse(&format!("{folder}/{name}")).map_err(at);
            files.add(key, inside(CREDENTIALS)?, None, Content::X509Pair)?;
            files.add(key, inside(BUNDLE_SUFFIX)?, None, Content::BundleFiles)?;
        }
        Key::X509 => {
            let [chain, private_key, bundle] = x509_names(value).map_err(at)?;
            files.add(key, chain.0, chain.1, Content::X509Chain)?;
            files.add(key, private_key.0, private_key.1, Content::X509Key)?;
            files.add(key, bundle.0, bundle.1, Content::X509Bundle)?;
        }
        Key::Refresh => choices.refresh = duration::parse(value.trim_ascii()).map_err(at)?,
        Key::OnRevoked => choices.on_revoked = on_revoked(value.trim_ascii()).map_err(at)?,
        Key::StaleOk => choices.stale_ok = flag(value.trim_ascii()).map_err(at)?,
        Key::OnChange => choices.on_change = Some(OnChange::parse(value.trim_ascii()).map_err(at)?),
        Key::Hint => choices.hint = Some(hint(value.trim_ascii()).map_err(at)?),
        Key::Inject => flag(value).map(drop).map_err(at)?,
        Key::Path => mount_path(value).map_err(at)?,
        Key::Containers => containers(value).map_err(at)?,
    }
    Ok(())
}

/// The files so far, by path, so that a second one at the same place is seen.
#[derive(Default)]
struct Files(BTreeMap<FilePath, FileSpec>);

impl Files {
    fn add(&mut self, key: &str, path: FilePath, mode: Option<u32>, content: Content) -> Result<(), Error> {
        if let Some(other) = self.0.get(&path) {
            let problem = if other.key == key {
                format!("names {path} twice; give each file its own name")
            } else {
                format!("file {path} is asked for by {} too; rename one", other.key)
            };
            return Err(Error::request(key, problem));
        }
        self.0.insert(path.clone(), FileSpec { key: key.to_owned(), path, mode, content });
        Ok(())
    }

    /// The files in order, none of them a directory of another.
    fn finish(self) -> Result<Vec<FileSpec>, Error> {
        if self.0.is_empty() {
            let problem = "no file is asked for; ask for one, such as secret.countersign.dev/password: <store>:<path>#<field>";
            return Err(Error::request(WHOLE, problem));
        }
        if self.0.len() > MAX_FILES {
            let problem = format!(
                "asks for {} files, at most {MAX_FILES} are possible; split them over two volumes",
                self.0.len()
            );
            return Err(Error::request(WHOLE, problem));
        }
        for (path, file) in &self.0 {
            for directory in path.ancestors() {
                if let Some(other) = self.0.get(&FilePath(directory.to_owned())) {
                    let problem = format!(
                        "{directory} would be a directory, but {} asks for a file there; rename one",
                        other.key
                    );
                    return Err(Error::request(&file.key, problem));
                }
            }
        }
        for (path, file) in self.0.iter().filter(|(_, file)| matches!(file.content, Content::BundleFiles)) {
            let taken = |(other, _): &(&FilePath, &FileSpec)| {
                *other != path
                    && other.ancestors().next() == path.ancestors().next()
                    && other.as_str().ends_with(BUNDLE_SUFFIX)
            };
            if let Some((taken, other)) = self.0.iter().find(taken) {
                let problem = format!(
                    "{taken} might be a trust domain's, and {} asks for it too; rename it",
                    other.key
                );
                return Err(Error::request(&file.key, problem));
            }
        }
        Ok(self.0.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(attributes: &[(&str, &str)]) -> Result<Request, Error> {
        Request::parse(attributes.iter().copied(), &["vault", "sops"].into_iter().collect())
    }

    fn message(attributes: &[(&str, &str)]) -> String {
        parse(attributes).unwrap_err().to_string()
    }

    #[test]
    fn a_folder_has_the_names_of_the_draft_and_room_for_every_trust_domain() {
        let parse = |attributes: &[(&str, &str)]| {
            Request::parse(attributes.iter().copied(), &StoreNames::from_iter(["vault"]))
        };
        let folder = ("svid.countersign.dev/folder", "tls");
        let files = parse(&[folder, ("secret.countersign.dev/tls/other", "vault:a")]).unwrap().files;
        let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            ["tls/.spiffe-trust-bundle.x509.pem", "tls/credential-bundle.private-key.x509.pem", "tls/other"]
        );
        let partner = "bundle.countersign.dev/tls/partner.example.spiffe-trust-bundle.x509.pem";
        let error = parse(&[folder, (partner, "partner.example")]).unwrap_err().to_string();
        assert!(
            error.contains("might be a trust domain's, and bundle.countersign.dev/tls/partner"),
            "{error}"
        );
        for value in ["", "/tls", "../tls", "a//b"] {
            assert!(parse(&[("svid.countersign.dev/folder", value)]).is_err(), "{value}");
        }
    }

    #[test]
    fn what_a_pod_may_ask_for() {
        let request = parse(&[
            ("countersign.dev/inject", "true"),
            ("countersign.dev/path", "/var/run/secrets/app"),
            ("countersign.dev/containers", "app, worker"),
            ("secret.countersign.dev/db-password", "vault:kv/data/payments#password"),
            ("secret.countersign.dev/api.json", "vault:kv/data/payments"),
            ("secret.countersign.dev/extra", "vault:kv/data/extra#token?optional&mode=0400"),
            (
                "template.countersign.dev/app.env",
                "URL=postgres://{{ secret(\"vault:database/creds/app\").username }}@db/app\n",
            ),
            ("svid.countersign.dev/x509", "tls.crt, tls.key,ca.crt"),
            ("jwt.countersign.dev/ai-token", "https://api.example.com\n"),
            ("countersign.dev/refresh", "30s"),
            ("countersign.dev/on-revoked", "wipe"),
            ("countersign.dev/stale-ok", "true"),
        ])
        .unwrap();
        assert_eq!(request.refresh, Duration::from_secs(30));
        assert_eq!((request.on_revoked, request.stale_ok), (OnRevoked::Wipe, true));
        let paths: Vec<&str> = request.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            ["ai-token", "api.json", "app.env", "ca.crt", "db-password", "extra", "tls.crt", "tls.key"]
        );
        let modes: Vec<_> = request.files.iter().filter_map(|file| file.mode).collect();
        assert_eq!(modes, [0o400]);
        assert!(matches!(request.files[3].content, Content::X509Bundle));
        assert!(matches!(request.files[6].content, Content::X509Chain));
        assert!(matches!(request.files[7].content, Content::X509Key));
        assert_eq!(request.files[7].key, "svid.countersign.dev/x509");
        let references: Vec<String> = request.references().map(ToString::to_string).collect();
        assert_eq!(
            references,
            [
                "vault:kv/data/payments",
                "vault:database/creds/app",
                "vault:kv/data/payments#password",
                "vault:kv/data/extra#token"
            ]
        );
        assert_eq!(request.audiences().collect::<Vec<_>>(), ["https://api.example.com"]);
    }

    #[test]
    fn an_svids_file_may_have_a_mode() {
        let modes = |key: &str, value: &str| -> Result<Vec<Option<u32>>, Error> {
            Ok(parse(&[(key, value)])?.files.iter().map(|file| file.mode).collect())
        };
        let x509 = "svid.countersign.dev/x509";
        assert_eq!(modes(x509, "a, b?mode=0400 ,c").unwrap(), [None, Some(0o400), None]);
        for key in ["pem", "p12", "p12-truststore", "jks-truststore"] {
            let key = format!("svid.countersign.dev/{key}");
            assert_eq!(modes(&key, "a?mode=440").unwrap(), [Some(0o440)], "{key}");
        }
        for (value, problem) in [
            ("a,b?optional,c", "the only option of an SVID's file is its mode, such as tls.key?mode=0400"),
            ("a,b?mode=0600,c", "write or execute bits"),
            ("a,?mode=0400,c", ""),
        ] {
            let error = modes(x509, value).unwrap_err().to_string();
            assert!(error.contains(problem) && error.contains(x509), "{error}");
        }
    }

    #[test]
    fn identities_in_many_forms() {
        let paths = |attributes: &[(&str, &str)]| -> Vec<String> {
            parse(attributes).unwrap().files.iter().map(|file| file.path.to_string()).collect()
        };
        let helper = ("svid.countersign.dev/x509", "spiffe-helper");
        assert_eq!(paths(&[helper]), ["svid.pem", "svid_bundle.pem", "svid_key.pem"]);
        let others = [
            ("svid.countersign.dev/pem", "pair.pem"),
            ("svid.countersign.dev/der", "a,b,c"),
            ("svid.countersign.dev/p12", "tls.p12"),
            ("svid.countersign.dev/p12-truststore", "ca.p12"),
            ("svid.countersign.dev/jks-truststore", "ca.jks"),
            ("bundle.countersign.dev/partner.pem", "partner.example"),
        ];
        assert_eq!(paths(&others), ["a", "b", "c", "ca.jks", "ca.p12", "pair.pem", "partner.pem", "tls.p12"]);
        for (value, problem) in [
            ("Partner", "not a trust domain's name; write one of a-z 0-9 . _ -, such as partner.example"),
            ("a/b", "not a trust domain's name; write one of a-z 0-9 . _ -, such as partner.example"),
            ("a?mode=0400", "the only option of a trust domain is \"optional\""),
        ] {
            let error = message(&[("bundle.countersign.dev/p", value)]);
            assert_eq!(error, format!("bundle.countersign.dev/p: {problem}"));
        }
    }

    #[test]
    fn what_a_pod_does_not_say() {
        let request = parse(&[("secret.countersign.dev/a", "vault:a")]).unwrap();
        assert_eq!(
            (request.refresh, request.on_revoked, request.stale_ok),
            (DEFAULT_REFRESH, OnRevoked::Keep, false)
        );
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table of cases is as long as there are cases")]
    fn what_a_pod_may_not_ask_for() {
        let a = ("secret.countersign.dev/a", "vault:a");
        let none = "volume attributes: no file is asked for; ask for one, such as \
                    secret.countersign.dev/password: <store>:<path>#<field>";
        let three = "but three are needed: chain, key and bundle, such as tls.crt,tls.key,ca.crt";
        for (attributes, problem) in [
            (&[][..], none),
            (&[("countersign.dev/inject", "true"), ("countersign.dev/refresh", "30s")], none),
            (&[a, a], "secret.countersign.dev/a: given twice; give it once"),
            (&[("a\nb", ""), ("a\nb", "")], "ab…: given twice; give it once"),
            (
                &[a, ("secrets.countersign.dev/b", "vault:b")],
                "secrets.countersign.dev/b: unknown key; did you mean secret.countersign.dev/b?",
            ),
            (
                &[("secret.countersign.dev/a", "")],
                "secret.countersign.dev/a: the reference is empty; write <store>:<path>#<field>",
            ),
            (
                &[("secret.countersign.dev/a", "valut:a")],
                "secret.countersign.dev/a: unknown store valut; did you mean vault? configured: sops, vault",
            ),
            (
                &[("secret.countersign.dev/../a", "vault:a")],
                "secret.countersign.dev/../a: the file name has a part . or ..; write where the file lies without them",
            ),
            (
                &[a, ("jwt.countersign.dev/a", "x")],
                "secret.countersign.dev/a: file a is asked for by jwt.countersign.dev/a too; rename one",
            ),
            (
                &[a, ("svid.countersign.dev/x509", "a,b,c")],
                "svid.countersign.dev/x509: file a is asked for by secret.countersign.dev/a too; rename one",
            ),
            (
                &[("svid.countersign.dev/x509", "b,b,c")],
                "svid.countersign.dev/x509: names b twice; give each file its own name",
            ),
            (
                &[a, ("template.countersign.dev/a/b/c", "x")],
                "template.countersign.dev/a/b/c: a would be a directory, but secret.countersign.dev/a asks for a file there; rename one",
            ),
            (
                &[("svid.countersign.dev/x509", "tls.crt,tls.key")],
                &format!("svid.countersign.dev/x509: names 2 files, {three}"),
            ),
            (
                &[("svid.countersign.dev/x509", " ")],
                &format!("svid.countersign.dev/x509: names 0 files, {three}"),
            ),
            (
                &[("svid.countersign.dev/x509", "a,b,c,d")],
                &format!("svid.countersign.dev/x509: names 4 files, {three}"),
            ),
            (
                &[("svid.countersign.dev/x509", "a,,c")],
                "svid.countersign.dev/x509: the file name is empty; put it after the slash",
            ),
            (
                &[("svid.countersign.dev/x509", "a,/b,c")],
                "svid.countersign.dev/x509: the file name is absolute; write it relative to the volume",
            ),
            (
                &[("jwt.countersign.dev/t", " ")],
                "jwt.countersign.dev/t: the audience is empty; write for whom the token is, such as https://api.example.com",
            ),
            (
                &[("jwt.countersign.dev/t", "a b")],
                "jwt.countersign.dev/t: the audience holds white space; one token is for one audience, so ask for another file",
            ),
            (
                &[("countersign.dev/refresh", "never"), a],
                "countersign.dev/refresh: not a duration; write a number and a unit, such as 30s, 5m or 1h",
            ),
            (
                &[("countersign.dev/refresh", "100ms"), a],
                "countersign.dev/refresh: out of range; refresh may be from 1s to 24h",
            ),
            (
                &[("countersign.dev/inject", "yes"), a],
                "countersign.dev/inject: neither \"true\" nor \"false\"; write \"true\", or leave it out",
            ),
            (
                &[("countersign.dev/on-revoked", "delete"), a],
                "countersign.dev/on-revoked: neither \"keep\" nor \"wipe\"; write \"wipe\" to have the files of a withdrawn secret removed",
            ),
            (
                &[("countersign.dev/stale-ok", "1"), a],
                "countersign.dev/stale-ok: neither \"true\" nor \"false\"; write \"true\", or leave it out",
            ),
            (
                &[("countersign.dev/path", "secrets"), a],
                "countersign.dev/path: not an absolute path; write one without . and .., such as /var/run/secrets/countersign",
            ),
            (
                &[("countersign.dev/containers", "app,-x"), a],
                "countersign.dev/containers: not a list of container names; write them with commas between, such as app,worker",
            ),
            (
                &[("template.countersign.dev/t", "a\n{{ user }}")],
                "template.countersign.dev/t: line 2: unknown variable user; write secret(\"<store>:<path>\") for a secret",
            ),
        ] {
            assert_eq!(message(attributes), problem);
        }
        let long = "a".repeat(1025);
        assert_eq!(
            message(&[("jwt.countersign.dev/t", &long)]),
            "jwt.countersign.dev/t: the audience has 1025 bytes; at most 1024 are possible"
        );
    }

    #[test]
    fn neighbours_in_order_are_no_collision() {
        // "a!" sorts between "a" and "a/b"; a look at the next path alone would miss it or see what is not there.
        assert!(
            parse(&[("secret.countersign.dev/a!", "vault:a"), ("secret.countersign.dev/a/b", "vault:a")])
                .is_ok()
        );
        let with_a = [
            ("secret.countersign.dev/a", "vault:a"),
            ("secret.countersign.dev/a!", "vault:a"),
            ("secret.countersign.dev/a/b", "vault:a"),
        ];
        assert!(message(&with_a).contains("would be a directory"));
    }

    #[test]
    fn files_and_bytes_are_counted() {
        let many = |count: usize| {
            let attributes =
                (0..count).map(|n| (format!("secret.countersign.dev/f{n}"), "vault:a".to_owned()));
            Request::parse(attributes, &["vault"].into_iter().collect())
        };
        assert_eq!(many(512).unwrap().files.len(), 512);
        assert_eq!(
            many(1000).unwrap_err().to_string(),
            "volume attributes: asks for 1000 files, at most 512 are possible; split them over two volumes"
        );
        let text = "x".repeat(MAX_ATTRIBUTE_BYTES);
        assert_eq!(
            message(&[("template.countersign.dev/t", &text)]),
            "volume attributes: keys and values have 262170 bytes, at most 262144 are possible; ask for less, or in two volumes"
        );
    }

    #[test]
    fn keys_are_shown_in_bounds() {
        let long = "k".repeat(5000);
        let shown = format!("{}…", "k".repeat(60));
        assert_eq!(
            message(&[(&long, "")]),
            format!(
                "{shown}: the key has 5000 bytes or a control character; at most 4127 printable ones are possible"
            )
        );
        assert_eq!(
            message(&[("a\nb", "")]),
            "ab…: the key has 3 bytes or a control character; at most 4127 printable ones are possible"
        );
    }

    #[test]
    fn a_pasted_secret_is_not_repeated() {
        for value in
            ["correct horse battery staple", "s3cr3t/with+base64==", "p4ss w0rd!:x", "AKIA IOSFODNN7:x"]
        {
            for key in ["secret.countersign.dev/a", "svid.countersign.dev/x509", "countersign.dev/refresh"] {
                let text = message(&[(key, value)]);
                assert!(!value.split([':', ' ']).any(|part| part.len() > 2 && text.contains(part)), "{text}");
            }
        }
    }

    proptest! {
        #[test]
        fn anything_gets_an_answer(
            attributes in prop::collection::vec((
                prop_oneof![
                    "(secret|template|jwt|svid)?\\.?countersign\\.dev/[a-z./]{0,8}",
                    ".{0,20}",
                ],
                prop_oneof!["vault:[a-z#?=&/]{0,10}", "[{}%a-z\"():| ]{0,30}", ".{0,20}"],
            ), 0..5)
        ) {
            if let Ok(request) = Request::parse(attributes, &["vault"].into_iter().collect()) {
                prop_assert!(!request.files.is_empty());
                prop_assert!(request.files.is_sorted_by(|a, b| a.path < b.path));
            }
        }
    }
}
