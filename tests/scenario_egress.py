"""What mail leaves by: pools of local addresses with a name each, limits and rates for single sites, rules about replies.

The far sides listen on loopback and see where connections come from; every way out is another 127.x address.
"""

from harness import *


class Watching(Sink):
    """A sink that notes the address of each client, the name that it says, and when each message came."""

    def __init__(self, **options):
        self.seen, self.times = [], []
        super().__init__(**options)

    async def _session(self, reader, writer):
        self.seen.append(writer.get_extra_info("peername")[0])
        await super()._session(reader, writer)

    def ways(self):
        """Pairs of client address and EHLO name, one of each message."""
        return [(self.seen[message.session - 1], message.helo) for message in self.messages]


def start(box):
    """start a relay with two pools, a slow site and rules of its own"""
    box.sinks = {}
    for name in ("plain", "slow", "route", "asking", "dead"):
        box.sinks[name] = Watching()
        box.later(box.sinks[name].close)
    box.sinks["dead"].close()
    box.relay = box.ringmail(config={
        "hostname": "mail.test",
        "retry": {"delay_min": "2s", "delay_max": "2s"},
        "delivery": {"egress_pool": "main"},
        "egress": [{"name": "main", "addresses": ["127.61.0.1"], "helo": "main.test"},
                   {"name": "one", "addresses": ["127.61.0.2"], "helo": "one.test", "weight": 3},
                   {"name": "two", "addresses": ["127.61.0.3"], "helo": "two.test"},
                   {"name": "hub", "addresses": ["127.61.0.4"]}],
        "egress_pool": [{"name": "main", "members": ["main"]},
                        {"name": "shop", "members": ["one", "two"], "sender_domains": ["shop.test"]},
                        {"name": "hub", "members": ["hub"]}],
        "site": [{"domains": ["slow.test"], "messages_per_second": 4.0, "connections_max": 1,
                  "messages_per_connection": 3, "recipients_per_transaction": 2}],
        "reply_rule": [{"code": "450", "text": ["not before an hour"], "class": "sleepy", "effect": "pause",
                        "time": "1h"},
                       {"code": "452", "class": "never", "effect": "bounce"}],
        "route": [{"domain": f"{name}.test", "host": "127.0.0.1", "port": sink.port,
                   **({"egress_pool": "hub"} if name == "route" else {})} for name, sink in box.sinks.items()]})
    box.relay.add_user("alice", "pw")
    box.relay.start()


def send(box, sender, recipients, count=1):
    """Some messages in one session; the queue IDs."""
    ids = []
    with box.relay.smtp() as client:
        client.ehlo()
        for _ in range(count):
            client.mail(sender)
            for recipient in recipients:
                client.rcpt(recipient)
            code, text = client.data(make_message(sender, recipients[0]))
            check_equal(code, 250, str(text))
            ids.append(queue_id_of(text.decode()))
    return ids


def by_sender_and_route(box):
    """the pool follows from the route, else from the sender's domain, else it is the usual one"""
    sink = box.sinks["plain"]
    send(box, "a@other.test", ["x@plain.test"])
    sink.wait(1)
    check_equal(sink.ways(), [("127.61.0.1", "main.test")], "the usual pool")
    for _ in range(8):  # one after the other, so that each opens or reuses as its turn says
        before = len(sink.messages)
        send(box, "news@Shop.test", ["x@plain.test"])
        sink.wait(before + 1)
    ways = sink.ways()[1:]
    check_equal({way: ways.count(way) for way in set(ways)},
                {("127.61.0.2", "one.test"): 6, ("127.61.0.3", "two.test"): 2}, "three of four by the heavier way")
    send(box, "news@shop.test", ["x@route.test"])
    send(box, "a@other.test", ["x@route.test"])
    box.sinks["route"].wait(2)
    check_equal(set(box.sinks["route"].ways()), {("127.61.0.4", "mail.test")}, "the route's pool, with the usual name")
    box.relay.wait_event("delivered", to="<x@plain.test>", site="route:plain.test@shop")


def explained(box):
    """explain names pool, addresses, names and limits"""
    text = box.relay.cli("explain", "x@plain.test", "--sender", "news@shop.test").stdout
    check("Egress:     shop" in text and "one (127.61.0.2) as one.test" in text, text)
    row = json.loads(box.relay.cli("explain", "x@slow.test", "--json").stdout)
    check_equal((row["egress"]["pool"], row["limits"]), ("main", {
        "connections_max": 1, "messages_per_connection": 3, "messages_per_second": 4.0,
        "recipients_per_transaction": 2}), "explain --json")


def limits(box):
    """a site's rate, connections, messages of a connection and recipients of a transaction hold"""
    sink = box.sinks["slow"]
    begun = time.monotonic()
    sink.script["end"] = [lambda message: sink.times.append(time.monotonic()) or None]
    send(box, "a@other.test", ["a@slow.test", "b@slow.test", "c@slow.test"])
    send(box, "a@other.test", ["d@slow.test"], count=7)
    messages = sink.wait(9)
    check_equal(sorted(len(message.rcpts) for message in messages), [1] * 8 + [2], "recipients of each transaction")
    took = sink.times[-1] - sink.times[0]
    check(took >= 8 * 0.25 - 0.1, f"nine messages at four a second took only {took:.2f} s")
    check_equal(sink.open_max, 1, "connections at once")
    by_session = [message.session for message in messages]
    check(max(by_session.count(session) for session in by_session) <= 3, f"messages of each session: {by_session}")
    print(f"  note: 9 messages at 4/s in {took:.2f} s (since the start {time.monotonic() - begun:.2f} s)")


def rules(box):
    """replies get their class in the log, and own rules pause a site or end a recipient"""
    sink = box.sinks["asking"]
    sink.script["rcpt"] = ["452 4.2.2 full", "451 4.7.1 Greylisted, come back", "450 4.2.1 not before an hour", None]
    one = send(box, "alice@localhost", ["never@asking.test"])[0]
    bounced = box.relay.wait_event("bounced", id=one)
    check_equal((bounced["class"], bounced["reply"]), ("never", "552 5.2.2 full"), "bounced by rule")
    two = send(box, "alice@localhost", ["grey@asking.test"])[0]
    check_equal(box.relay.wait_event("deferred", id=two)["class"], "greylisted", "class of a shipped rule")
    three = box.relay.wait_event("deferred", id=two, attempts="2")  # the second try hears the third reply
    check_equal(three["class"], "sleepy", "class of the own rule")
    four = send(box, "alice@localhost", ["late@asking.test"])[0]
    wait_until(lambda: [row for row in box.relay.queue() if row["id"] == four and "paused" in row["reason"]],
               lambda: f"the site is paused: {box.relay.queue()}")
    check_equal(order_of(box, four), "ready", "it waits for the site")
    box.relay.cli("queue", "flush", "--site", "route:asking.test")
    box.relay.wait_event("delivered", id=four)
    box.relay.wait_event("delivered", id=two)


def order_of(box, one):
    """State of one queued message."""
    return next(row["state"] for row in box.relay.queue() if row["id"] == one)


def restarted(box):
    """after SIGKILL a waiting message still leaves by the pool of its sender; a suspended way is not used"""
    sink = box.sinks["plain"]
    sink.script["rcpt"] = ["451 4.3.0 not now"]
    box.relay.cli("site", "suspend", "egress:one")
    before = len(sink.messages)
    ids = send(box, "news@shop.test", ["x@plain.test"], count=2)
    for one in ids:
        box.relay.wait_event("deferred", id=one)
    time.sleep(0.5)
    box.relay.kill()
    sink.script["rcpt"] = [None]
    box.relay.start()
    sink.wait(before + 2)
    check_equal(set(sink.ways()[before:]), {("127.61.0.3", "two.test")}, "by the other way of the pool")
    box.relay.cli("site", "resume", "egress:one")
    box.relay.wait_queue_empty()


def reloaded(box):
    """a reload changes members, pools and time limits; what waits leaves by what is there now"""
    relay, sink = box.relay, box.sinks["plain"]

    def change(**tables):
        relay.config.update(tables)
        relay.write_config()
        relay.cli("reload")

    def waiting(sender):
        sink.script["rcpt"] = ["451 4.3.0 not now"]
        queue_id = send(box, sender, ["x@plain.test"])[0]
        relay.wait_event("deferred", id=queue_id)
        relay.cli("queue", "hold", queue_id)
        relay.wait_event("held", id=queue_id)  # so that no try is under way
        sink.script["rcpt"] = [None]
        return queue_id

    def leaves_by(queue_id, way, title):
        before = len(sink.messages)
        relay.cli("queue", "release", queue_id)
        sink.wait(before + 1)
        relay.wait_event("delivered", id=queue_id)
        check_equal(sink.ways()[before:], [way], title)

    of_shop, of_hub = waiting("news@shop.test"), waiting("news@shop.test")
    egress = [way for way in relay.config["egress"] if way["name"] != "two"]
    new = [{"name": "two", "addresses": ["127.61.0.5"], "helo": "new.test"}, {"name": "late"}]
    main, shop, hub = relay.config["egress_pool"]
    late = {"name": "late", "members": ["late"], "sender_domains": ["late.test"]}
    change(egress=[way for way in egress if way["name"] != "one"] + new,
           egress_pool=[late, hub, {**shop, "members": ["two"]}, main])
    leaves_by(of_shop, ("127.61.0.5", "new.test"), "the pool's only member, as it is now")
    before = len(sink.messages)
    send(box, "a@late.test", ["x@plain.test"])
    sink.wait(before + 1)
    check_equal(sink.ways()[before][1], "mail.test", "a new pool")
    relay.wait_event("delivered", site="route:plain.test@late")
    change(egress=[way for way in relay.config["egress"] if way["name"] in ("main", "hub")], egress_pool=[main, hub])
    leaves_by(of_hub, ("127.61.0.1", "main.test"), "a pool that is gone: the usual one")
    done = relay.cli("reload", ok=False)
    check_equal(done.returncode, 0, f"nothing is new: {done.stderr}")

    ways = relay.config["egress"]
    change(egress=[{**way, "addresses": ["192.0.2.1"]} if way["name"] == "main" else way for way in ways])
    queue_id = send(box, "a@other.test", ["x@plain.test"])[0]
    check("from 192.0.2.1" in relay.wait_event("deferred", id=queue_id)["reply"], "the address that we do not have")
    change(egress=ways)
    relay.cli("queue", "flush")
    relay.wait_event("delivered", id=queue_id)

    sink = box.sinks["asking"]
    wait_until(lambda: sink.open_now == 0, "idle connections to be closed")
    sink.script["connect"] = [3600]
    change(timeouts={"greeting": "1s"}, delivery={"egress_pool": "main", "idle_timeout": "1s"})
    queue_id = send(box, "a@hub.test", ["x@asking.test"])[0]
    check("timed out" in relay.wait_event("deferred", id=queue_id)["reply"], "the new time limit")
    sink.script["connect"] = [None]
    relay.cli("queue", "flush")
    relay.wait_queue_empty()


def stop(box):
    """SIGTERM ends it with status 0"""
    box.relay.stop()


main(start, by_sender_and_route, explained, limits, rules, restarted, reloaded, stop)
