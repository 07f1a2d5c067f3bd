"""A connection that ends after any octet of any dialogue leaves nothing behind: no message that was not answered with
250, no session, no lock. By FIN and by RST, on plain, LMTP, proxied and TLS listeners.
"""

import socket
import ssl
import threading

from harness import *

BODY = b"Subject: cut\r\n\r\n..line\r\n"
DATA = BODY + b".\r\n"


def start(box):
    """start a server with a listener of each kind"""
    need("openssl")
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj",
         "/CN=mx.test", "-keyout", box.dir / "key.pem", "-out", box.dir / "cert.pem"])
    box.lmtp, box.behind, box.implicit = (free_port() for _ in range(3))
    box.relay = box.ringmail(config={
        "tls": {"certificate": str(box.dir / "cert.pem"), "key": str(box.dir / "key.pem")},
        "mailboxes": {"local_domains": ["home.test"]},
    })
    box.relay.config["smtp"] += [
        {"address": f"127.0.0.1:{box.lmtp}", "profile": "lmtp"},
        {"address": f"127.0.0.1:{box.behind}", "proxy_protocol_networks": ["127.0.0.1"]},
        {"address": f"127.0.0.1:{box.implicit}", "tls": "implicit"},
    ]
    box.relay.write_config()
    box.relay.add_user("joe", "secret")
    box.relay.start()


def abort(connection, reset):
    """End it by RST, or by FIN."""
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()


def cut(box, port, dialogue, complete_from, name):
    """Sends every proper prefix of the dialogue; only those that hold a whole message may leave one."""
    before = accepted(box)
    for end in range(complete_from):
        connection = socket.create_connection(("127.0.0.1", port), 20)
        connection.sendall(dialogue[:end])
        abort(connection, reset=end % 2 == 0)
    settle(box)
    check_equal(accepted(box), before, f"messages accepted of {name} that was cut")
    connection = socket.create_connection(("127.0.0.1", port), 20)
    connection.sendall(dialogue)
    connection.settimeout(20)
    got = b""
    while b"\r\n221 " not in got:
        part = connection.recv(4096)
        check(part, f"{name}, whole, ended with {got!r}")
        got += part
    connection.close()
    check_equal(accepted(box), before + 1, f"messages accepted of {name}, whole")


def accepted(box):
    """Messages accepted so far, when the counters have been published."""
    return box.relay.metrics()["ringmail_messages_accepted_total"]


def settle(box):
    """All sessions have ended."""
    def count():
        text = box.relay.http("/metrics")[1]
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines()
                   if line.startswith("ringmail_sessions") and "smtp" in line and not line.startswith("#") and "_total" not in line)
    wait_until(lambda: count() == 0, lambda: f"{count()} sessions to end", interval=0.2)


def data(box):
    """DATA"""
    head = b"EHLO a.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<joe@home.test>\r\nDATA\r\n"
    dialogue = head + DATA
    cut(box, box.relay.smtp_port, dialogue + b"QUIT\r\n", len(dialogue), "DATA")


def chunks(box):
    """BDAT in two chunks"""
    head = b"EHLO a.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<joe@home.test>\r\nBDAT 10\r\n" + BODY[:10]
    dialogue = head + b"BDAT %d LAST\r\n" % (len(BODY) - 10) + BODY[10:]
    cut(box, box.relay.smtp_port, dialogue + b"QUIT\r\n", len(dialogue), "BDAT")


def logins(box):
    """AUTH PLAIN and LOGIN before the message"""
    head = b"EHLO a.test\r\nAUTH LOGIN\r\nam9l\r\n*\r\nAUTH PLAIN =\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<joe@home.test>\r\nDATA\r\n"
    cut(box, box.relay.smtp_port, head + DATA + b"QUIT\r\n", len(head + DATA), "AUTH")


def lmtp(box):
    """LMTP"""
    head = b"LHLO a.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<joe@home.test>\r\nDATA\r\n"
    cut(box, box.lmtp, head + DATA + b"QUIT\r\n", len(head + DATA), "LMTP")


def proxied(box):
    """a PROXY header, version 1 and 2, before the message"""
    head = b"EHLO a.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<joe@home.test>\r\nDATA\r\n" + DATA
    for header in (b"PROXY TCP4 127.0.0.9 127.0.0.1 1 2\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x09\x7f\0\0\x01\0\1\0\2"):
        cut(box, box.behind, header + head + b"QUIT\r\n", len(header + head), "PROXY")


class Tap:
    """Passes octets on to the server and back, and cuts the connection after so many of the client's."""

    def __init__(self, port, octets, reset):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port, self.target, self.left, self.reset, self.seen = self.listener.getsockname()[1], port, octets, reset, 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        """Until either side ends, or the cut."""
        client, _ = self.listener.accept()
        server = socket.create_connection(("127.0.0.1", self.target), 20)
        back = threading.Thread(target=self.back, args=(server, client))
        back.start()
        try:
            while part := client.recv(65536):
                self.seen += len(part)
                server.sendall(part[:self.left])
                self.left -= min(self.left, len(part))
                if self.left == 0:
                    break
        except OSError:
            pass
        for one in (server, client):
            try:
                # Without this the thread that waits for replies would keep the connection open.
                one.shutdown(socket.SHUT_RD if self.reset else socket.SHUT_RDWR)
            except OSError:
                pass
            abort(one, self.reset)
        back.join()
        self.listener.close()

    @staticmethod
    def back(server, client):
        """Replies."""
        try:
            while part := server.recv(65536):
                client.sendall(part)
        except OSError:
            pass


def under_tls(box):
    """TLS from the first octet, cut within handshake, records and the message"""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    message = b"EHLO a.test\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<joe@home.test>\r\nDATA\r\n" + DATA

    def talk(octets, reset):
        tap = Tap(box.implicit, octets, reset)
        got = b""
        try:
            with socket.create_connection(("127.0.0.1", tap.port), 20) as plain:
                plain.settimeout(20)
                with context.wrap_socket(plain) as tls:
                    tls.sendall(message)
                    while b"\r\n354 " not in got or got.count(b"\r\n250 ") < 4:
                        part = tls.recv(4096)
                        if not part:
                            break
                        got += part
        except OSError:
            pass
        tap.thread.join()
        return tap.seen, got
    before = accepted(box)
    whole, replies = talk(1 << 30, False)
    check(b"queued as" in replies, f"whole: {replies!r}")
    settle(box)
    check_equal(accepted(box), before + 1, "the whole one")
    # The last 24 octets may be the close_notify of the client.
    cuts = [*range(0, 60, 7), *range(60, whole - 60, 41), *range(max(60, whole - 60), whole - 24, 5)]
    said = 1
    for number, octets in enumerate(cuts):
        said += b"queued as" in talk(octets or 1, number % 2 == 0)[1]
    settle(box)
    after = accepted(box) - before
    check(said <= after <= said + 4, f"{after} accepted, {said} were answered: at most those whose answer was cut besides")


def end(box):
    """a client that behaves is served, nothing waits, and SIGTERM ends it with status 0"""
    with box.relay.smtp() as client:
        client.sendmail("a@b.test", "joe@home.test", make_message("a@b.test", "joe@home.test", "after all"))
    box.relay.wait_queue_empty()
    check("panicked" not in box.relay.log(), "no panic")
    box.relay.stop()


main(start, data, chunks, logins, lmtp, proxied, under_tls, end)
