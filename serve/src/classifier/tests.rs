//! A worker whose device adds up pixels, driven by hand.

use crossbeam::channel::bounded;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::{
    admission::{self, Admission},
    auth::TenantId,
    telemetry::metrics::Metrics,
};

const EXTENT: Extent = Extent { height: 1, width: 2 };
const CONFIG: batcher::Config =
    batcher::Config { rows_max: 4, delay_us_max: 1_000, queue_rows_max: 6, patience_ms: 100 };
const DELAY: Duration = Duration::from_millis(1);

/// Its logits are the sum of the pixels, and how many rows ran beside.
#[derive(Debug, Default)]
struct Adder {
    logits: Vec<f32>,
    fails: bool,
}

impl Device for Adder {
    fn classes(&self) -> u32 {
        2
    }

    fn classify(&mut self, pixels: &[f32], rows: u32, _: Extent) -> Result<&[f32], DeviceError> {
        if self.fails {
            return Err(DeviceError("planted".to_owned()));
        }
        self.logits.clear();
        for row in pixels.chunks_exact(6) {
            self.logits.extend([row.iter().sum(), rows as f32]);
        }
        Ok(&self.logits)
    }
}

#[test]
fn requests_that_come_together_run_together_and_get_their_own_rows() {
    let mut bench = Bench::new();
    let mut first = bench.submit(&[1.0, 2.0]);
    let mut second = bench.submit(&[5.0]);
    assert!(matches!(bench.worker.step(bench.now), Next::Wait(_)));
    bench.now += DELAY;
    assert_eq!(bench.worker.step(bench.now), Next::Run);
    let first = first.try_recv().unwrap().unwrap();
    let second = second.try_recv().unwrap().unwrap();
    assert_eq!((first.values, second.values), (vec![6.0, 3.0, 12.0, 3.0], vec![30.0, 3.0]));
    assert_eq!((first.queue, second.queue), (DELAY, DELAY));
    assert_eq!(bench.batches(), [3]);
    assert_eq!(bench.held(), (0, 0));
}

#[test]
fn who_goes_away_takes_no_place_in_a_batch() {
    let mut bench = Bench::new();
    let gone = bench.submit(&[1.0; 4]);
    let mut stays = bench.submit(&[1.0; 2]);
    let mut full = bench.submit(&[1.0]);
    assert!(matches!(full.try_recv().unwrap(), Err(Reject::Busy { max: 6, .. })));
    drop(gone);
    let mut next = bench.submit(&[1.0; 2]);
    assert_eq!(bench.worker.step(bench.now), Next::Run);
    stays.try_recv().unwrap().unwrap();
    next.try_recv().unwrap().unwrap();
    assert_eq!((bench.batches(), bench.held()), (vec![4], (0, 0)));
}

#[test]
fn who_waits_too_long_is_told() {
    let mut bench = Bench::new();
    let timeout = Duration::from_micros(400);
    let mut hurried = bench.submit_as(&[1.0], 1, Some(timeout));
    assert_eq!(bench.worker.step(bench.now), Next::Wait(bench.now + timeout));
    assert_eq!(hurried.try_recv().unwrap_err(), TryRecvError::Empty);
    bench.now += timeout;
    assert_eq!(bench.worker.step(bench.now), Next::Idle);
    assert_eq!(
        hurried.try_recv().unwrap().unwrap_err(),
        Reject::Expired { wait: Wait::Device, max: timeout }
    );
}

#[test]
fn a_device_that_fails_fails_its_batch_alone() {
    let mut bench = Bench::new();
    let mut failing = bench.submit(&[1.0; 4]);
    bench.worker.parts.device.fails = true;
    assert_eq!(bench.worker.step(bench.now), Next::Run);
    assert!(matches!(failing.try_recv().unwrap(), Err(Reject::Internal { .. })));
    bench.worker.parts.device.fails = false;
    let mut other = bench.submit(&[1.0; 4]);
    assert_eq!(bench.worker.step(bench.now), Next::Run);
    other.try_recv().unwrap().unwrap();
}

/// Goal: a run is counted once, whoever of its requests has gone by then.
#[test]
fn runs_are_counted_where_they_are_made() {
    let mut bench = Bench::new();
    let first = bench.submit(&[1.0; 3]);
    let mut second = bench.submit(&[1.0]);
    assert_eq!(bench.worker.step(bench.now), Next::Run);
    // The first of the batch has gone before it was told.
    drop(first);
    second.try_recv().unwrap().unwrap();
    assert_eq!(bench.batches(), [4]);
}

/// Goal: pictures with more pixels than the model was measured with are a batch by fewer.
#[test]
fn large_pictures_run_in_small_batches() {
    let mut bench = Bench::new();
    let _large: Vec<_> = (0..2).map(|_| bench.submit_as(&[1.0], 3, None)).collect();
    assert_eq!(bench.handle.board().load(), 6);
    assert!(matches!(bench.submit_as(&[1.0], 1, None).try_recv(), Ok(Err(Reject::Busy { .. }))));
    bench.now += DELAY;
    assert_eq!([bench.worker.step(bench.now), bench.worker.step(bench.now)], [Next::Run; 2]);
    assert_eq!(bench.batches(), [1, 1]);
}

#[test]
fn a_drain_runs_what_waits_until_its_deadline() {
    for (pause, runs) in [(Duration::ZERO, true), (DELAY * 5, false)] {
        let mut bench = Bench::new();
        let mut waiting = bench.submit(&[1.0]);
        bench.worker.handle(Event::Drain { deadline: bench.now + DELAY * 5 });
        bench.now += pause;
        bench.worker.step(bench.now);
        let answer = waiting.try_recv().unwrap();
        assert_eq!(answer.is_ok(), runs, "{answer:?}");
        assert_eq!(bench.worker.step(bench.now), Next::Idle);
        assert!(bench.worker.is_done(bench.now));
    }
}

/// Requests that were let in but still being decoded were refused, and their worker had ended.
#[test]
fn a_drain_waits_for_what_is_being_decoded() {
    let mut bench = Bench::new();
    let decoding = bench.handle.load(1);
    let deadline = bench.now + DELAY * 5;
    bench.worker.handle(Event::Drain { deadline });
    assert_eq!(bench.worker.step(bench.now), Next::Idle);
    assert!(!bench.worker.is_done(bench.now) && bench.worker.is_done(deadline));
    let mut late = bench.submit(&[1.0]);
    drop(decoding);
    assert_eq!(bench.worker.step(bench.now), Next::Run, "nobody waits for others any more");
    late.try_recv().unwrap().unwrap();
    assert!(bench.worker.is_done(bench.now));
}

struct Bench {
    worker: Worker<Adder>,
    handle: Handle,
    admission: Admission,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let clock = Clock::start();
        let handle = Handle::new("d".to_owned(), bounded(1).0);
        let worker = Worker::new(Parts {
            device: Adder::default(),
            batcher: CONFIG,
            retry_after: DELAY,
            metrics: Metrics::new().classifier("m", "d"),
            clock,
            board: Arc::clone(handle.board()),
        });
        let admission = Admission::new(admission::Config::default());
        Self { worker, handle, admission, now: clock.now() }
    }

    /// Rows of the batches that have run.
    fn batches(&self) -> Vec<u32> {
        let runs = self.handle.board().runs();
        runs.iter().flat_map(|(&rows, it)| (0..it.count()).map(move |_| rows)).collect()
    }

    /// What counts as load, and permits.
    fn held(&self) -> (u32, usize) {
        (self.handle.board().load(), self.admission.classifying())
    }

    fn submit(&mut self, rows: &[f32]) -> oneshot::Receiver<Result<Logits, Reject>> {
        self.submit_as(rows, 1, None)
    }

    /// A request whose rows are of one colour each, and count for so many.
    fn submit_as(
        &mut self,
        rows: &[f32],
        weight: u32,
        timeout: Option<Duration>,
    ) -> oneshot::Receiver<Result<Logits, Reject>> {
        let (reply, answer) = oneshot::channel();
        let n = u32::try_from(rows.len()).unwrap();
        let values = rows.iter().flat_map(|&it| [it; 6]).collect();
        let pixels = Pixels { values, rows: n, extent: EXTENT, weight: n * weight };
        self.worker.handle(Event::Classify(Box::new(Submission {
            load: self.handle.load(pixels.weight),
            pixels,
            priority: Priority::High,
            expiry: Expiry { since: self.now, timeout },
            arrived: self.now,
            reply,
            permit: self.admission.classify(TenantId::ANONYMOUS).unwrap(),
        })));
        answer
    }
}
