//! Files that are named on the command line.

use std::io::Read;
use std::path::Path;

use crate::failure::Failure;

/// Reads a file; `-` is standard input.
pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|read| text = read)
    };
    match read {
        Ok(()) => Ok(text),
        Err(error) => Err(Failure::usage(format!("{} can not be read: {error}", path.display()))),
    }
}
