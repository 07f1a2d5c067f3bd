"""Chunks (RFC 3030) from one end to the other: client, two relays, and a server that takes BDAT.

Text and binary content arrive octet for octet, dots and NULs included; once the server has taken a chunk, commands and content
come in one write; recipients that it refuses have their own outcome; content that it refuses bounces; binary mail to a server
without BINARYMIME bounces with 5.6.3.
"""

from harness import *

CONTENTS = {
    "text": b"Subject: text\r\n\r\n.\r\n..\r\n.a\r\nb\r\n",
    "empty": b"",
    "large": b"Subject: large\r\n\r\n" + b"".join(b".%09d\r\n" % n for n in range(50_000)),
}
BINARY = {
    "binary": b"Subject: binary\r\n\r\n\0\1\2\n.\n\r.\r\r\n.\r\n" + bytes(range(256)) * 40 + b"\r\n..no end of line",
    "large binary": b"Subject: large\r\n\r\n" + random.Random(1).randbytes(3 << 20),
}


class ChunkServer:
    """Takes messages by BDAT; refuses the recipient `nobody` and content with `refuse me` in it."""

    def __init__(self, *extensions):
        self.extensions, self.messages, self.reads, self.port = extensions, [], [], free_port()
        self.loop, started = asyncio.new_event_loop(), threading.Event()

        def serve():
            asyncio.set_event_loop(self.loop)
            self.loop.run_until_complete(asyncio.start_server(self.session, "127.0.0.1", self.port, limit=64 << 20))
            started.set()
            self.loop.run_forever()
        threading.Thread(target=serve, daemon=True).start()
        check(started.wait(10), "the server did not start")

    async def session(self, reader, writer):
        try:
            await self.talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def talk(self, reader, writer):
        def say(text):
            writer.write(text.encode() + b"\r\n")
        say("220 chunks.test")
        mail, rcpts, content = "", [], b""
        while line := await reader.readline():
            verb, argument = line[:4].upper(), line[4:].decode().strip()
            if verb == b"EHLO":
                say("\r\n".join(f"250-{word}" for word in ("chunks.test", *self.extensions)) + "\r\n250 HELP")
            elif verb == b"MAIL":
                mail, rcpts, content = argument, [], b""
                say("250 2.1.0 ok")
            elif verb == b"RCPT" and "nobody" in argument:
                say("550 5.1.1 nobody here")
            elif verb == b"RCPT":
                rcpts.append(argument)
                say("250 2.1.5 ok")
            elif verb == b"BDAT":
                size, *last = argument.split()
                content += await reader.readexactly(int(size))
                if not rcpts:
                    say("503 5.5.1 no recipient")
                elif last and b"refuse me" in content:
                    say("554 5.6.0 refused")
                else:
                    say("250 2.0.0 taken")
                    if last:
                        self.messages.append((mail, rcpts, content))
            elif verb == b"DATA":
                say("554 5.5.1 no DATA here" if "CHUNKING" in self.extensions else "554 5.6.0 nothing is taken here")
            elif verb == b"QUIT":
                say("221 bye")
                return
            else:
                say("250 ok")
            await writer.drain()


def start(box):
    """start two relays in a row, and servers with and without BINARYMIME"""
    box.server = ChunkServer("PIPELINING", "8BITMIME", "CHUNKING", "BINARYMIME")
    box.plain = ChunkServer("PIPELINING", "8BITMIME", "CHUNKING")
    box.inner = box.ringmail("inner", {
        "retry": {"delay_min": "60s"},
        "delivery": {"connections_max": 1},
        "route": [{"domain": "far.test", "host": "127.0.0.1", "port": box.server.port},
                  {"domain": "plain.test", "host": "127.0.0.1", "port": box.plain.port}]})
    box.inner.start()
    box.relay = box.ringmail("outer", {
        "retry": {"delay_min": "60s"},
        "route": [{"domain": ".test", "host": "127.0.0.1", "port": box.inner.smtp_port}]})
    box.relay.config["mailboxes"] = {"local_domains": ["localhost"]}
    box.inner.config["route"].append({"domain": "localhost", "host": "127.0.0.1", "port": box.relay.smtp_port})
    box.inner.config["mailboxes"] = {"local_domains": ["inner.test"]}
    for relay in (box.relay, box.inner):
        relay.write_config()
    box.inner.stop()
    box.inner.start()
    box.relay.add_user("alice", "pw")
    box.relay.start()


def send(box, content, *recipients, binary=False):
    """Send content in chunks of random sizes."""
    wire = box.relay.raw()
    ehlo = wire.ask("EHLO client.test")
    check("CHUNKING" in ehlo and "BINARYMIME" in ehlo, f"reply to EHLO: {ehlo}")
    check(wire.ask("MAIL FROM:<alice@localhost>" + (" BODY=BINARYMIME" if binary else "")).startswith("250"), "MAIL")
    for recipient in recipients:
        check(wire.ask(f"RCPT TO:<{recipient}>").startswith("250"), f"RCPT for {recipient}")
    half = len(content) // 3
    wire.send(b"BDAT %d\r\n" % half + content[:half])
    reply = wire.reply()
    check(reply.startswith("250"), f"reply to the first chunk: {reply}")
    wire.send(b"BDAT %d LAST\r\n" % (len(content) - half) + content[half:])
    reply = wire.reply()
    check(reply.startswith("250 2.0.0"), f"reply to the last chunk: {reply}")
    wire.ask("QUIT")


def octet_for_octet(box):
    """content of every kind arrives through two relays octet for octet"""
    sent = [(name, content, name in BINARY) for _ in range(3) for name, content in {**CONTENTS, **BINARY}.items()]
    for name, content, binary in sent:
        send(box, content, "user@far.test", binary=binary)
    wait_until(lambda: len(box.server.messages) >= len(sent),
               lambda: f"{len(sent)} messages ({len(box.server.messages)} came); log:\n{box.inner.log_tail()}", 60)
    check_equal(len(box.server.messages), len(sent), "messages at the server")
    for name, content, binary in sent:
        same = [message for message in box.server.messages if message[2].endswith(content) and
                without_trace(message[2]) == content]
        check(same, f"{name} did not arrive as it was sent")
        check_equal(["BODY=BINARYMIME" in mail for mail, _, _ in same], [binary] * len(same), f"BODY of {name}")


def outcomes(box):
    """refused recipients and refused content have their outcomes, and the session goes on"""
    send(box, b"Subject: some\r\n\r\nx\r\n", "user@far.test", "nobody@far.test")
    send(box, b"Subject: none\r\n\r\nMAIL FROM:<x@x.test>\r\nRCPT TO:<y@far.test>\r\nBDAT 1 LAST\r\nx", "nobody@far.test")
    send(box, b"Subject: refused\r\n\r\nrefuse me\r\n", "user@far.test")
    send(box, b"Subject: after\r\n\r\nx\r\n", "user@far.test")
    wait_until(lambda: len(box.inner.events("bounced")) >= 3, lambda: f"three bounces; log:\n{box.inner.log_tail()}")
    wait_until(lambda: [m for m in box.server.messages if b"Subject: after" in m[2]], "the last message")
    replies = sorted(event["reply"] for event in box.inner.events("bounced"))
    check_equal(replies, ["550 5.1.1 nobody here", "550 5.1.1 nobody here", "554 5.6.0 refused"], "refusals")
    subjects = [re.search(rb"Subject: (\w+)", m[2])[1] for m in box.server.messages if b"Subject" in m[2]]
    check_equal((subjects.count(b"some"), subjects.count(b"none"), subjects.count(b"after")), (1, 0, 1), "messages taken")


def binary_needs_binarymime(box):
    """binary mail to a server without BINARYMIME bounces with 5.6.3, also where it comes back to a mailbox"""
    send(box, BINARY["binary"], "user@plain.test", binary=True)
    event = box.inner.wait_event("bounced", to="<user@plain.test>")
    check(event["reply"].startswith("554 5.6.3 "), f"reply: {event['reply']}")
    check_equal(box.plain.messages, [], "messages at the server without BINARYMIME")
    texts = box.relay.wait_mail("alice", "pw", 4)
    check(any(b"Status: 5.6.3" in text for text in texts), f"a report with status 5.6.3 in {texts}")
    box.relay.wait_queue_empty()
    box.inner.wait_queue_empty()
    box.relay.stop()
    box.inner.stop()


main(start, octet_for_octet, outcomes, binary_needs_binarymime)
