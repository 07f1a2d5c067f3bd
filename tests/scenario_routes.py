"""Routes from the configuration, and who may use the relay.

A smarthost takes what no fixed route takes. Strangers reach local users and relay domains only, in whatever spelling
they try (percent hack, source route, bang path, quoted @, address literal); clients in trusted networks and with AUTH
reach everything.
"""

from harness import *


def start(box):
    """start a relay with a smarthost and fixed routes; loopback is not trusted"""
    box.smarthost, box.fixed, box.subdomains = box.sink(), box.sink(), box.sink()
    box.relay = box.ringmail(config={
        "relay": {"trusted_networks": ["127.0.0.9/32"], "relay_domains": ["relay.test", ".relay.test", "fixed.test"]},
        "mailboxes": {"local_domains": ["localhost", "home.test"]},
        "route": [
            {"domain": "fixed.test", "host": "127.0.0.1", "port": box.fixed.port},
            {"domain": ".sub.test", "host": "127.0.0.1", "port": box.subdomains.port},
            {"domain": "*", "host": "127.0.0.1", "port": box.smarthost.port},
        ],
    })
    for user in ("alice", "postmaster"):
        box.relay.add_user(user, "pw")
    box.relay.start()


def session(box, trusted=False):
    """An SMTP session from a stranger's or a trusted address, EHLO done."""
    wire = Wire.__new__(Wire)
    wire.socket = socket.create_connection(("127.0.0.1", box.relay.smtp_port), 15,
                                           ("127.0.0.9" if trusted else "127.0.0.1", 0))
    wire.buffer = b""
    wire.greeting = wire.reply()
    wire.ask("EHLO client.test")
    return wire


def deliver(wire, recipient, subject="x"):
    """One transaction; the last reply."""
    wire.ask("MAIL FROM:<sender@client.test>")
    reply = wire.ask(f"RCPT TO:<{recipient}>")
    if not reply.startswith("250"):
        wire.ask("RSET")
        return reply
    wire.ask("DATA")
    wire.send(make_message("sender@client.test", "x@y", subject) + b".\r\n")
    return wire.reply()


def routes(box):
    """fixed routes and the smarthost take what is theirs, by exact name, subdomain and rest"""
    wire = session(box, trusted=True)
    for recipient in ("a@fixed.test", "b@FIXED.test", "c@one.sub.test", "d@two.one.sub.test", "e@sub.test",
                      "f@elsewhere.example", "g@notfixed.test"):
        reply = deliver(wire, recipient)
        check(reply.startswith("250 2.0.0"), f"{recipient}: {reply}")
    box.fixed.wait(2), box.subdomains.wait(2), box.smarthost.wait(3)
    box.relay.wait_queue_empty()
    names = {name: sorted(r for m in sink.messages for r in m.recipients)
             for name, sink in (("fixed", box.fixed), ("sub", box.subdomains), ("smarthost", box.smarthost))}
    check_equal([r.lower() for r in names["fixed"]], ["a@fixed.test", "b@fixed.test"], "at the fixed route")
    check_equal(names["sub"], ["c@one.sub.test", "d@two.one.sub.test"], "at the subdomain route")
    check_equal(names["smarthost"], ["e@sub.test", "f@elsewhere.example", "g@notfixed.test"], "at the smarthost")
    box.left = len(box.fixed.messages) + len(box.subdomains.messages) + len(box.smarthost.messages)


SPELLINGS = """
x@other.test
x@OTHER.TEST
"x"@other.test
x@other.test.relay.test.other.test
x@xrelay.test
x@relay.test.
x@relaytest
x%other.test@localhost
x%other.test@home.test
x%other.test@relay.test
x%other.test%relay.test@relay.test
other.test!x@localhost
other.test!x@relay.test
other.test!x
"x@other.test"@localhost
"x@other.test"@relay.test
"x%other.test"@home.test
x@other.test@relay.test
x@relay.test@other.test
x@[127.0.0.1]
x@[192.0.2.1]
x@[IPv6:::1]
x@[relay.test]
x%other.test@[127.0.0.1]
x%other.test
x
@relay.test:x@other.test
@localhost,@relay.test:x@other.test
@relay.test
postmaster@other.test
relay.test
x@other.test,y@relay.test
x@other.test> ORCPT=rfc822;x@relay.test <x@relay.test
x@relay.test\u0000@other.test
x@localhost%other.test
""".strip("\n").split("\n")


def not_an_open_relay(box):
    """strangers are refused with a 5xx reply in every spelling, and nothing leaves"""
    accepted = []
    for spelling in SPELLINGS:
        wire = session(box)
        reply = deliver(wire, spelling)
        if not re.match(r"5\d\d[ -]", reply):
            accepted.append((spelling, reply))
        wire.close()
    for command in ("RCPT TO:x@other.test", "RCPT TO: <x@other.test>", "RCPT TO:<x@relay.test> <x@other.test>"):
        wire = session(box)
        wire.ask("MAIL FROM:<alice@localhost>")
        reply = wire.ask(command)
        if not re.match(r"5\d\d[ -]", reply):
            accepted.append((command, reply))
        wire.close()
    check_equal(accepted, [], "spellings that were not refused")
    time.sleep(1)
    check_equal(len(box.fixed.messages) + len(box.subdomains.messages) + len(box.smarthost.messages), box.left,
                "messages at the next hops")


def strangers_reach(box):
    """strangers reach local users, relay domains and postmaster"""
    for recipient in ("alice@localhost", "ALICE@home.test", "postmaster", "POSTMASTER@home.test"):
        reply = deliver(session(box), recipient, "for a local user")
        check(reply.startswith("250 2.0.0"), f"{recipient}: {reply}")
    box.relay.wait_mail("alice", "pw", 2)
    box.relay.wait_mail("postmaster", "pw", 2)
    for recipient in ("x@relay.test", "x@deep.relay.test", "x@fixed.test"):
        reply = deliver(session(box), recipient, "for a relay domain")
        check(reply.startswith("250 2.0.0"), f"{recipient}: {reply}")
    box.smarthost.wait(5)
    box.fixed.wait(3)


def auth_opens(box):
    """AUTH lets a stranger relay; a wrong password, and AUTH= in MAIL, do not"""
    with box.relay.smtp() as client:
        client.ehlo()
        try:
            client.login("alice", "wrong")
            raise AssertionError("a wrong password was taken")
        except smtplib.SMTPAuthenticationError:
            pass
        client.docmd("MAIL FROM:<alice@localhost> AUTH=alice")
        code, text = client.docmd("RCPT TO:<x@other.test>")
        check(code in (550, 551, 553, 554, 503, 530), f"reply after a failed AUTH: {code} {text}")
        client.rset()
        client.login("alice", "pw")
        before = len(box.smarthost.messages)
        client.sendmail("alice@localhost", ["x@other.test"], make_message())
        box.smarthost.wait(before + 1)


def smarthost_login(box):
    """a route with user name and password logs in at the smarthost, and one without does not"""
    inner = box.ringmail("inner", {"smtp": [{"address": f"127.0.0.1:{free_port()}", "auth_without_tls": True,
                                             "auth_required": True}],
                                   "relay": {"trusted_networks": []}})
    inner.smtp_port = int(inner.config["smtp"][0]["address"].split(":")[1])
    inner.add_user("customer", "s3cret")
    inner.add_user("target", "pw")
    inner.start()
    outer = box.ringmail("outer", {
        "retry": {"delay_min": "60s"},
        "route": [{"domain": "*", "host": "127.0.0.1", "port": inner.smtp_port, "tls": "none",
                   "username": "customer", "password": "s3cret"}]})
    outer.start()
    with outer.smtp() as client:
        client.sendmail("a@b.test", ["target@inner.test"], make_message())
    inner.wait_mail("target", "pw", 1)
    check_equal(inner.wait_event("accepted").get("login"), "customer", "login at the smarthost")
    wire = inner.raw()
    wire.ask("EHLO x.test")
    reply = wire.ask("MAIL FROM:<a@b.test>")
    check(reply.startswith("530 5.7.0"), f"MAIL without AUTH where it is required: {reply}")
    wire.close()
    outer.stop()
    inner.stop()


def loop_ends(box):
    """two relays that send to each other: the loop ends by hop count with a DSN to the sender, not with a full disk"""
    relay, other = (box.ringmail(name, {"limits": {"hops_max": 10}, "retry": {"delay_min": "60s"}})
                    for name in ("loop", "back"))
    for one, next_hop in ((relay, other), (other, relay)):
        one.config["route"] = [{"domain": "*", "host": "127.0.0.1", "port": next_hop.smtp_port},]
        one.write_config()
    other.config["route"].insert(0, {"domain": "loop.test", "host": "127.0.0.1", "port": relay.smtp_port})
    relay.add_user("alice", "pw")
    relay.start()
    other.start()
    with relay.smtp() as client:
        client.sendmail("alice@loop.test", ["x@elsewhere.example"], make_message())
    report = relay.wait_mail("alice", "pw", 1)[0]
    check(b"5.4.6" in report, f"status 5.4.6 (routing loop) in the DSN:\n{report.decode(errors='replace')}")
    relay.wait_queue_empty()
    other.wait_queue_empty()
    accepted = len(relay.events("accepted")) + len(other.events("accepted"))
    check(accepted <= 13, f"{accepted} acceptances for 10 hops")
    relay.stop()
    other.stop()


def loop_to_itself(box):
    """a route that leads back to the relay itself is seen at once, and says so"""
    relay = box.ringmail("itself", {"retry": {"delay_min": "60s"}})
    relay.config["route"] = [{"domain": "*", "host": "127.0.0.1", "port": relay.smtp_port}]
    relay.write_config()
    relay.start()
    with relay.smtp() as client:
        client.sendmail("a@client.test", ["x@elsewhere.example"], make_message())
    event = wait_until(lambda: relay.events("deferred") + relay.events("bounced"),
                       lambda: f"a deferral or bounce; log:\n{relay.log_tail()}")[0]
    check(".4.6 " in event["reply"], f"status x.4.6 (routing loop): {event['reply']}")
    check_equal(len(relay.events("accepted")), 1, "acceptances")
    relay.stop()


def routes_by_reload(box):
    """mail that waits at a dead route goes the new way after `ringmail reload`; what ran before goes on"""
    good = box.sink()
    relay = box.ringmail("rerouted", {"route": [{"domain": "*", "host": "127.0.0.1", "port": free_port()}],
                                      "retry": {"delay_min": "600s", "delay_max": "600s"}})
    relay.start()
    # The first finds out that nobody listens; the others then wait for the site, which is paused.
    for number in range(5):
        with relay.smtp() as client:
            client.sendmail("a@client.test", [f"u{number}@elsewhere.example"], make_message())
        if number == 0:
            relay.wait_event("deferred", to="<u0@elsewhere.example>")
    relay.config["route"] = [{"domain": "elsewhere.example", "host": "127.0.0.1", "port": good.port}]
    relay.write_config()
    check_equal(relay.cli("reload").stdout, "reloaded\n", "reload")
    good.wait(4)
    relay.cli("queue", "flush")
    good.wait(5)
    relay.wait_queue_empty()
    check_equal(len(good.messages), 5, "messages by the new route")
    relay.stop()


def stop(box):
    """nothing odd was sent; SIGTERM ends it with status 0"""
    for sink in (box.fixed, box.subdomains, box.smarthost):
        check_equal(sink.anomalies, [], "anomalies")
    box.relay.stop()


main(start, routes, not_an_open_relay, strangers_reach, auth_opens, smarthost_login, loop_ends, loop_to_itself, routes_by_reload, stop)
