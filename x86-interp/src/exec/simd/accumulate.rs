//! Functions of three vectors, of which the destination is one.
//!
//! SDM Vol. 1, "Intel AVX-512 instructions": VPTERNLOG; VPMADD52 (IFMA); VPDPBUSD, VPDPWSSD (VNNI);
//! VPSHLDV, VPSHRDV (VBMI2).

use iced_x86::{Code, EncodingKind, Mnemonic};

use super::element::{shift_left_double, shift_right_double};
use super::lanes::{Lane, build, get};
use super::vector::Faults;
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// A handler: each element becomes a function of itself and those of both sources.
macro_rules! three {
    ($t:ty, $f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            accumulate(
                cpu,
                insn,
                |old, a, b| {
                    let f: fn($t, $t, $t) -> $t = $f;
                    build(128 / <$t>::BITS, |n| f(get(old, n), get(a, n), get(b, n)))
                },
                <$t>::BITS as usize / 8,
            )
        }
        handler as Plain
    }};
}

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if code.encoding() != EncodingKind::EVEX {
        return None;
    }
    plain(match code.mnemonic() {
        M::Vpternlogd => ternary::<4>,
        M::Vpternlogq => ternary::<8>,
        M::Vpmadd52luq => three!(u64, |old, a, b| old.wrapping_add(product_52(a, b) as u64 & LOW_52)),
        M::Vpmadd52huq => three!(u64, |old, a, b| old.wrapping_add((product_52(a, b) >> 52) as u64)),
        M::Vpdpbusd => three!(i32, |old, a, b| (i64::from(old) + sum_of_bytes(a, b)) as i32),
        M::Vpdpbusds => three!(i32, |old, a, b| saturate(i64::from(old) + sum_of_bytes(a, b))),
        M::Vpdpwssd => three!(i32, |old, a, b| (i64::from(old) + sum_of_words(a, b)) as i32),
        M::Vpdpwssds => three!(i32, |old, a, b| saturate(i64::from(old) + sum_of_words(a, b))),
        M::Vpshldvw => three!(u16, |old, a, b| shift_left_double(old, a, u32::from(b))),
        M::Vpshldvd => three!(u32, shift_left_double),
        M::Vpshldvq => three!(u64, |old, a, b| shift_left_double(old, a, b as u32)),
        M::Vpshrdvw => three!(u16, |old, a, b| shift_right_double(old, a, u32::from(b))),
        M::Vpshrdvd => three!(u32, shift_right_double),
        M::Vpshrdvq => three!(u64, |old, a, b| shift_right_double(old, a, b as u32)),
        _ => return None,
    })
}

/// Operand 0 becomes, lane by lane, a function of itself and both sources.
fn accumulate(
    cpu: &mut Cpu,
    insn: &Insn,
    f: impl Fn(u128, u128, u128) -> u128,
    element_bytes: usize,
) -> Exec {
    let old = cpu.register_lanes(insn, 0);
    cpu.lane_by_lane(insn, element_bytes, Faults::Suppressed, |a, b, lane| {
        f(old[lane], a, b)
    })
}

/// VPTERNLOG: the immediate is the truth table, whose index has a bit of the destination, of the
/// first source and of the second one.
fn ternary<const BYTES: usize>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let table = insn.immediate_byte();
    let f = |old: u128, a: u128, b: u128| {
        let rows = (0..8).filter(|row| table >> row & 1 != 0);
        let term = |row: u8| {
            let [x, y, z] = [(old, 4), (a, 2), (b, 1)].map(|(bits, place)| match row & place {
                0 => !bits,
                _ => bits,
            });
            x & y & z
        };
        rows.fold(0, |all, row| all | term(row))
    };
    accumulate(cpu, insn, f, BYTES)
}

const LOW_52: u64 = (1 << 52) - 1;

/// The product of the low 52 bits of both.
fn product_52(a: u64, b: u64) -> u128 {
    u128::from(a & LOW_52) * u128::from(b & LOW_52)
}

/// The sum of the products of four unsigned bytes of `a` and signed ones of `b`.
fn sum_of_bytes(a: i32, b: i32) -> i64 {
    let (a, b) = (a.give(), b.give());
    let product = |n| i64::from(get::<u8>(a, n)) * i64::from(get::<i8>(b, n));
    (0..4).map(product).sum()
}

/// The sum of the products of two signed words.
fn sum_of_words(a: i32, b: i32) -> i64 {
    let (a, b) = (a.give(), b.give());
    let product = |n| i64::from(get::<i16>(a, n)) * i64::from(get::<i16>(b, n));
    (0..2).map(product).sum()
}

fn saturate(value: i64) -> i32 {
    value.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
}
