use crossbeam::channel::bounded;
use tokio::sync::oneshot;

use super::*;
use crate::worker::Pack;

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
    assert_eq!(router.place(SessionId(1), ALPHA, 0).0, WorkerId(1));
    drop(busy);
    assert_eq!(router.place(SessionId(2), ALPHA, 0).0, WorkerId(0), "its load has gone");
}

#[test]
fn of_equal_loads_the_fewest_sessions_decide() {
    let (router, _far) = router(&[ALPHA, ALPHA]);
    let places = [1, 2, 3].map(|id| router.place(SessionId(id), ALPHA, 0).0.0);
    assert_eq!(places, [0, 1, 0]);
    router.unplace(SessionId(1));
    router.unplace(SessionId(3));
    assert_eq!(router.place(SessionId(4), ALPHA, 0).0, WorkerId(0));
}

#[test]
fn a_session_stays_with_a_worker_of_its_model() {
    let (router, _far) = router(&[ALPHA, ALPHA, BETA]);
    for id in 0..8 {
        assert_eq!(router.place(SessionId(id), BETA, 0).0, WorkerId(2));
    }
}

/// Goal: load decides over new sessions only; one that has a state is found where that is.
#[test]
fn sessions_stick_to_their_worker_whatever_its_load() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let id = SessionId(1);
    let (worker, is_new) = router.place(id, ALPHA, 0);
    assert!(is_new);
    let _busy = router.load(worker);
    let standing = Standing { position: 12, residence: Residence::Parked, ..Standing::new(id, 7) };
    far.outboxes[worker.0].send(Notice::Session(standing)).unwrap();
    assert_eq!(router.session(id), Ok(Entry { worker, standing }));
    assert_eq!(router.place(id, ALPHA, 0), (worker, false), "it is there already");
    assert_eq!(router.sessions().len(), 1);
}

#[test]
fn what_a_worker_recovered_is_known_until_it_says_that_it_is_gone() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let notice = |id| Notice::Session(Standing::new(id, 0));
    router.adopt(WorkerId(1), vec![notice(SessionId(8)), notice(SessionId(5))]);
    let ids: Vec<_> = router.sessions().into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [SessionId(5), SessionId(8)]);
    let (id, why) = (SessionId(5), Gone::Evicted);
    far.outboxes[1].send(Notice::Gone { id, why }).unwrap();
    assert_eq!(router.session(id), Err(Reject::UnknownSession { id, gone: Some(why) }));
    let id = SessionId(6);
    assert_eq!(router.session(id), Err(Reject::UnknownSession { id, gone: None }));
    assert_eq!(router.session(SessionId(8)).unwrap().worker, WorkerId(1));
}

#[test]
fn a_full_worker_and_one_that_ended_are_told_apart() {
    let (router, mut far) = router(&[ALPHA]);
    let delete = || {
        let (id, reply) = (SessionId(1), oneshot::channel().0);
        Event::Pack(Pack { id, expected_position: None, reply })
    };
    assert_eq!(router.send(WorkerId(0), delete()), Ok(()));
    assert_eq!(router.send(WorkerId(0), delete()), Err(SendError::Full));
    far.inboxes.clear();
    assert_eq!(router.send(WorkerId(0), delete()), Err(SendError::Gone));
}

#[test]
fn a_name_belongs_to_one_session() {
    let (router, far) = router(&[ALPHA]);
    let name = Name::parse("system-prompt").unwrap();
    let [first, second] = [SessionId(1), SessionId(2)];
    router.reserve_name(name, first).unwrap();
    router.reserve_name(name, first).expect("it is its own");
    let taken = Reject::NameTaken { id: first, name: name.to_string() };
    assert_eq!(router.reserve_name(name, second), Err(taken));
    router.release_name(&name, second);
    assert_eq!(router.named(&name), Some(first), "another cannot give it up");
    router.release_name(&name, first);
    assert_eq!(router.named(&name), None);
    let standing = Standing { name: Some(name), ..Standing::new(second, 0) };
    far.outboxes[0].send(Notice::Session(standing)).unwrap();
    assert_eq!(router.named(&name), Some(second));
    far.outboxes[0].send(Notice::Gone { id: second, why: Gone::Deleted }).unwrap();
    assert_eq!(router.named(&name), None);
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
