//! `proa`: the whole platform in one binary.
//!
//! Owns the command line, the wiring of the parts and the progress a person sees. Never holds logic that a library
//! crate could hold.

mod apply;
mod backup;
mod cli;
mod echo;
mod identity;
mod images;
mod join;
mod kubeconfig;
mod node;
mod paths;
mod preflight;
mod progress;
mod reset;
mod rollback;
mod rollout;
mod run;
mod samples;
mod security;
mod store;
mod token;

use clap::Parser;
use cli::{Cli, Command};

/// An API server lives on small pieces of memory that one thread takes and another gives back; the C library's allocator
/// took a third of the CPU of a write for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // A shim is this same file started again for one container. It must stay single-threaded (libcontainer forks),
    // so it is told apart before anything else is set up.
    if proa_runtime::is_shim() {
        proa_runtime::shim_main();
    }
    let cli = Cli::parse();
    init_tracing();
    let outcome =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from).and_then(
            |runtime| {
                let outcome = runtime.block_on(dispatch(cli.command));
                // Blocking helpers (a log follower, a DNS look-up) must not hold the exit up.
                runtime.shutdown_timeout(std::time::Duration::from_millis(200));
                outcome
            },
        );
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proa: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(args) => run::up(args).await,
        Command::Server(args) => run::server(args).await,
        Command::Controllers(args) => run::controllers(args).await,
        Command::Agent(args) => run::agent(args).await,
        Command::Rollback(args) => rollback::rollback(args).await,
        Command::History(args) => rollback::history(args).await,
        Command::Diff(args) => rollback::diff(args).await,
        Command::Retry(args) => rollback::retry(args).await,
        Command::Token(command) => token::run(command).await,
        Command::Image(command) => images::run(command).await,
        Command::Backup(args) => backup::backup(args).await,
        Command::Restore(args) => backup::restore(args).await,
        Command::Etcd(cli::EtcdCommand::Export(args)) => backup::export(args).await,
        Command::Etcd(cli::EtcdCommand::Import(args)) => backup::import(args).await,
        Command::Crds => {
            print!("{}", proa_crds::custom_resource_definitions_yaml());
            Ok(())
        }
        Command::Reset(args) => reset::run(&args.data_dir),
        Command::Echo(args) => match args.wait_for {
            Some(url) => echo::wait_for(&url).await,
            None => echo::run().await,
        },
    }
}

/// Logs go to stderr; `PROA_LOG` takes the usual filter syntax. Only warnings by default: what a person should see
/// while `up` runs is printed by [`progress`].
fn init_tracing() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PROA_LOG")
        // What the verifier logs of a pull is in the pull's error too, or logged by the images' store. Who joins a cluster
        // believes its signature first, and no certificate: kube warns of that.
        .unwrap_or_else(|_| {
            tracing_subscriber::EnvFilter::new("warn,rustls_platform_verifier=off,kube_client::client::tls=error")
        });
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
