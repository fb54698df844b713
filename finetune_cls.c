/* finetune_cls.c: from a pretrained GPT and labelled texts to a classifier.
 *
 *    I   Fine-tuning          texts as tokens, batches, scores, gradient steps, the probe
 *    II  Files and commands   labelled files, before and after the training, train, eval, predict
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
 * tail, or half of each ("both"). */
struct Window { int max; const char *truncate; };

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
    if (start + text.size + 1 > d->token_capacity) {
        d->token_capacity = 2 * (start + text.size + 1);
        d->tokens = resize(d->tokens, d->token_capacity * sizeof *d->tokens);
    }
    int *ids = d->tokens + start;
    ids[0] = tokenizer->eot;
    const int first = tokenizer->begins || !text.size;
    const int all = tokenizer_encode(tokenizer, text.data, text.size, ids + first);
    const int n = first + truncate_ids(ids + first, all, w.max - first, w.truncate);
    d->truncated += n < all + first;
    d->longest = max_int(d->longest, n);
    d->labels[d->count++] = label;
    d->starts[d->count] = start + n;
}

static int length_of(const struct Dataset *d, int example)
{
    return (int)(d->starts[example + 1] - d->starts[example]);
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

/* ============================================================================================= */
/* 2. Batches                                                                                    */
/* ============================================================================================= */

enum { BATCH_ROWS = 2048 };     /* tokens of a batch: enough rows for efficient products */

/* The input of the first block that learns, for the texts that a training reads: the frozen blocks
 * below read each text once. x is NULL if the memory does not suffice; they then read it again for
 * every update, with the same results. */
struct Cache {
    real *x;                        /* (rows, C) */
    size_t *row;                    /* (examples): the first row of an example's */
    size_t rows;
};

/* A model and the memory to run it on batches of examples. */
struct Runner {
    struct Model *model;
    struct Workspace ws;
    struct Minibatch minibatch;     /* its targets are the labels of the texts */
    int *next;                      /* (max_rows): the next token of each row, -1 at the end */
    int frozen;                     /* blocks that a training does not change, see Cache */
    struct Cache cache;
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
    release(r->cache.x, r->cache.rows * r->model->config.channels * sizeof(real));
    free(r->cache.row);
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

/* The hidden states of a batch that gather made of the first examples of list. Dropout (p, key)
 * touches only blocks that learn. */
static const real *forward(struct Runner *r, const struct Dataset *d, const struct Batch *b,
                           const int *list, double p, uint64_t key)
{
    struct Workspace *ws = &r->ws;
    const int C = r->model->config.channels, L = r->model->config.layers;
    if (!r->frozen) return trunk_forward(r->model, ws, b, p, key);
    real *x = ws->activations[r->frozen].x;
    ws->to = r->frozen;
    if (!r->cache.x) trunk_forward(r->model, ws, b, 0, 0);
    else
        for (int s = 0; s < b->sequences; s++)
            memcpy(x + (size_t)b->starts[s] * C, r->cache.x + r->cache.row[list[s]] * C,
                   (size_t)length_of(d, list[s]) * C * sizeof *x);
    ws->from = r->frozen;
    ws->to = L;
    const real *hidden = trunk_forward(r->model, ws, b, p, key);
    ws->from = 0;
    return hidden;
}

/* Runs the frozen blocks once on the examples of list (count) and keeps what they give, if it fits
 * into a quarter of the machine's memory. */
static void fill_cache(struct Runner *r, const struct Dataset *d, const int *list, int count)
{
    const size_t C = r->model->config.channels;
    struct Cache *c = &r->cache;
    c->row = resize(NULL, d->count * sizeof *c->row);
    for (int i = 0; i < count; i++) { c->row[list[i]] = c->rows; c->rows += length_of(d, list[i]); }
    if (c->rows * C * sizeof(real) > machine_memory() / 4) return;
    real *x = allocate_zeroed(c->rows * C * sizeof(real));
    r->ws.to = r->frozen;
    for (int done = 0; done < count; ) {
        const struct Batch b = gather(r, d, list + done, count - done);
        const real *out = trunk_forward(r->model, &r->ws, &b, 0, 0);
        memcpy(x + c->row[list[done]] * C, out, b.rows * C * sizeof(real));
        done += b.sequences;
    }
    r->ws.to = r->model->config.layers;
    c->x = x;
}

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

static void show_rate(const char *what, int done, int count, double start)
{
    const double spent = seconds() - start;
    if (done < count)
        progress(false, "%s: %d/%d texts  %.0f texts/s  %s left", what, done, count, done / spent,
                 duration(spent * (count - done) / done));
    else progress(true, "%s: %d texts  %.0f texts/s  %.1f s", what, done, done / spent, spent);
}

/* One forward pass over the examples list[0 .. count), or with list NULL over the first count.
 *   probabilities (count, K)    features (count, C): hidden at the last token; each may be NULL
 * Results are in the order of the list. Returns the sum of losses of the examples with a label.
 * what: for a line of progress now and then, or NULL. */
static double run_examples(struct Runner *r, real *probabilities, real *features,
                           const struct Dataset *d, const int *list, int count, const char *what)
{
    const int K = r->model->config.labels, C = r->model->config.channels;
    int *order = resize(NULL, count * sizeof *order),
        *sorted = resize(NULL, count * sizeof *sorted);
    real *p = resize(NULL, (size_t)r->ws.max_rows * max_int(K, 1) * sizeof *p);
    double loss = 0, start = seconds();
    order_by_length(order, d, list, count);
    for (int i = 0; i < count; i++) sorted[i] = list ? list[order[i]] : order[i];
    for (int done = 0; done < count; ) {
        const struct Batch b = gather(r, d, sorted + done, count - done);
        const real *hidden = forward(r, d, &b, sorted + done, 0, 0);
        if (r->measure_lm) {
            r->lm_tokens += set_next_tokens(r, &b);
            r->lm_loss += lm_head(r->model, &r->ws, r->next, 0);
        }
        if (probabilities) loss += class_head(r->model, &r->ws, &b, r->minibatch.targets, NULL,
                                             0, p);
        for (int s = 0; s < b.sequences; s++) {
            const size_t to = order[done + s], last = b.starts[s + 1] - 1;
            if (probabilities) memcpy(probabilities + to * K, p + (size_t)s * K, K * sizeof *p);
            if (features) memcpy(features + to * C, hidden + last * C, C * sizeof *p);
        }
        done += b.sequences;
        if (what && done < count && line_is_due(&r->shown)) show_rate(what, done, count, start);
    }
    free(order);
    free(sorted);
    free(p);
    return loss;
}

/* ============================================================================================= */
/* 3. Scores                                                                                     */
/* ============================================================================================= */

struct Scores { double accuracy, macro_f1, loss, ece; };

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

/* F1 = 2 TP / (2 TP + FP + FN), averaged over the classes that occur, truly or as a prediction. */
static double macro_f1(const int *confusion, int K)
{
    double sum = 0;
    int present = 0;
    for (int k = 0; k < K; k++) {
        int truly = 0, predicted = 0;
        for (int j = 0; j < K; j++) {
            truly += confusion[(size_t)k * K + j];
            predicted += confusion[(size_t)j * K + k];
        }
        if (truly + predicted == 0) continue;
        sum += 2.0 * confusion[(size_t)k * K + k] / (truly + predicted);
        present++;
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
    for (int k = 0; k < K; k++) {
        int truly = 0;
        for (int j = 0; j < K; j++) truly += confusion[(size_t)k * K + j];
        max = max_int(max, truly);
    }
    return (double)max / N;
}

/* ============================================================================================= */
/* 4. Gradient steps                                                                             */
/* ============================================================================================= */

/* What the user calls the columns of a labelled file: names, or numbers from 1; NULL: one of the
 * usual names. A name that the model keeps from its training is only preferred: if it is not there,
 * usual names do. texts_only: labels are not read, and plain lines are texts. */
enum { TEXTS, LABELS };
struct Columns { const char *names[2]; bool preferred[2], texts_only; };

/* The options of the command line. choose_defaults replaces 0 or -1 where a default depends on
 * --tune, on the model and on the data. */
struct Settings {
    const char *model, *train, *val, *out, *tune, *truncate, *class_weights;
    struct Columns columns;
    int epochs, steps, patience, batch, max_tokens, threads;
    int64_t seed;
    double lr, head_lr_ratio, dropout, weight_decay, warmup, val_part;
    double layer_decay, l2sp, lm_coef, average;
    bool overwrite, dedupe, calibrate;
    enum { PROBE, LAST, FULL, SCRATCH } kind;
    int last;                                   /* K of last:K */
};

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
    real *class_weights;                        /* (K), or NULL: all 1 */
    struct Random order, masks;                 /* of the training examples; of dropout */
    struct Buffer log;                          /* log.tsv */
    bool quiet;                                 /* one of many trainings: no progress, no log */
};

/* Random streams of the seed. model_init uses the numbers from 0. */
enum { STREAM_SPLIT = 1 << 30, STREAM_ORDER, STREAM_MASKS };

enum { MIN_UPDATES = 200, MIN_EPOCHS = 3, MAX_VALIDATIONS = 20 };

/* Sets what the command line left open. The learning rate falls with the size of the model: 3e-4
 * for 10 million pretrained weights, 9e-5 for GPT-2's 124 million, 1e-3 for the smallest. Random
 * weights bear a higher rate. Few labels need a number of updates rather than of epochs. */
static void choose_defaults(struct Settings *s, const struct Model *model, int examples)
{
    const double large = sqrt(1e7 / model->parameter_count);
    if (s->lr == 0) s->lr = fmin(1e-3, (s->kind == SCRATCH ? 1e-3 : 3e-4) * large);
    if (s->head_lr_ratio == 0) s->head_lr_ratio = s->kind == SCRATCH ? 1 : 10;
    if (s->dropout < 0) s->dropout = s->kind == FULL || s->kind == SCRATCH ? 0.1 : 0;
    const int updates = ceil_div(examples, s->batch);
    if (s->epochs == 0 && s->steps == 0)
        s->epochs = max_int(MIN_EPOCHS, ceil_div(MIN_UPDATES, updates));
    if (s->epochs == 0) s->epochs = ceil_div(s->steps, updates);
    else if ((int64_t)s->epochs * updates > INT32_MAX)
        die_usage("--epochs %d: are more than %d updates. Choose fewer.", s->epochs, INT32_MAX);
    else s->steps = s->epochs * updates;
}

/* N / (K n_k) for each class k of n_k training examples: rare classes weigh as much as common ones,
 * and the average over the examples is 1. NULL unless --class-weights is auto. */
static real *weigh_classes(const struct Task *t)
{
    const int K = t->model.config.labels;
    if (strcmp(t->set.class_weights, "auto")) return NULL;
    real *weights = resize(NULL, K * sizeof *weights);
    for (int k = 0; k < K; k++) {
        int count = 0;
        for (int i = 0; i < t->train_count; i++) count += t->data.labels[t->train[i]] == k;
        weights[k] = count ? (real)t->train_count / ((real)K * count) : 1;
    }
    return weights;
}

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
        struct Random r = random_stream(t->set.seed, i);
        real *w = model->weights + p->offset;
        if (strcmp(p->name, "score.weight"))
            memcpy(w, base->weights + base->tensors[i].offset, p->size * sizeof(real));
        else
            for (size_t k = 0; k < p->size; k++) w[k] = (real)(p->init * random_normal(&r));
    }
}

/* The scores of the model on the validation examples. */
static struct Scores validate(struct Task *t)
{
    const int K = t->model.config.labels;
    const double loss = run_examples(&t->runner, t->probabilities, NULL, &t->data, t->val,
                                     t->val_count, t->quiet ? NULL : "validation");
    return score(t->confusion, t->probabilities, t->truth, loss, t->val_count, K);
}

/* log.tsv is replaced as a whole, so that it can be read at any time. */
static void write_log(const struct Task *t)
{
    if (t->quiet) return;
    char *path = text_of("%s/log.tsv", t->set.out);
    write_file(path, t->log.data, t->log.size);
    free(path);
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
            lm_head(r->model, &r->ws, r->next, (real)(s->lm_coef / next_tokens));
        trunk_backward(r->model, &r->ws, &b);
        done += b.sequences;
    }
    *norm = grad_norm(r->model);
    if (!isfinite(*norm))
        die("step %lld: the gradient is not finite. Lower --lr (%g).", (long long)step, s->lr);
    adamw_step(r->model, lr, *norm > 1 ? 1 / *norm : 1, s->weight_decay, step);
    if (s->l2sp > 0) proximal_step(r->model, t->source, lr, s->l2sp);
    return loss / count;
}

/* What train_steps knows of a training so far. */
struct Course {
    double start, loss, norm;               /* loss: the sum over the examples since a validation */
    int examples;                           /* how many those were */
    struct Scores top;                      /* of the best weights on validation */
    int worse;                              /* validations since then */
    real *best, *mean;                      /* weights; mean, or NULL: of the last updates */
    int averaged;                           /* how many updates mean has seen */
};

static void show_step(struct Task *t, const struct Course *c, int step, double loss, double lr)
{
    const struct Settings *s = &t->set;
    if (t->quiet || !line_is_due(&t->runner.shown)) return;
    progress(false, "epoch %d/%d  step %d/%d  loss %.4f  lr %.1e  norm %.2f  %s left",
             (step - 1) / ceil_div(t->train_count, s->batch) + 1, s->epochs, step, s->steps, loss,
             lr, c->norm, duration((seconds() - c->start) * (s->steps - step) / step));
}

/* mean += (weights - mean) / count: the mean of the weights after each of the last updates. */
static void average_weights(struct Course *c, const struct Model *model)
{
    const real part = 1 / (real)++c->averaged;
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < model->parameter_count; i++)
        c->mean[i] += part * (model->weights[i] - c->mean[i]);
}

/* Validates, logs, and keeps the weights if they are the most accurate so far, of equally accurate
 * ones those with the lowest loss. train_loss is the mean since the last validation. */
static void look(struct Task *t, struct Course *c, int step, struct Metadata *meta)
{
    const struct Settings *s = &t->set;
    const struct Scores now = validate(t);
    const bool better = now.accuracy > c->top.accuracy
                     || (now.accuracy == c->top.accuracy && now.loss < c->top.loss);
    const int epoch = ceil_div(step, ceil_div(t->train_count, s->batch));
    const double spent = seconds() - c->start, train_loss = c->loss / c->examples;
    append(&t->log, "%d\t%d\t%.6f\t%.6f\t%.6f\t%.4f\t%.2f\n", epoch, step, train_loss, now.loss,
           now.accuracy, c->norm, spent);
    write_log(t);
    if (!t->quiet)
        progress(true, "epoch %d/%d  train loss %.4f  val loss %.4f  val accuracy %.4f  %.1f s%s",
                 epoch, s->epochs, train_loss, now.loss, now.accuracy, spent,
                 better ? "  best" : "");
    c->worse = better ? 0 : c->worse + 1;
    c->loss = c->examples = 0;
    if (!better) return;
    c->top = now;
    memcpy(c->best, t->model.weights, t->model.parameter_count * sizeof(real));
    metadata_set(meta, "best_epoch", "%d", epoch);
    metadata_set(meta, "best_step", "%d", step);
}

/* The whole fine-tuning: examples in random order, s->batch of them an update; a look at validation
 * after epochs, or if --steps says how long to train after every 20th part; the best weights stay.
 * With --average the model instead ends with the mean of the weights of the last updates. The rate
 * falls so that it would be 0 one update after the last: every update counts. best: memory for
 * weights. */
static void train_steps(struct Task *t, real *best, struct Metadata *meta)
{
    const struct Settings *s = &t->set;
    const int updates = ceil_div(t->train_count, s->batch), steps = s->steps;
    const int every = steps == updates * s->epochs ? updates * ceil_div(s->epochs, MAX_VALIDATIONS)
                                                   : ceil_div(steps, MAX_VALIDATIONS);
    const int64_t warmup = (int64_t)(s->warmup * steps);
    const size_t bytes = t->model.parameter_count * sizeof(real);
    struct Course c = {.start = seconds(), .top = {.accuracy = -1, .loss = INFINITY}, .best = best,
                       .mean = s->average > 0 ? allocate_zeroed(bytes) : NULL};
    append(&t->log, "epoch\tstep\ttrain_loss\tval_loss\tval_accuracy\tnorm\tseconds\n");
    for (int step = 1; step <= steps; step++) {
        const int u = (step - 1) % updates, first = u * s->batch,
                  count = min_int(s->batch, t->train_count - first);
        if (u == 0) shuffle(t->train, t->train_count, &t->order);
        const double lr = learning_rate("cosine", step, steps + 1, warmup, s->lr, 0);
        const double loss = train_step(t, &c.norm, t->train + first, count, lr, step);
        c.loss += loss * count;
        c.examples += count;
        show_step(t, &c, step, loss, lr);
        if (c.mean && step > (1 - s->average) * steps) average_weights(&c, &t->model);
        if (step % every && step < steps) continue;
        look(t, &c, step, meta);
        if (!s->patience || c.worse < s->patience) continue;
        if (!t->quiet) progress(true, "stopped: %d times no better on validation", c.worse);
        break;
    }
    memcpy(t->model.weights, c.averaged ? c.mean : c.best, bytes);
    release(c.mean, bytes);
}

/* ============================================================================================= */
/* 5. The probe                                                                                  */
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
    run_examples(&t->runner, NULL, f.x, &t->data, list, count, what);
    show_rate(what, count, count, start);
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
    append(&t->log, "l2\tevaluations\ttrain_loss\tval_loss\tval_accuracy\tseconds\n");
    for (int exponent = 4; exponent >= -8; exponent--) {        /* 1e2 to 1e-4, two to a decade */
        train->l2 = pow(10, exponent / 2.0);
        const int gradients = logistic_solve(train, w, gram);
        logistic_scores(val->z, val, w);
        const double train_loss = logistic_loss(train, NULL);
        const double val_loss = logistic_loss(val, &accuracy), spent = seconds() - start;
        append(&t->log, "%.6g\t%d\t%.6f\t%.6f\t%.6f\t%.2f\n", train->l2, gradients, train_loss,
               val_loss, accuracy, spent);
        progress(true, "l2 %-8.3g train loss %.4f  val loss %.4f  val accuracy %.4f  "
                 "%d evaluations  %.1f s%s", train->l2, train_loss, val_loss, accuracy, gradients,
                 spent, val_loss < lowest ? "  best" : "");
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
    write_log(t);
    logistic_free(&train);
    logistic_free(&val);
    free(deviation);
    free(w);
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
/* II. FILES AND COMMANDS                                                                        */
/* ============================================================================================= */

/* ============================================================================================= */
/* 6. Labelled files: TSV, CSV, JSON, fastText's format                                          */
/* ============================================================================================= */

/* A labelled text; both point into the file or to memory that is never freed. line: for
 * messages. */
struct Example { struct Bytes text, label; int line; };
struct Examples { const char *path; struct Example *items; int count; };

/* A file being read, record by record. Columns are numbered from 0; -1: there is none. */
struct Table {
    const char *path, *at, *end;
    int line;                   /* of `at`, from 1 */
    enum { ROWS, OBJECTS, FASTTEXT, LINES } format;
    bool array;                 /* OBJECTS: members of a JSON array */
    char separator;             /* ROWS: between columns */
    bool strict;                /* CSV: a quote at the beginning of a field must be closed */
    struct Columns wanted;
    int columns, column[2];     /* of the first row; those of TEXTS and LABELS */
    int fields;                 /* of the record, as far as it is read */
};

/* Names of columns, the preferred ones first. */
static const char *const usual_names[2] = {
    "text|sentence|content|review|tweet|comment|phrase|body|review_text|review_body|message",
    "label|labels|sentiment|target|class|category|polarity"};

/* --- Detection of the format --- */

/* Moves on to `to`, and counts the lines. */
static void advance(struct Table *t, const char *to)
{
    for (; t->at < to; t->at++) t->line += *t->at == '\n';
}

/* Skips lines that hold spaces at most. Returns whether anything is left. */
static bool skip_blank_lines(struct Table *t)
{
    for (const char *s = t->at; s < t->end; ) {
        while (s < t->end && (*s == ' ' || *s == '\r')) s++;
        if (s < t->end && *s != '\n') return true;
        s += s < t->end;
        advance(t, s);
    }
    return false;
}

/* Whether the first bytes are those of `mark`. */
static bool begins_with(struct Bytes s, const char *mark)
{
    return s.size >= strlen(mark) && !memcmp(s.data, mark, strlen(mark));
}

/* Dies on UTF-16. Without a byte order mark its first character, of ASCII, tells it: one of the two
 * bytes is 0. */
static void refuse_utf16(const char *path, struct Bytes b)
{
    const bool pair = b.size >= 2;
    const bool little = begins_with(b, "\xFF\xFE") || (pair && b.data[0] && !b.data[1]);
    if (little || begins_with(b, "\xFE\xFF") || (pair && !b.data[0] && b.data[1]))
        die("%s: the text is UTF-16. Convert it: iconv -f UTF-16%s -t UTF-8 '%s' >NEW", path,
            little ? "LE" : "BE", path);
}

/* What separates the columns: a tab, a semicolon, a bar or a comma that the first record holds
 * outside of quotes. Of several, those are left that the next records hold, too: a row may have
 * commas in its text. Of several that are left, the first. '\n': one column, no separator. */
static char find_separator(const char *at, const char *end)
{
    static const char candidates[] = "\t;|,";
    int left = 0, held = 0;                     /* sets: bit i stands for candidates[i] */
    bool quoted = false;
    char before = '\n';
    for (int record = 0; record < 10 && at <= end; before = *at++) {
        const char c = at < end ? *at : '\n';
        const char *found = c ? strchr(candidates, c) : NULL;
        if (c == '"' && (quoted || strchr("\n\"\t;|,", before))) quoted = !quoted;
        else if (found && !quoted) held |= 1 << (found - candidates);
        if (at < end && (c != '\n' || quoted)) continue;
        left = record == 0 ? held : left & held ? left & held : left;
        held = 0;
        record++;
    }
    for (int i = 0; candidates[i]; i++) if (left >> i & 1) return candidates[i];
    return '\n';
}

/* Sets the format: an object, or an array of objects, means JSON, __label__ fastText's format,
 * anything else rows. Dies on bytes that must be converted first. */
static void detect_format(struct Table *t)
{
    refuse_utf16(t->path, (struct Bytes){t->at, t->end - t->at});
    if (begins_with((struct Bytes){t->at, t->end - t->at}, "\xEF\xBB\xBF")) t->at += 3;
    if (!skip_blank_lines(t))
        die("%s: the file is empty. It needs a header line and labelled texts.", t->path);
    const struct Bytes left = {t->at, t->end - t->at};
    struct JsonReader r = {t->at, t->end, t->at, t->path, 0};
    t->array = json_peek(&r) == '[' && r.at++;
    const char *cr = memchr(left.data, '\r', left.size);
    if (json_peek(&r) == '{') {
        t->format = OBJECTS;
        advance(t, r.at);
    } else if (cr && cr + 1 < t->end && !memchr(left.data, '\n', left.size))
        die("%s: its lines end with CR alone, as on old Macs. Convert it: "
            "tr '\\r' '\\n' <'%s' >NEW", t->path, t->path);
    else if (begins_with(left, "__label__")) t->format = FASTTEXT;
    else t->separator = find_separator(t->at, t->end);
}

/* --- Fields --- */

/* The line at *at, without its end. Moves *at to the next line. */
static struct Bytes take_line(const char **at, const char *end)
{
    const char *line = *at, *stop = memchr(line, '\n', end - line);
    size_t n = (stop ? stop : end) - line;
    *at = line + n + (stop != NULL);
    if (n && line[n - 1] == '\r') n--;
    return (struct Bytes){line, n};
}

/* Where the search for the closing quote of the field at t->at ends. In TSV a quote may be mere
 * text, so a field goes on in the next line only if its own line has too few columns. */
static const char *quote_limit(const struct Table *t)
{
    if (t->strict) return t->end;
    const char *next = t->at;
    take_line(&next, t->end);
    int columns = t->fields + 1;
    for (const char *s = t->at; s < next; s++) columns += *s == t->separator && *s != '\n';
    return columns < max_int(t->columns, 2) ? t->end : next;
}

/* A field in quotes, which may hold separators, line ends and doubled quotes (RFC 4180). Its last
 * quote stands right before a separator or a line end. If there is none, CSV is wrong, while in TSV
 * the quote at t->at is text, as in: "Frailty" has been ... Returns false then. */
static bool read_quoted(struct Table *t, struct Bytes *field)
{
    const char *limit = quote_limit(t), *s = t->at + 1, *quote;
    struct Buffer b = {0};
    for (; (quote = memchr(s, '"', limit - s)); s = quote + 2) {
        const bool doubled = quote + 1 < t->end && quote[1] == '"';
        append_bytes(&b, s, quote - s + doubled);
        if (!doubled) break;
    }
    const char *rest = quote ? quote + 1 : t->end;
    if (rest < t->end && *rest == '\r' && (rest + 1 == t->end || rest[1] == '\n')) rest++;
    if (quote && (rest == t->end || *rest == t->separator || *rest == '\n')) {
        advance(t, rest);
        *field = (struct Bytes){b.data, b.size};
        return true;
    }
    free(b.data);
    if (!t->strict) return false;
    if (!quote) die("%s:%d: a quoted field does not end. Close it with \".", t->path, t->line);
    advance(t, quote);
    die("%s:%d: text follows a closing quote. Double the quotes inside a quoted field.", t->path,
        t->line);
}

/* The next field of the record. Returns whether another field follows. */
static bool read_field(struct Table *t, struct Bytes *field)
{
    const char *begin = t->at;
    if (t->at == t->end || *t->at != '"' || !read_quoted(t, field)) {
        while (t->at < t->end && *t->at != t->separator && *t->at != '\n') t->at++;
        size_t n = t->at - begin;
        if (n && begin[n - 1] == '\r' && (t->at == t->end || *t->at == '\n')) n--;
        *field = (struct Bytes){begin, n};
    }
    t->fields++;
    if (t->at == t->end) return false;
    if (*t->at++ != '\n') return true;
    t->line++;
    return false;
}

/* --- Header --- */

/* How well a name fits the column `which`: 0 is best, INT32_MAX not at all. The wanted name must be
 * equal. Where none is wanted, or only preferred, the rank among the usual names, "a|b|c", counts;
 * capitals and blanks around the name do not matter then. */
static int name_rank(const struct Table *t, int which, struct Bytes name)
{
    const char *wanted = t->wanted.names[which], *usual = usual_names[which];
    if (wanted && strlen(wanted) == name.size && begins_with(name, wanted)) return 0;
    if (wanted && !t->wanted.preferred[which]) return INT32_MAX;
    for (; name.size && *name.data == ' '; name.size--) name.data++;
    while (name.size && name.data[name.size - 1] == ' ') name.size--;
    for (int rank = 1; ; rank++) {
        const size_t n = strcspn(usual, "|");
        if (n == name.size && !strncasecmp(usual, name.data, n)) return rank;
        if (!usual[n]) return INT32_MAX;
        usual += n + 1;
    }
}

/* Appends a name to those that a message lists: at most 60 bytes of each, 500 in all, and control
 * characters as question marks. */
static void append_name(struct Buffer *names, struct Bytes name)
{
    if (names->size > 500) return;
    if (names->data) append(names, ", ");
    append_bytes(names, name.data, name.size < 60 ? name.size : 60);
    for (char *s = names->data; *s; s++) if ((unsigned char)*s < ' ') *s = '?';
}

/* names: the columns that there are. */
__attribute__((noreturn)) static void die_no_column(const struct Table *t, int line, int which,
                                                    const struct Buffer *names)
{
    const char *wanted = t->wanted.names[which];
    die("%s:%d: no column is named %s (there are: %s). --%s-column chooses one%s.", t->path, line,
        wanted ? wanted : usual_names[which], names->data ? names->data : "none",
        which == TEXTS ? "text" : "label", t->format == OBJECTS ? ""
        : " by its name in the first line, or by its number in a file without such a line");
}

/* Finds the two columns in the first row, or dies. A row that names neither, where numbers do, is
 * data. Where nothing does, and texts alone are wanted, each line is a text. */
static void read_header(struct Table *t)
{
    const struct Table start = *t;
    const bool csv = t->separator != '\t' && t->separator != '\n';
    struct Buffer names = {0};
    int lowest[2] = {INT32_MAX, INT32_MAX};
    t->column[TEXTS] = t->column[LABELS] = -1;
    t->strict = csv && !t->wanted.texts_only;
    for (bool more = true; more; ) {
        struct Bytes name;
        more = read_field(t, &name);
        for (int which = 0; which < 2; which++) {
            const int rank = name_rank(t, which, name);
            if (rank < lowest[which]) { lowest[which] = rank; t->column[which] = t->fields - 1; }
        }
        append_name(&names, name);
    }
    t->columns = t->fields;
    const bool header = t->column[TEXTS] >= 0 || t->column[LABELS] >= 0;
    for (int which = 0; which < 2; which++) {
        double x;
        const char *wanted = t->wanted.names[which];
        if (t->column[which] < 0 && wanted && parse_number(wanted, "", NULL, &x) && x >= 1
            && x <= t->columns && x == floor(x)) t->column[which] = (int)x - 1;
    }
    if (t->wanted.texts_only) t->column[LABELS] = -1;
    if (t->wanted.texts_only && t->column[TEXTS] < 0
        && (!t->wanted.names[TEXTS] || t->wanted.preferred[TEXTS])) t->format = LINES;
    else if (t->column[TEXTS] < 0) die_no_column(t, start.line, TEXTS, &names);
    else if (t->column[LABELS] < 0 && !t->wanted.texts_only)
        die_no_column(t, start.line, LABELS, &names);
    else if (t->column[TEXTS] == t->column[LABELS])
        die("%s: text and label are the same column. Name two.", t->path);
    if (!header || t->format == LINES) {
        progress(true, "%s: the first row (%s) is no header: %s", t->path, names.data,
                 t->format == LINES ? "each line is a text" : "it is data, columns are numbered");
        t->at = start.at;
        t->line = start.line;
    }
    t->strict = csv;
    free(names.data);
}

/* --- Rows and lines --- */

/* One record of a TSV or CSV file. Dies on another number of columns than the first one's. */
static void read_row(struct Table *t, struct Example *e)
{
    struct Bytes field;
    t->fields = 0;
    for (bool more = true; more; ) {
        more = read_field(t, &field);
        if (t->fields - 1 == t->column[TEXTS]) e->text = field;
        if (t->fields - 1 == t->column[LABELS]) e->label = field;
    }
    if (t->fields != t->columns)
        die("%s:%d: %d columns where the first line has %d. Put texts with %s or line ends in "
            "quotes.", t->path, e->line, t->fields, t->columns, t->separator == '\t' ? "tabs"
            : t->separator == ';' ? "semicolons" : t->separator == '|' ? "bars" : "commas");
}

/* One line as a text, or in fastText's format: __label__NAME, a blank, and the text. */
static void read_line(struct Table *t, struct Example *e)
{
    struct Bytes rest = e->text = take_line(&t->at, t->end);
    t->line++;
    if (t->format == LINES) return;
    if (!begins_with(rest, "__label__"))
        die("%s:%d: does not begin with __label__, as the first line does. Label the text.",
            t->path, e->line);
    size_t n = 9, gap;
    while (n < rest.size && rest.data[n] != ' ' && rest.data[n] != '\t') n++;
    for (gap = n; gap < rest.size && (rest.data[gap] == ' ' || rest.data[gap] == '\t'); ) gap++;
    e->label = (struct Bytes){rest.data + 9, n - 9};
    e->text = (struct Bytes){rest.data + gap, rest.size - gap};
    if (begins_with(e->text, "__label__"))
        die("%s:%d: the text has several labels. Keep one.", t->path, e->line);
}

/* --- JSON --- */

/* Moves to the next value of a JSON file. Returns false at the end of the file or of its array. */
static bool find_value(struct Table *t, bool first)
{
    struct JsonReader r = {t->at, t->end, t->at, t->path, 0};
    int c = json_peek(&r);
    if (t->array && !first) {
        if (c != ',' && c != ']')
            die("%s:%d: no comma and no ] follows an object of the array. Correct the file.",
                t->path, t->line);
        const bool last = *r.at++ == ']';
        if ((c = json_peek(&r)) != -1 && last)
            die("%s:%d: something follows the array. Remove it.", t->path, t->line);
    }
    advance(t, r.at);
    return c != -1;
}

/* The value as text: numbers and truth values may be labels, too. Integers stay as they are
 * written, since a double holds 15 digits. NULL for anything else. */
static char *json_as_text(const struct Json *j)
{
    if (j->kind == JSON_NUMBER && j->string[strspn(j->string, "-0123456789")])
        return text_of("%.15g", j->number);
    return j->string && j->kind != JSON_NULL ? text_of("%s", j->string) : NULL;
}

/* The member of a JSON object whose name fits best; dies if none does. */
static const struct Json *json_column(const struct Table *t, const struct Json *object, int which)
{
    const struct Json *best = NULL;
    int lowest = INT32_MAX;
    struct Buffer names = {0};
    for (const struct Json *j = object->child; j; j = j->next) {
        const int rank = name_rank(t, which, (struct Bytes){j->key, strlen(j->key)});
        if (rank < lowest) { lowest = rank; best = j; }
    }
    if (best) return best;
    for (const struct Json *j = object->child; j; j = j->next)
        append_name(&names, (struct Bytes){j->key, strlen(j->key)});
    die_no_column(t, t->line, which, &names);
}

/* Whether n bytes of JSON hold a NUL, as a byte or as \u0000: it would end a string early. */
static bool holds_nul(const char *s, size_t n)
{
    if (memchr(s, 0, n)) return true;
    for (size_t i = 0; i + 5 < n; i++)
        if (s[i] == '\\') {
            if (!memcmp(s + i + 1, "u0000", 5)) return true;
            i++;
        }
    return false;
}

/* One value of a JSON file: an object with a text and a label, on one line or on several. */
static void read_object(struct Table *t, struct Example *e)
{
    char *where = text_of("%s:%d", t->path, t->line);
    struct JsonReader r = {t->at, t->end, t->at, where, 0};
    struct Json *j = json_value(&r);
    if (holds_nul(t->at, r.at - t->at)) die("%s: holds a NUL character. Remove it.", where);
    if (j->kind != JSON_OBJECT)
        die("%s: not a JSON object. All must be like {\"text\": ..., \"label\": ...}.", where);
    const struct Json *text = json_column(t, j, TEXTS);
    if (text->kind != JSON_STRING)
        die("%s: \"%s\" is not a string. Texts must be.", where, text->key);
    e->text = (struct Bytes){text_of("%s", text->string), strlen(text->string)};
    if (!t->wanted.texts_only) {
        const struct Json *label = json_column(t, j, LABELS);
        e->label.data = json_as_text(label);
        if (!e->label.data)
            die("%s: \"%s\" is neither a string nor a number. Labels must be.", where, label->key);
        e->label.size = strlen(e->label.data);
    }
    advance(t, r.at);
    json_free(j);
    free(where);
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
static void check_label(const char *path, const struct Example *e)
{
    const struct Bytes l = e->label;
    if (l.size == 0) die("%s:%d: the label is empty. Give one or remove the line.", path, e->line);
    if (l.size > 200)
        die("%s:%d: the label has %zu bytes, more than 200. Is --label-column right?", path,
            e->line, l.size);
    for (size_t i = 0; i < l.size; i++)
        if ((unsigned char)l.data[i] < 0x20 || l.data[i] == 0x7F)
            die("%s:%d: the label holds a control character. Remove it.", path, e->line);
    if (!valid_utf8(l))
        die("%s:%d: the label is not valid UTF-8. " CONVERT, path, e->line, path);
}

/* All texts of a file, with their labels unless texts alone are wanted. */
static struct Examples read_examples(const char *path, struct Columns wanted)
{
    const struct Bytes file = map_file(path);
    struct Table t = {.path = path, .at = file.data, .end = file.data + file.size, .line = 1,
                      .wanted = wanted};
    struct Examples all = {path, NULL, 0};
    int capacity = 0, invalid = 0;
    detect_format(&t);
    if (t.format == ROWS) read_header(&t);
    for (int which = 0; which < 2 && t.format == FASTTEXT; which++)
        if (wanted.names[which] && !wanted.preferred[which])
            warn("--%s-column: has no effect on fastText's format, as of %s.",
                 which == TEXTS ? "text" : "label", path);
    while (t.format == OBJECTS ? find_value(&t, !all.count) : skip_blank_lines(&t)) {
        if (all.count == capacity)
            all.items = resize(all.items, (capacity = 2 * capacity + 64) * sizeof *all.items);
        struct Example *e = &all.items[all.count++];
        *e = (struct Example){.line = t.line};
        if (t.format == OBJECTS) read_object(&t, e);
        else if (t.format == ROWS) read_row(&t, e);
        else read_line(&t, e);
        if (!wanted.texts_only) check_label(path, e);
        invalid += !valid_utf8(e->text);
    }
    if (!all.count) die("%s: has a header but no examples. Add labelled texts.", path);
    if (invalid)
        warn("%s: %d of %d texts are not valid UTF-8. " CONVERT, path, invalid, all.count, path);
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
    qsort(sorted, classes, sizeof *sorted, compare_numbered);
    return sorted;
}

/* The class of an example; dies on a label that is none of the names. */
static int class_of(const char *path, const struct Example *e, const struct Numbered *sorted,
                    char *const *names, int classes)
{
    const struct Numbered label = {e->label, 0};
    const struct Numbered *found = bsearch(&label, sorted, classes, sizeof label, compare_texts);
    if (found) return found->number;
    die("%s:%d: label \"%.*s\" is not known; the model's labels are: %s.", path, e->line,
        (int)e->label.size, e->label.data, joined(names, classes));
}

/* Appends the texts of e as tokens, with the classes of their labels. */
static void add_examples(struct Dataset *d, struct Tokenizer *tokenizer, const struct Examples *e,
                         char *const *names, int classes, struct Window w)
{
    struct Numbered *sorted = sorted_names(names, classes);
    for (int i = 0; i < e->count; i++) {
        const int label = class_of(e->path, &e->items[i], sorted, names, classes);
        add_text(d, tokenizer, e->items[i].text, label, w);
    }
    free(sorted);
}

/* ============================================================================================= */
/* 7. Before and after the training                                                              */
/* ============================================================================================= */

/* Reads --tune into s->kind and s->last. */
static void parse_tune(struct Settings *s)
{
    char rest;
    s->kind = PROBE;
    if (!strcmp(s->tune, "full")) s->kind = FULL;
    else if (!strcmp(s->tune, "scratch")) s->kind = SCRATCH;
    else if (sscanf(s->tune, "last:%6d%c", &s->last, &rest) == 1 && s->last >= 1) s->kind = LAST;
    else if (strcmp(s->tune, "probe"))
        die_usage("--tune %s: not one of probe, last:K (as last:2), full, scratch.", s->tune);
}

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

/* Of equal texts in train the first one stays, and none that is in val, too. */
static void drop_repeats(struct Examples *train, const struct Examples *val)
{
    const int all = train->count;
    int *first = find_repeats(train, val, NULL), kept = 0;
    for (int i = 0; i < val->count; i++) first[first[all + i]] = -1;
    for (int i = 0; i < all; i++) if (first[i] == i) train->items[kept++] = train->items[i];
    train->count = kept;
    progress(true, "--dedupe: %d of %d texts of %s were repeated or in validation; %d are left",
             all - kept, all, train->path, kept);
    if (!kept) die("%s: every text is in validation, too. Give other texts.", train->path);
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

/* Reads and tokenizes the labelled texts and splits them into training and validation, unless --val
 * names a file of its own. Returns the names of the classes. */
static char **load_data(struct Task *t, struct Window w, int *classes)
{
    struct Settings *s = &t->set;
    struct Examples train = read_examples(s->train, s->columns), val = {0};
    if (s->val && same_file(s->train, s->val))
        warn("--val %s: is the same file as --train, so its scores tell nothing about new texts. "
             "Name another, or none.", s->val);
    if (s->val) val = read_examples(s->val, s->columns);
    if (s->dedupe) drop_repeats(&train, &val);
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
    t->val = t->train + t->train_count;
    t->val_count = all - t->train_count;
    if (!t->val_count)
        die("%s: no class has two examples, so none can be set aside. Give --val.", s->train);
    t->truth = resize(NULL, t->val_count * sizeof *t->truth);
    for (int i = 0; i < t->val_count; i++) t->truth[i] = t->data.labels[t->val[i]];
    report_repeats(t, &train, &val);
    free(train.items);
    free(val.items);
    return names;
}

/* The maximum number of rows of a batch: the longest text must fit. */
static int rows_needed(const struct Task *t) { return max_int(BATCH_ROWS, t->data.longest); }

/* Prints what is about to be trained, and how much memory it takes. */
static void announce(const struct Task *t, size_t learn, size_t bytes)
{
    const struct Settings *s = &t->set;
    const struct Config *c = &t->model.config;
    const int updates = ceil_div(t->train_count, s->batch);
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
                 c->layers, t->runner.cache.x ? "once: what they give is kept"
                                              : "for every update: memory is short");
    progress(true, "%d updates, %d to an epoch  batch %d  lr %.3g, head x%g  warmup %g  "
             "dropout %g  weight decay %g", s->steps, updates, s->batch, s->lr, s->head_lr_ratio,
             s->warmup, s->dropout, s->weight_decay);
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
    t->class_weights = weigh_classes(t);
    t->probabilities = allocate_zeroed((size_t)t->val_count * c->labels * sizeof(real));
    t->confusion = allocate_zeroed((size_t)c->labels * c->labels * sizeof(int));
    t->runner.frozen = s->kind == LAST ? t->model.first_layer : 0;
    if (t->runner.frozen)
        fill_cache(&t->runner, &t->data, t->train, t->train_count + t->val_count);
    bytes += t->runner.ws.bytes + t->data.token_capacity * sizeof(int)
           + (t->runner.cache.x ? t->runner.cache.rows * c->channels * sizeof(real) : 0);
    if (probe)
        bytes += t->data.count * (c->channels * sizeof(real)
                                  + (3 * c->labels + 1) * sizeof(double));
    if (!t->quiet) announce(t, learn, bytes);
    return probe ? NULL : allocate_zeroed(t->model.parameter_count * sizeof(real));
}

/* The metadata of the classifier: what it was made from, how, and how well it does. */
static void describe(struct Metadata *meta, const struct Task *t, struct Scores val)
{
    const struct Settings *s = &t->set;
    struct Buffer labels = {0};
    for (int k = 0; k < t->model.config.labels; k++) {
        append(&labels, k ? ", " : "[");
        append_json_string(&labels, t->model.config.label_names[k]);
    }
    append(&labels, "]");
    metadata_set(meta, "tokenizer_hash", "%016llx", (unsigned long long)t->tokenizer->hash);
    metadata_set(meta, "labels", "%s", labels.data);
    metadata_set(meta, "model", "%s", s->model);
    metadata_set(meta, "train", "%s", s->train);
    metadata_set(meta, "val", "%s", s->val ? s->val : "set aside from train");
    metadata_set(meta, "tune", "%s", s->tune);
    metadata_set(meta, "seed", "%lld", (long long)s->seed);
    metadata_set(meta, "max_tokens", "%d", s->max_tokens);
    metadata_set(meta, "truncate", "%s", s->truncate);
    for (int i = 0; i < 2; i++)
        if (s->columns.names[i])
            metadata_set(meta, i ? "label_column" : "text_column", "%s", s->columns.names[i]);
    if (s->kind != PROBE) {
        metadata_set(meta, "epochs", "%d", s->epochs);
        metadata_set(meta, "steps", "%d", s->steps);
        metadata_set(meta, "batch", "%d", s->batch);
        metadata_set(meta, "lr", "%g", s->lr);
        metadata_set(meta, "head_lr_ratio", "%g", s->head_lr_ratio);
        metadata_set(meta, "dropout", "%g", s->dropout);
        metadata_set(meta, "weight_decay", "%g", s->weight_decay);
        metadata_set(meta, "warmup", "%g", s->warmup);
        metadata_set(meta, "layer_decay", "%g", s->layer_decay);
        metadata_set(meta, "l2sp", "%g", s->l2sp);
        metadata_set(meta, "lm_coef", "%g", s->lm_coef);
        metadata_set(meta, "average", "%g", s->average);
        metadata_set(meta, "patience", "%d", s->patience);
    }
    metadata_set(meta, "class_weights", "%s", s->class_weights);
    metadata_set(meta, "train_examples", "%d", t->train_count);
    metadata_set(meta, "val_examples", "%d", t->val_count);
    metadata_set(meta, "val_accuracy", "%.6f", val.accuracy);
    metadata_set(meta, "val_macro_f1", "%.6f", val.macro_f1);
    metadata_set(meta, "val_loss", "%.6f", val.loss);
    metadata_set(meta, "val_ece", "%.6f", val.ece);
    free(labels.data);
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
    printf("reloaded %s: the predictions on all %d validation texts are the same to the bit\n",
           t->set.out, t->val_count);
    model_free(&again);
    free(before);
}

/* ============================================================================================= */
/* 8. Commands: train, eval, predict                                                             */
/* ============================================================================================= */

/* A table with the names of the classes, as wide as the longest name. */
static void print_confusion(const int *confusion, char *const *names, int K)
{
    int width = 6;
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

/* Refuses to replace an earlier run without --overwrite, and the pretrained model always. */
static void check_out(const struct Settings *s)
{
    if (same_file(s->model, s->out))
        die_usage("--out %s: is the pretrained model. Name another directory.", s->out);
    if (!s->overwrite) refuse_run_in(s->out, "Give --overwrite or another --out.");
}

/* Everything that `train` does, from the pretrained model to the classifier in --out. */
static void train(struct Settings settings)
{
    struct Task t = {.set = settings};
    struct Settings *s = &t.set;
    struct Model base;
    struct Metadata base_meta, meta = {0};
    int classes;
    load_model(&base, s->model, &base_meta);
    t.tokenizer = tokenizer_of_model(s->model, &base, &base_meta);
    if (s->max_tokens == 0) s->max_tokens = base.config.context;
    if (s->max_tokens > base.config.context)
        die_usage("--max-tokens %d: the model's context is %d. Choose no more.", s->max_tokens,
                  base.config.context);
    if (s->kind == LAST && s->last > base.config.layers)
        die_usage("--tune last:%d: the model has %d blocks. Choose no more.", s->last,
                  base.config.layers);
    char **names = load_data(&t, (struct Window){s->max_tokens, s->truncate}, &classes);
    start_model(&t, &base, names, classes);
    t.source = base.weights;
    choose_defaults(s, &t.model, t.train_count);
    t.order = random_stream(s->seed, STREAM_ORDER);
    t.masks = random_stream(s->seed, STREAM_MASKS);
    make_directory(s->out);
    real *best = prepare(&t);
    if (s->kind == PROBE) train_probe(&t, &meta); else train_steps(&t, best, &meta);
    if (s->calibrate) calibrate(&t, &meta);

    const struct Scores val = validate(&t);
    const double majority = majority_rate(t.confusion, t.val_count, classes);
    if (val.accuracy <= majority)
        warn("validation accuracy %.4f is no better than always the commonest label (%.4f): "
             "nothing was learnt. Try %s or more labels.", val.accuracy, majority,
             s->kind == PROBE ? "another --tune" : "another --lr, more --epochs");
    describe(&meta, &t, val);
    char *state = text_of("%s/state.safetensors", s->out);
    unlink(state);      /* of an overwritten run of train_gpt, which --resume would use */
    free(state);
    t.tokenizer->max_length = s->max_tokens;
    t.tokenizer->keeps_tail = strcmp(s->truncate, "head") != 0;
    if (!strcmp(s->truncate, "both") && t.data.truncated)
        warn("--truncate both: Hugging Face's tokenizers cannot do this; there, only the tail of "
             "longer texts is read.");
    tokenizer_save(t.tokenizer, s->out);
    save_model(s->out, &t.model, &meta, t.tokenizer->eot);
    printf("val_accuracy %.6f\nval_macro_f1 %.6f\nval_loss %.6f\nval_ece %.6f\nmajority %.6f\n",
           val.accuracy, val.macro_f1, val.loss, val.ece, majority);
    check_reloaded(&t);
    runner_free(&t.runner);
    model_free(&t.model);
    model_free(&base);
}

/* The same words in every command. */
static const char data_meaning[] = "labelled texts: TSV, CSV, JSON or fastText's format",
    text_column_meaning[] = "name or number; else text, sentence, review, tweet ...",
    label_column_meaning[] = "name or number; else label, sentiment, class, category ...";

/* Warns of options that were given and change nothing. */
static void warn_of_idle_options(const struct Option *options, int n, const struct Settings *s)
{
    static const char *const steps[] = {"lr", "epochs", "steps", "patience", "batch",
                                        "head-lr-ratio", "layer-decay", "warmup", "weight-decay",
                                        "dropout", "l2sp", "lm-coef", "average"};
    for (const struct Option *o = options; o < options + n; o++) {
        bool step = false;
        for (int k = 0; k < COUNT(steps); k++) step = step || !strcmp(o->name, steps[k]);
        if (o->given && (step ? s->kind == PROBE : s->val && !strcmp(o->name, "val-part")))
            warn("--%s: has no effect with --%s.", o->name, step ? "tune probe" : "val");
        if (o->given && s->kind == SCRATCH && !strcmp(o->name, "l2sp"))
            warn("--l2sp: with --tune scratch it pulls random weights to the pretrained ones.");
    }
}

/* The options of `train`, checked before anything is read. */
static int command_train(int argc, char **argv)
{
    struct Settings s = {.tune = "full", .truncate = "tail", .batch = 32, .seed = 1, .dropout = -1,
                         .weight_decay = 0.01, .warmup = 0.1, .val_part = 0.1,
                         .layer_decay = 1, .class_weights = "none"};
    struct Option options[] = {
        {"model", "directory of the pretrained model", TEXT, &s.model, .required = true},
        {"train", data_meaning, TEXT, &s.train, .required = true},
        {"val", "labelled texts for validation; without: a part of --train", TEXT, &s.val},
        {"val-part", "how much of each class is set aside when --val is not given", REAL_NUMBER,
         &s.val_part, 0.001, 0.9},
        {"out", "directory of the classifier", TEXT, &s.out, .required = true},
        {"tune", "probe, last:K, full or scratch", TEXT, &s.tune},
        {"epochs", "0: 3, but at least 200 updates", INTEGER, &s.epochs, 0, 1e6},
        {"steps", "updates, instead of --epochs", INTEGER, &s.steps, 0, INT32_MAX - 1},
        {"patience", "stop when validation was so many times no better; 0: never", INTEGER,
         &s.patience, 0, 1e6},
        {"batch", "texts of an update", INTEGER, &s.batch, 1, 1e6},
        {"lr", "0: 3e-4 for 10M parameters (scratch 1e-3), less for more", REAL_NUMBER, &s.lr, 0,
         10},
        {"head-lr-ratio", "the head learns so many times faster; 0: 10, scratch 1", REAL_NUMBER,
         &s.head_lr_ratio, 0, 1e4},
        {"layer-decay", "a block learns so many times as fast as the one above", REAL_NUMBER,
         &s.layer_decay, 0.01, 1},
        {"l2sp", "how strongly weights are pulled back to the pretrained ones", REAL_NUMBER,
         &s.l2sp, 0, 1e30},
        {"lm-coef", "adds the language model's loss on the texts, so many times", REAL_NUMBER,
         &s.lm_coef, 0, 100},
        {"average", "end with the mean weights of this last part of the updates", REAL_NUMBER,
         &s.average, 0, 1},
        {"class-weights", "auto: rare classes count as much as common ones", CHOICE,
         &s.class_weights, .choices = "none|auto"},
        {"calibrate", "fit a temperature on validation, so that probabilities mean what they say",
         FLAG, &s.calibrate},
        {"warmup", "part of the updates in which the rate rises; then a cosine, 0 after the last",
         REAL_NUMBER, &s.warmup, 0, 1},
        {"weight-decay", "of matrices", REAL_NUMBER, &s.weight_decay, 0, 10},
        {"dropout", "-1: 0.1 for full and scratch, else 0", REAL_NUMBER, &s.dropout, -1, 0.9},
        {"max-tokens", "longer texts are truncated; 0: the model's context", INTEGER, &s.max_tokens,
         0, 1 << 20},
        {"truncate", "which part of a long text is read", CHOICE, &s.truncate,
         .choices = "head|tail|both"},
        {"text-column", text_column_meaning, TEXT, &s.columns.names[TEXTS]},
        {"label-column", label_column_meaning, TEXT, &s.columns.names[LABELS]},
        {"dedupe", "drop texts of --train that are repeated or in --val", FLAG, &s.dedupe},
        {"seed", "of the head, the order, dropout and the split", LONG, &s.seed, 0, 9e15},
        {"threads", "0: all", INTEGER, &s.threads, 0, 1024},
        {"overwrite", "replace what --out holds", FLAG, &s.overwrite},
    };
    const char *usage =
        "finetune_cls train --model DIR --train FILE --out DIR [--tune probe|last:K|full|scratch]\n"
        "Makes a classifier of a pretrained model. --tune: probe fits a new last layer on frozen\n"
        "features, in one pass; last:K trains the last K blocks as well; full everything;\n"
        "scratch everything from random weights. Few labels need updates rather than epochs:\n"
        "by default there are 3 epochs or 200 updates, whichever is more. The best epoch on\n"
        "validation is kept; at most 20 are looked at.";
    refuse_arguments(parse_options(argc, argv, options, COUNT(options), usage), argv);
    if (s.dropout < 0 && s.dropout != -1)
        die_usage("--dropout %g: out of range, 0 to 0.9.", s.dropout);
    if (s.epochs && s.steps)
        die_usage("--steps %d: --epochs %d says otherwise how long to train. Give one of them.",
                  s.steps, s.epochs);
    parse_tune(&s);
    warn_of_idle_options(options, COUNT(options), &s);
    set_threads(s.threads);
    check_out(&s);
    train(s);
    return 0;
}

/* A classifier from its directory, with the part of a text that it reads. */
struct Classifier {
    struct Model model;
    struct Tokenizer *tokenizer;
    struct Window window;
    bool all, json;                 /* how predict prints */
    struct Columns columns;         /* as the command line, else the training, chose them */
    struct Runner runner;
};

/* Dies if the directory holds no classifier. Columns that are set already stay so. */
static void load_classifier(struct Classifier *c, const char *dir)
{
    struct Metadata meta;
    load_model(&c->model, dir, &meta);
    if (!c->model.config.labels)
        die("%s: holds a language model, not a classifier. finetune_cls train makes one.", dir);
    c->tokenizer = tokenizer_of_model(dir, &c->model, &meta);
    const char *max = metadata_get(&meta, "max_tokens");
    const char *truncate = metadata_get(&meta, "truncate");
    const int context = c->model.config.context, longest = c->tokenizer->max_length;
    c->window = (struct Window){max ? (int)strtol(max, NULL, 10)
                                    : longest && longest < context ? longest : context,
                                truncate ? truncate : c->tokenizer->keeps_tail ? "tail" : "head"};
    if (c->window.max < 1 || c->window.max > c->model.config.context)
        die("%s/model.safetensors: max_tokens is %s, the context %d. Train it again.", dir, max,
            c->model.config.context);
    for (int i = 0; i < 2; i++)
        if (!c->columns.names[i]) {
            c->columns.names[i] = metadata_get(&meta, i ? "label_column" : "text_column");
            c->columns.preferred[i] = true;
        }
    runner_create(&c->runner, &c->model, max_int(BATCH_ROWS, c->window.max), WORK_EVAL);
}

/* Scores on a labelled file, one `name value` a line, then the confusion matrix. */
static int command_eval(int argc, char **argv)
{
    const char *dir = NULL, *data = NULL;
    int threads = 0;
    struct Classifier c = {0};
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &dir, .required = true},
        {"data", data_meaning, TEXT, &data, .required = true},
        {"text-column", text_column_meaning, TEXT, &c.columns.names[TEXTS]},
        {"label-column", label_column_meaning, TEXT, &c.columns.names[LABELS]},
        {"threads", "0: all", INTEGER, &threads, 0, 1024},
    };
    if (parse_options(argc, argv, options, COUNT(options),
                      "finetune_cls eval --model DIR --data FILE\n"
                      "Prints accuracy, macro F1, loss, calibration error and confusion matrix."))
        die_usage("%s: not an option. --help lists them.", argv[0]);
    set_threads(threads);
    struct Dataset d = {0};
    load_classifier(&c, dir);
    const int K = c.model.config.labels;
    const struct Examples e = read_examples(data, c.columns);
    add_examples(&d, c.tokenizer, &e, c.model.config.label_names, K, c.window);
    int *confusion = resize(NULL, (size_t)K * K * sizeof *confusion);
    real *p = resize(NULL, (size_t)d.count * K * sizeof *p);
    const double start = seconds();
    const double loss = run_examples(&c.runner, p, NULL, &d, NULL, d.count, "eval");
    show_rate("eval", d.count, d.count, start);
    const struct Scores s = score(confusion, p, d.labels, loss, d.count, K);
    printf("accuracy %.6f\nmacro_f1 %.6f\nloss %.6f\nece %.6f\nexamples %d\n", s.accuracy,
           s.macro_f1, s.loss, s.ece, d.count);
    print_confusion(confusion, c.model.config.label_names, K);
    return 0;
}

/* Appends one line: label, probability, and the text with its line ends as spaces, separated by
 * tabs; or a JSON object. With --all also the probability of each class. */
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
    append_bytes(b, text.data, text.size);
    for (char *s = b->data + b->size - text.size; s < b->data + b->size; s++)
        if (*s == '\n') *s = ' ';
    append(b, "\n");
}

/* Predicts the texts and prints a line for each. */
static void predict_texts(struct Classifier *c, struct Dataset *d, const struct Bytes *texts,
                          int count)
{
    const int K = c->model.config.labels;
    real *p = resize(NULL, (size_t)count * K * sizeof *p);
    struct Buffer b = {0};
    d->count = 0;
    for (int i = 0; i < count; i++) add_text(d, c->tokenizer, texts[i], -1, c->window);
    run_examples(&c->runner, p, NULL, d, NULL, count, NULL);
    for (int i = 0; i < count; i++) append_answer(&b, c, texts[i], p + (size_t)i * K);
    if (fwrite(b.data, 1, b.size, stdout) != b.size || fflush(stdout))
        die("standard output: writing failed (%s).", strerror(errno));
    free(b.data);
    free(p);
}

/* Predicts the complete lines in text[0 .. n), and if `last` also a line without an end. Returns
 * the number of bytes that were read. */
static size_t predict_lines(struct Classifier *c, struct Dataset *d, const char *text, size_t n,
                            bool last)
{
    struct Bytes *lines = NULL;
    int count = 0, capacity = 0;
    size_t used = 0;
    while (used < n) {
        const char *next = text + used;
        const struct Bytes line = take_line(&next, text + n);
        if (next[-1] != '\n' && !last) break;
        used = next - text;
        if (count == capacity)
            lines = resize(lines, (capacity = 2 * capacity + 64) * sizeof *lines);
        lines[count++] = line;
    }
    if (count) predict_texts(c, d, lines, count);
    free(lines);
    return used;
}

/* Predicts the lines of standard input as they arrive. One read returns the lines that are ready,
 * one from a terminal or thousands from a file, and they make the batches. */
static void predict_stream(struct Classifier *c, struct Dataset *d)
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
        const size_t used = predict_lines(c, d, b.data, b.size, false);
        memmove(b.data, b.data + used, b.size -= used);
    }
    predict_lines(c, d, b.data, b.size, true);
    free(b.data);
    free(block);
}

/* Predicts the texts of a file. */
static void predict_file(struct Classifier *c, struct Dataset *d, const char *path)
{
    enum { BLOCK = 4096 };
    struct Bytes texts[BLOCK];
    c->columns.texts_only = true;
    const struct Examples e = read_examples(path, c->columns);
    for (int done = 0, n; done < e.count; done += n) {
        n = min_int(BLOCK, e.count - done);
        for (int i = 0; i < n; i++) texts[i] = e.items[done + i].text;
        predict_texts(c, d, texts, n);
    }
}

/* TEXTs of the command line, the texts of a file, or else the lines of standard input. */
static int command_predict(int argc, char **argv)
{
    const char *dir = NULL, *data = NULL;
    int threads = 0;
    struct Classifier c = {0};
    struct Dataset d = {0};
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &dir, .required = true},
        {"data", "texts: TSV, CSV, JSON or fastText's format, else one a line", TEXT, &data},
        {"text-column", text_column_meaning, TEXT, &c.columns.names[TEXTS]},
        {"all", "the probability of every class", FLAG, &c.all},
        {"json", "one JSON object a line", FLAG, &c.json},
        {"threads", "0: all", INTEGER, &threads, 0, 1024},
    };
    const char *usage = "finetune_cls predict --model DIR [TEXT... | --data FILE]\n"
                        "Prints label, probability and text, separated by tabs, for each TEXT,\n"
                        "each text of FILE or, without any, each line of standard input.";
    const int count = parse_options(argc, argv, options, COUNT(options), usage);
    if (count && data) die_usage("--data %s: there are TEXTs, too. Give one or the other.", data);
    if (c.columns.names[TEXTS] && !data)
        warn("--text-column: has no effect without --data. Leave it out.");
    set_threads(threads);
    load_classifier(&c, dir);
    if (data) predict_file(&c, &d, data);
    else if (!count) predict_stream(&c, &d);
    struct Bytes *texts = resize(NULL, (count + 1) * sizeof *texts);
    struct stat status;
    for (int i = 0; i < count; i++) {
        texts[i] = (struct Bytes){argv[i], strlen(argv[i])};
        if (!stat(argv[i], &status) && S_ISREG(status.st_mode))
            warn("%s: is taken as a text, but is a file, too. --data %s reads it.", argv[i],
                 argv[i]);
    }
    if (count) predict_texts(&c, &d, texts, count);
    free(texts);
    return 0;
}

#ifndef FINETUNE_NO_MAIN
int main(int argc, char **argv)
{
    static const struct Command commands[] = {
        {"train", command_train, "make a classifier from a pretrained model and labelled texts"},
        {"eval", command_eval, "accuracy, F1, loss, calibration, confusion matrix on a file"},
        {"predict", command_predict, "the label of texts, from arguments or standard input"},
    };
    return run_command("finetune_cls", argc, argv, commands, COUNT(commands));
}
#endif
