//! The flags of the API server that say who is let in, what is written down of it, and what of the store is ciphertext.
//! They are called as Kubernetes' API server calls them.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use proa_apimachinery::duration;
use proa_apiserver::audit::sink::{Mode, SinkOptions};
use proa_apiserver::authn::oidc::OidcFlags;
use proa_apiserver::config::{AuditOptions, Authentication};
use proa_apiserver::tokens::TokenOptions;

#[derive(Args, Clone)]
#[command(next_help_heading = "Security")]
pub(crate) struct Security {
    /// What of which request is written to the audit log: a Policy of audit.k8s.io/v1
    #[arg(long, value_name = "FILE", requires = "audit_log_path")]
    audit_policy_file: Option<PathBuf>,
    /// Where audit events go, a JSON object a line; - is standard output
    #[arg(long, value_name = "FILE", requires = "audit_policy_file")]
    audit_log_path: Option<PathBuf>,
    /// Days after which closed audit logs are removed; 0 for never
    #[arg(long, value_name = "DAYS", default_value_t = 0)]
    audit_log_maxage: u32,
    /// How many closed audit logs are kept; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    audit_log_maxbackup: usize,
    /// Megabytes at which an audit log is closed and another begun
    #[arg(long, value_name = "MB", default_value_t = 100)]
    audit_log_maxsize: u64,
    /// Whether requests wait for their audit events: blocking, blocking-strict or batch
    #[arg(long, value_name = "MODE", default_value = "blocking")]
    audit_log_mode: Mode,
    /// Which resources are encrypted in the store, and by which keys: an EncryptionConfiguration of
    /// apiserver.config.k8s.io/v1; read again when it changes
    #[arg(long, value_name = "FILE")]
    encryption_provider_config: Option<PathBuf>,
    /// Private key that signs service-account tokens [default: DIR/pki/sa.key]
    #[arg(long, value_name = "FILE")]
    service_account_signing_key_file: Option<PathBuf>,
    /// More keys whose service-account tokens are good (may be given several times)
    #[arg(long = "service-account-key-file", value_name = "FILE")]
    service_account_key_files: Vec<PathBuf>,
    /// Who signs service-account tokens; of several the first signs, and tokens of all are good
    #[arg(long = "service-account-issuer", value_name = "URL")]
    service_account_issuers: Vec<String>,
    /// Where others find the keys of service-account tokens [default: ISSUER/openid/v1/jwks]
    #[arg(long, value_name = "URL")]
    service_account_jwks_uri: Option<String>,
    /// The longest life of a service-account token, such as 48h
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    service_account_max_token_expiration: Option<i64>,
    /// Whom tokens must be meant for to be good here [default: the issuers of service-account tokens]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    api_audiences: Vec<String>,
    /// Whose tokens are good besides the cluster's own, what their claims mean, and where one may come without: an
    /// AuthenticationConfiguration of apiserver.config.k8s.io/v1; read again when it changes
    #[arg(long, value_name = "FILE", conflicts_with = "oidc_issuer_url")]
    authentication_config: Option<PathBuf>,
    /// One issuer of OpenID Connect tokens, said by flags
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    oidc_issuer_url: Option<String>,
    /// For whom its tokens must be meant
    #[arg(long, value_name = "NAME", requires = "oidc_issuer_url")]
    oidc_client_id: Option<String>,
    /// The claim that is the user's name
    #[arg(long, value_name = "CLAIM", default_value = "sub", requires = "oidc_issuer_url")]
    oidc_username_claim: String,
    /// What is put before it; - for nothing [default: the issuer and #, but before mail addresses nothing]
    #[arg(long, value_name = "PREFIX", requires = "oidc_issuer_url", allow_hyphen_values = true)]
    oidc_username_prefix: Option<String>,
    /// The claim that is the user's groups
    #[arg(long, value_name = "CLAIM", requires = "oidc_issuer_url")]
    oidc_groups_claim: Option<String>,
    /// What is put before each
    #[arg(long, value_name = "PREFIX", default_value = "", requires = "oidc_groups_claim")]
    oidc_groups_prefix: String,
    /// A claim its tokens must have (may be given several times)
    #[arg(long = "oidc-required-claim", value_name = "CLAIM=VALUE", value_parser = pair, requires = "oidc_issuer_url")]
    oidc_required_claims: Vec<(String, String)>,
    /// How its tokens may be signed
    #[arg(long, value_name = "ALG", value_delimiter = ',', default_value = "RS256", requires = "oidc_issuer_url")]
    oidc_signing_algs: Vec<String>,
    /// By whose certificates its server is known [default: the machine's]
    #[arg(long, value_name = "FILE", requires = "oidc_issuer_url")]
    oidc_ca_file: Option<PathBuf>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (claim, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not CLAIM=VALUE"))?;
    Ok((claim.to_owned(), value.to_owned()))
}

/// A duration as Go writes them, in whole seconds.
pub(crate) fn seconds(text: &str) -> Result<i64, String> {
    let parsed = duration::parse_go(text).map_err(|error| error.to_string())?;
    i64::try_from(parsed.as_secs()).map_err(|error| error.to_string())
}

impl Security {
    /// Tells the API server.
    pub(crate) fn configure(&self, config: &mut proa_apiserver::Config) -> anyhow::Result<()> {
        config.encryption = self.encryption_provider_config.clone();
        config.audit = match (&self.audit_policy_file, &self.audit_log_path) {
            (Some(policy), Some(path)) => Some(AuditOptions {
                policy: policy.clone(),
                sink: SinkOptions {
                    path: path.clone(),
                    max_size: self.audit_log_maxsize,
                    max_age: self.audit_log_maxage,
                    max_backups: self.audit_log_maxbackup,
                    mode: self.audit_log_mode,
                },
            }),
            _ => None,
        };
        config.tokens = TokenOptions {
            signing_key_file: self.service_account_signing_key_file.clone(),
            key_files: self.service_account_key_files.clone(),
            issuers: self.service_account_issuers.clone(),
            audiences: self.api_audiences.clone(),
            jwks_uri: self.service_account_jwks_uri.clone(),
            max_expiration: self.service_account_max_token_expiration,
        };
        config.authentication = match (&self.authentication_config, &self.oidc_issuer_url) {
            (Some(file), _) => Authentication::File(file.clone()),
            (None, Some(url)) => Authentication::Flags(Box::new(OidcFlags {
                issuer_url: url.clone(),
                client_id: self.oidc_client_id.clone().unwrap_or_default(),
                username_claim: self.oidc_username_claim.clone(),
                username_prefix: self.oidc_username_prefix.clone(),
                groups_claim: self.oidc_groups_claim.clone(),
                groups_prefix: self.oidc_groups_prefix.clone(),
                required_claims: self.oidc_required_claims.clone(),
                algorithms: self.oidc_signing_algs.clone(),
                authority: match &self.oidc_ca_file {
                    Some(file) => std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?,
                    None => Vec::new(),
                },
            })),
            (None, None) => Authentication::Own,
        };
        Ok(())
    }
}
