use std::{sync::Mutex, thread};

use super::*;
use crate::{
    math::{exp, fold, sigmoid},
    segments::{RawSegments, SegmentsReader},
};

/// Something of everything that kernels do to numbers.
struct Mixture<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Loops for Mixture<'_> {
    #[inline(always)]
    fn run(self) {
        let mut sums = [0.0f32; 16];
        for (i, (&x, y)) in self.x.iter().zip(self.y.iter_mut()).enumerate() {
            let e = exp(x);
            sums[i % 16] = x.mul_add(e, sums[i % 16]);
            *y = (e * (2.0 - x)).abs().sqrt() + sigmoid(x);
        }
        self.y[0] = fold(sums);
    }
}

/// A session may move to another machine and go on: the bits must not tell which instructions it has.
#[test]
fn every_set_of_instructions_gives_the_same_bits() {
    let x: Vec<f32> = (0..1001u16).map(|i| f32::from(i) * 0.017 - 9.0).collect();
    let run = |how: &dyn Fn(Mixture<'_>)| {
        let mut y = vec![0.0; x.len()];
        how(Mixture { x: &x, y: &mut y });
        y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
    };
    let plain = run(&|it| it.run());
    assert_eq!(run(&|it| widest(it)), plain);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the machine has the features.
        assert_eq!(run(&|it| unsafe { avx2(it) }), plain);
    }
}

/// Runs tiles on three threads, last first.
pub(crate) struct Backwards;

// SAFETY: each index is taken from the queue once, and the threads end with the scope.
unsafe impl Parallel for Backwards {
    fn for_each(&self, tiles: usize, body: &(dyn Fn(usize) + Sync)) {
        let queue = Mutex::new(0..tiles);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while let Some(tile) = { queue.lock().unwrap().next_back() } {
                        body(tile);
                    }
                });
            }
        });
    }
}

const CUT: Cut = Cut { rows: 4, columns: 3, work: usize::MAX };

#[test]
fn tiles_cover_a_matrix_once_on_any_threads() {
    for (rows, width) in [(1, 1), (4, 3), (5, 7), (0, 3)] {
        let mut y = vec![0.0; rows * width];
        for_each_tile(&Backwards, CUT, &mut y, width, |[row, column], mut tile| {
            for r in 0..tile.rows() {
                for (c, y) in tile.row_mut(r).iter_mut().enumerate() {
                    *y += ((row + r) * width + column + c + 1) as f32;
                }
            }
        });
        let expected: Vec<_> = (0..rows * width).map(|i| (i + 1) as f32).collect();
        assert_eq!(y, expected, "[{rows}, {width}]");
    }
}

#[test]
fn a_segments_tiles_are_its_tokens_and_its_lane() {
    let raw = RawSegments { cuts: &[0, 2, 3], lanes: &[3, 1], fresh: &[false; 2] };
    let mut reader = SegmentsReader::default();
    let segments = reader.read(raw, 3, 4).unwrap();
    let (mut y, mut state) = (vec![0.0; 3 * 5], vec![0.0; 4 * 2 * 5]);
    let buffers = Buffers { tokens: [&mut y], states: [&mut state], state_rows: 2, width: 5 };
    for_each_segment(&Backwards, CUT, &segments, buffers, |[segment, _], [mut y], [mut state]| {
        for row in 0..y.rows() {
            y.row_mut(row).fill(1.0 + segment as f32);
        }
        for row in 0..state.rows() {
            state.row_mut(row).fill(1.0 + segment as f32);
        }
    });
    let rows = |data: &[f32], row: usize| data.chunks(row).map(|row| row[0]).collect::<Vec<_>>();
    assert_eq!(rows(&y, 5), [1.0, 1.0, 2.0]);
    assert_eq!(rows(&state, 10), [0.0, 2.0, 0.0, 1.0]);
}
