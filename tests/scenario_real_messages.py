"""Real messages go the whole way and come out as they went in.

Every sample of libpython3.11-testsuite (test_email/data) that SMTP can carry, and the samples of the spamassassin
package: client, ringmail, fixed route, ringmail, mailbox, POP3. What comes out ends with exactly the octets that went
in (line ends made CRLF), and what stands above them are trace fields only.
"""

from harness import *

PYTHON_SAMPLES = Path("/usr/lib/python3.11/test/test_email/data")
SPAM_SAMPLES = Path("/usr/share/doc/spamassassin/examples")


def carried(content):
    """The sample as SMTP would carry it, or the reason why it cannot."""
    content = re.sub(rb"\r?\n", b"\r\n", content)
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    if re.search(rb"\r(?!\n)", content):
        return None, "bare CR"
    if b"\0" in content:
        return None, "NUL"
    if max(map(len, content.split(b"\r\n"))) > 998:
        return None, "a line over 998 octets"
    return content, None


def samples():
    """All sample files, and that they are there at all."""
    found = sorted(PYTHON_SAMPLES.glob("*")) + sorted(SPAM_SAMPLES.glob("sample-*"))
    if not any(p.parent == PYTHON_SAMPLES for p in found):
        raise Skip(f"no samples in {PYTHON_SAMPLES} (package libpython3.11-testsuite)")
    return [p for p in found if p.is_file()]


def start(box):
    """start two relays in a row"""
    box.inner = box.ringmail("inner", {"mailboxes": {"local_domains": ["inner.test"]}})
    box.inner.add_user("reader", "pw")
    box.inner.start()
    box.outer = box.ringmail("outer", {"retry": {"delay_min": "1s"}, "route": [
        {"domain": "inner.test", "host": "127.0.0.1", "port": box.inner.smtp_port}]})
    box.outer.start()


def through(box, content, name):
    """Send one message through both relays and take it out of the mailbox."""
    wire = box.outer.raw()
    wire.ask("EHLO client.test")
    eight_bit = " BODY=8BITMIME" if any(octet > 127 for octet in content) else ""
    check(wire.ask(f"MAIL FROM:<writer@client.test>{eight_bit}").startswith("250"), f"{name}: MAIL")
    check(wire.ask("RCPT TO:<reader@inner.test>").startswith("250"), f"{name}: RCPT")
    check(wire.ask("DATA").startswith("354"), f"{name}: DATA")
    wire.send((b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")
    reply = wire.reply()
    check(reply.startswith("250 2.0.0"), f"{name}: reply to end-of-data: {reply}")
    wire.ask("QUIT")
    wire.close()
    got = box.inner.wait_mail("reader", "pw", 1)
    box.inner.mailbox("reader", "pw", delete=True)
    check_equal(len(got), 1, f"{name}: messages in the mailbox")
    return got[0]


def compare(name, got, content):
    """What came out ends with what went in; above it are trace fields only, two hops of them."""
    check(got.endswith(content), f"{name}: changed on the way:\n{difference(got, content)}")
    above = got[:len(got) - len(content)]
    check_equal(without_trace(above + b"\r\n"), b"\r\n", f"{name}: what stands above the message beside trace fields")
    check_equal(above.lower().count(b"\r\nreceived:") + above.lower().startswith(b"received:"), 2, f"{name}: hops")


def difference(got, content):
    """The first line from the end that differs."""
    for mine, theirs in zip(reversed(got.split(b"\r\n")), reversed(content.split(b"\r\n"))):
        if mine != theirs:
            return f"got  {mine[:200]!r}\nsent {theirs[:200]!r}"
    return f"got {len(got)} octets, sent {len(content)}"


def every_sample(box):
    """every sample comes out as it went in"""
    passed, refused = 0, {}
    for path in samples():
        content, reason = carried(path.read_bytes())
        if reason:
            refused.setdefault(reason, []).append(path.name)
            continue
        compare(path.name, through(box, content, path.name), content)
        passed += 1
    check(passed >= 48, f"only {passed} samples were sent")
    print(f"  note: {passed} real messages unchanged; not carried by SMTP: "
          + ("; ".join(f"{len(names)} for {reason}" for reason, names in refused.items()) or "none"), flush=True)


def made_to_break(box):
    """the same for messages made to break things"""
    rng = random.Random(3)
    made = {
        "empty": b"", "one empty line": b"\r\n", "header only": b"Subject: x\r\n", "body only": b"\r\nbody\r\n",
        "dots": b"Subject: x\r\n\r\n.\r\n..\r\n...\r\n.a\r\n. \r\n" + b".\r\n" * 500,
        "dot in the header": b".x: y\r\nSubject: x\r\n\r\nz\r\n",
        "longest line": b"Subject: x\r\n\r\n" + b"y" * 998 + b"\r\n",
        "eight bit": b"Subject: x\r\n\r\n" + bytes(c for c in range(128, 256)) * 7 + b"\r\n",
        "no colon": b"this is no header field\r\nnor this\r\n",
        "much white space": b"Subject: x\r\n \r\n\t\r\n\r\n\r\n\r\n   \r\n\r\n",
        "From line": b"From x\r\nSubject: x\r\n\r\nFrom here\r\n>From there\r\n",
        "megabytes": b"Subject: x\r\n\r\n" + b"".join(
            bytes(rng.choices(b"abcdefghij. ", k=76)) + b"\r\n" for _ in range(40000)),
    }
    for name, content in made.items():
        compare(name, through(box, content, name), content)


def stop(box):
    """SIGTERM ends both with status 0"""
    box.outer.stop()
    box.inner.stop()


main(start, every_sample, made_to_break, stop)
