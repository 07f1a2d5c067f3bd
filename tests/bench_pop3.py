#!/usr/bin/env python3
"""Compares the POP3 of ringmail with that of Dovecot, and its delivery into Maildirs with that of Postfix's local(8).

    cargo build --release --workspace
    tests/bench_pop3.py                 # all of it, about three minutes
    tests/bench_pop3.py --rounds 3 retr list

Both servers run at the same time on the same Maildirs (loopback, no TLS, their own folders; nothing of the system's
configuration is read or changed). Rounds alternate between the two and medians are printed with the CPU time that the
server's processes took, so that what else runs on the machine falls on both alike. Dovecot gets what makes it fast:
index files, sizes in file names, no flag updates, login processes that are kept. Needs root (Dovecot changes its user).
"""

import argparse
import email.utils
import json
import os
import pwd
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
USERS = 4
LOOPBACK = "127.0.0.1"


def main():
    works = {"login": bench_login, "check": bench_check, "list": bench_list, "retr": bench_retr,
             "pipelined": bench_pipelined, "large": bench_large, "delivery": bench_delivery}
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(works)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    unknown = [work for work in options.works if work not in works]
    if unknown:
        parser.error(f"no work {unknown[0]}; there are: {', '.join(works)}")
    if os.geteuid() != 0 or not shutil.which("dovecot"):
        sys.exit("needs root and the Debian package dovecot-pop3d")
    with tempfile.TemporaryDirectory(prefix="ringmail-bench-", dir=os.environ.get("BENCH_DIR")) as folder:
        os.chmod(folder, 0o755)
        for work in options.works or works:
            works[work](Path(folder), options.rounds)


# Servers.

class Server:
    """A process of which the CPU time is asked for, with that of its children."""

    def __init__(self, name, port, process):
        self.name, self.port, self.process = name, port, process

    def cpu(self):
        """Seconds of user and system time of the process and all below it, those that have ended included."""
        mine = {self.process.pid}
        stats = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                stats[int(entry.name)] = (int(fields[1]), [int(field) for field in fields[11:15]])
        grown = True
        while grown:
            more = {pid for pid, (parent, _) in stats.items() if parent in mine} - mine
            mine |= more
            grown = bool(more)
        ticks = 0
        for pid in mine & stats.keys():
            user, system, waited_user, waited_system = stats[pid][1]
            ticks += user + system + waited_user + waited_system
        return ticks / TICKS

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def wait_for(port, process):
    for _ in range(500):
        if process.poll() is not None:
            sys.exit(f"a server ended with {process.returncode}; see its log")
        try:
            socket.create_connection((LOOPBACK, port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    sys.exit("a server does not answer")


def start_ringmail(folder, users=()):
    data = folder / "ringmail"
    data.mkdir(exist_ok=True)
    pop3, smtp = free_port(), free_port()
    config = data / "ringmail.toml"
    config.write_text(f"""hostname = "bench.test"
data_dir = "{data}"
[[smtp]]
address = "{LOOPBACK}:{smtp}"
[[pop3]]
address = "{LOOPBACK}:{pop3}"
auth_without_tls = true
[admin]
enabled = false
[mailboxes]
local_domains = ["bench.test"]
mail_dir = "{folder / 'mail'}"
[dns]
servers = ["{LOOPBACK}:{free_port()}"]
""")
    program = os.environ.get("RINGMAIL_BIN") or str(ROOT / "target/release/ringmail")
    known = (data / "users").read_text() if (data / "users").exists() else ""
    for user in [f"user{number}" for number in range(USERS)] + list(users):
        if f"{user}:" not in known:
            subprocess.run([program, "-c", config, "user", "add", user, "--password-stdin"],
                           input=b"secret\n", check=True, stdout=subprocess.DEVNULL)
    log = (data / "log").open("ab")
    process = subprocess.Popen([program, "-c", config, "run"], stdout=log, stderr=log)
    wait_for(pop3, process)
    server = Server("ringmail", pop3, process)
    server.smtp = smtp
    return server


def start_dovecot(folder):
    base = folder / "dovecot"
    base.mkdir(exist_ok=True)
    port = free_port()
    owner = pwd.getpwnam("nobody")
    (base / "passwd").write_text("".join(f"user{number}:{{PLAIN}}secret\n" for number in range(USERS)))
    (base / "dovecot.conf").write_text(f"""base_dir = {base}/run
log_path = {base}/log
protocols = pop3
listen = {LOOPBACK}
ssl = no
disable_plaintext_auth = no
first_valid_uid = {owner.pw_uid}
last_valid_uid = {owner.pw_uid}
mail_home = {folder}/mail/%u
mail_location = maildir:{folder}/mail/%u
pop3_uidl_format = %g
pop3_no_flag_updates = yes
pop3_fast_size_lookups = yes
mail_max_userip_connections = 1000
passdb {{
  driver = passwd-file
  args = {base}/passwd
}}
userdb {{
  driver = static
  args = uid={owner.pw_uid} gid={owner.pw_gid} home={folder}/mail/%u
}}
service pop3-login {{
  service_count = 0
  process_min_avail = 1
  inet_listener pop3 {{
    port = {port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
""")
    process = subprocess.Popen(["dovecot", "-F", "-c", base / "dovecot.conf"])
    wait_for(port, process)
    return Server("dovecot", port, process)


# Maildirs.

def body(length):
    line = ("The quick brown fox jumps over the lazy dog. " * 2)[:76] + "\n"
    return (line * (length // len(line) + 1))[:length - 1] + "\n"


def fill(folder, number, count, length):
    """Makes a Maildir as ringmail delivers it: sizes in the names."""
    root = folder / "mail" / f"user{number}"
    if root.exists():
        # Not removed before the end: see at delivery.
        kept = folder / "kept"
        kept.mkdir(exist_ok=True)
        root.rename(kept / f"filled-{len(os.listdir(kept))}")
    for sub in ("new", "cur", "tmp"):
        (root / sub).mkdir(parents=True)
    began = int(time.time()) - 3600
    for index in range(count):
        head = f"From: a@bench.test\nTo: user{number}@bench.test\nSubject: message {index}\n" \
               f"Date: {email.utils.formatdate(began)}\nMessage-ID: <{number}.{index}@bench.test>\n\n"
        text = head + body(max(80, length - len(head)))
        size, lines = len(text), text.count("\n")
        name = f"{began + index // 1000}.M{index % 1000 * 1000:06}Q{number:04}{index:09}R0.bench.test,S={size},W={size + lines}"
        (root / "cur" / f"{name}:2,").write_text(text)
    # Dovecot serves nobody's mail as root.
    owner = pwd.getpwnam("nobody")
    for folder_name, _, files in os.walk(root):
        os.chown(folder_name, owner.pw_uid, owner.pw_gid)
        for name in files:
            os.chown(os.path.join(folder_name, name), owner.pw_uid, owner.pw_gid)
    # Times that lie back: both servers may rely on what they know then.
    time.sleep(1.5)


# Rounds.

def load(server, *arguments):
    program = os.environ.get("LOAD_BIN") or str(ROOT / "target/release/ringmail-load")
    before = server.cpu()
    done = subprocess.run([program, "pop3", f"{LOOPBACK}:{server.port}", *arguments],
                          stdout=subprocess.PIPE, check=True, timeout=600)
    report = json.loads(done.stdout)
    report["cpu"] = server.cpu() - before
    return report


def compare(title, unit, servers, rounds, *arguments):
    """Alternates between the servers and prints medians; the first round warms both up and does not count."""
    reports = {server.name: [] for server in servers}
    for number in range(rounds + 1):
        # Who comes first changes, so that a drift of the machine falls on both.
        for server in servers if number % 2 else reversed(servers):
            report = load(server, *arguments)
            if number > 0:
                reports[server.name].append(report)
    print_comparison(title, unit, reports)


def print_comparison(title, unit, reports):
    print(f"{title} ({len(next(iter(reports.values())))} rounds)")
    medians = {}
    for name, all_of_it in reports.items():
        rate = statistics.median(report["per_second"] for report in all_of_it)
        cpu = statistics.median(1e3 * report["cpu"] / report["done"] for report in all_of_it)
        megabytes = statistics.median(report.get("megabytes_per_second", 0) for report in all_of_it)
        medians[name] = rate, cpu
        print(f"  {name:<10} {rate:10,.0f} {unit}/s {megabytes:8,.1f} MB/s   {cpu:8.4f} ms CPU each")
    (ours, our_cpu), (theirs, their_cpu) = medians.values()
    print(f"  ratio: {ours / theirs:.2f} times the rate, {our_cpu / their_cpu:.2f} times the CPU", flush=True)


def both(folder):
    return [start_ringmail(folder), start_dovecot(folder)]


def with_both(folder, act):
    servers = both(folder)
    try:
        act(servers)
    finally:
        for server in servers:
            server.stop()


def bench_login(folder, rounds):
    fill(folder, 0, 100, 4096)
    with_both(folder, lambda servers: compare(
        "connect, log in, STAT, QUIT; 100 messages", "sessions", servers, rounds, "--work", "login", "--repeat", "200"))


def bench_check(folder, rounds):
    fill(folder, 0, 10_000, 1024)
    with_both(folder, lambda servers: compare(
        "a whole session with LIST and UIDL; 10,000 messages", "sessions", servers, rounds,
        "--work", "check", "--repeat", "10"))


def bench_list(folder, rounds):
    fill(folder, 0, 10_000, 1024)
    with_both(folder, lambda servers: compare(
        "LIST and UIDL in a session; 10,000 messages", "pairs", servers, rounds, "--work", "list", "--repeat", "20"))


def bench_retr(folder, rounds):
    for number in range(USERS):
        fill(folder, number, 2_500, 4096)

    def act(servers):
        compare("RETR of 4 KiB, one session", "messages", servers, rounds)
        compare(f"RETR of 4 KiB, {USERS} sessions", "messages", servers, rounds, "--sessions", str(USERS))
    with_both(folder, act)


def bench_pipelined(folder, rounds):
    fill(folder, 0, 5_000, 4096)
    with_both(folder, lambda servers: compare(
        "RETR of 4 KiB, one session, 20 commands in flight", "messages", servers, rounds, "--pipeline", "20"))


def bench_large(folder, rounds):
    fill(folder, 0, 40, 5 << 20)
    with_both(folder, lambda servers: compare("RETR of 5 MiB, one session", "messages", servers, rounds))


# Delivery. Both take mail by SMTP, sync it to their queue, and deliver it into one Maildir for each user, syncing again; the
# clock runs from the first connection until the last file is there. Postfix delivers with local(8) to accounts of the
# system, and without limits that would hold it back. Nothing is removed between rounds: ext4 without a journal looks at each
# inode that was freed within the last minute before it makes a file, which costs whoever makes files next (up to 1 ms of
# CPU time each after the removal of some thousand).

ACCOUNTS = ["games", "lp", "man", "news"]
DELIVERED = 2_000


def start_postfix(folder):
    base = folder / "postfix"
    (base / "etc").mkdir(parents=True, exist_ok=True)
    (base / "lib").mkdir(exist_ok=True)
    (base / "queue").mkdir(exist_ok=True)
    shutil.chown(base / "lib", "postfix")
    port = free_port()
    (base / "etc/main.cf").write_text(f"""compatibility_level = 3.6
myhostname = bench.test
mydestination = bench.test
queue_directory = {base}/queue
data_directory = {base}/lib
maillog_file = {base}/mail.log
maillog_file_prefixes = {base}
local_recipient_maps =
alias_maps =
alias_database =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mail_spool_directory = {folder}/mail-postfix/
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_tls_security_level = none
smtputf8_enable = no
in_flow_delay = 0
local_destination_concurrency_limit = 50
initial_destination_concurrency = 50
""")
    services = [f"127.0.0.1:{port} inet n - n - - smtpd", "local unix - n n - - local"] + [
        f"{name} unix {private} - n - {limit} {command}" for name, private, limit, command in [
            ("cleanup", "n", "0", "cleanup"), ("qmgr", "n", "1", "qmgr"), ("rewrite", "-", "-", "trivial-rewrite"),
            ("bounce", "-", "0", "bounce"), ("defer", "-", "0", "bounce"), ("trace", "-", "0", "bounce"),
            ("proxymap", "-", "-", "proxymap"), ("error", "-", "-", "error"), ("retry", "-", "-", "error"),
            ("anvil", "-", "1", "anvil"), ("showq", "n", "-", "showq"), ("flush", "n", "0", "flush")]]
    services.append("postlog unix-dgram n - n - 1 postlogd")
    (base / "etc/master.cf").write_text("\n".join(services) + "\n")
    process = subprocess.Popen(["postfix", "-c", base / "etc", "start-fg"], start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port, process)
    server = Server("postfix", port, process)
    server.smtp, server.mail = port, folder / "mail-postfix"
    server.stop_command = ["postfix", "-c", str(base / "etc"), "stop"]
    return server


def deliver(server, messages):
    """Sends to four users at once and waits until all of it is in their Maildirs."""
    for account in ACCOUNTS:
        if (server.mail / account).exists():
            kept = server.mail.parent / "kept"
            kept.mkdir(exist_ok=True)
            (server.mail / account).rename(kept / f"{server.name}-{account}-{len(os.listdir(kept))}")
        for sub in ("new", "cur", "tmp"):
            (server.mail / account / sub).mkdir(parents=True)
        if server.name == "postfix":
            for path in (server.mail / account, *(server.mail / account / sub for sub in ("new", "cur", "tmp"))):
                shutil.chown(path, account)
    each = messages // len(ACCOUNTS)
    # Neither pays for what the other one, or making these folders, left to be written.
    os.sync()
    cpu, began = server.cpu(), time.monotonic()
    sources = [subprocess.Popen(["smtp-source", "-s", "5", "-m", str(each), "-l", "4096", "-d", "-f", "a@bench.test",
                                 "-t", f"{account}@bench.test", f"inet:{LOOPBACK}:{server.smtp}"]) for account in ACCOUNTS]
    for source in sources:
        if source.wait(600):
            sys.exit(f"{server.name} did not take the mail")
    while sum(len(os.listdir(server.mail / account / "new")) for account in ACCOUNTS) < each * len(ACCOUNTS):
        if time.monotonic() - began > 600:
            sys.exit(f"{server.name} does not deliver")
        time.sleep(0.005)
    seconds = time.monotonic() - began
    return {"done": messages, "per_second": messages / seconds, "cpu": server.cpu() - cpu}


def wait_for_inodes(folder):
    """Waits until making a file costs no look at inodes that were freed a moment ago, by whatever ran before."""
    began = time.monotonic()
    while time.monotonic() - began < 180:
        probe = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
        before = os.times().system
        for number in range(500):
            (probe / str(number)).touch()
        if (os.times().system - before) / 500 < 0.1e-3:
            return
        time.sleep(5)
    print("  making files stays slow here: the disk is full, or something removes many files")


def bench_delivery(folder, rounds):
    if not shutil.which("smtp-source", path=os.environ["PATH"] + ":/usr/sbin"):
        print("delivery: needs the Debian package postfix")
        return
    os.environ["PATH"] += ":/usr/sbin"
    ours = start_ringmail(folder, ACCOUNTS)
    ours.mail = folder / "mail"
    theirs = start_postfix(folder)
    wait_for_inodes(folder)
    try:
        reports = {server.name: [] for server in (ours, theirs)}
        for number in range(min(rounds, 5) + 1):
            for server in (ours, theirs) if number % 2 else (theirs, ours):
                report = deliver(server, DELIVERED)
                if number > 0:
                    reports[server.name].append(report)
        print_comparison(f"delivery of 4 KiB into 4 Maildirs, by SMTP over 20 sessions, {DELIVERED} messages", "messages",
                         reports)
    finally:
        ours.stop()
        subprocess.run(theirs.stop_command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)
        theirs.stop()


if __name__ == "__main__":
    main()
