//! The one place where controllers get the time.

use jiff::Timestamp;
use std::{fmt, sync::Arc};

/// A source of the current time. Plans never see it: they are passed a [`Timestamp`].
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Clock(Arc::new(Timestamp::now))
    }

    /// A clock that starts at `start` and runs with tokio's time, so that paused or simulated time moves it.
    pub fn simulated(start: Timestamp) -> Self {
        let origin = tokio::time::Instant::now();
        Clock(Arc::new(move || start.checked_add(origin.elapsed()).unwrap_or(start)))
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
