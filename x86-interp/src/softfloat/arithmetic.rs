//! Addition, subtraction, multiplication, division, square root.

use super::{
    BIAS, Class, Env, F80, Out, Rounding, denormals, flag, round_pack, shift_right_jam, special,
    special_one,
};

/// `a + b`.
pub(crate) fn add(a: F80, b: F80, env: &Env) -> Out {
    if a.is_normal() && b.is_normal() {
        return add_finite(a, b, env);
    }
    if let Some(out) = special(a, b) {
        return out;
    }
    let flags = denormals(&[a, b]);
    let out = match (a.class(), b.class()) {
        (Class::Infinity, Class::Infinity) if a.sign() != b.sign() => return Out::INVALID,
        (Class::Infinity, _) => Out::exact(a),
        (_, Class::Infinity) => Out::exact(b),
        (Class::Zero, Class::Zero) => {
            let is_down = env.rounding == Rounding::Down;
            let sign = if a.sign() == b.sign() {
                a.sign()
            } else {
                is_down
            };
            Out::exact(F80::zero(sign))
        }
        (Class::Zero, _) => round(b, env),
        (_, Class::Zero) => round(a, env),
        _ => add_finite(a, b, env),
    };
    out.with(flags)
}

/// `a - b`. A NaN keeps its sign.
pub(crate) fn subtract(a: F80, b: F80, env: &Env) -> Out {
    if a.is_normal() && b.is_normal() {
        return add_finite(a, b.negate(), env);
    }
    special(a, b).unwrap_or_else(|| add(a, b.negate(), env))
}

/// `b - a`.
pub(crate) fn subtract_reversed(a: F80, b: F80, env: &Env) -> Out {
    subtract(b, a, env)
}

fn round(a: F80, env: &Env) -> Out {
    let a = a.unpack();
    round_pack(a.sign, a.exponent, u128::from(a.significand) << 64, env)
}

fn add_finite(a: F80, b: F80, env: &Env) -> Out {
    let (mut a, mut b) = (a.unpack(), b.unpack());
    if (b.exponent, b.significand) > (a.exponent, a.significand) {
        core::mem::swap(&mut a, &mut b);
    }
    // One bit is left free for the carry.
    let large = u128::from(a.significand) << 63;
    let distance = (a.exponent - b.exponent) as u32;
    let small = shift_right_jam(u128::from(b.significand) << 63, distance);
    let sum = if a.sign == b.sign {
        large + small
    } else {
        large - small
    };
    if sum == 0 {
        return Out::exact(F80::zero(env.rounding == Rounding::Down));
    }
    let shift = sum.leading_zeros();
    round_pack(a.sign, a.exponent + 1 - shift as i32, sum << shift, env)
}

/// `a * b`.
pub(crate) fn multiply(a: F80, b: F80, env: &Env) -> Out {
    if a.is_normal() && b.is_normal() {
        return multiply_finite(a, b, env);
    }
    if let Some(out) = special(a, b) {
        return out;
    }
    let sign = a.sign() != b.sign();
    let flags = denormals(&[a, b]);
    match (a.class(), b.class()) {
        (Class::Infinity, Class::Zero) | (Class::Zero, Class::Infinity) => return Out::INVALID,
        (Class::Infinity, _) | (_, Class::Infinity) => {
            return Out::exact(F80::infinity(sign)).with(flags);
        }
        (Class::Zero, _) | (_, Class::Zero) => return Out::exact(F80::zero(sign)).with(flags),
        _ => {}
    }
    multiply_finite(a, b, env).with(flags)
}

fn multiply_finite(a: F80, b: F80, env: &Env) -> Out {
    let sign = a.sign() != b.sign();
    let (a, b) = (a.unpack(), b.unpack());
    let product = u128::from(a.significand) * u128::from(b.significand);
    let shift = product.leading_zeros();
    let exponent = a.exponent + b.exponent - BIAS + 1 - shift as i32;
    round_pack(sign, exponent, product << shift, env)
}

/// `a / b`.
pub(crate) fn divide(a: F80, b: F80, env: &Env) -> Out {
    if a.is_normal() && b.is_normal() {
        return divide_finite(a, b, env);
    }
    if let Some(out) = special(a, b) {
        return out;
    }
    let sign = a.sign() != b.sign();
    let flags = denormals(&[a, b]);
    match (a.class(), b.class()) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => return Out::INVALID,
        (Class::Infinity, _) => return Out::exact(F80::infinity(sign)).with(flags),
        // A division by zero comes before a denormal dividend.
        (_, Class::Zero) => return Out::exact(F80::infinity(sign)).with(flag::ZE),
        (Class::Zero, _) | (_, Class::Infinity) => {
            return Out::exact(F80::zero(sign)).with(flags);
        }
        _ => {}
    }
    divide_finite(a, b, env).with(flags)
}

fn divide_finite(a: F80, b: F80, env: &Env) -> Out {
    let sign = a.sign() != b.sign();
    let (a, b) = (a.unpack(), b.unpack());
    let is_less = a.significand < b.significand;
    let divisor = u128::from(b.significand);
    let dividend = u128::from(a.significand) << (63 + u32::from(is_less));
    let (first, rest) = (dividend / divisor, dividend % divisor);
    let (second, rest) = ((rest << 64) / divisor, (rest << 64) % divisor);
    let quotient = first << 64 | second | u128::from(rest != 0);
    let exponent = a.exponent - b.exponent + BIAS - i32::from(is_less);
    round_pack(sign, exponent, quotient, env)
}

/// `b / a`.
pub(crate) fn divide_reversed(a: F80, b: F80, env: &Env) -> Out {
    divide(b, a, env)
}

/// The square root.
pub(crate) fn square_root(a: F80, env: &Env) -> Out {
    if let Some(out) = special_one(a) {
        return out;
    }
    match a.class() {
        Class::Zero => return Out::exact(a),
        _ if a.sign() => return Out::INVALID,
        Class::Infinity => return Out::exact(a),
        _ => {}
    }
    let flags = denormals(&[a]);
    let a = a.unpack();
    let exponent = a.exponent - BIAS;
    let is_odd = exponent & 1 != 0;
    let radicand = u128::from(a.significand) << (63 + u32::from(is_odd));
    let root = radicand.isqrt();
    let rest = radicand - root * root;
    // The next bit is set if the root of what is left is above one half.
    let significand = root << 64 | u128::from(rest > root) << 63 | u128::from(rest != 0);
    round_pack(false, (exponent >> 1) + BIAS, significand, env).with(flags)
}
