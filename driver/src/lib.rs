//! The CSI node driver of Countersign.
