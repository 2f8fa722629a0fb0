"""A network that goes away without a word: a v1 client that only listens says so after two and a half keepalives, and
blobs that it did not acknowledge come again."""
import subprocess

from field import check, eventually

SECONDS_MAX = 240
TO = "ab" * 32


def run(place):
    place.network("far", "198.51.100.9/24", "198.51.100.1/24")
    relay = place.relay(RELAY_LISTEN_ADDR="0.0.0.0:8080").start()
    far = ["ip", "netns", "exec", "far", place.binary]
    out = place.folder / "came"
    with (place.folder / "errors").open("w") as errors:
        following = subprocess.Popen(
            [*map(str, far), "receive", "--relay", "ws://198.51.100.1:8080", "--mailbox", TO, "--follow", "--out", str(out)],
            cwd=place.folder, env=place.environment(), stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
    relay.send("before", to=TO)
    eventually("it follows", lambda: out.exists() and [f for f in out.iterdir() if f.is_file()])
    place.run("ip", "-n", "far", "link", "set", "eth0", "down")
    relay.send("after", to=TO)
    code = following.wait(timeout=120)
    said = (place.folder / "errors").read_text()
    check(code == 1 and "sent nothing for too long" in said, f"it ends with 1 and says why: {code} {said}")
    check([f for f in out.iterdir() if f.name.startswith(".")] == [], "no unfinished file is left")
    check(relay.receive(mailbox=TO) == ["after"], "what did not reach it comes again")
