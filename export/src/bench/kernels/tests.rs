use expect_test::expect;

use super::*;

#[test]
fn matrices_of_a_preset_are_grouped_by_their_extents() {
    let products = products(&crate::emit::preset("tiny").unwrap());
    let lines = products.iter().map(|it| {
        let Product { name, groups, inputs, outputs } = it;
        format!("{groups} x {inputs} to {outputs}: {name}\n")
    });
    expect![[r#"
        1 x 32 to 64: embed_tokens
        1 x 96 to 32: down_proj
        1 x 32 to 96: gate_proj, up_proj
        1 x 48 to 32: linear_out
        1 x 32 to 48: linear_x, linear_y
        4 x 12 to 12: input_gate, recurrent_gate
        1 x 32 to 8: k_proj, v_proj
        1 x 32 to 32: o_proj, q_proj
    "#]]
    .assert_eq(&lines.collect::<String>());
}

/// Weights that are copies of one panel give every 64 outputs the same results.
#[test]
fn copied_panels_are_packed_weights() {
    for format in Format::ALL {
        let packing = Packing { format, groups: 2, inputs: 40, outputs: 2 * PANEL };
        let mut weights = Rotated::new(packing);
        assert!(2 <= weights.copies);
        let x: Vec<f32> = (0..80).map(|it| (it % 40) as f32 - 20.0).collect();
        let mut y = vec![0.0; 4 * PANEL];
        for _ in 0..2 {
            matmul(&weights.turn(), &x, &mut y, &mut Scratch::default(), &Serial);
            let (first, rest) = y.split_at(PANEL);
            assert!(first.iter().any(|it| *it != 0.0));
            assert!(rest.chunks(PANEL).all(|it| it == first), "{format:?}");
        }
        assert_eq!(weights.turn().weights.packed.as_ptr().align_offset(LINE_BYTES), 0);
    }
}
