//! For tests: a store whose server answers badly for a while, seen through the real SDK.

use super::items;
use super::open::Store;
use crate::cell::{Millis, Name, Segment, SegmentKey, ShardId};
use crate::store::embedded::{Connector, Engine};
use aws_sdk_dynamodb::error::ConnectorError;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a server does instead of answering the truth.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It answers this.
    Answer(u16, String),
    /// Nobody is there.
    Broken,
    /// It says nothing.
    Silent,
    /// It does as asked, and then answers with the fault.
    Applied(Box<Fault>),
}

impl Fault {
    /// An error of the service.
    pub(crate) fn error(code: &str) -> Self {
        Self::Answer(400, format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"why"}}"#))
    }

    /// A transaction canceled for these reasons, by action.
    pub(crate) fn canceled(codes: &[&str]) -> Self {
        let reasons: Vec<String> = codes.iter().map(|code| format!(r#"{{"Code":"{code}","Message":"why"}}"#)).collect();
        Self::Answer(
            400,
            format!(
                r#"{{"__type":"com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
                    "Message":"canceled","CancellationReasons":[{}]}}"#,
                reasons.join(",")
            ),
        )
    }
}

/// A server that answers everything alike.
impl HttpConnector for Fault {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        match self {
            Self::Answer(status, body) => {
                let mut response = HttpResponse::new((*status).try_into().unwrap(), SdkBody::from(body.as_str()));
                response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
                HttpConnectorFuture::ready(Ok(response))
            }
            Self::Broken => HttpConnectorFuture::ready(Err(ConnectorError::io("connection reset".into()))),
            Self::Silent => HttpConnectorFuture::new(std::future::pending()),
            Self::Applied(_) => unreachable!("needs a server that does it"),
        }
    }
}

impl HttpClient for Fault {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

/// The faults that stand before an inline store. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    script: Arc<Mutex<Script>>,
    truth: Connector,
}

#[derive(Debug, Default)]
struct Script {
    /// For the next requests of an operation, one each.
    next: VecDeque<(&'static str, Option<Fault>)>,
    /// For all others, while it is set.
    standing: Option<Fault>,
    asked: Vec<String>,
}

impl Faults {
    /// An empty store in memory, and what stands before it.
    pub(crate) fn store() -> (Store, Self) {
        let truth = Connector::data(Arc::new(Engine::inline().unwrap()), Duration::from_secs(3));
        let faults = Self { script: Arc::default(), truth };
        (Store::over(faults.clone()), faults)
    }

    /// The next request of that operation that is not spoken for meets this fault, or with `None` the truth.
    pub(crate) fn next(&self, operation: &'static str, fault: impl Into<Option<Fault>>) {
        self.script.lock().unwrap().next.push_back((operation, fault.into()));
    }

    /// Every request meets this fault from now on; `None`: none does.
    pub(crate) fn stand(&self, fault: Option<Fault>) {
        self.script.lock().unwrap().standing = fault;
    }

    /// The operations that were asked for since the last look.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.script.lock().unwrap().asked)
    }
}

impl Store {
    /// Puts a segment into a datastore's log past all rules; `packed` absent: one that cannot be decoded.
    pub(crate) async fn put_segment(&self, datastore: &Name, key: SegmentKey, packed: Option<&[u8]>) {
        let bytes = packed.unwrap_or_default().to_vec().into();
        let segment = Segment { last: key.last, n: key.n, packed: bytes, created_at: Millis(1) };
        let mut item = items::segment_item(ShardId(0), segment);
        if packed.is_none() {
            item.remove("cells");
        }
        self.raw().put_item().table_name(format!("{datastore}.log")).set_item(Some(item)).send().await.unwrap();
    }
}

impl HttpConnector for Faults {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let fault = {
            let mut script = self.script.lock().unwrap();
            let at = script.next.iter().position(|(name, _)| *name == operation);
            script.asked.push(operation);
            let next = at.and_then(|at| script.next.remove(at));
            next.map_or_else(|| script.standing.clone(), |(_, fault)| fault)
        };
        match fault {
            None => self.truth.call(request),
            Some(Fault::Applied(then)) => {
                // The inline store has done it when this returns.
                drop(self.truth.call(request));
                then.call(HttpRequest::empty())
            }
            Some(fault) => fault.call(request),
        }
    }
}

impl HttpClient for Faults {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
