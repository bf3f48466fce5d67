/* The output log of a process: a ring of the newest bytes with absolute offsets.
 *
 * The ring is mapped at full size and the kernel gives its pages as they are first written, so it grows lazily without
 * a line of code. A pipe process's streams share it: `marks` say from which offset on which stream speaks. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "agent.h"

bool log_open(struct log *log, uint64_t size) {
    *log = (struct log){.size = size};
    void *bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bytes == MAP_FAILED) return false;
    madvise(bytes, size, MADV_DONTFORK);   /* a reaper must not keep old pages of every log alive */
    madvise(bytes, size, MADV_NOHUGEPAGE); /* nor one line of output take 2 MiB */
    log->bytes = bytes;
    return true;
}

void log_close(struct log *log) {
    if (log->bytes) munmap(log->bytes, log->size);
    free(log->marks);
    *log = (struct log){0};
}

static int ring(const struct log *log, uint64_t offset, size_t bytes, struct iovec part[2]) {
    size_t at = (size_t)(offset % log->size);
    size_t first = bytes < log->size - at ? bytes : (size_t)(log->size - at);
    part[0] = (struct iovec){log->bytes + at, first};
    part[1] = (struct iovec){log->bytes, bytes - first};
    return bytes > first ? 2 : 1;
}

/* Where the next bytes go. What they overwrite is the oldest; log_commit says how many came. */
int log_space(struct log *log, size_t bytes, struct iovec space[2]) { return ring(log, log->end, bytes, space); }

int log_view(const struct log *log, uint64_t offset, size_t bytes, struct iovec view[2]) {
    return ring(log, offset, bytes, view);
}

static uint64_t mark_at(const struct log *log, size_t i) {
    return log->marks[(log->marks_first + i) % log->marks_capacity];
}

static bool marks_grow(struct log *log) {
    size_t capacity = log->marks_capacity ? log->marks_capacity * 2 : 16;
    if (capacity > LOG_MARKS_MAX) return false;
    uint64_t *marks = malloc(capacity * sizeof(*marks));
    if (!marks) return false;
    for (size_t i = 0; i < log->marks_count; i++) marks[i] = mark_at(log, i);
    free(log->marks);
    log->marks = marks;
    log->marks_capacity = capacity;
    log->marks_first = 0;
    return true;
}

static void marks_drop_first(struct log *log) {
    log->marks_first = (log->marks_first + 1) % log->marks_capacity;
    log->marks_count--;
}

static void mark(struct log *log, uint8_t stream) {
    if (log->marks_count > 0 && mark_at(log, log->marks_count - 1) % 4 == stream) return;
    if (log->marks_count == log->marks_capacity && !marks_grow(log)) {
        if (log->marks_count == 0) return; /* no memory at all: all of it counts as stream 0 */
        marks_drop_first(log);             /* a bounded number of changes; older output goes with its mark */
        if (log->marks_count > 0 && log->start < mark_at(log, 0) / 4) log->start = mark_at(log, 0) / 4;
    }
    size_t last = (log->marks_first + log->marks_count++) % log->marks_capacity;
    log->marks[last] = log->end * 4 + stream;
}

void log_commit(struct log *log, size_t bytes, uint8_t stream) {
    if (stream != STREAM_PTY) mark(log, stream);
    log->end += bytes;
    if (log->end - log->start > log->size) log->start = log->end - log->size;
    while (log->marks_count > 1 && mark_at(log, 1) / 4 <= log->start) marks_drop_first(log);
}

/* How many bytes from `offset` on (which must be held) belong to one stream, and to which. */
uint64_t log_run(const struct log *log, uint64_t offset, uint8_t *stream) {
    *stream = STREAM_PTY;
    if (log->marks_count == 0) return log->end - offset;
    size_t low = 0, high = log->marks_count; /* the last mark at or before offset */
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        if (mark_at(log, middle) / 4 <= offset) low = middle;
        else high = middle;
    }
    *stream = (uint8_t)(mark_at(log, low) % 4);
    return (low + 1 < log->marks_count ? mark_at(log, low + 1) / 4 : log->end) - offset;
}

/* --- the present screen ------------------------------------------------------------------------------------------ */

struct sight { /* what a forward look over the log has found */
    uint64_t alternate_start, clear;
    bool alternate;
    uint64_t *lines; /* where the newest `rows` lines of the main screen begin, a ring */
    unsigned rows;
    uint64_t lines_count;
};

static uint8_t byte_at(const struct log *log, uint64_t offset) {
    return offset < log->end ? log->bytes[offset % log->size] : 0;
}

static void sight_mode(struct sight *sight, unsigned mode, bool set, uint64_t offset) {
    if (mode != 47 && mode != 1047 && mode != 1049) return;
    if (set && !sight->alternate) sight->alternate_start = offset;
    sight->alternate = set;
}

/* An escape sequence begins at `offset`: the ones that change what is to be replayed are ESC c, CSI 2 J, CSI 3 J and
 * the alternate screen's CSI ? 47/1047/1049 h and l. */
static void sight_escape(struct sight *sight, const struct log *log, uint64_t offset) {
    uint64_t at = offset + 1;
    uint8_t byte = byte_at(log, at);
    if (byte == 'c') {
        sight->clear = offset;
        sight->alternate = false;
    }
    if (byte != '[') return;
    bool private = byte_at(log, at + 1) == '?';
    at += private ? 2 : 1;
    unsigned numbers[8] = {0}, count = 0; /* several modes may share a sequence */
    for (unsigned i = 0; i < 32; i++, at++) {
        byte = byte_at(log, at);
        if (byte >= '0' && byte <= '9') numbers[count] = (numbers[count] * 10 + byte - '0') % 100000;
        else if (byte == ';' && count < 7) count++;
        else break;
    }
    if (private && (byte == 'h' || byte == 'l'))
        for (unsigned i = 0; i <= count; i++) sight_mode(sight, numbers[i], byte == 'h', offset);
    if (!private && byte == 'J' && numbers[0] >= 2 && !sight->alternate) sight->clear = offset;
}

/* The nearest offset from which replay shows the present screen. */
uint64_t log_screen(const struct log *log, unsigned rows) {
    struct sight sight = {.clear = log->start, .rows = rows ? rows : 24};
    sight.lines = malloc(sight.rows * sizeof(*sight.lines));
    if (!sight.lines) return log->start;
    struct iovec parts[2];
    int count = log_view(log, log->start, (size_t)(log->end - log->start), parts);
    uint64_t offset = log->start;
    for (int part = 0; part < count; part++) {
        const uint8_t *bytes = parts[part].iov_base, *end = bytes + parts[part].iov_len;
        for (; bytes < end; bytes++, offset++) { /* no division per byte: a MiB in a millisecond */
            if (*bytes == 0x1b) sight_escape(&sight, log, offset);
            else if (*bytes == '\n' && !sight.alternate) sight.lines[sight.lines_count++ % sight.rows] = offset + 1;
        }
    }
    uint64_t line = sight.lines_count >= sight.rows ? sight.lines[sight.lines_count % sight.rows] : log->start;
    free(sight.lines);
    if (sight.alternate) return sight.alternate_start;
    return sight.clear > line ? sight.clear : line;
}
