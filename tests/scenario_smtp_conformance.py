"""The inbound side against the texts of the RFCs, by a client that says exactly what it means: one table for each part.

A row is what was said before, the octets to send, and what the reply must look like. What was accepted must leave as it
was meant and nothing else may leave. docs/smtp.md names the clause of each behaviour.
"""

from harness import *
import base64
import hashlib
import hmac
import ssl


def start(box):
    """start a relay with listeners of all kinds, and sinks that keep what leaves"""
    need("openssl")
    box.lines, box.octets = box.sink(), ChunkSink()
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=relay.test", "-addext", "subjectAltName=DNS:relay.test",
         "-keyout", box.dir / "key.pem", "-out", box.dir / "cert.pem"])
    box.ports = {name: free_port() for name in ("lmtp", "normalise", "proxied", "submission")}
    listeners = [{"address": f"127.0.0.1:{box.ports['lmtp']}", "profile": "lmtp", "tls": "none"},
                 {"address": f"127.0.0.1:{box.ports['normalise']}", "line_endings": "normalise", "tls": "none"},
                 {"address": f"127.0.0.1:{box.ports['proxied']}", "xclient_networks": ["127.0.0.1/32"],
                  "xforward_networks": ["127.0.0.1/32"], "auth_without_tls": True, "tls": "none"},
                 {"address": f"127.0.0.1:{box.ports['submission']}", "profile": "submission", "tls": "starttls"}]
    box.relay = box.ringmail(config={
        "tls": {"certificate": str(box.dir / "cert.pem"), "key": str(box.dir / "key.pem")},
        "route": [{"domain": "binary.test", "host": "127.0.0.1", "port": box.octets.port},
                  {"domain": "*", "host": "127.0.0.1", "port": box.lines.port}],
        "mailboxes": {"local_domains": ["here.test"]},
        "relay": {"trusted_networks": ["127.0.0.0/8"]},
        "limits": {"errors_max": 12, "message_size_max": 100000, "recipients_max": 120, "command_timeout": "20s"},
    })
    box.relay.config["smtp"] += listeners
    box.relay.config["smtp"][0]["tls"] = "none"
    box.relay.write_config()
    box.relay.add_user("alice", "sesame")
    box.relay.start()
    box.count = 0


class ChunkSink:
    """A next hop that takes anything by BDAT, in a thread of its own; it never announces what it does not do."""

    def __init__(self):
        self.messages, self.port = [], free_port()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.talk, args=(connection.makefile("rwb", buffering=0),), daemon=True).start()

    def talk(self, stream):
        def say(text):
            stream.write(text.encode() + b"\r\n")
        say("220 binary.test")
        mail, content = "", b""
        while line := stream.readline():
            verb, _, argument = line.strip().decode().partition(" ")
            match verb.upper():
                case "EHLO":
                    say("250-binary.test\r\n250-8BITMIME\r\n250-BINARYMIME\r\n250 CHUNKING")
                case "MAIL":
                    mail, content = argument, b""
                    say("250 2.1.0 Ok")
                case "BDAT":
                    left = int(argument.split()[0])
                    while left:
                        octets = stream.read(left)
                        if not octets:
                            return
                        content, left = content + octets, left - len(octets)
                    if argument.upper().endswith(" LAST"):
                        self.messages.append((mail, content))
                    say("250 2.0.0 Ok")
                case "QUIT":
                    say("221 2.0.0 Bye")
                    return
                case "DATA":
                    say("503 5.5.1 BDAT")
                case _:
                    say("250 2.0.0 Ok")


EHLO = "EHLO client.test"
MAIL = "MAIL FROM:<a@client.test>"
RCPT = "RCPT TO:<b@far.test>"
BEFORE = {"": [], "ehlo": [EHLO], "mail": [EHLO, MAIL], "rcpt": [EHLO, MAIL, RCPT],
          "helo": ["HELO client.test"], "utf8": [EHLO, MAIL + " SMTPUTF8"]}


def connect(box, before="", port=None):
    """A session in which `before` has been said."""
    wire = box.relay.raw(port)
    check(re.match(r"220 \S+ [EL]S?MTP\b", wire.greeting), f"greeting {wire.greeting!r}")
    for line in BEFORE[before]:
        reply = wire.ask(line)
        check(reply.startswith("250"), f"{line!r} got {reply!r}")
    return wire


LONG_LOCAL, LONG_DOMAIN = "x" * 64, ".".join(["y" * 63, "y" * 63, "z" * 56, "test"])
# Said before, line without its end (str or bytes), pattern of the whole reply.
COMMANDS = [
    # Greeting, EHLO, HELO: RFC 5321 4.1.1.1, 4.1.4
    ("", "EHLO client.test", r"(250-.*\n)+250 \S+"), ("", "ehlo client.test", r"250-"), ("", "EhLo client.test", r"250-"),
    ("", "EHLO [127.0.0.1]", r"250-"), ("", "EHLO [IPv6:::1]", r"250-"), ("", "EHLO host_name.test", r"250-"),
    ("", "EHLO", r"501 5\.5\.4"), ("", "EHLO ", r"501 5\.5\.4"), ("", "EHLO a b", r"501 5\.5\.4"),
    ("", "EHLO a..b", r"501 5\.5\.4"), ("", "EHLO [300.1.1.1]", r"501 5\.5\.4"), ("", "EHLO [IPv6:zz]", r"501 5\.5\.4"),
    ("", "EHLO " + "x" * 256, r"501 5\.5\.4"), ("", b"EHLO \xff.test", r"501 5\.5\.4"), ("", "HELO", r"501 5\.5\.4"),
    ("", "HELO client.test", r"250 \S+$"), ("", "EHLO client.test  ", r"250-"), ("", "LHLO client.test", r"500 5\.5\.1"),
    ("ehlo", "EHLO again.test", r"250-"), ("rcpt", "EHLO again.test", r"250-"),
    # What may come at any time: 4.1.1.5, 4.1.1.8 to 4.1.1.10
    ("", "NOOP", r"250 2\.0\.0"), ("", "noop with words", r"250 2\.0\.0"), ("", "RSET", r"250 2\.0\.0"),
    ("", "HELP", r"214 2\.0\.0.*MAIL"), ("", "HELP MAIL", r"214 2\.0\.0"), ("", "VRFY alice", r"252 2\.5\.0"),
    ("", "VRFY", r"501 5\.5\.4"), ("", "EXPN list", r"502 5\.5\.1"), ("", "QUIT", r"221 2\.0\.0"),
    ("rcpt", "NOOP", r"250 2\.0\.0"), ("rcpt", "VRFY x", r"252"), ("rcpt", "RSET", r"250 2\.0\.0"),
    ("ehlo", "RSET x", r"501 5\.5\.4"), ("ehlo", "QUIT x", r"501 5\.5\.4"), ("ehlo", "RSET ", r"250"),
    # Not commands: 4.2.4, 4.5.3.1.4
    ("ehlo", "", r"500 5\.5\.[12]"), ("ehlo", " ", r"500 5\.5\.[12]"), ("ehlo", " NOOP", r"500 5\.5\.[12]"),
    ("ehlo", "XYZZY", r"500 5\.5\.1"), ("ehlo", "NOOPX", r"500 5\.5\.1"), ("ehlo", "TURN", r"50[02] 5\.5\.1"),
    ("ehlo", "ETRN x", r"50[02] 5\.5\.1"), ("ehlo", b"NOOP\0", r"500 5\.5\.2"), ("ehlo", b"NO\0OP", r"500 5\.5\.2"),
    ("ehlo", b"NOOP\t", r"500 5\.5\.2"), ("ehlo", b"NOOP \x1b", r"500 5\.5\.2"), ("ehlo", b"NOOP\rNOOP", r"500 5\.5\.2"),
    ("ehlo", b"\xff\xfe", r"500 5\.5\.1"), ("ehlo", "NOOP " + "x" * 500, r"250"), ("ehlo", "NOOP " + "x" * 3000, r"500 5\.5\.2"),
    ("ehlo", "NOOP " + "x" * 30000, r"500 5\.5\.2"),
    # Order: 4.1.4
    ("", MAIL, r"503 5\.5\.1"), ("", RCPT, r"503 5\.5\.1"), ("", "DATA", r"503 5\.5\.1"), ("", "AUTH PLAIN", r"503 5\.5\.1"),
    ("ehlo", RCPT, r"503 5\.5\.1"), ("ehlo", "DATA", r"503 5\.5\.1"), ("mail", MAIL, r"503 5\.5\.1"),
    ("mail", "DATA", r"503 5\.5\.1"), ("rcpt", MAIL, r"503 5\.5\.1"), ("helo", MAIL, r"250 2\.1\.0"),
    ("mail", "AUTH PLAIN", r"503 5\.5\.1"), ("helo", "AUTH PLAIN", r"503 5\.5\.1"), ("rcpt", "DATA now", r"501 5\.5\.4"),
    # MAIL: 4.1.1.2, 4.1.2
    ("ehlo", "MAIL FROM:<>", r"250 2\.1\.0"), ("ehlo", "mail from:<a@b.test>", r"250 2\.1\.0"),
    ("ehlo", "MAIL FROM: <a@b.test>", r"250 2\.1\.0"), ("ehlo", "MAIL FROM:<a@b.test> ", r"250 2\.1\.0"),
    ("ehlo", "MAIL", r"501 5\.5\.4"), ("ehlo", "MAIL FROM", r"501 5\.5\.4"), ("ehlo", "MAIL FROM:", r"501 5\.1\.7"),
    ("ehlo", "MAIL <a@b.test>", r"501 5\.5\.4"), ("ehlo", "MAIL TO:<a@b.test>", r"501 5\.5\.4"),
    ("ehlo", "MAIL FROM:a@b.test", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a@b.test", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a@b.test>>", r"501 5\."), ("ehlo", "MAIL FROM:<<a@b.test>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a@b.test>SIZE=1", r"501 5\.5\.4"), ("ehlo", "MAIL FROM:< >", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<@b.test>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a@>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a@b@c.test>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a b@c.test>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a@b c.test>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<.a@b.test>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a.@b.test>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a..b@c.test>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a@-b.test>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a@b-.test>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a@b..test>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a@.test>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a@b.test.>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a(comment)@b.test>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a,b@c.test>", r"501 5\.1\.7"),
    ("ehlo", 'MAIL FROM:<"a b"@c.test>', r"250"), ("ehlo", 'MAIL FROM:<"a@b"@c.test>', r"250"),
    ("ehlo", 'MAIL FROM:<"a>b"@c.test>', r"250"), ("ehlo", r'MAIL FROM:<"a\"b\\"@c.test>', r"250"),
    ("ehlo", 'MAIL FROM:<""@c.test>', r"250"), ("ehlo", 'MAIL FROM:<"a@c.test>', r"501 5\.1\.7"),
    ("ehlo", 'MAIL FROM:<"a"b@c.test>', r"501 5\.1\.7"), ("ehlo", b'MAIL FROM:<"a\x07"@c.test>', r"50[01] 5\."),
    ("ehlo", "MAIL FROM:<!#$%&'*+-/=?^_`{|}~@c.test>", r"250"), ("ehlo", "MAIL FROM:<a@[192.0.2.1]>", r"250"),
    ("ehlo", "MAIL FROM:<a@[IPv6:2001:db8::1]>", r"250"), ("ehlo", "MAIL FROM:<a@[ipv6:::ffff:192.0.2.1]>", r"250"),
    ("ehlo", "MAIL FROM:<a@[192.0.2.256]>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a@[2001:db8::1]>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<a@[192.0.2.1>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<a@[tag:x]>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<@r1.test,@r2.test:a@b.test>", r"250"), ("ehlo", "MAIL FROM:<@r1.test:>", r"501 5\.1\.7"),
    ("ehlo", "MAIL FROM:<@r1.test,:a@b.test>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<r1.test:a@b.test>", r"501 5\.1\.7"),
    ("ehlo", f"MAIL FROM:<{LONG_LOCAL}@b.test>", r"250"), ("ehlo", f"MAIL FROM:<x{LONG_LOCAL}@b.test>", r"501 5\.1\.7"),
    ("ehlo", f"MAIL FROM:<a@{LONG_DOMAIN}>", r"250"), ("ehlo", "MAIL FROM:<a@" + "b" * 64 + ".test>", r"501 5\.1\.7"),
    ("ehlo", f"MAIL FROM:<{LONG_LOCAL}@{LONG_DOMAIN}>", r"250"), ("ehlo", f"MAIL FROM:<{LONG_LOCAL}@y{LONG_DOMAIN}>", r"501 5\.1\.7"),
    ("ehlo", f"MAIL FROM:<{LONG_LOCAL}@yy.{LONG_DOMAIN}>", r"501 5\.1\.7"), ("ehlo", "MAIL FROM:<postmaster>", r"501 5\.1\.7"),
    # RCPT: 4.1.1.3, 4.5.1
    ("mail", RCPT, r"250 2\.1\.5"), ("mail", "rcpt to:<b@far.test>", r"250"), ("mail", "RCPT TO: <b@far.test>", r"250"),
    ("mail", "RCPT TO:<postmaster>", r"(250 2\.1\.5|550 5\.1\.1)"), ("mail", "RCPT TO:<PostMaster>", r"(250|550)"),
    ("mail", "RCPT TO:<postmaster@HERE.test>", r"250 2\.1\.5"),
    ("mail", "RCPT TO:<>", r"501 5\.1\.3"), ("mail", "RCPT", r"501 5\.5\.4"), ("mail", "RCPT TO:", r"501 5\.1\.3"),
    ("mail", "RCPT FROM:<b@far.test>", r"501 5\.5\.4"), ("mail", "RCPT TO:b@far.test", r"501 5\.1\.3"),
    ("mail", "RCPT TO:<b@far.test", r"501 5\.1\.3"), ("mail", "RCPT TO:<b>", r"501 5\.1\.3"),
    ("mail", 'RCPT TO:<"b c"@far.test>', r"250"), ("mail", "RCPT TO:<@relay.test:b@far.test>", r"250"),
    ("mail", "RCPT TO:<b@[127.0.0.1]>", r"(250|550)"), ("mail", "RCPT TO:<b@far.test> SIZE=1", r"555 5\.5\.4"),
    ("mail", "RCPT TO:<b@far.test> FOO", r"555 5\.5\.4"), ("mail", "RCPT TO:<b@far.test>, <c@far.test>", r"501 5\.5\.4"),
    ("mail", "RCPT TO:<nobody@here.test>", r"550 5\.1\.1"), ("mail", "RCPT TO:<alice@here.test>", r"250 2\.1\.5"),
    ("mail", "RCPT TO:<ALICE@HERE.TEST>", r"250 2\.1\.5"),
    # SIZE: RFC 1870 6; 8BITMIME: RFC 6152 3; unknown parameters: RFC 5321 4.1.1.11
    ("ehlo", MAIL + " SIZE=100000", r"250"), ("ehlo", MAIL + " SIZE=100001", r"552 5\.3\.4"), ("ehlo", MAIL + " SIZE=0", r"250"),
    ("ehlo", MAIL + " SIZE=18446744073709551616", r"552 5\.3\.4"), ("ehlo", MAIL + " SIZE=99999999999999999999", r"552 5\.3\.4"),
    ("ehlo", MAIL + " SIZE=999999999999999999999", r"501 5\.5\.4"), ("ehlo", MAIL + " SIZE=-1", r"501 5\.5\.4"),
    ("ehlo", MAIL + " SIZE=", r"501 5\.5\.4"), ("ehlo", MAIL + " SIZE", r"(501|555) 5\.5\.4"), ("ehlo", MAIL + " SIZE=1k", r"501 5\.5\.4"),
    ("ehlo", MAIL + " SIZE=1 SIZE=2", r"(501|555) 5\.5\.4"), ("ehlo", MAIL + " BODY=7BIT", r"250"),
    ("ehlo", MAIL + " body=8bitmime", r"250"), ("ehlo", MAIL + " BODY=BINARYMIME", r"250"), ("ehlo", MAIL + " BODY=9BIT", r"501 5\.5\.4"),
    ("ehlo", MAIL + " BODY", r"(501|555) 5\.5\.4"), ("ehlo", MAIL + " FOO=BAR", r"555 5\.5\.4"), ("ehlo", MAIL + " =", r"555 5\.5\.4"),
    ("ehlo", MAIL + " SIZE=1 BODY=8BITMIME SMTPUTF8", r"250"), ("ehlo", MAIL + " AUTH=<>", r"250"),
    ("ehlo", MAIL + " AUTH=a+40b.test", r"250"), ("ehlo", MAIL + " AUTH=a=b", r"501 5\.5\.4"),
    # SMTPUTF8: RFC 6531 3.4, 3.5
    ("ehlo", "MAIL FROM:<gr\u00fcn@b.test>", r"55[03] 5\.6\.7"), ("ehlo", "MAIL FROM:<gr\u00fcn@b.test> SMTPUTF8", r"250"),
    ("ehlo", "MAIL FROM:<a@b\u00fccher.test> SMTPUTF8", r"250"), ("ehlo", MAIL + " SMTPUTF8=1", r"(501|555) 5\.5\.4"),
    ("ehlo", b"MAIL FROM:<\xff@b.test> SMTPUTF8", r"501 5\.1\.7"), ("mail", "RCPT TO:<gr\u00fcn@far.test>", r"55[03] 5\.6\.7"),
    ("utf8", "RCPT TO:<gr\u00fcn@far.test>", r"250"), ("utf8", "RCPT TO:<a\u0085b@far.test>", r"501 5\.1\.3"),
    ("utf8", "RCPT TO:<a\u2028b@far.test>", r"501 5\.1\.3"),
    # DSN: RFC 3461 4
    ("ehlo", MAIL + " RET=FULL ENVID=QQ+2B1", r"250"), ("ehlo", MAIL + " RET=HDRS", r"250"), ("ehlo", MAIL + " RET=SOME", r"501 5\.5\.4"),
    ("ehlo", MAIL + " RET=FULL RET=HDRS", r"(501|555) 5\.5\.4"), ("ehlo", MAIL + " ENVID=", r"501 5\.5\.4"),
    ("ehlo", MAIL + " ENVID=a+0D+0Ab", r"501 5\.5\.4"), ("ehlo", MAIL + " ENVID=" + "x" * 101, r"501 5\.5\.4"),
    ("mail", RCPT + " NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;b@far.test", r"250"), ("mail", RCPT + " NOTIFY=NEVER", r"250"),
    ("mail", RCPT + " NOTIFY=NEVER,FAILURE", r"501 5\.5\.4"), ("mail", RCPT + " NOTIFY=", r"501 5\.5\.4"),
    ("mail", RCPT + " NOTIFY=SUCCESS,SUCCESS", r"501 5\.5\.4"), ("mail", RCPT + " ORCPT=b@far.test", r"501 5\.5\.4"),
    ("mail", RCPT + " ORCPT=rfc822;", r"501 5\.5\.4"), ("mail", RCPT + " ORCPT=rfc822;a+0Ab", r"501 5\.5\.4"),
    ("mail", RCPT + " RET=FULL", r"555 5\.5\.4"), ("ehlo", MAIL + " NOTIFY=NEVER", r"555 5\.5\.4"),
    # MT-PRIORITY: RFC 6710 4, 5; REQUIRETLS: RFC 8689 4.1 (only under TLS)
    ("ehlo", MAIL + " MT-PRIORITY=3", r"250"), ("ehlo", MAIL + " MT-PRIORITY=-9", r"250"), ("ehlo", MAIL + " MT-PRIORITY=10", r"501 5\.5\.4"),
    ("ehlo", MAIL + " MT-PRIORITY=", r"501 5\.5\.4"), ("ehlo", MAIL + " REQUIRETLS", r"555 5\.5\.4"),
    # STARTTLS without a certificate; XCLIENT and XFORWARD for nobody
    ("ehlo", "STARTTLS", r"50[23] 5\.5\.1"), ("ehlo", "XCLIENT ADDR=192.0.2.1", r"55\d 5\.7\.\d"),
    ("ehlo", "XFORWARD ADDR=192.0.2.1", r"55\d 5\.7\.\d"),
    # BDAT without anything before it: RFC 3030 2
    ("", "BDAT 0 LAST", r"503 5\.5\.1"), ("ehlo", "BDAT 0 LAST", r"503 5\.5\.1"), ("mail", "BDAT 0 LAST", r"503 5\.5\.1"),
    ("rcpt", "BDAT", r"501 5\.5\.4"), ("rcpt", "BDAT x", r"501 5\.5\.4"), ("rcpt", "BDAT -1", r"501 5\.5\.4"),
    ("rcpt", "BDAT 0 FIRST", r"501 5\.5\.4"), ("rcpt", "BDAT 99999999999999999999 LAST", r"501 5\.5\.4"),
    ("rcpt", "BDAT 0 LAST", r"250 2\.0\.0"),
]


def commands(box):
    """every command in every place: codes and enhanced codes"""
    for before, line, pattern in COMMANDS:
        wire = connect(box, before)
        reply = wire.ask(line)
        check(re.match(pattern, reply), f"{line[:90]!r} after {before or 'the greeting'}: expected {pattern!r}, got {reply!r}")
        for text in reply.split("\n"):
            check(len(text) <= 510, f"a reply line of {len(text)} octets to {line[:60]!r}")
        wire.close()
    box.lines.wait(1)
    box.count = 1  # BDAT 0 LAST
    print(f"          {len(COMMANDS)} rows")


def announcements(box):
    """EHLO announces each keyword once, and what it must"""
    lines = connect(box).ask(EHLO).split("\n")
    keywords = [line[4:].split(" ")[0] for line in lines[1:]]
    check_equal(len(keywords), len(set(keywords)), "keywords stand once")
    for keyword in ("PIPELINING", "8BITMIME", "SMTPUTF8", "CHUNKING", "BINARYMIME", "ENHANCEDSTATUSCODES", "DSN", "AUTH"):
        check(keyword in keywords, f"{keyword} in {keywords}")
    for line in ("250-SIZE 100000", "250-LIMITS RCPTMAX=120"):
        check(line in lines, f"{line!r} in {lines}")
    for keyword in ("STARTTLS", "REQUIRETLS", "XCLIENT", "XFORWARD", "VRFY", "EXPN", "ETRN"):
        check(keyword not in keywords, f"{keyword} in {keywords}")
    check(not any(re.match(r"250[- ]\d\.\d\.\d", line) for line in lines), "no enhanced code in replies to EHLO")


def dialogue(box, script, port=None):
    """Octets to send and, for each, the codes of all replies to them."""
    wire = box.relay.raw(port)
    for octets, codes in script:
        wire.send(octets)
        replies = [wire.reply() for _ in codes.split()]
        check_equal(" ".join(reply[:3] for reply in replies), codes, f"codes of the replies to {octets[:80]!r} ({replies})")
    return wire


B, M, R = EHLO.encode() + b"\r\n", MAIL.encode() + b"\r\n", RCPT.encode() + b"\r\n"
DIALOGUES = [
    ("RSET ends a transaction", [(B + M + R + b"RSET\r\nDATA\r\nRCPT TO:<x@y.test>\r\n" + M, "250 250 250 250 503 503 250")]),
    ("EHLO ends a transaction", [(B + M + R + B + b"DATA\r\n" + M, "250 250 250 250 503 250")]),
    ("a refused EHLO does not", [(B + M + R + b"EHLO\r\n" + R, "250 250 250 501 250")]),
    ("all refused", [(B + M + b"RCPT TO:<nobody@here.test>\r\nDATA\r\n", "250 250 550 554")]),
    ("some refused", [(B + M + b"RCPT TO:<nobody@here.test>\r\n" + R + b"DATA\r\n", "250 250 550 250 354"), (b".\r\n", "250")]),
    ("MAIL refused, the rest with it", [(B + b"MAIL FROM:<bad>\r\n" + R + b"DATA\r\n", "250 501 503 503")]),
    ("everything at once", [(B + M + R + b"DATA\r\nx\r\n.\r\nQUIT\r\n", "250 250 250 354 250 221")]),
    ("what stands behind QUIT is not read", [(B + b"QUIT\r\nNOOP\r\nMAIL FROM:<>\r\n", "250 221")]),
    ("two messages", [(B + M + R + b"DATA\r\na\r\n.\r\n" + M + R + b"DATA\r\nb\r\n.\r\n", "250 250 250 354 250 250 250 354 250")]),
    ("the same recipient twice", [(B + M + R + R + b"DATA\r\nx\r\n.\r\n", "250 250 250 250 354 250")]),
    ("100 recipients and more", [(B + M + b"".join(b"RCPT TO:<r%d@here2.test>\r\n" % n for n in range(122)) + b"RSET\r\n",
                                  "250 250 " + "250 " * 120 + "452 452 250")]),
    ("an empty line is no command", [(b"\r\n\r\n" + B, "500 500 250")]),
    ("a bare LF is no line end", [(b"EHLO x\nNOOP\r\n", "500 250")]),
    ("a bare CR is no line end", [(b"EHLO x\rNOOP\r\n" + B, "500 250")]),
    ("HTTP is not listened to", [(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + B + M, "500 421")]),
    ("commands in octets", [(b"".join((B, M, R)), "250 250 250")]),
    ("binary content needs BDAT", [(B + b"MAIL FROM:<> BODY=BINARYMIME\r\n" + R + b"DATA\r\nRSET\r\n", "250 250 250 503 250")]),
    ("binary content is not for mailboxes", [(B + b"MAIL FROM:<> BODY=BINARYMIME\r\nRCPT TO:<alice@here.test>\r\n", "250 250 554")]),
]


def dialogues(box):
    """sequences of commands, pipelined: the replies in order, one for each"""
    for name, script in DIALOGUES:
        try:
            dialogue(box, script).close()
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    split = connect(box)
    for octet in B + M + R:
        split.send(bytes([octet]))
    check_equal([split.reply()[:3] for _ in range(3)], ["250"] * 3, "octet by octet")
    box.count += 5
    box.lines.wait(box.count)


def errors_end_sessions(box):
    """too many errors in a row end the session with 421"""
    wire = connect(box, "ehlo")
    replies = [wire.ask("XYZZY") for _ in range(12)]
    check(all(reply.startswith("500") for reply in replies), str(replies))
    wire.send(b"XYZZY\r\n")
    check(wire.reply().startswith("500") and wire.reply().startswith("421 4.7.0"), "421 after the 13th")
    check(wire.ended(), "the connection closes")


# Name, octets behind DATA's 354 up to and with the end, pattern of the reply, what must leave (None: nothing).
DATA = [
    ("empty", b".\r\n", r"250 2\.0\.0", b""),
    ("no header section", b"hello\r\n.\r\n", r"250", b"hello\r\n"),
    ("dots are unstuffed", b"..\r\n...\r\n..a\r\n.\r\n", r"250", b".\r\n..\r\n.a\r\n"),
    ("a dot that was not doubled", b".a\r\n.\r\n", r"250", b"a\r\n"),
    ("dot and blank", b". \r\n.\r\n", r"250", b" \r\n"),
    ("dot NUL", b".\0\r\n.\r\n", r"250", b"\0\r\n"),
    ("octets over 127", b"\xff\xe2\x80\xa8\x85\r\n.\r\n", r"250", b"\xff\xe2\x80\xa8\x85\r\n"),
    ("a line of 998", b"x" * 998 + b"\r\n.\r\n", r"250", b"x" * 998 + b"\r\n"),
    ("a line of 20,000 is not folded", b"x" * 20000 + b"\r\n.\r\n", r"250", b"x" * 20000 + b"\r\n"),
    ("controls", b"a\x0b\x0c\x1a\x1bb\r\n.\r\n", r"250", b"a\x0b\x0c\x1a\x1bb\r\n"),
    ("bare LF", b"a\nb\r\n.\r\n", r"550 5\.6\.11", None),
    ("bare CR", b"a\rb\r\n.\r\n", r"550 5\.6\.11", None),
    ("CR CR LF", b"a\r\r\n.\r\n", r"550 5\.6\.11", None),
    ("LF first", b"\n.\r\n.\r\n", r"550 5\.6\.11", None),
    ("dot CR", b"a\r\n.\rb\r\n.\r\n", r"550 5\.6\.11", None),
    ("too large", b"y" * 70 + b"\r\n" + b"x" * 100000 + b"\r\n.\r\n", r"552 5\.3\.4", None),
    ("as large as may be", b"y" * 97 + b"\r\n" + (b"x" * 98 + b"\r\n") * 999 + b"\r\n.\r\n"[2:], r"250", b"y" * 97 + b"\r\n" + (b"x" * 98 + b"\r\n") * 999),
    ("a loop", b"Received: from a by b; x\r\n" * 200 + b"\r\n.\r\n", r"554 5\.4\.6", None),
    ("Received in the body", b"Subject: x\r\n\r\n" + b"Received: from a by b; x\r\n" * 200 + b".\r\n", r"250",
     b"Subject: x\r\n\r\n" + b"Received: from a by b; x\r\n" * 200),
    ("commands as content", b"MAIL FROM:<x@y.test>\r\nQUIT\r\n.\r\n", r"250", b"MAIL FROM:<x@y.test>\r\nQUIT\r\n"),
]


def content_of(message):
    """What was sent, without the field that ringmail puts before it."""
    return re.sub(rb"\AReceived: [^\r]*\r\n(?:\t[^\r]*\r\n)*", b"", message)


def data(box):
    """content by DATA: what ends it, what is refused, and that it leaves as it came"""
    for name, octets, pattern, leaves in DATA:
        for chunk in (len(octets), 1 if len(octets) < 40 else 4093):
            wire = connect(box, "rcpt")
            check(wire.ask("DATA").startswith("354"), "DATA")
            for at in range(0, len(octets), chunk):
                wire.send(octets[at:at + chunk])
            reply = wire.reply()
            check(re.match(pattern, reply), f"{name}: expected {pattern!r}, got {reply!r}")
            check(wire.ask("NOOP").startswith("250"), f"{name}: the session goes on")
            wire.close()
            if leaves is not None:
                box.count += 1
                left = box.lines.wait(box.count)[-1]
                check_equal(content_of(left.data), leaves, name)
    check_equal(len(box.lines.messages), box.count, "messages that left")
    check_equal(box.lines.anomalies, [], "anomalies at the far side")


CHUNKS = [
    ("one chunk", b"BDAT 7 LAST\r\nhello\r\n", "250", b"hello\r\n"),
    ("lower case", b"bdat 7 last\r\nhello\r\n", "250", b"hello\r\n"),
    ("two chunks", b"BDAT 3\r\nhelBDAT 4 LAST\r\nlo\r\n", "250 250", b"hello\r\n"),
    ("an empty last one", b"BDAT 7\r\nhello\r\nBDAT 0 LAST\r\n", "250 250", b"hello\r\n"),
    ("CR and LF in two chunks", b"BDAT 6\r\nhello\rBDAT 4 LAST\r\n\na\r\n", "250 250", b"hello\r\na\r\n"),
    ("no line end at the end", b"BDAT 5 LAST\r\nhello", "250", b"hello\r\n"),
    ("dots are stuffed for DATA", b"BDAT 8 LAST\r\n.\r\n..\r\n.", "250", b".\r\n..\r\n.\r\n"),
    ("a dot behind a chunk", b"BDAT 3\r\na\r\nBDAT 3 LAST\r\n.\r\n", "250 250", b"a\r\n.\r\n"),
    ("what looks like the end", b"BDAT 31 LAST\r\nx\r\n.\r\nQUIT\r\nMAIL FROM:<a@b>\r\n\r\n", "250",
     b"x\r\n.\r\nQUIT\r\nMAIL FROM:<a@b>\r\n\r\n"),
    ("NUL", b"BDAT 3 LAST\r\n\0\r\n", "250", b"\0\r\n"),
    ("bare LF", b"BDAT 4 LAST\r\na\nb\n", "550", None),
    ("bare CR", b"BDAT 3 LAST\r\na\rb", "550", None),
    ("bare CR at the end", b"BDAT 2 LAST\r\na\r", "550", None),
    ("CR in one chunk, no LF in the next", b"BDAT 2\r\na\rBDAT 1 LAST\r\nb", "250 550", None),
    ("LF in the first of two", b"BDAT 2\r\na\nBDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nQUIT\r\n", "550 503 503", None),
    ("DATA between chunks", b"BDAT 3\r\na\r\nDATA\r\nRSET\r\n", "250 503 250", None),
    ("RCPT and MAIL between chunks", b"BDAT 3\r\na\r\n" + R + M + b"BDAT 0 LAST\r\n", "250 503 503 250", b"a\r\n"),
    ("RSET between chunks", b"BDAT 3\r\na\r\nRSET\r\nBDAT 6 LAST\r\nQUIT\r\n", "250 250 503", None),
    ("BDAT after the last one", b"BDAT 3 LAST\r\na\r\nBDAT 6 LAST\r\nQUIT\r\n", "250 503", b"a\r\n"),
    ("too large at once", b"BDAT 100001 LAST\r\n" + b"QUIT\r\n" * 16666 + b"QUIT\r", "552", None),
    ("too large together", b"BDAT 60000\r\n" + b"QUIT\r\n" * 10000 + b"BDAT 60000\r\n" + b"QUIT\r\n" * 10000 + b"BDAT 6 LAST\r\nQUIT\r\n",
     "250 552 503", None),
    ("a malformed chunk is eaten", b"BDAT 6 LATEST\r\nQUIT\r\nRSET\r\n", "501 250", None),
]


def chunks(box):
    """content by BDAT: chunks that are refused are eaten, and what leaves is fit for DATA"""
    for name, octets, codes, leaves in CHUNKS:
        for size in (len(octets), 1 if len(octets) < 200 else 4093):
            wire = connect(box, "rcpt")
            for at in range(0, len(octets), size):
                wire.send(octets[at:at + size])
            wire.send(b"NOOP\r\n")
            replies = [wire.reply()[:3] for _ in codes.split()] + [wire.reply()[:7]]
            check_equal(" ".join(replies), codes + " 250 2.0", name)
            wire.close()
            if leaves is not None:
                box.count += 1
                left = box.lines.wait(box.count)[-1]
                check_equal(content_of(left.data), leaves, name)
    for line in (b"BDAT\r\n", b"BDAT x\r\n", b"BDAT 6\n", b"BDAT 18446744073709551616\r\n", b"BDAT 6\0\r\n", b"BDAT 6" + b" " * 20000 + b"\r\n"):
        wire = connect(box, "rcpt")
        wire.send(line + M + b"QUIT\r\n")
        replies = wire.replies(0.5)
        check_equal([reply[:3] for reply in replies], ["501", "421"], f"a chunk of unknown size, {line[:30]!r}")
        wire.close()
    wire = connect(box, "rcpt")
    wire.send(b"BDAT 1\r\nxBDAT 18446744073709551615 LAST\r\n" + M * 100 + b"QUIT\r\n")
    check_equal([reply[:3] for reply in wire.replies(0.5)], ["250", "552"], "a sum that no number holds is eaten, up to the end")
    wire.close()
    check_equal(len(box.lines.messages), box.count, "messages that left")
    check_equal(box.lines.anomalies, [], "anomalies at the far side")


def binary(box):
    """BODY=BINARYMIME leaves by BDAT, octet for octet, and bounces where the next hop lacks it"""
    content = b"Subject: binary\r\n\r\n" + bytes(range(256)) * 40 + b"\n.\n\r.\r\r\n.\r\n..\r\nend\r"
    for size in (len(content), 1000, 17):
        wire = connect(box, "ehlo")
        check(wire.ask("MAIL FROM:<> BODY=BINARYMIME").startswith("250"), "MAIL")
        check(wire.ask("RCPT TO:<b@binary.test>").startswith("250"), "RCPT")
        pieces = [content[at:at + size] for at in range(0, len(content), size)]
        for piece in pieces:
            wire.send(b"BDAT %d\r\n%b" % (len(piece), piece))
        wire.send(b"BDAT 0 LAST\r\n")
        check(all(wire.reply().startswith("250") for _ in range(len(pieces) + 1)), "BDAT")
        wire.close()
    wait_until(lambda: len(box.octets.messages) >= 3, "binary messages at the far side")
    for mail, left in box.octets.messages:
        check("BODY=BINARYMIME" in mail, mail)
        check_equal(content_of(left), content, "binary content")
    wire = connect(box, "ehlo")
    check(wire.ask("MAIL FROM:<a@client.test> BODY=BINARYMIME RET=FULL").startswith("250"), "MAIL")
    check(wire.ask(RCPT).startswith("250"), "RCPT")
    stray = b"Subject: x\n.\nMAIL FROM:<s@smuggled.test>\n\r\n\r\na\n.\n"
    wire.send(b"BDAT %d LAST\r\n%b" % (len(stray), stray))
    check(wire.reply().startswith("250"), "BDAT LAST")
    box.count += 1
    report = box.lines.wait(box.count)[-1]
    check(report.recipients == ["a@client.test"] and b"5.6.3" in report.data, "a DSN says why it bounced")
    check(b"smuggled.test>\n" not in report.data.replace(b"\r\n", b""), "the DSN holds no stray line end")
    check_equal(box.lines.anomalies, [], "anomalies at the far side")


def normalised(box):
    """line_endings = normalise: lone LF and CR become harmless, and still only CRLF.CRLF ends the data"""
    for octets, leaves in ((b"a\nb\r\n.\r\n", b"a\r\nb\r\n"), (b"a\rb\r\n.\r\n", b"a b\r\n"), (b"a\n.\nb\r\n.\r\n", b"a\r\n\r\nb\r\n"),
                           (b"a\n.\r\nMAIL\r\n.\r\n", b"a\r\n\r\nMAIL\r\n"), (b"a\r\n.\nMAIL\r\n.\r\n", b"a\r\n\r\nMAIL\r\n"),
                           (b"a\n..b\r\n.\r\n", b"a\r\n.b\r\n"), (b"a\r\r\n.\r\n", b"a \r\n"), (b"\r.\r\r\n.\r\n", b" . \r\n")):
        for size in (len(octets), 1):
            wire = connect(box, "rcpt", box.ports["normalise"])
            check(wire.ask("DATA").startswith("354"), "DATA")
            for at in range(0, len(octets), size):
                wire.send(octets[at:at + size])
            check(wire.reply().startswith("250"), f"{octets!r}")
            check(wire.ask("NOOP").startswith("250"), "NOOP")
            wire.close()
            box.count += 1
            check_equal(content_of(box.lines.wait(box.count)[-1].data), leaves, f"what becomes of {octets!r}")
    wire = connect(box, "rcpt", box.ports["normalise"])
    wire.send(b"BDAT 6 LAST\r\na\n.\nb\r")
    check(wire.reply().startswith("250"), "BDAT")
    box.count += 1
    check_equal(content_of(box.lines.wait(box.count)[-1].data), b"a\r\n.\r\nb \r\n", "what becomes of chunks")
    check_equal(box.lines.anomalies, [], "anomalies at the far side")


FALSE_ENDS = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\r", b"\r\r\n.\r\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n",
              b"\n\n.\r\n", b"\r\n.\r\r\n", b"\n\r.\n\r", b"\r\n..\r\n", b"\r\n. \r\n", b"\r\r.\r\r", b"\x0b.\x0b", b"\x85.\x85"]


def smuggling(box):
    """whatever false end stands in a message, by DATA or BDAT, strict or normalised: never more leave than were accepted"""
    inner = M + b"RCPT TO:<s@smuggled.test>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
    accepted, before = 0, len(box.lines.messages)
    for port in (None, box.ports["normalise"]):
        for false_end in FALSE_ENDS:
            octets = b"Subject: outer\r\n\r\ntext" + false_end + inner
            for stream in (b"DATA\r\n" + octets, b"BDAT %d LAST\r\n%b" % (len(octets), octets)):
                wire = connect(box, "rcpt", port)
                wire.send(stream + b"NOOP\r\n")
                replies = []
                while not (replies and (replies[-1] == "" or replies[-1] == "250 2.0.0 OK")):
                    replies.append(wire.reply())
                accepted += sum(reply.startswith("250 2.0.0 queued") for reply in replies)
                check(len(replies) <= 3, f"{false_end!r}: {replies}")
                wire.close()
    box.relay.wait_queue_empty()
    box.count = before + accepted
    check_equal(len(box.lines.messages), box.count, "messages that left")
    for message in box.lines.messages[before:]:
        check_equal(message.recipients, ["b@far.test"], "recipients of what left")
    check_equal(box.lines.anomalies, [], "anomalies at the far side")


def b64(text):
    """As a line of AUTH carries it."""
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


AUTH = [
    (["AUTH PLAIN " + b64("\0alice\0sesame")], "235 2.7.0"), (["auth plain", b64("\0alice\0sesame")], "334,235 2.7.0"),
    (["AUTH PLAIN " + b64("alice\0alice\0sesame")], "235 2.7.0"), (["AUTH LOGIN", b64("alice"), b64("sesame")], "334,334,235 2.7.0"),
    (["AUTH LOGIN " + b64("alice"), b64("sesame")], "334,235 2.7.0"), (["AUTH PLAIN " + b64("\0alice\0wrong")], "535 5.7.8"),
    (["AUTH PLAIN " + b64("\0nobody\0sesame")], "535 5.7.8"), (["AUTH PLAIN " + b64("bob\0alice\0sesame")], "535 5.7.8"),
    (["AUTH SCRAM-SHA-256 " + b64("n,a=bob,n=alice,r=abc")], "535 5.7.8"),
    (["AUTH PLAIN ="], "501 5.5.2"), (["AUTH PLAIN", ""], "334,501 5.5.2"), (["AUTH PLAIN", "*"], "334,501 5.7.0"),
    (["AUTH LOGIN", "*"], "334,501 5.7.0"), (["AUTH LOGIN", b64("alice"), "*"], "334,334,501 5.7.0"), (["AUTH PLAIN *"], "501 5.5.2"),
    (["AUTH PLAIN", "not base64!"], "334,501 5.5.2"), (["AUTH PLAIN " + b64("\0alice")], "501 5.5.2"),
    (["AUTH PLAIN " + b64("\0alice\0ses\0ame")], "501 5.5.2"), (["AUTH PLAIN " + b64(b"\0\xff\xfe\0x")], "501 5.5.2"),
    (["AUTH PLAIN AGFsaWNlAHNlc2FtZQ"], "501 5.5.2"), (["AUTH"], "501 5.5.4"), (["AUTH "], "501 5.5.4"), (["AUTH NONSENSE"], "504 5.5.4"),
    (["AUTH PLAIN a b"], "501 5.5.4"), (["AUTH SCRAM-SHA-256-PLUS"], "504 5.5.4"), (["AUTH SCRAM-SHA-256", b64("nonsense")], "334,501 5.5.2"),
    (["AUTH SCRAM-SHA-256 " + b64("p=tls-exporter,,n=alice,r=abc")], "501 5.5.2"), (["AUTH PLAIN " + "A" * 4000], "5"),
    (["AUTH PLAIN", "A" * 12284], "334,500 5.5.6"), (["AUTH PLAIN", "A" * 20000], "334,500 5.5.6"),
    (["AUTH PLAIN", "QUIT"], "334,501 5.5.2"), (["AUTH LOGIN", "", b64("x")], "334,501 5.5.2,500"),
]


def auth(box):
    """AUTH: every mechanism, cancelled, empty, over-long, eight-bit, and by SCRAM without telling the password"""
    for lines, expected in AUTH:
        wire = connect(box, "ehlo")
        for line, prefix in zip(lines, expected.split(",")):
            reply = wire.ask(line)
            check(reply.startswith(prefix), f"{line[:60]!r} of {[text[:40] for text in lines]}: expected {prefix!r}, got {reply!r}")
        check(wire.ask("NOOP").startswith("250"), "the session goes on")
        if expected.endswith("235 2.7.0"):
            check(wire.ask("AUTH PLAIN").startswith("503 5.5.1"), "AUTH once")
            check("AUTH" not in wire.ask(EHLO), "AUTH is not offered again")
        wire.close()
    for password, code in (("sesame", "235 2.7.0"), ("wrong", "535 5.7.8")):
        check(scram(connect(box, "ehlo"), "alice", password).startswith(code), f"SCRAM with {password}")


def scram(wire, name, password):
    """A login by SCRAM-SHA-256 as RFC 5802 and 7677 tell it; checks the server's proof."""
    bare = f"n={name},r=clientnonce{random.randrange(10 ** 9)}"
    reply = wire.ask("AUTH SCRAM-SHA-256 " + b64("n,," + bare))
    check(reply.startswith("334 "), reply)
    first = base64.b64decode(reply[4:]).decode()
    fields = dict(part.split("=", 1) for part in first.split(","))
    check(fields["r"].startswith(bare.split("r=")[1]) and int(fields["i"]) >= 4096, first)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
    mac = lambda key, text: hmac.new(key, text.encode(), "sha256").digest()
    without_proof = f"c=biws,r={fields['r']}"
    message = f"{bare},{first},{without_proof}"
    key = mac(salted, "Client Key")
    proof = bytes(a ^ b for a, b in zip(key, mac(hashlib.sha256(key).digest(), message)))
    reply = wire.ask(b64(f"{without_proof},p={b64(proof)}"))
    if reply.startswith("334 "):
        check_equal(base64.b64decode(reply[4:]).decode(), "v=" + b64(mac(mac(salted, "Server Key"), message)), "the server's proof")
        reply = wire.ask("")
    return reply


def tls(box):
    """STARTTLS forgets everything; AUTH and REQUIRETLS come with it; what was sent ahead in plain text is lost"""
    port = box.ports["submission"]
    wire = connect(box, "", port)
    reply = wire.ask(EHLO)
    check("STARTTLS" in reply and "AUTH" not in reply and "REQUIRETLS" not in reply, reply)
    for line, code in (("AUTH PLAIN " + b64("\0alice\0sesame"), "538 5.7.11"), (MAIL, "530 5.7.0"), ("STARTTLS x", "501 5.5.4")):
        check(wire.ask(line).startswith(code), line)
    wire.send(b"STARTTLS\r\nEHLO injected.test\r\n")
    check(wire.reply().startswith("220 2.0.0"), "STARTTLS")
    context = ssl.create_default_context(cafile=str(box.dir / "cert.pem"))
    try:
        wire.socket = context.wrap_socket(wire.socket, server_hostname="relay.test")
        wire.buffer = b""
    except (ssl.SSLError, ConnectionError):
        wire = None  # the octets sent ahead end the session: as good an answer
    if wire:
        check(wire.ask(MAIL).startswith("503 5.5.1"), "EHLO is forgotten")
        wire.close()
    wire = connect(box, "", port)
    wire.ask(EHLO)
    wire.ask("STARTTLS")
    wire.socket = context.wrap_socket(wire.socket, server_hostname="relay.test")
    check(wire.ask(MAIL).startswith("503 5.5.1"), "EHLO is forgotten")
    lines = wire.ask(EHLO).split("\n")
    check(any(line[4:].startswith("AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN LOGIN") for line in lines), f"AUTH in {lines}")
    check("250-REQUIRETLS" in lines and not any("STARTTLS" in line for line in lines), str(lines))
    check(wire.ask("STARTTLS").startswith("503 5.5.1"), "STARTTLS twice")
    check(wire.ask("AUTH SCRAM-SHA-256 " + b64("y,,n=alice,r=abcdef")).startswith("535"), "a downgrade is seen")
    check(scram(wire, "alice", "sesame").startswith("235"), "SCRAM under TLS")
    check(wire.ask("MAIL FROM:<alice@here.test> REQUIRETLS").startswith("250"), "REQUIRETLS")
    wire.close()


def held(box):
    """FUTURERELEASE: a message is held as long as its sender asked for, also over a crash"""
    port, now = box.ports["submission"], time.time()
    context = ssl.create_default_context(cafile=str(box.dir / "cert.pem"))
    wire = connect(box, "", port)
    wire.ask(EHLO)
    wire.ask("STARTTLS")
    wire.socket = context.wrap_socket(wire.socket, server_hostname="relay.test")
    check(re.search(r"(?m)^250-FUTURERELEASE 604800 20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ$", wire.ask(EHLO)), "FUTURERELEASE is announced")
    check(wire.ask("AUTH PLAIN " + b64("\0alice\0sesame")).startswith("235"), "AUTH")
    for parameter, code in (("HOLDFOR=604801", "501 5.5.4"), ("HOLDFOR=-1", "501 5.5.4"), ("HOLDUNTIL=soon", "501 5.5.4"),
                            ("HOLDFOR=1 HOLDUNTIL=2030-01-01T00:00:00Z", "5"), ("HOLDUNTIL=2999-01-01T00:00:00Z", "501 5.5.4")):
        check(wire.ask(f"MAIL FROM:<alice@here.test> {parameter}").startswith(code), parameter)
    for line, code in (("MAIL FROM:<alice@here.test> HOLDFOR=4", "250"), (RCPT, "250"), ("DATA", "354"), ("Subject: held\r\n\r\nx\r\n.", "250")):
        check(wire.ask(line).startswith(code), line)
    wire.close()
    check_equal(len(box.lines.messages), box.count, "messages that left at once")
    box.relay.kill()
    box.relay.start()
    box.count += 1
    box.lines.wait(box.count)
    check(time.time() - now >= 4, "it left before its time")


def lmtp(box):
    """LMTP: LHLO, and a reply for each recipient after the end"""
    port = box.ports["lmtp"]
    wire = box.relay.raw(port)
    check(wire.greeting.startswith("220 ") and "LMTP" in wire.greeting, wire.greeting)
    for line, code in (("EHLO x.test", "500 5.5.1"), ("HELO x.test", "500 5.5.1"), (MAIL, "503 5.5.1"), ("LHLO", "501 5.5.4"), ("LHLO x.test", "250")):
        check(wire.ask(line).startswith(code), f"{line} {code}")
    wire.close()
    hello = b"LHLO x.test\r\n" + M + b"RCPT TO:<alice@here.test>\r\n" + R
    for end, codes in ((b"DATA\r\nSubject: l\r\n\r\nx\r\n.\r\n", "354 250 250"), (b"BDAT 3 LAST\r\nx\r\n", "250 250"),
                       (b"DATA\r\na\nb\r\n.\r\n", "354 550 550"), (b"BDAT 2 LAST\r\nx\n", "550 550")):
        wire = dialogue(box, [(hello + end + b"NOOP\r\n", f"250 250 250 250 {codes} 250")], port)
        wire.close()
        box.count += "250 250" in codes
    box.lines.wait(box.count)
    box.relay.wait_mail("alice", "sesame", 2)


def proxied(box):
    """XCLIENT changes whom we serve, XFORWARD only what is logged; both only for whom the operator named"""
    port = box.ports["proxied"]
    wire = connect(box, "", port)
    lines = wire.ask(EHLO).split("\n")
    check("250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT" in lines, str(lines))
    check("250-XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE" in lines, str(lines))
    for line in ("XCLIENT", "XCLIENT FOO=1", "XCLIENT ADDR=nonsense", "XCLIENT ADDR", "XFORWARD PORT=x", "XFORWARD PROTO=HTTP"):
        check(wire.ask(line).startswith("501 5.5.4"), line)
    check(wire.ask("XCLIENT ADDR=203.0.113.77 NAME=far.example PORT=2525 DESTADDR=192.0.2.1 DESTPORT=25").startswith("220 "), "XCLIENT")
    check(wire.ask(MAIL).startswith("503 5.5.1"), "the session begins anew")
    check(wire.ask("EHLO spoken.example").startswith("250"), "EHLO")
    check(wire.ask(MAIL).startswith("250"), "MAIL")
    check(wire.ask(RCPT).startswith("550 5.7.1"), "this client is not trusted")
    check(wire.ask("XCLIENT ADDR=127.0.0.1").startswith("503 5.5.1"), "not within a transaction")
    check(wire.ask("RSET").startswith("250"), "RSET")
    check(wire.ask("XCLIENT LOGIN=alice HELO=told.example PROTO=ESMTP").startswith("220 "), "XCLIENT with a login")
    for line, code in ((MAIL, "250"), (RCPT, "250"), ("DATA", "354"), ("Subject: proxied\r\n\r\nx\r\n.", "250")):
        check(wire.ask(line).startswith(code), line)
    wire.close()
    box.count += 1
    trace = box.lines.wait(box.count)[-1].header("Received")
    check("from told.example (far.example [203.0.113.77])" in trace and "with ESMTPA" in trace, trace)
    wire = connect(box, "ehlo", port)
    check(wire.ask("XFORWARD NAME=out.example ADDR=203.0.113.5 PROTO=ESMTP").startswith("250"), "XFORWARD")
    check(wire.ask("XFORWARD HELO=out.example IDENT=4711AB SOURCE=REMOTE PORT=[UNAVAILABLE]").startswith("250"), "XFORWARD")
    for line, code in ((MAIL, "250"), (RCPT, "250"), ("XFORWARD IDENT=x", "503"), ("DATA", "354"), ("Subject: forwarded\r\n\r\nx\r\n.", "250")):
        check(wire.ask(line).startswith(code), line)
    wire.close()
    box.count += 1
    check("[203.0.113.5]" not in box.lines.wait(box.count)[-1].header("Received"), "it is only told, not believed")
    box.relay.wait_event("accepted", orig_client="203.0.113.5", orig_id="4711AB")


def trace_of_hostile_names(box):
    """what a client says about itself cannot make a header field, nor a clause of ours"""
    port = box.ports["submission"]  # where any word is taken as a name
    for name in ("x)by(evil", "a;b", "[127.0.0.1", "x\\", '"x"'):
        wire = box.relay.raw(port)
        check(wire.ask(f"EHLO {name}").startswith("250"), name)
        wire.ask("STARTTLS")
        context = ssl.create_default_context(cafile=str(box.dir / "cert.pem"))
        wire.socket = context.wrap_socket(wire.socket, server_hostname="relay.test")
        check(wire.ask(f"EHLO {name}").startswith("250"), name)
        check(wire.ask("AUTH PLAIN " + b64("\0alice\0sesame")).startswith("235"), "AUTH")
        for line, code in (("MAIL FROM:<alice@here.test>", "250"), (RCPT, "250"), ("DATA", "354"), ("x: y\r\n\r\nz\r\n.", "250")):
            check(wire.ask(line).startswith(code), line)
        wire.close()
        box.count += 1
        trace = box.lines.wait(box.count)[-1].header("Received")
        escaped = re.sub(r"([()\\])", r"\\\1", name)
        check(trace.startswith(f"from [127.0.0.1] ({escaped}) by "), trace)
        check("with ESMTPSA (TLSv1.3 " in trace, trace)


def stop(box):
    """nothing more has left, and SIGTERM ends it with status 0"""
    box.relay.wait_queue_empty()
    check_equal(len(box.lines.messages), box.count, "messages that left")
    check_equal(box.lines.anomalies, [], "anomalies at the far side")
    check("panic" not in box.relay.log(), "a panic in the log")
    box.relay.stop()


main(start, announcements, commands, dialogues, errors_end_sessions, data, chunks, binary, normalised, smuggling, auth, tls, held, lmtp,
     proxied, trace_of_hostile_names, stop)
