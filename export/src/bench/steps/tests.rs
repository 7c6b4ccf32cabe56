//! Small bundles, in every target; where ONNX Runtime is missing, the tests say so and skip.

use aerie_models::Precision;

use super::*;
use crate::{
    emit::{Options, Source, emit},
    runtime::shared,
};

fn load(dir: &Path, target: Target, precision: Precision, lanes: usize) -> Option<Subject> {
    let runtime = shared()?;
    let out = dir.join(precision.name());
    let options = Options { name: "tiny".to_owned(), target, precision, force: true };
    emit(&Source::random("tiny", 3).unwrap(), &options, &out).unwrap();
    Some(Subject::load(runtime, &out, lanes).unwrap())
}

#[test]
fn tasks_are_run_and_timed() {
    let dir = tempfile::tempdir().unwrap();
    for precision in [Precision::F32, Precision::Q4] {
        let Some(mut subject) = load(dir.path(), Target::Ragged, precision, 3) else { return };
        let decode = [1, 3].map(|sessions| Task::Decode { sessions });
        for task in decode.into_iter().chain([Task::Prompt { tokens: 20 }]) {
            for position in [Some(0), Some(5), None] {
                assert!(0.0 < subject.turn(task, position, 0.0).unwrap(), "{task}");
            }
        }
        assert!(0.0 < subject.bundle.first_step_seconds);
        // Beyond the lanes is the operators' to refuse.
        assert!(subject.turn(Task::Decode { sessions: 4 }, None, 0.0).is_err());
        assert!(subject.turn(Task::Prompt { tokens: TOKENS + 1 }, None, 0.0).is_err());
    }
}

/// A session that has read its tokens is in a lane that nobody else has, and that a step finds.
#[test]
fn walked_sessions_have_lanes_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut subject) = load(dir.path(), Target::Ragged, Precision::F32, 2) else { return };
    subject.walk(2, vec![3, WALK_TOKENS + 1]).unwrap();
    let lanes = [Some(3), Some(WALK_TOKENS + 1), Some(7), None];
    assert_eq!(lanes.map(|it| subject.walked.first_lane(it)), [0, 2, 0, 0]);
    let logits = |subject: &mut Subject, lane| {
        let segment = segment(&subject.tokens, lane, 3, 1);
        subject.graph.step(&[segment]).unwrap().floats("logits").unwrap().to_vec()
    };
    let walked = logits(&mut subject, 1);
    let tokens = segment(&subject.tokens, 1, 0, 3);
    subject.graph.step(&[tokens]).unwrap();
    assert_eq!(logits(&mut subject, 1), walked);
    let decode = Task::Decode { sessions: 2 };
    assert!(0.0 < subject.turn(decode, Some(WALK_TOKENS + 1), 0.0).unwrap());
}

#[test]
fn portable_graph_decodes_and_says_that_it_reads_no_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut subject) = load(dir.path(), Target::Portable, Precision::F32, 2) else { return };
    assert!(0.0 < subject.turn(Task::Decode { sessions: 2 }, None, 0.0).unwrap());
    let error = subject.turn(Task::Prompt { tokens: 2 }, None, 0.0).unwrap_err();
    assert!(error.to_string().contains("one token"), "{error}");
    assert!(subject.walk(1, vec![2]).is_err());
}

/// The preset `tiny` has 64 tokens of width 32, and 77280 parameters of which the matrices are counted.
#[test]
fn work_is_all_weights_for_each_token_and_the_table_for_each_session() {
    let dir = tempfile::tempdir().unwrap();
    let Some(subject) = load(dir.path(), Target::Ragged, Precision::F32, 1) else { return };
    let table = 64 * 32;
    let one = subject.work(Task::Decode { sessions: 1 });
    assert!(70_000 < one.multiply_adds && one.multiply_adds < 77_280, "{one:?}");
    assert_eq!(one.bytes, 4 * 77_280);
    let eight = subject.work(Task::Decode { sessions: 8 });
    assert_eq!(eight.multiply_adds, 8 * one.multiply_adds);
    let prompt = subject.work(Task::Prompt { tokens: 8 });
    assert_eq!(prompt.multiply_adds, 8 * one.multiply_adds - 7 * table);
    assert_eq!(prompt.bytes, one.bytes);
}
