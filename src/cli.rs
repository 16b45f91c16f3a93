//! The command line: what a user may type. A contract: names and defaults change only with a major version.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::security::Security;

/// Where everything is kept unless `--data-dir` says otherwise.
pub(crate) const DEFAULT_DATA_DIR: &str = "/var/lib/proa";

#[derive(Parser)]
#[command(
    name = "proa",
    version,
    about = "A whole Kubernetes-style container platform in one binary",
    after_help = "Start with:  proa up --apply manifests/quickstart.yaml"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run the whole platform in one process: API server, controllers, scheduler and node agent
    Up(Up),
    /// Run the API server alone
    Server(Server),
    /// Run the controllers and the scheduler against an API server
    Controllers(Controllers),
    /// Run a node agent against an API server
    Agent(Agent),
    /// Go back to an earlier revision: `proa rollback deployment/web [--to N]`, `proa rollback release/shop`
    Rollback(Rollback),
    /// Show the revisions of an object: who made them, what they run, what became of them
    History(History),
    /// Show what differs between two revisions: `proa diff deployment/web 3 5`
    Diff(Diff),
    /// Try the revision that failed last again
    Retry(Retry),
    /// Make, list and delete the tokens machines join with
    #[command(subcommand)]
    Token(Token),
    /// Load, pull, list and remove container images
    #[command(subcommand)]
    Image(Image),
    /// Write all that a cluster stores to FILE, with its keys, while it runs or not
    Backup(Backup),
    /// Put what `proa backup` wrote into an empty data directory, or an empty etcd
    Restore(Backup),
    /// Move what is stored between a data directory and an etcd
    #[command(subcommand)]
    Etcd(EtcdCommand),
    /// Print the custom resource definitions of the proa.dev family
    Crds,
    /// Stop what still runs in a data directory and remove everything that belongs to it
    Reset(DataDir),
    /// The sample web service that the quickstart runs
    #[command(hide = true)]
    Echo(Echo),
}

#[derive(Args, Clone)]
pub(crate) struct DataDir {
    /// Directory that holds all state
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    pub(crate) data_dir: PathBuf,
}

#[derive(Args, Clone)]
pub(crate) struct ServerArgs {
    #[command(flatten)]
    pub(crate) data: DataDir,
    #[command(flatten)]
    pub(crate) keys: Keys,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
    /// Address and port the API is served on
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    pub(crate) listen: SocketAddr,
    /// Also write the admin kubeconfig to FILE (it is always at DIR/admin.kubeconfig)
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) security: Security,
}

/// The keys of a cluster.
#[derive(Args, Clone)]
pub(crate) struct Keys {
    /// Directory of the cluster's keys, which API servers with one store have in common [default: DIR/pki]
    #[arg(long, value_name = "DIR")]
    pub(crate) pki_dir: Option<PathBuf>,
}

/// An etcd to keep everything in.
#[derive(Args, Clone)]
pub(crate) struct EtcdArgs {
    /// Keep everything in this etcd (its members' URLs) instead of the data directory
    #[arg(long = "etcd-servers", value_name = "URL", value_delimiter = ',')]
    pub(crate) servers: Vec<String>,
    /// Certificates its members are known by (PEM)
    #[arg(long = "etcd-cafile", value_name = "FILE", requires = "servers")]
    pub(crate) cafile: Option<PathBuf>,
    /// Our certificate for it (PEM)
    #[arg(long = "etcd-certfile", value_name = "FILE", requires = "servers", requires = "keyfile")]
    pub(crate) certfile: Option<PathBuf>,
    /// The key of that certificate (PEM)
    #[arg(long = "etcd-keyfile", value_name = "FILE", requires = "servers", requires = "certfile")]
    pub(crate) keyfile: Option<PathBuf>,
    /// What all keys in it begin with
    #[arg(long = "etcd-prefix", value_name = "PREFIX", default_value = "/registry")]
    pub(crate) prefix: String,
}

#[derive(Args)]
pub(crate) struct Backup {
    /// The backup
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) data: DataDir,
    #[command(flatten)]
    pub(crate) keys: Keys,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

#[derive(Subcommand)]
pub(crate) enum EtcdCommand {
    /// Copy what an etcd holds into an empty data directory
    Export(EtcdMove),
    /// Copy what a data directory holds into an etcd that holds no objects; no server may run on either
    Import(EtcdMove),
}

#[derive(Args)]
pub(crate) struct EtcdMove {
    #[command(flatten)]
    pub(crate) data: DataDir,
    #[command(flatten)]
    pub(crate) etcd: EtcdArgs,
}

#[derive(Args)]
pub(crate) struct Node {
    /// Name of this machine's node [default: the host name]
    #[arg(long = "node-name", value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) registries: Registries,
}

#[derive(Args)]
pub(crate) struct Registries {
    /// Speak plain HTTP to this registry if it has no TLS (as to loopback registries anyway)
    #[arg(long = "insecure-registry", value_name = "HOST[:PORT]")]
    insecure: Vec<String>,
}

impl From<Registries> for proa_images::Options {
    fn from(registries: Registries) -> Self {
        proa_images::Options { plain_http: registries.insecure, ..proa_images::Options::default() }
    }
}

#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) node: Node,
    #[command(flatten)]
    pub(crate) scheduler: Scheduler,
    /// Apply these manifests once the API answers, and wait until they are rolled out
    #[arg(long, value_name = "FILE")]
    pub(crate) apply: Vec<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Server {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Args)]
pub(crate) struct Controllers {
    /// Credentials and address of the API server
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    /// Which API family of the workload kinds to reconcile
    #[arg(long, value_enum, default_value = "standard")]
    pub(crate) family: FamilyArg,
    /// Certificate of the authority that signs certificate requests [default: none are signed]
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    pub(crate) cluster_signing_cert_file: Option<PathBuf>,
    /// Its private key
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    pub(crate) cluster_signing_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) scheduler: Scheduler,
}

#[derive(Args)]
pub(crate) struct Scheduler {
    /// Profiles of the scheduler: a KubeSchedulerConfiguration of kubescheduler.config.k8s.io/v1
    #[arg(long = "scheduler-config", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Agent {
    /// Credentials and address of the API server [default: DIR/agent.kubeconfig, which joining leaves behind]
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    pub(crate) kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) join: Join,
    #[command(flatten)]
    pub(crate) data: DataDir,
    #[command(flatten)]
    pub(crate) node: Node,
    /// Which API family of the workload kinds to serve
    #[arg(long, value_enum, default_value = "standard")]
    pub(crate) family: FamilyArg,
    /// Pretend to be N nodes that run nothing, named after --node-name [default: hollow], to try out large clusters
    #[arg(long, value_name = "N")]
    pub(crate) hollow: Option<u32>,
}

/// How a machine becomes a node of a cluster. Once it is one, it needs none of this.
#[derive(Args)]
pub(crate) struct Join {
    /// Join the cluster of the API server at this URL
    #[arg(long, value_name = "URL", requires = "token")]
    pub(crate) server: Option<String>,
    /// The token to join with, from `proa token create`
    #[arg(long, value_name = "ID.SECRET", requires = "server")]
    pub(crate) token: Option<String>,
    /// The cluster's authority must have this public key (may be given several times)
    #[arg(long = "ca-hash", value_name = "sha256:HEX", requires = "server")]
    pub(crate) ca_hashes: Vec<String>,
}

#[derive(Subcommand)]
pub(crate) enum Token {
    /// Make a token and print it
    Create {
        /// The token [default: a random one]
        #[arg(value_name = "ID.SECRET")]
        token: Option<String>,
        /// How long it is good, such as 24h; 0 for ever
        #[arg(long, default_value = "24h")]
        ttl: String,
        /// What it is for
        #[arg(long, default_value = "")]
        description: String,
        /// What may be done with it: authentication, signing
        #[arg(long, value_delimiter = ',', default_value = "authentication,signing")]
        usages: Vec<String>,
        /// Groups who comes with it is in
        #[arg(long, value_delimiter = ',', default_value = proa_controllers::bootstrap::token::NODES)]
        groups: Vec<String>,
        /// Print the whole command that makes a machine join with it
        #[arg(long)]
        print_join_command: bool,
        #[command(flatten)]
        access: Credentials,
    },
    /// List tokens
    List {
        #[command(flatten)]
        output: Output,
        #[command(flatten)]
        access: Credentials,
    },
    /// Delete tokens
    Delete {
        /// Tokens or their ids
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        #[command(flatten)]
        access: Credentials,
    },
}

#[derive(Args)]
pub(crate) struct Credentials {
    /// Credentials and address of the API server [default: $KUBECONFIG, then DIR/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Rollback {
    /// What to take back, as KIND/NAME
    #[arg(value_name = "KIND/NAME")]
    pub(crate) target: String,
    /// Revision to go back to [default: the last before the current that is not known to fail]
    #[arg(long, value_name = "N")]
    pub(crate) to: Option<i64>,
    /// Show what it would change, and change nothing (releases only)
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Take objects that came to belong to somebody else, and make anew what cannot be changed in place (releases only)
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Which API family the object is of [default: the standard one when the object exists there]
    #[arg(long, value_enum)]
    pub(crate) family: Option<FamilyArg>,
}

/// Where an object is, and how to get there.
#[derive(Args)]
pub(crate) struct Place {
    /// Namespace of the object [default: the kubeconfig's]
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    /// Credentials and address of the API server [default: $KUBECONFIG, then DIR/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Output {
    /// How to print it
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub(crate) output: Option<Format>,
}

/// How a result is printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For programs
    Json,
}

#[derive(Args)]
pub(crate) struct History {
    /// Whose, as KIND/NAME
    #[arg(value_name = "KIND/NAME")]
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args)]
pub(crate) struct Diff {
    /// Of what, as KIND/NAME
    #[arg(value_name = "KIND/NAME")]
    pub(crate) target: String,
    /// The one revision
    #[arg(value_name = "FROM")]
    pub(crate) from: i64,
    /// The other
    #[arg(value_name = "TO")]
    pub(crate) to: i64,
    /// Show the values of Secrets
    #[arg(long)]
    pub(crate) show_secrets: bool,
    #[command(flatten)]
    pub(crate) place: Place,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args)]
pub(crate) struct Retry {
    /// What to try again, as KIND/NAME
    #[arg(value_name = "KIND/NAME")]
    pub(crate) target: String,
    #[command(flatten)]
    pub(crate) place: Place,
}

#[derive(Subcommand)]
pub(crate) enum Image {
    /// Load the images of an OCI or docker archive
    Load {
        /// The archive, gzip-compressed or not
        file: PathBuf,
        #[command(flatten)]
        data: DataDir,
    },
    /// List images
    Ls {
        #[command(flatten)]
        data: DataDir,
    },
    /// Remove images by reference or id
    Rm {
        /// References or ids
        #[arg(required = true)]
        references: Vec<String>,
        #[command(flatten)]
        data: DataDir,
    },
    /// Pull an image from its registry
    Pull {
        /// Reference, such as `registry.example/app:v1`
        reference: String,
        #[command(flatten)]
        registries: Registries,
        #[command(flatten)]
        data: DataDir,
    },
}

#[derive(Args)]
pub(crate) struct Echo {
    /// Serve nothing: wait until this URL answers with 200, then exit
    #[arg(long, value_name = "URL")]
    pub(crate) wait_for: Option<String>,
}

/// The two API families the workload kinds are served in.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum FamilyArg {
    /// `v1` and `apps/v1`
    #[value(name = "standard", alias = "v1")]
    Standard,
    /// `proa.dev/v1`
    #[value(name = "proa.dev", alias = "proa")]
    Proa,
}

impl From<FamilyArg> for proa_crds::Family {
    fn from(family: FamilyArg) -> Self {
        match family {
            FamilyArg::Standard => proa_crds::Family::Standard,
            FamilyArg::Proa => proa_crds::Family::Proa,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_registry_in_plain_http_can_be_named_wherever_images_are_pulled() {
        let registries = |command: &str| -> proa_images::Options {
            let words = command.split(' ').chain(["--insecure-registry", "registry.test:5000"]);
            match Cli::try_parse_from(words).expect("a command").command {
                Command::Up(up) => up.node.registries.into(),
                Command::Agent(agent) => agent.node.registries.into(),
                Command::Image(Image::Pull { registries, .. }) => registries.into(),
                _ => panic!("{command} pulls nothing"),
            }
        };
        for command in
            ["proa up", "proa agent --kubeconfig file", "proa agent", "proa image pull registry.test:5000/app:v1"]
        {
            assert_eq!(registries(command).plain_http, ["registry.test:5000"], "{command}");
        }
    }
}
