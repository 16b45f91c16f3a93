//! Owns the bridge from the image store to [`crate::images::ImageSource`].

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::Arc;

use futures::future::BoxFuture;
use nix::sys::signal::Signal;
use proa_images::{Image, ImageStore, PullError};

use crate::images::{Credentials, ImageSource, LocalImage, PullFailure};

/// The node's image store.
pub(crate) struct StoreImages {
    store: Arc<ImageStore>,
}

impl StoreImages {
    pub(crate) fn new(store: Arc<ImageStore>) -> Self {
        Self { store }
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
            // Hashing and unpacking take the processor for long: a pull has a thread of its own.
            let runtime = tokio::runtime::Handle::current();
            let pull = move || runtime.block_on(store.pull(&reference, credentials, |_| {}));
            let pulled = match tokio::task::spawn_blocking(pull).await {
                Ok(pulled) => pulled,
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
            tokio::task::spawn_blocking(unpack).await.map_err(|e| e.to_string())?
        })
    }

    fn list(&self) -> BoxFuture<'_, Vec<LocalImage>> {
        Box::pin(async move { self.store.list().into_iter().map(local).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_names_or_numbers() {
        for (text, want) in [("SIGQUIT", Some(3)), ("quit", Some(3)), ("15", Some(15)), ("99", None), ("SIGNOPE", None)]
        {
            assert_eq!(signal(text), want, "{text}");
        }
    }
}
