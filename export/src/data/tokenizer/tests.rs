use super::*;

const TEXT: &str = "The tale: a wolf, a wolf's tail.\n\n  Ünïcode \u{1F43A}\ttoo";

#[track_caller]
fn check_round_trip(tokenizer: &Tokenizer, text: &str) {
    let ids = tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
}

#[test]
fn bytes_give_back_any_text_to_the_byte() {
    let tokenizer = train_bytes(&[TEXT.repeat(3)], 270).unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), 270);
    assert_eq!(boundary(&tokenizer), Some(0));
    for text in [TEXT, " leading", "trailing ", "漢字 never seen"] {
        check_round_trip(&tokenizer, text);
    }
}

#[test]
fn characters_are_tokens_in_the_order_of_code_points() {
    let tokenizer = train_characters(&[TEXT.to_owned()]).unwrap();
    check_round_trip(&tokenizer, TEXT);
    assert_eq!(boundary(&tokenizer), None);
    let ids = tokenizer.encode("\t\n", false).unwrap().get_ids().to_vec();
    assert_eq!(ids, [0, 1]);
}

#[test]
fn vocabulary_that_cannot_be_is_refused_with_the_limit() {
    let text = [TEXT.to_owned()];
    let error = train_bytes(&text, 256).unwrap_err().to_string();
    assert!(error.starts_with("vocab is 256;") && error.contains("257"), "{error}");
    let error = train_bytes(&text, 4096).unwrap_err().to_string();
    assert!(error.contains("but vocab is 4096"), "{error}");
}
