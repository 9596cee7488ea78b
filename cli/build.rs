//! Embeds the project's own documentation: `baton demo` writes an article about it, wherever the binary is run.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// What is embedded, relative to the repository's root: files, and folders with the Markdown that is in them.
const DOCUMENTS: [&str; 4] = ["README.md", "ARCHITECTURE.md", "docs", "deploy"];

fn main() -> io::Result<()> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from).ok_or(io::ErrorKind::NotFound);
    let root = variable("CARGO_MANIFEST_DIR")?.join("..");
    let mut found = Vec::new();
    for name in DOCUMENTS {
        // Also what is not there yet: when it comes, it is embedded.
        println!("cargo::rerun-if-changed=../{name}");
        gather(&root, Path::new(name), &mut found)?;
    }
    found.sort();
    let mut code = String::from("&[\n");
    for name in found {
        let path = root.join(&name).canonicalize()?;
        // Writing into a string cannot fail.
        let _ =
            writeln!(code, "    ({:?}, include_str!({:?})),", name.display().to_string(), path.display().to_string());
    }
    code.push_str("]\n");
    fs::write(variable("OUT_DIR")?.join("documents.rs"), code)
}

fn gather(root: &Path, name: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let path = root.join(name);
    if path.is_dir() {
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            let below = name.join(entry.file_name());
            if entry.path().is_dir() || below.extension().is_some_and(|extension| extension == "md") {
                gather(root, &below, found)?;
            }
        }
    } else if path.is_file() {
        found.push(name.to_owned());
    }
    Ok(())
}
