"""The harness itself: its sink, its DNS server and its readers against Postfix, knot and plain sockets.

A scenario is only as good as what it stands on: the sink must take exactly what smtp-source and smtplib send, follow
its script, and notice what a server must never see (bare line ends, unstuffed dots).
"""

from harness import *


def sink_takes_what_is_sent(box):
    """the sink keeps envelope and data exactly, also when split at every octet"""
    sink = box.sink()
    body = "From: a@b\r\n\r\n.leading\r\n..two\r\n.\r\nlast\r\n"
    with smtplib.SMTP(sink.address, sink.port, timeout=10) as client:
        client.sendmail("a@b.test", ["c@d.test", "e@f.test"], body)
    wire = Wire(sink.address, sink.port)
    for octet in b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n\r\n..\r\n.\r\nQUIT\r\n":
        wire.send(bytes([octet]))
    first, second = sink.wait(2)
    check_equal(first.data, body.encode(), "data by smtplib")
    check_equal((first.sender, first.recipients), ("a@b.test", ["c@d.test", "e@f.test"]), "envelope")
    check_equal((second.sender, second.data), ("", b"\r\n.\r\n"), "message sent octet by octet")
    check_equal(sink.anomalies, [], "anomalies")


def sink_follows_script(box):
    """the sink plays its script: refusals, drops, delays, and notices bare line ends"""
    sink = box.sink(script={"mail": ["451 4.3.0 later", None], "rcpt": [None, "550 5.1.1 no"], "end": [DROP, None]})
    wire = Wire(sink.address, sink.port)
    wire.ask("EHLO x")
    check_equal(wire.ask("MAIL FROM:<a@b>"), "451 4.3.0 later", "first MAIL")
    check_equal(wire.ask("MAIL FROM:<a@b>")[:3], "250", "second MAIL")
    check_equal(wire.ask("RCPT TO:<a@b>")[:3], "250", "first RCPT")
    check_equal(wire.ask("RCPT TO:<c@b>")[:3], "550", "second RCPT")
    wire.ask("DATA")
    wire.send(b"a\rb\nc\r\n.\r\n")
    check_equal(wire.line(), None, "reply to end-of-data where the script says drop")
    check_equal([kind for kind, _ in sink.anomalies], ["bare CR or LF in data"], "anomalies")
    check_equal(sink.messages, [], "messages after a drop")


def smtp_source_reaches_sink(box):
    """Postfix smtp-source delivers 200 messages over 5 connections"""
    need("smtp-source")
    sink = box.sink()
    run([find_program("smtp-source"), "-s", "5", "-m", "200", "-l", "4096", "-d", f"{sink.address}:{sink.port}"])
    check_equal(len(sink.wait(200)), 200, "messages")
    check_equal(sink.anomalies, [], "anomalies")


def dns_answers(box):
    """knot serves a zone: MX, null MX, CNAME and NXDOMAIN"""
    dns = box.dns({"test.": "one MX 10 mx1.one\n one MX 20 mx2.one\nmx1.one A 127.0.0.2\nnull MX 0 .\n"
                            "alias CNAME one\n".replace("\n one", "\none")})

    def ask(*question):
        return run(["kdig", f"@{dns.address}", "-p", str(dns.port), *question]).stdout
    check("10 mx1.one.test." in ask("+short", "one.test", "MX"), "MX of one.test")
    check_equal(ask("+short", "null.test", "MX").strip(), "0 .", "null MX")
    check("NXDOMAIN" in ask("missing.test", "MX"), "missing.test does not exist")


def readers_read(box):
    """log lines, metrics and trace fields are read as they are written"""
    event = parse_event('2026-01-02T03:04:05.678Z delivered id=0000000G0001 to=<c@d> reply="250 2.0.0 \\"Ok\\"" x=')
    check_equal((event["event"], event["id"], event["to"], event["reply"], event["x"]),
                ("delivered", "0000000G0001", "<c@d>", '250 2.0.0 "Ok"', ""), "event")
    check_equal(parse_metrics('# HELP a b\na_total 3\nb{x="1",y="z w"} 0.5\n'),
                {"a_total": 3.0, 'b{x="1",y="z w"}': 0.5}, "metrics")
    message = b"Return-Path: <a@b>\r\nReceived: from x\r\n\tby y\r\nSubject: z\r\nReceived: inner\r\n\r\nbody\r\n"
    check_equal(without_trace(message), b"Subject: z\r\nReceived: inner\r\n\r\nbody\r\n", "message without trace")
    check_equal(received_chain(message), ["from x by y", "inner"], "chain")


main(sink_takes_what_is_sent, sink_follows_script, smtp_source_reaches_sink, dns_answers, readers_read)
