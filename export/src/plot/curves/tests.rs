use super::*;

#[test]
fn names_go_where_no_line_is() {
    const FALLS: &[[f64; 2]] = &[[0.0, 0.0], [1.0, 1.0]];
    const RISES: &[[f64; 2]] = &[[0.0, 1.0], [1.0, 0.0]];
    const LOW: &[[f64; 2]] = &[[0.5, 0.95], [1.0, 0.95]];
    const BEGINS: &[[f64; 2]] = &[[0.9, 0.0], [1.0, 0.1]];
    let corner = |lines: &[&[[f64; 2]]]| {
        format!("{:?}", emptiest(&lines.iter().map(|it| it.to_vec()).collect::<Vec<_>>()))
    };
    assert_eq!(corner(&[FALLS]), "UpperRight");
    assert_eq!(corner(&[RISES]), "LowerRight");
    assert_eq!(corner(&[RISES, LOW]), "UpperLeft");
    assert_eq!(corner(&[FALLS, LOW, BEGINS]), "LowerLeft");
    assert_eq!(corner(&[]), "UpperRight");
}
