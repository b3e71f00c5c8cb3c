//! The agent of Countersign.
