"""One case of tests/field/, in the namespaces that .ci/field made for it.

    field.py BINARY tests/field/NAME.py

A case gets a Place. It starts relays and runs the binary's commands in it, keeps a ledger of what was answered
`stored`, and mounts what it likes: all of it is gone when the case ends.
"""
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from running import Failed, Running, check

STEP_SECS = 30
MAILBOX = "5af025d33b141c9dbe95aaaeaa62d60819294aa443dec41daba5a15fce7c571c"


def eventually(what, condition, seconds=STEP_SECS):
    """Waits until `condition()` is true, and gives back what it gave."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"not within {seconds} s: {what}")
        time.sleep(0.05)


class Place:
    """A folder for one case, with a binary to run in it."""

    def __init__(self, binary, folder):
        self.binary = Path(binary)
        self.folder = Path(folder)
        self.relays = []

    def environment(self, **more):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        for name in ("RUST_LOG", "XDG_STATE_HOME"):
            kept.pop(name, None)
        # Commands keep what they know of relays in the home folder.
        return kept | {"NO_PROXY": "*", "HOME": str(self.folder)} | more

    def run(self, *command, code=0, **options):
        """Runs a command that has to end with this code (None: any); what it ended with and printed."""
        options = {"cwd": self.folder, "env": self.environment(), "stdin": subprocess.DEVNULL, "timeout": STEP_SECS,
                   "text": True, "errors": "replace", "capture_output": True} | options
        ended = subprocess.run([str(part) for part in command], check=False, **options)
        if code is not None and ended.returncode != code:
            raise Failed(f"exit {ended.returncode} instead of {code}: {command}\n{ended.stdout}\n{ended.stderr}")
        return ended

    def relay(self, data="data", prefix=(), port=8080, **settings):
        """A relay, not yet started, with its data in this folder. `prefix` is put before its command line."""
        relay = Relay(self, data, prefix, port, settings)
        self.relays.append(relay)
        return relay

    def loop_disk(self, name, mebibytes, make=("mkfs.ext4", "-q", "-F"), options="loop"):
        """A file system of this size in a file, mounted; the folder that it is mounted at."""
        image, mount = self.folder / f"{name}.img", self.folder / name
        with image.open("wb") as file:
            file.truncate(mebibytes << 20)
        self.run(*make, image)
        mount.mkdir()
        self.run("mount", "-o", options, image, mount)
        return mount

    def network(self, name, address, host_address):
        """A network namespace, named `name`, joined to this one by a cable: IPv4 or IPv6 addresses with a prefix length.
        Run something in it with `ip netns exec NAME …`."""
        self.run("ip", "netns", "add", name)
        self.run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        for inside, link, own in [([], f"to-{name}", host_address), (["-n", name], "eth0", address)]:
            self.run("ip", *inside, "address", "add", own, "dev", link, *(["nodad"] if ":" in own else []))
            self.run("ip", *inside, "link", "set", link, "up")
        self.run("ip", "-n", name, "link", "set", "lo", "up")


class Relay(Running):
    """A relay in a Place. Its log is `log` beside its data."""

    def __init__(self, place, data, prefix, port, settings):
        self.place = place
        self.data = place.folder / data
        self.log_file = place.folder / f"{Path(data).name}.log"
        self.prefix = [str(part) for part in prefix]
        self.port, self.http_port = port, port + 1
        self.url = f"ws://127.0.0.1:{port}"
        self.settings = {"RELAY_DATA_DIR": str(self.data), "RELAY_LISTEN_ADDR": f"127.0.0.1:{self.port}",
                         "RELAY_HTTP_ADDR": f"127.0.0.1:{self.http_port}"} | settings
        self.process = None

    def start(self, ready=True, **options):
        """Starts it, and waits until /ready answers 200, or with ready=False until /health answers."""
        self.data.mkdir(exist_ok=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, str(self.place.binary)], cwd=self.place.folder, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=self.place.environment(**self.settings), **options)
        path = "/ready" if ready else "/health"
        eventually(f"{path} answers 200", lambda: self.is_alive() and self.get(path)[0] == 200)
        return self

    def log(self):
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def kill(self):
        """kill -9."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def stop(self):
        """SIGTERM, which must end it with 0."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=2 * STEP_SECS)
        check(code == 0, f"the relay ends with 0 after SIGTERM, not {code}")

    def send(self, *texts, code=0, to=MAILBOX, **options):
        """Sends each text as a blob through protocol v1. The texts that were answered `stored`: what may not be lost."""
        stored = []
        for text in texts:
            ended = self.place.run(self.place.binary, "send", "--relay", self.url, "--v1", "--to", to, "--text", text,
                                   code=code, **options)
            if ended.returncode == 0:
                stored.append(text)
        return stored

    def receive(self, *more, mailbox=MAILBOX, code=0, **options):
        """What waits in the mailbox, each blob written to a file and acknowledged unless `--no-ack` is given: its texts
        in no certain order."""
        folder = Path(tempfile.mkdtemp(dir=self.place.folder, prefix="received-"))
        self.place.run(self.place.binary, "receive", "--relay", self.url, "--mailbox", mailbox, "--out", folder, *more,
                       code=code, **options)
        return sorted(file.read_text() for file in folder.iterdir())

    def detailed(self):
        """/health/detailed, as a value."""
        return json.loads(self.get("/health/detailed")[1])


def main(binary, case):
    spec = importlib.util.spec_from_file_location("case", case)
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode = True
    spec.loader.exec_module(module)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    folder = tempfile.mkdtemp(prefix="vauchi-relay-field-")
    # Named network namespaces of this case only.
    os.makedirs("/run/netns", exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/netns"], check=True)
    place = Place(binary, folder)
    try:
        module.run(place)
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        for relay in place.relays:
            print(f"the log of {relay.data.name}:\n{relay.log()[-8000:]}")
        return 1
    finally:
        for relay in place.relays:
            relay.kill()
        with open("/proc/self/mounts") as mounts:
            mounted = [line.split()[1] for line in mounts]
        for mount in sorted((m for m in mounted if m.startswith(f"{folder}/")), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
