//! A history as text: every record of the log, and between them what befell whom.

use std::fmt::Write as _;

use baton_protocol::Position;

use crate::log::Log;

/// The longest a record's text may be.
const MOST: usize = 240;

/// Writes a history: `story` is what was told beside the log, with virtual times in microseconds.
pub(crate) fn text(log: &Log, story: &[(u64, String)]) -> String {
    let mut text = String::new();
    let mut told = story.iter().peekable();
    for (seq, message) in (1..).zip(&log.messages) {
        while let Some((at, what)) = told.next_if(|(at, _)| *at <= message.on) {
            let _ = writeln!(text, "{:>10}  {what}", millis(*at));
        }
        let events = message.commit.events(seq).unwrap_or_default();
        if events.is_empty() {
            let _ = writeln!(
                text,
                "{:>10}  * {:<9} {} commits no record",
                millis(message.on),
                format!("{seq}"),
                message.service
            );
        }
        for event in events {
            let Position { index, .. } = event.position;
            let mark = if index == 0 { '*' } else { ' ' };
            let mut record = event.record.as_str().to_owned();
            if record.len() > MOST {
                record.truncate(record.floor_char_boundary(MOST));
                record.push('…');
            }
            let (at, position, number) = (millis(message.on), event.position.to_string(), event.number);
            let _ = writeln!(text, "{at:>10}  {mark} {position:<9} #{number:<4} {record}  <- {}", event.cause);
        }
    }
    for (at, what) in told {
        let _ = writeln!(text, "{:>10}  {what}", millis(*at));
    }
    text
}

fn millis(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}
