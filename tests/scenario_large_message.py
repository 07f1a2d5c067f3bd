"""A message of 100 MB costs its session no memory to speak of: it goes to its file as it arrives.

Watches the anonymous memory of the process while one client sends the message, and again while it is delivered: with SIZE=, as
clients do where it is offered, and without it.
"""

from harness import *
from scenario_restart import relay_with_sink

MESSAGE_BYTES = 100 << 20
# The promise is 1 MiB for the session: a read of 64 KiB, a part of 256 KiB that fills and one that is being written; where MAIL
# does not say SIZE=, the first MiB is gathered before it turns out to be a large one. What the process shows beside that is
# how allocator and helper threads keep what they had, which is not the same in each run.
GROWTH_MAX_KIB = 4 << 10


def anonymous_kib(relay):
    """RssAnon of the process."""
    for line in Path(f"/proc/{relay.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


def memory(box):
    """100 MB are accepted and delivered in a small bound of memory"""
    relay, sink = relay_with_sink(box, "large")
    relay.config["limits"]["message_size_max"] = "200 MiB"
    relay.write_config()
    relay.start()
    wire = relay.raw(timeout=120)
    wire.ask("EHLO client.test")

    def submit(octets, declared):
        size = f" SIZE={octets}" if declared else ""
        for command in (f"MAIL FROM:<a@client.test>{size}", "RCPT TO:<x@far.test>", "DATA"):
            reply = wire.ask(command)
            check(reply[:3] in ("250", "354"), f"unexpected reply {reply!r}")
        wire.send(b"Subject: long\r\n\r\n")
        chunk = (b"x" * 76 + b"\r\n") * 4096
        most = 0
        for number in range(octets // len(chunk)):
            wire.send(chunk)
            if number % 8 == 0:
                most = max(most, anonymous_kib(relay))
        wire.send(b".\r\n")
        reply = wire.reply()
        check(reply.startswith("250"), f"not accepted: {reply!r}")
        return most

    # Each way once before, so that what stays for good is there already.
    submit(5 << 20, True)
    submit(5 << 20, False)
    sink.wait(2, 60)
    for declared in (True, False):
        before, arrived = anonymous_kib(relay), len(sink.messages)
        most = submit(MESSAGE_BYTES, declared)
        watched = []
        wait_until(lambda: watched.append(anonymous_kib(relay)) or len(sink.messages) > arrived, "the message to arrive", 300, 0.25)
        grown, grown_out = most - before, max(watched) - before
        print(f"  note: {MESSAGE_BYTES >> 20} MiB {'with SIZE=' if declared else 'undeclared'} cost {grown} KiB while they came, "
              f"{grown_out} KiB while they went", flush=True)
        check(grown <= GROWTH_MAX_KIB, f"receiving took {grown} KiB")
        check(grown_out <= GROWTH_MAX_KIB, f"delivering took {grown_out} KiB")
        check(len(sink.messages[arrived].data) >= MESSAGE_BYTES - 400_000, "the message is not whole")
    relay.stop()


if __name__ == "__main__":
    main(memory)
