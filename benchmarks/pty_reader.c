// The yardstick: a C program that holds a PTY itself, with nothing in between.
//
//   pty_reader throughput COMMAND...            wait for READY, send a newline, read to the end; prints JSON
//   pty_reader echo KEYS GAP_US LINE COMMAND... wait for READY, type KEYS keys one by one and wait for each to come
//                                               back; prints one line of microseconds per key. After every LINE keys
//                                               (0: never) the line is cleared with Ctrl-U, for shells.
//   pty_reader flood SECONDS COMMAND...         wait for READY, then read and drop for SECONDS (a loaded machine)
//   pty_reader prompt COMMAND...                milliseconds from fork to an output that ends with "$ " or "# "
//
// COMMAND may be ssh, tmux or our own client: then the same program measures them through a terminal of equal kind.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"

static const double READY_TIMEOUT_S = 20.0;
static const int KEY_TIMEOUT_MS = 5000;
static const int QUIET_MS = 15;
static char buffer[256 * 1024];
static pid_t child;

static void fail(const char *what) {
    fprintf(stderr, "pty_reader: %s: %s\n", what, strerror(errno));
    if (child > 0) kill(child, SIGKILL);
    exit(1);
}

static int open_terminal(char **command) {
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    int master;
    child = forkpty(&master, NULL, NULL, &size);
    if (child < 0) fail("forkpty");
    if (child == 0) {
        execvp(command[0], command);
        perror(command[0]);
        _exit(127);
    }
    return master;
}

// Bytes read, 0 at the end (a PTY says EIO), -1 when nothing came within timeout_ms.
static ssize_t read_within(int fd, int timeout_ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    int n = poll(&p, 1, timeout_ms);
    if (n < 0 && errno != EINTR) fail("poll");
    if (n <= 0) return -1;
    ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0 && errno != EIO) fail("read");
    return got < 0 ? 0 : got;
}

static void wait_ready(int fd) {
    static char seen[64 * 1024];
    size_t have = 0;
    double deadline = now_s() + READY_TIMEOUT_S;
    while (now_s() < deadline) {
        ssize_t got = read_within(fd, 1000);
        if (got == 0) {
            fprintf(stderr, "pty_reader: ended before READY: %.*s\n", (int)have, seen);
            exit(1);
        }
        if (got < 0) continue;
        if ((size_t)got > sizeof seen - have) have = 0;
        if ((size_t)got > sizeof seen) continue;
        memcpy(seen + have, buffer, (size_t)got);
        have += (size_t)got;
        if (memmem(seen, have, "READY", 5)) return;
    }
    fprintf(stderr, "pty_reader: no READY within %.0f s: %.*s\n", READY_TIMEOUT_S, (int)have, seen);
    kill(child, SIGKILL);
    exit(1);
}

static void until_quiet(int fd) {
    while (read_within(fd, QUIET_MS) > 0) {
    }
}

static void end_child(int fd) {
    close(fd);
    kill(child, SIGHUP);
    for (int i = 0; i < 200; i++) {
        if (waitpid(child, NULL, WNOHANG) != 0) return;
        sleep_us(5000);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

static void throughput(char **command) {
    int fd = open_terminal(command);
    wait_ready(fd);
    until_quiet(fd);
    unsigned long long bytes = 0, reads = 0;
    double cpu = cpu_s(), start = now_s(), last = start;
    if (write(fd, "\n", 1) != 1) fail("write");
    for (;;) {
        ssize_t got = read(fd, buffer, sizeof buffer);
        if (got <= 0) break;
        bytes += (unsigned long long)got;
        reads++;
    }
    last = now_s();
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"cpu_s\": %.6f, \"messages\": %llu}\n", bytes, last - start,
           cpu_s() - cpu, reads);
    end_child(fd);
}

static void type_key(int fd, char key) {
    double start = now_s();
    if (write(fd, &key, 1) != 1) fail("write");
    for (;;) {
        ssize_t got = read_within(fd, KEY_TIMEOUT_MS);
        if (got <= 0) {
            fprintf(stderr, "pty_reader: the key '%c' did not come back\n", key);
            kill(child, SIGKILL);
            exit(1);
        }
        if (memchr(buffer, key, (size_t)got)) break;
    }
    printf("%.1f\n", (now_s() - start) * 1e6);
}

static void echo(int keys, long gap_us, int line, char **command) {
    int fd = open_terminal(command);
    wait_ready(fd);
    until_quiet(fd);
    for (int i = 0; i < keys; i++) {
        type_key(fd, (char)('a' + i % 26));
        if (line && (i + 1) % line == 0) {
            if (write(fd, "\x15", 1) != 1) fail("write");
            until_quiet(fd);
        }
        sleep_us(gap_us);
    }
    end_child(fd);
}

static void flood(double seconds, char **command) {
    int fd = open_terminal(command);
    wait_ready(fd);
    puts("READY");
    fflush(stdout);
    double end = now_s() + seconds;
    while (now_s() < end && read_within(fd, 1000) != 0) {
    }
    end_child(fd);
}

static void prompt(char **command) {
    char tail[2] = "";
    double start = now_s();
    int fd = open_terminal(command);
    while (tail[1] != ' ' || (tail[0] != '$' && tail[0] != '#')) {
        ssize_t got = read_within(fd, KEY_TIMEOUT_MS);
        if (got <= 0) {
            fputs("pty_reader: no prompt\n", stderr);
            exit(1);
        }
        if (got == 1) tail[0] = tail[1];
        else tail[0] = buffer[got - 2];
        tail[1] = buffer[got - 1];
    }
    printf("%.3f\n", (now_s() - start) * 1e3);
    end_child(fd);
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "throughput")) {
        throughput(argv + 2);
    } else if (argc > 5 && !strcmp(argv[1], "echo")) {
        echo(atoi(argv[2]), atol(argv[3]), atoi(argv[4]), argv + 5);
    } else if (argc > 2 && !strcmp(argv[1], "prompt")) {
        prompt(argv + 2);
    } else if (argc > 3 && !strcmp(argv[1], "flood")) {
        flood(atof(argv[2]), argv + 3);
    } else {
        fputs("usage: pty_reader throughput|echo|prompt|flood ... COMMAND (see the source)\n", stderr);
        return 2;
    }
    return 0;
}
