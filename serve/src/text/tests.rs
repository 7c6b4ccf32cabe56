use aerie_fuzz::{Format, Fuzz};

use super::*;
use crate::testing::TOKENIZER_JSON;

#[test]
fn characters_cut_anywhere_come_out_whole() {
    let text = "né ⊙ 🦊 ok";
    for cut in 0..=text.len() {
        let (head, tail) = text.as_bytes().split_at(cut);
        let mut utf8 = Utf8Tail::default();
        let mut out = String::new();
        utf8.push(head, &mut out);
        assert!(text.starts_with(&out), "cut at {cut}: {out:?}");
        utf8.push(tail, &mut out);
        assert_eq!(out, text, "cut at {cut}");
        assert_eq!(utf8, Utf8Tail::default(), "cut at {cut}");
    }
}

/// Goal: any bytes, cut anywhere, give what a decoder of the whole gives.
/// Method: every string of four bytes out of an alphabet of awkward ones, byte by byte.
#[test]
fn invalid_bytes_become_replacement_characters_wherever_they_are_cut() {
    let alphabet = [b'a', 0x80, 0xC3, 0xE2, 0x8A, 0xF0, 0x9F, 0xFF];
    for n in 0..alphabet.len().pow(4) {
        let bytes = [0, 1, 2, 3].map(|i| alphabet[n / alphabet.len().pow(i) % alphabet.len()]);
        let mut utf8 = Utf8Tail::default();
        let mut out = String::new();
        for byte in bytes {
            utf8.push(&[byte], &mut out);
        }
        if 0 < utf8.len {
            out.push(char::REPLACEMENT_CHARACTER);
        }
        assert_eq!(out, String::from_utf8_lossy(&bytes), "{bytes:x?}");
    }
}

#[test]
fn a_tail_survives_its_bytes() {
    let mut tail = Utf8Tail::default();
    tail.push(&"🦊".as_bytes()[..3], &mut String::new());
    assert_eq!(Utf8Tail::from_bytes(tail.as_bytes()), Some(tail));
    assert_eq!(Utf8Tail::from_bytes(b"a"), None);
    assert_eq!(Utf8Tail::from_bytes(&[0xFF]), None);
    assert_eq!(Utf8Tail::from_bytes(&[]), Some(Utf8Tail::default()));
}

#[test]
fn fuzzed_tokenizers_are_taken_or_refused() {
    let fuzz = Fuzz {
        name: "served-tokenizer",
        format: Format::Text,
        seeds: vec![TOKENIZER_JSON.as_bytes().to_vec()],
        words: &[
            b"ByteLevel",
            b"ByteFallback",
            b"Sequence",
            b"Split",
            b"Regex",
            b"(a+)+",
            b"Unigram",
        ],
    };
    fuzz.run(|json| {
        let Ok(tokenizer) = Tokenizer::parse(json) else { return false };
        let Ok(vocabulary) = tokenizer.vocabulary(64) else { return false };
        assert_eq!(vocabulary.len(), 64);
        for token in 0..64 {
            assert!(vocabulary.bytes(token).len() <= vocabulary.token_bytes_max());
        }
        drop(tokenizer.encode("a cat, né ⊙ 🦊 <|endoftext|> ok", Place::First));
        true
    });
}

#[test]
fn a_stop_string_is_found_however_the_text_is_cut() {
    check_stop(&["end"], "the friend said", "the fri", true);
    check_stop(&["aab"], "aaab", "a", true);
    check_stop(&["\n\n"], "one\ntwo\n", "one\ntwo\n", false);
    check_stop(&["xyz", "é!"], "caf é! xyz", "caf ", true);
    check_stop(&["abcd", "bc"], "abcx", "a", true);
    check_stop(&[], "anything", "anything", false);
}

#[test]
fn only_a_possible_beginning_is_held_back() {
    let mut matcher = StopMatcher::new(vec!["stop".to_owned()]);
    let mut out = String::new();
    assert!(!matcher.push("we st", &mut out));
    assert_eq!(out, "we ");
    assert!(!matcher.push("art", &mut out));
    assert_eq!(out, "we start");
}

#[test]
fn byte_level_symbols_stand_for_all_bytes() {
    let mut seen: Vec<u8> = (0..0x150).filter_map(char::from_u32).filter_map(byte_of).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..=u8::MAX).collect::<Vec<_>>());
    assert_eq!(byte_of('Ġ'), Some(b' '));
    assert_eq!(byte_of('Ċ'), Some(b'\n'));
}

#[test]
fn control_tokens_have_no_text_and_are_not_reachable_from_prompts() {
    let tokenizer = Tokenizer::parse(crate::testing::TOKENIZER_JSON.as_bytes()).unwrap();
    let vocabulary = tokenizer.vocabulary(64).unwrap();
    assert_eq!(vocabulary.end_of_text(), Some(0));
    assert_eq!(vocabulary.bytes(0), b"");
    assert_eq!(vocabulary.len(), 64);
    let prompt = tokenizer.encode("<|endoftext|>", Place::First).unwrap();
    assert!(!prompt.contains(&0), "{prompt:?}");
    assert!(matches!(tokenizer.vocabulary(2), Err(TokenizerError::Vocab { vocab: 2, .. })));
}

#[test]
fn sentence_pieces_become_bytes_and_begin_a_session() {
    let json = r##"{
        "added_tokens": [
            {"id": 0, "content": "<eos>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": 1, "content": "<bos>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": 2, "content": "▁▁", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": true, "special": false}],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [1], "tokens": ["<bos>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "byte_fallback": true, "merges": [["▁", "a"]],
            "vocab": {"<eos>": 0, "<bos>": 1, "▁▁": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5, "a": 6,
                "▁a": 7}}}"##;
    let tokenizer = Tokenizer::parse(json.as_bytes()).unwrap();
    assert_eq!(tokenizer.encode(" aé  a", Place::First).unwrap(), [1, 7, 3, 4, 2, 6]);
    assert_eq!(tokenizer.encode(" a", Place::Later).unwrap(), [7]);
    let vocabulary = tokenizer.vocabulary(9).unwrap();
    assert_eq!(vocabulary.end_of_text(), Some(0));
    let expected: [&[u8]; 9] = [b"", b"", b"  ", b"\xc3", b"\xa9", b" ", b"a", b" a", b""];
    for (token, expected) in std::iter::zip(0.., expected) {
        assert_eq!(vocabulary.bytes(token), expected, "token {token}");
    }
}

#[track_caller]
fn check_stop(stops: &[&str], text: &str, expected: &str, stopped: bool) {
    let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
    for cut in (0..=text.len()).filter(|&cut| text.is_char_boundary(cut)) {
        let mut matcher = StopMatcher::new(stops.clone());
        let mut out = String::new();
        let met = matcher.push(&text[..cut], &mut out) || matcher.push(&text[cut..], &mut out);
        if !met {
            matcher.flush(&mut out);
        }
        assert_eq!((out.as_str(), met), (expected, stopped), "cut at {cut}");
    }
}
