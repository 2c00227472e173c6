//! HTTP faces for people and machines that watch: `/metrics`, `/livez`, `/readyz`.

use crate::metrics;
use axum::{
    Json, Router,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::net::TcpListener;

/// How many ports after the default one are tried when it is taken.
const NEXT_PORTS: u16 = 32;
/// How long open connections may take to finish after the stop.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// `[metrics] listen`: where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Address and port. Default 127.0.0.1:9464.
    pub address: SocketAddr,
    /// Somebody asked for this very port: when it is taken, that is an error and no reason to take the next.
    pub fixed: bool,
}

impl Default for Listen {
    fn default() -> Self {
        Self { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464), fixed: false }
    }
}

/// Whether all is well with a process, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// The status is 200, else 503.
    pub good: bool,
    /// The body.
    pub details: serde_json::Value,
}

/// Who knows whether all is well.
pub type Doctor = Arc<dyn Fn() -> Health + Send + Sync>;

/// What is told of a process beside its metrics.
#[derive(Clone)]
pub struct Pages {
    /// `/livez`: whether it turns.
    pub live: Doctor,
    /// `/readyz`: whether it does its share.
    pub ready: Doctor,
}

/// The port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("metrics.listen: {address} cannot be listened on; write another address, or \"off\"")]
pub struct ListenError {
    /// Which.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// An open port that is not yet served.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Opens the port, or the next free one.
    ///
    /// # Errors
    /// When a fixed port, or each one that was tried, is taken; or the address is none of this host.
    pub async fn bind(listen: Listen) -> Result<Self, ListenError> {
        let Listen { mut address, fixed } = listen;
        let mut tries = if fixed { 0 } else { NEXT_PORTS };
        loop {
            match TcpListener::bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener))) {
                Ok((address, listener)) => return Ok(Self { listener, address }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 && address.port() < u16::MAX => {
                    tries -= 1;
                    address.set_port(address.port() + 1);
                }
                Err(source) => return Err(ListenError { address, source }),
            }
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`, then lets open requests finish for a moment.
    ///
    /// # Errors
    /// When accepting connections fails for good.
    pub async fn serve(self, pages: Pages, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let (stopping, stopped) = tokio::sync::oneshot::channel();
        let stop = async move {
            stop.await;
            // Nobody waits any more when the server has ended by itself.
            let _ = stopping.send(());
        };
        let server = axum::serve(self.listener, router(pages)).with_graceful_shutdown(stop);
        tokio::select! {
            biased;
            ended = server => ended,
            () = async {
                let _ = stopped.await;
                tokio::time::sleep(LAST_ANSWERS).await;
            } => Ok(()),
        }
    }
}

fn router(Pages { live, ready }: Pages) -> Router {
    Router::new()
        .route("/metrics", get(async || ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::gather())))
        .route("/livez", get(async move || tell(live())))
        .route("/readyz", get(async move || tell(ready())))
}

fn tell(Health { good, details }: Health) -> Response {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(details)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    fn any_port(fixed: bool) -> Listen {
        Listen { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0), fixed }
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_taken_port_moves_on_unless_it_was_asked_for() {
        let first = Admin::bind(any_port(true)).await.unwrap();
        let taken = first.address();
        let error = Admin::bind(Listen { address: taken, fixed: true }).await.unwrap_err();
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
        let next = Admin::bind(Listen { address: taken, fixed: false }).await.unwrap();
        assert!(next.address().port() > taken.port());
    }

    #[tokio::test]
    async fn the_pages_answer_and_the_server_stops_though_a_client_hangs() {
        let admin = Admin::bind(any_port(true)).await.unwrap();
        let address = admin.address();
        let is_good = |details: serde_json::Value| {
            let good = Arc::new(AtomicBool::new(false));
            let page: Doctor = {
                let good = good.clone();
                Arc::new(move || Health { good: good.load(Relaxed), details: details.clone() })
            };
            (good, page)
        };
        let (is_live, live) = is_good(json!({"turned": 9}));
        let (is_ready, ready) = is_good(json!({"shards": 3}));
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let client = async {
            let answer = ask(address, "/livez").await;
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with(r#"{"turned":9}"#), "{answer}");
            is_live.store(true, Relaxed);
            assert!(ask(address, "/livez").await.starts_with("HTTP/1.1 200"));
            let answer = ask(address, "/readyz").await;
            assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with(r#"{"shards":3}"#), "{answer}");
            is_ready.store(true, Relaxed);
            assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
            assert!(ask(address, "/metrics").await.contains("text/plain"));
            assert!(ask(address, "/other").await.starts_with("HTTP/1.1 404"));
            let mut hanging = TcpStream::connect(address).await.unwrap();
            hanging.write_all(b"GET /livez HTT").await.unwrap();
            stop.send(()).unwrap();
            hanging
        };
        let server = admin.serve(Pages { live, ready }, async {
            let _ = stopped.await;
        });
        let (served, _hanging) = tokio::join!(server, client);
        served.unwrap();
    }
}
