//! Binary arithmetic: SDM Vol. 1, "Binary Arithmetic Instructions"; ADCX and ADOX.

use iced_x86::{Code, Mnemonic};
use vmx_model::arch::Rflags;
use vmx_model::event::Exception;

use super::Row;
use super::form::{by_operand, sized};
use crate::alu::{self, flag_if};
use crate::insn::Insn;
use crate::width::Width;
use crate::{Cpu, Exec};

/// Returns the row of a binary arithmetic instruction.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let (operand, handlers) = match code.mnemonic() {
        Mnemonic::Add => (0, sized!(add)),
        Mnemonic::Adc => (0, sized!(adc)),
        Mnemonic::Sub => (0, sized!(sub)),
        Mnemonic::Sbb => (0, sized!(sbb)),
        Mnemonic::Cmp => (0, sized!(cmp)),
        Mnemonic::Neg => (0, sized!(neg)),
        Mnemonic::Inc => (0, sized!(inc)),
        Mnemonic::Dec => (0, sized!(dec)),
        Mnemonic::Adcx => (0, sized!(adcx)),
        Mnemonic::Adox => (0, sized!(adox)),
        Mnemonic::Mul => (0, sized!(mul)),
        Mnemonic::Imul => (0, imul_form(code)),
        Mnemonic::Div => (0, sized!(div)),
        Mnemonic::Idiv => (0, sized!(idiv)),
        _ => return None,
    };
    by_operand(code, operand, handlers)
}

fn imul_form(code: Code) -> super::form::BySize {
    match code.op_code().op_count() {
        1 => sized!(imul),
        2 => sized!(imul_into),
        _ => sized!(imul_of),
    }
}

/// Runs `f` on destination and source; writes the result and all status flags.
fn binary<W: Width>(cpu: &mut Cpu, insn: &Insn, f: impl Fn(W, W) -> (W, Rflags)) -> Exec {
    let b = cpu.read::<W>(insn, 1)?;
    let flags = cpu.update(insn, 0, |a| f(a, b))?;
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// ADD.
pub(crate) fn add<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    binary::<W>(cpu, insn, |a, b| alu::add::add(a, b, false))
}

/// ADC.
pub(crate) fn adc<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let carry = cpu.rflags().contains(Rflags::CF);
    binary::<W>(cpu, insn, |a, b| alu::add::add(a, b, carry))
}

/// SUB.
pub(crate) fn sub<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    binary::<W>(cpu, insn, |a, b| alu::add::sub(a, b, false))
}

/// SBB.
pub(crate) fn sbb<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let borrow = cpu.rflags().contains(Rflags::CF);
    binary::<W>(cpu, insn, |a, b| alu::add::sub(a, b, borrow))
}

/// CMP.
pub(crate) fn cmp<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let a = cpu.read::<W>(insn, 0)?;
    let b = cpu.read::<W>(insn, 1)?;
    cpu.set_status(Rflags::STATUS, alu::add::sub(a, b, false).1);
    Ok(())
}

/// NEG.
pub(crate) fn neg<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let flags = cpu.update::<W, _>(insn, 0, alu::add::neg)?;
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// The flags that INC and DEC write.
const ALL_BUT_CARRY: Rflags = Rflags::STATUS.difference(Rflags::CF);

/// INC: CF stays.
pub(crate) fn inc<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let flags = cpu.update::<W, _>(insn, 0, alu::add::inc)?;
    cpu.set_status(ALL_BUT_CARRY, flags);
    Ok(())
}

/// DEC: CF stays.
pub(crate) fn dec<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let flags = cpu.update::<W, _>(insn, 0, alu::add::dec)?;
    cpu.set_status(ALL_BUT_CARRY, flags);
    Ok(())
}

/// ADCX: an addition whose carry is CF; no other flag changes.
pub(crate) fn adcx<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    add_with::<W>(cpu, insn, Rflags::CF)
}

/// ADOX: an addition whose carry is OF; no other flag changes.
pub(crate) fn adox<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    add_with::<W>(cpu, insn, Rflags::OF)
}

fn add_with<W: Width>(cpu: &mut Cpu, insn: &Insn, carry: Rflags) -> Exec {
    let b = cpu.read::<W>(insn, 1)?;
    let a = cpu.read::<W>(insn, 0)?;
    let (sum, flags) = alu::add::add(a, b, cpu.rflags().contains(carry));
    cpu.write(insn, 0, sum)?;
    let out = flag_if(carry, flags.contains(Rflags::CF));
    cpu.set_status(carry, out);
    Ok(())
}

/// Register-file offsets of the accumulator (AL, AX, EAX, RAX) and of its upper half (AH, DX, EDX,
/// RDX).
fn accumulator<W: Width>() -> (u8, u8) {
    (0, if W::BITS == 8 { 1 } else { 2 * 8 })
}

/// MUL: accumulator times operand.
pub(crate) fn mul<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    widening::<W>(cpu, insn, alu::multiply::mul)
}

/// IMUL, one operand: accumulator times operand.
pub(crate) fn imul<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    widening::<W>(cpu, insn, alu::multiply::imul)
}

fn widening<W: Width>(
    cpu: &mut Cpu,
    insn: &Insn,
    f: fn(W, W) -> alu::multiply::Product<W>,
) -> Exec {
    let (low, high) = accumulator::<W>();
    let b = cpu.read::<W>(insn, 0)?;
    let (low_half, high_half, flags) = f(cpu.register(low), b);
    cpu.set_register(low, low_half);
    cpu.set_register(high, high_half);
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// IMUL, two operands: destination times source.
pub(crate) fn imul_into<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    truncating::<W>(cpu, insn, 0, 1)
}

/// IMUL, three operands: source times immediate.
pub(crate) fn imul_of<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    truncating::<W>(cpu, insn, 1, 2)
}

fn truncating<W: Width>(cpu: &mut Cpu, insn: &Insn, a: usize, b: usize) -> Exec {
    let (a, b) = (cpu.read::<W>(insn, a)?, cpu.read::<W>(insn, b)?);
    let (product, _, flags) = alu::multiply::imul(a, b);
    cpu.write(insn, 0, product)?;
    cpu.set_status(Rflags::STATUS, flags);
    Ok(())
}

/// DIV: #DE if the divisor is 0 or the quotient does not fit.
pub(crate) fn div<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    divide::<W>(cpu, insn, alu::multiply::div)
}

/// IDIV: #DE if the divisor is 0 or the quotient does not fit.
pub(crate) fn idiv<W: Width>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    divide::<W>(cpu, insn, alu::multiply::idiv)
}

fn divide<W: Width>(cpu: &mut Cpu, insn: &Insn, f: fn(W, W, W) -> Option<(W, W)>) -> Exec {
    let (low, high) = accumulator::<W>();
    let divisor = cpu.read::<W>(insn, 0)?;
    let result = f(cpu.register(high), cpu.register(low), divisor);
    let (quotient, remainder) = result.ok_or(Exception::DE)?;
    cpu.set_register(low, quotient);
    cpu.set_register(high, remainder);
    Ok(())
}
