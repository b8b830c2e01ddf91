//! Memory as the processor sees it: segmentation, paging, physical memory.
//!
//! `segment` turns logical addresses into linear ones, `walk` those into physical ones, `access`
//! performs loads and stores, `phys` holds the synthetic physical address space, `guard` survives host memory
//! that has vanished.

pub(crate) mod access;
mod bulk;
pub(crate) mod code;
pub mod guard;
pub mod phys;
pub(crate) mod segment;
pub(crate) mod stack;
pub(crate) mod tlb;
pub(crate) mod translate;
mod update;
pub(crate) mod walk;

/// What a memory access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Data read.
    Read,
    /// Data write, or the read half of a read-modify-write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// On whose behalf a memory access is made (SDM Vol. 3A, "Determination of Access Rights").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// By the CPL: user-mode if CPL = 3.
    Current,
    /// An implicit supervisor-mode access: descriptor tables, TSS.
    Supervisor,
    /// A user-mode shadow-stack access, whatever the CPL is.
    UserShadowStack,
    /// A supervisor-mode shadow-stack access, whatever the CPL is.
    SupervisorShadowStack,
}

impl Privilege {
    /// Returns the shadow-stack accesses of a privilege level.
    pub(crate) const fn shadow_stack(level: u8) -> Self {
        if level == 3 {
            Self::UserShadowStack
        } else {
            Self::SupervisorShadowStack
        }
    }

    /// Whether accesses are made to shadow stacks.
    pub(crate) const fn is_shadow_stack(self) -> bool {
        matches!(self, Self::UserShadowStack | Self::SupervisorShadowStack)
    }
}
