use super::Model;
use crate::{images, presets};

#[test]
fn the_family_tells_the_kind() {
    let language = Model::Language(presets::preset("tiny").expect("a preset"));
    let images = Model::Images(images::presets::preset("nfnet-f0").expect("a preset"));
    for model in [language, images] {
        let text = toml::to_string(&model).expect("every field has a TOML form");
        assert_eq!(toml::from_str::<Model>(&text), Ok(model));
    }
}

#[test]
fn what_is_wrong_is_said_of_the_kind_that_was_meant() {
    let check = |text: &str, expected: &str| {
        let error = toml::from_str::<Model>(text).expect_err("it is not whole").to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("width = 3", "missing field `family`");
    check("family = \"griffin\"", "missing field `vocab`");
    check("family = \"nfnet\"", "missing field `classes`");
    check("family = \"other\"", "unknown variant `other`");
}
