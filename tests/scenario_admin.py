"""What operators see: health, metrics, the queue, and a log in which one queue ID tells the whole story.

The counts in /metrics are those of what was sent. The queue ID of the 250 reply is the one in Received:, in every log
line and in `queue list`.
"""

from harness import *


def start(box):
    """start a relay with a good, a full and a refusing far side"""
    box.good = box.sink()
    box.full = box.sink(script={"rcpt": ["452 4.2.2 full"]})
    box.refusing = box.sink(script={"rcpt": ["550 5.1.1 unknown"]})
    box.relay = box.ringmail(config={
        "retry": {"delay_min": "60s", "delay_max": "60s"},
        "route": [{"domain": domain, "host": "127.0.0.1", "port": sink.port} for domain, sink in (
            ("good.test", box.good), ("full.test", box.full), ("refusing.test", box.refusing))]})
    box.relay.add_user("alice", "pw")
    box.relay.start()


def health(box):
    """/healthz and /readyz say 200, an unknown path 404"""
    for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 200), ("/nothing", 404)):
        check_equal(box.relay.http(path)[0], status, path)


def send(box, recipients):
    """One message; its queue ID."""
    with box.relay.smtp() as client:
        client.ehlo()
        client.mail("alice@localhost")
        for recipient in recipients:
            client.rcpt(recipient)
        code, text = client.data(make_message("alice@localhost", recipients[0]))
        check_equal(code, 250, str(text))
        return queue_id_of(text.decode())


def one_id_everywhere(box):
    """the queue ID of the reply is the one in Received: and in the log lines of acceptance, delivery and bounce"""
    box.one = send(box, ["a@good.test", "b@good.test", "c@full.test", "d@refusing.test", "alice@localhost"])
    message = box.good.wait(1)[0]
    check(box.one in message.header("Received"), f"{box.one} in Received: {message.header('Received')}")
    accepted = box.relay.wait_event("accepted", id=box.one)
    check_equal((accepted["from"], accepted["to"], accepted["client"].split(":")[0]), ("<alice@localhost>", "5",
                                                                                      "127.0.0.1"), "acceptance")
    check(int(accepted["size"]) > 100 and accepted["proto"] == "ESMTP", f"acceptance {accepted}")
    for recipient, kind, words in (("a@good.test", "delivered", "250 2.0.0"), ("b@good.test", "delivered", "250 2.0.0"),
                                   ("c@full.test", "deferred", "452 4.2.2 full"),
                                   ("d@refusing.test", "bounced", "550 5.1.1 unknown"),
                                   ("alice@localhost", "delivered", "2")):
        event = box.relay.wait_event(kind, id=box.one, to=f"<{recipient}>")
        check(words in event["reply"], f"reply for {recipient}: {event['reply']}")
    check("127.0.0.1" in box.relay.wait_event("delivered", id=box.one, to="<a@good.test>")["host"], "host")
    check("next" in box.relay.wait_event("deferred", id=box.one), "the time of the next attempt in the log")


def queue_list(box):
    """`queue list` shows what waits, in both forms, and `queue show` why and until when"""
    wait_until(lambda: len(box.relay.queue()) == 1, lambda: f"one queued message: {box.relay.queue()}")
    entry = box.relay.queue()[0]
    check_equal(entry["id"], box.one, "id")
    text = box.relay.cli("queue", "list").stdout
    check(box.one in text, f"{box.one} in: {text}")
    shown = json.loads(box.relay.cli("queue", "show", box.one, "--json").stdout)
    check("452 4.2.2 full" in json.dumps(shown), f"the reason in: {shown}")
    text = box.relay.cli("queue", "show", box.one).stdout
    check("452 4.2.2 full" in text and "c@full.test" in text, f"reason and recipient in: {text}")
    done = box.relay.cli("queue", "show", "0000000ZZZZZ", ok=False)
    check(done.returncode != 0, "queue show of an unknown queue ID succeeded")
    summary = box.relay.cli("queue", "summary").stdout
    check("1" in summary, f"summary: {summary}")


def flush(box):
    """`queue flush` tries now what waits"""
    box.full.script["rcpt"] = [None]
    box.relay.cli("queue", "flush")
    box.full.wait(1)
    box.relay.wait_event("delivered", id=box.one, to="<c@full.test>")
    box.relay.wait_queue_empty()
    check_equal(box.relay.cli("queue", "list", "--json").stdout.strip(), "[]", "empty queue as JSON")


def metrics(box):
    """/metrics counts what happened, under the documented names"""
    for _ in range(10):
        send(box, ["a@good.test"])
    box.good.wait(11)

    def counted():
        m = box.relay.metrics()
        return m if m.get("ringmail_recipients_delivered_total") == 15 else None
    # Delivered: a, b, alice, c later, the DSN to alice, and ten more.
    values = wait_until(counted, lambda: "15 deliveries in /metrics:\n" + "\n".join(
        f"{k} {v}" for k, v in box.relay.metrics().items() if k.startswith("ringmail_recipients")))
    expected = {"ringmail_messages_accepted_total": 12, "ringmail_recipients_bounced_total": 1,
                "ringmail_recipients_deferred_total": 1, "ringmail_recipients_expired_total": 0,
                "ringmail_queue_messages": 0, "ringmail_queue_recipients": 0}
    check_equal({name: values.get(name) for name in expected}, expected, "counts")
    names = {name.split("{")[0] for name in values}
    for name in ("ringmail_sessions", "ringmail_spool_syncs_total", "ringmail_spool_batch_messages_count",
                 "ringmail_spool_sync_seconds_count", "ringmail_delivery_seconds_count"):
        check(name in names, f"{name} in {sorted(names)}")
    check(values["ringmail_delivery_seconds_count"] >= 15, "deliveries in the latency summary")
    wire = box.relay.raw()
    wait_until(lambda: any(v >= 1 for k, v in box.relay.metrics().items()
                           if k.startswith("ringmail_sessions{") and "smtp" in k and "in" in k),
               lambda: f"an open inbound session in {[k for k in box.relay.metrics() if 'sessions' in k]}")
    wire.close()


def log_is_readable(box):
    """every line of the log has a time, and no message content"""
    for line in box.relay.log().splitlines():
        check(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z ", line), f"a log line without time: {line!r}")
        check("A line." not in line, f"message content in the log: {line!r}")


def stop(box):
    """SIGTERM ends it with status 0"""
    box.relay.stop()


def full_disk(box):
    """below free_space_min mail is refused with 452 and /readyz says why"""
    relay = box.ringmail("full", {"spool": {"free_space_min": "1000000 GiB"}})
    relay.start(ready=False)

    def reason():
        try:
            return "the disk is full" in relay.http("/readyz")[1]
        except OSError:
            return False  # it is starting

    wait_until(reason, lambda: f"/readyz to say that the disk is full; log:\n{relay.log_tail()}")
    check_equal(relay.http("/readyz")[0], 503, "status of /readyz")
    wire = relay.raw()
    wire.ask("EHLO client.test")
    check(wire.ask("MAIL FROM:<a@client.test>").startswith("452 4.3.1"), "452 to MAIL")
    relay.stop()


main(start, health, one_id_everywhere, queue_list, flush, metrics, log_is_readable, stop, full_disk)
