//! How much of a checkpoint is in memory at a time.

use std::process::Command;

use super::*;

/// Goal: what an import takes of memory is the largest tensor, not the checkpoint. Method: a process of its own
/// imports a checkpoint of three large matrices; the kernel keeps the peak, which is set back before.
#[cfg(target_os = "linux")]
#[test]
fn tensors_are_in_memory_one_at_a_time() {
    const FROM: &str = "AERIE_TEST_CHECKPOINT";
    let extents = ModelConfig { width: 2048, mlp_width: 4096, ..config(Family::Hawk) };
    let config = ModelConfig { head_dim: 1024, layers: 1, ..extents };
    let Some(from) = std::env::var_os(FROM) else {
        let dir = tempfile::tempdir().unwrap();
        write_hugging_face(dir.path(), &config, &hugging_face(&config), 1);
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["--exact", "--nocapture"]).env(FROM, dir.path());
        alone.arg("import::tests::memory::tensors_are_in_memory_one_at_a_time");
        let said = alone.output().unwrap();
        let told = String::from_utf8_lossy(&said.stdout);
        // A name that is no test's would pass, too.
        let errors = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success() && told.contains("1 passed"), "{told}{errors}");
        return;
    };
    let from = PathBuf::from(from);
    let matrix = 4 * u64::from(config.width) * u64::from(config.mlp_width);
    let whole = fs::metadata(from.join("model.safetensors")).unwrap().len();
    assert!(3 * matrix < whole, "{whole} bytes");
    // In f32, so that they are too large to stay in the graph's own file.
    let (name, precision) = ("imported".to_owned(), Precision::F32);
    let options = Options { name, target: Target::Ragged, precision, force: true };
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = resident("VmRSS:");
    let source = import(&request(&from)).unwrap().source;
    emit::emit(&source, &options, &from.join("out")).unwrap();
    let peak = resident("VmHWM:") - before;
    assert!(peak < 7 * matrix / 4, "{peak} bytes, a matrix has {matrix}");
}

/// Bytes of this process in memory, by the field of the kernel's status.
fn resident(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|it| it.starts_with(field)).unwrap();
    let kilobytes = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    kilobytes << 10
}
