//! Memory of a slot that vanishes while the guest uses it: unmapped, protected, or the file behind
//! it cut short. The kernel's KVM_RUN then fails with EFAULT; ours takes SIGSEGV or SIGBUS at the
//! access, which must end that access and not the process.
//!
//! One handler for the process is installed before the first guest runs. A fault that is no
//! access to guest memory goes where it would have gone without us. A program that later installs
//! its own handler of these signals takes ours away, and has to chain it.
#![expect(unsafe_code, reason = "a signal handler")]

use core::mem::MaybeUninit;
use std::sync::OnceLock;

/// The signals of a failed access.
pub(crate) const SIGNALS: [i32; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// What was installed before us, in the order of [`SIGNALS`].
static BEFORE: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// Installs the handler, once.
pub(crate) fn install() {
    BEFORE.get_or_init(|| SIGNALS.map(old_action));
    static INSTALLED: OnceLock<()> = OnceLock::new();
    INSTALLED.get_or_init(|| SIGNALS.into_iter().for_each(take));
}

fn old_action(signal: i32) -> libc::sigaction {
    let mut old = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks for the disposition only; zeros are a valid value if the call fails.
    unsafe {
        libc::sigaction(signal, core::ptr::null(), old.as_mut_ptr());
        old.assume_init()
    }
}

fn take(signal: i32) {
    // SAFETY: all fields are set; the handler has the type that SA_SIGINFO asks for.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_fault as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(signal, &raw const action, core::ptr::null_mut());
    }
}

extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel's arguments. A positive code is a fault of this thread's own access.
    let is_recovered = unsafe { (*info).si_code > 0 && recover(info, context) };
    if !is_recovered {
        // SAFETY: the kernel's arguments.
        unsafe { pass_on(signal, info, context) };
    }
}

/// Goes on behind a failed access to guest memory; false if it was none.
///
/// # Safety
/// The arguments are those of a handler of a fault.
#[cfg(target_arch = "x86_64")]
unsafe fn recover(info: *mut libc::siginfo_t, context: *mut libc::c_void) -> bool {
    use x86_interp::mem::guard::{self, HostRegisters};
    // SAFETY: the caller's.
    let (address, registers) = unsafe {
        let context = context.cast::<libc::ucontext_t>();
        ((*info).si_addr() as u64, &mut (*context).uc_mcontext.gregs)
    };
    let mut host = HostRegisters {
        rip: registers[libc::REG_RIP as usize].cast_unsigned(),
        rsp: registers[libc::REG_RSP as usize].cast_unsigned(),
        rax: registers[libc::REG_RAX as usize].cast_unsigned(),
        rdx: registers[libc::REG_RDX as usize].cast_unsigned(),
    };
    // SAFETY: this thread's fault; the kernel loads the registers when the handler returns.
    if !unsafe { guard::recover(&mut host, address) } {
        return false;
    }
    registers[libc::REG_RIP as usize] = host.rip.cast_signed();
    registers[libc::REG_RSP as usize] = host.rsp.cast_signed();
    registers[libc::REG_RAX as usize] = host.rax.cast_signed();
    registers[libc::REG_RDX as usize] = host.rdx.cast_signed();
    true
}

/// Hosts other than x86-64: no access is recovered from.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn recover(_info: *mut libc::siginfo_t, _context: *mut libc::c_void) -> bool {
    false
}

/// Does what would have been done without our handler.
///
/// # Safety
/// The arguments are those of a signal handler.
unsafe fn pass_on(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    type WithInfo = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);
    type Plain = extern "C" fn(i32);
    let which = SIGNALS.iter().position(|s| *s == signal).unwrap_or(0);
    let Some(before) = BEFORE.get().map(|all| all[which]) else {
        return;
    };
    match before.sa_sigaction {
        // SAFETY: restores a disposition that was there. The instruction faults again, or the
        // signal that was sent is sent again, and takes its default action.
        libc::SIG_DFL | libc::SIG_IGN => unsafe {
            let is_sent = (*info).si_code <= 0;
            if is_sent && before.sa_sigaction == libc::SIG_IGN {
                return;
            }
            libc::sigaction(signal, &raw const before, core::ptr::null_mut());
            if is_sent {
                libc::raise(signal);
            }
        },
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: installed with SA_SIGINFO, so it has this type.
            let handler = unsafe { core::mem::transmute::<usize, WithInfo>(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: installed without SA_SIGINFO, so it has this type.
            let handler = unsafe { core::mem::transmute::<usize, Plain>(handler) };
            handler(signal);
        }
    }
}
