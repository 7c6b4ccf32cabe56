use std::collections::BTreeSet;

use super::*;

const SHAPE: Shape = Shape { rows: 3, time: 4 };

fn tokens(count: u32) -> Tokens {
    Tokens { ids: (0..count).collect(), text_bytes: 0, boundary: Some(20) }
}

#[test]
fn rows_do_not_overlap_within_a_pass() {
    let tokens = tokens(101);
    let mut shuffle = Shuffle::new(&tokens, SHAPE, 1, Cursor::default()).unwrap();
    let mut seen = BTreeSet::new();
    // 24 or 25 rows to a pass: eight batches lie within the first.
    for _ in 0..8 {
        for input in shuffle.batch().inputs {
            assert!(seen.insert(input), "token {input} came twice");
        }
    }
    assert_eq!(shuffle.cursor(), Cursor { epoch: 0, row: 24 });
}

#[test]
fn shuffle_is_taken_up_where_it_was_left() {
    let tokens = tokens(60);
    let mut whole = Shuffle::new(&tokens, SHAPE, 7, Cursor::default()).unwrap();
    // Goes through several passes, whose ends fall in the middle of batches.
    for number in 0..20 {
        let mut resumed = Shuffle::new(&tokens, SHAPE, 7, whole.cursor()).unwrap();
        assert_eq!(resumed.batch(), whole.batch(), "batch {number}");
    }
    assert!(2 < whole.cursor().epoch);
}

#[test]
fn passes_and_seeds_have_orders_of_their_own() {
    let tokens = tokens(60);
    let first =
        |seed, epoch| Shuffle::new(&tokens, SHAPE, seed, Cursor { epoch, row: 0 }).unwrap().batch();
    assert_ne!(first(1, 0), first(1, 1));
    assert_ne!(first(1, 0), first(2, 0));
    assert_eq!(first(1, 0), first(1, 0));
}

#[test]
fn segments_are_cut_at_rows_and_documents() {
    let tokens = Tokens { ids: vec![0, 5, 6, 0, 7, 8, 9, 0], text_bytes: 0, boundary: Some(0) };
    let batch = tokens.batch(&[0, 3], 4);
    assert_eq!(batch.inputs, [0, 5, 6, 0, 0, 7, 8, 9]);
    assert_eq!(batch.targets, [5, 6, 0, 7, 7, 8, 9, 0]);
    assert_eq!(batch.bounds, [0, 3, 4, 8]);
}

#[test]
fn text_shorter_than_a_row_is_refused_with_the_numbers() {
    let tokens = tokens(8);
    let error = Shuffle::new(&tokens, SHAPE, 1, Cursor::default()).unwrap_err().to_string();
    assert_eq!(error, "the text has 8 tokens, but a row of 4 needs 9");
}
