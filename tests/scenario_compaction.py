"""One message that waits does not keep a whole segment: old segments of which little is needed are emptied and used again.

Some messages fill small segments; all are delivered but a few, which the far side defers. Compaction moves those
few: the segments shrink to a handful, the messages keep their queue IDs, survive a SIGKILL at their new places, and are
delivered once each when the far side relents.
"""

from harness import *
from scenario_restart import Load, arrived

WAITING_EVERY = 40
MESSAGES = 1500


def submit(relay, names):
    """Submit messages of 8 KiB, on a few connections; returns queue IDs by name."""
    ids = {}

    def some(part):
        wire = relay.raw(timeout=30)
        wire.ask("EHLO client.test")
        for name in part:
            wire.send(f"MAIL FROM:<a@client.test>\r\nRCPT TO:<{name}@far.test>\r\nDATA\r\n".encode())
            for expected in ("250", "250", "354"):
                reply = wire.reply()
                check(reply.startswith(expected), f"unexpected reply {reply!r}")
            wire.send(f"Subject: {name}\r\n\r\n".encode() + (b"x" * 76 + b"\r\n") * 100 + b".\r\n")
            reply = wire.reply()
            check(reply.startswith("250"), f"not accepted: {reply!r}")
            ids[name] = queue_id_of(reply)
        wire.ask("QUIT")
        wire.close()

    threads = [threading.Thread(target=some, args=(names[n::6],), daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    check_equal(len(ids), len(names), "messages accepted")
    return ids


def segments(relay):
    """Names of the segments in use."""
    return sorted(file.name for file in (relay.data_dir / "spool" / "segments").glob("*.seg"))


def compaction(box):
    """A few waiting messages are moved together, keep their names, and survive a crash"""
    relents = threading.Event()
    defer = lambda argument: "451 4.2.1 not now" if "wait" in str(argument) and not relents.is_set() else None
    sink = box.sink(script={"rcpt": [defer]})
    relay = box.ringmail("compacting", {
        "route": [{"domain": "*", "host": "127.0.0.1", "port": sink.port}],
        "retry": {"delay_min": "3s", "delay_max": "5s"},
        "spool": {"segment_size": "1 MiB", "compact_after": "1s"},
    }, shards=1)
    relay.start()
    names = [f"wait{n}" if n % WAITING_EVERY == 0 else f"go{n}" for n in range(MESSAGES)]
    waiting = {name for name in names if name.startswith("wait")}
    ids = submit(relay, names)
    full = len(segments(relay))
    wait_until(lambda: set(arrived(sink)) >= set(names) - waiting, "all others to be delivered", 60, 0.1)
    # The two that are written now and what the survivors fill: some 40 messages of 8 KiB.
    wait_until(lambda: len(segments(relay)) <= 4, f"{full} segments to be emptied, now {segments(relay)}", 60, 0.2)
    moved = relay.metrics()["ringmail_spool_moved_total"]
    check(moved >= len(waiting) // 2, f"only {moved} messages were moved")
    check_equal({row["id"] for row in relay.queue()}, {ids[name] for name in waiting}, "waiting messages")
    relay.kill()
    checked = relay.cli("spool", "check", ok=False)
    check_equal(checked.returncode, 0, f"exit code of the check\n{checked.stdout}")
    shown = relay.cli("spool", "cat", ids[sorted(waiting)[0]]).stdout
    check(sorted(waiting)[0] in shown, f"a moved message is not found by its name:\n{shown[:500]}")
    relay.start()
    check_equal({row["id"] for row in relay.queue()}, {ids[name] for name in waiting}, "waiting after a crash")
    relents.set()
    relay.cli("queue", "flush")
    wait_until(lambda: set(arrived(sink)) >= waiting, "the rest to be delivered", 60, 0.1)
    relay.wait_queue_empty(30)
    twice = {name: count for name, count in arrived(sink).items() if count > 1}
    check(len(twice) <= 40, f"repeats: {twice}")
    relay.stop()
    print(f"  note: {full} segments were emptied into {len(segments(relay))}, {moved:g} moves", flush=True)


if __name__ == "__main__":
    main(compaction)
