"""What operators do with the queue of a running relay, and what is left of it after a restart.

Hold, release, delete and bounce by queue ID, sender, recipient, domain and site; suspend and resume; explain. Each order
takes effect at once, is in the log by the queue ID, and survives SIGKILL.
"""

from harness import *


def start(box):
    """start a relay with far sides that defer until told otherwise"""
    box.sinks = {name: box.sink(script={"rcpt": ["450 4.2.1 not now"] * 1000}) for name in ("one", "two")}
    box.relay = box.ringmail(config={
        "retry": {"delay_min": "1h", "delay_max": "1h"},
        "route": [{"domain": f"{name}.test", "host": "127.0.0.1", "port": sink.port}
                  for name, sink in box.sinks.items()]})
    box.relay.add_user("alice", "pw")
    box.relay.add_user("carol", "pw")
    box.relay.start()


def send(box, recipients, sender="alice@localhost"):
    """One message that waits after its first attempt; its queue ID."""
    with box.relay.smtp() as client:
        client.ehlo()
        client.mail(sender)
        for recipient in recipients:
            client.rcpt(recipient)
        code, text = client.data(make_message(sender, recipients[0]))
        check_equal(code, 250, str(text))
    one = queue_id_of(text.decode())
    for recipient in recipients:
        box.relay.wait_event("deferred", id=one, to=f"<{recipient}>")
    return one


def order(box, *arguments):
    """What `queue ORDER` says it did: recipients."""
    answer = json.loads(box.relay.cli("queue", *arguments, "--json").stdout)
    check(answer["finished"], f"finished: {answer}")
    return answer["recipients"]


def states(box):
    """State of each queued message by queue ID."""
    return {row["id"]: row["state"] for row in box.relay.queue()}


def restart(box):
    """SIGKILL, and up again. The journal is written within milliseconds; half a second is plenty."""
    time.sleep(0.5)
    box.relay.kill()
    box.relay.start()


def by_every_filter(box):
    """list and hold by sender, recipient, domain and site"""
    box.a = send(box, ["u@one.test", "v@one.test", "u@two.test"])
    box.b = send(box, ["u@two.test"], sender="carol@localhost")
    for filter, ids in ((("--sender", "carol@localhost"), {box.b}), (("--sender", "@localhost"), {box.a, box.b}),
                        (("--sender", "<>"), set()), (("--recipient", "V@one.test"), {box.a}),
                        (("--recipient", "@two.test"), {box.a, box.b}), (("--domain", "one.test"), {box.a}),
                        (("--site", "route:two.test"), {box.a, box.b}),
                        (("--site", "route:two.test", "--sender", "alice@localhost"), {box.a}),
                        (("--domain", "none.test"), set())):
        rows = json.loads(box.relay.cli("queue", "list", "--json", *filter).stdout)
        check_equal({row["id"] for row in rows}, ids, f"queue list {filter}")
        held = order(box, "hold", *filter)
        released = order(box, "release", *filter)
        check_equal(held, released, f"what was held is released: {filter}")
        check((held > 0) == bool(ids), f"{filter} held {held}")
        for one in ids:  # a release tries at once
            wait_until(lambda: states(box)[one] == "deferred", lambda: f"{one} deferred again: {states(box)}")
    check_equal(order(box, "hold", "--recipient", "v@one.test"), 1, "one recipient of three")
    shown = json.loads(box.relay.cli("queue", "show", box.a, "--json").stdout)
    check_equal([(row["address"], row["state"]) for row in shown["recipients"]],
                [("u@one.test", "deferred"), ("v@one.test", "held"), ("u@two.test", "deferred")], "queue show")
    text = box.relay.cli("queue", "show", box.a).stdout
    check("is held by the operator" in text and "450 4.2.1 not now" in text, f"why it waits: {text}")
    box.relay.wait_event("held", id=box.a, to="<v@one.test>")


def without_a_filter(box):
    """an order about everything needs --all, and mistakes have their exit codes"""
    for arguments, code in ((["delete"], 64), (["hold"], 64), (["delete", "--all", "--domain", "one.test"], 64),
                            (["delete", "0000000ZZZZZ"], 66), (["hold", "nonsense"], 65),
                            (["hold", "--sender", "nonsense"], 65)):
        done = box.relay.cli("queue", *arguments, ok=False)
        check_equal(done.returncode, code, f"queue {arguments}: {done.stderr}")
    check_equal(len(states(box)), 2, "nothing was deleted")


def hold_survives(box):
    """what is held stays so over SIGKILL and over a stop, and a flush does not touch it"""
    check_equal(order(box, "hold", box.a), 2, "the other recipients of the message")
    restart(box)
    check_equal(states(box)[box.a], "held", "after SIGKILL")
    box.relay.stop()
    box.relay.start()
    check_equal(states(box)[box.a], "held", "after a stop")
    for sink in box.sinks.values():
        sink.script["rcpt"] = [None]
    box.relay.cli("queue", "flush")
    box.relay.wait_event("delivered", id=box.b, to="<u@two.test>")
    check_equal(states(box), {box.a: "held"}, "only the held message is left")
    check_equal(order(box, "release", box.a), 3, "released")
    for recipient in ("u@one.test", "v@one.test", "u@two.test"):
        box.relay.wait_event("released", id=box.a, to=f"<{recipient}>")
        box.relay.wait_event("delivered", id=box.a, to=f"<{recipient}>")
    box.relay.wait_queue_empty()


def delete_and_bounce(box):
    """delete ends without a report, bounce with one that gives the reason"""
    for sink in box.sinks.values():
        sink.script["rcpt"] = ["450 4.2.1 not now"] * 1000
    box.c = send(box, ["x@one.test", "y@two.test"])
    check_equal(order(box, "delete", box.c, "--domain", "one.test"), 1, "deleted")
    box.relay.wait_event("removed", id=box.c, to="<x@one.test>")
    done = box.relay.cli("queue", "bounce", "--recipient", "y@two.test", "--reason", "this domain is gone")
    check("returned to their senders: 1" in done.stdout, done.stdout)
    bounced = box.relay.wait_event("bounced", id=box.c, to="<y@two.test>")
    check("554 5.7.0 this domain is gone" in bounced["reply"], f"reply: {bounced}")
    sent = box.relay.wait_event("dsn_sent", about=box.c)
    box.relay.wait_event("delivered", id=sent["id"], to="<alice@localhost>")
    box.relay.wait_queue_empty()
    mails = box.relay.mailbox("alice", "pw")
    check_equal(len([mail for mail in mails if b"this domain is gone" in mail]), 1, "the report to alice")
    check(not [mail for mail in mails if b"x@one.test" in mail and b"Final-Recipient" in mail
               and b"rfc822; x@one.test" in mail], "no report about the deleted recipient")
    wait_until(lambda: box.relay.metrics()["ringmail_recipients_removed_total"] == 1, "the deletion in /metrics")
    restart(box)
    check_equal(states(box), {}, "nothing comes back")


def suspend(box):
    """a suspended site gets nothing until it is resumed, also over SIGKILL; explain and list say so"""
    sink = box.sinks["one"]
    sink.script["rcpt"] = [None]
    seen = len(sink.messages)
    text = box.relay.cli("explain", "someone@one.test").stdout
    check("it would be tried at once" in text and "route:one.test" in text and "127.0.0.1" in text, text)
    box.relay.cli("site", "suspend", "route:one.test")
    check("was suspended already" in box.relay.cli("site", "suspend", "route:one.test").stdout, "a second time")
    restart(box)
    with box.relay.smtp() as client:
        client.sendmail("alice@localhost", ["z@one.test"], make_message("alice@localhost", "z@one.test"))
    wait_until(lambda: list(states(box).values()) == ["ready"], lambda: f"one waits: {states(box)}")
    check("suspended by the operator" in box.relay.queue()[0]["reason"], f"reason: {box.relay.queue()}")
    explained = json.loads(box.relay.cli("explain", "someone@one.test", "--json").stdout)
    check("suspended" in explained["now"], f"explain: {explained}")
    sites = {row["site"]: row["state"] for row in json.loads(box.relay.cli("site", "list", "--json").stdout)}
    check_equal(sites["route:one.test"], "suspended", f"site list: {sites}")
    box.relay.cli("queue", "flush")
    check_equal(len(sink.messages), seen, "nothing was sent")
    box.relay.cli("site", "resume", "route:one.test")
    sink.wait(seen + 1)
    box.relay.wait_queue_empty()
    check_equal(box.relay.cli("site", "resume", "route:one.test", ok=False).returncode, 66, "resumed twice")
    check_equal(box.relay.cli("site", "suspend", "no-such.test", ok=False).returncode, 66, "an unknown domain")


def explain_the_rest(box):
    """explain knows mailboxes, and says that a domain does not exist or cannot be asked"""
    text = box.relay.cli("explain", "alice@localhost").stdout
    check("a mailbox here" in text and "alice" in text, text)
    (box.relay.data_dir / "aliases").write_text("everyone: alice, someone@one.test\n")
    for local_part, expected in (("nobody", "RCPT refuses it: 550 5.1.1"), ("everyone", "RCPT takes it for 2 others")):
        # The files are looked at again after a second.
        wait_until(lambda: expected in box.relay.cli("explain", f"{local_part}@localhost").stdout, expected)
    row = json.loads(box.relay.cli("explain", "everyone@localhost", "--json").stdout)
    check_equal(sorted(row["expands_to"]), ["alice@localhost", "someone@one.test"], "what the alias expands to")
    done = box.relay.cli("explain", "nonsense", ok=False)
    check_equal(done.returncode, 65, done.stderr)


def while_running(box):
    """an order for a recipient that is just being tried: a delivery counts, a deferral becomes what was ordered"""
    sink = box.sinks["two"]
    seen = len(sink.messages)
    for word, reply, expected in (("hold", "451 4.3.0 try later", "held"), ("delete", "451 4.3.0 try later", "removed"),
                                  ("delete", None, "delivered"), ("bounce", "451 4.3.0 try later", "bounced")):
        # The sink's thread would stand still in a step that waits, so the order is given from within.
        ordered = []
        box.sinks["two"].script["rcpt"] = [None]

        def give(message, word=word, reply=reply):
            ordered.append(json.loads(box.relay.cli("queue", word, "--domain", "two.test", "--json").stdout))
            return reply
        sink.script["end"] = [give]
        with box.relay.smtp() as client:
            client.ehlo()
            client.mail("carol@localhost")
            client.rcpt("r@two.test")
            one = queue_id_of(client.data(make_message("carol@localhost", "r@two.test"))[1].decode())
        box.relay.wait_event(expected, id=one, to="<r@two.test>")
        check_equal(ordered[0]["recipients"], 1, f"{word} while it runs")
        if expected == "held":
            check_equal(states(box)[one], "held", "queue list")
            check_equal(order(box, "delete", one), 1, "deleted in the end")
        box.relay.wait_queue_empty()
    check_equal(len(sink.messages), seen + 1, "one was delivered")


def stop(box):
    """SIGTERM ends it with status 0"""
    box.relay.stop()


main(start, by_every_filter, without_a_filter, hold_survives, delete_and_bounce, suspend, explain_the_rest, while_running, stop)
