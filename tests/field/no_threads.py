"""The user may have no more threads (EAGAIN): a running relay goes on and does not panic; a start says so in one line."""
import os
import time
from concurrent.futures import ThreadPoolExecutor

from field import check, eventually

USER = 54321
AS_USER = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
NEEDS = {"setpriv": "util-linux", "prlimit": "util-linux"}


def run(place):
    os.chmod(place.folder, 0o755)
    relay = place.relay(prefix=AS_USER)
    relay.data.mkdir()
    os.chown(relay.data, USER, USER)
    relay.start()
    threads = f"/proc/{relay.process.pid}/task"
    place.run(*AS_USER, "prlimit", f"--pid={relay.process.pid}", "--nproc=1:1")
    before = len(os.listdir(threads))

    stored = relay.send("one", "two", "three")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: relay.get("/health/detailed" if number % 2 else "/ready")[0], range(200)))
    check(set(answers) <= {200, 503}, "every probe is answered")
    eventually("it is ready", lambda: relay.get("/ready")[0] == 200)
    check(relay.receive() == sorted(stored), "blobs come out")
    # The disk is looked at from a thread that may block.
    time.sleep(2)
    check(relay.send("four") == ["four"], "blobs come in")
    check(relay.receive() == ["four"], "and out again")
    check(len(os.listdir(threads)) <= before, "there was no new thread")
    check("panicked" not in relay.log(), "nothing panicked")
    relay.stop()

    began = place.relay(prefix=[*AS_USER, "prlimit", "--nproc=1:1"])
    began.log_file = place.folder / "start.log"
    with began.log_file.open("wb") as log:
        ended = place.run(*began.prefix, place.binary, code=1, env=place.environment(**began.settings),
                          capture_output=False, stdout=log, stderr=log)
    check(ended.returncode == 1, "a start without threads ends with 1")
    check("cannot start the runtime" in began.log() and "panicked" not in began.log(), "and says why")
