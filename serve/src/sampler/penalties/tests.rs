use super::*;

fn apply(penalties: Penalties, logits: &[f32], recent: &[u32]) -> Vec<f32> {
    let mut penaliser = Penaliser::new(logits.len());
    // Twice, since nothing may be left of the first time.
    penaliser.apply(penalties, logits, [0, 0, 1].into_iter());
    penaliser.apply(penalties, logits, recent.iter().copied()).to_vec()
}

#[test]
fn repetition_makes_a_token_less_probable_whatever_its_sign() {
    let penalties = Penalties { repetition: 2.0, ..Penalties::NONE };
    assert_eq!(apply(penalties, &[3.0, -3.0, 1.0], &[0, 1, 1]), [1.5, -6.0, 1.0]);
}

#[test]
fn presence_counts_once_and_frequency_each_time() {
    let penalties = Penalties { presence: 0.5, frequency: 0.25, ..Penalties::NONE };
    assert_eq!(apply(penalties, &[1.0, 1.0, 1.0], &[2, 1, 2, 2]), [1.0, 0.25, -0.25]);
    let rewards = Penalties { presence: -0.5, ..Penalties::NONE };
    assert_eq!(apply(rewards, &[1.0, 1.0], &[1]), [1.0, 1.5]);
}

#[test]
fn nothing_said_changes_nothing() {
    let penalties = Penalties { repetition: 9.0, presence: 9.0, frequency: 9.0, window: 9 };
    assert_eq!(apply(penalties, &[1.0, f32::NEG_INFINITY], &[]), [1.0, f32::NEG_INFINITY]);
    assert!(penalties.are_any() && !Penalties::NONE.are_any());
    assert!(!Penalties { window: 0, ..penalties }.are_any());
}
