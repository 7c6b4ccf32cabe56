use super::*;

const LOG: &str = "step,tokens,train_loss,valid_loss,bits_per_byte\n\
                   10,1000000,3.5,,\n20,2000000,3.0,3.25,1.5\n30,30000";

#[test]
fn curve_is_the_filled_part_of_a_column() {
    let points = |column| curve(LOG, column, String::new()).points;
    assert_eq!(points("train_loss"), [(1.0, 3.5), (2.0, 3.0)]);
    assert_eq!(points("bits_per_byte"), [(2.0, 1.5)]);
    assert_eq!(points("no such column"), []);
}

#[test]
fn runs_are_named_by_what_tells_them_apart() {
    let runs = ["runs/nf/128", "runs/bn/128", "runs/bn/512"].map(PathBuf::from);
    assert_eq!(names(&runs), ["nf/128", "bn/128", "512"]);
}

#[test]
fn picture_names_every_run_and_a_log_without_figures_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let runs = ["griffin", "hawk"].map(|it| dir.path().join(it));
    let out = dir.path().join("curves.svg");
    for run in &runs {
        fs::create_dir(run).unwrap();
        fs::write(run.join(LOG_FILE), LOG.lines().next().unwrap()).unwrap();
    }
    assert!(plot(&runs, &out, Axis::BitsPerByte).is_err());
    for run in &runs {
        fs::write(run.join(LOG_FILE), LOG).unwrap();
    }
    plot(&runs, &out, Axis::BitsPerByte).unwrap();
    let svg = fs::read_to_string(&out).unwrap();
    assert!(svg.contains("griffin") && svg.contains("hawk"), "{svg}");
}
