use aerie_models::{Family, decoder, presets};
use tch::{Device, no_grad};

use super::*;

/// `W` of the tiny preset; lengths here go well beyond it.
const WINDOW: i64 = 8;

fn tiny(family: Family) -> ModelConfig {
    let mut text = toml::to_string(&presets::preset("tiny").unwrap()).unwrap();
    let name = format!("{family:?}").to_lowercase();
    text = text.replace("griffin", &name);
    toml::from_str(&text).unwrap()
}

/// Parameters away from their beginning, so that no bias is zero.
fn parameters(config: &ModelConfig) -> Parameters {
    let parameters = Parameters::init(config, 5, Kind::Double);
    no_grad(|| {
        for (number, (_, it)) in zip(0.., parameters.iter()) {
            let at = Tensor::arange(it.tensor.numel() as i64, (Kind::Double, Device::Cpu));
            let noise = (at * 1.7 + f64::from(number)).sin() * 0.1;
            let _ = it.tensor.shallow_clone().g_add_(&noise.reshape(it.tensor.size()));
        }
    });
    parameters
}

fn tokens(config: &ModelConfig, range: std::ops::Range<i64>) -> Vec<i64> {
    range.map(|it| (it * it * 7 + it * 3) % i64::from(config.vocab)).collect()
}

/// Outputs `[N, D]` of whole documents that are packed together.
fn documents(
    config: &ModelConfig,
    parameters: &Parameters,
    row: i64,
    texts: &[Vec<i64>],
) -> Tensor {
    let mut bounds = vec![0];
    bounds.extend(texts.iter().scan(0, |end, it| {
        *end += it.len() as i64;
        Some(*end)
    }));
    let segments = texts.len() as i64;
    let packing = Packing { bounds, kind: PackingKind::Documents { row } };
    let reading = Reading::new(config, parameters, packing);
    let carry = void(config, segments, (Kind::Double, Device::Cpu)).map(Handle::of);
    let tokens = Handle(Tensor::from_slice(&texts.concat()));
    no_grad(|| decoder::hidden(config, &reading, &tokens, &carry).0.0)
}

/// Reads one part of each of several sessions.
fn step(
    config: &ModelConfig,
    parameters: &Parameters,
    parts: &[(i64, Vec<i64>)],
    carry: &Carry<Handle>,
) -> (Tensor, Carry<Handle>) {
    let mut bounds = vec![0];
    for (_, part) in parts {
        bounds.push(bounds[bounds.len() - 1] + part.len() as i64);
    }
    let positions = parts.iter().map(|it| it.0).collect();
    let packing = Packing { bounds, kind: PackingKind::Sessions { positions } };
    let reading = Reading::new(config, parameters, packing);
    let tokens: Vec<i64> = parts.iter().flat_map(|it| it.1.clone()).collect();
    let tokens = Handle(Tensor::from_slice(&tokens));
    let (x, next) = no_grad(|| decoder::hidden(config, &reading, &tokens, carry));
    (x.0, next)
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let worst = (found - expected).abs().max().double_value(&[]);
    // f64 through five blocks.
    assert!(worst <= 1e-11, "{what}: {worst:e} apart");
}

const FAMILIES: [Family; 3] = [Family::Griffin, Family::Hawk, Family::Mqa];

/// Goal: no document sees another, through convolution, recurrence, attention or position.
/// Method: lengths on both sides of W, 2W and the block borders, packed and alone.
#[test]
fn packed_documents_are_read_as_if_alone() {
    for family in FAMILIES {
        let config = tiny(family);
        let parameters = parameters(&config);
        let lengths = [1, 2, 3, WINDOW, WINDOW + 1, 4 * WINDOW + 3, 5, 1];
        let texts: Vec<_> = zip(0.., lengths).map(|(i, n)| tokens(&config, i..i + n)).collect();
        let all: i64 = lengths.iter().sum();
        let packed = documents(&config, &parameters, all, &texts);
        let alone: Vec<_> = texts
            .iter()
            .map(|it| documents(&config, &parameters, it.len() as i64, std::slice::from_ref(it)))
            .collect();
        assert_close(&packed, &Tensor::cat(&alone, 0), &format!("{family:?}"));
    }
}

/// Rows no longer than the window are blocks of their own; the result is the same.
#[test]
fn short_rows_are_read_as_one_long_row() {
    let config = tiny(Family::Griffin);
    let parameters = parameters(&config);
    let row = WINDOW - 1;
    let texts: Vec<_> = (0..4).map(|i| tokens(&config, i..i + row)).collect();
    let by_row = documents(&config, &parameters, row, &texts);
    assert_close(&by_row, &documents(&config, &parameters, 4 * row, &texts), "rows");
}

/// Goal: a session read in any chunks, alone or beside others, is the document read whole.
/// Method: chunks of every size around the window, the state carried from one to the next.
#[test]
fn sessions_in_chunks_are_whole_documents() {
    for family in FAMILIES {
        let config = tiny(family);
        let parameters = parameters(&config);
        let length = 3 * WINDOW + 2;
        let text = tokens(&config, 0..length);
        let whole = documents(&config, &parameters, length, std::slice::from_ref(&text));
        for chunk in [1, 2, 3, 4, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 1, length] {
            let mut carry = void(&config, 1, (Kind::Double, Device::Cpu)).map(Handle::of);
            let mut found = Vec::new();
            let size = usize::try_from(chunk).unwrap();
            for (position, part) in zip((0..).step_by(size), text.chunks(size)) {
                let (x, next) = step(&config, &parameters, &[(position, part.to_vec())], &carry);
                found.push(x);
                carry = next;
            }
            assert_close(&Tensor::cat(&found, 0), &whole, &format!("{family:?} by {chunk}"));
        }
    }
}

#[test]
fn sessions_of_one_step_do_not_see_each_other() {
    let config = tiny(Family::Griffin);
    let parameters = parameters(&config);
    let texts = [tokens(&config, 3..20), tokens(&config, 40..45), tokens(&config, 7..30)];
    let cuts = [11, 1, 20];
    let part = |i: usize, head: bool| {
        let (head_part, tail) = texts[i].split_at(cuts[i]);
        if head { (0, head_part.to_vec()) } else { (cuts[i] as i64, tail.to_vec()) }
    };
    let all = |head| (0..3).map(|i| part(i, head)).collect::<Vec<_>>();
    let fresh = void(&config, 3, (Kind::Double, Device::Cpu)).map(Handle::of);
    let (head, carry) = step(&config, &parameters, &all(true), &fresh);
    let (tail, _) = step(&config, &parameters, &all(false), &carry);

    let [mut head_at, mut tail_at] = [0, 0];
    for (i, text) in texts.iter().enumerate() {
        let n = text.len() as i64;
        let [head_n, tail_n] = [cuts[i] as i64, n - cuts[i] as i64];
        let parts = [head.narrow(0, head_at, head_n), tail.narrow(0, tail_at, tail_n)];
        let alone = documents(&config, &parameters, n, std::slice::from_ref(text));
        assert_close(&Tensor::cat(&parts, 0), &alone, &format!("session {i}"));
        head_at += head_n;
        tail_at += tail_n;
    }
}

/// A session that begins in a row of the state where another one was does not see it.
#[test]
fn fresh_session_does_not_see_the_state_it_is_given() {
    let config = tiny(Family::Griffin);
    let parameters = parameters(&config);
    let clean = void(&config, 1, (Kind::Double, Device::Cpu)).map(Handle::of);
    let (_, dirty) = step(&config, &parameters, &[(0, tokens(&config, 9..30))], &clean);
    let text = [(0, tokens(&config, 0..12))];
    let (expected, _) = step(&config, &parameters, &text, &clean);
    let (found, _) = step(&config, &parameters, &text, &dirty);
    assert_eq!(found, expected);
}

/// The gradient through blocks of attention is the gradient through one softmax over everything.
#[test]
fn gradients_of_documents_are_those_of_sessions() {
    let config = tiny(Family::Griffin);
    let length = 3 * WINDOW + 2;
    let tokens = Handle(Tensor::from_slice(&tokens(&config, 0..length)));
    let gradients = |kind| {
        let parameters = parameters(&config);
        let reading = Reading::new(&config, &parameters, Packing { bounds: vec![0, length], kind });
        let carry = void(&config, 1, (Kind::Double, Device::Cpu)).map(Handle::of);
        decoder::hidden(&config, &reading, &tokens, &carry)
            .0
            .0
            .square()
            .sum(Kind::Double)
            .backward();
        parameters
    };
    let found = gradients(PackingKind::Documents { row: length });
    let expected = gradients(PackingKind::Sessions { positions: vec![0] });
    for ((path, found), (_, expected)) in zip(found.iter(), expected.iter()) {
        let [found, expected] = [found, expected].map(|it| it.tensor.grad());
        let scale = expected.abs().max().double_value(&[]).max(1.0);
        let worst = (found - expected).abs().max().double_value(&[]) / scale;
        assert!(worst <= 1e-11, "{path}: {worst:e} apart");
    }
}
