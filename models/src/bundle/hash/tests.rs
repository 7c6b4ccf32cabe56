use super::*;

/// Goal: the tree is BLAKE3's own, wherever the bytes end.
/// Method: lengths around those of pieces and chunks, beside the library's hash of the whole.
#[test]
fn hashes_are_those_of_the_whole() {
    // No length of a chunk or a piece is a multiple of the period.
    let bytes: Vec<u8> = (0..=250).cycle().take(7 * PIECE + 4097).collect();
    for pieces in 0..=7 {
        for (more, less) in [(0, 0), (1, 0), (0, 1), (1023, 0), (1024, 0), (1025, 0), (4096, 0)] {
            let Some(length) = (pieces * PIECE + more).checked_sub(less) else { continue };
            let bytes = &bytes[..length];
            assert_eq!(hash(bytes), blake3::hash(bytes), "{length} bytes");
        }
    }
}
