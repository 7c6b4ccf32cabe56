//! What a service does with classifiers: pictures are decoded here, and the worker with the least to do gets the rows.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use aerie_models::images::preprocessing::Preprocessing;
use aerie_proto::v1;
use bytes::Bytes;
use crossbeam::channel::TrySendError;
use tokio::{
    sync::oneshot,
    task::{JoinSet, spawn_blocking},
    time::timeout,
};

use super::{Hex, Readiness, Service};
use crate::{
    admission::{Permit, Reject},
    auth::Principal,
    batcher::Extent,
    classifier::{Event, Expiry, Handle, Load, Logits, Submission},
    oip::{
        classify::{Classification, Given, Pixels, Reply, Takes, prepare},
        statistics::Total,
    },
    sessions::Fingerprint,
};

/// A classifier that is served.
#[derive(Debug)]
pub struct Classifier {
    pub name: String,
    pub family: String,
    pub fingerprint: Fingerprint,
    pub parameters: u64,
    /// What is done to a picture before the graph.
    pub input: Arc<Preprocessing>,
    /// Of the classes; at least one.
    pub labels: Vec<String>,
    /// One for each device.
    pub workers: Vec<Handle>,
}

/// What came of a request, and how long that took.
#[derive(Debug)]
pub struct Classified {
    pub logits: Logits,
    /// How it wants to be answered.
    pub reply: Reply,
    pub arrived: Instant,
    /// For a decoder, and for the device.
    pub waited: Duration,
    /// To decode its pictures.
    pub decoded: Duration,
}

/// What a request holds until it is over, whether or not somebody waits for it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) load: Load,
    pub(super) permit: Permit,
}

/// A request whose pixels are there.
#[derive(Debug)]
pub(super) struct Prepared {
    pixels: Pixels,
    held: Held,
    /// When its pictures were begun to be decoded.
    began: Instant,
}

/// Says whether what is done is wanted still.
pub(super) type GoesOn<'a> = &'a dyn Fn() -> Result<(), Reject>;

impl Classifier {
    /// `K`.
    pub fn classes(&self) -> u32 {
        u32::try_from(self.labels.len()).expect("a manifest is not that long")
    }

    /// What it takes, where a batch has at most so many rows.
    pub fn takes(&self, rows_max: u32) -> Takes {
        let usual = Extent { height: self.input.height, width: self.input.width };
        Takes { classes: self.classes(), rows_max, usual }
    }

    /// What its workers have run, by rows of the batch.
    pub fn runs(&self) -> BTreeMap<u32, Total> {
        let mut runs = BTreeMap::<u32, Total>::new();
        for worker in &self.workers {
            for (&rows, &total) in &*worker.board().runs() {
                *runs.entry(rows).or_default() += total;
            }
        }
        runs
    }

    /// The worker with the least to do.
    fn worker(&self) -> &Handle {
        let worker = self.workers.iter().min_by_key(|it| it.board().load());
        worker.expect("a server has a device")
    }

    pub(super) fn describe(&self) -> v1::Model {
        v1::Model {
            name: self.name.clone(),
            family: self.family.clone(),
            parameters: self.parameters,
            fingerprint: Hex(&self.fingerprint).to_string(),
            classes: self.classes(),
            ..v1::Model::default()
        }
    }
}

impl Service {
    /// The classifier of that name, and its number.
    pub fn classifier(&self, name: &str) -> Option<(usize, &Classifier)> {
        self.parts().classifiers.iter().enumerate().find(|(_, it)| it.name == name)
    }

    /// Runs a request to classifier number `idx`. Dropping the future takes it out of the queue.
    ///
    /// It runs in a task of its own, so that it goes on where the future is not polled, as when a client does not read:
    /// decoders are handed to who waits first, and one that is handed to a future at rest would be lost to all.
    ///
    /// # Errors
    /// See [`Reject`].
    pub async fn classify(
        &self,
        who: Principal,
        idx: usize,
        asked: Classification,
    ) -> Result<Classified, Reject> {
        let mut task = JoinSet::new();
        let service = self.clone();
        task.spawn(async move { service.try_classify(who, idx, asked).await });
        let failed = Reject::Internal { what: "its classification broke off" };
        let classified = task.join_next().await.expect("it was spawned").unwrap_or(Err(failed));
        classified.inspect_err(|reject| self.count_reject(reject))
    }

    async fn try_classify(
        &self,
        who: Principal,
        idx: usize,
        asked: Classification,
    ) -> Result<Classified, Reject> {
        let Classification { given, priority, timeout, reply: wanted } = asked;
        let parts = self.parts();
        let arrived = parts.clock.now();
        let expiry = Expiry { since: arrived, timeout };
        let worker = parts.classifiers[idx].worker();
        // Before it is seen whether the server drains: a worker that does waits for what counts as its load.
        let load = worker.load(given.weight());
        if *parts.readiness.borrow() != Readiness::Ready {
            return Err(parts.admission.unavailable());
        }
        let held = Held { load, permit: parts.admission.classify(who.tenant)? };
        let Prepared { pixels, held, began } = match given {
            Given::Pixels(pixels) => Prepared { pixels, held, began: arrived },
            Given::Pictures(pictures) => self.prepare(idx, pictures, held, expiry).await?,
        };
        let prepared = parts.clock.now();
        let (reply, answer) = oneshot::channel();
        let Held { load, permit } = held;
        let submission =
            Submission { pixels, priority, expiry, arrived: prepared, reply, load, permit };
        worker.send(Event::Classify(Box::new(submission))).map_err(|error| match error {
            TrySendError::Full(_) => parts.admission.queue_full(),
            TrySendError::Disconnected(_) => parts.admission.unavailable(),
        })?;
        let logits = answer.await.map_err(|_| parts.admission.unavailable())??;
        let (waited, decoded) = (began - arrived + logits.queue, prepared - began);
        Ok(Classified { logits, reply: wanted, arrived, waited, decoded })
    }

    /// Decodes pictures for classifier number `idx`.
    async fn prepare(
        &self,
        idx: usize,
        pictures: Vec<Bytes>,
        held: Held,
        expiry: Expiry,
    ) -> Result<Prepared, Reject> {
        let config = self.parts().oip.config.pictures;
        let input = Arc::clone(&self.parts().classifiers[idx].input);
        let decode = move |goes_on: GoesOn<'_>| prepare(&pictures, &input, &config, goes_on);
        self.decode(held, expiry, decode).await
    }

    /// Decodes away from the threads that serve sockets, for so many requests at once. Once begun, what is held is given
    /// back when that has ended, which is soon if nobody waits for it any more.
    pub(super) async fn decode(
        &self,
        held: Held,
        expiry: Expiry,
        decode: impl FnOnce(GoesOn<'_>) -> Result<Pixels, Reject> + Send + 'static,
    ) -> Result<Prepared, Reject> {
        let clock = self.parts().clock;
        let place = Arc::clone(&self.parts().oip.decoders).acquire_owned();
        let place = match expiry.at() {
            None => place.await,
            Some(at) => {
                let left = at.saturating_duration_since(clock.now());
                timeout(left, place).await.map_err(|_| expiry.reject())?
            }
        };
        let place = place.map_err(|_| self.unavailable())?;
        let (reply, prepared) = oneshot::channel();
        let decode = move || {
            let _place = place;
            let began = clock.now();
            let goes_on = || match reply.is_closed() {
                true => Err(Reject::Internal { what: "its client has gone" }),
                false => expiry.check(clock.now()),
            };
            let pixels = decode(&goes_on);
            // Who has gone needs no answer.
            reply.send(pixels.map(|pixels| Prepared { pixels, held, began })).ok();
        };
        spawn_blocking(decode);
        let failed = Reject::Internal { what: "its pictures could not be decoded" };
        prepared.await.unwrap_or(Err(failed))
    }

    /// Why a generation names no model that generates.
    pub(super) fn no_generator(&self, name: &str) -> Reject {
        let problem = match self.classifier(name) {
            Some(_) => format!(
                "{name:?} classifies pictures and generates nothing; ask it over the Open Inference Protocol"
            ),
            None if name.is_empty() => "is needed: no model here generates".to_owned(),
            None => return Reject::UnknownModel { name: name.to_owned() },
        };
        Reject::Invalid { field: "model", problem }
    }
}
