//! The bounded queue before a thread of the engine, with a fast lane for the control plane.

use super::Trouble;
use super::execute::{Reply, Request};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

/// Jobs that may wait in one lane.
const WAITING_MAX: usize = 1024;

/// Which lane a job waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Sessions and leases: goes first, so that no load of cells can starve a heartbeat.
    Control,
    /// Cells.
    Data,
}

/// A request on its way to a thread, with where the answer goes.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) deadline: Instant,
    answer: oneshot::Sender<Result<Reply, Trouble>>,
    _permit: OwnedSemaphorePermit,
}

impl Job {
    /// Why the job must not be executed any more, if so.
    pub(super) fn expired(&self) -> Option<Trouble> {
        if self.answer.is_closed() {
            return Some(Trouble::not_executed("nobody waits for the answer"));
        }
        let late = Instant::now() >= self.deadline;
        late.then(|| Trouble::not_executed("its deadline passed before its turn came"))
    }

    /// Answers. Nobody may be there to hear it.
    pub(super) fn answer(self, answer: Result<Reply, Trouble>) {
        let _ = self.answer.send(answer);
    }
}

/// The queue.
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    bell: Condvar,
    control: Arc<Semaphore>,
    data: Arc<Semaphore>,
}

#[derive(Default)]
struct Waiting {
    control: VecDeque<Job>,
    data: VecDeque<Job>,
    closed: bool,
}

impl Queue {
    pub(super) fn new() -> Self {
        let permits = || Arc::new(Semaphore::new(WAITING_MAX));
        Self { waiting: Mutex::default(), bell: Condvar::new(), control: permits(), data: permits() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Waits for a place, leaves the request and waits for the answer.
    pub(super) async fn ask(&self, lane: Lane, request: Request, deadline: Instant) -> Result<Reply, Trouble> {
        let permits = match lane {
            Lane::Control => &self.control,
            Lane::Data => &self.data,
        };
        let closed = || Trouble::not_executed("the embedded store is closed");
        let permit = permits.clone().acquire_owned().await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let job = Job { request, deadline, answer, _permit: permit };
        {
            let mut waiting = self.waiting();
            if waiting.closed {
                return Err(closed());
            }
            match lane {
                Lane::Control => waiting.control.push_back(job),
                Lane::Data => waiting.data.push_back(job),
            }
        }
        self.bell.notify_one();
        answered.await.unwrap_or_else(|_| Err(Trouble::perhaps_executed("the thread of the engine ended")))
    }

    /// The next job, as soon as there is one; `None` once the queue is closed.
    pub(super) fn next(&self) -> Option<Job> {
        let mut waiting = self.waiting();
        loop {
            if waiting.closed {
                return None;
            }
            let Waiting { control, data, .. } = &mut *waiting;
            if let Some(job) = control.pop_front().or_else(|| data.pop_front()) {
                return Some(job);
            }
            waiting = self.bell.wait(waiting).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Ends the thread after its present job; what waits is not executed.
    pub(super) fn close(&self) {
        let left = {
            let mut waiting = self.waiting();
            waiting.closed = true;
            std::mem::take(&mut waiting.control).into_iter().chain(std::mem::take(&mut waiting.data))
        };
        self.bell.notify_all();
        left.for_each(|job| job.answer(Err(Trouble::not_executed("the embedded store is closed"))));
    }
}

#[cfg(test)]
mod tests {
    use super::super::execute::Operation;
    use super::*;
    use std::time::Duration;

    fn request(body: &str) -> Request {
        Request { operation: Operation::GetItem, body: body.into() }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn control_goes_before_data_and_each_keeps_its_order() {
        let queue = Queue::new();
        let asked = [(Lane::Data, "d1"), (Lane::Data, "d2"), (Lane::Control, "c1"), (Lane::Control, "c2")];
        let asks = asked.map(|(lane, body)| Box::pin(queue.ask(lane, request(body), later())));
        let mut all = futures_util::future::join_all(asks);
        assert!(futures_util::poll!(&mut all).is_pending());
        let mut order = Vec::new();
        for _ in 0..4 {
            let job = queue.next().unwrap();
            order.push(String::from_utf8(job.request.body.clone()).unwrap());
            job.answer(Ok(Reply { status: 200, body: Vec::new() }));
        }
        assert_eq!(order, ["c1", "c2", "d1", "d2"]);
        assert!(all.await.into_iter().all(|answer| answer.is_ok()));
    }

    #[tokio::test]
    async fn a_job_is_not_executed_when_late_or_when_its_asker_has_gone() {
        let queue = Queue::new();
        let mut ask = Box::pin(queue.ask(Lane::Data, request(""), Instant::now()));
        assert!(futures_util::poll!(&mut ask).is_pending());
        let job = queue.next().unwrap();
        assert!(job.expired().unwrap().to_string().contains("deadline"));
        drop(ask);
        assert!(job.expired().unwrap().to_string().contains("nobody"));
    }

    #[tokio::test]
    async fn a_closed_queue_answers_what_waits_and_takes_nothing() {
        let queue = Queue::new();
        let mut ask = Box::pin(queue.ask(Lane::Data, request(""), later()));
        assert!(futures_util::poll!(&mut ask).is_pending());
        queue.close();
        assert!(!ask.await.unwrap_err().executed());
        assert!(!queue.ask(Lane::Data, request(""), later()).await.unwrap_err().executed());
        assert!(queue.next().is_none());
    }
}
