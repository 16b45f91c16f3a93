//! What a person sees while `up` starts: one line per step with how long it took, a spinner for what is under way on a
//! terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The narrator of one start.
#[derive(Clone)]
pub(crate) struct Progress {
    begun: Instant,
    spinner: ProgressBar,
}

impl Progress {
    pub(crate) fn new() -> Progress {
        // Hidden by indicatif itself when stderr is no terminal.
        let spinner = ProgressBar::new_spinner();
        let style =
            ProgressStyle::with_template("  {spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        spinner.set_style(style);
        Progress { begun: Instant::now(), spinner }
    }

    /// Since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// What is being waited for right now.
    pub(crate) fn waiting(&self, what: impl Into<String>) {
        self.spinner.set_message(what.into());
        self.spinner.enable_steady_tick(Duration::from_millis(100));
    }

    /// A step that is done.
    pub(crate) fn done(&self, what: &str, detail: impl AsRef<str>) {
        self.line("✔", what, detail.as_ref());
    }

    /// A step that is under way, said once.
    pub(crate) fn doing(&self, what: &str, detail: impl AsRef<str>) {
        self.line("·", what, detail.as_ref());
    }

    /// Something a person should act on.
    pub(crate) fn warn(&self, what: &str, detail: impl AsRef<str>) {
        self.line("!", what, detail.as_ref());
    }

    /// A step that failed.
    pub(crate) fn failed(&self, why: &str) {
        self.spinner.suspend(|| eprintln!("  ✘ {why}"));
    }

    /// Text as it is, below the steps.
    pub(crate) fn say(&self, text: &str) {
        self.spinner.finish_and_clear();
        eprintln!("{text}");
    }

    fn line(&self, mark: &str, what: &str, detail: &str) {
        let at = self.begun.elapsed().as_secs_f64();
        self.spinner.suspend(|| eprintln!("  {mark} {what:<22} {detail:<52} {at:>7.2} s"));
    }
}
