"""What becomes of mail that the far side does not take at once: tried again, bounced, expired.

For every stage of the SMTP dialogue there is a far side that refuses once with 4xx, one that refuses for good with
5xx, and one that hangs up. The first and third get the message exactly once at a later attempt; of the second the
sender hears by a DSN that Python's email package reads (RFC 3464). Mail that cannot be delivered within its lifetime
expires with a DSN. The null reverse-path never gets one.
"""

import email
import email.policy

from harness import *

STAGES = ("connect", "ehlo", "mail", "rcpt", "data", "end")


def start(box):
    """start a far side for each stage and trouble"""
    box.transient = {stage: box.sink(script={stage: ["421 4.3.2 later" if stage == "connect" else "451 4.3.0 later",
                                                     None]}) for stage in STAGES}
    box.dropping = {stage: box.sink(script={stage: [DROP, None]}) for stage in STAGES}
    box.permanent = {stage: box.sink(script={stage: ["550 5.7.1 not here"]}) for stage in ("mail", "rcpt", "end")}
    box.partial = box.sink(script={"rcpt": [
        lambda argument: "550 5.1.1 no such user" if "bad" in argument
        else "452 4.2.2 mailbox full" if "full" in argument and not box.space else None]})
    box.space = False
    box.old = box.sink(script={"ehlo": ["502 5.5.1 what is EHLO"]})
    box.plain = box.sink(extensions=())
    routes = {f"{stage}.transient.test": sink for stage, sink in box.transient.items()}
    routes |= {f"{stage}.dropping.test": sink for stage, sink in box.dropping.items()}
    routes |= {f"{stage}.permanent.test": sink for stage, sink in box.permanent.items()}
    routes |= {"partial.test": box.partial, "old.test": box.old, "plain.test": box.plain}
    box.routes = [{"domain": domain, "host": "127.0.0.1", "port": sink.port} for domain, sink in routes.items()]
    box.relay = box.ringmail(config={"retry": {"delay_min": "1s", "delay_max": "2s", "lifetime": "1h"},
                                     "route": box.routes})
    box.relay.add_user("alice", "pw")
    box.relay.start()


def send(relay, recipients, sender="alice@localhost", subject="x"):
    """Send one message; its queue ID."""
    with relay.smtp() as client:
        client.ehlo()
        client.mail(sender)
        for recipient in recipients:
            code, text = client.rcpt(recipient)
            check_equal(code, 250, f"RCPT {recipient} ({text})")
        code, text = client.data(make_message(sender, recipients[0], subject))
        check_equal(code, 250, f"reply to end-of-data ({text})")
        return queue_id_of(text.decode())


def report_of(relay, box, count=1):
    """The DSN in alice's mailbox, checked for form, as (message, per-message fields, [per-recipient fields])."""
    messages = relay.wait_mail("alice", "pw", count)
    relay.mailbox("alice", "pw", delete=True)
    check_equal(len(messages), count, "DSNs")
    report = email.message_from_bytes(messages[0], policy=email.policy.default)
    check_equal(report["Return-Path"], "<>", "Return-Path of a DSN")
    check_equal(report.get_content_type(), "multipart/report", "content type")
    check_equal(report.get_param("report-type"), "delivery-status", "report type")
    check("alice@localhost" in report["To"], f"To: {report['To']}")
    check("auto-replied" in report["Auto-Submitted"], f"Auto-Submitted: {report['Auto-Submitted']}")
    check(report["Date"] and report["Message-ID"] and report["From"] and report["Subject"], "usual header fields")
    text, status, original = report.get_payload()
    check_equal(text.get_content_type(), "text/plain", "first part")
    check_equal(status.get_content_type(), "message/delivery-status", "second part")
    check(original.get_content_type() in ("message/rfc822", "text/rfc822-headers"), original.get_content_type())
    check("alice@localhost" in original.as_string(), "the original's header in the third part")
    check_equal(report.defects + text.defects + status.defects, [], "defects of form")
    fields, *recipients = status.get_payload()
    check(fields["Reporting-MTA"].startswith("dns;"), f"Reporting-MTA: {fields['Reporting-MTA']}")
    check(fields["Arrival-Date"], "Arrival-Date")
    for recipient in recipients:
        check(recipient["Final-Recipient"].lower().startswith("rfc822;"), str(recipient["Final-Recipient"]))
    return report, fields, recipients


def transient(box):
    """4xx at each stage: deferred, tried again, delivered exactly once"""
    ids = {stage: send(box.relay, [f"x@{stage}.transient.test"]) for stage in STAGES}
    for stage, sink in box.transient.items():
        sink.wait(1)
        event = box.relay.wait_event("deferred", id=ids[stage])
        check(event["reply"].startswith("4"), f"reply in the log: {event['reply']}")
        box.relay.wait_event("delivered", id=ids[stage])
    box.relay.wait_queue_empty()
    check_equal({s: len(k.messages) for s, k in box.transient.items()}, dict.fromkeys(STAGES, 1), "messages by stage")


def dropping(box):
    """hanging up at each stage: the same"""
    ids = {stage: send(box.relay, [f"x@{stage}.dropping.test"]) for stage in STAGES}
    for stage, sink in box.dropping.items():
        sink.wait(1)
        box.relay.wait_event("deferred", id=ids[stage])
        box.relay.wait_event("delivered", id=ids[stage])
    box.relay.wait_queue_empty()
    check_equal({s: len(k.messages) for s, k in box.dropping.items()}, dict.fromkeys(STAGES, 1), "messages by stage")


def permanent(box):
    """5xx at each stage: one DSN with the far side's words, not tried again"""
    for stage, sink in box.permanent.items():
        queue_id = send(box.relay, [f"x@{stage}.permanent.test"], subject=f"refused at {stage}")
        event = box.relay.wait_event("bounced", id=queue_id)
        check("550 5.7.1 not here" in event["reply"], f"reply in the log: {event['reply']}")
        report, _, recipients = report_of(box.relay, box)
        check_equal(len(recipients), 1, "recipients reported")
        check_equal((recipients[0]["Action"], recipients[0]["Status"]), ("failed", "5.7.1"), "Action and Status")
        check("not here" in recipients[0]["Diagnostic-Code"], f"Diagnostic-Code {recipients[0]['Diagnostic-Code']}")
        check(f"x@{stage}.permanent.test" in recipients[0]["Final-Recipient"], recipients[0]["Final-Recipient"])
        check(f"refused at {stage}" in report.as_string(), "the original's subject")
        sessions = sink.sessions
        time.sleep(0.3)
        check_equal((sink.sessions, sink.messages), (sessions, []), "sessions after a bounce, messages")
    box.relay.wait_queue_empty()


def each_recipient_for_itself(box):
    """one message, four recipients: two delivered, one bounced, one waits; each once"""
    queue_id = send(box.relay, ["one@partial.test", "bad@partial.test", "full@partial.test", "two@partial.test"])
    first = box.partial.wait(1)[0]
    check_equal(sorted(first.recipients), ["one@partial.test", "two@partial.test"], "recipients of the first delivery")
    _, _, recipients = report_of(box.relay, box)
    check_equal([r["Final-Recipient"].split(";")[1].strip() for r in recipients], ["bad@partial.test"],
                "recipients in the DSN")
    box.relay.wait_event("deferred", id=queue_id, to="<full@partial.test>")
    box.space = True
    second = box.partial.wait(2)[1]
    check_equal(second.recipients, ["full@partial.test"], "recipients of the second delivery")
    check_equal(second.data, first.data, "content of the second delivery")
    box.relay.wait_queue_empty()
    check_equal(len(box.partial.messages), 2, "deliveries")


def old_servers(box):
    """a server without EHLO, and one without extensions, get the message too"""
    send(box.relay, ["x@old.test"])
    send(box.relay, ["x@plain.test"])
    box.old.wait(1), box.plain.wait(1)
    for sink in (box.old, box.plain):
        check_equal(sink.anomalies, [], "anomalies")
        check_equal(sink.messages[0].mail, "<alice@localhost>", "MAIL without parameters")


def null_reverse_path(box):
    """the null reverse-path gets no DSN"""
    queue_id = send(box.relay, ["x@rcpt.permanent.test"], sender="<>")
    box.relay.wait_event("bounced", id=queue_id)
    box.relay.wait_queue_empty()
    check_equal(box.relay.mailbox("alice", "pw"), [], "DSNs for alice")
    accepted = len(box.relay.events("accepted"))
    time.sleep(1)
    check_equal(len(box.relay.events("accepted")), accepted, "messages made after a null bounce")


def double_bounce(box):
    """a DSN that cannot be delivered itself is dropped and logged, not returned"""
    queue_id = send(box.relay, ["x@rcpt.permanent.test"], sender="nobody@mail.permanent.test")
    box.relay.wait_event("bounced", id=queue_id)
    wait_until(lambda: [e for e in box.relay.events("bounced") if e["to"] == "<nobody@mail.permanent.test>"],
               lambda: f"the DSN's own bounce; log:\n{box.relay.log_tail()}")
    box.relay.wait_queue_empty()


def expiry(box):
    """what cannot be delivered within the lifetime expires with a DSN 4.x or 5.4.7"""
    dead = free_port()
    relay = box.ringmail("expiring", {
        "retry": {"delay_min": "1s", "delay_max": "1s", "lifetime": "3s", "delay_dsn_after": "1h"},
        "route": [{"domain": "*", "host": "127.0.0.1", "port": dead}]})
    relay.add_user("alice", "pw")
    relay.start()
    queue_id = send(relay, ["x@dead.test"])
    relay.wait_event("deferred", id=queue_id)
    null_id = send(relay, ["x@dead.test"], sender="<>")
    event = relay.wait_event("expired", id=queue_id)
    check_equal(event["to"], "<x@dead.test>", "recipient in the log")
    _, _, recipients = report_of(relay, box)
    check_equal(recipients[0]["Action"], "failed", "Action")
    check(re.match(r"[45]\.4\.\d+", recipients[0]["Status"]), f"Status {recipients[0]['Status']}")
    relay.wait_event("expired", id=null_id)
    relay.wait_queue_empty()
    check_equal(relay.mailbox("alice", "pw"), [], "further DSNs")
    relay.stop()


def delay_report(box):
    """a delay DSN is sent once when the message has waited that long, and the message still goes"""
    sink = box.sink(script={"mail": [lambda _: None if box.open else "451 4.3.0 later"]})
    box.open = False
    relay = box.ringmail("delayed", {
        "retry": {"delay_min": "1s", "delay_max": "1s", "lifetime": "1h", "delay_dsn_after": "2s"},
        "route": [{"domain": "*", "host": "127.0.0.1", "port": sink.port}]})
    relay.add_user("alice", "pw")
    relay.start()
    queue_id = send(relay, ["x@slow.test"])
    _, _, recipients = report_of(relay, box)
    check_equal(recipients[0]["Action"], "delayed", "Action")
    check(recipients[0]["Status"].startswith("4."), f"Status {recipients[0]['Status']}")
    time.sleep(2.5)
    box.open = True
    sink.wait(1)
    relay.wait_event("delivered", id=queue_id)
    check_equal(relay.mailbox("alice", "pw"), [], "further DSNs")
    relay.stop()


def waiting_survives_a_restart(box):
    """what waits is still there after SIGTERM and a new start, and goes when the far side is back"""
    port = free_port()
    relay = box.ringmail("restarted", {"retry": {"delay_min": "1s", "delay_max": "1s"},
                                       "route": [{"domain": "*", "host": "127.0.0.1", "port": port}]})
    relay.start()
    ids = sorted(send(relay, ["x@dead.test"], sender="a@b.test") for _ in range(5))
    relay.wait_event("deferred", id=ids[-1])
    relay.stop()
    relay.start()
    check_equal(sorted(entry["id"] for entry in relay.queue()), ids, "queue after the restart")
    sink = box.sink(port=port)
    sink.wait(5)
    relay.wait_queue_empty()
    check_equal(len(sink.messages), 5, "messages")
    relay.stop()


def stop(box):
    """nothing odd was sent; SIGTERM ends it with status 0"""
    for sink in [*box.transient.values(), *box.dropping.values(), *box.permanent.values(), box.partial]:
        check_equal(sink.anomalies, [], "anomalies")
    box.relay.stop()


main(start, transient, dropping, permanent, each_recipient_for_itself, old_servers, null_reverse_path, double_bounce,
     expiry, delay_report, waiting_survives_a_restart, stop)
