//! Wrong definitions, one file each, and what is said about them.
//!
//! A file's first line is a comment with what must be said about it. Files are read by what `baton workflow validate` reads
//! them with. `BATON_UPDATE=1 cargo test -p baton-workflow-manager --test definitions` writes the comments anew.

use std::fs;
use std::path::Path;

use baton_workflow_manager::definition;

#[test]
fn w1_every_wrong_definition_gives_the_intended_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut wrong = String::new();
    for path in &files {
        let text = fs::read_to_string(path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        let intended = text.lines().next().and_then(|line| line.strip_prefix("# ")).unwrap_or_default();
        // JSON has no comments: its first line is taken away, and the lines are counted without it.
        let source = if name.ends_with(".json") { text.split_once('\n').unwrap().1 } else { &text };
        let said = definition::parse(source).map_or_else(|error| error.to_string(), |_| "it is accepted".to_owned());
        if said != intended {
            wrong += &format!("{name}\n  intended: {intended}\n  said:     {said}\n");
            if std::env::var_os("BATON_UPDATE").is_some() {
                let rest = if text.starts_with("# ") { text.split_once('\n').unwrap().1 } else { &text };
                fs::write(path, format!("# {said}\n{rest}")).unwrap();
            }
        }
    }
    assert!(files.len() >= 60, "there are {} files", files.len());
    assert!(wrong.is_empty(), "{wrong}");
}
