"""Real clients at every kind of listener: TLS by STARTTLS and from the first octet, certificates by name, client
certificates, resumption; Postfix as a client and as a filter's upstream; haproxy in front; LMTP.

A certificate authority of the scenario's own signs one certificate for mx.test and one for other.test. Clients that can
verify do. Everything a client sends has to arrive, and Received: has to say how it came.
"""

import base64
import socket
import ssl

from harness import *


def authority(box):
    """A CA with two server certificates and one for a client; files in box.dir."""
    def openssl(*arguments):
        run(["openssl", *arguments], cwd=box.dir)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=CA of the scenario", "-keyout", "ca.key", "-out", "ca.pem")
    for name, kind in (("mx.test", "serverAuth"), ("other.test", "serverAuth"), ("joe", "clientAuth")):
        openssl("req", *key, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (box.dir / "ext").write_text(f"basicConstraints=CA:FALSE\nextendedKeyUsage={kind}\n"
                                     f"subjectAltName=DNS:{name}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")
    box.ca = box.dir / "ca.pem"


def start(box):
    """start a server with one listener of each kind"""
    need("openssl")
    authority(box)
    pem = {name: {"certificate": f"{box.dir}/{name}.pem", "key": f"{box.dir}/{name}.key"}
           for name in ("mx.test", "other.test")}
    box.implicit, box.strict, box.lmtp, box.behind = (free_port() for _ in range(4))
    box.relay = box.ringmail(config={
        "mailboxes": {"local_domains": ["home.test"]},
        "tls": {**pem["mx.test"]},
    })
    box.relay.config["smtp"][0].update({"xforward_networks": ["127.0.0.1"]})
    box.relay.config["smtp"] += [
        {"address": f"127.0.0.1:{box.implicit}", "profile": "submissions"},
        {"address": f"127.0.0.1:{box.strict}", "tls": "implicit", "client_certificates": "require",
         "client_ca": str(box.ca)},
        {"address": f"127.0.0.1:{box.lmtp}", "profile": "lmtp"},
        {"address": f"127.0.0.1:{box.behind}", "proxy_protocol_networks": ["127.0.0.1"]},
    ]
    box.relay.write_config()
    with open(box.relay.config_file, "a") as config:
        config.write("\n[[tls.sni]]\n" + "".join(f'{k} = "{v}"\n' for k, v in pem["other.test"].items()))
    for name in ("joe", "ann"):
        box.relay.add_user(name, "secret")
    box.relay.start()


def arrives(box, subject, received):
    """The message with this subject came to joe's mailbox, with this in its topmost Received: field."""
    def found():
        for message in box.relay.mailbox("joe", "secret"):
            if f"\r\nSubject: {subject}\r\n".encode() in b"\r\n" + message:
                return message
        return None
    message = wait_until(found, lambda: f"{subject!r} in joe's mailbox; log:\n{box.relay.log_tail()}", interval=0.2)
    field = message.decode(errors="replace").split("Received: ", 1)[1].split("\r\nReceived: ")[0].replace("\r\n\t", " ")
    for part in received:
        check(part in field, f"{part!r} is not in Received: {field[:300]!r}")
    return message


def believing(box):
    """A context that believes the scenario's authority."""
    return ssl.create_default_context(cafile=str(box.ca))


def openssl_client(box):
    """openssl s_client: STARTTLS and implicit, TLS 1.2 and 1.3, the certificate that the client asks for by name"""
    for port, starttls in ((box.relay.smtp_port, ["-starttls", "smtp"]), (box.implicit, [])):
        for version in ("-tls1_2", "-tls1_3"):
            for name, subject in (("mx.test", "mx.test"), ("other.test", "other.test"), ("unknown.test", "mx.test")):
                done = run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *starttls, version, "-servername", name,
                            "-CAfile", box.ca, "-quiet", "-verify_return_error"], input="QUIT\r\n", ok=False)
                check("221 2.0.0" in done.stdout, f"{name} {version} {starttls}: {done.stdout} {done.stderr}")
                check(f"CN = {subject}" in done.stderr, f"asked for {name}, got: {done.stderr}")
        old = run(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *starttls, "-tls1_1", "-CAfile", box.ca],
                  input="QUIT\r\n", ok=False)
        check(old.returncode != 0 and "221" not in old.stdout, "TLS 1.1 is refused")


def resumption(box):
    """a session resumes by its ticket, in both versions"""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = believing(box)
        context.minimum_version = context.maximum_version = version
        session = None
        for reused in (False, True):
            with socket.create_connection(("127.0.0.1", box.implicit), 20) as plain:
                with context.wrap_socket(plain, server_hostname="mx.test", session=session) as tls:
                    check(tls.recv(1000).startswith(b"220 "), "greeting")
                    check_equal(tls.session_reused, reused, f"{version} resumed")
                    session = tls.session


def smtplib_clients(box):
    """Python's smtplib by STARTTLS and implicit TLS with a login; Received: has version, cipher and ESMTPSA"""
    with box.relay.smtp() as client:
        client._host = "mx.test"  # the name that smtplib verifies
        client.starttls(context=believing(box))
        client.login("joe", "secret")
        client.sendmail("joe@home.test", "joe@home.test", make_message("joe@home.test", "joe@home.test", "smtplib starttls"))
    arrives(box, "smtplib starttls", ["with ESMTPSA (TLSv1.3 TLS_"])
    context = believing(box)
    context.check_hostname = False
    with smtplib.SMTP_SSL("127.0.0.1", box.implicit, local_hostname="client.test", timeout=20, context=context) as client:
        client.login("joe", "secret")
        client.sendmail("joe@home.test", "joe@home.test", "Subject: smtplib implicit\r\n\r\nno date\r\n")
    message = arrives(box, "smtplib implicit", ["with ESMTPSA (TLSv1.3 TLS_"])
    check(b"\r\nDate: " in message and b"\r\nMessage-ID: " in message, f"completed: {message!r}")


def swaks(box):
    """swaks: STARTTLS, implicit TLS, a client certificate whose fingerprint is written down, and without it nothing"""
    need("swaks")
    def send(subject, port, *options, ok=True):
        return run(["swaks", "--server", f"127.0.0.1:{port}", "--helo", "client.test", "--from", "joe@home.test", "--to",
                    "joe@home.test", "--h-Subject", subject, "--tls-ca-path", box.ca, *options], ok=ok, timeout=60)
    send("swaks starttls", box.relay.smtp_port, "--tls", "--auth", "PLAIN", "--auth-user", "joe", "--auth-password", "secret")
    arrives(box, "swaks starttls", ["ESMTPSA", "TLSv1.3"])
    send("swaks implicit", box.implicit, "--tlsc", "--auth", "LOGIN", "--auth-user", "joe", "--auth-password", "secret")
    arrives(box, "swaks implicit", ["ESMTPSA"])
    send("swaks certificate", box.strict, "--tlsc", "--tls-cert", box.dir / "joe.pem", "--tls-key", box.dir / "joe.key")
    fingerprint = run(["openssl", "x509", "-in", box.dir / "joe.pem", "-noout", "-fingerprint", "-sha256"]).stdout
    fingerprint = fingerprint.split("=")[1].strip().replace(":", "").lower()
    arrives(box, "swaks certificate", [f"client sha256:{fingerprint}"])
    wait_until(lambda: any(fingerprint in event.get("tls", "") for event in box.relay.events("accepted")),
               "the fingerprint in the log")
    refused = send("swaks without", box.strict, "--tlsc", ok=False)
    check(refused.returncode != 0, "no session without a certificate")


def curl(box):
    """curl: smtp:// with STARTTLS required and smtps://"""
    need("curl")
    path = box.dir / "message"
    for subject, url in (("curl starttls", f"smtp://mx.test:{box.relay.smtp_port}"), ("curl smtps", f"smtps://mx.test:{box.implicit}")):
        path.write_bytes(make_message("joe@home.test", "joe@home.test", subject))
        run(["curl", "-sS", "--ssl-reqd", "--cacert", box.ca, "--connect-to", "mx.test::127.0.0.1:", "--url", f"{url}/client.test",
             "--user", "joe:secret", "--mail-from", "joe@home.test", "--mail-rcpt", "joe@home.test", "--upload-file", path])
        arrives(box, subject, ["ESMTPSA"])


def msmtp_and_s_nail(box):
    """msmtp and s-nail verify the certificate and log in"""
    need("msmtp", "s-nail")
    fingerprint = run(["openssl", "x509", "-in", box.dir / "mx.test.pem", "-noout", "-fingerprint", "-sha256"]).stdout
    fingerprint = fingerprint.split("=")[1].strip()
    common = ["--auth=plain", "--user=joe", "--passwordeval=echo secret", "--from=joe@home.test", "--tls=on",
              f"--tls-fingerprint={fingerprint}", "--file=/dev/null"]
    for subject, port, starttls in (("msmtp starttls", box.relay.smtp_port, "on"), ("msmtp implicit", box.implicit, "off")):
        run(["msmtp", f"--host=127.0.0.1", f"--port={port}", f"--tls-starttls={starttls}", *common, "joe@home.test"],
            input=make_message("joe@home.test", "joe@home.test", subject).decode().replace("\r\n", "\n"))
        arrives(box, subject, ["ESMTPSA"])
    run(["s-nail", "-:/", "-S", "v15-compat", "-S", f"mta=smtps://joe:secret@127.0.0.1:{box.implicit}", "-S", "smtp-auth=login",
         "-S", "tls-verify=ignore", "-S", "hostname=client.test", "-S", "from=joe@home.test", "-s", "s-nail", "joe@home.test"],
        input="a line\n")
    arrives(box, "s-nail", ["ESMTPSA"])


def starttls_injection(box):
    """what stands behind STARTTLS in the same packet is thrown away, and what was said before is forgotten"""
    plain = socket.create_connection(("127.0.0.1", box.relay.smtp_port), 20)
    reader = plain.makefile("rb")
    reader.readline()
    plain.sendall(b"EHLO injected.test\r\n")
    while reader.readline()[3:4] == b"-":
        pass
    plain.sendall(b"STARTTLS\r\nMAIL FROM:<injected@home.test>\r\nRCPT TO:<joe@home.test>\r\n")
    check(reader.readline().startswith(b"220 "), "STARTTLS is taken")
    reader.close()
    with believing(box).wrap_socket(plain, server_hostname="mx.test") as tls:
        tls.settimeout(20)
        tls.sendall(b"RCPT TO:<joe@home.test>\r\n")
        check(tls.recv(1000).startswith(b"503 "), "no transaction was begun")
        tls.sendall(b"MAIL FROM:<a@b.test>\r\n")
        check(tls.recv(1000).startswith(b"503 "), "and no EHLO was heard")


def cut_handshakes(box):
    """handshakes that are cut short or are no TLS end; the server goes on"""
    for garbage in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"EHLO a\r\n", b"\x00" * 300, os.urandom(5000)):
        with socket.create_connection(("127.0.0.1", box.implicit), 20) as connection:
            try:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
            except OSError as error:  # it may have gone already; a timeout would be a failure
                check(not isinstance(error, TimeoutError), f"{garbage[:20]!r} is not answered")
    with socket.create_connection(("127.0.0.1", box.implicit), 20) as plain:
        with believing(box).wrap_socket(plain, server_hostname="mx.test") as tls:
            check(tls.recv(1000).startswith(b"220 "), "others are greeted")


def lmtp(box):
    """LMTP: one reply for each recipient, LHLO only"""
    client = smtplib.LMTP("127.0.0.1", box.lmtp, local_hostname="client.test")
    client.lhlo() if hasattr(client, "lhlo") else client.ehlo()
    check_equal(client.docmd("HELO a")[0], 500, "HELO")
    client.docmd("MAIL FROM:<a@b.test>")
    codes = [client.docmd(f"RCPT TO:<{name}@home.test>")[0] for name in ("joe", "nobody", "ann")]
    check_equal(codes, [250, 550, 250], "RCPT")
    check_equal(client.docmd("DATA")[0], 354, "DATA")
    client.send(b"Subject: lmtp\r\n\r\nline\r\n.\r\n")
    check_equal([client.getreply()[0] for _ in range(2)], [250, 250], "one reply for each recipient that was taken")
    client.quit()
    arrives(box, "lmtp", ["with LMTP"])


def postfix(box):
    """Postfix sends as a client: STARTTLS verified, pipelined, and with XFORWARD as a filter's upstream"""
    need("sendmail")
    port = postfix_server(box, f"""\
myhostname = upstream.test
relayhost = [127.0.0.1]:{box.relay.smtp_port}
smtp_tls_security_level = encrypt
smtp_tls_CAfile = {box.ca}
smtp_tls_loglevel = 1
smtp_send_xforward_command = yes
smtpd_relay_restrictions = permit_mynetworks, reject
""")

    def up():
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            return False
    wait_until(up, "Postfix to answer", 30, 0.2)
    for number in range(3):
        with smtplib.SMTP("127.0.0.1", port, local_hostname="first.test", timeout=20) as client:
            client.sendmail("a@first.test", ["joe@home.test", "ann@home.test"],
                            make_message("a@first.test", "joe@home.test", f"through postfix {number}"))
    for number in range(3):
        message = arrives(box, f"through postfix {number}", ["from upstream.test", "with ESMTPS (TLSv1.3"])
        check_equal(message.count(b"Received: "), 2, "Received: fields")


def haproxy(box):
    """haproxy in front says with PROXY v1 and v2 who the client is; its own health checks are no client"""
    need("haproxy")
    for version, option in (("1", "send-proxy"), ("2", "send-proxy-v2")):
        front = free_port()
        config = box.dir / f"haproxy{version}.cfg"
        config.write_text(f"""\
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
listen front
    bind 127.0.0.1:{front}
    server ringmail 127.0.0.1:{box.behind} {option} check inter 500ms
""")
        box.spawn([find_program("haproxy"), "-f", config, "-db"], log=f"haproxy{version}.log")

        def send():
            try:
                connection = socket.create_connection(("127.0.0.1", front), 10, ("127.66.6.6", 0))
                client = smtplib.SMTP(local_hostname="client.test", timeout=20)
                client.sock, client.file = connection, None
                code, _ = client.getreply()
                if code != 220:
                    return False
                client.sendmail("a@first.test", "joe@home.test", f"Subject: haproxy {version}\r\n\r\nx\r\n")
                client.quit()
                return True
            except (OSError, smtplib.SMTPException):
                return False
        wait_until(send, "haproxy to pass a session on", 30, 0.5)
        arrives(box, f"haproxy {version}", ["([127.66.6.6])"])
        box.relay.wait_event("accepted", client="127.66.6.6")


def proxy_headers(box):
    """a bad PROXY header, and none, close the connection; a split one is read; elsewhere it is no header"""
    def talk(port, *parts):
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.02)
            connection.settimeout(20)
            try:
                return connection.recv(4096)
            except ConnectionError:
                return b""
    for bad in (b"EHLO client.test\r\n", b"PROXY TCP4 1.2.3.4\r\n", b"\r\n\r\n\0\r\nQUIT\n\x51\x11\0\x0c" + b"\0" * 12,
                b"PROXY UNKNOWN " + b"x" * 200):
        check_equal(talk(box.behind, bad), b"", repr(bad))
    for good in (b"PROXY TCP6 2001:db8::1 2001:db8::2 1 25\r\n", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"):
        parts = [good[i:i + 7] for i in range(0, len(good), 7)]
        check(talk(box.behind, *parts).startswith(b"220 "), repr(good))
    check(talk(box.relay.smtp_port, b"PROXY UNKNOWN\r\n").startswith(b"220 "), "no proxy network: greeted first")


def end(box):
    """SIGTERM ends it with status 0"""
    box.relay.stop()


main(start, openssl_client, resumption, smtplib_clients, swaks, curl, msmtp_and_s_nail, starttls_injection, cut_handshakes,
     lmtp, postfix, haproxy, proxy_headers, end)
