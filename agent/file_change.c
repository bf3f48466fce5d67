/* Requests that change names, modes, owners and times: FILE_MKDIR, FILE_MOVE, FILE_COPY, FILE_REMOVE, FILE_CHANGE ... */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"

#define RENAME_KEEP 1u /* RENAME_NOREPLACE */

static const struct owner NOBODY = {NO_ID, NO_ID};
static unsigned moves;

void file_mkdir(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX];
    uint8_t flags = take_u8(reader);
    uint32_t mode = take_u32(reader), made = 0;
    struct owner owner = {take_u32(reader), 0};
    owner.gid = take_u32(reader);
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    struct place place;
    struct stat about;
    int error = good ? place_open(path, flags & PLACE_PARENTS ? mode : NO_ID, owner, &place, &made) : BAD_PATH;
    if (!error) {
        error = make_directory(place.directory, place.name, mode, owner);
        if (!error) made++;
        if (error == EEXIST && fstatat(place.directory, place.name, &about, 0) == 0 && S_ISDIR(about.st_mode)) error = 0;
        close(place.directory);
    }
    uint8_t before[4];
    poke_u32(before, made);
    if (error) served_error(served, error);
    else answer_entry(served, MADE, before, sizeof before, path);
}

/* --- from here to there ------------------------------------------------------------------------------------------ */

struct transfer { /* FILE_MOVE and FILE_COPY */
    uint8_t flags;
    uint32_t mode;
    struct owner owner;
    char source[PATH_BYTES_MAX], target[PATH_BYTES_MAX];
    struct place from, to;
};

static int take_transfer(struct served *served, struct reader *reader, struct transfer *transfer) {
    transfer->flags = take_u8(reader);
    transfer->mode = take_u32(reader);
    transfer->owner.uid = take_u32(reader);
    transfer->owner.gid = take_u32(reader);
    bool good = take_path(reader, transfer->source);
    good = take_path(reader, transfer->target) && good;
    if (!reader_done(reader)) served_broken(served);
    uint32_t made = 0;
    struct stat about;
    if (!good) return BAD_PATH;
    int error = place_open(transfer->source, NO_ID, NOBODY, &transfer->from, &made);
    if (error) return error;
    if (fstatat(transfer->from.directory, transfer->from.name, &about, AT_SYMLINK_NOFOLLOW) < 0) {
        error = errno; /* before any directory is made for it */
    } else {
        uint32_t mode = transfer->flags & PLACE_PARENTS ? transfer->mode : NO_ID;
        error = place_open(transfer->target, mode, transfer->owner, &transfer->to, &made);
    }
    if (error) close(transfer->from.directory);
    return error;
}

static void end_transfer(struct served *served, struct transfer *transfer, int error) {
    close(transfer->from.directory);
    close(transfer->to.directory);
    if (error) served_error(served, error);
    else answer_entry(served, ENTRY, NULL, 0, transfer->target);
}

static int rename_place(const struct place *from, const struct place *to, bool keep) {
    long done = syscall(SYS_renameat2, from->directory, from->name, to->directory, to->name, keep ? RENAME_KEEP : 0);
    if (done == 0) return 0;
    if (errno != EINVAL && errno != ENOSYS) return errno;
    int error = errno; /* into itself; or a file system without RENAME_NOREPLACE */
    struct stat about;
    if (keep && fstatat(to->directory, to->name, &about, AT_SYMLINK_NOFOLLOW) == 0) return EEXIST;
    if (!keep && error == EINVAL) return BAD_PATH;
    if (renameat(from->directory, from->name, to->directory, to->name) == 0) return 0;
    return errno == EINVAL ? BAD_PATH : errno;
}

/* Where rename(2) cannot: another file system, or a directory that came with the template. Copied beside the target, put
 * in place at once, and only then removed. */
static int move_across(const struct place *from, const struct place *to, bool keep) {
    struct place beside = {.directory = to->directory};
    snprintf(beside.name, sizeof beside.name, ".moving-%d-%u", (int)getpid(), ++moves);
    int error = tree_copy(from, &beside, true, true, true);
    if (!error) error = rename_place(&beside, to, keep);
    if (error) tree_remove(beside.directory, beside.name, true);
    else error = tree_remove(from->directory, from->name, true);
    return error;
}

void file_move(struct served *served, struct reader *reader) {
    struct transfer *transfer = malloc(sizeof *transfer);
    if (!transfer) _exit(1);
    int error = take_transfer(served, reader, transfer);
    if (error) {
        served_error(served, error);
    } else {
        bool keep = transfer->flags & PLACE_KEEP;
        error = rename_place(&transfer->from, &transfer->to, keep);
        if (error == EXDEV) error = move_across(&transfer->from, &transfer->to, keep);
        end_transfer(served, transfer, error);
    }
    free(transfer);
}

void file_copy(struct served *served, struct reader *reader) {
    struct transfer *transfer = malloc(sizeof *transfer);
    if (!transfer) _exit(1);
    int error = take_transfer(served, reader, transfer);
    if (error) {
        served_error(served, error);
    } else {
        error = tree_copy(&transfer->from, &transfer->to, transfer->flags & PLACE_RECURSIVE,
                          transfer->flags & PLACE_KEEP, false);
        end_transfer(served, transfer, error);
    }
    free(transfer);
}

void file_remove(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX];
    struct place place;
    uint32_t made;
    uint8_t flags = take_u8(reader);
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    int error = good ? place_open(path, NO_ID, NOBODY, &place, &made) : BAD_PATH;
    if (!error) {
        /* The kernel has no words for these, and `..` must not become its parent. */
        bool dots = strcmp(place.name, ".") == 0 || strcmp(place.name, "..") == 0;
        error = dots ? BAD_PATH : tree_remove(place.directory, place.name, flags & PLACE_RECURSIVE);
        close(place.directory);
    }
    if (error) served_error(served, error);
    else served_done(served);
}

/* --- modes, owners, times ---------------------------------------------------------------------------------------- */

struct change {
    uint8_t flags;
    uint32_t mode;
    struct owner owner;
    struct timespec times[2];
    bool owned, timed;
};

/* What `fd` (O_PATH) stands for, symlinks themselves included. The owner first: that takes set-id bits away. */
static int change_one(int fd, const struct change *change) {
    struct stat about;
    char name[16];
    if (fstat(fd, &about) < 0) return errno;
    if (change->owned && fchownat(fd, "", change->owner.uid, change->owner.gid, AT_EMPTY_PATH) < 0) return errno;
    snprintf(name, sizeof name, "%d", fd); /* chmod knows no descriptor that was not opened to read */
    bool moded = change->mode != NO_ID && !S_ISLNK(about.st_mode);
    if (moded && fchmodat(own_descriptors, name, change->mode & 07777, 0) < 0) return errno;
    if (change->timed && S_ISLNK(about.st_mode)) return utimensat(fd, "", change->times, AT_EMPTY_PATH) < 0 ? errno : 0;
    return change->timed && utimensat(own_descriptors, name, change->times, 0) < 0 ? errno : 0;
}

static int change_below(int root, const struct change *change) {
    struct walk walk;
    int fd = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = fd < 0 ? errno : 0;
    if (error == EACCES && !change_one(root, change)) { /* perhaps that lets us in */
        fd = openat(root, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        error = fd < 0 ? errno : 0;
    }
    if (error) return error;
    error = walk_begin(&walk, fd);
    while (!error && walk_next(&walk)) {
        if (walk.left) continue;
        fd = openat(walk.directory, walk.name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0) continue; /* gone meanwhile */
        struct stat about;
        bool directory = fstat(fd, &about) == 0 && S_ISDIR(about.st_mode);
        int entered = directory ? walk_enter(&walk) : 0; /* before a change that may lock us out */
        error = change_one(fd, change);
        if (!error && entered == EACCES) entered = walk_enter(&walk); /* after one that let us in */
        close(fd);
        if (!error && entered && entered != ENOENT && entered != ENOTDIR) error = entered;
    }
    walk_end(&walk);
    return error;
}

static void take_times(struct reader *reader, struct change *change) {
    for (int i = 0; i < 2; i++) {
        uint64_t raw = take_u64(reader);
        int64_t time = (int64_t)raw, seconds = time / 1000000000, rest = time % 1000000000;
        if (rest < 0) {
            seconds--;
            rest += 1000000000;
        }
        change->times[i] = (struct timespec){.tv_sec = seconds, .tv_nsec = (long)rest};
        if (raw == (uint64_t)INT64_MIN) change->times[i].tv_nsec = UTIME_OMIT;
        else change->timed = true;
    }
}

void file_change(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX];
    struct change change = {.flags = take_u8(reader)};
    change.mode = take_u32(reader);
    change.owner.uid = take_u32(reader);
    change.owner.gid = take_u32(reader);
    change.owned = change.owner.uid != NO_ID || change.owner.gid != NO_ID;
    take_times(reader, &change);
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    int fd = -1, error = good ? 0 : BAD_PATH;
    struct stat about;
    if (!error) {
        fd = open(path, O_PATH | O_CLOEXEC | (change.flags & CHANGE_FOLLOW ? 0 : O_NOFOLLOW));
        error = fd < 0 || fstat(fd, &about) < 0 ? errno : 0;
    }
    if (!error && change.flags & CHANGE_RECURSIVE && S_ISDIR(about.st_mode)) error = change_below(fd, &change);
    if (!error) error = change_one(fd, &change); /* last: it may take away the way in */
    if (fd >= 0) close(fd);
    if (error) served_error(served, error);
    else answer_entry(served, ENTRY, NULL, 0, path);
}

void file_metadata(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX];
    struct text pairs;
    struct stat about;
    bool good = take_path(reader, path);
    uint32_t count = take_texts(reader, &pairs);
    if (!reader_done(reader)) served_broken(served);
    int fd = -1, error = good ? 0 : BAD_PATH;
    if (!error && stat(path, &about) < 0) error = errno;
    if (!error && !S_ISREG(about.st_mode) && !S_ISDIR(about.st_mode)) error = NOT_A_FILE;
    if (!error && (fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)) < 0) error = errno;
    if (!error) error = metadata_replace(fd, pairs, count);
    if (fd >= 0) close(fd);
    if (error) served_error(served, error);
    else answer_entry(served, ENTRY, NULL, 0, path);
}

void file_symlink(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX], text[PATH_BYTES_MAX];
    struct place place;
    uint32_t made;
    bool good = take_path(reader, path);
    struct text target = take_text(reader);
    if (!reader_done(reader)) served_broken(served);
    if (target.length == 0 || target.length >= sizeof text || memchr(target.bytes, 0, target.length)) good = false;
    int error = good ? place_open(path, NO_ID, NOBODY, &place, &made) : BAD_PATH;
    if (!error) {
        memcpy(text, target.bytes, target.length);
        text[target.length] = 0;
        error = symlinkat(text, place.directory, place.name) < 0 ? errno : 0;
        close(place.directory);
    }
    if (error) served_error(served, error);
    else answer_entry(served, ENTRY, NULL, 0, path);
}
