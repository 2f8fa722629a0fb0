"""Connections take all file descriptors that they can get (EMFILE): probes are answered, and storage keeps its own."""
import os
import socket

from field import check, eventually

LIMIT = 160
NEEDS = {"prlimit": "util-linux"}


def run(place):
    relay = place.relay(prefix=["prlimit", f"--nofile={LIMIT}:{LIMIT}"]).start()
    stored = relay.send("one", "two")
    crowd = []
    for _ in range(2 * LIMIT):
        one = socket.socket()
        one.connect(("127.0.0.1", relay.port))
        crowd.append(one)
    descriptors = f"/proc/{relay.process.pid}/fd"
    eventually("connections took what they get", lambda: relay.metric("relay_accept_errors_total"))
    check(len(os.listdir(descriptors)) <= LIMIT - 16, "some descriptors are left")
    check(relay.get("/ready")[0] == 200, "probes are answered")
    check(relay.log().count("cannot accept connections") <= 2, "it does not say so at each connection")
    for one in crowd:
        one.close()
    eventually("clients are served again", lambda: relay.receive() == stored)
    relay.stop()
