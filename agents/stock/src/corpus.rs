//! Text files on disk, cut into passages of prose.
//!
//! A passage is some paragraphs and list items under one heading, about a hundred words of them. Code, tables, HTML,
//! images and front matter are left out; links keep their words, code spans keep their back-ticks (so that they stay
//! safe as Markdown and are recognised as code later). One line of a passage's text is one paragraph or list item.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use walkdir::WalkDir;

use crate::text;

/// The most that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Files, over all directories.
    pub files: usize,
    /// Bytes of one file; a larger one is skipped.
    pub file_bytes: u64,
    /// Bytes of all files together; what comes after is skipped.
    pub total_bytes: u64,
    /// Directories within directories.
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { files: 2_000, file_bytes: 1 << 20, total_bytes: 32 << 20, depth: 16 }
    }
}

/// What was read.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// The files, by path.
    pub files: Vec<SourceFile>,
    /// Their passages, in the order of the files and of their lines.
    pub passages: Vec<Passage>,
    /// The files that were not read, and why.
    pub skipped: Vec<Skipped>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Relative to the directory asked for, with forward slashes.
    pub path: String,
    /// Its first heading, or its name.
    pub title: String,
    /// Fingerprint of the bytes, in hex.
    pub sha256: String,
    /// Words of prose in it.
    pub words: usize,
}

/// Some prose under one heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// Index into [`Corpus::files`].
    pub file: usize,
    /// The headings it stands under, outermost first.
    pub headings: Vec<String>,
    /// The prose, one paragraph or list item a line.
    pub text: String,
    /// The line of the file where it begins, from 1.
    pub start_line: usize,
}

/// A file that was not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The file.
    pub path: String,
    /// Why it was not read.
    pub why: String,
}

/// A directory could not be read at all.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// There is nothing at that path.
    #[error("there is no file or directory at {path}")]
    Missing {
        /// The path as it was given.
        path: String,
    },
    /// The path leads out of the directory that agents may read.
    #[error(
        "{path} is outside the directory that this agent may read: start the agent with --sources DIR for another one"
    )]
    Outside {
        /// The path as it was given.
        path: String,
    },
    /// The operating system refused.
    #[error("{path} cannot be read: {source}")]
    Unreadable {
        /// The path as it was given.
        path: String,
        /// What it said.
        source: std::io::Error,
    },
}

/// Finds the directory or file that a task names.
///
/// With a `root`, paths are relative to it and must not lead out of it, not even through a symbolic link.
pub fn locate(name: &str, root: Option<&Path>) -> Result<PathBuf, CorpusError> {
    let given = Path::new(name);
    // Within what may be read, hidden files are not meant for others either: keys, histories, `.git`.
    let hidden = |part: Component<'_>| matches!(part, Component::Normal(name) if is_hidden(name));
    if root.is_some() && !given.is_absolute() && given.components().any(hidden) {
        return Err(CorpusError::Outside { path: name.to_owned() });
    }
    let path = root.map_or_else(|| given.to_owned(), |root| root.join(given));
    let path = fs::canonicalize(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => {
            CorpusError::Missing { path: name.to_owned() }
        }
        _ => CorpusError::Unreadable { path: name.to_owned(), source },
    })?;
    if let Some(root) = root {
        let root = fs::canonicalize(root)
            .map_err(|source| CorpusError::Unreadable { path: root.display().to_string(), source })?;
        if !path.starts_with(&root) {
            return Err(CorpusError::Outside { path: name.to_owned() });
        }
    }
    Ok(path)
}

/// Reads every `.md`, `.markdown` and `.txt` file below the given directories (or the given files themselves).
///
/// Hidden entries are passed over and symbolic links are not followed. What is too large, binary or unreadable is noted
/// in [`Corpus::skipped`]. With more than one directory, each path begins with its directory's name.
pub fn read(names: &[String], root: Option<&Path>, limits: Limits) -> Result<Corpus, CorpusError> {
    let mut corpus = Corpus::default();
    let mut left = limits.total_bytes;
    for (at, name) in names.iter().enumerate() {
        let base = locate(name, root)?;
        let prefix = if names.len() > 1 { prefix_of(names, at) } else { String::new() };
        let walk = WalkDir::new(&base).max_depth(limits.depth).sort_by_file_name().into_iter();
        for entry in
            walk.filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.file_name()) && !is_derived(entry.path()))
        {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().map_or_else(String::new, |path| relative(path, &base, &prefix));
                    corpus.skipped.push(Skipped { path, why: "it cannot be opened".to_owned() });
                    continue;
                }
            };
            if !entry.file_type().is_file() || !(is_text_name(entry.path()) || entry.depth() == 0) {
                continue;
            }
            let path = relative(entry.path(), &base, &prefix);
            let content = if corpus.files.len() >= limits.files {
                Err(format!("{} files were read already", limits.files))
            } else {
                read_text(entry.path(), limits.file_bytes, left)
            };
            match content {
                Ok(content) => {
                    left = left.saturating_sub(content.len() as u64);
                    add_file(&mut corpus, path, &content);
                }
                Err(why) => corpus.skipped.push(Skipped { path, why }),
            }
        }
    }
    Ok(corpus)
}

/// Reads one file that [`read`] named, by that name; `None` if it is no longer there or is not text.
#[must_use]
pub fn reread(names: &[String], root: Option<&Path>, path: &str, limits: Limits) -> Option<String> {
    let relative = Path::new(path);
    if relative.components().any(|part| !matches!(part, Component::Normal(_))) {
        return None;
    }
    names.iter().enumerate().find_map(|(at, name)| {
        let base = locate(name, root).ok()?;
        let rest = match names.len() {
            1 => relative,
            _ => relative.strip_prefix(prefix_of(names, at)).ok()?,
        };
        let file = match base.is_file() {
            true if names.len() == 1 => (base.file_name() == relative.file_name()).then(|| base.clone())?,
            true => rest.as_os_str().is_empty().then(|| base.clone())?,
            false => base.join(rest),
        };
        let file = fs::canonicalize(file).ok().filter(|file| file.starts_with(&base))?;
        read_text(&file, limits.file_bytes, limits.total_bytes).ok()
    })
}

/// The paragraphs and list items of a file, as they are in the text of its passages.
#[must_use]
pub fn paragraphs(path: &str, content: &str) -> Vec<String> {
    let blocks = blocks_of(path, content).into_iter();
    blocks.filter(|block| block.kind == BlockKind::Prose).map(|block| block.text).collect()
}

/// Hex of the SHA-256 of a file's content.
#[must_use]
pub fn fingerprint(content: &str) -> String {
    use std::fmt::Write as _;
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(content.as_bytes()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Distinguishes several directories: the last part of the name, with its place in the list where that is not enough.
fn prefix_of(names: &[String], at: usize) -> String {
    let last = |name: &String| {
        Path::new(name).file_name().map_or_else(|| "sources".to_owned(), |part| part.to_string_lossy().into_owned())
    };
    let own = last(&names[at]);
    if names.iter().enumerate().any(|(other, name)| other != at && last(name) == own) {
        format!("{own}-{}", at + 1)
    } else {
        own
    }
}

/// Whether a folder holds what programs made or fetched: build output and caches say so by a tag (bford.info/cachedir).
fn is_derived(path: &Path) -> bool {
    path.is_dir() && (path.join("CACHEDIR.TAG").is_file() || path.ends_with("node_modules"))
}

fn is_hidden(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().starts_with('.')
}

fn is_text_name(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| ["md", "markdown", "txt"].iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

fn relative(path: &Path, base: &Path, prefix: &str) -> String {
    let rest = path.strip_prefix(base).unwrap_or(path);
    let mut parts: Vec<_> = rest.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if !prefix.is_empty() {
        parts.insert(0, prefix.to_owned());
    } else if parts.is_empty() {
        // The base is the file itself.
        parts.extend(base.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    parts.join("/")
}

fn read_text(path: &Path, most: u64, left: u64) -> Result<String, String> {
    let file = fs::File::open(path).map_err(|error| format!("it cannot be opened: {}", error.kind()))?;
    // One byte over the limit is enough to know, whatever the metadata say.
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| format!("it cannot be read: {}", error.kind()))?;
    let size = bytes.len() as u64;
    if size > most {
        return Err(format!("it is larger than {most} bytes"));
    }
    if size > left {
        return Err("as much as may be read was read already".to_owned());
    }
    if bytes.contains(&0) {
        return Err("it is binary".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    Ok(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))
}

fn add_file(corpus: &mut Corpus, path: String, content: &str) {
    let blocks = blocks_of(&path, content);
    let first_heading = blocks.iter().find_map(|block| match &block.kind {
        BlockKind::Heading(_) => Some(block.text.clone()),
        BlockKind::Prose => None,
    });
    let file = corpus.files.len();
    let words = add_passages(corpus, file, &blocks);
    let title = first_heading.filter(|title| title.len() <= 120).unwrap_or_else(|| title_of(&path));
    corpus.files.push(SourceFile { title, sha256: fingerprint(content), words, path });
}

fn blocks_of(path: &str, content: &str) -> Vec<Block> {
    if is_markdown(path, content) { markdown_blocks(content) } else { plain_blocks(content) }
}

/// Collects blocks under one heading until there is about a screenful of them.
fn add_passages(corpus: &mut Corpus, file: usize, blocks: &[Block]) -> usize {
    const ENOUGH: usize = 110;
    let mut headings: Vec<(usize, String)> = Vec::new();
    let mut open: Option<(Passage, usize)> = None;
    let mut words = 0;
    for block in blocks {
        match block.kind {
            BlockKind::Heading(level) => {
                corpus.passages.extend(open.take().map(|(passage, _)| passage));
                headings.retain(|(above, _)| *above < level);
                headings.push((level, block.text.clone()));
            }
            BlockKind::Prose => {
                let size = text::count_words(&block.text);
                words += size;
                let (passage, so_far) = open.get_or_insert_with(|| {
                    let headings = headings.iter().map(|(_, text)| text.clone()).collect();
                    (Passage { file, headings, text: String::new(), start_line: block.line }, 0)
                });
                if !passage.text.is_empty() {
                    passage.text.push('\n');
                }
                passage.text.push_str(&block.text);
                *so_far += size;
                if *so_far >= ENOUGH {
                    corpus.passages.extend(open.take().map(|(passage, _)| passage));
                }
            }
        }
    }
    corpus.passages.extend(open.take().map(|(passage, _)| passage));
    words
}

/// "resource-manager_notes.md" becomes "Resource manager notes".
fn title_of(path: &str) -> String {
    let stem = Path::new(path).file_stem().map_or_else(|| path.to_owned(), |stem| stem.to_string_lossy().into_owned());
    let spaced = text::collapse(&stem.replace(['-', '_', '.'], " "));
    let mut chars = spaced.chars();
    chars.next().map_or(spaced.clone(), |first| first.to_uppercase().chain(chars).collect())
}

fn is_markdown(path: &str, content: &str) -> bool {
    let plain = Path::new(path).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("txt"));
    // Much that is called .txt is Markdown; a heading or a fence gives it away.
    !plain || content.lines().any(|line| line.starts_with("# ") || line.starts_with("## ") || line.starts_with("```"))
}

/// A heading, or one paragraph or list item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Which of them.
    pub kind: BlockKind,
    /// Its text on one line.
    pub text: String,
    /// Where it begins, from 1.
    pub line: usize,
}

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// A heading of this level.
    Heading(usize),
    /// A paragraph or list item.
    Prose,
}

/// The headings and the prose of a Markdown text, without markup.
#[must_use]
pub fn markdown_blocks(content: &str) -> Vec<Block> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
        | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS;
    let lines = LineStarts::new(content);
    let mut reader = BlockReader { blocks: Vec::new(), open: None, heading: None };
    // Within these, nothing is prose.
    let mut muted = 0_usize;
    for (event, range) in Parser::new_ext(content, options).into_offset_iter() {
        match event {
            Event::Start(tag) if is_muted(&tag) => muted += 1,
            Event::End(tag) if is_muted_end(tag) => muted = muted.saturating_sub(1),
            _ if muted > 0 => {}
            Event::Start(Tag::Heading { level, .. }) => {
                reader.flush(&lines);
                reader.heading = Some(level);
            }
            Event::Start(Tag::Paragraph | Tag::Item | Tag::List(_) | Tag::BlockQuote(_))
            | Event::End(
                TagEnd::Paragraph | TagEnd::Item | TagEnd::List(_) | TagEnd::BlockQuote(_) | TagEnd::Heading(_),
            ) => reader.flush(&lines),
            Event::Text(text) => reader.push(&text.replace('`', "'"), range.start),
            Event::Code(code) if code.contains('`') => reader.push(&code.replace('`', "'"), range.start),
            Event::Code(code) => reader.push(&format!("`{code}`"), range.start),
            Event::SoftBreak | Event::HardBreak => reader.push(" ", range.start),
            _ => {}
        }
    }
    reader.flush(&lines);
    reader.blocks
}

fn is_muted(tag: &Tag<'_>) -> bool {
    matches!(
        tag,
        Tag::CodeBlock(_)
            | Tag::Table(_)
            | Tag::HtmlBlock
            | Tag::Image { .. }
            | Tag::FootnoteDefinition(_)
            | Tag::MetadataBlock(_)
            | Tag::Strikethrough
    )
}

fn is_muted_end(tag: TagEnd) -> bool {
    matches!(
        tag,
        TagEnd::CodeBlock
            | TagEnd::Table
            | TagEnd::HtmlBlock
            | TagEnd::Image
            | TagEnd::FootnoteDefinition
            | TagEnd::MetadataBlock(_)
            | TagEnd::Strikethrough
    )
}

struct BlockReader {
    blocks: Vec<Block>,
    open: Option<(usize, String)>,
    heading: Option<HeadingLevel>,
}

impl BlockReader {
    fn push(&mut self, text: &str, offset: usize) {
        self.open.get_or_insert_with(|| (offset, String::new())).1.push_str(text);
    }

    fn flush(&mut self, lines: &LineStarts) {
        let heading = self.heading.take();
        let Some((offset, text)) = self.open.take() else { return };
        let text = text::collapse(&text);
        if !text.is_empty() {
            let kind = heading.map_or(BlockKind::Prose, |level| BlockKind::Heading(level as usize));
            self.blocks.push(Block { kind, text, line: lines.line(offset) });
        }
    }
}

struct LineStarts(Vec<usize>);

impl LineStarts {
    fn new(content: &str) -> Self {
        Self(content.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect())
    }

    fn line(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

/// Paragraphs between blank lines; a short line on its own, without a stop, is a heading; bullets begin paragraphs.
fn plain_blocks(content: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, Vec<&str>)> = None;
    let mut close = |open: &mut Option<(usize, Vec<&str>)>| {
        let Some((line, mut parts)) = open.take() else { return };
        if parts.len() == 2 && parts[1].chars().all(|c| "=-~".contains(c)) {
            parts.truncate(1);
        }
        let text = text::collapse(&parts.join(" ")).replace('`', "'");
        let short = parts.len() == 1 && text.chars().count() <= 80;
        let is_heading = short
            && text.chars().next().is_some_and(|c| c.is_uppercase() || c.is_ascii_digit())
            && !text.ends_with(['.', '!', '?', ':', ';', ',']);
        let kind = if is_heading { BlockKind::Heading(1) } else { BlockKind::Prose };
        if text.chars().any(char::is_alphanumeric) {
            blocks.push(Block { kind, text, line });
        }
    };
    for (at, line) in content.lines().enumerate() {
        let trimmed = line.trim();
        let bullet = ["- ", "* ", "• "].iter().find_map(|mark| trimmed.strip_prefix(mark));
        if trimmed.is_empty() || bullet.is_some() {
            close(&mut open);
        }
        if !trimmed.is_empty() {
            open.get_or_insert_with(|| (at + 1, Vec::new())).1.push(bullet.unwrap_or(trimmed));
        }
    }
    close(&mut open);
    blocks
}

#[cfg(test)]
mod tests {
    use std::fs;

    use expect_test::expect;

    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("create");
            fs::write(path, content).expect("write");
        }
        let name = dir.path().to_str().expect("UTF-8").to_owned();
        (dir, vec![name])
    }

    #[test]
    fn markdown_becomes_blocks_of_prose() {
        let text = "---\ntitle: x\n---\n# The `log`\n\nOne **log**,\nmany [readers](http://x.y).\n\n```rust\nfn no() {}\n```\n\n\
                    | a | b |\n|---|---|\n| no | no |\n\n- first item\n- second *item*\n  - nested\n\n> quoted ![no](i.png)\n\n\
                    <div>no</div>\n\nEnd[^1].\n\n[^1]: no\n";
        let shown: String = markdown_blocks(text)
            .iter()
            .map(|block| format!("{:>2} {:?} {}\n", block.line, block.kind, block.text))
            .collect();
        expect![[r#"
             4 Heading(1) The `log`
             6 Prose One log, many readers.
            17 Prose first item
            18 Prose second item
            19 Prose nested
            21 Prose quoted
            25 Prose End.
        "#]]
        .assert_eq(&shown);
    }

    #[test]
    fn plain_text_has_headings_too() {
        let blocks = plain_blocks("Leases\n======\n\nA lease ends.\nIt does.\n\n- one\n- two\n");
        let shown: Vec<_> = blocks.iter().map(|block| (block.line, block.kind, block.text.as_str())).collect();
        assert_eq!(
            shown,
            [
                (1, BlockKind::Heading(1), "Leases"),
                (4, BlockKind::Prose, "A lease ends. It does."),
                (7, BlockKind::Prose, "one"),
                (8, BlockKind::Prose, "two"),
            ]
        );
    }

    #[test]
    fn a_folder_is_read_in_order_and_what_is_skipped_is_said() {
        let (_dir, names) = folder(&[
            ("b.md", b"# B\n\nText of b.\n"),
            ("a/deep.txt", b"Text of deep.\n"),
            ("binary.md", b"\0\x01"),
            ("latin.txt", b"caf\xe9"),
            ("huge.md", &[b'x'; 200]),
            ("code.rs", b"fn main() {}"),
            (".hidden/secret.md", b"# no"),
            ("target/CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55"),
            ("target/doc/built.md", b"# no"),
        ]);
        let corpus = read(&names, None, Limits { file_bytes: 100, ..Limits::default() }).expect("read");
        let paths: Vec<_> = corpus.files.iter().map(|file| (file.path.as_str(), file.title.as_str())).collect();
        assert_eq!(paths, [("a/deep.txt", "Deep"), ("b.md", "B")]);
        let skipped: String = corpus.skipped.iter().map(|skip| format!("{}: {}\n", skip.path, skip.why)).collect();
        expect![[r#"
            binary.md: it is binary
            huge.md: it is larger than 100 bytes
            latin.txt: it is not UTF-8
        "#]]
        .assert_eq(&skipped);
        assert_eq!(corpus.passages[1].headings, ["B"]);
        assert_eq!(corpus.passages[1].start_line, 3);
    }

    #[test]
    fn limits_on_count_and_total_hold() {
        let (_dir, names) = folder(&[("a.md", b"One two."), ("b.md", b"Three four."), ("c.md", b"Five.")]);
        let corpus = read(&names, None, Limits { files: 1, ..Limits::default() }).expect("read");
        assert_eq!((corpus.files.len(), corpus.skipped.len()), (1, 2));
        let corpus = read(&names, None, Limits { total_bytes: 13, ..Limits::default() }).expect("read");
        assert_eq!(corpus.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(), ["a.md", "c.md"]);
    }

    #[test]
    fn several_directories_keep_their_paths_apart() {
        let (dir, _) = folder(&[("x/docs/a.md", b"One."), ("y/docs/a.md", b"Two."), ("notes/b.md", b"Three.")]);
        let names = ["x/docs", "y/docs", "notes"].map(str::to_owned);
        let corpus = read(&names, Some(dir.path()), Limits::default()).expect("read");
        let paths: Vec<_> = corpus.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["docs-1/a.md", "docs-2/a.md", "notes/b.md"]);
        for (path, text) in paths.iter().zip(["One.", "Two.", "Three."]) {
            assert_eq!(reread(&names, Some(dir.path()), path, Limits::default()).as_deref(), Some(text));
        }
    }

    #[test]
    fn nothing_outside_the_root_is_read() {
        let (dir, _) = folder(&[("in/a.md", b"One."), ("out/b.md", b"Two.")]);
        let root = dir.path().join("in");
        assert!(matches!(locate("../out", Some(&root)), Err(CorpusError::Outside { .. })));
        assert!(matches!(locate("/", Some(&root)), Err(CorpusError::Outside { .. })));
        assert!(matches!(locate("nowhere", Some(&root)), Err(CorpusError::Missing { .. })));
        assert_eq!(reread(&[".".to_owned()], Some(&root), "../out/b.md", Limits::default()), None);
        assert!(reread(&[".".to_owned()], Some(&root), "a.md", Limits::default()).is_some());
    }
}
