use super::*;

#[test]
fn weights_in_other_files_are_found() {
    let graph = GraphProto { initializer: vec![inline(), tensor()] };
    let model = ModelProto { graph: Some(graph) }.encode_to_vec();
    let expected = External {
        name: "w".to_owned(),
        shape: vec![2, 3],
        element: WeightType::F32,
        file: "model.onnx.data".to_owned(),
        offset: 8,
        bytes: 24,
    };
    assert_eq!(externals(&model), [expected]);
}

#[test]
fn what_is_not_as_it_should_be_is_left_to_the_runtime() {
    check(|it| it.data_type = 16);
    check(|it| it.dims = vec![2, 4]);
    check(|it| it.dims = vec![-2, -3]);
    check(|it| it.dims = vec![i64::MAX, i64::MAX]);
    check(|it| it.external_data.truncate(1));
    check(|it| it.external_data[2].value = "many".to_owned());
    assert_eq!(externals(b"no protobuf"), []);
    assert_eq!(externals(b""), []);
}

#[test]
fn a_weight_ends_within_its_file_and_lies_aligned() {
    let weight = external(tensor()).unwrap();
    let file = [0f32; 9].map(f32::to_ne_bytes);
    let file = file.as_flattened();
    let start = file.as_ptr().align_offset(4);
    let file = &file[start..];
    assert_eq!(weight.of(&file[..32]), Some(&file[8..32]));
    assert_eq!(weight.of(&file[..31]), None);
    assert_eq!(weight.of(&file[1..33]), None);
    assert_eq!(weight.of(&[]), None);
}

#[track_caller]
fn check(spoil: impl Fn(&mut TensorProto)) {
    let mut tensor = tensor();
    spoil(&mut tensor);
    assert_eq!(external(tensor), None);
}

fn inline() -> TensorProto {
    TensorProto { data_location: 0, ..tensor() }
}

fn tensor() -> TensorProto {
    let entry = |(key, value): (&str, &str)| StringStringEntryProto {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    let entries = [("location", "model.onnx.data"), ("offset", "8"), ("length", "24")];
    TensorProto {
        dims: vec![2, 3],
        data_type: 1,
        name: "w".to_owned(),
        external_data: entries.map(entry).into(),
        data_location: EXTERNAL,
    }
}
