//! What needs no runtime.

use super::*;

/// A manifest may ask for a window of a petabyte: a server that hosts other models as well refuses this
/// one, and does not end.
#[test]
fn states_that_find_no_memory_are_refused() {
    for (rows, row) in [(64, 1 << 48), (1 << 32, 1 << 48)] {
        let error = Buffer::<f32>::new("state.layers.2.keys", rows, row).err().unwrap();
        assert!(matches!(error, LoadError::Memory { .. }), "{error}");
        assert!(error.to_string().starts_with("\"state.layers.2.keys\" has 281474976710656"));
    }
    let buffer = Buffer::<f32>::new("state", 3, 5).unwrap();
    assert_eq!(buffer.as_slice(), [0.0; 15]);
}
