"""Fifty SIGKILLs under the load of many senders: everything that was answered 250 is delivered in the end.

Each round starts the real program on the spool that the round before left, lets 24 senders submit, and kills it at a
random moment, from before the first reply to well into recycling. After each kill the spool must pass `spool check`: a
process that dies leaves torn ends, never damage. Repeats are counted, printed and bounded by what was in flight.

    scenario_crash.py [--rounds N] [--seconds S] [--seed N]     a long run: --rounds 2000 --seconds 7200
"""

import argparse

from harness import *
from scenario_restart import Load, arrived, relay_with_sink, settle

SENDERS = 24
# What may be on its way when the process dies: 20 connections to the far side (the default), and outcomes that the
# journal's thread had not yet written.
IN_FLIGHT = 100


def options():
    """The command line; the seed decides the moments of the kills."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    return parser.parse_args()


def crashes(box):
    """SIGKILL at random moments: nothing acknowledged is lost, the spool is sound each time"""
    given = options()
    print(f"  seed: {given.seed}", flush=True)
    moments = random.Random(given.seed)
    relay, sink = relay_with_sink(box, "crashing")
    relay.config["spool"]["segment_size"] = "2 MiB"  # so that segments are recycled between kills
    relay.write_config()
    acknowledged, tried = set(), set()
    begun = time.monotonic()
    rounds = 0
    while rounds < given.rounds and time.monotonic() - begun < given.seconds:
        # Every fifth is killed while it starts and recovers, perhaps before it accepts anything.
        early = moments.random() < 0.2
        relay.start(ready=not early)
        load = Load(relay, f"kill{rounds}", SENDERS)
        time.sleep(moments.uniform(0, 0.3) if early else moments.uniform(0.05, 0.9))
        check(relay.is_alive(), f"it ended by itself in round {rounds} (seed {given.seed}):\n{relay.log_tail()}")
        relay.kill()
        load.stop()
        acknowledged |= load.acknowledged
        tried |= load.tried
        checked = relay.cli("spool", "check", ok=False)
        missing_folder = checked.returncode == 66 and not acknowledged
        check(checked.returncode == 0 or missing_folder,
              f"damage after kill {rounds} (seed {given.seed}), exit code {checked.returncode}:\n"
              f"{checked.stdout}{checked.stderr}")
        rounds += 1
    check(rounds == given.rounds or rounds >= 20, f"only {rounds} of {given.rounds} rounds in {given.seconds:g} s")
    check(len(acknowledged) > rounds * 10, f"only {len(acknowledged)} messages were acknowledged in {rounds} rounds")
    relay.start()
    settle(relay, sink, acknowledged)
    counts = arrived(sink)
    repeats = sum(count - 1 for count in counts.values())
    print(f"  note: {rounds} SIGKILLs of {SENDERS} senders' relay, {len(acknowledged)} acknowledged messages, none lost, "
          f"{repeats} repeated (seed {given.seed})", flush=True)
    check_equal(sorted(set(counts) - tried), [], "messages nobody sent")
    check_equal(sink.anomalies, [], "anomalies at the far side")
    check(repeats <= rounds * IN_FLIGHT, f"{repeats} repeats after {rounds} kills")
    relay.stop()


if __name__ == "__main__":
    main(crashes)
