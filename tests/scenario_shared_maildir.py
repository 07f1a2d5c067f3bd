"""Dovecot and ringmail on the same Maildirs at the same time.

While ringmail delivers, Dovecot's POP3 opens, retrieves and deletes in the same mailbox, and so does ringmail's own; Python's
`mailbox` sets flags as mutt would. Nothing is lost, nothing comes twice, both count the same sizes, and unique-ids stay. Then
Dovecot's LMTP delivers into a Maildir that ringmail serves.
"""

import mailbox
import pwd

from harness import *

PASSWORD = "secret"
MESSAGES = 300


def start_dovecot(box):
    owner = pwd.getpwuid(os.getuid())
    base = box.dir / "dovecot"
    base.mkdir()
    box.dovecot_port, box.lmtp_port = free_port(), free_port()
    (base / "passwd").write_text(f"bob:{{PLAIN}}{PASSWORD}\n")
    (base / "dovecot.conf").write_text(f"""base_dir = {base}/run
log_path = {base}/log
protocols = pop3 lmtp
listen = 127.0.0.1
ssl = no
disable_plaintext_auth = no
first_valid_uid = {box.owner.pw_uid}
last_valid_uid = {box.owner.pw_uid}
mail_location = maildir:{box.mail}/%n
pop3_uidl_format = %g
passdb {{
  driver = passwd-file
  args = username_format=%n {base}/passwd
}}
userdb {{
  driver = static
  args = uid={box.owner.pw_uid} gid={box.owner.pw_gid} home={box.mail}/%n
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {box.dovecot_port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {box.lmtp_port}
  }}
}}
""")
    box.spawn(["dovecot", "-F", "-c", base / "dovecot.conf"], log=base / "output")
    box.dovecot_log = base / "log"

    def answers():
        try:
            dovecot(box).quit()
            return True
        except (OSError, poplib.error_proto):
            return False
    wait_until(answers, lambda: f"Dovecot to answer:\n{box.dovecot_log.read_text() if box.dovecot_log.exists() else ''}", 30)


def dovecot(box):
    session = poplib.POP3("127.0.0.1", box.dovecot_port, timeout=30)
    session.user("bob")
    session.pass_(PASSWORD)
    return session


def start(box):
    """start both on one folder of Maildirs"""
    need("dovecot")
    if os.geteuid() != 0:
        raise Skip("Dovecot needs root")
    # Dovecot serves nobody's mail as root, and ringmail as root may write everywhere.
    box.owner = pwd.getpwnam("nobody")
    box.mail = box.dir / "mail"
    for folder in (box.mail, box.mail / "bob", *(box.mail / "bob" / sub for sub in ("new", "cur", "tmp"))):
        folder.mkdir()
        os.chown(folder, box.owner.pw_uid, box.owner.pw_gid)
    for folder in (box.dir, box.mail):
        folder.chmod(0o755)
    box.relay = box.ringmail(config={"mailboxes": {"mail_dir": str(box.mail)}})
    box.relay.add_user("bob", PASSWORD)
    box.relay.start()
    start_dovecot(box)


def chown_all(box):
    """What ringmail delivers belongs to its own account, which in this test is another one than Dovecot's."""
    for sub in ("new", "cur"):
        for path in (box.mail / "bob" / sub).iterdir():
            try:
                os.chown(path, box.owner.pw_uid, box.owner.pw_gid)
            except FileNotFoundError:
                pass


def body_of(number):
    return f"number {number}\r\n.dots\r\n" + "x" * (number % 70) + "\r\n"


def number_of(lines):
    return int(next(line for line in lines if line.startswith(b"number ")).split()[1])


def deliver_and_fetch(box):
    """ringmail delivers, three programs fetch and delete: every message comes to somebody, none to two"""
    got, failures = [], []
    sent = threading.Event()

    def send():
        try:
            with box.relay.smtp() as client:
                for number in range(MESSAGES):
                    client.sendmail("a@client.test", ["bob@localhost"], make_message(recipient="bob@localhost",
                                    subject=f"m{number}", body=body_of(number)))
            box.relay.wait_queue_empty()
        except Exception as error:
            failures.append(f"sending: {error!r}")
        sent.set()

    def take(login, name):
        while True:
            last = sent.is_set()
            chown_all(box)
            try:
                session = login()
            except (poplib.error_proto, OSError):
                time.sleep(0.05)  # the other session of this server, or a busy machine
                if last:
                    return
                continue
            try:
                count = session.stat()[0]
                mine = []
                for number in range(1, min(count, 20) + 1):
                    try:
                        mine.append(number_of(session.retr(number)[1]))
                        session.dele(number)
                    except poplib.error_proto:
                        pass  # another program was faster
                session.quit()
                got.extend((name, number) for number in mine)
            except (poplib.error_proto, OSError) as error:
                failures.append(f"{name}: {error!r}")
                return
            if last and count == 0:
                return
            time.sleep(0.05)

    # One after the other in time, so that no message is fetched twice by their being faster; at the same time as deliveries.
    turn = threading.Lock()

    def alternately(login, name):
        def inside():
            with turn:
                return login()
        take(inside, name)

    def flags():
        while not sent.is_set():
            folder = mailbox.Maildir(box.mail / "bob", create=False)
            for key in list(folder.keys())[:5]:
                try:
                    message = folder[key]
                    message.add_flag("F")
                    folder[key] = message
                except (KeyError, OSError):
                    pass
            time.sleep(0.2)

    threads = [threading.Thread(target=send),
               threading.Thread(target=alternately, args=(lambda: box.relay.pop3("bob", PASSWORD), "ringmail")),
               threading.Thread(target=alternately, args=(lambda: dovecot(box), "dovecot"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(150)
        check(not thread.is_alive(), "a thread goes on for ever")
    check(not failures, f"failures: {failures}")
    chown_all(box)
    left = [number_of(message.split(b"\r\n")) for message in box.relay.mailbox("bob", PASSWORD)]
    numbers = [number for _, number in got]
    check_equal(sorted(set(numbers + left)), list(range(MESSAGES)), "messages that somebody got or that are left")
    takers = {name for name, _ in got}
    check_equal(takers, {"ringmail", "dovecot"}, "who got some")


def same_view(box):
    """both show the same messages, sizes and unique-ids, also after flags were set by a third program"""
    box.relay.mailbox("bob", PASSWORD, delete=True)
    with box.relay.smtp() as client:
        for number in range(30):
            client.sendmail("a@client.test", ["bob@localhost"], make_message(recipient="bob@localhost", body=body_of(number)))
    box.relay.wait_mail("bob", PASSWORD, 30)
    chown_all(box)

    def view(session):
        sizes = [int(line.split()[1]) for line in session.list()[1]]
        ids = [line.split()[1] for line in session.uidl()[1]]
        messages = [retrieve(session, number) for number in range(1, len(sizes) + 1)]
        session.quit()
        return dict(zip(messages, zip(sizes, (id.split(b",")[0] for id in ids))))
    first = view(box.relay.pop3("bob", PASSWORD))
    folder = mailbox.Maildir(box.mail / "bob", create=False)
    for key in list(folder.keys())[:10]:
        message = folder.get_message(key)
        message.set_flags("RS")
        message.set_subdir("cur")
        folder[key] = message
    chown_all(box)
    second = view(dovecot(box))
    third = view(box.relay.pop3("bob", PASSWORD))
    check_equal(len(first), 30, "different messages")
    check_equal({m: size for m, (size, _) in second.items()}, {m: size for m, (size, _) in first.items()}, "Dovecot's sizes")
    check_equal(third, first, "ringmail's view after flags were set and Dovecot looked")


def delivered_by_dovecot(box):
    """what Dovecot's LMTP delivers is served with exact sizes"""
    box.relay.mailbox("bob", PASSWORD, delete=True)
    with smtplib.LMTP("127.0.0.1", box.lmtp_port) as client:
        for number in range(10):
            client.sendmail("a@client.test", ["bob@localhost"], make_message(recipient="bob@localhost", body=body_of(number)))
    session = box.relay.pop3("bob", PASSWORD)
    check_equal(session.stat()[0], 10, "messages that Dovecot delivered")
    for line in session.list()[1]:
        number, size = map(int, line.split())
        check_equal(len(retrieve(session, number)), size, f"size of message {number}")
    session.quit()


def stop(box):
    """a stop leaves nothing behind"""
    box.relay.stop()


if __name__ == "__main__":
    main(start, deliver_and_fetch, same_view, delivered_by_dovecot, stop)
