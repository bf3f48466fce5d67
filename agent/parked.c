/* Shells started before anybody asked for them.
 *
 * PARK says: this START is likely to come. Its process is started at once and kept out of sight; the START that asks
 * for the very same takes it over, prompt and all. It must be the first thing that happens in the sandbox: whatever else
 * is started or done with files first might have changed what a shell finds when it starts, and so ends what is parked. */
#include <string.h>
#include <sys/ioctl.h>

#include "agent.h"

void process_add(struct process *process);
void process_unlink(struct process *process);

static struct process *parked[PARKED_MAX];
static bool over; /* something has been done here: nothing is started in advance any more */

void parked_forget(const struct process *process) {
    for (size_t i = 0; i < PARKED_MAX; i++)
        if (parked[i] == process) parked[i] = NULL;
}

void parked_end(void) {
    over = true;
    for (size_t i = 0; i < PARKED_MAX; i++)
        if (parked[i]) process_kill_tree(parked[i]);
}

struct problem parked_start(struct start_request *request) {
    if (!(request->flags & START_PTY)) return (struct problem){BAD_ARGUMENT, "only terminals are started in advance"};
    size_t place = 0;
    while (place < PARKED_MAX && parked[place]) place++;
    if (over) return NO_PROBLEM;
    if (place == PARKED_MAX) return (struct problem){LIMIT, "parked"};
    request->park = true;
    struct process *process = NULL;
    struct problem problem = process_start(request, &process);
    if (!problem.code) parked[place] = process;
    return problem;
}

static struct winsize size_of(const struct start_request *request) {
    return (struct winsize){.ws_col = request->cols ? request->cols : 80, .ws_row = request->rows ? request->rows : 24};
}

/* A program that has drawn its screen for one size would draw it again for another: that one is not taken. */
static bool fits(const struct process *process, const struct start_request *request) {
    struct winsize size = size_of(request);
    return process->state != STATE_ENDED && !process->leader_gone && (request->flags & START_PTY) && !request->modes.length &&
           process->log.size == log_size(request->log_bytes) && process->request_bytes == request->strings_bytes &&
           memcmp(process->request, request->strings, request->strings_bytes) == 0 &&
           (process->log.end == 0 || (process->cols == size.ws_col && process->rows == size.ws_row));
}

static void take(struct process *process, const struct start_request *request) {
    parked_forget(process);
    process_unlink(process);
    process->parked = false;
    process_add(process); /* it gets its id, and its place among the others, now */
    process->started_ms = unix_ms();
    struct winsize size = size_of(request);
    if (process->cols != size.ws_col || process->rows != size.ws_row) ioctl(process->output[0].fd, TIOCSWINSZ, &size);
    process->cols = size.ws_col;
    process->rows = size.ws_row;
    if (request->deadline_ms) timer_arm(&process->deadline, loop_now() + request->deadline_ms * MS);
    else timer_cancel(&process->deadline);
}

struct process *parked_take(const struct start_request *request) {
    struct process *taken = NULL;
    for (size_t i = 0; i < PARKED_MAX && !taken; i++)
        if (parked[i] && fits(parked[i], request)) taken = parked[i];
    if (taken) take(taken, request);
    parked_end();
    return taken;
}
