//! Shows a bundle as text: what it says of itself, its parameters, its graph, the state of a session.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use aerie_models::{
    AnyManifest, BundleError, Bundled, ImageConfig, Manifest,
    bundle::{MANIFEST_FILE, MODEL_FILE},
    images,
};
use thiserror::Error;

use crate::onnx::{WeightsError, proto, weights::read_model};

/// Shows a bundle: manifest, parameters by layer, nodes by operator, state of a session
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  aerie-export inspect models/bundles/tales")]
pub struct Args {
    /// Folder of the bundle
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,
}

/// Runs the command.
///
/// # Errors
/// See [`InspectError`].
pub fn run(args: &Args) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    io::Write::write_all(&mut io::stdout(), bundle.to_string().as_bytes())?;
    Ok(())
}

/// Why a bundle cannot be shown.
#[derive(Debug, Error)]
pub enum InspectError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Graph(#[from] WeightsError),
}

/// A bundle, read and verified against its manifest.
#[derive(Debug)]
struct Bundle {
    manifest: AnyManifest,
    /// Bytes of every file.
    files: BTreeMap<String, u64>,
    graph: proto::Graph,
}

impl Bundle {
    fn open(dir: &Path) -> Result<Self, InspectError> {
        let version = |op: &str| aerie_ops::schema::schema(op).map(|it| it.version);
        let manifest = AnyManifest::open(dir, version)?;
        let names = manifest.files().keys().map(String::as_str);
        let mut files = BTreeMap::new();
        for name in names.chain([MANIFEST_FILE]) {
            let path = dir.join(name);
            match fs::metadata(&path) {
                Ok(it) => files.insert(name.to_owned(), it.len()),
                Err(source) => return Err(InspectError::Io { path, source }),
            };
        }
        let graph = read_model(&dir.join(MODEL_FILE))?.graph.unwrap_or_default();
        Ok(Self { manifest, files, graph })
    }

    /// Initializers that are parameters.
    fn parameters(&self) -> impl Iterator<Item = &proto::Tensor> {
        self.graph.initializer.iter().filter(|it| !it.name.starts_with("constant."))
    }
}

/// What is counted of a group of parameters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Count {
    elements: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, tensor: &proto::Tensor) {
        self.bytes = self.bytes.saturating_add(tensor.bytes());
        self.elements = self.elements.saturating_add(tensor.elements());
    }

    fn cells(self) -> [String; 2] {
        [grouped(self.elements), size(self.bytes)]
    }
}

impl fmt::Display for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.manifest {
            AnyManifest::Language(it) => fmt_language(f, it)?,
            AnyManifest::Images(it) => fmt_images(f, it)?,
        }
        self.fmt_files(f)?;
        self.fmt_parameters(f)?;
        self.fmt_graph(f)?;
        match &self.manifest {
            AnyManifest::Language(it) => fmt_state(f, it),
            AnyManifest::Images(_) => Ok(()),
        }
    }
}

impl Bundle {
    fn fmt_files(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nfiles")?;
        for (name, &bytes) in &self.files {
            row(f, name, "", &[size(bytes)])?;
        }
        row(f, "total", "", &[size(self.files.values().sum())])
    }

    fn fmt_parameters(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut groups: Vec<(&str, Count)> = Vec::new();
        let mut total = Count::default();
        for tensor in self.parameters() {
            total.add(tensor);
            let group = group(&tensor.name);
            match groups.iter_mut().find(|(name, _)| *name == group) {
                Some((_, count)) => count.add(tensor),
                None => {
                    let mut count = Count::default();
                    count.add(tensor);
                    groups.push((group, count));
                }
            }
        }
        let kinds: Vec<String> = match &self.manifest {
            AnyManifest::Language(it) => {
                it.model.block_kinds().map(|it| format!("{it:?}").to_lowercase()).collect()
            }
            AnyManifest::Images(_) => Vec::new(),
        };
        writeln!(f, "\nparameters")?;
        for (name, count) in groups {
            let layer = name.strip_prefix("layers.").and_then(|it| it.parse::<usize>().ok());
            let kind = layer.and_then(|it| kinds.get(it)).map_or("", String::as_str);
            row(f, name, kind, &count.cells())?;
        }
        row(f, "total", "", &total.cells())
    }

    fn fmt_graph(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for node in &self.graph.node {
            *counts.entry((&node.domain, &node.op_type)).or_default() += 1;
        }
        writeln!(f, "\nnodes")?;
        for ((domain, op), count) in counts {
            row(f, op, domain, &[grouped(count)])?;
        }
        row(f, "total", "", &[grouped(self.graph.node.len() as u64)])
    }
}

fn fmt_language(f: &mut fmt::Formatter<'_>, manifest: &Manifest) -> fmt::Result {
    let Manifest { name, model, ops, provenance, .. } = manifest;
    writeln!(f, "{name}")?;
    writeln!(f, "  family        {}, {} layers", word(&model.family), model.layers)?;
    writeln!(
        f,
        "  width         {} (recurrence {}, mlp {})",
        model.width, model.recurrence_width, model.mlp_width
    )?;
    writeln!(
        f,
        "  attention     {} heads of {}, window {}",
        model.heads, model.head_dim, model.window
    )?;
    writeln!(f, "  vocab         {}", model.vocab)?;
    let target = if ops.is_empty() { "portable: standard operators only" } else { "ragged" };
    writeln!(f, "  step          {target}")?;
    fmt_origin(f, manifest, provenance.tokens, "tokens")
}

fn fmt_images(f: &mut fmt::Formatter<'_>, manifest: &Manifest<ImageConfig>) -> fmt::Result {
    let Manifest { name, model, interface, provenance, .. } = manifest;
    let input = &interface.input;
    writeln!(f, "{name}")?;
    let depths: Vec<String> = model.stages.iter().map(|it| it.depth.to_string()).collect();
    let depths = depths.join(", ");
    writeln!(f, "  family        {}, {depths} blocks", word(&model.family))?;
    writeln!(f, "  classes       {}", model.classes)?;
    writeln!(f, "  input         {} by {} pixels", input.height, input.width)?;
    let [height, width] = [input.height, input.width];
    let macs = images::census::macs(model, height, width);
    writeln!(f, "  work          {} multiplications for an image", grouped(macs))?;
    fmt_origin(f, manifest, provenance.images, "images")
}

/// What is said of every bundle.
fn fmt_origin<M: Bundled>(
    f: &mut fmt::Formatter<'_>,
    manifest: &Manifest<M>,
    seen: Option<u64>,
    unit: &str,
) -> fmt::Result {
    let Manifest { precision, provenance, .. } = manifest;
    let fingerprint = blake3::Hash::from_bytes(manifest.fingerprint()).to_hex();
    writeln!(f, "  precision     {}", precision.name())?;
    writeln!(f, "  fingerprint   {fingerprint}")?;
    writeln!(f, "  written by    {}", provenance.tool)?;
    writeln!(f, "  trained on    {}", provenance.data)?;
    let count = |it: Option<u64>| it.map_or_else(|| "unknown".to_owned(), grouped);
    let (steps, seen) = (count(provenance.steps), count(seen));
    writeln!(f, "  trained for   {steps} steps, {seen} {unit}")?;
    match &provenance.calibration {
        Some(text) => writeln!(f, "  calibrated by {text}"),
        None => Ok(()),
    }
}

fn fmt_state(f: &mut fmt::Formatter<'_>, manifest: &Manifest) -> fmt::Result {
    let layout = manifest.layout();
    writeln!(f, "\nstate of a session")?;
    for spec in layout.fields() {
        row(f, &spec.path, &format!("{:?}", spec.shape), &[size(spec.bytes())])?;
    }
    row(f, "total", "", &[size(layout.bytes())])
}

/// What a family is called.
fn word(value: &dyn fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// One line of a table.
fn row(f: &mut fmt::Formatter<'_>, name: &str, note: &str, cells: &[String]) -> fmt::Result {
    write!(f, "  {name:<20} {note:<10}")?;
    for cell in cells {
        write!(f, " {cell:>17}")?;
    }
    writeln!(f)
}

/// The layer or stage that a parameter belongs to, or the place outside of them.
fn group(name: &str) -> &str {
    let is_numbered = ["layers.", "stages."].iter().any(|it| name.starts_with(it));
    let parts = if is_numbered { 2 } else { 1 };
    name.match_indices('.').nth(parts - 1).map_or(name, |(end, _)| &name[..end])
}

/// A number of bytes.
fn size(bytes: u64) -> String {
    format!("{} B", grouped(bytes))
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|it| std::str::from_utf8(it).ok()).collect();
    groups.join(" ")
}
