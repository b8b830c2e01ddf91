//! From the decoder's instruction to [`Insn`].

use iced_x86::{Code, EncodingKind, Instruction, OpKind, Register, RoundingControl};
use vmx_model::arch::SegmentRegister;

use crate::cpuid::FeatureSet;
use crate::insn::{
    Encoding, Insn, MemoryOperand, Operand, Plain, RegisterOffset, Repeat, VectorForm,
    ZERO_REGISTER,
};

/// Whether the processor has the instruction, in a mode that has or has not VEX and EVEX prefixes;
/// one that it lacks is #UD.
pub(crate) fn exists(code: Code, features: &FeatureSet, has_vex: bool) -> bool {
    let is_prefixed = matches!(code.encoding(), EncodingKind::VEX | EncodingKind::EVEX);
    features.allows(code) && (has_vex || !is_prefixed)
}

/// Resolves the operands of `i`, which `plain` will execute.
pub(crate) fn resolve(i: &Instruction, plain: Plain) -> Insn {
    let bitness = i.code_size();
    let mut operands = [Operand::None; 4];
    for (n, slot) in operands.iter_mut().enumerate().take(i.op_count() as usize) {
        *slot = operand(i, n as u32);
    }
    Insn {
        code: i.code(),
        length: i.len() as u8,
        operand_bytes: operand_bytes(i),
        address_bytes: address_bytes(i, bitness),
        repeat: repeat(i),
        locked: i.has_lock_prefix(),
        is_no_track: i.segment_prefix() == Register::DS,
        operands,
        memory: memory(i),
        vector: vector_form(i),
        plain,
    }
}

fn operand(i: &Instruction, n: u32) -> Operand {
    match i.op_kind(n) {
        OpKind::Register => register_operand(i.op_register(n)),
        OpKind::NearBranch16 => Operand::Branch(u64::from(i.near_branch16())),
        OpKind::NearBranch32 => Operand::Branch(u64::from(i.near_branch32())),
        OpKind::NearBranch64 => Operand::Branch(i.near_branch64()),
        OpKind::FarBranch16 => Operand::Far {
            selector: i.far_branch_selector(),
            offset: u32::from(i.far_branch16()),
        },
        OpKind::FarBranch32 => Operand::Far {
            selector: i.far_branch_selector(),
            offset: i.far_branch32(),
        },
        OpKind::Memory
        | OpKind::MemorySegSI
        | OpKind::MemorySegESI
        | OpKind::MemorySegRSI
        | OpKind::MemorySegDI
        | OpKind::MemorySegEDI
        | OpKind::MemorySegRDI
        | OpKind::MemoryESDI
        | OpKind::MemoryESEDI
        | OpKind::MemoryESRDI => Operand::Memory,
        _ => Operand::Immediate(i.immediate(n)),
    }
}

fn register_operand(r: Register) -> Operand {
    if r.is_gpr() {
        Operand::Register(gpr_offset(r))
    } else if r.is_segment_register() {
        Operand::Segment(segment(r))
    } else if r.is_cr() {
        Operand::Control(r.number() as u8)
    } else if r.is_dr() {
        Operand::Debug(r.number() as u8)
    } else if r.is_mm() {
        Operand::Mmx(r.number() as u8)
    } else if r.is_vector_register() {
        Operand::Vector(r.number() as u8)
    } else if r.is_k() {
        Operand::Opmask(r.number() as u8)
    } else if r.is_st() {
        Operand::X87(r.number() as u8)
    } else {
        Operand::None
    }
}

/// Returns what the encoding of a vector instruction says.
fn vector_form(i: &Instruction) -> VectorForm {
    let info = i.op_code();
    let encoding = match i.code().encoding() {
        EncodingKind::VEX => Encoding::Vex,
        EncodingKind::EVEX => Encoding::Evex,
        _ => Encoding::Legacy,
    };
    let bytes = if encoding == Encoding::Legacy || info.is_lig() {
        16
    } else {
        16 << info.l().min(2)
    };
    let rounding = match i.rounding_control() {
        RoundingControl::None => None,
        RoundingControl::RoundToNearest => Some(0),
        RoundingControl::RoundDown => Some(1),
        RoundingControl::RoundUp => Some(2),
        RoundingControl::RoundTowardZero => Some(3),
    };
    VectorForm {
        encoding,
        bytes,
        index: match i.memory_index() {
            index if index.is_vector_register() => index.number() as u8,
            _ => 0,
        },
        mask: match i.op_mask() {
            Register::None => 0,
            register => register.number() as u8,
        },
        is_zeroing: i.zeroing_masking(),
        broadcast_bytes: match i.is_broadcast() {
            true => i.memory_size().size().min(8) as u8,
            false => 0,
        },
        rounding,
        suppresses_exceptions: rounding.is_some() || i.suppress_all_exceptions(),
    }
}

/// Returns the place of a general-purpose register (or none) in the register file.
pub(crate) fn gpr_offset(r: Register) -> RegisterOffset {
    match r {
        Register::AH | Register::CH | Register::DH | Register::BH => {
            (r as u32 - Register::AH as u32) as u8 * 8 + 1
        }
        _ if r.is_gpr() => r.full_register().number() as u8 * 8,
        _ => ZERO_REGISTER,
    }
}

/// Returns the segment of the memory operand. In 64-bit mode the prefixes of ES, CS, SS and DS are
/// ignored (SDM Vol. 2, "Instruction Prefixes"): what the base register implies is left.
fn data_segment(i: &Instruction) -> SegmentRegister {
    let is_ignored = i.code_size() == iced_x86::CodeSize::Code64
        && !matches!(
            i.segment_prefix(),
            Register::None | Register::FS | Register::GS
        );
    if !is_ignored {
        return segment(i.memory_segment());
    }
    match i.memory_base() {
        Register::RSP | Register::RBP | Register::ESP | Register::EBP => SegmentRegister::Ss,
        _ => SegmentRegister::Ds,
    }
}

fn segment(r: Register) -> SegmentRegister {
    match r {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}

fn memory(i: &Instruction) -> MemoryOperand {
    let displacement = if i.is_ip_rel_memory_operand() {
        i.ip_rel_memory_address()
    } else {
        i.memory_displacement64()
    };
    let base = if i.is_ip_rel_memory_operand() {
        Register::None
    } else {
        i.memory_base()
    };
    MemoryOperand {
        base: gpr_offset(base),
        index: gpr_offset(i.memory_index()),
        scale_shift: i.memory_index_scale().trailing_zeros() as u8,
        segment: data_segment(i),
        displacement,
    }
}

fn repeat(i: &Instruction) -> Repeat {
    if !i.is_string_instruction() {
        Repeat::None
    } else if i.has_repne_prefix() {
        Repeat::Repne
    } else if i.has_rep_prefix() {
        Repeat::Rep
    } else {
        Repeat::None
    }
}

/// Effective operand size, from the decoder's knowledge of the form.
fn operand_bytes(i: &Instruction) -> u8 {
    match i.op_code().operand_size() {
        16 => 2,
        64 => 8,
        32 => 4,
        // Forms without a fixed size: the default of the code size.
        _ => match i.code_size() {
            iced_x86::CodeSize::Code16 => 2,
            _ => 4,
        },
    }
}

/// Effective address size.
fn address_bytes(i: &Instruction, bitness: iced_x86::CodeSize) -> u8 {
    let from_kind = (0..i.op_count()).find_map(|n| match i.op_kind(n) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        OpKind::Memory => Some(memory_address_bytes(i)),
        _ => None,
    });
    from_kind.unwrap_or(match (i.op_code().address_size(), bitness) {
        (16, _) => 2,
        (32, _) => 4,
        (64, _) => 8,
        (_, iced_x86::CodeSize::Code16) => 2,
        (_, iced_x86::CodeSize::Code64) => 8,
        _ => 4,
    })
}

fn memory_address_bytes(i: &Instruction) -> u8 {
    let size = |r: Register| {
        if r == Register::None {
            None
        } else {
            Some(r.size() as u8)
        }
    };
    size(i.memory_base())
        .or_else(|| size(i.memory_index()))
        .unwrap_or(i.memory_displ_size().clamp(2, 8) as u8)
}
