use super::*;
use crate::run::tests::text_run as run;

fn tensors(values: &[f32]) -> Tensors {
    let values = Values { shape: vec![values.len(), 1], values: values.to_vec() };
    Tensors::from([("final_norm.weight".to_owned(), values)])
}

fn checkpoint() -> Checkpoint {
    Checkpoint { model: tensors(&[1.0]), average: None, optimizer: tensors(&[2.0]) }
}

#[test]
fn averages_are_what_is_used_where_there_are_some() {
    let dir = tempfile::tempdir().unwrap();
    let runs = RunDir::new(dir.path());
    let averaged = Checkpoint { average: Some(tensors(&[7.0])), ..checkpoint() };
    let step = runs.save(&Progress::default(), &averaged).unwrap();
    assert_eq!(step.tensors().unwrap(), averaged);
    assert_eq!(step.model().unwrap(), tensors(&[7.0]));
}

#[test]
fn run_directory_reads_back_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let runs = RunDir::new(dir.path().join("run"));
    assert!(!runs.exists());
    runs.create(&run()).unwrap();
    assert!(runs.exists());
    assert_eq!(runs.run().unwrap(), run());
    assert!(runs.latest().unwrap().is_none());

    let progress = Progress { step: 5, seen: 80, seconds: 0.25, ..Progress::default() };
    let whole = Checkpoint {
        model: tensors(&[1.0, -0.0]),
        average: None,
        optimizer: tensors(&[f32::MIN_POSITIVE, 3.0]),
    };
    runs.save(&progress, &whole).unwrap();
    let step = runs.latest().unwrap().unwrap();
    assert_eq!(step.progress().unwrap(), progress);
    assert_eq!(step.tensors().unwrap(), whole);
    assert_eq!(step.model().unwrap(), whole.model);
}

#[test]
fn newer_checkpoint_replaces_the_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let runs = RunDir::new(dir.path());
    for step in [5, 10] {
        let progress = Progress { step, ..Progress::default() };
        runs.save(&progress, &checkpoint()).unwrap();
    }
    assert_eq!(runs.latest().unwrap().unwrap().progress().unwrap().step, 10);
    assert!(!runs.step(5).path().exists());
}

#[test]
fn a_checkpoint_half_written_is_not_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let runs = RunDir::new(dir.path());
    let progress = Progress { step: 5, ..Progress::default() };
    runs.save(&progress, &checkpoint()).unwrap();
    // What a kill in the middle of the next one leaves behind.
    fs::create_dir(runs.step(10).path()).unwrap();
    fs::write(runs.step(10).path().join(MODEL_FILE), [1, 2, 3]).unwrap();
    assert_eq!(runs.latest().unwrap().unwrap().progress().unwrap().step, 5);
}

#[test]
fn errors_name_the_file_and_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let runs = RunDir::new(dir.path());
    fs::write(dir.path().join(LATEST_FILE), "../../etc").unwrap();
    let error = runs.latest().unwrap_err().to_string();
    assert!(error.contains("latest") && error.contains("../../etc"), "{error}");

    let text = toml::to_string(&run()).unwrap().replace("warmup", "warm_up");
    fs::write(dir.path().join(RUN_FILE), text).unwrap();
    let error = runs.run().unwrap_err().to_string();
    assert!(error.contains(RUN_FILE) && error.contains("warm_up"), "{error}");

    fs::create_dir_all(runs.step(1).path()).unwrap();
    fs::write(runs.step(1).path().join(MODEL_FILE), "not tensors").unwrap();
    let error = runs.step(1).model().unwrap_err().to_string();
    assert!(error.contains(MODEL_FILE), "{error}");
}
