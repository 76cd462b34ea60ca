//! Folders of files.

use std::path::Path;

/// The folder that the file `path` is in.
pub fn of(path: &Path) -> &Path {
    // A file name alone has the empty path as its parent.
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}
