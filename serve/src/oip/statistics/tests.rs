use super::*;

#[test]
fn what_was_asked_is_counted_by_model() {
    let statistics = Statistics::default();
    let ms = Duration::from_millis;
    let answered = Answered { unix_ms: 7, rows: 3, total: ms(5), queue: ms(1), ..<_>::default() };
    statistics.succeed("a", &answered);
    statistics.succeed("a", &Answered { unix_ms: 6, rows: 1, ..answered });
    statistics.fail("a", ms(2));
    let mut run = Total::default();
    run.add(ms(3));
    let told = statistics.describe("a", &Runs::Batches(BTreeMap::from([(4, run)])));
    assert_eq!((told.inference_count, told.execution_count, told.last_inference), (4, 1, 7));
    let stats = told.inference_stats.unwrap();
    let count = |it: Option<StatisticDuration>| it.map(|it| (it.count, it.ns)).unwrap();
    assert_eq!(count(stats.success), (2, 10_000_000));
    assert_eq!(count(stats.queue), (2, 2_000_000));
    assert_eq!(count(stats.fail), (1, 2_000_000));
    assert_eq!((told.batch_stats.len(), told.batch_stats[0].batch_size), (1, 4));
    assert_eq!(statistics.describe("b", &Runs::Steps(9)).execution_count, 9);
    assert_eq!(statistics.describe("b", &Runs::Steps(0)).inference_count, 0);
}
