/* The child of a files connection: takes requests one after the other, answers each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "files.h"

/* --- answers ----------------------------------------------------------------------------------------------------- */

_Noreturn void served_end(struct served *served) {
    served_flush(served);
    _exit(0);
}

static void send_parts(struct served *served, struct iovec *parts, size_t count) {
    while (count > 0) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t sent = sendmsg(served->fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) _exit(0); /* the client has gone */
        for (; count > 0 && (size_t)sent >= parts->iov_len; parts++, count--) sent -= (ssize_t)parts->iov_len;
        if (count > 0) {
            parts->iov_base = (uint8_t *)parts->iov_base + sent;
            parts->iov_len -= (size_t)sent;
        }
    }
}

void served_send(struct served *served, const void *bytes, size_t count) {
    struct buffer *out = &served->out;
    struct iovec parts[2] = {{out->bytes + out->first, buffer_length(out)}, {(void *)(uintptr_t)bytes, count}};
    if (buffer_length(out) > 0) send_parts(served, parts, count > 0 ? 2 : 1);
    else if (count > 0) send_parts(served, parts + 1, 1);
    buffer_drop(out, buffer_length(out));
}

void served_flush(struct served *served) { served_send(served, NULL, 0); }

struct writer answer_begin(struct served *served, uint8_t type) { return frame_begin(&served->out, type); }

void answer_end(struct served *served, struct writer *writer) {
    if (!frame_end(writer)) _exit(1); /* out of memory: what was asked cannot be told */
    if (buffer_length(&served->out) >= FILES_GATHER_BYTES) served_flush(served);
}

void put_text(struct writer *writer, const char *bytes, size_t count) {
    put_u32(writer, (uint32_t)count);
    put_bytes(writer, bytes, count);
}

void served_error(struct served *served, int code) {
    const char *message = code == NOT_A_FILE            ? "Not a regular file"
                          : code == BAD_PATH            ? "Not a path for this"
                          : code == NETWORK_FILE_SYSTEM ? "On a network file system"
                          : code == FILE_LIMIT          ? "Too many entries"
                          : code == ACCOUNT_CHANGED     ? "The account has changed"
                                                        : strerror(code);
    struct writer writer = answer_begin(served, FILE_ERROR);
    put_u32(&writer, (uint32_t)code);
    put_text(&writer, message, strlen(message));
    answer_end(served, &writer);
}

void served_done(struct served *served) {
    struct writer writer = answer_begin(served, DONE);
    answer_end(served, &writer);
}

_Noreturn void served_broken(struct served *served) {
    static const char why[] = "not a frame this connection may carry";
    struct writer writer = answer_begin(served, ERROR);
    put_u16(&writer, BAD_FRAME);
    put_text(&writer, why, sizeof why - 1);
    answer_end(served, &writer);
    served_end(served);
}

/* --- requests ---------------------------------------------------------------------------------------------------- */

void served_receive(struct served *served) {
    if (served->in_first > 0) {
        memmove(served->in, served->in + served->in_first, served->in_last - served->in_first);
        served->in_last -= served->in_first;
        served->in_first = 0;
    }
    union { /* room for one descriptor */
        struct cmsghdr head;
        char bytes[CMSG_SPACE(sizeof(int))];
    } beside;
    struct iovec room = {served->in + served->in_last, FILES_PIECE_BYTES - served->in_last};
    struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1, .msg_control = &beside, .msg_controllen = sizeof beside};
    ssize_t got;
    do {
        got = recvmsg(served->fd, &message, MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got <= 0) _exit(0);
    served_take_descriptor(served, &message);
    served->in_last += (size_t)got;
    if (served->in_last > FILES_GATHER_BYTES) served->grown = true;
}

bool take_path(struct reader *reader, char path[PATH_BYTES_MAX]) {
    struct text text = take_text(reader);
    if (text.length == 0 || text.length >= PATH_BYTES_MAX || text.bytes[0] != '/') return false;
    if (memchr(text.bytes, 0, text.length)) return false;
    memcpy(path, text.bytes, text.length);
    path[text.length] = 0;
    return true;
}

static bool text_is(struct text text, const char *other) {
    return text.length == strlen(other) && memcmp(text.bytes, other, text.length) == 0;
}

/* By name or number; the last one is remembered for as long as the accounts are as they were. NULL: there is none. */
static const struct user *account_of(const struct served *served, struct text name) {
    static struct user found;
    static char asked[sizeof found.name];
    static unsigned when;
    if (when == served->accounts && name.length > 0 && text_is(name, asked)) return &found;
    asked[0] = 0;
    if (!user_find(name, &found)) return NULL;
    if (name.length < sizeof asked) {
        memcpy(asked, name.bytes, name.length);
        asked[name.length] = 0;
    }
    when = served->accounts;
    return &found;
}

/* The next request counts on the account being this one: who sends it need not ask first, and wait. */
static void file_if_account(struct served *served, struct reader *reader) {
    struct text asked = take_text(reader);
    uint32_t uid = take_u32(reader), gid = take_u32(reader);
    struct text name = take_text(reader), home = take_text(reader);
    if (!reader_done(reader)) served_broken(served);
    const struct user *user = account_of(served, asked);
    served->refused = !user || user->uid != uid || user->gid != gid || !text_is(name, user->name) ||
                      !text_is(home, user->home);
}

static void file_account(struct served *served, struct reader *reader) {
    struct text name = take_text(reader);
    if (!reader_done(reader)) served_broken(served);
    const struct user *user = account_of(served, name);
    struct writer writer;
    if (user) {
        writer = answer_begin(served, ACCOUNT);
        put_u32(&writer, user->uid);
        put_u32(&writer, user->gid);
        put_text(&writer, user->name, strlen(user->name));
        put_text(&writer, user->home, strlen(user->home));
    } else {
        static const char why[] = "no such user";
        writer = answer_begin(served, ERROR);
        put_u16(&writer, NO_SUCH_USER);
        put_text(&writer, why, sizeof why - 1);
    }
    answer_end(served, &writer);
}

static void file_stat(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX];
    struct stat about;
    uint8_t flags = take_u8(reader);
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    if (!good) {
        served_error(served, BAD_PATH);
    } else if (fstatat(AT_FDCWD, path, &about, flags & FILE_FOLLOW ? 0 : AT_SYMLINK_NOFOLLOW) < 0) {
        served_error(served, errno);
    } else {
        struct writer writer = answer_begin(served, ENTRY);
        put_entry(&writer, path, path, &about, flags & FILE_WITH_METADATA);
        answer_end(served, &writer);
    }
}

static void file_real_path(struct served *served, struct reader *reader) {
    char path[PATH_BYTES_MAX], real[PATH_BYTES_MAX];
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    if (!good) {
        served_error(served, BAD_PATH);
    } else if (!realpath(path, real)) {
        served_error(served, errno);
    } else {
        struct writer writer = answer_begin(served, REAL_PATH);
        put_text(&writer, real, strlen(real));
        answer_end(served, &writer);
    }
}

static void request(struct served *served, uint8_t type, struct reader *reader) {
    if (served->refused && type != FILE_WRITE) { /* that one has content to pass over */
        served->refused = false;
        return served_error(served, ACCOUNT_CHANGED);
    }
    switch (type) {
    case FILE_IF_ACCOUNT: return file_if_account(served, reader);
    case FILE_ACCOUNT: return file_account(served, reader);
    case FILE_STAT: return file_stat(served, reader);
    case FILE_REAL_PATH: return file_real_path(served, reader);
    case FILE_LIST: return file_list(served, reader);
    case FILE_OPEN: return file_open(served, reader);
    case FILE_READ: return file_read(served, reader);
    case FILE_WRITE: return file_write(served, reader);
    case FILE_MKDIR: return file_mkdir(served, reader);
    case FILE_MOVE: return file_move(served, reader);
    case FILE_COPY: return file_copy(served, reader);
    case FILE_REMOVE: return file_remove(served, reader);
    case FILE_CHANGE: return file_change(served, reader);
    case FILE_METADATA: return file_metadata(served, reader);
    case FILE_SYMLINK: return file_symlink(served, reader);
    case FILE_SIZE: return file_size(served, reader);
    case FILE_WATCH: return file_watch(served, reader);
    case FILE_LISTEN:
    case FILE_CONNECT:
    case FILE_ACCEPT: return file_socket(served, reader, type);
    default: served_broken(served);
    }
}

/* An idle connection may stay for long: what its buffers took is given back. */
static void rest(struct served *served) {
    served_flush(served);
    if (!served->grown) return;
    served->grown = false;
    madvise(served->in, FILES_PIECE_BYTES, MADV_DONTNEED);
    madvise(served->piece, FRAME_HEAD_BYTES + FILES_PIECE_BYTES, MADV_DONTNEED);
}

_Noreturn void served_run(struct served *served) {
    uint8_t *copy = malloc(FILES_REQUEST_BYTES_MAX); /* a request outlives the buffer that its content comes through */
    if (!copy) _exit(1);
    for (;;) {
        size_t have = served->in_last - served->in_first;
        uint32_t length = have >= 4 ? peek_u32(served->in + served->in_first) : 0;
        if (have >= 4 && (length == 0 || length > FILES_REQUEST_BYTES_MAX)) served_broken(served);
        if (have < FRAME_HEAD_BYTES || have < length + 4ul) {
            if (have == 0) rest(served);
            else served_flush(served);
            served_receive(served);
            continue;
        }
        memcpy(copy, served->in + served->in_first + 4, length);
        served->in_first += length + 4ul;
        struct reader reader = {copy + 1, copy + length, false};
        served->accounts = owners_refresh();
        request(served, copy[0], &reader);
    }
}
