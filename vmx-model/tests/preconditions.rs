//! Every step of every VMX instruction: the table against the specification's list, and the
//! preconditions in their order.
#![expect(clippy::unwrap_used, reason = "a failure is the test's failure")]

use serde::Deserialize;
use vmx_model::arch::{Cr0, Cr4, Efer, Rflags};
use vmx_model::capability::VmxProfile;
use vmx_model::event::Exception;
use vmx_model::exit_reason::ExitReason;
use vmx_model::precondition::{
    ExecutionContext, Instruction, NotExecuted, OperandForm, Rule, ShadowAccess, VmxOperation,
    check,
};

#[derive(Deserialize)]
struct Step {
    instruction: String,
    operation: String,
    order: u8,
    condition: String,
    result: String,
}

#[derive(Deserialize)]
struct Table {
    step: Vec<Step>,
}

fn spec() -> Vec<Step> {
    let table: Table = toml::from_str(include_str!("data/instruction-steps.toml")).unwrap();
    table.step
}

fn instruction(name: &str) -> Instruction {
    let mut all = Instruction::ALL.into_iter();
    all.find(|instruction| instruction.mnemonic() == name)
        .unwrap()
}

fn rule(step: &Step) -> Rule {
    let mut steps = instruction(&step.instruction).steps().iter();
    let ours = steps.find(|ours| ours.applies.name() == step.operation && ours.order == step.order);
    ours.unwrap_or_else(|| panic!("{} {} {}", step.instruction, step.operation, step.order))
        .rule
}

#[test]
#[cfg_attr(miri, ignore = "parses a long table")]
fn the_table_has_the_steps_of_the_specification() {
    let spec = spec();
    assert_eq!(spec.len(), 121);
    let ours: usize = Instruction::ALL.iter().map(|i| i.steps().len()).sum();
    assert_eq!(ours, spec.len());
    for step in &spec {
        let _ = rule(step);
    }
}

/// Conditions as the specification words them, each with the ways to make it hold.
type Violation = fn(&mut ExecutionContext<'_>);

const MODE: &[Violation] = &[
    |c| c.cr0 -= Cr0::PE,
    |c| c.rflags |= Rflags::VM,
    |c| c.is_cs_long = false,
];
const REGISTER: Violation = |c| c.operand = OperandForm::Register;
const OUTSIDE: Violation = |c| c.operation = VmxOperation::Outside;

fn violations(step: &Step) -> Vec<Violation> {
    let mode = MODE.to_vec();
    match step.condition.as_str() {
        "operand is a register form" | "register form" => vec![REGISTER],
        "CR4.VMXE=0 or CR0.PE=0 or RFLAGS.VM=1 or (IA32_EFER.LMA=1 and CS.L=0)" => {
            let vmxe: Violation = |c| c.cr4 -= Cr4::VMXE;
            [vec![vmxe], mode].concat()
        }
        "CPL>0" => vec![|c| c.cpl = 3, |c| c.cpl = 1],
        "in A20M mode" => vec![|c| c.is_a20_masked = true],
        condition if condition.starts_with("CR0 or CR4 value not supported") => {
            vec![|c| c.cr0 -= Cr0::PG, |c| c.cr0 -= Cr0::NE, |c| {
                c.cr4.insert(Cr4::from_bits_retain(1 << 63));
            }]
        }
        "IA32_FEATURE_CONTROL.lock=0" => vec![|c| c.feature_control &= !1],
        "in SMX operation and IA32_FEATURE_CONTROL[1]=0" => vec![|c| {
            c.is_in_smx = true;
            c.feature_control &= !2;
        }],
        "outside SMX operation and IA32_FEATURE_CONTROL[2]=0" => {
            vec![|c| c.feature_control &= !4]
        }
        "#UD conditions of the first two steps" | "#UD conditions" => {
            [vec![REGISTER], mode].concat()
        }
        "not in VMX operation, or CR0.PE=0 or RFLAGS.VM=1 or (IA32_EFER.LMA=1 and CS.L=0)" => {
            [vec![OUTSIDE], mode].concat()
        }
        "CR0.PE=0 or RFLAGS.VM=1 or (IA32_EFER.LMA=1 and CS.L=0)" => mode,
        "non-root operation" => vec![|c| c.operation = VmxOperation::NonRoot],
        condition if condition.starts_with("non-root and (proc2.vmcs-shadowing=0") => {
            vec![|c| {
                c.operation = VmxOperation::NonRoot;
                c.shadow_access = ShadowAccess::Exits;
            }]
        }
        "not in VMX operation" => vec![OUTSIDE],
        "always" => vec![|_| {}],
        "CR4.SMXE=0" => vec![|c| c.cr4 -= Cr4::SMXE],
        // The processor of these tests has both; see `an_instruction_that_is_not_offered_...`.
        condition if condition.starts_with("register form of memory operand") => vec![REGISTER],
        condition => panic!("{}: {condition}", step.instruction),
    }
}

fn expected(result: &str) -> NotExecuted {
    match result {
        "#UD" => NotExecuted::Fault(Exception::UD),
        "#GP(0)" => NotExecuted::Fault(Exception::gp(0)),
        exit => {
            let number = exit.strip_prefix("VM exit ").unwrap().parse().unwrap();
            NotExecuted::Exit(ExitReason(number))
        }
    }
}

/// A context in which every instruction passes in VMX root operation.
fn legal(profile: &VmxProfile, operation: VmxOperation) -> ExecutionContext<'_> {
    ExecutionContext {
        operation,
        cr0: Cr0::from_bits_retain(profile.caps.cr0_fixed0()) | Cr0::PE | Cr0::PG | Cr0::NE,
        cr4: Cr4::from_bits_retain(profile.caps.cr4_fixed0()) | Cr4::VMXE | Cr4::PAE,
        rflags: Rflags::FIXED1,
        efer: Efer::LME | Efer::LMA,
        is_cs_long: true,
        cpl: 0,
        is_a20_masked: false,
        is_in_smx: false,
        feature_control: 7,
        operand: OperandForm::Memory,
        shadow_access: ShadowAccess::Shadowed,
        capabilities: &profile.caps,
    }
}

fn operation(step: &Step) -> VmxOperation {
    match step.operation.as_str() {
        "outside" => VmxOperation::Outside,
        "non-root" => VmxOperation::NonRoot,
        _ => VmxOperation::Root,
    }
}

fn is_precondition(step: &Step) -> bool {
    matches!(rule(step), Rule::Precondition(..))
}

#[test]
#[cfg_attr(miri, ignore = "parses a long table")]
fn each_precondition_decides_when_it_is_the_first_that_holds() {
    let profile = VmxProfile::everything();
    let spec = spec();
    let mut count = 0;
    for (n, step) in spec
        .iter()
        .enumerate()
        .filter(|(_, step)| is_precondition(step))
    {
        let is_later = |other: &&Step| {
            other.instruction == step.instruction
                && other.operation == step.operation
                && is_precondition(other)
        };
        let later: Vec<Violation> = spec[n + 1..]
            .iter()
            .filter(is_later)
            .flat_map(violations)
            .collect();
        for violation in violations(step) {
            let instruction = instruction(&step.instruction);
            let mut context = legal(&profile, operation(step));
            if instruction == Instruction::Getsec {
                context.cr4 |= Cr4::SMXE;
            }
            violation(&mut context);
            let expected = Err(expected(&step.result));
            let at = format!("{} {} {}", step.instruction, step.operation, step.order);
            assert_eq!(check(instruction, &context), expected, "{at}");
            // What later steps look at does not matter. (Not the operation: that is another row.)
            for other in &later {
                let mut both = context.clone();
                other(&mut both);
                if both.operation == context.operation {
                    assert_eq!(
                        check(instruction, &both),
                        expected,
                        "{at}, with a later one"
                    );
                }
            }
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn without_a_violation_every_instruction_of_root_software_passes() {
    let profile = VmxProfile::everything();
    for instruction in Instruction::ALL {
        let operation = match instruction {
            Instruction::Vmxon => VmxOperation::Outside,
            Instruction::Vmfunc => VmxOperation::NonRoot,
            _ => VmxOperation::Root,
        };
        let context = legal(&profile, operation);
        assert_eq!(check(instruction, &context), Ok(()), "{instruction:?}");
    }
    for instruction in [Instruction::Vmread, Instruction::Vmwrite] {
        let context = legal(&profile, VmxOperation::NonRoot);
        assert_eq!(
            check(instruction, &context),
            Ok(()),
            "{instruction:?} shadowed"
        );
    }
}

#[test]
fn compatibility_mode_is_refused_but_protected_mode_is_not() {
    let profile = VmxProfile::everything();
    let mut context = legal(&profile, VmxOperation::Root);
    context.is_cs_long = false;
    let undefined = Err(NotExecuted::Fault(Exception::UD));
    assert_eq!(check(Instruction::Vmclear, &context), undefined);
    context.efer -= Efer::LMA | Efer::LME;
    assert_eq!(check(Instruction::Vmclear, &context), Ok(()));
}

#[test]
fn vmcall_in_non_root_operation_exits_from_any_mode_and_privilege() {
    let profile = VmxProfile::everything();
    let mut context = legal(&profile, VmxOperation::NonRoot);
    for violation in MODE {
        violation(&mut context);
    }
    context.cpl = 3;
    let exit = Err(NotExecuted::Exit(ExitReason::VMCALL));
    assert_eq!(check(Instruction::Vmcall, &context), exit);
}

#[test]
fn an_instruction_that_is_not_offered_is_undefined() {
    let profile = VmxProfile::minimal();
    let undefined = Err(NotExecuted::Fault(Exception::UD));
    for instruction in [Instruction::Invept, Instruction::Invvpid] {
        let context = legal(&profile, VmxOperation::Root);
        assert_eq!(check(instruction, &context), undefined, "{instruction:?}");
    }
}
