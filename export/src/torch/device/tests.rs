use super::*;

#[test]
fn devices_have_names() {
    let read = |name| parse(name).unwrap();
    assert_eq!(
        [read("cpu"), read("cuda"), read("cuda:3")],
        [Device::Cpu, Device::Cuda(0), Device::Cuda(3)]
    );
    for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
        assert_eq!(parse(wrong).unwrap_err(), "cpu, cuda or cuda:N is expected", "{wrong:?}");
    }
}
