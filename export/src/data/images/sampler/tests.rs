//! Which pictures a batch has, and that a cursor is enough to go on.

use rand::Rng;

use super::*;

const SHAPE: BatchShape = BatchShape { pictures: 4, multiplicity: 3 };

#[test]
fn each_picture_is_drawn_n_times_in_a_row() {
    let mut sampler = Sampler::new(5, 10, SHAPE, Cursor::default());
    for _ in 0..7 {
        let batch = sampler.batch();
        assert_eq!(batch.len(), 12);
        for draws in batch.chunks(3) {
            assert!(draws.iter().all(|it| it.picture == draws[0].picture));
            let numbers: Vec<u32> = draws.iter().map(|it| it.number).collect();
            assert_eq!(numbers, [0, 1, 2]);
        }
    }
}

#[test]
fn a_pass_has_every_picture_once_and_the_next_another_order() {
    let shape = BatchShape { pictures: 4, multiplicity: 1 };
    let mut sampler = Sampler::new(5, 10, shape, Cursor::default());
    let draws: Vec<Draw> = (0..5).flat_map(|_| sampler.batch()).collect();
    let pass = |epoch: u64| -> Vec<u32> {
        draws.iter().filter(|it| it.epoch == epoch).map(|it| it.picture).collect()
    };
    for epoch in [0, 1] {
        let mut sorted = pass(epoch);
        sorted.sort_unstable();
        assert_eq!(sorted, Vec::from_iter(0..10), "pass {epoch}");
    }
    assert_ne!(pass(0), pass(1));
    assert_eq!(sampler.cursor(), Cursor { epoch: 1, row: 10 });
}

#[test]
fn sampler_goes_on_from_any_cursor() {
    let mut whole = Sampler::new(5, 10, SHAPE, Cursor::default());
    for number in 0..9 {
        let mut resumed = Sampler::new(5, 10, SHAPE, whole.cursor());
        assert_eq!(resumed.batch(), whole.batch(), "batch {number}");
    }
}

#[test]
fn seeds_give_other_orders() {
    let batch = |seed| Sampler::new(seed, 1000, SHAPE, Cursor::default()).batch();
    assert_ne!(batch(1), batch(2));
}

#[test]
fn chance_is_keyed_by_all_that_names_a_draw() {
    let draw = Draw { epoch: 1, picture: 2, number: 3 };
    let first = |draw: Draw, seed, purpose| draw.rng(seed, purpose).random::<u64>();
    let usual = first(draw, 4, Purpose::Crop);
    assert_eq!(first(draw, 4, Purpose::Crop), usual);
    let others = [
        first(Draw { epoch: 2, ..draw }, 4, Purpose::Crop),
        first(Draw { picture: 3, ..draw }, 4, Purpose::Crop),
        first(Draw { number: 4, ..draw }, 4, Purpose::Crop),
        first(draw, 5, Purpose::Crop),
        first(draw, 4, Purpose::Mix),
        first(draw, 4, Purpose::RandAugment),
    ];
    assert!(!others.contains(&usual));
}
