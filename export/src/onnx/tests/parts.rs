//! Operators that do several things at once, against graphs in which each is a node of its own.

use aerie_models::{ModelConfig, Precision, bundle::MODEL_FILE, presets};
use aerie_ops::schema;

use crate::{
    onnx::{
        Limits, Target, emit,
        proto::{self, AttributeKind},
        tests::Jittered,
        weights::{Random, read_model},
        write,
    },
    runtime::{Segment, shared},
};

/// Goal: what a fused operator gives is what its parts give, bit for bit, in any step.
/// Method: take the graph of the preset `tiny` apart and run both over the same steps: prompts of
/// several sessions in one, then single tokens, past the attention window.
#[test]
fn fused_operators_are_their_parts() {
    let Some(runtime) = shared() else { return };
    let config = presets::preset("tiny").unwrap();
    for precision in [Precision::Bf16, Precision::Q8, Precision::Q4] {
        let dir = tempfile::tempdir().unwrap();
        let graph = emit(&config, Target::Ragged, precision);
        let weights = Jittered(Random { seed: 11 });
        write(graph, "m", &weights, Limits::default(), dir.path()).unwrap();
        let fused = read_model(&dir.path().join(MODEL_FILE)).unwrap();
        let mut parts = fused.clone();
        let graph = parts.graph.as_mut().unwrap();
        graph.node = std::mem::take(&mut graph.node).into_iter().flat_map(take_apart).collect();
        assert!(graph.node.len() > fused.graph.as_ref().unwrap().node.len());
        let run = |model| {
            let mut graph = runtime.open_edited(model, dir.path(), &config).unwrap();
            graph.reset(3).unwrap();
            steps(&config)
                .iter()
                .flat_map(|step| graph.step(step).unwrap().floats("logits").unwrap().to_vec())
                .map(f32::to_bits)
                .collect::<Vec<_>>()
        };
        assert_eq!(run(&fused), run(&parts), "{precision:?}");
    }
}

/// Sessions in three lanes.
fn steps(config: &ModelConfig) -> Vec<Vec<Segment<'static>>> {
    let tokens: &'static [u32] = &[1, 5, 2, 7, 3, 9, 4, 8, 6, 1, 3, 2, 9, 5, 7, 4, 6, 8, 2, 1];
    assert!(tokens.len() > config.window as usize, "the window is passed");
    let segment =
        |lane, from: usize, to| Segment { lane, position: from, tokens: &tokens[from..to] };
    let mut steps =
        vec![vec![segment(0, 0, 3), segment(2, 0, 17)], vec![segment(1, 0, 1), segment(0, 3, 12)]];
    for at in 0..3 {
        let one = |lane, from: usize| segment(lane, from + at, from + at + 1);
        steps.push(vec![one(2, 17), one(1, 1), one(0, 12)]);
    }
    steps
}

/// The node, or those that do the same one after the other.
fn take_apart(node: proto::Node) -> Vec<proto::Node> {
    let input = |at: usize| node.input[at].as_str();
    let output = |at: usize| node.output[at].as_str();
    let inner = |what: &str| format!("{}.{what}", node.name);
    let norm = || {
        let inputs = [input(0), input(1)];
        ours(schema::RMS_NORM.name, &inputs, &inner("z"), &node, &["epsilon"])
    };
    let z = inner("z");
    let product = |inputs: &[&str], y: &str, gelu, outputs: Option<&str>| {
        let attributes = ["bits", "inputs", "outputs", "activation_bits"];
        let mut it = ours(schema::PACKED_MATMUL.name, inputs, y, &node, &attributes);
        if let Some(outputs) = outputs {
            it.attribute[2].i = node.attribute.iter().find(|it| it.name == outputs).unwrap().i;
        }
        let int = |it: &mut proto::Attribute| it.set_kind(AttributeKind::Int);
        let mut gelu =
            proto::Attribute { name: "gelu".into(), i: Some(gelu), ..Default::default() };
        int(&mut gelu);
        let mut cap =
            proto::Attribute { name: "soft_cap".into(), f: Some(0.0), ..Default::default() };
        cap.set_kind(AttributeKind::Float);
        it.attribute.extend([gelu, cap]);
        it
    };
    match node.op_type.as_str() {
        "PackedPair" => vec![
            norm(),
            product(&[&z, input(2), input(4)], output(0), 1, None),
            product(&[&z, input(3), input(5)], output(1), 0, None),
        ],
        "PackedQkv" => vec![
            norm(),
            product(&[&z, input(2)], output(0), 0, None),
            product(&[&z, input(3)], output(1), 0, Some("head_dim")),
            product(&[&z, input(4)], output(2), 0, Some("head_dim")),
        ],
        "PackedGated" => vec![
            norm(),
            product(&[&z, input(2), input(4)], &inner("gate"), 1, None),
            product(&[&z, input(3), input(5)], &inner("up"), 0, None),
            standard("Mul", &[&inner("gate"), &inner("up")], output(0)),
        ],
        "PackedRgLru" => {
            let gates = [inner("a"), inner("x")];
            let steps = [7, 8, 9, 10].map(input);
            let inputs = [&[input(0), &gates[0], &gates[1], input(5)][..], &steps].concat();
            let mut lru = ours(schema::RG_LRU.name, &inputs, &inner("h"), &node, &[]);
            lru.output.push(output(1).to_owned());
            vec![
                product(&[input(0), input(1), input(3)], &gates[0], 0, None),
                product(&[input(0), input(2), input(4)], &gates[1], 0, None),
                lru,
                standard("Mul", &[&inner("h"), input(6)], output(0)),
            ]
        }
        "PackedMatMul" if node.input.len() == 4 => vec![
            product(&[input(0), input(1), input(2)], &inner("product"), 0, None),
            standard("Add", &[input(3), &inner("product")], output(0)),
        ],
        _ => vec![node],
    }
}

/// A node of ours with some of another's attributes.
fn ours(
    name: &str,
    inputs: &[&str],
    y: &str,
    of: &proto::Node,
    attributes: &[&str],
) -> proto::Node {
    let attribute = |name: &&str| of.attribute.iter().find(|it| it.name == *name).unwrap().clone();
    let attribute = attributes.iter().map(attribute).collect();
    let domain = schema::DOMAIN.to_owned();
    proto::Node { attribute, domain, ..standard(name, inputs, y) }
}

fn standard(name: &str, inputs: &[&str], y: &str) -> proto::Node {
    proto::Node {
        input: inputs.iter().map(|it| (*it).to_owned()).collect(),
        output: vec![y.to_owned()],
        name: format!("{y}/{name}"),
        op_type: name.to_owned(),
        ..Default::default()
    }
}
