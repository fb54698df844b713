/* finetune_cls.c: from a pretrained GPT and labelled texts to a classifier.
 *
 *    I   Fine-tuning          texts as tokens, batches and features, gradient steps, label words
 *                             and the probe, scores, and classical baselines, which know only words
 *    II  Files and commands   labelled files, before and after the training, train, eval, predict;
 *                             compare, layers, explain
 *
 *    "Not a dull moment."
 *       |  tokenizer
 *    <|endoftext|> Not  a  dull  moment .        tokens, as documents begin in pretraining
 *       |  the pretrained trunk (model.h)
 *    hidden (N, C)                               one row a token
 *       |  the last row of each text: the only one that has read all tokens
 *    features (B, C)
 *       |  score_w (K, C), the new head
 *    scores (B, K) -> softmax -> probabilities   positive 0.97, negative 0.03
 *
 * What is trained, from the cheapest to the fullest:
 *
 *    prompt     nothing: score_w is made of label words, so it asks the language model itself.
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
    struct Bytes *texts;        /* (N): as they were given */
    int longest, truncated;     /* tokens of the longest text; number of texts that were cut */
    size_t capacity;            /* of tokens */
};

/* Begins a text of at most `most` tokens. Returns where they go; the caller sets its end. */
static int *begin_text(struct Dataset *d, struct Bytes text, size_t most, int label)
{
    const size_t n = d->count;
    if (!(n & (n - 1))) {                       /* a power of 2: twice the room */
        d->labels = resize(d->labels, (2 * n + 1) * sizeof *d->labels);
        d->texts = resize(d->texts, (2 * n + 1) * sizeof *d->texts);
        d->starts = resize(d->starts, (2 * n + 2) * sizeof *d->starts);
    }
    if (n == 0) d->starts[0] = 0;
    if (d->starts[n] + most >= d->capacity) {   /* also if no text has a token yet */
        d->capacity = 2 * (d->starts[n] + most);
        d->tokens = resize(d->tokens, d->capacity * sizeof *d->tokens);
    }
    d->texts[n] = text;
    d->labels[n] = label;
    return d->tokens + d->starts[n];
}

/* Keeps at most max of n ids, in place. */
static void truncate_ids(int *ids, int n, int max, const char *how)
{
    if (n <= max) return;
    const int head = !strcmp(how, "head") ? max : !strcmp(how, "tail") ? 0 : (max + 1) / 2;
    const int tail = max - head;
    memmove(ids + head, ids + n - tail, tail * sizeof *ids);
}

/* The tokens of a text into ids; of two, "a TAB b", those of a, <|endoftext|>, those of b. Returns
 * how many there are, of which max at most are kept: the longer text of a pair loses tokens until
 * both are equally long, then both do. Dies if there is no TAB in a text that is not empty. */
static int tokens_of(int *ids, struct Tokenizer *t, struct Bytes text, int max, struct Window w)
{
    const char *tab = w.pairs ? memchr(text.data, '\t', text.size) : NULL;
    const size_t first = tab ? (size_t)(tab - text.data) : text.size;
    const int a = tokenizer_encode(t, text.data, first, ids);
    if (!w.pairs) { truncate_ids(ids, a, max, w.truncate); return a; }
    if (!tab && text.size)
        die("\"%.*s\": pairs of texts are read, but here is one. Put a tab between two.",
            min_int(80, (int)text.size), text.data);
    ids[a] = t->eot;
    const int b = !tab ? 0 : tokenizer_encode(t, tab + 1, text.size - first - 1, ids + a + 1);
    const int room = max_int(max - 1, 0);
    const int keep_a = min_int(a, max_int(room - b, (room + (a > b)) / 2));
    const int keep_b = min_int(b, room - keep_a);
    truncate_ids(ids + a + 1, b, keep_b, w.truncate);
    truncate_ids(ids, a, keep_a, w.truncate);
    memmove(ids + keep_a, ids + a, (keep_b + 1) * sizeof *ids);
    return a + 1 + b;
}

/* Appends one text: its tokens, after <|endoftext|> if texts began so in pretraining, before the
 * suffix if there is one. Cutting leaves room for both. An empty text is at least <|endoftext|>. */
static void add_text(struct Dataset *d, struct Tokenizer *tokenizer, struct Bytes text, int label,
                     struct Window w)
{
    const struct Usage *u = &tokenizer->usage;
    const int first = u->begins || !(text.size || u->suffix_count);
    const int room = w.max - first - u->suffix_count;
    int *ids = begin_text(d, text, text.size + 2 + u->suffix_count, label);
    ids[0] = tokenizer->eot;
    const int all = tokens_of(ids + first, tokenizer, text, room, w);
    int n = first + min_int(all, room);
    d->truncated += room < all;
    for (int i = 0; i < u->suffix_count; i++) ids[n++] = u->suffix[i];
    d->longest = max_int(d->longest, n);
    d->starts[++d->count] = ids + n - d->tokens;
}

/* Lets a suffix follow every text, such as ". it was"; NULL or "": none. The last state, which the
 * head reads, then prepares an opinion. Dies unless max tokens leave one to the text. */
static void set_suffix(struct Tokenizer *t, const char *suffix, int max)
{
    struct Usage *u = &t->usage;
    const size_t length = suffix ? strlen(suffix) : 0;
    u->suffix = resize(u->suffix, (length + 1) * sizeof *u->suffix);
    u->suffix_count = length ? tokenizer_encode(t, suffix, length, u->suffix) : 0;
    if (u->suffix_count && u->begins + u->suffix_count >= max)
        die_usage("--suffix %s: has %s, which leave none of %d to a text. Choose a shorter one.",
                  suffix, counted(u->suffix_count, "token"), max);
}

static int length_of(const struct Dataset *d, int example)
{
    return (int)(d->starts[example + 1] - d->starts[example]);
}

/* ============================================================================================= */
/* 2. Batches and features                                                                       */
/* ============================================================================================= */

enum { BATCH_ROWS = 2048 };     /* tokens of a batch: enough rows for efficient products */

/* A model, texts, and the memory to run it on batches of them. */
struct Runner {
    struct Model *model;
    const struct Dataset *data;
    struct Workspace ws;
    struct Batch minibatch;         /* its targets: the labels, until set_next_tokens */
    real *cache;                    /* (tokens of data, C): what frozen blocks gave, or NULL */
    size_t cache_bytes;
    struct Timer timer;             /* of the lines of progress */
};

/* last:K freezes the blocks below the last K (first_layer of them), so what they give for a text is
 * the same in every epoch. It is kept in cache, 0 until the text is first read, if all fits into a
 * quarter of the machine's memory. Otherwise they run again for every update. */
static void runner_create(struct Runner *r, struct Model *model, const struct Dataset *data,
                          int max_rows, int kind)
{
    *r = (struct Runner){.model = model, .data = data, .timer = start_timer()};
    workspace_create(&r->ws, model, max_rows, kind);
    r->minibatch = batch_create(max_rows);
    if (!model->first_layer) return;
    const size_t bytes = data->starts[data->count] * model->config.channels * sizeof(real);
    if (bytes <= machine_memory() / 4) r->cache = allocate_zeroed(r->cache_bytes = bytes);
}

static void runner_free(struct Runner *r)
{
    workspace_free(&r->ws);
    batch_free(&r->minibatch);
    release(r->cache, r->cache_bytes);
}

/* A batch of the first of the examples list[0 .. count): as many as fit, but at least one. */
static struct Batch gather(struct Runner *r, const int *list, int count)
{
    const struct Dataset *d = r->data;
    struct Batch *m = &r->minibatch;
    for (batch_clear(m); m->sequences < count; ) {
        const int s = m->sequences, example = list[s], n = length_of(d, example);
        if (m->rows + n > m->max_rows) break;
        m->targets[s] = d->labels[example];
        memcpy(m->tokens + batch_add(m, n), d->tokens + d->starts[example], n * sizeof(int));
    }
    return *m;
}

/* Such a batch goes through the trunk: ws.hidden are its hidden states, as from trunk_forward, but
 * frozen blocks may know a shorter way, and have no dropout (p, key). */
static struct Batch forward(struct Runner *r, const int *list, int count, double p, uint64_t key)
{
    const struct Batch b = gather(r, list, count);
    const int frozen = r->model->first_layer, C = r->model->config.channels;
    const size_t *starts = r->data->starts;
    real *x = r->ws.activations[frozen].x;          /* the input of the first block that learns */
    bool known = r->cache;      /* all of it; what happens to be 0 is computed again */
    for (int s = 0; s < b.sequences && known; s++) known = r->cache[starts[list[s]] * C] != 0;
    if (frozen && !known) blocks_forward(r->model, &r->ws, &b, 0, 0, 0, frozen);
    for (int s = 0; s < b.sequences && r->cache; s++) {
        real *here = x + (size_t)b.starts[s] * C, *kept = r->cache + starts[list[s]] * C;
        const size_t bytes = (size_t)length_of(r->data, list[s]) * C * sizeof *x;
        memcpy(known ? here : kept, known ? kept : here, bytes);
    }
    blocks_forward(r->model, &r->ws, &b, p, key, frozen, r->model->config.layers);
    return b;
}

/* Sets and returns a batch's targets for lm_head: the next token of the text, -1 at its end. */
static const int *set_next_tokens(struct Batch b)
{
    for (int n = 0; n + 1 < b.rows; n++) b.targets[n] = b.tokens[n + 1];
    for (int s = 0; s < b.sequences; s++) b.targets[b.starts[s + 1] - 1] = -1;
    return b.targets;
}

/* One forward pass over the examples list[0 .. count), or with list NULL over the first count.
 *   features (count, C): hidden at the last token of each text, which is all that the head reads
 *   probabilities (count, K): softmax of the head's scores      each may be NULL
 * Returns the sum of losses of the examples with a label. what: for lines of progress, or NULL. */
static double run_examples(struct Runner *r, real *probabilities, real *features, const int *list,
                           int count, const char *what)
{
    const int K = r->model->config.labels, C = r->model->config.channels;
    int *examples = resize(NULL, count * sizeof *examples);
    struct Timer timer = start_timer();
    double loss = 0;
    for (int i = 0; i < count; i++) examples[i] = list ? list[i] : i;
    for (int done = 0; done < count; ) {
        const struct Batch b = forward(r, examples + done, count - done, 0, 0);
        if (probabilities)
            loss += class_head(r->model, &r->ws, &b, b.targets, NULL, 0,
                               probabilities + (size_t)done * K);
        for (int s = 0; s < b.sequences && features; s++)
            memcpy(features + (size_t)(done + s) * C,
                   r->ws.hidden + (size_t)(b.starts[s + 1] - 1) * C, C * sizeof *features);
        done += b.sequences;
        if (what) show_work(&timer, what, done, count, "texts");
    }
    free(examples);
    return loss;
}

/* ============================================================================================= */
/* 3. Gradient steps                                                                             */
/* ============================================================================================= */

/* How a labelled file is laid out. A column is a position, from 1, or a name of the header. Where
 * NULL or "auto" stands, the training's file or else the file itself decides (section 7). */
enum { TEXTS, LABELS, PAIRS, COLUMNS };
enum { JSONL, FASTTEXT, TSV, CSV, LINES, FORMATS };
struct Columns {
    const char *names[COLUMNS];         /* PAIRS: of a second text; NULL: texts are single */
    const char *header;                 /* yes: the first row has the names of the columns; no */
    const char *format;                 /* tsv, csv, jsonl, fasttext, lines */
    const char *kept_format;            /* of the training of the classifier that is used */
    bool texts_only;                    /* labels are not read */
};

/* The options of a training. Section 9 has their meanings, section 8 what 0 or -1 becomes where a
 * default depends on --tune, on the model and on the data. */
struct Settings {
    const char *model, *train, *val, *out, *tune, *truncate, *suffix, *label_words, *prior;
    const char *class_weights, *precision;
    struct Columns columns;
    int epochs, steps, patience, batch, max_tokens, threads;
    int64_t seed;
    double lr, head_lr_ratio, dropout, weight_decay, warmup, val_part;
    double layer_decay, l2sp, lm_coef, average;
    bool overwrite, resume, dedupe, calibrate;
    bool all, json;                             /* how predict prints */
    /* --tune; the first two make no steps. compare has three more, which know no model. */
    enum { PROMPT, PROBE, LAST, FULL, SCRATCH, MAJORITY, NB, NBSVM } kind;
    int last;                                   /* K of last:K */
    int every;                                  /* updates between two validations */
};

struct Scores { double accuracy, macro_f1, loss, ece, majority; };      /* see `score` */

/* One fine-tuning, or the use of a classifier. */
struct Task {
    struct Settings set;
    struct Tokenizer *tokenizer;
    struct Model base;                          /* the pretrained one, with the labels of data */
    struct Model model;
    struct Runner runner;
    struct Dataset data;                        /* training and validation examples */
    int *train, *val;                           /* (train_count) (val_count): which ones */
    int *truth;                                 /* (val_count): the labels of val */
    int train_count, val_count;
    real *probabilities;                        /* (val_count, K): of the last validation */
    uint64_t source_hash, train_hash;           /* of base's weights, of all texts as tokens */
    real *class_weights;                        /* (K), or NULL: all 1 */
    struct Dataset words;                       /* (K): the label words of each class, or none */
    double *prior;                              /* (K): the share of each class; NULL: not said */
    int *unlabelled, unlabelled_count;          /* texts that are read without their labels */
    struct Random order, masks;                 /* of the training examples; of dropout */
    struct Option *options;                     /* the rows of set */
    struct Columns layout;                      /* of the labelled file: its format and header */
    struct Window window;                       /* what is read of a text */
    struct Json old;                            /* metadata of what --resume found; empty: none */
    struct Journal log;                         /* log.tsv */
    bool quiet;                                 /* one of many trainings: no files */
    const char *title;                          /* of its lines of progress, or NULL: none */
};

/* Where a training is. A state on disk holds what a resumed one needs. */
struct TrainState {
    double start, loss, norm;               /* loss: the sum over the examples since a validation */
    int step, examples;                     /* updates so far; how many examples `loss` is of */
    struct Scores best_scores;              /* of the best weights on validation */
    int best_step;                          /* 0: there are none */
    real *best, *mean;                      /* weights; mean, or NULL: of the last updates */
    double saved, saving;                   /* when the state was written; how long that took */
};

/* --- The start --- */

/* The classifier before training: the weights of the pretrained model and a random head, which is 0
 * for a probe, or, for scratch, random weights throughout. */
static void start_model(struct Task *t)
{
    struct Model *model = &t->model;
    model_create(model, t->base.config);
    if (t->set.kind == SCRATCH) { model_init(model, t->set.seed); return; }
    const int head = model->tensor_count - 1;           /* last, as in the list of base */
    memcpy(model->weights, t->base.weights, model->tensors[head].offset * sizeof(real));
    if (t->set.kind > PROBE) tensor_init(model, head, t->set.seed);
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

/* Of section 8: progress, log.tsv, best weights and state on disk. A quiet training has none. */
static void begin_state(struct Task *t, struct TrainState *run);
static void show_step(struct Task *t, const struct TrainState *run, double loss, double lr);
static void record_validation(struct Task *t, const struct TrainState *run, struct Scores now);
static void save_if_due(struct Task *t, struct TrainState *run, bool must);

/* --- Updates --- */

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
        const struct Batch b = forward(r, list + done, count - done, s->dropout,
                                       random_bits(&t->masks));
        loss += class_head(r->model, &r->ws, &b, b.targets, t->class_weights, (real)1 / count,
                           NULL);
        if (s->lm_coef > 0 && next_tokens > 0)
            lm_head(r->model, &r->ws, &b, set_next_tokens(b), (real)(s->lm_coef / next_tokens));
        trunk_backward(r->model, &r->ws, &b);
        done += b.sequences;
    }
    *norm = grad_norm(r->model);
    if (!isfinite(*norm))
        die("step %lld of a training: the gradient is not finite. Start again with a lower lr than "
            "%g.", (long long)step, s->lr);
    adamw_step(r->model, lr, *norm > 1 ? 1 / *norm : 1, s->weight_decay, step);
    if (s->l2sp > 0 && s->kind != SCRATCH) proximal_step(r->model, t->base.weights, lr, s->l2sp);
    return loss / count;
}

static struct Scores score(const real *p, const int *truth, double loss, int N, int K);

/* The scores of the model on the validation examples. */
static struct Scores validate(struct Task *t)
{
    const double loss = run_examples(&t->runner, t->probabilities, NULL, t->val, t->val_count,
                                     t->quiet ? t->title : "validation");
    return score(t->probabilities, t->truth, loss, t->val_count, t->model.config.labels);
}

/* mean += (weights - mean) / count: the mean of the weights after each of the last updates. */
static void average_weights(struct TrainState *run, const struct Model *model, int count)
{
    const real part = 1 / (real)count;
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < model->parameter_count; i++)
        run->mean[i] += part * (model->weights[i] - run->mean[i]);
}

/* Validates, and keeps the weights if they are the most accurate so far, of equally accurate ones
 * those with the lowest loss. */
static void validate_and_keep(struct Task *t, struct TrainState *run)
{
    const struct Scores now = validate(t), top = run->best_scores;
    if (now.accuracy > top.accuracy || (now.accuracy == top.accuracy && now.loss < top.loss)) {
        run->best_scores = now;
        run->best_step = run->step;
        memcpy(run->best, t->model.weights, t->model.parameter_count * sizeof(real));
    }
    record_validation(t, run, now);
    run->loss = run->examples = 0;
}

/* The number of passes over the training examples that an update belongs to. */
static int epoch_of(const struct Task *t, int step)
{
    return ceil_div(step, ceil_div(t->train_count, t->set.batch));
}

/* The whole fine-tuning: examples in random order, s->batch of them an update; validation after
 * every s->every updates; the best weights stay. With --average the model instead ends with the
 * mean of the weights of the last updates. The rate rises, then falls along a cosine so that it
 * would be 0 one update after the last: every update counts. Returns false if a signal ended the
 * training before its last update. */
static bool train_steps(struct Task *t, struct Json *meta)
{
    const struct Settings *s = &t->set;
    const int updates = ceil_div(t->train_count, s->batch);             /* of an epoch */
    const int64_t warmup = (int64_t)(s->warmup * s->steps);
    const size_t bytes = t->model.parameter_count * sizeof(real);
    struct TrainState run = {.start = seconds(), .best = allocate_zeroed(bytes),
                           .best_scores = {.accuracy = -1, .loss = INFINITY},
                           .mean = s->average > 0 ? allocate_zeroed(bytes) : NULL};
    bool done = false, stop = false;
    int averaged = 0;                       /* updates that mean is of; none: below 1 */
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
        averaged = run.step - (int)((1 - s->average) * s->steps);
        if (averaged > 0) average_weights(&run, &t->model, averaged);
        if (run.step % s->every == 0 || run.step == s->steps) validate_and_keep(t, &run);
        done = run.step == s->steps
            || (s->patience && (run.step - run.best_step) / s->every >= s->patience);
        stop = stop_signal && !done;
        if (!done) save_if_due(t, &run, stop);
    }
    if (done) {
        memcpy(t->model.weights, averaged > 0 ? run.mean : run.best, bytes);
        metadata_set(meta, "best_step", "%d", run.best_step);
        metadata_set(meta, "weights", "%s", averaged <= 0 ? "best on validation"
                     : brief("mean of the last %d updates", averaged));
    }
    if (done && run.step < s->steps && !t->quiet)
        progress(true, "stopped: %d times no better on validation", s->patience);
    if (stop && !t->quiet)
        advise_resume("train", brief("step %d/%d", run.step, s->steps), s->out);
    release(run.best, bytes);
    release(run.mean, bytes);
    return done;
}

/* ============================================================================================= */
/* 4. Label words and the probe                                                                  */
/* ============================================================================================= */

/* Before any label the language model has an opinion already: after " It was" it expects " great"
 * or " terrible" (Liu et al. 2023; Schick and Schuetze 2021). Its score of token w after hidden
 * state h is wte_w . h, so the label words W_k of class k make a row of the head:
 *
 *   score_k = 1/|W_k| sum_{w in W_k} wte_w . h - prior_k = score_w[k] . h
 *
 * The prior is needed, since models prefer praise whatever they have read (Zhao et al. 2021). It
 * comes from texts whose labels nobody has read: over them, each class gets its share of the
 * probability.
 *
 * But the head has no bias that could take prior_k. It needs none: h is what LayerNorm gave,
 * h_c = w_c xhat_c + b_c, and sum_c xhat_c = 0. So sum_c h_c / w_c is the same for every text, and
 * a multiple of 1 / w is a bias. With C = 2, w = (2, 4) and b = (1, 6):
 *
 *   xhat = (1, -1):     h = (3, 2)    3/2 + 2/4 = 2
 *   xhat = (-0.5, 0.5): h = (0, 8)    0/2 + 8/4 = 2
 *
 * Both are sum_c b_c / w_c = 1/2 + 6/4, so a row with (1/2, 1/4) / 2 added scores 1 higher. */

/* The features (count, C) of some examples, all finite. The caller releases them. what: as in
 * run_examples. */
static real *features_of(struct Task *t, const int *list, int count, const char *what)
{
    const size_t size = (size_t)count * t->model.config.channels;
    real *x = allocate_zeroed(size * sizeof *x), square = 0;
    run_examples(&t->runner, NULL, x, list, count, t->quiet ? t->title : what);
    for (size_t i = 0; i < size; i++) square += x[i] * x[i];
    if (!isfinite(square))          /* a probe adds up such products, so they must be, too */
        die("%s: the features are not finite. The pretrained model is broken.", t->set.model);
    return x;
}

/* u (C) with u . h = 1 for every feature h: u_c = 1 / (w_c sum_c b_c / w_c). If that sum is too
 * near 0 for the digits of a float, u is mean / |mean|^2 over the features x (N, C), and u . h is 1
 * on average. */
static void constant_feature(double *u, const struct Task *t, const real *x, int N)
{
    const struct Weights *w = &t->model.w;
    const int C = t->model.config.channels;
    double sum = 0, size = C;
    for (int c = 0; c < C; c++) {
        u[c] = 1 / w->lnf_w[c];
        sum += w->lnf_b[c] * u[c];
        size += fabs(w->lnf_b[c] * u[c]);
    }
    if (!(fabs(sum) > 1e-5 * size)) {
        sum = 0;
        for (int c = 0; c < C; c++) {
            u[c] = 0;
            for (int n = 0; n < N; n++) u[c] += x[(size_t)n * C + c] / N;
            sum += u[c] * u[c];
        }
    }
    for (int c = 0; c < C; c++) u[c] /= sum;
}

/* b (K): the biases with which the mean probability of each class is its share,
 *   1/N sum_n softmax(z_n + b)_k = share_k
 * as logistic regression makes it of the labels' shares. Each round adds the logarithm of what the
 * mean lacks.   z (N, K) */
static void fit_bias(double *b, const double *z, const double *share, int N, int K)
{
    enum { MAX_ROUNDS = 1000 };
    double mean[K], p[K], largest = 1;
    for (int k = 0; k < K; k++) b[k] = 0;
    for (int round = 0; round < MAX_ROUNDS && largest > 1e-9; round++) {
        for (int k = 0; k < K; k++) mean[k] = 0;
        for (int n = 0; n < N; n++) {
            double max = -INFINITY, sum = 0;
            for (int k = 0; k < K; k++) max = fmax(max, z[(size_t)n * K + k] + b[k]);
            for (int k = 0; k < K; k++) sum += p[k] = exp(z[(size_t)n * K + k] + b[k] - max);
            for (int k = 0; k < K; k++) mean[k] += p[k] / sum / N;
        }
        largest = 0;
        for (int k = 0; k < K; k++) {
            const double change = log(share[k] / fmax(mean[k], 1e-300));
            b[k] += change;
            largest = fmax(largest, fabs(change));
        }
    }
}

/* share (K): --prior's; else equal ones, until the labels contradict that: chi^2, the sum of
 * (n_k - N/K)^2 / (N/K), is beyond what chance makes of equal shares in 95 of 100 cases. Then they
 * are the labels', one added to each. So a few labels do not move what texts without labels say. */
static void class_shares(double *share, const struct Task *t)
{
    const int K = t->model.config.labels, N = t->set.kind == PROMPT ? 0 : t->train_count;
    double count[K], chi2 = 0;
    for (int k = 0; k < K; k++) count[k] = 0;
    for (int i = 0; i < N; i++) count[t->data.labels[t->train[i]]]++;
    for (int k = 0; k < K && N; k++) chi2 += pow(count[k] - (double)N / K, 2) * K / N;
    const bool equal = chi2 <= K - 1 + 2 * sqrt(2.0 * (K - 1));     /* near the true quantile */
    for (int k = 0; k < K; k++)
        share[k] = t->prior ? t->prior[k] : equal ? 1.0 / K : (count[k] + 1) / (N + K);
}

/* Sets the bias of each class by the texts without labels. Few labels spoil it first: so this
 * comes before the training, and if there are fewer labels than such texts also after it. */
static void set_prior(struct Task *t)
{
    const int K = t->model.config.labels, C = t->model.config.channels, N = t->unlabelled_count;
    real *x = features_of(t, t->unlabelled, N, "texts without labels"), *head = t->model.w.score_w;
    double *z = resize(NULL, (size_t)N * K * sizeof *z), u[C], share[K], b[K];
    for (size_t i = 0; i < (size_t)N * K; i++) {
        z[i] = 0;
        for (int c = 0; c < C; c++) z[i] += (double)x[i / K * C + c] * head[i % K * C + c];
    }
    constant_feature(u, t, x, N);
    class_shares(share, t);
    fit_bias(b, z, share, N, K);
    for (int k = 0; k < K; k++)
        for (int c = 0; c < C; c++) head[(size_t)k * C + c] += (real)(b[k] * u[c]);
    free(z);
    release(x, (size_t)N * C * sizeof *x);
}

/* The head begins as the language model's own opinion: each row is the mean of its label words'
 * rows of wte, less the prior. */
static void begin_with_words(struct Task *t)
{
    const struct Dataset *words = &t->words;
    const int K = t->model.config.labels, C = t->model.config.channels;
    real *head = t->model.w.score_w;
    memset(head, 0, (size_t)K * C * sizeof *head);
    for (int k = 0; k < K; k++)
        for (size_t i = words->starts[k]; i < words->starts[k + 1]; i++)
            for (int c = 0; c < C; c++)
                head[(size_t)k * C + c] += t->model.w.wte[(size_t)words->tokens[i] * C + c]
                                           / (real)length_of(words, k);
    set_prior(t);
}

/* --- Logistic regression --- */

/* Multinomial logistic regression with an L2 penalty, on features x that are computed once:
 *
 *   F(w) = 1/N sum_n -a_n log p_n[label_n] + l2/2 |w|^2      p_n = softmax(z_n)
 *   dF/dw = 1/N sum_n a_n (p_n - onehot(label_n)) x_n^T + l2 w      z_n = start_n + w x_n
 *
 * a_n is the weight of the example's class, 1 unless --class-weights says otherwise. F is strictly
 * convex, so there is one solution, whatever the order or the seed. */
struct Logistic {
    int N, C, K;
    real *x;                    /* (N, C) */
    int *labels;                /* (N) */
    double l2;
    const real *class_weights;  /* (K), or NULL: all 1 */
    int *folds;                 /* (N), or NULL: the part of the examples that each belongs to */
    int held_out;               /* the part that is not learned from: a_n = 0 */
    double *start;              /* (N, K): z at w = 0 */
    double *z, *p, *losses;     /* (N, K) (N, K) (N): all at the same w */
    double loss;                /* the mean of losses, without the penalty */
};

static double weight_of(const struct Logistic *f, int n)
{
    if (f->folds && f->folds[n] == f->held_out) return 0;
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

/* a . b, of n values each. */
static double dot(const double *a, const double *b, size_t n)
{
    double sum = 0;
    #pragma omp simd reduction(+: sum)
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* F at w (K, C), when z is known. Sets p and the losses. */
static double logistic_objective(struct Logistic *f, const double *w)
{
    const int K = f->K;
    double total = 0;
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < f->N; n++) {
        const double *z = f->z + (size_t)n * K, own = z[f->labels[n]];
        double *p = f->p + (size_t)n * K, max = -INFINITY, sum = 0;
        for (int k = 0; k < K; k++) max = z[k] > max ? z[k] : max;
        for (int k = 0; k < K; k++) sum += p[k] = exp(z[k] - max);
        for (int k = 0; k < K; k++) p[k] /= sum;
        f->losses[n] = weight_of(f, n) * (max - own + log(sum));
    }
    for (int n = 0; n < f->N; n++) total += f->losses[n];
    f->loss = total / f->N;
    return f->loss + f->l2 / 2 * dot(w, w, (size_t)K * f->C);
}

/* dw (K, C) = dF/dw at w, after logistic_objective. Threads share out channels of classes, and each
 * adds the examples in their order. */
static void logistic_gradient(double *dw, const struct Logistic *f, const double *w)
{
    enum { CHANNELS = 16 };
    const int C = f->C, K = f->K;
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < ceil_div(C, CHANNELS) * K; i++) {
        const int k = i % K, c0 = i / K * CHANNELS, channels = min_int(CHANNELS, C - c0);
        double *d = dw + (size_t)k * C + c0;
        memset(d, 0, channels * sizeof *d);
        for (int n = 0; n < f->N; n++) {
            const real *x = f->x + (size_t)n * C + c0;
            const double slope = weight_of(f, n) * (f->p[(size_t)n * K + k] - (k == f->labels[n]));
            for (int c = 0; c < channels; c++) d[c] += slope * x[c];
        }
    }
    for (size_t i = 0; i < (size_t)K * C; i++) dw[i] = dw[i] / f->N + f->l2 * w[i];
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
    double *g = allocate_zeroed(3 * size * sizeof *g), *s = g + size, *d = s + size;
    for (size_t i = 0; i < (size_t)C * C; i++)
        L[i] = gram[i] / ((double)f->N * K) + (i % (C + 1) == 0) * f->l2;
    cholesky(L, C, f->l2 / 2);
    logistic_scores(f->z, f, w);
    for (size_t i = 0; i < (size_t)f->N * K; i++) f->z[i] += f->start[i];
    double F = logistic_objective(f, w), sg = INFINITY;
    int gradients = 1;
    for (;; gradients++) {
        logistic_gradient(g, f, w);
        double largest = 0;             /* also if g is NaN, which no step would mend */
        for (size_t i = 0; i < size; i++) largest = fmax(largest, fabs(g[i]));
        if (largest <= 1e-7 || gradients == MAX_GRADIENTS) break;
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
    release(g, 3 * size * sizeof *g);
    return gradients;
}

/* --- The probe of a model --- */

/* The probe corrects the head that it begins with: 0, or the opinion of label words. It learns from
 * all channels of the features h, or from the scores of the label words alone, since few labels
 * want few features. Either are projections y_j = e_j . h, with one e_j for each, standardised:
 *
 *   x_j = (y_j - mean_j) / deviation_j      so that one penalty suits all of them, and
 *   x_F = STRONG                            a constant, so large that the penalty hardly sees it
 *
 * Afterwards each x is written as a row of the head again: e_j / deviation_j, and for what is
 * constant a multiple of u. So the model is used like any other. */
enum { STRONG = 10, FOLDS = 4, PENALTIES = 7 };

struct Probe {
    struct Logistic f;          /* its C is F + 1, with F features */
    const int *words;           /* (F): tokens whose rows of wte are the e_j, or NULL: channels */
    double *mean, *deviation;   /* (F) */
    double *w;                  /* (K, F + 1): the solution */
    double *losses;             /* (N): of each when it was held out, with the chosen penalty */
    struct Scores scores;       /* of the same */
};

/* Sets x_j for all N texts, from their features h (N, C). A constant feature is only centred. */
static void standardise(struct Probe *p, int j, const real *h, const struct Model *model)
{
    const int N = p->f.N, width = p->f.C, C = model->config.channels;
    const real *e = p->words ? model->w.wte + (size_t)p->words[j] * C : NULL;
    real *x = p->f.x + j;
    double mean = 0, square = 0;
    for (int n = 0; n < N; n++) {
        const real *hn = h + (size_t)n * C;
        double y = e ? 0 : hn[j];
        for (int c = 0; e && c < C; c++) y += (double)e[c] * hn[c];
        x[(size_t)n * width] = (real)y;
        mean += y / N;
    }
    for (int n = 0; n < N; n++) square += pow(x[(size_t)n * width] - mean, 2) / N;
    const double deviation = square > 1e-12 ? sqrt(square) : 1;
    for (int n = 0; n < N; n++)
        x[(size_t)n * width] = (real)((x[(size_t)n * width] - mean) / deviation);
    p->mean[j] = mean;
    p->deviation[j] = deviation;
}

/* The training examples for a probe, with their features h (N, C): the label words' scores, or all
 * channels. The examples of each class are dealt out in their order, so that each fold has its
 * part of every class. */
static struct Probe probe_create(const struct Task *t, const real *h, bool of_words)
{
    const int C = t->model.config.channels, K = t->model.config.labels, N = t->train_count;
    const int F = of_words ? (int)t->words.starts[K] : C;
    const real *head = t->model.w.score_w;
    const size_t scores = (size_t)N * K,
                 bytes = (3 * scores + 2 * N + 2 * F + (size_t)K * (F + 1)) * sizeof(double);
    double *start = memset(resize(NULL, bytes), 0, bytes), *losses = start + 3 * scores,
           *mean = losses + 2 * N;
    struct Probe p = {
        .words = of_words ? t->words.tokens : NULL,
        .mean = mean, .deviation = mean + F, .w = mean + 2 * F, .losses = losses + N,
        .f = {.N = N, .C = F + 1, .K = K, .x = allocate_zeroed((size_t)N * (F + 1) * sizeof(real)),
              .labels = resize(NULL, N * sizeof(int)), .folds = resize(NULL, N * sizeof(int)),
              .class_weights = t->class_weights, .start = start, .z = start + scores,
              .p = start + 2 * scores, .losses = losses}};
    int dealt[K];
    #pragma omp parallel for schedule(static)
    for (int j = 0; j < F; j++) standardise(&p, j, h, &t->model);
    for (int k = 0; k < K; k++) dealt[k] = k;       /* rare classes do not all begin with fold 0 */
    for (int n = 0; n < N; n++) {
        const int label = p.f.labels[n] = t->data.labels[t->train[n]];
        p.f.x[(size_t)n * (F + 1) + F] = STRONG;
        p.f.folds[n] = dealt[label]++ % FOLDS;
        for (int k = 0; k < K; k++)
            for (int c = 0; c < C; c++)
                p.f.start[(size_t)n * K + k] += (double)head[(size_t)k * C + c]
                                                * h[(size_t)n * C + c];
    }
    return p;
}

static void probe_free(struct Probe *p)
{
    release(p->f.x, (size_t)p->f.N * p->f.C * sizeof(real));
    free(p->f.labels);
    free(p->f.folds);
    free(p->f.start);           /* and all other numbers */
}

/* Whether losses (N) are lower than others on average. clearly: if the head began with an opinion,
 * only evidence shall move it, a mean difference of more than its standard error. */
static bool are_lower(const double *losses, const double *others, int N, bool clearly)
{
    double mean = 0, square = 0;
    for (int n = 0; n < N; n++) mean += (others[n] - losses[n]) / N;
    for (int n = 0; n < N; n++) square += pow(others[n] - losses[n] - mean, 2);
    return mean > (clearly ? sqrt(square) / N : 0);
}

/* Cross-validation: each of four parts of the labels judges what the others taught, so that every
 * label both teaches and judges. The penalties fall from 1e2, with which the head stays as it
 * began, to 1e-4, with which it fits noise; each begins from the solution before. The loss chooses,
 * since accuracies of few labels take few values. With the chosen penalty all labels teach. */
static struct Probe probe_fit(struct Task *t, const real *h, bool of_words)
{
    struct Probe p = probe_create(t, h, of_words);
    struct Logistic *f = &p.f;
    const char *what = of_words ? "words" : "channels";
    const int K = f->K, N = f->N;
    const size_t size = (size_t)K * f->C, gram_bytes = (size_t)f->C * f->C * sizeof(real);
    real *gram = allocate_zeroed(gram_bytes);
    real *judged = resize(NULL, (size_t)N * K * sizeof *judged);
    double *w = allocate_zeroed(FOLDS * size * sizeof *w), chosen = 0, start = seconds();
    double *losses = resize(NULL, N * sizeof *losses);
    gemm(gram, transposed(matrix(f->x, f->C)), matrix(f->x, f->C), NULL, NULL, f->C, f->C, N);
    for (int exponent = 2; exponent > 2 - PENALTIES; exponent--) {
        double train_loss = 0, loss = 0;
        int gradients = 0;
        f->l2 = pow(10, exponent);
        for (f->held_out = 0; f->held_out < FOLDS; f->held_out++) {
            gradients += logistic_solve(f, w + f->held_out * size, gram);
            train_loss += f->loss / (FOLDS - 1);
            for (int n = 0; n < N; n++) {
                if (f->folds[n] != f->held_out) continue;
                for (int k = 0; k < K; k++)
                    judged[(size_t)n * K + k] = (real)f->p[(size_t)n * K + k];
                losses[n] = -log(fmax(f->p[(size_t)n * K + f->labels[n]], 1e-300));
                loss += losses[n];
            }
        }
        const struct Scores now = score(judged, f->labels, loss, N, K);
        const bool better = !chosen || are_lower(losses, p.losses, N, t->words.count > 0);
        if (!t->quiet) {
            journal_add(&t->log, "%.6g\t%s\t%d\t%.6f\t%.6f\t%.6f\t%.2f\n", f->l2, what,
                        gradients, train_loss, now.loss, now.accuracy, seconds() - start);
            progress(true, "%s  l2 %-8.3g train loss %.4f  val loss %.4f  val accuracy %.4f  "
                     "%.1f s%s", what, f->l2, train_loss, now.loss, now.accuracy,
                     seconds() - start, better ? "  best" : "");
        }
        if (!better) continue;
        memcpy(p.losses, losses, N * sizeof *losses);
        p.scores = now;
        chosen = f->l2;
    }
    f->l2 = chosen;
    logistic_solve(f, p.w, gram);           /* held_out is none of the parts now */
    release(gram, gram_bytes);
    release(w, FOLDS * size * sizeof *w);
    free(losses);
    free(judged);
    return p;
}

/* The head += the solution, as rows of it.   h (N, C): the features */
static void add_to_head(struct Task *t, const struct Probe *p, const real *h)
{
    const int C = t->model.config.channels, F = p->f.C - 1;
    real *head = t->model.w.score_w;
    double u[C];
    constant_feature(u, t, h, p->f.N);
    for (int k = 0; k < p->f.K; k++, head += C) {
        const double *w = p->w + (size_t)k * (F + 1);
        double row[C], bias = STRONG * w[F];
        for (int j = 0; j < F; j++) bias -= w[j] / p->deviation[j] * p->mean[j];
        for (int c = 0; c < C; c++) row[c] = head[c] + bias * u[c];
        for (int j = 0; j < F && !p->words; j++) row[j] += w[j] / p->deviation[j];
        for (int j = 0; j < F && p->words; j++)
            for (int c = 0; c < C; c++)
                row[c] += w[j] / p->deviation[j] * t->model.w.wte[(size_t)p->words[j] * C + c];
        for (int c = 0; c < C; c++) head[c] = (real)row[c];
    }
}

/* Trains score_w alone, by logistic regression on the features h (N, C). With label words,
 * cross-validation chooses between their scores and all channels. Returns its scores. */
static struct Scores train_probe(struct Task *t, const real *h, struct Json *meta)
{
    struct Probe best = probe_fit(t, h, t->words.count > 0);
    if (best.words) {
        struct Probe all = probe_fit(t, h, false), few = best;
        const bool better = are_lower(all.losses, few.losses, t->train_count, true);
        best = better ? all : few;
        probe_free(better ? &few : &all);
    }
    add_to_head(t, &best, h);
    metadata_set(meta, "l2", "%.6g", best.f.l2);
    metadata_set(meta, "learned_from", "%s", best.words ? "words" : "channels");
    probe_free(&best);
    return best.scores;
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

/* One class: its examples, how often it is predicted, and how often both. In the usual words:
 *   right = TP    truly = TP + FN    predicted = TP + FP */
struct ClassCounts { int truly, predicted, right; };

/* counts (K), of p (N, K), whose labels are truth (N). */
static void count_classes(struct ClassCounts *counts, const real *p, const int *truth, int N, int K)
{
    memset(counts, 0, K * sizeof *counts);
    for (int i = 0; i < N; i++) {
        const int best = most_probable(p + (size_t)i * K, K);
        counts[truth[i]].truly++;
        counts[best].predicted++;
        counts[best].right += best == truth[i];
    }
}

/* The harmonic mean of precision and recall (van Rijsbergen 1979):
 *   F1 = 2 TP / (2 TP + FP + FN)      0 if the class never occurs */
static double f1_of(struct ClassCounts c)
{
    return 2.0 * c.right / max_int(c.truly + c.predicted, 1);
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

/* All scores of p (N, K), whose labels are truth (N).
 *   macro_f1: the mean of F1 over the classes that occur, truly or as a prediction
 *   majority: the accuracy of always predicting the commonest label, which must be beaten
 * loss: the sum over the N examples. */
static struct Scores score(const real *p, const int *truth, double loss, int N, int K)
{
    struct ClassCounts counts[K];
    int right = 0, present = 0, commonest = 0;
    double f1 = 0;
    count_classes(counts, p, truth, N, K);
    for (int k = 0; k < K; k++) {
        right += counts[k].right;
        f1 += f1_of(counts[k]);
        present += counts[k].truly + counts[k].predicted > 0;
        commonest = max_int(commonest, counts[k].truly);
    }
    return (struct Scores){(double)right / N, present ? f1 / present : 0, loss / N,
                           calibration_error(p, truth, N, K), (double)commonest / N};
}

/* The lower (side -1) or upper (1) 95% bound of the accuracy that a estimates, from N examples
 * (Wilson 1927): the q from which a is z standard deviations away, |a - q| = z sqrt(q (1 - q) / N)
 *   q = (a + z^2 / 2N + side z sqrt(a (1 - a) / N + z^2 / 4N^2)) / (1 + z^2 / N) */
static double wilson_bound(double a, int N, int side)
{
    const double z = 1.959963984540054, zz = z * z / N;
    const double half = z * sqrt((a * (1 - a) + zz / 4) / N);
    return fmin(1, fmax(0, (a + zz / 2 + side * half) / (1 + zz)));
}

/* The correlation of two yes-or-no variables, truth and prediction (Matthews 1975):
 *   (TP TN - FP FN) / sqrt((TP + FN) (TN + FP) (TP + FP) (TN + FN))      0 if the root is */
static double matthews(struct ClassCounts no, struct ClassCounts yes)
{
    const double root = sqrt((double)yes.truly * no.truly) * sqrt((double)yes.predicted
                                                                  * no.predicted);
    const double wrong = (double)(yes.truly - yes.right) * (no.truly - no.right);
    return root > 0 ? ((double)yes.right * no.right - wrong) / root : 0;
}

static int compare_reals(const void *a, const void *b)
{
    const real x = *(const real *)a, y = *(const real *)b;
    return (x > y) - (x < y);
}

/* How well the probability of class 1 ranks the N examples of two classes, whatever the threshold:
 * the part of the pairs of a positive and a negative example in which the positive one is more
 * probable; equal ones count half. It is the area under the ROC curve (Hanley and McNeil 1982), NaN
 * if a class has no example. Halves add up without rounding.   p (N, 2)    truth (N) */
static double area_under_curve(const real *p, const int *truth, int N)
{
    real *of[2] = {resize(NULL, N * sizeof(real)), resize(NULL, N * sizeof(real))};
    int count[2] = {0}, lower = 0, most = 0;    /* negative ones below a positive; and equal ones */
    double area = 0;
    for (int i = 0; i < N; i++) of[truth[i]][count[truth[i]]++] = p[2 * (size_t)i + 1];
    for (int k = 0; k < 2; k++) qsort(of[k], count[k], sizeof(real), compare_reals);
    for (int i = 0; i < count[1]; i++) {
        while (lower < count[0] && of[0][lower] < of[1][i]) lower++;
        while (most < count[0] && of[0][most] <= of[1][i]) most++;
        area += (lower + most) / 2.0;
    }
    free(of[0]); free(of[1]);
    return area / ((double)count[0] * count[1]);
}

/* --- Calibration, after any kind of training --- */

/* The temperature T that makes probabilities p (N, K) fit the labels best: softmax(z / T), where z
 * are the scores, is p^(1/T) up to a factor (Guo et al. 2017). With b = 1/T the mean loss is
 * convex:
 *   dLoss/db = mean of (sum_k q_k log p_k - log p_label)      q = softmax(b log p)
 * Bisection finds where it is 0, in 1/20 <= T <= 20. */
static double fit_temperature(const real *p, const int *labels, int N, int K)
{
    double low = 0.05, high = 20;
    for (int i = 0; i < 60; i++) {
        const double b = sqrt(low * high);
        double slope = 0;
        for (int n = 0; n < N; n++) {
            const real *pn = p + (size_t)n * K;
            double sum = 0, mean = 0;
            for (int k = 0; k < K; k++) {
                const double log_p = log(fmax(pn[k], 1e-30)), q = exp(b * log_p);
                sum += q;
                mean += q * log_p;
            }
            slope += mean / sum - log(fmax(pn[labels[n]], 1e-30));
        }
        if (slope > 0) high = b; else low = b;
    }
    return 1 / sqrt(low * high);
}

/* --calibrate: divides all scores by the temperature that fits validation best. The head is linear
 * without a bias, so its weights are divided, and every reader gets the same probabilities. */
static void calibrate(struct Task *t, struct Json *meta)
{
    const int K = t->model.config.labels, C = t->model.config.channels;
    const struct Scores before = validate(t);
    if (before.accuracy == 1) {                 /* the smaller T, the lower the loss */
        warn("--calibrate: has no effect, since all of %d answers are right. Give more texts: "
             "--val, --val-part.", t->val_count);
        return;
    }
    const double T = fit_temperature(t->probabilities, t->truth, t->val_count, K);
    for (size_t i = 0; i < (size_t)K * C; i++) t->model.w.score_w[i] /= (real)T;
    progress(true, "temperature %.3f; before: val loss %.4f, calibration error %.4f", T,
             before.loss, before.ece);
    metadata_set(meta, "temperature", "%.6f", T);
}

/* ============================================================================================= */
/* 6. Classical baselines                                                                        */
/* ============================================================================================= */

/* What a classifier reaches that knows no language, only which words occur: each claim for
 * pretraining is measured against it. A text is the set of its words and of its pairs of adjacent
 * words ("features"); how often one occurs does not count. Features are the tokens of these texts:
 * numbers below F, each once in a text. */

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

/* Appends the features of the texts of d to bags. A feature's number counts the first occurrences
 * before its own, and is found by a hash of 63 bits: two features with one hash count as one, among
 * 10 million with a chance of 1 in 180,000. Returns F. */
static int bags_of(struct Dataset *bags, const struct Dataset *d)
{
    struct HashTable numbers = hash_table(0);
    int *last = NULL;                           /* (F): the last text that has it */
    for (int i = 0; i < d->count; i++) {
        const char *p = d->texts[i].data, *end = p + d->texts[i].size;
        int *features = begin_text(bags, d->texts[i], 2 * (end - p), d->labels[i]), n = 0;
        uint64_t word = 0;
        last = resize(last, bags->capacity * sizeof *last);
        while (p < end) {
            if (isspace((unsigned char)*p)) { p++; continue; }
            const uint64_t before = word;
            p = word_end(p, end, &word);
            const uint64_t keys[] = {word >> 1, mix64(before * 0x9E3779B97F4A7C15u + word) >> 1};
            for (int k = 0; k < (before ? 2 : 1); k++) {
                const int next = (int)numbers.count, f = hash_add(&numbers, keys[k], next);
                if (f == next) last[f] = -1;
                if (last[f] != i) features[n++] = f;
                last[f] = i;
            }
        }
        bags->starts[++bags->count] = features + n - bags->tokens;
    }
    const int F = (int)numbers.count;
    hash_free(&numbers);
    free(last);
    return F;
}

/* The classical methods are linear: of the texts t->train of a task whose data are bags and whose
 * vocabulary is F, each learns w (F + 1) for a class k, and the score of a text is the sum of w
 * over its features, + w[F]. */

/* own, other (F): the part of each feature in all occurrences of features in texts of class k, and
 * in those of the others, with add-one smoothing:
 *   own_f = (n_f + 1) / (sum_f n_f + F)        n_f: texts of class k with f
 * F counts features that occur in training. The others have 1, whose logarithm is 0. */
static void feature_parts(double *own, double *other, const struct Task *t, int k)
{
    const struct Dataset *d = &t->data;
    const int F = t->base.config.vocabulary;
    double owns = 0, others = 0;
    for (int f = 0; f < F; f++) own[f] = other[f] = 0;
    for (int i = 0; i < t->train_count; i++) {
        const int text = t->train[i];
        double *n = d->labels[text] == k ? own : other;
        for (size_t j = d->starts[text]; j < d->starts[text + 1]; j++) n[d->tokens[j]]++;
    }
    for (int f = 0; f < F; f++) {
        if (own[f] + other[f] > 0) { own[f]++; other[f]++; }
        owns += own[f];
        others += other[f];
    }
    for (int f = 0; f < F; f++) {
        own[f] = own[f] > 0 ? own[f] / owns : 1;
        other[f] = other[f] > 0 ? other[f] / others : 1;
    }
}

/* The sum of w over the features of a text. */
static double bag_dot(const struct Dataset *d, int text, const double *w)
{
    double sum = 0;
    for (size_t j = d->starts[text]; j < d->starts[text + 1]; j++) sum += w[d->tokens[j]];
    return sum;
}

/* The same answer to every text: the commonest label. */
static void majority(double *w, const struct Task *t, int k)
{
    const int F = t->base.config.vocabulary;
    for (int f = 0; f <= F; f++) w[f] = 0;
    for (int i = 0; i < t->train_count; i++) w[F] += t->data.labels[t->train[i]] == k;
}

/* Multinomial naive Bayes (Wang and Manning 2012, on sets of features):
 *   w_f = log own_f      w_F = log (N_k / N)      own: feature_parts      N_k: texts of class k */
static void naive_bayes(double *w, const struct Task *t, int k)
{
    const int F = t->base.config.vocabulary;
    double *other = resize(NULL, F * sizeof *other);
    majority(w, t, k);
    w[F] = w[F] ? log(w[F] / t->train_count) : -1e9;
    feature_parts(w, other, t, k);
    for (int f = 0; f < F; f++) w[f] = log(w[f]);
    free(other);
}

/* A linear support vector machine with squared hinge loss, class k against the others, by dual
 * coordinate descent (Hsieh et al. 2008):
 *   min over w, b   (|w|^2 + b^2) / 2 + C sum_i max(0, 1 - y_i (w . x_i + b))^2       C = 0.15
 * where x_i has the value r_f at each feature f of text i, else 0. y_i is 1 for class k, else -1.
 * Each text has a factor a_i >= 0, w = sum_i a_i y_i x_i, and one a_i is optimised at a time. w is
 * kept as v_f = r_f w_f, so that r2 = r^2 is all that is needed of r.   v, r2 (F). Returns b. */
static double train_svm(double *v, const struct Task *t, const double *r2, int k)
{
    enum { EPOCHS = 200 };
    const double half_c = 0.5 / 0.15;       /* 1 / (2C) */
    const struct Dataset *d = &t->data;
    const int N = t->train_count;
    int *order = resize(NULL, N * sizeof *order);
    double *a = resize(NULL, N * sizeof *a), bias = 0, worst = INFINITY;
    struct Random random = random_stream(0, k);
    for (int f = 0; f < t->base.config.vocabulary; f++) v[f] = 0;
    for (int i = 0; i < N; i++) { order[i] = i; a[i] = 0; }
    for (int epoch = 0; epoch < EPOCHS && worst >= 0.01; epoch++) {
        worst = 0;
        shuffle(order, N, &random);
        for (int n = 0; n < N; n++) {
            const int i = order[n], text = t->train[i];
            const double y = d->labels[text] == k ? 1 : -1, was = a[i];
            const double slope = y * (bag_dot(d, text, v) + bias) - 1 + half_c * was;
            if (was == 0 && slope >= 0) continue;
            worst = fmax(worst, fabs(slope));
            a[i] = fmax(0, was - slope / (bag_dot(d, text, r2) + 1 + half_c));  /* |x|^2; 1 for b */
            const double step = y * (a[i] - was);
            for (size_t j = d->starts[text]; j < d->starts[text + 1]; j++)
                v[d->tokens[j]] += step * r2[d->tokens[j]];
            bias += step;
        }
    }
    free(order);
    free(a);
    return bias;
}

/* NB-SVM (Wang and Manning 2012): a support vector machine whose features are scaled by how much
 * more often they occur in class k than elsewhere:
 *   r_f = log (own_f / other_f)                own, other: feature_parts
 * Of two classes the second has the opposite weights; w still holds those of the first. The paper
 * also draws the weights to their mean absolute value. On SST-2 and IMDb that costs up to five
 * points, so it is left out. */
static void nbsvm(double *w, const struct Task *t, int k)
{
    const int F = t->base.config.vocabulary;
    const bool opposite = t->base.config.labels == 2 && k == 1;
    for (int f = 0; f <= F && opposite; f++) w[f] = -w[f];
    if (opposite) return;
    double *r2 = resize(NULL, F * sizeof *r2);
    feature_parts(r2, w, t, k);                 /* for the moment */
    for (int f = 0; f < F; f++) r2[f] = pow(log(r2[f] / w[f]), 2);
    w[F] = train_svm(w, t, r2, k);
    free(r2);
}

/* ============================================================================================= */
/* II. FILES AND COMMANDS                                                                        */
/* ============================================================================================= */

/* ============================================================================================= */
/* 7. Labelled files                                                                             */
/* ============================================================================================= */

/* The rule for columns: a number is a position, always; a name is one of the header's or that of a
 * JSON member, without regard to capitals. If neither is said, usual names are looked for. The
 * first row is a header if a column goes by name, or has a usual name at its position; of positions
 * --header may say otherwise. What was said of columns, the header and the format hold for the
 * classifier's other files, too: one that looks like another format is refused. */

/* A labelled text, in memory that is never freed. The two texts of a pair have a tab between. */
struct Example { struct Bytes text, label; int line; };

/* columns: as they were said, with the format and the header that were found. */
struct Examples { const char *path; struct Example *items; int count; struct Columns columns; };

/* The usual names of each column, the preferred ones first. A pair's second text has none. */
static const char *const usual_names[COLUMNS] = {
    "text|sentence|content|review|tweet|comment|phrase|body|review_text|review_body|message",
    "label|labels|sentiment|target|class|category|polarity", ""};
static const char *const column_words[COLUMNS] = {"text", "label", "pair"};

/* Records of a file that cannot be used: how many, the first three in words; the current line. */
struct Faults { const char *path; int line, count; struct Buffer first; };

/* A file being read, record by record. */
struct Reader {
    const char *at, *end;               /* a NUL follows */
    const char *counted;                /* the line ends before are counted in faults.line */
    struct Columns columns;
    const char *wanted[COLUMNS];        /* names "a|b|c" or a position; NULL: not wanted */
    int format;
    char separator;                     /* of columns; '\n': there is only one */
    struct Bytes header;                /* the first line, if it has names; size 0: it has not */
    struct Bytes *fields;               /* (count): of the record; width: how many the first has */
    int count, width;
    int place[COLUMNS];                 /* of the columns among the fields, or -1 */
    int empty, long_rows;               /* rows without content; of many lines */
    struct Faults faults;
};

/* bad(faults, format, ...) counts a record that cannot be used, and returns false. */
#define bad(f, ...) bad_record(f, brief(__VA_ARGS__))
static bool bad_record(struct Faults *f, const char *what)
{
    if (f->count++ < 3)
        append(&f->first, "%sline %d: %s", f->count > 1 ? "; " : "", f->line, what);
    return false;
}

static void refuse_faults(const struct Faults *f, const char *advice)
{
    if (f->count)
        die("%s: %s cannot be used: %s%s. %s", f->path, counted(f->count, "record"), f->first.data,
            f->count > 3 ? "; ..." : "", advice);
}

/* --- Lines and fields --- */

/* Whether a line has blanks, separators and empty quotes at most. */
static bool is_blank(const struct Reader *r, struct Bytes line)
{
    const char *s = line.data, *end = s + line.size;
    while (s < end && (*s == ' ' || *s == r->separator || !strncmp(s, "\"\"", 2)))
        s += *s == '"' ? 2 : 1;
    return s >= end;
}

/* Moves to the next record and counts the lines; false: there is none. Skips byte order marks,
 * which are also left inside files that were put together, what is between the objects of an array
 * and, unless lines keep their place, blank ones and Excel's "sep=;". */
static bool next_record(struct Reader *r, bool keep_lines)
{
    for (const char *next = r->at; r->at < r->end; r->at = next) {
        if (r->format == JSONL) next = r->at += strspn(r->at, "[,] \t\r\n");
        if (!strncmp(r->at, "\xEF\xBB\xBF", 3)) { next = r->at + 3; continue; }
        const struct Bytes line = take_line(&next, r->end);
        const bool excel = line.size == 5 && !memcmp(line.data, "sep=", 4);
        if (keep_lines || !(excel || is_blank(r, line))) break;
        r->empty += !excel && line.size;
    }
    for (; r->counted < r->at; r->counted++) r->faults.line += *r->counted == '\n';
    return r->at < r->end;
}

static void add_field(struct Reader *r, struct Bytes field)
{
    r->fields = resize(r->fields, (r->count + 1) * sizeof field);
    r->fields[r->count++] = field;
}

/* A field in quotes, which may hold separators, line ends and doubled quotes (RFC 4180). Its last
 * quote stands right before a separator or a line end. Without one before `limit`, the quote at
 * r->at is text, as in: "Frailty" has been ... Returns false then. */
static bool read_quoted(struct Reader *r, struct Bytes *field, const char *limit)
{
    const char *s = r->at + 1, *quote;
    struct Buffer b = {0};
    for (; (quote = memchr(s, '"', limit - s)); s = quote + 2) {
        append_bytes(&b, s, quote - s + (quote[1] == '"'));
        if (quote[1] != '"') break;
    }
    const char *rest = quote ? quote + 1 : limit;
    rest += *rest == '\r' && (rest[1] == '\n' || rest + 1 == r->end);
    const bool good = quote && (rest == r->end || *rest == '\n' || *rest == r->separator);
    *field = (struct Bytes){b.data, b.size};
    if (good) r->at = rest;
    else free(b.data);
    return good;
}

/* The fields of the row at r->at; quoted ones end before `limit`. */
static void split_row(struct Reader *r, const char *limit)
{
    r->count = 0;
    for (bool more = true; more; ) {
        const char *begin = r->at;
        struct Bytes field;
        if (*r->at != '"' || !read_quoted(r, &field, limit)) {
            while (r->at < r->end && *r->at != r->separator && *r->at != '\n') r->at++;
            size_t n = r->at - begin;
            if (n && begin[n - 1] == '\r' && (r->at == r->end || *r->at == '\n')) n--;
            field = (struct Bytes){begin, n};
        }
        add_field(r, field);
        more = r->at < r->end && *r->at != '\n';
        r->at += r->at < r->end;
    }
}

/* --- Columns --- */

/* The position, from 1, of a column that is wanted so; 0: it goes by name. */
static double position_of(const char *wanted)
{
    double x;
    return parse_number(wanted, "", NULL, &x) ? x : 0;
}

/* The place of the field at the wanted position, or of the first of the names "a|b|c"; or -1. */
static int find_field(const struct Reader *r, const char *wanted)
{
    const double position = position_of(wanted);
    for (size_t n; ; wanted += n + 1) {
        n = strcspn(wanted, "|");
        for (int i = 0; i < r->count && n; i++) {
            const size_t blanks = strspn(r->fields[i].data, " ");
            if (position ? position == i + 1 : r->fields[i].size == blanks + n
                && !strncasecmp(r->fields[i].data + blanks, wanted, n)) return i;
        }
        if (!wanted[n]) return -1;
    }
}

/* Sets the places of the columns among r->fields, which are names unless all go by position. */
static bool find_columns(struct Reader *r)
{
    struct Buffer b = {0};
    for (int which = 0; which < COLUMNS; which++) {
        const char *names = r->wanted[which];
        if (!names) continue;
        const int place = r->place[which] = find_field(r, names);
        bool taken = false;
        for (int i = 0; i < which; i++) taken |= r->wanted[i] && r->place[i] == place;
        if (place >= 0 && !taken) continue;
        for (int i = 0; i < r->count && b.size < 600; i++)
            append(&b, "%s%.*s", i ? ", " : "", (int)fmin(r->fields[i].size, 60),
                   r->fields[i].data);
        return bad(&r->faults, "no %scolumn is named %s (there are: %s). --%s-column chooses one "
                   "by its name or number, from 1%s", place < 0 ? "" : "other ", names,
                   b.size ? b.data : "none", column_words[which],
                   r->columns.texts_only ? "; --format lines: each line is a text" : "");
    }
    return true;
}

/* Whether the first row, where the columns are found, is a header, by the rule above. */
static bool has_header(const struct Reader *r)
{
    const char *said = r->columns.header;
    bool usual = false;
    for (int which = 0; which < COLUMNS; which++) {
        if (!r->wanted[which]) continue;
        if (!position_of(r->wanted[which])) {
            if (said && *said == 'n')
                die_usage("--header no: columns are numbered then, as --text-column 2.");
            return true;
        }
        usual |= find_field(r, usual_names[which]) == r->place[which];
    }
    return said && strcmp(said, "auto") ? *said == 'y' : usual;
}

/* --- Records: each function reads the fields of one; false: it is left out --- */

/* A row of a table. In TSV a quote may be mere text: a line that has all columns is a row by
 * itself. Rows that repeat the header, from files that were put together, are left out. */
static bool read_row(struct Reader *r)
{
    const char *begin = r->at, *next = begin;
    const struct Bytes line = take_line(&next, r->end), header = r->header;
    int lines = 0;
    split_row(r, r->separator == '\t' ? next : r->end);
    if (r->separator == '\t' && r->count < max_int(r->width, 2)) {
        r->at = begin;
        split_row(r, r->end);
    }
    if (header.size && line.size == header.size && !memcmp(line.data, header.data, line.size)) {
        warn("%s:%d: repeats the header, left out.", r->faults.path, r->faults.line);
        return false;
    }
    for (const char *s = begin; s < r->at; s++) lines += *s == '\n';
    if (lines > 20 && !r->long_rows++)
        warn("%s:%d: a row has %d lines in quotes. If a stray quote begins it, remove that.",
             r->faults.path, r->faults.line, lines);
    if (!r->width) r->width = r->count;
    return r->count == r->width || is_blank(r, line)
        || bad(&r->faults, "%s where the first line has %d (a text with separators or line ends "
               "needs quotes)", counted(r->count, "column"), r->width);
}

/* A line as a text, or in fastText's format: __label__NAME, a blank, and the text. */
static bool read_line(struct Reader *r)
{
    struct Bytes text = take_line(&r->at, r->end), label = {"", 0};
    if (r->format == FASTTEXT && !is_blank(r, text)) {
        const size_t word = strcspn(text.data, " \t\r\n");
        const size_t n = word + strspn(text.data + word, " \t");
        if (strncmp(text.data, "__label__", 9))
            return bad(&r->faults, "does not begin with __label__");
        if (!strncmp(text.data + n, "__label__", 9))
            return bad(&r->faults, "the text has several labels");
        label = (struct Bytes){text.data + 9, word - 9};
        text = (struct Bytes){text.data + n, text.size - n};
    }
    add_field(r, text);
    add_field(r, label);
    return true;
}

/* A JSON object. Values are taken as they are written; only wanted ones are copied. */
static bool read_object(struct Reader *r)
{
    const char *where = brief("%s:%d", r->faults.path, r->faults.line);
    struct JsonReader reader = {r->at, r->end, r->at, where, 0};
    struct Json *object = json_value(&reader);
    r->at = reader.at;
    for (struct Json *j = object->child; j && j->key; j = j->next)
        add_field(r, as_bytes(j->key));
    bool good = object->kind == JSON_OBJECT ? find_columns(r)
              : bad(&r->faults, "is no JSON object");
    for (int which = 0; which < COLUMNS && good; which++) {
        const struct Json *j = object->child;
        struct Buffer b = {0};
        if (!r->wanted[which]) continue;
        for (int i = 0; i < r->place[which]; i++) j = j->next;
        if (j->kind == JSON_NULL || j->kind >= JSON_ARRAY)
            good = bad(&r->faults, "\"%s\" is no string and no number", j->key);
        else append_bytes(&b, j->string, j->length);
        r->fields[r->place[which]] = (struct Bytes){b.data, b.size};
    }
    json_free(object);
    return good;
}

/* --- Formats --- */

/* In the order in which they are looked for. */
static const struct { const char *name, *separators; bool (*read)(struct Reader *r); }
formats[FORMATS] = {
    [JSONL] = {"jsonl", "", read_object}, [FASTTEXT] = {"fasttext", "", read_line},
    [TSV] = {"tsv", "\t", read_row}, [CSV] = {"csv", ";|,", read_row},
    [LINES] = {"lines", "", read_line}};

/* The first of the separators that the first record holds outside of quotes; '\n': none. A quote
 * that no other one follows is text. */
static char find_separator(const struct Reader *r, int format)
{
    const char *separators = formats[format].separators, *best = NULL;
    bool quoted = false;
    for (const char *s = r->at; s < r->end && (quoted || *s != '\n'); s++) {
        const char *found = *s ? strchr(separators, *s) : NULL;
        const bool opens = *s == '"' && (s == r->at || strchr("\"\t;|,", s[-1]))
                        && memchr(s + 1, '"', r->end - s - 1);
        if (opens || (quoted && *s == '"')) quoted = !quoted;
        else if (found && !quoted && (!best || found < best)) best = found;
    }
    return best ? *best : '\n';
}

/* Whether the first row, as one of CSV, has the name that was said of the text's column, or else
 * names for a text and its label. */
static bool names_columns(const struct Reader *r)
{
    struct Reader row = *r;
    row.separator = find_separator(r, CSV);
    split_row(&row, r->end);
    const char *text = r->columns.names[TEXTS], *label = r->columns.names[LABELS];
    const bool said = text && !position_of(text);
    if (!label || position_of(label)) label = usual_names[LABELS];
    const bool found = find_field(&row, said ? text : usual_names[TEXTS]) >= 0
                    && (said || find_field(&row, label) >= 0);
    free(row.fields);
    return found;
}

/* JSON: an object, or an array of them. fastText: a label and a blank. Tables: a separator, or the
 * only column's name; commas, which texts have, too, count only in a header if training had no
 * CSV. */
static bool looks_like(const struct Reader *r, int format)
{
    const struct Columns *c = &r->columns;
    const char *name = c->names[TEXTS] ? c->names[TEXTS] : "text", *kept = c->kept_format;
    const size_t n = strlen(name);
    if (format == JSONL) return r->at[strspn(r->at, "[ \t\r\n")] == '{';
    if (format == FASTTEXT)
        return !strncmp(r->at, "__label__", 9) && r->at[strcspn(r->at, ", \t\r\n")] != ',';
    if (format == LINES) return c->texts_only;
    if (format == CSV && c->texts_only && kept && strcmp(kept, "csv")) return names_columns(r);
    return find_separator(r, format) != '\n'
        || (!strncasecmp(r->at, name, n) && strcspn(r->at, "\r\n") == n && !position_of(name));
}

/* The format is the one that is said, the training's, or the first that the file looks like. */
static void choose_format(struct Reader *r)
{
    struct Columns *c = &r->columns;
    const bool said = c->format && strcmp(c->format, "auto");
    const char *name = said ? c->format : c->kept_format ? c->kept_format : "";
    int f = 0;
    while (f < FORMATS && (strcmp(name, formats[f].name) || !(said || looks_like(r, f)))) f++;
    for (int i = 0; f == FORMATS && i < FORMATS; i++) if (looks_like(r, i)) f = i;
    if (f == LINES && r->wanted[LABELS])
        die_usage("--format lines: %s then has no labels. Choose another.", r->faults.path);
    if (f == FORMATS)
        die("%s:%d: no tab, comma, semicolon or bar is between a text and its label.",
            r->faults.path, r->faults.line);
    if (*name && strcmp(name, formats[f].name) && f != LINES)
        die("%s: looks like %s, but the training's file was %s. Say what it is: --format %s",
            r->faults.path, formats[f].name, name, formats[f].name);
    r->format = f;
    r->separator = find_separator(r, f);
    c->format = formats[f].name;
}

/* Decides how the file is laid out and moves to the first record. */
static void begin_reading(struct Reader *r)
{
    struct Columns *c = &r->columns;
    const char *path = r->faults.path, *begin = r->at, *first;
    refuse_other_kinds(path, begin, r->end - begin);
    if (!next_record(r, false))
        die("%s: the file is empty. It needs %stexts.", path, c->texts_only ? "" : "labelled ");
    first = r->at;
    if (strchr(first, '\r') && strchr(first, '\r')[1] && !strchr(first, '\n'))
        die("%s: its lines end with CR alone, as on old Macs. Convert it: tr '\\r' '\\n' <'%s' "
            ">NEW", path, path);
    for (int i = 0; i < COLUMNS; i++)
        r->wanted[i] = i == LABELS && c->texts_only ? NULL
                     : c->names[i] || i == PAIRS ? c->names[i] : usual_names[i];
    choose_format(r);
    if (formats[r->format].read == read_row) {
        read_row(r);
        if (!find_columns(r)) refuse_faults(&r->faults, "Correct the file.");
        c->header = has_header(r) ? "yes" : "no";
        if (*c->header == 'y') { r->header = take_line(&first, r->at); return; }
    }
    const bool lines = r->format == LINES;
    if (lines || r->separator != '\n')
        progress(true, "%s: the first row (%.*s) is no header: %s", path,
                 (int)fmin(strcspn(first, "\r\n"), 80), first,
                 lines ? "each line is a text" : "it is data");
    r->at = lines ? begin : first;          /* blank lines at the beginning keep their place, too */
    if (lines) { r->counted = begin; r->faults.line = 1; }
}

/* What is wrong with a label, which is printed and stored as it is; NULL: nothing. */
static const char *fault_of_label(struct Bytes label)
{
    char shown[MAX_LABEL_BYTES];                /* as read_label_names will read it */
    if (!label.size) return "the label is empty";
    if (label.size > MAX_LABEL_BYTES)
        return brief("the label has more than %d bytes", MAX_LABEL_BYTES);
    memcpy(shown, label.data, label.size);
    make_harmless(shown, label.size, "");
    return !memcmp(shown, label.data, label.size) ? NULL
         : "the label holds a control character, or is not UTF-8 (from Windows text, iconv -f "
           "CP1252 -t UTF-8 makes it)";
}

/* The next record's example; false: it is of no use. In a pair's first text tabs become spaces. */
static bool read_example(struct Reader *r, struct Example *e)
{
    struct Bytes values[COLUMNS] = {{"", 0}, {"", 0}, {"", 0}};
    r->count = 0;
    if (!formats[r->format].read(r)) return false;
    for (int which = 0; which < COLUMNS; which++)
        if (r->wanted[which] && r->place[which] >= 0 && r->place[which] < r->count)
            values[which] = r->fields[r->place[which]];
    *e = (struct Example){values[TEXTS], values[LABELS], r->faults.line};
    if (r->place[PAIRS] >= 0) {
        struct Buffer b = {0};
        append_bytes(&b, e->text.data, e->text.size);
        for (size_t i = 0; i < b.size; i++) if (b.data[i] == '\t') b.data[i] = ' ';
        append_bytes(&b, "\t", 1);
        append_bytes(&b, values[PAIRS].data, values[PAIRS].size);
        e->text = (struct Bytes){b.data, b.size};
    }
    const char *fault = r->wanted[LABELS] ? fault_of_label(e->label) : NULL;
    return !fault || bad(&r->faults, "%s", fault);
}

/* Says how many of all texts are empty or not valid UTF-8. */
static void warn_of_texts(const char *path, int empty, int invalid, int all)
{
    if (empty)
        warn("%s: %d of %d texts are empty. All of them get the same answer.", path, empty, all);
    if (invalid)
        warn("%s: %d of %d texts are not valid UTF-8. If it is Windows text, convert it: iconv -f "
             "CP1252 -t UTF-8 FILE >NEW", path, invalid, all);
}

/* All texts of a file, with their labels unless texts alone are wanted. Dies on faulty records. */
static struct Examples read_examples(const char *path, struct Columns columns)
{
    const struct Bytes file = read_file(path, (size_t)(machine_memory() / 2), true);
    struct Reader r = {.at = file.data, .end = file.data + file.size, .counted = file.data,
                       .columns = columns, .format = LINES, .place = {0, 1, -1},
                       .faults = {path, 1, 0, {0}}};
    struct Examples all = {.path = path};
    int capacity = 0, invalid = 0, empty = 0;
    for (begin_reading(&r); next_record(&r, columns.texts_only); ) {
        if (all.count == capacity)
            all.items = resize(all.items, (capacity = 2 * capacity + 64) * sizeof *all.items);
        struct Example *e = &all.items[all.count];
        if (!read_example(&r, e)) continue;
        all.count++;
        invalid += count_invalid(e->text.data, e->text.size) > 0;
        empty += e->text.size == 0;
    }
    refuse_faults(&r.faults, "Correct the file.");
    if (!all.count) die("%s: has a header but no examples. Add labelled texts.", path);
    if (r.empty && !columns.texts_only)
        warn("%s: %s without any content left out.", path, counted(r.empty, "row"));
    warn_of_texts(path, empty, invalid, all.count);
    all.columns = r.columns;
    return all;
}

/* --- Labels as classes --- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names that are numbers, by their values. */
static int compare_values(const void *a, const void *b)
{
    const double x = strtod(*(char *const *)a, NULL), y = strtod(*(char *const *)b, NULL);
    return x != y ? (x > y) - (x < y) : compare_names(a, b);
}

/* Whether a name has what is not seen: a blank at an end or without a width, a lone accent. */
static bool hides_something(const char *name)
{
    bool hides = name[0] == ' ' || name[strlen(name) - 1] == ' ';
    for (uint32_t c = 0; *name; ) {
        name += utf8_decode((const unsigned char *)name, 4, &c);
        hides |= c == 0xA0 || c == 0xFEFF || (c >= 0x200B && c <= 0x200D)
              || (c >= 0x300 && c < 0x370);
    }
    return hides;
}

/* The class of a label among K names, or -1. */
static int find_class(char *const *names, int K, struct Bytes label)
{
    for (int k = 0; k < K; k++)
        if (!strncmp(names[k], label.data, label.size) && !names[k][label.size]) return k;
    return -1;
}

/* Every label once, in the order of their values if all are numbers, else of their bytes: class k
 * is names[k]. Dies on a single class; notes those that may look alike. */
static char **class_names(const struct Examples *e, int *classes)
{
    enum { MAX_CLASSES = 1000 };
    char **names = resize(NULL, MAX_CLASSES * sizeof *names);
    bool numbers = true;
    int K = 0;
    for (int i = 0; i < e->count; i++) {
        const struct Bytes label = e->items[i].label;
        if (find_class(names, K, label) >= 0) continue;
        if (K == MAX_CLASSES)
            die("%s: more than %d different labels. Is --label-column right?", e->path,
                MAX_CLASSES);
        names[K++] = text_of("%.*s", (int)label.size, label.data);
        numbers = numbers && parse_number(names[K - 1], "", NULL, &(double){0});
    }
    if (K == 1) die("%s: every label is \"%s\". Two classes are needed.", e->path, names[0]);
    qsort(names, K, sizeof *names, numbers ? compare_values : compare_names);
    for (int k = 0; k < K; k++) {
        if (hides_something(names[k]))
            warn("%s: label \"%s\" may look like another: it has a blank at an end or without a "
                 "width, or an accent that is a character of its own.", e->path, names[k]);
        for (int j = 0; j < k; j++)
            if (!strcasecmp(names[j], names[k]))
                warn("%s: labels \"%s\" and \"%s\" differ by case only.", e->path, names[j],
                     names[k]);
    }
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

/* Appends the texts of e as tokens, with the classes of their labels; -1 if those were not read.
 * Dies if labels are none of the names, for which the model has no probability. */
static void add_examples(struct Dataset *d, struct Tokenizer *tokenizer, const struct Examples *e,
                         char *const *names, int K, struct Window w)
{
    struct Faults faults = {.path = e->path};
    for (int i = 0; i < e->count; i++) {
        const struct Example *x = &e->items[i];
        const int k = find_class(names, K, x->label);
        faults.line = x->line;
        if (k >= 0 || e->columns.texts_only) add_text(d, tokenizer, x->text, k, w);
        else bad(&faults, "the model does not know \"%.*s\"", (int)x->label.size, x->label.data);
    }
    if (faults.count) refuse_faults(&faults, text_of("Its labels are: %s.", joined(names, K)));
}

/* --- Label words --- */

/* values (K): what follows "NAME=" for each class in an option's text "NAME=...;NAME=...". */
static char **values_by_label(const char *option, const char *text, char *const *names, int K)
{
    char **values = allocate_zeroed(K * sizeof *values), *rest = text_of("%s", text), *part;
    while ((part = strsep(&rest, ";"))) {
        const char *name = strsep(&part, "=");
        const int k = find_class(names, K, as_bytes(name));
        if (k < 0 || values[k])
            die_usage("--%s: \"%s\" is no label, or named twice. There are: %s.", option, name,
                      joined(names, K));
        values[k] = part;
    }
    for (int k = 0; k < K; k++)
        if (!values[k] || !*values[k])
            die_usage("--%s: the label \"%s\" has no value. Write %s=VALUE.", option, names[k],
                      names[k]);
    return values;
}

/* The first token of a word after a blank, into *id; returns the number of its tokens. */
static int word_token(int *id, struct Tokenizer *t, const char *word)
{
    const char *text = brief(" %s", word);
    int ids[strlen(text)];
    const int count = tokenizer_encode(t, text, strlen(text), ids);
    *id = ids[0];
    return count;
}

/* Reads --label-words; NULL or "": none. Of a word's tokens the first is taken, which is said. */
static struct Dataset read_label_words(const char *text, char *const *names, int K,
                                       struct Tokenizer *t, bool quiet)
{
    struct Dataset w = {0};
    if (!text || !*text) return w;
    char **lists = values_by_label("label-words", text, names, K), *word;
    for (int k = 0; k < K; k++) {
        int *id = begin_text(&w, (struct Bytes){0}, strlen(lists[k]), k);
        for (char *rest = lists[k]; (word = strsep(&rest, ",")); id++) {
            word += strspn(word, " ");
            if (!*word) die_usage("--label-words: a word of \"%s\" is empty.", names[k]);
            const int count = word_token(id, t, word);
            for (size_t i = 0; i < w.starts[k]; i++)
                if (w.tokens[i] == *id)
                    die_usage("--label-words: \"%s\" is a word of two labels, or begins with the "
                              "token that stands for one. Choose another.", word);
            if (count > 1 && !quiet)
                progress(true, "label word \"%s\": the first of its %d tokens stands for it", word,
                         count);
        }
        w.starts[++w.count] = id - w.tokens;
    }
    return w;
}

/* Whether label words are given: empty ones take them away from a method. */
static bool has_words(const struct Settings *s) { return s->label_words && *s->label_words; }

static const char no_words[] = "%s %s: needs label words, since not every class's name is a token: "
                               "--label-words '%s=...'";

/* Label words for want of others: the names of the classes, if each is one token; else NULL. */
static char *words_of_names(char *const *names, int K, struct Tokenizer *t)
{
    struct Buffer b = {0};
    for (int k = 0, id; k < K; k++) {
        if (strpbrk(names[k], "=;,") || word_token(&id, t, names[k]) != 1) return NULL;
        append(&b, "%s%s=%s", k ? ";" : "", names[k], names[k]);
    }
    progress(true, "label words: %s, the names of the classes", b.data);
    return b.data;
}

/* The labels that --label-words names, in the order of class_names: for texts without labels. */
static char **labels_of_words(const char *text, int *classes)
{
    struct Examples e = {.path = "--label-words"};
    char *rest = text_of("%s", text), *part;
    while ((part = strsep(&rest, ";"))) {
        e.items = resize(e.items, (e.count + 1) * sizeof *e.items);
        const struct Example x = {.label = {part, strcspn(part, "=")}};
        const char *fault = fault_of_label(x.label);
        if (fault) die_usage("--label-words: %s. Give it another name.", fault);
        e.items[e.count++] = x;
    }
    return class_names(&e, classes);
}

/* The shares (K) that --prior gives, with the sum 1; text NULL: NULL. */
static double *read_prior(const char *text, char *const *names, int K)
{
    if (!text || !*text) return NULL;
    char **shares = values_by_label("prior", text, names, K);
    double *prior = resize(NULL, K * sizeof *prior), sum = 0;
    for (int k = 0; k < K; k++) {
        if (!parse_number(shares[k], "", NULL, &prior[k]) || !(prior[k] > 0))
            die_usage("--prior %s: is no share above 0. Write %s=0.5.", shares[k], names[k]);
        sum += prior[k];
    }
    for (int k = 0; k < K; k++) prior[k] /= sum;
    return prior;
}

/* ============================================================================================= */
/* 8. Before and after the training                                                              */
/* ============================================================================================= */

/* Random streams of the seed. model_init uses the numbers from 0. */
enum { STREAM_SPLIT = 1 << 30, STREAM_ORDER, STREAM_MASKS, STREAM_SUBSET, STREAM_TEST,
       STREAM_PRIOR };

/* --- Texts --- */

/* Leaves out texts of train that repeat one of val or an earlier one, by hash, or warns of them. */
static void find_repeats(struct Examples *train, const struct Examples *val, bool leave_out)
{
    const char *where = val->path ? brief(" or in %s", val->path) : "";
    const int all = train->count, aside = val->count;
    int repeated = 0, unlike = 0;           /* unlike: with another label */
    struct HashTable seen = hash_table(2 * ((size_t)aside + all));
    for (int i = 0; i < aside + all; i++) {
        const struct Example x = i < aside ? val->items[i] : train->items[i - aside];
        const uint64_t text = checksum(x.text.data, x.text.size) >> 1;
        const uint64_t pair = mix64(text ^ checksum(x.label.data, x.label.size)) >> 1;
        const bool known = hash_add(&seen, text, i) != i, alike = hash_add(&seen, pair, i) != i;
        if (i < aside) continue;
        if (leave_out) train->items[i - aside - repeated] = x;
        repeated += known;
        unlike += known && !alike && x.label.size;
    }
    hash_free(&seen);
    if (leave_out) train->count = all - repeated;
    if (!train->count)
        die("%s: every text is in %s, too. Give other texts.", train->path, val->path);
    if (repeated)
        speak(leave_out ? "" : program, true,
              MESSAGE("%s: %d of %d texts are repeated%s%s: %s.", train->path, repeated, all,
                      where, unlike ? brief(", %d with another label", unlike) : "",
                      leave_out ? "left out" : "scores may flatter. --dedupe drops them"));
}

/* Splits the N training examples into training and validation, class by class: a part of each class
 * is set aside, at least one example, but never the only one. Afterwards t->train has the training
 * examples in random order, then the others. stream: of random numbers. */
static void split_stratified(struct Task *t, double part, int stream)
{
    const int N = t->train_count, K = t->base.config.labels, *labels = t->data.labels;
    struct Random random = random_stream(t->set.seed, stream);
    int left[K], aside = N, *order = resize(NULL, N * sizeof *order);
    memset(left, 0, sizeof left);                           /* still to be set aside */
    for (int i = 0; i < N; i++) { order[i] = t->train[i]; left[labels[order[i]]]++; }
    for (int k = 0; k < K; k++)
        left[k] = min_int(max_int((int)(part * left[k] + 0.5), 1), max_int(left[k] - 1, 0));
    shuffle(order, N, &random);
    t->train_count = 0;
    for (int i = 0; i < N; i++)
        t->train[left[labels[order[i]]]-- > 0 ? --aside : t->train_count++] = order[i];
    free(order);
}

/* A hash of all examples, as tokens and labels, the first `train` of which are from --train. */
static uint64_t hash_texts(const struct Dataset *d, int train)
{
    const size_t n = d->count;
    return mix64(checksum(d->tokens, d->starts[n] * sizeof *d->tokens)
                 ^ mix64(checksum(d->starts, (n + 1) * sizeof *d->starts)
                         ^ mix64(checksum(d->labels, n * sizeof *d->labels) ^ train)));
}

/* The texts of t->train from train_count on, up to `all`, are for validation. If there are none and
 * steps need some, to choose the best, a part of each class is set aside. stream: for the split. */
static void take_validation(struct Task *t, int all, double part, int stream)
{
    if (t->train_count == all && t->set.kind > PROBE) split_stratified(t, part, stream);
    t->val = t->train + t->train_count;
    t->val_count = all - t->train_count;
    t->truth = resize(NULL, t->val_count * sizeof *t->truth);
    for (int i = 0; i < t->val_count; i++) t->truth[i] = t->data.labels[t->val[i]];
}

/* The texts that are read without their labels: at most 1,000 of list (count). */
static void choose_unlabelled(struct Task *t, const int *list, int count)
{
    struct Random random = random_stream(t->set.seed, STREAM_PRIOR);
    t->unlabelled = memcpy(resize(NULL, count * sizeof *list), list, count * sizeof *list);
    shuffle(t->unlabelled, count, &random);
    t->unlabelled_count = min_int(count, 1000);
}

/* Reads and tokenizes the labelled texts and sets the labels of t->base. For compare and layers the
 * test stands in the place of --val. Prompting with --label-words reads no label of --train. */
static void load_data(struct Task *t, double part, int stream)
{
    struct Settings *s = &t->set;
    struct Columns columns = s->columns, labelled = columns;
    columns.texts_only = s->kind == PROMPT && has_words(s);
    if (columns.texts_only && columns.format && !strcmp(columns.format, "lines"))
        labelled.format = NULL;         /* bare lines have no labels; --val is a table */
    struct Examples train = read_examples(s->train, columns), val = {0};
    if (s->val) val = read_examples(s->val, labelled);
    find_repeats(&train, &val, s->dedupe);
    const bool bare = !strcmp(train.columns.format, "lines");       /* says nothing of tables */
    t->layout = columns.texts_only && (s->val || bare) ? val.columns : train.columns;
    int K;
    char **names = columns.texts_only ? labels_of_words(s->label_words, &K)
                                      : class_names(&train, &K);
    t->base.config.labels = K;
    t->base.config.label_names = names;
    if (s->kind == PROMPT && !has_words(s))
        s->label_words = words_of_names(names, K, t->tokenizer);
    if (s->kind == PROMPT && !has_words(s)) die_usage(no_words, "--tune", s->tune, names[0]);
    if (s->kind != SCRATCH)
        t->words = read_label_words(s->label_words, names, K, t->tokenizer, t->quiet);
    t->prior = read_prior(s->prior, names, K);
    add_examples(&t->data, t->tokenizer, &train, names, K, t->window);
    add_examples(&t->data, t->tokenizer, &val, names, K, t->window);
    const int all = t->data.count;
    t->train_count = train.count;
    t->train = resize(NULL, all * sizeof *t->train);
    for (int i = 0; i < all; i++) t->train[i] = i;
    choose_unlabelled(t, t->train, train.count);
    take_validation(t, all, part, stream);
    if (!t->val_count && s->kind > PROBE)
        die("%s: no class has two examples, so none can be set aside. Give --val; to compare "
            "--test.", s->train);
    t->train_hash = hash_texts(&t->data, train.count);
}

/* --- What the command line left open --- */

enum { MIN_UPDATES = 200, MIN_EPOCHS = 3, FEW_EPOCHS = 20, MAX_VALIDATIONS = 20, FEW_TEXTS = 100,
       MAX_STEPS = 1000000000 };

/* Sets what the command line left open. The learning rate falls with the size of the model: 3e-4
 * for 10 million pretrained weights, 9e-5 for GPT-2's 124 million, 1e-3 for the smallest. Fewer
 * than 800 examples, which are soon learnt by heart, lower it: 100 halve it. Random weights bear a
 * higher rate; a head of label words knows something, and a lower rate and fewer epochs keep it
 * near that. Few labels need many updates rather than epochs. Validation comes at the end of
 * epochs, but if --steps says how long to train, after every 20th part. Few validation texts cannot
 * tell which epoch is best: the mean of the last weights is safer. */
static void choose_defaults(struct Settings *s, const struct Model *model, int examples,
                            int val_texts)
{
    if (s->kind <= PROBE) return;
    const double large = sqrt(1e7 / model->parameter_count),
                 few = s->kind == SCRATCH ? 1 : fmin(1, cbrt(examples / 800.0));
    const bool knows = has_words(s) && s->kind != SCRATCH;
    if (s->lr == 0)
        s->lr = fmin(1e-3, few * ((s->kind == SCRATCH ? 1e-3 : knows ? 1e-4 : 3e-4) * large));
    if (s->head_lr_ratio == 0) s->head_lr_ratio = s->kind == SCRATCH || knows ? 1 : 10;
    if (s->dropout < 0) s->dropout = s->kind == FULL || s->kind == SCRATCH ? 0.1 : 0;
    if (s->average < 0) s->average = val_texts < FEW_TEXTS ? 0.1 : 0;
    const int updates = ceil_div(examples, s->batch);
    if (s->epochs == 0 && s->steps == 0)
        s->epochs = min_int(max_int(MIN_EPOCHS, ceil_div(MIN_UPDATES, updates)),
                            knows ? FEW_EPOCHS : MAX_STEPS);
    if ((int64_t)s->epochs * updates > MAX_STEPS)
        die_usage("--epochs %d: are more than %d updates. Choose fewer.", s->epochs, MAX_STEPS);
    if (s->epochs) s->steps = s->epochs * updates;
    s->every = s->epochs ? updates * ceil_div(s->epochs, MAX_VALIDATIONS)
                         : ceil_div(s->steps, MAX_VALIDATIONS);
}

/* N / (K n_k) for each class k of n_k training examples: rare classes weigh as much as common ones,
 * and the average over the examples is 1. NULL unless --class-weights is auto. */
static real *weigh_classes(const struct Task *t)
{
    const int K = t->model.config.labels, N = t->train_count;
    if (strcmp(t->set.class_weights, "auto") || t->set.kind == PROMPT) return NULL;
    real *weights = resize(NULL, K * sizeof *weights);
    for (int k = 0; k < K; k++) weights[k] = 0;
    for (int i = 0; i < N; i++) weights[t->data.labels[t->train[i]]]++;
    for (int k = 0; k < K; k++) weights[k] = weights[k] ? (real)N / ((real)K * weights[k]) : 1;
    return weights;
}

/* Allocates memory, and begins with the label words, if there are any. */
static void prepare(struct Task *t)
{
    const struct Settings *s = &t->set;
    const size_t K = t->model.config.labels;
    if (s->kind > PROBE) choose_weights(t);
    runner_create(&t->runner, &t->model, &t->data, max_int(BATCH_ROWS, t->data.longest),
                  s->kind > PROBE ? WORK_TRAIN : WORK_EVAL);
    t->order = random_stream(s->seed, STREAM_ORDER);
    t->masks = random_stream(s->seed, STREAM_MASKS);
    t->class_weights = weigh_classes(t);
    t->probabilities = allocate_zeroed(t->val_count * K * sizeof(real));
    if (t->words.count && s->kind != SCRATCH) begin_with_words(t);
}

/* --- Lines of progress, log.tsv and compare.tsv --- */

/* The last column of a table has a digit for each test text, for paired tests. */
static const char steps_header[] =
    "epoch\tstep\ttrain_loss\tval_loss\tval_accuracy\tnorm\tseconds\n",
    probe_header[] = "l2\tfeatures\tevaluations\ttrain_loss\tval_loss\tval_accuracy\tseconds\n",
    table_header[] = "method\tlabels\tseed\taccuracy\tmacro_f1\tloss\tseconds\tright\n";

static void show_step(struct Task *t, const struct TrainState *run, double loss, double lr)
{
    const int step = run->step, steps = t->set.steps;
    if (t->title) show_work(&t->runner.timer, t->title, step, steps, "steps");
    if (t->quiet || !line_is_due(&t->runner.timer.shown)) return;
    progress(false, "epoch %d/%d  step %d/%d  loss %.4f  lr %.1e  norm %.2f  %s left",
             epoch_of(t, step), epoch_of(t, steps), step, steps, loss, lr, run->norm,
             duration((seconds() - run->start) * (steps - step) / step));
}

/* --- The classifier, and the state of its training --- */

/* The options and hashes of what was read. Dies if a run that is resumed read something else. */
static void describe_training(struct Json *meta, const struct Task *t)
{
    struct Buffer labels = {0};
    for (int k = 0; k < t->base.config.labels; k++) {
        append(&labels, k ? ", " : "[");
        append_json_string(&labels, as_bytes(t->base.config.label_names[k]));
    }
    append(&labels, "]");
    tokenizer_describe(meta, t->tokenizer);
    describe_input(meta, &t->old, "model_hash", hash_text(t->source_hash), t->set.out);
    describe_input(meta, &t->old, "train_hash", hash_text(t->train_hash), t->set.out);
    describe_input(meta, &t->old, "labels", labels.data, t->set.out);
    describe_options(meta, t->options, "tune");
    free(labels.data);
}

/* Replaces what --out holds by a classifier with these weights, its tokenizer and its log, as one.
 * meta has how the weights were found, and receives the rest. */
static void save_classifier(const struct Task *t, real *weights, struct Json *meta,
                            struct Scores val)
{
    const struct Columns *columns = &t->layout;
    struct Model model = t->model;
    model.weights = weights;
    describe_training(meta, t);
    if (columns->format) metadata_set(meta, "data.format", "%s", columns->format);
    if (columns->header) metadata_set(meta, "data.header", "%s", columns->header);
    for (int i = 0; i < COLUMNS; i++)
        if (t->set.columns.names[i])
            metadata_set(meta, brief("data.%s", column_words[i]), "%s", t->set.columns.names[i]);
    metadata_set(meta, "train_examples", "%d", t->train_count);
    metadata_set(meta, "val_examples", "%d", t->val_count);
    const struct { const char *name; double value; } scores[] = {
        {"val_accuracy", val.accuracy}, {"val_macro_f1", val.macro_f1}, {"val_loss", val.loss},
        {"val_ece", val.ece}};
    for (int i = 0; i < COUNT(scores); i++)
        if (!isnan(val.accuracy)) metadata_set(meta, scores[i].name, "%.6f", scores[i].value);
    tokenizer_stage(t->tokenizer, t->set.out);
    stage_model(t->set.out, &model, meta, t->tokenizer->eot);
    commit_outputs();
}

static void record_validation(struct Task *t, const struct TrainState *run, struct Scores now)
{
    struct Json meta = {0};
    const int epoch = epoch_of(t, run->step);
    const double spent = seconds() - run->start, train_loss = run->loss / run->examples;
    const bool best = run->best_step == run->step;
    if (t->quiet) return;
    journal_add(&t->log, "%d\t%d\t%.6f\t%.6f\t%.6f\t%.4f\t%.2f\n", epoch, run->step, train_loss,
                now.loss, now.accuracy, run->norm, spent);
    progress(true, "epoch %d/%d  train loss %.4f  val loss %.4f  val accuracy %.4f  %.1f s%s",
             epoch, epoch_of(t, t->set.steps), train_loss, now.loss, now.accuracy, spent,
             !best ? "" : run->mean ? "  best so far" : "  best");
    if (!best) return;
    metadata_set(&meta, "best_step", "%d", run->best_step);
    metadata_set(&meta, "weights", "best on validation so far");
    save_classifier(t, run->best, &meta, now);
    json_free(meta.child);
}

static char *state_path(const char *out) { return text_of("%s/state.safetensors", out); }

/* Writes the state every minute, in a fiftieth of the time at most, and when it must be written. It
 * has all that begin_state needs. The order of the texts follows from the step. A save is noted as
 * taking at most twice as long as the one before: the process may have been stopped in it. */
static void save_if_due(struct Task *t, struct TrainState *run, bool must)
{
    struct Json meta = {0};
    const double start = seconds();
    if (t->quiet || !(must || start - run->saved > fmax(60, 50 * run->saving))) return;
    describe_training(&meta, t);
    journal_describe(&meta, &t->log);
    metadata_set(&meta, "position", "%d %d %d %llu %.17g %.17g %.17g %.2f", run->step,
                 run->best_step, run->examples, (unsigned long long)t->masks.counter, run->loss,
                 run->best_scores.accuracy, run->best_scores.loss, start - run->start);
    stage_state(state_path(t->set.out), &t->model, run->best, run->mean, &meta);
    commit_outputs();
    json_free(meta.child);
    run->saved = seconds();
    run->saving = fmin(run->saved - start, run->saving > 0 ? 2 * run->saving : INFINITY);
}

/* Begins the log and the state, or goes to the place at which save_if_due wrote it. */
static void begin_state(struct Task *t, struct TrainState *run)
{
    unsigned long long masks;
    double spent;
    int end = 0;
    if (t->quiet) return;
    journal_open(&t->log, brief("%s/log.tsv", t->set.out), steps_header, &t->old);
    if (!t->old.child) { save_if_due(t, run, true); return; }
    char *path = state_path(t->set.out);
    load_state(path, &t->model, run->best, run->mean, &t->old);
    const char *position = json_text(&t->old, "position", "");
    if (sscanf(position, "%d %d %d %llu %lf %lf %lf %lf%n", &run->step, &run->best_step,
               &run->examples, &masks, &run->loss, &run->best_scores.accuracy,
               &run->best_scores.loss, &spent, &end) != 8
        || position[end] || run->step < 0 || run->step >= t->set.steps)
        die("%s: does not say where the training is. Start it again with --overwrite.", path);
    for (int i = epoch_of(t, run->step); i > 0; i--) shuffle(t->train, t->train_count, &t->order);
    t->masks.counter = masks;
    commit_outputs();
    run->start -= spent;
    run->saved = seconds();
    progress(true, "resumed after step %d/%d", run->step, t->set.steps);
}

/* ============================================================================================= */
/* 9. Commands: train, eval, predict                                                             */
/* ============================================================================================= */

static const struct Settings DEFAULT_SETTINGS = {
    .tune = "full", .kind = FULL, .truncate = "tail", .class_weights = "none",
    .precision = "fp32", .batch = 32, .seed = 1, .dropout = -1, .weight_decay = 0.01,
    .warmup = 0.1, .val_part = 0.1, .layer_decay = 1, .average = -1,
};

static const char data_meaning[] = "labelled texts: TSV, CSV, JSON or fastText's format";

/* A row of which the result depends; one of a training by gradient steps. */
#define SETTING(name, meaning, kind, ...) {name, meaning, kind, __VA_ARGS__, .effect = DEFINES}
#define STEPS(...) SETTING(__VA_ARGS__, .idle = "with tune probe|with tune prompt")

/* How labelled texts are laid out: struct Columns. */
#define COLUMN_OPTIONS(c)                                                                         \
    SETTING("text-column", "its number, or its name in the header; else text, review ...", TEXT,  \
            &(c).names[TEXTS], .idle = "without data"),                                           \
    SETTING("label-column", "the same; else label, sentiment, class ...", TEXT,                   \
            &(c).names[LABELS], .idle = "without data"),                                          \
    SETTING("pair-column", "of a second text, which is read after the first", TEXT,               \
            &(c).names[PAIRS]),                                                                   \
    SETTING("header", "whether the first row names columns; else it is seen", CHOICE,             \
            &(c).header, .choices = "auto|yes|no", .idle = "without data"),                       \
    SETTING("format", "else it is seen, or as in training", CHOICE, &(c).format,                  \
            .choices = "auto|tsv|csv|jsonl|fasttext|lines", .idle = "without data")

/* The rows of `train`; compare and layers have some of them, too. */
#define SHARED(name) *find_option(tune, name)
static struct Option *tune_options(struct Settings *s)
{
    const struct Option rows[] = {
        {"model", "directory of the pretrained model", TEXT, &s->model, .effect = EXTENDS},
        {"train", data_meaning, TEXT, &s->train, .effect = EXTENDS},
        {"val", "the same, for validation; else a part of --train", TEXT, &s->val,
         .effect = EXTENDS},
        SETTING("val-part", "how much of each class is set aside for validation", REAL_NUMBER,
                &s->val_part, 0.001, 0.9, .idle = "with val|with tune probe|with tune prompt"),
        {"out", "directory of the classifier", TEXT, &s->out, .required = true},
        SETTING("tune", "prompt, probe, last:K, full or scratch", TEXT, &s->tune),
        SETTING("label-words", "with which the head begins: 'positive=good,great;negative=bad'",
                TEXT, &s->label_words, .may_be_empty = true, .idle = "with tune scratch"),
        SETTING("prior", "shares of the classes, with label words: 'positive=0.3;negative=0.7'; "
                "else equal ones, unless the labels contradict that", TEXT, &s->prior,
                .idle = "with tune scratch"),
        STEPS("epochs", "0: 3, but at least 200 updates; with label words at most 20", INTEGER,
              &s->epochs, 0, 1e6),
        SETTING("steps", "updates, instead of --epochs", INTEGER, &s->steps, 0, MAX_STEPS,
                .idle = "with tune probe|with tune prompt|with epochs"),
        STEPS("patience", "ends after so many worse validations", INTEGER, &s->patience, 0, 1e6),
        STEPS("batch", "texts of an update", INTEGER, &s->batch, 1, 1e6),
        STEPS("lr", "0: by the size of the model and the number of labels, which is printed",
              REAL_NUMBER, &s->lr, 0, 10),
        STEPS("head-lr-ratio", "the head's rate, in those of the last block; 0: 10, but 1 for "
              "scratch and with label words", REAL_NUMBER, &s->head_lr_ratio, 0, 1e4),
        SETTING("layer-decay", "a block's rate, in those of the block above", REAL_NUMBER,
                &s->layer_decay, 0.01, 1,
                .idle = "with tune probe|with tune prompt|with tune last:1"),
        SETTING("l2sp", "pull to the pretrained weights", REAL_NUMBER, &s->l2sp, 0, 1e30,
                .idle = "with tune probe|with tune prompt|with tune scratch"),
        STEPS("lm-coef", "weight of the language model's loss", REAL_NUMBER, &s->lm_coef, 0, 100),
        STEPS("average", "part of the updates, the last, whose mean weights are kept; 0: the best "
              "weights; -1: 0.1 if validation has fewer than 100 texts", REAL_NUMBER, &s->average,
              -1, 1),
        SETTING("class-weights", "auto: rare classes count as much as common ones", CHOICE,
                &s->class_weights, .choices = "none|auto", .idle = "with tune prompt"),
        SETTING("calibrate", "fit probabilities to validation", FLAG, &s->calibrate),
        STEPS("warmup", "part in which the rate rises; then it falls", REAL_NUMBER, &s->warmup, 0,
              1),
        STEPS("weight-decay", "of matrices", REAL_NUMBER, &s->weight_decay, 0, 10),
        STEPS("dropout", "-1: 0.1 for full and scratch, else 0", REAL_NUMBER, &s->dropout, -1, 0.9),
        SETTING("max-tokens", "of a text; 0: the model's context", INTEGER, &s->max_tokens, 0, 1e6),
        SETTING("truncate", "what is read of a longer text; both: not in Hugging Face's tokenizers",
                CHOICE, &s->truncate, .choices = "head|tail|both"),
        SETTING("suffix", "follows every text, whatever is cut, such as \". it was\"", TEXT,
                &s->suffix),
        COLUMN_OPTIONS(s->columns),
        SETTING("dedupe", "leave out repeated texts and any in --val or --test", FLAG, &s->dedupe),
        SETTING("seed", "of the head, the order, dropout and the split", LONG, &s->seed, 0, 9e15),
        PRECISION_OPTION(&s->precision),
        THREADS_OPTION(&s->threads),
        {"resume", "go on in --out with its options; where nothing is, start", FLAG, &s->resume},
        {"overwrite", "replace what --out holds", FLAG, &s->overwrite},
        {0}};
    return memcpy(resize(NULL, sizeof rows), rows, sizeof rows);
}

/* Reads s->tune, one of the first `kinds`, into s->kind and s->last. option: for messages. */
static void parse_tune(const char *option, int kinds, struct Settings *s, int layers)
{
    static char *const names[] = {"prompt", "probe", "last:K", "full", "scratch", "majority", "nb",
                                  "nbsvm"};
    char rest;
    int kind = 0;
    while (kind < kinds && strcmp(s->tune, names[kind])) kind++;
    if (sscanf(s->tune, "last:%6d%c", &s->last, &rest) == 1) kind = LAST;
    if (kind == kinds || (kind == LAST && s->last < 1))
        die_usage("%s %s: not one of %s.", option, s->tune, joined(names, kinds));
    s->kind = kind;
    if (s->kind == LAST && s->last > layers)
        die_usage("%s %s: the model has %s. Choose no more.", option, s->tune,
                  counted(layers, "block"));
}

/* Begins a training or a comparison. Refuses to replace an earlier run without --overwrite; with
 * --resume takes the options from it. Returns whether it has ended. Where nothing is, it starts,
 * and also where a run failed before its state: all but a table with rows is replaced. */
static bool open_run(struct Task *t)
{
    static const char *const files[] = {"model.safetensors", "state.safetensors", "log.tsv",
                                        "config.json", "compare.tsv", NULL};
    const struct Settings *s = &t->set;
    const char *state = state_path(s->out), *model = text_of("%s/model.safetensors", s->out);
    begin_training();
    if (s->resume && s->overwrite) die_usage("--resume and --overwrite: choose one of them.");
    lock_directory(s->out);
    const char *run = !s->resume ? NULL : file_exists(state) ? state
                    : file_exists(model) ? model : NULL;
    const char *rows = run || !s->resume ? NULL
                     : read_journal(brief("%s/compare.tsv", s->out), table_header);
    if (!s->overwrite && !run && !(rows && !*rows))
        refuse_existing(s->out, s->resume ? files + 4 : files, s->resume
                        ? "It has no state.safetensors: give --overwrite or another --out."
                        : "Give --resume, --overwrite or another --out.");
    if (run) {
        load_metadata(run, &t->old);
        if (!json_text(&t->old, "train_hash", NULL))
            die("%s: is not from a training that can be resumed. Choose another --out.", run);
        resume_options(t->options, &t->old, "tune", s->out);
    } else if (s->resume)
        progress(true, "nothing to resume in %s: the training starts", s->out);
    if (!s->model || !s->train)
        die_usage("--%s: must be given. --help explains it.", s->model ? "train" : "model");
    if (same_file(s->model, s->out))
        die_usage("--out %s: is the pretrained model. Name another directory.", s->out);
    warn_idle(t->options);
    return run == model;
}

/* Reads the pretrained model and its tokenizer, and checks what of the options depends on them. */
static void load_base(struct Task *t)
{
    struct Settings *s = &t->set;
    struct Model *base = &t->base;
    struct Json meta;
    t->tokenizer = open_model(base, &meta, s->model, s->threads, s->precision);
    t->source_hash = checksum(base->weights, base->parameter_count * sizeof(real));
    if (s->max_tokens == 0) s->max_tokens = base->config.context;
    if (s->max_tokens > base->config.context)
        die_usage("--max-tokens %d: the model's context is %d. Choose no more.", s->max_tokens,
                  base->config.context);
    t->window = (struct Window){s->max_tokens, s->truncate, s->columns.names[PAIRS] != NULL};
    set_suffix(t->tokenizer, s->suffix, s->max_tokens);
    if (s->suffix && !t->tokenizer->usage.begins)
        warn("--suffix: %s does not let texts begin with %s, so their first words are read as if "
             "they had none before them, and an empty text is the suffix alone.", s->model,
             END_OF_TEXT);
}

/* Reads the classifier in set.model: the model, the tokenizer, the part of a text that it reads,
 * and of its training the layout of files and the label words. Dies if there is none. */
static void load_classifier(struct Task *t)
{
    struct Json meta;
    const char *dir = t->set.model;
    t->tokenizer = open_model(&t->model, &meta, dir, t->set.threads, t->set.precision);
    if (!t->model.config.labels)
        die("%s: holds a language model, not a classifier. finetune_cls train makes one.", dir);
    struct Columns *columns = &t->set.columns;
    if (!columns->format) columns->kept_format = json_text(&meta, "data.format", NULL);
    if (!columns->header && *json_text(&meta, "data.header", "no") == 'y') columns->header = "yes";
    for (int i = 0; i < COLUMNS; i++)
        if (!columns->names[i])
            columns->names[i] = json_text(&meta, brief("data.%s", column_words[i]), NULL);
    if (strcmp(json_text(&meta, "tune.tune", ""), "scratch"))       /* which has not read them */
        t->set.label_words = json_text(&meta, "tune.label-words", NULL);
    const struct Usage *u = &t->tokenizer->usage;
    const int context = t->model.config.context;
    t->window = (struct Window){u->max_length && u->max_length < context ? u->max_length : context,
                                json_text(&meta, "tune.truncate", u->keeps_tail ? "tail" : "head"),
                                columns->names[PAIRS] != NULL};
    if (u->suffix_count && u->begins + u->suffix_count >= t->window.max)
        die("%s/tokenizer.json: adds %s after a text, which leave none of %d to the text. Put the "
            "right one there.", dir, counted(u->suffix_count, "token"), t->window.max);
    runner_create(&t->runner, &t->model, &t->data, max_int(BATCH_ROWS, t->window.max), WORK_EVAL);
}

/* Warns if always predicting the commonest label of the N texts would do as well. */
static void warn_of_failure(struct Scores s, int N)
{
    if (s.majority == 1)
        warn("all %d texts have the same label: one class cannot tell how well classes are told "
             "apart. Give texts of every label.", N);
    else if (s.accuracy <= s.majority)
        warn("an accuracy of %.4f on %d texts is no better than always the commonest label "
             "(%.4f): nothing was learnt, or %d texts are too few to tell. Try another --tune, "
             "another --lr or more labels.", s.accuracy, N, s.majority, N);
}

/* The training after `prepare`, in whatever way --tune says; see also set_prior. val: of a probe,
 * the scores of cross-validation. Returns false if a signal ended it. */
static bool learn(struct Task *t, struct Scores *val, struct Json *meta)
{
    const int kind = t->set.kind;
    if (kind == PROBE) {
        real *h = features_of(t, t->train, t->train_count, "features");
        *val = train_probe(t, h, meta);
        release(h, (size_t)t->train_count * t->model.config.channels * sizeof *h);
    }
    if (kind > PROBE && !train_steps(t, meta)) return false;
    if (t->words.count && kind > PROMPT && kind != SCRATCH && t->train_count < t->unlabelled_count)
        set_prior(t);
    return true;
}

static int say_finished(const struct Task *t)
{
    progress(true, "the training in %s is finished", t->set.out);
    return 0;
}

static int command_train(int argc, char **argv)
{
    struct Task task = {.set = DEFAULT_SETTINGS}, *t = &task;
    struct Settings *s = &t->set;
    struct Json meta = {0};
    t->options = tune_options(s);
    read_options(argc, argv, t->options,
        "finetune_cls train --model DIR --train FILE --out DIR [--tune KIND]\n"
        "Makes a classifier of a pretrained model. --tune: prompt asks it by label words, without\n"
        "any label; probe fits a new last layer, in one pass; last:K trains\n"
        "the last K blocks, too; full all; scratch all from random weights.\n"
        "The best of at most 20 validations is kept, or the mean of the last weights (--average).");
    /* What a finished training is said to have read is compared. Not a prompt's: its label words,
     * which may be the names of the classes, decide what it reads. */
    const bool ended = open_run(t), named = is_given(t->options, "train")
        || is_given(t->options, "val") || is_given(t->options, "model");
    if (ended && (!named || !strcmp(s->tune, "prompt"))) return say_finished(t);
    load_base(t);
    parse_tune("--tune", MAJORITY, s, t->base.config.layers);
    if (!s->overwrite) refuse_other_tokenizer(s->out, t->tokenizer);
    load_data(t, s->val_part, STREAM_SPLIT);
    if (s->prior && !t->words.count && s->kind != SCRATCH)
        warn("--prior: has no effect without label words.");
    start_model(t);
    choose_defaults(s, &t->model, t->train_count, t->val_count);
    t->tokenizer->usage.max_length = s->max_tokens;
    t->tokenizer->usage.keeps_tail = strcmp(s->truncate, "head") != 0;
    describe_training(&(struct Json){0}, t);    /* dies if what is resumed read other data */
    if (ended) return say_finished(t);
    progress(true, "%d texts to train on, %d for validation; %d were truncated (%s kept); labels: "
             "%s", t->train_count, t->val_count, t->data.truncated, s->truncate,
             joined(t->model.config.label_names, t->model.config.labels));
    if (s->kind > PROBE)
        progress(true, "%s, %d to an epoch  batch %d  lr %.3g, head x%g  dropout %g  average %g",
                 counted(s->steps, "update"), ceil_div(t->train_count, s->batch), s->batch, s->lr,
                 s->head_lr_ratio, s->dropout, s->average);
    prepare(t);
    struct Scores val = {.accuracy = NAN, .majority = NAN};     /* not known */
    if (s->kind <= PROBE)
        journal_open(&t->log, brief("%s/log.tsv", s->out), probe_header, &t->old);
    else stop_between_steps();
    if (!learn(t, &val, &meta)) return 128 + stop_signal;
    if (s->kind > PROBE) progress(true, "kept: the %s", json_text(&meta, "weights", NULL));
    if (s->calibrate && t->val_count) calibrate(t, &meta);
    else if (s->calibrate)
        warn("--calibrate: has no effect with --tune %s without --val.", s->tune);
    if (t->val_count) val = validate(t);
    warn_of_failure(val, t->val_count ? t->val_count : t->train_count);
    save_classifier(t, t->model.weights, &meta, val);
    remove_file(state_path(s->out));    /* --resume then finds that the training is finished */
    if (!isnan(val.accuracy))
        printf("val_accuracy %.6f\nval_macro_f1 %.6f\nval_loss %.6f\nval_ece %.6f\n"
               "majority %.6f\n", val.accuracy, val.macro_f1, val.loss, val.ece, val.majority);
    return 0;
}

/* --- eval and predict --- */

static void say_truncated(const struct Dataset *d)
{
    if (d->truncated) progress(true, "texts that were truncated: %d", d->truncated);
}

/* One `name value` a line; then one for each class, its name last. loss: the sum over N examples.
 *   precision = TP / (TP + FP)    recall = TP / (TP + FN)    0 if there is nothing to divide by */
static void print_scores(const real *p, const int *truth, double loss, int N, char *const *names,
                         int K)
{
    const struct Scores s = score(p, truth, loss, N, K);
    struct ClassCounts counts[K];
    count_classes(counts, p, truth, N, K);
    printf("accuracy %.6f\naccuracy_low %.6f\naccuracy_high %.6f\nmacro_f1 %.6f\nloss %.6f\n"
           "ece %.6f\nexamples %d\nmajority %.6f\n", s.accuracy, wilson_bound(s.accuracy, N, -1),
           wilson_bound(s.accuracy, N, 1), s.macro_f1, s.loss, s.ece, N, s.majority);
    warn_of_failure(s, N);
    if (K == 2 && s.majority < 1)
        printf("auc %.6f\nmcc %.6f\n", area_under_curve(p, truth, N),
               matthews(counts[0], counts[1]));
    printf("precision    recall        f1  examples  label\n");
    for (int k = 0; k < K; k++) {
        const struct ClassCounts c = counts[k];
        printf("%9.6f %9.6f %9.6f %9d  %s\n", (double)c.right / max_int(c.predicted, 1),
               (double)c.right / max_int(c.truly, 1), f1_of(c), c.truly, names[k]);
    }
}

/* A table of the classes in their order, if it fits on a page: how often each was predicted. */
static void print_confusion(const real *p, const int *truth, int N, char *const *names, int K)
{
    enum { MAX_SHOWN = 50 };
    int counts[MAX_SHOWN][MAX_SHOWN] = {{0}};
    if (K > MAX_SHOWN) return;
    for (int i = 0; i < N; i++) counts[truth[i]][most_probable(p + (size_t)i * K, K)]++;
    printf("confusion matrix (row: true label, column: predicted, in the same order)\n");
    for (int k = 0; k < K; k++) {
        for (int j = 0; j < K; j++) printf(" %6d", counts[k][j]);
        printf("  %s\n", names[k]);
    }
}

/* Appends a tab and bytes that must stay one field of a line: tabs and line ends become spaces. For
 * readers of CSV, quotes are doubled, and stand around a field that holds one (RFC 4180). */
static void append_field(struct Buffer *b, struct Bytes field, bool quote)
{
    quote = quote && memchr(field.data, '"', field.size);
    append(b, quote ? "\t\"" : "\t");
    for (const char *s = field.data; s < field.data + field.size; s++) {
        if (quote && *s == '"') append_bytes(b, s, 1);
        append_bytes(b, strchr("\t\n\r", *s) && *s ? " " : s, 1);
    }
    if (quote) append(b, "\"");
}

static const char predictions_header[] = "number\tlabel\tpredicted\tprobability";

/* --predictions: a TSV file, a row for each example. p (N, K) has the digits that give its bits. */
static void write_predictions(struct Output *o, const struct Examples *e, const int *truth,
                              const real *p, char *const *names, int K)
{
    struct Buffer b = {0};
    append(&b, "%s", predictions_header);
    for (int k = 0; k < K; k++) append_field(&b, as_bytes(text_of("p_%s", names[k])), true);
    append(&b, "\ttext\n");
    for (int i = 0; i < e->count; i++, p += K) {
        const int best = most_probable(p, K);
        append(&b, "%d", i + 1);
        append_field(&b, as_bytes(names[truth[i]]), true);
        append_field(&b, as_bytes(names[best]), true);
        append(&b, "\t%.9g", p[best]);
        for (int k = 0; k < K; k++) append(&b, "\t%.9g", p[k]);
        append_field(&b, e->items[i].text, true);
        append(&b, "\n");
        output_write(o, b.data, b.size);
        b.size = 0;
    }
    free(b.data);
    commit_outputs();
}

/* Scores on a labelled file, then a table of the classes and the confusion matrix. */
static int command_eval(int argc, char **argv)
{
    const char *data = NULL, *predictions = NULL;
    struct Task t = {.set = DEFAULT_SETTINGS};
    struct Settings *s = &t.set;
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &s->model, .required = true},
        {"data", data_meaning, TEXT, &data, .required = true},
        {"predictions", "TSV file to write: what is predicted for each text", TEXT, &predictions},
        COLUMN_OPTIONS(s->columns), PRECISION_OPTION(&s->precision),
        THREADS_OPTION(&s->threads), {0}};
    read_options(argc, argv, options,
        "finetune_cls eval --model DIR --data FILE\n"
        "Prints accuracy, macro F1, loss, calibration error and more, and a table of the classes.");
    if (predictions && file_exists(predictions) && !read_journal(predictions, predictions_header))
        die_usage("--predictions %s: holds no predictions, so it is not replaced. Name another.",
                  predictions);
    load_classifier(&t);
    const int K = t.model.config.labels;
    char *const *names = t.model.config.label_names;
    const struct Examples e = read_examples(data, s->columns);
    struct Output *o = predictions ? output_open(predictions) : NULL;
    add_examples(&t.data, t.tokenizer, &e, names, K, t.window);
    const struct Dataset *d = &t.data;
    real *p = resize(NULL, (size_t)d->count * K * sizeof *p);
    say_truncated(d);
    const double loss = run_examples(&t.runner, p, NULL, NULL, d->count, "eval");
    if (predictions) write_predictions(o, &e, d->labels, p, names, K);
    print_scores(p, d->labels, loss, d->count, names, K);
    print_confusion(p, d->labels, d->count, names, K);
    return 0;
}

/* Appends a line of label, probability and text, or a JSON object; with --all each probability. */
static void append_answer(struct Buffer *b, const struct Task *t, struct Bytes text, const real *p)
{
    const int K = t->set.all ? t->model.config.labels : 0;
    const int best = most_probable(p, t->model.config.labels);
    char *const *names = t->model.config.label_names;
    if (t->set.json) {
        append(b, "{\"text\": ");
        append_json_string(b, text);
        append(b, ", \"label\": ");
        append_json_string(b, as_bytes(names[best]));
        append(b, ", \"probability\": %.6f%s", p[best], K ? ", \"probabilities\": {" : "");
        for (int k = 0; k < K; k++) {
            append_json_string(b, as_bytes(names[k]));
            append(b, ": %.6f%s", p[k], k < K - 1 ? ", " : "}");
        }
        append(b, "}\n");
        return;
    }
    append(b, "%s\t%.4f", names[best], p[best]);
    for (int k = 0; k < K; k++) append(b, "\t%s %.4f", names[k], p[k]);
    append_field(b, text, false);
    append(b, "\n");
}

/* Predicts the texts in t->data, prints a line for each and leaves none. */
static void predict_texts(struct Task *t)
{
    const int K = t->model.config.labels;
    struct Dataset *d = &t->data;
    struct Buffer b = {0};
    real *p = resize(NULL, (size_t)d->count * K * sizeof *p);
    run_examples(&t->runner, p, NULL, NULL, d->count, NULL);
    for (int i = 0; i < d->count; i++) append_answer(&b, t, d->texts[i], p + (size_t)i * K);
    show_result(&b);
    d->count = 0;
    free(b.data);
    free(p);
}

/* Predicts the lines of standard input as they arrive. One read returns the lines that are ready,
 * one from a terminal or thousands from a file, and they make the batches. */
static void predict_stream(struct Task *t)
{
    enum { BLOCK = 1 << 20 };
    struct Buffer b = {0};
    int all = 0, empty = 0, invalid = 0;
    if (isatty(0)) progress(true, "One text a line; Ctrl-D ends.");
    for (ssize_t n = 1; n; ) {
        reserve(&b, BLOCK);
        if ((n = read(0, b.data + b.size, BLOCK)) < 0)
            die("standard input: cannot be read (%s).", strerror(errno));
        b.data[b.size += n] = 0;
        if (!all) refuse_other_kinds("standard input", b.data, b.size);
        if (n && !memchr(b.data + b.size - n, '\n', n)) continue;
        size_t whole = b.size;                          /* at the end also a line without an end */
        while (n && b.data[whole - 1] != '\n') whole--;
        const bool mark = !all && !strncmp(b.data, "\xEF\xBB\xBF", 3);     /* of byte order */
        for (const char *at = b.data + 3 * mark, *end = b.data + whole; at < end; all++) {
            const struct Bytes text = take_line(&at, end);
            add_text(&t->data, t->tokenizer, text, -1, t->window);
            empty += text.size == 0;
            invalid += count_invalid(text.data, text.size) > 0;
        }
        predict_texts(t);
        memmove(b.data, b.data + whole, b.size -= whole);
    }
    warn_of_texts("standard input", empty, invalid, all);
    free(b.data);
}

/* TEXTs of the command line, those of a file, a few at a time, or else lines of standard input. */
static int command_predict(int argc, char **argv)
{
    enum { BLOCK = 4096 };
    const char *data = NULL;
    struct Task t = {.set = DEFAULT_SETTINGS};
    struct Settings *s = &t.set;
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &s->model, .required = true},
        {"data", "texts: TSV, CSV, JSON or fastText's format, else one a line", TEXT, &data},
        COLUMN_OPTIONS(s->columns),
        {"all", "the probability of every class", FLAG, &s->all},
        {"json", "one JSON object a line", FLAG, &s->json},
        PRECISION_OPTION(&s->precision), THREADS_OPTION(&s->threads), {0}};
    const int count = read_arguments(argc, argv, options,
        "finetune_cls predict --model DIR [TEXT... | --data FILE]\n"
        "Prints label, probability and text, with tabs between, for each TEXT, each text of FILE\n"
        "or else each line of standard input. The two texts of a pair have a tab between.");
    if (count && data) die_usage("--data %s: there are TEXTs, too. Give one or the other.", data);
    warn_idle(options);
    load_classifier(&t);
    if (data) {
        s->columns.texts_only = true;
        const struct Examples e = read_examples(data, s->columns);
        for (int i = 0; i < e.count; i++) {
            add_text(&t.data, t.tokenizer, e.items[i].text, -1, t.window);
            if (t.data.count == BLOCK) predict_texts(&t);
        }
    } else if (!count) predict_stream(&t);
    for (int i = 0; i < count; i++)
        add_text(&t.data, t.tokenizer, as_bytes(argv[i]), -1, t.window);
    predict_texts(&t);
    say_truncated(&t.data);
    return 0;
}

/* ============================================================================================= */
/* 10. compare: what is pretraining worth?                                                       */
/* ============================================================================================= */

/* Every method learns from the same labels, for every number of labels ("budget") and every seed,
 * and is asked about the test texts once. A method's validation texts come out of its budget. */

/* The result of one training, of a method with a budget and a seed. */
struct Cell {
    double seconds;
    char *right;                        /* (task.val_count): '1': a right answer; NULL: not done */
};

/* What the seeds of a method with a budget, or of two methods, say together. */
struct Estimate {
    int seeds;                          /* so many are done; 0: the rest means nothing */
    double mean, error, df;             /* accuracy, its standard error, degrees of freedom */
    double low, high;                   /* its 95% interval */
    double seconds;                     /* of a seed, on average */
    double p;                           /* of its difference to the budget's best method */
    double holm;                        /* p, corrected for the number of such differences */
};

struct Compare {
    struct Task task;                   /* what methods share; its val: the texts of the test */
    const char *methods_text, *labels_text;
    int seeds;
    double time_limit, start, test_part;

    /* (method_count): what all trainings of a method begin with. set.tune: its name, as the command
     * line has it: majority, nb, nbsvm, or what --tune may be with options: full+l2sp:10+lr:1e-4 */
    struct Task *methods;
    int method_count, *budgets, budget_count;
    struct Dataset bags;                /* of the texts of task.data */
    int feature_count;                  /* in bags */
    int trainings;                      /* cells that make sense */
    struct Cell *cells;                 /* (seeds, budget_count, method_count): cell_at */
    struct Estimate *estimates;         /* (budget_count, method_count) */
    struct Journal journal;             /* compare.tsv: a row for each cell that is done */
};

/* Seeds count from 1. They are outermost, since one of every method is better than five of some. */
static struct Cell *cell_at(const struct Compare *c, int seed, int budget, int method)
{
    const size_t row = (size_t)(seed - 1) * c->budget_count + budget;
    return c->cells + row * c->method_count + method;
}

static struct Estimate *estimate_at(const struct Compare *c, int budget, int method)
{
    return c->estimates + (size_t)budget * c->method_count + method;
}

/* --- Methods --- */

/* Sets the row that "name:value" names. A method may have those that a probe has no use for, since
 * they change gradient steps, class-weights (auto alone), and what is asked, which may be empty. */
static void set_method_option(struct Option *rows, const char *method, char *option)
{
    char *value = strchr(option, ':');
    if (value) *value++ = 0;
    struct Option *row = find_option(rows, option);
    const bool of_steps = row && row->idle && strstr(row->idle, "with tune probe"),
               asks = is_choice(option, strlen(option), "suffix|label-words|prior");
    if (!(value && (of_steps || asks)) && strcmp(option, "class-weights"))
        die_usage("--methods %s: %s is no option of a method, or lacks its value. There are those "
                  "of train for gradient steps, such as lr:X and l2sp:X, suffix:TEXT, "
                  "label-words:WORDS, prior:SHARES and class-weights.", method, option);
    row->may_be_empty = asks;
    set_option(row, brief("--methods %s: %s", method, option), value ? value : "auto");
    row->given = true;
}

/* A suffix gives a method tokens of its own; to prompt without label words it takes the names. */
static struct Task parse_method(const char *name, const struct Compare *c)
{
    const struct Dataset *all = &c->task.data;
    struct Task t = c->task;
    struct Settings *s = &t.set;
    const int K = t.base.config.labels;
    char **names = t.base.config.label_names, *options = text_of("%s", name), *option;
    s->val = NULL;                      /* --test, which keeps no option of a method from effect */
    s->tune = strsep(&options, "+");
    parse_tune("--methods", NBSVM + 1, s, t.base.config.layers);
    if (s->kind >= MAJORITY && options)
        die_usage("--methods %s: %s has no options. Leave them out.", name, s->tune);
    if (s->kind >= MAJORITY) return t;
    struct Option *rows = tune_options(s);
    while ((option = strsep(&options, "+"))) set_method_option(rows, name, option);
    warn_idle(rows);
    if (is_given(rows, "suffix")) {
        t.data = (struct Dataset){0};
        set_suffix(t.tokenizer, s->suffix, s->max_tokens);
        for (int i = 0; i < all->count; i++)
            add_text(&t.data, t.tokenizer, all->texts[i], all->labels[i], t.window);
        set_suffix(t.tokenizer, c->task.set.suffix, s->max_tokens);     /* which the state notes */
    }
    if (s->kind == PROMPT && !has_words(s)) s->label_words = words_of_names(names, K, t.tokenizer);
    if (s->label_words != c->task.set.label_words)
        t.words = read_label_words(s->label_words, names, K, t.tokenizer, false);
    t.prior = read_prior(s->prior, names, K);
    if (is_given(rows, "prior") && t.prior && !t.words.count && s->kind != SCRATCH)
        warn("--methods %s: prior has no effect without label words.", name);
    s->tune = name;
    return t;
}

/* Reads --methods. A comma before a method's name separates two; another is part of a value, such
 * as label words. Unless methods are given, a model of one block has last:1 in place of last:2, and
 * prompting is left out where the names of the classes are no words. */
static void parse_methods(struct Compare *c)
{
    static const char names[] = "majority|nb|nbsvm|scratch|prompt|probe|last|full";
    char *rest = text_of("%s", c->methods_text), *name, *last = strstr(rest, "last:2");
    const bool given = is_given(c->task.options, "methods");
    if (c->task.base.config.layers == 1 && last && !given) last[5] = '1';
    if (strpbrk(rest, "\t\r\n"))
        die_usage("--methods: compare.tsv cannot hold a tab or a line end. Give it as --suffix.");
    for (char *comma = rest; (comma = strchr(comma, ',')); comma++)
        if (is_choice(comma + 1, strcspn(comma + 1, ",+:"), names)) *comma = '\n';
    while ((name = strsep(&rest, "\n"))) {
        for (int k = 0; k < c->method_count; k++)
            if (!strcmp(name, c->methods[k].set.tune))
                die_usage("--methods: %s is named twice.", name);
        const struct Task m = parse_method(name, c);
        if (m.set.kind == PROMPT && !m.words.count) {
            if (given) die_usage(no_words, "--methods", name, m.base.config.label_names[0]);
            warn("prompt is left out, since not every class's name is a token. Give "
                 "--label-words.");
            continue;
        }
        c->methods = resize(c->methods, (c->method_count + 1) * sizeof *c->methods);
        c->methods[c->method_count++] = m;
    }
}

/* --- Budgets and subsets --- */

/* list (budget): texts to learn from, of each class in proportion, at least two. Up to rounding, a
 * seed's smaller budgets are parts of its larger ones. */
static void choose_subset(int *list, const struct Compare *c, int budget, int seed)
{
    const struct Task *t = &c->task;
    const int N = t->train_count, K = t->base.config.labels, *labels = t->data.labels;
    int *order = resize(NULL, N * sizeof *order), count[K], left[K], chosen = 0;
    struct Random random = random_stream(seed, STREAM_SUBSET);
    memset(count, 0, sizeof count);
    memcpy(order, t->train, N * sizeof *order);
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
}

/* Reads --labels. "all" and numbers beyond the texts that there are mean all of them. Fewer than
 * two of each class, to learn from and to validate on, are left out; not 0, if a method prompts. */
static void parse_budgets(struct Compare *c)
{
    char *rest = text_of("%s", c->labels_text), *part;
    const int K = c->task.base.config.labels, least = 2 * K;
    double before = -1;
    bool prompts = false;
    c->budgets = resize(NULL, (strlen(rest) + 1) * sizeof *c->budgets);     /* more than needed */
    for (int m = 0; m < c->method_count; m++) prompts |= c->methods[m].set.kind == PROMPT;
    while ((part = strsep(&rest, ","))) {
        double x = INFINITY;
        if (strcmp(part, "all")
            && (!parse_number(part, "k", (double[]){1e3}, &x) || x != floor(x) || x < 0))
            die_usage("--labels %s: not a number of labels, nor \"all\".", part);
        if (x <= before) die_usage("--labels %s: numbers must rise.", c->labels_text);
        before = x;
        const int n = (int)fmin(x, c->task.train_count), count = c->budget_count;
        if (n == 0 && !prompts && !is_given(c->task.options, "labels")) continue;
        if (n == 0 && !prompts) warn("--labels 0: left out, since no method is prompt.");
        else if (n > 0 && n < least)
            warn("--labels %d: left out, since %d classes need %d at least.", n, K, least);
        else if (!count || n > c->budgets[count - 1]) c->budgets[c->budget_count++] = n;
    }
    if (!c->budget_count)
        die_usage("--labels %s: no number is left. Give larger ones.", c->labels_text);
}

/* --- One cell --- */

/* A method that knows no model is asked about the texts of the test: the largest value of a row of
 * p (val_count, K) is its answer. Only naive Bayes has probabilities, and so a loss: the sum. */
static void run_classical(real *p, double *loss, const struct Compare *c, struct Task *t)
{
    static void (*const ways[])(double *, const struct Task *, int) = {majority, naive_bayes,
                                                                       nbsvm};
    const int K = t->base.config.labels, n = t->val_count, F = c->feature_count;
    double *scores = resize(NULL, ((size_t)n * K + F + 1) * sizeof *scores);
    double *w = scores + (size_t)n * K;
    *loss = 0;
    t->data = c->bags;
    t->base.config.vocabulary = F;
    for (int k = 0; k < K; k++) {
        ways[t->set.kind - MAJORITY](w, t, k);
        for (int i = 0; i < n; i++)
            scores[(size_t)i * K + k] = bag_dot(&t->data, t->val[i], w) + w[F];
    }
    for (int i = 0; i < n; i++) {
        double max = -INFINITY, sum = 0;
        const double *z = scores + (size_t)i * K;
        for (int k = 0; k < K; k++) max = fmax(max, z[k]);
        for (int k = 0; k < K; k++) sum += exp(z[k] - max);
        for (int k = 0; k < K; k++) p[(size_t)i * K + k] = (real)(z[k] - max);
        *loss += max + log(sum) - z[t->truth[i]];
    }
    if (t->set.kind != NB) *loss = NAN;
    free(scores);
}

/* A training as by `train`, without files; p: its answers to the test. false: a signal ended it. */
static bool run_tuned(real *p, double *loss, const struct Compare *c, struct Task *t)
{
    const struct Task *all = &c->task;
    struct Json meta = {0};
    struct Scores val;
    take_validation(t, t->train_count, t->set.val_part, STREAM_SPLIT);
    choose_unlabelled(t, all->train, all->train_count);
    start_model(t);
    choose_defaults(&t->set, &t->model, t->train_count, t->val_count);
    prepare(t);
    const bool whole = learn(t, &val, &meta);
    if (whole)
        *loss = run_examples(&t->runner, p, NULL, all->val, all->val_count, t->title);
    if (whole && !isfinite(*loss))
        die("--methods %s: the loss is not finite. Lower its lr.", t->set.tune);
    json_free(meta.child);
    release(t->probabilities, (size_t)t->val_count * t->model.config.labels * sizeof(real));
    runner_free(&t->runner);
    model_free(&t->model);
    free(t->truth);
    free(t->class_weights);
    free(t->unlabelled);
    return whole;
}

/* Trains and asks the method of a cell, and adds its scores to compare.tsv, unless a signal ends
 * that. Without a label the commonest one is that of all texts: it is what the others must beat. */
static void run_cell(struct Compare *c, int seed, int budget, int method)
{
    struct Cell *cell = cell_at(c, seed, budget, method);
    struct Task t = c->methods[method];
    const bool classical = t.set.kind >= MAJORITY;
    const int labels = c->budgets[budget], K = t.base.config.labels;
    const int n = t.val_count, *truth = t.truth;
    real *p = resize(NULL, (size_t)n * K * sizeof *p);
    const double start = seconds();
    double loss;
    t.set.seed = seed;
    t.title = c->task.title;
    t.train_count = labels || !classical ? labels : c->task.train_count;
    int *list = t.train = resize(NULL, t.train_count * sizeof *list);
    if (t.train_count) choose_subset(list, c, t.train_count, seed);
    if (classical) run_classical(p, &loss, c, &t);
    if (classical || run_tuned(p, &loss, c, &t)) {
        const struct Scores s = score(p, truth, loss, n, K);
        cell->seconds = seconds() - start;
        cell->right = resize(NULL, n + 1);
        for (int i = 0; i < n; i++)
            cell->right[i] = '0' + (most_probable(p + (size_t)i * K, K) == truth[i]);
        cell->right[n] = 0;
        commit_outputs();               /* before the first row: see open_comparison */
        journal_add(&c->journal, "%s\t%d\t%d\t%.6f\t%.6f\t%.6f\t%.2f\t%s\n", t.set.tune,
                    labels, seed, s.accuracy, s.macro_f1, s.loss, cell->seconds, cell->right);
        journal_flush(&c->journal);
    }
    free(list);
    free(p);
}

/* --- What is on disk already: a row for each cell --- */

/* Takes over a row of compare.tsv if it is of a cell of this comparison; false: it is no row. */
static bool read_cell(struct Compare *c, const char *row)
{
    const int n = c->task.val_count;
    int labels, seed, budget = 0, method = 0, end = 0;
    double took;
    char *name = text_of("%.*s", (int)strcspn(row, "\t\n"), row);
    const char *rest = row + strlen(name);
    sscanf(rest, "\t%d\t%d\t%*f\t%*f\t%*f\t%lf\t%n", &labels, &seed, &took, &end);
    const char *right = rest + end;
    if (!end || seed < 1 || strspn(right, "01") != (size_t)n || right[n] != '\n') return false;
    while (budget < c->budget_count && c->budgets[budget] != labels) budget++;
    while (method < c->method_count && strcmp(c->methods[method].set.tune, name)) method++;
    free(name);
    if (seed <= c->seeds && budget < c->budget_count && method < c->method_count)
        *cell_at(c, seed, budget, method) = (struct Cell){took, text_of("%.*s", n, right)};
    return true;
}

/* Begins the table, or goes on with the one in --out. With --overwrite, an older one is replaced
 * when the new one gets its first row: first by a table without rows, so that no settings ever
 * stand beside rows that were not made with them. */
static void open_comparison(struct Compare *c)
{
    const struct Task *t = &c->task;
    struct Json meta = {0};
    const char *table = text_of("%s/compare.tsv", t->set.out);
    describe_training(&meta, t);
    char *rows = t->old.child ? read_journal(table, table_header) : NULL;
    if (t->old.child && !rows)
        die("%s: is not the table of a comparison. Give --overwrite.", table);
    journal_open(&c->journal, table, table_header, &(struct Json){0});
    for (char *at = rows, *end; at && (end = strchr(at, '\n')); at = end + 1)
        if (read_cell(c, at)) journal_add(&c->journal, "%.*s\n", (int)(end - at), at);
    stage_safetensors(state_path(t->set.out), &(struct Model){0}, NULL, 0, &meta);
    if (!t->set.overwrite) commit_outputs();
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

/* Half a 95% interval, in standard errors: t with student_tail(t, df) = SIGNIFICANT and df >= 1. */
static double student_quantile(double df)
{
    double low = 1.9, high = 12.8;
    for (int i = 0; i < 40; i++) {
        const double t = (low + high) / 2;
        if (student_tail(t, df) > SIGNIFICANT) low = t; else high = t;
    }
    return (low + high) / 2;
}

/* The mean over seeds and test texts of "a was right", minus that of b if b is not negative, where
 * both saw the same labels. Seeds and texts are both samples: with means over one of them,
 *   error^2 = variance of the seeds' means / seeds + variance of the texts' means / texts
 * which counts the noise of single answers twice, so it is rather too large. The degrees of freedom
 * are Satterthwaite's. With one seed only the texts' part is known.
 *   A difference is that with two texts more, one that only a has right and one that only b has
 * right. Otherwise two texts, answered alike with every seed, would be a certainty. (Agresti and
 * Min 2005 add half a text to each of the four cases.) Its p is the probability that methods of
 * equal worth differ so much; NAN if no seed has both. */
static struct Estimate mean_right(const struct Compare *c, int budget, int a, int b)
{
    const int n = c->task.val_count, N = b < 0 ? n : n + 2;
    double *text = allocate_zeroed(N * sizeof *text), sum = 0, squares = 0, spread = 0;
    struct Estimate e = {.p = NAN};
    for (int seed = 1; seed <= c->seeds; seed++) {
        const char *x = cell_at(c, seed, budget, a)->right;
        const char *y = b < 0 ? NULL : cell_at(c, seed, budget, b)->right;
        if (!x || (b >= 0 && !y)) continue;
        double own = 0;
        for (int i = 0; i < n; i++) {
            const double d = (x[i] == '1') - (y && y[i] == '1');
            text[i] += d;
            own += d;                   /* a whole number: equal sums are equal to the bit */
        }
        if (y) { text[n]++; text[n + 1]--; }
        e.seeds++;
        sum += own;
        squares += own * own;
    }
    const int seeds = e.seeds;
    e.mean = seeds ? sum / N / seeds : NAN;
    for (int i = 0; i < N; i++) spread += pow(text[i] / seeds - e.mean, 2);
    const double texts_part = N > 1 ? spread / (N - 1) / N : 0;
    const double seeds_part = seeds < 2 ? 0 : fmax(0, squares - sum * sum / seeds) / N / N
                                              / (seeds - 1) / seeds;
    const double both = texts_part + seeds_part,
                 df = both * both / (texts_part * texts_part / fmax(N - 1, 1)
                                     + seeds_part * seeds_part / fmax(seeds - 1, 1));
    release(text, N * sizeof *text);
    e.error = sqrt(both);
    e.df = both > 0 ? df : 1;
    if (seeds && b >= 0) e.p = student_tail(fabs(e.mean) / e.error, e.df);
    return e;
}

/* A method's accuracy with a budget. Its interval is within 0 to 1 and contains Wilson's for so
 * many texts, since no number of seeds makes few texts many. */
static struct Estimate estimate(const struct Compare *c, int budget, int method)
{
    struct Estimate e = mean_right(c, budget, method, -1);
    const double half = e.error * student_quantile(e.df);
    e.low = fmax(0, fmin(e.mean - half, wilson_bound(e.mean, c->task.val_count, -1)));
    e.high = fmin(1, fmax(e.mean + half, wilson_bound(e.mean, c->task.val_count, 1)));
    for (int seed = 1; seed <= c->seeds; seed++)
        e.seconds += cell_at(c, seed, budget, method)->seconds / e.seeds;
    return e;
}

/* The most accurate method with a budget, of the kinds from first to last; -1: none has run. */
static int best_method(const struct Compare *c, int budget, int first, int last)
{
    const struct Estimate *e = estimate_at(c, budget, 0);
    int best = -1;
    for (int m = 0; m < c->method_count; m++) {
        const int kind = c->methods[m].set.kind;
        const bool asked = kind >= first && kind <= last && e[m].seeds;
        if (asked && (best < 0 || e[m].mean > e[best].mean)) best = m;
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

/* Sets c->estimates when no more cells will be done. */
static void compute_estimates(struct Compare *c)
{
    const int M = c->method_count;
    c->estimates = allocate_zeroed((size_t)c->budget_count * M * sizeof *c->estimates);
    for (int b = 0; b < c->budget_count; b++) {
        struct Estimate *e = estimate_at(c, b, 0);
        for (int m = 0; m < M; m++) e[m] = estimate(c, b, m);
        const int best = best_method(c, b, PROMPT, NBSVM);
        for (int m = 0; m < M; m++)
            if (m != best && e[m].seeds) e[m].p = mean_right(c, b, best, m).p;
        correct_by_holm(e, M);
    }
}

/* --- The table and its verdict --- */

/* A row for each method, with a star where it is the best of its column or not significantly worse:
 *   labels        20                 100                seconds
 *   nb            0.526 0.504-0.548* 0.574 0.551-0.597* 0.0 */
static void print_table(const struct Compare *c)
{
    printf("accuracy on %d test texts%s: mean, 95%% interval; seconds of one training with test\n",
           c->task.val_count, c->task.val_count < FEW_TEXTS
           ? ", so few that only large differences are seen" : "");
    printf("%-13s", "labels");
    for (int b = 0; b < c->budget_count; b++) printf(" %-18d", c->budgets[b]);
    printf(" seconds\n");
    for (int m = 0; m < c->method_count; m++) {
        const struct Estimate *last = estimate_at(c, c->budget_count - 1, m);
        printf("%-13s", c->methods[m].set.tune);
        for (int b = 0; b < c->budget_count; b++) {
            const struct Estimate *e = estimate_at(c, b, m);
            printf(" %-18s", !e->seeds ? "-" : brief("%.3f %.3f-%.3f%s", e->mean, e->low, e->high,
                                                     e->holm < SIGNIFICANT ? "" : "*"));
        }
        printf(" %s\n", last->seeds ? brief("%.1f", last->seconds) : "-");
    }
}

/* The fewest labels with which a method reaches an accuracy, or minus the most that it has had. */
static int labels_needed(const struct Compare *c, int method, double accuracy)
{
    int most = 0;
    for (int b = 0; b < c->budget_count; b++) {
        const struct Estimate *e = estimate_at(c, b, method);
        if (e->seeds) most = c->budgets[b];
        if (e->seeds && e->mean >= accuracy) return most;
    }
    return -most;
}

/* "Pretraining is worth N labels": so many more are needed from scratch for what the best
 * pretrained method reaches with about 100. Without a larger number nothing can be said. */
static void print_worth(const struct Compare *c)
{
    int near = 0;
    for (int b = 0; b < c->budget_count - 1; b++)
        if (!c->budgets[near] || abs(c->budgets[b] - 100) < abs(c->budgets[near] - 100)) near = b;
    const struct Estimate *e = estimate_at(c, near, 0);
    const int best = best_method(c, near, PROMPT, FULL),
              scratch = best_method(c, near, SCRATCH, SCRATCH);
    if (best < 0 || scratch < 0 || c->budget_count == 1) return;
    const int few = c->budgets[near], needed = labels_needed(c, scratch, e[best].mean),
              more = abs(needed) - few;
    const bool better = more > 0 && mean_right(c, near, best, scratch).p < SIGNIFICANT;
    if (needed == -few) return;
    printf("Pretraining is worth %s: with %d labels %s reaches %.3f, training from scratch %.3f.\n",
           !better ? "nothing significant"
                   : brief("%s %d labels", needed > 0 ? "at most" : "more than", more),
           few, c->methods[best].set.tune, e[best].mean, e[scratch].mean);
}

/* What the model knows before any label, and how many labels naive Bayes needs for as much. */
static void print_prompt(const struct Compare *c)
{
    const int best = best_method(c, 0, PROMPT, FULL),
              bayes = best_method(c, c->budget_count - 1, NB, NB);
    if (best < 0 || c->budgets[0]) return;
    const double mean = estimate_at(c, 0, best)->mean;
    const int needed = bayes < 0 ? 0 : labels_needed(c, bayes, mean);
    printf("Without any label %s is right in %.3f", c->methods[best].set.tune, mean);
    if (bayes >= 0)
        printf("; naive Bayes needs %s %d labels for that", needed > 0 ? "at most" : "more than",
               abs(needed));
    printf(".\n");
}

/* What to use: the quickest method that is not worse than the best even without correction. */
static void print_choice(const struct Compare *c)
{
    const int b = c->budget_count - 1;
    const struct Estimate *e = estimate_at(c, b, 0);
    int choice = best_method(c, b, PROMPT, NBSVM);
    if (choice < 0) return;
    for (int m = 0; m < c->method_count; m++)
        if (e[m].p >= SIGNIFICANT && e[m].seconds < e[choice].seconds) choice = m;
    printf("For these data, with %d labels: %s, the quickest that is not significantly worse than "
           "the best that was run.\n", c->budgets[b], c->methods[choice].set.tune);
}

/* What the figures mean and what they cannot tell, then sentences that a person can use. */
static void print_verdict(const struct Compare *c)
{
    const int *truth = c->task.truth, last = c->budget_count - 1,
              seeds = estimate_at(c, last, 0)->seeds;       /* which --time-limit may have cut */
    bool one_class = true;
    for (int i = 0; i < c->task.val_count; i++) one_class &= truth[i] == truth[0];
    printf("\n");
    if (c->method_count > 1)
        printf("*: the best of a column, or not significantly worse: p >= 0.05, by paired "
               "differences and with Holm's correction.\n"
               "The best of several is a little flattered: chance chose it, too.\n");
    if (seeds < 2 && c->budgets[last] && c->budgets[0] < c->task.train_count)
        printf("With one seed the choice of labels is not in the interval. Three tell more.\n");
    if (seeds > 1 && c->budgets[last] == c->task.train_count)
        printf("With all labels every seed has the same texts: their choice is not in the "
               "interval.\n");
    if (one_class) {
        printf("All test texts are of one class: there is no verdict. Give another --test.\n");
        return;
    }
    print_prompt(c);
    print_worth(c);
    print_choice(c);
}

/* --- The whole comparison --- */

/* Without labels two methods make sense: prompting, and what the commonest label would give. */
static bool makes_sense(const struct Compare *c, int budget, int method)
{
    const int kind = c->methods[method].set.kind;
    return c->budgets[budget] || kind == MAJORITY || kind == PROMPT;
}

/* Runs the cells that are not done, until a signal ends it, or until --time-limit leaves less time
 * than the method took with the seed before; of the first, with fewer labels. Returns how many are
 * done, of c->trainings. The time left follows from the first seed, and is not known in it. */
static int run_cells(struct Compare *c)
{
    const int M = c->method_count, round = c->budget_count * M;
    double shown = seconds();
    bool over = false;
    int done = 0;
    for (int i = 0; i < round; i++) c->trainings += c->seeds * makes_sense(c, i / M, i % M);
    for (int i = 0; i < c->seeds * round; i++) {
        const int budget = i % round / M, method = i % M;
        struct Cell *cell = &c->cells[i];
        const double took = i < M ? 0 : cell[i < round ? -M : -round].seconds;
        if (!makes_sense(c, budget, method)) continue;
        over |= stop_signal || (c->time_limit && seconds() - c->start + took > c->time_limit);
        if (!over && !cell->right) {
            double left = 0;
            for (int k = i; k < c->seeds * round; k++)
                if (!c->cells[k].right) left += c->cells[k % round].seconds;
            c->task.title = text_of("training %d/%d%s: %s, %d labels", done + 1, c->trainings,
                                    i < round ? "" : brief(", %s left", duration(left)),
                                    c->methods[method].set.tune, c->budgets[budget]);
            if (line_is_due(&shown)) progress(false, "%s", c->task.title);
            run_cell(c, i / round + 1, budget, method);
        }
        done += cell->right != NULL;
    }
    return done;
}

static int command_compare(int argc, char **argv)
{
    struct Compare c = {.seeds = 5, .labels_text = "0,20,100,500,1000,all", .start = seconds(),
                        .methods_text = "majority,nb,nbsvm,scratch,prompt,probe,last:2,full,"
                                        "full+l2sp:10",
                        .test_part = 0.3, .task = {.set = DEFAULT_SETTINGS}};
    struct Task *t = &c.task;
    struct Settings *s = &t->set;
    struct Option *tune = tune_options(s), options[] = {
        SHARED("model"), SHARED("train"),
        {"test", "labelled texts that nothing is learnt from; without: a part of --train", TEXT,
         &s->val, .effect = EXTENDS},
        {"test-part", "how much of each class that part is", REAL_NUMBER, &c.test_part, 0.001, 0.9,
         .effect = DEFINES, .idle = "with test"},
        {"out", "directory of compare.tsv", TEXT, &s->out, .required = true},
        {"labels", "how many to learn from, rising; 0: none; all, or more than there are: all",
         TEXT, &c.labels_text, .effect = EXTENDS},
        {"seeds", "repetitions with other labels, head, order and dropout", INTEGER, &c.seeds, 1,
         1000, .effect = EXTENDS},
        {"methods", "separated by commas, with options as in the last one; a comma that no method "
         "follows is part of an option's value", TEXT, &c.methods_text, .effect = EXTENDS},
        {"time-limit", "ends the comparison; later seeds are left out first; 0: none", SECONDS,
         &c.time_limit, 0, 1e9},
        SHARED("label-words"), SHARED("prior"), SHARED("val-part"), SHARED("epochs"),
        SHARED("steps"), SHARED("batch"), SHARED("max-tokens"), SHARED("truncate"),
        SHARED("suffix"), COLUMN_OPTIONS(s->columns), PRECISION_OPTION(&s->precision),
        THREADS_OPTION(&s->threads), SHARED("resume"), SHARED("overwrite"), {0}};
    read_options(argc, argv, options,
        "finetune_cls compare --model DIR --train FILE [--test FILE] --out DIR [options]\n"
        "What is pretraining worth? Every method learns from the same few labels, several times,\n"
        "and is tested on the same texts. Prints a table and what follows from it; writes a row\n"
        "for each training to compare.tsv.");
    t->options = options;
    s->dedupe = true;
    open_run(t);
    load_base(t);
    load_data(t, c.test_part, STREAM_TEST);
    t->quiet = true;                /* from here on, as it is in all trainings */
    c.feature_count = bags_of(&c.bags, &t->data);
    t->train_hash = mix64(t->train_hash ^ hash_texts(&c.bags, 0));      /* of whole texts, too */
    parse_methods(&c);
    parse_budgets(&c);
    c.cells = allocate_zeroed((size_t)c.seeds * c.budget_count * c.method_count * sizeof *c.cells);
    open_comparison(&c);
    stop_between_steps();
    const int done = run_cells(&c);
    if (done < c.trainings) {
        if (done || !s->overwrite)
            advise_resume("compare", brief("%d of %d trainings", done, c.trainings), s->out);
        else progress(true, "stopped before the first training was done: %s is as it was", s->out);
        if (stop_signal) return 128 + stop_signal;
    } else progress(true, "%s done", counted(done, "training"));
    compute_estimates(&c);
    print_table(&c);
    if (done) print_verdict(&c);
    return 0;
}

/* ============================================================================================= */
/* 11. A look inside: layers, explain                                                            */
/* ============================================================================================= */

/* last (B, C): the last of each text's rows in h (N, C); mean (B, C) += the mean of its rows. */
static void pool(real *last, real *mean, const real *h, const struct Batch *b, int C)
{
    for (int s = 0; s < b->sequences; s++, last += C, mean += C)
        for (int n = b->starts[s]; n < b->starts[s + 1]; n++)
            for (int c = 0; c < C; c++) {
                last[c] = h[(size_t)n * C + c];
                mean[c] += last[c] / (b->starts[s + 1] - b->starts[s]);
            }
}

/* What each text has become after every block, put through ln_f as if the network ended there, from
 * one pass over all N texts in the order of list.   levels (2 (L + 1), N, C), 0 before: [2 l] after
 * l blocks its last token, which is what a classifier reads; [2 l + 1] the mean over its tokens */
static void read_levels(real *levels, struct Runner *r, const int *list)
{
    const int C = r->model->config.channels, N = r->data->count;
    struct Timer timer = start_timer();
    for (int done = 0; done < N; ) {
        const struct Batch b = gather(r, list + done, N - done);
        for (int l = 0; l <= r->model->config.layers; l++) {
            const real *h = blocks_forward(r->model, &r->ws, &b, 0, 0, max_int(l - 1, 0), l);
            real *last = levels + ((size_t)2 * l * N + done) * C;
            pool(last, last + (size_t)N * C, h, &b, C);
        }
        done += b.sequences;
        show_work(&timer, "features", done, N, "texts");
    }
}

/* The part of the test texts whose label has the highest score. features (data.count, C) */
static double test_accuracy(const struct Task *t, const real *features)
{
    const int K = t->model.config.labels, C = t->model.config.channels;
    int right = 0;
    for (int i = 0; i < t->val_count; i++) {
        const real *h = features + (size_t)t->val[i] * C;
        real z[K];
        for (int k = 0; k < K; k++) z[k] = dot_product(h, t->model.w.score_w + (size_t)k * C, C);
        right += most_probable(z, K) == t->truth[i];
    }
    return (double)right / t->val_count;
}

/* The accuracy of a probe of each level, by cross-validation and on the test. The block that knows
 * most tells how many to tune: those above it have specialised in predicting the next token. */
static void probe_levels(struct Task *t)
{
    const int count = 2 * (t->model.config.layers + 1), C = t->model.config.channels;
    const size_t size = (size_t)t->data.count * C;
    real *levels = allocate_zeroed(count * size * sizeof *levels);
    int best = 0;
    double highest = 0;
    read_levels(levels, &t->runner, t->train);            /* a probe leaves their order */
    printf("blocks  token  val_accuracy  test_accuracy  95%% interval\n");
    for (int i = 0; i < count; i++) {
        const real *h = levels + i * size;
        memset(t->model.w.score_w, 0, (size_t)t->model.config.labels * C * sizeof(real));
        const double val = train_probe(t, h, &(struct Json){0}).accuracy;
        const double test = test_accuracy(t, h);
        printf("%6d   %s  %12.4f  %13.4f  %.4f to %.4f%s\n", i / 2, i % 2 ? "mean" : "last", val,
               test, wilson_bound(test, t->val_count, -1), wilson_bound(test, t->val_count, 1),
               i / 2 ? "" : "  (embeddings alone)");
        if (val > highest) { highest = val; best = i; }
    }
    printf("On validation the probe is best %s, on %s. --tune probe reads the last token after "
           "block %d.\n", best / 2 ? brief("after block %d", best / 2) : "before the first block",
           best % 2 ? "the mean over tokens" : "the last token", count / 2 - 1);
}

/* One pass over the texts, then a probe for every block. The test stands in validation's place. */
static int command_layers(int argc, char **argv)
{
    struct Task t = {.set = DEFAULT_SETTINGS, .quiet = true};
    struct Settings *s = &t.set;
    struct Option *tune = tune_options(s), options[] = {
        {"model", "directory of the pretrained model", TEXT, &s->model, .required = true},
        {"train", data_meaning, TEXT, &s->train, .required = true},
        {"test", "labelled texts that nothing is learnt from", TEXT, &s->val, .required = true},
        SHARED("max-tokens"), SHARED("truncate"), SHARED("suffix"), SHARED("dedupe"),
        COLUMN_OPTIONS(s->columns), THREADS_OPTION(&s->threads), {0}};
    read_options(argc, argv, options,
        "finetune_cls layers --model DIR --train FILE --test FILE\n"
        "How much each block of a pretrained model knows: the accuracy of a probe after it.");
    s->kind = PROBE;
    load_base(&t);
    load_data(&t, s->val_part, STREAM_SPLIT);
    start_model(&t);
    prepare(&t);
    probe_levels(&t);
    return 0;
}

/* A token's bytes, in readable form. The few strings are never freed. */
static char *readable_token(const struct Tokenizer *t, int id)
{
    struct Buffer b = {0};
    append_readable(&b, bytes_of_token(t, id));
    return b.data;
}

/* How probable the label words of each class are after the n tokens that have just been read. */
static void print_words(const struct Task *t, int n)
{
    const struct Config *config = &t->model.config;
    const struct Dataset *words = &t->words;
    real *p = resize(NULL, config->vocabulary * sizeof *p);
    lm_logits(p, &t->model, t->runner.ws.hidden + (size_t)(n - 1) * config->channels);
    softmax(p, 1, 1, config->vocabulary);
    for (int k = 0; k < config->labels; k++) {
        printf("next, for %s:", config->label_names[k]);
        for (size_t i = words->starts[k]; i < words->starts[k + 1]; i++)
            printf("  \"%s\" %.5f", readable_token(t->tokenizer, words->tokens[i]),
                   p[words->tokens[i]]);
        printf("\n");
    }
    free(p);
}

/* P(label) after each token of a text: a causal model can be read at every prefix. The token that
 * moved it most is named; on a terminal each is coloured, red for less, green for more. */
static void explain_text(struct Task *t, struct Bytes text)
{
    const int K = t->model.config.labels;
    struct Batch *m = &t->runner.minibatch;
    t->data.count = 0;
    add_text(&t->data, t->tokenizer, text, -1, t->window);
    const int n = length_of(&t->data, 0);
    real *p = resize(NULL, (size_t)n * K * sizeof *p);              /* (n, K) */
    forward(&t->runner, (int[]){0}, 1, 0, 0);
    batch_clear(m);
    for (int i = 0; i < n; i++) batch_add(m, 1);    /* each row the last of a sequence */
    class_head(&t->model, &t->runner.ws, m, NULL, NULL, 0, p);
    const int best = most_probable(p + (size_t)(n - 1) * K, K);
    const char *label = t->model.config.label_names[best];
    double before = p[best], largest = 0;
    int most = 0;
    printf("P(%s) after each token:\n", label);
    for (int i = 0; i < n; i++) {
        const double now = p[(size_t)i * K + best], change = now - before;
        const int green = (int)(5 * now + 0.5);             /* of the 6 x 6 x 6 colours */
        if (isatty(1)) printf("\033[48;5;%d;38;5;16m", 16 + 36 * (5 - green) + 6 * green);
        printf("%.4f  %+.4f  %s%s\n", now, change,
               readable_token(t->tokenizer, t->data.tokens[i]), isatty(1) ? "\033[0m" : "");
        before = now;
        if (fabs(change) > fabs(largest)) { largest = change; most = i; }
    }
    if (most)
        printf("%s: the token \"%s\" (number %d) moved it most, by %+.4f\n", label,
               readable_token(t->tokenizer, t->data.tokens[most]), most + 1, largest);
    if (t->words.count) print_words(t, n);
    free(p);
}

static int command_explain(int argc, char **argv)
{
    struct Task t = {.set = DEFAULT_SETTINGS};
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &t.set.model, .required = true},
        THREADS_OPTION(&t.set.threads), {0}};
    const int count = read_arguments(argc, argv, options,
        "finetune_cls explain --model DIR TEXT...\n"
        "The probability of the predicted label after each token, and which token moved it most;\n"
        "with label words also theirs, as the language model expects them next.");
    if (!count) die_usage("TEXT: must be given. --help explains it.");
    load_classifier(&t);
    const struct Config *config = &t.model.config;
    t.words = read_label_words(t.set.label_words, config->label_names, config->labels, t.tokenizer,
                               true);
    for (int i = 0; i < count; i++) {
        if (i) printf("\n");
        explain_text(&t, as_bytes(argv[i]));
    }
    say_truncated(&t.data);
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
