use std::fs;

use super::*;
use crate::run::tests::image_run;

/// A run in `<dir>/<curve>/<name>` with batches of `batch`, that has ended with `accuracy`.
fn ended(dir: &Path, at: &str, batch: u32, learning_rate: f64, accuracy: f64) -> PathBuf {
    let path = dir.join(at);
    let mut run = image_run();
    let Data::Images(data) = &mut run.data else { panic!("it is a run on images") };
    data.batch.batch = batch;
    run.train.learning_rate = learning_rate;
    run.train.steps = 20;
    run.train.accumulate = 1;
    RunDir::new(&path).create(&run).unwrap();
    let log = format!(
        "step,images,seconds,train_loss,valid_loss,accuracy\n10,80,1,2.0,2.1,0.9\n20,160,1,1.5,1.6,{accuracy}\n"
    );
    fs::write(path.join("log.csv"), log).unwrap();
    path
}

#[test]
fn best_rate_and_mean_over_seeds_make_a_point() {
    let dir = tempfile::tempdir().unwrap();
    let runs = [
        ("clipped/a", 64, 0.1, 0.70),
        ("clipped/b", 64, 0.1, 0.74),
        ("clipped/c", 64, 0.2, 0.71),
        ("clipped/d", 16, 0.1, 0.60),
        ("plain/a", 64, 0.1, 0.50),
    ];
    let runs = runs.map(|(at, batch, rate, found)| ended(dir.path(), at, batch, rate, found));
    let sweep = Sweep::read(&runs, Axis::Accuracy, Over::Batch).unwrap();
    let curves = sweep.curves();
    let names: Vec<_> = curves.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["clipped", "plain"]);
    assert_eq!(curves[0].points, [(16.0, 0.60), (64.0, 0.72)]);
    assert_eq!(curves[1].points, [(64.0, 0.50)]);
    let table = sweep.to_string();
    assert!(
        table.contains("clipped             64            0.1     2  0.7200 ± 0.0283"),
        "{table}"
    );
}

#[test]
fn unlike_runs_make_no_point() {
    let dir = tempfile::tempdir().unwrap();
    let runs = ["a/one", "a/two"].map(|at| ended(dir.path(), at, 64, 0.1, 0.7));
    let other = RunDir::new(&runs[1]);
    let mut run = other.run().unwrap();
    run.train.seed += 1;
    other.create(&run).unwrap();
    Sweep::read(&runs, Axis::Accuracy, Over::Batch).unwrap();
    run.train.average = Some(0.99);
    other.create(&run).unwrap();
    let error = Sweep::read(&runs, Axis::Accuracy, Over::Batch).unwrap_err().to_string();
    assert!(error.contains("a/two and") && error.contains("one batch"), "{error}");
}

#[test]
fn runs_that_are_not_at_their_end_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, part] = ["a/whole", "a/part"].map(|at| ended(dir.path(), at, 8, 0.1, 0.8));
    fs::write(
        part.join("log.csv"),
        "step,images,seconds,train_loss,valid_loss,accuracy\n10,80,1,2.0,2.1,0.9\n",
    )
    .unwrap();
    let runs = [whole, part];
    let sweep = Sweep::read(&runs, Axis::Accuracy, Over::LearningRate).unwrap();
    assert_eq!(sweep.curves()[0].points, [(0.1, 0.8)]);
    assert!(sweep.to_string().contains("a/part is left out: it stands at step 10 of 20"));
    let error = Sweep::read(&runs, Axis::Accuracy, Over::GradientNorm).unwrap_err().to_string();
    assert!(error.ends_with("since it has no coefficient of the gradient's norm"), "{error}");
}
