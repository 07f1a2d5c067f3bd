"""Hostile and broken next hops: each has a defined outcome, costs nothing but its own mail, and nothing is lost.

Endless replies, replies of 10 MB in one line, NULs and escapes, nonsense, 421 and dropped connections at every step, one octet
at a time, silence, wrong and premature codes, more and fewer replies than commands, servers that offer PIPELINING, CHUNKING or
STARTTLS and do not mean it, servers that do not read. Meanwhile mail to a good host flows, memory stays bounded, and when the
hosts have come to reason every message arrives: once, or twice where the reply to a whole message was lost.
"""

import email
import email.policy

from harness import *

STEPS = ("greeting", "ehlo", "mail", "rcpt", "data", "end")
TIMED_OUT, LOST = "451 4.4.2 timed out", "451 4.4.2 connection lost"


class Host:
    """One far side; its manner is a method of this class until it is healed, and good afterwards."""

    def __init__(self, manner, *arguments):
        self.manner, self.arguments, self.healed, self.messages, self.sessions = manner, arguments, False, [], 0
        self.extensions = ["PIPELINING", "8BITMIME"]

    async def serve(self, reader, writer):
        self.sessions += 1
        try:
            manner = Host.good if self.healed else self.manner
            await manner(self, reader, writer, *(() if self.healed else self.arguments))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def say(self, writer, text):
        writer.write(text if isinstance(text, bytes) else text.encode() + b"\r\n")

    async def good(self, reader, writer, at=None, act=None):
        """A sound server; `act` takes the place of the reply at one step and returns whether to go on."""
        async def reply(step, usual):
            if step == at:
                return await act(self, reader, writer)
            self.say(writer, usual)
            await writer.drain()
            return True
        if not await reply("greeting", "220 host"):
            return
        rcpts, mail = [], None
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb in (b"EHLO", b"HELO"):
                going = await reply("ehlo", "\r\n".join(f"250-{word}" for word in ["host", *self.extensions]) + "\r\n250 OK")
            elif verb == b"MAIL":
                mail, rcpts = line, []
                going = await reply("mail", "250 2.1.0 ok")
            elif verb == b"RCPT":
                rcpts.append(line.decode().strip())
                going = await reply("rcpt", "250 2.1.5 ok")
            elif verb == b"DATA":
                if not await reply("data", "354 go"):
                    return
                content = await reader.readuntil(b"\r\n.\r\n")
                self.messages.append((rcpts, content))
                going = await reply("end", "250 2.0.0 stored")
            elif verb == b"QUIT":
                self.say(writer, "221 bye")
                return
            else:
                self.say(writer, "250 ok" if verb == b"RSET" else "502 5.5.1 not here")
                await writer.drain()
                going = True
            if not going:
                return

    # ------------------------------------------------------------------------------------------ manners

    async def says(self, reader, writer, octets):
        """These octets instead of a greeting; then whatever comes is read."""
        self.say(writer, octets)
        await writer.drain()
        while await reader.read(65536):
            pass

    async def floods(self, reader, writer, piece, at_most):
        """The piece again and again, up to so many octets."""
        sent = 0
        while sent < at_most:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
        while await reader.read(65536):
            pass

    async def drips(self, reader, writer, step, text):
        """One octet every 0.2 s at a step, for ever."""
        async def act(self, reader, writer):
            for octet in (text.encode() + b" " * 10_000):
                writer.write(bytes([octet]))
                await writer.drain()
                await asyncio.sleep(0.2)
        await self.good(reader, writer, step, act)

    async def replies(self, reader, writer, step, text, goes_on=True):
        """This reply at a step, always."""
        async def act(self, reader, writer):
            self.say(writer, text)
            await writer.drain()
            return goes_on
        await self.good(reader, writer, step, act)

    async def drops(self, reader, writer, step):
        """The connection ends at a step."""
        async def act(self, reader, writer):
            return False
        await self.good(reader, writer, step, act)

    async def resets(self, reader, writer, step):
        """The connection is reset at a step."""
        async def act(self, reader, writer):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
            return False
        await self.good(reader, writer, step, act)

    async def hangs(self, reader, writer, step):
        """Silence at a step."""
        async def act(self, reader, writer):
            while await reader.read(65536):
                pass
            return False
        await self.good(reader, writer, step, act)

    async def reads_nothing(self, reader, writer):
        """354, and then the content is not read."""
        async def act(self, reader, writer):
            self.say(writer, "354 go")
            await writer.drain()
            await asyncio.sleep(120)
            return False
        await self.good(reader, writer, "data", act)

    async def lies_about_chunking(self, reader, writer):
        """Offers CHUNKING and knows no BDAT: everything else works."""
        self.extensions = ["PIPELINING", "CHUNKING"]
        await self.good(reader, writer)

    async def lies_about_tls(self, reader, writer, after):
        """Offers STARTTLS, agrees, and then speaks plain text."""
        self.extensions = ["PIPELINING", "STARTTLS"]

        async def talk():
            while line := await reader.readline():
                if line[:4].upper() == b"STAR":
                    writer.write(after)
                    await writer.drain()
                    await asyncio.sleep(0.2)
                    return
                self.say(writer, "250-host\r\n250-PIPELINING\r\n250 STARTTLS")
                await writer.drain()
        self.lied = getattr(self, "lied", 0) + 1
        if self.lied % 2:  # the next session is the one without TLS
            self.say(writer, "220 host")
            await talk()
        else:
            await self.good(reader, writer)


def at_every_step(name, manner, expected, *arguments):
    """The same manner at each step."""
    return {f"{name}-{step}": (Host(manner, step, *arguments), expected) for step in STEPS}


FLOOD = 40 << 20
LONG_REFUSAL = ("550-5.1.1 " + "y" * 500 + "\r\n") * 99 + "550 5.1.1 end"
HOSTS = {
    "silent": (Host(Host.hangs, "greeting"), ("deferred", TIMED_OUT)),
    "endless-lines": (Host(Host.floods, b"220-and on\r\n", FLOOD), ("deferred", "451 4.5.0 reply with too many lines")),
    "endless-line": (Host(Host.floods, b"2" * 65536, FLOOD), ("deferred", "451 4.5.0 reply too long")),
    "ten-megabytes": (Host(Host.says, b"220 " + b"x" * (10 << 20) + b"\r\n"), ("deferred", "451 4.5.0 reply too long")),
    "nothing-but-nul": (Host(Host.floods, b"\0" * 65536, FLOOD), ("deferred", "451 4.5.0")),
    "nul": (Host(Host.replies, "end", b"250 2.0.0 a\0b\x1b[31mc\x07\r\n"), ("delivered", "250 2.0.0 a?b?[31mc?")),
    "other-protocol": (Host(Host.says, "HTTP/1.1 400 Bad Request"), ("deferred", "451 4.5.0 malformed reply")),
    "code-999": (Host(Host.says, "999 hello"), ("deferred", "451 4.5.0 malformed reply")),
    "code-199": (Host(Host.says, "199 hello"), ("deferred", "451 4.5.0 malformed reply")),
    "mixed-codes": (Host(Host.replies, "end", "250-yes\r\n550 no"), ("deferred", "451 4.5.0 reply with different codes")),
    "two-greetings": (Host(Host.says, "220 a\r\n220 b"), ("deferred", "451 4.5.0")),
    "354-to-mail": (Host(Host.replies, "mail", "354 go"), ("deferred", "451 4.5.0 unexpected reply")),
    "250-to-data": (Host(Host.replies, "data", "250 ok"), ("deferred", "451 4.5.0 unexpected reply")),
    "354-to-end": (Host(Host.replies, "end", "354 more"), ("deferred", "451 4.5.0 unexpected reply")),
    "too-many-replies": (Host(Host.replies, "rcpt", "250 ok\r\n250 ok\r\n250 ok"), ("deferred", "451 4.5.0 unexpected reply")),
    "premature": (Host(Host.replies, "data", "354 go\r\n250 2.0.0 stored"), ("deferred", "451 4.5.0 unexpected reply")),
    "354-to-nobody": (Host(Host.replies, "rcpt", "550 5.1.1 who"), ("bounced", "550 5.1.1 who")),
    "refused-greeting": (Host(Host.says, "554 5.7.1 go away"), ("deferred", "554 5.7.1 go away")),
    "takes-no-mail": (Host(Host.says, "521 5.3.2 no mail here"), ("bounced", "521 5.3.2 no mail here")),
    "550-of-100-lines": (Host(Host.replies, "rcpt", LONG_REFUSAL), ("bounced", "550 5.1.1 y")),
    "forged-lines": (Host(Host.replies, "rcpt", b"550 5.1.1 a\rBcc: b\x00\x0bSubject: c\x85\xe2\x80\xa8d\r\n"),
                     ("bounced", "550 5.1.1 a?Bcc: b??Subject: c")),
    "chunking": (Host(Host.lies_about_chunking), ("delivered", "250 2.0.0 stored")),
    "tls-injection": (Host(Host.lies_about_tls, b"220 go\r\n250 injected\r\n"), ("delivered", "250 2.0.0 stored")),
    "tls-nonsense": (Host(Host.lies_about_tls, b"220 go\r\n"), ("delivered", "250 2.0.0 stored")),
    "reads-nothing": (Host(Host.reads_nothing), ("deferred", TIMED_OUT)),
    "drips-greeting": (Host(Host.drips, "greeting", "220 hello"), ("deferred", TIMED_OUT)),
    "drips-end": (Host(Host.drips, "end", "250 ok"), ("deferred", TIMED_OUT)),
    **at_every_step("421", Host.replies, ("deferred", "421 4.3.2 closing"), "421 4.3.2 closing", False),
    **at_every_step("drop", Host.drops, ("deferred", LOST)),
    # A reset may be seen before the connection is.
    **at_every_step("reset", Host.resets, ("deferred", (LOST, "451 4.4.1 cannot connect"))),
    **at_every_step("hang", Host.hangs, ("deferred", TIMED_OUT)),
}
# The host had the message and its reply did not come through: it may come again (RFC 5321 section 4.5.3.2.6).
AMBIGUOUS = {name for name, (_, (outcome, _)) in HOSTS.items() if outcome == "deferred"
             and name in ("drips-end", "mixed-codes", "354-to-end", *(f"{word}-end" for word in ("421", "drop", "reset", "hang")))}
LARGE = {"reads-nothing"}


class Zoo:
    """All hosts, each on an address of its own, in one thread."""

    def __init__(self):
        self.port, self.loop, started = free_port("127.88.0.1"), asyncio.new_event_loop(), threading.Event()
        self.good = Host(Host.good)
        self.addresses = {name: f"127.88.{number // 200}.{number % 200 + 2}" for number, name in enumerate(HOSTS)}
        self.addresses["good"] = "127.88.0.1"

        async def begin():
            for name, address in self.addresses.items():
                host = self.good if name == "good" else HOSTS[name][0]
                await asyncio.start_server(host.serve, address, self.port, limit=64 << 20)
            started.set()

        def serve():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(begin())
            self.loop.run_forever()
        threading.Thread(target=serve, daemon=True).start()
        check(started.wait(20), "the hosts did not start")


def start(box):
    """start the hosts and the relay, with short time limits"""
    box.zoo = Zoo()
    short = dict.fromkeys(("greeting", "hello", "starttls", "auth", "mail", "rcpt", "data", "block", "data_end"), "5s")
    box.relay = box.ringmail("relay", {
        "route": [{"domain": f"{name}.test", "host": address, "port": box.zoo.port} for name, address in box.zoo.addresses.items()],
        "retry": {"delay_min": "600s", "delay_max": "600s"},
        "timeouts": {**short, "quit": "1s"},
        "delivery": {"connect_timeout": "5s"},
    })
    box.relay.add_user("alice", "pw")
    box.relay.start()


def resident_kib(box):
    """Resident memory of the relay."""
    status = Path(f"/proc/{box.relay.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def send(box, name, body="A line.\r\n"):
    """One message to a host."""
    with box.relay.smtp(60) as client:
        client.sendmail("alice@localhost", [f"user@{name}.test"],
                        make_message("alice@localhost", f"user@{name}.test", name, body))


def outcomes(box):
    """each host has its outcome, while mail to the good one flows and memory stays bounded"""
    for _ in range(20):
        send(box, "good")
    before = resident_kib(box)
    for name in HOSTS:
        send(box, name, "A line of a large message.\r\n" * 300_000 if name in LARGE else "A line.\r\n")
    for _ in range(200):
        send(box, "good")
    wait_until(lambda: len(box.zoo.good.messages) >= 220, lambda: f"220 messages at the good host ({len(box.zoo.good.messages)})")
    wrong = []
    for name, (host, (outcome, reply)) in HOSTS.items():
        to = f"<user@{name}.test>"
        seen = wait_until(lambda: [event for kind in ("delivered", "deferred", "bounced") for event in box.relay.events(kind, to=to)],
                          lambda: f"an outcome of {name}; sessions: {host.sessions}; log:\n{box.relay.log_tail(5)}", 40, 0.1)
        if len(seen) != 1 or seen[0]["event"] != outcome or not seen[0]["reply"].startswith(reply):
            wrong.append(f"{name}: expected {outcome} {reply!r}, got {[(e['event'], e['reply'][:200]) for e in seen]}")
    check(not wrong, "outcomes:\n" + "\n".join(wrong))
    after = resident_kib(box)
    print(f"  {len(HOSTS)} hosts; resident memory {before} KiB before, {after} KiB after")
    check(after < before + 60_000, f"resident memory grew from {before} KiB to {after} KiB")
    check(all(character >= " " or character == "\n" for character in box.relay.log()), "a control character in the log")


def reports(box):
    """reports hold what hosts said, bounded and without what they wanted to slip in"""
    bounced = [name for name, (_, (outcome, _)) in HOSTS.items() if outcome == "bounced"]
    texts = box.relay.wait_mail("alice", "pw", len(bounced))
    check_equal(len(texts), len(bounced), "reports")
    for text in texts:
        check(len(text) < 16_000, f"a report of {len(text)} octets")
        report = email.message_from_bytes(text, policy=email.policy.default)
        check_equal((report["Subject"], report["Bcc"]), ("Undelivered mail returned to sender", None), "header of a report")
        fields = report.get_payload()[1].get_payload()
        check_equal(len(fields), 2, "groups of fields in the status")
        check(all(octet in b"\r\n\t" or 32 <= octet < 127 for octet in text), f"an odd octet in {text!r}")


def heal(box):
    """when the hosts have come to reason everything arrives, and nothing more often than it may"""
    waiting = {name for name, (_, (outcome, _)) in HOSTS.items() if outcome == "deferred"}
    check_equal(len(box.relay.queue()), len(waiting), "messages in the queue")
    before = {name: len(host.messages) for name, (host, _) in HOSTS.items()}
    for name, (host, _) in HOSTS.items():
        host.healed = True
    deadline = time.monotonic() + 60
    while box.relay.queue() and time.monotonic() < deadline:
        box.relay.cli("queue", "flush")
        time.sleep(1)
    check_equal([row["id"] for row in box.relay.queue()], [], "messages left in the queue")
    for name in waiting:
        host = HOSTS[name][0]
        check_equal(len(host.messages) - before[name], 1, f"messages that {name} took after it was healed")
        check(before[name] == 0 or name in AMBIGUOUS, f"{name} had {before[name]} messages before")
        check(b"Subject: " + name.encode() in host.messages[-1][1], f"{name} has its message")
    check_equal(len(box.zoo.good.messages), 220, "messages at the good host")
    box.relay.stop()


main(start, outcomes, reports, heal)
