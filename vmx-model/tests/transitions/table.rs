//! The transitions by their numbers, and the steps that they show.

use std::sync::Arc;

use crate::host::*;
use vmx_model::arch::Activity;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::ExitControls;
use vmx_model::event::InterruptionInfo;
use vmx_model::exit::{VmExit, VmxAbort};
use vmx_model::exit_reason::{ENTRY_FAILURE, ExitReason};
use vmx_model::field::Field;
use vmx_model::memory::PhysicalMemory;
use vmx_model::naive::Answer;
use vmx_model::naive::machine::Machine;
use vmx_model::naive::sequence::{Action, Blocking, Header, REGIONS, vmxon_region};
use vmx_model::outcome::VmxOutcome;
use vmx_model::precondition::{Instruction, VmxOperation};
use vmx_model::processor::{InitOutcome, VmxoffDetection};
use vmx_model::region;
use vmx_model::registry::LaunchState;
use vmx_model::sanitizer::Item;

pub(crate) const TRANSITIONS: &[(u32, fn())] = &[
    (1, || {
        let host = Host::root()
            .operation_is(VmxOperation::Root)
            .current_is(None);
        assert_eq!(host.0.cpus[0].vmxon_pointer(), Some(vmxon_region(0)));
    }),
    (2, || {
        Host::outside()
            .then(Action::Vmxon(MISALIGNED), INVALID)
            .then(Action::Vmxon(TOO_WIDE), INVALID)
            .operation_is(VmxOperation::Outside);
    }),
    (3, || {
        Host::outside()
            .then(Action::StoreHeader(A, Header::Foreign), Answer::Done)
            .then(Action::Vmxon(A), INVALID)
            .then(Action::StoreHeader(A, Header::Shadow), Answer::Done)
            .then(Action::Vmxon(A), INVALID)
            .operation_is(VmxOperation::Outside);
    }),
    (4, || {
        Host::root()
            .then(Action::Vmxon(B), INVALID)
            .operation_is(VmxOperation::Root);
    }),
    (5, || {
        Host::current().then(Action::Vmxon(B), valid(15)).error(15);
    }),
    (6, || {
        Host::outside().then(Action::Vmxoff, Answer::Undefined);
    }),
    (7, || {
        let host = Host::launched()
            .then(Action::Vmxoff, SUCCEED)
            .operation_is(VmxOperation::Outside)
            .current_is(None)
            .launch_is(A, LaunchState::Launched)
            .active_on(A, &[0])
            .misuse(&[Item::VmxoffWithActive]);
        assert!(host.0.registry.status(A).is_left_by_vmxoff);
        assert_eq!(host.0.cpus[0].vmxon_pointer(), None);
    }),
    (8, || {
        Host::current()
            .then(Action::Vmptrld(B), SUCCEED)
            .then(Action::Vmclear(A), SUCCEED)
            .launch_is(A, LaunchState::Clear)
            .active_on(A, &[])
            .current_is(Some(B))
            .then(Action::StoreHeader(A, Header::Foreign), Answer::Done)
            .then(Action::Vmclear(A), SUCCEED);
    }),
    (9, || {
        Host::launched()
            .then(Action::Vmclear(A), SUCCEED)
            .current_is(None)
            .active_on(A, &[])
            .launch_is(A, LaunchState::Clear);
    }),
    (10, || {
        Host::root()
            .then(Action::Vmclear(MISALIGNED), INVALID)
            .then(Action::Vmclear(TOO_WIDE), INVALID);
    }),
    (11, || {
        Host::current()
            .then(Action::Vmclear(MISALIGNED), valid(2))
            .error(2)
            .then(Action::Vmclear(TOO_WIDE), valid(2))
            .current_is(Some(A));
    }),
    (12, || {
        Host::root().then(Action::Vmclear(vmxon_region(0)), INVALID);
        Host::current()
            .then(Action::Vmclear(vmxon_region(0)), valid(3))
            .error(3);
    }),
    (13, || {
        Host::current()
            .write(Field::TSC_OFFSET, 0x1234)
            .on(1, Action::Vmxon(vmxon_region(1)), SUCCEED)
            .misuse(&[])
            .on(1, Action::Vmclear(A), SUCCEED)
            .misuse(&[Item::VmclearForeignActive])
            .launch_is(A, LaunchState::Clear)
            .active_on(A, &[0])
            // Processor 0 still holds its data, and only it can write them back.
            .reads(Field::TSC_OFFSET, 0x1234);
    }),
    (14, || {
        Host::root()
            .then(Action::Vmptrld(A), SUCCEED)
            .current_is(Some(A))
            .active_on(A, &[0])
            .then(Action::Vmptrld(B), SUCCEED)
            .current_is(Some(B))
            .active_on(A, &[0])
            .then(
                Action::StoreHeader(REGIONS[2], Header::Shadow),
                Answer::Done,
            )
            .then(Action::Vmptrld(REGIONS[2]), SUCCEED);
    }),
    (15, || {
        Host::current()
            .write(Field::TSC_OFFSET, 7)
            .then(Action::Vmptrld(A), SUCCEED)
            .reads(Field::TSC_OFFSET, 7);
    }),
    (16, || {
        Host::root().then(Action::Vmptrld(MISALIGNED), INVALID);
        Host::current()
            .then(Action::Vmptrld(MISALIGNED), valid(9))
            .error(9)
            .then(Action::Vmptrld(TOO_WIDE), valid(9))
            .current_is(Some(A));
    }),
    (17, || {
        Host::root().then(Action::Vmptrld(vmxon_region(0)), INVALID);
        Host::current()
            .then(
                Action::StoreHeader(vmxon_region(0), Header::Foreign),
                Answer::Done,
            )
            .then(Action::Vmptrld(vmxon_region(0)), valid(10))
            .error(10);
    }),
    (18, || {
        Host::current()
            .then(Action::StoreHeader(B, Header::Foreign), Answer::Done)
            .then(Action::Vmptrld(B), valid(11))
            .error(11)
            .current_is(Some(A));
        let minimal = Machine::new(&Arc::new(VmxProfile::minimal()), 1);
        Host(minimal)
            .then(Action::Vmxon(vmxon_region(0)), SUCCEED)
            .then(Action::StoreHeader(B, Header::Shadow), Answer::Done)
            .then(Action::Vmptrld(B), INVALID);
    }),
    (19, || {
        Host::root()
            .then(Action::Vmptrld(A), SUCCEED)
            .misuse(&[Item::UseBeforeVmclear])
            .launch_is(A, LaunchState::Undefined)
            .then(Action::Prepare(None), Answer::Done)
            .then(LAUNCH, valid(4))
            .then(RESUME, valid(5));
    }),
    (20, || {
        Host::current()
            .on(1, Action::Vmxon(vmxon_region(1)), SUCCEED)
            .misuse(&[])
            .on(1, Action::Vmptrld(A), SUCCEED)
            .misuse(&[Item::ActiveOnTwoCpus])
            .active_on(A, &[0, 1]);
    }),
    (21, || {
        Host::root().then(Action::Vmptrst, Answer::Value(u64::MAX));
        Host::current().then(Action::Vmptrst, Answer::Value(A.0));
    }),
    (22, || {
        Host::root().then(Action::Vmread(0x4402), INVALID);
    }),
    (23, || {
        Host::current()
            .then(Action::Vmread(0x0ffe), valid(12))
            .error(12)
            .then(Action::Vmread(0x1_0000_4402), valid(12));
    }),
    (24, || {
        Host::current().reads(Field::HOST_CS_SELECTOR, 8);
        Host::root()
            .then(Action::StoreHeader(B, Header::Shadow), Answer::Done)
            .then(Action::Vmptrld(B), SUCCEED)
            .write(Field::TSC_OFFSET, 3)
            .reads(Field::TSC_OFFSET, 3);
    }),
    (25, || {
        Host::root().then(Action::Vmwrite(0x2010, 1), INVALID);
    }),
    (26, || {
        Host::current()
            .then(Action::Vmwrite(0x0ffe, 1), valid(12))
            .error(12);
    }),
    (27, || {
        let profile = VmxProfile::all()
            .into_iter()
            .find(|profile| !profile.caps.writes_read_only_fields())
            .unwrap();
        Host(Machine::new(&Arc::new(profile), 1))
            .then(Action::Vmxon(vmxon_region(0)), SUCCEED)
            .then(Action::Vmptrld(A), SUCCEED)
            .then(Action::Vmwrite(0x4402, 1), valid(13))
            .error(13)
            .reads(Field::EXIT_REASON, 0);
    }),
    (28, || {
        Host::current()
            .write(Field::GUEST_CR0, 0xdead_beef_0000_0001)
            .reads(Field::GUEST_CR0, 0xdead_beef_0000_0001)
            .write(Field::GUEST_CS_SELECTOR, 0x12345)
            .reads(Field::GUEST_CS_SELECTOR, 0x2345);
    }),
    (29, || {
        Host::root().then(LAUNCH, INVALID);
    }),
    (30, || {
        Host::root()
            .then(Action::StoreHeader(B, Header::Shadow), Answer::Done)
            .then(Action::Vmclear(B), SUCCEED)
            .then(Action::Vmptrld(B), SUCCEED)
            .then(Action::Vmlaunch(Blocking::MovSs), INVALID);
    }),
    (31, || {
        Host::launched()
            .then(Action::Vmlaunch(Blocking::MovSs), valid(26))
            .error(26);
    }),
    (32, || {
        Host::launched()
            .write(Field::PIN_CONTROLS, 0)
            .then(LAUNCH, valid(4))
            .error(4);
    }),
    (33, || {
        Host::current()
            .write(Field::PIN_CONTROLS, 0)
            .write(Field::HOST_CR0, 0)
            .then(LAUNCH, valid(7))
            .error(7)
            .launch_is(A, LaunchState::Clear);
    }),
    (34, || {
        Host::current()
            .write(Field::HOST_CR0, 0)
            .write(Field::GUEST_RFLAGS, 0)
            .then(LAUNCH, valid(8))
            .error(8)
            .launch_is(A, LaunchState::Clear);
    }),
    (35, failed_entries),
    (36, || {
        Host::guest()
            .operation_is(VmxOperation::NonRoot)
            .launch_is(A, LaunchState::Launched);
    }),
    (37, || {
        Host::root().then(RESUME, INVALID);
    }),
    (38, || {
        Host::root()
            .then(Action::StoreHeader(B, Header::Shadow), Answer::Done)
            .then(Action::Vmptrld(B), SUCCEED)
            .then(Action::Vmresume(Blocking::MovSs), INVALID);
    }),
    (39, || {
        Host::current()
            .then(Action::Vmresume(Blocking::MovSs), valid(26))
            .error(26);
    }),
    (40, || {
        Host::current()
            .write(Field::PIN_CONTROLS, 0)
            .then(RESUME, valid(5))
            .error(5);
    }),
    (41, || {
        let again = || {
            Host::launched()
                .then(Action::Vmxoff, SUCCEED)
                .then(Action::Vmxon(vmxon_region(0)), SUCCEED)
                .then(Action::Vmptrld(A), SUCCEED)
                .misuse(&[Item::VmxoffWithActive])
        };
        again()
            .then(RESUME, Answer::Entered)
            .misuse(&[Item::VmresumeAfterVmxoff]);
        // After VMCLEAR it is a VMCS like any other.
        again()
            .then(Action::Vmclear(A), SUCCEED)
            .then(Action::Vmptrld(A), SUCCEED)
            .then(LAUNCH, Answer::Entered)
            .then(Action::Exit(ExitReason::CPUID), Answer::Exited)
            .changed(|m| m.cpus[0].set_vmxoff_detection(VmxoffDetection::Noticed))
            .then(RESUME, Answer::Entered)
            .misuse(&[]);
        again()
            .changed(|m| m.cpus[0].set_vmxoff_detection(VmxoffDetection::Noticed))
            .then(RESUME, valid(6))
            .misuse(&[Item::VmresumeAfterVmxoff]);
    }),
    (42, || {
        Host::launched()
            .write(Field::PIN_CONTROLS, 0)
            .then(RESUME, valid(7))
            .launch_is(A, LaunchState::Launched);
        Host::launched()
            .write(Field::HOST_CR0, 0)
            .then(RESUME, valid(8))
            .launch_is(A, LaunchState::Launched);
        Host::launched()
            .write(Field::GUEST_RFLAGS, 0)
            .then(RESUME, guest_state_fails())
            .launch_is(A, LaunchState::Launched);
    }),
    (43, || {
        Host::launched()
            .then(RESUME, Answer::Entered)
            .operation_is(VmxOperation::NonRoot);
    }),
    (44, || {
        let host = Host::guest()
            .changed(|m| {
                let vmcs = m.cpus[0].current_vmcs_mut().unwrap();
                vmcs.set(Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0x8000_0306);
            })
            .then(Action::Exit(ExitReason::HLT), Answer::Exited)
            .operation_is(VmxOperation::Root)
            .current_is(Some(A))
            .launch_is(A, LaunchState::Launched);
        let info = host.field(Field::VM_ENTRY_INTERRUPTION_INFORMATION);
        assert!(!InterruptionInfo(info as u32).is_valid());
        assert_eq!(host.field(Field::EXIT_REASON), 12);
    }),
    (45, || {
        // A host that is not in IA-32e mode cannot be returned to from a 64-bit guest.
        let mut host = Host::guest();
        let wide = u64::from(ExitControls::HOST_ADDRESS_SPACE_SIZE.bits());
        let vmcs = host.0.cpus[0].current_vmcs_mut().unwrap();
        vmcs.set(Field::EXIT_CONTROLS, vmcs.get(Field::EXIT_CONTROLS) & !wide);
        let Machine {
            cpus,
            registers,
            memory,
            ..
        } = &mut host.0;
        let exit = VmExit::new(ExitReason::CPUID);
        let done = cpus[0].vm_exit(&exit, memory, &mut registers[0]);
        assert_eq!(done, Err(VmxAbort::LeavingIa32eMode));
        assert_eq!(cpus[0].abort(), Some(VmxAbort::LeavingIa32eMode));
        assert_eq!(region::read_abort_indicator(memory, A), 6);
        assert_eq!(cpus[0].init(Activity::Active), InitOutcome::Pending);
        host.then(Action::Reset, Answer::Done)
            .operation_is(VmxOperation::Outside)
            .then(Action::Vmxon(vmxon_region(0)), SUCCEED);
    }),
    (46, || {
        for (action, reason) in INSTRUCTIONS {
            Host::guest()
                .then(*action, Answer::Exits(*reason))
                .operation_is(VmxOperation::NonRoot)
                .current_is(Some(A));
        }
    }),
    (47, || {
        Host::shadowing()
            .then(Action::Vmwrite(0x2010, 0x5555), SUCCEED)
            .then(Action::Vmread(0x2010), Answer::Value(0x5555))
            .then(Action::Vmwrite(0x2011, 0x6), SUCCEED)
            .then(Action::Vmread(0x2011), Answer::Value(0x6))
            .active_on(B, &[])
            .current_is(Some(A))
            .then(Action::Exit(ExitReason::CPUID), Answer::Exited)
            .reads(Field::TSC_OFFSET, 0)
            .then(Action::Vmptrld(B), SUCCEED)
            .reads(Field::TSC_OFFSET, 0x6_0000_5555);
    }),
    (48, || {
        let no_link = |m: &mut Machine| {
            let vmcs = m.cpus[0].current_vmcs_mut().unwrap();
            vmcs.set(Field::VMCS_LINK_POINTER, u64::MAX);
        };
        Host::shadowing()
            .changed(no_link)
            .changed(|m| {
                let target = m.cpus[0].access_target();
                assert_eq!(target, Err(VmxOutcome::FailInvalid));
            })
            .then(Action::Vmread(0x2010), INVALID)
            .then(Action::Vmwrite(0x2010, 1), INVALID);
    }),
    (49, || {
        for (action, _) in INSTRUCTIONS {
            if !matches!(action, Action::Vmxon(_)) {
                Host::outside().then(*action, Answer::Undefined);
            }
        }
    }),
    (50, || {
        Host::current()
            .then(Action::Invept(2, [0, 0]), SUCCEED)
            .then(Action::Invept(0, [0, 0]), valid(28))
            .error(28)
            .then(Action::Invvpid(1, [1, 0]), SUCCEED)
            .then(Action::Invvpid(1, [0, 0]), valid(28));
    }),
    (51, || {
        Host::guest()
            .changed(|m| {
                let vmcs = m.cpus[0].current_vmcs_mut().unwrap();
                vmcs.set(Field::TSC_OFFSET, 9);
            })
            .then(Action::Reset, Answer::Done)
            .operation_is(VmxOperation::Outside)
            .current_is(None)
            .active_on(A, &[])
            .then(Action::Vmxon(vmxon_region(0)), SUCCEED)
            .then(Action::Vmptrld(A), SUCCEED)
            // The data that the processor held are lost.
            .reads(Field::TSC_OFFSET, 0);
    }),
    (52, || {
        Host::outside().then(Action::Init, Answer::Init);
        Host::guest().then(Action::Init, Answer::Exits(ExitReason::INIT_SIGNAL));
        Host::root()
            .then(Action::Init, Answer::Pending)
            .changed(|m| {
                let cpu = &mut m.cpus[0];
                assert_eq!(cpu.take_pending_init(Activity::Active), None);
                assert_eq!(cpu.vmxoff(), Ok(VmxOutcome::Succeed));
                let taken = cpu.take_pending_init(Activity::Active);
                assert_eq!(taken, Some(InitOutcome::Init));
                assert_eq!(cpu.take_pending_init(Activity::Active), None);
            });
        Host::current()
            .then(Action::Init, Answer::Pending)
            .then(LAUNCH, Answer::Entered)
            .changed(|m| {
                let cpu = &mut m.cpus[0];
                assert_eq!(cpu.take_pending_init(Activity::WaitForSipi), None);
                let taken = cpu.take_pending_init(Activity::Active);
                assert_eq!(taken, Some(InitOutcome::Exit));
            });
    }),
];

/// Every VMX instruction but VMCALL's and VMFUNC's relatives, with its exit reason.
pub(crate) const INSTRUCTIONS: &[(Action, ExitReason)] = &[
    (Action::Vmxon(B), ExitReason::VMXON),
    (Action::Vmxoff, ExitReason::VMXOFF),
    (Action::Vmclear(B), ExitReason::VMCLEAR),
    (Action::Vmptrld(B), ExitReason::VMPTRLD),
    (Action::Vmptrst, ExitReason::VMPTRST),
    (Action::Vmread(0x4402), ExitReason::VMREAD),
    (Action::Vmwrite(0x2010, 1), ExitReason::VMWRITE),
    (LAUNCH, ExitReason::VMLAUNCH),
    (RESUME, ExitReason::VMRESUME),
    (Action::Vmcall, ExitReason::VMCALL),
    (Action::Invept(2, [0, 0]), ExitReason::INVEPT),
    (Action::Invvpid(2, [0, 0]), ExitReason::INVVPID),
];

pub(crate) fn guest_state_fails() -> Answer {
    let reason = u32::from(ExitReason::ENTRY_FAIL_GUEST_STATE.0) | ENTRY_FAILURE;
    Answer::EntryFailed(reason, 0)
}

pub(crate) fn failed_entries() {
    let host = Host::current()
        .write(Field::GUEST_RFLAGS, 0)
        .write(Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0x8000_0306)
        .write(Field::GUEST_RSP, 0x77)
        .then(LAUNCH, guest_state_fails())
        .operation_is(VmxOperation::Root)
        .launch_is(A, LaunchState::Clear)
        .reads(Field::EXIT_REASON, 0x8000_0021)
        .reads(Field::GUEST_RSP, 0x77)
        .reads(Field::VM_ENTRY_INTERRUPTION_INFORMATION, 0x8000_0306);
    assert_eq!(host.0.registers[0].state.rip, 0x1000, "HOST_RIP");
    // An MSR-load area whose only entry is IA32_FS_BASE.
    let area = REGIONS[3];
    let host = Host::current()
        .changed(|m| m.memory.write_u32(area, 0xc000_0100))
        .changed(|m| m.memory.write_u32(area.offset(4), 0))
        .write(Field::VM_ENTRY_MSR_LOAD_ADDRESS, area.0)
        .write(Field::VM_ENTRY_MSR_LOAD_COUNT, 1)
        .then(LAUNCH, Answer::EntryFailed(0x8000_0022, 1))
        .operation_is(VmxOperation::Root)
        .launch_is(A, LaunchState::Clear);
    assert_eq!(host.0.registers[0].state.rip, 0x1000, "HOST_RIP");
}

pub(crate) type Step = (Instruction, &'static str, u8);

/// The steps that the processor decides, each with the transitions that show it (0: a test of its
/// own below).
pub(crate) const STEPS: &[(Step, &[u32])] = &[
    ((Instruction::Vmxon, "outside", 10), &[2]),
    ((Instruction::Vmxon, "outside", 11), &[3]),
    ((Instruction::Vmxon, "outside", 12), &[1]),
    ((Instruction::Vmxon, "root", 3), &[4, 5]),
    ((Instruction::Vmxoff, "any", 5), &[7]),
    ((Instruction::Vmclear, "any", 6), &[10, 11]),
    ((Instruction::Vmclear, "any", 7), &[12]),
    ((Instruction::Vmclear, "any", 8), &[8, 9]),
    ((Instruction::Vmptrld, "any", 6), &[16]),
    ((Instruction::Vmptrld, "any", 7), &[17]),
    ((Instruction::Vmptrld, "any", 8), &[18]),
    ((Instruction::Vmptrld, "any", 9), &[14, 15]),
    ((Instruction::Vmptrst, "any", 6), &[21]),
    ((Instruction::Vmread, "any", 4), &[22, 48]),
    ((Instruction::Vmread, "any", 5), &[23]),
    ((Instruction::Vmread, "any", 7), &[24, 47]),
    ((Instruction::Vmwrite, "any", 4), &[25, 48]),
    ((Instruction::Vmwrite, "any", 6), &[26]),
    ((Instruction::Vmwrite, "any", 7), &[27]),
    ((Instruction::Vmwrite, "any", 8), &[28, 47]),
    ((Instruction::Vmlaunch, "any", 4), &[29]),
    ((Instruction::Vmlaunch, "any", 5), &[30]),
    ((Instruction::Vmlaunch, "any", 6), &[31]),
    ((Instruction::Vmlaunch, "any", 7), &[32]),
    ((Instruction::Vmlaunch, "any", 8), &[33]),
    ((Instruction::Vmlaunch, "any", 9), &[34]),
    ((Instruction::Vmlaunch, "any", 11), &[35]),
    ((Instruction::Vmlaunch, "any", 12), &[35]),
    ((Instruction::Vmlaunch, "any", 14), &[36]),
    ((Instruction::Vmresume, "any", 4), &[37]),
    ((Instruction::Vmresume, "any", 5), &[38]),
    ((Instruction::Vmresume, "any", 6), &[39]),
    ((Instruction::Vmresume, "any", 7), &[40, 41]),
    ((Instruction::Vmresume, "any", 8), &[42, 43]),
    ((Instruction::Vmcall, "root", 3), &[0]),
    ((Instruction::Vmfunc, "non-root", 1), &[0]),
    ((Instruction::Vmfunc, "non-root", 2), &[0]),
    ((Instruction::Vmfunc, "non-root", 3), &[0]),
    ((Instruction::Vmfunc, "non-root", 4), &[0]),
    ((Instruction::Vmfunc, "non-root", 5), &[0]),
    ((Instruction::Vmfunc, "non-root", 6), &[0]),
    ((Instruction::Invept, "any", 5), &[50]),
    ((Instruction::Invept, "any", 7), &[0]),
    ((Instruction::Invept, "any", 8), &[50]),
    ((Instruction::Invvpid, "any", 5), &[0]),
    ((Instruction::Invvpid, "any", 7), &[0]),
    ((Instruction::Invvpid, "any", 8), &[50]),
    ((Instruction::Invvpid, "any", 9), &[0]),
    ((Instruction::Invvpid, "any", 10), &[50]),
];
