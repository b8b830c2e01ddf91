//! KVM_CREATE_VCPU performs the operations of Linux 6.12, in its order, with its values.

use kvm_api::trace::{self, Phase, VmxOperation};
use serde::Deserialize;
use std::sync::LazyLock;
use vmx_model::capability::VmxProfile;
use vmx_model::controls::{PinControls, ProcControls};

/// The conditions of `data/create-vcpu.toml` that hold; the rest are false.
const TRUE_CONDITIONS: &[&str] = &[
    "",
    "msr bitmaps",
    "vmcs01 not current on this CPU",
    "IA32 emulation built in",
    "tsc scaling",
    "nested && shadow vmcs",
    "secondary controls",
    "pause exits not disabled",
    "exit load PAT",
    "entry load PAT",
    "load EFER controls",
    "load EFER controls (host EFER != 0)",
    "vmfunc",
    "vpid",
    "vpid != 0",
    "xsaves",
    "pml",
    "tpr shadow",
];

/// Operations on the processor; the others of the list are the software's own.
const OPERATIONS: &[&str] = &["vmclear", "vmptrld", "vmread", "vmwrite", "invvpid"];

#[derive(Deserialize)]
struct Step {
    n: u32,
    op: String,
    field: Option<String>,
    value: Option<String>,
    #[serde(default)]
    when: String,
}

#[derive(Deserialize)]
struct Steps {
    step: Vec<Step>,
}

fn expected() -> Vec<Step> {
    let steps: Steps = toml::from_str(include_str!("data/create-vcpu.toml")).expect("a table");
    assert_eq!(steps.step.len(), 176);
    let holds = |step: &Step| TRUE_CONDITIONS.contains(&step.when.as_str());
    let is_operation = |step: &Step| OPERATIONS.contains(&step.op.as_str());
    steps
        .step
        .into_iter()
        .filter(|step| holds(step) && is_operation(step))
        .collect()
}

fn constant(step: &Step) -> Option<u64> {
    let text = step.value.as_deref()?;
    Some(u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number"))
}

/// The first VM of the process.
static TRACE: LazyLock<Vec<VmxOperation>> =
    LazyLock::new(|| trace::create_vcpu(&kvm_api::Kvm::new()).expect("a vCPU"));

#[test]
fn the_sequence_is_that_of_linux() {
    let trace = &*TRACE;
    let created: Vec<&VmxOperation> = trace
        .iter()
        .filter(|operation| operation.phase == Phase::Create)
        .collect();
    let expected = expected();
    for (step, done) in expected.iter().zip(&created) {
        let n = step.n;
        assert_eq!(done.op, step.op, "step {n}: {done:?}");
        if matches!(done.op, "vmwrite" | "vmread") {
            assert_eq!(done.field, step.field.as_deref(), "step {n}");
        }
        if let Some(value) = constant(step) {
            assert_eq!(done.value, Some(value), "step {n}: {done:x?}");
        }
    }
    assert_eq!(created.len(), expected.len());
    assert_eq!(trace[0].op, "vmxon");
}

#[test]
fn control_words_are_those_of_the_capabilities() {
    let trace = &*TRACE;
    let last = |field: &str| {
        let mut writes = trace
            .iter()
            .filter(|operation| operation.field == Some(field));
        writes
            .next_back()
            .and_then(|operation| operation.value)
            .expect("it is written")
    };
    let caps = VmxProfile::emulator_default().caps;
    let pin = PinControls::EXTERNAL_INTERRUPT_EXITING
        | PinControls::NMI_EXITING
        | PinControls::VIRTUAL_NMIS
        | PinControls::ACTIVATE_VMX_PREEMPTION_TIMER;
    let pin = u64::from(pin.bits() | caps.pin().must1);
    assert_eq!(last("PIN_BASED_VM_EXEC_CONTROL"), pin);
    let proc = ProcControls::HLT_EXITING
        | ProcControls::CR8_LOAD_EXITING
        | ProcControls::CR8_STORE_EXITING
        | ProcControls::UNCONDITIONAL_IO_EXITING
        | ProcControls::MOV_DR_EXITING
        | ProcControls::USE_TSC_OFFSETTING
        | ProcControls::MWAIT_EXITING
        | ProcControls::MONITOR_EXITING
        | ProcControls::RDPMC_EXITING
        | ProcControls::USE_MSR_BITMAPS
        | ProcControls::ACTIVATE_SECONDARY_CONTROLS;
    let proc = u64::from(proc.bits() | caps.proc().must1);
    assert_eq!(last("CPU_BASED_VM_EXEC_CONTROL"), proc);
    // EPT, VPID, WBINVD exiting, unrestricted guest, PLE, RDRAND and RDSEED exiting, TSC scaling.
    assert_eq!(last("SECONDARY_VM_EXEC_CONTROL"), 0x0201_0ce2);
    // Host address-space size, acknowledge, load PAT and EFER, save debug controls.
    assert_eq!(
        last("VM_EXIT_CONTROLS"),
        u64::from(0x28_8204 | caps.exit().must1)
    );
    // Load debug controls, PAT and EFER.
    assert_eq!(
        last("VM_ENTRY_CONTROLS"),
        u64::from(0xc004 | caps.entry().must1)
    );
}
