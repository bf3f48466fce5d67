/* The sandpty agent: PID 1 of a sandbox (or a plain process beside others, where there is no isolation).
 *
 *     agent 3        serve the agent protocol on the listening socket that is descriptor 3
 *     agent 3 /data  the same; but files connections see nothing but what is below /data */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

uint64_t boot_ms;
bool shutting_down;
struct rlimit first_nofile; /* what children get back */

static struct source signals;
static struct timer shutdown_over;

static void shutdown_due(struct timer *timer) {
    (void)timer;
    loop_stop();
}

void agent_shutdown(void) {
    if (shutting_down) return;
    shutting_down = true;
    files_shutdown();
    processes_shutdown();
    if (processes_gone()) loop_stop();
    shutdown_over.fire = shutdown_due;
    timer_arm(&shutdown_over, loop_now() + SHUTDOWN_NS);
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        process_reaped(pid, status);
        files_reaped(pid);
    }
    if (shutting_down && processes_gone()) loop_stop();
}

static void signals_ready(struct source *source, uint32_t events) {
    (void)events;
    struct signalfd_siginfo info;
    while (read(source->fd, &info, sizeof info) == sizeof info)
        if (info.ssi_signo != SIGCHLD) agent_shutdown();
    reap();
}

static bool signals_open(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (sigprocmask(SIG_SETMASK, &set, NULL) < 0) return false;
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    signals = (struct source){.fd = -1, .ready = signals_ready};
    return fd >= 0 && source_open(&signals, fd, EPOLLIN);
}

/* 0, 1 and 2 exist, nothing is inherited by children, as many descriptors as we may have. */
static void prepare_descriptors(void) {
    int null;
    while ((null = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && null <= 2) {}
    if (null >= 0) close(null);
    if (syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */) < 0)
        for (int fd = 3; fd < 1024; fd++) fcntl(fd, F_SETFD, FD_CLOEXEC);
    getrlimit(RLIMIT_NOFILE, &first_nofile);
    struct rlimit most = {first_nofile.rlim_max, first_nofile.rlim_max};
    setrlimit(RLIMIT_NOFILE, &most);
}

static char *title; /* our arguments as `ps` shows them, one piece of memory */
static size_t title_bytes;

void set_title(const char *name) {
    prctl(PR_SET_NAME, name);
    memset(title, 0, title_bytes);
    strncpy(title, name, title_bytes - 1);
}

int main(int argc, char **argv) {
    int listening = argc == 2 || argc == 3 ? atoi(argv[1]) : -1;
    if (listening < 3 || fcntl(listening, F_SETFL, fcntl(listening, F_GETFL) | O_NONBLOCK) < 0) {
        fprintf(stderr, "usage: agent FD [FILES_ROOT]   (FD: a listening unix socket, 3 or above)\n");
        return 2;
    }
    if (argc == 3 && !(files_root = strdup(argv[2]))) return 1; /* the title takes the place of the arguments */
    title = argv[0];
    title_bytes = (size_t)(argv[argc - 1] + strlen(argv[argc - 1]) + 1 - argv[0]);
    set_title("sandpty-agent");
    prctl(PR_SET_DUMPABLE, 0); /* a guest must not ptrace or read us */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prepare_descriptors();
    boot_ms = unix_ms();
    if (!loop_init() || !signals_open() || !connections_listen(listening)) {
        fprintf(stderr, "sandpty agent: %s\n", strerror(errno));
        return 1;
    }
    loop_run();
    return 0;
}
