"""An operator looks at the spool itself: `spool check`, `spool cat` and `spool repair`, beside the running server and without it.

The far side is dead, so that everything stays queued; later octets of a segment are changed on disk, and the check says
where, while the other messages can still be read.
"""

from harness import *


def queued(box):
    """A relay whose far side is dead, with three messages in its queue."""
    relay = box.ringmail("queued", {"route": [{"domain": "*", "host": "127.0.0.1", "port": free_port()}]})
    relay.start()
    texts = ["plain\r\n", ".one dot\r\n..two\r\n.\r\nend\r\n", "x" * 70 + "\r\n"]
    large = ("." + "y" * 75 + "\r\n") * 30000  # over 1 MiB: lies in a file of its own
    for number, body in enumerate([*texts, large]):
        with relay.smtp() as session:
            session.sendmail("alice@client.test", [f"bob{number}@far.test"],
                             make_message(subject=f"number {number}", body=body))
    relay.bodies = [*texts, large]
    wait_until(lambda: len(relay.queue()) == 4, "four queued messages")
    relay.ids = {row["id"]: row for row in relay.queue()}
    return relay


def message_of(relay, queue_id):
    """`spool cat`, as octets."""
    return run(relay.command("spool", "cat", queue_id), binary_output=True).stdout


def beside_the_server(box):
    """While the server runs: the check finds nothing, each message and envelope is printed as it was sent"""
    relay = box.relay = queued(box)
    report = json.loads(relay.cli("spool", "check", "--json").stdout)
    check_equal((report["damaged"], report["findings"]), (False, []), "findings in a sound spool")
    check_equal((report["messages_waiting"], report["large_bodies"]), (4, 1), "messages and large bodies")
    seen = set()
    for queue_id in relay.ids:
        message = message_of(relay, queue_id)
        number = int(re.search(rb"Subject: number (\d)", message)[1])
        seen.add(number)
        check(message.startswith(b"Received: "), f"no trace in front: {message[:80]!r}")
        check_equal(message.split(b"\r\n\r\n", 1)[1], relay.bodies[number].encode(), f"body of message {number}")
        envelope = relay.cli("spool", "cat", "--envelope", queue_id).stdout
        check(re.search(rf"^To: +<bob{number}@far\.test>$", envelope, re.M), f"no recipient in {envelope}")
        check(re.search(r"^From: +<alice@client\.test>$", envelope, re.M), f"no reverse-path in {envelope}")
    check_equal(seen, {0, 1, 2, 3}, "messages that were printed")
    check_equal(len(relay.queue()), 4, "messages in the queue afterwards")


def under_load(box):
    """Checks while mail streams through and segments are recycled: never a false alarm"""
    sink = box.sink()
    relay = box.ringmail("busy", {"route": [{"domain": "*", "host": "127.0.0.1", "port": sink.port}],
                                  "spool": {"segment_size": "1 MiB"}})
    relay.start()
    stopping, sent = threading.Event(), []

    def send():
        while not stopping.is_set():
            with relay.smtp() as session:
                for _ in range(50):
                    session.sendmail("a@client.test", ["b@far.test"], make_message(body="z" * 70 + "\r\n" + "w" * 20000))
                    sent.append(1)
    threads = [threading.Thread(target=send, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    checks = 0
    deadline = time.monotonic() + 6
    while time.monotonic() < deadline:
        done = relay.cli("spool", "check", "--json", ok=False)
        check_equal((done.returncode, json.loads(done.stdout or "{}").get("findings")), (0, []),
                    f"a check under load; {done.stderr}")
        checks += 1
    stopping.set()
    for thread in threads:
        thread.join(30)
    volume = len(sent) * 20000 >> 20
    check(volume > 4, f"only {volume} MiB went through segments of 1 MiB: nothing was recycled")
    print(f"  note: {checks} checks while {volume} MiB of mail went through segments of 1 MiB, no false alarm", flush=True)
    relay.stop()


def what_is_not_there(box):
    """Unknown and impossible queue IDs, no spool at all: their exit codes, and a hint"""
    relay = box.relay
    for arguments, code, text in [(["cat", "ZZZZZZZZZZZZ"], 66, "no message ZZZZZZZZZZZZ"), (["cat", "what?"], 65, "not a queue ID")]:
        done = relay.cli("spool", *arguments, ok=False)
        check_equal((done.returncode, done.stdout), (code, ""), f"exit code and output of {arguments}")
        check(text in done.stderr and "hint:" in done.stderr, f"unhelpful: {done.stderr}")
    empty = box.ringmail("never-started")
    for arguments in (["check"], ["cat", "ZZZZZZZZZZZZ"]):
        done = empty.cli("spool", *arguments, ok=False)
        check_equal(done.returncode, 66, f"exit code of {arguments} without a spool: {done.stderr}")
    check(not empty.data_dir.exists(), "a check made the data folder")


def damage(box):
    """Octets of one record are changed: the check names file, place and verdict, and ends with 65; the others are read"""
    relay = box.relay
    relay.stop()
    check_equal(relay.cli("spool", "check").returncode, 0, "exit code of a check without a server")
    victim = next(i for i in relay.ids if b"number 2" in message_of(relay, i))
    for segment in (relay.data_dir / "spool" / "segments").glob("*.seg"):
        octets = segment.read_bytes()
        at = octets.find(b"Subject: number 2\r\n")
        if at >= 0:
            with open(segment, "r+b") as file:
                file.seek(at)
                file.write(b"Sabotage")
            break
    else:
        raise AssertionError("no segment holds the message")
    done = relay.cli("spool", "check", "--json", ok=False)
    check_equal(done.returncode, 65, f"exit code of a check that finds damage; {done.stdout}")
    findings = json.loads(done.stdout)["findings"]
    check(any(f["file"] == f"segments/{segment.name}" and f["offset"] <= at and f["id"] in (victim, None)
              for f in findings), f"the damage at {segment.name} octet {at} is not among {findings}")
    text = relay.cli("spool", "check", ok=False)
    check(str(segment) in text.stdout and text.returncode == 65, f"no damage in {text.stdout}")
    check_equal(relay.cli("spool", "cat", victim, ok=False).returncode in (65, 66), True, "the damaged one is not printed")
    for queue_id in relay.ids.keys() - {victim}:
        check(message_of(relay, queue_id), f"{queue_id} cannot be read")


def repair(box):
    """The damage is copied, nothing else is touched, and the next start delivers what is whole"""
    relay = box.relay
    folder = relay.data_dir / "spool"
    files = {f: f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != "lock"}
    done = relay.cli("spool", "repair", "--json", ok=False)
    check_equal(done.returncode, 65, f"exit code of a repair that found damage; {done.stdout} {done.stderr}")
    copies = json.loads(done.stdout)["copies"]
    check(copies, "nothing was copied")
    check(any(b"Sabotage" in (folder / copy["to"]).read_bytes() for copy in copies), f"not the damaged octets: {copies}")
    check_equal({f for f, octets in files.items() if not f.exists() or f.read_bytes() != octets}, set(), "changed files")
    again = json.loads(relay.cli("spool", "repair", "--json", ok=False).stdout)["copies"]
    check(all(copy["was_there"] for copy in again), f"copied again: {again}")
    sink = box.sink(port=relay.config["route"][0]["port"])
    relay.start()
    beside = relay.cli("spool", "repair", ok=False)
    check_equal(beside.returncode, 75, f"exit code of a repair beside the server; {beside.stderr}")
    relay.cli("queue", "flush")
    wait_until(lambda: len(sink.messages) >= 3, "the three whole messages to be delivered")
    check_equal(sorted(m.header("Subject") for m in sink.messages), ["number 0", "number 1", "number 3"], "delivered")
    relay.stop()


if __name__ == "__main__":
    main(beside_the_server, under_load, what_is_not_there, damage, repair)
