/* Copying a file, a symlink or a tree within the guest, as `cp -a` does: modes, times, owners where that is allowed,
 * metadata, holes. The content stays in the kernel where it can. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files.h"

#define CHUNK_BYTES (64 * KIB)
#define RANGE_BYTES (1024 * MIB) /* asked of one copy_file_range */

struct copy {
    bool keep; /* what is there already stays, and is an error */
    int target;
    const char *name; /* in it */
};

struct made { /* a directory of the copy that is being filled */
    int fd;
    bool fresh;
    struct stat about; /* of the one it is copied from */
};

/* --- content ----------------------------------------------------------------------------------------------------- */

static int copy_by_hand(int from, int to, off_t at, off_t end) {
    static uint8_t chunk[CHUNK_BYTES];
    while (end < 0 || at < end) {
        size_t want = end >= 0 && end - at < (off_t)sizeof chunk ? (size_t)(end - at) : sizeof chunk;
        ssize_t got = pread(from, chunk, want, at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? errno : 0;
        for (ssize_t done = 0; done < got;) {
            ssize_t put = pwrite(to, chunk + done, (size_t)(got - done), at + done);
            if (put < 0 && errno != EINTR) return errno;
            if (put > 0) done += put;
        }
        at += got;
    }
    return 0;
}

static int copy_range(int from, int to, off_t at, off_t end) {
    while (at < end) {
        off_t source = at, target = at;
        size_t want = end - at < (off_t)RANGE_BYTES ? (size_t)(end - at) : RANGE_BYTES;
        ssize_t got = copy_file_range(from, &source, to, &target, want, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EIO || errno == EFBIG)) return errno;
        if (got <= 0) return copy_by_hand(from, to, at, end); /* it cannot here, or the file has become shorter */
        at += got;
    }
    return 0;
}

static int copy_content(int from, int to, off_t size) {
    if (size == 0) return copy_by_hand(from, to, 0, -1); /* files of /proc say so, and are not empty */
    for (off_t at = 0; at < size;) {
        off_t data = lseek(from, at, SEEK_DATA), hole = data < 0 ? -1 : lseek(from, data, SEEK_HOLE);
        if (data < 0 && errno == ENXIO) break; /* a hole to the end */
        if (data < 0 || hole <= data) {
            data = at;
            hole = size;
        }
        if (hole > size) hole = size;
        int error = copy_range(from, to, data, hole);
        if (error) return error;
        at = hole;
    }
    return ftruncate(to, size) < 0 ? errno : 0;
}

static void copy_attributes(int from, int to) {
    static char list[ATTRIBUTE_LIST_BYTES], value[ATTRIBUTE_BYTES];
    ssize_t length = flistxattr(from, list, sizeof list);
    for (ssize_t at = 0; at < length; at += (ssize_t)strlen(list + at) + 1) {
        if (strncmp(list + at, "user.", 5) != 0) continue;
        ssize_t got = fgetxattr(from, list + at, value, sizeof value);
        if (got >= 0) fsetxattr(to, list + at, value, (size_t)got, 0); /* where it cannot, the copy does without */
    }
}

static int finish(int fd, const struct stat *about) {
    mode_t mode = about->st_mode & 07777;
    if (fchown(fd, about->st_uid, about->st_gid) < 0) mode &= 0777; /* no set-id for somebody else's program */
    if (fchmod(fd, mode) < 0) return errno;
    struct timespec times[2] = {about->st_atim, about->st_mtim};
    return futimens(fd, times) < 0 ? errno : 0;
}

/* --- one entry --------------------------------------------------------------------------------------------------- */

/* Makes way for something that is no directory. */
static int make_way(const struct copy *copy, bool for_file) {
    struct stat there;
    if (fstatat(copy->target, copy->name, &there, AT_SYMLINK_NOFOLLOW) < 0) return errno == ENOENT ? 0 : errno;
    if (copy->keep) return EEXIST;
    if (S_ISDIR(there.st_mode)) return EISDIR;
    if (for_file && S_ISREG(there.st_mode)) return 0; /* written in place */
    return unlinkat(copy->target, copy->name, 0) < 0 && errno != ENOENT ? errno : 0;
}

static int copy_file(int directory, const char *name, const struct copy *copy) {
    struct stat about, there;
    int error = make_way(copy, true);
    if (error) return error;
    int from = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (from < 0) return errno;
    int flags = O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    if (copy->keep) flags |= O_EXCL; /* it may have come into being just now */
    int to = openat(copy->target, copy->name, flags, 0600);
    if (to < 0 || fstat(from, &about) < 0 || fstat(to, &there) < 0) error = errno;
    else if (!S_ISREG(about.st_mode) || !S_ISREG(there.st_mode)) error = NOT_A_FILE;
    else if (about.st_dev == there.st_dev && about.st_ino == there.st_ino) error = BAD_PATH;
    else if (there.st_size > 0 && ftruncate(to, 0) < 0) error = errno;
    if (!error) error = copy_content(from, to, about.st_size);
    if (!error) copy_attributes(from, to);
    if (!error) error = finish(to, &about);
    if (to >= 0 && close(to) < 0 && !error) error = errno;
    close(from);
    return error;
}

static int copy_symlink(int directory, const char *name, const struct stat *about, const struct copy *copy) {
    char text[PATH_BYTES_MAX];
    ssize_t length = readlinkat(directory, name, text, sizeof text - 1);
    if (length < 0) return errno;
    text[length] = 0;
    int error = make_way(copy, false);
    if (error) return error;
    if (symlinkat(text, copy->target, copy->name) < 0) return errno;
    struct timespec times[2] = {about->st_atim, about->st_mtim};
    if (fchownat(copy->target, copy->name, about->st_uid, about->st_gid, AT_SYMLINK_NOFOLLOW) < 0 && errno != EPERM)
        return errno;
    utimensat(copy->target, copy->name, times, AT_SYMLINK_NOFOLLOW);
    return 0;
}

static int copy_fifo(const struct stat *about, const struct copy *copy) {
    int error = make_way(copy, false);
    if (!error && mkfifoat(copy->target, copy->name, about->st_mode & 0777) < 0) error = errno;
    return error;
}

static int copy_leaf(int directory, const char *name, const struct stat *about, const struct copy *copy) {
    if (S_ISREG(about->st_mode)) return copy_file(directory, name, copy);
    if (S_ISLNK(about->st_mode)) return copy_symlink(directory, name, about, copy);
    if (S_ISFIFO(about->st_mode)) return copy_fifo(about, copy);
    return NOT_A_FILE;
}

/* --- trees ------------------------------------------------------------------------------------------------------- */

/* The directory to fill; one that is there is filled too, and keeps its mode. */
static int begin_directory(const struct copy *copy, const struct stat *about, struct made *made) {
    made->about = *about;
    made->fresh = mkdirat(copy->target, copy->name, 0700) == 0;
    if (!made->fresh && (errno != EEXIST || copy->keep)) return errno;
    made->fd = openat(copy->target, copy->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return made->fd < 0 ? errno : 0;
}

static int end_directory(struct made *made) {
    int error = made->fresh ? finish(made->fd, &made->about) : 0;
    close(made->fd);
    return error;
}

static int copy_below(struct walk *walk, struct made *made, size_t *depth, bool all) {
    while (walk_next(walk)) {
        struct stat about;
        int error = 0;
        if (walk->left) {
            error = end_directory(&made[--*depth]);
            if (error) return error;
            continue;
        }
        if (fstatat(walk->directory, walk->name, &about, AT_SYMLINK_NOFOLLOW) < 0) continue;
        struct copy copy = {.keep = true, .target = made[*depth - 1].fd, .name = walk->name};
        copy.keep = made[*depth - 1].fresh; /* nothing of ours is there twice; what was there before is replaced */
        if (S_ISDIR(about.st_mode)) {
            error = walk_enter(walk);
            if (error == ENOENT) continue; /* gone meanwhile, as any other entry may be */
            if (!error) error = begin_directory(&copy, &about, &made[*depth]);
            if (!error) ++*depth;
        } else {
            error = copy_leaf(walk->directory, walk->name, &about, &copy);
            if (error == ENOENT || (error == NOT_A_FILE && !all)) error = 0;
        }
        if (error) return error;
    }
    return 0;
}

/* Whether `directory` is, or lies below, what `about` is of: then a copy would never end. */
static bool lies_within(int directory, const struct stat *about) {
    int fd = openat(directory, ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct stat here, above;
    bool within = false;
    while (fd >= 0 && fstat(fd, &here) == 0) {
        within = here.st_dev == about->st_dev && here.st_ino == about->st_ino;
        int up = within ? -1 : openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
        close(fd);
        fd = up;
        if (fd < 0 || fstat(fd, &above) < 0 || (above.st_dev == here.st_dev && above.st_ino == here.st_ino)) break;
    }
    if (fd >= 0) close(fd);
    return within;
}

static int copy_tree(const struct place *from, const struct copy *copy, const struct stat *about, bool all) {
    if (lies_within(copy->target, about)) return BAD_PATH;
    int fd = openat(from->directory, from->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return errno;
    struct walk walk;
    struct made *made = calloc(FILES_DEPTH_MAX + 1, sizeof *made);
    size_t depth = 0;
    int error = walk_begin(&walk, fd);
    if (!made) error = ENOMEM;
    if (!error) error = begin_directory(copy, about, &made[0]);
    if (!error) {
        depth = 1;
        error = copy_below(&walk, made, &depth, all);
    }
    while (depth > 0) {
        int failed = end_directory(&made[--depth]);
        if (!error) error = failed;
    }
    walk_end(&walk);
    free(made);
    return error;
}

/* `all`: what cannot be copied (sockets, devices) is an error, because the original is about to be removed. */
int tree_copy(const struct place *from, const struct place *to, bool recursive, bool keep, bool all) {
    struct stat about;
    struct copy copy = {.keep = keep, .target = to->directory, .name = to->name};
    if (fstatat(from->directory, from->name, &about, AT_SYMLINK_NOFOLLOW) < 0) return errno;
    if (!S_ISDIR(about.st_mode)) return copy_leaf(from->directory, from->name, &about, &copy);
    return recursive ? copy_tree(from, &copy, &about, all) : EISDIR;
}
