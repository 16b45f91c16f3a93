//! The flags of the API server that say who is let in, what is written down of it, and what of the store is ciphertext.
//! They are called as Kubernetes' API server calls them.

use std::path::PathBuf;

use clap::Args;
use proa_apimachinery::duration;
use proa_apiserver::audit::sink::{Mode, SinkOptions};
use proa_apiserver::config::AuditOptions;
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
        Ok(())
    }
}
