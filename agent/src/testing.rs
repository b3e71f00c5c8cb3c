//! Sources that do as a test tells them. Compiled for tests only.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::identity::{Identity, JwtSvid, Push, Roots, Subscription, Token, Workload, X509Svid};
use crate::request::Source;
use crate::secret::{Node, Secret};
use crate::sources::{Ask, Caller, Sources, Stale};
use crate::spiffe::SpiffeId;
use crate::store::{Answer, Fetched, Fresh, Held};

/// An identity of an hour, with bytes in place of certificates.
pub(crate) fn identity(id: &str) -> Identity {
    lasting(id, SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000), Duration::from_secs(3600), 0)
}

fn lasting(id: &str, from: SystemTime, life: Duration, serial: usize) -> Identity {
    federating(id, from, life, serial, &[])
}

fn federating(id: &str, from: SystemTime, life: Duration, serial: usize, with: &[String]) -> Identity {
    let spiffe_id: SpiffeId = id.parse().unwrap();
    let x509 = X509Svid {
        spiffe_id: spiffe_id.clone(),
        chain: vec![format!("leaf {serial}").into_bytes()],
        key: Secret::from(format!("key {serial}")),
        roots: vec![b"root".to_vec()],
        federated: with
            .iter()
            .map(|domain| (domain.parse().unwrap(), vec![format!("root of {domain}").into_bytes()]))
            .collect(),
        not_before: from,
        not_after: from + life,
    };
    Identity {
        spiffe_id,
        x509: Arc::new(x509),
        renew_at: from + life / 2,
        ticket: crate::identity::Ticket::default(),
    }
}

/// A text, or fields.
fn document(value: &str) -> Node {
    let fields = value.split_whitespace().map(|part| part.split_once('='));
    let text = |text: &str| Node::Text(Secret::from(text.to_owned()));
    let fields = fields.map(|field| field.map(|(name, value)| (name.to_owned(), text(value))));
    let fields = fields.collect::<Option<BTreeMap<_, _>>>().filter(|fields| !fields.is_empty());
    fields.map_or_else(|| text(value), Node::Map)
}

/// Somebody with this identity.
pub(crate) fn caller(identity: &Identity) -> Caller<'_> {
    static WORKLOAD: OnceLock<Workload> = OnceLock::new();
    let workload = WORKLOAD.get_or_init(|| Workload {
        namespace: "n".to_owned(),
        pod_name: "p".to_owned(),
        pod_uid: "u".to_owned(),
        service_account: "a".to_owned(),
        hint: None,
    });
    Caller { workload, tokens: &[], identity }
}

/// Counts, fails, delays and hangs as told.
#[derive(Debug, Default)]
pub(crate) struct FakeSources {
    secrets: Mutex<HashMap<String, String>>,
    failure: Mutex<Option<Error>>,
    identity_failure: Mutex<Option<Error>>,
    jwt_failure: Mutex<Option<Error>>,
    delay: Mutex<Duration>,
    hanging: Mutex<HashSet<String>>,
    apart: Mutex<HashSet<String>>,
    fresh: Mutex<Option<Fresh>>,
    panics: AtomicUsize,
    pub(crate) clock: Mutex<Option<crate::clock::Clock>>,
    named: Mutex<Option<String>>,
    pushes: Mutex<VecDeque<Push>>,
    pushed: Notify,
    stale: Mutex<VecDeque<Stale>>,
    told: Notify,
    pub(crate) roots: tokio::sync::watch::Sender<Roots>,
    lacking: Mutex<HashSet<String>>,
    federated: Mutex<Vec<String>>,
    readers: Mutex<Vec<String>>,
    reads: AtomicUsize,
    signed: AtomicUsize,
    minted: AtomicUsize,
}

impl FakeSources {
    /// The SVIDs that come are numbered from here on.
    pub(crate) fn number_from(&self, serial: usize) {
        self.signed.store(serial, Ordering::SeqCst);
        self.minted.store(serial, Ordering::SeqCst);
    }

    /// A value such as `x=1 y=2` has fields.
    pub(crate) fn put(&self, path: &str, value: &str) {
        self.secrets.lock().unwrap().insert(path.to_owned(), value.to_owned());
    }

    pub(crate) fn remove(&self, path: &str) {
        self.secrets.lock().unwrap().remove(path);
    }

    pub(crate) fn fail(&self, error: Error) {
        *self.failure.lock().unwrap() = Some(error);
    }

    pub(crate) fn fail_identity(&self, error: Option<Error>) {
        *self.identity_failure.lock().unwrap() = error;
    }

    /// No audience gets a JWT-SVID for as long as there is an error.
    pub(crate) fn fail_jwts(&self, error: Option<Error>) {
        *self.jwt_failure.lock().unwrap() = error;
    }

    pub(crate) fn heal(&self) {
        *self.failure.lock().unwrap() = None;
    }

    pub(crate) fn delay(&self, by: Duration) {
        *self.delay.lock().unwrap() = by;
    }

    pub(crate) fn hang(&self, store: &str) {
        self.hanging.lock().unwrap().insert(store.to_owned());
    }

    /// Volumes must not share `path`.
    pub(crate) fn set_apart(&self, path: &str) {
        self.apart.lock().unwrap().insert(path.to_owned());
    }

    pub(crate) fn good_for(&self, fresh: Fresh) {
        *self.fresh.lock().unwrap() = Some(fresh);
    }

    /// The next `times` reads panic.
    pub(crate) fn panic(&self, times: usize) {
        self.panics.store(times, Ordering::SeqCst);
    }

    /// Everybody is called `id` from now on.
    pub(crate) fn name(&self, id: &str) {
        *self.named.lock().unwrap() = Some(id.to_owned());
    }

    /// Reports a change of the identity of the pod that `workload` is.
    pub(crate) fn push(&self, workload: &Workload, svid: Option<Arc<X509Svid>>) {
        self.pushes.lock().unwrap().push_back(Push { workload: workload.clone(), svid });
        self.pushed.notify_one();
    }

    /// Reports that what `id` read there has changed.
    pub(crate) fn tell(&self, id: &SpiffeId, source: &Source) {
        self.stale.lock().unwrap().push_back(Stale { spiffe_id: id.clone(), source: source.clone() });
        self.told.notify_one();
    }

    /// No SVID has this hint any more; or there is one again.
    pub(crate) fn lack(&self, hint: &str, lacks: bool) {
        let mut lacking = self.lacking.lock().unwrap();
        if lacks {
            lacking.insert(hint.to_owned())
        } else {
            lacking.remove(hint)
        };
    }

    /// Everybody federates with these trust domains from now on.
    pub(crate) fn federate(&self, with: &[&str]) {
        *self.federated.lock().unwrap() = with.iter().map(|domain| (*domain).to_owned()).collect();
    }

    /// Who has read what since this was last asked, in the order of the names.
    pub(crate) fn readers(&self) -> Vec<String> {
        let mut readers = std::mem::take(&mut *self.readers.lock().unwrap());
        readers.sort_unstable();
        readers
    }

    pub(crate) fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    pub(crate) fn signed(&self) -> usize {
        self.signed.load(Ordering::SeqCst)
    }

    pub(crate) fn minted(&self) -> usize {
        self.minted.load(Ordering::SeqCst)
    }

    fn wall(&self) -> SystemTime {
        self.clock.lock().unwrap().map_or(SystemTime::UNIX_EPOCH, |clock| clock.wall())
    }

    fn identity_trouble(&self) -> Result<(), Error> {
        self.identity_failure.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

impl Sources for FakeSources {
    async fn x509(&self, workload: &Workload, _: &[Token], _: Option<&Identity>) -> Result<Identity, Error> {
        self.identity_trouble()?;
        let serial = self.signed.fetch_add(1, Ordering::SeqCst) + 1;
        let named = self.named.lock().unwrap().clone();
        let id = match (&workload.hint, named) {
            (Some(hint), _) if self.lacking.lock().unwrap().contains(&**hint) => {
                return Err(Error::IdentityWithdrawn { problem: format!("no entry with {hint}") });
            }
            (Some(hint), _) => format!("spiffe://t/{hint}"),
            (None, Some(named)) => named,
            (None, None) => format!("spiffe://t/ns/{}/sa/{}", workload.namespace, workload.service_account),
        };
        let with = self.federated.lock().unwrap().clone();
        Ok(federating(&id, self.wall(), Duration::from_secs(3600), serial, &with))
    }

    async fn jwt(&self, _: &Workload, _: &[Token], _: &Identity, audience: &str) -> Result<JwtSvid, Error> {
        self.identity_trouble()?;
        self.jwt_failure.lock().unwrap().clone().map_or(Ok(()), Err)?;
        let serial = self.minted.fetch_add(1, Ordering::SeqCst) + 1;
        let (now, life) = (self.wall(), Duration::from_secs(300));
        let token = Secret::from(format!("jwt {serial} for {audience}"));
        Ok(JwtSvid { token, expires: now + life, renew_at: now + life / 2 })
    }

    fn hint(&self, store: &str) -> Option<Arc<str>> {
        store.strip_prefix("for-").map(Arc::from)
    }

    fn subscribe(&self, _: &Workload) -> Subscription {
        Subscription::default()
    }

    async fn stale(&self) -> Stale {
        loop {
            if let Some(stale) = self.stale.lock().unwrap().pop_front() {
                return stale;
            }
            self.told.notified().await;
        }
    }

    async fn changed(&self) -> Push {
        loop {
            if let Some(push) = self.pushes.lock().unwrap().pop_front() {
                return push;
            }
            self.pushed.notified().await;
        }
    }

    fn roots(&self) -> Option<tokio::sync::watch::Receiver<Roots>> {
        Some(self.roots.subscribe())
    }

    async fn fetch(&self, ask: Ask<'_>, _: &mut Option<Held>) -> Result<Answer, Error> {
        let source = ask.source;
        if !ask.alone && self.apart.lock().unwrap().contains(&*source.path) {
            return Ok(Answer::Apart);
        }
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.readers.lock().unwrap().push(format!("{} {source}", ask.caller.identity.spiffe_id));
        let delay = *self.delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        let left = self.panics.load(Ordering::SeqCst);
        if left > 0 {
            self.panics.store(left - 1, Ordering::SeqCst);
            panic!("as the test told");
        }
        let hangs = self.hanging.lock().unwrap().contains(&*source.store);
        if hangs {
            std::future::pending::<()>().await;
        }
        if let Some(error) = self.failure.lock().unwrap().clone() {
            return Err(error);
        }
        let value = self.secrets.lock().unwrap().get(&*source.path).cloned();
        let Some(value) = value else {
            return Err(Error::NotFound { reference: source.to_string(), problem: "no such secret".into() });
        };
        let document = Arc::new(document(&value));
        let fresh = self.fresh.lock().unwrap().unwrap_or(Fresh::AsAsked);
        Ok(Answer::Secret(Fetched { document, version: value, fresh, request_id: None }))
    }

    async fn run(&self, shutdown: &CancellationToken) {
        shutdown.cancelled().await;
    }

    fn reached(&self) -> Result<(), String> {
        Ok(())
    }
}
