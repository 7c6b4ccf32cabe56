use super::{ConfigError, ModelConfig};
use crate::presets::preset;

#[test]
fn configuration_survives_a_round_trip() {
    for name in crate::presets::names() {
        let config = preset(name).unwrap();
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<ModelConfig>(&text).unwrap(), config, "{name}");
    }
}

#[test]
fn unsound_configurations_are_refused_by_field() {
    check("layers", "0", ConfigError::Zero { field: "layers" });
    check("layers", "9999", ConfigError::TooLarge { field: "layers", found: 9999, max: 1024 });
    check("heads", "5", ConfigError::Heads { heads: 5, head_dim: 8, width: 32 });
    check("gate_blocks", "7", ConfigError::GateBlocks { gate_blocks: 7, recurrence_width: 48 });
    check("logits_soft_cap", "0.0", ConfigError::SoftCap(0.0));
}

#[test]
fn unknown_fields_are_refused() {
    let text = format!("{}\nwindwo = 3\n", toml::to_string(&preset("tiny").unwrap()).unwrap());
    let error = toml::from_str::<ModelConfig>(&text).unwrap_err().to_string();
    assert!(error.contains("windwo"), "{error}");
}

/// Sets `field` of the `tiny` preset to `value` and expects the refusal `expected`.
#[track_caller]
fn check(field: &str, value: &str, expected: ConfigError) {
    let mut table: toml::Table =
        toml::from_str(&toml::to_string(&preset("tiny").unwrap()).unwrap()).unwrap();
    let value: toml::Table = toml::from_str(&format!("it = {value}")).unwrap();
    table.insert(field.to_owned(), value["it"].clone());
    let error = toml::from_str::<ModelConfig>(&toml::to_string(&table).unwrap()).unwrap_err();
    assert!(error.to_string().contains(&expected.to_string()), "{error} lacks {expected}");
}
