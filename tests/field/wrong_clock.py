"""A wrong wall clock, at a start and while running: no confirmed blob expires early, and one line says what is wrong."""
from field import check, eventually

NEEDS = {"faketime": "faketime"}


def run(place):
    clock = place.folder / "clock"

    def set_clock(offset):
        clock.write_text(f"{offset}\n")

    (library,) = place.run("find", "/usr/lib", "-name", "libfaketimeMT.so.1").stdout.split()
    # The wall clock alone: the monotonic clocks of a machine do not step.
    faked = ["env", f"LD_PRELOAD={library}", f"FAKETIME_TIMESTAMP_FILE={clock}", "FAKETIME_NO_CACHE=1",
             "FAKETIME_DONT_FAKE_MONOTONIC=1"]
    set_clock("+0")
    relay = place.relay(prefix=faked, RELAY_BLOB_TTL_DAYS="1", RELAY_CLEANUP_INTERVAL_SECS="1").start()
    stored = relay.send("before")
    relay.stop()

    set_clock("+400d")
    relay.start()
    check("the clock is 400 days ahead of the last time in the database" in relay.log(), "a line says so")
    check(relay.detailed()["clock"]["unconfirmed_stop_seconds"] > 399 * 86_400, "the stop is shown")
    check(relay.receive("--no-ack") == stored, "what waited is delivered")
    stored += relay.send("a year ahead")
    set_clock("+0")
    eventually("the stop is dropped", lambda: relay.detailed()["clock"]["unconfirmed_stop_seconds"] == 0)
    check(relay.receive("--no-ack") == sorted(stored), "all of it after the correction")
    relay.kill()

    set_clock("-400d")
    relay.start()
    check("days behind the last time in the database" in relay.log(), "a line says so")
    stored += relay.send("a year behind")
    set_clock("+400d")
    eventually("the step is counted", lambda: relay.metric("relay_clock_steps_total") == 1)
    eventually("one line for one step", lambda: relay.log().count("days forward; no blob expires") == 1)
    check(relay.receive("--no-ack") == sorted(stored), "a step takes nothing")
    relay.stop()

    set_clock("+0")
    relay.start()
    check(relay.metric("relay_blobs_expired_total") == 0, "nothing has expired")
    check(relay.receive() == sorted(stored), f"all {len(stored)} stored blobs come")
    relay.stop()
