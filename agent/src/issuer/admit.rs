//! Who may have what: every fact held against every other before anything is signed.

use std::sync::Arc;
use std::time::Duration;

use countersign_proto::issuer::{Proof, Renewal, Workload, proof};

use crate::clock::Clock;
use crate::identity::key::verifies;
use crate::identity::renewal::{self, SKEW};
use crate::issuer::config::ServiceAccount;
use crate::issuer::keys::Keys;
use crate::issuer::publication::Publication;
use crate::issuer::refusal::{Refusal, TokenFault, Whose};
use crate::issuer::remembered::Reviews;
use crate::issuer::review::{Reviewed, describe};
use crate::issuer::ticket;
use crate::secret::Secret;
use crate::spiffe::{SpiffeId, TrustDomain};

/// A workload whose every claim was checked.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) spiffe_id: SpiffeId,
    pub(crate) pod: ticket::Pod,
    pub(crate) node: String,
    /// When a token of the workload was last reviewed, Unix seconds. A renewal does not move it.
    pub(crate) reviewed_at: i64,
    /// For the log: by what.
    pub(crate) by: &'static str,
}

/// Decides who is let in.
pub(crate) struct Gate {
    pub(crate) reviews: Arc<Reviews>,
    pub(crate) keys: Arc<Keys>,
    /// Where the keys of other replicas are looked up; an issuer on its own has none.
    pub(crate) publication: Option<Arc<Publication>>,
    pub(crate) agent: ServiceAccount,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) renew_without_token: Duration,
    pub(crate) clock: Clock,
}

impl Gate {
    /// Admits a call by `caller`, the agent's own token, for `workload` with `proof`; `subject` is what a renewal
    /// must have signed.
    pub(crate) async fn admit(
        &self,
        caller: &Secret,
        workload: Option<Workload>,
        proof: Option<Proof>,
        subject: &[u8],
    ) -> Result<Admitted, Refusal> {
        let agent = self.agent(caller).await?;
        let pod = asked(workload)?;
        match proof.and_then(|proof| proof.proof) {
            None => Err(Refusal::Token { whose: Whose::Workload, fault: TokenFault::Missing }),
            Some(proof::Proof::Token(token)) => self.by_token(&agent, pod, &Secret::from(token)).await,
            Some(proof::Proof::Renewal(renewal)) => {
                self.know(&renewal.ticket).await;
                self.by_key(&agent, pod, &renewal, subject)
            }
        }
    }

    /// Has the key of a ticket looked up that another replica may have signed a moment ago.
    async fn know(&self, ticket: &str) {
        if let Some(publication) = &self.publication
            && let Some(kid) = ticket::signer(ticket)
            && self.keys.jwt_key(&kid).is_none()
        {
            publication.look_again().await;
        }
    }

    async fn agent(&self, token: &Secret) -> Result<Reviewed, Refusal> {
        let agent = self.reviews.review(Whose::Agent, token).await?;
        if agent.namespace != self.agent.namespace || agent.service_account != self.agent.name {
            return Err(Refusal::NotAgent {
                found: format!("{}/{}", agent.namespace, agent.service_account),
                expected: format!("{}/{}", self.agent.namespace, self.agent.name),
            });
        }
        Ok(agent)
    }

    async fn by_token(
        &self,
        agent: &Reviewed,
        asked: ticket::Pod,
        token: &Secret,
    ) -> Result<Admitted, Refusal> {
        let reviewed_at = self.clock.unix();
        let found = self.reviews.review(Whose::Workload, token).await?;
        let same = found.namespace == asked.namespace
            && found.pod_name == asked.name
            && found.pod_uid == asked.uid
            && found.service_account == asked.service_account;
        if !same {
            return Err(Refusal::AnotherPod { asked: asked.describe(), proven: found.describe() });
        }
        same_node(agent, &found.node_name)?;
        let spiffe_id = self.id_of(&asked)?;
        Ok(Admitted { spiffe_id, pod: asked, node: found.node_name, reviewed_at, by: "token" })
    }

    /// Admits by ticket and signature. Each check closes one hole: see [`ticket`].
    fn by_key(
        &self,
        agent: &Reviewed,
        asked: ticket::Pod,
        renewal: &Renewal,
        subject: &[u8],
    ) -> Result<Admitted, Refusal> {
        let refuse = |problem: &str| Refusal::Renewal(problem.to_owned());
        let now = self.clock.unix();
        let ticket = ticket::open(&self.keys, &renewal.ticket, now).map_err(refuse)?;
        if ticket.pod != asked {
            return Err(Refusal::AnotherPod { asked: asked.describe(), proven: ticket.pod.describe() });
        }
        let spiffe_id = self.id_of(&asked)?;
        if ticket.sub != spiffe_id.as_str() {
            return Err(refuse("the ticket is for another SPIFFE ID"));
        }
        same_node(agent, &ticket.node)?;
        if now.abs_diff(renewal.signed_at) > SKEW.as_secs() {
            return Err(Refusal::Renewal(format!(
                "it was signed at Unix time {}, and it is {now} at the issuer: more than {} s apart; \
                 compare the clocks of node {:?} and issuer",
                renewal.signed_at,
                SKEW.as_secs(),
                agent.node_name
            )));
        }
        let point = ticket.cnf.jwk.point().ok_or_else(|| refuse("the ticket's key can't be read"))?;
        let message = renewal::message(&renewal.ticket, renewal.signed_at, subject);
        if !verifies(&point, &message, &renewal.signature) {
            return Err(refuse("the signature is not by the ticket's key over this request"));
        }
        let limit = i64::try_from(self.renew_without_token.as_secs()).unwrap_or(i64::MAX);
        if now.saturating_sub(ticket.reviewed_at) >= limit {
            return Err(refuse("the last token was reviewed longer ago than --renew-without-token allows"));
        }
        Ok(Admitted {
            spiffe_id,
            pod: asked,
            node: ticket.node,
            reviewed_at: ticket.reviewed_at,
            by: "renewal",
        })
    }

    fn id_of(&self, pod: &ticket::Pod) -> Result<SpiffeId, Refusal> {
        self.trust_domain
            .service_account(&pod.namespace, &pod.service_account)
            .map_err(|problem| Refusal::Malformed { what: "workload", problem: problem.to_string() })
    }
}

fn same_node(agent: &Reviewed, workload: &str) -> Result<(), Refusal> {
    if agent.node_name == workload {
        return Ok(());
    }
    Err(Refusal::AnotherNode { workload: workload.to_owned(), agent: agent.node_name.clone() })
}

fn asked(workload: Option<Workload>) -> Result<ticket::Pod, Refusal> {
    let missing = |problem: &str| Refusal::Malformed { what: "workload", problem: problem.to_owned() };
    let workload = workload.ok_or_else(|| missing("is missing"))?;
    let pod = ticket::Pod {
        namespace: workload.namespace,
        name: workload.pod_name,
        uid: workload.pod_uid,
        service_account: workload.service_account,
    };
    if [&pod.namespace, &pod.name, &pod.uid, &pod.service_account].iter().any(|part| part.is_empty()) {
        return Err(missing("must have namespace, pod name, pod uid and service account"));
    }
    Ok(pod)
}

impl ticket::Pod {
    pub(crate) fn describe(&self) -> String {
        describe(&self.namespace, &self.name, &self.uid, &self.service_account)
    }
}
