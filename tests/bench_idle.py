#!/usr/bin/env python3
"""What idle connections cost: resident memory of the server for each connection that was greeted, said EHLO and then
waits, plain and under TLS; and TLS handshakes a second, full and resumed.

    tests/bench_idle.py [CONNECTIONS]      default 10,000; RINGMAIL_BIN names the program, as for scenarios

Everything runs on loopback with a configuration and a certificate of its own. Memory is VmRSS and Pss of the server
process before the first connection and with all of them open; the figures are bounds of the docs, 8 KiB and 40 KiB.
"""

import resource
import socket
import ssl
import sys
import threading
import time

from harness import *  # noqa: F403  the scenarios' foundation

FIGURES = {"plain": 8.0, "TLS 1.3": 40.0, "TLS 1.2": 40.0}


def certificate(box):
    """A self-signed certificate for the server, and its key."""
    cert, key = box.dir / "cert.pem", box.dir / "key.pem"
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=mx.test", "-addext", "subjectAltName=DNS:mx.test", "-keyout", key, "-out", cert])
    return {"certificate": str(cert), "key": str(key)}


def resident(pid):
    """VmRSS in octets."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def context(version=None):
    """A client that believes anybody."""
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if version:
        tls.minimum_version = tls.maximum_version = version
    return tls


def connect(port, tls, index, session=None):
    """One connection from an address of its own /24 that has said EHLO."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=60,
                                     source_address=(f"127.77.{index // 250 % 250}.{index % 250 + 1}", 0))
    if tls:
        plain = tls.wrap_socket(plain, server_hostname="mx.test", session=session)
    talk(plain, b"", b"220 ")
    talk(plain, b"EHLO client.test\r\n", b"250 ")
    return plain


def talk(connection, line, last):
    """Say a line and read until the reply's last line is there."""
    if line:
        connection.sendall(line)
    got = b""
    while not (got.endswith(b"\r\n") and got.split(b"\r\n")[-2].startswith(last)):
        part = connection.recv(4096)
        check(part, f"the server closed after {got!r}")
        got += part


def idle(box, tls_files, name, tls, count):
    """Opens `count` connections to a fresh server and prints what each costs."""
    implicit = {"tls": "implicit"} if tls else {}
    relay = box.ringmail(f"idle-{name.replace(' ', '-').replace('.', '')}", {
        "limits": {"sessions_max": count + 1000}, **({"tls": tls_files} if tls else {}),
    }, shards=2)
    relay.config["smtp"][0].update(implicit)
    relay.write_config()
    relay.start()
    # The first connections pay for what all share.
    warm = [connect(relay.smtp_port, tls, index) for index in range(50)]
    time.sleep(1)
    before = resident(relay.process.pid)
    connections = [connect(relay.smtp_port, tls, index) for index in range(count)]
    time.sleep(2)
    after = resident(relay.process.pid)
    each = (after - before) / count / 1024
    print(f"{name:8} {count} connections: {each:6.2f} KiB each (figure: {FIGURES[name]:g}), "
          f"{before / 2**20:.1f} MiB before, {after / 2**20:.1f} MiB with them", flush=True)
    for connection in warm + connections:
        connection.close()
    relay.stop()
    return each <= FIGURES[name]


def handshakes(box, tls_files, seconds=5.0, clients=4):
    """Handshakes a second by a few clients at once, and the server's processor time for each."""
    relay = box.ringmail("handshakes", {"tls": tls_files}, shards=2)
    relay.config["smtp"][0].update({"tls": "implicit"})
    relay.write_config()
    relay.start()
    for name, version in (("TLS 1.3", ssl.TLSVersion.TLSv1_3), ("TLS 1.2", ssl.TLSVersion.TLSv1_2)):
        for resumed in (False, True):
            counts, stop = [0] * clients, time.monotonic() + seconds
            before = cpu_seconds(relay.process.pid)

            def client(slot):
                tls = context(version)
                first = connect(relay.smtp_port, tls, slot)
                session = first.session if resumed else None
                first.close()
                while time.monotonic() < stop:
                    connection = connect(relay.smtp_port, tls, slot, session)
                    check_equal(connection.session_reused, resumed, "resumed")
                    connection.close()
                    counts[slot] += 1

            threads = [threading.Thread(target=client, args=(slot,)) for slot in range(clients)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            used, done = cpu_seconds(relay.process.pid) - before, sum(counts)
            print(f"{name} {'resumed' if resumed else 'full   '}: {done / seconds:7.0f} handshakes/s, "
                  f"{1000 * used / max(done, 1):.3f} ms of the server's processor each", flush=True)
    relay.stop()


def cpu_seconds(pid):
    """User and system time of a process."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench():
    """All of it; exit status 1 when a figure is not reached."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    need("openssl")
    box = Box("bench-idle")
    try:
        tls_files = certificate(box)
        reached = [idle(box, tls_files, "plain", None, count),
                   idle(box, tls_files, "TLS 1.3", context(ssl.TLSVersion.TLSv1_3), count),
                   idle(box, tls_files, "TLS 1.2", context(ssl.TLSVersion.TLSv1_2), count)]
        handshakes(box, tls_files)
    finally:
        box.close()
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(bench())
