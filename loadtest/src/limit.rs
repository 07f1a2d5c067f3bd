//! The bare limit: what a disk and loopback allow together, for a source and a sink that talk SMTP.
//!
//! A relay with nothing in it. It answers every line with a canned reply, takes each message with one copy out of the
//! socket, writes what has gathered (8 MiB at most) with one call and one fdatasync into preallocated blocks, in sequence
//! and round and round, says 250, and passes the message on from where it lies in memory, over a connection of its own for
//! each session. It looks at no octet but the last five, keeps no envelope, has no checksum and forgets everything when it
//! ends. What a real relay reaches is measured as a share of this (`loadtest/compare --mta ringmail,limit --loads large`).

use crate::wire::Wire;
use ringmail::rt::{self, TcpStream};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Which way, and over which disk.
#[derive(clap::Args)]
pub struct Options {
    /// Address to listen on.
    listen: SocketAddr,
    /// Where messages go.
    sink: SocketAddr,
    /// File to write, on the disk to measure; made, and overwritten.
    #[arg(long)]
    file: PathBuf,
    /// Length of the file in MiB: what three segments of a spool take.
    #[arg(long, default_value_t = 768)]
    file_mib: u64,
}

/// Octets of one write and sync, unless one message is longer: as in the spool.
const BATCH_BYTES_MAX: usize = 8 << 20;
/// Octets of one read, and of one write.
const BLOCK_BYTES: usize = 256 << 10;
/// Messages of one session that wait for the sink; then its source has to wait.
const WAITING_MAX: usize = 16;
/// Everything is given up on after this.
const PATIENCE: Duration = Duration::from_secs(600);

/// A message with its final dot: the first `len` octets of a buffer that is used again and again.
struct Content {
    buffer: Vec<u8>,
    len: usize,
}

impl Content {
    fn octets(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

/// A message, and who waits for the disk.
struct Draft {
    content: Arc<Content>,
    written: rt::OneshotSender<io::Result<()>>,
}

struct Shared {
    sink: SocketAddr,
    drafts: RefCell<Vec<Draft>>,
    arrived: rt::Notify,
    /// Buffers of messages that are gone.
    spare: RefCell<Vec<Vec<u8>>>,
    /// Messages that were passed on.
    relayed: Cell<u64>,
}

/// Relays until a signal.
///
/// # Errors
/// An address or a file that cannot be used.
pub fn run(options: Options) -> io::Result<bool> {
    let disk = Disk::open(&options)?;
    let interrupted = crate::interrupt::watch()?;
    rt::run_to_end("limit", || async move {
        let shared = Rc::new(Shared {
            sink: options.sink,
            drafts: RefCell::default(),
            arrived: rt::Notify::default(),
            spare: RefCell::default(),
            relayed: Cell::new(0),
        });
        let listener = rt::TcpListener::bind(options.listen)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {}: {error}", options.listen)))?;
        rt::spawn(commit(shared.clone(), disk));
        let sessions = shared.clone();
        rt::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = sessions.clone();
                // How a client leaves is its own affair.
                rt::spawn(async move { drop(serve(shared, stream).await) });
            }
        });
        while !interrupted.is_set() {
            rt::sleep(Duration::from_millis(50)).await;
        }
        println!("{{\"relayed\": {}}}", shared.relayed.get());
        Ok(true)
    })?
}

/// The file, written by one thread.
struct Disk {
    file: File,
    len: u64,
    position: u64,
}

impl Disk {
    fn open(options: &Options) -> io::Result<Disk> {
        let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", options.file.display()));
        let file = File::create(&options.file).map_err(at)?;
        let len = options.file_mib.max(1) << 20;
        rustix::fs::fallocate(file.as_fd(), rustix::fs::FallocateFlags::empty(), 0, len)
            .map_err(|error| at(error.into()))?;
        file.sync_all().map_err(at)?;
        Ok(Disk { file, len, position: 0 })
    }

    /// Writes these one behind the other, from the start again where the rest of the file is too short, and syncs.
    fn write(&mut self, contents: &[Arc<Content>]) -> io::Result<()> {
        let bytes: u64 = contents.iter().map(|content| content.len as u64).sum();
        if self.position + bytes > self.len {
            self.position = 0;
        }
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(self.position))?;
        let mut slices: Vec<IoSlice<'_>> = contents.iter().map(|content| IoSlice::new(content.octets())).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            let written = self.file.write_vectored(left)?;
            IoSlice::advance_slices(&mut left, written);
        }
        self.position += bytes;
        self.file.sync_data()
    }
}

/// Group commit: while one batch is written the next one gathers.
async fn commit(shared: Rc<Shared>, disk: Disk) {
    let pool = rt::HelperPool::new("disk", 1, 1).expect("a thread can be started");
    let mut disk = Some(disk);
    loop {
        let arrived = shared.arrived.notified();
        let batch = next_batch(&mut shared.drafts.borrow_mut());
        if batch.is_empty() {
            arrived.await;
            continue;
        }
        let contents: Vec<_> = batch.iter().map(|draft| draft.content.clone()).collect();
        let mut writer = disk.take().expect("it came back from the batch before");
        let (back, result) = pool
            .run(move || {
                let result = writer.write(&contents);
                (writer, result)
            })
            .await
            .expect("one batch at a time");
        disk = Some(back);
        let failed = result.err().map(|error| error.kind());
        for draft in batch {
            draft.written.send(failed.map_or(Ok(()), |kind| Err(kind.into())));
        }
    }
}

fn next_batch(drafts: &mut Vec<Draft>) -> Vec<Draft> {
    let mut bytes = 0;
    let fits = drafts.iter().take_while(|draft| {
        bytes += draft.content.len;
        bytes <= BATCH_BYTES_MAX
    });
    let count = fits.count().max(1).min(drafts.len());
    drafts.drain(..count).collect()
}

/// One session of a source: every line is answered, DATA is taken.
async fn serve(shared: Rc<Shared>, stream: TcpStream) -> io::Result<()> {
    let (to_sink, passed) = rt::channel(WAITING_MAX);
    let sender = shared.clone();
    rt::spawn(async move {
        if let Err(error) = pass_on(&sender, passed).await {
            eprintln!("ringmail-load: the sink: {error}");
        }
    });
    let mut wire = Wire::new(stream.into());
    wire.stream.set_deadline(rt::now() + PATIENCE);
    wire.stream.write_all(b"220 limit.example ESMTP\r\n").await?;
    let mut replies: Vec<u8> = Vec::new();
    loop {
        // What came together is answered together.
        if wire.is_drained() && !replies.is_empty() {
            wire.stream.write_all(&replies).await?;
            replies.clear();
        }
        let Some(line) = wire.line().await? else { return Ok(()) };
        match line.get(..4).unwrap_or(line).to_ascii_uppercase().as_slice() {
            b"EHLO" => replies.extend_from_slice(b"250-limit.example\r\n250 PIPELINING\r\n"),
            b"QUIT" => return wire.stream.write_all(b"221 bye\r\n").await,
            b"DATA" => {
                replies.extend_from_slice(b"354 go ahead\r\n");
                wire.stream.write_all(&replies).await?;
                replies.clear();
                wire.stream.set_deadline(rt::now() + PATIENCE);
                let buffer = shared.spare.borrow_mut().pop().unwrap_or_default();
                let content = Arc::new(receive(&mut wire, buffer).await?);
                let (written, wait) = rt::oneshot();
                shared.drafts.borrow_mut().push(Draft { content: content.clone(), written });
                shared.arrived.notify_all();
                wait.await.ok_or(io::ErrorKind::BrokenPipe)??;
                to_sink.send(content).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
                replies.extend_from_slice(b"250 taken\r\n");
            }
            _ => replies.extend_from_slice(b"250 ok\r\n"),
        }
    }
}

/// Up to the final dot. A source waits for the reply, so that the end is the end of a read.
async fn receive(wire: &mut Wire, mut buffer: Vec<u8>) -> io::Result<Content> {
    let ahead = wire.take_ahead();
    let mut len = ahead.len();
    buffer.resize(buffer.len().max(len), 0);
    buffer[..len].copy_from_slice(&ahead);
    while !buffer[..len].ends_with(b"\r\n.\r\n") {
        if buffer.len() < len + BLOCK_BYTES {
            buffer.resize(2 * buffer.len() + BLOCK_BYTES, 0);
        }
        match wire.stream.read(&mut buffer[len..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => len += read,
        }
    }
    Ok(Content { buffer, len })
}

/// Sends a session's messages to the sink, one after the other.
async fn pass_on(shared: &Shared, mut messages: rt::Receiver<Arc<Content>>) -> io::Result<()> {
    const ENVELOPE: &[u8] = b"MAIL FROM:<limit@limit.example>\r\nRCPT TO:<limit@sink.example>\r\nDATA\r\n";
    let Some(mut content) = messages.recv().await else { return Ok(()) };
    let stream = TcpStream::connect(shared.sink, None, rt::now() + PATIENCE).await?;
    let mut wire = Wire::new(stream.into());
    expect(&mut wire, 220).await?;
    wire.stream.write_all(b"EHLO limit.example\r\n").await?;
    expect(&mut wire, 250).await?;
    loop {
        wire.stream.set_deadline(rt::now() + PATIENCE);
        wire.stream.write_all(ENVELOPE).await?;
        for code in [250, 250, 354] {
            expect(&mut wire, code).await?;
        }
        for block in content.octets().chunks(BLOCK_BYTES) {
            wire.stream.write_all(block).await?;
        }
        expect(&mut wire, 250).await?;
        shared.relayed.set(shared.relayed.get() + 1);
        if let Ok(Content { buffer, .. }) = Arc::try_unwrap(content) {
            shared.spare.borrow_mut().push(buffer);
        }
        match messages.recv().await {
            Some(next) => content = next,
            None => return wire.stream.write_all(b"QUIT\r\n").await,
        }
    }
}

async fn expect(wire: &mut Wire, code: u16) -> io::Result<()> {
    match wire.reply(|_| ()).await? {
        seen if seen == code => Ok(()),
        seen => Err(io::Error::other(format!("{seen} where {code} was expected"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(octet: u8, len: usize) -> Arc<Content> {
        Arc::new(Content { buffer: vec![octet; len + 1], len })
    }

    fn draft(bytes: usize) -> Draft {
        Draft { content: made(0, bytes), written: rt::oneshot().0 }
    }

    #[test]
    fn a_batch_is_as_long_as_the_spools_or_one_message() {
        let mut drafts = vec![draft(BATCH_BYTES_MAX + 1), draft(BATCH_BYTES_MAX - 1), draft(1), draft(1)];
        let lengths: Vec<usize> = std::iter::repeat_with(|| next_batch(&mut drafts).len()).take(4).collect();
        assert_eq!(lengths, [1, 2, 1, 0]);
    }

    #[test]
    fn the_file_is_written_round_and_round() {
        let folder = std::env::temp_dir().join(format!("ringmail-limit-{}", std::process::id()));
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut disk = Disk::open(&Options { listen, sink: listen, file: folder.clone(), file_mib: 1 }).unwrap();
        for octet in [b'a', b'b', b'c'] {
            disk.write(&[made(octet, 300 << 10), made(octet, 100 << 10)]).unwrap();
        }
        let file = std::fs::read(&folder).unwrap();
        std::fs::remove_file(&folder).unwrap();
        assert_eq!(file.len(), 1 << 20);
        assert_eq!([file[0], file[(400 << 10) - 1], file[400 << 10], file[(800 << 10) - 1]], [b'c', b'c', b'b', b'b']);
    }
}
