/* The codec. Fields are read byte by byte: no alignment, no host byte order, no length believed before its check. */
#include "frames.h"

#include <stdlib.h>
#include <string.h>

#include "limits.h"

static uint64_t take(struct reader *reader, size_t width) {
    if (reader->bad || (size_t)(reader->end - reader->at) < width) {
        reader->bad = true;
        return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < width; i++) value |= (uint64_t)reader->at[i] << (8 * i);
    reader->at += width;
    return value;
}

uint8_t take_u8(struct reader *reader) { return (uint8_t)take(reader, 1); }
uint16_t take_u16(struct reader *reader) { return (uint16_t)take(reader, 2); }
uint32_t take_u32(struct reader *reader) { return (uint32_t)take(reader, 4); }
uint64_t take_u64(struct reader *reader) { return take(reader, 8); }

struct text take_text(struct reader *reader) {
    uint32_t length = take_u32(reader);
    if (reader->bad || (size_t)(reader->end - reader->at) < length) {
        reader->bad = true;
        return (struct text){NULL, 0};
    }
    struct text text = {reader->at, length};
    reader->at += length;
    return text;
}

uint32_t take_texts(struct reader *reader, struct text *items) {
    uint32_t count = take_u32(reader);
    const uint8_t *first = reader->at;
    if (!reader->bad && count > (size_t)(reader->end - reader->at) / 4) reader->bad = true; /* each has a length */
    for (uint32_t i = 0; i < count && !reader->bad; i++) take_text(reader);
    *items = (struct text){first, reader->bad ? 0 : (uint32_t)(reader->at - first)};
    return reader->bad ? 0 : count;
}

bool reader_done(const struct reader *reader) { return !reader->bad && reader->at == reader->end; }

static void poke(uint8_t *bytes, uint64_t value, size_t width) {
    for (size_t i = 0; i < width; i++) bytes[i] = (uint8_t)(value >> (8 * i));
}

void poke_u32(uint8_t *bytes, uint32_t value) { poke(bytes, value, 4); }
void poke_u64(uint8_t *bytes, uint64_t value) { poke(bytes, value, 8); }

uint32_t peek_u32(const uint8_t *bytes) {
    struct reader reader = {bytes, bytes + 4, false};
    return take_u32(&reader);
}

/* --- buffers ----------------------------------------------------------------------------------------------------- */

size_t buffer_length(const struct buffer *buffer) { return buffer->last - buffer->first; }

bool buffer_reserve(struct buffer *buffer, size_t more) {
    if (buffer->capacity - buffer->last >= more) return true;
    size_t held = buffer_length(buffer);
    if (buffer->first > 0) { /* moving is rare: only when the end was reached while something was left */
        memmove(buffer->bytes, buffer->bytes + buffer->first, held);
        buffer->first = 0;
        buffer->last = held;
    }
    if (buffer->capacity - buffer->last >= more) return true;
    size_t capacity = buffer->capacity ? buffer->capacity : 256;
    while (capacity < held + more) capacity *= 2;
    uint8_t *bytes = realloc(buffer->bytes, capacity);
    if (!bytes) return false;
    buffer->bytes = bytes;
    buffer->capacity = capacity;
    return true;
}

bool buffer_add(struct buffer *buffer, const void *bytes, size_t count) {
    if (count == 0) return true;
    if (!buffer_reserve(buffer, count)) return false;
    memcpy(buffer->bytes + buffer->last, bytes, count);
    buffer->last += count;
    return true;
}

void buffer_free(struct buffer *buffer) {
    free(buffer->bytes);
    *buffer = (struct buffer){0};
}

void buffer_drop(struct buffer *buffer, size_t count) {
    buffer->first += count;
    if (buffer->first == buffer->last) buffer_free(buffer); /* idle connections hold no memory */
}

/* --- writing frames ---------------------------------------------------------------------------------------------- */

struct writer frame_begin(struct buffer *buffer, uint8_t type) {
    struct writer writer = {buffer, buffer_length(buffer), false};
    put_u32(&writer, 0); /* the length, filled in by frame_end */
    put_u8(&writer, type);
    return writer;
}

void put_bytes(struct writer *writer, const void *bytes, size_t count) {
    if (!writer->failed && !buffer_add(writer->buffer, bytes, count)) writer->failed = true;
}

static void put(struct writer *writer, uint64_t value, size_t width) {
    uint8_t bytes[8];
    poke(bytes, value, width);
    put_bytes(writer, bytes, width);
}

void put_u8(struct writer *writer, uint8_t value) { put(writer, value, 1); }
void put_u16(struct writer *writer, uint16_t value) { put(writer, value, 2); }
void put_u32(struct writer *writer, uint32_t value) { put(writer, value, 4); }
void put_u64(struct writer *writer, uint64_t value) { put(writer, value, 8); }

bool frame_end(struct writer *writer) {
    struct buffer *buffer = writer->buffer;
    size_t length = buffer_length(buffer) - writer->length_before;
    if (writer->failed || length - 4 > FRAME_BYTES_MAX) {
        buffer->last -= length;
        if (buffer_length(buffer) == 0) buffer_free(buffer);
        return false;
    }
    poke_u32(buffer->bytes + buffer->first + writer->length_before, (uint32_t)(length - 4));
    return true;
}

void output_head(uint8_t head[OUTPUT_HEAD_BYTES], uint8_t stream, uint64_t offset, uint32_t bytes) {
    poke_u32(head, OUTPUT_HEAD_BYTES - 4 + bytes);
    head[4] = OUTPUT;
    head[5] = stream;
    poke_u64(head + 6, offset);
}
