//! One read: as whom, where, how, and what the answer means.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method};
use hyper::body::Bytes;
use rand::Rng;

use super::Inner;
use super::answer::Reply;
use super::client::{Call, Credential, json_body};
use super::config::Namespace;
use super::document::{self, number, text};
use super::lease::{Lease, Tenancy, Terms};
use super::login::NoLogin;
use super::mount::{Engine, Manner, Mount};
use super::pki::{self, Signing};
use super::refusal::Question;
use super::session::{Session, nothing};
use super::token::Token;
use super::wanted::{Verb, Wanted};
use crate::Error;
use crate::secret::{Node, Secret};
use crate::sources::{Ask, Caller, Mint};
use crate::store::{Fetched, Fresh};

/// What was made for a pod and does not say when it ends is made anew after this.
const MADE: Duration = Duration::from_secs(12 * 3600);
/// A credential that is rotated by the server is looked at again this long after, and a little more.
const AFTER_ROTATION: Duration = Duration::from_secs(1);
/// A token this young may not have reached every node of the cluster.
const SETTLING: Duration = Duration::from_secs(2);
const SETTLING_PAUSE: Duration = Duration::from_millis(100);

/// What a read is authorized by.
enum Pass {
    Token(Arc<Token>),
    Inline(HeaderMap),
}

impl Pass {
    fn credential(&self) -> Credential<'_> {
        match self {
            Self::Token(token) => Credential::Token(&token.secret),
            Self::Inline(headers) => Credential::Inline(headers),
        }
    }

    fn policies(&self) -> &[String] {
        match self {
            Self::Token(token) => &token.policies,
            Self::Inline(_) => &[],
        }
    }
}

/// An answer, understood.
struct Understood {
    node: Node,
    version: String,
    fresh: Fresh,
    terms: Option<Terms>,
    request_id: String,
}

impl Understood {
    fn fetched(self) -> Fetched {
        Fetched {
            document: Arc::new(self.node),
            version: self.version,
            fresh: self.fresh,
            request_id: Some(self.request_id),
        }
    }
}

/// One read under way.
pub(super) struct Reading<'a, M> {
    pub(super) store: &'a Inner,
    pub(super) mint: &'a M,
    pub(super) ask: Ask<'a>,
    pub(super) wanted: &'a Wanted,
    pub(super) session: &'a Arc<Session>,
    pub(super) namespace: &'a Namespace,
}

/// What came of it.
pub(super) enum Outcome {
    Apart,
    Plain(Fetched),
    Leased(Fetched, Arc<Lease>),
}

impl<M: Mint> Reading<'_, M> {
    /// Reads in the manner that the mount suggests.
    pub(super) async fn read(&self) -> Result<Outcome, Error> {
        let mount = self.mount().await?;
        let mut manner = mount.manner(self.wanted);
        if let Some(leased) = self.store.learned(self.namespace, self.wanted) {
            manner = Manner { leased, apart: manner.apart || leased, ..manner };
        }
        let question = self.question(&mount, &[]);
        if let Some(misplaced) = question.misplaced() {
            return Err(misplaced);
        }
        if manner.leased && self.wanted.wrap.is_some() {
            return Err(Error::request(
                self.wanted.reference.clone(),
                "what is wrapped here has a lease, which nobody could renew; leave out vault.wrap, or say vault.lease=none to let it end by its TTL",
            ));
        }
        if self.wanted.version.is_some() && !matches!(mount.engine, Engine::KvV2 | Engine::Unknown) {
            return Err(Error::request(
                self.wanted.reference.clone(),
                "version: only key-value mounts of version 2 keep versions; leave the option out, or write body.version for a parameter of that name",
            ));
        }
        if manner.apart && !self.ask.alone {
            return Ok(Outcome::Apart);
        }
        if manner.leased { self.leased(&mount, manner).await } else { self.plain(&mount, manner).await }
    }

    fn question<'q>(&'q self, mount: &'q Mount, policies: &'q [String]) -> Question<'q> {
        Question {
            door: &self.store.door,
            id: &self.ask.caller.identity.spiffe_id,
            wanted: self.wanted,
            mount,
            policies,
            namespace: self.namespace.header(),
        }
    }

    fn caller(&self) -> Caller<'_> {
        self.ask.caller
    }

    fn error(&self, why: NoLogin) -> Error {
        why.error(&self.wanted.reference)
    }

    /// What plain reads are authorized by.
    async fn pass(&self) -> Result<Pass, Error> {
        let door = &self.store.door;
        if self.store.inline().await {
            let jwt =
                self.session.jwt(door, self.mint, self.caller()).await.map_err(|why| self.error(why))?;
            let id = &self.caller().identity.spiffe_id;
            // The inline login always shows one.
            let Some(jwt) = jwt else {
                return Err(self.question(&Mount::unknown(), &[]).unusable("no JWT-SVID"));
            };
            return door.inline(id, &jwt).map(Pass::Inline).map_err(|why| self.error(why));
        }
        let token = self.session.token(door, self.mint, self.caller()).await;
        token.map(Pass::Token).map_err(|why| self.error(why))
    }

    /// The mount of the path, by the server's word where it gives it.
    async fn mount(&self) -> Result<Mount, Error> {
        let now = self.store.door.clock.now();
        if let Some(mount) = self.store.mounts.of(self.namespace, &self.wanted.path, now) {
            return Ok(mount);
        }
        let pass = self.pass().await?;
        let _asking = self.store.mounting.lock().await;
        if let Some(mount) = self.store.mounts.of(self.namespace, &self.wanted.path, now) {
            return Ok(mount);
        }
        let path = format!("sys/internal/ui/mounts/{}", self.wanted.path.encoded());
        let call = Call {
            method: &Method::GET,
            path: &path,
            namespace: self.namespace,
            credential: pass.credential(),
            wrap: None,
            body: None,
            repeatable: true,
        };
        let reply = self.store.door.client.call(call).await?;
        let mount = reply
            .envelope()
            .filter(|_| reply.status.is_success())
            .and_then(|envelope| envelope.data)
            .and_then(|data| Mount::read(data.get()));
        let Some(mount) = mount else { return Ok(Mount::unknown()) };
        self.store.mounts.learn(self.namespace, &mount, now);
        Ok(mount)
    }

    /// With the token that all plain reads of the identity share.
    async fn plain(&self, mount: &Mount, manner: Manner) -> Result<Outcome, Error> {
        let mut pass = self.pass().await?;
        let mut signing = self.signing(manner)?;
        let mut reply = self.ask(&pass, signing.as_ref()).await?;
        if reply.status == http::StatusCode::FORBIDDEN
            && let Pass::Token(token) = &pass
        {
            let now = self.store.door.clock.now();
            if now.duration_since(token.since) < SETTLING {
                tokio::time::sleep(SETTLING_PAUSE).await;
                reply = self.ask(&pass, signing.as_ref()).await?;
            } else if self.session.doubt(&self.store.door, token).await {
                pass = self.pass().await?;
                signing = self.signing(manner)?;
                reply = self.ask(&pass, signing.as_ref()).await?;
            }
        }
        if reply.inline_login_failed {
            return Err(self.inline_refused(&reply).await);
        }
        if !reply.status.is_success() {
            if matches!(pass, Pass::Inline(_)) && reply.message(&[]).contains("cannot generate leases") {
                self.store.learn(self.namespace, self.wanted, true);
                return self.leased_after_all(mount, manner).await;
            }
            return Err(self.refused(mount, &pass, &reply).await);
        }
        if mount.engine == Engine::Unknown {
            self.store.mounts.learn_unknown(self.namespace, &self.wanted.path, self.store.door.clock.now());
        }
        let understood = self.understand(mount, signing, &reply, pass.policies())?;
        if understood.terms.is_some() {
            // A lease where none was expected: it must not hang on the token that others share.
            self.store.learn(self.namespace, self.wanted, true);
            if let Pass::Token(token) = &pass {
                self.session.retire(token).await;
            }
            return self.leased_after_all(mount, manner).await;
        }
        Ok(Outcome::Plain(understood.fetched()))
    }

    async fn leased_after_all(&self, mount: &Mount, manner: Manner) -> Result<Outcome, Error> {
        if self.ask.alone { self.leased(mount, manner).await } else { Ok(Outcome::Apart) }
    }

    /// With a login of its own, which ends with the credential.
    async fn leased(&self, mount: &Mount, manner: Manner) -> Result<Outcome, Error> {
        let door = &self.store.door;
        let token = self.session.log_in(door, self.mint, self.caller()).await;
        let token = token.map_err(|why| self.error(why))?;
        let tenancy = Tenancy::new(token, self.store.reaper.clone(), self.store.overlap);
        let pass = Pass::Token(tenancy.token());
        let signing = self.signing(manner)?;
        let reply = self.ask(&pass, signing.as_ref()).await?;
        if !reply.status.is_success() {
            return Err(self.refused(mount, &pass, &reply).await);
        }
        let mut understood = self.understand(mount, signing, &reply, pass.policies())?;
        let Some(terms) = understood.terms.take() else {
            self.store.learn(self.namespace, self.wanted, false);
            return Ok(Outcome::Plain(understood.fetched()));
        };
        let now = door.clock.now();
        let fetched = understood.fetched();
        let lease = Lease::new(
            tenancy,
            terms,
            Arc::clone(&fetched.document),
            fetched.version.clone(),
            self.store.meters.leases.clone(),
            now,
        );
        let fresh = Fresh::AtMost(lease.first_look(now));
        Ok(Outcome::Leased(Fetched { fresh, ..fetched }, Arc::new(lease)))
    }

    fn signing(&self, manner: Manner) -> Result<Option<Signing>, Error> {
        manner.signed.then(|| Signing::new(self.wanted)).transpose()
    }

    async fn ask(&self, pass: &Pass, signing: Option<&Signing>) -> Result<Reply, Error> {
        let verb = self.wanted.verb();
        let (method, query) = match verb {
            Verb::Get => (&Method::GET, self.wanted.query()),
            Verb::Post => (&Method::POST, String::new()),
        };
        let body = match verb {
            Verb::Get => None,
            Verb::Post => self.body(signing),
        };
        let path = format!("{}{query}", self.wanted.path.encoded());
        let call = Call {
            method,
            path: &path,
            namespace: self.namespace,
            credential: pass.credential(),
            wrap: self.wanted.wrap.map(|span| span.as_secs()),
            body: body.as_ref(),
            repeatable: verb == Verb::Get,
        };
        self.store.door.client.call(call).await
    }

    fn body(&self, signing: Option<&Signing>) -> Option<Bytes> {
        let mut parameters = self.wanted.parameters.clone();
        parameters.extend(signing.map(|signing| ("csr".to_owned(), signing.csr.clone())));
        json_body(&parameters)
    }

    async fn refused(&self, mount: &Mount, pass: &Pass, reply: &Reply) -> Error {
        // What was believed of the mount may be why.
        self.store.mounts.forget(self.namespace, mount);
        let shown = self.session.shown().await;
        let jwt = shown.as_ref().map(|jwt| &jwt.token);
        let token = match pass {
            Pass::Token(token) => Some(&*token.secret),
            Pass::Inline(_) => None,
        };
        let secrets: Vec<&Secret> = jwt.into_iter().chain(token).collect();
        self.question(mount, pass.policies()).refused(reply, &secrets)
    }

    async fn inline_refused(&self, reply: &Reply) -> Error {
        let id = &self.caller().identity.spiffe_id;
        let role = match self.store.door.role(id) {
            Ok(role) => role,
            Err(why) => return self.error(why),
        };
        let (shown, nothing) = (self.session.shown().await, nothing());
        let jwt = shown.as_ref().map_or(&nothing, |jwt| &jwt.token);
        self.error(self.store.door.refusal(id, role.as_deref(), reply, jwt))
    }

    fn understand(
        &self,
        mount: &Mount,
        signing: Option<Signing>,
        reply: &Reply,
        policies: &[String],
    ) -> Result<Understood, Error> {
        let question = self.question(mount, policies);
        let envelope = reply.envelope().unwrap_or_default();
        let request_id = envelope.request_id.to_string();
        let wrapped = self.wanted.wrap.is_some();
        let raw = if wrapped { envelope.wrap_info } else { envelope.data };
        let Some(raw) = raw else {
            // Not "not found": that is for the server to say, and files may be wiped on its word.
            return Err(question.unusable(format!(
                "the server's answer ({}) holds no {}",
                reply.status.as_u16(),
                if wrapped { "wrapping token" } else { "data" }
            )));
        };
        let node = document::parse(raw).map_err(|flaw| question.unusable(format!("its answer {flaw}")))?;
        let terms = (!envelope.lease_id.is_empty()).then(|| Terms {
            id: envelope.lease_id.to_string(),
            duration: Duration::from_secs(envelope.lease_duration),
            renewable: envelope.renewable,
        });
        let versions = &self.store.versions;
        let (node, version, fresh) = if let Some(signing) = signing {
            let node = signing.finish(node).map_err(|error| question.unusable(error))?;
            let fresh = Fresh::Exactly(pki::renew_in(&node, self.store.door.clock.wall()).unwrap_or(MADE));
            let version = versions.of(&node);
            (node, version, fresh)
        } else if wrapped {
            let fresh = Fresh::Exactly(made(number(&node, "ttl")));
            let version = versions.of(&node);
            (node, version, fresh)
        } else {
            self.plain_data(&question, node, envelope.lease_duration)?
        };
        // A credential is the one of its lease, whatever it looks like.
        let version = terms.as_ref().map_or(version, |terms| terms.id.clone());
        Ok(Understood { node, version, fresh, terms, request_id })
    }

    /// The part of the answer that is the secret, and how long it is good for.
    fn plain_data(
        &self,
        question: &Question<'_>,
        node: Node,
        lease_duration: u64,
    ) -> Result<(Node, String, Fresh), Error> {
        let mount = question.mount;
        let below = mount.below(&self.wanted.path);
        let versioned = match mount.engine {
            Engine::KvV2 => below.first() == Some(&"data"),
            Engine::Unknown => below.contains(&"data") && is_versioned(&node),
            Engine::KvV1 | Engine::Pki | Engine::Other(_) => false,
        };
        if versioned && let Node::Map(mut members) = node {
            let metadata = members.remove("metadata").unwrap_or(Node::Null);
            let data = members.remove("data").unwrap_or(Node::Null);
            if data == Node::Null {
                return Err(question.not_found("this version holds no data".to_owned()));
            }
            // A secret that was removed with all its versions starts again at 1.
            let created = text(&metadata, "created_time").map(shown).unwrap_or_default();
            let version = format!("{}@{created}", number(&metadata, "version").unwrap_or_default());
            let wall = self.store.door.clock.wall();
            let ends = text(&metadata, "deletion_time").map(shown);
            let ends = ends.and_then(|time| humantime::parse_rfc3339(&time).ok());
            let fresh = ends.map_or(Fresh::AsAsked, |ends| {
                Fresh::AtMost(ends.duration_since(wall).unwrap_or_default() + AFTER_ROTATION)
            });
            return Ok((data, version, fresh));
        }
        let version = self.store.versions.of(&node);
        let fresh = match (&mount.engine, self.wanted.verb()) {
            (Engine::KvV1, _) if lease_duration > 0 => Fresh::AtMost(Duration::from_secs(lease_duration)),
            (Engine::KvV1 | Engine::KvV2, _) => Fresh::AsAsked,
            (_, Verb::Get) => rotates_in(&node).map_or(Fresh::AsAsked, Fresh::AtMost),
            (Engine::Pki, Verb::Post) => {
                let left = pki::renew_in(&node, self.store.door.clock.wall());
                Fresh::Exactly(left.unwrap_or_else(|| made(None)))
            }
            (_, Verb::Post) => {
                let ttl = ["secret_id_ttl", "ttl"].iter().find_map(|name| number(&node, name));
                Fresh::Exactly(made(ttl.or((lease_duration > 0).then_some(lease_duration))))
            }
        };
        Ok((node, version, fresh))
    }
}

/// Whether the document has the shape that a key-value mount of version 2 gives a secret.
fn is_versioned(node: &Node) -> bool {
    let Node::Map(members) = node else { return false };
    members.contains_key("data")
        && members.get("metadata").is_some_and(|metadata| number(metadata, "version").is_some())
}

/// Times and names that the server set, none of them secret.
fn shown(text: &Secret) -> String {
    String::from_utf8_lossy(text.expose()).into_owned()
}

/// When a credential that the server rotates by itself is to be read again: right after it did.
fn rotates_in(node: &Node) -> Option<Duration> {
    text(node, "last_vault_rotation").or_else(|| text(node, "last_openbao_rotation"))?;
    let left = Duration::from_secs(number(node, "ttl")?);
    Some(left + AFTER_ROTATION + Duration::from_millis(rand::rng().random_range(0..2000)))
}

/// When something that was made for a pod is made anew: at about two thirds of its life.
fn made(ttl: Option<u64>) -> Duration {
    let life = ttl.filter(|ttl| *ttl > 0).map_or(MADE, Duration::from_secs);
    life.mul_f64(rand::rng().random_range(0.6..=0.667))
}
