"""The syncs that are counted happen: a block device of its own counts the flushes that reach it.

On a file system on a loop device (so it needs root): one message at a time costs at least one flush each; many at a time share
them, and the metrics say how; a relaxed listener does not wait for them.
"""

from harness import *

ALONE = 60
TOGETHER, SENDERS = 960, 48
RELAXED = 300


def own_disk(box):
    """ext4 on a loop device; the folder, and a function that counts the device's flushes."""
    if os.geteuid() != 0:
        raise Skip("a block device of its own needs root")
    need("losetup", "mkfs.ext4")
    image, folder = box.dir / "image", box.dir / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(512 << 20)
    made = run(["losetup", "-f", "--show", str(image)], ok=False)
    if made.returncode != 0:
        raise Skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    box.later(lambda: run(["losetup", "-d", device]))
    block = Path("/sys/block") / Path(device).name
    run(["mkfs.ext4", "-q", "-F", device])
    run(["mount", device, str(folder)])
    box.later(lambda: run(["umount", "-l", str(folder)]))
    fields = (block / "stat").read_text().split()
    if len(fields) < 17 or "back" not in (block / "queue/write_cache").read_text():
        raise Skip("the device counts no flushes")
    return folder, lambda: int((block / "stat").read_text().split()[15])


def submit(relay, port, count, senders=1):
    """Submit over this many connections at once."""
    def some(number):
        wire = relay.raw(port=port, timeout=60)
        wire.ask("EHLO client.test")
        for _ in range(number):
            wire.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<x@far.test>\r\nDATA\r\n")
            for expected in ("250", "250", "354"):
                reply = wire.reply()
                check(reply.startswith(expected), f"unexpected reply {reply!r}")
            wire.send(b"Subject: sync\r\n\r\n" + (b"x" * 76 + b"\r\n") * 20 + b".\r\n")
            reply = wire.reply()
            check(reply.startswith("250"), f"not accepted: {reply!r}")
            taken.append(reply)
        wire.close()

    taken = []
    threads = [threading.Thread(target=some, args=(count // senders,), daemon=True) for _ in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    check_equal(len(taken), count, "messages accepted")


def flushes(box):
    """Each 250 of a listener with group durability follows a flush; batches share them; relaxed waits for none"""
    disk, count = own_disk(box)
    relaxed_port = free_port()
    dead = free_port()
    relay = box.ringmail("syncing", {"data_dir": str(disk / "data"),
                                     "route": [{"domain": "*", "host": "127.0.0.1", "port": dead}],
                                     "spool": {"segment_size": "16 MiB", "free_space_min": "1 MiB"}}, shards=1)
    relay.config["smtp"].append({"address": f"127.0.0.1:{relaxed_port}", "durability": "relaxed"})
    relay.write_config()
    relay.start()

    def measured(port, number, senders=1):
        wait_until(lambda: settled(relay), "the metrics to settle", 20, 0.5)
        before, flushed = relay.metrics(), count()
        submit(relay, port, number, senders)
        flushed = count() - flushed
        wait_until(lambda: settled(relay), "the metrics to settle", 20, 0.5)
        after = relay.metrics()
        return flushed, {name: after[name] - before.get(name, 0) for name in after if name.startswith("ringmail_spool_")}

    submit(relay, relay.smtp_port, 20)
    flushed, spool = measured(relay.smtp_port, ALONE)
    check_equal(spool["ringmail_spool_syncs_total"], ALONE, "syncs of messages that came one at a time")
    check(flushed >= ALONE, f"{flushed} flushes reached the device for {ALONE} syncs")
    flushed, spool = measured(relay.smtp_port, TOGETHER, SENDERS)
    syncs = spool["ringmail_spool_syncs_total"]
    check(syncs < TOGETHER / 2, f"{syncs} syncs for {TOGETHER} messages of {SENDERS} senders")
    check(flushed >= syncs, f"{flushed} flushes reached the device for {syncs} syncs")
    check_equal(spool["ringmail_spool_batch_messages_sum"], TOGETHER, "messages in all batches")
    check_equal(spool["ringmail_spool_batch_messages_count"], syncs, "batches")
    note = f"{TOGETHER} messages of {SENDERS} senders: {syncs:.0f} syncs, {flushed} flushes at the device"
    flushed, spool = measured(relaxed_port, RELAXED)
    check_equal(spool["ringmail_spool_relaxed_total"], RELAXED, "relaxed messages")
    check(spool["ringmail_spool_syncs_total"] <= RELAXED / 10, f"relaxed messages waited: {spool}")
    wait_until(lambda: len(relay.events("accepted")) >= 20 + ALONE + TOGETHER + RELAXED, "a log line for each message")
    events = relay.events("accepted")
    check_equal({event["durability"] for event in events[-RELAXED:]}, {"relaxed"}, "durability in the log")
    check_equal({event["durability"] for event in events[:-RELAXED]}, {"group"}, "durability in the log before")
    relay.stop()
    print(f"  note: {note}; {RELAXED} relaxed ones: {flushed} flushes", flush=True)


def settled(relay):
    """Two readings a while apart are the same: nothing is written any more."""
    names = ("ringmail_spool_syncs_total", "ringmail_spool_batch_messages_sum", "ringmail_spool_relaxed_total")
    first = relay.metrics()
    time.sleep(1.5)
    second = relay.metrics()
    return all(first[name] == second[name] for name in names)


if __name__ == "__main__":
    main(flushes)
