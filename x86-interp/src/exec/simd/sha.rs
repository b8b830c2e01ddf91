//! SHA-1 and SHA-256 (SDM Vol. 1, "Intel SHA Extensions"; FIPS 180-4).
//!
//! The functions follow the "Operation" sections of SDM Vol. 2; element 3 of a register, the
//! highest, is the first word of a block.

use iced_x86::{Code, Mnemonic};

use super::lanes::{build, get};
use super::vector::Faults;
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// A handler: operand 0 becomes a function of both operands.
macro_rules! two {
    ($f:expr) => {{
        fn handler(cpu: &mut Cpu, insn: &Insn) -> Exec {
            cpu.lane_by_lane(insn, 16, Faults::Whole, |a, b, _| $f(a, b))
        }
        handler as Plain
    }};
}

/// Returns who executes an instruction of this file.
pub(crate) fn lookup(code: Code) -> Option<Row> {
    use Mnemonic as M;
    let handler: Plain = match code.mnemonic() {
        M::Sha1rnds4 => sha1rnds4,
        M::Sha1nexte => two!(sha1nexte),
        M::Sha1msg1 => two!(sha1msg1),
        M::Sha1msg2 => two!(sha1msg2),
        M::Sha256rnds2 => sha256rnds2,
        M::Sha256msg1 => two!(sha256msg1),
        M::Sha256msg2 => two!(sha256msg2),
        _ => return None,
    };
    plain(handler)
}

/// Returns the elements, the lowest first.
fn words(value: u128) -> [u32; 4] {
    core::array::from_fn(|n| get(value, n as u32))
}

/// Makes a value of elements, the lowest first.
fn value(words: [u32; 4]) -> u128 {
    build(4, |n| words[n as usize])
}

const fn choose(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ !x & z
}

const fn parity(x: u32, y: u32, z: u32) -> u32 {
    x ^ y ^ z
}

const fn majority(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ x & z ^ y & z
}

/// A function of three words of a round.
type Round = fn(u32, u32, u32) -> u32;

/// The logical functions and constants of SHA-1, by the immediate's low bits.
const SHA1: [(Round, u32); 4] = [
    (choose, 0x5a82_7999),
    (parity, 0x6ed9_eba1),
    (majority, 0x8f1b_bcdc),
    (parity, 0xca62_c1d6),
];

/// SHA1RNDS4: four rounds; E is already added to the first message word.
fn sha1rnds4(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (f, k) = SHA1[usize::from(insn.immediate_byte() & 3)];
    cpu.lane_by_lane(insn, 16, Faults::Whole, |state, message, _| {
        let [d, c, b, a] = words(state);
        let message = words(message);
        let mut state = [a, b, c, d, 0];
        for round in 0..4 {
            let [a, b, c, d, e] = state;
            let next = f(b, c, d)
                .wrapping_add(a.rotate_left(5))
                .wrapping_add(message[3 - round])
                .wrapping_add(e)
                .wrapping_add(k);
            state = [next, a, b.rotate_left(30), c, d];
        }
        let [a, b, c, d, _] = state;
        value([d, c, b, a])
    })
}

fn sha1nexte(a: u128, b: u128) -> u128 {
    let e = words(a)[3].rotate_left(30);
    let [w0, w1, w2, w3] = words(b);
    value([w0, w1, w2, w3.wrapping_add(e)])
}

fn sha1msg1(a: u128, b: u128) -> u128 {
    let [w3, w2, w1, w0] = words(a);
    let [_, _, w5, w4] = words(b);
    value([w5 ^ w3, w4 ^ w2, w3 ^ w1, w2 ^ w0])
}

fn sha1msg2(a: u128, b: u128) -> u128 {
    let [a3, a2, a1, a0] = words(a);
    let [w15, w14, w13, _] = words(b);
    let w16 = (a0 ^ w13).rotate_left(1);
    let w17 = (a1 ^ w14).rotate_left(1);
    let w18 = (a2 ^ w15).rotate_left(1);
    let w19 = (a3 ^ w16).rotate_left(1);
    value([w19, w18, w17, w16])
}

/// SHA256RNDS2: two rounds; the message words with their constants are in XMM0.
fn sha256rnds2(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let message = words(cpu.fpu.lanes(0)[0]);
    cpu.lane_by_lane(insn, 16, Faults::Whole, |cdgh, abef, _| {
        let [h, g, d, c] = words(cdgh);
        let [f, e, b, a] = words(abef);
        let mut state = [a, b, c, d, e, f, g, h];
        for word in &message[..2] {
            let [a, b, c, d, e, f, g, h] = state;
            let sum_1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let sum_0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t1 = choose(e, f, g)
                .wrapping_add(sum_1)
                .wrapping_add(*word)
                .wrapping_add(h);
            let t2 = majority(a, b, c).wrapping_add(sum_0);
            state = [t1.wrapping_add(t2), a, b, c, d.wrapping_add(t1), e, f, g];
        }
        let [a, b, _, _, e, f, ..] = state;
        value([f, e, b, a])
    })
}

fn sha256msg1(a: u128, b: u128) -> u128 {
    let small = |w: u32| w.rotate_right(7) ^ w.rotate_right(18) ^ w >> 3;
    let [w0, w1, w2, w3] = words(a);
    let w4 = words(b)[0];
    value([
        w0.wrapping_add(small(w1)),
        w1.wrapping_add(small(w2)),
        w2.wrapping_add(small(w3)),
        w3.wrapping_add(small(w4)),
    ])
}

fn sha256msg2(a: u128, b: u128) -> u128 {
    let small = |w: u32| w.rotate_right(17) ^ w.rotate_right(19) ^ w >> 10;
    let [a0, a1, a2, a3] = words(a);
    let [_, _, w14, w15] = words(b);
    let w16 = a0.wrapping_add(small(w14));
    let w17 = a1.wrapping_add(small(w15));
    let w18 = a2.wrapping_add(small(w16));
    let w19 = a3.wrapping_add(small(w17));
    value([w16, w17, w18, w19])
}
