//! What of somebody's configuration may be shown.

/// What stands in place of a secret.
pub(crate) const MASK: &str = "***";

/// The longest piece of configuration that an error quotes, in characters.
const LONGEST_QUOTE: usize = 80;

/// Whether an option of this name holds something that no log should.
pub(crate) fn looks_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [
        "passw",
        "passphrase",
        "secret",
        "key",
        "token",
        "credential",
    ]
    .iter()
    .any(|word| name.contains(word))
}

/// A piece of configuration for an error message: escaped, bounded, and masked where credentials may be in it.
pub(crate) fn quote(text: &str) -> String {
    if text.contains('@') {
        return format!("`{MASK}`");
    }
    let mut quoted = String::from("`");
    let mut characters = text.chars();
    quoted.extend(
        characters
            .by_ref()
            .take(LONGEST_QUOTE)
            .flat_map(escape_control),
    );
    if characters.next().is_some() {
        quoted.push('…');
    }
    quoted.push('`');
    quoted
}

/// Control characters escaped, so that quoted text can neither forge a line of a log nor drive a terminal.
fn escape_control(character: char) -> impl Iterator<Item = char> {
    let escape = character
        .is_control()
        .then(|| character.escape_default())
        .into_iter()
        .flatten();
    escape.chain((!character.is_control()).then_some(character))
}
