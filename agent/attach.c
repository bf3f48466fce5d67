/* Attachments: cursors over a process's log, and the rules by which they hold its output back. */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "agent.h"

/* --- flow control (law 7) ---------------------------------------------------------------------------------------- */

static uint64_t credit(const struct process *process) {
    return process->log.size / 4 < CREDIT_BYTES ? process->log.size / 4 : CREDIT_BYTES;
}

/* Its ACKs lie behind input that the program does not take: they cannot be heard. What went into its socket counts for
 * them then, or a program that takes no input before its output has gone would wait for itself. */
static bool deaf(const struct connection *at) { return at->window == 0 || at->busy == BUSY_INPUT; }

static uint64_t heard(const struct connection *at) { return at->busy == BUSY_INPUT ? at->cursor : at->acked; }

/* Output waits for it and it has not moved for its stall time: then it holds nobody back. */
static bool stalled(const struct process *process, const struct connection *at) {
    if (at->stall_ns == UINT64_MAX || process->announced_end <= heard(at)) return false;
    return loop_now() >= at->moved_at + at->stall_ns;
}

/* Must the process wait? Only if somebody live reads it and everybody live is more than the credit behind. A reader that
 * was lost and keeps its place counts as one that takes nothing: the process goes on until it would overwrite what that
 * reader may not have seen. */
bool attachments_hold(struct process *process, uint64_t *look_again) {
    bool live = false;
    if (loop_now() < process->place_until) {
        live = true;
        if (process->log.end - process->place <= process->log.size / PLACE_AHEAD_DIVISOR) return false;
        if (process->place_until < *look_again) *look_again = process->place_until;
    }
    for (struct connection *at = process->readers; at; at = at->next_reader) {
        bool behind = process->log.end - heard(at) > credit(process);
        uint64_t until = at->stall_ns == UINT64_MAX ? UINT64_MAX : at->moved_at + at->stall_ns;
        if (stalled(process, at)) continue;
        live = true;
        if (!behind) return false;
        if (until < *look_again) *look_again = until;
    }
    return live;
}

static void acknowledged(struct connection *connection, uint64_t offset) {
    if (offset > connection->last_ack) connection->moved_at = loop_now();
    connection->last_ack = offset;
    if (offset <= connection->acked) return; /* a GAP went past it */
    connection->acked = offset;
    struct process *process = connection->process;
    if (offset > process->given) process->given = offset;
    if (process->flow_paused) process_update(process);
}

/* Bytes went into the socket. Without a window that is the acknowledgement. */
void attach_moved(struct connection *connection) {
    if (!connection->attached) return;
    if (connection->window == 0 && buffer_length(&connection->out) == 0) acknowledged(connection, connection->cursor);
    else if (deaf(connection)) connection->moved_at = loop_now();
    if (connection->busy == BUSY_INPUT && connection->process->flow_paused) process_update(connection->process);
}

void attach_ack(struct connection *connection, uint64_t offset) {
    /* Of a peer that hears nothing any more it still says what was given, for who comes after it. */
    if (!connection->attached) {
        if (offset > connection->process->given) connection->process->given = offset;
        return;
    }
    acknowledged(connection, offset);
    attach_pump(connection);
}

/* --- sending ----------------------------------------------------------------------------------------------------- */

static bool put_gap(struct connection *connection) {
    struct process *process = connection->process;
    struct writer writer = frame_begin(&connection->out, GAP);
    put_u64(&writer, connection->cursor);
    put_u64(&writer, process->log.start);
    connection->cursor = process->log.start;
    /* What is gone is on no way: without this a peer that acknowledges only bytes would wait for ever. */
    if (connection->acked < connection->cursor) connection->acked = connection->cursor;
    return frame_end(&writer);
}

static bool put_resized(struct connection *connection) {
    struct writer writer = frame_begin(&connection->out, RESIZED);
    put_u16(&writer, connection->process->cols);
    put_u16(&writer, connection->process->rows);
    connection->resized = false;
    return frame_end(&writer);
}

bool put_exit(struct buffer *out, const struct process *process) {
    struct writer writer = frame_begin(out, EXIT);
    put_u8(&writer, process->exit_kind);
    put_u8(&writer, process->exit_value);
    put_u8(&writer, process->exit_reason);
    put_u8(&writer, process->exit_core);
    put_u64(&writer, process->log.end);
    return frame_end(&writer);
}

static uint64_t sendable(const struct connection *connection) {
    uint64_t bytes = connection->process->log.end - connection->cursor;
    if (deaf(connection)) return bytes;
    uint64_t on_the_way = connection->cursor - connection->acked;
    uint64_t room = on_the_way < connection->window ? connection->window - on_the_way : 0;
    return bytes < room ? bytes : room;
}

/* One OUTPUT frame, straight from the ring. */
static void send_output(struct connection *connection, uint64_t most) {
    struct process *process = connection->process;
    uint8_t stream, head[OUTPUT_HEAD_BYTES];
    uint64_t run = log_run(&process->log, connection->cursor, &stream);
    uint64_t bytes = run < most ? run : most;
    if (bytes > OUTPUT_BYTES_MAX) bytes = OUTPUT_BYTES_MAX;
    struct iovec parts[3] = {{head, sizeof head}};
    output_head(head, stream, connection->cursor, (uint32_t)bytes);
    int count = 1 + log_view(&process->log, connection->cursor, (size_t)bytes, parts + 1);
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    ssize_t sent = sendmsg(connection->source.fd, &message, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno == EAGAIN || errno == EINTR) connection->send_blocked = true;
        else connection_mute(connection);
        return;
    }
    connection->cursor += bytes;
    /* The rest of a half-sent frame is copied: the ring may be overwritten before this peer reads on. */
    for (int i = 0; i < count; i++) {
        size_t done = (size_t)sent < parts[i].iov_len ? (size_t)sent : parts[i].iov_len;
        sent -= (ssize_t)done;
        if (!buffer_add(&connection->out, (char *)parts[i].iov_base + done, parts[i].iov_len - done)) {
            connection->closing = true; /* out of memory in the middle of a frame: the stream cannot go on */
            connection_mute(connection);
            return;
        }
    }
    attach_moved(connection);
}

/* Gives the attachment what the log has for it, as far as its window and its socket allow. */
void attach_pump(struct connection *connection) {
    struct process *process = connection->process;
    while (connection->attached && !connection->closing && !connection->exit_said) {
        if (buffer_length(&connection->out) > 0 && !connection_flush(connection)) return;
        /* Blocked until epoll says otherwise, also if a flush elsewhere empties the buffer meanwhile: only then is the
         * rest of the log looked at again. */
        if (buffer_length(&connection->out) > 0) connection->send_blocked = true;
        if (!connection->attached || connection->send_blocked) break;
        uint64_t most = sendable(connection);
        if (connection->resized) {
            if (!put_resized(connection)) connection->closing = true;
        } else if (most > 0 && connection->cursor < process->log.start) {
            if (!put_gap(connection)) connection->closing = true;
        } else if (most > 0) {
            send_output(connection, most);
        } else if (process->state == STATE_ENDED && connection->cursor == process->log.end) {
            if (!put_exit(&connection->out, process)) connection_mute(connection);
            /* The peer closes, not we: its last ACK still says what was given, and a write of it that met a closed
             * socket could cost it the EXIT it has not read. Without a window it only wants to see the end. */
            connection->exit_said = true;
            timer_arm(&connection->timer, loop_now() + LINGER_NS);
        } else {
            break;
        }
    }
    if (connection->source.fd < 0 || !connection_flush(connection)) return;
    if (connection->exit_said && connection->window == 0 && buffer_length(&connection->out) == 0)
        shutdown(connection->source.fd, SHUT_WR);
    connection_update(connection);
}

void attach_deaf(struct connection *connection) {
    attach_pump(connection);
    if (connection->attached && connection->process->flow_paused) process_update(connection->process);
}

void attachments_pump(struct process *process) {
    for (struct connection *at = process->readers, *next; at; at = next) {
        next = at->next_reader;
        /* A reader that had everything moves from now on; its silence before was not stalling. */
        if (at->acked >= process->announced_end) at->moved_at = loop_now();
        if (!at->send_blocked) attach_pump(at);
    }
    process->announced_end = process->log.end;
}

void attachments_resized(struct process *process, struct connection *except) {
    for (struct connection *at = process->readers, *next; at; at = next) {
        next = at->next_reader;
        if (at == except) continue;
        at->resized = true;
        attach_pump(at);
    }
}

/* --- beginning and ending ---------------------------------------------------------------------------------------- */

/* Does anybody read it who has not stalled? */
bool attachments_live(const struct process *process) {
    for (struct connection *at = process->readers; at; at = at->next_reader)
        if (!stalled(process, at)) return true;
    return false;
}

struct problem attach_origin(const struct process *process, uint8_t from, uint64_t value, uint64_t *start) {
    const struct log *log = &process->log;
    *start = log->end;
    switch (from) {
    case FROM_OFFSET:
        if (value > log->end) return (struct problem){BAD_ARGUMENT, "offset is beyond the end"};
        *start = value;
        break;
    case FROM_TAIL:
        *start = value < log->end - log->start ? log->end - value : log->start;
        break;
    case FROM_CONTINUE:
        if (!attachments_live(process)) *start = process->given;
        break;
    case FROM_END:
        break;
    case FROM_SCREEN:
        *start = log_screen(log, process->rows);
        break;
    default:
        return (struct problem){BAD_ARGUMENT, "unknown origin"};
    }
    return NO_PROBLEM;
}

void attach_begin(struct connection *connection, struct process *process, uint64_t start) {
    connection->role = ROLE_ATTACHMENT;
    connection->attached = true;
    connection->cursor = connection->acked = connection->last_ack = start;
    connection->moved_at = loop_now();
    connection->next_reader = process->readers;
    process->readers = connection;
    process->attachments++;
    struct writer writer = frame_begin(&connection->out, ATTACHED);
    put_u64(&writer, process->id);
    put_u32(&writer, (uint32_t)process->pid);
    put_u64(&writer, start);
    put_u64(&writer, process->log.end);
    put_u16(&writer, process->cols);
    put_u16(&writer, process->rows);
    uint8_t flags = (process->pty ? FLAG_PTY : 0) | (process->state == STATE_RUNNING ? FLAG_RUNNING : 0) |
                    (process->stdin_open ? FLAG_STDIN_OPEN : 0) | (connection->may_write ? FLAG_MAY_WRITE : 0);
    put_u8(&writer, flags);
    put_u64(&writer, process->input_taken);
    if (!frame_end(&writer)) connection->closing = true;
    attach_pump(connection);
    process_update(process);
}

/* The connection reads no longer. Whoever it held back goes on. */
void attach_end(struct connection *connection) {
    if (!connection->attached) return;
    struct process *process = connection->process;
    struct connection **link = &process->readers;
    while (*link != connection) link = &(*link)->next_reader;
    *link = connection->next_reader;
    connection->attached = false;
    process->attachments--;
    if (connection->keeps_place && !connection->exit_said) {
        bool other = loop_now() < process->place_until && process->place < connection->acked;
        if (!other) process->place = connection->acked;
        process->place_until =
            connection->stall_ns < UINT64_MAX - loop_now() ? loop_now() + connection->stall_ns : UINT64_MAX;
    }
    process_update(process);
}

/* --- frames ------------------------------------------------------------------------------------------------------ */

static void set_flow(struct connection *connection, uint32_t window, uint32_t stall_ms) {
    connection->window = window;
    if (stall_ms == 0) stall_ms = STALL_MS_DEFAULT;
    connection->stall_ns = stall_ms == NEVER_MS ? UINT64_MAX : stall_ms * MS;
}

static void start(struct connection *connection, struct reader *reader) {
    struct start_request request;
    uint32_t window, stall_ms;
    if (!take_start(reader, &request, &window, &stall_ms)) return;
    set_flow(connection, window, stall_ms);
    struct process *process = NULL;
    struct problem problem = process_start(&request, &process);
    if (problem.code) {
        connection_error(connection, problem.code, problem.message, false);
        return;
    }
    connection->reply_only = request.flags & START_REPLY_ONLY;
    connection->may_write = true;
    connection->process = process;
    process_reference(process);
    if (process->state == STATE_STARTING) connection->busy = BUSY_START;
    else attach_started(connection, process); /* it was parked */
}

void attach_started(struct connection *connection, struct process *process) {
    struct writer writer = frame_begin(&connection->out, STARTED);
    put_u64(&writer, process->id);
    put_u32(&writer, (uint32_t)process->pid);
    if (!frame_end(&writer) || connection->reply_only) connection->closing = true;
    else attach_begin(connection, process, 0);
}

static void attach(struct connection *connection, struct reader *reader) {
    struct selector selector;
    bool known = take_selector(reader, &selector);
    uint8_t flags = take_u8(reader), from = take_u8(reader);
    uint64_t value = take_u64(reader), start = 0;
    uint32_t window = take_u32(reader), stall_ms = take_u32(reader);
    if (!reader_done(reader)) return;
    set_flow(connection, window, stall_ms);
    struct process *process = known ? process_find(&selector) : NULL;
    struct problem problem = {NO_SUCH_PROCESS, "no such process"};
    if (process) problem = attach_origin(process, from, value, &start);
    if (problem.code) {
        connection_error(connection, problem.code, problem.message, false);
        return;
    }
    connection->may_write = flags & ATTACH_MAY_WRITE;
    connection->keeps_place = flags & ATTACH_KEEPS_PLACE;
    if (connection->keeps_place) process->place_until = 0; /* here it is again */
    connection->process = process;
    process_reference(process);
    attach_begin(connection, process, start);
}

static struct problem act(struct connection *connection, uint8_t type, struct reader *reader) {
    struct process *process = connection->process;
    uint16_t one = type == RESIZE ? take_u16(reader) : type == SIGNAL ? take_u8(reader) : 0;
    uint16_t two = type == RESIZE ? take_u16(reader) : type == SIGNAL ? take_u8(reader) : 0;
    pid_t group;
    if (!reader_done(reader)) return NO_PROBLEM; /* the caller refuses the frame */
    if (!connection->may_write) return (struct problem){READ_ONLY, "this attachment may only read"};
    if (type == RESIZE) return process_resize(process, one, two, connection);
    if (type == SIGNAL) return process_signal(process, (uint8_t)one, (uint8_t)two, &group);
    return process_close_stdin(process);
}

static void pong(struct connection *connection, uint64_t token) {
    struct writer writer = frame_begin(&connection->out, PONG);
    put_u64(&writer, token);
    if (!frame_end(&writer)) connection->closing = true;
}

/* A frame of a process connection. False: not one of those. */
bool attach_frame(struct connection *connection, uint8_t type, struct reader *reader) {
    struct problem problem = NO_PROBLEM;
    uint64_t number;
    if (connection->exit_said && type != ACK) { /* EXIT is last: nothing that is said after it is answered */
        connection->input.discard = true;
        reader->at = reader->end;
        return true;
    }
    if (type == START && connection->role == ROLE_GREETED) {
        start(connection, reader);
    } else if (type == ATTACH && connection->role == ROLE_GREETED) {
        attach(connection, reader);
    } else if (type == INPUT) {
        number = take_u64(reader);
        if (connection->may_write) {
            input_begin(connection, number, 2);
        } else {
            connection->input.discard = true;
            problem = (struct problem){READ_ONLY, "this attachment may only read"};
        }
    } else if (type == RESIZE || type == SIGNAL || type == CLOSE_STDIN) {
        problem = act(connection, type, reader);
    } else if (type == ACK) {
        number = take_u64(reader);
        if (number > connection->cursor) problem = (struct problem){BAD_ARGUMENT, "acknowledged more than was sent"};
        else if (reader_done(reader) && connection->window) attach_ack(connection, number);
    } else if (type == PING) {
        number = take_u64(reader);
        if (reader_done(reader)) pong(connection, number);
    } else {
        return false;
    }
    if (problem.code) connection_error(connection, problem.code, problem.message, problem.code != NOT_A_PIPE);
    return true;
}
