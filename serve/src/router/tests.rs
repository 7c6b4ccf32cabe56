use crossbeam::channel::bounded;
use tokio::sync::oneshot;

use super::*;

const ALPHA: usize = 0;
const BETA: usize = 1;

/// The far ends of a router's workers.
struct Far {
    inboxes: Vec<Receiver<Event>>,
    outboxes: Vec<Sender<Notice>>,
}

#[test]
fn new_sessions_go_where_the_load_is_least() {
    let (router, _far) = router(&[ALPHA, ALPHA, BETA]);
    let busy = [router.load(WorkerId(0)), router.load(WorkerId(0)), router.load(WorkerId(1))];
    assert_eq!(router.place(SessionId(1), ALPHA, 0), WorkerId(1));
    drop(busy);
    assert_eq!(router.place(SessionId(2), ALPHA, 0), WorkerId(0), "its load has gone");
}

#[test]
fn of_equal_loads_the_fewest_sessions_decide() {
    let (router, _far) = router(&[ALPHA, ALPHA]);
    let places = [1, 2, 3].map(|id| router.place(SessionId(id), ALPHA, 0).0);
    assert_eq!(places, [0, 1, 0]);
    router.unplace(SessionId(1));
    router.unplace(SessionId(3));
    assert_eq!(router.place(SessionId(4), ALPHA, 0), WorkerId(0));
}

#[test]
fn a_session_stays_with_a_worker_of_its_model() {
    let (router, _far) = router(&[ALPHA, ALPHA, BETA]);
    for id in 0..8 {
        assert_eq!(router.place(SessionId(id), BETA, 0), WorkerId(2));
    }
}

/// Goal: load decides over new sessions only; one that has a state is found where that is.
#[test]
fn sessions_stick_to_their_worker_whatever_its_load() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let id = SessionId(1);
    let worker = router.place(id, ALPHA, 0);
    let _busy = router.load(worker);
    let residence = Residence::Parked;
    far.outboxes[worker.0]
        .send(Notice::Session { id, position: 12, residence, used_at: 7 })
        .unwrap();
    assert_eq!(router.session(id), Some(Entry { worker, position: 12, residence, used_at: 7 }));
    assert_eq!(router.sessions().len(), 1);
}

#[test]
fn what_a_worker_recovered_is_known_until_it_says_that_it_is_gone() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let residence = Residence::Parked;
    let notice = |id| Notice::Session { id, position: 3, residence, used_at: 0 };
    router.adopt(WorkerId(1), vec![notice(SessionId(8)), notice(SessionId(5))]);
    let ids: Vec<_> = router.sessions().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [SessionId(5), SessionId(8)]);
    far.outboxes[1].send(Notice::Gone { id: SessionId(5) }).unwrap();
    assert_eq!(router.session(SessionId(5)), None);
    assert_eq!(router.session(SessionId(8)).unwrap().worker, WorkerId(1));
}

#[test]
fn a_full_worker_and_one_that_ended_are_told_apart() {
    let (router, mut far) = router(&[ALPHA]);
    let delete = || Event::Delete { id: SessionId(1), reply: oneshot::channel().0 };
    assert_eq!(router.send(WorkerId(0), delete()), Ok(()));
    assert_eq!(router.send(WorkerId(0), delete()), Err(SendError::Full));
    far.inboxes.clear();
    assert_eq!(router.send(WorkerId(0), delete()), Err(SendError::Gone));
}

/// A router to one worker for each of `models`, with room for one event.
fn router(models: &[usize]) -> (Router, Far) {
    let mut far = Far { inboxes: Vec::new(), outboxes: Vec::new() };
    let workers = models.iter().map(|&model| {
        let (events, inbox) = bounded(1);
        let (outbox, notices) = bounded(4);
        far.inboxes.push(inbox);
        far.outboxes.push(outbox);
        WorkerHandle::new(model, "fake".to_owned(), events, notices)
    });
    (Router::new(workers.collect()), far)
}
