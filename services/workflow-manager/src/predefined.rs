//! The workflows that are there on first start.

use std::sync::LazyLock;

use baton_protocol::Definition;

use crate::Turn;
use crate::{definition, workflows};

const SOURCES: [&str; 2] = [include_str!("../workflows/article.yaml"), include_str!("../workflows/paper.yaml")];

/// The predefined workflows: `article` and `paper`.
///
/// # Panics
/// If one of the files in `workflows/` is not a definition; a test reads them all.
pub fn all() -> impl Iterator<Item = &'static Definition> {
    static ALL: LazyLock<Vec<Definition>> = LazyLock::new(|| {
        let parse = |text| definition::parse(text).expect("a predefined workflow is a definition");
        SOURCES.into_iter().map(parse).collect()
    });
    ALL.iter()
}

/// Registers those whose names are free. One that is there already is left as it is, also if this Baton comes with
/// another definition: whether the registered one is an older predefined one or a user's own can not be told apart.
pub(crate) fn register(turn: &mut Turn<'_>) {
    for definition in all() {
        if turn.state().workflows.latest(&definition.name).is_none() {
            workflows::emit_version(turn, definition.clone());
        }
    }
}
