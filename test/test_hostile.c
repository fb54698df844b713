/* test_hostile.c: 20,000 mutations of good files, the same in each run, given to every reader. None
 * may crash, hang, or take memory that the file does not justify; those that are refused must be so
 * by one harmless sentence that names the file (hostile.h).
 *
 *    test_hostile                  the test
 *    test_hostile READER N         mutation N alone, for a debugger
 *    test_hostile READER seed N    writes good input N to standard output, for dev/fuzz */

#include "hostile.h"
#include "check.h"
#include <sys/wait.h>

enum { MUTATIONS = 2250 };              /* of each reader */

/* --- Mutations --- */

static void splice(struct Buffer *b, size_t at, size_t cut, const char *with, size_t n)
{
    struct Buffer out = {0};
    append_bytes(&out, b->data, at);
    append_bytes(&out, with, n);
    append_bytes(&out, b->data + at + cut, b->size - at - cut);
    free(b->data);
    *b = out;
}

/* One change: a bit, a byte, a number, a word that means something, a piece cut out or repeated. */
static void mutate(struct Buffer *b, struct Random *r)
{
    static const char *const words[] = {
        "-1", "0", "1", "255", "65536", "10000000", "2147483648", "4294967296", "1e400",
        "9223372036854775808", "nan", "null", "[", "]", "{", "}", "\"", ",", ":", "\\u0000",
        "\\ud800", "\\", "\n", "\t", "\r", "\xC2\x9B", "\x1B[31m", "\xFF", "__metadata__",
        "\"\":{}", "[[[[", "F16"};
    const size_t at = b->size ? random_below(r, b->size) : 0, left = b->size - at;
    const size_t n = left ? random_below(r, left < 40 ? left : 40) : 0;
    const char *word = words[random_below(r, COUNT(words))];
    switch (left ? random_below(r, 7) : 3) {
    case 0: b->data[at] ^= 1 << random_below(r, 8); return;
    case 1: b->data[at] = (char)random_below(r, 256); return;
    case 2: splice(b, at, n, "", 0); return;
    case 3: splice(b, at, 0, word, strlen(word)); return;
    case 4: splice(b, at, 0, b->data + at, n); return;
    case 5: splice(b, at, left, "", 0); return;
    default:                            /* a number, if there is one behind */
        for (size_t i = at; i < b->size; i++) {
            size_t digits = 0;
            while (i + digits < b->size && isdigit((unsigned char)b->data[i + digits])) digits++;
            if (digits) { splice(b, i, digits, word, strlen(word)); return; }
        }
    }
}

/* Mutation `number` of a reader's inputs: one to four changes. */
static struct Buffer mutation(const struct Buffer *seeds, int count, int number)
{
    struct Random r = random_stream(1, number);
    const struct Buffer *seed = &seeds[number % count];
    struct Buffer b = {0};
    append_bytes(&b, seed->data, seed->size);
    for (int i = 1 + (int)random_below(&r, 4); i > 0; i--) mutate(&b, &r);
    return b;
}

/* --- The test --- */

/* Where a child process is. */
struct Progress { int number, good; };

static void run_mutations(const struct HostileReader *r, int from, int to, struct Progress *p)
{
    struct Buffer seeds[SEEDS] = {{0}};
    const int count = seeds_of(r->name, seeds);
    for (int i = 0; i < count; i++)
        if (!run_reader(r, bytes_of(seeds[i]))) finding(last_words);
    for (p->number = from; p->number < to; p->number++) {
        struct Buffer b = mutation(seeds, count, p->number);
        p->good += run_reader(r, bytes_of(b));
        free(b.data);
    }
}

/* Of journals, rows that cannot be are left out. */
static bool refuses_nothing(const struct HostileReader *r)
{
    return !strcmp(r->name, "log") || !strcmp(r->name, "comparison");
}

/* Runs the mutations of a reader in a process of its own. */
static void test_reader(const struct HostileReader *r, struct Progress *p)
{
    int status;
    *p = (struct Progress){0};
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        if (!freopen("/dev/null", "w", stderr)) _exit(2);       /* warnings of odd files */
        if (!freopen("/dev/null", "w", stdout)) _exit(2);       /* and their plots */
        run_mutations(r, 0, MUTATIONS, p);
        _exit(0);
    }
    waitpid(child, &status, 0);
    const bool ended = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    check(ended && p->number == MUTATIONS && p->good > 0
              && (p->good == MUTATIONS) == refuses_nothing(r),
          "%s: %d mutations, %d of them good", r->name, p->number, p->good);
    if (!ended)
        printf("     ended by %s %d: run test_hostile %s %d\n", WIFEXITED(status) ? "status"
               : "signal", WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status), r->name,
               p->number);
}

/* --- A file that changes after it was opened --- */

static const char *change;              /* what happens to it */

static void read_changing(struct Bytes input)
{
    put("changing", input.data, input.size);
    char *path = in_dir("changing"), *bytes = resize(NULL, input.size);
    struct File f = open_file(path, false);
    usleep(20000);                      /* the clock of a file system has steps */
    if (!strcmp(change, "cut")) put("changing", "", 0);
    if (!strcmp(change, "rewritten")) put("changing", "other", 5);
    if (!strcmp(change, "longer")) put("changing", "bytes and more", 14);
    if (!strcmp(change, "replaced")) { put("new", "other", 5); rename(in_dir("new"), path); }
    read_at(&f, bytes, 3, 1);
    if (memcmp(bytes, "yte", 3)) finding("other bytes");
    read_at(&f, bytes, input.size, 0);
    close(f.fd);
}

/* One that has taken its name is another file. */
static void test_changing_files(void)
{
    static const char *const changes[] = {"not", "replaced", "cut", "rewritten", "longer"};
    for (int i = 0; i < COUNT(changes); i++) {
        const struct HostileReader r = {"changing", read_changing};
        change = changes[i];
        const bool read = run_reader(&r, (struct Bytes){"bytes", 5});
        const bool said = !read && strstr(last_words, "was cut or rewritten while it was in use");
        check(i < 2 ? read : said,
              "a file that is %s while it is in use: %s", change, read ? "read" : last_words);
    }
}

int main(int argc, char **argv)
{
    begin_hostile();
    if (argc < 3) test_changing_files();
    struct Progress *p = mmap(NULL, sizeof *p, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                              -1, 0);
    for (int i = 0; i < COUNT(readers); i++) {
        struct Buffer seeds[SEEDS] = {{0}};
        if (argc < 3) test_reader(&readers[i], p);
        else if (strcmp(argv[1], readers[i].name)) continue;
        else if (argc < 4) {
            const int number = (int)strtol(argv[2], NULL, 10);
            run_mutations(&readers[i], number, number + 1, p);
            printf("%s\n", p->good ? "good" : last_words);
        } else {
            const int count = seeds_of(argv[1], seeds), k = (int)strtol(argv[3], NULL, 10);
            if (k < count) fwrite(seeds[k].data, 1, seeds[k].size, stdout);
        }
    }
    end_hostile();
    return report();
}
