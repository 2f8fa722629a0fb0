"""Sends and receives end-to-end encrypted texts through a relay, over its native protocol (v2).

    python client.py address                 prints your address, which others send to; makes me.key
    python client.py receive [--follow]
    python client.py send --to ADDRESS hello
"""

import argparse
import hashlib
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from websockets.sync.client import connect

from relay_pb2 import ClientFrame, Item, Opening, ServerFrame


class Keys:
    """A device's private keys: one opens its mailbox, the other decrypts its texts."""

    def __init__(self, path):
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(64))
        except FileExistsError:
            pass
        both = bytes.fromhex(Path(path).read_text())
        self.mailbox_key = Ed25519PrivateKey.from_private_bytes(both[:32])
        self.sealing_key = X25519PrivateKey.from_private_bytes(both[32:])
        self.mailbox = self.mailbox_key.public_key().public_bytes_raw()
        # Others need this to write to us: the mailbox, and the public key to encrypt for.
        self.address = self.mailbox + self.sealing_key.public_key().public_bytes_raw()


def text_key(shared, sender, address):
    """The key of one text. `sender` is made for this text only, so the key never returns, and its nonce may be 0."""
    info = b"vauchi-relay example text" + sender + address
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=info).derive(shared))


def seal(text, address):
    once = X25519PrivateKey.generate()
    sender = once.public_key().public_bytes_raw()
    shared = once.exchange(X25519PublicKey.from_public_bytes(address[32:]))
    return sender + text_key(shared, sender, address).encrypt(bytes(12), text.encode(), None)


def unseal(blob, keys):
    sender = blob[:32]
    shared = keys.sealing_key.exchange(X25519PublicKey.from_public_bytes(sender))
    return text_key(shared, sender, keys.address).decrypt(bytes(12), blob[32:], None).decode()


class Relay:
    """A connection. It sends one request at a time; frames that the relay pushes meanwhile wait in `pushed`."""

    def __init__(self, socket, url):
        self.socket, self.pushed, self.requests = socket, [], 0
        # The host that we dialled, in the form that signatures need.
        parts = urlsplit(url.lower())
        self.origin = parts.netloc.removesuffix(f":{parts.port}") if parts.port in (80, 443) else parts.netloc
        nonce = secrets.token_bytes(32)
        # Anyone can claim an id, so the relay signs for this connection and host before we send anything else.
        self.welcome = self.ask(hello={"nonce": nonce, "origin": self.origin}).welcome
        relay = Ed25519PublicKey.from_public_bytes(self.welcome.relay_id)
        relay.verify(self.welcome.proof, self.signed(b"welcome", nonce + self.welcome.challenge))
        # Without an id behind the URL, a client should remember this one, and later accept no other from this host.
        if parts.fragment not in ("", self.welcome.relay_id.hex()):
            raise SystemExit(f"this is another relay: its id is {self.welcome.relay_id.hex()}")

    def signed(self, words, numbers, mailbox=b""):
        origin = hashlib.sha256(self.origin.encode()).digest()
        return b"vauchi.relay.v2 " + words + self.welcome.relay_id + numbers + origin + mailbox

    def push(self, *kinds):
        """Waits for the next push of these kinds. Ignores others, as the protocol demands for unknown kinds."""
        while True:
            frame = self.pushed.pop(0) if self.pushed else ServerFrame.FromString(self.socket.recv())
            if frame.WhichOneof("frame") in kinds:
                return frame

    def ask(self, **request):
        """Sends a request and waits for its answer."""
        self.requests += 1
        self.socket.send(ClientFrame(request=self.requests, **request).SerializeToString())
        while (frame := ServerFrame.FromString(self.socket.recv())).answers != self.requests:
            self.pushed.append(frame)
        if frame.WhichOneof("frame") == "refused":
            raise SystemExit(f"refused: {frame.refused.message}")
        return frame

    def send(self, text, address, v1_ok=False):
        mailbox = address[:32]
        # A client that keeps this secret can take the blob back later (Cancel).
        secret = secrets.token_bytes(32)
        extend_key = hashlib.sha256(b"vauchi.relay.v2 extend" + secret).digest()
        blob_id = hashlib.sha256(b"vauchi.relay.v2 blob" + mailbox + extend_key).digest()[:16]
        # After a lost connection, the same submit can be sent again: the relay stores it once.
        self.ask(submit={"id": blob_id, "mailbox": mailbox, "v1_ok": v1_ok, "blob": seal(text, address)})

    def receive(self, keys, follow):
        signed = self.signed(b"subscribe", self.welcome.challenge, keys.mailbox)
        opening = Opening(mailbox=keys.mailbox, signature=keys.mailbox_key.sign(signed))
        opened = self.ask(subscribe={"origin": self.origin, "openings": [opening]}).subscribed.openings[0]
        if opened.code:
            raise SystemExit(f"the relay refuses to open the mailbox: code {opened.code}")
        while True:
            frame = self.push("delivery", "caught_up", "go_away")
            if frame.WhichOneof("frame") == "delivery":
                self.take(frame.delivery, keys)
            elif frame.WhichOneof("frame") == "go_away":
                raise SystemExit("the relay is about to stop; run this again")
            elif not follow:
                return

    def take(self, delivery, keys):
        try:
            text = unseal(delivery.blob, keys)
        except (InvalidTag, ValueError):
            text = f"(a blob of {len(delivery.blob)} bytes that is not for us)"
        print(text, flush=True)
        # Acknowledge only after saving the text: the relay deletes it. Acknowledge blobs that we cannot use, too.
        self.ask(acknowledge={"items": [Item(mailbox=delivery.mailbox, id=delivery.id)]})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["address", "receive", "send"])
    parser.add_argument("text", nargs="?")
    parser.add_argument("--relay", default="ws://127.0.0.1:8080")
    parser.add_argument("--key", default="me.key")
    parser.add_argument("--to")
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--v1-ok", action="store_true", help="clients of protocol v1 may receive it, too")
    given = parser.parse_intermixed_args()
    if given.command == "address":
        return print(Keys(given.key).address.hex())
    # The relay limits the size of messages itself, and never compresses.
    url = given.relay.split("#")[0]
    with connect(url, subprotocols=["vauchi.relay.v2"], compression=None, max_size=None) as socket:
        relay = Relay(socket, given.relay)
        if given.command == "send":
            relay.send(given.text or sys.stdin.read(), bytes.fromhex(given.to), given.v1_ok)
        else:
            relay.receive(Keys(given.key), given.follow)


if __name__ == "__main__":
    main()
