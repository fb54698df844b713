/* What stands behind finetune_cls compare: bags of words, naive Bayes and NB-SVM against the same
 * formulas in plain loops; subsets of labels, intervals and methods. Whole comparisons are in
 * test_compare.sh. */

#define FINETUNE_NO_MAIN
#include "fence.h"
#include "../finetune_cls.c"
#include "check.h"

/* --- Bags of words --- */

/* A task with bags of texts, of these labels. */
static struct Task bags(const char *const *texts, const int *labels, int count, int classes)
{
    struct Dataset d = {0};
    struct Task t = {.base = {.config = {.labels = classes}}};
    for (int i = 0; i < count; i++) {
        begin_text(&d, (struct Bytes){texts[i], strlen(texts[i])}, 0, labels[i]);
        d.starts[++d.count] = 0;
    }
    t.base.config.vocabulary = bags_of(&t.data, &d);
    free(d.labels), free(d.texts), free(d.starts);
    return t;
}

/* The same; the first texts are to learn from, the others to give scores to. */
static struct Task bag_task(const char *const *texts, const int *labels, const int *order,
                            int count, int train, int classes)
{
    struct Task t = bags(texts, labels, count, classes);
    t.train = memcpy(resize(NULL, count * sizeof *order), order, count * sizeof *order);
    t.val = t.train + train;
    t.train_count = train;
    t.val_count = count - train;
    return t;
}

/* How many features one text has. */
static int features_in(const char *text)
{
    return bags(&text, (int[]){0}, 1, 1).base.config.vocabulary;
}

/* Whether two texts have the same features in the same order. */
static bool alike(const char *one, const char *two)
{
    const struct Dataset b = bags((const char *[]){one, two}, (int[]){0, 1}, 2, 2).data;
    const size_t n = b.starts[1];
    return b.starts[2] == 2 * n && !memcmp(b.tokens, b.tokens + n, n * sizeof *b.tokens);
}

static void test_words(void)
{
    check(features_in("") == 0 && features_in(" \t\n") == 0 && features_in("word") == 1
          && features_in("two words") == 3, "words, and pairs of words: 0, 0, 1 and 3 features");
    check(features_in("the the the cat") == 4, "each feature once: the, cat, the the, the cat");
    check(features_in("well!") == 3 && features_in("a.b") == 5 && features_in("a!!") == 4,
          "signs are words: well!, a.b, a!!");
    check(features_in("don't") == 1 && features_in("4x4") == 1, "apostrophes and digits are not");
    check(features_in("na\xC3\xAFve caf\xC3\xA9") == 3 && features_in("\xFF") == 1,
          "bytes beyond ASCII belong to words");
    check(alike("Good FILM", "good film") && alike(" good\n film\t", "good film"),
          "capital letters are small ones, and blanks only separate");
    check(!alike("good film", "film good") && !alike("ab c", "a bc"),
          "pairs have an order and a place between");
    check(!alike("caf\xC3\xA9", "caf\xC3\xA8"), "accents make other words");
}

/* The number of a string among those seen so far, by trying each. */
static int slow_number(char **seen, int *count, const char *feature)
{
    for (int i = 0; i < *count; i++) if (!strcmp(seen[i], feature)) return i;
    seen[*count] = text_of("%s", feature);
    return (*count)++;
}

/* Whether features[*at], .. go on with this one, unless the text (from `start` on) has it. */
static bool goes_on(const struct Dataset *b, size_t start, size_t *at, int number)
{
    for (size_t j = start; j < *at; j++) if (b->tokens[j] == number) return true;
    return b->tokens[(*at)++] == number;
}

/* Random texts of few letters, as bags and by comparing strings. */
static void test_bags_by_strings(void)
{
    enum { TEXTS_HERE = 300, LENGTH = 40 };
    static const char letters[] = "aAbB'1\xE9,.!  \n\t";
    static char text[TEXTS_HERE][LENGTH + 1];
    const char *texts[TEXTS_HERE];
    int labels[TEXTS_HERE];
    char **seen = resize(NULL, TEXTS_HERE * LENGTH * 2 * sizeof *seen);
    struct Random random = random_stream(1, 2);
    for (int i = 0; i < TEXTS_HERE; i++) {
        const int length = (int)random_below(&random, LENGTH + 1);
        for (int n = 0; n < length; n++)
            text[i][n] = letters[random_below(&random, sizeof letters - 1)];
        texts[i] = text[i];
        labels[i] = i % 7;
    }
    const struct Task t = bags(texts, labels, TEXTS_HERE, 7);
    const struct Dataset b = t.data;
    bool good = b.count == TEXTS_HERE && b.starts[0] == 0;
    int count = 0;
    for (int i = 0; i < TEXTS_HERE; i++) {
        good = good && b.labels[i] == labels[i] && b.texts[i].data == texts[i];
        char before[LENGTH + 1] = "", word[LENGTH + 1], pair[2 * LENGTH + 2];
        size_t at = b.starts[i];
        for (const char *p = texts[i]; *p; ) {
            const size_t inside = strspn(p, "aAbB'1\xE9"), n = inside ? inside : 1;
            snprintf(word, sizeof word, "%.*s", (int)n, p);
            p += n;
            if (strchr(" \n\t", word[0])) continue;
            for (char *c = word; *c; c++) if (*c == 'A' || *c == 'B') *c += 'a' - 'A';
            snprintf(pair, sizeof pair, "%s %s", before, word);
            good = good && goes_on(&b, b.starts[i], &at, slow_number(seen, &count, word));
            if (*before) good = good && goes_on(&b, b.starts[i], &at,
                                                slow_number(seen, &count, pair));
            strcpy(before, word);
        }
        good = good && at == b.starts[i + 1];
    }
    check(good && count == t.base.config.vocabulary,
          "random texts: %d features as by their strings", count);
}

/* 40,000 words make 79,999 features: the table grows from 2^16 slots to 2^18. */
static void test_growth(void)
{
    enum { WORDS = 40000, FEATURES = 2 * WORDS - 1 };
    struct Buffer text = {0};
    for (int i = 0; i < WORDS; i++) append(&text, "w%d ", i);
    const struct Task t = bags((const char *[]){text.data, text.data}, (int[]){0, 1}, 2, 2);
    const struct Dataset b = t.data;
    bool good = t.base.config.vocabulary == FEATURES && b.starts[1] == FEATURES
             && b.starts[2] == 2 * FEATURES;
    for (size_t j = 0; good && j < 2 * FEATURES; j++) good = b.tokens[j] == (int)(j % FEATURES);
    check(good, "80,000 features, twice: each keeps its number while the table grows");
    free(text.data);
}

/* --- Naive Bayes and NB-SVM on random texts --- */

/* The scores (val_count, K) of a classical method. */
static void ask(void (*learn)(double *w, const struct Task *t, int k), double *scores,
                const struct Task *t)
{
    const int F = t->base.config.vocabulary, K = t->base.config.labels;
    double *w = resize(NULL, (F + 1) * sizeof *w);
    for (int k = 0; k < K; k++) {
        learn(w, t, k);
        for (int i = 0; i < t->val_count; i++)
            scores[i * K + k] = bag_dot(&t->data, t->val[i], w) + w[F];
    }
    free(w);
}

enum { N_ALL = 60, N_TRAIN = 40, N_TEST = N_ALL - N_TRAIN };

/* Texts of class k mostly have words of its own; those from N_TRAIN on also words that training
 * has not. The caller frees nothing. */
static struct Task random_task(int classes)
{
    int labels[N_ALL], order[N_ALL];
    char *texts[N_ALL];
    struct Random random = random_stream(3, classes);
    for (int i = 0; i < N_ALL; i++) {
        struct Buffer text = {0};
        order[i] = i;
        labels[i] = i % (classes + 1) % classes;        /* class 0 is twice as frequent */
        for (int n = 0; n < 8; n++) {
            const int own = random_below(&random, 3) == 0, word = (int)random_below(&random, 6);
            append(&text, own ? "own%d%c " : "word%d ", word, 'a' + labels[i]);
        }
        if (i >= N_TRAIN) append(&text, "new%d", i);
        texts[i] = text.data;
    }
    return bag_task((const char *const *)texts, labels, order, N_ALL, N_TRAIN, classes);
}

static bool has(const struct Dataset *b, int text, int feature)
{
    for (size_t j = b->starts[text]; j < b->starts[text + 1]; j++)
        if (b->tokens[j] == feature) return true;
    return false;
}

/* In how many training texts a feature occurs: of class k if `own`, else of the others. */
static int occurrences(const struct Task *t, int feature, int k, bool own)
{
    int count = 0;
    for (int i = 0; i < t->train_count; i++)
        count += (t->data.labels[t->train[i]] == k) == own && has(&t->data, t->train[i], feature);
    return count;
}

static bool in_training(const struct Task *t, int feature)
{
    return occurrences(t, feature, 0, true) || occurrences(t, feature, 0, false);
}

/* The sum of (occurrences + 1) over all features of training. */
static double smoothed_total(const struct Task *t, int k, bool own)
{
    double sum = 0;
    for (int f = 0; f < t->base.config.vocabulary; f++)
        if (in_training(t, f)) sum += occurrences(t, f, k, own) + 1;
    return sum;
}

static void test_naive_bayes(void)
{
    const struct Task t = random_task(3);
    double got[N_TEST * 3], again[N_TEST * 3], want[N_TEST * 3];
    bool unseen = false;
    for (int k = 0; k < 3; k++) {
        const double total = smoothed_total(&t, k, true);
        int texts = 0;
        for (int i = 0; i < N_TRAIN; i++) texts += t.data.labels[t.train[i]] == k;
        for (int i = 0; i < N_TEST; i++) {
            double *sum = &want[i * 3 + k];
            *sum = log((double)texts / N_TRAIN);
            for (int f = 0; f < t.base.config.vocabulary; f++) {
                if (!has(&t.data, t.val[i], f)) continue;
                if (in_training(&t, f)) *sum += log((occurrences(&t, f, k, true) + 1) / total);
                else unseen = true;
            }
        }
    }
    ask(naive_bayes, got, &t);
    const double error = relative_error(got, want, N_TEST * 3);
    check(unseen && error < 1e-12, "naive Bayes: its formula in plain loops (%.1e)", error);
    ask(naive_bayes, again, &t);
    check(!memcmp(got, again, sizeof got), "naive Bayes: twice the same bits");
}

/* The objective of train_svm at w (F) and b = w[F], and its gradient. */
static double svm_objective(double *gradient, const double *w, const struct Task *t,
                            const double *r, int k)
{
    const int F = t->base.config.vocabulary;
    double objective = 0;
    for (int f = 0; f <= F; f++) {
        objective += w[f] * w[f] / 2;
        if (gradient) gradient[f] = w[f];
    }
    for (int i = 0; i < t->train_count; i++) {
        const struct Dataset *b = &t->data;
        const int text = t->train[i];
        const double y = t->data.labels[text] == k ? 1 : -1;
        double z = w[F];
        for (size_t j = b->starts[text]; j < b->starts[text + 1]; j++)
            z += w[b->tokens[j]] * r[b->tokens[j]];
        const double miss = fmax(0, 1 - y * z), slope = -2 * 0.15 * miss * y;
        objective += 0.15 * miss * miss;
        if (!gradient) continue;
        for (size_t j = b->starts[text]; j < b->starts[text + 1]; j++)
            gradient[b->tokens[j]] += slope * r[b->tokens[j]];
        gradient[F] += slope;
    }
    return objective;
}

/* w (F + 1) by a long gradient descent from 0. The step is below 2 / the largest curvature. */
static void descend(double *w, const struct Task *t, const double *r, int k)
{
    const int F = t->base.config.vocabulary;
    double *gradient = resize(NULL, (F + 1) * sizeof *gradient), curvature = 1;
    for (int i = 0; i < t->train_count; i++) {
        curvature += 2 * 0.15;
        for (int f = 0; f < F; f++)
            if (has(&t->data, t->train[i], f)) curvature += 2 * 0.15 * r[f] * r[f];
    }
    for (int f = 0; f <= F; f++) w[f] = 0;
    for (int step = 0; step < 20000; step++) {
        svm_objective(gradient, w, t, r, k);
        for (int f = 0; f <= F; f++) w[f] -= gradient[f] / curvature;
    }
    free(gradient);
}

/* r (F): log of the ratio of smoothed parts, as the paper has it. */
static void ratios(double *r, const struct Task *t, int k)
{
    const double in = smoothed_total(t, k, true), out = smoothed_total(t, k, false);
    for (int f = 0; f < t->base.config.vocabulary; f++)
        r[f] = !in_training(t, f) ? 0 : log((occurrences(t, f, k, true) + 1) / in)
                                       - log((occurrences(t, f, k, false) + 1) / out);
}

static void test_svm(void)
{
    const struct Task t = random_task(3);
    const int F = t.base.config.vocabulary;
    double *r = resize(NULL, (F + 1) * sizeof *r), *v = resize(NULL, (F + 1) * sizeof *v),
           *w = resize(NULL, (F + 1) * sizeof *w), *best = resize(NULL, (F + 1) * sizeof *best);
    for (int f = 0; f < F; f++) { r[f] = 0.5 + f % 7 / 4.0; w[f] = r[f] * r[f]; }
    w[F] = train_svm(v, &t, w, 1);
    for (int f = 0; f < F; f++) w[f] = v[f] / r[f];
    descend(best, &t, r, 1);
    const double got = svm_objective(NULL, w, &t, r, 1), want = svm_objective(NULL, best, &t, r, 1);
    check(got < want * (1 + 1e-4), "train_svm: objective %.6f, by long gradient descent %.6f", got,
          want);
    check(relative_error(w, best, F + 1) < 0.01, "train_svm: the same weights and bias (%.1e)",
          relative_error(w, best, F + 1));
    int rises = 0;
    for (int f = 0; f <= F; f++)
        for (int sign = -1; sign <= 1; sign += 2) {
            w[f] += sign * 0.02;
            rises += svm_objective(NULL, w, &t, r, 1) > got;
            w[f] -= sign * 0.02;
        }
    check(rises == 2 * (F + 1), "train_svm: every weight moved, either way, raises the objective");
    free(r); free(v); free(w); free(best);
}

/* Scores of nbsvm from ratios and weights that plain loops find. */
static void test_nbsvm(int classes)
{
    const struct Task t = random_task(classes);
    const int F = t.base.config.vocabulary, n = N_TEST * classes;
    double *r = resize(NULL, (F + 1) * sizeof *r), *w = resize(NULL, (F + 1) * sizeof *w),
           got[N_TEST * 3], again[N_TEST * 3], want[N_TEST * 3], largest_difference = 0;
    ask(nbsvm, got, &t);
    ask(nbsvm, again, &t);
    for (int k = 0; k < classes; k++) {
        ratios(r, &t, k);
        descend(w, &t, r, k);
        for (int i = 0; i < N_TEST; i++) {
            want[i * classes + k] = w[F];
            for (int f = 0; f < F; f++)
                if (has(&t.data, t.val[i], f)) want[i * classes + k] += w[f] * r[f];
        }
    }
    for (int i = 0; i < n; i++)
        largest_difference = fmax(largest_difference, fabs(got[i] - want[i]));
    check(largest_difference < 0.01, "NB-SVM, %d classes: as by plain loops (%.1e)", classes,
          largest_difference);
    check(!memcmp(got, again, n * sizeof *got), "NB-SVM, %d classes: twice the same bits", classes);
    bool opposite = true;
    for (int i = 0; i < N_TEST; i++) opposite = opposite && got[2 * i] == -got[2 * i + 1];
    if (classes == 2) check(opposite, "NB-SVM: two classes have opposite scores");
    free(r);
    free(w);
}

/* r_f by hand: "good" is in both texts of class 0 and in none of class 1, "a" in all four. */
static void test_ratio_by_hand(void)
{
    static const char *const texts[] = {"good a", "a good", "a bad", "bad a", "good", "a", "bad"};
    const int labels[] = {0, 0, 1, 1, 0, 0, 1}, order[] = {0, 1, 2, 3, 4, 5, 6};
    const struct Task t = bag_task(texts, labels, order, 7, 4, 2);
    /* Features: good, a, good a, a good, bad, a bad, bad a. Class 0 has 2 + 2 + 1 + 1 = 6 of them,
     * class 1 has 6 of them, and each has 7 more by smoothing. */
    double scores[6], r[7], v[7], in[7], out[7];
    feature_parts(in, out, &t, 0);
    check(in[0] == 3.0 / 13 && out[0] == 1.0 / 13 && in[1] == 3.0 / 13 && out[1] == 3.0 / 13
          && in[4] == 1.0 / 13 && out[4] == 3.0 / 13, "features counted by hand");
    struct Task few = t;
    few.train_count = 2;
    feature_parts(in, out, &few, 0);
    check(in[0] == 3.0 / 10 && out[0] == 1.0 / 4 && in[4] == 1 && out[4] == 1,
          "a feature that does not occur in training has 1");
    ratios(r, &t, 0);
    check(fabs(r[0] - log(3)) < 1e-12 && r[1] == 0 && fabs(r[4] + log(3)) < 1e-12,
          "r by hand: log 3 for good, 0 for a, -log 3 for bad");
    double r2[7];
    for (int f = 0; f < 7; f++) r2[f] = r[f] * r[f];
    const double bias = train_svm(v, &t, r2, 0);
    ask(nbsvm, scores, &t);
    check(fabs(scores[0] - v[0] - bias) < 1e-9 && fabs(scores[2] - v[1] - bias) < 1e-9
          && fabs(scores[4] - v[4] - bias) < 1e-9
          && scores[0] > 0.2 && fabs(scores[2]) < 0.02 && scores[4] < -0.2,
          "NB-SVM by hand: good %.3f, a %.3f, bad %.3f", scores[0], scores[2], scores[4]);
    ask(naive_bayes, scores, &t);
    check(fabs(scores[0] - scores[1] - log(3)) < 1e-12 && fabs(scores[2] - scores[3]) < 1e-12,
          "naive Bayes by hand: good is 3 times as probable in class 0");
}

/* How many of the scores have their largest value at the label. */
static int right_ones(const double *scores, const struct Task *t)
{
    const int K = t->base.config.labels;
    int right = 0;
    for (int i = 0; i < t->val_count; i++, scores += K) {
        int best = 0;
        for (int k = 1; k < K; k++) if (scores[k] > scores[best]) best = k;
        right += best == t->data.labels[t->val[i]];
    }
    return right;
}

/* One word tells the class, between two that do not. */
static void test_separable(void)
{
    static const char *const words[] = {"superb", "passable", "dreadful"};
    char *texts[N_ALL];
    int labels[N_ALL], order[N_ALL];
    double scores[N_TEST * 3];
    struct Random random = random_stream(5, 5);
    for (int i = 0; i < N_ALL; i++) {
        labels[order[i] = i] = i % 3;
        texts[i] = text_of("x%d %s x%d", (int)random_below(&random, 4), words[i % 3],
                           (int)random_below(&random, 4));
    }
    const struct Task t = bag_task((const char *const *)texts, labels, order, N_ALL, N_TRAIN, 3);
    ask(naive_bayes, scores, &t);
    check(right_ones(scores, &t) == N_TEST, "naive Bayes separates what one word separates");
    ask(nbsvm, scores, &t);
    check(right_ones(scores, &t) == N_TEST, "NB-SVM does, too");
}

/* --- Subsets of labels --- */

/* A comparison on texts of these classes: counts[k] of class k, in turns as long as there are. */
static struct Compare labelled(const int *counts, int classes)
{
    struct Compare c = {.task = {.base = {.config = {.labels = classes}}}};
    struct Task *t = &c.task;
    for (int k = 0; k < classes; k++) t->train_count += counts[k];
    t->data.labels = resize(NULL, t->train_count * sizeof(int));
    for (int round = 0, n = 0; n < t->train_count; round++)
        for (int k = 0; k < classes; k++) if (round < counts[k]) t->data.labels[n++] = k;
    t->train = resize(NULL, t->train_count * sizeof(int));
    for (int i = 0; i < t->train_count; i++) t->train[i] = i;
    return c;
}

/* Whether a subset is what choose_subset promises: so many texts, each once, of each class at least
 * two or all, and as many as its part but for `slack`. taken (train_count): which ones. */
static bool proper_subset(bool *taken, const struct Compare *c, const int *counts, int budget,
                          int seed, double slack)
{
    int *list = resize(NULL, budget * sizeof *list), of_class[8] = {0};
    memset(taken, 0, c->task.train_count * sizeof *taken);
    choose_subset(list, c, budget, seed);
    bool good = true;
    for (int i = 0; i < budget; i++) {
        good = good && list[i] >= 0 && list[i] < c->task.train_count && !taken[list[i]];
        if (!good) break;
        taken[list[i]] = true;
        of_class[c->task.data.labels[list[i]]]++;
    }
    for (int k = 0; k < c->task.base.config.labels; k++) {
        const double part = (double)budget * counts[k] / c->task.train_count;
        good = good && of_class[k] >= min_int(2, counts[k]) && of_class[k] <= counts[k]
            && fabs(of_class[k] - fmax(part, 2)) <= slack + (part < 2);
    }
    free(list);
    return good;
}

/* All budgets of a set, and how many texts of one are not in the next larger one. */
static void test_subsets_of(const int *counts, int classes, double slack, const char *what)
{
    struct Compare c = labelled(counts, classes);
    const int N = c.task.train_count;
    bool *taken = resize(NULL, 2 * N), *before = taken + N, good = true;
    int most_lost = 0;
    for (int budget = 2 * classes; budget <= c.task.train_count; budget++) {
        int lost = 0;
        memcpy(before, taken, c.task.train_count);
        good = proper_subset(taken, &c, counts, budget, 7, slack) && good;
        for (int i = 0; i < c.task.train_count; i++)
            lost += budget > 2 * classes && before[i] && !taken[i];
        most_lost = max_int(most_lost, lost);
    }
    check(good, "subsets, %s: the wanted number, in proportion, at least two of each", what);
    check(most_lost < classes, "subsets, %s: nested up to rounding (%d)", what, most_lost);
    free(c.task.data.labels);
    free(taken);
}

static void test_subsets(void)
{
    test_subsets_of((int[]){100, 100}, 2, 1, "equal classes");
    test_subsets_of((int[]){450, 100, 450}, 3, 2, "three classes");
    test_subsets_of((int[]){960, 30, 8, 2}, 4, 6, "very unequal classes");
    test_subsets_of((int[]){97, 1, 2}, 3, 4, "a class of one text");
    struct Compare c = labelled((int[]){100, 100}, 2);
    bool one[200], two[200], again[200];
    const bool good = proper_subset(one, &c, (int[]){100, 100}, 50, 1, 1)
                   && proper_subset(two, &c, (int[]){100, 100}, 50, 2, 1)
                   && proper_subset(again, &c, (int[]){100, 100}, 50, 1, 1);
    int common = 0;
    for (int i = 0; i < 200; i++) common += one[i] && two[i];
    check(good && !memcmp(one, again, sizeof one), "subsets: a seed always chooses the same");
    check(common > 2 && common < 25, "subsets: two seeds share %d of 50 texts, 12.5 expected",
          common);
    free(c.task.data.labels);
}

/* --- Statistics --- */

static void test_student(void)
{
    const double known[][2] = {{1, 12.706}, {2, 4.303}, {3, 3.182}, {4, 2.776}, {5, 2.571},
                               {6, 2.447}, {9, 2.262}, {30, 2.042}, {1000, 1.962}, {1e9, 1.960}};
    const double tails[][3] = {{0, 3, 1}, {1, 1, 0.5}, {sqrt(2), 2, 1 - sqrt(0.5)},
                               {2, 10, 0.073388}, {3, 1e4, 0.002707}, {40, 5, 1.83e-7},
                               {100, 1e4, 0}};
    bool good = true, falls = true, exact = true;
    for (int i = 0; i < COUNT(known); i++) {
        if (fabs(student_quantile(known[i][0]) - known[i][1]) < 0.001) continue;
        good = false;
        printf("     t of %g: %.4f\n", known[i][0], student_quantile(known[i][0]));
    }
    for (double df = 1; df < 40; df += 0.1)
        falls = falls && student_quantile(df + 0.1) < student_quantile(df);
    for (int i = 0; i < COUNT(tails); i++) {
        const double p = student_tail(tails[i][0], tails[i][1]);
        if (fabs(p - tails[i][2]) < 1e-6) continue;
        exact = false;
        printf("     p of %g, %g: %.8f\n", tails[i][0], tails[i][1], p);
    }
    check(good, "Student's t: %d values of the table", COUNT(known));
    check(falls, "Student's t: falls everywhere between");
    check(exact, "Student's t: %d probabilities, most of them in closed form", COUNT(tails));
    check(student_tail(INFINITY, 1) < 1e-9 && student_tail(INFINITY, 7) < 1e-9,
          "Student's t: an infinite one has no probability");
}

/* A comparison of so many seeds, budgets and methods. right: what each answered, in the order of
 * cells; NULL: it has not run. */
static struct Compare answered(const char *const *right, int seeds, int budgets, int methods)
{
    struct Compare c = {.seeds = seeds, .budget_count = budgets, .method_count = methods};
    const int cells = seeds * budgets * methods;
    c.cells = allocate_zeroed(cells * sizeof *c.cells);
    c.methods = allocate_zeroed(methods * sizeof *c.methods);     /* all of one kind */
    for (int i = 0; i < cells; i++) {
        c.cells[i].right = (char *)right[i];
        if (right[i]) c.task.val_count = (int)strlen(right[i]);
    }
    return c;
}

/* Two seeds, four texts. Means of seeds 1/2 and 3/4, of texts 1, 1, 1/2 and 0, of all 5/8:
 *   texts (2 (3/8)^2 + (1/8)^2 + (5/8)^2) / 3 / 4 = 0.0572917
 *   seeds 2 (1/8)^2 / 1 / 2 = 0.015625
 *   df = 0.0729167^2 / (0.0572917^2 / 3 + 0.015625^2 / 1) = 3.97297 */
static void test_mean_right(void)
{
    static const char *const right[] = {"1100", "1100", "0000", "1000",
                                        "1110", "1110", "0010", NULL};
    const struct Compare c = answered(right, 2, 1, 4);
    struct Estimate m = mean_right(&c, 0, 0, -1);
    check(m.seeds == 2 && m.mean == 0.625 && fabs(m.error * m.error - 0.0729167) < 1e-7
          && fabs(m.df - 3.97297) < 1e-5, "mean: %.4f, error^2 %.7f, df %.5f by hand", m.mean,
          m.error * m.error, m.df);
    m = mean_right(&c, 0, 3, -1);       /* texts 1, 0, 0, 0: (9/16 + 3/16) / 3 / 4 */
    check(m.seeds == 1 && m.mean == 0.25 && m.error == 0.25 && m.df == 3,
          "mean: one seed has the texts' part alone");
    m = mean_right(&c, 0, 0, 2);        /* texts 1, 1, 0, 0 and, added, 1, -1: sum 2, squares 4 */
    check(m.seeds == 2 && fabs(m.mean - 2 / 6.) < 1e-15
          && fabs(m.error * m.error - (4 - 6 / 9.) / 5 / 6) < 1e-15 && m.df == 5,
          "difference: paired, with two texts more");
    m = mean_right(&c, 0, 0, 1);
    check(m.mean == 0 && m.error > 0 && m.p == 1, "difference: equal answers");
    m = mean_right(&c, 0, 0, 3);        /* texts 0, 1, 0, 0 */
    check(m.seeds == 1 && fabs(m.mean - 1 / 6.) < 1e-15, "difference: only seeds that both have");
    const struct Estimate back = mean_right(&c, 0, 3, 0);
    check(back.mean == -m.mean && back.error == m.error, "difference: the other way round");
}

/* Intervals of one method that answered `right` with each of so many seeds. */
static struct Estimate estimated(const char *right, int seeds)
{
    const char *cells[] = {right, right, right};
    struct Compare c = answered(cells, seeds, 1, 1);
    compute_estimates(&c);
    return *estimate_at(&c, 0, 0);
}

/* As README's readers had it: few test texts, and all answers alike. Wilson's interval of 2 of 2 is
 * 0.342 to 1, of 0 of 4 0 to 0.490. */
static void test_estimates(void)
{
    struct Estimate e = estimated("11", 3);
    check(e.mean == 1 && fabs(e.low - 0.3424) < 1e-4 && e.high == 1,
          "estimate: two texts, always right: %.3f to %.3f", e.low, e.high);
    e = estimated("0000", 2);
    check(e.mean == 0 && e.low == 0 && fabs(e.high - 0.4899) < 1e-4,
          "estimate: four texts, never right: %.3f to %.3f", e.low, e.high);
    e = estimated("10", 1);
    check(e.mean == 0.5 && e.low == 0 && e.high == 1, "estimate: never beyond 0 and 1");
    const char *seeds[] = {"1111100000", NULL, "1111111110", NULL};
    struct Compare c = answered(seeds, 2, 1, 2);
    compute_estimates(&c);
    e = *estimate_at(&c, 0, 0);
    check(e.seeds == 2 && e.mean == 0.7 && e.low < wilson_bound(0.7, 10, -1)
          && e.high > wilson_bound(0.7, 10, 1),
          "estimate: seeds that differ make the interval wider than Wilson's");
    e = *estimate_at(&c, 0, 1);
    check(e.seeds == 0 && isnan(e.p) && isnan(e.holm) && best_method(&c, 0, PROMPT, NBSVM) == 0,
          "estimate: a method that has not run is compared with none");
}

/* Differences to the best method. */
static void test_significance(void)
{
    const char *right[] = {"11111111111111111111", "11111111110000000000", "11111111111111111110"};
    struct Compare c = answered(right, 1, 1, 3);
    compute_estimates(&c);
    struct Estimate *e = estimate_at(&c, 0, 0);
    check(isnan(e[0].p) && e[1].holm < SIGNIFICANT && e[2].p > SIGNIFICANT,
          "20 texts: 10 more right answers are significant, one is not");
    const char *two[] = {"11", "00", "11", "00"};
    c = answered(two, 2, 1, 2);
    compute_estimates(&c);
    check(estimate_at(&c, 0, 1)->p > SIGNIFICANT, "two texts: no difference is significant");
}

/* By hand: 0.01 times 4, 0.02 times 3, 0.03 times 2, but not less than before, 0.2 once. */
static void test_holm(void)
{
    struct Estimate e[] = {{.p = 0.03}, {.p = NAN}, {.p = 0.01}, {.p = 0.2}, {.p = 0.02}};
    const double want[] = {0.06, NAN, 0.04, 0.2, 0.06};
    bool good = true;
    correct_by_holm(e, 5);
    for (int i = 0; i < 5; i++)
        good = good && (i == 1 ? isnan(e[i].holm) : fabs(e[i].holm - want[i]) < 1e-12);
    check(good, "Holm's correction by hand");
    struct Estimate one = {.p = 0.04}, large[] = {{.p = 0.6}, {.p = 0.9}, {.p = 0.6}};
    correct_by_holm(&one, 1);
    correct_by_holm(large, 3);
    check(one.holm == 0.04 && large[0].holm == 1 && large[1].holm == 1,
          "Holm's correction: none of a single p, none above 1");
}

/* Right answers 5, none yet, 6 and 8 of 10 with 10, 50, 100 and 1000 labels. */
static void test_labels_needed(void)
{
    const char *right[] = {"1111100000", NULL, "1111110000", "1111111100"};
    struct Compare c = answered(right, 1, 4, 1);
    c.budgets = (int[]){10, 50, 100, 1000};
    compute_estimates(&c);
    check(labels_needed(&c, 0, 0.4) == 10 && labels_needed(&c, 0, 0.5) == 10
          && labels_needed(&c, 0, 0.55) == 100 && labels_needed(&c, 0, 0.6) == 100
          && labels_needed(&c, 0, 0.7) == 1000 && labels_needed(&c, 0, 0.8) == 1000,
          "labels needed: the first number with which the method has run and is as good");
    check(labels_needed(&c, 0, 0.81) == -1000, "labels needed: more than there are");
    c.budget_count = 2;
    check(labels_needed(&c, 0, 0.6) == -10, "labels needed: more than the method has run with");
}

/* --- Methods --- */

static char directory[] = "/tmp/test_compare_XXXXXX";

static char *path_of(const char *name) { return text_of("%s/%s", directory, name); }

/* The tokenizer has tokens for a blank and the first letter of each label word. */
static void test_methods(void)
{
    static const char merges[] = "#version: 0.2\n\xC4\xA0 f\n\xC4\xA0 n\n\xC4\xA0 o\n\xC4\xA0 p\n"
                                 "\xC4\xA0 a\n";
    struct Option options[] = {{.name = "methods", .given = true}, {0}};
    char *path = path_of("words.txt"), *names[] = {"a", "b"};
    stage_file(path, merges, sizeof merges - 1);
    commit_outputs();
    struct Compare c = {.task = {.set = DEFAULT_SETTINGS, .options = options,
                                 .tokenizer = tokenizer_load(path),
                                 .base = {.config = {.layers = 2, .labels = 2,
                                                     .label_names = names}}},
                        .methods_text =
        "majority,nb,nbsvm,scratch,probe,last:2,full,"
        "full+l2sp:0.01+layer-decay:0.8+lr:1e-4+dropout:0.3+class-weights,"
        "last:1+lm-coef:0.5+average:0+head-lr-ratio:20+weight-decay:0.1,"
        "prompt+label-words:a=full,nbs,of;b=probes,at+suffix:, not last,probe+suffix:,last:1"};
    c.task.set.max_tokens = 64;
    parse_methods(&c);
    const struct Task *m = c.methods;
    check(c.method_count == 12 && m[0].set.kind == MAJORITY && m[1].set.kind == NB
          && m[2].set.kind == NBSVM && m[3].set.kind == SCRATCH
          && m[4].set.kind == PROBE && m[5].set.kind == LAST && m[5].set.last == 2
          && m[6].set.kind == FULL && m[6].set.l2sp == 0, "methods: every kind");
    const struct Settings *a = &m[7].set, *b = &m[8].set;
    check(a->kind == FULL && a->l2sp == 0.01 && a->layer_decay == 0.8 && a->lr == 1e-4
          && a->dropout == 0.3 && !strcmp(a->class_weights, "auto") && b->kind == LAST
          && b->last == 1 && b->lm_coef == 0.5 && b->average == 0 && b->head_lr_ratio == 20
          && b->weight_decay == 0.1 && !strcmp(b->class_weights, "none"),
          "methods: every option, of its method alone");
    check(!strcmp(m[7].set.tune, "full+l2sp:0.01+layer-decay:0.8+lr:1e-4+dropout:0.3+class-weights"),
          "methods: a name stays as it was given");
    const struct Settings *words = &m[9].set, *none = &m[10].set, *last = &m[11].set;
    check(words->kind == PROMPT && !strcmp(words->label_words, "a=full,nbs,of;b=probes,at")
          && !strcmp(words->suffix, ", not last") && none->kind == PROBE && !*none->suffix
          && last->kind == LAST && !last->suffix,
          "methods: a comma ends one if the name of a method follows, else it is part of a value");
}

static void test_budgets(void)
{
    struct Compare c = {.labels_text = "4,50,1k,all",
                        .task = {.train_count = 1234, .base = {.config = {.labels = 2}}}};
    parse_budgets(&c);
    check(c.budget_count == 4 && c.budgets[0] == 4 && c.budgets[1] == 50 && c.budgets[2] == 1000
          && c.budgets[3] == 1234, "labels: numbers, 1k, all");
    c = (struct Compare){.labels_text = "20,100,500,1000,all",
                         .task = {.train_count = 500, .base = {.config = {.labels = 11}}}};
    parse_budgets(&c);
    check(c.budget_count == 2 && c.budgets[0] == 100 && c.budgets[1] == 500,
          "labels: too few are left out, too many are all of them, once");
}

/* --- One row of compare is what `train` and `eval` say --- */

/* A small random model with a tokenizer of bytes, where compare and train look for one. */
static void save_random_model(const char *dir)
{
    struct Model model;
    struct Json meta = {0};
    char *merges = path_of("merges.txt");
    stage_file(merges, "#version: 0.2\na b\n", 18);
    commit_outputs();
    struct Tokenizer *tokenizer = tokenizer_load(merges);
    model_create(&model, (struct Config){2, 2, 16, 24, 258, 0, NULL});
    model_init(&model, 5);
    make_directory(dir);
    tokenizer_stage(tokenizer, dir);
    commit_outputs();
    stage_model(dir, &model, &meta, tokenizer->eot);
    commit_outputs();
    model_free(&model);
    free(merges);
}

/* Labelled texts number order[0], order[1], ... of those that begin alike. */
static void write_texts(const char *path, const char *begin, const int *order, int count)
{
    struct Buffer b = {0};
    append(&b, "label\ttext\n");
    for (int i = 0; i < count; i++) {
        const int n = order ? order[i] : i;
        append(&b, "%s\t%s %d %s\n", n % 3 ? "no" : "yes", begin, n, n % 3 ? "abba" : "baab");
    }
    stage_file(path, b.data, b.size);
    commit_outputs();
    free(b.data);
}

#define RUN(command, ...) \
    command(COUNT(((char *[]){__VA_ARGS__})), (char *[]){__VA_ARGS__})

/* With all labels, compare learns from the texts in the order of choose_subset. `train` on a file
 * in that order, with the same seed, must make the same classifier. */
static void test_row_is_train(void)
{
    enum { TEXTS_TO_LEARN = 50, TEXTS_TO_TEST = 30 };
    char *base = path_of("base"), *train = path_of("train.tsv"), *test = path_of("test.tsv"),
         *table = path_of("compare"), *same = path_of("same.tsv"), *out = path_of("classifier");
    int order[TEXTS_TO_LEARN];
    struct Compare c = labelled((int[]){TEXTS_TO_LEARN, 0}, 2);
    for (int i = 0; i < TEXTS_TO_LEARN; i++) c.task.data.labels[i] = i % 3 == 0;
    choose_subset(order, &c, TEXTS_TO_LEARN, 1);
    save_random_model(base);
    write_texts(train, "learn", NULL, TEXTS_TO_LEARN);
    write_texts(test, "test", NULL, TEXTS_TO_TEST);
    write_texts(same, "learn", order, TEXTS_TO_LEARN);
    RUN(command_compare, "--model", base, "--train", train, "--test", test, "--out", table,
        "--labels", "all", "--seeds", "1", "--methods", "full+l2sp:0.1", "--steps", "30");
    RUN(command_train, "--model", base, "--train", same, "--out", out, "--tune", "full", "--l2sp",
        "0.1", "--steps", "30", "--seed", "1");

    struct Task classifier = {.set = DEFAULT_SETTINGS};
    struct Dataset *d = &classifier.data;
    classifier.set.model = out;
    load_classifier(&classifier);
    const struct Examples e = read_examples(test, classifier.set.columns);
    add_examples(d, classifier.tokenizer, &e, classifier.model.config.label_names, 2,
                 classifier.window);
    real p[TEXTS_TO_TEST * 2];
    const double loss = run_examples(&classifier.runner, p, NULL, NULL, d->count, NULL);
    const struct Scores s = score(p, d->labels, loss, d->count, 2);
    char *row = text_of("full+l2sp:0.1\t50\t1\t%.6f\t%.6f\t%.6f\t", s.accuracy, s.macro_f1,
                        s.loss);
    const char *rows = read_journal(text_of("%s/compare.tsv", table), table_header);
    check(rows && !strncmp(rows, row, strlen(row)),
          "a row of compare is what train and eval compute: %s", row);
}

/* --- layers: what every block gives --- */

/* Every level alone, from the embeddings on; the highest one is what the probe reads. */
static void test_levels(void)
{
    enum { COUNT_HERE = 9, LAYERS = 3, WIDTH = 16 };
    struct Model model;
    struct Runner r;
    struct Dataset d = {0};
    struct Tokenizer *tokenizer = tokenizer_load(path_of("merges.txt"));
    model_create(&model, (struct Config){LAYERS, 2, WIDTH, 24, 258, 0, NULL});
    model_init(&model, 6);
    for (int c = 0; c < WIDTH; c++) { model.w.lnf_w[c] += c; model.w.lnf_b[c] = 1; }
    for (int i = 0; i < COUNT_HERE; i++)
        add_text(&d, tokenizer, (struct Bytes){"abbaabbaabba", (i * 5) % 12}, -1,
                 (struct Window){24, "tail"});
    runner_create(&r, &model, &d, 30, WORK_EVAL);           /* several batches */
    real got[2 * (LAYERS + 1)][COUNT_HERE * WIDTH] = {0}, want[COUNT_HERE * WIDTH], mean, rstd;
    const int order[COUNT_HERE] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    read_levels(got[0], &r, order);
    bool same = true;
    double error = 0;
    for (int l = 0; l <= LAYERS; l++)
        for (int i = 0; i < COUNT_HERE; i++) {
            const struct Batch b = gather(&r, &order[i], 1);
            double sum[WIDTH] = {0};
            blocks_forward(&model, &r.ws, &b, 0, 0, 0, l);
            for (int n = 0; n < b.rows; n++) {
                layernorm_forward(want, &mean, &rstd, r.ws.activations[l].x + (size_t)n * WIDTH,
                                  model.w.lnf_w, model.w.lnf_b, 1, WIDTH);
                for (int c = 0; c < WIDTH; c++) sum[c] += want[c];
            }
            same = same && !memcmp(want, got[2 * l] + i * WIDTH, WIDTH * sizeof *want);
            for (int c = 0; c < WIDTH; c++)
                error = fmax(error, fabs(got[2 * l + 1][i * WIDTH + c] - sum[c] / b.rows));
        }
    check(same, "layers: the last token after each number of blocks, and ln_f");
    check(error < 1e-5, "layers: the mean over tokens, within %.1e", error);
    run_examples(&r, NULL, want, NULL, COUNT_HERE, NULL);
    check(!memcmp(want, got[2 * LAYERS], sizeof want),
          "layers: after all blocks, the probe's features");
    runner_free(&r);
    model_free(&model);
}

int main(void)
{
    program = "test_compare";
    if (!mkdtemp(directory)) return 1;
    test_words();
    test_bags_by_strings();
    test_growth();
    test_naive_bayes();
    test_svm();
    test_nbsvm(2);
    test_nbsvm(3);
    test_ratio_by_hand();
    test_separable();
    test_subsets();
    test_student();
    test_mean_right();
    test_estimates();
    test_significance();
    test_holm();
    test_labels_needed();
    test_methods();
    test_budgets();
    test_row_is_train();
    test_levels();
    char *remove = text_of("rm -r '%s'", directory);
    if (system(remove)) return 1;
    return report();
}
