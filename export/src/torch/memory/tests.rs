use anyhow::bail;
use tch::{Device, Kind, Tensor};

use super::*;

/// As PyTorch prints it; not seen on a GPU here.
const GPU: &str = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate 2.00 GiB. \
     GPU 0 has a total capacity of 79.18 GiB of which 1.20 GiB is free.\\nException raised from malloc\")";

#[test]
fn memory_that_is_not_there_is_an_error_that_tells_how_much() {
    let said = |work: fn() -> Tensor| {
        let error = guarded("take less", || Ok(work())).unwrap_err();
        format!("{error:#}")
    };
    assert_eq!(
        said(|| Tensor::zeros([1 << 50], (Kind::Float, Device::Cpu))),
        "take less: libtorch could not allocate 4503599627370496 bytes"
    );
    assert_eq!(said(|| panic!("{GPU}")), "take less: libtorch could not allocate 2.00 GiB");
    assert_eq!(guarded("", || Ok(1)).unwrap(), 1);
    assert_eq!(guarded::<()>("", || bail!("other")).unwrap_err().to_string(), "other");
}

#[test]
#[should_panic(expected = "shape")]
fn other_panics_go_on() {
    let [a, b] = [2, 3].map(|it| Tensor::zeros([it, it], (Kind::Float, Device::Cpu)));
    let _ = guarded("", || Ok(a.matmul(&b)));
}
