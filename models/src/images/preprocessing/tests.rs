//! Preprocessing as a whole: what the rules make of sizes, and which settings are refused.

use super::*;

#[test]
fn preprocessing_survives_a_round_trip() {
    let text = toml::to_string(&imagenet()).unwrap();
    assert_eq!(toml::from_str::<Preprocessing>(&text).unwrap(), imagenet());
    assert!(text.contains("mean = [0.485, 0.456, 0.406]"), "{text}");
}

#[test]
fn unsound_settings_are_refused_by_field() {
    check("height", "0", "height is 0; 1 to 4096 is supported");
    check("width", "5000", "width is 5000; 1 to 4096 is supported");
    check("crop_share", "1.1", "crop_share is 1.1");
    check("crop_share", "nan", "crop_share is NaN");
    check("resize", "\"none\"", "it must be 1");
    check("std", "[1.0, 0.0, 1.0]", "std has 0");
    check("mean", "[inf, 0.0, 1.0]", "mean has inf");
    check("men", "1", "unknown field `men`");
}

/// timm resizes for 256 pixels and a share of 0.9 to 284, not to 288.
#[test]
fn squash_makes_both_sides_what_the_share_says() {
    let preprocessing = imagenet();
    assert_eq!(preprocessing.uncropped(), Extent { height: 284, width: 284 });
    let picture = Picture::new(Extent { height: 300, width: 500 }, vec![9; 450_000]);
    let fitted = preprocessing.fit(picture.view()).unwrap();
    assert_eq!(fitted.extent(), Extent { height: 256, width: 256 });
    assert!(fitted.rgb().iter().all(|&it| it == 9));
}

#[test]
fn crop_keeps_the_shape_and_covers_what_is_wanted() {
    let wanted = Extent { height: 256, width: 256 };
    let sizes = [
        ((300, 500), (256, 426)),
        ((500, 300), (426, 256)),
        ((7, 7), (256, 256)),
        ((1, 9), (256, 2304)),
    ];
    for ((height, width), (to_height, to_width)) in sizes {
        let found = covering(Extent { height, width }, wanted);
        assert_eq!(found, Extent { height: to_height, width: to_width });
    }
    let narrow = covering(Extent { height: 30, width: 50 }, Extent { height: 10, width: 90 });
    assert_eq!(narrow, Extent { height: 54, width: 90 });
}

#[test]
fn halves_go_to_the_even_side() {
    assert_eq!([1, 2, 3, 4, 5, 7].map(|it| centred(it, 0)), [0, 1, 2, 2, 2, 4]);
}

#[test]
fn pixels_are_planes_without_mean_and_deviation() {
    let preprocessing = Preprocessing {
        height: 1,
        width: 2,
        resize: Resize::None,
        crop_share: 1.0,
        mean: [0.0, 0.5, 1.0],
        std: [1.0, 0.5, 0.25],
        ..imagenet()
    };
    let rgb = [0, 255, 0, 255, 0, 255];
    let pixels = preprocessing.apply(View::new(preprocessing.extent(), &rgb)).unwrap();
    assert_eq!(pixels, [0.0, 1.0, 1.0, -1.0, -4.0, 0.0]);
}

#[test]
fn size_that_is_not_resized_has_to_fit() {
    let preprocessing = Preprocessing { resize: Resize::None, crop_share: 1.0, ..imagenet() };
    let rgb = [0; 6];
    let error = preprocessing.apply(View::new(Extent { height: 1, width: 2 }, &rgb)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the picture is 1 pixels high and 2 wide, but 256 and 256 are expected, and nothing is \
         resized"
    );
}

fn imagenet() -> Preprocessing {
    Preprocessing {
        height: 256,
        width: 256,
        resize: Resize::Squash,
        crop_share: 0.9,
        interpolation: Interpolation::Bicubic,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    }
}

/// Sets `field` to `value` and expects a refusal with `message`.
#[track_caller]
fn check(field: &str, value: &str, message: &str) {
    let mut table: toml::Table = toml::from_str(&toml::to_string(&imagenet()).unwrap()).unwrap();
    let value: toml::Table = toml::from_str(&format!("it = {value}")).unwrap();
    table.insert(field.to_owned(), value["it"].clone());
    let text = toml::to_string(&table).unwrap();
    let error = toml::from_str::<Preprocessing>(&text).unwrap_err().to_string();
    assert!(error.contains(message), "{error}");
}
