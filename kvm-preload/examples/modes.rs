//! A small VMM on the `kvm-ioctls` crate: runs a guest in real, protected, 32-bit paged and long
//! mode and prints what each computed.
//!
//! It knows nothing of softvmx: run it under the preload library, or with a real /dev/kvm.
#![expect(unsafe_code, reason = "guest memory is mapped and handed to KVM")]

use std::error::Error;

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

const MEMORY_BYTES: usize = 1 << 20;
const CODE: u64 = 0x1000;
const PAGE_TABLES: u64 = 0x10000;
const PORT: u16 = 0x3f8;

/// The mode that a guest starts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Real,
    Protected,
    Paged,
    Long,
}

/// `add` of two registers, the sum to a port, byte by byte, then HLT; the same bytes in 16-, 32-
/// and 64-bit code but for the default operand size.
const CODE_BYTES: &[u8] = &[
    0xba, 0xf8, 0x03, // mov dx, 3f8h (16-bit code)
    0x01, 0xd8, // add ax, bx
    0xee, // out dx, al
    0x88, 0xe0, // mov al, ah
    0xee, // out dx, al
    0xf4, // hlt
];

/// As [`CODE_BYTES`], where the immediate of the MOV has 32 bits.
const CODE_BYTES_32: &[u8] = &[
    0xba, 0xf8, 0x03, 0x00, 0x00, 0x01, 0xd8, 0xee, 0x88, 0xe0, 0xee, 0xf4,
];

fn main() -> Result<(), Box<dyn Error>> {
    let kvm = Kvm::new()?;
    println!("API version {}", kvm.get_api_version());
    for mode in [Mode::Real, Mode::Protected, Mode::Paged, Mode::Long] {
        let output = run(&kvm, mode)?;
        println!(
            "{mode:?}: {:#06x}",
            u16::from_le_bytes([output[0], output[1]])
        );
    }
    Ok(())
}

fn run(kvm: &Kvm, mode: Mode) -> Result<Vec<u8>, Box<dyn Error>> {
    let vm = kvm.create_vm()?;
    let memory = map_memory(&vm)?;
    let code = if mode == Mode::Real {
        CODE_BYTES
    } else {
        CODE_BYTES_32
    };
    memory[CODE as usize..][..code.len()].copy_from_slice(code);
    fill_page_tables(memory, mode);
    let mut vcpu = vm.create_vcpu(0)?;
    let mut sregs = vcpu.get_sregs()?;
    set_mode(&mut sregs, mode);
    vcpu.set_sregs(&sregs)?;
    let regs = kvm_regs {
        rip: CODE,
        rflags: 2,
        rax: 0x1200,
        rbx: 0x34,
        ..Default::default()
    };
    vcpu.set_regs(&regs)?;
    let output = run_to_halt(&mut vcpu)?;
    let regs = vcpu.get_regs()?;
    if regs.rbx != 0x34 || output.len() != 2 {
        return Err(format!("{mode:?}: registers {regs:?}, output {output:?}").into());
    }
    Ok(output)
}

/// Maps guest memory for the life of the process.
fn map_memory(vm: &VmFd) -> Result<&'static mut [u8], Box<dyn Error>> {
    // SAFETY: a new anonymous mapping, which nobody else has, of the length given, never unmapped.
    let memory = unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let at = libc::mmap(std::ptr::null_mut(), MEMORY_BYTES, protection, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error().into());
        }
        std::slice::from_raw_parts_mut(at.cast::<u8>(), MEMORY_BYTES)
    };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the memory stays mapped.
    unsafe { vm.set_user_memory_region(region)? };
    Ok(memory)
}

/// Maps the first megabytes one to one: by a 4-MiB page, or by 4-level paging with a 2-MiB page.
fn fill_page_tables(memory: &mut [u8], mode: Mode) {
    let mut put = |at: u64, entry: u64, bytes: usize| {
        memory[at as usize..][..bytes].copy_from_slice(&entry.to_le_bytes()[..bytes]);
    };
    match mode {
        Mode::Paged => put(PAGE_TABLES, 0x83, 4),
        Mode::Long => {
            put(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 3, 8);
            put(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 3, 8);
            put(PAGE_TABLES + 0x2000, 0x83, 8);
        }
        Mode::Real | Mode::Protected => {}
    }
}

fn set_mode(sregs: &mut kvm_sregs, mode: Mode) {
    if mode == Mode::Real {
        sregs.cs.base = 0;
        sregs.cs.selector = 0;
        return;
    }
    let flat = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let is_long = mode == Mode::Long;
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 11,
        db: u8::from(!is_long),
        l: u8::from(is_long),
        ..flat
    };
    for segment in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *segment = flat;
    }
    sregs.cr0 |= 1;
    sregs.cr3 = PAGE_TABLES;
    match mode {
        Mode::Paged => {
            sregs.cr4 |= 0x10;
            sregs.cr0 |= 1 << 31;
        }
        Mode::Long => {
            sregs.cr4 |= 0x20;
            sregs.efer |= 0x500;
            sregs.cr0 |= 1 << 31;
        }
        Mode::Real | Mode::Protected => {}
    }
}

fn run_to_halt(vcpu: &mut VcpuFd) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut output = Vec::new();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(PORT, bytes) => output.extend(bytes),
            VcpuExit::Hlt => return Ok(output),
            other => return Err(format!("unexpected exit {other:?}").into()),
        }
    }
}
