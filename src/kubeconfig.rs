//! A kubeconfig file: the client it describes, and what the parts need to know of the same cluster besides.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use kube::Client;
use kube::config::{Cluster, Kubeconfig};
use warp::http::{HeaderValue, header};

/// What a part calls itself towards the API server, which takes the word before the slash for the field manager of a
/// write that names none.
#[derive(Clone, Copy)]
pub(crate) struct UserAgent(pub(crate) &'static str);

pub(crate) const CONTROLLERS: UserAgent = UserAgent(concat!("proa-controllers/", env!("CARGO_PKG_VERSION")));
pub(crate) const AGENT: UserAgent = UserAgent(concat!("proa-agent/", env!("CARGO_PKG_VERSION")));
/// The commands a user gives.
pub(crate) const COMMAND_LINE: UserAgent = UserAgent(concat!("proa/", env!("CARGO_PKG_VERSION")));

/// A file as read once; everything follows its current context.
pub(crate) struct Access {
    path: PathBuf,
    kubeconfig: Kubeconfig,
}

impl Access {
    /// # Errors
    /// When the file cannot be read or is no kubeconfig.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Access> {
        let text = std::fs::read(path);
        let kubeconfig = text.map_err(anyhow::Error::from).and_then(|text| parse(&text, path.parent()));
        let kubeconfig = kubeconfig.with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
        Ok(Access { path: path.to_owned(), kubeconfig })
    }

    /// What kubectl would use: the files of `$KUBECONFIG` merged, else the one in the user's home; `None` when there is
    /// none. A file that is named and does not exist is passed over, as client-go does.
    ///
    /// # Errors
    /// When a file that is there is no kubeconfig.
    pub(crate) fn of_user() -> anyhow::Result<Option<Access>> {
        let named = std::env::var_os("KUBECONFIG").filter(|named| !named.is_empty());
        let paths: Vec<PathBuf> = match named {
            Some(named) => std::env::split_paths(&named).collect(),
            None => std::env::home_dir().map(|home| home.join(".kube/config")).into_iter().collect(),
        };
        let mut merged: Option<Access> = None;
        for path in paths.iter().filter(|path| path.exists()) {
            let read = Access::read(path)?;
            merged = Some(match merged {
                Some(Access { path, kubeconfig }) => Access { path, kubeconfig: kubeconfig.merge(read.kubeconfig)? },
                None => read,
            });
        }
        Ok(merged)
    }

    /// What a command goes by: the file that is named, else what kubectl would use, else the default data directory's.
    ///
    /// # Errors
    /// When there is none, or the one that is named cannot be read.
    pub(crate) fn of_command(named: Option<&Path>) -> anyhow::Result<Access> {
        if let Some(file) = named {
            return Access::read(file);
        }
        if let Some(access) = Access::of_user()? {
            return Ok(access);
        }
        let default = Path::new(crate::cli::DEFAULT_DATA_DIR).join("admin.kubeconfig");
        Access::read(&default).context("no kubeconfig: give one with --kubeconfig")
    }

    /// A kubeconfig as a text.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn parse(text: &[u8], called: &str) -> anyhow::Result<Access> {
        Ok(Access { path: called.into(), kubeconfig: parse(text, None)? })
    }

    /// The URL of the API server.
    pub(crate) fn url(&self) -> anyhow::Result<&str> {
        self.cluster()?.server.as_deref().with_context(|| format!("{} names no server", self.path.display()))
    }

    /// A client that calls itself so.
    pub(crate) async fn client(&self, agent: UserAgent) -> anyhow::Result<Client> {
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(self.kubeconfig.clone(), &options);
        let mut config = config.await.with_context(|| format!("{} is not a usable kubeconfig", self.path.display()))?;
        config.headers.push((header::USER_AGENT, HeaderValue::from_static(agent.0)));
        Ok(Client::try_from(config)?)
    }

    /// The certificate authority of the cluster, PEM.
    pub(crate) fn certificate_authority(&self) -> anyhow::Result<String> {
        let cluster = self.cluster()?;
        if let Some(data) = &cluster.certificate_authority_data {
            let pem = base64::engine::general_purpose::STANDARD
                .decode(data)
                .context("certificate-authority-data is no base64")?;
            return String::from_utf8(pem).context("certificate-authority-data is no PEM text");
        }
        match &cluster.certificate_authority {
            Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {path}")),
            None => bail!("{} names no certificate authority: nobody could tell whom to trust", self.path.display()),
        }
    }

    /// The certificate of the current user, PEM.
    pub(crate) fn client_certificate(&self) -> anyhow::Result<String> {
        let file = &self.kubeconfig;
        let current = file.current_context.as_deref().unwrap_or_default();
        let context = file.contexts.iter().find(|named| named.name == current).and_then(|named| named.context.as_ref());
        let user = context.and_then(|context| context.user.as_deref()).unwrap_or_default();
        let info = file.auth_infos.iter().find(|named| named.name == user).and_then(|named| named.auth_info.as_ref());
        let data = info.and_then(|info| info.client_certificate_data.as_deref());
        let data = data.with_context(|| format!("{} holds no client certificate", self.path.display()))?;
        let pem =
            base64::engine::general_purpose::STANDARD.decode(data).context("client-certificate-data is no base64")?;
        String::from_utf8(pem).context("client-certificate-data is no PEM text")
    }

    /// Where the API server answers.
    pub(crate) fn server(&self) -> anyhow::Result<SocketAddr> {
        let server = self.cluster()?.server.as_deref();
        let server = server.with_context(|| format!("{} names no server", self.path.display()))?;
        let url: warp::http::Uri = server.parse().with_context(|| format!("{server:?} is no URL"))?;
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let address = (host, url.port_u16().unwrap_or(443));
        let found = address.to_socket_addrs().with_context(|| format!("cannot find {host}"))?.next();
        found.with_context(|| format!("{host} has no address"))
    }

    fn cluster(&self) -> anyhow::Result<&Cluster> {
        let file = &self.kubeconfig;
        let current = file.current_context.as_deref().unwrap_or_default();
        // What is published for newcomers has one cluster and nobody to be.
        if let ("", [], [only]) = (current, file.contexts.as_slice(), file.clusters.as_slice()) {
            return only.cluster.as_ref().with_context(|| format!("{} has no cluster", self.path.display()));
        }
        let context = file.contexts.iter().find(|named| named.name == current).and_then(|named| named.context.as_ref());
        let context = context.with_context(|| format!("{} has no context {current:?}", self.path.display()))?;
        let cluster = file.clusters.iter().find(|named| named.name == context.cluster);
        cluster
            .and_then(|named| named.cluster.as_ref())
            .with_context(|| format!("{} has no cluster {:?}", self.path.display(), context.cluster))
    }
}

/// Every document, merged. Through our own reader of YAML: a second one, made for these types alone, is half a megabyte.
/// What it names relative to itself lies in `directory`.
fn parse(text: &[u8], directory: Option<&Path>) -> anyhow::Result<Kubeconfig> {
    let mut merged = Kubeconfig::default();
    for document in proa_apimachinery::yaml::from_yaml(text)? {
        let mut read: Kubeconfig = serde_json::from_value(document)?;
        if let Some(directory) = directory {
            anchor(&mut read, directory);
        }
        merged = merged.merge(read)?;
    }
    Ok(merged)
}

/// Relative paths count from the file that names them; of commands only those that are paths (client-go).
fn anchor(file: &mut Kubeconfig, directory: &Path) {
    let anchor = |path: &mut Option<String>| {
        if let Some(path) = path
            && let Some(absolute) = directory.join(&*path).to_str()
        {
            absolute.clone_into(path);
        }
    };
    for cluster in file.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        anchor(&mut cluster.certificate_authority);
    }
    for user in file.auth_infos.iter_mut().filter_map(|named| named.auth_info.as_mut()) {
        anchor(&mut user.client_certificate);
        anchor(&mut user.client_key);
        anchor(&mut user.token_file);
        if let Some(exec) = &mut user.exec
            && exec.command.as_ref().is_some_and(|command| command.contains('/'))
        {
            anchor(&mut exec.command);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_CLUSTERS: &str = "
clusters:
- {name: first, cluster: {server: 'https://192.0.2.1:6443', certificate-authority-data: Zmlyc3Q=}}
- {name: second, cluster: {server: 'https://[2001:db8::2]', certificate-authority-data: c2Vjb25k}}
users: [{name: me, user: {}}]
contexts:
- {name: one, context: {cluster: first, user: me}}
- {name: two, context: {cluster: second, user: me}}
";

    fn access(current: &str) -> Access {
        let kubeconfig = parse(format!("{TWO_CLUSTERS}current-context: {current}\n").as_bytes(), None);
        Access { path: "file".into(), kubeconfig: kubeconfig.expect("a kubeconfig") }
    }

    #[test]
    fn a_relative_path_counts_from_the_file_that_names_it() {
        let text = "
clusters: [{name: c, cluster: {certificate-authority: pki/ca.crt}}]
users:
- {name: own, user: {client-certificate: me.crt, client-key: /etc/me.key, exec: {command: ./login}}}
- {name: path, user: {exec: {command: aws}}}
---
current-context: later
";
        let read = parse(text.as_bytes(), Some(Path::new("/home/me/.kube"))).expect("a kubeconfig");
        let cluster = read.clusters[0].cluster.as_ref().expect("a cluster");
        assert_eq!(cluster.certificate_authority.as_deref(), Some("/home/me/.kube/pki/ca.crt"));
        let user = |at: usize| read.auth_infos[at].auth_info.as_ref().expect("a user");
        let command = |at| user(at).exec.as_ref().and_then(|exec| exec.command.as_deref());
        assert_eq!(user(0).client_certificate.as_deref(), Some("/home/me/.kube/me.crt"));
        assert_eq!(user(0).client_key.as_deref(), Some("/etc/me.key"));
        assert_eq!(command(0), Some("/home/me/.kube/./login"));
        assert_eq!(command(1), Some("aws"), "looked up in PATH");
        assert_eq!(read.current_context.as_deref(), Some("later"), "of every document");
    }

    #[test]
    fn of_several_clusters_the_current_contexts_is_meant() {
        let said = |access: &Access| {
            let server = access.server().expect("an address").to_string();
            (server, access.certificate_authority().expect("a certificate"))
        };
        assert_eq!(said(&access("one")), ("192.0.2.1:6443".into(), "first".into()));
        assert_eq!(said(&access("two")), ("[2001:db8::2]:443".into(), "second".into()));
        let error = access("three").server().expect_err("no such context");
        assert_eq!(error.to_string(), "file has no context \"three\"");
    }
}
