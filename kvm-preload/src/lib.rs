//! LD_PRELOAD library that gives an unmodified program a software /dev/kvm.
