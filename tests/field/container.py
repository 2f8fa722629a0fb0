#!/usr/bin/env python3
"""A relay in a container whose data would go with it says so; a machine that only has a container's mark is not warned.

Machines that were made from an image have its /.dockerenv, and were told that their data would be lost.
"""
from field import check

MARK = ".dockerenv"


def told(place, root, data):
    """What `check` says of the volume, with this root and this data directory; None when it says nothing."""
    ended = place.run("chroot", root, "env", f"RELAY_DATA_DIR={data}", "RELAY_LISTEN_ADDR=127.0.0.1:0",
                      "RELAY_HTTP_ADDR=127.0.0.1:0", "/vauchi-relay", "check", code=None)
    lines = [line for line in ended.stdout.splitlines() if " volume: " in line]
    return lines[0] if lines else None


def run(place):
    # As Docker makes it: layers, here over this machine's own files, and a mark.
    layers = place.folder / "layers"
    layers.mkdir()
    place.run("mount", "-t", "tmpfs", "tmpfs", layers)
    upper, work, root = (layers / name for name in ("upper", "work", "root"))
    for folder in (upper, work, root):
        folder.mkdir()
    place.run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={upper},workdir={work}", root)
    place.run("mount", "-t", "proc", "proc", root / "proc")
    place.run("cp", place.binary, root / "vauchi-relay")
    for folder in ("inside", "volume"):
        (root / folder).mkdir()
    (root / MARK).touch()
    found = told(place, root, "/inside")
    check(found and found.startswith("warn  volume: DATA WILL BE LOST: /inside"), f"in the container: {found}")
    kept = place.loop_disk("kept", 32)
    place.run("mount", "--bind", kept, root / "volume")
    found = told(place, root, "/volume")
    check(found and found.startswith("ok    volume: "), f"on a volume: {found}")
    (root / MARK).unlink()
    found = told(place, root, "/inside")
    check(found is None, f"layers without a mark: {found}")

    # A machine: a disk for a root, and the mark of the image that it was made from.
    machine = place.loop_disk("machine", 512)
    for folder in ("bin", "lib", "lib64", "usr", "proc", "data"):
        (machine / folder).mkdir()
    for folder in ("bin", "lib", "lib64", "usr"):
        place.run("mount", "--rbind", f"/{folder}", machine / folder)
    place.run("mount", "-t", "proc", "proc", machine / "proc")
    place.run("cp", place.binary, machine / "vauchi-relay")
    (machine / MARK).touch()
    found = told(place, machine, "/data")
    check(found is None, f"a machine with a mark: {found}")
