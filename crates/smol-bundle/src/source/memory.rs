//! Bytes in memory.

use std::io;

use crate::ReadAt;

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..));
        let bytes = rest.and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_there_can_be_read() {
        let bytes = &[1, 2, 3, 4][..];
        let read = |len: usize, offset| {
            let mut buffer = vec![0; len];
            ReadAt::read_exact_at(&bytes, &mut buffer, offset).map(|()| buffer)
        };
        assert_eq!(bytes.size().unwrap(), 4);
        assert_eq!(read(2, 1).unwrap(), [2, 3]);
        assert_eq!(read(0, 4).unwrap(), b"");
        for (len, offset) in [(2, 3), (1, 4), (0, 5), (1, u64::MAX)] {
            let error = read(len, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
