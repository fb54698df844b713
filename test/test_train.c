/* test_train.c: what train_gpt.c itself computes: shards, the order of the data, accumulation,
 * dropout's masks, clipping, evaluation, the order in which a run's files are written, the choice of
 * the next token, text that stays valid UTF-8, the live line. */

#define _GNU_SOURCE                 /* posix_openpt */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *watched_log;
static bool log_flushed, log_before_state;      /* set by the two functions below */

/* fsync, which notes that it was called for the watched log. */
static int noting_fsync(int file)
{
    struct stat flushed, log;
    log_flushed |= watched_log && !fstat(file, &flushed) && !stat(watched_log, &log)
                   && flushed.st_ino == log.st_ino;
    return fsync(file);
}

/* rename, which notes whether log.tsv had been flushed when the state got its name. */
static int noting_rename(const char *from, const char *to)
{
    if (strstr(to, "state.safetensors")) log_before_state = log_flushed;
    return rename(from, to);
}

#define fsync noting_fsync
#define rename noting_rename
#define TRAIN_GPT_NO_MAIN
#include "fence.h"
#include "../train_gpt.c"
#include "check.h"
#include "terminal.h"
#include <sys/wait.h>

static char directory[] = "/tmp/test_train_XXXXXX";
static struct TrainOptions defaults;            /* set as main found it */

static const char *path_of(const char *name) { return text_of("%s/%s", directory, name); }

static const char *write_tokens_shard(const char *name, const uint16_t *tokens, int count,
                                      int promised, int magic, int version)
{
    int32_t header[256] = {magic, version, promised};
    struct Buffer b = {0};
    append_bytes(&b, header, sizeof header);
    append_bytes(&b, tokens, count * sizeof *tokens);
    const char *path = path_of(name);
    stage_file(path, b.data, b.size);
    commit_outputs();
    free(b.data);
    return path;
}

/* A shard whose token at place p of the whole text is p: first, first + 1, ... */
static const char *write_shard(const char *name, int first, int count, int promised, int magic,
                               int version)
{
    uint16_t tokens[200] = {0};
    for (int i = 0; i < count; i++) tokens[i] = (uint16_t)(first + i);
    return write_tokens_shard(name, tokens, count, promised, magic, version);
}

static void open_and_check(const void *path)
{
    open_shard(path, &(struct Tokenizer){.vocabulary = 100, .hash = 7});
}

/* The status of a child that does something, and what it wrote to stderr. */
static int status_of(void (*something)(const void *), const void *with, char *message, int size)
{
    int channel[2], status, used = 0;
    if (pipe(channel)) return -1;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(channel[1], 2);
        something(with);
        _exit(0);
    }
    close(channel[1]);
    for (ssize_t n = 1; n > 0 && used < size - 1; used += n > 0 ? (int)n : 0)
        n = read(channel[0], message + used, size - 1 - used);
    message[used] = 0;
    close(channel[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_shards(void)
{
    const char *empty = path_of("empty.bin");
    stage_file(empty, "", 0);
    commit_outputs();
    const struct { const char *path, *says, *what; int status; } cases[] = {
        {write_shard("good.bin", 0, 50, 50, SHARD_MAGIC, 1), "", "a sound shard opens", 0},
        {write_shard("magic.bin", 0, 50, 50, 12345, 1), "not a token shard", "wrong magic", 1},
        {write_shard("version.bin", 0, 50, 50, SHARD_MAGIC, 7), "version 1", "wrong version", 1},
        {write_shard("short.bin", 0, 49, 50, SHARD_MAGIC, 1), "50 tokens", "cut short", 1},
        {write_shard("long.bin", 0, 51, 50, SHARD_MAGIC, 1), "50 tokens", "too long", 1},
        {write_shard("negative.bin", 0, 0, -1, SHARD_MAGIC, 1), "-1 tokens", "negative count", 1},
        {write_shard("ids.bin", 80, 50, 50, SHARD_MAGIC, 1), "token 129", "an id too large", 1},
        {empty, "not a token shard", "an empty file", 1},
        {path_of("none.bin"), "cannot be read", "no file", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char message[1000];
        const int status = status_of(open_and_check, cases[i].path, message, sizeof message);
        const char *slash = strrchr(cases[i].path, '/') + 1;
        const bool named = strstr(message, slash) && strstr(message, cases[i].says);
        check(status == cases[i].status && (status == 0 || named), "shard: %s: status %d",
              cases[i].what, status);
    }
}

/* The text of all shards that match; no id reaches `vocabulary`. */
static struct Data open_all(const char *pattern, int vocabulary)
{
    const struct Tokenizer tokenizer = {.vocabulary = vocabulary};
    return open_data("data", pattern, &tokenizer);
}

/* Three shards, one of them empty: 137 tokens, each its own place. */
static struct Data place_data(void)
{
    write_shard("p0.bin", 0, 100, 100, SHARD_MAGIC, 1);
    write_shard("p1.bin", 100, 0, 0, SHARD_MAGIC, 1);
    write_shard("p2.bin", 100, 37, 37, SHARD_MAGIC, 1);
    return open_all(path_of("p?.bin"), 137);
}

/* A file of holes, which take no disk: a shard that promises 2^31 - 1 tokens and is `bytes` long.
 * Its last ten tokens are 1 to 10, the others 0. */
static const char *write_holes(const char *name, off_t bytes)
{
    const char *path = write_shard(name, 0, 0, INT32_MAX, SHARD_MAGIC, 1);
    const off_t end = SHARD_HEADER + 2 * (off_t)INT32_MAX;
    FILE *f = fopen(path, "r+b");
    const bool good = f && !fseeko(f, end - 20, SEEK_SET);
    for (uint16_t token = 1; good && token <= 10; token++) fwrite(&token, sizeof token, 1, f);
    check(good && !fflush(f) && !ftruncate(fileno(f), bytes), "%s: %.1f GB", name, bytes / 1e9);
    if (f) fclose(f);
    return path;
}

/* A file whose name is the pattern comes before the files that the pattern matches. */
static void test_brackets(void)
{
    make_directory(path_of("a[1]"));
    make_directory(path_of("a1"));
    write_shard("a[1]/p0.bin", 0, 50, 50, SHARD_MAGIC, 1);
    write_shard("a1/p0.bin", 0, 20, 20, SHARD_MAGIC, 1);
    write_shard("a1/p1.bin", 0, 10, 10, SHARD_MAGIC, 1);
    check(open_all(path_of("a[1]/p0.bin"), 137).tokens == 50
          && open_all(path_of("a[1]/p?.bin"), 137).tokens == 30, "a path with brackets");
}

/* Sizes that do not fit into 31 or 32 bits. */
static void test_large(void)
{
    char message[1000];
    const off_t full = SHARD_HEADER + 2 * (off_t)INT32_MAX;
    const int status = status_of(open_and_check, write_holes("larger.bin", 5000000000), message,
                                         sizeof message);
    check(status == 1 && strstr(message, "705031682 bytes more than the 2147483647 tokens"),
          "a shard of 5 GB is refused");
    const char *path = write_holes("large.bin", full);
    const struct Shard s = {path, open_file(path, false), INT32_MAX, .vocabulary = 11};
    struct Shard three[] = {s, s, s};
    const int64_t n = s.count;
    const struct Data d = {three, 3, 3 * n, 0};
    int tokens[16];
    read_tokens(tokens, &d, 3 * n - 6, 6);
    check(n == INT32_MAX && tokens[0] == 5 && tokens[5] == 10, "the last of %lld tokens",
          (long long)d.tokens);
    read_tokens(tokens, &d, 2 * n - 2, 4);
    check(tokens[0] == 9 && tokens[1] == 10 && tokens[2] == 0, "across 2^32");
    struct Sequences sequences = cut(&d, 1000, "length", 0);
    cut_by_length(&sequences, 1);
    check(sequences.count == (3 * n + 999) / 1000
          && start_of(&sequences, sequences.count - 1) == (sequences.count - 1) * 1000 - 1
          && start_of(&sequences, sequences.count) == 3 * n - 1,
          "%lld sequences", (long long)sequences.count);
}

/* The fingerprint of the data: another when any token of any shard is another, or the order. */
static void test_fingerprint(void)
{
    static const char *const patterns[] = {"f/0?.bin", "f/1?.bin", "f/2?.bin", "f/3?.bin"};
    static const int firsts[][2] = {{0, 50}, {1, 50}, {0, 51}, {50, 0}};
    uint64_t fingerprints[4];
    bool differ = true;
    make_directory(path_of("f"));
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 2; k++)
            write_shard(text_of("f/%d%d.bin", i, k), firsts[i][k], 40, 40, SHARD_MAGIC, 1);
        fingerprints[i] = open_all(path_of(patterns[i]), 137).fingerprint;
        for (int k = 0; k < i; k++) differ &= fingerprints[i] != fingerprints[k];
    }
    check(differ, "the fingerprint depends on the first shard, the last and their order");
}

/* Cut by length. */
static void create_loader(struct Loader *l, const struct Data *d, int T, uint64_t seed)
{
    loader_create(l, cut(d, T, "length", 0), seed);
}

/* The first input of the next sequence, which is then read. */
static int64_t next_sequence(struct Loader *l)
{
    const int i = loader_peek(l);
    l->next++;
    return start_of(&l->sequences, i);
}

/* Reads one epoch. Whether every target but token 0 came once, after its predecessor. */
static bool epoch_complete(struct Loader *l, const struct Data *d)
{
    int seen[200] = {0};
    bool good = true;
    const struct Sequences *s = &l->sequences;
    struct Batch m = batch_create(s->T);
    const int64_t epoch = l->epoch;
    while (l->epoch == epoch && l->next < s->count) {
        batch_clear(&m);
        good &= add_sequence(&m, s, loader_peek(l)) && m.rows >= 1 && m.rows <= s->T;
        l->next++;
        for (int n = 0; n < m.rows; n++) {
            good &= m.targets[n] == m.tokens[n] + 1;
            seen[m.targets[n]]++;
        }
    }
    for (int i = 0; i < d->tokens; i++) good &= seen[i] == (i > 0);
    batch_free(&m);
    return good;
}

static bool orders_differ(const struct Loader *a, const struct Loader *b)
{
    return a->sequences.count != b->sequences.count
           || memcmp(a->order, b->order, a->sequences.count * sizeof(int));
}

static void cut_tokens(const void *tokens)
{
    const struct Data d = {.tokens = *(const int64_t *)tokens};
    cut(&d, 1, "length", 0);
}

/* Sequences are counted in int, and a shift may add one. */
static void test_most_sequences(void)
{
    char message[1000];
    const int64_t more = INT32_MAX + INT64_C(1);
    check(status_of(cut_tokens, &more, message, sizeof message) == 1
          && strstr(message, "too many sequences (2147483647)"), "2^31 - 1 sequences are refused");
}

static void test_epochs(void)
{
    struct Data d = place_data();
    struct Loader l, again;
    bool good = d.tokens == 137, shuffled = false;
    for (int T = 1; T <= 140; T += T < 10 ? 1 : 13) {
        create_loader(&l, &d, T, 5);
        for (int epoch = 0; epoch < 4; epoch++) {
            loader_seek(&l, epoch, 0);
            good &= epoch_complete(&l, &d);
        }
    }
    check(good, "every token of an epoch is a target once, for T = 1 .. 140 over three shards");

    create_loader(&l, &d, 8, 5);
    create_loader(&again, &d, 8, 5);
    bool same = true;
    for (int read = 0; read < 60; read++) {
        loader_seek(&again, l.epoch, l.next);
        same &= next_sequence(&again) == next_sequence(&l);
        if (read < 17) shuffled |= l.order[read] != read;
    }
    check(same && l.epoch >= 3, "the place in the data can be taken up anywhere, across epochs");
    check(shuffled, "the order is shuffled");

    loader_seek(&l, 0, 0);
    loader_seek(&again, 1, 0);
    const bool epochs_differ = orders_differ(&l, &again);
    create_loader(&again, &d, 8, 6);
    check(epochs_differ && orders_differ(&l, &again), "another epoch or seed: another order");

    write_shard("two.bin", 0, 2, 2, SHARD_MAGIC, 1);
    struct Data two = open_all(path_of("two.bin"), 2);
    create_loader(&l, &two, 8, 5);
    check(epoch_complete(&l, &two) && l.sequences.count == 1, "two tokens are data enough");
}

/* Documents of 5, 1, 2, 20 and 3 tokens, <|endoftext|> (id 99) first, in shards that end in the
 * middle of one and right after one; the text before the first mark is a document, too. */
static void test_documents(void)
{
    enum { EOT = 99 };
    const int lengths[] = {4, 5, 1, 2, 20, 3}, shards[] = {7, 5, 12, 11};
    uint16_t text[35];
    int n = 0, at = 0;
    for (int d = 0; d < 6; d++)
        for (int i = 0; i < lengths[d]; i++, n++) text[n] = i == 0 && d > 0 ? EOT : n;
    for (int i = 0; i < 4; at += shards[i++]) {
        char *name = text_of("d%d.bin", i);
        write_tokens_shard(name, text + at, shards[i], shards[i], SHARD_MAGIC, 1);
        free(name);
    }
    struct Data d = open_all(path_of("d?.bin"), 100);
    bool complete = true, alone = true, whole = true;
    for (int T = 1; T <= 40; T++) {
        const struct Sequences s = cut(&d, T, "documents", EOT);
        int seen[35] = {0};
        for (int i = 0; i < s.count; i++) {
            const int64_t begin = start_of(&s, i);
            const int length = (int)(start_of(&s, i + 1) - begin);
            complete &= length >= 1 && length <= T;
            for (int k = 0; k < length; k++) {
                seen[begin + k]++;
                alone &= k == 0 || text[begin + k] != EOT;
            }
            whole &= begin == 0 || text[begin] == EOT || T < 20;
        }
        for (int i = 0; i < 35; i++) complete &= seen[i] == (i < 34);
        whole &= T < 20 || s.count == 6;
        free(s.starts);
    }
    check(complete, "cut by documents: every token but the last is an input once, for T = 1 .. 40");
    check(alone, "cut by documents: <|endoftext|> is nowhere but at the beginning of a sequence");
    check(whole, "cut by documents: one sequence for each document that fits");
}

/* A run on the place data, with a random model of context 12. */
static void tiny_run(struct Run *r, int batch, int accumulate)
{
    static struct Tokenizer tokenizer = {.vocabulary = 137, .eot = 136, .hash = 7};
    *r = (struct Run){0};
    const struct Config config = {2, 2, 16, 12, 137, 0, NULL};
    set = defaults;
    set.batch = batch;
    set.accumulate = accumulate;
    set.context = config.context;
    r->tokenizer = &tokenizer;
    r->data = place_data();
    model_create(&r->model, config);
    model_init(&r->model, 3);
    model_train_from(&r->model, 0);
    take_memory(r);
}

/* The choice on a machine of 230 GFLOP/s, by hand: 512 tokens of vocabulary and context 128 take
 * 1.77M FLOPs a token on rung 1 of the ladder, 3.15M on 2, 5.90M on 3, 12.4M on 4; their blocks have
 * 0.20M, 0.39M, 0.79M and 1.77M parameters. */
static void test_what_suits(void)
{
    static struct Tokenizer tokenizer = {.vocabulary = 512};
    const struct { double seconds; int64_t text; int layers, channels; } cases[] = {
        {60, 500000, 1, 128},           /* 3.9M tokens, 20 a parameter; rung 2: 2.2M, 5.6 */
        {180, 500000, 2, 128},          /* 6.6M tokens, 17 a parameter; rung 3: 3.5M, 4.5 */
        {300, 500000, 2, 128},          /* rung 3: 5.8M tokens, 7.4 a parameter */
        {600, 50000000, 4, 128},        /* 11.7M tokens, 15 a parameter; rung 4: 5.6M, 3.1 */
        {1e-3, 500000, 1, 64}, {1e9, 500000, 12, 768},
    };
    struct Run r = {.tokenizer = &tokenizer, .peak = 230e9};
    set = defaults;
    set.context = 128;
    for (int i = 0; i < COUNT(cases); i++) {
        set.time_limit = cases[i].seconds;
        r.data.tokens = cases[i].text;
        const struct Config c = model_that_suits(&r);
        check(c.layers == cases[i].layers && c.channels == cases[i].channels,
              "what suits %g s and a text of %lld tokens: %d layers, %d channels",
              cases[i].seconds, (long long)cases[i].text, c.layers, c.channels);
    }
    set.time_limit = 0;
    set.steps = 1000;
    const struct Config c = model_that_suits(&r);
    check(tokens_in_run(&r, &c) == 4096000 && c.layers == 2 && c.channels == 128,
          "what suits 1,000 steps: %d layers, %d channels", c.layers, c.channels);
}

static void test_accumulation(void)
{
    double loss_once = 0, *once = NULL, *parts = NULL;
    for (int accumulate = 1; accumulate <= 16; accumulate *= 4) {
        struct Run r;
        tiny_run(&r, 16 / accumulate, accumulate);
        const int64_t targets = read_step(&r, accumulate);
        const double loss = step_gradient(&r, accumulate, 1, targets);
        double **to = accumulate == 1 ? &once : &parts;
        *to = resize(*to, r.model.parameter_count * sizeof **to);
        for (size_t i = 0; i < r.model.parameter_count; i++) (*to)[i] = r.part.grads[i];
        if (accumulate == 1) loss_once = loss;
        else check(fabs(loss - loss_once) < 1e-6
                   && relative_error(parts, once, r.model.parameter_count) < 1e-5,
                   "16 sequences, some short, in %d parts: the same mean gradient", accumulate);
    }
}

/* Minibatch a of a step is a pass of its own, whose masks depend on the seed, the step and a: the
 * loss of a step is the mean of those of its minibatches alone, and no two of them are the same,
 * although all read the same tokens. */
static void test_masks(void)
{
    enum { PASSES = 8 };
    struct Run r, other;
    double alone[PASSES], loss[3];
    tiny_run(&r, 4, 3);
    set.dropout = 0.5;
    const int64_t n = read_step(&r, 1);
    for (int a = 1; a < 3; a++) r.minibatches[a] = r.minibatches[0];
    for (int i = 0; i < PASSES; i++) alone[i] = step_gradient(&r, 1, i, n);
    for (int step = 0; step < 3; step++) loss[step] = step_gradient(&r, 2, step, 2 * n);
    bool differ = true, mean = true;
    for (int i = 0; i < PASSES; i++) for (int k = 0; k < i; k++) differ &= alone[i] != alone[k];
    for (int s = 0; s < 3; s++)
        mean &= fabs(loss[s] - (alone[2 * s] + alone[2 * s + 1]) / 2) < 1e-12;
    check(differ && mean, "dropout: every minibatch of every step has masks of its own");
    tiny_run(&other, 4, 1);
    set.dropout = 0.5;
    set.seed++;
    read_step(&other, 1);
    other.minibatches[0] = r.minibatches[0];
    check(step_gradient(&other, 1, 0, n) != alone[0], "dropout: another seed has other masks");
}

/* A whole run on the place data, in a directory of its own. Its weights are so large that the norm
 * of the gradient is above 1. */
static void run_in(struct Run *r, const char *name, int steps, double clip)
{
    tiny_run(r, 4, 2);
    for (size_t i = 0; i < r->model.parameter_count; i++) r->model.weights[i] *= 5;
    set.steps = steps;
    set.clip = clip;
    set.eval_every = 1;
    set.out = path_of(name);
    r->files.last = text_of("%s/last", set.out);
    r->files.state = text_of("%s/state.safetensors", set.out);
    r->peak = 1;
    const double now = seconds();
    r->clock = (struct Clock){.first = 1, .start = now, .mark = now, .saved = now, .shown = now};
    make_directory(set.out);
    watched_log = text_of("%s/log.tsv", set.out);
    log_flushed = log_before_state = false;
    open_log(r);
    pretrain(r);
}

/* After the first step, AdamW's moment m is (1 - beta1) times the gradient as it was clipped. */
static void test_clip(void)
{
    double norms[4];
    static const double clips[] = {0, 0.25, 0.5, 1e9};
    for (int i = 0; i < 4; i++) {
        struct Run r;
        double square = 0;
        run_in(&r, "clip", 1, clips[i]);
        for (size_t k = 0; k < r.model.parameter_count; k++)
            square += (double)r.model.m[k] * r.model.m[k];
        norms[i] = sqrt(square) / (1 - r.model.beta1);
        close(r.files.log.file.fd);
    }
    check(norms[0] > 1 && norms[3] == norms[0],
          "clip: 0 is no limit, nor is one above the norm, %.3f", norms[0]);
    check(fabs(norms[1] - 0.25) < 1e-6 && fabs(norms[2] - 0.5) < 1e-6,
          "clip: the gradient is scaled to the norm 0.25 or 0.5: %.6f, %.6f", norms[1], norms[2]);
}

static void test_log_before_state(void)
{
    struct Run r;
    run_in(&r, "order", 2, 1);
    close(r.files.log.file.fd);
    check(log_before_state, "the log is on the disk before the state that counts its rows");
}

/* A step of a run that does nothing else. Returns whether it may update the weights. */
static bool sound(struct Run *r, double norm)
{
    const bool good = judge_step(r, &(struct Step){.loss = 1, .norm = norm});
    if (!good) forget_gradient(&r->model);
    r->step++;
    return good;
}

/* Spikes: norms of 1 to 1.32, the median 1.16, then higher ones. Only --skip-spikes skips them. */
static void test_spikes(void)
{
    struct Run r = {0}, s, resumed;
    int good = 0;
    tiny_run(&s, 1, 1);
    set.skip_spikes = true;
    for (int i = 0; i < 32; i++) good += sound(&s, i == 20 ? 100 : 1 + 0.01 * i);
    check(good == 32, "spikes: none in the first 32 steps");
    check(sound(&s, 1.32) && sound(&s, 5.75) && !sound(&s, 5.95),
          "spikes: above 5 times the median, not below");
    check(s.skipped == 1 && s.model.grads[0] == 0, "spikes: counted");
    set.skip_spikes = false;
    check(sound(&s, 1e9) && s.skipped == 1, "spikes: without --skip-spikes the step is made");
    set.skip_spikes = true;
    for (good = 0; good < 50 && !sound(&s, 1e9); good++) ;
    check(good == 15 && sound(&s, 1e9),
          "spikes: what is no longer rare is none: after 1 and %d more", good);

    run_in(&r, "spikes", 40, 1);
    r.skipped = 3;
    r.norms[7] = INFINITY;
    save_run(&r, true);
    close(r.files.log.file.fd);
    const struct TrainOptions same = set;
    tiny_run(&resumed, 4, 2);
    set = same;
    resumed.files = r.files;
    restore_run(&resumed);
    check(resumed.skipped == 3 && !memcmp(resumed.norms, r.norms, sizeof r.norms),
          "spikes: a resumed run knows the same norms");
}

static void test_measuring(void)
{
    struct Run r;
    tiny_run(&r, 4, 2);
    const size_t bytes = r.model.parameter_count * sizeof(real);
    real *before = resize(NULL, bytes);
    memcpy(before, r.model.weights, bytes);
    measure_step(&r);
    bool zero = true;
    for (size_t i = 0; i < r.model.parameter_count; i++)
        zero &= r.model.m[i] == 0 && r.model.v[i] == 0;
    const bool begins = r.loader.epoch == 0 && r.loader.next == 0;
    check(zero && begins && !memcmp(before, r.model.weights, bytes),
          "measuring the speed leaves no trace");
    for (size_t i = 0; i < r.model.parameter_count; i++) before[i] = r.model.weights[i] *= 1e30f;
    step_gradient(&r, 1, 1, read_step(&r, 1));
    const bool finite = isfinite(grad_norm(&r.part));
    forget_gradient(&r.part);
    measure_step(&r);
    check(!finite && !memcmp(before, r.model.weights, bytes),
          "nor does it with a gradient that is not finite");
    tiny_run(&r, 4, 1000);
    const double begin = seconds(), step = measure_step(&r), took = seconds() - begin;
    check(took < step,
          "measuring a step of 1000 minibatches (%.3f s) takes %.3f s", step, took);
}

static void test_evaluation(void)
{
    struct Run r;
    tiny_run(&r, 5, 1);
    uint32_t offset[138];
    const struct Tokenizer plain = {.vocabulary = 137, .eot = -1, .offset = offset};
    struct Tokenizer ends = plain;
    for (int i = 0; i < 138; i++) offset[i] = 2 * i;
    struct Batch *m = &r.minibatches[0], one = batch_create(12),
                     two = batch_create(24);
    const struct Sequences s = cut(&r.data, 12, "length", 0);
    struct Score all = evaluate(&r.model, &r.ws, m, &s, &plain, 0);
    struct Score alone = evaluate(&r.model, &r.ws, &one, &s, &plain, 0);
    struct Score some = evaluate(&r.model, &r.ws, m, &s, &plain, 40);
    const bool spread = m->sequences == 4 && m->tokens[12] == 36 && m->tokens[36] == 108;
    struct Score again = evaluate(&r.model, &r.ws, &two, &s, &plain, 40);
    check(spread, "evaluation: a budget of 4 of 12 sequences is spread over the data");
    check(all.tokens == 136 && fabs(all.loss - alone.loss) < 1e-6,
          "evaluation: all targets, in batches of any size");
    check(some.tokens == 48 && fabs(some.loss - again.loss) < 1e-6,
          "evaluation: a budget, the same tokens every time");
    check(fabs(all.bits_per_byte - all.loss / M_LN2 / 2) < 1e-9,
          "bits per byte of two-byte tokens");
    ends.eot = 136;             /* the last token of the data */
    struct Score marked = evaluate(&r.model, &r.ws, m, &s, &ends, 0);
    check(marked.loss == all.loss
          && fabs(marked.bits_per_byte - all.loss * 136 / M_LN2 / (2 * 135)) < 1e-9,
          "bits per byte: <|endoftext|> counts in the loss alone");
}

/* The bytes of tokens: 256 bytes, a merge of two of them, <|endoftext|>. */
static void test_text_bytes(void)
{
    const char *merges = path_of("merges/merges.txt");
    make_directory(path_of("merges"));
    stage_file(merges, "#version: 0.2\na b\n", 18);
    commit_outputs();
    const struct Tokenizer *t = tokenizer_load(path_of("merges"));
    bool single = true;
    for (int id = 0; id < 256; id++) single &= text_bytes(t, id) == 1;
    check(t->eot == 257 && single && text_bytes(t, 256) == 2 && text_bytes(t, 257) == 0,
          "<|endoftext|> stands for no bytes of text");
}

/* --- Sampling --- */

static int by_weight(const void *a, const void *b)
{
    const struct Entry *x = a, *y = b;
    return x->key > y->key || (x->key == y->key && x->id < y->id) ? -1 : 1;
}

/* keep_likely against sorting everything. */
static void test_filters(void)
{
    struct Random random = random_stream(1, 1);
    bool good = true;
    for (int trial = 0; trial < 2000; trial++) {
        struct Entry c[50], sorted[50];
        const int n = 1 + (int)random_below(&random, 50), k = (int)random_below(&random, 60);
        const double p = random_below(&random, 3) ? random_uniform(&random) : 1;
        for (int i = 0; i < n; i++)
            c[i] = sorted[i] = (struct Entry){1.0 + random_below(&random, 20), i, 0};
        qsort(sorted, n, sizeof *sorted, by_weight);
        const int most = k > 0 && k < n ? k : n;
        double total = 0, reached = 0;
        for (int i = 0; i < most; i++) total += sorted[i].key;
        int expected = 0;
        while (expected < most && (expected == 0 || reached < p * total))
            reached += sorted[expected++].key;
        if (p == 1) expected = most;
        const int kept = keep_likely(c, n, k, p);
        good &= kept == expected;
        qsort(c + n - kept, kept, sizeof *c, by_weight);
        for (int i = 0; i < kept && good; i++) good &= c[n - kept + i].id == sorted[i].id;
    }
    check(good, "top-k and top-p keep what sorting keeps, in 2,000 cases");

    struct Entry c[] = {{1, 0, 0}, {2, 1, 0}, {3, 2, 0}, {4, 3, 0}};
    int counts[4] = {0};
    for (int i = 0; i < 100000; i++) counts[draw(c, 4, 4, random_uniform(&random))]++;
    double farthest = 0;
    for (int i = 0; i < 4; i++) {       /* not fmax, on which gcc 12 for aarch64 fails here */
        const double off = fabs(counts[i] / 1e5 - (i + 1) / 10.0);
        if (off > farthest) farthest = off;
    }
    check(farthest < 0.006, "drawing follows the weights (farthest %.4f)", farthest);
}

/* The generator's cache and its sliding window, against reading everything again for each token. */
static void test_generator(void)
{
    struct Run r;
    tiny_run(&r, 1, 1);
    struct Tokenizer tokenizer = {.vocabulary = 137, .eot = 136};
    struct Generator g = generator, naive = generator;
    generator_create(&g, &r.model, &tokenizer);
    generator_create(&naive, &r.model, &tokenizer);
    for (size_t i = 0; i < r.model.parameter_count; i++)
        r.model.weights[i] *= 5;            /* context matters */
    int text[60] = {136, 5, 9, 7}, from = 0;
    double farthest = 0;
    const real *hidden = read_text(&g, text, 4);
    for (int n = 4; n < 60; n++) {
        const real *expected = read_text(&naive, text + from, n - from);
        for (int c = 0; c < 16; c++) farthest = fmax(farthest, fabs(hidden[c] - expected[c]));
        text[n] = n * n * 31 % 137;
        hidden = read_next(&g, text[n]);
        if (n + 1 - from > 12) from = n - 6;    /* the context is 12: its last half is kept */
    }
    check(farthest < 1e-3, "key-value cache: 56 tokens beyond a context of 12, as without it");
    const double temperatures[] = {1e-3, 1e-20, 1e-40, 1e-300};
    g.temperature = 0;
    const int likeliest = next_token(&g, hidden, true);
    for (int i = 0; i < 4; i++) {
        g.temperature = temperatures[i];
        check(next_token(&g, hidden, true) == likeliest, "temperature %g: the likeliest token",
              g.temperature);
    }
    int longer[40];
    for (int i = 0; i < 40; i++) longer[i] = i;
    read_text(&g, longer, 40);
    check(g.count == 12 && g.window[0] == 28, "of a prompt that is too long, the end is read");
}

/* What comes out when text goes in by pieces of `step` bytes, then a line end, which is left out. */
static struct Buffer passed(const char *text, size_t n, size_t step)
{
    struct Buffer out = {0};
    struct Utf8 u = {0};
    for (size_t i = 0; i < n; i += step)
        utf8_feed(&out, &u, (struct Bytes){text + i, n - i < step ? n - i : step});
    utf8_feed(&out, &u, as_bytes("\n"));
    out.data[--out.size] = 0;
    return out;
}

static void test_utf8(void)
{
    const char *bad = "\xEF\xBF\xBD";
    const struct { const char *in, *out; } cases[] = {
        {"plain", "plain"},
        {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"},
        {"a\x80" "b", text_of("a%sb", bad)}, {"\xE2\x82", bad}, {"\xE2\x82x", text_of("%sx", bad)},
        {"\xC0\x80", text_of("%s%s", bad, bad)}, {"\xED\xA0\x80", text_of("%s%s%s", bad, bad, bad)},
        {"\xF4\x90\x80\x80", text_of("%s%s%s%s", bad, bad, bad, bad)},
        {"\xF0\x9F\x98\xC3\xA9", text_of("%s\xC3\xA9", bad)}, {"\xFF", bad},
        {"\xF4\x8F\xBF\xBF", "\xF4\x8F\xBF\xBF"},
        {"\xE0\x9F\xBF", text_of("%s%s%s", bad, bad, bad)},
    };
    bool good = true;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t step = 1; step <= 5; step++)
            good &= !strcmp(passed(cases[i].in, strlen(cases[i].in), step).data, cases[i].out);
    check(good, "UTF-8: whole characters pass, others become U+FFFD, however the text is cut");

    struct Random random = random_stream(9, 9);
    bool valid = true;
    for (int trial = 0; trial < 2000; trial++) {
        char text[40];
        for (int i = 0; i < 40; i++)
            text[i] = "\x41\x80\x9F\xA0\xBF\xC2\xE0\xED\xEF\xF0\xF4\xF5"[random_below(&random, 12)];
        struct Buffer out = passed(text, 40, 3), twice = passed(out.data, out.size, 7);
        valid &= out.size == twice.size && !memcmp(out.data, twice.data, out.size);
        for (size_t i = 0; i < out.size; ) {
            uint32_t c;
            const int length = utf8_decode((unsigned char *)out.data + i, out.size - i, &c);
            if (length <= 0) { valid = false; break; }
            i += length;
        }
        free(out.data);
        free(twice.data);
    }
    check(valid, "UTF-8: what comes out is valid and passes unchanged, in 2,000 cases");

    struct Utf8 u = {0};
    struct Buffer out = {0};
    utf8_feed(&out, &u, as_bytes("\xE2\x82"));
    const bool held = out.size == 0;
    utf8_feed(&out, &u, as_bytes("\xAC"));
    check(held && out.size == 3, "UTF-8: an unfinished character is held back");
}

/* --- The learning rate after fit_to_time has decided --- */

static double rate_at(struct Run *r, int64_t step, int64_t steps)
{
    r->step = step;
    set.steps = steps;
    return rate_of(r);
}

static void test_fall(void)
{
    struct Run r = {.fall = {80, 1}};
    set = (struct TrainOptions){.schedule = "cosine", .warmup = 10, .lr = 1, .min_lr_ratio = 0.1};
    check(rate_at(&r, 10, 0) == 1 && rate_at(&r, 80, 0) == 1,
          "without a number of steps the rate stays high");
    check(rate_at(&r, 5, 96) == 0.5 && fabs(rate_at(&r, 84, 96) - (0.1 + 0.9 / 2)) < 1e-12
          && fabs(rate_at(&r, 89, 96) - (0.1 + 0.9 / 4)) < 1e-12
          && fabs(rate_at(&r, 96, 96) - 0.1) < 1e-12, "then it falls to the last step as 1 - sqrt");
    r.fall.rate = 0.5;
    check(fabs(rate_at(&r, 84, 96) - (0.1 + 0.4 / 2)) < 1e-12
          && fabs(rate_at(&r, 96, 96) - 0.1) < 1e-12, "also from a lower rate");
    set.min_lr_ratio = 0;
    check(fabs(rate_at(&r, 95, 95) - 0.5 * (1 - sqrt(15.0 / 16))) < 1e-12,
          "the last step has a rate above 0");
}

/* --- The time --- */

static void test_median(void)
{
    static const double values[] = {3, 100, 1, 2, 1e9};
    check(median(values, 1) == 3 && median(values, 2) == 3 && median(values, 3) == 3
          && median(values, 4) == 2 && median(values, 5) == 3, "the median of 1 to 5 values");
}

/* A run of --time-limit 1000 s whose steps take 1 s each, with a pause of 100 s in one of them. Its
 * clock is set here. */
static bool time_passes(struct Run *r, double took)
{
    struct Step s = {.lr = rate_of(r), .start = seconds() - took, .targets = 1};
    r->clock.start -= took;
    r->clock.mark -= took;
    r->step++;
    end_step(r, &s);
    return fit_to_time(r, &s);
}

static void test_forecast(void)
{
    struct Run r = {.data.tokens = 1000};
    set = (struct TrainOptions){.schedule = "cosine", .lr = 1, .min_lr_ratio = 0.1,
                                .eval_every = 10, .time_limit = 1000, .context = 1, .batch = 1,
                                .accumulate = 1};
    const double now = seconds();
    double rate = 0;
    bool late = false, early = false;
    r.clock = (struct Clock){.start = now, .mark = now, .shown = now};
    while (!early && r.step < 700) early = time_passes(&r, 1) || r.fall.step;
    time_passes(&r, 150);               /* over four fifths */
    check(!early && r.fall.step == 701 && set.steps > 840 && set.steps < 850,
          "forecast: a pause of 150 of 1000 s does not slow the steps down: %lld after %lld",
          (long long)set.steps, (long long)r.fall.step);
    while (r.step < 740) late |= time_passes(&r, 1);
    rate = rate_of(&r);
    late |= time_passes(&r, 50);
    check(!late && r.fall.step == 741 && set.steps > 790 && set.steps < 805
          && r.fall.rate == rate, "forecast: another while the rate falls: it falls anew");
    while (!late && !finished(&r)) late = time_passes(&r, 1);
    check(finished(&r) && fabs(rate_of(&r) - 0.1) < 1e-9 && time_used(&r) < 1001
          && time_used(&r) > 990, "forecast: the rate ends at its minimum, in time (%.0f s)",
          time_used(&r));

    /* Resumed when 850 s are over: the first step takes 3 s, the others 1 s. */
    const double again = seconds();
    r = (struct Run){.data.tokens = 1000, .step = 850, .fall = {801, 1}};
    r.clock = (struct Clock){.start = again - 850, .mark = again, .mark_step = 850};
    set.steps = 990;
    set.resume = true;
    late = time_passes(&r, 3);
    while (r.step < 900) late |= time_passes(&r, 1);
    check(!late && set.steps == 990 && r.fall.step == 801,
          "forecast: a slow first step of a resumed run says nothing of the others");
}

/* --- Messages --- */

static void test_messages(void)
{
    check(!strcmp(counted(0, "step"), "0 steps") && !strcmp(counted(1, "step"), "1 step")
          && !strcmp(counted(2, "step"), "2 steps"), "0 steps, 1 step, 2 steps");
    check(!strcmp(value_text(NAN), "not a number") && !strcmp(value_text(-NAN), "not a number")
          && !strcmp(value_text(0.25), "0.25"), "no value is shown as nan or -nan");
}

/* --- Cores --- */

/* A file that stands where it would in /sys/fs/cgroup. */
static void put(const char *name, const char *text)
{
    char *path = text_of("%s/%s", directory, name), *slash = strrchr(path, '/');
    *slash = 0;
    make_directory(path);
    *slash = '/';
    stage_file(path, text, strlen(text));
    commit_outputs();
    free(path);
}

static void test_cores(void)
{
    put("v2/cpu.max", "max 100000\n");
    put("v2/a/cpu.max", "300000 100000\n");
    put("v2/a/b/cpu.max", "max 100000\n");
    put("v2/a/b:c/cpu.max", "50000 100000\n");
    const struct { const char *root, *groups; double cores; } cases[] = {
        {"v2", "0::/a\n", 3}, {"v2", "4:cpu:/x\n0::/a/b\n", 3}, {"v2", "0::/a/b:c\n", 0.5},
        {"v2", "0::/\n", INFINITY}, {"v2", "0::/not/mounted\n", INFINITY},
        {"v2", "nonsense", INFINITY}, {"v2", "", INFINITY}, {"none", "0::/a\n", INFINITY},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        put("groups", cases[i].groups);
        const double got = cgroup_limit(path_of("groups"), "0::", path_of(cases[i].root),
                                        "cpu.max");
        check(got == cases[i].cores, "cores, cgroup %s: %.*s: %g", cases[i].root,
              (int)strcspn(cases[i].groups, "\n"), cases[i].groups, got);
    }
    check(cgroup_limit(path_of("no file"), "0::", path_of("v2"), "cpu.max") == INFINITY,
          "cores, no /proc");
    put("v2/a/memory.max", "1000000\n");
    put("groups", "0::/a\n");
    check(cgroup_limit(path_of("groups"), "0::", path_of("v2"), "memory.max") == 1e6,
          "memory of a cgroup");
    put("v1/b/memory.limit_in_bytes", "2000000\n");
    put("groups", "4:cpu:/x\n3:memory:/b\n0::/a\n");
    check(cgroup_limit(path_of("groups"), ":memory:", path_of("v1"), "memory.limit_in_bytes")
              == 2e6, "memory of a cgroup of version 1");
    put("v1/memory.limit_in_bytes", "1500000\n");
    put("groups", "3:memory:/docker/of/another\n");
    check(cgroup_limit(path_of("groups"), ":memory:", path_of("v1"), "memory.limit_in_bytes")
              == 1.5e6, "memory of a cgroup whose own files are not mounted: its root's");
}

/* --- The live line --- */

static void show_line(void *text) { progress(false, "%s", (char *)text); }

static void test_live_line(void)
{
    static char line[] = "step 9/10  loss 3.2143  norm 0.84  eta 5s";       /* 41 columns */
    static const struct { int columns; const char *seen; } cases[] = {
        {0, line}, {80, line}, {41, line}, {40, "step 9/10  loss 3.2143  norm 0.84  eta 5"},
        {30, "step 9/10  loss 3.2143  norm 0"}, {9, "step 9/10"}, {4, "step"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *seen = on_terminal(cases[i].columns, show_line, line);
        const char *text = seen ? strstr(seen, "\033[K") : NULL;
        check(!seen || (text && !strcmp(text + 3, cases[i].seen)), "live line, %d columns%s: %s",
              cases[i].columns, seen ? "" : " (no terminal here)", text ? text + 3 : "");
    }
}

/* What a terminal would obey becomes question marks; text in any language stays. */
static void test_harmless(void)
{
    static const struct { const char *text, *keep, *shown; } cases[] = {
        {"na\xC3\xAFve \xE4\xBD\xA0 \xF0\x9F\x98\x80", "",
         "na\xC3\xAFve \xE4\xBD\xA0 \xF0\x9F\x98\x80"},
        {"\033[31m\x7F\a", "\n\t", "?[31m??"},
        {"a\tb\nc\r", "\n\t", "a\tb\nc?"},
        {"a\tb\nc\r", "", "a?b?c?"},
        {"\x9B" "31m\xC2\x9B" "31m\xC2\xA0", "", "?31m??31m\xC2\xA0"},     /* CSI in one byte */
        {"\xFF\xC3.\xE4\xBD", "", "??.??"},
        {"a\n\x9B" "31m\t\xE4", "\n\t", "a\n?31m\t?"},
        {"", "", ""}};
    int wrong = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = text_of("%s", cases[i].text);
        make_harmless(text, strlen(text), cases[i].keep);
        wrong += strcmp(text, cases[i].shown) != 0;
        free(text);
    }
    check(wrong == 0, "text for a terminal: %d of %d wrong", wrong, COUNT(cases));
}

int main(void)
{
    program = "test_train";
    defaults = set;
    set_threads(1);
    if (!mkdtemp(directory)) return 1;
    test_shards();
    test_large();
    test_brackets();
    test_fingerprint();
    test_epochs();
    test_most_sequences();
    test_documents();
    test_what_suits();
    test_accumulation();
    test_masks();
    test_clip();
    test_log_before_state();
    test_spikes();
    test_measuring();
    test_evaluation();
    test_text_bytes();
    test_filters();
    test_generator();
    test_utf8();
    test_harmless();
    test_fall();
    test_median();
    test_forecast();
    test_messages();
    test_cores();
    test_live_line();
    check(system(text_of("rm -r %s", directory)) == 0, "temporary files removed");
    return report();
}
