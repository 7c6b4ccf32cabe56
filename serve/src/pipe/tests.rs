use super::*;

#[test]
fn text_is_cut_between_characters_and_loses_nothing() {
    for text in ["", "short", &"🦊".repeat(40), &"aé⊙🦊".repeat(33)] {
        let pieces: Vec<Piece> = Piece::cut(text).collect();
        assert!(pieces.len() <= Piece::count_max(text.len()), "{} pieces", pieces.len());
        assert_eq!(pieces.iter().map(Piece::as_str).collect::<String>(), text);
    }
}

#[test]
fn room_is_what_the_reader_has_not_filled() {
    let (pipe, mut reader) = pipe(2);
    assert!(pipe.has_room(2) && !pipe.has_room(3));
    pipe.send_token(7, 1, "a");
    assert!(pipe.has_room(1) && !pipe.has_room(2));
    assert!(reader.receiver.try_recv().is_ok());
    assert!(pipe.has_room(2));
}

#[test]
fn a_reader_that_asks_to_cancel_still_reads() {
    let (pipe, reader) = pipe(1);
    assert!(!pipe.is_cancelled());
    reader.cancel();
    assert!(pipe.is_cancelled() && !pipe.is_closed());
}

#[test]
fn a_reader_that_goes_closes_the_pipe() {
    let (pipe, reader) = pipe(1);
    drop(reader);
    assert!(pipe.is_closed() && !pipe.is_cancelled(), "it did not ask to end anything");
    pipe.send_token(7, 1, "dropped");
    pipe.send_token(7, 2, "dropped");
}

#[test]
fn an_event_fills_one_cache_line() {
    assert!(size_of::<PipeEvent>() <= 64, "{} bytes", size_of::<PipeEvent>());
}
