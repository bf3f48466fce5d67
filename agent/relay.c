/* Bytes between two sockets, both ways. Each way ends by itself, as its sender ends it; both, when nobody takes them. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "files.h"

struct way {
    int from, to;
    size_t first, last; /* of the bytes that are on the way */
    bool over;
    uint8_t bytes[RELAY_BYTES];
};

static bool must_wait(void) {
    return errno == EAGAIN || errno == EINTR;
}

static void move(struct way *way) {
    if (way->first == way->last) {
        ssize_t got = recv(way->from, way->bytes, sizeof way->bytes, MSG_DONTWAIT);
        if (got < 0 && must_wait()) return;
        if (got <= 0) {
            shutdown(way->to, SHUT_WR);
            way->over = true;
            return;
        }
        way->first = 0;
        way->last = (size_t)got;
    }
    ssize_t sent = send(way->to, way->bytes + way->first, way->last - way->first, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0) way->first += (size_t)sent;
    else if (!must_wait()) way->over = true;
}

_Noreturn void relay(int one, int other) {
    static struct way ways[2];
    bool hung_up[2] = {false, false};
    ways[0].from = ways[1].to = one;
    ways[0].to = ways[1].from = other;
    while (!ways[0].over || !ways[1].over) {
        struct pollfd watched[2] = {{.fd = one}, {.fd = other}};
        for (int i = 0; i < 2; i++) {
            if (ways[i].over) continue;
            if (ways[i].first < ways[i].last) watched[1 - i].events |= POLLOUT;
            else watched[i].events |= POLLIN;
        }
        for (int i = 0; i < 2; i++)
            if (hung_up[i] && !watched[i].events) watched[i].fd = -1; /* it would be said for ever */
        if (poll(watched, 2, -1) < 0 && errno != EINTR) break;
        for (int i = 0; i < 2; i++) hung_up[i] = hung_up[i] || (watched[i].revents & (POLLHUP | POLLERR));
        for (int i = 0; i < 2; i++) {
            if (ways[i].over) continue;
            move(&ways[i]);
            if (hung_up[1 - i]) ways[i].over = true; /* nobody takes it any more */
            if (ways[i].over) shutdown(ways[i].from, SHUT_RD);
        }
    }
    _exit(0);
}
