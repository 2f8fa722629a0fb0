/*
 * Records what a process does to the files of one folder, in the order in which it was done.
 *
 * Loaded with LD_PRELOAD. POWER_FOLDER names the folder, POWER_RECORD the file that records are appended to, which
 * must lie elsewhere. The folder has no folders inside. `recording.rs` reads the records, and has their format, too.
 *
 * One lock is held around each change and its record, so that the order of the records is the order of the changes,
 * whichever threads made them. A write is recorded before it is made, so that a kill leaves no write without a record:
 * only what the last record says may have happened in part, or not at all. An fsync is recorded twice and takes no lock
 * in between: it covers what was recorded before it began, once its end is recorded.
 *
 * What is not understood is recorded as such, and the reader refuses the recording. Changes that pass the C library
 * by, as system calls of their own or through mapped memory, are not seen at all; the test compares the folder with
 * what was recorded, and would notice.
 */
#undef _FORTIFY_SOURCE /* Its inline versions of these functions are in the way. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    CREATED = 1,    /* `inode`, an empty file, has the name that follows */
    LINKED = 2,     /* `inode` has the name that follows, too */
    RENAMED = 3,    /* two names follow, with a zero between them */
    UNLINKED = 4,   /* a name follows */
    WRITTEN = 5,    /* bytes follow, which go to `offset` of `inode` */
    RESIZED = 6,    /* `inode` has `offset` bytes */
    SYNC_BEGAN = 7, /* of `inode`, which may be the folder */
    SYNC_ENDED = 8, /* of `inode`; it began with the record at `offset` */
    NOT_UNDERSTOOD = 9
};

/* In front of each record, as this machine has it in memory. */
struct head {
    uint32_t kind;
    uint32_t bytes; /* that follow */
    uint64_t inode;
    uint64_t offset;
};

/* The function that this library hides. */
#define REAL(name)                                                                                                     \
    ({                                                                                                                 \
        static __typeof__(&name) found;                                                                                \
        if (!found)                                                                                                    \
            found = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                                        \
        found;                                                                                                         \
    })

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *folder;
static dev_t device;
static int record = -1;
static uint64_t position; /* where the next record begins */
static uint64_t inodes[256]; /* of the folder and of the files that were opened in it */
static size_t inodes_known;

/* The lock must be held, as for all that changes what is above. */
static uint64_t append(enum kind kind, uint64_t inode, uint64_t offset, const void *data, size_t bytes) {
    struct head head = {kind, (uint32_t)bytes, inode, offset};
    struct iovec parts[2] = {{&head, sizeof head}, {(void *)data, bytes}};
    uint64_t at = position;
    if (REAL(writev)(record, parts, 2) != (ssize_t)(sizeof head + bytes))
        abort();
    position += sizeof head + bytes;
    return at;
}

static void not_understood(const char *what) { append(NOT_UNDERSTOOD, 0, 0, what, strlen(what)); }

static int is_known(uint64_t inode) {
    for (size_t i = 0; i < inodes_known; i++)
        if (inodes[i] == inode)
            return 1;
    return 0;
}

static uint64_t know(uint64_t inode) {
    if (!is_known(inode)) {
        if (inodes_known == sizeof inodes / sizeof *inodes)
            abort();
        inodes[inodes_known++] = inode;
    }
    return inode;
}

/* Takes the lock and returns the inode if this is a file of the folder, or the folder; zero, and no lock, if not. */
static uint64_t locked(int fd) {
    struct stat found;
    if (record < 0 || fstat(fd, &found) || found.st_dev != device ||
        !(S_ISREG(found.st_mode) || S_ISDIR(found.st_mode)))
        return 0;
    pthread_mutex_lock(&lock);
    if (is_known(found.st_ino))
        return found.st_ino;
    pthread_mutex_unlock(&lock);
    return 0;
}

static void unlock(void) { pthread_mutex_unlock(&lock); }

/* The file's name if the path leads into the folder. */
static const char *name_of(const char *path) {
    size_t bytes = record < 0 ? 0 : strlen(folder);
    return bytes && !strncmp(path, folder, bytes) && path[bytes] == '/' ? path + bytes + 1 : NULL;
}

static const char *name_at(int at, const char *path) {
    if (at != AT_FDCWD && *path != '/' && locked(at)) {
        not_understood("a path that begins at an open folder");
        unlock();
    }
    return name_of(path);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_RECORD");
    struct stat found;
    folder = getenv("POWER_FOLDER");
    if (!folder || !path || stat(folder, &found))
        return;
    device = found.st_dev;
    know(found.st_ino);
    record = REAL(open64)(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (record < 0)
        abort();
}

/* The end of the process waits for a change that is made, and lets no other thread begin one. */
__attribute__((destructor)) static void end(void) { pthread_mutex_lock(&lock); }

/* Names. They are recorded afterwards, because many of these calls are expected to fail. */

static int opened(const char *path, int flags, mode_t mode) {
    const char *name = name_of(path);
    struct stat found;
    int was_there, fd;
    if (!name)
        return REAL(open64)(path, flags, mode);
    pthread_mutex_lock(&lock);
    was_there = !stat(path, &found);
    fd = REAL(open64)(path, flags, mode);
    if (fd >= 0 && !fstat(fd, &found)) {
        know(found.st_ino);
        if (!was_there)
            append(CREATED, found.st_ino, 0, name, strlen(name));
        else if (flags & O_TRUNC)
            append(RESIZED, found.st_ino, 0, NULL, 0);
    }
    unlock();
    return fd;
}

#define MODE_OF(flags)                                                                                                 \
    ({                                                                                                                 \
        mode_t mode = 0;                                                                                               \
        if ((flags) & (O_CREAT | __O_TMPFILE)) {                                                                       \
            va_list more;                                                                                              \
            va_start(more, flags);                                                                                     \
            mode = va_arg(more, mode_t);                                                                               \
            va_end(more);                                                                                              \
        }                                                                                                              \
        mode;                                                                                                          \
    })

int open(const char *path, int flags, ...) { return opened(path, flags, MODE_OF(flags)); }

int open64(const char *path, int flags, ...) { return opened(path, flags, MODE_OF(flags)); }

int openat(int at, const char *path, int flags, ...) {
    mode_t mode = MODE_OF(flags);
    return name_at(at, path) ? opened(path, flags, mode) : REAL(openat)(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    mode_t mode = MODE_OF(flags);
    return name_at(at, path) ? opened(path, flags, mode) : REAL(openat64)(at, path, flags, mode);
}

int creat(const char *path, mode_t mode) { return opened(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int creat64(const char *path, mode_t mode) { return opened(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int unlinkat(int at, const char *path, int flags) {
    const char *name = name_at(at, path);
    int failed;
    if (!name)
        return REAL(unlinkat)(at, path, flags);
    pthread_mutex_lock(&lock);
    failed = REAL(unlinkat)(at, path, flags);
    if (!failed)
        append(UNLINKED, 0, 0, name, strlen(name));
    unlock();
    return failed;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    const char *old = name_at(from_at, from), *new = name_at(to_at, to);
    char names[512];
    int failed;
    if (!old && !new)
        return REAL(renameat2)(from_at, from, to_at, to, flags);
    pthread_mutex_lock(&lock);
    failed = REAL(renameat2)(from_at, from, to_at, to, flags);
    if (!failed && old && new && !(flags & RENAME_EXCHANGE)) {
        size_t bytes = (size_t)snprintf(names, sizeof names, "%s%c%s", old, 0, new);
        if (bytes >= sizeof names)
            abort();
        append(RENAMED, 0, 0, names, bytes);
    } else if (!failed) {
        not_understood("a file that moves into the folder or out of it");
    }
    unlock();
    return failed;
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    return renameat2(from_at, from, to_at, to, 0);
}

int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    const char *old = name_at(from_at, from), *new = name_at(to_at, to);
    struct stat found;
    int failed;
    if (!new)
        return REAL(linkat)(from_at, from, to_at, to, flags);
    pthread_mutex_lock(&lock);
    failed = REAL(linkat)(from_at, from, to_at, to, flags);
    if (!failed && old && !stat(to, &found))
        append(LINKED, found.st_ino, 0, new, strlen(new));
    else if (!failed)
        not_understood("a link to a file of another folder");
    unlock();
    return failed;
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

/* Content. */

static ssize_t written(int fd, uint64_t inode, const void *data, size_t bytes, off64_t offset, int moves) {
    ssize_t done;
    append(WRITTEN, inode, (uint64_t)offset, data, bytes);
    done = moves ? REAL(write)(fd, data, bytes) : REAL(pwrite64)(fd, data, bytes, offset);
    if (done != (ssize_t)bytes)
        not_understood("a write that failed, or was cut short");
    unlock();
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
    uint64_t inode = locked(fd);
    return inode ? written(fd, inode, data, bytes, offset, 0) : REAL(pwrite64)(fd, data, bytes, offset);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) { return pwrite64(fd, data, bytes, offset); }

ssize_t write(int fd, const void *data, size_t bytes) {
    uint64_t inode = locked(fd);
    int is_at_end;
    if (!inode)
        return REAL(write)(fd, data, bytes);
    is_at_end = fcntl(fd, F_GETFL) & O_APPEND;
    return written(fd, inode, data, bytes, lseek64(fd, 0, is_at_end ? SEEK_END : SEEK_CUR), 1);
}

int ftruncate64(int fd, off64_t bytes) {
    uint64_t inode = locked(fd);
    int failed;
    if (!inode)
        return REAL(ftruncate64)(fd, bytes);
    append(RESIZED, inode, (uint64_t)bytes, NULL, 0);
    failed = REAL(ftruncate64)(fd, bytes);
    if (failed)
        not_understood("a file that could not be given another size");
    unlock();
    return failed;
}

int ftruncate(int fd, off_t bytes) { return ftruncate64(fd, bytes); }

static int synced(int (*sync)(int), int fd) {
    uint64_t inode = locked(fd), began;
    int failed;
    if (!inode)
        return sync(fd);
    began = append(SYNC_BEGAN, inode, 0, NULL, 0);
    unlock();
    failed = sync(fd);
    if (!failed) {
        pthread_mutex_lock(&lock);
        append(SYNC_ENDED, inode, began, NULL, 0);
        unlock();
    }
    return failed;
}

int fsync(int fd) { return synced(REAL(fsync), fd); }

/* It leaves out times only: a size that is needed to read what was written goes with it. */
int fdatasync(int fd) { return synced(REAL(fdatasync), fd); }

/* sync_file_range(2) is left alone: it promises nothing after a power cut, so nothing is recorded for it. */

/* Ways to change a file that the relay does not use. */

static void refuse(int fd, const char *what) {
    if (locked(fd)) {
        not_understood(what);
        unlock();
    }
}

#define REFUSED(result, name, arguments, called, fd)                                                                   \
    result name arguments {                                                                                            \
        refuse(fd, #name);                                                                                         \
        return REAL(name) called;                                                                                      \
    }

REFUSED(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), fd)
REFUSED(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at), fd)
REFUSED(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at), fd)
REFUSED(int, fallocate, (int fd, int mode, off_t at, off_t bytes), (fd, mode, at, bytes), fd)
REFUSED(int, fallocate64, (int fd, int mode, off64_t at, off64_t bytes), (fd, mode, at, bytes), fd)
REFUSED(int, posix_fallocate, (int fd, off_t at, off_t bytes), (fd, at, bytes), fd)
REFUSED(int, posix_fallocate64, (int fd, off64_t at, off64_t bytes), (fd, at, bytes), fd)
REFUSED(ssize_t, sendfile, (int to, int from, off_t *at, size_t bytes), (to, from, at, bytes), to)
REFUSED(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t bytes), (to, from, at, bytes), to)
REFUSED(ssize_t, copy_file_range, (int from, off64_t *at, int to, off64_t *there, size_t bytes, unsigned flags),
        (from, at, to, there, bytes, flags), to)

int truncate64(const char *path, off64_t bytes) {
    if (name_of(path)) {
        pthread_mutex_lock(&lock);
        not_understood("truncate");
        unlock();
    }
    return REAL(truncate64)(path, bytes);
}

int truncate(const char *path, off_t bytes) { return truncate64(path, bytes); }
