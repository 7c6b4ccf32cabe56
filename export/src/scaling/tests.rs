use std::{f64::consts::TAU, path::Path, slice};

use aerie_fuzz::{Format, Fuzz};
use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{
    checkpoint::{Checkpoint, LOG_FILE, Progress, RunDir},
    run::{
        Run,
        tests::{image_run, text_run},
    },
    scaling::{rates::Edge, trials::Trial},
};

/// Gaussian noise without end.
pub(super) fn noise(seed: u64) -> impl Iterator<Item = f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    std::iter::repeat_with(move || {
        let [radius, angle] = [rng.random::<f64>(), rng.random::<f64>()];
        (-2.0 * (1.0 - radius).ln()).sqrt() * (TAU * angle).cos()
    })
}

/// A sweep whose answers are known: loss `1.5 + (2e6/N)^0.3 + (1e9/D)^0.3` for `N` parameters and `D`
/// examples, as Hoffmann et al. 2022 (arXiv:2203.15556, eq. 10) have it, more by how far the learning rate is
/// from `2 · epochs^-0.25 · (N/1e6)^-0.5`. Compute is `6 N D`, so the best size goes with its root.
const HEADER: &str = "model,parameters,epochs,learning_rate,flops,loss";
/// Examples of an epoch.
const EPOCH: f64 = 1e9;

fn sweep(sigma: f64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut noise = noise(3);
    for budget in 0..6 {
        let flops = 6e16 * 4_f64.powi(budget);
        for size in -4..=4 {
            let parameters =
                (4.5e6 * 2_f64.powi(budget) * 2_f64.powf(0.5 * f64::from(size))).round();
            let epochs = flops / (6.0 * parameters * EPOCH);
            let best = 2.0 * epochs.powf(-0.25) * (parameters / 1e6).powf(-0.5);
            let loss = 1.5 + (2e6 / parameters).powf(0.3) + (1e9 / (epochs * EPOCH)).powf(0.3);
            for off in [-1.3, -0.3, 0.7] {
                let rate = best * 2_f64.powf(off);
                let loss = (loss + 0.02 * off * off) * (sigma * noise.next().unwrap()).exp();
                lines.push(format!("n{parameters},{parameters},{epochs},{rate},{flops},{loss}"));
            }
        }
    }
    lines
}

/// What the command finds in a table of `lines`.
fn found(lines: &[String]) -> Result<Report, ScalingError> {
    found_in(&format!("{HEADER}\n{}\n", lines.join("\n")))
}

fn found_in(table: &str) -> Result<Report, ScalingError> {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("sweep.csv");
    fs::write(&csv, table).unwrap();
    scaling(&args(dir.path(), vec![], vec![csv]))
}

fn args(dir: &Path, runs: Vec<PathBuf>, csv: Vec<PathBuf>) -> Args {
    let out = dir.join("laws/found");
    Args { runs, csv, epoch_size: None, budget: 2.0, draws: 200, seed: 0, out }
}

#[track_caller]
fn near(name: &str, found: f64, expected: f64, tolerance: f64) {
    let off = (found - expected).abs();
    assert!(off <= tolerance * expected.abs(), "{name} is {found}, expected {expected}");
}

/// Goal: exponents that follow from the losses' formula are recovered within 2 %.
/// Method: noise of 0.01 % moves the lowest point of a parabola over an octave's steps by about 1 % of a
/// size, and sizes span a factor of 32.
#[test]
fn best_sizes_epochs_and_rates_follow_the_powers_they_were_made_with() {
    let report = found(&sweep(1e-4)).unwrap();
    let growth = report.growth.found().unwrap();
    assert_eq!(growth.budgets, 6);
    near("size", growth.parameters_exponent.value, 0.5, 0.02);
    near("epochs", growth.epochs_exponent.value, 0.5, 0.02);
    near("ratio", growth.ratio.value, 1.0, 0.04);
    let trend = report.trend.found().unwrap();
    near("rate by epochs", trend.epochs.unwrap().value, -0.25, 0.02);
    near("rate by size", trend.parameters.unwrap().value, -0.5, 0.02);
    // Along the best sizes both terms fall with compute to the power 0.15.
    let law = report.saturating.found().unwrap();
    near("floor", law.coefficients["floor"].value, 1.5, 0.02);
    near("b", law.coefficients["b"].value, 0.15, 0.02);
}

#[test]
fn order_of_the_trainings_changes_nothing() {
    let mut lines = sweep(1e-3);
    let first = found(&lines).unwrap();
    for seed in 0..3 {
        lines.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(found(&lines).unwrap(), first, "seed {seed}");
    }
}

/// Goal: whatever cannot be on the envelope does not move it, nor what is fitted to it.
#[test]
fn dominated_trainings_do_not_move_the_envelope() {
    let mut lines = sweep(1e-3);
    let first = found(&lines).unwrap();
    for (at, corner) in first.envelope.iter().enumerate() {
        let (flops, loss) = (1.3 * corner.flops, 1.001 * corner.loss);
        lines.push(format!("worse{at},1e6,1,0.1,{flops},{loss}"));
    }
    let second = found(&lines).unwrap();
    assert_eq!(second.envelope, first.envelope);
    assert_eq!(second.power_law, first.power_law);
    assert_eq!(second.saturating, first.saturating);
    let falls = |it: &[f64; 2]| it[1] < it[0];
    let losses: Vec<f64> = first.envelope.iter().map(|it| it.loss).collect();
    assert!(losses.array_windows::<2>().all(falls), "{losses:?}");
}

#[test]
fn a_law_without_noise_foretells_the_largest_training() {
    let lines: Vec<String> = (0..8)
        .map(|it| {
            let flops = 1e14 * 4_f64.powi(it);
            format!("m,1e6,{},0.1,{flops},{}", 4_f64.powi(it), 3.0 * (flops / 1e14).powf(-0.07))
        })
        .collect();
    let held_out = found(&lines).unwrap().held_out;
    assert_eq!(held_out.flops, 1e14 * 4_f64.powi(7));
    let prediction = held_out.power_law.found().unwrap();
    // The last of eight is held out, and a quarter of it is the one before.
    assert_eq!(prediction.budgets, 7);
    // Decimal fractions that are written and read again lose nothing; logarithms a few last bits.
    assert!(prediction.error.abs() < 1e-12, "{}", prediction.error);
    let prediction = held_out.saturating.found().unwrap();
    // Its floor only nears 0.
    assert!(prediction.error.abs() < 1e-3, "{}", prediction.error);
}

#[test]
fn best_rate_at_the_edge_of_what_was_tried_is_flagged() {
    let check = |rates: &[(f64, &str)], edge: Edge, parabola: &str| {
        let lines: Vec<String> =
            rates.iter().map(|(rate, loss)| format!("m,1e6,1,{rate},1e15,{loss}")).collect();
        let report = found(&lines).unwrap();
        let rates = &report.rates[0];
        assert_eq!(rates.best.unwrap().edge, edge);
        match &rates.parabola {
            Outcome::Found(it) => assert_eq!(format!("{it:.3}"), parabola),
            Outcome::Lacking(it) => assert_eq!(it.to_string(), parabola),
        }
        let text = report.to_string();
        let rates = text.split("Envelope").next().unwrap();
        assert_eq!(rates.contains("EDGE"), edge != Edge::Inside, "{text}");
    };
    check(&[(0.1, "2")], Edge::Only, "needs 3 learning rates, has 1");
    check(&[(0.1, "2"), (0.2, "3")], Edge::Lowest, "needs 3 learning rates, has 2");
    let sides = "needs 2 sides with higher losses, has 1";
    check(&[(0.1, "4"), (0.2, "3"), (0.4, "2")], Edge::Highest, sides);
    check(&[(0.1, "3"), (0.2, "2"), (0.4, "3")], Edge::Inside, "0.200");
    // One that diverged was tried.
    check(
        &[(0.1, "4"), (0.2, "3"), (0.4, "diverged")],
        Edge::Inside,
        "needs 3 learning rates, has 2",
    );
}

#[test]
fn too_little_data_is_said_and_nothing_is_made_up() {
    let report = found(&["m,1e6,1,0.1,1e15,2.5".to_owned()]).unwrap();
    let text = report.to_string();
    for said in ["needs 3 budgets, has 1", "needs 4 budgets, has 1", "needs 3 budgets, has 0"] {
        assert!(text.contains(said), "{said} is not in\n{text}");
    }
    assert_eq!(report.growth.found(), None);
    assert_eq!(report.trend.found(), None);
}

#[test]
fn wrong_tables_are_refused_with_file_line_and_column() {
    let check = |table: &str, expected: &str| {
        let error = found_in(table).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    let row = |row: &str| format!("{HEADER}\nm,1e6,1,0.1,1e15,2.5\n{row}\n");
    check("", "sweep.csv: line 1: column model is missing");
    check("model,parameters,epochs,flops,loss\n", "line 1: column learning_rate is missing");
    check(&format!("{HEADER},speed\n"), "line 1: column \"speed\" is not known");
    check(&format!("{HEADER},loss\n"), "line 1: column loss is there twice");
    check(&format!("{HEADER}\n"), "there is no training at its end");
    check(&format!("{HEADER}\nm,1e6,1,0.1,1e15,nan\n"), "there is no training at its end");
    check(&row("m,1e6,1,0.1"), "sweep.csv: line 3, column flops: the line has 4 of 6 fields");
    check(&row("m,1e6,1,0.1,1e15,2,3"), "line 3, column loss: the line has 7 of 6 fields");
    check(&row("m,x,1,0.1,1e15,2"), "line 3, column parameters: \"x\" is not a number above 0");
    check(&row("m,1e6,0,0.1,1e15,2"), "line 3, column epochs: \"0\" is not a number above 0");
    check(&row("m,1e6,1,-1,1e15,2"), "line 3, column learning_rate: \"-1\" is not");
    check(&row("m,1e6,1,0.1,inf,2"), "line 3, column flops: \"inf\" is not");
    check(&row("m,1e6,1,0.1,1e15,"), "line 3, column loss: \"\" is not a number above 0");
    check(&row(",1e6,1,0.1,1e15,2"), "line 3, column model: \"\" is not a name");
    check(
        &row("m,2e6,1,0.1,1e15,2"),
        "sweep.csv: line 3: column parameters: m has 2000000, but 1000000 at",
    );
}

/// Goal: what is written can be read again, so that sweeps of several machines are put together.
#[test]
fn written_table_gives_the_same_report() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("sweep.csv");
    fs::write(&csv, format!("{HEADER}\n{}\n", sweep(1e-3).join("\n"))).unwrap();
    let first = scaling(&args(dir.path(), vec![], vec![csv])).unwrap();
    let written = dir.path().join("laws/found.csv");
    let text = fs::read_to_string(&written).unwrap();
    let best = text.lines().filter(|it| it.contains(",yes,inside,")).count();
    assert_eq!(best, first.rates.len());
    let corners = text.lines().filter(|it| it.ends_with(",yes")).count();
    assert_eq!(corners, first.envelope.len());
    assert_eq!(scaling(&args(dir.path(), vec![], vec![written])).unwrap(), first);
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(dir.path().join("laws/found.json")).unwrap())
            .unwrap();
    assert!(json["growth"]["found"]["ratio"]["low"].is_f64(), "{json}");
    let svg = fs::read_to_string(dir.path().join("laws/found.svg")).unwrap();
    assert!(svg.contains("saturating law") && svg.contains("Best size"), "{svg}");
}

/// Writes a run that stands at its end, after `seen` images or tokens.
fn finish(dir: &RunDir, run: &Run, log: &str, progress: Progress) {
    dir.create(run).unwrap();
    dir.save(&progress, &Checkpoint::default()).unwrap();
    fs::write(dir.path().join(LOG_FILE), log).unwrap();
}

fn trials_of(runs: &[&RunDir], epoch_size: Option<u64>) -> Result<Trials, TrialsError> {
    let runs: Vec<PathBuf> = runs.iter().map(|it| it.path().to_owned()).collect();
    Trials::read(&runs, &[], epoch_size)
}

/// Goal: figures of a run directory are those that the census and the log give.
#[test]
fn runs_are_read_with_their_compute_and_epochs() {
    let temporary = tempfile::tempdir().unwrap();
    let [image, text] = ["image", "text"].map(|it| RunDir::new(temporary.path().join(it)));
    // 16 images a step for 10 steps, of 64 in an epoch: 2 epochs and 32 images.
    let progress = Progress { step: 10, seen: 160, epoch: 2, row: 32, ..Progress::default() };
    let log = "step,images,train_loss,valid_loss\n5,80,2.0,1.9\n10,160,1.8,1.7\n";
    finish(&image, &image_run(), log, progress);
    let progress = Progress { seen: 24 * 60, row: 60, epoch: 0, ..progress };
    let log = "step,tokens,train_loss,valid_loss\n10,1440,1.8,1.6\n";
    finish(&text, &text_run(), log, progress);

    let run = image_run();
    let (config, data) = run.images().unwrap();
    let shown = &data.preprocessing;
    let parameters = aerie_models::images::census::parameter_total(config) as f64;
    let macs = aerie_models::images::census::macs(config, shown.height, shown.width) as f64;
    let expected = Trial {
        model: "nf-wrn-10-1".to_owned(),
        parameters,
        epochs: 2.5,
        learning_rate: 1e-2,
        flops: 6.0 * macs * 160.0,
        loss: Some(1.7),
    };
    assert_eq!(trials_of(&[&image], None).unwrap().all, slice::from_ref(&expected));

    let error = trials_of(&[&text], None).unwrap_err().to_string();
    assert!(error.ends_with("give --epoch-size"), "{error}");
    let trial = &trials_of(&[&text], Some(720)).unwrap().all[0];
    assert_eq!((trial.model.as_str(), trial.epochs), ("tiny", 2.0));
    assert_eq!(trial.flops, 6.0 * trial.parameters * 1440.0);
    // A log that was brought from elsewhere, without its checkpoints, tells as much once it is said how long an epoch is.
    for run in [&image, &text] {
        fs::remove_file(run.path().join("latest")).unwrap();
    }
    assert_eq!(trials_of(&[&image], Some(64)).unwrap().all, [expected]);
    let error = trials_of(&[&image], None).unwrap_err().to_string();
    assert!(error.ends_with("give --epoch-size"), "{error}");

    let error = trials_of(&[&text, &image], Some(720)).unwrap_err().to_string();
    assert!(error.ends_with("trained on images, but others on tokens"), "{error}");
}

#[test]
fn runs_before_their_end_are_left_out_and_spoilt_ones_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let [done, half, other] =
        ["done", "half", "other"].map(|it| RunDir::new(temporary.path().join(it)));
    let progress = Progress { step: 10, seen: 160, epoch: 2, row: 32, ..Progress::default() };
    let log = "step,images,train_loss,valid_loss\n10,160,1.8,1.7\n";
    finish(&done, &image_run(), log, progress);
    let cut = "step,images,train_loss,valid_loss\n5,80,2.0,1.9\n";
    finish(&half, &image_run(), cut, Progress { step: 5, seen: 80, ..progress });
    let Trials { all, left_out } = trials_of(&[&half, &done], None).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(left_out[0].why, "it stands at step 5 of 10");
    assert!(left_out[0].run.ends_with("half"), "{left_out:?}");
    fs::remove_file(half.path().join(LOG_FILE)).unwrap();
    assert_eq!(trials_of(&[&half, &done], None).unwrap().left_out[0].why, "it has no log");
    finish(&half, &image_run(), cut, Progress { step: 5, seen: 80, ..progress });
    let error = trials_of(&[&half], None).unwrap_err().to_string();
    assert!(error.ends_with("half is left out: it stands at step 5 of 10"), "{error}");

    let error = trials_of(&[&other], None).unwrap_err().to_string();
    assert!(error.ends_with("other: there is no run.toml, so this is no run directory"), "{error}");
    for (log, expected) in [
        ("step,images,valid_loss\n10,160,x\n", "line 2, column valid_loss: \"x\" is not"),
        ("step,images,valid_loss\nten,160,1\n", "line 2, column step: \"ten\" is not"),
        ("step,images,train_loss\n10,160,1\n", "line 1: column valid_loss is missing"),
        ("step,images,valid_loss\n10,160\n", "line 2, column valid_loss: the line has 2 of 3"),
        ("step,tokens,valid_loss\n10,160,1\n", "log.csv: the log is not of images"),
    ] {
        finish(&done, &image_run(), log, progress);
        let error = trials_of(&[&done], None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}

#[test]
fn wrong_options_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let args = || args(dir.path(), vec![], vec![dir.path().join("none.csv")]);
    let error = |args: &Args| scaling(args).unwrap_err().to_string();
    assert!(error(&Args { draws: 5, ..args() }).contains("--draws is 5"));
    assert!(error(&Args { budget: f64::NAN, ..args() }).contains("--budget is NaN"));
    assert!(error(&args()).contains("none.csv: "));
}

/// Goal: a table is read or refused, and whatever numbers it has are reported and drawn.
#[test]
fn fuzzed_tables_are_read_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let csv = dir.path().join("sweep.csv");
    let short = ["a,1e6,1,0.1,1e14,2.5", "a,1e6,1,0.2,1e14,diverged", "b,2e6,2,0.2,4e14,2"];
    let seeds = [sweep(1e-3)[..30].join("\n"), short.join("\n")];
    let seeds = seeds.map(|it| format!("{HEADER}\n{it}\n").into_bytes()).into();
    let words: &[&[u8]] = &[b"diverged", b"nan", b"1e60", b"1e-30", b",", b"\n", b"loss", b"0"];
    Fuzz { name: "scaling", format: Format::Text, seeds, words }.run(|bytes| {
        fs::write(&csv, bytes).unwrap();
        let Ok(trials) = Trials::read(&[], slice::from_ref(&csv), None) else { return false };
        let report = Report::new(trials, 2.0, Bootstrap { draws: 2, seed: 0 });
        assert!(report.envelope.iter().all(|it| 0.0 < it.loss && 0.0 < it.flops));
        assert!(plot::draw(&report).unwrap().trim_end().ends_with("</svg>"));
        assert!(!report.to_string().is_empty() && !report.to_json().is_empty());
        true
    });
}
