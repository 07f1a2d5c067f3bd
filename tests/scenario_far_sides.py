"""Real far sides: Postfix, Exim and Dovecot's LMTP (TCP and UNIX socket) take mail in plain text and over TLS, octet for octet.

Each far side gets the same messages: plain, with leading dots, of eight bits, with long lines, large, and many over one
connection. What it wrote into the mailbox must be what was sent, below its own trace fields. Refusals of each become reports to
the sender; success reports are relayed, or made where the far side has no DSN. Far sides that are not installed, or cannot be
run here, are left out and named.
"""

import pwd

from harness import *

LINES = {
    "plain": b"A line.\r\n",
    "dots": b".\r\n..\r\n.hidden\r\n\r\n.\r\n",
    "eight bits": "Grüße, 你好\r\n".encode() * 20,
    "long lines": b"x" * 900 + b"\r\n" + b"y " * 450 + b"\r\n",
    "large": b"".join(b"%08d The quick brown fox jumps over the lazy dog.\r\n" % n for n in range(30_000)),
    "large with dots": b"".join(b".%07d dots\r\n" % n for n in range(20_000)),
}


def message(kind, number=0):
    """The message of a kind, CRLF line ends."""
    extra = "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    return (f"From: alice@relay.test\r\nTo: user@far.test\r\nSubject: {kind} {number}\r\n"
            f"Date: Mon, 02 Feb 2026 10:00:00 +0000\r\n"
            f"Message-ID: <{kind.replace(' ', '-')}.{number}@relay.test>\r\n{extra}\r\n").encode() + LINES[kind]


def certificate(box):
    """A self-signed certificate for far.test."""
    need("openssl")
    box.cert, box.key = box.dir / "cert.pem", box.dir / "key.pem"
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=far.test", "-addext", "subjectAltName=DNS:far.test", "-keyout", box.key, "-out", box.cert])
    box.key.chmod(0o644)


def mails(path):
    """All files of the Maildirs below a path, as they would have travelled."""
    found = [file for part in ("new", "cur") for file in path.glob(f"**/{part}/*")]
    return [file.read_bytes().replace(b"\n", b"\r\n") for file in found]


class FarSide:
    """One real server: how to reach it, and where its mail lands."""

    def __init__(self, name, route, mail, refused=None):
        self.name, self.route, self.mail, self.refused = name, route, mail, refused


def postfix(box):
    """Postfix in a folder of its own."""
    mail = owned_folder(box.dir / "postfix" / "mail", "nobody")
    user = pwd.getpwnam("nobody")
    port = postfix_server(box, f"""\
myhostname = far.test
virtual_mailbox_domains = far.test
virtual_mailbox_base = {mail}
virtual_mailbox_maps = inline:{{{{user@far.test=user/}}}}
virtual_uid_maps = static:{user.pw_uid}
virtual_gid_maps = static:{user.pw_gid}
virtual_minimum_uid = 1
mailbox_size_limit = 0
virtual_mailbox_limit = 0
message_size_limit = 50000000
smtpd_tls_cert_file = {box.cert}
smtpd_tls_key_file = {box.key}
smtpd_tls_security_level = may
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions = reject_unlisted_recipient, permit
""")
    return FarSide("postfix", {"host": "127.0.0.1", "port": port}, mail, "nobody@far.test")


def exim(box):
    """Exim from its Debian package, unpacked beside the installed ones (it conflicts with Postfix), with a user of its own."""
    need("apt-get", "dpkg", "unshare", "ldd")
    home, port = box.dir / "exim", free_port()
    owned_folder(home)
    done = run(["apt-get", "download", "exim4-daemon-light"], cwd=home, ok=False, timeout=120)
    packages = list(home.glob("*.deb"))
    if done.returncode != 0 or not packages:
        raise Skip("the package exim4-daemon-light cannot be downloaded")
    run(["dpkg", "-x", packages[0], home / "root"])
    program = home / "root/usr/sbin/exim4"
    missing = re.findall(r"(\S+) => not found", run(["ldd", program]).stdout)
    if missing:
        raise Skip("libraries that Exim needs are not installed: " + " ".join(missing))
    for name, line in (("passwd", "Debian-exim:x:60001:60001::/:/usr/sbin/nologin"), ("group", "Debian-exim:x:60001:")):
        others = [line for line in Path(f"/etc/{name}").read_text().splitlines() if not line.startswith("Debian-exim:")]
        (home / name).write_text("\n".join([*others, line]) + "\n")
    for path in (home / "spool", home / "mail"):
        owned_folder(path)
        os.chown(path, 60001, 60001)
    (home / "exim.conf").write_text(f"""\
primary_hostname = far.test
exim_path = {program}
spool_directory = {home}/spool
log_file_path = {home}/spool/log.%s
pid_file_path = {home}/exim.pid
tls_advertise_hosts = *
tls_certificate = {box.cert}
tls_privatekey = {box.key}
dsn_advertise_hosts = *
message_size_limit = 50M
smtp_accept_queue_per_connection = 0
acl_smtp_rcpt = check
acl_smtp_data = accept
begin acl
check:
  deny message = 5.1.1 no such user
       ! local_parts = user
  accept
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  directory = {home}/mail/user
  create_directory
  maildir_format
  user = Debian-exim
  group = Debian-exim
begin retry
* * F,1h,1m
""")
    start = home / "start"
    start.write_text(f"mount --bind {home}/passwd /etc/passwd && mount --bind {home}/group /etc/group && exec \"$@\"\n")
    if run(["unshare", "--mount", "sh", start, "true"], ok=False).returncode != 0:
        raise Skip("Exim needs a user of its own, and a mount namespace cannot be made here")
    box.spawn(["unshare", "--mount", "sh", start, program, "-C", home / "exim.conf", "-bdf", "-oX", f"127.0.0.1.{port}"],
              log="exim.out")
    return FarSide("exim", {"host": "127.0.0.1", "port": port}, home / "mail", "nobody@far.test")


def dovecot(box):
    """Dovecot's LMTP, on TCP and on a UNIX socket."""
    need("dovecot", "doveadm")
    if not Path("/usr/lib/dovecot/lmtp").exists():
        raise Skip("dovecot-lmtpd is not installed")
    home, port = box.dir / "dovecot", free_port()
    owned_folder(home)
    mail = owned_folder(home / "mail", "nobody")
    user = pwd.getpwnam("nobody")
    config = home / "dovecot.conf"
    (home / "users").write_text(f"user:{{PLAIN}}x:{user.pw_uid}:{user.pw_gid}::{mail}/user::\n")
    config.write_text(f"""\
protocols = lmtp
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/log
mail_location = maildir:{mail}/%n
first_valid_uid = 1
first_valid_gid = 1
ssl = yes
ssl_cert = <{box.cert}
ssl_key = <{box.key}
auth_username_format = %n
passdb {{
  driver = passwd-file
  args = {home}/users
}}
userdb {{
  driver = passwd-file
  args = {home}/users
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {port}
  }}
  unix_listener {home}/lmtp {{
    mode = 0666
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
""")
    box.spawn([find_program("dovecot"), "-F", "-c", config], log="dovecot.out")
    wait_until(lambda: (home / "lmtp").is_socket(), lambda: f"Dovecot's socket; {(box.dir / 'dovecot.out').read_text()}", 20)
    tcp = FarSide("dovecot by TCP", {"host": "127.0.0.1", "port": port, "protocol": "lmtp"}, mail, "nobody@far.test")
    socket_route = {"host": f"unix:{home}/lmtp", "protocol": "lmtp"}
    return [tcp, FarSide("dovecot by UNIX socket", socket_route, mail, "nobody@far.test")]


def start_far_sides(box):
    """start the far sides"""
    certificate(box)
    box.far_sides = []
    for begin in (postfix, exim, dovecot):
        try:
            if os.geteuid() != 0:
                raise Skip("it must be started by root")
            begun = begin(box)
            box.far_sides += begun if isinstance(begun, list) else [begun]
        except Skip as reason:
            print(f"  note: without {begin.__name__}: {reason}")
    if not box.far_sides:
        raise Skip("no far side can be run here")
    for side in box.far_sides:
        if "port" in side.route:
            wait_until(lambda: greets(side.route["port"]), lambda: f"{side.name} to greet; "
                       + "".join(file.read_text(errors="replace")[-2000:] for file in box.dir.glob("*.out")), 30, 0.2)


def greets(port):
    """Somebody says 220 there."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as probe:
            probe.settimeout(5)
            greeting = probe.recv(512)
            probe.sendall(b"QUIT\r\n")
            return greeting.startswith(b"220")
    except OSError:
        return False


def relay_to(box, side, tls, **delivery):
    """A relay whose far.test is this far side."""
    name = f"relay{len(box.relays)}"
    relay = box.ringmail(name, {
        "hostname": "relay.test",
        "route": [{"domain": "far.test", "tls": tls, **side.route}],
        "retry": {"delay_min": "60s"},
        "delivery": {"connections_max": 2, **delivery},
    })
    relay.add_user("alice", "pw")
    return relay.start()


def takes(side, tls):
    """A step: every kind of message arrives at this far side as it was sent."""
    def step(box):
        relay = relay_to(box, side, tls)
        before = len(mails(side.mail))
        kinds = [(kind, number) for kind in LINES for number in range(4)]
        with relay.smtp(60) as client:
            for kind, number in kinds:
                client.ehlo_or_helo_if_needed()
                check_equal(client.mail("alice@relay.test", ["BODY=8BITMIME"])[0], 250, "MAIL")
                check_equal(client.rcpt("user@far.test")[0], 250, "RCPT")
                check_equal(client.data(message(kind, number))[0], 250, "reply to the message")
        wait_until(lambda: len(relay.events("delivered")) >= len(kinds),
                   lambda: f"{len(kinds)} deliveries to {side.name}; log:\n{relay.log_tail()}", 60, 0.1)
        delivered = relay.events("delivered")
        if tls != "none":
            check(all("tls" in event for event in delivered), f"over TLS: {delivered[0]}")
        else:
            check(all("tls" not in event for event in delivered), f"in plain text: {delivered[0]}")
        wait_until(lambda: len(mails(side.mail)) >= before + len(kinds),
                   lambda: f"{len(kinds)} more messages in {side.mail}, {len(mails(side.mail)) - before} are there", 60, 0.2)
        arrived = mails(side.mail)
        check_equal(len(arrived), before + len(kinds), "messages in the mailbox")
        for kind, number in kinds:
            sent = message(kind, number)
            same = [found for found in arrived if found.endswith(sent)]
            check(same, f"{side.name}: {kind} {number} did not arrive as it was sent")
            trace = same[0][:-len(sent)]
            check(b"Received: " in trace and b"\r\n\r\n" not in trace, f"trace fields before it: {trace!r}")
        relay.stop()
        for path in side.mail.glob("**/new/*"):
            path.unlink()
    step.__doc__ = f"{side.name} takes every kind of message with tls = {tls}"
    return step


def reports(side):
    """A step: what this far side refuses and what it takes is reported to a sender who asks."""
    def step(box):
        relay = relay_to(box, side, "none")
        with relay.smtp() as client:
            client.ehlo()
            check_equal(client.mail("alice@relay.test", ["ENVID=e+2B1"])[0], 250, "MAIL")
            for to in ("user@far.test", side.refused):
                asked = ["NOTIFY=SUCCESS,FAILURE", f"ORCPT=rfc822;first-{to}"]
                check_equal(client.rcpt(to, asked)[0], 250, f"RCPT for {to}")
            check_equal(client.data(message("plain", 99))[0], 250, "reply to the message")
        relay.wait_event("delivered", to="<user@far.test>")
        relay.wait_event("bounced", to=f"<{side.refused}>")
        texts = [text.decode(errors="replace") for text in relay.wait_mail("alice", "pw", 1)]
        # A far side with DSN tells of success by itself, to whom it can.
        taken_over = "postfix" in side.name or "exim" in side.name
        for to, action, told in ((side.refused, "failed", True), ("user@far.test", "delivered", not taken_over)):
            of = [text for text in texts if f"Final-Recipient: rfc822; {to}" in text and f"Action: {action}" in text]
            check_equal(bool(of), told, f"{side.name}: a report of `{action}` about {to} in {texts}")
            check(not of or (f"Original-Recipient: rfc822; first-{to}" in of[0] and "Original-Envelope-Id: e+1" in of[0]),
                  f"ORCPT and ENVID in the report: {of}")
        relay.wait_queue_empty()
        relay.stop()
    step.__doc__ = f"refusals and successes of {side.name} are reported"
    return step


def every_far_side(box):
    """each far side, in plain text and over TLS"""
    failed = 0
    for side in box.far_sides:
        ways = ["none"] if side.route["host"].startswith("unix:") else ["none", "encrypt"]
        for step in [takes(side, tls) for tls in ways] + [reports(side)]:
            begun = time.monotonic()
            try:
                step(box)
                print(f"  ok      {step.__doc__} ({time.monotonic() - begun:.1f} s)", flush=True)
            except Exception as error:
                failed += 1
                print(f"  FAILED  {step.__doc__}\n{indent(describe(error))}", flush=True)
                for relay in box.relays[-1:]:
                    relay.is_alive() and relay.kill()
    check_equal(failed, 0, "far sides with faults")


main(start_far_sides, every_far_side)
