//! The VM-instruction error numbers.
//!
//! SDM Vol. 3C, "VM Instruction Error Numbers" of the chapter "VMX Instruction Reference". The
//! numbers are what [`VmxOutcome::FailValid`](crate::outcome::VmxOutcome) carries.

use crate::controls::Scope;

struct Row {
    number: u32,
    id: &'static str,
    meaning: &'static str,
    scope: Scope,
}

/// Declares the errors: `NAME = number, "id", scope;`.
macro_rules! errors {
    ($(
        #[doc = $meaning:literal]
        $error:ident = $number:literal, $id:literal, $scope:ident;
    )*) => {
        $(
            #[doc = $meaning]
            pub const $error: u32 = $number;
        )*

        static TABLE: &[Row] = &[$(
            Row {
                number: $number,
                id: $id,
                meaning: $meaning.trim_ascii(),
                scope: Scope::$scope,
            },
        )*];
    };
}

errors! {
    /// VMCALL executed in VMX root operation
    VMCALL_IN_ROOT = 1, "vmcall-in-root", In;
    /// VMCLEAR with invalid physical address
    VMCLEAR_INVALID_ADDRESS = 2, "vmclear-invalid-address", In;
    /// VMCLEAR with VMXON pointer
    VMCLEAR_VMXON_POINTER = 3, "vmclear-vmxon-pointer", In;
    /// VMLAUNCH with non-clear VMCS
    VMLAUNCH_NON_CLEAR = 4, "vmlaunch-non-clear", In;
    /// VMRESUME with non-launched VMCS
    VMRESUME_NON_LAUNCHED = 5, "vmresume-non-launched", In;
    /// VMRESUME after VMXOFF (VMXOFF and VMXON between VMLAUNCH and VMRESUME)
    VMRESUME_AFTER_VMXOFF = 6, "vmresume-after-vmxoff", In;
    /// VM entry with invalid control field(s)
    ENTRY_INVALID_CONTROL = 7, "entry-invalid-control", In;
    /// VM entry with invalid host-state field(s)
    ENTRY_INVALID_HOST_STATE = 8, "entry-invalid-host-state", In;
    /// VMPTRLD with invalid physical address
    VMPTRLD_INVALID_ADDRESS = 9, "vmptrld-invalid-address", In;
    /// VMPTRLD with VMXON pointer
    VMPTRLD_VMXON_POINTER = 10, "vmptrld-vmxon-pointer", In;
    /// VMPTRLD with incorrect VMCS revision identifier
    VMPTRLD_WRONG_REVISION = 11, "vmptrld-wrong-revision", In;
    /// VMREAD/VMWRITE from/to unsupported VMCS component
    UNSUPPORTED_COMPONENT = 12, "unsupported-component", In;
    /// VMWRITE to read-only VMCS component
    VMWRITE_READ_ONLY = 13, "vmwrite-read-only", In;
    /// VMXON executed in VMX root operation
    VMXON_IN_ROOT = 15, "vmxon-in-root", In;
    /// VM entry with invalid executive-VMCS pointer
    ENTRY_INVALID_EXECUTIVE_VMCS = 16, "entry-invalid-executive-vmcs", Out;
    /// VM entry with non-launched executive VMCS
    ENTRY_NON_LAUNCHED_EXECUTIVE_VMCS = 17, "entry-non-launched-executive-vmcs", Out;
    /// VM entry with executive-VMCS pointer not VMXON pointer (when attempting to deactivate the dual-monitor treatment)
    ENTRY_EXECUTIVE_VMCS_NOT_VMXON = 18, "entry-executive-vmcs-not-vmxon", Out;
    /// VMCALL with non-clear VMCS (when attempting to activate the dual-monitor treatment)
    VMCALL_NON_CLEAR = 19, "vmcall-non-clear", Out;
    /// VMCALL with invalid VM-exit control fields
    VMCALL_INVALID_EXIT_CONTROL = 20, "vmcall-invalid-exit-control", Out;
    /// VMCALL with incorrect MSEG revision identifier
    VMCALL_WRONG_MSEG_REVISION = 22, "vmcall-wrong-mseg-revision", Out;
    /// VMXOFF under dual-monitor treatment of SMIs and SMM
    VMXOFF_DUAL_MONITOR = 23, "vmxoff-dual-monitor", Out;
    /// VMCALL with invalid SMM-monitor features
    VMCALL_INVALID_SMM_MONITOR_FEATURES = 24, "vmcall-invalid-smm-monitor-features", Out;
    /// VM entry with invalid VM-execution control fields in executive VMCS (when attempting to return from SMM)
    ENTRY_INVALID_CONTROLS_IN_EXECUTIVE_VMCS = 25, "entry-invalid-controls-in-executive-vmcs", Out;
    /// VM entry with events blocked by MOV SS
    ENTRY_MOVSS_BLOCKING = 26, "entry-movss-blocking", In;
    /// Invalid operand to INVEPT/INVVPID
    INVALID_INVEPT_INVVPID_OPERAND = 28, "invalid-invept-invvpid-operand", In;
}

/// Returns every error number, in ascending order.
pub fn all() -> impl Iterator<Item = u32> {
    TABLE.iter().map(|row| row.number)
}

fn row(number: u32) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.number == number)
}

/// Returns the stable name of an error, such as `vmptrld-vmxon-pointer`.
#[must_use]
pub fn id(number: u32) -> Option<&'static str> {
    row(number).map(|row| row.id)
}

/// Returns the meaning of an error in the SDM's words.
#[must_use]
pub fn meaning(number: u32) -> Option<&'static str> {
    row(number).map(|row| row.meaning)
}

/// Returns how far this model goes with an error.
#[must_use]
pub fn scope(number: u32) -> Option<Scope> {
    row(number).map(|row| row.scope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Row {
        number: u32,
        id: String,
        meaning: String,
        scope: String,
    }

    #[derive(serde::Deserialize)]
    struct Table {
        error: Vec<Row>,
    }

    #[test]
    fn the_table_is_the_specifications() {
        let spec: Table = toml::from_str(include_str!("../tests/data/errors.toml")).unwrap();
        assert_eq!(spec.error.len(), 25);
        assert_eq!(all().count(), 25);
        for row in spec.error {
            assert_eq!(id(row.number), Some(&*row.id));
            assert_eq!(meaning(row.number), Some(&*row.meaning));
            let scope = format!("{:?}", scope(row.number).unwrap()).to_lowercase();
            assert_eq!(scope, row.scope, "{}", row.id);
        }
    }
}
