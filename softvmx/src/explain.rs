//! `softvmx explain NAME`: what the tables know of a field, an exit reason, an error or a check.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use vmx_model::checks::{self, Check};
use vmx_model::error;
use vmx_model::exit_reason::{ENTRY_FAILURE, ExitReason};
use vmx_model::field::Field;
use vmx_model::msr_area::{LOAD_RULES, LoadRule};

/// Arguments of `softvmx explain`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A field (name, Linux's name or encoding), an exit reason (name, `exit:NUMBER`, or as in the
    /// VMCS with bit 31), an instruction error (name or `error:NUMBER`), a number of either, a check
    /// (id), or a part of a check's id.
    name: String,
}

/// Prints what is known; fails if nothing is.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    Ok(print(&options.name))
}

/// Prints what is known of a name.
pub(crate) fn print(name: &str) -> ExitCode {
    let name = name.trim();
    let mut paragraphs: Vec<String> = Vec::new();
    paragraphs.extend(fields(name).map(describe_field));
    paragraphs.extend(exits(name).map(describe_exit));
    paragraphs.extend(errors(name).map(describe_error));
    paragraphs.extend(matching_checks(name).map(describe_check));
    paragraphs.extend(load_rules(name).map(describe_load_rule));
    if paragraphs.is_empty() {
        eprintln!("softvmx: no table knows {name:?}");
        return ExitCode::from(1);
    }
    println!("{}", paragraphs.join("\n\n"));
    ExitCode::SUCCESS
}

/// Compares names without regard to case, blanks, hyphens and underscores.
fn is_same(a: &str, b: &str) -> bool {
    let plain = |s: &str| -> String {
        s.chars()
            .filter(|c| c.is_alphanumeric())
            .flat_map(char::to_lowercase)
            .collect()
    };
    plain(a) == plain(b)
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn fields(name: &str) -> impl Iterator<Item = Field> + '_ {
    let encoding = name.strip_prefix("0x").and_then(|_| number(name));
    Field::ALL.into_iter().filter(move |field| {
        is_same(field.id(), name)
            || is_same(field.name(), name)
            || field.linux_name().is_some_and(|linux| is_same(linux, name))
            || encoding == Some(field.encoding())
    })
}

fn describe_field(field: Field) -> String {
    let linux = field
        .linux_name()
        .map_or_else(String::new, |n| format!(", Linux {n}"));
    let mut text = format!(
        "field {} ({}): encoding {:#06x}, {:?}, {:?}{linux}",
        field.name(),
        field.id(),
        field.encoding(),
        field.width(),
        field.kind(),
    );
    let reading: Vec<_> = checks::all()
        .filter(|c| c.inputs.contains(&field))
        .collect();
    for check in reading {
        text.push_str(&format!("\n  checked by {}: {}", check.id, check.sentence));
    }
    text
}

fn exits(name: &str) -> impl Iterator<Item = ExitReason> + '_ {
    // Bit 31 says that VM entry failed.
    let of_vmcs = number(name).filter(|n| n & ENTRY_FAILURE != 0);
    let wanted = name.strip_prefix("exit:").and_then(number);
    let wanted = wanted.or(of_vmcs).or_else(|| name.parse().ok());
    let wanted = wanted.map(|number| number & !ENTRY_FAILURE);
    ExitReason::all().filter(move |reason| {
        wanted == Some(u32::from(reason.0))
            || [reason.id(), reason.name(), reason.linux_name()]
                .into_iter()
                .flatten()
                .any(|known| is_same(known, name))
    })
}

fn describe_exit(reason: ExitReason) -> String {
    let linux = reason
        .linux_name()
        .map_or_else(String::new, |n| format!(", Linux {n}"));
    let kind = reason
        .kind()
        .map_or_else(String::new, |k| format!(", {k:?}"));
    format!(
        "exit reason {}: {} ({}){kind}{linux}",
        reason.0,
        reason.name().unwrap_or("reserved"),
        reason.id().unwrap_or("-"),
    )
}

fn errors(name: &str) -> impl Iterator<Item = u32> + '_ {
    let wanted = name.strip_prefix("error:").and_then(number);
    let wanted = wanted.or_else(|| name.parse().ok());
    error::all().filter(move |&n| {
        wanted == Some(n) || error::id(n).is_some_and(|known| is_same(known, name))
    })
}

fn describe_error(number: u32) -> String {
    format!(
        "VM-instruction error {number} ({}): {}",
        error::id(number).unwrap_or("-"),
        error::meaning(number).unwrap_or("reserved"),
    )
}

fn matching_checks(name: &str) -> impl Iterator<Item = &'static Check> + '_ {
    let exact = checks::by_id(name).is_some();
    checks::all().filter(move |check| {
        check.id == name || !exact && name.len() > 3 && check.id.contains(name)
    })
}

fn describe_check(check: &Check) -> String {
    let mut text = format!(
        "check {}: {}\n  SDM Vol. 3C, \"{}\"",
        check.id,
        check.sentence,
        check.group.section(),
    );
    for field in check.inputs {
        text.push_str(&format!("\n  reads {}", field.name()));
    }
    text
}

fn load_rules(name: &str) -> impl Iterator<Item = &'static LoadRule> + '_ {
    let matches = move |rule: &&LoadRule| name.len() > 3 && rule.id.contains(name);
    LOAD_RULES.iter().filter(matches)
}

fn describe_load_rule(rule: &LoadRule) -> String {
    format!(
        "rule {}: {}\n  SDM Vol. 3C, \"Loading MSRs\"; exit reason 34, its qualification is the \
         number of the entry",
        rule.id, rule.sentence,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_are_found_by_each_of_their_names() {
        for name in ["GUEST_CR0", "guest cr0", "0x6800", "Guest CR0"] {
            assert_eq!(
                fields(name).collect::<Vec<_>>(),
                [Field::GUEST_CR0],
                "{name}"
            );
        }
        assert_eq!(exits("exit:33").count(), 1);
        assert_eq!(errors("error:7").count(), 1);
        assert_eq!((exits("7").count(), errors("7").count()), (1, 1));
        let of_vmcs: Vec<_> = exits("0x80000021").collect();
        assert_eq!(of_vmcs, [ExitReason::ENTRY_FAIL_GUEST_STATE]);
        assert_eq!(load_rules("msr-load-x2apic").count(), 1);
        assert_eq!(load_rules("msr").count(), 0);
        assert_eq!(matching_checks("ctl-cr3-target-count").count(), 1);
        assert_eq!(matching_checks("no such check").count(), 0);
    }
}
