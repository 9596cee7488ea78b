//! A Python that can `import nats`, for agents that are not written in Rust.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::sync::OnceCell;

/// The version of the package nats-py.
const NATS_PY_VERSION: &str = "2.16.0";

/// A Python interpreter and the environment in which it finds nats-py.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Python {
    /// The interpreter.
    pub interpreter: PathBuf,
    /// The environment variables it needs in addition.
    pub env: BTreeMap<String, String>,
}

/// A Python that can `import nats`: from a virtual environment in Baton's cache, made by the first test that asks.
///
/// Where Python comes without `venv` (Debian packs it separately), nats-py goes into a plain directory that `PYTHONPATH`
/// names.
///
/// # Panics
/// When there is no Python, or when pip cannot install the package, with what it says.
pub async fn python_with_nats() -> Python {
    static PYTHON: OnceCell<Python> = OnceCell::const_new();
    let find = async || {
        let cache = baton_broker::cache_dir().expect("there is a home directory or BATON_CACHE_DIR");
        let made =
            tokio::task::spawn_blocking(move || make(&cache, with_venv)).await.expect("the maker does not panic");
        made.unwrap_or_else(|error| panic!("no Python with nats-py: {error}"))
    };
    PYTHON.get_or_init(find).await.clone()
}

/// Finds what an earlier test made, or makes it; processes that want it at once wait for each other.
fn make(cache: &Path, way: fn(&Path, &Path) -> Result<(), String>) -> Result<Python, String> {
    fs::create_dir_all(cache).map_err(|error| format!("cannot create {}: {error}", cache.display()))?;
    let lock = File::options().create(true).truncate(false).write(true).open(cache.join("nats-py.lock"));
    let _lock = lock.and_then(|lock| lock.lock().map(|()| lock)).map_err(|error| format!("cannot lock it: {error}"))?;

    let system = system_python()?;
    let venv = cache.join(format!("nats-py-{NATS_PY_VERSION}-venv"));
    let in_venv = Python { interpreter: venv.join("bin").join("python"), env: BTreeMap::new() };
    let target = cache.join(format!("nats-py-{NATS_PY_VERSION}"));
    let path = BTreeMap::from([("PYTHONPATH".to_owned(), target.display().to_string())]);
    let with_path = Python { interpreter: system.clone(), env: path };
    if let Some(python) = [&in_venv, &with_path].into_iter().find(|python| python.can_import()) {
        return Ok(python.clone());
    }

    // Whatever lies there is incomplete or belongs to a Python that is gone.
    let _ = fs::remove_dir_all(&venv);
    let _ = fs::remove_dir_all(&target);
    let first = match way(&system, &venv) {
        Ok(()) if in_venv.can_import() => return Ok(in_venv),
        Ok(()) => "the virtual environment cannot import nats".to_owned(),
        Err(error) => error,
    };
    let _ = fs::remove_dir_all(&venv);
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"].map(OsStr::new);
    let package = package();
    run(&system, install.into_iter().chain([target.as_os_str(), OsStr::new(&package)]))
        .map_err(|second| format!("{first}\nand then: {second}"))?;
    if with_path.can_import() { Ok(with_path) } else { Err(format!("{first}\nand then: cannot import nats")) }
}

fn with_venv(system: &Path, venv: &Path) -> Result<(), String> {
    run(system, [OsStr::new("-m"), OsStr::new("venv"), venv.as_os_str()])?;
    let package = package();
    let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", &package].map(OsStr::new);
    run(&venv.join("bin").join("python"), install)
}

fn package() -> String {
    format!("nats-py=={NATS_PY_VERSION}")
}

impl Python {
    fn can_import(&self) -> bool {
        let import = Command::new(&self.interpreter).args(["-c", "import nats"]).envs(&self.env).output();
        import.is_ok_and(|output| output.status.success())
    }
}

/// The interpreter behind `python3` or `python`, which may be a script that chooses one by the current directory.
fn system_python() -> Result<PathBuf, String> {
    let ask = |name: &&str| {
        let output = Command::new(name).args(["-c", "import sys; print(sys.executable)"]).output().ok()?;
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        (output.status.success() && path.is_file()).then_some(path)
    };
    ["python3", "python"].iter().find_map(ask).ok_or_else(|| "neither python3 nor python can be run".to_owned())
}

fn run<'a>(program: &Path, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<(), String> {
    let mut command = Command::new(program);
    // A user's preferences for his own installations do not concern this one.
    command.args(arguments).env("PIP_USER", "0").env("PIP_REQUIRE_VIRTUALENV", "0").env_remove("PIP_TARGET");
    let output = command.output().map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).join("\n");
    Err(format!("{command:?}: {}: {text}", output.status))
}

#[cfg(test)]
mod tests {
    use super::make;

    #[test]
    fn without_venv_a_plain_directory_does() {
        let cache = tempfile::TempDir::new().unwrap();
        let no_venv = |_: &std::path::Path, _: &std::path::Path| Err("No module named venv".to_owned());
        let python = make(cache.path(), no_venv).unwrap_or_else(|error| panic!("{error}"));
        assert!(python.env.contains_key("PYTHONPATH"));
        assert!(python.can_import());
        // The second time it is found, not made.
        let never = |_: &std::path::Path, _: &std::path::Path| panic!("made again");
        assert_eq!(make(cache.path(), never).unwrap(), python);
    }
}
