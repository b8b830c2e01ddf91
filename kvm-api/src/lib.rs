//! Linux's KVM ioctl semantics: a hypervisor on a software VT-x processor.
