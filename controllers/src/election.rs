//! One of several processes acts, the others stand by: leader election by a `Lease` (coordination.k8s.io).
//!
//! Owns the Lease of one family's loops and the terms in which they run. Never trusts another machine's clock: a holder
//! is given up when its record has not changed for the lease's time under our own eyes (as client-go does). A leader that
//! cannot renew stops its loops well before anybody else may start theirs.

use crate::{Clock, Options, patch::MANAGER};
use futures::future::BoxFuture;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use proa_crds::Family;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// A leader that was not heard of for so long is replaced.
const LEASE: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops acting.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often a leader renews and the others look.
const RETRY: Duration = Duration::from_secs(2);
/// A process that ends hands over, unless that takes longer than this.
const RELEASE_WITHIN: Duration = Duration::from_millis(300);
const NAMESPACE: &str = "kube-system";

/// Tells of the holder of a lease, by its name, whether it is known to be no more: then nobody waits for it.
pub type HasEnded = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A candidate.
pub(crate) struct Election {
    leases: Api<Lease>,
    name: String,
    identity: String,
    clock: Clock,
    /// Whether the holder of that name is known to be no more.
    has_ended: HasEnded,
    /// The holder's record as seen last, and since when.
    seen: Option<(LeaseSpec, Instant)>,
}

/// What a candidate does about the record it found.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Create,
    /// It is ours already.
    Renew,
    /// Nobody holds it, or its holder is silent.
    Take,
    /// Somebody else leads.
    StandBy,
}

fn step(found: Option<&LeaseSpec>, identity: &str, has_ended: &HasEnded, unchanged: Duration) -> Step {
    let Some(spec) = found else { return Step::Create };
    match spec.holder_identity.as_deref().unwrap_or_default() {
        holder if holder == identity => Step::Renew,
        "" => Step::Take,
        holder if has_ended(holder) => Step::Take,
        _ => {
            let granted =
                spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).map_or(LEASE, Duration::from_secs);
            if unchanged >= granted { Step::Take } else { Step::StandBy }
        }
    }
}

impl Election {
    pub(crate) fn new(client: Client, options: &Options) -> Self {
        let name = match options.family {
            Family::Standard => "proa-controllers".to_owned(),
            Family::Proa => "proa-controllers-proa.dev".to_owned(),
        };
        let leases = Api::namespaced(client, NAMESPACE);
        let Options { identity, clock, has_ended, .. } = options.clone();
        Election { leases, name, identity, clock, has_ended, seen: None }
    }

    /// Runs `act` whenever this process leads, with a token that ends each term, until `shutdown`.
    pub(crate) async fn lead(
        mut self,
        shutdown: CancellationToken,
        act: impl Fn(CancellationToken) -> BoxFuture<'static, ()>,
    ) {
        loop {
            tokio::select! {
                () = self.win() => {}
                () = shutdown.cancelled() => return,
            }
            info!(identity = self.identity, "leading");
            let term = shutdown.child_token();
            let mut acting = act(term.clone());
            tokio::select! {
                () = &mut acting => {}
                () = self.hold() => {
                    warn!(identity = self.identity, "the lease could not be renewed: standing by");
                    term.cancel();
                    acting.await;
                    continue;
                }
            }
            // The loops end by themselves on shutdown alone.
            let _ = timeout(RELEASE_WITHIN, self.release()).await;
            return;
        }
    }

    async fn win(&mut self) {
        loop {
            match self.attempt().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => debug!(%error, "the lease could not be read or written"),
            }
            sleep(RETRY).await;
        }
    }

    /// Renews until that is no longer possible.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            sleep(RETRY).await;
            let left = RENEW_DEADLINE.saturating_sub(renewed.elapsed());
            match timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                // Another took it: the record says so.
                Ok(Ok(false)) if !self.is_ours() => return,
                Ok(Ok(false)) => {}
                Ok(Err(error)) => debug!(%error, "the lease could not be renewed"),
                Err(_) => return,
            }
        }
    }

    fn is_ours(&self) -> bool {
        self.seen.as_ref().is_none_or(|(spec, _)| spec.holder_identity.as_deref() == Some(&self.identity))
    }

    /// One try to become or stay the leader; whether this process is it now.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let found = self.leases.get_opt(&self.name).await?;
        let spec = found.as_ref().map(|lease| lease.spec.clone().unwrap_or_default());
        if let Some(spec) = &spec
            && self.seen.as_ref().is_none_or(|(held, _)| held != spec)
        {
            self.seen = Some((spec.clone(), Instant::now()));
        }
        let unchanged = self.seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let step = step(spec.as_ref(), &self.identity, &self.has_ended, unchanged);
        if step == Step::StandBy {
            return Ok(false);
        }
        let now = Some(MicroTime(self.clock.now()));
        let before = spec.unwrap_or_default();
        let renewed = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            acquire_time: if step == Step::Renew { before.acquire_time.clone() } else { now.clone() },
            renew_time: now,
            lease_transitions: match step {
                Step::Create => Some(0),
                Step::Take => Some(before.lease_transitions.unwrap_or(0).saturating_add(1)),
                Step::Renew | Step::StandBy => before.lease_transitions,
            },
            ..before
        };
        self.write(found, renewed).await
    }

    /// Writes the record over the one that was read; `false` when somebody else was faster.
    async fn write(&mut self, found: Option<Lease>, spec: LeaseSpec) -> Result<bool, kube::Error> {
        let post = PostParams { field_manager: Some(MANAGER.to_owned()), dry_run: false };
        let written = match found {
            None => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                self.leases.create(&post, &Lease { metadata, spec: Some(spec) }).await
            }
            // With the resource version that was read: of two takers one gets a conflict.
            Some(lease) => self.leases.replace(&self.name, &post, &Lease { spec: Some(spec), ..lease }).await,
        };
        match written {
            Ok(lease) => {
                self.seen = Some((lease.spec.unwrap_or_default(), Instant::now()));
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Hands over: the next one need not wait.
    async fn release(&mut self) -> Result<(), kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else { return Ok(()) };
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            let free = LeaseSpec { holder_identity: None, renew_time: Some(MicroTime(self.clock.now())), ..spec };
            self.write(Some(lease), free).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_nobody_holds_it_or_its_holder_is_silent() {
        let held = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let gone: HasEnded = Arc::new(|holder| holder == "dead");
        let step = |found: Option<&LeaseSpec>, seconds| step(found, "a", &gone, Duration::from_secs(seconds));
        assert_eq!(step(None, 0), Step::Create);
        assert_eq!(step(Some(&held("a")), 99), Step::Renew);
        assert_eq!(step(Some(&held("")), 0), Step::Take);
        assert_eq!(step(Some(&held("dead")), 0), Step::Take);
        assert_eq!(step(Some(&held("b")), 14), Step::StandBy);
        assert_eq!(step(Some(&held("b")), 15), Step::Take);
        assert_eq!(step(Some(&LeaseSpec::default()), 0), Step::Take);
    }
}
