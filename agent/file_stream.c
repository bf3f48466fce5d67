/* What is in files: read to the client, written from it, in pieces. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "files.h"

/* --- reading ----------------------------------------------------------------------------------------------------- */

static ssize_t read_some(int fd, void *bytes, size_t count, uint64_t offset) {
    ssize_t got;
    do {
        got = pread(fd, bytes, count, (off_t)offset);
        if (got < 0 && errno == ESPIPE) got = read(fd, bytes, count); /* a terminal */
    } while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN) return 0; /* a device that has nothing to say now */
    return got;
}

static void send_piece(struct served *served, size_t bytes) {
    poke_u32(served->piece, (uint32_t)bytes + 1);
    served->piece[4] = CONTENT;
    if (buffer_length(&served->out) + bytes < FILES_GATHER_BYTES) {
        if (!buffer_add(&served->out, served->piece, FRAME_HEAD_BYTES + bytes)) _exit(1);
    } else {
        served->grown = true;
        served_send(served, served->piece, FRAME_HEAD_BYTES + bytes);
    }
}

static bool open_pipe(struct served *served) {
    if (served->pipe[0] == -1) {
        if (pipe2(served->pipe, O_CLOEXEC) < 0) served->pipe[0] = served->pipe[1] = -2;
        else fcntl(served->pipe[1], F_SETPIPE_SZ, FILES_PIECE_BYTES); /* or it stays smaller */
    }
    return served->pipe[0] >= 0;
}

static void give_up_pipe(struct served *served) {
    close(served->pipe[0]);
    close(served->pipe[1]);
    served->pipe[0] = served->pipe[1] = -2;
}

/* A piece that goes from the page cache to the socket as it is: first into a pipe, because only then its size is sure,
 * whatever becomes of the file meanwhile. Returns its size, 0 at the end, -1 when it has to be read instead. */
static ssize_t splice_piece(struct served *served, size_t want, uint64_t offset) {
    if (want < FILES_SPLICE_BYTES || !open_pipe(served)) return -1;
    loff_t at = (loff_t)offset;
    ssize_t got;
    do {
        got = splice(served->open, &at, served->pipe[1], NULL, want, SPLICE_F_MOVE);
    } while (got < 0 && errno == EINTR);
    if (got < 0) give_up_pipe(served); /* not with this kernel or file system, or the error comes again with read() */
    if (got <= 0) return got;
    uint8_t head[FRAME_HEAD_BYTES];
    poke_u32(head, (uint32_t)got + 1);
    head[4] = CONTENT;
    served_send(served, head, sizeof head);
    for (ssize_t left = got; left > 0;) {
        ssize_t sent = splice(served->pipe[0], NULL, served->fd, NULL, (size_t)left, SPLICE_F_MOVE | SPLICE_F_MORE);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) _exit(0); /* the client has gone */
        left -= sent;
    }
    return got;
}

/* To the end of the file wherever that is: its size is only what it says, and files of /proc say 0. */
static void stream(struct served *served, uint64_t offset, uint64_t length) {
    uint64_t sent = 0;
    int error = 0;
    struct stat about;
    bool whole = fstat(served->open, &about) == 0 && S_ISREG(about.st_mode);
    if (offset > INT64_MAX) length = 0;
    /* What does not fit the guest's memory comes from the disk: then the kernel had better be ahead of us. */
    if (whole && length > FILES_AHEAD_BYTES && about.st_size > FILES_AHEAD_BYTES)
        posix_fadvise(served->open, 0, 0, POSIX_FADV_SEQUENTIAL);
    struct passing passing = {0};
    if (whole && length > FILES_BIG_BYTES) passing_begin(&passing, served->open, (uint64_t)about.st_size);
    while (sent < length) {
        size_t want = length - sent < FILES_PIECE_BYTES ? (size_t)(length - sent) : FILES_PIECE_BYTES;
        if (want > INT64_MAX - offset - sent) want = (size_t)(INT64_MAX - offset - sent);
        if (want == 0) break;
        passing_reads(&passing, offset + sent);
        bool much = whole && offset + sent + FILES_SPLICE_BYTES <= (uint64_t)about.st_size;
        ssize_t got = much ? splice_piece(served, want, offset + sent) : -1;
        if (got < 0) {
            got = read_some(served->open, served->piece + FRAME_HEAD_BYTES, want, offset + sent);
            if (got > 0) send_piece(served, (size_t)got);
        }
        if (got < 0) {
            error = errno;
            break;
        }
        if (got == 0) break;
        sent += (uint64_t)got;
    }
    passing_end(&passing);
    if (error) {
        served_error(served, error);
        return;
    }
    struct writer writer = answer_begin(served, CONTENT_END);
    put_u64(&writer, sent);
    answer_end(served, &writer);
}

/* A regular file or a character device, never waiting for anybody at the other end of a FIFO. */
static int open_readable(const char *path, struct stat *about) {
    /* Looked at first: to open a FIFO or a device is already an act. */
    if (stat(path, about) < 0) return -errno;
    if (S_ISDIR(about->st_mode)) return -EISDIR;
    if (!S_ISREG(about->st_mode) && !S_ISCHR(about->st_mode)) return -NOT_A_FILE;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) return errno == ENXIO ? -NOT_A_FILE : -errno;
    int error = fstat(fd, about) < 0                                     ? errno
                : S_ISDIR(about->st_mode)                                ? EISDIR
                : S_ISREG(about->st_mode) || S_ISCHR(about->st_mode) ? 0
                                                                         : NOT_A_FILE;
    if (!error) return fd;
    close(fd);
    return -error;
}

static void close_open(struct served *served) {
    if (served->open >= 0) close(served->open);
    served->open = -1;
}

void file_open(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX];
    struct stat about;
    uint64_t offset = take_u64(reader), length = take_u64(reader);
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    close_open(served);
    int fd = good ? open_readable(path, &about) : -BAD_PATH;
    if (fd < 0) {
        served_error(served, -fd);
        return;
    }
    served->open = fd;
    struct writer writer = answer_begin(served, ENTRY);
    put_entry(&writer, path, path, &about, true);
    answer_end(served, &writer);
    stream(served, offset, length);
}

void file_read(struct served *served, struct reader *reader) {
    uint64_t offset = take_u64(reader), length = take_u64(reader);
    if (!reader_done(reader)) served_broken(served);
    if (served->open < 0) served_error(served, EBADF);
    else stream(served, offset, length);
    if (length == 0) close_open(served);
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

struct writing {
    char path[PATH_BYTES_MAX];
    uint8_t flags;
    uint32_t mode, parents_mode;
    struct owner owner;
    uint64_t offset;
    struct text metadata;
    uint32_t metadata_count;
    int fd;
    bool created;
};

/* Opens what is there, makes what is not; knows which of the two it was. A dangling symlink is written through. */
static int open_place(struct writing *writing, const struct place *place) {
    int flags = O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC | (writing->flags & WRITE_APPEND ? O_APPEND : 0);
    struct stat about;
    for (int round = 0; round < 3; round++) {
        if (fstatat(place->directory, place->name, &about, 0) == 0) {
            if (writing->flags & WRITE_EXCLUSIVE) return EEXIST;
            if (S_ISDIR(about.st_mode)) return EISDIR;
            if (!S_ISREG(about.st_mode) && !S_ISCHR(about.st_mode)) return NOT_A_FILE;
            writing->fd = openat(place->directory, place->name, flags);
        } else if (errno != ENOENT) {
            return errno;
        } else {
            /* The second time: the name is there and leads nowhere. */
            int create = O_CREAT | (round == 0 || writing->flags & WRITE_EXCLUSIVE ? O_EXCL : 0);
            writing->fd = openat(place->directory, place->name, flags | create, writing->mode & 07777);
            writing->created = writing->fd >= 0;
        }
        if (writing->fd >= 0) return 0;
        if (errno == EEXIST && writing->flags & WRITE_EXCLUSIVE) return EEXIST;
        if (errno != ENOENT && errno != EEXIST) return errno == ENXIO ? NOT_A_FILE : errno;
    }
    return errno;
}

static int prepare(struct writing *writing) {
    struct stat about;
    if (fstat(writing->fd, &about) < 0) return errno;
    if (S_ISCHR(about.st_mode)) return 0;
    if (!S_ISREG(about.st_mode)) return NOT_A_FILE; /* changed between the look and the opening */
    if (writing->flags & WRITE_TRUNCATE && about.st_size > 0 && ftruncate(writing->fd, 0) < 0) return errno;
    if ((writing->owner.uid != NO_ID || writing->owner.gid != NO_ID) &&
        fchown(writing->fd, writing->owner.uid, writing->owner.gid) < 0)
        return errno;
    if (writing->flags & WRITE_MODE && (about.st_mode & 07777) != (writing->mode & 07777) &&
        fchmod(writing->fd, writing->mode & 07777) < 0)
        return errno;
    if (writing->flags & WRITE_METADATA) {
        int error = metadata_replace(writing->fd, writing->metadata, writing->metadata_count);
        if (error) return error;
    }
    if (writing->offset != NO_OFFSET && lseek(writing->fd, (off_t)writing->offset, SEEK_SET) < 0) return errno;
    return 0;
}

static int open_writable(struct writing *writing) {
    struct place place;
    uint32_t made = 0, mode = writing->flags & WRITE_PARENTS ? writing->parents_mode : NO_ID;
    int error = place_open(writing->path, mode, writing->owner, &place, &made);
    if (error) return error;
    error = open_place(writing, &place);
    close(place.directory);
    return error ? error : prepare(writing);
}

static int write_all(int fd, const uint8_t *bytes, size_t count) {
    while (count > 0) {
        ssize_t put = write(fd, bytes, count);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0 && errno == EAGAIN) { /* a terminal whose reader is slow */
            struct pollfd room = {fd, POLLOUT, 0};
            poll(&room, 1, -1);
            continue;
        }
        if (put < 0) return errno;
        bytes += put;
        count -= (size_t)put;
    }
    return 0;
}

/* Takes DATA up to END. After an error the rest is taken and dropped, so that the connection stays good. */
static int take_content(struct served *served, int fd, int error) {
    struct growing growing = {.next = FILES_BIG_BYTES};
    for (;;) {
        while (served->in_last - served->in_first < FRAME_HEAD_BYTES) served_receive(served);
        uint32_t left = peek_u32(served->in + served->in_first);
        uint8_t type = served->in[served->in_first + 4];
        if (type == FILE_END ? left != 1 : type != FILE_DATA || left < 2 || left > FILES_PIECE_BYTES + 1)
            served_broken(served);
        served->in_first += FRAME_HEAD_BYTES;
        if (type == FILE_END) {
            growing_end(&growing);
            return error;
        }
        for (left--; left > 0;) {
            if (served->in_first == served->in_last) served_receive(served);
            size_t have = served->in_last - served->in_first, take = have < left ? have : left;
            int failed = error ? 0 : write_all(fd, served->in + served->in_first, take);
            if (failed) { /* said at once: the client need not send the rest */
                error = failed;
                served_error(served, error);
                served_flush(served);
            }
            if (!error) growing_wrote(&growing, fd, take);
            served->in_first += take;
            left -= (uint32_t)take;
        }
    }
}

void file_write(struct served *served, struct reader *reader) {
    struct writing writing = {.fd = -1};
    writing.flags = take_u8(reader);
    writing.mode = take_u32(reader);
    writing.parents_mode = take_u32(reader);
    writing.owner.uid = take_u32(reader);
    writing.owner.gid = take_u32(reader);
    writing.offset = take_u64(reader);
    bool good = take_path(reader, writing.path);
    writing.metadata_count = take_texts(reader, &writing.metadata);
    if (!reader_done(reader)) served_broken(served);
    int error = served->refused ? ACCOUNT_CHANGED : good ? open_writable(&writing) : BAD_PATH;
    served->refused = false;
    if (error) {
        served_error(served, error);
        served_flush(served);
    } else if (served->in_last - served->in_first < FRAME_HEAD_BYTES) {
        served_flush(served);
    }
    error = take_content(served, writing.fd, error);
    struct stat about;
    bool looked = writing.fd >= 0 && fstat(writing.fd, &about) == 0;
    int closed = writing.fd >= 0 && close(writing.fd) < 0 ? errno : 0; /* some file systems only now say ENOSPC */
    if (error) return;
    if (closed || !looked) {
        served_error(served, closed ? closed : EIO);
        return;
    }
    struct writer writer = answer_begin(served, WRITTEN);
    put_u8(&writer, writing.created);
    put_entry(&writer, writing.path, writing.path, &about, true);
    answer_end(served, &writer);
}
