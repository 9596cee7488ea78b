//! Markdown on a terminal: wrapped, with headings that stand out. In a pipe it stays what it is.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::output::Output;
use crate::style::Style;

/// Lines longer than this are hard to read.
const WIDEST: usize = 96;

/// Markdown for whoever reads the output.
pub(crate) fn for_output(markdown: &str, out: Output) -> String {
    if out.terminal {
        render(markdown, out.width().min(WIDEST), out.style)
    } else {
        format!("{}\n", markdown.trim_end())
    }
}

/// Markdown as text of that width.
fn render(markdown: &str, width: usize, style: Style) -> String {
    let mut page = Page { style, width, text: String::new(), words: Vec::new(), block: Block::default() };
    for event in Parser::new_ext(markdown, Options::ENABLE_STRIKETHROUGH) {
        page.take(event);
    }
    page.end_block();
    page.text
}

/// What is being written.
struct Page {
    style: Style,
    width: usize,
    text: String,
    /// The words of the present block, each with how wide it is.
    words: Vec<(String, usize)>,
    block: Block,
}

/// How the present block looks.
#[derive(Default)]
struct Block {
    heading: Option<HeadingLevel>,
    emphasis: usize,
    strong: usize,
    code: bool,
    /// For each list that we are in, the next number if it has numbers.
    lists: Vec<Option<u64>>,
    quotes: usize,
    /// What the next line begins with, instead of blanks.
    bullet: Option<String>,
    /// Whether a word goes on, without a blank before it.
    glued: bool,
}

impl Page {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.block.code => {
                for line in text.lines() {
                    self.text.push_str(&format!("{}    {}\n", self.indent(), self.style.cyan(line)));
                }
            }
            Event::Text(text) => self.say(&text, false),
            Event::Code(code) => self.say(&code, true),
            Event::SoftBreak => self.block.glued = false,
            Event::HardBreak => self.flush(),
            Event::Rule => {
                self.end_block();
                self.text.push_str(&format!("{}\n\n", self.style.dim(&"─".repeat(self.width.min(24)))));
            }
            Event::Html(html) | Event::InlineHtml(html) => self.say(&html, false),
            Event::FootnoteReference(_) | Event::TaskListMarker(_) | Event::InlineMath(_) | Event::DisplayMath(_) => {}
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::Heading { level, .. } => {
                self.end_block();
                self.block.heading = Some(*level);
            }
            Tag::Emphasis => self.block.emphasis += 1,
            Tag::Strong => self.block.strong += 1,
            Tag::BlockQuote(_) => self.block.quotes += 1,
            Tag::CodeBlock(_) => {
                self.end_block();
                self.block.code = true;
            }
            Tag::List(first) => {
                self.flush();
                self.block.lists.push(*first);
            }
            Tag::Item => {
                let number = self.block.lists.last_mut().and_then(|list| {
                    let number = (*list)?;
                    *list = Some(number + 1);
                    Some(number)
                });
                self.block.bullet = Some(number.map_or_else(|| "• ".to_owned(), |number| format!("{number}. ")));
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Heading(_) => {
                self.end_block();
                self.block.heading = None;
            }
            TagEnd::Emphasis => self.block.emphasis = self.block.emphasis.saturating_sub(1),
            TagEnd::Strong => self.block.strong = self.block.strong.saturating_sub(1),
            TagEnd::BlockQuote(_) => {
                self.end_block();
                self.block.quotes = self.block.quotes.saturating_sub(1);
            }
            TagEnd::CodeBlock => {
                self.block.code = false;
                self.text.push('\n');
            }
            TagEnd::Paragraph if self.block.lists.is_empty() => self.end_block(),
            TagEnd::Paragraph | TagEnd::Item => self.flush(),
            TagEnd::List(_) => {
                self.block.lists.pop();
                if self.block.lists.is_empty() {
                    self.end_block();
                    self.text.push('\n');
                }
            }
            _ => {}
        }
    }

    /// Adds words to the block. Text that does not begin with a blank goes on with the word before it.
    fn say(&mut self, text: &str, is_code: bool) {
        let mut first = true;
        for word in text.split(char::is_whitespace).filter(|word| !word.is_empty()) {
            let painted = self.paint(word, is_code);
            let glued = first && self.block.glued && !text.starts_with(char::is_whitespace);
            match self.words.last_mut().filter(|_| glued) {
                Some((last, width)) => {
                    last.push_str(&painted);
                    *width += word.chars().count();
                }
                None => self.words.push((painted, word.chars().count())),
            }
            first = false;
        }
        self.block.glued = !text.ends_with(char::is_whitespace);
    }

    fn paint(&self, word: &str, is_code: bool) -> String {
        let style = self.style;
        if is_code {
            return style.cyan(word);
        }
        if self.block.heading.is_some() || self.block.strong > 0 {
            return style.bold(word);
        }
        if self.block.emphasis > 0 { style.italic(word) } else { word.to_owned() }
    }

    fn indent(&self) -> String {
        "│ ".repeat(self.block.quotes) + &"  ".repeat(self.block.lists.len())
    }

    /// Writes the words of the block, wrapped.
    fn flush(&mut self) {
        if self.words.is_empty() {
            return;
        }
        let words = std::mem::take(&mut self.words);
        let indent = self.indent();
        let hanging = indent.chars().count();
        let mut line = match self.block.bullet.take() {
            Some(bullet) => {
                // The bullet hangs in the space that the list is indented by, as far as it fits.
                let room = hanging.saturating_sub(bullet.chars().count());
                format!("{}{bullet}", indent.chars().take(room).collect::<String>())
            }
            None => indent.clone(),
        };
        let mut used = line.chars().count();
        let mut is_first = true;
        for (word, width) in words {
            if !is_first && used + 1 + width > self.width {
                self.text.push_str(line.trim_end());
                self.text.push('\n');
                line.clone_from(&indent);
                used = hanging;
                is_first = true;
            }
            if !is_first {
                line.push(' ');
                used += 1;
            }
            line.push_str(&word);
            used += width;
            is_first = false;
        }
        self.text.push_str(&line);
        self.text.push('\n');
        if self.block.heading == Some(HeadingLevel::H1) {
            self.text.push_str(&format!("{}\n", self.style.dim(&"═".repeat(used.min(self.width)))));
        }
        self.block.glued = false;
    }

    /// Ends a block, with an empty line after it.
    fn end_block(&mut self) {
        if !self.words.is_empty() {
            self.flush();
            self.text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn prose_is_wrapped_and_lists_hang() {
        let text = "# Leases\n\nA *lease* gives one agent the right to do **one** task [1].\nIt ends.\n\n\
                    ## Sources\n\n1. `a.md` — Leases, line 3\n2. `b.md`, which has a long name\n\n- x\n  - y\n\n\
                    > quoted text here\n\n```\nlet x = 1;\n```\n\nEnd.\n";
        expect![[r#"
            Leases
            ══════

            A lease gives one agent the
            right to do one task [1]. It
            ends.

            Sources

            1. a.md — Leases, line 3
            2. b.md, which has a long name

            • x
              • y

            │ quoted text here

                let x = 1;

            End.

        "#]]
        .assert_eq(&render(text, 30, Style::plain()));
    }
}
