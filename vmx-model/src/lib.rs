//! What the Intel SDM says about VMX, as data and pure decisions.
//!
//! This crate knows no instruction decoder, no KVM, no clock and no thread. It holds the VMCS
//! fields, the controls, the capability MSRs, the exit reasons and the VM-entry checks as tables;
//! the state machine of logical processors and VMCSs; and the decisions that VM entry, VM exit and
//! the intercepts need. Whoever executes instructions asks it.
//!
//! Citations are to the Intel SDM, Vol. 3C, by section title; numbers are those of the editions of
//! 2023 and later, where the VMCS is chapter 25 and VM entries are chapter 27.
#![forbid(unsafe_code)]

pub mod addr;
pub mod arch;
pub mod capability;
pub mod checks;
pub mod controls;
pub mod entry;
pub mod ept;
pub mod error;
pub mod event;
pub mod exit;
pub mod exit_reason;
pub mod field;
pub mod intercept;
pub mod memory;
pub mod msr_area;
#[cfg(feature = "naive")]
pub mod naive;
pub mod observer;
pub mod outcome;
pub mod precondition;
pub mod processor;
pub mod random;
pub mod region;
pub mod registry;
pub mod sample;
pub mod sanitizer;
pub mod virtual_apic;
pub mod vmcs;
