//! The same guest on the emulator and on /dev/kvm, and where they differ.

fn main() {}
