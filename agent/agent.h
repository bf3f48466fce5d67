/* What the agent's files share. One thread, one event loop; ARCHITECTURE: docs/reference/agent-protocol.md. */
#ifndef SANDPTY_AGENT_H
#define SANDPTY_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "frames.h"
#include "limits.h"

/* --- loop.c: descriptors and timers ------------------------------------------------------------------------------ */

struct source { /* a descriptor in the event loop, embedded in what owns it */
    int fd;     /* -1: closed */
    uint32_t interest;
    bool added;
    void (*ready)(struct source *source, uint32_t events);
};

struct timer { /* zeroed = not armed */
    uint64_t due;
    size_t place; /* in the heap, from 1; 0 = not armed */
    void (*fire)(struct timer *timer);
};

#define OWNER(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

bool loop_init(void);
void loop_run(void); /* until loop_stop */
void loop_stop(void);
uint64_t loop_now(void); /* monotonic ns, read once per turn */
bool source_open(struct source *source, int fd, uint32_t interest); /* interest 0: not yet */
bool source_interest(struct source *source, uint32_t interest); /* false: no memory for it */
void source_close(struct source *source);
bool timer_arm(struct timer *timer, uint64_t due);
void timer_cancel(struct timer *timer);
void free_later(void *memory); /* at the end of this turn: events of the same turn may still point at it */
uint64_t unix_ms(void);

/* --- log.c: the output log --------------------------------------------------------------------------------------- */

struct log {
    uint8_t *bytes; /* mapped at full size; the kernel gives pages as they are first written */
    uint64_t size;
    uint64_t start, end; /* absolute offsets of what is held */
    uint64_t *marks;     /* stream changes, oldest first: offset * 4 + stream; a ring of LOG_MARKS_MAX at most */
    size_t marks_capacity, marks_first, marks_count;
};

bool log_open(struct log *log, uint64_t size);
void log_close(struct log *log);
int log_space(struct log *log, size_t bytes, struct iovec space[2]);
void log_commit(struct log *log, size_t bytes, uint8_t stream);
int log_view(const struct log *log, uint64_t offset, size_t bytes, struct iovec view[2]);
uint64_t log_run(const struct log *log, uint64_t offset, uint8_t *stream);
uint64_t log_screen(const struct log *log, unsigned rows);

/* --- users.c ----------------------------------------------------------------------------------------------------- */

struct user {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS_MAX];
    size_t groups_count;
    char name[256], home[PATH_BYTES_MAX];
};

bool user_find(struct text name, struct user *user);
char *accounts_read(const char *path); /* to be freed; NULL: not a readable regular file of sane size */
bool account_next(char **text, char **fields, size_t wanted, size_t *found, uint32_t *id); /* cuts a line off */

/* --- tree.c ------------------------------------------------------------------------------------------------------ */

enum kin { KIN_DESCENDANTS, KIN_CHILDREN, KIN_GROUP };

/* Signals every live process that is `kin` of `root` (0 only counts) and returns how many there were. */
size_t tree_signal(pid_t root, enum kin kin, int number, bool (*spared)(pid_t pid));

/* --- reaper.c: what runs between fork and exec, and the reaper that stays ----------------------------------------- */

enum stage { STAGE_FORK = 1, STAGE_TERMINAL, STAGE_USER, STAGE_CWD, STAGE_EXEC };
enum report_kind { REPORT_STARTED = 1, REPORT_FAILED, REPORT_EXITED };

struct report { /* reaper -> agent, one write each */
    uint32_t kind;
    uint32_t stage;
    int32_t value; /* pid, errno or wait status */
};

struct launch { /* everything the child needs, made before the fork */
    const struct user *user;
    char **argv, **env;
    char cwd[PATH_BYTES_MAX];
    bool pty;
    int stdio[3];
    int status; /* write end of the report pipe */
};

pid_t reaper_fork(const struct launch *launch);
void reset_signals(void);
void raise_oom_score(void);
bool become(const struct user *user);
void close_from(unsigned first);
extern const char *const DEFAULT_PATH;

/* --- process.c --------------------------------------------------------------------------------------------------- */

struct connection;

enum state { STATE_STARTING, STATE_RUNNING, STATE_ENDED };

struct process {
    struct process *next, *previous; /* oldest first */
    uint64_t id;
    pid_t pid;    /* the leader */
    pid_t reaper; /* 0 once it was reaped: then nothing of the tree lives */
    enum state state;
    bool pty, stdin_open, leader_gone, tree_gone, drained[2], input_blocked, flow_paused, resting;
    bool kill_asked, deadline_passed;
    bool parked; /* started before anybody asked: nobody sees it */
    unsigned references; /* connections that point here */
    unsigned attachments;
    struct source reports;
    struct source output[2]; /* PTY master, or stdout and stderr */
    struct source input;     /* stdin pipe; a PTY's input goes to output[0] */
    int slave;               /* held while the leader runs, so that the master never reads EIO before that */
    struct log log;
    uint64_t given; /* up to here some attachment was given output */
    uint64_t flushed_end, flushed_at, announced_end, enough;
    uint64_t drain_limit;   /* after the leader's exit: read up to here whatever readers do */
    uint64_t place, place_until; /* where a lost reader was, and how long the process waits for it to come back */
    uint64_t input_taken;
    struct connection *input_owner; /* whose piece of input is half written */
    struct connection *readers;
    struct timer deadline, drain, flush, stall, input_retry, forget, rest;
    uint16_t cols, rows;
    uint64_t started_ms, ended_ms;
    int wait_status;
    uint8_t exit_kind, exit_value, exit_reason, exit_core;
    uint8_t *request; /* user, cwd, tag, argv, env as they came: a PROCESS frame ends with the same bytes */
    size_t request_bytes;
    struct text tag;
};

struct start_request {
    uint8_t flags;
    bool park;
    uint16_t cols, rows;
    uint32_t log_bytes, deadline_ms, window, stall_ms;
    struct text modes, user, cwd, tag, argv, env;
    uint32_t argc, envc;
    const uint8_t *strings;
    size_t strings_bytes;
};

struct problem { /* why a request cannot be; code 0 = none */
    uint16_t code;
    const char *message;
};

#define NO_PROBLEM ((struct problem){0, NULL})

struct selector {
    uint8_t kind;
    uint64_t number;
    struct text tag;
};

struct process *process_find(const struct selector *selector);
struct process *process_after(uint64_t id);
struct problem process_start(const struct start_request *request, struct process **process);
struct problem process_signal(struct process *process, uint8_t target, uint8_t number, pid_t *group);
struct problem process_resize(struct process *process, uint16_t cols, uint16_t rows, struct connection *by);
struct problem process_close_stdin(struct process *process);
struct problem process_input_check(const struct process *process, uint8_t stream);
ssize_t process_input(struct process *process, const uint8_t *bytes, size_t count, struct problem *problem);
void process_input_wait(struct process *process);
void process_reference(struct process *process);
void process_release(struct process *process);
void process_reaped(pid_t pid, int status);
void process_kill_tree(struct process *process);
void processes_shutdown(void);
bool processes_gone(void);
void process_update(struct process *process); /* reading on or off, after readers moved or came or went */

/* --- start.c ----------------------------------------------------------------------------------------------------- */

bool take_start(struct reader *reader, struct start_request *request, uint32_t *window, uint32_t *stall_ms);
uint64_t log_size(uint32_t asked); /* of a process whose START asks for that many log_bytes */

/* --- modes.c ----------------------------------------------------------------------------------------------------- */

void modes_apply(int slave, struct text modes);

/* --- parked.c ---------------------------------------------------------------------------------------------------- */

struct problem parked_start(struct start_request *request);
struct process *parked_take(const struct start_request *request); /* NULL: none is the same; all others are ended */
void parked_end(void); /* what a shell finds when it starts may change from now on */
void parked_forget(const struct process *process);

/* --- connection.c ------------------------------------------------------------------------------------------------ */

enum role { ROLE_NEW, ROLE_GREETED, ROLE_ATTACHMENT, ROLE_CONTROL, ROLE_FILES };
enum busy { BUSY_NO, BUSY_START, BUSY_WAIT, BUSY_KILL, BUSY_LIST, BUSY_INPUT, BUSY_FILES };

struct connection {
    struct connection *next, *previous;
    struct source source;
    struct timer timer;
    enum role role;
    enum busy busy; /* what the request being answered waits for; until then no further one is read */
    struct buffer in, out;
    size_t need; /* bytes of `in` the next step wants */
    size_t charged; /* of `in` against LARGE_BUFFERS_BYTES_MAX */
    bool peer_done, mute, closing, send_blocked;
    struct process *process; /* the attachment's, or the one a control request is about; counted in its references */

    struct {
        uint32_t left, piece; /* bytes of this INPUT frame still to come; of them, complete and being written */
        uint64_t offset;
        bool active, numbered, discard;
    } input;

    /* attachment */
    struct connection *next_reader;
    bool may_write, reply_only, keeps_place, resized, attached, exit_said;
    uint64_t cursor, acked, last_ack;
    uint32_t window;
    uint64_t stall_ns, moved_at;

    /* control */
    uint64_t listed;
    pid_t group;
    uint64_t kill_since;
    uint8_t kill_target;

    pid_t files_child; /* serves this connection instead of us; 0: none */
};

bool connections_listen(int fd);
void connections_wake(struct process *process, enum busy busy); /* what they waited for has happened */
void connection_error(struct connection *connection, uint16_t code, const char *message, bool stay);
void connection_close(struct connection *connection);
void connection_work(struct connection *connection);
bool connection_flush(struct connection *connection);
void connection_mute(struct connection *connection);
void connection_continue(struct connection *connection);
void connection_update(struct connection *connection);
void connections_started(struct process *process, struct problem problem);
void connections_child_gone(pid_t child);

/* --- attach.c ---------------------------------------------------------------------------------------------------- */

void attach_begin(struct connection *connection, struct process *process, uint64_t start);
struct problem attach_origin(const struct process *process, uint8_t from, uint64_t value, uint64_t *start);
void attach_pump(struct connection *connection);
void attach_deaf(struct connection *connection); /* input is not taken: no ACK is read, and none is waited for */
void attach_end(struct connection *connection);
void attach_ack(struct connection *connection, uint64_t offset);
void attach_moved(struct connection *connection);
void attachments_pump(struct process *process);
bool attachments_live(const struct process *process);
bool attachments_hold(struct process *process, uint64_t *look_again);
void attachments_resized(struct process *process, struct connection *except);
void attach_started(struct connection *connection, struct process *process);
bool attach_frame(struct connection *connection, uint8_t type, struct reader *reader);

/* --- input.c ----------------------------------------------------------------------------------------------------- */

void input_begin(struct connection *connection, uint64_t offset, uint8_t stream);
size_t input_take(struct connection *connection, const uint8_t *bytes, size_t count);
void input_finished(struct connection *connection);

/* --- control.c --------------------------------------------------------------------------------------------------- */

bool control_frame(struct connection *connection, uint8_t type, struct reader *reader);
void control_woken(struct connection *connection);
void control_list(struct connection *connection);
bool take_selector(struct reader *reader, struct selector *selector);

/* --- files.c ----------------------------------------------------------------------------------------------------- */

bool files_frame(struct connection *connection, struct reader *reader);
void files_end(struct connection *connection);
void files_reaped(pid_t pid);
void files_shutdown(void);
bool files_child(pid_t pid);
extern const char *files_root; /* files connections see what is below it alone; NULL: everything */

/* --- main.c ------------------------------------------------------------------------------------------------------ */

extern uint64_t boot_ms;
extern bool shutting_down;
void agent_shutdown(void);
void set_title(const char *name); /* what the guest sees in `ps` */

#endif
