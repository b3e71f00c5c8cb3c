//! Files in a volume, changed together.
