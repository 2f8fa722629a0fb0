"""A secret that all users may read is refused, loose files are told of, and no other process reads the relay's memory."""
import os
import shutil

from field import check


def run(place):
    # A user of its own: root may read everything.
    user = 65534
    os.chmod(place.folder, 0o755)
    binary = place.folder / "vauchi-relay"
    shutil.copy(place.binary, binary)
    place.binary = binary
    as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    relay = place.relay(prefix=as_user)
    relay.data.mkdir()
    os.chown(relay.data, user, user)
    relay.start()
    stored = relay.send("before")
    for name in ("mem", "environ"):
        ended = place.run(*as_user, "cat", f"/proc/{relay.process.pid}/{name}", code=None)
        check("Permission denied" in ended.stderr, f"{name} of the relay is closed to its own user: {ended.stderr}")
    check(relay.metric("process_open_fds") > 0, "the relay still sees its own numbers")
    relay.stop()

    secret, database = relay.data / "relay.secret", relay.data / "relay.db"
    secret.chmod(0o644)
    ended = place.run(*as_user, place.binary, code=1, env=place.environment(**relay.settings))
    check(f"run: chmod 600 {secret}" in ended.stdout + ended.stderr, "a start refuses it, and says what to do")
    secret.chmod(0o600)
    database.chmod(0o644)
    relay.start()
    check(f"run: chmod 600 {database}" in relay.log(), "a line tells of the database")
    check(relay.receive() == stored, "what was stored comes")
    relay.stop()
