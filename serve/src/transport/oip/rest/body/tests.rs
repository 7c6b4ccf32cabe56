//! Bodies that are requests, and bytes that are none.

use aerie_fuzz::{Format, Fuzz};

use super::*;
use crate::oip::tensor::{Output, Signature, Wanted, take_inputs};

#[test]
fn json_and_binary_are_the_same_request() {
    let json = r#"{"id":"a","parameters":{"n":1,"x":0.5,"s":"t","b":true,"u":18446744073709551615},
        "inputs":[{"name":"f","datatype":"FP32","shape":[2,2],"data":[[1,2],[3.5,4]]},
        {"name":"s","datatype":"BYTES","shape":[1],"data":["é"]}]}"#;
    let (plain, binary) = parse(json.as_bytes(), None).unwrap();
    assert!(!binary.wants("f"));
    let floats = [1.0_f32, 2.0, 3.5, 4.0].map(f32::to_le_bytes).concat();
    let text = encode_strings(["é".as_bytes()]);
    let json = r#"{"id":"a","parameters":{"n":1,"x":0.5,"s":"t","b":true,"u":18446744073709551615,
        "binary_data_output":true},"inputs":[
        {"name":"f","datatype":"FP32","shape":[2,2],"parameters":{"binary_data_size":16}},
        {"name":"s","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":6}}],
        "outputs":[{"name":"f","parameters":{"binary_data":false}},{"name":"s"}]}"#;
    let body = [json.as_bytes(), &floats, &text].concat();
    let (mut raw, binary) = parse(&body, Some(json.len())).unwrap();
    assert!(!binary.wants("f") && binary.wants("s"));
    assert_eq!(raw.outputs.len(), 2);
    raw.outputs.clear();
    assert_eq!(raw, plain);
    let u = plain.parameters["u"].parameter_choice.clone();
    assert_eq!(u, Some(ParameterChoice::Uint64Param(u64::MAX)));
}

#[test]
fn bodies_that_are_not_what_they_say_are_refused() {
    let input = |more: &str| format!(r#"{{"inputs":[{{"name":"a","datatype":"INT32",{more}}}]}}"#);
    for (body, words) in [
        ("{", "is no request"),
        (r#"{"inptus":[]}"#, "inptus"),
        (r#"{"parameters":{"a":[1]}}"#, "a number, a string, true or false"),
        (&input(r#""shape":[1]"#), "has not either"),
        (&input(r#""shape":[1],"data":[2147483648]"#), "no INT32"),
        (&input(r#""shape":[1],"data":["x"]"#), "no such `data`"),
        (&input(r#""shape":[1],"data":1"#), "no such `data`"),
        (&input(r#""shape":[1],"parameters":{"binary_data_size":4}"#), "more bytes than there are"),
        (&input(r#""shape":[1],"parameters":{"binary_data_size":-1}"#), "more bytes than there"),
        (r#"{"parameters":{"binary_data_output":1}}"#, "is not true or false"),
        (&input(r#""shape":[1],"data":[1,2]"#), "more elements than by its shape"),
        (&input(r#""shape":[-1],"data":[1]"#), "a shape that cannot be"),
        (&input(r#""shape":[1025],"data":[1]"#), "1025 elements; at most 1024"),
        (&input(r#""shape":[1],"data":[1.0]"#), "no INT32"),
    ] {
        let error = parse(body.as_bytes(), None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(parse(b"{}", Some(3)).unwrap_err().to_string().contains("said to have more"));
    assert!(parse(b"{}xx", Some(2)).unwrap_err().to_string().contains("belong to no input"));
    // Lists within lists are read with calls within calls.
    let deep = input(&format!(r#""shape":[1],"data":{}{}"#, "[".repeat(9000), "]".repeat(9000)));
    assert!(parse(deep.as_bytes(), None).unwrap_err().to_string().contains("no such depth"));
}

/// Goal: lists whose elements take more in memory than in a body end where there is no room for more.
#[test]
fn lists_are_no_longer_than_there_is_room_for() {
    let long = |element: &str, n: usize| vec![element; n].join(",");
    let input = r#"{"name":"a","datatype":"INT64","shape":[1],"data":[1]}"#;
    let n = TENSORS_MAX as usize;
    assert_eq!(
        parse(format!(r#"{{"inputs":[{}]}}"#, long(input, n)).as_bytes(), None)
            .unwrap()
            .0
            .inputs
            .len(),
        n
    );
    let parameters: Vec<_> = (0..=n).map(|i| format!(r#""{i}":1"#)).collect();
    for body in [
        format!(r#"{{"inputs":[{}]}}"#, long(input, n + 1)),
        format!(r#"{{"outputs":[{}]}}"#, long(r#"{"name":"a"}"#, n + 1)),
        format!(
            r#"{{"inputs":[{{"name":"a","datatype":"INT64","shape":[{}]}}]}}"#,
            long("1", n + 1)
        ),
        format!(r#"{{"parameters":{{{}}}}}"#, parameters.join(",")),
    ] {
        let error = parse(body.as_bytes(), None).unwrap_err().to_string();
        assert!(error.contains("at most 256"), "{error}");
    }
    let body = format!(r#"{{"{}":1}}"#, "x".repeat(1 << 20));
    assert!(parse(body.as_bytes(), None).unwrap_err().to_string().len() < 300);
}

/// Each input had room for as many elements as all of them may have, and 256 of them were read before they were counted.
#[test]
fn inputs_are_counted_together_and_before_they_are_read() {
    let body = |n: usize, data: &str| {
        let input = format!(r#"{{"name":"a","datatype":"INT64","shape":[3],"data":{data}}}"#);
        Bytes::from(format!(r#"{{"inputs":[{}]}}"#, vec![input; n].join(",")))
    };
    let limits = Limits { tensors_max: 4, elements_max: 15 };
    let read = |body: &Bytes| Asked::parse(body, None)?.request(&limits);
    assert_eq!(read(&body(3, "[1,2,3]")).unwrap().0.inputs.len(), 3);
    let error = read(&body(4, "[1,2,3]")).unwrap_err().to_string();
    assert!(error.contains("at most 15 are allowed in all"), "{error}");
    let error = read(&body(5, "true")).unwrap_err().to_string();
    assert!(error.contains("are 5; at most 4"), "{error}");
}

/// What KServe's client writes: the name of the model, and nothing where there is nothing.
#[test]
fn bodies_may_repeat_what_the_path_says() {
    let json = r#"{"id":null,"model_name":"m","parameters":null,"outputs":null,"inputs":[
        {"name":"s","datatype":"BYTES","shape":[1],"parameters":null,"data":["a"]}]}"#;
    let named = |name: &str, version: &str| {
        let mut request = parse(json.as_bytes(), None).unwrap().0;
        super::name(&mut request, name.to_owned(), version.to_owned()).map(|()| request)
    };
    let request = named("m", "1").unwrap();
    assert_eq!((&*request.model_name, &*request.model_version, &*request.id), ("m", "1", ""));
    let error = named("n", "").unwrap_err().to_string();
    assert!(error.contains(r#"model_name is "m", but the path names "n""#), "{error}");
}

#[test]
fn answers_are_json_with_what_is_wanted_in_binary_behind() {
    let outputs = || {
        let text = Output::strings("s", vec![1], [&b"\"a\""[..]]);
        vec![Output::integers("i", vec![2], [1, -2]), Output::floats("f", vec![1], &[0.5]), text]
    };
    let response = ModelInferResponse {
        model_name: "m".to_owned(),
        id: "x".to_owned(),
        ..Wanted::default().respond(outputs())
    };
    let plain = Answer::new(&response, &Binary::default());
    let value: Value = serde_json::from_slice(&plain.bytes).unwrap();
    let data: Vec<_> = value["outputs"].as_array().unwrap().iter().map(|it| &it["data"]).collect();
    assert_eq!(data, [&json!([1, -2]), &json!([0.5]), &json!(["\"a\""])]);
    assert_eq!((&value["id"], plain.json_bytes), (&json!("x"), None));

    let by_name = HashMap::from([("f".to_owned(), false)]);
    let mixed = Answer::new(&response, &Binary { by_default: true, by_name });
    let (json, tail) = mixed.bytes.split_at(usize::try_from(mixed.json_bytes.unwrap()).unwrap());
    let value: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(value["outputs"][0]["parameters"]["binary_data_size"], json!(16));
    assert_eq!(value["outputs"][1]["data"], json!([0.5]));
    assert_eq!(tail.len(), 16 + 4 + 3);
}

/// Whatever comes, it is refused or it is a request whose tensors can be looked at.
#[test]
fn fuzzed_bodies_are_taken_or_refused() {
    let json = r#"{"id":"a","parameters":{"n":1,"binary_data_output":true},"inputs":[
        {"name":"p","datatype":"FP32","shape":[1,3,1,1],"data":[[[[1]],[[2]],[[0.5]]]]},
        {"name":"s","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":5}}],
        "outputs":[{"name":"f","parameters":{"binary_data":false}}]}"#;
    let seed = [json.as_bytes(), &encode_strings([&b"x"[..]])].concat();
    let words: [&[u8]; 6] = [b"[[[[", b"INT64", b"BYTES", b"binary_data_size", b"-1", b"1e400"];
    let fuzz = Fuzz { name: "oip_body", format: Format::Text, seeds: vec![seed], words: &words };
    fuzz.run(|bytes| {
        let end = bytes.windows(3).rposition(|it| it == b"}]}").map(|it| it + 3);
        let Ok((mut request, _)) = parse(bytes, end) else { return false };
        let Ok(inputs) = take_inputs(&mut request, 16) else { return false };
        let known = [Signature::new("f", crate::oip::tensor::Datatype::Fp32, &[1])];
        Wanted::take(&mut request, &known).is_ok()
            & inputs.into_iter().all(|it| match it.name.as_str() {
                "s" => it.strings().is_ok(),
                _ => it.floats().is_ok(),
            })
    });
}

fn parse(bytes: &[u8], json_bytes: Option<usize>) -> Result<(ModelInferRequest, Binary), Reject> {
    let limits = Limits { tensors_max: TENSORS_MAX, elements_max: 1024 };
    Asked::parse(&Bytes::copy_from_slice(bytes), json_bytes)?.request(&limits)
}
