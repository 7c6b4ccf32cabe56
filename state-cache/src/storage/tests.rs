use std::{fs::File, io, os::unix::fs::MetadataExt};

use tempfile::TempDir;

use super::{MappedFile, Storage};

#[test]
fn what_is_written_is_read_and_is_there_again_after_reopening() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let mut file = MappedFile::open(&path).unwrap();
    assert_eq!(file.size().unwrap(), 0);
    file.grow(10_000).unwrap();
    file.write(4095, b"across").unwrap();
    assert_eq!(file.read(4094, 8).unwrap(), b"\0across\0");
    file.flush().unwrap();
    drop(file);
    assert_eq!(MappedFile::open(&path).unwrap().read(4095, 6).unwrap(), b"across");
}

#[test]
fn file_is_open_once_only() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let first = MappedFile::open(&path).unwrap();
    assert_eq!(MappedFile::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(first);
    MappedFile::open(&path).unwrap();
}

#[test]
fn what_was_never_written_takes_no_room_on_the_disk() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let mut file = MappedFile::open(&path).unwrap();
    file.grow(1 << 30).unwrap();
    file.write(1 << 29, b"one page").unwrap();
    file.flush().unwrap();
    let on_disk_bytes = File::open(&path).unwrap().metadata().unwrap().blocks() * 512;
    assert!(on_disk_bytes < 1 << 20, "{on_disk_bytes} bytes");
}

/// A page behind the end of a file is a SIGBUS, which no process survives.
#[test]
fn reading_a_file_that_was_cut_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("cache");
    let mut file = MappedFile::open(&path).unwrap();
    file.grow(1 << 20).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(8192).unwrap();
    assert_eq!(file.read(0, 8192).unwrap().len(), 8192);
    assert_eq!(file.read(8192, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn nothing_is_read_or_written_behind_the_end() {
    let dir = TempDir::new().unwrap();
    let mut file = MappedFile::open(&dir.path().join("cache")).unwrap();
    file.grow(100).unwrap();
    for (offset, n_bytes) in [(100, 1), (99, 2), (0, 101), (u64::MAX, 1), (1, u64::MAX)] {
        let error = file.read(offset, n_bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{n_bytes} from {offset}");
    }
    assert_eq!(file.write(99, b"ab").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(file.size().unwrap(), 100);
}
