/* Starting a process: check the request, make the terminal or the pipes, fork the reaper, hear how it went. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

void process_add(struct process *process);
void process_free(struct process *process);
void process_prepare(struct process *process);
void process_started(struct process *process, const struct report *report);
size_t processes_running(void);

/* --- argv and env ------------------------------------------------------------------------------------------------ */

static char *copy_text(struct text text, const char *before) {
    size_t length = strlen(before);
    char *copy = malloc(length + text.length + 1);
    if (!copy) return NULL;
    memcpy(copy, before, length);
    if (text.length) memcpy(copy + length, text.bytes, text.length);
    copy[length + text.length] = 0;
    return copy;
}

static void free_strings(char **strings) {
    for (char **at = strings; at && *at; at++) free(*at);
    free(strings);
}

static char **copy_strings(struct text items, uint32_t count, size_t room, bool *has_nul) {
    struct reader reader = {items.bytes, items.bytes + items.length, false};
    char **strings = calloc((size_t)count + room + 1, sizeof *strings);
    for (uint32_t i = 0; strings && i < count; i++) {
        struct text text = take_text(&reader);
        if (text.length && memchr(text.bytes, 0, text.length)) *has_nul = true;
        strings[i] = copy_text(text, "");
        if (!strings[i]) {
            free_strings(strings);
            return NULL;
        }
    }
    return strings;
}

static bool same_name(const char *one, const char *other) {
    size_t length = strcspn(one, "=");
    return strncmp(one, other, length) == 0 && other[length] == '=';
}

/* Later entries win: an earlier one of the same name is replaced by the last entry. */
static void unite(char **env) {
    size_t count = 0;
    for (size_t i = 0; env[i]; i++) {
        size_t at = 0;
        while (at < count && !same_name(env[at], env[i])) at++;
        if (at < count) free(env[at]);
        else count++;
        env[at] = env[i];
    }
    env[count] = NULL;
}

static char **make_env(const struct start_request *request, const struct user *user, struct problem *problem) {
    static const char *const names[] = {"PATH=", "HOME=", "USER=", "LOGNAME="};
    const char *values[] = {DEFAULT_PATH, user->home, user->name, user->name};
    bool has_nul = false;
    char **env = copy_strings(request->env, request->envc, 4, &has_nul);
    if (!env) return NULL;
    for (uint32_t i = 0; i < request->envc; i++)
        if (has_nul || strcspn(env[i], "=") == 0 || !strchr(env[i], '='))
            *problem = (struct problem){BAD_ARGUMENT, "an environment entry is not NAME=value"};
    memmove(env + 4, env, request->envc * sizeof *env);
    for (size_t i = 0; i < 4; i++) {
        struct text value = {(const uint8_t *)values[i], (uint32_t)strlen(values[i])};
        env[i] = copy_text(value, names[i]);
        if (!env[i]) *problem = (struct problem){INTERNAL, "out of memory"};
        if (!env[i]) env[i] = strdup("");
    }
    if (!problem->code) unite(env);
    return env;
}

/* Empty = home, `~` and `~/x` = in home, relative = under home. */
static bool make_cwd(struct text cwd, const struct user *user, char *path, size_t size) {
    const char *text = (const char *)cwd.bytes;
    if (cwd.length && memchr(text, 0, cwd.length)) return false;
    uint32_t length = cwd.length;
    if (length && text[0] == '~' && (length == 1 || text[1] == '/')) {
        text++;
        length--;
    } else if (length && text[0] == '/') {
        return (size_t)snprintf(path, size, "%.*s", (int)length, text) < size;
    }
    return (size_t)snprintf(path, size, "%s/%.*s", user->home, (int)length, length ? text : "") < size;
}

/* --- terminal and pipes ------------------------------------------------------------------------------------------ */

struct ends { /* what the child gets, closed here after the fork */
    int stdio[3], status;
};

static int open_slave(int master) {
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    char name[64];
    if (slave < 0 && ptsname_r(master, name, sizeof name) == 0) slave = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    return slave;
}

static bool open_terminal(struct process *process, const struct user *user, struct text modes, struct ends *ends) {
    int unlock = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0) return false;
    struct winsize size = {.ws_col = process->cols, .ws_row = process->rows};
    if (ioctl(master, TIOCSPTLCK, &unlock) < 0 || ioctl(master, TIOCSWINSZ, &size) < 0 ||
        (process->slave = open_slave(master)) < 0 || !source_open(&process->output[0], master, 0)) {
        close(master);
        return false;
    }
    modes_apply(process->slave, modes);
    if (fchown(process->slave, user->uid, (gid_t)-1) == 0) fchmod(process->slave, 0620);
    for (int i = 0; i < 3; i++) ends->stdio[i] = process->slave;
    return true;
}

static bool open_pipe(struct source *source, int *child_end, int ours, uint32_t interest) {
    int pipe_ends[2];
    if (pipe2(pipe_ends, O_CLOEXEC) < 0) return false;
    *child_end = pipe_ends[1 - ours];
    fcntl(pipe_ends[ours], F_SETFL, O_NONBLOCK);
    if (source_open(source, pipe_ends[ours], interest)) return true;
    close(pipe_ends[ours]);
    return false;
}

static bool open_pipes(struct process *process, bool with_stdin, struct ends *ends) {
    if (with_stdin) {
        if (!open_pipe(&process->input, &ends->stdio[0], 1, 0)) return false; /* asked only when a write did not fit */
    } else if ((ends->stdio[0] = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) {
        return false;
    }
    return open_pipe(&process->output[0], &ends->stdio[1], 0, 0) &&
           open_pipe(&process->output[1], &ends->stdio[2], 0, 0);
}

static bool open_ends(struct process *process, const struct start_request *request, const struct user *user,
                      struct ends *ends) {
    bool with_stdin = request->flags & START_STDIN;
    if (!(process->pty ? open_terminal(process, user, request->modes, ends) : open_pipes(process, with_stdin, ends))) return false;
    process->stdin_open = process->pty || with_stdin;
    return open_pipe(&process->reports, &ends->status, 0, EPOLLIN);
}

static void close_ends(const struct process *process, const struct ends *ends) {
    for (int i = 0; i < 3; i++)
        if (ends->stdio[i] >= 0 && ends->stdio[i] != process->slave) close(ends->stdio[i]);
    if (ends->status >= 0) close(ends->status);
}

/* The payload of START and of PARK; false when it is not all there. */
bool take_start(struct reader *reader, struct start_request *request, uint32_t *window, uint32_t *stall_ms) {
    *request = (struct start_request){.flags = take_u8(reader)};
    request->cols = take_u16(reader);
    request->rows = take_u16(reader);
    request->log_bytes = take_u32(reader);
    request->deadline_ms = take_u32(reader);
    *window = take_u32(reader);
    *stall_ms = take_u32(reader);
    if (request->flags & START_MODES) request->modes = take_text(reader);
    request->strings = reader->at;
    request->strings_bytes = (size_t)(reader->end - reader->at);
    request->user = take_text(reader);
    request->cwd = take_text(reader);
    request->tag = take_text(reader);
    request->argc = take_texts(reader, &request->argv);
    request->envc = take_texts(reader, &request->env);
    return reader_done(reader);
}

/* --- START ------------------------------------------------------------------------------------------------------- */

static struct problem check(const struct start_request *request) {
    if (request->argc == 0) return (struct problem){BAD_ARGUMENT, "argv is empty"};
    if (request->cols > CELLS_MAX || request->rows > CELLS_MAX)
        return (struct problem){BAD_ARGUMENT, "columns and rows must be 1 to 10000"};
    if (request->argc > ARGUMENTS_MAX) return (struct problem){LIMIT, "arguments"};
    if (request->envc > ENVIRONMENT_MAX) return (struct problem){LIMIT, "environment"};
    if (request->tag.length > TAG_BYTES_MAX) return (struct problem){LIMIT, "tag_bytes"};
    if (request->modes.length > MODES_BYTES_MAX) return (struct problem){LIMIT, "modes_bytes"};
    if (request->log_bytes > LOG_BYTES_MAX) return (struct problem){LIMIT, "log_bytes"};
    if (request->strings_bytes > REQUEST_BYTES_MAX) return (struct problem){LIMIT, "request_bytes"};
    if (processes_running() >= PROCESSES_MAX) return (struct problem){LIMIT, "processes"};
    if (shutting_down) return (struct problem){EXITED, "the sandbox is ending"};
    return NO_PROBLEM;
}

uint64_t log_size(uint32_t asked) {
    if (asked == 0) return LOG_BYTES_DEFAULT;
    return asked < LOG_BYTES_MIN ? LOG_BYTES_MIN : asked;
}

static struct process *make(const struct start_request *request) {
    struct process *process = calloc(1, sizeof *process);
    if (!process) return NULL;
    process_prepare(process);
    process->pty = request->flags & START_PTY;
    process->cols = !process->pty ? 0 : request->cols ? request->cols : 80;
    process->rows = !process->pty ? 0 : request->rows ? request->rows : 24;
    process->parked = request->park;
    process->request = malloc(request->strings_bytes);
    process->request_bytes = request->strings_bytes;
    process_add(process);
    if (!process->request || !log_open(&process->log, log_size(request->log_bytes))) {
        process_free(process);
        return NULL;
    }
    memcpy(process->request, request->strings, request->strings_bytes);
    process->tag = (struct text){process->request + (request->tag.bytes - request->strings), request->tag.length};
    return process;
}

static struct problem launch(struct process *process, const struct start_request *request, struct launch *plan) {
    struct ends ends = {{-1, -1, -1}, -1};
    static char message[64];
    plan->pty = process->pty;
    process->reaper = -1;
    if (open_ends(process, request, plan->user, &ends)) {
        memcpy(plan->stdio, ends.stdio, sizeof ends.stdio);
        plan->status = ends.status;
        process->reaper = reaper_fork(plan);
    }
    int error = errno;
    close_ends(process, &ends);
    if (process->reaper > 0) return NO_PROBLEM;
    process->reaper = 0;
    snprintf(message, sizeof message, "%s", strerror(error));
    return (struct problem){START_FAILED, message};
}

/* A service of the host's own, as the code interpreter: what is parked beside it goes on waiting. */
static bool is_service(const struct start_request *request) {
    static const char prefix[] = SERVICE_TAG_PREFIX;
    size_t length = sizeof prefix - 1;
    return request->tag.length >= length && !memcmp(request->tag.bytes, prefix, length);
}

struct problem process_start(const struct start_request *request, struct process **started) {
    struct problem problem = check(request);
    if (!problem.code && !request->park && !is_service(request) && (*started = parked_take(request))) return NO_PROBLEM;
    struct user *user = malloc(sizeof *user);
    struct launch *plan = calloc(1, sizeof *plan);
    bool has_nul = false;
    if (!problem.code && (!user || !plan)) problem = (struct problem){INTERNAL, "out of memory"};
    if (!problem.code && !user_find(request->user, user)) problem = (struct problem){NO_SUCH_USER, "no such user"};
    if (!problem.code) {
        plan->user = user;
        plan->argv = copy_strings(request->argv, request->argc, 0, &has_nul);
        plan->env = make_env(request, user, &problem);
        if (!plan->argv || !plan->env) problem = (struct problem){INTERNAL, "out of memory"};
        else if (has_nul) problem = (struct problem){BAD_ARGUMENT, "an argument holds a NUL byte"};
        else if (!plan->argv[0][0]) problem = (struct problem){START_FAILED, strerror(ENOENT)};
        else if (!make_cwd(request->cwd, user, plan->cwd, sizeof plan->cwd))
            problem = (struct problem){BAD_CWD, "not a path"};
    }
    if (!problem.code && !(*started = make(request))) problem = (struct problem){INTERNAL, "out of memory"};
    if (!problem.code) {
        problem = launch(*started, request, plan);
        if (problem.code) process_free(*started);
        else if (request->deadline_ms) timer_arm(&(*started)->deadline, loop_now() + request->deadline_ms * MS);
    }
    if (plan) free_strings(plan->argv);
    if (plan) free_strings(plan->env);
    free(plan);
    free(user);
    return problem;
}

void process_started(struct process *process, const struct report *report) {
    if (process->state != STATE_STARTING) return;
    if (report->kind == REPORT_STARTED) {
        process->state = STATE_RUNNING;
        process->pid = report->value;
        process->started_ms = unix_ms();
        connections_started(process, NO_PROBLEM);
        process_update(process);
        return;
    }
    struct problem problem = {report->stage == STAGE_CWD ? BAD_CWD : START_FAILED, strerror(report->value)};
    connections_started(process, problem);
    process->state = STATE_ENDED; /* its reaper, if it still lives, is reaped like any child and belongs to nobody */
    process_free(process);
}
