//! A writer for the cpio "newc" format, as Documentation/driver-api/early-userspace/buffer-format.rst
//! of the kernel describes it: enough for an initramfs of folders, regular files and one device node.

const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;
const S_IFCHR: u32 = 0o020000;

/// An archive being written into memory.
pub struct CpioWriter {
    bytes: Vec<u8>,
    inode: u32,
}

impl CpioWriter {
    /// Creates an empty archive.
    pub fn new() -> Self {
        CpioWriter {
            bytes: Vec::new(),
            inode: 0,
        }
    }

    /// Adds a folder; its parent must have been added before (the root exists).
    pub fn dir(&mut self, path: &str) {
        self.entry(path, S_IFDIR | 0o755, (0, 0), &[]);
    }

    /// Adds a regular file. `data` must be shorter than 4 GiB, the limit of the format.
    pub fn file(&mut self, path: &str, permissions: u32, data: &[u8]) {
        self.entry(path, S_IFREG | permissions, (0, 0), data);
    }

    /// Adds a character device node.
    pub fn char_device(&mut self, path: &str, (major, minor): (u32, u32)) {
        self.entry(path, S_IFCHR | 0o600, (major, minor), &[]);
    }

    /// Ends the archive and returns its bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(data.len()).expect("a cpio member is shorter than 4 GiB");
        let name_size = path.len() as u32 + 1;
        // ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize check
        let fields = [
            self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_header_and_every_body_starts_at_a_multiple_of_four() {
        let mut archive = CpioWriter::new();
        archive.dir("bin");
        archive.file("bin/a", 0o755, b"xyz");
        archive.char_device("console", (5, 1));
        let bytes = archive.finish();
        let headers: Vec<usize> = bytes
            .windows(6)
            .enumerate()
            .filter(|(_, w)| w == b"070701")
            .map(|(i, _)| i)
            .collect();
        assert_eq!(headers.len(), 4);
        assert!(headers.iter().all(|at| at % 4 == 0), "{headers:?}");
        let body = bytes.windows(3).position(|w| w == b"xyz").unwrap();
        assert_eq!(body % 4, 0);
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn a_file_has_its_mode_and_size_where_the_format_puts_them() {
        let mut archive = CpioWriter::new();
        archive.file("f", 0o644, b"hello");
        let bytes = archive.finish();
        let field = |n: usize| std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
        assert_eq!(field(1), "000081a4");
        assert_eq!(field(6), "00000005");
        assert_eq!(field(11), "00000002");
    }
}
