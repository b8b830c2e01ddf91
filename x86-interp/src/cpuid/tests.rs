//! Profiles, and what CPUID answers.

use iced_x86::Code;
use vmx_model::arch::Cr4;
use vmx_model::capability::VmxProfile;

use super::{CpuidTable, Feature, Profile};
use crate::Cpu;
use crate::test_cpu::{execute, long_mode, protected_mode};

/// Executes CPUID; returns EAX, EBX, ECX, EDX.
fn cpuid(cpu: &mut Cpu, function: u32, index: u32) -> [u64; 4] {
    cpu.gpr[0] = 0xdead_0000_0000_0000 | u64::from(function);
    cpu.gpr[1] = 0xdead_0000_0000_0000 | u64::from(index);
    execute(cpu, &[0x0f, 0xa2]).expect("CPUID does not fault");
    [cpu.gpr[0], cpu.gpr[3], cpu.gpr[1], cpu.gpr[2]]
}

#[test]
fn a_table_reports_the_features_of_its_profile() {
    for profile in Profile::ALL {
        assert_eq!(
            profile.table().features(),
            profile.features(),
            "{}",
            profile.name
        );
        assert_eq!(
            Profile::by_name(profile.name).map(|p| p.name),
            Some(profile.name)
        );
    }
}

#[test]
fn no_two_features_share_a_bit() {
    for (n, a) in Feature::ALL.iter().enumerate() {
        let twin = Feature::ALL[n + 1..]
            .iter()
            .find(|b| (a.1, a.2, a.3, a.4) == (b.1, b.2, b.3, b.4));
        assert_eq!(twin, None);
    }
}

/// The model's default profile and ours describe one processor; but there is no PMU.
#[test]
fn the_default_profile_is_the_one_of_the_model() {
    let mut facts = VmxProfile::emulator_default().facts;
    facts.perf_global_ctrl_supported = 0;
    let ours = Profile::DEFAULT.table().facts();
    assert_eq!(ours, facts);
}

/// The profiles of real processors are those of the model, less what this crate does not execute.
#[test]
fn processors_have_the_widths_of_the_model() {
    for (profile, model) in [
        (Profile::BROADWELL, VmxProfile::broadwell()),
        (Profile::COFFEE_LAKE, VmxProfile::coffee_lake()),
    ] {
        assert_eq!(profile.name, model.name);
        let (ours, theirs) = (profile.table().facts(), model.facts);
        assert_eq!(ours.physical_address_bits, theirs.physical_address_bits);
        assert_eq!(ours.linear_address_bits, theirs.linear_address_bits);
        let beyond = ours.cr4_supported - theirs.cr4_supported;
        assert_eq!(beyond, Cr4::empty(), "{}", profile.name);
        let brand = profile.table().answer(0x8000_0002, 0).eax;
        assert_eq!(brand.to_le_bytes(), *b"Inte");
    }
}

/// The levels of the x86-64 psABI contain one another.
#[test]
fn each_level_has_what_the_one_before_has() {
    let levels = [
        Profile::X86_64_V1,
        Profile::X86_64_V2,
        Profile::X86_64_V3,
        Profile::X86_64_V4,
    ];
    for pair in levels.windows(2) {
        let [narrow, wide] = [pair[0].features(), pair[1].features()];
        let lost = Feature::ALL
            .iter()
            .find(|f| narrow.has(f.0) && !wide.has(f.0));
        assert_eq!(lost, None);
        assert_ne!(narrow, wide);
    }
}

#[test]
fn leaves_beyond_the_highest_answer_as_the_highest() {
    let mut cpu = long_mode();
    let highest = cpuid(&mut cpu, 0, 0)[0] as u32;
    assert_eq!(highest, 0xd);
    let last = cpuid(&mut cpu, highest, 1);
    assert_eq!(cpuid(&mut cpu, 0x1234, 1), last);
    assert_eq!(cpuid(&mut cpu, 0x8000_1234, 1), last);
    assert_eq!(cpuid(&mut cpu, 7, 9), [0; 4]);
    assert_eq!(CpuidTable::new(vec![]).answer(1, 0).eax, 0);
}

#[test]
fn some_bits_follow_the_state() {
    let mut cpu = long_mode();
    cpu.system.apic_id = 3;
    assert_eq!(cpuid(&mut cpu, 1, 0)[1] >> 24, 3);
    assert_eq!(cpuid(&mut cpu, 0xb, 1)[3], 3);
    assert_eq!(cpuid(&mut cpu, 1, 0)[2] >> 27 & 1, 0);
    assert_eq!(cpuid(&mut cpu, 7, 0)[2] >> 4 & 1, 0);
    cpu.state.cr4 |= Cr4::OSXSAVE | Cr4::PKE;
    assert_eq!(cpuid(&mut cpu, 1, 0)[2] >> 27 & 1, 1);
    assert_eq!(cpuid(&mut cpu, 7, 0)[2] >> 4 & 1, 1);
    assert_eq!(cpuid(&mut cpu, 1, 0)[3] >> 9 & 1, 1);
    cpu.msrs.apic_base = 0xfee0_0100;
    assert_eq!(cpuid(&mut cpu, 1, 0)[3] >> 9 & 1, 0);
    assert_eq!(cpuid(&mut cpu, 0x8000_0001, 0)[3] >> 11 & 1, 1);
    assert_eq!(cpuid(&mut protected_mode(), 0x8000_0001, 0)[3] >> 11 & 1, 0);
}

#[test]
fn xsave_areas_have_the_sizes_of_their_components() {
    let mut cpu = long_mode();
    for (xcr0, standard, compacted) in [
        (1, 576, 576),
        (7, 832, 832),
        (0x207, 2696, 840),
        (0x203, 2696, 584),
        (0xe7, 2688, 2432),
        (0x2e7, 2696, 2440),
    ] {
        cpu.system.xcr0 = xcr0;
        assert_eq!(cpuid(&mut cpu, 0xd, 0), [0x2e7, standard, 2696, 0]);
        assert_eq!(cpuid(&mut cpu, 0xd, 1)[1], compacted);
    }
    assert_eq!(cpuid(&mut cpu, 0xd, 2), [256, 576, 0, 0]);
    assert_eq!(cpuid(&mut cpu, 0xd, 5), [64, 1088, 0, 0]);
    assert_eq!(cpuid(&mut cpu, 0xd, 6), [512, 1152, 0, 0]);
    assert_eq!(cpuid(&mut cpu, 0xd, 7), [1024, 1664, 0, 0]);
    assert_eq!(cpuid(&mut cpu, 0xd, 9), [8, 2688, 0, 0]);
}

#[test]
fn instructions_need_their_features() {
    let default = Profile::DEFAULT.features();
    let minimal = Profile::MINIMAL.features();
    let rows = [
        (Code::Add_rm32_r32, true, true),
        (Code::Add_rm64_r64, true, false),
        (Code::Popcnt_r32_rm32, true, false),
        (Code::VEX_Andn_r32_r32_rm32, true, false),
        (Code::Vmxon_m64, true, false),
        (Code::Invept_r64_m128, true, false),
        (Code::Fxsave_m512byte, true, true),
        (Code::Pcmpistri_xmm_xmmm128_imm8, true, false),
        (Code::VEX_Vaddps_ymm_ymm_ymmm256, true, false),
        (Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er, false, false),
        (Code::Vmrunq, false, false),
        (Code::Rdsspd_r32, true, true),
        (Code::Endbr64, true, true),
        (Code::Nop_rm32, true, true),
        (Code::Wrpkru, true, false),
        (Code::Rsm, true, true),
    ];
    for (code, in_default, in_minimal) in rows {
        assert_eq!(default.allows(code), in_default, "{code:?}");
        assert_eq!(minimal.allows(code), in_minimal, "{code:?}");
    }
}

#[test]
fn tzcnt_and_lzcnt_are_bsf_and_bsr_without_their_features() {
    // TZCNT EAX, ECX; LZCNT EAX, ECX.
    for (code, with, without) in [
        ([0xf3, 0x0f, 0xbc, 0xc1], 4, 4),
        ([0xf3, 0x0f, 0xbd, 0xc1], 23, 8),
    ] {
        let run = |profile: &Profile| {
            let mut cpu = protected_mode();
            cpu.set_cpuid(profile.table());
            cpu.gpr[1] = 0x110;
            execute(&mut cpu, &code).expect("every processor has it");
            cpu.gpr[0]
        };
        assert_eq!(run(&Profile::DEFAULT), with);
        assert_eq!(run(&Profile::MINIMAL), without);
    }
}
