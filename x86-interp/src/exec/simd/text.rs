//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM: comparisons of strings in vector registers.
//!
//! SDM Vol. 2, "Imm8 Control Byte Operation for PCMPESTRI / PCMPESTRM / PCMPISTRI / PCMPISTRM". The
//! first operand is the set, the ranges or the string that is looked for; the second is the text.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;

use super::lanes::build;
use super::vector::{Elements, Value, element};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Operand, Plain};
use crate::{Cpu, Exec};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;

/// Returns who executes an instruction of this file.
#[rustfmt::skip]
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    let handler: Plain = match code.mnemonic() {
        M::Pcmpestri | M::Vpcmpestri => |cpu, insn| compare(cpu, insn, lengths_32, index),
        M::Pcmpestri64 | M::Vpcmpestri64 => |cpu, insn| compare(cpu, insn, lengths_64, index),
        M::Pcmpestrm | M::Vpcmpestrm => |cpu, insn| compare(cpu, insn, lengths_32, mask),
        M::Pcmpestrm64 | M::Vpcmpestrm64 => |cpu, insn| compare(cpu, insn, lengths_64, mask),
        M::Pcmpistri | M::Vpcmpistri => |cpu, insn| compare(cpu, insn, implicit_lengths, index),
        M::Pcmpistrm | M::Vpcmpistrm => |cpu, insn| compare(cpu, insn, implicit_lengths, mask),
        _ => return None,
    };
    plain(handler)
}

/// The immediate.
#[derive(Clone, Copy)]
struct Control(u8);

/// "Aggregation operation".
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aggregation {
    EqualAny,
    Ranges,
    EqualEach,
    EqualOrdered,
}

impl Control {
    /// Bytes of an element.
    const fn element_bytes(self) -> usize {
        1 + (self.0 & 1) as usize
    }

    /// How many elements an operand has.
    const fn count(self) -> usize {
        16 / self.element_bytes()
    }

    /// Whether elements are signed.
    const fn is_signed(self) -> bool {
        self.0 & 2 != 0
    }

    const fn aggregation(self) -> Aggregation {
        match self.0 >> 2 & 3 {
            0 => Aggregation::EqualAny,
            1 => Aggregation::Ranges,
            2 => Aggregation::EqualEach,
            _ => Aggregation::EqualOrdered,
        }
    }

    /// Whether the most significant index is wanted, or a mask of whole elements.
    const fn is_output_other(self) -> bool {
        self.0 & 0x40 != 0
    }

    /// Returns element `n` as an integer.
    fn element(self, value: &Value, n: usize) -> i32 {
        let bits = element(value, n, self.element_bytes());
        match (self.element_bytes(), self.is_signed()) {
            (1, true) => i32::from(bits as i8),
            (2, true) => i32::from(bits as i16),
            _ => bits as i32,
        }
    }
}

/// An operand: its elements, and how many of them count.
struct Text {
    value: Value,
    length: usize,
}

/// Returns how many elements of both operands count.
type Lengths = fn(&Cpu, Control, [&Value; 2]) -> [usize; 2];
/// Writes the result.
type Output = fn(&mut Cpu, &Insn, Control, u16);

fn lengths_32(cpu: &Cpu, control: Control, _: [&Value; 2]) -> [usize; 2] {
    [RAX, RDX].map(|n| limit(u64::from((cpu.gpr[n] as i32).unsigned_abs()), control))
}

fn lengths_64(cpu: &Cpu, control: Control, _: [&Value; 2]) -> [usize; 2] {
    [RAX, RDX].map(|n| limit((cpu.gpr[n] as i64).unsigned_abs(), control))
}

fn limit(length: u64, control: Control) -> usize {
    length.min(control.count() as u64) as usize
}

/// Up to the first element that is zero.
fn implicit_lengths(_: &Cpu, control: Control, values: [&Value; 2]) -> [usize; 2] {
    values.map(|value| {
        let is_zero = |&n: &usize| element(value, n, control.element_bytes()) == 0;
        (0..control.count())
            .find(is_zero)
            .unwrap_or(control.count())
    })
}

/// An instruction of this file. A memory operand need not be aligned.
fn compare(cpu: &mut Cpu, insn: &Insn, lengths: Lengths, output: Output) -> Exec {
    cpu.check_vector(insn)?;
    let sixteen = Elements {
        bytes: 16,
        count: 1,
    };
    let second = match insn.operands[1] {
        Operand::Memory => cpu.load_elements(insn, sixteen, u64::MAX)?,
        _ => cpu.register_lanes(insn, 1),
    };
    let first = cpu.register_lanes(insn, 0);
    let control = Control(insn.immediate_byte());
    let [a, b] = lengths(cpu, control, [&first, &second]);
    let [a, b] = [(first, a), (second, b)].map(|(value, length)| Text { value, length });
    let result = polarity(control, aggregate(control, &a, &b), &b);
    output(cpu, insn, control, result);
    let mut flags = Rflags::empty();
    flags.set(Rflags::CF, result != 0);
    flags.set(Rflags::ZF, b.length < control.count());
    flags.set(Rflags::SF, a.length < control.count());
    flags.set(Rflags::OF, result & 1 != 0);
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// IntRes1: a bit for each element of the second operand.
fn aggregate(control: Control, a: &Text, b: &Text) -> u16 {
    let count = control.count();
    let x = |i: usize| control.element(&a.value, i);
    let y = |j: usize| control.element(&b.value, j);
    let is_equal = |i: usize, j: usize| i < a.length && j < b.length && x(i) == y(j);
    let holds = |j: usize| match control.aggregation() {
        Aggregation::EqualAny => (0..count).any(|i| is_equal(i, j)),
        Aggregation::Ranges => (0..count)
            .step_by(2)
            .any(|i| i + 1 < a.length && j < b.length && x(i) <= y(j) && y(j) <= x(i + 1)),
        Aggregation::EqualEach => is_equal(j, j) || j >= a.length && j >= b.length,
        // What lies behind the string that is looked for is equal to anything.
        Aggregation::EqualOrdered => (0..count - j).all(|i| i >= a.length || is_equal(i, j + i)),
    };
    (0..count).fold(0, |bits, j| bits | u16::from(holds(j)) << j)
}

/// IntRes2: IntRes1, inverted everywhere or where the second operand has elements.
fn polarity(control: Control, bits: u16, b: &Text) -> u16 {
    let ones = |count: usize| ((1_u32 << count) - 1) as u16;
    match control.0 >> 4 & 3 {
        1 => bits ^ ones(control.count()),
        3 => bits ^ ones(b.length),
        _ => bits,
    }
}

/// The index goes to ECX; it is the number of elements if no bit is set.
fn index(cpu: &mut Cpu, _: &Insn, control: Control, bits: u16) {
    let index = match bits {
        0 => control.count() as u32,
        _ if control.is_output_other() => 15 - bits.leading_zeros(),
        _ => bits.trailing_zeros(),
    };
    cpu.gpr[RCX] = u64::from(index);
}

/// The mask goes to XMM0: bits, or elements of ones.
fn mask(cpu: &mut Cpu, insn: &Insn, control: Control, bits: u16) {
    let ones = |n: u32| bits >> n & 1 != 0;
    let value = match (control.is_output_other(), control.element_bytes()) {
        (false, _) => u128::from(bits),
        (true, 1) => build(16, |n| if ones(n) { u8::MAX } else { 0 }),
        (true, _) => build(8, |n| if ones(n) { u16::MAX } else { 0 }),
    };
    cpu.write_low_register(insn, 0, value);
}
