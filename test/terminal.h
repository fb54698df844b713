/* terminal.h: what a program shows on a terminal. Before the first #include of the test:
 * #define _GNU_SOURCE, for posix_openpt. */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* What speak(about) sends to stderr, a terminal of so many columns: at most 4,000 bytes.
 * NULL: there are no terminals here. */
static const char *on_terminal(int columns, void (*speak)(void *), void *about)
{
    static char seen[8000];
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY), before = dup(2);
    struct winsize size = {.ws_row = 24, .ws_col = (unsigned short)columns};
    if (terminal < 0 || grantpt(terminal) || unlockpt(terminal)) return NULL;
    const int other_end = open(ptsname(terminal), O_RDWR | O_NOCTTY);
    if (other_end < 0 || ioctl(terminal, TIOCSWINSZ, &size)) return NULL;
    dup2(other_end, 2);
    speak(about);
    dup2(before, 2);
    int used = 0;
    for (ssize_t n = write(other_end, "~", 1); n > 0 && !memchr(seen, '~', used);
         used += n > 0 ? (int)n : 0)
        n = read(terminal, seen + used, sizeof seen - 1 - used);
    seen[used > 0 ? used - 1 : 0] = 0;      /* without ~, which ends it */
    close(terminal), close(other_end), close(before);
    return seen;
}
