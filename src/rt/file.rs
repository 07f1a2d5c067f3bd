//! Files written through the ring: the spool's segments.

use std::io;
use std::path::Path;

/// An open file whose writes and syncs go through the ring of the current executor.
pub struct RingFile(glommio::io::BufferedFile);

impl RingFile {
    /// Opens an existing file for reading and writing.
    pub async fn open(path: &Path) -> io::Result<RingFile> {
        let file = glommio::io::OpenOptions::new().read(true).write(true).buffered_open(path).await;
        file.map(RingFile).map_err(into_io)
    }

    /// Writes the whole buffer at the offset. A short write (a disk that filled up) is an error of kind `WriteZero`:
    /// glommio keeps the buffer, so the rest cannot be written, and the caller treats the range as undefined.
    pub async fn write_at(&self, buffer: Vec<u8>, offset: u64) -> io::Result<()> {
        let expected = buffer.len();
        let written = self.0.write_at(buffer, offset).await.map_err(into_io)?;
        if written == expected {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::WriteZero, format!("short write: {written} of {expected} bytes")))
        }
    }

    /// Reads up to `size` bytes at the offset; fewer at the end of the file.
    pub async fn read_at(&self, offset: u64, size: usize) -> io::Result<Vec<u8>> {
        self.0.read_at(offset, size).await.map(|bytes| bytes.to_vec()).map_err(into_io)
    }

    /// Makes everything written so far durable (fdatasync). After an error nothing may be assumed of any earlier
    /// write, and asking again proves nothing.
    pub async fn sync_data(&self) -> io::Result<()> {
        self.0.fdatasync().await.map_err(into_io)
    }

    /// Closes the file.
    pub async fn close(self) -> io::Result<()> {
        self.0.close().await.map_err(into_io)
    }
}

/// Keeps the error number, which decides between "disk full" and "disk broken".
fn into_io<T: std::fmt::Debug>(error: glommio::GlommioError<T>) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::other(error.to_string()),
    }
}
