//! The commands about revisions: `proa rollback`, `history`, `diff` and `retry`.

use std::fmt::Display;
use std::path::PathBuf;

use anyhow::{Context, bail};
use kube::Client;
use proa_controllers::inspect::{self, Kind, Target};
use proa_controllers::release;
use proa_crds::Family;
use serde::Serialize;

use crate::cli;
use crate::kubeconfig::{Access, COMMAND_LINE};

/// `proa rollback KIND/NAME [--to N]`: goes back by hand.
pub(crate) async fn rollback(args: cli::Rollback) -> anyhow::Result<()> {
    let mut target = Target::parse(&args.target)?;
    target.family = args.family.map(Family::from).or(target.family);
    let (client, namespace) = args.place.client().await?;
    match target.kind {
        Kind::Release => release(&client, &namespace, &target.name, &args).await,
        _ if args.dry_run || args.force => {
            bail!("--dry-run and --force are for releases; see also: proa diff {target} FROM TO")
        }
        _ => show(&inspect::go_back(&client, &namespace, &target, args.to).await?, &args.output),
    }
}

/// A release shows first what it would change.
async fn release(client: &Client, namespace: &str, name: &str, args: &cli::Rollback) -> anyhow::Result<()> {
    let preview = release::preview(client, namespace, name, args.to).await?;
    show(&preview, &args.output)?;
    if args.dry_run || preview.steps.is_empty() {
        return Ok(());
    }
    release::request(client, namespace, &preview, args.force).await?;
    let revision = release::follow(client, namespace, &preview).await?;
    eprintln!("release/{name} went back to revision {}, which is now revision {revision}", preview.to);
    Ok(())
}

/// `proa history KIND/NAME`.
pub(crate) async fn history(args: cli::History) -> anyhow::Result<()> {
    let target = Target::parse(&args.target)?;
    let (client, namespace) = args.place.client().await?;
    show(&inspect::history(&client, &namespace, &target).await?, &args.output)
}

/// `proa diff KIND/NAME FROM TO`.
pub(crate) async fn diff(args: cli::Diff) -> anyhow::Result<()> {
    let target = Target::parse(&args.target)?;
    let (client, namespace) = args.place.client().await?;
    show(&inspect::diff(&client, &namespace, &target, [args.from, args.to], args.show_secrets).await?, &args.output)
}

/// `proa retry KIND/NAME`.
pub(crate) async fn retry(args: cli::Retry) -> anyhow::Result<()> {
    let target = Target::parse(&args.target)?;
    let (client, namespace) = args.place.client().await?;
    println!("{}", inspect::retry(&client, &namespace, &target, jiff::Timestamp::now()).await?);
    Ok(())
}

fn show<T: Display + Serialize>(result: &T, output: &cli::Output) -> anyhow::Result<()> {
    let text = match output.output {
        Some(cli::Format::Json) => serde_json::to_string_pretty(result)?,
        None => result.to_string(),
    };
    println!("{}", text.trim_end());
    Ok(())
}

impl cli::Place {
    async fn client(&self) -> anyhow::Result<(Client, String)> {
        let client = client(self.kubeconfig.clone()).await?;
        let namespace = self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        Ok((client, namespace))
    }
}

/// `--kubeconfig`, else what `$KUBECONFIG` or the user's home names, else the default data directory's.
async fn client(kubeconfig: Option<PathBuf>) -> anyhow::Result<Client> {
    if let Some(file) = kubeconfig {
        return Access::read(&file)?.client(COMMAND_LINE).await;
    }
    if let Ok(Some(access)) = Access::of_user()
        && let Ok(client) = access.client(COMMAND_LINE).await
    {
        return Ok(client);
    }
    if let Ok(config) = kube::Config::incluster() {
        return Ok(Client::try_from(config)?);
    }
    let default = PathBuf::from(cli::DEFAULT_DATA_DIR).join("admin.kubeconfig");
    Access::read(&default).context("no kubeconfig: give one with --kubeconfig")?.client(COMMAND_LINE).await
}
