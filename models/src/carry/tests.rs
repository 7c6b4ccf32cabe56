use super::Carry;
use crate::presets::preset;

#[test]
fn byte_ranges_tile_the_record_in_the_order_of_the_fields() {
    for name in ["tiny", "tales-hawk", "tales-mqa"] {
        let layout = Carry::layout(&preset(name).unwrap());
        let ranges = layout.byte_ranges();
        let mut end = 0;
        for (spec, range) in layout.fields().zip(ranges.fields()) {
            assert_eq!(range.start, end, "{name}: {}", spec.path);
            assert_eq!(range.end - range.start, spec.bytes(), "{name}: {}", spec.path);
            end = range.end;
        }
        assert_eq!(end, layout.bytes(), "{name}");
    }
}

#[test]
fn paths_name_their_block() {
    let layout = Carry::layout(&preset("tiny").unwrap());
    let paths: Vec<_> = layout.fields().map(|spec| spec.path.as_str()).collect();
    assert_eq!(
        paths[..6].join(" "),
        "layers.0.conv layers.0.rg_lru layers.1.conv layers.1.rg_lru layers.2.keys layers.2.values"
    );
}
