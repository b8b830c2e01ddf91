//! Guest programs and images that the benchmarks share.
//!
//! A [`programs::Program`] is position-dependent code with a known result; an [`image::Image`] is
//! the low memory of a machine that runs one: descriptor table, page tables, a stub that marks
//! begin and end on a port, and the program. The same image boots under every engine; [`bare`] runs
//! it on one processor of this project without anything around it. [`root`] is the smallest guest
//! below a hypervisor.

pub mod bare;
pub mod image;
pub mod programs;
pub mod root;
