"""Floods and nonsense: whatever many clients do at once, the replies are defined, memory is bounded, and a client that
behaves is served while it happens.

The server has short time limits, so that what is cut off by them is cut off within the test.
"""

import base64
import resource
import socket
import ssl
import threading

from harness import *

IDLE = int(os.environ.get("FLOOD_CONNECTIONS", "4000"))
# Of an unoptimized build, with room for the allocator; the bench measures the real figure.
BYTES_PER_IDLE = 24 << 10


def start(box):
    """start a server with short time limits"""
    need("openssl")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    box.idle_count = min(IDLE, hard - 500)
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
         "/CN=mx.test", "-keyout", box.dir / "key.pem", "-out", box.dir / "cert.pem"])
    box.implicit = free_port()
    box.relay = box.ringmail(config={
        "tls": {"certificate": str(box.dir / "cert.pem"), "key": str(box.dir / "key.pem")},
        "mailboxes": {"local_domains": ["home.test"]},
        "relay": {"trusted_networks": ["127.0.0.1/32"]},
        "limits": {"command_timeout": "20s", "data_timeout": "3s", "message_size_max": "1 MiB", "tarpit_delay": "0s"},
        "client_limits": {"sessions_max": 200},
    })
    box.relay.config["smtp"].append({"address": f"127.0.0.1:{box.implicit}", "tls": "implicit"})
    box.relay.write_config()
    box.relay.add_user("joe", "secret")
    box.relay.start()


def resident(box):
    """VmRSS of the server in octets."""
    with open(f"/proc/{box.relay.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def served(box, what):
    """A client that behaves is served."""
    with box.relay.smtp() as client:
        client.ehlo()
        client.sendmail("a@client.test", "joe@home.test", make_message("a@client.test", "joe@home.test", what))


def connect(box, source, port=None, greeted=True):
    """A connection from this address."""
    connection = socket.create_connection(("127.0.0.1", port or box.relay.smtp_port), 60, (source, 0))
    if greeted:
        check(connection.recv(1000).startswith(b"220 "), "greeting")
    return connection


def close(connections):
    """All of them, at once (RST), so that no port lingers."""
    for connection in connections:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()


def everything(connection, seconds=30):
    """What comes until the far side closes."""
    connection.settimeout(seconds)
    got = b""
    try:
        while part := connection.recv(65536):
            got = (got + part)[-100_000:]
    except ConnectionError:
        pass
    return got



def idle(box):
    """thousands of idle connections cost little each, others are served, and all end with 421 4.4.2 in time"""
    before = resident(box)
    flood = [connect(box, f"127.77.{index // 100}.1") for index in range(box.idle_count)]
    each = (resident(box) - before) / box.idle_count
    print(f"  note: {box.idle_count} idle connections, {each / 1024:.1f} KiB each (this build)", flush=True)
    check(each < BYTES_PER_IDLE, f"{each:.0f} octets for an idle connection")
    served(box, "beside idle ones")
    for connection in flood[::200]:
        last = everything(connection)
        check(last.startswith(b"421 4.4.2 "), f"an idle connection's end: {last!r}")
    close(flood)


def one_client(box):
    """one stranger fills its share and hears 421 4.7.0; other strangers and trusted clients are served"""
    flood = [connect(box, "127.77.200.1") for _ in range(200)]
    over = connect(box, "127.77.200.1", greeted=False)
    check(everything(over).startswith(b"421 4.7.0 "), "over its share")
    close([connect(box, "127.77.200.2")])
    served(box, "beside a greedy one")
    close([*flood, over])


def half_handshakes(box):
    """TLS handshakes that never go on: bounded, and others shake hands"""
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(100)
    before = resident(box)
    flood = [connect(box, f"127.77.{100 + index // 100}.1", box.implicit, greeted=False) for index in range(500)]
    for connection in flood:
        connection.sendall(hello)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", box.implicit), 20) as plain, context.wrap_socket(plain) as tls:
        check(tls.recv(1000).startswith(b"220 "), "greeting under TLS")
    check(resident(box) - before < 500 * 64 * 1024, "memory of half handshakes")
    close(flood)


def never_reads(box):
    """clients that send commands for ever and never read: the server stops reading, its memory does not grow"""
    before, stop = resident(box), threading.Event()

    def pour(connection):
        connection.settimeout(1)
        commands = b"NOOP\r\nRSET\r\nVRFY x\r\n" * 2000
        while not stop.is_set():
            try:
                connection.sendall(commands)
            except TimeoutError:
                pass
            except OSError:
                return
    flood = [connect(box, f"127.77.210.{index + 1}") for index in range(30)]
    threads = [threading.Thread(target=pour, args=(connection,)) for connection in flood]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            served(box, f"beside those that never read {number}")
            time.sleep(0.3)
        grown = resident(box) - before
        check(grown < 30 * (1 << 20), f"{grown} octets more for 30 clients that never read")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    close(flood)


def nonsense(box):
    """garbage, NULs, lines without an end, unknown and pipelined commands: 5xx and 421, never a message"""
    accepted = box.relay.metrics()["ringmail_messages_accepted_total"]
    cases = {
        "random octets": os.urandom(100_000),
        "NULs": b"\0" * 50_000 + b"\r\n",
        "NULs in commands": b"EH\0LO a.test\r\nMAIL FROM:<a\0@b.test>\r\n" * 30,
        "a line without an end": b"A" * 3_000_000,
        "an address without an end": b"EHLO a.test\r\nMAIL FROM:<" + b"a" * 200_000 + b"@b.test>\r\n",
        "many parameters": b"EHLO a.test\r\nMAIL FROM:<a@b.test>" + b" X=Y" * 400 + b"\r\n",
        "unknown commands": b"XYZZY\r\n" * 100,
        "HTTP": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 30\r\n\r\nMAIL FROM:<a@b.test>\r\n" * 20,
        "everything out of order": b"DATA\r\nRCPT TO:<joe@home.test>\r\nBDAT 5\r\nEHLO\r\n.\r\nMAIL\r\nAUTH\r\n" * 30,
        "bare LF": b"EHLO a.test\nMAIL FROM:<a@b.test>\nRCPT TO:<joe@home.test>\nDATA\n" * 20,
        "a chunk nobody can believe": b"EHLO a.test\r\nBDAT 99999999999999999999\r\n" * 30,
        "AUTH cut short": b"EHLO a.test\r\n" + b"AUTH PLAIN\r\n*\r\n" * 30,
    }
    for name, octets in cases.items():
        connection = connect(box, "127.0.0.1")
        sender = threading.Thread(target=send_quietly, args=(connection, octets))
        sender.start()
        replies = everything(connection)
        sender.join()
        connection.close()
        for line in replies.split(b"\r\n"):
            check(line == b"" or re.match(rb"[2345]\d\d[ -]", line), f"{name}: no reply line: {line!r}")
        check(b"354" not in replies, f"{name}: {replies[-300:]!r}")
    check_equal(box.relay.metrics()["ringmail_messages_accepted_total"], accepted, "messages accepted")
    served(box, "after nonsense")


def send_quietly(connection, octets):
    """All of it, or as much as the far side takes, then the end."""
    try:
        connection.sendall(octets)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def too_large(box):
    """messages far over SIZE are taken to their end and refused with 552 5.3.4, many at once, without their memory"""
    before, replies = resident(box), []

    def send(number):
        connection = connect(box, f"127.77.220.{number + 1}")
        connection.sendall(b"EHLO a.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<joe@home.test>\r\nDATA\r\n")
        line = b"x" * 998 + b"\r\n"
        for _ in range(10):
            connection.sendall(line * 1000)
        connection.sendall(b".\r\nQUIT\r\n")
        replies.append(everything(connection))
        connection.close()
    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(len(replies) == 8 and all(b"\r\n552 5.3.4 " in reply for reply in replies), f"{[r[-100:] for r in replies]}")
    grown = resident(box) - before
    check(grown < 60 << 20, f"{grown} octets more after messages that were refused")


def slow_data(box):
    """a message that trickles ends with 421 when its octets stop"""
    connection = connect(box, "127.0.0.1")
    connection.sendall(b"EHLO a.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<joe@home.test>\r\nDATA\r\nSubject: never")
    last = everything(connection)
    check(b"\r\n354 " in last and last.split(b"\r\n")[-2].startswith(b"421 4.4.2 "), repr(last))
    connection.close()


def replayed_login(box):
    """what a login said is worth nothing on another connection: SCRAM replies are refused, others go on"""
    def ask(connection, line):
        connection.sendall(line + b"\r\n")
        return connection.recv(4096)
    first = base64.b64encode(b"n,,n=joe,r=abcdefghijkl")
    final = base64.b64encode(b"c=biws,r=abcdefghijklXYZ,p=" + base64.b64encode(b"x" * 32))
    for _ in range(2):
        connection = connect(box, "127.0.0.1")
        ask(connection, b"EHLO a.test")
        check(ask(connection, b"AUTH SCRAM-SHA-256 " + first).startswith(b"334 "), "a challenge")
        refused = ask(connection, final)
        check(refused[:4] in (b"501 ", b"535 "), f"another session's proof: {refused!r}")
        check(ask(connection, b"NOOP").startswith(b"250 "), "the session goes on")
        connection.close()


def end(box):
    """the process is still the same one, nothing is queued, and SIGTERM ends it with status 0"""
    check(box.relay.is_alive(), "it runs")
    check("panicked" not in box.relay.log(), "no panic")
    box.relay.wait_queue_empty()
    box.relay.stop()


main(start, idle, one_client, half_handshakes, never_reads, nonsense, too_large, slow_data, replayed_login, end)
