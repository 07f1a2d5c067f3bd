"""A full disk: 452 4.3.1 at MAIL, deliveries go on, and mail is taken again by itself when there is room; /readyz follows.

On a small file system of its own (tmpfs, so it needs root), filled with mail that the far side defers.
"""

from harness import *
from scenario_disk_errors import Client
from scenario_restart import arrived

SIZE_MIB = 24


def small_disk(box, name, options):
    """A tmpfs in the box's folder, gone with the box."""
    if os.geteuid() != 0:
        raise Skip("a file system of its own needs root")
    folder = box.dir / name
    folder.mkdir()
    run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)])
    box.later(lambda: run(["umount", "-l", str(folder)]))
    return folder


def filling_relay(box, name, disk, spool):
    """A relay whose mail waits until `relents` is set."""
    relents = threading.Event()
    sink = box.sink(script={"rcpt": [lambda _: None if relents.is_set() else "451 4.2.1 not now"]})
    relay = box.ringmail(name, {
        "data_dir": str(disk / "data"),
        "route": [{"domain": "*", "host": "127.0.0.1", "port": sink.port}],
        "retry": {"delay_min": "1s", "delay_max": "2s"},
        "spool": spool,
    }, shards=1)
    relay.data_dir = disk / "data"
    return relay, sink, relents


def until_full(client):
    """Submit until MAIL says 452 for longer than free space is remembered; counts refusals after the data."""
    late, refused_since = 0, None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        reply = client.submit(60_000)
        if reply.startswith("250"):
            refused_since = None
            continue
        check_equal(reply[:9], "452 4.3.1", "reply of a full disk")
        is_late = client.mail_reply.startswith("250")
        late += is_late
        refused_since = refused_since or time.monotonic()
        if time.monotonic() - refused_since > 2.5:
            check(not is_late, "a disk that has been full for a while is told at MAIL")
            return late
        time.sleep(0.05)
    raise AssertionError("the disk did not become full")


def bytes_run_out(box):
    """Octets run out: MAIL is refused, SIZE= counts, deliveries make room"""
    disk = small_disk(box, "small", f"size={SIZE_MIB}m")
    relay, sink, relents = filling_relay(box, "full", disk, {"segment_size": "1 MiB", "free_space_min": "4 MiB",
                                                             "free_inodes_min": 0, "compact_after": "1h"})
    relay.start()
    client = Client(relay)
    wire = relay.raw()
    wire.ask("EHLO client.test")
    check_equal(wire.ask(f"MAIL FROM:<a@client.test> SIZE={(SIZE_MIB - 3) << 20}")[:9], "452 4.3.1",
                "reply to a message that is larger than what is left")
    check(wire.ask("MAIL FROM:<a@client.test> SIZE=1000").startswith("250"), "a small one fits")
    late = until_full(client)
    wait_until(lambda: not relay.is_ready(), "/readyz to say that mail is not accepted")
    taken = len(client.acknowledged)
    relents.set()
    relay.cli("queue", "flush")
    wait_until(lambda: set(arrived(sink)) >= client.acknowledged, "deliveries to go on", 60, 0.1)
    wait_until(lambda: client.submit(60_000).startswith("250"), "mail to be taken again", 30, 0.2)
    wait_until(relay.is_ready, "/readyz to say so")
    wait_until(lambda: set(arrived(sink)) >= client.acknowledged, "the last ones", 60, 0.1)
    check_equal(sorted(set(arrived(sink)) & client.refused), [], "refused messages that arrived")
    relay.stop()
    print(f"  note: {taken} messages fitted, {late} were refused after their data", flush=True)


def inodes_run_out(box):
    """Inodes run out: the same for files"""
    disk = small_disk(box, "few", "size=64m,nr_inodes=60")
    relay, sink, relents = filling_relay(box, "few-files", disk, {"segment_size": "1 MiB", "free_space_min": "1 MiB",
                                                                  "free_inodes_min": 20})
    relay.start()
    client = Client(relay)
    check(client.submit().startswith("250"), "there is room")
    for number in range(200):
        try:
            (disk / f"other{number}").touch()
        except OSError:
            break
    wait_until(lambda: client.submit() == client.mail_reply and client.mail_reply[:9] == "452 4.3.1", "MAIL to be refused", 20, 0.2)
    for file in disk.glob("other*"):
        file.unlink()
    wait_until(lambda: client.submit().startswith("250"), "mail to be taken again", 20, 0.2)
    relents.set()
    relay.cli("queue", "flush")
    wait_until(lambda: set(arrived(sink)) >= client.acknowledged, "what was acknowledged to arrive", 60, 0.1)
    relay.stop()


if __name__ == "__main__":
    main(bytes_run_out, inodes_run_out)
