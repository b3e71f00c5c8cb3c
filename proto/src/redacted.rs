//! `Debug` for the messages that carry secrets: the name, and what identifies the message, never its content.

use std::fmt::{Debug, Formatter, Result};

use crate::{agent, csi, issuer};

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
