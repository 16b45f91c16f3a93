//! How many requests run at once (Kubernetes' max-in-flight, before priority and fairness).
//!
//! A request over the limit waits a moment for its turn, then is refused with 429 and a time to try
//! again. Long-running requests (watch, log, exec) hold no place once they have started.

use std::sync::Arc;
use std::time::Duration;

use proa_apimachinery::status::ApiError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::user::{MASTERS, User};

/// Reads at once.
const READS: usize = 400;
/// Writes at once: they wait for the disk together, so many are cheap.
const WRITES: usize = 400;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// The limits.
pub struct Flow {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
}

impl Default for Flow {
    fn default() -> Self {
        Flow { reads: Arc::new(Semaphore::new(READS)), writes: Arc::new(Semaphore::new(WRITES)) }
    }
}

impl Flow {
    /// A place, or 429. Administrators and the system's own parts are never refused.
    pub async fn enter(&self, user: &User, mutating: bool) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let places = if mutating { &self.writes } else { &self.reads };
        if let Ok(place) = Arc::clone(places).try_acquire_owned() {
            return Ok(Some(place));
        }
        if user.in_group(MASTERS)
            || user.name.starts_with("system:")
                && !user.name.starts_with("system:serviceaccount:")
                && user.name != crate::user::ANONYMOUS
        {
            return Ok(None);
        }
        match tokio::time::timeout(PATIENCE, Arc::clone(places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(Some(place)),
            _ => Err(ApiError::too_many_requests("too many requests, please try again later", 1)),
        }
    }
}
