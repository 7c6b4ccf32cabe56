use super::{input, names, preset};

#[test]
fn every_preset_is_sound() {
    for name in names() {
        let config = preset(name).expect("a preset");
        assert!(input(name).expect("a preset").checked().is_ok(), "{name}");
        assert_eq!(config.clone().checked(), Ok(config), "{name}");
    }
}
