//! Text files and how they fall into documents.

#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use crate::run::Documents;

/// What separates documents within a file, and the token that does so in a stream.
pub const BOUNDARY: &str = "<|endoftext|>";
/// Most bytes of text read for one purpose: all of it is held in memory.
pub const TEXT_BYTES_MAX: u64 = 4 << 30;
/// Longest heading, in bytes; a longer paragraph in capitals is shouting.
const HEADING_BYTES_MAX: usize = 80;

/// Why text cannot be read.
#[derive(Debug, Error)]
pub enum TextError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: the text is not UTF-8 (byte {byte})", path.display())]
    Encoding { path: PathBuf, byte: usize },
    #[error("{}: no .txt file in the folder", path.display())]
    NoFile { path: PathBuf },
    #[error("{}: no text", path.display())]
    Empty { path: PathBuf },
    #[error("{}: {found_bytes} bytes of text; at most {max_bytes} are read", path.display())]
    TooLarge { path: PathBuf, found_bytes: u64, max_bytes: u64 },
    #[error("holdout is {0}; it must be above 0 and below 1")]
    Holdout(f64),
}

/// The documents of a file, or of all `.txt` files of a folder in the order of their names.
///
/// # Errors
/// See [`TextError`].
pub fn read(path: &Path, documents: Documents) -> Result<Vec<String>, TextError> {
    let mut found = Vec::new();
    for text in read_files(path)? {
        split(&text, documents, &mut found);
    }
    if found.is_empty() { Err(TextError::Empty { path: path.to_owned() }) } else { Ok(found) }
}

/// As [`read`], but cut in two: the last `holdout` of the text, by characters, comes second.
///
/// A document that the cut falls into is cut there.
///
/// # Errors
/// See [`TextError`].
pub fn read_split(
    path: &Path,
    documents: Documents,
    holdout: f64,
) -> Result<[Vec<String>; 2], TextError> {
    if !(0.0 < holdout && holdout < 1.0) {
        return Err(TextError::Holdout(holdout));
    }
    let all = read(path, documents)?;
    let chars: usize = all.iter().map(|it| it.chars().count()).sum();
    // As nanoGPT does it: the first `int((1 - holdout) n)` characters are trained on.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a count is a count"
    )]
    let mut left = ((1.0 - holdout) * chars as f64) as usize;
    let [mut head, mut tail] = [Vec::new(), Vec::new()];
    for document in all {
        let length = document.chars().count();
        if length <= left {
            left -= length;
            head.push(document);
            continue;
        }
        let cut = document.char_indices().nth(left).map_or(document.len(), |(byte, _)| byte);
        let (before, after) = document.split_at(cut);
        head.extend((!before.is_empty()).then(|| before.to_owned()));
        tail.push(after.to_owned());
        left = 0;
    }
    if head.is_empty() || tail.is_empty() {
        return Err(TextError::Empty { path: path.to_owned() });
    }
    Ok([head, tail])
}

fn read_files(path: &Path) -> Result<Vec<String>, TextError> {
    let io_error = |path: &Path, source| TextError::Io { path: path.to_owned(), source };
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = fs::read_dir(path).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        files = entries.map_err(|it| io_error(path, it))?.iter().map(fs::DirEntry::path).collect();
        files.retain(|it| it.extension().is_some_and(|it| it == "txt"));
        files.sort();
        if files.is_empty() {
            return Err(TextError::NoFile { path: path.to_owned() });
        }
    }
    let mut found_bytes = 0;
    let mut texts = Vec::with_capacity(files.len());
    for file in files {
        found_bytes += fs::metadata(&file).map_err(|it| io_error(&file, it))?.len();
        if TEXT_BYTES_MAX < found_bytes {
            let (path, max_bytes) = (path.to_owned(), TEXT_BYTES_MAX);
            return Err(TextError::TooLarge { path, found_bytes, max_bytes });
        }
        let bytes = fs::read(&file).map_err(|it| io_error(&file, it))?;
        let text = String::from_utf8(bytes).map_err(|it| {
            let byte = it.utf8_error().valid_up_to();
            TextError::Encoding { path: file, byte }
        })?;
        texts.push(text);
    }
    Ok(texts)
}

/// Cuts the text of one file into documents, leaving empty ones out.
fn split(text: &str, documents: Documents, found: &mut Vec<String>) {
    for part in text.split(BOUNDARY) {
        match documents {
            Documents::Files => found.extend((!part.is_empty()).then(|| part.to_owned())),
            Documents::Headings => split_at_headings(part, found),
        }
    }
}

/// Begins a document at every heading that does not follow another one: a title and the number of
/// its first chapter belong together. `THE END` closes a document instead of beginning one.
fn split_at_headings(text: &str, found: &mut Vec<String>) {
    let mut document = String::new();
    let mut after_heading = false;
    for paragraph in text.split("\n\n") {
        let paragraph = paragraph.trim_matches('\n');
        if paragraph.is_empty() {
            continue;
        }
        let heading = is_heading(paragraph) && !is_end(paragraph);
        if heading && !after_heading && !document.is_empty() {
            found.push(std::mem::take(&mut document));
        }
        after_heading = heading;
        document.push_str(paragraph);
        document.push_str("\n\n");
    }
    found.extend((!document.is_empty()).then_some(document));
}

fn is_heading(paragraph: &str) -> bool {
    let one_line = paragraph.len() <= HEADING_BYTES_MAX && !paragraph.contains('\n');
    let shouts = paragraph.contains(' ')
        && paragraph.chars().filter(|it| it.is_alphabetic()).count() >= 4
        && !paragraph.chars().any(char::is_lowercase)
        && !paragraph.starts_with(['\'', '"', '`']);
    one_line && (shouts || paragraph.starts_with("CHAPTER "))
}

fn is_end(paragraph: &str) -> bool {
    paragraph.trim_end_matches('.').eq_ignore_ascii_case("the end")
}
