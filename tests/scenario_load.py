"""Load: the load tool and the comparison do what they say, in short.

Rates are printed, never judged: other work may share the machine.
"""

from harness import *

LOAD = Path(os.environ.get("RINGMAIL_LOAD_BIN") or ROOT / "target" / "release" / "ringmail-load")


def load(*arguments, ok=True, timeout=120):
    """Run ringmail-load to its end; its JSON where it prints some."""
    if not LOAD.exists():
        raise Skip(f"no program at {LOAD}: run `cargo build --release --workspace` first")
    done = run([LOAD, *arguments], timeout=timeout, ok=ok)
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout


class Far:
    """A sink that runs beside the test."""

    def __init__(self, box, *arguments):
        if not LOAD.exists():
            raise Skip(f"no program at {LOAD}: run `cargo build --release --workspace` first")
        self.out = box.dir / f"sink-{free_port()}.json"
        with open(self.out, "w") as out:
            self.process = subprocess.Popen([str(LOAD), "sink", *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=out,
                                            stderr=subprocess.PIPE, text=True)
        box.later(lambda: end_process(self.process))
        line = self.process.stderr.readline()
        check("listening" in line, f"the sink says {line!r}")

    def report(self, seconds=60):
        """Its report, once it has ended."""
        self.process.wait(seconds)
        return json.loads(self.out.read_text())


def certificate(box):
    """A certificate that signs itself."""
    need("openssl")
    run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj",
         "/CN=sink.example", "-keyout", box.dir / "key.pem", "-out", box.dir / "cert.pem"])
    return box.dir / "cert.pem", box.dir / "key.pem"


def straight_into_the_sink(box):
    """source and sink alone: sizes, recipients, chunks, TLS; what is damaged or comes twice is found"""
    port, (cert, key) = free_port(), certificate(box)
    domains = box.dir / "domains.txt"
    domains.write_text("a.test\nb.test\n")
    for options, length in ([["--bdat"], "1k:1,100k:1"], [["--tls"], "4k"], [["--no-pipelining"], "1"], [["--rate", "400"], "2k"]):
        sink = Far(box, f"127.0.0.1:{port}", "--messages", 400, "--verify", "--tls", "--tls-certificate", cert, "--tls-key", key)
        sent = load("source", f"127.0.0.1:{port}", "--messages", 200, "--sessions", 7, "--per-connection", 9, "--recipients", 2,
                    "--domains", domains, "--length", length, *options)
        got = sink.report()
        check_equal((sent["accepted"], sent["recipients"], sent["lost"]), (200, 400, 0), f"sent with {options}")
        check_equal((got["different"], got["repeated"], got["damaged"], got["missing"]), (400, 0, 0, 0), f"got with {options}")
        check_equal(got["sites"]["default"]["tls"] > 0, "--tls" in options, "TLS was used")
    sink = Far(box, f"127.0.0.1:{port}", "--idle-seconds", 2, "--verify")
    with smtplib.SMTP("127.0.0.1", port, timeout=20) as client:
        stamp = "X-Load: 00000001-0000000000000001-0000000000000001-00000000\r\n"
        for _ in range(2):
            client.sendmail("a@a.test", ["b@b.test"], stamp + "Subject: not what was sent\r\n\r\nx\r\n")
    got = sink.report()
    check_equal((got["different"], got["repeated"], got["damaged"]), (1, 1, 2), "a repeated, damaged message")
    check_equal(sink.process.returncode, 1, "exit status of the sink")


def ways_to_send(box):
    """a login over TLS, files, a run by the clock, and a stall that an open loop must not hide"""
    cert, key = certificate(box)
    relay = box.ringmail("logins", config={"mailboxes": {"local_domains": ["home.test"]},
                                           "tls": {"certificate": str(cert), "key": str(key)}})
    relay.add_user("joe", "secret")
    relay.start()
    to_joe = ["source", f"127.0.0.1:{relay.smtp_port}", "--to", "joe@home.test", "--sessions", 2, "--messages", 6, "--tls", "--auth"]
    check_equal(load(*to_joe, "joe:secret")["accepted"], 6, "sent with a login")
    wait_until(lambda: len(relay.events("accepted", login="joe")) == 6, "six messages of joe's in the log")
    refused = load(*to_joe, "joe:wrong", ok=False)
    check_equal(refused["accepted"], 0, "sent with a wrong password")
    check("535" in refused["trouble"], f"the source says why: {refused['trouble']}")

    folder = box.dir / "eml"
    folder.mkdir()
    texts = [b"Subject: dots\n\n.\n..two\nlast line\n", b"Subject: without an end\r\n\r\nno line end"]
    for number, text in enumerate(texts):
        (folder / f"{number}.eml").write_bytes(text)
    far = box.sink()
    load("source", f"127.0.0.1:{far.port}", "--eml", folder, "--messages", 20, "--sessions", 2)
    # Message-ID and the stamp come first.
    got = {received.data.split(b"\r\n", 2)[2] for received in far.wait(20)}
    wanted = {b"\r\n".join(text.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")) + b"\r\n" for text in texts}
    check_equal(got, wanted, "files that arrived")

    port = free_port()
    sink = Far(box, f"127.0.0.1:{port}", "--idle-seconds", 3)
    sent = load("source", f"127.0.0.1:{port}", "--seconds", 2, "--sessions", 3)
    check(sent["seconds"] > 1.9 and sent["accepted"] > 0 and sent["lost"] == 0, f"two seconds: {sent}")
    check_equal(sink.report()["different"], sent["accepted"], "what came of it")

    # One session that is answered 0.3 s late and has a message every 0.05 s falls behind by 2.25 s with the tenth.
    sink = Far(box, f"127.0.0.1:{port}", "--messages", 10, "--data-delay-ms", 300)
    sent = load("source", f"127.0.0.1:{port}", "--messages", 10, "--rate", 20, "--sessions", 1)
    check(sent["whole_ms"]["max"] > 2500, f"from when it was due to its reply: {sent['whole_ms']}")
    check(sent["whole_ms"]["p50"] > 2 * 300, f"half of them waited longer than their replies took: {sent['whole_ms']}")
    check(sink.report()["end_to_end_ms"]["max"] > 2200, "the stamp says when a message was due")


def a_small_internet(box):
    """a world of sites that defer, reject, throttle and limit: everything ends as delivered or bounced"""
    need("swaks")
    dns, port, folder = free_port(), 12525, box.dir / "world"
    # A part of 127/8 of its own, so that two such tests do not meet.
    network = f"127.{random.randrange(64, 120)}.{random.randrange(256)}.1"
    kinds = box.dir / "kinds.toml"
    kinds.write_text("".join(f'[[kind]]\nname = "{name}"\nshare = 1\n{more}\n' for name, more in [
        ("accept", ""), ("defer", "behaviour = { defer_share = 0.3 }"), ("reject", "behaviour = { reject_share = 0.2 }"),
        ("throttle", "behaviour = { rate_max = 50.0, throttle_code = 421, connections_max = 2 }"), ("address", 'dns = "address"'),
        ("gone", 'dns = "nxdomain"'), ("none", 'dns = "null_mx"')]))
    load("world", "write", folder, "--domains", 40, "--sites", 14, "--network", network, "--port", port, "--kinds", kinds,
         "--dns", f"127.0.0.1:{dns}", "--seed", 5)
    box.spawn([LOAD, "world", "serve", folder, "--listen", f"127.0.0.1:{dns}"], log="dns.log")
    sink = Far(box, "--config", folder / "sink.toml", "--idle-seconds", 60, "--verify")
    relay = box.ringmail(config={
        "delivery": {"port": port, "allow_private_targets": True}, "retry": {"delay_min": "1s", "delay_max": "2s"},
        "dns": {"servers": [f"127.0.0.1:{dns}"]}, "spool": {"segment_size": "64 MiB", "free_space_min": "1 MiB"}})
    relay.start()
    sent = load("source", f"127.0.0.1:{relay.smtp_port}", "--messages", 300, "--sessions", 10, "--domains", folder / "domains.txt",
                "--recipients", "1:3,4:1", "--from", "")
    check_equal((sent["accepted"], sent["recipients_refused"]), (300, 0), "accepted")
    relay.wait_queue_empty(90)
    names = [f"ringmail_recipients_{name}_total" for name in ("delivered", "bounced", "expired")]
    # Counters are shown once a second.
    wait_until(lambda: sum(relay.metrics()[name] for name in names) == sent["recipients"],
               lambda: f"{sent['recipients']} recipients to end: {[relay.metrics()[name] for name in names]}")
    delivered, bounced, _ = (relay.metrics()[name] for name in names)
    check(delivered > 0 and bounced > 0, f"both ends are reached: {delivered} delivered, {bounced} bounced")
    relay.stop()
    sink.process.send_signal(signal.SIGTERM)
    got = sink.report()
    check_equal((got["different"], got["repeated"], got["damaged"]), (delivered, 0, 0), "at the sites")


def the_comparison(box):
    """one short round of ringmail and the bare limit by the comparison's own way, with its table and its page"""
    out = box.dir / "compare"
    box.dir.chmod(0o755)
    done = run([ROOT / "loadtest" / "compare", "--mta", "ringmail,limit", "--rounds", 1, "--messages", 3000, "--warmup", 200, "--loads",
                "reused,single", "--out", out, "--ringmail", binary(), "--load", LOAD], timeout=120)
    result = json.loads((out / "result.json").read_text())
    check_equal(result["troubles"], [], "troubles")
    check_equal([(run["load"], run["mta"]) for run in result["runs"]],
                [(load, mta) for load in ("reused", "single") for mta in ("ringmail", "limit")], "runs")
    for one in result["runs"]:
        check(one["cpu_ms_per_message"] > 0 and one["memory_peak_mb"] > 1, f"figures of {one['load']}: {one}")
    page = (out / "report.html").read_text()
    check(page.count("<svg") >= 8 and "<script" not in page and "http" not in page, "the page stands alone")
    check("reused" in json.loads((out / "summary.json").read_text())["medians"], "medians as JSON")
    for line in done.stdout.splitlines():
        if line.startswith("round"):
            print(f"  note: {line}", flush=True)


main(straight_into_the_sink, ways_to_send, a_small_internet, the_comparison)
