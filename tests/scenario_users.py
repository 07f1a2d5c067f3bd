"""Operators add, change, list and remove users while the relay runs; logins and mail follow without a restart."""

from harness import *

PASSWORD = "correct horse battery"


def start(box):
    """start with one user"""
    box.relay = box.ringmail(config={"dns": {"servers": [f"127.0.0.1:{free_port()}"], "timeout": "100ms"}})
    box.relay.add_user("joe", PASSWORD)
    box.relay.start()


def may_log_in(box, user, password):
    """Whether POP3 and SMTP take this login; they agree."""
    try:
        box.relay.pop3(user, password).quit()
        pop3 = True
    except poplib.error_proto:
        pop3 = False
    with box.relay.smtp() as client:
        try:
            client.login(user, password)
            smtp = True
        except smtplib.SMTPAuthenticationError:
            smtp = False
    return pop3 if pop3 == smtp else None


def listed(box):
    return {user["name"]: user for user in json.loads(box.relay.cli("user", "list", "--json").stdout)}


def add(box):
    """a user who is added gets mail and may log in; `user list` shows all of them"""
    box.relay.add_user("Ann", PASSWORD)
    check(may_log_in(box, "ann", PASSWORD), "a login of the new user")
    check(may_log_in(box, "joe", PASSWORD), "a login of the old user")
    with box.relay.smtp() as client:
        client.sendmail("a@client.test", ["ann@localhost"], make_message(subject="for ann"))
    box.relay.wait_mail("ann", PASSWORD, 1)
    check_equal(sorted(listed(box)), ["ann", "joe"], "users in --json")
    check_equal(listed(box)["ann"]["hash"], "argon2id", "the kind of hash")
    lines = box.relay.cli("user", "list").stdout.splitlines()
    check_equal([line.split()[0] for line in lines], ["NAME", "joe", "ann"], "users in the table")


def change(box):
    """`passwd` and `set` take effect, and the file stays for its owner alone"""
    box.relay.cli("user", "passwd", "ann", "--password-stdin", input="another\n")
    check(may_log_in(box, "ann", "another"), "a login with the new password")
    check(not may_log_in(box, "ann", PASSWORD), "the old password is taken")
    box.relay.cli("user", "set", "ann", "--quota", "2MiB", "--messages", "none", "--retention", "30d")
    ann = listed(box)["ann"]
    check_equal((ann["quota_bytes"], ann["quota_messages"], ann["retention"]), (2 << 20, "none", "30d"), "what was set")
    check_equal((box.relay.data_dir / "users").stat().st_mode & 0o777, 0o600, "mode of the users file")


def take_over(box):
    """a hash from elsewhere works; SCRAM is not offered while its owner has no keys, and comes back with `passwd`"""
    offered = lambda: box.relay.pop3("joe", PASSWORD).capa()["SASL"]
    check("SCRAM-SHA-256" in offered(), "SCRAM while all have keys")
    made = run(["openssl", "passwd", "-6", "-salt", "c29tZXNhbHQ", "secret"]).stdout.strip()
    box.relay.cli("user", "add", "old", "--hash", made)
    check(may_log_in(box, "old", "secret"), "a login with the hash from elsewhere")
    wait_until(lambda: "SCRAM-SHA-256" not in offered(), "SCRAM not to be offered to who has no keys", 30, 0.2)
    check_equal(listed(box)["old"]["scram"], False, "scram in the list")
    box.relay.cli("user", "passwd", "old", "--password-stdin", input="secret\n")
    wait_until(lambda: "SCRAM-SHA-256" in offered(), "SCRAM when all have keys again", 30, 0.2)


def remove(box):
    """a user who is removed gets no mail and may not log in; the mailbox stays until the operator removes it"""
    said = box.relay.cli("user", "remove", "ann").stdout
    folder = box.relay.data_dir / "mail/ann"
    check(str(folder) in said, f"the mailbox is named: {said!r}")

    def refused():
        with box.relay.smtp() as client:
            client.ehlo()
            client.mail("a@client.test")
            return client.rcpt("ann@localhost")
    code, text = refused()
    check_equal((code, text[:5]), (550, b"5.1.1"), "RCPT for a user who was removed")
    check(not may_log_in(box, "ann", "another"), "a removed user may log in")
    check_equal(sorted(listed(box)), ["joe", "old"], "users who are left")
    check_equal(len(list((folder / "new").iterdir()) + list((folder / "cur").iterdir())), 1, "messages that stay")


def faults(box):
    """who is there is not added, who is not there is not changed, and each says so with a status of its own"""
    for arguments, code in [(["add", "joe", "--password-stdin"], 65), (["add", "a/b", "--password-stdin"], 65),
                            (["passwd", "ann", "--password-stdin"], 66), (["remove", "ann"], 66),
                            (["set", "ann", "--quota", "1MiB"], 66), (["set", "joe", "--quota", "much"], 64),
                            (["set", "joe"], 64), (["add", "eve", "--hash", "$1$weak$hash"], 65)]:
        done = box.relay.cli("user", *arguments, input="pw\n", ok=False)
        check_equal(done.returncode, code, f"status of user {' '.join(arguments)}: {done.stderr}")
        check(done.stderr.strip(), f"user {' '.join(arguments)} says nothing")
    check_equal(sorted(listed(box)), ["joe", "old"], "users after all of this")


def domains(box):
    """a domain that becomes local by a reload has mailboxes at once, also for mail that waits; quotas change as well"""
    with box.relay.smtp() as client:
        client.sendmail("a@client.test", ["joe@new.test"], make_message(subject="waits for the domain"))
    waiting = box.relay.wait_event("deferred", to="<joe@new.test>")["id"]
    box.relay.config["mailboxes"] = {"local_domains": ["localhost", "new.test"], "quota_messages": 1,
                                     "over_quota": "reject"}
    box.relay.write_config()
    box.relay.cli("reload")
    with box.relay.smtp() as client:
        client.ehlo()
        client.mail("a@client.test")
        check_equal(client.rcpt("nobody@new.test")[0], 550, "RCPT for nobody in the new domain")
    box.relay.cli("queue", "flush")
    box.relay.wait_event("delivered", id=waiting, site="mailbox")
    with box.relay.smtp() as client:
        client.ehlo()
        client.mail("a@client.test")
        check_equal(client.rcpt("joe@new.test")[0], 552, "RCPT for a mailbox that has what it may")
    box.relay.config["mailboxes"]["quota_messages"] = 0
    box.relay.write_config()
    box.relay.cli("reload")
    with box.relay.smtp() as client:
        client.sendmail("a@client.test", ["joe@new.test"], make_message(subject="there is room"))
    wait_until(lambda: len(box.relay.events("delivered", to="<joe@new.test>", site="mailbox")) == 2, "the second")
    box.relay.config["mailboxes"] = {"local_domains": ["localhost", "new.test"], "mail_dir": "elsewhere"}
    box.relay.write_config()
    done = box.relay.cli("reload", ok=False)
    check_equal((done.returncode, "mail_dir" in done.stderr), (78, True), f"another folder: {done.stderr!r}")
    del box.relay.config["mailboxes"]
    box.relay.write_config()
    box.relay.cli("reload")


def damaged(box):
    """a users file that is damaged, empty or gone changes nothing, and `reload` says so; mended it is taken"""
    file = box.relay.data_dir / "users"
    good = file.read_bytes()
    for content in (b"joe:broken\n", b"", None):
        file.unlink() if content is None else file.write_bytes(content)
        done = box.relay.cli("reload", ok=False)
        check_equal(done.returncode, 78, f"status of reload with {content!r} as users")
        check(str(file) in done.stderr, f"the file is named: {done.stderr!r}")
        with box.relay.smtp() as client:
            client.ehlo()
            client.mail("a@client.test")
            check_equal(client.rcpt("joe@localhost")[0], 250, f"RCPT with {content!r} as users")
    file.write_bytes(good)
    box.relay.cli("reload")
    for user in ("joe", "old"):
        box.relay.cli("user", "remove", user)
    with box.relay.smtp() as client:
        client.ehlo()
        client.mail("a@client.test")
        check_equal(client.rcpt("joe@localhost")[0], 550, "RCPT when the last user was removed")


def stop(box):
    """a stop leaves nothing behind"""
    box.relay.stop()


if __name__ == "__main__":
    main(start, add, change, take_over, remove, faults, domains, damaged, stop)
