//! What admission makes of pods: tables of what is given and what is refused, tried on an API server as a user would.

pub mod judge;
pub mod post;
pub mod table;
