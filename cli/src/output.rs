//! Standard output: text, tables, JSON. Whoever reads may go at any time; that is no error.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Cell as TerminalCell, CellAlignment, Color, ContentArrangement, presets};
use serde::Serialize;

use crate::failure::ClosedPipe;
use crate::style::{Style, Tone};

/// Where a command writes its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) style: Style,
    /// Whether a person looks: tables get lines, prose is wrapped.
    pub(crate) terminal: bool,
}

impl Output {
    pub(crate) fn new(style: Style) -> Self {
        Self { style, terminal: io::stdout().is_terminal() }
    }

    /// Writes text as it is.
    pub(crate) fn text(&self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => ClosedPipe.into(),
            _ => anyhow::Error::from(error).context("standard output can not be written"),
        })
    }

    /// Writes a line.
    pub(crate) fn line(&self, line: &str) -> anyhow::Result<()> {
        self.text(&format!("{line}\n"))
    }

    /// Writes a value as JSON, for people and programs alike.
    pub(crate) fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(&serde_json::to_string_pretty(value)?)
    }

    /// Writes a value as JSON in one line: one of a stream of them.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.line(&serde_json::to_string(value)?)
    }

    /// Writes a table.
    pub(crate) fn table(&self, table: &Table) -> anyhow::Result<()> {
        self.text(&if self.terminal { table.boxed(self.style) } else { table.aligned(self.style) })
    }

    /// Writes a table, on a terminal in the place of what stands there.
    pub(crate) fn table_in_place(&self, table: &Table) -> anyhow::Result<()> {
        /// Clears the screen, and goes to its upper left corner.
        const CLEAR: &str = "\x1b[2J\x1b[H";
        if self.terminal { self.text(&format!("{CLEAR}{}", table.boxed(self.style))) } else { self.table(table) }
    }

    /// How many columns the terminal has; a readable number where there is none.
    pub(crate) fn width(&self) -> usize {
        comfy_table::Table::new().width().filter(|width| *width > 0).map_or(80, usize::from)
    }
}

/// A cell: text, and what it means.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        // A line break would break a table that programs read line by line.
        Self { text: text.into().replace(['\n', '\r'], " "), tone }
    }

    /// A status or an outcome, in its colour.
    pub(crate) fn status(word: &str) -> Self {
        Self::toned(word, Tone::of(word))
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// A table. Columns whose title begins with `>` are aligned to the right.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    titles: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(titles: impl Into<Vec<&'static str>>) -> Self {
        Self { titles: titles.into(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl Into<Vec<Cell>>) {
        self.rows.push(cells.into());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For a terminal: with lines, fitted to its width.
    fn boxed(&self, style: Style) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        // Some terminals say that they have no width at all.
        if table.width() == Some(0) {
            table.set_width(80);
        }
        if style.is_on() {
            table.enforce_styling();
        } else {
            table.style_text_only();
        }
        let title = |title: &&str| {
            let cell = TerminalCell::new(title.trim_start_matches('>'));
            if style.is_on() { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        table.set_header(self.titles.iter().map(title).collect::<Vec<_>>());
        for row in &self.rows {
            table.add_row(row.iter().map(|cell| terminal_cell(cell, style)).collect::<Vec<_>>());
        }
        for (index, title) in self.titles.iter().enumerate() {
            if let Some(column) = table.column_mut(index).filter(|_| title.starts_with('>')) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{table}\n")
    }

    /// For a pipe: columns with two blanks between them, and nothing at a line's end.
    fn aligned(&self, style: Style) -> String {
        let length = |text: &str| text.chars().count();
        let mut widths: Vec<usize> = self.titles.iter().map(|t| length(t.trim_start_matches('>'))).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(length(&cell.text));
            }
        }
        let titles: Vec<Cell> = self.titles.iter().map(|t| t.trim_start_matches('>').to_uppercase().into()).collect();
        let mut text = String::new();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let mut line = String::new();
            for (index, cell) in row.iter().enumerate() {
                let gap = " ".repeat(widths[index].saturating_sub(length(&cell.text)));
                let painted = style.tone(cell.tone, &cell.text);
                let right = self.titles[index].starts_with('>');
                line.push_str(&if right { format!("{gap}{painted}  ") } else { format!("{painted}{gap}  ") });
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn terminal_cell(cell: &Cell, style: Style) -> TerminalCell {
    let shown = TerminalCell::new(&cell.text);
    if !style.is_on() {
        return shown;
    }
    match cell.tone {
        Tone::Plain => shown,
        Tone::Good => shown.fg(Color::Green),
        Tone::Bad => shown.fg(Color::Red),
        Tone::Busy => shown.fg(Color::Yellow),
        Tone::Faint => shown.add_attribute(Attribute::Dim),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn in_a_pipe_a_table_is_aligned_text() {
        let mut table = Table::new(["stage", "status", ">took"]);
        table.row(["research".into(), Cell::status("succeeded"), "12 ms".into()]);
        table.row(["writing".into(), Cell::status("failed"), "1012 ms".into()]);
        table.row(["a\nb".into(), Cell::status("pending"), "".into()]);
        expect![[r#"
            STAGE     STATUS        TOOK
            research  succeeded    12 ms
            writing   failed     1012 ms
            a b       pending
        "#]]
        .assert_eq(&table.aligned(Style::plain()));
    }
}
