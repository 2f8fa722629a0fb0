"""The release binary from start to stop, as README tells it: a blob survives kill -9.

    python smoke.py target/release/vauchi-relay

The relay runs in a folder of its own on free ports of 127.0.0.1 and ends with this script, whatever happens.
Prints one line per step; exit code 0 when all hold.
"""

import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import page
from running import Failed, Running, check

START_SECS = 30
STEP_SECS = 10
STOP_SECS = 30

SENDER = "2cac68133203c91499233559341e200b260e78d7e95a750794e5f88119e791d3"
RECIPIENT = "5af025d33b141c9dbe95aaaeaa62d60819294aa443dec41daba5a15fce7c571c"


class Relay(Running):
    """The binary, started in `folder`; its log goes to a file there."""

    def __init__(self, binary, folder):
        self.binary = Path(binary).resolve()
        self.folder = Path(folder)
        self.log = self.folder / "log"
        self.port, self.http_port = free_port(), free_port()
        self.process = None

    def environment(self, **more):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
        kept.pop("RUST_LOG", None)
        kept["RELAY_LISTEN_ADDR"] = f"127.0.0.1:{self.port}"
        kept["RELAY_HTTP_ADDR"] = f"127.0.0.1:{self.http_port}"
        if Path("/data").exists():
            # Somebody's; this run must not touch it.
            (self.folder / "data").mkdir(exist_ok=True)
            kept["RELAY_DATA_DIR"] = str(self.folder / "data")
        return kept | more

    def start(self):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary], cwd=self.folder, env=self.environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, preexec_fn=die_with_parent)
        eventually(START_SECS, "/ready answers 200", lambda: self.is_alive() and self.get("/ready")[0] == 200)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Client:
    """A v1 client: each WebSocket message is four bytes of length and then JSON."""

    def __init__(self, relay, client_id):
        opening = connect(f"ws://127.0.0.1:{relay.port}", compression=None, proxy=None, open_timeout=STEP_SECS)
        # Open until one of the two ends; there is no block to leave.
        self.socket = opening.__enter__()
        self.send({"type": "Handshake", "client_id": client_id})
        self.expect("HandshakeAck")

    def send(self, payload, message_id=None):
        message_id, bytes_of_frame = frame(payload, message_id)
        self.socket.send(bytes_of_frame)
        return message_id

    def expect(self, kind):
        """The next frame, which must be of this type."""
        received = self.socket.recv(timeout=STEP_SECS)
        check(isinstance(received, bytes), "frames are binary")
        check(struct.unpack(">I", received[:4])[0] == len(received) - 4, "the length prefix is right")
        message = json.loads(received[4:])
        check(message["payload"]["type"] == kind, f"{kind} comes, not {message['payload']}")
        return message


def frame(payload, message_id=None):
    """Its id, a fresh one unless given, and its bytes: without spaces, so that the largest blob fits."""
    message_id = message_id or str(uuid.uuid4())
    envelope = {"version": 1, "message_id": message_id, "timestamp": int(time.time()), "payload": payload}
    body = json.dumps(envelope, separators=(",", ":")).encode()
    return message_id, struct.pack(">I", len(body)) + body


def eventually(secs, what, condition):
    deadline = time.monotonic() + secs
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"not within {secs} s: {what}")
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def die_with_parent():
    """Linux kills the relay should this script be killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def wrong_settings_end_with_2(relay):
    wrong = relay.environment(RELAY_MAX_CONNECTIONS="10k", RELAY_STORAGE_BACKEND="floppy")
    ended = subprocess.run([relay.binary], cwd=relay.folder, env=wrong, stdin=subprocess.DEVNULL,
                           capture_output=True, text=True, timeout=STEP_SECS)
    check(ended.returncode == 2, f"exit code 2, not {ended.returncode}")
    for part in ('RELAY_MAX_CONNECTIONS: "10k" is not a whole number', 'RELAY_STORAGE_BACKEND: "floppy"'):
        check(part in ended.stderr, f"standard error says {part}")


def starts_and_answers(relay):
    relay.start()
    check(relay.get("/health")[0] == 200, "/health answers 200")


def every_metric_of_the_guide_is_there(relay):
    text = relay.get("/metrics")[1]
    told = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}
    names = page.metrics()
    check(len(names) >= 14 and not set(names) - told, f"missing: {sorted(set(names) - told)}")
    for name in names:
        series = name + "_count" if name.endswith("_seconds") else name
        check(relay.metric(series) is not None, f"{series} has a value before anything happened")


def confirmed_blob_survives_kill_9(relay):
    blob = list(b"smoke \x00\xff")
    sender = Client(relay, SENDER)
    message_id = sender.send({"type": "EncryptedUpdate", "recipient_id": RECIPIENT, "ciphertext": blob})
    answer = sender.expect("Acknowledgment")["payload"]
    check(answer["status"] == "Stored", f"Stored, not {answer}")
    check(answer["message_id"] == message_id, "the answer carries the request's id")
    relay.kill()

    relay.start()
    eventually(STEP_SECS, "relay_blobs_stored is 1", lambda: relay.metric("relay_blobs_stored") == 1)
    recipient = Client(relay, RECIPIENT)
    delivery = recipient.expect("EncryptedUpdate")
    check(delivery["payload"]["ciphertext"] == blob, "the blob comes back byte for byte")
    recipient.send({"type": "Acknowledgment", "message_id": delivery["message_id"], "status": "ReceivedByRecipient"})
    eventually(STEP_SECS, "relay_blobs_stored is 0", lambda: relay.metric("relay_blobs_stored") == 0)
    check(relay.metric("relay_blobs_delivered_total") == 1, "one delivery is counted")


def sigterm_drains_and_ends_with_0(relay):
    client = Client(relay, RECIPIENT)
    relay.process.send_signal(signal.SIGTERM)
    try:
        client.socket.recv(timeout=STOP_SECS)
        raise Failed("a connected client gets a blob that it had acknowledged")
    except ConnectionClosed as closed:
        check(closed.rcvd is not None, "a connected client gets a close frame")
    code = relay.process.wait(timeout=STOP_SECS)
    check(code == 0, f"exit code 0, not {code}")


STEPS = [
    wrong_settings_end_with_2,
    starts_and_answers,
    every_metric_of_the_guide_is_there,
    confirmed_blob_survives_kill_9,
    sigterm_drains_and_ends_with_0,
]


def main():
    with tempfile.TemporaryDirectory(prefix="vauchi-relay-smoke-") as folder:
        relay = Relay(sys.argv[1], folder)
        try:
            for step in STEPS:
                try:
                    step(relay)
                except Exception as error:
                    print(f"{step.__name__}: FAILED: {type(error).__name__}: {error}")
                    if relay.log.exists():
                        print(f"the relay's log:\n{relay.log.read_text(errors='replace')[-8000:]}")
                    return 1
                print(f"{step.__name__}: ok")
        finally:
            relay.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
