"""kill -9 at any moment: every blob that was answered `stored` is delivered after the next start, and once only."""
from field import check, eventually


def run(place):
    relay = place.relay().start()
    stored = []
    for round_ in range(3):
        stored += relay.send(*(f"blob {round_}-{number}" for number in range(5)))
        relay.kill()
        relay.start()
    check(relay.receive() == sorted(stored), f"all {len(stored)} stored blobs come")
    check(relay.receive() == [], "an acknowledged blob does not come again")
    eventually("nothing is kept", lambda: relay.metric("relay_blobs_stored") == 0)
    relay.stop()
