//! Pickles that PyTorch does not write: whatever they ask for, nothing happens.

use aerie_fuzz::{Format, Fuzz};

use super::*;

/// `{"x": tensor of 3 floats}` as PyTorch 2 writes it, shorter by what it remembers and never uses.
const GOOD: &[u8] = b"\x80\x02}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00\
    storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x03tQK\x00K\x03\x85K\x01\x85\
    \x89ccollections\nOrderedDict\n)RtRs.";

#[test]
fn tensor_is_described() {
    let storage = Storage { element: DataType::F32, key: "0".into(), count: 3 };
    let tensor = PickledTensor { storage, offset: 0, shape: vec![3], strides: vec![1] };
    assert_eq!(read(GOOD).unwrap(), [("x".to_owned(), tensor)]);
}

#[test]
fn nothing_can_be_called() {
    check(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00evil\x85R.", "the pickle names os.system");
    check(b"cbuiltins\neval\n.", "the pickle names builtins.eval");
    check(b"ctorch\nDoubleStorage\n.", "the pickle names torch.DoubleStorage");
    check(b"ctorch._utils\n_rebuild_tensor\n.", "the pickle names torch._utils._rebuild_tensor");
    // INST, OBJ, NEWOBJ, STACK_GLOBAL, EXT1, PERSID: other ways to name or to make something.
    for instruction in [b"i".as_slice(), b"o", b"\x81", b"\x93", b"\x82", b"P", b"0", b"2", b"l"] {
        check(&[b"}", instruction].concat(), "is none that a dictionary of tensors needs");
    }
}

#[test]
fn instructions_without_their_values_are_refused() {
    for pickle in [b".".as_slice(), b"s", b"R", b"b", b"Q", b"\x85", b"q\x00", b"}(s.", b"N("] {
        assert!(read(pickle).is_err(), "{pickle:?}");
    }
    check(b"", "ends within an instruction");
    check(b"X\xff\xff\xff\xffabc", "ends within an instruction");
    check(b"t", "lacks a mark");
    check(b"h\x07", "lacks a value that was remembered");
    check(b"}(K\x01u.", "lacks a value for each key");
    check(b"\x80\x04.", "has protocol 4; 2 is what PyTorch writes");
    check(b"\x8a\x09aaaaaaaaa", "lacks an integer of 64 bits");
    check(b"ccollections\nOrderedDict\nK\x01\x85R.", "lacks the arguments of what is called");
    check(b"K\x01.", "lacks a dictionary at its end");
    check(b"}K\x01K\x02s.", "lacks text as a name");
    check(b"}X\x01\x00\x00\x00nK\x02s.", "entry \"n\" is not a tensor");
    check(&[&GOOD[..GOOD.len() - 1], b"0."].concat(), "instruction 0x30");
}

#[test]
fn counts_below_zero_and_names_twice_are_refused() {
    let replaced = |from: &[u8], to: &[u8]| {
        let at = GOOD.windows(from.len()).position(|it| it == from).unwrap();
        [&GOOD[..at], to, &GOOD[at + from.len()..]].concat()
    };
    check(&replaced(b"K\x03tQ", b"J\xff\xff\xff\xfftQ"), "lacks a buffer's size");
    check(&replaced(b"QK\x00", b"QJ\xff\xff\xff\xff"), "lacks an offset");
    check(&replaced(b"K\x03\x85", b"J\xff\xff\xff\xff\x85"), "lacks a shape");
    check(&replaced(b"K\x03\x85", b"K\x01K\x03\x86"), "lacks a stride for each axis");
    check(&replaced(b"K\x03\x85", b"(KKKKKKKKKKKKKKKKKKt"), "more than 8 axes in a tensor");
    let entry = &GOOD[3..GOOD.len() - 1];
    check(&[b"}", entry, entry, b"."].concat(), "entry \"x\" is there twice");
}

/// A few bytes must not become a mountain.
#[test]
fn what_grows_without_end_is_stopped() {
    check(&b"(".repeat(1 << 17), "more than 65536 marks");
    check(&b"N".repeat(1 << 17), "more than 65536 values on its stack");
    let tuples = [b"N".as_slice(), &b"\x85".repeat(1 << 19)].concat();
    check(&tuples, "more than 262144 objects");
    let remembered: Vec<u8> =
        (0..1u32 << 19).flat_map(|it| [&b"r"[..], &it.to_le_bytes()].concat()).collect();
    check(&[b"N", &*remembered].concat(), "more than 262144 values to remember");
}

/// Instructions and the names that they may have.
pub(in crate::import) const WORDS: &[&[u8]] = &[
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"}",
    b")",
    b"s",
    b"u",
    b"R",
    b"b",
    b"Q",
    b"N",
    b".",
    b"q\x00",
    b"h\x00",
    b"r\xff\xff\xff\xff",
    b"j\x01\x00\x00\x00",
    b"K\x00",
    b"M\xff\xff",
    b"J\xff\xff\xff\xff",
    b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8a\x00",
    b"X\x01\x00\x00\x00a",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch\nHalfStorage\n",
    b"ctorch\nBFloat16Storage\n",
    b"ccollections\nOrderedDict\n",
];

#[test]
fn fuzzed_pickles_are_read_or_refused() {
    let seeds = vec![GOOD.to_vec(), crate::import::torch_file::tests::pickle()];
    Fuzz { name: "pickle", format: Format::Binary, seeds, words: WORDS }.run(|it| read(it).is_ok());
}

#[track_caller]
fn check(pickle: &[u8], message: &str) {
    let error = read(pickle).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}
