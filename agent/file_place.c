/* Where something is to be made: the directory of a path, by descriptor, so that what is done there afterwards is done
 * to that directory whatever becomes of the path. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "files.h"

#define LOOK (O_PATH | O_DIRECTORY | O_CLOEXEC)

/* With exactly that mode, and no chmod that a watcher would hear of. */
int make_directory(int directory, const char *name, uint32_t mode, struct owner owner) {
    mode_t mask = umask(0);
    int error = mkdirat(directory, name, mode & 07777) < 0 ? errno : 0;
    umask(mask);
    if (error || (owner.uid == NO_ID && owner.gid == NO_ID)) return error;
    /* Not by name: it may have become a symlink by now. */
    int fd = openat(directory, name, LOOK | O_NOFOLLOW);
    if (fd < 0) return errno;
    if (fchownat(fd, "", owner.uid, owner.gid, AT_EMPTY_PATH) < 0) error = errno;
    close(fd);
    return error;
}

/* One level down, made when it is not there. Takes `directory`; a descriptor or -error. */
static int down(int directory, const char *name, uint32_t mode, struct owner owner, uint32_t *made) {
    int fd = openat(directory, name, LOOK), error = 0;
    if (fd < 0 && errno == ENOENT) {
        error = make_directory(directory, name, mode, owner);
        if (!error) ++*made;
        fd = openat(directory, name, error ? LOOK : LOOK | O_NOFOLLOW);
        if (error == EEXIST) error = 0; /* somebody else was faster, or it is a symlink to nothing: then ENOENT */
    }
    int failed = error ? error : errno;
    close(directory);
    if (error && fd >= 0) close(fd);
    return error || fd < 0 ? -failed : fd;
}

static int descend(char *path, uint32_t mode, struct owner owner, uint32_t *made) {
    int fd = open("/", LOOK);
    if (fd < 0) return -errno;
    char *save = NULL;
    for (char *name = strtok_r(path, "/", &save); name && fd >= 0; name = strtok_r(NULL, "/", &save))
        fd = down(fd, name, mode, owner, made);
    return fd;
}

int place_open(const char *path, uint32_t mode, struct owner owner, struct place *place, uint32_t *made) {
    char parent[PATH_BYTES_MAX];
    size_t length = strlen(path);
    memcpy(parent, path, length + 1);
    while (length > 1 && parent[length - 1] == '/') parent[--length] = 0;
    char *last = strrchr(parent, '/') + 1; /* there is one: paths are absolute */
    if (strlen(last) >= sizeof place->name) return ENAMETOOLONG;
    strcpy(place->name, *last ? last : "."); /* the root lies in itself */
    *last = 0;
    place->directory = open(parent, LOOK);
    if (place->directory < 0 && errno == ENOENT && mode != NO_ID) place->directory = descend(parent, mode, owner, made);
    else if (place->directory < 0) return errno;
    return place->directory < 0 ? -place->directory : 0;
}
