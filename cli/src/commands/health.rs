//! `hedgerow health`: one question to a role's admin listener, for containers without a shell.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use hedgerow_runtime::boot::{self, Unreachable};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;

use crate::output;

/// Time for the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct HealthArgs {
    /// The role's admin listener
    #[arg(long, value_name = "ADDRESS", env = "HEDGEROW_ADMIN", default_value = "127.0.0.1:9101")]
    admin: SocketAddr,
    /// Ask only whether the process lives, not whether it is ready
    #[arg(long, env = "HEDGEROW_HEALTH_ALIVE")]
    alive: bool,
}

pub(crate) fn run(args: HealthArgs) -> ExitCode {
    boot::block_on(async move {
        let path = if args.alive { "/healthz" } else { "/readyz" };
        let answer = tokio::time::timeout(TIMEOUT, ask(args.admin, path)).await;
        let (ok, text) = answer
            .map_err(|_| Unreachable(format!("no answer from {} within {} s", args.admin, TIMEOUT.as_secs())))??;
        if !ok {
            bail!("{}", text.trim());
        }
        output::print(&text)
    })
}

/// Asks an admin listener: whether the answer is a success, and its text.
pub(crate) async fn ask(address: SocketAddr, path: &str) -> anyhow::Result<(bool, String)> {
    let io = tokio::net::TcpStream::connect(address)
        .await
        .map_err(|e| Unreachable(format!("nobody listens at {address}: {e}")))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    let request =
        http::Request::get(path).header(http::header::HOST, address.to_string()).body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await.context("the answer is not HTTP")?;
        let ok = response.status().is_success();
        let body = Limited::new(response.into_body(), 64 * 1024).collect().await.map_err(|e| anyhow::anyhow!(e))?;
        Ok((ok, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    tokio::select! {
        answer = exchange => answer,
        ended = connection => bail!("the listener closed the connection: {ended:?}"),
    }
}
