//! Descriptors and vCPUs across processes, threads and sockets: api.rst, "General description".
#![allow(unsafe_code, reason = "fork, and descriptors in messages")]

mod common;

use common::Guest;
use kvm_api::uapi::{
    KVM_CHECK_EXTENSION, KVM_CREATE_VCPU, KVM_CREATE_VM, KVM_GET_API_VERSION, KVM_RUN,
};
use kvm_api::{Errno, abi};
use kvm_bindings::KVM_EXIT_IO;
use std::os::fd::RawFd;

const USER_MEMORY: u64 = 3;

fn fd(system: RawFd, request: u32) -> RawFd {
    let answer = abi::ioctl(system, request, 0).expect("it is ours");
    RawFd::try_from(answer.expect("a descriptor")).expect("a small number")
}

/// Runs `check` in a forked child; whether it was true there.
fn holds_in_child(check: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child answers and leaves at once.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(i32::from(!check()));
        }
        let mut status = -1;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        status == 0
    }
}

#[test]
fn a_forked_child_gets_eio_from_its_parents_vm() {
    let system = abi::open_system().expect("a descriptor");
    let vm = fd(system, KVM_CREATE_VM);
    let vcpu = fd(vm, KVM_CREATE_VCPU);
    let eio = Some(Err(Errno::EIO));
    assert!(holds_in_child(|| {
        abi::ioctl(vm, KVM_CHECK_EXTENSION, USER_MEMORY) == eio
            && abi::ioctl(vcpu, KVM_RUN, 0) == eio
            && abi::ioctl(vcpu, u32::MAX, 0) == eio
            && abi::ioctl(system, KVM_GET_API_VERSION, 0) == Some(Ok(12))
    }));
    let here = abi::ioctl(vm, KVM_CHECK_EXTENSION, USER_MEMORY);
    assert_eq!(here, Some(Ok(1)), "the parent has lost nothing");
}

#[test]
fn a_vcpu_runs_on_one_thread_after_another() {
    // inc ax; out 0x10, ax; jmp
    let guest = Guest::new(&[0x40, 0xe7, 0x10, 0xeb, 0xfb]);
    for round in 1..=4 {
        let vcpu = guest.vcpu.clone();
        let thread = std::thread::spawn(move || vcpu.run());
        assert_eq!(thread.join().expect("no panic"), Ok(()));
        assert_eq!(guest.page::<u32>(8), KVM_EXIT_IO);
        assert_eq!(guest.regs().rax, round);
    }
}

/// Sends a descriptor through a socket to this process.
fn through_a_socket(descriptor: RawFd) -> RawFd {
    let mut pair = [0; 2];
    let mut byte = [0_u8];
    let mut control = [0_u64; 8];
    // SAFETY: the buffers outlive the calls; the control buffer has room for one descriptor.
    unsafe {
        let made = libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr());
        assert_eq!(made, 0);
        let mut vector = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut message: libc::msghdr = core::mem::zeroed();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<RawFd>().write(descriptor);
        assert_eq!(libc::sendmsg(pair[0], &raw const message, 0), 1);
        libc::CMSG_DATA(header).cast::<RawFd>().write(-1);
        assert_eq!(libc::recvmsg(pair[1], &raw mut message, 0), 1);
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        let received = libc::CMSG_DATA(header).cast::<RawFd>().read();
        libc::close(pair[0]);
        libc::close(pair[1]);
        received
    }
}

#[test]
fn a_descriptor_from_a_socket_names_the_same_vm() {
    let system = abi::open_system().expect("a descriptor");
    let vm = fd(system, KVM_CREATE_VM);
    let again = through_a_socket(vm);
    assert_ne!(again, vm);
    abi::close(vm).expect("it is open");
    let vcpu = fd(again, KVM_CREATE_VCPU);
    let twice = abi::ioctl(again, KVM_CREATE_VCPU, 0);
    assert_eq!(twice, Some(Err(Errno::EEXIST)));
    for open in [vcpu, again, system] {
        abi::close(open).expect("it is open");
    }
}

/// Asks a vCPU for its registers when the thread has ended all but this.
struct AsksAtTheEnd(std::sync::Arc<kvm_api::Vcpu>, std::sync::mpsc::Sender<bool>);

impl Drop for AsksAtTheEnd {
    fn drop(&mut self) {
        let _ = self
            .1
            .send(self.0.run().is_ok() && self.0.get_regs().is_ok());
    }
}

thread_local! {
    static LAST: std::cell::RefCell<Option<AsksAtTheEnd>> = const { std::cell::RefCell::new(None) };
}

#[test]
fn a_thread_that_ends_can_still_use_a_vcpu_and_leaves_it_to_others() {
    // inc ax; out 0x10, ax; jmp
    let guest = Guest::new(&[0x40, 0xe7, 0x10, 0xeb, 0xfb]);
    let (sender, receiver) = std::sync::mpsc::channel();
    let vcpu = guest.vcpu.clone();
    let thread = std::thread::spawn(move || {
        // Its destructor runs after that of the thread's processor, which is registered later.
        LAST.set(Some(AsksAtTheEnd(vcpu.clone(), sender)));
        vcpu.run()
    });
    assert_eq!(thread.join().expect("no panic"), Ok(()));
    assert_eq!(receiver.recv(), Ok(true));
    guest.vcpu.run().expect("it runs here too");
    assert_eq!(guest.regs().rax, 3);
}
