//! What a server takes from the outside world without asking anybody: the time, and chance.
//!
//! Owns the two values everything else in the crate goes through, so that a simulation decides both. (Keys are not
//! drawn here: they come from the operating system, always.)

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// A source of the current time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Clock(Arc::new(Timestamp::now))
    }

    /// A clock that says what `now` says.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Clock(Arc::new(now))
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// A source of chance for uids, made-up names, free addresses and time-outs: nothing that must be secret.
#[derive(Clone)]
pub struct Entropy(Option<Arc<Mutex<StdRng>>>);

impl Entropy {
    /// The operating system's.
    pub fn system() -> Self {
        Entropy(None)
    }

    /// The same draws for the same seed. Clones go on in the same row.
    pub fn seeded(seed: u64) -> Self {
        Entropy(Some(Arc::new(Mutex::new(StdRng::seed_from_u64(seed)))))
    }

    /// A number from the range, which must not be empty.
    pub fn within(&self, range: Range<u64>) -> u64 {
        match &self.0 {
            None => rand::rng().random_range(range),
            Some(seeded) => seeded.lock().random_range(range),
        }
    }

    /// A fresh uid (RFC 9562, version 4).
    pub fn uid(&self) -> String {
        let bytes: [u8; 16] = match &self.0 {
            None => rand::rng().random(),
            Some(seeded) => seeded.lock().random(),
        };
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Entropy(seeded)" } else { "Entropy(system)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_the_system_does_not() {
        let draw = |entropy: &Entropy| (entropy.uid(), entropy.within(0..1000), entropy.uid());
        assert_eq!(draw(&Entropy::seeded(7)), draw(&Entropy::seeded(7)));
        assert_ne!(draw(&Entropy::seeded(7)), draw(&Entropy::seeded(8)));
        assert_ne!(Entropy::system().uid(), Entropy::system().uid());
        let uid = Entropy::seeded(1).uid();
        assert!(uuid::Uuid::parse_str(&uid).is_ok_and(|uid| uid.get_version_num() == 4), "{uid}");
    }
}
