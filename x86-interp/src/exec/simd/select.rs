//! Choice by the kind of a number: minimum and maximum by magnitude or value (VRANGEPS), and a table of
//! responses to special values (VFIXUPIMMPS).
//!
//! SDM Vol. 2, "VRANGEPS", "VFIXUPIMMPS".

use iced_x86::{Code, Mnemonic};

use super::binary::{Class, Element, Env, Format, flag, in_software, under};
use super::under_mxcsr::Rounded;
use super::vector::{Elements, Faults, Value, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(super) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    if !is_vector_form(code) {
        return None;
    }
    plain(match code.mnemonic() {
        M::Vrangeps => in_software!(packed u32 Never, range),
        M::Vrangepd => in_software!(packed u64 Never, range),
        M::Vrangess => in_software!(scalar u32 Never, range),
        M::Vrangesd => in_software!(scalar u64 Never, range),
        M::Vfixupimmps => fix_packed::<u32> as Plain,
        M::Vfixupimmpd => fix_packed::<u64>,
        M::Vfixupimmss => fix_scalar::<u32>,
        M::Vfixupimmsd => fix_scalar::<u64>,
        _ => return None,
    })
}

/// VRANGEPS and its kin: bits 1:0 of the immediate say which of both, bits 3:2 with which sign.
fn range(format: Format, a: u64, b: u64, immediate: u8, env: &mut Env) -> u64 {
    let (x, y) = (format.unpack(a, env), format.unpack(b, env));
    let signaling = [x, y].into_iter().find(|n| n.is_signaling());
    if let Some(nan) = signaling {
        env.raise(flag::IE);
        return format.quiet(nan.bits);
    }
    let chosen = match (x.is_nan(), y.is_nan()) {
        (true, true) | (false, true) => x.bits,
        (true, false) => y.bits,
        (false, false) => {
            format.note_denormals(&[x, y], env);
            choose(format, x.bits, y.bits, immediate & 3)
        }
    };
    signed(format, chosen, x.bits, immediate)
}

/// The smaller (0), the larger (1), that of the smaller (2) or larger (3) magnitude; of equal
/// magnitudes the smaller or larger number. A minus zero is smaller than a plus zero.
fn choose(format: Format, a: u64, b: u64, which: u8) -> u64 {
    let minus = format.sign(true);
    let key = |bits: u64| {
        let magnitude = if which & 2 == 0 { 0 } else { bits & !minus };
        (magnitude, format.ordinal(bits), bits & minus == 0)
    };
    let is_less = key(a) <= key(b);
    match (which & 1 == 0) == is_less {
        true => a,
        false => b,
    }
}

/// Gives a number the sign of the first source, its own, none, or a minus.
fn signed(format: Format, chosen: u64, a: u64, immediate: u8) -> u64 {
    let sign = format.sign(true);
    let magnitude = chosen & !sign;
    match immediate >> 2 & 3 {
        0 => magnitude | a & sign,
        1 => chosen,
        2 => magnitude,
        _ => magnitude | sign,
    }
}

/// VFIXUPIMMPS and its kin, an element: `table` has four bits for each kind of number.
fn fix(format: Format, [to, a, table]: [u64; 3], immediate: u8, env: &mut Env) -> u64 {
    let number = format.unpack(a, env);
    let one = format.power(0);
    // The kind, and which bits of the immediate report it as a division by zero or as invalid.
    let (kind, by_zero, invalid) = match (number.class, number.is_negative) {
        (Class::QuietNan, _) => (0, 0, 0),
        (Class::SignalingNan, _) => (1, 0, 1 << 4),
        (Class::Zero, _) => (2, 1 << 0, 1 << 1),
        _ if number.bits == one => (3, 1 << 2, 1 << 3),
        (Class::Infinity, true) => (4, 0, 1 << 5),
        (Class::Infinity, false) => (5, 0, 1 << 7),
        (_, true) => (6, 0, 1 << 6),
        (_, false) => (7, 0, 0),
    };
    if immediate & by_zero != 0 {
        env.raise(flag::ZE);
    }
    if immediate & invalid != 0 {
        env.raise(flag::IE);
    }
    let minus = format.sign(true);
    match table >> (4 * kind) & 15 {
        0 => to,
        1 => number.bits,
        2 => format.quiet(format.infinity(false) | number.bits),
        3 => format.indefinite(),
        4 => format.infinity(true),
        5 => format.infinity(false),
        6 => format.infinity(number.is_negative),
        7 => minus,
        8 => 0,
        9 => minus | one,
        10 => one,
        11 => format.power(-1),
        12 => format.ninety(),
        13 => format.half_pi(),
        14 => format.largest(false),
        _ => format.largest(true),
    }
}

fn fix_packed<E: Element>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let elements = Elements::of(insn, E::BITS as usize / 8);
    let value = fix_elements::<E>(cpu, insn, elements)?;
    cpu.write_vector(insn, value, elements)
}

/// The rest of the low 128 bits is that of the first source.
fn fix_scalar<E: Element>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let bytes = E::BITS as usize / 8;
    let value = fix_elements::<E>(cpu, insn, Elements { bytes, count: 1 })?;
    let rest = cpu.register_lanes(insn, 1)[0] >> E::BITS << E::BITS;
    let low = u128::from(E::take(value[0]).widen());
    cpu.write_scalar(insn, rest | low, bytes)
}

/// Returns the elements that the opmask lets through.
fn fix_elements<E: Element>(cpu: &mut Cpu, insn: &Insn, elements: Elements) -> Exec<Value> {
    cpu.check_vector(insn)?;
    let table = cpu.read_vector(insn, 2, elements, Faults::Suppressed)?;
    let [to, a] = [0, 1].map(|n| cpu.register_lanes(insn, n));
    let (active, immediate) = (cpu.active(insn, elements.count), insn.immediate_byte());
    let per_lane = (128 / E::BITS) as usize;
    let compute = |mxcsr: &mut u32| {
        under(mxcsr, |env| {
            let mut value = [0; 4];
            for n in (0..elements.count).filter(|n| active >> n & 1 != 0) {
                let shift = (n % per_lane) as u32 * E::BITS;
                let element = |v: &Value| E::take(v[n / per_lane] >> shift).widen();
                let sources = [element(&to), element(&a), element(&table)];
                let fixed = fix(E::FORMAT, sources, immediate, env);
                value[n / per_lane] |= u128::from(fixed) << shift;
            }
            value
        })
    };
    cpu.compute(&insn.vector, |_| false, compute)
}
