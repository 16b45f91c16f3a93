//! An API server and its store, nothing else: something to point kubectl at.
//!
//!     cargo run -p proa-apiserver --example serve -- [DIR] [ADDR:PORT]
//!
//! Writes `DIR/admin.kubeconfig`, serves until Ctrl-C.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use proa_apiserver::{Config, Server};
use proa_store::{Embedded, Log, Options};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().map_or_else(|| std::env::temp_dir().join("proa-serve"), PathBuf::from);
    let address: SocketAddr = args.next().as_deref().unwrap_or("127.0.0.1:0").parse()?;
    std::fs::create_dir_all(&dir)?;
    let started = std::time::Instant::now();
    let log: Arc<dyn Log> = Arc::new(Embedded::open(&dir.join("store"), Options::default()).await?);
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let mut config = Config::new(&dir);
    config.listen = Some(address);
    let server = Server::open(config, log).await?;
    let kubeconfig = dir.join("admin.kubeconfig");
    std::fs::write(
        &kubeconfig,
        server.kubeconfig(&format!("https://{address}"), "kubernetes-admin", &["system:masters"])?,
    )?;
    println!("ready in {:?}: kubectl --kubeconfig {}", started.elapsed(), kubeconfig.display());
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stopping.cancel();
        }
    });
    server.serve(listener, stop).await?;
    Ok(())
}
