//! Comparisons by a predicate, and tests of a number's class: the result is a mask, of elements in a
//! vector register or of bits in an opmask register.
//!
//! SDM Vol. 2, "CMPPS" (table "Comparison Predicate for VEX-encoded Instructions") and "VFPCLASSPS".

use iced_x86::{Code, Mnemonic, OpCodeOperandKind};

use super::binary::{Class, Element, Env, Format, flag, in_software, under};
use super::under_mxcsr::{Rounded, Shape};
use super::vector::{Elements, Faults, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(super) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    use Shape::{Packed, Scalar};
    let handler: Plain = if is_vector_form(code) {
        match code.mnemonic() {
            M::Cmpps => in_software!(packed u32 Never, mask_of_legacy_comparison),
            M::Cmppd => in_software!(packed u64 Never, mask_of_legacy_comparison),
            M::Cmpss => in_software!(scalar u32 Never, mask_of_legacy_comparison),
            M::Cmpsd => in_software!(scalar u64 Never, mask_of_legacy_comparison),
            M::Vcmpps => in_software!(packed u32 Never, mask_of_comparison),
            M::Vcmppd => in_software!(packed u64 Never, mask_of_comparison),
            M::Vcmpss => in_software!(scalar u32 Never, mask_of_comparison),
            M::Vcmpsd => in_software!(scalar u64 Never, mask_of_comparison),
            _ => return None,
        }
    } else if code.op_code().op_kind(0) == OpCodeOperandKind::k_reg {
        match code.mnemonic() {
            M::Vcmpps => |cpu, insn| cpu.test_elements::<u32>(insn, Packed, holds),
            M::Vcmppd => |cpu, insn| cpu.test_elements::<u64>(insn, Packed, holds),
            M::Vcmpss => |cpu, insn| cpu.test_elements::<u32>(insn, Scalar, holds),
            M::Vcmpsd => |cpu, insn| cpu.test_elements::<u64>(insn, Scalar, holds),
            M::Vfpclassps => |cpu, insn| cpu.test_elements::<u32>(insn, Packed, is_of_class),
            M::Vfpclasspd => |cpu, insn| cpu.test_elements::<u64>(insn, Packed, is_of_class),
            M::Vfpclassss => |cpu, insn| cpu.test_elements::<u32>(insn, Scalar, is_of_class),
            M::Vfpclasssd => |cpu, insn| cpu.test_elements::<u64>(insn, Scalar, is_of_class),
            _ => return None,
        }
    } else {
        return None;
    };
    plain(handler)
}

/// What two numbers are to each other.
mod relation {
    pub(super) const LESS: u8 = 1;
    pub(super) const EQUAL: u8 = 2;
    pub(super) const GREATER: u8 = 4;
    pub(super) const UNORDERED: u8 = 8;
}

/// For which relations predicate n holds; predicate n + 16 holds for the same.
const HOLDS_FOR: [u8; 16] = {
    use relation::{EQUAL, GREATER, LESS, UNORDERED};
    [
        EQUAL,
        LESS,
        LESS | EQUAL,
        UNORDERED,
        LESS | GREATER | UNORDERED,
        EQUAL | GREATER | UNORDERED,
        GREATER | UNORDERED,
        LESS | EQUAL | GREATER,
        EQUAL | UNORDERED,
        LESS | UNORDERED,
        LESS | EQUAL | UNORDERED,
        0,
        LESS | GREATER,
        EQUAL | GREATER,
        GREATER,
        LESS | EQUAL | GREATER | UNORDERED,
    ]
};

/// Whether a QNaN is an invalid operand of a predicate.
const fn is_signaling(predicate: u8) -> bool {
    let is_inequality = matches!(predicate & 3, 1 | 2);
    is_inequality != (predicate & 0x10 != 0)
}

/// Whether a predicate holds.
fn holds(format: Format, a: u64, b: u64, predicate: u8, env: &mut Env) -> bool {
    let (x, y) = (format.unpack(a, env), format.unpack(b, env));
    let relation = if x.is_nan() || y.is_nan() {
        if is_signaling(predicate) || x.is_signaling() || y.is_signaling() {
            env.raise(flag::IE);
        }
        relation::UNORDERED
    } else {
        format.note_denormals(&[x, y], env);
        match format.ordinal(x.bits).cmp(&format.ordinal(y.bits)) {
            core::cmp::Ordering::Less => relation::LESS,
            core::cmp::Ordering::Equal => relation::EQUAL,
            core::cmp::Ordering::Greater => relation::GREATER,
        }
    };
    HOLDS_FOR[usize::from(predicate & 0xf)] & relation != 0
}

/// The legacy forms have the first eight predicates.
fn mask_of_legacy_comparison(format: Format, a: u64, b: u64, predicate: u8, env: &mut Env) -> u64 {
    mask_of_comparison(format, a, b, predicate & 7, env)
}

/// All ones if the predicate holds.
fn mask_of_comparison(format: Format, a: u64, b: u64, predicate: u8, env: &mut Env) -> u64 {
    match holds(format, a, b, predicate, env) {
        true => u64::MAX >> (64 - format.bits()),
        false => 0,
    }
}

/// Whether a number is of one of the classes of the immediate.
fn is_of_class(format: Format, _: u64, b: u64, classes: u8, env: &mut Env) -> bool {
    let number = format.unpack(b, env);
    let is_finite = number.is_finite_nonzero();
    let mut class = match (number.class, number.is_negative) {
        (Class::QuietNan, _) => 0,
        (Class::Zero, false) => 1,
        (Class::Zero, true) => 2,
        (Class::Infinity, false) => 3,
        (Class::Infinity, true) => 4,
        (Class::SignalingNan, _) => 7,
        (Class::Denormal, _) => 5,
        (Class::Normal, _) => 6,
    };
    // A negative denormal is of two classes; a positive normal number of none.
    if class == 6 && !number.is_negative {
        return false;
    }
    let also = u8::from(is_finite && number.is_negative) << 6;
    class = 1 << class;
    classes & (class | also) != 0
}

/// A test of elements of both sources, by the immediate.
type Test = fn(Format, u64, u64, u8, &mut Env) -> bool;

impl Cpu {
    /// Each bit of the opmask register that is operand 0 becomes the result of a test of elements;
    /// those that the opmask does not let through, and those beyond, 0.
    fn test_elements<E: Element>(&mut self, insn: &Insn, shape: Shape, test: Test) -> Exec {
        self.check_vector(insn)?;
        let bytes = E::BITS as usize / 8;
        let elements = match shape {
            Shape::Scalar => Elements { bytes, count: 1 },
            Shape::Packed => Elements::of(insn, bytes),
        };
        let active = self.active(insn, elements.count);
        let b = self.read_vector(insn, insn.last_source(), elements, Faults::Suppressed)?;
        let a = self.register_lanes(insn, insn.first_source());
        let immediate = insn.immediate_byte();
        let element = |value: &[u128; 4], n: usize| {
            let bit = n * E::BITS as usize;
            E::take(value[bit / 128] >> (bit % 128)).widen()
        };
        let test = |mxcsr: &mut u32| {
            under(mxcsr, |env| {
                let is_active = |n: &usize| active >> n & 1 != 0;
                (0..elements.count).filter(is_active).fold(0, |mask, n| {
                    let (x, y) = (element(&a, n), element(&b, n));
                    mask | u64::from(test(E::FORMAT, x, y, immediate, env)) << n
                })
            })
        };
        let mask = self.compute(&insn.vector, |_| false, test)?;
        if let Operand::Opmask(k) = insn.operands[0] {
            self.fpu.opmask[usize::from(k & 7)] = mask;
        }
        Ok(())
    }
}
