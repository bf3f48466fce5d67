"""Bounds of the program that serves `run_code`. Bytes are bytes, times seconds.

What runs in kernels is hostile to its sandbox only: the sandbox's own limits hold it. These keep the program itself
small and answering.
"""

from __future__ import annotations

HOST = "127.0.0.1"
PORT = 49999  # where E2B's SDKs look for it
ENVIRONMENT_HEADER = "sandpty-environment"  # the server adds it to every request: base64 of a JSON object
HEAD_BYTES_MAX = 1024 * 1024  # the environment of sandbox and template comes along in base64
BODY_BYTES_MAX = 32 * 1024 * 1024  # code comes in one piece
CONNECTIONS_MAX = 256
IDLE_TIMEOUT_S = 600.0  # a connection that asks nothing
CONTEXTS_MAX = 64  # each is a process of 70 MB
KERNEL_START_TIMEOUT_S = 60.0
KERNEL_END_TIMEOUT_S = 5.0  # between looks after a keeper that takes long to end its kernel
KERNEL_END_TRIES = 11
INTERRUPT_TIMEOUT_S = 5.0  # a kernel that has not stopped by then goes on in the background
OVERTAKEN_TIMEOUT_S = 5.0  # for what a kernel says after it said that it is idle: under load some milliseconds
PROBE_INTERVAL_S = 0.25  # between questions to a kernel that has not answered yet
KEEPALIVE_S = 30.0  # JavaScript clients give up after 300 s of silence
# A client that reads slower than the kernel writes: above the first the kernel is stopped, below the second it goes on.
PENDING_BYTES_HIGH = 4 * 1024 * 1024
PENDING_BYTES_LOW = 1024 * 1024
# A write of ours to a client; bigger lines go in pieces.
WRITE_BYTES = 256 * 1024
# In the kernel: of one representation of one result. More would be cut by nobody's wish.
RESULT_CHARACTERS_MAX = 32 * 1024 * 1024
DATA_CELLS_MAX = 200_000  # of a table whose cells go along as data
PIECE_CHARACTERS = 64 * 1024  # of output in one message, about
UNSENT_CHARACTERS_MAX = 1024 * 1024  # of output: whoever writes more waits until it is sent
UNSENT_PIECES_MAX = 200  # stretches of one stream, for who goes to and fro between the two
UNSENT_WAIT_S = 0.1  # between looks whether it is
FLUSH_INTERVAL_S = 0.02  # how long output is gathered before it is sent
