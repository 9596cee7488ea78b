//! The checked-in schemas are those that the code generates. `BATON_UPDATE=1 cargo test -p baton-protocol` writes them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[test]
fn m8_the_schemas_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let update = std::env::var_os("BATON_UPDATE").is_some();
    let mut wrong = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (name, schema) in baton_protocol::schema::all() {
        let file = format!("{name}.json");
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if fs::read_to_string(folder.join(&file)).ok().as_ref() != Some(&text) {
            if update {
                fs::write(folder.join(&file), text).unwrap();
            } else {
                wrong.insert(file.clone());
            }
        }
        names.insert(file);
    }
    for entry in fs::read_dir(&folder).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        if !names.contains(&file) {
            if update {
                fs::remove_file(folder.join(&file)).unwrap();
            } else {
                wrong.insert(file);
            }
        }
    }
    assert!(wrong.is_empty(), "not current, run `BATON_UPDATE=1 cargo test -p baton-protocol`: {wrong:?}");
}
