"""Every POP3 client there is reads its mail: in plain text, after STLS, and with TLS from the first octet.

A maildrop of awkward messages (dots, long lines, no line end, UTF-8, an empty body, a large one) is fetched by poplib,
curl, fetchmail, mpop, getmail and mutt, over each kind of connection that they know. What they get is octet for octet
what was delivered. Then what a hostile client can do, and what users and operators can: quotas, retention, APOP, SCRAM.
"""

import base64
import hashlib
import hmac
import ssl

from harness import *

PASSWORD = "correct horse battery"
COUNT = 8


def certificate(box):
    key, cert = box.dir / "key.pem", box.dir / "cert.pem"
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-keyout", key, "-out", cert, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
    return key, cert


def start(box):
    """start with three listeners, and deliver awkward messages"""
    need("openssl")
    key, box.cert = certificate(box)
    box.implicit, box.open = free_port(), free_port()
    box.relay = box.ringmail(config={
        "pop3": [
            {"address": f"127.0.0.1:{(port := free_port())}", "tls": "starttls", "auth_without_tls": True},
            {"address": f"127.0.0.1:{box.implicit}", "tls": "implicit"},
            {"address": f"127.0.0.1:{box.open}", "tls": "none", "auth_without_tls": True},
        ],
        "tls": {"certificate": str(box.cert), "key": str(key)},
        "pop3_sessions": {"apop": True, "per_client_max": 20},
        "mailboxes": {"over_quota": "reject"},
    })
    box.relay.pop3_port = port
    for user in ("bob", "eve", "full"):
        box.relay.add_user(user, PASSWORD)
    box.relay.cli("user", "passwd", "eve", "--password-stdin", "--apop", input=PASSWORD + "\n")
    box.relay.cli("user", "set", "full", "--messages", "2")
    (box.relay.data_dir / "aliases").write_text("only: full\nboth: full, eve\n@localhost: bob\n")
    box.relay.start()
    bodies = [".\r\n..\r\n.x\r\n", "x" * 900 + "\r\n", "", "\r\n\r\n", "Gr\u00fc\u00dfe \u4f60\u597d\r\n", "no dots\r\n" * 3,
              ".line of a large one\r\n" * 40_000, "last\r\n"]
    with box.relay.smtp() as client:
        for number, body in enumerate(bodies):
            content = make_message("alice@client.test", "bob@localhost", f"number {number}", body)
            # The last one comes by the catch-all.
            client.sendmail("alice@client.test", ["bob@localhost" if number < COUNT - 1 else "whoever@localhost"], content)
    box.messages = box.relay.wait_mail("bob", PASSWORD, COUNT)
    box.large = next(n for n, message in enumerate(box.messages) if len(message) > 500_000)


def as_files(box):
    """The messages as a client stores them: LF line ends, in no order."""
    return sorted(message.replace(b"\r\n", b"\n") for message in box.messages)


def stored(folder):
    return sorted(path.read_bytes() for path in Path(folder).rglob("*") if path.is_file())


def expect_same(box, got, how):
    check_equal(len(got), COUNT, f"messages fetched by {how}")
    for seen, expected in zip(got, as_files(box)):
        check_equal(seen, expected, f"message fetched by {how}")


def trusting(box):
    return ssl.create_default_context(cafile=str(box.cert))


def poplib_everywhere(box):
    """poplib: plain, STLS, TLS; sizes, TOP, UIDL, UTF8 and the capabilities"""
    plain = poplib.POP3("127.0.0.1", box.relay.pop3_port, timeout=20)
    check("STLS" in plain.capa(), f"no STLS in {plain.capa()}")
    stls = poplib.POP3("localhost", box.relay.pop3_port, timeout=20)
    stls.stls(trusting(box))
    check("STLS" not in stls.capa(), "STLS is offered under TLS")
    check_equal(stls.capa()["SASL"], ["SCRAM-SHA-256", "PLAIN", "LOGIN"], "mechanisms under TLS")
    tls = poplib.POP3_SSL("localhost", box.implicit, timeout=20, context=trusting(box))
    ids = set()
    for session in (plain, stls, tls):
        session.utf8() if session is tls else None
        session.user("bob")
        session.pass_(PASSWORD)
        sizes = [int(line.split()[1]) for line in session.list()[1]]
        for number, expected in enumerate(box.messages, 1):
            check_equal(retrieve(session, number), expected, f"message {number} by poplib")
            check_equal(sizes[number - 1], len(expected), f"size of message {number}")
        head = b"\r\n".join(session.top(1, 0)[1])
        check(box.messages[0].startswith(head), f"TOP 1 0 gave {head!r}")
        ids.add(tuple(session.uidl()[1]))
        session.quit()
    check_equal(len(ids), 1, "unique-ids are the same in every session")
    box.ids = ids.pop()


def curl(box):
    """curl: LIST, RETR and UIDL; plain, --ssl-reqd and pop3s, with PLAIN, LOGIN and what it prefers"""
    need("curl")
    login = ["-sS", "--user", f"bob:{PASSWORD}", "--cacert", str(box.cert)]
    for url, options in [(f"pop3://127.0.0.1:{box.relay.pop3_port}", []),
                         (f"pop3://127.0.0.1:{box.relay.pop3_port}", ["--login-options", "AUTH=PLAIN"]),
                         (f"pop3://127.0.0.1:{box.relay.pop3_port}", ["--login-options", "AUTH=LOGIN"]),
                         (f"pop3://localhost:{box.relay.pop3_port}", ["--ssl-reqd"]),
                         (f"pop3s://localhost:{box.implicit}", [])]:
        listing = run(["curl", *login, *options, f"{url}/"]).stdout.split()
        check_equal(len(listing), 2 * COUNT, f"LIST by curl {options} over {url}: {listing}")
        for number in (1, box.large + 1):
            got = run(["curl", *login, *options, f"{url}/{number}"], binary_output=True).stdout
            check_equal(got, box.messages[number - 1], f"message {number} by curl {options} over {url}")


def fetch_by_fetchmail(box):
    """fetchmail: plain, STLS and TLS"""
    need("fetchmail")
    for how, port, options in [("plain", box.relay.pop3_port, 'sslproto ""'),
                               ("stls", box.relay.pop3_port, f'sslproto "auto" sslcertck sslcertfile "{box.cert}"'),
                               ("tls", box.implicit, f'ssl sslcertck sslcertfile "{box.cert}"')]:
        folder = box.dir / f"fetchmail-{how}"
        folder.mkdir()
        store = box.dir / "store"
        store.write_text(f'#!/bin/sh\nexec cat >"$(mktemp {folder}/XXXXXXXX)"\n')
        store.chmod(0o755)
        config = box.dir / "fetchmailrc"
        config.write_text(f"""set invisible
set idfile "{box.dir}/fetchids"
poll localhost service {port} protocol pop3 timeout 20
  user "bob" password "{PASSWORD}" is "bob" here
  keep fetchall no rewrite {options} mda "{store}"
""")
        config.chmod(0o600)
        run(["fetchmail", "-f", config, "--pidfile", box.dir / "fetchmail.pid", "--nosyslog"],
            env={"HOME": str(box.dir), "FETCHMAILHOME": str(box.dir)})
        expect_same(box, stored(folder), f"fetchmail {how}")


def fetch_by_mpop(box):
    """mpop: plain, STLS and TLS, with each mechanism that it knows"""
    need("mpop")
    for how, port, options in [("plain", box.relay.pop3_port, ["--tls=off", "--auth=user"]),
                               ("sasl", box.relay.pop3_port, ["--tls=off", "--auth=plain"]),
                               ("scram", box.relay.pop3_port, ["--tls=off", "--auth=scram-sha-256"]),
                               ("stls", box.relay.pop3_port, ["--tls=on", "--tls-starttls=on"]),
                               ("tls", box.implicit, ["--tls=on", "--tls-starttls=off"])]:
        folder = box.dir / f"mpop-{how}"
        for sub in ("tmp", "new", "cur"):
            (folder / sub).mkdir(parents=True)
        trust = [f"--tls-trust-file={box.cert}"] if how in ("stls", "tls") else []
        run(["mpop", "-C", "/dev/null", "--host=localhost", f"--port={port}", "--user=bob",
             f"--passwordeval=echo {PASSWORD}", f"--uidls-file={box.dir}/uidls-{how}", "--keep=on", "--received-header=off",
             f"--delivery=maildir,{folder}", *options, *trust])
        expect_same(box, stored(folder / "new"), f"mpop {how}")


def fetch_by_getmail(box):
    """getmail: plain and TLS"""
    need("getmail")
    for how, kind, port in [("plain", "SimplePOP3Retriever", box.relay.pop3_port),
                            ("tls", "SimplePOP3SSLRetriever", box.implicit)]:
        folder = box.dir / f"getmail-{how}"
        (folder / "mail").mkdir(parents=True)
        store = folder / "store"
        store.write_text(f'#!/bin/sh\nexec cat >"$(mktemp {folder}/mail/XXXXXXXX)"\n')
        store.chmod(0o755)
        (folder / "getmailrc").write_text(f"""[retriever]
type = {kind}
server = localhost
port = {port}
username = bob
password = {PASSWORD}
[destination]
type = MDA_external
path = {store}
allow_root_commands = true
[options]
delete = false
read_all = true
delivered_to = false
received = false
""")
        run(["getmail", f"--getmaildir={folder}", f"--rcfile={folder}/getmailrc"])
        expect_same(box, stored(folder / "mail"), f"getmail {how}")


def read_by_mutt(box):
    """mutt opens the maildrop and saves every message: plain, STLS and TLS"""
    need("mutt", "script")
    for how, url, options in [("plain", f"pop://bob@127.0.0.1:{box.open}", "ssl_starttls=no ssl_force_tls=no"),
                              ("stls", f"pop://bob@localhost:{box.relay.pop3_port}", "ssl_starttls=yes ssl_force_tls=yes"),
                              ("tls", f"pops://bob@localhost:{box.implicit}", "")]:
        folder = box.dir / f"mutt-{how}"
        folder.mkdir()
        (folder / "muttrc").write_text(f"""set folder="{folder}" pop_user="bob" pop_pass="{PASSWORD}" pop_delete=no {options}
set certificate_file="{box.cert}" quit=yes confirmappend=no confirmcreate=no mbox_type=Maildir sleep_time=0 wait_key=no
set move=no copy=no delete=no
push "<tag-pattern>~A<enter><tag-prefix><copy-message>{folder}/saved<enter><quit>"
""")
        run(["script", "-qec", f"mutt -n -F {folder}/muttrc -f {url}", "/dev/null"],
            env={"TERM": "xterm", "HOME": str(folder)}, timeout=60, binary_output=True)
        saved = [path for path in (folder / "saved").rglob("*") if path.is_file() and path.parent.name in ("new", "cur")]
        check_equal(len(saved), COUNT, f"messages saved by mutt {how}")


def scram_by_hand(box):
    """SCRAM-SHA-256 by hand: the server proves itself too, and an unknown user looks like a known one"""
    def login(name, password):
        wire = Wire("127.0.0.1", box.open)
        nonce = "clientnonce"
        bare = f"n={name},r={nonce}"
        first = wire.ask("AUTH SCRAM-SHA-256 " + base64.b64encode(f"n,,{bare}".encode()).decode())
        server_first = base64.b64decode(first[2:]).decode()
        fields = dict(part.split("=", 1) for part in server_first.split(","))
        salt = base64.b64decode(fields["s"])
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, int(fields["i"]))
        digest = lambda key, text: hmac.new(key, text, "sha256").digest()
        client_key = digest(salted, b"Client Key")
        without_proof = f"c=biws,r={fields['r']}"
        auth = f"{bare},{server_first},{without_proof}".encode()
        signature = digest(hashlib.sha256(client_key).digest(), auth)
        proof = base64.b64encode(bytes(a ^ b for a, b in zip(client_key, signature))).decode()
        last = wire.ask(base64.b64encode(f"{without_proof},p={proof}".encode()).decode())
        if last.startswith("+ "):
            expected = b"v=" + base64.b64encode(digest(digest(salted, b"Server Key"), auth))
            check_equal(base64.b64decode(last[2:]), expected, "the server's own proof")
            last = wire.ask("")
        wire.close()
        return last, salt
    check(login("bob", PASSWORD)[0].startswith("+OK"), "SCRAM with the right password")
    for name, password in [("bob", "wrong"), ("nobody", PASSWORD)]:
        reply, salt = login(name, password)
        check(reply.startswith("-ERR [AUTH]"), f"SCRAM for {name}: {reply}")
        check_equal(login(name, password)[1], salt, f"the salt of {name} stays the same")


def scram_bound(box):
    """SCRAM-SHA-256-PLUS over SMTP, tied to the server's certificate: right, and tied to another one"""
    text = lambda octets: base64.b64encode(octets).decode()
    digest = lambda key, data: hmac.new(key, data, "sha256").digest()

    def login(binding):
        with box.relay.smtp() as client:
            client.starttls(context=trusting(box))
            client.ehlo()
            check("SCRAM-SHA-256-PLUS" in client.esmtp_features["auth"], f"no PLUS in {client.esmtp_features}")
            header, bare = b"p=tls-server-end-point,,", b"n=bob,r=clientnonce"
            code, challenge = client.docmd("AUTH", "SCRAM-SHA-256-PLUS " + text(header + bare))
            check_equal(code, 334, f"the first challenge {challenge!r}")
            first = base64.b64decode(challenge)
            fields = dict(part.split(b"=", 1) for part in first.split(b","))
            salted = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(fields[b"s"]), int(fields[b"i"]))
            client_key = digest(salted, b"Client Key")
            bound = binding(client.sock.getpeercert(binary_form=True))
            without_proof = b"c=" + text(header + bound).encode() + b",r=" + fields[b"r"]
            signature = digest(hashlib.sha256(client_key).digest(), b",".join([bare, first, without_proof]))
            proof = text(bytes(a ^ b for a, b in zip(client_key, signature))).encode()
            code, last = client.docmd(text(without_proof + b",p=" + proof))
            return client.docmd("")[0] if code == 334 else code
    check_equal(login(lambda certificate: hashlib.sha256(certificate).digest()), 235, "a login tied to the certificate")
    check_equal(login(lambda certificate: hashlib.sha256(b"another").digest()), 535, "a login tied to another certificate")


def apop(box):
    """APOP with a secret of its own, for those who have one"""
    for user, expected in (("eve", True), ("bob", False)):
        session = poplib.POP3("127.0.0.1", box.open, timeout=20)
        try:
            session.apop(user, PASSWORD)
            accepted = True
        except poplib.error_proto:
            accepted = False
        check_equal(accepted, expected, f"APOP for {user}")
        session.close()


def quotas(box):
    """a full mailbox refuses with 552 at RCPT and at delivery, and takes mail again after DELE"""
    with box.relay.smtp() as client:
        for number in range(2):
            client.sendmail("alice@client.test", ["full@localhost"], make_message(subject=f"fits {number}"))
    box.relay.wait_mail("full", PASSWORD, 2)
    # One of two has room: so RCPT takes it, and the full one refuses at delivery.
    with box.relay.smtp() as client:
        client.sendmail("", ["both@localhost"], make_message(subject="too much"))
    bounced = box.relay.wait_event("bounced")
    check(bounced["reply"].startswith("552 5.2.2"), f"the outcome of a delivery into a full mailbox: {bounced}")
    check_equal(len(box.relay.mailbox("full", PASSWORD)), 2, "messages in the full mailbox")
    with box.relay.smtp() as client:
        client.ehlo()
        client.mail("alice@client.test")
        for name in ("full", "only"):
            code, text = client.rcpt(f"{name}@localhost")
            check_equal((code, text[:5]), (552, b"5.2.2"), f"RCPT for {name}, a full mailbox")
    session = box.relay.pop3("full", PASSWORD)
    session.dele(1)
    session.quit()
    with box.relay.smtp() as client:
        client.sendmail("alice@client.test", ["full@localhost"], make_message(subject="fits again"))
    check(b"fits again" in box.relay.wait_mail("full", PASSWORD, 2)[1], "mail after DELE")


def rest_of(wire):
    """Everything until the far side closes."""
    octets = wire.buffer
    while chunk := wire.socket.recv(1 << 16):
        octets += chunk
    return octets


def hostile(box):
    """locks, dropped connections, pipelining, endless lines, and too many sessions"""
    first = box.relay.pop3("bob", PASSWORD)
    second = Wire("127.0.0.1", box.open)
    second.ask("USER bob")
    check(second.ask(f"PASS {PASSWORD}").startswith("-ERR [IN-USE]"), "a second session of a locked maildrop")
    second.close()
    first.dele(1)
    first.sock.shutdown(socket.SHUT_RDWR)
    first.close()

    def opened():
        try:
            return box.relay.pop3("bob", PASSWORD)
        except poplib.error_proto:
            return None
    session = wait_until(opened, "the lock to be free", 20)
    check_equal(session.stat()[0], COUNT, "messages after a dropped connection")
    check_equal(tuple(session.uidl()[1]), box.ids, "unique-ids after all of this")
    session.quit()

    wire = Wire("127.0.0.1", box.open)
    commands = [f"USER bob", f"PASS {PASSWORD}"] + [f"RETR {n}" for n in range(1, COUNT + 1)] + ["NOOP", "QUIT"]
    wire.send("".join(command + "\r\n" for command in commands).encode())
    everything = rest_of(wire)
    for number, message in enumerate(box.messages, 1):
        wanted = re.sub(rb"(?m)^\.", b"..", message)
        check(wanted + b".\r\n" in everything, f"message {number} in a pipelined session")
    check(everything.endswith(b"+OK bye\r\n"), f"the end of a pipelined session: {everything[-40:]!r}")

    wire = Wire("127.0.0.1", box.open)
    wire.send(b"X" * 300_000)
    wire.send(b"\r\nQUIT\r\n")
    answer = rest_of(wire)
    check(answer.startswith(b"-ERR") and answer.endswith(b"+OK bye\r\n"), f"an endless line got {answer!r}")
    sessions = [Wire("127.0.0.1", box.open) for _ in range(20)]
    refused = Wire("127.0.0.1", box.open, greeting=False)
    check(rest_of(refused).startswith(b"-ERR [SYS/TEMP]"), "the 21st session of a client")
    for session in sessions:
        session.close()

    def admitted():
        wire = Wire("127.0.0.1", box.open)
        wire.close()
        return wire.greeting.startswith("+OK")
    wait_until(admitted, "a new session after the others have closed", 20)


def expire(box):
    """retention: QUIT removes what was retrieved, and EXPIRE says so"""
    session = box.relay.pop3("bob", PASSWORD)
    check_equal(session.capa()["EXPIRE"], ["NEVER"], "EXPIRE where messages are kept")
    session.quit()
    box.relay.cli("user", "set", "bob", "--retention", "retrieved")

    def changed():
        session = box.relay.pop3("bob", PASSWORD)
        expire = session.capa()["EXPIRE"]
        if expire == ["NEVER"]:
            return session.quit() and None
        check_equal(expire, ["0"], "EXPIRE where messages go when they were retrieved")
        return session
    session = wait_until(changed, "the new retention", 20, 0.3)
    session.retr(2)
    session.top(1, 5)
    session.quit()
    check_equal(len(box.relay.mailbox("bob", PASSWORD)), COUNT - 1, "messages after one was retrieved")
    check_equal(len(box.relay.mailbox("bob", PASSWORD)), 0, "messages after all were retrieved")


def stop(box):
    """a stop leaves nothing behind"""
    box.relay.stop()


if __name__ == "__main__":
    main(start, poplib_everywhere, curl, fetch_by_fetchmail, fetch_by_mpop, fetch_by_getmail, read_by_mutt, scram_by_hand, scram_bound,
         apop, quotas, hostile, expire, stop)
