/* Accounts of the guest, from its /etc/passwd and /etc/group.
 *
 * A guest can put anything at those paths: a FIFO, a device, a huge file. So: no blocking open, regular files only, a
 * bounded read. musl's own getpwnam does none of that. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

char *accounts_read(const char *path) {
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) return NULL;
    struct stat about;
    char *text = NULL;
    if (fstat(fd, &about) == 0 && S_ISREG(about.st_mode) && about.st_size <= (off_t)ACCOUNT_FILE_BYTES_MAX)
        text = malloc((size_t)about.st_size + 1);
    size_t length = 0;
    while (text && length < (size_t)about.st_size) {
        ssize_t count = read(fd, text + length, (size_t)about.st_size - length);
        if (count <= 0) break;
        length += (size_t)count;
    }
    if (text) text[length] = 0;
    close(fd);
    return text;
}

/* Cuts one `a:b:c` line off *text into `fields`; false at the end of the text. */
static bool next_line(char **text, char **fields, size_t wanted, size_t *found) {
    if (**text == 0) return false;
    char *line = *text, *end = strchr(line, '\n');
    *text = end ? end + 1 : line + strlen(line);
    if (end) *end = 0;
    *found = 0;
    while (*found < wanted) {
        fields[(*found)++] = line;
        char *colon = strchr(line, ':');
        if (!colon) break;
        *colon = 0;
        line = colon + 1;
    }
    return true;
}

static bool parse_id(const char *text, uint32_t *id) {
    uint64_t value = 0;
    size_t length = strlen(text);
    if (length == 0 || length > 10) return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9') return false;
        value = value * 10 + (uint64_t)(*text - '0');
    }
    *id = (uint32_t)value;
    return value < UINT32_MAX; /* -1 means "do not change" to the kernel */
}

static bool find_account(char *text, const char *wanted, struct user *user) {
    char *fields[7];
    size_t found;
    uint32_t wanted_id, uid, gid;
    bool numeric = parse_id(wanted, &wanted_id);
    for (int by_id = 0; by_id <= (numeric ? 1 : 0); by_id++) { /* a name wins over a number */
        char *copy = strdup(text);
        if (!copy) return false;
        for (char *rest = copy; next_line(&rest, fields, 7, &found);) {
            if (found < 6 || !parse_id(fields[2], &uid) || !parse_id(fields[3], &gid)) continue;
            if (by_id ? uid != wanted_id : strcmp(fields[0], wanted) != 0) continue;
            user->uid = uid;
            user->gid = gid;
            snprintf(user->name, sizeof user->name, "%s", fields[0]);
            snprintf(user->home, sizeof user->home, "%s", fields[5][0] == '/' ? fields[5] : "/");
            free(copy);
            return true;
        }
        free(copy);
    }
    return false;
}

static void find_groups(struct user *user) {
    user->groups[0] = user->gid;
    user->groups_count = 1;
    char *text = accounts_read("/etc/group"), *fields[4];
    size_t found;
    uint32_t gid;
    for (char *rest = text; rest && next_line(&rest, fields, 4, &found);) {
        if (found < 4 || !parse_id(fields[2], &gid) || gid == user->gid) continue;
        char *save = NULL;
        for (char *member = strtok_r(fields[3], ",", &save); member; member = strtok_r(NULL, ",", &save)) {
            if (strcmp(member, user->name) != 0 || user->groups_count == GROUPS_MAX) continue;
            user->groups[user->groups_count++] = gid;
            break;
        }
    }
    free(text);
}

/* The next account or group with a number; `id` is that number (the third field of either file). */
bool account_next(char **text, char **fields, size_t wanted, size_t *found, uint32_t *id) {
    while (next_line(text, fields, wanted, found))
        if (*found >= 3 && parse_id(fields[2], id)) return true;
    return false;
}

bool user_find(struct text name, struct user *user) {
    char wanted[256];
    if (name.length == 0 || name.length >= sizeof wanted || memchr(name.bytes, 0, name.length)) return false;
    memcpy(wanted, name.bytes, name.length);
    wanted[name.length] = 0;
    char *text = accounts_read("/etc/passwd");
    bool found = text && find_account(text, wanted, user);
    free(text);
    if (found) find_groups(user);
    return found;
}
