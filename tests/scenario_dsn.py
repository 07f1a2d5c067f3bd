"""What senders are told: RET, ENVID, NOTIFY and ORCPT (RFC 3461) from the client to the report, or to a next hop that has DSN.

Success into a mailbox, through an alias, to a host without DSN; nothing where NEVER says so; the whole message or its header
back; delay; expiry; a sender with an international address; no report about a message that has no sender. Reports are read by
Python's email package.
"""

import email
import email.policy

from harness import *

def start(box):
    """start next hops with and without DSN, and a relay"""
    box.plain = box.sink(extensions=["PIPELINING"])
    box.knows = box.sink(extensions=["PIPELINING", "DSN", "SMTPUTF8", "8BITMIME"])
    fails = box.sink(script={"rcpt": ["550 5.1.1 no such user"]})
    waits = box.sink(script={"rcpt": ["450 4.2.0 not now"]})
    sinks = {"plain.test": box.plain, "knows.test": box.knows, "fails.test": fails, "waits.test": waits}
    box.relay = box.ringmail("relay", {
        "route": [{"domain": name, "host": "127.0.0.1", "port": sink.port} for name, sink in sinks.items()],
        "retry": {"delay_min": "60s", "delay_max": "60s", "delay_dsn_after": "3s", "lifetime": "1h"},
        "mailboxes": {"local_domains": ["localhost", "relay.test"]},
    })
    (box.relay.data_dir).mkdir(parents=True)
    (box.relay.data_dir / "aliases").write_text("team: bob, carol@plain.test\n")
    box.relay.add_user("alice", "pw")
    box.relay.add_user("bob", "pw")
    box.relay.start()


def send(box, recipients, mail="", sender="alice@localhost", body="The body.\r\n"):
    """One message; `recipients` maps addresses to parameters of RCPT."""
    wire = box.relay.raw()
    ehlo = wire.ask("EHLO client.test")
    check("DSN" in ehlo, f"DSN is announced: {ehlo}")
    reply = wire.ask(f"MAIL FROM:<{sender}>{mail}")
    check(reply.startswith("250"), f"MAIL: {reply}")
    for to, parameters in recipients.items():
        reply = wire.ask(f"RCPT TO:<{to}>{parameters}")
        check(reply.startswith("250"), f"RCPT for {to}: {reply}")
    wire.ask("DATA")
    wire.send(make_message("alice@localhost", "undisclosed", "the subject", body) + b".\r\n")
    reply = wire.reply()
    check(reply.startswith("250"), f"reply to the message: {reply}")
    wire.ask("QUIT")
    return queue_id_of(reply)


def reports(box, *about):
    """Reports in alice's mailbox, once they name all these recipients: (message, its fields, {Final-Recipient: fields}) each."""
    def complete():
        texts = box.relay.mailbox("alice", "pw")
        return texts if all(any(f"; {to}\r\n".encode() in text for text in texts) for to in about) else None
    found = []
    for text in wait_until(complete, lambda: f"reports about {about}; log:\n{box.relay.log_tail()}", 30, 0.1):
        report = email.message_from_bytes(text, policy=email.policy.default)
        check_equal((report["Return-Path"], report.get_content_type()), ("<>", "multipart/report"), "form of a report")
        fields, *recipients = report.get_payload()[1].get_payload()
        found.append((report, fields, {str(r["Final-Recipient"]).split(";", 1)[1].strip(): r for r in recipients}))
    box.relay.mailbox("alice", "pw", delete=True)
    return found


def success(box):
    """success: delivered here, relayed to a host without DSN, left to a host with DSN"""
    asked = " NOTIFY=SUCCESS"
    send(box, {"bob@localhost": asked + " ORCPT=rfc822;b+2Bb@old.test", "x@plain.test": asked, "y@knows.test": asked
               + " ORCPT=rfc822;y+3D1@old.test", "z@plain.test": ""}, " ENVID=e+3D7 RET=FULL")
    seen = {}
    wait_until(lambda: len(box.relay.events("delivered")) >= 4, lambda: f"four deliveries; log:\n{box.relay.log_tail()}")
    for report, fields, recipients in reports(box, "bob@localhost", "x@plain.test"):
        check_equal(fields["Original-Envelope-Id"], "e=7", "Original-Envelope-Id")
        check_equal(report["Subject"], "Successful mail delivery report", "Subject")
        check("The body." not in report.as_string(), "a success report returns the header alone")
        seen |= recipients
    check_equal({to: str(r["Action"]) for to, r in seen.items()}, {"bob@localhost": "delivered", "x@plain.test": "relayed"}, "actions")
    check_equal(seen["bob@localhost"]["Original-Recipient"], "rfc822; b+b@old.test", "Original-Recipient")
    check(str(seen["x@plain.test"]["Status"]).startswith("2."), f"Status: {seen['x@plain.test']['Status']}")
    message = box.knows.messages[-1]
    check_equal(message.mail, "<alice@localhost> RET=FULL ENVID=e+3D7", "MAIL to the host with DSN")
    check_equal(message.rcpts, ["<y@knows.test> NOTIFY=SUCCESS ORCPT=rfc822;y+3D1@old.test"], "RCPT to it")


def alias(box):
    """through an alias the report names the address that the sender knows"""
    send(box, {"team@localhost": " NOTIFY=SUCCESS,FAILURE"})
    seen = {}
    for _, _, recipients in reports(box, "bob@localhost", "carol@plain.test"):
        seen |= recipients
    check_equal({to: (str(r["Action"]), str(r["Original-Recipient"])) for to, r in seen.items()},
                {"bob@localhost": ("delivered", "rfc822; team@localhost"), "carol@plain.test": ("relayed", "rfc822; team@localhost")},
                "recipients of the alias")


def failure(box):
    """failure: the whole message where RET=FULL asks for it, its header otherwise; nothing for NEVER"""
    send(box, {"a@fails.test": " NOTIFY=FAILURE ORCPT=rfc822;first@old.test", "b@fails.test": " NOTIFY=NEVER"}, " RET=FULL ENVID=f1")
    [(report, fields, recipients)] = reports(box, "a@fails.test")
    check_equal(list(recipients), ["a@fails.test"], "recipients of the report")
    check_equal((str(recipients["a@fails.test"]["Action"]), str(recipients["a@fails.test"]["Status"])), ("failed", "5.1.1"), "fate")
    check_equal(recipients["a@fails.test"]["Remote-MTA"], "dns; 127.0.0.1", "Remote-MTA")
    check("550 5.1.1 no such user" in recipients["a@fails.test"]["Diagnostic-Code"], "Diagnostic-Code")
    check_equal((fields["Original-Envelope-Id"], report.get_payload()[2].get_content_type()), ("f1", "message/rfc822"), "original")
    check("The body." in report.get_payload()[2].as_string(), "the body is returned")
    for mail in (" RET=HDRS", ""):
        send(box, {"a@fails.test": ""}, mail)
        [(report, _, _)] = reports(box, "a@fails.test")
        check_equal(report.get_payload()[2].get_content_type(), "text/rfc822-headers", "original")
        check("the subject" in report.as_string() and "The body." not in report.as_string(), "the header alone is returned")
    send(box, {"a@fails.test": ""}, " RET=FULL", body="x" * 70 + "\r\n" + "A long body.\r\n" * 10_000)
    [(report, _, _)] = reports(box, "a@fails.test")
    check(len(report.as_string()) < 100_000, "a large message is not returned whole")
    send(box, {"a@fails.test": ""}, sender="")
    box.relay.wait_queue_empty()
    check_equal(box.relay.mailbox("alice", "pw"), [], "reports about a message without a sender")


def international(box):
    """an international sender is told in UTF-8, others in ASCII (RFC 6533)"""
    send(box, {"gr\u00fcn@fails.test": ""}, " SMTPUTF8")
    text = box.relay.wait_mail("alice", "pw", 1)[0]
    check(b"message/global-delivery-status" in text and "Final-Recipient: utf-8; gr\u00fcn@fails.test".encode() in text, f"{text}")
    box.relay.mailbox("alice", "pw", delete=True)


def delay(box):
    """delay is told once, unless NOTIFY leaves it out"""
    send(box, {"a@waits.test": "", "b@waits.test": " NOTIFY=FAILURE"})
    [(report, _, recipients)] = reports(box, "a@waits.test")
    check_equal({to: str(r["Action"]) for to, r in recipients.items()}, {"a@waits.test": "delayed"}, "recipients of the report")
    check(recipients["a@waits.test"]["Will-Retry-Until"], "Will-Retry-Until")
    check(str(recipients["a@waits.test"]["Status"]).startswith("4."), "a transient status")
    time.sleep(1)
    check_equal(box.relay.mailbox("alice", "pw"), [], "further reports")
    box.relay.stop()


main(start, success, alias, failure, international, delay)
