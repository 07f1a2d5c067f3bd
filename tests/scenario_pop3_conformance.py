"""POP3 against RFC 1939, 2449, 2595 and 5034, octet by octet on real connections: what is right, and what is hostile."""

import base64
import ssl

from harness import *

PASSWORD = "correct horse"
BODIES = ["one\r\ntwo\r\nthree\r\n", ".\r\n..dots\r\n", "x" * 998 + "\r\n", "a line of a large message\r\n" * 40_000]


def start(box):
    """start, and deliver four messages"""
    need("openssl")
    key, box.cert = box.dir / "key.pem", box.dir / "cert.pem"
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-keyout", key, "-out", box.cert, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
    box.relay = box.ringmail(config={
        "tls": {"certificate": str(box.cert), "key": str(key)},
        "pop3_sessions": {"per_client_max": 100}})
    for user in ("joe", "ann"):
        box.relay.add_user(user, PASSWORD)
    box.relay.start()
    with box.relay.smtp() as client:
        for number, body in enumerate(BODIES):
            for user in ("joe", "ann"):
                client.sendmail("a@client.test", [f"{user}@localhost"], make_message(subject=str(number), body=body))
    box.messages = box.relay.wait_mail("joe", PASSWORD, len(BODIES))
    box.relay.wait_mail("ann", PASSWORD, len(BODIES))


def connect(box, user=None):
    """A raw session, logged in where a user is named."""
    wire = Wire("127.0.0.1", box.relay.pop3_port)
    check(wire.greeting.startswith("+OK "), f"greeting {wire.greeting!r}")
    if user:
        check(wire.ask(f"USER {user}").startswith("+OK"), "USER")
        reply = wire.ask(f"PASS {PASSWORD}")
        check(reply.startswith("+OK"), f"PASS of {user}: {reply}")
    return wire


def rest(wire):
    """Everything until the far side closes."""
    octets = wire.buffer
    try:
        while chunk := wire.socket.recv(1 << 16):
            octets += chunk
    except ConnectionError:
        pass
    return octets


def lines(wire, command):
    """The lines of a reply of many lines, without the one that ends it, dots unstuffed."""
    wire.send(command + "\r\n")
    first = wire.line()
    check(first.startswith("+OK"), f"{command}: {first}")
    result = []
    while (line := wire.line()) != ".":
        check(line is not None, f"{command}: the connection ended")
        result.append(line[1:] if line.startswith(".") else line)
    return result


def commands(box):
    """every command, its errors and its arguments, before and after the login"""
    wire = connect(box)
    for line, expected in [("STAT", "-ERR"), ("LIST", "-ERR"), ("UIDL 1", "-ERR"), ("RETR 1", "-ERR"), ("TOP 1 0", "-ERR"),
                           ("DELE 1", "-ERR"), ("RSET", "-ERR"), ("NOOP", "-ERR"), ("LAST", "-ERR"), ("PASS x", "-ERR"),
                           ("USER", "-ERR"), ("", "-ERR"), (" ", "-ERR"), ("XYZZY", "-ERR"), ("user joe", "+OK")]:
        reply = wire.ask(line)
        check(reply.startswith(expected), f"{line!r} before the login: {reply}")
    check(wire.ask(f"pAsS {PASSWORD}").startswith("+OK"), "a login in mixed case")
    for line, expected in [
            ("STAT", f"+OK 4 {sum(map(len, box.messages))}"), ("LIST 2", f"+OK 2 {len(box.messages[1])}"), ("NOOP", "+OK"),
            ("list 002", f"+OK 2 {len(box.messages[1])}"),
            ("LIST 0", "-ERR"), ("LIST 5", "-ERR"), ("LIST -1", "-ERR"), ("LIST +1", "-ERR"), ("LIST 1 2", "-ERR"), ("LIST 1x", "-ERR"),
            ("LIST 99999999999999999999999999999999", "-ERR"), ("RETR", "-ERR"), ("NOOP", "+OK"), ("RETR 0", "-ERR"), ("RETR 5", "-ERR"),
            ("RETR x", "-ERR"), ("RETR 1 1", "-ERR"), ("TOP", "-ERR"), ("TOP 1", "-ERR"), ("TOP 1 -1", "-ERR"), ("TOP 5 1", "-ERR"),
            ("TOP 1 1 1", "-ERR"), ("NOOP", "+OK"), ("DELE", "-ERR"), ("DELE 18446744073709551616", "-ERR"), ("DELE 4294967297", "-ERR"),
            ("STAT 1", "-ERR"), ("NOOP x", "-ERR"), ("RSET x", "-ERR"), ("QUIT now", "-ERR"), ("LAST", "-ERR"), ("NOOP", "+OK"),
            ("USER joe", "-ERR"), ("PASS x", "-ERR"), ("AUTH PLAIN", "-ERR"), ("STLS", "-ERR"), ("APOP joe " + "0" * 32, "-ERR"),
            ("DELE 1", "+OK"), ("DELE 1", "-ERR"), ("RETR 1", "-ERR"), ("LIST 1", "-ERR"), ("UIDL 1", "-ERR"), ("TOP 1 0", "-ERR"),
            ("STAT", f"+OK 3 {sum(map(len, box.messages[1:]))}"), ("RSET", "+OK"), ("STAT", "+OK 4 "), ("LIST 1", "+OK 1 ")]:
        reply = wire.ask(line)
        check(reply.startswith(expected), f"{line!r}: {reply}")
    wire.ask("DELE 2")
    check_equal([line.split()[0] for line in lines(wire, "LIST")], ["1", "3", "4"], "numbers in LIST after DELE 2")
    check_equal([line.split()[0] for line in lines(wire, "UIDL")], ["1", "3", "4"], "numbers in UIDL after DELE 2")
    wire.ask("RSET")
    ids = [line.split()[1] for line in lines(wire, "UIDL")]
    check(len(set(ids)) == 4 and all(re.fullmatch(r"[!-~]{1,70}", name) for name in ids), f"unique-ids {ids}")
    head = box.messages[0].split(b"\r\n\r\n")[0].decode().split("\r\n")
    check_equal(lines(wire, "TOP 1 0"), head + [""], "TOP 1 0")
    check_equal(lines(wire, "TOP 1 2"), head + ["", "one", "two"], "TOP 1 2")
    check_equal(lines(wire, "TOP 1 99999"), head + ["", "one", "two", "three"], "TOP with more lines than there are")
    for number, message in enumerate(box.messages, 1):
        check_equal("\r\n".join(lines(wire, f"RETR {number}")) + "\r\n", message.decode(), f"message {number}")
    check(wire.ask("QUIT").startswith("+OK"), "QUIT")
    check(wire.ended(), "the connection after QUIT")


def octets(box):
    """lines of every length and kind: LF alone, NUL, eight bits, one octet at a time, too long, never ending"""
    wire = connect(box, "joe")
    wire.send(b"NOOP\nSTAT\n")
    check(wire.line().startswith("+OK") and wire.line().startswith("+OK 4 "), "lines that end in LF alone")
    for octet in b"STAT\r\n":
        wire.send(bytes([octet]))
        time.sleep(0.002)
    check(wire.line().startswith("+OK 4 "), "STAT one octet at a time")
    for bad in (b"NO\0OP", b"STAT\0", b"DELE 1\0", b"RETR \xb2", b"\xff\xfe\xfd", b"DELE 1\r", b"STAT\rDELE 1"):
        reply = wire.ask(bad)
        check(reply.startswith("-ERR"), f"{bad!r}: {reply}") if bad != b"DELE 1\r" else None
    wire.ask("RSET")
    check(wire.ask("NOOP" + " " * 249).startswith("+OK"), "a line of 255 octets")
    check(wire.ask("NOOP" + " " * 250).startswith("-ERR"), "a line of 256 octets")
    check(wire.ask("DELE 1" + " " * 5_000_000).startswith("-ERR"), "a line of five million octets")
    check(wire.ask("STAT").startswith("+OK 4 "), "STAT after long lines")
    wire.close()
    wire = connect(box)
    wire.send(b"BAD\r\n" * 100)
    check(rest(wire).count(b"-ERR") <= 20, "refusals before the session ends")
    check(connect(box, "joe").ask("QUIT").startswith("+OK"), "another session after it")


def pipelined(box):
    """a whole session in one piece: every reply in order, and nothing after QUIT"""
    wire = connect(box)
    wire.send(f"USER joe\r\nPASS {PASSWORD}\r\nSTAT\r\nRETR 1\r\nTOP 2 1\r\nRETR 4\r\nDELE 1\r\nRSET\r\nLIST 1\r\nRETR 9\r\nQUIT\r\nDELE 2\r\n")
    answer = rest(wire)
    starts = [line for line in answer.split(b"\r\n") if line.startswith((b"+OK", b"-ERR"))]
    check_equal([line[:3] for line in starts], [b"+OK"] * 9 + [b"-ER", b"+OK"], "replies in order")
    check(answer.endswith(b"\r\n") and b"\r\n.\r\n" in answer, "the end of a pipelined session")


def dropped(box):
    """the connection ends at every octet before the end of QUIT: nothing is removed, and the maildrop is free at once"""
    last = b"DELE 1\r\nDELE 2\r\nQUIT\r\n"
    for cut in range(len(last) - 1):
        wire = connect_when_free(box)
        wire.send(last[:cut])
        wire.reset() if cut % 2 else wire.close()
    wire = connect_when_free(box)
    check(wire.ask("STAT").startswith("+OK 4 "), "messages after all of these")
    wire.send(b"RETR 4\r\n")
    wire.reset()
    wire = connect_when_free(box)
    check(wire.ask("STAT").startswith("+OK 4 "), "messages after a retrieval that was cut off")
    second = connect(box)
    second.ask("USER ann")
    check(second.ask(f"PASS {PASSWORD}").startswith("-ERR [IN-USE]"), "a second session")
    check(second.ask("QUIT").startswith("+OK"), "QUIT of the second session")
    wire.send(last)
    rest(wire)
    check(connect_when_free(box).ask("STAT").startswith("+OK 2 "), "messages after a whole QUIT")


def connect_when_free(box):
    """A session of ann, when the one before has ended."""
    def opened():
        wire = connect(box)
        wire.ask("USER ann")
        return wire if wire.ask(f"PASS {PASSWORD}").startswith("+OK") else wire.close()
    return wait_until(opened, "the maildrop of ann", 30)


def mechanisms(box):
    """AUTH: cancelled, not base64, empty, over-long, unknown, and right afterwards"""
    text = lambda octets: base64.b64encode(octets).decode()
    plain = text(f"\0joe\0{PASSWORD}".encode())
    for talk in [["AUTH PLAIN", "*"], ["AUTH LOGIN", "*"], ["AUTH LOGIN", text(b"joe"), "*"], ["AUTH SCRAM-SHA-256", "*"],
                 ["AUTH PLAIN", "!!!"], ["AUTH PLAIN", "AGpvZQ"], ["AUTH PLAIN", ""], ["AUTH PLAIN ="], ["AUTH PLAIN", "A" * 100_000],
                 ["AUTH PLAIN " + "A" * 100_000], ["AUTH NOSUCH"], ["AUTH PLAIN x y"], ["AUTH PLAIN", text(b"joe")],
                 ["AUTH PLAIN", text(b"\0\0\0")], ["AUTH SCRAM-SHA-256", text(b"n,,n=joe")], ["AUTH SCRAM-SHA-256", text(b"\xff\0")]]:
        wire = connect(box)
        for line in talk[:-1]:
            reply = wire.ask(line)
            check(reply.startswith("+ "), f"{line} of {talk}: {reply}")
        reply = wire.ask(talk[-1])
        check(reply.startswith("-ERR"), f"the end of {talk[0][:30]}: {reply}")
        check(wire.ask(f"AUTH PLAIN {plain}").startswith("+OK"), f"a login after {talk[0][:30]}")
        check(wire.ask("QUIT").startswith("+OK"), "QUIT")
        wire.close()


def tls(box):
    """STLS: what was typed before counts no more, what is injected behind it neither, and it comes once"""
    context = ssl.create_default_context(cafile=str(box.cert))
    wire = connect(box)
    wire.ask("USER joe")
    check(wire.ask("STLS").startswith("+OK"), "STLS")
    secure = context.wrap_socket(wire.socket, server_hostname="localhost")
    wire.socket, wire.buffer = secure, b""
    check(wire.ask(f"PASS {PASSWORD}").startswith("-ERR"), "PASS with the name from before TLS")
    check(wire.ask("STLS").startswith("-ERR"), "STLS under TLS")
    check("STLS" not in lines(wire, "CAPA"), "STLS in CAPA under TLS")
    wire.ask("USER joe")
    check(wire.ask(f"PASS {PASSWORD}").startswith("+OK"), "a login under TLS")
    wire.ask("QUIT")
    wire.close()
    wire = connect(box)
    wire.send(f"STLS\r\nUSER joe\r\nPASS {PASSWORD}\r\n")
    check(wire.line().startswith("+OK"), "STLS with more behind it")
    wire.socket = context.wrap_socket(wire.socket, server_hostname="localhost")
    check(wire.ask("STAT").startswith("-ERR"), "what was injected did not log in")
    wire.close()


def others(box):
    """what happens to the mailbox during a session is not seen, and harms nobody"""
    wire = connect(box, "joe")
    with box.relay.smtp() as client:
        client.sendmail("a@client.test", ["joe@localhost"], make_message(subject="late"))
    new = box.relay.data_dir / "mail/joe/new"
    wait_until(lambda: len(list(new.iterdir())) == 5, "the fifth message to arrive")
    check(wire.ask("STAT").startswith("+OK 4 "), "STAT does not change in a session")
    first = sorted(new.iterdir())[0]
    content = first.read_bytes()
    first.unlink()
    check(wire.ask("RETR 1").startswith("-ERR"), "a message that another program removed")
    check(wire.ask("DELE 1").startswith("+OK"), "DELE of it")
    check(wire.ask("QUIT").startswith("+OK"), "QUIT after it")
    first.write_bytes(content)
    check_equal(len(box.relay.mailbox("joe", PASSWORD)), 5, "messages afterwards")


def stop(box):
    """a stop leaves nothing behind"""
    box.relay.stop()


if __name__ == "__main__":
    main(start, commands, octets, pipelined, dropped, mechanisms, tls, others, stop)
