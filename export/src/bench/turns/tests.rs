use super::*;

#[test]
fn orders_are_answered_line_by_line() {
    let mut heard = Vec::new();
    let mut answers = Vec::new();
    let orders = "\"read\"\n{\"decode\": {\"sessions\": 3}}\n{\"prompt\": {\"tokens\": 7}}\n";
    serve(orders.as_bytes(), &mut answers, |order| {
        heard.push(order);
        Ok(match order {
            Order::Task(task) => Answer::Step { seconds: task.tokens() as f64 },
            _ => Answer::Read { read_bytes_per_s: 2.5 },
        })
    })
    .unwrap();
    let tasks = [Task::Decode { sessions: 3 }, Task::Prompt { tokens: 7 }];
    assert_eq!(heard, [Order::Read, Order::Task(tasks[0]), Order::Task(tasks[1])]);
    let expected = "{\"read_bytes_per_s\":2.5}\n{\"seconds\":3.0}\n{\"seconds\":7.0}\n";
    assert_eq!(String::from_utf8(answers).unwrap(), expected);
}

#[test]
fn order_that_nobody_knows_ends_it() {
    let answer = |_| -> anyhow::Result<Answer> { panic!("nothing to do") };
    let error = serve(&b"{\"decode\": 3}\n"[..], Vec::new(), answer).unwrap_err();
    assert!(error.to_string().contains("decode"), "{error}");
}
