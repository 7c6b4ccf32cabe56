use super::*;

/// Goal: whoever scrapes an idle server sees every series, at zero, under the naming rules.
#[test]
fn names_follow_the_convention_and_series_exist_from_the_start() {
    let metrics = Metrics::new();
    let worker = metrics.worker("tales", "cpu");
    worker.finished(FinishReason::Stop).inc();
    worker.time_to_first_token(Origin::Parked).observe(1e-3);
    let text = metrics.render();
    for line in [
        "serve_requests_rejected_total{reason=\"queue_full\"} 0",
        "serve_generations_finished_total{device=\"cpu\",model=\"tales\",reason=\"stop\"} 1",
        "serve_tokens_total{device=\"cpu\",model=\"tales\",phase=\"generated\"} 0",
        "serve_quic_handshakes_total{result=\"retried\"} 0",
        "serve_quic_early_calls_total{run=\"at_once\"} 0",
        "serve_quic_lost_packets_total 0",
        "serve_lanes{device=\"cpu\",model=\"tales\",state=\"free\"} 0",
    ] {
        assert!(text.contains(line), "{line} is missing from\n{text}");
    }
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(name.starts_with("serve_") || name.starts_with("process_"), "{line}");
        let is_total = name.ends_with("_total");
        assert_eq!(kind == "counter", is_total, "{line}");
    }
}

#[test]
fn latency_buckets_resolve_steps_of_100_microseconds() {
    let metrics = Metrics::new();
    metrics.worker("m", "d").step_duration.observe(120e-6);
    let text = metrics.render();
    let bucket = "serve_step_duration_seconds_bucket{device=\"d\",model=\"m\",le=";
    assert!(text.contains(&format!("{bucket}\"0.0001\"}} 0")), "{text}");
    assert!(text.contains(&format!("{bucket}\"0.0002\"}} 1")), "{text}");
}

#[test]
fn overhead_buckets_tell_whether_a_step_stays_within_20_microseconds() {
    let metrics = Metrics::new();
    metrics.worker("m", "d").step_overhead.observe(15e-6);
    let text = metrics.render();
    let bucket = "serve_step_overhead_seconds_bucket{device=\"d\",model=\"m\",le=";
    assert!(text.contains(&format!("{bucket}\"0.00001\"}} 0")), "{text}");
    assert!(text.contains(&format!("{bucket}\"0.00002\"}} 1")), "{text}");
}
