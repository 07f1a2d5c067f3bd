"""Strangers who mean no good, or do it wrong: whatever bytes come, a defined answer, and nothing that was not accepted.

Unknown commands, over-long lines, commands out of order, garbage, NULs, every way to smuggle a second message into
one (bare CR, bare LF around the dot), and a connection that breaks after every single octet of a transaction. All the
while the process stays up and serves others.
"""

from harness import *


def start(box):
    """start a relay with a fixed route to a sink"""
    box.sink_ = box.sink()
    box.relay = box.ringmail(config={
        "route": [{"domain": "*", "host": "127.0.0.1", "port": box.sink_.port}],
        "limits": {"errors_max": 10, "message_size_max": 100000, "recipients_max": 50, "command_timeout": "4s",
                   "data_timeout": "4s"},
    })
    box.relay.add_user("alice", "pw")
    box.relay.start()
    box.accepted = 0


def hello(box):
    """A session with EHLO done."""
    wire = box.relay.raw()
    check(wire.greeting.startswith("220 "), f"greeting {wire.greeting!r}")
    check(wire.ask("EHLO evil.test").startswith("250"), "EHLO")
    return wire


def begin(box, sender="e@evil.test", recipient="v@victim.test"):
    """A session up to the 354."""
    wire = hello(box)
    check(wire.ask(f"MAIL FROM:<{sender}>").startswith("250 2.1.0"), "MAIL")
    check(wire.ask(f"RCPT TO:<{recipient}>").startswith("250 2.1.5"), "RCPT")
    check(wire.ask("DATA").startswith("354"), "DATA")
    return wire


def expect(wire, command, pattern):
    """One command whose reply must match."""
    reply = wire.ask(command)
    check(re.match(pattern, reply), f"reply to {command[:60]!r}: expected {pattern!r}, got {reply!r}")


def still_serves(box):
    """Another client sends a message end to end."""
    with box.relay.smtp() as client:
        client.sendmail("a@client.test", ["b@ok.test"], make_message(subject="still serves"))
    box.accepted += 1
    box.sink_.wait(box.accepted)
    check(box.relay.is_alive(), "the process is alive")


def extensions(box):
    """EHLO announces what works"""
    wire = box.relay.raw()
    lines = [line[4:] for line in wire.ask("EHLO client.test").split("\n")]
    for keyword in ("PIPELINING", "SIZE 100000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"):
        check(keyword in lines, f"{keyword} in {lines}")
    check(any(line.startswith("AUTH ") and {"PLAIN", "LOGIN"} <= set(line.split()[1:]) for line in lines),
          f"AUTH PLAIN LOGIN in {lines}")
    check("STARTTLS" not in lines, "STARTTLS without a certificate")
    expect(wire, "HELP", r"214 ")
    expect(wire, "NOOP", r"250 2\.0\.0")
    expect(wire, "VRFY alice", r"25[02] ")
    expect(wire, "RSET", r"250 2\.0\.0")
    expect(wire, "QUIT", r"221 2\.0\.0")
    check(wire.ended(), "the connection closes after QUIT")


def bad_sequence(box):
    """commands out of order get 503 5.5.1, unknown ones 500 5.5.2, bad arguments 501, and the session goes on"""
    wire = box.relay.raw()
    expect(wire, "MAIL FROM:<a@b.test>", r"503 5\.5\.1")
    expect(wire, "RCPT TO:<a@b.test>", r"503 5\.5\.1")
    wire.close()
    wire = hello(box)
    expect(wire, "DATA", r"503 5\.5\.1")
    expect(wire, "RCPT TO:<a@b.test>", r"503 5\.5\.1")
    expect(wire, "MAIL FROM:<a@b.test>", r"250 2\.1\.0")
    expect(wire, "MAIL FROM:<a@b.test>", r"503 5\.5\.1")
    expect(wire, "DATA", r"(503 5\.5\.1|554 5\.5\.1)")
    expect(wire, "BOGUS", r"50[02] 5\.5\.[12]")
    expect(wire, "RSET", r"250")
    expect(wire, "MAIL FROM:<a@b.test> NONSENSE=1", r"555 5\.5\.4")
    expect(wire, "MAIL FROM:<a@b.test> SIZE=100001", r"552 5\.3\.4")
    wire.close()
    for line in ("MAIL FROM:a@b.test", "MAIL FROM:<a@b", "MAIL FROM:<a b@c.test>", "MAIL TO:<a@b.test>",
                 "MAIL FROM:<a@-b.test>", "MAIL FROM:<" + "a" * 65 + "@b.test>", "MAIL FROM:<a@" + "b." * 127 + "test>",
                 "MAIL FROM:<a@b.test> SIZE=x", "MAIL FROM:<\u00fc@b.test>"):
        wire = hello(box)
        expect(wire, line, r"5(01|53|50|55) 5\.[1567]\.\d")
        expect(wire, "NOOP", r"250")
        wire.close()
    wire = box.relay.raw()
    expect(wire, "EHLO", r"501 5\.5\.[24]")
    wire.close()


def unknown_commands_end_a_session(box):
    """after too many errors the session ends with 421"""
    wire = hello(box)
    replies = []
    for _ in range(30):
        replies.append(wire.ask("XYZZY"))
        if not replies[-1] or replies[-1].startswith("421"):
            break
    check(replies[-1].startswith("421 4.7.0"), f"last reply {replies[-1]!r} after {len(replies)} errors")
    check(8 <= len(replies) <= 12, f"{len(replies)} errors were taken, 10 are allowed")
    check(wire.ended(), "the connection closes after 421")


def long_lines(box):
    """over-long command lines get 500 5.5.2 (or the session ends), and never grow memory"""
    wire = hello(box)
    expect(wire, "NOOP " + "x" * 600, r"(500 5\.5\.[26]|250)")
    expect(wire, "MAIL FROM:<" + "x" * 3000 + "@b.test>", r"50[01] 5\.")
    expect(wire, "NOOP", r"250")
    wire.close()
    before = memory(box)
    wire = hello(box)
    try:
        for _ in range(600):
            wire.send(b"x" * 65536)
    except OSError:
        pass  # it hung up, which is an answer
    check(memory(box) - before < 20 << 20, f"{(memory(box) - before) >> 20} MiB more after 40 MB without a line end")
    wire.close()


def memory(box):
    """Resident bytes of the process."""
    status = Path(f"/proc/{box.relay.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10


def garbage(box):
    """garbage, NULs and a TLS hello are answered or dropped"""
    rng = random.Random(1)
    samples = [bytes(rng.randrange(256) for _ in range(2000)) for _ in range(20)]
    samples += [b"\0" * 500 + b"\r\n", b"EHLO a\0b\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\1" * 512,
                b"\r\n" * 500, b"\n" * 500, b"\r" * 500, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xff\xf4\xff\xfd\x06",
                b"MAIL FROM:<a@b.test>\nRCPT TO:<a@b.test>\nDATA\n", b"EHLO x\nMAIL FROM:<a@b.test>\r\n"]
    for sample in samples:
        wire = box.relay.raw()
        wire.send(sample)
        try:
            wire.send(b"\r\nQUIT\r\n")
        except OSError:
            pass
        for line in wire.replies(0.15):
            check(re.match(r"[245]\d\d[ -]", line), f"not a reply line: {line!r} after {sample[:40]!r}")
        wire.close()
    still_serves(box)


BARE = {"bare LF": b"one\ntwo\r\n", "bare CR": b"one\rtwo\r\n", "bare CR at the end": b"one\r\r\n",
        "bare LF first": b"\none\r\n", "LF CR": b"one\n\rtwo\r\n", "CR CR LF": b"one\r\r\ntwo\r\n",
        "NUL CR": b"one\0\rtwo\r\n"}


def bare_line_ends(box):
    """a bare CR or LF in the data is refused with 550 5.6.11 after the true end-of-data"""
    for name, data in BARE.items():
        wire = begin(box)
        wire.send(b"Subject: x\r\n\r\n" + data + b".\r\n")
        reply = wire.reply()
        check(reply.startswith("550 5.6.11"), f"{name}: {reply!r}")
        expect(wire, "NOOP", r"250")
        wire.close()
    check_equal(len(box.sink_.messages), box.accepted, "messages that left")


SMUGGLED = b"MAIL FROM:<s@smuggled.test>\r\nRCPT TO:<s@smuggled.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\nQUIT\r\n"
FALSE_ENDS = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\r\r\n.\r\r\n", b"\r\n\0.\r\n",
              b"\r\n.\0\r\n", b"\n\n.\r\n", b"\r\n.\r\r\n", b"\n.\r", b"\r.\n", b"\r\n..\r\n", b"\r\n. \r\n",
              b"\n\r.\n\r", b"\r\n.\n\r\n", b"\r\r.\r\r", b"\x0b.\x0b", b"\xe2\x80\xa8.\xe2\x80\xa8", b"\x85.\x85"]


def smuggling(box):
    """no false end-of-data ends a message: at most one leaves for each that was accepted, and never a smuggled one"""
    before = len(box.sink_.messages)
    accepted = 0
    for false_end in FALSE_ENDS:
        for split in (0, 1, 2, 3):
            wire = begin(box)
            head = b"Subject: outer\r\n\r\ntext"
            stream = head + false_end + SMUGGLED + b"\r\n.\r\n"
            cut = len(head) + split if split else len(stream)
            wire.send(stream[:cut])
            if split:
                time.sleep(0.005)
                wire.send(stream[cut:])
            replies = wire.replies(0.15)
            wire.close()
            # SMUGGLED itself ends by a true CRLF.CRLF, so one reply to end-of-data comes; then its QUIT is a command.
            finals = [r for r in replies if r.startswith("250 2.0.0")]
            check(len(finals) <= 1, f"{false_end!r}: {len(finals)} messages accepted in one: {replies}")
            check(any(r.startswith(("250 2.0.0", "5")) for r in replies), f"{false_end!r}: replies {replies}")
            accepted += len(finals)
    box.accepted += accepted
    still_serves(box)
    box.relay.wait_queue_empty()
    check_equal(len(box.sink_.messages), before + accepted + 1, "messages that left beside those accepted")
    for message in box.sink_.messages[before:]:
        check(message.sender != "s@smuggled.test", "a smuggled message left")
    check_equal(box.sink_.anomalies, [], "anomalies at the far side")


def envelope_injection(box):
    """no line end gets from an envelope, an EHLO argument or a reply into what ringmail sends or logs"""
    wire = box.relay.raw()
    for line in (b"EHLO a\rb.test", b"EHLO a\nMAIL FROM:<x@y.test>", b"EHLO [127.0.0.1]\0"):
        wire.ask(line)
        wire.replies(0.1)
    wire.close()
    for path in (b"<a\rb@c.test>", b'<"a\nb"@c.test>', b'<"a\rb"@c.test>', b"<a@c.test\n>", b'<"a\0"@c.test>'):
        wire = hello(box)
        wire.send(b"MAIL FROM:" + path + b"\r\n")
        replies = wire.replies(0.15)
        check(replies and not any(r.startswith("250 2.1.0") for r in replies), f"MAIL FROM:{path!r} got {replies}")
        wire.close()
    check_equal(box.sink_.anomalies, [], "anomalies at the far side")
    for line in box.relay.log().splitlines():
        check("\r" not in line and "\0" not in line, f"control characters in the log: {line!r}")


def early_ends(box):
    """a connection that breaks after each octet of a transaction leaves nothing, except after the end"""
    dialogue = (b"EHLO evil.test\r\nMAIL FROM:<e@evil.test>\r\nRCPT TO:<v@victim.test>\r\nDATA\r\n"
                b"Subject: cut\r\n\r\nbody\r\n.\r\n")
    box.relay.wait_queue_empty()
    before = len(box.sink_.messages)
    for length in range(len(dialogue)):
        wire = box.relay.raw()
        wire.send(dialogue[:length])
        if length % 2:
            wire.reset()
        else:
            wire.close()
    still_serves(box)
    box.relay.wait_queue_empty()
    check_equal([m.header("Subject") for m in box.sink_.messages[before:]], ["still serves"], "messages that left")
    wire = box.relay.raw()  # pipelined whole, as smtp-source would not, but others do
    wire.send(dialogue)
    replies = wire.replies(1)
    check(any(r.startswith("250 2.0.0") for r in replies), f"the whole dialogue at once: {replies}")
    wire.close()
    box.accepted += 1
    box.sink_.wait(box.accepted)


def too_much(box):
    """a message over the limit gets 552 5.3.4, a recipient over the limit 452 4.5.3, and the session goes on"""
    wire = begin(box)
    wire.send(b"Subject: big\r\n\r\n" + b"x" * 70 + b"\r\n" + (b"y" * 78 + b"\r\n") * 1300 + b".\r\n")
    reply = wire.reply()
    check(reply.startswith("552 5.3.4"), f"reply to too large a message: {reply!r}")
    expect(wire, "MAIL FROM:<e@evil.test>", r"250 2\.1\.0")
    for n in range(50):
        expect(wire, f"RCPT TO:<v{n}@victim.test>", r"250 2\.1\.5")
    expect(wire, "RCPT TO:<v50@victim.test>", r"452 4\.5\.3")
    expect(wire, "RSET", r"250")
    expect(wire, "QUIT", r"221")
    check_equal(len(box.sink_.messages), box.accepted, "messages that left")


def slow_clients(box):
    """a client that says nothing, or one octet at a time, is closed by the deadline; 100 of them harm nobody"""
    silent = [box.relay.raw() for _ in range(100)]
    dripping = hello(box)
    begun = time.monotonic()
    still_serves(box)
    while time.monotonic() - begun < 12:
        try:
            dripping.send(b"x")  # the deadline counts for the line, not for each octet
            time.sleep(0.2)
            if select.select([dripping.socket], [], [], 0)[0]:
                break
        except OSError:
            break
    took = time.monotonic() - begun
    check(took < 11, f"a client that drips octets was still served after {took:.0f} s, the deadline is 4 s")
    for wire in silent:
        last = wire.reply()
        check(last == "" or last.startswith("421 4.4.2"), f"reply to a silent client: {last!r}")
        wire.close()
    data = begin(box)
    data.send(b"Subject: never ends\r\n")
    reply = data.reply()
    check(reply == "" or reply.startswith("421 4.4.2"), f"reply to data that stops: {reply!r}")
    still_serves(box)


def sasl(box):
    """AUTH aborted, empty, over-long, eight-bit and not base64 is refused, and the session goes on"""
    for first, second, pattern in (
            ("AUTH PLAIN", "*", r"501 5\."), ("AUTH LOGIN", "*", r"501 5\."), ("AUTH PLAIN", "!!!", r"501 5\.5\.2"),
            ("AUTH PLAIN =", None, r"5(01|35) 5\."), ("AUTH PLAIN " + "A" * 400, None, r"5(01|35|00) 5\."),
            ("AUTH PLAIN", "A" * 13000, r"50[01] 5\."), ("AUTH BOGUS", None, r"504 5\.5\.4"),
            ("AUTH PLAIN AGFsaWNlAHdyb25n", None, r"535 5\.7\.8"), ("AUTH PLAIN /////w==", None, r"5(01|35) 5\."),
            ("AUTH", None, r"501 5\.5\.[24]")):
        wire = hello(box)
        if second is not None:
            expect(wire, first, r"334 ")
            expect(wire, second, pattern)
        else:
            expect(wire, first, pattern)
        expect(wire, "NOOP", r"250")
        wire.close()
    wire = hello(box)
    expect(wire, "AUTH PLAIN AGFsaWNlAHB3", r"235 2\.7\.0")
    expect(wire, "AUTH PLAIN AGFsaWNlAHB3", r"503 5\.5\.1")
    expect(wire, "MAIL FROM:<a@b.test>", r"250")
    wire.close()


def hostile_pop3(box):
    """garbage at the POP3 port is answered with -ERR or dropped, and others are served"""
    rng = random.Random(2)
    for sample in [bytes(rng.randrange(256) for _ in range(1000)) for _ in range(10)] + [
            b"USER\r\n", b"PASS x\r\n", b"STAT\r\n", b"RETR 1\r\n", b"USER " + b"a" * 2000 + b"\r\n", b"\r\n" * 50,
            b"USER alice\r\nPASS " + b"b" * 2000 + b"\r\n", b"AUTH PLAIN\r\n*\r\n", b"\0" * 300 + b"\r\n"]:
        wire = Wire("127.0.0.1", box.relay.pop3_port, greeting=False)
        check(wire.line().startswith("+OK"), "greeting")
        try:
            wire.send(sample + b"\r\nQUIT\r\n")
        except OSError:
            pass
        for line in wire.replies(0.15):
            check(line.startswith(("+", "-ERR")), f"not a POP3 reply: {line!r} after {sample[:40]!r}")
        wire.close()
    session = box.relay.pop3("alice", "pw")
    for command in ("RETR 1", "RETR 0", "RETR -1", "RETR 99999999999999999999", "DELE x", "LIST 7", "UIDL 1", "TOP 1",
                    "TOP 1 -1", "XYZZY", "RETR"):
        try:
            session._shortcmd(command)
            raise AssertionError(f"{command} succeeded in an empty maildrop")
        except poplib.error_proto as error:
            check(error.args[0].startswith(b"-ERR"), str(error))
    session.quit()


def stop(box):
    """the process is still the same one, and SIGTERM ends it with status 0"""
    still_serves(box)
    check("panic" not in box.relay.log(), "a panic in the log")
    box.relay.stop()


main(start, extensions, bad_sequence, unknown_commands_end_a_session, long_lines, garbage, bare_line_ends, smuggling,
     envelope_injection, early_ends, too_much, slow_clients, sasl, hostile_pop3, stop)
