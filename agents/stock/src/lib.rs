//! Four document agents that do real work offline, or through any OpenAI-compatible endpoint.
//!
//! | role | takes | gives |
//! |---|---|---|
//! | [`research`] | a topic, a folder of text or Markdown | the passages that answer it, ranked by BM25 |
//! | [`writing`] | extracts, perhaps an earlier document | an article in which every sentence cites an extract |
//! | [`editing`] | a document | the same, without duplicates, at the wanted length, with clean typography |
//! | [`verification`] | a document and its extracts | what is supported, what is not, and a verdict |
//!
//! [`roles`] is the door: a role is a function from a task's input (a JSON object) to its output. Everything but
//! [`llm`] is synchronous and deterministic: the same files and the same input give the same bytes, there is no clock,
//! no randomness and no network. [`shape`] holds the JSON that one role hands to the next.
//!
//! The offline roles *extract*: they choose sentences that somebody wrote and never make up one. So they cannot
//! paraphrase, translate or conclude, and they read English best. [`agent`] puts a role behind the SDK; nothing else in
//! this crate knows of leases or runs.

pub mod agent;
pub mod bm25;
pub mod corpus;
pub mod document;
pub mod editing;
pub mod llm;
pub mod research;
pub mod roles;
pub mod shape;
pub mod sleep;
pub mod text;
pub mod textrank;
pub mod verification;
pub mod writing;
