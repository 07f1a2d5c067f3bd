"""Clients that are faster than a delivery which keeps up are slowed down; nobody waits for a far side that is dead or far behind.

The far side takes 20 messages a second, for ringmail is told to send no more; the bound of waiting messages is set to 100.
"""

from harness import *

HELD_BACK = "ringmail_messages_held_back_total"


def feed(relay, recipient, count, until=lambda: False):
    """Sends messages, some 150 a second at most, over one session until `until()`; the number sent."""
    client = Wire("127.0.0.1", relay.smtp_port)
    check(client.ask("EHLO client.test").startswith("250"), "EHLO is accepted")
    for sent in range(1, count + 1):
        client.send(f"MAIL FROM:<a@client.test>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n")
        replies = [client.reply() for _ in range(3)]
        check_equal([reply[:3] for reply in replies], ["250", "250", "354"], "replies")
        client.send(f"Subject: {sent}\r\n\r\nA line.\r\n.\r\n")
        check(client.reply().startswith("250"), "the message is accepted")
        if sent % 25 == 0 and until():
            break
        time.sleep(0.005)
    client.send("QUIT\r\n")
    return sent


def relay_to(box, name, port, bound):
    relay = box.ringmail(name, config={
        "route": [{"domain": "*", "host": "127.0.0.1", "port": port}], "limits": {"hold_back_after": bound},
        "delivery": {"messages_per_second": 20.0}})
    return relay.start()


def keeps_up(box):
    """where delivery keeps up, clients are slowed down from the bound on, and everything arrives"""
    sink = box.sink()
    relay = relay_to(box, "keeps_up", sink.port, 100)
    held = lambda: relay.metrics().get(HELD_BACK, 0) > 0
    sent = feed(relay, "b@far.test", 4000, held)
    check(held(), f"no message of {sent} was held back; log:\n{relay.log_tail()}")
    check("clients are slowed down" in relay.log(), f"the log says so:\n{relay.log_tail()}")
    sink.wait(sent, 180)
    check_equal(len({message.data for message in sink.messages}), sent, "different messages at the sink")
    relay.stop()


def check_not_held(relay, count):
    """All of them were counted, and none as held back. Figures are a second old."""
    wait_until(lambda: relay.metrics()["ringmail_messages_accepted_total"] >= count, f"{count} messages to be counted")
    check_equal(relay.metrics()[HELD_BACK], 0, HELD_BACK)


def never(box):
    """0 turns it off"""
    sink = box.sink()
    relay = relay_to(box, "never", sink.port, 0)
    feed(relay, "b@far.test", 400)
    check_not_held(relay, 400)
    relay.stop()


def dead(box):
    """a dead far side slows down nobody"""
    relay = relay_to(box, "dead", free_port(), 100)
    feed(relay, "b@far.test", 400)
    wait_until(lambda: relay.metrics()["ringmail_queue_messages"] >= 400, "all of them to be queued")
    check_not_held(relay, 400)
    relay.stop()


main(keeps_up, never, dead)
