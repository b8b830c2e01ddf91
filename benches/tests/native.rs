//! The 64-bit guest programs, run as they are on the host CPU, give the expected results.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(unsafe_code, reason = "runs generated code on the host CPU")]

use benches::programs::{Bits, DATA_BYTES, Group, PROGRAMS, Program};

/// Maps fresh zeroed memory, executable too.
fn map(bytes: usize) -> *mut u8 {
    let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping touches nothing that exists.
    let p = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    assert_ne!(p, libc::MAP_FAILED);
    p.cast()
}

fn run(program: &Program, iterations: u32) -> (u64, u64) {
    let code = map(1 << 16);
    let data = map(DATA_BYTES as usize);
    let bytes = program.assemble(code as u64);
    assert!(bytes.len() <= 1 << 16);
    let result: u64;
    // SAFETY: the code fits its mapping; it returns, uses the stack as a function does, stays in
    // its data area, and changes only registers that are saved or declared here.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), code, bytes.len());
        std::arch::asm!(
            "push rbx",
            "push rbp",
            "call rax",
            "pop rbp",
            "pop rbx",
            inout("rax") code as u64 => result,
            inout("rdi") u64::from(iterations) => _,
            inout("rsi") data as u64 => _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("sysv64"),
        );
        libc::munmap(code.cast(), 1 << 16);
        libc::munmap(data.cast(), DATA_BYTES as usize);
    }
    (result, data as u64)
}

#[test]
fn programs_give_on_the_host_cpu_what_they_are_expected_to_give() {
    let is_native = |p: &&Program| p.bits == Bits::Long64 && p.group != Group::Vmx;
    for program in PROGRAMS.iter().filter(is_native) {
        for iterations in [1, 3] {
            let (result, data) = run(program, iterations);
            assert_eq!(
                result,
                program.expected(iterations, data),
                "{} x{iterations}",
                program.name
            );
        }
    }
}
