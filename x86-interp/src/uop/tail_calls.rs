//! The guard of tail dispatch: that every hot handler goes on by a jump is the optimiser's choice,
//! so it is tested.
#![cfg(tail_dispatch)]

use iced_x86::code_asm::*;

use crate::Stop;
use crate::run::tests::{Bits, CODE, processor};

/// Ten million iterations of linked blocks, with calls and returns, on a small stack: were one
/// handler to call the next, the stack would overflow.
#[test]
fn a_long_loop_needs_no_stack() {
    let mut a = CodeAssembler::new(64).expect("a known bitness");
    let mut top = a.create_label();
    let mut function = a.create_label();
    let mut assemble = || {
        a.mov(ecx, 10_000_000)?;
        a.set_label(&mut top)?;
        a.add(rax, rcx)?;
        a.call(function)?;
        a.mov(qword_ptr(0x8000), rax)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()?;
        a.set_label(&mut function)?;
        a.xor(rdx, rax)?;
        a.ret()
    };
    assemble().expect("valid instructions");
    let code = a.assemble(CODE).expect("encodable");
    let run = move || {
        let mut cpu = Box::new(processor(Bits::Long64, 64, &code));
        assert_eq!(cpu.run(1_000_000_000), Stop::Halt);
        assert_eq!(cpu.retired(), 2 + 7 * 10_000_000);
        assert_eq!(cpu.general_registers()[0], 10_000_000 * 10_000_001 / 2);
    };
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(run);
    thread.expect("a thread").join().expect("no overflow");
}

/// Disassembles every handler: none may hold an indirect call.
#[cfg(target_arch = "x86_64")]
mod disassembly {
    use std::collections::HashSet;

    use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic};

    use crate::uop::{Handler, alu, branch, moves, plain, stack};

    fn handlers() -> Vec<Handler> {
        let mut all: Vec<Handler> = Vec::new();
        for table in [alu::RR, alu::RR_DEAD, alu::RI, alu::RI_DEAD] {
            all.extend(table.iter().flatten());
        }
        for table in [alu::RM, alu::MR, alu::MI] {
            all.extend(table.iter().flatten().flatten());
        }
        for table in [alu::UNARY_R, alu::UNARY_R_DEAD] {
            all.extend(table.iter().flatten());
        }
        all.extend(alu::UNARY_M.iter().flatten().flatten());
        for table in [alu::SHIFT_I, alu::SHIFT_I_DEAD, alu::SHIFT_CL] {
            all.extend(table.iter().flatten());
        }
        for table in [moves::MOV_RM, moves::MOV_MR, moves::MOV_MI, moves::LEA] {
            all.extend(table.iter().flatten());
        }
        for row in [
            alu::IMUL_RR,
            alu::IMUL_RI,
            moves::MOV_RR,
            moves::MOV_RI,
            moves::XCHG_RR,
            stack::EXTEND_A,
            stack::SIGN_D,
        ] {
            all.extend(row);
        }
        all.extend(moves::EXTEND_R.iter().flatten().flatten());
        all.extend(moves::EXTEND_M.iter().flatten().flatten().flatten());
        all.extend(moves::SETCC);
        all.extend(moves::CMOVCC.iter().flatten());
        all.extend(branch::JCC);
        all.extend(branch::FUSED_RR.iter().flatten().flatten());
        all.extend(branch::FUSED_RI.iter().flatten().flatten());
        all.extend(branch::JUMP_R);
        all.extend(branch::JUMP_M.iter().flatten());
        for table in [
            branch::CALL,
            branch::CALL_R,
            branch::RET,
            stack::PUSH_R,
            stack::PUSH_I,
            stack::POP_R,
            stack::LEAVE,
        ] {
            all.extend(table.iter().flatten());
        }
        all.extend([
            moves::segment_64 as Handler,
            moves::segmented,
            branch::jump,
            plain::plain,
            plain::plain_end,
            plain::bail,
        ]);
        all.extend(crate::uop::bmi::handlers());
        all.extend(crate::uop::simd::handlers());
        all.extend(crate::uop::x87::handlers());
        all
    }

    /// Returns the address of an indirect call in the code that can be reached from `entry`
    /// without passing a call or an indirect jump.
    fn indirect_call(entry: u64, seen: &mut HashSet<u64>) -> Option<u64> {
        let mut open = vec![entry];
        while let Some(start) = open.pop() {
            let mut at = start;
            let mut is_behind_call = false;
            while !seen.contains(&at) {
                // SAFETY: control flow reaches `at`, so an instruction lies there; what follows it
                // in the text section is mapped as well.
                let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, 15) };
                let i = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE).decode();
                // A call that does not return ends a function; the next one begins at a multiple of
                // 16 and saves registers first, which no code behind a call does. It is not
                // reached from here.
                if is_behind_call && at % 16 == 0 && i.mnemonic() == Mnemonic::Push {
                    break;
                }
                seen.insert(at);
                is_behind_call = i.is_call_near() || i.is_call_near_indirect();
                match i.flow_control() {
                    // Through the global offset table: the target is fixed.
                    FlowControl::IndirectCall if i.is_ip_rel_memory_operand() => {}
                    FlowControl::IndirectCall => return Some(at),
                    FlowControl::ConditionalBranch => open.push(i.near_branch_target()),
                    FlowControl::UnconditionalBranch => {
                        open.push(i.near_branch_target());
                        break;
                    }
                    FlowControl::Next | FlowControl::Call => {}
                    _ => break,
                }
                at = i.next_ip();
            }
        }
        None
    }

    #[test]
    fn no_handler_holds_an_indirect_call() {
        let handlers = handlers();
        assert!(handlers.len() > 1000, "{}", handlers.len());
        let mut seen = HashSet::new();
        let found: Vec<_> = handlers
            .iter()
            .enumerate()
            .filter_map(|(n, &h)| indirect_call(h as usize as u64, &mut seen).map(|at| (n, at)))
            .collect();
        assert!(found.is_empty(), "handlers by number: {found:x?}");
    }

    #[test]
    fn an_indirect_call_would_be_found() {
        fn calls(f: fn(u64) -> u64, x: u64) -> u64 {
            std::hint::black_box(f(std::hint::black_box(x))) + 1
        }
        let entry = calls as fn(fn(u64) -> u64, u64) -> u64;
        let found = indirect_call(entry as usize as u64, &mut HashSet::new());
        assert!(found.is_some());
    }
}
