//! Operating modes (SDM Vol. 3A, "Modes of Operation").

use vmx_model::arch::{ArchState, Cr0, Efer, Rflags, SegmentRegister};

/// The operating mode that decides how an instruction is decoded and executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Real-address mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected mode outside IA-32e mode.
    Protected,
    /// Compatibility mode: IA-32e mode with CS.L = 0.
    Compatibility,
    /// 64-bit mode.
    Long,
}

impl Mode {
    /// Returns the mode of a processor in `state`.
    #[must_use]
    pub fn of(state: &ArchState) -> Self {
        if !state.cr0.contains(Cr0::PE) {
            Self::Real
        } else if state.efer.contains(Efer::LMA) {
            let long = state.segment(SegmentRegister::Cs).access.is_long();
            if long {
                Self::Long
            } else {
                Self::Compatibility
            }
        } else if state.rflags.contains(Rflags::VM) {
            Self::Virtual8086
        } else {
            Self::Protected
        }
    }

    /// Whether segments are loaded by shifting selectors: real-address and virtual-8086 mode.
    #[must_use]
    pub const fn is_real_style(self) -> bool {
        matches!(self, Self::Real | Self::Virtual8086)
    }

    /// Whether instructions with a VEX or EVEX prefix exist; elsewhere they are #UD (SDM Vol. 1,
    /// "Operating Modes" of "Programming with AVX"; Vol. 2, "Exception Type" tables).
    #[must_use]
    pub const fn has_vex(self) -> bool {
        !self.is_real_style()
    }

    /// Whether EFER.LMA is 1: compatibility or 64-bit mode.
    #[must_use]
    pub const fn is_ia32e(self) -> bool {
        matches!(self, Self::Compatibility | Self::Long)
    }
}

#[cfg(test)]
mod tests {
    use vmx_model::arch::Rflags;

    use crate::Cpu;
    use crate::test_cpu::{UD, execute, long_mode, protected_mode, real_mode};

    #[test]
    fn a_vex_prefix_is_undefined_in_real_address_and_virtual_8086_mode() {
        // ANDN EAX, ECX, EDX: no state of AVX takes part.
        let andn = [0xc4, 0xe2, 0x70, 0xf2, 0xc2];
        let virtual_8086 = || {
            let mut cpu = protected_mode();
            cpu.state.rflags |= Rflags::VM;
            cpu
        };
        let rows: [(fn() -> Cpu, _); 4] = [
            (long_mode, Ok(())),
            (protected_mode, Ok(())),
            (real_mode, UD),
            (virtual_8086, UD),
        ];
        for (mode, end) in rows {
            let mut cpu = mode();
            (cpu.gpr[1], cpu.gpr[2]) = (0x0f, 0x3c);
            assert_eq!(execute(&mut cpu, &andn), end);
            assert_eq!(cpu.gpr[0], if end == UD { 0 } else { 0x30 });
        }
    }
}
