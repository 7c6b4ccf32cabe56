use super::*;

/// Goal: a stream without end keeps its sense of place.
/// Method: angles reduced in exact integer arithmetic where the frequency is a power of ten, which
/// every fourth pair of 32 rotated dimensions has.
#[test]
fn angles_hold_where_f32_positions_are_long_lost() {
    let rope = Rope::new(32);
    let (mut cos, mut sin) = ([0.0; 16], [0.0; 16]);
    for position in [0, 1, 1 << 20, (1 << 24) + 1, 1 << 31] {
        rope.turn(position, &mut cos, &mut sin);
        for (pair, divisor) in [(0, 1u64), (4, 10), (8, 100), (12, 1000)] {
            let (s, c) = exact(position, divisor);
            for (name, found, exact) in [("cos", cos[pair], c), ("sin", sin[pair], s)] {
                let off = (f64::from(found) - exact).abs();
                // Half a unit of f32 near 1, and the f64 angle's own error.
                let tolerance = 6e-8 + position as f64 * 3.0 * f64::EPSILON;
                assert!(off <= tolerance, "{name} {pair} at {position} is off by {off:e}");
            }
        }
    }
}

#[test]
fn neighbouring_positions_beyond_f32_are_told_apart() {
    let rope = Rope::new(4);
    let turn = |position| {
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        rope.turn(position, &mut cos, &mut sin);
        (cos, sin)
    };
    assert_ne!(turn(1 << 24), turn((1 << 24) + 1));
}

#[test]
fn only_the_leading_dimensions_turn_and_pairs_are_half_the_rotation_apart() {
    let mut head = [1.0, 10.0, 2.0, 20.0, 7.0];
    rotate(&mut head, &[0.0, 1.0], &[1.0, 0.0]);
    assert_eq!(head, [-2.0, 10.0, 1.0, 20.0, 7.0]);
}

/// Sine and cosine of `position / divisor`: the angle less its whole turns, in parts small enough
/// for f64. A turn is taken in two pieces, of which the first multiplies exactly.
fn exact(position: u64, divisor: u64) -> (f64, f64) {
    const TURN_HI: f64 = 6.283_185_005_187_988; // 2π to 22 bits
    const TURN_LO: f64 = std::f64::consts::TAU - TURN_HI;
    const TURN_REST: f64 = 2.449_293_598_294_706_4e-16; // 2π less its f64
    let (whole, rest) = (position / divisor, position % divisor);
    let turns = (whole as f64 / std::f64::consts::TAU).floor();
    let angle = whole as f64 - turns * TURN_HI - turns * TURN_LO - turns * TURN_REST;
    (angle + rest as f64 / divisor as f64).sin_cos()
}
