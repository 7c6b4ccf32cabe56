use expect_test::expect;

use super::*;

#[test]
fn words_are_left_and_numbers_right() {
    let mut table = Table::new(1, &["what", "n", ""]);
    table.row(["two µs".to_owned(), "2".to_owned(), String::new()]);
    table.row(["a".to_owned(), "100".to_owned(), "x".to_owned()]);
    expect![[r#"
        what      n
        two µs    2
        a       100  x
    "#]]
    .assert_eq(&table.to_string());
}
