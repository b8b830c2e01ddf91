//! The parts of the softvmx command line that other programs can use: the doctor for VMCS dumps.

pub mod doctor;
