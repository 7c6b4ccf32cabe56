use std::collections::BTreeSet;

use super::{SCHEMAS, schema};

#[test]
fn names_are_unique_and_found() {
    let names: BTreeSet<_> = SCHEMAS.iter().map(|it| it.name).collect();
    assert_eq!(names.len(), SCHEMAS.len());
    assert!(names.iter().all(|name| schema(name).is_some_and(|it| it.name == *name)));
    assert_eq!(schema("Softmax"), None);
}
