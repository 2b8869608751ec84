//! The INI dialect of oslo.config, line by line as its parser reads it.
//!
//! Values are taken as they stand: no escapes, no comments behind a value, no `$` substitution. General INI crates
//! treat `\`, `#`, `%` or quotes inside a value specially, which would change a URL or a password.

use std::collections::BTreeMap;

/// Where a value stands and what it is.
#[derive(Clone)]
pub(super) struct Entry {
    /// The line of the option's name, from 1.
    pub(super) line: usize,
    /// The lines of a continued value are joined by `\n`.
    pub(super) value: String,
}

/// Options by group and name, both normalized; of an option that stands there twice, the last.
pub(super) type Groups = BTreeMap<String, BTreeMap<String, Entry>>;

/// A syntax error. It does not quote the line, which may hold a password.
#[derive(Debug, PartialEq)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) problem: &'static str,
}

/// A group's name as oslo.config compares it: without regard to case, save that of `DEFAULT`.
pub(super) fn group_name(name: &str) -> String {
    match name {
        "DEFAULT" => name.to_owned(),
        _ => name.to_lowercase(),
    }
}

/// An option's name with underscores; oslo.config takes either.
pub(super) fn option_name(name: &str) -> String {
    name.replace('-', "_")
}

pub(super) fn parse(text: &str) -> Result<Groups, SyntaxError> {
    let mut groups = Groups::new();
    let mut group: Option<String> = None;
    // The option that an indented line continues; a blank line, a comment or a group ends it.
    let mut open: Option<(String, Entry)> = None;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let fail = |problem| SyntaxError {
            line: number,
            problem,
        };
        let line = line.trim_end();
        if line.starts_with([' ', '\t']) {
            let (_, entry) = open.as_mut().ok_or_else(|| {
                fail("an indented line continues a value, and there is none; remove the indent")
            })?;
            entry.value.push('\n');
            entry.value.push_str(line.trim_start());
            continue;
        }
        store(&mut groups, group.as_deref(), open.take());
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(rest) = line.strip_prefix('[') {
            match rest.strip_suffix(']') {
                None => return Err(fail("a group must end with `]`, and nothing may follow it")),
                Some("") => return Err(fail("a group needs a name between `[` and `]`")),
                Some(name) => group = Some(group_name(name)),
            }
            continue;
        }
        let (name, value) = line
            .split_once(['=', ':'])
            .ok_or_else(|| fail("neither a group nor an assignment; write `name = value`"))?;
        let name = name.trim_end();
        if name.is_empty() {
            return Err(fail("an option needs a name before its `=`"));
        }
        if group.is_none() {
            return Err(fail(
                "an option stands before the first group; put `[DEFAULT]` above it",
            ));
        }
        open = Some((
            option_name(name),
            Entry {
                line: number,
                value: unquote(value.trim()).to_owned(),
            },
        ));
    }
    store(&mut groups, group.as_deref(), open);
    Ok(groups)
}

fn store(groups: &mut Groups, group: Option<&str>, option: Option<(String, Entry)>) {
    if let (Some(group), Some((name, entry))) = (group, option) {
        groups
            .entry(group.to_owned())
            .or_default()
            .insert(name, entry);
    }
}

/// The value without the quotes around it, if it begins and ends with the same kind.
fn unquote(value: &str) -> &str {
    match value.as_bytes() {
        // A lone quote counts as both, as in oslo.config.
        [b'"'] | [b'\''] => "",
        [b'"', .., b'"'] | [b'\'', .., b'\''] => &value[1..value.len() - 1],
        _ => value,
    }
}
