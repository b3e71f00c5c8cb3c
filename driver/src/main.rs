//! Starts the driver.

fn main() {}
