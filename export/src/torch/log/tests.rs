use super::*;

fn line(step: u64, valid: Option<Valid>) -> Line {
    Line {
        step,
        seen: 4096 * step,
        seconds: 2.5,
        train_loss: 3.0,
        valid,
        learning_rate: 1e-3,
        gradient_norm: 0.5,
        clipped: (step == 20).then_some(0.25),
        seen_per_second: 1638.4,
    }
}

#[test]
fn line_leaves_validation_empty_where_there_was_none() {
    assert_eq!(csv(&line(10, None)), "10,40960,2.5,3.00000,,,1.000e-3,0.5000,,1638");
    let valid = Some(Valid { loss: 3.25, score: 1.5 });
    assert_eq!(
        csv(&line(20, valid)),
        "20,81920,2.5,3.00000,3.25000,1.50000,1.000e-3,0.5000,0.2500,1638"
    );
}

#[test]
fn log_that_is_gone_on_with_forgets_what_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.csv");
    let mut log = Log::open(&path, Unit::Tokens, 0).unwrap();
    for step in [10, 20, 30] {
        log.add(&line(step, None)).unwrap();
    }
    Log::open(&path, Unit::Tokens, 20).unwrap().add(&line(25, None)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let steps: Vec<_> = text.lines().map(|it| it.split(',').next().unwrap()).collect();
    assert_eq!(steps, ["step", "10", "20", "25"]);
}
