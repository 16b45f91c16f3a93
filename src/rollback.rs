//! `proa rollback deployment/web [--to N]`: goes back by hand, in either family.

use std::path::PathBuf;

use anyhow::{Context, bail};
use kube::Client;
use proa_crds::Family;

use crate::cli;
use crate::kubeconfig::{Access, COMMAND_LINE};

pub(crate) async fn run(args: cli::Rollback) -> anyhow::Result<()> {
    let Some((kind, name)) = args.target.split_once('/') else {
        bail!("{:?} is not KIND/NAME, such as deployment/web", args.target);
    };
    if !matches!(
        kind,
        "deployment" | "deployments" | "deploy" | "deployment.apps" | "deployments.apps" | "deployments.proa.dev"
    ) {
        bail!("cannot roll back a {kind}: only Deployments have revisions to go back to yet");
    }
    let client = client(args.kubeconfig).await?;
    let namespace = args.namespace.unwrap_or_else(|| client.default_namespace().to_owned());
    let families = match args.family {
        Some(family) => vec![Family::from(family)],
        None if kind.ends_with("proa.dev") => vec![Family::Proa],
        None => vec![Family::Standard, Family::Proa],
    };
    for family in families {
        match proa_controllers::rollback(client.clone(), family, &namespace, name, args.to).await {
            Ok(done) => {
                println!("{done}");
                return Ok(());
            }
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error.into()),
        }
    }
    bail!("there is no deployment {name:?} in namespace {namespace:?}")
}

/// `--kubeconfig`, else what `$KUBECONFIG` or the user's home names, else the default data directory's.
async fn client(kubeconfig: Option<PathBuf>) -> anyhow::Result<Client> {
    if let Some(file) = kubeconfig {
        return Access::read(&file)?.client(COMMAND_LINE).await;
    }
    if let Ok(client) = Client::try_default().await {
        return Ok(client);
    }
    let default = PathBuf::from(cli::DEFAULT_DATA_DIR).join("admin.kubeconfig");
    Access::read(&default).context("no kubeconfig: give one with --kubeconfig")?.client(COMMAND_LINE).await
}
