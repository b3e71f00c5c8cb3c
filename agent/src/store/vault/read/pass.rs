//! What a read is authorized by.

use std::sync::Arc;

use http::HeaderMap;

use super::Reading;
use crate::Error;
use crate::sources::Mint;
use crate::store::vault::client::Credential;
use crate::store::vault::mount::Mount;
use crate::store::vault::token::Token;

/// What a read is authorized by.
pub(super) enum Pass {
    Token(Arc<Token>),
    Inline(HeaderMap),
}

impl Pass {
    pub(super) fn credential(&self) -> Credential<'_> {
        match self {
            Self::Token(token) => Credential::Token(&token.secret),
            Self::Inline(headers) => Credential::Inline(headers),
        }
    }

    pub(super) fn policies(&self) -> &[String] {
        match self {
            Self::Token(token) => &token.policies,
            Self::Inline(_) => &[],
        }
    }
}

impl<M: Mint> Reading<'_, M> {
    /// What plain reads are authorized by.
    pub(super) async fn pass(&self) -> Result<Pass, Error> {
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
}
