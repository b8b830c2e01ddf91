//! Moves, extensions, LEA, exchanges, SETcc, CMOVcc: the hot forms; and the micro-op that makes a
//! linear address where segmentation has something to say.

use super::alu::{BySize, addresses, sizes};
use super::operand::{FLAT32, SPARE, address, get, imm, set};
use super::{Handler, Uop, bail, host, next};
use crate::Cpu;
use crate::mem::tlb::{read_host, write_host};
use crate::width::Width;

/// MOV register, register.
pub(crate) const MOV_RR: BySize = sizes!(mov_rr);
/// MOV register, immediate (in `disp`).
pub(crate) const MOV_RI: BySize = sizes!(mov_ri);
/// MOV register, memory.
pub(crate) const MOV_RM: [BySize; 3] = addresses!(mov_rm);
/// MOV memory, register.
pub(crate) const MOV_MR: [BySize; 3] = addresses!(mov_mr);
/// MOV memory, immediate.
pub(crate) const MOV_MI: [BySize; 3] = addresses!(mov_mi);
/// XCHG of registers.
pub(crate) const XCHG_RR: BySize = sizes!(xchg_rr);

unsafe fn mov_rr<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        set(cpu, (*op).dst, get::<W>(cpu, (*op).src));
        next!(cpu, op.add(1))
    }
}

unsafe fn mov_ri<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        set(cpu, (*op).dst, W::from_u64((*op).disp));
        next!(cpu, op.add(1))
    }
}

unsafe fn mov_rm<W: Width, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), W, read);
        set(cpu, (*op).dst, read_host::<W>(at));
        next!(cpu, op.add(1))
    }
}

unsafe fn mov_mr<W: Width, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), W, write);
        write_host(at, get::<W>(cpu, (*op).src));
        next!(cpu, op.add(1))
    }
}

unsafe fn mov_mi<W: Width, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), W, write);
        write_host(at, imm::<W>(op));
        next!(cpu, op.add(1))
    }
}

unsafe fn xchg_rr<W: Width>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (a, b) = (get::<W>(cpu, (*op).dst), get::<W>(cpu, (*op).src));
        set(cpu, (*op).dst, b);
        set(cpu, (*op).src, a);
        next!(cpu, op.add(1))
    }
}

/// Handlers by source size (8, 16, 32 bits) and destination size (16, 32, 64 bits).
pub(crate) type Extensions = [[Handler; 3]; 3];

/// One handler for each pair of sizes; those that no instruction has are never selected.
macro_rules! extensions {
    ($f:ident $(, $x:tt)*) => {
        [
            [$f::<u8, u16 $(, $x)*>, $f::<u8, u32 $(, $x)*>, $f::<u8, u64 $(, $x)*>],
            [$f::<u16, u16 $(, $x)*>, $f::<u16, u32 $(, $x)*>, $f::<u16, u64 $(, $x)*>],
            [$f::<u32, u32 $(, $x)*>, $f::<u32, u32 $(, $x)*>, $f::<u32, u64 $(, $x)*>],
        ]
    };
}

/// MOVZX and (second) MOVSX, MOVSXD of a register.
pub(crate) const EXTEND_R: [Extensions; 2] =
    [extensions!(extend_r, false), extensions!(extend_r, true)];
/// MOVZX and (second) MOVSX, MOVSXD of memory.
pub(crate) const EXTEND_M: [[Extensions; 3]; 2] = [
    [
        extensions!(extend_m, false, 0),
        extensions!(extend_m, false, 1),
        extensions!(extend_m, false, 2),
    ],
    [
        extensions!(extend_m, true, 0),
        extensions!(extend_m, true, 1),
        extensions!(extend_m, true, 2),
    ],
];

#[inline(always)]
fn extend<S: Width, D: Width>(value: S, is_signed: bool) -> D {
    D::from_u64(if is_signed {
        value.to_i64() as u64
    } else {
        value.to_u64()
    })
}

unsafe fn extend_r<S: Width, D: Width, const SIGNED: bool>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let value = extend::<S, D>(get(cpu, (*op).src), SIGNED);
        set(cpu, (*op).dst, value);
        next!(cpu, op.add(1))
    }
}

unsafe fn extend_m<S: Width, D: Width, const SIGNED: bool, const A: u8>(
    cpu: *mut Cpu,
    op: *const Uop,
) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let at = host!(cpu, op, address::<A>(cpu, op), S, read);
        set(cpu, (*op).dst, extend::<S, D>(read_host(at), SIGNED));
        next!(cpu, op.add(1))
    }
}

/// LEA with an address of this kind, by operand size.
pub(crate) const LEA: [BySize; 3] = addresses!(lea);

unsafe fn lea<W: Width, const A: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        set(cpu, (*op).dst, W::from_u64(address::<A>(cpu, op)));
        next!(cpu, op.add(1))
    }
}

/// One handler for each condition code.
macro_rules! conditions {
    ($f:ident $(, $x:tt)*) => {
        [
            $f::<$($x,)* 0>, $f::<$($x,)* 1>, $f::<$($x,)* 2>, $f::<$($x,)* 3>,
            $f::<$($x,)* 4>, $f::<$($x,)* 5>, $f::<$($x,)* 6>, $f::<$($x,)* 7>,
            $f::<$($x,)* 8>, $f::<$($x,)* 9>, $f::<$($x,)* 10>, $f::<$($x,)* 11>,
            $f::<$($x,)* 12>, $f::<$($x,)* 13>, $f::<$($x,)* 14>, $f::<$($x,)* 15>,
        ]
    };
}
pub(crate) use conditions;

/// SETcc register.
pub(crate) const SETCC: [Handler; 16] = conditions!(setcc);
/// CMOVcc register, register: 32 and 64 bits.
pub(crate) const CMOVCC: [[Handler; 16]; 2] = [conditions!(cmovcc, u32), conditions!(cmovcc, u64)];

unsafe fn setcc<const CC: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let value = u8::from((*cpu).flags.holds::<CC>());
        set(cpu, (*op).dst, value);
        next!(cpu, op.add(1))
    }
}

unsafe fn cmovcc<W: Width, const CC: u8>(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let (old, new) = (get::<W>(cpu, (*op).dst), get::<W>(cpu, (*op).src));
        let holds = (*cpu).flags.holds::<CC>();
        set(cpu, (*op).dst, if holds { new } else { old });
        next!(cpu, op.add(1))
    }
}

/// Moves the linear address of an operand in FS or GS, 64-bit mode, to the spare register.
/// `detail` is the segment's number.
pub(crate) unsafe fn segment_64(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let offset = address::<1>(cpu, op);
        let segments = &raw const (*cpu).state.segments;
        let base = (*segments)[usize::from((*op).detail & 7)].base;
        set(cpu, SPARE, base.wrapping_add(offset));
        next!(cpu, op.add(1))
    }
}

/// What `Uop::detail` of [`segmented`] says, besides the segment's number in bits 2:0.
pub(crate) mod detail {
    /// The access writes.
    pub(crate) const WRITE: u16 = 1 << 3;
    /// The address has 16 bits.
    pub(crate) const ADDRESS_16: u16 = 1 << 4;
    /// From this bit on: size of the access in bytes, minus 1.
    pub(crate) const LAST_SHIFT: u32 = 8;
}

/// Moves the linear address of an operand outside 64-bit mode to the spare register, if its
/// segment is an expand-up data segment that holds it.
pub(crate) unsafe fn segmented(cpu: *mut Cpu, op: *const Uop) -> *const Uop {
    // SAFETY: `uop`, "Safety".
    unsafe {
        let detail = (*op).detail;
        let mut offset = address::<FLAT32>(cpu, op);
        if detail & detail::ADDRESS_16 != 0 {
            offset &= 0xffff;
        }
        let segments = &raw const (*cpu).state.segments;
        let segment = &(*segments)[usize::from(detail & 7)];
        let last = offset + u64::from(detail >> detail::LAST_SHIFT);
        if !is_simple(segment.access.0, detail & detail::WRITE != 0)
            || last > u64::from(segment.limit)
        {
            bail!(cpu, op);
        }
        let linear = segment.base.wrapping_add(offset) & 0xffff_ffff;
        set(cpu, SPARE, linear);
        next!(cpu, op.add(1))
    }
}

/// Whether these rights are those of a usable expand-up data segment that may be written (read).
#[inline(always)]
pub(crate) const fn is_simple(rights: u32, is_write: bool) -> bool {
    if is_write {
        rights & 0x1_001e == 0x12
    } else {
        rights & 0x1_001c == 0x10
    }
}
