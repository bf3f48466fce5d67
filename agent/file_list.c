/* Requests that look through whole trees: FILE_LIST, FILE_SIZE. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "files.h"

struct listing {
    bool metadata;
    uint32_t depth, left;
    size_t count_at; /* in the answers: where this frame's number of entries belongs */
    uint32_t count;  /* of this frame; 0: no frame is open */
    struct writer writer;
};

static void close_frame(struct served *served, struct listing *listing) {
    if (listing->count == 0) return;
    struct buffer *out = &served->out;
    if (!listing->writer.failed) poke_u32(out->bytes + out->first + listing->count_at, listing->count);
    listing->count = 0;
    answer_end(served, &listing->writer);
}

static void say(struct served *served, struct listing *listing, const struct walk *walk, const struct stat *about) {
    if (listing->count == 0) {
        listing->writer = answer_begin(served, ENTRIES);
        listing->count_at = buffer_length(&served->out);
        put_u32(&listing->writer, 0);
    }
    listing->count++;
    put_entry(&listing->writer, walk->name, walk->path, about, listing->metadata);
    if (buffer_length(&served->out) >= FILES_GATHER_BYTES) close_frame(served, listing);
}

/* What vanished meanwhile, or may not be looked at, is passed over. */
static int list(struct served *served, struct listing *listing, struct walk *walk) {
    while (walk_next(walk)) {
        struct stat about;
        if (walk->left) { /* names are looked at from their directory: that is where attributes and links are found */
            if (fchdir(walk->directory) < 0) return errno;
            continue;
        }
        if (fstatat(walk->directory, walk->name, &about, AT_SYMLINK_NOFOLLOW) < 0) continue;
        if (listing->left-- == 0) return FILE_LIMIT;
        say(served, listing, walk, &about);
        if (!S_ISDIR(about.st_mode) || walk->depth >= listing->depth) continue;
        int error = walk_enter(walk);
        if (error == FILE_LIMIT || error == ENOMEM || error == EMFILE || error == ENFILE) return error;
        if (!error && fchdir(walk->levels[walk->depth - 1].fd) < 0) {
            walk->levels[walk->depth - 1].next = walk->levels[walk->depth - 1].names.count; /* names without a way in */
        }
    }
    return 0;
}

static int open_root(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 ? -errno : fd;
}

void file_list(struct served *served, struct reader *reader) {
    struct listing listing = {0};
    char path[PATH_BYTES_MAX];
    listing.metadata = take_u8(reader) & FILE_WITH_METADATA;
    listing.depth = take_u32(reader);
    listing.left = take_u32(reader);
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    if (listing.depth == 0) listing.depth = 1;
    int fd = good ? open_root(path) : -BAD_PATH, error = fd < 0 ? -fd : 0;
    if (!error && fchdir(fd) < 0) {
        error = errno;
        close(fd);
    }
    if (!error) {
        struct walk walk;
        error = walk_begin(&walk, fd);
        if (!error) error = list(served, &listing, &walk);
        walk_end(&walk);
        close_frame(served, &listing);
    }
    if (chdir("/") < 0) _exit(1);
    if (error) served_error(served, error);
    else served_done(served);
}

static int add_up(struct walk *walk, uint64_t *bytes, uint64_t *entries) {
    struct stat about;
    while (walk_next(walk)) {
        if (walk->left || fstatat(walk->directory, walk->name, &about, AT_SYMLINK_NOFOLLOW) < 0) continue;
        ++*entries;
        if (S_ISREG(about.st_mode)) *bytes += (uint64_t)about.st_size;
        int error = S_ISDIR(about.st_mode) ? walk_enter(walk) : 0;
        if (error == FILE_LIMIT || error == ENOMEM || error == EMFILE || error == ENFILE) return error;
    }
    return 0;
}

void file_size(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX];
    struct stat about;
    uint64_t bytes = 0, entries = 0;
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    int error = !good ? BAD_PATH : stat(path, &about) < 0 ? errno : 0;
    if (!error && S_ISDIR(about.st_mode)) {
        struct walk walk;
        int fd = open_root(path);
        error = fd < 0 ? -fd : walk_begin(&walk, fd);
        if (!error) error = add_up(&walk, &bytes, &entries);
        if (fd >= 0) walk_end(&walk);
    } else if (!error) {
        bytes = S_ISREG(about.st_mode) ? (uint64_t)about.st_size : 0;
        entries = 1;
    }
    if (error) {
        served_error(served, error);
        return;
    }
    struct writer writer = answer_begin(served, SIZE);
    put_u64(&writer, bytes);
    put_u64(&writer, entries);
    answer_end(served, &writer);
}
