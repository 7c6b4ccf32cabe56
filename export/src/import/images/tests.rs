use aerie_models::images::census::parameters;

use super::*;
use crate::onnx::{Weights, weights::Random};

/// Writes a checkpoint of timm's smallest classifier, and what timm writes beside it.
fn write(dir: &Path, config: &str) -> PathBuf {
    let model = presets::preset("timm/test_nfnet").unwrap();
    let model = ImageConfig { classes: 3, ..model };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = parameters(&model)
        .into_iter()
        .map(|(path, spec)| {
            let values = Random { seed: 1 }.load(path.as_str(), &spec).unwrap();
            let bytes = values.iter().flat_map(|it| it.to_le_bytes()).collect();
            let shape = spec.shape.iter().map(|&it| usize::try_from(it).unwrap()).collect();
            (path.to_string(), shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let dtype = safetensors::Dtype::F32;
        (name, safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    fs::write(dir.join(CONFIG_FILE), config).unwrap();
    path
}

fn request(from: &Path) -> ImageRequest<'_> {
    ImageRequest { from, preset: None, model: None, labels: None, data: None }
}

const CONFIG: &str = r#"{
    "architecture": "test_nfnet", "num_classes": 3, "label_names": ["ape", "bee", "cat"],
    "pretrained_cfg": {
        "input_size": [3, 160, 160], "test_input_size": [3, 192, 192], "crop_pct": 0.95,
        "crop_mode": "squash", "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "url": ""
    }
}"#;

#[test]
fn timms_configuration_tells_all_there_is_to_know() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), CONFIG);
    let source = import(&request(dir.path())).unwrap().expect("it is a classifier");
    assert_eq!(source.config.classes, 3);
    assert_eq!(source.pictures.labels, ["ape", "bee", "cat"]);
    let Preprocessing { height, resize, crop_share, interpolation, mean, .. } =
        source.pictures.input;
    assert_eq!((height, resize, crop_share), (192, Resize::Squash, 0.95));
    assert_eq!((interpolation, mean), (Interpolation::Bilinear, [0.5; 3]));
}

#[test]
fn what_does_not_fit_is_named() {
    let check = |change: [&str; 2], expected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let config = CONFIG.replace(change[0], change[1]);
        assert_ne!(config, CONFIG);
        write(dir.path(), &config);
        let error = import(&request(dir.path())).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(["test_nfnet", "resnet50"], "timm/resnet50 is none of the classifiers");
    check(
        ["\"num_classes\": 3", "\"num_classes\": 4"],
        "head.fc.bias has shape [3]; [4] is expected",
    );
    check(["squash", "border"], "crop_mode is border; squash or center is expected");
    check(["\"crop_pct\": 0.95", "\"crop_pct\": 0"], "crop_share is 0");
    check(["0.25, 0.25, 0.25", "0.25, 0, 0.25"], "std has 0");
}

#[test]
fn other_checkpoints_are_left_to_others() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "{\"architectures\": [\"RecurrentGemmaForCausalLM\"]}");
    assert!(import(&request(dir.path())).unwrap().is_none());
    let named = ImageRequest { preset: Some("timm/test_nfnet"), ..request(dir.path()) };
    let error = import(&named).unwrap_err().to_string();
    assert!(error.contains("has shape [3]; [1000] is expected"), "{error}");
}
