/* The processes: their table, their life from START to the moment they are forgotten. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

static const struct problem ENDED = {EXITED, "the process has ended"};
static const struct problem NO_STDIN = {NOT_A_PIPE, "the process has a terminal, not a stdin pipe"};
static struct process *oldest, *newest;
static size_t kept_count;
static uint64_t kept_bytes;

/* --- the table --------------------------------------------------------------------------------------------------- */

void process_add(struct process *process) {
    static uint64_t last_id;
    process->id = process->parked ? 0 : ++last_id;
    process->previous = newest;
    if (newest) newest->next = process;
    else oldest = process;
    newest = process;
}

void process_unlink(struct process *process) {
    if (process->next) process->next->previous = process->previous;
    else newest = process->previous;
    if (process->previous) process->previous->next = process->next;
    else oldest = process->next;
    process->next = NULL;
}

static bool matches(const struct process *process, const struct selector *selector) {
    if (process->state == STATE_STARTING || process->parked) return false; /* nobody has been told of it yet */
    if (selector->kind == 0) return process->id == selector->number;
    if (selector->kind == 1) return (uint64_t)process->pid == selector->number;
    return process->tag.length == selector->tag.length && process->tag.length > 0 &&
           memcmp(process->tag.bytes, selector->tag.bytes, process->tag.length) == 0;
}

struct process *process_find(const struct selector *selector) {
    struct process *ended = NULL;
    for (struct process *process = newest; process; process = process->previous) {
        if (!matches(process, selector)) continue;
        if (selector->kind != 1 || process->state == STATE_RUNNING) return process;
        if (!ended) ended = process; /* pids are reused: one that runs comes before all that have ended */
    }
    return ended;
}

struct process *process_after(uint64_t id) {
    struct process *process = oldest;
    while (process && (process->id <= id || process->state == STATE_STARTING || process->parked))
        process = process->next;
    return process;
}

size_t processes_running(void) {
    size_t count = 0;
    for (struct process *process = oldest; process; process = process->next)
        if (process->reaper) count++;
    return count;
}

/* --- memory and forgetting --------------------------------------------------------------------------------------- */

static uint64_t held_bytes(const struct process *process) {
    return process->log.end - process->log.start + process->request_bytes;
}

void process_free(struct process *process) {
    source_close(&process->reports);
    source_close(&process->output[0]);
    source_close(&process->output[1]);
    source_close(&process->input);
    if (process->slave >= 0) close(process->slave);
    struct timer *timers[] = {&process->deadline, &process->drain,       &process->flush,
                              &process->stall,    &process->input_retry, &process->forget};
    for (size_t i = 0; i < sizeof timers / sizeof *timers; i++) timer_cancel(timers[i]);
    log_close(&process->log);
    free(process->request);
    process_unlink(process);
    parked_forget(process);
    process->reaper = 0;
    free_later(process);
}

static bool forgettable(const struct process *process) {
    return process->state == STATE_ENDED && process->references == 0 && process->tree_gone;
}

static void forget(struct process *process) {
    kept_count--;
    kept_bytes -= held_bytes(process);
    process_free(process);
}

static void forget_excess(void) {
    struct process *process = oldest;
    while (process && (kept_count > KEPT_MAX || kept_bytes > KEPT_BYTES_MAX)) {
        struct process *next = process->next;
        if (forgettable(process)) forget(process);
        process = next;
    }
}

static void forget_due(struct timer *timer) {
    struct process *process = OWNER(timer, struct process, forget);
    if (forgettable(process)) forget(process);
    else timer_arm(timer, loop_now() + KEPT_NS / 60); /* somebody still reads it, or its daemons live */
}

void process_reference(struct process *process) { process->references++; }

void process_release(struct process *process) {
    process->references--;
    forget_excess();
}

/* --- ending ------------------------------------------------------------------------------------------------------ */

static void set_exit(struct process *process) {
    int status = process->wait_status;
    bool signalled = WIFSIGNALED(status);
    process->exit_kind = signalled;
    process->exit_value = (uint8_t)(signalled ? WTERMSIG(status) : WEXITSTATUS(status));
    process->exit_core = signalled && WCOREDUMP(status);
    process->exit_reason = signalled ? REASON_SIGNALLED : REASON_EXITED;
    if (signalled && WTERMSIG(status) == SIGKILL) {
        if (process->deadline_passed) process->exit_reason = REASON_DEADLINE;
        else if (shutting_down) process->exit_reason = REASON_SANDBOX_ENDED;
        else if (process->kill_asked) process->exit_reason = REASON_KILLED;
    }
}

static void process_end(struct process *process) {
    if (process->state == STATE_ENDED) return;
    process->state = STATE_ENDED;
    process->ended_ms = unix_ms();
    process->stdin_open = false;
    process->input_blocked = false;
    source_close(&process->input);
    timer_cancel(&process->deadline);
    timer_cancel(&process->drain);
    timer_cancel(&process->stall);
    timer_cancel(&process->flush);
    timer_cancel(&process->input_retry);
    timer_cancel(&process->rest);
    timer_arm(&process->forget, loop_now() + (process->parked ? KEPT_PARKED_NS : KEPT_NS));
    kept_count++;
    kept_bytes += held_bytes(process);
    process_reference(process); /* waking may release the last other one */
    attachments_pump(process);
    process_update(process); /* what descendants write from now on is read and dropped, whoever was held back for */
    connections_wake(process, BUSY_INPUT);
    connections_wake(process, BUSY_WAIT);
    connections_wake(process, BUSY_KILL);
    process_release(process);
}

static bool outputs_open(const struct process *process) {
    return process->output[0].fd >= 0 || process->output[1].fd >= 0;
}

static void end_when_read(struct process *process) {
    if (process->leader_gone && !outputs_open(process)) process_end(process);
}

static bool read_once(struct process *process, struct source *source);

/* Takes what the kernel still holds, now, and ends. A reader that is too slow for it gets a GAP, not silence. */
static void finish(struct process *process) {
    for (int i = 0; i < 2; i++)
        for (int reads = 0; reads < LAST_READS && process->output[i].fd >= 0; reads++)
            if (!read_once(process, &process->output[i])) break;
    process_end(process);
}

static void drain_due(struct timer *timer) { finish(OWNER(timer, struct process, drain)); }

static void leader_exited(struct process *process, int status) {
    if (process->leader_gone) return;
    process->leader_gone = true;
    process->wait_status = status;
    set_exit(process);
    if (process->slave >= 0) close(process->slave); /* from now on EIO means: nobody holds the terminal */
    process->slave = -1;
    /* What the leader wrote is in the kernel now: it is read whatever readers do (law 3 before law 7). The log has
     * room: credit, one read over it, this and one read over this are a quarter each at most. What descendants add is
     * bounded by time and by this. */
    process->drain_limit = process->log.end + process->log.size / 4;
    timer_arm(&process->drain, loop_now() + EXIT_DRAIN_NS);
    timer_cancel(&process->deadline);
    connections_wake(process, BUSY_KILL);
    process_update(process);
    end_when_read(process);
}

/* --- output ------------------------------------------------------------------------------------------------------ */

static void flush_due(struct timer *timer) {
    struct process *process = OWNER(timer, struct process, flush);
    process->flushed_at = loop_now();
    process->flushed_end = process->log.end;
    attachments_pump(process);
    process_update(process);
}

/* The first output after quiet goes at once, then company is awaited: COALESCE_NS, or enough bytes. Enough doubles
 * while a flood goes on, up to a full frame: who reads a flood pays by the frame, and the millisecond is the same. */
static void flush_policy(struct process *process) {
    uint64_t waiting = process->log.end - process->flushed_end;
    if (waiting == 0) return;
    bool quiet = loop_now() - process->flushed_at >= COALESCE_NS;
    if (quiet) process->enough = COALESCE_BYTES;
    if (quiet || waiting >= process->enough) {
        if (!quiet && process->enough < OUTPUT_BYTES_MAX) process->enough *= 2;
        timer_cancel(&process->flush);
        flush_due(&process->flush);
    } else if (!process->flush.place) {
        timer_arm(&process->flush, process->flushed_at + COALESCE_NS);
    }
}

static uint8_t stream_of(const struct process *process, const struct source *source) {
    if (process->pty) return STREAM_PTY;
    return source == &process->output[0] ? STREAM_STDOUT : STREAM_STDERR;
}

static bool held_back(const struct process *process, const struct source *source) {
    if (process->state == STATE_ENDED) return false;
    if (process->state == STATE_STARTING) return true; /* until who asked for it reads it: its first bytes count too */
    bool drained = process->drained[source == &process->output[1]];
    if (process->leader_gone && !drained && process->log.end < process->drain_limit) return false;
    return process->flow_paused || process->resting;
}

/* One read. False when there is nothing more for now. */
static bool read_once(struct process *process, struct source *source) {
    struct iovec space[2];
    size_t wanted = process->log.size / 4 < READ_BYTES ? process->log.size / 4 : READ_BYTES;
    uint8_t dropped[4096];
    int parts = log_space(&process->log, wanted, space);
    if (process->state == STATE_ENDED) { /* EXIT has named the end: what comes later is dropped */
        space[0] = (struct iovec){dropped, sizeof dropped};
        parts = 1;
    }
    ssize_t count = readv(source->fd, space, parts);
    if (count > 0) {
        if (process->state != STATE_ENDED) log_commit(&process->log, (size_t)count, stream_of(process, source));
        return true;
    }
    if (count < 0 && errno == EINTR) return true;
    if (count < 0 && errno == EAGAIN) {
        if (process->leader_gone) process->drained[source == &process->output[1]] = true;
        return false;
    }
    source_close(source); /* 0 or EIO: nobody can write any more */
    return false;
}

static void write_room(struct process *process);

static uint64_t typed_at, typed_in; /* when a process last took input, and which */

/* Does somebody type, and wait for an echo, elsewhere than here? */
static bool typing_elsewhere(const struct process *process) {
    return typed_in != process->id && loop_now() - typed_at < TYPING_NS;
}

static void rest_over(struct timer *timer) {
    struct process *process = OWNER(timer, struct process, rest);
    process->resting = false;
    process_update(process);
}

/* A flood that nobody watches must not cost the echo of who types in another terminal: reading a flooded PTY keeps this
 * one thread in the kernel. So it is read in small portions for as long as somebody types, and never stops. */
static bool rest(struct process *process) {
    if (process->leader_gone || attachments_live(process) || !typing_elsewhere(process)) return false;
    process->resting = timer_arm(&process->rest, loop_now() + REST_NS);
    return process->resting;
}

static void output_ready(struct process *process, struct source *source, uint32_t events) {
    if (process->pty && (events & EPOLLOUT)) write_room(process);
    if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    int most = typing_elsewhere(process) ? READS_PER_TURN_TYPING : READS_PER_TURN;
    for (int i = 0; i < most && source->fd >= 0; i++) {
        uint64_t before = process->log.end;
        if (!read_once(process, source)) break;
        if (process->state == STATE_ENDED) continue;
        flush_policy(process); /* before the next read: an echo is not to wait for one more system call */
        bool resting = rest(process);
        process_update(process);
        if (resting || held_back(process, source)) break;
        if (process->log.end - before < 1024 && !process->leader_gone) break; /* likely all there was */
    }
    process_update(process);
    end_when_read(process);
}

static void output0_ready(struct source *source, uint32_t events) {
    output_ready(OWNER(source, struct process, output[0]), source, events);
}

static void output1_ready(struct source *source, uint32_t events) {
    output_ready(OWNER(source, struct process, output[1]), source, events);
}

static void stall_due(struct timer *timer) { process_update(OWNER(timer, struct process, stall)); }

void process_update(struct process *process) {
    uint64_t look_again = UINT64_MAX;
    process->flow_paused = attachments_hold(process, &look_again);
    bool held[2] = {held_back(process, &process->output[0]), held_back(process, &process->output[1])};
    if ((held[0] || held[1]) && look_again != UINT64_MAX) timer_arm(&process->stall, look_again);
    else timer_cancel(&process->stall);
    uint32_t room = process->pty && process->input_blocked ? EPOLLOUT : 0;
    source_interest(&process->output[0], (held[0] ? 0 : EPOLLIN) | room);
    source_interest(&process->output[1], held[1] ? 0 : EPOLLIN);
}

/* --- input ------------------------------------------------------------------------------------------------------- */

static struct source *input_source(struct process *process) {
    return process->pty ? &process->output[0] : &process->input;
}

struct problem process_input_check(const struct process *process, uint8_t stream) {
    if (stream > 2) return (struct problem){BAD_ARGUMENT, "unknown stream"};
    if (process->pty && stream == 1) return NO_STDIN;
    if (!process->pty && stream == 0) return (struct problem){NOT_A_PIPE, "the process has no terminal"};
    if (process->leader_gone || process->state != STATE_RUNNING) return ENDED;
    if (!process->pty && !process->stdin_open) return (struct problem){STDIN_CLOSED, "stdin is closed"};
    return NO_PROBLEM;
}

static void close_input(struct process *process) {
    process->stdin_open = false;
    process->input_blocked = false;
    source_close(&process->input);
    timer_cancel(&process->input_retry);
}

/* Bytes taken; 0 = none now, ask to be woken; below 0 with `problem` set. */
ssize_t process_input(struct process *process, const uint8_t *bytes, size_t count, struct problem *problem) {
    *problem = process_input_check(process, 2);
    if (problem->code) return -1;
    ssize_t taken = write(input_source(process)->fd, bytes, count);
    if (taken > 0) {
        process->input_taken += (uint64_t)taken;
        typed_at = loop_now();
        typed_in = process->id;
        process->flushed_at = 0; /* what comes next is likely its echo, and somebody waits for that */
        return taken;
    }
    if (taken == 0 || errno == EAGAIN || errno == EINTR) return 0;
    if (process->pty) *problem = (struct problem){EXITED, "the terminal is closed"};
    else *problem = (struct problem){STDIN_CLOSED, "the process has closed its stdin"};
    if (!process->pty) close_input(process);
    return -1;
}

void process_input_wait(struct process *process) {
    process->input_blocked = true;
    if (process->pty) {
        timer_arm(&process->input_retry, loop_now() + INPUT_RETRY_NS);
        process_update(process);
    } else {
        source_interest(&process->input, EPOLLOUT);
    }
}

static void write_room(struct process *process) {
    process->input_blocked = false;
    timer_cancel(&process->input_retry);
    if (process->pty) process_update(process);
    else source_interest(&process->input, 0);
    connections_wake(process, BUSY_INPUT);
}

static void input_ready(struct source *source, uint32_t events) {
    (void)events;
    write_room(OWNER(source, struct process, input));
}

static void input_retry_due(struct timer *timer) { write_room(OWNER(timer, struct process, input_retry)); }

struct problem process_close_stdin(struct process *process) {
    if (process->pty) return NO_STDIN;
    if (process->stdin_open) close_input(process);
    connections_wake(process, BUSY_INPUT); /* whose bytes can no longer be taken */
    return NO_PROBLEM;
}

/* --- size and signals -------------------------------------------------------------------------------------------- */

struct problem process_resize(struct process *process, uint16_t cols, uint16_t rows, struct connection *by) {
    if (!process->pty) return (struct problem){NOT_A_PTY, "the process has no terminal"};
    if (cols == 0 || rows == 0 || cols > CELLS_MAX || rows > CELLS_MAX)
        return (struct problem){BAD_ARGUMENT, "columns and rows must be 1 to 10000"};
    if (process->state != STATE_RUNNING || process->leader_gone) return ENDED;
    struct winsize size = {.ws_col = cols, .ws_row = rows};
    ioctl(process->output[0].fd, TIOCSWINSZ, &size);
    bool changed = cols != process->cols || rows != process->rows;
    process->cols = cols;
    process->rows = rows;
    if (changed) attachments_resized(process, by);
    return NO_PROBLEM;
}

static pid_t foreground(const struct process *process) {
    pid_t group = process->pid; /* a leader has a session and so a group of its own */
    if (process->pty && process->output[0].fd >= 0 && ioctl(process->output[0].fd, TIOCGPGRP, &group) < 0)
        group = process->pid;
    return group > 1 ? group : process->pid;
}

void process_kill_tree(struct process *process) {
    if (!process->reaper) return;
    kill(process->reaper, SIGTERM);
    kill(process->reaper, SIGCONT); /* the guest's root may have stopped it */
}

struct problem process_signal(struct process *process, uint8_t target, uint8_t number, pid_t *group) {
    *group = 0;
    if (target > TARGET_TREE || number == 0 || number >= NSIG)
        return (struct problem){BAD_ARGUMENT, "no such signal or target"};
    if (number == SIGKILL) process->kill_asked = true;
    if (target == TARGET_TREE) {
        if (!process->reaper) return ENDED;
        if (number == SIGKILL) process_kill_tree(process);
        else tree_signal(process->reaper, KIN_DESCENDANTS, number, NULL);
        return NO_PROBLEM;
    }
    if (process->leader_gone) return ENDED;
    if (target == TARGET_GROUP) *group = foreground(process);
    if (kill(target == TARGET_GROUP ? -*group : process->pid, number) < 0 && errno == ESRCH) return ENDED;
    return NO_PROBLEM;
}

static void deadline_due(struct timer *timer) {
    struct process *process = OWNER(timer, struct process, deadline);
    process->deadline_passed = true;
    process_kill_tree(process);
}

/* --- what reapers say -------------------------------------------------------------------------------------------- */

void process_started(struct process *process, const struct report *report);

static void tree_gone(struct process *process) {
    process->reaper = 0;
    process->tree_gone = true;
    if (process->state == STATE_STARTING) { /* killed before it could say anything */
        process_started(process, &(struct report){REPORT_FAILED, STAGE_EXEC, ECANCELED});
        return;
    }
    process_reference(process); /* what follows may release the last other one */
    if (!process->leader_gone) leader_exited(process, SIGKILL);
    finish(process); /* nobody is left who could write */
    source_close(&process->output[0]);
    source_close(&process->output[1]);
    source_close(&process->reports);
    connections_wake(process, BUSY_KILL);
    process_release(process);
}

static void reports_ready(struct source *source, uint32_t events) {
    (void)events;
    struct process *process = OWNER(source, struct process, reports);
    struct report report;
    ssize_t count = -1;
    while (source->fd >= 0 && (count = read(source->fd, &report, sizeof report)) == sizeof report) {
        if (report.kind != REPORT_EXITED) process_started(process, &report);
        else if (process->state == STATE_RUNNING) leader_exited(process, report.value);
    }
    if (source->fd >= 0 && count == 0) source_interest(source, 0);
}

static bool is_ours(pid_t pid) {
    for (struct process *process = oldest; process; process = process->next)
        if (process->reaper == pid) return true;
    return files_child(pid);
}

static struct timer strays;

/* A reaper that did not end by itself (only the guest's root can do that) leaves its tree to the agent. */
static void strays_due(struct timer *timer) {
    if (tree_signal(getpid(), KIN_CHILDREN, SIGKILL, is_ours) > 0) timer_arm(timer, loop_now() + KILL_POLL_NS);
}

void process_reaped(pid_t pid, int status) {
    for (struct process *process = oldest; process; process = process->next) {
        if (process->reaper != pid) continue;
        reports_ready(&process->reports, EPOLLIN); /* what it said before it ended */
        if (process->reaper != pid) return;        /* that was a failed start: all is settled */
        if (WIFSIGNALED(status)) {
            strays.fire = strays_due;
            strays_due(&strays);
        }
        tree_gone(process);
        return;
    }
}

void processes_shutdown(void) {
    for (struct process *process = oldest; process; process = process->next) process_kill_tree(process);
}

bool processes_gone(void) {
    for (struct process *process = oldest; process; process = process->next)
        if (process->reaper) return false;
    return true;
}

/* start.c fills a new process in; these are the handlers it needs. */
void process_prepare(struct process *process) {
    process->reports = (struct source){.fd = -1, .ready = reports_ready};
    process->output[0] = (struct source){.fd = -1, .ready = output0_ready};
    process->output[1] = (struct source){.fd = -1, .ready = output1_ready};
    process->input = (struct source){.fd = -1, .ready = input_ready};
    process->slave = -1;
    process->deadline.fire = deadline_due;
    process->drain.fire = drain_due;
    process->flush.fire = flush_due;
    process->stall.fire = stall_due;
    process->input_retry.fire = input_retry_due;
    process->forget.fire = forget_due;
    process->rest.fire = rest_over;
}
