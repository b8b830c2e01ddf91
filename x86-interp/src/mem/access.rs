//! Loads and stores: the interface of the plain handlers to memory.
//!
//! Every access is checked completely before its first byte is written, also when it crosses a
//! page.

use vmx_model::addr::{Hpa, Linear};
use vmx_model::arch::{Cr0, Rflags, SegmentRegister};
use vmx_model::event::{Exception, vector};

use super::phys::{Protection, piece};
use super::{Access, Privilege};
use crate::insn::Insn;
use crate::width::Width;
use crate::{Cpu, Exec};

impl Cpu {
    /// Returns the offset of the instruction's memory operand, wrapped to the address size.
    pub(crate) fn effective_address(&self, insn: &Insn) -> u64 {
        let m = &insn.memory;
        let index = self.register::<u64>(m.index) << m.scale_shift;
        let sum = self
            .register::<u64>(m.base)
            .wrapping_add(index)
            .wrapping_add(m.displacement);
        sum & address_mask(insn.address_bytes)
    }

    /// Loads from `segment:offset` with the privilege of CPL.
    pub(crate) fn load<W: Width>(&mut self, segment: SegmentRegister, offset: u64) -> Exec<W> {
        let linear = self.linear(segment, offset, W::BYTES as u64, Access::Read)?;
        self.load_linear(linear, Access::Read, Privilege::Current)
    }

    /// Loads the old value of a read-modify-write: faults as the write will.
    pub(crate) fn load_for_update<W: Width>(
        &mut self,
        segment: SegmentRegister,
        offset: u64,
    ) -> Exec<W> {
        let linear = self.linear(segment, offset, W::BYTES as u64, Access::Write)?;
        self.load_linear(linear, Access::Write, Privilege::Current)
    }

    /// Stores to `segment:offset` with the privilege of CPL.
    pub(crate) fn store<W: Width>(
        &mut self,
        segment: SegmentRegister,
        offset: u64,
        value: W,
    ) -> Exec {
        let linear = self.linear(segment, offset, W::BYTES as u64, Access::Write)?;
        self.store_linear(linear, value, Privilege::Current)
    }

    /// Takes the fault that a store of a `W` to `segment:offset` would take.
    pub(crate) fn check_store_to<W: Width>(
        &mut self,
        segment: SegmentRegister,
        offset: u64,
    ) -> Exec {
        let linear = self.linear(segment, offset, W::BYTES as u64, Access::Write)?;
        self.check_alignment(linear, W::BYTES, Access::Write)?;
        self.check_store(linear, W::BYTES, Privilege::Current)
    }

    /// Stores bytes to `segment:offset` with the privilege of CPL.
    pub(crate) fn store_bytes(
        &mut self,
        segment: SegmentRegister,
        offset: u64,
        bytes: &[u8],
    ) -> Exec {
        let linear = self.linear(segment, offset, bytes.len() as u64, Access::Write)?;
        self.store_bytes_linear(linear, bytes, Privilege::Current)
    }

    /// Loads from a linear address. `access` is what the permissions are checked for.
    pub(crate) fn load_linear<W: Width>(
        &mut self,
        linear: Linear,
        access: Access,
        privilege: Privilege,
    ) -> Exec<W> {
        if privilege == Privilege::Current {
            self.check_alignment(linear, W::BYTES, access)?;
            self.note_data_access(linear, W::BYTES, access);
            let context = self.context();
            let known = match access {
                Access::Read => self.tlb.read(linear.0, context),
                Access::Write => self.tlb.read_for_update(linear.0, context),
                Access::Execute => None,
            };
            if let Some(value) = known {
                return Ok(value);
            }
        }
        let mut bytes = [0; 8];
        self.load_bytes_linear(linear, &mut bytes[..W::BYTES], access, privilege)?;
        Ok(W::from_le_slice(&bytes))
    }

    /// Stores to a linear address.
    pub(crate) fn store_linear<W: Width>(
        &mut self,
        linear: Linear,
        value: W,
        privilege: Privilege,
    ) -> Exec {
        if privilege == Privilege::Current {
            self.check_alignment(linear, W::BYTES, Access::Write)?;
            self.note_data_access(linear, W::BYTES, Access::Write);
            let context = self.context();
            if self.tlb.write(linear.0, context, value) {
                return Ok(());
            }
            if let Some(hit) = self.tlb.write_beside_code(linear.0, context, value) {
                self.hot.code_written |= hit;
                return Ok(());
            }
        }
        let bytes = value.to_u64().to_le_bytes();
        self.store_bytes_linear(linear, &bytes[..W::BYTES], privilege)
    }

    /// #AC(0) for an unaligned access of `bytes` bytes by CPL 3 while CR0.AM and RFLAGS.AC are set
    /// (SDM Vol. 3A, "Interrupt 17-Alignment Check Exception (#AC)"). A page fault comes first.
    #[inline]
    fn check_alignment(&mut self, linear: Linear, bytes: usize, access: Access) -> Exec {
        if linear.0 & (bytes as u64 - 1) == 0 || !self.checks_alignment() {
            return Ok(());
        }
        for at in [linear, linear.offset(bytes as u64 - 1)] {
            self.translate(at, access, Privilege::Current)?;
        }
        Err(Exception::with_code(vector::AC, 0).into())
    }

    /// Whether data accesses have to be aligned.
    pub(crate) fn checks_alignment(&self) -> bool {
        self.state.rflags.contains(Rflags::AC)
            && self.state.cr0.contains(Cr0::AM)
            && self.cpl() == 3
    }

    /// Fills `bytes` from linear memory (any length; 10-byte, 16-byte, save areas).
    pub(crate) fn load_bytes_linear(
        &mut self,
        linear: Linear,
        bytes: &mut [u8],
        access: Access,
        privilege: Privilege,
    ) -> Exec {
        self.note_data_access(linear, bytes.len(), access);
        for (from, to) in pages(linear, bytes.len()) {
            self.place(linear.offset(from as u64), to - from, access, privilege)?;
        }
        for (from, to) in pages(linear, bytes.len()) {
            let found = self.place(linear.offset(from as u64), to - from, access, privilege)?;
            if access == Access::Read {
                self.note_memory_access(found.at, to - from, false);
            }
            self.load_physical(found.at, &mut bytes[from..to])?;
        }
        Ok(())
    }

    /// Stores `bytes` to linear memory; all pages are checked before the first byte is written.
    pub(crate) fn store_bytes_linear(
        &mut self,
        linear: Linear,
        bytes: &[u8],
        privilege: Privilege,
    ) -> Exec {
        self.note_data_access(linear, bytes.len(), Access::Write);
        for (from, to) in pages(linear, bytes.len()) {
            let piece = linear.offset(from as u64);
            self.place(piece, to - from, Access::Write, privilege)?;
        }
        for (from, to) in pages(linear, bytes.len()) {
            let piece = linear.offset(from as u64);
            let found = self.place(piece, to - from, Access::Write, privilege)?;
            self.note_memory_access(found.at, to - from, true);
            self.store_physical(found.at, &bytes[from..to])?;
            if found.is_virtual_apic {
                self.note_virtual_apic_write(found.at);
            }
        }
        Ok(())
    }

    /// Returns where bytes of one page are: those of the APIC-access page may be elsewhere.
    fn place(
        &mut self,
        linear: Linear,
        bytes: usize,
        access: Access,
        privilege: Privilege,
    ) -> Exec<Placed> {
        let at = self.translate(linear, access, privilege)?;
        let is_virtual_apic = self.is_apic_access_page(at);
        let at = if is_virtual_apic {
            self.virtualize_apic_access(at, bytes, access)?
        } else {
            at
        };
        Ok(Placed {
            at,
            is_virtual_apic,
        })
    }

    /// Reads inside one physical page, from RAM or the bus.
    fn load_physical(&mut self, at: Hpa, bytes: &mut [u8]) -> Exec {
        if let Some(ram) = self.view.page(at) {
            let is_there = ram.read(at.page_offset(), bytes);
            return if is_there {
                Ok(())
            } else {
                Err(self.host_fault(at))
            };
        }
        self.outside_may_have_written();
        self.bus.time_passes(self.retired);
        let mut done = 0;
        while done < bytes.len() {
            let size = piece(bytes.len() - done);
            let value = self.bus.memory_read(at.offset(done as u64), size);
            let value = value.map_err(|_| self.suspend())?;
            bytes[done..done + size].copy_from_slice(&value.to_le_bytes()[..size]);
            done += size;
        }
        Ok(())
    }

    /// Writes inside one physical page, to RAM or the bus.
    fn store_physical(&mut self, at: Hpa, bytes: &[u8]) -> Exec {
        if let Some(ram) = self.view.page(at)
            && ram.protection == Protection::ReadWrite
        {
            let hit = ram.write(at.page_offset(), bytes);
            self.hot.code_written |= hit.ok_or_else(|| self.host_fault(at))?;
            return Ok(());
        }
        self.outside_may_have_written();
        self.bus.time_passes(self.retired);
        let mut done = 0;
        while done < bytes.len() {
            let size = piece(bytes.len() - done);
            let mut word = [0; 8];
            word[..size].copy_from_slice(&bytes[done..done + size]);
            let answer =
                self.bus
                    .memory_write(at.offset(done as u64), size, u64::from_le_bytes(word));
            answer.map_err(|_| self.suspend())?;
            done += size;
        }
        Ok(())
    }
}

/// Where an access goes.
struct Placed {
    at: Hpa,
    /// Whether it goes to the virtual-APIC page, by way of the APIC-access page.
    is_virtual_apic: bool,
}

/// Returns the mask of an address size in bytes.
pub(crate) const fn address_mask(address_bytes: u8) -> u64 {
    match address_bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}

/// Cuts an access into its pages: byte ranges of the buffer.
fn pages(linear: Linear, length: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    core::iter::from_fn(move || {
        if from >= length {
            return None;
        }
        let left = 4096 - linear.offset(from as u64).page_offset() as usize;
        let to = length.min(from + left);
        let range = (from, to);
        from = to;
        Some(range)
    })
}

#[cfg(test)]
mod tests {
    use vmx_model::arch::{Cr0, Rflags};
    use vmx_model::event::{Exception, vector};

    use crate::test_cpu::{DATA, execute, long_mode, protected_mode, user};
    use crate::{Cpu, Exec, Fault};

    const AC: Exec = Err(Fault::Exception(Exception::with_code(vector::AC, 0)));

    #[test]
    fn alignment_is_checked_for_user_accesses_if_both_bits_ask_for_it() {
        // MOV EAX, [EDI]; MOV [EDI], AX; ADD [EDI], AL.
        let codes: [(&[u8], u64); 3] = [
            (&[0x8b, 0x07], 4),
            (&[0x66, 0x89, 0x07], 2),
            (&[0, 0x07], 1),
        ];
        type Row = (fn(Cpu) -> Cpu, Rflags, Cr0, bool);
        let rows: [Row; 5] = [
            (user, Rflags::AC, Cr0::AM, true),
            (|c| c, Rflags::AC, Cr0::AM, false),
            (user, Rflags::empty(), Cr0::AM, false),
            (user, Rflags::AC, Cr0::empty(), false),
            (user, Rflags::AC | Rflags::STATUS, Cr0::AM, true),
        ];
        for (privilege, flags, am, is_checked) in rows {
            for (code, bytes) in codes {
                for offset in 0..4 {
                    let mut cpu = privilege(protected_mode());
                    cpu.set_rflags(flags);
                    cpu.state.cr0 |= am;
                    cpu.gpr[7] = DATA + offset;
                    let expected = if is_checked && offset % bytes != 0 {
                        AC
                    } else {
                        Ok(())
                    };
                    assert_eq!(execute(&mut cpu, code), expected, "{offset} {bytes}");
                }
            }
        }
    }

    #[test]
    fn a_page_fault_comes_before_an_alignment_check() {
        let mut cpu = user(long_mode());
        cpu.set_rflags(Rflags::AC);
        cpu.state.cr0 |= Cr0::AM;
        cpu.gpr[7] = (1 << 40) + 1;
        let result = execute(&mut cpu, &[0x8b, 0x07]);
        assert_eq!(result, Err(Exception::pf(4, (1 << 40) + 1).into()));
    }
}
