//! One read: as whom, where and how. What the answer means is next door.

mod meaning;
mod pass;
mod unchanged;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use hyper::body::Bytes;

use super::Inner;
use super::answer::Reply;
use super::client::{Call, json_body};
use super::config::Namespace;
use super::lease::{Lease, Tenancy};
use super::login::NoLogin;
use super::mount::{Engine, Manner, Mount};
use super::pki::Signing;
use super::refusal::Question;
use super::session::{Session, nothing};
use super::wanted::{Verb, Wanted};
use crate::Error;
use crate::secret::Secret;
use crate::sources::{Ask, Caller, Mint};
use crate::store::{Fetched, Fresh};

use meaning::has_versions;
use pass::Pass;
pub(super) use unchanged::Known;

/// A token this young may not have reached every node of the cluster.
const SETTLING: Duration = Duration::from_secs(2);
const SETTLING_PAUSE: Duration = Duration::from_millis(100);

/// One read under way.
pub(super) struct Reading<'a, M> {
    pub(super) store: &'a Inner,
    pub(super) mint: &'a M,
    pub(super) ask: Ask<'a>,
    pub(super) wanted: &'a Wanted,
    pub(super) session: &'a Arc<Session>,
    pub(super) namespace: &'a Namespace,
    /// What was read before.
    pub(super) known: Option<Arc<Known>>,
}

/// What came of it.
pub(super) enum Outcome {
    Apart,
    /// Nothing has changed since it was read.
    Unchanged(Fetched, Arc<Known>),
    /// With what makes the next look a cheap one, where the engine has that.
    Plain(Fetched, Option<Arc<Known>>),
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
        let reply = self.get(&path, &pass).await?;
        let mount = reply
            .envelope()
            .filter(|_| reply.status.is_success())
            .and_then(|envelope| envelope.data)
            .and_then(|data| Mount::read(data.get()));
        let Some(mount) = mount else { return Ok(Mount::unknown()) };
        self.store.mounts.learn(self.namespace, &mount, now);
        Ok(mount)
    }

    /// A question beside the read itself.
    async fn get(&self, path: &str, pass: &Pass) -> Result<Reply, Error> {
        let call = Call {
            method: &Method::GET,
            path,
            namespace: self.namespace,
            credential: pass.credential(),
            wrap: None,
            body: None,
            repeatable: true,
        };
        self.store.door.client.call(call).await
    }

    /// With the token that all plain reads of the identity share.
    async fn plain(&self, mount: &Mount, manner: Manner) -> Result<Outcome, Error> {
        let mut pass = self.pass().await?;
        let watched = self.metadata_of(mount);
        let mut permitted = None;
        if let (Some(metadata), Some(known)) = (&watched, &self.known) {
            let checked = self.check(metadata, known, &pass).await?;
            if let Some((fresh, known)) = checked.unchanged {
                return Ok(Outcome::Unchanged(known.fetched(fresh), known));
            }
            permitted = checked.permitted;
        }
        let mut signing = self.signing(manner)?;
        let mut reply = self.ask(&pass, signing.as_ref()).await?;
        if reply.status == http::StatusCode::FORBIDDEN
            && let Pass::Token(token) = &pass
        {
            let now = self.store.door.clock.now();
            if now.duration_since(token.since) < SETTLING {
                tokio::time::sleep(SETTLING_PAUSE).await;
                reply = self.ask(&pass, signing.as_ref()).await?;
            }
            let unknown = reply.message(&[]).contains("invalid token");
            if reply.status == http::StatusCode::FORBIDDEN
                && self.session.doubt(&self.store.door, token, unknown).await
            {
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
        let fetched = understood.fetched();
        let known = watched
            .filter(|_| has_versions(&fetched.version))
            .map(|_| Arc::new(Known::new(&fetched, permitted, self.known.as_deref())));
        Ok(Outcome::Plain(fetched, known))
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
            return Ok(Outcome::Plain(understood.fetched(), None));
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
}
