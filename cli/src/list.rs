//! `drivers` and `executors`: what this program is linked with.

use std::num::NonZeroU32;

use longshore::options::{CORE_OPTIONS, OptionGroup, OptionKind, OptionSpec};
use longshore::registry;
use serde_json::{Value, json};

use crate::exit::Failed;
use crate::output;

/// Lists the drivers.
pub(crate) fn drivers(as_json: bool) -> Result<(), Failed> {
    let drivers = registry::drivers();
    if as_json {
        let list: Vec<Value> = drivers
            .iter()
            .map(|driver| {
                let (name, aliases) = split(driver.schemes);
                json!({
                    "name": name,
                    "aliases": aliases,
                    "crate": driver.crate_name,
                    "version": driver.crate_version,
                    "summary": driver.summary,
                    "options": options(&[driver.options, &CORE_OPTIONS]),
                })
            })
            .collect();
        return output::line(&Value::Array(list).to_string());
    }
    let rows = drivers.iter().map(|driver| {
        let (name, aliases) = split(driver.schemes);
        let origin = format!("{} {}", driver.crate_name, driver.crate_version);
        [
            name.to_owned(),
            dash(aliases),
            origin,
            driver.summary.to_owned(),
        ]
    });
    output::line(&table(["SCHEME", "ALIASES", "CRATE", "SUMMARY"], rows))
}

/// Lists the executors.
pub(crate) fn executors(as_json: bool) -> Result<(), Failed> {
    let executors = registry::executors();
    if as_json {
        let list: Vec<Value> = executors
            .iter()
            .map(|executor| {
                let (name, aliases) = split(executor.names);
                json!({
                    "name": name,
                    "aliases": aliases,
                    "crate": executor.crate_name,
                    "version": executor.crate_version,
                    "summary": executor.summary,
                    "max_concurrency": executor.limit.map(NonZeroU32::get),
                })
            })
            .collect();
        return output::line(&Value::Array(list).to_string());
    }
    let rows = executors.iter().map(|executor| {
        let (name, aliases) = split(executor.names);
        let origin = format!("{} {}", executor.crate_name, executor.crate_version);
        [
            name.to_owned(),
            dash(aliases),
            origin,
            executor.summary.to_owned(),
        ]
    });
    output::line(&table(["NAME", "ALIASES", "CRATE", "SUMMARY"], rows))
}

/// The canonical name, which comes first, and the others.
fn split<'a>(names: &'a [&'a str]) -> (&'a str, &'a [&'a str]) {
    names
        .split_first()
        .map_or(("", &[]), |(name, aliases)| (*name, aliases))
}

fn dash(aliases: &[&str]) -> String {
    if aliases.is_empty() {
        "-".to_owned()
    } else {
        aliases.join(", ")
    }
}

fn options(groups: &[&OptionGroup]) -> Vec<Value> {
    groups
        .iter()
        .flat_map(|group| {
            group
                .options
                .iter()
                .map(|option| describe(group.name, option))
        })
        .collect()
}

/// One option: what every kind has, and the bounds or choices of its own.
fn describe(group: &str, option: &OptionSpec) -> Value {
    let (kind, rest) = match option.kind {
        OptionKind::Bool => ("bool", json!({})),
        OptionKind::Int { min, max } => ("int", json!({ "min": min, "max": max })),
        OptionKind::Seconds { min, max } => ("seconds", json!({ "min": min, "max": max })),
        OptionKind::Text => ("text", json!({})),
        OptionKind::Secret => ("secret", json!({})),
        OptionKind::Choice(choices) => ("choice", json!({ "choices": choices })),
        OptionKind::List => ("list", json!({})),
        _ => ("other", json!({})),
    };
    let mut described = json!({
        "name": option.name,
        "group": group,
        "type": kind,
        "default": option.default,
        "help": option.help,
    });
    if let (Value::Object(described), Value::Object(rest)) = (&mut described, rest) {
        described.extend(rest);
    }
    described
}

/// Columns as wide as their widest cell; the last one is left as it is.
fn table<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned))
        .chain(rows)
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths);
            let cells: Vec<String> = cells
                .map(|(cell, &width)| format!("{cell:<width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect();
    lines.join("\n")
}
