// A native client in C, so that the client is never what a benchmark measures.
//
//   ws_client HOST PORT PATH KEY terminal               this terminal on the attachment, as ssh does it (raw mode)
//   ws_client HOST PORT PATH KEY drain                  wait for READY, send a newline, drop output until EXIT; JSON
//   ws_client HOST PORT PATH KEY echo KEYS GAP_US LINE  as `pty_reader echo`, straight on the WebSocket
//
// docs/reference/protocol.md says what is on the wire. Frames to the server carry the mask 0, which leaves them as they are.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

#include "clock.h"

enum { INPUT = 0x20, ATTACHED = 0x91, OUTPUT = 0xA0, GAP = 0xA1, EXIT = 0xA3, ERROR = 0xFF };
enum { OUTPUT_HEADER = 1 + 1 + 8 }; // type, stream, offset
enum { WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

static const int KEY_TIMEOUT_MS = 5000;
static const int QUIET_MS = 15;
static int sock;
static uint8_t in[1024 * 1024];
static size_t in_start, in_end;
static unsigned long long gaps, next_offset, messages;

static void fail(const char *what) {
    fprintf(stderr, "ws_client: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void send_all(const void *data, size_t size) {
    for (const uint8_t *at = data; size;) {
        ssize_t n = send(sock, at, size, MSG_NOSIGNAL);
        if (n < 0) fail("send");
        at += n;
        size -= (size_t)n;
    }
}

static void send_message(int opcode, const void *data, size_t size) {
    uint8_t out[14 + 4096];
    size_t header = 2;
    if (size > 4096) fail("message too big");
    out[0] = (uint8_t)(0x80 | opcode);
    if (size < 126) {
        out[1] = (uint8_t)(0x80 | size);
    } else {
        out[1] = 0x80 | 126;
        out[2] = (uint8_t)(size >> 8);
        out[3] = (uint8_t)size;
        header = 4;
    }
    memset(out + header, 0, 4);
    memcpy(out + header + 4, data, size);
    send_all(out, header + 4 + size);
}

static void send_input(const void *data, size_t size) {
    uint8_t frame[9 + 2048];
    frame[0] = INPUT;
    memset(frame + 1, 0xFF, 8); // unnumbered
    memcpy(frame + 9, data, size);
    send_message(WS_BINARY, frame, 9 + size);
}

static void connect_to(const char *host, int port, const char *path, const char *key) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1;
    char request[4096];
    inet_pton(AF_INET, host, &a.sin_addr);
    sock = socket(AF_INET, SOCK_STREAM, 0);
    if (sock < 0 || connect(sock, (struct sockaddr *)&a, sizeof a) < 0) fail("connect");
    setsockopt(sock, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
                        "X-API-Key: %s\r\n\r\n",
                        path, host, port, key);
    send_all(request, (size_t)size);
    for (;;) {
        ssize_t n = recv(sock, in + in_end, sizeof in - in_end, 0);
        if (n <= 0) fail("no answer to the upgrade");
        in_end += (size_t)n;
        uint8_t *end = memmem(in, in_end, "\r\n\r\n", 4);
        if (!end) continue;
        if (in_end < 12 || memcmp(in + 9, "101", 3)) {
            fprintf(stderr, "ws_client: refused: %.*s\n", (int)in_end, (char *)in);
            exit(1);
        }
        in_start = (size_t)(end + 4 - in);
        return;
    }
}

// The next whole message that is here already: its opcode, or 0.
static int next_message(uint8_t **data, size_t *size) {
    size_t have = in_end - in_start, header = 2;
    uint8_t *at = in + in_start;
    if (have < 2) return 0;
    uint64_t length = at[1] & 0x7F;
    if (length == 126) {
        header = 4;
        if (have < 4) return 0;
        length = (uint64_t)at[2] << 8 | at[3];
    } else if (length == 127) {
        header = 10;
        if (have < 10) return 0;
        length = 0;
        for (int i = 2; i < 10; i++) length = length << 8 | at[i];
    }
    if (have < header + length) return 0;
    *data = at + header;
    *size = (size_t)length;
    in_start += header + (size_t)length;
    return at[0] & 0x0F;
}

// Read what is there; 0 at the end, -1 when nothing came within timeout_ms.
static int fill(int timeout_ms) {
    struct pollfd p = {.fd = sock, .events = POLLIN};
    if (timeout_ms >= 0 && poll(&p, 1, timeout_ms) <= 0) return -1;
    if (in_start == in_end) in_start = in_end = 0;
    if (in_start > sizeof in / 2) {
        memmove(in, in + in_start, in_end - in_start);
        in_end -= in_start;
        in_start = 0;
    }
    ssize_t n = recv(sock, in + in_end, sizeof in - in_end, 0);
    if (n < 0) fail("recv");
    in_end += (size_t)n;
    return n > 0;
}

static uint64_t u64_at(const uint8_t *at) {
    uint64_t v;
    memcpy(&v, at, 8);
    return v;
}

// Hands out the next OUTPUT that is here; 0: none, -1: EXIT or close.
static int next_output(uint8_t **data, size_t *size) {
    int opcode;
    while ((opcode = next_message(data, size))) {
        if (opcode == WS_PING) send_message(WS_PONG, *data, *size);
        if (opcode == WS_CLOSE) return -1;
        if (opcode != WS_BINARY || !*size) continue;
        switch ((*data)[0]) {
        case OUTPUT:
            messages++;
            if (u64_at(*data + 2) != next_offset) {
                fprintf(stderr, "ws_client: offset %llu where %llu was due\n", (unsigned long long)u64_at(*data + 2),
                        next_offset);
                exit(1);
            }
            *data += OUTPUT_HEADER;
            *size -= OUTPUT_HEADER;
            next_offset += *size;
            return 1;
        case GAP:
            gaps += u64_at(*data + 9) - u64_at(*data + 1);
            next_offset = u64_at(*data + 9);
            break;
        case ATTACHED:
            next_offset = u64_at(*data + 13);
            break;
        case EXIT:
            return -1;
        case ERROR:
            fprintf(stderr, "ws_client: ERROR %.*s\n", (int)(*size - 7), (char *)*data + 7);
            exit(1);
        }
    }
    return 0;
}

static void wait_ready(void) {
    static uint8_t seen[64 * 1024];
    size_t have = 0, size;
    uint8_t *data;
    for (;;) {
        int kind = next_output(&data, &size);
        if (kind < 0 || (kind == 0 && fill(20000) <= 0)) {
            fputs("ws_client: no READY\n", stderr);
            exit(1);
        }
        if (kind <= 0 || size > sizeof seen) continue;
        if (size > sizeof seen - have) have = 0;
        memcpy(seen + have, data, size);
        have += size;
        if (memmem(seen, have, "READY", 5)) return;
    }
}

static void until_quiet(void) {
    uint8_t *data;
    size_t size;
    do {
        while (next_output(&data, &size) > 0) {
        }
    } while (fill(QUIET_MS) > 0);
}

static void drain(void) {
    uint8_t *data;
    size_t size;
    int kind = 0;
    wait_ready();
    until_quiet();
    unsigned long long bytes = 0;
    messages = 0;
    double cpu = cpu_s(), start = now_s();
    send_input("\n", 1);
    while (kind >= 0) {
        while ((kind = next_output(&data, &size)) > 0) bytes += size;
        if (kind == 0 && fill(-1) <= 0) {
            fputs("ws_client: the connection ended before EXIT\n", stderr);
            exit(1);
        }
    }
    printf("{\"bytes\": %llu, \"seconds\": %.6f, \"cpu_s\": %.6f, \"messages\": %llu, \"gap_bytes\": %llu}\n", bytes,
           now_s() - start, cpu_s() - cpu, messages, gaps);
}

static void type_key(char key) {
    uint8_t *data;
    size_t size;
    double start = now_s();
    send_input(&key, 1);
    for (;;) {
        int kind = next_output(&data, &size);
        if (kind > 0 && memchr(data, key, size)) break;
        if (kind < 0 || (kind == 0 && fill(KEY_TIMEOUT_MS) <= 0)) {
            fprintf(stderr, "ws_client: the key '%c' did not come back\n", key);
            exit(1);
        }
    }
    printf("%.1f\n", (now_s() - start) * 1e6);
}

static void echo(int keys, long gap_us, int line) {
    wait_ready();
    until_quiet();
    for (int i = 0; i < keys; i++) {
        type_key((char)('a' + i % 26));
        if (line && (i + 1) % line == 0) {
            send_input("\x15", 1);
            until_quiet();
        }
        sleep_us(gap_us);
    }
}

static struct termios before;

static void restore(void) { tcsetattr(0, TCSANOW, &before); }

static void terminal(void) {
    uint8_t *data, typed[2048];
    size_t size;
    if (tcgetattr(0, &before) == 0) {
        struct termios raw = before;
        cfmakeraw(&raw);
        tcsetattr(0, TCSANOW, &raw);
        atexit(restore);
    }
    for (;;) {
        int kind;
        while ((kind = next_output(&data, &size)) > 0) {
            if (write(1, data, size) != (ssize_t)size) fail("write");
        }
        if (kind < 0) return;
        struct pollfd p[2] = {{.fd = 0, .events = POLLIN}, {.fd = sock, .events = POLLIN}};
        if (poll(p, 2, -1) < 0) fail("poll");
        if (p[0].revents) {
            ssize_t n = read(0, typed, sizeof typed);
            if (n <= 0) return;
            send_input(typed, (size_t)n);
        }
        if (p[1].revents && fill(-1) <= 0) return;
    }
}

int main(int argc, char **argv) {
    if (argc < 6) {
        fputs("usage: ws_client HOST PORT PATH KEY terminal|drain|echo ... (see the source)\n", stderr);
        return 2;
    }
    connect_to(argv[1], atoi(argv[2]), argv[3], argv[4]);
    if (!strcmp(argv[5], "terminal")) {
        terminal();
    } else if (!strcmp(argv[5], "drain")) {
        drain();
    } else if (!strcmp(argv[5], "echo") && argc == 9) {
        echo(atoi(argv[6]), atol(argv[7]), atoi(argv[8]));
    } else {
        return 2;
    }
    return 0;
}
