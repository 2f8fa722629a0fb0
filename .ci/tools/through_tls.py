"""A blob to a relay behind TLS and back: through_tls.py wss://NAME CA_FILE MAILBOX"""

import json
import ssl
import struct
import sys
import time
import uuid

from websockets.sync.client import connect


def said(socket, payload):
    """Sends one v1 frame, and gives its id."""
    message_id = str(uuid.uuid4())
    frame = {"version": 1, "message_id": message_id, "timestamp": int(time.time()), "payload": payload}
    body = json.dumps(frame).encode()
    socket.send(struct.pack(">I", len(body)) + body)
    return message_id


def heard(socket, kind):
    """The next frame, which must be of this type."""
    message = json.loads(socket.recv(timeout=30)[4:])
    assert message["payload"]["type"] == kind, message
    return message


def entered(url, context, client_id):
    socket = connect(url, ssl=context, compression=None, proxy=None).__enter__()
    said(socket, {"type": "Handshake", "client_id": client_id})
    heard(socket, "HandshakeAck")
    return socket


def main():
    url, authority, mailbox = sys.argv[1:]
    context, blob = ssl.create_default_context(cafile=authority), list(b"through TLS \x00\xff")
    sender = entered(url, context, "ab" * 32)
    said(sender, {"type": "EncryptedUpdate", "recipient_id": mailbox, "ciphertext": blob})
    assert heard(sender, "Acknowledgment")["payload"]["status"] == "Stored"
    recipient = entered(url, context, mailbox)
    delivery = heard(recipient, "EncryptedUpdate")
    assert delivery["payload"]["ciphertext"] == blob, delivery
    said(recipient, {"type": "Acknowledgment", "message_id": delivery["message_id"], "status": "ReceivedByRecipient"})
    # The relay answers in order, so this one has been heard before.
    said(recipient, {"type": "EncryptedUpdate", "recipient_id": "cd" * 32, "ciphertext": blob})
    assert heard(recipient, "Acknowledgment")["payload"]["status"] == "Stored"
    for socket in (sender, recipient):
        socket.close()


main()
