//! Names of sequences, and the sessions that they are.

use std::collections::{HashMap, HashSet};

use aerie_proto::inference::InferParameter;

use super::*;

/// Goal: a sequence is found again after a restart, and by nobody who has another key, tenant, model or name.
#[test]
fn a_sequence_is_the_same_session_as_long_as_the_key_is() {
    let dir = tempfile::tempdir().unwrap();
    let [key, again] = [0; 2].map(|_| SequenceKey::open(dir.path()).unwrap());
    let other = SequenceKey::default();
    let (ours, theirs) = (TenantId::named("ours"), TenantId::named("theirs"));
    let (one, text) = (SequenceName::Number(1), SequenceName::Text("1".to_owned()));
    let id = key.session(ours, "m", &one);
    assert_eq!(again.session(ours, "m", &one), id);
    let others = [
        other.session(ours, "m", &one),
        key.session(theirs, "m", &one),
        key.session(ours, "n", &one),
        key.session(ours, "m", &SequenceName::Number(2)),
        key.session(ours, "m", &text),
    ];
    let distinct: HashSet<_> = others.into_iter().chain([id]).collect();
    assert_eq!(distinct.len(), 6);
    assert_eq!(&id.to_string()[14..15], "8", "the version of {id}");
}

#[test]
fn a_file_that_is_no_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for length in [0, 31, 33] {
        fs::write(dir.path().join(FILE), vec![0; length]).unwrap();
        let error = SequenceKey::open(dir.path()).unwrap_err();
        assert!(matches!(error, KeyError::Length { .. }), "{error}");
    }
}

#[test]
fn names_are_numbers_or_texts_and_0_is_none() {
    use ParameterChoice::{BoolParam, Int64Param, StringParam, Uint64Param};

    let take = |name: ParameterChoice| {
        let start = InferParameter { parameter_choice: Some(BoolParam(true)) };
        let name = InferParameter { parameter_choice: Some(name) };
        let parameters = [("sequence_id".to_owned(), name), ("sequence_start".to_owned(), start)];
        let mut parameters = Parameters::new(HashMap::from(parameters), 4)?;
        let sequence = Sequence::take(&mut parameters)?;
        parameters.finish()?;
        Ok::<_, Reject>(sequence)
    };
    let begun = |name| Some(Sequence { name, starts: true, ends: false });
    assert_eq!(take(Int64Param(-3)).unwrap(), begun(SequenceName::Number(-3)));
    assert_eq!(take(Uint64Param(u64::MAX)).unwrap(), begun(SequenceName::Number(u64::MAX.into())));
    assert_eq!(
        take(StringParam("a".to_owned())).unwrap(),
        begun(SequenceName::Text("a".to_owned()))
    );
    assert_eq!(take(Int64Param(0)).unwrap(), None);
    assert_eq!(take(StringParam(String::new())).unwrap(), None);
    take(BoolParam(true)).unwrap_err();
    take(StringParam("a".repeat(NAME_BYTES_MAX + 1))).unwrap_err();
}
