//! Saving and restoring extended state: FXSAVE, FXRSTOR, the XSAVE family, XGETBV, XSETBV, LDMXCSR,
//! STMXCSR.
//!
//! SDM Vol. 1, "Managing State Using the XSAVE Feature Set"; Vol. 2: the instructions. Layouts are
//! in [`crate::xstate`].

mod pieces;

use iced_x86::{Code, Mnemonic};
use vmx_model::addr::Linear;
use vmx_model::arch::{Cr0, Cr4};
use vmx_model::event::Exception;
use vmx_model::exit_reason::ExitReason;
use vmx_model::intercept::Instruction;

use self::pieces::Area;
use super::{Row, Traits};
use crate::cet::components::CetComponents;
use crate::cpuid::Feature;
use crate::fpu::{FpuState, MXCSR_MASK, MXCSR_RESET};
use crate::insn::{Insn, Plain};
use crate::mem::{Access, Privilege};
use crate::mode::Mode;
use crate::xstate::legacy::{self, Pointers, Region};
use crate::xstate::{self, Component, EXTENDED, HEADER_BYTES, LEGACY_BYTES, PKRU, SSE, X87};
use crate::{Cpu, Exec};

/// XCOMP_BV: the area has the compacted form.
const COMPACTED: u64 = 1 << 63;

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    let none = Traits::empty();
    let ends = Traits::ENDS_BLOCK;
    let (plain, traits): (Plain, Traits) = match code.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => (fxsave, none),
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => (fxrstor, none),
        Mnemonic::Xsave | Mnemonic::Xsave64 => (xsave, none),
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => (xsaveopt, none),
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => (xsavec, none),
        Mnemonic::Xsaves | Mnemonic::Xsaves64 => (xsaves, none),
        // PKRU decides how memory is accessed.
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => (xrstor, ends),
        Mnemonic::Xrstors | Mnemonic::Xrstors64 => (xrstors, ends),
        Mnemonic::Xgetbv => (xgetbv, none),
        Mnemonic::Xsetbv => (xsetbv, ends),
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => (ldmxcsr, none),
        Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr => (stmxcsr, none),
        _ => return None,
    };
    Some(Row { plain, traits })
}

/// FXSAVE. Choice: the XMM registers are saved whether CR4.OSFXSR is set or not.
fn fxsave(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_x87()?;
    let at = aligned(cpu, insn, 16, Access::Write)?;
    let mut region = [0; legacy::DEFINED_BYTES];
    legacy::put_x87(&mut region, &cpu.fpu, pointers(insn));
    legacy::put_mxcsr(&mut region, &cpu.fpu);
    legacy::put_xmm(&mut region, &cpu.fpu, cpu.vector_registers());
    let used = legacy::XMM + 16 * cpu.vector_registers();
    cpu.store_bytes_linear(at, &region[..used], Privilege::Current)
}

/// FXRSTOR. Choice: the XMM registers are loaded whether CR4.OSFXSR is set or not.
fn fxrstor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_x87()?;
    let at = aligned(cpu, insn, 16, Access::Read)?;
    let region = cpu.load_region(at)?;
    let mxcsr = legacy::mxcsr(&region).ok_or(Exception::gp(0))?;
    legacy::take_x87(&region, &mut cpu.fpu, pointers(insn));
    cpu.drop_deprecated_selectors();
    cpu.fpu.mxcsr = mxcsr;
    let count = cpu.vector_registers();
    legacy::take_xmm(&region, &mut cpu.fpu, count);
    Ok(())
}

/// Which instruction saves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Save {
    Xsave,
    Xsaveopt,
    Xsavec,
    Xsaves,
}

impl Save {
    const fn is_compacted(self) -> bool {
        matches!(self, Self::Xsavec | Self::Xsaves)
    }
}

/// XSAVE.
fn xsave(cpu: &mut Cpu, insn: &Insn) -> Exec {
    save(cpu, insn, Save::Xsave)
}

/// XSAVEOPT: leaves out what is in its initial configuration. Choice: never what is unmodified.
fn xsaveopt(cpu: &mut Cpu, insn: &Insn) -> Exec {
    save(cpu, insn, Save::Xsaveopt)
}

/// XSAVEC.
fn xsavec(cpu: &mut Cpu, insn: &Insn) -> Exec {
    save(cpu, insn, Save::Xsavec)
}

/// XSAVES: as XSAVEC, with the supervisor components of IA32_XSS.
fn xsaves(cpu: &mut Cpu, insn: &Insn) -> Exec {
    save(cpu, insn, Save::Xsaves)
}

fn save(cpu: &mut Cpu, insn: &Insn, kind: Save) -> Exec {
    check_xsave(cpu)?;
    if kind == Save::Xsaves {
        cpu.require_xsaves()?;
        cpu.require_cpl0()?;
    }
    check_ts(cpu)?;
    if kind == Save::Xsaves {
        cpu.ask_about_xsaves(ExitReason::XSAVES, insn)?;
    }
    let at = aligned(cpu, insn, 64, Access::Write)?;
    let enabled = match kind {
        Save::Xsaves => cpu.system.xcr0 | cpu.msrs.xss,
        _ => cpu.system.xcr0,
    };
    let requested = enabled & cpu.edx_eax();
    let mut area = Area::default();
    if kind.is_compacted() {
        let written = requested & cpu.xinuse_with_mxcsr();
        area.legacy(cpu, written, written & SSE != 0, pointers(insn));
        area.header(&[written, requested | COMPACTED]);
        area.extended(cpu, written, xstate::compacted(requested));
    } else {
        let in_use = cpu.xinuse();
        let written = match kind {
            Save::Xsaveopt => requested & in_use,
            _ => requested,
        };
        let has_mxcsr = requested & (SSE | xstate::AVX) != 0;
        area.legacy(cpu, written, has_mxcsr, pointers(insn));
        let header = at.offset(u64::from(LEGACY_BYTES));
        let old: u64 = cpu.load_linear(header, Access::Write, Privilege::Current)?;
        area.header(&[old & !requested | requested & in_use]);
        area.extended(cpu, written, EXTENDED.iter().map(|c| (*c, c.offset)));
    }
    area.store(cpu, at)
}

/// XRSTOR.
fn xrstor(cpu: &mut Cpu, insn: &Insn) -> Exec {
    check_xsave(cpu)?;
    check_ts(cpu)?;
    restore(cpu, insn, cpu.system.xcr0, Form::Any)
}

/// XRSTORS: the compacted form only.
fn xrstors(cpu: &mut Cpu, insn: &Insn) -> Exec {
    check_xsave(cpu)?;
    cpu.require_xsaves()?;
    cpu.require_cpl0()?;
    check_ts(cpu)?;
    cpu.ask_about_xsaves(ExitReason::XRSTORS, insn)?;
    restore(cpu, insn, cpu.system.xcr0 | cpu.msrs.xss, Form::Compacted)
}

/// Which forms of the area an instruction takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Any,
    Compacted,
}

fn restore(cpu: &mut Cpu, insn: &Insn, enabled: u64, form: Form) -> Exec {
    let at = aligned(cpu, insn, 64, Access::Read)?;
    let requested = enabled & cpu.edx_eax();
    let header = Header::load(cpu, at)?;
    if !header.is_valid(enabled, form, cpu.has(Feature::Xsavec)) {
        return Err(Exception::gp(0).into());
    }
    let mut next = Extended {
        fpu: (*cpu.fpu).clone(),
        pkru: cpu.system.pkru,
        cet: CetComponents::of(cpu),
        count: cpu.vector_registers(),
    };
    let present = requested & header.in_use;
    restore_legacy(cpu, at, &mut next, requested, present, &header, insn)?;
    let mut places = [(EXTENDED[0], 0); EXTENDED.len()];
    header.places(&mut places);
    for (component, offset) in places {
        if requested & component.mask == 0 {
            continue;
        }
        let mut bytes = [0; 1024];
        let bytes = &mut bytes[..component.size as usize];
        if present & component.mask != 0 {
            let from = at.offset(u64::from(offset));
            cpu.load_bytes_linear(from, bytes, Access::Read, Privilege::Current)?;
        }
        next.take(&component, bytes);
    }
    if requested & (xstate::CET_U | xstate::CET_S) != 0 {
        next.cet.load(cpu)?;
    }
    *cpu.fpu = next.fpu;
    cpu.drop_deprecated_selectors();
    cpu.write_pkru(next.pkru);
    Ok(())
}

/// Restores components 0 and 1, and MXCSR.
fn restore_legacy(
    cpu: &mut Cpu,
    at: Linear,
    next: &mut Extended,
    requested: u64,
    present: u64,
    header: &Header,
    insn: &Insn,
) -> Exec {
    // The standard form always holds MXCSR; in the compacted form it belongs to component 1.
    let loads_mxcsr = if header.is_compacted() {
        present & SSE != 0
    } else {
        requested & (SSE | xstate::AVX) != 0
    };
    let needs_region = present & (X87 | SSE) != 0 || loads_mxcsr;
    let region = if needs_region {
        cpu.load_region(at)?
    } else {
        [0; legacy::DEFINED_BYTES]
    };
    if loads_mxcsr {
        next.fpu.mxcsr = legacy::mxcsr(&region).ok_or(Exception::gp(0))?;
    } else if requested & SSE != 0 {
        next.fpu.mxcsr = MXCSR_RESET;
    }
    if present & X87 != 0 {
        legacy::take_x87(&region, &mut next.fpu, pointers(insn));
    } else if requested & X87 != 0 {
        legacy::init_x87(&mut next.fpu);
    }
    if present & SSE != 0 {
        legacy::take_xmm(&region, &mut next.fpu, next.count);
    } else if requested & SSE != 0 {
        legacy::init_xmm(&mut next.fpu, next.count);
    }
    Ok(())
}

/// XGETBV: XCR0, and with ECX = 1 which of its components are in use.
fn xgetbv(cpu: &mut Cpu, _: &Insn) -> Exec {
    check_xsave(cpu)?;
    let value = match cpu.gpr[1] as u32 {
        0 => cpu.system.xcr0,
        1 if cpu.has(Feature::Xgetbv1) => cpu.system.xcr0 & cpu.xinuse(),
        _ => return Err(Exception::gp(0).into()),
    };
    cpu.set_edx_eax(value);
    Ok(())
}

/// XSETBV.
fn xsetbv(cpu: &mut Cpu, insn: &Insn) -> Exec {
    check_xsave(cpu)?;
    cpu.require_cpl0()?;
    cpu.ask(Instruction::Xsetbv, insn)?;
    let value = cpu.edx_eax();
    if cpu.gpr[1] as u32 != 0 || !cpu.is_valid_xcr0(value) {
        return Err(Exception::gp(0).into());
    }
    cpu.system.xcr0 = value;
    Ok(())
}

/// LDMXCSR.
fn ldmxcsr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let value = cpu.read::<u32>(insn, 0)?;
    if value & !MXCSR_MASK != 0 {
        return Err(Exception::gp(0).into());
    }
    cpu.fpu.mxcsr = value;
    Ok(())
}

/// STMXCSR.
fn stmxcsr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    cpu.write(insn, 0, cpu.fpu.mxcsr)
}

/// #UD unless CR4.OSXSAVE is set.
fn check_xsave(cpu: &Cpu) -> Exec {
    if cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return Ok(());
    }
    Err(Exception::UD.into())
}

/// #NM if CR0.TS is set.
fn check_ts(cpu: &Cpu) -> Exec {
    if cpu.state.cr0.contains(Cr0::TS) {
        return Err(Exception::NM.into());
    }
    Ok(())
}

/// Returns the linear address of the memory operand; #GP(0) if it is not aligned.
fn aligned(cpu: &Cpu, insn: &Insn, alignment: u64, access: Access) -> Exec<Linear> {
    let linear = cpu.operand_linear(insn, LEGACY_BYTES as usize, access)?;
    if linear.0 % alignment != 0 {
        return Err(Exception::gp(0).into());
    }
    Ok(linear)
}

fn pointers(insn: &Insn) -> Pointers {
    match insn.code.mnemonic() {
        Mnemonic::Fxsave
        | Mnemonic::Fxrstor
        | Mnemonic::Xsave
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsavec
        | Mnemonic::Xsaves
        | Mnemonic::Xrstor
        | Mnemonic::Xrstors => Pointers::Selectors,
        _ => Pointers::Wide,
    }
}

/// The XSAVE header.
struct Header {
    /// XSTATE_BV.
    in_use: u64,
    /// XCOMP_BV.
    layout: u64,
    is_rest_zero: bool,
}

impl Header {
    fn load(cpu: &mut Cpu, area: Linear) -> Exec<Self> {
        let mut bytes = [0; HEADER_BYTES as usize];
        let at = area.offset(u64::from(LEGACY_BYTES));
        cpu.load_bytes_linear(at, &mut bytes, Access::Read, Privilege::Current)?;
        let word = |n: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[n..n + 8]);
            u64::from_le_bytes(word)
        };
        let layout = word(8);
        // XRSTOR checks bytes 23:8 of the standard form, 63:8 of the compacted one.
        let rest = if layout & COMPACTED == 0 {
            16..24
        } else {
            16..64
        };
        Ok(Self {
            in_use: word(0),
            layout,
            is_rest_zero: bytes[rest].iter().all(|&b| b == 0),
        })
    }

    const fn is_compacted(&self) -> bool {
        self.layout & COMPACTED != 0
    }

    fn is_valid(&self, enabled: u64, form: Form, has_compaction: bool) -> bool {
        let layout = self.layout & !COMPACTED;
        let is_consistent = if self.is_compacted() {
            has_compaction && layout & !enabled == 0 && self.in_use & !layout == 0
        } else {
            form == Form::Any && self.layout == 0 && self.in_use & !enabled == 0
        };
        is_consistent && self.is_rest_zero
    }

    /// Fills in where the components of the extended region are.
    fn places(&self, places: &mut [(Component, u32); EXTENDED.len()]) {
        for (place, component) in places.iter_mut().zip(EXTENDED) {
            *place = (*component, component.offset);
            if self.is_compacted() {
                let found = xstate::compacted(self.layout).find(|(c, _)| c.mask == component.mask);
                place.1 = found.map_or(0, |(_, at)| at);
            }
        }
    }
}

/// What a restoring instruction is about to load.
pub(crate) struct Extended {
    pub(crate) fpu: FpuState,
    pub(crate) pkru: u32,
    pub(crate) cet: CetComponents,
    /// Vector registers that the mode can reach.
    pub(crate) count: usize,
}

impl Extended {
    pub(crate) fn take(&mut self, component: &Component, bytes: &[u8]) {
        let word = |n: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * n..8 * n + 8]);
            u64::from_le_bytes(word)
        };
        let (low, high) = self.fpu.vector.split_at_mut(16);
        match component.mask {
            PKRU => self.pkru = word(0) as u32,
            xstate::CET_U => (self.cet.u_cet, self.cet.pl_ssp[3]) = (word(0), word(1)),
            xstate::CET_S => {
                for (n, ssp) in self.cet.pl_ssp[..3].iter_mut().enumerate() {
                    *ssp = word(n);
                }
            }
            xstate::OPMASK => self.fpu.opmask = core::array::from_fn(word),
            xstate::ZMM_HI256 => {
                for (n, register) in low[..self.count].iter_mut().enumerate() {
                    register[4..]
                        .copy_from_slice(&core::array::from_fn::<_, 4, _>(|i| word(4 * n + i)));
                }
            }
            // Outside 64-bit mode these registers cannot be reached.
            xstate::HI16_ZMM if self.count == 16 => {
                for (n, register) in high.iter_mut().enumerate() {
                    *register = core::array::from_fn(|i| word(8 * n + i));
                }
            }
            xstate::HI16_ZMM => {}
            _ => {
                for (n, register) in low[..self.count].iter_mut().enumerate() {
                    (register[2], register[3]) = (word(2 * n), word(2 * n + 1));
                }
            }
        }
    }
}

impl Cpu {
    /// For SSE instructions: #UD if CR0.EM is set or CR4.OSFXSR is not, #NM if CR0.TS is set.
    pub(crate) fn check_sse(&self) -> Exec {
        if self.state.cr0.contains(Cr0::EM) || !self.state.cr4.contains(Cr4::OSFXSR) {
            return Err(Exception::UD.into());
        }
        check_ts(self)
    }

    /// For AVX instructions: #UD unless CR4.OSXSAVE is set and XCR0 enables SSE and AVX, #NM if
    /// CR0.TS is set.
    pub(crate) fn check_avx(&self) -> Exec {
        self.check_components(SSE | xstate::AVX)
    }

    /// For AVX-512 instructions: as [`Self::check_avx`], with the components of AVX-512.
    pub(crate) fn check_avx512(&self) -> Exec {
        self.check_components(SSE | xstate::AVX | xstate::AVX512)
    }

    fn check_components(&self, needed: u64) -> Exec {
        let is_enabled = self.system.xcr0 & needed == needed;
        if !is_enabled || self.mode().is_real_style() {
            return Err(Exception::UD.into());
        }
        check_xsave(self)?;
        check_ts(self)
    }

    /// Whether XSETBV takes this value for XCR0.
    #[must_use]
    pub fn is_valid_xcr0(&self, value: u64) -> bool {
        let is_supported = value & !xstate::supported(self.cpuid.features()) == 0;
        let is_avx_with_sse = value & (SSE | xstate::AVX) != xstate::AVX;
        let is_avx512_whole = match value & xstate::AVX512 {
            0 => true,
            all => all == xstate::AVX512 && value & xstate::AVX != 0,
        };
        is_supported && value & X87 != 0 && is_avx_with_sse && is_avx512_whole
    }

    /// Returns the number of vector registers that the mode can reach.
    pub(crate) fn vector_registers(&self) -> usize {
        if self.mode() == Mode::Long { 16 } else { 8 }
    }

    fn load_region(&mut self, at: Linear) -> Exec<Region> {
        let mut region = [0; legacy::DEFINED_BYTES];
        self.load_bytes_linear(at, &mut region, Access::Read, Privilege::Current)?;
        Ok(region)
    }

    /// Returns XINUSE: the components that are not in their initial configuration.
    pub(crate) fn xinuse(&self) -> u64 {
        let x87 = !legacy::is_x87_initial(&self.fpu);
        let sse = !legacy::is_xmm_initial(&self.fpu);
        let (low, high) = self.fpu.vector.split_at(16);
        let avx = low.iter().any(|v| v[2] | v[3] != 0);
        let opmask = self.fpu.opmask != [0; 8];
        let zmm = low.iter().any(|v| v[4..] != [0; 4]);
        let high = high.iter().any(|v| *v != [0; 8]);
        [
            (x87, X87),
            (sse, SSE),
            (avx, xstate::AVX),
            (opmask, xstate::OPMASK),
            (zmm, xstate::ZMM_HI256),
            (high, xstate::HI16_ZMM),
            (self.system.pkru != 0, PKRU),
            (self.msrs.u_cet | self.msrs.pl_ssp[3] != 0, xstate::CET_U),
            (self.msrs.pl_ssp[..3] != [0; 3], xstate::CET_S),
        ]
        .iter()
        .filter(|(is_in_use, _)| *is_in_use)
        .fold(0, |mask, (_, component)| mask | component)
    }

    /// Returns XINUSE as XSAVEC and XSAVES use it: component 1 is in use if MXCSR is.
    fn xinuse_with_mxcsr(&self) -> u64 {
        let mxcsr = if legacy::is_mxcsr_initial(&self.fpu) {
            0
        } else {
            SSE
        };
        self.xinuse() | mxcsr
    }

    /// Returns the bytes of a component of the extended region, with `count` vector registers.
    pub(crate) fn component_bytes(&self, component: &Component, count: usize) -> Vec<u8> {
        if component.mask == PKRU {
            return u64::from(self.system.pkru).to_le_bytes().to_vec();
        }
        let (low, high) = self.fpu.vector.split_at(16);
        let words: Vec<u64> = match component.mask {
            xstate::CET_U => vec![self.msrs.u_cet, self.msrs.pl_ssp[3]],
            xstate::CET_S => self.msrs.pl_ssp[..3].to_vec(),
            xstate::OPMASK => self.fpu.opmask.to_vec(),
            xstate::ZMM_HI256 => low[..count].iter().flat_map(|v| &v[4..]).copied().collect(),
            xstate::HI16_ZMM if count == 16 => high.iter().flatten().copied().collect(),
            xstate::HI16_ZMM => Vec::new(),
            _ => low[..count]
                .iter()
                .flat_map(|v| &v[2..4])
                .copied()
                .collect(),
        };
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

#[cfg(test)]
mod tests;
