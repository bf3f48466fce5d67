/* The modes of a new terminal, as RFC 4254 writes them (section 8): a byte that says which, a big-endian u32, and again.
 * What is not known here (speeds, what other systems have) is passed over. */
#define _DEFAULT_SOURCE
#include <termios.h>
#include <unistd.h>

#include "agent.h"

#define NO_CHARACTER 255
#define MODE_BYTES 5
#define FIRST_WITHOUT_VALUE 160 /* and 0: the end */

static const struct {
    uint8_t mode, place;
} characters[] = {
    {1, VINTR}, {2, VQUIT},  {3, VERASE}, {4, VKILL},     {5, VEOF},     {6, VEOL},   {7, VEOL2},
    {8, VSTART}, {9, VSTOP}, {10, VSUSP}, {12, VREPRINT}, {13, VWERASE}, {14, VLNEXT}, {18, VDISCARD},
};

enum { INPUT_FLAGS, LOCAL_FLAGS, OUTPUT_FLAGS };

static const struct {
    uint8_t mode, where;
    tcflag_t bit;
} flags[] = {
    {30, INPUT_FLAGS, IGNPAR},  {31, INPUT_FLAGS, PARMRK},  {32, INPUT_FLAGS, INPCK},   {33, INPUT_FLAGS, ISTRIP},
    {34, INPUT_FLAGS, INLCR},   {35, INPUT_FLAGS, IGNCR},   {36, INPUT_FLAGS, ICRNL},   {37, INPUT_FLAGS, IUCLC},
    {38, INPUT_FLAGS, IXON},    {39, INPUT_FLAGS, IXANY},   {40, INPUT_FLAGS, IXOFF},   {41, INPUT_FLAGS, IMAXBEL},
    {42, INPUT_FLAGS, IUTF8},   {50, LOCAL_FLAGS, ISIG},    {51, LOCAL_FLAGS, ICANON},  {53, LOCAL_FLAGS, ECHO},
    {54, LOCAL_FLAGS, ECHOE},   {55, LOCAL_FLAGS, ECHOK},   {56, LOCAL_FLAGS, ECHONL},  {57, LOCAL_FLAGS, NOFLSH},
    {58, LOCAL_FLAGS, TOSTOP},  {59, LOCAL_FLAGS, IEXTEN},  {60, LOCAL_FLAGS, ECHOCTL}, {61, LOCAL_FLAGS, ECHOKE},
    {70, OUTPUT_FLAGS, OPOST},  {71, OUTPUT_FLAGS, OLCUC},  {72, OUTPUT_FLAGS, ONLCR},  {73, OUTPUT_FLAGS, OCRNL},
    {74, OUTPUT_FLAGS, ONOCR},  {75, OUTPUT_FLAGS, ONLRET},
};

static void set(struct termios *terminal, uint8_t mode, uint32_t value) {
    for (size_t i = 0; i < sizeof characters / sizeof *characters; i++)
        if (characters[i].mode == mode && value <= NO_CHARACTER)
            terminal->c_cc[characters[i].place] = value == NO_CHARACTER ? _POSIX_VDISABLE : (cc_t)value;
    tcflag_t *const words[] = {&terminal->c_iflag, &terminal->c_lflag, &terminal->c_oflag};
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (flags[i].mode == mode)
            *words[flags[i].where] = (*words[flags[i].where] & ~flags[i].bit) | (value ? flags[i].bit : 0);
}

void modes_apply(int slave, struct text modes) {
    struct termios terminal;
    if (modes.length == 0 || tcgetattr(slave, &terminal) < 0) return;
    const uint8_t *at = modes.bytes, *end = at + modes.length;
    for (; end - at >= MODE_BYTES && at[0] != 0 && at[0] < FIRST_WITHOUT_VALUE; at += MODE_BYTES)
        set(&terminal, at[0], (uint32_t)at[1] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 8 | at[4]);
    tcsetattr(slave, TCSANOW, &terminal);
}
