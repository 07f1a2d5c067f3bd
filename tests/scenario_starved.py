"""What happens when the surroundings fail a running server: nobody reads its log, or it has no descriptors left.

Mail never waits for the log, and neither does the end of the program. Without descriptors the sessions that are there go on,
new connections wait for one, and nobody spins.
"""

import fcntl
import resource

from harness import *


def submit(relay, count):
    """So many messages over one session, each answered with 250."""
    with relay.smtp() as client:
        for _ in range(count):
            client.sendmail("alice@client.test", ["x@dest.test"], make_message())


def start_with_pipe(box, name):
    """A server whose log goes into a pipe, and the end to read from."""
    relay = box.ringmail(name, {"route": [{"domain": "*", "host": "127.0.0.1", "port": free_port()}]})
    relay.write_config()
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    relay.process = subprocess.Popen(relay.command("run"), stdin=subprocess.DEVNULL, stdout=writing, stderr=writing)
    os.close(writing)
    wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", relay.smtp_port)) == 0, "the listener")
    return relay, reading


def log_closed(box):
    """the reader of the log has gone: mail is taken, lost lines are counted, SIGTERM ends it with status 0"""
    relay, reading = start_with_pipe(box, "closed")
    os.close(reading)
    submit(relay, 300)
    wait_until(lambda: relay.metrics()["ringmail_log_events_dropped_total"] >= 300, "the metric to count lost lines")
    relay.process.terminate()
    check_equal(relay.process.wait(timeout=60), 0, "exit status")


def log_stalled(box):
    """nobody reads the log's pipe: mail is taken, and SIGTERM ends it all the same"""
    relay, reading = start_with_pipe(box, "stalled")
    submit(relay, 300)
    relay.process.terminate()
    check_equal(relay.process.wait(timeout=60), 0, "exit status")
    os.close(reading)


def few_descriptors(box):
    """without descriptors for more, sessions go on, mail is stored, nothing spins, and waiting clients are served later"""
    relay = box.ringmail("few", {"route": [{"domain": "*", "host": "127.0.0.1", "port": free_port()}]})
    relay.start()
    folder = f"/proc/{relay.process.pid}/fd"
    session = relay.raw()
    spare = 12
    _, hard = resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, (len(os.listdir(folder)) + spare, hard))
    waiting = [socket.create_connection(("127.0.0.1", relay.smtp_port), timeout=60) for _ in range(3 * spare)]
    relay.wait_event("warn", module="ringmail::rt::net")
    before, lines = cpu_seconds(relay.process.pid), len(relay.events("warn"))
    time.sleep(2)
    spent, lines = cpu_seconds(relay.process.pid) - before, len(relay.events("warn")) - lines
    check(spent < 1, f"{spent} s of CPU in two seconds of waiting")
    check(lines < 200, f"{lines} lines in two seconds of waiting")
    session.ask("EHLO client.test")
    for command, code in (("MAIL FROM:<a@b.test>", "250"), ("RCPT TO:<c@d.test>", "250"), ("DATA", "354"),
                          ("Subject: x\r\n\r\nx\r\n.", "250 2.0.0")):
        reply = session.ask(command)
        check(reply.startswith(code), f"{command!r} without descriptors: {reply}")
    resource.prlimit(relay.process.pid, resource.RLIMIT_NOFILE, (hard, hard))
    for client in waiting:
        check(client.recv(3) == b"220", "a waiting client is greeted")
        client.close()
    relay.stop()


def cpu_seconds(pid):
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main(log_closed, log_stalled, few_descriptors)
