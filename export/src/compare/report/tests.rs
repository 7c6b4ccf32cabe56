//! What people and programs see.

use expect_test::expect;

use super::*;

/// A report of two bundles.
fn report() -> Report {
    let figures = Figures {
        nats_per_token: 3.5,
        perplexity: 33.115_452,
        bits_per_byte: 1.25,
        kl_nats_mean: 0.0,
        kl_nats_p99: 0.0,
        other_choice: 0.0,
    };
    let reference = Row {
        bundle: "tales".to_owned(),
        precision: Precision::F16,
        activation_bits: 32,
        bytes: 9_665_459,
        weight_bits: 16.04,
        figures,
    };
    let rounded = Row {
        bundle: "tales-q4".to_owned(),
        precision: Precision::Q4,
        activation_bits: 8,
        bytes: 3_000_000,
        weight_bits: 4.7,
        figures: Figures { kl_nats_mean: 0.012, kl_nats_p99: 0.1, other_choice: 0.0375, ..figures },
    };
    let sessions = [Session { ids: vec![0, 5, 6], text_bytes: 7 }];
    Report::new("tales.valid.txt".to_owned(), &sessions, vec![reference, rounded])
}

#[test]
fn figures_are_shown_in_a_table() {
    expect![[r#"
        tales.valid.txt: 2 tokens in 1 sessions, 7 bytes

        bundle    weights  inputs    bytes  bits/weight  nats/token  perplexity  bits/byte   KL mean    KL 99%  other choice
        tales         f16     f32  9665459        16.04      3.5000      33.115     1.2500  0.000000  0.000000        0.00 %
        tales-q4       q4  8 bits  3000000         4.70      3.5000      33.115     1.2500  0.012000  0.100000        3.75 %
    "#]].assert_eq(&report().to_string());
}

#[test]
fn figures_are_written_as_json() {
    expect![[r#"
        {
          "text": "tales.valid.txt",
          "text_bytes": 7,
          "sessions": 1,
          "tokens": 2,
          "bundles": [
            {
              "bundle": "tales",
              "precision": "f16",
              "activation_bits": 32,
              "bytes": 9665459,
              "weight_bits": 16.04,
              "nats_per_token": 3.5,
              "perplexity": 33.115452,
              "bits_per_byte": 1.25,
              "kl_nats_mean": 0.0,
              "kl_nats_p99": 0.0,
              "other_choice": 0.0
            },
            {
              "bundle": "tales-q4",
              "precision": "q4",
              "activation_bits": 8,
              "bytes": 3000000,
              "weight_bits": 4.7,
              "nats_per_token": 3.5,
              "perplexity": 33.115452,
              "bits_per_byte": 1.25,
              "kl_nats_mean": 0.012,
              "kl_nats_p99": 0.1,
              "other_choice": 0.0375
            }
          ]
        }
    "#]]
    .assert_eq(&report().to_json());
}
