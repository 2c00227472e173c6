//! The engine behind the SDK's HTTP connector: inline for simulation, or with a thread for writes and one for reads.

use super::Trouble;
use super::execute::{Failure, Operation, Reply, Request, execute};
use super::file::{self, FileError, Opened};
use super::lock::LockFile;
use super::queue::{Job, Lane, Queue};
use super::shared::{self, Place, Taken};
use crate::store::config::Durability;
use aws_sdk_dynamodb::error::ConnectorError;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use dynoxide::Database;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fmt, io, thread};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long opening may wait for other processes.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// An embedded DynamoDB, shared by the clients of one [`Store`](crate::store::Store), and of all that are made of one file.
pub(crate) struct Engine {
    /// Dropped first: the place is free only when the file is closed.
    mode: Mode,
    file: Option<(Place, Durability)>,
}

enum Mode {
    /// On the caller's task, which it blocks: for simulation, where nothing may run beside the paused clock.
    Inline(Database),
    Threads(Threads),
}

struct Threads {
    writes: Arc<Queue>,
    reads: Arc<Queue>,
    stop: Arc<AtomicBool>,
    /// The reader's, then the writer's.
    handles: Vec<JoinHandle<()>>,
}

impl Engine {
    /// In memory, executed on the caller's task.
    pub(crate) fn inline() -> Result<Self, FileError> {
        Ok(Self { mode: Mode::Inline(memory()?), file: None })
    }

    /// In memory, with the threads of a file.
    pub(crate) fn in_memory() -> Result<Self, FileError> {
        let database = memory()?;
        let (write, read) = (Writer { database: database.clone(), file: None }, Reader { database, file: None });
        Ok(Self { mode: Mode::Threads(Threads::start(write, read)?), file: None })
    }

    /// Over a file, which is made if there is none. Where this process has it open already, that engine.
    pub(crate) async fn open(path: &Path, durability: Durability) -> Result<Arc<Self>, FileError> {
        let opening = path.to_owned();
        let deadline = Instant::now() + OPEN_WITHIN;
        let (done, opened) = oneshot::channel();
        let opener = move || {
            // Nobody is there to hear it when the opening was given up.
            let _ = done.send(Self::open_blocking(&opening, durability, deadline));
        };
        let io = |error| FileError::Io(path.to_owned(), error);
        thread::Builder::new().name("store-open".into()).spawn(opener).map_err(io)?;
        opened.await.map_err(|_| io(io::Error::other("the opening thread panicked")))?
    }

    fn open_blocking(path: &Path, durability: Durability, deadline: Instant) -> Result<Arc<Self>, FileError> {
        let place = match shared::take(path, deadline)? {
            Taken::Free(place) => place,
            Taken::Shared(engine) => {
                let same = engine.file.as_ref().is_some_and(|(_, of)| *of == durability);
                return if same { Ok(engine) } else { Err(FileError::Durability(path.into())) };
            }
        };
        let Opened { write, read, lock } = file::open(path, durability, deadline)?;
        let path: Arc<Path> = path.into();
        let write = Writer { database: write, file: Some((path.clone(), durability, lock)) };
        let read = Reader { database: read, file: Some((path, durability)) };
        let threads = Threads::start(write, read)?;
        let engine = Arc::new(Self { mode: Mode::Threads(threads), file: Some((place, durability)) });
        if let Some((place, _)) = &engine.file {
            shared::opened(place, &engine);
        }
        Ok(engine)
    }
}

fn memory() -> Result<Database, FileError> {
    Database::memory().map_err(|error| FileError::Engine(":memory:".into(), error.to_string()))
}

impl Threads {
    fn start(writer: Writer, reader: Reader) -> Result<Self, FileError> {
        let mut threads = Self {
            writes: Arc::new(Queue::new()),
            reads: Arc::new(Queue::new()),
            stop: Arc::new(AtomicBool::new(false)),
            handles: Vec::new(),
        };
        let io = |error| FileError::Io(PathBuf::from("thread"), error);
        let (queue, stop) = (threads.reads.clone(), threads.stop.clone());
        let read = thread::Builder::new().name("store-read".into());
        threads.handles.push(read.spawn(move || reader.run(&queue, &stop)).map_err(io)?);
        let (queue, stop) = (threads.writes.clone(), threads.stop.clone());
        let write = thread::Builder::new().name("store-write".into());
        threads.handles.push(write.spawn(move || writer.run(&queue, &stop)).map_err(io)?);
        Ok(threads)
    }
}

impl Drop for Threads {
    /// Waits for the jobs in hand, so that the file is closed afterwards. One after the other: who closes as the
    /// last of all puts the write-ahead log back into the file, and two at once would each leave it to the other.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (queue, handle) in [&self.reads, &self.writes].into_iter().zip(self.handles.drain(..)) {
            queue.close();
            // A panic in the thread was told by the panic hook.
            let _ = handle.join();
        }
    }
}

/// The thread that writes.
struct Writer {
    database: Database,
    file: Option<(Arc<Path>, Durability, LockFile)>,
}

impl Writer {
    fn run(mut self, queue: &Queue, stop: &AtomicBool) {
        while let Some(job) = queue.next() {
            let answer = self.turn(&job, stop);
            job.answer(answer);
        }
        // Closing may write too.
        if let Some((_, _, lock)) = &mut self.file {
            let guard = lock.acquire(Instant::now(), stop);
            drop(self.database);
            drop(guard);
        }
    }

    fn turn(&mut self, job: &Job, stop: &AtomicBool) -> Result<Reply, Trouble> {
        let Some((path, durability, lock)) = &mut self.file else {
            return if let Some(late) = job.expired() { Err(late) } else { answer(&self.database, &job.request) };
        };
        let _guard = lock.acquire(job.deadline, stop)?;
        if let Some(late) = job.expired() {
            return Err(late);
        }
        execute(&self.database, &job.request).map_err(|failure| match failure {
            Failure::Trouble(trouble) => trouble,
            Failure::Panicked(trouble) => {
                reopen(&mut self.database, path, *durability);
                trouble
            }
        })
    }
}

/// The thread that reads. Readers of an SQLite file in WAL mode need no lock.
struct Reader {
    database: Database,
    file: Option<(Arc<Path>, Durability)>,
}

impl Reader {
    fn run(mut self, queue: &Queue, stop: &AtomicBool) {
        while let Some(job) = queue.next() {
            let answer = if let Some(late) = job.expired() { Err(late) } else { self.turn(&job.request, stop) };
            job.answer(answer);
        }
    }

    fn turn(&mut self, request: &Request, stop: &AtomicBool) -> Result<Reply, Trouble> {
        execute(&self.database, request).map_err(|failure| match (failure, &self.file) {
            (Failure::Panicked(trouble), Some((path, durability))) => {
                let mut lock = LockFile::open(path).ok();
                let deadline = Instant::now() + OPEN_WITHIN;
                if let Some(Ok(_guard)) = lock.as_mut().map(|lock| lock.acquire(deadline, stop)) {
                    reopen(&mut self.database, path, *durability);
                }
                trouble
            }
            (Failure::Panicked(trouble) | Failure::Trouble(trouble), _) => trouble,
        })
    }
}

/// Replaces a connection whose engine panicked. Where that fails, the old one goes on answering errors and the next
/// panic tries again.
fn reopen(database: &mut Database, path: &Path, durability: Durability) {
    tracing::error!(file = %path.display(), "the embedded engine panicked; opening the file anew");
    match file::connect(path, durability) {
        Ok(fresh) => *database = fresh,
        Err(error) => tracing::error!(file = %path.display(), %error, "the file cannot be opened anew"),
    }
}

fn answer(database: &Database, request: &Request) -> Result<Reply, Trouble> {
    execute(database, request).map_err(|(Failure::Trouble(trouble) | Failure::Panicked(trouble))| trouble)
}

/// The SDK's way to the engine; each client has its own, with its deadline and lane.
#[derive(Clone)]
pub(crate) struct Connector {
    engine: Arc<Engine>,
    lane: Lane,
    deadline: Duration,
}

impl Connector {
    /// For the control plane; a request gets `deadline` from when it is sent.
    pub(crate) fn control(engine: Arc<Engine>, deadline: Duration) -> Self {
        Self { engine, lane: Lane::Control, deadline }
    }

    /// For the data plane; a request gets `deadline` from when it is sent.
    pub(crate) fn data(engine: Arc<Engine>, deadline: Duration) -> Self {
        Self { engine, lane: Lane::Data, deadline }
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connector")
    }
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let user = |text: &str| HttpConnectorFuture::ready(Err(ConnectorError::user(text.into())));
        let Some(operation) = request.headers().get("x-amz-target").and_then(Operation::of_target) else {
            return user("an operation that the embedded store does not know");
        };
        let Some(body) = request.body().bytes() else { return user("a body that is not in memory") };
        let request = Request { operation, body: body.to_vec() };
        let told = |answer: Result<Reply, Trouble>| match answer {
            Ok(reply) => respond(reply),
            Err(trouble) => Err(ConnectorError::other(trouble.into(), None)),
        };
        if let Mode::Inline(database) = &self.engine.mode {
            return HttpConnectorFuture::ready(told(answer(database, &request)));
        }
        let (engine, lane, deadline) = (self.engine.clone(), self.lane, Instant::now() + self.deadline);
        HttpConnectorFuture::new(async move {
            let Mode::Threads(threads) = &engine.mode else { unreachable!("the inline engine has answered above") };
            let queue = if operation.writes() { &threads.writes } else { &threads.reads };
            told(queue.ask(lane, request, deadline).await)
        })
    }
}

fn respond(reply: Reply) -> Result<HttpResponse, ConnectorError> {
    let status = reply.status.try_into().map_err(|error| ConnectorError::other(Box::new(error), None))?;
    let mut response = HttpResponse::new(status, SdkBody::from(reply.body));
    response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
    Ok(response)
}

impl HttpClient for Connector {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::super::execute::PANIC;
    use super::*;

    async fn ask(engine: &Engine, operation: Operation, body: &[u8]) -> Result<Reply, Trouble> {
        let Mode::Threads(threads) = &engine.mode else { unreachable!() };
        let queue = if operation.writes() { &threads.writes } else { &threads.reads };
        let request = Request { operation, body: body.to_vec() };
        queue.ask(Lane::Data, request, Instant::now() + Duration::from_secs(60)).await
    }

    #[tokio::test]
    async fn a_panic_of_the_engine_is_answered_and_the_file_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::open(&dir.path().join("a.db"), Durability::Full).await.unwrap();
        let table = br#"{"TableName": "abc", "BillingMode": "PAY_PER_REQUEST",
            "AttributeDefinitions": [{"AttributeName": "a", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "a", "KeyType": "HASH"}]}"#;
        assert_eq!(ask(&engine, Operation::CreateTable, table).await.unwrap().status, 200);
        let (put, get) = (
            br#"{"TableName": "abc", "Item": {"a": {"S": "b"}}}"#,
            br#"{"TableName": "abc", "Key": {"a": {"S": "b"}}}"#,
        );
        for _ in 0..3 {
            for operation in [Operation::PutItem, Operation::GetItem] {
                let trouble = ask(&engine, operation, PANIC).await.unwrap_err();
                assert!(trouble.executed(), "nobody knows how far it came");
                assert!(trouble.to_string().contains("panicked"), "{trouble}");
            }
            assert_eq!(ask(&engine, Operation::PutItem, put).await.unwrap().status, 200);
            let got = ask(&engine, Operation::GetItem, get).await.unwrap();
            assert!(String::from_utf8(got.body).unwrap().contains("Item"));
        }
    }
}
