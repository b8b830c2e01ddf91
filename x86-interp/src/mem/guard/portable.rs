//! On other hosts: plain accesses. A fault is not recovered from.

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::{Entered, dispatch};
use crate::Cpu;
use crate::mem::tlb::{read_host, write_host};
use crate::uop::Uop;
use crate::width::Width;

pub(super) fn is_guarded(_rip: u64) -> bool {
    false
}

/// Where abandoned micro-ops would go on: nothing is abandoned here.
pub(super) fn abandoned() -> u64 {
    0
}

/// # Safety
/// `uop`, "Safety".
pub(super) unsafe fn enter(cpu: *mut Cpu, op: *const Uop, _entered: *mut Entered) {
    // SAFETY: the caller's.
    unsafe { dispatch(cpu, op) };
}

/// Loads guest memory.
///
/// # Safety
/// `address` is readable for `W`.
#[inline]
pub(crate) unsafe fn load<W: Width>(address: u64) -> Option<W> {
    // SAFETY: the caller's.
    Some(unsafe { read_host(address) })
}

/// Stores to guest memory.
///
/// # Safety
/// `address` is writable for `W`.
#[inline]
pub(crate) unsafe fn store<W: Width>(address: u64, value: W) -> bool {
    // SAFETY: the caller's.
    unsafe { write_host(address, value) };
    true
}

/// Compares and exchanges guest memory atomically: `Ok` with the old value, or `Err` with the one
/// that is there instead.
///
/// # Safety
/// `address` is writable for `W` and aligned to its size.
pub(crate) unsafe fn compare_exchange<W: Width>(
    address: u64,
    old: W,
    new: W,
) -> Option<Result<W, W>> {
    macro_rules! by {
        ($atomic:ty, $word:ty) => {{
            // SAFETY: the caller's.
            let word = unsafe { <$atomic>::from_ptr(address as *mut $word) };
            let (old, new) = (old.to_u64() as $word, new.to_u64() as $word);
            let was = word.compare_exchange(old, new, SeqCst, SeqCst);
            was.map(|v| W::from_u64(u64::from(v)))
                .map_err(|v| W::from_u64(u64::from(v)))
        }};
    }
    Some(match W::BYTES {
        1 => by!(AtomicU8, u8),
        2 => by!(AtomicU16, u16),
        4 => by!(AtomicU32, u32),
        _ => by!(AtomicU64, u64),
    })
}

/// Copies words of 8 bytes upward.
///
/// # Safety
/// `from` is readable and `to` writable for `words` words.
pub(crate) unsafe fn copy_words(to: u64, from: u64, words: u64) -> bool {
    for at in (0..words).map(|n| 8 * n) {
        // SAFETY: the caller's.
        unsafe { write_host(to + at, read_host::<u64>(from + at)) };
    }
    true
}

/// Fills words of 8 bytes.
///
/// # Safety
/// `to` is writable for `words` words.
pub(crate) unsafe fn fill_words(to: u64, value: u64, words: u64) -> bool {
    for at in (0..words).map(|n| 8 * n) {
        // SAFETY: the caller's.
        unsafe { write_host(to + at, value) };
    }
    true
}
