use aerie_models::images::presets::preset;

use super::*;

#[test]
fn an_average_forgets_its_beginning() {
    assert_eq!(average_decay(0.9999, 1), 2.0 / 11.0);
    assert_eq!(average_decay(0.9999, 90), 0.91);
    assert_eq!(average_decay(0.9, 90), 0.9);
}

#[test]
fn running_averages_of_norms_are_taken_over_as_they_are() {
    let model = preset("wrn-16-4").unwrap();
    let parameters = Parameters::init(&model, 1, Kind::Float);
    let mut average = Average::new(0.9, &model, &parameters.values(), Device::Cpu).unwrap();
    no_grad(|| {
        for (_, it) in parameters.iter() {
            let _ = it.tensor.shallow_clone().fill_(3.0);
        }
    });
    average.add(&parameters, 1000);
    for ((path, found), (_, new)) in average.parameters().iter().zip(parameters.iter()) {
        let taken_over = found.tensor == new.tensor;
        assert_eq!(taken_over, found.role == Role::Average, "{path}");
    }
}
