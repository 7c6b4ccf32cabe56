//! What a generation comes to on its own: the answer to which all others are held.

use crate::{
    device::fake::FakeDevice,
    pipe::FinishReason,
    request::Request,
    sampler::{Draw, Sampler},
    text::{StopMatcher, Utf8Tail, Vocabulary},
};

/// What a turn gives.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Solo {
    pub(super) tokens: Vec<u32>,
    pub(super) text: String,
    pub(super) reason: Option<FinishReason>,
}

/// Goes on with `log`, whose words after the last prompt are `drawn` ones, as `request` says.
pub(super) fn solo(
    log: &[u32],
    drawn: usize,
    request: &Request,
    seed: u64,
    vocabulary: &Vocabulary,
) -> Solo {
    let mut sampler = Sampler::new(FakeDevice::VOCAB);
    let mut tail = Utf8Tail::default();
    if request.prompt.is_empty() {
        let mut ignored = String::new();
        for &token in &log[log.len() - drawn..] {
            tail.push(vocabulary.bytes(token), &mut ignored);
        }
    }
    let mut state = FakeDevice::absorb_all(log);
    let mut stop = StopMatcher::new(request.stop.clone());
    let mut solo = Solo::default();
    if request.prompt_only {
        solo.reason = Some(FinishReason::Prompt);
        return solo;
    }
    while solo.reason.is_none() {
        let position = (log.len() + solo.tokens.len()) as u64;
        let logits = FakeDevice::logits(state);
        let said: Vec<u32> = log.iter().chain(&solo.tokens).copied().collect();
        let window = request.sampling.penalties.window as usize;
        let recent = said[said.len().saturating_sub(window)..].iter().copied();
        let draw = Draw { seed, position };
        let token = sampler.draw_after(request.sampling, &logits, draw, recent).unwrap();
        if Some(token) == vocabulary.end_of_text() {
            stop.flush(&mut solo.text);
            solo.reason = Some(FinishReason::EndOfText);
            break;
        }
        state = FakeDevice::absorb(state, token.into());
        solo.tokens.push(token);
        let mut characters = String::new();
        tail.push(vocabulary.bytes(token), &mut characters);
        if stop.push(&characters, &mut solo.text) {
            solo.reason = Some(FinishReason::Stop);
        } else if solo.tokens.len() == request.tokens_max as usize {
            stop.flush(&mut solo.text);
            solo.reason = Some(FinishReason::Length);
        }
    }
    solo
}
