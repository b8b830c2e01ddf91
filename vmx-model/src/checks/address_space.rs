//! Checks related to the address-space size of host and guest.
//!
//! SDM Vol. 3C, "Checks Related to Address-Space Size".

use super::Finding;
use super::checks;
use super::helpers::{holds, ones, zero};
use super::view::View;
use crate::arch::{Cr4, Efer};
use crate::controls::{EntryControls, ExitControls};
use crate::field::Field as F;

checks! {
    AddressSpace |v|

    /// If the logical processor is in IA-32e mode, "host address-space size" must be 1.
    "asz-ia32e-requires-host64" asz_ia32e_requires_host64 [EXIT_CONTROLS; Processor]
        when v.state()?.efer.contains(Efer::LMA)
        => ones(v, F::EXIT_CONTROLS, ExitControls::HOST_ADDRESS_SPACE_SIZE.bits().into());

    /// If the logical processor is outside IA-32e mode, "IA-32e mode guest" must be 0.
    "asz-legacy-forbids-ia32e-guest" asz_legacy_forbids_ia32e_guest [ENTRY_CONTROLS; Processor]
        when !v.state()?.efer.contains(Efer::LMA)
        => zero(v, F::ENTRY_CONTROLS, EntryControls::IA32E_MODE_GUEST.bits().into());

    /// If the logical processor is outside IA-32e mode, "host address-space size" must be 0.
    "asz-legacy-forbids-host64" asz_legacy_forbids_host64 [EXIT_CONTROLS; Processor]
        when !v.state()?.efer.contains(Efer::LMA)
        => zero(v, F::EXIT_CONTROLS, ExitControls::HOST_ADDRESS_SPACE_SIZE.bits().into());

    /// If "host address-space size" is 0, "IA-32e mode guest" must be 0.
    "asz-host32-forbids-ia32e-guest" asz_host32_forbids_ia32e_guest [EXIT_CONTROLS, ENTRY_CONTROLS]
        when !v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE)
        => zero(v, F::ENTRY_CONTROLS, EntryControls::IA32E_MODE_GUEST.bits().into());

    /// If "host address-space size" is 0, bit 17 of the CR4 field (PCIDE) must be 0.
    "asz-host32-forbids-pcide" asz_host32_forbids_pcide [EXIT_CONTROLS, HOST_CR4]
        when !v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE)
        => zero(v, F::HOST_CR4, Cr4::PCIDE.bits());

    /// If "host address-space size" is 0, bits 63:32 of the RIP field must be 0.
    "asz-host32-rip" asz_host32_rip [EXIT_CONTROLS, HOST_RIP]
        when !v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE)
        => zero(v, F::HOST_RIP, u64::MAX << 32);

    /// If "host address-space size" is 1, bit 5 of the CR4 field (PAE) must be 1.
    "asz-host64-requires-pae" asz_host64_requires_pae [EXIT_CONTROLS, HOST_CR4]
        when v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE)
        => ones(v, F::HOST_CR4, Cr4::PAE.bits());

    /// If "host address-space size" is 1, the RIP field must contain a canonical address.
    "asz-host64-rip-canonical" asz_host64_rip_canonical [EXIT_CONTROLS, HOST_CR4, HOST_RIP]
        when v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE)
        => host_rip(v);
}

/// Requires the host RIP to be canonical with the paging that the host will have.
fn host_rip<V: View>(v: &V) -> Finding {
    let has_la57 = v.get(F::HOST_CR4)? & Cr4::LA57.bits() != 0;
    let shift = if has_la57 { 7 } else { 16 };
    let rip = v.get(F::HOST_RIP)?;
    holds((rip << shift) as i64 >> shift == rip as i64, F::HOST_RIP, 0)
}
