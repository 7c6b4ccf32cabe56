//! One generation of a test: what is asked, and all that came back.

use aerie_client::{
    Client, Error, Event, Generation,
    v1::{self, start::Prompt},
};
use tokio_stream::StreamExt as _;

/// What came of a generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    pub accepted: v1::Accepted,
    pub ids: Vec<u32>,
    pub text: String,
    pub finished: v1::Finished,
}

/// A greedy generation of `max_tokens` after `prompt`.
pub fn greedy(prompt: &str, max_tokens: u32) -> v1::Start {
    let prompt = Some(Prompt::Text(prompt.to_owned()));
    v1::Start { prompt, max_tokens, ..v1::Start::default() }
}

/// Runs `start` to its end, and checks what holds of every stream: positions go up by one for each
/// token, and the counts agree.
///
/// # Errors
/// The server's, if it refuses or fails.
pub async fn run(client: &Client, start: v1::Start) -> Result<Turn, Error> {
    let generation = client.generate(start).await?;
    let mut turn = Turn::default();
    follow(generation, &mut turn, 0).await?;
    assert_eq!(turn.finished.generated_tokens as usize, turn.ids.len(), "tokens were lost");
    Ok(turn)
}

/// Takes in a generation, or the rest of one whose next token is at `position`, to its end.
///
/// # Errors
/// The server's, or that of the connection.
pub async fn follow(
    mut generation: Generation,
    turn: &mut Turn,
    mut position: u64,
) -> Result<(), Error> {
    while let Some(event) = generation.next().await {
        match event? {
            Event::Accepted(accepted) => {
                position = accepted.position + u64::from(accepted.prompt_tokens);
                turn.accepted = accepted;
            }
            Event::Attached(attached) => assert!(position <= attached.position, "{attached:?}"),
            Event::Delta(delta) => {
                if !delta.ids.is_empty() {
                    assert_eq!(delta.position, position, "a token was lost or doubled");
                }
                position += delta.ids.len() as u64;
                turn.ids.extend(delta.ids);
                turn.text.push_str(&delta.text);
            }
            Event::Finished(finished) => turn.finished = finished,
        }
    }
    assert_eq!(turn.finished.position, position, "the session stands elsewhere");
    Ok(())
}
