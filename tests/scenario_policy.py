"""Who is taken and who is not: the checks of docs/receiving.md, with real DNS, and a configuration that is reloaded.

Loopback is no trusted network here, so that the clients of this scenario are strangers like any others. Two listeners
with different settings show that each has its own.
"""

import socket
import time

from harness import *

ZONES = {
    "known.test.": "@ MX 10 mx\nmx A 192.0.2.1\n",
    "address.test.": "@ A 192.0.2.1\n",
    "null.test.": "@ MX 0 .\n",
    "nothing.test.": "@ TXT \"no mail here\"\n",
    # The lists: 127.77.1.1 is listed in one, 127.77.1.2 in both, 127.77.1.3 with an answer that does not count.
    "bl.test.": "1.1.77.127 A 127.0.0.2\n2.1.77.127 A 127.0.0.2\n3.1.77.127 A 127.0.0.9\n",
    "wl.test.": "2.1.77.127 A 127.0.0.3\n",
    # It refuses to answer us, about everybody.
    "refusing.test.": "* A 127.255.255.254\n",
}


def start(box):
    """start a server that trusts nobody and asks everything"""
    box.dns_server = box.dns(ZONES)
    box.port = free_port()
    box.relay = box.ringmail(config={
        "dns": {"servers": [box.dns_server.server], "timeout": "500ms", "attempts": 1},
        "relay": {"trusted_networks": []},
        "mailboxes": {"local_domains": ["home.test"]},
        "dnsbl": [{"zone": "bl.test", "answers": ["127.0.0.2"]}, {"zone": "wl.test", "weight": -1},
                  {"zone": "refusing.test"}],
        "greylist": {"delay": "2s"},
        "account_limits": {"messages": "4/1h"},
        "login_limits": {"account_failures": "2/1h"},
    })
    plain = box.relay.config["smtp"][0]
    plain.update({"sender_check": "known", "helo_check": "fqdn"})
    box.relay.config["smtp"].append({
        "address": f"127.0.0.1:{box.port}", "profile": "submission", "auth_without_tls": True, "greylisting": False, "recipient_check": "known"})
    box.relay.write_config()
    for name in ("joe", "ann"):
        box.relay.add_user(name, "secret")
    box.relay.start()


def client(box, source="127.77.9.9", port=None):
    """A session from this address, greeted."""
    connection = socket.create_connection(("127.0.0.1", port or box.relay.smtp_port), 20, (source, 0))
    return Lines(connection)


class Lines:
    """A connection, read reply by reply."""

    def __init__(self, connection):
        self.connection, self.file = connection, connection.makefile("rb")
        self.greeting = self.reply()

    def reply(self):
        """One whole reply, as text."""
        lines = []
        while True:
            line = self.file.readline(4096)
            if not line:
                return "".join(lines) or "(closed)"
            lines.append(line.decode())
            if line[3:4] != b"-":
                return "".join(lines).strip()

    def ask(self, command):
        """A command and its reply."""
        self.connection.sendall(command.encode() + b"\r\n")
        return self.reply()

    def close(self):
        """Done."""
        self.file.close()
        self.connection.close()


def expect(reply, start, what):
    """The reply begins so."""
    check(reply.startswith(start), f"{what}: expected {start!r}, got {reply!r}")


def dialogue(box, *exchange, **where):
    """Commands with the start of the reply that each must get."""
    session = client(box, **where)
    for command, expected in exchange:
        expect(session.ask(command), expected, command)
    session.close()


def senders(box):
    """reverse-paths of strangers must be reachable: 550 5.1.8, null MX 550 5.7.27, unknown local user 550 5.1.0"""
    for sender, expected in (("a@known.test", "250"), ("a@address.test", "250"), ("", "250"),
                             ("a@nothing.test", "550 5.1.8"), ("a@missing.known.test", "550 5.1.8"),
                             ("a@null.test", "550 5.7.27"), ("joe@home.test", "250"),
                             ("nobody@home.test", "550 5.1.0"), ("a@[192.0.2.1]", "250"),
                             # Our server is not asked about that zone by anybody: REFUSED, and the mail passes.
                             ("a@elsewhere.example", "250")):
        dialogue(box, ("EHLO client.known.test", "250"), (f"MAIL FROM:<{sender}>", expected))


def names(box):
    """EHLO needs a full name: 504 5.5.2, and not ours: 550 5.7.1"""
    for name, expected in (("client", "504 5.5.2"), ("ringmail.test", "550 5.7.1"), ("[127.0.0.1]", "250"),
                           ("client.known.test", "250")):
        dialogue(box, (f"EHLO {name}", "250"), ("MAIL FROM:<a@known.test>", expected))


def recipients(box):
    """local users are taken, others refused with 550 5.1.1, and nothing is relayed: 550 5.7.1"""
    dialogue(box, ("EHLO client.known.test", "250"), ("MAIL FROM:<a@known.test>", "250"),
             ("RCPT TO:<joe@home.test>", "250"), ("RCPT TO:<joe+detail@home.test>", "250"),
             ("RCPT TO:<postmaster>", "250"), ("RCPT TO:<PostMaster@ringmail.test>", "250"), ("RCPT TO:<joe@ringmail.test>", "550 5.7.1"),
             ("RCPT TO:<nobody@home.test>", "550 5.1.1"),
             ("RCPT TO:<a@known.test>", "550 5.7.1"), ("RCPT TO:<a%known.test@home.test>", "550"))


def lists(box):
    """listed clients are refused with 554 5.7.1, but for postmaster; weights add up, other answers do not count"""
    for source, expected in (("127.77.1.1", "554 5.7.1"), ("127.77.1.2", "250"), ("127.77.1.3", "250")):
        dialogue(box, ("EHLO client.known.test", "250"), ("MAIL FROM:<a@known.test>", "250"),
                 ("RCPT TO:<postmaster@home.test>", "250"), ("RCPT TO:<joe@home.test>", expected), source=source)


def login(box, name, password="secret"):
    """AUTH PLAIN's argument."""
    import base64
    return base64.b64encode(f"\0{name}\0{password}".encode()).decode()


def submission(box):
    """a submission listener wants a login, known recipients and own addresses, and completes the header"""
    dialogue(box, ("EHLO client.known.test", "250"), ("MAIL FROM:<joe@home.test>", "530 5.7.0"), port=box.port)
    session = client(box, port=box.port)
    for command, expected in (("EHLO client", "250"), (f"AUTH PLAIN {login(box, 'joe')}", "235"),
                              ("MAIL FROM:<ann@home.test>", "553 5.7.1"), ("MAIL FROM:<joe@home.test>", "250"),
                              ("RCPT TO:<x@none.known.test>", "550 5.1.2"), ("RCPT TO:<x@nothing.test>", "550 5.1.2"),
                              ("RCPT TO:<x@null.test>", "556 5.1.10"), ("RCPT TO:<postmaster@ringmail.test>", "250"), ("RCPT TO:<x@[192.0.2.1]>", "250"), ("RSET", "250"),
                              ("MAIL FROM:<joe@home.test>", "250"),
                              ("RCPT TO:<ann@home.test>", "250"), ("DATA", "354"),
                              ("Subject: no date\r\n\r\nbody\r\n.", "250")):
        expect(session.ask(command), expected, command)
    message = box.relay.wait_mail("ann", "secret", 1)[0].decode()
    for field in ("\r\nDate: ", "\r\nMessage-ID: <"):
        check_equal(message.count(field), 1, f"{field!r} in {message!r}")
    for expected in ("250", "250", "450 4.7.1"):
        expect(session.ask("MAIL FROM:<joe+more@home.test>"), expected, "messages of a login")
        session.ask("RSET")
    session.close()


def guessing(box):
    """a login that failed too often is locked out with 454 4.7.0 for its client, and not for others"""
    session = client(box, port=box.port, source="127.77.2.1")
    session.ask("EHLO client")
    for password, expected in (("x", "535"), ("y", "535"), ("secret", "454 4.7.0")):
        expect(session.ask(f"AUTH PLAIN {login(box, 'ann', password)}"), expected, password)
    expect(session.ask(f"AUTH PLAIN {login(box, 'joe')}"), "235", "another account")
    session.close()
    dialogue(box, ("EHLO client", "250"), (f"AUTH PLAIN {login(box, 'ann')}", "235"), port=box.port)


def reload(box):
    """a changed configuration is taken by `ringmail reload` and SIGHUP: greeting pause, greylisting, limits"""
    old = client(box)
    box.relay.config["smtp"][0].update({"greet_pause": "1s", "greylisting": True, "sender_check": "any"})
    box.relay.config["client_limits"] = {"sessions_max": 3}
    box.relay.write_config()
    check_equal(box.relay.cli("reload").stdout, "reloaded\n", "reload")
    box.relay.wait_event("reloaded")
    expect(old.ask("EHLO client.known.test"), "250", "a session from before")
    expect(old.ask("MAIL FROM:<a@null.test>"), "550 5.7.27", "and it keeps what it began with")
    old.close()


def early_talkers(box):
    """who talks before the greeting is refused with 554 5.5.1; who waits is greeted"""
    connection = socket.create_connection(("127.0.0.1", box.relay.smtp_port), 20, ("127.77.3.1", 0))
    connection.sendall(b"EHLO client.known.test\r\n")
    session = Lines(connection)
    expect(session.greeting, "554 5.5.1", "an early talker")
    check_equal(session.reply(), "(closed)", "after it")
    session.close()
    session = client(box, source="127.77.3.2")
    expect(session.greeting, "220 ", "one that waits")
    session.close()


def greylisting(box):
    """who comes for the first time waits: 451 4.7.1, then it is taken"""
    exchange = [("EHLO client.known.test", "250"), ("MAIL FROM:<grey@null.test>", "250")]
    rcpt = "RCPT TO:<joe@home.test>"
    dialogue(box, *exchange, (rcpt, "451 4.7.1"), source="127.77.4.1")
    dialogue(box, *exchange, ("RCPT TO:<postmaster>", "250"), source="127.77.4.1")

    def taken():
        session = client(box, source="127.77.4.2")
        for command, _ in exchange:
            session.ask(command)
        reply = session.ask(rcpt)
        session.close()
        return reply.startswith("250")
    wait_until(taken, "the greylisted sender to be taken", interval=0.5)
    dialogue(box, exchange[0], ("MAIL FROM:<black@null.test>", "250"), (rcpt, "451 4.7.1"), source="127.77.4.1")
    box.relay.stop()
    check_equal((box.relay.data_dir / "greylist").stat().st_mode & 0o777, 0o600, "mode of what is kept")
    box.relay.start()
    check(taken(), "who is known stays known over a restart")
    time.sleep(2)  # the delay
    dialogue(box, exchange[0], ("MAIL FROM:<black@null.test>", "250"), (rcpt, "250"), source="127.77.4.2")
    box.relay.kill()
    (box.relay.data_dir / "greylist").write_bytes(b"nonsense")
    box.relay.start()
    check(not taken(), "what is damaged is not believed")


def sessions(box):
    """one client gets its share of sessions, 421 4.7.0 beyond it, and others are served"""
    inside = [client(box, source="127.77.5.1") for _ in range(3)]
    expect(client(box, source="127.77.5.1").greeting, "421 4.7.0", "a fourth session")
    other = client(box, source="127.77.5.2")
    expect(other.greeting, "220", "another client")
    for session in [*inside, other]:
        session.close()
    wait_until(lambda: client(box, source="127.77.5.1").greeting.startswith("220"), "room for the next")


def bad_reload(box):
    """a wrong configuration, a missing certificate and a change that needs a restart: nothing is taken, status 78"""
    good = dict(box.relay.config)
    for change, message in (({"limits": {"errors_max": 0}}, "errors_max = 0 is out of range"),
                            ({"tls": {"certificate": "/nowhere", "key": "/nowhere"}}, "/nowhere"),
                            ({"shards": 7}, "shards cannot change while the process runs"),
                            ({"dns": {"timeout": "1s"}}, "[dns]")):
        box.relay.config = {**good, "client_limits": {"sessions_max": 1}, **change}
        box.relay.write_config()
        done = box.relay.cli("reload", ok=False)
        check_equal(done.returncode, 78, f"status of reload with {change}")
        check(message in done.stderr, f"{message!r} in {done.stderr!r}")
        before = len(box.relay.events("error"))
        box.relay.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(box.relay.events("error")) > before, "the log to tell of it")
        pair = [client(box, source="127.77.6.1") for _ in range(2)]
        check_equal([session.greeting[:3] for session in pair], ["220", "220"], "sessions after a refused reload")
        for session in pair:
            session.close()
    box.relay.config = good
    box.relay.write_config()
    check_equal(json.loads(box.relay.cli("reload", "--json").stdout), {"reloaded": True, "warnings": []}, "answer")


def errors(box):
    """refusals are answered more and more slowly, and 421 ends the session after twenty"""
    session = client(box, source="127.77.7.1")
    replies = [session.ask("NONSENSE") for _ in range(3)]
    check(all(reply.startswith("500 ") for reply in replies), str(replies))
    session.close()
    box.relay.config["limits"] = {"errors_max": 12, "tarpit_errors": 11}
    box.relay.write_config()
    box.relay.cli("reload")
    session = client(box, source="127.77.7.1")
    replies = [session.ask("NONSENSE") for _ in range(13)]
    check(all(reply.startswith("500 ") for reply in replies), str(replies))
    expect(session.reply(), "421 4.7.0", "after too many")


def bounds(box):
    """a header section of its size, 552 5.3.4 beyond it; messages and commands of a session, 421 4.7.0 beyond them"""
    box.relay.config["limits"] = {"header_size_max": "4 KiB", "messages_max": 4, "commands_max": 100}
    box.relay.write_config()
    box.relay.cli("reload")
    session = client(box, source="127.77.8.1")
    check("LIMITS RCPTMAX=1000 MAILMAX=4\n" in session.ask("EHLO client.known.test").replace("\r", ""), "LIMITS")
    for header, expected in ((b"X: " + b"x" * 4091 + b"\r\n", "250"), (b"X: " + b"x" * 4092 + b"\r\n", "552 5.3.4"),
                             (b"X: " + b"x" * (1 << 21) + b"\r\n", "552 5.3.4"), (b"no field\r\n" * 200000, "250")):
        for command, code in (("MAIL FROM:<a@known.test>", "250"), ("RCPT TO:<postmaster>", "250"), ("DATA", "354")):
            expect(session.ask(command), code, command)
        session.connection.sendall(header + b"\r\n" + b"body\r\n" * 1000 + b".\r\n")
        expect(session.reply(), expected, f"a header section of {len(header)} octets")
    expect(session.ask("MAIL FROM:<a@known.test>"), "421 4.7.0", "one message more")
    session.close()
    session = client(box, source="127.77.8.1")
    session.connection.sendall(b"NOOP\r\n" * 101)
    replies = [session.reply() for _ in range(102)]
    check_equal([reply[:3] for reply in replies], ["250"] * 100 + ["421", "(cl"], "replies to 101 commands")
    session.close()


def end(box):
    """SIGTERM ends it with status 0"""
    box.relay.stop()


main(start, senders, names, recipients, lists, submission, guessing, reload, early_talkers, greylisting, sessions,
     bad_reload, errors, bounds, end)
