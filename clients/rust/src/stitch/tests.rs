use proptest::prelude::*;

use super::*;

const FROM: u64 = 7;

/// What a server has to say: tokens, and the text that each sets free.
fn answer() -> impl Strategy<Value = Vec<(u32, String)>> {
    prop::collection::vec((0..50_u32, "[aé🙂]{0,3}"), 1..40)
}

/// The answer from token `from` on, in deltas that end where `cuts` say; a delta may be cut between its tokens and its
/// text.
fn deltas(answer: &[(u32, String)], from: usize, cuts: &[bool]) -> Vec<v1::Delta> {
    let mut deltas: Vec<v1::Delta> = Vec::new();
    let mut cuts = cuts.iter().cycle();
    let mut is_cut = true;
    for (i, (id, text)) in answer.iter().enumerate().skip(from) {
        let position = FROM + i as u64;
        if is_cut {
            deltas.push(v1::Delta { position, ..Default::default() });
        }
        deltas.last_mut().unwrap().ids.push(*id);
        if *cuts.next().unwrap() {
            deltas.push(v1::Delta::default());
        }
        let last = deltas.last_mut().unwrap();
        last.text.push_str(text);
        is_cut = *cuts.next().unwrap() || last.ids.is_empty();
    }
    deltas
}

fn run(stitch: &mut Stitch, deltas: &[v1::Delta], heard: &mut (Vec<u32>, String)) {
    for delta in deltas {
        let before = heard.0.len() as u64;
        if let Some(new) = stitch.push(delta.clone()).unwrap() {
            if !new.ids.is_empty() {
                assert_eq!(new.position, FROM + before);
            }
            heard.0.extend(&new.ids);
            heard.1.push_str(&new.text);
        }
    }
}

proptest! {
    /// Goal: however often a stream breaks, and wherever, its reader gets everything once.
    #[test]
    fn every_token_and_byte_comes_once(
        answer in answer(),
        breaks in prop::collection::vec((0..60_usize, prop::collection::vec(any::<bool>(), 1..20)), 0..6),
        last in prop::collection::vec(any::<bool>(), 1..20),
        repeats_all: bool,
    ) {
        let mut stitch = match repeats_all {
            true => Stitch::of_answer(FROM),
            false => Stitch::of_reading(FROM),
        };
        let mut heard = (Vec::new(), String::new());
        for (n, cuts) in breaks {
            let from = usize::try_from(stitch.mark() - FROM).unwrap();
            stitch.again();
            let deltas = deltas(&answer, from, &cuts);
            run(&mut stitch, &deltas[..n.min(deltas.len())], &mut heard);
        }
        let from = usize::try_from(stitch.mark() - FROM).unwrap();
        stitch.again();
        run(&mut stitch, &deltas(&answer, from, &last), &mut heard);
        let ids: Vec<u32> = answer.iter().map(|it| it.0).collect();
        let text: String = answer.iter().map(|it| it.1.as_str()).collect();
        prop_assert_eq!(heard, (ids, text));
    }
}

#[test]
fn a_server_that_says_something_else_is_found_out() {
    let delta =
        |position, ids: &[u32]| v1::Delta { position, ids: ids.to_vec(), text: String::new() };
    let mut stitch = Stitch::of_answer(FROM);
    stitch.push(delta(7, &[1, 2, 3])).unwrap();
    stitch.again();
    for bad in [delta(7, &[1, 9]), delta(6, &[1]), delta(12, &[5])] {
        let position = bad.position;
        let error = stitch.push(bad).unwrap_err();
        assert!(
            matches!(error, Error::Contradiction { position: at } if at == position),
            "{error}"
        );
    }
    assert_eq!(stitch.push(delta(8, &[2, 3, 4])).unwrap(), Some(delta(10, &[4])));
}
