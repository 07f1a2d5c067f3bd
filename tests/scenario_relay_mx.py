"""Routing by DNS: every kind of answer that a domain can give, from a real DNS server, and where the message goes.

Preference order, fail-over past a dead and past a refusing MX, an address record instead of MX, CNAME, null MX, a
domain that does not exist, an address literal, a DNS server that refuses to answer. What cannot be delivered comes
back to the sender's mailbox as a DSN; what DNS cannot tell yet waits.
"""

import email
import email.policy

from harness import *

FIRST, SECOND, PLAIN, LITERAL, DEAD, BUSY = (f"127.0.0.{n}" for n in (21, 22, 23, 24, 29, 28))
ZONE = f"""
two       MX 10 first.two
two       MX 20 second.two
first.two  A {FIRST}
second.two A {SECOND}
same      MX 10 second.two
same      MX 10 second.two
nomx      A {PLAIN}
alias     CNAME two
null      MX 0 .
dead      MX 10 dead.host
dead      MX 20 second.two
dead.host A {DEAD}
multi     A {DEAD}
multi     A {PLAIN}
busy      MX 10 busy.host
busy      MX 20 second.two
busy.host A {BUSY}
lost      MX 10 nowhere.lost
empty     TXT "no address and no MX"
loop1     CNAME loop2
loop2     CNAME loop1
"""


def start(box):
    """start DNS, six far sides and a relay"""
    box.dns_server = box.dns({"test.": ZONE})
    port = free_port()
    box.sinks = {address: box.sink(address=address, port=port) for address in (FIRST, SECOND, PLAIN, LITERAL)}
    box.sinks[BUSY] = box.sink(address=BUSY, port=port, script={"connect": ["421 4.3.2 try another"]})
    box.relay = box.ringmail(config={
        "delivery": {"port": port, "allow_private_targets": True, "connect_timeout": "5s", "idle_timeout": "1s"},
        "dns": {"servers": [box.dns_server.server], "timeout": "1s", "attempts": 2},
        "retry": {"delay_min": "60s", "delay_max": "120s"},
    })
    box.relay.add_user("alice", "pw")
    box.relay.start()


def send(box, recipient, subject):
    """Send one message as alice; its queue ID."""
    wire = box.relay.raw()
    wire.ask("EHLO client.test")
    check(wire.ask("MAIL FROM:<alice@localhost>").startswith("250 2.1.0"), "MAIL")
    reply = wire.ask(f"RCPT TO:<{recipient}>")
    check(reply.startswith("250 2.1.5"), f"reply to RCPT for {recipient}: {reply}")
    wire.ask("DATA")
    wire.send(make_message("alice@localhost", recipient, subject) + b".\r\n")
    reply = wire.reply()
    check(reply.startswith("250 2.0.0"), f"reply to end-of-data: {reply}")
    wire.ask("QUIT")
    return queue_id_of(reply)


def goes_to(address, recipient, story):
    """A step: mail for this recipient arrives at this address and nowhere else."""
    def step(box):
        before = {a: len(sink.messages) for a, sink in box.sinks.items()}
        queue_id = send(box, recipient, story)
        event = box.relay.wait_event("delivered", id=queue_id)
        check(address in event["host"], f"delivered to {event['host']}, expected {address}")
        arrived = {a: len(sink.messages) - before[a] for a, sink in box.sinks.items()}
        check_equal(arrived, {a: int(a == address) for a in box.sinks}, "messages by address")
        message = box.sinks[address].messages[-1]
        check_equal(message.recipients, [recipient], "forward-path at the far side")
        check(queue_id in message.header("Received"), f"queue ID {queue_id} in Received: {message.header('Received')}")
        check_equal(message.helo, "ringmail.test", "EHLO argument")
    step.__doc__ = story
    return step


def bounces(recipient, status, story):
    """A step: mail for this recipient comes back as a DSN with this status."""
    def step(box):
        queue_id = send(box, recipient, story)
        event = box.relay.wait_event("bounced", id=queue_id)
        check(status in event["reply"], f"status {status} in the log: {event['reply']}")
        report = email.message_from_bytes(box.relay.wait_mail("alice", "pw", 1)[0], policy=email.policy.default)
        box.relay.mailbox("alice", "pw", delete=True)
        check_equal(report.get_content_type(), "multipart/report", "content type")
        fields = report.get_payload()[1].get_payload()[1]
        check_equal(fields["Action"], "failed", "Action")
        check_equal(fields["Status"], status, "Status")
        check(recipient in fields["Final-Recipient"], f"Final-Recipient {fields['Final-Recipient']}")
        check_equal(sum(len(s.messages) for s in box.sinks.values()), box.total, "messages at the far sides")
    step.__doc__ = story
    return step


def count(box):
    """nothing left by a wrong way so far"""
    box.total = sum(len(s.messages) for s in box.sinks.values())
    for address, sink in box.sinks.items():
        check_equal(sink.anomalies, [], f"anomalies at {address}")


def waits(recipient, story):
    """A step: mail for this recipient is deferred, not bounced."""
    def step(box):
        queue_id = send(box, recipient, story)
        event = box.relay.wait_event("deferred", id=queue_id)
        check(re.match(r"4\d\d 4\.\d\.\d", event["reply"]), f"a 4xx reply with status in the log: {event['reply']}")
        check_equal(box.relay.events("bounced", id=queue_id), [], "bounces")
        check(any(queue_id == entry["id"] for entry in box.relay.queue()), "it is in `queue list`")
    step.__doc__ = story
    return step


def dead_dns(box):
    """a dead DNS server defers, and does not stop what needs no DNS"""
    relay = box.ringmail("nodns", {
        "dns": {"servers": [f"127.0.0.1:{free_port()}"], "timeout": "1s", "attempts": 1},
        "retry": {"delay_min": "60s"},
        "delivery": {"port": box.sinks[LITERAL].port, "allow_private_targets": True},
    })
    relay.add_user("alice", "pw")
    relay.start()
    with relay.smtp() as client:
        client.sendmail("alice@localhost", ["x@two.test"], make_message())
        client.sendmail("alice@localhost", ["alice@localhost"], make_message())
        client.sendmail("alice@localhost", [f"x@[{LITERAL}]"], make_message())
    relay.wait_event("deferred", to="<x@two.test>")
    relay.wait_event("delivered", to="<alice@localhost>")
    relay.wait_event("delivered", to=f"<x@[{LITERAL}]>")
    relay.stop()


def public_policy(box):
    """loopback targets that DNS gives are not contacted unless configured"""
    relay = box.ringmail("public", {
        "dns": {"servers": [box.dns_server.server]}, "delivery": {"port": box.sinks[FIRST].port},
    })
    relay.add_user("alice", "pw")
    relay.start()
    before = box.sinks[FIRST].sessions
    with relay.smtp() as client:
        client.sendmail("alice@localhost", ["x@two.test"], make_message())
    wait_until(lambda: relay.events("bounced", to="<x@two.test>") or relay.events("deferred", to="<x@two.test>"),
               lambda: f"a bounce or deferral; log:\n{relay.log_tail()}")
    check_equal(box.sinks[FIRST].sessions, before, "sessions at the loopback MX")
    relay.stop()


def stop(box):
    """SIGTERM ends it with status 0, deferred mail kept"""
    box.relay.stop()


main(
    start,
    goes_to(FIRST, "x@two.test", "the MX of lowest preference takes it"),
    goes_to(SECOND, "x@same.test", "two records for one host are one host"),
    goes_to(PLAIN, "x@nomx.test", "without MX, the address record counts"),
    goes_to(FIRST, "x@alias.test", "CNAME leads to the MX of its target"),
    goes_to(SECOND, "x@dead.test", "a dead first MX is passed over"),
    goes_to(PLAIN, "x@multi.test", "a dead address of a host is passed over"),
    goes_to(SECOND, "x@busy.test", "an MX that greets with 421 is passed over"),
    goes_to(LITERAL, f"x@[{LITERAL}]", "an address literal needs no DNS"),
    goes_to(FIRST, "x@TWO.test", "domains are compared without case"),
    count,
    bounces("x@null.test", "5.1.10", "null MX: DSN 5.1.10 (RFC 7505)"),
    bounces("x@missing.test", "5.1.2", "NXDOMAIN: DSN 5.1.2"),
    waits("x@refused.example", "a server that refuses to answer: wait"),
    dead_dns, public_policy, count, stop,
)
