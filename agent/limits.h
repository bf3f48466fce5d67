/* Every limit and default of the agent: name, unit, reason. */
#ifndef SANDPTY_LIMITS_H
#define SANDPTY_LIMITS_H

#define KIB 1024u
#define MIB (1024u * 1024u)
#define MS 1000000ull /* nanoseconds in a millisecond; all times here are monotonic nanoseconds */

/* --- frames ------------------------------------------------------------------------------------------------------ */
#define FRAME_BYTES_MAX (MIB + 64)              /* the protocol's bound; `length` counts type and payload */
#define SMALL_FRAME_BYTES_MAX (8 * KIB)         /* every frame but START and input: a selector and some numbers */
#define TAG_BYTES_MAX (4 * KIB)                 /* so that any selector fits a small frame */
#define MODES_BYTES_MAX KIB                     /* of a terminal: there are 160 at most, of 5 bytes each */
#define OUTPUT_BYTES_MAX (64 * KIB)             /* per OUTPUT frame; bigger frames gain nothing measurable */
#define REQUEST_BYTES_MAX (MIB - 4 * KIB)       /* strings of a START: they must fit a PROCESS frame again */

/* --- connections ------------------------------------------------------------------------------------------------- */
#define CONNECTIONS_MAX 1024                    /* each costs a descriptor and about 300 bytes */
#define DESCRIPTORS_MAX (64 * KIB)              /* looked at where the kernel has no close_range() */
#define LISTEN_RETRY_NS (100 * MS)              /* after accept() found no free descriptor */
#define ACCEPTS_PER_TURN 32                     /* so that a connect storm cannot starve terminals */
#define HANDSHAKE_NS (10000 * MS)               /* a peer that connects and never says HELLO */
#define LINGER_NS (5000 * MS)                   /* a peer that does not take the ERROR or EXIT it is closed with */
#define READ_CHUNK_BYTES (4 * KIB)              /* first receive buffer; grows to the frame that is coming in */
#define INPUT_PIECE_BYTES (64 * KIB)            /* input that may wait in the agent per connection */
#define LARGE_BUFFERS_BYTES_MAX (16 * MIB)      /* half-received frames of all connections together */
#define OUT_HIGH_BYTES (16 * KIB)               /* unsent answers above this stop the reading of requests */
#define SOCKET_SEND_BYTES (128 * KIB)           /* kernel buffer per connection: little output goes stale in it */

/* --- processes --------------------------------------------------------------------------------------------------- */
#define PROCESSES_MAX 512                       /* running at once; the sandbox's pids limit usually says no earlier */
#define PARKED_MAX 2                            /* started before anybody asked */
#define KEPT_MAX 128                            /* ended processes remembered */
#define KEPT_BYTES_MAX (64ull * MIB)            /* of their logs and requests, together */
#define KEPT_NS (3600000 * MS)                  /* one hour, then they are forgotten */
#define KEPT_PARKED_NS (1000 * MS)              /* after the end of a parked one that nobody took */
#define LOG_BYTES_DEFAULT MIB
#define LOG_BYTES_MIN (4 * KIB)
#define LOG_BYTES_MAX (64 * MIB)
#define LOG_MARKS_MAX (64 * KIB)                /* stream changes remembered (8 bytes each) in one log */
#define CREDIT_BYTES (128 * KIB)                /* law 7: how far the fastest live reader may be behind */
#define STALL_MS_DEFAULT 10000                  /* law 7: a reader that has not moved for this long is not live */
#define PLACE_AHEAD_DIVISOR 8                   /* of a log, beyond a kept place; 6/8 behind it stay for its reader */
#define EXIT_DRAIN_NS (1000 * MS)               /* law 3: how long descendants that hold the tty delay EXIT */
#define COALESCE_NS (1 * MS)                    /* output after the first waits at most this long for company ... */
#define COALESCE_BYTES (4 * KIB)                /* ... unless this much has come together; more in a flood */
#define READ_BYTES (64 * KIB)                   /* one read of a PTY or pipe */
#define READS_PER_TURN 16                       /* then others get their turn: a read of a flooded PTY may take 0.4 ms */
#define READS_PER_TURN_TYPING 2                 /* the same while somebody types in another terminal */
#define TYPING_NS (1000 * MS)                   /* so long after a key somebody is typing, and waits for echoes */
#define REST_NS (4 * MS)                        /* between reads of output nobody waits for, while somebody types */
#define LAST_READS 256                          /* at the end of a process; a pipe holds 1 MiB at most */
#define INPUT_RETRY_NS (100 * MS)               /* a PTY does not always say that it has room again */
#define LOOKS_PER_WAIT 16                       /* at the clock: deadlines do not count frozen time */
#define LOOK_NS (1000 * MS)                     /* but not more often than this */
#define FROZEN_NS (1500 * MS)                   /* so late only a frozen sandbox looks at the clock, or a starved one */
#define CELLS_MAX 10000                         /* columns or rows of a window */
#define KILL_EAGER_ROUNDS 200                   /* a reaper kills without rest this often, then every KILL_REST_NS */
#define KILL_REST_NS (50 * MS)
#define KILL_POLL_NS (2 * MS)                   /* how often a killed group is looked at until it is gone */
#define KILL_ZOMBIES_NS (300 * MS)              /* after this, members their own parents do not reap count as gone */
#define SHUTDOWN_NS (3000 * MS)                 /* for trees that do not die (uninterruptible sleep) */
#define OOM_SCORE_ADJ "500"                     /* of everything started: the kernel takes it before the agent */

/* --- the guest's files ------------------------------------------------------------------------------------------- */
#define ACCOUNT_FILE_BYTES_MAX (4 * MIB)        /* /etc/passwd, /etc/group: a guest may write anything there */
#define GROUPS_MAX 256                          /* supplementary groups of one user */
#define PATH_BYTES_MAX 4096                     /* PATH_MAX */
#define ARGUMENTS_MAX (64 * KIB)                /* of one START; the kernel wants them all in 2 MiB */
#define ENVIRONMENT_MAX 2048                    /* entries of one START; each is compared with each */
#define FILES_CHILDREN_MAX 64                   /* files connections at once; each is a process of the guest's pids limit */
#define FILES_DYING_MAX 256                     /* children that were killed and are not reaped yet, besides */
#define FILES_SOCKET_BYTES (512 * KIB)          /* kernel buffer of a files connection, as far as the kernel allows */
#define FILES_REQUEST_BYTES_MAX (64 * KIB)      /* two paths and a set of metadata */
#define FILES_PIECE_BYTES (256 * KIB)           /* most of a file in one frame, both ways */
#define FILES_SPLICE_BYTES (64 * KIB)           /* more of a file than this is moved without a copy */
#define FILES_AHEAD_BYTES MIB                   /* bigger files are told to the kernel as read from end to end */
#define FILES_BIG_BYTES (64 * MIB)              /* of bigger files it is minded what of them stays in memory */
#define FILES_LOOK_BYTES (16 * MIB)             /* written between two looks whether memory still takes it */
#define FILES_PASSING_BYTES_MAX (16ull * 1024 * MIB) /* to look which parts of a file are in memory takes 4 ms per GiB */
#define FILES_GATHER_BYTES (32 * KIB)           /* answers are gathered up to this, then sent */
#define FILES_NAMES_BYTES_MAX (32 * MIB)        /* names of the directories that one walk is in */
#define FILES_BATCH_BYTES (256 * KIB)           /* names taken at a time from a directory that is being removed */
#define FILES_DEPTH_MAX 1024                    /* levels one walk goes down; each holds a descriptor */
#define FILES_OPEN_LEVELS 128                   /* of a removal: above them descriptors are closed, and found again */
#define FILES_LEVELS_MAX (1024 * KIB)           /* of a removal, which must get to the end of any nest; 40 bytes each */
#define FILES_WALK_PATH_BYTES (64 * KIB)        /* a path relative to where a walk began */
#define FILES_REREADS_MAX 1000                  /* of a directory that somebody fills while it is being removed */
#define FILES_METADATA_BYTES_MAX (16 * KIB)     /* of one entry: names and values; the rest is passed over */
#define FILES_METADATA_MAX 256                  /* attributes of one entry */
#define FILES_WATCHES_MAX 16384                 /* directories below one watched one */
#define FILES_SEEN_MAX 4096                     /* entries remembered that a look found before their event was read */
#define LISTEN_BACKLOG 128                      /* of a unix socket that the host listens on */
#define SOCKET_CONNECT_S 4                      /* for room in a backlog; the host gives up after 5 */
#define RELAY_BYTES (16 * KIB)                  /* on their way between the host and a unix socket, each way */
#define PIDS_MAX (4 * MIB)                      /* the kernel's PID_MAX_LIMIT */

#endif
