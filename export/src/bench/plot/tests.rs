use super::*;

const FILE: &str = r#"{
    "limits": {
        "threads": 2,
        "read": {"one_bytes_per_s": 10e9, "all_bytes_per_s": 15e9},
        "multiply_adds": [{"arithmetic": "i8", "one_per_s": 200e9, "all_per_s": 400e9}]
    },
    "kernels": [
        {"name": "w", "format": "q8", "groups": 1, "inputs": 10, "outputs": 10, "rows": 1,
         "work": {"bytes": 100, "multiply_adds": 100}, "seconds": 1e-8},
        {"name": "w", "format": "q8", "groups": 1, "inputs": 10, "outputs": 10, "rows": 100,
         "work": {"bytes": 100, "multiply_adds": 10000}, "seconds": 1e-7}
    ],
    "steps": [
        {"system": "ours", "precision": "q4", "task": {"decode": {"sessions": 8}},
         "position": 4000, "seconds": 0.04},
        {"system": "ours", "precision": "q4", "task": {"decode": {"sessions": 1}}, "seconds": 0.01},
        {"system": "ours", "precision": "q4", "task": {"prompt": {"tokens": 64}}, "seconds": 0.1},
        {"system": "theirs", "precision": "Q4_0", "task": {"decode": {"sessions": 1}},
         "seconds": 0.02}
    ],
    "profiles": [
        {"system": "ours", "precision": "q4", "task": {"decode": {"sessions": 1}}, "seconds": 0.01,
         "traced_seconds": 0.012, "dispatch_seconds": 0.001, "trace_scale": 1.0, "parts": [
            {"kind": "products", "nodes": 3, "seconds": 0.006},
            {"kind": "hand-overs", "nodes": 3, "seconds": 0.004}]}
    ]
}"#;

fn report() -> Report {
    serde_json::from_str(FILE).unwrap()
}

#[test]
fn products_are_points_by_format() {
    let report = report();
    let kernels: Vec<&Kernel> = report.kernels.iter().collect();
    let points = vec![(1.0, 10.0), (100.0, 100.0)];
    let found = products(&kernels);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].name, "q8");
    for (found, expected) in found[0].points.iter().zip(points) {
        let off = (found.0 - expected.0).abs() + (found.1 - expected.1).abs();
        assert!(off < 1e-9, "{found:?} for {expected:?}");
    }
}

/// Reading bounds what takes few multiply-adds for a byte, and multiplying all else.
#[test]
fn roof_rises_with_reading_up_to_the_peak() {
    let limits = report().limits.unwrap();
    let expected = |points| vec![Series { name: "limit of i8".to_owned(), points }];
    let check = |x: Range<f64>, points: [(f64, f64); 3]| {
        assert_eq!(roofs(&limits, &x), expected(points.into()), "{x:?}");
    };
    check(1.0..100.0, [(1.0, 10.0), (20.0, 200.0), (100.0, 200.0)]);
    check(1.0..2.0, [(1.0, 10.0), (2.0, 20.0), (2.0, 20.0)]);
    check(50.0..100.0, [(50.0, 200.0), (50.0, 200.0), (100.0, 200.0)]);
}

fn series(name: &str, points: &[(f64, f64)]) -> Series {
    Series { name: name.to_owned(), points: points.to_vec() }
}

#[test]
fn lines_are_what_steps_are_called_and_go_from_left_to_right() {
    let reports = [report()];
    let by_sessions = decodes(&reports, |it, sessions| {
        Some((format!("{} {}", it.system, it.precision), sessions as f64))
    });
    let expected =
        [series("ours q4", &[(1.0, 100.0), (8.0, 200.0)]), series("theirs Q4_0", &[(1.0, 50.0)])];
    assert_eq!(by_sessions, expected);
    let by_length = decodes(&reports, |it, _| Some((it.system.clone(), it.position? as f64)));
    assert_eq!(by_length, [series("ours", &[(4000.0, 200.0)])]);
}

#[test]
fn pictures_name_what_they_show_and_figures_without_it_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [file, empty, out] = ["a.json", "b.json", "a.svg"].map(|it| dir.path().join(it));
    fs::write(&file, FILE).unwrap();
    fs::write(&empty, "{}").unwrap();
    for (draw, names) in [
        (Draw::Roofline, ["q8", "limit of i8"]),
        (Draw::Sessions, ["ours q4", "theirs Q4_0"]),
        (Draw::Lengths, ["ours q4, 8 sessions", "tokens that the session has read"]),
        (Draw::Parts, ["ours q4, decode 1: 10.0 ms", "matrix products"]),
    ] {
        let args = |files: &[&PathBuf]| Args {
            files: files.iter().map(|&it| it.clone()).collect(),
            draw,
            out: out.clone(),
        };
        run(&args(&[&empty, &file])).unwrap();
        let svg = fs::read_to_string(&out).unwrap();
        assert!(names.iter().all(|it| svg.contains(it)), "{svg}");
        assert!(run(&args(&[&empty])).is_err());
    }
}
