//! For tests of this crate: an echo server and a connector whose answers depend on the name asked for.

use std::net::SocketAddr;

use hedgerow_runtime::scope::Scope;
use hedgerow_shared::fault::{Code, Fault};
use tokio::net::{TcpListener, TcpStream};

use crate::listen::Connector;
use crate::splice::Outbound;
use crate::target::Target;

pub(crate) struct ToEcho {
    pub(crate) echo: SocketAddr,
}

impl Connector for ToEcho {
    async fn connect(&self, target: &Target) -> Result<Outbound, Fault> {
        let code = match target.host_text().as_str() {
            "denied.test" => Code::DeniedByPolicy,
            "unknown.test" => Code::NameNotFound,
            "refused.test" => Code::ConnectionRefused,
            "slow.test" => Code::TimedOut,
            "nonode.test" => Code::NoRoute,
            _ => return Ok(Outbound::Direct(TcpStream::connect(self.echo).await.unwrap())),
        };
        Err(Fault::new(code, format!("{target} is a test")))
    }
}

/// Sends back what it gets, half-close included.
pub(crate) async fn echo_server(scope: &Scope) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let inner = scope.clone();
    scope.spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            inner.spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
            });
        }
    });
    address
}
