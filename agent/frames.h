/* Frames: reading fields with bounds checks, writing them into a growing buffer. */
#ifndef SANDPTY_FRAMES_H
#define SANDPTY_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_VERSION 1
#define NO_OFFSET UINT64_MAX
#define NEVER_MS UINT32_MAX
#define FRAME_HEAD_BYTES 5 /* u32 length, u8 type */
#define OUTPUT_HEAD_BYTES (FRAME_HEAD_BYTES + 9)

enum frame_type {
    HELLO = 0x01,
    START = 0x10,
    ATTACH = 0x11,
    FILES = 0x12,
    INPUT = 0x20,
    RESIZE = 0x21,
    SIGNAL = 0x22,
    CLOSE_STDIN = 0x23,
    ACK = 0x24,
    PING = 0x25,
    LIST = 0x30,
    STAT = 0x31,
    WAIT = 0x32,
    SIGNAL_PROCESS = 0x33,
    RESIZE_PROCESS = 0x34,
    INPUT_PROCESS = 0x35,
    CLOSE_STDIN_PROCESS = 0x36,
    PARK = 0x38,
    SHUTDOWN = 0x3F,
    FILE_ACCOUNT = 0x40,
    FILE_STAT = 0x41,
    FILE_REAL_PATH = 0x42,
    FILE_LIST = 0x43,
    FILE_OPEN = 0x44,
    FILE_READ = 0x45,
    FILE_WRITE = 0x46,
    FILE_DATA = 0x47,
    FILE_END = 0x48,
    FILE_MKDIR = 0x49,
    FILE_MOVE = 0x4A,
    FILE_COPY = 0x4B,
    FILE_REMOVE = 0x4C,
    FILE_CHANGE = 0x4D,
    FILE_METADATA = 0x4E,
    FILE_SYMLINK = 0x4F,
    FILE_SIZE = 0x50,
    FILE_WATCH = 0x51,
    FILE_SYNC = 0x52,
    FILE_IF_ACCOUNT = 0x53,
    FILE_LISTEN = 0x54,
    FILE_CONNECT = 0x55,
    FILE_ACCEPT = 0x56,
    AGENT_HELLO = 0x81,
    STARTED = 0x90,
    ATTACHED = 0x91,
    OUTPUT = 0xA0,
    GAP = 0xA1,
    RESIZED = 0xA2,
    EXIT = 0xA3,
    INPUT_ACK = 0xA4,
    PONG = 0xA5,
    DONE = 0xB0,
    PROCESS = 0xB1,
    ACCOUNT = 0xC0,
    ENTRY = 0xC1,
    ENTRIES = 0xC2,
    CONTENT = 0xC3,
    CONTENT_END = 0xC4,
    WRITTEN = 0xC5,
    MADE = 0xC6,
    REAL_PATH = 0xC7,
    SIZE = 0xC8,
    EVENTS = 0xC9,
    SYNCED = 0xCA,
    FILE_ERROR = 0xCF,
    ERROR = 0xFF,
};

enum error_code {
    BAD_FRAME = 1,
    UNSUPPORTED_VERSION,
    NO_SUCH_PROCESS,
    NO_SUCH_USER,
    BAD_CWD,
    START_FAILED,
    NOT_A_PTY,
    NOT_A_PIPE,
    STDIN_CLOSED,
    EXITED,
    LIMIT,
    TIMEOUT,
    READ_ONLY,
    BAD_ARGUMENT,
    INTERNAL,
    PORT_CLOSED,
};

enum { STREAM_PTY, STREAM_STDOUT, STREAM_STDERR };
enum { FROM_OFFSET, FROM_TAIL, FROM_CONTINUE, FROM_END, FROM_SCREEN };
enum { TARGET_LEADER, TARGET_GROUP, TARGET_TREE };
enum { START_PTY = 1, START_STDIN = 2, START_REPLY_ONLY = 4, START_MODES = 8 };
enum { ATTACH_MAY_WRITE = 1, ATTACH_KEEPS_PLACE = 2 };
enum { FLAG_PTY = 1, FLAG_RUNNING = 2, FLAG_STDIN_OPEN = 4, FLAG_MAY_WRITE = 8 };
enum { REASON_EXITED, REASON_SIGNALLED, REASON_DEADLINE, REASON_KILLED, REASON_OUT_OF_MEMORY, REASON_SANDBOX_ENDED };

enum { FILE_FOLLOW = 1, FILE_WITH_METADATA = 2 };                        /* FILE_STAT, FILE_LIST */
enum { WRITE_TRUNCATE = 1, WRITE_APPEND = 2, WRITE_EXCLUSIVE = 4, WRITE_PARENTS = 8, WRITE_MODE = 16 };
enum { WRITE_METADATA = 32 };
enum { PLACE_KEEP = 1, PLACE_RECURSIVE = 2, PLACE_PARENTS = 8 }; /* FILE_MKDIR, FILE_MOVE, FILE_COPY, FILE_REMOVE */
enum { CHANGE_FOLLOW = 1, CHANGE_RECURSIVE = 2 };
enum { WATCH_ENTRIES = 1, WATCH_RECURSIVE = 2, WATCH_NETWORK = 4 };
enum { LOOK_LINK_TEXT = 1, LOOK_TARGET = 2 };                            /* of an entry */
enum { KIND_UNKNOWN, KIND_FILE, KIND_DIRECTORY, KIND_SYMLINK, KIND_FIFO, KIND_SOCKET, KIND_CHARACTERS, KIND_BLOCKS };
enum { EVENT_CREATE = 1, EVENT_WRITE, EVENT_REMOVE, EVENT_RENAME, EVENT_CHMOD, EVENT_OVERFLOW, EVENT_GONE };
enum { NOT_A_FILE = 1000, BAD_PATH, NETWORK_FILE_SYSTEM, FILE_LIMIT, ACCOUNT_CHANGED }; /* FILE_ERROR: errno, or these */
#define NO_ID UINT32_MAX /* owner or mode: leave it as it is */

#define SERVICE_TAG_PREFIX "sandpty:" /* of tags: started by the host, not by a client */

struct text { /* bytes inside a frame; not terminated */
    const uint8_t *bytes;
    uint32_t length;
};

struct reader { /* fields of one payload; after any miss `bad` stays true and everything read is 0 */
    const uint8_t *at, *end;
    bool bad;
};

uint8_t take_u8(struct reader *reader);
uint16_t take_u16(struct reader *reader);
uint32_t take_u32(struct reader *reader);
uint64_t take_u64(struct reader *reader);
struct text take_text(struct reader *reader);
uint32_t take_texts(struct reader *reader, struct text *items); /* count; `items` spans the list's items */
bool reader_done(const struct reader *reader); /* everything was there and nothing is left */

uint32_t peek_u32(const uint8_t *bytes);
void poke_u32(uint8_t *bytes, uint32_t value);
void poke_u64(uint8_t *bytes, uint64_t value);

struct buffer { /* bytes [first, last) are waiting; zeroed = empty, and freed whenever it is empty */
    uint8_t *bytes;
    size_t first, last, capacity;
};

size_t buffer_length(const struct buffer *buffer);
bool buffer_reserve(struct buffer *buffer, size_t more); /* false: out of memory */
bool buffer_add(struct buffer *buffer, const void *bytes, size_t count);
void buffer_drop(struct buffer *buffer, size_t count);
void buffer_free(struct buffer *buffer);

/* A frame under construction: begin, put fields, end. Any failure makes frame_end false and takes the frame back. */
struct writer {
    struct buffer *buffer;
    size_t length_before;
    bool failed;
};

struct writer frame_begin(struct buffer *buffer, uint8_t type);
void put_u8(struct writer *writer, uint8_t value);
void put_u16(struct writer *writer, uint16_t value);
void put_u32(struct writer *writer, uint32_t value);
void put_u64(struct writer *writer, uint64_t value);
void put_bytes(struct writer *writer, const void *bytes, size_t count);
bool frame_end(struct writer *writer);
void output_head(uint8_t head[OUTPUT_HEAD_BYTES], uint8_t stream, uint64_t offset, uint32_t bytes);

#endif
