//! Pictures in a folder for each class, decoded when they are asked for.

use std::path::{Path, PathBuf};

use super::{CLASSES_MAX, Dataset, DatasetError, Pictures, extension, file_name, sorted};

pub(super) fn read(folder: &Path) -> Result<Dataset, DatasetError> {
    let (mut paths, mut labels, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for class in sorted(folder)?.into_iter().filter(|it| it.is_dir()) {
        let label = u32::try_from(classes.len()).ok().filter(|it| *it < CLASSES_MAX);
        let label = label.ok_or_else(|| DatasetError::Empty { path: folder.to_owned() })?;
        let pictures: Vec<PathBuf> =
            sorted(&class)?.into_iter().filter(|it| is_picture(it)).collect();
        labels.extend(pictures.iter().map(|_| label));
        paths.extend(pictures);
        classes.push(file_name(&class));
    }
    Ok(Dataset::whole(Pictures::Files(paths), labels, classes))
}

fn is_picture(path: &Path) -> bool {
    ["jpg", "jpeg", "png"].contains(&extension(path).as_str()) && path.is_file()
}
