//! Registers and memory such that operands lie in the data pages, and branches in the code page.

use super::Bits;
use super::case::{Case, DATA};
use super::generate::Draft;
use super::host::{ARENA, ARENA_BYTES};
use iced_x86::{Mnemonic as M, OpKind, Register};

/// Sets what the instruction of the case uses; `None` if the case is of no use.
pub(super) fn aim(draft: &mut Draft, case: &mut Case) -> Option<()> {
    let i = case.instruction;
    if (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
        memory_operand(draft, case);
    }
    match i.mnemonic() {
        M::Push
        | M::Pushf
        | M::Pushfd
        | M::Pushfq
        | M::Pusha
        | M::Pushad
        | M::Pop
        | M::Popa
        | M::Popad => stack(draft, case),
        M::Popf | M::Popfd | M::Popfq => {
            stack(draft, case);
            // Neither TF, NT nor AC.
            let image = draft.random.next() & !0x4_4100;
            case.put(case.state.gpr[4], &image.to_le_bytes());
        }
        M::Enter | M::Leave => {
            stack(draft, case);
            case.state.gpr[5] = DATA.wrapping_add(draft.place(8));
        }
        M::Ret => {
            stack(draft, case);
            let target = draft.target();
            case.put(case.state.gpr[4], &target.to_le_bytes());
        }
        M::Jmp | M::Call => {
            if i.mnemonic() == M::Call {
                stack(draft, case);
            }
            branch_target(draft, case);
        }
        M::Bt | M::Bts | M::Btr | M::Btc => return bit_index(draft, case),
        M::Div | M::Idiv => dividend(draft, case),
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => comparand(draft, case),
        M::Bound => bounds(draft, case),
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => {
            case.state.gpr[7] = DATA.wrapping_add(draft.place(8));
        }
        M::Pcmpestri | M::Pcmpestrm | M::Vpcmpestri | M::Vpcmpestrm => lengths(draft, case),
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz
            if draft.random.one_in(2) =>
        {
            let junk = draft.random.pick(&[0, 0, 1 << 16, 1 << 31]);
            case.state.gpr[1] = draft.random.below(3) | junk;
        }
        M::Ldmxcsr | M::Vldmxcsr => mxcsr_image(draft, case, 0),
        M::Fxrstor | M::Fxrstor64 => mxcsr_image(draft, case, 24),
        _ if i.is_string_instruction() => strings(draft, case),
        _ => {}
    }
    Some(())
}

/// Sets the registers so that the memory operand lies in the data pages.
fn memory_operand(draft: &mut Draft, case: &mut Case) {
    let i = case.instruction;
    let bytes = i.memory_size().size() as u64;
    let target = DATA.wrapping_add(draft.place(bytes.next_power_of_two().clamp(1, 64)));
    let (base, index) = (i.memory_base(), i.memory_index());
    let number = |r: Register| r.full_register().number();
    let scale = u64::from(i.memory_index_scale());
    let rest = target.wrapping_sub(i.memory_displacement64());
    let gpr = &mut case.state.gpr;
    if i.mnemonic() == M::Xlatb {
        let table = target.wrapping_sub(gpr[0] & 0xff);
        set_low(&mut gpr[3], base.size(), table);
    } else if index.is_vector_register() {
        set_low(&mut gpr[number(base)], base.size(), rest);
        vector_index(draft, case);
    } else if base != Register::None && !i.is_ip_rel_memory_operand() {
        let n = number(base);
        let value = if index == Register::None {
            rest
        } else if number(index) == n {
            rest / (1 + scale)
        } else {
            rest.wrapping_sub(gpr[number(index)].wrapping_mul(scale))
        };
        set_low(&mut gpr[n], base.size(), value);
    } else if index != Register::None {
        let mask = match index.size() {
            4 => 0xffff_ffff,
            _ => u64::MAX,
        };
        let n = number(index);
        set_low(&mut gpr[n], index.size(), (rest & mask) / scale);
    }
}

/// Fills the index register of a VSIB operand: small indices, few of them far away, but none where
/// the two sides have other things mapped.
fn vector_index(draft: &mut Draft, case: &mut Case) {
    let i = case.instruction;
    let n = i.memory_index().number() & 31;
    let index_bytes = if i.is_vsib64() { 8 } else { 4 };
    let scale = u64::from(i.memory_index_scale());
    let address = case.address().unwrap_or(0);
    let mask = match i.memory_base().size() {
        4 => 0xffff_ffff,
        _ => u64::MAX,
    };
    let mut bytes = [0; 64];
    for lane in bytes.chunks_exact_mut(index_bytes) {
        let random = &mut draft.random;
        let index = match random.below(40) {
            0 => random.integer(),
            1..4 => random.below(64).wrapping_neg(),
            _ => random.below(128),
        };
        let extended = match index_bytes {
            4 => i64::from(index as i32) as u64,
            _ => index,
        };
        let target = address.wrapping_add(extended.wrapping_mul(scale)) & mask;
        if !is_foreign(target) {
            lane.copy_from_slice(&index.to_le_bytes()[..index_bytes]);
        }
    }
    // What lies beyond the index register may be more than the host has.
    let register = &mut case.state.fpu.vector[n][..i.memory_index().size() / 8];
    for (word, chunk) in register.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.iter().rev().fold(0, |v, &b| v << 8 | u64::from(b));
    }
}

/// Whether an address is in the arena, but far from the data pages.
pub(super) fn is_foreign(address: u64) -> bool {
    let around_data = DATA - 0x8_0000..DATA + 0x8_0000;
    let arena = ARENA - 0x1000..ARENA + ARENA_BYTES as u64;
    arena.contains(&address) && !around_data.contains(&address)
}

fn stack(draft: &mut Draft, case: &mut Case) {
    let i = case.instruction;
    let is_base = i.memory_base().full_register() == Register::RSP;
    if !is_base || i.mnemonic() == M::Pop {
        case.state.gpr[4] = DATA.wrapping_add(draft.place(8));
    }
}

fn branch_target(draft: &mut Draft, case: &mut Case) {
    let i = case.instruction;
    let target = draft.target();
    match i.op0_kind() {
        OpKind::Register => {
            case.state.gpr[i.op0_register().full_register().number()] = target;
        }
        OpKind::Memory => {
            if let Some(at) = case.address() {
                case.put(at, &target.to_le_bytes());
            }
        }
        _ => {}
    }
}

/// Keeps a bit index in a register from reaching far beyond the data pages.
fn bit_index(draft: &mut Draft, case: &mut Case) -> Option<()> {
    let i = case.instruction;
    if i.op0_kind() != OpKind::Memory || i.op1_kind() != OpKind::Register {
        return Some(());
    }
    let register = i.op1_register();
    let full = register.full_register();
    let uses = [i.memory_base(), i.memory_index()];
    if uses.iter().any(|r| r.full_register() == full) {
        return None;
    }
    let index = draft.random.below(4000).wrapping_sub(2000);
    let slot = &mut case.state.gpr[full.number()];
    set_low(slot, register.size(), index);
    Some(())
}

fn dividend(draft: &mut Draft, case: &mut Case) {
    let gpr = &mut case.state.gpr;
    match draft.random.below(4) {
        0 => {}
        1 => gpr[2] = 0,
        2 => gpr[2] = ((gpr[0] as i64) >> 63) as u64,
        _ => {
            gpr[2] = draft.random.below(16);
            gpr[0] &= 0x7ff;
        }
    }
    if draft.bits == Bits::B32 {
        gpr[2] &= 0xffff_ffff;
    }
}

fn comparand(draft: &mut Draft, case: &mut Case) {
    if draft.random.one_in(2) {
        return;
    }
    let i = case.instruction;
    let [rax, _, rdx, ..] = case.state.gpr;
    if i.op0_kind() == OpKind::Register {
        case.state.gpr[i.op0_register().full_register().number()] = rax;
        return;
    }
    let (mut image, second) = (rax.to_le_bytes().to_vec(), rdx.to_le_bytes());
    match i.mnemonic() {
        M::Cmpxchg8b => {
            image.truncate(4);
            image.extend_from_slice(&second[..4]);
        }
        M::Cmpxchg16b => image.extend_from_slice(&second),
        _ => {}
    }
    if let Some(at) = case.address() {
        case.put(at, &image);
    }
}

fn bounds(draft: &mut Draft, case: &mut Case) {
    if draft.random.one_in(2) {
        let size = case.instruction.op0_register().size();
        let wide = [
            vec![0; size - 1],
            vec![0x80],
            vec![0xff; size - 1],
            vec![0x7f],
        ];
        if let Some(at) = case.address() {
            case.put(at, &wide.concat());
        }
    }
}

/// Lengths of strings in EAX and EDX: mostly within the register, of either sign.
fn lengths(draft: &mut Draft, case: &mut Case) {
    for n in [0, 2] {
        if !draft.random.one_in(4) {
            let length = draft.random.below(20);
            let is_negative = draft.random.one_in(3);
            let value = if is_negative {
                length.wrapping_neg()
            } else {
                length
            };
            case.state.gpr[n] = match draft.bits {
                Bits::B64 => value,
                Bits::B32 => value & 0xffff_ffff,
            };
        }
    }
}

/// Makes the image of MXCSR valid, most of the time.
fn mxcsr_image(draft: &mut Draft, case: &mut Case, offset: u64) {
    let image = draft.random.next() as u32
        & if draft.random.one_in(8) {
            0x3_ffff
        } else {
            0xffff
        };
    if let Some(at) = case.address() {
        case.put(at.wrapping_add(offset), &image.to_le_bytes());
    }
}

fn strings(draft: &mut Draft, case: &mut Case) {
    let i = case.instruction;
    let is_narrow = (0..i.op_count()).any(|n| {
        matches!(
            i.op_kind(n),
            OpKind::MemorySegSI | OpKind::MemoryESDI | OpKind::MemorySegESI | OpKind::MemoryESEDI
        )
    });
    let has_junk = is_narrow && draft.bits == Bits::B64;
    for n in [6, 7] {
        let at = DATA.wrapping_add(draft.place(8));
        case.state.gpr[n] = at | junk(draft, has_junk);
        let level = draft.random.pick(&[0_u8, 0, 0xff]);
        if draft.random.one_in(2) {
            let bytes: Vec<u8> = (0..64)
                .map(|_| if draft.random.one_in(20) { 1 } else { level })
                .collect();
            case.put(at.wrapping_sub(32), &bytes);
            case.state.gpr[0] = if level == 0 { 0 } else { u64::from(u32::MAX) };
        }
    }
    case.state.gpr[1] = draft.random.below(40) | junk(draft, has_junk);
}

fn junk(draft: &mut Draft, wanted: bool) -> u64 {
    match wanted {
        true => draft.random.next() << 32,
        false => 0,
    }
}

/// Sets the low `bytes` bytes of a register and keeps the others.
fn set_low(register: &mut u64, bytes: usize, value: u64) {
    let mask = u64::MAX >> (64 - 8 * bytes);
    *register = *register & !mask | value & mask;
}
