/* What the parts of the file service share. All of it runs in a child per files connection, which has dropped to the
 * guest's user: one thread, blocking calls, killed by the agent when the connection goes. */
#ifndef SANDPTY_FILES_H
#define SANDPTY_FILES_H

#include <sys/socket.h>
#include <sys/stat.h>

#include "agent.h"

#define ATTRIBUTE_LIST_BYTES (64 * KIB) /* the kernel's own bounds: XATTR_LIST_MAX and XATTR_SIZE_MAX */
#define ATTRIBUTE_LIST_USUAL_BYTES 512
#define ATTRIBUTE_BYTES (64 * KIB)

/* --- file_serve.c: requests and answers -------------------------------------------------------------------------- */

extern int own_descriptors; /* /proc/self/fd: by the number of a descriptor, what it stands for */

struct served {
    int fd;                    /* the connection, blocking */
    struct buffer out;         /* answers that were not sent yet */
    uint8_t *in;               /* FILES_PIECE_BYTES; what was received and not taken is [in_first, in_last) */
    size_t in_first, in_last;
    uint8_t *piece;            /* FRAME_HEAD_BYTES + FILES_PIECE_BYTES: a CONTENT frame under construction */
    unsigned accounts;         /* changes when the guest's accounts may have changed */
    bool refused;              /* the next request: see FILE_IF_ACCOUNT */
    bool grown;                /* the buffers hold memory worth giving back */
    mode_t umask;
    int passed;                /* a descriptor that came with the requests, not taken yet; -1: none */
    int listening;             /* the socket of FILE_LISTEN; -1: none */
    int open;                  /* the file of FILE_OPEN; -1: none */
    int pipe[2];               /* what moves through it is not copied; -1: not made yet, -2: cannot be here */
};

_Noreturn void served_run(struct served *served);
_Noreturn void served_end(struct served *served);
_Noreturn void served_broken(struct served *served); /* answers ERROR bad_frame and ends */
void served_flush(struct served *served);
void served_send(struct served *served, const void *bytes, size_t count); /* after what waits */
void served_receive(struct served *served); /* at least one more byte; ends when the peer has gone */
void served_error(struct served *served, int code); /* an errno or one of ours */
void served_done(struct served *served);
struct writer answer_begin(struct served *served, uint8_t type);
void answer_end(struct served *served, struct writer *writer);
void put_text(struct writer *writer, const char *bytes, size_t count);
bool take_path(struct reader *reader, char path[PATH_BYTES_MAX]); /* absolute and without NUL; ends with one */

/* --- file_entry.c: what is said of an entry ---------------------------------------------------------------------- */

/* `name` from the working directory or absolute, `path` as the client shall see it. */
void put_entry(struct writer *writer, const char *name, const char *path, const struct stat *about, bool metadata);
void answer_entry(struct served *served, uint8_t type, const uint8_t *before, size_t before_bytes, const char *path);
unsigned owners_refresh(void); /* once per request; says served.accounts */
uint8_t kind_of(mode_t mode);
int metadata_replace(int fd, struct text pairs, uint32_t count);

/* --- file_place.c: where something is to be made ----------------------------------------------------------------- */

struct owner { /* NO_ID: leave it as it is */
    uint32_t uid, gid;
};

struct place {
    int directory;
    char name[256];
};

/* The directory that `path` lies in, making missing ones when `mode` is not NO_ID. Returns 0 or an error. */
int place_open(const char *path, uint32_t mode, struct owner owner, struct place *place, uint32_t *made);
int make_directory(int directory, const char *name, uint32_t mode, struct owner owner); /* with exactly that mode */

/* --- file_walk.c: directories ------------------------------------------------------------------------------------ */

struct names { /* of one directory: bytes and a NUL each; `at` is where they begin */
    char *bytes;
    size_t used, capacity;
    uint32_t *at;
    size_t count, room;
};

int names_read(int directory, struct names *names, size_t bytes_max, bool *more);
void names_sort(struct names *names);
void names_free(struct names *names);

struct level {
    int fd;
    struct names names;
    size_t next, path_bytes;
};

struct walk { /* pre-order, in byte order of the names */
    struct level *levels;
    size_t depth, names_bytes;
    char *path;       /* relative to where it began, of the current entry */
    const char *name; /* its last component */
    int directory;    /* that it lies in */
    bool left;        /* not an entry: a directory that was entered is done */
};

int walk_begin(struct walk *walk, int directory); /* takes the descriptor, also when it fails */
bool walk_next(struct walk *walk);
int walk_enter(struct walk *walk);                /* the current entry, never through a symlink */
void walk_end(struct walk *walk);

/* --- file_tree.c, file_copy.c ------------------------------------------------------------------------------------ */

int tree_remove(int directory, const char *name, bool recursive);
int tree_copy(const struct place *from, const struct place *to, bool recursive, bool keep, bool all);

/* --- file_memory.c: big files, which memory does not hold -------------------------------------------------------- */

struct growing { /* a file that is written; .next: FILES_BIG_BYTES */
    uint64_t written, next; /* bytes; when to look again */
    off_t at;               /* where the file was at the last look; 0: there was none */
    uint8_t *first;         /* its beginning, mapped */
    bool full;              /* its beginning goes: nothing more of it shall stay in memory */
};

struct passing { /* a file that is read */
    int fd;
    uint8_t *absent; /* 1 for each part that was not in memory */
    size_t count, done;
};

void growing_wrote(struct growing *growing, int fd, size_t count);
void growing_end(struct growing *growing);
void passing_begin(struct passing *passing, int fd, uint64_t size);
void passing_reads(struct passing *passing, uint64_t at);
void passing_end(struct passing *passing);

/* --- file_socket.c: unix sockets of the guest, for the host --------------------------------------------------------- */

void served_take_descriptor(struct served *served, const struct msghdr *message);
void file_socket(struct served *served, struct reader *reader, uint8_t type);

/* --- relay.c ----------------------------------------------------------------------------------------------------- */

_Noreturn void relay(int one, int other);

/* --- the requests ------------------------------------------------------------------------------------------------ */

void file_list(struct served *served, struct reader *reader);
void file_open(struct served *served, struct reader *reader);
void file_read(struct served *served, struct reader *reader);
void file_write(struct served *served, struct reader *reader);
void file_mkdir(struct served *served, struct reader *reader);
void file_move(struct served *served, struct reader *reader);
void file_copy(struct served *served, struct reader *reader);
void file_remove(struct served *served, struct reader *reader);
void file_change(struct served *served, struct reader *reader);
void file_metadata(struct served *served, struct reader *reader);
void file_symlink(struct served *served, struct reader *reader);
void file_size(struct served *served, struct reader *reader);
void file_watch(struct served *served, struct reader *reader); /* does not return once it watches */

#endif
