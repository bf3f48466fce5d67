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
enum { START_PTY = 1, START_STDIN = 2, START_REPLY_ONLY = 4 };
enum { ATTACH_MAY_WRITE = 1, ATTACH_KEEPS_PLACE = 2 };
enum { FLAG_PTY = 1, FLAG_RUNNING = 2, FLAG_STDIN_OPEN = 4, FLAG_MAY_WRITE = 8 };
enum { REASON_EXITED, REASON_SIGNALLED, REASON_DEADLINE, REASON_KILLED, REASON_OUT_OF_MEMORY, REASON_SANDBOX_ENDED };

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
