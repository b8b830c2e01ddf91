//! Execution on the host CPU, under signals: a trap loads the registers of the case through
//! `sigreturn`; the instruction ends in an `int3` of the code page or in a fault, whose handler
//! notes the registers and returns to where the case was started.
#![expect(unsafe_code, reason = "runs chosen machine code in this process")]

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::Bits;
use crate::emulated::Emulated;
use crate::generate::{CODE, Case, DATA, PAGE};

/// Space around code and data that must not be anything else's.
const ARENA: u64 = 0x1000_0000;
const ARENA_BYTES: usize = 0x100_0000;

/// Registers after an instruction, and the exception that it raised.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Outcome {
    pub(crate) gpr: [u64; 16],
    pub(crate) rip: u64,
    pub(crate) rflags: u64,
    /// Vector, error code, address of a page fault.
    pub(crate) exception: Option<(u8, u32, u64)>,
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

impl Outcome {
    /// Says in what `self` and `other` differ; of the flags, those of `mask` count.
    pub(crate) fn difference(&self, other: &Self, mask: u64) -> Option<String> {
        if self.exception != other.exception {
            return Some("exception".to_owned());
        }
        if let Some(n) = (0..16).find(|&n| self.gpr[n] != other.gpr[n]) {
            return Some(NAMES[n].to_owned());
        }
        if self.rip != other.rip {
            return Some("rip".to_owned());
        }
        let flags = (self.rflags ^ other.rflags) & mask;
        (flags != 0).then(|| format!("rflags {flags:#x}"))
    }
}

/// What the signal handler works on.
struct Exchange {
    phase: AtomicU8,
    before: UnsafeCell<Outcome>,
    after: UnsafeCell<Outcome>,
    saved: UnsafeCell<[i64; 23]>,
    is_compatibility: UnsafeCell<bool>,
}

// SAFETY: only the thread that runs a case touches the cells; `main` runs one test at a time.
unsafe impl Sync for Exchange {}

const IDLE: u8 = 0;
const START: u8 = 1;
const RUNNING: u8 = 2;

static EXCHANGE: Exchange = Exchange {
    phase: AtomicU8::new(IDLE),
    before: UnsafeCell::new(EMPTY),
    after: UnsafeCell::new(EMPTY),
    saved: UnsafeCell::new([0; 23]),
    is_compatibility: UnsafeCell::new(false),
};

const EMPTY: Outcome = Outcome {
    gpr: [0; 16],
    rip: 0,
    rflags: 0,
    exception: None,
};

/// `gregs` indices of RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Where the addresses of programs end under Linux: a page below the canonical ones.
const TASK_SIZE_MAX: u64 = (1 << 47) - 4096;

/// The selector of Linux's 32-bit user code segment.
const USER32_CS: i64 = 0x23;

extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context, and the cells are this thread's while a case runs.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let gregs = &mut context.uc_mcontext.gregs;
        match EXCHANGE.phase.load(Ordering::Relaxed) {
            START => {
                *EXCHANGE.saved.get() = *gregs;
                let before = &*EXCHANGE.before.get();
                for (n, &r) in GREGS.iter().enumerate() {
                    gregs[r as usize] = before.gpr[n] as i64;
                }
                gregs[libc::REG_RIP as usize] = before.rip as i64;
                gregs[libc::REG_EFL as usize] = before.rflags as i64;
                if *EXCHANGE.is_compatibility.get() {
                    let word = &mut gregs[libc::REG_CSGSFS as usize];
                    *word = *word & !0xffff | USER32_CS;
                }
                EXCHANGE.phase.store(RUNNING, Ordering::Relaxed);
            }
            RUNNING => {
                let after = &mut *EXCHANGE.after.get();
                for (n, &r) in GREGS.iter().enumerate() {
                    after.gpr[n] = gregs[r as usize] as u64;
                }
                after.rip = gregs[libc::REG_RIP as usize] as u64;
                after.rflags = gregs[libc::REG_EFL as usize] as u64;
                let vector = gregs[libc::REG_TRAPNO as usize] as u8;
                let error = gregs[libc::REG_ERR as usize] as u32;
                let address = gregs[libc::REG_CR2 as usize] as u64;
                after.exception = match vector {
                    3 => {
                        after.rip -= 1;
                        None
                    }
                    // The fetch at the target of a branch: the instruction itself completed.
                    14 if error & 0x10 != 0 => None,
                    // Linux does not tell whether a page of the kernel is present.
                    14 if address >= TASK_SIZE_MAX => Some((14, error & !1, address)),
                    14 => Some((14, error, address)),
                    _ => Some((vector, error, 0)),
                };
                *gregs = *EXCHANGE.saved.get();
                EXCHANGE.phase.store(IDLE, Ordering::Relaxed);
            }
            _ => {
                // Not ours: the default action, when the instruction runs again.
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// Selectors that instructions can read: ES, CS, SS, DS, FS, GS.
pub(crate) type Selectors = [u16; 6];

/// The host CPU.
pub(crate) struct Native {
    bits: Bits,
    stack: Vec<u8>,
}

impl Native {
    /// Maps code and data, and installs the signal handlers.
    pub(crate) fn new(bits: Bits) -> Self {
        let mut native = Self {
            bits,
            stack: vec![0; 1 << 16],
        };
        native.map();
        native.catch_signals();
        // SAFETY: loads flat user data segments, which 64-bit code ignores.
        unsafe { core::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) 0x2b) };
        // SAFETY: nothing else uses the cell now.
        unsafe { *EXCHANGE.is_compatibility.get() = bits == Bits::B32 };
        native
    }

    fn map(&mut self) {
        let map = |address: u64, bytes: usize, protection: i32| {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: the arena is far from where Linux puts anything in a 64-bit process.
            let at = unsafe { libc::mmap(address as *mut _, bytes, protection, flags, -1, 0) };
            assert_eq!(at as u64, address, "the arena could not be mapped");
        };
        map(ARENA, ARENA_BYTES, libc::PROT_NONE);
        let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        map(CODE, PAGE, all);
        map(DATA, PAGE, libc::PROT_READ | libc::PROT_WRITE);
        code_page().fill(0xcc);
    }

    fn catch_signals(&mut self) {
        let stack = libc::stack_t {
            ss_sp: self.stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: self.stack.len(),
        };
        // SAFETY: the stack lives as long as `self`, and `drop` takes it back.
        unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) };
        for signal in [
            libc::SIGTRAP,
            libc::SIGSEGV,
            libc::SIGFPE,
            libc::SIGILL,
            libc::SIGBUS,
        ] {
            // SAFETY: a zeroed `sigaction` is valid; the handler is async-signal-safe.
            unsafe {
                let mut action: libc::sigaction = core::mem::zeroed();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigaction(signal, &raw const action, core::ptr::null_mut());
            }
        }
    }

    /// Returns the selectors that the code will see.
    pub(crate) fn selectors(&self) -> Selectors {
        let mut s: Selectors = [0; 6];
        // SAFETY: reads selectors.
        unsafe {
            core::arch::asm!(
                "mov {0:x}, es", "mov {1:x}, cs", "mov {2:x}, ss",
                "mov {3:x}, ds", "mov {4:x}, fs", "mov {5:x}, gs",
                out(reg) s[0], out(reg) s[1], out(reg) s[2],
                out(reg) s[3], out(reg) s[4], out(reg) s[5],
            );
        }
        if self.bits == Bits::B32 {
            s[1] = USER32_CS as u16;
        }
        s
    }

    /// Returns the flags that the next case inherits from this thread: IF and ID.
    pub(crate) fn flags(&self) -> u64 {
        let flags: u64;
        // SAFETY: reads the flags.
        unsafe { core::arch::asm!("pushfq", "pop {}", out(reg) flags) };
        flags & 0x20_0200
    }

    /// Puts the case's instruction and operands into memory.
    pub(crate) fn prepare(&mut self, case: &Case) {
        let code = code_page();
        code.fill(0xcc);
        code[case.code_offset()..][..case.bytes.len()].copy_from_slice(&case.bytes);
        for (offset, bytes) in &case.memory {
            data_page()[*offset..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Executes the instruction.
    pub(crate) fn run(&mut self, case: &Case) -> Outcome {
        // SAFETY: this thread alone runs cases; the signal handler touches the cells only between
        // the `int3` and its return behind it.
        unsafe {
            *EXCHANGE.before.get() = Outcome {
                gpr: case.gpr,
                rip: case.rip,
                rflags: case.rflags,
                exception: None,
            };
            EXCHANGE.phase.store(START, Ordering::SeqCst);
            core::arch::asm!("int3", clobber_abi("C"));
            (*EXCHANGE.after.get()).clone()
        }
    }

    /// Whether the data page is as the emulator's.
    pub(crate) fn memory_equals(&self, emulated: &Emulated) -> bool {
        data_page() == emulated.data()
    }

    /// Returns the data page.
    pub(crate) fn data(&self) -> &[u8] {
        data_page()
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let stack = libc::stack_t {
            ss_sp: core::ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        };
        // SAFETY: takes back what `catch_signals` gave.
        unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) };
    }
}

fn code_page() -> &'static mut [u8] {
    // SAFETY: mapped in `Native::new`, never unmapped; used by one thread at a time.
    unsafe { core::slice::from_raw_parts_mut(CODE as *mut u8, PAGE) }
}

fn data_page() -> &'static mut [u8] {
    // SAFETY: as `code_page`.
    unsafe { core::slice::from_raw_parts_mut(DATA as *mut u8, PAGE) }
}
