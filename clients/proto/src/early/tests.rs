use super::{Early, policy};
use crate::v1::{self, call::Call, generate_request::Message};

#[test]
fn reads_run_at_once_and_writes_wait() {
    check(Call::ListSessions(v1::ListSessionsRequest::default()), Early::Run);
    check(Call::GetSession(v1::GetSessionRequest::default()), Early::Run);
    check(Call::ListModels(v1::ListModelsRequest {}), Early::Run);
    check(Call::Attach(v1::AttachRequest::default()), Early::Run);
    check(Call::DeleteSession(v1::DeleteSessionRequest::default()), Early::Wait);
    check(Call::ForkSession(v1::ForkSessionRequest::default()), Early::Wait);
    check(Call::RewindSession(v1::RewindSessionRequest::default()), Early::Wait);
    check(Call::NameSession(v1::NameSessionRequest::default()), Early::Wait);
    check(Call::ExportSession(v1::ExportSessionRequest::default()), Early::Wait);
    check(Call::ImportSession(v1::ImportSessionRequest::default()), Early::Wait);
}

/// Method: a generation runs at once with all three of what makes a second run fail, and waits when
/// any of them is missing.
#[test]
fn generation_runs_at_once_if_its_position_is_checked() {
    let checked = v1::Start {
        session_id: "0b1c9a52-8f0e-4c3e-9d0f-1f6a2c7f9e11".to_owned(),
        expected_position: Some(0),
        request_id: "1".to_owned(),
        ..v1::Start::default()
    };
    check(generate(Message::Start(checked.clone())), Early::Run);
    let start = v1::Start { session_id: String::new(), ..checked.clone() };
    check(generate(Message::Start(start)), Early::Wait);
    let start = v1::Start { expected_position: None, ..checked.clone() };
    check(generate(Message::Start(start)), Early::Wait);
    let start = v1::Start { request_id: String::new(), ..checked };
    check(generate(Message::Start(start)), Early::Wait);
    check(generate(Message::Cancel(v1::Cancel {})), Early::Wait);
    check(Call::Generate(v1::GenerateRequest { message: None }), Early::Wait);
}

fn generate(message: Message) -> Call {
    Call::Generate(v1::GenerateRequest { message: Some(message) })
}

#[track_caller]
fn check(call: Call, expected: Early) {
    assert_eq!(policy(&call), expected, "{call:?}");
}
