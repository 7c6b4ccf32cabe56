//! Every reading gives what Google's own code gives: whole, token by token, in chunks, in company, and
//! at positions that no f32 holds.

use std::collections::BTreeMap;

use aerie_models::{BlockCarry, Carry, Precision};
use aerie_tests::{
    conformance::reference::Turn,
    eager::Step,
    exact,
    golden::{Golden, NAMES, State, TOLERANCE},
    random::Random,
    readings::{self, LANES, Reading},
};

/// Where f32 holds a position but not its angle, where it no longer holds every position, and where
/// 32 bits with a sign end.
const FAR: [u64; 3] = [1 << 20, (1 << 24) + 1, 1 << 31];

#[test]
fn equations_in_f64_agree_with_googles_code() {
    for golden in NAMES.map(Golden::open) {
        let exact =
            exact::logits(golden.config(), &golden.parameters(), Turn::default(), &golden.tokens);
        for (position, logits) in exact.iter().enumerate() {
            let off = golden.distance(position, &singles(logits));
            assert!(off < TOLERANCE, "{}: off by {off:e} at {position}", golden.name);
        }
    }
}

#[test]
fn whole_prefixes_and_single_tokens_have_googles_logits() {
    each(|book, reading| {
        // Every prefix is a session of its own, all in one step.
        let (mut step, mut tokens) = (Step::default(), Vec::new());
        for end in 1..=book.golden.tokens.len() {
            step.push(end, LANES - end, 0);
            tokens.extend(&book.golden.tokens[..end]);
        }
        for (position, logits) in reading.step(&step, &tokens).iter().enumerate() {
            book.answer("whole", position, logits);
        }
        book.end("whole", &reading.state(LANES - book.golden.tokens.len()));
    });
}

#[test]
fn every_cut_in_two_has_googles_logits_and_state() {
    each(|book, reading| {
        let tokens = book.golden.tokens.len();
        for cut in 1..tokens {
            book.feed(reading, &[cut, tokens - cut]);
        }
    });
}

#[test]
fn chunks_of_any_size_have_googles_logits_and_state() {
    each(|book, reading| {
        let tokens = book.golden.tokens.len();
        for size in 1..=book.golden.config().window as usize + 2 {
            let mut chunks = vec![size; tokens / size];
            chunks.extend((0 < tokens % size).then_some(tokens % size));
            book.feed(reading, &chunks);
        }
    });
}

/// Goal: prompts and single tokens of many sessions share a step, and none can tell.
/// Method: three sessions with the tokens of the golden model, begun at random times, among two of
/// other tokens; each takes a chunk or one token in random order, lanes change with every seed.
#[test]
fn sessions_in_company_have_googles_logits_and_state() {
    each(|book, reading| {
        for seed in 0..6 {
            company(book, reading, seed);
        }
    });
}

/// Goal: whoever serves rounded weights is told the same to the bit however a session is cut and in any company.
/// Method: as above, with our products and what is fused with them; how far rounding moves logits is nothing that
/// Google's code could tell, as long as they are numbers.
#[test]
fn sessions_with_rounded_weights_are_the_same_in_any_company() {
    for golden in NAMES.map(Golden::open) {
        for precision in [Precision::F16, Precision::Bf16, Precision::Q8, Precision::Q4] {
            let mut reading = readings::rounded(&golden, precision);
            let mut book = Book::open(&golden, reading.as_mut(), f64::INFINITY);
            let tokens = golden.tokens.len();
            for cut in [1, tokens / 3, tokens - 1] {
                book.feed(reading.as_mut(), &[cut, tokens - cut]);
            }
            (0..6).for_each(|seed| company(&mut book, reading.as_mut(), seed));
            eprintln!("{}, {precision:?}: logits within {:.1e}", book.context(), book.worst);
        }
    }
}

fn company(book: &mut Book<'_>, reading: &mut dyn Reading, seed: u64) {
    const GOLDEN: usize = 3;
    let mut random = Random::new(seed);
    let others = [book.golden.other_tokens(seed), book.golden.other_tokens(seed + 100)];
    let logs: Vec<_> = (0..GOLDEN).map(|_| book.golden.tokens.clone()).chain(others).collect();
    let lane = |session: usize| (7 * session + usize::try_from(seed).unwrap()) % LANES;
    let mut done = vec![0; logs.len()];
    while done.iter().zip(&logs).any(|(&done, log)| done < log.len()) {
        let (mut step, mut tokens, mut seated) = (Step::default(), Vec::new(), Vec::new());
        let first = random.below(logs.len());
        for session in (0..logs.len()).map(|it| (first + it) % logs.len()) {
            let left = logs[session].len() - done[session];
            if left == 0 || random.below(3) == 0 {
                continue;
            }
            let chunk = if random.below(2) == 0 { 1 } else { 1 + random.below(left) };
            step.push(chunk, lane(session), done[session]);
            tokens.extend(&logs[session][done[session]..][..chunk]);
            done[session] += chunk;
            seated.push(session);
        }
        if seated.is_empty() {
            continue;
        }
        let logits = reading.step(&step, &tokens);
        for (session, logits) in seated.into_iter().zip(logits) {
            if session < GOLDEN {
                book.answer(&format!("seed {seed}"), done[session] - 1, &logits);
            }
        }
    }
    for session in 0..GOLDEN {
        book.end(&format!("seed {seed}"), &reading.state(lane(session)));
    }
}

/// Goal: a session that has lived for billions of tokens answers like a young one.
/// Method: attention knows positions by their differences alone, so the state after some tokens, its
/// keys turned on to a far position, must go on as if it were near.
#[test]
fn positions_that_no_f32_holds_do_not_show() {
    each(|book, reading| {
        let (tokens, young) = (book.golden.tokens.len(), book.golden.config().window as usize + 2);
        let (step, chunk) = book.golden.chunk(0, 0, young);
        reading.step(&step, chunk);
        let state = reading.state(0);
        for start in FAR {
            for chunks in [vec![tokens - young], vec![1; tokens - young]] {
                reading.set_state(1, &aged(book.golden, &state, young, start));
                let mut position = young;
                for chunk in chunks {
                    let (mut step, chunk) = book.golden.chunk(1, position, position + chunk);
                    step.positions[0] += i64::try_from(start).unwrap();
                    position += chunk.len();
                    let logits = reading.step(&step, chunk).remove(0);
                    book.near(&format!("from {start}"), position - 1, &logits);
                }
            }
        }
    });
}

/// Goal: the test above would see angles that are formed in f32.
/// Method: the equations in f64, but for the angles of the far positions.
#[test]
fn angles_in_f32_would_show() {
    for golden in ["deep", "single"].map(Golden::open) {
        let far = |turn| exact::logits(golden.config(), &golden.parameters(), turn, &golden.tokens);
        for start in FAR {
            let right = far(Turn { start, ..Turn::default() });
            let wrong = far(Turn { start, angle: angle_in_f32 });
            let off = |logits: &[Vec<f64>]| {
                let each = logits.iter().enumerate();
                each.map(|(position, it)| golden.distance(position, &singles(it)))
                    .fold(0.0, f64::max)
            };
            let (right, wrong) = (off(&right), off(&wrong));
            eprintln!("{}, from {start}: {right:.1e} in f64, {wrong:.1e} in f32", golden.name);
            assert!(right < TOLERANCE, "{}, from {start}: off by {right:e}", golden.name);
            assert!(30.0 * TOLERANCE < wrong, "{}, from {start}: only {wrong:e}", golden.name);
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "what is lost by it is the point")]
fn angle_in_f32(position: u64, exponent: f64) -> f64 {
    f64::from(position as f32 * 10_000f64.powf(exponent) as f32)
}

/// `state` after `tokens` tokens as it would be if the session had begun at `start`.
#[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
fn aged(golden: &Golden, state: &State, tokens: usize, start: u64) -> State {
    let (ring, dim) = (golden.config().window as usize + 1, golden.config().head_dim as usize);
    let half = golden.config().attention_dims().rotary_dims as usize / 2;
    let turned = |key: &[f32]| {
        let mut turned = key.to_vec();
        for pair in 0..half {
            let exponent = -(pair as f64) / half as f64;
            let (sin, cos) = (start as f64 * 10_000f64.powf(exponent)).sin_cos();
            let (x, y) = (f64::from(key[pair]), f64::from(key[pair + half]));
            turned[pair] = (x * cos - y * sin) as f32;
            turned[pair + half] = (y * cos + x * sin) as f32;
        }
        turned
    };
    let moved = |rows: &[f32], change: &dyn Fn(&[f32]) -> Vec<f32>| {
        let mut moved = vec![0.0; rows.len()];
        for position in tokens - ring..tokens {
            let far = usize::try_from((start + position as u64) % ring as u64).unwrap();
            let row = &rows[position % ring * dim..][..dim];
            moved[far * dim..][..dim].copy_from_slice(&change(row));
        }
        moved
    };
    let blocks = state.blocks.iter().map(|block| match block {
        BlockCarry::Attention { keys, values } => BlockCarry::Attention {
            keys: moved(keys, &turned),
            values: moved(values, &<[f32]>::to_vec),
        },
        recurrent @ BlockCarry::Recurrent { .. } => recurrent.clone(),
    });
    Carry { blocks: blocks.collect() }
}

/// Runs `check` for every reading of every golden model.
fn each(mut check: impl FnMut(&mut Book<'_>, &mut dyn Reading)) {
    for golden in NAMES.map(Golden::open) {
        for reading in &mut readings::all(&golden) {
            let mut book = Book::open(&golden, reading.as_mut(), TOLERANCE);
            check(&mut book, reading.as_mut());
            eprintln!("{}: logits within {:.1e}", book.context(), book.worst);
        }
    }
}

/// What a reading has answered so far: the first answer at each position binds all later ones.
struct Book<'a> {
    golden: &'a Golden,
    reading: &'static str,
    is_invariant: bool,
    /// How far it may be from Google's code.
    tolerance: f64,
    logits: BTreeMap<usize, Vec<f32>>,
    /// After the last token.
    state: Option<State>,
    worst: f64,
}

impl<'a> Book<'a> {
    /// With the answers to the golden tokens one by one: they bind all that follow.
    #[track_caller]
    fn open(golden: &'a Golden, reading: &mut dyn Reading, tolerance: f64) -> Self {
        let mut book = Self {
            golden,
            reading: reading.name(),
            is_invariant: reading.is_invariant(),
            tolerance,
            logits: BTreeMap::new(),
            state: None,
            worst: 0.0,
        };
        book.feed(reading, &vec![1; golden.tokens.len()]);
        book
    }

    fn context(&self) -> String {
        format!("{}, {}", self.golden.name, self.reading)
    }

    /// Holds the logits of the token at `position` to Google's.
    #[track_caller]
    fn near(&mut self, way: &str, position: usize, logits: &[f32]) {
        let off = self.golden.distance(position, logits);
        let context = self.context();
        assert!(off < self.tolerance, "{context}, {way}, token {position}: off by {off:e}");
        self.worst = self.worst.max(off);
    }

    /// Holds the logits of the token at `position` to Google's, and to those of before.
    #[track_caller]
    fn answer(&mut self, way: &str, position: usize, logits: &[f32]) {
        self.near(way, position, logits);
        let context = format!("{}, {way}, token {position}", self.context());
        let first = self.logits.entry(position).or_insert_with(|| logits.to_vec());
        if self.is_invariant {
            assert_eq!(bits(logits), bits(first), "{context}");
        }
    }

    /// Holds the state after the last token to Google's, and to the one of before.
    #[track_caller]
    fn end(&mut self, way: &str, state: &State) {
        let context = format!("{}, {way}, state", self.context());
        let off = self.golden.state_distance(state);
        assert!(off < self.tolerance, "{context}: off by {off:e}");
        let first = self.state.get_or_insert_with(|| state.clone());
        for (found, first) in state.fields().zip(first.fields()) {
            if self.is_invariant {
                assert_eq!(bits(found), bits(first), "{context}");
            }
        }
    }

    /// Feeds the golden tokens to `reading` in these chunks.
    #[track_caller]
    fn feed(&mut self, reading: &mut dyn Reading, chunks: &[usize]) {
        const LANE: usize = 5;
        let (way, mut position) = (format!("chunks {chunks:?}"), 0);
        for chunk in chunks {
            let (step, tokens) = self.golden.chunk(LANE, position, position + chunk);
            position += chunk;
            let logits = reading.step(&step, tokens).remove(0);
            self.answer(&way, position - 1, &logits);
        }
        self.end(&way, &reading.state(LANE));
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounded once, from f64")]
fn singles(logits: &[f64]) -> Vec<f32> {
    logits.iter().map(|&it| it as f32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|it| it.to_bits()).collect()
}
