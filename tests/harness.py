"""What every scenario stands on: real ringmail processes, scripted far sides, a real DNS server, network namespaces.

A scenario is a file `scenario_NAME.py` whose docstring tells its story and whose last line is `main(step, step, ...)`.
Each step is a function that takes the `Box`; a failed step is reported and the next ones still run. Everything a box
starts is ended when the scenario ends, by process id. Python's standard library only (3.11).

Exit status of a scenario: 0 passed, 1 failed, 77 skipped (the reason is printed).
"""

import asyncio
import atexit
import json
import os
import poplib
import pwd
import random
import re
import select
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 77


class Skip(Exception):
    """The scenario cannot run here; the text says what it would need."""


def binary():
    """The ringmail under test: $RINGMAIL_BIN, or the release build of this tree."""
    path = Path(os.environ.get("RINGMAIL_BIN") or ROOT / "target" / "release" / "ringmail")
    if not path.exists():
        raise Skip(f"no program at {path}: run `cargo build --release` first, or set RINGMAIL_BIN")
    return str(path)


def check(condition, message):
    """Assert with a message that tells what was expected and what was seen."""
    if not condition:
        raise AssertionError(message)


def check_equal(seen, expected, what):
    """Assert equality, showing both sides (long texts from their first difference on)."""
    if seen == expected:
        return
    if isinstance(seen, (bytes, str)) and isinstance(expected, (bytes, str)) and len(seen) + len(expected) > 600:
        common = len(os.path.commonprefix([seen, expected]))
        start = max(0, common - 40)
        raise AssertionError(f"{what}: differs at {common} of {len(seen)}: expected "
                             f"...{expected[start:common + 200]!r}, got ...{seen[start:common + 200]!r}")
    raise AssertionError(f"{what}: expected {expected!r}, got {seen!r}")


def wait_until(predicate, what, seconds=20.0, interval=0.02):
    """Wait for a condition with a bound; returns its first true value. `what` may be a function that makes the text."""
    deadline = time.monotonic() + seconds
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what() if callable(what) else what}")
        time.sleep(interval)


def need(*programs):
    """Skip the scenario when a program is missing."""
    missing = [p for p in programs if not find_program(p)]
    if missing:
        raise Skip("missing programs: " + " ".join(missing))


def find_program(name):
    """Full path of a program, also from the sbin folders that a plain user's PATH lacks."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


_ports_taken = set()


def free_port(address="127.0.0.1"):
    """A TCP and UDP port nobody uses, below the range from which the kernel takes ports for outgoing connections."""
    while True:
        port = random.randrange(10000, 32000)
        if port in _ports_taken:
            continue
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as probe:
                    probe.bind((address, port))
        except OSError:
            continue
        _ports_taken.add(port)
        return port


def run(command, *, input=None, timeout=60, ok=True, env=None, cwd=None, binary_output=False):
    """Run a command to its end and return the CompletedProcess; with `ok`, any other exit status than 0 is a failure."""
    command = [str(part) for part in command]
    if isinstance(input, str) and binary_output:
        input = input.encode()
    done = subprocess.run(
        command, input=input, stdin=None if input is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout,
        env={**os.environ, **(env or {})}, cwd=cwd, text=not binary_output,
        **({} if binary_output else {"errors": "replace"}),
    )
    if ok and done.returncode != 0:
        raise AssertionError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


# ---------------------------------------------------------------------------------------------------- the box


class Box:
    """One scenario's temporary folder and all that it started."""

    def __init__(self, name):
        self.name = name
        self.dir = Path(tempfile.mkdtemp(prefix=f"ringmail-{name}-"))
        os.chmod(self.dir, 0o755)
        self._cleanups = []
        self.relays = []
        atexit.register(self.close)

    def later(self, cleanup):
        """Register something to undo at the end (last in, first out)."""
        self._cleanups.append(cleanup)

    def close(self, keep=False):
        """Undo everything; `keep` leaves the folder for a look at what went wrong."""
        while self._cleanups:
            try:
                self._cleanups.pop()()
            except Exception as error:  # one failed clean-up must not prevent the others
                print(f"  clean-up: {error!r}", flush=True)
        if not keep:
            shutil.rmtree(self.dir, ignore_errors=True)

    def spawn(self, command, *, log=None, netns=None, cwd=None, env=None):
        """Start a process that ends with the box; its output goes to the file `log` in the box's folder."""
        command = in_netns(netns, [str(part) for part in command])
        out = open(self.dir / log, "ab") if log else subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                   cwd=cwd, env={**os.environ, **(env or {})})
        if log:
            out.close()
        self.later(lambda: end_process(process))
        return process

    def ringmail(self, name="ringmail", config=None, **options):
        """A ringmail with its own folder, ports and configuration; not yet started."""
        relay = Ringmail(self, name, config or {}, **options)
        self.relays.append(relay)
        return relay

    def sink(self, **options):
        """A scripted SMTP server in this process."""
        sink = Sink(**options)
        self.later(sink.close)
        return sink

    def dns(self, zones, **options):
        """A real DNS server (knot) that serves the given zones."""
        return Dns(self, zones, **options)


def end_process(process, signal_number=signal.SIGKILL):
    """End one process that we started, by its id, and reap it."""
    if process.poll() is None:
        process.send_signal(signal_number)
    process.wait(timeout=30)


def in_netns(netns, command):
    """The command as it runs in a network namespace."""
    return ["ip", "netns", "exec", netns, *command] if netns else command


# ---------------------------------------------------------------------------------------------------- ringmail


def toml(value):
    """One TOML value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return json.dumps(str(value))


def toml_document(tree):
    """A configuration: scalars, tables (dict) and arrays of tables (list of dict)."""
    lines = [f"{k} = {toml(v)}" for k, v in tree.items() if not isinstance(v, dict) and not is_tables(v)]
    for key, value in tree.items():
        if isinstance(value, dict):
            lines += ["", f"[{key}]"] + [f"{k} = {toml(v)}" for k, v in value.items()]
        elif is_tables(value):
            for table in value:
                lines += ["", f"[[{key}]]"] + [f"{k} = {toml(v)}" for k, v in table.items()]
    return "\n".join(lines) + "\n"


def is_tables(value):
    """An array of tables."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def merge(base, over):
    """`over` laid over `base`, table by table; a value of None removes the key."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


class Ringmail:
    """One ringmail: its configuration, its process, its log, its ports."""

    def __init__(self, box, name, config, *, address="127.0.0.1", smtp_port=None, pop3_port=None, admin_port=None,
                 netns=None, shards=2):
        self.box, self.name, self.address, self.netns = box, name, address, netns
        self.dir = box.dir / name
        self.dir.mkdir()
        self.smtp_port = smtp_port or free_port()
        self.pop3_port = pop3_port or free_port()
        self.admin_port = admin_port or free_port()
        self.config_file = self.dir / "ringmail.toml"
        self.log_file = self.dir / "log"
        self.data_dir = self.dir / "data"
        self.config = merge({
            "hostname": f"{name}.test",
            "data_dir": str(self.data_dir),
            "shards": shards,
            "smtp": [{"address": f"{address}:{self.smtp_port}", "auth_without_tls": True}],
            "pop3": [{"address": f"{address}:{self.pop3_port}", "auth_without_tls": True}],
            "admin": {"address": f"127.0.0.1:{self.admin_port}"},
            "spool": {"segment_size": "16 MiB", "free_space_min": "1 MiB"},
        }, config)
        self.process = None
        self.write_config()

    def write_config(self):
        """(Re)write the configuration file."""
        self.config_file.write_text(toml_document(self.config))

    def command(self, *arguments):
        """A ringmail command line with this configuration."""
        return in_netns(self.netns, [binary(), "--config", str(self.config_file), *arguments])

    def cli(self, *arguments, input=None, ok=True, timeout=60):
        """Run a ringmail command to its end."""
        return run(self.command(*arguments), input=input, ok=ok, timeout=timeout)

    def add_user(self, name, password):
        """`ringmail user add`."""
        return self.cli("user", "add", name, "--password-stdin", input=password + "\n")

    def start(self, ready=True, seconds=30):
        """Start `ringmail run` and wait for /readyz."""
        check(self.process is None or self.process.poll() is not None, f"{self.name} runs already")
        with open(self.log_file, "ab") as log:
            self.process = subprocess.Popen(self.command("run"), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            cwd=self.dir)
        process = self.process
        self.box.later(lambda: end_process(process))
        if ready:
            wait_until(self.is_ready, lambda: f"{self.name} to be ready; its log:\n{self.log_tail()}", seconds)
        return self

    def is_ready(self):
        """/readyz answers 200; a process that ended instead is a failure at once."""
        code = self.process.poll()
        if code is not None:
            raise AssertionError(f"{self.name} ended with {code} at start:\n{self.log_tail()}")
        if self.netns:
            return run(in_netns(self.netns, ["curl", "-s", "-f", "-m", "2", "-o", "/dev/null",
                                             f"http://127.0.0.1:{self.admin_port}/readyz"]), ok=False).returncode == 0
        try:
            return self.http("/readyz")[0] == 200
        except OSError:
            return False

    def http(self, path):
        """GET on the admin address: (status, text)."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self):
        """/metrics as {'name{labels}': value}."""
        status, text = self.http("/metrics")
        check_equal(status, 200, "status of /metrics")
        return parse_metrics(text)

    def stop(self, seconds=30, expected=0):
        """SIGTERM; the process must end by itself with status 0."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            end_process(self.process)
            raise AssertionError(f"{self.name} did not end within {seconds} s of SIGTERM:\n{self.log_tail()}")
        check_equal(code, expected, f"exit status of {self.name} after SIGTERM; its log:\n{self.log_tail()}\n")

    def kill(self):
        """SIGKILL, by process id."""
        end_process(self.process, signal.SIGKILL)

    def is_alive(self):
        """The process runs."""
        return self.process.poll() is None

    def log(self):
        """Everything it wrote so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def log_tail(self, lines=30):
        """The end of the log."""
        return "\n".join(self.log().splitlines()[-lines:])

    def events(self, kind=None, **fields):
        """Log lines of one kind as dicts, filtered by field values."""
        found = []
        for line in self.log().splitlines():
            event = parse_event(line)
            if event and (kind is None or event["event"] == kind) and \
                    all(event.get(key) == value for key, value in fields.items()):
                found.append(event)
        return found

    def wait_event(self, kind, seconds=20, **fields):
        """Wait for a log line and return it as a dict."""
        return wait_until(lambda: self.events(kind, **fields),
                          lambda: f"a log line `{kind}` with {fields}; the log:\n{self.log_tail()}", seconds)[0]

    def queue(self):
        """`ringmail queue list --json`, all of it."""
        return json.loads(self.cli("queue", "list", "--json", "--limit", "1000000").stdout)

    def wait_queue_empty(self, seconds=30):
        """Wait until nothing is queued."""
        wait_until(lambda: not self.queue(), lambda: f"the queue of {self.name} to become empty; log:\n{self.log_tail()}",
                   seconds, 0.2)

    def smtp(self, timeout=20):
        """A smtplib session."""
        return smtplib.SMTP(self.address, self.smtp_port, local_hostname="client.test", timeout=timeout)

    def raw(self, port=None, timeout=15):
        """A raw line-by-line session, greeting read."""
        return Wire(self.address, port or self.smtp_port, timeout)

    def pop3(self, user, password, timeout=20):
        """A logged-in poplib session."""
        box = poplib.POP3(self.address, self.pop3_port, timeout=timeout)
        box.user(user)
        box.pass_(password)
        return box

    def mailbox(self, user, password, delete=False):
        """All messages of a maildrop as bytes with CRLF line ends."""
        session = self.pop3(user, password)
        try:
            count = session.stat()[0]
            messages = [retrieve(session, n) for n in range(1, count + 1)]
            for n in range(1, count + 1):
                if delete:
                    session.dele(n)
        finally:
            session.quit()
        return messages

    def wait_mail(self, user, password, count, seconds=30):
        """Wait until a maildrop holds at least `count` messages, then return them."""
        def enough():
            messages = self.mailbox(user, password)
            return messages if len(messages) >= count else None
        return wait_until(enough, lambda: f"{count} messages for {user}; log:\n{self.log_tail()}", seconds, 0.2)


def retrieve(session, number):
    """RETR as the octets that the message has (POP3 stuffing undone by poplib)."""
    return b"".join(line + b"\r\n" for line in session.retr(number)[1])


def parse_event(line):
    """`2026-01-02T03:04:05.678Z accepted id=… from=<…> reply="…"` as a dict; None for other lines."""
    match = re.match(r"(\d{4}-\d\d-\d\dT[\d:.]+Z) ([a-z_-]+)((?: [a-z_]+=.*)?)$", line)
    if not match:
        return None
    event = {"time": match[1], "event": match[2]}
    for key, quoted, plain in re.findall(r' ([a-z_]+)=(?:"((?:[^"\\]|\\.)*)"|(\S*))', match[3]):
        event[key] = re.sub(r"\\(.)", r"\1", quoted) if quoted else plain
    return event


def parse_metrics(text):
    """Prometheus text format as {'name{labels}': float}; a line that is not in the format is a failure."""
    values = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        match = re.fullmatch(r'([a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^}]*\})?) (\S+)(?: \d+)?', line)
        check(match, f"not a line of the Prometheus text format: {line!r}")
        values[match[1]] = float(match[2])
    return values


# ---------------------------------------------------------------------------------------------------- raw clients


class Wire:
    """A TCP session of lines, for saying exactly what we mean."""

    def __init__(self, host, port, timeout=15, greeting=True):
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.greeting = self.reply() if greeting else None

    def send(self, data):
        """Send octets as they are."""
        self.socket.sendall(data.encode() if isinstance(data, str) else data)

    def line(self):
        """One line without its CRLF; None at the end of the connection."""
        while b"\r\n" not in self.buffer:
            try:
                chunk = self.socket.recv(65536)
            except ConnectionError:
                chunk = b""
            if not chunk:
                return None
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return line.decode(errors="replace")

    def reply(self):
        """One SMTP reply, its lines joined by newlines; '' when the connection ended."""
        lines = []
        while True:
            line = self.line()
            if line is None:
                return "\n".join(lines)
            lines.append(line)
            if len(line) < 4 or line[3] != "-":
                return "\n".join(lines)

    def ask(self, command):
        """Send one command line and read its reply."""
        self.send(command.encode() + b"\r\n" if isinstance(command, str) else command + b"\r\n")
        return self.reply()

    def ended(self):
        """True when the far side closes, whatever it still says before."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def replies(self, seconds=2.0):
        """Every complete reply line that arrives until silence of `seconds` or the end."""
        lines, deadline = [], time.monotonic() + seconds
        while True:
            while b"\r\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\r\n", 1)
                lines.append(line.decode(errors="replace"))
            wait = deadline - time.monotonic()
            if wait <= 0 or not select.select([self.socket], [], [], wait)[0]:
                return lines
            try:
                chunk = self.socket.recv(65536)
            except ConnectionError:
                return lines
            if not chunk:
                return lines
            self.buffer += chunk

    def close(self):
        """Close in good order."""
        self.socket.close()

    def reset(self):
        """Close by RST, as a crashed peer does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


# ---------------------------------------------------------------------------------------------------- the sink

DROP = object()  # script entry: close the connection instead of replying


class Received:
    """One message that the sink took: envelope, data (dot-stuffing undone), session number."""

    def __init__(self, mail, rcpts, data, session, helo):
        self.mail, self.rcpts, self.data, self.session, self.helo = mail, rcpts, data, session, helo

    @property
    def sender(self):
        """The reverse-path between the angle brackets."""
        return re.match(r"<([^>]*)>", self.mail)[1]

    @property
    def recipients(self):
        """The forward-paths between the angle brackets."""
        return [re.match(r"<([^>]*)>", rcpt)[1] for rcpt in self.rcpts]

    def header(self, name):
        """First header field of this name, as text; None without it."""
        head = re.sub(rb"\r\n[ \t]+", b" ", self.data.split(b"\r\n\r\n", 1)[0])
        match = re.search(rb"(?im)^" + name.encode() + rb":(.*)", head)
        return match[1].decode(errors="replace").strip() if match else None


class Sink:
    """An SMTP server in a thread of its own that keeps every message exactly and follows a script.

    `script` maps a stage (connect, ehlo, helo, mail, rcpt, data, end, quit) to a list of steps; each use takes the
    next one and the last one stays. A step is a reply text, DROP, a number (seconds to wait, then the usual
    reply), None (the usual reply), or a function of the argument that returns one of these.
    """

    def __init__(self, address="127.0.0.1", port=None, script=None, extensions=("PIPELINING", "8BITMIME", "SMTPUTF8",
                                                                              "SIZE 0", "ENHANCEDSTATUSCODES")):
        self.address, self.port = address, port or free_port(address)
        self.script = {stage: list(steps) for stage, steps in (script or {}).items()}
        self.extensions = list(extensions)
        self.messages, self.anomalies, self.sessions = [], [], 0
        self.open_now = self.open_max = 0
        self.loop = asyncio.new_event_loop()
        self.server = None
        started = threading.Event()
        self.thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self.thread.start()
        check(started.wait(10), "the sink did not start")

    def _serve(self, started):
        asyncio.set_event_loop(self.loop)

        async def begin():
            self.server = await asyncio.start_server(self._session, self.address, self.port, backlog=512)
            started.set()
        self.loop.run_until_complete(begin())
        self.loop.run_forever()

    def close(self):
        """Stop listening and forget every session."""
        if self.loop.is_running():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.thread.join(10)
        if self.server and not self.loop.is_closed():
            self.server.close()

    def wait(self, count, seconds=30):
        """Wait until at least `count` messages were taken; returns them all."""
        wait_until(lambda: len(self.messages) >= count,
                   lambda: f"{count} messages at the sink ({len(self.messages)} are there)", seconds)
        return list(self.messages)

    async def _step(self, stage, usual, argument, writer):
        """Take the script's next step for a stage; returns False when the connection must end."""
        steps = self.script.get(stage)
        step = None
        if steps:
            step = steps.pop(0) if len(steps) > 1 else steps[0]
        if callable(step):
            step = step(argument)
        if isinstance(step, (int, float)):
            await asyncio.sleep(step)
            step = None
        if step is DROP:
            return None
        reply = usual if step is None else step
        writer.write(reply.encode() + b"\r\n")
        await writer.drain()
        return reply

    async def _session(self, reader, writer):
        self.sessions += 1
        self.open_now += 1
        self.open_max = max(self.open_max, self.open_now)
        try:
            await self._talk(reader, writer, self.sessions)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open_now -= 1
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _talk(self, reader, writer, session):
        mail, rcpts, helo = None, [], None
        stream = Buffered(reader)
        if not await self._step("connect", "220 sink.test ESMTP", None, writer):
            return
        while True:
            line = await stream.line()
            if b"\n" in line[:-2] or b"\r" in line[:-2]:
                self.anomalies.append(("bare CR or LF in a command", line))
            text = line[:-2].decode("utf-8", "surrogateescape")
            verb, _, argument = text.partition(" ")
            verb = verb.upper()
            if verb in ("EHLO", "HELO", "LHLO"):
                helo, mail, rcpts = argument, None, []
                lines = ["sink.test"] + (self.extensions if verb != "HELO" else [])
                usual = "\r\n".join([f"250-{item}" for item in lines[:-1]] + [f"250 {lines[-1]}"])
                if await self._step(verb.lower(), usual, argument, writer) is None:
                    return
            elif verb == "MAIL":
                if mail is not None:
                    self.anomalies.append(("nested MAIL", line))
                reply = await self._step("mail", "250 2.1.0 Ok", argument, writer)
                if reply is None:
                    return
                if reply.startswith("2"):
                    mail, rcpts = argument.partition(":")[2].strip(), []
            elif verb == "RCPT" and mail is None:  # MAIL was refused, and the client had pipelined
                writer.write(b"503 5.5.1 MAIL first\r\n")
            elif verb == "RCPT":
                reply = await self._step("rcpt", "250 2.1.5 Ok", argument, writer)
                if reply is None:
                    return
                if reply.startswith("2"):
                    rcpts.append(argument.partition(":")[2].strip())
            elif verb == "DATA":
                if not rcpts:  # a pipelining client may say DATA although every recipient was refused
                    writer.write(b"554 5.5.1 No valid recipients\r\n")
                    continue
                reply = await self._step("data", "354 Go ahead", None, writer)
                if reply is None:
                    return
                if not reply.startswith("354"):
                    continue
                wire = await stream.data()
                if re.search(rb"\r(?!\n)|(?<!\r)\n", wire):
                    self.anomalies.append(("bare CR or LF in data", wire[:200]))
                if re.search(rb"(?:\A|\r\n)\.(?!\.)", wire):
                    self.anomalies.append(("a line that begins with a dot was not stuffed", wire[:200]))
                data = (b"\r\n" + wire).replace(b"\r\n.", b"\r\n")[2:]
                message = Received(mail, rcpts, data, session, helo)
                reply = await self._step("end", "250 2.0.0 Ok", message, writer)
                if reply is None:
                    return
                if reply.startswith("2"):
                    self.messages.append(message)
                mail, rcpts = None, []
            elif verb == "RSET":
                mail, rcpts = None, []
                writer.write(b"250 2.0.0 Ok\r\n")
            elif verb == "NOOP":
                writer.write(b"250 2.0.0 Ok\r\n")
            elif verb == "QUIT":
                await self._step("quit", "221 2.0.0 Bye", None, writer)
                return
            else:
                self.anomalies.append(("unknown command", line))
                writer.write(b"500 5.5.2 Unknown command\r\n")


class Buffered:
    """Lines and message data off an asyncio stream, however they are split."""

    def __init__(self, reader):
        self.reader, self.buffer = reader, b""

    async def _more(self):
        chunk = await self.reader.read(262144)
        if not chunk:
            raise ConnectionError("ended")
        self.buffer += chunk

    async def line(self):
        """One line with its CRLF."""
        while (end := self.buffer.find(b"\r\n")) < 0:
            await self._more()
        line, self.buffer = self.buffer[:end + 2], self.buffer[end + 2:]
        return line

    async def data(self):
        """Everything up to CRLF.CRLF and nothing else, as it travels (dots still doubled)."""
        self.buffer = b"\r\n" + self.buffer
        searched = 0
        while (end := self.buffer.find(b"\r\n.\r\n", searched)) < 0:
            searched = max(0, len(self.buffer) - 4)
            await self._more()
        content, self.buffer = self.buffer[2:end + 2], self.buffer[end + 5:]
        return content


# ---------------------------------------------------------------------------------------------------- DNS


class Dns:
    """knotd with zones given as text, on one address and port.

    `zones` maps an origin ("test.") to zone-file lines without SOA and NS, which are added. `also` names zones without a
    file: questions about them are answered with SERVFAIL.
    """

    def __init__(self, box, zones, address="127.0.0.1", port=None, netns=None, also=()):
        need("knotd", "kdig")
        self.box, self.address, self.port, self.netns = box, address, port or free_port(address), netns
        self.dir = box.dir / f"knot-{address}-{self.port}"
        (self.dir / "run").mkdir(parents=True)
        for origin, text in zones.items():
            self.write_zone(origin, text)
        zone_list = "\n".join(f"  - domain: {origin}" for origin in [*zones, *also])
        (self.dir / "knot.conf").write_text(f"""\
server:
  rundir: "{self.dir}/run"
  listen: {address}@{self.port}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
database:
  storage: "{self.dir}/run"
template:
  - id: default
    storage: "{self.dir}"
    file: "%s.zone"
    zonefile-load: whole
    journal-content: none
zone:
{zone_list}
""")
        self.process = box.spawn([find_program("knotd"), "-c", self.dir / "knot.conf"], log=f"{self.dir.name}.log",
                                 netns=netns)
        first = next(iter(zones))
        wait_until(lambda: self.answers(first), lambda: f"knotd to answer; its log:\n{box.dir / (self.dir.name + '.log')}", 15,
                   0.1)

    @property
    def server(self):
        """address:port as ringmail's `dns.servers` takes it."""
        return f"{self.address}:{self.port}"

    def write_zone(self, origin, text):
        """Write one zone file."""
        (self.dir / f"{origin.rstrip('.')}.zone").write_text(
            f"$ORIGIN {origin}\n$TTL 5\n@ SOA ns hostmaster 1 3600 600 86400 1\n@ NS ns\nns A 127.0.0.1\n{text}\n")

    def answers(self, origin):
        """The server serves the zone."""
        done = run(in_netns(self.netns, ["kdig", f"@{self.address}", "-p", str(self.port), "+short", "+retry=0",
                                         "+time=1", origin, "SOA"]), ok=False)
        return "hostmaster" in done.stdout


# ---------------------------------------------------------------------------------------------------- namespaces


class Network:
    """Network namespaces on one bridge, each with an address of 10.99.77.0/24; all removed at the end."""

    def __init__(self, box, hosts):
        self.prefix = f"rm{os.getpid() % 100000}"
        self.hosts = {}
        self.bridge_netns = f"{self.prefix}-net"
        box.later(self.close)
        self._ip("netns", "add", self.bridge_netns)
        self._ip("-n", self.bridge_netns, "link", "add", "br0", "type", "bridge")
        self._ip("-n", self.bridge_netns, "link", "set", "br0", "up")
        for index, (name, address) in enumerate(hosts.items()):
            netns = f"{self.prefix}-{name}"
            self._ip("netns", "add", netns)
            self.hosts[name] = netns
            self._ip("-n", self.bridge_netns, "link", "add", f"p{index}", "type", "veth", "peer", "name", "eth0",
                     "netns", netns)
            self._ip("-n", self.bridge_netns, "link", "set", f"p{index}", "master", "br0", "up")
            self._ip("-n", netns, "addr", "add", f"{address}/24", "dev", "eth0")
            self._ip("-n", netns, "link", "set", "eth0", "up")
            self._ip("-n", netns, "link", "set", "lo", "up")

    def __getitem__(self, name):
        return self.hosts[name]

    @staticmethod
    def _ip(*arguments):
        run(["ip", *arguments])

    def close(self):
        """Delete the namespaces, and with them their links."""
        for netns in [*self.hosts.values(), self.bridge_netns]:
            run(["ip", "netns", "del", netns], ok=False)

    @staticmethod
    def possible():
        """Whether this user may make namespaces here."""
        if os.geteuid() != 0 or not find_program("ip"):
            return False
        name = f"rmtry{os.getpid()}"
        made = run(["ip", "netns", "add", name], ok=False).returncode == 0
        if made:
            linked = run(["ip", "-n", name, "link", "add", "br0", "type", "bridge"], ok=False).returncode == 0
            run(["ip", "netns", "del", name], ok=False)
            return linked
        return False


# ---------------------------------------------------------------------------------------------------- messages


def make_message(sender="alice@client.test", recipient="bob@example.test", subject="hello", body="A line.\r\n",
                 extra=""):
    """A plain message with CRLF line ends."""
    return (f"From: {sender}\r\nTo: {recipient}\r\nSubject: {subject}\r\nDate: Mon, 02 Feb 2026 10:00:00 +0000\r\n"
            f"Message-ID: <{random.getrandbits(64):016x}@client.test>\r\n{extra}\r\n{body}").encode()


TRACE_FIELDS = (b"return-path", b"delivered-to", b"received")


def without_trace(message, added_only=True):
    """The message without the trace fields that hops put in front of it (from the top, up to the first other field)."""
    lines = message.split(b"\r\n")
    index = 0
    while index < len(lines):
        name = lines[index].split(b":", 1)[0].lower()
        if b":" not in lines[index] or name not in TRACE_FIELDS:
            break
        index += 1
        while index < len(lines) and lines[index][:1] in (b" ", b"\t"):
            index += 1
    return b"\r\n".join(lines[index:])


def received_chain(message):
    """The Received: fields of a message, unfolded, topmost (latest) first."""
    head = re.sub(rb"\r\n[ \t]+", b" ", message.split(b"\r\n\r\n", 1)[0])
    return [line[9:].strip().decode(errors="replace") for line in head.split(b"\r\n")
            if line.lower().startswith(b"received:")]


def queue_id_of(reply):
    """The queue ID in a 250 reply to end-of-data."""
    match = re.search(r"\b(?:as|id|queued(?: as)?)[ =:]*([0-9A-Za-z]{6,})\b", reply)
    check(match, f"no queue ID in the reply {reply!r}")
    return match[1]


def fetchmail(box, folder, server, port, user, password, netns=None):
    """Let fetchmail take every message of a maildrop, each into a file of its own (LF line ends)."""
    folder.mkdir()
    store = box.dir / "fetchmail-store"
    store.write_text(f'#!/bin/sh\nexec cat >"$(mktemp {folder}/XXXXXXXX)"\n')
    store.chmod(0o755)
    config = box.dir / "fetchmailrc"
    config.write_text(f"""\
set invisible
set idfile "{box.dir}/fetchids"
poll {server} service {port} protocol pop3 timeout 20
  user "{user}" password "{password}" is "{user}" here
  nokeep fetchall no rewrite sslproto "" mda "{store}"
""")
    config.chmod(0o600)
    run(in_netns(netns, ["fetchmail", "-f", config, "--pidfile", box.dir / "fetchmail.pid", "--nosyslog"]),
        env={"HOME": str(box.dir), "FETCHMAILHOME": str(box.dir)})


def owned_folder(path, owner=None):
    """Make a folder that everybody may enter, whatever the umask: servers go through it as users of their own."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o755)
    if owner:
        user = pwd.getpwnam(owner)
        os.chown(path, user.pw_uid, user.pw_gid)
    return path


def postfix_server(box, settings):
    """Postfix in a folder of the box's own, with these lines behind its main.cf: the port where it will listen."""
    need("postconf")
    home, port = box.dir / "postfix", free_port()
    for name, owner in (("", "root"), ("etc", "root"), ("queue", "root"), ("data", "postfix")):
        owned_folder(home / name, owner)
    (home / "etc" / "main.cf").write_text(f"""\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
mail_owner = postfix
setgid_group = postdrop
maillog_file = {home}/log
maillog_file_prefixes = {home}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
alias_maps =
alias_database =
{settings}""")
    services = "pickup cleanup qmgr tlsmgr rewrite:trivial-rewrite bounce defer:bounce trace:bounce verify flush " \
               "proxymap smtp showq error retry:error discard virtual anvil scache"
    limits = {"bounce": "0", "defer": "0", "trace": "0", "qmgr": "1", "pickup": "1", "tlsmgr": "1", "scache": "1",
              "anvil": "1", "flush": "0", "cleanup": "0", "verify": "1"}
    lines = [f"127.0.0.1:{port} inet n - n - - smtpd", "postlog unix-dgram n - n - 1 postlogd"]
    for service in services.split():
        name, _, command = service.partition(":")
        wake = {"pickup": "1", "qmgr": "300"}.get(name, "-")
        private = "n" if name in ("pickup", "cleanup", "qmgr", "flush", "showq") else "-"
        unprivileged = "n" if name == "virtual" else "-"  # it writes as the owner of each mailbox
        lines.append(f"{name} unix {private} {unprivileged} n {wake} {limits.get(name, '-')} {command or name}")
    (home / "etc" / "master.cf").write_text("\n".join(lines) + "\n")
    run(["postfix", "-c", home / "etc", "check"], ok=False)
    daemons = run(["postconf", "-dh", "daemon_directory"]).stdout.strip()
    box.spawn([f"{daemons}/master", "-c", home / "etc", "-d"], log="postfix.out")
    return port


# ---------------------------------------------------------------------------------------------------- the runner


def main(*steps):
    """Run a scenario's steps in order on one box, print a line for each, and exit."""
    name = Path(sys.argv[0]).stem.removeprefix("scenario_")
    box = Box(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `timeout` still cleans up
    failed, status = 0, 0
    try:
        for step in steps:
            title = (step.__doc__ or step.__name__).strip().splitlines()[0]
            begun = time.monotonic()
            try:
                step(box)
                print(f"  ok      {title} ({time.monotonic() - begun:.1f} s)", flush=True)
            except Skip:
                raise
            except Exception as error:
                failed += 1
                print(f"  FAILED  {title}\n{indent(describe(error))}", flush=True)
    except Skip as reason:
        print(f"  skipped: {reason}", flush=True)
        status = SKIPPED
    if failed:
        status = 1
        for relay in box.relays:
            print(f"  end of the log of {relay.name}:\n{indent(relay.log_tail(15))}", flush=True)
    keep = bool(failed and os.environ.get("KEEP"))
    if keep:
        print(f"  files kept in {box.dir}", flush=True)
    box.close(keep=keep)
    sys.stdout.flush()
    os._exit(status)  # sinks run in daemon threads


def describe(error):
    """An assertion by its message and place; anything else with its trace."""
    if isinstance(error, AssertionError) and error.args:
        place = [frame for frame in traceback.extract_tb(error.__traceback__) if "scenario_" in frame.filename]
        where = f" [{Path(place[-1].filename).name}:{place[-1].lineno}]" if place else ""
        return f"{error}{where}"
    return "".join(traceback.format_exception(error))


def indent(text):
    """Text moved right under its heading."""
    return "\n".join("          " + line for line in str(text).splitlines())
