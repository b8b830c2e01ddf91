//! Which descriptor is which object, and how long an object lives.
//!
//! The kernel counts references of files; we see a descriptor only when it comes to us. So an
//! object is held here from its creation until no descriptor of this process names its memory
//! file and no mapping but ours shows it. That is looked up in `/proc/self` by [`sweep`], at each
//! `close` that passes through [`crate::abi::close`] and before a new VM is made. A descriptor
//! that is only in flight (`SCM_RIGHTS`) or in another process does not hold an object.

use crate::fd::{self, Backing, FileId};
use crate::mm::{self, MmId};
use crate::system::Kvm;
use crate::vcpu::Vcpu;
use crate::vm::Vm;
use crate::watch::{self, Moment, TRUSTED_USES};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::RawFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard, Weak};

/// What a descriptor names.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    /// `/dev/kvm`.
    System(Arc<Kvm>),
    /// A VM.
    Vm(Arc<Vm>),
    /// A vCPU, which holds its VM.
    Vcpu(Arc<Vcpu>),
    /// A VM or a vCPU of another program, or of this process before `exec`.
    Stranger,
}

/// An object and the address space that made it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) object: Object,
    pub(crate) owner: MmId,
}

type Registry = BTreeMap<FileId, Entry>;

static REGISTRY: RwLock<Registry> = RwLock::new(BTreeMap::new());

fn registry() -> RwLockWriteGuard<'static, Registry> {
    REGISTRY.write().unwrap_or_else(PoisonError::into_inner)
}

fn find(id: FileId) -> Option<Entry> {
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    registry.get(&id).cloned()
}

/// Enters an object made by the current address space.
pub(crate) fn insert(id: FileId, object: Object) {
    fork::guard();
    registry().insert(
        id,
        Entry {
            object,
            owner: mm::current(),
        },
    );
}

thread_local! {
    /// The vCPU that this thread has used last.
    static LAST_VCPU: RefCell<Option<LastVcpu>> = const { RefCell::new(None) };
}

struct LastVcpu {
    descriptor: RawFd,
    vcpu: Weak<Vcpu>,
    owner: MmId,
    /// When it was found that the descriptor names the vCPU, and how often that was believed.
    seen: Moment,
    uses: u32,
}

/// As [`lookup`], but may go by what this thread has found out before: for requests that only
/// descriptors of ours know.
pub(crate) fn lookup_again(descriptor: RawFd) -> Option<Entry> {
    last_vcpu(descriptor).or_else(|| {
        let seen = watch::now();
        let entry = lookup(descriptor)?;
        if let (Some(seen), Object::Vcpu(vcpu)) = (seen, &entry.object) {
            let last = LastVcpu {
                descriptor,
                vcpu: Arc::downgrade(vcpu),
                owner: entry.owner,
                seen,
                uses: 0,
            };
            // It is gone when the thread is about to end.
            let _ = LAST_VCPU.try_with(|of_thread| of_thread.replace(Some(last)));
        }
        Some(entry)
    })
}

fn last_vcpu(descriptor: RawFd) -> Option<Entry> {
    let now = watch::now()?;
    let of_thread = LAST_VCPU.try_with(|last| {
        let mut last = last.borrow_mut();
        let last = last.as_mut()?;
        last.uses += 1;
        let is_same = last.descriptor == descriptor && last.seen == now;
        if !is_same || last.uses > TRUSTED_USES {
            return None;
        }
        Some(Entry {
            object: Object::Vcpu(last.vcpu.upgrade()?),
            owner: last.owner,
        })
    });
    of_thread.ok().flatten()
}

/// Returns the object that a descriptor names.
pub(crate) fn lookup(descriptor: RawFd) -> Option<Entry> {
    if let Some(entry) = fd::marked_identity(descriptor).and_then(find) {
        return Some(entry);
    }
    let is_marked = fd::marked_identity(descriptor).is_some();
    let id = fd::identity(descriptor)?;
    match find(id) {
        None if is_marked => meet_stranger(descriptor, id),
        None => None,
        Some(entry) => {
            fd::mark(descriptor, id);
            Some(entry)
        }
    }
}

/// Returns what a marked descriptor names that is not in the registry: it came by `exec` or through
/// a socket. The system is everybody's; other objects belong to the address space that made them.
fn meet_stranger(descriptor: RawFd, id: FileId) -> Option<Entry> {
    let file = std::fs::read_link(format!("/proc/self/fd/{descriptor}")).ok()?;
    let name = file.to_str()?.strip_prefix("/memfd:")?;
    if name.strip_suffix(" (deleted)")? == SYSTEM_NAME {
        let backing = Backing::adopt(descriptor, id).ok()?;
        insert(id, Object::System(Arc::new(Kvm::with_backing(backing))));
        fd::mark(descriptor, id);
        return find(id);
    }
    name.starts_with(OBJECT_NAMES).then_some(Entry {
        object: Object::Stranger,
        owner: MmId::NOBODY,
    })
}

/// The name of the system's memory file.
const SYSTEM_NAME: &str = "kvm";
/// How the names of those of VMs and vCPUs begin.
const OBJECT_NAMES: &str = "kvm-v";

/// As [`lookup`], in a signal handler that may have interrupted a holder of the lock: then the
/// answer is no.
pub(crate) fn is_known_at_once(descriptor: RawFd) -> bool {
    let Some(id) = fd::identity(descriptor) else {
        return false;
    };
    match REGISTRY.try_read() {
        Ok(registry) => registry.contains_key(&id),
        Err(_) => false,
    }
}

/// Lets go of every object that no descriptor and no mapping of this process names any more.
pub(crate) fn sweep() {
    // Only what is entered before the look at `/proc` can be missed by it and be dead: another
    // thread may be making objects meanwhile. A second look tells what was only being moved (`dup`
    // to a number that the first had passed, then `close`).
    let mut dead: Vec<FileId> = registry().keys().copied().collect();
    for _ in 0..2 {
        if dead.is_empty() {
            return;
        }
        let Some(used) = files_in_use() else { return };
        dead.retain(|id| !used.contains(id));
    }
    let dead: Vec<Entry> = {
        let mut registry = registry();
        dead.iter().filter_map(|id| registry.remove(id)).collect()
    };
    // Dropped outside the lock: a VM that ends runs VMCLEAR and VMXOFF.
    drop(dead);
}

/// Returns the files that are open or, more than once, mapped; nothing if `/proc` is not there.
fn files_in_use() -> Option<HashSet<FileId>> {
    let mut used: HashSet<FileId> = std::fs::read_dir("/proc/self/fd")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(fd::identity)
        .collect();
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut mapped: HashMap<FileId, u32> = HashMap::new();
    for id in maps.lines().filter_map(file_of_mapping) {
        *mapped.entry(id).or_default() += 1;
    }
    used.extend(
        mapped
            .into_iter()
            .filter(|(_, count)| *count > 1)
            .map(|(id, _)| id),
    );
    Some(used)
}

/// Parses device and inode from a line of `/proc/self/maps` (`start-end perms offset dev inode`).
fn file_of_mapping(line: &str) -> Option<FileId> {
    let mut words = line.split_ascii_whitespace().skip(3);
    let (major, minor) = words.next()?.split_once(':')?;
    let (major, minor) = (
        u32::from_str_radix(major, 16).ok()?,
        u32::from_str_radix(minor, 16).ok()?,
    );
    Some(FileId {
        device: libc::makedev(major, minor),
        inode: words.next()?.parse().ok()?,
    })
}

/// Keeps the registry usable in a forked child: no other thread holds its lock at the fork.
mod fork {
    #![expect(unsafe_code, reason = "pthread_atfork")]
    use super::{Registry, RwLockWriteGuard, registry};
    use std::cell::RefCell;
    use std::sync::Once;

    thread_local! {
        static HELD: RefCell<Option<RwLockWriteGuard<'static, Registry>>> = const { RefCell::new(None) };
    }

    extern "C" fn prepare() {
        let guard = registry();
        HELD.with_borrow_mut(|held| *held = Some(guard));
    }

    extern "C" fn release() {
        HELD.with_borrow_mut(Option::take);
    }

    /// Sets the handlers up, once.
    pub(super) fn guard() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: the handlers live as long as the process and do not unwind. If there is no
            // memory for them, a fork at a bad moment can leave the child's registry locked.
            unsafe { libc::pthread_atfork(Some(prepare), Some(release), Some(release)) };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_parsed() {
        let line = "7f0c8a000000-7f0c8a003000 rw-s 00000000 00:01 1234    /memfd:kvm (deleted)";
        let id = file_of_mapping(line).expect("a file");
        assert_eq!(
            id,
            FileId {
                device: libc::makedev(0, 1),
                inode: 1234
            }
        );
        assert_eq!(file_of_mapping("nonsense"), None);
    }
}
