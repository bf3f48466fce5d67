/* Process trees, as /proc shows them. One look is a snapshot that may miss what was born meanwhile; whoever needs
 * completeness (the reaper) looks again until nothing is left. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

struct entry {
    pid_t pid, parent, group;
    bool dead, marked; /* dead: a zombie, which only its parent can help */
};

struct entries {
    struct entry *items;
    size_t count, capacity;
};

static bool read_entry(int proc, const char *name, struct entry *entry) {
    char path[32], line[512];
    snprintf(path, sizeof path, "%.20s/stat", name);
    int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false; /* it has ended meanwhile */
    ssize_t count = read(fd, line, sizeof line - 1);
    close(fd);
    if (count <= 0) return false;
    line[count] = 0;
    char *after = strrchr(line, ')'); /* a name may hold anything, also parentheses */
    if (!after || strlen(after) < 4) return false;
    char *at = after + 3; /* `) S 12 34`: state, parent, group */
    pid_t parent = (pid_t)strtol(at, &at, 10), group = (pid_t)strtol(at, &at, 10);
    *entry = (struct entry){atoi(name), parent, group, after[2] == 'Z' || after[2] == 'X', false};
    return true;
}

static bool read_entries(struct entries *entries) {
    DIR *proc = opendir("/proc");
    if (!proc) return false;
    for (struct dirent *item; (item = readdir(proc)) && entries->count < PIDS_MAX;) {
        if (item->d_name[0] < '1' || item->d_name[0] > '9') continue;
        if (entries->count == entries->capacity) {
            size_t capacity = entries->capacity ? entries->capacity * 2 : 64;
            struct entry *bigger = realloc(entries->items, capacity * sizeof(*bigger));
            if (!bigger) break; /* signal those we have; whoever loops comes back */
            entries->items = bigger;
            entries->capacity = capacity;
        }
        if (read_entry(dirfd(proc), item->d_name, &entries->items[entries->count])) entries->count++;
    }
    closedir(proc);
    return true;
}

static struct entry *find(const struct entries *entries, pid_t pid) {
    size_t low = 0, high = entries->count; /* /proc lists in ascending order */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (entries->items[middle].pid < pid) low = middle + 1;
        else high = middle;
    }
    return low < entries->count && entries->items[low].pid == pid ? &entries->items[low] : NULL;
}

static void mark_descendants(struct entries *entries, pid_t root) {
    for (bool changed = true; changed;) { /* more than one round only where pid numbers have wrapped */
        changed = false;
        for (size_t i = 0; i < entries->count; i++) {
            struct entry *entry = &entries->items[i];
            if (entry->marked) continue;
            struct entry *parent = find(entries, entry->parent);
            entry->marked = entry->parent == root || (parent && parent->marked);
            changed = changed || entry->marked;
        }
    }
}

size_t tree_signal(pid_t root, enum kin kin, int number, bool (*spared)(pid_t pid)) {
    struct entries entries = {0};
    size_t count = 0;
    read_entries(&entries);
    if (kin == KIN_DESCENDANTS) mark_descendants(&entries, root);
    for (size_t i = 0; i < entries.count; i++) {
        struct entry *entry = &entries.items[i];
        if (kin == KIN_CHILDREN) entry->marked = entry->parent == root && !(spared && spared(entry->pid));
        if (kin == KIN_GROUP) entry->marked = entry->group == root;
        if (!entry->marked || entry->dead || entry->pid == getpid()) continue;
        count++;
        /* A killed group dies as a whole, between two forks of its members: that is what beats a fork storm. The groups
         * of descendants hold nothing else, because each tree began with a session of its own. */
        if (number == SIGKILL && kin == KIN_DESCENDANTS && entry->group > 1 && entry->group != getpgrp())
            kill(-entry->group, SIGKILL);
        if (number) kill(entry->pid, number);
    }
    free(entries.items);
    return count;
}
