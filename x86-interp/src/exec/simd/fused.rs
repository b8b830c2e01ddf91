//! Fused multiply-add (FMA and AVX-512): one rounding of the exact result.
//!
//! SDM Vol. 1, "Fused-Multiply-ADD (FMA) Extensions"; Vol. 2, "VFMADD132PS/VFMADD213PS/VFMADD231PS" and
//! its kin. A host with FMA executes them itself, under the guest's MXCSR; otherwise they are
//! computed in integers, with the same result.
#![expect(
    unsafe_code,
    reason = "the host's FMA unit computes, under a given MXCSR"
)]

use iced_x86::{Code, Mnemonic};

#[cfg(target_arch = "x86_64")]
use super::arithmetic::with_precision;
use super::binary::{Element, Env, Format, Number, flag, under};
use super::lanes::get;
use super::under_mxcsr::{Rounded, Shape, map_lanes};
#[cfg(target_arch = "x86_64")]
use super::under_mxcsr::{all_masked, with_flags};
use super::vector::{Elements, Faults, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::Insn;
use crate::softfloat::{Rounding, shift_right_jam};
use crate::{Cpu, Exec};

/// What is negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Signs {
    pub(super) negates_product: bool,
    pub(super) negates_addend: bool,
}

const fn signs(negates_product: bool, negates_addend: bool) -> Signs {
    Signs {
        negates_product,
        negates_addend,
    }
}

/// What is negated in the elements with even numbers, and in the others.
type ByParity = [Signs; 2];

const ADD: ByParity = [signs(false, false); 2];
const SUBTRACT: ByParity = [signs(false, true); 2];
const NEGATED_ADD: ByParity = [signs(true, false); 2];
const NEGATED_SUBTRACT: ByParity = [signs(true, true); 2];
/// VFMADDSUB.
const SUBTRACT_ADD: ByParity = [signs(false, true), signs(false, false)];
/// VFMSUBADD.
const ADD_SUBTRACT: ByParity = [signs(false, false), signs(false, true)];

/// Which operands are the two factors and the addend: the digits of the mnemonic.
type Order = [usize; 3];

const O132: Order = [0, 2, 1];
const O213: Order = [1, 0, 2];
const O231: Order = [1, 2, 0];

/// The lanes of the three operands.
type Sources = [u128; 3];

/// A function of lanes under a given MXCSR.
type OnLanes = fn(Sources, &mut u32) -> u128;

/// Executes an instruction of three XMM registers on the host.
#[cfg(target_arch = "x86_64")]
macro_rules! on_host {
    ($name:literal) => {
        |[to, b, c]: Sources, mxcsr: &mut u32| -> u128 {
            let (mut own, mut guest) = (0_u32, all_masked(*mxcsr));
            let (mut to, b, c) = (to, b, c);
            // SAFETY: works on the locals alone; MXCSR is put back, and no exception is unmasked.
            // The host has the instruction, as `has_fma` has found.
            unsafe {
                core::arch::asm!(
                    "stmxcsr [{own}]", "ldmxcsr [{guest}]",
                    "movups {x}, [{to}]", "movups {y}, [{b}]", "movups {z}, [{c}]",
                    concat!($name, " {x}, {y}, {z}"),
                    "movups [{to}], {x}",
                    "stmxcsr [{guest}]", "ldmxcsr [{own}]",
                    own = in(reg) &raw mut own, guest = in(reg) &raw mut guest,
                    to = in(reg) &raw mut to, b = in(reg) &raw const b, c = in(reg) &raw const c,
                    x = out(xmm_reg) _, y = out(xmm_reg) _, z = out(xmm_reg) _,
                    options(nostack),
                );
            }
            *mxcsr = with_flags(*mxcsr, guest);
            to
        }
    };
}

/// Whether the host has FMA.
#[cfg(target_arch = "x86_64")]
fn has_fma() -> bool {
    std::arch::is_x86_feature_detected!("fma")
}

/// The two ways to compute an instruction: by the host's, if it has it, and in software.
#[derive(Clone, Copy)]
struct Ways {
    #[cfg(target_arch = "x86_64")]
    by_host: OnLanes,
    in_software: OnLanes,
}

impl Ways {
    fn compute(self, sources: Sources, mxcsr: &mut u32) -> u128 {
        #[cfg(target_arch = "x86_64")]
        if has_fma() {
            let software = |mxcsr: &mut u32| {
                (self.in_software)(sources, mxcsr);
            };
            return with_precision(mxcsr, |mxcsr| (self.by_host)(sources, mxcsr), software);
        }
        (self.in_software)(sources, mxcsr)
    }
}

/// A row: packed or scalar elements of a type, which result may be tiny, and the ways.
struct Fused {
    shape: Shape,
    bytes: usize,
    rounded: Rounded,
    ways: Ways,
}

macro_rules! fused {
    ($shape:ident $e:ident $rounded:ident, $order:ident, $signs:ident, $name:literal) => {
        Fused {
            shape: Shape::$shape,
            bytes: <$e>::BITS as usize / 8,
            rounded: Rounded::$rounded,
            ways: Ways {
                #[cfg(target_arch = "x86_64")]
                by_host: on_host!($name),
                in_software: |sources, mxcsr| {
                    in_software::<$e>(sources, $order, $signs, Shape::$shape, mxcsr)
                },
            },
        }
    };
}

/// Returns who executes an instruction of this file.
pub(super) fn lookup(code: Code) -> Option<Row> {
    if !is_vector_form(code) {
        return None;
    }
    rows(code.mnemonic())?;
    plain(execute)
}

#[rustfmt::skip]
fn rows(mnemonic: Mnemonic) -> Option<Fused> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vfmadd132ps => fused!(Packed u32 Single, O132, ADD, "vfmadd132ps"),
        M::Vfmadd132pd => fused!(Packed u64 Double, O132, ADD, "vfmadd132pd"),
        M::Vfmadd132ss => fused!(Scalar u32 Single, O132, ADD, "vfmadd132ss"),
        M::Vfmadd132sd => fused!(Scalar u64 Double, O132, ADD, "vfmadd132sd"),
        M::Vfmadd213ps => fused!(Packed u32 Single, O213, ADD, "vfmadd213ps"),
        M::Vfmadd213pd => fused!(Packed u64 Double, O213, ADD, "vfmadd213pd"),
        M::Vfmadd213ss => fused!(Scalar u32 Single, O213, ADD, "vfmadd213ss"),
        M::Vfmadd213sd => fused!(Scalar u64 Double, O213, ADD, "vfmadd213sd"),
        M::Vfmadd231ps => fused!(Packed u32 Single, O231, ADD, "vfmadd231ps"),
        M::Vfmadd231pd => fused!(Packed u64 Double, O231, ADD, "vfmadd231pd"),
        M::Vfmadd231ss => fused!(Scalar u32 Single, O231, ADD, "vfmadd231ss"),
        M::Vfmadd231sd => fused!(Scalar u64 Double, O231, ADD, "vfmadd231sd"),
        M::Vfmsub132ps => fused!(Packed u32 Single, O132, SUBTRACT, "vfmsub132ps"),
        M::Vfmsub132pd => fused!(Packed u64 Double, O132, SUBTRACT, "vfmsub132pd"),
        M::Vfmsub132ss => fused!(Scalar u32 Single, O132, SUBTRACT, "vfmsub132ss"),
        M::Vfmsub132sd => fused!(Scalar u64 Double, O132, SUBTRACT, "vfmsub132sd"),
        M::Vfmsub213ps => fused!(Packed u32 Single, O213, SUBTRACT, "vfmsub213ps"),
        M::Vfmsub213pd => fused!(Packed u64 Double, O213, SUBTRACT, "vfmsub213pd"),
        M::Vfmsub213ss => fused!(Scalar u32 Single, O213, SUBTRACT, "vfmsub213ss"),
        M::Vfmsub213sd => fused!(Scalar u64 Double, O213, SUBTRACT, "vfmsub213sd"),
        M::Vfmsub231ps => fused!(Packed u32 Single, O231, SUBTRACT, "vfmsub231ps"),
        M::Vfmsub231pd => fused!(Packed u64 Double, O231, SUBTRACT, "vfmsub231pd"),
        M::Vfmsub231ss => fused!(Scalar u32 Single, O231, SUBTRACT, "vfmsub231ss"),
        M::Vfmsub231sd => fused!(Scalar u64 Double, O231, SUBTRACT, "vfmsub231sd"),
        M::Vfnmadd132ps => fused!(Packed u32 Single, O132, NEGATED_ADD, "vfnmadd132ps"),
        M::Vfnmadd132pd => fused!(Packed u64 Double, O132, NEGATED_ADD, "vfnmadd132pd"),
        M::Vfnmadd132ss => fused!(Scalar u32 Single, O132, NEGATED_ADD, "vfnmadd132ss"),
        M::Vfnmadd132sd => fused!(Scalar u64 Double, O132, NEGATED_ADD, "vfnmadd132sd"),
        M::Vfnmadd213ps => fused!(Packed u32 Single, O213, NEGATED_ADD, "vfnmadd213ps"),
        M::Vfnmadd213pd => fused!(Packed u64 Double, O213, NEGATED_ADD, "vfnmadd213pd"),
        M::Vfnmadd213ss => fused!(Scalar u32 Single, O213, NEGATED_ADD, "vfnmadd213ss"),
        M::Vfnmadd213sd => fused!(Scalar u64 Double, O213, NEGATED_ADD, "vfnmadd213sd"),
        M::Vfnmadd231ps => fused!(Packed u32 Single, O231, NEGATED_ADD, "vfnmadd231ps"),
        M::Vfnmadd231pd => fused!(Packed u64 Double, O231, NEGATED_ADD, "vfnmadd231pd"),
        M::Vfnmadd231ss => fused!(Scalar u32 Single, O231, NEGATED_ADD, "vfnmadd231ss"),
        M::Vfnmadd231sd => fused!(Scalar u64 Double, O231, NEGATED_ADD, "vfnmadd231sd"),
        M::Vfnmsub132ps => fused!(Packed u32 Single, O132, NEGATED_SUBTRACT, "vfnmsub132ps"),
        M::Vfnmsub132pd => fused!(Packed u64 Double, O132, NEGATED_SUBTRACT, "vfnmsub132pd"),
        M::Vfnmsub132ss => fused!(Scalar u32 Single, O132, NEGATED_SUBTRACT, "vfnmsub132ss"),
        M::Vfnmsub132sd => fused!(Scalar u64 Double, O132, NEGATED_SUBTRACT, "vfnmsub132sd"),
        M::Vfnmsub213ps => fused!(Packed u32 Single, O213, NEGATED_SUBTRACT, "vfnmsub213ps"),
        M::Vfnmsub213pd => fused!(Packed u64 Double, O213, NEGATED_SUBTRACT, "vfnmsub213pd"),
        M::Vfnmsub213ss => fused!(Scalar u32 Single, O213, NEGATED_SUBTRACT, "vfnmsub213ss"),
        M::Vfnmsub213sd => fused!(Scalar u64 Double, O213, NEGATED_SUBTRACT, "vfnmsub213sd"),
        M::Vfnmsub231ps => fused!(Packed u32 Single, O231, NEGATED_SUBTRACT, "vfnmsub231ps"),
        M::Vfnmsub231pd => fused!(Packed u64 Double, O231, NEGATED_SUBTRACT, "vfnmsub231pd"),
        M::Vfnmsub231ss => fused!(Scalar u32 Single, O231, NEGATED_SUBTRACT, "vfnmsub231ss"),
        M::Vfnmsub231sd => fused!(Scalar u64 Double, O231, NEGATED_SUBTRACT, "vfnmsub231sd"),
        M::Vfmaddsub132ps => fused!(Packed u32 Single, O132, SUBTRACT_ADD, "vfmaddsub132ps"),
        M::Vfmaddsub132pd => fused!(Packed u64 Double, O132, SUBTRACT_ADD, "vfmaddsub132pd"),
        M::Vfmaddsub213ps => fused!(Packed u32 Single, O213, SUBTRACT_ADD, "vfmaddsub213ps"),
        M::Vfmaddsub213pd => fused!(Packed u64 Double, O213, SUBTRACT_ADD, "vfmaddsub213pd"),
        M::Vfmaddsub231ps => fused!(Packed u32 Single, O231, SUBTRACT_ADD, "vfmaddsub231ps"),
        M::Vfmaddsub231pd => fused!(Packed u64 Double, O231, SUBTRACT_ADD, "vfmaddsub231pd"),
        M::Vfmsubadd132ps => fused!(Packed u32 Single, O132, ADD_SUBTRACT, "vfmsubadd132ps"),
        M::Vfmsubadd132pd => fused!(Packed u64 Double, O132, ADD_SUBTRACT, "vfmsubadd132pd"),
        M::Vfmsubadd213ps => fused!(Packed u32 Single, O213, ADD_SUBTRACT, "vfmsubadd213ps"),
        M::Vfmsubadd213pd => fused!(Packed u64 Double, O213, ADD_SUBTRACT, "vfmsubadd213pd"),
        M::Vfmsubadd231ps => fused!(Packed u32 Single, O231, ADD_SUBTRACT, "vfmsubadd231ps"),
        M::Vfmsubadd231pd => fused!(Packed u64 Double, O231, ADD_SUBTRACT, "vfmsubadd231pd"),
        _ => return None,
    })
}

/// Executes any of them.
fn execute(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let Some(row) = rows(insn.code.mnemonic()) else {
        return Ok(());
    };
    match row.shape {
        Shape::Packed => packed(cpu, insn, &row),
        Shape::Scalar => scalar(cpu, insn, &row),
    }
}

fn packed(cpu: &mut Cpu, insn: &Insn, row: &Fused) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, row.bytes);
    let c = cpu.read_vector(insn, 2, elements, Faults::Suppressed)?;
    let [to, b] = [0, 1].map(|n| cpu.register_lanes(insn, n));
    let [to, b, c] = [to, b, c].map(|v| cpu.without_inactive(insn, elements, v));
    let value = cpu.compute(
        &insn.vector,
        |value| row.rounded.has_denormal(value, elements.total()),
        |mxcsr| {
            map_lanes(insn.lane_count(), |n| {
                row.ways.compute([to[n], b[n], c[n]], mxcsr)
            })
        },
    )?;
    cpu.write_vector(insn, value, elements)
}

fn scalar(cpu: &mut Cpu, insn: &Insn, row: &Fused) -> Exec {
    cpu.check_vector(insn)?;
    let c = cpu.read_element(insn, 2, row.bytes)?;
    let [to, b] = [0, 1].map(|n| cpu.register_lanes(insn, n)[0]);
    let value = if cpu.active(insn, 1) == 0 {
        to
    } else {
        let has_denormal = |value: &u128| row.rounded.has_denormal(&[*value, 0, 0, 0], row.bytes);
        cpu.compute(&insn.vector, has_denormal, |mxcsr| {
            row.ways.compute([to, b, c], mxcsr)
        })?
    };
    cpu.write_scalar(insn, value, row.bytes)
}

/// Computes the elements of a lane, or the lowest one.
fn in_software<E: Element>(
    sources: Sources,
    order: Order,
    signs: ByParity,
    shape: Shape,
    mxcsr: &mut u32,
) -> u128 {
    let count = match shape {
        Shape::Packed => 128 / E::BITS,
        Shape::Scalar => 1,
    };
    under(mxcsr, |env| {
        (0..count).fold(sources[0], |all, n| {
            let element = |m: usize| get::<E>(sources[order[m]], n).widen();
            let [a, b, c] = [element(0), element(1), element(2)];
            let signs = signs[(n & 1) as usize];
            let value = fused_multiply_add(E::FORMAT, [a, b, c], signs, env);
            let shift = n * E::BITS;
            let place = u128::MAX >> (128 - E::BITS) << shift;
            all & !place | u128::from(value) << shift
        })
    })
}

/// Returns `a * b + c`, rounded once.
pub(super) fn fused_multiply_add(
    format: Format,
    sources: [u64; 3],
    signs: Signs,
    env: &mut Env,
) -> u64 {
    let [a, b, c] = sources.map(|bits| format.unpack(bits, env));
    if let Some(nan) = nan(format, [a, b, c], env) {
        return nan;
    }
    let product_sign = (a.is_negative != b.is_negative) != signs.negates_product;
    let addend_sign = c.is_negative != signs.negates_addend;
    let is_infinite = a.is_infinite() || b.is_infinite();
    let has_zero = a.is_zero() || b.is_zero();
    let is_difference = c.is_infinite() && product_sign != addend_sign;
    if is_infinite && (has_zero || is_difference) {
        env.raise(flag::IE);
        return format.indefinite();
    }
    format.note_denormals(&[a, b, c], env);
    if is_infinite {
        return format.infinity(product_sign);
    }
    if c.is_infinite() {
        return format.infinity(addend_sign);
    }
    let product = (!has_zero).then(|| product(a, b, product_sign));
    let addend = c.is_finite_nonzero().then(|| Exact {
        is_negative: addend_sign,
        exponent: c.exponent,
        significand: u128::from(c.significand) << 64,
    });
    let sum = match (product, addend) {
        (Some(a), Some(c)) => sum(a, c),
        (a, c) => a.or(c),
    };
    match sum {
        Some(sum) => format.round(sum.is_negative, sum.exponent, sum.significand, env),
        None if product.is_none() && product_sign == addend_sign => format.sign(product_sign),
        None => format.sign(env.rounding == Rounding::Down),
    }
}

/// Which NaN wins: that of the first factor, of the second, of the addend. An infinity times zero is
/// invalid only if the addend is no NaN.
fn nan(format: Format, numbers: [Number; 3], env: &mut Env) -> Option<u64> {
    if numbers.iter().any(|n| n.is_signaling()) {
        env.raise(flag::IE);
    }
    let nan = numbers.iter().find(|n| n.is_nan())?;
    Some(format.quiet(nan.bits))
}

/// `significand / 2^127 * 2^exponent`, the highest bit set, the lowest sticky.
#[derive(Clone, Copy, Debug)]
struct Exact {
    is_negative: bool,
    exponent: i32,
    significand: u128,
}

/// The product of two finite numbers, neither zero: exact, as both have at most 53 bits.
fn product(a: Number, b: Number, is_negative: bool) -> Exact {
    let product = u128::from(a.significand) * u128::from(b.significand);
    let shift = product.leading_zeros();
    Exact {
        is_negative,
        exponent: a.exponent + b.exponent + 1 - shift as i32,
        significand: product << shift,
    }
}

/// The sum; `None` if it is zero. The lowest bits of both are clear, so that the first shift loses
/// nothing, nor does the second where high bits may cancel.
fn sum(a: Exact, b: Exact) -> Option<Exact> {
    let is_larger = (a.exponent, a.significand) >= (b.exponent, b.significand);
    let (large, small) = if is_larger { (a, b) } else { (b, a) };
    let by = (large.exponent - small.exponent) as u32;
    let low = shift_right_jam(small.significand >> 1, by);
    let high = large.significand >> 1;
    let sum = match large.is_negative == small.is_negative {
        true => high + low,
        false => high - low,
    };
    if sum == 0 {
        return None;
    }
    let shift = sum.leading_zeros();
    Some(Exact {
        exponent: large.exponent + 1 - shift as i32,
        significand: sum << shift,
        ..large
    })
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers whose products and sums cancel, overflow and underflow.
    fn element() -> impl Strategy<Value = u64> {
        let edge = prop::sample::select(vec![
            0_u64,
            1,
            0x000f_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
            0x3ff0_0000_0000_0000,
            0x3ff0_0000_0000_0001,
            0x3cb0_0000_0000_0000,
            0x7fef_ffff_ffff_ffff,
            0x7ff0_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            0x7ff8_0000_0000_0002,
            0x3f80_0000_3f80_0001,
            0x0080_0000_7f7f_ffff,
            0x7f80_0000_7fc0_0001,
            0x0000_0001_7f80_0001,
        ]);
        let near_one = (0_u64..4, any::<u64>())
            .prop_map(|(e, f)| (0x3fe + e) << 52 | f & 0x000f_ffff_ffff_ffff);
        let value = prop_oneof![any::<u64>(), edge, near_one];
        (value, any::<bool>()).prop_map(|(v, negative)| v ^ u64::from(negative) << 63)
    }

    fn lane() -> impl Strategy<Value = u128> {
        [element(), element()].prop_map(|[low, high]| u128::from(high) << 64 | u128::from(low))
    }

    #[test]
    fn software_computes_what_the_host_computes() {
        assert!(has_fma(), "the oracle needs FMA");
        let rows: Vec<(Mnemonic, Fused)> = Mnemonic::values()
            .filter_map(|m| Some((m, rows(m)?)))
            .collect();
        assert_eq!(rows.len(), 60);
        proptest!(ProptestConfig::with_cases(4000), |(
            to in lane(), b in lane(), c in lane(), random in any::<u32>(), is_same in 0..4,
        )| {
            // At times the addend is near a factor.
            let c = if is_same == 0 { to ^ u128::from(random & 3) } else { c };
            let mxcsr = random & 0xe040 | 0x1f80;
            for (mnemonic, row) in &rows {
                let (mut host, mut ours) = (mxcsr, mxcsr);
                let expected = (row.ways.by_host)([to, b, c], &mut host);
                let found = (row.ways.in_software)([to, b, c], &mut ours);
                prop_assert_eq!(
                    (found, ours), (expected, host),
                    "{:?} {:x} {:x} {:x} {:x}", mnemonic, to, b, c, mxcsr
                );
            }
        });
    }
}
