//! The same guest on the emulator and on /dev/kvm, and where they differ.
//!
//! A case ([`cases`]) asks a [`backend`] through a [`probe::Probe`] and never knows who answers. What is
//! seen is text that is compared with what is wanted ([`probe::Record`]) and between the backends
//! ([`verdict`]). The differences that we know and accept are in [`known`]; everything else fails the run.
//! [`runner`] keeps each backend in a process of its own, [`report`] writes the results, [`fuzz`] makes
//! cases at random. The expectations are those of Linux 6.12 on an Intel processor (kvm_intel); KVM is
//! cited by Linux's `Documentation/virt/kvm/api.rst`, the processor by the SDM.

pub mod backend;
pub mod cases;
pub mod cli;
pub mod fuzz;
pub mod guest;
pub mod hypervisor;
pub mod known;
pub mod probe;
pub mod report;
pub mod requests;
pub mod runner;
pub mod verdict;
