/* Between the agent and each leader stands a reaper: a child subreaper, so that whatever the process starts, orphans or
 * moves to another session stays below it. It reaps, reports, kills the tree when told (SIGTERM, also when the agent
 * dies) and ends when nothing is left. That end is how the agent knows that a tree is empty.
 *
 * A fork of the agent without exec: 0.1 ms and a few private pages. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

#define REPORTS_FD 3 /* in the reaper */
#define EAGER_NS (1 * MS)

const char *const DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
extern struct rlimit first_nofile;

/* --- the leader, until exec -------------------------------------------------------------------------------------- */

void reset_signals(void) {
    struct sigaction action = {.sa_handler = SIG_DFL};
    for (int number = 1; number < NSIG; number++) sigaction(number, &action, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

void raise_oom_score(void) {
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t ignored = write(fd, OOM_SCORE_ADJ, strlen(OOM_SCORE_ADJ));
    (void)ignored; /* it only makes a good choice likelier; a sandbox may already have a higher one */
    close(fd);
}

bool become(const struct user *user) {
    if (geteuid() != 0 && user->uid == geteuid()) return true; /* unprivileged agent, itself */
    return setgroups(user->groups_count, user->groups) == 0 && setresgid(user->gid, user->gid, user->gid) == 0 &&
           setresuid(user->uid, user->uid, user->uid) == 0;
}

static const char *value_of(char **env, const char *name) {
    size_t length = strlen(name);
    for (; *env; env++)
        if (strncmp(*env, name, length) == 0 && (*env)[length] == '=') return *env + length + 1;
    return NULL;
}

static void exec_path(const char *path, const struct launch *launch) {
    execve(path, launch->argv, launch->env);
    if (errno != ENOEXEC) return;
    size_t count = 0; /* a script without #!, as execvp does */
    while (launch->argv[count]) count++;
    char **argv = calloc(count + 2, sizeof *argv);
    if (!argv) return;
    argv[0] = (char *)"/bin/sh";
    argv[1] = (char *)path;
    for (size_t i = 1; i < count; i++) argv[i + 1] = launch->argv[i];
    execve(argv[0], argv, launch->env);
}

/* execvp with the process's own PATH. Returns the errno that says most. */
static int exec_named(const struct launch *launch) {
    const char *name = launch->argv[0], *path = value_of(launch->env, "PATH");
    if (strchr(name, '/')) {
        exec_path(name, launch);
        return errno;
    }
    int worst = ENOENT;
    for (const char *at = path ? path : DEFAULT_PATH, *end;; at = end + 1) {
        end = strchrnul(at, ':');
        char candidate[PATH_BYTES_MAX];
        int length = snprintf(candidate, sizeof candidate, "%.*s%s%s", (int)(end - at), at, end > at ? "/" : "", name);
        if (length > 0 && length < (int)sizeof candidate) {
            exec_path(candidate, launch);
            if (errno != ENOENT && errno != ENOTDIR && worst == ENOENT) worst = errno;
        }
        if (!*end) return worst;
    }
}

/* Clients ask for bash by name, and many images only have another shell (Alpine's is busybox, which goes by its own name
 * in argv[0]). */
static int exec_leader(const struct launch *launch) {
    const char *name = launch->argv[0];
    int problem = exec_named(launch);
    if (problem != ENOENT || (strcmp(name, "/bin/bash") != 0 && strcmp(name, "bash") != 0)) return problem;
    launch->argv[0] = (char *)"/bin/sh";
    execve(launch->argv[0], launch->argv, launch->env);
    return problem;
}

static void lead(const struct launch *launch, int failure_fd) {
    struct report report = {REPORT_FAILED, STAGE_TERMINAL, 0};
    setsid();
    if (launch->pty && ioctl(0, TIOCSCTTY, 0) < 0) goto failed;
    report.stage = STAGE_USER;
    raise_oom_score(); /* while it is still ours to write */
    setrlimit(RLIMIT_NOFILE, &first_nofile);
    umask(022);
    if (!become(launch->user)) goto failed;
    report.stage = STAGE_CWD;
    if (chdir(launch->cwd) < 0) goto failed;
    report.stage = STAGE_EXEC;
    reset_signals();
    errno = exec_leader(launch);
failed:
    report.value = errno;
    ssize_t ignored = write(failure_fd, &report, sizeof report);
    (void)ignored; /* the reaper is gone: nobody to tell */
    _exit(127);
}

/* --- the reaper -------------------------------------------------------------------------------------------------- */

void close_from(unsigned first) {
    if (syscall(SYS_close_range, first, ~0u, 0) == 0) return;
    rlim_t most = first_nofile.rlim_max < DESCRIPTORS_MAX ? first_nofile.rlim_max : DESCRIPTORS_MAX;
    for (unsigned fd = first; fd < most; fd++) close((int)fd);
}

static void send_report(enum report_kind kind, enum stage stage, int value) {
    struct report report = {kind, stage, value};
    while (write(REPORTS_FD, &report, sizeof report) < 0 && errno == EINTR) {}
}

/* Reaps what is dead; false when nothing is left to reap, now or ever. */
static bool reap(pid_t leader) {
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid == 0) return true;
        if (pid < 0) return errno != ECHILD;
        if (pid == leader) send_report(REPORT_EXITED, 0, status);
    }
}

static void watch_over(pid_t leader) {
    sigset_t awaited;
    sigemptyset(&awaited);
    sigaddset(&awaited, SIGCHLD);
    sigaddset(&awaited, SIGTERM);
    bool killing = false;
    unsigned rounds = 0;
    while (reap(leader)) {
        /* Again and again, because something may be born while we look. Who is in uninterruptible sleep takes long. */
        struct timespec rest = {0, rounds < KILL_EAGER_ROUNDS ? EAGER_NS : KILL_REST_NS};
        if (killing && rounds < UINT32_MAX) rounds++;
        if (killing) tree_signal(getpid(), KIN_DESCENDANTS, SIGKILL, NULL);
        int number = killing ? sigtimedwait(&awaited, NULL, &rest) : sigwaitinfo(&awaited, NULL);
        if (number == SIGTERM) killing = true;
    }
}

static void reaper(const struct launch *launch, pid_t agent) {
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL); /* nothing but SIGKILL ends a reaper before its tree */
    set_title("sandpty-reaper");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != agent) _exit(1);
    for (int fd = 0; fd < 3; fd++) dup2(launch->stdio[fd], fd);
    dup3(launch->status, REPORTS_FD, O_CLOEXEC);
    close_from(REPORTS_FD + 1); /* before the leader is forked: nobody's EOF waits for somebody else's exec */
    int failure[2];
    pid_t leader = pipe2(failure, O_CLOEXEC) == 0 ? fork() : -1;
    if (leader == 0) lead(launch, failure[1]);
    if (leader < 0) {
        send_report(REPORT_FAILED, STAGE_FORK, errno);
        _exit(1);
    }
    close(failure[1]);
    struct report report;
    bool failed = read(failure[0], &report, sizeof report) == sizeof report;
    close(failure[0]);
    for (int fd = 0; fd < 3; fd++) close(fd);
    if (failed) send_report(REPORT_FAILED, report.stage, report.value);
    else send_report(REPORT_STARTED, 0, leader);
    watch_over(leader);
    _exit(0);
}

pid_t reaper_fork(const struct launch *launch) {
    pid_t agent = getpid(), pid = fork();
    if (pid == 0) reaper(launch, agent);
    return pid;
}
