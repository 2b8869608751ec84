//! Names to registrations, and errors that say what is there and what to do.

use std::fmt;

use super::{DriverRegistration, ExecutorRegistration};
use crate::error::{Error, Result};
use crate::url::redact::MASK;

/// The longest name that an error quotes whole and compares with others, in characters.
const LONGEST_NAME: usize = 40;

/// What drivers and executors have in common here.
pub(super) trait Registration: 'static {
    /// What a name stands for, as in `no {WHAT} "name"`.
    const WHAT: &'static str;
    /// What a name is.
    const NAME: &'static str;
    /// The project's own, linked or not. Those of others are none of core's business.
    const FIRST_PARTY: &'static [FirstParty];

    fn names(&self) -> &'static [&'static str];
    fn origin(&self) -> Origin;

    fn claims(&self, name: &str) -> bool {
        self.names()
            .iter()
            .any(|claimed| claimed.eq_ignore_ascii_case(name))
    }
}

/// A crate of this project, and how an application gets it.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstParty {
    names: &'static [&'static str],
    crate_name: &'static str,
    /// The facade's feature; `None`: the facade always brings it.
    feature: Option<&'static str>,
}

impl FirstParty {
    fn remedy(&self) -> String {
        let facade = match self.feature {
            Some(feature) => format!("switch on feature \"{feature}\" of longshore"),
            None => "depend on longshore, which brings it".to_owned(),
        };
        format!(
            "{facade}, or depend on {} and write `use {} as _;`",
            self.crate_name,
            self.crate_name.replace('-', "_")
        )
    }
}

/// The crate a registration came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Origin {
    crate_name: &'static str,
    version: &'static str,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.crate_name, self.version)
    }
}

impl Registration for DriverRegistration {
    const WHAT: &'static str = "transport driver for scheme";
    const NAME: &'static str = "scheme";
    const FIRST_PARTY: &'static [FirstParty] = &[
        FirstParty {
            names: &["memory", "fake"],
            crate_name: "messaging-driver-memory",
            feature: Some("memory"),
        },
        FirstParty {
            names: &["rabbit", "kombu", "amqp", "amqps"],
            crate_name: "messaging-driver-amqp",
            feature: Some("amqp"),
        },
    ];

    fn names(&self) -> &'static [&'static str] {
        self.schemes
    }

    fn origin(&self) -> Origin {
        Origin {
            crate_name: self.crate_name,
            version: self.crate_version,
        }
    }
}

impl Registration for ExecutorRegistration {
    const WHAT: &'static str = "executor";
    const NAME: &'static str = "executor name";
    const FIRST_PARTY: &'static [FirstParty] = &[FirstParty {
        names: &["async", "eventlet", "threaded", "threading", "blocking"],
        crate_name: "messaging-executors",
        feature: None,
    }];

    fn names(&self) -> &'static [&'static str] {
        self.names
    }

    fn origin(&self) -> Origin {
        Origin {
            crate_name: self.crate_name,
            version: self.crate_version,
        }
    }
}

/// Each static once, in the order of their canonical names.
pub(super) fn distinct<R: Registration>(all: impl Iterator<Item = &'static R>) -> Vec<&'static R> {
    let mut found: Vec<&'static R> = Vec::new();
    for registration in all {
        if !found.iter().any(|known| std::ptr::eq(*known, registration)) {
            found.push(registration);
        }
    }
    found.sort_by_key(|r| (r.names().first().copied().unwrap_or_default(), r.origin()));
    found
}

/// The registration of `name`, or else of `fallback`.
pub(super) fn find<R: Registration>(
    all: &[&'static R],
    name: &str,
    fallback: &str,
) -> Result<&'static R> {
    for wanted in [name, fallback] {
        let claims: Vec<&'static R> = all.iter().copied().filter(|r| r.claims(wanted)).collect();
        match claims[..] {
            [] => {}
            [one] => return Ok(one),
            _ => return Err(Error::config(claimed_twice(wanted, &claims))),
        }
    }
    Err(Error::config(unknown(all, name, fallback)))
}

fn claimed_twice<R: Registration>(name: &str, claims: &[&'static R]) -> String {
    let what = R::NAME;
    let name = name.to_ascii_lowercase();
    let mut origins: Vec<Origin> = claims.iter().map(|r| r.origin()).collect();
    origins.sort();
    origins.dedup();
    if let [one] = origins[..] {
        return format!(
            "{what} \"{name}\" is claimed by {} registrations of {one}: register only one static of that crate",
            claims.len()
        );
    }
    let crates: Vec<String> = origins.iter().map(Origin::to_string).collect();
    format!(
        "{what} \"{name}\" is claimed by {}: link only one of them",
        crates.join(" and by ")
    )
}

fn unknown<R: Registration>(all: &[&'static R], name: &str, first_part: &str) -> String {
    let mut text = format!("no {} \"{}\"", R::WHAT, shown(name));
    let linked = linked(all);
    let first_party = R::FIRST_PARTY
        .iter()
        .find(|known| claims(known.names, first_part));
    if let Some(known) = first_party {
        let crate_name = known.crate_name;
        match all.iter().find(|r| r.origin().crate_name == crate_name) {
            None => text.push_str(&format!(
                ": it belongs to {crate_name}, which is not linked; {}",
                known.remedy()
            )),
            Some(other) => text.push_str(&format!(
                ": it belongs to {crate_name}, and {} as it is linked does not have it; \
                 use a version that has",
                other.origin()
            )),
        }
        text.push_str(&format!("; linked in this program: {linked}"));
        return text;
    }
    match nearest(all, &[name, first_part]) {
        Some((near, None)) => text.push_str(&format!(": did you mean \"{near}\"?")),
        Some((near, Some(known))) => text.push_str(&format!(
            ": did you mean \"{near}\"? it belongs to {}, which is not linked; {}",
            known.crate_name,
            known.remedy()
        )),
        None => {}
    }
    text.push_str(&format!(
        "; linked in this program: {linked}; a crate that is only listed in Cargo.toml is not linked: \
         name it once, as in `use acme_driver as _;`"
    ));
    text
}

/// What there is, each crate with its names, the canonical one first.
fn linked<R: Registration>(all: &[&'static R]) -> String {
    if all.is_empty() {
        return "nothing".to_owned();
    }
    let each: Vec<String> = all
        .iter()
        .map(|r| format!("{} ({})", r.names().join(", "), r.origin()))
        .collect();
    each.join("; ")
}

/// The name most like one of `wanted`, if one is like it at all; with the crate that has it, where that is not linked.
fn nearest<R: Registration>(
    all: &[&'static R],
    wanted: &[&str],
) -> Option<(&'static str, Option<&'static FirstParty>)> {
    let linked = all
        .iter()
        .flat_map(|r| r.names())
        .map(|name| (*name, None::<&'static FirstParty>));
    let others = R::FIRST_PARTY
        .iter()
        .filter(|known| {
            !all.iter()
                .any(|r| r.origin().crate_name == known.crate_name)
        })
        .flat_map(|known| known.names.iter().map(move |name| (*name, Some(known))));
    let mut best = None;
    for wanted in wanted {
        let wanted = wanted.to_ascii_lowercase();
        // The distance takes time and memory by the product of both lengths.
        let length = wanted.chars().take(LONGEST_NAME + 1).count();
        if length > LONGEST_NAME {
            continue;
        }
        // Of three letters, two others make another name and no slip.
        let limit = if length <= 3 { 1 } else { 2 };
        for candidate in linked.clone().chain(others.clone()) {
            let name = candidate.0.to_ascii_lowercase();
            let distance = strsim::damerau_levenshtein(&name, &wanted);
            // Of equals the first stands: what is linked goes before what is not.
            if distance <= limit && best.is_none_or(|(least, _)| distance < least) {
                best = Some((distance, candidate));
            }
        }
    }
    best.map(|(_, candidate)| candidate)
}

fn claims(names: &[&str], name: &str) -> bool {
    names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// A name for an error message: bounded, escaped, and cut off before the first thing that belongs to no name. Whoever
/// passes a whole URL by mistake must not find a password in a log.
fn shown(name: &str) -> String {
    let alone = name.split(':').next().unwrap_or_default();
    if alone.contains('@') {
        return MASK.to_owned();
    }
    let mut characters = alone.chars();
    let mut shown: String = characters
        .by_ref()
        .take(LONGEST_NAME)
        .flat_map(char::escape_debug)
        .collect();
    if characters.next().is_some() || alone.len() < name.len() {
        shown.push('…');
    }
    shown
}
