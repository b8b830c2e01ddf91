//! One x86 processor: executes instructions and asks vmx-model about VMX.
