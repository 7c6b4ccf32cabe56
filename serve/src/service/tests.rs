//! A service whose worker is the test itself.

use aerie_models::images::preprocessing::{Interpolation, Preprocessing, Resize};
use std::future::{Future as _, poll_fn};

use crossbeam::channel::{Receiver, bounded};
use tokio::task::yield_now;
use tokio_stream::StreamExt as _;

use super::{
    classify::{GoesOn, Held},
    *,
};
use crate::{
    admin::Admin,
    admission::{self, Wait},
    batcher::{Extent, Priority},
    classifier,
    oip::classify::{Classification, Given, Pixels, Reply},
    pipe::{Accepted, Finished, Piece},
    router::WorkerHandle,
    testing::hosted,
};

#[tokio::test]
async fn a_slow_reader_gets_fewer_and_larger_deltas() {
    let (service, events) = service();
    let (stream, submission) =
        tokio::join!(service.generate(Principal::ANONYMOUS, start("abc")), accept(&events));
    let mut stream = stream.unwrap();
    for (token, position, text) in [(1, 3, "a"), (2, 4, "b"), (3, 5, "c")] {
        submission.pipe.send_token(token, position, text);
    }
    submission.pipe.send(PipeEvent::Text(Piece::cut("d").next().unwrap()));
    submission.pipe.send(PipeEvent::Finished(finished()));
    assert!(matches!(stream.next().await, Some(TokenEvent::Accepted(_))));
    let Some(TokenEvent::Delta(delta)) = stream.next().await else { panic!("no delta") };
    assert_eq!((delta.ids, delta.text, delta.position), (vec![1, 2, 3], "abcd".to_owned(), 3));
    assert!(matches!(stream.next().await, Some(TokenEvent::Finished(_))));
    assert_eq!(stream.next().await, None);
    assert_eq!(
        stream.queue(),
        Duration::from_micros(7),
        "its worker knows how long it waited for a lane"
    );
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_counted_as_a_refusal() {
    let (service, events) = service();
    let (stream, submission) =
        tokio::join!(service.generate(Principal::ANONYMOUS, start("abc")), accept(&events));
    let mut stream = stream.unwrap();
    submission.pipe.send(PipeEvent::Failed(Reject::Internal { what: "a step" }));
    assert!(matches!(stream.next().await, Some(TokenEvent::Accepted(_))));
    assert!(matches!(stream.next().await, Some(TokenEvent::Failed(_))));
    assert_eq!(stream.next().await, None);
    assert_eq!(rejected(&service, "internal"), 1);
}

#[tokio::test]
async fn a_worker_that_dies_fails_its_streams() {
    let (service, events) = service();
    let (stream, submission) =
        tokio::join!(service.generate(Principal::ANONYMOUS, start("abc")), accept(&events));
    drop(submission);
    let last = stream.unwrap().collect::<Vec<_>>().await.pop();
    assert!(matches!(last, Some(TokenEvent::Failed(Reject::Unavailable { .. }))), "{last:?}");
}

#[tokio::test]
async fn refusals_say_what_is_wrong_and_are_counted() {
    let (service, _events) = service();
    let unknown = v1::Start { model: "huge".to_owned(), ..start("abc") };
    let nobody = SessionId(1).to_string();
    let stale = v1::Start { session_id: nobody, ..start("abc") };
    let garbled = v1::Start { session_id: "x".to_owned(), ..start("abc") };
    for (start, label) in
        [(unknown, "unknown_model"), (stale, "unknown_session"), (garbled, "invalid")]
    {
        let reject = service.generate(Principal::ANONYMOUS, start).await.unwrap_err();
        assert_eq!(reject.kind().label(), label);
        assert_eq!(rejected(&service, label), 1);
    }
    assert_eq!(service.in_flight(), 0, "refusals give their places back");
}

#[tokio::test]
async fn readiness_goes_forward_only_and_a_draining_server_refuses() {
    let (service, _events) = service();
    service.set_readiness(Readiness::Draining);
    service.set_readiness(Readiness::Ready);
    assert_eq!(*service.readiness().borrow(), Readiness::Draining);
    let reject = service.generate(Principal::ANONYMOUS, start("abc")).await.unwrap_err();
    assert!(matches!(reject, Reject::Unavailable { .. }), "{reject}");
}

/// Goal: what is classified counts for the worker that gets it from the start, and takes no generation's place.
#[tokio::test]
async fn classifications_are_counted_apart_from_generations() {
    let (service, inbox) = classifying();
    let asked = classification(Given::Pixels(pixels()), None);
    let classified = service.classify(Principal::ANONYMOUS, 0, asked);
    let worker = async {
        let submission = loop {
            match inbox.try_recv() {
                Ok(classifier::Event::Classify(submission)) => break submission,
                Ok(event) => panic!("{event:?}"),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let counts = (load(&service), service.parts().admission.classifying(), service.in_flight());
        assert_eq!(counts, (2, 1, 0));
        assert!(service.render_metrics().contains("serve_classifications 1"));
        assert_eq!(Admin::new(service.clone(), 1).drain(None), 1, "it is to finish");
        let (queue, run) = (Duration::from_millis(3), Duration::from_millis(5));
        let classifier::Submission { reply, .. } = *submission;
        reply.send(Ok(classifier::Logits { values: vec![1.0], queue, run })).unwrap();
    };
    let (classified, ()) = tokio::join!(classified, worker);
    let Classified { waited, decoded, .. } = classified.unwrap();
    assert_eq!((waited, decoded < waited), (Duration::from_millis(3), true));
    assert_eq!((load(&service), service.parts().admission.classifying()), (0, 0));

    let asked = classification(Given::Pixels(pixels()), None);
    let refused = service.classify(Principal::ANONYMOUS, 0, asked).await.unwrap_err();
    assert!(matches!(refused, Reject::Unavailable { .. }), "{refused}");
    assert_eq!(load(&service), 0);
}

/// Goal: `timeout` bounds the wait for a decoder, and decoding, as it does the wait for the device.
#[tokio::test]
async fn pictures_are_not_decoded_for_longer_than_somebody_waits() {
    let (service, _inbox) = classifying();
    let n = u32::try_from(service.parts().oip.decoders.available_permits()).unwrap();
    let pictures = || Given::Pictures(vec![bytes::Bytes::from_static(b"GIF89a")]);
    let decoders = Arc::clone(&service.parts().oip.decoders);
    let busy = decoders.acquire_many(n).await.unwrap();
    let max = Duration::from_micros(1);
    for _ in 0..2 {
        let asked = classification(pictures(), Some(max));
        let refused = service.classify(Principal::ANONYMOUS, 0, asked).await.unwrap_err();
        assert_eq!(refused, Reject::Expired { wait: Wait::Device, max });
        assert_eq!((load(&service), service.parts().admission.classifying()), (0, 0));
    }
    drop(busy);
    let asked = classification(pictures(), None);
    let refused = service.classify(Principal::ANONYMOUS, 0, asked).await.unwrap_err();
    assert!(refused.to_string().contains("neither JPEG nor PNG"), "{refused}");
    assert_eq!((load(&service), service.parts().admission.classifying()), (0, 0));
}

/// A decoder that fell free was handed to a request whose stream was not read, and so was polled no more: it took it, and
/// nobody's pictures were decoded from then on.
#[tokio::test]
async fn who_is_not_polled_keeps_no_decoder() {
    let (service, _inbox) = classifying();
    // It fails where it would wait for ever.
    let timeout = Some(Duration::from_secs(60));
    let asked = || {
        let pictures = Given::Pictures(vec![bytes::Bytes::from_static(b"GIF89a")]);
        service.classify(Principal::ANONYMOUS, 0, classification(pictures, timeout))
    };
    let busy = service.parts().oip.decoders.acquire().await.unwrap();
    let mut at_rest = Box::pin(asked());
    assert!(poll_fn(|cx| Poll::Ready(at_rest.as_mut().poll(cx).is_pending())).await);
    let fall_free = async {
        yield_now().await;
        drop(busy);
    };
    let (answered, ()) = tokio::join!(asked(), fall_free);
    for refused in [answered, at_rest.await] {
        let refused = refused.unwrap_err();
        assert!(refused.to_string().contains("neither JPEG nor PNG"), "{refused}");
    }
}

/// Goal: decoding ends when nobody waits for it any more, and what it holds is held until then.
/// Method: a decoder that says when it has begun, and waits.
#[tokio::test]
async fn decoding_for_nobody_ends_and_counts_until_then() {
    let (service, _inbox) = classifying();
    let Parts { admission, classifiers, clock, oip, .. } = service.parts();
    let permit = admission.classify(TenantId::ANONYMOUS).unwrap();
    let held = Held { load: classifiers[0].workers[0].load(1), permit };
    let expiry = classifier::Expiry { since: clock.now(), timeout: None };
    let ((began, begun), (told, went_on)) = (oneshot::channel(), oneshot::channel());
    let (release, held_up) = bounded(1);
    let decode = move |goes_on: GoesOn<'_>| {
        began.send(goes_on()).unwrap();
        held_up.recv().unwrap();
        told.send(goes_on()).unwrap();
        goes_on()?;
        Ok(pixels())
    };
    let mut decoding = Box::pin(service.decode(held, expiry, decode));
    tokio::select! {
        _ = &mut decoding => panic!("it is held up"),
        begun = begun => assert_eq!(begun.unwrap(), Ok(())),
    }
    drop(decoding);
    assert_eq!((load(&service), admission.classifying()), (1, 1));
    assert_eq!(oip.decoders.available_permits(), 0);
    release.send(()).unwrap();
    let went_on = went_on.await.unwrap();
    assert!(matches!(went_on, Err(Reject::Internal { .. })), "{went_on:?}");
    let _decoder = oip.decoders.acquire().await.unwrap();
    assert_eq!((load(&service), admission.classifying()), (0, 0));
}

/// A service with a classifier of one class, whose worker is the test, and one decoder.
fn classifying() -> (Service, Receiver<classifier::Event>) {
    let (events, inbox) = bounded(2);
    let input = Preprocessing {
        height: 32,
        width: 32,
        resize: Resize::None,
        crop_share: 1.0,
        interpolation: Interpolation::Bilinear,
        mean: [0.0; 3],
        std: [1.0; 3],
    };
    let classifier = Classifier {
        name: "pictures".to_owned(),
        family: String::new(),
        fingerprint: hosted().fingerprint,
        parameters: 0,
        input: Arc::new(input),
        labels: vec!["a".to_owned()],
        workers: vec![classifier::Handle::new("fake".to_owned(), events)],
    };
    (service_with(vec![classifier]).0, inbox)
}

fn load(service: &Service) -> u32 {
    service.parts().classifiers[0].workers[0].board().load()
}

fn pixels() -> Pixels {
    let extent = Extent { height: 64, width: 32 };
    Pixels { values: vec![0.0; 3 * 64 * 32], rows: 1, extent, weight: 2 }
}

fn classification(given: Given, timeout: Option<Duration>) -> Classification {
    let (priority, reply) = (Priority::High, Reply::default());
    Classification { given, priority, timeout, reply }
}

fn service() -> (Service, Receiver<Event>) {
    service_with(Vec::new())
}

fn service_with(classifiers: Vec<Classifier>) -> (Service, Receiver<Event>) {
    let (events, inbox) = bounded(2);
    let notices = bounded(1).1;
    let service = Service::new(Parts {
        auth: Auth::default(),
        models: vec![hosted()],
        classifiers,
        router: Router::new(vec![WorkerHandle::new(0, "fake".to_owned(), 2, events, notices)]),
        admission: Admission::new(admission::Config { requests_max: 2, retry_after_ms: 1 }),
        request: request::Config::default(),
        log_tokens_max: 64,
        rows_max: 16,
        pipe: pipe::Config::default(),
        oip: oip::Setup::new(
            oip::Config {
                pictures: oip::classify::Config { decoders_max: 1, ..<_>::default() },
                ..<_>::default()
            },
            oip::sequence::SequenceKey::default(),
        ),
        metrics: Metrics::new(),
        readiness: watch::channel(Readiness::Ready).0,
        clock: Clock::start(),
    });
    (service, inbox)
}

/// Takes the generation that has just been submitted and says that it has begun.
async fn accept(events: &Receiver<Event>) -> Box<Submission> {
    let submission = loop {
        match events.try_recv() {
            Ok(Event::Open(submission)) => break submission,
            Ok(event) => panic!("{event:?}"),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    submission.pipe.send(PipeEvent::Accepted(Box::new(Accepted {
        session: submission.id,
        position: 0,
        resumed_tokens: 0,
        prompt_tokens: 3,
        seed: 1,
        recomputed_tokens: 0,
        recompute_reason: None,
        prefix_tokens: 0,
        prefix_miss: None,
        repeated: false,
    })));
    submission
}

fn start(prompt: &str) -> v1::Start {
    let prompt = Some(v1::start::Prompt::Text(prompt.to_owned()));
    v1::Start { prompt, ..v1::Start::default() }
}

fn finished() -> Finished {
    Finished {
        reason: FinishReason::Length,
        position: 6,
        prompt_tokens: 3,
        generated_tokens: 3,
        queue_us: 7,
        time_to_first_token: Duration::ZERO,
        duration: Duration::ZERO,
    }
}

fn rejected(service: &Service, label: &str) -> u64 {
    service.metrics().requests_rejected.with_label_values(&[label]).get()
}
