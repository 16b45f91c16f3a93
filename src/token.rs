//! `proa token …`: what machines join a cluster with.

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use proa_apimachinery::duration;
use proa_controllers::bootstrap::Token;
use proa_controllers::bootstrap::token::{NAMESPACE, PREFIX, TYPE};
use serde_json::json;

use crate::cli;
use crate::kubeconfig::{Access, COMMAND_LINE};

pub(crate) async fn run(command: cli::Token) -> anyhow::Result<()> {
    match command {
        cli::Token::Create { token, ttl, description, usages, groups, print_join_command, access } => {
            let mut made = match token {
                Some(text) => Token::parse(&text)
                    .with_context(|| format!("{text:?} is no token: six characters, a dot and sixteen, of a-z0-9"))?,
                None => random()?,
            };
            let life = duration::parse_go(&ttl)?;
            if !life.is_zero() {
                made.expires = Some(jiff::Timestamp::now().checked_add(life)?);
            }
            for usage in usages {
                match usage.as_str() {
                    "authentication" => made.authenticates = true,
                    "signing" => made.signs = true,
                    other => bail!("{other:?} is no usage of a token: authentication, signing"),
                }
            }
            (made.description, made.groups) = (description, groups);
            let access = Access::of_command(access.kubeconfig.as_deref())?;
            let client = access.client(COMMAND_LINE).await?;
            let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
            secrets.create(&PostParams::default(), &made.to_secret()).await?;
            let text = format!("{}.{}", made.id, made.secret);
            if !print_join_command {
                println!("{text}");
                return Ok(());
            }
            let digests = proa_apiserver::pki::public_key_digests(&access.certificate_authority()?)?;
            let known: String = digests.iter().map(|digest| format!(" --ca-hash {digest}")).collect();
            println!("proa agent --server {} --token {text}{known}", access.url()?);
            Ok(())
        }
        cli::Token::List { output, access } => list(&all(&secrets(&access).await?).await?, output.output),
        cli::Token::Delete { ids, access } => {
            let secrets = secrets(&access).await?;
            for id in ids {
                let id = id.split('.').next().unwrap_or_default();
                let deleted = secrets.delete(&format!("{PREFIX}{id}"), &DeleteParams::default()).await;
                deleted.with_context(|| format!("cannot delete the token {id}"))?;
                println!("bootstrap token {id:?} deleted");
            }
            Ok(())
        }
    }
}

async fn secrets(access: &cli::Credentials) -> anyhow::Result<Api<Secret>> {
    let client = Access::of_command(access.kubeconfig.as_deref())?.client(COMMAND_LINE).await?;
    Ok(Api::namespaced(client, NAMESPACE))
}

async fn all(secrets: &Api<Secret>) -> anyhow::Result<Vec<Token>> {
    let found = secrets.list(&ListParams::default().fields(&format!("type={TYPE}"))).await?;
    Ok(found.items.iter().filter_map(Token::of).collect())
}

fn usages(token: &Token) -> Vec<&'static str> {
    let all = [("authentication", token.authenticates), ("signing", token.signs)];
    all.into_iter().filter(|(_, has)| *has).map(|(usage, _)| usage).collect()
}

/// As a table; for programs as JSON. The secret halves are shown, as `kubeadm token list` does: who may list them may
/// read the Secrets.
fn list(tokens: &[Token], format: Option<cli::Format>) -> anyhow::Result<()> {
    if let Some(cli::Format::Json) = format {
        let tokens: Vec<_> = tokens
            .iter()
            .map(|token| {
                json!({"token": format!("{}.{}", token.id, token.secret), "expires": token.expires.map(|at| at.to_string()),
                    "usages": usages(token), "groups": token.groups, "description": token.description})
            })
            .collect();
        println!("{}", serde_json::to_string_pretty(&tokens)?);
        return Ok(());
    }
    let now = jiff::Timestamp::now();
    println!("{:<25} {:<10} {:<24} {:<50} DESCRIPTION", "TOKEN", "TTL", "USAGES", "GROUPS");
    for token in tokens {
        let left = match token.expires {
            None => "<forever>".to_owned(),
            Some(at) if at <= now => "<expired>".to_owned(),
            Some(at) => duration::human(at.as_second() - now.as_second()),
        };
        let (text, usages, groups) =
            (format!("{}.{}", token.id, token.secret), usages(token).join(","), token.groups.join(","));
        println!("{text:<25} {left:<10} {usages:<24} {groups:<50} {}", token.description);
    }
    Ok(())
}

/// A token nobody can guess.
fn random() -> anyhow::Result<Token> {
    const SIGNS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut text = String::new();
    while text.len() < 22 {
        let mut bytes = [0u8; 32];
        getrandom(&mut bytes)?;
        // Of the values that do not divide evenly none is taken: every sign is as likely as any other.
        let fair = bytes.iter().filter(|byte| **byte < 252).map(|byte| SIGNS[usize::from(*byte) % 36] as char);
        text.extend(fair.take(22 - text.len()));
    }
    Token::parse(&format!("{}.{}", &text[..6], &text[6..])).context("no token came out")
}

fn getrandom(bytes: &mut [u8]) -> anyhow::Result<()> {
    use std::io::Read;
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(bytes))
        .context("the operating system gives no random bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_token_is_one_and_no_two_are_alike() {
        let tokens: Vec<Token> = (0..100).map(|_| random().expect("a token")).collect();
        let mut ids: Vec<&str> = tokens.iter().map(|token| token.secret.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 100);
    }
}
