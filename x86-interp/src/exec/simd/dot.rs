//! Dot products.
//!
//! SDM Vol. 2, "DPPS", "DPPD": products where bits 7:4 of the immediate say so, otherwise +0.0; their
//! sum, neighbours first, goes where bits 3:0 say so. Each step rounds, and an unmasked exception
//! in one keeps the next from being computed.

use iced_x86::{Code, Mnemonic};

use super::arithmetic::{add, multiply};
use super::binary::{Element, Env, under};
use super::lanes::get;
use super::under_mxcsr::{Rounded, map_lanes};
use super::vector::{Elements, Faults, Value, is_vector_form};
use crate::exec::Row;
use crate::exec::form::plain;
use crate::insn::{Insn, Plain};
use crate::{Cpu, Exec};

/// Returns who executes an instruction of this file.
pub(super) fn lookup(code: Code) -> Option<Row> {
    if !is_vector_form(code) {
        return None;
    }
    plain(match code.mnemonic() {
        Mnemonic::Dpps | Mnemonic::Vdpps => dot::<u32> as Plain,
        Mnemonic::Dppd | Mnemonic::Vdppd => dot::<u64>,
        _ => return None,
    })
}

fn dot<E: Element>(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_vector(insn)?;
    let elements = Elements::of(insn, E::BITS as usize / 8);
    let b = cpu.read_vector(insn, insn.last_source(), elements, Faults::Whole)?;
    let a = cpu.register_lanes(insn, insn.first_source());
    let immediate = insn.immediate_byte();
    let count = 128 / E::BITS;
    let mut terms = step::<E>(cpu, insn, [a, b], |[a, b], n, env| {
        match immediate >> (4 + n) & 1 {
            0 => 0,
            _ => multiply(
                E::FORMAT,
                get::<E>(a, n).widen(),
                get::<E>(b, n).widen(),
                env,
            ),
        }
    })?;
    let mut distance = 1;
    while distance < count {
        terms = step::<E>(cpu, insn, [terms; 2], |[terms, _], n, env| {
            let first = n / (2 * distance) * 2 * distance;
            let [x, y] = [first, first + distance].map(|n| get::<E>(terms, n).widen());
            add(E::FORMAT, x, y, env)
        })?;
        distance *= 2;
    }
    let value = map_lanes(insn.lane_count(), |lane| {
        let sum = u128::from(get::<E>(terms[lane], 0).widen());
        let places = (0..count).filter(|n| immediate >> n & 1 != 0);
        places.fold(0, |all, n| all | sum << (n * E::BITS))
    });
    cpu.write_vector(insn, value, elements)
}

/// Computes each element of each lane from two vectors, and raises what is unmasked.
fn step<E: Element>(
    cpu: &mut Cpu,
    insn: &Insn,
    [a, b]: [Value; 2],
    f: impl Fn([u128; 2], u32, &mut Env) -> u64,
) -> Exec<Value> {
    let rounded = match E::BITS {
        32 => Rounded::Single,
        _ => Rounded::Double,
    };
    let bytes = usize::from(insn.vector.bytes);
    let has_denormal = |value: &Value| rounded.has_denormal(value, bytes);
    cpu.compute(&insn.vector, has_denormal, |mxcsr| {
        map_lanes(insn.lane_count(), |lane| {
            under(mxcsr, |env| {
                (0..128 / E::BITS).fold(0, |all, n| {
                    let element = f([a[lane], b[lane]], n, env);
                    all | u128::from(element) << (n * E::BITS)
                })
            })
        })
    })
}
