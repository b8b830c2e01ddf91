//! Engines behind the KVM API: the real /dev/kvm and ours, driven by the same code.
//!
//! The image is put into guest memory and entered in the state that the boot sector would make.
#![expect(unsafe_code, reason = "ioctls, and memory that a guest writes")]

use std::ffi::c_void;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use benches::bare;
use benches::image::{BEGIN, END, Image, MARK_PORT};
use benches::programs::{Bits, Group, Program};
use kvm_bindings::{
    KVM_EXIT_HLT, KVM_EXIT_IO, kvm_cpuid_entry2, kvm_cpuid2, kvm_regs, kvm_run, kvm_segment,
    kvm_sregs, kvm_userspace_memory_region,
};

use x86_interp::Stop;

use crate::engine::{Engine, Measurement};

const KVM_CREATE_VM: u32 = 0xae01;
const KVM_GET_VCPU_MMAP_SIZE: u32 = 0xae04;
const KVM_GET_SUPPORTED_CPUID: u32 = 0xc008_ae05;
const KVM_CREATE_VCPU: u32 = 0xae41;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_RUN: u32 = 0xae80;
const KVM_SET_REGS: u32 = 0x4090_ae82;
const KVM_SET_CPUID2: u32 = 0x4008_ae90;
const KVM_GET_SREGS: u32 = 0x8138_ae83;
const KVM_SET_SREGS: u32 = 0x4138_ae84;

/// More leaves of CPUID than any KVM has.
const LEAVES: usize = 256;

/// A KVM: the kernel's, or ours.
trait Kvm {
    fn open(&self) -> Result<RawFd>;
    fn ioctl(&self, fd: RawFd, request: u32, arg: u64) -> Result<i64>;
    fn close(&self, fd: RawFd);
}

struct Kernel;

impl Kvm for Kernel {
    fn open(&self) -> Result<RawFd> {
        // SAFETY: a constant path.
        let fd = unsafe { libc::open(c"/dev/kvm".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        ensure!(fd >= 0, "/dev/kvm: {}", std::io::Error::last_os_error());
        Ok(fd)
    }

    fn ioctl(&self, fd: RawFd, request: u32, arg: u64) -> Result<i64> {
        // SAFETY: the callers below pass what the request asks for.
        let done = unsafe { libc::ioctl(fd, u64::from(request), arg) };
        ensure!(
            done >= 0,
            "ioctl {request:#x}: {}",
            std::io::Error::last_os_error()
        );
        Ok(i64::from(done))
    }

    fn close(&self, fd: RawFd) {
        // SAFETY: the descriptor is ours.
        unsafe { libc::close(fd) };
    }
}

struct Ours;

impl Kvm for Ours {
    fn open(&self) -> Result<RawFd> {
        Ok(kvm_api::abi::open_system()?)
    }

    fn ioctl(&self, fd: RawFd, request: u32, arg: u64) -> Result<i64> {
        let done = kvm_api::abi::ioctl(fd, request, arg).context("not one of our descriptors")?;
        done.with_context(|| format!("ioctl {request:#x}"))
    }

    fn close(&self, fd: RawFd) {
        let _ = kvm_api::abi::close(fd);
    }
}

/// This project's emulator through its raw KVM ABI.
pub(crate) struct Softvmx;

impl Engine for Softvmx {
    fn name(&self) -> &'static str {
        "softvmx"
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn run(&mut self, image: &Image) -> Result<Measurement> {
        Vm::new(&Ours, image)?.run()
    }
}

/// This project's processor with nothing around it: no hypervisor, no EPT.
pub(crate) struct Bare;

impl Engine for Bare {
    fn name(&self) -> &'static str {
        "softvmx-bare"
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn runs(&self, _: Group) -> bool {
        true
    }

    fn run(&mut self, image: &Image) -> Result<Measurement> {
        let mut cpu = bare::processor(image)?;
        let begin = Instant::now();
        let stop = cpu.run(u64::MAX);
        let seconds = begin.elapsed().as_secs_f64();
        ensure!(stop == Stop::Halt, "{stop:?}");
        Ok(Measurement {
            seconds,
            result: bare::result(&cpu, image.bits),
        })
    }
}

/// The kernel's KVM.
pub(crate) struct HostKvm;

impl Engine for HostKvm {
    /// The software KVM of a host without VT-x has no SSE.
    fn runs(&self, group: Group) -> bool {
        !group.is_floating_point() && group != Group::Vmx
    }

    fn name(&self) -> &'static str {
        "host-kvm"
    }

    fn check(&self) -> Result<()> {
        Kernel.open().map(|fd| Kernel.close(fd))
    }

    fn run(&mut self, image: &Image) -> Result<Measurement> {
        Vm::new(&Kernel, image)?.run()
    }

    fn first_iterations(&self, _: &Program) -> u32 {
        1
    }
}

/// An anonymous or shared mapping.
struct Mapping {
    address: NonNull<c_void>,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize, fd: Option<RawFd>) -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = match fd {
            Some(_) => libc::MAP_SHARED,
            None => libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        };
        // SAFETY: a new mapping touches nothing that exists.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                flags,
                fd.unwrap_or(-1),
                0,
            )
        };
        ensure!(
            at != libc::MAP_FAILED,
            "mmap: {}",
            std::io::Error::last_os_error()
        );
        Ok(Self {
            address: NonNull::new(at).context("mmap gave null")?,
            bytes,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; nothing points into it any more.
        unsafe { libc::munmap(self.address.as_ptr(), self.bytes) };
    }
}

/// A machine with one processor, ready to enter the image.
struct Vm<'a> {
    kvm: &'a dyn Kvm,
    fds: Vec<RawFd>,
    vcpu: RawFd,
    run: Mapping,
    _ram: Mapping,
}

impl<'a> Vm<'a> {
    fn new(kvm: &'a dyn Kvm, image: &Image) -> Result<Self> {
        let system = kvm.open()?;
        let vm = kvm.ioctl(system, KVM_CREATE_VM, 0)? as RawFd;
        let ram = Mapping::new(Image::RAM_BYTES as usize, None)?;
        // SAFETY: the image lies inside the RAM that was just mapped.
        unsafe {
            let at = ram.address.as_ptr().cast::<u8>().add(Image::BASE as usize);
            std::ptr::copy_nonoverlapping(image.bytes.as_ptr(), at, image.bytes.len());
        }
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: Image::RAM_BYTES,
            userspace_addr: ram.address.as_ptr() as u64,
        };
        kvm.ioctl(vm, KVM_SET_USER_MEMORY_REGION, (&raw const region) as u64)?;
        let vcpu = kvm.ioctl(vm, KVM_CREATE_VCPU, 0)? as RawFd;
        let bytes = kvm.ioctl(system, KVM_GET_VCPU_MMAP_SIZE, 0)? as usize;
        let run = Mapping::new(bytes, Some(vcpu))?;
        let machine = Self {
            kvm,
            fds: vec![vcpu, vm, system],
            vcpu,
            run,
            _ram: ram,
        };
        machine.set_cpuid()?;
        machine.set_state(image.bits)?;
        Ok(machine)
    }

    /// The guest may have what the KVM offers.
    fn set_cpuid(&self) -> Result<()> {
        #[repr(C)]
        struct Leaves {
            head: kvm_cpuid2,
            entries: [kvm_cpuid_entry2; LEAVES],
        }
        let mut leaves = Leaves {
            head: kvm_cpuid2 {
                nent: LEAVES as u32,
                ..kvm_cpuid2::default()
            },
            entries: [kvm_cpuid_entry2::default(); LEAVES],
        };
        let system = self.fds[2];
        let at = (&raw mut leaves) as u64;
        self.kvm.ioctl(system, KVM_GET_SUPPORTED_CPUID, at)?;
        self.kvm.ioctl(self.vcpu, KVM_SET_CPUID2, at)?;
        Ok(())
    }

    /// The state that the boot sector makes.
    fn set_state(&self, bits: Bits) -> Result<()> {
        let mut sregs = kvm_sregs::default();
        self.kvm
            .ioctl(self.vcpu, KVM_GET_SREGS, (&raw mut sregs) as u64)?;
        let is_long = bits == Bits::Long64;
        let data = kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector: 0x10,
            type_: 3,
            present: 1,
            s: 1,
            db: 1,
            g: 1,
            ..Default::default()
        };
        for segment in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            *segment = data;
        }
        sregs.cs = kvm_segment {
            selector: if is_long { 0x08 } else { 0x18 },
            type_: 11,
            l: u8::from(is_long),
            db: u8::from(!is_long),
            ..data
        };
        sregs.gdt.base = Image::BASE;
        sregs.gdt.limit = 31;
        sregs.cr0 = 0x11;
        if is_long {
            sregs.cr0 |= 1 << 31;
            sregs.cr3 = Image::CR3;
            sregs.cr4 = 0x20;
            sregs.efer = 0x500;
        }
        self.kvm
            .ioctl(self.vcpu, KVM_SET_SREGS, (&raw const sregs) as u64)?;
        let regs = kvm_regs {
            rip: Image::ENTRY,
            rflags: 2,
            ..Default::default()
        };
        self.kvm
            .ioctl(self.vcpu, KVM_SET_REGS, (&raw const regs) as u64)?;
        Ok(())
    }

    /// Runs to HLT; takes the time between the marks.
    fn run(&self) -> Result<Measurement> {
        let (mut begin, mut seconds, mut digits) = (None, 0.0, String::new());
        loop {
            self.kvm.ioctl(self.vcpu, KVM_RUN, 0)?;
            match self.exit()? {
                Exit::Halt => break,
                Exit::Other => {}
                Exit::Mark(BEGIN) => begin = Some(Instant::now()),
                Exit::Mark(END) => seconds = begin.context("no begin")?.elapsed().as_secs_f64(),
                Exit::Mark(byte) => digits.push(char::from(byte)),
            }
        }
        Ok(Measurement {
            seconds,
            result: u64::from_str_radix(digits.trim(), 16)?,
        })
    }

    fn exit(&self) -> Result<Exit> {
        let run = self.run.address.as_ptr().cast::<kvm_run>();
        // SAFETY: the mapping holds a `kvm_run` that nobody writes while KVM_RUN is not executing;
        // the union is read as the exit reason says, the data lies inside the mapping.
        unsafe {
            match (*run).exit_reason {
                KVM_EXIT_HLT => Ok(Exit::Halt),
                KVM_EXIT_IO if (*run).__bindgen_anon_1.io.port == MARK_PORT => {
                    let offset = (*run).__bindgen_anon_1.io.data_offset as usize;
                    Ok(Exit::Mark(*run.cast::<u8>().add(offset)))
                }
                KVM_EXIT_IO => Ok(Exit::Other),
                reason => bail!("KVM exit reason {reason}"),
            }
        }
    }
}

impl Drop for Vm<'_> {
    fn drop(&mut self) {
        for fd in &self.fds {
            self.kvm.close(*fd);
        }
    }
}

enum Exit {
    Mark(u8),
    Halt,
    Other,
}
