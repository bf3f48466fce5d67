/* The event loop: epoll for descriptors, a binary heap for timers. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define EVENTS_PER_TURN 64

static int epoll_fd = -1;
static bool stopped;
static uint64_t now;    /* the agent's own time: it stands still while the sandbox is frozen */
static uint64_t looked; /* what the clock said when it was last asked */
static uint64_t frozen; /* what the clock is ahead of our time */
static struct timer **heap; /* heap[1] is the earliest */
static size_t heap_count, heap_capacity;
static void **dead;
static size_t dead_count, dead_capacity;

static uint64_t clock_ns(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

uint64_t loop_now(void) { return now; }
uint64_t unix_ms(void) { return clock_ns(CLOCK_REALTIME) / MS; }
void loop_stop(void) { stopped = true; }

bool loop_init(void) {
    now = looked = clock_ns(CLOCK_MONOTONIC);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return epoll_fd >= 0;
}

/* --- descriptors ------------------------------------------------------------------------------------------------- */

bool source_open(struct source *source, int fd, uint32_t interest) {
    source->fd = fd;
    source->interest = 0;
    source->added = false;
    if (interest == 0 || source_interest(source, interest)) return true;
    source->fd = -1; /* the caller's to close */
    return false;
}

/* Interest 0 takes the descriptor out: epoll reports HUP and ERR whether asked or not, for ever. */
bool source_interest(struct source *source, uint32_t interest) {
    if (source->fd < 0 || source->interest == interest) return true;
    struct epoll_event event = {.events = interest, .data.ptr = source};
    int operation = interest == 0 ? EPOLL_CTL_DEL : source->added ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(epoll_fd, operation, source->fd, &event) < 0 && operation != EPOLL_CTL_DEL) return false;
    source->added = interest != 0;
    source->interest = interest;
    return true;
}

void source_close(struct source *source) {
    if (source->fd < 0) return;
    /* Explicitly: a child between fork and exec may still hold the file, and then close() does not take it out. */
    if (source->added) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
    close(source->fd);
    source->fd = -1;
    source->added = false;
    source->interest = 0;
}

/* --- timers ------------------------------------------------------------------------------------------------------ */

static void heap_set(size_t place, struct timer *timer) {
    heap[place] = timer;
    timer->place = place;
}

static void heap_sift(struct timer *timer) {
    size_t place = timer->place;
    while (place > 1 && heap[place / 2]->due > timer->due) {
        heap_set(place, heap[place / 2]);
        place /= 2;
    }
    for (;;) {
        size_t child = place * 2;
        if (child > heap_count) break;
        if (child < heap_count && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= timer->due) break;
        heap_set(place, heap[child]);
        place = child;
    }
    heap_set(place, timer);
}

bool timer_arm(struct timer *timer, uint64_t due) {
    timer->due = due;
    if (!timer->place) {
        if (heap_count + 2 > heap_capacity) {
            size_t capacity = heap_capacity ? heap_capacity * 2 : 16;
            struct timer **bigger = realloc(heap, capacity * sizeof(*heap));
            if (!bigger) return false;
            heap = bigger;
            heap_capacity = capacity;
        }
        timer->place = ++heap_count;
    }
    heap_sift(timer);
    return true;
}

void timer_cancel(struct timer *timer) {
    if (!timer->place) return;
    struct timer *last = heap[heap_count--];
    if (last != timer) {
        last->place = timer->place;
        heap_sift(last);
    }
    timer->place = 0;
}

static void fire_timers(void) {
    while (heap_count > 0 && heap[1]->due <= now) {
        struct timer *timer = heap[1];
        timer_cancel(timer);
        timer->fire(timer);
    }
}

/* --- turns ------------------------------------------------------------------------------------------------------- */

void free_later(void *memory) {
    if (dead_count == dead_capacity) {
        size_t capacity = dead_capacity ? dead_capacity * 2 : 16;
        void **bigger = realloc(dead, capacity * sizeof(*dead));
        if (!bigger) return; /* out of memory: leaking a record is better than using it after free */
        dead = bigger;
        dead_capacity = capacity;
    }
    dead[dead_count++] = memory;
}

/* Nobody tells a frozen sandbox that it was: more time has passed than we wanted to wait. */
static void look_at_clock(uint64_t wanted) {
    uint64_t clock = clock_ns(CLOCK_MONOTONIC);
    if (clock - looked > wanted && clock - looked - wanted > FROZEN_NS) frozen += clock - looked - wanted;
    looked = clock;
    now = clock - frozen;
}

/* Until the next timer is due; but now and then before, so that a freeze is told from waiting. */
static uint64_t time_to_wait(void) {
    if (heap_count == 0) return UINT64_MAX;
    uint64_t left = heap[1]->due > now ? heap[1]->due - now : 0;
    uint64_t part = left / LOOKS_PER_WAIT > LOOK_NS ? left / LOOKS_PER_WAIT : LOOK_NS;
    return left < part ? left : part;
}

static int wait_for_events(struct epoll_event *events, uint64_t left) {
    static bool coarse; /* an old kernel or a strict seccomp profile has no epoll_pwait2 */
    struct timespec time = {(time_t)(left / 1000000000ull), (long)(left % 1000000000ull)};
    if (!coarse) {
        long count = syscall(SYS_epoll_pwait2, epoll_fd, events, EVENTS_PER_TURN, heap_count ? &time : NULL, NULL, 8);
        if (count >= 0 || errno == EINTR) return count < 0 ? 0 : (int)count;
        coarse = true;
    }
    uint64_t left_ms = (left + MS - 1) / MS;
    int timeout = heap_count == 0 ? -1 : left_ms > 60000 ? 60000 : (int)left_ms;
    int count = epoll_wait(epoll_fd, events, EVENTS_PER_TURN, timeout);
    return count < 0 ? 0 : count;
}

void loop_run(void) {
    struct epoll_event events[EVENTS_PER_TURN];
    while (!stopped) {
        look_at_clock(0);
        uint64_t wait = time_to_wait();
        int count = wait_for_events(events, wait);
        look_at_clock(wait);
        for (int i = 0; i < count; i++) {
            struct source *source = events[i].data.ptr;
            if (source->fd >= 0 && source->added) source->ready(source, events[i].events);
        }
        fire_timers(); /* after events: what a thawed sandbox finds waiting counts before its timeouts do */
        while (dead_count > 0) free(dead[--dead_count]);
    }
}
