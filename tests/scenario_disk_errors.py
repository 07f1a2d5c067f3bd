"""Writes that fail: 451 for what was not stored, a new segment, and 421 from a shard whose disk takes nothing any more.

A limit on the size of files, put on the running process, makes its writes fail as a broken disk does (EFBIG is no full disk).
With the limit in the middle of a segment the batch fails, the segment is sealed and the next one is taken once there is one;
with the limit at nothing the seal fails too, and the shard stops accepting. Whatever was answered 250 is delivered after a
restart, and nothing that was refused.
"""

import resource

from harness import *
from scenario_restart import arrived, relay_with_sink


def start_with_failing_writes(relay):
    """Start it so that a write beyond the limit is an error to the process, and not its end."""
    command = relay.command
    relay.command = lambda *arguments: ["sh", "-c", 'trap "" 25; exec "$@"', "sh", *command(*arguments)]  # SIGXFSZ
    relay.start()
    relay.command = command


def limit_files(relay, octets):
    """No file of the process can be written behind this offset."""
    resource.prlimit(relay.process.pid, resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))


class Client:
    """Submits numbered messages and keeps the answers."""

    def __init__(self, relay):
        self.relay, self.acknowledged, self.refused, self.number = relay, set(), set(), 0
        self.wire = self.mail_reply = None

    def submit(self, size=8000):
        """One message; its last reply."""
        self.number += 1
        name = f"n{self.number}"
        if self.wire is None:
            self.wire = self.relay.raw(timeout=20)
            self.wire.ask("EHLO client.test")
        reply = self.mail_reply = self.wire.ask("MAIL FROM:<a@client.test>")
        if reply.startswith("250"):
            for command in ("RCPT TO:<x@far.test>", "DATA"):
                reply = self.wire.ask(command)
            check(reply.startswith("354"), f"unexpected reply {reply!r}")
            self.wire.send(f"Subject: {name}\r\n\r\n".encode() + (b"x" * 76 + b"\r\n") * (size // 78) + b".\r\n")
            reply = self.wire.reply()
        (self.acknowledged if reply.startswith("250") else self.refused).add(name)
        if reply.startswith("421"):
            self.wire.close()
            self.wire = None
        return reply


def one_failure(box):
    """A write that fails costs its batch: 451, then mail is taken again by itself"""
    relay, sink = relay_with_sink(box, "erring")
    relay.config["spool"]["segment_size"] = "4 MiB"
    relay.config["shards"] = 1
    relay.write_config()
    start_with_failing_writes(relay)
    client = Client(relay)
    for _ in range(5):
        check(client.submit().startswith("250"), "the disk is sound")
    limit_files(relay, 256 << 10)
    replies = []
    wait_until(lambda: not replies.append(client.submit()) and not replies[-1].startswith("250"), "a write to fail", 60, 0)
    # A short write looks like a full disk.
    check(replies[-1][:9] in ("451 4.3.0", "452 4.3.1"), f"the failed batch was answered {replies[-1]!r}")
    # Another segment is taken, up to the same offset, and another: never 421.
    for _ in range(100):
        reply = client.submit()
        check(reply[:3] in ("250", "451", "452"), f"unexpected reply {reply!r}")
    check(relay.is_ready(), "one failure must not make the process unready")
    limit_files(relay, resource.RLIM_INFINITY)
    wait_until(lambda: client.submit().startswith("250"), "mail to be taken again", 20, 0.1)
    for _ in range(5):
        check(client.submit().startswith("250"), "the disk is sound again")
    wait_until(lambda: relay.metrics()["ringmail_spool_failures_total"] >= 1, "the failure to be counted", 20, 0.2)
    finish(relay, sink, client)


def total_failure(box):
    """Where the seal fails too the shard says 421 and is not ready, until a restart"""
    relay, sink = relay_with_sink(box, "failing")
    relay.config["shards"] = 1
    relay.write_config()
    start_with_failing_writes(relay)
    client = Client(relay)
    for _ in range(5):
        check(client.submit().startswith("250"), "the disk is sound")
    limit_files(relay, 0)
    reply = client.submit()
    check_equal(reply[:9], "451 4.3.0", "reply to the message that could not be written")
    check_equal(client.submit()[:9], "421 4.3.0", "reply to MAIL")
    wire = Wire(relay.address, relay.smtp_port, greeting=False)
    greeting = wire.reply()
    check(greeting.startswith("421"), f"a new connection is greeted with {greeting!r}")
    wait_until(lambda: relay.http("/readyz")[0] == 503, "readiness to turn false", 20)
    check("spool" in relay.http("/readyz")[1], "/readyz does not say why")
    finish(relay, sink, client)


def finish(relay, sink, client):
    """After a SIGKILL and a restart: all that was acknowledged, nothing that was refused."""
    relay.kill()
    checked = relay.cli("spool", "check", ok=False)
    check_equal(checked.returncode, 0, f"exit code of the check\n{checked.stdout}{checked.stderr}")
    relay.start()
    wait_until(lambda: set(arrived(sink)) >= client.acknowledged, "what was acknowledged to arrive", 60, 0.1)
    relay.wait_queue_empty()
    check_equal(sorted(set(arrived(sink)) & client.refused), [], "refused messages that arrived")
    relay.stop()


if __name__ == "__main__":
    main(one_failure, total_failure)
