"""The systemd unit is one that systemd takes, and its hardening is what systemd calls safe."""

from harness import *

UNIT = ROOT / "systemd" / "ringmail.service"


def verify(box):
    """systemd-analyze verify finds nothing to say"""
    need("systemd-analyze")
    text = UNIT.read_text()
    # The program is not installed at the unit's path here; everything else is as shipped.
    copy = box.dir / "ringmail.service"
    copy.write_text(re.sub(r"(?m)^(Exec\w+=[-@:+!]*)(\S+/)?ringmail\b", rf"\1{binary()}", text))
    done = run(["systemd-analyze", "verify", "--man=no", copy], ok=False)
    check_equal((done.returncode, done.stdout + done.stderr), (0, ""), "systemd-analyze verify")


def security(box):
    """systemd-analyze security rates its exposure under 2.0"""
    done = run(["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", UNIT], ok=False)
    overall = [line for line in done.stdout.splitlines() if "Overall exposure" in line]
    check_equal(done.returncode, 0, f"exit status of systemd-analyze security ({overall or done.stderr})")


def promises(box):
    """it promises what the documentation says: notify with watchdog, own account, folders, low ports by capability"""
    text = UNIT.read_text()
    for pattern in (r"^Type=notify", r"^WatchdogSec=", r"^(User=ringmail|DynamicUser=yes)", r"^StateDirectory=ringmail",
                    r"^RuntimeDirectory=ringmail", r"^AmbientCapabilities=CAP_NET_BIND_SERVICE$",
                    r"^CapabilityBoundingSet=CAP_NET_BIND_SERVICE$", r"^NoNewPrivileges=(yes|true)", r"^ProtectSystem=strict",
                    r"^Restart=(on-failure|always)"):
        check(re.search(pattern, text, re.M), f"no line {pattern} in {UNIT.name}")


def notifies(box):
    """the program tells the service manager READY=1, WATCHDOG=1 and STOPPING=1"""
    path = box.dir / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(20)
        relay = box.ringmail()
        with open(relay.log_file, "ab") as log:
            relay.process = subprocess.Popen(relay.command("run"), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             env={**os.environ, "NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"})
        box.later(lambda: end_process(relay.process))
        seen = ""
        while "READY=1" not in seen or "WATCHDOG=1" not in seen:
            seen += manager.recv(4096).decode() + "\n"
        relay.stop()
        manager.settimeout(1)
        try:
            while "STOPPING=1" not in seen:
                seen += manager.recv(4096).decode() + "\n"
        except TimeoutError:
            raise AssertionError(f"no STOPPING=1 in {seen!r}") from None


main(verify, security, promises, notifies)
