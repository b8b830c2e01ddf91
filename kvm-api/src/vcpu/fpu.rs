//! The guest's x87, SSE and extended state (api.rst, "KVM_GET_FPU", "KVM_GET_XSAVE"; SDM Vol. 1,
//! "XSAVE Area").
//!
//! Held as an XSAVE area in the standard format; the state components of the header's XSTATE_BV
//! that are clear have their initial configuration.

use crate::cpuid::supported_xcr0;
use crate::errno::{Errno, Result};
use crate::vcpu::Loaded;
use kvm_bindings::kvm_fpu;
use x86_interp::fpu::FpuState;
use x86_interp::xstate::{AVX, EXTENDED, SSE, X87};

/// Bytes of the area, and of what KVM_GET_XSAVE and KVM_SET_XSAVE copy.
pub(crate) const XSAVE_BYTES: usize = 4096;
// As long as every component lies in it, KVM_CAP_XSAVE2 answers as many bytes, and KVM_GET_XSAVE2
// copies what KVM_GET_XSAVE does (api.rst, "KVM_GET_XSAVE2").
const _: () = {
    let mut n = 0;
    while n < EXTENDED.len() {
        assert!((EXTENDED[n].offset + EXTENDED[n].size) as usize <= XSAVE_BYTES);
        n += 1;
    }
};
/// MXCSR bits that the processor has.
const MXCSR_MASK: u32 = 0xffff;

const FCW: usize = 0;
const FSW: usize = 2;
const FTW: usize = 4;
const FOP: usize = 6;
const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const MXCSR_MASK_AT: usize = 28;
const ST: usize = 32;
const XMM: usize = 160;
/// Software bytes: the first word holds the mask of XCR0.
const SW_XFEATURES: usize = 464;
const XSTATE_BV: usize = 512;
const XCOMP_BV: usize = 520;

/// The legacy components, as (bit, offset, bytes). MXCSR belongs to SSE and AVX.
const LEGACY: &[(u64, usize, usize)] = &[(X87, 0, MXCSR), (X87, ST, 128), (SSE, XMM, 256)];

/// Returns the components of the standard format, as (bit, offset, bytes).
fn components() -> impl Iterator<Item = (u64, usize, usize)> {
    let extended = EXTENDED
        .iter()
        .filter(|c| !c.is_supervisor)
        .map(|c| (c.mask, c.offset as usize, c.size as usize));
    LEGACY.iter().copied().chain(extended)
}

/// The guest's floating-point and vector registers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub(crate) struct GuestFpu {
    area: Box<[u8; XSAVE_BYTES]>,
}

impl Default for GuestFpu {
    fn default() -> Self {
        let mut fpu = Self {
            area: Box::new([0; XSAVE_BYTES]),
        };
        fpu.put(FCW, &0x37f_u16.to_le_bytes());
        fpu.put(MXCSR, &0x1f80_u32.to_le_bytes());
        fpu.put(MXCSR_MASK_AT, &MXCSR_MASK.to_le_bytes());
        fpu
    }
}

impl From<GuestFpu> for Vec<u8> {
    fn from(fpu: GuestFpu) -> Self {
        fpu.area.to_vec()
    }
}

impl TryFrom<Vec<u8>> for GuestFpu {
    type Error = &'static str;

    fn try_from(bytes: Vec<u8>) -> core::result::Result<Self, Self::Error> {
        let area = bytes.into_boxed_slice().try_into();
        area.map(|area| Self { area })
            .map_err(|_| "an XSAVE area of another size")
    }
}

impl GuestFpu {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.area[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.area[at..at + N]);
        bytes
    }

    fn xstate_bv(&self) -> u64 {
        u64::from_le_bytes(self.get(XSTATE_BV))
    }

    /// Returns the area in the standard format.
    pub(crate) fn area(&self) -> &[u8; XSAVE_BYTES] {
        &self.area
    }

    /// Returns the area, for a processor to save its registers in.
    pub(crate) fn area_mut(&mut self) -> &mut [u8; XSAVE_BYTES] {
        &mut self.area
    }

    /// Returns the legacy state: api.rst, "KVM_GET_FPU". The kernel does not fill `mxcsr`.
    pub(crate) fn to_kvm_fpu(&self) -> kvm_fpu {
        let register = |base: usize, index: usize| self.get(base + 16 * index);
        kvm_fpu {
            fpr: core::array::from_fn(|index| register(ST, index)),
            fcw: u16::from_le_bytes(self.get(FCW)),
            fsw: u16::from_le_bytes(self.get(FSW)),
            ftwx: self.area[FTW],
            last_opcode: u16::from_le_bytes(self.get(FOP)),
            last_ip: u64::from_le_bytes(self.get(FIP)),
            last_dp: u64::from_le_bytes(self.get(FDP)),
            xmm: core::array::from_fn(|index| register(XMM, index)),
            ..Default::default()
        }
    }

    /// Replaces the legacy state: api.rst, "KVM_SET_FPU". The kernel does not take `mxcsr`, and
    /// checks nothing.
    pub(crate) fn set_kvm_fpu(&mut self, fpu: &kvm_fpu) {
        self.put(FCW, &fpu.fcw.to_le_bytes());
        self.put(FSW, &fpu.fsw.to_le_bytes());
        self.area[FTW] = fpu.ftwx;
        self.put(FOP, &fpu.last_opcode.to_le_bytes());
        self.put(FIP, &fpu.last_ip.to_le_bytes());
        self.put(FDP, &fpu.last_dp.to_le_bytes());
        for (index, bytes) in fpu.fpr.iter().enumerate() {
            self.put(ST + 16 * index, bytes);
        }
        for (index, bytes) in fpu.xmm.iter().enumerate() {
            self.put(XMM + 16 * index, bytes);
        }
        let bv = self.xstate_bv() | X87 | SSE;
        self.put(XSTATE_BV, &bv.to_le_bytes());
    }

    /// Returns what KVM_GET_XSAVE gives.
    pub(crate) fn to_xsave(&self) -> Vec<u8> {
        let mut bytes = self.area.to_vec();
        bytes[SW_XFEATURES..SW_XFEATURES + 8].copy_from_slice(&supported_xcr0().to_le_bytes());
        bytes
    }

    /// Takes what KVM_SET_XSAVE gives, in the kernel's order of checks
    /// (`copy_uabi_to_xstate()`).
    pub(crate) fn set_xsave(&mut self, bytes: &[u8]) -> Result<()> {
        let word = |at: usize| -> u64 {
            bytes
                .get(at..at + 8)
                .map_or(0, |b| u64::from_le_bytes(b.try_into().expect("8 bytes")))
        };
        let bv = word(XSTATE_BV);
        let reserved = (XCOMP_BV..XSTATE_BV + 64)
            .step_by(8)
            .any(|at| word(at) != 0);
        if bv & !supported_xcr0() != 0 || reserved {
            return Err(Errno::EINVAL);
        }
        let mxcsr = word(MXCSR) as u32;
        if bv & (SSE | AVX) != 0 {
            if mxcsr & !MXCSR_MASK != 0 {
                return Err(Errno::EINVAL);
            }
            self.put(MXCSR, &mxcsr.to_le_bytes());
        }
        let initial = Self::default();
        for (bit, at, len) in components() {
            let from = if bv & bit != 0 {
                bytes
            } else {
                &initial.area[..]
            };
            if let Some(component) = from.get(at..at + len) {
                self.area[at..at + len].copy_from_slice(component);
            }
        }
        self.put(XSTATE_BV, &bv.to_le_bytes());
        Ok(())
    }
}

impl Loaded<'_> {
    /// Gives the processor the guest's registers (`kvm_load_guest_fpu()`).
    pub(crate) fn load_fpu(&mut self) {
        let cpu = self.vmcs.processor().cpu(self.vm.host());
        match &mut self.caches.fpu {
            Some(live) => {
                cpu.swap_fpu(&mut live.fpu);
                cpu.system_registers_mut().pkru = live.pkru;
            }
            None => cpu.restore_xstate(self.state.fpu.area()),
        }
    }

    /// Takes the guest's registers from the processor (`kvm_put_guest_fpu()`); they are put in the
    /// area when somebody asks for it.
    pub(crate) fn put_fpu(&mut self) {
        let cpu = self.vmcs.processor().cpu(self.vm.host());
        let pkru = cpu.system_registers().pkru;
        let live = self.caches.fpu.get_or_insert_with(|| {
            Box::new(LiveFpu {
                fpu: Box::new(FpuState::initial()),
                pkru,
            })
        });
        cpu.swap_fpu(&mut live.fpu);
        live.pkru = pkru;
    }

    /// Returns the area, up to date; the processor takes its registers from it again.
    pub(crate) fn fpu(&mut self) -> &mut GuestFpu {
        if self.caches.fpu.is_some() {
            self.load_fpu();
            let cpu = self.vmcs.processor().cpu(self.vm.host());
            cpu.save_xstate(self.state.fpu.area_mut());
            self.caches.fpu = None;
        }
        &mut self.state.fpu
    }
}

/// The guest's registers in the processor's own form, between two runs.
#[derive(Clone, Debug)]
pub(crate) struct LiveFpu {
    fpu: Box<FpuState>,
    pkru: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_area_is_the_reset_state() {
        let fpu = GuestFpu::default();
        assert_eq!(
            fpu.to_kvm_fpu(),
            kvm_fpu {
                fcw: 0x37f,
                ..Default::default()
            }
        );
        let xsave = fpu.to_xsave();
        assert_eq!(xsave[24..28], 0x1f80_u32.to_le_bytes());
        assert_eq!(xsave[512..576], [0; 64]);
    }

    #[test]
    fn an_xmm_register_goes_in_and_out() {
        let mut fpu = GuestFpu::default();
        let mut bytes = fpu.to_xsave();
        bytes[XMM] = 0xaa;
        bytes[XSTATE_BV] = 3;
        assert_eq!(fpu.set_xsave(&bytes), Ok(()));
        assert_eq!(fpu.to_xsave()[XMM], 0xaa);
        assert_eq!(fpu.to_kvm_fpu().xmm[0][0], 0xaa);
        bytes[XSTATE_BV] = 0;
        assert_eq!(fpu.set_xsave(&bytes), Ok(()));
        assert_eq!(fpu.to_xsave()[XMM], 0);
    }

    #[test]
    fn every_component_goes_in_and_out_if_it_is_supported() {
        for component in EXTENDED.iter().filter(|c| !c.is_supervisor) {
            let mut fpu = GuestFpu::default();
            let mut bytes = fpu.to_xsave();
            let at = component.offset as usize;
            let last = at + component.size as usize - 1;
            (bytes[at], bytes[last]) = (0x55, 0xaa);
            bytes[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&component.mask.to_le_bytes());
            let is_supported = supported_xcr0() & component.mask != 0;
            let expected = if is_supported {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            };
            assert_eq!(fpu.set_xsave(&bytes), expected, "{component:?}");
            let kept = if is_supported { (0x55, 0xaa) } else { (0, 0) };
            let after = fpu.to_xsave();
            assert_eq!((after[at], after[last]), kept, "{component:?}");
        }
    }

    #[test]
    fn the_x87_control_word_goes_in_and_out() {
        let mut fpu = GuestFpu::default();
        let mut bytes = fpu.to_xsave();
        bytes[FCW..FCW + 2].copy_from_slice(&0x27f_u16.to_le_bytes());
        bytes[XSTATE_BV] = X87 as u8;
        assert_eq!(fpu.set_xsave(&bytes), Ok(()));
        assert_eq!(fpu.to_kvm_fpu().fcw, 0x27f);
    }

    #[test]
    fn components_of_ia32_xss_are_refused() {
        for component in EXTENDED.iter().filter(|c| c.is_supervisor) {
            let mut fpu = GuestFpu::default();
            let mut bytes = fpu.to_xsave();
            bytes[XSTATE_BV..XSTATE_BV + 8].copy_from_slice(&component.mask.to_le_bytes());
            assert_eq!(fpu.set_xsave(&bytes), Err(Errno::EINVAL), "{component:?}");
            assert_eq!(fpu, GuestFpu::default());
        }
    }

    #[test]
    fn bad_headers_are_refused_and_change_nothing() {
        for (at, value) in [
            (XSTATE_BV + 7, 0x40),
            (XCOMP_BV + 7, 0x80),
            (XSTATE_BV + 63, 1),
        ] {
            let mut fpu = GuestFpu::default();
            let mut bytes = fpu.to_xsave();
            bytes[at] = value;
            bytes[FCW] = 0;
            assert_eq!(fpu.set_xsave(&bytes), Err(Errno::EINVAL), "{at}");
            assert_eq!(fpu, GuestFpu::default());
        }
    }

    #[test]
    fn mxcsr_counts_with_sse_only() {
        let mut fpu = GuestFpu::default();
        let mut bytes = fpu.to_xsave();
        bytes[MXCSR + 2] = 1;
        assert_eq!(fpu.set_xsave(&bytes), Ok(()));
        bytes[XSTATE_BV] = 2;
        assert_eq!(fpu.set_xsave(&bytes), Err(Errno::EINVAL));
    }
}
