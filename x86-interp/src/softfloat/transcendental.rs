//! F2XM1, FYL2X, FYL2XP1, FSIN, FCOS, FPTAN, FPATAN (SDM Vol. 1, "Transcendental Instructions"; the
//! tables of special values are those of SDM Vol. 2).
//!
//! Results are within one unit in the last place, as the SDM demands ("Transcendental Instruction
//! Accuracy"); which neighbour of the true value a processor gives is its own.

use super::wide::Wide;
use super::{BIAS, Class, Env, F80, Out, denormals, flag, special, special_one};

/// Sums `x * (1 + c[1] y + c[2] y^2 + ...)` until it does not change; `factor` gives c[n] / c[n-1] as
/// a numerator and a denominator.
fn series(x: Wide, y: Wide, factor: impl Fn(u32) -> (u32, u32)) -> Wide {
    let (mut sum, mut term) = (x, x);
    for n in 1..200 {
        let (numerator, denominator) = factor(n);
        term = term.multiply(y);
        if numerator != 1 {
            term = term.multiply(Wide::of(numerator.into()));
        }
        term = term.divide_by_small(denominator);
        // The last one counts too: it says on which side of `sum` the true value is.
        let is_last = term.is_zero() || term.exponent < sum.exponent - 130;
        sum = sum.add(term);
        if is_last {
            break;
        }
    }
    sum
}

/// `e^x - 1` for small `x`.
fn exponential_minus_one(x: Wide) -> Wide {
    series(x, x, |n| (1, n + 1))
}

/// The inverse hyperbolic tangent.
fn inverse_hyperbolic_tangent(x: Wide) -> Wide {
    series(x, x.multiply(x), |n| (2 * n - 1, 2 * n + 1))
}

fn sine(x: Wide) -> Wide {
    let square = x.multiply(x).negate();
    series(x, square, |n| (1, 2 * n * (2 * n + 1)))
}

fn cosine(x: Wide) -> Wide {
    let square = x.multiply(x).negate();
    series(Wide::ONE, square, |n| (1, (2 * n - 1) * 2 * n))
}

/// The inverse tangent of a number from 0 to 1.
fn inverse_tangent(x: Wide) -> Wide {
    let direct = |x: Wide| {
        let square = x.multiply(x).negate();
        series(x, square, |n| (2 * n - 1, 2 * n + 1))
    };
    // Above 3/8, by the difference to one quarter of pi.
    if x.exponent < -2 || x.exponent == -2 && x.significand < 3 << 126 {
        return direct(x);
    }
    let reduced = x.subtract(Wide::ONE).divide(x.add(Wide::ONE));
    Wide::PI.scale(-2).add(direct(reduced))
}

/// `2^a - 1`; beyond -1 to 1 the result is undefined: here what the formula gives.
pub(crate) fn exponential(a: F80, env: &Env) -> Out {
    if let Some(out) = special_one(a) {
        return out;
    }
    let flags = denormals(&[a]);
    let minus_one = F80::ONE.negate();
    match a.class() {
        Class::Zero => return Out::exact(a),
        Class::Infinity if a.sign() => return Out::exact(minus_one),
        Class::Infinity => return Out::exact(a),
        _ => {}
    }
    let x = Wide::from_finite(a.unpack());
    if x.exponent >= 0 {
        // Of -1 and 1 the result is exact; what is beyond is left as it is.
        let half = F80::new(true, BIAS - 1, 1 << 63);
        return Out::exact(if a == minus_one { half } else { a });
    }
    exponential_minus_one(x.multiply(Wide::LN_2))
        .round(env)
        .with(flags)
}

/// The binary logarithm of a positive number.
fn logarithm(x: Wide) -> Wide {
    // The significand between the roots of 1/2 and 2.
    let is_large = x.significand > 0xb504_f333_f9de_6484_597d_89b3_754a_be9f;
    let power = x.exponent + i32::from(is_large);
    let reduced = x.scale(-power);
    let ratio = reduced.subtract(Wide::ONE).divide(reduced.add(Wide::ONE));
    let fraction = inverse_hyperbolic_tangent(ratio)
        .scale(1)
        .divide(Wide::LN_2);
    Wide::of(power.into()).add(fraction)
}

/// `y * log2(x)`.
pub(crate) fn y_log2_x(x: F80, y: F80, env: &Env) -> Out {
    if let Some(out) = special(x, y) {
        return out;
    }
    if x.sign() && x.class() != Class::Zero {
        return Out::INVALID;
    }
    let flags = denormals(&[x, y]);
    let is_one = x == F80::ONE;
    match (x.class(), y.class()) {
        (Class::Zero, Class::Zero) | (Class::Infinity, Class::Zero) => return Out::INVALID,
        (_, Class::Infinity) if is_one => return Out::INVALID,
        (Class::Zero, Class::Infinity) => return Out::exact(F80::infinity(!y.sign())),
        (Class::Zero, _) => return Out::exact(F80::infinity(!y.sign())).with(flag::ZE),
        (Class::Infinity, _) => return Out::exact(F80::infinity(y.sign())).with(flags),
        _ => {}
    }
    let is_negative = x.unpack().exponent < BIAS;
    let sign = y.sign() != is_negative;
    match y.class() {
        Class::Infinity => return Out::exact(F80::infinity(sign)).with(flags),
        Class::Zero => return Out::exact(F80::zero(sign)).with(flags),
        _ if is_one => return Out::exact(F80::zero(y.sign())).with(flags),
        _ => {}
    }
    let x = x.unpack();
    let logarithm = if x.significand == 1 << 63 {
        Wide::of((x.exponent - BIAS).into())
    } else {
        logarithm(Wide::from_finite(x))
    };
    product(logarithm, y, x.significand == 1 << 63, env).with(flags)
}

/// Rounds the product of a logarithm and a number; it is exact if the logarithm is.
fn product(logarithm: Wide, y: F80, is_exact: bool, env: &Env) -> Out {
    let product = logarithm.multiply(Wide::from_finite(y.unpack()));
    if is_exact {
        let exponent = product.exponent + BIAS;
        return super::round_pack(product.sign, exponent, product.significand, &env.full());
    }
    product.round(env)
}

/// `y * log2(x + 1)`; for `x` beyond its range the result is undefined: here that of the formula,
/// invalid for -1 and below.
pub(crate) fn y_log2_x_plus_1(x: F80, y: F80, env: &Env) -> Out {
    if let Some(out) = special(x, y) {
        return out;
    }
    let flags = denormals(&[x, y]);
    let sign = x.sign() != y.sign();
    match (x.class(), y.class()) {
        (Class::Zero, Class::Infinity) => return Out::INVALID,
        (Class::Zero, _) => return Out::exact(F80::zero(sign)).with(flags),
        (Class::Infinity, Class::Zero) => return Out::INVALID,
        (Class::Infinity, _) if x.sign() => return Out::INVALID,
        (Class::Infinity, _) => return Out::exact(F80::infinity(y.sign())).with(flags),
        _ if x.sign() && x.unpack().exponent >= BIAS => return Out::INVALID,
        (_, Class::Infinity) => return Out::exact(F80::infinity(sign)).with(flags),
        (_, Class::Zero) => return Out::exact(F80::zero(sign)).with(flags),
        _ => {}
    }
    let wide = Wide::from_finite(x.unpack());
    let logarithm = if wide.exponent < -1 {
        let ratio = wide.divide(wide.add(Wide::of(2)));
        inverse_hyperbolic_tangent(ratio)
            .scale(1)
            .divide(Wide::LN_2)
    } else {
        logarithm(wide.add(Wide::ONE))
    };
    product(logarithm, y, false, env).with(flags)
}

/// One half of pi as the processor has it, 66 bits of it, in units of 2^-65 ("Approximation of
/// Pi").
const HALF_PI: u128 = 0x3_243f_6a88_85a3_08d3;

/// An angle: what is left behind multiples of one half of pi, and how many they are modulo 4.
struct Reduced {
    angle: Wide,
    quadrant: u8,
}

/// Reduces an angle; `None` from 2^63 on.
fn reduce(a: F80) -> Option<Reduced> {
    let finite = a.unpack();
    let exponent = finite.exponent - BIAS;
    if exponent >= 63 {
        return None;
    }
    if exponent < -2 {
        return Some(Reduced {
            angle: Wide::from_finite(finite),
            quadrant: 0,
        });
    }
    let units = u128::from(finite.significand) << (exponent + 2);
    let (mut count, mut rest) = (units / HALF_PI, (units % HALF_PI) as i128);
    if 2 * rest > HALF_PI as i128 {
        rest -= HALF_PI as i128;
        count += 1;
    }
    let magnitude = rest.unsigned_abs();
    let angle = if magnitude == 0 {
        Wide::ZERO
    } else {
        let shift = magnitude.leading_zeros();
        Wide {
            sign: rest < 0,
            exponent: 127 - shift as i32 - 65,
            significand: magnitude << shift,
        }
    };
    let quadrant = (count & 3) as u8;
    Some(if finite.sign {
        Reduced {
            angle: angle.negate(),
            quadrant: (4 - quadrant) & 3,
        }
    } else {
        Reduced { angle, quadrant }
    })
}

/// A sine and a cosine.
fn both(reduced: &Reduced) -> (Wide, Wide) {
    let (s, c) = (sine(reduced.angle), cosine(reduced.angle));
    match reduced.quadrant {
        0 => (s, c),
        1 => (c, s.negate()),
        2 => (s.negate(), c.negate()),
        _ => (c.negate(), s),
    }
}

/// Which function of an angle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Angle {
    Sine,
    Cosine,
    Tangent,
}

/// The function of an angle; `None` if the angle is too large.
pub(crate) fn of_angle(which: Angle, a: F80, env: &Env) -> Option<Out> {
    if let Some(out) = special_one(a) {
        return Some(out);
    }
    match a.class() {
        Class::Infinity => return Some(Out::INVALID),
        Class::Zero if which == Angle::Cosine => return Some(Out::exact(F80::ONE)),
        Class::Zero => return Some(Out::exact(a)),
        _ => {}
    }
    let (s, c) = both(&reduce(a)?);
    let value = match which {
        Angle::Sine => s,
        Angle::Cosine => c,
        Angle::Tangent if c.is_zero() => return Some(Out::exact(F80::infinity(s.sign))),
        Angle::Tangent => s.divide(c),
    };
    Some(value.round(env).with(denormals(&[a])))
}

/// The angle of the point (`x`, `y`).
pub(crate) fn angle_of(x: F80, y: F80, env: &Env) -> Out {
    if let Some(out) = special(x, y) {
        return out;
    }
    let flags = denormals(&[x, y]);
    let sign = y.sign();
    let pi = |numerator, shift| {
        let angle = Wide::PI.multiply(Wide::of(numerator)).scale(shift);
        let angle = Wide { sign, ..angle };
        angle.round(env).with(flags)
    };
    match (x.class(), y.class()) {
        (Class::Infinity, Class::Infinity) if x.sign() => return pi(3, -2),
        (Class::Infinity, Class::Infinity) => return pi(1, -2),
        (_, Class::Infinity) => return pi(1, -1),
        (Class::Infinity, _) | (_, Class::Zero) if x.sign() => return pi(1, 0),
        (Class::Infinity, _) | (_, Class::Zero) => return Out::exact(F80::zero(sign)).with(flags),
        (Class::Zero, _) => return pi(1, -1),
        _ => {}
    }
    let magnitude = |v: F80| {
        let wide = Wide::from_finite(v.unpack());
        Wide {
            sign: false,
            ..wide
        }
    };
    let (across, up) = (magnitude(x), magnitude(y));
    let is_steep = (up.exponent, up.significand) > (across.exponent, across.significand);
    let mut angle = if is_steep {
        Wide::PI
            .scale(-1)
            .subtract(inverse_tangent(across.divide(up)))
    } else {
        inverse_tangent(up.divide(across))
    };
    if x.sign() {
        angle = Wide::PI.subtract(angle);
    }
    Wide { sign, ..angle }.round(env).with(flags)
}
