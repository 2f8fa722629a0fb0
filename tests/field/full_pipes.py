"""Pipes that nobody reads: a relay whose log goes into one serves on and can be stopped, and a blob that is still in a
pipe is not acknowledged."""
import fcntl
import os
import signal

from field import MAILBOX, check, eventually

DEBUG = {"RUST_LOG": "vauchi_relay=debug"}
DROPPED = "lines of this log were dropped"


def run(place):
    log_that_nobody_reads(place)
    blob_in_a_pipe(place)


def full_pipe():
    """Its two ends, and a function that fills it without waiting. The ends themselves wait, as a supervisor's do."""
    reader, writer = os.pipe()
    filler = os.open(f"/proc/self/fd/{writer}", os.O_WRONLY | os.O_NONBLOCK)

    def fill():
        try:
            while True:
                os.write(filler, b".")
        except BlockingIOError:
            pass

    return reader, writer, fill


def log_that_nobody_reads(place):
    reader, writer, fill = full_pipe()
    relay = place.relay(data="unread", prefix=["sh", "-c", f"exec \"$0\" 2>&{writer}"], **DEBUG)
    fill()
    relay.start(pass_fds=[writer])
    # Each of them makes more lines than the relay has threads.
    stored = relay.send(*(f"blob {number}" for number in range(10)))
    check(len(stored) == 10, "every blob is stored")
    relay.process.send_signal(signal.SIGHUP)
    check(relay.receive() == sorted(stored), "every blob comes")
    check(relay.get("/ready")[0] == 200, "probes are answered")
    eventually("the metric counts the lines", lambda: relay.metric("relay_log_lines_dropped_total") > 10)

    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK)
    log = bytearray()

    def told():
        try:
            log.extend(os.read(reader, 1 << 16))
        except BlockingIOError:
            pass
        return DROPPED.encode() in log

    eventually("a line says how many were dropped", told)
    fill()
    relay.stop()


def blob_in_a_pipe(place):
    relay = place.relay(data="pipe").start()
    # More than a pipe holds, and less than Linux takes as an argument.
    large = "x" * 100_000
    relay.send(large)
    place.run("sh", "-c", f"{place.binary} receive --relay {relay.url} --mailbox {MAILBOX} | sleep 2", code=None)
    check(relay.receive() == [large], "what nobody read comes again")
    relay.stop()
