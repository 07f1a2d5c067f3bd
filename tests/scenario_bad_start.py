"""A start that cannot work says why, where and what to do, with a sysexits code, and touches nothing.

Unknown key, bad value, broken TOML, missing file, busy port, data folder that cannot be written, a second instance on
the same folder: each ends with 78 (configuration) or another 7x code within seconds, names file and line where there
is one, and gives a hint.
"""

from harness import *


def attempt(relay, *arguments, seconds=20):
    """Run a command that must end by itself; (status, output)."""
    done = run(relay.command(*(arguments or ("run",))), ok=False, timeout=seconds)
    return done.returncode, done.stdout + done.stderr


def refuses(box, name, text, line, *words):
    """A configuration text that `run` and `config check` refuse with 78, naming file:line and the words."""
    relay = box.ringmail(name)
    # The mistake is the only one: a listener is there, at the end, so that line numbers stay.
    listener = "" if "[[smtp]]" in text else f'[[smtp]]\naddress = "127.0.0.1:{relay.smtp_port}"\n'
    relay.config_file.write_text(text + listener)
    for command in (("run",), ("config", "check")):
        code, output = attempt(relay, *command)
        check_equal(code, 78, f"exit status of {command}: {output}\n")
        place = f"ringmail.toml:{line}" if line else "ringmail.toml"
        check(place in output, f"no {place} in: {output}")
        for word in words:
            check(word in output, f"no {word!r} in: {output}")
        check("hint" in output.lower() or "help" in output.lower(), f"no hint in: {output}")
    check(not relay.data_dir.exists(), "the data folder was made all the same")


def unknown_key(box):
    """an unknown key: file, line, and the name that was probably meant"""
    refuses(box, "key", 'hostname = "a.test"\nhostnam = "b.test"\n', 2, "hostnam")
    refuses(box, "nested", '[limits]\nrecipients_max = 5\nrecipient_max = 5\n', 3, "recipient_max", "recipients_max")


def bad_values(box):
    """bad values: file, line, what was found and what is expected"""
    refuses(box, "address", '[[smtp]]\naddress = "127.0.0.1"\n', 2)
    refuses(box, "duration", '[retry]\ndelay_min = "5 parsecs"\n', 2)
    refuses(box, "size", '[limits]\nmessage_size_max = "50 stone"\n', 2)
    refuses(box, "type", 'hostname = "a.test"\nshards = "many"\n', 2, "many")
    refuses(box, "network", '[relay]\ntrusted_networks = ["10.0.0.0/33"]\n', 2, "10.0.0.0/33")
    refuses(box, "hostname", 'hostname = "not a name"\n', 1, "not a name")
    refuses(box, "path", 'data_dir = ""\n', 1, "data_dir")
    refuses(box, "nul", '[mailboxes]\nusers_file = "a\\u0000b"\n', 2, "users_file")
    refuses(box, "port", '[[route]]\ndomain = "*"\nhost = "192.0.2.1"\nport = 0\n', 4, "port = 0")
    refuses(box, "text", '[[reply_rule]]\nclass = "x"\ntext = [""]\n', None, "text")
    refuses(box, "route", '[[route]]\ndomain = "*"\n', None, "route")


def broken_toml(box):
    """text that is no TOML: file and line"""
    refuses(box, "toml", 'hostname = "a.test"\nshards = = 2\n', 2)


def missing_file(box):
    """a configuration file that is not there"""
    relay = box.ringmail("missing")
    relay.config_file.unlink()
    code, output = attempt(relay)
    check(code in (66, 78), f"exit status {code}: {output}")
    check("ringmail.toml" in output, f"the file's name in: {output}")


def good_file(box):
    """`config check` of a good file says so with status 0"""
    relay = box.ringmail("good")
    code, output = attempt(relay, "config", "check")
    check_equal(code, 0, f"exit status: {output}\n")


def bad_command(box):
    """an unknown command or flag is a usage error"""
    relay = box.ringmail("usage")
    for arguments in (("fly",), ("run", "--sideways")):
        code, output = attempt(relay, *arguments)
        check(code in (2, 64), f"exit status of {arguments}: {code}")
        check(arguments[-1] in output, f"what was wrong in: {output}")


def busy_port(box):
    """each busy port is named, with a hint, status 7x"""
    for kind in ("smtp", "pop3", "admin"):
        with socket.socket() as busy:
            busy.bind(("127.0.0.1", 0))
            busy.listen()
            port = busy.getsockname()[1]
            relay = box.ringmail(f"busy-{kind}", {
                "smtp": {"smtp": [{"address": f"127.0.0.1:{port}"}]},
                "pop3": {"pop3": [{"address": f"127.0.0.1:{port}"}]},
                "admin": {"admin": {"address": f"127.0.0.1:{port}"}}}[kind])
            code, output = attempt(relay)
            check(64 <= code <= 78, f"exit status {code} with {kind} port busy: {output}")
            check(str(port) in output, f"port {port} in: {output}")
            check("in use" in output.lower(), f"'in use' in: {output}")


def unwritable_folder(box):
    """a data folder that cannot be made or written is named, status 7x"""
    blocked = box.dir / "blocked"
    blocked.write_text("a file where a folder should be")
    for folder in (blocked / "data", Path("/proc/ringmail-data")):
        relay = box.ringmail(f"folder{len(str(folder))}", {"data_dir": str(folder)})
        code, output = attempt(relay)
        check(64 <= code <= 78, f"exit status {code}: {output}")
        check(str(folder) in output, f"the folder's name in: {output}")


def little_memlock(box):
    """too little locked memory for io_uring is named, with what to do, status 71"""
    relay = box.ringmail("memlock")
    done = run(["prlimit", "--memlock=65536:65536", *relay.command("run")], ok=False, timeout=20)
    check_equal(done.returncode, 71, f"exit status: {done.stderr}\n")
    check("locked memory" in done.stderr and "LimitMEMLOCK" in done.stderr, f"cause and hint in: {done.stderr}")


def second_instance(box):
    """a second instance on the same data folder is refused, and the first goes on"""
    first = box.ringmail("first")
    first.add_user("alice", "pw")
    first.start()
    second = box.ringmail("second", {"data_dir": str(first.data_dir)})
    code, output = attempt(second)
    check(64 <= code <= 78, f"exit status {code}: {output}")
    check(str(first.data_dir) in output, f"the folder's name in: {output}")
    with first.smtp() as client:
        client.sendmail("a@b.test", ["alice@localhost"], make_message())
    first.wait_mail("alice", "pw", 1)
    first.stop()


def same_ports_again(box):
    """two instances with the same ports: the second is refused although listeners share ports between shards"""
    first = box.ringmail("ports-first")
    first.start()
    second = box.ringmail("ports-second", {"smtp": first.config["smtp"]})
    code, output = attempt(second)
    check(64 <= code <= 78, f"exit status {code}: {output}")
    check(str(first.smtp_port) in output, f"port {first.smtp_port} in: {output}")
    first.stop()


def users(box):
    """`user add` refuses bad names, empty passwords and a user who is there"""
    relay = box.ringmail("users")
    relay.add_user("alice", "pw")
    for name, password in (("alice", "pw"), ("../evil", "pw"), ("a/b", "pw"), ("", "pw"), (".", "pw"), ("..", "pw"),
                           ("a:b", "pw"), ("a b", "pw"), ("bob", "")):
        done = relay.cli("user", "add", name, "--password-stdin", input=password + "\n", ok=False)
        check(done.returncode != 0, f"user add {name!r} with password {password!r} succeeded")
        check(done.stderr.strip(), f"user add {name!r}: no message")
    file = relay.data_dir / "users"
    names = [line.split(":")[0] for line in file.read_text().splitlines() if line and not line.startswith("#")]
    check_equal(names, ["alice"], "names in the users file")
    check("$argon2id$" in file.read_text(), "argon2id in the users file")
    check_equal(file.stat().st_mode & 0o077, 0, "permissions of the users file for others")


def no_server(box):
    """`queue list` without a server says that none answers, status 7x (or 69)"""
    relay = box.ringmail("noserver")
    code, output = attempt(relay, "queue", "list")
    check(code in range(64, 79), f"exit status {code}: {output}")
    check(str(relay.admin_port) in output, f"the address asked in: {output}")


def version(box):
    """`version` prints name and version"""
    done = run([binary(), "version"], cwd=box.dir)
    check(re.search(r"ringmail \d+\.\d+\.\d+", done.stdout), f"output {done.stdout!r}")


def output_nowhere(box):
    """output that nobody reads ends a command quietly, output that cannot be written with 74"""
    relay = box.ringmail("output")
    command = subprocess.Popen(relay.command("config", "show"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    command.stdout.close()
    check_equal((command.stderr.read(), command.wait(timeout=30)), ("", 0), "stderr and status with a closed pipe")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(relay.command("config", "show"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=30)
    check_equal(done.returncode, 74, f"status with a full disk: {done.stderr}")
    check("No space left" in done.stderr and "panic" not in done.stderr, done.stderr)


main(unknown_key, bad_values, broken_toml, missing_file, good_file, bad_command, busy_port, unwritable_folder, little_memlock,
     second_instance, same_ports_again, users, no_server, version, output_nowhere)
