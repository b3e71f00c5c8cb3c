//! From secrets to the bytes of files.
