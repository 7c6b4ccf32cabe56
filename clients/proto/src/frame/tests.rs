use proptest::prelude::*;

use super::{Decoder, FRAME_BYTES_MAX, FrameError, encode};
use crate::v1;

proptest! {
    /// Goal: the network may cut the bytes anywhere.
    /// Method: feed a stream of deltas in pieces of arbitrary sizes, compare what comes out.
    #[test]
    fn messages_survive_any_cut(
        texts in prop::collection::vec(".{0,40}", 0..8),
        pieces in prop::collection::vec(1..64_usize, 1..16),
    ) {
        let sent: Vec<_> = texts.into_iter().map(delta).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(|it| encode(it).unwrap()).collect();

        let mut decoder = Decoder::default();
        let mut received = Vec::new();
        let mut rest = bytes.as_slice();
        for piece in pieces.iter().cycle() {
            let (head, tail) = rest.split_at(rest.len().min(*piece));
            decoder.push(head);
            while let Some(message) = decoder.message::<v1::Delta>().unwrap() {
                received.push(message);
            }
            rest = tail;
            if rest.is_empty() {
                break;
            }
        }
        decoder.finish().unwrap();
        prop_assert_eq!(received, sent);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.message::<v1::GenerateRequest>() {}
    }
}

#[test]
fn oversized_frame_is_refused_at_its_prefix() {
    let mut decoder = Decoder::default();
    decoder.push(&u32::MAX.to_be_bytes());
    let error = decoder.message::<v1::Delta>().unwrap_err();
    assert_eq!(error.to_string(), "frame of 4294967295 bytes, but a frame has at most 1048576");
}

#[test]
fn largest_message_fits_and_one_byte_more_is_refused() {
    let overhead_bytes = encoded_len("a".repeat(FRAME_BYTES_MAX)) - FRAME_BYTES_MAX;
    let largest = delta("a".repeat(FRAME_BYTES_MAX - overhead_bytes));
    let mut decoder = Decoder::default();
    decoder.push(&encode(&largest).unwrap());
    assert_eq!(decoder.message().unwrap(), Some(largest));

    let error = encode(&delta("a".repeat(FRAME_BYTES_MAX - overhead_bytes + 1))).unwrap_err();
    assert!(matches!(error, FrameError::TooLarge { .. }), "{error}");
}

#[test]
fn bytes_that_are_no_message_are_malformed() {
    let mut decoder = Decoder::default();
    decoder.push(&[0, 0, 0, 2, 0xff, 0xff]);
    let error = decoder.message::<v1::Delta>().unwrap_err();
    assert!(matches!(error, FrameError::Malformed(_)), "{error}");
}

#[test]
fn end_within_a_frame_is_truncation() {
    let mut decoder = Decoder::default();
    decoder.push(&encode(&delta("tale".to_owned())).unwrap()[..5]);
    assert_eq!(decoder.message::<v1::Delta>().unwrap(), None);
    assert_eq!(decoder.finish(), Err(FrameError::Truncated { found_bytes: 5 }));
}

fn delta(text: String) -> v1::Delta {
    v1::Delta { text, ids: vec![7], position: 3 }
}

fn encoded_len(text: String) -> usize {
    prost::Message::encoded_len(&delta(text))
}
