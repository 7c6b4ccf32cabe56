//! Turns: heard to their end, twice, slowly, by many, not at all.

use std::time::Duration;

use aerie_client::v1::{self, FinishReason, SessionResidence};
use rand::Rng as _;
use tokio::time::{Instant, sleep};

use super::Visitor;
use crate::{
    listen::{Listener, PATIENCE, is_cut, knock},
    script::{Answer, Question},
    surprise::Surprise,
    town::{Counts, Guest},
};

/// Most readers of one session at a time.
const READERS_MAX: usize = 3;

impl Visitor {
    /// A turn, heard to its end with a pause after each event.
    pub(super) async fn turn(
        &mut self,
        guest: &mut Guest,
        pause: Duration,
    ) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        let client = self.client();
        let mut listener = Listener::generate(&self.town, &client, &start, &answer).await?;
        listener.pause = pause;
        whole(&mut listener, &answer).await?;
        guest.position = answer.end;
        Ok(())
    }

    /// The same request over both transports at once.
    pub(super) async fn twice(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        let town = &self.town;
        let heard = self.clients.each_ref().map(async |client| {
            let mut listener = Listener::generate(town, client, &start, &answer).await?;
            whole(&mut listener, &answer).await
        });
        let [a, b] = heard;
        tokio::try_join!(a, b)?;
        guest.position = answer.end;
        Ok(())
    }

    /// The same request once more when it has been answered.
    pub(super) async fn again(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        for _ in 0..2 {
            let client = self.client();
            let mut listener = Listener::generate(&self.town, &client, &start, &answer).await?;
            whole(&mut listener, &answer).await?;
            guest.position = answer.end;
        }
        Ok(())
    }

    /// A turn that others follow from anywhere.
    pub(super) async fn watched(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        let client = self.client();
        let n_readers = self.rng.random_range(1..=READERS_MAX);
        let from: Vec<_> =
            (0..n_readers).map(|_| self.rng.random_range(0..=answer.begin)).collect();
        let mut listener = Listener::generate(&self.town, &client, &start, &answer).await?;
        let (town, clients, id) = (&self.town, &self.clients, &guest.id);
        let reader = async |(n, from): (usize, usize)| {
            let mut reader =
                Listener::attach(town, &clients[n % 2], id, answer.script, from).await?;
            if !town.scripts[answer.script].is_boundary(from) {
                reader = reader.without_text();
            }
            let reason = reader.rest().await?;
            let is_whole = reader.position == answer.end;
            // Cut off by a kill, it is read again before its client has asked again.
            if is_whole || is_cut(reason) && answer.begin <= reader.position {
                return Ok(());
            }
            Err(Surprise::Reason { found: reason, position: reader.position, end: answer.end })
        };
        let readers = async {
            let mut readers = from.into_iter().enumerate();
            let [a, b, c] = [readers.next(), readers.next(), readers.next()]
                .map(async |it| if let Some(it) = it { reader(it).await } else { Ok(()) });
            tokio::try_join!(a, b, c)
        };
        tokio::try_join!(whole(&mut listener, &answer), readers)?;
        guest.position = answer.end;
        Ok(())
    }

    /// A turn that is ended amid.
    pub(super) async fn cancelled(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        let client = self.client();
        let until = self.rng.random_range(answer.drawn_from..=answer.end);
        let mut listener = Listener::generate(&self.town, &client, &start, &answer).await?;
        listener.until(until).await?;
        listener.cancel().await?;
        let reason = listener.rest().await?;
        let is_right = match reason {
            FinishReason::Cancelled => listener.position <= answer.end,
            reason => answer.may_end_for(reason) && listener.position == answer.end,
        };
        if !is_right {
            let (position, end) = (listener.position, answer.end);
            return Err(Surprise::Reason { found: reason, position, end });
        }
        guest.position = listener.position;
        Counts::one(&self.town.counts.cancelled);
        Ok(())
    }

    /// A stream that is dropped amid, and the request sent again.
    pub(super) async fn asked_again(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        self.drop_amid(&start, &answer).await?;
        let client = self.client();
        let mut listener = Listener::generate(&self.town, &client, &start, &answer).await?;
        whole(&mut listener, &answer).await?;
        guest.position = answer.end;
        Ok(())
    }

    /// A stream that is dropped amid, and the session followed from there.
    pub(super) async fn followed(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        let heard = self.drop_amid(&start, &answer).await?;
        let client = self.client();
        let (town, script) = (&self.town, answer.script);
        let mut reader = Listener::attach(town, &client, &guest.id, script, heard).await?;
        if !town.scripts[script].is_boundary(heard) {
            reader = reader.without_text();
        }
        let reason = reader.rest().await?;
        if reader.position == answer.end {
            guest.position = answer.end;
            return Ok(());
        }
        if !is_cut(reason) {
            let (position, end) = (reader.position, answer.end);
            return Err(Surprise::Reason { found: reason, position, end });
        }
        // The server went, and nobody asked again.
        guest.position = reader.position;
        Ok(())
    }

    /// A stream that is dropped amid, and never asked for again.
    pub(super) async fn left(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        let heard = self.drop_amid(&start, &answer).await?;
        let client = self.client();
        let began = Instant::now();
        let session = loop {
            let session = knock(&self.town, || client.session(&guest.id))
                .await
                .map_err(Surprise::call("where it stands"))?;
            if session.residence() != SessionResidence::Active {
                break session;
            }
            if PATIENCE < began.elapsed() {
                let (what, seconds) = ("the end of a generation", PATIENCE.as_secs());
                return Err(Surprise::Silence { what, seconds });
            }
            sleep(Duration::from_millis(50)).await;
        };
        let position = usize::try_from(session.position).unwrap_or(usize::MAX);
        if position < heard || answer.end < position {
            let what = "the position of a session that was left";
            return Err(Surprise::Number { what, expected: answer.end, found: position });
        }
        guest.position = position;
        self.read(guest).await
    }

    /// A fork of a session while it speaks.
    pub(super) async fn forked_amid(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let Question { start, answer } = self.question(guest);
        let client = self.client();
        let until = self.rng.random_range(answer.drawn_from..=answer.end);
        let town = std::sync::Arc::clone(&self.town);
        let mut listener = Listener::generate(&town, &client, &start, &answer).await?;
        listener.until(until).await?;
        let at = self.rng.random_range(1..=listener.position.max(1));
        let forked = self.fork_at(guest, at);
        let (fork, ()) = tokio::try_join!(forked, whole(&mut listener, &answer))?;
        guest.position = answer.end;
        self.town.put_back(fork);
        Ok(())
    }

    /// Reads a session from anywhere to where it stands.
    pub(crate) async fn read(&mut self, guest: &mut Guest) -> Result<(), Surprise> {
        let from = self.rng.random_range(0..=guest.position);
        let client = self.client();
        self.read_from(&client, guest, from).await
    }

    pub(crate) async fn read_from(
        &self,
        client: &aerie_client::Client,
        guest: &Guest,
        from: usize,
    ) -> Result<(), Surprise> {
        let (town, script) = (&self.town, guest.script);
        let mut reader = Listener::attach(town, client, &guest.id, script, from).await?;
        if !town.scripts[script].is_boundary(from) {
            reader = reader.without_text();
        }
        reader.rest().await?;
        Surprise::unless_equal(
            "the position that is read to",
            guest.position,
            reader.position as u64,
        )
    }

    /// What to ask a session next.
    pub(super) fn question(&mut self, guest: &mut Guest) -> Question {
        let n_tokens = match self.rng.random_range(0..10) {
            0 => 1,
            1..6 => self.rng.random_range(1..30),
            _ => self.rng.random_range(30..160),
        };
        let script = &self.town.scripts[guest.script];
        let Question { start, answer } = script.go_on(guest.script, guest.position, n_tokens);
        let (session_id, request_id) = (guest.id.clone(), self.request_id());
        guest.note(format!("  asks for {} to {} as {request_id}", answer.begin, answer.end));
        guest.used = self.town.use_now();
        Question { start: v1::Start { session_id, request_id, ..start }, answer }
    }

    /// Begins a generation and leaves; gives where it was left.
    async fn drop_amid(&mut self, start: &v1::Start, answer: &Answer) -> Result<usize, Surprise> {
        let client = self.client();
        let until = self.rng.random_range(answer.drawn_from..=answer.end);
        let mut listener = Listener::generate(&self.town, &client, start, answer).await?;
        listener.until(until).await?;
        Counts::one(&self.town.counts.dropped);
        Ok(listener.position)
    }
}

/// Hears an answer to its end, which must be the right one.
pub(super) async fn whole(listener: &mut Listener<'_>, answer: &Answer) -> Result<(), Surprise> {
    let reason = listener.rest().await?;
    if listener.position != answer.end || !answer.may_end_for(reason) {
        let (position, end) = (listener.position, answer.end);
        return Err(Surprise::Reason { found: reason, position, end });
    }
    let finished = listener.finished.as_ref().expect("it has ended");
    let n_generated = answer.end - answer.drawn_from;
    Surprise::unless_equal("generated_tokens", n_generated, finished.generated_tokens.into())?;
    Counts::one(&listener.town().counts.turns);
    Ok(())
}
