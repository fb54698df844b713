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

/* A model and the memory to run it on batches of examples. */
struct Runner {
    struct Model *model;
    struct Workspace ws;
    struct Minibatch minibatch;     /* its targets are the labels of the texts */
    double shown;                   /* when the last line of progress was shown */
};

static void runner_create(struct Runner *r, struct Model *model, int max_rows, int kind)
{
    r->model = model;
    workspace_create(&r->ws, model, max_rows, kind);
    r->minibatch = minibatch_create(max_rows);
    r->shown = seconds();
}

static void runner_free(struct Runner *r)
{
    workspace_free(&r->ws);
    minibatch_free(&r->minibatch);
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
        const real *hidden = trunk_forward(r->model, &r->ws, &b, 0, 0);
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

/* The options of the command line. choose_defaults replaces 0 or -1 where a default depends on
 * --tune, on the model and on the data. */
struct Settings {
    const char *model, *train, *val, *out, *tune, *truncate, *text_column, *label_column;
    int epochs, batch, max_tokens, threads;
    int64_t seed;
    double lr, head_lr_ratio, dropout, weight_decay, warmup, val_part;
    bool overwrite;
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
    struct Random order, masks;                 /* of the training examples; of dropout */
    struct Buffer log;                          /* log.tsv */
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
    if (s->epochs == 0)
        s->epochs = max_int(MIN_EPOCHS, ceil_div(MIN_UPDATES, ceil_div(examples, s->batch)));
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
                                     t->val_count, "validation");
    return score(t->confusion, t->probabilities, t->truth, loss, t->val_count, K);
}

/* log.tsv is replaced as a whole, so that it can be read at any time. */
static void write_log(const struct Task *t)
{
    char *path = text_of("%s/log.tsv", t->set.out);
    write_file(path, t->log.data, t->log.size);
    free(path);
}

/* Which weights learn, and how fast: last:K freezes the embeddings and all blocks but the last K;
 * the new head learns head_lr_ratio times as fast as pretrained weights. */
static void choose_weights(struct Task *t)
{
    const struct Settings *s = &t->set;
    struct Model *model = &t->model;
    model_train_from(model, s->kind == LAST ? model->config.layers - s->last : 0);
    model->beta2 = 0.999;
    for (int i = 0; i < model->tensor_count; i++) {
        struct Tensor *p = &model->tensors[i];
        if (s->kind == LAST && p->layer < 0) p->lr_scale = 0;   /* also with K = L */
        if (!strcmp(p->name, "score.weight")) p->lr_scale = (float)s->head_lr_ratio;
    }
}

/* One update: the gradient of the mean loss over the examples list[0 .. count), in as many batches
 * as memory demands, clipped to norm 1, then AdamW. Returns the mean loss. Dies, before the update,
 * if the gradient is not finite. */
static double train_step(struct Task *t, double *norm, const int *list, int count, double lr,
                         int64_t step)
{
    struct Runner *r = &t->runner;
    const struct Settings *s = &t->set;
    double loss = 0;
    for (int done = 0; done < count; ) {
        const struct Batch b = gather(r, &t->data, list + done, count - done);
        trunk_forward(r->model, &r->ws, &b, s->dropout, random_bits(&t->masks));
        loss += class_head(r->model, &r->ws, &b, r->minibatch.targets, NULL, (real)1 / count,
                           NULL);
        trunk_backward(r->model, &r->ws, &b);
        done += b.sequences;
    }
    *norm = grad_norm(r->model);
    if (!isfinite(*norm))
        die("step %lld: the gradient is not finite. Lower --lr (%g).", (long long)step, s->lr);
    adamw_step(r->model, lr, *norm > 1 ? 1 / *norm : 1, s->weight_decay, step);
    return loss / count;
}

/* One epoch: all training examples in random order, s->batch of them an update. The rate falls so
 * that it would be 0 one update after the last: every update counts. Returns the mean loss. */
static double train_epoch(struct Task *t, int epoch, int64_t steps, double *norm, double start)
{
    const struct Settings *s = &t->set;
    const int updates = ceil_div(t->train_count, s->batch);
    const int64_t warmup = (int64_t)(s->warmup * steps);
    double sum = 0;
    shuffle(t->train, t->train_count, &t->order);
    for (int u = 0; u < updates; u++) {
        const int64_t step = (int64_t)(epoch - 1) * updates + u + 1;
        const int first = u * s->batch, count = min_int(s->batch, t->train_count - first);
        const double lr = learning_rate("cosine", step, steps + 1, warmup, s->lr, 0);
        const double loss = train_step(t, norm, t->train + first, count, lr, step);
        sum += loss * count;
        if (!line_is_due(&t->runner.shown)) continue;
        progress(false, "epoch %d/%d  step %lld/%lld  loss %.4f  lr %.1e  norm %.2f  %s left",
                 epoch, s->epochs, (long long)step, (long long)steps, loss, lr, *norm,
                 duration((seconds() - start) * (steps - step) / step));
    }
    return sum / t->train_count;
}

/* The whole fine-tuning: train an epoch, validate, keep the best weights. The model ends with the
 * weights of the epoch that was most accurate on validation, of equally accurate epochs the one
 * with the lowest loss. Of many short epochs only MAX_VALIDATIONS are validated. */
static void train_epochs(struct Task *t, real *best, struct Metadata *meta)
{
    const struct Settings *s = &t->set;
    const int every = ceil_div(s->epochs, MAX_VALIDATIONS);
    const int64_t steps = (int64_t)s->epochs * ceil_div(t->train_count, s->batch);
    const size_t bytes = t->model.parameter_count * sizeof(real);
    double start = seconds(), norm = 0, sum = 0;
    struct Scores top = {-1, 0, INFINITY, 0};
    append(&t->log, "epoch\tstep\ttrain_loss\tval_loss\tval_accuracy\tnorm\tseconds\n");
    for (int epoch = 1, since = 0; epoch <= s->epochs; epoch++) {
        /* Train: every example once, in random order. */
        sum += train_epoch(t, epoch, steps, &norm, start);
        since++;
        if (epoch % every && epoch < s->epochs) continue;

        /* Validate, without dropout and on examples that no gradient has seen. */
        const struct Scores now = validate(t);
        const bool better = now.accuracy > top.accuracy
                         || (now.accuracy == top.accuracy && now.loss < top.loss);

        /* Log. train_loss is the mean since the last validation. */
        const double spent = seconds() - start;
        append(&t->log, "%d\t%lld\t%.6f\t%.6f\t%.6f\t%.4f\t%.2f\n", epoch,
               (long long)steps / s->epochs * epoch, sum / since, now.loss, now.accuracy, norm,
               spent);
        write_log(t);
        progress(true, "epoch %d/%d  train loss %.4f  val loss %.4f  val accuracy %.4f  %.1f s%s",
                 epoch, s->epochs, sum / since, now.loss, now.accuracy, spent,
                 better ? "  best" : "");

        /* Keep the best weights. Later epochs may fit the training examples too closely. */
        if (better) {
            top = now;
            memcpy(best, t->model.weights, bytes);
            metadata_set(meta, "best_epoch", "%d", epoch);
        }
        sum = since = 0;
    }
    memcpy(t->model.weights, best, bytes);
}

/* ============================================================================================= */
/* 5. The probe                                                                                  */
/* ============================================================================================= */

/* Multinomial logistic regression with an L2 penalty, on features x that are computed once:
 *
 *   F(w) = 1/N sum_n -log p_n[label_n] + l2/2 |w|^2      p_n = softmax(z_n)      z_n = w x_n
 *   dF/dw = 1/N sum_n (p_n - onehot(label_n)) x_n^T + l2 w
 *
 * F is strictly convex, so there is one solution, whatever the order or the seed. */
struct Logistic {
    int N, C, K;
    real *x;                    /* (N, C) */
    int *labels;                /* (N) */
    double l2;
    double *z, *p, *losses;     /* (N, K) (N, K) (N): all at the same w */
};

/* Allocates all arrays. The caller sets x, labels and l2. */
static struct Logistic logistic_create(int N, int C, int K)
{
    const size_t scores = (size_t)N * K;
    double *z = resize(NULL, (2 * scores + N) * sizeof *z);
    return (struct Logistic){N, C, K, allocate_zeroed((size_t)N * C * sizeof(real)),
                             resize(NULL, N * sizeof(int)), 0, z, z + scores, z + 2 * scores};
}

static void logistic_free(struct Logistic *f)
{
    release(f->x, (size_t)f->N * f->C * sizeof(real));
    free(f->labels);
    free(f->z);
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
        f->losses[n] = max - own + log(sum);
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

/* Channels c0 .. c0 + channels - 1 of sum_n (p_n - onehot(label_n)) x_n^T, into dw (K, C). */
static void gradient_of_channels(double *dw, const struct Logistic *f, int c0, int channels)
{
    const int C = f->C, K = f->K;
    for (int k = 0; k < K; k++) memset(dw + (size_t)k * C + c0, 0, channels * sizeof *dw);
    for (int n = 0; n < f->N; n++) {
        const real *x = f->x + (size_t)n * C + c0;
        for (int k = 0; k < K; k++) {
            const double slope = f->p[(size_t)n * K + k] - (k == f->labels[n]);
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
 *   1/N sum_n [sum_k p_nk u_nk^2 - (sum_k p_nk u_nk)^2] + l2 |d|^2 */
static double logistic_curvature(const struct Logistic *f, const double *d, const double *u)
{
    double total = 0;
    for (int n = 0; n < f->N; n++) {
        const double *p = f->p + (size_t)n * f->K, *un = u + (size_t)n * f->K;
        double mean = 0, square = 0;
        for (int k = 0; k < f->K; k++) { mean += p[k] * un[k]; square += p[k] * un[k] * un[k]; }
        total += square - mean * mean;
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

/* ============================================================================================= */
/* II. FILES AND COMMANDS                                                                        */
/* ============================================================================================= */

/* ============================================================================================= */
/* 6. Labelled files: TSV, CSV, JSON lines                                                       */
/* ============================================================================================= */

/* A labelled text; both point into the file or to memory that is never freed. line: for
 * messages. */
struct Example { struct Bytes text, label; int line; };
struct Examples { const char *path; struct Example *items; int count; };

/* A file being read, record by record. Columns are numbered from 0. */
struct Table {
    const char *path, *at, *end;
    int line;                                   /* of `at`, from 1 */
    enum { TSV, CSV, JSON_LINES } format;
    /* as the user names the columns; NULL: the usual names */
    const char *text_name, *label_name;
    int columns, text_column, label_column;
};

static const char usual_text_names[] = "text|sentence|content|review",
    usual_label_names[] = "label";

/* The format, from the first line: an object means JSON lines, a tab TSV, anything else CSV. */
static void detect_format(struct Table *t)
{
    const size_t n = t->end - t->at;
    if (n >= 2 && (!memcmp(t->at, "\xFF\xFE", 2) || !memcmp(t->at, "\xFE\xFF", 2)))
        die("%s: the text is UTF-16. Save it as UTF-8.", t->path);
    if (n >= 3 && !memcmp(t->at, "\xEF\xBB\xBF", 3)) t->at += 3;        /* a byte order mark */
    while (t->at < t->end && (*t->at == '\n' || *t->at == '\r')) t->line += *t->at++ == '\n';
    if (t->at == t->end)
        die("%s: the file is empty. It needs a header line and labelled texts.", t->path);
    const char *stop = memchr(t->at, '\n', t->end - t->at);
    const size_t length = (stop ? stop : t->end) - t->at;
    t->format = *t->at == '{' ? JSON_LINES : memchr(t->at, '\t', length) ? TSV : CSV;
}

/* After a field: true if a separator follows, and so another field; false at the record's end. */
static bool field_follows(struct Table *t)
{
    if (t->at == t->end) return false;
    if (*t->at++ != '\n') return true;
    t->line++;
    return false;
}

/* A CSV field in quotes (RFC 4180), which may hold commas, line ends and doubled quotes. Returns
 * whether another field follows. */
static bool read_quoted_field(struct Table *t, struct Bytes *field)
{
    struct Buffer b = {0};
    const int first_line = t->line;
    append_bytes(&b, "", 0);
    for (t->at++; ; t->at++) {
        const char *quote = memchr(t->at, '"', t->end - t->at);
        if (!quote)
            die("%s:%d: a quoted field does not end. Close it with \".", t->path, first_line);
        for (const char *s = t->at; s < quote; s++) t->line += *s == '\n';
        append_bytes(&b, t->at, quote - t->at);
        t->at = quote + 1;
        if (t->at == t->end || *t->at != '"') break;
        append_bytes(&b, "\"", 1);
    }
    if (t->at < t->end && *t->at == '\r' && (t->at + 1 == t->end || t->at[1] == '\n')) t->at++;
    if (t->at < t->end && *t->at != ',' && *t->at != '\n')
        die("%s:%d: text follows a closing quote. Double the quotes inside a quoted field.",
            t->path, t->line);
    *field = (struct Bytes){b.data, b.size};
    return field_follows(t);
}

/* The next field of the record. Returns whether another field follows. */
static bool read_field(struct Table *t, struct Bytes *field)
{
    const char separator = t->format == CSV ? ',' : '\t', *begin = t->at;
    if (t->format == CSV && t->at < t->end && *t->at == '"') return read_quoted_field(t, field);
    while (t->at < t->end && *t->at != separator && *t->at != '\n') t->at++;
    size_t n = t->at - begin;
    if (n && begin[n - 1] == '\r' && (t->at == t->end || *t->at == '\n')) n--;
    *field = (struct Bytes){begin, n};
    return field_follows(t);
}

/* How well a column's name fits: 0 is best, INT32_MAX not at all. `wanted`, unless NULL, must be
 * equal. Otherwise the rank among the usual names, "a|b|c", in upper or lower case. */
static int name_rank(struct Bytes name, const char *wanted, const char *usual)
{
    if (wanted)
        return strlen(wanted) == name.size && !memcmp(wanted, name.data, name.size) ? 0 : INT32_MAX;
    for (int rank = 0; ; rank++) {
        const size_t n = strcspn(usual, "|");
        size_t same = 0;
        while (same < n && same < name.size
               && tolower((unsigned char)name.data[same]) == usual[same]) same++;
        if (same == n && n == name.size) return rank;
        if (!usual[n]) return INT32_MAX;
        usual += n + 1;
    }
}

/* columns: the names that there are. */
__attribute__((noreturn)) static void die_no_column(const struct Table *t, int line, bool label,
                                                    const char *columns)
{
    const char *wanted = label ? t->label_name : t->text_name;
    const char *usual = label ? usual_label_names : usual_text_names;
    die("%s:%d: no column is named %s (there are: %s). %s--%s-column chooses one.", t->path, line,
        wanted ? wanted : usual, columns,
        t->format == JSON_LINES ? "" : "The first line must name the columns; ",
        label ? "label" : "text");
}

/* Finds the two columns in the first line of a TSV or CSV file, or dies. */
static void read_header(struct Table *t)
{
    struct Buffer names = {0};
    const int line = t->line;
    int text_rank = INT32_MAX, label_rank = INT32_MAX;
    t->text_column = t->label_column = -1;
    for (bool more = true; more; t->columns++) {
        struct Bytes name;
        more = read_field(t, &name);
        int rank = name_rank(name, t->text_name, usual_text_names);
        if (rank < text_rank) { text_rank = rank; t->text_column = t->columns; }
        rank = name_rank(name, t->label_name, usual_label_names);
        if (rank < label_rank) { label_rank = rank; t->label_column = t->columns; }
        append(&names, "%s%.*s", t->columns ? ", " : "", (int)(name.size < 60 ? name.size : 60),
               name.data);
        if (names.size > 500) names.data[names.size = 500] = 0;
    }
    if (t->text_column < 0) die_no_column(t, line, false, names.data);
    if (t->label_column < 0) die_no_column(t, line, true, names.data);
    if (t->text_column == t->label_column)
        die("%s: text and label are the same column. Name two.", t->path);
    free(names.data);
}

static bool skip_blank_lines(struct Table *t)
{
    while (t->at < t->end && (*t->at == '\n'
                              || (*t->at == '\r' && t->at + 1 < t->end && t->at[1] == '\n'))) {
        t->at += *t->at == '\n' ? 1 : 2;
        t->line++;
    }
    return t->at < t->end;
}

/* One record of a TSV or CSV file. Dies on another number of columns than the header's. */
static void read_row(struct Table *t, struct Example *e)
{
    int column = 0;
    e->line = t->line;
    for (bool more = true; more; column++) {
        struct Bytes field;
        more = read_field(t, &field);
        if (column == t->text_column) e->text = field;
        if (column == t->label_column) e->label = field;
    }
    if (column != t->columns)
        die("%s:%d: %d columns where the header has %d. %s", t->path, e->line, column, t->columns,
            t->format == CSV ? "Put texts with commas or line ends in quotes."
                             : "Remove tabs from the texts.");
}

/* The value as text: numbers and truth values may be labels, too. NULL for anything else. */
static char *json_as_text(const struct Json *j)
{
    if (j->kind == JSON_STRING) return text_of("%s", j->string);
    if (j->kind == JSON_NUMBER) return text_of("%.15g", j->number);
    if (j->kind == JSON_BOOL) return text_of("%s", j->number ? "true" : "false");
    return NULL;
}

/* The member of a JSON object whose name fits best; dies if none does. */
static const struct Json *json_column(const struct Table *t, const struct Json *object, bool label)
{
    const struct Json *best = NULL;
    int lowest = INT32_MAX;
    struct Buffer names = {0};
    for (const struct Json *j = object->child; j; j = j->next) {
        const struct Bytes name = {j->key, strlen(j->key)};
        const int rank = label ? name_rank(name, t->label_name, usual_label_names)
                               : name_rank(name, t->text_name, usual_text_names);
        if (rank < lowest) { lowest = rank; best = j; }
        append(&names, "%s%.60s", j == object->child ? "" : ", ", j->key);
    }
    if (!best) die_no_column(t, t->line, label, names.data ? names.data : "none");
    free(names.data);
    return best;
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

/* One line of a JSON lines file: an object with a text and a label. */
static void read_json_line(struct Table *t, struct Example *e)
{
    const char *stop = memchr(t->at, '\n', t->end - t->at);
    const size_t n = (stop ? stop : t->end) - t->at;
    char *where = text_of("%s:%d", t->path, t->line);
    e->line = t->line;
    if (holds_nul(t->at, n)) die("%s: holds a NUL character. Remove it.", where);
    struct Json *j = json_parse(t->at, n, where);
    if (j->kind != JSON_OBJECT)
        die("%s: not a JSON object. Each line must be one: {\"text\": ..., \"label\": ...}.",
            where);
    const struct Json *text = json_column(t, j, false), *label = json_column(t, j, true);
    if (text->kind != JSON_STRING)
        die("%s: \"%s\" is not a string. Texts must be.", where, text->key);
    char *name = json_as_text(label);
    if (!name)
        die("%s: \"%s\" is neither a string nor a number. Labels must be.", where, label->key);
    char *copy = text_of("%s", text->string);
    e->text = (struct Bytes){copy, strlen(copy)};
    e->label = (struct Bytes){name, strlen(name)};
    t->at += n + (stop != NULL);
    t->line++;
    json_free(j);
    free(where);
}

static bool valid_utf8(const char *text, size_t n)
{
    uint32_t c;
    for (int length; n > 0; text += length, n -= length)
        if ((length = utf8_decode((const unsigned char *)text, n, &c)) <= 0) return false;
    return true;
}

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
    if (!valid_utf8(l.data, l.size))
        die("%s:%d: the label is not valid UTF-8. Correct it.", path, e->line);
}

/* All labelled texts of a file. A column's name may be NULL: one of the usual names. */
static struct Examples read_examples(const char *path, const char *text_name,
                                     const char *label_name)
{
    const struct Bytes file = map_file(path);
    struct Table t = {path, file.data, file.data + file.size, 1, TSV, text_name, label_name};
    struct Examples all = {path, NULL, 0};
    detect_format(&t);
    if (t.format != JSON_LINES) read_header(&t);
    for (int capacity = 0; skip_blank_lines(&t); all.count++) {
        if (all.count == capacity)
            all.items = resize(all.items, (capacity = 2 * capacity + 64) * sizeof *all.items);
        struct Example *e = &all.items[all.count];
        if (t.format == JSON_LINES) read_json_line(&t, e); else read_row(&t, e);
        check_label(path, e);
    }
    if (!all.count) die("%s: has a header but no examples. Add labelled texts.", path);
    return all;
}

static int compare_labels(const void *a, const void *b)
{
    const struct Bytes x = *(const struct Bytes *)a, y = *(const struct Bytes *)b;
    const int order = memcmp(x.data, y.data, x.size < y.size ? x.size : y.size);
    return order ? order : (x.size > y.size) - (x.size < y.size);
}

/* Every label once, in the order of their bytes: class k is names[k]. Dies on a single class. */
static char **class_names(const struct Examples *e, int *classes)
{
    enum { MAX_CLASSES = 1000 };
    struct Bytes *labels = resize(NULL, e->count * sizeof *labels);
    char **names = resize(NULL, MAX_CLASSES * sizeof *names);
    for (int i = 0; i < e->count; i++) labels[i] = e->items[i].label;
    qsort(labels, e->count, sizeof *labels, compare_labels);
    *classes = 0;
    for (int i = 0; i < e->count; i++) {
        if (i > 0 && !compare_labels(&labels[i], &labels[i - 1])) continue;
        if (*classes == MAX_CLASSES)
            die("%s: more than %d different labels. Is --label-column right?", e->path,
                MAX_CLASSES);
        names[(*classes)++] = text_of("%.*s", (int)labels[i].size, labels[i].data);
    }
    free(labels);
    if (*classes == 1) die("%s: every label is \"%s\". Two classes are needed.", e->path, names[0]);
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

/* The class of an example; dies on a label that is none of the names. */
static int class_of(const char *path, const struct Example *e, char *const *names, int classes)
{
    for (int k = 0; k < classes; k++)
        if (strlen(names[k]) == e->label.size && !memcmp(names[k], e->label.data, e->label.size))
            return k;
    die("%s:%d: label \"%.*s\" is not known; the model's labels are: %s.", path, e->line,
        (int)e->label.size, e->label.data, joined(names, classes));
}

/* Appends the texts of e as tokens, with the classes of their labels. */
static void add_examples(struct Dataset *d, struct Tokenizer *tokenizer, const struct Examples *e,
                         char *const *names, int classes, struct Window w)
{
    for (int i = 0; i < e->count; i++) {
        const int label = class_of(e->path, &e->items[i], names, classes);
        add_text(d, tokenizer, e->items[i].text, label, w);
    }
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

/* Reads and tokenizes the labelled texts and splits them into training and validation, unless --val
 * names a file of its own. Returns the names of the classes. */
static char **load_data(struct Task *t, struct Window w, int *classes)
{
    struct Settings *s = &t->set;
    struct Examples train = read_examples(s->train, s->text_column, s->label_column);
    char **names = class_names(&train, classes);
    add_examples(&t->data, t->tokenizer, &train, names, *classes, w);
    int all = t->train_count = t->data.count;
    if (s->val) {
        struct Examples val = read_examples(s->val, s->text_column, s->label_column);
        add_examples(&t->data, t->tokenizer, &val, names, *classes, w);
        free(val.items);
        all = t->data.count;
    }
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
    free(train.items);
    return names;
}

/* The maximum number of rows of a batch: the longest text must fit. */
static int rows_needed(const struct Task *t) { return max_int(BATCH_ROWS, t->data.longest); }

/* Allocates all memory, and prints how much and what is about to be trained. Returns memory for the
 * best weights, which the probe does not need. */
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
    t->probabilities = allocate_zeroed((size_t)t->val_count * c->labels * sizeof(real));
    t->confusion = allocate_zeroed((size_t)c->labels * c->labels * sizeof(int));
    bytes += t->runner.ws.bytes + t->data.token_capacity * sizeof(int);
    if (probe)
        bytes += t->data.count * (c->channels * sizeof(real)
                                  + (3 * c->labels + 1) * sizeof(double));
    progress(true, "model: %d layers, %d heads, %d channels, context %d, vocabulary %d; labels: %s",
             c->layers, c->heads, c->channels, c->context, c->vocabulary,
             joined(c->label_names, c->labels));
    progress(true, "data: %d texts to train on, %d for validation%s; the longest has %d tokens, "
             "%d were truncated (%s kept)", t->train_count, t->val_count,
             s->val ? "" : " (set aside, in proportion to the labels)", t->data.longest,
             t->data.truncated, s->truncate);
    progress(true, "tune %s: %zu of %zu parameters are trained; memory %.1f MB", s->tune, learn,
             t->model.parameter_count, bytes / 1e6);
    if (probe) return NULL;
    progress(true, "epochs %d of %d updates  batch %d  lr %.3g, head x%g  warmup %g  dropout %g  "
             "weight decay %g", s->epochs, ceil_div(t->train_count, s->batch), s->batch, s->lr,
             s->head_lr_ratio, s->warmup, s->dropout, s->weight_decay);
    return allocate_zeroed(t->model.parameter_count * sizeof(real));
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
    if (s->kind != PROBE) {
        metadata_set(meta, "epochs", "%d", s->epochs);
        metadata_set(meta, "batch", "%d", s->batch);
        metadata_set(meta, "lr", "%g", s->lr);
        metadata_set(meta, "head_lr_ratio", "%g", s->head_lr_ratio);
        metadata_set(meta, "dropout", "%g", s->dropout);
        metadata_set(meta, "weight_decay", "%g", s->weight_decay);
        metadata_set(meta, "warmup", "%g", s->warmup);
    }
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
    t->runner.model = &again;
    validate(t);
    t->runner.model = &t->model;
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
    model_free(&base);
    choose_defaults(s, &t.model, t.train_count);
    t.order = random_stream(s->seed, STREAM_ORDER);
    t.masks = random_stream(s->seed, STREAM_MASKS);
    make_directory(s->out);
    real *best = prepare(&t);
    if (s->kind == PROBE) train_probe(&t, &meta); else train_epochs(&t, best, &meta);

    const struct Scores val = validate(&t);
    const double majority = majority_rate(t.confusion, t.val_count, classes);
    if (val.accuracy <= majority)
        warn("validation accuracy %.4f is no better than always the commonest label (%.4f): "
             "nothing was learnt. Try another --lr, more --epochs or more labels.",
             val.accuracy, majority);
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
}

/* The options of `train`, checked before anything is read. */
static int command_train(int argc, char **argv)
{
    struct Settings s = {.tune = "full", .truncate = "tail", .batch = 32, .seed = 1, .dropout = -1,
                         .weight_decay = 0.01, .warmup = 0.1, .val_part = 0.1};
    struct Option options[] = {
        {"model", "directory of the pretrained model", TEXT, &s.model, .required = true},
        {"train", "labelled texts: TSV, CSV or JSON lines", TEXT, &s.train, .required = true},
        {"val", "labelled texts for validation; without: a part of --train", TEXT, &s.val},
        {"val-part", "how much of each class is set aside when --val is not given", REAL_NUMBER,
         &s.val_part, 0.001, 0.9},
        {"out", "directory of the classifier", TEXT, &s.out, .required = true},
        {"tune", "probe, last:K, full or scratch", TEXT, &s.tune},
        {"epochs", "0: 3, but at least 200 updates", INTEGER, &s.epochs, 0, 1e6},
        {"batch", "texts of an update", INTEGER, &s.batch, 1, 1e6},
        {"lr", "0: 3e-4 for 10M parameters (scratch 1e-3), less for more", REAL_NUMBER, &s.lr, 0,
         10},
        {"head-lr-ratio", "the head learns so many times faster; 0: 10, scratch 1", REAL_NUMBER,
         &s.head_lr_ratio, 0, 1e4},
        {"warmup", "part of the updates in which the rate rises; then a cosine, 0 after the last",
         REAL_NUMBER, &s.warmup, 0, 1},
        {"weight-decay", "of matrices", REAL_NUMBER, &s.weight_decay, 0, 10},
        {"dropout", "-1: 0.1 for full and scratch, else 0", REAL_NUMBER, &s.dropout, -1, 0.9},
        {"max-tokens", "longer texts are truncated; 0: the model's context", INTEGER, &s.max_tokens,
         0, 1 << 20},
        {"truncate", "which part of a long text is read", CHOICE, &s.truncate,
         .choices = "head|tail|both"},
        {"text-column", "else text, sentence, content or review", TEXT, &s.text_column},
        {"label-column", "else label", TEXT, &s.label_column},
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
    parse_tune(&s);
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
    struct Runner runner;
};

/* Dies if the directory holds no classifier. */
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
    runner_create(&c->runner, &c->model, max_int(BATCH_ROWS, c->window.max), WORK_EVAL);
}

/* Scores on a labelled file, one `name value` a line, then the confusion matrix. */
static int command_eval(int argc, char **argv)
{
    const char *dir = NULL, *data = NULL, *text_column = NULL, *label_column = NULL;
    int threads = 0;
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &dir, .required = true},
        {"data", "labelled texts: TSV, CSV or JSON lines", TEXT, &data, .required = true},
        {"text-column", "else text, sentence, content or review", TEXT, &text_column},
        {"label-column", "else label", TEXT, &label_column},
        {"threads", "0: all", INTEGER, &threads, 0, 1024},
    };
    if (parse_options(argc, argv, options, COUNT(options),
                      "finetune_cls eval --model DIR --data FILE\n"
                      "Prints accuracy, macro F1, loss, calibration error and confusion matrix."))
        die_usage("%s: not an option. --help lists them.", argv[0]);
    set_threads(threads);
    struct Classifier c;
    struct Dataset d = {0};
    load_classifier(&c, dir);
    const int K = c.model.config.labels;
    const struct Examples e = read_examples(data, text_column, label_column);
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

/* Prints a line for each text: label, probability, and the text with its line ends as spaces. */
static void predict_texts(struct Classifier *c, struct Dataset *d, const struct Bytes *texts,
                          int count)
{
    const int K = c->model.config.labels;
    real *p = resize(NULL, (size_t)count * K * sizeof *p);
    d->count = 0;
    for (int i = 0; i < count; i++) add_text(d, c->tokenizer, texts[i], -1, c->window);
    run_examples(&c->runner, p, NULL, d, NULL, count, NULL);
    for (int i = 0; i < count; i++) {
        const int best = most_probable(p + (size_t)i * K, K);
        printf("%s\t%.4f\t", c->model.config.label_names[best], p[(size_t)i * K + best]);
        for (size_t k = 0; k < texts[i].size; k++)
            putchar(texts[i].data[k] == '\n' ? ' ' : texts[i].data[k]);
        putchar('\n');
    }
    if (fflush(stdout)) die("standard output: writing failed (%s).", strerror(errno));
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
        const char *line = text + used, *stop = memchr(line, '\n', n - used);
        if (!stop && !last) break;
        size_t length = (stop ? stop : text + n) - line;
        used += length + (stop != NULL);
        if (length && line[length - 1] == '\r') length--;
        if (count == capacity)
            lines = resize(lines, (capacity = 2 * capacity + 64) * sizeof *lines);
        lines[count++] = (struct Bytes){line, length};
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

/* TEXTs of the command line, or else the lines of standard input. */
static int command_predict(int argc, char **argv)
{
    const char *dir = NULL;
    int threads = 0;
    struct Option options[] = {
        {"model", "directory of the classifier", TEXT, &dir, .required = true},
        {"threads", "0: all", INTEGER, &threads, 0, 1024},
    };
    const char *usage = "finetune_cls predict --model DIR [TEXT...]\n"
                        "Prints label, probability and text, separated by tabs, for each TEXT or,\n"
                        "without any, for each line of standard input.";
    const int count = parse_options(argc, argv, options, COUNT(options), usage);
    set_threads(threads);
    struct Classifier c;
    struct Dataset d = {0};
    load_classifier(&c, dir);
    if (!count) { predict_stream(&c, &d); return 0; }
    struct Bytes *texts = resize(NULL, count * sizeof *texts);
    for (int i = 0; i < count; i++) texts[i] = (struct Bytes){argv[i], strlen(argv[i])};
    predict_texts(&c, &d, texts, count);
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
