//! Signal handlers of the program, called when no ioctl of ours is under way on their thread.
//!
//! In the kernel a signal ends KVM_RUN before its handler runs. Here a handler could come in the
//! middle of it, while the vCPU is locked. So from the first `open("/dev/kvm")` on `on_signal`
//! is installed instead of each handler: it asks [`kvm_api::abi::defer_signal`], and calls the
//! program's handler when that need not wait. `sigaction`, `signal` and their like show the
//! program its own handlers only.
//!
//! Not wrapped are handlers of SIGSEGV and SIGBUS, which KVM_RUN does not hold up. One that asks
//! for SA_RESETHAND cannot be called twice for a signal: with it KVM_RUN blocks signals instead.
//! So it does when a handler was found that this module does not know how to wrap. A handler that
//! the program installs by the raw system call after it has opened `/dev/kvm` is not seen: it must
//! not leave KVM_RUN by `siglongjmp`, and gets EINTR from an ioctl.
//!
//! An ioctl of ours may allocate memory: a handler that interrupts the program's own `malloc` must
//! not call one, though the kernel would not mind.

use crate::next::Next;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use kvm_api::abi;

type Sigaction = unsafe extern "C" fn(c_int, *const libc::sigaction, *mut libc::sigaction) -> c_int;
type Signal = unsafe extern "C" fn(c_int, libc::sighandler_t) -> libc::sighandler_t;
type WithInfo = unsafe extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
type Plain = unsafe extern "C" fn(c_int);

/// The program has opened `/dev/kvm`.
static WRAPS: AtomicBool = AtomicBool::new(false);

const SIGNALS: usize = 65;
/// The program's handlers by signal; kept when a signal gets another disposition. [`WITH_INFO`]
/// is added to those installed with SA_SIGINFO; it is no bit of an address of user space.
static HANDLERS: [AtomicUsize; SIGNALS] = [const { AtomicUsize::new(0) }; SIGNALS];
const WITH_INFO: usize = 1 << 63;

/// Returns the place of a signal's handler, if it can be wrapped.
fn place(signal: c_int) -> Option<&'static AtomicUsize> {
    let is_fault = matches!(signal, libc::SIGSEGV | libc::SIGBUS);
    let index = usize::try_from(signal).ok().filter(|_| !is_fault)?;
    HANDLERS.get(index)
}

fn wrapper() -> libc::sighandler_t {
    on_signal as *const () as usize
}

/// The handler that the kernel knows.
///
/// # Safety
/// Called by the kernel, with SA_SIGINFO.
unsafe extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's arguments; this handler returns if the signal has to wait.
    if unsafe { abi::defer_signal(signal, info, context) } {
        return;
    }
    let Some(handler) = place(signal).map(|place| place.load(Ordering::Acquire)) else {
        return;
    };
    // SAFETY: the program gave the handler with the flag that tells its type.
    unsafe {
        if handler & WITH_INFO != 0 {
            let handler = handler & !WITH_INFO;
            core::mem::transmute::<usize, WithInfo>(handler)(signal, info, context);
        } else if handler != 0 {
            core::mem::transmute::<usize, Plain>(handler)(signal);
        }
    }
}

/// Calls the next `sigaction`.
///
/// # Safety
/// That of the C library's function.
unsafe fn next_sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    static NEXT: Next = Next::new(c"sigaction");
    let next = NEXT.get();
    if next.is_null() {
        return crate::fail(libc::ENOSYS);
    }
    // SAFETY: the symbol of this name has this type; the arguments are the caller's.
    unsafe { core::mem::transmute::<*mut c_void, Sigaction>(next)(signal, new, old) }
}

/// Whether an action has a handler that is to be wrapped.
fn has_handler(action: &libc::sigaction) -> bool {
    let known = [libc::SIG_DFL, libc::SIG_IGN, wrapper()];
    !known.contains(&action.sa_sigaction)
}

/// Returns the action that calls [`on_signal`], and what it is to call; nothing, and KVM_RUN blocks
/// signals from now on, if the action cannot be wrapped.
fn wrap(action: &libc::sigaction) -> Option<(libc::sigaction, usize)> {
    if action.sa_flags & libc::SA_RESETHAND != 0 {
        abi::set_handlers_defer(false);
        return None;
    }
    let with_info = match action.sa_flags & libc::SA_SIGINFO {
        0 => 0,
        _ => WITH_INFO,
    };
    let mut wrapped = *action;
    wrapped.sa_sigaction = wrapper();
    wrapped.sa_flags |= libc::SA_SIGINFO;
    Some((wrapped, action.sa_sigaction | with_info))
}

/// Puts the program's own handler in the place of [`on_signal`].
fn unwrap(action: &mut libc::sigaction, handler: usize) {
    if action.sa_sigaction == wrapper() {
        action.sa_sigaction = handler & !WITH_INFO;
        if handler & WITH_INFO == 0 {
            action.sa_flags &= !libc::SA_SIGINFO;
        }
    }
}

/// Wraps the handlers that the program has: it has opened `/dev/kvm`.
pub(crate) fn adopt_all() {
    if !WRAPS.swap(true, Ordering::AcqRel) {
        abi::set_handlers_defer(true);
        (1..=64).for_each(adopt);
    }
}

/// Wraps the handler that a signal has now.
fn adopt(signal: c_int) {
    let Some(place) = place(signal) else { return };
    // SAFETY: zeros are a valid value, also if the call fails: then it is one of the C library's
    // own signals, whose handlers know nothing of KVM.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    // SAFETY: asks for the action; it is writable.
    unsafe { next_sigaction(signal, core::ptr::null(), &raw mut action) };
    if !has_handler(&action) {
        return;
    }
    if let Some((wrapped, handler)) = wrap(&action) {
        place.store(handler, Ordering::Release);
        // SAFETY: an action that the program has made, with another handler.
        unsafe { next_sigaction(signal, &raw const wrapped, core::ptr::null_mut()) };
    }
}

/// See the C library's `sigaction`.
///
/// # Safety
/// That of the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    let Some(place) = place(signal).filter(|_| WRAPS.load(Ordering::Acquire)) else {
        // SAFETY: the caller's.
        return unsafe { next_sigaction(signal, new, old) };
    };
    let before = place.load(Ordering::Acquire);
    // SAFETY: the caller's: null or an action.
    let wrapped = unsafe { new.as_ref() }
        .filter(|action| has_handler(action))
        .and_then(wrap);
    let new = match &wrapped {
        Some((action, handler)) => {
            place.store(*handler, Ordering::Release);
            core::ptr::from_ref(action)
        }
        None => new,
    };
    // SAFETY: the caller's, or an action of ours.
    let answer = unsafe { next_sigaction(signal, new, old) };
    if answer != 0 && wrapped.is_some() {
        place.store(before, Ordering::Release);
    }
    // SAFETY: the caller's: null or room for an action, which a success has filled.
    if let (0, Some(old)) = (answer, unsafe { old.as_mut() }) {
        unwrap(old, before);
    }
    answer
}

/// See the C library's `sigaction`, which it exports by this name too.
///
/// # Safety
/// That of the C library's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sigaction(
    signal: c_int,
    new: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    // SAFETY: the caller's.
    unsafe { sigaction(signal, new, old) }
}

/// Declares interposed functions of the type of `signal`: the next definition installs the
/// handler, which is then wrapped as it was installed.
macro_rules! interpose_signal {
    ($($name:ident)*) => {$(
        /// See the C library's function of this name.
        ///
        /// # Safety
        /// That of the C library's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            signal: c_int,
            handler: libc::sighandler_t,
        ) -> libc::sighandler_t {
            static NEXT: Next = Next::new(
                // SAFETY: the literal ends in its only zero byte.
                unsafe {
                    core::ffi::CStr::from_bytes_with_nul_unchecked(
                        concat!(stringify!($name), "\0").as_bytes(),
                    )
                }
            );
            let next = NEXT.get();
            if next.is_null() {
                crate::fail(libc::ENOSYS);
                return libc::SIG_ERR;
            }
            let before = place(signal).map_or(0, |place| place.load(Ordering::Acquire));
            // SAFETY: the symbol of this name has this type; the arguments are the caller's.
            let old = unsafe { core::mem::transmute::<*mut c_void, Signal>(next)(signal, handler) };
            if old != libc::SIG_ERR && WRAPS.load(Ordering::Acquire) {
                adopt(signal);
            }
            if old == wrapper() { before & !WITH_INFO } else { old }
        }
    )*};
}

interpose_signal! { signal bsd_signal ssignal sysv_signal __sysv_signal sigset }
