//! The spool as a program uses it, on a real file system and executor: commit, read, journal, restart.

use super::disk::{Disk, FreeSpace, OsDisk, SEGMENTS};
use super::keeper::{Keeper, Numbers};
use super::*;
use crate::rt::run_to_end;
use crate::smtp::Address;
use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

const SEGMENT_BYTES: u64 = 1 << 20;

pub(super) fn envelope(recipients: &[&str]) -> Envelope {
    let address = |text: &str| Address::parse(text.as_bytes(), true).unwrap();
    let sender = ReversePath::Mailbox(address("sender@example.com"));
    Envelope {
        origin: Origin::Smtp { client: [127, 0, 0, 1].into(), helo: "client".into(), login: None },
        ..Envelope::internal(sender, recipients.iter().map(|text| address(text)))
    }
}

/// Helper threads of the life before may hold the lock for a moment longer.
pub(super) fn open_at(folder: &Path) -> Opened {
    loop {
        match open(folder, Options { shards: 1, segment_bytes: SEGMENT_BYTES, free_bytes_min: 0, free_inodes_min: 0 }) {
            Err(OpenError::Locked { .. }) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

pub(super) async fn put(spool: &ShardSpool, envelope: &Envelope, body: &[u8]) -> Result<Committed, SpoolError> {
    let trace =
        &mut |id: QueueId, out: &mut Vec<u8>| out.extend_from_slice(format!("Received: id {id}\r\n").as_bytes());
    let body = DraftBody::Memory(body.to_vec());
    spool
        .commit(MessageDraft {
            envelope,
            body,
            no_leading_dots: true,
            arrival_ms: 5,
            durability: Durability::Group,
            trace,
        })
        .await
}

/// Runs one life of the process.
pub(super) fn life<Fut: Future<Output = ()>>(
    folder: &Path,
    run: impl FnOnce(ShardSpool, SpoolReader, Journal, Vec<Survivor>) -> Fut,
) {
    let mut opened = open_at(folder);
    assert_eq!(opened.report.problems, []);
    run_to_end("spool-test", || async move {
        let spool = opened.shards.remove(0).start();
        run(spool.clone(), opened.reader, opened.journal, opened.survivors).await;
        spool.close().await;
    })
    .unwrap();
}

#[test]
fn a_message_survives_a_restart_until_it_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org", "b@Example.NET"]);
    let mut ids = Vec::new();
    life(&path, |spool, reader, mut journal, survivors| async move {
        assert_eq!(survivors, []);
        let mut committed = Vec::new();
        for body in ["one\r\n", "two\r\n"] {
            let put = put(&spool, &to, body.as_bytes()).await.unwrap();
            journal.accepted(&put.accepted(&to, 5));
            committed.push(put);
        }
        let stored = reader.message(committed[0].location).unwrap();
        assert_eq!(stored.trace(), format!("Received: id {}\r\n", committed[0].queue_id).as_bytes());
        assert_eq!((stored.body(), stored.envelope(), stored.arrival_ms()), (&b"one\r\n"[..], &to, 5));
        assert_eq!(stored.size(), committed[0].size);
        journal.recipient(committed[0].queue_id, 0, RecipientState::Delivered);
        journal.recipient(committed[0].queue_id, 1, RecipientState::Pending { attempts: 1, next_ms: 9 });
        journal.delay_dsn_sent(committed[0].queue_id);
        assert_eq!(journal.done(committed[1].queue_id, committed[1].location, committed[1].size), None);
        journal.close().await;
    });
    life(&path, |_, reader, mut journal, survivors| {
        let survivor = survivors[0].clone();
        assert_eq!(survivors.len(), 1);
        let domains: Vec<_> = survivor.recipients.iter().map(|(domain, _)| &**domain).collect();
        assert_eq!(domains, ["example.org", "example.net"]);
        assert_eq!(survivor.recipients[0].1, RecipientState::Delivered);
        assert_eq!(survivor.recipients[1].1, RecipientState::Pending { attempts: 1, next_ms: 9 });
        assert!(survivor.delay_dsn_sent);
        ids.push(survivor.queue_id);
        async move {
            assert_eq!(reader.load(survivor.location).await.unwrap().body(), b"one\r\n");
            let free = journal.done(survivor.queue_id, survivor.location, survivor.size);
            assert_eq!(free, Some(survivor.location.segment()));
            journal.close().await;
        }
    });
    life(&path, |_, _, journal, survivors| async move {
        assert_eq!(survivors, []);
        journal.close().await;
    });
    assert_eq!(ids.len(), 1);
}

#[test]
fn without_a_journal_entry_everything_survives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org"]);
    life(&path, |spool, _, journal, _| async move {
        for n in 0..300 {
            put(&spool, &to, vec![b'x'; n * 100].as_slice()).await.unwrap();
        }
        drop(journal);
    });
    life(&path, |_, reader, _journal, mut survivors| async move {
        survivors.sort_by_key(|survivor| survivor.queue_id);
        assert_eq!(survivors.len(), 300);
        for (n, survivor) in survivors.iter().enumerate() {
            assert_eq!(reader.message(survivor.location).unwrap().body().len(), n * 100);
        }
    });
}

/// The process ends between the sync of a report and the journal's note of what it says.
#[test]
fn what_a_sender_was_told_of_is_not_told_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org", "b@example.org", "c@example.org"]);
    life(&path, |spool, _, mut journal, _| async move {
        let mut ids = Vec::new();
        for _ in 0..2 {
            let committed = put(&spool, &to, b"text\r\n").await.unwrap();
            journal.accepted(&committed.accepted(&to, 5));
            ids.push(committed);
        }
        journal.recipient(ids[0].queue_id, 1, RecipientState::Delivered);
        for what in [AboutWhat::Failed(vec![0, 1]), AboutWhat::Delayed] {
            let sender = Address::parse(b"sender@example.com", true).unwrap();
            let about = About { queue_id: ids[0].queue_id, what };
            let report = Envelope { envid: about.to_envid(), ..Envelope::internal(ReversePath::Null, [sender]) };
            let committed = put(&spool, &report, b"report\r\n").await.unwrap();
            // One of them has even been delivered.
            if about.what == AboutWhat::Delayed {
                journal.done(committed.queue_id, committed.location, committed.size);
            }
        }
        // Whoever sends such an ENVID by SMTP settles nothing.
        let about = About { queue_id: ids[1].queue_id, what: AboutWhat::Failed(vec![0]) };
        put(&spool, &Envelope { envid: about.to_envid(), ..to.clone() }, b"text\r\n").await.unwrap();
        journal.close().await;
    });
    life(&path, |_, _, _journal, mut survivors| async move {
        survivors.sort_by_key(|survivor| survivor.queue_id);
        let pending = RecipientState::Pending { attempts: 0, next_ms: 0 };
        let states: Vec<Vec<_>> =
            survivors.iter().map(|one| one.recipients.iter().map(|(_, state)| *state).collect()).collect();
        assert_eq!(states[0], [RecipientState::Bounced, RecipientState::Delivered, pending]);
        assert_eq!(states[1], [pending; 3]);
        assert_eq!(states[2..], [vec![pending], vec![pending; 3]], "the report that is left, and the last message");
        let told: Vec<bool> = survivors.iter().map(|one| one.delay_dsn_sent).collect();
        assert_eq!(told, [true, false, false, false]);
    });
}

#[test]
fn segments_are_recycled_and_never_while_somebody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org"]);
    life(&path, |spool, reader, mut journal, _| async move {
        let mut held = None;
        for n in 0..400u32 {
            let body = n.to_le_bytes().repeat(5_000);
            let put = put(&spool, &to, &body).await.unwrap();
            journal.accepted(&put.accepted(&to, 5));
            let stored = reader.message(put.location).unwrap();
            assert_eq!(stored.body(), body);
            let first = held.get_or_insert(stored);
            assert_eq!(first.body(), 0u32.to_le_bytes().repeat(5_000), "held octets do not change");
            if let Some(segment) = journal.done(put.queue_id, put.location, put.size) {
                spool.free_segment(segment).await;
            }
        }
        journal.close().await;
    });
    // 8 MB went through segments of 1 MiB.
    let files = std::fs::read_dir(path.join("segments")).unwrap().count();
    assert!(files <= 6, "{files} segments are left");
}

#[test]
fn a_moved_message_keeps_its_name_and_frees_its_segment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org"]);
    let (mut names, mut old) = (Vec::new(), 0);
    let (names_seen, old_seen) = (&mut names, &mut old);
    let body = &vec![b'y'; 300_000];
    life(&path, |spool, reader, mut journal, _| async move {
        let (small, large) = (put(&spool, &to, b"one\r\n").await.unwrap(), put(&spool, &to, body).await.unwrap());
        let mut fillers = Vec::new();
        while fillers.last().is_none_or(|put: &Committed| put.location.segment() == small.location.segment()) {
            fillers.push(put(&spool, &to, &[b'x'; 60_000]).await.unwrap());
        }
        for put in [small, large].iter().chain(&fillers) {
            journal.accepted(&put.accepted(&to, 5));
        }
        assert_eq!(journal.sparse_segment(Duration::from_secs(3600), |_| false), None, "it is not old enough");
        let segment = journal.sparse_segment(Duration::ZERO, |_| false).unwrap().0;
        assert_eq!(segment, small.location.segment());
        assert_eq!(journal.sparse_segment(Duration::ZERO, |number| number == segment), None);
        for filler in &fillers {
            journal.done(filler.queue_id, filler.location, filler.size);
        }
        let mut freed = Vec::new();
        for message in [small, large] {
            assert!(journal.move_begin(message.queue_id, message.location));
            assert!(!journal.move_begin(message.queue_id, message.location), "once at a time");
            let copy = spool.relocate(&reader.load(message.location).await.unwrap()).await.unwrap();
            assert_eq!((copy.queue_id, copy.size), (message.queue_id, message.size));
            assert_ne!(copy.location.segment(), segment);
            journal.moved(copy.queue_id, copy.location, copy.record_slots);
            freed.push(journal.left(message.location));
            let read = reader.message(copy.location).unwrap();
            assert_eq!(read.trace(), format!("Received: id {}\r\n", message.queue_id).as_bytes());
            names_seen.push(message.queue_id);
        }
        assert_eq!(freed, [None, Some(segment)]);
        spool.free_segment(segment).await;
        assert!(matches!(reader.message(small.location), Err(SpoolError::NotFound(_))));
        *old_seen = segment;
        journal.close().await;
    });
    life(&path, |_, reader, mut journal, survivors| async move {
        let found: Vec<QueueId> = survivors.iter().map(|survivor| survivor.queue_id).collect();
        assert_eq!(found.iter().collect::<HashSet<_>>(), names.iter().collect::<HashSet<_>>());
        for survivor in &survivors {
            assert_ne!(survivor.location.segment(), old);
            let read = reader.message(survivor.location).unwrap();
            assert!(read.body() == b"one\r\n" || read.body() == body);
            journal.done(survivor.queue_id, survivor.location, survivor.size);
        }
        journal.close().await;
    });
    life(&path, |_, _, journal, survivors| async move {
        assert_eq!(survivors, []);
        assert_eq!(std::fs::read_dir(folder.path().join("spool/large")).unwrap().count(), 0);
        journal.close().await;
    });
}

async fn put_relaxed(spool: &ShardSpool, envelope: &Envelope) -> Result<Committed, SpoolError> {
    let (body, durability) = (DraftBody::Memory(b"x\r\n".to_vec()), Durability::Relaxed);
    let trace = &mut |_, _: &mut Vec<u8>| {};
    spool.commit(MessageDraft { envelope, body, no_leading_dots: true, arrival_ms: 5, durability, trace }).await
}

#[test]
fn relaxed_messages_wait_for_no_sync_unless_others_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org"]);
    life(&path, |spool, reader, journal, _| async move {
        for _ in 0..10 {
            let committed = put_relaxed(&spool, &to).await.unwrap();
            assert_eq!(committed.durability, Durability::Relaxed);
            assert!(reader.message(committed.location).is_ok());
        }
        let counts = spool.stats().counts();
        assert!(counts.syncs <= 1, "a slow machine may have come to the late sync: {counts:?}");
        assert_eq!((counts.messages, counts.relaxed), (10, 10));
        // In one batch with a message that waits, it waits too.
        let (mixed, grouped) = futures_lite::future::zip(put_relaxed(&spool, &to), put(&spool, &to, b"y")).await;
        assert_eq!(grouped.unwrap().durability, Durability::Group);
        let mixed = mixed.unwrap();
        assert_eq!(mixed.durability, if mixed.batch_len == 2 { Durability::Group } else { Durability::Relaxed });
        let before = spool.stats().counts();
        put_relaxed(&spool, &to).await.unwrap();
        while spool.stats().counts().syncs == before.syncs {
            crate::rt::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(spool.stats().counts().batch_messages, before.batch_messages, "nobody waited for the late sync");
        put_relaxed(&spool, &to).await.unwrap();
        journal.close().await;
    });
    life(&path, |_, _, journal, survivors| async move {
        assert_eq!(survivors.len(), 14);
        journal.close().await;
    });
}

#[test]
fn a_large_body_lies_in_its_own_file_until_its_message_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org"]);
    let body: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
    let files = |path: &Path| std::fs::read_dir(path.join("large")).unwrap().count();
    let (body, path) = (&body, &path);
    life(path, |spool, reader, _journal, _| async move {
        let in_memory = put(&spool, &to, body).await.unwrap();
        let mut writer = spool.large_body();
        for chunk in body.chunks(70_000) {
            writer.write(chunk.to_vec()).await.unwrap();
        }
        let written = writer.finish().await.unwrap();
        let mut abandoned = spool.large_body();
        abandoned.write(vec![1; 10]).await.unwrap();
        drop(abandoned);
        let draft = MessageDraft {
            envelope: &to,
            body: DraftBody::Large(written),
            no_leading_dots: false,
            arrival_ms: 1,
            durability: Durability::Group,
            trace: &mut |_, _| {},
        };
        let streamed = spool.commit(draft).await.unwrap();
        for put in [in_memory, streamed] {
            assert_eq!(reader.message(put.location).unwrap().body(), body);
        }
        assert_eq!(files(path), 3);
    });
    life(path, |_, reader, mut journal, survivors| async move {
        assert_eq!(files(path), 2, "the abandoned one is gone");
        assert_eq!(survivors.len(), 2);
        assert_eq!(reader.message(survivors[0].location).unwrap().body(), body);
        journal.done(survivors[0].queue_id, survivors[0].location, survivors[0].size);
        journal.sync().await;
        assert_eq!(files(path), 1);
        journal.close().await;
    });
    life(path, |_, reader, journal, survivors| async move {
        assert_eq!(survivors.len(), 1);
        assert_eq!(files(path), 1);
        let location = survivors[0].location;
        assert_eq!(reader.read(location, false).await.unwrap().body(), body);
        // One bit of it rots, which its length does not tell.
        let file = std::fs::read_dir(path.join("large")).unwrap().next().unwrap().unwrap().path();
        let mut octets = std::fs::read(&file).unwrap();
        octets[2_000_000] ^= 4;
        std::fs::write(&file, octets).unwrap();
        assert!(matches!(reader.read(location, false).await, Err(SpoolError::Damaged(_))));
        assert!(matches!(reader.sound_message(location), Err(SpoolError::Damaged(_))));
        journal.close().await;
    });
}

#[test]
fn a_second_process_is_kept_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let first = open_at(&path);
    let second =
        open(&path, Options { shards: 1, segment_bytes: SEGMENT_BYTES, free_bytes_min: 0, free_inodes_min: 0 });
    let error = second.unwrap_err();
    assert!(matches!(&error, OpenError::Locked { .. }), "{error}");
    assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    drop(first);
}

#[test]
fn nobody_else_can_read_the_spool() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org"]);
    life(&path, |spool, _, _journal, _| async move {
        put(&spool, &to, &vec![0; 1_500_000]).await.unwrap();
    });
    let mut folders = vec![path];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
                continue;
            }
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
            files += 1;
        }
    }
    assert!(files >= 4, "lock, segment, body, journal");
}

#[test]
fn below_the_floor_of_free_space_nothing_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { shards: 1, segment_bytes: SEGMENT_BYTES, free_bytes_min: u64::MAX / 2, free_inodes_min: 0 };
    let mut opened = open(&folder.path().join("spool"), options).unwrap();
    run_to_end("spool-test", || async move {
        let spool = opened.shards.remove(0).start();
        assert!(!spool.has_room(1));
        let to = envelope(&["a@example.org"]);
        assert!(matches!(put(&spool, &to, b"x\r\n").await, Err(SpoolError::Full)));
        spool.close().await;
        assert!(spool.healthy());
    })
    .unwrap();
}

/// MAIL asks `has_room`, end-of-data finds what `commit` says: both must see that the segment would not fit.
#[test]
fn a_client_is_told_before_the_message_that_no_segment_can_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let free = OsDisk::new(&folder.path().join("first")).unwrap().free_space().unwrap();
    let with = |free_bytes_min, free_inodes_min| Options {
        shards: 1,
        segment_bytes: 1 << 30,
        free_bytes_min,
        free_inodes_min,
    };
    // Half a segment above the floor, then no file above the floor.
    for options in [with(free.bytes - (1 << 29), 0), with(0, u64::MAX)] {
        let mut opened = open(&folder.path().join(options.free_inodes_min.to_string()), options).unwrap();
        run_to_end("spool-test", || async move {
            let spool = opened.shards.remove(0).start();
            assert!(!spool.has_room(0) && !spool.has_room(1_000));
            let to = envelope(&["a@example.org"]);
            assert!(matches!(put(&spool, &to, b"x\r\n").await, Err(SpoolError::Full)));
            opened.journal.close().await;
            spool.close().await;
        })
        .unwrap();
    }
}

#[test]
fn files_are_not_made_below_the_floor_whatever_was_known_a_second_ago() {
    let folder = tempfile::tempdir().unwrap();
    let disk = OsDisk::new(&folder.path().join("spool")).unwrap();
    let keeper = Keeper::new(disk, Numbers::starting_at(1), SEGMENT_BYTES, 2)
        .with_floor(FreeSpace { bytes: u64::MAX / 2, inodes: 0 });
    assert!(keeper.has_room(1), "nothing is known yet");
    let error = keeper.prepare(0, 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert!(!keeper.has_room(1));
    assert_eq!(keeper.disk.list(SEGMENTS).unwrap(), Vec::<String>::new());
}

#[test]
fn a_closed_spool_takes_nothing_and_an_oversized_record_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut opened = open_at(&folder.path().join("spool"));
    run_to_end("spool-test", || async move {
        let spool = opened.shards.remove(0).start();
        let to = envelope(&["a@example.org"]);
        let mut many = to.clone();
        many.recipients = (0..65_000).map(|_| to.recipients[0].clone()).collect();
        assert!(matches!(put(&spool, &many, b"x\r\n").await, Err(SpoolError::TooLarge)));
        assert!(put(&spool, &to, b"x\r\n").await.is_ok());
        spool.close().await;
        assert!(matches!(put(&spool, &to, b"x\r\n").await, Err(SpoolError::Closed)));
    })
    .unwrap();
}

/// Puts `count` messages into a fresh spool, and says where it lies and what they are called.
pub(super) fn filled(folder: &Path, count: usize) -> (PathBuf, Vec<Committed>) {
    let path = folder.join("spool");
    let to = envelope(&["a@example.org"]);
    let mut committed = Vec::new();
    let ids = &mut committed;
    life(&path, |spool, _, journal, _| async move {
        for n in 0..count {
            ids.push(put(&spool, &to, vec![b'x'; 100 * n].as_slice()).await.unwrap());
        }
        journal.close().await;
    });
    (path, committed)
}

pub(super) fn segment_path(path: &Path, location: Location) -> PathBuf {
    path.join(format!("segments/{:09X}.seg", location.segment()))
}

/// Changes octets of a file.
pub(super) fn scribble(file: &Path, offset: u64, octets: &[u8]) {
    use std::os::unix::fs::FileExt;
    std::fs::File::options().write(true).open(file).unwrap().write_all_at(octets, offset).unwrap();
}

fn set_len(file: &Path, len: u64) {
    std::fs::File::options().write(true).open(file).unwrap().set_len(len).unwrap();
}

#[test]
fn of_a_shortened_segment_every_whole_record_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let (path, committed) = filled(folder.path(), 9);
    // The second round's checkpoint knows all messages, so that nothing is found by scanning.
    for known_to_checkpoint in [false, true] {
        let cut = committed[if known_to_checkpoint { 3 } else { 6 }].location;
        set_len(&segment_path(&path, cut), cut.offset() + 100);
        for _ in 0..2 {
            let opened = open_at(&path);
            let mut left: Vec<Location> = opened.survivors.iter().map(|survivor| survivor.location).collect();
            left.sort();
            let expected = if known_to_checkpoint { &committed[..3] } else { &committed[..6] };
            assert_eq!(left, expected.iter().map(|put| put.location).collect::<Vec<_>>());
            let [Problem::LengthDisagrees { messages, .. }] = opened.report.problems[..] else {
                panic!("{:?}", opened.report.problems)
            };
            assert!(messages <= 3);
            assert!(left.iter().all(|location| opened.reader.message(*location).is_ok()));
            run_to_end("spool-test", || opened.journal.close()).unwrap();
        }
    }
    let seen = super::inspect(&path, &mut |_| {}).unwrap();
    assert!(seen.findings.iter().any(|finding| finding.verdict == super::Verdict::LengthDisagrees), "{seen:?}");
    assert!(super::find(&path, committed[0].queue_id).is_ok());
}

#[test]
fn a_segment_that_somebody_emptied_is_reported_not_removed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, committed) = filled(folder.path(), 3);
    run_to_end("spool-test", || open_at(&path).journal.close()).unwrap();
    let file = segment_path(&path, committed[0].location);
    set_len(&file, 0);
    let (problems, survivors) = reopened(&path);
    assert!(survivors == 0 && matches!(problems[..], [Problem::Unreadable(_)]), "{problems:?}");
    assert!(file.exists());
}

/// Checks the spool, opens it, and says what was found.
fn reopened(path: &Path) -> (Vec<Problem>, usize) {
    let checked = check(path).unwrap();
    let opened = open_at(path);
    assert_eq!(checked.problems, opened.report.problems);
    assert_eq!(opened.report.survivors, opened.survivors.len() as u64);
    (opened.report.problems, opened.survivors.len())
}

#[test]
fn a_damaged_message_is_reported_at_each_start_and_its_segment_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (path, committed) = filled(folder.path(), 3);
    let file = segment_path(&path, committed[1].location);
    scribble(&file, committed[1].location.offset() + 70, b"????");
    for _ in 0..2 {
        let (problems, survivors) = reopened(&path);
        assert_eq!(survivors, 2);
        assert!(matches!(problems[..], [Problem::Damaged { .. }]), "{problems:?}");
    }
    // What is done stays done, though the segment is read again; and the segment stays for the operator.
    for left in [2, 1, 0] {
        let opened = open_at(&path);
        assert_eq!(opened.survivors.len(), left);
        let mut journal = opened.journal;
        if let Some(survivor) = opened.survivors.first() {
            journal.done(survivor.queue_id, survivor.location, survivor.size);
        }
        run_to_end("spool-test", || journal.close()).unwrap();
    }
    assert!(file.exists());
    assert_eq!(reopened(&path).0.len(), 1);
}

#[test]
fn a_damaged_message_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let (path, committed) = filled(folder.path(), 3);
    life(&path, |_, reader, _journal, survivors| {
        let file = segment_path(&path, survivors[0].location);
        scribble(&file, committed[1].location.offset() + 70, b"????");
        async move {
            let ok: Vec<bool> = committed.iter().map(|put| reader.message(put.location).is_ok()).collect();
            assert_eq!(ok, [true, false, true]);
            let nowhere = Location::new(committed[0].location.segment() + 50, 256);
            assert!(matches!(reader.message(nowhere), Err(SpoolError::NotFound(_))));
            let no_record = Location::new(committed[0].location.segment(), (1 << 24) - 1);
            assert!(matches!(reader.message(no_record), Err(SpoolError::Damaged(_))));
        }
    });
}

#[test]
fn each_damage_to_a_segment_file_has_its_answer() {
    type Harm = fn(&Path);
    type Case = (&'static str, Harm, usize, fn(&Problem) -> bool);
    let cases: [Case; 5] = [
        ("first header", |file| scribble(file, 20, b"????"), 3, |p| matches!(p, Problem::HeaderRepaired(_))),
        ("copy", |file| scribble(file, 4096 + 20, b"????"), 3, |p| matches!(p, Problem::HeaderRepaired(_))),
        (
            "both headers",
            |file| {
                scribble(file, 20, b"????");
                scribble(file, 4096 + 20, b"????");
            },
            0,
            |p| matches!(p, Problem::Unreadable(_)),
        ),
        (
            "length",
            |file| set_len(file, 1 << 19),
            3,
            |p| matches!(p, Problem::LengthDisagrees { is: 524_288, messages: 0, .. }),
        ),
        (
            "name",
            |file| std::fs::rename(file, file.with_file_name("000000FFF.seg")).unwrap(),
            0,
            |p| matches!(p, Problem::NameDisagrees { .. }),
        ),
    ];
    for (name, harm, left, is_expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (path, committed) = filled(folder.path(), 3);
        harm(&segment_path(&path, committed[0].location));
        let files = std::fs::read_dir(path.join("segments")).unwrap().count();
        let (problems, survivors) = reopened(&path);
        assert_eq!(survivors, left, "{name}");
        assert!(problems.len() == 1 && is_expected(&problems[0]), "{name}: {problems:?}");
        assert_eq!(std::fs::read_dir(path.join("segments")).unwrap().count(), files, "{name}: nothing is removed");
    }
}

#[test]
fn a_lost_journal_repeats_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = filled(folder.path(), 3);
    life(&path, |_, _, mut journal, survivors| async move {
        journal.done(survivors[0].queue_id, survivors[0].location, survivors[0].size);
        journal.close().await;
    });
    for entry in std::fs::read_dir(path.join("journal")).unwrap() {
        scribble(&entry.unwrap().path(), 70, b"????");
    }
    let opened = open_at(&path);
    assert!(opened.report.journal_lost);
    assert_eq!(opened.survivors.len(), 3);
}

#[test]
fn a_newer_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (path, committed) = filled(folder.path(), 1);
    let file = segment_path(&path, committed[0].location);
    let mut block = std::fs::read(&file).unwrap()[..60].to_vec();
    block[8] = 9;
    let checksum = crc32c::crc32c(&block);
    block.extend_from_slice(&checksum.to_le_bytes());
    scribble(&file, 0, &block);
    let error = check(&path).unwrap_err();
    assert!(matches!(error, OpenError::UnknownVersion { version: 9, .. }), "{error}");
}

#[test]
fn a_missing_body_is_reported_and_its_message_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org"]);
    life(&path, |spool, _, journal, _| async move {
        put(&spool, &to, &vec![0; 1_500_000]).await.unwrap();
        journal.close().await;
    });
    let body = std::fs::read_dir(path.join("large")).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(body).unwrap();
    for _ in 0..2 {
        let (problems, survivors) = reopened(&path);
        assert_eq!(survivors, 0);
        assert!(matches!(problems[..], [Problem::BodyMissing { .. }]), "{problems:?}");
    }
}

#[test]
fn leftovers_of_a_cut_are_cleared_away() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = filled(folder.path(), 1);
    let leftovers =
        ["segments/0000000F0.new", "segments/0000000F1.seg", "journal/0000000F2.new", "large/0000000F3.body"];
    for name in leftovers {
        std::fs::write(path.join(name), vec![0; 16_384]).unwrap();
    }
    let (problems, survivors) = reopened(&path);
    assert_eq!((problems, survivors), (vec![], 1));
    assert!(leftovers.iter().all(|name| !path.join(name).exists()));
    // Their numbers are not used again.
    let highest = std::fs::read_dir(path.join("journal")).unwrap().next().unwrap().unwrap().file_name();
    assert!(highest.to_str().unwrap() > "0000000F3", "{highest:?}");
}

#[test]
fn a_checkpoint_spares_the_next_start_the_scan() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spool");
    let to = envelope(&["a@example.org"]);
    life(&path, |spool, _, mut journal, _| async move {
        let mut live = Vec::new();
        for n in 0..50 {
            let put = put(&spool, &to, b"x\r\n").await.unwrap();
            let accepted = put.accepted(&to, 5);
            journal.accepted(&accepted);
            if n % 2 == 0 {
                journal.done(put.queue_id, put.location, put.size);
            } else {
                live.push(accepted);
            }
        }
        let pending = RecipientState::Pending { attempts: 1, next_ms: 8 };
        journal.checkpoint_begin([]);
        for message in &live {
            let recipients: Vec<_> = message.recipient_domains.iter().map(|domain| (domain.clone(), pending)).collect();
            let message = LiveMessage {
                queue_id: message.queue_id,
                location: message.location,
                arrival_ms: message.arrival_ms,
                size: message.size,
                null_reverse_path: message.null_reverse_path,
                priority: message.priority,
                delay_dsn_sent: false,
                origin: SenderOrigin::Envelope(SenderKey::default()),
                recipients: &recipients,
            };
            journal.checkpoint_add(&message).await;
        }
        journal.checkpoint_finish();
        // Behind the checkpoint: one more message, and one that ends.
        put(&spool, &to, b"y\r\n").await.unwrap();
        journal.done(live[0].queue_id, live[0].location, live[0].size);
        journal.close().await;
    });
    let report = check(&path).unwrap();
    assert_eq!((report.records_scanned, report.survivors), (1, 25));
    let opened = open_at(&path);
    let tried = opened
        .survivors
        .iter()
        .filter(|survivor| matches!(survivor.recipients[0].1, RecipientState::Pending { attempts: 1, next_ms: 8 }));
    assert_eq!(tried.count(), 24);
}

/// Spool folders of earlier versions, which every later one must open: `tests/fixtures/spool-v*.txt`, a file a line, then
/// its pages that are not zeros: offset, and either one octet that fills it or the octets in base 64.
mod fixtures {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use std::fmt::Write;

    const PAGE: usize = 4096;

    fn pack(folder: &Path) -> String {
        let mut text = String::new();
        for sub in ["segments", "large", "journal"] {
            let mut names: Vec<_> = std::fs::read_dir(folder.join(sub)).unwrap().map(|it| it.unwrap().path()).collect();
            names.sort();
            for path in names {
                let octets = std::fs::read(&path).unwrap();
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                writeln!(text, "file {name} {}", octets.len()).unwrap();
                for (index, page) in octets.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|it| *it != 0))
                {
                    match page.iter().all(|octet| *octet == page[0]) {
                        true => writeln!(text, "{} fill {} {}", index * PAGE, page[0], page.len()).unwrap(),
                        false => writeln!(text, "{} {}", index * PAGE, STANDARD.encode(page)).unwrap(),
                    }
                }
            }
        }
        text
    }

    fn unpack(text: &str, folder: &Path) {
        let mut path = PathBuf::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["file", name, len] => {
                    path = folder.join(name);
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                    std::fs::File::create(&path).unwrap().set_len(len.parse().unwrap()).unwrap();
                }
                [offset, "fill", octet, len] => {
                    scribble(&path, offset.parse().unwrap(), &vec![octet.parse().unwrap(); len.parse().unwrap()]);
                }
                [offset, octets] => scribble(&path, offset.parse().unwrap(), &STANDARD.decode(octets).unwrap()),
                _ => panic!("{line}"),
            }
        }
    }

    /// Makes the fixture of the present version: `cargo test make_a_fixture -- --ignored`. Never change one that was
    /// released; a new version gets a new one.
    #[test]
    #[ignore = "writes into the source tree"]
    fn make_a_fixture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        let to = envelope(&["a@example.org", "b@example.net"]);
        life(&path, |spool, reader, mut journal, _| async move {
            let plain = put(&spool, &to, b"Subject: plain\r\n\r\nbody\r\n").await.unwrap();
            let relaxed = put_relaxed(&spool, &to).await.unwrap();
            let large = put(&spool, &to, &vec![b'x'; 300_000]).await.unwrap();
            let done = put(&spool, &to, b"done\r\n").await.unwrap();
            let moved = put(&spool, &to, b"moved\r\n").await.unwrap();
            for put in [plain, relaxed, large, done, moved] {
                journal.accepted(&put.accepted(&to, 5));
            }
            journal.recipient(plain.queue_id, 0, RecipientState::Delivered);
            journal.recipient(plain.queue_id, 1, RecipientState::Pending { attempts: 3, next_ms: 77 });
            journal.delay_dsn_sent(plain.queue_id);
            journal.done(done.queue_id, done.location, done.size);
            assert!(journal.move_begin(moved.queue_id, moved.location));
            let copy = spool.relocate(&reader.load(moved.location).await.unwrap()).await.unwrap();
            journal.moved(copy.queue_id, copy.location, copy.record_slots);
            journal.left(moved.location);
            journal.close().await;
        });
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        std::fs::create_dir_all(&fixtures).unwrap();
        std::fs::write(fixtures.join("spool-v1.txt"), pack(&path)).unwrap();
    }

    #[test]
    fn a_spool_of_version_1_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("spool");
        unpack(include_str!("../../tests/fixtures/spool-v1.txt"), &path);
        life(&path, |_, reader, journal, mut survivors| async move {
            survivors.sort_by_key(|survivor| survivor.queue_id);
            let bodies: Vec<Vec<u8>> =
                survivors.iter().map(|it| reader.message(it.location).unwrap().body().to_vec()).collect();
            let plain = b"Subject: plain\r\n\r\nbody\r\n".to_vec();
            assert!(bodies == [plain, b"x\r\n".to_vec(), vec![b'x'; 300_000], b"moved\r\n".to_vec()]);
            let states: Vec<RecipientState> = survivors[0].recipients.iter().map(|(_, state)| *state).collect();
            assert_eq!(states, [RecipientState::Delivered, RecipientState::Pending { attempts: 3, next_ms: 77 }]);
            assert!(survivors[0].delay_dsn_sent && !survivors[1].delay_dsn_sent);
            assert_ne!(survivors[3].location, survivors[3].queue_id.first_location());
            assert_eq!(
                *reader.message(survivors[2].location).unwrap().envelope(),
                envelope(&["a@example.org", "b@example.net"])
            );
            journal.close().await;
        });
    }
}
