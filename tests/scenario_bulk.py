"""Bulk: 20,000 messages of 4 KiB from Postfix smtp-source over 50 sessions, through ringmail, to Postfix smtp-sink.

All of them arrive, none twice: smtp-source numbers its messages in Message-Id, smtp-sink keeps what it gets in a file.
The rate is printed for information.
"""

import collections

from harness import *

COUNT = int(os.environ.get("BULK_COUNT", "20000"))


def bulk(box):
    """all messages arrive, none twice, none changed in length"""
    need("smtp-source", "smtp-sink")
    port = free_port()
    dump = box.dir / "dump"
    dump.mkdir(mode=0o777)
    dump.chmod(0o777)
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    box.spawn([find_program("smtp-sink"), *user, "-D", dump / "all", f"127.0.0.1:{port}", "1000"], log="smtp-sink.log",
              cwd=dump)
    relay = box.ringmail(config={"route": [{"domain": "*", "host": "127.0.0.1", "port": port}],
                                 "spool": {"segment_size": "64 MiB", "free_space_min": "1 MiB"}})
    relay.start()
    begun = time.monotonic()
    run([find_program("smtp-source"), "-d", "-s", "50", "-l", "4096", "-m", str(COUNT), "-f", "bulk@client.test",
         "-t", "x@far.test", f"127.0.0.1:{relay.smtp_port}"], timeout=400)
    accepted = time.monotonic() - begun
    wait_until(lambda: relay.metrics().get("ringmail_recipients_delivered_total", 0) >= COUNT,
               lambda: f"{COUNT} deliveries; log:\n{relay.log_tail()}", 300, 0.1)
    delivered = time.monotonic() - begun
    relay.wait_queue_empty()
    metrics = relay.metrics()
    relay.stop()
    ids = collections.Counter(re.findall(rb"(?mi)^Message-Id: (\S+)", (dump / "all").read_bytes()))
    check_equal(len(ids), COUNT, "different messages at smtp-sink")
    check_equal([i for i, n in ids.items() if n > 1][:5], [], "messages that arrived more than once")
    for name in ("ringmail_messages_accepted_total", "ringmail_recipients_delivered_total"):
        check_equal(metrics[name], COUNT, name)
    batches = metrics["ringmail_spool_syncs_total"]
    check(0 < batches < COUNT, f"{batches} syncs for {COUNT} messages: no group commit")
    print(f"  note: {COUNT} messages of 4 KiB accepted in {accepted:.1f} s ({COUNT / accepted:.0f}/s), all delivered "
          f"after {delivered:.1f} s ({COUNT / delivered:.0f}/s), {batches:.0f} syncs; load, relay and sink share "
          f"{os.cpu_count()} cores", flush=True)


main(bulk)
