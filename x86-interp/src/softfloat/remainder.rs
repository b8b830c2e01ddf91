//! FPREM, FPREM1, FSCALE, FXTRACT.

use super::{
    BIAS, Class, Env, F80, Finite, Out, Rounding, convert, denormals, flag, round_pack, special,
    special_one,
};

/// A remainder, or a step towards it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remainder {
    pub(crate) out: Out,
    /// The reduction is not complete: C2.
    pub(crate) is_partial: bool,
    /// The lowest bits of the quotient, where it is complete.
    pub(crate) quotient: u8,
}

/// The remainder of `a / b`: the quotient rounded to nearest (FPREM1), or toward zero (FPREM).
pub(crate) fn remainder(a: F80, b: F80, is_nearest: bool, env: &Env) -> Remainder {
    let complete = |out| Remainder {
        out,
        is_partial: false,
        quotient: 0,
    };
    if let Some(out) = special(a, b) {
        return complete(out);
    }
    let flags = denormals(&[a, b]);
    match (a.class(), b.class()) {
        (Class::Infinity, _) | (_, Class::Zero) => return complete(Out::INVALID),
        (Class::Zero, _) => return complete(Out::exact(a).with(flags)),
        (_, Class::Infinity) => {
            // The value itself; a denormal stays one.
            let a = a.unpack();
            let significand = u128::from(a.significand) << 64;
            let out = round_pack(a.sign, a.exponent, significand, &env.full());
            return complete(out.with(flags));
        }
        _ => {}
    }
    let mut answer = reduce(a.unpack(), b.unpack(), is_nearest, env);
    answer.out.flags |= flags;
    answer
}

/// Steps of a partial reduction: as many as the exponents' distance tells, 32 to 63.
fn reduce(a: Finite, b: Finite, is_nearest: bool, env: &Env) -> Remainder {
    let distance = a.exponent - b.exponent;
    let pack = |sign, exponent: i32, rest: u128| {
        if rest == 0 {
            return Out::exact(F80::zero(a.sign));
        }
        // `rest` is an integer of 65 bits at most, in units of the divisor's lowest bit.
        let shift = rest.leading_zeros();
        let exponent = exponent + 64 - shift as i32;
        round_pack(sign, exponent, rest << shift, &env.full())
    };
    let divisor = u128::from(b.significand);
    if distance >= 64 {
        let steps = distance & 0x1f | 0x20;
        let rest = (u128::from(a.significand) << steps) % divisor;
        let exponent = a.exponent - steps;
        return Remainder {
            out: pack(a.sign, exponent, rest),
            is_partial: true,
            quotient: 0,
        };
    }
    if distance < -1 || distance < 0 && !is_nearest {
        let significand = u128::from(a.significand) << 64;
        let out = round_pack(a.sign, a.exponent, significand, &env.full());
        return Remainder {
            out,
            is_partial: false,
            quotient: 0,
        };
    }
    if distance == -1 {
        return below_divisor(a, b, env, &pack);
    }
    let dividend = u128::from(a.significand) << distance;
    let (mut quotient, rest) = (dividend / divisor, dividend % divisor);
    let mut out = pack(a.sign, b.exponent, rest);
    if is_nearest {
        let twice = rest << 1;
        if twice > divisor || twice == divisor && quotient & 1 != 0 {
            quotient += 1;
            out = pack(!a.sign, b.exponent, divisor - rest);
        }
    }
    Remainder {
        out,
        is_partial: false,
        quotient: (quotient & 7) as u8,
    }
}

/// FPREM1 of a number between one quarter and one of the divisor: the quotient is 0 or 1.
fn below_divisor(
    a: Finite,
    b: Finite,
    env: &Env,
    pack: &dyn Fn(bool, i32, u128) -> Out,
) -> Remainder {
    // In units of half the divisor's lowest bit: a / 2 against b.
    let (number, divisor) = (u128::from(a.significand), u128::from(b.significand) << 1);
    if 2 * number > divisor {
        return Remainder {
            out: pack(!a.sign, b.exponent - 1, divisor - number),
            is_partial: false,
            quotient: 1,
        };
    }
    let significand = number << 64;
    Remainder {
        out: round_pack(a.sign, a.exponent, significand, &env.full()),
        is_partial: false,
        quotient: 0,
    }
}

/// `a * 2^trunc(b)`: FSCALE.
pub(crate) fn scale(a: F80, b: F80, env: &Env) -> Out {
    if let Some(out) = special(a, b) {
        return out;
    }
    let flags = denormals(&[a, b]);
    let is_down = b.sign();
    match (a.class(), b.class()) {
        (Class::Zero, Class::Infinity) if !is_down => return Out::INVALID,
        (Class::Infinity, Class::Infinity) if is_down => return Out::INVALID,
        (Class::Infinity | Class::Zero, _) => return Out::exact(a).with(flags),
        (_, Class::Infinity) => {
            let value = if is_down {
                F80::zero(a.sign())
            } else {
                F80::infinity(a.sign())
            };
            return Out::exact(value).with(flags);
        }
        _ => {}
    }
    let power = convert::to_integer(b, 32, Rounding::Zero);
    let power = match power.flags & flag::IE {
        0 => power.value as i32,
        _ if is_down => -0x1_0000,
        _ => 0x1_0000,
    };
    let power = power.clamp(-0x1_0000, 0x1_0000);
    let a = a.unpack();
    let significand = u128::from(a.significand) << 64;
    round_pack(a.sign, a.exponent + power, significand, &env.full()).with(flags)
}

/// Exponent and significand: FXTRACT.
pub(crate) fn extract(a: F80) -> (Out, F80) {
    if let Some(out) = special_one(a) {
        return (out, out.value);
    }
    match a.class() {
        Class::Infinity => (Out::exact(F80::infinity(false)), a),
        Class::Zero => (Out::exact(F80::infinity(true)).with(flag::ZE), a),
        _ => {
            let v = a.unpack();
            let exponent = convert::from_integer(i64::from(v.exponent - BIAS));
            let significand = F80::new(v.sign, BIAS, v.significand);
            (Out::exact(exponent).with(denormals(&[a])), significand)
        }
    }
}
