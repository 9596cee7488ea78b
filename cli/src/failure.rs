//! How a command ends: its exit code, and what is said when it fails.

use std::fmt;

use baton_client::{ClientError, ConnectError};
use baton_gateway::GatewayError;
use baton_protocol::Code;
use baton_sdk::AgentError;
use baton_shell::ShellError;

use crate::style::Style;
use crate::text::span;

/// The exit codes; `--help` says the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It worked.
    Done = 0,
    /// It ran, and the answer is no: the run failed, the doctor found something.
    Failed = 1,
    /// The command line or a file given on it is wrong.
    Usage = 2,
    /// Baton runs on that data already.
    Running = 3,
    /// The broker or a service can not be reached.
    Unavailable = 4,
    /// A service refused.
    Rejected = 5,
    /// Ctrl-C.
    Interrupted = 130,
}

/// A failure of the command line itself: what is wrong, and what to do about it.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Whoever read our output has gone: `baton runs | head -1`. Nothing is wrong.
#[derive(Debug, thiserror::Error)]
#[error("the output is closed")]
pub(crate) struct ClosedPipe;

/// The exit code that an error means.
pub(crate) fn exit_of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(exit_of_one).unwrap_or(Exit::Failed)
}

fn exit_of_one(error: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if error.is::<ClosedPipe>() {
        return Some(Exit::Done);
    }
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return Some(failure.exit);
    }
    if let Some(error) = error.downcast_ref::<ClientError>() {
        return Some(match error {
            ClientError::Rejected(rejection) if rejection.code == Code::Unavailable => Exit::Unavailable,
            ClientError::Rejected(_) => Exit::Rejected,
            ClientError::Unreadable { .. } => Exit::Failed,
            ClientError::Trimmed { .. } => Exit::Rejected,
            ClientError::NoService(_)
            | ClientError::Timeout { .. }
            | ClientError::Connection(_)
            | ClientError::Log(_) => Exit::Unavailable,
        });
    }
    // Those that pass a connection's error on unchanged hide it from the chain.
    let connect = error
        .downcast_ref::<ConnectError>()
        .or(match error.downcast_ref() {
            Some(ShellError::Connect(error)) => Some(error),
            _ => None,
        })
        .or(match error.downcast_ref() {
            Some(GatewayError::Connect(error)) => Some(error),
            _ => None,
        })
        .or(match error.downcast_ref() {
            Some(AgentError::Connect(error)) => Some(error),
            _ => None,
        });
    if let Some(error) = connect {
        return Some(match error {
            ConnectError::Settings(_) | ConnectError::Url { .. } | ConnectError::Credentials { .. } => Exit::Usage,
            ConnectError::Unreachable { .. } => Exit::Unavailable,
            ConnectError::Denied { .. } => Exit::Rejected,
        });
    }
    if let Some(AgentError::Refused { .. } | AgentError::Forbidden { .. }) = error.downcast_ref() {
        return Some(Exit::Rejected);
    }
    if let Some(baton_broker::server::Error::InUse { .. }) = error.downcast_ref() {
        return Some(Exit::Running);
    }
    if error.is::<baton_broker::find::Error>() {
        return Some(Exit::Unavailable);
    }
    (error.is::<baton_shell::config::SettingsError>() || error.is::<baton_telemetry::logs::LogError>())
        .then_some(Exit::Usage)
}

/// What is printed of an error: one line for what failed, one for each cause, one for what to do.
pub(crate) fn report(error: &anyhow::Error, style: Style) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let mut text = format!("{} {}\n", style.red("error:"), causes.next().unwrap_or_default());
    let mut last = String::new();
    for cause in causes {
        // A transparent error says the same as what it wraps.
        if cause != last && !text.contains(&cause) {
            text.push_str(&format!("  {} {cause}\n", style.dim("because:")));
        }
        last = cause;
    }
    if let Some(hint) = error.chain().find_map(hint_of) {
        text.push_str(&format!("  {} {hint}\n", style.bold("hint:")));
    }
    text
}

fn hint_of(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(failure) = error.downcast_ref::<Failure>() {
        return failure.hint.clone();
    }
    let ClientError::Rejected(rejection) = error.downcast_ref()? else { return None };
    let wait = rejection.retry_after_ms.map(|ms| format!("ask again in {}", span(ms)));
    Some(match rejection.code {
        Code::Overloaded => {
            let wait = wait.as_deref().unwrap_or("ask again later");
            format!("{wait}, or let the command wait for room: --patience SECONDS")
        }
        Code::UnknownWorkflow => "`baton workflow list` shows the workflows".to_owned(),
        Code::UnknownRun => "`baton runs` shows the runs".to_owned(),
        Code::InvalidWorkflow => "`baton workflow validate FILE` checks a definition without a server".to_owned(),
        Code::RunEnded => "`baton show RUN` tells how it ended".to_owned(),
        Code::NotWaiting => "`baton show RUN` tells what its stages wait for".to_owned(),
        Code::KeyConflict => "give another --key, or the input that the key was first used with".to_owned(),
        Code::Internal => "this is a defect in Baton; `baton doctor` may show more".to_owned(),
        _ => return wait,
    })
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};
    use baton_protocol::{Rejection, Service};
    use expect_test::expect;

    use super::*;

    #[test]
    fn errors_have_the_exit_code_of_their_cause() {
        let rejected = |code| anyhow::Error::from(ClientError::Rejected(Rejection::new(code, "no")));
        for (error, exit) in [
            (anyhow!("something"), Exit::Failed),
            (anyhow!(ClosedPipe), Exit::Done),
            (anyhow!(Failure::usage("what?")).context("outer"), Exit::Usage),
            (rejected(Code::UnknownRun), Exit::Rejected),
            (rejected(Code::Unavailable), Exit::Unavailable),
            (rejected(Code::Overloaded), Exit::Rejected),
            (anyhow!(ClientError::NoService(Service::Optimizer)).context("outer"), Exit::Unavailable),
        ] {
            assert_eq!(exit_of(&error), exit, "{error:#}");
        }
    }

    #[test]
    fn an_error_says_what_why_and_what_to_do() {
        let refused = ClientError::Rejected(Rejection::new(Code::UnknownRun, "there is no run x"));
        let error = Err::<(), _>(refused).context("the run can not be shown").unwrap_err();
        expect![[r#"
            error: the run can not be shown
              because: there is no run x (unknown_run)
              hint: `baton runs` shows the runs
        "#]]
        .assert_eq(&report(&error, Style::plain()));
    }

    #[test]
    fn a_refusal_says_when_to_ask_again() {
        let says = |code| {
            let rejection = Rejection::new(code, "not now").retry_after(1500);
            report(&anyhow::Error::from(ClientError::Rejected(rejection)), Style::plain())
        };
        expect![[r#"
            error: not now (overloaded)
              hint: ask again in 1500 ms, or let the command wait for room: --patience SECONDS
            error: not now (unavailable)
              hint: ask again in 1500 ms
        "#]]
        .assert_eq(&(says(Code::Overloaded) + &says(Code::Unavailable)));
    }
}
