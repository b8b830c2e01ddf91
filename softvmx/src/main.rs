//! The softvmx command line.

fn main() {}
