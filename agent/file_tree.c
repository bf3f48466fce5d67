/* Removing a tree, however deep and however hard somebody works against it: by descriptors, so that no symlink put in the
 * way leads out of it, and with a bounded number of them, so that any nest comes to an end. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"

struct doomed { /* a directory on the way down */
    int fd; /* -1: closed for the time being */
    uint32_t rereads;
    dev_t device;
    ino_t inode;
    char *name; /* in the one above */
    struct names names;
    size_t next;
};

struct removal {
    struct doomed *stages;
    size_t depth, capacity;
};

#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)

static void leave(struct removal *removal) {
    struct doomed *stage = &removal->stages[--removal->depth];
    if (stage->fd >= 0) close(stage->fd);
    free(stage->name);
    names_free(&stage->names);
}

static int enter(struct removal *removal, int above, const char *name) {
    if (removal->depth == FILES_LEVELS_MAX) return FILE_LIMIT;
    if (removal->depth == removal->capacity) {
        size_t capacity = removal->capacity ? removal->capacity * 2 : 16;
        struct doomed *stages = realloc(removal->stages, capacity * sizeof *stages);
        if (!stages) return ENOMEM;
        removal->stages = stages;
        removal->capacity = capacity;
    }
    struct stat about;
    struct doomed stage = {.fd = openat(above, name, DIRECTORY)};
    if (stage.fd < 0) return errno;
    stage.name = strdup(name);
    if (!stage.name || fstat(stage.fd, &about) < 0) {
        close(stage.fd);
        free(stage.name);
        return ENOMEM;
    }
    stage.device = about.st_dev;
    stage.inode = about.st_ino;
    if (removal->depth >= FILES_OPEN_LEVELS) { /* what is far above is found again on the way up */
        struct doomed *far = &removal->stages[removal->depth - FILES_OPEN_LEVELS];
        if (far->fd >= 0) close(far->fd);
        far->fd = -1;
        names_free(&far->names);
        far->next = 0;
    }
    removal->stages[removal->depth++] = stage;
    return 0;
}

/* Makes sure the directory above the deepest one is open. Whoever moved ours meanwhile gets an error, not our deeds. */
static int reopen_above(struct removal *removal) {
    struct doomed *stage = &removal->stages[removal->depth - 1], *above = stage - 1;
    struct stat about;
    if (above->fd >= 0) return 0;
    above->fd = openat(stage->fd, "..", DIRECTORY);
    if (above->fd < 0 || fstat(above->fd, &about) < 0) return errno;
    return about.st_dev == above->device && about.st_ino == above->inode ? 0 : EAGAIN;
}

/* One name of the deepest directory. */
static int remove_name(struct removal *removal, const char *name) {
    struct doomed *stage = &removal->stages[removal->depth - 1];
    if (unlinkat(stage->fd, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return errno;
    int error = errno; /* EPERM: a directory for some file systems, or an immutable file */
    if (unlinkat(stage->fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT) return 0;
    if (errno != ENOTEMPTY && errno != EEXIST) return errno == ENOTDIR ? error : errno;
    error = enter(removal, stage->fd, name);
    return error == ENOENT || error == ENOTDIR || error == ELOOP ? 0 : error; /* another now: found when read again */
}

/* The deepest directory has given all its names: away with it, or once more when somebody has put new ones in. */
static int remove_stage(struct removal *removal, int root) {
    struct doomed *stage = &removal->stages[removal->depth - 1];
    int error = removal->depth > 1 ? reopen_above(removal) : 0;
    if (error) return error;
    int above = removal->depth > 1 ? stage[-1].fd : root;
    if (unlinkat(above, stage->name, AT_REMOVEDIR) == 0 || errno == ENOENT) {
        leave(removal);
        return 0;
    }
    if ((errno != ENOTEMPTY && errno != EEXIST) || stage->rereads++ == FILES_REREADS_MAX) return errno;
    return 0;
}

static int remove_below(struct removal *removal, int root) {
    int error = 0;
    while (removal->depth > 0 && !error) {
        struct doomed *stage = &removal->stages[removal->depth - 1];
        if (stage->next < stage->names.count) {
            /* Copied: the stages move when one is added. */
            char name[256];
            strncpy(name, stage->names.bytes + stage->names.at[stage->next++], sizeof name - 1);
            name[sizeof name - 1] = 0;
            error = remove_name(removal, name);
            continue;
        }
        bool more;
        names_free(&stage->names);
        stage->next = 0;
        if (lseek(stage->fd, 0, SEEK_SET) < 0) return errno;
        error = names_read(stage->fd, &stage->names, FILES_BATCH_BYTES, &more);
        if (error == ENOENT) error = 0; /* somebody else has removed it: it is empty, and has no name any more */
        if (!error && stage->names.count == 0) error = remove_stage(removal, root);
    }
    return error;
}

int tree_remove(int directory, const char *name, bool recursive) {
    if (unlinkat(directory, name, 0) == 0) return 0;
    if (errno != EISDIR && errno != EPERM) return errno;
    int error = errno;
    if (unlinkat(directory, name, AT_REMOVEDIR) == 0) return 0;
    if ((errno != ENOTEMPTY && errno != EEXIST) || !recursive) return errno == ENOTDIR ? error : errno;
    struct removal removal = {0};
    error = enter(&removal, directory, name);
    if (!error) error = remove_below(&removal, directory);
    while (removal.depth > 0) leave(&removal);
    free(removal.stages);
    return error;
}
