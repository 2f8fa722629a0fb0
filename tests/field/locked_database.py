"""Somebody holds the database's write lock (a shell with BEGIN IMMEDIATE): new blobs are refused and not confirmed, what
waits is delivered, /ready says no, and all goes on by itself when the lock is gone."""
import sqlite3

from field import check, eventually

OTHER = "ab" * 32


def run(place):
    relay = place.relay().start()
    stored = relay.send("before")
    shell = sqlite3.connect(relay.data / "relay.db", isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    refused = relay.send("meanwhile", to=OTHER, code=1)
    check(refused == [], "nothing is confirmed that is not stored")
    eventually("/ready says so", lambda: relay.get("/ready")[0] == 503)
    check(relay.metric("relay_takes_blobs") == 0, "the metric says so, too")
    check(relay.receive("--no-ack") == stored, "what waits is delivered")
    check("a write failed: database is locked" in relay.log(), "a line says why")
    shell.execute("ROLLBACK")
    shell.close()
    eventually("it is ready again", lambda: relay.get("/ready")[0] == 200)
    stored += relay.send("after")
    check(relay.receive() == sorted(stored), "nothing is lost")
    relay.stop()
