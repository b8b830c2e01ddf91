//! Comparison and classification.

use core::cmp::Ordering;

use super::{Class, F80, Out, denormals, flag};

/// Compares; `None` is unordered. A QNaN is invalid only where `is_strict`.
pub(crate) fn compare(a: F80, b: F80, is_strict: bool) -> Out<Option<Ordering>> {
    let classes = [a.class(), b.class()];
    let has = |class| classes.contains(&class);
    if has(Class::Unsupported) || has(Class::SignalingNan) || is_strict && has(Class::QuietNan) {
        return Out::exact(None).with(flag::IE);
    }
    if has(Class::QuietNan) {
        return Out::exact(None);
    }
    Out::exact(Some(order(a, b))).with(denormals(&[a, b]))
}

fn order(a: F80, b: F80) -> Ordering {
    let is_zero = |v: F80| v.class() == Class::Zero;
    if is_zero(a) && is_zero(b) {
        return Ordering::Equal;
    }
    let magnitude = |v: F80| {
        // A pseudo-denormal has the value of the normal with exponent 1.
        let exponent = if v.exponent() == 0 { 1 } else { v.exponent() };
        if is_zero(v) {
            (0, 0)
        } else {
            (exponent, v.low)
        }
    };
    match (a.sign(), b.sign()) {
        (false, true) => Ordering::Greater,
        (true, false) => Ordering::Less,
        (false, false) => magnitude(a).cmp(&magnitude(b)),
        (true, true) => magnitude(b).cmp(&magnitude(a)),
    }
}
