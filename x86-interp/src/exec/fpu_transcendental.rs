//! F2XM1, FYL2X, FYL2XP1, FSIN, FCOS, FSINCOS, FPTAN, FPATAN (SDM Vol. 1, "Transcendental
//! Instructions").

use iced_x86::{Code, Mnemonic};

use super::{Row, Traits};
use crate::fpu::FpuState;
use crate::insn::{Insn, Plain};
use crate::softfloat::transcendental::{self, Angle};
use crate::softfloat::{Env, F80, Out};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    let plain: Plain = match code.mnemonic() {
        M::F2xm1 => f2xm1,
        M::Fyl2x => |cpu, insn| of_two(cpu, insn, transcendental::y_log2_x),
        M::Fyl2xp1 => |cpu, insn| of_two(cpu, insn, transcendental::y_log2_x_plus_1),
        M::Fpatan => |cpu, insn| of_two(cpu, insn, transcendental::angle_of),
        M::Fsin => |cpu, insn| of_angle(cpu, insn, Angle::Sine),
        M::Fcos => |cpu, insn| of_angle(cpu, insn, Angle::Cosine),
        M::Fsincos => |cpu, insn| of_angle_pushing(cpu, insn, Angle::Sine),
        M::Fptan => |cpu, insn| of_angle_pushing(cpu, insn, Angle::Tangent),
        _ => return None,
    };
    let traits = Traits::empty();
    Some(Row { plain, traits })
}

/// A stack underflow of an instruction with a result in ST(0).
fn underflow(fpu: &mut FpuState) -> bool {
    let responds = fpu.underflow();
    if responds {
        fpu.set_st(0, F80::INDEFINITE);
    }
    responds
}

/// F2XM1.
fn f2xm1(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    match fpu.st(0) {
        Some(value) => {
            let out = transcendental::exponential(value, &fpu.env());
            fpu.store(0, &out);
        }
        None => {
            underflow(fpu);
        }
    }
    Ok(())
}

/// A function of ST(0) and ST(1): the result takes the place of ST(1), ST(0) is popped.
fn of_two(cpu: &mut Cpu, insn: &Insn, function: fn(F80, F80, &Env) -> Out) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    let has_result = match (fpu.st(0), fpu.st(1)) {
        (Some(x), Some(y)) => {
            let out = function(x, y, &fpu.env());
            fpu.store(1, &out)
        }
        _ => {
            let responds = fpu.underflow();
            if responds {
                fpu.set_st(1, F80::INDEFINITE);
            }
            responds
        }
    };
    if has_result {
        fpu.pop();
    }
    Ok(())
}

/// FSIN, FCOS. C2 says that the angle is too large; then nothing else happens.
fn of_angle(cpu: &mut Cpu, insn: &Insn, which: Angle) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    let Some(value) = fpu.st(0) else {
        underflow(fpu);
        fpu.clear_c2();
        return Ok(());
    };
    match transcendental::of_angle(which, value, &fpu.env()) {
        Some(out) => {
            fpu.store(0, &out);
            fpu.clear_c2();
        }
        None => fpu.set_too_large(),
    }
    Ok(())
}

/// FSINCOS, FPTAN: the first result takes the place of the angle, then the cosine or 1 is pushed.
fn of_angle_pushing(cpu: &mut Cpu, insn: &Insn, which: Angle) -> Exec {
    cpu.begin_x87(insn)?;
    let fpu = &mut cpu.fpu;
    let Some(value) = fpu.st(0) else {
        if underflow(fpu) {
            fpu.push(F80::INDEFINITE);
        }
        fpu.clear_c2();
        return Ok(());
    };
    if !fpu.has_room() {
        if fpu.overflow() {
            fpu.set_st(0, F80::INDEFINITE);
            fpu.push(F80::INDEFINITE);
        }
        fpu.clear_c2();
        return Ok(());
    }
    let env = fpu.env();
    let Some(first) = transcendental::of_angle(which, value, &env) else {
        fpu.set_too_large();
        return Ok(());
    };
    fpu.clear_c2();
    let second = match which {
        _ if first.value.is_nan() => Some(Out::exact(first.value)),
        Angle::Sine => transcendental::of_angle(Angle::Cosine, value, &env),
        _ => Some(Out::exact(F80::ONE)),
    };
    if fpu.store(0, &first)
        && let Some(second) = second
    {
        fpu.push(second.value);
    }
    Ok(())
}

impl FpuState {
    /// The angle is beyond what can be reduced: C2, and C1 is 0.
    fn set_too_large(&mut self) {
        self.set_c1(false);
        self.set_c2();
    }
}
