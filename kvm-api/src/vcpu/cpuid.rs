//! The guest's CPUID table (api.rst, "KVM_SET_CPUID2", "KVM_GET_CPUID2").

use crate::cpuid::{find, find_mut, has, set, set_bit};
use crate::errno::{Errno, Result};
use crate::vcpu::Loaded;
use kvm_bindings::kvm_cpuid_entry2;
use vmx_model::arch::Cr4;
use x86_interp::cpuid::{Feature, Output};
use x86_interp::xstate;

/// The most entries of a table.
pub(crate) const MAX_ENTRIES: u32 = 256;
/// CPUID.1:ECX.OSXSAVE.
const OSXSAVE: (u32, u32, Output, u32) = (1, 0, Output::Ecx, 27);

impl Loaded<'_> {
    /// Replaces the table. Once the vCPU has run, only the same table is taken.
    pub(crate) fn set_cpuid(&mut self, mut table: Vec<kvm_cpuid_entry2>) -> Result<()> {
        update_runtime(
            &mut table,
            self.state.cr4,
            self.state.xcr0,
            self.state.apic_base,
        );
        if self.state.has_run {
            let same = same_table(&table, &self.state.cpuid);
            return if same { Ok(()) } else { Err(Errno::EINVAL) };
        }
        let widths = find(&table, 0x8000_0008, 0).map(|entry| entry.eax >> 8 & 0xff);
        if widths.is_some_and(|width| !matches!(width, 0 | 48 | 57)) {
            return Err(Errno::EINVAL);
        }
        self.state.cpuid = table;
        self.state.has_cpuid = true;
        self.caches.cpuid_generation += 1;
        self.update_feature_controls();
        Ok(())
    }

    /// Returns the table with the bits that follow the vCPU's state.
    pub(crate) fn get_cpuid(&mut self) -> Vec<kvm_cpuid_entry2> {
        self.update_cpuid_runtime();
        self.state.cpuid.clone()
    }

    /// Brings OSXSAVE, OSPKE, APIC and the sizes of leaf DH up to date
    /// (`kvm_update_cpuid_runtime()`).
    pub(crate) fn update_cpuid_runtime(&mut self) {
        let (cr4, xcr0, apic_base) = (self.state.cr4, self.state.xcr0, self.state.apic_base);
        update_runtime(&mut self.state.cpuid, cr4, xcr0, apic_base);
    }
}

fn update_runtime(table: &mut [kvm_cpuid_entry2], cr4: u64, xcr0: u64, apic_base: u64) {
    let cr4 = Cr4::from_bits_retain(cr4);
    // As with an in-kernel local APIC or not, CPUID.1:EDX.APIC follows the enable bit.
    set(
        table,
        Feature::Apic,
        has(table, Feature::Apic) && apic_base & (1 << 11) != 0,
    );
    if has(table, Feature::Xsave) {
        set_bit(table, OSXSAVE, cr4.contains(Cr4::OSXSAVE));
    }
    if has(table, Feature::Pku) {
        set(table, Feature::Ospke, cr4.contains(Cr4::PKE));
    }
    if let Some(sizes) = find_mut(table, 0xd, 0) {
        sizes.ebx = xstate::standard_bytes(xcr0);
    }
    let compacts = has(table, Feature::Xsaves) || has(table, Feature::Xsavec);
    if let Some(sizes) = find_mut(table, 0xd, 1).filter(|_| compacts) {
        sizes.ebx = xstate::compacted_bytes(xcr0);
    }
}

/// Whether two tables say the same; padding does not count (`kvm_cpuid_check_equal()`).
fn same_table(a: &[kvm_cpuid_entry2], b: &[kvm_cpuid_entry2]) -> bool {
    let words = |e: &kvm_cpuid_entry2| (e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx);
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| words(x) == words(y))
}

impl Loaded<'_> {
    /// Returns what CPUID answers (`kvm_cpuid()`): a leaf that is not there, above the highest of
    /// its range, answers as the highest basic leaf if the vendor is not AMD.
    pub(crate) fn cpuid_answer(&self, function: u32, index: u32) -> [u32; 4] {
        let table = &self.state.cpuid;
        let words = |e: &kvm_cpuid_entry2| [e.eax, e.ebx, e.ecx, e.edx];
        if let Some(entry) = find(table, function, index) {
            return words(entry);
        }
        let beyond = out_of_range(table, function, index);
        if let Some(entry) = beyond {
            return words(entry);
        }
        // A missing subleaf of the topology leaves keeps the level and the x2APIC ID.
        let topology = matches!(function, 0xb | 0x1f);
        match find(table, function, 1).filter(|_| topology) {
            Some(first) => [0, 0, index & 0xff, first.edx],
            None => [0; 4],
        }
    }
}

/// `get_out_of_range_cpuid_entry()`.
fn out_of_range(
    table: &[kvm_cpuid_entry2],
    function: u32,
    index: u32,
) -> Option<&kvm_cpuid_entry2> {
    let basic = find(table, 0, 0)?;
    let is_amd = [basic.ebx, basic.edx, basic.ecx] == AUTHENTIC_AMD;
    let range = match function {
        0x4000_0000..=0x4fff_ffff => find(table, function & 0xffff_ff00, 0),
        0x8000_0000..=0xbfff_ffff => find(table, 0x8000_0000, 0),
        0xc000_0000.. => find(table, 0xc000_0000, 0),
        _ => Some(basic),
    };
    let inside = range.is_some_and(|class| function <= class.eax);
    if is_amd || inside {
        None
    } else {
        find(table, basic.eax, index)
    }
}

const AUTHENTIC_AMD: [u32; 3] = [0x6874_7541, 0x6974_6e65, 0x444d_4163];
