//! Texts for people.

use baton_protocol::Millis;

/// The longest error that is kept, in bytes.
pub(crate) const MAX_ERROR_BYTES: usize = 4096;

/// The longest reason for a cancellation, in bytes: every stage that is cancelled bears it.
pub(crate) const MAX_REASON_BYTES: usize = 512;

/// A text of somebody else's, cut to what is kept.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        text.truncate(text.floor_char_boundary(max));
        text.push('…');
    }
    text
}

/// A text of somebody else's, cut to so many bytes and no more.
pub(crate) fn cut_to(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

/// `1 attempt`, `2 attempts`.
pub(crate) fn count(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A span of time in the largest unit that is exact: `90 s`, `1 h`.
pub(crate) fn duration(ms: Millis) -> String {
    const UNITS: [(Millis, &str); 4] = [(3_600_000, "h"), (60_000, "min"), (1000, "s"), (1, "ms")];
    let exact = UNITS.into_iter().find(|(unit, _)| ms >= *unit && ms.is_multiple_of(*unit));
    let (unit, name) = exact.unwrap_or((1, "ms"));
    format!("{} {name}", ms / unit)
}
