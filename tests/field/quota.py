"""A used-up quota (EDQUOT, which SQLite calls a disk I/O error): new blobs are refused, all else goes on, and blobs are
accepted again by themselves when there is room. A library that is loaded before the C library plays the quota, because
few kernels have one for every file system: files of the folder may not grow beyond a sum of bytes."""
import subprocess

from field import check, eventually

OTHER = "ab" * 32
NEEDS = {"gcc": "gcc"}
QUOTA = 64 << 20
SOURCE = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int is_over(int fd, long long end) {
    const char *folder = getenv("QUOTA_FOLDER");
    char link[64], path[4096] = "", name[4400];
    struct stat file;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (!folder || readlink(link, path, sizeof path - 1) < 0 || strncmp(path, folder, strlen(folder))) return 0;
    if (fstat(fd, &file) || end <= file.st_size) return 0;
    long long sum = end - file.st_size;
    DIR *open = opendir(folder);
    for (struct dirent *entry; open && (entry = readdir(open));) {
        snprintf(name, sizeof name, "%s/%s", folder, entry->d_name);
        if (!stat(name, &file) && S_ISREG(file.st_mode)) sum += file.st_size;
    }
    if (open) closedir(open);
    return sum > atoll(getenv("QUOTA_BYTES"));
}

#define POSITIONED(name) \
    ssize_t name(int fd, const void *from, size_t count, off64_t at) { \
        ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, #name); \
        if (!is_over(fd, at + (long long)count)) return real(fd, from, count, at); \
        errno = EDQUOT; \
        return -1; \
    }
POSITIONED(pwrite)
POSITIONED(pwrite64)

ssize_t write(int fd, const void *from, size_t count) {
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    struct stat file;
    long long end = !fstat(fd, &file) && S_ISREG(file.st_mode) ? file.st_size + (long long)count : 0;
    if (!is_over(fd, end)) return real(fd, from, count);
    errno = EDQUOT;
    return -1;
}
"""


def run(place):
    library, source = place.folder / "quota.so", place.folder / "quota.c"
    source.write_text(SOURCE)
    place.run("gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl")
    relay = place.relay(RELAY_MIN_FREE_BYTES="0", LD_PRELOAD=str(library), QUOTA_BYTES=str(QUOTA),
                        QUOTA_FOLDER=str(place.folder / "data")).start()
    stored = relay.send("one", "two", "three")
    filler = relay.data / "filler"
    with filler.open("wb") as file:
        file.truncate(QUOTA - sum(other.stat().st_size for other in relay.data.iterdir()))

    number, sending = 0, None
    while not refusals(relay):
        number += 1
        sending = subprocess.Popen([place.binary, "send", "--v1", "--to", OTHER], env=place.environment(),
                                   stdin=subprocess.PIPE, text=True)
        sending.stdin.write(f"{number} ".ljust(50_000, "x"))
        sending.stdin.close()
        eventually("the blob is stored or refused", lambda: sending.poll() == 0 or refusals(relay))
    check(relay.receive() == sorted(stored), "what waits is delivered and acknowledged")
    check(relay.get("/ready")[0] == 200, "it is ready, because blobs go out")
    check(relay.receive() == [], "an acknowledged blob does not come again")
    check("Disk quota exceeded" in relay.log(), "the log says what has ended")

    filler.unlink()
    eventually("blobs are accepted again", lambda: relay.send("late", to=OTHER, code=None))
    relay.kill()
    relay.start()
    check(len(relay.receive(mailbox=OTHER)) == number, "all that was stored is delivered after a kill")
    relay.stop()


def refusals(relay):
    return relay.metric('relay_refusals_total{code="relay_full"}')
