use aerie_models::{Dtype, ModelConfig, presets};
use proptest::prelude::*;

use super::*;

/// Goal: a state comes back bit for bit, whatever came before it on the same way, and takes no more than what is filled.
/// Method: random layouts; states at random positions before and beyond the window, one after the other through one
/// packing, each to where all was void before.
#[test]
fn exact_states_come_back_bit_for_bit() {
    proptest!(|(layout in layouts(), tokens in prop::collection::vec(0_u64..40, 1..12), seed: u8)| {
        let mut packing = Packing::new(&layout, Windows::Exact);
        for (turn, tokens) in tokens.into_iter().enumerate() {
            let state = state(&layout, tokens, |at| {
                u32::from(seed).wrapping_add(at).wrapping_mul(0x9E37_79B9) ^ u32::try_from(turn).unwrap()
            });
            let packed = packing.pack(tokens, &state).to_vec();
            prop_assert_eq!(packed.len(), packing.bytes(tokens));
            prop_assert!(packed.len() as u64 <= packing.bytes_max());
            prop_assert_eq!(packing.bytes_max(), layout.bytes());
            prop_assert!(unpack(&mut packing, tokens, &packed).unwrap() == state);
            let seen: Vec<_> = packing.seen(tokens).collect();
            prop_assert_eq!(seen.iter().map(Range::len).sum::<usize>(), packed.len());
            let is_void = |at: &usize| !seen.iter().any(|it| it.contains(at));
            prop_assert!((0..state.len()).filter(is_void).all(|at| state[at] == VOID));
        }
    });
}

/// Goal: 8 bits are as near as they can be, the recurrence is as it was, and what was rounded once stays.
#[test]
fn rounded_windows_are_near_and_stay_where_they_are() {
    proptest!(|(layout in layouts(), tokens in 0_u64..40, seed: u8, exponent in -30_i32..30)| {
        let mut packing = Packing::new(&layout, Windows::Q8);
        let unit = 2_f32.powi(exponent);
        let before = state(&layout, tokens, |at| {
            let hash = at.wrapping_add(u32::from(seed) << 8).wrapping_mul(0x9E37_79B9) >> 16;
            ((hash as f32 / 65536.0 - 0.5) * unit).to_bits()
        });
        let packed = packing.pack(tokens, &before).to_vec();
        let after = unpack(&mut packing, tokens, &packed).unwrap();
        for (block, ranges) in layout.blocks.iter().zip(&layout.byte_ranges().blocks) {
            for (field, range) in block.fields().into_iter().zip(ranges.fields()) {
                let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
                let (before, after) = (&before[range.clone()], &after[range]);
                if matches!(block, BlockCarry::Recurrent { .. }) {
                    prop_assert!(before == after);
                    continue;
                }
                let row_bytes = before.len() / usize::try_from(field.shape[0]).unwrap();
                for (before, after) in before.chunks(row_bytes).zip(after.chunks(row_bytes)) {
                    near(&floats(before), &floats(after));
                }
            }
        }
        prop_assert!(packing.pack(tokens, &after) == packed, "rounded once");
    });
}

#[test]
fn rows_that_are_odd_stay_what_they_are() {
    check(&[0.0, -0.0, 0.0, 0.0], &[0.0, 0.0, 0.0, 0.0]);
    check(&[1e-38, -1e-40, 0.0, 0.0], &[0.0, 0.0, 0.0, 0.0]);
    check(&[127.0, -127.0, 63.4, 0.5], &[127.0, -127.0, 63.0, 0.0]);
    check(&[-3e38, 0.0, 1.0, 0.0], &[-3e38, 0.0, 0.0, 0.0]);
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let all = through(&[odd, 1.0, 2.0, 3.0]);
        assert!(all.iter().all(|it| it.is_nan()), "{odd}: {all:?}");
    }
}

#[test]
fn what_is_not_as_long_as_a_state_is_none() {
    let layout = Carry::layout(&model());
    for windows in [Windows::Exact, Windows::Q8] {
        let mut packing = Packing::new(&layout, windows);
        for (tokens, bytes) in [(3, packing.bytes(4)), (3, 0), (5000, packing.bytes(2))] {
            let found = unpack(&mut packing, tokens, &vec![0; bytes]);
            assert_eq!(found, None, "{windows:?}, {tokens}");
        }
    }
}

#[test]
fn packings_of_a_model_do_not_pass_for_each_other() {
    let layout = Carry::layout(&model());
    let marks =
        [Windows::Exact, Windows::Q8].map(|it| Packing::new(&layout, it).fingerprint(&[1; 32]));
    assert_ne!(marks[0], marks[1]);
    assert!(!marks.contains(&[1; 32]), "files of before had that");
    assert_ne!(marks[0], Packing::new(&layout, Windows::Exact).fingerprint(&[2; 32]));
}

/// Figures that documentation tells.
#[test]
fn a_short_session_of_a_large_model_is_small() {
    let layout = Carry::layout(&model());
    let (exact, q8) = (Packing::new(&layout, Windows::Exact), Packing::new(&layout, Windows::Q8));
    let recurrent = 18 * 4 * 2560 * 4;
    assert_eq!(exact.bytes(40), recurrent + 16 * 40 * 256 * 4);
    assert_eq!(q8.bytes(40), recurrent + 16 * 40 * (256 + 4));
    assert_eq!(exact.bytes_max(), layout.bytes());
    assert_eq!(q8.bytes_max(), (recurrent + 16 * 2049 * (256 + 4)) as u64);
}

/// What is in void rows, as far as these tests go.
const VOID: u8 = 0xAA;

fn unpack(packing: &mut Packing, tokens: u64, packed: &[u8]) -> Option<Vec<u8>> {
    let mut state = vec![VOID; packing.state_bytes()];
    let show = |at: usize, part: &[u8]| state[at..][..part.len()].copy_from_slice(part);
    packing.unpack(tokens, packed, show).then_some(state)
}

fn model() -> ModelConfig {
    presets::preset("recurrentgemma-2b").unwrap()
}

/// Of a few blocks, with rings of 1 to 20 rows.
fn layouts() -> impl Strategy<Value = Carry<TensorSpec>> {
    let spec = |shape: [u64; 2]| TensorSpec {
        path: String::new(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
    };
    let block =
        (prop::bool::ANY, 1_u64..20, 1_u64..20).prop_map(move |(is_window, rows, width)| {
            let [first, second] =
                [spec([rows, width]), spec([if is_window { rows } else { 1 }, width])];
            match is_window {
                true => BlockCarry::Attention { keys: first, values: second },
                false => BlockCarry::Recurrent { conv: first, rg_lru: second },
            }
        });
    prop::collection::vec(block, 0..6).prop_map(|blocks| Carry { blocks })
}

/// A state whose numbers have the bits that `bits` tells, where they are not void.
fn state(layout: &Carry<TensorSpec>, tokens: u64, bits: impl Fn(u32) -> u32) -> Vec<u8> {
    let mut state = Vec::new();
    for block in &layout.blocks {
        for field in block.fields() {
            let width = field.elements() / field.shape[0];
            let is_window = matches!(block, BlockCarry::Attention { .. });
            for at in 0..field.elements() {
                let is_void = is_window && tokens <= at / width;
                let at = u32::try_from(state.len()).unwrap();
                state.extend(if is_void { [VOID; 4] } else { bits(at).to_le_bytes() });
            }
        }
    }
    state
}

#[track_caller]
fn check(row: &[f32], expected: &[f32]) {
    let found = through(row);
    near(row, &found);
    assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= b.abs() * 1e-4), "{found:?}");
}

/// A row that was rounded, and what came back.
fn through(row: &[f32]) -> Vec<f32> {
    let bytes: Vec<u8> = row.iter().flat_map(|it| it.to_le_bytes()).collect();
    let (mut packed, mut back) = (vec![0; SCALE_BYTES + row.len()], vec![0; bytes.len()]);
    round(&bytes, &mut packed);
    restore(&packed, &mut back);
    floats(&back)
}

/// Half a step of the scale, which is a 127th of the greatest value less at most 2^-16 of itself; and the numbers that
/// are taken for 0.
#[track_caller]
fn near(before: &[f32], after: &[f32]) {
    let greatest = before.iter().fold(0_f32, |greatest, it| greatest.max(it.abs()));
    for (a, b) in before.iter().zip(after) {
        assert!((a - b).abs() <= greatest / 253.9 + GREATEST_MIN, "{a} and {b} of {greatest}");
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect()
}
