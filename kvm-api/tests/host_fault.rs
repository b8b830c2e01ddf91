//! Memory of a slot that vanishes while the guest uses it: KVM_RUN fails with EFAULT, the guest
//! stands at the instruction that needed it, and goes on when the memory is back.
#![allow(unsafe_code, reason = "takes memory away from a guest")]

mod common;

use common::Guest;
use kvm_api::Errno;
use kvm_bindings::KVM_EXIT_IO;

/// The page that vanishes.
const PAGE: usize = 0x5000;

/// How it is taken away.
#[derive(Clone, Copy, Debug)]
enum Loss {
    /// No access: SIGSEGV.
    Protected,
    /// Reads only: SIGSEGV for writes.
    ReadOnly,
    /// The file behind it ends before: SIGBUS.
    Truncated,
}

/// What is accessed, the code before an `out 0x10, al` and a jump back to it, the offset of the
/// instruction that fails, whether it writes.
const ROWS: &[(&str, &[u8], u64, bool)] = &[
    ("load", &[0xa1, 0, 0x50], 0, false),
    ("load and add", &[0x03, 0x06, 0, 0x50], 0, false),
    ("store", &[0xa3, 0, 0x50], 0, true),
    ("store of a constant", &[0xc7, 0x06, 0, 0x50, 1, 2], 0, true),
    ("update", &[0xff, 0x06, 0, 0x50], 0, true),
    ("locked update", &[0xf0, 0xff, 0x06, 0, 0x50], 0, true),
    ("exchange", &[0x87, 0x06, 0, 0x50], 0, true),
    ("push", &[0xbc, 0x10, 0x50, 0x50], 3, true),
    ("pop", &[0xbc, 0x10, 0x50, 0x5b], 3, false),
    ("push of memory", &[0xff, 0x36, 0, 0x50], 0, false),
    ("call", &[0xbc, 0x10, 0x50, 0xe8, 0, 0], 3, true),
    ("fxsave", &[0x0f, 0xae, 0x06, 0, 0x50], 0, true),
    ("fldcw", &[0xd9, 0x2e, 0, 0x50], 0, false),
    // mov cx, 64; mov si, 0x5000; mov di, 0x6000; cld; rep movsb
    (
        "copy from",
        &[0xb9, 64, 0, 0xbe, 0, 0x50, 0xbf, 0, 0x60, 0xf3, 0xa4],
        9,
        false,
    ),
    (
        "copy to",
        &[0xb9, 64, 0, 0xbe, 0, 0x60, 0xbf, 0, 0x50, 0xf3, 0xa4],
        9,
        true,
    ),
    // mov cx, 64; mov di, 0x5000; rep stosb
    ("fill", &[0xb9, 64, 0, 0xbf, 0, 0x50, 0xf3, 0xaa], 6, true),
    // Through the vector table, which lidt has put into the page: a far pointer to an iret.
    (
        "interrupt",
        &[0x0f, 0x01, 0x1e, 0, 0x21, 0xcd, 0x20],
        5,
        false,
    ),
    // mov bx, 0x5100; call bx: the code is there.
    ("fetch", &[0xbb, 0, 0x51, 0xff, 0xd3], 0x4100, false),
];

/// A guest whose page 0x5000 is the page of a file.
fn guest(body: &[u8]) -> (Guest, i32) {
    let mut code = body.to_vec();
    let back = -(body.len() as i8 + 4);
    code.extend([0xe6, 0x10, 0xeb, back as u8]);
    let guest = Guest::new(&code);
    // SAFETY: replaces a page of the guest's memory.
    let file = unsafe {
        let file = libc::memfd_create(c"page".as_ptr(), 0);
        assert_eq!(libc::ftruncate(file, 4096), 0);
        let (protection, how) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let place = guest.memory.add(PAGE).cast();
        let at = libc::mmap(place, 4096, protection, how | libc::MAP_FIXED, file, 0);
        assert_eq!(at, place);
        file
    };
    guest.write(0x2100, &[0xff, 0x03, 0, 0x50, 0, 0]);
    guest.write(0x2200, &[0xcf]);
    guest.write(PAGE + 0x20 * 4, &[0x00, 0x22, 0, 0]);
    guest.write(PAGE + 0x100, &[0xc3]);
    (guest, file)
}

fn protect(guest: &Guest, protection: i32) {
    // SAFETY: a page of the guest's memory, which nobody else uses.
    let done = unsafe { libc::mprotect(guest.memory.add(PAGE).cast(), 4096, protection) };
    assert_eq!(done, 0);
}

fn resize(file: i32, bytes: i64) {
    // SAFETY: a file of this test's.
    assert_eq!(unsafe { libc::ftruncate(file, bytes) }, 0);
}

fn check(name: &str, body: &[u8], at: u64, loss: Loss) {
    let (guest, file) = guest(body);
    for _ in 0..3 {
        assert_eq!(guest.run(), KVM_EXIT_IO, "{name}");
    }
    match loss {
        Loss::Protected => protect(&guest, libc::PROT_NONE),
        Loss::ReadOnly => protect(&guest, libc::PROT_READ),
        Loss::Truncated => resize(file, 0),
    }
    for _ in 0..2 {
        assert_eq!(guest.vcpu.run(), Err(Errno::EFAULT), "{name}, {loss:?}");
        assert_eq!(guest.regs().rip, 0x1000 + at, "{name}, {loss:?}");
    }
    match loss {
        Loss::Protected | Loss::ReadOnly => protect(&guest, libc::PROT_READ | libc::PROT_WRITE),
        Loss::Truncated => resize(file, 4096),
    }
    guest.write(PAGE + 0x20 * 4, &[0x00, 0x22, 0, 0]);
    guest.write(PAGE + 0x100, &[0xc3]);
    for _ in 0..3 {
        assert_eq!(guest.run(), KVM_EXIT_IO, "{name}, {loss:?}");
    }
    // SAFETY: a file of this test's.
    unsafe { libc::close(file) };
}

#[test]
fn memory_that_vanishes_is_efault() {
    for &(name, body, at, is_write) in ROWS {
        check(name, body, at, Loss::Protected);
        check(name, body, at, Loss::Truncated);
        if is_write {
            check(name, body, at, Loss::ReadOnly);
        }
    }
}

#[test]
fn memory_may_vanish_while_the_guest_runs() {
    // l: mov [0x5000], ax; inc ax; jmp l
    let (guest, _file) = guest(&[0xa3, 0, 0x50, 0x40, 0xeb, 0xfa]);
    let page = guest.memory.wrapping_add(PAGE) as usize;
    let thief = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        // SAFETY: a page of the guest's memory.
        unsafe { libc::mprotect(page as *mut libc::c_void, 4096, libc::PROT_NONE) };
    });
    assert_eq!(guest.vcpu.run(), Err(Errno::EFAULT));
    assert_eq!(guest.regs().rip, 0x1000);
    thief.join().expect("no panic");
}

#[test]
fn another_fault_still_ends_the_process() {
    let (guest, _file) = guest(&[0x90]);
    assert_eq!(guest.run(), KVM_EXIT_IO);
    // SAFETY: the child only touches memory that is not there, and the parent waits for it.
    let status = unsafe {
        let child = libc::fork();
        if child == 0 {
            let mut bad = 8_u64;
            (std::hint::black_box(&raw mut bad).read() as *mut u8).write_volatile(1);
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        status
    };
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV);
}
