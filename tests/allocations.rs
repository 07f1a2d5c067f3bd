//! The session core allocates nothing per command on the usual path, but for the addresses of the envelope that is stored.
//!
//! A counting allocator for this program alone; the test is the only one here, so that nothing else is counted.

use ringmail::smtp::Reply;
use ringmail::smtp::server::{AuthOffer, Event, Peer, Session, SessionConfig};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches no memory that it hands out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` or `realloc` here, which is to say from `System`, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as for `dealloc`; the caller keeps the contract about `size`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Gives the session what a client said, answers as a driver would that takes everything, and counts allocations.
fn count(session: &mut Session, mut input: &[u8]) -> usize {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    loop {
        input = &input[session.handle_input(input)..];
        match session.take_event() {
            Some(Event::Mail { .. }) => session.mail_result(Ok(())),
            Some(Event::Rcpt) => session.rcpt_taken(),
            Some(Event::Data) => session.message_result(Ok("0000000G0001")),
            Some(Event::Chunk { octets, last, .. }) => {
                input = &input[octets as usize..];
                match last {
                    true => session.message_result(Ok("0000000G0001")),
                    false => session.chunk_result(Ok(())),
                }
            }
            Some(event) => panic!("{event:?}"),
            None => break,
        }
    }
    assert!(input.is_empty() && session.output().starts_with(b"2") || session.output().starts_with(b"354"));
    session.clear_output();
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn commands_allocate_nothing_but_addresses() {
    let config = SessionConfig { auth: AuthOffer::Never, dsn: true, ..SessionConfig::default() };
    let peer = Peer::stranger("192.0.2.1:4711".parse().expect("it is one"));
    let mut session = Session::new(Arc::new(config), peer, false);
    session.clear_output();
    let mail = b"MAIL FROM:<sender@client.example> SIZE=4096 BODY=8BITMIME\r\n";
    let rcpt = b"RCPT TO:<recipient@far.example> NOTIFY=FAILURE\r\n";
    let group = [&mail[..], rcpt, b"RCPT TO:<second@far.example>\r\n", b"DATA\r\n"].concat();
    // The first messages make the buffers that the session keeps.
    for _ in 0..2 {
        count(&mut session, b"EHLO client.example\r\n");
        count(&mut session, &group);
    }
    for (command, allowed) in [
        (&b"EHLO client.example\r\n"[..], 0),
        (b"NOOP\r\n", 0),
        (b"RSET\r\n", 0),
        (mail, 1),
        (rcpt, 1),
        (b"RCPT TO:<second@far.example>\r\n", 1),
        (b"DATA\r\n", 0),
        (b"MAIL FROM:<>\r\n", 0),
        (rcpt, 1),
        (b"BDAT 2\r\nx\n", 0),
        (b"BDAT 0 LAST\r\n", 0),
        (b"MAIL FROM:<>\r\n", 0),
        (b"RSET\r\n", 0),
        (&group, 3),
        (b"VRFY somebody\r\n", 0),
        (b"HELP\r\n", 0),
    ] {
        let counted = count(&mut session, command);
        assert_eq!(counted, allowed, "allocations for {:?}", command.escape_ascii().to_string());
    }
    // It would be seen: a refusal makes its text.
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    drop(std::hint::black_box(Reply::new(550, (5, 7, 1), "no")));
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before, "allocations are counted");
}
