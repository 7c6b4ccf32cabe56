use super::*;

#[test]
fn devices_are_named_by_their_cores() {
    for name in ["cpu", "cpu:0-0", "cpu:2-5"] {
        assert_eq!(name.parse::<DeviceSpec>().unwrap().to_string(), name);
    }
    assert_eq!("cpu:3".parse::<DeviceSpec>().unwrap().to_string(), "cpu:3-3");
    assert_eq!("cpu:2-5".parse::<DeviceSpec>().unwrap().n_cores(), Some(4));
    for name in ["", "gpu", "cpu:", "cpu:a", "cpu:1-", "cpu:-1", "cpu:9999", "cpu:3-1"] {
        let error = name.parse::<DeviceSpec>().unwrap_err();
        assert!(error.to_string().contains(&format!("{name:?}")), "{error}");
    }
}

#[test]
fn a_batch_is_reused_without_growing() {
    let mut batch = Batch::with_capacity(4, 2);
    for _ in 0..3 {
        batch.clear();
        batch.push(Lane(1), 0, [5, 6, 7].into_iter());
        batch.push(Lane(0), 9, [8].into_iter());
        assert_eq!(batch.segments, [0, 3, 4]);
        assert_eq!(batch.fresh, [true, false]);
        assert_eq!((batch.tokens.capacity(), batch.lanes.capacity()), (4, 2));
    }
}
