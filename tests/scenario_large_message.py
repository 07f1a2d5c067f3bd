"""A message of 100 MB costs its session no memory to speak of: it goes to its file as it arrives.

Watches the anonymous memory of the process while one client sends the message, and again while it is delivered.
"""

from harness import *
from scenario_restart import relay_with_sink

MESSAGE_BYTES = 100 << 20
# Buffers of one session (64 KiB and 256 KiB, 1 MiB before the file is made) and what the allocator rounds them up to.
GROWTH_MAX_KIB = 6 << 10


def anonymous_kib(relay):
    """RssAnon of the process."""
    for line in Path(f"/proc/{relay.process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise AssertionError("no RssAnon")


def memory(box):
    """100 MB are accepted and delivered in a few megabytes of memory"""
    relay, sink = relay_with_sink(box, "large")
    relay.config["limits"]["message_size_max"] = "200 MiB"
    relay.write_config()
    relay.start()
    wire = relay.raw(timeout=120)
    wire.ask("EHLO client.test")

    def submit(octets):
        for command in ("MAIL FROM:<a@client.test>", "RCPT TO:<x@far.test>", "DATA"):
            reply = wire.ask(command)
            check(reply[:3] in ("250", "354"), f"unexpected reply {reply!r}")
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

    submit(5 << 20)
    sink.wait(1, 60)
    before = anonymous_kib(relay)
    most = submit(MESSAGE_BYTES)
    watched = []
    wait_until(lambda: watched.append(anonymous_kib(relay)) or len(sink.messages) >= 2, "the message to arrive", 300, 0.25)
    grown, grown_out = most - before, max(watched) - before
    print(f"  note: {MESSAGE_BYTES >> 20} MiB cost {grown} KiB while they came, {grown_out} KiB while they went", flush=True)
    check(grown <= GROWTH_MAX_KIB, f"receiving took {grown} KiB")
    check(grown_out <= GROWTH_MAX_KIB, f"delivering took {grown_out} KiB")
    check(len(sink.messages[1].data) >= MESSAGE_BYTES - 400_000, "the message is not whole")
    relay.stop()


if __name__ == "__main__":
    main(memory)
