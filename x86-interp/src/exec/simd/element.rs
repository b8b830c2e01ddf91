//! Functions of single elements that AVX-512 adds.
//!
//! SDM Vol. 1, "Intel AVX-512 instructions": arithmetic on quadwords, shifts and rotates by a count
//! for each element, leading zeros, conflicts, population counts, double shifts, VPMULTISHIFTQB and
//! VDBPSADBW.

use iced_x86::{Code, EncodingKind, Mnemonic};

use super::integer::{selector, shift_all};
use super::lanes::{Lane, build, get, map, zip};
use super::vector::{Elements, Faults, collect, element};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// A handler: each element becomes a function of those of both sources.
macro_rules! two {
    ($t:ty, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let bytes = <$t>::BITS as usize / 8;
            let f: fn($t, $t) -> $t = $f;
            cpu.lane_by_lane(insn, bytes, Faults::Suppressed, |a, b, _| zip(a, b, f))
        }
        handler as Plain
    }};
}

/// A handler: each element becomes a function of that of the last source.
macro_rules! one {
    ($t:ty, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let bytes = <$t>::BITS as usize / 8;
            let f: fn($t) -> $t = $f;
            cpu.lane_by_lane(insn, bytes, Faults::Suppressed, |_, b, _| map(b, f))
        }
        handler as Plain
    }};
}

/// A handler: each element becomes a function of those of both sources and the immediate; or of
/// that of the only source, which is `b`.
macro_rules! by_immediate {
    ($t:ty, $faults:ident, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            let bytes = <$t>::BITS as usize / 8;
            let by = u32::from(insn.immediate_byte());
            let f: fn($t, $t, u32) -> $t = $f;
            cpu.lane_by_lane(insn, bytes, Faults::$faults, |a, b, _| {
                zip(a, b, |x, y| f(x, y, by))
            })
        }
        handler as Plain
    }};
}

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    if code.encoding() != EncodingKind::EVEX {
        return None;
    }
    let mnemonic = code.mnemonic();
    arithmetic(mnemonic)
        .or_else(|| shifts(mnemonic))
        .and_then(plain)
}

#[rustfmt::skip]
fn arithmetic(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vpabsq => one!(i64, i64::wrapping_abs),
        M::Vpmaxsq => two!(i64, |x, y| x.max(y)),
        M::Vpmaxuq => two!(u64, |x, y| x.max(y)),
        M::Vpminsq => two!(i64, |x, y| x.min(y)),
        M::Vpminuq => two!(u64, |x, y| x.min(y)),
        M::Vpmullq => two!(u64, u64::wrapping_mul),
        M::Vplzcntd => one!(u32, u32::leading_zeros),
        M::Vplzcntq => one!(u64, |x| u64::from(x.leading_zeros())),
        M::Vpopcntb => one!(u8, |x| x.count_ones() as u8),
        M::Vpopcntw => one!(u16, |x| x.count_ones() as u16),
        M::Vpopcntd => one!(u32, u32::count_ones),
        M::Vpopcntq => one!(u64, |x| u64::from(x.count_ones())),
        M::Vpconflictd => conflict::<4>,
        M::Vpconflictq => conflict::<8>,
        M::Vdbpsadbw => dbpsadbw,
        _ => return None,
    })
}

#[rustfmt::skip]
fn shifts(mnemonic: Mnemonic) -> Option<Plain> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vpsraq => |cpu, insn| shift_all(cpu, insn, 8, |a, c| map(a, |x: i64| x >> c.min(63))),
        M::Vpsravw => two!(i16, |x, c| x >> c.cast_unsigned().min(15)),
        M::Vpsravq => two!(i64, |x, c| x >> c.cast_unsigned().min(63)),
        M::Vpsllvw => two!(u16, |x, c| x.checked_shl(u32::from(c)).unwrap_or(0)),
        M::Vpsrlvw => two!(u16, |x, c| x.checked_shr(u32::from(c)).unwrap_or(0)),
        M::Vprold => by_immediate!(u32, Suppressed, |_, x, c| x.rotate_left(c % 32)),
        M::Vprolq => by_immediate!(u64, Suppressed, |_, x, c| x.rotate_left(c % 64)),
        M::Vprord => by_immediate!(u32, Suppressed, |_, x, c| x.rotate_right(c % 32)),
        M::Vprorq => by_immediate!(u64, Suppressed, |_, x, c| x.rotate_right(c % 64)),
        M::Vprolvd => two!(u32, |x, c| x.rotate_left(c % 32)),
        M::Vprolvq => two!(u64, |x, c| x.rotate_left(c as u32 % 64)),
        M::Vprorvd => two!(u32, |x, c| x.rotate_right(c % 32)),
        M::Vprorvq => two!(u64, |x, c| x.rotate_right(c as u32 % 64)),
        M::Vpshldw => by_immediate!(u16, Suppressed, shift_left_double),
        M::Vpshldd => by_immediate!(u32, Suppressed, shift_left_double),
        M::Vpshldq => by_immediate!(u64, Suppressed, shift_left_double),
        M::Vpshrdw => by_immediate!(u16, Suppressed, shift_right_double),
        M::Vpshrdd => by_immediate!(u32, Suppressed, shift_right_double),
        M::Vpshrdq => by_immediate!(u64, Suppressed, shift_right_double),
        M::Vpmultishiftqb => multishift,
        _ => return None,
    })
}

/// The upper half of `high`:`low` shifted left by `count` modulo the width.
pub(super) fn shift_left_double<L: Lane>(high: L, low: L, count: u32) -> L {
    let both = high.give() << L::BITS | low.give();
    L::take(both << (count % L::BITS) >> L::BITS)
}

/// The lower half of `high`:`low` shifted right by `count` modulo the width.
pub(super) fn shift_right_double<L: Lane>(low: L, high: L, count: u32) -> L {
    let both = high.give() << L::BITS | low.give();
    L::take(both >> (count % L::BITS))
}

/// VPMULTISHIFTQB: a byte of the result is eight bits of the quadword of `b`, from the bit on that
/// the byte of `a` numbers.
fn multishift(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.lane_by_lane(insn, 1, Faults::Whole, |a, b, _| {
        build(16, |n| {
            let from = u32::from(get::<u8>(a, n) & 63);
            get::<u64>(b, n / 8).rotate_right(from) as u8
        })
    })
}

/// VPCONFLICT: an element becomes the bits of those before it that are equal to it.
fn conflict<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, BYTES);
    let source = cpu.read_vector(insn, 1, elements, Faults::Whole)?;
    let of = |n| element(&source, n, BYTES);
    let value = collect(elements, |n| {
        (0..n).fold(0, |bits, k| bits | u64::from(of(k) == of(n)) << k)
    });
    cpu.write_vector(insn, value, elements)
}

/// VDBPSADBW: groups of four bytes of `a` against those of the doublewords of `b` that the
/// immediate selects.
fn dbpsadbw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let by = insn.immediate_byte();
    cpu.lane_by_lane(insn, 2, Faults::Whole, |a, b, _| {
        let shuffled = build(4, |n| get::<u32>(b, selector(by, n)));
        build(8, |n| {
            let half = n / 4 * 8;
            let (first, second) = (half + n % 4 / 2 * 4, half + n % 4);
            let difference = |k| get::<u8>(a, first + k).abs_diff(get::<u8>(shuffled, second + k));
            (0..4).map(|k| u16::from(difference(k))).sum::<u16>()
        })
    })
}
