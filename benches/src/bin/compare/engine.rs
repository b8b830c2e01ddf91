//! What an engine is, and which there are.

use anyhow::Result;
use benches::image::Image;
use benches::programs::{Group, Program};

use crate::{process, vm};

/// One run of an image.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measurement {
    /// Time between the guest's two marks.
    pub(crate) seconds: f64,
    /// What the guest printed.
    pub(crate) result: u64,
}

/// Something that runs an image.
pub(crate) trait Engine {
    /// Its name in the table.
    fn name(&self) -> &'static str;
    /// Whether it can run here; the error says why not.
    fn check(&self) -> Result<()>;
    /// Whether it can run programs of this group.
    fn runs(&self, group: Group) -> bool {
        group != Group::Vmx
    }
    /// Runs an image to its end.
    fn run(&mut self, image: &Image) -> Result<Measurement>;
    /// A number of iterations that is surely short.
    fn first_iterations(&self, program: &Program) -> u32 {
        (program.iterations / 8).max(1)
    }
}

/// Returns all engines, ours first.
pub(crate) fn all() -> Vec<Box<dyn Engine>> {
    vec![
        Box::new(vm::Softvmx),
        Box::new(vm::Bare),
        Box::new(process::Bochs),
        Box::new(process::Qemu),
        Box::new(vm::HostKvm),
    ]
}
