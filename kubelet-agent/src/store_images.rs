//! Owns the bridge from the image store to [`crate::images::ImageSource`].

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use nix::sys::signal::Signal;
use proa_images::{Image, ImageStore, PullError};
use tokio_util::sync::CancellationToken;

use crate::images::{Credentials, ImageSource, LocalImage, PullFailure};

/// The node's image store.
pub(crate) struct StoreImages {
    store: Arc<ImageStore>,
    /// somebody will write new layers through soon
    settling: Arc<AtomicBool>,
}

const SETTLE_AFTER: Duration = Duration::from_secs(10);

impl StoreImages {
    pub(crate) fn new(store: Arc<ImageStore>) -> Self {
        Self { store, settling: Arc::default() }
    }

    /// Has new layers written through when what they were unpacked for has started: the disk is the start's first.
    fn settle_later(&self) {
        if self.settling.swap(true, Ordering::AcqRel) {
            return;
        }
        let (store, settling) = (self.store.clone(), self.settling.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SETTLE_AFTER).await;
            // What is unpacked from now on asks again.
            settling.store(false, Ordering::Release);
            let settle = move || store.settle();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(settle).await {
                tracing::warn!(%error, "layers may be lost in a power cut");
            }
        });
    }
}

/// `SIGQUIT`, `QUIT` or `3`.
fn signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper } else { format!("SIG{upper}") };
    Signal::from_str(&name).ok().map(|s| s as i32)
}

fn local(image: Image) -> LocalImage {
    LocalImage {
        id: image.id.as_str().to_owned(),
        references: image.references,
        size: image.size,
        entrypoint: image.config.entrypoint,
        cmd: image.config.cmd,
        env: image.config.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        user: image.config.user,
        working_dir: image.config.working_dir,
        stop_signal: image.config.stop_signal.as_deref().and_then(signal),
        volumes: image.config.volumes,
    }
}

impl ImageSource for StoreImages {
    fn get<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Option<LocalImage>> {
        Box::pin(async move { self.store.get(reference).map(local) })
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        credentials: Option<Credentials>,
    ) -> BoxFuture<'a, Result<LocalImage, PullFailure>> {
        let credentials = credentials.map(|c| proa_images::Credentials { username: c.username, password: c.password });
        let (store, reference) = (self.store.clone(), reference.to_owned());
        Box::pin(async move {
            // Hashing and unpacking take the processor for long: a pull has a thread of its own, which learns by this token
            // that nobody waits for it any more.
            let wanted = CancellationToken::new();
            let _unwanted = wanted.clone().drop_guard();
            let runtime = tokio::runtime::Handle::current();
            let pull =
                move || runtime.block_on(wanted.run_until_cancelled(store.pull(&reference, credentials, |_| {})));
            let pulled = match tokio::task::spawn_blocking(pull).await {
                Ok(Some(pulled)) => pulled,
                Ok(None) => return Err(PullFailure::Failed("the pull was called off".to_owned())),
                Err(error) => return Err(PullFailure::Failed(error.to_string())),
            };
            match pulled {
                Ok(image) => Ok(local(image)),
                Err(PullError::InvalidName(why)) => Err(PullFailure::InvalidName(why)),
                Err(error) => Err(PullFailure::Failed(error.to_string())),
            }
        })
    }

    fn layers<'a>(&'a self, image: &'a LocalImage) -> BoxFuture<'a, Result<Vec<PathBuf>, String>> {
        let (store, id) = (self.store.clone(), image.id.clone());
        Box::pin(async move {
            let unpack = move || {
                let image = store.get(&id).ok_or_else(|| format!("image {id} is not here any more"))?;
                store.layers(&image).map_err(|e| e.to_string())
            };
            let layers = tokio::task::spawn_blocking(unpack).await.map_err(|e| e.to_string())?;
            self.settle_later();
            layers
        })
    }

    fn list(&self) -> BoxFuture<'_, Vec<LocalImage>> {
        Box::pin(async move { self.store.list().into_iter().map(local).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proa_images::Options;
    use tokio::io::AsyncReadExt as _;

    #[tokio::test]
    async fn a_pull_nobody_waits_for_lets_go_of_the_registry() {
        // A registry that takes a question and never answers.
        let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let images = StoreImages::new(Arc::new(ImageStore::open(dir.path(), Options::default()).unwrap()));
        let name = format!("{}/app:1", registry.local_addr().unwrap());
        let mut asked = tokio::select! {
            pulled = images.pull(&name, None) => panic!("{pulled:?}"),
            accepted = registry.accept() => accepted.unwrap().0,
        };
        let mut question = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), asked.read_to_end(&mut question));
        ended.await.expect("the connection is closed").unwrap();
    }

    #[test]
    fn stop_signals_are_names_or_numbers() {
        for (text, want) in [("SIGQUIT", Some(3)), ("quit", Some(3)), ("15", Some(15)), ("99", None), ("SIGNOPE", None)]
        {
            assert_eq!(signal(text), want, "{text}");
        }
    }
}
