//! What a bundle looks like.

use aerie_fuzz::{Format, Fuzz};
use aerie_models::Precision;
use expect_test::expect;
use prost::Message;

use super::*;
use crate::{
    emit::{Options, Source, emit},
    onnx::Target,
};

#[test]
fn bundle_is_shown_whole() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    let options = Options {
        name: "tiny".to_owned(),
        target: Target::Ragged,
        precision: Precision::F16,
        force: false,
    };
    emit(&Source::random("tiny", 0).unwrap(), &options, &out).unwrap();
    let text = Bundle::open(&out).unwrap().to_string();
    // Hashes and sizes follow from everything else.
    let stable = text.lines().filter(|it| !it.contains("fingerprint") && !it.contains(".toml"));
    let stable: Vec<&str> = stable.skip_while(|it| *it != "parameters").collect();
    expect![[r#"
        parameters
          embed_tokens                                2 048           4 096 B
          layers.0             recurrent             15 776          32 768 B
          layers.1             recurrent             15 776          32 768 B
          layers.2             attention             12 096          24 832 B
          layers.3             recurrent             15 776          32 768 B
          layers.4             recurrent             15 776          32 768 B
          final_norm                                     32             128 B
          total                                      77 280         160 128 B

        nodes
          Add                                            10
          Cast                                           44
          Gather                                          2
          Gelu                                            9
          Gemm                                           32
          Mul                                            12
          Slice                                           1
          Sub                                             1
          Tanh                                            1
          BlockDiagonal        aerie                      8
          CausalConv1d         aerie                      4
          LocalAttention       aerie                      1
          RgLru                aerie                      4
          RmsNorm              aerie                     11
          total                                         140

        state of a session
          layers.0.conv        [3, 48]                576 B
          layers.0.rg_lru      [48]                   192 B
          layers.1.conv        [3, 48]                576 B
          layers.1.rg_lru      [48]                   192 B
          layers.2.keys        [9, 8]                 288 B
          layers.2.values      [9, 8]                 288 B
          layers.3.conv        [3, 48]                576 B
          layers.3.rg_lru      [48]                   192 B
          layers.4.conv        [3, 48]                576 B
          layers.4.rg_lru      [48]                   192 B
          total                                     3 648 B"#]]
    .assert_eq(&stable.join("\n"));
}

#[test]
fn digits_are_grouped_from_the_right() {
    let check = |number, expected| assert_eq!(grouped(number), expected);
    check(0, "0");
    check(999, "999");
    check(1000, "1 000");
    check(12_345_678, "12 345 678");
}

#[test]
fn parameters_are_grouped_by_layer() {
    let check = |name, expected| assert_eq!(group(name), expected);
    check("embed_tokens.weight", "embed_tokens");
    check("layers.12.mlp_block.gate_proj.weight", "layers.12");
    check("final_norm.weight", "final_norm");
}

#[test]
fn damaged_bundle_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = Bundle::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains(MANIFEST_FILE), "{error}");
}

/// Products and sums of what a graph claims overflowed.
#[test]
fn more_elements_than_there_can_be_are_counted_as_many() {
    let mut count = Count::default();
    for dims in [vec![1 << 40, 1 << 40], vec![i64::MAX], vec![-1, 3], vec![2, 3]] {
        count.add(&proto::Tensor { dims, data_type: 1, ..proto::Tensor::default() });
    }
    assert_eq!(count, Count { elements: u64::MAX, bytes: u64::MAX });
}

#[test]
fn fuzzed_graphs_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tiny");
    let options = Options {
        name: "tiny".to_owned(),
        target: Target::Ragged,
        precision: Precision::Q4,
        force: false,
    };
    emit(&Source::random("tiny", 0).unwrap(), &options, &out).unwrap();
    let Bundle { manifest, files, mut graph } = Bundle::open(&out).unwrap();
    // Elements are counted by what is said of them.
    graph.initializer.iter_mut().for_each(|it| it.raw_data = None);
    let fuzz = Fuzz {
        name: "inspect",
        format: Format::Protobuf,
        seeds: vec![graph.encode_to_vec()],
        words: &[b"layers.", b"constant.", b"."],
    };
    fuzz.run(|bytes| {
        let Ok(graph) = proto::Graph::decode(bytes) else { return false };
        let bundle = Bundle { manifest: manifest.clone(), files: files.clone(), graph };
        !bundle.to_string().is_empty()
    });
}
