use std::collections::BTreeMap;

use super::*;

fn args(models: &[&str], out: &Path) -> Args {
    Args {
        models: models.iter().map(|&it| it.to_owned()).collect(),
        out: out.to_owned(),
        input: "blocks".to_owned(),
        images: 8,
        size: 32,
        seeds: 1,
        skip_gain: None,
        edges: false,
        log: false,
    }
}

fn look(args: &Args) -> Vec<Propagation> {
    let input = Input::new(args).unwrap();
    let look =
        |name: &String| propagation(&Subject::new(name, args).unwrap(), &input, args).unwrap();
    args.models.iter().map(look).collect()
}

/// Brock, De and Smith 2021 (arXiv:2101.08692), fig. 2: standardised weights keep the variance and no mean;
/// without, the means of channels grow with depth.
#[test]
fn networks_are_told_apart_by_their_signals() {
    let out = Path::new("spp.svg");
    let found = look(&args(&["nf-resnet-50", "bare-resnet-50", "bn-resnet-50"], out));
    let [nf, bare, bn] = &*found else { panic!("three are asked for") };
    assert_eq!(nf.complaints, Vec::<String>::new());
    assert_eq!(
        [nf, bare, bn].map(|it| it.verdict),
        [Verdict::Pass, Verdict::Unpredicted, Verdict::Unpredicted]
    );
    assert_eq!(nf.stage_starts, [0, 3, 7, 13]);
    assert!(bare.blocks.iter().chain(&bn.blocks).all(|it| it.predicted.is_none()));
    let last = |it: &Propagation| *it.blocks.last().unwrap();
    assert!(100.0 * last(nf).squared_mean < last(bare).squared_mean);
    // Within a stage the variance of a normalised network grows by that of each branch.
    let [first, third] = [bn.blocks[0], bn.blocks[2]].map(|it| it.variance);
    assert!(1.3 * first < third, "{first}, {third}");
}

#[test]
fn a_branch_that_is_closed_adds_nothing() {
    let closed = Args { skip_gain: Some(0.0), ..args(&["nf-resnet-50"], Path::new("spp.svg")) };
    let found = look(&closed);
    let blocks = &found[0].blocks;
    assert!((blocks[1].variance - blocks[0].variance).abs() < 1e-6, "nothing is added to it");
    assert!(blocks.iter().all(|it| it.predicted.is_none()), "theory speaks of open branches");
}

#[test]
fn picture_and_figures_are_written_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("spp.svg");
    let args = args(&["nf-resnet-50"], &out);
    run(&args).unwrap();
    let read = |extension| fs::read_to_string(out.with_extension(extension)).unwrap();
    assert!(read("svg").contains("predicted"));
    assert_eq!(read("csv").lines().count(), 1 + 16);
    let json: Vec<BTreeMap<String, serde_json::Value>> =
        serde_json::from_str(&read("json")).unwrap();
    assert_eq!(json[0]["model"], "nf-resnet-50");
    assert_eq!(json[0]["verdict"], "pass");
    assert_eq!(json[0]["tolerances"]["variance"], 0.1);
}

#[test]
fn what_is_no_model_is_refused() {
    let error = Subject::new("resnet", &args(&[], Path::new("spp.svg"))).err().unwrap().to_string();
    assert!(error.contains("resnet is no run directory") && error.contains("nfnet-f0"), "{error}");
}

/// Networks whose shortcuts take means are told by what theory has: noise would be levelled out there.
#[test]
fn shortcuts_that_take_means_are_no_fault() {
    let small = args(&["nfnet-small"], Path::new("spp.svg"));
    let verdict = |args: &Args| look(args)[0].verdict;
    assert_eq!(verdict(&small), Verdict::Pass);
    assert_eq!(verdict(&Args { edges: true, ..small }), Verdict::Unpredicted);
}

#[test]
fn what_is_no_number_is_not_as_predicted() {
    let block = BlockSignal {
        predicted: Some(1.0),
        variance: f64::NAN,
        branch_variance: 1.0,
        squared_mean: f64::NAN,
    };
    assert_eq!(complaints(&[block]).len(), 2);
}
