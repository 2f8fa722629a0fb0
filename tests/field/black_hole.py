"""A relay's name whose first addresses lead nowhere (IPv6 without a way out, a host that is gone): clients connect by
the address that works."""
from field import check

HOSTS = """
2001:db8:1::2 six.test
198.51.100.1 six.test
192.0.2.2 four.test
192.0.2.3 four.test
198.51.100.1 four.test
2001:db8:1::2 none.test
192.0.2.2 none.test
"""


def run(place):
    place.network("far", "198.51.100.9/24", "198.51.100.1/24")
    # A cable to a stranger, who is known by an address that is not its own, and so throws every packet away.
    inside = ["ip", "-n", "far"]
    place.run(*inside, "link", "add", "hole", "type", "veth", "peer", "name", "stranger")
    for link in ["hole", "stranger"]:
        place.run(*inside, "link", "set", link, "up")
    for address in ["2001:db8:1::1/64", "192.0.2.1/24"]:
        place.run(*inside, "address", "add", address, "dev", "hole", *(["nodad"] if ":" in address else []))
    for address in ["2001:db8:1::2", "192.0.2.2", "192.0.2.3"]:
        place.run(*inside, "neighbour", "add", address, "lladdr", "02:00:00:00:00:01", "dev", "hole")
    hosts = place.folder / "hosts"
    hosts.write_text(HOSTS)
    place.run("mount", "--bind", hosts, "/etc/hosts")
    far = ["ip", "netns", "exec", "far"]
    for name, first in [("six.test", "2001:db8:1::2"), ("four.test", "192.0.2.2")]:
        found = place.run(*far, "getent", "ahosts", name).stdout
        check(found.startswith(first) or found.startswith("192.0.2.3"), f"{name} has a black hole first: {found}")

    place.relay(RELAY_LISTEN_ADDR="0.0.0.0:8080").start()
    to = "ab" * 32
    for name in ["six.test", "four.test"]:
        relay = ["--relay", f"ws://{name}:8080"]
        # A client that waited for the first address would give up after 10 s.
        # Two names of one relay, which a client would take for a relay that claims the other's identity.
        known = ["--known-relays", place.folder / name]
        place.run(*far, place.binary, "send", *relay, *known, "--to", to, "--text", "by v2")
        place.run(*far, place.binary, "send", *relay, "--v1", "--to", to, "--text", "by v1")
        came = place.run(*far, place.binary, "receive", *relay, "--mailbox", to).stdout
        check(came == "by v2by v1", f"both come: {came}")
    ended = place.run(*far, place.binary, "send", "--relay", "ws://none.test:8080", "--to", to, "--text", "x", code=1)
    check("does not answer" in ended.stderr, f"no address answers: {ended.stderr}")
