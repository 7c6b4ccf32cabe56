//! What a service does with classifiers: pictures are decoded here, and the worker with the least to do gets the rows.

use std::{sync::Arc, time::Instant};

use aerie_models::images::preprocessing::Preprocessing;
use aerie_proto::v1;
use bytes::Bytes;
use crossbeam::channel::TrySendError;
use tokio::{sync::oneshot, task::spawn_blocking};

use super::{Hex, Readiness, Service};
use crate::{
    admission::Reject,
    auth::Principal,
    classifier::{Event, Handle, Logits, Submission},
    oip::classify::{Classification, Given, Pixels, prepare},
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

/// What came of a request, and when it went where.
#[derive(Debug)]
pub struct Classified {
    pub logits: Logits,
    pub arrived: Instant,
    /// Its pictures were decoded by then.
    pub prepared: Instant,
}

impl Classifier {
    /// `K`.
    pub fn classes(&self) -> u32 {
        u32::try_from(self.labels.len()).expect("a manifest is not that long")
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
    /// # Errors
    /// See [`Reject`].
    pub async fn classify(
        &self,
        who: Principal,
        idx: usize,
        asked: &Classification,
    ) -> Result<Classified, Reject> {
        let classified = self.try_classify(who, idx, asked).await;
        classified.inspect_err(|reject| self.count_reject(reject))
    }

    async fn try_classify(
        &self,
        who: Principal,
        idx: usize,
        asked: &Classification,
    ) -> Result<Classified, Reject> {
        let parts = self.parts();
        let arrived = parts.clock.now();
        if *parts.readiness.borrow() != Readiness::Ready {
            return Err(parts.admission.unavailable());
        }
        let mut permit = parts.admission.admit(who.tenant)?;
        permit.generate()?;
        let Pixels { values, rows, extent } = match &asked.given {
            Given::Pixels(pixels) => pixels.clone(),
            Given::Pictures(pictures) => self.prepare(idx, pictures.clone()).await?,
        };
        let prepared = parts.clock.now();
        let workers = &parts.classifiers[idx].workers;
        let worker = workers.iter().min_by_key(|it| it.rows()).expect("every model has a worker");
        let (reply, answer) = oneshot::channel();
        let submission = Submission {
            pixels: values,
            rows,
            extent,
            priority: asked.priority,
            timeout: asked.timeout,
            arrived: prepared,
            reply,
            load: worker.load(rows),
            permit,
        };
        worker.send(Event::Classify(Box::new(submission))).map_err(|error| match error {
            TrySendError::Full(_) => parts.admission.queue_full(),
            TrySendError::Disconnected(_) => parts.admission.unavailable(),
        })?;
        let logits = answer.await.map_err(|_| parts.admission.unavailable())??;
        Ok(Classified { logits, arrived, prepared })
    }

    /// Decodes pictures away from the threads that serve sockets, of so many requests at once.
    async fn prepare(&self, idx: usize, pictures: Vec<Bytes>) -> Result<Pixels, Reject> {
        let setup = &self.parts().oip;
        let input = Arc::clone(&self.parts().classifiers[idx].input);
        let place = Arc::clone(&setup.decoders).acquire_owned().await;
        let place = place.map_err(|_| self.unavailable())?;
        let config = setup.config.pictures;
        let decoded = spawn_blocking(move || {
            let _place = place;
            prepare(&pictures, &input, &config)
        });
        let failed = Reject::Internal { what: "its pictures could not be decoded" };
        decoded.await.unwrap_or(Err(failed))
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
