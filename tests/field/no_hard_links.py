"""A file system without hard links, as FAT and exFAT on small boards: the first start, backup, restore, keys and
received files work, nothing is overwritten, and `check` says what such a disk lacks."""
from field import check

NEEDS = {"mkfs.exfat": "exfatprogs", "mount.exfat-fuse": "exfat-fuse"}


def run(place):
    image, disk = place.folder / "disk.img", place.folder / "disk"
    with image.open("wb") as file:
        file.truncate(256 << 20)
    place.run("mkfs.exfat", image)
    device = place.run("losetup", "--find", "--show", image).stdout.strip()
    try:
        disk.mkdir()
        place.run("mount.exfat-fuse", "-o", "umask=077", device, disk)
    finally:
        # It stays until nobody has it open.
        place.run("losetup", "--detach", device)
    (disk / "file").touch()
    place.run("ln", disk / "file", disk / "link", code=1)

    # The driver for tests is FUSE, which the relay takes for a network.
    settings = {"RELAY_ALLOW_NETWORK_FS": "true"}
    relay = place.relay("disk/data", **settings)
    relay.data.mkdir()
    environment = place.environment(RELAY_DATA_DIR=str(relay.data), **settings)
    checked = place.run(place.binary, "check", env=environment)
    check("no hard links" in checked.stdout, f"check says so: {checked.stdout}")
    check(list(relay.data.iterdir()) == [], "check leaves nothing behind")
    relay.start()
    stored = relay.send("one", "two")
    relay.kill()
    relay.start()
    place.run(place.binary, "backup", disk / "backup.tar", env=environment)
    place.run(place.binary, "backup", disk / "backup.tar", env=environment, code=1)
    place.run(place.binary, "keygen", disk / "mine.key")
    key = (disk / "mine.key").read_text()
    place.run(place.binary, "keygen", disk / "mine.key", code=1)
    check((disk / "mine.key").read_text() == key, "a key is not overwritten")
    came = place.run(place.binary, "receive", "--mailbox", "5af025d33b141c9dbe95aaaeaa62d60819294aa443dec41daba5a15fce7c571c",
                     "--out", disk / "came", "--no-ack")
    check(sorted(file.read_text() for file in (disk / "came").iterdir()) == stored, f"files: {came}")
    relay.stop()

    restored = place.relay("disk/restored", **settings)
    restored.data.mkdir()
    place.run(place.binary, "restore", disk / "backup.tar", "--to", restored.data, env=environment)
    place.run(place.binary, "restore", disk / "backup.tar", "--to", restored.data, env=environment, code=1)
    restored.start()
    check(restored.receive() == stored, "what was backed up comes from the restored relay")
    restored.stop()
