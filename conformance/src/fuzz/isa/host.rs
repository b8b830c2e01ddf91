//! The case on the host CPU: a stub loads all registers and jumps to the instruction, behind which
//! a jump leads back to where they are saved. An exception becomes a signal, whose handler notes
//! the registers of its frame and goes back through the same stub.
//!
//! A process has one host; it is a child that may die of what it executes (see `worker`).
#![expect(unsafe_code, reason = "runs chosen machine code in this process")]

use super::Bits;
use super::case::{CODE, CODE_BYTES, Case, DATA, DATA_BYTES, Outcome, State};
use super::emulated::Selectors;
use super::stub;
use std::arch::is_x86_feature_detected;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use x86_interp::fpu::FpuState;

/// Space around code and data that must not be anything else's.
pub(super) const ARENA: u64 = 0x1000_0000;
/// Bytes of it.
pub(super) const ARENA_BYTES: usize = 0x100_0000;
/// Where the code page can be written.
const CODE_ALIAS: u64 = 0x10c0_0000;
/// The page of the stub.
const STUB: u64 = 0x10a0_0000;
/// The pages of [`Control`].
pub(super) const CONTROL: u64 = 0x10b0_0000;

/// Bytes of an XSAVE area as it is used here.
const AREA_BYTES: usize = 4096;
/// Where XSTATE_BV, the XMM registers and the upper halves of the YMM registers are.
const XSTATE_BV: usize = 512;
const XMM: usize = 160;
const YMM: usize = 576;
/// Where the frame of a signal has its size (`struct _fpx_sw_bytes`).
const FRAME_SIZE: usize = 480;

/// Where the addresses of programs end under Linux: a page below the canonical ones.
const TASK_SIZE_MAX: u64 = (1 << 47) - 4096;

/// Selectors of Linux's user code and data segments.
const USER32_CS: u16 = 0x23;
const USER_DS: u16 = 0x2b;
const USER_CS: u16 = 0x33;

/// General-purpose registers, RIP, RFLAGS: the stub knows the layout.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Registers {
    gpr: [u64; 16],
    rip: u64,
    rflags: u64,
}

/// What the stub and the signal handler work on.
#[repr(C, align(64))]
pub(super) struct Control {
    pub(super) area_before: [u8; AREA_BYTES],
    pub(super) area_after: [u8; AREA_BYTES],
    pub(super) before: Registers,
    pub(super) after: Registers,
    pub(super) host_rsp: u64,
    pub(super) stack_top: u64,
    pub(super) host_mxcsr: u32,
    pub(super) host_control: u16,
    /// The operand of a far jump: offset and selector.
    pub(super) far: [u16; 3],
    pub(super) has_completed: u8,
    is_running: bool,
    has_exception: bool,
    vector: u8,
    error: u32,
    address: u64,
    abandon: u64,
    stack: [u64; 32],
}

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

const SIGNALS: [c_int; 5] = [
    libc::SIGTRAP,
    libc::SIGSEGV,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGBUS,
];

fn control() -> *mut Control {
    CONTROL as *mut Control
}

/// Notes the registers of the interrupted case and lets the stub go back.
extern "C" fn on_signal(signal: c_int, _: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid context; the control pages are mapped before the handler
    // is installed, and this thread alone uses them.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let control = &mut *control();
        if !control.is_running {
            // Not the case's: the default action, when the instruction runs again.
            libc::signal(signal, libc::SIG_DFL);
            return;
        }
        control.is_running = false;
        let gregs = &mut context.uc_mcontext.gregs;
        for (slot, &r) in control.after.gpr.iter_mut().zip(&GREGS) {
            *slot = gregs[r as usize] as u64;
        }
        control.after.rip = gregs[libc::REG_RIP as usize] as u64;
        control.after.rflags = gregs[libc::REG_EFL as usize] as u64;
        control.vector = gregs[libc::REG_TRAPNO as usize] as u8;
        control.error = gregs[libc::REG_ERR as usize] as u32;
        control.address = gregs[libc::REG_CR2 as usize] as u64;
        control.has_exception = true;
        let frame = context.uc_mcontext.fpregs.cast::<u8>();
        let area = control.area_after.as_mut_ptr();
        // Linux notes the size of its image in the bytes that FXSAVE leaves to software.
        let size = frame.add(FRAME_SIZE).cast::<u32>().read_unaligned() as usize;
        core::ptr::copy_nonoverlapping(frame, area, size.min(AREA_BYTES));
        gregs[libc::REG_RIP as usize] = control.abandon as i64;
        gregs[libc::REG_EFL as usize] = 0x202;
        let selectors = &mut gregs[libc::REG_CSGSFS as usize];
        *selectors = *selectors & !0xffff | i64::from(USER_CS);
    }
}

/// The host CPU.
pub(super) struct Host {
    bits: Bits,
    /// Where an instruction that completed goes on.
    leave: u64,
    _stack: Vec<u8>,
}

impl Host {
    /// Maps code and data, and installs the signal handlers.
    pub(super) fn new(bits: Bits) -> Self {
        let mut stack = vec![0; 1 << 17];
        map_all();
        let stub = stub::assemble(STUB, bits).expect("the stub assembles");
        // SAFETY: the stub's page was mapped just now, and the stub fits.
        unsafe {
            core::ptr::copy_nonoverlapping(stub.code.as_ptr(), STUB as *mut u8, stub.code.len());
            let control = &mut *control();
            control.abandon = stub.abandon;
            control.stack_top = (&raw const control.stack).add(1) as u64;
        }
        catch_signals(&mut stack);
        // SAFETY: loads flat user data segments, which 64-bit code ignores.
        unsafe { core::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) USER_DS) };
        Self {
            bits,
            leave: stub.leave,
            _stack: stack,
        }
    }

    /// Returns the selectors that the code will see.
    pub(super) fn selectors(&self) -> Selectors {
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
            s[1] = USER32_CS;
        }
        s
    }

    /// Executes the instruction; `memory` is before it.
    pub(super) fn run(&mut self, case: &Case, memory: &[u8]) -> Outcome {
        self.put_code(case);
        data_pages().copy_from_slice(memory);
        // SAFETY: the control pages are mapped, and this thread alone uses them; the stub keeps
        // what the C ABI wants kept. What the case does to this process is the child's risk.
        let outcome = unsafe {
            let control = &mut *control();
            let State {
                gpr, rip, rflags, ..
            } = case.state;
            control.before = Registers { gpr, rip, rflags };
            store_area(&case.state.fpu, &mut control.area_before);
            control.far = [rip as u16, (rip >> 16) as u16, USER32_CS];
            control.has_completed = 0;
            control.has_exception = false;
            control.is_running = true;
            let enter: extern "C" fn() = core::mem::transmute(STUB as *const ());
            enter();
            control.is_running = false;
            outcome(case, control)
        };
        self.mask(outcome)
    }

    fn mask(&self, mut outcome: Outcome) -> Outcome {
        if self.bits == Bits::B32 {
            // The upper halves are undefined outside 64-bit mode.
            outcome.state.gpr[..8]
                .iter_mut()
                .for_each(|r| *r &= 0xffff_ffff);
        }
        outcome
    }

    /// Returns the data pages after the instruction.
    pub(super) fn data(&self) -> &[u8] {
        data_pages()
    }

    /// Puts the instruction into the code page, a jump to the stub behind it, and INT3 elsewhere.
    fn put_code(&self, case: &Case) {
        let at = (case.state.rip - CODE) as usize;
        let behind = at + case.bytes.len();
        let page = code_page();
        page[at..at + 40].fill(0xcc);
        page[at..behind].copy_from_slice(&case.bytes);
        match self.bits {
            Bits::B64 => {
                let distance = self.leave.wrapping_sub(CODE + behind as u64 + 5) as u32;
                page[behind] = 0xe9;
                page[behind + 1..behind + 5].copy_from_slice(&distance.to_le_bytes());
            }
            Bits::B32 => {
                page[behind] = 0xea;
                let target = self.leave as u32;
                page[behind + 1..behind + 5].copy_from_slice(&target.to_le_bytes());
                page[behind + 5..behind + 7].copy_from_slice(&USER_CS.to_le_bytes());
            }
        }
    }
}

/// What the stub or the handler has noted.
fn outcome(case: &Case, control: &Control) -> Outcome {
    let Registers { gpr, rip, rflags } = control.after;
    let mut state = State {
        gpr,
        rip,
        rflags,
        fpu: load_area(&control.area_after),
    };
    let (error, address) = (control.error, control.address);
    let exception = match control.vector {
        _ if !control.has_exception => {
            state.rip = case.state.rip.wrapping_add(case.bytes.len() as u64);
            None
        }
        3 => {
            state.rip = rip.wrapping_sub(1);
            None
        }
        // The fetch at the target of a branch: the instruction itself completed.
        14 if error & 0x10 != 0 => None,
        // Linux does not tell whether a page that is no program's is present.
        14 if address >= TASK_SIZE_MAX => Some((14, error & !1, address)),
        14 => Some((14, error, address)),
        vector => Some((vector, error, 0)),
    };
    Outcome { state, exception }
}

fn map_all() {
    let map = |address: u64, bytes: usize, protection: i32| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        // SAFETY: the arena is far from where Linux puts anything in a 64-bit process.
        let at = unsafe { libc::mmap(address as *mut _, bytes, protection, flags, -1, 0) };
        assert_eq!(at as u64, address, "the arena could not be mapped");
    };
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    map(ARENA, ARENA_BYTES, libc::PROT_NONE);
    map_code();
    map(DATA, DATA_BYTES, rw);
    map(STUB, 4096, rw | libc::PROT_EXEC);
    map(CONTROL, size_of::<Control>().next_multiple_of(4096), rw);
    code_page().fill(0xcc);
}

/// Maps the code page twice: where it is executed it cannot be written.
fn map_code() {
    // SAFETY: the arena is ours, the descriptor is the new file's.
    unsafe {
        let file = libc::memfd_create(c"code".as_ptr(), 0);
        assert_eq!(
            libc::ftruncate(file, CODE_BYTES as i64),
            0,
            "a page of code"
        );
        for (address, protection) in [
            (CODE, libc::PROT_READ | libc::PROT_EXEC),
            (CODE_ALIAS, libc::PROT_READ | libc::PROT_WRITE),
        ] {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED;
            let at = libc::mmap(address as *mut _, CODE_BYTES, protection, flags, file, 0);
            assert_eq!(at as u64, address, "the code could not be mapped");
        }
        libc::close(file);
    }
}

fn catch_signals(stack: &mut [u8]) {
    let stack = libc::stack_t {
        ss_sp: stack.as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: stack.len(),
    };
    // SAFETY: the stack lives as long as the `Host`, which lives as long as the process.
    unsafe { libc::sigaltstack(&raw const stack, core::ptr::null_mut()) };
    for signal in SIGNALS {
        // SAFETY: a zeroed `sigaction` is valid; the handler is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = core::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(signal, &raw const action, core::ptr::null_mut());
        }
    }
}

/// Whether the host has AVX-512, and the operating system lets programs use it.
pub(super) fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// Where the host's XSAVE area has the three components of AVX-512; vendors differ.
fn avx512_places() -> [usize; 3] {
    static PLACES: OnceLock<[usize; 3]> = OnceLock::new();
    *PLACES
        .get_or_init(|| [5, 6, 7].map(|n| core::arch::x86_64::__cpuid_count(0xd, n).ebx as usize))
}

/// The quadwords of a vector register in the XSAVE area: where each is.
fn vector_places(n: usize) -> [usize; 8] {
    let [_, upper, high] = avx512_places();
    core::array::from_fn(|k| match (n, k) {
        (16.., _) => high + 64 * (n - 16) + 8 * k,
        (_, 0 | 1) => XMM + 16 * n + 8 * k,
        (_, 2 | 3) => YMM + 16 * n + 8 * (k - 2),
        _ => upper + 32 * n + 8 * (k - 4),
    })
}

/// Writes the XSAVE area of a state; components of AVX-512 are absent where they are initial, or the
/// host does not have them: then the instruction is #UD anyway.
fn store_area(fpu: &FpuState, area: &mut [u8; AREA_BYTES]) {
    area[..2].copy_from_slice(&fpu.control.to_le_bytes());
    area[2..4].copy_from_slice(&fpu.status.to_le_bytes());
    area[4] = fpu.valid;
    area[5..24].fill(0);
    area[24..28].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    for i in 0..8 {
        let at = 32 + 16 * i;
        area[at..at + 10].copy_from_slice(&fpu.registers[fpu.physical(i)]);
    }
    let is_initial = !has_avx512()
        || fpu.opmask == [0; 8]
            && fpu.vector[..16].iter().all(|v| v[4..] == [0; 4])
            && fpu.vector[16..].iter().all(|v| *v == [0; 8]);
    let (count, words) = if is_initial { (16, 4) } else { (32, 8) };
    for (n, register) in fpu.vector[..count].iter().enumerate() {
        for (at, word) in vector_places(n).into_iter().zip(&register[..words]) {
            area[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }
    if !is_initial {
        for (n, mask) in fpu.opmask.iter().enumerate() {
            let at = avx512_places()[0] + 8 * n;
            area[at..at + 8].copy_from_slice(&mask.to_le_bytes());
        }
    }
    area[XSTATE_BV] = if is_initial { 7 } else { 0xe7 };
}

/// Reads an XSAVE area; what is not in it is initial.
fn load_area(area: &[u8; AREA_BYTES]) -> FpuState {
    let word = |at: usize| u16::from_le_bytes([area[at], area[at + 1]]);
    let quadword = |at: usize| {
        let bytes = area[at..at + 8].iter().rev();
        bytes.fold(0, |v, &b| v << 8 | u64::from(b))
    };
    let has = |component: usize| area[XSTATE_BV] >> component & 1 != 0;
    let mut fpu = FpuState::initial();
    fpu.mxcsr = u32::from(word(24)) | u32::from(word(26)) << 16;
    if has(0) {
        (fpu.control, fpu.status, fpu.valid) = (word(0), word(2), area[4]);
        for i in 0..8 {
            let n = fpu.physical(i);
            fpu.registers[n].copy_from_slice(&area[32 + 16 * i..42 + 16 * i]);
        }
    }
    for (n, register) in fpu.vector.iter_mut().enumerate() {
        for (k, at) in vector_places(n).into_iter().enumerate() {
            let component = match (n, k) {
                (16.., _) => 7,
                (_, 0 | 1) => 1,
                (_, 2 | 3) => 2,
                _ => 6,
            };
            if has(component) {
                register[k] = quadword(at);
            }
        }
    }
    if has(5) {
        fpu.opmask = core::array::from_fn(|n| quadword(avx512_places()[0] + 8 * n));
    }
    fpu
}

fn code_page() -> &'static mut [u8] {
    // SAFETY: mapped in `Host::new`, never unmapped; used by one thread at a time.
    unsafe { core::slice::from_raw_parts_mut(CODE_ALIAS as *mut u8, CODE_BYTES) }
}

fn data_pages() -> &'static mut [u8] {
    // SAFETY: as `code_page`.
    unsafe { core::slice::from_raw_parts_mut(DATA as *mut u8, DATA_BYTES) }
}
