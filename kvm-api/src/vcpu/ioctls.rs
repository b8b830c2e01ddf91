//! The table of vCPU ioctls, and the methods of [`Vcpu`] behind it.

use crate::deferral;
use crate::dispatch::{Row, done, get, put};
use crate::errno::{Errno, Result};
use crate::signals::{Block, Signals};
use crate::uaccess::UserPtr;
use crate::uapi::*;
use crate::vcpu::msr::Initiator;
use crate::vcpu::{Loaded, Vcpu, cpuid};
use kvm_bindings::*;
use std::sync::Arc;

type Handler = fn(&Arc<Vcpu>, u64) -> Result<i64>;

const fn row(request: u32, handler: Handler) -> Row<Arc<Vcpu>> {
    Row::new(request, handler)
}

/// The vCPU ioctls. A request that is not here is EINVAL.
pub(crate) const IOCTLS: &[Row<Arc<Vcpu>>] = &[
    row(KVM_RUN, |vcpu, arg| {
        if arg == 0 {
            done(vcpu.run_blocking(match deferral::handlers_defer() {
                true => Block::Later,
                false => Block::AtOnce,
            }))
        } else {
            Err(Errno::EINVAL)
        }
    }),
    row(KVM_GET_REGS, |vcpu, arg| put(arg, &vcpu.get_regs()?)),
    row(KVM_SET_REGS, |vcpu, arg| {
        done(get(arg).and_then(|regs| vcpu.set_regs(&regs)))
    }),
    row(KVM_GET_SREGS, |vcpu, arg| put(arg, &vcpu.get_sregs()?)),
    row(KVM_SET_SREGS, |vcpu, arg| {
        done(get(arg).and_then(|sregs| vcpu.set_sregs(&sregs)))
    }),
    row(KVM_GET_SREGS2, |vcpu, arg| put(arg, &vcpu.get_sregs2()?)),
    row(KVM_SET_SREGS2, |vcpu, arg| {
        done(get(arg).and_then(|sregs| vcpu.set_sregs2(&sregs)))
    }),
    row(KVM_GET_FPU, |vcpu, arg| put(arg, &vcpu.get_fpu()?)),
    row(KVM_SET_FPU, |vcpu, arg| {
        done(get(arg).and_then(|fpu| vcpu.set_fpu(&fpu)))
    }),
    row(KVM_GET_XSAVE, get_xsave),
    row(KVM_GET_XSAVE2, get_xsave),
    row(KVM_SET_XSAVE, |vcpu, arg| {
        let bytes: Vec<u8> = UserPtr(arg).read_array(super::fpu::XSAVE_BYTES)?;
        done(vcpu.with(|vcpu| vcpu.fpu().set_xsave(&bytes)))
    }),
    row(KVM_GET_XCRS, |vcpu, arg| put(arg, &vcpu.get_xcrs()?)),
    row(KVM_SET_XCRS, |vcpu, arg| {
        done(get(arg).and_then(|xcrs| vcpu.set_xcrs(&xcrs)))
    }),
    row(KVM_GET_DEBUGREGS, |vcpu, arg| {
        put(arg, &vcpu.get_debug_regs()?)
    }),
    row(KVM_SET_DEBUGREGS, |vcpu, arg| {
        done(get(arg).and_then(|d| vcpu.set_debug_regs(&d)))
    }),
    row(KVM_GET_MSRS, get_msrs),
    row(KVM_SET_MSRS, set_msrs),
    row(KVM_SET_CPUID, set_cpuid),
    row(KVM_SET_CPUID2, set_cpuid2),
    row(KVM_GET_CPUID2, get_cpuid2),
    row(KVM_GET_MP_STATE, |vcpu, arg| {
        put(arg, &vcpu.get_mp_state()?)
    }),
    row(KVM_SET_MP_STATE, |vcpu, arg| {
        done(get(arg).and_then(|state| vcpu.set_mp_state(state)))
    }),
    row(KVM_GET_VCPU_EVENTS, |vcpu, arg| {
        put(arg, &vcpu.get_vcpu_events()?)
    }),
    row(KVM_SET_VCPU_EVENTS, |vcpu, arg| {
        done(get(arg).and_then(|events| vcpu.set_vcpu_events(&events)))
    }),
    row(KVM_INTERRUPT, |vcpu, arg| {
        done(get::<kvm_interrupt>(arg).and_then(|interrupt| vcpu.interrupt(interrupt.irq)))
    }),
    row(KVM_NMI, |vcpu, _| done(vcpu.nmi())),
    row(KVM_TRANSLATE, |vcpu, arg| {
        let mut translation: kvm_translation = get(arg)?;
        vcpu.with(|vcpu| {
            vcpu.translate(&mut translation);
            Ok(())
        })?;
        put(arg, &translation)
    }),
    row(KVM_SET_GUEST_DEBUG, |vcpu, arg| {
        done(get(arg).and_then(|debug| vcpu.set_guest_debug(&debug)))
    }),
    row(KVM_SET_TSC_KHZ, |vcpu, arg| {
        done(vcpu.set_tsc_khz(arg as u32))
    }),
    row(KVM_GET_TSC_KHZ, |vcpu, _| vcpu.get_tsc_khz().map(i64::from)),
    row(KVM_SET_SIGNAL_MASK, set_signal_mask),
    row(KVM_ENABLE_CAP, |vcpu, arg| {
        done(get(arg).and_then(|cap| vcpu.enable_cap(&cap)))
    }),
    row(KVM_HAS_DEVICE_ATTR, |_, arg| {
        done(get(arg).and_then(|attr| tsc_offset_attribute(&attr)))
    }),
    row(KVM_GET_DEVICE_ATTR, get_attribute),
    row(KVM_SET_DEVICE_ATTR, set_attribute),
];

fn get_xsave(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    let bytes = vcpu.with(|vcpu| Ok(vcpu.fpu().to_xsave()))?;
    UserPtr(arg).write_array(&bytes).map(|()| 0)
}

/// Entries of one KVM_GET_MSRS or KVM_SET_MSRS are fewer than this.
const MAX_IO_MSRS: u32 = 256;

/// Copies in a list of MSRs; the header has the count and a pad that is not checked.
pub(crate) fn read_msr_entries(arg: u64) -> Result<Vec<kvm_msr_entry>> {
    let header: [u32; 2] = get(arg)?;
    if header[0] >= MAX_IO_MSRS {
        return Err(Errno::E2BIG);
    }
    UserPtr(arg).offset(8).read_array(header[0] as usize)
}

fn get_msrs(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    let mut entries = read_msr_entries(arg)?;
    let count = vcpu.get_msrs(&mut entries)?;
    UserPtr(arg).offset(8).write_array(&entries)?;
    Ok(count as i64)
}

fn set_msrs(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    let entries = read_msr_entries(arg)?;
    vcpu.set_msrs(&entries).map(|count| count as i64)
}

fn set_cpuid(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    let header: [u32; 2] = get(arg)?;
    if header[0] > cpuid::MAX_ENTRIES {
        return Err(Errno::E2BIG);
    }
    let given: Vec<kvm_cpuid_entry> = UserPtr(arg).offset(8).read_array(header[0] as usize)?;
    let entry = |e: &kvm_cpuid_entry| kvm_cpuid_entry2 {
        function: e.function,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
        ..Default::default()
    };
    done(vcpu.set_cpuid2(&given.iter().map(entry).collect::<Vec<_>>()))
}

fn set_cpuid2(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    let header: [u32; 2] = get(arg)?;
    if header[0] > cpuid::MAX_ENTRIES {
        return Err(Errno::E2BIG);
    }
    let given: Vec<kvm_cpuid_entry2> = UserPtr(arg).offset(8).read_array(header[0] as usize)?;
    done(vcpu.set_cpuid2(&given))
}

fn get_cpuid2(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    let header: [u32; 2] = get(arg)?;
    let table = vcpu.get_cpuid2()?;
    if (header[0] as usize) < table.len() {
        return Err(Errno::E2BIG);
    }
    UserPtr(arg).offset(8).write_array(&table)?;
    UserPtr(arg).write(&(table.len() as u32)).map(|()| 0)
}

/// SIGKILL and SIGSTOP cannot be blocked.
const UNBLOCKABLE: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

fn set_signal_mask(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    if arg == 0 {
        return done(vcpu.set_signal_mask(None));
    }
    let len: u32 = get(arg)?;
    if len != 8 {
        return Err(Errno::EINVAL);
    }
    let mask: u64 = UserPtr(arg).offset(4).read()?;
    done(vcpu.set_signal_mask(Some(mask & !UNBLOCKABLE)))
}

/// Group `KVM_VCPU_TSC_CTRL` with its one attribute, `KVM_VCPU_TSC_OFFSET`.
fn tsc_offset_attribute(attr: &kvm_device_attr) -> Result<()> {
    if attr.group == 0 && attr.attr == 0 {
        Ok(())
    } else {
        Err(Errno::ENXIO)
    }
}

fn get_attribute(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    let attr: kvm_device_attr = get(arg)?;
    tsc_offset_attribute(&attr)?;
    put(attr.addr, &vcpu.with(|vcpu| Ok(vcpu.tsc_offset()))?)
}

fn set_attribute(vcpu: &Arc<Vcpu>, arg: u64) -> Result<i64> {
    let attr: kvm_device_attr = get(arg)?;
    tsc_offset_attribute(&attr)?;
    let offset: u64 = get(attr.addr)?;
    done(vcpu.with(|vcpu| {
        vcpu.set_tsc_offset(offset);
        Ok(())
    }))
}

impl Vcpu {
    /// Runs the guest until something concerns user space, which the run page tells: api.rst,
    /// "KVM_RUN".
    ///
    /// # Errors
    /// EINTR: a signal is pending, or `immediate_exit`. EFAULT: the memory behind a slot is not
    /// mapped. EINVAL: registers in the run page that cannot be, or CR8 above 15.
    ///
    /// A signal whose handler runs while the guest executes its first few hundred instructions
    /// counts as handled before the call (`immediate_exit`, if the handler sets it, is honoured);
    /// later ones wait until the call returns EINTR. The thread must not block SIGSEGV and SIGBUS:
    /// memory that vanishes under the guest is found by them.
    pub fn run(&self) -> Result<()> {
        self.run_blocking(Block::Later)
    }

    fn run_blocking(&self, block: Block) -> Result<()> {
        let signals = Signals::new(block);
        self.with(|vcpu| vcpu.run(&signals))
    }

    /// Returns the general-purpose registers: api.rst, "KVM_GET_REGS".
    ///
    /// # Errors
    /// ENOMEM: no logical processor for this thread (as every method below).
    pub fn get_regs(&self) -> Result<kvm_regs> {
        self.with(|vcpu| Ok(vcpu.get_regs()))
    }

    /// Replaces the general-purpose registers, unchecked: api.rst, "KVM_SET_REGS".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn set_regs(&self, regs: &kvm_regs) -> Result<()> {
        self.with(|vcpu| {
            vcpu.set_regs(regs);
            Ok(())
        })
    }

    /// Returns the segment and control registers: api.rst, "KVM_GET_SREGS".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_sregs(&self) -> Result<kvm_sregs> {
        self.with(|vcpu| Ok(vcpu.get_sregs()))
    }

    /// Replaces the segment and control registers: api.rst, "KVM_SET_SREGS".
    ///
    /// # Errors
    /// EINVAL: an inconsistent long mode, a bit of CR0, CR4 or the APIC base that may not be set.
    pub fn set_sregs(&self, sregs: &kvm_sregs) -> Result<()> {
        self.with(|vcpu| vcpu.set_sregs(sregs))
    }

    /// Returns the segment and control registers and PDPTEs: api.rst, "KVM_GET_SREGS2".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_sregs2(&self) -> Result<kvm_sregs2> {
        self.with(|vcpu| Ok(vcpu.get_sregs2()))
    }

    /// Replaces the segment and control registers and PDPTEs: api.rst, "KVM_SET_SREGS2".
    ///
    /// # Errors
    /// EINVAL: flags, PDPTEs outside PAE paging, and as [`Self::set_sregs`].
    pub fn set_sregs2(&self, sregs: &kvm_sregs2) -> Result<()> {
        self.with(|vcpu| vcpu.set_sregs2(sregs))
    }

    /// Returns the x87 and SSE registers: api.rst, "KVM_GET_FPU".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_fpu(&self) -> Result<kvm_fpu> {
        self.with(|vcpu| Ok(vcpu.fpu().to_kvm_fpu()))
    }

    /// Replaces the x87 and SSE registers, but MXCSR: api.rst, "KVM_SET_FPU".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn set_fpu(&self, fpu: &kvm_fpu) -> Result<()> {
        self.with(|vcpu| {
            vcpu.fpu().set_kvm_fpu(fpu);
            Ok(())
        })
    }

    /// Returns XCR0: api.rst, "KVM_GET_XCRS".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_xcrs(&self) -> Result<kvm_xcrs> {
        self.with(|vcpu| Ok(vcpu.get_xcrs()))
    }

    /// Sets XCR0: api.rst, "KVM_SET_XCRS".
    ///
    /// # Errors
    /// EINVAL: more than 16 entries, flags, or a value that XSETBV would refuse.
    pub fn set_xcrs(&self, xcrs: &kvm_xcrs) -> Result<()> {
        self.with(|vcpu| vcpu.set_xcrs(xcrs))
    }

    /// Returns the debug registers: api.rst, "KVM_GET_DEBUGREGS".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_debug_regs(&self) -> Result<kvm_debugregs> {
        self.with(|vcpu| Ok(vcpu.get_debugregs()))
    }

    /// Replaces the debug registers: api.rst, "KVM_SET_DEBUGREGS".
    ///
    /// # Errors
    /// EINVAL: flags, or the upper half of DR6 or DR7.
    pub fn set_debug_regs(&self, debug: &kvm_debugregs) -> Result<()> {
        self.with(|vcpu| vcpu.set_debugregs(debug))
    }

    /// Reads MSRs into the entries until one cannot be read, and returns how many were: api.rst,
    /// "KVM_GET_MSRS".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_msrs(&self, entries: &mut [kvm_msr_entry]) -> Result<usize> {
        self.with(|vcpu| {
            let mut count = 0;
            for entry in entries {
                let Ok(value) = vcpu.get_msr(entry.index, Initiator::Host) else {
                    break;
                };
                entry.data = value;
                count += 1;
            }
            Ok(count)
        })
    }

    /// Writes MSRs until one is refused, and returns how many were written: api.rst,
    /// "KVM_SET_MSRS".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<usize> {
        self.with(|vcpu| {
            let written = entries
                .iter()
                .take_while(|e| vcpu.set_msr(e.index, e.data, Initiator::Host).is_ok());
            Ok(written.count())
        })
    }

    /// Replaces the guest's CPUID: api.rst, "KVM_SET_CPUID2".
    ///
    /// # Errors
    /// E2BIG: more than 256 entries. EINVAL: a linear-address width that is not 0, 48 or 57, or
    /// another table than the one held once the vCPU has run.
    pub fn set_cpuid2(&self, table: &[kvm_cpuid_entry2]) -> Result<()> {
        if table.len() > cpuid::MAX_ENTRIES as usize {
            return Err(Errno::E2BIG);
        }
        self.with(|vcpu| vcpu.set_cpuid(table.to_vec()))
    }

    /// Returns the guest's CPUID: api.rst, "KVM_GET_CPUID2".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_cpuid2(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        self.with(|vcpu| Ok(vcpu.get_cpuid()))
    }

    /// Returns the run state: api.rst, "KVM_GET_MP_STATE".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_mp_state(&self) -> Result<kvm_mp_state> {
        self.with(|vcpu| Ok(vcpu.get_mp_state()))
    }

    /// Sets the run state: api.rst, "KVM_SET_MP_STATE".
    ///
    /// # Errors
    /// EINVAL: anything but RUNNABLE, as there is no in-kernel local APIC.
    pub fn set_mp_state(&self, state: kvm_mp_state) -> Result<()> {
        self.with(|vcpu| vcpu.set_mp_state(state))
    }

    /// Returns pending and injected events: api.rst, "KVM_GET_VCPU_EVENTS".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_vcpu_events(&self) -> Result<kvm_vcpu_events> {
        self.with(|vcpu| Ok(vcpu.get_vcpu_events()))
    }

    /// Replaces pending and injected events: api.rst, "KVM_SET_VCPU_EVENTS".
    ///
    /// # Errors
    /// EINVAL: unknown flags, a payload or triple fault without its capability, an exception that
    /// is none, or any SMM state. The last two come when the other fields have been taken.
    pub fn set_vcpu_events(&self, events: &kvm_vcpu_events) -> Result<()> {
        self.with(|vcpu| vcpu.set_vcpu_events(events))
    }

    /// Queues an external interrupt: api.rst, "KVM_INTERRUPT".
    ///
    /// # Errors
    /// EINVAL: a vector above 255.
    pub fn interrupt(&self, irq: u32) -> Result<()> {
        self.with(|vcpu| vcpu.interrupt(irq))
    }

    /// Queues an NMI: api.rst, "KVM_NMI".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn nmi(&self) -> Result<()> {
        self.with(|vcpu| {
            vcpu.nmi();
            Ok(())
        })
    }

    /// Translates a guest-linear address: api.rst, "KVM_TRANSLATE".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn translate_gva(&self, linear: u64) -> Result<kvm_translation> {
        let mut translation = kvm_translation {
            linear_address: linear,
            ..Default::default()
        };
        self.with(|vcpu| {
            vcpu.translate(&mut translation);
            Ok(translation)
        })
    }

    /// Sets up debugging of the guest: api.rst, "KVM_SET_GUEST_DEBUG".
    ///
    /// # Errors
    /// EBUSY: an exception is to be injected and one is pending.
    pub fn set_guest_debug(&self, debug: &kvm_guest_debug) -> Result<()> {
        self.with(|vcpu| vcpu.set_guest_debug(debug))
    }

    /// Sets the frequency of the guest's TSC; 0 is the host's: api.rst, "KVM_SET_TSC_KHZ".
    ///
    /// # Errors
    /// EINVAL: beyond what scaling reaches.
    pub fn set_tsc_khz(&self, khz: u32) -> Result<()> {
        self.with(|vcpu| vcpu.set_tsc_khz(khz))
    }

    /// Returns the frequency of the guest's TSC: api.rst, "KVM_GET_TSC_KHZ".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn get_tsc_khz(&self) -> Result<u32> {
        self.with(|vcpu| Ok(vcpu.state.tsc_khz))
    }

    /// Sets the signal mask that holds during KVM_RUN, or none: api.rst, "KVM_SET_SIGNAL_MASK".
    ///
    /// # Errors
    /// ENOMEM.
    pub fn set_signal_mask(&self, mask: Option<u64>) -> Result<()> {
        self.with(|vcpu| {
            vcpu.state.signal_mask = mask;
            Ok(())
        })
    }

    /// Enables a capability: api.rst, "KVM_ENABLE_CAP", "Capabilities that can be enabled on
    /// vCPUs".
    ///
    /// # Errors
    /// EINVAL: flags, or a capability that is not one of a vCPU.
    pub fn enable_cap(&self, cap: &kvm_enable_cap) -> Result<()> {
        if cap.flags != 0 || cap.cap != KVM_CAP_ENFORCE_PV_FEATURE_CPUID {
            return Err(Errno::EINVAL);
        }
        self.with(|vcpu: &mut Loaded<'_>| {
            vcpu.state.enforces_pv_cpuid = cap.args[0] != 0;
            Ok(())
        })
    }
}
