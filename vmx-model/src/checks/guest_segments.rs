//! Checks on the guest segment registers.
//!
//! SDM Vol. 3C, "Checks on Guest Segment Registers".

use super::Finding;
use super::checks;
use super::helpers::{
    canonical, granular_high, granular_low, holds, is_checked, is_v86, ones, zero, zero_bits,
};
use super::view::View;
use crate::arch::Cr0;
use crate::arch::SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ldtr, Ss, Tr};
use crate::controls::{EntryControls, SecondaryControls};
use crate::field::Field as F;

checks! {
    GuestSegments |v|

    /// TI of the TR selector must be 0.
    "guest-tr-selector-ti" guest_tr_selector_ti [GUEST_TR_SELECTOR]
        when true
        => zero(v, F::GUEST_TR_SELECTOR, 4);

    /// TI of the LDTR selector must be 0 if LDTR is usable.
    "guest-ldtr-selector-ti" guest_ldtr_selector_ti [GUEST_LDTR_ACCESS_RIGHTS, GUEST_LDTR_SELECTOR]
        when !v.access(Ldtr)?.is_unusable()
        => zero(v, F::GUEST_LDTR_SELECTOR, 4);

    /// RPL of SS must equal RPL of CS unless the guest is unrestricted or in virtual-8086 mode.
    "guest-ss-selector-rpl" guest_ss_selector_rpl [
            GUEST_RFLAGS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS, GUEST_SS_SELECTOR,
            GUEST_CS_SELECTOR
        ]
        when !is_v86(v)? && !v.secondary()?.contains(SecondaryControls::UNRESTRICTED_GUEST)
        => zero_bits(
            v.get(F::GUEST_SS_SELECTOR)? ^ v.get(F::GUEST_CS_SELECTOR)?,
            F::GUEST_SS_SELECTOR,
            3,
        );

    /// In virtual-8086 mode the base address of CS must be its selector shifted left by 4.
    "guest-cs-v86-base" guest_cs_v86_base [GUEST_RFLAGS, GUEST_CS_BASE, GUEST_CS_SELECTOR]
        when is_v86(v)?
        => holds(
            v.get(F::GUEST_CS_BASE)? == v.get(F::GUEST_CS_SELECTOR)? << 4,
            F::GUEST_CS_BASE,
            0,
        );

    /// In virtual-8086 mode the limit of CS must be 0000FFFFH.
    "guest-cs-v86-limit" guest_cs_v86_limit [GUEST_RFLAGS, GUEST_CS_LIMIT]
        when is_v86(v)?
        => holds(v.get(F::GUEST_CS_LIMIT)? == 0xffff, F::GUEST_CS_LIMIT, 0);

    /// In virtual-8086 mode the access rights of CS must be 000000F3H.
    "guest-cs-v86-access-rights" guest_cs_v86_access_rights [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS]
        when is_v86(v)?
        => zero_bits(
            v.get(F::GUEST_CS_ACCESS_RIGHTS)? ^ 0xf3,
            F::GUEST_CS_ACCESS_RIGHTS,
            u64::MAX,
        );

    /// In virtual-8086 mode the base address of SS must be its selector shifted left by 4.
    "guest-ss-v86-base" guest_ss_v86_base [GUEST_RFLAGS, GUEST_SS_BASE, GUEST_SS_SELECTOR]
        when is_v86(v)?
        => holds(
            v.get(F::GUEST_SS_BASE)? == v.get(F::GUEST_SS_SELECTOR)? << 4,
            F::GUEST_SS_BASE,
            0,
        );

    /// In virtual-8086 mode the limit of SS must be 0000FFFFH.
    "guest-ss-v86-limit" guest_ss_v86_limit [GUEST_RFLAGS, GUEST_SS_LIMIT]
        when is_v86(v)?
        => holds(v.get(F::GUEST_SS_LIMIT)? == 0xffff, F::GUEST_SS_LIMIT, 0);

    /// In virtual-8086 mode the access rights of SS must be 000000F3H.
    "guest-ss-v86-access-rights" guest_ss_v86_access_rights [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS]
        when is_v86(v)?
        => zero_bits(
            v.get(F::GUEST_SS_ACCESS_RIGHTS)? ^ 0xf3,
            F::GUEST_SS_ACCESS_RIGHTS,
            u64::MAX,
        );

    /// In virtual-8086 mode the base address of DS must be its selector shifted left by 4.
    "guest-ds-v86-base" guest_ds_v86_base [GUEST_RFLAGS, GUEST_DS_BASE, GUEST_DS_SELECTOR]
        when is_v86(v)?
        => holds(
            v.get(F::GUEST_DS_BASE)? == v.get(F::GUEST_DS_SELECTOR)? << 4,
            F::GUEST_DS_BASE,
            0,
        );

    /// In virtual-8086 mode the limit of DS must be 0000FFFFH.
    "guest-ds-v86-limit" guest_ds_v86_limit [GUEST_RFLAGS, GUEST_DS_LIMIT]
        when is_v86(v)?
        => holds(v.get(F::GUEST_DS_LIMIT)? == 0xffff, F::GUEST_DS_LIMIT, 0);

    /// In virtual-8086 mode the access rights of DS must be 000000F3H.
    "guest-ds-v86-access-rights" guest_ds_v86_access_rights [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS]
        when is_v86(v)?
        => zero_bits(
            v.get(F::GUEST_DS_ACCESS_RIGHTS)? ^ 0xf3,
            F::GUEST_DS_ACCESS_RIGHTS,
            u64::MAX,
        );

    /// In virtual-8086 mode the base address of ES must be its selector shifted left by 4.
    "guest-es-v86-base" guest_es_v86_base [GUEST_RFLAGS, GUEST_ES_BASE, GUEST_ES_SELECTOR]
        when is_v86(v)?
        => holds(
            v.get(F::GUEST_ES_BASE)? == v.get(F::GUEST_ES_SELECTOR)? << 4,
            F::GUEST_ES_BASE,
            0,
        );

    /// In virtual-8086 mode the limit of ES must be 0000FFFFH.
    "guest-es-v86-limit" guest_es_v86_limit [GUEST_RFLAGS, GUEST_ES_LIMIT]
        when is_v86(v)?
        => holds(v.get(F::GUEST_ES_LIMIT)? == 0xffff, F::GUEST_ES_LIMIT, 0);

    /// In virtual-8086 mode the access rights of ES must be 000000F3H.
    "guest-es-v86-access-rights" guest_es_v86_access_rights [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS]
        when is_v86(v)?
        => zero_bits(
            v.get(F::GUEST_ES_ACCESS_RIGHTS)? ^ 0xf3,
            F::GUEST_ES_ACCESS_RIGHTS,
            u64::MAX,
        );

    /// In virtual-8086 mode the base address of FS must be its selector shifted left by 4.
    "guest-fs-v86-base" guest_fs_v86_base [GUEST_RFLAGS, GUEST_FS_BASE, GUEST_FS_SELECTOR]
        when is_v86(v)?
        => holds(
            v.get(F::GUEST_FS_BASE)? == v.get(F::GUEST_FS_SELECTOR)? << 4,
            F::GUEST_FS_BASE,
            0,
        );

    /// In virtual-8086 mode the limit of FS must be 0000FFFFH.
    "guest-fs-v86-limit" guest_fs_v86_limit [GUEST_RFLAGS, GUEST_FS_LIMIT]
        when is_v86(v)?
        => holds(v.get(F::GUEST_FS_LIMIT)? == 0xffff, F::GUEST_FS_LIMIT, 0);

    /// In virtual-8086 mode the access rights of FS must be 000000F3H.
    "guest-fs-v86-access-rights" guest_fs_v86_access_rights [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS]
        when is_v86(v)?
        => zero_bits(
            v.get(F::GUEST_FS_ACCESS_RIGHTS)? ^ 0xf3,
            F::GUEST_FS_ACCESS_RIGHTS,
            u64::MAX,
        );

    /// In virtual-8086 mode the base address of GS must be its selector shifted left by 4.
    "guest-gs-v86-base" guest_gs_v86_base [GUEST_RFLAGS, GUEST_GS_BASE, GUEST_GS_SELECTOR]
        when is_v86(v)?
        => holds(
            v.get(F::GUEST_GS_BASE)? == v.get(F::GUEST_GS_SELECTOR)? << 4,
            F::GUEST_GS_BASE,
            0,
        );

    /// In virtual-8086 mode the limit of GS must be 0000FFFFH.
    "guest-gs-v86-limit" guest_gs_v86_limit [GUEST_RFLAGS, GUEST_GS_LIMIT]
        when is_v86(v)?
        => holds(v.get(F::GUEST_GS_LIMIT)? == 0xffff, F::GUEST_GS_LIMIT, 0);

    /// In virtual-8086 mode the access rights of GS must be 000000F3H.
    "guest-gs-v86-access-rights" guest_gs_v86_access_rights [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS]
        when is_v86(v)?
        => zero_bits(
            v.get(F::GUEST_GS_ACCESS_RIGHTS)? ^ 0xf3,
            F::GUEST_GS_ACCESS_RIGHTS,
            u64::MAX,
        );

    /// The base address of TR must be canonical.
    "guest-tr-base-canonical" guest_tr_base_canonical [GUEST_TR_BASE]
        when true
        => canonical(v, F::GUEST_TR_BASE);

    /// The base address of FS must be canonical, even if it is unusable.
    "guest-fs-base-canonical" guest_fs_base_canonical [GUEST_RFLAGS, GUEST_FS_BASE]
        when !is_v86(v)?
        => canonical(v, F::GUEST_FS_BASE);

    /// The base address of GS must be canonical, even if it is unusable.
    "guest-gs-base-canonical" guest_gs_base_canonical [GUEST_RFLAGS, GUEST_GS_BASE]
        when !is_v86(v)?
        => canonical(v, F::GUEST_GS_BASE);

    /// The base address of LDTR must be canonical if LDTR is usable.
    "guest-ldtr-base-canonical" guest_ldtr_base_canonical
        [GUEST_LDTR_ACCESS_RIGHTS, GUEST_LDTR_BASE]
        when !v.access(Ldtr)?.is_unusable()
        => canonical(v, F::GUEST_LDTR_BASE);

    /// Bits 63:32 of the base address of CS must be 0.
    "guest-cs-base-high" guest_cs_base_high [GUEST_RFLAGS, GUEST_CS_BASE]
        when !is_v86(v)?
        => zero(v, F::GUEST_CS_BASE, u64::MAX << 32);

    /// Bits 63:32 of the base address of SS must be 0 if it is usable.
    "guest-ss-base-high" guest_ss_base_high [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS, GUEST_SS_BASE]
        when is_checked(v, Ss)?
        => zero(v, F::GUEST_SS_BASE, u64::MAX << 32);

    /// Bits 63:32 of the base address of DS must be 0 if it is usable.
    "guest-ds-base-high" guest_ds_base_high [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS, GUEST_DS_BASE]
        when is_checked(v, Ds)?
        => zero(v, F::GUEST_DS_BASE, u64::MAX << 32);

    /// Bits 63:32 of the base address of ES must be 0 if it is usable.
    "guest-es-base-high" guest_es_base_high [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS, GUEST_ES_BASE]
        when is_checked(v, Es)?
        => zero(v, F::GUEST_ES_BASE, u64::MAX << 32);

    /// The type of CS must be 9, 11, 13 or 15, or 3 of an unrestricted guest.
    "guest-cs-type" guest_cs_type
        [GUEST_RFLAGS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)?
        => cs_type(v);

    /// The type of SS must be 3 or 7 if it is usable.
    "guest-ss-type" guest_ss_type [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS]
        when is_checked(v, Ss)?
        => holds(matches!(v.access(Ss)?.segment_type(), 3 | 7), F::GUEST_SS_ACCESS_RIGHTS, 0xf);

    /// Bit 0 of the type of DS (accessed) must be 1 if it is usable.
    "guest-ds-type-accessed" guest_ds_type_accessed [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS]
        when is_checked(v, Ds)?
        => ones(v, F::GUEST_DS_ACCESS_RIGHTS, 1);

    /// If DS is a code segment, bit 1 of its type (readable) must be 1.
    "guest-ds-type-readable" guest_ds_type_readable [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS]
        when is_checked(v, Ds)? && v.access(Ds)?.segment_type() & 8 != 0
        => ones(v, F::GUEST_DS_ACCESS_RIGHTS, 2);

    /// Bit 0 of the type of ES (accessed) must be 1 if it is usable.
    "guest-es-type-accessed" guest_es_type_accessed [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS]
        when is_checked(v, Es)?
        => ones(v, F::GUEST_ES_ACCESS_RIGHTS, 1);

    /// If ES is a code segment, bit 1 of its type (readable) must be 1.
    "guest-es-type-readable" guest_es_type_readable [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS]
        when is_checked(v, Es)? && v.access(Es)?.segment_type() & 8 != 0
        => ones(v, F::GUEST_ES_ACCESS_RIGHTS, 2);

    /// Bit 0 of the type of FS (accessed) must be 1 if it is usable.
    "guest-fs-type-accessed" guest_fs_type_accessed [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS]
        when is_checked(v, Fs)?
        => ones(v, F::GUEST_FS_ACCESS_RIGHTS, 1);

    /// If FS is a code segment, bit 1 of its type (readable) must be 1.
    "guest-fs-type-readable" guest_fs_type_readable [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS]
        when is_checked(v, Fs)? && v.access(Fs)?.segment_type() & 8 != 0
        => ones(v, F::GUEST_FS_ACCESS_RIGHTS, 2);

    /// Bit 0 of the type of GS (accessed) must be 1 if it is usable.
    "guest-gs-type-accessed" guest_gs_type_accessed [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS]
        when is_checked(v, Gs)?
        => ones(v, F::GUEST_GS_ACCESS_RIGHTS, 1);

    /// If GS is a code segment, bit 1 of its type (readable) must be 1.
    "guest-gs-type-readable" guest_gs_type_readable [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS]
        when is_checked(v, Gs)? && v.access(Gs)?.segment_type() & 8 != 0
        => ones(v, F::GUEST_GS_ACCESS_RIGHTS, 2);

    /// Bit 4 of the access rights of CS (S) must be 1.
    "guest-cs-s-bit" guest_cs_s_bit [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)?
        => ones(v, F::GUEST_CS_ACCESS_RIGHTS, 1 << 4);

    /// Bit 4 of the access rights of SS (S) must be 1 if it is usable.
    "guest-ss-s-bit" guest_ss_s_bit [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS]
        when is_checked(v, Ss)?
        => ones(v, F::GUEST_SS_ACCESS_RIGHTS, 1 << 4);

    /// Bit 4 of the access rights of DS (S) must be 1 if it is usable.
    "guest-ds-s-bit" guest_ds_s_bit [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS]
        when is_checked(v, Ds)?
        => ones(v, F::GUEST_DS_ACCESS_RIGHTS, 1 << 4);

    /// Bit 4 of the access rights of ES (S) must be 1 if it is usable.
    "guest-es-s-bit" guest_es_s_bit [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS]
        when is_checked(v, Es)?
        => ones(v, F::GUEST_ES_ACCESS_RIGHTS, 1 << 4);

    /// Bit 4 of the access rights of FS (S) must be 1 if it is usable.
    "guest-fs-s-bit" guest_fs_s_bit [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS]
        when is_checked(v, Fs)?
        => ones(v, F::GUEST_FS_ACCESS_RIGHTS, 1 << 4);

    /// Bit 4 of the access rights of GS (S) must be 1 if it is usable.
    "guest-gs-s-bit" guest_gs_s_bit [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS]
        when is_checked(v, Gs)?
        => ones(v, F::GUEST_GS_ACCESS_RIGHTS, 1 << 4);

    /// If the type of CS is 3, its DPL must be 0.
    "guest-cs-dpl-data-type" guest_cs_dpl_data_type [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)? && v.access(Cs)?.segment_type() == 3
        => zero(v, F::GUEST_CS_ACCESS_RIGHTS, 3 << 5);

    /// If CS is non-conforming code, its DPL must equal the DPL of SS.
    "guest-cs-dpl-nonconforming" guest_cs_dpl_nonconforming
        [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS]
        when !is_v86(v)? && matches!(v.access(Cs)?.segment_type(), 9 | 11)
        => zero_bits(
            v.get(F::GUEST_CS_ACCESS_RIGHTS)? ^ v.get(F::GUEST_SS_ACCESS_RIGHTS)?,
            F::GUEST_CS_ACCESS_RIGHTS,
            3 << 5,
        );

    /// If CS is conforming code, its DPL must not be greater than the DPL of SS.
    "guest-cs-dpl-conforming" guest_cs_dpl_conforming
        [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS, GUEST_SS_ACCESS_RIGHTS]
        when !is_v86(v)? && matches!(v.access(Cs)?.segment_type(), 13 | 15)
        => holds(v.access(Cs)?.dpl() <= v.access(Ss)?.dpl(), F::GUEST_CS_ACCESS_RIGHTS, 3 << 5);

    /// The DPL of SS must equal its RPL unless the guest is unrestricted or in virtual-8086 mode.
    "guest-ss-dpl-rpl" guest_ss_dpl_rpl [
            GUEST_RFLAGS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS, GUEST_SS_ACCESS_RIGHTS,
            GUEST_SS_SELECTOR
        ]
        when !is_v86(v)? && !v.secondary()?.contains(SecondaryControls::UNRESTRICTED_GUEST)
        => holds(
            u64::from(v.access(Ss)?.dpl()) == v.get(F::GUEST_SS_SELECTOR)? & 3,
            F::GUEST_SS_ACCESS_RIGHTS,
            3 << 5,
        );

    /// The DPL of SS must be 0 if the type of CS is 3 or bit 0 of the CR0 field (PE) is 0.
    "guest-ss-dpl-zero" guest_ss_dpl_zero
        [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS, GUEST_CR0, GUEST_SS_ACCESS_RIGHTS]
        when !is_v86(v)? && (v.access(Cs)?.segment_type() == 3 || !v.cr0()?.contains(Cr0::PE))
        => zero(v, F::GUEST_SS_ACCESS_RIGHTS, 3 << 5);

    /// The DPL of DS must not be less than its RPL if its type is 0 to 11, unless the guest is unrestricted.
    "guest-ds-dpl-rpl" guest_ds_dpl_rpl [
            GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS,
            GUEST_DS_SELECTOR
        ]
        when is_checked(v, Ds)? && !v.secondary()?.contains(SecondaryControls::UNRESTRICTED_GUEST)
            && v.access(Ds)?.segment_type() <= 11
        => holds(
            u64::from(v.access(Ds)?.dpl()) >= v.get(F::GUEST_DS_SELECTOR)? & 3,
            F::GUEST_DS_ACCESS_RIGHTS,
            3 << 5,
        );

    /// The DPL of ES must not be less than its RPL if its type is 0 to 11, unless the guest is unrestricted.
    "guest-es-dpl-rpl" guest_es_dpl_rpl [
            GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS,
            GUEST_ES_SELECTOR
        ]
        when is_checked(v, Es)? && !v.secondary()?.contains(SecondaryControls::UNRESTRICTED_GUEST)
            && v.access(Es)?.segment_type() <= 11
        => holds(
            u64::from(v.access(Es)?.dpl()) >= v.get(F::GUEST_ES_SELECTOR)? & 3,
            F::GUEST_ES_ACCESS_RIGHTS,
            3 << 5,
        );

    /// The DPL of FS must not be less than its RPL if its type is 0 to 11, unless the guest is unrestricted.
    "guest-fs-dpl-rpl" guest_fs_dpl_rpl [
            GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS,
            GUEST_FS_SELECTOR
        ]
        when is_checked(v, Fs)? && !v.secondary()?.contains(SecondaryControls::UNRESTRICTED_GUEST)
            && v.access(Fs)?.segment_type() <= 11
        => holds(
            u64::from(v.access(Fs)?.dpl()) >= v.get(F::GUEST_FS_SELECTOR)? & 3,
            F::GUEST_FS_ACCESS_RIGHTS,
            3 << 5,
        );

    /// The DPL of GS must not be less than its RPL if its type is 0 to 11, unless the guest is unrestricted.
    "guest-gs-dpl-rpl" guest_gs_dpl_rpl [
            GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS, PROC_CONTROLS, SECONDARY_PROC_CONTROLS,
            GUEST_GS_SELECTOR
        ]
        when is_checked(v, Gs)? && !v.secondary()?.contains(SecondaryControls::UNRESTRICTED_GUEST)
            && v.access(Gs)?.segment_type() <= 11
        => holds(
            u64::from(v.access(Gs)?.dpl()) >= v.get(F::GUEST_GS_SELECTOR)? & 3,
            F::GUEST_GS_ACCESS_RIGHTS,
            3 << 5,
        );

    /// Bit 7 of the access rights of CS (P) must be 1.
    "guest-cs-present" guest_cs_present [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)?
        => ones(v, F::GUEST_CS_ACCESS_RIGHTS, 1 << 7);

    /// Bit 7 of the access rights of SS (P) must be 1 if it is usable.
    "guest-ss-present" guest_ss_present [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS]
        when is_checked(v, Ss)?
        => ones(v, F::GUEST_SS_ACCESS_RIGHTS, 1 << 7);

    /// Bit 7 of the access rights of DS (P) must be 1 if it is usable.
    "guest-ds-present" guest_ds_present [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS]
        when is_checked(v, Ds)?
        => ones(v, F::GUEST_DS_ACCESS_RIGHTS, 1 << 7);

    /// Bit 7 of the access rights of ES (P) must be 1 if it is usable.
    "guest-es-present" guest_es_present [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS]
        when is_checked(v, Es)?
        => ones(v, F::GUEST_ES_ACCESS_RIGHTS, 1 << 7);

    /// Bit 7 of the access rights of FS (P) must be 1 if it is usable.
    "guest-fs-present" guest_fs_present [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS]
        when is_checked(v, Fs)?
        => ones(v, F::GUEST_FS_ACCESS_RIGHTS, 1 << 7);

    /// Bit 7 of the access rights of GS (P) must be 1 if it is usable.
    "guest-gs-present" guest_gs_present [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS]
        when is_checked(v, Gs)?
        => ones(v, F::GUEST_GS_ACCESS_RIGHTS, 1 << 7);

    /// Bits 11:8 of the access rights of CS must be 0.
    "guest-cs-reserved-11-8" guest_cs_reserved_11_8 [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)?
        => zero(v, F::GUEST_CS_ACCESS_RIGHTS, 0xf00);

    /// Bits 11:8 of the access rights of SS must be 0 if it is usable.
    "guest-ss-reserved-11-8" guest_ss_reserved_11_8 [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS]
        when is_checked(v, Ss)?
        => zero(v, F::GUEST_SS_ACCESS_RIGHTS, 0xf00);

    /// Bits 11:8 of the access rights of DS must be 0 if it is usable.
    "guest-ds-reserved-11-8" guest_ds_reserved_11_8 [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS]
        when is_checked(v, Ds)?
        => zero(v, F::GUEST_DS_ACCESS_RIGHTS, 0xf00);

    /// Bits 11:8 of the access rights of ES must be 0 if it is usable.
    "guest-es-reserved-11-8" guest_es_reserved_11_8 [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS]
        when is_checked(v, Es)?
        => zero(v, F::GUEST_ES_ACCESS_RIGHTS, 0xf00);

    /// Bits 11:8 of the access rights of FS must be 0 if it is usable.
    "guest-fs-reserved-11-8" guest_fs_reserved_11_8 [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS]
        when is_checked(v, Fs)?
        => zero(v, F::GUEST_FS_ACCESS_RIGHTS, 0xf00);

    /// Bits 11:8 of the access rights of GS must be 0 if it is usable.
    "guest-gs-reserved-11-8" guest_gs_reserved_11_8 [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS]
        when is_checked(v, Gs)?
        => zero(v, F::GUEST_GS_ACCESS_RIGHTS, 0xf00);

    /// If the guest is in 64-bit mode, bit 14 of the access rights of CS (D/B) must be 0.
    "guest-cs-db-long" guest_cs_db_long [GUEST_RFLAGS, ENTRY_CONTROLS, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)? && v.entry()?.contains(EntryControls::IA32E_MODE_GUEST)
            && v.access(Cs)?.is_long()
        => zero(v, F::GUEST_CS_ACCESS_RIGHTS, 1 << 14);

    /// If any of bits 11:0 of the limit of CS is 0, G must be 0.
    "guest-cs-g-low" guest_cs_g_low [GUEST_RFLAGS, GUEST_CS_LIMIT, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)?
        => granular_low(v, F::GUEST_CS_LIMIT, Cs);

    /// If any of bits 31:20 of the limit of CS is 1, G must be 1.
    "guest-cs-g-high" guest_cs_g_high [GUEST_RFLAGS, GUEST_CS_LIMIT, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)?
        => granular_high(v, F::GUEST_CS_LIMIT, Cs);

    /// If any of bits 11:0 of the limit of SS is 0, G must be 0.
    "guest-ss-g-low" guest_ss_g_low [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS, GUEST_SS_LIMIT]
        when is_checked(v, Ss)?
        => granular_low(v, F::GUEST_SS_LIMIT, Ss);

    /// If any of bits 31:20 of the limit of SS is 1, G must be 1.
    "guest-ss-g-high" guest_ss_g_high [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS, GUEST_SS_LIMIT]
        when is_checked(v, Ss)?
        => granular_high(v, F::GUEST_SS_LIMIT, Ss);

    /// If any of bits 11:0 of the limit of DS is 0, G must be 0.
    "guest-ds-g-low" guest_ds_g_low [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS, GUEST_DS_LIMIT]
        when is_checked(v, Ds)?
        => granular_low(v, F::GUEST_DS_LIMIT, Ds);

    /// If any of bits 31:20 of the limit of DS is 1, G must be 1.
    "guest-ds-g-high" guest_ds_g_high [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS, GUEST_DS_LIMIT]
        when is_checked(v, Ds)?
        => granular_high(v, F::GUEST_DS_LIMIT, Ds);

    /// If any of bits 11:0 of the limit of ES is 0, G must be 0.
    "guest-es-g-low" guest_es_g_low [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS, GUEST_ES_LIMIT]
        when is_checked(v, Es)?
        => granular_low(v, F::GUEST_ES_LIMIT, Es);

    /// If any of bits 31:20 of the limit of ES is 1, G must be 1.
    "guest-es-g-high" guest_es_g_high [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS, GUEST_ES_LIMIT]
        when is_checked(v, Es)?
        => granular_high(v, F::GUEST_ES_LIMIT, Es);

    /// If any of bits 11:0 of the limit of FS is 0, G must be 0.
    "guest-fs-g-low" guest_fs_g_low [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS, GUEST_FS_LIMIT]
        when is_checked(v, Fs)?
        => granular_low(v, F::GUEST_FS_LIMIT, Fs);

    /// If any of bits 31:20 of the limit of FS is 1, G must be 1.
    "guest-fs-g-high" guest_fs_g_high [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS, GUEST_FS_LIMIT]
        when is_checked(v, Fs)?
        => granular_high(v, F::GUEST_FS_LIMIT, Fs);

    /// If any of bits 11:0 of the limit of GS is 0, G must be 0.
    "guest-gs-g-low" guest_gs_g_low [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS, GUEST_GS_LIMIT]
        when is_checked(v, Gs)?
        => granular_low(v, F::GUEST_GS_LIMIT, Gs);

    /// If any of bits 31:20 of the limit of GS is 1, G must be 1.
    "guest-gs-g-high" guest_gs_g_high [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS, GUEST_GS_LIMIT]
        when is_checked(v, Gs)?
        => granular_high(v, F::GUEST_GS_LIMIT, Gs);

    /// Bits 31:17 of the access rights of CS must be 0.
    "guest-cs-reserved-31-17" guest_cs_reserved_31_17 [GUEST_RFLAGS, GUEST_CS_ACCESS_RIGHTS]
        when !is_v86(v)?
        => zero(v, F::GUEST_CS_ACCESS_RIGHTS, 0xfffe_0000);

    /// Bits 31:17 of the access rights of SS must be 0 if it is usable.
    "guest-ss-reserved-31-17" guest_ss_reserved_31_17 [GUEST_RFLAGS, GUEST_SS_ACCESS_RIGHTS]
        when is_checked(v, Ss)?
        => zero(v, F::GUEST_SS_ACCESS_RIGHTS, 0xfffe_0000);

    /// Bits 31:17 of the access rights of DS must be 0 if it is usable.
    "guest-ds-reserved-31-17" guest_ds_reserved_31_17 [GUEST_RFLAGS, GUEST_DS_ACCESS_RIGHTS]
        when is_checked(v, Ds)?
        => zero(v, F::GUEST_DS_ACCESS_RIGHTS, 0xfffe_0000);

    /// Bits 31:17 of the access rights of ES must be 0 if it is usable.
    "guest-es-reserved-31-17" guest_es_reserved_31_17 [GUEST_RFLAGS, GUEST_ES_ACCESS_RIGHTS]
        when is_checked(v, Es)?
        => zero(v, F::GUEST_ES_ACCESS_RIGHTS, 0xfffe_0000);

    /// Bits 31:17 of the access rights of FS must be 0 if it is usable.
    "guest-fs-reserved-31-17" guest_fs_reserved_31_17 [GUEST_RFLAGS, GUEST_FS_ACCESS_RIGHTS]
        when is_checked(v, Fs)?
        => zero(v, F::GUEST_FS_ACCESS_RIGHTS, 0xfffe_0000);

    /// Bits 31:17 of the access rights of GS must be 0 if it is usable.
    "guest-gs-reserved-31-17" guest_gs_reserved_31_17 [GUEST_RFLAGS, GUEST_GS_ACCESS_RIGHTS]
        when is_checked(v, Gs)?
        => zero(v, F::GUEST_GS_ACCESS_RIGHTS, 0xfffe_0000);

    /// The type of TR must be 11, or 3 outside IA-32e mode.
    "guest-tr-type" guest_tr_type [ENTRY_CONTROLS, GUEST_TR_ACCESS_RIGHTS]
        when true
        => tr_type(v);

    /// Bit 4 of the access rights of TR (S) must be 0.
    "guest-tr-s-bit" guest_tr_s_bit [GUEST_TR_ACCESS_RIGHTS]
        when true
        => zero(v, F::GUEST_TR_ACCESS_RIGHTS, 1 << 4);

    /// Bit 7 of the access rights of TR (P) must be 1.
    "guest-tr-present" guest_tr_present [GUEST_TR_ACCESS_RIGHTS]
        when true
        => ones(v, F::GUEST_TR_ACCESS_RIGHTS, 1 << 7);

    /// Bits 11:8 of the access rights of TR must be 0.
    "guest-tr-reserved-11-8" guest_tr_reserved_11_8 [GUEST_TR_ACCESS_RIGHTS]
        when true
        => zero(v, F::GUEST_TR_ACCESS_RIGHTS, 0xf00);

    /// If any of bits 11:0 of the limit of TR is 0, G must be 0.
    "guest-tr-g-low" guest_tr_g_low [GUEST_TR_LIMIT, GUEST_TR_ACCESS_RIGHTS]
        when true
        => granular_low(v, F::GUEST_TR_LIMIT, Tr);

    /// If any of bits 31:20 of the limit of TR is 1, G must be 1.
    "guest-tr-g-high" guest_tr_g_high [GUEST_TR_LIMIT, GUEST_TR_ACCESS_RIGHTS]
        when true
        => granular_high(v, F::GUEST_TR_LIMIT, Tr);

    /// TR must be usable.
    "guest-tr-usable" guest_tr_usable [GUEST_TR_ACCESS_RIGHTS]
        when true
        => zero(v, F::GUEST_TR_ACCESS_RIGHTS, 1 << 16);

    /// Bits 31:17 of the access rights of TR must be 0.
    "guest-tr-reserved-31-17" guest_tr_reserved_31_17 [GUEST_TR_ACCESS_RIGHTS]
        when true
        => zero(v, F::GUEST_TR_ACCESS_RIGHTS, 0xfffe_0000);

    /// The type of LDTR must be 2 if it is usable.
    "guest-ldtr-type" guest_ldtr_type [GUEST_LDTR_ACCESS_RIGHTS]
        when !v.access(Ldtr)?.is_unusable()
        => holds(v.access(Ldtr)?.segment_type() == 2, F::GUEST_LDTR_ACCESS_RIGHTS, 0xf);

    /// Bit 4 of the access rights of LDTR (S) must be 0 if it is usable.
    "guest-ldtr-s-bit" guest_ldtr_s_bit [GUEST_LDTR_ACCESS_RIGHTS]
        when !v.access(Ldtr)?.is_unusable()
        => zero(v, F::GUEST_LDTR_ACCESS_RIGHTS, 1 << 4);

    /// Bit 7 of the access rights of LDTR (P) must be 1 if it is usable.
    "guest-ldtr-present" guest_ldtr_present [GUEST_LDTR_ACCESS_RIGHTS]
        when !v.access(Ldtr)?.is_unusable()
        => ones(v, F::GUEST_LDTR_ACCESS_RIGHTS, 1 << 7);

    /// Bits 11:8 of the access rights of LDTR must be 0 if it is usable.
    "guest-ldtr-reserved-11-8" guest_ldtr_reserved_11_8 [GUEST_LDTR_ACCESS_RIGHTS]
        when !v.access(Ldtr)?.is_unusable()
        => zero(v, F::GUEST_LDTR_ACCESS_RIGHTS, 0xf00);

    /// If any of bits 11:0 of the limit of LDTR is 0, G must be 0.
    "guest-ldtr-g-low" guest_ldtr_g_low [GUEST_LDTR_ACCESS_RIGHTS, GUEST_LDTR_LIMIT]
        when !v.access(Ldtr)?.is_unusable()
        => granular_low(v, F::GUEST_LDTR_LIMIT, Ldtr);

    /// If any of bits 31:20 of the limit of LDTR is 1, G must be 1.
    "guest-ldtr-g-high" guest_ldtr_g_high [GUEST_LDTR_ACCESS_RIGHTS, GUEST_LDTR_LIMIT]
        when !v.access(Ldtr)?.is_unusable()
        => granular_high(v, F::GUEST_LDTR_LIMIT, Ldtr);

    /// Bits 31:17 of the access rights of LDTR must be 0 if it is usable.
    "guest-ldtr-reserved-31-17" guest_ldtr_reserved_31_17 [GUEST_LDTR_ACCESS_RIGHTS]
        when !v.access(Ldtr)?.is_unusable()
        => zero(v, F::GUEST_LDTR_ACCESS_RIGHTS, 0xfffe_0000);
}

fn cs_type<V: View>(v: &V) -> Finding {
    let is_unrestricted = v
        .secondary()?
        .contains(SecondaryControls::UNRESTRICTED_GUEST);
    let is_allowed = match v.access(Cs)?.segment_type() {
        9 | 11 | 13 | 15 => true,
        3 => is_unrestricted,
        _ => false,
    };
    holds(is_allowed, F::GUEST_CS_ACCESS_RIGHTS, 0xf)
}

fn tr_type<V: View>(v: &V) -> Finding {
    let is_allowed = match v.access(Tr)?.segment_type() {
        11 => true,
        3 => !v.entry()?.contains(EntryControls::IA32E_MODE_GUEST),
        _ => false,
    };
    holds(is_allowed, F::GUEST_TR_ACCESS_RIGHTS, 0xf)
}
