use super::*;
use crate::checkpoint::Tensors;

/// A run of ten steps of the tiny model on a text with a pattern.
fn begin_run(dir: &std::path::Path) -> RunDir {
    let text: String = (0..600).map(|it| ["The wolf ", "ate ", "a tale. "][it * it % 3]).collect();
    fs::write(dir.join("text.txt"), &text).unwrap();
    let tokenizer = tokenizer::train_characters(&[text]).unwrap();
    let mut model = toml::to_string(&presets::preset("tiny").unwrap()).unwrap();
    let vocab = format!("vocab = {}", tokenizer.get_vocab_size(true));
    model = model.replace("vocab = 64", &vocab);
    let train = TrainConfig {
        text: dir.join("text.txt"),
        valid: None,
        holdout: Some(0.1),
        documents: Documents::Files,
        rows: 3,
        time: 24,
        accumulate: 2,
        steps: 10,
        learning_rate: 1e-2,
        final_share: 0.1,
        warmup: 2,
        beta1: 0.9,
        beta2: 0.95,
        decay: 0.1,
        clip: 1.0,
        seed: 3,
        matmul: Matmul::F32,
        checkpoint_every: 100,
        valid_every: 10,
        log_every: 1,
    };
    let run = RunDir::new(dir.join("run"));
    run.create(&Run { model: toml::from_str(&model).unwrap(), train }).unwrap();
    tokenizer.save(run.path().join(TOKENIZER_FILE), false).unwrap();
    run
}

fn checkpoint(run: &RunDir) -> (Progress, Tensors, Tensors) {
    let step = run.latest().unwrap().unwrap();
    let progress = Progress { seconds: 0.0, ..step.progress().unwrap() };
    (progress, step.model().unwrap(), step.optimizer().unwrap())
}

/// Goal: a run that is stopped and gone on with ends bit for bit where one that never stopped does.
#[test]
fn five_steps_and_five_more_are_ten() {
    let never = AtomicBool::new(false);
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let whole = begin_run(whole.path());
    train(&whole, u64::MAX, &never).unwrap();

    let parts = begin_run(parts.path());
    train(&parts, 5, &never).unwrap();
    assert_eq!(checkpoint(&parts).0.step, 5);
    train(&parts, u64::MAX, &never).unwrap();
    assert_eq!(checkpoint(&parts), checkpoint(&whole));
    let steps = |run: &RunDir| {
        let log = fs::read_to_string(run.path().join(LOG_FILE)).unwrap();
        log.lines().skip(1).map(|it| it.split(',').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(steps(&parts), steps(&whole));
    assert_eq!(steps(&whole).len(), 10);
}

#[test]
fn training_learns_the_pattern_of_its_text() {
    let dir = tempfile::tempdir().unwrap();
    let run = begin_run(dir.path());
    let mut config = run.run().unwrap();
    let untrained = (f64::from(config.model.vocab)).ln();
    config.train.steps = 60;
    config.train.valid_every = 60;
    run.create(&config).unwrap();
    train(&run, u64::MAX, &AtomicBool::new(false)).unwrap();
    let valid = checkpoint(&run).0.valid_loss_best.unwrap();
    assert!(valid < untrained / 2.0, "{valid} nats, {untrained} before");
}

#[test]
fn interrupted_run_leaves_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run = begin_run(dir.path());
    train(&run, 3, &AtomicBool::new(false)).unwrap();
    train(&run, u64::MAX, &AtomicBool::new(true)).unwrap();
    assert_eq!(checkpoint(&run).0.step, 3);
}

#[test]
fn learning_rate_rises_then_falls_to_its_final_share() {
    let dir = tempfile::tempdir().unwrap();
    let config = begin_run(dir.path()).run().unwrap().train;
    let rates: Vec<f64> = (1..=10).map(|step| learning_rate(&config, step)).collect();
    assert_eq!(rates[..2], [5e-3, 1e-2]);
    assert!(rates[1..].windows(2).all(|it| it[1] < it[0]), "{rates:?}");
    // f64, a handful of roundings.
    assert!((rates[9] - 1e-3).abs() < 1e-15, "{rates:?}");
}
