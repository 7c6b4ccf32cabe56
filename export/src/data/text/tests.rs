use std::fs;

use super::*;

#[track_caller]
fn check(documents: Documents, text: &str, expected: &[&str]) {
    let mut found = Vec::new();
    split(text, documents, &mut found);
    assert_eq!(found, expected);
}

#[test]
fn marks_and_ends_of_files_separate_documents() {
    check(Documents::Files, "a\n\nTHE END\n\nb", &["a\n\nTHE END\n\nb"]);
    check(Documents::Files, "a<|endoftext|>b<|endoftext|>", &["a", "b"]);
}

#[test]
fn headings_begin_documents_and_stay_together() {
    check(
        Documents::Headings,
        "x\n\nTHE EMPEROR'S NEW CLOTHES\n\nCHAPTER I. Down\n\ny\n\nTHE END\n\nTHE SWINEHERD\n\nz",
        &[
            "x\n\n",
            "THE EMPEROR'S NEW CLOTHES\n\nCHAPTER I. Down\n\ny\n\nTHE END\n\n",
            "THE SWINEHERD\n\nz\n\n",
        ],
    );
}

#[test]
fn shouting_and_single_words_are_no_headings() {
    let text = "a\n\n'COME HERE!'\n\nCHORUS.\n\nII\n\nb\n\n";
    check(Documents::Headings, text, &[text]);
}

#[test]
fn holdout_is_the_end_of_the_text_to_the_character() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.txt");
    fs::write(&path, "äbcdefghij<|endoftext|>klmnopqrst").unwrap();
    let [head, tail] = read_split(&path, Documents::Files, 0.75).unwrap();
    assert_eq!([head.concat(), tail.concat()], ["äbcde", "fghijklmnopqrst"]);
    assert_eq!(tail.len(), 2);
    let [head, tail] = read_split(&path, Documents::Files, 0.1).unwrap();
    assert_eq!([head.concat(), tail.concat()], ["äbcdefghijklmnopqr", "st"]);
    for holdout in [0.0, 1.0, f64::NAN] {
        let error = read_split(&path, Documents::Files, holdout).unwrap_err();
        assert!(error.to_string().starts_with("holdout is "), "{error}");
    }
}

#[test]
fn folder_is_read_in_the_order_of_names() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(read(dir.path(), Documents::Files), Err(TextError::NoFile { .. })));
    for (name, text) in [("b.txt", "second"), ("a.txt", "first"), ("c.md", "not text")] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    assert_eq!(read(dir.path(), Documents::Files).unwrap(), ["first", "second"]);
}

#[test]
fn bad_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("latin.txt");
    fs::write(&path, b"abc\xe4").unwrap();
    let error = read(&path, Documents::Files).unwrap_err().to_string();
    assert!(error.contains("latin.txt") && error.contains("byte 3"), "{error}");
    fs::write(&path, "").unwrap();
    assert!(matches!(read(&path, Documents::Files), Err(TextError::Empty { .. })));
}
