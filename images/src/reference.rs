//! Names of images, as Docker reads them (the distribution project's reference grammar).

use std::fmt;

use crate::digest::Digest;
use crate::error::ImageError;

/// A full name: registry, repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

const DOCKER: &str = "docker.io";

impl Reference {
    /// Reads a name. `nginx` is `docker.io/library/nginx:latest`; `example/echo:v1` is
    /// `docker.io/example/echo:v1`; what looks like a host (a dot, a colon, `localhost`) is one.
    pub fn parse(text: &str) -> Result<Reference, ImageError> {
        let bad = |why: &str| ImageError::InvalidName(format!("{text:?} {why}"));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(Digest::parse(digest).ok_or_else(|| bad("has a digest that is none"))?))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("has a tag that is none: letters, digits, _ . -, at most 128"));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path.to_owned()),
            Some(_) => (DOCKER, name.to_owned()),
            None => (DOCKER, format!("library/{name}")),
        };
        let registry = if registry == "index.docker.io" { DOCKER } else { registry };
        let repository = match repository.split_once('/') {
            None if registry == DOCKER => format!("library/{repository}"),
            _ => repository,
        };
        if !is_host(registry) {
            return Err(bad("has a registry that is no host"));
        }
        if repository.len() > 255 || !repository.split('/').all(is_component) {
            return Err(bad("has a repository name that is none (it must be lower case)"));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
    }

    /// Host and port of the registry: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// `latest`, unless there is only a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest, where the name has one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name as people write it: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(short) = full.strip_prefix("docker.io/") else { return full };
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }

    /// Registry and repository alone.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository, by digest.
    pub(crate) fn with_digest(&self, digest: &Digest) -> Reference {
        Reference { digest: Some(digest.clone()), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !tag.is_empty() && tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let port_fine = port.is_none_or(|port| !port.is_empty() && port.chars().all(|c| c.is_ascii_digit()));
    let bracketed = name.starts_with('[')
        && name.ends_with(']')
        && name[1..name.len() - 1].chars().all(|c| c.is_ascii_hexdigit() || c == ':');
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    port_fine && (bracketed || name.split('.').all(label))
}

/// Lower-case words joined by `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fine = part.chars().all(|c| word(c) || matches!(c, '.' | '_' | '-'));
    let joined = !part.contains("..") && !part.contains("___") && !part.contains("._") && !part.contains("_.");
    fine && joined && part.starts_with(word) && part.ends_with(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = Digest::of(b"");
        let table = [
            ("nginx".to_owned(), "docker.io/library/nginx:latest".to_owned()),
            ("docker.io/nginx:1".to_owned(), "docker.io/library/nginx:1".to_owned()),
            ("index.docker.io/a/b".to_owned(), "docker.io/a/b:latest".to_owned()),
            ("example/echo:v1".to_owned(), "docker.io/example/echo:v1".to_owned()),
            ("localhost/x".to_owned(), "localhost/x:latest".to_owned()),
            ("localhost:5000/x/y:t".to_owned(), "localhost:5000/x/y:t".to_owned()),
            ("127.0.0.1:5000/x".to_owned(), "127.0.0.1:5000/x:latest".to_owned()),
            ("ghcr.io/a/b_c__d-e--f.g".to_owned(), "ghcr.io/a/b_c__d-e--f.g:latest".to_owned()),
            (format!("a/b@{digest}"), format!("docker.io/a/b@{digest}")),
            (format!("a/b:t@{digest}"), format!("docker.io/a/b:t@{digest}")),
        ];
        for (text, full) in table {
            let parsed = Reference::parse(&text).unwrap();
            assert_eq!(parsed.to_string(), full);
            assert_eq!(Reference::parse(&parsed.familiar()).unwrap(), parsed, "{text}");
        }
        assert_eq!(Reference::parse("nginx").unwrap().familiar(), "nginx:latest");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "",
            "Nginx",
            "a b",
            "a//b",
            "a:",
            "a:-x",
            "a@sha256:1",
            "../etc",
            "a/../b",
            "-a",
            "a_",
            "http://x/y",
            "x.y:z/a",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_is_stable(text in "\\PC{0,40}|[a-z0-9./:@_-]{0,40}") {
            if let Ok(parsed) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&parsed.to_string()).unwrap(), parsed);
            }
        }
    }
}
