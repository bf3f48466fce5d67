/* Connections: accept, receive, cut into frames, send, close. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

static struct connection *first;
static size_t count;
static struct source listener;
static struct timer listen_again;
static size_t large_bytes; /* of receive buffers above the usual chunk */

static void update(struct connection *connection);

/* Keeps large_bytes true after `in` has changed. False: over the limit. */
static bool charge(struct connection *connection) {
    size_t charged = connection->in.capacity > READ_CHUNK_BYTES ? connection->in.capacity : 0;
    large_bytes += charged - connection->charged;
    connection->charged = charged;
    return large_bytes <= LARGE_BUFFERS_BYTES_MAX;
}

/* --- sending and closing ----------------------------------------------------------------------------------------- */

/* Closed with bytes unread, the peer would get ECONNRESET instead of an end. And shutdown, because a child between fork
 * and exec may hold the socket too. */
static void hang_up(struct source *source) {
    uint8_t dropped[4096];
    shutdown(source->fd, SHUT_RDWR);
    for (int i = 0; i < 64 && recv(source->fd, dropped, sizeof dropped, MSG_DONTWAIT) > 0; i++) {}
    source_close(source);
}

void connection_close(struct connection *connection) {
    if (connection->source.fd < 0) return;
    attach_end(connection);
    files_end(connection);
    struct process *process = connection->process;
    if (process && process->input_owner == connection) process->input_owner = NULL;
    timer_cancel(&connection->timer);
    hang_up(&connection->source);
    buffer_free(&connection->in);
    charge(connection);
    buffer_free(&connection->out);
    if (connection->next) connection->next->previous = connection->previous;
    if (connection->previous) connection->previous->next = connection->next;
    else first = connection->next;
    count--;
    free_later(connection); /* its `next` stays valid for whoever walks the list now */
    connection->process = NULL;
    if (process) {
        connections_wake(process, BUSY_INPUT);
        process_release(process);
    }
    if (listener.fd >= 0) source_interest(&listener, EPOLLIN);
}

/* The peer does not listen any more. What it said before may still wait in the socket, and counts. */
void connection_mute(struct connection *connection) {
    connection->mute = true;
    connection->send_blocked = false;
    attach_end(connection);
    buffer_free(&connection->out);
}

/* Sends what waits. False when the connection was closed. */
bool connection_flush(struct connection *connection) {
    struct buffer *out = &connection->out;
    if (connection->mute) buffer_free(out);
    while (buffer_length(out) > 0) {
        ssize_t sent = send(connection->source.fd, out->bytes + out->first, buffer_length(out), MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) {
            connection_mute(connection);
            break;
        }
        buffer_drop(out, (size_t)sent);
        attach_moved(connection);
    }
    if (connection->closing && buffer_length(out) == 0) {
        connection_close(connection);
        return false;
    }
    return true;
}

/* Answers ERROR; unless `stay`, the connection closes once that is sent. */
void connection_error(struct connection *connection, uint16_t code, const char *message, bool stay) {
    struct writer writer = frame_begin(&connection->out, ERROR);
    put_u16(&writer, code);
    put_u32(&writer, (uint32_t)strlen(message));
    put_bytes(&writer, message, strlen(message));
    bool written = frame_end(&writer);
    if (stay && written) return;
    connection->closing = true;
    timer_arm(&connection->timer, loop_now() + LINGER_NS);
}

/* --- frames ------------------------------------------------------------------------------------------------------ */

static void hello(struct connection *connection, struct reader *reader) {
    uint16_t version = take_u16(reader);
    take_u32(reader);
    if (!reader_done(reader)) {
        connection_error(connection, BAD_FRAME, "bad HELLO", false);
    } else if (version != PROTOCOL_VERSION) {
        connection_error(connection, UNSUPPORTED_VERSION, "this agent speaks version 1", false);
    } else {
        connection->role = ROLE_GREETED;
        timer_cancel(&connection->timer);
        struct writer writer = frame_begin(&connection->out, AGENT_HELLO);
        put_u16(&writer, PROTOCOL_VERSION);
        put_u32(&writer, 0);
        put_u64(&writer, boot_ms);
        if (!frame_end(&writer)) connection->closing = true;
    }
}

static void frame(struct connection *connection, uint8_t type, struct reader *reader) {
    bool known;
    if (connection->role == ROLE_NEW) {
        known = type == HELLO;
        if (known) hello(connection, reader);
    } else if (connection->role == ROLE_ATTACHMENT) {
        known = attach_frame(connection, type, reader);
    } else if (connection->role == ROLE_GREETED && (type == START || type == ATTACH)) {
        known = attach_frame(connection, type, reader);
    } else if (connection->role == ROLE_GREETED && type == FILES) {
        known = files_frame(connection, reader);
    } else {
        known = control_frame(connection, type, reader);
    }
    if (!known || !reader_done(reader)) {
        if (connection->closing) return;
        connection_error(connection, BAD_FRAME, "not a frame this connection may carry", false);
    }
}

static uint32_t length_limit(const struct connection *connection, uint8_t type) {
    if (type == START && connection->role == ROLE_GREETED) return FRAME_BYTES_MAX;
    if (type == INPUT || type == INPUT_PROCESS) return FRAME_BYTES_MAX;
    return SMALL_FRAME_BYTES_MAX;
}

/* Where the bytes of an input frame begin, or 0 when its head is not complete yet. */
static size_t input_head(const uint8_t *bytes, size_t length, uint8_t type) {
    if (type == INPUT) return length >= FRAME_HEAD_BYTES + 8 ? FRAME_HEAD_BYTES + 8 : 0;
    if (length < FRAME_HEAD_BYTES + 13) return 0;
    uint32_t tag = peek_u32(bytes + FRAME_HEAD_BYTES + 9);
    size_t head = FRAME_HEAD_BYTES + 13 + (size_t)tag + 9;
    return tag <= TAG_BYTES_MAX && length >= head ? head : 0;
}

/* Input is taken in pieces while it comes in; only its head goes through frame(). */
static bool step_input_head(struct connection *connection, uint32_t length, uint8_t type) {
    struct buffer *in = &connection->in;
    const uint8_t *bytes = in->bytes + in->first;
    size_t have = buffer_length(in) < length + 4ul ? buffer_length(in) : length + 4ul;
    size_t head = input_head(bytes, have, type);
    if (head == 0) {
        connection->need = have + 1;
        if (have == length + 4ul || have > SMALL_FRAME_BYTES_MAX)
            connection_error(connection, BAD_FRAME, "frame is shorter than its fields", false);
        return false;
    }
    connection->input.active = true;
    connection->input.left = (uint32_t)(length + 4 - head);
    connection->input.piece = 0;
    connection->input.discard = false;
    struct reader reader = {bytes + FRAME_HEAD_BYTES, bytes + head, false};
    frame(connection, type, &reader);
    if (connection->source.fd >= 0) buffer_drop(in, head);
    return true;
}

static void input_done(struct connection *connection) {
    connection->input.active = false;
    input_finished(connection);
}

/* Takes a piece of input, whole pieces only, so that frames of several writers do not mix. False: not now. */
static bool step_input(struct connection *connection) {
    struct buffer *in = &connection->in;
    uint32_t left = connection->input.left;
    if (left == 0) {
        input_done(connection);
        return true;
    }
    if (connection->input.piece == 0) {
        uint32_t piece = left < INPUT_PIECE_BYTES ? left : INPUT_PIECE_BYTES;
        if (connection->input.discard && buffer_length(in) > 0 && buffer_length(in) < piece)
            piece = (uint32_t)buffer_length(in);
        connection->need = piece;
        if (buffer_length(in) < piece) return false;
        connection->input.piece = piece;
    }
    size_t taken = input_take(connection, in->bytes + in->first, connection->input.piece);
    if (connection->source.fd < 0 || connection->closing) return false;
    if (taken == 0) return false;
    connection->input.piece -= (uint32_t)taken;
    connection->input.left -= (uint32_t)taken;
    buffer_drop(in, taken);
    if (connection->input.piece == 0 && connection->input.left == 0) input_done(connection);
    return true;
}

/* Does the next thing the received bytes ask for. False when more bytes are needed first. */
static bool step(struct connection *connection) {
    if (connection->input.active) return step_input(connection);
    struct buffer *in = &connection->in;
    connection->need = FRAME_HEAD_BYTES;
    if (buffer_length(in) < FRAME_HEAD_BYTES) return false;
    const uint8_t *bytes = in->bytes + in->first;
    uint32_t length = peek_u32(bytes);
    uint8_t type = bytes[4];
    if (length == 0 || length > length_limit(connection, type) || (connection->role == ROLE_NEW && type != HELLO)) {
        connection_error(connection, BAD_FRAME, "no such frame of that length here", false);
        return false;
    }
    if (type == INPUT || type == INPUT_PROCESS)
        return step_input_head(connection, length, type);
    connection->need = length + 4ul;
    if (buffer_length(in) < connection->need) return false;
    struct reader reader = {bytes + FRAME_HEAD_BYTES, bytes + connection->need, false};
    size_t size = connection->need;
    frame(connection, type, &reader);
    if (connection->role == ROLE_FILES) size = buffer_length(in); /* the rest is its child's */
    if (connection->source.fd >= 0) buffer_drop(in, size);
    return true;
}

/* One more thing of what was asked. False when something has to come or happen first. */
static bool advance(struct connection *connection) {
    if (connection->source.fd < 0 || connection->closing) return false;
    if (buffer_length(&connection->out) >= OUT_HIGH_BYTES) return false;
    if (connection->busy == BUSY_LIST) {
        control_list(connection);
        return true;
    }
    return !connection->busy && step(connection);
}

/* Everything that can be done now with what was received. */
void connection_work(struct connection *connection) {
    for (bool full = true; full;) {
        while (advance(connection)) {}
        if (connection->source.fd < 0) return;
        charge(connection);
        if (connection->peer_done && !connection->busy) connection->closing = true;
        full = buffer_length(&connection->out) >= OUT_HIGH_BYTES; /* then there is more to do once that was sent */
        if (!connection_flush(connection)) return;
        full = full && buffer_length(&connection->out) < OUT_HIGH_BYTES;
    }
    if (connection->busy == BUSY_INPUT && connection->role == ROLE_ATTACHMENT) {
        attach_deaf(connection);
        if (connection->source.fd < 0) return;
    }
    update(connection);
}

/* --- receiving --------------------------------------------------------------------------------------------------- */

static void update(struct connection *connection) {
    uint32_t interest = 0;
    bool wants = !connection->busy && !connection->closing && !connection->peer_done;
    if (wants && buffer_length(&connection->out) < OUT_HIGH_BYTES) interest |= EPOLLIN;
    if (buffer_length(&connection->out) > 0 || connection->send_blocked) interest |= EPOLLOUT;
    /* Busy: only to notice that the peer has gone (HUP is always reported). */
    if (interest == 0 && !connection->peer_done) interest = EPOLLPRI;
    source_interest(&connection->source, interest);
}

static bool make_room(struct connection *connection) {
    struct buffer *in = &connection->in;
    size_t have = buffer_length(in);
    if (in->capacity > in->last && in->last > 0) return true;
    /* Doubled as bytes really come, up to the frame's end: a length alone costs nothing. */
    size_t want = have * 2 < connection->need ? have * 2 : connection->need;
    if (want < have + READ_CHUNK_BYTES) want = have + READ_CHUNK_BYTES;
    if (!buffer_reserve(in, want - have)) return false;
    return charge(connection);
}

/* What is typed is a few bytes, and somebody waits for their echo: they are not worth pages that the C library asks the
 * kernel for and gives back with each key. */
static ssize_t receive_first(struct connection *connection) {
    static uint8_t chunk[READ_CHUNK_BYTES];
    ssize_t got = recv(connection->source.fd, chunk, sizeof chunk, 0);
    if (got > 0 && !buffer_add(&connection->in, chunk, (size_t)got))
        connection_error(connection, LIMIT, "buffered_bytes", false);
    return got;
}

static ssize_t receive_more(struct connection *connection) {
    struct buffer *in = &connection->in;
    ssize_t got = recv(connection->source.fd, in->bytes + in->last, in->capacity - in->last, 0);
    if (got > 0) in->last += (size_t)got;
    return got;
}

static void receive(struct connection *connection) {
    bool empty = connection->in.capacity == 0;
    if (!empty && !make_room(connection)) {
        connection_error(connection, LIMIT, "buffered_bytes", false);
        return;
    }
    ssize_t got = empty ? receive_first(connection) : receive_more(connection);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) connection->peer_done = true;
}

static void ready(struct source *source, uint32_t events) {
    struct connection *connection = OWNER(source, struct connection, source);
    connection->send_blocked = false;
    bool reading = !connection->busy && !connection->closing && !connection->peer_done;
    if (reading && (events & (EPOLLIN | EPOLLHUP | EPOLLERR))) {
        receive(connection);
    } else if (events & (EPOLLHUP | EPOLLERR)) {
        /* The peer has gone. Only input that is already here is still worth anything. */
        if (connection->busy != BUSY_INPUT) {
            connection_close(connection);
            return;
        }
        connection_mute(connection);
        source_interest(source, 0); /* until its input has been taken: HUP would be reported without end */
        return;
    }
    if (!connection_flush(connection)) return;
    if (connection->role == ROLE_ATTACHMENT) attach_pump(connection);
    if (connection->source.fd >= 0) connection_work(connection);
    if (connection->source.fd >= 0) update(connection);
}

static void timer_due(struct timer *timer) {
    struct connection *connection = OWNER(timer, struct connection, timer);
    if (connection->closing || connection->role == ROLE_NEW || connection->exit_said) connection_close(connection);
    else control_woken(connection);
}

/* --- waking ------------------------------------------------------------------------------------------------------ */

void connection_continue(struct connection *connection) {
    connection->busy = BUSY_NO;
    connection_work(connection);
}

void connections_wake(struct process *process, enum busy busy) {
    struct connection *owner = process->input_owner;
    if (busy == BUSY_INPUT && owner && owner->busy == BUSY_INPUT) connection_continue(owner); /* it began first */
    for (struct connection *at = first, *next; at; at = next) {
        next = at->next;
        if (at->source.fd < 0 || at->process != process || at->busy != busy) continue;
        if (busy == BUSY_INPUT && process->input_owner && process->input_owner != at) continue;
        if (busy == BUSY_INPUT) connection_continue(at);
        else control_woken(at);
    }
}

void connections_started(struct process *process, struct problem problem) {
    for (struct connection *at = first, *next; at; at = next) {
        next = at->next;
        if (at->source.fd < 0 || at->process != process || at->busy != BUSY_START) continue;
        at->busy = BUSY_NO;
        if (problem.code) {
            at->process = NULL;
            process->references--;
            connection_error(at, problem.code, problem.message, false);
        } else {
            attach_started(at, process);
        }
        if (at->source.fd >= 0) connection_work(at);
    }
}

void connections_child_gone(pid_t child) {
    for (struct connection *at = first; at; at = at->next) {
        if (at->source.fd < 0 || at->files_child != child) continue;
        at->files_child = 0;
        connection_close(at);
        return;
    }
}

void connection_update(struct connection *connection) { update(connection); }

/* --- accepting --------------------------------------------------------------------------------------------------- */

static void refuse(int fd) {
    static const char why[] = "connections";
    struct buffer out = {0};
    struct writer writer = frame_begin(&out, ERROR);
    put_u16(&writer, LIMIT);
    put_u32(&writer, sizeof why - 1);
    put_bytes(&writer, why, sizeof why - 1);
    if (frame_end(&writer)) send(fd, out.bytes, buffer_length(&out), MSG_NOSIGNAL | MSG_DONTWAIT);
    buffer_free(&out);
    close(fd);
}

static void accepted(int fd) {
    struct connection *connection = count < CONNECTIONS_MAX ? calloc(1, sizeof *connection) : NULL;
    if (!connection) {
        refuse(fd);
        return;
    }
    int bytes = SOCKET_SEND_BYTES;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    connection->source = (struct source){.fd = -1, .ready = ready};
    connection->timer.fire = timer_due;
    connection->need = FRAME_HEAD_BYTES;
    if (!source_open(&connection->source, fd, EPOLLIN)) {
        close(fd);
        free(connection);
        return;
    }
    connection->next = first;
    if (first) first->previous = connection;
    first = connection;
    count++;
    timer_arm(&connection->timer, loop_now() + HANDSHAKE_NS);
}

static void listen_due(struct timer *timer) {
    (void)timer;
    source_interest(&listener, EPOLLIN);
}

static void accept_ready(struct source *source, uint32_t events) {
    (void)events;
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(source->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            accepted(fd);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
            source_interest(source, 0); /* the connection waits in the queue; asking again at once would spin */
            timer_arm(&listen_again, loop_now() + LISTEN_RETRY_NS);
        }
        return;
    }
}

bool connections_listen(int fd) {
    listener = (struct source){.fd = -1, .ready = accept_ready};
    listen_again.fire = listen_due;
    return source_open(&listener, fd, EPOLLIN);
}
