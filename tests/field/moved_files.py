"""Files moved, deleted, replaced or truncated under a running relay: nothing that was answered `stored` is lost, nothing is
confirmed meanwhile, and one line says what to do."""
import shutil
import time

from field import check, eventually

SECONDS_MAX = 300
LINE = "was moved, deleted or replaced while the relay has it open"


def run(place):
    for name in ("relay.db", "relay.db-wal", "relay.db-shm", "relay.lock", ""):
        moved(place, f"moved-{name or 'folder'}", name)
    for names in (["relay.db-wal", "relay.db-shm"], ["relay.lock"]):
        deleted(place, f"deleted-{names[0]}", names)
    deleted_database(place)
    moved_and_killed(place)
    truncated(place)


def moved(place, data, name):
    relay = place.relay(data=data).start()
    stored = relay.send("before")
    path = relay.data / name
    away = place.folder / f"{data}.away"
    path.rename(away)
    since = time.monotonic()
    eventually("the metric says so", lambda: relay.metric("relay_store_up") == 0, seconds=10)
    took = time.monotonic() - since
    status, body = relay.get("/ready")
    check(status == 503 and LINE in body, f"/ready says what is wrong with {name}: {status} {body}")
    place.run(place.binary, "send", "--relay", relay.url, "--v1", "--to", "ab" * 32, "--text", "refused", "--timeout", "3",
              code=None)
    check(relay.log().count(LINE) == 1, f"one line for {name}, after {took:.1f} s")
    away.rename(path)
    eventually("it serves again", lambda: relay.get("/ready")[0] == 200)
    stored += relay.send("after")
    relay.stop()
    relay.start()
    check(relay.receive() == sorted(stored), f"all that was stored comes, {name} moved and back")
    relay.stop()


def deleted(place, data, names):
    relay = place.relay(data=data).start()
    stored = relay.send(*"abc")
    for name in names:
        (relay.data / name).unlink()
    eventually("it notices", lambda: relay.get("/ready")[0] == 503)
    eventually("it says so", lambda: relay.log().count(LINE) == 1)
    relay.kill()
    relay.start()
    check(relay.receive() == sorted(stored), f"all that was stored comes, {names} deleted")
    relay.stop()


def deleted_database(place):
    """As docs/operations.md tells how to save it."""
    relay = place.relay(data="deleted-database").start()
    stored = relay.send(*"abc")
    (relay.data / "relay.db").unlink()
    eventually("it says so", lambda: relay.log().count(LINE) == 1)
    process = f"/proc/{relay.process.pid}/fd"
    numbers = place.run("sh", "-c", f"ls -l {process} | grep 'relay.db (deleted)'").stdout.splitlines()
    number = numbers[0].split(" -> ")[0].split()[-1]
    shutil.copyfile(f"{process}/{number}", place.folder / "saved.db")
    relay.kill()
    for name in ("relay.db-wal", "relay.db-shm"):
        (relay.data / name).unlink(missing_ok=True)
    shutil.copyfile(place.folder / "saved.db", relay.data / "relay.db")
    relay.start()
    check(relay.receive() == sorted(stored), "all that was stored is in the copy")
    relay.stop()


def moved_and_killed(place):
    """The log stays where a new, empty database would be made."""
    relay = place.relay(data="moved-and-killed").start()
    stored = relay.send(*"abc")
    away = place.folder / "killed.db"
    (relay.data / "relay.db").rename(away)
    relay.kill()
    ended = place.run(place.binary, code=1, env=place.environment(**relay.settings))
    check("is there without" in ended.stdout + ended.stderr, "it does not start on a log alone")
    away.rename(relay.data / "relay.db")
    relay.start()
    check(relay.receive() == sorted(stored), "all that was stored comes")
    relay.stop()


def truncated(place):
    relay = place.relay(data="truncated").start()
    stored = relay.send(*"abc")
    with (relay.data / "relay.db-shm").open("r+b") as file:
        file.truncate(0)
    eventually("the relay has ended", lambda: relay.process.poll() is not None)
    relay.start()
    check("relay.db-shm was truncated while" in relay.log(), "a line says so, before its end or after its start")
    check(relay.receive() == sorted(stored), "all that was stored comes")
    relay.stop()
