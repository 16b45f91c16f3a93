//! Measures a platform from the outside, as a client: Proa, started here, or whatever a kubeconfig points at.
//!
//! Every subcommand prints one table: what was measured, the median over the runs, the smallest and the largest. Run it on
//! an idle machine with release binaries; `SPECIFICATION.md` quotes the commands.

mod api;
mod coldstart;
mod deployments;
mod etcd;
mod gate;
mod idle;
mod parts;
mod platform;
mod podstart;
mod process;
mod raw;
mod report;
mod requests;
mod resident;
mod rollout;
mod schedule;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "proa-bench", version, about = "Measures Proa, or any Kubernetes API server")]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    bench: Bench,
}

/// What is measured.
#[derive(Args, Clone)]
struct Target {
    /// Measure the cluster of this kubeconfig instead of a Proa started for the purpose
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// The binary to start when no kubeconfig is given
    #[arg(long, value_name = "FILE", default_value = "target/x86_64-unknown-linux-gnu/release/proa", global = true)]
    proa: PathBuf,
    /// Names of the processes whose memory and CPU count
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_value = "proa,proa-shim", global = true)]
    process: Vec<String>,
    /// Image of the pods; it should be on the node already
    #[arg(long, value_name = "REF", default_value = "example/echo:v1", global = true)]
    image: String,
    /// How often to measure
    #[arg(long, value_name = "N", default_value_t = 5, global = true)]
    runs: usize,
}

#[derive(Subcommand)]
enum Bench {
    /// Fresh start to API ready, to node ready and to the first pod Running (starts Proa itself)
    Coldstart,
    /// Resident memory of all processes and CPU use with some idle pods
    Idle {
        /// Pods that run while it is measured
        #[arg(long, default_value_t = 1)]
        pods: usize,
        /// Seconds over which CPU use is taken
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Apply to Running of single pods, and the CPU one start and stop costs
    Podstart {
        /// Pods started one after the other in each run
        #[arg(long, default_value_t = 20)]
        pods: usize,
    },
    /// A Deployment: to all Ready, rolling update, rollback, deletion
    Rollout {
        /// Its replicas
        #[arg(long, default_value_t = 50)]
        replicas: i32,
    },
    /// Pods bound per second on hollow nodes. Without a kubeconfig the pods are there before the scheduler starts; with
    /// one they are created at full speed, and the cluster must have the nodes
    Schedule {
        /// Hollow nodes to start (without a kubeconfig)
        #[arg(long, default_value_t = 5_000)]
        nodes: u32,
        /// Pods to place
        #[arg(long, default_value_t = 10_000)]
        pods: usize,
        /// What the pods ask for besides room
        #[arg(long, value_enum)]
        with: Option<schedule::With>,
    },
    /// Many Deployments on hollow nodes: all available, then all rolled to a new revision
    Deployments {
        /// Hollow nodes to start (without a kubeconfig)
        #[arg(long, default_value_t = 1_000)]
        nodes: u32,
        /// Deployments
        #[arg(long, default_value_t = 1_000)]
        count: usize,
        /// Replicas of each
        #[arg(long, default_value_t = 10)]
        pods: i32,
    },
    /// Durable creates per second over TLS
    Writes {
        /// Clients, each on a connection of its own
        #[arg(long, value_delimiter = ',', default_value = "1,10,50")]
        clients: Vec<usize>,
        /// Seconds of each measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// What an etcd does by itself: durable creates per second of values as large as those of `writes`, over the same client
    /// that Proa has. `writes` with a kubeconfig of a server on that etcd is to be held against it
    Etcd {
        /// Its members
        #[arg(long, value_name = "URL", value_delimiter = ',', required = true)]
        servers: Vec<String>,
        /// Clients
        #[arg(long, value_delimiter = ',', default_value = "1,10,50")]
        clients: Vec<usize>,
        /// Seconds of each measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Updates per second, each over a state the client was answered before (the API server alone)
    Updates {
        /// Clients, each on a connection of its own
        #[arg(long, value_delimiter = ',', default_value = "10")]
        clients: Vec<usize>,
        /// Seconds of each measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Gets per second (the API server alone)
    Gets {
        /// Clients, each on a connection of its own
        #[arg(long, value_delimiter = ',', default_value = "10")]
        clients: Vec<usize>,
        /// Seconds of each measurement
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Server-side apply of a Deployment of ten KiB, with and without the disk (the API server alone)
    Applies {
        /// How many, one after the other
        #[arg(long, default_value_t = 500)]
        count: usize,
    },
    /// Memory of the API server alone: idle, and with a large cluster's nodes and running pods in it
    Resident {
        /// Nodes
        #[arg(long, default_value_t = 5_000)]
        nodes: usize,
        /// Running pods
        #[arg(long, default_value_t = 150_000)]
        pods: usize,
    },
    /// Lists of many objects, whole and by the page
    Lists {
        /// Objects in the list
        #[arg(long, default_value_t = 10_000)]
        objects: usize,
    },
    /// Events delivered to many watchers of one kind
    Watchers {
        /// Watchers, each on a connection of its own
        #[arg(long, value_delimiter = ',', default_value = "100")]
        watchers: Vec<usize>,
        /// Changes written meanwhile
        #[arg(long, default_value_t = 1_000)]
        events: usize,
    },
    /// All of it but watchers, against the bounds of SPECIFICATION.md: fails when one is broken
    Gate,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { target, bench } = Cli::parse();
    let reports = match bench {
        Bench::Coldstart => coldstart::measure(&target).await?,
        Bench::Idle { pods, seconds } => idle::measure(&target, pods, seconds).await?,
        Bench::Podstart { pods } => podstart::measure(&target, pods).await?,
        Bench::Rollout { replicas } => rollout::measure(&target, replicas).await?,
        Bench::Schedule { nodes, pods, with } => schedule::measure(&target, nodes, pods, with).await?,
        Bench::Deployments { nodes, count, pods } => deployments::measure(&target, nodes, count, pods).await?,
        Bench::Writes { clients, seconds } => api::writes(&target, &clients, seconds).await?,
        Bench::Updates { clients, seconds } => requests::updates(&target, &clients, seconds).await?,
        Bench::Gets { clients, seconds } => requests::gets(&target, &clients, seconds).await?,
        Bench::Applies { count } => requests::applies(&target, count).await?,
        Bench::Resident { nodes, pods } => resident::measure(&target, nodes, pods).await?,
        Bench::Etcd { servers, clients, seconds } => etcd::creates(&target, &servers, &clients, seconds).await?,
        Bench::Lists { objects } => api::lists(&target, objects).await?,
        Bench::Watchers { watchers, events } => api::watchers(&target, &watchers, events).await?,
        Bench::Gate => return gate::run(&target).await,
    };
    for report in &reports {
        report.print();
    }
    Ok(())
}
