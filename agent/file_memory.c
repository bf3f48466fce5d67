/* Big files and the guest's memory: which part of one that does not fit stays there.
 *
 * The kernel drops what is oldest. So the end of such a file drives out its beginning, and whoever then reads it from the
 * beginning finds each part gone just before he comes to it. What is in memory is worth more than what comes next:
 * once the beginning of what is written goes, the rest is brought to the disk and dropped at once; and what has to be
 * read from the disk does not drive out the rest of the file, where most of it is in memory. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "files.h"

#define PART_BYTES (4 * MIB) /* of a file, that is in memory or not */
#define LOOKS 16             /* at pages of a part: to look at all of them would take 200 ms for a GiB */

/* How many of these pages are in memory; all also when we are not to know. Mapped, but never touched. */
static unsigned in_memory(const uint8_t *part) {
    unsigned found = 0;
    uint8_t page = 1;
    for (size_t i = 0; i < LOOKS; i++) {
        if (mincore((void *)(uintptr_t)(part + i * (PART_BYTES / LOOKS)), 1, &page) < 0) return LOOKS;
        found += page & 1;
    }
    return found;
}

static uint8_t *map(int fd, off_t begin, size_t bytes) {
    void *mapped = fd < 0 || begin < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, begin);
    return mapped == MAP_FAILED ? NULL : mapped;
}

/* --- writing ----------------------------------------------------------------------------------------------------- */

/* What is opened to write cannot be mapped: so it is opened once more. */
static uint8_t *map_beginning(int fd, off_t begin) {
    char name[16];
    snprintf(name, sizeof name, "%d", fd);
    int readable = openat(own_descriptors, name, O_RDONLY | O_CLOEXEC);
    off_t part = (off_t)PART_BYTES;
    uint8_t *first = map(readable, begin < 0 ? begin : (begin + part - 1) / part * part, PART_BYTES);
    if (readable >= 0) close(readable);
    return first;
}

/* After each piece: `count` more bytes lie before where `fd` stands. */
void growing_wrote(struct growing *growing, int fd, size_t count) {
    growing->written += count;
    if (growing->written < growing->next) return;
    growing->next = growing->written + FILES_LOOK_BYTES;
    off_t last = growing->at, at = growing->at = lseek(fd, 0, SEEK_CUR);
    if (last == 0 && at > 0) growing->first = map_beginning(fd, at - (off_t)growing->written);
    if (last == 0 || at <= last || !growing->first) return;
    if (!growing->full) growing->full = in_memory(growing->first) < LOOKS;
    if (growing->full && fdatasync(fd) == 0) posix_fadvise(fd, last, at - last, POSIX_FADV_DONTNEED);
}

void growing_end(struct growing *growing) {
    if (growing->first) munmap(growing->first, PART_BYTES);
}

/* --- reading ----------------------------------------------------------------------------------------------------- */

/* Which parts are on the disk alone, before reading ahead brings them in. None of them is noted where most are. */
void passing_begin(struct passing *passing, int fd, uint64_t size) {
    size_t count = (size_t)(size / PART_BYTES), absent = 0;
    *passing = (struct passing){.fd = fd};
    if (size < FILES_BIG_BYTES || size > FILES_PASSING_BYTES_MAX || !(passing->absent = calloc(count, 1))) return;
    uint8_t *mapped = map(fd, 0, size);
    for (size_t i = 0; mapped && i < count; i++) {
        passing->absent[i] = in_memory(mapped + i * PART_BYTES) < LOOKS / 2;
        absent += passing->absent[i];
    }
    if (mapped) munmap(mapped, size);
    passing->count = absent <= count / 2 ? count : 0;
}

/* Before each piece. Dropped is what lies a whole part behind: what is on its way to the client cannot be. */
void passing_reads(struct passing *passing, uint64_t at) {
    size_t part = (size_t)(at / PART_BYTES);
    for (; passing->done + 1 < part && passing->done < passing->count; passing->done++)
        if (passing->absent[passing->done])
            posix_fadvise(passing->fd, (off_t)(passing->done * PART_BYTES), PART_BYTES, POSIX_FADV_DONTNEED);
}

void passing_end(struct passing *passing) { free(passing->absent); }
