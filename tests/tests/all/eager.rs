//! Whole models on plain slices: the logits of a session do not depend on how it is served.

use aerie_models::presets;
use aerie_tests::{
    eager::{Arena, Model, Step},
    random::Random,
};

/// Long enough to cross W - 1, W, W + 1 and 2W of the tiny preset, whose W is 8.
const TOKENS: usize = 21;

#[test]
fn any_cut_in_two_gives_the_same_logits() {
    let model = tiny(1);
    let tokens = log(2, TOKENS);
    let whole = model.step(&Step::one(TOKENS, 0, 0), &tokens, &mut model.arena(1));
    for cut in 1..TOKENS {
        let mut arena = model.arena(1);
        model.step(&Step::one(cut, 0, 0), &tokens[..cut], &mut arena);
        let logits = model.step(&Step::one(TOKENS - cut, 0, cut), &tokens[cut..], &mut arena);
        assert_eq!(logits, whole, "cut at token {cut}");
    }
}

#[test]
fn token_by_token_gives_the_logits_of_every_prefix() {
    let model = tiny(3);
    let tokens = log(4, TOKENS);
    let mut arena = model.arena(1);
    for (position, token) in tokens.iter().enumerate() {
        let logits = model.step(&Step::one(1, 0, position), &[*token], &mut arena);
        let prefix = &tokens[..=position];
        let whole = model.step(&Step::one(prefix.len(), 0, 0), prefix, &mut model.arena(1));
        assert_eq!(logits, whole, "after token {position}");
    }
}

/// Goal: neither the lane, nor what lay in it, nor who else is in the batch can be told from a
/// session's logits.
/// Method: five sessions advance on lanes full of NaN by random chunks in random company.
#[test]
fn company_lane_and_history_do_not_show_in_the_logits() {
    for seed in 0..8 {
        let model = tiny(5);
        let logs: Vec<_> = (0..5).map(|session| log(100 + session, TOKENS)).collect();
        let alone: Vec<_> = logs
            .iter()
            .map(|log| model.step(&Step::one(TOKENS, 0, 0), log, &mut model.arena(1)))
            .collect();

        let mut random = Random::new(seed);
        let mut arena = model.arena_of(9, |_| f32::NAN);
        let lanes = [7, 2, 8, 0, 4];
        let mut positions = [0; 5];
        while positions.iter().any(|&position| position < TOKENS) {
            let mut step = Step::default();
            let (mut tokens, mut seated) = (Vec::new(), Vec::new());
            for session in 0..logs.len() {
                let left = TOKENS - positions[session];
                if 0 < left && random.below(3) != 0 {
                    let chunk = 1 + random.below(left.min(10));
                    step.push(chunk, lanes[session], positions[session]);
                    tokens.extend(&logs[session][positions[session]..][..chunk]);
                    positions[session] += chunk;
                    seated.push(session);
                }
            }
            if seated.is_empty() {
                continue;
            }
            let logits = model.step(&step, &tokens, &mut arena);
            let vocab = model.config().vocab as usize;
            for (row, session) in logits.chunks_exact(vocab).zip(seated) {
                if positions[session] == TOKENS {
                    assert_eq!(row, alone[session], "session {session}, seed {seed}");
                }
            }
        }
    }
}

#[test]
fn a_lane_is_as_good_as_new_for_its_next_session() {
    let model = tiny(6);
    let (first, second) = (log(7, TOKENS), log(8, TOKENS));
    let (mut used, mut new) = (model.arena(1), model.arena(1));
    model.step(&Step::one(TOKENS, 0, 0), &first, &mut used);
    let after = model.step(&Step::one(TOKENS, 0, 0), &second, &mut used);
    let alone = model.step(&Step::one(TOKENS, 0, 0), &second, &mut new);
    assert_eq!(after, alone);
    assert_eq!(bits(&used), bits(&new), "state is a function of the session's tokens alone");
}

fn tiny(seed: u64) -> Model {
    Model::random(presets::preset("tiny").unwrap(), seed)
}

fn log(seed: u64, tokens: usize) -> Vec<i64> {
    let mut random = Random::new(seed);
    (0..tokens).map(|_| i64::try_from(random.below(64)).unwrap()).collect()
}

fn bits(arena: &Arena) -> Vec<u32> {
    arena.fields().flat_map(|field| field.data().iter().map(|x| x.to_bits())).collect()
}
