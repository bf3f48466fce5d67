"""Every limit and default of the Python programs, in one place: name, unit, reason.

The agent's own limits are in agent/limits.h.
"""

from __future__ import annotations

from typing import Final

from sandpty.data_dir import DataDir, default_data_dir

__all__ = ("DataDir", "default_data_dir")  # beside everything that is defined here

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 3980
DEFAULT_TLS_PORT: Final = 443  # what clients take who are told a name without a port

# --- terminals -------------------------------------------------------------------------------------------------------
ATTACH_WINDOW_BYTES: Final = 128 * 1024  # unacknowledged output per attachment; bounds stale output after Ctrl-C
ACK_DELAY_S: Final = 0.02  # of what is less than ACK_EVERY_BYTES: nothing waits for it
ACK_EVERY_BYTES: Final = 32 * 1024  # a quarter of the window: a client that keeps up never makes the agent wait
SIGNAL_MAX: Final = 64  # SIGRTMAX
PROCESS_LOG_MAX_BYTES: Final = 64 * 1024 * 1024  # the agent keeps all logs of a sandbox within the same bound
WAIT_DEFAULT_S: Final = 60  # GET .../wait without timeout_s
WAIT_MAX_S: Final = 3600
WS_CLOSE_TEXT_BYTES: Final = 123  # RFC 6455: a control frame holds 125 bytes, two are the code
AGENT_BUFFER_BYTES: Final = 256 * 1024  # frames read from an agent but not yet consumed; above it reading pauses
AGENT_FRAMES_PER_TURN: Final = 32  # frames taken from one agent before others get a turn of the event loop
AGENT_CLOSE_GRACE_S: Final = 5.0  # for input already typed, when an agent is slow to take it as we leave
AGENT_RESCUE_READS: Final = 16  # of 64 KiB after a connection broke; a unix socket's buffer holds a quarter of that
PROCESSES_LISTED_MAX: Final = 4096  # one listing; an agent keeps far fewer
PROCESSES_LISTED_BYTES: Final = 8 * 1024 * 1024  # of arguments and environments in one listing
AGENT_CONNECT_TIMEOUT_S: Final = 5.0  # an agent accepts in microseconds; longer means it is frozen or gone
AGENT_REPLY_TIMEOUT_S: Final = 15.0  # control requests; killing a big tree is the slowest
CLIENT_SEND_BUFFER_BYTES: Final = 128 * 1024  # kernel send buffer per client connection: little goes stale in it
CLIENT_UNSENT_BYTES: Final = 16 * 1024  # per WebSocket, in our transport and again unsent in the kernel
CLIENT_WRITE_HIGH_BYTES: Final = 64 * 1024  # our transport's high-water mark per client connection
WS_CLOSE_TIMEOUT_S: Final = 30.0  # for a slow client to take what is left and say goodbye
WS_FIRST_MESSAGE_S: Final = 10.0  # until a client that wants a process started has said which
WS_HEARTBEAT_S: Final = 25.0  # below the 60 s at which common proxies cut idle connections
E2B_KEEPALIVE_S: Final = 90.0  # when the client asks for no interval (E2B's own default)
E2B_DEADLINE_GRACE_S: Final = 2.0  # the agent kills at the deadline and says so; this much later the stream ends anyway
END_NOTICE_S: Final = 5.0  # between an agent's death and the supervisor's word that the sandbox has ended
END_NOTICE_POLL_S: Final = 0.02
E2B_HANDOVER_S: Final = 0.05  # how long a new viewer waits for an old connection that may be about to close
E2B_HANDOVER_POLL_S: Final = 0.005
E2B_CUT_WAIT_S: Final = (
    0.06  # before a stream is reset, for its client's host to acknowledge: Linux delays that by 40 ms
)
E2B_CUT_POLL_S: Final = 0.005
DELIVERY_POLL_MIN_S: Final = 0.005  # how soon to look again whether TCP has delivered what was written ...
DELIVERY_POLL_MAX_S: Final = 0.25  # ... and how seldom at a client that takes nothing
DELIVERY_MARKS: Final = 256  # events remembered until TCP has delivered them; above it the newest are merged

# --- Hyperbrowser's API ----------------------------------------------------------------------------------------------
RUNTIME_TOKEN_S: Final = 600  # its SDKs fetch a new one when less than 60 s are left
ENDED_SANDBOXES_KEPT: Final = 1000  # that clients may still ask about
HYPERBROWSER_TIMEOUT_MIN: Final = 30  # life of a sandbox whose creator names none
HYPERBROWSER_LIST_PAGE: Final = 10  # the Python SDK's own default
HYPERBROWSER_LOG_BYTES: Final = 8 * 1024 * 1024  # a terminal's: what a client buffers before a cut is there after it
HYPERBROWSER_REATTACH_S: Final = 30.0  # how long a flood waits for a viewer that was cut off
HYPERBROWSER_FIRST_OUTPUT_S: Final = 2.0  # a new terminal that is asked for its output may take to say something
HYPERBROWSER_WAIT_S: Final = 30.0  # of `wait` without a timeout; the SDKs themselves give up after that
HYPERBROWSER_SETTLE_S: Final = 10.0  # for input to reach its program after the client has closed
HYPERBROWSER_CLOSE_S: Final = 300.0  # for a slow client to take what is left before its exit frame, and say goodbye
HYPERBROWSER_DEAD_S: Final = 60.0  # for TCP to have what was sent acknowledged by a client's host
HYPERBROWSER_PROCESS_LOG_BYTES: Final = 16 * 1024 * 1024  # a command's whole output, for who asks after its end
HYPERBROWSER_REPLAY_BYTES: Final = 2 * 1024 * 1024  # asked for by number; the vendor's tests expect less than 3 MiB
HYPERBROWSER_EXEC_STDERR_BYTES: Final = 8 * 1024 * 1024  # held while Node's exec is sent stdout as it comes
HYPERBROWSER_EVENTS_NUMBERED: Final = 65_536  # per process: 1 MiB of offsets
HYPERBROWSER_LEDGERS_KEPT: Final = 1024  # processes whose numbers are remembered
HYPERBROWSER_KEEPALIVE_S: Final = 15.0  # of a silent process's stream; Python gives up after 60 s
HYPERBROWSER_LISTENING_S: Final = 10.0  # for a new client to answer a ping; one that answers none is believed to listen
HYPERBROWSER_WRITE_BYTES: Final = 64 * 1024 * 1024  # one JSON body with the content of files; uploads have no limit
HYPERBROWSER_PRESIGNED_S: Final = 3600  # a presigned URL's life when none is asked for ...
HYPERBROWSER_PRESIGNED_MAX_S: Final = 7 * 24 * 3600  # ... and the longest
HYPERBROWSER_USED_URLS_KEPT: Final = 10_000  # used one-time URLs remembered before expired ones are forgotten
HYPERBROWSER_WATCH_EVENTS: Final = 1000  # kept per watch for who asks or comes back
HYPERBROWSER_WATCH_KEPT_S: Final = 300.0  # a watch that has ended by itself can be asked about
PORT_GRANT_S: Final = 600  # a browser's way into an exposed port, once it was told
PORT_COOKIE_S: Final = 24 * 3600  # how long the browser stays in
HYPERBROWSER_RESIZE_S: Final = 0.5  # how long a question about a terminal waits for a resize on its way there
CHARACTER_S: Final = 0.02  # how long the first bytes of a character wait for its last ones

# --- ssh -------------------------------------------------------------------------------------------------------------
SSH_LOGIN_S: Final = 30.0  # from the connection to who it is; a person types a password meanwhile
SSH_LOGINS_MAX: Final = 64  # connections that have not said who they are: each may cost a key exchange, 2 ms
SSH_LOGINS_PER_ADDRESS: Final = 16  # of those, from one address
SSH_PENALTY_S: Final = 1.0  # that they keep their place, when they leave without having said it
SSH_LOGIN_TRIES: Final = 8  # keys and passwords of one connection; an ssh client offers every key it has
SSH_LOGIN_PAUSE_S: Final = 0.5  # before a wrong password is answered
SSH_GOODBYE_S: Final = 1.0  # for a client to take the last words of a connection that is cut
SSH_CONNECTIONS_MAX: Final = 1024  # logged in; each holds a descriptor and some 200 KB
SSH_CONNECTIONS_PER_TEAM: Final = 512  # of those
SSH_TURN_S: Final = 0.002  # of taking what one client sends, before others get theirs: a hundred small packets
SSH_UNREAD_BYTES: Final = 2 * 1024 * 1024  # answers a client has not taken; then no more questions are taken from it
SSH_DEFERRED_PACKETS: Final = 4096  # that wait for a client to finish its exchange of keys; one that asks on is cut
SSH_REQUESTS_WAITING: Final = 128  # of one connection, or channel, behind one that takes its time
SSH_SIGNALS_WAITING: Final = 16  # of one session; those beyond are dropped
SSH_PACKET_BYTES: Final = 32 * 1024  # of data a client may send at a time: OpenSSH's own
SSH_PACKET_MIN_BYTES: Final = 1024  # a client must take at a time: each packet takes the same time, however small
SSH_PIECE_BYTES: Final = 16 * 1024  # what came in smaller pieces is put together while it waits: each costs 100 bytes
SSH_PIECES_WAITING: Final = 256  # that were delivered, and not read
SSH_CHANNELS_MAX: Final = 256  # of one connection: a browser behind `ssh -D` opens dozens
SSH_WIDE_CHANNELS: Final = 16  # of one connection, with the windows below; the next ones have ...
SSH_NARROW_WINDOW_BYTES: Final = 64 * 1024  # ... this: all that waits of one connection is some 32 MiB
SSH_LISTENERS_MAX: Final = 16  # `ssh -R` of one connection
SSH_WINDOW_BYTES: Final = 1024 * 1024  # a client may send so much that the program has not read
SSH_FORWARD_WINDOW_BYTES: Final = 256 * 1024  # the same, of each forwarded connection
SSH_FORWARD_READ_BYTES: Final = 64 * 1024  # read at a time from what is forwarded
SSH_TERMINAL_WINDOW_BYTES: Final = 256 * 1024  # unacknowledged output of a terminal: two of OpenSSH's steps, below
SSH_TERMINAL_AHEAD_BYTES: Final = 128 * 1024  # output a terminal's client need not have taken yet: OpenSSH says what
# it took every 96 KiB. With the attachment's window this bounds stale output after Ctrl-C; the client's own is 2 MiB
SSH_ACK_EVERY_BYTES: Final = 32 * 1024  # of a terminal, without waiting for a timer
SSH_STALL_S: Final = 30.0  # how long a flood in a terminal waits for a client that takes nothing
SSH_SEEN_KEPT: Final = 10_000  # terminals of which is remembered how far somebody saw them
SSH_KEEPALIVE_S: Final = 15.0  # between questions whether a client lives; three without an answer end it
SSH_ENV_VARIABLES: Final = 64  # that a client may send along ...
SSH_ENV_BYTES: Final = 32 * 1024  # ... and their size
SSH_COMMAND_S: Final = 20.0  # for a small command of ours in a sandbox: resolving a name, a hard link
SSH_COMMAND_OUTPUT_BYTES: Final = 64 * 1024
SSH_ACCEPT_RETRY_S: Final = 1.0  # after no connection could be accepted: descriptors may be short
SSH_AGENT_CHANNELS_MAX: Final = 8  # to the agent of one connection's client at once; each `ssh-add` and `git` takes one
SSH_AGENT_WINDOW_BYTES: Final = 64 * 1024  # a client's agent may answer so much that nobody has read
SSH_AGENT_BYTES: Final = 4 * 1024 * 1024  # either way over one channel; OpenSSH's longest message is 256 KiB
SSH_CERTIFICATE_S: Final = 12 * 3600  # what `sandpty ssh` and `ssh-config` log in with; they renew it
SSH_CERTIFICATE_SKEW_S: Final = 300  # the clocks of client and server may differ by
SSH_KEYS_PER_KEY: Final = 32  # public keys registered with one API key
SSH_KEY_CHARACTERS: Final = 16 * 1024  # of one public key; RSA with 16384 bits takes 2.8 KB
SFTP_HANDLES_MAX: Final = 256  # files and directories one client has open
SFTP_STREAMS_MAX: Final = 4  # of those, with a connection into the sandbox; the others get one when they are used
SFTP_IDLE_S: Final = 1.0  # then one that is not used is given back: all of a sandbox's share FILE_CONNECTIONS_MAX
SFTP_READ_BYTES: Final = 256 * 1024  # of one request; OpenSSH asks for 32 KiB
SFTP_AHEAD_BYTES: Final = 4 * 1024 * 1024  # asked for in one go of a file that is read in order
SFTP_FIRST_AHEAD_BYTES: Final = 256 * 1024  # the first time; doubled each time the reader goes on in order

# --- files -----------------------------------------------------------------------------------------------------------
FILE_SOCKET_BYTES: Final = 512 * 1024  # kernel buffer of a files connection: the guest's disk works while we send
FILE_SMALL_BYTES: Final = 32 * 1024  # content frames up to this are received together with what follows
FILES_LISTED_MAX: Final = 100_000  # entries of one listing; each takes about a kilobyte while it is here
FILE_CONNECTIONS_MAX: Final = 24  # per sandbox, for requests; the agent has places for 64. More wait for their turn
FILE_WATCHES_MAX: Final = 32  # per sandbox; each holds a connection as long as it lasts
FILE_CONNECTIONS_IDLE: Final = 4  # per sandbox and user, kept for the next request: a new one costs a fork, 1 ms
FILE_CONNECTION_IDLE_S: Final = 30.0  # then an idle one goes: it is a process of the sandbox
FILE_ACCOUNTS_KEPT: Final = (
    64  # users of the guest that a connection has looked up: it need not ask again, only compare
)
FILES_UMASK: Final = 0o022  # of what is made through the file API, as of processes

# --- requests --------------------------------------------------------------------------------------------------------
LISTEN_BACKLOG: Final = 1024  # connections the kernel completes before we accept them
HTTP_KEEPALIVE_S: Final = 75.0  # idle connections; the SDKs keep theirs for 4 s (undici) to 300 s (httpx)
HTTP_FIRST_REQUEST_S: Final = 30.0  # for a new connection to say its first request's head
HTTP_LINE_BYTES: Final = 32 * 1024  # request line or header: metadata filters are percent-encoded three times
SHUTDOWN_GRACE_S: Final = 1.0  # streams do not end by themselves: a server that stops cuts them soon
REQUEST_BODY_TIMEOUT_S: Final = 60.0  # from the head to the end of a body that is not a stream
REQUEST_BODY_BYTES: Final = 1024 * 1024  # JSON bodies; the largest legitimate one is a Start with a big environment
ENVELOPE_BYTES: Final = 4 * 1024 * 1024  # one Connect envelope (base64 of the largest INPUT fits)
INPUT_CHUNK_BYTES: Final = 512 * 1024  # larger input is split into several INPUT frames
LIST_PAGE_MAX: Final = 100  # E2B's page limit
QUERY_FIELDS_MAX: Final = 64  # of a query that names files; the longest has nine
TIMEOUT_MAX_S: Final = 30 * 24 * 3600  # longest life of a sandbox without renewal
SANDBOX_TIMEOUT_S: Final = 300  # E2B's v2 default
SANDBOX_TIMEOUT_V1_S: Final = 15  # E2B's v1 default
FORK_MAX: Final = 100  # children of one fork; E2B's clients ask for 20 at most
IDEMPOTENCY_KEY_CHARACTERS: Final = 256
AUTO_RESUME_TIMEOUT_S: Final = 300  # E2B: the life of a sandbox that traffic has woken
SANDBOXES_MAX: Final = 2000  # per host, before memory says no
METADATA_BYTES: Final = 64 * 1024  # per sandbox: metadata and environment

# --- files over HTTP -------------------------------------------------------------------------------------------------
FILE_STALL_S: Final = 120.0  # a transfer that does not move for so long is given up: it holds a connection to the guest
FILE_POUR_BYTES: Final = 1024 * 1024  # downloads from this size on are moved by the kernel, past our own memory
FILE_CLIENT_BUFFER_BYTES: Final = 1024 * 1024  # kernel send buffer of a client's connection meanwhile
FILE_DRAIN_POLL_S: Final = 0.001  # how soon to look again whether a transport has sent what it holds
FILE_FIRST_BYTES: Final = 32 * 1024  # read before the answer's head: what ends by then tells its true length
FILE_GZIP_LEVEL: Final = 1  # the link is rarely slower than the compressor at higher ones
MULTIPART_BOUNDARY_BYTES: Final = 200  # RFC 2046 allows 70
MULTIPART_HEAD_BYTES: Final = 16 * 1024  # headers of one part: a path of 4 KiB, escaped, fits
UPLOAD_FILES_MAX: Final = 10_000  # of one multipart body; their paths are remembered and answered
COMPOSES_IN_PARALLEL: Final = 4  # each holds two files connections, and waits for the second holding the first
COMPOSE_SOURCES_MAX: Final = 10_000  # files joined into one by one request
WATCH_MESSAGE_BYTES: Final = 1024  # from a native client: the one word it may say has four
WATCHER_IDLE_S: Final = 3600.0  # a polled watcher nobody asks is removed: it is a process of the sandbox

# --- supervisor ------------------------------------------------------------------------------------------------------
SUPERVISOR_START_TIMEOUT_S: Final = 30.0  # its probe runs a canary sandbox first
SUPERVISOR_REPLY_TIMEOUT_S: Final = 60.0  # a create under full load
SUPERVISOR_RETRY_MIN_S: Final = 0.1  # between attempts to reach a supervisor that is being restarted
SUPERVISOR_RETRY_MAX_S: Final = 2.0
POOL_SIZE: Final = 4  # warm sandboxes kept per template: claim -> prompt is 2 ms instead of 15
CREATES_IN_PARALLEL: Final = 4  # cold starts at once: more only fight over the cgroup locks
EVENTS_QUEUED_MAX: Final = 10_000  # per watching connection; one that is further behind is cut off and lists again
SUPERVISOR_CONNECTIONS_MAX: Final = 64  # there is one server; more is a mistake
SUPERVISOR_CONNECTIONS_OF_ROOT: Final = 8  # besides: `sandpty down`, and whoever looks
LIST_PAGE_BYTES: Final = 2 * 1024 * 1024  # of sandboxes in one answer, half a message: one of them fits in any case
SUPERVISOR_REQUESTS_MAX: Final = 512  # unanswered per connection; above it reading pauses
SNAPSHOTS_MAX: Final = 500  # per team, forks under way included
SNAPSHOTS_BYTES_MAX: Final = 256 * 1024**3  # per team, as they lie on the disk
SNAPSHOT_TEMPORARY_S: Final = 300.0  # a fork's copy: as long as the children may take to be made
COPIES_DEEP_MAX: Final = 32  # snapshots of sandboxes from snapshots of ...: each costs a mount at every start
COPIES_MOUNTED_MAX: Final = 256  # more than all creates at once can stand on (COPIES_DEEP_MAX * CREATES_IN_PARALLEL)
LAID_TOGETHER_USES: Final = 2  # sandboxes of one template from which on its copies are made one
COPIES_IN_PARALLEL: Final = 2  # disks being copied: more only fight over the disk
DISK_RESERVE_BYTES: Final = 512 * 1024 * 1024  # for what sandboxes write until they are paused, and our own records ...
DISK_RESERVE_SHARE: Final = 0.1  # ... but no more of a small disk
DISK_FREE_MIN_BYTES: Final = 128 * 1024 * 1024  # above the reserve; with less no sandbox is made
ROOM_PERIOD_S: Final = 5.0  # between looks how full the disk is; one takes microseconds ...
ROOM_PERIOD_MIN_S: Final = 0.1  # ... and they come the more often the less there is
ROOM_FILLED_BYTES_S: Final = 2 * 1024**3  # what all sandboxes together may write in a second
ROOM_WRITING_BYTES: Final = 1024 * 1024  # who writes so much while the reserve is used is paused
AGENT_BACKLOG: Final = 512  # connections that wait while the agent boots or is frozen
RUNTIME_TIMEOUT_S: Final = 30.0  # one call of the OCI runtime; it takes 10 ms
STOP_TIMEOUT_S: Final = 15.0  # from SIGKILL to the end of the last process
SLOTS_READY: Final = 6  # namespaces and veth pairs made before they are needed: 3 ms less per cold start
UID_BASE: Final = 200_000  # guest uid 0 on the host; each sandbox gets the next range
UID_RANGE: Final = 65_536
SERVER_ACCOUNT: Final = "sandpty"  # the server drops to it when it exists ...
SERVER_UID: Final = 61_980  # ... else to this number, out of systemd's dynamic range

# --- volumes ---------------------------------------------------------------------------------------------------------
VOLUMES_MAX: Final = 200  # per team; a record and a sparse file each
VOLUME_DISK_MB: Final = 10_240  # what a volume can hold when nobody says; a sparse file takes what is in it
VOLUMES_DISK_MB_MAX: Final = 2 * 1024 * 1024  # what all volumes of a team can hold together
VOLUME_MOUNTS_MAX: Final = 16  # per sandbox: each costs a mount at every start, 1 ms
VOLUMES_IN_PARALLEL: Final = 2  # made or grown at once: each takes one of the few threads that creates need too
VOLUME_UID_BASE: Final = 2_100_000_000  # the disk's number for a guest's uid 0: beyond every range of a sandbox
VOLUME_USER: Final = 1000  # the guest's `user`: owns a new volume and what is written without a sandbox
VOLUME_OPEN_S: Final = 60.0  # how long a volume's files are served after somebody asked for them
VOLUME_TOKEN_S: Final = 30 * 24 * 3600  # of a volume's own token: E2B's `Volume` objects get no new one

# --- metrics, history ------------------------------------------------------------------------------------------------
METRICS_PERIOD_S: Final = 5.0  # E2B's own
METRICS_GAP_S: Final = 0.5  # less is too short to measure CPU in
METRICS_SAMPLES_MAX: Final = 512  # kept per sandbox: 40 minutes at the full rate, longer ones thinned out with age
METRICS_IDS_PER_CALL: Final = 500  # keeps the supervisor's answers far below its message limit
METRICS_BATCH_MAX: Final = 100  # sandboxes in one request for the latest samples
LOG_LINES_MAX: Final = 1000  # in one answer; E2B's own
LOG_TIME_MAX_MS: Final = 253_402_300_799_999  # the year 9999
LOG_TEXT_CHARACTERS: Final = 1000  # of a command line in a log line: guests choose it
JOURNAL_BYTES: Final = 4 * 1024 * 1024  # of each of its two files: some 20,000 events
ENDED_BYTES: Final = 2 * 1024 * 1024  # of each of the two files of ended sandboxes, and of one answer about them
HISTORY_ENTRIES_MAX: Final = 10_000  # in one answer of the supervisor; about 2.5 MB

# --- keys ------------------------------------------------------------------------------------------------------------
KEYS_MAX: Final = 1000  # the server keeps them all in memory and is told all of them at each change
KEYS_REVOKED_KEPT: Final = 100  # records of revoked keys, for `sandpty keys list --all`
KEY_NAME_CHARACTERS: Final = 64


# --- templates and the code interpreter ------------------------------------------------------------------------------
POOL_TEMPLATE_MAX: Final = 100  # warm sandboxes of one template that the operator may ask for
POOL_STARTED_SIZE: Final = 2  # at most so many warm sandboxes of a template whose program runs already: 55 MB each
TREE_UNUSED_S: Final = 7 * 86_400.0  # a tree of a template that nobody needs is kept so long after it was built
INTERPRETER_START_TIMEOUT_S: Final = 20.0  # until it listens; its kernel starts after that
INTERPRETER_POLL_S: Final = 0.01  # between looks whether it listens

# --- built templates -------------------------------------------------------------------------------------------------
READY_TIMEOUT_S: Final = 50.0  # for the ready command of a new sandbox; clients give a create 60 s
READY_SLEEP_MAX_S: Final = 2.0  # of a ready command that only sleeps, after the build, which has slept it whole
READY_POLL_MIN_S: Final = 0.02  # between attempts of the ready command ...
READY_POLL_MAX_S: Final = 0.5  # ... of which each is a process
BUILDS_MAX: Final = 20  # per team, under way or waiting for their turn; E2B's own
BUILDS_AT_ONCE_PER_TEAM: Final = 2  # each is a sandbox that works as hard as it can
BUILDS_AT_ONCE: Final = 4  # of all teams
BUILD_TIMEOUT_S: Final = 3600.0  # one build, waiting for its turn not counted
BUILD_TOLD_S: Final = 30.0  # for a supervisor that is starting again to write down why a build has failed
BUILD_READY_TIMEOUT_S: Final = 300.0  # for the ready command when the template is built; E2B's own
BUILD_STEPS_MAX: Final = 500
BUILD_STEP_SHOWN: Final = 500  # characters of a step's text in a log line
BUILD_LOG_BYTES: Final = 4 * 1024 * 1024  # of what steps say; the server holds it while the build goes on
BUILD_LOG_LINES: Final = 50_000
BUILD_LINE_CHARACTERS: Final = 8192  # a line that is longer becomes several, a message that is longer is cut
BUILD_LOG_KEPT_S: Final = 30 * 86_400.0
BUILD_LOG_PAGE: Final = 100  # entries in one answer; E2B's own, which its SDKs count on
BUILD_TAIL_LINES: Final = 20  # of a failing step's output, told again with the reason
BUILD_REASON_CHARACTERS: Final = 8192  # of why a build failed
START_SEEN_S: Final = (
    2.0  # a start command that fails so soon fails the build; and for the last words of one that failed
)
UPLOAD_BYTES_MAX: Final = 4 * 1024**3  # one archive of files to copy
UPLOADS_BYTES_MAX: Final = 16 * 1024**3  # per team; the least lately used go
UPLOAD_LINK_S: Final = 3600.0  # how long a link to upload to is good; E2B's SDKs give an upload as long
UPLOADS_AT_ONCE: Final = 16  # per team; others of it wait
UPLOAD_TURN_S: Final = 600.0  # for its turn
ECR_TIMEOUT_S: Final = 30.0  # for AWS's answer to who asks for a password of its registry ...
ECR_ANSWER_BYTES: Final = 64 * 1024  # ... which is 2 KB long
ECR_REFUSAL_CHARACTERS: Final = 300
TEMPLATES_MAX: Final = 500  # records per team; a list of all of them is one answer of the supervisor
TEMPLATES_OF_ALL_MAX: Final = 10_000  # all are in the supervisor's memory
TEMPLATE_BUILDS_KEPT: Final = 50  # per template: older ones without a tag are forgotten
TEMPLATE_TAGS_MAX: Final = 200  # per template; and so many earlier assignments of them are remembered
TAG_GROUPS_PAGE: Final = 25  # tags in one answer; these three are E2B's own
TAG_GROUP_ASSIGNMENTS: Final = 6  # of each tag in it
TAG_ASSIGNMENTS_PAGE: Final = 50
LAYERS_MAX: Final = 2000  # per team, kept for builds to come
LAYERS_BYTES_MAX: Final = 64 * 1024**3  # per team, of those that are kept for builds to come
LAYER_UNUSED_S: Final = 14 * 86_400.0  # then nobody will build on it, or copy the files of an upload, any more
LAYER_HELD_S: Final = 600.0  # a build goes on with its layer so soon, or has it written down: see BUILD_READY_TIMEOUT_S
LAYER_TOUCH_S: Final = 3600.0  # how well it is remembered on the disk when a layer was last asked for
LAYER_SEAL_TIMEOUT_S: Final = 900.0  # for a layer to be kept: written out, and perhaps merged with those below
LAYERS_DEEP_MAX: Final = 8  # of one build before they are merged: each is a mount at every start
TEMPLATE_DEFAULTS_BYTES: Final = 16 * 1024  # environment and commands of a build: each of its sandboxes carries them
TEMPLATE_RECORD_BYTES: Final = 2 * 1024 * 1024  # of one record; the environments of its builds are most of it

# --- images ----------------------------------------------------------------------------------------------------------
IMAGE_MANIFEST_BYTES: Final = 4 * 1024 * 1024  # a manifest, index or configuration; registries take no larger ones
IMAGE_LAYERS_MAX: Final = 256  # Docker makes 127 at most
IMAGE_BLOBS_BYTES: Final = 32 * 1024**3  # packed, together; the largest ones in use hold CUDA and take 10 GiB
IMAGE_TREE_BYTES: Final = 64 * 1024**3  # unpacked, all layers together: what decompression bombs run into
IMAGE_ENTRIES_MAX: Final = 2_000_000  # of all layers together; an inode each. A large Python image has 150,000
IMAGE_NAME_BYTES: Final = 4095  # of an entry's path: the kernel's PATH_MAX
IMAGE_DEPTH_MAX: Final = 256  # directories above an entry: what removes a tree again walks down them
IMAGE_MEMORY_BYTES: Final = 1536 * 1024**2  # address space of what unpacks; 2 million names take 300 MB
IMAGE_INSPECT_TIMEOUT_S: Final = 60.0  # for a registry to tell its manifest
IMAGE_STALL_S: Final = 120.0  # a pull or an unpacking that makes no progress for so long is given up ...
IMAGE_STALL_BYTES: Final = (
    64 * 1024
)  # ... which is, of a pull, less than this: who drips bytes would hold a turn for hours
IMAGE_IMPORT_S: Final = 4 * 3600.0  # the whole of an import; 32 GiB at 20 Mbit/s
IMAGE_PROGRESS_S: Final = 0.25  # between words of how far it is
IMAGE_NOTICES_MAX: Final = 20  # about what was left out; the rest is counted
IMAGE_SKEL_FILES_MAX: Final = 32  # copied from an image's /etc/skel into the home of `user` ...
IMAGE_SKEL_FILE_BYTES: Final = 64 * 1024  # ... each of at most this size
IMAGE_ACCOUNTS_BYTES: Final = 4 * 1024 * 1024  # of an image's /etc/passwd and its like
IMAGES_UID: Final = 61_982  # the first account of what talks to registries; nobody else's ...
IMAGES_UIDS: Final = 16  # ... one for each pull of this host
IMPORTS_IN_PARALLEL: Final = 4  # as many as builds: one that pulls from a slow registry holds up no other build
IMPORTS_MAX: Final = 32  # under way or waiting
IMAGES_BYTES_MAX: Final = 512 * 1024**3  # of all images together, as they lie on the disk
IMAGE_HELD_S: Final = 600.0  # an image that was just imported is kept so long, until a template refers to it
IMAGE_UNUSED_S: Final = 7 * 86_400.0  # an image that nothing refers to is kept so long after its import

# --- ports -----------------------------------------------------------------------------------------------------------
GUEST_SOCKET_REQUESTS_MAX: Final = 64  # unanswered at the supervisor; the others wait their turn in the server
GUEST_SOCKET_TIMEOUT_S: Final = 10.0  # one answer of the supervisor's; it takes a tenth of a millisecond
GUEST_CONNECT_TIMEOUT_S: Final = 5.0  # a listener in the guest whose queue is full does not answer
SPARE_SOCKETS: Final = 8  # kept ready in the network of a sandbox whose ports are in use
SPARE_SOCKETS_SANDBOXES_MAX: Final = 64  # sandboxes that have some; a socket is a descriptor
GUEST_PORTS_REMEMBERED_MAX: Final = 4096  # at which of a guest's addresses a port was found
GUEST_LISTEN_BACKLOG: Final = 128  # of sockets that listen in a guest for somebody outside
PORT_TUNNELS_PER_SANDBOX_MAX: Final = 256  # native ones under way: each holds two descriptors
PORT_TUNNEL_KEEPALIVE_S: Final = 30  # between the kernel's questions to a silent client; after three it is dead
PORT_RETRY_PAUSES_S: Final = (0.1, 0.2, 0.3, 0.4)  # between attempts while nothing listens: it may be starting (E2B's)
PORT_CONNECTIONS_PER_SANDBOX_MAX: Final = 512  # requests and tunnels under way: each holds two descriptors
PORT_CONNECTIONS_MAX: Final = 4096  # of all sandboxes together
PORT_READ_BYTES: Final = 128 * 1024  # from a service or a tunnel at a time; twice that waits at most for a slow side
PORT_HEAD_BYTES: Final = 64 * 1024  # of a service's answer; headers that are longer are an attack
PORT_HEADERS_MAX: Final = 256
PORT_HEAD_TIMEOUT_S: Final = 60.0  # from a head's first byte to its last
PORT_CLOSE_GRACE_S: Final = 10.0  # for a service to take the last of what was sent to it
DECODED_BUFFER_BYTES: Final = 64 * 1024  # of a compressed request body, decoded at a time
CERTIFICATE_TIMEOUT_S: Final = 60.0  # to make or renew one; it takes half a second
CERTIFICATE_CHECK_S: Final = 3600.0  # how often the server asks whether there is a new one
PORT_INTERIM_ANSWERS_MAX: Final = 8  # 100, 102 and 103 before the answer

# --- network policy: names and egress --------------------------------------------------------------------------------
EGRESS_UID: Final = 61_981  # of the process that resolves names and looks at connections; nobody else's
EGRESS_NEW_PER_S: Final = 500  # connections and questions of one sandbox to it; a browser makes some dozens
EGRESS_START_TIMEOUT_S: Final = 20.0  # it imports for half a second; more is a machine under full load
EGRESS_ANSWER_TIMEOUT_S: Final = 10.0  # for its word that it knows new rules
EGRESS_RETRY_MIN_S: Final = 0.1  # before it is started again after it died ...
EGRESS_RETRY_MAX_S: Final = 5.0  # ... and at most
EGRESS_CONNECTIONS_PER_GUEST: Final = 512  # through the process at once; beside its own no more than are left for all
EGRESS_OWN_PER_GUEST: Final = 16  # of these, that it gets whatever other sandboxes have taken
EGRESS_WIDE_PER_GUEST: Final = 32  # of these with full buffers; what comes after them is read in small pieces
EGRESS_CONNECTIONS_MAX: Final = 8192  # of all sandboxes beside their own: twice as many descriptors
EGRESS_OPENING_S: Final = 10.0  # for a client to say its ClientHello or request, and for a server to accept
EGRESS_SILENCE_S: Final = 0.3  # a client that says nothing this long may wait for its server to speak first
EGRESS_OPENING_BYTES: Final = 64 * 1024  # of a ClientHello or request head; the largest seen have 2 KiB and 16 KiB
EGRESS_CHUNK_BYTES: Final = 64 * 1024  # read at once; twice that is kept at most, per direction of a connection
EGRESS_NARROW_BYTES: Final = 4 * 1024  # the same for a guest's other connections
EGRESS_ADDRESSES_PER_GUEST: Final = 4096  # remembered of what its names stand for; the oldest go first
EGRESS_ADDRESS_GRACE_S: Final = 120.0  # that an address is good after its TTL: programs connect a little later
EGRESS_ORIGINAL_TIMEOUT_S: Final = 10.0  # for the supervisor to say where a connection was meant to go
NAMES_PENDING_PER_GUEST: Final = 64  # questions of one sandbox that wait for a resolver
NAMES_PENDING_MAX: Final = 512  # of all sandboxes
NAMES_CACHED_MAX: Final = 4096  # answers; one holds some hundred bytes
NAMES_TTL_MAX_S: Final = 300  # an answer is asked for again after that, whatever its TTL
NAMES_NEGATIVE_TTL_S: Final = 5  # of "there is none": short, somebody may be creating it
NAMES_SERVER_TIMEOUT_S: Final = 2.5  # one resolver's answer; then the next one is asked
NAMES_ROUNDS: Final = 2  # all resolvers are asked so often: a packet may be lost
NAMES_RECORDS_MAX: Final = 64  # taken from one answer
NAMES_ALIASES_MAX: Final = 16  # CNAMEs followed
NAMES_TCP_IDLE_S: Final = 10.0  # between questions on one TCP connection
EGRESS_ANSWER_S: Final = 60.0  # for a server to answer a ClientHello
EGRESS_FLUSH_S: Final = 5.0  # for a client to take the last of an answer before its connection is given up
EGRESS_TLS_BYTES: Final = 32 * 1024  # read at once of what is encrypted; asyncio would keep 256 KiB for each TLS end
EGRESS_INSPECTED_PER_GUEST: Final = 128  # connections whose TLS ends here: each holds TLS twice, some 330 KiB
EGRESS_INSPECTED_OWN_PER_GUEST: Final = 4  # of these, that it gets whatever other sandboxes have taken
EGRESS_INSPECTED_MAX: Final = 512  # of all sandboxes beside their own: 170 MiB
EGRESS_LEAVES_MAX: Final = 256  # certificates for hosts that requests are given headers for; one holds some 22 KiB
EGRESS_LEAVES_PER_S: Final = 20  # made for one sandbox, which may name hosts below a wildcard without end
EGRESS_LEAF_DAYS: Final = 7  # it is made anew with the process, or after half of that
EGRESS_AUTHORITY_DAYS: Final = 3650  # sandboxes keep its certificate as long as they live
EGRESS_TRUST_S: Final = 10.0  # for a sandbox to take its certificate; some milliseconds
EGRESS_BUNDLE_BYTES_MAX: Final = 4 * 1024 * 1024  # read of a sandbox's certificates; Debian's have 220 KiB
SECRETS_PER_TEAM_MAX: Final = 256  # all are in one file ...
SECRETS_OF_ALL_MAX: Final = 4096  # ... which is written anew with each change: 32 MiB, whoever invents teams
SECRET_NAME_CHARACTERS: Final = 128
