use std::{fs, process::Command};

use aerie_models::images::{self, config::Norm};
use clap::Parser;

use super::*;
use crate::{
    checkpoint::TOKENIZER_FILE,
    data::tokenizer,
    run::{
        Flatness, GradientNormForm,
        tests::{image_run, text_run},
    },
    torch::device::DeviceError,
};

/// A run of ten steps of the tiny model on a text with a pattern.
fn begin_run(dir: &std::path::Path) -> RunDir {
    let text: String = (0..600).map(|it| ["The wolf ", "ate ", "a tale. "][it * it % 3]).collect();
    fs::write(dir.join("text.txt"), &text).unwrap();
    let tokenizer = tokenizer::train_characters(&[text]).unwrap();
    let mut run = text_run();
    let (Model::Language(model), Data::Text(data)) = (&mut run.model, &mut run.data) else {
        panic!("it is a run on text")
    };
    model.vocab = u32::try_from(tokenizer.get_vocab_size(true)).unwrap();
    data.text = dir.join("text.txt");
    let dir = RunDir::new(dir.join("run"));
    dir.create(&run).unwrap();
    tokenizer.save(dir.path().join(TOKENIZER_FILE), false).unwrap();
    dir
}

fn checkpoint(run: &RunDir) -> (Progress, Checkpoint) {
    let step = run.latest().unwrap().unwrap();
    let progress = Progress { seconds: 0.0, ..step.progress().unwrap() };
    (progress, step.tensors().unwrap())
}

/// Goal: a run that is stopped and gone on with ends bit for bit where one that never stopped does.
#[test]
fn five_steps_and_five_more_are_ten() {
    let never = AtomicBool::new(false);
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let whole = begin_run(whole.path());
    train(&whole, Device::Cpu, u64::MAX, &never).unwrap();

    let parts = begin_run(parts.path());
    train(&parts, Device::Cpu, 5, &never).unwrap();
    assert_eq!(checkpoint(&parts).0.step, 5);
    train(&parts, Device::Cpu, u64::MAX, &never).unwrap();
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
    let untrained = f64::from(config.language().unwrap().0.vocab).ln();
    config.train.steps = 60;
    config.train.valid_every = 60;
    run.create(&config).unwrap();
    train(&run, Device::Cpu, u64::MAX, &AtomicBool::new(false)).unwrap();
    let valid = checkpoint(&run).0.valid_loss_best.unwrap();
    assert!(valid < untrained / 2.0, "{valid} nats, {untrained} before");
}

#[test]
fn interrupted_run_leaves_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let run = begin_run(dir.path());
    train(&run, Device::Cpu, 3, &AtomicBool::new(false)).unwrap();
    train(&run, Device::Cpu, u64::MAX, &AtomicBool::new(true)).unwrap();
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

/// A run of a small classifier on pictures of two of its classes: light ones and dark ones.
fn begin_image_run(dir: &std::path::Path, change: impl FnOnce(&mut Run)) -> RunDir {
    let mut records = Vec::new();
    for number in 0..24u8 {
        let class = number % 2;
        let light = if class == 0 { 200 } else { 40 };
        let pixel = |at: u16| light + (at % 32 * u16::from(number) % 32).to_le_bytes()[0];
        records.push(class);
        records.extend((0..3072).map(pixel));
    }
    fs::create_dir(dir.join("pictures")).unwrap();
    fs::write(dir.join("pictures/data_batch_1.bin"), records).unwrap();
    let mut run = image_run();
    let (Model::Images(model), Data::Images(data)) = (&mut run.model, &mut run.data) else {
        panic!("it is a run on images")
    };
    model.stages.truncate(2);
    model.stochastic_depth.rate = 0.5;
    assert!(0.0 < model.drop_rates()[1], "branches are left out");
    data.images = dir.join("pictures");
    data.valid = Some(dir.join("pictures/data_batch_1.bin"));
    run.train.average = Some(0.9);
    change(&mut run);
    let dir = RunDir::new(dir.join("run"));
    dir.create(&run).unwrap();
    dir
}

/// Goal: a classifier's run goes on bit for bit too, with all that is drawn by chance: the order of images,
/// what becomes of them, and which branches are left out; averages included.
#[test]
fn five_steps_and_five_more_of_a_classifier_are_ten() {
    let never = AtomicBool::new(false);
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let crop = |run: &mut Run| {
        let Data::Images(data) = &mut run.data else { panic!("it is a run on images") };
        data.batch.flip = true;
        data.batch.mixup_alpha = Some(0.2);
    };
    let whole = begin_image_run(whole.path(), crop);
    train(&whole, Device::Cpu, u64::MAX, &never).unwrap();
    let parts = begin_image_run(parts.path(), crop);
    train(&parts, Device::Cpu, 5, &never).unwrap();
    train(&parts, Device::Cpu, u64::MAX, &never).unwrap();
    assert_eq!(checkpoint(&parts), checkpoint(&whole));
}

/// Goal: a run that is to have SAM after five steps takes those as one without it, and the others as one that has it.
#[test]
fn five_steps_and_five_more_with_sam_are_ten_with_sam_after_five() {
    let sam = |after| {
        move |run: &mut Run| {
            run.train.flatness = Flatness::Sam { radius: 0.05, share: 0.5, after };
        }
    };
    let never = AtomicBool::new(false);
    let [whole, parts] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let whole = begin_image_run(whole.path(), sam(5));
    train(&whole, Device::Cpu, u64::MAX, &never).unwrap();
    let parts = begin_image_run(parts.path(), |_| ());
    let mut run = parts.run().unwrap();
    train(&parts, Device::Cpu, 5, &never).unwrap();
    sam(0)(&mut run);
    parts.create(&run).unwrap();
    train(&parts, Device::Cpu, u64::MAX, &never).unwrap();
    assert_eq!(checkpoint(&parts), checkpoint(&whole));

    let [begun, unaware] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let begun = begin_image_run(begun.path(), sam(0));
    train(&begun, Device::Cpu, u64::MAX, &never).unwrap();
    let unaware = begin_image_run(unaware.path(), |_| ());
    train(&unaware, Device::Cpu, u64::MAX, &never).unwrap();
    assert_ne!(checkpoint(&begun), checkpoint(&whole));
    assert_ne!(checkpoint(&unaware), checkpoint(&whole));
}

/// Two trainings at one run would write over each other's log and checkpoints.
#[test]
fn a_run_is_trained_by_one_at_a_time() {
    let never = AtomicBool::new(false);
    let dir = tempfile::tempdir().unwrap();
    let run = begin_run(dir.path());
    train(&run, Device::Cpu, 3, &never).unwrap();
    let log = || fs::read_to_string(run.path().join(LOG_FILE)).unwrap();
    let before = log();
    let claim = run.claim().unwrap();
    let error = train(&run, Device::Cpu, u64::MAX, &never).unwrap_err().to_string();
    assert!(error.ends_with("another training is at this run; it has to end first"), "{error}");
    assert_eq!(log(), before);
    drop(claim);
    train(&run, Device::Cpu, u64::MAX, &never).unwrap();
}

/// Goal: what chance leaves out is the same after a pause, and something else from step to step.
#[test]
fn noise_depends_on_seed_step_and_part() {
    let usual = noise_seed(1, 2, 3);
    assert_eq!(noise_seed(1, 2, 3), usual);
    for other in [noise_seed(2, 2, 3), noise_seed(1, 3, 3), noise_seed(1, 2, 4)] {
        assert_ne!(other, usual);
    }
}

/// A run whose data cannot be had leaves nothing behind that the next one of its name would stumble over.
#[test]
fn a_run_that_never_began_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("run");
    let command = |images: &str| {
        let line = ["train", "--preset", "nf-wrn-10-1", "--steps", "1", "--batch", "2", "--images"];
        let path = dir.path().join(images);
        let run = ["--run", at.to_str().unwrap(), path.to_str().unwrap()];
        let line = line.iter().chain(&run[2..]).chain(&run[..2]).copied().map(str::to_owned);
        Line::try_parse_from(line).unwrap().args
    };
    let error = super::run(&command("none.parquet")).unwrap_err().to_string();
    assert!(error.contains("none.parquet"), "{error}");
    assert!(!at.exists());
    fs::create_dir(&at).unwrap();
    super::run(&command("none.parquet")).unwrap_err();
    assert!(at.exists() && !at.join("run.toml").exists());
    let picture = [&[1][..], &[7; 3072]].concat();
    fs::write(dir.path().join("data.bin"), picture).unwrap();
    super::run(&command("data.bin")).unwrap();
}

/// A program of one command, as the command line reads it.
#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let parsed = |line: &str| Line::try_parse_from(line.split(' ').map(str::to_owned));
    let text = "train --run r --preset tales --tokenizer t.json --text a.txt";
    let images = "train --run r --preset nf-wrn-10-1 --images a.parquet";
    for line in [
        "train --run r --resume",
        "train --run r --resume --until 5 --threads 1",
        &format!("{text} --rows 4"),
        &format!("{images} --batch 4 --holdout 0.1"),
    ] {
        parsed(line).unwrap();
    }
    for line in [
        "train --run r --resume --steps 5",
        "train --run r --resume --momentum 0.5",
        "train --run r --resume --mixup 0.5",
        &format!("{text} --batch 4"),
        &format!("{images} --rows 4"),
        &format!("{images} --holdout 0.1 --valid b.parquet"),
    ] {
        let refused = parsed(line).unwrap_err().to_string();
        assert!(refused.contains("cannot be used with"), "{line}: {refused}");
    }
    for (line, expected) in [
        (format!("{images} --beta1 0.5"), "--beta1 and --beta2 are options of AdamW"),
        (format!("{images} --steps 50 --warmup 50"), "warmup is 50, which leaves nothing of 50"),
        (format!("{images} --steps 9 --sam 0.1 --sam-after 9"), "sam after is 9, which leaves"),
        (format!("{images} --holdout 1"), "holdout is 1; it must be above 0 and below 1"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let args = parsed(&line).unwrap().args;
        let error = args::begin(&args, &RunDir::new(dir.path())).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!dir.path().join("run.toml").exists());
    }
}

#[test]
fn classifiers_learn_with_every_kind_of_flatness() {
    let flatness = [
        Flatness::Off,
        Flatness::Sam { radius: 0.05, share: 0.5, after: 0 },
        Flatness::GradientNorm { lambda: 0.01, form: GradientNormForm::Exact },
        Flatness::GradientNorm { lambda: 0.01, form: GradientNormForm::Difference { radius: 0.1 } },
    ];
    for flatness in flatness {
        let dir = tempfile::tempdir().unwrap();
        let run = begin_image_run(dir.path(), |run| {
            run.train.flatness = flatness;
            run.train.steps = 40;
            run.train.valid_every = 40;
            run.train.learning_rate = 0.05;
            run.train.average = None;
        });
        train(&run, Device::Cpu, u64::MAX, &AtomicBool::new(false)).unwrap();
        let log = fs::read_to_string(run.path().join(LOG_FILE)).unwrap();
        let last: Vec<&str> = log.lines().last().unwrap().split(',').collect();
        assert_eq!((last[0], last[5]), ("40", "1.00000"), "{flatness:?}: {log}");
    }
}

/// Goal: a GPU takes the steps that the CPU takes, and each goes on with the other's checkpoints. Method: ten
/// steps on the CPU, five there and five on the GPU, and ten on the GPU, for text and for classifiers with each
/// kind of norm and of maps; in a process of its own, since a GPU is to be opened before all else. Where there is
/// no GPU, this says so.
#[test]
fn steps_on_a_gpu_are_those_on_the_cpu() {
    const ALONE: &str = "AERIE_TEST_GPU";
    if std::env::var_os(ALONE).is_none() {
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "--nocapture"]).env(ALONE, "1");
        alone.arg("torch::train::tests::steps_on_a_gpu_are_those_on_the_cpu");
        let said = alone.output().unwrap();
        let [told, errors] = [&said.stdout, &said.stderr].map(|it| String::from_utf8_lossy(it));
        eprint!("{errors}");
        // A name that is no test's would pass, too.
        assert!(said.status.success() && told.contains("1 passed"), "{told}");
        return;
    }
    let gpu = Device::Cuda(0);
    match device::open(gpu) {
        Ok(()) => (),
        Err(error @ DeviceError::Absent { count: 0, .. }) => return eprintln!("skipped: {error}"),
        Err(DeviceError::NotLoaded(why)) if why.starts_with("libtorch_cuda.so: cannot open") => {
            return eprintln!("skipped: {why}");
        }
        Err(error) => panic!("{error}"),
    }
    type Begin = fn(&std::path::Path) -> RunDir;
    // Ten steps of f32, in each of which rounding moves what it meets, and of bfloat16.
    let kinds: [(&str, Begin, f64); 4] = [
        ("text", begin_run, 1e-3),
        ("images", |dir| begin_image_run(dir, |_| ()), 1e-3),
        ("images, bf16, batch norm", |dir| begin_normed_run(dir, Norm::Batch), 3e-2),
        ("images, bf16, group norm", |dir| begin_normed_run(dir, Norm::Group), 3e-2),
    ];
    for (kind, begin, tolerance) in kinds {
        let loss = |[first, second]: [Device; 2]| {
            let dir = tempfile::tempdir().unwrap();
            let run = begin(dir.path());
            let never = AtomicBool::new(false);
            train(&run, first, 5, &never).unwrap();
            train(&run, second, u64::MAX, &never).unwrap();
            checkpoint(&run).0.valid_loss_best.unwrap()
        };
        let expected = loss([Device::Cpu; 2]);
        for devices in [[Device::Cpu, gpu], [gpu, Device::Cpu], [gpu; 2]] {
            let found = loss(devices);
            let close = (found - expected).abs() <= tolerance * expected;
            assert!(close, "{kind} on {devices:?}: {found} instead of {expected}");
        }
    }
}

/// A run of a small wide network with norms, whose maps are bfloat16.
fn begin_normed_run(dir: &std::path::Path, norm: Norm) -> RunDir {
    let name = if norm == Norm::Group { "wrn-16-4-group" } else { "wrn-16-1" };
    begin_image_run(dir, |run| {
        let mut model = images::presets::preset(name).unwrap();
        model.classes = 2;
        run.train.matmul = Matmul::Bf16;
        run.model = Model::Images(model);
    })
}
