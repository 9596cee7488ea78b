//! How times, sizes and JSON are written for people.

use baton_protocol::{Json, Millis};

/// A span of time: exact while it is short.
pub(crate) fn span(ms: Millis) -> String {
    let (seconds, minutes) = (ms / 1000, ms / 60_000);
    match ms {
        0..10_000 => format!("{ms} ms"),
        10_000..600_000 => format!("{seconds}.{} s", ms % 1000 / 100),
        600_000..3_600_000 => format!("{minutes} min {:02} s", seconds % 60),
        _ => format!("{} h {:02} min", minutes / 60, minutes % 60),
    }
}

/// How long ago something was.
pub(crate) fn ago(then: Millis, now: Millis) -> String {
    let seconds = now.saturating_sub(then) / 1000;
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A point in time, in UTC.
pub(crate) fn time(ms: Millis) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| format!("{ms} ms"), |time| format!("{time:.3}"))
}

/// An amount of bytes.
pub(crate) fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "it is rounded anyway")]
    let count_f = count as f64;
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} kB", count_f / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", count_f / 1e6),
        _ => format!("{:.1} GB", count_f / 1e9),
    }
}

/// A count with its noun: `1 record`, `2 records`.
pub(crate) fn count(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A text cut to so many characters, on one line.
pub(crate) fn short(text: &str, most: usize) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= most {
        return line;
    }
    line.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

/// A JSON value, cut.
pub(crate) fn json(value: &Json, most: usize) -> String {
    short(value.as_str(), most)
}

/// What a file is called that is about something: words, joined by hyphens.
pub(crate) fn slug(text: &str) -> String {
    let words: Vec<_> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    let mut slug = String::new();
    for word in words {
        if !slug.is_empty() && slug.chars().count() + word.chars().count() > 59 {
            break;
        }
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.extend(word.chars().take(60));
    }
    if slug.is_empty() { "untitled".to_owned() } else { slug }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_exact_while_they_are_short() {
        for (ms, text) in [
            (0, "0 ms"),
            (9999, "9999 ms"),
            (10_000, "10.0 s"),
            (599_999, "599.9 s"),
            (3_599_999, "59 min 59 s"),
            (90_000_000, "25 h 00 min"),
        ] {
            assert_eq!(span(ms), text);
        }
        assert_eq!(time(1_763_665_200_000), "2025-11-20T19:00:00.000Z");
        assert_eq!(ago(1000, 62_000), "61 s ago");
        assert_eq!(ago(9, 3), "0 s ago");
    }

    #[test]
    fn a_slug_is_a_file_name() {
        for (text, expected) in [
            ("leases and fencing tokens in a fleet", "leases-and-fencing-tokens-in-a-fleet"),
            ("../../etc/passwd", "etc-passwd"),
            ("Über: 100 %", "über-100"),
            ("?!", "untitled"),
        ] {
            assert_eq!(slug(text), expected);
        }
        assert!(slug(&"word ".repeat(100)).len() <= 60);
        assert_eq!(slug(&"x".repeat(100)).len(), 60);
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(short("a\n  b", 10), "a b");
        assert_eq!(short("abcdef", 4), "abc…");
    }
}
