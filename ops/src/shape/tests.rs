use super::*;
use crate::schema::SCHEMAS;

#[test]
fn letters_take_their_meaning_from_the_first_input_that_has_them() {
    let mut letters = Letters::unknown();
    bind(&mut letters, "L C-1 R", &[9, 3, 48]).unwrap();
    bind(&mut letters, "C R", &[4, 48]).unwrap();
    bind(&mut letters, "K R/K R/K", &[6, 8, 8]).unwrap();
    assert_eq!(letters.get('C'), Some(4));

    let mut dims = [0; RANK_MAX];
    assert_eq!(Shape::parse("R L").extents(&letters, &mut dims), [48, 9]);
}

#[test]
fn an_axis_that_contradicts_an_earlier_one_is_refused() {
    for (shape, dims, message) in [
        ("N R", &[7][..], "x has 1 axes; its shape is [N R]"),
        ("N R", &[7, 5], "x has extent 5 on axis 1 of [N R]; 6 is needed"),
        ("W+1 N", &[8, 7], "x has extent 8 on axis 0 of [W+1 N]; 3 is needed"),
        ("H*d", &[11], "x has extent 11 on axis 0 of [H*d]; 12 is needed"),
        ("K R/K", &[4, 1], "x has extent 1 on axis 1 of [K R/K]; -1 is needed"),
        ("C-1", &[-2], "x has extent -2 on axis 0 of [C-1], from which no shape follows"),
        ("Q*Z", &[1], "x has extent 1 on axis 0 of [Q*Z], from which no shape follows"),
    ] {
        let mut letters = Letters::unknown();
        for (letter, value) in [('R', 6), ('W', 2), ('H', 3), ('d', 4)] {
            letters.set(letter, value);
        }
        let outcome = bind(&mut letters, shape, dims);
        assert_eq!(outcome.unwrap_err().to_string(), message);
    }
}

#[test]
fn every_schema_has_shapes_that_parse_and_outputs_made_of_input_letters() {
    for schema in SCHEMAS {
        let is_letter = |it: &char| it.is_ascii_alphabetic();
        let inputs = schema.inputs.iter().flat_map(|port| port.shape.chars().filter(is_letter));
        // Attributes tell these.
        let told = schema.attributes.iter().filter_map(|it| match it.name {
            "inputs" => Some('D'),
            "outputs" => Some('R'),
            "head_dim" => Some('d'),
            _ => None,
        });
        let known: Vec<char> = inputs.chain(told).collect();
        for output in schema.outputs {
            let unknown = output.shape.chars().filter(is_letter).find(|it| !known.contains(it));
            assert_eq!(unknown, None, "{} of {}", output.name, schema.name);
        }
        for port in schema.inputs {
            Shape::parse(port.shape);
        }
    }
}

fn bind(letters: &mut Letters, shape: &'static str, dims: &[i64]) -> Result<(), ShapeError> {
    Shape::parse(shape).bind(letters, dims, ["x", shape])
}
