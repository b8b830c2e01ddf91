//! Floating-point arithmetic of SSE, SSE2 and SSE3.
//!
//! SDM Vol. 1, "SSE and SSE2 SIMD Floating-Point Exceptions". The host executes the operation
//! under the guest's MXCSR with all exceptions masked; what it flags decides whether #XM comes
//! before the result is written. RCPPS and its kin are missing: their approximations differ
//! between processors, and the same guest shall compute the same everywhere.
#![expect(
    unsafe_code,
    reason = "the host's SIMD unit computes, under a given MXCSR"
)]

use core::arch::asm;

use iced_x86::Code;
use vmx_model::arch::{Cr4, Rflags};
use vmx_model::event::Exception;

use super::{immediate, join};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// Bits of MXCSR.
mod mxcsr {
    /// All exception flags.
    pub(super) const FLAGS: u32 = 0x3f;
    /// Invalid operation, denormal, division by zero: found before anything is computed.
    pub(super) const BEFORE_COMPUTATION: u32 = 7;
    pub(super) const UE: u32 = 1 << 4;
    pub(super) const MASK_SHIFT: u32 = 7;
    pub(super) const MASKS: u32 = FLAGS << MASK_SHIFT;
    pub(super) const UM: u32 = UE << MASK_SHIFT;
    pub(super) const FTZ: u32 = 1 << 15;
}

/// The lanes of a result that may underflow.
#[derive(Clone, Copy)]
enum Rounded {
    /// None: the operation does not round to a floating-point number.
    Never,
    /// So many of single precision.
    Single(u32),
    /// So many of double precision.
    Double(u32),
}

impl Rounded {
    /// Whether a lane of `value` is denormal.
    fn has_denormal(self, value: u128) -> bool {
        let (count, bits, fraction) = match self {
            Self::Never => return false,
            Self::Single(count) => (count, 32, 23),
            Self::Double(count) => (count, 64, 52),
        };
        let magnitudes = (0..count).map(|n| value >> (n * bits) & ((1 << (bits - 1)) - 1));
        magnitudes.into_iter().any(|m| m != 0 && m >> fraction == 0)
    }
}

/// Executes an instruction of two XMM registers (and an immediate) on the host.
macro_rules! on_host {
    ($name:literal $(, $immediate:literal)?) => {
        |to: u128, from: u128, mxcsr: &mut u32| -> u128 {
            let (mut own, mut to, from) = (0_u32, to, from);
            // SAFETY: works on the locals alone; MXCSR is put back, and no exception is unmasked.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]", "movups {y}, [{from}]",
                    concat!($name, " {x}, {y}" $(, ", ", $immediate)?),
                    "movups [{to}], {x}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) core::ptr::from_mut(mxcsr),
                    to = in(reg) &raw mut to, from = in(reg) &raw const from,
                    x = out(xmm_reg) _, y = out(xmm_reg) _,
                    options(nostack),
                );
            }
            to
        }
    };
}

/// Executes a conversion between operand `$to` and `$from`, one a general-purpose register.
macro_rules! convert_on_host {
    (to_integer $name:literal $r:literal) => {
        |from: u128, mxcsr: &mut u32| -> u64 {
            let (mut own, mut result) = (0_u32, 0_u64);
            // SAFETY: as in `on_host`.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {y}, [{from}]",
                    concat!($name, " {r", $r, "}, {y}"),
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) core::ptr::from_mut(mxcsr),
                    from = in(reg) &raw const from,
                    r = inout(reg) result, y = out(xmm_reg) _,
                    options(nostack),
                );
            }
            result
        }
    };
    (from_integer $name:literal $r:literal) => {
        |to: u128, from: u64, mxcsr: &mut u32| -> u128 {
            let (mut own, mut to) = (0_u32, to);
            // SAFETY: as in `on_host`.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]",
                    concat!($name, " {x}, {r", $r, "}"),
                    "movups [{to}], {x}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) core::ptr::from_mut(mxcsr),
                    to = in(reg) &raw mut to,
                    r = in(reg) from, x = out(xmm_reg) _,
                    options(nostack),
                );
            }
            to
        }
    };
}

/// Executes a comparison on the host: the flags that it sets.
macro_rules! compare_on_host {
    ($name:literal) => {
        |to: u128, from: u128, mxcsr: &mut u32| -> u64 {
            let (mut own, mut flags) = (0_u32, 0_u64);
            // SAFETY: as in `on_host`; the stack is used and left as it was.
            unsafe {
                asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]", "movups {y}, [{from}]",
                    concat!($name, " {x}, {y}"),
                    "pushfq", "pop {flags}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) core::ptr::from_mut(mxcsr),
                    to = in(reg) &raw const to, from = in(reg) &raw const from,
                    flags = inout(reg) flags,
                    x = out(xmm_reg) _, y = out(xmm_reg) _,
                );
            }
            flags
        }
    };
}

/// A handler: the host's instruction `$name` on operands 0 and 1, of `$bytes` bytes in memory.
macro_rules! two {
    ($name:literal, $bytes:literal, $rounded:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_sse()?;
            let from = cpu.read_lanes::<$bytes>(insn, 1)?;
            let to = join(cpu.destination(insn));
            let value = cpu.compute($rounded, |mxcsr| (on_host!($name))(to, from, mxcsr))?;
            cpu.write_lanes(insn, value)
        }
        handler as Plain
    }};
}

/// A handler: a comparison by the predicate in the immediate.
macro_rules! predicate {
    ($name:literal, $bytes:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            const BY_PREDICATE: [fn(u128, u128, &mut u32) -> u128; 8] = [
                on_host!($name, "0"),
                on_host!($name, "1"),
                on_host!($name, "2"),
                on_host!($name, "3"),
                on_host!($name, "4"),
                on_host!($name, "5"),
                on_host!($name, "6"),
                on_host!($name, "7"),
            ];
            cpu.check_sse()?;
            let from = cpu.read_lanes::<$bytes>(insn, 1)?;
            let to = join(cpu.destination(insn));
            let compare = BY_PREDICATE[usize::from(immediate(insn, 2) & 7)];
            let value = cpu.compute(Rounded::Never, |mxcsr| compare(to, from, mxcsr))?;
            cpu.write_lanes(insn, value)
        }
        handler as Plain
    }};
}

/// A handler: a comparison that sets ZF, PF and CF and clears the other status flags.
macro_rules! ordered {
    ($name:literal, $bytes:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_sse()?;
            let from = cpu.read_lanes::<$bytes>(insn, 1)?;
            let to = join(cpu.destination(insn));
            let flags = cpu.compute(Rounded::Never, |m| (compare_on_host!($name))(to, from, m))?;
            cpu.set_status(Rflags::STATUS, Rflags::from_bits_retain(flags));
            Ok(())
        }
        handler as Plain
    }};
}

/// A handler: a conversion to a general-purpose register.
macro_rules! to_integer {
    ($name:literal, $bytes:literal, $t:ty, $r:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_sse()?;
            let from = cpu.read_lanes::<$bytes>(insn, 1)?;
            let convert = convert_on_host!(to_integer $name $r);
            let value = cpu.compute(Rounded::Never, |mxcsr| convert(from, mxcsr))?;
            cpu.write(insn, 0, value as $t)
        }
        handler as Plain
    }};
}

/// A handler: a conversion from a general-purpose register.
macro_rules! from_integer {
    ($name:literal, $t:ty, $r:literal) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.check_sse()?;
            let from = u64::from(cpu.read::<$t>(insn, 1)?);
            let to = join(cpu.destination(insn));
            let convert = convert_on_host!(from_integer $name $r);
            let value = cpu.compute(Rounded::Never, |mxcsr| convert(to, from, mxcsr))?;
            cpu.write_lanes(insn, value)
        }
        handler as Plain
    }};
}

/// Returns who executes an instruction of this file.
pub(super) fn lookup(code: Code) -> Option<Row> {
    let tables = [arithmetic, comparison, conversion];
    tables.iter().find_map(|table| table(code)).and_then(plain)
}

#[rustfmt::skip]
fn arithmetic(code: Code) -> Option<Plain> {
    use Code as C;
    use Rounded::{Double, Never, Single};
    Some(match code {
        C::Addps_xmm_xmmm128 => two!("addps", 16, Single(4)),
        C::Addpd_xmm_xmmm128 => two!("addpd", 16, Double(2)),
        C::Addss_xmm_xmmm32 => two!("addss", 4, Single(1)),
        C::Addsd_xmm_xmmm64 => two!("addsd", 8, Double(1)),
        C::Subps_xmm_xmmm128 => two!("subps", 16, Single(4)),
        C::Subpd_xmm_xmmm128 => two!("subpd", 16, Double(2)),
        C::Subss_xmm_xmmm32 => two!("subss", 4, Single(1)),
        C::Subsd_xmm_xmmm64 => two!("subsd", 8, Double(1)),
        C::Mulps_xmm_xmmm128 => two!("mulps", 16, Single(4)),
        C::Mulpd_xmm_xmmm128 => two!("mulpd", 16, Double(2)),
        C::Mulss_xmm_xmmm32 => two!("mulss", 4, Single(1)),
        C::Mulsd_xmm_xmmm64 => two!("mulsd", 8, Double(1)),
        C::Divps_xmm_xmmm128 => two!("divps", 16, Single(4)),
        C::Divpd_xmm_xmmm128 => two!("divpd", 16, Double(2)),
        C::Divss_xmm_xmmm32 => two!("divss", 4, Single(1)),
        C::Divsd_xmm_xmmm64 => two!("divsd", 8, Double(1)),
        C::Addsubps_xmm_xmmm128 => two!("addsubps", 16, Single(4)),
        C::Addsubpd_xmm_xmmm128 => two!("addsubpd", 16, Double(2)),
        C::Haddps_xmm_xmmm128 => two!("haddps", 16, Single(4)),
        C::Haddpd_xmm_xmmm128 => two!("haddpd", 16, Double(2)),
        C::Hsubps_xmm_xmmm128 => two!("hsubps", 16, Single(4)),
        C::Hsubpd_xmm_xmmm128 => two!("hsubpd", 16, Double(2)),
        C::Sqrtps_xmm_xmmm128 => two!("sqrtps", 16, Never),
        C::Sqrtpd_xmm_xmmm128 => two!("sqrtpd", 16, Never),
        C::Sqrtss_xmm_xmmm32 => two!("sqrtss", 4, Never),
        C::Sqrtsd_xmm_xmmm64 => two!("sqrtsd", 8, Never),
        C::Minps_xmm_xmmm128 => two!("minps", 16, Never),
        C::Minpd_xmm_xmmm128 => two!("minpd", 16, Never),
        C::Minss_xmm_xmmm32 => two!("minss", 4, Never),
        C::Minsd_xmm_xmmm64 => two!("minsd", 8, Never),
        C::Maxps_xmm_xmmm128 => two!("maxps", 16, Never),
        C::Maxpd_xmm_xmmm128 => two!("maxpd", 16, Never),
        C::Maxss_xmm_xmmm32 => two!("maxss", 4, Never),
        C::Maxsd_xmm_xmmm64 => two!("maxsd", 8, Never),
        _ => return None,
    })
}

#[rustfmt::skip]
fn comparison(code: Code) -> Option<Plain> {
    use Code as C;
    Some(match code {
        C::Cmpps_xmm_xmmm128_imm8 => predicate!("cmpps", 16),
        C::Cmppd_xmm_xmmm128_imm8 => predicate!("cmppd", 16),
        C::Cmpss_xmm_xmmm32_imm8 => predicate!("cmpss", 4),
        C::Cmpsd_xmm_xmmm64_imm8 => predicate!("cmpsd", 8),
        C::Comiss_xmm_xmmm32 => ordered!("comiss", 4),
        C::Comisd_xmm_xmmm64 => ordered!("comisd", 8),
        C::Ucomiss_xmm_xmmm32 => ordered!("ucomiss", 4),
        C::Ucomisd_xmm_xmmm64 => ordered!("ucomisd", 8),
        _ => return None,
    })
}

#[rustfmt::skip]
fn conversion(code: Code) -> Option<Plain> {
    use Code as C;
    use Rounded::{Never, Single};
    Some(match code {
        C::Cvtps2pd_xmm_xmmm64 => two!("cvtps2pd", 8, Never),
        C::Cvtpd2ps_xmm_xmmm128 => two!("cvtpd2ps", 16, Single(2)),
        C::Cvtss2sd_xmm_xmmm32 => two!("cvtss2sd", 4, Never),
        C::Cvtsd2ss_xmm_xmmm64 => two!("cvtsd2ss", 8, Single(1)),
        C::Cvtdq2ps_xmm_xmmm128 => two!("cvtdq2ps", 16, Never),
        C::Cvtdq2pd_xmm_xmmm64 => two!("cvtdq2pd", 8, Never),
        C::Cvtps2dq_xmm_xmmm128 => two!("cvtps2dq", 16, Never),
        C::Cvttps2dq_xmm_xmmm128 => two!("cvttps2dq", 16, Never),
        C::Cvtpd2dq_xmm_xmmm128 => two!("cvtpd2dq", 16, Never),
        C::Cvttpd2dq_xmm_xmmm128 => two!("cvttpd2dq", 16, Never),
        C::Cvtsi2ss_xmm_rm32 => from_integer!("cvtsi2ss", u32, ":e"),
        C::Cvtsi2ss_xmm_rm64 => from_integer!("cvtsi2ss", u64, ":r"),
        C::Cvtsi2sd_xmm_rm32 => from_integer!("cvtsi2sd", u32, ":e"),
        C::Cvtsi2sd_xmm_rm64 => from_integer!("cvtsi2sd", u64, ":r"),
        C::Cvtss2si_r32_xmmm32 => to_integer!("cvtss2si", 4, u32, ":e"),
        C::Cvtss2si_r64_xmmm32 => to_integer!("cvtss2si", 4, u64, ":r"),
        C::Cvttss2si_r32_xmmm32 => to_integer!("cvttss2si", 4, u32, ":e"),
        C::Cvttss2si_r64_xmmm32 => to_integer!("cvttss2si", 4, u64, ":r"),
        C::Cvtsd2si_r32_xmmm64 => to_integer!("cvtsd2si", 8, u32, ":e"),
        C::Cvtsd2si_r64_xmmm64 => to_integer!("cvtsd2si", 8, u64, ":r"),
        C::Cvttsd2si_r32_xmmm64 => to_integer!("cvttsd2si", 8, u32, ":e"),
        C::Cvttsd2si_r64_xmmm64 => to_integer!("cvttsd2si", 8, u64, ":r"),
        _ => return None,
    })
}

impl Cpu {
    /// Computes by `f` under the guest's MXCSR; exceptions are flagged, and #XM is raised where one
    /// is unmasked (#UD without CR4.OSXMMEXCPT).
    ///
    /// While underflow is unmasked, flush-to-zero has no effect and a tiny result counts even if it
    /// is exact (SDM Vol. 1, "Numeric Underflow Exception (#U)").
    fn compute<T: Copy + Into<Lanes>>(
        &mut self,
        rounded: Rounded,
        f: impl FnOnce(&mut u32) -> T,
    ) -> Exec<T> {
        let before = self.fpu.mxcsr;
        let is_underflow_masked = before & mxcsr::UM != 0;
        let ignored = if is_underflow_masked { 0 } else { mxcsr::FTZ };
        let mut after = before & !mxcsr::FLAGS & !ignored | mxcsr::MASKS;
        let value = f(&mut after);
        let mut raised = after & mxcsr::FLAGS;
        if !is_underflow_masked && rounded.has_denormal(value.into().0) {
            raised |= mxcsr::UE;
        }
        let unmasked = raised & !(before >> mxcsr::MASK_SHIFT);
        if unmasked & mxcsr::BEFORE_COMPUTATION != 0 {
            raised &= mxcsr::BEFORE_COMPUTATION;
        }
        self.fpu.mxcsr = before | raised;
        if unmasked == 0 {
            return Ok(value);
        }
        let is_enabled = self.state.cr4.contains(Cr4::OSXMMEXCPT);
        Err(if is_enabled {
            Exception::plain(19)
        } else {
            Exception::UD
        }
        .into())
    }
}

/// The bits of a result.
struct Lanes(u128);

impl From<u128> for Lanes {
    fn from(value: u128) -> Self {
        Self(value)
    }
}

impl From<u64> for Lanes {
    fn from(value: u64) -> Self {
        Self(u128::from(value))
    }
}
