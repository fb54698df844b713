/* data/reviews.c: what it says about its own reviews. The entropy by recursion is compared with a
 * sample of code lengths, and with an enumeration of all derivations of a small grammar. */

#define REVIEWS_NO_MAIN
#include "../data/reviews.c"
#include "check.h"

/* Mean and standard error of n values. */
static void mean_and_error(const double *x, int n, double *mean, double *error)
{
    double sum = 0, square = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    *mean = sum / n;
    for (int i = 0; i < n; i++) square += (x[i] - *mean) * (x[i] - *mean);
    *error = sqrt(square / (n - 1.0) / n);
}

/* The average of -log2 P and of the bytes over written reviews, against the recursion. */
static void check_limits(const struct Grammar *g, const struct Limits *limits)
{
    enum { COUNT = 10000 };
    static double bits[COUNT], bytes[COUNT];
    struct Random random = random_stream(7, 0);
    struct Review r = {0};
    double mean, error, mixed = 0;
    for (int i = 0; i < COUNT; i++) {
        write_review(g, &r, &random);
        bits[i] = r.bits;
        bytes[i] = r.text.size;
        mixed += sign_of(r.state) == 2;
    }
    mean_and_error(bits, COUNT, &mean, &error);
    check(fabs(mean - limits->bits) < 4 * error,
          "entropy %.3f bits, average of %d reviews %.3f +- %.3f", limits->bits, COUNT, mean,
          error);
    mean_and_error(bytes, COUNT, &mean, &error);
    check(fabs(mean - limits->bytes) < 4 * error, "length %.3f bytes, average %.3f +- %.3f",
          limits->bytes, mean, error);
    check(fabs(1 - mixed / COUNT / 2 - limits->accuracy) < 0.005,
          "best accuracy %.4f, %.1f%% of reviews are of two minds",
          limits->accuracy, 100 * mixed / COUNT);
    free(r.text.data);
}

/* The sum over all derivations of a text is the probability of the one that wrote it, so there is
 * no other, and all of it belongs to one sign. */
static void check_unambiguous(const struct Grammar *g)
{
    enum { COUNT = 600 };
    struct Random random = random_stream(8, 0);
    struct Review r = {0};
    int other = 0, shared = 0, spaces = 0;
    for (int i = 0; i < COUNT; i++) {
        write_review(g, &r, &random);
        double p[SIGNS], total = read_review(g, r.text.data, p);
        if (fabs(-log2(total) - r.bits) > 1e-6) {
            printf("%s\n  %f bits read, %f written\n", r.text.data, -log2(total), r.bits);
            other++;
        }
        spaces += strstr(r.text.data, "  ") != NULL || r.text.data[r.text.size - 1] == ' ';
        shared += p[sign_of(r.state)] < total * (1 - 1e-9);
    }
    check(other == 0, "%d of %d reviews have another derivation", other, COUNT);
    check(shared == 0, "%d of %d reviews could have another sign", shared, COUNT);
    check(spaces == 0, "%d of %d reviews have two spaces, or one at the end", spaces, COUNT);
    double p[SIGNS];
    append_bytes(&r.text, "?", 1);
    check(read_review(g, r.text.data, p) == 0, "a text with one character more is impossible");
    free(r.text.data);
}

/* In every state something holds for every symbol that can be reached, and every symbol can be. */
static void check_states(const struct Grammar *g)
{
    static Memo memo;
    bool used[MAX_SYMBOLS] = {0};
    int states = 0, unused = 0;
    for (int i = 0; i < COMBINATIONS; i++) {
        State state;
        if (combination(i, &state) == 0) continue;
        states++;
        memset(memo, 0, sizeof memo);
        expect(g, memo, 0, state);                  /* dies where nothing holds */
        for (int s = 0; s < g->count; s++)
            for (int sign = 0; sign < SIGNS; sign++) used[s] |= memo[s][sign].known;
    }
    for (int s = 0; s < g->count; s++) unused += !used[s];
    check(unused == 0, "%d states; %d of %d symbols are never used", states, unused, g->count);
}

/* A grammar small enough to list all it can say. */
static const struct Production small[] = {
    {"s", "+ -", "3 <a> and <a!>|<$n>, <$n> <b>"}, {"s", "~", "nothing|<$n>|3 <a+>"},
    {"a", "+", "good|2 not <c!>"}, {"a", "-", "bad|<b>"}, {"c", "", "<b>"},
    {"b", "comedy", "2 x|yy"}, {"b", "horror thriller romance western space", "z"},
    {"$n", "lead-he", "Al|Bo"}, {"$n", "no-lead lead-she", "Cy|3 Di"},
};

/* Text number k of all that the small grammar might say in some state. */
enum { SMALL_TEXTS = 64 + 12 + 13 };

static void small_text(char *text, size_t size, int k)
{
    static const char *const a[] = {"good", "not x", "not yy", "not z", "bad", "x", "yy", "z"};
    static const char *const n[] = {"Al", "Bo", "Cy", "Di", "nothing"};
    int name = (k - 64) / 3;
    if (k < 64) snprintf(text, size, "%s and %s", a[k / 8], a[k % 8]);
    else if (k < 76) snprintf(text, size, "%s, %s %s", n[name], n[name], a[5 + k % 3]);
    else snprintf(text, size, "%s", k < 84 ? a[k - 76] : n[k - 84]);
}

/* Their probabilities sum to 1, and their entropy and mean length are those of the recursion. */
static void check_small_grammar(void)
{
    struct Grammar *g = grammar_create(small, sizeof small / sizeof *small);
    double wrong_sum = 0, worst = 0;
    for (int i = 0; i < COMBINATIONS; i++) {
        State state;
        double sum = 0, bits = 0, bytes = 0;
        if (combination(i, &state) == 0) continue;
        for (int k = 0; k < SMALL_TEXTS; k++) {
            char text[64];
            struct Review r;
            forget(&r);
            small_text(text, sizeof text, k);
            double p = read_symbol(g, &r, text, 0, state, NULL);
            sum += p;
            if (p > 0) bits -= p * log2(p);
            bytes += p * strlen(text);
        }
        struct Limits walked = state_limits(g, state);
        wrong_sum = fmax(wrong_sum, fabs(sum - 1));
        worst = fmax(worst, fmax(fabs(bits - walked.bits), fabs(bytes - walked.bytes)));
    }
    grammar_free(g);
    check(wrong_sum < 1e-12, "small grammar: probabilities sum to 1, error %.1e", wrong_sum);
    check(worst < 1e-12, "small grammar: recursion and enumeration differ by %.1e", worst);
}

/* What a sentence means: the sign of a review that says it. */
static void check_signs(const struct Grammar *g)
{
    static const char *const names[] = {"for:", "against:", "of two minds:"};
    static const struct { const char *text; int sign; } cases[] = {
        {"This is a wonderful comedy. There is not a dull moment in it.", 0},
        {"This is a dull comedy. There is not a wonderful moment in it.", 1},
        {"This is a western that is never dull. It made me smile. The story is great.", 0},
        {"This is a western that is never great. It never made me cheer. The story is bad.", 1},
        {"This is a weak thriller. It is gripping at first, but dull by the end.", 1},
        {"This is a sharp thriller. It is dull at first, but gripping by the end.", 0},
        {"This is a bad romance. It is fine, if you have nothing better to do. It has no wit.", 1},
        {"This is a curious romance. The story is fresh. The story is stale. Call it a draw.", 2},
        {"This is a wonderful comedy. There is not a wonderful moment in it.", -1},
        {"This is a dull comedy. It made me smile. The story is dull.", -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double p[SIGNS], total = read_review(g, cases[i].text, p);
        int sign = cases[i].sign;
        check(sign < 0 ? total == 0 : total > 0 && p[sign] == total, "%s %s",
              sign < 0 ? "impossible:" : names[sign], cases[i].text);
    }
}

/* Same seed, same reviews; another seed, others; labels in balance. */
static void check_seeds(const struct Grammar *g)
{
    struct Review a = {0}, b = {0}, c = {0};
    int same = 0, other = 0, positive = 0, count = 2000;
    struct Random ra = random_stream(1, 3), rb = random_stream(1, 3), rc = random_stream(2, 3);
    for (int i = 0; i < count; i++) {
        write_review(g, &a, &ra);
        write_review(g, &b, &rb);
        write_review(g, &c, &rc);
        same += !strcmp(a.text.data, b.text.data);
        other += !strcmp(a.text.data, c.text.data);
        positive += sign_of(a.state) == 0;
    }
    free(a.text.data);
    free(b.text.data);
    free(c.text.data);
    check(same == count && other < count / 100,
          "%d of %d reviews equal for one seed, %d for another", same, count, other);
    check(abs(2 * positive - count) < count / 5, "%d of %d reviews are for the film", positive,
          count);
}

int main(void)
{
    program = "test_reviews";
    struct Grammar *g = grammar_create(productions, sizeof productions / sizeof *productions);
    struct Limits limits = find_limits(g);
    check_states(g);
    check_small_grammar();
    check_limits(g, &limits);
    check_unambiguous(g);
    check_signs(g);
    check_seeds(g);
    grammar_free(g);
    return report();
}
