/* FILE_WATCH: what happens in a directory, or below it. The kernel's queue is the only one: while the client does not
 * take what is sent, nothing is read, and when that queue is full the client is told of an overflow. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "files.h"

#define QUEUE_BYTES (64 * KIB) /* taken from the kernel's queue at a time */
#define OTHER_HALF_MS 10           /* between the two events of one rename */
#define WANTED (IN_CREATE | IN_MODIFY | IN_ATTRIB | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ONLYDIR)
#define NFS_MAGIC 0x6969
#define SMB_MAGIC 0x517B
#define CIFS_MAGIC 0xFF534D42
#define SMB2_MAGIC 0xFE534D42
#define FUSE_MAGIC 0x65735546

struct watched { /* a directory; path relative to the root, "" for the root itself */
    int number;  /* the kernel's; -1: no longer watched */
    char *path;
};

struct seen { /* an entry that a look found: its CREATE may still be in the queue */
    char *path;
    uint32_t drain;
};

struct watch {
    struct served *served;
    /* By path: a descriptor of the root, or standing in it, would keep the kernel from saying that it was removed. */
    char root[PATH_BYTES_MAX];
    int inotify, root_number;
    bool recursive, entries, over;
    struct watched *items; /* by number, which only grow */
    size_t count, capacity;
    char *leaving;    /* a directory that moved away; within what we watch when the same cookie comes again */
    uint32_t cookie;
    struct seen seen[FILES_SEEN_MAX];
    size_t seen_count;
    uint32_t drains;
    struct writer writer;
    size_t count_at;
    uint32_t events; /* in the frame under construction; 0: there is none */
};

static const char *whole_path(const struct watch *watch, const char *path) {
    static char whole[PATH_BYTES_MAX + FILES_WALK_PATH_BYTES + 1];
    snprintf(whole, sizeof whole, "%s/%s", strcmp(watch->root, "/") == 0 ? "" : watch->root, path);
    return whole;
}

/* --- telling ----------------------------------------------------------------------------------------------------- */

static void end_frame(struct watch *watch) {
    struct buffer *out = &watch->served->out;
    if (watch->events == 0) return;
    if (!watch->writer.failed) poke_u32(out->bytes + out->first + watch->count_at, watch->events);
    watch->events = 0;
    answer_end(watch->served, &watch->writer);
}

static void tell(struct watch *watch, uint8_t kind, const char *path) {
    struct buffer *out = &watch->served->out;
    struct stat about;
    if (watch->events == 0) {
        watch->writer = answer_begin(watch->served, EVENTS);
        watch->count_at = buffer_length(out);
        put_u32(&watch->writer, 0);
    }
    watch->events++;
    put_u8(&watch->writer, kind);
    put_text(&watch->writer, path, strlen(path));
    bool described = watch->entries && (kind == EVENT_CREATE || kind == EVENT_WRITE || kind == EVENT_CHMOD);
    if (described && lstat(whole_path(watch, path), &about) == 0) {
        put_u8(&watch->writer, 1);
        put_entry(&watch->writer, whole_path(watch, path), path, &about, true);
    } else {
        put_u8(&watch->writer, 0);
    }
    if (buffer_length(out) >= FILES_GATHER_BYTES) end_frame(watch);
}

static void see(struct watch *watch, const char *path) {
    if (watch->seen_count == FILES_SEEN_MAX) return; /* then its CREATE is told twice, which does no harm */
    char *copy = strdup(path);
    if (copy) watch->seen[watch->seen_count++] = (struct seen){copy, watch->drains};
}

static bool was_seen(struct watch *watch, const char *path) {
    for (size_t i = 0; i < watch->seen_count; i++) {
        if (strcmp(watch->seen[i].path, path) != 0) continue;
        free(watch->seen[i].path);
        watch->seen[i] = watch->seen[--watch->seen_count];
        return true;
    }
    return false;
}

/* What was found before this drain began has had its event by now. */
static void forget_seen(struct watch *watch) {
    size_t kept = 0;
    for (size_t i = 0; i < watch->seen_count; i++) {
        if (watch->seen[i].drain == watch->drains) watch->seen[kept++] = watch->seen[i];
        else free(watch->seen[i].path);
    }
    watch->seen_count = kept;
    watch->drains++;
}

/* --- which directories ------------------------------------------------------------------------------------------- */

static struct watched *find(const struct watch *watch, int number) {
    size_t low = 0, high = watch->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (watch->items[middle].number < number) low = middle + 1;
        else high = middle;
    }
    return low < watch->count && watch->items[low].number == number ? &watch->items[low] : NULL;
}

static void drop_at(struct watch *watch, size_t place) {
    free(watch->items[place].path);
    memmove(&watch->items[place], &watch->items[place + 1], (--watch->count - place) * sizeof *watch->items);
}

/* Returns 0, 1 when it was watched already, or an -error. */
static int add(struct watch *watch, int directory, const char *path) {
    char name[32];
    snprintf(name, sizeof name, "/proc/self/fd/%d", directory); /* this directory, whatever its path leads to by now */
    int number = inotify_add_watch(watch->inotify, name, WANTED | (*path ? 0u : IN_DELETE_SELF | IN_MOVE_SELF));
    if (number < 0) return errno == ENOSPC ? -FILE_LIMIT : -errno;
    char *copy = strdup(path);
    if (!copy) return -ENOMEM;
    struct watched *known = find(watch, number);
    if (known) { /* moved within what we watch */
        free(known->path);
        known->path = copy;
        return 1;
    }
    if (watch->count == watch->capacity) {
        size_t capacity = watch->capacity ? watch->capacity * 2 : 16;
        struct watched *items = capacity <= FILES_WATCHES_MAX ? realloc(watch->items, capacity * sizeof *items) : NULL;
        if (!items) {
            free(copy);
            inotify_rm_watch(watch->inotify, number);
            return -FILE_LIMIT;
        }
        watch->items = items;
        watch->capacity = capacity;
    }
    watch->items[watch->count++] = (struct watched){number, copy};
    if (!*path) watch->root_number = number;
    return 0;
}

static bool is_below(const char *path, const char *above) {
    size_t length = strlen(above);
    return strncmp(path, above, length) == 0 && (!path[length] || path[length] == '/');
}

/* The directory that moved away did so for good, with all that is below it. */
static void forget_leaving(struct watch *watch) {
    for (size_t i = watch->count; watch->leaving && i-- > 0;) {
        if (!is_below(watch->items[i].path, watch->leaving)) continue;
        inotify_rm_watch(watch->inotify, watch->items[i].number);
        drop_at(watch, i);
    }
    free(watch->leaving);
    watch->leaving = NULL;
}

static void leaves(struct watch *watch, const char *path, uint32_t cookie) {
    watch->leaving = strdup(path);
    watch->cookie = cookie;
}

/* It came back under another name: its watches go on. False: it is not the one that left. */
static bool comes_back(struct watch *watch, const char *path, uint32_t cookie) {
    if (!watch->leaving || watch->cookie != cookie) return false;
    size_t old = strlen(watch->leaving);
    for (size_t i = 0; i < watch->count; i++) {
        if (!is_below(watch->items[i].path, watch->leaving)) continue;
        size_t bytes = strlen(path) + strlen(watch->items[i].path) - old + 1;
        char *moved = malloc(bytes);
        if (!moved) _exit(1);
        snprintf(moved, bytes, "%s%s", path, watch->items[i].path + old);
        free(watch->items[i].path);
        watch->items[i].path = moved;
    }
    free(watch->leaving);
    watch->leaving = NULL;
    return true;
}

/* Watches a directory and what lies below it, and (tell_all) tells of everything that was in there before we looked. */
static int look_into(struct watch *watch, int directory, const char *path, bool tell_all) {
    struct walk walk;
    char whole[FILES_WALK_PATH_BYTES];
    int added = add(watch, directory, path);
    if (added < 0 || !watch->recursive) {
        close(directory);
        return added < 0 ? -added : 0;
    }
    int error = walk_begin(&walk, directory);
    while (!error && walk_next(&walk)) {
        struct stat about;
        int length = snprintf(whole, sizeof whole, "%s%s%s", path, *path ? "/" : "", walk.path);
        if (walk.left || length >= (int)sizeof whole) continue;
        if (fstatat(walk.directory, walk.name, &about, AT_SYMLINK_NOFOLLOW) < 0) continue;
        if (tell_all) {
            tell(watch, EVENT_CREATE, whole);
            if (S_ISREG(about.st_mode) && about.st_size > 0) tell(watch, EVENT_WRITE, whole);
            see(watch, whole);
        }
        if (!S_ISDIR(about.st_mode)) continue;
        int fd = openat(walk.directory, walk.name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0) continue; /* gone, or not for this user */
        added = add(watch, fd, whole);
        close(fd);
        if (added < 0 && added != -ENOENT && added != -EACCES) error = -added;
        if (!error && walk_enter(&walk) == FILE_LIMIT) error = FILE_LIMIT;
    }
    walk_end(&walk);
    return error == ENOENT || error == EACCES ? 0 : error;
}

static void look_at_new(struct watch *watch, const char *path, bool tell_all) {
    int fd = open(whole_path(watch, path), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return; /* gone already */
    /* More than can be watched: what is missed is the same as after an overflow, and is told so. */
    if (look_into(watch, fd, path, tell_all)) tell(watch, EVENT_OVERFLOW, "");
}

/* --- what the kernel says ---------------------------------------------------------------------------------------- */

static void overflowed(struct watch *watch) {
    tell(watch, EVENT_OVERFLOW, "");
    int fd = open(watch->root, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0) look_into(watch, fd, "", false); /* directories may have been made unheard */
}

static void in_directory(struct watch *watch, const char *path, uint32_t mask, uint32_t cookie) {
    bool seen = mask & (IN_CREATE | IN_MOVED_TO) && was_seen(watch, path); /* told of, and looked into */
    if (mask & (IN_CREATE | IN_MOVED_TO) && !seen) tell(watch, EVENT_CREATE, path);
    if (mask & IN_MOVED_FROM) tell(watch, EVENT_RENAME, path);
    if (mask & IN_ATTRIB) tell(watch, EVENT_CHMOD, path);
    if (mask & IN_MODIFY) tell(watch, EVENT_WRITE, path);
    if (mask & IN_DELETE) tell(watch, EVENT_REMOVE, path);
    if (!watch->recursive || !(mask & IN_ISDIR) || seen) return;
    if (mask & IN_MOVED_FROM) leaves(watch, path, cookie);
    if (mask & IN_MOVED_TO && comes_back(watch, path, cookie)) return;
    if (mask & (IN_CREATE | IN_MOVED_TO)) look_at_new(watch, path, mask & IN_CREATE);
}

static void happened(struct watch *watch, const struct inotify_event *event) {
    char path[FILES_WALK_PATH_BYTES];
    /* The kernel says where something went right after it said that it went. */
    if (!(event->mask & IN_MOVED_TO) || event->cookie != watch->cookie) forget_leaving(watch);
    if (event->mask & IN_Q_OVERFLOW) {
        overflowed(watch);
        return;
    }
    struct watched *watched = find(watch, event->wd);
    if (!watched) return; /* forgotten, but these were still in the queue */
    if (event->wd == watch->root_number && event->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT | IN_IGNORED)) {
        watch->over = true;
    } else if (event->mask & IN_IGNORED) {
        drop_at(watch, (size_t)(watched - watch->items));
    } else if (event->len > 0) {
        int length = snprintf(path, sizeof path, "%s%s%s", watched->path, *watched->path ? "/" : "", event->name);
        if (length < (int)sizeof path) in_directory(watch, path, event->mask, event->cookie);
    }
}

/* All that has happened until now; not what is happening meanwhile, which may have no end. */
static void drain(struct watch *watch) {
    _Alignas(struct inotify_event) static char queue[QUEUE_BYTES];
    struct pollfd other_half = {watch->inotify, POLLIN, 0};
    int left = 0;
    ioctl(watch->inotify, FIONREAD, &left);
    while (!watch->over) {
        if (left <= 0 && (!watch->leaving || poll(&other_half, 1, OTHER_HALF_MS) <= 0)) break;
        ssize_t got = read(watch->inotify, queue, sizeof queue);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        left -= (int)got;
        owners_refresh();
        for (ssize_t at = 0; at < got && !watch->over;) {
            const struct inotify_event *event = (const void *)(queue + at);
            at += (ssize_t)(sizeof *event + event->len);
            happened(watch, event);
        }
    }
    forget_leaving(watch);
    forget_seen(watch);
    if (watch->over) tell(watch, EVENT_GONE, "");
    end_frame(watch);
}

/* FILE_SYNC: everything until now, then its token. */
static void answer_syncs(struct watch *watch) {
    struct served *served = watch->served;
    while (served->in_last - served->in_first >= FRAME_HEAD_BYTES + 8) {
        const uint8_t *bytes = served->in + served->in_first;
        if (peek_u32(bytes) != 9 || bytes[4] != FILE_SYNC) served_broken(served);
        if (!watch->over) drain(watch);
        struct writer writer = answer_begin(served, SYNCED);
        put_bytes(&writer, bytes + FRAME_HEAD_BYTES, 8);
        answer_end(served, &writer);
        served->in_first += FRAME_HEAD_BYTES + 8;
    }
}

_Noreturn static void watch_on(struct watch *watch) {
    struct served *served = watch->served;
    for (;;) {
        answer_syncs(watch);
        served_flush(served);
        struct pollfd sources[2] = {{served->fd, POLLIN, 0}, {watch->over ? -1 : watch->inotify, POLLIN, 0}};
        if (poll(sources, 2, -1) < 0) continue;
        if (sources[1].revents) drain(watch);
        if (sources[0].revents) served_receive(served);
    }
}

/* --- FILE_WATCH -------------------------------------------------------------------------------------------------- */

static bool is_remote(int fd) {
    struct statfs about, root;
    if (fstatfs(fd, &about) < 0) return false;
    uint32_t kind = (uint32_t)about.f_type;
    if (kind == FUSE_MAGIC) /* unless the guest's root is one itself */
        return statfs("/", &root) < 0 || (uint32_t)root.f_type != FUSE_MAGIC;
    return kind == NFS_MAGIC || kind == SMB_MAGIC || kind == CIFS_MAGIC || kind == SMB2_MAGIC;
}

void file_watch(struct served *served, struct reader *reader) {
    static struct watch watch;
    char path[PATH_BYTES_MAX];
    uint8_t flags = take_u8(reader);
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    watch = (struct watch){.served = served, .inotify = -1, .root_number = -1};
    watch.recursive = flags & WATCH_RECURSIVE;
    watch.entries = flags & WATCH_ENTRIES;
    int fd = -1, error = !good ? BAD_PATH : !realpath(path, watch.root) ? errno : 0;
    if (!error && (fd = open(watch.root, O_RDONLY | O_DIRECTORY | O_NONBLOCK | O_CLOEXEC)) < 0) error = errno;
    if (!error && !(flags & WATCH_NETWORK) && is_remote(fd)) error = NETWORK_FILE_SYSTEM;
    if (!error && (watch.inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC)) < 0)
        error = errno == EMFILE ? FILE_LIMIT : errno;
    if (!error) error = look_into(&watch, fd, "", false);
    else if (fd >= 0) close(fd);
    if (!error) {
        served_done(served);
        watch_on(&watch);
    }
    for (; watch.count > 0; watch.count--) free(watch.items[watch.count - 1].path);
    free(watch.items);
    if (watch.inotify >= 0) close(watch.inotify);
    served_error(served, error);
}
