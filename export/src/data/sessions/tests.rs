//! Sessions begin as a server begins them, and as much text is counted as there are tokens for.

use std::fs;

use super::*;
use crate::emit::tokenizer_bytes;

const VOCAB: u32 = 300;

#[test]
fn documents_begin_and_end_with_the_boundary() {
    let sessions = read("ab\n<|endoftext|>cd", Documents::Files).in_order(encoder(&bytes()), all());
    let sessions = sessions.unwrap();
    assert_eq!(sessions.len(), 2);
    for (session, text_bytes) in sessions.iter().zip([3, 2]) {
        assert_eq!(session.ids.first(), Some(&0));
        assert_eq!(session.ids.last(), Some(&0));
        assert_eq!(session.text_bytes, text_bytes);
    }
}

#[test]
fn text_of_tokens_that_are_cut_off_is_not_counted() {
    let text = read("Zz\u{e4}Zz", Documents::Files);
    let check = |tokens, text_bytes| {
        let amount = Amount { asked: Some(tokens), ..all() };
        let sessions = text.in_order(encoder(&bytes()), amount).unwrap();
        assert_eq!(sessions[0].ids.len(), tokens);
        assert_eq!(sessions[0].text_bytes, text_bytes, "{tokens} tokens");
    };
    // The boundary, then one token for each byte; the two of `ä` stand for it together.
    check(2, 1);
    check(3, 2);
    check(5, 4);
    check(7, 6);
    // The boundary behind the document stands for nothing.
    check(8, 6);
}

#[test]
fn first_character_is_not_predicted_where_nothing_comes_before_it() {
    let tokenizer = tokenizer::train_characters(&["abc".to_owned()]).unwrap();
    let sessions = read("cab", Documents::Files).in_order(encoder(&tokenizer), all()).unwrap();
    assert_eq!(sessions, [Session { ids: vec![2, 0, 1], text_bytes: 2 }]);
}

#[test]
fn pieces_are_the_whole_text_and_end_with_lines() {
    let line = format!("{}\n", "word ".repeat(99));
    let text = line.repeat(40);
    let cut = pieces(&text);
    assert_eq!(cut.concat(), text);
    assert!(2 < cut.len() && cut.iter().all(|it| it.len() <= PIECE_BYTES && it.ends_with('\n')));

    let text = "\u{e4}".repeat(PIECE_BYTES);
    assert_eq!(pieces(&text).concat(), text);
    assert_eq!(pieces(""), [""; 0]);
}

#[test]
fn pieces_come_from_all_over_the_text_in_one_order() {
    let text: String = (0..4000).map(|line| format!("line {line}\n")).collect();
    let text = read(&text, Documents::Files);
    let amount = Amount { asked: Some(4000), ..all() };
    let tokenizer = bytes();
    let sessions = text.here_and_there(encoder(&tokenizer), amount).unwrap();
    assert_eq!(sessions.iter().map(|it| it.ids.len()).sum::<usize>(), 4000);
    assert!(sessions.iter().all(|it| it.ids[0] == 0));
    let again = text.here_and_there(encoder(&tokenizer), amount).unwrap();
    assert_eq!(again, sessions);
    let in_order = text.in_order(encoder(&tokenizer), amount).unwrap();
    assert_ne!(in_order[0].ids[..9], sessions[0].ids[..9]);
}

#[test]
fn what_does_not_fit_is_named_with_its_limit() {
    let text = read("abc", Documents::Files);
    let check = |amount, vocab, expected: &str| {
        let encoder = Encoder { tokenizer: &bytes(), vocab };
        let error = text.in_order(encoder, amount).unwrap_err().to_string();
        assert!(error.ends_with(expected), "{error}");
    };
    check(Amount { min: 6, ..all() }, VOCAB, "5 tokens; at least 6 are needed");
    let asked = Some(7);
    check(Amount { asked, ..all() }, VOCAB, "5 tokens; --tokens asks for 7");
    check(Amount { asked: Some(1), ..all() }, VOCAB, "--tokens is 1; 2 to 16777216 are supported");
    check(all(), 2, ", but the model's vocab is 2");
}

fn all() -> Amount {
    Amount { asked: None, default: TOKENS_MAX, min: 2 }
}

fn read(text: &str, documents: Documents) -> Text {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.txt");
    fs::write(&path, text).unwrap();
    Text::read(&path, documents).unwrap()
}

fn bytes() -> Tokenizer {
    Tokenizer::from_bytes(tokenizer_bytes(VOCAB)).unwrap()
}

fn encoder(tokenizer: &Tokenizer) -> Encoder<'_> {
    Encoder { tokenizer, vocab: VOCAB }
}
