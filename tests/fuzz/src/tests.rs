//! That what is wrong with a reader is found, named, and found again.

use std::{cell::RefCell, hint::black_box};

use super::*;

#[test]
fn reader_that_panics_is_caught_with_its_input() {
    let dir = dir("panics");
    let settings = settings(&dir, 5_000);
    let reader = |input: &[u8]| {
        assert!(!input.starts_with(b"{\"length\":-1"), "nothing has such a length");
        true
    };
    let found = failure(&settings, reader);
    assert!(found.contains("nothing has such a length on input "), "{found}");
    let number = found.split("AERIE_FUZZ_SEED=").nth(1).unwrap().split(' ').next().unwrap();
    let saved = fs::read(dir.join(format!("test-{number}.bin"))).unwrap();
    assert!(saved.starts_with(b"{\"length\":-1"), "{saved:?}");

    // By its number, and as a file.
    let again = Settings { first: number.parse().unwrap(), ..self::settings(&dir, 0) };
    assert!(failure(&again, reader).contains(&format!("input {number} ")));
    let path = dir.join(format!("test-{number}.bin"));
    let again = Settings { input: Some(path), ..again };
    assert!(failure(&again, reader).contains("nothing has such a length"));
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn reader_that_asks_for_too_much_is_caught() {
    let dir = dir("memory");
    let found = failure(&settings(&dir, 5_000), |input| {
        let is_long = input.starts_with(b"{\"length\":0");
        black_box(vec![0u8; if is_long { 2 * BYTES_MAX } else { 10 }]);
        true
    });
    assert!(found.contains("134217728 bytes are held for input "), "{found}");
    // What can be refused is refused before the machine is out of memory.
    let meter = Meter::start();
    assert!(Vec::<u8>::new().try_reserve(2 << 30).is_err());
    assert_eq!(meter.stop(), 0);
    fs::remove_dir_all(dir).unwrap();
}

/// A process that ended within an input cannot tell of it; the next one does.
#[test]
fn input_that_ended_the_process_goes_first() {
    let dir = dir("journal");
    let mut journal = Journal::open(&dir, "test");
    journal.note(12_345);
    drop(journal);
    let inputs = RefCell::new(Vec::new());
    let fuzz = fuzz(Format::Text);
    fuzz.run_with(&settings(&dir, 0), |input| {
        inputs.borrow_mut().push(input.to_vec());
        true
    });
    let expected = Mutator::new(&fuzz, 12_345).input();
    assert_eq!(inputs.into_inner(), [fuzz.seeds[0].clone(), expected]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn inputs_follow_from_their_numbers_and_differ() {
    for format in [Format::Binary, Format::Text, Format::Headed, Format::Protobuf] {
        let fuzz = fuzz(format);
        let inputs = || (0..500).map(|number| Mutator::new(&fuzz, number).input());
        assert!(inputs().eq(inputs()), "{format:?}");
        let distinct: std::collections::HashSet<_> = inputs().collect();
        assert!(300 < distinct.len(), "{format:?}: {}", distinct.len());
    }
}

#[test]
fn message_is_parsed_and_written_as_it_was() {
    // 1: 300, 2: "ab", 3: fixed, 4: fixed.
    let message = b"\x08\xac\x02\x12\x02ab\x19\x01\x02\x03\x04\x05\x06\x07\x08\x25\x01\x02\x03\x04";
    let fields = protobuf::parse(message).unwrap();
    assert_eq!(fields.len(), 4);
    assert_eq!(protobuf::write(&fields), message);
    assert_eq!(protobuf::parse(b"\x12\x03ab"), None);
}

/// What `run_with` says when it fails.
fn failure(settings: &Settings, reader: impl FnMut(&[u8]) -> bool) -> String {
    let run = AssertUnwindSafe(|| fuzz(Format::Text).run_with(settings, reader));
    message(&*catch_unwind(run).unwrap_err())
}

fn fuzz(format: Format) -> Fuzz<'static> {
    let seeds = vec![b"{\"length\":12,\"name\":\"F32\",\"list\":[1,2,3]}".to_vec()];
    Fuzz { name: "test", format, seeds, words: &[b"F16", b"name"] }
}

fn settings(dir: &Path, ms: u64) -> Settings {
    Settings { time: Duration::from_millis(ms), first: 0, input: None, dir: dir.to_owned() }
}

/// A folder of this test's own.
fn dir(name: &str) -> PathBuf {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/fuzz");
    Path::new(dir).join(format!("tests-{name}-{}", std::process::id()))
}
