//! What is made from a certificate is made again before that runs out.
//!
//! Owns when. Nobody waits for the time to come: whoever uses the value next after it gets the new one.

use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;

use crate::outside::Clock;
use crate::pki::PkiError;

/// How the value is made, and until when it is to be used.
type Make<T> = Box<dyn Fn() -> Result<(T, Timestamp), PkiError> + Send + Sync>;

/// A value that is made anew when its time is over.
pub struct Renewing<T> {
    current: ArcSwap<(Arc<T>, Timestamp)>,
    make: Make<T>,
    clock: Clock,
    /// One makes it; the others take the old one meanwhile.
    making: Mutex<()>,
}

impl<T> std::fmt::Debug for Renewing<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Renewing {{ until: {} }}", self.current.load().1)
    }
}

impl<T> Renewing<T> {
    /// The first value.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(
        clock: Clock,
        make: impl Fn() -> Result<(T, Timestamp), PkiError> + Send + Sync + 'static,
    ) -> Result<Self, PkiError> {
        let (value, until) = make()?;
        let current = ArcSwap::from_pointee((Arc::new(value), until));
        Ok(Renewing { current, make: Box::new(make), clock, making: Mutex::default() })
    }

    /// The value to use now. One that cannot be made anew stays in use: it is still good for a third of its life.
    pub fn get(&self) -> Arc<T> {
        let current = self.current.load();
        if self.clock.now() >= current.1
            && let Some(_turn) = self.making.try_lock()
        {
            match (self.make)() {
                Ok((value, until)) => {
                    let value = Arc::new(value);
                    self.current.store(Arc::new((Arc::clone(&value), until)));
                    return value;
                }
                Err(error) => tracing::error!(%error, "a certificate cannot be renewed"),
            }
        }
        Arc::clone(&current.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    #[test]
    fn a_value_is_made_again_when_its_time_is_over_and_kept_when_that_fails() {
        let now = Arc::new(AtomicI64::new(100));
        let second = |at: i64| Timestamp::from_second(at).unwrap();
        let clock = {
            let now = Arc::clone(&now);
            Clock::new(move || second(now.load(Ordering::Relaxed)))
        };
        let made = {
            let now = Arc::clone(&now);
            move || match now.load(Ordering::Relaxed) {
                at @ 300.. => Err(PkiError::Key(format!("broken at {at}"))),
                at => Ok((at, second(at + 50))),
            }
        };
        let value = Renewing::new(clock, made).unwrap();
        for (at, expected) in [(100, 100), (149, 100), (150, 150), (199, 150), (240, 240), (300, 240)] {
            now.store(at, Ordering::Relaxed);
            assert_eq!(*value.get(), expected, "at {at}");
        }
    }
}
