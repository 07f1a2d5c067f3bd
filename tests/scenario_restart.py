"""Stops and crashes under load: every message that was answered 250 is delivered, none that was refused appears.

Senders keep submitting while the process gets SIGTERM (orderly stop: nothing lost, nothing twice) and, a dozen times,
SIGKILL at a random moment (nothing lost; repeats are counted and printed, and stay near what was in flight).
"""

import collections

from harness import *

SENDERS = 8
ROUNDS = 12


class Load:
    """Senders that submit numbered messages until told to stop, and remember the answers."""

    def __init__(self, relay, round_name, senders=SENDERS):
        self.relay, self.round_name = relay, round_name
        self.acknowledged, self.tried = set(), set()
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(senders)]
        for thread in self.threads:
            thread.start()

    def _send(self, sender):
        number = 0
        while not self.stopping.is_set():
            try:
                wire = self.relay.raw(timeout=10)
                if not wire.ask("EHLO load.test").startswith("250"):
                    raise OSError("no EHLO")
                while not self.stopping.is_set():
                    number += 1
                    self._one(wire, f"{self.round_name}-{sender}-{number}")
                wire.ask("QUIT")
                wire.close()
            except OSError:
                time.sleep(0.01)

    def _one(self, wire, name):
        wire.send(b"MAIL FROM:<load@client.test>\r\nRCPT TO:<x@far.test>\r\nDATA\r\n")
        for expected in ("250", "250", "354"):
            if not wire.reply().startswith(expected):
                raise OSError("refused")
        self.tried.add(name)
        wire.send(f"Subject: {name}\r\n\r\n".encode() + (b"x" * 76 + b"\r\n") * random.randrange(1, 60) + b".\r\n")
        if not wire.reply().startswith("250"):
            raise OSError("refused or gone")
        self.acknowledged.add(name)

    def stop(self):
        """End the senders."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(20)


def arrived(sink):
    """How often each numbered message is at the sink."""
    return collections.Counter(message.header("Subject") for message in sink.messages)


def relay_with_sink(box, name):
    """A relay with all its mail routed to a new sink."""
    sink = box.sink()
    relay = box.ringmail(name, {"route": [{"domain": "*", "host": "127.0.0.1", "port": sink.port}],
                                "retry": {"delay_min": "1s", "delay_max": "2s"}, "limits": {"stop_timeout": "5s"}})
    return relay, sink


def settle(relay, sink, acknowledged):
    """Wait until everything acknowledged arrived and the queue is empty; what is missing is the failure.

    A fast disk acknowledges a hundred thousand messages, more than the sink, which shares this process, can take in a
    minute: so the bound is on standing still, and each message is looked at once.
    """
    missing, looked_at = set(acknowledged), 0
    moved = begun = time.monotonic()
    while missing:
        new = sink.messages[looked_at:]
        looked_at += len(new)
        missing -= {message.header("Subject") for message in new}
        now = time.monotonic()
        moved = now if new else moved
        if now - moved > 60 or now - begun > 500:
            raise AssertionError(f"{len(missing)} of {len(acknowledged)} acknowledged messages did not arrive, "
                                 f"such as {sorted(missing)[:5]}; queue: {len(relay.queue())}")
        time.sleep(0.1)
    relay.wait_queue_empty(60)


def orderly_stops(box):
    """SIGTERM under load, three times: nothing lost, nothing twice"""
    relay, sink = relay_with_sink(box, "orderly")
    acknowledged, tried = set(), set()
    for number in range(3):
        relay.start()
        load = Load(relay, f"term{number}")
        time.sleep(random.uniform(0.7, 1.5))
        relay.stop()
        load.stop()
        check(load.acknowledged, "no message was acknowledged before the stop")
        acknowledged |= load.acknowledged
        tried |= load.tried
    relay.start()
    settle(relay, sink, acknowledged)
    counts = arrived(sink)
    check_equal({n: c for n, c in counts.items() if c > 1}, {}, "messages that arrived more than once")
    check_equal(sorted(set(counts) - tried), [], "messages nobody sent")
    unacknowledged = set(counts) - acknowledged
    check(len(unacknowledged) <= 3 * SENDERS, f"{len(unacknowledged)} messages without a 250 were delivered")
    print(f"  note: 3 orderly stops, {len(acknowledged)} acknowledged messages, all arrived once", flush=True)
    relay.stop()


def stop_with_a_dead_far_side(box):
    """SIGTERM with everything still queued: it is all there at the next start, and leaves when the far side is back"""
    port = free_port()
    relay = box.ringmail("dead-far-side", {"route": [{"domain": "*", "host": "127.0.0.1", "port": port}],
                                           "retry": {"delay_min": "1s", "delay_max": "2s"}})
    relay.start()
    load = Load(relay, "queued")
    time.sleep(1)
    load.stop()
    relay.stop()
    relay.start()
    check_equal(len(relay.queue()), len(load.acknowledged), "messages in the queue after the restart")
    sink = box.sink(port=port)
    settle(relay, sink, load.acknowledged)
    check_equal({n: c for n, c in arrived(sink).items() if c > 1}, {}, "messages that arrived more than once")
    relay.stop()


def crashes(box):
    """SIGKILL under load, a dozen times: nothing acknowledged is lost"""
    relay, sink = relay_with_sink(box, "crashing")
    acknowledged, tried = set(), set()
    for number in range(ROUNDS):
        relay.start()
        load = Load(relay, f"kill{number}")
        time.sleep(random.uniform(0.2, 1.2))
        relay.kill()
        load.stop()
        acknowledged |= load.acknowledged
        tried |= load.tried
    check(len(acknowledged) > ROUNDS * 10, f"only {len(acknowledged)} messages were acknowledged in all")
    relay.start()
    settle(relay, sink, acknowledged)
    counts = arrived(sink)
    repeats = sum(count - 1 for count in counts.values())
    print(f"  note: {ROUNDS} SIGKILLs, {len(acknowledged)} acknowledged messages, none lost, {repeats} repeated",
          flush=True)
    check_equal(sorted(set(counts) - tried), [], "messages nobody sent")
    check_equal(sink.anomalies, [], "anomalies at the far side")
    # In flight at a kill: what 20 connections carry, and what the journal had not yet written.
    check(repeats <= ROUNDS * 100, f"{repeats} repeats after {ROUNDS} kills")
    relay.stop()


def kill_under_load(relay, name, times):
    """SIGKILL so many times while messages come in, a start and an empty queue: the acknowledged subjects."""
    acknowledged = set()
    for number in range(times):
        relay.start()
        load = Load(relay, f"{name}{number}")
        time.sleep(random.uniform(0.2, 0.8))
        relay.kill()
        load.stop()
        acknowledged |= load.acknowledged
    relay.start()
    relay.wait_queue_empty(60)
    return acknowledged


def crashes_while_mail_bounces(box):
    """SIGKILL while mail bounces: every sender is told, and none of a failure by two reports"""
    refusing = box.sink(script={"rcpt": ["550 5.1.1 no such user"]})
    senders = box.sink()
    relay = box.ringmail("bouncing", {"route": [
        {"domain": name, "host": "127.0.0.1", "port": sink.port}
        for name, sink in (("far.test", refusing), ("client.test", senders))]})
    acknowledged = kill_under_load(relay, "bounce", 6)
    reports = collections.defaultdict(set)
    for message in senders.messages:
        # A report may arrive twice, as every message may that was on its way; but it is one report.
        about = re.findall(rb"(?m)^Subject: (bounce\S+)\r$", message.data)
        check_equal(len(about), 1, f"messages that a report is about: {message.data[:300]!r}")
        reports[about[0].decode()].add(message.header("Message-ID"))
    check_equal(sorted(acknowledged - set(reports)), [], "failures that nobody was told of")
    doubled = {name: ids for name, ids in reports.items() if len(ids) > 1}
    print(f"  note: 6 SIGKILLs, {len(acknowledged)} acknowledged messages bounced, {len(doubled)} reported twice", flush=True)
    # Only where a checkpoint of the journal was being made at that very moment.
    check(len(doubled) <= 3, f"failures that were reported twice: {doubled}")
    relay.stop()


def crash_with_local_mail(box):
    """SIGKILL while mailboxes are written: every acknowledged message is in the mailbox, none of them broken"""
    relay = box.ringmail("mailboxes", {"mailboxes": {"local_domains": ["localhost", "far.test"]}})
    relay.add_user("x", "pw")
    acknowledged = kill_under_load(relay, "local", 4)
    names = []
    for message in relay.mailbox("x", "pw"):
        match = re.search(rb"(?m)^Subject: (\S+)\r\n\r\n(x{76}\r\n)+\Z", message)
        check(match, f"a broken message in the mailbox: {message[-200:]!r}")
        names.append(match[1].decode())
    check_equal(sorted(acknowledged - set(names)), [], "acknowledged messages that are not in the mailbox")
    print(f"  note: 4 SIGKILLs, {len(acknowledged)} acknowledged messages in the mailbox, "
          f"{len(names) - len(set(names))} repeated", flush=True)
    relay.stop()


def damage_is_told(box):
    """A truncated segment and a zeroed journal: it starts, and the log names each of them"""
    relay = box.ringmail("damaged", {"route": [{"domain": "*", "host": "127.0.0.1", "port": free_port()}]})
    relay.start()
    with relay.smtp() as session:
        session.sendmail("a@client.test", ["x@far.test"], b"Subject: d\r\n\r\nd\r\n")
    relay.kill()
    segments = sorted((relay.data_dir / "spool" / "segments").glob("*.seg"))
    os.truncate(segments[0], 1 << 20)
    for journal in (relay.data_dir / "spool" / "journal").glob("*.journal"):
        journal.write_bytes(bytes(journal.stat().st_size))
    relay.start()
    log = relay.log()
    check(f"segments/{segments[0].name} has {1 << 20} octets where it should have" in log,
          f"the segment is not named:\n{log}")
    check("recovered messages=1 " in log, f"the message before the cut was not kept:\n{log}")
    check("no journal is readable" in log, f"the journal is not named:\n{log}")
    relay.stop()


if __name__ == "__main__":
    main(orderly_stops, stop_with_a_dead_far_side, crashes, crashes_while_mail_bounces, crash_with_local_mail, damage_is_told)
