use expect_test::expect;

use super::*;
use crate::{Fault, FaultyStorage};

const CONFIG: TapeConfig =
    TapeConfig { tapes_max: 3, cells_max: 300, fingerprint: Fingerprint([7; 32]) };
const TAPE: Tape = Tape { number: 1, owner: 0xA };

fn tapes() -> Tapes<FaultyStorage> {
    Tapes::open_on(FaultyStorage::default(), CONFIG).expect("nothing is in the way")
}

fn words(places: Range<u64>) -> Vec<u32> {
    places.map(|at| u32::try_from(at * 7 % 1000).expect("small")).collect()
}

fn read<S: Storage>(tapes: &Tapes<S>, tape: Tape, places: Range<u64>) -> Option<Vec<u32>> {
    let mut into = vec![99];
    match tapes.read(tape, places, &mut into) {
        Ok(()) => Some(into.split_off(1)),
        Err(_) => {
            assert_eq!(into, [99], "nothing is appended by a failure");
            None
        }
    }
}

#[test]
fn what_was_written_is_read() {
    let mut tapes = tapes();
    tapes.write(TAPE, 0, 0, &words(0..290)).expect("written");
    tapes.write(TAPE, 0, 290, &words(290..310)).expect("written");
    assert_eq!(read(&tapes, TAPE, 10..310), Some(words(10..310)));
    assert_eq!(read(&tapes, TAPE, 9..20), None, "the ring holds 300");
    assert_eq!(read(&tapes, TAPE, 300..311), None, "never written");
    assert_eq!(read(&tapes, TAPE, 50..50), Some(vec![]));
}

#[test]
fn of_too_many_words_the_last_are_kept() {
    let mut tapes = tapes();
    tapes.write(TAPE, 0, 5, &words(5..1000)).expect("written");
    assert_eq!(read(&tapes, TAPE, 700..1000), Some(words(700..1000)));
    assert_eq!(read(&tapes, TAPE, 699..1000), None);
}

#[test]
fn tapes_and_owners_are_apart() {
    let mut tapes = tapes();
    for number in 0..3 {
        let tape = Tape { number, owner: number.into() };
        tapes.write(tape, 0, 0, &[number; 20]).expect("written");
    }
    for number in 0..3 {
        let tape = Tape { number, owner: number.into() };
        assert_eq!(read(&tapes, tape, 0..20), Some(vec![number; 20]));
        assert_eq!(read(&tapes, Tape { owner: 99, ..tape }, 0..1), None);
    }
    tapes.clear(1).expect("cleared");
    assert_eq!(read(&tapes, Tape { number: 1, owner: 1 }, 0..1), None);
    assert_eq!(read(&tapes, Tape { number: 2, owner: 2 }, 0..20), Some(vec![2; 20]));
}

#[test]
fn the_tail_ends_where_its_branch_does() {
    let mut tapes = tapes();
    tapes.write(TAPE, 0, 0, &words(0..100)).expect("written");
    assert_eq!(tapes.tail(TAPE, 0, 40).expect("read"), words(40..100));
    tapes.write(TAPE, 1, 40, &[1, 2, 3]).expect("written");
    assert_eq!(tapes.tail(TAPE, 1, 40).expect("read"), [1, 2, 3], "and not what was there before");
    assert_eq!(tapes.tail(TAPE, 2, 40).expect("read"), [0; 0]);
    assert_eq!(
        read(&tapes, TAPE, 38..44),
        Some(vec![266, 273, 1, 2, 3, 301]),
        "read tells no branches"
    );
}

#[test]
fn a_full_ring_has_a_tail_of_its_size() {
    let mut tapes = tapes();
    tapes.write(TAPE, 3, 1000, &words(1000..1300)).expect("written");
    assert_eq!(tapes.tail(TAPE, 3, 1000).expect("read"), words(1000..1300));
    assert_eq!(tapes.tail(TAPE, 3, 999).expect("read"), [0; 0], "that place has been written over");
}

#[test]
fn a_copy_leaves_out_what_is_lost_and_all_before() {
    let mut tapes = tapes();
    let to = Tape { number: 2, owner: 0xB };
    tapes.write(TAPE, 0, 0, &words(0..310)).expect("written");
    assert_eq!(tapes.copy(TAPE, to, 5, 0..200).expect("copied"), 10);
    assert_eq!(read(&tapes, to, 10..200), Some(words(10..200)));
    assert_eq!(tapes.tail(to, 5, 150).expect("read"), words(150..200));
    let damaged = usize::try_from(CONFIG.offset(1, 150)).expect("small");
    tapes.storage_mut().bytes_mut()[damaged] ^= 1;
    tapes.clear(2).expect("cleared");
    assert_eq!(tapes.copy(TAPE, to, 6, 0..200).expect("copied"), 151);
    assert_eq!(read(&tapes, to, 151..200), Some(words(151..200)));
    assert_eq!(read(&tapes, to, 150..151), None);
    assert_eq!(tapes.copy(TAPE, to, 6, 305..400).expect("copied"), 400, "it has none of the last");
}

#[test]
fn a_kill_within_a_write_leaves_a_whole_tail() {
    for torn_at in 0..=10 * CELL_BYTES {
        let mut tapes = tapes();
        tapes.write(TAPE, 0, 0, &words(0..5)).expect("written");
        let write = tapes.storage_mut().n_writes();
        tapes.storage_mut().set_fault(Some(Fault { write, torn_at, is_last: true }));
        let written = tapes.write(TAPE, 0, 5, &words(5..15));
        assert!(written.is_err(), "the fault is scripted");
        let storage = tapes.into_storage().killed();
        let tapes = Tapes::open_on(storage, CONFIG).expect("it is the same file");
        let n_whole = (torn_at + 4).min(10 * CELL_BYTES) / CELL_BYTES;
        let tail = tapes.tail(TAPE, 0, 3).expect("read");
        assert_eq!(tail, words(3..5 + n_whole as u64), "torn at {torn_at}");
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let mut tapes = tapes();
    tapes.write(TAPE, 0, 0, &words(0..3)).expect("written");
    let cell = usize::try_from(CONFIG.offset(1, 1)).expect("small");
    for bit in 0..8 * CELL_BYTES {
        tapes.storage_mut().bytes_mut()[cell + bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&tapes, TAPE, 0..3), None, "bit {bit}");
        tapes.storage_mut().bytes_mut()[cell + bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(read(&tapes, TAPE, 0..3), Some(words(0..3)));
}

#[test]
fn foreign_files_are_refused() {
    let whole = tapes().into_storage();
    let open = |config| Tapes::open_on(whole.clone(), config).expect_err("it differs").to_string();
    expect!["header field `tapes_max` is 3, 4 is expected"]
        .assert_eq(&open(TapeConfig { tapes_max: 4, ..CONFIG }));
    expect!["header field `cells_max` is 300, 301 is expected"]
        .assert_eq(&open(TapeConfig { cells_max: 301, ..CONFIG }));
    let fingerprint = open(TapeConfig { fingerprint: Fingerprint([8; 32]), ..CONFIG });
    assert!(fingerprint.starts_with("header field `fingerprint` is 0707"), "{fingerprint}");
    expect!["config field `cells_max` is 0"]
        .assert_eq(&open(TapeConfig { cells_max: 0, ..CONFIG }));
    for at in 0..HEADER_BYTES {
        let mut storage = whole.clone();
        storage.bytes_mut()[at] ^= 0x10;
        assert!(Tapes::open_on(storage, CONFIG).is_err(), "byte {at}");
    }
    let mut short = whole.clone();
    short.bytes_mut().pop();
    assert!(matches!(Tapes::open_on(short, CONFIG), Err(OpenError::Size { .. })));
}

#[test]
fn a_file_whose_making_was_cut_short_is_made_again() {
    for torn_at in 0..HEADER_BYTES {
        let mut left = tapes().into_storage().bytes_mut().clone();
        left[torn_at..].fill(0);
        assert!(Tapes::open_on(FaultyStorage::new(left), CONFIG).is_ok(), "torn at {torn_at}");
    }
}

#[test]
fn a_file_gives_back_what_was_cleared() {
    use std::os::unix::fs::MetadataExt as _;

    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = folder.path().join("tapes");
    let config = TapeConfig { cells_max: 1 << 16, ..CONFIG };
    let mut tapes = Tapes::open(&path, config).expect("opened");
    let blocks = || std::fs::metadata(&path).expect("it exists").blocks();
    tapes.write(TAPE, 0, 0, &words(0..1 << 16)).expect("written");
    tapes.flush().expect("flushed");
    let before = blocks();
    tapes.clear(TAPE.number).expect("cleared");
    assert_eq!(read(&tapes, TAPE, 0..1), None);
    tapes.flush().expect("flushed");
    assert!(blocks() < before / 2, "{before} blocks before, {} after", blocks());
    assert!(matches!(Tapes::open(&path, config), Err(OpenError::Locked)));
    drop(tapes);
    Tapes::open(&path, config).expect("opened again");
}
