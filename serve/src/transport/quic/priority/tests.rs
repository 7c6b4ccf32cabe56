use super::*;

#[test]
fn ends_go_before_tokens_and_tokens_before_lists() {
    use call_response::Result as Answer;
    use generate_response::Event;

    let generation = |event| v1::GenerateResponse { event: Some(event) }.priority();
    let answer = |result| v1::CallResponse { result: Some(result) }.priority();
    assert_eq!(generation(Event::Finished(v1::Finished::default())), Priority::Last);
    assert_eq!(generation(Event::Error(v1::Error::default())), Priority::Last);
    assert_eq!(generation(Event::Accepted(v1::Accepted::default())), Priority::Tokens);
    assert_eq!(generation(Event::Delta(v1::Delta::default())), Priority::Tokens);
    assert_eq!(answer(Answer::Error(v1::Error::default())), Priority::Last);
    assert_eq!(answer(Answer::Session(v1::Session::default())), Priority::Tokens);
    assert_eq!(answer(Answer::ListSessions(v1::ListSessionsResponse::default())), Priority::Bulk);
    assert_eq!(answer(Answer::Chunk(v1::Chunk::default())), Priority::Bulk);
    assert!(Priority::Bulk < Priority::Tokens && Priority::Tokens < Priority::Last);
}
