//! A matrix that is packed in parts is the one that is packed at once, errors included.

use super::*;

#[test]
fn parts_are_the_whole() {
    for format in Format::ALL {
        // A last panel that is not full, a last group more than the parts divide.
        check(Packing { format, groups: 1, inputs: 600, outputs: 300 }, Order::OutputsInputs);
        check(Packing { format, groups: 5, inputs: 40, outputs: 70 }, Order::InputsOutputs);
        check(Packing { format, groups: 1, inputs: 40, outputs: 70 }, Order::InputsOutputs);
    }
}

#[test]
fn element_that_cannot_be_packed_is_named_in_the_whole() {
    let packing = Packing { format: Format::Q8, groups: 1, inputs: 600, outputs: 300 };
    let mut weight = vec![0.5; 600 * 300];
    let index = 299 * 600 + 17;
    weight[index] = f32::INFINITY;
    let matrix = Matrix { packing, weight: &weight, order: Order::OutputsInputs, importance: None };
    let error = pack_in_parts(matrix, 4).unwrap_err();
    assert_eq!(error, PackError::NotFinite { index, found: f32::INFINITY });
}

#[track_caller]
fn check(packing: Packing, order: Order) {
    let Packing { groups, inputs, outputs, .. } = packing;
    let ramp = |length: usize, step: f32| -> Vec<f32> {
        (0..length).map(|it| (it as f32 * step).sin()).collect()
    };
    let weight = ramp(groups * inputs * outputs, 0.37);
    let squares: Vec<f32> = ramp(groups * inputs, 1.1).iter().map(|it| it * it).collect();
    for importance in [None, Some(squares.as_slice())] {
        let matrix = Matrix { packing, weight: &weight, order, importance };
        let whole = packing.pack(&weight, order, importance).unwrap();
        for parts_max in 1..7 {
            let parts = matrix.parts(parts_max);
            assert!(parts.len() <= parts_max, "{} parts", parts.len());
            let packed = parts.iter().map(|it| it.packing.pack(it.weight, order, it.importance));
            let packed: Vec<Vec<u8>> = packed.map(Result::unwrap).collect();
            assert!(packed.concat() == whole, "{packing:?}, {parts_max} parts");
        }
        assert!(pack_in_parts(matrix, 3).unwrap().concat() == whole, "{packing:?}, on threads");
    }
}
