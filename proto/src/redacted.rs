//! `Debug` for the messages that carry secrets: the name, and what identifies the message, never its content.

use std::fmt::{Debug, Formatter, Result};

use crate::{agent, broker, csi, delegated, issuer, workload};

impl Debug for csi::NodePublishVolumeRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("NodePublishVolumeRequest").field("volume_id", &self.volume_id).finish_non_exhaustive()
    }
}

impl Debug for agent::PublishRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("PublishRequest").field("volume_id", &self.volume_id).finish_non_exhaustive()
    }
}

impl Debug for agent::Token {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Token").field("audience", &self.audience).finish_non_exhaustive()
    }
}

impl Debug for issuer::Proof {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Proof").finish_non_exhaustive()
    }
}

impl Debug for issuer::proof::Proof {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Token(_) => f.write_str("Token(..)"),
            Self::Renewal(_) => f.write_str("Renewal(..)"),
        }
    }
}

impl Debug for issuer::SignRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("SignRequest").field("workload", &self.workload).finish_non_exhaustive()
    }
}

impl Debug for issuer::MintJwtRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("MintJwtRequest")
            .field("workload", &self.workload)
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

impl Debug for issuer::MintJwtResponse {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("MintJwtResponse").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Debug for workload::X509svid {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("X509svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

impl Debug for broker::X509svid {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("X509svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

impl Debug for broker::Jwtsvid {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Jwtsvid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

impl Debug for delegated::X509svidWithKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("X509svidWithKey").field("x509_svid", &self.x509_svid).finish_non_exhaustive()
    }
}

impl Debug for delegated::Jwtsvid {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Jwtsvid").field("id", &self.id).finish_non_exhaustive()
    }
}
