#!/usr/bin/env python3
"""What a queue costs that waits, and how long a first attempt waits: the program as it is installed, over loopback.

    tests/bench_queue.py [MESSAGES]      default 1,000,000 deferred; RINGMAIL_BIN and RINGMAIL_LOAD_BIN name the programs

1. First attempts: from the commit to the moment the scheduler gives the transaction out, by the program's own metric,
   at 100 and 1,000 messages a second to a site that takes them. Figure: 5 ms for the median.
2. Idle: processor time of the whole process in a minute with nothing queued; with MESSAGES deferred and nothing due; with
   a tenth as many more for a site that is suspended, and for one that nobody listens at. Figure: under 1% of one core.

The queue is filled by SMTP through a sink that answers 450. A million takes some minutes and 2 GB of disk.
"""

import sys
import time

from harness import *  # noqa: F403  the scenarios' foundation

LOAD = Path(os.environ.get("RINGMAIL_LOAD_BIN") or ROOT / "target" / "release" / "ringmail-load")
MINUTE = float(os.environ.get("BENCH_SECONDS", 60))
METRIC = "ringmail_delivery_first_attempt_seconds"


def sink(box, port, *options):
    """A far side, until the bench ends."""
    log = open(box.dir / f"sink-{port}.log", "w")
    process = subprocess.Popen([LOAD, "sink", f"127.0.0.1:{port}", "--idle-seconds", "7200", *options],
                               stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    box.later(lambda: end_process(process))
    wait_until(lambda: "listening" in Path(log.name).read_text(), "a sink")


def source(relay, domain, messages, *options):
    """Messages to one domain; what the tool measured."""
    done = run([LOAD, "source", f"127.0.0.1:{relay.smtp_port}", "--to", f"load@{domain}", "--length", "512",
                "--messages", str(messages), *map(str, options)], timeout=7200)
    return json.loads(done.stdout)


def cpu_seconds(pid):
    """User and system time of a process."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid):
    """Anonymous memory: what is not files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024


def summary(relay):
    """Counts of the queue."""
    return json.loads(relay.cli("queue", "summary", "--json").stdout)


def first_attempts(box):
    """Quantiles of the wait at two rates."""
    reached = True
    for rate in (100, 1000):
        relay = box.ringmail(f"first-{rate}", {"route": [{"domain": "*", "host": "127.0.0.1", "port": box.good}]})
        relay.start()
        source(relay, "good.test", rate * 10, "--rate", rate, "--sessions", 20)
        wait_until(lambda: relay.metrics().get(f"{METRIC}_count", 0) >= rate * 10, "all first attempts", 60)
        metrics = relay.metrics()
        quantiles = {q: 1000 * metrics[f'{METRIC}{{quantile="{q}"}}'] for q in ("0.5", "0.9", "0.99")}
        print(f"first attempt at {rate}/s: " + ", ".join(f"{q}: {ms:.3f} ms" for q, ms in quantiles.items()), flush=True)
        reached = reached and quantiles["0.5"] <= 5
        relay.stop()
    return reached


def idle(relay, what):
    """The share of one core that the process takes, once it has come to rest."""
    time.sleep(min(10, MINUTE / 2))
    before, began = cpu_seconds(relay.process.pid), time.monotonic()
    time.sleep(MINUTE)
    share = 100 * (cpu_seconds(relay.process.pid) - before) / (time.monotonic() - began)
    print(f"{what}: {share:.2f}% of one core over {MINUTE:g} s; {resident_mib(relay.process.pid):.0f} MiB of anonymous memory",
          flush=True)
    return share < 1


def waiting(box, messages):
    """The idle process beside queues of different kinds."""
    routes = {"later.test": box.later_port, "dead.test": free_port(), "suspended.test": box.good}
    relay = box.ringmail("waiting", {
        "route": [{"domain": domain, "host": "127.0.0.1", "port": port} for domain, port in routes.items()],
        "retry": {"delay_min": "1d", "delay_max": "1d", "delay_dsn_after": "2d"},
        "spool": {"segment_size": "256 MiB"},
    })
    relay.start()
    reached = [idle(relay, "nothing queued")]
    sent = source(relay, "later.test", messages, "--sessions", 50)
    check_equal(sent["accepted"], messages, "accepted")
    wait_until(lambda: summary(relay)["deferred"] == messages, lambda: f"all deferred: {summary(relay)}", 3600, 1)
    reached.append(idle(relay, f"{messages:,} deferred, nothing due"))
    relay.cli("site", "suspend", "route:suspended.test")
    source(relay, "suspended.test", messages // 10, "--sessions", 50)
    reached.append(idle(relay, f"and {messages // 10:,} for a suspended site"))
    source(relay, "dead.test", messages // 10, "--sessions", 50)
    reached.append(idle(relay, f"and {messages // 10:,} for a dead site"))
    counts = summary(relay)
    print({key: counts[key] for key in ("messages", "deferred", "running", "lanes")}, flush=True)
    relay.stop(seconds=120)
    return all(reached)


def bench():
    """All of it; exit status 1 when a figure is not reached."""
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    box = Box("bench-queue")
    try:
        box.good, box.later_port = free_port(), free_port()
        sink(box, box.good)
        sink(box, box.later_port, "--defer-share", "1")
        reached = [first_attempts(box), waiting(box, messages)]
    finally:
        box.close()
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(bench())
