use crossbeam::channel::bounded;
use tokio::sync::oneshot;

use super::*;
use crate::worker::Pack;

const ALPHA: usize = 0;
const BETA: usize = 1;
const NOBODY: TenantId = TenantId::ANONYMOUS;
const WHO: Principal = Principal::ANONYMOUS;

/// The far ends of a router's workers.
struct Far {
    inboxes: Vec<Receiver<Event>>,
    outboxes: Vec<Sender<Notice>>,
}

#[test]
fn new_sessions_go_where_the_load_is_least() {
    let (router, _far) = router(&[ALPHA, ALPHA, BETA]);
    let busy = [router.load(WorkerId(0)), router.load(WorkerId(0)), router.load(WorkerId(1))];
    assert_eq!(place(&router, SessionId(1), ALPHA).0, WorkerId(1));
    drop(busy);
    assert_eq!(place(&router, SessionId(2), ALPHA).0, WorkerId(0), "its load has gone");
}

#[test]
fn of_equal_loads_the_fewest_sessions_decide() {
    let (router, _far) = router(&[ALPHA, ALPHA]);
    let places = [1, 2, 3].map(|id| place(&router, SessionId(id), ALPHA).0.0);
    assert_eq!(places, [0, 1, 0]);
    router.unplace(SessionId(1));
    router.unplace(SessionId(3));
    assert_eq!(place(&router, SessionId(4), ALPHA).0, WorkerId(0));
}

#[test]
fn a_session_stays_with_a_worker_of_its_model() {
    let (router, _far) = router(&[ALPHA, ALPHA, BETA]);
    for id in 0..8 {
        assert_eq!(place(&router, SessionId(id), BETA).0, WorkerId(2));
    }
}

/// Goal: load decides over new sessions only; one that has a state is found where that is.
#[test]
fn sessions_stick_to_their_worker_whatever_its_load() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let id = SessionId(1);
    let (worker, is_new) = place(&router, id, ALPHA);
    assert!(is_new);
    let _busy = router.load(worker);
    let standing =
        Standing { position: 12, residence: Residence::Parked, ..Standing::new(id, NOBODY, 7) };
    far.outboxes[worker.0].send(Notice::Session(standing)).unwrap();
    assert_eq!(router.session(WHO, id), Ok(Entry { worker, standing }));
    assert_eq!(place(&router, id, ALPHA), (worker, false), "it is there already");
    assert_eq!(router.sessions(WHO).len(), 1);
}

#[test]
fn what_a_worker_recovered_is_known_until_it_says_that_it_is_gone() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let notice = |id| Notice::Session(Standing::new(id, NOBODY, 0));
    router.adopt(WorkerId(1), vec![notice(SessionId(8)), notice(SessionId(5))]);
    let ids: Vec<_> = router.sessions(WHO).into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [SessionId(5), SessionId(8)]);
    let (id, why) = (SessionId(5), Gone::Evicted);
    far.outboxes[1].send(Notice::Gone { id, why }).unwrap();
    assert_eq!(router.session(WHO, id), Err(Reject::UnknownSession { id, gone: Some(why) }));
    let id = SessionId(6);
    assert_eq!(router.session(WHO, id), Err(Reject::UnknownSession { id, gone: None }));
    assert_eq!(router.session(WHO, SessionId(8)).unwrap().worker, WorkerId(1));
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
    router.reserve_name(NOBODY, name, first).unwrap();
    router.reserve_name(NOBODY, name, first).expect("it is its own");
    let taken = Reject::NameTaken { id: first, name: name.to_string() };
    assert_eq!(router.reserve_name(NOBODY, name, second), Err(taken));
    router.release_name(NOBODY, name, second);
    assert_eq!(router.named(NOBODY, name), Some(first), "another cannot give it up");
    router.release_name(NOBODY, name, first);
    assert_eq!(router.named(NOBODY, name), None);
    let standing = Standing { name: Some(name), ..Standing::new(second, NOBODY, 0) };
    far.outboxes[0].send(Notice::Session(standing)).unwrap();
    assert_eq!(router.named(NOBODY, name), Some(second));
    far.outboxes[0].send(Notice::Gone { id: second, why: Gone::Deleted }).unwrap();
    assert_eq!(router.named(NOBODY, name), None);
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

#[track_caller]
fn place(router: &Router, id: SessionId, model: usize) -> (WorkerId, bool) {
    router.place(Standing::new(id, NOBODY, 0), model).unwrap()
}

/// Goal: what another tenant has, or had, is answered as what has never been.
#[test]
fn tenants_do_not_learn_of_each_other() {
    let (router, far) = router(&[ALPHA]);
    let [mine, theirs] = ["tales", "verses"].map(TenantId::named);
    let id = SessionId(1);
    let who = |tenant, is_admin| Principal { tenant, is_admin };
    let name = Name::parse("prompt").unwrap();
    let standing = Standing { name: Some(name), ..Standing::new(id, mine, 0) };
    far.outboxes[0].send(Notice::Session(standing)).unwrap();
    let unknown = || Reject::UnknownSession { id, gone: None };
    assert!(router.session(who(mine, false), id).is_ok());
    assert_eq!(router.session(who(theirs, false), id), Err(unknown()));
    assert!(router.session(who(theirs, true), id).is_ok(), "an admin sees all");
    assert_eq!(router.sessions(who(theirs, false)), []);
    assert_eq!(router.sessions(who(theirs, true)).len(), 1);
    assert_eq!(router.place(Standing::new(id, theirs, 0), ALPHA), Err(unknown()));
    assert_eq!(router.place_beside(Standing::new(id, theirs, 0), WorkerId(0)), Err(unknown()));
    assert_eq!(router.named(theirs, name), None);
    router.reserve_name(theirs, name, SessionId(2)).expect("names are each tenant's own");
    let why = Gone::Deleted;
    far.outboxes[0].send(Notice::Gone { id, why }).unwrap();
    let deleted = Reject::UnknownSession { id, gone: Some(why) };
    assert_eq!(router.session(who(mine, false), id), Err(deleted));
    assert_eq!(router.session(who(theirs, false), id), Err(unknown()));
}
