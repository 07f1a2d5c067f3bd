"""kill -9 while mail is delivered and while UPDATE removes it.

Senders, readers and kills at seeded random moments. Afterwards: every message that got its 250 is in the mailbox or was
retrieved whole and deleted in a session whose QUIT was answered (or not answered, then it may be either); a message whose
deletion was answered never comes back; none is half; the mailbox can be opened at once, because no lock outlives the
process; and nothing is left in `tmp` that a delivery does not clean up.
"""

import zlib

from harness import *

PASSWORD = "secret"
SEED = int(os.environ.get("SEED") or time.time_ns() % 1_000_000)
ROUNDS = int(os.environ.get("ROUNDS") or 8)


def start(box):
    """start and say the seed"""
    print(f"  seed {SEED}")
    box.random = random.Random(SEED)
    box.relay = box.ringmail()
    box.relay.add_user("bob", PASSWORD)
    box.relay.start()
    box.accepted, box.deleted, box.perhaps_deleted = {}, set(), set()
    box.next = 0


def body_of(number, random_lines):
    text = f"number {number}\r\n" + "".join(f".{number} line {line}\r\n" for line in range(random_lines))
    return f"{text}checksum {zlib.crc32(text.encode())}\r\n"


def read_number(message):
    """The number of a message, which must be whole."""
    body = message.split(b"\r\n\r\n", 1)[1]
    text, end = body.rsplit(b"checksum ", 1)
    check(end.strip().isdigit() and int(end) == zlib.crc32(text), f"half a message: {message[-80:]!r}")
    return int(text.split(b"\r\n")[0].split()[1])


def send(box, stop):
    while not stop.is_set():
        try:
            with box.relay.smtp(timeout=5) as client:
                while not stop.is_set():
                    number = box.next
                    box.next += 1
                    content = make_message(recipient="bob@localhost", body=body_of(number, number % 50))
                    client.sendmail("a@client.test", ["bob@localhost"], content)
                    box.accepted[number] = True
        except (OSError, smtplib.SMTPException):
            time.sleep(0.02)


def read_and_delete(box, stop):
    while not stop.is_set():
        marked = set()
        try:
            session = box.relay.pop3("bob", PASSWORD, timeout=5)
            count = session.stat()[0]
            for number in range(1, min(count, 30) + 1, 2):
                message = retrieve(session, number)
                session.dele(number)
                marked.add(read_number(message))
        except (OSError, EOFError, poplib.error_proto):
            time.sleep(0.02)
            continue  # no QUIT: nothing may be gone
        box.perhaps_deleted |= marked
        try:
            session.quit()
            box.deleted |= marked
        except (OSError, EOFError, poplib.error_proto):
            time.sleep(0.02)


def kill_under_load(box):
    """kill it again and again while mail comes and goes"""
    for round_number in range(ROUNDS):
        stop = threading.Event()
        failures = []

        def guarded(work):
            try:
                work(box, stop)
            except Exception as error:
                failures.append(describe(error))
        threads = [threading.Thread(target=guarded, args=(work,)) for work in (send, send, read_and_delete)]
        for thread in threads:
            thread.start()
        time.sleep(0.2 + box.random.random())
        box.relay.kill()
        stop.set()
        for thread in threads:
            thread.join(30)
            check(not thread.is_alive(), "a client hangs")
        check(not failures, f"round {round_number}: {failures}")
        box.relay.start()
        # No stray lock: the first login after the start succeeds.
        box.relay.pop3("bob", PASSWORD).quit()
    check(len(box.deleted) > 0 and len(box.accepted) > 20, f"{len(box.accepted)} accepted, {len(box.deleted)} deleted")


def account(box):
    """every acknowledged message is there once, or was deleted; what was deleted stays so"""
    box.relay.wait_queue_empty(60)
    numbers = [read_number(message) for message in box.relay.mailbox("bob", PASSWORD)]
    missing = set(box.accepted) - set(numbers) - box.perhaps_deleted
    check(not missing, f"lost: {sorted(missing)[:20]}")
    back = set(numbers) & box.deleted
    check(not back, f"deleted, and there again: {sorted(back)[:20]}")
    check_equal(len(numbers), len(set(numbers)), "messages and different ones")
    session = box.relay.pop3("bob", PASSWORD)
    for line in session.list()[1]:
        number, size = map(int, line.split())
        check_equal(len(retrieve(session, number)), size, f"size of message {number}")
    session.quit()
    print(f"  note: {len(box.accepted)} accepted, {len(box.deleted)} deleted, {len(numbers)} left")


def stop(box):
    """a stop leaves nothing behind"""
    box.relay.stop()


if __name__ == "__main__":
    main(start, kill_under_load, account, stop)
