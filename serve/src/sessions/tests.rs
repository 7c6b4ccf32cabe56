use super::*;

#[test]
fn session_ids_are_uuids() {
    let id = SessionId::random();
    assert_eq!(SessionId::parse(&id.to_string()), Some(id));
    assert_eq!(SessionId::parse("nobody"), None);
}

#[test]
fn names_are_short_and_plain_and_no_ids() {
    for name in ["a", "system-prompt.v2_B", &"x".repeat(Name::BYTES_MAX)] {
        assert_eq!(Name::parse(name).unwrap().as_str(), name);
    }
    for (name, error) in [
        ("", NameError::Length { found_bytes: 0 }),
        (&*"x".repeat(65), NameError::Length { found_bytes: 65 }),
        ("a b", NameError::Character(' ')),
        ("../x", NameError::Character('/')),
        (&*SessionId(7).to_string(), NameError::Id),
    ] {
        assert_eq!(Name::parse(name), Err(error), "{name:?}");
    }
}

/// Goal: whatever a session has passed, it can be taken back to any place by computing little of it again: the
/// further back, the more, but never much beside the way back itself.
#[test]
fn states_are_dense_at_the_end_and_spread_out_before() {
    const MAX: usize = 16;
    let mut record = Record::default();
    for key in 1..=1000 {
        let computed = 64 * key;
        let dropped = record.push_state(StateRef { key, computed }, MAX);
        let n = usize::try_from(key).unwrap();
        assert_eq!(dropped.is_some(), MAX < n, "{key}");
        assert_eq!(record.states.len(), MAX.min(n));
        assert_eq!(record.kept(), computed, "the latest is never dropped");
    }
    let head = record.kept();
    for back in 1..head {
        let state = record.state_within(head - back).map_or(0, |it| it.computed);
        let again = head - back - state;
        assert!(
            again <= 64 + back + back / 2,
            "{again} tokens to go back {back}: {:?}",
            record.states
        );
    }
}

#[test]
fn words_tell_prompts_from_draws() {
    for token in [0, 1, 255_999, (1 << 31) - 1] {
        for (word, is_prompt) in [(Word::prompt(token), true), (Word::drawn(token), false)] {
            let word = Word::from_bits(word.bits());
            assert_eq!((word.token(), word.is_prompt()), (token, is_prompt));
        }
    }
}
