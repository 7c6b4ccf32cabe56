//! Forks, rewinds, names, files, deletions, and questions that must be refused.

use aerie_client::{Code, Error, v1};
use rand::{Rng as _, seq::IndexedRandom as _};
use tokio_stream::StreamExt as _;

use super::{Visitor, turns::whole};
use crate::{
    listen::{Listener, knock},
    script::Question,
    surprise::Surprise,
    town::{Counts, Guest},
};

impl Visitor {
    /// A fork anywhere, some of which must be refused.
    pub(super) async fn fork(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let at = self.rng.random_range(1..=guest.position);
        let mut fork = self.fork_at(guest, at).await?;
        if self.rng.random_bool(0.7) && at < self.town.scripts[fork.script].len() {
            self.turn(&mut fork, std::time::Duration::ZERO).await?;
        }
        self.town.put_back(fork);
        if self.rng.random_bool(0.2) {
            let beyond = v1::ForkSessionRequest {
                session_id: guest.id.clone(),
                position: Some(guest.position as u64 + 1),
                ..Default::default()
            };
            let client = self.client();
            let answer = knock(&self.town, || client.fork_session(beyond.clone())).await;
            self.must_refuse("a fork beyond the end", answer.map(drop), Code::OutOfRange)?;
        }
        Ok(())
    }

    /// Makes a fork, now and then by asking twice.
    pub(super) async fn fork_at(&mut self, guest: &Guest, at: usize) -> Result<Guest, Surprise> {
        let mut fork = self.town.newcomer(guest.script, at);
        fork.note(format!("Fork of {} at {at}", guest.id));
        let request = v1::ForkSessionRequest {
            session_id: guest.id.clone(),
            position: Some(at as u64),
            new_session_id: fork.id.clone(),
            expected_position: None,
            request_id: self.request_id(),
        };
        for _ in 0..self.rng.random_range(1..=2) {
            let client = self.client();
            let session = knock(&self.town, || client.fork_session(request.clone()))
                .await
                .map_err(Surprise::call("a fork"))?;
            Surprise::unless_equal("the fork's position", at, session.position)?;
        }
        Counts::one(&self.town.counts.forks);
        Ok(fork)
    }

    /// Takes a session back, now and then by asking twice.
    pub(super) async fn rewind(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let to = match self.rng.random_range(0..8) {
            0 => 0,
            1..4 => guest.position - self.rng.random_range(0..=guest.position.min(8)),
            _ => self.rng.random_range(0..=guest.position),
        };
        let request = v1::RewindSessionRequest {
            session_id: guest.id.clone(),
            position: to as u64,
            expected_position: Some(guest.position as u64),
            request_id: self.request_id(),
        };
        guest.note(format!("  to {to} as {}", request.request_id));
        guest.used = self.town.use_now();
        for _ in 0..self.rng.random_range(1..=2) {
            let client = self.client();
            let session = knock(&self.town, || client.rewind_session(request.clone()))
                .await
                .map_err(Surprise::call("a rewind"))?;
            Surprise::unless_equal("the position after a rewind", to, session.position)?;
            guest.position = to;
        }
        Counts::one(&self.town.counts.rewinds);
        Ok(())
    }

    /// Brings a session to a device, maybe the one where it is; amid a turn if there is more to say.
    pub(super) async fn bring(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Some(device) = self.town.limits.devices.choose(&mut self.rng).cloned() else {
            return Ok(());
        };
        guest.note(format!("  to {device}"));
        let session_id = guest.id.clone();
        let request = v1::MoveSessionRequest { session_id, device, expected_position: None };
        let (client, town) = (self.client(), std::sync::Arc::clone(&self.town));
        let moving = async || knock(&town, || client.move_session(request.clone())).await;
        let is_at_end = guest.position == self.town.scripts[guest.script].len();
        let moved = if is_at_end || self.rng.random_bool(0.5) {
            moving().await
        } else {
            let (turn, moved) = tokio::join!(self.turn(guest, std::time::Duration::ZERO), moving());
            turn?;
            moved
        };
        moved.map_err(Surprise::call("a move"))?;
        Counts::one(&self.town.counts.moves);
        Ok(())
    }

    /// Gives a name and forks by it, or takes the name away.
    pub(super) async fn name(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let client = self.client();
        if guest.name.is_none() && !self.town.may_name() {
            return Ok(());
        }
        let name = match guest.name {
            None => format!("tale-{}", self.town.number()),
            Some(_) => String::new(),
        };
        let request = v1::NameSessionRequest {
            session_id: guest.id.clone(),
            name: name.clone(),
            expected_position: Some(guest.position as u64),
        };
        let session = knock(&self.town, || client.name_session(request.clone()))
            .await
            .map_err(Surprise::call("a name"))?;
        Surprise::unless_equal("the position of a name", guest.position, session.position)?;
        Counts::one(&self.town.counts.names);
        guest.note(format!("  is called {name:?}"));
        if name.is_empty() {
            self.town.unname();
        }
        guest.name = (!name.is_empty()).then_some(name);
        if guest.name.is_some() && guest.position < self.town.scripts[guest.script].len() {
            self.fork_by_name(guest).await?;
        }
        Ok(())
    }

    /// A generation that begins as a fork of a name.
    async fn fork_by_name(&mut self, guest: &Guest) -> Result<(), Surprise> {
        let mut fork = self.town.newcomer(guest.script, guest.position);
        let Question { start, answer } = self.question(&mut fork);
        let fork_of = guest.name.clone().unwrap_or_default();
        let start = v1::Start { fork_of, expected_position: None, ..start };
        let client = self.client();
        let mut listener = Listener::generate(&self.town, &client, &start, &answer).await?;
        whole(&mut listener, &answer).await?;
        fork.position = answer.end;
        Counts::one(&self.town.counts.forks);
        self.town.put_back(fork);
        Ok(())
    }

    /// Takes a session out as a file and brings it in again, under its own id or another.
    pub(super) async fn carry(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let client = self.client();
        let export = v1::ExportSessionRequest {
            session_id: guest.id.clone(),
            expected_position: Some(guest.position as u64),
        };
        let file = knock(&self.town, || client.export_session(export.clone()))
            .await
            .map_err(Surprise::call("an export"))?;
        let is_moved = guest.name.is_none() && self.rng.random_bool(0.5);
        let mut copy = if is_moved {
            self.delete(guest).await?;
            let mut copy = self.town.newcomer(guest.script, guest.position);
            copy.id.clone_from(&guest.id);
            copy
        } else {
            self.town.newcomer(guest.script, guest.position)
        };
        copy.note(format!("Import of {} at {}", guest.id, guest.position));
        let start = v1::ImportStart { session_id: copy.id.clone(), request_id: self.request_id() };
        for _ in 0..self.rng.random_range(1..=2) {
            let client = self.client();
            let session = knock(&self.town, || client.import_session(start.clone(), file.clone()))
                .await
                .map_err(Surprise::call("an import"))?;
            Surprise::unless_equal("the import's position", copy.position, session.position)?;
        }
        Counts::one(&self.town.counts.carried);
        if is_moved {
            *guest = copy;
        } else {
            self.town.put_back(copy);
        }
        Ok(())
    }

    /// Has a session forgotten, after which it must not be there.
    pub(super) async fn delete(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let client = self.client();
        let request = v1::DeleteSessionRequest {
            session_id: guest.id.clone(),
            expected_position: Some(guest.position as u64),
        };
        match knock(&self.town, || client.delete_session(request.clone())).await {
            // It is gone already: the answer to an earlier attempt was lost.
            Err(error) if error.code() == Code::NotFound => {}
            answer => answer.map_err(Surprise::call("a deletion"))?,
        }
        let gone = knock(&self.town, || client.session(&guest.id)).await;
        self.must_refuse("a session that was deleted", gone.map(drop), Code::NotFound)?;
        if guest.name.take().is_some() {
            self.town.unname();
        }
        Counts::one(&self.town.counts.deleted);
        Ok(())
    }

    /// A turn for another position must be refused, with the true one; then the right one is taken.
    pub(super) async fn stale(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        let elsewhere = guest.position as u64 + self.rng.random_range(1..9);
        let expected_position = Some(elsewhere);
        let request_id = self.request_id();
        let wrong = v1::Start { expected_position, request_id, ..start.clone() };
        let client = self.client();
        let refused = knock(&self.town, || async {
            // Over gRPC the refusal may be the stream's first word.
            match client.generate(wrong.clone()).await?.next().await {
                Some(Err(error)) => Err(error),
                _ => Ok(()),
            }
        });
        match refused.await {
            Err(Error::Rejected { reason, position, .. }) if reason == "STALE_POSITION" => {
                Surprise::unless_equal(
                    "the position of a refusal",
                    guest.position,
                    position.unwrap_or(u64::MAX),
                )?;
            }
            Err(source) => return Err(Surprise::Call { what: "a stale turn", source }),
            Ok(()) => return Err(Surprise::NotRefused { what: "a turn from elsewhere" }),
        }
        Counts::one(&self.town.counts.refused);
        let mut listener = Listener::generate(&self.town, &client, &start, &answer).await?;
        whole(&mut listener, &answer).await?;
        guest.position = answer.end;
        Ok(())
    }

    fn must_refuse(
        &self,
        what: &'static str,
        answer: Result<(), Error>,
        code: Code,
    ) -> Result<(), Surprise> {
        match answer {
            Err(error) if error.code() == code => {
                Counts::one(&self.town.counts.refused);
                Ok(())
            }
            Err(source) => Err(Surprise::Call { what, source }),
            Ok(()) => Err(Surprise::NotRefused { what }),
        }
    }
}
