/* What is said of a file system entry: its numbers, names of owner and group, where a symlink leads, metadata. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files.h"

#define METADATA_PREFIX "user.e2b." /* E2B's own: files of one guest may move to another service with their metadata */
#define METADATA_NAME_BYTES 256     /* the kernel's XATTR_NAME_MAX and a NUL */

/* --- owners ------------------------------------------------------------------------------------------------------ */

struct id_name {
    uint32_t id, order;
    const char *name;
};

struct accounts { /* of /etc/passwd or /etc/group, read again when the file changes */
    const char *path;
    struct stat read;
    char *text;
    struct id_name *items;
    size_t count;
};

static int compare_ids(const void *one, const void *other) {
    const struct id_name *a = one, *b = other;
    if (a->id != b->id) return a->id < b->id ? -1 : 1;
    return a->order < b->order ? -1 : 1; /* of two names for one number the first counts */
}

static unsigned loads;

static void load(struct accounts *accounts) {
    loads++;
    free(accounts->text);
    free(accounts->items);
    accounts->items = NULL;
    accounts->count = 0;
    accounts->text = accounts_read(accounts->path);
    if (!accounts->text) return;
    size_t lines = 1, found;
    for (const char *at = accounts->text; (at = strchr(at, '\n')); at++) lines++;
    accounts->items = malloc(lines * sizeof *accounts->items);
    if (!accounts->items) return;
    char *rest = accounts->text, *fields[4];
    uint32_t id;
    while (accounts->count < lines && account_next(&rest, fields, 4, &found, &id)) {
        accounts->items[accounts->count] = (struct id_name){id, (uint32_t)accounts->count, fields[0]};
        accounts->count++;
    }
    qsort(accounts->items, accounts->count, sizeof *accounts->items, compare_ids);
}

static void refresh(struct accounts *accounts) {
    struct stat now;
    if (stat(accounts->path, &now) < 0) memset(&now, 0, sizeof now);
    if (now.st_ino == accounts->read.st_ino && now.st_size == accounts->read.st_size &&
        now.st_mtim.tv_sec == accounts->read.st_mtim.tv_sec && now.st_mtim.tv_nsec == accounts->read.st_mtim.tv_nsec)
        return;
    accounts->read = now;
    load(accounts);
}

/* A name of theirs, or the number as text, written to `number`. */
static const char *owner_of(const struct accounts *accounts, uint32_t id, char number[16]) {
    size_t low = 0, high = accounts->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (accounts->items[middle].id < id) low = middle + 1;
        else high = middle;
    }
    if (low < accounts->count && accounts->items[low].id == id) return accounts->items[low].name;
    snprintf(number, 16, "%u", id);
    return number;
}

static struct accounts users = {.path = "/etc/passwd"}, groups = {.path = "/etc/group"};

unsigned owners_refresh(void) {
    refresh(&users);
    refresh(&groups);
    return loads;
}

/* --- metadata ---------------------------------------------------------------------------------------------------- */

static bool is_metadata(const char *name) {
    return strncmp(name, METADATA_PREFIX, strlen(METADATA_PREFIX)) == 0 && name[strlen(METADATA_PREFIX)];
}

/* Names of attributes, a NUL after each. Few have many: the kernel takes as much memory as it is offered, each time. */
static ssize_t attribute_names(const char *name, char list[ATTRIBUTE_LIST_BYTES]) {
    ssize_t length = llistxattr(name, list, ATTRIBUTE_LIST_USUAL_BYTES);
    return length < 0 && errno == ERANGE ? llistxattr(name, list, ATTRIBUTE_LIST_BYTES) : length;
}

/* Pairs; their number goes to where it belongs, `count_at`. */
static void put_metadata(struct writer *writer, const char *name, size_t count_at) {
    static char list[ATTRIBUTE_LIST_BYTES];
    char value[FILES_METADATA_BYTES_MAX];
    struct buffer *buffer = writer->buffer;
    size_t bytes = 0;
    uint32_t count = 0;
    ssize_t length = attribute_names(name, list);
    for (ssize_t at = 0; at < length; at += (ssize_t)strlen(list + at) + 1) {
        if (!is_metadata(list + at) || count == 2 * FILES_METADATA_MAX) continue;
        ssize_t got = lgetxattr(name, list + at, value, sizeof value);
        const char *key = list + at + strlen(METADATA_PREFIX);
        if (got < 0 || bytes + strlen(key) + (size_t)got > FILES_METADATA_BYTES_MAX) continue;
        bytes += strlen(key) + (size_t)got;
        put_text(writer, key, strlen(key));
        put_text(writer, value, (size_t)got);
        count += 2;
    }
    if (!writer->failed) poke_u32(buffer->bytes + buffer->first + count_at, count);
}

static int metadata_clear(int fd) {
    static char list[ATTRIBUTE_LIST_BYTES];
    ssize_t length = flistxattr(fd, list, sizeof list);
    for (ssize_t at = 0; at < length; at += (ssize_t)strlen(list + at) + 1)
        if (is_metadata(list + at) && fremovexattr(fd, list + at) < 0 && errno != ENODATA) return errno;
    return 0;
}

/* The whole set. A file system without attributes takes none, and that is no error. */
int metadata_replace(int fd, struct text pairs, uint32_t count) {
    int error = metadata_clear(fd);
    struct reader reader = {pairs.bytes, pairs.bytes + pairs.length, false};
    for (uint32_t i = 0; i + 1 < count && !error; i += 2) {
        struct text key = take_text(&reader), value = take_text(&reader);
        char name[METADATA_NAME_BYTES];
        int length = snprintf(name, sizeof name, METADATA_PREFIX "%.*s", (int)key.length, (const char *)key.bytes);
        if (key.length == 0 || memchr(key.bytes, 0, key.length) || length >= (int)sizeof name) return EINVAL;
        if (fsetxattr(fd, name, value.bytes ? (const void *)value.bytes : "", value.length, 0) < 0) error = errno;
    }
    return error == ENOTSUP ? 0 : error;
}

/* --- entries ----------------------------------------------------------------------------------------------------- */

uint8_t kind_of(mode_t mode) {
    switch (mode & S_IFMT) {
    case S_IFREG: return KIND_FILE;
    case S_IFDIR: return KIND_DIRECTORY;
    case S_IFLNK: return KIND_SYMLINK;
    case S_IFIFO: return KIND_FIFO;
    case S_IFSOCK: return KIND_SOCKET;
    case S_IFCHR: return KIND_CHARACTERS;
    case S_IFBLK: return KIND_BLOCKS;
    default: return KIND_UNKNOWN;
    }
}

static uint64_t nanoseconds(struct timespec time) {
    int64_t most = INT64_MAX / 1000000000 - 1, seconds = time.tv_sec;
    if (seconds > most) seconds = most; /* the guest can set any time; these are the years 1678 and 2262 */
    if (seconds < -most) seconds = -most;
    return (uint64_t)(seconds * 1000000000 + time.tv_nsec);
}

void put_entry(struct writer *writer, const char *name, const char *path, const struct stat *about, bool metadata) {
    struct stat target = *about;
    char text[PATH_BYTES_MAX], real[PATH_BYTES_MAX], numbers[2][16];
    ssize_t text_bytes = -1;
    bool resolved = false;
    if (S_ISLNK(about->st_mode)) {
        text_bytes = readlink(name, text, sizeof text);
        resolved = realpath(name, real) != NULL;
        if (fstatat(AT_FDCWD, name, &target, 0) < 0) target.st_mode = 0;
    }
    put_u8(writer, kind_of(about->st_mode));
    put_u8(writer, kind_of(target.st_mode));
    put_u32(writer, about->st_mode & 07777);
    put_u32(writer, target.st_mode & 07777);
    put_u64(writer, about->st_size < 0 ? 0 : (uint64_t)about->st_size);
    put_u32(writer, about->st_uid);
    put_u32(writer, about->st_gid);
    put_u64(writer, nanoseconds(about->st_mtim));
    put_u64(writer, nanoseconds(about->st_atim));
    put_u64(writer, about->st_ino);
    put_u32(writer, (uint32_t)about->st_nlink);
    put_u8(writer, (uint8_t)((text_bytes >= 0 ? LOOK_LINK_TEXT : 0) | (resolved ? LOOK_TARGET : 0)));
    const char *owner = owner_of(&users, about->st_uid, numbers[0]);
    const char *group = owner_of(&groups, about->st_gid, numbers[1]);
    /* All lengths first: whoever reads ten thousand of these takes the numbers in one go. */
    struct text strings[5] = {
        {(const uint8_t *)path, (uint32_t)strlen(path)},
        {(const uint8_t *)owner, (uint32_t)strnlen(owner, 256)},
        {(const uint8_t *)group, (uint32_t)strnlen(group, 256)},
        {(const uint8_t *)text, text_bytes >= 0 ? (uint32_t)text_bytes : 0},
        {(const uint8_t *)real, resolved ? (uint32_t)strlen(real) : 0},
    };
    for (size_t i = 0; i < 5; i++) put_u32(writer, strings[i].length);
    size_t count_at = buffer_length(writer->buffer);
    put_u32(writer, 0);
    for (size_t i = 0; i < 5; i++) put_bytes(writer, strings[i].bytes, strings[i].length);
    if (metadata && (S_ISREG(about->st_mode) || S_ISDIR(about->st_mode))) put_metadata(writer, name, count_at);
}

/* What lies at `path` now, after a change. `before`: fields that come first in that frame. */
void answer_entry(struct served *served, uint8_t type, const uint8_t *before, size_t before_bytes, const char *path) {
    struct stat about;
    if (fstatat(AT_FDCWD, path, &about, AT_SYMLINK_NOFOLLOW) < 0) {
        served_error(served, errno);
        return;
    }
    struct writer writer = answer_begin(served, type);
    put_bytes(&writer, before, before_bytes);
    put_entry(&writer, path, path, &about, true);
    answer_end(served, &writer);
}
