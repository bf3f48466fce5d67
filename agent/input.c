/* Input on its way from a connection to a process: offsets, exactly once, no mixing of writers. */
#include "agent.h"

static void refuse(struct connection *connection, struct problem problem) {
    connection->input.discard = true;
    struct process *process = connection->process;
    bool owned = process && process->input_owner == connection;
    if (owned) process->input_owner = NULL;
    /* Control connections answer every request; attachments stay open where the protocol says so. */
    bool stay = connection->role == ROLE_CONTROL || problem.code == READ_ONLY || problem.code == STDIN_CLOSED ||
                problem.code == EXITED || problem.code == BAD_ARGUMENT;
    connection_error(connection, problem.code, problem.message, stay);
    if (owned) connections_wake(process, BUSY_INPUT);
}

/* The head of an input frame: may these bytes come? */
void input_begin(struct connection *connection, uint64_t offset, uint8_t stream) {
    struct process *process = connection->process;
    struct problem problem = process_input_check(process, stream);
    connection->input.numbered = offset != NO_OFFSET;
    connection->input.offset = offset;
    if (!problem.code && connection->input.numbered && offset > process->input_taken)
        problem = (struct problem){BAD_ARGUMENT, "input offset is beyond what was taken"};
    if (problem.code) refuse(connection, problem);
}

/* Takes what it can of a complete piece. 0: later, the connection is woken (or it was closed). */
size_t input_take(struct connection *connection, const uint8_t *bytes, size_t count) {
    struct process *process = connection->process;
    if (connection->input.discard) return count;
    if (process->input_owner && process->input_owner != connection) {
        connection->busy = BUSY_INPUT;
        return 0;
    }
    if (connection->input.numbered && connection->input.offset < process->input_taken) { /* sent again: already typed */
        uint64_t known = process->input_taken - connection->input.offset;
        size_t skipped = known < count ? (size_t)known : count;
        connection->input.offset += skipped;
        return skipped;
    }
    struct problem problem;
    ssize_t taken = process_input(process, bytes, count, &problem);
    if (taken < 0) {
        refuse(connection, problem);
        return connection->closing ? 0 : count;
    }
    if (connection->input.numbered) connection->input.offset += (uint64_t)taken;
    process->input_owner = (size_t)taken < count ? connection : NULL; /* nobody else writes into half a piece */
    if (taken == 0) {
        connection->busy = BUSY_INPUT;
        process_input_wait(process);
    }
    return (size_t)taken;
}

static void answer(struct connection *connection, uint8_t type, uint64_t number) {
    struct writer writer = frame_begin(&connection->out, type);
    if (type == INPUT_ACK) put_u64(&writer, number);
    if (!frame_end(&writer)) connection->closing = true;
}

/* The whole frame has been taken, or thrown away after its error was told. */
void input_finished(struct connection *connection) {
    struct process *process = connection->process;
    if (connection->role == ROLE_CONTROL) {
        if (!connection->input.discard) answer(connection, DONE, 0);
        connection->process = NULL;
        if (process) process_release(process);
    } else if (connection->input.numbered && !connection->input.discard) {
        answer(connection, INPUT_ACK, process->input_taken);
    }
}
