/* Walking through directories that somebody may change meanwhile: by descriptors, never through a symlink, with bounds
 * on depth and on the memory that names take. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "files.h"

#define DIRENTS_BYTES (64 * KIB)

struct kernel_dirent { /* getdents64(2) */
    uint64_t inode;
    int64_t next;
    uint16_t bytes;
    uint8_t type;
    char name[];
};

static bool names_add(struct names *names, const char *name) {
    size_t length = strlen(name) + 1;
    if (names->used + length > names->capacity) {
        size_t capacity = names->capacity ? names->capacity * 2 : 1024;
        while (capacity < names->used + length) capacity *= 2;
        char *bytes = realloc(names->bytes, capacity);
        if (!bytes) return false;
        names->bytes = bytes;
        names->capacity = capacity;
    }
    if (names->count == names->room) {
        size_t room = names->room ? names->room * 2 : 64;
        uint32_t *at = realloc(names->at, room * sizeof *at);
        if (!at) return false;
        names->at = at;
        names->room = room;
    }
    names->at[names->count++] = (uint32_t)names->used;
    memcpy(names->bytes + names->used, name, length);
    names->used += length;
    return true;
}

/* From where the descriptor stands. With `more` it stops after `bytes_max`; without, more names than that are an error. */
int names_read(int directory, struct names *names, size_t bytes_max, bool *more) {
    _Alignas(struct kernel_dirent) static char entries[DIRENTS_BYTES];
    if (more) *more = false;
    for (;;) {
        long got = syscall(SYS_getdents64, directory, entries, sizeof entries);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return got < 0 ? errno : 0;
        for (long at = 0; at < got;) {
            const struct kernel_dirent *entry = (const void *)(entries + at);
            at += entry->bytes;
            if (strcmp(entry->name, ".") == 0 || strcmp(entry->name, "..") == 0) continue;
            if (!names_add(names, entry->name)) return ENOMEM;
        }
        if (names->used <= bytes_max) continue;
        if (!more) return FILE_LIMIT;
        *more = true;
        return 0;
    }
}

static const char *sorted_bytes; /* qsort gives its comparison nothing to hold on to */

static int compare_names(const void *one, const void *other) {
    return strcmp(sorted_bytes + *(const uint32_t *)one, sorted_bytes + *(const uint32_t *)other);
}

void names_sort(struct names *names) {
    sorted_bytes = names->bytes;
    if (names->count > 1) qsort(names->at, names->count, sizeof *names->at, compare_names);
}

void names_free(struct names *names) {
    free(names->bytes);
    free(names->at);
    *names = (struct names){0};
}

/* --- the walk ---------------------------------------------------------------------------------------------------- */

static int push(struct walk *walk, int fd) {
    struct level *level = &walk->levels[walk->depth];
    *level = (struct level){.fd = fd, .path_bytes = strlen(walk->path)};
    int error = names_read(fd, &level->names, FILES_NAMES_BYTES_MAX - walk->names_bytes, NULL);
    if (error) {
        names_free(&level->names);
        close(fd);
        return error;
    }
    names_sort(&level->names);
    walk->names_bytes += level->names.used;
    walk->depth++;
    return 0;
}

static void pop(struct walk *walk) {
    struct level *level = &walk->levels[--walk->depth];
    walk->names_bytes -= level->names.used;
    names_free(&level->names);
    close(level->fd);
}

int walk_begin(struct walk *walk, int directory) {
    *walk = (struct walk){0};
    walk->levels = calloc(FILES_DEPTH_MAX, sizeof *walk->levels); /* pages of levels that are not used cost nothing */
    walk->path = malloc(FILES_WALK_PATH_BYTES);
    if (!walk->levels || !walk->path) {
        close(directory);
        return ENOMEM;
    }
    walk->path[0] = 0;
    return push(walk, directory);
}

bool walk_next(struct walk *walk) {
    walk->left = false;
    if (walk->depth == 0) return false;
    struct level *level = &walk->levels[walk->depth - 1];
    size_t at = level->path_bytes, length = 0;
    walk->path[at] = 0;
    while (level->next < level->names.count) { /* no path of that length can be asked for: passed over */
        walk->name = level->names.bytes + level->names.at[level->next];
        length = strlen(walk->name);
        if (at + length + 2 <= FILES_WALK_PATH_BYTES) break;
        level->next++;
    }
    if (level->next == level->names.count) {
        pop(walk);
        walk->left = true;
        if (walk->depth == 0) return false;
        level = &walk->levels[walk->depth - 1]; /* of the directory that is done, in the one above */
        walk->directory = level->fd;
        walk->name = level->names.bytes + level->names.at[level->next - 1];
        return true;
    }
    walk->directory = level->fd;
    level->next++;
    if (at > 0) walk->path[at++] = '/';
    memcpy(walk->path + at, walk->name, length + 1);
    return true;
}

int walk_enter(struct walk *walk) {
    if (walk->depth == FILES_DEPTH_MAX) return FILE_LIMIT;
    int fd = openat(walk->directory, walk->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 ? errno : push(walk, fd);
}

void walk_end(struct walk *walk) {
    while (walk->depth > 0) pop(walk);
    free(walk->levels);
    free(walk->path);
}
