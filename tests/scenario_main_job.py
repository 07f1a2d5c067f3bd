"""The main job on one machine: a client submits, the message is stored, its owner reads and removes it over POP3.

alice logs in and sends to bob with each of four clients (swaks, curl, msmtp, smtplib; AUTH PLAIN and LOGIN); bob reads
with each of four (curl, poplib, fetchmail, mpop). What is read is octet for octet what was sent, below the trace fields.
A message is gone after DELE and QUIT, and still there when the connection broke before QUIT.
"""

from harness import *

PASSWORD = "correct horse"


def start(box):
    """start with two users"""
    box.relay = box.ringmail()
    box.relay.add_user("alice", "wonderland")
    box.relay.add_user("bob", PASSWORD)
    box.relay.start()


def message(box, how):
    """A message with what tends to break: leading dots, a long line, UTF-8, trailing blank lines."""
    content = make_message("alice@localhost", "bob@localhost", f"by {how}",
                           f"..two dots\r\n.one dot\r\n.\r\n{'long ' * 190}\r\nGr\u00fc\u00dfe\r\n\r\n\r\n")
    path = box.dir / f"{how.replace(' ', '-')}.eml"
    path.write_bytes(content)
    return content, path


def expect_mail(box, content, login, how):
    """bob's newest message is what was sent; remove it."""
    stored = box.relay.wait_mail("bob", PASSWORD, 1)
    check_equal(without_trace(stored[-1]), content, f"message sent by {how}")
    check(stored[-1].startswith(b"Return-Path: <alice@localhost>\r\n"), f"no Return-Path on top: {stored[-1][:80]!r}")
    # The log is written behind the work: its line may come after the message.
    queue_id = re.search(r"\bid ([0-9A-Z]{12})\b", received_chain(stored[-1])[0])[1]
    accepted = box.relay.wait_event("accepted", id=queue_id)
    check_equal(accepted.get("login"), login, f"login in the log of {how}")
    check_equal(accepted.get("proto"), "ESMTPA" if login else "ESMTP", f"protocol in the log of {how}")
    box.relay.mailbox("bob", PASSWORD, delete=True)


def submit_swaks(box):
    """swaks submits with AUTH PLAIN, LOGIN, and none"""
    need("swaks")
    for mechanism in ("PLAIN", "LOGIN", None):
        content, path = message(box, f"swaks {mechanism}")
        login = ["--auth", mechanism, "--auth-user", "alice", "--auth-password", "wonderland"] if mechanism else []
        done = run(["swaks", "--server", f"127.0.0.1:{box.relay.smtp_port}", "--helo", "client.test",
                    "--from", "alice@localhost", "--to", "bob@localhost", "--data", f"@{path}", *login])
        check("250 2.0.0" in done.stdout, f"swaks shows no 250 2.0.0:\n{done.stdout}")
        # swaks ends the data of a file with one more empty line.
        expect_mail(box, content + b"\r\n", "alice" if mechanism else None, f"swaks {mechanism}")


def submit_curl(box):
    """curl submits with AUTH PLAIN and LOGIN"""
    need("curl")
    for mechanism in ("PLAIN", "LOGIN"):
        content, path = message(box, f"curl {mechanism}")
        run(["curl", "-sS", f"smtp://127.0.0.1:{box.relay.smtp_port}/client.test", "--mail-from", "alice@localhost",
             "--mail-rcpt", "bob@localhost", "--upload-file", path, "--user", "alice:wonderland",
             "--login-options", f"AUTH={mechanism}"])
        expect_mail(box, content, "alice", f"curl {mechanism}")


def submit_msmtp(box):
    """msmtp submits with AUTH PLAIN and LOGIN"""
    need("msmtp")
    for mechanism in ("plain", "login"):
        content, path = message(box, f"msmtp {mechanism}")
        run(["msmtp", "-C", "/dev/null", "--host=127.0.0.1", f"--port={box.relay.smtp_port}", f"--auth={mechanism}",
             "--user=alice", "--passwordeval=echo wonderland", "--tls=off", "--domain=client.test",
             "--from=alice@localhost", "bob@localhost"], input=content.replace(b"\r\n", b"\n"), binary_output=True)
        expect_mail(box, content, "alice", f"msmtp {mechanism}")


def submit_smtplib(box):
    """smtplib submits with AUTH PLAIN and LOGIN; a wrong password and an unknown user get the same 535"""
    for mechanism in ("auth_plain", "auth_login"):
        content, _ = message(box, f"smtplib {mechanism}")
        with box.relay.smtp() as client:
            client.ehlo()
            client.user, client.password = "alice", "wonderland"
            client.auth(mechanism.removeprefix("auth_").upper(), getattr(client, mechanism))
            client.sendmail("alice@localhost", ["bob@localhost"], content, mail_options=["BODY=8BITMIME"])
        expect_mail(box, content, "alice", f"smtplib {mechanism}")
    answers = []
    for user, password in (("alice", "wrong"), ("nobody", "wonderland")):
        with box.relay.smtp() as client:
            client.ehlo()
            try:
                client.login(user, password)
                raise AssertionError(f"login of {user} with {password} succeeded")
            except smtplib.SMTPAuthenticationError as error:
                answers.append((error.smtp_code, error.smtp_error))
    check_equal(answers[0][0], 535, "reply to a wrong password")
    check_equal(answers[1], answers[0], "reply to an unknown user beside that to a wrong password")


def fill(box, count):
    """Put messages into bob's mailbox and return them."""
    sent = [make_message("alice@localhost", "bob@localhost", f"number {n}", f".dot\r\nbody {n}\r\n")
            for n in range(count)]
    with box.relay.smtp() as client:
        for content in sent:
            client.sendmail("alice@localhost", ["bob@localhost"], content)
    box.relay.wait_mail("bob", PASSWORD, count)
    return sent


def read_poplib(box):
    """poplib reads: sizes and unique-ids hold, kept after a broken connection, gone after DELE and QUIT"""
    sent = fill(box, 3)
    session = box.relay.pop3("bob", PASSWORD)
    count, total = session.stat()
    check_equal(count, 3, "messages by STAT")
    sizes = [int(line.split()[1]) for line in session.list()[1]]
    messages = [retrieve(session, n) for n in (1, 2, 3)]
    check_equal(sizes, [len(m) for m in messages], "sizes by LIST beside the octets sent")
    check_equal(total, sum(sizes), "sum of sizes by STAT")
    check_equal(sorted(map(without_trace, messages)), sorted(sent), "messages")
    ids = session.uidl()[1]
    check_equal(len(set(i.split()[1] for i in ids)), 3, "different unique-ids")
    check_equal(session.top(1, 0)[1][-1], b"", "TOP 1 0 ends with the header's empty line")
    for n in (1, 2, 3):
        session.dele(n)
    session.sock.close()
    session.file.close()
    session = wait_until(lambda: try_login(box), "the maildrop's lock to be freed after a broken connection")
    check_equal(session.stat()[0], 3, "messages after DELE and a broken connection")
    check_equal(session.uidl()[1], ids, "unique-ids in the second session")
    session.dele(2)
    session.quit()
    session = box.relay.pop3("bob", PASSWORD)
    left = session.uidl()[1]
    check_equal([i.split()[1] for i in left], [ids[0].split()[1], ids[2].split()[1]], "unique-ids after DELE 2 and QUIT")
    session.dele(1)
    session.rset()
    session.dele(2)
    session.quit()
    check_equal(len(box.relay.mailbox("bob", PASSWORD, delete=True)), 1, "messages after RSET and one DELE")
    check_equal(box.relay.mailbox("bob", PASSWORD), [], "messages after everything was deleted")


def try_login(box):
    """A session, or None while the maildrop is locked."""
    try:
        return box.relay.pop3("bob", PASSWORD)
    except poplib.error_proto:
        return None


def maildrop_is_locked(box):
    """a second session on one maildrop is refused, a wrong password and an unknown user too"""
    first = box.relay.pop3("bob", PASSWORD)
    for user, password in (("bob", PASSWORD), ("bob", "wrong"), ("nobody", "x")):
        try:
            box.relay.pop3(user, password)
            raise AssertionError(f"POP3 login of {user} with {password!r} succeeded beside an open session")
        except poplib.error_proto as error:
            check(error.args[0].startswith(b"-ERR"), f"refusal: {error}")
    first.quit()
    box.relay.pop3("bob", PASSWORD).quit()


def read_curl(box):
    """curl reads, keeps and deletes"""
    need("curl")
    sent = fill(box, 1)
    url = f"pop3://127.0.0.1:{box.relay.pop3_port}/1"
    for _ in range(2):
        got = run(["curl", "-sS", "--user", f"bob:{PASSWORD}", url], binary_output=True).stdout
        check_equal(without_trace(got), sent[0], "message by curl")
    run(["curl", "-sS", "--user", f"bob:{PASSWORD}", url, "--request", "DELE", "--list-only"], binary_output=True)
    check_equal(box.relay.mailbox("bob", PASSWORD), [], "messages after curl's DELE")


def read_fetchmail(box):
    """fetchmail takes three messages and leaves none"""
    need("fetchmail")
    sent = fill(box, 3)
    taken = box.dir / "fetchmail"
    fetchmail(box, taken, "127.0.0.1", box.relay.pop3_port, "bob", PASSWORD)
    check_same_mail(taken, sent, "fetchmail")
    check_equal(box.relay.mailbox("bob", PASSWORD), [], "messages left by fetchmail")


def read_mpop(box):
    """mpop takes three messages and leaves none"""
    need("mpop")
    sent = fill(box, 3)
    for folder in ("cur", "new", "tmp"):
        (box.dir / "mpop" / folder).mkdir(parents=True)
    config = box.dir / "mpoprc"
    config.write_text(f"""\
defaults
received_header off
account default
host 127.0.0.1
port {box.relay.pop3_port}
tls off
auth user
user bob
password "{PASSWORD}"
keep off
uidls_file {box.dir}/uidls
delivery maildir {box.dir}/mpop
""")
    config.chmod(0o600)
    run(["mpop", "-C", config, "-q"])
    check_same_mail(box.dir / "mpop" / "new", sent, "mpop")
    check_equal(box.relay.mailbox("bob", PASSWORD), [], "messages left by mpop")


def check_same_mail(folder, sent, who):
    """The files of a folder are the messages sent."""
    got = [file.read_bytes().replace(b"\r\n", b"\n") for file in folder.iterdir()]
    check_equal(sorted(without_trace_lf(m) for m in got), sorted(m.replace(b"\r\n", b"\n") for m in sent),
                f"messages taken by {who}")


def without_trace_lf(message):
    """`without_trace` of a message with LF line ends."""
    return without_trace(message.replace(b"\n", b"\r\n")).replace(b"\r\n", b"\n")


def unknown_recipient(box):
    """mail for an unknown local user is refused with 550 5.1.1"""
    wire = box.relay.raw()
    wire.ask("EHLO client.test")
    wire.ask("MAIL FROM:<alice@localhost>")
    check(wire.ask("RCPT TO:<nobody@localhost>").startswith("550 5.1.1"), "reply to an unknown user")
    check(wire.ask("RCPT TO:<bob@localhost>").startswith("250 2.1.5"), "reply to a known user after it")
    wire.ask("QUIT")


def maildir_for_others(box):
    """the Maildir is one: cur, new, tmp, files with LF or CRLF ends that belong to the user's folder only"""
    sent = fill(box, 1)
    folder = box.relay.data_dir / "mail" / "bob"
    check_equal(sorted(p.name for p in folder.iterdir() if p.name in ("cur", "new", "tmp")), ["cur", "new", "tmp"],
                f"folders of {folder}")
    files = [p for sub in ("new", "cur") for p in (folder / sub).iterdir()]
    check_equal(len(files), 1, "files in new and cur")
    check_equal(without_trace_lf(files[0].read_bytes().replace(b"\r\n", b"\n")), sent[0].replace(b"\r\n", b"\n"),
                "content of the file")
    check_equal(files[0].stat().st_mode & 0o077, 0, "permissions for others")
    box.relay.mailbox("bob", PASSWORD, delete=True)


def stop(box):
    """SIGTERM ends it with status 0"""
    box.relay.stop()


if __name__ == "__main__":
    main(start, submit_swaks, submit_curl, submit_msmtp, submit_smtplib, read_poplib, maildrop_is_locked, read_curl,
         read_fetchmail, read_mpop, unknown_recipient, maildir_for_others, stop)
