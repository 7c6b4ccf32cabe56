use proptest::prelude::*;

use super::*;
use crate::testing::hosted;

fn manifest() -> Manifest {
    hosted().manifest
}

fn parcel() -> Parcel {
    let manifest = manifest();
    let state_bytes = usize::try_from(manifest.layout().bytes()).unwrap();
    let record = Record { keep: true, position: 9, seed: 4, ..Record::default() };
    Parcel {
        record,
        used_at: 0,
        state: Some((7, (0..=250).cycle().take(state_bytes).collect())),
        log_from: 2,
        log: (0..7).map(|it| if it < 3 { Word::prompt(it) } else { Word::drawn(it) }).collect(),
    }
}

const ID: SessionId = SessionId(0x1234);

#[test]
fn a_session_survives_its_file() {
    let manifest = manifest();
    let file = seal(&manifest, ID, &parcel());
    assert_eq!(open(&manifest, &file), Ok((ID, parcel())));
    assert!(file.len() as u64 <= bytes_max(&manifest, 7));
    let log = (0..9).map(Word::drawn).collect();
    let fresh = Parcel { state: None, log_from: 0, log, ..parcel() };
    assert_eq!(open(&manifest, &seal(&manifest, ID, &fresh)), Ok((ID, fresh)));
}

#[test]
fn what_differs_is_named() {
    let file = seal(&manifest(), ID, &parcel());
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest();
        manifest.ops = [("rg_lru".to_owned(), 3)].into();
        change(&mut manifest);
        match open(&manifest, &file) {
            Err(SealedError::Differs { field, .. }) => field,
            _ => panic!("it is not refused for a field that differs"),
        }
    };
    assert_eq!(refused(&|_| {}), "ops.rg_lru");
    assert_eq!(refused(&|it| it.model.recurrence_width *= 2), "layout.0");
    assert_eq!(refused(&|it| it.model.layers -= 1), "layout");
    let other_weights = |it: &mut Manifest| {
        it.ops.clear();
        it.files.insert("model.onnx".to_owned(), "other".to_owned());
    };
    assert_eq!(refused(&other_weights), "fingerprint");
}

#[test]
fn a_file_that_is_cut_or_longer_or_damaged_is_refused() {
    let manifest = manifest();
    let file = seal(&manifest, ID, &parcel());
    for len in 0..file.len() {
        assert!(open(&manifest, &file[..len]).is_err(), "{len} bytes");
    }
    let longer = [&file[..], &[0]].concat();
    assert_eq!(open(&manifest, &longer), Err(SealedError::TooLong { found_bytes: 1 }));
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0x40;
        assert!(open(&manifest, &damaged).is_err(), "byte {at}");
    }
}

/// A file may be sealed and yet say what no session can be.
#[test]
fn impossible_sessions_are_refused() {
    let manifest = manifest();
    let refused = |parcel: Parcel| open(&manifest, &seal(&manifest, ID, &parcel)).unwrap_err();
    let field = |field| SealedError::Field { field };
    assert_eq!(refused(Parcel { log_from: 3, ..parcel() }), field("log"));
    let vocab = manifest.model.vocab;
    let log = vec![Word::drawn(vocab); 7];
    assert_eq!(refused(Parcel { log, ..parcel() }), field("log"));
    assert_eq!(refused(Parcel { state: None, ..parcel() }), field("state"));
    let state = |computed, extra| {
        let (_, mut bytes) = parcel().state.unwrap();
        bytes.extend(vec![0; extra]);
        Parcel { state: Some((computed, bytes)), ..parcel() }
    };
    for parcel in [state(1, 0), state(10, 0), state(0, 0), state(7, 1)] {
        assert_eq!(refused(parcel), field("state"));
    }
}

proptest! {
    /// Goal: bytes from outside are refused or a session, and nothing else.
    #[test]
    fn any_bytes_do_no_harm(start in 0..=16_usize, bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let manifest = manifest();
        let mut file = seal(&manifest, ID, &parcel())[..start].to_vec();
        file.extend(bytes);
        let seal = *blake3::hash(&file).as_bytes();
        file.extend(seal);
        let _ = open(&manifest, &file);
    }
}
