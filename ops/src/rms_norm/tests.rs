use super::*;
use crate::Serial;

#[test]
fn agrees_with_f64() {
    for width in [1, 15, 16, 17, 33, 192] {
        let (x, weight) = (ramp(3 * width, -2.0, 3.0), ramp(width, -0.5, 0.5));
        let mut y = vec![0.0; x.len()];
        rms_norm(1e-6, &weight, &x, &mut y, &Serial);
        for (x, y) in x.chunks(width).zip(y.chunks(width)) {
            let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
            for ((&x, &y), &weight) in x.iter().zip(y).zip(&weight) {
                let exact = f64::from(x) / (mean + 1e-6).sqrt() * (1.0 + f64::from(weight));
                // A mean, a root, a quotient and two products, each rounded once.
                assert!((f64::from(y) - exact).abs() < 5e-7 * exact.abs().max(1.0), "{y} {exact}");
            }
        }
    }
}

#[test]
fn a_row_does_not_see_its_neighbours() {
    let (width, rows) = (33, 70);
    let (x, weight) = (ramp(rows * width, -2.0, 3.0), ramp(width, -0.5, 0.5));
    let mut together = vec![0.0; x.len()];
    rms_norm(1e-6, &weight, &x, &mut together, &Serial);
    for (row, x) in x.chunks(width).enumerate() {
        let mut alone = vec![0.0; width];
        rms_norm(1e-6, &weight, x, &mut alone, &Serial);
        assert_eq!(alone, together[row * width..][..width], "row {row}");
    }
}

#[test]
fn zeros_stay_zeros() {
    let mut y = [1.0; 4];
    rms_norm(1e-6, &[0.0; 4], &[0.0; 4], &mut y, &Serial);
    assert_eq!(y, [0.0; 4]);
}

fn ramp(len: usize, from: f32, to: f32) -> Vec<f32> {
    (0..len).map(|i| from + (to - from) * (i as f32 / len as f32)).collect()
}
