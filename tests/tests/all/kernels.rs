//! The conformance suite: what every implementation of a recurrent operator promises.

use aerie_tests::{
    conformance::{Implementation, Problem, Session, implementations, reference},
    eager::Step,
    random::Random,
};

/// W of the attention problem is 7: sessions cross W - 1, W, W + 1 and 2W.
const TOKENS: usize = 17;

#[test]
fn a_whole_session_agrees_with_the_equations_in_f64() {
    each(|problem, it| {
        let session = problem.session(1, TOKENS);
        let exact = reference::outputs(problem, &session);
        let (y, _) = alone(problem, it, &session);
        for (at, (found, exact)) in y.iter().zip(&exact).enumerate() {
            // Numbers of order 1 to 10, through sums of at most 40 f32 products.
            let off = (f64::from(*found) - exact).abs();
            assert!(off < 1e-5, "{} is off by {off:e} at {at}", it.name());
        }
    });
}

#[test]
fn every_cut_in_two_gives_the_same_bits() {
    each(|problem, it| {
        let session = problem.session(2, TOKENS);
        let whole = alone(problem, it, &session);
        for cut in 1..TOKENS {
            let pieces = chunked(problem, it, &session, &[cut, TOKENS - cut]);
            assert_same(&pieces, &whole, &format!("{}, cut at token {cut}", it.name()));
        }
    });
}

#[test]
fn token_by_token_and_any_chunks_give_the_same_bits() {
    each(|problem, it| {
        let session = problem.session(3, TOKENS);
        let whole = alone(problem, it, &session);
        let steps = chunked(problem, it, &session, &[1; TOKENS]);
        assert_same(&steps, &whole, it.name());
        for chunks in [[6, 2, 9], [7, 1, 9], [8, 8, 1], [1, 14, 2], [15, 1, 1]] {
            let pieces = chunked(problem, it, &session, &chunks);
            assert_same(&pieces, &whole, &format!("{}, chunks {chunks:?}", it.name()));
        }
    });
}

#[test]
fn implementations_agree_bit_for_bit() {
    for problem in Problem::all() {
        let session = problem.session(4, TOKENS);
        let mut all = implementations(&problem);
        let first = alone(&problem, all[0].as_mut(), &session);
        for it in &mut all[1..] {
            assert_same(&alone(&problem, it.as_mut(), &session), &first, it.name());
        }
    }
}

/// Goal: a session's numbers do not tell its company, its lane or what lay there before.
/// Method: five sessions advance in random chunks and company over lanes that were full of NaN.
#[test]
fn company_lane_and_history_do_not_show() {
    each(|problem, it| {
        let sessions: Vec<_> = (0..5).map(|seed| problem.session(20 + seed, TOKENS)).collect();
        let expected: Vec<_> = sessions.iter().map(|it_| alone(problem, it, it_).0).collect();
        let lanes = [6, 1, 8, 0, 3];
        let width = problem.output_width();
        for seed in 0..6 {
            let mut random = Random::new(seed);
            let mut states = problem.states(9, f32::NAN);
            let mut done = [0; 5];
            while done.iter().any(|&done| done < TOKENS) {
                let (step, seated) = company(&mut random, &mut done, lanes);
                if seated.is_empty() {
                    continue;
                }
                let inputs = pack(&sessions, &seated);
                let y = it.step(&step, &inputs, &mut states).unwrap();
                let mut rows = y.chunks_exact(width);
                for &(session, from, to) in &seated {
                    for token in from..to {
                        let row = &expected[session][token * width..][..width];
                        let context = format!("{}, session {session}, seed {seed}", it.name());
                        assert_eq!(bits(rows.next().unwrap()), bits(row), "{context}");
                    }
                }
            }
            for lane in [2, 4, 5, 7] {
                assert!(lane_of(&states, 9, lane).iter().all(|x| x.is_nan()), "lane {lane}");
            }
        }
    });
}

#[test]
fn a_fresh_lane_is_a_reset_lane() {
    each(|problem, it| {
        let session = problem.session(5, TOKENS);
        let step = Step::one(TOKENS, 0, 0);
        let mut clean = problem.states(1, 0.0);
        let y_clean = it.step(&step, &session.inputs, &mut clean).unwrap();
        for poison in [f32::NAN, f32::INFINITY, 1e30] {
            let mut used = problem.states(1, poison);
            let y = it.step(&step, &session.inputs, &mut used).unwrap();
            assert_same(&(y, used), &(y_clean.clone(), clean.clone()), it.name());
        }
    });
}

#[test]
fn tokens_to_come_do_not_change_a_bit_of_those_before() {
    each(|problem, it| {
        let session = problem.session(6, TOKENS);
        let (y, _) = alone(problem, it, &session);
        for changed in [1, 8, TOKENS - 1] {
            let mut other = session.clone();
            for input in &mut other.inputs {
                let row = input.len() / TOKENS;
                input[changed * row..(changed + 1) * row].fill(3.0);
            }
            let (after, _) = alone(problem, it, &other);
            let seen = changed * problem.output_width();
            assert_eq!(bits(&after[..seen]), bits(&y[..seen]), "{}, token {changed}", it.name());
            assert_ne!(bits(&after[seen..]), bits(&y[seen..]), "{}, token {changed}", it.name());
        }
    });
}

/// Enough work for ONNX Runtime to share it between threads, which must not show.
#[test]
fn threads_do_not_change_a_bit() {
    for problem in [
        Problem::RgLru { width: 600, p: vec![-4.0; 600] },
        Problem::CausalConv1d {
            taps: 4,
            width: 600,
            weight: vec![0.3; 2400],
            bias: vec![0.1; 600],
        },
        Problem::attention(9, 50),
    ] {
        let session = problem.session(7, 150);
        let mut all = implementations(&problem);
        let first = alone(&problem, all[0].as_mut(), &session);
        for it in &mut all[1..] {
            assert_same(&alone(&problem, it.as_mut(), &session), &first, it.name());
        }
    }
}

#[test]
fn a_step_that_does_not_hold_together_is_refused_and_writes_nothing() {
    each(|problem, it| {
        let good = {
            let mut step = Step::one(2, 0, 0);
            step.push(3, 1, 0);
            step
        };
        for (lanes, cuts, message) in [
            ([0, 9], [0, 2, 5], "lanes[1] is 9; lanes are 0..9"),
            ([-1, 0], [0, 2, 5], "lanes[0] is -1; lanes are 0..9"),
            ([4, 4], [0, 2, 5], "lanes[1] is 4, which an earlier segment already has"),
            ([0, 1], [0, 5, 5], "segment 1 is tokens 5..5; it must hold at least one"),
            ([0, 1], [0, 2, 6], "segments end at 6, but the step has 5 tokens"),
        ] {
            let step = Step { lanes: lanes.to_vec(), cuts: cuts.to_vec(), ..good.clone() };
            let inputs = problem.session(8, 5).inputs;
            let mut states = problem.states(9, 1.0);
            let error = it.step(&step, &inputs, &mut states).unwrap_err();
            assert!(error.contains(message), "{}: {error}", it.name());
            assert_eq!(states, problem.states(9, 1.0), "{}", it.name());
        }
    });
}

/// Runs `check` for every implementation of every problem.
fn each(mut check: impl FnMut(&Problem, &mut dyn Implementation)) {
    for problem in Problem::all() {
        for it in &mut implementations(&problem) {
            check(&problem, it.as_mut());
        }
    }
}

type Outcome = (Vec<f32>, Vec<Vec<f32>>);

/// A session in one step on the only lane.
fn alone(problem: &Problem, it: &mut dyn Implementation, session: &Session) -> Outcome {
    chunked(problem, it, session, &[session.tokens])
}

/// A session cut into chunks, on the only lane.
fn chunked(
    problem: &Problem,
    it: &mut dyn Implementation,
    session: &Session,
    chunks: &[usize],
) -> Outcome {
    let mut states = problem.states(1, f32::NAN);
    let (mut y, mut from) = (Vec::new(), 0);
    for chunk in chunks {
        let step = Step::one(*chunk, 0, from);
        y.extend(it.step(&step, &session.rows(from, from + chunk), &mut states).unwrap());
        from += chunk;
    }
    assert_eq!(from, session.tokens, "chunks cover the session");
    (y, states)
}

/// A random next step: who advances, and over which of its tokens.
fn company(
    random: &mut Random,
    done: &mut [usize; 5],
    lanes: [usize; 5],
) -> (Step, Vec<(usize, usize, usize)>) {
    let (mut step, mut seated) = (Step::default(), Vec::new());
    for session in 0..done.len() {
        let (from, left) = (done[session], TOKENS - done[session]);
        if 0 < left && random.below(3) != 0 {
            let chunk = 1 + random.below(left.min(9));
            step.push(chunk, lanes[session], from);
            done[session] += chunk;
            seated.push((session, from, from + chunk));
        }
    }
    (step, seated)
}

/// The rows of all that are seated, one after the other.
fn pack(sessions: &[Session], seated: &[(usize, usize, usize)]) -> Vec<Vec<f32>> {
    let mut packed = vec![Vec::new(); sessions[0].inputs.len()];
    for &(session, from, to) in seated {
        for (packed, rows) in packed.iter_mut().zip(sessions[session].rows(from, to)) {
            packed.extend(rows);
        }
    }
    packed
}

fn lane_of(states: &[Vec<f32>], lanes: usize, lane: usize) -> Vec<f32> {
    let row = |state: &Vec<f32>| state.len() / lanes;
    states.iter().flat_map(|it| it[lane * row(it)..(lane + 1) * row(it)].to_vec()).collect()
}

#[track_caller]
fn assert_same(found: &Outcome, expected: &Outcome, context: &str) {
    assert_eq!(bits(&found.0), bits(&expected.0), "outputs: {context}");
    for (found, expected) in found.1.iter().zip(&expected.1) {
        assert_eq!(bits(found), bits(expected), "state: {context}");
    }
}

fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|x| x.to_bits()).collect()
}
