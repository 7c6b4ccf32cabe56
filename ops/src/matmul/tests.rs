use aerie_fuzz::Fuzz;

use super::kernels::Run;
use super::*;
use crate::{
    Serial,
    isa::{Lanes, Portable, amx::Amx},
    math::{gelu, soft_cap},
};

/// Runs kernels with what every machine has.
#[derive(Clone, Copy)]
struct Plain;

impl Run for Plain {
    fn run<L: Lanes>(self, lanes: L) -> L::Output {
        lanes.run(Portable)
    }

    fn amx(self, _rows: usize) -> Option<Amx> {
        None
    }
}

/// Extents that leave a remainder everywhere, groups included; the last have several spans.
const PACKINGS: [(usize, usize, usize); 7] =
    [(1, 96, 64), (1, 33, 130), (3, 40, 40), (2, 64, 65), (1, 1, 1), (1, 600, 70), (2, 257, 64)];

fn packings() -> impl Iterator<Item = Packing> {
    Format::ALL.into_iter().flat_map(|format| {
        PACKINGS.map(|(groups, inputs, outputs)| Packing { format, groups, inputs, outputs })
    })
}

/// Numbers of about -1 to 1.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(i16::from_le_bytes([state.to_le_bytes()[2], state.to_le_bytes()[3]])) / 32768.0
    };
    (0..count).map(|_| next() + 0.3 * next()).collect()
}

struct Case {
    packing: Packing,
    /// What `packed` holds, `[groups, outputs, inputs]`.
    weight: Vec<f32>,
    packed: Vec<u8>,
    bias: Vec<f32>,
}

impl Case {
    fn new(packing: Packing) -> Self {
        let Packing { groups, inputs, outputs, .. } = packing;
        let weight = numbers(1, groups * inputs * outputs);
        let packed = packing.pack(&weight, Order::OutputsInputs, None).unwrap();
        let weight = packing.unpack(&packed, Order::OutputsInputs);
        Self { packing, weight, packed, bias: numbers(2, groups * outputs) }
    }

    fn x(&self, rows: usize) -> Vec<f32> {
        numbers(3, rows * self.packing.groups * self.packing.inputs)
    }

    fn run(&self, activations: Activations, x: &[f32]) -> Vec<f32> {
        let Packing { groups, inputs, outputs, .. } = self.packing;
        let mut y = vec![f32::NAN; x.len() / (groups * inputs) * groups * outputs];
        let (packing, weights) = (self.packing, self.weights());
        let product = MatMul { packing, weights, then: Then::Nothing, activations };
        matmul(&product, x, &mut y, &mut Scratch::default(), &Serial);
        y
    }

    fn weights(&self) -> Weights<'_> {
        Weights { packed: &self.packed, bias: Some(&self.bias) }
    }

    /// The fastest way there is for the format.
    fn fast(&self) -> Activations {
        if self.packing.format == Format::Bf16 { Activations::F32 } else { Activations::I8 }
    }

    /// In f64, from the unpacked weights.
    fn exact(&self, x: &[f32]) -> Vec<f64> {
        let Packing { groups, inputs, outputs, .. } = self.packing;
        let mut y = Vec::new();
        for x in x.chunks(groups * inputs) {
            for column in 0..groups * outputs {
                let x = &x[column / outputs * inputs..][..inputs];
                let products = x.iter().zip(&self.weight[column * inputs..]);
                let sum: f64 = products.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                y.push(sum + f64::from(self.bias[column]));
            }
        }
        y
    }
}

#[test]
fn floats_agree_with_f64() {
    for packing in packings() {
        let case = Case::new(packing);
        let x = case.x(7);
        // Each addition rounds a sum of up to about 16 by at most half of 2^-20.
        let mut bound = 0.5 / f64::from(1 << 20) * (packing.inputs as f64).max(20.0);
        if packing.format == Format::Bf16 && Amx::has_parts() {
            // As two bf16, an input is off by 2^-18 of it; inputs and weights are below 1.3.
            bound += 1.3 * 1.3 / f64::from(1 << 18) * packing.inputs as f64;
        }
        for (y, exact) in case.run(Activations::F32, &x).iter().zip(case.exact(&x)) {
            let off = (f64::from(*y) - exact).abs();
            assert!(off < bound, "{packing:?}: {y} for {exact}");
        }
    }
}

/// Bytes round an input by at most half a step, 1/254 of the largest in its block; the weights of the
/// cases are below 1.3.
#[test]
fn bytes_are_off_by_no_more_than_their_rounding() {
    for packing in packings().filter(|it| it.format != Format::Bf16) {
        let case = Case::new(packing);
        let x = case.x(7);
        let bound = 1.3 / 254.0 * 1.3 * packing.inputs as f64;
        let exact = case.exact(&x);
        let mut squares = 0.0;
        for (y, exact) in case.run(Activations::I8, &x).iter().zip(&exact) {
            let off = (f64::from(*y) - exact).abs();
            assert!(off < bound, "{packing:?}: {y} for {exact}");
            squares += off * off;
        }
        // Rounding errors are independent, so that they grow with the root of their number.
        let rms = (squares / exact.len() as f64).sqrt();
        assert!(rms < 2.0 * 0.003 * (packing.inputs as f64).sqrt(), "{packing:?}: {rms}");
    }
}

#[test]
fn rows_do_not_know_each_other() {
    for packing in packings() {
        let case = Case::new(packing);
        let [width_in, width_out] = [packing.inputs, packing.outputs].map(|it| it * packing.groups);
        let x = case.x(100);
        let together = case.run(case.fast(), &x);
        for rows in [0, 1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 97] {
            let alone = case.run(case.fast(), &x[..rows * width_in]);
            assert_eq!(alone, together[..rows * width_out], "{packing:?}, {rows} rows");
        }
        let last = case.run(case.fast(), &x[99 * width_in..]);
        assert_eq!(last, together[99 * width_out..], "{packing:?}");
    }
}

/// But for tiles of bf16, whose bits are theirs.
#[test]
fn every_set_of_instructions_gives_the_same_bits() {
    // So many that bytes are multiplied by tiles, where there are some, and fewer.
    for (packing, rows) in packings().flat_map(|it| [9, 19].map(|rows| (it, rows))) {
        let case = Case::new(packing);
        let x = case.x(rows);
        let mut quantised = Quantised::default();
        let inputs = match case.fast() {
            Activations::F32 => Inputs::Floats(&x),
            Activations::I8 => {
                quantised.set(&packing, &x, &Serial);
                Inputs::Bytes(&quantised)
            }
        };
        let [best, plain] =
            [run_with(Best, &case, inputs, rows), run_with(Plain, &case, inputs, rows)];
        assert_eq!(plain, best, "{packing:?}, {rows} rows");
    }
}

fn run_with(run: impl Run + Sync, case: &Case, x: Inputs<'_>, rows: usize) -> Vec<f32> {
    let packing = case.packing;
    let width = packing.groups * packing.outputs;
    let mut y = vec![0.0; rows * width];
    let cut = Cut { rows, columns: packing.outputs, work: 0 };
    for_each_tile(&Serial, cut, &mut y, width, |[row, column], y| {
        let (group, weights) = (column / packing.outputs, case.weights());
        let then = Then::Nothing;
        Product { packing, weights, then, group, row, column: 0, x, y }.run(run);
    });
    y
}

/// Goal: what follows a product is what it would be by itself. Method: compare with plain products, which
/// are finished here; bits, as the functions are the same.
#[test]
fn what_follows_a_product_is_what_it_would_be_by_itself() {
    for packing in packings() {
        let case = Case::new(packing);
        let other = Case { bias: numbers(7, case.bias.len()), ..Case::new(packing) };
        let x = case.x(14);
        for activations in [case.fast(), Activations::F32] {
            let [a, b] = [&case, &other].map(|it| it.run(activations, &x));
            let joined: Vec<f32> = a.iter().zip(&b).map(|(a, b)| gelu(*a) * b).collect();
            let mut y = vec![f32::NAN; a.len()];
            let mut check = |then, expected: &[f32]| {
                let product = MatMul { packing, weights: case.weights(), then, activations };
                matmul(&product, &x, &mut y, &mut Scratch::default(), &Serial);
                assert_eq!(y, expected, "{packing:?} with {activations:?}");
            };
            check(Then::GeluTimes(other.weights()), &joined);
            check(Then::Gelu, &a.iter().map(|it| gelu(*it)).collect::<Vec<_>>());
            check(Then::Plus(&b), &a.iter().zip(&b).map(|(a, b)| b + a).collect::<Vec<_>>());
            check(Then::SoftCap(3.0), &a.iter().map(|it| soft_cap(*it, 3.0)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn products_of_the_same_inputs_are_those_of_each_alone() {
    for packing in packings() {
        let case = Case::new(packing);
        let narrow = Case::new(Packing { outputs: packing.outputs.div_ceil(3), ..packing });
        for rows in [1, 9, 130] {
            let x = case.x(rows);
            let expected = [&case, &narrow].map(|it| it.run(case.fast(), &x));
            let [mut a, mut b] = expected.each_ref().map(|it| vec![f32::NAN; it.len()]);
            let products = [&case, &narrow].map(|it| MatMul {
                packing: it.packing,
                weights: it.weights(),
                then: Then::Nothing,
                activations: case.fast(),
            });
            matmuls(products, &x, [&mut a, &mut b], &mut Scratch::default(), &Serial);
            assert_eq!([a, b], expected, "{packing:?}, {rows} rows");
        }
    }
}

#[test]
fn packing_is_undone_up_to_rounding() {
    for packing in packings() {
        let Packing { format, groups, inputs, outputs } = packing;
        let weight = numbers(5, groups * inputs * outputs);
        let packed = packing.pack(&weight, Order::OutputsInputs, None).unwrap();
        assert_eq!(packed.len(), packing.shape().iter().product::<usize>());
        let found = packing.unpack(&packed, Order::OutputsInputs);
        // Half a step of the largest weight, which is below 1.3. Four bits may cut off what is beyond
        // 7/8 of 3/4 of the largest, where that serves the others; on the whole they are off as much as
        // 15 even steps are.
        let bound = match format {
            Format::Bf16 => 1.3 / 256.0,
            Format::Q8 => 1.3 / 253.0,
            Format::Q4 => 1.3 * (1.0 - 0.75 * 7.0 / 8.0),
        };
        let mut squares = 0.0;
        for (found, weight) in found.iter().zip(&weight) {
            assert!((found - weight).abs() <= bound, "{packing:?}: {found} for {weight}");
            squares += (found - weight).powi(2);
        }
        let rms = (squares / weight.len() as f32).sqrt();
        assert!(rms < 2.6 / 15.0 / 12.0f32.sqrt(), "{packing:?}: {rms}");
        // What was packed once is packed again without a change.
        if format != Format::Q4 {
            let again = packing.pack(&found, Order::OutputsInputs, None).unwrap();
            assert_eq!(packing.unpack(&again, Order::OutputsInputs), found, "{packing:?}");
        }
    }
}

/// Goal: weights whose inputs are larger are kept more exactly. Method: some inputs count a hundred
/// times as much as the others; the error that is weighted so falls, and the plain one rises.
#[test]
fn importance_says_which_errors_count() {
    let packing = Packing { format: Format::Q4, groups: 2, inputs: 96, outputs: 65 };
    let weight = numbers(8, 2 * 96 * 65);
    let importance: Vec<f32> =
        (0..2 * 96).map(|it| if it % 5 == 0 { 100.0 } else { 1.0 }).collect();
    let errors = |importance_or_none: Option<&[f32]>| {
        let packed = packing.pack(&weight, Order::OutputsInputs, importance_or_none).unwrap();
        let found = packing.unpack(&packed, Order::OutputsInputs);
        let mut errors = [0.0; 2];
        for (at, (found, weight)) in found.iter().zip(&weight).enumerate() {
            let square = f64::from(found - weight).powi(2);
            let input = at / (96 * 65) * 96 + at % 96;
            errors[0] += square;
            errors[1] += square * f64::from(importance[input]);
        }
        errors
    };
    let ([plain, counted], [plain_less, counted_more]) = (errors(Some(&importance)), errors(None));
    assert!(counted < 0.95 * counted_more, "{counted} with, {counted_more} without");
    assert!(plain_less < plain, "{plain} with, {plain_less} without");
}

#[test]
fn both_orders_pack_the_same() {
    for packing in packings() {
        let Packing { groups, inputs, outputs, .. } = packing;
        let turn = |weight: &[f32]| {
            let mut turned = vec![0.0; weight.len()];
            for (index, weight) in weight.iter().enumerate() {
                let (group, output, input) =
                    (index / (inputs * outputs), index / inputs % outputs, index % inputs);
                turned[(group * inputs + input) * outputs + output] = *weight;
            }
            turned
        };
        let weight = numbers(6, groups * inputs * outputs);
        let packed = packing.pack(&weight, Order::OutputsInputs, None).unwrap();
        let turned = packing.pack(&turn(&weight), Order::InputsOutputs, None).unwrap();
        assert_eq!(turned, packed, "{packing:?}");
        let unpacked = packing.unpack(&packed, Order::OutputsInputs);
        assert_eq!(packing.unpack(&packed, Order::InputsOutputs), turn(&unpacked), "{packing:?}");
    }
}

#[test]
fn rows_of_a_table_are_its_weights() {
    for packing in packings().filter(|it| it.groups == 1) {
        let case = Case::new(packing);
        let tokens = [packing.outputs - 1, 0, packing.outputs / 2];
        let mut y = vec![f32::NAN; 3 * packing.inputs];
        gather(packing, &case.packed, &tokens, &mut y, &Serial);
        for (token, y) in tokens.iter().zip(y.chunks(packing.inputs)) {
            assert_eq!(*y, case.weight[token * packing.inputs..][..packing.inputs]);
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused() {
    let packing = |format| Packing { format, groups: 1, inputs: 3, outputs: 2 };
    for format in Format::ALL {
        let error =
            packing(format).pack(&[1.0, f32::NAN, 0.0, 0.0, 0.0, 0.0], Order::OutputsInputs, None);
        assert!(matches!(error, Err(PackError::NotFinite { index: 1, .. })), "{error:?}");
    }
    let error = packing(Format::Bf16).pack(
        &[0.0, 0.0, 0.0, f32::MAX, 0.0, 0.0],
        Order::OutputsInputs,
        None,
    );
    assert!(matches!(error, Err(PackError::TooLarge { index: 3, .. })), "{error:?}");
    let deep =
        Packing { format: Format::Q8, groups: 1, inputs: packing::INPUTS_MAX + 1, outputs: 1 };
    let error = deep.pack(&vec![0.0; deep.inputs], Order::OutputsInputs, None);
    assert_eq!(error, Err(PackError::Inputs { found: packing::INPUTS_MAX + 1 }));
}

#[test]
fn wrong_scales_are_found() {
    for packing in packings().filter(|it| it.format != Format::Bf16) {
        let mut packed = Case::new(packing).packed;
        assert_eq!(packing.wrong_scale(&packed), None, "{packing:?}");
        // The last output has the last scale of the last panel that is not padding.
        let column = (packing.outputs - 1) % packing::PANEL;
        let at = packed.len() - packing.panel_bytes() + 4 * column;
        for wrong in [f32::NAN, f32::INFINITY, f32::MAX / 100.0, -1.0] {
            packed[at..at + 4].copy_from_slice(&wrong.to_le_bytes());
            let found = packing.wrong_scale(&packed).unwrap();
            assert_eq!(found.output, packing.groups * packing.outputs - 1, "{packing:?}");
            assert_eq!(found.found.to_bits(), wrong.to_bits());
        }
    }
}

/// Goal: bytes of a packed matrix are anybody's: whatever they are, nothing is read beyond them, and
/// scales that pass leave no weight that is no number.
#[test]
fn fuzzed_weights_are_numbers_or_found() {
    for (idx, format) in Format::ALL.into_iter().enumerate() {
        let packing = Packing { format, groups: 2, inputs: 33, outputs: 65 };
        let name = ["packed-bf16", "packed-q8", "packed-q4"][idx];
        let case = Case::new(packing);
        let seeds = vec![case.packed.clone()];
        let fuzz = Fuzz { name, format: aerie_fuzz::Format::Binary, seeds, words: &[] };
        let x = case.x(12);
        fuzz.run(|bytes| {
            // Their number is the graph's to say, and is held to the shape before anybody reads.
            let mut packed = bytes.to_vec();
            packed.resize(case.packed.len(), 0x7f);
            if packing.wrong_scale(&packed).is_some() {
                return false;
            }
            let weight = packing.unpack(&packed, Order::InputsOutputs);
            let is_number = |it: &f32| it.is_finite() || format == Format::Bf16;
            assert!(weight.iter().all(is_number), "{packing:?}");
            let spoilt = Case { packed, bias: case.bias.clone(), weight, packing };
            drop(spoilt.run(case.fast(), &x));
            true
        });
    }
}

#[test]
fn an_input_that_is_no_number_makes_its_row_none() {
    for packing in packings() {
        let case = Case::new(packing);
        let width = packing.groups * packing.inputs;
        for poison in [f32::NAN, f32::INFINITY] {
            let mut x = case.x(2);
            x[0] = poison;
            let y = case.run(case.fast(), &x);
            // Of the first group alone.
            assert!(y[..packing.outputs].iter().all(|it| !it.is_finite()), "{packing:?}");
            let clean = case.run(case.fast(), &x[width..]);
            assert_eq!(y[packing.groups * packing.outputs..], clean, "{packing:?}");
        }
    }
}

#[test]
fn largest_inputs_do_not_overflow_the_sums() {
    let inputs = packing::INPUTS_MAX;
    let packing = Packing { format: Format::Q8, groups: 1, inputs, outputs: 1 };
    let packed = packing.pack(&vec![1.0; inputs], Order::OutputsInputs, None).unwrap();
    let weights = Weights { packed: &packed, bias: None };
    let product = MatMul { packing, weights, then: Then::Nothing, activations: Activations::I8 };
    for sign in [1.0, -1.0] {
        let mut y = [0.0];
        matmul(&product, &vec![sign; inputs], &mut y, &mut Scratch::default(), &Serial);
        assert!((y[0] - sign * inputs as f32).abs() < 0.1, "{}", y[0]);
    }
}
