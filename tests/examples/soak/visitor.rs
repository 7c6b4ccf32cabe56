//! One of many clients that do at random what clients do, over both transports.

mod changes;
mod turns;

use std::{sync::Arc, time::Duration};

use aerie_client::Client;
use rand::{Rng as _, seq::IndexedRandom as _};
use rand_chacha::ChaCha8Rng;
use tokio::time::sleep;

use crate::{
    surprise::Surprise,
    town::{Counts, Guest, Town},
};

/// A client with a connection of each kind.
#[derive(Debug)]
pub(crate) struct Visitor {
    pub(crate) town: Arc<Town>,
    pub(crate) clients: [Client; 2],
    pub(crate) rng: ChaCha8Rng,
}

/// What a visitor does next to a session.
#[derive(Clone, Copy, Debug)]
enum Deed {
    Turn,
    Slowly,
    Twice,
    Again,
    Watched,
    Cancelled,
    AskedAgain,
    Followed,
    Left,
    ForkedAmid,
    Read,
    Fork,
    Rewind,
    Name,
    Carry,
    Move,
    Delete,
    Stale,
}

/// How often each is done, in parts of their sum.
const DEEDS: &[(Deed, u32)] = &[
    (Deed::Turn, 24),
    (Deed::Slowly, 3),
    (Deed::Twice, 6),
    (Deed::Again, 6),
    (Deed::Watched, 8),
    (Deed::Cancelled, 6),
    (Deed::AskedAgain, 7),
    (Deed::Followed, 6),
    (Deed::Left, 5),
    (Deed::ForkedAmid, 5),
    (Deed::Read, 5),
    (Deed::Fork, 8),
    (Deed::Rewind, 10),
    (Deed::Name, 4),
    (Deed::Carry, 5),
    (Deed::Move, 6),
    (Deed::Delete, 4),
    (Deed::Stale, 3),
];

impl Visitor {
    /// Does one thing after the other until the town closes.
    pub(crate) async fn stay(mut self) {
        while !self.town.is_over() {
            let pause = Duration::from_millis(self.rng.random_range(0..60));
            sleep(pause).await;
            let has_room = self.town.n_idle() < self.town.limits.guests_max;
            let guest = if has_room && self.rng.random_bool(0.5) {
                None
            } else {
                let town = Arc::clone(&self.town);
                town.take(&mut self.rng)
            };
            self.visit(guest).await;
        }
        let [grpc, quic] = self.clients;
        grpc.close().await;
        quic.close().await;
    }

    /// Does something to a session, or makes one.
    async fn visit(&mut self, guest: Option<Guest>) {
        let is_new = guest.is_none();
        let mut guest = guest.unwrap_or_else(|| {
            let script = self.rng.random_range(0..self.town.scripts.len());
            self.town.newcomer(script, 0)
        });
        let deed = if is_new { Deed::Turn } else { self.deed(&guest) };
        guest.note(format!("{deed:?} at {}", guest.position));
        let (name, used) = (guest.name.clone(), guest.used);
        let done = self.run(deed, &mut guest).await;
        match done {
            Ok(true) => self.town.put_back(guest),
            Ok(false) => {}
            Err(surprise)
                if surprise.is_not_found() && self.town.may_be_forgotten(name.as_deref(), used) =>
            {
                Counts::one(&self.town.counts.forgotten);
            }
            Err(surprise) => self.town.surprised(Some(&guest), &surprise),
        }
    }

    fn deed(&mut self, guest: &Guest) -> Deed {
        let is_at_end = guest.position == self.town.scripts[guest.script].len();
        if guest.position == 0 {
            return Deed::Turn;
        }
        loop {
            let (deed, _) =
                *DEEDS.choose_weighted(&mut self.rng, |it| it.1).expect("some weigh something");
            let goes_on = !matches!(
                deed,
                Deed::Read
                    | Deed::Fork
                    | Deed::Rewind
                    | Deed::Name
                    | Deed::Carry
                    | Deed::Move
                    | Deed::Delete
            );
            if !(is_at_end && goes_on) {
                return deed;
            }
        }
    }

    /// Whether the session is still there afterwards.
    async fn run(&mut self, deed: Deed, guest: &mut Guest) -> Result<bool, Surprise> {
        match deed {
            Deed::Turn => self.turn(guest, Duration::ZERO).await?,
            Deed::Slowly => self.turn(guest, Duration::from_millis(40)).await?,
            Deed::Twice => self.twice(guest).await?,
            Deed::Again => self.again(guest).await?,
            Deed::Watched => self.watched(guest).await?,
            Deed::Cancelled => self.cancelled(guest).await?,
            Deed::AskedAgain => self.asked_again(guest).await?,
            Deed::Followed => self.followed(guest).await?,
            Deed::Left => self.left(guest).await?,
            Deed::ForkedAmid => self.forked_amid(guest).await?,
            Deed::Read => self.read(guest).await?,
            Deed::Fork => self.fork(guest).await?,
            Deed::Rewind => self.rewind(guest).await?,
            Deed::Name => self.name(guest).await?,
            Deed::Carry => self.carry(guest).await?,
            Deed::Move => self.bring(guest).await?,
            Deed::Stale => self.stale(guest).await?,
            Deed::Delete => {
                self.delete(guest).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One of the two connections.
    fn client(&mut self) -> Client {
        self.clients.choose(&mut self.rng).expect("there are two").clone()
    }

    fn request_id(&self) -> String {
        format!("request {}", self.town.number())
    }
}
