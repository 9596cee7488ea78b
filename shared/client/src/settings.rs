//! Where the broker is and who we are to it.

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where a broker is looked for when nothing says where it is.
pub(crate) const DEFAULT_SERVER: &str = "nats://127.0.0.1:4222";

/// A word that is never shown: not in `Debug`, not in errors, not in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The word itself, to hand to the broker.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(word: String) -> Self {
        Self(word)
    }
}

impl From<&str> for Secret {
    fn from(word: &str) -> Self {
        Self(word.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What somebody has said about the connection; whatever is left out is found in the surroundings.
///
/// Each value is taken from the first of these that has it:
/// 1. this struct (command line flags);
/// 2. `BATON_SERVER`, `BATON_CREDS`, `BATON_NKEY`, `BATON_USER`, `BATON_PASSWORD`, `BATON_TOKEN`, `BATON_CA`,
///    `BATON_CERT`, `BATON_KEY`, `BATON_INBOX_PREFIX`;
/// 3. the same with `NATS_`, as other NATS tools read them (the server is `NATS_URL`);
/// 4. the selected context of `~/.config/nats`, unless one of the above has named a server: its credentials are for its
///    own server and are not shown to another;
/// 5. `nats://127.0.0.1:4222`.
///
/// A context that is *named* (here, by `BATON_CONTEXT` or by `NATS_CONTEXT`) comes right after what named it. How to
/// authenticate (credentials file, nkey, user or token) is taken whole from the first that says it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ConnectSettings {
    /// The broker's URL, or several with commas between.
    pub server: Option<String>,
    /// A credentials file (JWT and seed).
    pub creds: Option<PathBuf>,
    /// An nkey's seed, or a file with one.
    pub nkey: Option<Secret>,
    /// A user's name.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A token instead of a user.
    pub token: Option<Secret>,
    /// A file with the authorities that the broker's certificate is checked against.
    pub ca: Option<PathBuf>,
    /// A certificate for the broker to know us by.
    pub cert: Option<PathBuf>,
    /// The certificate's key.
    pub key: Option<PathBuf>,
    /// The name of a NATS context.
    pub context: Option<String>,
    /// What answers to us are addressed to begins with this; `_INBOX` unless given.
    pub inbox_prefix: Option<String>,
    /// What the broker shows of this connection in its monitoring.
    pub name: Option<String>,
    /// Whether nothing is looked up in the surroundings: for a broker of one's own, which other brokers' credentials and
    /// certificates do not fit.
    pub alone: bool,
}

impl fmt::Debug for ConnectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectSettings")
            .field("server", &self.server.as_deref().map(without_secrets))
            .field("creds", &self.creds)
            .field("nkey", &self.nkey)
            .field("user", &self.user)
            .field("password", &self.password)
            .field("token", &self.token)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("context", &self.context)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("name", &self.name)
            .finish()
    }
}

/// Settings that make no sense.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A context's name that is no file name.
    #[error("{0:?} is not the name of a NATS context: it must not be empty nor have '/', '\\' or '..' in it")]
    ContextName(String),
    /// A context was named and is not there.
    #[error("there is no NATS context {name:?} (named by {by}): no file {}", path.display())]
    NoContext {
        /// Its name.
        name: String,
        /// What named it.
        by: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// A context that can not be read.
    #[error("the NATS context file {} can not be read: {why}", path.display())]
    Context {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A context must be read and there is no home directory.
    #[error("a NATS context is named, but neither XDG_CONFIG_HOME nor HOME says where contexts are")]
    NoHome,
}

/// How to authenticate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Auth {
    Nothing,
    Creds(PathBuf),
    Nkey(Secret),
    User(String, Secret),
    Token(Secret),
}

/// Settings with nothing left to look up.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) server: String,
    /// What named the server, for people.
    pub(crate) server_from: String,
    pub(crate) auth: Auth,
    pub(crate) auth_from: String,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) inbox_prefix: Option<String>,
    pub(crate) name: Option<String>,
}

/// One place that values may come from.
struct Layer {
    /// What it is called; for variables, what their names begin with.
    from: String,
    settings: ConnectSettings,
}

impl ConnectSettings {
    /// Settings that name a server, and leave the rest to the surroundings.
    #[must_use]
    pub fn server(url: impl Into<String>) -> Self {
        Self { server: Some(url.into()), ..Self::default() }
    }

    /// Settings that are complete: nothing is looked up in the surroundings.
    #[must_use]
    pub fn alone(url: impl Into<String>) -> Self {
        Self { alone: true, ..Self::server(url) }
    }

    /// The same, under a name that the broker shows.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Looks up what is left out in the process's environment and in the user's contexts.
    pub(crate) fn resolve_here(&self) -> Result<Resolved, SettingsError> {
        if self.alone {
            return self.resolve(|_| None, None, None);
        }
        let env = |name: &str| std::env::var(name).ok();
        self.resolve(env, config_dir().as_deref(), std::env::home_dir().as_deref())
    }

    /// Looks up what is left out.
    pub(crate) fn resolve(
        &self,
        env: impl Fn(&str) -> Option<String>,
        config: Option<&Path>,
        home: Option<&Path>,
    ) -> Result<Resolved, SettingsError> {
        let contexts = Contexts { config, home };
        let given = [
            ("the command line", "--context", self.clone()),
            ("BATON_", "BATON_CONTEXT", from_env(&env, "BATON_", "SERVER")),
            ("NATS_", "NATS_CONTEXT", from_env(&env, "NATS_", "URL")),
        ];
        let mut layers: Vec<Layer> = Vec::new();
        let mut named = false;
        for (from, by, settings) in given {
            let context = settings.context.clone().filter(|_| !named);
            layers.push(Layer { from: from.to_owned(), settings });
            if let Some(name) = context {
                named = true;
                let settings = contexts.read(&name, by)?;
                layers.push(Layer { from: format!("the context {name:?}"), settings });
            }
        }
        let no_server = layers.iter().all(|layer| layer.settings.server.is_none());
        if !named
            && no_server
            && let Some((name, settings)) = contexts.selected()?
        {
            layers.push(Layer { from: format!("the selected context {name:?}"), settings });
        }
        Ok(merge(&layers))
    }
}

/// Takes each value from the first layer that has it.
fn merge(layers: &[Layer]) -> Resolved {
    fn first<T: Clone>(layers: &[Layer], get: impl Fn(&ConnectSettings) -> &Option<T>) -> Option<T> {
        layers.iter().find_map(|layer| get(&layer.settings).clone())
    }
    let (server, server_from) = layers
        .iter()
        .find_map(|layer| Some((layer.settings.server.clone()?, shown(&layer.from, "SERVER", "URL"))))
        .unwrap_or_else(|| (DEFAULT_SERVER.to_owned(), "the default".to_owned()));
    let (auth, auth_from) = layers
        .iter()
        .find_map(|layer| {
            let ConnectSettings { creds, nkey, user, token, .. } = &layer.settings;
            let (auth, variable) = if let Some(creds) = creds {
                (Auth::Creds(creds.clone()), "CREDS")
            } else if let Some(nkey) = nkey {
                (Auth::Nkey(nkey.clone()), "NKEY")
            } else if let Some(user) = user {
                // A password may come from elsewhere than the name: nobody likes to write one on a command line.
                let password = first(layers, |s| &s.password).unwrap_or_else(|| "".into());
                (Auth::User(user.clone(), password), "USER")
            } else {
                (Auth::Token(token.clone()?), "TOKEN")
            };
            Some((auth, shown(&layer.from, variable, variable)))
        })
        .unwrap_or((Auth::Nothing, String::new()));
    Resolved {
        server,
        server_from,
        auth,
        auth_from,
        ca: first(layers, |s| &s.ca),
        cert: first(layers, |s| &s.cert),
        key: first(layers, |s| &s.key),
        inbox_prefix: first(layers, |s| &s.inbox_prefix),
        name: first(layers, |s| &s.name),
    }
}

/// What a value came from, for people.
fn shown(from: &str, baton: &str, nats: &str) -> String {
    match from {
        "BATON_" => format!("BATON_{baton}"),
        "NATS_" => format!("NATS_{nats}"),
        other => other.to_owned(),
    }
}

fn from_env(env: &impl Fn(&str) -> Option<String>, prefix: &str, server: &str) -> ConnectSettings {
    let get = |name: &str| env(&format!("{prefix}{name}")).filter(|value| !value.trim().is_empty());
    ConnectSettings {
        server: get(server),
        creds: get("CREDS").map(PathBuf::from),
        nkey: get("NKEY").map(Secret),
        user: get("USER"),
        password: get("PASSWORD").map(Secret),
        token: get("TOKEN").map(Secret),
        ca: get("CA").map(PathBuf::from),
        cert: get("CERT").map(PathBuf::from),
        key: get("KEY").map(PathBuf::from),
        context: get("CONTEXT"),
        inbox_prefix: get("INBOX_PREFIX"),
        name: None,
        alone: false,
    }
}

/// Where NATS tools keep their contexts: `$XDG_CONFIG_HOME/nats`, or `~/.config/nats`.
#[must_use]
pub fn config_dir() -> Option<PathBuf> {
    let xdg = std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    Some(xdg.or_else(|| Some(std::env::home_dir()?.join(".config")))?.join("nats"))
}

/// A context's file, as `nats context` writes it; fields that are not here mean nothing to us.
#[derive(Deserialize, Default)]
#[serde(default)]
struct ContextFile {
    url: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    inbox_prefix: String,
}

struct Contexts<'a> {
    config: Option<&'a Path>,
    home: Option<&'a Path>,
}

impl Contexts<'_> {
    fn read(&self, name: &str, by: &'static str) -> Result<ConnectSettings, SettingsError> {
        let path = context_path(self.config.ok_or(SettingsError::NoHome)?, name)?;
        match fs::read(&path) {
            Ok(text) => self.parse(path, &text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SettingsError::NoContext { name: name.to_owned(), by, path })
            }
            Err(error) => Err(SettingsError::Context { path, why: error.to_string() }),
        }
    }

    /// The context that `nats context select` chose, if there is one.
    fn selected(&self) -> Result<Option<(String, ConnectSettings)>, SettingsError> {
        let Some(config) = self.config else { return Ok(None) };
        let Ok(name) = fs::read_to_string(config.join("context.txt")) else { return Ok(None) };
        let name = name.trim().to_owned();
        if name.is_empty() {
            return Ok(None);
        }
        self.read(&name, "context.txt").map(|settings| Some((name, settings)))
    }

    fn parse(&self, path: PathBuf, text: &[u8]) -> Result<ConnectSettings, SettingsError> {
        let file: ContextFile = serde_json::from_slice(text).map_err(|error| {
            // Only where, never what: the file has passwords in it.
            SettingsError::Context {
                path,
                why: format!("it is not the JSON of a context (line {}, column {})", error.line(), error.column()),
            }
        })?;
        let given = |value: String| Some(value).filter(|value| !value.trim().is_empty());
        let path = |value: String| given(value).map(|value| self.expand(&value));
        Ok(ConnectSettings {
            server: given(file.url),
            creds: path(file.creds),
            nkey: path(file.nkey).map(|path| Secret(path.to_string_lossy().into_owned())),
            user: given(file.user),
            password: given(file.password).map(Secret),
            token: given(file.token).map(Secret),
            ca: path(file.ca),
            cert: path(file.cert),
            key: path(file.key),
            inbox_prefix: given(file.inbox_prefix),
            context: None,
            name: None,
            alone: false,
        })
    }

    fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => path.into(),
        }
    }
}

fn context_path(config: &Path, name: &str) -> Result<PathBuf, SettingsError> {
    if name.is_empty() || name.contains(['/', '\\', '\0']) || name.contains("..") {
        return Err(SettingsError::ContextName(name.to_owned()));
    }
    Ok(config.join("context").join(format!("{name}.json")))
}

/// Writes a context with this URL and nothing else among the user's contexts, so that `nats --context NAME` finds the
/// broker. One of that name is replaced; which one is selected stays as it is. Gives the file.
pub fn write_context(name: &str, url: &str) -> Result<PathBuf, SettingsError> {
    write_context_in(&config_dir().ok_or(SettingsError::NoHome)?, name, url)
}

/// [`write_context`] with the contexts in another directory.
pub fn write_context_in(config: &Path, name: &str, url: &str) -> Result<PathBuf, SettingsError> {
    let path = context_path(config, name)?;
    let text = serde_json::json!({ "description": "Written by baton up", "url": url });
    let write = || -> io::Result<()> {
        let dir = config.join("context");
        fs::create_dir_all(&dir)?;
        let new = dir.join(format!(".{name}.{}.new", std::process::id()));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        writeln!(file, "{text:#}")?;
        fs::rename(new, &path)
    };
    write().map_err(|error| SettingsError::Context { path: path.clone(), why: error.to_string() })?;
    Ok(path)
}

/// URLs as they may be shown: without what stands before an `@`.
pub(crate) fn without_secrets(servers: &str) -> String {
    let one = |url: &str| {
        let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
    };
    servers.split(',').map(|url| one(url.trim())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_are_complete_look_nothing_up() {
        let alone = ConnectSettings::alone("nats://127.0.0.1:1").resolve_here().unwrap();
        assert_eq!(alone.server, "nats://127.0.0.1:1");
        assert!(alone.auth == Auth::Nothing && alone.ca.is_none());
    }

    /// A directory that is gone when the test is.
    struct Dir(PathBuf);

    impl Dir {
        fn new() -> Self {
            let dir = std::env::temp_dir().join(format!("baton-client-{}", uuid::Uuid::new_v4()));
            fs::create_dir_all(dir.join("context")).unwrap();
            Self(dir)
        }

        fn context(&self, name: &str, json: &str) {
            fs::write(self.0.join("context").join(format!("{name}.json")), json).unwrap();
        }

        fn select(&self, name: &str) {
            fs::write(self.0.join("context.txt"), format!("{name}\n")).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn resolve(settings: &ConnectSettings, env: &[(&str, &str)], dir: &Dir) -> Result<Resolved, SettingsError> {
        let env = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        settings.resolve(env, Some(&dir.0), Some(Path::new("/home/ann")))
    }

    fn server(settings: &ConnectSettings, env: &[(&str, &str)], dir: &Dir) -> String {
        let resolved = resolve(settings, env, dir).unwrap();
        format!("{} from {}", resolved.server, resolved.server_from)
    }

    #[test]
    fn the_server_comes_from_the_first_that_names_one() {
        let dir = Dir::new();
        let nothing = ConnectSettings::default();
        assert_eq!(server(&nothing, &[], &dir), "nats://127.0.0.1:4222 from the default");
        dir.context("here", r#"{"url": "nats://selected"}"#);
        dir.context("there", r#"{"url": "nats://named"}"#);
        dir.select("here");
        assert_eq!(server(&nothing, &[], &dir), "nats://selected from the selected context \"here\"");
        let mut env = vec![("NATS_CONTEXT", "there"), ("BATON_SERVER", "")];
        assert_eq!(server(&nothing, &env, &dir), "nats://named from the context \"there\"");
        env.push(("NATS_URL", "nats://url"));
        assert_eq!(server(&nothing, &env, &dir), "nats://url from NATS_URL");
        env[1].1 = "nats://baton";
        assert_eq!(server(&nothing, &env, &dir), "nats://baton from BATON_SERVER");
        env.push(("BATON_CONTEXT", "here"));
        let flag = ConnectSettings { context: Some("there".into()), ..ConnectSettings::default() };
        assert_eq!(server(&flag, &env, &dir), "nats://named from the context \"there\"");
        let flag = ConnectSettings::server("nats://flag");
        assert_eq!(server(&flag, &env, &dir), "nats://flag from the command line");
    }

    #[test]
    fn how_to_authenticate_comes_whole_from_one_place() {
        let dir = Dir::new();
        let env = [("NATS_CREDS", "/c"), ("BATON_USER", "ann"), ("NATS_PASSWORD", "p")];
        let resolved = resolve(&ConnectSettings::default(), &env, &dir).unwrap();
        assert_eq!(resolved.auth, Auth::User("ann".into(), "p".into()));
        assert_eq!(resolved.auth_from, "BATON_USER");
        let flag = ConnectSettings { token: Some("t".into()), ..ConnectSettings::default() };
        assert_eq!(resolve(&flag, &env, &dir).unwrap().auth, Auth::Token("t".into()));
        dir.context("here", r#"{"url": "nats://s", "creds": "~/ann.creds", "unknown": [1]}"#);
        let env = [("NATS_CONTEXT", "here")];
        let resolved = resolve(&ConnectSettings::default(), &env, &dir).unwrap();
        assert_eq!(resolved.auth, Auth::Creds("/home/ann/ann.creds".into()));
    }

    #[test]
    fn a_selected_context_s_credentials_are_for_its_own_server_only() {
        let dir = Dir::new();
        dir.context("prod", r#"{"url": "nats://prod", "user": "ann", "password": "p"}"#);
        dir.select("prod");
        let selected = resolve(&ConnectSettings::default(), &[], &dir).unwrap();
        assert_eq!(selected.auth, Auth::User("ann".into(), "p".into()));
        let other = resolve(&ConnectSettings::server("nats://other"), &[], &dir).unwrap();
        assert_eq!(other.auth, Auth::Nothing);
    }

    #[test]
    fn a_context_that_is_not_there_or_not_one_is_an_error_that_says_so() {
        let dir = Dir::new();
        let error = |name: &str| resolve(&ConnectSettings::default(), &[("NATS_CONTEXT", name)], &dir).err().unwrap();
        let missing = error("nobody").to_string();
        assert!(missing.contains("\"nobody\"") && missing.contains("NATS_CONTEXT"), "{missing}");
        for bad in ["../x", "a/b"] {
            assert!(matches!(error(bad), SettingsError::ContextName(_)), "{bad}");
        }
        dir.context("broken", r#"{"password": "hush", "url": 7}"#);
        let broken = error("broken").to_string();
        assert!(broken.contains("broken.json") && !broken.contains("hush"), "{broken}");
    }

    #[test]
    fn a_written_context_can_be_read() {
        let dir = Dir::new();
        let path = write_context_in(&dir.0, "baton-dev", "nats://127.0.0.1:1").unwrap();
        assert!(path.ends_with("context/baton-dev.json"));
        write_context_in(&dir.0, "baton-dev", "nats://127.0.0.1:2").unwrap();
        let env = [("NATS_CONTEXT", "baton-dev")];
        assert_eq!(resolve(&ConnectSettings::default(), &env, &dir).unwrap().server, "nats://127.0.0.1:2");
        assert!(write_context_in(&dir.0, "../x", "nats://x").is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let settings = ConnectSettings {
            server: Some("nats://ann:hush@a:4222,hush@b".into()),
            password: Some("hush".into()),
            token: Some("hush".into()),
            nkey: Some("hush".into()),
            ..ConnectSettings::default()
        };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("hush") && shown.contains("nats://a:4222, b"), "{shown}");
    }
}
