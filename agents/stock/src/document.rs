//! A Markdown document as sections of sentences with citations, and back.
//!
//! A citation is `[n]` (also `[1, 2]`, `[1-3]`, before or after the full stop) and belongs to the sentence it stands in
//! or after. Numbers are resolved by a last section called Sources (or References, Bibliography). Code, tables, quotes
//! and nested lists are kept as they are; only the citations in them are renumbered.

use std::collections::BTreeMap;
use std::ops::Range;

use pulldown_cmark::{Event, Options, Parser, Tag};

use crate::text;

/// A document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Document {
    /// The first heading of level 1; empty if there is none.
    pub title: String,
    /// The sections; the first has no heading if the document opens with text.
    pub sections: Vec<Section>,
    /// The Sources: what each number stands for.
    pub sources: BTreeMap<u32, String>,
}

/// A heading and what is under it, up to the next heading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Section {
    /// 2 for a section, 3 for one within it, and so on.
    pub level: usize,
    /// Empty for the opening.
    pub heading: String,
    /// Paragraphs and the like.
    pub blocks: Vec<Block>,
}

/// Part of a section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// A paragraph.
    Prose(Vec<Sentence>),
    /// A flat list; the number an ordered one begins with.
    List(Option<u64>, Vec<Vec<Sentence>>),
    /// A table, quote or nested list, as it is written.
    Raw(String),
    /// Code, HTML or a rule, as it is written; nothing in it is a citation.
    Code(String),
}

/// A sentence and the numbers it cites.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sentence {
    /// Without the citations.
    pub text: String,
    /// Ascending, none twice.
    pub citations: Vec<u32>,
}

impl Document {
    /// Reads Markdown; whatever is not understood is kept as it is.
    #[must_use]
    pub fn parse(markdown: &str) -> Self {
        let parser = Parser::new_ext(markdown, Options::ENABLE_TABLES);
        let mut definitions: Vec<_> =
            parser.reference_definitions().iter().map(|(_, definition)| definition.span.clone()).collect();
        definitions.sort_by_key(|span| span.start);

        let mut document = Self::default();
        let mut open = Section::default();
        for top in top_level(parser) {
            match top.kind {
                TopKind::Heading(level) => {
                    document.push(std::mem::take(&mut open));
                    let heading = without_citations(&markdown[top.inner]);
                    if level == 1 && document.title.is_empty() && document.sections.is_empty() {
                        document.title = heading;
                    } else {
                        open = Section { level: level.max(2), heading, blocks: Vec::new() };
                    }
                }
                TopKind::Paragraph => {
                    let sentences = prose(&markdown[top.range]);
                    if !sentences.is_empty() {
                        open.blocks.push(Block::Prose(sentences));
                    }
                }
                TopKind::FlatList(first, items) => {
                    let items: Vec<_> =
                        items.into_iter().map(|item| prose(&markdown[item])).filter(|item| !item.is_empty()).collect();
                    if !items.is_empty() {
                        open.blocks.push(Block::List(first, items));
                    }
                }
                TopKind::Raw => open.blocks.push(Block::Raw(markdown[top.range].trim_end().to_owned())),
                TopKind::Code => {
                    // An indented block loses its meaning without its first indentation.
                    let line = markdown[..top.range.start].rfind('\n').map_or(0, |newline| newline + 1);
                    open.blocks.push(Block::Code(markdown[line..top.range.end].trim_end().to_owned()));
                }
            }
        }
        document.push(open);
        document.keep_definitions(definitions.iter().map(|span| &markdown[span.clone()]));
        document
    }

    fn push(&mut self, section: Section) {
        let is_sources = matches!(
            section.heading.trim_end_matches(':').to_lowercase().as_str(),
            "sources" | "references" | "bibliography" | "works cited"
        );
        if is_sources {
            let entries = source_entries(&section.blocks);
            if !entries.is_empty() || section.blocks.is_empty() {
                self.sources.extend(entries);
                return;
            }
        }
        if !section.heading.is_empty() || !section.blocks.is_empty() {
            self.sections.push(section);
        }
    }

    /// `[1]: https://…` at the end of a text is a source; other definitions are needed by the links that name them.
    fn keep_definitions<'a>(&mut self, definitions: impl Iterator<Item = &'a str>) {
        for definition in definitions {
            let definition = text::collapse(definition);
            match source_entry(&definition) {
                Some((number, label)) => {
                    self.sources.entry(number).or_insert(label);
                }
                None => {
                    if self.sections.is_empty() {
                        self.sections.push(Section::default());
                    }
                    let last = self.sections.last_mut().expect("one was pushed");
                    last.blocks.push(Block::Code(definition));
                }
            }
        }
    }

    /// Writes Markdown.
    #[must_use]
    pub fn render(&self) -> String {
        let mut parts = Vec::new();
        if !self.title.is_empty() {
            parts.push(format!("# {}", self.title));
        }
        for section in &self.sections {
            if !section.heading.is_empty() {
                parts.push(format!("{} {}", "#".repeat(section.level.clamp(2, 6)), section.heading));
            }
            parts.extend(section.blocks.iter().map(render_block));
        }
        if !self.sources.is_empty() {
            parts.push("## Sources".to_owned());
            let lines: Vec<_> = self.sources.iter().map(|(number, label)| format!("- [{number}] {label}")).collect();
            parts.push(lines.join("\n"));
        }
        let mut markdown = parts.join("\n\n");
        markdown.push('\n');
        markdown
    }

    /// Every sentence with the heading of its section, in order; those of quotes and nested lists too.
    #[must_use]
    pub fn sentences(&self) -> Vec<(&str, Sentence)> {
        let mut all = Vec::new();
        for section in &self.sections {
            let heading = section.heading.as_str();
            for block in &section.blocks {
                match block {
                    Block::Prose(sentences) => all.extend(sentences.iter().map(|one| (heading, one.clone()))),
                    Block::List(_, items) => all.extend(items.iter().flatten().map(|one| (heading, one.clone()))),
                    Block::Raw(markdown) => all.extend(
                        crate::corpus::markdown_blocks(markdown)
                            .iter()
                            .flat_map(|block| prose(&block.text))
                            .map(|one| (heading, one)),
                    ),
                    Block::Code(_) => {}
                }
            }
        }
        all
    }

    /// Every list of sentences that can be changed: paragraphs and list items.
    pub fn runs_mut(&mut self) -> impl Iterator<Item = &mut Vec<Sentence>> {
        self.sections.iter_mut().flat_map(|section| &mut section.blocks).flat_map(|block| match block {
            Block::Prose(sentences) => std::slice::from_mut(sentences).iter_mut(),
            Block::List(_, items) => items.iter_mut(),
            Block::Raw(_) | Block::Code(_) => [].iter_mut(),
        })
    }

    /// The numbers that are cited, each once, in the order of their first appearance.
    #[must_use]
    pub fn cited(&self) -> Vec<u32> {
        let mut cited: Vec<u32> = Vec::new();
        let mut add = |numbers: &[u32]| {
            for number in numbers {
                if !cited.contains(number) {
                    cited.push(*number);
                }
            }
        };
        for block in self.sections.iter().flat_map(|section| &section.blocks) {
            match block {
                Block::Prose(sentences) => sentences.iter().for_each(|one| add(&one.citations)),
                Block::List(_, items) => items.iter().flatten().for_each(|one| add(&one.citations)),
                Block::Raw(markdown) => marks(markdown).iter().for_each(|mark| add(&mark.numbers)),
                Block::Code(_) => {}
            }
        }
        cited
    }

    /// Gives every citation and source another number.
    pub fn renumber(&mut self, new: impl Fn(u32) -> u32) {
        for sentence in self.runs_mut().flatten() {
            for number in &mut sentence.citations {
                *number = new(*number);
            }
            sentence.citations.sort_unstable();
            sentence.citations.dedup();
        }
        for block in self.sections.iter_mut().flat_map(|section| &mut section.blocks) {
            if let Block::Raw(markdown) = block {
                for mark in marks(markdown).into_iter().rev() {
                    let numbers: String = mark.numbers.iter().map(|number| format!("[{}]", new(*number))).collect();
                    markdown.replace_range(mark.range, &numbers);
                }
            }
        }
        self.sources =
            std::mem::take(&mut self.sources).into_iter().map(|(number, label)| (new(number), label)).collect();
    }

    /// Removes paragraphs and items without sentences, and headings with nothing under them; the headings removed.
    pub fn prune(&mut self) -> Vec<String> {
        for section in &mut self.sections {
            for block in &mut section.blocks {
                if let Block::List(_, items) = block {
                    items.retain(|item| !item.is_empty());
                }
            }
            section.blocks.retain(|block| match block {
                Block::Prose(sentences) => !sentences.is_empty(),
                Block::List(_, items) => !items.is_empty(),
                Block::Raw(_) | Block::Code(_) => true,
            });
        }
        let mut removed = Vec::new();
        let mut kept: Vec<Section> = Vec::new();
        for section in std::mem::take(&mut self.sections).into_iter().rev() {
            // Backwards: a heading lives if it has text, or if the one after it is kept and deeper.
            let has_child = kept.last().is_some_and(|next| next.level > section.level && !section.heading.is_empty());
            if section.blocks.is_empty() && !has_child {
                removed.extend((!section.heading.is_empty()).then_some(section.heading));
            } else {
                kept.push(section);
            }
        }
        kept.reverse();
        removed.reverse();
        self.sections = kept;
        removed
    }
}

impl Section {
    /// How many words its sentences have.
    #[must_use]
    pub fn words(&self) -> usize {
        let count = |sentences: &[Sentence]| sentences.iter().map(|one| text::count_words(&one.text)).sum::<usize>();
        self.blocks
            .iter()
            .map(|block| match block {
                Block::Prose(sentences) => count(sentences),
                Block::List(_, items) => items.iter().map(|item| count(item)).sum(),
                Block::Raw(_) | Block::Code(_) => 0,
            })
            .sum()
    }
}

fn render_block(block: &Block) -> String {
    match block {
        Block::Prose(sentences) => render_sentences(sentences),
        Block::List(first, items) => {
            let lines = items.iter().enumerate().map(|(at, item)| match first {
                Some(first) => format!("{}. {}", first + at as u64, render_sentences(item)),
                None => format!("- {}", render_sentences(item)),
            });
            lines.collect::<Vec<_>>().join("\n")
        }
        Block::Raw(markdown) | Block::Code(markdown) => markdown.clone(),
    }
}

fn render_sentences(sentences: &[Sentence]) -> String {
    let mut out = String::new();
    for sentence in sentences {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(&sentence.text);
        for (at, number) in sentence.citations.iter().enumerate() {
            out.push_str(&format!("{}[{number}]", if at == 0 { " " } else { "" }));
        }
    }
    // Dropping a sentence can bring to the front what would open a heading, a list or a quote.
    if opens_block(&out) {
        out.insert(out.find(|c: char| !c.is_ascii_digit()).unwrap_or(0), '\\');
    }
    out
}

fn opens_block(line: &str) -> bool {
    let after_digits = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = line.len() - after_digits.len();
    let ordered = (1..=9).contains(&digits)
        && after_digits.strip_prefix(['.', ')']).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
    let bullet =
        line.strip_prefix(['-', '+', '*']).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '-', '*']));
    let heading = line.starts_with('#') && line.trim_start_matches('#').chars().next().is_none_or(|c| c == ' ');
    ordered || bullet || heading || line.starts_with('>') || line.starts_with("```") || line.starts_with("~~~") || {
        !line.is_empty() && line.chars().all(|c| "=_ ".contains(c))
    }
}

/// The sentences of one paragraph of Markdown.
#[must_use]
pub fn prose(raw: &str) -> Vec<Sentence> {
    let raw = text::collapse(&raw.replace("\\\n", "\n"));
    let mut clean = String::with_capacity(raw.len());
    let mut places: Vec<(usize, Vec<u32>)> = Vec::new();
    let mut done = 0;
    for mark in marks(&raw) {
        clean.push_str(&raw[done..mark.range.start]);
        clean.truncate(clean.trim_end().len());
        places.push((clean.len(), mark.numbers));
        done = mark.range.end;
        if raw[done..].chars().next().is_some_and(char::is_alphanumeric) {
            clean.push(' ');
        }
    }
    clean.push_str(&raw[done..]);

    let mut found: Vec<(usize, Sentence)> = text::sentences(&clean)
        .into_iter()
        .map(|sentence| {
            let start = sentence.as_ptr() as usize - clean.as_ptr() as usize;
            (start, Sentence { text: sentence.to_owned(), citations: Vec::new() })
        })
        .collect();
    for (place, numbers) in places {
        let at = found.partition_point(|(start, _)| *start < place).saturating_sub(1);
        if let Some((_, sentence)) = found.get_mut(at) {
            sentence.citations.extend(numbers);
        }
    }
    found
        .into_iter()
        .map(|(_, mut sentence)| {
            sentence.citations.sort_unstable();
            sentence.citations.dedup();
            sentence
        })
        .collect()
}

fn without_citations(raw: &str) -> String {
    let raw = text::collapse(raw);
    let mut clean = String::new();
    let mut done = 0;
    for mark in marks(&raw) {
        clean.push_str(raw[done..mark.range.start].trim_end());
        done = mark.range.end;
    }
    clean.push_str(&raw[done..]);
    clean.trim().to_owned()
}

/// A citation in a text.
struct Mark {
    range: Range<usize>,
    numbers: Vec<u32>,
}

/// Finds `[1]`, `[1, 2]`, `[1-3]` outside code spans; `[1](link)`, `[1]: definition` and `[word][1]` are links.
fn marks(raw: &str) -> Vec<Mark> {
    let bytes = raw.as_bytes();
    let mut found: Vec<Mark> = Vec::new();
    let mut in_code = false;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] == b'`' {
            in_code = !in_code;
        }
        if in_code || bytes[at] != b'[' {
            at += 1;
            continue;
        }
        let escaped = at > 0 && bytes[at - 1] == b'\\';
        let start = if escaped { at - 1 } else { at };
        let mark = raw[at + 1..].find(']').and_then(|length| {
            let inner = &raw[at + 1..at + 1 + length];
            let inner = if escaped { inner.strip_suffix('\\')? } else { inner };
            Some(Mark { range: start..at + length + 2, numbers: numbers(inner)? })
        });
        let Some(mark) = mark else {
            at += 1;
            continue;
        };
        let is_link = matches!(bytes.get(mark.range.end), Some(b'(' | b':'));
        let is_reference =
            start > 0 && bytes[start - 1] == b']' && found.last().is_none_or(|last| last.range.end != start);
        at = mark.range.end;
        if !is_link && !is_reference {
            found.push(mark);
        }
    }
    found
}

fn numbers(inner: &str) -> Option<Vec<u32>> {
    let number = |text: &str| {
        let text = text.trim();
        (!text.is_empty() && text.len() <= 7 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let mut all = Vec::new();
    for part in inner.split([',', ';']) {
        match part.split_once(['-', '–']) {
            Some((from, to)) => {
                let (from, to): (u32, u32) = (number(from)?, number(to)?);
                if to < from || to - from > 20 {
                    return None;
                }
                all.extend(from..=to);
            }
            None => all.push(number(part)?),
        }
    }
    Some(all)
}

/// The entries of a Sources section: list items or lines that begin with a number.
fn source_entries(blocks: &[Block]) -> Vec<(u32, String)> {
    let mut entries: Vec<(u32, String)> = Vec::new();
    for block in blocks {
        match block {
            Block::List(first, items) => {
                for (at, item) in items.iter().enumerate() {
                    // The number was read as a citation of the first sentence.
                    let label: Vec<_> = item.iter().map(|sentence| sentence.text.as_str()).collect();
                    let cited = item.first().and_then(|sentence| sentence.citations.first().copied());
                    let counted = first.and_then(|first| u32::try_from(first + at as u64).ok());
                    entries.extend(cited.or(counted).map(|number| (number, label.join(" "))));
                }
            }
            Block::Prose(sentences) => {
                // Lines without list marks run together into one paragraph: each citation opens an entry.
                for sentence in sentences {
                    match (sentence.citations.first(), entries.last_mut()) {
                        (Some(number), _) => entries.push((*number, sentence.text.clone())),
                        (None, Some((_, label))) => label.push_str(&format!(" {}", sentence.text)),
                        (None, None) => {}
                    }
                }
            }
            Block::Raw(_) | Block::Code(_) => {}
        }
    }
    entries
}

fn source_entry(line: &str) -> Option<(u32, String)> {
    let (number, label) = line.strip_prefix('[')?.split_once(']')?;
    Some((number.parse().ok()?, label.trim_start_matches(':').trim().to_owned()))
}

struct Top {
    kind: TopKind,
    range: Range<usize>,
    inner: Range<usize>,
}

enum TopKind {
    Heading(usize),
    Paragraph,
    FlatList(Option<u64>, Vec<Range<usize>>),
    Raw,
    Code,
}

/// The blocks of the outermost level.
fn top_level(parser: Parser<'_>) -> Vec<Top> {
    let mut tops: Vec<Top> = Vec::new();
    let mut depth = 0_usize;
    let mut list = ListReader::default();
    for (event, range) in parser.into_offset_iter() {
        let ends = matches!(event, Event::End(_));
        if depth == 0 {
            let kind = match &event {
                Event::Start(Tag::Heading { level, .. }) => TopKind::Heading(*level as usize),
                Event::Start(Tag::Paragraph) => TopKind::Paragraph,
                Event::Start(Tag::List(first)) => {
                    list = ListReader::default();
                    TopKind::FlatList(*first, Vec::new())
                }
                Event::Start(Tag::CodeBlock(_) | Tag::HtmlBlock) | Event::Rule => TopKind::Code,
                _ => TopKind::Raw,
            };
            tops.push(Top { kind, inner: range.end..range.start, range: range.clone() });
        } else if let Some(top) = tops.last_mut() {
            if !ends {
                top.inner = top.inner.start.min(range.start)..top.inner.end.max(range.end);
            }
            if matches!(top.kind, TopKind::FlatList(..)) {
                list.see(&event, range, depth);
            }
        }
        if matches!(event, Event::Start(_)) {
            depth += 1;
        } else if ends {
            depth -= 1;
            if let (0, Some(top)) = (depth, tops.last_mut()) {
                if top.inner.is_empty() {
                    top.inner = top.range.start..top.range.start;
                }
                if let TopKind::FlatList(_, items) = &mut top.kind {
                    *items = list
                        .items
                        .drain(..)
                        .filter(|(start, end)| start < end)
                        .map(|(start, end)| start..end)
                        .collect();
                    if list.is_deep {
                        top.kind = TopKind::Raw;
                    }
                }
            }
        }
    }
    tops
}

/// Finds the extent of each item's text, and whether an item holds more than one paragraph.
#[derive(Default)]
struct ListReader {
    /// Of each item, where its text begins and ends; the end is before the beginning while nothing was seen.
    items: Vec<(usize, usize)>,
    paragraphs: usize,
    is_deep: bool,
}

impl ListReader {
    fn see(&mut self, event: &Event<'_>, range: Range<usize>, depth: usize) {
        match event {
            Event::Start(Tag::Item) if depth == 1 => {
                self.items.push((usize::MAX, 0));
                self.paragraphs = 0;
            }
            Event::Start(Tag::Paragraph) => {
                self.paragraphs += 1;
                self.is_deep |= self.paragraphs > 1;
                self.widen(range);
            }
            Event::Start(
                Tag::List(_)
                | Tag::CodeBlock(_)
                | Tag::BlockQuote(_)
                | Tag::Table(_)
                | Tag::HtmlBlock
                | Tag::Heading { .. },
            )
            | Event::Rule => self.is_deep = true,
            Event::End(_) => {}
            _ => self.widen(range),
        }
    }

    fn widen(&mut self, range: Range<usize>) {
        if let Some(item) = self.items.last_mut() {
            *item = (item.0.min(range.start), item.1.max(range.end));
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn cited(text: &str, citations: &[u32]) -> Sentence {
        Sentence { text: text.to_owned(), citations: citations.to_vec() }
    }

    #[test]
    fn citations_belong_to_the_sentence_before_them() {
        assert_eq!(
            prose("One is here. [1] Two is here [2, 3]. Three[4][5]\nis here.[6-7] Four `a[8]` and [9](x) and [w][1]."),
            [
                cited("One is here.", &[1]),
                cited("Two is here.", &[2, 3]),
                cited("Three is here.", &[4, 5, 6, 7]),
                cited("Four `a[8]` and [9](x) and [w][1].", &[]),
            ]
        );
        assert_eq!(prose("\\[1\\] Begins so."), [cited("Begins so.", &[1])]);
        assert_eq!(prose("[1]"), []);
    }

    #[test]
    fn a_document_survives_a_round_trip() {
        let markdown = "# On leases\n\nA lease ends. [1]\n\n## Tokens [2]\n\nThey *grow*\nonly [2][3]. Always.\n\n\
                        - One item. [1]\n- Another\n  item.\n\n3. Third.\n4. Fourth.\n\n> A quote. [3]\n\n\
                        | a | b |\n|---|---|\n| 1 | [2] |\n\n```\ncode [1]\n```\n\n### Empty\n\n---\n\n\
                        ## References\n\n1. `a.md`, first\n2. `b.md`\n3. c\n";
        let document = Document::parse(markdown);
        let rendered = document.render();
        expect![[r#"
            # On leases

            A lease ends. [1]

            ## Tokens

            They *grow* only. [2][3] Always.

            - One item. [1]
            - Another item.

            3. Third.
            4. Fourth.

            > A quote. [3]

            | a | b |
            |---|---|
            | 1 | [2] |

            ```
            code [1]
            ```

            ### Empty

            ---

            ## Sources

            - [1] `a.md`, first
            - [2] `b.md`
            - [3] c
        "#]]
        .assert_eq(&rendered);
        assert_eq!(Document::parse(&rendered), document);
    }

    #[test]
    fn sources_are_read_in_the_ways_that_models_write_them() {
        let expected = BTreeMap::from([(1, "a.md, line 3".to_owned()), (2, "b.md".to_owned())]);
        for list in ["[1] a.md, line 3\n\n[2] b.md", "1. a.md, line 3\n2. b.md", "- [1] a.md, line 3\n- [2]: b.md"] {
            let document = Document::parse(&format!("Text. [1][2]\n\n## Sources\n\n{list}\n"));
            let labels: BTreeMap<_, _> =
                document.sources.iter().map(|(n, label)| (*n, label.trim_start_matches(": ").to_owned())).collect();
            assert_eq!(labels, expected, "{list}");
        }
        let document = Document::parse("Text [1].\n\n[1]: a.md\n[word]: http://x.y\n");
        assert_eq!(document.sources, BTreeMap::from([(1, "a.md".to_owned())]));
        assert!(document.render().contains("[word]: http://x.y"));
    }

    #[test]
    fn renumbering_reaches_every_citation() {
        let mut document =
            Document::parse("One. [1] Two. [2]\n\n> Three [1, 2].\n\n    d [1]\n\n## Sources\n\n- [1] a\n- [2] b\n");
        document.renumber(|number| 3 - number);
        expect![[r#"
            One. [2] Two. [1]

            > Three [2][1].

                d [1]

            ## Sources

            - [1] b
            - [2] a
        "#]]
        .assert_eq(&document.render());
    }

    #[test]
    fn headings_without_text_go() {
        let mut document = Document::parse("# T\n\n## A\n\n### B\n\n## C\n\n### D\n\nText.\n\n## E\n");
        assert_eq!(document.prune(), ["A", "B", "E"]);
        assert_eq!(document.render(), "# T\n\n## C\n\n### D\n\nText.\n");
    }

    #[test]
    fn what_comes_to_the_front_opens_no_block() {
        for text in ["# no", "- no", "1. no", "> no", "+ no", "12) no"] {
            let rendered = render_sentences(&[cited(text, &[])]);
            let document = Document::parse(&rendered);
            assert!(matches!(document.sections[0].blocks[..], [Block::Prose(_)]), "{rendered}");
            assert_eq!(document.render().trim_end(), rendered);
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics_and_settles(markdown in "([-#>*`|\\[\\]() \n1-9a-cA-C.!?\"'’—_:\\\\]|## |\\[1\\]|\n\n){0,60}") {
            let mut last = Document::parse(&markdown).render();
            // Broken markup may need a few readings to settle, but it must.
            for _ in 0..8 {
                last = Document::parse(&last).render();
            }
            prop_assert_eq!(&Document::parse(&last).render(), &last);
        }
    }
}
