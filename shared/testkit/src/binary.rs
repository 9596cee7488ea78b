//! The `baton` binary, current and of the profile under test.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The `baton` binary: the one that `BATON_BIN` names, else one built from the sources, once a process.
///
/// `cargo test` builds the binaries of a package only for that package's own tests, so a test elsewhere would find none
/// on a fresh clone and an old one later. The build goes to the target directory the test itself lies in, with its
/// profile, and blocks the calling thread.
///
/// # Panics
/// When the build fails, with what the compiler says.
pub fn baton_binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let find = || {
        if let Some(path) = env::var_os("BATON_BIN").filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            assert!(path.is_file(), "BATON_BIN names {}, which is no file", path.display());
            return path;
        }
        let test = env::current_exe().expect("a process knows its executable");
        let place =
            Place::of_test(&test).unwrap_or_else(|| panic!("{} does not lie in a target directory", test.display()));
        build(&place, Path::new(WORKSPACE), "baton").unwrap_or_else(|error| panic!("{error}"))
    };
    BINARY.get_or_init(find).clone()
}

/// The workspace this crate was compiled in.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Where Cargo puts what it builds: `<target>[/<triple>]/<profile>`.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    target: PathBuf,
    triple: Option<String>,
    profile: String,
}

impl Place {
    /// Reads the place off a test's executable, which lies in the directory `deps` of the profile; an example lies in
    /// `examples`.
    fn of_test(executable: &Path) -> Option<Self> {
        let deps = executable.parent()?;
        let directory = if deps.ends_with("deps") || deps.ends_with("examples") { deps.parent()? } else { deps };
        let profile = directory.file_name()?.to_str()?.to_owned();
        let above = directory.parent()?;
        // A target triple has at least two hyphens, as in `x86_64-unknown-linux-gnu`; Cargo marks the target directory.
        let triple = above.file_name()?.to_str().filter(|name| name.matches('-').count() >= 2);
        match triple {
            Some(triple) if !above.join("CACHEDIR.TAG").exists() => {
                Some(Self { target: above.parent()?.to_owned(), triple: Some(triple.to_owned()), profile })
            }
            _ => Some(Self { target: above.to_owned(), triple: None, profile }),
        }
    }

    /// The directory of the binaries.
    fn directory(&self) -> PathBuf {
        self.triple.iter().fold(self.target.clone(), |path, triple| path.join(triple)).join(&self.profile)
    }

    fn arguments(&self) -> Vec<String> {
        // The directory of the profiles `dev` and `test` is called otherwise.
        let profile = if self.profile == "debug" { "dev" } else { &self.profile };
        let mut arguments = vec!["--profile".to_owned(), profile.to_owned()];
        if let Some(triple) = &self.triple {
            arguments.extend(["--target".to_owned(), triple.clone()]);
        }
        arguments
    }
}

/// Builds the binary of the package of the same name; tests that want it at once wait for each other.
fn build(place: &Place, workspace: &Path, package: &str) -> Result<PathBuf, String> {
    let lock = place.directory().join(".baton-testkit.lock");
    let lock = File::options().create(true).truncate(false).write(true).open(lock);
    let _lock =
        lock.and_then(|lock| lock.lock().map(|()| lock)).map_err(|error| format!("cannot lock the build: {error}"))?;

    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.args(["build", "--quiet", "--package", package, "--bin", package]).args(place.arguments());
    cargo.current_dir(workspace).env("CARGO_TARGET_DIR", &place.target);
    // Cargo describes the test's package to the test. Build scripts that look at the description would run anew.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(describes_a_package) {
            cargo.env_remove(name);
        }
    }
    let output = cargo.output().map_err(|error| format!("cannot run cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cannot build {package}:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    Ok(place.directory().join(package))
}

fn describes_a_package(variable: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_CFG_", "CARGO_FEATURE_"];
    let names = ["CARGO_PRIMARY_PACKAGE", "CARGO_TARGET_TMPDIR", "OUT_DIR"];
    prefixes.iter().any(|prefix| variable.starts_with(prefix)) || names.contains(&variable)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{Place, build};

    #[test]
    fn the_place_is_read_off_the_tests_path() {
        let place = |path: &str| Place::of_test(Path::new(path)).unwrap();
        let debug = place("/code/target/debug/deps/tests-0123");
        assert_eq!(debug.directory(), PathBuf::from("/code/target/debug"));
        assert_eq!(debug.arguments(), ["--profile", "dev"]);
        let cross = place("/code/target/aarch64-unknown-linux-gnu/release/deps/tests-0123");
        assert_eq!(cross.target, PathBuf::from("/code/target"));
        assert_eq!(cross.directory(), PathBuf::from("/code/target/aarch64-unknown-linux-gnu/release"));
        assert_eq!(cross.arguments(), ["--profile", "release", "--target", "aarch64-unknown-linux-gnu"]);
    }

    #[test]
    fn what_is_built_is_current() {
        let directory = tempfile::TempDir::new().unwrap();
        let place = Place { target: directory.path().join("target"), triple: None, profile: "debug".to_owned() };
        fs::create_dir_all(place.directory()).unwrap();
        let manifest = "[package]\nname = \"tiny\"\nedition = \"2024\"\n[workspace]\n";
        fs::write(directory.path().join("Cargo.toml"), manifest).unwrap();
        fs::create_dir(directory.path().join("src")).unwrap();
        let main = directory.path().join("src/main.rs");

        for word in ["first", "second one"] {
            fs::write(&main, format!("fn main() {{ println!(\"{word}\"); }}")).unwrap();
            let binary = build(&place, directory.path(), "tiny").unwrap_or_else(|error| panic!("{error}"));
            let output = std::process::Command::new(binary).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), word);
        }

        fs::write(&main, "fn main() { nonsense }").unwrap();
        let error = build(&place, directory.path(), "tiny").unwrap_err();
        assert!(error.contains("cannot find value `nonsense`"), "{error}");
    }
}
