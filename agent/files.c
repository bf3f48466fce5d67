/* Files connections, as the agent sees them: FILES forks a child that takes on the user's ids and serves the connection
 * by itself (file_serve.c). The agent keeps the socket only to see the client go; then it kills the child, wherever that
 * is stuck. So no disk, no FIFO and no huge directory ever holds up a terminal. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "files.h"

#define CONNECTION_FD 3 /* in the child */

const char *files_root; /* NULL: all that there is */
int own_descriptors = -1;

static struct child { /* until it is reaped */
    pid_t pid; /* 0: free */
    bool dying;
} children[FILES_CHILDREN_MAX + FILES_DYING_MAX];
static size_t living;

#define PLACES (sizeof children / sizeof *children)

static struct child *place_of(pid_t pid) {
    for (size_t i = 0; i < PLACES; i++)
        if (children[i].pid == pid) return &children[i];
    return NULL;
}

static void end_child(struct child *child) {
    if (!child || child->pid == 0 || child->dying) return;
    kill(child->pid, SIGKILL);
    child->dying = true;
    living--;
}

bool files_child(pid_t pid) { return pid > 0 && place_of(pid); }

void files_reaped(pid_t pid) {
    struct child *child = pid > 0 ? place_of(pid) : NULL;
    if (!child) return;
    if (!child->dying) living--;
    *child = (struct child){0};
    connections_child_gone(pid);
}

void files_shutdown(void) {
    for (size_t i = 0; i < PLACES; i++) end_child(&children[i]);
}

/* --- in the child ------------------------------------------------------------------------------------------------ */

static void *map(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) _exit(1);
    madvise(memory, bytes, MADV_NOHUGEPAGE);
    return memory;
}

static void say_who(struct served *served, const struct user *user) {
    struct writer writer = answer_begin(served, ACCOUNT);
    put_u32(&writer, user->uid);
    put_u32(&writer, user->gid);
    put_text(&writer, user->name, strlen(user->name));
    put_text(&writer, user->home, strlen(user->home));
    answer_end(served, &writer);
}

_Noreturn static void serve(struct connection *connection, const struct user *user, mode_t mask, struct text received,
                            pid_t agent) {
    reset_signals();
    signal(SIGPIPE, SIG_IGN);
    set_title("sandpty-files");
    int fd = connection->source.fd, bytes = FILES_SOCKET_BYTES;
    if (fd != CONNECTION_FD && dup2(fd, CONNECTION_FD) < 0) _exit(1);
    close_from(CONNECTION_FD + 1);
    fcntl(CONNECTION_FD, F_SETFD, FD_CLOEXEC);
    fcntl(CONNECTION_FD, F_SETFL, fcntl(CONNECTION_FD, F_GETFL) & ~O_NONBLOCK);
    setsockopt(CONNECTION_FD, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    struct served served = {.fd = CONNECTION_FD, .out = connection->out, .umask = mask & 0777, .passed = -1, .listening = -1, .open = -1, .pipe = {-1, -1}};
    served.in = map(FILES_PIECE_BYTES);
    served.piece = map(FRAME_HEAD_BYTES + FILES_PIECE_BYTES);
    if (received.length) memcpy(served.in, received.bytes, received.length);
    served.in_last = received.length;
    umask(served.umask);
    raise_oom_score();
    own_descriptors = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC); /* not to be found from a root below */
    if ((files_root && chroot(files_root) < 0) || !become(user) || chdir("/") < 0) {
        served_error(&served, errno);
        served_flush(&served);
        _exit(1);
    }
    prctl(PR_SET_DUMPABLE, 0);          /* taking on other ids may have changed this ... */
    prctl(PR_SET_PDEATHSIG, SIGKILL);   /* ... and took this back */
    if (getppid() != agent) _exit(1);
    say_who(&served, user);
    served_run(&served);
}

/* --- FILES ------------------------------------------------------------------------------------------------------- */

static struct problem fork_child(struct connection *connection, const struct user *user, mode_t mask,
                                 struct text received) {
    struct child *place = living < FILES_CHILDREN_MAX ? place_of(0) : NULL;
    if (!place) return (struct problem){LIMIT, "files_connections"};
    pid_t agent = getpid(), pid = fork();
    if (pid == 0) serve(connection, user, mask, received, agent);
    if (pid < 0) return (struct problem){LIMIT, "processes of the sandbox"};
    *place = (struct child){pid, false};
    living++;
    connection->files_child = pid;
    return NO_PROBLEM;
}

bool files_frame(struct connection *connection, struct reader *reader) {
    uint32_t mask = take_u32(reader);
    struct text name = take_text(reader);
    if (!reader_done(reader)) return false;
    const uint8_t *end = connection->in.bytes + connection->in.last;
    struct text received = {reader->end, (uint32_t)(end - reader->end)}; /* requests that came with this one */
    struct problem problem = NO_PROBLEM;
    struct user *user = malloc(sizeof *user);
    if (!user) problem = (struct problem){INTERNAL, "out of memory"};
    else if (shutting_down) problem = (struct problem){EXITED, "the sandbox is ending"};
    else if (received.length > FILES_PIECE_BYTES) problem = (struct problem){LIMIT, "request_bytes"};
    else if (!user_find(name, user)) problem = (struct problem){NO_SUCH_USER, "no such user"};
    else if (connection_flush(connection)) problem = fork_child(connection, user, mask, received);
    if (connection->files_child) parked_end();
    free(user);
    if (problem.code) {
        connection_error(connection, problem.code, problem.message, false);
    } else if (connection->files_child) {
        connection->role = ROLE_FILES;
        connection->busy = BUSY_FILES;
        buffer_free(&connection->out); /* the child says it */
    }
    return true;
}

void files_end(struct connection *connection) {
    if (connection->files_child) end_child(place_of(connection->files_child));
    connection->files_child = 0;
}
