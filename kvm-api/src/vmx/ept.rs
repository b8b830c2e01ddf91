//! The VM's EPT paging structures: built page by page as the guest touches memory, taken down
//! when a slot changes (SDM Vol. 3C, "The Extended Page Table Mechanism (EPT)").

use crate::errno::Result;
use crate::host::Host;
use std::sync::Arc;
use vmx_model::addr::{Gpa, Hpa};

/// Read, write, execute.
const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
/// Memory type WB in bits 5:3 of a leaf, and "ignore PAT".
const WRITE_BACK: u64 = 6 << 3;
const IGNORE_PAT: u64 = 1 << 6;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const LEVELS: u32 = 4;

/// Whether a page may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writable {
    Yes,
    No,
}

/// The paging structures of one VM; all its vCPUs share them.
#[derive(Debug)]
pub(crate) struct EptTables {
    host: Arc<Host>,
    root: Hpa,
    /// Every page below the root.
    tables: Vec<Hpa>,
}

impl EptTables {
    /// Makes structures that map nothing.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn new(host: Arc<Host>) -> Result<Self> {
        let root = host.alloc_page()?;
        Ok(Self {
            host,
            root,
            tables: Vec::new(),
        })
    }

    /// Returns the EPT pointer: four levels, write-back, no accessed and dirty flags.
    pub(crate) fn pointer(&self) -> u64 {
        self.root.0 | u64::from(LEVELS - 1) << 3 | 6
    }

    /// Maps a guest page.
    ///
    /// # Errors
    /// ENOMEM.
    pub(crate) fn map(&mut self, gpa: Gpa, hpa: Hpa, writable: Writable) -> Result<()> {
        let mut table = self.root;
        for level in (2..=LEVELS).rev() {
            let at = entry_address(table, gpa, level);
            let entry = self.read(at);
            table = if entry & (READ | WRITE | EXECUTE) == 0 {
                let new = self.host.alloc_page()?;
                self.tables.push(new);
                self.write(at, new.0 | READ | WRITE | EXECUTE);
                new
            } else {
                Hpa(entry & ADDRESS)
            };
        }
        let write = if writable == Writable::Yes { WRITE } else { 0 };
        let leaf = hpa.page().0 | READ | write | EXECUTE | WRITE_BACK | IGNORE_PAT;
        self.write(entry_address(table, gpa, 1), leaf);
        Ok(())
    }

    /// Takes the write permission of a page away, if it is mapped.
    pub(crate) fn write_protect(&mut self, gpa: Gpa) {
        let mut table = self.root;
        for level in (1..=LEVELS).rev() {
            let at = entry_address(table, gpa, level);
            let entry = self.read(at);
            if entry & (READ | WRITE | EXECUTE) == 0 {
                return;
            }
            if level == 1 {
                self.write(at, entry & !WRITE);
            }
            table = Hpa(entry & ADDRESS);
        }
    }

    /// Unmaps everything. No processor is in the guest, and each invalidates its translations
    /// before it enters again.
    pub(crate) fn clear(&mut self) {
        self.host.memory().write_bytes(self.root, &[0; 4096]);
        for table in self.tables.drain(..) {
            self.host.free_page(table);
        }
    }

    fn read(&self, at: Hpa) -> u64 {
        let mut bytes = [0; 8];
        self.host.memory().read_bytes(at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write(&self, at: Hpa, entry: u64) {
        self.host.memory().write_bytes(at, &entry.to_le_bytes());
    }
}

impl Drop for EptTables {
    fn drop(&mut self) {
        self.clear();
        self.host.free_page(self.root);
    }
}

const fn entry_address(table: Hpa, gpa: Gpa, level: u32) -> Hpa {
    let index = gpa.0 >> (12 + 9 * (level - 1)) & 0x1ff;
    Hpa(table.0 + 8 * index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(ept: &EptTables, gpa: Gpa) -> u64 {
        (1..=LEVELS).rev().fold(ept.root.0, |entry, level| {
            if entry == 0 {
                0
            } else {
                ept.read(entry_address(Hpa(entry & ADDRESS), gpa, level))
            }
        })
    }

    #[test]
    fn pages_are_mapped_protected_and_cleared() {
        let mut ept = EptTables::new(Host::of_process()).expect("a page");
        let (gpa, hpa) = (Gpa(0x1234_5678_9000), Hpa(0x100_0000_0000));
        assert_eq!(walk(&ept, gpa), 0);
        ept.map(gpa, hpa, Writable::Yes).expect("pages");
        assert_eq!(walk(&ept, gpa), hpa.0 | 0x77);
        assert_eq!(walk(&ept, Gpa(gpa.0 + 0x1000)), 0);
        ept.write_protect(gpa);
        assert_eq!(walk(&ept, gpa), hpa.0 | 0x75);
        ept.clear();
        assert_eq!(walk(&ept, gpa), 0);
        assert_eq!(ept.pointer() & 0xfff, 0x1e);
    }
}
