//! Checks on the host segment and descriptor-table registers.
//!
//! SDM Vol. 3C, "Checks on Host Segment and Descriptor-Table Registers".

use super::checks;
use super::helpers::{canonical, holds, zero};
use crate::controls::ExitControls;
use crate::field::Field as F;

checks! {
    HostSegments |v|

    /// RPL and TI of the ES selector must be 0.
    "host-es-selector-rpl-ti" host_es_selector_rpl_ti [HOST_ES_SELECTOR]
        when true
        => zero(v, F::HOST_ES_SELECTOR, 7);

    /// RPL and TI of the CS selector must be 0.
    "host-cs-selector-rpl-ti" host_cs_selector_rpl_ti [HOST_CS_SELECTOR]
        when true
        => zero(v, F::HOST_CS_SELECTOR, 7);

    /// RPL and TI of the SS selector must be 0.
    "host-ss-selector-rpl-ti" host_ss_selector_rpl_ti [HOST_SS_SELECTOR]
        when true
        => zero(v, F::HOST_SS_SELECTOR, 7);

    /// RPL and TI of the DS selector must be 0.
    "host-ds-selector-rpl-ti" host_ds_selector_rpl_ti [HOST_DS_SELECTOR]
        when true
        => zero(v, F::HOST_DS_SELECTOR, 7);

    /// RPL and TI of the FS selector must be 0.
    "host-fs-selector-rpl-ti" host_fs_selector_rpl_ti [HOST_FS_SELECTOR]
        when true
        => zero(v, F::HOST_FS_SELECTOR, 7);

    /// RPL and TI of the GS selector must be 0.
    "host-gs-selector-rpl-ti" host_gs_selector_rpl_ti [HOST_GS_SELECTOR]
        when true
        => zero(v, F::HOST_GS_SELECTOR, 7);

    /// RPL and TI of the TR selector must be 0.
    "host-tr-selector-rpl-ti" host_tr_selector_rpl_ti [HOST_TR_SELECTOR]
        when true
        => zero(v, F::HOST_TR_SELECTOR, 7);

    /// The CS selector must not be 0000H.
    "host-cs-selector-nonzero" host_cs_selector_nonzero [HOST_CS_SELECTOR]
        when true
        => holds(v.get(F::HOST_CS_SELECTOR)? != 0, F::HOST_CS_SELECTOR, 0);

    /// The TR selector must not be 0000H.
    "host-tr-selector-nonzero" host_tr_selector_nonzero [HOST_TR_SELECTOR]
        when true
        => holds(v.get(F::HOST_TR_SELECTOR)? != 0, F::HOST_TR_SELECTOR, 0);

    /// The SS selector must not be 0000H if "host address-space size" is 0.
    "host-ss-selector-nonzero" host_ss_selector_nonzero [EXIT_CONTROLS, HOST_SS_SELECTOR]
        when !v.exit()?.contains(ExitControls::HOST_ADDRESS_SPACE_SIZE)
        => holds(v.get(F::HOST_SS_SELECTOR)? != 0, F::HOST_SS_SELECTOR, 0);

    /// The base address of FS must be canonical.
    "host-fs-base-canonical" host_fs_base_canonical [HOST_FS_BASE]
        when true
        => canonical(v, F::HOST_FS_BASE);

    /// The base address of GS must be canonical.
    "host-gs-base-canonical" host_gs_base_canonical [HOST_GS_BASE]
        when true
        => canonical(v, F::HOST_GS_BASE);

    /// The base address of TR must be canonical.
    "host-tr-base-canonical" host_tr_base_canonical [HOST_TR_BASE]
        when true
        => canonical(v, F::HOST_TR_BASE);

    /// The base address of GDTR must be canonical.
    "host-gdtr-base-canonical" host_gdtr_base_canonical [HOST_GDTR_BASE]
        when true
        => canonical(v, F::HOST_GDTR_BASE);

    /// The base address of IDTR must be canonical.
    "host-idtr-base-canonical" host_idtr_base_canonical [HOST_IDTR_BASE]
        when true
        => canonical(v, F::HOST_IDTR_BASE);
}
