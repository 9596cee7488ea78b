//! What a process says to its operator: one line an event, on stderr.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::str::FromStr;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, registry};

/// What other people's crates may say. Stands before the operator's own filter, which can say otherwise
/// (`debug,async_nats=debug`).
const QUIET: &str = "async_nats=warn,h2=warn,hyper=warn,hyper_util=warn,opentelemetry=off,opentelemetry-otlp=off,\
                     opentelemetry_sdk=off,reqwest=warn,rustls=warn,tonic=warn,tower=warn,tower_http=warn";

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// For machines: one JSON object a line.
    Json,
    /// Pretty on a terminal, JSON otherwise.
    #[default]
    Auto,
}

impl LogFormat {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pretty => "pretty",
            Self::Json => "json",
            Self::Auto => "auto",
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for LogFormat {
    type Err = LogError;
    fn from_str(text: &str) -> Result<Self, LogError> {
        [Self::Pretty, Self::Json, Self::Auto]
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| LogError::Format(text.chars().take(80).collect()))
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// How log lines look.
    pub format: LogFormat,
    /// What is logged, in the syntax of `RUST_LOG`: `info`, `debug,baton_shell=trace`. Noisy crates stay quiet unless
    /// the filter names them.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".to_owned() }
    }
}

/// A log configuration that is not one.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The format is unknown.
    #[error("log format {0:?} is not one of pretty, json, auto")]
    Format(String),
    /// The filter can not be read.
    #[error("log filter {filter:?} is not one: it must look like info or debug,baton_shell=trace")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Starts logging. Only the first call of a process has an effect; later ones only check what they are given.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = filter(&config.filter)?;
    let json = match config.format {
        LogFormat::Pretty => false,
        LogFormat::Json => true,
        LogFormat::Auto => !stderr().is_terminal(),
    };
    let lines = if json { json_layer(stderr).boxed() } else { pretty_layer().boxed() };
    // The error says that there is a subscriber already.
    let _ = registry().with(filter).with(lines).try_init();
    Ok(())
}

fn filter(own: &str) -> Result<EnvFilter, LogError> {
    let own = own.trim().trim_matches(',');
    let error = |source| LogError::Filter { filter: own.to_owned(), source };
    let all = if own.is_empty() { format!("{QUIET},info") } else { format!("{QUIET},{own}") };
    EnvFilter::builder().parse(all).map_err(error)
}

fn json_layer<S, W>(writer: W) -> impl Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    layer()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .log_internal_errors(false)
        .with_writer(writer)
}

fn pretty_layer<S>() -> impl Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    // https://no-color.org: any value that is not empty.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    layer().with_ansi(stderr().is_terminal() && !plain).log_internal_errors(false).with_writer(stderr)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(own: &str, say: impl FnOnce()) -> Vec<serde_json::Value> {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = registry().with(filter(own).unwrap()).with(json_layer(move || writer.clone()));
        tracing::subscriber::with_default(subscriber, say);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_is_one_object_and_says_which_run_it_is_about() {
        let lines = logged("info", || {
            let _outer = tracing::info_span!("outer").entered();
            let _task = tracing::info_span!("task", run = "r1", trace = "t1").entered();
            tracing::info!(ms = 7, "task done");
        });
        assert_eq!(lines.len(), 1);
        assert_eq!((&lines[0]["message"], &lines[0]["ms"]), (&"task done".into(), &7.into()));
        assert_eq!((&lines[0]["span"]["run"], &lines[0]["span"]["trace"]), (&"r1".into(), &"t1".into()));
        assert!(lines[0].get("spans").is_none(), "a list of all spans around it is noise");
    }

    #[test]
    fn noisy_crates_are_quiet_unless_named() {
        let say = || {
            tracing::info!(target: "async_nats", "event: connected");
            tracing::warn!(target: "opentelemetry_sdk", "BatchSpanProcessor");
            tracing::debug!("own");
        };
        assert_eq!(logged("", say).len(), 0);
        assert_eq!(logged("debug", say).len(), 1);
        assert_eq!(logged("debug,async_nats=info", say).len(), 2);
    }

    #[test]
    fn init_may_be_called_twice_and_refuses_what_it_can_not_read() {
        init(&LogConfig::default()).unwrap();
        init(&LogConfig { format: LogFormat::Json, filter: "debug".to_owned() }).unwrap();
        let error = init(&LogConfig { filter: "info,=x=y".to_owned(), ..LogConfig::default() }).unwrap_err();
        assert!(error.to_string().contains("info,=x=y"), "{error}");
        assert!("xml".parse::<LogFormat>().unwrap_err().to_string().contains("xml"));
    }
}
