//! Guest-physical memory: EPT flags, the page-modification log, virtualization exceptions, EPTP
//! switching (SDM Vol. 3C, "VMX Support for Address Translation").

use iced_x86::code_asm::*;
use vmx_model::addr::Hpa;
use vmx_model::controls::SecondaryControls as S;
use vmx_model::exit_reason::ExitReason as E;
use vmx_model::field::Field;
use vmx_model::sample::Guest;
use vmx_model::vmcs::Vmcs;

use crate::host::{Code, Host, at, or, secondary, set_ept_entry};

/// Accessed and dirty flags of an EPT entry.
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;

fn host(change: impl Fn(&mut Vmcs), code: Code) -> Host {
    Host::new(Guest::Unpaged, change, code)
}

fn entry(host: &Host, page: u64) -> u64 {
    host.word(at::EPT + 0x3000 + 8 * (page >> 12))
}

const WRITE_AND_READ: Code = |a| {
    a.mov(dword_ptr(at::DATA as u32), eax)?;
    a.mov(eax, dword_ptr((at::DATA + 0x1000) as u32))?;
    a.mov(dword_ptr(at::DATA as u32 + 4), eax)?;
    a.vmcall()
};

#[test]
fn accessed_and_dirty_flags_are_set_if_eptp_enables_them() {
    for enable in [0, 1 << 6] {
        let mut host = host(|v| or(v, Field::EPT_POINTER, enable), WRITE_AND_READ);
        assert_eq!(host.reason(), E::VMCALL);
        let flags = |page| entry(&host, page) & (ACCESSED | DIRTY);
        let wanted = if enable == 0 {
            [0, 0]
        } else {
            [ACCESSED | DIRTY, ACCESSED]
        };
        assert_eq!([flags(at::DATA), flags(at::DATA + 0x1000)], wanted);
    }
}

#[test]
fn a_page_is_logged_when_its_dirty_flag_is_set() {
    let mut host = host(
        |v| {
            or(v, Field::EPT_POINTER, 1 << 6);
            secondary(v, S::ENABLE_PML);
            v.set(Field::PML_INDEX, 7);
        },
        WRITE_AND_READ,
    );
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.read(Field::PML_INDEX), 6);
    assert_eq!(host.word(at::PML + 8 * 7), at::DATA);
}

/// Software that clears dirty flags between exits, without a VPID and without INVEPT.
#[test]
fn a_page_is_logged_again_when_its_dirty_flag_was_cleared() {
    let mut host = host(
        |v| {
            or(v, Field::EPT_POINTER, 1 << 6);
            secondary(v, S::ENABLE_PML);
            v.set(Field::PML_INDEX, 1);
        },
        |a| {
            for _ in 0..3 {
                a.mov(dword_ptr(at::DATA as u32), eax)?;
                a.vmcall()?;
            }
            Ok(())
        },
    );
    for wanted in [E::VMCALL, E::VMCALL, E::PML_FULL] {
        assert_eq!(host.reason(), wanted);
        host.skip();
        let clean = entry(&host, at::DATA) & !DIRTY;
        set_ept_entry(&host.phys, at::DATA, clean);
    }
    assert_eq!(host.read(Field::PML_INDEX), 0xffff);
    let flags = entry(&host, at::DATA) & DIRTY;
    assert_eq!(flags, 0, "the log comes before the flag");
}

/// With accessed and dirty flags for EPT, the processor's accesses to paging structures are writes.
#[test]
fn the_pages_of_paging_structures_are_logged() {
    let mut host = Host::new(
        Guest::Long,
        |v| {
            v.set(Field::EPT_POINTER, at::EPT | 0x5e);
            secondary(v, S::ENABLE_EPT | S::ENABLE_PML);
            v.set(Field::PML_INDEX, 7);
        },
        |a| a.vmcall(),
    );
    assert_eq!(host.reason(), E::VMCALL);
    let logged = [7, 6, 5].map(|n| host.word(at::PML + 8 * n));
    assert_eq!(logged, [0, 0x1000, 0x2000].map(|n| at::PML4 + n));
    assert_eq!(host.read(Field::PML_INDEX), 4);
    assert_eq!(entry(&host, at::PML4) & DIRTY, DIRTY);
    assert_eq!(entry(&host, at::CODE) & (ACCESSED | DIRTY), ACCESSED);
}

/// Memory is as fast and as ordered with each memory type: only those that there are not matter.
#[test]
fn a_memory_type_that_there_is_not_is_a_misconfiguration() {
    const IGNORE_PAT: u64 = 1 << 6;
    for memory_type in 0..8 {
        for (ignore_pat, cd) in [(0, 0), (IGNORE_PAT, 0), (0, 1 << 30)] {
            let mut host = host(|v| or(v, Field::GUEST_CR0, cd), WRITE_AND_READ);
            let page = at::DATA | memory_type << 3 | ignore_pat | 7;
            set_ept_entry(&host.phys, at::DATA, page);
            let wanted = match memory_type {
                2 | 3 | 7 => E::EPT_MISCONFIGURATION,
                _ => E::VMCALL,
            };
            assert_eq!(host.reason(), wanted, "{memory_type} {ignore_pat} {cd}");
        }
    }
}

fn touch_hole(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    a.mov(dword_ptr(at::HOLE as u32 + 0x10), eax)?;
    a.vmcall()
}

#[test]
fn a_convertible_violation_is_a_virtualization_exception_while_the_area_is_free() {
    let with_ve = |v: &mut Vmcs| {
        secondary(v, S::EPT_VIOLATION_VE);
        v.set(Field::EXCEPTION_BITMAP, 1 << 20);
    };
    let mut ve = host(with_ve, touch_hole);
    assert_eq!(ve.reason(), E::EXCEPTION_OR_NMI);
    let event = Field::VM_EXIT_INTERRUPTION_INFORMATION;
    assert_eq!(ve.read(event), 0x8000_0314);
    let area = |host: &Host| [0, 8, 16, 24].map(|n| host.word(at::VE_AREA + n));
    assert_eq!(
        area(&ve),
        [
            0xffff_ffff_0000_0030,
            0x782,
            at::HOLE + 0x10,
            at::HOLE + 0x10
        ]
    );
    assert_eq!(ve.reason(), E::EPT_VIOLATION, "the area is not free");
    let mut suppressed = host(with_ve, touch_hole);
    set_ept_entry(&suppressed.phys, at::HOLE, 1 << 63);
    assert_eq!(suppressed.reason(), E::EPT_VIOLATION);
}

/// It is of the class of page faults, and has no error code.
#[test]
fn an_exception_in_the_delivery_of_a_virtualization_exception_is_a_double_fault() {
    let mut host = host(
        |v| {
            secondary(v, S::EPT_VIOLATION_VE);
            v.set(Field::EXCEPTION_BITMAP, 1 << 8);
            // Without a gate for vector 20: #GP.
            v.set(Field::GUEST_IDTR_LIMIT, 8 * 20 - 1);
        },
        touch_hole,
    );
    assert_eq!(host.reason(), E::EXCEPTION_OR_NMI);
    let event = Field::VM_EXIT_INTERRUPTION_INFORMATION;
    assert_eq!(host.read(event), 0x8000_0b08);
    assert_eq!(host.read(Field::IDT_VECTORING_INFORMATION), 0);
}

#[test]
fn vmfunc_switches_to_an_ept_pointer_of_the_list() {
    const OTHER: u64 = 0x16_0000;
    const PAGE: u64 = 0x17_0000;
    let mut host = host(
        |v| {
            secondary(v, S::ENABLE_VM_FUNCTIONS);
            v.set(Field::VM_FUNCTION_CONTROLS, 1);
        },
        |a| {
            a.xor(eax, eax)?;
            a.mov(ecx, 3)?;
            a.vmfunc()?;
            a.mov(ebx, dword_ptr(at::DATA as u32))?;
            a.vmcall()?;
            a.mov(ecx, 4)?;
            a.vmfunc()
        },
    );
    // The other tables differ in one page.
    let mut tables = vec![0; 0x4000];
    host.phys.read_bytes(Hpa(at::EPT), &mut tables);
    host.phys.write_bytes(Hpa(OTHER), &tables);
    for n in 0..3 {
        host.set_word(OTHER + 0x1000 * n, (OTHER + 0x1000 * (n + 1)) | 7);
    }
    host.set_word(OTHER + 0x3000 + 8 * (at::DATA >> 12), PAGE | 0x37);
    host.set_word(at::EPTP_LIST + 8 * 3, OTHER | 0x1e);
    host.set_word(at::EPTP_LIST + 8 * 4, OTHER | 0x18 | 7);
    host.set_word(at::DATA, 0x1111);
    host.set_word(PAGE, 0x2222);
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.cpu.general_registers()[3], 0x2222);
    assert_eq!(host.read(Field::EPT_POINTER), OTHER | 0x1e);
    host.skip();
    assert_eq!(host.reason(), E::VMFUNC, "an invalid EPT pointer");
}

/// A page of 2 MiB of the guest, in linear memory behind the first one.
const LARGE: u64 = 0x20_0000;

/// A 64-bit guest whose page of 2 MiB at [`LARGE`] EPT maps by pages of 4 KiB. It lets RSI be
/// called, moves the page to the second 2 MiB of physical memory, where EPT has a large page,
/// executes INVLPG for RDI, and lets RSI be called again.
fn move_large_page(registers: [(usize, u64); 3]) -> Host {
    let code: Code = |a| {
        a.call(rsi)?;
        a.call(rsi)?;
        a.mov(qword_ptr(at::PML4 + 0x2008), r8)?;
        a.invlpg(byte_ptr(rdi))?;
        a.call(rsi)?;
        a.vmcall()
    };
    let mut host = Host::new(
        Guest::Long,
        |v| {
            secondary(v, S::ENABLE_EPT);
            v.set(Field::EPT_POINTER, at::EPT | 0x1e);
        },
        code,
    );
    host.set_word(at::PML4 + 0x2008, 0x87);
    let mut all = [0; 16];
    all[8] = LARGE | 0x87;
    for (n, value) in registers {
        all[n] = value;
    }
    host.cpu.set_general_registers(&all);
    host
}

#[test]
fn invlpg_forgets_every_piece_of_a_large_page_that_ept_maps_by_small_ones() {
    for other in [at::DATA, at::DATA + 0x1000] {
        let mut host =
            move_large_page([(6, at::HANDLER), (7, LARGE + other), (3, LARGE + at::DATA)]);
        // MOV EAX, [RBX]; MOV ECX, [RBX + 1000H]; RET.
        let code = [0x8b, 0x03, 0x8b, 0x8b, 0, 0x10, 0, 0, 0xc3];
        host.phys.write_bytes(Hpa(at::HANDLER), &code);
        for page in [at::DATA, at::DATA + 0x1000] {
            host.set_word(page, 1);
            host.set_word(LARGE + page, 2);
        }
        assert_eq!(host.reason(), E::VMCALL);
        assert_eq!(host.cpu.general_registers()[..2], [2, 2], "{other:#x}");
    }
}

#[test]
fn invlpg_forgets_where_jumps_into_a_large_page_led() {
    let registers = [(6, LARGE + at::HANDLER), (7, LARGE + at::DATA), (3, 0)];
    let mut host = move_large_page(registers);
    // LEA EBX, [RBX + n]; RET.
    for (page, n) in [(at::HANDLER, 1), (LARGE + at::HANDLER, 0x10)] {
        host.phys.write_bytes(Hpa(page), &[0x8d, 0x5b, n, 0xc3]);
    }
    assert_eq!(host.reason(), E::VMCALL);
    assert_eq!(host.cpu.general_registers()[3], 0x12);
}
