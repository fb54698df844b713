/* train_gpt.c: pretrains a GPT-2 on token shards, evaluates it, and samples text from it.
 *
 *     train_gpt train  --data 'out/train_*.bin' --val 'out/val_*.bin' --tokenizer out --out out/gpt
 *     train_gpt eval   --model out/gpt --data 'out/val_*.bin'
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
 *     AdamW, Muon    w moves against g by about the learning rate                   update_weights
 *       |
 *     evaluate       the loss on other text, every --eval-every steps               evaluate_run
 *       |
 *     save           the best model so far, the last one, and the state,            save_run
 *                    from which --resume goes on
 *
 *   Part I   pretraining     1 Data    2 Training    3 Evaluation    4 Sampling
 *   Part II  the run         5 Options    6 Metadata, log and state
 *                            7 What suits the time and the text    8 Model and memory
 *                            9 Spikes, time, plan and profile    10 Ranks (MPI)
 *                            11 Subcommands
 *
 * Letters as in model.h: B batch, T context, V vocabulary, C channels, N rows of a minibatch. */

#ifdef MPI                              /* one run by several processes: section 10 */
static void speak_as_rank(int status);
#define AT_END(status, text) speak_as_rank(status)
#endif
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

/* All shards of a pattern, sorted by name, are one text x[0], x[1], .., x[n-1]. */
struct Data {
    struct Shard *shards;       /* (count) */
    int count;                  /* 0: no data, as for --val when it is not given */
    int64_t tokens;             /* n */
    uint64_t fingerprint;       /* a hash of all tokens: a resumed run must find the same text */
};

/* Opens the shards that a pattern matches, or the one of this very name, which may have brackets.
 * Dies if there are none, if another tokenizer made one, or if they have fewer than 2 tokens. */
static struct Data open_data(const char *option, const char *pattern, const struct Tokenizer *t)
{
    glob_t found = {.gl_pathc = 1, .gl_pathv = (char **)&pattern};
    if (!file_exists(pattern) && glob(pattern, GLOB_ERR, NULL, &found))
        die("--%s %s: no such file here, or none that may be looked for (%s). Name token shards, "
            "with * inside quotes if there are many.", option, pattern, strerror(errno));
    struct Data d = {.count = (int)found.gl_pathc};
    d.shards = resize(NULL, d.count * sizeof *d.shards);
    for (int i = 0; i < d.count; i++) {
        d.shards[i] = open_shard(found.gl_pathv[i], t);     /* which keeps the path */
        d.tokens += d.shards[i].count;
        d.fingerprint = mix64(d.fingerprint ^ d.shards[i].sum);
    }
    check_sets(d.shards, d.count, pattern);
    if (d.tokens < 2)
        die("--%s %s: holds %s; 2 are needed. Encode more text.", option, pattern,
            counted(d.tokens, "token"));
    return d;
}

enum { BLOCK = 1 << 12 };           /* tokens that are read from a file at once */

/* out (n) = x[at] .. x[at + n - 1], or fewer at the end of the text. Returns how many. Dies if a
 * file was cut or rewritten since it was opened. */
static int read_tokens(int *out, const struct Data *d, int64_t at, int n)
{
    uint16_t ids[BLOCK];
    int done = 0;
    for (const struct Shard *s = d->shards; s < d->shards + d->count; at -= s++->count)
        while (done < n && at < s->count) {
            const int now = (int)read_block(ids, min_int(n - done, BLOCK), s, at);
            for (int k = 0; k < now; k++) out[done++] = ids[k];
            at += now;
        }
    return done;
}

/* --- Sequences: pieces of at most T inputs; the target of an input is the next token --- */

/* The text has n - 1 targets, x[1] .. x[n-1]. Every target belongs to exactly one sequence:
 * sequence i has the inputs x[start_of(i)] .. x[start_of(i+1) - 1].
 *
 * Cut by length, they all have T inputs, but for the first and the last, because the text begins
 * and ends there. The first has T - shift:
 *
 *     n = 11, T = 4, shift = 1:    inputs  0 1 2 | 3 4 5 6 | 7 8 9      starts 0 3 7 10
 *                                  targets 1 2 3 | 4 5 6 7 | 8 9 10
 *
 * Cut by documents, a sequence also ends before each <|endoftext|>, and the next one begins with
 * it. Then attention never reaches from one document into another. */
struct Sequences {
    const struct Data *data;
    int T, shift;
    int64_t count, *starts;     /* starts (count + 1): listed if cut by documents; else NULL */
};

/* Where sequence i begins; i = count: the end of the text, n - 1. */
static int64_t start_of(const struct Sequences *s, int64_t i)
{
    const int64_t at = s->starts ? s->starts[i] : i * s->T - s->shift, end = s->data->tokens - 1;
    return at < 0 ? 0 : at < end ? at : end;
}

/* shift: 0 .. T-1 */
static void cut_by_length(struct Sequences *s, int shift)
{
    s->shift = shift;
    s->count = (s->data->tokens - 1 + shift + s->T - 1) / s->T;
}

static void cut_by_documents(struct Sequences *s, int eot)
{
    const int64_t end = s->data->tokens - 1;
    struct Buffer starts = {0};
    int block[BLOCK];
    for (int64_t at = 0, begin = 0; at <= end; ) {
        const int n = read_tokens(block, s->data, at, BLOCK);
        for (int k = 0; k < n; k++, at++) {
            if (at > 0 && at < end && at < begin + s->T && block[k] != eot) continue;
            append_bytes(&starts, &at, sizeof at);
            begin = at;
        }
    }
    s->starts = (int64_t *)starts.data;
    s->count = (int64_t)(starts.size / sizeof *s->starts) - 1;  /* the last entry is the end */
}

/* Cuts as --cut says, by "length" or "documents". Dies if int cannot count the sequences. */
static struct Sequences cut(const struct Data *d, int T, const char *how, int eot)
{
    struct Sequences s = {.data = d, .T = T};
    if (!strcmp(how, "documents")) cut_by_documents(&s, eot);
    else cut_by_length(&s, 0);
    if (s.count >= INT32_MAX)               /* a shift may add one */
        die("--data: too many sequences (%lld). Use a longer --context.", (long long)s.count);
    return s;
}

/* --- Loader: the sequences of epoch 0, 1, 2, .. in random order --- */

/* Seed and epoch determine the order, so (epoch, next) is all that a resumed run needs. Cut by
 * length, each epoch has another shift, so that a token changes its position in a sequence. */
struct Loader {
    struct Sequences sequences;
    int *order;                 /* (count): a permutation of the sequences */
    uint64_t seed;
    long long epoch;
    int next;                   /* sequences of this epoch that have been read */
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
    if (!s->starts) cut_by_length(s, (int)random_below(&r, s->T));
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

/* The number of the next sequence, if need be of the next epoch. Who reads it adds 1 to `next`. */
static int loader_peek(struct Loader *l)
{
    if (l->next >= l->sequences.count) loader_seek(l, l->epoch + 1, 0);
    return l->order[l->next];
}

/* --- Minibatches: sequences of any length, back to back, without padding --- */

/* Appends sequence i, its inputs and its targets as new rows, if it still fits. Cut by length, a
 * minibatch of B * T rows has at most B sequences, although the two short ones of an epoch may
 * leave room for another. */
static bool add_sequence(struct Batch *m, const struct Sequences *s, int64_t i)
{
    const int64_t begin = start_of(s, i);
    const int length = (int)(start_of(s, i + 1) - begin);
    if (m->rows + length > m->max_rows) return false;
    if (!s->starts && (m->sequences + 1) * s->T > m->max_rows) return false;
    const int row = batch_add(m, length);
    read_tokens(m->tokens + row, s->data, begin, length);
    read_tokens(m->targets + row, s->data, begin + 1, length);
    return true;
}

/* Refills a minibatch with as many of the loader's next sequences as fit. */
static void minibatch_fill(struct Batch *m, struct Loader *l)
{
    batch_clear(m);
    while (add_sequence(m, &l->sequences, loader_peek(l))) l->next++;
}

/* ============================================================================================= */
/* 2. Training                                                                                   */
/* ============================================================================================= */

/* What the command line of `train` says. train_options explains each of them. */
static struct TrainOptions {
    const char *data, *val, *init, *cut, *schedule, *optimizer, *precision, *tokenizer, *out;
    const char *sample_prompt;
    int layers, heads, channels, context, batch, accumulate, threads, sample_tokens;
    int64_t steps, warmup, seed, eval_every, eval_tokens, save_every, sample_every;
    double lr, min_lr_ratio, beta2, weight_decay, clip, dropout, epochs, time_limit;
    bool skip_spikes, resume, overwrite, plan, profile, allow_mixed;
} set = {
    .accumulate = 1, .cut = "length", .min_lr_ratio = 0.1, .warmup = 100, .schedule = "cosine",
    .beta2 = 0.99, .weight_decay = 0.1, .clip = 1, .seed = 1, .eval_tokens = 50000,
    .optimizer = "adamw", .precision = "fp32", .sample_prompt = "", .sample_tokens = 100,
};

/* The mean loss, in nats per token, over `tokens` targets. It depends on the tokenizer, while bits
 * per byte of text do not:
 *   bits_per_byte = sum of losses / ln 2 / bytes of the target tokens
 * <|endoftext|> counts as 0 bytes, because the text does not contain it; its loss counts. */
struct Score { double loss, bits_per_byte; long long tokens; };

enum { WINDOW = 33, SPIKE_FACTOR = 5 };         /* see median and judge_step */

/* Wall-clock time of a run. Of what a step computes, it decides only what fit_to_time says. */
struct Clock {
    double start;                       /* time: of the process, if it had done the whole run */
    double shown, saved;                /* times: of the last line, of the last save */
    double saving;                      /* seconds: a save */
    double mark;                        /* time: when the stretch of steps began, see end_step */
    int64_t mark_step, stretches;       /* the step before it; the stretches that have ended */
    double each[WINDOW];                /* seconds of a step in the last of them */
    int64_t first;                      /* the first step of this process */
};

/* One run of training. */
struct Run {
    /* Fixed before the first step */
    struct { char *last, *state; struct Journal log; } files;   /* in --out: last, the directory */
    struct Json old;                    /* metadata of the run that --resume found; empty: none */
    struct Tokenizer *tokenizer;
    struct Data data, val;
    struct Sequences val_sequences;
    struct Batch *minibatches;          /* (accumulate): one for each slot of a step */
    struct Workspace ws;                /* for one minibatch: B * T rows */
    struct Model part;                  /* what this process updates: all, or a part (10) */
    double *losses;                     /* (accumulate): of each slot, summed over its targets */
    double peak;                        /* FLOP/s of all ranks' multiply-adds */
    int64_t expected;                   /* --steps, or as many as may fit into --time-limit */

    /* Stored in the state */
    struct Model model;
    struct Loader loader;
    long long step, tokens;             /* steps and targets so far */
    struct Score last, best;            /* on --val; best.loss starts at infinity */
    long long best_step;                /* of the best score; 0: none yet */
    struct { long long step; double rate; } fall;   /* see fit_to_time; step 0: undecided */
    double norms[WINDOW];               /* of the last steps, step s at s - 1 modulo the window */
    long long skipped;                  /* steps that did not update the weights */

    struct Clock clock;
};

/* Slots are shared out to `ranks` processes, of which this is number `rank`: without MPI 0 of 1. */
static int rank = 0, ranks = 1;

/* What is known of one step. */
struct Step { double loss, norm, lr, start, seconds; int64_t targets; };

/* --- What the loop uses of the sections below --- */

static void sum_slots(struct Run *r, int first, int count);     /* first to first + ranks - 1 */
static void share(real *array);     /* (parameters): gets the parts that others have computed */
static void take_from_rank_0(void *value, size_t size);     /* its value, for all ranks */
static void sum_over_ranks(double *x, int n);   /* x (n): a value is 0 on all ranks but one */
static void gather_moments(struct Run *r);      /* all parts, to rank 0 */

static struct Step begin_step(struct Run *r);   /* starts the clock, and the profile if it is on */
static void end_step(struct Run *r, struct Step *s);    /* stops both */
static bool judge_step(struct Run *r, const struct Step *s);    /* may it update the weights? */
static bool fit_to_time(struct Run *r, const struct Step *s);   /* is --time-limit over? */
static void show_step(struct Run *r, const struct Step *s);     /* the live line */
static void evaluate_run(struct Run *r);        /* sets r->last, r->best and r->best_step */
static void log_row(struct Run *r, const struct Step *s, const struct Score *val);
static void sample_run(struct Run *r);          /* prints a sample */
static bool save_is_due(const struct Run *r);   /* by --save-every, or by the time since the last */
static void save_run(struct Run *r, bool whole);    /* the best model; whole: all of the run */

/* --- One step --- */

/* Fills the first `count` minibatches. Returns n, the number of their targets. */
static int64_t read_step(struct Run *r, int count)
{
    int64_t targets = 0;
    for (int a = 0; a < count; a++) {
        minibatch_fill(&r->minibatches[a], &r->loader);
        targets += r->minibatches[a].rows;
    }
    return targets;
}

/* One slot of a step, which is one minibatch of `count`. Returns the sum of the losses of its
 * targets, and adds to model.grads its part of the gradient of the mean over the step's n targets:
 *   1/n sum_i -log p(target_i | tokens up to i)
 * Dropout masks are a function of the seed, the step and the slot. */
static double slot_gradient(struct Run *r, int slot, int count, int64_t step, int64_t targets)
{
    struct Batch *m = &r->minibatches[slot];
    const uint64_t masks = stream_for(set.seed, DROPOUT_STREAM, step * count + slot).key;
    profile.direction = FORWARD;
    trunk_forward(&r->model, &r->ws, m, set.dropout, masks);
    lap(REST);
    profile.within = HEAD;
    const double loss = lm_head(&r->model, &r->ws, m, m->targets, (real)(1.0 / targets));
    lap(HEAD);
    profile.within = REST;
    profile.direction = BACKWARD;
    trunk_backward(&r->model, &r->ws, m);
    lap(REST);
    return loss;
}

/* sum (n) += g (n), and g = 0. A step of one slot has its sum in place. */
static void add_gradient(real *sum, real *g, size_t n)
{
    if (sum == g) return;
    #pragma omp parallel for simd schedule(static)
    for (size_t k = 0; k < n; k++) {
        sum[k] += g[k];
        g[k] = 0;
    }
}

/* Returns the mean loss over the n targets of a step, and adds its gradient to part.grads, which
 * update_weights has left at 0. The factor 1/n is the same in every slot, so the gradients add up:
 * `count` minibatches of B sequences give what one of count * B would give, in the memory of one.
 * Each slot's gradient begins at 0, and the slots are added in their order,
 *   ((g0 + g1) + g2) + ..
 * wherever they are computed, so the bytes are the same for any number of ranks. */
static double step_gradient(struct Run *r, int count, int64_t step, int64_t targets)
{
    double sum = 0;
    memset(r->losses, 0, count * sizeof *r->losses);
    for (int first = 0; first < count; first += ranks) {
        const int slot = first + rank;
        if (slot < count) r->losses[slot] = slot_gradient(r, slot, count, step, targets);
        if (ranks > 1) sum_slots(r, first, count);
        else add_gradient(r->part.grads, r->model.grads, r->model.parameter_count);
    }
    if (ranks > 1) sum_slots(r, count, count);          /* waits for the last ones */
    sum_over_ranks(r->losses, count);
    for (int slot = 0; slot < count; slot++) sum += r->losses[slot];
    return sum / targets;
}

/* The norm of the gradient: as grad_norm, but each rank has the sums of the chunks of its part.
 * There are at most so many as room is allocated for; what is not used is 0. */
static double step_norm(struct Run *r)
{
    const int count = (int)(r->model.parameter_count / SUM_CHUNK) + r->model.tensor_count;
    double *sums = r->model.partial_sums, total = 0;
    memset(sums, 0, count * sizeof *sums);
    square_sums(&r->part);
    sum_over_ranks(sums, count);
    for (int i = 0; i < count; i++) total += sums[i];
    return sqrt(total);
}

static void forget_gradient(struct Model *model)
{
    memset(model->grads, 0, model->parameter_count * sizeof(real));
}

/* Each rank updates its part. Muon's products are of whole matrices, of which a part may have
 * pieces, so all directions are shared before them. */
static void update_weights(struct Run *r, double lr, double scale, int64_t update)
{
    const size_t begin = r->part.weights - r->model.weights;
    profile.within = OPTIMIZER;
    adamw_step(&r->part, lr, scale, set.weight_decay, update);
    if (r->model.muon) {
        add_gradient(r->model.grads + begin, r->part.grads, r->part.parameter_count);
        share(r->model.grads);
        muon_step(&r->model, lr, set.weight_decay, begin, begin + r->part.parameter_count);
    }
    lap(OPTIMIZER);
    profile.within = REST;
}

/* The learning rate of this step. Until the number of steps is known (--steps 0) it stays at --lr
 * after warm-up. The last step has min_lr_ratio times --lr; if that is 0, the rate would be 0 one
 * step later, since every update is to count.
 *
 * After fit_to_time has decided, the rate falls from what it was, as in the last fifth of wsd:
 *   lowest + (fall.rate - lowest) (1 - sqrt(t))      t: 0 to 1 from fall.step to the last step */
static double rate_of(const struct Run *r)
{
    const int64_t begin = r->fall.step,
                  end = set.steps ? set.steps + (set.min_lr_ratio == 0) : INT64_MAX;
    if (!begin || r->step <= begin)
        return learning_rate(set.schedule, r->step, end, set.warmup, set.lr, set.min_lr_ratio);
    const double lowest = fmin(set.min_lr_ratio * set.lr, r->fall.rate);
    const double t = (double)(r->step - begin) / (end - begin);
    return lowest + (r->fall.rate - lowest) * (1 - sqrt(t));
}

/* --- The loop --- */

/* Whether all steps are done. With --steps 0 their number is not yet known. */
static bool finished(const struct Run *r) { return set.steps && r->step >= set.steps; }

/* What depends on time or signals is decided by rank 0. */
static bool agreed(bool mine)
{
    take_from_rank_0(&mine, sizeof mine);
    return mine;
}

/* Trains until --steps are done, the time limit is reached, or a signal asks to stop. The last of
 * --steps is evaluated. Wherever else the run stops, it saves and computes nothing: resumed, it
 * writes what it would have written without the stop. */
static void pretrain(struct Run *r)
{
    for (bool stop = false; !stop; ) {
        struct Step s = begin_step(r);

        /* Read the minibatches; the gradient of their mean loss. */
        s.targets = read_step(r, set.accumulate);
        s.loss = step_gradient(r, set.accumulate, r->step + 1, s.targets);

        /* Clip: if the norm is above the limit, the gradient is scaled down to it. */
        s.norm = step_norm(r);
        const double scale = set.clip > 0 && s.norm > set.clip ? set.clip / s.norm : 1;

        /* Update, unless --skip-spikes leaves it out. AdamW counts the updates. */
        const bool update = judge_step(r, &s);
        r->step++;
        r->tokens += s.targets;
        s.lr = rate_of(r);
        if (update) update_weights(r, s.lr, scale, r->step - r->skipped);
        else forget_gradient(&r->part);
        share(r->model.weights);
        end_step(r, &s);

        /* Is this the last step? */
        const bool late = fit_to_time(r, &s), last = finished(r);

        /* Evaluate, log, sample. */
        const bool evaluated = r->val.count && (last || r->step % set.eval_every == 0);
        show_step(r, &s);
        if (evaluated) evaluate_run(r);
        log_row(r, &s, evaluated ? &r->last : NULL);
        if (set.sample_every && r->step % set.sample_every == 0) sample_run(r);

        /* Save. */
        stop = last || late || agreed(stop_signal);
        const bool whole = stop || agreed(save_is_due(r));
        if (whole || r->best_step == r->step) save_run(r, whole);
    }
}

/* ============================================================================================= */
/* 3. Evaluation                                                                                 */
/* ============================================================================================= */

/* The bytes of text that a token of the data stands for. */
static int text_bytes(const struct Tokenizer *t, int id)
{
    return id == t->eot ? 0 : token_length(t, id);
}

/* The score of about `budget` targets (0: all). The sequences are spread evenly over the data, and
 * are the same in every call, so that scores can be compared. Ranks share out the minibatches,
 * whose losses are added in their order. ws has room for the rows of m. */
static struct Score evaluate(struct Model *model, struct Workspace *ws, struct Batch *m,
                             const struct Sequences *s, const struct Tokenizer *t, int64_t budget)
{
    const double part = budget > 0 ? fmin(1, (double)budget / (s->data->tokens - 1)) : 1;
    const int64_t chosen = (int64_t)fmax(1, ceil(part * s->count));
    struct Score score = {0};
    int64_t total_bytes = 0;
    double sum = 0, *losses = allocate_zeroed(chosen * sizeof *losses);     /* or fewer */
    int count = 0;
    struct Timer timer = start_timer();
    for (int64_t i = 0; i < chosen; count++) {
        batch_clear(m);
        while (i < chosen && add_sequence(m, s, i * s->count / chosen)) i++;
        if (count % ranks == rank) {
            trunk_forward(model, ws, m, 0, 0);
            losses[count] = lm_head(model, ws, m, m->targets, 0);
        }
        for (int n = 0; n < m->rows; n++) total_bytes += text_bytes(t, m->targets[n]);
        score.tokens += m->rows;
        show_work(&timer, "eval", i, chosen, "sequences");
    }
    sum_over_ranks(losses, count);
    for (int k = 0; k < count; k++) sum += losses[k];
    release(losses, chosen * sizeof *losses);
    score.loss = sum / score.tokens;
    score.bits_per_byte = total_bytes ? sum / M_LN2 / total_bytes : NAN;
    return score;
}

/* Two losses to compare with: log V, of the uniform distribution, and -sum_v p_v log p_v, of a
 * model that knows the frequency p_v of each token in these data and nothing of its context. */
static void print_baselines(const struct Data *d, const struct Tokenizer *t, int V)
{
    int64_t *counts = allocate_zeroed(t->vocabulary * sizeof *counts);
    double unigram = 0, all_bytes = 0;
    int block[BLOCK];
    for (int64_t at = 0, n; (n = read_tokens(block, d, at, BLOCK)) > 0; at += n)
        for (int k = 0; k < n; k++) counts[block[k]]++;
    for (int id = 0; id < t->vocabulary; id++) {
        if (counts[id]) unigram -= counts[id] * log((double)counts[id] / d->tokens) / d->tokens;
        all_bytes += (double)counts[id] * text_bytes(t, id);
    }
    const double bits = d->tokens / M_LN2 / all_bytes;
    printf("uniform %.6f bits_per_byte %.4f (every token equally likely)\n", log(V), log(V) * bits);
    printf("unigram %.6f bits_per_byte %.4f (each token as frequent as in these data)\n", unigram,
           unigram * bits);
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
    int kept = 0;
    if (max == n && p >= 1) return n;
    for (int i = n / 2 - 1; i >= 0; i--) heap_sift_down(&heap, i);
    for (int i = 0; i < max; i++) total += heap_pop(&heap).key;
    do reached += c[n - ++kept].key; while (kept < max && reached < p * total);
    return kept;
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

/* Appends the characters that more bytes complete. Bytes of no character become U+FFFD. */
static void utf8_feed(struct Buffer *out, struct Utf8 *u, struct Bytes bytes)
{
    uint32_t c;
    for (size_t i = 0; i < bytes.size; i++) {
        u->held[u->count++] = bytes.data[i];
        for (int length; u->count && (length = utf8_decode(u->held, u->count, &c)); ) {
            if (length > 0) append_bytes(out, u->held, length);
            else append(out, "\xEF\xBF\xBD");
            u->count -= abs(length);
            memmove(u->held, u->held + abs(length), u->count);
        }
    }
}

/* --- The generator --- */

/* `window` holds the tokens that the model has read. ws is their key-value cache, so that one more
 * token costs one row instead of a forward pass over all of them. */
struct Generator {
    struct Model *model;
    struct Workspace ws;
    struct Tokenizer *tokenizer;
    int *window, count;             /* (T + 1): the first `count` are in use */
    real *logits;                   /* (V) */
    struct Entry *choices;          /* (V): the tokens and their weights */
    double temperature, top_p;
    int top_k, min_tokens;          /* min_tokens: of a text before <|endoftext|> may be drawn */
    struct Random random;
};
static struct Generator generator = {.temperature = 0.8, .top_p = 1, .top_k = 40};

/* Sets all but the options. */
static void generator_create(struct Generator *g, struct Model *model, struct Tokenizer *tokenizer)
{
    const struct Config *c = &model->config;
    g->model = model;
    g->tokenizer = tokenizer;
    workspace_create(&g->ws, model, c->context, WORK_CACHE);
    g->window = resize(NULL, (c->context + 1) * sizeof *g->window);
    g->logits = resize(NULL, c->vocabulary * sizeof *g->logits);
    g->choices = resize(NULL, c->vocabulary * sizeof *g->choices);
}

/* Reads n tokens, or the last T of more, in one pass. Returns the hidden state (C) of the last. */
static const real *read_text(struct Generator *g, const int *tokens, int n)
{
    const int rows = min_int(n, g->model->config.context);
    memmove(g->window, tokens + n - rows, rows * sizeof *tokens);
    g->count = rows;
    const struct Batch batch = {rows, 1, g->window, (int[]){0, rows}};
    const real *hidden = trunk_forward(g->model, &g->ws, &batch, 0, 0);
    return hidden + (size_t)(rows - 1) * g->model->config.channels;
}

/* Reads one more token and returns its hidden state (C). When the window is full, its last T/2
 * tokens are read again from position 0, since there is no position T. */
static const real *read_next(struct Generator *g, int token)
{
    const int context = g->model->config.context, half = context / 2;
    g->window[g->count] = token;
    if (g->count < context) return trunk_next(g->model, &g->ws, token, g->count++);
    return read_text(g, g->window + context - half, half + 1);
}

/* Draws the token after a hidden state (C), <|endoftext|> only if the text may end. Temperature 0
 * returns the likeliest one. The highest logit is subtracted first, as in softmax. */
static int next_token(struct Generator *g, const real *hidden, bool may_end)
{
    /* Ids from V on are not drawn: those that pad a model, and <|endoftext|>, which is the last. */
    const int V = may_end ? g->tokenizer->vocabulary : g->tokenizer->eot;
    int best = 0;
    lm_logits(g->logits, g->model, hidden);
    for (int id = 1; id < V; id++) if (g->logits[id] > g->logits[best]) best = id;
    if (g->temperature == 0) return best;
    const real highest = g->logits[best];
    const real scale = (real)fmin(1 / g->temperature, 1e20);    /* infinity * 0 would be NaN */
    for (int id = 0; id < V; id++) g->logits[id] = exp_real((g->logits[id] - highest) * scale);
    for (int id = 0; id < V; id++) g->choices[id] = (struct Entry){g->logits[id], id, 0};
    const int kept = keep_likely(g->choices, V, g->top_k, g->top_p);
    return draw(g->choices, V, kept, random_uniform(&g->random));
}

/* Prints the prompt and then up to max_tokens tokens, each as soon as it is drawn. <|endoftext|>
 * ends the text; it also precedes the prompt, if the documents of the training text began with it,
 * as those of a model from elsewhere may not. Returns the number of tokens drawn. */
static int write_sample(struct Generator *g, const char *prompt, int max_tokens,
                        struct Random random)
{
    struct Buffer text = {0};
    struct Utf8 utf8 = {0};
    const int n = (int)strlen(prompt), begins = g->tokenizer->usage.begins || !n;
    int written = 0, token = g->tokenizer->eot, *ids = resize(NULL, (n + 1) * sizeof *ids);
    ids[0] = token;
    const int count = begins + tokenizer_encode(g->tokenizer, prompt, n, ids + begins);
    g->random = random;
    utf8_feed(&text, &utf8, as_bytes(prompt));
    for (; written < max_tokens; written++) {
        show_result(&text);
        const real *hidden = written ? read_next(g, token) : read_text(g, ids, count);
        token = next_token(g, hidden, written >= g->min_tokens);
        if (token == g->tokenizer->eot) break;
        utf8_feed(&text, &utf8, bytes_of_token(g->tokenizer, token));
    }
    utf8_feed(&text, &utf8, as_bytes("\n"));                    /* ends an unfinished one, too */
    show_result(&text);
    free(text.data);
    free(ids);
    return written;
}

/* ============================================================================================= */
/* Part II: the run                                                                              */
/* ============================================================================================= */

/* ============================================================================================= */
/* 5. Options                                                                                    */
/* ============================================================================================= */

static struct Option train_options[] = {
    {"data", "token shards to learn from", TEXT, &set.data, .effect = EXTENDS},
    {"val", "token shards to evaluate on", TEXT, &set.val, .effect = EXTENDS},
    {"init", "model directory to start from", TEXT, &set.init, .effect = DEFINES},
    {"layers", "blocks of the model; 0: as suits the time and the text", INTEGER, &set.layers,
     0, 100, .effect = DEFINES, .idle = "with init"},
    {"heads", "attention heads in each block; 0: as suits", INTEGER, &set.heads, 0, 1 << 16,
     .effect = DEFINES, .idle = "with init"},
    {"channels", "width of the model, a multiple of --heads; 0: as suits", INTEGER,
     &set.channels, 0, 1 << 16, .effect = DEFINES, .idle = "with init"},
    {"context", "tokens that the model sees at once; 0: as suits", INTEGER, &set.context, 0,
     1 << 20, .effect = DEFINES},
    {"cut", "where sequences end: after --context tokens, or also where a document does",
     CHOICE, &set.cut, .choices = "length|documents", .effect = DEFINES},
    {"batch", "sequences of --context tokens computed together, or as many tokens of others; "
     "0: as suits", INTEGER, &set.batch, 0, 1 << 20, .effect = DEFINES},
    {"accumulate", "batches in a step: as --batch times as large, in less memory",
     INTEGER, &set.accumulate, 1, 1 << 20, .effect = DEFINES},
    {"steps", "updates of the weights; 0: as --time-limit allows; --resume may raise it",
     LONG, &set.steps, 0, 1e12, .effect = EXTENDS},
    {"lr", "highest learning rate; 0: as suits", REAL_NUMBER, &set.lr, 0, 1e3, .effect = DEFINES},
    {"min-lr-ratio", "the last rate, as a part of --lr", REAL_NUMBER, &set.min_lr_ratio, 0, 1,
     .effect = DEFINES, .idle = "with schedule constant"},
    {"warmup", "steps in which the rate rises; if not given, 100, at most a tenth of --steps",
     LONG, &set.warmup, 0, 1e12, .effect = DEFINES},
    {"schedule", "how the learning rate falls: after --warmup, in the last fifth, never",
     CHOICE, &set.schedule, .choices = "cosine|wsd|constant", .effect = DEFINES},
    {"optimizer", "of the matrices of blocks; AdamW has all others; if not given, as suits", CHOICE,
     &set.optimizer, .choices = "adamw|muon", .effect = DEFINES},
    {"beta2", "AdamW's, of squares", REAL_NUMBER, &set.beta2, 0, 0.999999, .effect = DEFINES},
    {"weight-decay", "of matrices", REAL_NUMBER, &set.weight_decay, 0, 1e3, .effect = DEFINES},
    {"clip", "largest norm of the gradient; 0: no limit", REAL_NUMBER, &set.clip, 0, 1e9,
     .effect = DEFINES},
    {"skip-spikes", "no update if the gradient is not finite, or 5 times the median of 33",
     FLAG, &set.skip_spikes, .effect = EXTENDS},
    {"dropout", "part of activations set to 0 in training; if not given, as suits",
     REAL_NUMBER, &set.dropout, 0, 0.99, .effect = DEFINES},
    {"seed", "of all that is random", LONG, &set.seed, 0, 1e15, .effect = DEFINES},
    {"eval-every", "steps between evaluations; 0: 20 in the run, in a tenth of its time",
     LONG, &set.eval_every, 0, 1e12, .effect = DEFINES},
    {"eval-tokens", "tokens of --val in each evaluation, always the same; 0: all",
     LONG, &set.eval_tokens, 0, 1e15, .effect = DEFINES, .idle = "without val"},
    PRECISION_OPTION(&set.precision),
    {"tokenizer", "directory of the tokenizer that made the shards", TEXT, &set.tokenizer},
    {"out", "directory for the model, the state and the log", TEXT, &set.out},
    {"epochs", "passes over the data, instead of --steps", REAL_NUMBER, &set.epochs, 0, 1e4},
    {"time-limit", "of the whole run, resumed or not, as 90s, 30m or 8h: after four fifths the "
     "learning rate falls over the steps that still fit; without --steps and --epochs: 10m",
     SECONDS, &set.time_limit, 0, 1e9},
    {"save-every", "steps between saves; 0: at evaluations, in a hundredth of the time at most",
     LONG, &set.save_every, 0, 1e12, .idle = "with plan"},
    {"sample-every", "steps between samples; 0: none", LONG, &set.sample_every, 0, 1e12,
     .idle = "with plan"},
    {"sample-prompt", "what samples begin with", TEXT, &set.sample_prompt, .may_be_empty = true,
     .idle = "without sample-every"},
    {"sample-tokens", "length of a sample", INTEGER, &set.sample_tokens, 1, 1e6,
     .idle = "without sample-every"},
    THREADS_OPTION(&set.threads),
    {"resume", "go on with the run in --out, with its options", FLAG, &set.resume},
    {"overwrite", "replace the run in --out", FLAG, &set.overwrite},
    {"allow-mixed", "with MPI: ranks may have other programs, whose sums may differ", FLAG,
     &set.allow_mixed},
    {"plan", "print sizes, memory and the expected duration, and stop", FLAG, &set.plan},
    {"profile", "print at the end where the time of the steps went", FLAG, &set.profile,
     .idle = "with plan"}, {0}};

/* ============================================================================================= */
/* 6. Metadata, log and state                                                                    */
/* ============================================================================================= */

/* All entries of a model. None depends on time or threads: the same run writes the same bytes. Dies
 * if a run that is resumed had another tokenizer or other data. */
static struct Json describe(const struct Run *r)
{
    struct Json meta = {0};
    metadata_set(&meta, "program", "train_gpt");
    metadata_set(&meta, "step", "%lld", r->step);
    metadata_set(&meta, "tokens", "%lld", r->tokens);
    metadata_set(&meta, "epoch", "%lld", r->loader.epoch);
    if (r->last.tokens) {
        metadata_set(&meta, "val_loss", "%.17g", r->last.loss);
        metadata_set(&meta, "val_bits_per_byte", "%.17g", r->last.bits_per_byte);
        metadata_set(&meta, "val_tokens", "%lld", r->last.tokens);
    }
    describe_input(&meta, &r->old, "tokenizer_hash", hash_text(r->tokenizer->hash), set.out);
    tokenizer_describe(&meta, r->tokenizer);
    describe_input(&meta, &r->old, "data_fingerprint", hash_text(r->data.fingerprint), set.out);
    describe_input(&meta, &r->old, "val_fingerprint", hash_text(r->val.fingerprint), set.out);
    describe_options(&meta, train_options, "train");
    return meta;
}

/* --- The log: a journal with one row a step --- */

/* The columns that depend on time are the last two, so that runs can be compared by the others. */
static const char LOG_HEADER[] =
    "step\tloss\tval_loss\tval_bits_per_byte\tlr\tnorm\ttokens\ttokens_per_second\tseconds\n";

/* The seconds of the run so far, of all its processes. */
static double time_used(const struct Run *r) { return seconds() - r->clock.start; }

/* val: the score of an evaluation after this step; else NULL. */
static void log_row(struct Run *r, const struct Step *s, const struct Score *val)
{
    if (rank) return;
    const char *score = val ? brief("%.6f\t%.6f", val->loss, val->bits_per_byte) : "\t";
    journal_add(&r->files.log, "%lld\t%.6f\t%s\t%.8g\t%.6g\t%lld\t%.0f\t%.2f\n",
                r->step, s->loss, score, s->lr, s->norm, r->tokens, s->targets / s->seconds,
                time_used(r));
}

/* The seconds of a log's last row; 0 without rows. */
static double last_seconds(const char *rows)
{
    const char *tab = strrchr(rows, '\t');
    return tab ? strtod(tab, NULL) : 0;
}

/* --- Saving --- */

/* Where the run is, for progress: "step/steps", or the step while their number is not known. */
static const char *place(const struct Run *r)
{
    return brief("%lld%s", r->step, set.steps ? brief("/%lld", (long long)set.steps) : "");
}

/* Evaluates the model as it is, and notes it if it is the best so far. It is called best only if it
 * is better than equal probabilities for all tokens, whose loss is ln V. */
static void evaluate_run(struct Run *r)
{
    const double start = seconds();
    r->last = evaluate(&r->model, &r->ws, &r->minibatches[0], &r->val_sequences, r->tokenizer,
                       set.eval_tokens);
    const bool better = r->last.loss < r->best.loss;
    if (better) {
        r->best = r->last;
        r->best_step = r->step;
    }
    progress(true, "step %s  val_loss %.4f  bits_per_byte %.4f%s", place(r), r->last.loss,
             r->last.bits_per_byte,
             better && r->last.loss < log(r->model.config.vocabulary) ? "  (best)" : "");
    r->clock.mark += seconds() - start;
}

/* Writes what --resume needs, for commit_outputs, and adds it to `state`, which is describe(r).
 * restore_run reads the numbers in the same order. The log is flushed to disk first, so that it has
 * every step of the state, even after a crash. */
static void stage_run(const struct Run *r, struct Json state)
{
    struct Buffer position = {0};
    append(&position, "%lld %lld %lld %d %lld %.17g %.17g %lld %.17g %.17g %lld %lld %.17g",
           r->step, r->tokens, r->loader.epoch, r->loader.next, r->last.tokens, r->last.loss,
           r->last.bits_per_byte, r->best_step, r->best.loss, r->best.bits_per_byte, r->skipped,
           r->fall.step, r->fall.rate);
    for (int i = 0; i < WINDOW; i++) append(&position, " %.17g", r->norms[i]);
    metadata_put(&state, "position", position.data);
    journal_describe(&state, &r->files.log);
    if (!set.steps) metadata_set(&state, "time_limit", "%.17g", set.time_limit);
    stage_state(r->files.state, &r->model, NULL, NULL, &state);
}

/* Saves the model as the best one, if it is: so it is before the first evaluation, and without
 * --val. whole: also the last model and the state. If a run is killed after only the best model was
 * saved, it is saved again when the run is resumed. A save is noted as taking at most twice as long
 * as the one before: the process may have been stopped in it. */
static void save_run(struct Run *r, bool whole)
{
    const double start = seconds(), before = r->clock.saving;
    if (whole) gather_moments(r);
    if (rank) return;
    struct Json meta = describe(r);
    if (!r->best_step || r->best_step == r->step)
        stage_model(set.out, &r->model, &meta, r->tokenizer->eot);
    if (whole) {
        stage_model(r->files.last, &r->model, &meta, r->tokenizer->eot);
        stage_run(r, meta);
    }
    commit_outputs();
    json_free(meta.child);
    if (!whole) return;
    r->clock.saved = seconds();
    r->clock.saving = fmin(r->clock.saved - start, before > 0 ? 2 * before : INFINITY);
}

/* A resumed run computes the same whenever its state was saved, so this may depend on time. The
 * first save of a run that replaces another gives all files their names at once. */
static bool save_is_due(const struct Run *r)
{
    const double since = seconds() - r->clock.saved;
    if (set.overwrite && r->clock.saving == 0 && r->best_step == r->step) return true;
    if (set.save_every) return r->step % set.save_every == 0;
    return since > 100 * r->clock.saving && (r->step % set.eval_every == 0 || since > 600);
}

/* --- Resuming --- */

/* Takes the options that were not given from the state; while time decides how many steps the run
 * has, also the limit: it is that of the whole run, and the log has the time that is used. */
static void take_options(struct Run *r)
{
    load_metadata(r->files.state, &r->old);
    const char *limit = json_text(&r->old, "time_limit", NULL);
    const bool ours = json_text(&r->old, "train.steps", NULL);
    if (ours) resume_options(train_options, &r->old, "train", set.out);
    if (!ours || !set.layers || !set.heads || !set.channels || !set.context || !set.batch)
        die("%s: is not of a run of `train_gpt train`. Choose another --out.", r->files.state);
    if (limit && !set.steps && set.epochs == 0 && !is_given(train_options, "time-limit"))
        set.time_limit = strtod(limit, NULL);
}

/* Opens the log, of a resumed run with the rows that its state knows. */
static void open_log(struct Run *r)
{
    if (rank) return;
    const char *path = brief("%s/log.tsv", set.out);
    r->clock.start -= last_seconds(journal_open(&r->files.log, path, LOG_HEADER, &r->old));
}

/* Loads what save_run wrote. Dies if tokenizer, data or val are not the same as before. The steps
 * that --time-limit has chosen stay while there is a limit, whatever --steps and --epochs say: the
 * same command goes on as if it had not been interrupted. */
static void restore_run(struct Run *r)
{
    load_state(r->files.state, &r->model, NULL, NULL, &r->old);
    const char *position = json_text(&r->old, "position", "");
    long long epoch;
    int next, end = 0;
    if (sscanf(position, "%lld %lld %lld %d %lld %lf %lf %lld %lf %lf %lld %lld %lf%n", &r->step,
               &r->tokens, &epoch, &next, &r->last.tokens, &r->last.loss, &r->last.bits_per_byte,
               &r->best_step, &r->best.loss, &r->best.bits_per_byte, &r->skipped, &r->fall.step,
               &r->fall.rate, &end) != 13 || r->step < 0 || r->step > 1e15 || next < 0)
        die("%s: does not say where the run is. Start it again with --overwrite.", r->files.state);
    char *norms = (char *)position + end;
    for (int i = 0; i < WINDOW; i++) r->norms[i] = strtod(norms, &norms);
    describe(r);                                /* dies if this process has read something else */
    const int64_t steps = strtoll(json_text(&r->old, "train.steps", "0"), NULL, 10);
    if (set.steps && set.steps < steps)
        die_usage("--%s: fewer steps (%lld) than the run in %s has. Leave the option out, or give "
                  "more.", set.epochs > 0 ? "epochs" : "steps", (long long)set.steps, set.out);
    if (r->fall.step && set.time_limit > 0) r->expected = set.steps = steps;
    loader_seek(&r->loader, epoch, next);
}

/* --- The directory of a run --- */

/* Settles whether the run starts or goes on. Where there is nothing to resume, --resume starts: a
 * run has a state from its first moment on, so the same command goes on wherever it was stopped.
 * Dies if --out holds what neither --resume nor --overwrite is for, or is also --init. */
static void start_or_resume(struct Run *r)
{
    static const char *const run[] = {"model.safetensors", "state.safetensors", "log.tsv",
                                      "config.json", NULL},
                      *const models[] = {"model.safetensors", "last/model.safetensors", NULL};
    if (set.resume && set.overwrite) die_usage("--resume and --overwrite: choose one of them.");
    if (set.resume && !file_exists(r->files.state)) {
        refuse_existing(set.out, models, "It has no state.safetensors, so there is nothing to "
                        "resume. Choose another --out.");
        progress(true, "nothing to resume in %s: the run starts", set.out);
        set.resume = false;
    } else if (!set.resume && !set.overwrite && !set.plan)
        refuse_existing(set.out, run, "Give --resume, --overwrite or another --out.");
    if (set.init && same_file(set.out, set.init))
        die_usage("--out %s: is the model to start from. Name another directory.", set.out);
}

/* Makes the directories, with the tokenizer for both, when all input has been checked. A run that
 * replaces another leaves the old files as they are until its own first save. */
static void begin_files(struct Run *r)
{
    if (rank) return;
    lock_directory(r->files.last);              /* that it is no other run's --out either */
    r->tokenizer->usage = (struct Usage){.begins = true, .keeps_tail = true,     /* as in shards */
                                         .max_length = set.context};
    tokenizer_stage(r->tokenizer, set.out);
    tokenizer_stage(r->tokenizer, r->files.last);
    if (set.overwrite) return;
    if (!set.resume) stage_run(r, describe(r));
    commit_outputs();
}

/* ============================================================================================= */
/* 7. What suits the time and the text                                                           */
/* ============================================================================================= */

/* Sequences have --context tokens, or all targets if the data are shorter. */
static int64_t tokens_per_step(const struct Run *r)
{
    const int64_t T = set.context, targets = r->data.tokens - 1;
    return (int64_t)set.batch * set.accumulate * (targets < T ? targets : T);
}

/* An evaluation's time, in steps: forward takes a third of forward and backward. */
static double evaluation_in_steps(const struct Run *r)
{
    const int64_t all = r->val.count ? r->val.tokens - 1 : 0, budget = set.eval_tokens;
    return (budget > 0 && budget < all ? budget : all) / (3.0 * tokens_per_step(r));
}

/* The time of a step, in any unit, with its part of the evaluations. */
static double with_evaluations(const struct Run *r, double step)
{
    return step * (1 + evaluation_in_steps(r) / set.eval_every);
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

/* --- Shape, batch, rate, optimizer and dropout that are not given --- */

/* The rules want a run that is nearly as good as one after a long search. dev/experiments.md has
 * what was tried. In a given time a small model reads more tokens, and learns less from each.
 *
 *   shape     the loss is lowest where a model reads some 20 tokens for each parameter, and flat
 *             around that (Hoffmann et al. 2022). So: the largest model of a short ladder that
 *             reads at least 8 for each parameter of its blocks. A step of the ladder doubles them
 *             or more, so that a slightly wrong measurement of the machine seldom matters.
 *   epochs    up to 4 passes are worth nearly as much as new text, those after 16 little
 *             (Muennighoff et al. 2023). From there on dropout keeps the model from learning the
 *             text by heart; before, it costs more than it gives.
 *   batch     about 3,000 steps or more, of 512 to 32k tokens each, with Muon at least 8 C
 *   rate      as 1 / sqrt(C), here of C channels: wide models take smaller steps. With --init a
 *             quarter, which keeps what the model knows
 *   optimizer Muon, unless a step has fewer than 8 C tokens, so that its products, 280 C^3 FLOPs
 *             in a block, are more than about half of 72 C^2 a token, or --init is given */
static const struct { int layers, channels; } ladder[] = {
    {1, 64}, {1, 128}, {2, 128}, {4, 128}, {4, 192}, {6, 256}, {6, 384}, {8, 512}, {10, 640},
    {12, 768}};

/* About how many tokens a model reads in the run: at half of the machine's peak in the time, and at
 * most in --steps, of 4,096 tokens unless --batch says otherwise, and in --epochs. */
static double tokens_in_run(const struct Run *r, const struct Config *c)
{
    double tokens = set.time_limit > 0 ? 0.5 * r->peak * set.time_limit / flops_per_token(c)
                                      : INFINITY;
    if (set.steps) tokens = fmin(tokens, set.steps * (set.batch ? tokens_per_step(r) : 4096.0));
    if (set.epochs > 0) tokens = fmin(tokens, set.epochs * r->data.tokens);
    return tokens;
}

/* The model of the ladder that suits, with the sizes that are given; --heads divide its width. */
static struct Config model_that_suits(const struct Run *r)
{
    struct Config c = {.context = set.context, .vocabulary = r->tokenizer->vocabulary};
    const int heads = max_int(1, set.heads);
    for (int k = COUNT(ladder) - 1; ; k--) {
        c.layers = set.layers ? set.layers : ladder[k].layers;
        c.channels = set.channels ? set.channels : ceil_div(ladder[k].channels, heads) * heads;
        const double parameters = forward_flops(&c, LINEAR) / 2;        /* of its blocks */
        if (k == 0 || tokens_in_run(r, &c) >= 8 * parameters) return c;
    }
}

/* Sets --batch, and where its activations would take more than about 2 GB, or half of the machine's
 * memory, also --accumulate. */
static void choose_batch(double tokens)
{
    const double wanted = set.steps ? tokens / set.steps : tokens / 3000;
    int rows = 1 << 9;
    const bool muon = !strcmp(set.optimizer, "muon");
    while (rows < 1 << 15 && (2 * rows <= wanted || (muon && rows < 8 * set.channels))) rows *= 2;
    set.batch = ceil_div(ceil_div(rows, set.context), set.accumulate);
    if (is_given(train_options, "accumulate")) return;
    double each = (double)set.context * set.layers * set.channels,
           most = fmin(1 << 25, machine_memory() / 128 / ranks);
    take_from_rank_0(&most, sizeof most);
    for (; set.batch > 1 && set.batch * each > most; set.batch /= 2) set.accumulate *= 2;
}

/* Sets what is not given, and says what and why, as options with which the run repeats. */
static void choose_what_suits(struct Run *r)
{
    static const char *const names[] = {"layers", "heads", "channels", "context", "batch",
                                        "accumulate", "lr", "optimizer", "dropout"};
    struct Buffer chosen = {0};
    if (!set.context) set.context = r->data.tokens < 1000000 ? 128 : 256;
    const struct Config c = model_that_suits(r);
    set.layers = c.layers;
    set.channels = c.channels;
    for (int n = c.channels / (c.channels < 256 ? 32 : 64); !set.heads; n--)
        if (n <= 1 || c.channels % n == 0) set.heads = max_int(1, n);
    if (!is_given(train_options, "optimizer") && !set.init
        && (set.batch ? tokens_per_step(r) : 1 << 15) >= 8 * c.channels) set.optimizer = "muon";
    if (!set.batch) choose_batch(tokens_in_run(r, &c));
    const double tokens = tokens_in_run(r, &c), epochs = tokens / r->data.tokens;
    if (set.lr == 0)
        set.lr = strtod(brief("%.1e", (set.init ? 0.011 : 0.045) / sqrt(c.channels)), NULL);
    if (!is_given(train_options, "dropout")) set.dropout = epochs <= 16 ? 0 : 0.1;
    for (int k = set.init ? 3 : 0; k < COUNT(names); k++)
        if (!is_given(train_options, names[k]))
            append(&chosen, " --%s %s", names[k],
                   option_text(find_option(train_options, names[k])));
    const char *limit = set.time_limit > 0 ? brief("%s: ", duration(set.time_limit)) : "";
    if (chosen.size)
        progress(true, "%sabout %.2fM tokens, %.1f epochs: chosen%s", limit, tokens / 1e6, epochs,
                 chosen.data);
}

/* ============================================================================================= */
/* 8. Model and memory                                                                           */
/* ============================================================================================= */

/* The bytes that a run allocates; `print` shows them by kind. */
static double memory_needed(const struct Run *r, bool print)
{
    const struct Config *c = &r->model.config;
    const struct Sequences *s = &r->loader.sequences;
    const int rows = set.batch * set.context;
    const double array = (double)r->model.parameter_count * sizeof(real);
    const struct { const char *kind; double bytes; } kinds[] = {
        {"weights", array}, {"gradients", set.accumulate > 1 ? 2 * array : array},
        {"moments", 2 * array / ranks}, {"exchange", ranks > 1 ? 2 * array : 0},
        {"activations", workspace_bytes(c, rows, WORK_TRAIN)},
        {"sampling", set.sample_every ? workspace_bytes(c, c->context, WORK_CACHE) : 0},
        {"Muon", strcmp(set.optimizer, "muon") ? 0 : (double)muon_scratch(c) * sizeof(real)},
        {"rest", (double)pass_scratch(c, rows) * sizeof(real)
                 + 3.0 * rows * set.accumulate * sizeof(int)
                 + s->count * (sizeof(int) + (s->starts ? sizeof(int64_t) : 0))},
    };
    double total = 0;
    for (int i = 0; i < COUNT(kinds); i++) {
        total += kinds[i].bytes;
        if (print) printf("  %-12s %.1f MB\n", kinds[i].kind, kinds[i].bytes / 1e6);
    }
    return total;
}

/* --- What is loaded and allocated before the first step --- */

/* What of the options needs no data is checked before any is read, which may take minutes. */
static void check_options(void)
{
    if (set.heads && set.channels % set.heads)
        die_usage("--channels %d: not a multiple of --heads %d.", set.channels, set.heads);
    if ((int64_t)set.batch * set.context > INT32_MAX / 8)
        die_usage("--batch %d: times --context %d is too much. Use --accumulate.", set.batch,
                  set.context);
    if (set.accumulate < ranks)
        die_usage("--accumulate %d: a step has fewer batches than there are ranks (%d). Use more.",
                  set.accumulate, ranks);
}

/* Opens the tokenizer, which --resume and --init have in their directory, and the data, the smaller
 * part first, since to read the other may take minutes. */
static void load_input(struct Run *r)
{
    if (!set.tokenizer) set.tokenizer = set.resume ? set.out : set.init;
    if (!set.data || !set.tokenizer)
        die_usage("--%s: must be given. --help explains it.", set.data ? "tokenizer" : "data");
    r->tokenizer = tokenizer_load(set.tokenizer);
    if (!set.plan && !set.resume && !set.overwrite) refuse_other_tokenizer(set.out, r->tokenizer);
    if (set.val) r->val = open_data("val", set.val, r->tokenizer);
    r->data = open_data("data", set.data, r->tokenizer);
    for (int i = 0; i < r->data.count; i++)
        for (int k = 0; k < r->val.count; k++)
            if (same_file(r->data.shards[i].path, r->val.shards[k].path))
                warn("%s: is in --data and in --val, so the validation loss says little.",
                     r->data.shards[i].path);
}

/* Loads the model of --init, whose sizes become those of the run, but for a shorter --context. Dies
 * if it was trained with another tokenizer. */
static void load_init(struct Run *r, struct Model *source)
{
    const struct Config *c = &source->config;
    struct Json meta;
    load_model(source, set.init, &meta);
    set.layers = c->layers;
    set.heads = c->heads;
    set.channels = c->channels;
    if (set.context == 0) set.context = c->context;
    if (set.context > c->context)
        die_usage("--context %d: the model in --init %s knows only %s.", set.context, set.init,
                  counted(c->context, "position"));
    if (tokenizer_of_model(set.init, source, &meta)->hash != r->tokenizer->hash)
        die("--init %s: was trained with another tokenizer than --tokenizer %s. Use its own.",
            set.init, set.tokenizer);
}

/* Creates the model, with weights from --init or at random; restore_run loads those of a resumed
 * run. Of --init the trunk is copied, without a classifier's head: a shorter --context copies the
 * first rows of wpe, and rows of wte that only pad the vocabulary are left out. Dies if the run
 * needs more memory than there is: the system would end it in the middle. */
static void make_model(struct Run *r)
{
    struct Model source = {0}, *model = &r->model;
    if (set.init && !set.resume) load_init(r, &source);
    if (!set.resume) choose_what_suits(r);
    check_options();
    model_describe(model, (struct Config){.layers = set.layers, .heads = set.heads,
                                          .channels = set.channels, .context = set.context,
                                          .vocabulary = r->tokenizer->vocabulary});
    const double needed = memory_needed(r, false), has = machine_memory();
    if (needed > has)
        die("%.0f MB of memory are needed, and this process may use %.0f. Use a smaller --batch "
            "with a larger --accumulate, or a smaller model.", needed / 1e6, has / 1e6);
    model_allocate(model);
    if (!source.weights && !set.resume) model_init(model, set.seed);
    for (int i = 0; source.weights && i < model->tensor_count; i++) {
        const struct Tensor *to = &model->tensors[i], *from = &source.tensors[i];
        memcpy(model->weights + to->offset, source.weights + from->offset, to->size * sizeof(real));
    }
    model_free(&source);
    model_train_from(model, 0);
    model->beta2 = set.beta2;
    if (!strcmp(set.optimizer, "muon"))
        model->muon = allocate_zeroed(muon_scratch(&model->config) * sizeof(real));
}

/* Where part p of the parameters begins: part 0 at 0, part `ranks` at their end. A chunk of
 * grad_norm begins there, too, so that each chunk is in one part. */
static size_t part_begin(const struct Model *model, int p)
{
    const size_t at = model->parameter_count * p / ranks;
    const struct Tensor *t = model->tensors;
    while (at > t->offset + t->size) t++;
    const size_t begin = t->offset + (at - t->offset + SUM_CHUNK - 1) / SUM_CHUNK * SUM_CHUNK,
                 end = t->offset + t->size;
    return begin < end ? begin : end;
}

/* Describes the part that this process updates as a model of its own, whose list has the pieces of
 * tensors that lie in it. Its gradient, the sum over slots, has an array of its own unless a step
 * has one slot: aligned as model.grads is, so that vectors add the same terms. */
static void make_part(struct Run *r)
{
    struct Model *whole = &r->model, *part = &r->part;
    const size_t begin = part_begin(whole, rank), end = part_begin(whole, rank + 1);
    *part = *whole;
    part->weights += begin;
    part->parameter_count = end - begin;
    part->tensors = resize(NULL, whole->tensor_count * sizeof *part->tensors);
    part->tensor_count = 0;
    for (int i = 0; i < whole->tensor_count; i++) {
        struct Tensor t = whole->tensors[i];
        const size_t last = t.offset + t.size < end ? t.offset + t.size : end;
        size_t first = t.offset;
        if (first < begin) first = begin < last ? begin : last;
        part->partial_sums += (first - t.offset + SUM_CHUNK - 1) / SUM_CHUNK;
        if (first >= last) continue;
        t.size = last - first;
        t.offset = first - begin;
        part->tensors[part->tensor_count++] = t;
    }
    if (set.accumulate > 1)
        part->grads = (real *)allocate_zeroed((end - begin + LANES) * sizeof(real)) + begin % LANES;
}

/* Cuts the data and allocates all that a step needs, before the first one. */
static void take_memory(struct Run *r)
{
    const int eot = r->tokenizer->eot;
    loader_create(&r->loader, cut(&r->data, set.context, set.cut, eot), set.seed);
    if (r->val.count) r->val_sequences = cut(&r->val, set.context, set.cut, eot);
    r->minibatches = resize(NULL, set.accumulate * sizeof *r->minibatches);
    for (int a = 0; a < set.accumulate; a++)
        r->minibatches[a] = batch_create(set.batch * set.context);
    workspace_create(&r->ws, &r->model, set.batch * set.context, WORK_TRAIN);
    r->losses = resize(NULL, set.accumulate * sizeof *r->losses);
    make_part(r);
    if (set.sample_every) generator_create(&generator, &r->model, r->tokenizer);
}

/* ============================================================================================= */
/* 9. Spikes, time, plan and profile                                                             */
/* ============================================================================================= */

/* The median of n > 0 values, at most WINDOW; of an even number the lower one of the two. */
static double median(const double *values, int n)
{
    struct Entry entries[WINDOW];
    struct Heap heap = {entries, n, n};
    for (int i = 0; i < n; i++) entries[i] = (struct Entry){.key = values[i]};
    for (int i = n / 2 - 1; i >= 0; i--) heap_sift_down(&heap, i);
    for (int i = 0; i < n / 2; i++) heap_pop(&heap);        /* the largest first */
    return entries[0].key;
}

/* Writes what a step has read to a file in --out. Returns the name of the file. */
static const char *write_texts(const struct Run *r)
{
    struct Buffer bytes = {0}, text = {0};
    const char *path = brief("%s/step_%lld.txt", set.out, r->step + 1);
    for (int a = 0; a < set.accumulate; a++) {
        const struct Batch *m = &r->minibatches[a];
        for (int s = 0; s < m->sequences; s++) {
            const int first = m->starts[s], end = m->starts[s + 1];
            bytes.size = 0;
            append_decoded(&bytes, r->tokenizer, m->tokens[first]);
            for (int k = first; k < end; k++) append_decoded(&bytes, r->tokenizer, m->targets[k]);
            append_readable(&text, (struct Bytes){bytes.data, bytes.size});
            append(&text, "\n");
        }
    }
    FILE *file = fopen(rank ? "/dev/null" : path, "wb");
    const bool whole = file && fwrite(text.data, 1, text.size, file) == text.size;
    if (!file || fclose(file) || !whole)
        warn("%s: cannot be written (%s).", path, strerror(errno));
    free(bytes.data);
    free(text.data);
    return path;
}

/* Whether a step may update the weights. A spike is a norm of more than SPIKE_FACTOR times the
 * median of the last WINDOW steps: --skip-spikes leaves it out. As spikes count in the median, a
 * norm that stays high is soon none. A loss or norm that is not finite ends the run unless --skip-
 * spikes is given, and also then if it stays so; the saved files stay as they are. */
static bool judge_step(struct Run *r, const struct Step *s)
{
    const bool finite = isfinite(s->loss) && isfinite(s->norm), skip = set.skip_spikes;
    const long long step = r->step + 1;
    r->norms[r->step % WINDOW] = finite ? s->norm : INFINITY;
    const double middle = median(r->norms, WINDOW);     /* norms that are not yet known are 0 */
    if (finite && (step < WINDOW || s->norm <= SPIKE_FACTOR * middle)) return true;
    const char *texts = finite ? NULL : write_texts(r);
    const bool replaces = set.overwrite && r->clock.saving == 0;  /* the old run is there */
    if (!finite && (!skip || isinf(middle)))
        die("step %lld: the loss is %s, the gradient's norm %s. %s holds what it read; %s keeps "
            "what it held before. Start again with --overwrite and a lower --lr than %g%s.", step,
            value_text(s->loss), value_text(s->norm), texts, set.out, set.lr,
            skip ? "" : replaces ? ", or leave such steps out: --skip-spikes"
                                 : ", or leave such steps out: --resume --skip-spikes");
    progress(true, "step %lld  spike: loss %s, norm %s, before it %.3g%s%s%s", step,
             value_text(s->loss), value_text(s->norm), middle, skip ? "; skipped" : "",
             texts ? "; it read " : "", texts ? texts : "");
    r->skipped += skip;
    return !skip;
}

/* --- The clock of a step, and what depends on it --- */

/* The profile leaves out the first step, which also touches new memory. */
static struct Step begin_step(struct Run *r)
{
    profile.on = set.profile && r->step >= r->clock.first;
    profile.last = seconds();
    return (struct Step){.start = profile.last};
}

/* Steps are timed in stretches of at least 1/200 of --time-limit, in which saves and samples count,
 * but no evaluations. Until something is known, one step is a stretch. */
static void end_step(struct Run *r, struct Step *s)
{
    struct Clock *c = &r->clock;
    const double now = seconds();
    profile.on = false;
    s->seconds = now - s->start;
    if (c->stretches && now - c->mark < set.time_limit / 200) return;
    c->each[c->stretches++ % WINDOW] = (now - c->mark) / (r->step - c->mark_step);
    c->mark = now;
    c->mark_step = r->step;
}

/* Seconds of one more step: the median of the last stretches, so that one in which the process was
 * stopped, the computer slept or the disk stalled does not count. */
static double next_step(const struct Run *r)
{
    return median(r->clock.each, (int)fmin(r->clock.stretches, WINDOW));
}

static void show_step(struct Run *r, const struct Step *s)
{
    if (!line_is_due(&r->clock.shown) && !finished(r)) return;
    const double step = next_step(r), each = with_evaluations(r, step), rate = s->targets / step,
                 left = set.time_limit > 0 ? fmax(0, set.time_limit - time_used(r)) : INFINITY,
                 rest = set.steps ? each * (set.steps - r->step) : INFINITY;
    progress(false, "step %s%s  loss %.4f  lr %.1e  norm %.2f  %.0f tok/s  %.0f%% peak  eta %s",
             place(r), left < rest ? brief(" (about %.0f in time)", r->step + left / each) : "",
             s->loss, s->lr, s->norm, rate,
             100 * rate * flops_per_token(&r->model.config) / r->peak, duration(fmin(left, rest)));
}

/* Samples from the model as it is. The step determines the random numbers. */
static void sample_run(struct Run *r)
{
    if (rank) return;
    progress(true, "step %s  sample:", place(r));
    write_sample(&generator, set.sample_prompt, set.sample_tokens,
                 stream_for(set.seed, SAMPLE_STREAM, r->step));
}

/* --- The number of steps. A step depends on it and not on time, so the state records it --- */

/* Seconds of a step without the exchange between ranks: the fastest of up to 20 of one minibatch,
 * since the first also touches new memory. No trace stays: AdamW and Muon see a gradient of 0, so
 * the moments stay 0, the rate 0 leaves the weights as they are, and the loader begins again. */
static double measure_step(struct Run *r)
{
    const double begin = seconds();
    double gradient = INFINITY, rest = INFINITY;
    for (int n = 0; n < 20 && seconds() - begin < (n < 2 ? 10 : 2); n++) {
        const double start = seconds();
        slot_gradient(r, 0, 1, 1, read_step(r, 1));
        forget_gradient(&r->model);
        const double middle = seconds();
        grad_norm(&r->part);
        adamw_step(&r->part, 0, 1, 0, 1);
        muon_step(&r->model, 0, 0, 0, r->model.parameter_count / ranks);
        gradient = fmin(gradient, middle - start);
        rest = fmin(rest, seconds() - middle);
    }
    loader_seek(&r->loader, 0, 0);
    return ceil_div(set.accumulate, ranks) * gradient + rest;
}

/* Turns --epochs into steps, the last filled up from the next epoch. Sets what depends on their
 * number; how many fit into --time-limit is an estimate from a measurement, the first stretch. A
 * resumed run that knows its steps and --eval-every needs none. */
static void fix_steps(struct Run *r)
{
    const double evaluation = evaluation_in_steps(r);
    const bool open = set.time_limit > 0 && (!set.steps || !set.eval_every);
    if (set.epochs > 0) {
        struct Loader *l = &r->loader;
        set.steps = 0;
        for (; l->epoch + (double)l->next / l->sequences.count < set.epochs; set.steps++)
            read_step(r, set.accumulate);
        loader_seek(l, 0, 0);
    }
    if (set.plan || open) r->clock.each[r->clock.stretches++] = measure_step(r);
    double fit = open ? 0.96 * (set.time_limit - time_used(r)) / next_step(r) : INFINITY;
    take_from_rank_0(&fit, sizeof fit);
    if (set.steps) fit = fmin(fit, set.steps);
    /* 20 evaluations in the run, or fewer if they would take more than a tenth of its time. */
    if (set.eval_every == 0)
        set.eval_every = (int64_t)fmax(1, ceil(fmax(fit / 20, 10 * evaluation)));
    r->expected = set.steps ? set.steps : fmax(1, (fit - evaluation) / with_evaluations(r, 1));
    if (!set.resume && !is_given(train_options, "warmup") && set.warmup > r->expected / 10)
        set.warmup = r->expected / 10;
}

/* Fits the rest of the run to --time-limit, of which the last evaluation and save need a part. When
 * four fifths are over, next_step tells how many more steps fit. If --steps do not, they become
 * those that do, and the learning rate, until then as without a limit, falls over them to its
 * minimum (rate_of). If later on far fewer fit, as after a pause, it falls anew, from where it is;
 * the first step of a resumed process, which also touches new memory, decides nothing. A constant
 * rate needs none of this. Returns whether there is no time for one more step: if time decides how
 * many steps there are, this is the last; else the run can be resumed. */
static bool fit_to_time(struct Run *r, const struct Step *s)
{
    if (set.time_limit == 0) return false;
    const double step = next_step(r),
                 time = set.time_limit - r->clock.saving - evaluation_in_steps(r) * step,
                 left = time - time_used(r);
    struct { bool late, early; int64_t fit; } is = {
        left < step, left > 0.2 * time || (set.resume && r->clock.stretches < 2),
        0.97 * left / with_evaluations(r, step)};
    take_from_rank_0(&is, sizeof is);                   /* by its clock */
    if (is.late) {
        if (!set.steps || r->fall.step) set.steps = r->step;
        return true;
    }
    if (is.early || !strcmp(set.schedule, "constant")) return false;
    const int64_t spare = r->fall.step ? is.fit / 8 + (set.steps - r->fall.step) / 32 + 1 : 0;
    if (set.steps && set.steps - r->step <= is.fit + spare) return false;
    const char *cut = set.steps ? brief(", since %lld do not fit", (long long)set.steps) : "";
    set.steps = r->step + is.fit;
    r->fall.step = r->step;
    r->fall.rate = s->lr;
    progress(true, "step %s  %s of --time-limit %s are over: the learning rate falls from here to "
             "the last step%s", place(r), duration(time_used(r)), duration(set.time_limit), cut);
    return false;
}

/* --- Plan and profile --- */

/* How often the run reads the data: "8.20 epochs", and what suits better if that is little or much:
 * other --steps, or if time alone ends the run, another --time-limit. */
static const char *epochs_of(const struct Run *r)
{
    const double each = (r->data.tokens - 1.0) / tokens_per_step(r), n = r->expected / each,
                 time = set.time_limit;
    const char *in = set.steps ? "" : brief(" in %s", duration(time)),
               *suits = set.steps ? brief("%.0f to %.0f steps", ceil(3 * each), ceil(20 * each))
                      : brief("%s to %s", duration(3 / n * time), duration(20 / n * time));
    return brief("%.*f epochs%s%s", n < 100 ? 2 : 0, n, in,
                 n >= 3 && n <= 20 ? "" : brief(" (3 to 20 suit most: %s)", suits));
}

/* --plan: sizes, memory, and the expected duration with its evaluations. */
static void print_plan(const struct Run *r)
{
    const struct Config *c = &r->model.config;
    const double flops = flops_per_token(c), step = next_step(r), rate = tokens_per_step(r) / step,
                 time = with_evaluations(r, step) * r->expected + evaluation_in_steps(r) * step;
    printf("model          %d layers, %d heads, %d channels, context %d, vocabulary %d\n",
           c->layers, c->heads, c->channels, c->context, c->vocabulary);
    printf("parameters     %zu\n", r->model.parameter_count);
    printf("memory         %.1f MB of the %.0f that it may use\n", memory_needed(r, true) / 1e6,
           machine_memory() / 1e6);
    printf("data           %lld tokens, shards: %d\n", (long long)r->data.tokens, r->data.count);
    printf("steps          %lld of %lld tokens: %s\n", (long long)r->expected,
           (long long)tokens_per_step(r), epochs_of(r));
    printf("peak           %.1f GFLOP/s, threads: %d\n", r->peak / 1e9, thread_count());
    printf("speed          %.*f tokens/s of %.3g FLOPs, %.0f%% of peak\n", rate < 10 ? 2 : 0, rate,
           flops, 100 * rate * flops / r->peak);
    printf("duration       %s%s\n", duration(time), set.time_limit > 0 && time > set.time_limit
           ? brief(", cut to --time-limit %s", duration(set.time_limit)) : "");
}

/* --profile: the time of each kind of work in a step, and of products also the rate. The head's
 * backward pass counts as forward. */
static void print_profile(const struct Run *r)
{
    static const char *const names[KINDS] = {
        [REST] = "other layers", [LINEAR] = "linear", [ATTENTION] = "attention",
        [HEAD] = "head and loss", [OPTIMIZER] = "optimizer"};
    const double steps = r->step - r->clock.first, tokens = (double)r->tokens / r->step;
    double total = 0;
    for (int k = 0; k < KINDS; k++)
        total += profile.seconds[k][FORWARD] + profile.seconds[k][BACKWARD];
    if (steps < 1) return;
    printf("profile of %s, %.2f ms each; peak %.1f GFLOP/s\n", counted((int64_t)steps, "step"),
           1e3 * total / steps, r->peak / 1e9);
    printf("%-14s %10s %10s %7s %9s %8s\n", "ms", "forward", "backward", "share", "GFLOP/s",
           "of peak");
    for (int k = 0; k < KINDS; k++) {
        const double *time = profile.seconds[k], both = time[FORWARD] + time[BACKWARD];
        const double rate = 3 * steps * tokens * forward_flops(&r->model.config, k) / both;
        printf("%-14s %10.2f %10.2f %6.1f%%", names[k], 1e3 * time[FORWARD] / steps,
               1e3 * time[BACKWARD] / steps, 100 * both / total);
        if (rate > 0) printf(" %9.1f %7.0f%%", rate / 1e9, 100 * rate / r->peak);
        printf("\n");
    }
}

/* ============================================================================================= */
/* 10. Ranks: one run by several processes                                                       */
/* ============================================================================================= */

/* `mpirun -n R train_gpt train ..`, built by `make MPI=1`, runs R ranks, on one machine or many.
 * Rank p gets part p, 1/R of the parameters, of every slot's gradient, adds the slots in their
 * order, updates this part with moments that it alone has (ZeRO stage 1, Rajbhandari et al. 2020),
 * and gets the others' weights. No sum depends on R, since MPI adds only zeros to a number. Of P
 * parameters a rank sends 4 P (R - 1) / R bytes a slot, and as many for weights and directions. */

#ifdef MPI
#include <mpi.h>
#include <pthread.h>

/* One slot of each rank, whose parts travel while the next slots are computed. model.m has a copy
 * of this rank's gradient, since only a part has moments, and model.v receives a part of each. */
static struct {
    int *sizes, *places;            /* (ranks): of the parts, in values */
    MPI_Request *requests;          /* (2 ranks) */
    int request_count, slots;       /* slots 0: nothing is under way */
    pthread_t carrier;
} exchange;

static char host[MPI_MAX_PROCESSOR_NAME];
static int end_status, errors;      /* errors: the descriptor of the job's stderr */

/* Rank 0 alone speaks, until another fails. As all ranks fail if options or files are wrong, rank 0
 * gets a second in which to say so and end the job. */
static void speak_as_rank(int status)
{
    end_status = status;
    if (rank == 0) return;
    sleep(1);
    dup2(errors, 2);
    program = brief("%s: rank %d on %s", program, rank, host);
}

/* At exit. Whoever fails ends all ranks, which would wait for it forever. */
static void leave_ranks(void)
{
    if (end_status) remove_unfinished();
    if (end_status && ranks > 1) MPI_Abort(MPI_COMM_WORLD, end_status);
    MPI_Finalize();
}

static void begin_ranks(void)
{
    int length, threads;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &threads);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MPI_Get_processor_name(host, &length);
    atexit(leave_ranks);
    errors = dup(2);
    if (rank) dup2(dup2(open("/dev/null", O_WRONLY), 1), 2);
    if (threads < MPI_THREAD_SERIALIZED)
        die("MPI: this library allows no second thread. Use Open MPI or MPICH.");
}

static void take_from_rank_0(void *value, size_t size)
{
    if (ranks > 1) MPI_Bcast(value, (int)size, MPI_BYTE, 0, MPI_COMM_WORLD);
}

static void sum_over_ranks(double *x, int n)
{
    if (ranks > 1) MPI_Allreduce(MPI_IN_PLACE, x, n, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
}

/* Messages advance only while MPI is called. This thread does it until all have arrived. */
static void *carry(void *unused)
{
    for (int done = 0; !done; usleep(100))
        MPI_Testall(exchange.request_count, exchange.requests, &done, MPI_STATUSES_IGNORE);
    return unused;
}

/* Adds the slots that have arrived, in their order; then sends the parts of this rank's slot, if it
 * has one of the next, and receives its part of theirs. */
static void sum_slots(struct Run *r, int first, int count)
{
    const int n = (int)r->part.parameter_count;
    MPI_Request *request = exchange.requests;
    if (exchange.slots) pthread_join(exchange.carrier, NULL);
    for (int q = 0; q < exchange.slots; q++)
        add_gradient(r->part.grads, r->model.v + (size_t)q * n, n);
    exchange.slots = min_int(ranks, count - first);
    if (!exchange.slots) return;
    for (int q = 0; q < exchange.slots; q++)
        MPI_Irecv(r->model.v + (size_t)q * n, n, MPI_FLOAT, q, 0, MPI_COMM_WORLD, request++);
    if (rank < exchange.slots) {
        memcpy(r->model.m, r->model.grads, r->model.parameter_count * sizeof(real));
        forget_gradient(&r->model);
        for (int p = 0; p < ranks; p++)
            MPI_Isend(r->model.m + exchange.places[p], exchange.sizes[p], MPI_FLOAT, p, 0,
                      MPI_COMM_WORLD, request++);
    }
    exchange.request_count = (int)(request - exchange.requests);
    if (pthread_create(&exchange.carrier, NULL, carry, NULL))
        die("no thread can be started for MPI. Allow more processes (ulimit -u).");
}

static void share(real *array)
{
    if (ranks > 1)
        MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, array, exchange.sizes,
                       exchange.places, MPI_FLOAT, MPI_COMM_WORLD);
}

static void gather_moments(struct Run *r)
{
    for (int i = 0; i < 2 && ranks > 1; i++)
        MPI_Gatherv(i ? r->part.v : r->part.m, exchange.sizes[rank], MPI_FLOAT,
                    i ? r->model.v : r->model.m, exchange.sizes, exchange.places, MPI_FLOAT, 0,
                    MPI_COMM_WORLD);
}

/* Dies if settings, data, state or program differ from rank 0's, as sums then may. Paths may. */
static void compare_ranks(const struct Run *r)
{
    struct Json meta = describe(r);
    const struct Bytes self = read_file("/proc/self/exe", SIZE_MAX / 2, false);
    if (!set.allow_mixed) {
        metadata_set(&meta, "program", "%s", hash_text(checksum(self.data, self.size)));
        metadata_set(&meta, "precision", "%s", product_precision == BF16_TILES ? "AMX's" : "usual");
    }
    const struct Json *j = meta.child;
    for (int i = 0; i < 100; i++, j = j ? j->next : NULL) {     /* more than there are entries */
        const char *key = j ? j->key : "none";
        const bool path = is_choice(key, strlen(key), "none|train.data|train.val|train.init");
        char mine[200], first[200];
        snprintf(mine, sizeof mine, "%s %s", key, path ? "" : j->string);
        memcpy(first, mine, sizeof mine);
        take_from_rank_0(first, sizeof first);
        if (strcmp(mine, first))
            die("%s, but on rank 0 %s. Start all ranks with the same%s.", mine, first,
                is_choice(key, strlen(key), "program|precision") ? ", or --allow-mixed" : "");
    }
}

/* Before the first step. The weights of rank 0 count, also if they are random: the mathematics
 * library of another machine may round otherwise. The part gets its own moments. */
static void join_ranks(struct Run *r)
{
    struct Model *m = &r->model;
    const size_t bytes = r->part.parameter_count * sizeof(real);
    if (ranks == 1) return;
    if (m->parameter_count > INT_MAX)
        die("%zu parameters: MPI counts to %d. Use a smaller model.", m->parameter_count, INT_MAX);
    compare_ranks(r);
    MPI_Bcast(m->weights, (int)m->parameter_count, MPI_FLOAT, 0, MPI_COMM_WORLD);
    exchange.sizes = resize(NULL, 2 * ranks * sizeof *exchange.sizes);
    exchange.places = exchange.sizes + ranks;
    exchange.requests = resize(NULL, 2 * ranks * sizeof *exchange.requests);
    for (int p = 0; p < ranks; p++) {
        exchange.places[p] = (int)part_begin(m, p);
        exchange.sizes[p] = (int)(part_begin(m, p + 1) - part_begin(m, p));
    }
    r->part.m = memcpy(allocate_zeroed(bytes), m->m + exchange.places[rank], bytes);
    r->part.v = memcpy(allocate_zeroed(bytes), m->v + exchange.places[rank], bytes);
    if (ranks * r->part.parameter_count > m->parameter_count) m->v = allocate_zeroed(ranks * bytes);
}
#else       /* one process, which needs nothing from others */
static void begin_ranks(void) {}
static void join_ranks(struct Run *r) { (void)r; }
static void take_from_rank_0(void *value, size_t size) { (void)value, (void)size; }
static void sum_over_ranks(double *x, int n) { (void)x, (void)n; }
static void sum_slots(struct Run *r, int first, int count) { (void)r, (void)first, (void)count; }
static void share(real *array) { (void)array; }
static void gather_moments(struct Run *r) { (void)r; }
#endif

/* ============================================================================================= */
/* 11. Subcommands                                                                               */
/* ============================================================================================= */

/* Prints the result and what tells against it, or how to go on. Returns the exit status. */
static int finish(const struct Run *r)
{
    const double uniform = log(r->model.config.vocabulary);
    if (!finished(r))
        advise_resume("train", brief("step %s%s", place(r), stop_signal ? ""
                                     : ", by --time-limit,"), set.out);
    if (stop_signal && !finished(r)) return 128 + stop_signal;
    if (isatty(2)) speak("", false, "");
    printf("%s: ", set.out);
    if (r->best_step)
        printf("best of step %lld, val_loss %.4f, bits_per_byte %.4f; ", r->best_step, r->best.loss,
               r->best.bits_per_byte);
    printf("%s%s, ", counted(r->step, "step"),
           r->fall.step && set.time_limit > 0 ? " that fit into --time-limit" : "");
    if (r->skipped) printf("%lld of them skipped, ", r->skipped);
    printf("%s, %s\n", counted(r->tokens, "token"), duration(time_used(r)));
    if (r->best_step && !(r->best.loss < uniform))
        warn("nothing was learnt: no val_loss is below %.2f, that of equally likely tokens. Try "
             "another --lr than %g.", uniform, set.lr);
    else if (r->last.loss > r->best.loss && r->best_step <= set.eval_every)
        warn("val_loss went up from its first value, %.4f, to %.4f: --lr is too high, or the text "
             "is learnt by heart. Use a lower --lr, more text or fewer steps.", r->best.loss,
             r->last.loss);
    if (set.profile) print_profile(r);
    return 0;
}

/* Everything is checked, loaded and allocated before the first step; then pretrain. */
static int command_train(int argc, char **argv)
{
    struct Run r = {.clock.start = seconds(), .best.loss = INFINITY};
    read_options(argc, argv, train_options,
        "train_gpt train --data GLOB --val GLOB --tokenizer DIR --out DIR [options]\n"
        "Pretrains a model. --out holds the best one and log.tsv, --out/last the last.\n"
        "With --time-limit alone, --schedule cosine and wsd are the same: the learning rate stays\n"
        "at --lr for four fifths of the time, then falls as 1 - sqrt; constant does not fall.");
    for (struct Option *o = train_options; o->name; o++)        /* a 0 that asks for a choice */
        if (strstr(o->meaning, "0: as suits") && !strcmp(option_text(o), "0")) o->given = false;
    if (!set.out && (set.resume || !set.plan))
        die_usage("--out: must be given. --help explains it.");
    if (set.epochs > 0 && is_given(train_options, "steps"))
        die_usage("--steps and --epochs: choose one of them.");
    begin_training();
    begin_ranks();
    set_threads(set.threads);
    if (set.out) {
        r.files.last = text_of("%s/last", set.out);
        r.files.state = text_of("%s/state.safetensors", set.out);
        if (!set.plan && rank == 0) lock_directory(set.out);
        if (rank == 0) start_or_resume(&r);
        take_from_rank_0(&set.resume, sizeof set.resume);
    }
    if (set.resume) take_options(&r);
    if (set.steps == 0 && set.epochs == 0 && set.time_limit == 0) set.time_limit = 600;
    set_precision(set.precision);
    if (!set.init) check_options();              /* which may set sizes */
    load_input(&r);
    r.peak = ranks * fma_peak();
    take_from_rank_0(&r.peak, sizeof r.peak);   /* sizes may follow from it */
    make_model(&r);
    take_memory(&r);
    fix_steps(&r);
    warn_idle(train_options);
    if (is_given(train_options, "warmup") && set.warmup > r.expected)
        warn("--warmup %lld: more than the run's %lld steps, so the learning rate never reaches "
             "--lr. Use fewer.", (long long)set.warmup, (long long)r.expected);
    if (set.plan) { print_plan(&r); return 0; }
    if (set.resume) restore_run(&r);
    open_log(&r);
    join_ranks(&r);
    progress(true, "%.2fM parameters, %.0f of %.0f MB of memory, threads: %d; %lld tokens, %s",
             r.model.parameter_count / 1e6, memory_needed(&r, false) / 1e6, machine_memory() / 1e6,
             thread_count(), (long long)r.data.tokens, epochs_of(&r));
    if (finished(&r)) {
        progress(true, "the run in %s is finished: step %lld of %lld. With a larger N it goes on: "
                 "%s train --out %s --resume --steps N", set.out, r.step, (long long)set.steps,
                 typed(called), typed(set.out));
        return 0;
    }
    begin_files(&r);
    stop_between_steps();
    r.clock.first = r.step + 1;
    r.clock.mark_step = r.step;
    r.clock.saved = r.clock.mark = seconds();
    pretrain(&r);
    return finish(&r);
}

/* --- eval, sample, info --- */

/* The loss of a model on shards: by default of every token, in sequences as in training. */
static int command_eval(int argc, char **argv)
{
    const char *dir = NULL, *pattern = NULL, *how = NULL, *precision = "fp32";
    int context = 0, threads = 0;
    int64_t tokens = 0;
    struct Option options[] = {
        {"model", "model directory", TEXT, &dir, .required = true},
        {"data", "token shards", TEXT, &pattern, .required = true},
        {"context", "tokens that the model sees at once; 0: as many as it can",
         INTEGER, &context, 0, 1 << 20},
        {"cut", "where sequences end; without: as in training", CHOICE, &how,
         .choices = "length|documents"},
        {"tokens", "how many, spread evenly over the data; 0: all", LONG, &tokens, 0, 1e15},
        PRECISION_OPTION(&precision), THREADS_OPTION(&threads), {0}};
    read_options(argc, argv, options,
        "train_gpt eval --model DIR --data GLOB [options]\n"
        "The mean loss of a model, in nats per token, and in bits per byte of text.");
    struct Model model;
    struct Json meta;
    struct Tokenizer *tokenizer = open_model(&model, &meta, dir, threads, precision);
    const int T = context ? context : model.config.context;
    if (T > model.config.context)
        die_usage("--context %d: the model knows only %s.", T,
                  counted(model.config.context, "position"));
    struct Data data = open_data("data", pattern, tokenizer);
    if (!how) how = json_text(&meta, "train.cut", "length");
    const struct Sequences sequences = cut(&data, T, how, tokenizer->eot);
    struct Workspace ws;
    struct Batch m = batch_create(8 * T);
    workspace_create(&ws, &model, m.max_rows, WORK_EVAL);
    print_baselines(&data, tokenizer, model.config.vocabulary);
    fflush(stdout);
    struct Score s = evaluate(&model, &ws, &m, &sequences, tokenizer, tokens);
    printf("loss %.6f perplexity %.2f bits_per_byte %.4f tokens %lld\n", s.loss, exp(s.loss),
           s.bits_per_byte, s.tokens);
    return 0;
}

/* Prints texts that a model writes, each from a random stream of its own, then their speed. */
static int command_sample(int argc, char **argv)
{
    const char *dir = NULL, *prompt = "", *precision = "fp32";
    int tokens = 200, count = 1, threads = 0;
    int64_t seed = 1;
    struct Option options[] = {
        {"model", "model directory", TEXT, &dir, .required = true},
        {"prompt", "how the text begins; empty: as documents do", TEXT, &prompt,
         .may_be_empty = true},
        {"tokens", "the longest text; <|endoftext|> ends it earlier", INTEGER, &tokens, 1, 1e9},
        {"min-tokens", "no <|endoftext|> before so many", INTEGER, &generator.min_tokens, 0, 1e9},
        {"temperature", "above 1 bolder, below 1 safer, 0 always the likeliest token",
         REAL_NUMBER, &generator.temperature, 0, 100},
        {"top-k", "draw from the k likeliest tokens; 0: from all", INTEGER, &generator.top_k, 0,
         1e9, .idle = "with temperature 0"},
        {"top-p", "draw from the likeliest tokens that have this probability together",
         REAL_NUMBER, &generator.top_p, 0, 1, .idle = "with temperature 0"},
        {"seed", "the same seed gives the same text", LONG, &seed, 0, 1e15,
         .idle = "with temperature 0"},
        {"count", "how many texts", INTEGER, &count, 1, 1e9},
        PRECISION_OPTION(&precision), THREADS_OPTION(&threads), {0}};
    read_options(argc, argv, options,
        "train_gpt sample --model DIR [--prompt TEXT] [options]\n"
        "Text that the model writes. --- stands between several.");
    warn_idle(options);
    if (strstr(prompt, END_OF_TEXT))
        warn("--prompt: has " END_OF_TEXT " as plain text. Documents begin as an empty one does.");
    if (*prompt && prompt[strlen(prompt) - 1] == ' ')
        warn("--prompt: ends in a blank, but words begin with theirs. Leave it out.");
    struct Model model;
    struct Json meta;
    struct Tokenizer *tokenizer = open_model(&model, &meta, dir, threads, precision);
    if (product_precision != FP32) keep_rounded(model.weights, model.parameter_count);
    generator_create(&generator, &model, tokenizer);
    const double start = seconds();
    int64_t written = 0;
    for (int i = 0; i < count; i++) {
        if (i) puts("---");
        written += write_sample(&generator, prompt, tokens, stream_for(seed, SAMPLE_STREAM, i));
    }
    fprintf(stderr, "%s, %.0f tokens/s\n", counted(written, "token"),
            written / (seconds() - start));
    return 0;
}

/* Prints what the log tells of a run: its evaluations, its losses and its duration. */
static void print_history(const char *dir)
{
    char step[32], val[32], bits[32], *rows = read_journal(brief("%s/log.tsv", dir), LOG_HEADER);
    double first = NAN, last = NAN;
    if (!rows) return;
    printf("history: step, val_loss, bits_per_byte\n");
    for (const char *row = rows; *row; row = strchr(row, '\n') + 1) {
        const int columns = sscanf(row, "%31s %lf%*1[\t]%31[^\t]%*1[\t]%31[^\t]", step, &last, val,
                                   bits);
        if (row == rows) first = last;
        if (columns == 4) printf("%s %s %s\n", harmless(step), harmless(val), harmless(bits));
    }
    printf("seconds        %.1f (from log.tsv)\n", last_seconds(rows));
    if (isfinite(last)) printf("loss           %.4f at first, %.4f at last\n", first, last);
}

static int command_info(int argc, char **argv)
{
    const char *dir = NULL;
    struct Option options[] = {{"model", "model directory", TEXT, &dir, .required = true}, {0}};
    read_options(argc, argv, options, "train_gpt info --model DIR\n"
        "Configuration, number of parameters, tokenizer and training history.");
    struct Model model;
    struct Json meta;
    load_model(&model, dir, &meta);
    const struct Config *c = &model.config;
    printf("layers         %d\nheads          %d\n", c->layers, c->heads);
    printf("channels       %d\ncontext        %d\n", c->channels, c->context);
    printf("vocabulary     %d\nparameters     %zu\n", c->vocabulary, model.parameter_count);
    for (int k = 0; k < c->labels; k++) printf("label %-8d %s\n", k, c->label_names[k]);
    for (const struct Json *j = meta.child; j && j->key; j = j->next)
        if (j->kind == JSON_STRING
            && !is_choice(j->key, strlen(j->key), "format|checksum|config_checksum"))
            printf("%-14s %s\n", harmless(j->key), harmless((char *)j->string));
    print_history(dir);
    return 0;
}

#ifndef TRAIN_GPT_NO_MAIN
int main(int argc, char **argv)
{
    static const struct Command commands[] = {
        {"train", command_train, "pretrain a model on token shards"},
        {"eval", command_eval, "loss of a model on token shards"},
        {"sample", command_sample, "let a model write"},
        {"info", command_info, "what a model directory holds"}};
    return run_command("train_gpt", argc, argv, commands, COUNT(commands));
}
#endif
