//! `health`: asks a worker's own page whether it is well, for who can run a command and speaks no HTTP: `HEALTHCHECK` of a
//! container image, `exec` probes.

use super::{
    Context,
    exit::{Done, Usage},
};
use crate::{admin::Listen, cell::setting::duration};
use anyhow::{Context as _, bail};
use serde::Serialize;
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longest answer, in bytes.
const ANSWER_MAX: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Ask whether it does its share (/readyz), in place of whether it turns (/livez).
    #[arg(long)]
    ready: bool,
    /// Where it listens; else the config's metrics.listen.
    #[arg(long, value_name = "ADDRESS:PORT")]
    address: Option<SocketAddr>,
    /// How long the answer may take.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    timeout: Duration,
}

#[derive(Serialize)]
struct Line<'a> {
    url: &'a str,
    status: u16,
    healthy: bool,
    details: serde_json::Value,
}

pub(super) async fn health(
    context: &mut Context,
    Args { ready, address, timeout: limit }: Args,
) -> anyhow::Result<Done> {
    let address = match address {
        Some(address) => address,
        None => configured(context.config()?.metrics)?,
    };
    let page = if ready { "/readyz" } else { "/livez" };
    let url = format!("http://{address}{page}");
    let answer = timeout(limit, ask(address, page)).await;
    let answer = answer.with_context(|| format!("{url} did not answer within {}", duration::text(limit)))?;
    let (status, body) = answer.with_context(|| format!("{url} does not answer"))?;
    let details: serde_json::Value = serde_json::from_str(&body).unwrap_or_else(|_| body.trim().into());
    // A port may be another program's by now: only a worker says so.
    let said = details[if ready { "ready" } else { "live" }].as_bool();
    let healthy = status == 200 && said == Some(true);
    if context.output.is_json() {
        context.output.object(&Line { url: &url, status, healthy, details })?;
    } else {
        context.output.text(body.trim())?;
    }
    if said.is_none() {
        bail!("{url} answers with status {status}, and not as a worker does: another program listens there");
    }
    if !healthy {
        bail!("{url}: not well, status {status}");
    }
    context.output.say(format_args!("{url}: well"));
    Ok(Done::All)
}

/// Where the worker of a config listens, if it cannot be anywhere else.
fn configured(listen: Option<Listen>) -> Result<SocketAddr, Usage> {
    match listen {
        None => Err(Usage("metrics.listen is \"off\": this worker has no page to ask".into())),
        Some(Listen { address, fixed }) if fixed && address.port() != 0 => Ok(here(address)),
        Some(_) => Err(Usage(
            "the config has no port in metrics.listen, so its worker listens on the first that was free: write it out, or \
             say --address with what the worker told when it started"
                .into(),
        )),
    }
}

/// Where to reach what listens on every address of this host.
fn here(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    listen
}

/// The status and the body of a page.
async fn ask(address: SocketAddr, page: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    // HTTP/1.0: the body ends with the connection, and is in one piece.
    stream.write_all(format!("GET {page} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.context("what answers is no page of a worker")?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_listens_everywhere_is_asked_on_this_host() {
        for (listen, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.1.2.3:1", "10.1.2.3:1"),
            ("[fe80::1]:1", "[fe80::1]:1"),
        ] {
            assert_eq!(here(listen.parse().unwrap()), asked.parse().unwrap(), "{listen}");
        }
    }
}
