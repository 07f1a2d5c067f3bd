"""A simulated Internet on loopback: 600 domains on 60 sites behind a real DNS server, with every temper that sites have.

Sites that accept, that take only TLS, that are slow, that defer a share, reject a share, greylist, throttle with 451 and with
421 and few connections, that have an address instead of MX, whose first MX is dead; domains with a null MX, domains that do
not exist, domains whose DNS is broken, sites where nobody listens. Every recipient must end once, in the way that its domain
allows, and arrive once or not at all, octet for octet. What cannot be delivered yet is still queued, with its reason, and
expires when its lifetime is cut short. Each failure is reported to the sender in one DSN per message at most per moment.

SIM_MESSAGES=1000000 and the like send more than 50,000 messages, or fewer.
"""

import collections
import tomllib

from harness import *

MESSAGES = int(os.environ.get("SIM_MESSAGES", "50000"))
DOMAINS, SITES = 600, 60
SENDER = "alice@relay.test"
BROKEN = [f"b{number}.broken" for number in range(6)]
KINDS = [  # name, share, extra lines, what becomes of mail: see `fate`
    ("accept", 0.30, "", "delivered"),
    ("tls", 0.10, "behaviour = { tls = true, tls_required = true }", "delivered"),
    ("slow", 0.08, "behaviour = { reply_delay_ms = 10, data_delay_ms = 50 }", "delivered"),
    ("defer", 0.08, "behaviour = { defer_share = 0.3 }", "delivered"),
    ("reject", 0.08, "behaviour = { reject_share = 0.2, refuse_share = 0.05 }", "delivered or bounced"),
    ("greylist", 0.08, "behaviour = { greylist_seconds = 3.0 }", "delivered"),
    ("throttle", 0.06, "behaviour = { rate_max = 20.0, throttle_code = 451 }", "delivered"),
    ("few", 0.06, "behaviour = { rate_max = 20.0, throttle_code = 421, connections_max = 2, messages_per_connection = 20 }",
     "delivered"),
    ("address", 0.06, 'dns = "address"', "delivered"),
    ("null", 0.05, 'dns = "null_mx"', "bounced"),
    ("missing", 0.05, 'dns = "nxdomain"', "bounced"),
    ("down", 0.05, "down = true", "waits"),
]


def load_program():
    """The load generator that was built with the ringmail under test."""
    path = Path(os.environ.get("RINGMAIL_LOAD_BIN") or Path(binary()).parent / "ringmail-load")
    if not path.exists():
        raise Skip(f"no program at {path}: run `cargo build --release --workspace` first, or set RINGMAIL_LOAD_BIN")
    return str(path)


def make_world(box):
    """write the world: 600 domains on 60 sites, and its DNS zone"""
    need("openssl", "knotd", "kdig")
    box.load = load_program()
    box.world = box.dir / "world"
    kinds = box.dir / "kinds.toml"
    kinds.write_text("".join(f'[[kind]]\nname = "{name}"\nshare = {share}\n{extra}\n' for name, share, extra, _ in KINDS))
    box.port = free_port("127.77.0.1")
    run([box.load, "world", "write", box.world, "--domains", DOMAINS, "--sites", SITES, "--network", "127.77.0.1",
         "--port", box.port, "--kinds", kinds, "--zipf", "0.3", "--seed", 5])
    zone = [line for line in (box.world / "test.zone").read_text().splitlines() if " MX " in line or " A " in line]
    names = (box.world / "domains.txt").read_text().split()
    check_equal(len(names), DOMAINS, "domains")
    box.kind_of = kinds_of_domains(box, names)
    seen = collections.Counter(box.kind_of.values())
    check(all(seen[name] for name, *_ in KINDS), f"every kind has a domain: {dict(seen)}")
    # The first MX of some domains is dead: the address is nobody's.
    good = {line.split(". ")[0] for line in zone if " MX " in line and " MX 0 ." not in line}
    dead_first = sorted(name for name in good if box.kind_of[name] != "down")[::10]
    zone += [f"{name}. MX 5 dead.test." for name in dead_first] + ["dead.test. A 127.77.255.254"]
    (box.world / "domains.txt").write_text("\n".join(names + BROKEN) + "\n")
    # A zone without a file is answered with SERVFAIL.
    box.dns_server = box.dns({"test.": "\n".join(line for line in zone if not line.startswith("ns "))}, also=["broken."])
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=sink.test", "-keyout", box.dir / "key.pem", "-out", box.dir / "cert.pem"])


def kinds_of_domains(box, names):
    """The kind of each domain: by the first address that its mail goes to."""
    box.sites = tomllib.loads((box.world / "sink.toml").read_text())["site"]
    by_address = {address.rsplit(":", 1)[0]: site["name"].split("-", 1)[1]
                  for site in box.sites for address in site["addresses"]}
    table = json.loads((box.world / "names.json").read_text())
    kinds = {}
    for name in names:
        entry = table.get(name)
        if entry is None:
            kinds[name] = "missing"
        elif entry.get("mx") and entry["mx"][0][1] == "":
            kinds[name] = "null"
        else:
            hosts = [table[host] for _, host in entry.get("mx", [])] or [entry]
            kinds[name] = by_address.get(hosts[0]["a"][0], "down")
    return {**kinds, **{name: "broken" for name in BROKEN}}


def start(box):
    """start the far sides and the relay"""
    box.sink_process = box.spawn([box.load, "sink", "--config", box.world / "sink.toml", "--verify", "--idle-seconds", "900",
                                  "--tls-certificate", box.dir / "cert.pem", "--tls-key", box.dir / "key.pem"], log="sink.log")
    wait_until(lambda: "listening on" in (box.dir / "sink.log").read_text(), "the sink to listen")
    box.relay = box.ringmail("relay", {
        "delivery": {"port": box.port, "allow_private_targets": True, "connect_timeout": "5s"},
        "dns": {"servers": [box.dns_server.server], "timeout": "1s", "attempts": 2},
        "retry": {"delay_min": "1s", "delay_max": "4s"},
        "spool": {"segment_size": "64 MiB", "free_space_min": "1 MiB"},
    })
    box.relay.add_user("alice", "pw")
    box.relay.start()


def send(box):
    """every message is accepted"""
    done = run([box.load, "source", f"127.0.0.1:{box.relay.smtp_port}", "--messages", MESSAGES, "--sessions", 20,
                "--length", "1k:60,4k:30,40k:10", "--domains", box.world / "domains.txt", "--zipf", "0.3",
                "--recipients", "1:80,2:10,5:10", "--from", SENDER, "--seed", 9], timeout=600)
    summary = json.loads(done.stdout.splitlines()[-1])
    check_equal(summary["accepted"], MESSAGES, "messages accepted")


class Outcomes:
    """What the relay's log says of each recipient so far; reads only what is new."""

    def __init__(self, relay):
        self.relay, self.at = relay, 0
        self.recipients, self.finals, self.waiting, self.reports = 0, collections.defaultdict(list), set(), []

    def read(self):
        """Take in the new lines."""
        with open(self.relay.log_file, "rb") as log:
            log.seek(self.at)
            text = log.read()
        whole = text.rfind(b"\n") + 1
        self.at += whole
        for line in text[:whole].decode(errors="replace").splitlines():
            event = parse_event(line)
            if not event:
                continue
            kind, key = event["event"], (event.get("id"), event.get("to", "").strip("<>"))
            if kind == "accepted" and event["from"] == f"<{SENDER}>":
                self.recipients += int(event["to"])
            elif kind == "dsn_sent":
                self.reports.append(event)
            elif key[1] == SENDER:
                continue
            elif kind in ("delivered", "bounced", "expired"):
                self.finals[key].append(event)
                self.waiting.discard(key)
            elif kind == "deferred":
                self.waiting.add(key)
        return self

    def by_domain(self, keys, box):
        """How many of these recipients there are of each kind of domain."""
        return dict(collections.Counter(box.kind_of[to.rsplit("@", 1)[1]] for _, to in keys))


def settle(box):
    """everything ends, but for the domains that are down or broken"""
    box.outcomes = Outcomes(box.relay)
    down = {site["name"].split("-")[0] for site in box.sites if site["name"].endswith("-down")}

    def settled():
        seen = box.outcomes.read()
        summary = json.loads(box.relay.cli("queue", "summary", "--json").stdout)
        busy = [row["site"] for row in summary["sites"] if row["ready"] + row["running"] + row["deferred"] > 0]
        # Names like `mx:mx0.s7.test#...`, or `mx:dead.test#...` where the first MX is dead.
        box.busy = [name for name in busy if name != "mailbox" and not down & set(re.findall(r"s\d+", name))]
        return not box.busy and len(seen.finals) + summary["recipients"] == seen.recipients
    wait_until(settled, lambda: f"the end of all deliveries: {box.outcomes.recipients} recipients, {len(box.outcomes.finals)} "
               f"ended; these sites are busy: {box.busy}", 300, 1)
    seen = box.outcomes
    kinds = seen.by_domain(seen.finals, box)
    check(not {"down", "broken"} & set(kinds), f"nothing ended at domains that are down: {kinds}")
    print(f"  note: {MESSAGES} messages, {seen.recipients} recipients, of which {seen.recipients - len(seen.finals)} wait; ended: {kinds}")


def fates(box):
    """every recipient ended once, in the way that its domain allows"""
    expected = {name: fate for name, _, _, fate in KINDS}
    for (queue_id, to), events in box.outcomes.finals.items():
        check_equal(len(events), 1, f"ends of {to} of {queue_id}")
        kind, event = box.kind_of[to.rsplit("@", 1)[1]], events[0]
        check(event["event"] in expected[kind], f"{to} at a domain of kind {kind} ended so: {event}")
        if event["event"] == "bounced":
            status = {"null": "556 5.1.10", "missing": "550 5.1.2"}.get(kind, "55")
            check(event["reply"].startswith(status), f"{to} at a domain of kind {kind} bounced with {event['reply']}")
        if kind == "tls":
            check("tls" in event, f"{to} was delivered in plain text: {event}")
    queue = box.relay.queue()
    left = box.outcomes.recipients - len(box.outcomes.finals)
    check_equal(sum(row["recipients"] for row in queue), left, "recipients in the queue")
    check(all(row["reason"] for row in queue), "each has a reason")


def reports(box):
    """each failed message is reported to its sender, never twice for one recipient"""
    bounced = collections.Counter(key[0] for key, events in box.outcomes.finals.items() if events[0]["event"] == "bounced")

    def all_reported():
        return set(bounced) <= {event["about"] for event in box.outcomes.read().reports}
    wait_until(all_reported, lambda: f"reports about {len(bounced)} messages", 60, 1)
    reported = collections.Counter(event["about"] for event in box.outcomes.reports)
    check_equal(set(reported), set(bounced), "messages with reports")
    check(all(reported[about] <= bounced[about] for about in reported), "no recipient is reported twice")

    def in_mailbox():
        session = box.relay.pop3("alice", "pw", timeout=60)
        count = session.stat()[0]
        session.quit()
        return count == len(box.outcomes.reports)
    wait_until(in_mailbox, lambda: f"{len(box.outcomes.reports)} reports in the mailbox", 120, 1)


def expire(box):
    """what waited survives a restart, and expires when its lifetime is over"""
    ended = set(box.outcomes.finals)
    box.relay.stop(60)
    box.relay.config = merge(box.relay.config, {"retry": {"lifetime": "1s", "delay_dsn_after": "1d"}})
    box.relay.write_config()
    box.relay.start(seconds=60)
    wait_until(lambda: len(box.outcomes.read().finals) >= box.outcomes.recipients,
               lambda: f"{box.outcomes.recipients - len(box.outcomes.finals)} recipients to expire", 120, 1)
    for key in set(box.outcomes.finals) - ended:
        ends = [event["event"] for event in box.outcomes.finals[key]]
        check_equal(ends, ["expired"], f"ends of {key[1]} of {key[0]}")
    box.relay.wait_queue_empty(60)
    check_equal(len(box.outcomes.finals), box.outcomes.recipients, "recipients that ended")
    box.relay.stop(60)


def count(box):
    """the far sides have each delivered recipient once, and every octet of it"""
    box.sink_process.send_signal(signal.SIGINT)
    box.sink_process.wait(timeout=60)
    summary = json.loads((box.dir / "sink.log").read_text().splitlines()[-1])
    delivered = sum(events[0]["event"] == "delivered" for events in box.outcomes.finals.values())
    seen = {key: summary[key] for key in ("different", "repeated", "damaged", "unnumbered")}
    check_equal(seen, {"different": delivered, "repeated": 0, "damaged": 0, "unnumbered": 0}, "messages at the far sides")
    totals = collections.Counter()
    for counts in summary["sites"].values():
        totals.update({key: counts[key] for key in ("throttled", "deferred", "greylisted", "rejected", "refused", "tls")})
    met = [key for key in totals if totals[key] or key == "throttled"]  # a slow machine keeps within the rate
    check_equal(sorted(met), sorted(totals), f"tempers that were met: {dict(totals)}")


main(make_world, start, send, settle, fates, reports, expire, count)
