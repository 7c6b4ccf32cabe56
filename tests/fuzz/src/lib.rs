//! Fuzzing on stable Rust, in tests: spoilt copies of good inputs go into a reader, which has to take or
//! refuse each without a panic and without asking for memory out of all proportion.
//!
//! An input is a function of the target's seeds and of its number, so a number is all that it takes to
//! see it again. What to spoil is known of the formats, see [`Format`]; no reader is known here.

mod memory;
mod mutate;
mod protobuf;

#[cfg(test)]
mod tests;

use std::{
    any::Any,
    env, fs,
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use mutate::Format;

use crate::{memory::Meter, mutate::Mutator};

/// A reader under test.
#[derive(Debug)]
pub struct Fuzz<'a> {
    /// What its files are called under `target/fuzz`.
    pub name: &'static str,
    pub format: Format,
    /// Good inputs; what is tried first, as they are.
    pub seeds: Vec<Vec<u8>>,
    /// What means something to the reader.
    pub words: &'a [&'a [u8]],
}

/// What was tried.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tried {
    pub inputs: u64,
    /// Those that the reader took.
    pub taken: u64,
    /// Most memory that the reader held for one input.
    pub bytes_max: usize,
    /// Longest time that the reader took for one input.
    pub time_max: Duration,
}

/// How long, and from where on; see CONTRIBUTING.md.
#[derive(Clone, Debug)]
struct Settings {
    time: Duration,
    /// Number of the first input.
    first: u64,
    /// The only input, if there is one.
    input: Option<PathBuf>,
    /// Where spoilt inputs are put.
    dir: PathBuf,
}

/// Most memory for one input: inputs are smaller than a megabyte, and readers may hold a chunk of a
/// megabyte and a few tables.
const BYTES_MAX: usize = 64 << 20;
/// Longest time for one input, on a machine with other things to do.
const INPUT_TIME_MAX: Duration = Duration::from_secs(10);
/// What a target gets where nobody says: all of them together are part of every run of the tests.
const TIME: Duration = Duration::from_millis(1000);

impl Fuzz<'_> {
    /// Gives spoilt inputs to `reader`, which says whether it took one, for `AERIE_FUZZ_SECONDS`.
    ///
    /// # Panics
    /// If the reader does, refuses a seed, or takes too much memory or time; names the input.
    pub fn run(&self, reader: impl FnMut(&[u8]) -> bool) {
        let tried = self.run_with(&Settings::from_environment(), reader);
        let Tried { inputs, taken, bytes_max, time_max } = tried;
        let name = self.name;
        eprintln!(
            "fuzzed {name}: {inputs} inputs, {taken} taken; at most {bytes_max} bytes and {time_max:?} \
             for one"
        );
    }

    fn run_with(&self, settings: &Settings, mut reader: impl FnMut(&[u8]) -> bool) -> Tried {
        memory::leave_reports_out();
        let mut tried = Tried::default();
        if let Some(path) = &settings.input {
            let input = fs::read(path).unwrap_or_else(|it| panic!("{}: {it}", path.display()));
            self.try_one(&mut reader, &input, &mut tried, || format!("{}", path.display()));
            return tried;
        }
        for (idx, seed) in self.seeds.iter().enumerate() {
            let name = || format!("seed {idx}, unspoilt");
            assert!(self.try_one(&mut reader, seed, &mut tried, name), "{} is refused", name());
        }
        let mut journal = Journal::open(&settings.dir, self.name);
        let before = journal.unfinished().into_iter();
        let end = now() + settings.time;
        for number in before.chain(settings.first..) {
            journal.note(number);
            let input = Mutator::new(self, number).input();
            let name = || {
                let path = settings.dir.join(format!("{}-{number}.bin", self.name));
                let saved = fs::write(&path, &input);
                let path = path.display();
                let place = saved.map_or_else(|it| format!("{path}: {it}"), |()| path.to_string());
                format!(
                    "input {number} ({place}); again with AERIE_FUZZ_SEED={number} \
                     AERIE_FUZZ_SECONDS=0, or AERIE_FUZZ_INPUT={path}"
                )
            };
            self.try_one(&mut reader, &input, &mut tried, name);
            if end <= now() {
                break;
            }
        }
        journal.close();
        tried
    }

    /// Tries one input; says whether it was taken.
    fn try_one(
        &self,
        reader: &mut impl FnMut(&[u8]) -> bool,
        input: &[u8],
        tried: &mut Tried,
        name: impl Fn() -> String,
    ) -> bool {
        let target = self.name;
        let mut one = || {
            let start = now();
            let meter = Meter::start();
            let result = catch_unwind(AssertUnwindSafe(|| reader(input)));
            let bytes = meter.stop();
            let took = now() - start;
            match result {
                Ok(taken) => (taken, bytes, took),
                Err(panic) => panic!("{target}: {} on {}", message(&*panic), name()),
            }
        };
        let (taken, bytes, mut took) = one();
        if INPUT_TIME_MAX < took {
            // Others may have had the machine meanwhile: once more, by what this thread itself spends.
            let start = spent();
            took = one().2;
            took = start.and_then(|start| spent()?.checked_sub(start)).unwrap_or(took);
        }
        assert!(bytes <= BYTES_MAX, "{target}: {bytes} bytes are held for {}", name());
        assert!(took <= INPUT_TIME_MAX, "{target}: {took:?} are spent on {}", name());
        tried.inputs += 1;
        tried.taken += u64::from(taken);
        tried.bytes_max = tried.bytes_max.max(bytes);
        tried.time_max = tried.time_max.max(took);
        taken
    }
}

impl Settings {
    fn from_environment() -> Self {
        let number = |name: &str| {
            let text = env::var(name).ok()?;
            Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}; a number is needed")))
        };
        Self {
            time: number("AERIE_FUZZ_SECONDS").map_or(TIME, Duration::from_secs),
            first: number("AERIE_FUZZ_SEED").unwrap_or(0),
            input: env::var_os("AERIE_FUZZ_INPUT").map(PathBuf::from),
            dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/fuzz").into(),
        }
    }
}

/// The number of the input that is being tried, in a file: an overflow of the stack or an allocation
/// that is refused ends the process, and nobody is left to say where it was.
struct Journal {
    path: PathBuf,
    file: File,
    before: Option<u64>,
}

impl Journal {
    fn open(dir: &Path, name: &str) -> Self {
        let path = dir.join(format!("{name}.trying"));
        let before = fs::read_to_string(&path).ok().and_then(|it| it.trim().parse().ok());
        if let Some(number) = before {
            // Not captured, as the process may be about to end once more.
            let _ = writeln!(
                io::stderr(),
                "fuzzed {name}: an earlier run ended within input {number}, which goes first"
            );
        }
        let file = fs::create_dir_all(dir).and_then(|()| File::create(&path));
        let file = file.unwrap_or_else(|it| panic!("{}: {it}", path.display()));
        Self { path, file, before }
    }

    /// What an earlier run was at when its process ended.
    fn unfinished(&self) -> Option<u64> {
        self.before
    }

    fn note(&mut self, number: u64) {
        let written = self.file.write_all_at(format!("{number:20}\n").as_bytes(), 0);
        written.unwrap_or_else(|it| panic!("{}: {it}", self.path.display()));
    }

    fn close(self) {
        // Best effort: a file that stays has an input tried once more.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes `bytes` all that is in the file at `path`, for readers that take a path.
///
/// In place: what is cut to nothing and written again, some file systems flush, which takes longer than
/// most readers.
///
/// # Panics
/// If the file cannot be written.
pub fn overwrite(path: &Path, bytes: &[u8]) {
    let write = || {
        let file = File::options().write(true).create(true).truncate(false).open(path)?;
        file.write_all_at(bytes, 0)?;
        file.set_len(bytes.len() as u64)
    };
    write().unwrap_or_else(|it: io::Error| panic!("{}: {it}", path.display()));
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|it| (*it).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without words".to_owned())
}

/// What this thread has spent on a processor, where the system tells.
fn spent() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

#[expect(clippy::disallowed_methods, reason = "how long is tried is a matter of the clock")]
fn now() -> Instant {
    Instant::now()
}
