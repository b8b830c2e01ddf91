//! What the Intel SDM says about VMX, as data and pure decisions.
#![forbid(unsafe_code)]
