"""The whole story, every hop on its own machine (a network namespace), everything on its real port.

carol's client submits to her provider's ringmail with AUTH (port 587). The provider does not know dest.test, so it asks
a real DNS server, whose MX leads to the filter: a ringmail that takes mail for dest.test from anybody and passes it on
by a fixed route. The destination's ringmail stores it for dave. dave's fetchmail takes it over POP3 (port 110), and it
is gone from the server. The Received: chain shows every hop in order, with the queue IDs that the logs show.
"""

from harness import *

ADDRESSES = {"client": "10.99.77.10", "provider": "10.99.77.20", "dns": "10.99.77.53", "filter": "10.99.77.30",
             "dest": "10.99.77.40", "reader": "10.99.77.50", "stranger": "10.99.77.66"}
ZONES = {
    "dest.test.": f"@ MX 10 mx.filter.test.\nmail A {ADDRESSES['dest']}",
    "filter.test.": f"mx A {ADDRESSES['filter']}",
    "provider.test.": f"@ MX 10 mail\nmail A {ADDRESSES['provider']}",
}


def build(box):
    """build the network, the DNS server and three ringmails"""
    if not Network.possible():
        raise Skip("needs root and the right to make network namespaces (ip netns add)")
    need("swaks", "fetchmail", "curl", "knotd")
    box.net = Network(box, ADDRESSES)
    box.dns_server = box.dns(ZONES, address=ADDRESSES["dns"], port=53, netns=box.net["dns"])

    def machine(name, hostname, config, smtp, pop3=()):
        address = ADDRESSES[name]
        return box.ringmail(name, {
            "hostname": hostname, "dns": {"servers": [f"{ADDRESSES['dns']}:53"]},
            # 10.0.0.0/8 stands for the Internet here.
            "delivery": {"port": 25, "allow_private_targets": True, "idle_timeout": "1s"},
            "smtp": [{"address": f"{address}:{port}", **options} for port, options in smtp.items()],
            "pop3": [{"address": f"{address}:{port}", "auth_without_tls": True} for port in pop3] or None,
            **config}, netns=box.net[name], address=address, smtp_port=25, pop3_port=110, admin_port=2580, shards=1)

    box.provider = machine("provider", "mail.provider.test", {"relay": {"trusted_networks": []},
                                                              "mailboxes": {"local_domains": ["provider.test"]}},
                           {25: {}, 587: {"auth_without_tls": True, "auth_required": True}}, pop3=[110])
    box.filter = machine("filter", "mx.filter.test", {
        "relay": {"trusted_networks": [], "relay_domains": ["dest.test"]},
        "mailboxes": {"local_domains": ["filter.test"]},
        "route": [{"domain": "dest.test", "host": "mail.dest.test", "port": 25}]}, {25: {}})
    box.dest = machine("dest", "mail.dest.test", {
        "relay": {"trusted_networks": []}, "mailboxes": {"local_domains": ["dest.test"]}}, {25: {}}, pop3=[110])
    box.provider.add_user("carol", "sesame")
    box.dest.add_user("dave", "open door")
    for relay in (box.provider, box.filter, box.dest):
        relay.start()


def submit(box, *, port=587, login=True, server="provider", sender="carol@provider.test", to="dave@dest.test",
           data=None, source="client"):
    """Run swaks on the client's machine."""
    auth = ["--auth", "PLAIN", "--auth-user", "carol", "--auth-password", "sesame"] if login else []
    content = ["--data", f"@{data}"] if data else []
    return run(in_netns(box.net[source], ["swaks", "--server", ADDRESSES[server], "--port", str(port), "--helo",
                                          "laptop.test", "--from", sender, "--to", to, *auth, *content]), ok=False)


def story(box):
    """carol's message reaches dave's client and is gone from the server"""
    content = make_message("carol@provider.test", "dave@dest.test", "the whole way",
                           ".dots\r\n" + "text \u00e4\u00f6\u00fc\r\n" * 50)
    path = box.dir / "message.eml"
    path.write_bytes(content)
    done = submit(box, data=path)
    check_equal(done.returncode, 0, f"exit status of swaks:\n{done.stdout}{done.stderr}\n")
    first = box.provider.wait_event("accepted")
    second = box.filter.wait_event("accepted")
    third = box.dest.wait_event("accepted")
    box.dest.wait_event("delivered", id=third["id"])
    check_equal(first.get("login"), "carol", "login at the provider")
    check("mx.filter.test" in box.provider.wait_event("delivered", id=first["id"])["host"], "the provider's next hop")
    check("mail.dest.test" in box.filter.wait_event("delivered", id=second["id"])["host"], "the filter's next hop")
    fetchmail(box, box.dir / "inbox", ADDRESSES["dest"], 110, "dave", "open door", netns=box.net["reader"])
    files = list((box.dir / "inbox").iterdir())
    check_equal(len(files), 1, "messages that fetchmail took")
    got = files[0].read_bytes().replace(b"\n", b"\r\n")
    check_equal(without_trace(got), content + b"\r\n", "the message (swaks ends it with an empty line)")
    chain = received_chain(got)
    check_equal(len(chain), 3, f"hops in the Received: chain {chain}")
    expected = [("mail.dest.test", third["id"], ADDRESSES["filter"]), ("mx.filter.test", second["id"],
                ADDRESSES["provider"]), ("mail.provider.test", first["id"], ADDRESSES["client"])]
    for line, (host, queue_id, came_from) in zip(chain, expected):
        for word in (f"by {host}", queue_id, came_from):
            check(word in line, f"{word!r} in {line!r}")
    check("ESMTPA" in chain[2], f"authenticated submission in {chain[2]!r}")
    check(got.startswith(b"Return-Path: <carol@provider.test>\r\n"), f"Return-Path on top: {got[:60]!r}")
    print("  note: " + " <- ".join(re.search(r"by (\S+)", line)[1] for line in chain), flush=True)
    listing = run(in_netns(box.net["reader"], ["curl", "-sS", "--user", "dave:open door",
                                               f"pop3://{ADDRESSES['dest']}/"])).stdout
    check_equal(listing.strip(), "", "what the server still holds")


def refused(box):
    """no AUTH, no submission; strangers relay neither through the provider nor through the filter"""
    done = submit(box, login=False)
    check("530 5.7.0" in done.stdout, f"submission without AUTH:\n{done.stdout}")
    for server in ("provider", "filter", "dest"):
        done = submit(box, server=server, port=25, login=False, to="victim@elsewhere.test", source="stranger")
        check(re.search(r"<\*\* +55[0-9] 5\.7\.1", done.stdout), f"a stranger relays through {server}:\n{done.stdout}")
    done = submit(box, server="dest", port=25, login=False, to="nobody@dest.test", source="stranger")
    check("550 5.1.1" in done.stdout, f"an unknown user at the destination:\n{done.stdout}")


def bounce_comes_back(box):
    """mail for an unknown user comes back to carol as a DSN, through the filter, by DNS"""
    done = submit(box, to="nobody@dest.test")
    check_equal(done.returncode, 0, f"exit status of swaks:\n{done.stdout}")
    bounced = box.filter.wait_event("bounced")
    check("550 5.1.1" in bounced["reply"], f"the destination's reply: {bounced['reply']}")
    fetched = box.dir / "carol"
    box.provider.wait_event("delivered", to="<carol@provider.test>")
    fetchmail(box, fetched, ADDRESSES["provider"], 110, "carol", "sesame", netns=box.net["client"])
    reports = [p.read_text(errors="replace") for p in fetched.iterdir()]
    check_equal(len(reports), 1, "DSNs")
    check("Action: failed" in reports[0] and "5.1.1" in reports[0], f"the DSN:\n{reports[0]}")


def a_hop_is_down(box):
    """the destination is down: the filter keeps the mail, and it arrives when the destination is back"""
    box.filter.stop()
    box.filter.config["retry"] = {"delay_min": "1s", "delay_max": "2s"}
    box.filter.write_config()
    box.filter.start()
    box.dest.stop()
    done = submit(box)
    check_equal(done.returncode, 0, f"exit status of swaks:\n{done.stdout}")
    box.filter.wait_event("deferred")
    box.dest.start()
    wait_until(lambda: len(box.dest.events("accepted")) == 2, lambda: f"the message; log:\n{box.filter.log_tail()}")


def stop(box):
    """SIGTERM ends all three with status 0"""
    for relay in (box.provider, box.filter, box.dest):
        relay.stop()


main(build, story, refused, bounce_comes_back, a_hop_is_down, stop)
