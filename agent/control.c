/* Control connections: requests about processes, answered one by one, in order. */
#include <signal.h>
#include <unistd.h>

#include "agent.h"

bool put_exit(struct buffer *out, const struct process *process);

bool take_selector(struct reader *reader, struct selector *selector) {
    selector->kind = take_u8(reader);
    selector->number = take_u64(reader);
    selector->tag = take_text(reader);
    return selector->kind <= 2;
}

static void done(struct connection *connection) {
    struct writer writer = frame_begin(&connection->out, DONE);
    if (!frame_end(&writer)) connection->closing = true;
}

static void answer(struct connection *connection, struct problem problem) {
    if (problem.code) connection_error(connection, problem.code, problem.message, true);
    else done(connection);
}

static void put_process(struct connection *connection, const struct process *process) {
    bool ended = process->state == STATE_ENDED;
    struct writer writer = frame_begin(&connection->out, PROCESS);
    put_u64(&writer, process->id);
    put_u32(&writer, (uint32_t)process->pid);
    put_u8(&writer, (process->pty ? FLAG_PTY : 0) | (ended ? 0 : FLAG_RUNNING) |
                        (process->stdin_open ? FLAG_STDIN_OPEN : 0));
    put_u16(&writer, process->cols);
    put_u16(&writer, process->rows);
    put_u64(&writer, process->log.start);
    put_u64(&writer, process->log.end);
    put_u64(&writer, process->started_ms);
    put_u64(&writer, process->ended_ms);
    put_u8(&writer, ended ? process->exit_kind : 0);
    put_u8(&writer, ended ? process->exit_value : 0);
    put_u8(&writer, ended ? process->exit_reason : 0);
    put_u8(&writer, ended ? process->exit_core : 0);
    put_u32(&writer, process->attachments);
    put_bytes(&writer, process->request, process->request_bytes);
    if (!frame_end(&writer)) connection_error(connection, INTERNAL, "out of memory", false);
}

/* The next one of a LIST. One at a time, so that a list of huge environments never lies in memory as a whole. */
void control_list(struct connection *connection) {
    struct process *process = process_after(connection->listed);
    if (process) {
        connection->listed = process->id;
        put_process(connection, process);
    } else {
        connection->busy = BUSY_NO;
        done(connection);
    }
}

/* --- waiting ----------------------------------------------------------------------------------------------------- */

static void hold(struct connection *connection, struct process *process, enum busy busy) {
    connection->process = process;
    connection->busy = busy;
    process_reference(process);
}

static void release(struct connection *connection) {
    struct process *process = connection->process;
    connection->process = NULL;
    timer_cancel(&connection->timer);
    process_release(process);
    connection_continue(connection);
}

static bool kill_finished(const struct connection *connection) {
    const struct process *process = connection->process;
    if (process->tree_gone) return true;
    if (connection->kill_target == TARGET_TREE) return false;
    if (connection->kill_target == TARGET_LEADER) return process->leader_gone;
    if (kill(-connection->group, 0) < 0) return true;
    return loop_now() - connection->kill_since > KILL_ZOMBIES_NS &&
           tree_signal(connection->group, KIN_GROUP, 0, NULL) == 0;
}

/* What a request waits for may have happened, or its time is over. */
void control_woken(struct connection *connection) {
    struct process *process = connection->process;
    if (connection->busy == BUSY_WAIT) {
        if (process->state == STATE_ENDED) {
            if (!put_exit(&connection->out, process)) connection->closing = true;
        } else {
            connection_error(connection, TIMEOUT, "the process still runs", true);
        }
        release(connection);
    } else if (connection->busy == BUSY_KILL) {
        if (!kill_finished(connection)) {
            if (connection->kill_target == TARGET_GROUP) timer_arm(&connection->timer, loop_now() + KILL_POLL_NS);
            return;
        }
        done(connection);
        release(connection);
    }
}

static void wait_for(struct connection *connection, struct process *process, uint32_t timeout_ms) {
    if (process->state == STATE_ENDED) {
        if (!put_exit(&connection->out, process)) connection->closing = true;
        return;
    }
    hold(connection, process, BUSY_WAIT);
    if (timeout_ms != NEVER_MS) timer_arm(&connection->timer, loop_now() + timeout_ms * MS);
}

static void signal_process(struct connection *connection, struct process *process, uint8_t target, uint8_t number) {
    pid_t group;
    struct problem problem = process_signal(process, target, number, &group);
    if (problem.code || number != SIGKILL) {
        answer(connection, problem);
        return;
    }
    connection->group = group;
    connection->kill_target = target;
    connection->kill_since = loop_now();
    hold(connection, process, BUSY_KILL);
    if (target == TARGET_GROUP) timer_arm(&connection->timer, loop_now() + KILL_POLL_NS / 4);
}

static void input_process(struct connection *connection, struct process *process, uint8_t stream, uint64_t offset) {
    connection->process = process;
    process_reference(process);
    input_begin(connection, offset, stream);
}

/* --- frames ------------------------------------------------------------------------------------------------------ */

struct request { /* a request about one process */
    uint8_t type, one, two;
    uint16_t cols, rows;
    uint32_t timeout_ms;
    uint64_t offset;
};

static void take_request(struct request *request, struct reader *reader) {
    switch (request->type) {
    case WAIT:
        request->timeout_ms = take_u32(reader);
        break;
    case SIGNAL_PROCESS:
        request->one = take_u8(reader);
        request->two = take_u8(reader);
        break;
    case RESIZE_PROCESS:
        request->cols = take_u16(reader);
        request->rows = take_u16(reader);
        break;
    case INPUT_PROCESS:
        request->one = take_u8(reader);
        request->offset = take_u64(reader);
        break;
    }
}

static void perform(struct connection *connection, struct process *process, const struct request *request) {
    switch (request->type) {
    case STAT:
        put_process(connection, process);
        break;
    case WAIT:
        wait_for(connection, process, request->timeout_ms);
        break;
    case SIGNAL_PROCESS:
        signal_process(connection, process, request->one, request->two);
        break;
    case RESIZE_PROCESS:
        answer(connection, process_resize(process, request->cols, request->rows, NULL));
        break;
    case INPUT_PROCESS:
        input_process(connection, process, request->one, request->offset);
        break;
    case CLOSE_STDIN_PROCESS:
        answer(connection, process_close_stdin(process));
        break;
    }
}

static bool park(struct connection *connection, struct reader *reader) {
    struct start_request request;
    uint32_t window, stall_ms;
    connection->role = ROLE_CONTROL;
    if (!take_start(reader, &request, &window, &stall_ms)) return false;
    answer(connection, parked_start(&request));
    return true;
}

bool control_frame(struct connection *connection, uint8_t type, struct reader *reader) {
    if (type == PARK) return park(connection, reader);
    if (type != SHUTDOWN && (type < LIST || type > CLOSE_STDIN_PROCESS)) return false;
    connection->role = ROLE_CONTROL;
    struct request request = {.type = type};
    struct selector selector = {0};
    bool known = true;
    if (type != LIST && type != SHUTDOWN) {
        known = take_selector(reader, &selector);
        take_request(&request, reader);
    }
    if (!reader_done(reader)) return false;
    if (type == LIST) {
        connection->busy = BUSY_LIST;
        connection->listed = 0;
    } else if (type == SHUTDOWN) {
        done(connection);
        connection_flush(connection);
        agent_shutdown();
    } else {
        struct process *process = known ? process_find(&selector) : NULL;
        if (process) perform(connection, process, &request);
        else if (known) connection_error(connection, NO_SUCH_PROCESS, "no such process", true);
        else connection_error(connection, BAD_ARGUMENT, "unknown kind of selector", true);
        if (!process) connection->input.discard = true;
    }
    return true;
}
