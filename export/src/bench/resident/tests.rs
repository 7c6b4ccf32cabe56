use super::*;

#[test]
fn two_lines_of_the_status_are_read() {
    let status = "Name:\tx\nRssAnon:\t    12 kB\nRssFile:\t       3 kB\nRssShmem:\t 0 kB\n";
    let found = Resident { file_bytes: 3 << 10, anonymous_bytes: 12 << 10 };
    assert_eq!(Resident::parse(status), Some(found));
    assert_eq!(Resident::parse("Name:\tx\nRssAnon:\t 12 kB\n"), None);
    assert_eq!(Resident::parse("RssAnon:\t 12 MB\nRssFile:\t 3 kB\n"), None);
}

#[test]
fn what_shrinks_has_added_nothing() {
    let a = Resident { file_bytes: 3, anonymous_bytes: 12 };
    let b = Resident { file_bytes: 5, anonymous_bytes: 2 };
    assert_eq!(b.since(a), Resident { file_bytes: 2, anonymous_bytes: 0 });
}
