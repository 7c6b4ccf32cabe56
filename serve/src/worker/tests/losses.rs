//! Rows that are damaged while the worker runs, which the simulation does not have.

use tokio::sync::oneshot;

use super::{
    super::*,
    peers::{Peer, TENANTS},
    simulation::SHAPE,
    world::{Shape, World},
};
use crate::{
    auth::TenantId,
    request::{Origin, Request},
    sampler::Sampling,
    sessions::row,
};

/// A row that nobody can read does not tell whose session it was. It counted for its tenant until the next start, and who had
/// its quota could do nothing about it.
#[test]
fn who_is_lost_counts_for_nobody_from_then_on() {
    let mut world = world(SHAPE, &[0, 0, 0, 1]);
    assert_eq!(counted(&world), [3, 1]);
    for id in [1, 2] {
        spoil(&mut world, SessionId(id));
    }
    assert_eq!(counted(&world), [3, 1], "nobody has looked yet");
    let unknown = |id| Err(Reject::UnknownSession { id, gone: None });
    assert_eq!(look(&mut world, SessionId(1), 0), unknown(SessionId(1)));
    assert_eq!(counted(&world), [1, 1], "the other is found with it");
    assert_eq!(world.worker.n_sessions(), 2);
    assert_eq!(look(&mut world, SessionId(2), 0), unknown(SessionId(2)));
    assert_eq!(look(&mut world, SessionId(3), 0).unwrap().id, SessionId(3));
    assert_eq!(counted(&world), [1, 1]);

    make(&mut world, SessionId(1), 0);
    assert_eq!(counted(&world), [2, 1], "its id is free");
}

#[test]
fn who_is_lost_may_be_the_one_to_give_way() {
    let mut world = world(Shape { sessions: 3, ..SHAPE }, &[0, 0, 1]);
    let oldest = world.worker.parts.store.oldest().unwrap().0;
    spoil(&mut world, oldest);
    make(&mut world, SessionId(9), 1);
    let tenant = usize::from(oldest == SessionId(3));
    let mut expected = [2, 2];
    expected[tenant] -= 1;
    assert_eq!((counted(&world), world.worker.n_sessions()), (expected, 3));
}

/// A server that was started again after it had made sessions 1, 2 and so on, of these tenants.
fn world(shape: Shape, tenants: &[usize]) -> World {
    let mut world = World::new(1, shape);
    for (id, &tenant) in (1..).zip(tenants) {
        make(&mut world, SessionId(id), tenant);
    }
    world.restart();
    world
}

fn make(world: &mut World, id: SessionId, tenant: usize) {
    let mut peer = Peer::new(id, tenant);
    let request = Request {
        who: peer.who,
        origin: Origin::Session,
        keep: true,
        prompt: vec![7],
        prompt_only: true,
        sampling: Sampling::GREEDY,
        seed: None,
        tokens_max: 1,
        stop: Vec::new(),
        expected_position: Some(0),
        request_id: id.to_string(),
        digest: Some(id.0),
    };
    peer.ask(request, &world.vocabulary);
    world.peers = vec![peer];
    world.send(0);
    let now = world.now;
    while world.worker.step(&|| now) == Progress::Stepped {}
    let Peer { turn, .. } = &mut world.peers[0];
    let reader = &mut turn.as_mut().unwrap().readers[0].reader;
    let events = std::iter::from_fn(|| reader.receiver.try_recv().ok());
    let last = events.last();
    assert!(matches!(last, Some(PipeEvent::Finished(_))), "{last:?}");
    world.peers.clear();
    while world.worker.step(&|| now) == Progress::Stepped {}
}

fn look(world: &mut World, id: SessionId, tenant: usize) -> Result<Standing, Reject> {
    let (reply, mut answer) = oneshot::channel();
    let look = Look { who: Peer::tenant(tenant), id, reply };
    world.worker.handle(Event::Look(look), world.now);
    answer.try_recv().unwrap()
}

/// Damages the row of a session that sleeps.
fn spoil(world: &mut World, id: SessionId) {
    let Worker { parts, sessions, .. } = &mut world.worker;
    assert!(parts.store.wake(sessions, id));
    let row = row::encode(&sessions.expect(id).record);
    parts.store.sleep(sessions, id);
    assert!(sessions.get(id).is_none(), "{id} is awake");
    let [rows, ..] = parts.store.storages_mut();
    rows.spoil(&row);
    world.is_spoilt = true;
}

fn counted(world: &World) -> [u32; 2] {
    TENANTS.map(|name| world.worker.parts.quotas.usage(TenantId::named(name)).sessions)
}
