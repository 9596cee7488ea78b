//! The JSON that one role hands to the next, and how a role finds it in its task.
//!
//! Whatever has `extracts` is research; whatever has a `document` (Markdown) is a text. A text carries the extracts it
//! cites, numbered as it cites them, so that it can be checked by whoever has it. It also says in `includes` which
//! stages' texts went into it: those are not taken a second time when a task gets them as well.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::Document;
use crate::roles::RoleError;
use crate::text;

/// A passage of a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Extract {
    /// Its number within the result it is in; the `n` of a citation `[n]`.
    #[serde(default)]
    pub id: u32,
    /// The file it is from.
    pub source: String,
    /// The file's title.
    #[serde(default)]
    pub title: String,
    /// The heading it stands under.
    #[serde(default)]
    pub heading: String,
    /// The passage, word for word; one paragraph or list item a line.
    pub text: String,
    /// How well it answers the topic; comparable within one result only.
    #[serde(default)]
    pub score: f64,
    /// Where it begins in the file, from 1; 0 if that is not known.
    #[serde(default)]
    pub start_line: usize,
    /// What a model made of it, in fewer words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

impl Extract {
    /// How it stands in the list of sources.
    #[must_use]
    pub fn label(&self) -> String {
        let mut label = format!("`{}`", self.source.replace('`', "'"));
        let heading = text::collapse(&self.heading.replace(['[', ']'], ""));
        if !heading.is_empty() {
            label.push_str(&format!(" — {}", heading.trim_end_matches('.')));
        }
        if self.start_line > 0 {
            label.push_str(&format!(", line {}", self.start_line));
        }
        label
    }

    fn is_same(&self, other: &Self) -> bool {
        self.source == other.source && self.start_line == other.start_line && self.text == other.text
    }
}

/// A file that extracts are from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its number among the sources.
    #[serde(default)]
    pub id: u32,
    /// Relative to the directory that was searched.
    pub path: String,
    /// Its first heading, or its name.
    #[serde(default)]
    pub title: String,
    /// Fingerprint of its bytes, in hex; empty if that is not known.
    #[serde(default)]
    pub sha256: String,
    /// Words of prose in it.
    #[serde(default)]
    pub words: usize,
}

/// A sentence of a text, for machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CitedSentence {
    /// Without its citations.
    pub text: String,
    /// The numbers it cites.
    pub citations: Vec<u32>,
    /// The heading it stands under; empty in the opening.
    pub section: String,
}

/// A text: what writing gives, and editing on top of what it says itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Composition {
    /// Its title.
    pub title: String,
    /// What it is about, as the run asked.
    pub topic: String,
    /// The whole text as Markdown.
    pub document: String,
    /// Words in its sentences.
    pub words: usize,
    /// Its headings.
    pub sections: Vec<String>,
    /// Its sentences.
    pub sentences: Vec<CitedSentence>,
    /// The extracts, numbered as the document cites them; those it does not cite come last.
    pub extracts: Vec<Extract>,
    /// The files they are from.
    pub sources: Vec<Source>,
    /// The stages whose texts went into this one.
    pub includes: Vec<String>,
    /// What a reader of the run should know.
    pub notes: Vec<String>,
}

impl Composition {
    /// Numbers the citations anew and derives everything that follows from the document.
    #[must_use]
    pub fn new(document: Document, topic: &str, material: &Material) -> Self {
        Self::numbered(document, topic, material).0
    }

    /// The same, with the new number of each old one.
    #[must_use]
    pub fn numbered(mut document: Document, topic: &str, material: &Material) -> (Self, BTreeMap<u32, u32>) {
        let mut extracts = material.extracts.clone();
        let numbers = renumber(&mut document, &mut extracts);
        let sentences: Vec<_> = document
            .sentences()
            .into_iter()
            .map(|(section, sentence)| CitedSentence {
                text: sentence.text,
                citations: sentence.citations,
                section: section.to_owned(),
            })
            .collect();
        let text = Self {
            title: if document.title.is_empty() { title_of(topic) } else { document.title.clone() },
            topic: topic.to_owned(),
            document: document.render(),
            words: sentences.iter().map(|sentence| text::count_words(&sentence.text)).sum(),
            sections: document
                .sections
                .iter()
                .map(|section| section.heading.clone())
                .filter(|h| !h.is_empty())
                .collect(),
            sentences,
            extracts,
            sources: material.sources.clone(),
            includes: material.includes.clone(),
            notes: material.notes.clone(),
        };
        (text, numbers)
    }
}

/// "leases and fencing" becomes "Leases and Fencing".
#[must_use]
pub fn title_of(topic: &str) -> String {
    const SMALL: &[&str] =
        &["a", "an", "and", "as", "at", "by", "for", "from", "in", "into", "of", "on", "or", "the", "to", "vs", "with"];
    let topic = text::collapse(topic);
    let capital = |word: &str| {
        let mut chars = word.chars();
        chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
    };
    let words = topic.trim_end_matches(['.', '?', '!']).split(' ').enumerate();
    let words: Vec<_> = words
        .map(|(at, word)| match SMALL.contains(&word) && at > 0 {
            true => word.to_owned(),
            false => word.split('-').map(capital).collect::<Vec<_>>().join("-"),
        })
        .collect();
    words.join(" ")
}

/// Numbers citations 1, 2, … in the order of their first appearance and rebuilds the list of sources.
///
/// Citations that nothing stands behind have numbers after the others, and the extracts that are not cited after
/// those, so that a citation without a source never comes to mean an extract by accident. Gives the new number of each
/// old one.
pub fn renumber(document: &mut Document, extracts: &mut [Extract]) -> BTreeMap<u32, u32> {
    let cited = document.cited();
    let known =
        |number: &u32| extracts.iter().any(|extract| extract.id == *number) || document.sources.contains_key(number);
    let (sound, dangling): (Vec<u32>, Vec<u32>) = cited.iter().partition(|number| known(number));
    let mut numbers: BTreeMap<u32, u32> = BTreeMap::new();
    let mut next = 1;
    for number in sound.iter().copied() {
        numbers.insert(number, next);
        next += 1;
    }
    // What nothing stands behind keeps its number where it can, so that a reader finds it in the text.
    let mut taken: BTreeSet<u32> = numbers.values().copied().collect();
    for number in dangling {
        let own = number.checked_sub(DANGLING).unwrap_or(number);
        let new = if own >= next { own } else { next };
        let new = (new..).find(|new| !taken.contains(new)).unwrap_or(new);
        taken.insert(new);
        numbers.insert(number, new);
    }
    next = taken.last().copied().unwrap_or(0);
    for extract in extracts.iter().filter(|extract| !cited.contains(&extract.id)) {
        next += 1;
        numbers.insert(extract.id, next);
    }

    document.sources.retain(|number, _| sound.contains(number));
    for extract in extracts.iter().filter(|extract| sound.contains(&extract.id)) {
        document.sources.insert(extract.id, extract.label());
    }
    document.renumber(|number| numbers.get(&number).copied().unwrap_or(number));
    for extract in extracts.iter_mut() {
        extract.id = numbers.get(&extract.id).copied().unwrap_or(extract.id);
    }
    extracts.sort_by_key(|extract| extract.id);
    numbers
}

/// A task's input, by part.
#[derive(Debug, Clone, Copy)]
pub struct Task<'a> {
    whole: &'a Value,
}

impl<'a> Task<'a> {
    /// Reads a task; it must be an object whose parts, where present, are objects.
    pub fn new(whole: &'a Value) -> Result<Self, RoleError> {
        if !whole.is_object() {
            return Err(RoleError::lasting(format!(
                "the task's input is {}: it must be an object with input, results, params and metadata",
                kind(whole)
            )));
        }
        for part in ["input", "results", "params", "metadata"] {
            if let Some(value) = whole.get(part).filter(|value| !value.is_object() && !value.is_null()) {
                return Err(RoleError::lasting(format!("{part} is {}: it must be an object", kind(value))));
            }
        }
        Ok(Self { whole })
    }

    /// A field of the stage's parameters, or else of the run's input, with the path where it was found.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<(String, &'a Value)> {
        ["params", "input"].into_iter().find_map(|part| Some((format!("{part}.{name}"), self.field(part, name)?)))
    }

    /// A field of one part, unless it is null.
    #[must_use]
    pub fn field(&self, part: &str, name: &str) -> Option<&'a Value> {
        self.whole.get(part)?.get(name).filter(|value| !value.is_null())
    }

    /// A setting that is a text; an empty one counts as absent.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, RoleError> {
        match self.setting(name) {
            None => Ok(None),
            Some((_, Value::String(text))) => Ok(Some(text.trim()).filter(|text| !text.is_empty())),
            Some((path, value)) => Err(RoleError::lasting(format!("{path} is {}: it must be a text", kind(value)))),
        }
    }

    /// A setting that is a whole number within bounds.
    pub fn number(&self, name: &str, least: usize, most: usize) -> Result<Option<usize>, RoleError> {
        let Some((path, value)) = self.setting(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.filter(|number| (least..=most).contains(number)).map(Some).ok_or_else(|| {
            RoleError::lasting(format!("{path} is {value}: it must be a whole number from {least} to {most}"))
        })
    }

    /// A setting that is true or false.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, RoleError> {
        match self.setting(name) {
            None => Ok(None),
            Some((_, Value::Bool(flag))) => Ok(Some(*flag)),
            Some((path, value)) => Err(RoleError::lasting(format!("{path} is {value}: it must be true or false"))),
        }
    }

    /// The wanted length in words: `length` is a number, or short, medium, long.
    pub fn length(&self) -> Result<Option<usize>, RoleError> {
        match self.setting("length") {
            None => Ok(None),
            Some((_, Value::String(name))) if name == "short" => Ok(Some(250)),
            Some((_, Value::String(name))) if name == "medium" => Ok(Some(500)),
            Some((_, Value::String(name))) if name == "long" => Ok(Some(1_000)),
            Some((path, value)) => match value.as_u64().and_then(|words| usize::try_from(words).ok()) {
                Some(words) if (50..=5_000).contains(&words) => Ok(Some(words)),
                _ => Err(RoleError::lasting(format!(
                    "{path} is {value}: it must be a number of words from 50 to 5000, or \"short\", \"medium\" or \"long\""
                ))),
            },
        }
    }

    /// The directories to search: `input.sources`, a path or a list of paths.
    pub fn sources(&self) -> Result<Option<Vec<String>>, RoleError> {
        let wrong = |path: &str, value: &Value| {
            RoleError::lasting(format!(
                "{path} is {value}: it must be the path of a directory, or a list of such paths"
            ))
        };
        match self.setting("sources") {
            None => Ok(None),
            Some((_, Value::String(path))) if !path.trim().is_empty() => Ok(Some(vec![path.trim().to_owned()])),
            Some((path, value @ Value::Array(items))) => {
                let names: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
                names.filter(|names| !names.is_empty()).map(Some).ok_or_else(|| wrong(&path, value))
            }
            Some((path, value)) => Err(wrong(&path, value)),
        }
    }

    /// The results by name; a list (of a stage that was done for each item of a list) counts as several.
    fn results(&self) -> Vec<(String, &'a Value)> {
        let mut all: Vec<(String, &Value)> =
            self.whole.get("input").map(|input| ("input".to_owned(), input)).into_iter().collect();
        let results = self.whole.get("results").and_then(Value::as_object);
        for (name, value) in results.into_iter().flatten() {
            match value {
                Value::Array(items) => {
                    all.extend(items.iter().enumerate().map(|(at, item)| (format!("{name}[{at}]"), item)));
                }
                _ => all.push((name.clone(), value)),
            }
        }
        all
    }

    /// The names of the results, for messages that say what was searched.
    #[must_use]
    pub fn result_names(&self) -> String {
        let names: Vec<_> = self
            .results()
            .into_iter()
            .map(|(name, _)| name)
            .filter(|name| name != "input")
            .map(|name| format!("{name:?}"))
            .collect();
        if names.is_empty() {
            "there are no results".to_owned()
        } else {
            format!("the results are {}", names.join(", "))
        }
    }
}

/// What kind of JSON value this is, for messages.
#[must_use]
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Everything that a task's results hold for the roles after research.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Material {
    /// What the run is about; empty if nothing says it.
    pub topic: String,
    /// The text so far: all texts among the results, merged.
    pub document: Option<Document>,
    /// All extracts, each once; their ids are the numbers that `document` cites.
    pub extracts: Vec<Extract>,
    /// The files, each once.
    pub sources: Vec<Source>,
    /// What a number in `document` was in the text it is from.
    pub original: BTreeMap<u32, u32>,
    /// The stages whose texts are in `document`.
    pub includes: Vec<String>,
    /// Notes carried on from earlier stages.
    pub notes: Vec<String>,
}

/// Citations that nothing stands behind are moved up here, so that they never meet an extract's number.
const DANGLING: u32 = 1_000_000;

/// One text among the results.
struct Text {
    name: String,
    document: Document,
    includes: Vec<String>,
}

impl Material {
    /// Collects it.
    pub fn gather(task: Task<'_>) -> Result<Self, RoleError> {
        let mut material = Self { topic: task.text("topic")?.unwrap_or_default().to_owned(), ..Self::default() };
        let results = task.results();
        let mut numbers: BTreeMap<&str, BTreeMap<u32, u32>> = BTreeMap::new();
        for (name, value) in &results {
            if value.get("extracts").is_some() {
                numbers.insert(name, material.take_extracts(name, value)?);
            }
            material.take_sources(value);
            if material.topic.is_empty() {
                material.topic = value.get("topic").and_then(Value::as_str).unwrap_or_default().trim().to_owned();
            }
        }

        let mut texts = Vec::new();
        for (name, value) in &results {
            let Some(markdown) = value.get("document") else { continue };
            let Some(markdown) = markdown.as_str() else {
                return Err(RoleError::lasting(format!(
                    "{}.document is {}: it must be Markdown text",
                    path(name),
                    kind(markdown)
                )));
            };
            let mut document = Document::parse(markdown);
            // A text of somebody else's agent may lean on the one research result there is.
            let own = numbers.get(name.as_str()).or_else(|| numbers.values().next().filter(|_| numbers.len() == 1));
            let new = |number| own.and_then(|own| own.get(&number).copied()).unwrap_or(DANGLING.saturating_add(number));
            material.original.extend(document.cited().into_iter().map(|number| (new(number), number)));
            document.renumber(new);
            let includes = strings(value.get("includes"));
            texts.push((Text { name: name.clone(), document, includes }, strings(value.get("notes"))));
        }
        let superseded: BTreeSet<String> = texts.iter().flat_map(|(text, _)| text.includes.clone()).collect();
        for (text, notes) in texts {
            if !superseded.contains(&text.name) {
                material.merge(text);
                material.notes.extend(notes);
            }
        }
        Ok(material)
    }

    /// The text, or an error which says what was looked for.
    pub fn expect_document(&self, task: Task<'_>, role: &str) -> Result<&Document, RoleError> {
        let document = self.document.as_ref().filter(|document| !document.sections.is_empty());
        document.ok_or_else(|| {
            RoleError::lasting(format!(
                "there is nothing for {role}: {}, and none of them has a document with text in it; \
                 {role} needs the output of a writing stage, or input.document",
                task.result_names()
            ))
        })
    }

    fn take_extracts(&mut self, name: &str, value: &Value) -> Result<BTreeMap<u32, u32>, RoleError> {
        let place = path(name);
        let Some(items) = value["extracts"].as_array() else {
            return Err(RoleError::lasting(format!(
                "{place}.extracts is {}: it must be a list",
                kind(&value["extracts"])
            )));
        };
        let mut numbers = BTreeMap::new();
        for (at, item) in items.iter().enumerate() {
            let mut extract = Extract::deserialize(item).map_err(|error| {
                RoleError::lasting(format!(
                    "{place}.extracts[{at}] is no extract: {error}; it must have at least source and text"
                ))
            })?;
            let next = u32::try_from(self.extracts.len() + 1).unwrap_or(u32::MAX);
            let own = if extract.id == 0 { u32::try_from(at + 1).unwrap_or(u32::MAX) } else { extract.id };
            let known = self.extracts.iter().find(|known| known.is_same(&extract)).map(|known| known.id);
            if numbers.insert(own, known.unwrap_or(next)).is_some() {
                return Err(RoleError::lasting(format!("{place}.extracts[{at}].id is {own} again: ids must differ")));
            }
            if known.is_none() {
                extract.id = next;
                self.extracts.push(extract);
            }
        }
        Ok(numbers)
    }

    fn take_sources(&mut self, value: &Value) {
        // A run's input has a `sources` too: paths, which are no objects and therefore pass by.
        for item in value.get("sources").and_then(Value::as_array).into_iter().flatten() {
            let Ok(mut source) = Source::deserialize(item) else { continue };
            if !self.sources.iter().any(|known| known.path == source.path) {
                source.id = u32::try_from(self.sources.len() + 1).unwrap_or(u32::MAX);
                self.sources.push(source);
            }
        }
    }

    fn merge(&mut self, text: Text) {
        self.includes.extend(text.includes.into_iter().chain((text.name != "input").then_some(text.name)));
        self.includes.sort();
        self.includes.dedup();
        let Some(document) = &mut self.document else {
            self.document = Some(text.document);
            return;
        };
        if document.title.is_empty() {
            document.title = text.document.title;
        }
        document.sources.extend(text.document.sources);
        for section in text.document.sections {
            match document.sections.iter_mut().find(|known| known.heading == section.heading) {
                Some(known) => {
                    for block in section.blocks {
                        if !known.blocks.contains(&block) {
                            known.blocks.push(block);
                        }
                    }
                }
                None => document.sections.push(section),
            }
        }
    }
}

fn path(name: &str) -> String {
    if name == "input" { name.to_owned() } else { format!("results.{name}") }
}

fn strings(value: Option<&Value>) -> Vec<String> {
    let items = value.and_then(Value::as_array).into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn extract(id: u32, text: &str) -> Value {
        json!({ "id": id, "source": "a.md", "text": text })
    }

    #[test]
    fn titles_keep_small_words_small() {
        assert_eq!(
            title_of("leases and  fencing in a multi-agent system."),
            "Leases and Fencing in a Multi-Agent System"
        );
    }

    #[test]
    fn extracts_of_several_results_are_one_pool() {
        let task = json!({ "results": {
            "one": { "extracts": [extract(1, "A."), extract(2, "B.")] },
            "two": { "extracts": [extract(1, "B."), extract(2, "C.")] },
            "map": [{ "extracts": [extract(1, "D.")] }, { "extracts": [extract(1, "A.")] }],
        }});
        let material = Material::gather(Task::new(&task).expect("a task")).expect("material");
        let pool: Vec<_> = material.extracts.iter().map(|one| (one.id, one.text.as_str())).collect();
        assert_eq!(pool, [(1, "D."), (2, "A."), (3, "B."), (4, "C.")]);
    }

    #[test]
    fn texts_are_merged_by_what_they_cite() {
        let task = json!({ "results": {
            "a": { "document": "# T\n\n## A\n\nSays bee. [1]\n", "extracts": [extract(1, "B."), extract(2, "A.")] },
            "b": { "document": "# T\n\n## B\n\nSays ant. [1] Says none. [9]\n", "extracts": [extract(1, "A.")] },
            "old": { "document": "# Old\n\nGone.\n" },
            "new": { "document": "# T\n\n## C\n\nNew.\n", "includes": ["old"] },
        }});
        let material = Material::gather(Task::new(&task).expect("a task")).expect("material");
        let text = Composition::new(material.document.clone().expect("a document"), "t", &material);
        assert_eq!(text.includes, ["a", "b", "new", "old"]);
        assert_eq!(
            text.document,
            "# T\n\n## A\n\nSays bee. [1]\n\n## B\n\nSays ant. [2] Says none. [9]\n\n## C\n\nNew.\n\n## Sources\n\n- [1] `a.md`\n- [2] `a.md`\n"
        );
    }

    #[test]
    fn a_citation_of_nothing_never_becomes_one_of_something() {
        let task = json!({ "results": { "a": {
            "document": "Says bee. [2] Says none. [7]\n", "extracts": [extract(1, "A."), extract(2, "B."), extract(3, "C.")],
        }}});
        let material = Material::gather(Task::new(&task).expect("a task")).expect("material");
        let text = Composition::new(material.document.clone().expect("a document"), "t", &material);
        assert!(text.document.starts_with("Says bee. [1] Says none. [7]"), "{}", text.document);
        let ids: Vec<_> = text.extracts.iter().map(|one| (one.id, one.text.as_str())).collect();
        assert_eq!(ids, [(1, "B."), (8, "A."), (9, "C.")]);
    }

    #[test]
    fn wrong_input_says_where_and_what_would_be_right() {
        let gather = |task: Value| Material::gather(Task::new(&task)?).map(|_| ());
        for (task, message) in [
            (json!([]), "the task's input is a list: it must be an object with input, results, params and metadata"),
            (json!({"results": []}), "results is a list: it must be an object"),
            (json!({"input": {"topic": 3}}), "input.topic is a number: it must be a text"),
            (json!({"results": {"r": {"extracts": 1}}}), "results.r.extracts is a number: it must be a list"),
            (
                json!({"results": {"r": {"extracts": [{"text": "x"}]}}}),
                "results.r.extracts[0] is no extract: missing field `source`; it must have at least source and text",
            ),
            (json!({"results": {"r": {"document": 1}}}), "results.r.document is a number: it must be Markdown text"),
        ] {
            let error = gather(task).expect_err("it is wrong");
            assert_eq!((error.message.as_str(), error.retryable), (message, false));
        }
        let task = json!({"input": {"length": "huge", "sources": [], "words": -1}, "params": {"words": 7}});
        let task = Task::new(&task).expect("a task");
        assert!(task.length().expect_err("no length").message.starts_with("input.length is \"huge\": it must be"));
        assert!(task.sources().expect_err("no sources").message.starts_with("input.sources is []: it must be"));
        assert_eq!(task.number("words", 1, 9), Ok(Some(7)));
    }
}
