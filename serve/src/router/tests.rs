use crossbeam::channel::bounded;
use tokio::sync::oneshot;

use super::*;
use crate::worker::{Change, Fork, Pack, What};

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
    assert_eq!(router.place(SessionId(1), ALPHA), WorkerId(1));
    drop(busy);
    assert_eq!(router.place(SessionId(2), ALPHA), WorkerId(0), "its load has gone");
}

#[test]
fn of_equal_loads_the_fewest_sessions_decide() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let places = [1, 2, 3].map(|id| router.place(SessionId(id), ALPHA).0);
    assert_eq!(places, [0, 1, 0]);
    for id in [SessionId(1), SessionId(3)] {
        far.outboxes[0].send(Notice::Settled { id }).unwrap();
    }
    assert_eq!(router.place(SessionId(4), ALPHA), WorkerId(0), "nothing has come of the others");
}

#[test]
fn a_session_stays_with_a_worker_of_its_model() {
    let (router, _far) = router(&[ALPHA, ALPHA, BETA]);
    for id in 0..8 {
        assert_eq!(router.place(SessionId(id), BETA), WorkerId(2));
    }
}

/// Goal: load decides over new sessions only; one that is there, or may be in a moment, is asked for where that is.
#[test]
fn sessions_stick_to_their_worker_whatever_its_load() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let id = SessionId(1);
    let worker = router.place(id, ALPHA);
    let _busy = router.load(worker);
    assert_eq!(router.place(id, ALPHA), worker, "it is in the making");
    for notice in [Notice::Made { id }, Notice::Settled { id }, Notice::Settled { id }] {
        far.outboxes[worker.0].send(notice).unwrap();
    }
    assert_eq!(router.locate(id), Some(worker));
    assert_eq!(router.place(id, ALPHA), worker, "it is there");
    assert_eq!(router.place_beside(id, WorkerId(1 - worker.0)), worker, "it is not made again");
}

#[test]
fn what_never_reached_its_worker_is_not_in_the_making() {
    let (router, _far) = router(&[ALPHA]);
    let (of, new) = (SessionId(1), SessionId(2));
    let fork = || {
        let what = What::Fork(Fork { new, position: None, digest: None });
        let reply = oneshot::channel().0;
        Event::Change(Box::new(Change { who: WHO, id: of, expected_position: None, what, reply }))
    };
    for sent in [Ok(()), Err(SendError::Full)] {
        let worker = router.place_beside(new, WorkerId(0));
        assert_eq!(router.send(worker, fork()), sent);
        assert_eq!(router.locate(new), Some(WorkerId(0)), "one of the two is under way");
    }
    router.adopt(WorkerId(0), [Notice::Settled { id: new }]);
    assert_eq!(router.locate(new), None);
}

#[test]
fn what_a_worker_recovered_is_known_until_it_says_that_it_is_gone() {
    let (router, far) = router(&[ALPHA, ALPHA]);
    let tenant = NOBODY.mark();
    let [here, gone, before] = [SessionId(8), SessionId(5), SessionId(4)];
    let recalled = Notice::Recalled { id: before, tenant, why: Gone::Expired };
    let made = |id| Notice::Made { id };
    router.adopt(WorkerId(1), [made(here), made(gone), recalled]);
    let why = Gone::Evicted;
    far.outboxes[1].send(Notice::Gone { id: gone, tenant, why }).unwrap();
    assert_eq!((router.locate(gone), router.gone(WHO, gone)), (None, Some(why)));
    assert_eq!((router.locate(before), router.gone(WHO, before)), (None, Some(Gone::Expired)));
    assert_eq!((router.locate(here), router.gone(WHO, here)), (Some(WorkerId(1)), None));
    assert_eq!(router.gone(WHO, SessionId(6)), None);
}

/// Goal: that two sessions are alike as far as the directory tells them apart loses neither.
/// Method: ids are tried until two have the same tag, in a table of them; then both come and go, on one worker and on two.
#[test]
fn sessions_with_the_same_tag_are_both_found() {
    let mut seen = HashMap::new();
    let [one, other] = (0..)
        .map(|i: u128| SessionId(i.wrapping_mul(0xD134_2543_DE82_EF95_9E37_79B9_7F4A_7C15)))
        .find_map(|id| seen.insert(Tag::of(id), id).map(|before| [before, id]))
        .unwrap();
    assert_ne!(one, other);
    for worker in [0, 1] {
        let (router, _far) = router(&[ALPHA, ALPHA]);
        router.adopt(WorkerId(0), [Notice::Made { id: one }]);
        router.adopt(WorkerId(worker), [Notice::Made { id: other }]);
        let there = (Some(WorkerId(0)), Some(WorkerId(worker)));
        assert_eq!((router.locate(one), router.locate(other)), there);
        let gone = |id| Notice::Gone { id, tenant: NOBODY.mark(), why: Gone::Deleted };
        router.adopt(WorkerId(0), [gone(one)]);
        assert_eq!(router.locate(other), there.1);
        router.adopt(WorkerId(worker), [gone(other)]);
        assert_eq!((router.locate(one), router.locate(other)), (None, None));
    }
}

#[test]
fn a_full_worker_and_one_that_ended_are_told_apart() {
    let (router, mut far) = router(&[ALPHA]);
    let delete = || {
        let (id, reply) = (SessionId(1), oneshot::channel().0);
        Event::Pack(Pack { who: WHO, id, expected_position: None, reply })
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
    let (id, tenant) = (second, NOBODY);
    far.outboxes[0].send(Notice::Named { id, tenant, name }).unwrap();
    router.release_name(NOBODY, name, second);
    assert_eq!(router.named(NOBODY, name), Some(second), "it is written down");
    far.outboxes[0].send(Notice::Unnamed { id, tenant, name }).unwrap();
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
        WorkerHandle::new(model, "fake".to_owned(), 2, events, notices)
    });
    (Router::new(workers.collect()), far)
}

/// Goal: what another tenant has, or had, is answered as what has never been.
#[test]
fn tenants_do_not_learn_of_each_other() {
    let (router, far) = router(&[ALPHA]);
    let [mine, theirs] = ["tales", "verses"].map(TenantId::named);
    let id = SessionId(1);
    let who = |tenant, is_admin| Principal { tenant, is_admin };
    let name = Name::parse("prompt").unwrap();
    far.outboxes[0].send(Notice::Made { id }).unwrap();
    far.outboxes[0].send(Notice::Named { id, tenant: mine, name }).unwrap();
    assert_eq!((router.named(mine, name), router.named(theirs, name)), (Some(id), None));
    router.reserve_name(theirs, name, SessionId(2)).expect("names are each tenant's own");
    let why = Gone::Deleted;
    far.outboxes[0].send(Notice::Gone { id, tenant: mine.mark(), why }).unwrap();
    assert_eq!(router.gone(who(mine, false), id), Some(why));
    assert_eq!(router.gone(who(theirs, false), id), None);
    assert_eq!(router.gone(who(theirs, true), id), Some(why), "an admin is told");
}
