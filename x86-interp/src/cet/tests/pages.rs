//! Which pages are shadow stacks, for whom, and the error code of page faults.

use vmx_model::addr::{Hpa, Linear};
use vmx_model::arch::{Cr4, Rflags};

use super::{ABSENT, SSP, SUPERVISOR, TABLE, USER, cet, map};
use crate::mem::{Access, Privilege};
use crate::test_cpu::{DATA, execute};
use crate::{Cpu, Exec};

const P: u32 = 1;
const WR: u32 = 2;
const US: u32 = 4;
const PK: u32 = 0x20;
const SS: u32 = 0x40;

fn access(cpu: &mut Cpu, at: u64, access: Access, privilege: Privilege) -> Exec {
    // Twice: by a walk, and by what the TLB remembers of it.
    let first = cpu.translate(Linear(at), access, privilege).map(|_| ());
    let again = cpu.translate(Linear(at), access, privilege).map(|_| ());
    assert_eq!(first, again);
    first
}

/// (flags of the page, flags of the table above it, who reaches it: supervisor, user)
#[test]
fn a_shadow_stack_page_is_dirty_and_not_writable_below_writable_entries() {
    for (page, above, supervisor, user) in [
        (0x61, 7, true, false),
        (0x65, 7, false, true),
        // By the entry above it this is a supervisor-mode address.
        (0x65, 3, true, false),
        // Not dirty.
        (0x21, 7, false, false),
        (0x25, 7, false, false),
        // Writable.
        (0x63, 7, false, false),
        (0x67, 7, false, false),
        // The entry above is not writable.
        (0x61, 5, false, false),
        (0x65, 5, false, false),
    ] {
        for (privilege, is_reached, level) in [
            (Privilege::SupervisorShadowStack, supervisor, 0),
            (Privilege::UserShadowStack, user, US),
        ] {
            for (kind, write) in [(Access::Read, 0), (Access::Write, WR)] {
                let mut cpu = cet(0);
                map(&mut cpu, SUPERVISOR, page);
                cpu.phys
                    .write_bytes(Hpa(0x12000), &(TABLE | above).to_le_bytes());
                cpu.flush_tlb_all();
                let expected = if is_reached {
                    Ok(())
                } else {
                    super::pf(P | SS | write | level, SUPERVISOR)
                };
                let found = access(&mut cpu, SUPERVISOR, kind, privilege);
                assert_eq!(found, expected, "{page:#x} {above} {kind:?} {privilege:?}");
            }
        }
    }
}

#[test]
fn ordinary_accesses_do_not_write_to_shadow_stacks() {
    // MOV [RDI], EAX; MOV EAX, [RDI].
    for (level, at, code) in [
        (0, SUPERVISOR, P | WR),
        (0, USER, P | WR),
        (3, USER, P | WR | US),
    ] {
        let mut cpu = cet(level);
        cpu.gpr[7] = at;
        assert_eq!(execute(&mut cpu, &[0x89, 0x07]), super::pf(code, at));
        assert_eq!(execute(&mut cpu, &[0x8b, 0x07]), Ok(()));
        // Nor behind a shadow-stack access to the page, nor in place of one.
        let privilege = Privilege::shadow_stack(if at == USER { 3 } else { 0 });
        assert_eq!(access(&mut cpu, at, Access::Write, privilege), Ok(()));
        assert_eq!(execute(&mut cpu, &[0x89, 0x07]), super::pf(code, at));
        cpu.gpr[7] = DATA;
        assert_eq!(execute(&mut cpu, &[0x89, 0x07]), Ok(()));
        let fault = access(&mut cpu, DATA, Access::Write, Privilege::UserShadowStack);
        assert_eq!(fault, super::pf(P | WR | US | SS, DATA));
    }
}

#[test]
fn an_absent_page_says_that_it_was_a_shadow_stack_access() {
    let mut cpu = cet(0);
    for (privilege, code) in [
        (Privilege::SupervisorShadowStack, SS | WR),
        (Privilege::UserShadowStack, SS | WR | US),
    ] {
        let fault = access(&mut cpu, ABSENT, Access::Write, privilege);
        assert_eq!(fault, super::pf(code, ABSENT));
    }
}

#[test]
fn smap_does_not_matter_and_protection_keys_do() {
    let mut cpu = cet(0);
    cpu.state.cr4 |= Cr4::SMAP | Cr4::PKE | Cr4::PKS;
    cpu.set_rflags(Rflags::empty());
    assert_eq!(
        access(&mut cpu, USER, Access::Write, Privilege::UserShadowStack),
        Ok(())
    );
    let fault = access(
        &mut cpu,
        USER,
        Access::Write,
        Privilege::SupervisorShadowStack,
    );
    assert_eq!(fault, super::pf(P | WR | SS, USER));
    // Key 0: writes are disabled, then all accesses.
    for (at, privilege, level) in [
        (USER, Privilege::UserShadowStack, US),
        (SUPERVISOR, Privilege::SupervisorShadowStack, 0),
    ] {
        for (rights, read) in [(2, Ok(())), (1, super::pf(P | SS | PK | level, at))] {
            cpu.system.pkru = rights;
            cpu.state.pkrs = u64::from(rights);
            cpu.flush_tlb_all();
            assert_eq!(access(&mut cpu, at, Access::Read, privilege), read);
            let fault = access(&mut cpu, at, Access::Write, privilege);
            assert_eq!(fault, super::pf(P | WR | SS | PK | level, at));
        }
        cpu.system.pkru = 0;
        cpu.state.pkrs = 0;
        cpu.flush_tlb_all();
    }
}

#[test]
fn a_large_page_may_be_a_shadow_stack() {
    for (entry, is_one) in [(0xe1_u64, true), (0xe3, false), (0xa1, false)] {
        let mut cpu = cet(0);
        cpu.phys.write_bytes(Hpa(0x12000), &entry.to_le_bytes());
        cpu.flush_tlb_all();
        let found = access(
            &mut cpu,
            SUPERVISOR,
            Access::Write,
            Privilege::SupervisorShadowStack,
        );
        assert_eq!(found.is_ok(), is_one, "{entry:#x}");
    }
}

#[test]
fn an_address_that_is_not_canonical_is_gp() {
    let mut cpu = cet(0);
    cpu.state.ssp = 1 << 48;
    // INCSSPQ RAX.
    let code = [0xf3, 0x48, 0x0f, 0xae, 0xe8];
    assert_eq!(execute(&mut cpu, &code), crate::test_cpu::GP);
    cpu.state.ssp = SSP[0];
    assert_eq!(execute(&mut cpu, &code), Ok(()));
}
