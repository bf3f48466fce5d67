/* Unix sockets of the guest, for the host: one is made here, as the guest's user and among the guest's paths. With a request
 * the host sends one end of a pair of its own (SCM_RIGHTS), and a process forked for it carries the bytes between the two.
 * Not the host's own end: who holds a socket decides for all who do whether reading it may block.
 *
 * A name outlives its socket. So a keeper, forked from the child that made it, waits for that child's end and removes it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "files.h"

#define CHILD_FD 3 /* in the keeper: ends when the child has */
#define RELAY_FD 3 /* in a relay, and the next one: what it carries between */

void served_take_descriptor(struct served *served, const struct msghdr *message) {
    const struct cmsghdr *beside = CMSG_FIRSTHDR(message); /* there is room for one */
    if (!beside || beside->cmsg_level != SOL_SOCKET || beside->cmsg_type != SCM_RIGHTS) return;
    if (beside->cmsg_len != CMSG_LEN(sizeof(int))) return;
    if (served->passed >= 0) close(served->passed);
    memcpy(&served->passed, CMSG_DATA(beside), sizeof(int));
}

/* Only a path: what begins with NUL would be a name of the network. */
static int address_of(const char *path, struct sockaddr_un *address) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address->sun_path) return ENAMETOOLONG;
    strcpy(address->sun_path, path);
    return 0;
}

static int new_socket(void) {
    return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

/* A process of its own goes on with both; an errno when there can be none. */
static int carry(int host, int guest) {
    signal(SIGCHLD, SIG_IGN); /* nobody waits for it */
    pid_t pid = fork();
    if (pid == 0) {
        set_title("sandpty-relay");
        int ends[2] = {dup(host), dup(guest)}; /* neither of them is RELAY_FD, which is in use here */
        if (ends[0] < 0 || ends[1] < 0 || dup2(ends[0], RELAY_FD) < 0 || dup2(ends[1], RELAY_FD + 1) < 0) _exit(1);
        close_from(RELAY_FD + 2);
        relay(RELAY_FD, RELAY_FD + 1);
    }
    return pid < 0 ? errno : 0;
}

static int connect_to(const char *path, int host) {
    struct sockaddr_un address;
    const struct timeval most = {.tv_sec = SOCKET_CONNECT_S};
    int error = address_of(path, &address), fd = error ? -1 : new_socket();
    if (error) return error;
    if (fd < 0) return errno;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof most); /* for room among those who wait to be accepted */
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) error = errno == EAGAIN ? ETIMEDOUT : errno;
    if (!error) error = carry(host, fd);
    close(fd);
    return error;
}

_Noreturn static void keeper(const char *path, const struct stat *made, int end) {
    set_title("sandpty-keeper");
    if (end != CHILD_FD && dup2(end, CHILD_FD) < 0) _exit(1); /* in place of the connection */
    close_from(CHILD_FD + 1);
    char nothing;
    while (read(CHILD_FD, &nothing, 1) < 0 && errno == EINTR) {}
    struct stat now;
    if (lstat(path, &now) == 0 && now.st_dev == made->st_dev && now.st_ino == made->st_ino) unlink(path);
    _exit(0);
}

static int keep(const char *path) {
    struct stat made;
    int ends[2];
    if (lstat(path, &made) < 0 || pipe2(ends, O_CLOEXEC) < 0) return errno;
    signal(SIGCHLD, SIG_IGN); /* whoever is ended before us waits for nobody */
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[1]);
        keeper(path, &made, ends[0]);
    }
    int error = pid < 0 ? errno : 0;
    close(ends[0]);
    if (error) close(ends[1]); /* else it is held until we end */
    return error;
}

static int bind_to(int fd, const char *path) {
    struct sockaddr_un address;
    int error = address_of(path, &address);
    if (error) return error;
    mode_t mask = umask(0177);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) error = errno;
    umask(mask);
    if (error) return error;
    error = keep(path);
    if (!error) return listen(fd, LISTEN_BACKLOG) < 0 ? errno : 0;
    unlink(path);
    return error;
}

static int listen_at(struct served *served, const char *path) {
    if (served->listening >= 0) return EBUSY;
    int fd = new_socket();
    if (fd < 0) return errno;
    int error = bind_to(fd, path);
    if (error) close(fd);
    else served->listening = fd;
    return error;
}

/* Waits for somebody to connect; ends with the host's connection, on which nothing else is said meanwhile. */
static int accept_for(struct served *served, int host) {
    if (served->listening < 0) return EINVAL;
    struct pollfd watched[] = {{.fd = served->listening, .events = POLLIN}, {.fd = served->fd, .events = POLLIN}};
    served_flush(served);
    while (poll(watched, 2, -1) < 0)
        if (errno != EINTR) return errno;
    if (watched[1].revents) served_end(served);
    int fd = accept4(served->listening, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return errno;
    int error = carry(host, fd);
    close(fd);
    return error;
}

void file_socket(struct served *served, struct reader *reader, uint8_t type) {
    char path[PATH_BYTES_MAX];
    bool good = type == FILE_ACCEPT || take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    int host = served->passed, error;
    served->passed = -1;
    if (!good) error = BAD_PATH;
    else if (type == FILE_LISTEN) error = listen_at(served, path);
    else if (host < 0) error = ENOTSOCK;
    else error = type == FILE_CONNECT ? connect_to(path, host) : accept_for(served, host);
    if (host >= 0) close(host);
    if (error) served_error(served, error);
    else served_done(served);
}
