//! On x86-64: functions in machine code, so that the address of each access is known.

use core::arch::naked_asm;

use super::{Entered, dispatch};
use crate::Cpu;
use crate::uop::Uop;
use crate::width::Width;

/// What a load returns, in RAX and RDX.
#[repr(C)]
struct Loaded {
    value: u64,
    failed: u64,
}

/// Loads of the address in RDI.
macro_rules! loads {
    ($($name:ident: $instruction:literal;)*) => {
        $(
            #[unsafe(naked)]
            unsafe extern "sysv64" fn $name(address: u64) -> Loaded {
                naked_asm!($instruction, "xor edx, edx", "ret")
            }
        )*
    };
}

loads! {
    load_1: "movzx eax, byte ptr [rdi]";
    load_2: "movzx eax, word ptr [rdi]";
    load_4: "mov eax, dword ptr [rdi]";
    load_8: "mov rax, qword ptr [rdi]";
}

/// Stores of RSI to the address in RDI.
macro_rules! stores {
    ($($name:ident: $instruction:literal;)*) => {
        $(
            #[unsafe(naked)]
            unsafe extern "sysv64" fn $name(address: u64, value: u64) -> u64 {
                naked_asm!($instruction, "xor eax, eax", "ret")
            }
        )*
    };
}

stores! {
    store_1: "mov byte ptr [rdi], sil";
    store_2: "mov word ptr [rdi], si";
    store_4: "mov dword ptr [rdi], esi";
    store_8: "mov qword ptr [rdi], rsi";
}

/// Compares RSI with the value at RDI, and exchanges that for RDX. The first instruction is three
/// bytes long.
macro_rules! exchanges {
    ($($name:ident: $instruction:literal;)*) => {
        $(
            #[unsafe(naked)]
            unsafe extern "sysv64" fn $name(address: u64, old: u64, new: u64) -> Loaded {
                naked_asm!("mov rax, rsi", $instruction, "mov edx, 0", "ret")
            }
        )*
    };
}

exchanges! {
    exchange_1: "lock cmpxchg byte ptr [rdi], dl";
    exchange_2: "lock cmpxchg word ptr [rdi], dx";
    exchange_4: "lock cmpxchg dword ptr [rdi], edx";
    exchange_8: "lock cmpxchg qword ptr [rdi], rdx";
}

/// Copies RDX words from RSI to RDI.
#[unsafe(naked)]
unsafe extern "sysv64" fn copy(to: u64, from: u64, words: u64) -> u64 {
    naked_asm!("mov rcx, rdx", "rep movsq", "xor eax, eax", "ret")
}

/// Fills RDX words at RDI with RSI.
#[unsafe(naked)]
unsafe extern "sysv64" fn fill(to: u64, value: u64, words: u64) -> u64 {
    naked_asm!(
        "mov rax, rsi",
        "mov rcx, rdx",
        "rep stosq",
        "xor eax, eax",
        "ret"
    )
}

/// Length of the register moves in front of some accesses.
const MOVE: u64 = 3;

/// Whether the instruction at `rip` is one of the accesses above.
pub(super) fn is_guarded(rip: u64) -> bool {
    let first = [load_1, load_2, load_4, load_8].map(|f| f as *const () as u64);
    let stores = [store_1, store_2, store_4, store_8].map(|f| f as *const () as u64);
    let exchanges = [exchange_1, exchange_2, exchange_4, exchange_8];
    let exchanges = exchanges.map(|f| f as *const () as u64 + MOVE);
    let strings = [
        copy as *const () as u64 + MOVE,
        fill as *const () as u64 + 2 * MOVE,
    ];
    first.contains(&rip)
        || stores.contains(&rip)
        || exchanges.contains(&rip)
        || strings.contains(&rip)
}

/// Saves what a function must keep on the stack and the stack pointer in `entered`, and calls
/// [`dispatch`].
#[unsafe(naked)]
unsafe extern "sysv64" fn enter_saving(
    cpu: *mut Cpu,
    op: *const Uop,
    entered: *mut Entered,
    dispatch: unsafe extern "C" fn(*mut Cpu, *const Uop),
) {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "sub rsp, 8",
        "mov [rdx], rsp",
        "call rcx",
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// The end of [`enter_saving`], with the stack pointer that it saved.
#[unsafe(naked)]
unsafe extern "sysv64" fn leave() {
    naked_asm!(
        "add rsp, 8",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
    )
}

/// Where abandoned micro-ops go on.
pub(super) fn abandoned() -> u64 {
    leave as *const () as u64
}

/// # Safety
/// `uop`, "Safety"; `entered` lives until this returns.
pub(super) unsafe fn enter(cpu: *mut Cpu, op: *const Uop, entered: *mut Entered) {
    // SAFETY: the caller's.
    unsafe { enter_saving(cpu, op, entered, dispatch) };
}

/// Loads guest memory in one access; `None` if it is not there.
///
/// # Safety
/// `address` names `W::BYTES` bytes of a region.
#[inline]
pub(crate) unsafe fn load<W: Width>(address: u64) -> Option<W> {
    // SAFETY: a failing access returns by way of `recover`.
    let loaded = unsafe {
        match W::BYTES {
            1 => load_1(address),
            2 => load_2(address),
            4 => load_4(address),
            _ => load_8(address),
        }
    };
    (loaded.failed == 0).then(|| W::from_u64(loaded.value))
}

/// Stores to guest memory in one access; false if it cannot be written.
///
/// # Safety
/// As for [`load`].
#[inline]
pub(crate) unsafe fn store<W: Width>(address: u64, value: W) -> bool {
    let value = value.to_u64();
    // SAFETY: as in `load`.
    let failed = unsafe {
        match W::BYTES {
            1 => store_1(address, value),
            2 => store_2(address, value),
            4 => store_4(address, value),
            _ => store_8(address, value),
        }
    };
    failed == 0
}

/// Compares and exchanges guest memory atomically: `Ok` with the old value, or `Err` with the one
/// that is there instead; `None` if it cannot be written.
///
/// # Safety
/// As for [`load`]; `address` is aligned to the size.
#[inline]
pub(crate) unsafe fn compare_exchange<W: Width>(
    address: u64,
    old: W,
    new: W,
) -> Option<Result<W, W>> {
    let (expected, new) = (old.to_u64(), new.to_u64());
    // SAFETY: as in `load`.
    let loaded = unsafe {
        match W::BYTES {
            1 => exchange_1(address, expected, new),
            2 => exchange_2(address, expected, new),
            4 => exchange_4(address, expected, new),
            _ => exchange_8(address, expected, new),
        }
    };
    let seen = W::from_u64(loaded.value);
    let result = if seen == old { Ok(seen) } else { Err(seen) };
    (loaded.failed == 0).then_some(result)
}

/// Copies words of 8 bytes upward; false if memory is not there, after some words perhaps.
///
/// # Safety
/// As for [`load`], for both ranges.
pub(crate) unsafe fn copy_words(to: u64, from: u64, words: u64) -> bool {
    // SAFETY: as in `load`; the direction flag is clear, as the ABI has it.
    unsafe { copy(to, from, words) == 0 }
}

/// Fills words of 8 bytes; false if memory is not there, after some words perhaps.
///
/// # Safety
/// As for [`load`].
pub(crate) unsafe fn fill_words(to: u64, value: u64, words: u64) -> bool {
    // SAFETY: as in `copy_words`.
    unsafe { fill(to, value, words) == 0 }
}
