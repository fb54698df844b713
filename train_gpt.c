/* train_gpt.c: pretrains a GPT-2 on token shards, evaluates it, and samples text from it.
 *
 *     train_gpt train  --data 'out/train_*.bin' --val out/val.bin --tokenizer out --out out/gpt
 *     train_gpt eval   --model out/gpt --data out/val.bin
 *     train_gpt sample --model out/gpt --prompt "Once upon"
 *     train_gpt info   --model out/gpt
 *
 * Pretraining needs no labels: every token of the text is the label of the tokens before it.
 *
 *     shards         n token ids in files, read as one text x[0] .. x[n-1]          open_data
 *       |            cut after T tokens, or also where a document ends              cut
 *     sequences      inputs x[i] .. x[j-1], targets x[i+1] .. x[j];                 loader_seek
 *       |            each epoch in another random order
 *     minibatches    sequences back to back, up to B * T rows (tokens);             minibatch_fill
 *       |            a step has --accumulate minibatches
 *     gradient       g = dLoss/dw, Loss = the mean of -log p(target) over the step  step_gradient
 *       |
 *     clip           g = g * min(1, clip / |g|)                                     grad_norm
 *       |
 *     AdamW          w moves against g by about the learning rate                   adamw_step
 *       |
 *     evaluate       the loss on other text, every --eval-every steps;              evaluate_run
 *       |            the best model so far is saved
 *     save           the last model and the state, from which --resume goes on      save_run
 *
 *   Part I   pretraining     1 Data    2 Training    3 Evaluation    4 Sampling
 *   Part II  the run         5 Options    6 Metadata, log and state    7 Model and memory
 *                            8 Spikes, time, plan and profile    9 Subcommands
 *
 * Letters as in model.h: B batch, T context, V vocabulary, C channels, N rows of a minibatch. */

#include "model.h"
#define TOKENIZER_NO_MAIN
#include "tokenizer.c"
#include <glob.h>

/* ============================================================================================= */
/* Part I: pretraining                                                                           */
/* ============================================================================================= */

/* ============================================================================================= */
/* 1. Data                                                                                       */
/* ============================================================================================= */

/* All shards of a glob, sorted by name, are one text x[0], x[1], .., x[n-1]. */
struct Data {
    struct Shard *shards;       /* (count) */
    int count;                  /* 0: no data, as for --val when it is not given */
    int64_t tokens;             /* n */
    int vocabulary;             /* of the tokenizer: no id reaches it */
    uint64_t fingerprint;       /* a hash of all tokens: a resumed run must find the same text */
};

/* Dies if a token id is not below the vocabulary, as in shards of another tokenizer. */
static void check_ids(const struct Shard *s, int vocabulary)
{
    int largest = 0;
    #pragma omp parallel for simd reduction(max: largest)
    for (int64_t i = 0; i < s->count; i++)
        largest = s->tokens[i] > largest ? s->tokens[i] : largest;
    if (largest >= vocabulary)
        die("%s: holds token %d, but the tokenizer has only %d. Encode it with the tokenizer that "
            "is used here.", s->path, largest, vocabulary);
}

/* Dies if the shards, sorted by name, are not all those of their sets that the pattern names, or
 * not as they were encoded. */
static void check_sets(const struct Data *d, const char *pattern)
{
    for (int i = 0, n; i < d->count; i += n) {
        const struct Shard *first = &d->shards[i];
        uint64_t set = 0;
        n = count_set(first, d->count - i);
        const char *path = missing_shard(first, pattern);
        if (path)
            die("%s: is missing; %s were encoded together. Encode again, or name only those that "
                "are there.", path, counted(first->shards, "shard"));
        for (int k = 0; k < n; k++) set = mix64(set ^ first[k].sum);
        if (n == first->shards && set != first->set)
            die("%s: the tokens are not those that were encoded: the file, or another of its set, "
                "is damaged. Encode again.", first->path);
    }
}

/* Finds all files that match the pattern, or dies. `option` names the pattern in messages; `run` is
 * the directory of the run whose state the pattern is from, or NULL if it is from the command
 * line. */
static glob_t find_shards(const char *option, const char *pattern, const char *run)
{
    glob_t found;
    const int error = glob(pattern, GLOB_ERR, NULL, &found);
    const bool none = error || found.gl_pathc == 0;
    if (error && error != GLOB_NOMATCH && errno != ENOENT)
        die("--%s %s: cannot be searched for (%s).", option, pattern, strerror(errno));
    if (none && run)
        die("--%s %s: no such file. The run in %s began with it%s. Give --%s.", option, pattern,
            run, *pattern == '/' ? "" : ", relative to the directory in which it was started",
            option);
    if (none)
        die("--%s %s: no such file. Name token shards, with * inside quotes if there are many.",
            option, pattern);
    return found;
}

/* Opens the shards of find_shards. Dies if another tokenizer made one, or if there are fewer than 2
 * tokens in all. */
static struct Data open_data(const char *option, const char *pattern, const char *run,
                             const struct Tokenizer *t)
{
    glob_t found = find_shards(option, pattern, run);
    struct Data d = {.vocabulary = t->vocabulary};
    d.shards = resize(NULL, found.gl_pathc * sizeof *d.shards);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct Shard s = open_shard(text_of("%s", found.gl_pathv[i]), t->hash);
        check_ids(&s, t->vocabulary);
        s.sum = checksum(s.tokens, s.count * sizeof *s.tokens);
        d.shards[d.count++] = s;
        d.tokens += s.count;
        d.fingerprint = mix64(d.fingerprint ^ s.sum);
    }
    globfree(&found);
    check_sets(&d, pattern);
    if (d.tokens < 2)
        die("--%s %s: holds %s; 2 are needed. Encode more text.", option, pattern,
            counted(d.tokens, "token"));
    return d;
}

/* out (n) = x[at] .. x[at + n - 1]. Each shard that is passed makes `at` relative to the next. Dies
 * on an id beyond the vocabulary: no shard had one when it was opened (check_ids). */
static void read_tokens(int *out, const struct Data *d, int64_t at, int n)
{
    for (const struct Shard *s = d->shards; n > 0; at -= s++->count)
        for (; at < s->count && n > 0; at++, n--, out++)
            if ((*out = s->tokens[at]) >= d->vocabulary)
                die("%s: was rewritten while it was in use: token %d is beyond the vocabulary. "
                    "Run again.", s->path, *out);
}

/* --- Sequences: pieces of at most T inputs; the target of an input is the next token --- */

/* The text has n - 1 targets, x[1] .. x[n-1]. Every target belongs to exactly one sequence.
 *
 * Cut by length, sequence i has the inputs x[iT - shift] .. x[(i+1)T - shift - 1]. The first and
 * the last sequence are shorter, because the text begins and ends there:
 *
 *     n = 11, T = 4, shift = 1:    inputs  0 1 2 | 3 4 5 6 | 7 8 9
 *                                  targets 1 2 3 | 4 5 6 7 | 8 9 10
 *
 * Cut by documents, a sequence also ends before each <|endoftext|>, and the next one begins with
 * it. Then attention never reaches from one document into another. */
struct Sequences {
    const struct Data *data;
    int T, shift;               /* shift: 0 .. T-1 */
    int64_t count, *starts;     /* starts (count + 1): the first input of each; NULL: by length */
};

static void cut_by_length(struct Sequences *s, const struct Data *d, int T, int shift)
{
    *s = (struct Sequences){d, T, shift, (d->tokens - 1 + shift + T - 1) / T, NULL};
}

/* Lists where sequences start. The last entry of `starts` is the end of the last sequence. */
static void cut_by_documents(struct Sequences *s, const struct Data *d, int T, int eot)
{
    int64_t at = 0, room = 0;
    *s = (struct Sequences){.data = d, .T = T};
    for (int i = 0; i < d->count; i++)
        for (int64_t k = 0; k < d->shards[i].count && at < d->tokens; k++, at++) {
            const bool first = s->count == 0, document = d->shards[i].tokens[k] == eot,
                       full = !first && at - s->starts[s->count - 1] == T;
            if (!first && !document && !full && at < d->tokens - 1) continue;
            if (s->count == room)
                s->starts = resize(s->starts, (room = 2 * room + 1024) * sizeof *s->starts);
            s->starts[s->count++] = at;
        }
    s->count--;
}

/* Cuts as --cut says: how is "length" or "documents". Dies if sequences cannot be counted in
 * int. */
static void cut(struct Sequences *s, const struct Data *d, int T, const char *how,
                const struct Tokenizer *t)
{
    if (!strcmp(how, "documents")) cut_by_documents(s, d, T, t->eot);
    else cut_by_length(s, d, T, 0);
    if (s->count >= INT32_MAX)              /* a shift may add one */
        die("--data: too many sequences (%lld). Use a longer --context.", (long long)s->count);
}

/* Returns the length of sequence i, 1 .. T, and the place of its first input in *begin. */
static int sequence_at(int64_t *begin, const struct Sequences *s, int64_t i)
{
    const int64_t first = s->starts ? s->starts[i] : i * s->T > s->shift ? i * s->T - s->shift : 0;
    const int64_t end = s->starts ? s->starts[i + 1] : (i + 1) * s->T - s->shift,
                  last = s->data->tokens - 1;
    *begin = first;
    return (int)((end < last ? end : last) - first);
}

/* --- Loader: the sequences of epoch 0, 1, 2, .. in random order --- */

/* Seed and epoch determine the order, so (epoch, next) is all that a resumed run needs. Cut by
 * length, each epoch has another shift, so that a token is not always equally far from the start
 * of its sequence. */
struct Loader {
    struct Sequences sequences;
    int next;                   /* sequences of this epoch that have been read */
    int *order;                 /* (count): a permutation of the sequences */
    uint64_t seed;
    int64_t epoch;
};

enum { ORDER_STREAM = 1, DROPOUT_STREAM, SAMPLE_STREAM };

/* Random stream `index` of one purpose. The streams below 2^32 initialise the weights. */
static struct Random stream_for(uint64_t seed, uint64_t purpose, uint64_t index)
{
    return random_stream(seed, (purpose << 56) + index);
}

/* Goes to the place in the data after `next` sequences of an epoch. */
static void loader_seek(struct Loader *l, int64_t epoch, int next)
{
    struct Sequences *s = &l->sequences;
    struct Random r = stream_for(l->seed, ORDER_STREAM, epoch);
    if (!s->starts) cut_by_length(s, s->data, s->T, (int)random_below(&r, s->T));
    for (int i = 0; i < s->count; i++) l->order[i] = i;
    shuffle(l->order, (int)s->count, &r);
    l->epoch = epoch;
    l->next = next;
}

static void loader_create(struct Loader *l, struct Sequences sequences, uint64_t seed)
{
    *l = (struct Loader){.sequences = sequences, .seed = seed};
    l->order = resize(NULL, (sequences.count + 1) * sizeof *l->order);  /* a shift may add one */
    loader_seek(l, 0, 0);
}

/* The length and the first input of the next sequence, if need be of the next epoch. loader_skip
 * moves on. */
static int loader_peek(struct Loader *l, int64_t *begin)
{
    if (l->next == l->sequences.count) loader_seek(l, l->epoch + 1, 0);
    return sequence_at(begin, &l->sequences, l->order[l->next]);
}

static void loader_skip(struct Loader *l) { l->next++; }

/* --- Minibatches: sequences of any length, back to back, without padding --- */

/* Whether a sequence of `length` rows still fits. Cut by length, a minibatch of B * T rows has at
 * most B sequences, although the two short ones of an epoch may leave room for another. */
static bool minibatch_fits(const struct Minibatch *m, const struct Sequences *s, int length)
{
    return m->batch.rows + length <= m->max_rows
           && (s->starts || (m->batch.sequences + 1) * s->T <= m->max_rows);
}

/* Appends the inputs x[begin] .. and their targets x[begin + 1] .. as `length` new rows. */
static void add_sequence(struct Minibatch *m, const struct Data *d, int64_t begin, int length)
{
    const int row = minibatch_add(m, length);
    read_tokens(m->tokens + row, d, begin, length);
    read_tokens(m->targets + row, d, begin + 1, length);
}

/* Refills a minibatch with as many of the loader's next sequences as fit. */
static void minibatch_fill(struct Minibatch *m, struct Loader *l)
{
    int64_t begin;
    int length;
    minibatch_clear(m);
    for (; minibatch_fits(m, &l->sequences, length = loader_peek(l, &begin)); loader_skip(l))
        add_sequence(m, l->sequences.data, begin, length);
}

/* ============================================================================================= */
/* 2. Training                                                                                   */
/* ============================================================================================= */

/* The options of `train`. option_table explains each of them. */
struct TrainOptions {
    const char *data, *val, *init, *cut, *schedule, *precision, *tokenizer, *out, *sample_prompt;
    int layers, heads, channels, context, batch, accumulate, threads, sample_tokens;
    int64_t steps, warmup, seed, eval_every, eval_tokens, save_every, sample_every;
    double lr, min_lr_ratio, beta2, weight_decay, clip, dropout, epochs, time_limit;
    bool skip_spikes, resume, overwrite, plan, profile;
};

/* What --out holds beside the best model: the directory of the last one, the state, the log. */
struct Paths { char *last, *state, *log; };

/* The mean loss, in nats per token, over `tokens` targets. It depends on the tokenizer, while bits
 * per byte of text do not:
 *   bits_per_byte = sum of losses / ln 2 / bytes of the target tokens
 * <|endoftext|> counts as 0 bytes, because the text does not contain it; its loss counts. */
struct Score { double loss, bits_per_byte; int64_t tokens; };

enum { SPIKE_WINDOW = 33, SPIKE_FACTOR = 5 };   /* see is_sound */

/* One run of training. The first group is fixed before the first step; the second is stored in the
 * state; the third is wall-clock time, which never influences what a step computes. */
struct Run {
    struct TrainOptions options;
    struct Option *table;               /* rows for `options`, which say what was given */
    struct Paths paths;
    struct Model model;
    struct Workspace ws;                /* for one minibatch: B * T rows */
    struct Tokenizer *tokenizer;
    int *bytes;                         /* (V): the length of each token */
    struct Data data, val;
    struct Sequences val_sequences;
    struct Loader loader;
    struct Minibatch *minibatches;      /* (accumulate): those of one step */
    struct Generator *generator;        /* for --sample-every; else NULL */
    FILE *log;
    uint64_t log_hash;                  /* of its rows; the state has it */
    bool replaces;                      /* nothing is saved yet, and --out holds an older run */
    double peak;                        /* FLOP/s of the machine's multiply-adds */

    int64_t step, tokens, best_step;    /* steps and targets so far; step of the best score */
    struct Score last, best;            /* on --val; best.loss starts at infinity */
    struct Buffer history;              /* a line for each evaluation: step, loss, bits per byte */
    int64_t fall_step;                  /* fit_to_time's decision: from this step on the rate */
    double fall_rate;                   /* falls from this one; step 0: it has not decided so */
    double norms[SPIKE_WINDOW];         /* of the last steps, step s at s - 1 modulo the window */
    int64_t skipped;                    /* steps that did not update the weights */

    int64_t first;                      /* the first step of this process */
    bool fitted;                        /* fit_to_time has done its work */
    int64_t mark;                       /* the last step in the first three fifths of the time */
    double marked;                      /* and its time since start, without evaluations */
    double start, began, shown, saved;  /* times: of the process, loop, last line, last save */
    double earlier, working;            /* seconds: of the process before, in steps */
    double evaluating, saving;          /* seconds: the last evaluation, the last save */
    double evaluated;                   /* seconds: all evaluations */
    double rate;                        /* tokens per second, smoothed */
};

/* What is known of one step. */
struct Step { double loss, norm, lr, start, seconds; int64_t targets; };

/* --- What the loop uses of the sections below --- */

static struct Step begin_step(struct Run *r);   /* starts the clock, and the profile if it is on */
static void end_step(struct Run *r, struct Step *s);    /* stops both */
static bool is_sound(struct Run *r, const struct Step *s);      /* whether it may update */
static void skip_update(struct Run *r);         /* counts it, and forgets the gradient */
static void fit_to_time(struct Run *r, const struct Step *s);   /* late: the steps that still fit */
static bool out_of_time(struct Run *r, const struct Step *s);   /* for one more like s */
static void show_step(struct Run *r, const struct Step *s);     /* the live line */
static void evaluate_run(struct Run *r);        /* sets r->last; saves the best model */
static void log_row(struct Run *r, const struct Step *s, const struct Score *val);
static void sample_run(struct Run *r);          /* prints a sample */
static bool save_is_due(const struct Run *r);   /* by --save-every, or by the time since the last */
static void save_run(struct Run *r);            /* the last model and the state */

/* --- One step --- */

/* Fills the first `count` minibatches. Returns n, the number of their targets. */
static int64_t read_step(struct Run *r, int count)
{
    int64_t targets = 0;
    for (int a = 0; a < count; a++) {
        minibatch_fill(&r->minibatches[a], &r->loader);
        targets += r->minibatches[a].batch.rows;
    }
    return targets;
}

/* Returns the mean loss over the n targets of a step, and adds its gradient to model.grads, which
 * adamw_step has left at 0:
 *   loss = 1/n sum over minibatches of sum_i -log p(target_i | tokens up to i)
 * The factor 1/n is the same in every minibatch, so the gradients simply add up: `count`
 * minibatches of B sequences give what one of count * B would give, in the memory of one. Dropout
 * masks are a function of the seed, the step and the minibatch. */
static double step_gradient(struct Run *r, int count, int64_t step, int64_t targets)
{
    const struct TrainOptions *o = &r->options;
    double sum = 0;
    for (int a = 0; a < count; a++) {
        struct Minibatch *m = &r->minibatches[a];
        const uint64_t masks = stream_for(o->seed, DROPOUT_STREAM, step * count + a).key;
        trunk_forward(&r->model, &r->ws, &m->batch, o->dropout, masks);
        sum += lm_head(&r->model, &r->ws, m->targets, (real)(1.0 / targets));
        trunk_backward(&r->model, &r->ws, &m->batch);
    }
    return sum / targets;
}

/* The learning rate of a step when the run has `steps`; 0: as many as time allows, and then the
 * rate stays at --lr after warm-up. The last step has min_lr_ratio times --lr. If that is 0, the
 * rate falls so that it would be 0 one step later: every update counts.
 *
 * After fit_to_time has decided, the rate falls from what it was, as in the last fifth of wsd:
 * learning_rate then takes a warm-up whose end is four times as far before fall_step as the last
 * step is behind it. */
static double rate_of(const struct Run *r, int64_t step, int64_t steps)
{
    const struct TrainOptions *o = &r->options;
    const int64_t end = steps ? steps + (o->min_lr_ratio == 0) : INT64_MAX;
    if (!r->fall_step || step <= r->fall_step)
        return learning_rate(o->schedule, step, end, o->warmup, o->lr, o->min_lr_ratio);
    return learning_rate("wsd", step, end, r->fall_step - 4 * (end - r->fall_step), r->fall_rate,
                         fmin(1, o->min_lr_ratio * o->lr / r->fall_rate));
}

/* --- The loop --- */

/* Whether all steps are done. With --steps 0 their number is not yet known. */
static bool finished(const struct Run *r)
{
    return r->options.steps && r->step >= r->options.steps;
}

/* Trains until --steps are done, the time limit is reached, or a signal asks to stop. The last of
 * --steps is evaluated. Wherever else the run stops, it saves and computes nothing: resumed, it
 * writes what it would have written without the stop. */
static void pretrain(struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    for (bool stop = false; !stop; ) {
        struct Step s = begin_step(r);

        /* Read the minibatches; the gradient of their mean loss. */
        s.targets = read_step(r, o->accumulate);
        s.loss = step_gradient(r, o->accumulate, r->step + 1, s.targets);

        /* Clip: if the norm is above the limit, the gradient is scaled down to it. */
        s.norm = grad_norm(&r->model);
        const double scale = o->clip > 0 && s.norm > o->clip ? o->clip / s.norm : 1;

        /* Update, unless --skip-spikes leaves it out. AdamW counts the updates. */
        const bool update = is_sound(r, &s);
        r->step++;
        r->tokens += s.targets;
        s.lr = rate_of(r, r->step, o->steps);
        if (update) adamw_step(&r->model, s.lr, scale, o->weight_decay, r->step - r->skipped);
        else skip_update(r);
        end_step(r, &s);

        /* Evaluate, log, sample. */
        fit_to_time(r, &s);
        const bool late = out_of_time(r, &s), last = finished(r);
        const bool evaluated = r->val.count && (last || r->step % o->eval_every == 0);
        show_step(r, &s);
        if (evaluated) evaluate_run(r);
        log_row(r, &s, evaluated ? &r->last : NULL);
        if (o->sample_every && r->step % o->sample_every == 0) sample_run(r);

        /* Save. */
        stop = last || late || stop_signal;
        if (stop || save_is_due(r)) save_run(r);
    }
}

/* ============================================================================================= */
/* 3. Evaluation                                                                                 */
/* ============================================================================================= */

/* The bytes of each token (V). <|endoftext|> and ids beyond the tokenizer's vocabulary, which pad
 * the matrices of some models, have 0. */
static int *token_bytes(const struct Tokenizer *tokenizer, int V)
{
    int *bytes = resize(NULL, V * sizeof *bytes);
    for (int id = 0; id < V; id++) {
        bytes[id] = 0;
        if (id < tokenizer->vocabulary && id != tokenizer->eot)
            tokenizer_piece(tokenizer, id, &bytes[id]);
    }
    return bytes;
}

/* The score of about `budget` targets (0: all). The sequences are spread evenly over the data, and
 * are the same in every call, so that scores can be compared. bytes (V) is from token_bytes; ws has
 * room for the rows of m; `show` prints progress. */
static struct Score evaluate(struct Model *model, struct Workspace *ws, struct Minibatch *m,
                             const struct Sequences *s, const int *bytes, int64_t budget, bool show)
{
    const double part = budget > 0 ? fmin(1, (double)budget / (s->data->tokens - 1)) : 1;
    const int64_t chosen = (int64_t)fmax(1, ceil(part * s->count));
    struct Score score = {0};
    int64_t total_bytes = 0;
    double sum = 0, start = seconds(), shown = start;
    for (int64_t i = 0; i < chosen; ) {
        minibatch_clear(m);
        for (; i < chosen; i++) {
            int64_t begin;
            const int length = sequence_at(&begin, s, i * s->count / chosen);
            if (!minibatch_fits(m, s, length)) break;
            add_sequence(m, s->data, begin, length);
        }
        trunk_forward(model, ws, &m->batch, 0, 0);
        sum += lm_head(model, ws, m->targets, 0);
        for (int n = 0; n < m->batch.rows; n++) total_bytes += bytes[m->targets[n]];
        score.tokens += m->batch.rows;
        if (!show || !line_is_due(&shown)) continue;
        progress(false, "%3.0f%%  loss %.4f  %.0f tok/s  eta %s", 100.0 * i / chosen,
                 sum / score.tokens, score.tokens / (shown - start),
                 duration((shown - start) * (chosen - i) / i));
    }
    check_unchanged();
    score.loss = sum / score.tokens;
    score.bits_per_byte = total_bytes ? sum / M_LN2 / total_bytes : NAN;
    return score;
}

/* Two losses to compare with: log V, of the uniform distribution, and -sum_v p_v log p_v, of a
 * model that knows the frequency p_v of each token in these data and nothing of its context. */
static void print_baselines(const struct Data *d, int V)
{
    int64_t *counts = allocate_zeroed(V * sizeof *counts);
    double unigram = 0;
    for (int i = 0; i < d->count; i++)
        for (int64_t k = 0; k < d->shards[i].count; k++)
            counts[min_int(d->shards[i].tokens[k], V - 1)]++;
    check_unchanged();
    for (int id = 0; id < V; id++) {
        const double p = (double)counts[id] / d->tokens;
        if (p > 0) unigram -= p * log(p);
    }
    printf("uniform %.6f (every token equally likely)\n", log(V));
    printf("unigram %.6f (each token as frequent as in these data)\n", unigram);
    release(counts, V * sizeof *counts);
}

/* ============================================================================================= */
/* 4. Sampling                                                                                   */
/* ============================================================================================= */

/* The next token is drawn from the model's distribution, reshaped by three options:
 *   p_v = exp(logit_v / temperature) / sum_u exp(logit_u / temperature)
 *   top-k keeps the k most probable tokens
 *   top-p keeps, of those, the fewest whose probabilities reach the fraction p of their sum */

/* --- Choosing a token: heap sort that ends as soon as enough tokens are sorted --- */

/* Applies top-k (0: all) and top-p to n tokens, whose keys are their weights, proportional to the
 * probabilities. Returns how many are kept: they are moved to the end of c, the likeliest last. */
static int keep_likely(struct Entry *c, int n, int k, double p)
{
    const int max = k > 0 && k < n ? k : n;
    struct Heap heap = {c, n, n};
    double total = 0, reached = 0;
    if (max == n && p >= 1) return n;
    for (int i = n / 2 - 1; i >= 0; i--) heap_sift_down(&heap, i);
    for (int i = 0; i < max; i++) total += heap_pop(&heap).key;
    if (p >= 1) return max;
    for (int kept = 1; kept <= max; kept++)
        if ((reached += c[n - kept].key) >= p * total) return kept;
    return max;
}

/* Draws one of the last `kept` of n tokens in proportion to their weights. u: uniform in [0, 1). */
static int draw(const struct Entry *c, int n, int kept, double u)
{
    double total = 0;
    for (int i = n - kept; i < n; i++) total += c[i].key;
    double rest = u * total;
    for (int i = n - 1; i > n - kept; i--)
        if ((rest -= c[i].key) < 0) return (int)c[i].id;
    return (int)c[n - kept].id;
}

/* --- Streaming UTF-8: a character that a token leaves unfinished is held back --- */

struct Utf8 { unsigned char held[4]; int count; };

/* Appends the characters that n more bytes complete. Bytes that belong to no character become
 * U+FFFD. */
static void utf8_feed(struct Buffer *out, struct Utf8 *u, const unsigned char *bytes, int n)
{
    uint32_t c;
    for (int i = 0, length; i < n; i++) {
        u->held[u->count++] = bytes[i];
        while (u->count && (length = utf8_decode(u->held, u->count, &c))) {
            if (length > 0) append_bytes(out, u->held, length);
            else append(out, "\xEF\xBF\xBD");
            u->count -= abs(length);
            memmove(u->held, u->held + abs(length), u->count);
        }
    }
}

/* Ends the text: an unfinished character becomes U+FFFD. */
static void utf8_end(struct Buffer *out, struct Utf8 *u)
{
    if (u->count) append(out, "\xEF\xBF\xBD");
    u->count = 0;
}

/* --- The generator --- */

/* `window` holds the tokens that the model has read. ws is their key-value cache, so that one more
 * token costs one row instead of a forward pass over all of them. */
struct Generator {
    struct Model *model;
    struct Workspace ws;
    const struct Tokenizer *tokenizer;
    int *window, count;             /* (T): the first `count` are in use */
    real *logits;                   /* (V) */
    struct Entry *choices;          /* (V): the tokens and their weights */
    double temperature, top_p;
    int top_k, min_tokens;          /* min_tokens: of a text before <|endoftext|> may be drawn */
    struct Random random;
};

static void generator_create(struct Generator *g, struct Model *model,
                             const struct Tokenizer *tokenizer)
{
    const struct Config *c = &model->config;
    *g = (struct Generator){.model = model, .tokenizer = tokenizer,
                            .temperature = 0.8, .top_p = 1, .top_k = 40};
    workspace_create(&g->ws, model, c->context, WORK_CACHE);
    g->window = resize(NULL, c->context * sizeof *g->window);
    g->logits = resize(NULL, c->vocabulary * sizeof *g->logits);
    g->choices = resize(NULL, c->vocabulary * sizeof *g->choices);
}

static void generator_free(struct Generator *g)
{
    workspace_free(&g->ws);
    free(g->window);
    free(g->logits);
    free(g->choices);
}

/* Reads n tokens in one forward pass, or the last T of a longer text. Returns the hidden state (C)
 * of the last token. */
static const real *read_text(struct Generator *g, const int *tokens, int n)
{
    const int rows = min_int(n, g->model->config.context), starts[] = {0, rows};
    memmove(g->window, tokens + n - rows, rows * sizeof *tokens);
    g->count = rows;
    const struct Batch batch = {rows, 1, g->window, starts};
    const real *hidden = trunk_forward(g->model, &g->ws, &batch, 0, 0);
    return hidden + (size_t)(rows - 1) * g->model->config.channels;
}

/* Reads one more token and returns its hidden state (C). When the window is full, its last T/2
 * tokens are read again from position 0, since there is no position T. */
static const real *read_next(struct Generator *g, int token)
{
    const int context = g->model->config.context, half = context / 2;
    if (g->count < context) {
        g->window[g->count++] = token;
        return trunk_next(g->model, &g->ws, token);
    }
    memmove(g->window, g->window + context - half, half * sizeof token);
    g->window[half] = token;                /* if T = 1, half = 0 */
    return read_text(g, g->window, half + 1);
}

/* Draws the token after a hidden state (C), <|endoftext|> only if the text may end. Temperature 0
 * returns the likeliest one. Subtracting the highest logit changes no probability and keeps exp
 * from overflowing. */
static int next_token(struct Generator *g, const real *hidden, bool may_end)
{
    /* Ids from V on are not drawn: those that pad a model, and <|endoftext|>, which is the last. */
    const int V = may_end ? g->tokenizer->vocabulary : g->tokenizer->eot;
    int best = 0;
    lm_logits(g->model, hidden, 1, g->logits);
    for (int id = 1; id < V; id++) if (g->logits[id] > g->logits[best]) best = id;
    if (g->temperature == 0) return best;
    const real highest = g->logits[best];
    const real scale = (real)fmin(1 / g->temperature, 1e20);    /* infinity * 0 would be NaN */
    for (int id = 0; id < V; id++) g->logits[id] = exp_real((g->logits[id] - highest) * scale);
    for (int id = 0; id < V; id++) g->choices[id] = (struct Entry){g->logits[id], id, 0};
    const int kept = keep_likely(g->choices, V, g->top_k, g->top_p);
    return draw(g->choices, V, kept, random_uniform(&g->random));
}

/* The ids of <|endoftext|> and the prompt, if every document of the training text began with
 * <|endoftext|>. A model from elsewhere may read the prompt alone. The caller frees them. */
static int *encode_prompt(int *count, struct Tokenizer *tokenizer, const char *prompt)
{
    const size_t length = strlen(prompt);
    int *ids = resize(NULL, (length + 1) * sizeof *ids);
    ids[0] = tokenizer->eot;
    const int first = tokenizer->begins || !length;
    *count = first + tokenizer_encode(tokenizer, prompt, length, ids + first);
    return ids;
}

/* Prints the prompt, whose ids (count) encode_prompt gave, and then up to max_tokens tokens, each
 * as soon as it is drawn. <|endoftext|> ends the text. Returns the number of tokens drawn. */
static int write_sample(struct Generator *g, const char *prompt, const int *ids, int count,
                        int max_tokens)
{
    struct Buffer text = {0};
    struct Utf8 utf8 = {0};
    int written = 0, token;
    utf8_feed(&text, &utf8, (const unsigned char *)prompt, (int)strlen(prompt));
    show_result(&text);
    const real *hidden = read_text(g, ids, count);
    while (written < max_tokens) {
        int length;
        token = next_token(g, hidden, written >= g->min_tokens);
        check_unchanged();
        if (token == g->tokenizer->eot) break;
        const unsigned char *piece = tokenizer_piece(g->tokenizer, token, &length);
        utf8_feed(&text, &utf8, piece, length);
        show_result(&text);
        if (++written < max_tokens) hidden = read_next(g, token);
    }
    utf8_end(&text, &utf8);
    append(&text, "\n");
    show_result(&text);
    free(text.data);
    return written;
}

/* ============================================================================================= */
/* Part II: the run                                                                              */
/* ============================================================================================= */

/* ============================================================================================= */
/* 5. Options                                                                                    */
/* ============================================================================================= */

static const struct TrainOptions DEFAULTS = {
    .layers = 4, .heads = 4, .channels = 256, .context = 256, .batch = 16, .accumulate = 1,
    .cut = "length", .steps = 1000, .lr = 1e-3, .min_lr_ratio = 0.1, .warmup = 100,
    .schedule = "cosine", .beta2 = 0.99, .weight_decay = 0.1, .clip = 1, .seed = 1,
    .eval_tokens = 50000, .precision = "fp32", .sample_prompt = "", .sample_tokens = 100,
};

/* Sets *o to the defaults and returns the table, a row for each member. The rows above "tokenizer"
 * define the run: its models and state store them as train.NAME in this order, and --resume reads
 * them from the state. */
static struct Option *option_table(struct TrainOptions *o, int *count)
{
    *o = DEFAULTS;
    const struct Option rows[] = {
        {"data", "token shards to learn from", TEXT, &o->data},
        {"val", "token shards to evaluate on; without them the last model is the best",
         TEXT, &o->val},
        {"init", "model directory to start from, instead of random weights", TEXT, &o->init},
        {"layers", "blocks of the model", INTEGER, &o->layers, 1, 1000},
        {"heads", "attention heads in each block", INTEGER, &o->heads, 1, 1 << 16},
        {"channels", "width of the model, a multiple of --heads", INTEGER, &o->channels, 1,
         1 << 16},
        {"context", "tokens that the model sees at once", INTEGER, &o->context, 1, 1 << 20},
        {"cut", "where sequences end: after --context tokens, or also where a document does",
         CHOICE, &o->cut, .choices = "length|documents"},
        {"batch",
         "sequences of --context tokens computed together, or as many tokens of shorter ones",
         INTEGER, &o->batch, 1, 1 << 20},
        {"accumulate", "batches in a step: as --batch times as large, in less memory",
         INTEGER, &o->accumulate, 1, 1 << 20},
        {"steps", "updates of the weights; 0: as many as --time-limit allows; with --resume, a "
         "larger number extends the run", LONG, &o->steps, 0, 1e12},
        {"lr", "highest learning rate", REAL_NUMBER, &o->lr, 0, 1e3},
        {"min-lr-ratio", "the last rate, as a part of --lr", REAL_NUMBER, &o->min_lr_ratio, 0, 1},
        {"warmup", "steps in which the rate rises; if not given, at most a tenth of --steps",
         LONG, &o->warmup, 0, 1e12},
        {"schedule", "how the learning rate falls: after --warmup, in the last fifth, never",
         CHOICE, &o->schedule, .choices = "cosine|wsd|constant"},
        {"beta2", "AdamW's memory of squared gradients", REAL_NUMBER, &o->beta2, 0, 0.999999},
        {"weight-decay", "AdamW's, on matrices", REAL_NUMBER, &o->weight_decay, 0, 1e3},
        {"clip", "largest norm of the gradient; 0: no limit", REAL_NUMBER, &o->clip, 0, 1e9},
        {"skip-spikes", "no update in steps whose gradient is not finite, or whose norm is beyond "
         "5 times the median of 33 steps", FLAG, &o->skip_spikes},
        {"dropout", "part of activations set to 0 in training", REAL_NUMBER, &o->dropout, 0, 0.99},
        {"seed", "of weights, order of the data, dropout and samples", LONG, &o->seed, 0, 1e15},
        {"eval-every", "steps between evaluations; 0: 20 in the run, in a tenth of its time",
         LONG, &o->eval_every, 0, 1e12},
        {"eval-tokens", "tokens of --val in each evaluation, always the same; 0: all",
         LONG, &o->eval_tokens, 0, 1e15},
        PRECISION_OPTION(&o->precision),
        {"tokenizer", "directory of the tokenizer that made the shards", TEXT, &o->tokenizer},
        {"out", "directory for the model, the state and the log", TEXT, &o->out},
        {"epochs", "passes over the data, instead of --steps", REAL_NUMBER, &o->epochs, 0, 1e4},
        {"time-limit", "end after 90s, 30m or 8h: after four fifths of it, the learning rate falls "
         "over the steps that still fit, unless --steps do; alone it means --steps 0",
         SECONDS, &o->time_limit, 0, 1e9},
        {"save-every", "steps between saves; 0: at evaluations, in a hundredth of the time at most",
         LONG, &o->save_every, 0, 1e12},
        {"sample-every", "steps between samples; 0: none", LONG, &o->sample_every, 0, 1e12},
        {"sample-prompt", "what samples begin with", TEXT, &o->sample_prompt, .may_be_empty = true},
        {"sample-tokens", "length of a sample", INTEGER, &o->sample_tokens, 1, 1e6},
        {"threads", "0: all cores it may use", INTEGER, &o->threads, 0, 1024},
        {"resume", "go on with the run in --out, with its options", FLAG, &o->resume},
        {"overwrite", "replace the run in --out", FLAG, &o->overwrite},
        {"plan", "print sizes, memory and the expected duration, and stop", FLAG, &o->plan},
        {"profile", "print at the end where the time of the steps went", FLAG, &o->profile},
    };
    *count = COUNT(rows);
    return memcpy(resize(NULL, sizeof rows), rows, sizeof rows);
}

static bool defines_run(const struct Option *row) { return strcmp(row->name, "tokenizer") != 0; }

static bool given(const struct Run *r, const char *name) { return is_given(r->table, name); }

/* Warns of options that were given and do nothing. */
static void warn_of_unused(const struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    const struct { const char *name; bool unused; const char *why; } rows[] = {
        {"min-lr-ratio", !strcmp(o->schedule, "constant"), "with --schedule constant"},
        {"eval-every", !o->val, "without --val"},
        {"eval-tokens", !o->val, "without --val"},
        {"sample-prompt", !o->sample_every, "without --sample-every"},
        {"sample-tokens", !o->sample_every, "without --sample-every"},
        {"save-every", o->plan, "with --plan"},
        {"sample-every", o->plan, "with --plan"},
        {"profile", o->plan, "with --plan"},
    };
    for (int i = 0; i < COUNT(rows); i++)
        if (rows[i].unused) warn_unused(r->table, rows[i].name, rows[i].why);
    if (given(r, "warmup") && o->steps && o->warmup > o->steps)
        warn("--warmup %lld: more than --steps %lld, so the learning rate never reaches --lr. "
             "Use fewer.", (long long)o->warmup, (long long)o->steps);
}

static struct Paths paths_in(const char *out)
{
    return (struct Paths){
        .last = text_of("%s/last", out), .state = text_of("%s/state.safetensors", out),
        .log = text_of("%s/log.tsv", out),
    };
}

/* ============================================================================================= */
/* 6. Metadata, log and state                                                                    */
/* ============================================================================================= */

/* --- Metadata of model.safetensors and of the state --- */

static const char *const SCORE_NAMES[] = {"loss", "bits_per_byte", "tokens"};

/* Stores a score as three entries, KIND_loss and so on. */
static void set_score(struct Metadata *meta, const char *kind, const struct Score *s)
{
    const double values[] = {s->loss, s->bits_per_byte, (double)s->tokens};
    for (int i = 0; i < COUNT(SCORE_NAMES); i++) {
        char *key = text_of("%s_%s", kind, SCORE_NAMES[i]);
        metadata_set(meta, key, "%.17g", values[i]);
        free(key);
    }
}

/* Reads what set_score stored. Without entries: an infinite loss on 0 tokens. */
static struct Score get_score(const struct Metadata *meta, const char *kind)
{
    double values[COUNT(SCORE_NAMES)];
    for (int i = 0; i < COUNT(SCORE_NAMES); i++) {
        char *key = text_of("%s_%s", kind, SCORE_NAMES[i]);
        const char *text = metadata_get(meta, key);
        free(key);
        if (!text) return (struct Score){.loss = INFINITY};
        values[i] = strtod(text, NULL);
    }
    return (struct Score){values[0], values[1], (int64_t)values[2]};
}

/* All entries of a model. None depends on time or threads: the same run writes the same bytes. */
static struct Metadata describe(const struct Run *r, const struct Score *score)
{
    struct Metadata meta = {0};
    metadata_set(&meta, "program", "train_gpt");
    metadata_set(&meta, "step", "%lld", (long long)r->step);
    metadata_set(&meta, "tokens", "%lld", (long long)r->tokens);
    metadata_set(&meta, "epoch", "%lld", (long long)r->loader.epoch);
    metadata_set(&meta, "position", "%d", r->loader.next);
    if (score->tokens) set_score(&meta, "val", score);
    tokenizer_describe(&meta, r->tokenizer);
    metadata_set(&meta, "data_fingerprint", "%s", hash_text(r->data.fingerprint));
    metadata_set(&meta, "val_fingerprint", "%s", hash_text(r->val.fingerprint));
    for (const struct Option *row = r->table; defines_run(row); row++) {
        char *key = text_of("train.%s", row->name), *text = option_text(row);
        if (text) metadata_set(&meta, key, "%s", text);
        free(key);
        free(text);
    }
    metadata_set(&meta, "history", "%s", r->history.data ? r->history.data : "");
    return meta;
}

/* An entry that every state has. Dies if it is missing. */
static const char *entry(const struct Metadata *meta, const char *key, const char *path)
{
    const char *value = metadata_get(meta, key);
    if (!value) die("%s: no entry `%s`, so it is no state of a run. Start it again.", path, key);
    return value;
}

/* The same for a whole number from 0 to 2^50, which can be counted on. Dies if it is anything
 * else. */
static int64_t entry_integer(const struct Metadata *meta, const char *key, const char *path)
{
    const char *text = entry(meta, key, path);
    char *end;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end || value < 0 || value > INT64_C(1) << 50)
        die("%s: entry `%s` is \"%s\", not a whole number. Start the run again.", path, key, text);
    return value;
}

/* --- The log: one row a step --- */

/* The columns that depend on time are the last two, so that runs can be compared by the others. */
static const char LOG_HEADER[] =
    "step\tloss\tval_loss\tval_bits_per_byte\tlr\tnorm\ttokens\ttokens_per_second\tseconds\n";

/* Appends the rows of a log up to `step` to *rows. Returns the seconds in the last one; 0 if there
 * is no row or no file. A last line that has no newline was cut off by a crash and is left out. So
 * is a line that holds a NUL byte, as a file system may leave it where it lost data. */
static double read_log(struct Buffer *rows, const char *path, int64_t step)
{
    double last = 0;
    if (!file_exists(path)) return last;
    struct Bytes file = map_file(path);
    const char *at = file.data, *end = at + file.size, *newline;
    for (; at < end && (newline = memchr(at, '\n', end - at)); at = newline + 1) {
        char row[512] = "";
        memcpy(row, at, newline - at < 511 ? newline - at : 511);
        if (!isdigit((unsigned char)*row) || strtoll(row, NULL, 10) > step
            || memchr(at, 0, newline - at)) continue;
        append_bytes(rows, at, newline + 1 - at);
        if (strrchr(row, '\t')) last = strtod(strrchr(row, '\t'), NULL);
    }
    unmap_file(file);
    return last;
}

/* Whether a file is a log of this program, and not of another, as beside a classifier. */
static bool is_log(const char *path)
{
    const struct Bytes file = map_file(path);
    const bool same = file.size >= sizeof LOG_HEADER
                      && !memcmp(file.data, LOG_HEADER, sizeof LOG_HEADER - 1);
    unmap_file(file);
    return same;
}

/* Adds a row of the log to the hash of those before it: step and loss, the same in every run. */
static uint64_t hash_row(uint64_t hash, const char *row)
{
    const char *tab = strchr(row, '\t'), *second = tab ? strchr(tab + 1, '\t') : NULL;
    return second ? mix64(hash ^ checksum(row, second - row)) : hash;
}

/* The log so far: of a resumed run the rows up to its step. Dies if they are not those of the run
 * whose state it has (log_hash): then the files in --out are of two runs. */
static struct Buffer earlier_rows(struct Run *r)
{
    struct Buffer rows = {0};
    uint64_t hash = 0;
    append(&rows, "%s", LOG_HEADER);
    const size_t header = rows.size;
    if (r->step > 0) r->earlier = read_log(&rows, r->paths.log, r->step);
    for (char *row = rows.data + header; *row; row = strchr(row, '\n') + 1)
        hash = hash_row(hash, row);
    if (r->log_hash && rows.size > header && hash != r->log_hash)
        die("%s: is not the log of the run that %s is of. Start again with --overwrite, or remove "
            "the log if only that was changed.", r->paths.log, r->paths.state);
    r->log_hash = hash;
    return rows;
}

/* Opens the log for new rows, under a temporary name until commit_outputs. */
static void open_log(struct Run *r, struct Buffer rows)
{
    struct Output *o = output_open(r->paths.log);
    output_write(o, rows.data, rows.size);
    output_flush(o);
    r->log = fdopen(dup(fileno(o->file)), "wb");
    free(rows.data);
}

/* Hands the log's rows to the system, or to the disk, too. */
static void flush_log(const struct Run *r, bool to_disk)
{
    if (fflush(r->log) || (to_disk && fsync(fileno(r->log))))
        die("%s: writing failed (%s). Free some space and --resume.", r->paths.log,
            strerror(errno));
}

/* val: the score of an evaluation after this step; else NULL. */
static void log_row(struct Run *r, const struct Step *s, const struct Score *val)
{
    char *row = text_of("%lld\t%.6f\t", (long long)r->step, s->loss);
    r->log_hash = hash_row(r->log_hash, row);
    fputs(row, r->log);
    free(row);
    if (val) fprintf(r->log, "%.6f\t%.6f", val->loss, val->bits_per_byte);
    else fputc('\t', r->log);
    fprintf(r->log, "\t%.8g\t%.6g\t%lld\t%.0f\t%.2f\n", s->lr, s->norm, (long long)r->tokens,
            s->targets / s->seconds, r->earlier + seconds() - r->start);
    flush_log(r, false);
}

/* --- Saving --- */

/* The state's entries of what is_sound knows. */
static void set_norms(struct Metadata *state, const struct Run *r)
{
    struct Buffer text = {0};
    for (int i = 0; i < SPIKE_WINDOW; i++) append(&text, "%s%.17g", i ? " " : "", r->norms[i]);
    metadata_set(state, "norms", "%s", text.data);
    metadata_set(state, "skipped", "%lld", (long long)r->skipped);
    free(text.data);
}

/* Where the run is, for progress: "step/steps", or only the step while their number is not known.
 * The next call overwrites it. */
static const char *place(const struct Run *r)
{
    static char text[48];
    const long long step = r->step, steps = r->options.steps;
    snprintf(text, sizeof text, steps ? "%lld/%lld" : "%lld", step, steps);
    return text;
}

/* Evaluates, and saves the model in --out if it is the best so far. The first save of a run that
 * replaces another is left to save_run, which gives all files their names at once. */
static void evaluate_run(struct Run *r)
{
    const double start = seconds();
    const struct Score s = evaluate(&r->model, &r->ws, &r->minibatches[0], &r->val_sequences,
                                    r->bytes, r->options.eval_tokens, false);
    r->last = s;
    append(&r->history, "%lld %.6f %.6f\n", (long long)r->step, s.loss, s.bits_per_byte);
    const bool better = s.loss < r->best.loss;
    if (better) {
        r->best = s;
        r->best_step = r->step;
        struct Metadata meta = describe(r, &s);
        stage_model(r->options.out, &r->model, &meta, r->tokenizer->eot);
        if (!r->replaces) commit_outputs();
        metadata_free(&meta);
    }
    progress(true, "step %s  val_loss %.4f  bits_per_byte %.4f%s", place(r), s.loss,
             s.bits_per_byte, better ? "  (best)" : "");
    r->evaluating = seconds() - start;
    r->evaluated += r->evaluating;
}

/* Writes everything that --resume needs, for commit_outputs. */
static void stage_run(const struct Run *r)
{
    struct Metadata state = describe(r, &r->last);
    metadata_set(&state, "best_step", "%lld", (long long)r->best_step);
    metadata_set(&state, "log_hash", "%s", hash_text(r->log_hash));
    if (r->best.tokens) set_score(&state, "best", &r->best);
    if (r->fall_step) {
        metadata_set(&state, "fall_step", "%lld", (long long)r->fall_step);
        metadata_set(&state, "fall_rate", "%.17g", r->fall_rate);
    }
    set_norms(&state, r);
    if (!r->options.steps)
        metadata_set(&state, "time_left", "%.2f", r->options.time_limit - (seconds() - r->start));
    stage_state(r->paths.state, &r->model, NULL, NULL, &state);
    metadata_free(&state);
}

/* Saves the last model and the state. The log is flushed to disk first, so that it has every step
 * of the state, even after a crash. Before the first evaluation, and without --val, the last model
 * is the best. */
static void save_run(struct Run *r)
{
    const double start = seconds();
    check_unchanged();
    struct Metadata last = describe(r, &r->last);
    flush_log(r, true);
    if (!r->best_step) stage_model(r->options.out, &r->model, &last, r->tokenizer->eot);
    stage_model(r->paths.last, &r->model, &last, r->tokenizer->eot);
    stage_run(r);
    commit_outputs();
    r->replaces = false;
    metadata_free(&last);
    r->saved = seconds();
    r->saving = r->saved - start;
}

/* A resumed run computes the same whenever its state was saved, so this may depend on time. */
static bool save_is_due(const struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    const double since = seconds() - r->saved;
    if (r->replaces && r->best_step == r->step) return true;    /* evaluate_run waits for it */
    if (o->save_every) return r->step % o->save_every == 0;
    return since > 100 * r->saving && (r->step % o->eval_every == 0 || since > 600);
}

/* --- Resuming --- */

/* Takes the options that define the run from its state. Dies if one that was given differs, unless
 * it may: --steps extends a run, --data and --val may have moved (restore_run checks them), and
 * --skip-spikes is for the steps to come. A run whose number of steps is not known yet has the time
 * that it had left, or a new limit. */
static void take_options(struct Run *r)
{
    struct TrainOptions *o = &r->options;
    struct Metadata state;
    load_state_metadata(r->paths.state, &state);
    entry(&state, "train.data", r->paths.state);
    for (struct Option *row = r->table; defines_run(row); row++) {
        char *key = text_of("train.%s", row->name);
        const char *stored = metadata_get(&state, key);
        const bool may_differ = !strcmp(row->name, "skip-spikes")
                             || (stored && strstr("steps data val", row->name));
        if (!row->given) {
            if (stored) set_option(row, "--resume", text_of("%s", stored));
        } else if (!may_differ && (!stored || strcmp(stored, option_text(row))))
            die_usage("--%s %s: the run in %s has %s. Leave it out to resume, or choose another "
                      "--out.", row->name, option_text(row), r->options.out,
                      stored ? stored : "none");
        free(key);
    }
    if (!o->steps && !given(r, "time-limit"))
        o->time_limit = fmax(1, strtod(entry(&state, "time_left", r->paths.state), NULL));
    metadata_free(&state);
}

/* Refuses fewer steps than the run had, which would change what the learning rate has been. Says so
 * if more steps raise it again. */
static void check_steps(const struct Run *r, int64_t steps_before)
{
    const struct TrainOptions *o = &r->options;
    if (o->steps && o->steps < steps_before)
        die_usage("--%s: %lld steps are fewer than the %lld of the run in %s. Leave the option "
                  "out, or give more.", o->epochs > 0 ? "epochs" : "steps", (long long)o->steps,
                  (long long)steps_before, o->out);
    const double before = rate_of(r, r->step, steps_before),
                 now = rate_of(r, r->step + 1, o->steps);
    if (r->step > o->warmup && o->steps != steps_before && now > before)
        progress(true, "--steps %lld instead of %lld: the learning rate goes up again, from %.1e "
                 "to %.1e", (long long)o->steps, (long long)steps_before, before, now);
}

/* Loads what save_run wrote: weights, moments, the place in the data, scores. Dies if tokenizer,
 * data or val are not the same as before. */
static void restore_run(struct Run *r)
{
    const struct { const char *option, *key; uint64_t now; } same[] = {
        {"tokenizer", "tokenizer_hash", r->tokenizer->hash},
        {"data", "data_fingerprint", r->data.fingerprint},
        {"val", "val_fingerprint", r->val.fingerprint},
    };
    struct Metadata state;
    const char *path = r->paths.state;
    load_state(path, &r->model, NULL, NULL, &state);
    for (int i = 0; i < COUNT(same); i++)
        if (strcmp(hash_text(same[i].now), entry(&state, same[i].key, path)))
            die("--%s: not what the run in %s began with: the fingerprint was %s and is %s. Resume "
                "with the same.", same[i].option, r->options.out, entry(&state, same[i].key, path),
                hash_text(same[i].now));
    r->step = entry_integer(&state, "step", path);
    r->tokens = entry_integer(&state, "tokens", path);
    const int64_t position = entry_integer(&state, "position", path);
    loader_seek(&r->loader, entry_integer(&state, "epoch", path), (int)position);
    if (position > r->loader.sequences.count)
        die("%s: the place in the data is beyond its end. Start the run again.", path);
    r->last = get_score(&state, "val");
    r->best = get_score(&state, "best");
    r->best_step = entry_integer(&state, "best_step", path);
    if (metadata_get(&state, "log_hash"))       /* older states have none */
        r->log_hash = strtoull(metadata_get(&state, "log_hash"), NULL, 16);
    if (metadata_get(&state, "fall_step")) {
        r->fall_step = entry_integer(&state, "fall_step", path);
        r->fall_rate = strtod(entry(&state, "fall_rate", path), NULL);
    }
    if (metadata_get(&state, "norms")) {        /* nor these two */
        char *norms = (char *)metadata_get(&state, "norms");
        r->skipped = entry_integer(&state, "skipped", path);
        for (int i = 0; i < SPIKE_WINDOW; i++) r->norms[i] = strtod(norms, &norms);
    }
    check_steps(r, entry_integer(&state, "train.steps", path));
    append(&r->history, "%s", entry(&state, "history", path));
    metadata_free(&state);
}

/* --- The directory of a run --- */

/* Refuses an --out that holds a run, unless --resume, --overwrite or --plan is given, and one that
 * is also --init. Where there is nothing to resume, --resume starts: a run has a state from its
 * first moment on, so the same command goes on wherever it was interrupted. */
static void check_out(struct Run *r)
{
    struct TrainOptions *o = &r->options;
    if (o->resume && o->overwrite) die_usage("--resume and --overwrite: choose one of them.");
    if (o->resume && !file_exists(r->paths.state)) {
        char *best = text_of("%s/model.safetensors", o->out),
             *last = text_of("%s/model.safetensors", r->paths.last);
        if (file_exists(best) || file_exists(last))
            die("%s: no such file, but there is a model, so there is nothing to resume. Choose "
                "another --out.", r->paths.state);
        free(best);
        free(last);
        progress(true, "nothing to resume in %s: the run starts", o->out);
        o->resume = false;
    } else if (!o->resume && !o->overwrite && !o->plan)
        refuse_run_in(o->out, "Give --resume, --overwrite or another --out.");
    if (o->init && same_file(o->out, o->init))
        die_usage("--out %s: is the model to start from. Name another directory.", o->out);
}

/* Makes the directories and opens the log, with the tokenizer for both directories, right before
 * the first step, when all input has been checked. A run that replaces another leaves the old files
 * as they are until its own first save. */
static void begin_files(struct Run *r, struct Buffer rows)
{
    r->replaces = !r->options.resume && holds_run(r->options.out);
    lock_directory(r->paths.last);              /* that it is no other run's --out either */
    open_log(r, rows);
    r->tokenizer->begins = r->tokenizer->keeps_tail = true;     /* as documents do in shards */
    r->tokenizer->max_length = r->options.context;
    tokenizer_stage(r->tokenizer, r->options.out);
    tokenizer_stage(r->tokenizer, r->paths.last);
    if (!r->options.resume && !r->replaces) stage_run(r);
    if (!r->replaces) commit_outputs();
}

/* ============================================================================================= */
/* 7. Model and memory                                                                           */
/* ============================================================================================= */

/* --- The weights to start from --- */

/* Takes a size from the model of --init. Dies if the option was given and differs. */
static void take_size(const struct Run *r, const char *name, int *value, int other)
{
    if (given(r, name) && *value != other)
        die_usage("--%s %d: the model in --init %s has %d. Leave it out.", name, *value,
                  r->options.init, other);
    *value = other;
}

/* Copies the trunk of a model directory, without a classifier's head. A shorter --context copies
 * the first rows of wpe, and rows of wte beyond the tokenizer's vocabulary, which only pad it, are
 * left out. Dies if sizes or tokenizer differ. */
static void init_from_directory(struct Run *r)
{
    struct TrainOptions *o = &r->options;
    struct Model source, *model = &r->model;
    struct Metadata meta;
    load_model(&source, o->init, &meta);
    struct Config config = source.config;
    take_size(r, "layers", &o->layers, config.layers);
    take_size(r, "heads", &o->heads, config.heads);
    take_size(r, "channels", &o->channels, config.channels);
    if (!given(r, "context")) o->context = config.context;
    if (o->context > config.context)
        die_usage("--context %d: the model in --init %s knows only %s.", o->context, o->init,
                  counted(config.context, "position"));
    const char *hash = metadata_get(&meta, "tokenizer_hash");
    bool other = config.vocabulary < r->tokenizer->vocabulary
              || (hash && strcmp(hash, hash_text(r->tokenizer->hash)));
    char *file = tokenizer_file(o->init);
    if (file && !other) {
        struct Tokenizer *own = tokenizer_of_model(o->init, &source, &meta);
        other = own->hash != r->tokenizer->hash;
        tokenizer_free(own);
    }
    free(file);
    if (other)
        die("--init %s: was trained with another tokenizer than --tokenizer %s. Use its own.",
            o->init, o->tokenizer);
    config.vocabulary = r->tokenizer->vocabulary;
    config.context = o->context;
    config.labels = 0;
    config.label_names = NULL;
    model_create(model, config);
    for (int i = 0; i < model->tensor_count; i++) {
        const struct Tensor *to = &model->tensors[i], *from = &source.tensors[i];
        memcpy(model->weights + to->offset, source.weights + from->offset, to->size * sizeof(real));
    }
    model_free(&source);
    metadata_free(&meta);
}

/* Creates the model with weights from --init or at random (restore_run overwrites them), and memory
 * for gradients and moments. --plan allocates nothing for a model that the machine cannot hold. */
static void make_model(struct Run *r)
{
    struct TrainOptions *o = &r->options;
    if (o->init && !o->resume) init_from_directory(r);
    else {
        struct Config config = {.layers = o->layers, .heads = o->heads, .channels = o->channels,
                                .context = o->context, .vocabulary = r->tokenizer->vocabulary};
        model_describe(&r->model, config);
        if (o->plan && 4 * r->model.parameter_count * sizeof(real) > machine_memory()) return;
        model_allocate(&r->model);
        if (!o->resume) model_init(&r->model, o->seed);
    }
    model_train_from(&r->model, 0);
    r->model.beta2 = o->beta2;
}

/* --- Sizes --- */

static int64_t tokens_per_step(const struct TrainOptions *o)
{
    return (int64_t)o->batch * o->context * o->accumulate;
}

/* An evaluation's time, in steps: forward takes a third of forward and backward. */
static double evaluation_in_steps(const struct Run *r)
{
    const int64_t all = r->val.count ? r->val.tokens - 1 : 0, budget = r->options.eval_tokens;
    return (budget > 0 && budget < all ? budget : all) / (3.0 * tokens_per_step(&r->options));
}

/* Forward FLOPs of a token in one kind of product: 2 for each weight of its matrices, 12 C^2 in a
 * block and V C in the head; attention as if every query saw T keys. Other kinds: 0. */
static double forward_flops(const struct Config *c, int kind)
{
    const double L = c->layers, C = c->channels, T = c->context, V = c->vocabulary;
    return kind == LINEAR ? 24 * L * C * C : kind == ATTENTION ? 4 * L * T * C
         : kind == HEAD ? 2 * V * C : 0;
}

/* Backward computes two products for each one of forward: dx = dy w^T and dw = x^T dy. */
static double flops_per_token(const struct Config *c)
{
    return 3 * (forward_flops(c, LINEAR) + forward_flops(c, ATTENTION) + forward_flops(c, HEAD));
}

/* The bytes that make_model and take_memory allocate; `print` shows them by kind. */
static double memory_needed(const struct Run *r, bool print)
{
    const struct TrainOptions *o = &r->options;
    const struct Config *c = &r->model.config;
    const struct Sequences *s = &r->loader.sequences;
    const int rows = o->batch * o->context;
    const double array = (double)r->model.parameter_count * sizeof(real),
                 logits = (double)lm_chunk(rows, c->vocabulary) * c->vocabulary * sizeof(real);
    const struct { const char *kind; double bytes; } kinds[] = {
        {"weights", array}, {"gradients", array}, {"moments", 2 * array},
        {"activations", workspace_bytes(c, rows, WORK_TRAIN) - logits}, {"logits", logits},
        {"sampling", o->sample_every ? workspace_bytes(c, c->context, WORK_CACHE) : 0},
        {"rest", (double)gemm_buffer_size() * sizeof(real) + 3 * tokens_per_step(o) * sizeof(int)
                 + s->count * (sizeof(int) + (s->starts ? sizeof(int64_t) : 0))},
    };
    double total = 0;
    for (int i = 0; i < COUNT(kinds); i++) {
        total += kinds[i].bytes;
        if (print) printf("  %-12s %.1f MB\n", kinds[i].kind, kinds[i].bytes / 1e6);
    }
    return total;
}

static bool fits_machine(const struct Run *r)
{
    return memory_needed(r, false) < machine_memory();
}

/* Cuts the data and allocates all that a step needs, before the first one. --plan of a run that the
 * machine cannot hold allocates no activations. */
static void take_memory(struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    struct Sequences sequences;
    cut(&sequences, &r->data, o->context, o->cut, r->tokenizer);
    if (r->val.count) cut(&r->val_sequences, &r->val, o->context, o->cut, r->tokenizer);
    loader_create(&r->loader, sequences, o->seed);
    r->minibatches = resize(NULL, o->accumulate * sizeof *r->minibatches);
    for (int a = 0; a < o->accumulate; a++)
        r->minibatches[a] = minibatch_create(o->batch * o->context);
    if (o->plan && !fits_machine(r)) return;
    workspace_create(&r->ws, &r->model, o->batch * o->context, WORK_TRAIN);
    if (!o->sample_every) return;
    r->generator = resize(NULL, sizeof *r->generator);
    generator_create(r->generator, &r->model, r->tokenizer);
}

/* What of the options needs no data is checked before any is read or allocated, which may take
 * minutes. */
static void check_options(const struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    if (o->channels % o->heads)
        die_usage("--channels %d: not a multiple of --heads %d.", o->channels, o->heads);
    if ((int64_t)o->batch * o->context > INT32_MAX / 8)
        die_usage("--batch %d: times --context %d is too much. Use --accumulate.", o->batch,
                  o->context);
    if (o->steps == 0 && o->epochs == 0 && o->time_limit == 0)
        die_usage("--steps 0: without --time-limit there is no end. Give one of them.");
}

/* Opens the tokenizer. --resume and --init have one in their directory. */
static void load_tokenizer(struct Run *r)
{
    struct TrainOptions *o = &r->options;
    if (!o->data) die_usage("--data: must be given. --help explains it.");
    if (!o->tokenizer) o->tokenizer = o->resume ? o->out : o->init;
    if (!o->tokenizer) die_usage("--tokenizer: must be given. --help explains it.");
    r->tokenizer = tokenizer_load(o->tokenizer);
    if (!o->plan && !o->resume && !o->overwrite) refuse_other_tokenizer(o->out, r->tokenizer);
    r->bytes = token_bytes(r->tokenizer, r->tokenizer->vocabulary);
}

/* Opens the data. That both names are right is checked first, since reading may take minutes. */
static void load_data(struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    const char *run = o->resume ? o->out : NULL, *data_run = given(r, "data") ? NULL : run,
               *val_run = given(r, "val") ? NULL : run;
    glob_t found = find_shards("data", o->data, data_run);
    globfree(&found);
    if (o->val) { found = find_shards("val", o->val, val_run); globfree(&found); }
    r->data = open_data("data", o->data, data_run, r->tokenizer);
    if (o->val) r->val = open_data("val", o->val, val_run, r->tokenizer);
    for (int i = 0; i < r->data.count; i++)
        for (int k = 0; k < r->val.count; k++)
            if (same_file(r->data.shards[i].path, r->val.shards[k].path))
                warn("%s: is in --data and in --val, so the validation loss says little.",
                     r->data.shards[i].path);
}

/* ============================================================================================= */
/* 8. Spikes, time, plan and profile                                                             */
/* ============================================================================================= */

/* --- Steps that go wrong --- */

static int compare_norms(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Notes the norm of a step, infinity if it is not finite. Returns the median of the last
 * SPIKE_WINDOW; 0 as long as there are fewer. */
static double median_norm(struct Run *r, double norm)
{
    double sorted[SPIKE_WINDOW];
    r->norms[r->step % SPIKE_WINDOW] = norm;
    memcpy(sorted, r->norms, sizeof sorted);
    qsort(sorted, SPIKE_WINDOW, sizeof *sorted, compare_norms);
    const double median = sorted[SPIKE_WINDOW / 2];
    return sorted[0] > 0 || isinf(median) ? median : 0;
}

/* Writes what a step has read to a file in --out, a line for each sequence, its last target
 * included. Returns the name of the file. */
static char *write_texts(const struct Run *r)
{
    struct Buffer text = {0}, bytes = {0};
    char *path = text_of("%s/step_%lld.txt", r->options.out, (long long)r->step + 1);
    for (int a = 0; a < r->options.accumulate; a++) {
        const struct Minibatch *m = &r->minibatches[a];
        for (int s = 0; s < m->batch.sequences; s++) {
            const int first = m->batch.starts[s], end = m->batch.starts[s + 1];
            bytes.size = 0;
            append_decoded(&bytes, r->tokenizer, m->tokens + first, 1);
            append_decoded(&bytes, r->tokenizer, m->targets + first, end - first);
            append_readable(&text, (uint8_t *)bytes.data, (int)bytes.size);
            append(&text, "\n");
        }
    }
    write_note(path, text.data, text.size);
    free(text.data);
    free(bytes.data);
    return path;
}

/* Ends the run before the update of a step whose loss or norm is not finite; the saved files stay
 * as they are. The message names the first tensor whose gradient is not finite. */
static void stop_at(const struct Run *r, const struct Step *s, const char *texts)
{
    const struct TrainOptions *o = &r->options;
    const char *where = "";
    for (int i = 0; i < r->model.tensor_count && !*where; i++) {
        const struct Tensor *p = &r->model.tensors[i];
        if (!all_finite(r->model.grads + p->offset, p->size)) where = p->name;
    }
    char *resume = o->skip_spikes || !file_exists(r->paths.state) ? NULL
        : text_of(", or leave such steps out: train_gpt train --out %s --resume --skip-spikes",
                  quoted(o->out));
    die("step %lld: the loss is %s, the gradient's norm %s%s%s. %s holds what it read; %s keeps "
        "what it held before. Start again with --overwrite and a lower --lr than %g%s.",
        (long long)r->step + 1, value_text(s->loss), value_text(s->norm),
        *where ? ", not finite in " : "", where, texts, o->out, o->lr, resume ? resume : "");
}

/* Whether a step may update the weights: not if its loss or norm is not finite, which also ends the
 * run unless --skip-spikes is given, nor, with --skip-spikes, if the norm is a spike: more than
 * SPIKE_FACTOR times the median of the last SPIKE_WINDOW steps. Since spikes count in the median, a
 * norm that stays high is soon none; one that stays infinite ends the run. */
static bool is_sound(struct Run *r, const struct Step *s)
{
    const bool finite = isfinite(s->loss) && isfinite(s->norm), skip = r->options.skip_spikes;
    const double median = median_norm(r, finite ? s->norm : INFINITY);
    char *texts = finite ? NULL : write_texts(r);
    if (!finite && (!skip || isinf(median))) stop_at(r, s, texts);
    if (finite && (median == 0 || s->norm <= SPIKE_FACTOR * median)) return true;
    progress(true, "step %lld  spike: loss %s, norm %s, before it %.3g%s%s%s",
             (long long)r->step + 1, value_text(s->loss), value_text(s->norm), median,
             skip ? "; skipped" : "", texts ? "; it read " : "", texts ? texts : "");
    free(texts);
    return !skip;
}

static void skip_update(struct Run *r)
{
    memset(r->model.grads, 0, r->model.parameter_count * sizeof(real));
    r->skipped++;
}

/* --- The clock of a step, and what depends on it --- */

/* The profile leaves out the first step, which also touches new memory. */
static struct Step begin_step(struct Run *r)
{
    const double now = seconds();
    profile.on = r->options.profile && r->step >= r->first;
    profile.last = now;
    return (struct Step){.start = now};
}

static void end_step(struct Run *r, struct Step *s)
{
    profile.on = false;
    s->seconds = seconds() - s->start;
    r->working += s->seconds;
}

/* Seconds of the last evaluation and save: as long as those before, or as expected. */
static double ending(const struct Run *r)
{
    const double step = r->working / (r->step - r->first + 1);
    return r->saving + (r->evaluating > 0 ? r->evaluating : evaluation_in_steps(r) * step);
}

/* Whether there is no time for one more step. Where time decides how many steps the run has, this
 * was then the last. */
static bool out_of_time(struct Run *r, const struct Step *s)
{
    struct TrainOptions *o = &r->options;
    const bool late = o->time_limit > 0
                      && seconds() - r->start + s->seconds + ending(r) > o->time_limit;
    if (late && (!o->steps || r->fall_step)) o->steps = r->step;
    return late;
}

/* Shows a step if a line is due: on a terminal every 0.1 s, else at intervals that grow with the
 * run. The rate leaves out the first step. */
static void show_step(struct Run *r, const struct Step *s)
{
    const struct TrainOptions *o = &r->options;
    const double now = seconds(), elapsed = now - r->began, rate = s->targets / s->seconds;
    r->rate = r->step > r->first + 1 ? 0.9 * r->rate + 0.1 * rate : rate;
    const bool due = now - r->shown >= (live() ? 0.1 : 2 + elapsed / 20);
    if (!due && r->step > r->first && !finished(r)) return;
    r->shown = now;
    double eta = o->steps ? elapsed / (r->step - r->first + 1) * (o->steps - r->step) : INFINITY;
    if (o->time_limit > 0) eta = fmin(eta, o->time_limit - (now - r->start));
    progress(false, "step %s  loss %.4f  lr %.1e  norm %.2f  %.0f tok/s  %.0f%% peak  eta %s",
             place(r), s->loss, s->lr, s->norm, r->rate,
             100 * r->rate * flops_per_token(&r->model.config) / r->peak, duration(eta));
}

/* Samples from the model as it is. The step determines the random numbers. */
static void sample_run(struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    int count, *ids = encode_prompt(&count, r->tokenizer, o->sample_prompt);
    r->generator->random = stream_for(o->seed, SAMPLE_STREAM, r->step);
    progress(true, "step %s  sample:", place(r));
    write_sample(r->generator, o->sample_prompt, ids, count, o->sample_tokens);
    free(ids);
}

/* --- The number of steps. What a step computes depends on it, and not on time: what fit_to_time
 * decides is recorded in the state --- */

/* Seconds of a step, from up to 20 steps of one minibatch. The first also touches new memory; it
 * counts only if it took so long that there is no third. All traces are removed: lr = 0 leaves the
 * weights as they are; the moments become 0 and the place in the data is restored. */
static double measure_step(struct Run *r)
{
    const int64_t epoch = r->loader.epoch;
    const int next = r->loader.next;
    const double begin = seconds();
    double gradient = INFINITY, rest = INFINITY;
    for (int n = 0; n < 20 && seconds() - begin < (n < 2 ? 10 : 2); n++) {
        const double start = seconds();
        step_gradient(r, 1, 1, read_step(r, 1));
        const double middle = seconds();
        adamw_step(&r->model, 0 * grad_norm(&r->model), 1, 0, 1);
        gradient = n > 1 ? fmin(gradient, middle - start) : middle - start;
        rest = n > 1 ? fmin(rest, seconds() - middle) : seconds() - middle;
    }
    memset(r->model.m, 0, r->model.parameter_count * sizeof(real));
    memset(r->model.v, 0, r->model.parameter_count * sizeof(real));
    loader_seek(&r->loader, epoch, next);
    return r->options.accumulate * gradient + rest;
}

/* About how many steps, with their evaluations, fit into the time that is left. */
static int64_t steps_in_time(const struct Run *r, double step_seconds)
{
    const struct TrainOptions *o = &r->options;
    const double left = 0.96 * (o->time_limit - (seconds() - r->start)) / step_seconds;
    const double cost = evaluation_in_steps(r);
    const double share = o->eval_every ? cost / o->eval_every : fmin(0.1, 20 * cost / left);
    return (int64_t)fmax(1, (left - cost) / (1 + share));
}

/* The number of steps that read the data --epochs times. The last step is filled up from the next
 * epoch. */
static int64_t steps_in_epochs(struct Run *r)
{
    struct Loader *l = &r->loader;
    const double epochs = r->options.epochs;
    const int64_t whole = (int64_t)epochs;
    int64_t steps = 0;
    while (l->epoch < whole
           || (l->epoch == whole && l->next < (epochs - whole) * l->sequences.count)) {
        read_step(r, r->options.accumulate);
        steps++;
    }
    loader_seek(l, 0, 0);
    return steps > 0 ? steps : 1;
}

/* 20 evaluations in the run, or fewer if they would take more than a tenth of its time. */
static int64_t default_eval_every(const struct Run *r)
{
    const double for_a_tenth = ceil(10 * evaluation_in_steps(r));
    return (int64_t)fmax(1, fmax(ceil(r->options.steps / 20.0), for_a_tenth));
}

/* Turns --epochs into steps, and sets what depends on their number; with --time-limit alone on an
 * estimate of it, which --plan shows. Returns the seconds of a step: measured if they are needed,
 * else assumed from the peak. */
static double fix_steps(struct Run *r)
{
    struct TrainOptions *o = &r->options;
    if (o->time_limit > 0 && !given(r, "steps") && !o->resume) o->steps = 0;
    if (o->epochs > 0) o->steps = steps_in_epochs(r);
    const bool open = o->steps == 0;
    const double step = ((open && !o->resume) || o->plan) && fits_machine(r) ? measure_step(r)
        : tokens_per_step(o) * flops_per_token(&r->model.config) / (0.6 * r->peak);
    if (open) o->steps = steps_in_time(r, step);
    if (o->eval_every == 0) o->eval_every = default_eval_every(r);
    if (!o->resume && !given(r, "warmup") && o->warmup > o->steps / 10) o->warmup = o->steps / 10;
    if (open && !o->plan) o->steps = 0;
    return step;
}

/* Fits the rest of the run to --time-limit, once, after the last step that ends in four fifths of
 * the time; the time for the last evaluation and save is set aside. The speed since three fifths,
 * with saves, samples and the evaluations that are due, tells how many more steps fit, so a slow
 * start does no harm. If --steps do not fit, they become those that do. The learning rate, which
 * until then is what it would be without a limit, falls over them to its minimum (rate_of). A
 * constant one needs no such decision. */
static void fit_to_time(struct Run *r, const struct Step *s)
{
    struct TrainOptions *o = &r->options;
    const double time = o->time_limit - ending(r), now = seconds() - r->start;
    if (o->time_limit == 0 || r->fitted || !strcmp(o->schedule, "constant")) return;
    if (now + s->seconds < 0.8 * time) {
        if (now < 0.6 * time) { r->mark = r->step; r->marked = now - r->evaluated; }
        return;
    }
    r->fitted = true;
    const double each = (now - r->evaluated - r->marked) / (r->step - r->mark)
                        + r->evaluating / o->eval_every;
    const int64_t steps = r->step + (int64_t)fmax(0, 0.97 * (time - now) / each);
    if (o->steps && o->steps <= steps) return;
    o->steps = steps;
    r->fall_step = r->step;
    r->fall_rate = s->lr;
    progress(true, "step %s  four fifths of the time are over: the learning rate falls from here "
             "to the last step", place(r));
}

/* --- Plan, summary and profile --- */

/* Targets of a step, about: B sequences of at most T, and of no more than the data have. */
static int64_t targets_of_step(const struct Run *r)
{
    const int64_t most = tokens_per_step(&r->options), all = r->data.tokens - 1;
    const int64_t sequences = (int64_t)r->options.batch * r->options.accumulate;
    return r->loader.sequences.starts || all >= most / sequences ? most : sequences * all;
}

/* How often the run reads the data: "0.25 epochs", "192 epochs". */
static const char *epochs_of(const struct Run *r)
{
    static char text[32];
    const double n = (double)r->options.steps * targets_of_step(r) / (r->data.tokens - 1);
    snprintf(text, sizeof text, "%.*f epochs", n < 100 ? 2 : 0, n);
    return text;
}

/* --plan: sizes, memory, and the expected duration with its evaluations. */
static void print_plan(const struct Run *r, double step_seconds)
{
    const struct TrainOptions *o = &r->options;
    const struct Config *c = &r->model.config;
    const double flops = flops_per_token(c), rate = tokens_per_step(o) / step_seconds;
    const double evaluations = r->val.count ? (double)o->steps / o->eval_every + 1 : 0;
    const double all_steps = o->steps + evaluations * evaluation_in_steps(r);
    printf("model          %s, %s, %s, context %d, vocabulary %d\n", counted(c->layers, "layer"),
           counted(c->heads, "head"), counted(c->channels, "channel"), c->context, c->vocabulary);
    printf("parameters     %zu\n", r->model.parameter_count);
    printf("memory         %.1f MB of this machine's %.0f\n", memory_needed(r, false) / 1e6,
           machine_memory() / 1e6);
    memory_needed(r, true);
    printf("data           %lld tokens, shards: %d\n", (long long)r->data.tokens, r->data.count);
    printf("steps          %lld of %s: %s\n", (long long)o->steps,
           counted(targets_of_step(r), "token"), epochs_of(r));
    printf("FLOPs          %.3g for a token\n", flops);
    printf("peak           %.1f GFLOP/s, threads: %d\n", r->peak / 1e9, thread_count());
    printf("speed          %.*f tokens/s, %.0f%% of peak, %s\n", rate < 10 ? 2 : 0, rate,
           100 * rate * flops / r->peak,
           fits_machine(r) ? "measured" : "assumed, since the memory does not suffice");
    printf("duration       %s\n", duration(step_seconds * all_steps));
}

/* What a run shows before its first step. Warns if the machine has too little memory. */
static void print_summary(const struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    const double needed = memory_needed(r, false);
    progress(true, "%.2fM parameters, %.0f MB of memory, threads: %d, %.0f GFLOP/s at most",
             r->model.parameter_count / 1e6, needed / 1e6, thread_count(), r->peak / 1e9);
    if (o->steps)
        progress(true, "%lld tokens; %s of %lld: %s", (long long)r->data.tokens,
                 counted(o->steps, "step"), (long long)targets_of_step(r), epochs_of(r));
    else
        progress(true, "%lld tokens; steps of %lld for %s", (long long)r->data.tokens,
                 (long long)targets_of_step(r), duration(o->time_limit));
    if (!fits_machine(r))
        warn("%.0f MB are needed, and the machine has %.0f. Use a smaller --batch with "
             "--accumulate.", needed / 1e6, machine_memory() / 1e6);
}

/* --profile: the time of each kind of work in a step, and of products also the rate. */
static void print_profile(const struct Run *r)
{
    static const char *const names[KINDS] = {
        [EMBEDDING] = "embedding", [LAYERNORM] = "LayerNorm", [LINEAR] = "linear",
        [ATTENTION] = "attention", [GELU] = "GELU", [DROPOUT] = "dropout",
        [HEAD] = "head and loss", [ADAMW] = "AdamW", [REST] = "rest"};
    const double steps = r->step - r->first, tokens = tokens_per_step(&r->options);
    double total = 0;
    for (int k = 0; k < KINDS; k++)
        total += profile.seconds[k][FORWARD] + profile.seconds[k][BACKWARD];
    if (steps < 1) return;
    printf("profile of %s, %.1f ms each; peak %.1f GFLOP/s\n", counted((int64_t)steps, "step"),
           1e3 * total / steps, r->peak / 1e9);
    printf("%-24s %9s %7s %9s %8s\n", "", "ms", "share", "GFLOP/s", "of peak");
    for (int i = 0; i < 2 * KINDS; i++) {
        const int k = i / 2, direction = i % 2;
        const double time = profile.seconds[k][direction] / steps;
        const double rate = (1 + direction) * tokens * forward_flops(&r->model.config, k) / time;
        if (time == 0) continue;
        printf("%-14s %-9s %9.2f %6.1f%%", names[k], k == DROPOUT || k == ADAMW ? ""
               : direction == FORWARD ? "forward" : "backward", 1e3 * time,
               100 * time * steps / total);
        if (rate > 0) printf(" %9.1f %7.0f%%", rate / 1e9, 100 * rate / r->peak);
        printf("\n");
    }
}

/* ============================================================================================= */
/* 9. Subcommands                                                                                */
/* ============================================================================================= */

/* --- train --- */

/* Prints the result, and of a run that has stopped before its end how to go on. Returns the exit
 * status. */
static int finish(const struct Run *r)
{
    const struct TrainOptions *o = &r->options;
    const double time = r->earlier + seconds() - r->start;
    if (!finished(r))
        progress(true, "stopped after step %s%s and saved. Go on with: train_gpt train --out %s "
                 "--resume", place(r), stop_signal ? "" : ", by --time-limit,", quoted(o->out));
    if (stop_signal && !finished(r)) return stopped_status();
    if (live()) fprintf(stderr, "\r\033[K");
    printf("%s: ", o->out);
    if (r->best_step)
        printf("best of step %lld, val_loss %.4f, bits_per_byte %.4f; ", (long long)r->best_step,
               r->best.loss, r->best.bits_per_byte);
    printf("%s, ", counted(r->step, "step"));
    if (r->skipped) printf("%lld of them skipped, ", (long long)r->skipped);
    printf("%s, %s\n", counted(r->tokens, "token"), duration(time));
    if (o->profile) print_profile(r);
    return 0;
}

/* Everything is checked, loaded and allocated before the first step; then pretrain. */
static int command_train(int argc, char **argv)
{
    int rows;
    struct Run r = {.start = seconds(), .best.loss = INFINITY};
    struct TrainOptions *o = &r.options;
    r.table = option_table(o, &rows);
    refuse_arguments(parse_options(argc, argv, r.table, rows,
        "train_gpt train --data GLOB --val GLOB --tokenizer DIR --out DIR [options]\n"
        "Pretrains a model. --out holds the best one and log.tsv, --out/last the last.\n"
        "With --time-limit alone, --schedule cosine and wsd are the same: the learning rate stays\n"
        "at --lr for four fifths of the time, then falls as 1 - sqrt; constant does not fall."),
        argv);
    if (!o->out && (o->resume || !o->plan))
        die_usage("--out: must be given. --help explains it.");
    if (o->epochs > 0 && given(&r, "steps"))
        die_usage("--steps and --epochs: choose one of them.");
    begin_training();
    set_threads(o->threads);
    if (o->out) {
        r.paths = paths_in(o->out);
        if (!o->plan) lock_directory(o->out);
        check_out(&r);
    }
    if (o->resume) take_options(&r);
    set_precision(o->precision);
    if (!o->init) check_options(&r);
    load_tokenizer(&r);
    make_model(&r);
    if (o->init) check_options(&r);             /* which may set sizes */
    load_data(&r);
    r.peak = fma_peak();
    take_memory(&r);
    const double step = fix_steps(&r);
    warn_of_unused(&r);
    if (o->plan) { print_plan(&r, step); return 0; }
    if (o->resume) restore_run(&r);
    const struct Buffer log = earlier_rows(&r);
    print_summary(&r);
    if (finished(&r)) {
        progress(true, "the run in %s is finished: step %lld of %lld. A larger --steps goes on.",
                 o->out, (long long)r.step, (long long)o->steps);
        return 0;
    }
    begin_files(&r, log);
    stop_between_steps();
    r.first = r.step + 1;
    r.mark = r.step;
    r.began = r.saved = seconds();
    r.marked = r.began - r.start;
    pretrain(&r);
    return finish(&r);
}

/* --- eval, sample, info --- */

/* The loss of a model on shards, beside what knows nothing of the context. The defaults read every
 * token, in sequences as in training. */
static int command_eval(int argc, char **argv)
{
    const char *dir = NULL, *pattern = NULL, *how = NULL, *precision = "fp32";
    int context = 0, batch = 8, threads = 0;
    int64_t tokens = 0;
    struct Option options[] = {
        {"model", "model directory", TEXT, &dir, .required = true},
        {"data", "token shards", TEXT, &pattern, .required = true},
        {"context", "tokens that the model sees at once; 0: as many as it can",
         INTEGER, &context, 0, 1 << 20},
        {"cut", "where sequences end; without: as in training", CHOICE, &how,
         .choices = "length|documents"},
        {"batch", "sequences computed together", INTEGER, &batch, 1, 1 << 16},
        {"tokens", "how many, spread evenly over the data; 0: all", LONG, &tokens, 0, 1e15},
        PRECISION_OPTION(&precision),
        {"threads", "0: all cores it may use", INTEGER, &threads, 0, 1024},
    };
    refuse_arguments(parse_options(argc, argv, options, COUNT(options),
        "train_gpt eval --model DIR --data GLOB [options]\n"
        "The mean loss of a model, in nats per token, and in bits per byte of text."), argv);
    set_threads(threads);
    set_precision(precision);
    struct Model model;
    struct Metadata meta;
    load_model(&model, dir, &meta);
    const int T = context ? context : model.config.context;
    if (T > model.config.context)
        die_usage("--context %d: the model knows only %s.", T,
                  counted(model.config.context, "position"));
    struct Tokenizer *tokenizer = tokenizer_of_model(dir, &model, &meta);
    struct Data data = open_data("data", pattern, NULL, tokenizer);
    const char *trained = metadata_get(&meta, "train.cut");
    struct Sequences sequences;
    cut(&sequences, &data, T, how ? how : trained ? trained : "length", tokenizer);
    if (batch > sequences.count) batch = (int)sequences.count;
    if ((int64_t)batch * T > INT32_MAX / 8)
        die_usage("--batch %d: times %d tokens is too much.", batch, T);
    struct Workspace ws;
    struct Minibatch m = minibatch_create(batch * T);
    workspace_create(&ws, &model, batch * T, WORK_EVAL);
    print_baselines(&data, model.config.vocabulary);
    fflush(stdout);
    const int *bytes = token_bytes(tokenizer, model.config.vocabulary);
    struct Score s = evaluate(&model, &ws, &m, &sequences, bytes, tokens, true);
    if (live()) fprintf(stderr, "\r\033[K");
    printf("loss %.6f perplexity %.2f bits_per_byte %.4f tokens %lld\n", s.loss, exp(s.loss),
           s.bits_per_byte, (long long)s.tokens);
    return 0;
}

enum { SHORT_SAMPLE = 10 };         /* tokens: a text that ends before is explained */

/* Prints `count` texts, each from its own stream of random numbers, then their speed. ids: those of
 * the prompt. */
static void write_samples(struct Generator *g, const char *prompt, const int *ids,
                          int prompt_count, int tokens, int64_t seed, int count)
{
    const double start = seconds();
    int64_t written = 0;
    int shortest = tokens;
    for (int i = 0; i < count; i++) {
        if (i) puts("---");
        g->random = stream_for(seed, SAMPLE_STREAM, i);
        const int drawn = write_sample(g, prompt, ids, prompt_count, tokens);
        shortest = min_int(shortest, drawn);
        written += drawn;
    }
    const double took = seconds() - start;
    if (shortest < tokens && shortest < SHORT_SAMPLE)
        progress(true, "A text ended after %s, because the model drew <|endoftext|>: it learnt "
                 "from short documents, as lines are after --split lines. --min-tokens N or "
                 "--ignore-eot goes on.", counted(shortest, "token"));
    fprintf(stderr, "%s, %.0f tokens/s\n", counted(written, "token"), written / took);
}

/* Prints texts that a model writes. */
static int command_sample(int argc, char **argv)
{
    const char *dir = NULL, *prompt = "", *precision = "fp32";
    int tokens = 200, min_tokens = 0, top_k = 40, count = 1, threads = 0;
    int64_t seed = 1;
    double temperature = 0.8, top_p = 1;
    bool ignore_eot = false;
    struct Option options[] = {
        {"model", "model directory", TEXT, &dir, .required = true},
        {"prompt", "how the text begins; empty: as documents do", TEXT, &prompt,
         .may_be_empty = true},
        {"tokens", "the longest text; <|endoftext|> ends it earlier", INTEGER, &tokens, 1, 1e9},
        {"min-tokens", "no <|endoftext|> before so many", INTEGER, &min_tokens, 0, 1e9},
        {"ignore-eot", "<|endoftext|> is never drawn: all texts have --tokens", FLAG, &ignore_eot},
        {"temperature", "above 1 bolder, below 1 safer, 0 always the likeliest token",
         REAL_NUMBER, &temperature, 0, 100},
        {"top-k", "draw from the k likeliest tokens; 0: from all", INTEGER, &top_k, 0, 1e9},
        {"top-p", "draw from the likeliest tokens that have this probability together",
         REAL_NUMBER, &top_p, 0, 1},
        {"seed", "the same seed gives the same text", LONG, &seed, 0, 1e15},
        {"count", "how many texts", INTEGER, &count, 1, 1e9},
        PRECISION_OPTION(&precision),
        {"threads", "0: all cores it may use", INTEGER, &threads, 0, 1024},
    };
    refuse_arguments(parse_options(argc, argv, options, COUNT(options),
        "train_gpt sample --model DIR [--prompt TEXT] [options]\n"
        "Text that the model writes. --- stands between several."), argv);
    if (ignore_eot) warn_unused(options, "min-tokens", "with --ignore-eot");
    else if (min_tokens > tokens)
        warn("--min-tokens %d: more than --tokens %d, so the texts are shorter.", min_tokens,
             tokens);
    static const char *const random[] = {"top-k", "top-p", "seed"};
    for (int i = 0; i < COUNT(random) && temperature == 0; i++)
        warn_unused(options, random[i], "with --temperature 0, which takes the likeliest token");
    set_threads(threads);
    set_precision(precision);
    struct Model model;
    struct Metadata meta;
    struct Generator g;
    load_model(&model, dir, &meta);
    struct Tokenizer *tokenizer = tokenizer_of_model(dir, &model, &meta);
    if (product_precision == BF16) keep_rounded(model.weights, model.parameter_count);
    generator_create(&g, &model, tokenizer);
    g.temperature = temperature;
    g.top_k = top_k;
    g.top_p = top_p;
    g.min_tokens = ignore_eot ? tokens : min_tokens;
    int prompt_count, *ids = encode_prompt(&prompt_count, tokenizer, prompt);
    write_samples(&g, prompt, ids, prompt_count, tokens, seed, count);
    generator_free(&g);
    return 0;
}

/* --- The loss curve: the rows of a log as a plot of characters --- */

enum { PLOT_HEIGHT = 12, PLOT_LABEL = 10, PLOT_WIDTH = 1000 };

/* A column of the plot stands for equally many steps, as nearly as it can. Empty columns: NaN. */
struct Plot {
    int width;
    double first, last;             /* the steps at both ends */
    double train[PLOT_WIDTH];       /* the mean training loss of the steps */
    double val[PLOT_WIDTH];         /* the last validation loss */
    double low, high;               /* of all these values */
};

/* The next row of a log: its step and losses, NaN for no validation. Returns what follows it, or
 * NULL at the end. */
static const char *read_losses(const char *row, int64_t *step, double *train, double *val)
{
    char *at;
    if (!*row) return NULL;
    *step = strtoll(row, &at, 10);
    *train = strtod(at, &at);
    *val = *at == '\t' && at[1] != '\t' ? strtod(at + 1, NULL) : NAN;
    return strchr(row, '\n') + 1;
}

/* Sets the plot from the rows of a log, of which there is at least one. */
static void fill_plot(struct Plot *p, const char *rows, int width)
{
    int64_t step, count[PLOT_WIDTH] = {0};
    double train, val;
    *p = (struct Plot){.first = INFINITY, .low = INFINITY, .high = -INFINITY};
    for (const char *row = rows; (row = read_losses(row, &step, &train, &val)); ) {
        p->first = fmin(p->first, step);
        p->last = fmax(p->last, step);
    }
    const double steps = p->last - p->first + 1;
    p->width = (int)fmin(min_int(width, PLOT_WIDTH), steps);
    for (int x = 0; x < p->width; x++) p->val[x] = NAN;
    for (const char *row = rows; (row = read_losses(row, &step, &train, &val)); ) {
        const int x = min_int((int)((step - p->first) * p->width / steps), p->width - 1);
        if (isfinite(train)) { p->train[x] += train; count[x]++; }
        if (isfinite(val)) p->val[x] = val;
    }
    for (int x = 0; x < p->width; x++) {
        p->train[x] /= count[x];                /* NaN without a step */
        p->low = fmin(p->low, fmin(p->train[x], p->val[x]));
        p->high = fmax(p->high, fmax(p->train[x], p->val[x]));
    }
}

/* Whether a value stands in line y, counted from the highest. */
static bool in_line(const struct Plot *p, double value, int y)
{
    const double unit = p->high > p->low ? (p->high - p->low) / (PLOT_HEIGHT - 1) : 1;
    return floor((p->high - value) / unit + 0.5) == y;
}

/* Draws the losses of a log's rows, in the width of the terminal, or of 80 columns. */
static void plot_losses(const char *rows)
{
    struct winsize terminal = {0};
    struct Plot p;
    const bool known = !ioctl(1, TIOCGWINSZ, &terminal) && terminal.ws_col > 2 * PLOT_LABEL;
    fill_plot(&p, rows, (known ? terminal.ws_col : 80) - PLOT_LABEL - 1);
    if (p.low > p.high) return;             /* no loss is finite */
    const double unit = (p.high - p.low) / (PLOT_HEIGHT - 1);
    printf("loss: * training, mean of each column; o validation\n");
    for (int y = 0; y < (unit > 0 ? PLOT_HEIGHT : 1); y++) {
        char line[PLOT_WIDTH + 1] = "";
        int end = 0;
        for (int x = 0; x < p.width; x++) {
            line[x] = in_line(&p, p.val[x], y) ? 'o' : in_line(&p, p.train[x], y) ? '*' : ' ';
            if (line[x] != ' ') end = x + 1;
        }
        printf("%*.4f |%.*s\n", PLOT_LABEL - 2, p.high - y * unit, end, line);
    }
    printf("%*s+", PLOT_LABEL - 1, "");
    for (int x = 0; x < p.width; x++) putchar('-');
    const int length = printf("\n%*sstep %.0f", PLOT_LABEL, "", p.first) - PLOT_LABEL - 1;
    printf("  %*.0f\n", max_int(p.width - length - 2, 0), p.last);
}

/* Prints a row for each evaluation of the run, its duration and its loss curve, which only the log
 * knows. */
static void print_history(const struct Metadata *meta, const char *dir)
{
    const char *history = metadata_get(meta, "history");
    if (history && *history)
        printf("history\n  %10s %10s %14s\n", "step", "val_loss", "bits_per_byte");
    for (char *end; history && *history; history = end + (*end == '\n')) {
        const long long step = strtoll(history, &end, 10);
        const double loss = strtod(end, &end), bits = strtod(end, &end);
        if (*end != '\n') break;
        printf("  %10lld %10.4f %14.4f\n", step, loss, bits);
    }
    const struct Paths paths = paths_in(dir);
    struct Buffer rows = {0};
    if (file_exists(paths.log))
        printf("seconds        %.1f (from log.tsv)\n", read_log(&rows, paths.log, INT64_MAX));
    if (rows.size && is_log(paths.log)) plot_losses(rows.data);
    free(rows.data);
}

/* Prints the configuration, the metadata and the history of a model directory. */
static int command_info(int argc, char **argv)
{
    const char *dir = NULL;
    struct Option options[] = {{"model", "model directory", TEXT, &dir, .required = true}};
    refuse_arguments(parse_options(argc, argv, options, 1, "train_gpt info --model DIR\n"
        "Configuration, number of parameters, tokenizer and training history."), argv);
    struct Model model;
    struct Metadata meta;
    load_model(&model, dir, &meta);
    const struct Config *c = &model.config;
    printf("layers         %d\nheads          %d\n", c->layers, c->heads);
    printf("channels       %d\ncontext        %d\n", c->channels, c->context);
    printf("vocabulary     %d\n", c->vocabulary);
    printf("parameters     %zu\n", model.parameter_count);
    for (int k = 0; k < c->labels; k++) printf("label %-8d %s\n", k, c->label_names[k]);
    char *merges = tokenizer_file(dir);
    if (!metadata_get(&meta, "tokenizer_hash") && merges)
        printf("%-14s %s\n", "tokenizer_hash", hash_text(tokenizer_load(dir)->hash));
    for (int i = 0; i < meta.count; i++)
        if (strcmp(meta.keys[i], "history"))
            printf("%-14s %s\n", harmless(meta.keys[i]), harmless(meta.values[i]));
    print_history(&meta, dir);
    free(merges);
    return 0;
}

#ifndef TRAIN_GPT_NO_MAIN
int main(int argc, char **argv)
{
    static const struct Command commands[] = {
        {"train", command_train, "pretrain a model on token shards"},
        {"eval", command_eval, "loss of a model on token shards"},
        {"sample", command_sample, "let a model write"},
        {"info", command_info, "what a model directory holds"},
    };
    return run_command("train_gpt", argc, argv, commands, COUNT(commands));
}
#endif
