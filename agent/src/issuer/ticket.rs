//! The ticket: what lets an SVID be renewed by its key for a while without a new token of kubelet's.
//!
//! A ticket is a JWT of the issuer's for the issuer. It names the pod, its node, when a token of the pod was last
//! reviewed, and the SVID's public key (`cnf`, RFC 7800). It opens a renewal only together with three other
//! things, and each closes a way in:
//!
//! - *A signature by the key in `cnf`* over ticket, time and this very request. A ticket alone is worth nothing,
//!   and a captured call can only be repeated as it was, within 60 s, for an answer that needs the same key again.
//! - *The calling agent's own token*, reviewed now, for the ticket's node. A key that was carried off works from
//!   no other node, and from no process but an agent.
//! - *The life of the SVID.* The ticket ends with it, so a chain of renewals that is interrupted stays so.
//!
//! And the chain has an end: `reviewed_at` is carried over unchanged from ticket to ticket, and past
//! `--renew-without-token` a token is demanded. What a renewal does not see is that the pod was deleted within
//! that time; the agent forgets the key at unpublish, and nobody else has it.
//!
//! A ticket is no JWT-SVID and can't serve as one: its `typ` and audience are its own, and no JWT-SVID is minted
//! for that audience. A ticket is good at every replica whose bundle has the key that signed it (`publication`), and
//! so beyond a restart. Where nothing is published, tickets of an issuer that lost its key are refused; the next
//! republish brings a token.

use jsonwebtoken::{Algorithm, Header, Validation, decode, decode_header, encode};
use serde::{Deserialize, Serialize};

use crate::issuer::admit::Admitted;
use crate::issuer::jwt::{JwtKey, PublicJwk};
use crate::issuer::keys::Keys;
use crate::issuer::refusal::Refusal;

/// The audience of tickets. No JWT-SVID is minted for it.
pub(crate) const AUDIENCE: &str = "urn:countersign:renewal";
const TYPE: &str = "countersign-renewal+jwt";

/// A pod and its service account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) service_account: String,
}

/// The claims of a ticket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ticket {
    pub(crate) aud: String,
    pub(crate) sub: String,
    pub(crate) iat: i64,
    pub(crate) exp: i64,
    pub(crate) pod: Pod,
    pub(crate) node: String,
    pub(crate) reviewed_at: i64,
    pub(crate) cnf: Confirmation,
}

/// The key that must sign (RFC 7800 §3.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confirmation {
    pub(crate) jwk: PublicJwk,
}

/// Writes the ticket for an SVID with `key` that ends at `exp`.
pub(crate) fn write(
    signer: &JwtKey,
    admitted: &Admitted,
    key: PublicJwk,
    now: i64,
    exp: i64,
) -> Result<String, Refusal> {
    let ticket = Ticket {
        aud: AUDIENCE.to_owned(),
        sub: admitted.spiffe_id.to_string(),
        iat: now,
        exp,
        pod: admitted.pod.clone(),
        node: admitted.node.clone(),
        reviewed_at: admitted.reviewed_at,
        cnf: Confirmation { jwk: key },
    };
    seal(signer, &ticket)
}

pub(crate) fn seal(signer: &JwtKey, ticket: &Ticket) -> Result<String, Refusal> {
    let mut header = Header::new(Algorithm::ES256);
    header.typ = Some(TYPE.to_owned());
    header.kid = Some(signer.kid().to_owned());
    encode(&header, ticket, signer.encoding()).map_err(|error| Refusal::Signing(error.to_string()))
}

/// The id of the key that signed a ticket, by its own word.
pub(crate) fn signer(ticket: &str) -> Option<String> {
    decode_header(ticket).ok()?.kid
}

/// Reads a ticket that one of `keys` signed and that has not ended; else says what is wrong with it.
pub(crate) fn open(keys: &Keys, ticket: &str, now: i64) -> Result<Ticket, &'static str> {
    let header = decode_header(ticket).map_err(|_| "the ticket can't be read")?;
    if header.typ.as_deref() != Some(TYPE) || header.crit.is_some() {
        return Err("the ticket is some other token");
    }
    let signer = header
        .kid
        .and_then(|kid| keys.jwt_key(&kid))
        .ok_or("the ticket is not by a key this issuer knows (keys in memory change when it restarts)")?;
    let mut validation = Validation::new(Algorithm::ES256);
    // Checked below, by our clock.
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_aud = false;
    let ticket: Ticket = decode(ticket, signer.decoding(), &validation)
        .map_err(|_| "the ticket's signature or form is wrong")?
        .claims;
    if ticket.aud != AUDIENCE {
        return Err("the ticket is some other token");
    }
    if ticket.exp <= now {
        return Err("the ticket has ended with its SVID");
    }
    Ok(ticket)
}
