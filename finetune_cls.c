/* finetune_cls.c: from a pretrained GPT and labelled texts to a classifier.
 *
 *    I   Fine-tuning          texts as tokens, batches and features, gradient steps, the probe,
 *                             scores, and classical baselines, which know only words
 *    II  Files and commands   labelled files, before and after the training, train, eval, predict;
 *                             compare, layers, explain
 *
 *    "Not a dull moment."
 *       |  tokenizer
 *    <|endoftext|> Not  a  dull  moment .        tokens, as documents begin in pretraining
 *       |  the pretrained trunk (model.h)
 *    hidden (N, C)                               one row a token
 *       |  the last row of each text: the only one that has read all tokens
 *    features (S, C)
 *       |  score_w (K, C), the new head
 *    scores (S, K) -> softmax -> probabilities   positive 0.97, negative 0.03
 *
 * What is trained, from the cheapest to the fullest:
 *
 *    probe      score_w alone. The trunk is fixed, so it reads each text once, and what remains is
 *               logistic regression on the features, solved to convergence.
 *    last:K     score_w, ln_f and the last K blocks, by gradient steps; the rest is frozen.
 *    full       all weights, from the pretrained ones, at a small learning rate.
 *    scratch    all weights, from random ones: the comparison that tells what pretraining is worth.
 *
 * Letters as in model.h; here N is also a number of examples. K: classes. */

#include "model.h"
#define TOKENIZER_NO_MAIN
#include "tokenizer.c"

/* ============================================================================================= */
/* I. FINE-TUNING                                                                                */
/* ============================================================================================= */

/* ============================================================================================= */
/* 1. Texts as tokens                                                                            */
/* ============================================================================================= */

/* What the model reads of a long text: at most max tokens, <|endoftext|> included, of its head, its
 * tail, or half of each ("both"). pairs: a text is two, with a tab between (section 7). */
struct Window { int max; const char *truncate; bool pairs; };

/* N texts as tokens, back to back: example i is tokens[starts[i]] .. tokens[starts[i + 1] - 1]. */
struct Dataset {
    int count;                  /* N */
    int *tokens;                /* (starts[N]) */
    size_t *starts;             /* (N + 1) */
    int *labels;                /* (N): the class of each, -1 if not known */
    int longest, truncated;     /* tokens of the longest text; number of texts that were cut */
    int capacity;               /* of labels and starts */
    size_t token_capacity;
};

/* Keeps at most max of n ids, in place, and returns how many. */
static int truncate_ids(int *ids, int n, int max, const char *how)
{
    if (n <= max) return n;
    const int head = !strcmp(how, "head") ? max : !strcmp(how, "tail") ? 0 : (max + 1) / 2;
    const int tail = max - head;
    memmove(ids + head, ids + n - tail, tail * sizeof *ids);
    return max;
}

/* The tokens of a text, at most max of them, into ids. *all: how many it has. Returns how many are
 * left. encode_pair does the same for two texts. */
static int encode_one(int *ids, int *all, struct Tokenizer *t, struct Bytes text, int max,
                       const char *how)
{
    *all = tokenizer_encode(t, text.data, text.size, ids);
    return truncate_ids(ids, *all, max, how);
}

static int encode_pair(int *ids, int *all, struct Tokenizer *t, struct Bytes text, int max,
                       const char *how);

/* Appends one text: its tokens, after <|endoftext|> if texts began so in pretraining. An empty text
 * is <|endoftext|> alone. */
static void add_text(struct Dataset *d, struct Tokenizer *tokenizer, struct Bytes text, int label,
                     struct Window w)
{
    if (d->count == d->capacity) {
        d->capacity = 2 * d->capacity + 64;
        d->labels = resize(d->labels, d->capacity * sizeof *d->labels);
        d->starts = resize(d->starts, (d->capacity + 1) * sizeof *d->starts);
    }
    const size_t start = d->starts[d->count] = d->count ? d->starts[d->count] : 0;
    if (start + text.size + 2 > d->token_capacity) {
        d->token_capacity = 2 * (start + text.size + 2);
        d->tokens = resize(d->tokens, d->token_capacity * sizeof *d->tokens);
    }
    const int first = tokenizer->usage.begins || !text.size, room = w.max - first;
    int *ids = d->tokens + start + first, all;
    d->tokens[start] = tokenizer->eot;
    const int n = w.pairs ? encode_pair(ids, &all, tokenizer, text, room, w.truncate)
                          : encode_one(ids, &all, tokenizer, text, room, w.truncate);
    d->truncated += n < all;
    d->longest = max_int(d->longest, first + n);
    d->labels[d->count++] = label;
    d->starts[d->count] = start + first + n;
}

static int length_of(const struct Dataset *d, int example)
{
    return (int)(d->starts[example + 1] - d->starts[example]);
}

/* ============================================================================================= */
/* 2. Batches and features                                                                       */
/* ============================================================================================= */

enum { BATCH_ROWS = 2048 };     /* tokens of a batch: enough rows for efficient products */

/* A model and the memory to run it on batches of examples. */
struct Runner {
    struct Model *model;
    struct Workspace ws;
    struct Minibatch minibatch;     /* its targets are the labels of the texts */
    int *next;                      /* (max_rows): the next token of each row, -1 at the end */
    int frozen;                     /* blocks that a training does not change: end of section 3 */
    const struct Cache *cache;      /* what they gave for each text; NULL: they run again */
    bool measure_lm;                /* run_examples also adds to the two below */
    double lm_loss, lm_tokens;      /* sum of -log p(next token); number of such tokens */
    double shown;                   /* when the last line of progress was shown */
};

static void runner_create(struct Runner *r, struct Model *model, int max_rows, int kind)
{
    *r = (struct Runner){.model = model, .shown = seconds()};
    workspace_create(&r->ws, model, max_rows, kind);
    r->minibatch = minibatch_create(max_rows);
    r->next = resize(NULL, max_rows * sizeof *r->next);
}

static void runner_free(struct Runner *r)
{
    workspace_free(&r->ws);
    minibatch_free(&r->minibatch);
    free(r->next);
}

/* A batch of the first examples of list[0 .. count), as many as there is memory for, at least one.
 * Texts keep their true lengths and lie back to back: there is no padding. */
static struct Batch gather(struct Runner *r, const struct Dataset *d, const int *list, int count)
{
    struct Minibatch *m = &r->minibatch;
    for (minibatch_clear(m); m->batch.sequences < count; ) {
        const int s = m->batch.sequences, example = list[s], n = length_of(d, example);
        if (m->batch.rows + n > m->max_rows) break;
        m->targets[s] = d->labels[example];
        memcpy(m->tokens + minibatch_add(m, n), d->tokens + d->starts[example], n * sizeof(int));
    }
    return m->batch;
}

/* The hidden states of a batch that gather made of the first examples of list: trunk_forward's, to
 * which frozen blocks may know a shorter way. Dropout (p, key) touches only blocks that learn. */
static const real *forward(struct Runner *r, const struct Dataset *d, const struct Batch *b,
                           const int *list, double p, uint64_t key);

/* r->next: the language model's targets for a batch, the next token of the same text. Returns how
 * many there are. */
static int set_next_tokens(struct Runner *r, const struct Batch *b)
{
    for (int n = 0; n + 1 < b->rows; n++) r->next[n] = b->tokens[n + 1];
    for (int s = 0; s < b->sequences; s++) r->next[b->starts[s + 1] - 1] = -1;
    return b->rows - b->sequences;
}

/* order (count): positions in the list, from short texts to long ones, equal lengths in their order
 * (a counting sort). Texts of similar length make batches whose work threads share evenly. */
static void order_by_length(int *order, const struct Dataset *d, const int *list, int count)
{
    int *next = resize(NULL, (d->longest + 2) * sizeof *next);   /* place of the next such length */
    memset(next, 0, (d->longest + 2) * sizeof *next);
    for (int i = 0; i < count; i++) next[length_of(d, list ? list[i] : i) + 1]++;
    for (int n = 0; n <= d->longest; n++) next[n + 1] += next[n];
    for (int i = 0; i < count; i++) order[next[length_of(d, list ? list[i] : i)]++] = i;
    free(next);
}

/* Says how long some texts took, from `start` on. */
static void report_rate(const char *what, int count, double start)
{
    const double spent = seconds() - start;
    progress(true, "%s: %s  %.0f texts/s  %.1f s", what, counted(count, "text"), count / spent,
             spent);
}

/* One forward pass over the examples list[0 .. count), or with list NULL over the first count.
 *   features (count, C): hidden at the last token of each text, which is all that the head reads
 *   probabilities (count, K): softmax of the head's scores      each may be NULL
 * Results are in the order of the list. Returns the sum of losses of the examples with a label.
 * what: for a line of progress now and then, or NULL. */
static double run_examples(struct Runner *r, real *probabilities, real *features,
                           const struct Dataset *d, const int *list, int count, const char *what)
{
    const int K = r->model->config.labels, C = r->model->config.channels;
    int *order = resize(NULL, count * sizeof *order),
        *sorted = resize(NULL, count * sizeof *sorted);
    real *p = resize(NULL, (size_t)r->ws.max_rows * max_int(K, 1) * sizeof *p);
    struct Timer timer = start_timer();
    double loss = 0;
    order_by_length(order, d, list, count);
    for (int i = 0; i < count; i++) sorted[i] = list ? list[order[i]] : order[i];
    for (int done = 0; done < count; ) {
        const struct Batch b = gather(r, d, sorted + done, count - done);
        const real *hidden = forward(r, d, &b, sorted + done, 0, 0);
        if (r->measure_lm) {
            r->lm_tokens += set_next_tokens(r, &b);
            r->lm_loss += lm_head(r->model, &r->ws, &b, r->next, 0);
        }
        if (probabilities) loss += class_head(r->model, &r->ws, &b, r->minibatch.targets, NULL,
                                             0, p);
        for (int s = 0; s < b.sequences; s++) {
            const size_t to = order[done + s], last = b.starts[s + 1] - 1;
            if (probabilities) memcpy(probabilities + to * K, p + (size_t)s * K, K * sizeof *p);
            if (features) memcpy(features + to * C, hidden + last * C, C * sizeof *p);
        }
        done += b.sequences;
        if (what && done < count) show_work(&timer, what, done, count, "texts");
    }
    free(order);
    free(sorted);
    free(p);
    return loss;
}
/* ============================================================================================= */
/* 3. Gradient steps                                                                             */
/* ============================================================================================= */

/* How a labelled file is laid out. A column is a position, from 1, or a name of the header. What is
 * NULL, or "auto", is not said: then the training's file or else the file itself decides, see
 * section 7. */
enum { TEXTS, LABELS, PAIRS, COLUMNS };
struct Columns {
    const char *names[COLUMNS];         /* PAIRS: of a second text; NULL: texts are single */
    const char *header;                 /* yes: the first row has the names of the columns; no */
    const char *format;                 /* tsv, csv, jsonl, fasttext, lines */
    const struct Columns *training;     /* of the classifier that is used, or NULL */
    bool texts_only;                    /* labels are not read */
};

/* The options of a training. Section 9 has their meanings, section 8 what 0 or -1 becomes where a
 * default depends on --tune, on the model and on the data. */
struct Settings {
    const char *model, *train, *val, *out, *tune, *truncate, *class_weights, *precision;
    struct Columns columns;
    int epochs, steps, patience, batch, max_tokens, threads;
    int64_t seed;
    double lr, head_lr_ratio, dropout, weight_decay, warmup, val_part;
    double layer_decay, l2sp, lm_coef, average;
    bool overwrite, resume, dedupe, calibrate;
    enum { PROBE, LAST, FULL, SCRATCH } kind;   /* --tune */
    int last;                                   /* K of last:K */
    int every;                                  /* updates between two validations */
};

struct Scores { double accuracy, macro_f1, loss, ece; };

/* One fine-tuning. */
struct Task {
    struct Settings set;
    struct Tokenizer *tokenizer;
    struct Model model;
    struct Runner runner;
    struct Dataset data;                        /* training and validation examples */
    int *train, *val;                           /* (train_count) (val_count): which ones */
    int *truth;                                 /* (val_count): the labels of val */
    int train_count, val_count;
    real *probabilities;                        /* (val_count, K): of the last validation */
    int *confusion;                             /* (K, K) */
    const real *source;                         /* the pretrained weights, for --l2sp */
    uint64_t source_hash, train_hash, val_hash; /* of them, and of the texts as tokens */
    const real *features;                       /* (data.count, C): of the probe, if known */
    real *class_weights;                        /* (K), or NULL: all 1 */
    struct Random order, masks;                 /* of the training examples; of dropout */
    struct Option *options;                     /* the rows of set */
    struct Columns layout;                      /* of the file of texts to train on */
    struct Journal log;                         /* log.tsv */
    bool quiet;                                 /* one of many trainings: no progress, no files */
    bool resumes;                               /* a state is there, and the training goes on */
};

/* Where a training is. A state on disk holds all of it. */
struct TrainState {
    double start, loss, norm;               /* loss: the sum over the examples since a validation */
    int step, examples;                     /* updates so far; how many examples `loss` is of */
    struct Scores best_scores;              /* of the best weights on validation */
    int best_step, since_best;              /* 0: there are none; validations since then */
    real *best, *mean;                      /* weights; mean, or NULL: of the last updates */
    int averaged;                           /* how many updates mean has seen */
    double saved, saving;                   /* when the state was written; how long that took */
};

/* --- The start --- */

/* The classifier before training: the weights of the pretrained model and a random head, or, for
 * scratch, random weights throughout. */
static void start_model(struct Task *t, const struct Model *base, char **names, int classes)
{
    struct Model *model = &t->model;
    struct Config config = base->config;
    config.labels = classes;
    config.label_names = names;
    model_create(model, config);
    if (t->set.kind == SCRATCH) { model_init(model, t->set.seed); return; }
    for (int i = 0; i < model->tensor_count; i++) {      /* the head is last in both lists */
        const struct Tensor *p = &model->tensors[i];
        real *w = model->weights + p->offset;
        if (!strcmp(p->name, "score.weight")) tensor_init(model, i, t->set.seed);
        else memcpy(w, base->weights + base->tensors[i].offset, p->size * sizeof(real));
    }
}

/* Which weights learn, and how fast: last:K freezes the embeddings and all blocks but the last K;
 * a block learns layer_decay times as fast as the one above it (Howard and Ruder 2018), the new
 * head head_lr_ratio times as fast as the last block. */
static void choose_weights(struct Task *t)
{
    const struct Settings *s = &t->set;
    struct Model *model = &t->model;
    model_train_from(model, s->kind == LAST ? model->config.layers - s->last : 0);
    model->beta2 = 0.999;
    for (int i = 0; i < model->tensor_count; i++) {
        struct Tensor *p = &model->tensors[i];
        const int below = max_int(0, model->config.layers - 1 - p->layer);  /* blocks above it */
        if (s->kind == LAST && p->layer < 0) p->lr_scale = 0;   /* also with K = L */
        p->lr_scale *= (float)pow(s->layer_decay, below);
        if (!strcmp(p->name, "score.weight")) p->lr_scale = (float)s->head_lr_ratio;
    }
}

/* --- One update --- */

/* Dies because of a gradient that is not finite. A file gets the texts of the update. */
__attribute__((noreturn)) static void die_not_finite(const struct Task *t, const int *list,
                                                     int count, int64_t step);

/* One update: the gradient of the mean loss over the examples list[0 .. count), in as many batches
 * as memory demands, clipped to norm 1, then AdamW. --lm-coef adds the mean loss of the language
 * model on the same texts, times the coefficient (Radford et al. 2018). --l2sp pulls the weights
 * back towards where they came from. Returns the mean loss of the classifier. Dies, before the
 * update, if the gradient is not finite. */
static double train_step(struct Task *t, double *norm, const int *list, int count, double lr,
                         int64_t step)
{
    struct Runner *r = &t->runner;
    const struct Settings *s = &t->set;
    double loss = 0;
    int next_tokens = -count;
    for (int i = 0; i < count; i++) next_tokens += length_of(&t->data, list[i]);
    for (int done = 0; done < count; ) {
        const struct Batch b = gather(r, &t->data, list + done, count - done);
        forward(r, &t->data, &b, list + done, s->dropout, random_bits(&t->masks));
        loss += class_head(r->model, &r->ws, &b, r->minibatch.targets, t->class_weights,
                           (real)1 / count, NULL);
        if (s->lm_coef > 0 && set_next_tokens(r, &b) > 0)
            lm_head(r->model, &r->ws, &b, r->next, (real)(s->lm_coef / next_tokens));
        trunk_backward(r->model, &r->ws, &b);
        done += b.sequences;
    }
    *norm = grad_norm(r->model);
    if (!isfinite(*norm)) die_not_finite(t, list, count, step);
    adamw_step(r->model, lr, *norm > 1 ? 1 / *norm : 1, s->weight_decay, step);
    if (s->l2sp > 0) proximal_step(r->model, t->source, lr, s->l2sp);
    return loss / count;
}

/* --- The loop --- */

/* What the loop uses of section 8: lines of progress and log.tsv; the state and the best weights on
 * disk. A quiet training has none of them. */
static void show_step(struct Task *t, const struct TrainState *run, double loss, double lr);
static void report_validation(struct Task *t, const struct TrainState *run, struct Scores now,
                              bool better);
static void begin_state(struct Task *t, struct TrainState *run);
static void save_training(struct Task *t, struct TrainState *run);
static void save_best(struct Task *t, const struct TrainState *run);
static bool save_is_due(const struct TrainState *run);

static struct Scores score(int *confusion, const real *p, const int *truth, double loss, int N,
                           int K);

/* The scores of the model on the validation examples. */
static struct Scores validate(struct Task *t)
{
    const int K = t->model.config.labels;
    const double loss = run_examples(&t->runner, t->probabilities, NULL, &t->data, t->val,
                                     t->val_count, t->quiet ? NULL : "validation");
    return score(t->confusion, t->probabilities, t->truth, loss, t->val_count, K);
}

/* mean += (weights - mean) / count: the mean of the weights after each of the last updates. */
static void average_weights(struct TrainState *run, const struct Model *model)
{
    const real part = 1 / (real)++run->averaged;
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < model->parameter_count; i++)
        run->mean[i] += part * (model->weights[i] - run->mean[i]);
}

/* Validates, and keeps the weights if they are the most accurate so far, of equally accurate ones
 * those with the lowest loss. */
static void validate_and_keep(struct Task *t, struct TrainState *run)
{
    const struct Scores now = validate(t), top = run->best_scores;
    const bool better = now.accuracy > top.accuracy
                     || (now.accuracy == top.accuracy && now.loss < top.loss);
    report_validation(t, run, now, better);
    run->since_best = better ? 0 : run->since_best + 1;
    run->loss = run->examples = 0;
    if (!better) return;
    run->best_scores = now;
    run->best_step = run->step;
    memcpy(run->best, t->model.weights, t->model.parameter_count * sizeof(real));
    if (!t->quiet) save_best(t, run);
}

/* The number of passes over the training examples that an update belongs to. */
static int epoch_of(const struct Task *t, int step)
{
    return ceil_div(step, ceil_div(t->train_count, t->set.batch));
}

/* The model ends with the mean of the last weights if there is one, else with the best on
 * validation; meta says which. */
static void choose_final_weights(struct Task *t, const struct TrainState *run,
                                 struct Metadata *meta)
{
    memcpy(t->model.weights, run->averaged ? run->mean : run->best,
           t->model.parameter_count * sizeof(real));
    metadata_set(meta, "best_epoch", "%d", epoch_of(t, run->best_step));
    metadata_set(meta, "best_step", "%d", run->best_step);
    if (run->averaged) metadata_set(meta, "weights", "mean of the last %d updates", run->averaged);
    else metadata_set(meta, "weights", "best on validation");
}

/* The whole fine-tuning: examples in random order, s->batch of them an update; validation after
 * every s->every updates; the best weights stay. With --average the model instead ends with the
 * mean of the weights of the last updates. The rate rises, then falls along a cosine so that it
 * would be 0 one update after the last: every update counts. best: memory for weights. Returns
 * false if a signal ended the training before its last update. */
static bool train_steps(struct Task *t, real *best, struct Metadata *meta)
{
    const struct Settings *s = &t->set;
    const int updates = ceil_div(t->train_count, s->batch);             /* of an epoch */
    const int64_t warmup = (int64_t)(s->warmup * s->steps);
    const size_t bytes = t->model.parameter_count * sizeof(real);
    struct TrainState run = {.start = seconds(), .best = best,
                           .best_scores = {.accuracy = -1, .loss = INFINITY},
                           .mean = s->average > 0 ? allocate_zeroed(bytes) : NULL};
    bool done = false, stop = false;
    begin_state(t, &run);
    while (!done && !stop) {
        const int first = run.step % updates * s->batch,
                  count = min_int(s->batch, t->train_count - first);
        if (first == 0) shuffle(t->train, t->train_count, &t->order);
        run.step++;
        const double lr = learning_rate("cosine", run.step, s->steps + 1, warmup, s->lr, 0);
        const double loss = train_step(t, &run.norm, t->train + first, count, lr, run.step);
        run.loss += loss * count;
        run.examples += count;
        show_step(t, &run, loss, lr);
        if (run.mean && run.step > (1 - s->average) * s->steps) average_weights(&run, &t->model);
        if (run.step % s->every == 0 || run.step == s->steps) validate_and_keep(t, &run);
        done = run.step == s->steps || (s->patience && run.since_best >= s->patience);
        stop = stop_signal && !done;
        if (!t->quiet && !done && (stop || save_is_due(&run))) save_training(t, &run);
    }
    if (done && s->patience && run.since_best >= s->patience && !t->quiet)
        progress(true, "stopped: %d times no better on validation", run.since_best);
    if (stop && !t->quiet)
        advise_resume("train", brief("step %d/%d", run.step, s->steps), s->out);
    if (done) choose_final_weights(t, &run, meta);
    release(run.mean, bytes);
    return done;
}

/* --- Frozen blocks --- */

/* last:K freezes the blocks below the last K, so what they give for a text is the same in every
 * epoch. It is computed once, if it fits into memory. Otherwise they run again for every update,
 * with the same results. */
struct Cache {
    real *x;                        /* (rows, C): the input of the first block that learns */
    size_t *row;                    /* (examples): the first row of an example's */
    size_t rows;
};

static const real *forward(struct Runner *r, const struct Dataset *d, const struct Batch *b,
                           const int *list, double p, uint64_t key)
{
    struct Workspace *ws = &r->ws;
    const int C = r->model->config.channels, L = r->model->config.layers;
    real *x = ws->activations[r->frozen].x;
    if (r->frozen && !r->cache) blocks_forward(r->model, ws, b, 0, 0, 0, r->frozen);
    for (int s = 0; s < b->sequences && r->cache && r->frozen; s++)
        memcpy(x + (size_t)b->starts[s] * C, r->cache->x + r->cache->row[list[s]] * C,
               (size_t)length_of(d, list[s]) * C * sizeof *x);
    return blocks_forward(r->model, ws, b, p, key, r->frozen, L);
}

static size_t cache_bytes(const struct Runner *r)
{
    return r->cache ? r->cache->rows * r->model->config.channels * sizeof(real) : 0;
}

/* Runs the frozen blocks once on the examples of list (count), none of which is in it twice, and
 * keeps what they give, if it fits into a quarter of the machine's memory. */
static void fill_cache(struct Runner *r, const struct Dataset *d, const int *list, int count)
{
    const size_t C = r->model->config.channels;
    struct Cache *c = resize(NULL, sizeof *c);
    *c = (struct Cache){.row = resize(NULL, d->count * sizeof *c->row)};
    for (int i = 0; i < count; i++) { c->row[list[i]] = c->rows; c->rows += length_of(d, list[i]); }
    if (c->rows * C * sizeof(real) > machine_memory() / 4) { free(c->row); free(c); return; }
    c->x = allocate_zeroed(c->rows * C * sizeof(real));
    for (int done = 0; done < count; ) {
        const struct Batch b = gather(r, d, list + done, count - done);
        const real *out = blocks_forward(r->model, &r->ws, &b, 0, 0, 0, r->frozen);
        memcpy(c->x + c->row[list[done]] * C, out, b.rows * C * sizeof(real));
        done += b.sequences;
    }
    r->cache = c;
}

static void free_cache(struct Runner *r)
{
    if (!r->cache) return;
    release(r->cache->x, cache_bytes(r));
    free(r->cache->row);
    free((struct Cache *)r->cache);
    r->cache = NULL;
}

/* ============================================================================================= */
/* 4. The probe                                                                                  */
/* ============================================================================================= */

/* Multinomial logistic regression with an L2 penalty, on features x that are computed once:
 *
 *   F(w) = 1/N sum_n -a_n log p_n[label_n] + l2/2 |w|^2      p_n = softmax(z_n)      z_n = w x_n
 *   dF/dw = 1/N sum_n a_n (p_n - onehot(label_n)) x_n^T + l2 w
 *
 * a_n is the weight of the example's class, 1 unless --class-weights says otherwise. F is strictly
 * convex, so there is one solution, whatever the order or the seed. */
struct Logistic {
    int N, C, K;
    real *x;                    /* (N, C) */
    int *labels;                /* (N) */
    double l2;
    const real *class_weights;  /* (K), or NULL: all 1 */
    double *z, *p, *losses;     /* (N, K) (N, K) (N): all at the same w */
};

/* Allocates all arrays. The caller sets x, labels and l2. */
static struct Logistic logistic_create(int N, int C, int K)
{
    const size_t scores = (size_t)N * K;
    double *z = resize(NULL, (2 * scores + N) * sizeof *z);
    return (struct Logistic){N, C, K, allocate_zeroed((size_t)N * C * sizeof(real)),
                             resize(NULL, N * sizeof(int)), 0, NULL, z, z + scores, z + 2 * scores};
}

static void logistic_free(struct Logistic *f)
{
    release(f->x, (size_t)f->N * f->C * sizeof(real));
    free(f->labels);
    free(f->z);
}

static double weight_of(const struct Logistic *f, int n)
{
    return f->class_weights ? f->class_weights[f->labels[n]] : 1;
}

/* z (N, K) = x w^T      x (N, C)   w (K, C) */
static void logistic_scores(double *z, const struct Logistic *f, const double *w)
{
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < f->N; n++)
        for (int k = 0; k < f->K; k++) {
            const real *xn = f->x + (size_t)n * f->C;
            const double *wk = w + (size_t)k * f->C;
            double sum = 0;
            #pragma omp simd reduction(+: sum)
            for (int c = 0; c < f->C; c++) sum += wk[c] * xn[c];
            z[(size_t)n * f->K + k] = sum;
        }
}

/* Sets p and losses from z, and returns the mean loss without the penalty. accuracy, or NULL: the
 * part of the examples whose own label has the highest score. */
static double logistic_loss(struct Logistic *f, double *accuracy)
{
    const int K = f->K;
    int right = 0;
    #pragma omp parallel for schedule(static) reduction(+: right)
    for (int n = 0; n < f->N; n++) {
        const double *z = f->z + (size_t)n * K, own = z[f->labels[n]];
        double *p = f->p + (size_t)n * K, max = -INFINITY, sum = 0;
        for (int k = 0; k < K; k++) max = z[k] > max ? z[k] : max;
        for (int k = 0; k < K; k++) sum += p[k] = exp(z[k] - max);
        for (int k = 0; k < K; k++) p[k] /= sum;
        f->losses[n] = weight_of(f, n) * (max - own + log(sum));
        right += own == max;
    }
    double total = 0;
    for (int n = 0; n < f->N; n++) total += f->losses[n];
    if (accuracy) *accuracy = (double)right / f->N;
    return total / f->N;
}

/* a . b, of n values each. */
static double dot(const double *a, const double *b, size_t n)
{
    double sum = 0;
    #pragma omp simd reduction(+: sum)
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* F at w (K, C), after logistic_scores. */
static double logistic_objective(struct Logistic *f, const double *w)
{
    return logistic_loss(f, NULL) + f->l2 / 2 * dot(w, w, (size_t)f->K * f->C);
}

/* Channels c0 .. c0 + channels - 1 of sum_n a_n (p_n - onehot(label_n)) x_n^T, into dw (K, C). */
static void gradient_of_channels(double *dw, const struct Logistic *f, int c0, int channels)
{
    const int C = f->C, K = f->K;
    for (int k = 0; k < K; k++) memset(dw + (size_t)k * C + c0, 0, channels * sizeof *dw);
    for (int n = 0; n < f->N; n++) {
        const real *x = f->x + (size_t)n * C + c0;
        const double weight = weight_of(f, n);
        for (int k = 0; k < K; k++) {
            const double slope = weight * (f->p[(size_t)n * K + k] - (k == f->labels[n]));
            double *d = dw + (size_t)k * C + c0;
            for (int c = 0; c < channels; c++) d[c] += slope * x[c];
        }
    }
}

/* dw (K, C) = dF/dw at w, after logistic_objective. Threads share out channels, and each adds the
 * examples in their order. */
static void logistic_gradient(double *dw, const struct Logistic *f, const double *w)
{
    enum { CHANNELS = 16 };
    #pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < f->C; c0 += CHANNELS)
        gradient_of_channels(dw, f, c0, min_int(CHANNELS, f->C - c0));
    for (size_t i = 0; i < (size_t)f->K * f->C; i++) dw[i] = dw[i] / f->N + f->l2 * w[i];
}

/* --- The solver: conjugate gradients, preconditioned by the Hessian at w = 0 --- */

/* d^T H d, where H is the Hessian of F at the current w, and u (N, K) = x d^T:
 *   1/N sum_n a_n [sum_k p_nk u_nk^2 - (sum_k p_nk u_nk)^2] + l2 |d|^2 */
static double logistic_curvature(const struct Logistic *f, const double *d, const double *u)
{
    double total = 0;
    for (int n = 0; n < f->N; n++) {
        const double *p = f->p + (size_t)n * f->K, *un = u + (size_t)n * f->K;
        double mean = 0, square = 0;
        for (int k = 0; k < f->K; k++) { mean += p[k] * un[k]; square += p[k] * un[k] * un[k]; }
        total += weight_of(f, n) * (square - mean * mean);
    }
    return total / f->N + f->l2 * dot(d, d, (size_t)f->K * f->C);
}

/* Cholesky's factor of a symmetric matrix a (C, C): its lower triangle becomes L with L L^T = a.
 * Squares of the diagonal are at least min: rounding could make them negative. */
static void cholesky(double *a, int C, double min)
{
    for (int i = 0; i < C; i++)
        for (int j = 0; j <= i; j++) {
            double *ai = a + (size_t)i * C, *aj = a + (size_t)j * C;
            const double rest = ai[j] - dot(ai, aj, j);
            ai[j] = i > j ? rest / aj[j] : sqrt(rest > min ? rest : min);
        }
}

/* x (C) becomes the solution y of L L^T y = x: forward through L, then backward through L^T. */
static void cholesky_solve(double *x, const double *L, int C)
{
    for (int i = 0; i < C; i++)
        x[i] = (x[i] - dot(L + (size_t)i * C, x, i)) / L[(size_t)i * C + i];
    for (int i = C - 1; i >= 0; i--) {
        x[i] /= L[(size_t)i * C + i];
        for (int c = 0; c < i; c++) x[c] -= x[i] * L[(size_t)i * C + c];
    }
}

/* max |x_i|, or NaN if there is one. */
static double largest(const double *x, size_t n)
{
    double max = 0;
    for (size_t i = 0; i < n; i++) max = fabs(x[i]) > max || isnan(x[i]) ? fabs(x[i]) : max;
    return max;
}

/* w += a d.   The scores are linear in w: z += a u. */
static void logistic_move(struct Logistic *f, double *w, const double *d, const double *u, double a)
{
    for (size_t i = 0; i < (size_t)f->K * f->C; i++) w[i] += a * d[i];
    for (size_t i = 0; i < (size_t)f->N * f->K; i++) f->z[i] += a * u[i];
}

/* Minimises F, from w (K, C) on, until no component of the gradient g exceeds 1e-7. Returns the
 * number of gradients. Nonlinear conjugate gradients (Polak and Ribiere 1969; see Minka, "A
 * comparison of numerical optimizers for logistic regression", 2003):
 *
 *   s = M^-1 g      beta = max(0, s . (g - g_before) / (s_before . g_before))      d = beta d - s
 *   w += a d        a = -(g . d) / (d . H d), Newton's step along d
 *
 * H is the Hessian at w, and M the one at 0: the same block X^T X / (K N) + l2 I for each class, up
 * to a term that moves all classes alike. Softmax is blind to that, so the rows of w, which must
 * add up to 0 at first, always do. Features are correlated: without M the way to the minimum would
 * be a long narrow valley. gram (C, C): X^T X.
 *
 * If F rises, a is halved until F does not. H is bounded for all w (Bohning 1992), so this ends. */
static int logistic_solve(struct Logistic *f, double *w, const real *gram)
{
    enum { MAX_GRADIENTS = 1000 };
    const int C = f->C, K = f->K;
    const size_t size = (size_t)K * C;
    double *L = resize(NULL, (size_t)C * C * sizeof *L);
    double *u = resize(NULL, (size_t)f->N * K * sizeof *u);
    double *g = resize(NULL, 3 * size * sizeof *g), *s = g + size, *d = s + size;
    memset(g, 0, 3 * size * sizeof *g);
    for (size_t i = 0; i < (size_t)C * C; i++)
        L[i] = gram[i] / ((double)f->N * K) + (i % (C + 1) == 0) * f->l2;
    cholesky(L, C, f->l2 / 2);
    logistic_scores(f->z, f, w);
    double F = logistic_objective(f, w), sg = INFINITY;
    int gradients = 1;
    for (;; gradients++) {
        logistic_gradient(g, f, w);
        if (!(largest(g, size) > 1e-7) || gradients == MAX_GRADIENTS) break;
        const double sg_before = sg, overlap = dot(s, g, size);     /* later s . g_before */
        memcpy(s, g, size * sizeof *s);
        for (int k = 0; k < K; k++) cholesky_solve(s + (size_t)k * C, L, C);
        sg = dot(s, g, size);
        const double beta = fmax(0, (sg - overlap) / sg_before);
        for (size_t i = 0; i < size; i++) d[i] = beta * d[i] - s[i];
        logistic_scores(u, f, d);
        const double limit = F + 1e-12 * (1 + F);                   /* rounding is no rise */
        double a = -dot(g, d, size) / logistic_curvature(f, d, u);
        logistic_move(f, w, d, u, a);
        for (; (F = logistic_objective(f, w)) > limit; logistic_move(f, w, d, u, -a)) a /= 2;
    }
    free(L);
    free(u);
    free(g);
    return gradients;
}

/* --- The probe of a model --- */

/* deviation (C): the standard deviation of each feature of x (N, C). Features are divided by their
 * deviation, so that one l2 suits all of them. Their mean is not subtracted: that would need a
 * bias, and the head of GPT2ForSequenceClassification has none. */
static void measure_features(double *deviation, const real *x, int N, int C)
{
    #pragma omp parallel for schedule(static)
    for (int c = 0; c < C; c++) {
        double mean = 0, square = 0;
        for (int n = 0; n < N; n++) mean += x[(size_t)n * C + c];
        mean /= N;
        for (int n = 0; n < N; n++) {
            const double d = x[(size_t)n * C + c] - mean;
            square += d * d;
        }
        const double d = sqrt(square / N);
        deviation[c] = d > 1e-6 ? d : 1;        /* a constant feature stays as it is */
    }
}

/* x (N, C) /= deviation (C) */
static void scale_features(real *x, const double *deviation, int N, int C)
{
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) x[(size_t)n * C + c] /= (real)deviation[c];
}

/* Features and labels of some examples. what: for the lines of progress. */
static struct Logistic probe_features(struct Task *t, const int *list, int count, const char *what)
{
    const double start = seconds();
    struct Logistic f = logistic_create(count, t->model.config.channels, t->model.config.labels);
    for (int i = 0; i < count; i++) f.labels[i] = t->data.labels[list[i]];
    if (t->quiet) what = NULL;
    if (!t->features) {
        run_examples(&t->runner, NULL, f.x, &t->data, list, count, what);
        if (what) report_rate(what, count, start);
    } else
        for (int i = 0; i < count; i++)
            memcpy(f.x + (size_t)i * f.C, t->features + (size_t)list[i] * f.C, f.C * sizeof *f.x);
    return f;
}

/* Solves for 13 penalties, from the strongest to the weakest, each from the solution before. Under
 * a strong penalty w is near 0; under a weak one it fits noise. Which is best depends on the number
 * of labels, so validation decides. It compares losses: the accuracy on few examples takes few
 * values. best (K, C) receives the best weights. Returns their l2; dies if no loss is finite. */
static double probe_path(struct Task *t, double *best, struct Logistic *train, struct Logistic *val)
{
    const int C = train->C, K = train->K;
    const size_t bytes = (size_t)K * C * sizeof(double);
    real *gram = allocate_zeroed((size_t)C * C * sizeof *gram);
    double *w = allocate_zeroed(bytes), lowest = INFINITY, chosen = 0, start = seconds(), accuracy;
    gemm(gram, transposed(matrix(train->x, C)), matrix(train->x, C), NULL, NULL, C, C, train->N);
    for (int exponent = 4; exponent >= -8; exponent--) {        /* 1e2 to 1e-4, two to a decade */
        train->l2 = pow(10, exponent / 2.0);
        const int gradients = logistic_solve(train, w, gram);
        logistic_scores(val->z, val, w);
        const double train_loss = logistic_loss(train, NULL);
        const double val_loss = logistic_loss(val, &accuracy), spent = seconds() - start;
        if (!t->quiet) {
            journal_add(&t->log, "%.6g\t%d\t%.6f\t%.6f\t%.6f\t%.2f\n", train->l2, gradients,
                        train_loss, val_loss, accuracy, spent);
            progress(true, "l2 %-8.3g train loss %.4f  val loss %.4f  val accuracy %.4f  "
                     "%s  %.1f s%s", train->l2, train_loss, val_loss, accuracy,
                     counted(gradients, "evaluation"), spent, val_loss < lowest ? "  best" : "");
        }
        if (!(val_loss < lowest)) continue;
        lowest = val_loss;
        chosen = train->l2;
        memcpy(best, w, bytes);
    }
    release(w, bytes);
    release(gram, (size_t)C * C * sizeof *gram);
    if (lowest == INFINITY)
        die("%s: the features are not finite. The pretrained model is broken.", t->set.model);
    return chosen;
}

/* Trains score_w alone: the frozen trunk reads every text once, and logistic regression on the
 * features gives the weights. w . (x / deviation) = (w / deviation) . x, so the scale of the
 * features moves into the weights, and the model is used like any other. */
static void train_probe(struct Task *t, struct Metadata *meta)
{
    struct Logistic train = probe_features(t, t->train, t->train_count, "features");
    struct Logistic val = probe_features(t, t->val, t->val_count, "validation features");
    const int C = train.C, K = train.K;
    double *deviation = resize(NULL, C * sizeof *deviation);
    double *w = resize(NULL, (size_t)K * C * sizeof *w);
    train.class_weights = t->class_weights;
    measure_features(deviation, train.x, train.N, C);
    scale_features(train.x, deviation, train.N, C);
    scale_features(val.x, deviation, val.N, C);
    metadata_set(meta, "l2", "%.6g", probe_path(t, w, &train, &val));
    for (int k = 0; k < K; k++)
        for (int c = 0; c < C; c++)
            t->model.w.score_w[(size_t)k * C + c] = (real)(w[(size_t)k * C + c] / deviation[c]);
    logistic_free(&train);
    logistic_free(&val);
    free(deviation);
    free(w);
}
/* ============================================================================================= */
/* 5. Scores and calibration                                                                     */
/* ============================================================================================= */

static int most_probable(const real *p, int K)
{
    int best = 0;
    for (int k = 1; k < K; k++) if (p[k] > p[best]) best = k;
    return best;
}

/* confusion (K, K): examples of each true class (row) and predicted class (column).
 *   p (N, K)   truth (N) */
static void count_confusion(int *confusion, const real *p, const int *truth, int N, int K)
{
    memset(confusion, 0, (size_t)K * K * sizeof *confusion);
    for (int i = 0; i < N; i++)
        confusion[(size_t)truth[i] * K + most_probable(p + (size_t)i * K, K)]++;
}

/* One class: its examples, how often it is predicted, and how often both. In the usual words:
 *   right = TP    truly = TP + FN    predicted = TP + FP */
struct ClassCounts { int truly, predicted, right; };

/* The counts of class k: its row of the confusion matrix, its column, and where they cross. */
static struct ClassCounts counts_of(const int *confusion, int k, int K)
{
    struct ClassCounts c = {.right = confusion[(size_t)k * K + k]};
    for (int j = 0; j < K; j++) {
        c.truly += confusion[(size_t)k * K + j];
        c.predicted += confusion[(size_t)j * K + k];
    }
    return c;
}

/* The harmonic mean of precision and recall (van Rijsbergen 1979):
 *   F1 = 2 TP / (2 TP + FP + FN)      0 if the class never occurs */
static double f1_of(struct ClassCounts c)
{
    return 2.0 * c.right / max_int(c.truly + c.predicted, 1);
}

/* F1, averaged over the classes that occur, truly or as a prediction. */
static double macro_f1(const int *confusion, int K)
{
    double sum = 0;
    int present = 0;
    for (int k = 0; k < K; k++) {
        const struct ClassCounts c = counts_of(confusion, k, K);
        sum += f1_of(c);
        present += c.truly + c.predicted > 0;
    }
    return present ? sum / present : 0;
}

/* Expected calibration error (Naeini et al. 2015): examples are put into 15 bins by the probability
 * of their predicted class. The average of |accuracy - mean probability| of a bin, weighted by its
 * number of examples. 0: a probability of 0.8 is right in 80 of 100 cases. */
static double calibration_error(const real *p, const int *truth, int N, int K)
{
    enum { BINS = 15 };
    double difference[BINS] = {0}, sum = 0;
    for (int i = 0; i < N; i++) {
        const int best = most_probable(p + (size_t)i * K, K);
        const double confidence = p[(size_t)i * K + best];
        const int bin = confidence < 1 ? (int)(confidence * BINS) : BINS - 1;
        difference[bin] += (best == truth[i]) - confidence;
    }
    for (int b = 0; b < BINS; b++) sum += fabs(difference[b]);
    return sum / N;
}

/* All scores of p (N, K), and confusion (K, K). loss: the sum over the N examples. */
static struct Scores score(int *confusion, const real *p, const int *truth, double loss, int N,
                           int K)
{
    int right = 0;
    count_confusion(confusion, p, truth, N, K);
    for (int k = 0; k < K; k++) right += confusion[(size_t)k * K + k];
    return (struct Scores){(double)right / N, macro_f1(confusion, K), loss / N,
                           calibration_error(p, truth, N, K)};
}

/* The accuracy of always predicting the commonest label: what a classifier must beat. */
static double majority_rate(const int *confusion, int N, int K)
{
    int max = 0;
    for (int k = 0; k < K; k++) max = max_int(max, counts_of(confusion, k, K).truly);
    return (double)max / N;
}

/* low and high: 95% bounds of the accuracy that a is an estimate of, from N examples (Wilson 1927).
 * They are the two q from which a is z standard deviations away, |a - q| = z sqrt(q (1 - q) / N):
 *   (a + z^2 / 2N -+ z sqrt(a (1 - a) / N + z^2 / 4N^2)) / (1 + z^2 / N) */
static void wilson_interval(double *low, double *high, double a, int N)
{
    const double z = 1.959963984540054, zz = z * z / N;
    const double half = z * sqrt((a * (1 - a) + zz / 4) / N);
    *low = fmax(0, (a + zz / 2 - half) / (1 + zz));
    *high = fmin(1, (a + zz / 2 + half) / (1 + zz));
}

/* The correlation of two yes-or-no variables, truth and prediction (Matthews 1975):
 *   (TP TN - FP FN) / sqrt((TP + FN) (TN + FP) (TP + FP) (TN + FN))      0 if the root is */
static double matthews(const int *confusion)
{
    const struct ClassCounts no = counts_of(confusion, 0, 2), yes = counts_of(confusion, 1, 2);
    const double root = sqrt((double)yes.truly * no.truly) * sqrt((double)yes.predicted
                                                                  * no.predicted);
    const double wrong = (double)(yes.truly - yes.right) * (no.truly - no.right);
    return root > 0 ? ((double)yes.right * no.right - wrong) / root : 0;
}

/* An example of two classes: the probability of class 1, and whether that is its label. */
struct Ranked { real p; int positive; };

/* The most probable first. */
static int compare_ranked(const void *a, const void *b)
{
    const real p = ((const struct Ranked *)a)->p, q = ((const struct Ranked *)b)->p;
    return (p < q) - (p > q);
}

/* How well the probability of class 1 ranks the N examples of two classes, whatever the threshold.
 * P and R are precision and recall if all examples with p >= t are called class 1:
 *   auc                 part of the pairs of a positive and a negative example in which the
 *                       positive one is more probable; equal ones count half. It is the area under
 *                       the ROC curve (Hanley and McNeil 1982).
 *   average_precision   sum of (R(t) - R(t before)) P(t), over every p as t, from the highest on
 * NaN if a class that they need has no example. p (N, 2)    truth (N) */
static void rank_scores(double *auc, double *average_precision, const real *p, const int *truth,
                        int N)
{
    struct Ranked *list = resize(NULL, N * sizeof *list);
    double area = 0, precisions = 0, positive = 0;          /* positive examples with p > t */
    for (int i = 0; i < N; i++) list[i] = (struct Ranked){p[2 * (size_t)i + 1], truth[i] == 1};
    qsort(list, N, sizeof *list, compare_ranked);
    for (int i = 0, end; i < N; i = end) {
        double tied = list[i].positive;                     /* and those with p = t */
        for (end = i + 1; end < N && list[end].p == list[i].p; end++) tied += list[end].positive;
        area += (end - i - tied) * (positive + tied / 2);
        positive += tied;
        precisions += tied * positive / end;
    }
    *auc = area / (positive * (N - positive));
    *average_precision = precisions / positive;
    free(list);
}


/* --- Calibration, after any kind of training --- */

/* The temperature T that makes probabilities p (N, K) fit the labels best: softmax(z / T), where z
 * are the scores, is p^(1/T) up to a factor (Guo et al. 2017). With b = 1/T the mean loss is
 * convex:
 *   dLoss/db = mean of (sum_k q_k log p_k - log p_label)      q = softmax(b log p)
 * Bisection finds where it is 0, in 1/20 <= T <= 20. */
static double fit_temperature(const real *p, const int *labels, int N, int K)
{
    double low = 0.05, high = 20, *q = resize(NULL, K * sizeof *q);
    for (int i = 0; i < 60; i++) {
        const double b = sqrt(low * high);
        double slope = 0;
        for (int n = 0; n < N; n++) {
            double sum = 0, mean = 0;
            for (int k = 0; k < K; k++) q[k] = log(fmax(p[(size_t)n * K + k], 1e-30));
            for (int k = 0; k < K; k++) { sum += exp(b * q[k]); mean += exp(b * q[k]) * q[k]; }
            slope += mean / sum - q[labels[n]];
        }
        if (slope > 0) high = b; else low = b;
    }
    free(q);
    return 1 / sqrt(low * high);
}

/* --calibrate: divides all scores by the temperature that fits validation best. The head is linear
 * and has no bias, so the division can be done to its weights, and every reader of the model gets
 * the same probabilities. */
static void calibrate(struct Task *t, struct Metadata *meta)
{
    const int K = t->model.config.labels, C = t->model.config.channels;
    const struct Scores before = validate(t);
    const double T = fit_temperature(t->probabilities, t->truth, t->val_count, K);
    for (size_t i = 0; i < (size_t)K * C; i++) t->model.w.score_w[i] /= (real)T;
    const struct Scores after = validate(t);
    progress(true, "temperature %.3f: val loss %.4f, was %.4f; calibration error %.4f, was %.4f", T,
             after.loss, before.loss, after.ece, before.ece);
    metadata_set(meta, "temperature", "%.6f", T);
}

/* ============================================================================================= */
/* 6. Classical baselines                                                                        */
/* ============================================================================================= */

/* What a classifier reaches that knows no language, only which words occur: each claim for
 * pretraining is measured against it. A text is the set of its words and of its pairs of adjacent
 * words ("features"); how often one occurs does not count. */
struct Bags {
    int count;                  /* N */
    size_t *starts;             /* (N + 1): text i has features[starts[i]] .. [starts[i+1] - 1] */
    uint32_t *features;         /* numbers below F, each once in a text */
    int feature_count;          /* F */
};

/* Numbers for features, in the order of their first occurrence, by a hash table of their 64-bit
 * hashes. Two features with one hash would count as one: among 10 million that has a chance of 1 in
 * 300,000. last: the text in which a feature was last seen. */
struct Numbers { uint64_t *keys; uint32_t *values; int *last; size_t count; int bits; };

static size_t slot_of(const struct Numbers *n, uint64_t key)
{
    const size_t mask = ((size_t)1 << n->bits) - 1;
    size_t at = key >> (64 - n->bits);
    while (n->keys[at] && n->keys[at] != key) at = (at + 1) & mask;
    return at;
}

/* An empty table becomes one of 2^16 slots, another one twice as large. */
static void grow_numbers(struct Numbers *n)
{
    const struct Numbers old = *n;
    const size_t slots = old.bits ? (size_t)1 << old.bits : 0;
    n->bits = old.bits ? old.bits + 1 : 16;
    n->keys = resize(NULL, sizeof *n->keys << n->bits);
    n->values = resize(NULL, sizeof *n->values << n->bits);
    n->last = resize(n->last, sizeof *n->last << n->bits);
    memset(n->keys, 0, sizeof *n->keys << n->bits);
    for (size_t i = 0; i < slots; i++)
        if (old.keys[i]) {
            const size_t at = slot_of(n, old.keys[i]);
            n->keys[at] = old.keys[i];
            n->values[at] = old.values[i];
        }
    free(old.keys);
    free(old.values);
}

static uint32_t number_of(struct Numbers *n, uint64_t key)
{
    if (!n->bits || 2 * n->count >= (size_t)1 << n->bits) grow_numbers(n);
    key += !key;
    const size_t at = slot_of(n, key);
    if (!n->keys[at]) {
        n->keys[at] = key;
        n->last[n->count] = -1;
        n->values[at] = (uint32_t)n->count++;
    }
    return n->values[at];
}

/* The end of the word that begins at p: letters, digits and apostrophes, bytes beyond ASCII
 * included, or one other sign. *hash: of the word, capital letters as small ones. */
static const char *word_end(const char *p, const char *end, uint64_t *hash)
{
    const char *begin = p;
    *hash = 0;
    for (; p < end; p++) {
        const unsigned char c = *p;
        const bool inside = isalnum(c) || c >= 0x80 || c == '\'';
        if (!inside && p > begin) break;
        *hash = mix64(*hash + 257 * (uint64_t)tolower(c) + 1);
        if (!inside) return p + 1;
    }
    return p;
}

/* Appends a text's features. */
static void add_bag(struct Bags *b, struct Numbers *n, struct Bytes text,
                    size_t *capacity)
{
    const char *p = text.data, *end = p + text.size;
    uint64_t before = 0, word;
    size_t at = b->starts[b->count];
    while (p < end) {
        if (isspace((unsigned char)*p)) { p++; continue; }
        p = word_end(p, end, &word);
        const uint64_t keys[] = {word, mix64(before * 0x9E3779B97F4A7C15u + word)};
        for (int k = 0; k < (before ? 2 : 1); k++) {
            const uint32_t f = number_of(n, keys[k]);
            if (n->last[f] == b->count) continue;
            n->last[f] = b->count;
            if (at == *capacity)
                b->features = resize(b->features,
                                     (*capacity = 2 * *capacity + 1024) * sizeof *b->features);
            b->features[at++] = f;
        }
        before = word;
    }
    b->starts[++b->count] = at;
}

static struct Bags bags_of(const struct Bytes *texts, int count)
{
    struct Bags b = {.starts = resize(NULL, ((size_t)count + 1) * sizeof *b.starts)};
    struct Numbers n = {0};
    size_t capacity = 0;
    b.starts[0] = 0;
    for (int i = 0; i < count; i++) add_bag(&b, &n, texts[i], &capacity);
    b.feature_count = (int)n.count;
    free(n.keys);
    free(n.values);
    free(n.last);
    return b;
}

/* A training on bags: which texts, which labels, and which texts to give scores to. */
struct BagTask {
    const struct Bags *bags;
    const int *labels;              /* of all texts */
    const int *train, *test;        /* (train_count) (test_count): which ones */
    int train_count, test_count, classes;
};

/* in, out (F): in how many training texts of class k, and of the others, each feature occurs.
 * Returns how many features occur at all. */
static int count_features(int *in, int *out, const struct BagTask *t, int k)
{
    const struct Bags *b = t->bags;
    int seen = 0;
    memset(in, 0, b->feature_count * sizeof *in);
    memset(out, 0, b->feature_count * sizeof *out);
    for (int i = 0; i < t->train_count; i++) {
        const int text = t->train[i];
        int *count = t->labels[text] == k ? in : out;
        for (size_t j = b->starts[text]; j < b->starts[text + 1]; j++) {
            const uint32_t f = b->features[j];
            seen += !in[f] && !out[f];
            count[f]++;
        }
    }
    return seen;
}

/* The sum of w over the features of a text. */
static double bag_dot(const struct Bags *b, int text, const double *w)
{
    double sum = 0;
    for (size_t j = b->starts[text]; j < b->starts[text + 1]; j++) sum += w[b->features[j]];
    return sum;
}

/* Multinomial naive Bayes with add-one smoothing (Wang and Manning 2012, on sets of features):
 *   scores[i, k] = log (N_k / N) + sum over features f of text i  log ((n_kf + 1) / (n_k + F))
 * N_k: texts of class k; n_kf: those with f; n_k = sum_f n_kf; F: features that occur in training.
 * Others say nothing.   scores (test_count, K) */
static void naive_bayes(double *scores, const struct BagTask *t)
{
    const int F = t->bags->feature_count, K = t->classes;
    int *in = resize(NULL, 2 * (size_t)F * sizeof *in + 1), *out = in + F;
    double *w = resize(NULL, F * sizeof *w + 1);
    for (int k = 0; k < K; k++) {
        const int seen = count_features(in, out, t, k);
        double total = seen;
        int texts = 0;
        for (int f = 0; f < F; f++) total += in[f];
        for (int i = 0; i < t->train_count; i++) texts += t->labels[t->train[i]] == k;
        for (int f = 0; f < F; f++) w[f] = in[f] || out[f] ? log((in[f] + 1) / total) : 0;
        for (int i = 0; i < t->test_count; i++)
            scores[(size_t)i * K + k] = bag_dot(t->bags, t->test[i], w)
                                      + (texts ? log((double)texts / t->train_count) : -1e9);
    }
    free(in);
    free(w);
}

/* A linear support vector machine with squared hinge loss, class k against the others, by dual
 * coordinate descent (Hsieh et al. 2008):
 *   min over w, b   (|w|^2 + b^2) / 2 + C sum_i max(0, 1 - y_i (w . x_i + b))^2       C = 0.15
 * where x_i has the value r_f at each feature f of text i, else 0. y_i is 1 for class k, else -1.
 * Each text has a factor a_i >= 0, w = sum_i a_i y_i x_i, and one a_i is optimised at a time. w (F)
 * is kept times r: v_f = r_f w_f. Returns b. */
static double train_svm(double *v, const struct BagTask *t, const double *r, int k)
{
    enum { EPOCHS = 200 };
    const double half_c = 0.5 / 0.15;       /* 1 / (2C) */
    const struct Bags *b = t->bags;
    const int N = t->train_count;
    int *order = resize(NULL, N * sizeof *order);
    double *a = resize(NULL, N * sizeof *a), *square = resize(NULL, N * sizeof *square), bias = 0;
    double *r2 = resize(NULL, b->feature_count * sizeof *r2 + 1);
    struct Random random = random_stream(0, k);
    for (int f = 0; f < b->feature_count; f++) { r2[f] = r[f] * r[f]; v[f] = 0; }
    for (int i = 0; i < N; i++) {
        order[i] = i;
        a[i] = 0;
        square[i] = bag_dot(b, t->train[i], r2) + 1 + half_c;   /* |x|^2, and 1 for b */
    }
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        double worst = 0;
        shuffle(order, N, &random);
        for (int n = 0; n < N; n++) {
            const int i = order[n], text = t->train[i];
            const double y = t->labels[text] == k ? 1 : -1;
            const double slope = y * (bag_dot(b, text, v) + bias) - 1 + half_c * a[i];
            if (a[i] == 0 && slope >= 0) continue;
            worst = fmax(worst, fabs(slope));
            const double was = a[i], step = y * ((a[i] = fmax(0, was - slope / square[i])) - was);
            for (size_t j = b->starts[text]; j < b->starts[text + 1]; j++)
                v[b->features[j]] += step * r2[b->features[j]];
            bias += step;
        }
        if (worst < 0.01) break;
    }
    free(order); free(a); free(square); free(r2);
    return bias;
}

/* NB-SVM (Wang and Manning 2012): a support vector machine whose features are scaled by how much
 * more often they occur in class k than elsewhere, as parts of all occurrences, p and q:
 *   r_f = log (p_f / q_f)
 * The paper also draws the weights to their mean absolute value. On SST-2 and IMDb that costs up to
 * five points, so it is left out.   scores (test_count, K) */
static void nbsvm(double *scores, const struct BagTask *t)
{
    const int F = t->bags->feature_count, K = t->classes;
    int *in = resize(NULL, 2 * (size_t)F * sizeof *in + 1), *out = in + F;
    double *r = resize(NULL, F * sizeof *r + 1), *v = resize(NULL, F * sizeof *v + 1);
    for (int k = 0; k < (K == 2 ? 1 : K); k++) {
        const int seen = count_features(in, out, t, k);
        double ins = seen, outs = seen;
        for (int f = 0; f < F; f++) { ins += in[f]; outs += out[f]; }
        for (int f = 0; f < F; f++)
            r[f] = in[f] || out[f] ? log((in[f] + 1) / ins / ((out[f] + 1) / outs)) : 0;
        const double bias = train_svm(v, t, r, k);
        for (int i = 0; i < t->test_count; i++)
            scores[(size_t)i * K + k] = bag_dot(t->bags, t->test[i], v) + bias;
    }
    for (int i = 0; K == 2 && i < t->test_count; i++) scores[2 * i + 1] = -scores[2 * i];
    free(in); free(r); free(v);
}

/* ============================================================================================= */
/* II. FILES AND COMMANDS                                                                        */
/* ============================================================================================= */

/* ============================================================================================= */
/* 7. Labelled files: TSV, CSV, JSON, fastText's format                                          */
/* ============================================================================================= */

/* The rule for columns: a number is a position, always; a name is one of the header's, without
 * regard to capitals and to blanks around it. If nothing is said, usual names are looked for. Where
 * positions are given, the first row is a header if --header says so, or if it has a usual name at
 * one of them. What was decided for the training is kept with the classifier, and holds for its
 * other files: one that does not look like it is refused. */

/* A labelled text; both point into the file or to memory that is never freed. Two texts of a pair
 * have a tab between. line: for messages. */
struct Example { struct Bytes text, label; int line; };

/* columns: what was decided, to be kept. */
struct Examples { const char *path; struct Example *items; int count; struct Columns columns; };

/* The preferred names first. */
static const char *const usual_names[COLUMNS] = {
    "text|sentence|content|review|tweet|comment|phrase|body|review_text|review_body|message",
    "label|labels|sentiment|target|class|category|polarity",
    ""};                        /* a pair's second text has a column only by option */
static const char *const column_words[COLUMNS] = {"text", "label", "pair"};

enum { TSV, CSV, JSONL, FASTTEXT, LINES, FORMATS };
static const char *const format_names[FORMATS] = {"tsv", "csv", "jsonl", "fasttext", "lines"};
#define FORMAT_CHOICES "auto|tsv|csv|jsonl|fasttext|lines"

/* A file being read, record by record. */
struct Reader {
    const char *path, *at, *end;
    int line, begun;            /* of `at`, from 1; of the record */
    int format;
    bool like_training;         /* columns that are not said are those of the training */
    char separator;             /* TSV, CSV: between columns; '\n': there is one column */
    struct Columns wanted, decided;
    int columns, column[COLUMNS];   /* of the first row; where TEXTS, LABELS, PAIRS are, or -1 */
    struct Bytes header;        /* the line with the names, without its end; size 0: none */
    struct Bytes *fields;       /* (count): of the record */
    int count;
    int empty, repeated, bad, long_fields;      /* records left out; fields of many lines */
    struct Buffer problems;     /* the first three of the bad records */
};

/* --- The format --- */

/* Moves on to `to`, and counts the lines. */
static void advance(struct Reader *r, const char *to)
{
    for (; r->at < to; r->at++) r->line += *r->at == '\n';
}

/* Whether the first bytes are those of `mark`. */
static bool begins_with(struct Bytes s, const char *mark)
{
    return s.size >= strlen(mark) && !memcmp(s.data, mark, strlen(mark));
}

/* The line at *at, without its end. Moves *at to the next line. */
static struct Bytes take_line(const char **at, const char *end)
{
    const char *line = *at, *stop = memchr(line, '\n', end - line);
    size_t n = (stop ? stop : end) - line;
    *at = line + n + (stop != NULL);
    if (n && line[n - 1] == '\r') n--;
    return (struct Bytes){line, n};
}

/* Without blanks before and after. */
static struct Bytes trimmed(struct Bytes s)
{
    for (; s.size && *s.data == ' '; s.size--) s.data++;
    while (s.size && s.data[s.size - 1] == ' ') s.size--;
    return s;
}

/* Skips lines that hold blanks at most. */
static void skip_blank_lines(struct Reader *r)
{
    for (const char *next = r->at; r->at < r->end; advance(r, next))
        if (trimmed(take_line(&next, r->end)).size) return;
}

/* The bytes before the first blank or tab. */
static size_t word_length(struct Bytes s)
{
    size_t n = 0;
    while (n < s.size && s.data[n] != ' ' && s.data[n] != '\t') n++;
    return n;
}

/* The first of the candidates that the first record holds outside of quotes; '\n': none. */
static char find_separator(const struct Reader *r, const char *candidates)
{
    const char *best = NULL;
    bool quoted = false;
    for (const char *s = r->at; s < r->end && (quoted || *s != '\n'); s++) {
        const char *found = *s ? strchr(candidates, *s) : NULL;
        if (*s == '"' && (quoted || s == r->at || strchr("\"\t;|,", s[-1]))) quoted = !quoted;
        else if (found && !quoted && (!best || found < best)) best = found;
    }
    return best ? *best : '\n';
}

/* FORMATS: none, or "auto". */
static int format_number(const char *name)
{
    int number = 0;
    while (number < FORMATS && (!name || strcmp(name, format_names[number]))) number++;
    return number;
}

/* Sets format and separator. An object, or an array of objects, means JSON; __label__ and a blank
 * fastText's format; anything else is a table. --format may say otherwise. Of a classifier, tables
 * have the columns of its training, and texts without its separator are lines. */
static void choose_format(struct Reader *r)
{
    static const char *const separators[] = {[TSV] = "\t", [CSV] = ";|,"};
    struct Columns *w = &r->wanted;
    const struct Columns *kept = w->format ? NULL : w->training;
    struct JsonReader j = {r->at, r->end, r->at, r->path, 0};
    const char *next = r->at;
    const struct Bytes line = take_line(&next, r->end);
    const bool label = begins_with(line, "__label__") && !memchr(line.data, ',', word_length(line));
    const int said = format_number(kept ? kept->format : w->format);
    if (json_peek(&j) == '[') j.at++;
    const int marked = json_peek(&j) == '{' ? JSONL : label ? FASTTEXT : FORMATS;
    r->separator = said <= CSV ? find_separator(r, separators[said]) : '\n';
    const bool lines = w->texts_only && r->separator == '\n';
    if (said > CSV || (kept && r->separator == '\n')) r->separator = find_separator(r, "\t;|,");
    r->format = said < FORMATS && !kept ? said : marked < FORMATS ? marked
              : lines && (kept || r->separator == '\n') ? LINES
              : r->separator == '\t' ? TSV : CSV;
    r->like_training = kept && (said == r->format || (said <= CSV && r->format != JSONL
                                                      && r->format != FASTTEXT));
    if (!r->like_training) return;
    w->header = w->header ? w->header : kept->header;
    for (int i = 0; i < COLUMNS; i++) if (!w->names[i]) w->names[i] = kept->names[i];
}

/* --- Fields --- */

static void add_field(struct Reader *r, struct Bytes field)
{
    if (r->count >= 8 && !(r->count & (r->count - 1)))      /* a power of two: memory is used up */
        r->fields = resize(r->fields, 2 * r->count * sizeof *r->fields);
    r->fields[r->count++] = field;
}

/* Where quoted fields of the record at r->at must end. In TSV a quote may be mere text, so there a
 * line that has all columns is a record by itself. */
static const char *quote_limit(const struct Reader *r)
{
    const char *next = r->at;
    int columns = 1;
    take_line(&next, r->end);
    for (const char *s = r->at; s < next && r->format == TSV; s++) columns += *s == '\t';
    return columns >= max_int(r->columns, 2) ? next : r->end;
}

/* A field in quotes, which may hold separators, line ends and doubled quotes (RFC 4180). Its last
 * quote stands right before a separator or a line end. Without one before `limit`, the quote at
 * r->at is text, as in: "Frailty" has been ... Returns false then. */
static bool read_quoted(struct Reader *r, struct Bytes *field, const char *limit)
{
    enum { MANY_LINES = 20 };
    const char *s = r->at + 1, *quote;
    struct Buffer b = {0};
    for (; (quote = memchr(s, '"', limit - s)); s = quote + 2) {
        const bool doubled = quote + 1 < r->end && quote[1] == '"';
        append_bytes(&b, s, quote - s + doubled);
        if (!doubled) break;
    }
    const char *rest = quote ? quote + 1 : r->end;
    if (rest < r->end && *rest == '\r' && (rest + 1 == r->end || rest[1] == '\n')) rest++;
    if (!quote || (rest < r->end && *rest != r->separator && *rest != '\n')) {
        free(b.data);
        return false;
    }
    const int line = r->line;
    advance(r, rest);
    *field = (struct Bytes){b.data, b.size};
    if (r->line - line >= MANY_LINES && !r->long_fields++)
        warn("%s:%d: a quoted field has %d lines. If a stray quote begins it, remove that.",
             r->path, line, r->line - line + 1);
    return true;
}

/* The fields of a TSV or CSV record. */
static void read_fields(struct Reader *r)
{
    const char *limit = quote_limit(r);
    for (bool more = true; more; ) {
        struct Bytes field;
        const char *begin = r->at;
        if (r->at == r->end || *r->at != '"' || !read_quoted(r, &field, limit)) {
            while (r->at < r->end && *r->at != r->separator && *r->at != '\n') r->at++;
            size_t n = r->at - begin;
            if (n && begin[n - 1] == '\r' && (r->at == r->end || *r->at == '\n')) n--;
            field = (struct Bytes){begin, n};
        }
        add_field(r, field);
        more = r->at < r->end && *r->at != '\n';
        advance(r, r->at + (r->at < r->end));
    }
}

/* --- Columns --- */

/* The first of the names "a|b|c" that is a field, as the field's place; -1: none is. */
static int find_name(const struct Reader *r, const char *names)
{
    for (size_t length; ; names += length + 1) {
        length = strcspn(names, "|");
        for (int i = 0; i < r->count && length; i++) {
            const struct Bytes name = trimmed(r->fields[i]);
            if (name.size == length && !strncasecmp(name.data, names, length)) return i;
        }
        if (!names[length]) return -1;
    }
}

/* The position, from 1, that the column is wanted at; 0 if it is wanted by name. */
static double position_of(const char *wanted)
{
    double x;
    return wanted && parse_number(wanted, "", NULL, &x) ? x : 0;
}

static bool is_wanted(const struct Reader *r, int which)
{
    return which == TEXTS || (which == LABELS ? !r->wanted.texts_only
                                              : r->wanted.names[PAIRS] != NULL);
}

/* "no column is named text (there are: a, b)": at most 60 bytes of each, some 500 in all. */
static char *missing_column(const struct Reader *r, int which)
{
    const char *wanted = r->wanted.names[which];
    struct Buffer b = {0};
    append(&b, "no column is %s %s (there are: ", position_of(wanted) ? "number" : "named",
           wanted ? wanted : usual_names[which]);
    for (int i = 0; i < r->count && b.size < 600; i++)
        append(&b, "%s%.*s", i ? ", " : "", (int)fmin(r->fields[i].size, 60), r->fields[i].data);
    append(&b, "). --%s-column chooses one by its name%s", column_words[which],
           r->format == JSONL ? "" : " in the first line, or by its number");
    return b.data;
}

/* Whether the fields of the first row are names. They must be if a column is wanted by name. Lines
 * are then a table, if the texts are named alone or with the labels. */
static bool has_header(const struct Reader *r)
{
    const struct Columns *w = &r->wanted;
    bool names = false, usual = false, all = true;
    for (int which = 0; which < COLUMNS; which++) {
        const char *wanted = w->names[which];
        const double position = position_of(wanted);
        if (which == TEXTS || (which == LABELS && r->count > 1))
            all = all && !position && find_name(r, wanted ? wanted : usual_names[which]) >= 0;
        if (!is_wanted(r, which)) continue;
        names |= !position;
        usual |= position && find_name(r, usual_names[which]) == position - 1;
    }
    if (r->format == LINES) return all;
    if (!w->header || !strcmp(w->header, "auto")) return names || usual;
    if (!strcmp(w->header, "yes")) return true;
    if (names)
        die_usage("--header no: columns are numbered then, as --text-column 2 --label-column 1.");
    if (usual && r->like_training)
        die("%s:%d: is a header, but the training's file had none. Give --header yes.", r->path,
            r->begun);
    return false;
}

/* Finds the columns among the names in r->fields, or by position; dies if one is missing. */
static void find_columns(struct Reader *r)
{
    for (int which = 0; which < COLUMNS; which++) {
        const char *wanted = r->wanted.names[which];
        const double position = position_of(wanted);
        int *column = &r->column[which];
        if (!is_wanted(r, which)) continue;
        if (!position) *column = find_name(r, wanted ? wanted : usual_names[which]);
        else if (position >= 1 && position <= r->count && position == floor(position)
                 && r->format != JSONL) *column = (int)position - 1;
        if (*column < 0)
            die("%s:%d: %s%s.", r->path, r->begun, missing_column(r, which),
                r->wanted.texts_only ? "; --format lines reads lines" : "");
        if (which != TEXTS && *column == r->column[TEXTS])
            die("%s: text and %s are the same column. Name two.", r->path, column_words[which]);
        r->decided.names[which] = position ? wanted
            : text_of("%.*s", (int)r->fields[*column].size, r->fields[*column].data);
    }
}

/* Reads the first row: the columns, and whether it is their header. */
static void read_first_row(struct Reader *r)
{
    const char *begin = r->at;
    r->begun = r->line;
    read_fields(r);
    r->columns = r->count;
    const bool lines = r->format == LINES, header = has_header(r);
    if (header && lines) r->format = r->separator == '\t' ? TSV : CSV;
    if (r->format <= CSV) find_columns(r);
    r->decided.header = header ? "yes" : "no";
    if (header) { r->header = take_line(&begin, r->at); return; }
    if (lines || !r->wanted.header)
        progress(true, "%s: the first row (%.*s) is no header: %s", r->path,
                 (int)fmin(strcspn(begin, "\r\n"), 80), begin,
                 lines ? "each line is a text" : "it is data, columns are numbered");
    r->at = begin;
    r->line = r->begun;
}

/* --- Records: each adds its fields; false if it is left out --- */

/* A record that cannot be used: counted, and the first three are described. */
__attribute__((format(printf, 2, 3)))
static bool bad_record(struct Reader *r, const char *format, ...)
{
    enum { SHOWN = 3 };
    char text[MAX_MESSAGE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (r->bad++ < SHOWN)
        append(&r->problems, "%sline %d: %s", r->bad > 1 ? "; " : "", r->begun, text);
    return false;
}

/* A record of a table. One without any content keeps its place where texts alone are wanted. */
static bool read_row(struct Reader *r)
{
    size_t content = 0;
    read_fields(r);
    for (int i = 0; i < r->count; i++) content += trimmed(r->fields[i]).size;
    if (!content) r->empty++;
    if (!content || r->count == r->columns) return content || r->wanted.texts_only;
    return bad_record(r, "%s where the first line has %d (texts with %s or line ends need quotes)",
                      counted(r->count, "column"), r->columns, r->separator == '\t' ? "tabs"
                      : r->separator == ';' ? "semicolons" : r->separator == '|' ? "bars"
                      : "commas");
}

/* A line as a text, or in fastText's format: __label__NAME, a blank, and the text. */
static bool read_line(struct Reader *r)
{
    struct Bytes text = take_line(&r->at, r->end), label = {"", 0};
    r->line++;
    if (r->format == FASTTEXT && trimmed(text).size) {
        const size_t n = word_length(text);
        if (!begins_with(text, "__label__")) return bad_record(r, "does not begin with __label__");
        label = (struct Bytes){text.data + 9, n - 9};
        text = (struct Bytes){text.data + n, text.size - n};
        for (; text.size && (*text.data == ' ' || *text.data == '\t'); text.size--) text.data++;
        if (begins_with(text, "__label__")) return bad_record(r, "the text has several labels");
    }
    add_field(r, text);
    add_field(r, label);
    return true;
}

/* The value as text: numbers and truth values may be labels, too. Integers stay as they are
 * written, since a double holds 15 digits. Size 0 and no data for anything else. */
static struct Bytes json_as_text(const struct Json *j)
{
    struct Buffer b = {0};
    if (j->kind == JSON_NULL || j->kind >= JSON_ARRAY) return (struct Bytes){NULL, 0};
    append_bytes(&b, j->string, j->length);
    if (j->kind == JSON_NUMBER && strspn(j->string, "-0123456789") < j->length) {
        b.size = 0;
        append(&b, "%.15g", j->number);
    }
    return (struct Bytes){b.data, b.size};
}

/* An object with a text and a label. The first one decides which names they have. */
static bool read_object(struct Reader *r)
{
    char *where = text_of("%s:%d", r->path, r->begun);
    struct JsonReader reader = {r->at, r->end, r->at, where, 0};
    struct Json *object = json_value(&reader);
    bool good = true;
    if (object->kind != JSON_OBJECT)
        die("%s: not a JSON object. All must be like {\"text\": ..., \"label\": ...}.", where);
    advance(r, reader.at);
    for (struct Json *j = object->child; j; j = j->next)
        add_field(r, (struct Bytes){j->key, strlen(j->key)});
    if (!r->decided.names[TEXTS]) find_columns(r);
    struct Bytes values[COLUMNS] = {{"", 0}, {"", 0}, {"", 0}};
    for (int which = 0; which < COLUMNS && good; which++) {
        const char *name = r->decided.names[which];
        const struct Json *value = name ? json_get(object, name) : NULL;
        if (!name) continue;
        if (!value) good = bad_record(r, "%s", missing_column(r, which));
        else if (which != LABELS && value->kind != JSON_STRING)
            good = bad_record(r, "\"%s\" is not a string", name);
        else if (!(values[which] = json_as_text(value)).data)
            good = bad_record(r, "\"%s\" is neither a string nor a number", name);
    }
    r->count = 0;
    for (int which = 0; which < COLUMNS; which++) {
        r->column[which] = r->decided.names[which] ? which : -1;
        add_field(r, values[which]);
    }
    json_free(object);
    free(where);
    return good;
}

/* --- Pairs of texts --- */

/* Adds the second text of a pair to e->text, after a tab. Tabs of the first become spaces. */
static void join_pair(struct Example *e, struct Bytes second)
{
    struct Buffer b = {0};
    append_bytes(&b, e->text.data, e->text.size);
    for (size_t i = 0; i < b.size; i++) if (b.data[i] == '\t') b.data[i] = ' ';
    append_bytes(&b, "\t", 1);
    append_bytes(&b, second.data, second.size);
    e->text = (struct Bytes){b.data, b.size};
}

/* Two texts as tokens, "a TAB b": those of a, <|endoftext|>, those of b. If they are too many, the
 * longer one loses tokens until both are equally long, then both do. */
static int encode_pair(int *ids, int *all, struct Tokenizer *t, struct Bytes text, int max,
                       const char *how)
{
    const char *tab = memchr(text.data, '\t', text.size);
    const size_t first = tab ? (size_t)(tab - text.data) : text.size;
    const int a = tokenizer_encode(t, text.data, first, ids);
    ids[a] = t->eot;
    const int b = !tab ? 0 : tokenizer_encode(t, tab + 1, text.size - first - 1, ids + a + 1);
    *all = a + 1 + b;
    if (*all <= max) return *all;
    const int room = max_int(max - 1, 0), shorter = min_int(min_int(a, b), room / 2);
    const int keep_a = a <= b ? shorter : min_int(a, room - shorter),
              keep_b = a <= b ? min_int(b, room - shorter) : shorter;
    truncate_ids(ids + a + 1, b, keep_b, how);
    truncate_ids(ids, a, keep_a, how);
    memmove(ids + keep_a, ids + a, (keep_b + 1) * sizeof *ids);
    return min_int(max, keep_a + 1 + keep_b);       /* with a maximum of 0 not even the mark */
}

/* --- Checks, and the whole file --- */

/* Whether all bytes are UTF-8. */
static bool valid_utf8(struct Bytes text)
{
    uint32_t c;
    for (int length; text.size > 0; text.data += length, text.size -= length)
        if ((length = utf8_decode((const unsigned char *)text.data, text.size, &c)) <= 0)
            return false;
    return true;
}

/* What to do with bytes that are not UTF-8; the file is named once more. */
#define CONVERT "If the file is Windows text, convert it: iconv -f CP1252 -t UTF-8 '%s' >NEW"

/* Texts may be any bytes. Labels are printed and stored as names: they must be valid UTF-8 without
 * control characters, 1 to 200 bytes. */
static bool check_label(struct Reader *r, struct Bytes label)
{
    char printed[MAX_LABEL_BYTES];              /* as read_label_names will read it */
    if (label.size == 0) return bad_record(r, "the label is empty");
    if (label.size > MAX_LABEL_BYTES)
        return bad_record(r, "the label has %zu bytes, more than %d; is --label-column right?",
                          label.size, MAX_LABEL_BYTES);
    if (!valid_utf8(label))
        return bad_record(r, "the label is not valid UTF-8. " CONVERT, r->path);
    memcpy(printed, label.data, label.size);
    make_harmless(printed, label.size, "");
    return !memcmp(printed, label.data, label.size)
        || bad_record(r, "the label holds a control character");
}

/* Decides how the file is laid out and moves to the first record. */
static void begin_reading(struct Reader *r)
{
    const struct Bytes all = {r->at, r->end - r->at};
    refuse_other_kinds(r->path, (const uint8_t *)all.data, all.size < 16 ? all.size : 16);
    if (begins_with(all, "\xEF\xBB\xBF")) r->at += 3;
    const char *begin = r->at;
    skip_blank_lines(r);
    if (r->at == r->end)
        die("%s: the file is empty. It needs a header line and labelled texts.", r->path);
    const char *cr = memchr(r->at, '\r', r->end - r->at);
    if (cr && cr + 1 < r->end && !memchr(r->at, '\n', r->end - r->at))
        die("%s: its lines end with CR alone, as on old Macs. Convert it: "
            "tr '\\r' '\\n' <'%s' >NEW", r->path, r->path);
    choose_format(r);
    const bool said_lines = r->wanted.format && !strcmp(r->wanted.format, "lines");
    if (r->format <= CSV || (r->format == LINES && !said_lines)) read_first_row(r);
    if (r->format == LINES) { r->at = begin; r->line = 1; }
    for (int which = 0; which < 2 && r->format > JSONL; which++) r->column[which] = which;
    r->decided.format = format_names[r->format];
}

/* Moves to the next record; false: there is none. Blank lines keep their place where texts alone
 * are wanted. A byte order mark, or a row that repeats the header, is left from files that were
 * put together. Objects may be members of an array. */
static bool next_record(struct Reader *r)
{
    for (;;) {
        if (!r->wanted.texts_only || r->format == JSONL) skip_blank_lines(r);
        if (begins_with((struct Bytes){r->at, r->end - r->at}, "\xEF\xBB\xBF")) r->at += 3;
        while (r->format == JSONL && r->at < r->end && *r->at && strchr("[,] \t\r\n", *r->at))
            advance(r, r->at + 1);
        if (r->at == r->end) return false;
        const char *next = r->at;
        const struct Bytes line = take_line(&next, r->end), header = r->header;
        if (!header.size || line.size != header.size || memcmp(line.data, header.data, line.size))
            return true;
        if (!r->repeated++) warn("%s:%d: repeats the header, left out.", r->path, r->line);
        advance(r, next);
    }
}

/* The example of the next record; false if it cannot be used. */
static bool read_example(struct Reader *r, struct Example *e)
{
    struct Bytes values[COLUMNS] = {{"", 0}, {"", 0}, {"", 0}};
    r->count = 0;
    r->begun = r->line;
    if (!(r->format == JSONL ? read_object : r->format <= CSV ? read_row : read_line)(r))
        return false;
    for (int which = 0; which < COLUMNS; which++)
        if (r->column[which] >= 0 && r->column[which] < r->count)
            values[which] = r->fields[r->column[which]];
    *e = (struct Example){values[TEXTS], values[LABELS], r->begun};
    if (r->column[PAIRS] >= 0) join_pair(e, values[PAIRS]);
    return r->wanted.texts_only || check_label(r, e->label);
}

/* All texts of a file, with their labels unless texts alone are wanted. Dies if a record cannot be
 * used, and says what is odd. */
static struct Examples read_examples(const char *path, struct Columns wanted)
{
    const struct Bytes file = read_input(path);
    struct Reader r = {.path = path, .at = file.data, .end = file.data + file.size, .line = 1,
                       .wanted = wanted, .column = {-1, -1, -1},
                       .fields = resize(NULL, 8 * sizeof *r.fields)};
    struct Examples all = {.path = path};
    int capacity = 0, invalid = 0, empty = 0;
    begin_reading(&r);
    while (next_record(&r)) {
        if (all.count == capacity)
            all.items = resize(all.items, (capacity = 2 * capacity + 64) * sizeof *all.items);
        struct Example *e = &all.items[all.count];
        if (!read_example(&r, e)) continue;
        all.count++;
        invalid += !valid_utf8(e->text);
        empty += e->text.size == 0;
    }
    if (r.bad)
        die("%s: %s cannot be used: %s%s. Correct the file.", path, counted(r.bad, "record"),
            r.problems.data, r.bad > 3 ? "; ..." : "");
    if (!all.count) die("%s: has a header but no examples. Add labelled texts.", path);
    if (r.empty && !wanted.texts_only)
        warn("%s: %s without any content left out.", path, counted(r.empty, "row"));
    if (empty)
        warn("%s: %d of %d texts are empty. All of them get the same answer.", path, empty,
             all.count);
    if (invalid)
        warn("%s: %d of %d texts are not valid UTF-8. " CONVERT, path, invalid, all.count, path);
    free(r.fields);
    all.columns = r.decided;
    return all;
}

/* --- Labels as classes --- */

/* A text and the number of what it belongs to, to be sorted. */
struct Numbered { struct Bytes text; int number; };

/* By their bytes; of two texts that begin alike, the shorter one is first. */
static int compare_texts(const void *a, const void *b)
{
    const struct Bytes x = ((const struct Numbered *)a)->text;
    const struct Bytes y = ((const struct Numbered *)b)->text;
    const int order = memcmp(x.data, y.data, x.size < y.size ? x.size : y.size);
    return order ? order : (x.size > y.size) - (x.size < y.size);
}

/* Equal texts stay in the order of their numbers. */
static int compare_numbered(const void *a, const void *b)
{
    const int x = ((const struct Numbered *)a)->number, y = ((const struct Numbered *)b)->number;
    const int order = compare_texts(a, b);
    return order ? order : (x > y) - (x < y);
}

/* Names that are numbers, by their values. */
static int compare_values(const void *a, const void *b)
{
    const char *s = *(char *const *)a, *t = *(char *const *)b;
    const double x = strtod(s, NULL), y = strtod(t, NULL);
    return x != y ? (x > y) - (x < y) : strcmp(s, t);
}

/* Whether two names are equal but for blanks and upper or lower case. */
static bool look_alike(const char *a, const char *b)
{
    for (;; a++, b++) {
        while (*a == ' ') a++;
        while (*b == ' ') b++;
        if (tolower((unsigned char)*a) != tolower((unsigned char)*b)) return false;
        if (!*a) return true;
    }
}

/* Every label once, in the order of their values if all are numbers, else of their bytes: class k
 * is names[k]. Dies on a single class; notes those that look alike. */
static char **class_names(const struct Examples *e, int *classes)
{
    enum { MAX_CLASSES = 1000 };
    struct Numbered *labels = resize(NULL, e->count * sizeof *labels);
    char **names = resize(NULL, MAX_CLASSES * sizeof *names);
    bool numbers = true;
    double x;
    int K = 0;
    for (int i = 0; i < e->count; i++) labels[i] = (struct Numbered){e->items[i].label, i};
    qsort(labels, e->count, sizeof *labels, compare_texts);
    for (int i = 0; i < e->count; i++) {
        if (i > 0 && !compare_texts(&labels[i], &labels[i - 1])) continue;
        if (K == MAX_CLASSES)
            die("%s: more than %d different labels. Is --label-column right?", e->path,
                MAX_CLASSES);
        names[K++] = text_of("%.*s", (int)labels[i].text.size, labels[i].text.data);
        numbers = numbers && parse_number(names[K - 1], "", NULL, &x);
    }
    free(labels);
    if (K == 1) die("%s: every label is \"%s\". Two classes are needed.", e->path, names[0]);
    if (numbers) qsort(names, K, sizeof *names, compare_values);
    for (int k = 0; k < K; k++)
        for (int j = 0; j < k; j++)
            if (look_alike(names[j], names[k]))
                warn("%s: labels \"%s\" and \"%s\" differ only by blanks or case. If they mean the "
                     "same, write them the same.", e->path, names[j], names[k]);
    *classes = K;
    return names;
}

/* "a, b, c": at most 20 names. */
static char *joined(char *const *names, int n)
{
    struct Buffer b = {0};
    for (int k = 0; k < n && k < 20; k++) append(&b, "%s%s", k ? ", " : "", names[k]);
    if (n > 20) append(&b, ", ... (%d in all)", n);
    return b.data;
}

/* The names of the classes, sorted for class_of. */
static struct Numbered *sorted_names(char *const *names, int classes)
{
    struct Numbered *sorted = resize(NULL, classes * sizeof *sorted);
    for (int k = 0; k < classes; k++)
        sorted[k] = (struct Numbered){{names[k], strlen(names[k])}, k};
    qsort(sorted, classes, sizeof *sorted, compare_texts);
    return sorted;
}

/* The class of a label, -1 if it is none of the names. */
static int class_of(struct Bytes label, const struct Numbered *sorted, int classes)
{
    const struct Numbered key = {label, 0};
    const struct Numbered *found = bsearch(&key, sorted, classes, sizeof key, compare_texts);
    return found ? found->number : -1;
}
/* Dies if labels are none of the names: counts them and shows the first three. A model has no
 * probability for such a label, so no score of these examples would mean anything. */
static void refuse_unknown_labels(const struct Examples *e, const struct Numbered *sorted,
                                  char *const *names, int classes)
{
    struct Buffer b = {0};
    int unknown = 0;
    for (const struct Example *x = e->items; x < e->items + e->count; x++)
        if (class_of(x->label, sorted, classes) < 0 && unknown++ < 3)
            append(&b, "%s\"%.*s\" (line %d)", b.size ? ", " : "", (int)x->label.size,
                   x->label.data, x->line);
    if (unknown)
        die("%s: %d of %d labels are not known to the model: %s%s. Its labels are: %s. Correct or "
            "remove those lines.", e->path, unknown, e->count, b.data, unknown > 3 ? ", ..." : "",
            joined(names, classes));
}

/* Appends the texts of e as tokens, with the classes of their labels. */
static void add_examples(struct Dataset *d, struct Tokenizer *tokenizer, const struct Examples *e,
                         char *const *names, int classes, struct Window w)
{
    struct Numbered *sorted = sorted_names(names, classes);
    refuse_unknown_labels(e, sorted, names, classes);
    for (int i = 0; i < e->count; i++)
        add_text(d, tokenizer, e->items[i].text, class_of(e->items[i].label, sorted, classes), w);
    free(sorted);
}

/* ============================================================================================= */
/* 8. Before and after the training                                                              */
/* ============================================================================================= */

/* Random streams of the seed. model_init uses the numbers from 0. */
enum { STREAM_SPLIT = 1 << 30, STREAM_ORDER, STREAM_MASKS, STREAM_SUBSET, STREAM_TEST };

/* --- Texts --- */

/* first (N): the position of the first text that is equal to each of N. They are those of train,
 * then those of val, in their order or in that of list (N). */
static int *find_repeats(const struct Examples *train, const struct Examples *val, const int *list)
{
    const int N = train->count + val->count;
    struct Numbered *texts = resize(NULL, N * sizeof *texts);
    int *first = resize(NULL, N * sizeof *first);
    for (int i = 0; i < N; i++) {
        const int k = list ? list[i] : i, n = train->count;
        texts[i] = (struct Numbered){(k < n ? &train->items[k] : &val->items[k - n])->text, i};
    }
    qsort(texts, N, sizeof *texts, compare_numbered);
    for (int i = 0; i < N; i++)
        first[texts[i].number] = i > 0 && !compare_texts(&texts[i], &texts[i - 1])
                               ? first[texts[i - 1].number] : texts[i].number;
    free(texts);
    return first;
}

/* Of equal texts in train the first one stays, and none that is in val, too. For the line that says
 * so, why: what they are dropped for; where: what val is. */
static void drop_repeats(struct Examples *train, const struct Examples *val, const char *why,
                         const char *where)
{
    const int all = train->count;
    int *first = find_repeats(train, val, NULL), kept = 0;
    for (int i = 0; i < val->count; i++) first[first[all + i]] = -1;
    for (int i = 0; i < all; i++) if (first[i] == i) train->items[kept++] = train->items[i];
    train->count = kept;
    if (kept < all)
        progress(true, "%s: %d of %d texts of %s were repeated or in %s; %d are left", why,
                 all - kept, all, train->path, where, kept);
    if (!kept) die("%s: every text is in %s, too. Give other texts.", train->path, where);
    free(first);
}

/* Warns of texts that occur more than once: one line for those that are trained on, one for those
 * that are validated on, too. */
static void report_repeats(const struct Task *t, const struct Examples *train,
                           const struct Examples *val)
{
    const int n = t->train_count, *list = t->train, *labels = t->data.labels;
    int *first = find_repeats(train, val, list), same[2] = {0}, other[2] = {0};
    for (int i = 0; i < t->data.count; i++) {
        if (first[i] == i || first[i] >= n) continue;
        same[i >= n]++;
        other[i >= n] += labels[list[i]] != labels[list[first[i]]];
    }
    if (same[0])
        warn("%s: %d of %d texts to train on repeat others, %d with another label. --dedupe drops "
             "them.", train->path, same[0], n, other[0]);
    if (same[1])
        warn("%d of %d validation texts are trained on, too, %d with another label: their scores "
             "flatter. --dedupe drops them from training.", same[1], t->val_count, other[1]);
    free(first);
}

/* Splits N examples into training and validation, class by class: a part of each class is set
 * aside, at least one example, but never the only one. list (N) receives the training examples in
 * random order, then the others. Returns the number of training examples. */
static int split_stratified(int *list, const int *labels, int N, int classes, double part,
                            struct Random random)
{
    int *left = resize(NULL, classes * sizeof *left);       /* (classes): still to be set aside */
    int *order = resize(NULL, N * sizeof *order), train = 0, aside = N;
    memset(left, 0, classes * sizeof *left);
    for (int i = 0; i < N; i++) { order[i] = i; left[labels[i]]++; }
    for (int k = 0; k < classes; k++)
        left[k] = min_int(max_int((int)(part * left[k] + 0.5), 1), max_int(left[k] - 1, 0));
    shuffle(order, N, &random);
    for (int i = 0; i < N; i++)
        if (left[labels[order[i]]]-- > 0) list[--aside] = order[i]; else list[train++] = order[i];
    free(left);
    free(order);
    return train;
}

/* A hash of the examples from .. to - 1, as tokens and labels. */
static uint64_t hash_texts(const struct Dataset *d, int from, int to)
{
    const size_t n = to - from, *starts = d->starts + from;
    return mix64(checksum(d->tokens + starts[0], (starts[n] - starts[0]) * sizeof *d->tokens)
                 ^ mix64(checksum(starts, (n + 1) * sizeof *starts)
                         ^ checksum(d->labels + from, n * sizeof *d->labels)));
}

/* The texts of t->train from train_count on, up to `all`, are for validation. */
static void take_validation(struct Task *t, int all)
{
    t->val = t->train + t->train_count;
    t->val_count = all - t->train_count;
    t->truth = resize(NULL, (t->val_count + 1) * sizeof *t->truth);
    for (int i = 0; i < t->val_count; i++) t->truth[i] = t->data.labels[t->val[i]];
}

/* Reads and tokenizes the labelled texts and splits them into training and validation, unless --val
 * names a file of its own. Returns the names of the classes. */
static char **load_data(struct Task *t, struct Window w, int *classes)
{
    struct Settings *s = &t->set;
    struct Examples train = read_examples(s->train, s->columns), val = {0};
    t->layout = train.columns;
    if (s->val && same_file(s->train, s->val))
        warn("--val %s: is the same file as --train, so its scores tell nothing about new texts. "
             "Name another, or none.", s->val);
    if (s->val) val = read_examples(s->val, s->columns);
    if (s->dedupe) drop_repeats(&train, &val, "--dedupe", "validation");
    char **names = class_names(&train, classes);
    add_examples(&t->data, t->tokenizer, &train, names, *classes, w);
    t->train_count = t->data.count;
    add_examples(&t->data, t->tokenizer, &val, names, *classes, w);
    const int all = t->data.count;
    t->train = resize(NULL, all * sizeof *t->train);
    for (int i = 0; i < all; i++) t->train[i] = i;
    if (!s->val)
        t->train_count = split_stratified(t->train, t->data.labels, all, *classes, s->val_part,
                                          random_stream(s->seed, STREAM_SPLIT));
    take_validation(t, all);
    t->train_hash = hash_texts(&t->data, 0, train.count);
    t->val_hash = hash_texts(&t->data, train.count, all);
    if (!t->val_count)
        die("%s: no class has two examples, so none can be set aside. Give --val.", s->train);
    report_repeats(t, &train, &val);
    free(train.items);
    free(val.items);
    return names;
}

/* --- What the command line left open --- */

enum { MIN_UPDATES = 200, MIN_EPOCHS = 3, MAX_VALIDATIONS = 20, FEW_TEXTS = 100,
       MAX_STEPS = 1000000000 };

/* Sets what the command line left open. The learning rate falls with the size of the model: 3e-4
 * for 10 million pretrained weights, 9e-5 for GPT-2's 124 million, 1e-3 for the smallest. Random
 * weights bear a higher rate. Few labels need a number of updates rather than of epochs. Validation
 * comes at the end of epochs, but if --steps says how long to train, after every 20th part. Few
 * validation texts cannot tell which epoch is best: the mean of the last weights is safer. */
static void choose_defaults(struct Settings *s, const struct Model *model, int examples,
                            int val_texts)
{
    if (s->kind == PROBE) return;
    const double large = sqrt(1e7 / model->parameter_count);
    if (s->lr == 0) s->lr = fmin(1e-3, (s->kind == SCRATCH ? 1e-3 : 3e-4) * large);
    if (s->head_lr_ratio == 0) s->head_lr_ratio = s->kind == SCRATCH ? 1 : 10;
    if (s->dropout < 0) s->dropout = s->kind == FULL || s->kind == SCRATCH ? 0.1 : 0;
    if (s->average < 0) s->average = val_texts < FEW_TEXTS ? 0.1 : 0;
    const int updates = ceil_div(examples, s->batch);
    if (s->epochs == 0 && s->steps == 0)
        s->epochs = max_int(MIN_EPOCHS, ceil_div(MIN_UPDATES, updates));
    if ((int64_t)s->epochs * updates > MAX_STEPS)
        die_usage("--epochs %d: are more than %d updates. Choose fewer.", s->epochs, MAX_STEPS);
    if (s->epochs) s->steps = s->epochs * updates;
    s->every = s->epochs ? updates * ceil_div(s->epochs, MAX_VALIDATIONS)
                         : ceil_div(s->steps, MAX_VALIDATIONS);
}

/* How many training examples each class has (K). */
static int *class_sizes(const struct Task *t)
{
    const int K = t->model.config.labels;
    int *sizes = resize(NULL, K * sizeof *sizes);
    memset(sizes, 0, K * sizeof *sizes);
    for (int i = 0; i < t->train_count; i++) sizes[t->data.labels[t->train[i]]]++;
    return sizes;
}

/* N / (K n_k) for each class k of n_k training examples: rare classes weigh as much as common ones,
 * and the average over the examples is 1. NULL unless --class-weights is auto. */
static real *weigh_classes(const struct Task *t)
{
    const int K = t->model.config.labels;
    if (strcmp(t->set.class_weights, "auto")) return NULL;
    real *weights = resize(NULL, K * sizeof *weights);
    int *sizes = class_sizes(t);
    for (int k = 0; k < K; k++)
        weights[k] = sizes[k] ? (real)t->train_count / ((real)K * sizes[k]) : 1;
    free(sizes);
    return weights;
}

/* Warns of a label that most training texts have: always predicting it costs little. */
static void warn_of_imbalance(const struct Task *t)
{
    int *sizes = class_sizes(t), top = 0;
    for (int k = 1; k < t->model.config.labels; k++) if (sizes[k] > sizes[top]) top = k;
    const double part = (double)sizes[top] / t->train_count;
    if (part > 0.8 && strcmp(t->set.class_weights, "auto"))
        warn("%s: %.1f%% of the training texts have the label \"%s\". --class-weights auto makes "
             "rare labels count as much.", t->set.train, 100 * part,
             t->model.config.label_names[top]);
    free(sizes);
}

/* --- Memory --- */

/* The maximum number of rows of a batch: the longest text must fit. */
static int rows_needed(const struct Task *t) { return max_int(BATCH_ROWS, t->data.longest); }

/* Prints what is about to be trained, and how much memory it takes. */
static void announce(const struct Task *t, size_t learn, size_t bytes)
{
    const struct Settings *s = &t->set;
    const struct Config *c = &t->model.config;
    progress(true, "model: %d layers, %d heads, %d channels, context %d, vocabulary %d; labels: %s",
             c->layers, c->heads, c->channels, c->context, c->vocabulary,
             joined(c->label_names, c->labels));
    progress(true, "data: %d texts to train on, %d for validation%s; the longest has %d tokens, "
             "%d were truncated (%s kept)", t->train_count, t->val_count,
             s->val ? "" : " (set aside, in proportion to the labels)", t->data.longest,
             t->data.truncated, s->truncate);
    progress(true, "tune %s: %zu of %zu parameters are trained; memory %.1f MB", s->tune, learn,
             t->model.parameter_count, bytes / 1e6);
    if (s->kind == PROBE) return;
    if (t->runner.frozen)
        progress(true, "%d of %d blocks are frozen and read each text %s", t->runner.frozen,
                 c->layers, t->runner.cache ? "once: what they give is kept"
                                            : "for every update: memory is short");
    progress(true, "%s, %d to an epoch  batch %d  lr %.3g, head x%g  warmup %g  "
             "dropout %g  weight decay %g", counted(s->steps, "update"),
             ceil_div(t->train_count, s->batch), s->batch, s->lr, s->head_lr_ratio, s->warmup,
             s->dropout, s->weight_decay);
    if (s->average > 0)
        progress(true, "the model will be the mean of the last %.0f updates%s",
                 s->average * s->steps, t->val_count < FEW_TEXTS
                 ? ": validation is too small to choose an epoch by" : "");
}

/* Allocates all memory and runs what is frozen. Returns memory for the best weights, which the
 * probe does not need. */
static real *prepare(struct Task *t)
{
    const struct Settings *s = &t->set;
    const struct Config *c = &t->model.config;
    const bool probe = s->kind == PROBE;
    size_t learn = 0, bytes = t->model.parameter_count * sizeof(real) * (probe ? 1 : 5);
    if (!probe) choose_weights(t);
    for (int i = 0; i < t->model.tensor_count; i++) {
        const struct Tensor *p = &t->model.tensors[i];
        if (probe ? !strcmp(p->name, "score.weight") : p->lr_scale > 0) learn += p->size;
    }
    runner_create(&t->runner, &t->model, rows_needed(t), probe ? WORK_EVAL : WORK_TRAIN);
    t->order = random_stream(s->seed, STREAM_ORDER);
    t->masks = random_stream(s->seed, STREAM_MASKS);
    t->class_weights = weigh_classes(t);
    t->probabilities = allocate_zeroed((size_t)t->val_count * c->labels * sizeof(real));
    t->confusion = allocate_zeroed((size_t)c->labels * c->labels * sizeof(int));
    t->runner.frozen = s->kind == LAST ? t->model.first_layer : 0;
    if (t->runner.frozen)
        fill_cache(&t->runner, &t->data, t->train, t->train_count + t->val_count);
    bytes += t->runner.ws.bytes + t->data.token_capacity * sizeof(int) + cache_bytes(&t->runner);
    if (probe)
        bytes += t->data.count * (c->channels * sizeof(real)
                                  + (3 * c->labels + 1) * sizeof(double));
    if (!t->quiet) announce(t, learn, bytes);
    return probe ? NULL : allocate_zeroed(t->model.parameter_count * sizeof(real));
}

/* Frees all but the texts and the tokenizer. */
static void task_free(struct Task *t)
{
    const int K = t->model.config.labels;
    release(t->probabilities, (size_t)t->val_count * K * sizeof(real));
    release(t->confusion, (size_t)K * K * sizeof(int));
    free_cache(&t->runner);
    runner_free(&t->runner);
    model_free(&t->model);
    free(t->train);
    free(t->truth);
    free(t->class_weights);
}

/* --- Lines of progress, and log.tsv --- */

static const char steps_header[] =
    "epoch\tstep\ttrain_loss\tval_loss\tval_accuracy\tnorm\tseconds\n",
    probe_header[] = "l2\tevaluations\ttrain_loss\tval_loss\tval_accuracy\tseconds\n";

/* Begins log.tsv, whose last column depends on time. state: of a resumed training, or NULL. */
static void open_log(struct Task *t, const char *header, const struct Metadata *state)
{
    char *path = text_of("%s/log.tsv", t->set.out);
    free(journal_open(&t->log, path, header, 1, state));
    free(path);
}

static void show_step(struct Task *t, const struct TrainState *run, double loss, double lr)
{
    const int step = run->step, steps = t->set.steps;
    if (t->quiet || !line_is_due(&t->runner.shown)) return;
    progress(false, "epoch %d/%d  step %d/%d  loss %.4f  lr %.1e  norm %.2f  %s left",
             epoch_of(t, step), epoch_of(t, steps), step, steps, loss, lr, run->norm,
             duration((seconds() - run->start) * (steps - step) / step));
}

static void report_validation(struct Task *t, const struct TrainState *run, struct Scores now,
                              bool better)
{
    const int epoch = epoch_of(t, run->step);
    const double spent = seconds() - run->start, train_loss = run->loss / run->examples;
    if (t->quiet) return;
    journal_add(&t->log, "%d\t%d\t%.6f\t%.6f\t%.6f\t%.4f\t%.2f\n", epoch, run->step, train_loss,
                now.loss, now.accuracy, run->norm, spent);
    progress(true, "epoch %d/%d  train loss %.4f  val loss %.4f  val accuracy %.4f  %.1f s%s",
             epoch, epoch_of(t, t->set.steps), train_loss, now.loss, now.accuracy, spent,
             better ? "  best" : "");
}

static void die_not_finite(const struct Task *t, const int *list, int count, int64_t step)
{
    const struct Dataset *d = &t->data;
    struct Buffer lines = {0}, bytes = {0};
    if (t->quiet)
        die("step %lld of a training: the gradient is not finite. Lower the lr of its method (%g).",
            (long long)step, t->set.lr);
    for (int i = 0; i < count; i++) {
        bytes.size = 0;
        append_decoded(&bytes, t->tokenizer, d->tokens + d->starts[list[i]], length_of(d, list[i]));
        append_readable(&lines, (uint8_t *)bytes.data, (int)bytes.size);
        append(&lines, "\n");
    }
    char *path = text_of("%s/step_%lld.txt", t->set.out, (long long)step);
    write_note(path, lines.data, lines.size);
    die("step %lld: the gradient is not finite. %s holds its texts. Start again with --overwrite "
        "and a lower --lr than %g.", (long long)step, path, t->set.lr);
}

/* --- The classifier, and the state of its training --- */

/* What the result depends on: the options, and hashes of what was read. */
static void describe_training(struct Metadata *meta, const struct Task *t)
{
    struct Buffer labels = {0};
    for (int k = 0; k < t->model.config.labels; k++) {
        append(&labels, k ? ", " : "[");
        append_json_string(&labels, t->model.config.label_names[k]);
    }
    tokenizer_describe(meta, t->tokenizer);
    metadata_set(meta, "model_hash", "%s", hash_text(t->source_hash));
    metadata_set(meta, "train_hash", "%s", hash_text(t->train_hash));
    metadata_set(meta, "val_hash", "%s", hash_text(t->val_hash));
    metadata_set(meta, "labels", "%s]", labels.data);
    describe_options(meta, t->options, "tune");
    free(labels.data);
}

/* Dies if a training that is to be resumed read something else than this one. */
static void compare_inputs(const struct Task *t, const struct Metadata *old)
{
    static const char *const names[] = {"tokenizer_hash", "model_hash", "train_hash", "val_hash",
                                        "labels"};
    struct Metadata now = {0};
    describe_training(&now, t);
    for (int i = 0; i < COUNT(names); i++) {
        const char *was = metadata_get(old, names[i]), *is = metadata_get(&now, names[i]);
        if (!was || strcmp(was, is))
            die("--resume: the training in %s has %s %s, this one %s. Choose another --out.",
                t->set.out, names[i], was ? was : "(none)", is);
    }
    metadata_free(&now);
}

static char *state_path(const struct Settings *s)
{
    return text_of("%s/state.safetensors", s->out);
}

/* Replaces what --out holds by a classifier with these weights, its tokenizer and its log, as one.
 * meta has how the weights were found, and receives the rest. */
static void save_classifier(const struct Task *t, real *weights, struct Metadata *meta,
                            struct Scores val)
{
    const struct Columns *columns = &t->layout;
    struct Model model = t->model;
    model.weights = weights;
    describe_training(meta, t);
    metadata_set(meta, "data.format", "%s", columns->format);
    if (columns->header) metadata_set(meta, "data.header", "%s", columns->header);
    for (int i = 0; i < COLUMNS; i++)
        if (columns->names[i])
            metadata_set(meta, brief("data.%s", column_words[i]), "%s", columns->names[i]);
    metadata_set(meta, "train_examples", "%d", t->train_count);
    metadata_set(meta, "val_examples", "%d", t->val_count);
    metadata_set(meta, "val_accuracy", "%.6f", val.accuracy);
    metadata_set(meta, "val_macro_f1", "%.6f", val.macro_f1);
    metadata_set(meta, "val_loss", "%.6f", val.loss);
    metadata_set(meta, "val_ece", "%.6f", val.ece);
    tokenizer_stage(t->tokenizer, t->set.out);
    stage_model(t->set.out, &model, meta, t->tokenizer->eot);
    commit_outputs();
}

static void save_best(struct Task *t, const struct TrainState *run)
{
    struct Metadata meta = {0};
    metadata_set(&meta, "best_epoch", "%d", epoch_of(t, run->best_step));
    metadata_set(&meta, "best_step", "%d", run->best_step);
    metadata_set(&meta, "weights", "best on validation so far");
    save_classifier(t, run->best, &meta, run->best_scores);
    metadata_free(&meta);
}

/* Every minute, in a fiftieth of the time at most. */
static bool save_is_due(const struct TrainState *run)
{
    return seconds() - run->saved > fmax(60, 50 * run->saving);
}

/* The state has all that resume_training needs. The order of the texts follows from the step. */
static void save_training(struct Task *t, struct TrainState *run)
{
    struct Metadata meta = {0};
    const double start = seconds();
    const struct Scores *best = &run->best_scores;
    describe_training(&meta, t);
    journal_describe(&meta, &t->log);
    metadata_set(&meta, "position",
                 "%d %d %d %d %d %llu %.17g %.17g %.17g %.17g %.17g %.17g %.2f", run->step,
                 run->best_step, run->since_best, run->examples, run->averaged,
                 (unsigned long long)t->masks.counter, run->loss, run->norm, best->accuracy,
                 best->macro_f1, best->loss, best->ece, start - run->start);
    stage_state(state_path(&t->set), &t->model, run->best, run->mean, &meta);
    commit_outputs();
    metadata_free(&meta);
    run->saved = seconds();
    run->saving = run->saved - start;
}

/* Goes to the place at which save_training was called. An earlier process may have ended between
 * the state and the best classifier, so that is written again. */
static void resume_training(struct Task *t, struct TrainState *run)
{
    struct Metadata meta;
    struct Scores *best = &run->best_scores;
    char *path = state_path(&t->set);
    unsigned long long masks;
    double spent;
    load_state(path, &t->model, run->best, run->mean, &meta);
    const char *position = metadata_get(&meta, "position");
    if (!position
        || sscanf(position, "%d %d %d %d %d %llu %lf %lf %lf %lf %lf %lf %lf", &run->step,
                  &run->best_step, &run->since_best, &run->examples, &run->averaged, &masks,
                  &run->loss, &run->norm, &best->accuracy, &best->macro_f1, &best->loss,
                  &best->ece, &spent) != 13
        || run->step < 0 || run->step >= t->set.steps || run->averaged < 0
        || (run->averaged && !run->mean))
        die("%s: does not say where the training is. Start it again with --overwrite.", path);
    for (int i = epoch_of(t, run->step); i > 0; i--) shuffle(t->train, t->train_count, &t->order);
    t->masks.counter = masks;
    open_log(t, steps_header, &meta);
    run->start -= spent;
    run->saved = seconds();
    if (run->best_step) save_best(t, run);
    else commit_outputs();
    progress(true, "resumed after step %d/%d", run->step, t->set.steps);
    metadata_free(&meta);
    free(path);
}

static void begin_state(struct Task *t, struct TrainState *run)
{
    if (t->quiet) return;
    if (t->resumes) { resume_training(t, run); return; }
    open_log(t, steps_header, NULL);
    save_training(t, run);
}

/* Loads the saved classifier as a user will, and dies unless it predicts the same bits. */
static void check_reloaded(struct Task *t)
{
    const size_t bytes = (size_t)t->val_count * t->model.config.labels * sizeof(real);
    struct Model again;
    struct Metadata meta;
    real *before = resize(NULL, bytes);
    memcpy(before, t->probabilities, bytes);
    load_model(&again, t->set.out, &meta);
    tokenizer_of_model(t->set.out, &again, &meta);
    const int frozen = t->runner.frozen;
    t->runner.model = &again;
    t->runner.frozen = 0;               /* nothing that was kept */
    validate(t);
    t->runner.model = &t->model;
    t->runner.frozen = frozen;
    if (memcmp(before, t->probabilities, bytes))
        die("%s: the saved model predicts otherwise than the trained one. Do not trust its disk.",
            t->set.out);
    printf("reloaded %s: the predictions on %s for validation are the same to the bit\n",
           t->set.out, counted(t->val_count, "text"));
    model_free(&again);
    free(before);
}

/* ============================================================================================= */
/* 9. Commands: train, eval, predict                                                             */
/* ============================================================================================= */

/* --- train --- */

static const struct Settings DEFAULT_SETTINGS = {
    .tune = "full", .truncate = "tail", .class_weights = "none", .precision = "fp32", .batch = 32,
    .seed = 1, .dropout = -1, .weight_decay = 0.01, .warmup = 0.1, .val_part = 0.1,
    .layer_decay = 1, .average = -1,
};

static const char data_meaning[] = "labelled texts: TSV, CSV, JSON or fastText's format";

/* The rows of `train`, of which the other commands take what they share. The caller frees them. */
static struct Option *tune_options(struct Settings *s)
{
    static const char steps_only[] = "with tune probe";
    const struct Option rows[] = {
        {"model", "directory of the pretrained model", TEXT, &s->model, .effect = EXTENDS},
        {"train", data_meaning, TEXT, &s->train, .effect = EXTENDS},
        {"val", "labelled texts for validation; without: a part of --train", TEXT, &s->val,
         .effect = EXTENDS},
        {"val-part", "how much of each class is set aside when --val is not given", REAL_NUMBER,
         &s->val_part, 0.001, 0.9, .effect = DEFINES, .idle = "with val"},
        {"out", "directory of the classifier", TEXT, &s->out, .required = true},
        {"tune", "probe, last:K, full or scratch", TEXT, &s->tune, .effect = DEFINES},
        {"epochs", "0: 3, but at least 200 updates", INTEGER, &s->epochs, 0, 1e6,
         .effect = DEFINES, .idle = steps_only},
        {"steps", "updates, instead of --epochs", INTEGER, &s->steps, 0, MAX_STEPS,
         .effect = DEFINES, .idle = steps_only},
        {"patience", "stop when validation was so many times no better; 0: never", INTEGER,
         &s->patience, 0, 1e6, .effect = DEFINES, .idle = steps_only},
        {"batch", "texts of an update", INTEGER, &s->batch, 1, 1e6, .effect = DEFINES,
         .idle = steps_only},
        {"lr", "0: 3e-4 for 10M parameters (scratch 1e-3)", REAL_NUMBER, &s->lr, 0, 10,
         .effect = DEFINES, .idle = steps_only},
        {"head-lr-ratio", "the head learns so many times faster; 0: 10, scratch 1", REAL_NUMBER,
         &s->head_lr_ratio, 0, 1e4, .effect = DEFINES, .idle = steps_only},
        {"layer-decay", "a block learns so many times as fast as the one above", REAL_NUMBER,
         &s->layer_decay, 0.01, 1, .effect = DEFINES, .idle = "with tune probe|with tune last:1"},
        {"l2sp", "how strongly weights are pulled back to the pretrained ones", REAL_NUMBER,
         &s->l2sp, 0, 1e30, .effect = DEFINES, .idle = steps_only},
        {"lm-coef", "adds the language model's loss on the texts, so many times", REAL_NUMBER,
         &s->lm_coef, 0, 100, .effect = DEFINES, .idle = steps_only},
        {"average", "end with the mean weights of this last part of the updates; 0: the best "
         "epoch's; -1: 0.1 for fewer than 100 texts of validation", REAL_NUMBER, &s->average, -1, 1,
         .effect = DEFINES, .idle = steps_only},
        {"class-weights", "auto: rare classes count as much as common ones", CHOICE,
         &s->class_weights, .choices = "none|auto", .effect = DEFINES},
        {"calibrate", "fit a temperature on validation, so that probabilities mean what they say",
         FLAG, &s->calibrate, .effect = DEFINES},
        {"warmup", "part of the updates in which the rate rises; then a cosine, 0 after the last",
         REAL_NUMBER, &s->warmup, 0, 1, .effect = DEFINES, .idle = steps_only},
        {"weight-decay", "of matrices", REAL_NUMBER, &s->weight_decay, 0, 10, .effect = DEFINES,
         .idle = steps_only},
        {"dropout", "-1: 0.1 for full and scratch, else 0", REAL_NUMBER, &s->dropout, -1, 0.9,
         .effect = DEFINES, .idle = steps_only},
        {"max-tokens", "longer texts are truncated; 0: the model's context", INTEGER,
         &s->max_tokens, 0, 1e6, .effect = DEFINES},
        {"truncate", "which part of a long text is read", CHOICE, &s->truncate,
         .choices = "head|tail|both", .effect = DEFINES},
        {"text-column", "a number: its position; a name: as in the header; else text, sentence, "
         "review ...", TEXT, &s->columns.names[TEXTS], .effect = DEFINES},
        {"label-column", "the same; else label, sentiment, class, category ...", TEXT,
         &s->columns.names[LABELS], .effect = DEFINES},
        {"pair-column", "of a second text that belongs to the first; it is read after it", TEXT,
         &s->columns.names[PAIRS], .effect = DEFINES},
        {"header", "whether the first row has the columns' names; else it is seen", CHOICE,
         &s->columns.header, .choices = "auto|yes|no", .effect = DEFINES},
        {"format", "of the data; else it is seen, and the other files of a classifier are like the "
         "training's", CHOICE, &s->columns.format, .choices = FORMAT_CHOICES, .effect = DEFINES},
        {"dedupe", "drop texts of --train that are repeated or in --val", FLAG, &s->dedupe,
         .effect = DEFINES},
        {"seed", "of the head, the order, dropout and the split", LONG, &s->seed, 0, 9e15,
         .effect = DEFINES},
        PRECISION_OPTION(&s->precision),
        THREADS_OPTION(&s->threads),
        {"resume", "go on with the training in --out, with its options; without one, start", FLAG,
         &s->resume},
        {"overwrite", "replace what --out holds", FLAG, &s->overwrite},
        {0}};
    return memcpy(resize(NULL, sizeof rows), rows, sizeof rows);
}

/* One of these rows, for the table of another command. */
static struct Option tune_option(struct Settings *s, const char *name)
{
    struct Option *table = tune_options(s), row = *find_option(table, name);
    free(table);
    row.idle = NULL;            /* it names rows that may not be there */
    return row;
}

/* Reads s->tune into s->kind and s->last. For the message, option: where it stands; others: what
 * else may stand there. */
static void parse_tune(const char *option, const char *others, struct Settings *s)
{
    char rest;
    s->kind = PROBE;
    if (!strcmp(s->tune, "full")) s->kind = FULL;
    else if (!strcmp(s->tune, "scratch")) s->kind = SCRATCH;
    else if (sscanf(s->tune, "last:%6d%c", &s->last, &rest) == 1 && s->last >= 1) s->kind = LAST;
    else if (strcmp(s->tune, "probe"))
        die_usage("%s %s: not one of %sprobe, last:K (as last:2), full, scratch.", option, s->tune,
                  others);
}

/* Dies of options that no range of a row excludes. */
static void check_settings(const struct Settings *s)
{
    if (s->epochs && s->steps && !s->resume)
        die_usage("--steps %d: --epochs %d says otherwise how long to train. Give one of them.",
                  s->steps, s->epochs);
}

/* Keeps other programs out of --out. Refuses to replace an earlier run without --overwrite; with
 * --resume takes the options from it. Returns whether it has ended. Where nothing is, it starts. */
static bool open_run(struct Task *t, struct Metadata *old)
{
    static const char *const files[] = {"model.safetensors", "state.safetensors", "log.tsv",
                                        "config.json", NULL};
    const struct Settings *s = &t->set;
    char *state = state_path(s), *model = text_of("%s/model.safetensors", s->out);
    lock_directory(s->out);
    if (s->resume && s->overwrite) die_usage("--resume and --overwrite: choose one of them.");
    if (!s->resume && !s->overwrite)
        refuse_existing(s->out, files, "Give --resume, --overwrite or another --out.");
    t->resumes = s->resume && file_exists(state);
    const bool ended = s->resume && !t->resumes && file_exists(model);
    const char *run = ended ? model : state;
    if (t->resumes || ended) {
        load_metadata(run, old);
        if (!metadata_get(old, "train_hash"))
            die("%s: is not from a training that can be resumed. Choose another --out.", run);
        resume_options(t->options, old, "tune", s->out);
    } else if (s->resume)
        progress(true, "nothing to resume in %s: the training starts", s->out);
    if (!s->model || !s->train)
        die_usage("--%s: must be given. --help explains it.", s->model ? "train" : "model");
    if (same_file(s->model, s->out))
        die_usage("--out %s: is the pretrained model. Name another directory.", s->out);
    free(state);
    free(model);
    return ended;
}

/* Reads the pretrained model and its tokenizer, and checks what of the options depends on them. */
static void load_base(struct Task *t, struct Model *base, struct Metadata *meta)
{
    struct Settings *s = &t->set;
    load_model(base, s->model, meta);
    t->tokenizer = tokenizer_of_model(s->model, base, meta);
    t->source = base->weights;
    if (s->max_tokens == 0) s->max_tokens = base->config.context;
    if (s->max_tokens > base->config.context)
        die_usage("--max-tokens %d: the model's context is %d. Choose no more.", s->max_tokens,
                  base->config.context);
    if (s->kind == LAST && s->last > base->config.layers)
        die_usage("--tune last:%d: the model has %d blocks. Choose no more.", s->last,
                  base->config.layers);
}

/* Warns if always predicting the commonest label of validation would do as well. */
static void warn_of_failure(const struct Settings *s, double accuracy, double majority)
{
    static const char *const advice[] = {
        [PROBE] = "--tune last:1 or full",
        [LAST] = "more blocks, a higher --lr, more --steps",
        [FULL] = "another --lr, more --steps",
        [SCRATCH] = "--tune full, which starts from what the model has learned,",
    };
    if (majority == 1)
        warn("all validation texts have the same label, so their accuracy tells little. Give --val "
             "texts of every label.");
    else if (accuracy <= majority)
        warn("validation accuracy %.4f is no better than always the commonest label (%.4f): "
             "nothing was learnt. Try %s or more labels.", accuracy, majority,
             advice[s->kind]);
}

/* Everything that `train` does, from the pretrained model to the classifier in --out. old: what
 * --resume found. Returns the exit status. */
static int train(struct Task *t, const struct Metadata *old, bool ended)
{
    struct Settings *s = &t->set;
    struct Model base;
    struct Metadata base_meta, meta = {0};
    int classes;
    load_base(t, &base, &base_meta);
    if (!s->overwrite) refuse_other_tokenizer(s->out, t->tokenizer);
    t->source_hash = checksum(base.weights, base.parameter_count * sizeof *base.weights);
    const struct Window window = {s->max_tokens, s->truncate, s->columns.names[PAIRS] != NULL};
    char **names = load_data(t, window, &classes);
    start_model(t, &base, names, classes);
    choose_defaults(s, &t->model, t->train_count, t->val_count);
    t->tokenizer->usage.max_length = s->max_tokens;
    t->tokenizer->usage.keeps_tail = strcmp(s->truncate, "head") != 0;
    if (t->resumes || ended) compare_inputs(t, old);
    if (ended) {
        progress(true, "the training in %s is finished", s->out);
        return 0;
    }
    warn_of_imbalance(t);
    real *best = prepare(t);
    if (s->kind == PROBE) {
        open_log(t, probe_header, NULL);
        train_probe(t, &meta);
    } else {
        stop_between_steps();
        if (!train_steps(t, best, &meta)) return stopped_status();
    }
    if (s->calibrate) calibrate(t, &meta);

    const struct Scores val = validate(t);
    const double majority = majority_rate(t->confusion, t->val_count, classes);
    warn_of_failure(s, val.accuracy, majority);
    if (!strcmp(s->truncate, "both") && t->data.truncated)
        warn("--truncate both: Hugging Face's tokenizers cannot do this; there, only the tail of "
             "longer texts is read.");
    save_classifier(t, t->model.weights, &meta, val);
    remove_file(state_path(s));     /* --resume then finds that the training is finished */
    printf("val_accuracy %.6f\nval_macro_f1 %.6f\nval_loss %.6f\nval_ece %.6f\nmajority %.6f\n",
           val.accuracy, val.macro_f1, val.loss, val.ece, majority);
    check_reloaded(t);
    task_free(t);
    model_free(&base);
    return 0;
}

/* The options of `train`, checked before anything is read. */
static const char train_usage[] =
    "finetune_cls train --model DIR --train FILE --out DIR [--tune probe|last:K|full|scratch]\n"
    "Makes a classifier of a pretrained model. --tune: probe fits a new last layer on frozen\n"
    "features, in one pass; last:K trains the last K blocks as well; full everything;\n"
    "scratch everything from random weights. Few labels need updates rather than epochs:\n"
    "by default there are 3 epochs or 200 updates, whichever is more. At most 20 epochs are\n"
    "looked at. The best on validation is kept, or the mean of the last weights (--average).";

static int command_train(int argc, char **argv)
{
    struct Task t = {.set = DEFAULT_SETTINGS};
    struct Settings *s = &t.set;
    struct Option *options = tune_options(s);
    struct Metadata old = {0};
    t.options = options;
    refuse_arguments(read_options(argc, argv, options, train_usage), argv);
    check_settings(s);
    parse_tune("--tune", "", s);
    begin_training();
    const bool ended = open_run(&t, &old);
    parse_tune("--tune", "", s);            /* as the run that goes on has it */
    warn_idle(options);
    if (s->kind == SCRATCH && s->l2sp > 0)
        warn("--l2sp: with --tune scratch it pulls random weights to the pretrained ones.");
    set_threads(s->threads);
    set_precision(s->precision);
    return train(&t, &old, ended);
}

/* --- eval and predict --- */

/* A classifier from its directory, with the part of a text that it reads. */
struct Classifier {
    struct Settings set;            /* model, columns, precision, threads */
    struct Columns training;        /* how its texts were laid out */
    struct Model model;
    struct Tokenizer *tokenizer;
    struct Window window;
    bool all, json;                 /* how predict prints */
    struct Runner runner;
    struct Dataset texts;           /* memory for what predict reads */
};

/* Dies if the directory holds no classifier. */
static void load_classifier(struct Classifier *c, const char *dir)
{
    struct Metadata meta;
    load_model(&c->model, dir, &meta);
    if (!c->model.config.labels)
        die("%s: holds a language model, not a classifier. finetune_cls train makes one.", dir);
    c->tokenizer = tokenizer_of_model(dir, &c->model, &meta);
    c->training.format = metadata_get(&meta, "data.format");
    c->training.header = metadata_get(&meta, "data.header");
    for (int i = 0; i < COLUMNS; i++)
        c->training.names[i] = metadata_get(&meta, brief("data.%s", column_words[i]));
    if (c->training.format) c->set.columns.training = &c->training;
    const char *truncate = metadata_get(&meta, "tune.truncate");
    const int context = c->model.config.context, longest = c->tokenizer->usage.max_length;
    c->window = (struct Window){longest && longest < context ? longest : context,
                                truncate ? truncate
                                : c->tokenizer->usage.keeps_tail ? "tail" : "head",
                                c->training.names[PAIRS] || c->set.columns.names[PAIRS]};
    runner_create(&c->runner, &c->model, max_int(BATCH_ROWS, c->window.max), WORK_EVAL);
}

/* One `name value` a line. loss: the sum over the N examples. */
static void print_scores(int *confusion, const real *p, const int *truth, double loss, int N, int K)
{
    const struct Scores s = score(confusion, p, truth, loss, N, K);
    double low, high, auc, average_precision;
    wilson_interval(&low, &high, s.accuracy, N);
    printf("accuracy %.6f\naccuracy_low %.6f\naccuracy_high %.6f\nmacro_f1 %.6f\nloss %.6f\n"
           "ece %.6f\nexamples %d\nmajority %.6f\n", s.accuracy, low, high, s.macro_f1, s.loss,
           s.ece, N, majority_rate(confusion, N, K));
    if (K != 2) return;
    rank_scores(&auc, &average_precision, p, truth, N);
    printf("auc %.6f\nmcc %.6f\naverage_precision %.6f\n", auc, matthews(confusion),
           average_precision);
}

/* A line for each class, its name last:
 *   precision = TP / (TP + FP)    recall = TP / (TP + FN)    0 if there is nothing to divide by */
static void print_classes(const int *confusion, char *const *names, int K)
{
    printf("precision    recall        f1  examples  label\n");
    for (int k = 0; k < K; k++) {
        const struct ClassCounts c = counts_of(confusion, k, K);
        printf("%9.6f %9.6f %9.6f %9d  %s\n", (double)c.right / max_int(c.predicted, 1),
               (double)c.right / max_int(c.truly, 1), f1_of(c), c.truly, names[k]);
    }
}

/* A table with the names of the classes, as wide as the longest name. Of many classes it would fill
 * no screen and no page. */
static void print_confusion(const int *confusion, char *const *names, int K)
{
    enum { MAX_SHOWN = 50 };
    int width = 6;
    if (K > MAX_SHOWN) {
        progress(true, "%d classes: too many for a confusion matrix. --predictions FILE writes "
                 "every example.", K);
        return;
    }
    for (int k = 0; k < K; k++) width = max_int(width, (int)strlen(names[k]));
    printf("confusion matrix (row: true label, column: predicted)\n%*s", width, "");
    for (int k = 0; k < K; k++) printf(" %*s", width, names[k]);
    printf("\n");
    for (int k = 0; k < K; k++) {
        printf("%*s", width, names[k]);
        for (int j = 0; j < K; j++) printf(" %*d", width, confusion[(size_t)k * K + j]);
        printf("\n");
    }
}

/* Appends bytes that must stay one field of a TSV file: tabs and line ends become spaces. */
static void append_field(struct Buffer *b, struct Bytes field)
{
    append_bytes(b, field.data, field.size);
    for (char *s = b->data + b->size - field.size; s < b->data + b->size; s++)
        if (*s == '\t' || *s == '\n' || *s == '\r') *s = ' ';
}

/* Appends the name of a class. Those of a model from elsewhere may hold any characters. */
static void append_name_field(struct Buffer *b, const char *name)
{
    append_field(b, (struct Bytes){name, strlen(name)});
}

static const char predictions_header[] = "number\tlabel\tpredicted\tprobability";

/* Dies if --predictions names a file that is there and holds anything else. */
static void check_predictions(const char *path)
{
    char *rows = read_journal(path, predictions_header);
    if (!rows && file_exists(path))
        die_usage("--predictions %s: holds no predictions, so it is not replaced. Name another.",
                  path);
    free(rows);
}

/* --predictions: a TSV file without quotes, one row for each of the examples e. p (N, K) goes out
 * with the digits that give the same bits when they are read. */
static void write_predictions(struct Output *o, const struct Examples *e, const int *truth,
                              const real *p, char *const *names, int K)
{
    struct Buffer b = {0};
    append(&b, "%s", predictions_header);
    for (int k = 0; k < K; k++) { append(&b, "\tp_"); append_name_field(&b, names[k]); }
    append(&b, "\ttext\n");
    for (int i = 0; i < e->count; i++, p += K) {
        const int best = most_probable(p, K);
        append(&b, "%d\t", i + 1);
        append_name_field(&b, names[truth[i]]);
        append(&b, "\t");
        append_name_field(&b, names[best]);
        append(&b, "\t%.9g", p[best]);
        for (int k = 0; k < K; k++) append(&b, "\t%.9g", p[k]);
        append(&b, "\t");
        append_field(&b, e->items[i].text);
        append(&b, "\n");
        output_write(o, b.data, b.size);
        b.size = 0;
    }
    free(b.data);
    output_finish(o);
    commit_outputs();
}

/* Scores on a labelled file, one `name value` a line, then a table of the classes and the confusion
 * matrix. */
static const char eval_usage[] =
    "finetune_cls eval --model DIR --data FILE\n"
    "Prints accuracy with its 95% interval, macro F1, loss, calibration error and,\n"
    "for two classes, AUC, Matthews' correlation and average precision of the\n"
    "second one; then precision, recall and F1 of each class, and the confusion\n"
    "matrix.";

static int command_eval(int argc, char **argv)
{
    const char *data = NULL, *predictions = NULL;
    struct Classifier c = {.set = DEFAULT_SETTINGS};
    struct Settings *s = &c.set;
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &s->model, .required = true},
        {"data", data_meaning, TEXT, &data, .required = true},
        {"predictions", "TSV file to write: what is predicted for each text", TEXT, &predictions},
        tune_option(s, "text-column"), tune_option(s, "label-column"),
        tune_option(s, "pair-column"), tune_option(s, "header"), tune_option(s, "format"),
        PRECISION_OPTION(&s->precision), THREADS_OPTION(&s->threads), {0}};
    refuse_arguments(read_options(argc, argv, options, eval_usage), argv);
    if (predictions && same_file(data, predictions))
        die_usage("--predictions %s: is the file of --data. Name another.", predictions);
    if (predictions) check_predictions(predictions);
    set_threads(s->threads);
    set_precision(s->precision);
    struct Dataset d = {0};
    load_classifier(&c, s->model);
    const int K = c.model.config.labels;
    char *const *names = c.model.config.label_names;
    const struct Examples e = read_examples(data, s->columns);
    struct Output *o = predictions ? output_open(predictions) : NULL;
    add_examples(&d, c.tokenizer, &e, names, K, c.window);
    if (((double)d.count + K) * K * sizeof(real) > machine_memory() / 2)
        die("%s: %d texts of %d classes do not fit into memory. Evaluate a part of them.", data,
            d.count, K);
    int *confusion = resize(NULL, (size_t)K * K * sizeof *confusion);
    real *p = resize(NULL, (size_t)d.count * K * sizeof *p);
    const double start = seconds();
    const double loss = run_examples(&c.runner, p, NULL, &d, NULL, d.count, "eval");
    report_rate("eval", d.count, start);
    if (predictions) write_predictions(o, &e, d.labels, p, names, K);
    print_scores(confusion, p, d.labels, loss, d.count, K);
    print_classes(confusion, names, K);
    print_confusion(confusion, names, K);
    return 0;
}

/* Appends one line: label, probability and the text, separated by tabs; or a JSON object. With
 * --all also the probability of each class. */
static void append_answer(struct Buffer *b, const struct Classifier *c, struct Bytes text,
                          const real *p)
{
    const int K = c->all ? c->model.config.labels : 0;
    const int best = most_probable(p, c->model.config.labels);
    char *const *names = c->model.config.label_names;
    if (c->json) {
        append(b, "{\"text\": ");
        append_json_bytes(b, text);
        append(b, ", \"label\": ");
        append_json_string(b, names[best]);
        append(b, ", \"probability\": %.6f%s", p[best], K ? ", \"probabilities\": {" : "");
        for (int k = 0; k < K; k++) {
            append_json_string(b, names[k]);
            append(b, ": %.6f%s", p[k], k < K - 1 ? ", " : "}");
        }
        append(b, "}\n");
        return;
    }
    append(b, "%s\t%.4f\t", names[best], p[best]);
    for (int k = 0; k < K; k++) append(b, "%s %.4f\t", names[k], p[k]);
    append_field(b, text);
    append(b, "\n");
}

/* Predicts the texts and prints a line for each. Few texts at a time need little memory. */
static void predict_texts(struct Classifier *c, const struct Example *e, int count)
{
    enum { BLOCK = 4096 };
    const int K = c->model.config.labels;
    real *p = resize(NULL, (size_t)min_int(BLOCK, count) * K * sizeof *p + 1);
    struct Dataset *d = &c->texts;
    struct Buffer b = {0};
    for (int done = 0, n; done < count; done += n, e += n) {
        n = min_int(BLOCK, count - done);
        d->count = 0;
        for (int i = 0; i < n; i++) add_text(d, c->tokenizer, e[i].text, -1, c->window);
        run_examples(&c->runner, p, NULL, d, NULL, n, NULL);
        for (int i = 0; i < n; i++) append_answer(&b, c, e[i].text, p + (size_t)i * K);
        show_result(&b);
        b.size = 0;
    }
    free(b.data);
    free(p);
}

/* Predicts the complete lines in text[0 .. n), and if `last` also a line without an end. Returns
 * the number of bytes that were read. */
static size_t predict_lines(struct Classifier *c, const char *text, size_t n, bool last)
{
    struct Example *lines = NULL;
    int count = 0, capacity = 0;
    size_t used = 0;
    while (used < n) {
        const char *next = text + used;
        const struct Bytes line = take_line(&next, text + n);
        if (next[-1] != '\n' && !last) break;
        used = next - text;
        if (count == capacity)
            lines = resize(lines, (capacity = 2 * capacity + 64) * sizeof *lines);
        lines[count++] = (struct Example){.text = line};
    }
    predict_texts(c, lines, count);
    free(lines);
    return used;
}

/* Predicts the lines of standard input as they arrive. One read returns the lines that are ready,
 * one from a terminal or thousands from a file, and they make the batches. */
static void predict_stream(struct Classifier *c)
{
    enum { BLOCK = 1 << 20 };
    struct Buffer b = {0};
    char *block = resize(NULL, BLOCK);
    if (isatty(0)) progress(true, "One text a line; Ctrl-D ends.");
    for (;;) {
        const ssize_t n = read(0, block, BLOCK);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) die("standard input: cannot be read (%s).", strerror(errno));
        if (n == 0) break;
        append_bytes(&b, block, n);
        if (!memchr(block, '\n', n)) continue;
        const size_t used = predict_lines(c, b.data, b.size, false);
        memmove(b.data, b.data + used, b.size -= used);
    }
    predict_lines(c, b.data, b.size, true);
    free(b.data);
    free(block);
}

static const char predict_usage[] =
    "finetune_cls predict --model DIR [TEXT... | --data FILE]\n"
    "Prints label, probability and text, separated by tabs, for each TEXT,\n"
    "each text of FILE or, without any, each line of standard input.\n"
    "A classifier of pairs reads the two texts with a tab between.";

/* TEXTs of the command line, the texts of a file, or else the lines of standard input. */
static int command_predict(int argc, char **argv)
{
    const char *data = NULL;
    struct Classifier c = {.set = DEFAULT_SETTINGS};
    struct Settings *s = &c.set;
    struct Option text = tune_option(s, "text-column"), pair = tune_option(s, "pair-column"),
                  header = tune_option(s, "header"), format = tune_option(s, "format");
    text.idle = pair.idle = header.idle = format.idle = "without data";
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &s->model, .required = true},
        {"data", "texts: TSV, CSV, JSON or fastText's format, else one a line", TEXT, &data},
        text, pair, header, format,
        {"all", "the probability of every class", FLAG, &c.all},
        {"json", "one JSON object a line", FLAG, &c.json},
        PRECISION_OPTION(&s->precision), THREADS_OPTION(&s->threads), {0}};
    const int count = read_options(argc, argv, options, predict_usage);
    if (count && data) die_usage("--data %s: there are TEXTs, too. Give one or the other.", data);
    warn_idle(options);
    set_threads(s->threads);
    set_precision(s->precision);
    load_classifier(&c, s->model);
    if (data) {
        s->columns.texts_only = true;
        const struct Examples e = read_examples(data, s->columns);
        predict_texts(&c, e.items, e.count);
    } else if (!count) predict_stream(&c);
    for (int i = 0; i < count; i++) {
        struct stat status;
        const struct Example text = {.text = {argv[i], strlen(argv[i])}};
        if (!stat(argv[i], &status) && S_ISREG(status.st_mode))
            warn("%s: is taken as a text, but is a file, too. --data %s reads it.", argv[i],
                 argv[i]);
        predict_texts(&c, &text, 1);
    }
    return 0;
}

/* ============================================================================================= */
/* 10. compare: what is pretraining worth?                                                       */
/* ============================================================================================= */

/* Every method learns from the same labels, for every number of labels ("budget") and every seed,
 * and is asked about the test texts once. A method's validation texts come out of its budget. */

/* A method as the command line names it: majority, nb, nbsvm, or what --tune may be, followed by
 * options: full+l2sp:10+layer-decay:0.8. */
struct Method {
    const char *name;
    enum { MAJORITY, NAIVE_BAYES, NBSVM, TUNED } family;
    struct Settings set;                /* of a TUNED one */
};

/* One training and its result. */
struct Cell {
    int method, budget, seed;           /* budget: an index; seed: from 1 */
    bool done;
    double accuracy, macro_f1, loss, seconds, distance, lm_loss;    /* NAN: there is none */
    char *right;                        /* (test_count): '1' where a test text's label was found */
};

/* What the seeds of a method with a budget say together. */
struct Estimate {
    int seeds;                          /* so many are done; 0: the rest means nothing */
    double seconds;                     /* of all of them */
    double mean, low, high;             /* accuracy and its 95% interval */
    double p;                           /* of its difference to the budget's best method */
    double holm;                        /* p, corrected for the number of such differences */
};

struct Compare {
    struct Task task;                   /* what trainings share: settings, tokenizer, texts */
    const char *test, *methods_text, *labels_text;
    int seeds, test_examples;
    double time_limit, start, test_part;

    struct Method *methods;             /* (method_count) */
    int method_count, *budgets, budget_count;
    struct Model base;
    struct Bytes *texts;                /* those of task.data, as bytes */
    struct Bags bags;
    char **names;                       /* (K) */
    int *learn, *test_list;             /* (learn_count) (test_count): which of task.data */
    int *truth;                         /* (test_count): the labels of the test texts */
    int learn_count, test_count, classes;
    struct Cell *cells;                 /* (seeds, budget_count, method_count) */
    int cell_count;
    struct Estimate *estimates;         /* (budget_count, method_count) */
    struct Metadata state, old;         /* its settings; those in --out, with --resume */
    struct Journal journal;             /* compare.tsv: a row for each cell that is done */
};

static struct Cell *cell_at(const struct Compare *c, int seed, int budget, int method)
{
    const size_t row = (size_t)(seed - 1) * c->budget_count + budget;
    return c->cells + row * c->method_count + method;
}

static struct Estimate *estimate_at(const struct Compare *c, int budget, int method)
{
    return c->estimates + (size_t)budget * c->method_count + method;
}

/* --- The command line --- */

/* The parts of text between separators, each of which the caller frees. */
static char **split_list(const char *text, char separator, int *count)
{
    char **parts = NULL;
    *count = 0;
    for (const char *at = text; ; ) {
        const size_t n = strchr(at, separator) ? (size_t)(strchr(at, separator) - at) : strlen(at);
        parts = resize(parts, (*count + 1) * sizeof *parts);
        parts[(*count)++] = text_of("%.*s", (int)n, at);
        if (!at[n]) return parts;
        at += n + 1;
    }
}

/* Sets the row that "name:value" names. Those that a probe has no use for belong to a method, since
 * they change its gradient steps; so does class-weights, whose value can only be auto. */
static void set_method_option(struct Option *rows, const char *method, char *option)
{
    char *value = strchr(option, ':');
    if (value) *value++ = 0;
    struct Option *row = find_option(rows, option);
    const bool of_steps = row && row->idle && strstr(row->idle, "with tune probe");
    if (!(value && of_steps) && strcmp(option, "class-weights"))
        die_usage("--methods %s: %s is no option of a method, or lacks its value. There are those "
                  "of train for gradient steps, such as lr:X and l2sp:X, and class-weights.",
                  method, option);
    set_option(row, brief("--methods %s: %s", method, option), value ? value : "auto");
    row->given = true;
}

/* Reads one method of --methods. */
static struct Method parse_method(const char *name, const struct Settings *shared)
{
    static const char *const families[] = {"majority", "nb", "nbsvm"};
    struct Method m = {name, TUNED, *shared};
    int parts;
    char **part = split_list(name, '+', &parts);
    for (int k = 0; k < COUNT(families); k++) if (!strcmp(part[0], families[k])) m.family = k;
    if (m.family != TUNED && parts > 1)
        die_usage("--methods %s: %s has no options. Leave them out.", name, part[0]);
    if (m.family != TUNED) return m;
    m.set.tune = part[0];
    parse_tune("--methods", "majority, nb, nbsvm, ", &m.set);
    struct Option *rows = tune_options(&m.set);
    for (int k = 1; k < parts; k++) set_method_option(rows, name, part[k]);
    check_settings(&m.set);
    warn_idle(rows);
    free(rows);
    if (m.set.kind == SCRATCH && m.set.l2sp > 0)
        warn("--methods %s: l2sp pulls random weights to the pretrained ones.", name);
    return m;
}

static void parse_methods(struct Compare *c)
{
    char **names = split_list(c->methods_text, ',', &c->method_count);
    c->methods = resize(NULL, c->method_count * sizeof *c->methods);
    for (int i = 0; i < c->method_count; i++) {
        for (int k = 0; k < i; k++)
            if (!strcmp(names[i], names[k])) die_usage("--methods: %s is named twice.", names[i]);
        c->methods[i] = parse_method(names[i], &c->task.set);
    }
}

/* Reads --labels. "all" is INT_MAX until the number of texts is known. */
static void parse_budgets(struct Compare *c)
{
    int count;
    char **parts = split_list(c->labels_text, ',', &count);
    c->budgets = resize(NULL, count * sizeof *c->budgets);
    for (int i = 0; i < count; free(parts[i++])) {
        double x = INT_MAX;
        if (strcmp(parts[i], "all") && (!parse_number(parts[i], "k", (double[]){1e3}, &x)
                                        || x != floor(x) || x < 1 || x > 1e9))
            die_usage("--labels %s: not a number of labels, nor \"all\".", parts[i]);
        if (i > 0 && x <= c->budgets[i - 1])
            die_usage("--labels %s: numbers must rise.", c->labels_text);
        c->budgets[c->budget_count++] = (int)x;
    }
    free(parts);
}

/* Fits the budgets to the texts that there are: a larger number means all of them. */
static void fit_budgets(struct Compare *c)
{
    static const char need[] = "--labels %d: %d classes need %d at least, one each to learn from "
                               "and to validate on%s.";
    const int texts = c->learn_count, least = 2 * c->classes, count = c->budget_count;
    c->budget_count = 0;
    for (int i = 0; i < count; i++) {
        const int n = min_int(c->budgets[i], texts);
        if (n < least && i == count - 1) die_usage(need, n, c->classes, least, "");
        if (n < least) warn(need, n, c->classes, least, "; it is left out");
        else if (!c->budget_count || n > c->budgets[c->budget_count - 1])
            c->budgets[c->budget_count++] = n;
    }
}

/* Dies if the texts to learn from are those to test on. */
static void refuse_same_file(const char *train, const char *test)
{
    if (same_file(train, test))
        die_usage("--test %s: is the same file as --train. Name texts that nothing is learnt from.",
                  test);
}

/* --- Texts, labels, subsets --- */

/* Reorders a list of texts by split_stratified: a part of each class comes last. Returns how many
 * come first. */
static int split_texts(int *list, int count, const struct Compare *c, double part,
                       struct Random random)
{
    int *labels = allocate_zeroed(2 * count * sizeof *labels), *order = labels + count;
    for (int i = 0; i < count; i++) labels[i] = c->task.data.labels[list[i]];
    const int first = split_stratified(order, labels, count, c->classes, part, random);
    for (int i = 0; i < count; i++) labels[i] = list[order[i]];
    memcpy(list, labels, count * sizeof *list);
    release(labels, 2 * count * sizeof *labels);
    return first;
}

/* Reads both files. Texts of --train that are in --test, too, are left out. Without --test, a part
 * of --train is the test. */
static void load_texts(struct Compare *c)
{
    struct Task *t = &c->task;
    const struct Settings *s = &t->set;
    const struct Window window = {s->max_tokens, s->truncate, s->columns.names[PAIRS] != NULL};
    struct Examples train = read_examples(s->train, s->columns), test = {0};
    if (c->test) test = read_examples(c->test, s->columns);
    drop_repeats(&train, &test, "left out", "--test");
    c->names = class_names(&train, &c->classes);
    add_examples(&t->data, t->tokenizer, &train, c->names, c->classes, window);
    add_examples(&t->data, t->tokenizer, &test, c->names, c->classes, window);
    c->texts = resize(NULL, t->data.count * sizeof *c->texts);
    c->learn = resize(NULL, t->data.count * sizeof *c->learn);
    for (int i = 0; i < t->data.count; i++) {
        c->texts[i] = i < train.count ? train.items[i].text : test.items[i - train.count].text;
        c->learn[i] = i;
    }
    c->learn_count = train.count;
    if (!c->test) {
        c->learn_count = split_texts(c->learn, train.count, c, c->test_part,
                                     random_stream(s->seed, STREAM_TEST));
        progress(true, "%d of %d texts of %s are set aside as test", train.count - c->learn_count,
                 train.count, s->train);
    }
    free(train.items);
    free(test.items);
}

/* The texts to test on: those behind the texts to learn from, or --test-examples of them. */
static void choose_test(struct Compare *c)
{
    c->test_list = c->learn + c->learn_count;
    c->test_count = c->task.data.count - c->learn_count;
    if (c->test_examples && c->test_examples < c->test_count) {
        const int rest = split_texts(c->test_list, c->test_count, c,
                                     (double)c->test_examples / c->test_count,
                                     random_stream(c->task.set.seed, STREAM_SPLIT));
        c->test_list += rest;
        c->test_count -= rest;
    }
    if (!c->test_count)
        die_usage("%s: no class has two texts, so none can be chosen. Give other texts.",
                  c->test ? c->test : c->task.set.train);
    c->truth = resize(NULL, c->test_count * sizeof *c->truth);
    for (int i = 0; i < c->test_count; i++)
        c->truth[i] = c->task.data.labels[c->test_list[i]];
}

/* list (budget): texts to learn from, of each class in proportion, at least two. Up to rounding, a
 * seed's smaller budgets are parts of its larger ones. */
static void choose_subset(int *list, const struct Compare *c, int budget, int seed)
{
    const int N = c->learn_count, K = c->classes, *labels = c->task.data.labels;
    int *order = resize(NULL, N * sizeof *order), *left = resize(NULL, 2 * K * sizeof *left);
    int *count = left + K, chosen = 0;
    struct Random random = random_stream(seed, STREAM_SUBSET);
    memset(left, 0, 2 * K * sizeof *left);
    memcpy(order, c->learn, N * sizeof *order);
    for (int i = 0; i < N; i++) count[labels[order[i]]]++;
    for (int k = 0; k < K; k++)
        chosen += left[k] = min_int(count[k], max_int(2, (int)((double)budget * count[k] / N)));
    for (int k = 0; chosen != budget; k = (k + 1) % K) {    /* what rounding left over */
        const int change = chosen < budget ? left[k] < count[k] : -(left[k] > 2);
        left[k] += change;
        chosen += change;
    }
    shuffle(order, N, &random);
    for (int i = 0, n = 0; i < N; i++) if (left[labels[order[i]]]-- > 0) list[n++] = order[i];
    free(order);
    free(left);
}

/* --- One cell --- */

/* Sets the scores of a cell from p (test_count, K), whose largest value in a row is the answer. */
static void score_cell(struct Cell *cell, const struct Compare *c, const real *p, double loss)
{
    int *confusion = resize(NULL, (size_t)c->classes * c->classes * sizeof *confusion);
    const struct Scores s = score(confusion, p, c->truth, loss, c->test_count, c->classes);
    cell->accuracy = s.accuracy;
    cell->macro_f1 = s.macro_f1;
    cell->loss = s.loss;
    cell->right = resize(NULL, c->test_count + 1);
    for (int i = 0; i < c->test_count; i++)
        cell->right[i] = most_probable(p + (size_t)i * c->classes, c->classes) == c->truth[i]
                       ? '1' : '0';
    cell->right[c->test_count] = 0;
    free(confusion);
}

/* The same answer to every text: the commonest label.   scores (test_count, K) */
static void majority(double *scores, const struct BagTask *t)
{
    const int K = t->classes;
    for (int i = 0; i < t->train_count; i++) scores[t->labels[t->train[i]]]++;
    for (int i = 1; i < t->test_count; i++)
        memcpy(scores + (size_t)i * K, scores, K * sizeof *scores);
}

/* A method that knows no model. Only naive Bayes has probabilities, and so a loss. */
static void run_classical(struct Cell *cell, const struct Compare *c, const int *list, int count)
{
    static void (*const run[])(double *, const struct BagTask *) = {majority, naive_bayes, nbsvm};
    const int K = c->classes, n = c->test_count, family = c->methods[cell->method].family;
    const struct BagTask task = {&c->bags, c->task.data.labels, list, c->test_list, count, n, K};
    double *scores = allocate_zeroed((size_t)n * K * sizeof *scores), loss = 0;
    real *p = resize(NULL, (size_t)n * K * sizeof *p);
    run[family](scores, &task);
    for (int i = 0; i < n; i++) {
        double max = -INFINITY, sum = 0;
        const double *z = scores + (size_t)i * K;
        for (int k = 0; k < K; k++) max = fmax(max, z[k]);
        for (int k = 0; k < K; k++) sum += exp(z[k] - max);
        for (int k = 0; k < K; k++) p[(size_t)i * K + k] = (real)(z[k] - max);
        loss += max + log(sum) - z[c->truth[i]];
    }
    score_cell(cell, c, p, family == NAIVE_BAYES ? loss : NAN);
    cell->distance = cell->lm_loss = NAN;
    release(scores, (size_t)n * K * sizeof *scores);
    free(p);
}

/* |w - w_source| / |w_source|, without the head. */
static double distance_from(const struct Model *model, const struct Model *source)
{
    double moved = 0, length = 0;
    for (int i = 0; i < model->tensor_count; i++) {
        const struct Tensor *t = &model->tensors[i];
        if (!strcmp(t->name, "score.weight")) continue;
        for (size_t k = t->offset; k < t->offset + t->size; k++) {
            const double d = model->weights[k] - source->weights[k];
            moved += d * d;
            length += (double)source->weights[k] * source->weights[k];
        }
    }
    return sqrt(moved / length);
}

/* A probe asked about the texts of a list: .p (n, K) has the answers. loss: the mean of theirs;
 * accuracy: may be NULL. The caller frees the result. */
static struct Logistic ask_probe(double *loss, double *accuracy, struct Task *t, const int *list,
                                 int n)
{
    struct Logistic f = probe_features(t, list, n, NULL);
    const int size = f.K * f.C;
    double *w = resize(NULL, size * sizeof *w);
    for (int i = 0; i < size; i++) w[i] = t->model.w.score_w[i];
    logistic_scores(f.z, &f, w);
    *loss = logistic_loss(&f, accuracy);
    free(w);
    return f;
}

/* The test texts, by the trained model. */
static void test_task(struct Cell *cell, struct Task *t, const struct Compare *c)
{
    const int n = c->test_count;
    const size_t size = (size_t)n * c->classes;
    struct Runner *r = &t->runner;
    real *p = resize(NULL, size * sizeof *p);
    r->frozen = 0;                          /* nothing was kept of the test texts */
    r->measure_lm = true;
    double loss;
    if (t->set.kind == PROBE) {
        struct Logistic f = ask_probe(&loss, NULL, t, c->test_list, n);
        for (size_t i = 0; i < size; i++) p[i] = (real)f.p[i];
        loss *= n;
        logistic_free(&f);
    } else loss = run_examples(r, p, NULL, &t->data, c->test_list, n, NULL);
    if (!isfinite(loss))
        die("--methods %s: the loss is not finite. Lower its lr.", c->methods[cell->method].name);
    score_cell(cell, c, p, loss);
    cell->lm_loss = r->lm_loss / r->lm_tokens;
    cell->distance = distance_from(&t->model, &c->base);
    free(p);
}

/* A training as `train` does it, in silence. list (count) becomes training and validation, and is
 * freed. Returns false, without a result, if a signal ended it. */
static bool run_tuned(struct Cell *cell, struct Compare *c, int *list, int count)
{
    struct Task t = c->task;
    struct Metadata meta = {0};
    t.set = c->methods[cell->method].set;
    t.set.seed = cell->seed;
    t.train = list;
    t.train_count = split_texts(list, count, c, t.set.val_part,
                                random_stream(cell->seed, STREAM_SPLIT));
    take_validation(&t, count);
    start_model(&t, &c->base, c->names, c->classes);
    choose_defaults(&t.set, &t.model, t.train_count, t.val_count);
    real *best = prepare(&t);
    bool whole = true;
    if (t.set.kind == PROBE) train_probe(&t, &meta);
    else whole = train_steps(&t, best, &meta);
    if (whole) test_task(cell, &t, c);
    release(best, best ? t.model.parameter_count * sizeof *best : 0);
    metadata_free(&meta);
    task_free(&t);
    return whole;
}

/* A cell that is done counts for its method and budget. */
static void finish_cell(const struct Compare *c, struct Cell *cell)
{
    struct Estimate *e = estimate_at(c, cell->budget, cell->method);
    cell->done = true;
    e->seeds++;
    e->seconds += cell->seconds;
}

/* Runs a cell, unless a signal ends it. */
static void run_cell(struct Cell *cell, struct Compare *c)
{
    const struct Method *m = &c->methods[cell->method];
    const int count = c->budgets[cell->budget];
    int *list = resize(NULL, count * sizeof *list);
    bool whole = true;
    if (m->family != TUNED && !c->bags.count) c->bags = bags_of(c->texts, c->task.data.count);
    const double start = seconds();
    choose_subset(list, c, count, cell->seed);
    if (m->family == TUNED) whole = run_tuned(cell, c, list, count);
    else { run_classical(cell, c, list, count); free(list); }
    cell->seconds = seconds() - start;
    if (whole) finish_cell(c, cell);
}

/* --- What is kept on disk: a row for each cell --- */

/* The last column has a digit for each test text, for paired tests. */
static const char table_header[] =
    "method\tlabels\tseed\taccuracy\tmacro_f1\tloss\tseconds\tdistance\tlm_loss\tright\n";

static void save_cell(struct Compare *c, const struct Cell *cell)
{
    commit_outputs();                   /* before the first row: see open_comparison */
    journal_add(&c->journal, "%s\t%d\t%d\t%.6f\t%.6f\t%.6f\t%.2f\t%.6f\t%.6f\t%s\n",
                c->methods[cell->method].name, c->budgets[cell->budget], cell->seed,
                cell->accuracy, cell->macro_f1, cell->loss, cell->seconds, cell->distance,
                cell->lm_loss, cell->right);
    journal_flush(&c->journal, true);
}

/* Takes over a row of compare.tsv, if it is of a cell of this comparison. Returns false if no such
 * table can have it. */
static bool read_cell(struct Compare *c, const char *row)
{
    struct Cell x = {0};
    int labels, end = 0, name = (int)strcspn(row, "\t\n");
    sscanf(row + name, "\t%d\t%d\t%lf\t%lf\t%lf\t%lf\t%lf\t%lf\t%n", &labels, &x.seed,
           &x.accuracy, &x.macro_f1, &x.loss, &x.seconds, &x.distance, &x.lm_loss, &end);
    const char *right = row + name + end;
    if (!end || x.seed < 1 || !(x.accuracy >= 0 && x.accuracy <= 1)
        || strspn(right, "01") != (size_t)c->test_count || right[c->test_count] != '\n')
        return false;
    while (x.budget < c->budget_count && c->budgets[x.budget] != labels) x.budget++;
    for (; x.method < c->method_count; x.method++) {
        const char *known = c->methods[x.method].name;
        if ((int)strlen(known) == name && !memcmp(known, row, name)) break;
    }
    if (x.seed > c->seeds || x.budget == c->budget_count || x.method == c->method_count)
        return true;
    struct Cell *cell = cell_at(c, x.seed, x.budget, x.method);
    x.right = text_of("%.*s", c->test_count, right);
    *cell = x;
    finish_cell(c, cell);
    return true;
}

/* Describes the model and the texts in c->state. Dies if those of the comparison in --out, which is
 * to be resumed, are others. */
static void check_same_inputs(struct Compare *c)
{
    static const char *const names[] = {"weights", "texts"};
    const struct Dataset *d = &c->task.data;
    uint64_t hashes[] = {checksum(c->base.weights, c->base.parameter_count * sizeof(real)),
                         checksum(d->labels, d->count * sizeof(int))};
    for (int i = 0; i < d->count; i++)
        hashes[1] = mix64(hashes[1] + checksum(c->texts[i].data, c->texts[i].size));
    for (int i = 0; i < COUNT(names); i++) {
        const char *now = hash_text(hashes[i]), *was = metadata_get(&c->old, names[i]);
        if (c->old.count && (!was || strcmp(was, now)))
            die("--resume: the comparison in %s was made with other %s. Choose another --out.",
                c->task.set.out, names[i]);
        metadata_set(&c->state, names[i], "%s", now);
    }
}

/* Begins the table, or goes on with the one in --out. With --overwrite, an older one is replaced
 * when the new one gets its first row: first by a table without rows, so that no settings ever
 * stand beside rows that were not made with them. */
static void open_comparison(struct Compare *c)
{
    const struct Settings *s = &c->task.set;
    char *table = text_of("%s/compare.tsv", s->out), *state = state_path(s);
    check_same_inputs(c);
    char *rows = c->old.count ? read_journal(table, table_header) : NULL;
    if (c->old.count && !rows)
        die("%s: is not the table of a comparison. Give --overwrite.", table);
    journal_open(&c->journal, table, table_header, 0, NULL);
    for (char *at = rows, *end; at && (end = strchr(at, '\n')); at = end + 1)
        if (read_cell(c, at)) journal_add(&c->journal, "%.*s\n", (int)(end - at), at);
    stage_safetensors(state, &(struct Model){0}, NULL, 0, &c->state);
    if (!s->overwrite) commit_outputs();
    free(rows); free(state); free(table);
}

/* --- Statistics --- */

/* Differences that chance makes less often than this are called significant. */
static const double SIGNIFICANT = 0.05;

/* The probability that Student's t with df degrees of freedom is t or more away from 0. With
 * t = sqrt(df) tan(a) its density is proportional to cos(a)^(df - 1), which has the integral
 * sqrt(pi) gamma(df / 2) / gamma((df + 1) / 2). Simpson's rule from 0 to a; degrees of freedom
 * beyond 10,000 change nothing that is printed. */
static double student_tail(double t, double df)
{
    enum { STEPS = 400 };
    df = fmin(df, 1e4);
    const double a = atan(t / sqrt(df)), h = a / STEPS;
    double sum = 1 + pow(cos(a), df - 1);
    for (int i = 1; i < STEPS; i++) sum += (i % 2 ? 4 : 2) * pow(cos(i * h), df - 1);
    const double all = sqrt(acos(-1)) * exp(lgamma(df / 2) - lgamma((df + 1) / 2));
    return fmax(0, 1 - 2 * sum * h / 3 / all);
}

/* The t with student_tail(t, df) = SIGNIFICANT: half a 95% interval, in standard errors. Bisection:
 * for df >= 1 it is between 1.9 and 12.8. */
static double student_quantile(double df)
{
    double low = 1.9, high = 12.8;
    for (int i = 0; i < 40; i++) {
        const double t = (low + high) / 2;
        if (student_tail(t, df) > SIGNIFICANT) low = t; else high = t;
    }
    return (low + high) / 2;
}

/* A mean with its standard error and degrees of freedom. */
struct Mean { double mean, error, df; int seeds; };

/* The mean over seeds and test texts of "a was right", minus that of b if b is not negative, where
 * both saw the same labels. Seeds and texts are both samples: with means over one of them,
 *   error^2 = variance of the seeds' means / seeds + variance of the texts' means / texts
 * which counts the noise of single answers twice, so it is rather too large. The degrees of freedom
 * are Satterthwaite's. With one seed only the texts' part is known.
 *   A difference is that with two texts more, one that only a has right and one that only b has
 * right. Otherwise two texts, answered alike with every seed, would be a certainty. (Agresti and
 * Min 2005 add half a text to each of the four cases.) */
static struct Mean mean_right(const struct Compare *c, int budget, int a, int b)
{
    const int n = c->test_count, N = b < 0 ? n : n + 2;
    double *text = allocate_zeroed(N * sizeof *text), sum = 0, squares = 0, spread = 0;
    int seeds = 0;
    for (int seed = 1; seed <= c->seeds; seed++) {
        const struct Cell *x = cell_at(c, seed, budget, a);
        const struct Cell *y = b < 0 ? NULL : cell_at(c, seed, budget, b);
        if (!x->done || (y && !y->done)) continue;
        double own = 0;
        for (int i = 0; i < n; i++) {
            const double d = (x->right[i] == '1') - (y && y->right[i] == '1');
            text[i] += d;
            own += d;                   /* a whole number: equal sums are equal to the bit */
        }
        if (y) { text[n]++; text[n + 1]--; }
        seeds++;
        sum += own;
        squares += own * own;
    }
    const double mean = seeds ? sum / N / seeds : NAN;
    for (int i = 0; i < N; i++) spread += (text[i] / seeds - mean) * (text[i] / seeds - mean);
    const double texts_part = N > 1 ? spread / (N - 1) / N : 0;
    const double seeds_part = seeds < 2 ? 0 : fmax(0, squares - sum * sum / seeds) / N / N
                                              / (seeds - 1) / seeds;
    const double both = texts_part + seeds_part,
                 df = both * both / (texts_part * texts_part / fmax(N - 1, 1)
                                     + seeds_part * seeds_part / fmax(seeds - 1, 1));
    release(text, N * sizeof *text);
    return (struct Mean){mean, sqrt(both), both > 0 ? df : 1, seeds};
}

/* Adds a method's accuracy with a budget. Its interval is within 0 to 1 and contains Wilson's for
 * so many texts, since no number of seeds makes few texts many. */
static void estimate(struct Estimate *e, const struct Compare *c, int budget, int method)
{
    const struct Mean m = mean_right(c, budget, method, -1);
    const double half = m.error * student_quantile(m.df);
    wilson_interval(&e->low, &e->high, m.mean, c->test_count);
    e->mean = m.mean;
    e->low = fmax(0, fmin(e->low, m.mean - half));
    e->high = fmin(1, fmax(e->high, m.mean + half));
}

/* The probability that two methods of equal worth differ so much; NAN if no seed has both. */
static double p_value(const struct Compare *c, int budget, int a, int b)
{
    const struct Mean d = mean_right(c, budget, a, b);
    return d.seeds ? student_tail(fabs(d.mean) / d.error, d.df) : NAN;
}

static bool is_pretrained(const struct Method *m)
{
    return m->family == TUNED && m->set.kind != SCRATCH;
}

/* The most accurate method with a budget, of all or of the pretrained ones; -1: none has run. */
static int best_method(const struct Compare *c, int budget, bool pretrained)
{
    int best = -1;
    for (int m = 0; m < c->method_count; m++) {
        const struct Estimate *e = estimate_at(c, budget, m);
        if (!e->seeds || (pretrained && !is_pretrained(&c->methods[m]))) continue;
        if (best < 0 || e->mean > estimate_at(c, budget, best)->mean) best = m;
    }
    return best;
}

/* Holm's correction (1979): of n values of p the smallest counts n times, the next n - 1 times, and
 * so on, and none becomes less than one before it. Methods whose p is NAN do not count. */
static void correct_by_holm(struct Estimate *e, int methods)
{
    for (int i = 0; i < methods; i++) {
        e[i].holm = e[i].p;
        for (int j = 0; j < methods; j++) {
            int times = 0;
            for (int k = 0; k < methods; k++) times += e[k].p >= e[j].p;
            if (e[j].p <= e[i].p) e[i].holm = fmax(e[i].holm, fmin(1, times * e[j].p));
        }
    }
}

/* Completes c->estimates when no more cells will be done. */
static void compute_estimates(struct Compare *c)
{
    const int M = c->method_count;
    for (int b = 0; b < c->budget_count; b++) {
        struct Estimate *e = estimate_at(c, b, 0);
        for (int m = 0; m < M; m++) if (e[m].seeds) estimate(&e[m], c, b, m);
        const int best = best_method(c, b, false);
        for (int m = 0; m < M; m++)
            e[m].p = m != best && e[m].seeds ? p_value(c, b, best, m) : NAN;
        correct_by_holm(e, M);
    }
}

/* --- The table and its verdict --- */

/* Seconds of a training, on average; NAN if there was none. */
static double mean_seconds(const struct Estimate *e)
{
    return e->seeds ? e->seconds / e->seeds : NAN;
}

static void print_table(const struct Compare *c)
{
    int width = 8;
    for (int m = 0; m < c->method_count; m++)
        width = max_int(width, (int)strlen(c->methods[m].name));
    printf("accuracy on %d test texts%s: mean, 95%% interval; seconds of one training with test\n",
           c->test_count, c->test_count < FEW_TEXTS ? ", too few for small differences" : "");
    printf("%-*s", width, "labels");
    for (int b = 0; b < c->budget_count; b++) printf("  %5d            ", c->budgets[b]);
    printf("  seconds\n");
    for (int m = 0; m < c->method_count; m++) {
        printf("%-*s", width, c->methods[m].name);
        for (int b = 0; b < c->budget_count; b++) {
            const struct Estimate *e = estimate_at(c, b, m);
            if (e->seeds) printf("  %.3f %.3f-%.3f", e->mean, e->low, e->high);
            else printf("  %-17s", "-");
        }
        const double spent = mean_seconds(estimate_at(c, c->budget_count - 1, m));
        if (isnan(spent)) printf("  -\n"); else printf("  %.1f\n", spent);
    }
}

/* "With 100 labels nb is best, 0.841; probe, full are not significantly worse." */
static void print_best(const struct Compare *c, int budget)
{
    const int best = best_method(c, budget, false);
    int compared = 0, level = 0;
    if (best < 0) return;
    printf("With %d labels %s is best, %.3f", c->budgets[budget], c->methods[best].name,
           estimate_at(c, budget, best)->mean);
    for (int m = 0; m < c->method_count; m++) {
        const struct Estimate *e = estimate_at(c, budget, m);
        compared += e->p >= 0;
        if (e->holm >= SIGNIFICANT) printf("%s%s", level++ ? ", " : "; ", c->methods[m].name);
    }
    if (level) printf(level > 1 ? " are not significantly worse" : " is not significantly worse");
    else if (compared) printf(", significantly better than all others");
    if (compared < c->method_count - 1) printf(", of those that have run");
    printf(".\n");
}

/* How many labels the method needs to reach an accuracy, by its means: between two budgets along a
 * straight line over the logarithm of labels. At least the smallest budget; infinite if not even
 * the largest is enough. */
static double labels_needed(const struct Compare *c, int method, double accuracy)
{
    double before = NAN;
    int last = 0;
    for (int b = 0; b < c->budget_count; b++) {
        const struct Estimate *e = estimate_at(c, b, method);
        const double labels = c->budgets[b];
        if (!e->seeds) continue;
        if (e->mean >= accuracy)
            return !last ? labels : last * pow(labels / last, (accuracy - before)
                                                              / (e->mean - before));
        before = e->mean;
        last = c->budgets[b];
    }
    return INFINITY;
}

/* "Pretraining is worth N labels", by what the best pretrained method reaches with about 100. */
static void print_worth(const struct Compare *c)
{
    int near = 0, scratch = -1, pretrained = 0;
    for (int b = 0; b < c->budget_count; b++)
        if (abs(c->budgets[b] - 100) < abs(c->budgets[near] - 100)) near = b;
    for (int m = 0; m < c->method_count; m++) {
        pretrained += is_pretrained(&c->methods[m]);
        if (c->methods[m].family == TUNED && !is_pretrained(&c->methods[m])) scratch = m;
    }
    const int best = best_method(c, near, true);
    if (best < 0 || scratch < 0 || !estimate_at(c, near, scratch)->seeds) return;
    const int few = c->budgets[near], most = c->budgets[c->budget_count - 1];
    const double accuracy = estimate_at(c, near, best)->mean;
    const double needed = labels_needed(c, scratch, accuracy);
    printf("%s reaches %.3f with %d labels%s. Training from scratch ", c->methods[best].name,
           accuracy, few, pretrained < 2 ? "" : " (as the best of several, so a little flattered)");
    if (needed <= few)
        printf("needs no more: here pretraining is worth nothing.\n");
    else if (isfinite(needed))
        printf("needs about %.0f: pretraining is worth some %.0f labels.\n", needed, needed - few);
    else if (most > few)
        printf("does not reach that with %d: pretraining is worth more than %d labels.\n", most,
               most - few);
    else
        printf("reaches %.3f; larger --labels would tell how many it needs.\n",
               estimate_at(c, near, scratch)->mean);
    if (!(p_value(c, near, best, scratch) < SIGNIFICANT))
        printf("But with %d labels the two do not differ significantly, so this is a guess.\n",
               few);
}

/* What to use with the largest budget: the best method, or a clearly quicker one that is within its
 * interval and not worse even by a test without correction. None, if the commonest label might be
 * as good as any. */
static void print_choice(const struct Compare *c)
{
    const int b = c->budget_count - 1, best = best_method(c, b, false);
    int choice = best;
    if (best < 0) return;
    double limit = 0.7 * mean_seconds(estimate_at(c, b, best));
    for (int m = 0; m < c->method_count; m++) {
        const struct Estimate *e = estimate_at(c, b, m);
        if (c->methods[m].family == MAJORITY && (m == best || e->holm >= SIGNIFICANT)) {
            printf("With %d labels no method is significantly better than the commonest label: "
                   "give more labels or more test texts.\n", c->budgets[b]);
            return;
        }
        if (e->p >= SIGNIFICANT && e->mean >= estimate_at(c, b, best)->low
            && mean_seconds(e) < limit) {
            choice = m;
            limit = mean_seconds(e);
        }
    }
    printf("For these data, with %d labels: %s%s.\n", c->budgets[b], c->methods[choice].name,
           choice == best ? "" : ", the quickest of those that are not significantly worse");
}

/* What the figures cannot tell. */
static void print_limits(const struct Compare *c)
{
    int fewest = c->seeds;
    for (int i = 0; i < c->budget_count * c->method_count; i++)
        if (c->estimates[i].seeds) fewest = min_int(fewest, c->estimates[i].seeds);
    if (c->budgets[c->budget_count - 1] == c->learn_count && fewest > 1)
        printf("With all %d labels every seed learns from the same texts: what other texts would "
               "change is not in that interval.\n", c->learn_count);
    if (fewest < 3) printf("%d seed%s: too few to trust small differences.\n", fewest,
                           fewest == 1 ? "" : "s");
}

/* Sentences that a person can use. */
static void print_verdict(const struct Compare *c)
{
    int others = 0;
    for (int i = 0; i < c->test_count; i++) others += c->truth[i] != c->truth[0];
    if (!others) {
        printf("\nAll test texts are of the class %s, so this table tells nothing of the others: "
               "there is no verdict. Give another --test.\n", c->names[c->truth[0]]);
        return;
    }
    printf("\n");
    if (c->method_count > 1)
        printf("Significant: p < %g by paired differences, with Holm's correction for all that are "
               "compared with the best.\n", SIGNIFICANT);
    for (int b = 0; b < c->budget_count; b++) print_best(c, b);
    print_worth(c);
    print_choice(c);
    print_limits(c);
}

/* --- The whole comparison --- */

/* Seeds come last to be dropped in: one seed of every method and budget is better than five of
 * some. */
static void list_cells(struct Compare *c)
{
    const size_t row = (size_t)c->budget_count * c->method_count;
    c->estimates = allocate_zeroed(row * sizeof *c->estimates);
    c->cells = allocate_zeroed(c->seeds * row * sizeof *c->cells);
    for (int seed = 1; seed <= c->seeds; seed++)
        for (int b = 0; b < c->budget_count; b++)
            for (int m = 0; m < c->method_count; m++)
                *cell_at(c, seed, b, m) = (struct Cell){m, b, seed, false};
    c->cell_count = (int)(c->seeds * row);
}

/* Seconds that a training will take: as its other seeds, else as the same method with fewer labels;
 * NAN if that method has not run yet. */
static double expected_seconds(const struct Compare *c, const struct Cell *cell)
{
    for (int b = cell->budget; b >= 0; b--) {
        const struct Estimate *e = estimate_at(c, b, cell->method);
        if (e->seeds) return mean_seconds(e);
    }
    return NAN;
}

/* A line about a cell that is done. The time left is known when every method has run. */
static void show_cell(const struct Compare *c, const struct Cell *cell)
{
    double rest = 0;
    for (const struct Cell *x = c->cells; x < c->cells + c->cell_count; x++)
        if (!x->done) rest += expected_seconds(c, x);
    if (c->time_limit) rest = fmin(rest, c->time_limit - (seconds() - c->start));
    progress(!live(), "%d/%d  %s, %d labels, seed %d: %.4f in %.1f s%s%s",
             (int)(cell - c->cells) + 1, c->cell_count, c->methods[cell->method].name,
             c->budgets[cell->budget], cell->seed, cell->accuracy, cell->seconds,
             isnan(rest) ? "" : "  left: ", isnan(rest) ? "" : duration(rest));
}

/* Runs the cells that are not done, and saves each, until a signal or --time-limit ends it. Returns
 * how many are left. */
static int run_cells(struct Compare *c)
{
    int left = 0;
    for (int i = 0; i < c->cell_count; i++) {
        struct Cell *cell = &c->cells[i];
        if (cell->done) continue;
        left++;
        const double end = seconds() - c->start + fmax(0, expected_seconds(c, cell));
        if (stop_signal || (c->time_limit && end > c->time_limit)) continue;
        run_cell(cell, c);
        if (!cell->done) continue;
        left--;
        save_cell(c, cell);
        show_cell(c, cell);
    }
    if (live()) fprintf(stderr, "\r\033[K");
    return left;
}

/* The whole comparison. Returns the exit status. */
static int compare(struct Compare *c)
{
    struct Metadata meta;
    load_base(&c->task, &c->base, &meta);
    const int L = c->base.config.layers;
    if (!c->methods_text) {
        c->methods_text = text_of("majority,nb,nbsvm,scratch,probe,last:%d,full,full+l2sp:10",
                                  min_int(2, L));
        parse_methods(c);
    }
    for (const struct Method *m = c->methods; m < c->methods + c->method_count; m++)
        if (m->set.kind == LAST && m->set.last > L)
            die_usage("--methods %s: the model has %s. Choose no more.", m->name,
                      counted(L, "block"));
    load_texts(c);
    choose_test(c);
    fit_budgets(c);
    list_cells(c);
    open_comparison(c);
    stop_between_steps();
    const int left = run_cells(c);
    if (stop_signal && left) {
        commit_outputs();
        advise_resume("compare", brief("%d of %d trainings", c->cell_count - left, c->cell_count),
                      c->task.set.out);
        return stopped_status();
    }
    if (left)
        warn("--time-limit: %d of %d trainings were left out. --resume without it makes up for "
             "them.", left, c->cell_count);
    compute_estimates(c);
    print_table(c);
    if (left < c->cell_count) print_verdict(c);
    return 0;
}

/* Warns of options that were given and change nothing for these methods. */
static void warn_of_idle_comparison(const struct Option *options, const struct Compare *c)
{
    static const char *const names[] = {"epochs", "steps", "batch", "val-part", "max-tokens",
                                        "truncate"};
    bool tuned = false, steps = false;
    for (const struct Method *m = c->methods; m < c->methods + c->method_count; m++) {
        tuned |= m->family == TUNED;
        steps |= m->family == TUNED && m->set.kind != PROBE;
    }
    for (int i = 0; i < COUNT(names); i++)
        if (i < 3 ? !steps : !tuned)
            warn_unused(options, names[i], i < 3 ? "on --methods that take no gradient steps"
                                                 : "on --methods that fine-tune nothing");
}

/* Locks --out, and with --resume takes the settings of the comparison there. Otherwise dies if one
 * is there, unless it is to be replaced. */
static void take_directory(struct Compare *c, struct Option *options)
{
    static const char *const files[] = {"compare.tsv", "state.safetensors", NULL};
    const struct Settings *s = &c->task.set;
    char *state = state_path(s);
    if (s->resume && s->overwrite) die_usage("--resume and --overwrite: choose one of them.");
    lock_directory(s->out);
    if (s->resume && file_exists(state)) {
        load_metadata(state, &c->old);
        resume_options(options, &c->old, "compare", s->out);
    } else if (!s->overwrite)
        refuse_existing(s->out, files, "Give --resume, --overwrite or another --out.");
    if (!s->model || !s->train)
        die_usage("--%s: must be given. --help explains it.", s->model ? "train" : "model");
    free(state);
}

/* The options of `compare`. */
static const char compare_usage[] =
    "finetune_cls compare --model DIR --train FILE [--test FILE] --out DIR [options]\n"
    "What is pretraining worth? Every method learns from the same few labels, several times,\n"
    "and is tested on the same texts. Prints a table and what follows from it; writes a row\n"
    "for each training to compare.tsv.";

static int command_compare(int argc, char **argv)
{
    struct Compare c = {.seeds = 5, .labels_text = "20,100,500,1000,all", .start = seconds(),
                        .test_part = 0.3, .task = {.set = DEFAULT_SETTINGS, .quiet = true}};
    struct Settings *s = &c.task.set;
    struct Option options[] = {
        tune_option(s, "model"), tune_option(s, "train"),
        {"test", "labelled texts that nothing is learnt from; without: a part of --train", TEXT,
         &c.test, .effect = EXTENDS},
        {"test-part", "how much of each class that part is", REAL_NUMBER, &c.test_part, 0.001, 0.9,
         .effect = DEFINES, .idle = "with test"},
        {"test-examples", "so many of --test, of each class in proportion; 0: all", INTEGER,
         &c.test_examples, 0, 1e9, .effect = DEFINES},
        {"out", "directory of compare.tsv", TEXT, &s->out, .required = true},
        {"labels", "how many to learn from, rising; all, or more than there are: all of them", TEXT,
         &c.labels_text, .effect = EXTENDS},
        {"seeds", "repetitions with other labels, head, order and dropout", INTEGER, &c.seeds, 1,
         1000, .effect = EXTENDS},
        {"methods", "without: majority,nb,nbsvm,scratch,probe,last:2,full,full+l2sp:10", TEXT,
         &c.methods_text, .effect = EXTENDS},
        {"time-limit", "ends the comparison; later seeds are left out first; 0: none", SECONDS,
         &c.time_limit, 0, 1e9},
        tune_option(s, "val-part"), tune_option(s, "epochs"), tune_option(s, "steps"),
        tune_option(s, "batch"), tune_option(s, "max-tokens"), tune_option(s, "truncate"),
        tune_option(s, "text-column"), tune_option(s, "label-column"),
        tune_option(s, "pair-column"), tune_option(s, "header"), tune_option(s, "format"),
        PRECISION_OPTION(&s->precision),
        THREADS_OPTION(&s->threads),
        {"resume", "go on with the comparison in --out; it knows its options", FLAG, &s->resume},
        {"overwrite", "replace the comparison in --out", FLAG, &s->overwrite},
        {0}
    };
    refuse_arguments(read_options(argc, argv, options, compare_usage), argv);
    take_directory(&c, options);
    check_settings(s);
    warn_idle(options);
    describe_options(&c.state, options, "compare");
    if (c.methods_text) {
        parse_methods(&c);
        warn_of_idle_comparison(options, &c);
    }
    parse_budgets(&c);
    if (c.test) refuse_same_file(s->train, c.test);
    begin_training();
    set_threads(s->threads);
    set_precision(s->precision);
    return compare(&c);
}

/* ============================================================================================= */
/* 11. A look inside: layers, explain                                                            */
/* ============================================================================================= */

/* What the last token of each text has become after every block, from one pass over all texts:
 * levels[l] (count, C) after l blocks, put through ln_f as if the network ended there. */
static void read_levels(struct Runner *r, real *const *levels, const struct Dataset *d,
                        const int *list, int count)
{
    struct Workspace *ws = &r->ws;
    const struct Weights *w = &r->model->w;
    const int C = r->model->config.channels, L = r->model->config.layers;
    struct Timer timer = start_timer();
    real *mean = resize(NULL, 2 * ws->max_rows * sizeof *mean);
    for (int done = 0; done < count; ) {
        const struct Batch b = gather(r, d, list + done, count - done);
        for (int l = 0; l <= L; l++) {
            const real *x = blocks_forward(r->model, ws, &b, 0, 0, max_int(l - 1, 0), l);
            real *last = levels[l] + (size_t)done * C;
            for (int s = 0; s < b.sequences; s++)
                memcpy(last + (size_t)s * C, x + (size_t)(b.starts[s + 1] - 1) * C,
                       C * sizeof *last);
            if (l < L)
                layernorm_forward(last, mean, mean + ws->max_rows, last, w->lnf_w, w->lnf_b,
                                  b.sequences, C);
        }
        done += b.sequences;
        show_work(&timer, "features", done, count, "texts");
    }
    free(mean);
}

/* The accuracy of a probe after each block, on the test texts. Which block knows most about the
 * labels tells how many to tune: those above it have specialised in predicting the next token. */
static void probe_levels(struct Task *t, int train_texts)
{
    const int L = t->model.config.layers, C = t->model.config.channels;
    const int all = t->data.count, n = all - train_texts;
    real **levels = resize(NULL, (L + 1) * sizeof *levels);
    int *order = resize(NULL, all * sizeof *order);
    for (int i = 0; i < all; i++) order[i] = i;
    for (int l = 0; l <= L; l++) levels[l] = allocate_zeroed((size_t)all * C * sizeof(real));
    read_levels(&t->runner, levels, &t->data, order, all);
    printf("blocks  val_accuracy  test_accuracy  95%% interval\n");
    for (int l = 0; l <= L; l++) {
        struct Metadata meta = {0};
        double loss, val, test, low, high;
        t->features = levels[l];
        train_probe(t, &meta);
        struct Logistic f = ask_probe(&loss, &val, t, t->val, t->val_count);
        logistic_free(&f);
        f = ask_probe(&loss, &test, t, order + train_texts, n);
        logistic_free(&f);
        wilson_interval(&low, &high, test, n);
        printf("%6d  %12.4f  %13.4f  %.4f to %.4f%s\n", l, val, test, low, high,
               l == 0 ? "  (embeddings alone)" : "");
        metadata_free(&meta);
    }
    free(levels);
    free(order);
}

/* One pass over the texts, then a probe for every block. */
static int command_layers(int argc, char **argv)
{
    const char *test_path = NULL;
    struct Task t = {.set = DEFAULT_SETTINGS, .quiet = true};
    struct Settings *s = &t.set;
    struct Model base;
    struct Metadata meta;
    struct Option options[] = {
        {"model", "directory of the pretrained model", TEXT, &s->model, .required = true},
        {"train", data_meaning, TEXT, &s->train, .required = true},
        {"test", "labelled texts that nothing is learnt from", TEXT, &test_path, .required = true},
        tune_option(s, "val-part"), tune_option(s, "max-tokens"), tune_option(s, "truncate"),
        tune_option(s, "text-column"), tune_option(s, "label-column"),
        tune_option(s, "pair-column"), tune_option(s, "header"), tune_option(s, "format"),
        tune_option(s, "seed"),
        THREADS_OPTION(&s->threads),
        {0}
    };
    refuse_arguments(read_options(argc, argv, options,
        "finetune_cls layers --model DIR --train FILE --test FILE\n"
        "How much each block of a pretrained model knows: the accuracy of a probe after it."),
        argv);
    refuse_same_file(s->train, test_path);
    set_threads(s->threads);
    s->kind = PROBE;
    load_base(&t, &base, &meta);
    const struct Window window = {s->max_tokens, s->truncate, s->columns.names[PAIRS] != NULL};
    int classes;
    char **names = load_data(&t, window, &classes);
    const int train_texts = t.data.count;
    const struct Examples test = read_examples(test_path, s->columns);
    add_examples(&t.data, t.tokenizer, &test, names, classes, window);
    start_model(&t, &base, names, classes);
    prepare(&t);
    probe_levels(&t, train_texts);
    return 0;
}

/* A token's bytes, those that are no text as \xNN. The caller frees them. */
static char *shown_token(const struct Tokenizer *t, int token)
{
    int n;
    struct Buffer b = {0};
    const uint8_t *bytes = bytes_of_token(t, token, &n);
    append_readable(&b, bytes, n);
    return b.data;
}

/* p (n, K): the probabilities after each of the n tokens of a text. */
static void read_prefixes(real *p, struct Classifier *c, const struct Dataset *d)
{
    const int n = length_of(d, 0), zero = 0;
    const struct Batch whole = gather(&c->runner, d, &zero, 1);
    int *starts = resize(NULL, ((size_t)n + 1) * sizeof *starts);
    for (int i = 0; i <= n; i++) starts[i] = i;
    const struct Batch rows = {n, n, d->tokens, starts};    /* each row the last of a sequence */
    trunk_forward(&c->model, &c->runner.ws, &whole, 0, 0);
    class_head(&c->model, &c->runner.ws, &rows, NULL, NULL, 0, p);
    free(starts);
}

/* P(label) after each token of a text: a causal model can be read at every prefix. The token that
 * moved it most is named; on a terminal the text is coloured, red for less, green for more. */
static void explain_text(struct Classifier *c, struct Bytes text)
{
    const int K = c->model.config.labels;
    struct Dataset d = {0};
    add_text(&d, c->tokenizer, text, -1, c->window);
    const int n = length_of(&d, 0);
    real *p = resize(NULL, (size_t)n * K * sizeof *p);
    read_prefixes(p, c, &d);
    const int best = most_probable(p + (size_t)(n - 1) * K, K);
    const char *label = c->model.config.label_names[best];
    double before = p[best], largest = 0;
    int most = 0;
    printf("P(%s) after each token:\n", label);
    for (int i = 0; i < n; i++) {
        const double now = p[(size_t)i * K + best], change = now - before;
        const int green = (int)(5 * now + 0.5);             /* of the 6 x 6 x 6 colours */
        char *token = shown_token(c->tokenizer, d.tokens[i]);
        if (isatty(1)) printf("\033[48;5;%d;38;5;16m", 16 + 36 * (5 - green) + 6 * green);
        printf("%.4f  %+.4f  %s", now, change, token);
        printf(isatty(1) ? "\033[0m\n" : "\n");
        free(token);
        if (fabs(change) > fabs(largest)) { most = i; largest = change; }
        before = now;
    }
    if (most) {
        char *token = shown_token(c->tokenizer, d.tokens[most]);
        printf("%s: the token \"%s\" (number %d) moved it most, by %+.4f\n", label, token,
               most + 1, largest);
        free(token);
    }
    free(p);
}

static int command_explain(int argc, char **argv)
{
    const char *dir = NULL;
    int threads = 0;
    struct Classifier c = {0};
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &dir, .required = true},
        THREADS_OPTION(&threads),
        {0}
    };
    const int count = read_options(argc, argv, options,
        "finetune_cls explain --model DIR TEXT...\n"
        "The probability of the predicted label after each token, and which token moved it most.");
    if (!count) die_usage("TEXT: must be given. --help explains it.");
    set_threads(threads);
    load_classifier(&c, dir);
    for (int i = 0; i < count; i++) {
        if (i) printf("\n");
        explain_text(&c, (struct Bytes){argv[i], strlen(argv[i])});
    }
    return 0;
}

#ifndef FINETUNE_NO_MAIN
int main(int argc, char **argv)
{
    static const struct Command commands[] = {
        {"train", command_train, "make a classifier from a pretrained model and labelled texts"},
        {"eval", command_eval, "accuracy, F1, loss, AUC, calibration, confusion matrix on a file"},
        {"predict", command_predict, "the label of texts, from arguments, a file or lines"},
        {"compare", command_compare, "what pretraining is worth, by methods and numbers of labels"},
        {"layers", command_layers, "how much each block of a pretrained model knows"},
        {"explain", command_explain, "the probability of the label after each token of a text"},
    };
    return run_command("finetune_cls", argc, argv, commands, COUNT(commands));
}
#endif
