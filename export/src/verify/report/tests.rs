//! The comparison and its table.

use expect_test::{Expect, expect};

use super::*;

#[test]
fn worst_difference_is_found_with_its_place() {
    check(
        &[(0, [1.0, 2.0]), (2, [5.0, 6.5])],
        0.1,
        true,
        expect![[r#"
            reference: first; 3 positions, largest logit 6.000
            tolerance: 6.0e-1

            reading                                answers     worst  at position   token    bits
            second                                       2    5.0e-1            2       1          ok
        "#]],
    );
}

#[test]
fn difference_beyond_the_tolerance_fails() {
    check(
        &[(1, [3.0, 3.0])],
        0.1,
        false,
        expect![[r#"
            reference: first; 3 positions, largest logit 6.000
            tolerance: 6.0e-1

            reading                                answers     worst  at position   token    bits
            second                                       1     1.0e0            1       1          BEYOND
        "#]],
    );
}

#[test]
fn what_is_not_a_number_fails() {
    check(
        &[(0, [f64::NAN, 2.0])],
        0.1,
        false,
        expect![[r#"
            reference: first; 3 positions, largest logit 6.000
            tolerance: 6.0e-1

            reading                                answers     worst  at position   token    bits
            second                                       1       inf            0       0          BEYOND
        "#]],
    );
}

/// Holds `second` against a reference of `[1 2] [3 4] [5 6]`.
#[track_caller]
fn check(second: &[(usize, [f64; 2])], tolerance: f64, passes: bool, expected: Expect) {
    let reading = |name: &str, answers: &[(usize, [f64; 2])]| Reading {
        name: name.to_owned(),
        ragged: false,
        answers: answers
            .iter()
            .map(|&(position, logits)| Answer { position, logits: logits.to_vec() })
            .collect(),
    };
    let first = reading("first", &[(0, [1.0, 2.0]), (1, [3.0, 4.0]), (2, [5.0, 6.0])]);
    let report = Report::new(vec![first, reading("second", second)], tolerance);
    expected.assert_eq(&report.to_string());
    assert_eq!(report.passes(), passes);
}
