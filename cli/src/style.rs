//! Colour, where somebody looks.

use std::env;
use std::io::IsTerminal;

use clap::ValueEnum;
use owo_colors::OwoColorize;

/// When output is coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

impl ColorChoice {
    /// How to write to that stream.
    pub(crate) fn style(self, stream: &impl IsTerminal) -> Style {
        let quiet = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || env::var_os("TERM").is_some_and(|value| value == "dumb");
        Style(match self {
            Self::Auto => stream.is_terminal() && !quiet,
            Self::Always => true,
            Self::Never => false,
        })
    }
}

/// Whether text is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style(bool);

impl Style {
    /// No colour.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self(false)
    }

    pub(crate) fn is_on(self) -> bool {
        self.0
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.with(text, |text| text.bold().to_string())
    }

    pub(crate) fn italic(self, text: &str) -> String {
        self.with(text, |text| text.italic().to_string())
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.with(text, |text| text.dimmed().to_string())
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.with(text, |text| text.red().bold().to_string())
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.with(text, |text| text.cyan().to_string())
    }

    /// In the colour of a tone.
    pub(crate) fn tone(self, tone: Tone, text: &str) -> String {
        self.with(text, |text| match tone {
            Tone::Plain => text.to_owned(),
            Tone::Good => text.green().to_string(),
            Tone::Bad => text.red().to_string(),
            Tone::Busy => text.yellow().to_string(),
            Tone::Faint => text.dimmed().to_string(),
        })
    }

    fn with(self, text: &str, paint: impl Fn(&str) -> String) -> String {
        if self.0 && !text.is_empty() { paint(text) } else { text.to_owned() }
    }
}

/// What a word means, so that it gets its colour in one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Bad,
    Busy,
    Faint,
}

impl Tone {
    /// The tone of a status or an outcome, by its word.
    pub(crate) fn of(word: &str) -> Self {
        match word {
            "succeeded" | "ok" | "idle" | "leading" | "serving" => Self::Good,
            "failed" | "lost" | "timed_out" | "wrong" | "gone" => Self::Bad,
            "running" | "busy" | "paused" | "waiting" | "loading" | "look" => Self::Busy,
            "pending" | "cancelled" | "ready" => Self::Faint,
            _ => Self::Plain,
        }
    }
}
