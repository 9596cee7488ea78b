//! Files that are named on the command line.

use std::io::Read;
use std::path::Path;

use crate::failure::Failure;

/// Reads a file of text; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read_bytes(path)?)
        .map_err(|error| Failure::usage(format!("{} can not be read: it is not UTF-8: {error}", path.display())))
}

/// Reads a file; `-` is standard input.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut bytes).map(drop)
    } else {
        std::fs::read(path).map(|read| bytes = read)
    };
    read.map_err(|error| Failure::usage(format!("{} can not be read: {error}", path.display())))?;
    Ok(bytes)
}
