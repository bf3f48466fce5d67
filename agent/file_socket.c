/* Unix sockets of the guest, for the host: it makes a socket in the guest's network and sends it along with a request
 * (SCM_RIGHTS); here, as the guest's user and among the guest's paths, it gets its name or its peer, and the host goes on
 * with it. No byte of what it carries passes through the guest's agent, and nothing of the guest's gets to the host.
 *
 * A name outlives its socket. So a keeper, forked from the child that made it, waits for that child's end and removes it. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "files.h"

#define CHILD_FD 3 /* in the keeper: ends when the child has */

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

static int connect_to(int fd, const char *path) {
    struct sockaddr_un address;
    int error = address_of(path, &address);
    if (error) return error;
    int flags = fcntl(fd, F_GETFL); /* shared with the host, which does nothing with it yet */
    fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) error = errno;
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
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

static int listen_at(int fd, const char *path) {
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

void file_socket(struct served *served, struct reader *reader, bool listens) {
    char path[PATH_BYTES_MAX];
    bool good = take_path(reader, path);
    if (!reader_done(reader)) served_broken(served);
    int fd = served->passed, domain = 0, error;
    socklen_t size = sizeof domain;
    served->passed = -1;
    if (!good) error = BAD_PATH;
    else if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 || domain != AF_UNIX) error = ENOTSOCK;
    else error = listens ? listen_at(fd, path) : connect_to(fd, path);
    if (fd >= 0) close(fd);
    if (error) served_error(served, error);
    else served_done(served);
}
