"""The README stays true: what it says to type is typed, and what it says appears must appear.

Its `console` blocks are read; a line that starts with "$ " is a command, the lines under it are its output. Commands
run as written in a folder that looks like the tree, with the release binary in place of the build; `cargo run
--release` is the server on its embedded default. Queue IDs, times and ports of clients may differ. As root it all
happens in a network namespace, so that the default's ports are free; otherwise they must be.
"""

from harness import *


def commands():
    """[(command, expected output lines)] of all console blocks of the README."""
    found = []
    for block in re.findall(r"(?ms)^```console\n(.*?)^```", (ROOT / "README.md").read_text()):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def normal(line):
    """A line without what differs from run to run."""
    line = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", line.rstrip())
    line = re.sub(r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d+ \w{3} \d{4} [\d:]+ [+-]\d{4}", "DATE", line)
    line = re.sub(r"\b(?=[0-9A-Z]*\d)[0-9A-Z]{12,13}\b", "ID", line)
    line = re.sub(r"\bby \S+|\bhostname=\S+", "HOST", line)
    line = re.sub(r", alice@\S+", ", alice@HOST", line)
    line = re.sub(r"host=\S+", "host=HOST", line)
    return re.sub(r"\b(delay|client|batch|size|pid|shards|took)=\S+", r"\1=N", line)


def start(box):
    """`cargo run --release` starts the server on its embedded default"""
    box.tree = box.dir / "tree"
    (box.tree / "target" / "release").mkdir(parents=True)
    (box.tree / "target" / "release" / "ringmail").symlink_to(binary())
    shims = box.dir / "bin"
    shims.mkdir()
    (shims / "cargo").write_text("#!/bin/sh\n[ \"$1 $2\" = 'run --release' ] || exit 99\nshift 2\n"
                                 "[ \"$1\" = -- ] && shift\nexec target/release/ringmail \"$@\"\n")
    (shims / "cargo").chmod(0o755)
    box.path = f"{shims}:{os.environ['PATH']}"
    box.netns = None
    if Network.possible():
        box.net = Network(box, {"readme": "10.99.78.1"})
        box.netns = box.net["readme"]
    else:
        for port in (2525, 2110, 2580):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    raise Skip(f"port {port} of the embedded default is in use on this machine")
    check("cargo run --release" in [command for command, _ in commands()], "the README runs `cargo run --release`")
    box.server = box.spawn(["cargo", "run", "--release"], log="server.log", cwd=box.tree, netns=box.netns,
                           env={"PATH": box.path})
    wait_until(lambda: shell(box, "curl -sf -m 2 http://127.0.0.1:2580/readyz").returncode == 0,
               lambda: f"the server; its log:\n{server_log(box)}", 20, 0.2)


def shell(box, command):
    """A command line as a reader of the README types it."""
    return run(in_netns(box.netns, ["bash", "-c", command]), cwd=box.tree, env={"PATH": box.path}, ok=False)


def server_log(box):
    """What the first terminal shows."""
    return (box.dir / "server.log").read_text(errors="replace")


def typed(box):
    """each command succeeds and shows what the README shows"""
    count = 0
    for command, expected in commands():
        if command.startswith(("cargo run --release", "tests/run")):
            continue
        time.sleep(0.5)  # a reader needs longer to type
        done = shell(box, command)
        check_equal(done.returncode, 0, f"exit status of `{command}` ({done.stdout}{done.stderr})")
        seen = [normal(line) for line in (done.stdout + done.stderr).splitlines()]
        check_equal(seen, [normal(line) for line in expected], f"output of `{command}`")
        count += 1
    check(count >= 4, f"only {count} commands in the README")


def shown_by_the_server(box):
    """what the README shows of the first terminal is there"""
    log = [normal(line) for line in server_log(box).splitlines()]
    for command, expected in commands():
        if command.startswith("cargo run --release"):
            for line in expected:
                check(normal(line) in log, f"no line {normal(line)!r} among\n" + "\n".join(log))


def stop(box):
    """Ctrl-C ends it with status 0"""
    box.server.send_signal(signal.SIGINT)
    check_equal(box.server.wait(20), 0, "exit status after SIGINT")


main(start, typed, shown_by_the_server, stop)
