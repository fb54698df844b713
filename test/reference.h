/* reference.h: GPT-2 as its formulas read: a loop for each index, double precision, nothing clever.
 *
 * Begin here if you are new to the subject: this is the whole method, from text to the step that
 * learns. `make lesson` runs it on a few words and prints every number on the way. tokenizer.c and
 * model.h compute the same in blocks, vectors and threads; the tests compare the two.
 *
 *    1  Tokenizer      pairs of symbols become tokens
 *    2  Linear         y = x W + b
 *    3  Embedding      a token and its position become a vector
 *    4  LayerNorm      each vector to mean 0 and variance 1
 *    5  GELU           the nonlinearity of the MLP
 *    6  Attention      each row looks at the rows before it
 *    7  Head           scores, softmax, loss
 *    8  The model      all of it together, for one sequence
 *    9  AdamW          the step that learns
 *
 * Letters: N rows (a row is one token of the sequence), C channels, H heads, D = C / H channels of
 * a head, V vocabulary, L layers, K classes, OC output channels. An array "x (N, C)" holds N rows
 * of C values, one row after the other: element (n, c) stands at x[n * C + c].
 *
 * dx is dLoss/dx. Every _backward is the chain rule for the function above it: it takes the
 * gradient at the output and adds each input's share to that input's gradient. It adds because a
 * value may be used in several places; the caller begins with zeros. */

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* ============================================================================================= */
/* 1. Tokenizer                                                                                  */
/* ============================================================================================= */

/* Byte-pair encoding. A text begins as one id for each of its bytes, 0 to base - 1. Merge r joins
 * two ids that stand side by side into the one id base + r.
 *
 *   ids (n): a text, with -1 between two pieces (words, say); no merge reaches across it
 *   merges[r]: the two ids that merge r joins */

/* counts (V, V): how often id b stands right after id a, at counts[a * V + b]. */
static void plain_count_pairs(int *counts, const int *ids, int n, int V)
{
    memset(counts, 0, (size_t)V * V * sizeof *counts);
    for (int i = 0; i + 1 < n; i++)
        if (ids[i] >= 0 && ids[i + 1] >= 0) counts[ids[i] * V + ids[i + 1]]++;
}

/* Replaces each such pair by the id `made`, from left to right, in place; returns the new n. */
static int plain_merge(int *ids, int n, const int *pair, int made)
{
    int kept = 0;
    for (int i = 0; i < n; i++) {
        const bool found = i + 1 < n && ids[i] == pair[0] && ids[i + 1] == pair[1];
        ids[kept++] = found ? made : ids[i];
        i += found;
    }
    return kept;
}

/* Learns one merge from a text: the pair that occurs most often; of several, the one with the
 * smallest ids. Sets `pair`, merges it in the text, returns how often it occurred. Training a
 * tokenizer is this, repeated until the vocabulary is full. */
static int plain_learn_merge(int *pair, int *ids, int *n, int made, int V)
{
    int *counts = calloc((size_t)V * V, sizeof *counts), best = 0;
    if (!counts) abort();
    plain_count_pairs(counts, ids, *n, V);
    for (int i = 1; i < V * V; i++)
        if (counts[i] > counts[best]) best = i;
    const int count = counts[best];
    pair[0] = best / V;
    pair[1] = best % V;
    *n = plain_merge(ids, *n, pair, made);
    free(counts);
    return count;
}

/* A new text into tokens, in place; returns their number. Of all pairs in it, the one that was
 * learned first is merged first, and so on until none is left. A merge makes only pairs with its
 * own new id, which were learned later; so one pass over the list is enough. */
static int plain_encode(int *ids, int n, int (*merges)[2], int count, int base)
{
    for (int r = 0; r < count; r++) n = plain_merge(ids, n, merges[r], base + r);
    return n;
}

/* ============================================================================================= */
/* 2. Linear                                                                                     */
/* ============================================================================================= */

/* x (N, C)   w (C, OC)   b (OC)   y (N, OC)
 *
 *   y[n][o] = b[o] + sum_c x[n][c] w[c][o]
 */
static void plain_linear(double *y, const double *x, const double *w, const double *b,
                         int N, int C, int OC)
{
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            double sum = b[o];
            for (int c = 0; c < C; c++) sum += x[n * C + c] * w[c * OC + o];
            y[n * OC + o] = sum;
        }
}

/* Each product x[n][c] w[c][o] passes dy[n][o] on to both of its factors:
 *
 *   dx = dy w^T      dw = x^T dy      db = sum_n dy[n]
 */
static void plain_linear_backward(double *dx, double *dw, double *db, const double *dy,
                                  const double *x, const double *w, int N, int C, int OC)
{
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++) {
            const double d = dy[n * OC + o];
            for (int c = 0; c < C; c++) {
                dx[n * C + c] += d * w[c * OC + o];
                dw[c * OC + o] += d * x[n * C + c];
            }
            db[o] += d;
        }
}

/* ============================================================================================= */
/* 3. Embedding                                                                                  */
/* ============================================================================================= */

/* tokens (N)   wte (V, C): a row for each token   wpe (context, C): a row for each position
 *
 *   x[n] = wte[tokens[n]] + wpe[n]
 */
static void plain_embedding(double *x, const int *tokens, const double *wte, const double *wpe,
                            int N, int C)
{
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) x[n * C + c] = wte[tokens[n] * C + c] + wpe[n * C + c];
}

static void plain_embedding_backward(double *dwte, double *dwpe, const double *dx,
                                     const int *tokens, int N, int C)
{
    for (int n = 0; n < N; n++)
        for (int c = 0; c < C; c++) {
            dwte[tokens[n] * C + c] += dx[n * C + c];
            dwpe[n * C + c] += dx[n * C + c];
        }
}

/* ============================================================================================= */
/* 4. LayerNorm                                                                                  */
/* ============================================================================================= */

/* xhat (C) of one row x (C); returns rstd.
 *
 *   mean = avg x      rstd = 1 / sqrt(avg (x - mean)^2 + eps)      xhat = (x - mean) rstd
 */
static double plain_normalize(double *xhat, const double *x, int C)
{
    const double eps = 1e-5;
    double mean = 0, variance = 0;
    for (int c = 0; c < C; c++) mean += x[c] / C;
    for (int c = 0; c < C; c++) variance += (x[c] - mean) * (x[c] - mean) / C;
    const double rstd = 1 / sqrt(variance + eps);
    for (int c = 0; c < C; c++) xhat[c] = (x[c] - mean) * rstd;
    return rstd;
}

/* x, y (N, C)   w, b (C):   y[n] = w xhat[n] + b */
static void plain_layernorm(double *y, const double *x, const double *w, const double *b,
                            int N, int C)
{
    double xhat[C];
    for (int n = 0; n < N; n++) {
        plain_normalize(xhat, x + n * C, C);
        for (int c = 0; c < C; c++) y[n * C + c] = w[c] * xhat[c] + b[c];
    }
}

/* g = w dy is the gradient at xhat. Moving all of x moves the mean along, and stretching x
 * stretches the deviation along: neither changes xhat, so these two parts of g are taken out.
 *
 *   dx = rstd (g - avg g - xhat avg(g xhat))      dw = sum_n dy xhat      db = sum_n dy
 */
static void plain_layernorm_backward(double *dx, double *dw, double *db, const double *dy,
                                     const double *x, const double *w, int N, int C)
{
    double xhat[C];
    for (int n = 0; n < N; n++) {
        const double rstd = plain_normalize(xhat, x + n * C, C), *dyn = dy + n * C;
        double average = 0, slope = 0;
        for (int c = 0; c < C; c++) {
            average += w[c] * dyn[c] / C;
            slope += w[c] * dyn[c] * xhat[c] / C;
        }
        for (int c = 0; c < C; c++) {
            dx[n * C + c] += rstd * (w[c] * dyn[c] - average - xhat[c] * slope);
            dw[c] += dyn[c] * xhat[c];
            db[c] += dyn[c];
        }
    }
}

/* ============================================================================================= */
/* 5. GELU                                                                                       */
/* ============================================================================================= */

/* x times roughly the probability that a normal variable is below x, in the form that GPT-2 uses:
 *
 *   y = x/2 (1 + tanh u)      u = sqrt(2/pi) (x + 0.044715 x^3)
 */
static double plain_gelu(double x)
{
    return x / 2 * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* dy/dx = (1 + tanh u) / 2 + x/2 (1 - tanh^2 u) du/dx
 * du/dx = sqrt(2/pi) (1 + 3 * 0.044715 x^2)
 */
static double plain_gelu_slope(double x)
{
    const double t = tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x));
    return (1 + t) / 2 + x / 2 * (1 - t * t) * sqrt(2 / M_PI) * (1 + 3 * 0.044715 * x * x);
}

/* ============================================================================================= */
/* 6. Attention                                                                                  */
/* ============================================================================================= */

/* x (n) becomes exp(x) / sum exp(x). Taking off the largest x first changes nothing in that
 * quotient, but exp cannot overflow. */
static void plain_softmax(double *x, int n)
{
    double maximum = x[0], sum = 0;
    for (int i = 1; i < n; i++) maximum = fmax(maximum, x[i]);
    for (int i = 0; i < n; i++) sum += x[i] = exp(x[i] - maximum);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

/* S (N, N) of one head: how well the query of row n fits the key of row m.
 *
 *   S_nm = q_n . k_m / sqrt(D)
 *
 * q and k point at the head's channels of row 0; a row is 3C values long. */
static void plain_attention_scores(double *S, const double *q, const double *k,
                                   int N, int C, int D)
{
    for (int n = 0; n < N; n++)
        for (int m = 0; m < N; m++) {
            double sum = 0;
            for (int d = 0; d < D; d++) sum += q[n * 3 * C + d] * k[m * 3 * C + d];
            S[n * N + m] = sum / sqrt(D);
        }
}

/* The causal mask: a row sees itself and what stands before it, since exp(-infinity) is 0. */
static void plain_attention_mask(double *S, int N)
{
    for (int n = 0; n < N; n++)
        for (int m = n + 1; m < N; m++) S[n * N + m] = -INFINITY;
}

/* qkv (N, 3C): of each row its query, key and value; head h has channels hD .. hD+D-1 of each
 * scores, P (H, N, N): before the mask, and after the softmax      y (N, C)
 *
 *   P_n = softmax(masked S_n)      y_n = sum_m P_nm v_m
 */
static void plain_attention(double *y, double *P, double *scores, const double *qkv,
                            int N, int C, int H)
{
    const int D = C / H;
    for (int h = 0; h < H; h++, scores += N * N, P += N * N) {
        const double *q = qkv + h * D, *k = q + C, *v = k + C;
        plain_attention_scores(scores, q, k, N, C, D);
        memcpy(P, scores, (size_t)N * N * sizeof *P);
        plain_attention_mask(P, N);
        for (int n = 0; n < N; n++) {
            plain_softmax(P + n * N, N);
            for (int d = 0; d < D; d++) {
                double sum = 0;
                for (int m = 0; m < N; m++) sum += P[n * N + m] * v[m * 3 * C + d];
                y[n * C + h * D + d] = sum;
            }
        }
    }
}

/* With dP_nm = dy_n . v_m:
 *
 *   dv_m = sum_n P_nm dy_n               dS_nm = P_nm (dP_nm - sum_j P_nj dP_nj)
 *   dq_n = sum_m dS_nm k_m / sqrt(D)     dk_m = sum_n dS_nm q_n / sqrt(D)
 *
 * Where the mask was, P is 0, hence dS, too. */
static void plain_attention_backward(double *dqkv, const double *dy, const double *P,
                                     const double *qkv, int N, int C, int H)
{
    const int D = C / H;
    double dP[N];
    for (int h = 0; h < H; h++) {
        const double *q = qkv + h * D, *k = q + C, *v = k + C;
        double *dq = dqkv + h * D, *dk = dq + C, *dv = dk + C;
        for (int n = 0; n < N; n++, P += N) {
            const double *dyn = dy + n * C + h * D;
            double average = 0;
            for (int m = 0; m < N; m++) {
                dP[m] = 0;
                for (int d = 0; d < D; d++) dP[m] += dyn[d] * v[m * 3 * C + d];
                average += P[m] * dP[m];
            }
            for (int m = 0; m < N; m++) {
                const double dS = P[m] * (dP[m] - average) / sqrt(D);
                for (int d = 0; d < D; d++) {
                    dq[n * 3 * C + d] += dS * k[m * 3 * C + d];
                    dk[m * 3 * C + d] += dS * q[n * 3 * C + d];
                    dv[m * 3 * C + d] += P[m] * dyn[d];
                }
            }
        }
    }
}

/* ============================================================================================= */
/* 7. Head                                                                                       */
/* ============================================================================================= */

/* The score of each of K choices for one row h (C), and what it costs not to be sure of the target:
 *
 *   logits_k = h . w_k      p = softmax(logits)      loss = -log p[target]
 *
 * logits, p (K)   w (K, C). For the language model w is wte, the embedding's table once more
 * ("tied"): a token's score is how well h agrees with its vector. For a classifier, w has a row for
 * each class. Target -1: there is none, and no loss. */
static double plain_head(double *logits, double *p, const double *h, const double *w, int target,
                         int K, int C)
{
    for (int k = 0; k < K; k++) {
        logits[k] = 0;
        for (int c = 0; c < C; c++) logits[k] += h[c] * w[k * C + c];
        p[k] = logits[k];
    }
    plain_softmax(p, K);
    return target < 0 ? 0 : -log(p[target]);
}

/* The gradient at the logits is p, less 1 at the target: push down what was believed, pull up what
 * was true. It is multiplied by `scale`, the weight of this row's loss in the whole. */
static void plain_head_backward(double *dh, double *dw, const double *p, const double *h,
                                const double *w, int target, double scale, int K, int C)
{
    for (int k = 0; target >= 0 && k < K; k++) {
        const double dlogit = scale * (p[k] - (k == target));
        for (int c = 0; c < C; c++) {
            dh[c] += dlogit * w[k * C + c];
            dw[k * C + c] += dlogit * h[c];
        }
    }
}

/* ============================================================================================= */
/* 8. The model                                                                                  */
/* ============================================================================================= */

struct PlainShape { int layers, heads, channels, context, vocabulary, labels; };

/* The weights, or their gradients: places in one array, in the order of the file. */
struct PlainBlock {
    double *ln1_w, *ln1_b;                  /* (C) (C) */
    double *qkv_w, *qkv_b;                  /* (C, 3C) (3C) */
    double *attn_proj_w, *attn_proj_b;      /* (C, C) (C) */
    double *ln2_w, *ln2_b;                  /* (C) (C) */
    double *fc_w, *fc_b;                    /* (C, 4C) (4C) */
    double *mlp_proj_w, *mlp_proj_b;        /* (4C, C) (C) */
};

enum { PLAIN_MAX_LAYERS = 16 };

struct PlainWeights {
    double *wte, *wpe;              /* (V, C) (context, C) */
    struct PlainBlock block[PLAIN_MAX_LAYERS];
    double *lnf_w, *lnf_b;          /* (C) (C) */
    double *score;                  /* (K, C): of a classifier with K classes */
};

/* The number of weights. */
static size_t plain_size(const struct PlainShape *s)
{
    const size_t C = s->channels, block = 12 * C * C + 13 * C;
    return (s->vocabulary + s->context + s->labels) * C + s->layers * block + 2 * C;
}

/* The next n values of an array from which all take their places in turn. */
static double *plain_take(double **array, size_t n)
{
    double *place = *array;
    *array += n;
    return place;
}

/* The places of all tensors in an array of plain_size values. */
static struct PlainWeights plain_weights(double *array, const struct PlainShape *s)
{
    const size_t C = s->channels;
    struct PlainWeights w;
    w.wte = plain_take(&array, s->vocabulary * C);
    w.wpe = plain_take(&array, s->context * C);
    for (int l = 0; l < s->layers; l++) {
        struct PlainBlock *b = &w.block[l];
        b->ln1_w = plain_take(&array, C);
        b->ln1_b = plain_take(&array, C);
        b->qkv_w = plain_take(&array, C * 3 * C);
        b->qkv_b = plain_take(&array, 3 * C);
        b->attn_proj_w = plain_take(&array, C * C);
        b->attn_proj_b = plain_take(&array, C);
        b->ln2_w = plain_take(&array, C);
        b->ln2_b = plain_take(&array, C);
        b->fc_w = plain_take(&array, C * 4 * C);
        b->fc_b = plain_take(&array, 4 * C);
        b->mlp_proj_w = plain_take(&array, 4 * C * C);
        b->mlp_proj_b = plain_take(&array, C);
    }
    w.lnf_w = plain_take(&array, C);
    w.lnf_b = plain_take(&array, C);
    w.score = plain_take(&array, s->labels * C);
    return w;
}

/* What each step of a block computes, or the gradients of that. */
struct PlainBlockValues {
    double *x, *ln1, *qkv;                  /* (N, C) what enters the block; (N, C) (N, 3C) */
    double *scores, *P;                     /* (H, N, N) each */
    double *att, *attn_proj, *x2;           /* (N, C) each; x2 stands between attention and MLP */
    double *ln2, *fc, *gelu, *mlp_proj;     /* (N, C) (N, 4C) (N, 4C) (N, C) */
};

struct PlainValues {
    struct PlainBlockValues block[PLAIN_MAX_LAYERS + 1];    /* of the last, only x: the result */
    double *hidden;                         /* (N, C): the final states */
    double *logits, *p;                     /* (N, V) each: scores of the next token, softmax */
    double *class_logits, *class_p;         /* (K) each: of the classes, at the last row */
    double *memory;                         /* (size): all of the above */
    size_t size;
};

enum { PLAIN_VALUES_PER_ROW = 18 };         /* times C: all but scores and P */

/* Their places, where n = N C and square = H N N. */
static struct PlainBlockValues plain_block_values(double **array, size_t n, size_t square)
{
    struct PlainBlockValues v;
    v.x = plain_take(array, n);
    v.ln1 = plain_take(array, n);
    v.qkv = plain_take(array, 3 * n);
    v.scores = plain_take(array, square);
    v.P = plain_take(array, square);
    v.att = plain_take(array, n);
    v.attn_proj = plain_take(array, n);
    v.x2 = plain_take(array, n);
    v.ln2 = plain_take(array, n);
    v.fc = plain_take(array, 4 * n);
    v.gelu = plain_take(array, 4 * n);
    v.mlp_proj = plain_take(array, n);
    return v;
}

/* Memory for a sequence of N tokens, zeroed; to be freed: .memory. */
static struct PlainValues plain_values(int N, const struct PlainShape *s)
{
    const size_t n = (size_t)N * s->channels, square = (size_t)s->heads * N * N;
    const size_t vocabulary = (size_t)N * s->vocabulary;
    struct PlainValues v;
    v.size = (s->layers + 1) * (PLAIN_VALUES_PER_ROW * n + 2 * square)
           + n + 2 * vocabulary + 2 * s->labels;
    double *place = v.memory = calloc(v.size, sizeof *place);
    if (!place) abort();
    for (int l = 0; l <= s->layers; l++) v.block[l] = plain_block_values(&place, n, square);
    v.hidden = plain_take(&place, n);
    v.logits = plain_take(&place, vocabulary);
    v.p = plain_take(&place, vocabulary);
    v.class_logits = plain_take(&place, s->labels);
    v.class_p = plain_take(&place, s->labels);
    return v;
}

/* What the model is shown.
 *
 *   tokens (N)
 *   targets (N): the token that follows each row, or -1 where none counts; or NULL
 *   label: the class, which is read at the last row; or -1
 */
struct PlainExample { const int *tokens, *targets; int label, N; };

static int plain_target(const struct PlainExample *e, int n)
{
    return e->targets ? e->targets[n] : -1;
}

static void plain_add(double *y, const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

/* One block. Attention carries information between rows, the MLP works on each row by itself; both
 * only add to x, the "residual stream":
 *
 *   x2 = x + attention(LN1(x) W + b) W + b      out = x2 + GELU(LN2(x2) W + b) W + b
 */
static void plain_block(double *out, struct PlainBlockValues *v, const struct PlainBlock *w,
                        int N, int C, int H)
{
    plain_layernorm(v->ln1, v->x, w->ln1_w, w->ln1_b, N, C);
    plain_linear(v->qkv, v->ln1, w->qkv_w, w->qkv_b, N, C, 3 * C);
    plain_attention(v->att, v->P, v->scores, v->qkv, N, C, H);
    plain_linear(v->attn_proj, v->att, w->attn_proj_w, w->attn_proj_b, N, C, C);
    for (int i = 0; i < N * C; i++) v->x2[i] = v->x[i] + v->attn_proj[i];

    plain_layernorm(v->ln2, v->x2, w->ln2_w, w->ln2_b, N, C);
    plain_linear(v->fc, v->ln2, w->fc_w, w->fc_b, N, C, 4 * C);
    for (int i = 0; i < N * 4 * C; i++) v->gelu[i] = plain_gelu(v->fc[i]);
    plain_linear(v->mlp_proj, v->gelu, w->mlp_proj_w, w->mlp_proj_b, N, 4 * C, C);
    for (int i = 0; i < N * C; i++) out[i] = v->x2[i] + v->mlp_proj[i];
}

/* The same lines from last to first. dv are the gradients of the values v, dw of the weights w.
 * A sum passes its gradient on to both sides unchanged, so dout is also that of mlp_proj. */
static void plain_block_backward(struct PlainBlockValues *dv, struct PlainBlock *dw,
                                 const double *dout, const struct PlainBlockValues *v,
                                 const struct PlainBlock *w, int N, int C, int H)
{
    plain_add(dv->x2, dout, (size_t)N * C);
    plain_linear_backward(dv->gelu, dw->mlp_proj_w, dw->mlp_proj_b, dout, v->gelu, w->mlp_proj_w,
                          N, 4 * C, C);
    for (int i = 0; i < N * 4 * C; i++) dv->fc[i] += dv->gelu[i] * plain_gelu_slope(v->fc[i]);
    plain_linear_backward(dv->ln2, dw->fc_w, dw->fc_b, dv->fc, v->ln2, w->fc_w, N, C, 4 * C);
    plain_layernorm_backward(dv->x2, dw->ln2_w, dw->ln2_b, dv->ln2, v->x2, w->ln2_w, N, C);

    plain_add(dv->x, dv->x2, (size_t)N * C);
    plain_linear_backward(dv->att, dw->attn_proj_w, dw->attn_proj_b, dv->x2, v->att,
                          w->attn_proj_w, N, C, C);
    plain_attention_backward(dv->qkv, dv->att, v->P, v->qkv, N, C, H);
    plain_linear_backward(dv->ln1, dw->qkv_w, dw->qkv_b, dv->qkv, v->ln1, w->qkv_w, N, C, 3 * C);
    plain_layernorm_backward(dv->x, dw->ln1_w, dw->ln1_b, dv->ln1, v->x, w->ln1_w, N, C);
}

/* One sequence through the model: fills v, returns the sum of -log p over all targets and the
 * label. */
static double plain_forward(struct PlainValues *v, const struct PlainWeights *w,
                            const struct PlainExample *e, const struct PlainShape *s)
{
    const int N = e->N, C = s->channels, L = s->layers, V = s->vocabulary;
    double loss = 0;
    plain_embedding(v->block[0].x, e->tokens, w->wte, w->wpe, N, C);
    for (int l = 0; l < L; l++)
        plain_block(v->block[l + 1].x, &v->block[l], &w->block[l], N, C, s->heads);
    plain_layernorm(v->hidden, v->block[L].x, w->lnf_w, w->lnf_b, N, C);

    for (int n = 0; n < N; n++)
        loss += plain_head(v->logits + n * V, v->p + n * V, v->hidden + n * C, w->wte,
                           plain_target(e, n), V, C);
    if (s->labels > 0)
        loss += plain_head(v->class_logits, v->class_p, v->hidden + (N - 1) * C, w->score,
                           e->label, s->labels, C);
    return loss;
}

/* From the values that plain_forward has left in v: adds `scale` times the gradient of its loss to
 * dw. dv is the memory for the gradients of the values. */
static void plain_backward(struct PlainWeights *dw, struct PlainValues *dv, double scale,
                           const struct PlainValues *v, const struct PlainWeights *w,
                           const struct PlainExample *e, const struct PlainShape *s)
{
    const int N = e->N, C = s->channels, L = s->layers, V = s->vocabulary, last = (N - 1) * C;
    memset(dv->memory, 0, dv->size * sizeof(double));
    for (int n = 0; n < N; n++)
        plain_head_backward(dv->hidden + n * C, dw->wte, v->p + n * V, v->hidden + n * C, w->wte,
                            plain_target(e, n), scale, V, C);
    plain_head_backward(dv->hidden + last, dw->score, v->class_p, v->hidden + last, w->score,
                        e->label, scale, s->labels, C);

    plain_layernorm_backward(dv->block[L].x, dw->lnf_w, dw->lnf_b, dv->hidden, v->block[L].x,
                             w->lnf_w, N, C);
    for (int l = L - 1; l >= 0; l--)
        plain_block_backward(&dv->block[l], &dw->block[l], dv->block[l + 1].x, &v->block[l],
                             &w->block[l], N, C, s->heads);
    plain_embedding_backward(dw->wte, dw->wpe, dv->block[0].x, e->tokens, N, C);
}

/* ============================================================================================= */
/* 9. AdamW                                                                                      */
/* ============================================================================================= */

/* One step for one weight w with gradient g. m and v are running averages of g and g^2, which begin
 * at 0 and are corrected for that; t counts steps from 1. The step is about lr whatever the size of
 * g; decay pulls w towards 0.
 *
 *   m = b1 m + (1 - b1) g      v = b2 v + (1 - b2) g^2
 *   w = w - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)
 */
static void plain_adamw(double *w, double *m, double *v, double g, double lr, double b1, double b2,
                        double decay, int t)
{
    const double eps = 1e-8;
    *m = b1 * *m + (1 - b1) * g;
    *v = b2 * *v + (1 - b2) * g * g;
    *w -= lr * (*m / (1 - pow(b1, t)) / (sqrt(*v / (1 - pow(b2, t))) + eps) + decay * *w);
}
