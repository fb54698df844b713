/* reference.h: GPT-2 as its formulas read: a loop for each index, double precision, nothing clever.
 *
 * Begin here if you are new to the subject: this is the whole model with its gradients, and AdamW.
 * model.h computes the same in blocks, vectors and threads; test_model.c compares the two.
 *
 *    1  Linear         y = x W + b
 *    2  Embedding      a token and its position become a vector
 *    3  LayerNorm      each vector to mean 0 and variance 1
 *    4  GELU           the nonlinearity of the MLP
 *    5  Attention      each row looks at the rows before it
 *    6  Head           scores, softmax, loss
 *    7  The model      all of it together, for one sequence
 *    8  AdamW          the step that learns
 *
 * Letters: N rows (a row is one token of the sequence), C channels, H heads, D = C / H channels of
 * a head, V vocabulary, L layers, OC output channels. An array "x (N, C)" holds N rows of C values,
 * one row after the other: element (n, c) stands at x[n * C + c].
 *
 * dx is dLoss/dx. Every _backward is the chain rule for the function above it: it takes the
 * gradient at the output and adds each input's share to that input's gradient. It adds because a
 * value may be used in several places; the caller begins with zeros. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ============================================================================================= */
/* 1. Linear                                                                                     */
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
/* 2. Embedding                                                                                  */
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
/* 3. LayerNorm                                                                                  */
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
/* 4. GELU                                                                                       */
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
/* 5. Attention                                                                                  */
/* ============================================================================================= */

/* x (n) becomes exp(x) / sum exp(x). Taking off the largest x first changes nothing in that
 * quotient, but exp cannot overflow. */
static void plain_softmax(double *x, int n)
{
    double most = x[0], sum = 0;
    for (int i = 1; i < n; i++) most = fmax(most, x[i]);
    for (int i = 0; i < n; i++) sum += x[i] = exp(x[i] - most);
    for (int i = 0; i < n; i++) x[i] /= sum;
}

/* How much row n looks at each row m <= n: P (n + 1), softmax of the scores q_n . k_m / sqrt(D).
 * q and k point at one head's channels of row 0; a row is 3C values long. */
static void plain_attention_weights(double *P, const double *q, const double *k,
                                    int n, int C, int D)
{
    for (int m = 0; m <= n; m++) {
        P[m] = 0;
        for (int d = 0; d < D; d++) P[m] += q[n * 3 * C + d] * k[m * 3 * C + d] / sqrt(D);
    }
    plain_softmax(P, n + 1);
}

/* qkv (N, 3C): of each row its query, key and value; head h has channels hD .. hD+D-1 of each
 * y (N, C)
 *
 *   y_n = sum over m <= n of P_nm v_m      a row sees itself and what stands before it
 */
static void plain_attention(double *y, const double *qkv, int N, int C, int H)
{
    const int D = C / H;
    double P[N];
    for (int h = 0; h < H; h++) {
        const double *q = qkv + h * D, *k = q + C, *v = k + C;
        for (int n = 0; n < N; n++) {
            plain_attention_weights(P, q, k, n, C, D);
            for (int d = 0; d < D; d++) {
                y[n * C + h * D + d] = 0;
                for (int m = 0; m <= n; m++) y[n * C + h * D + d] += P[m] * v[m * 3 * C + d];
            }
        }
    }
}

/* With dP_nm = dy_n . v_m, and S the scores before the softmax:
 *
 *   dv_m = sum_n P_nm dy_n               dS_nm = P_nm (dP_nm - sum_j P_nj dP_nj)
 *   dq_n = sum_m dS_nm k_m / sqrt(D)     dk_m = sum_n dS_nm q_n / sqrt(D)
 */
static void plain_attention_backward(double *dqkv, const double *dy, const double *qkv,
                                     int N, int C, int H)
{
    const int D = C / H;
    double P[N], dP[N];
    for (int h = 0; h < H; h++) {
        const double *q = qkv + h * D, *k = q + C, *v = k + C;
        double *dq = dqkv + h * D, *dk = dq + C, *dv = dk + C;
        for (int n = 0; n < N; n++) {
            const double *dyn = dy + n * C + h * D;
            double average = 0;
            plain_attention_weights(P, q, k, n, C, D);
            for (int m = 0; m <= n; m++) {
                dP[m] = 0;
                for (int d = 0; d < D; d++) dP[m] += dyn[d] * v[m * 3 * C + d];
                average += P[m] * dP[m];
            }
            for (int m = 0; m <= n; m++) {
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
/* 6. Head                                                                                       */
/* ============================================================================================= */

/* The score of each of K choices for one row h (C), and what it costs not to be sure of the target:
 *
 *   logits_k = h . w_k      p = softmax(logits)      loss = -log p[target]
 *
 * p (K)   w (K, C). For the language model w is wte, the embedding's table once more ("tied"): a
 * token's score is how well h agrees with its vector. For a classifier, w has a row for each
 * class. */
static double plain_head(double *p, const double *h, const double *w, int target, int K, int C)
{
    for (int k = 0; k < K; k++) {
        p[k] = 0;
        for (int c = 0; c < C; c++) p[k] += h[c] * w[k * C + c];
    }
    plain_softmax(p, K);
    return -log(p[target]);
}

/* The gradient at the logits is p, less 1 at the target: push down what was believed, pull up what
 * was true. It is multiplied by `scale`, the weight of this row's loss in the whole. */
static void plain_head_backward(double *dh, double *dw, const double *p, const double *h,
                                const double *w, int target, double scale, int K, int C)
{
    for (int k = 0; k < K; k++) {
        const double dlogit = scale * (p[k] - (k == target));
        for (int c = 0; c < C; c++) {
            dh[c] += dlogit * w[k * C + c];
            dw[k * C + c] += dlogit * h[c];
        }
    }
}

/* ============================================================================================= */
/* 7. The model                                                                                  */
/* ============================================================================================= */

struct PlainShape { int layers, heads, channels, context, vocabulary, labels; };

/* The weights, or their gradients: places in one array, in the order of the file. */
struct PlainBlock {
    double *ln1_w, *ln1_b;          /* (C) (C) */
    double *qkv_w, *qkv_b;          /* (C, 3C) (3C) */
    double *attn_w, *attn_b;        /* (C, C) (C) */
    double *ln2_w, *ln2_b;          /* (C) (C) */
    double *fc_w, *fc_b;            /* (C, 4C) (4C) */
    double *mlp_w, *mlp_b;          /* (4C, C) (C) */
};

enum { PLAIN_MOST_LAYERS = 16 };

struct PlainWeights {
    double *wte, *wpe;              /* (V, C) (context, C) */
    struct PlainBlock block[PLAIN_MOST_LAYERS];
    double *lnf_w, *lnf_b;          /* (C) (C) */
    double *score;                  /* (K, C): of a classifier with K classes */
};

/* The next n values of an array from which all take their places in turn. */
static double *plain_take(double **array, size_t n)
{
    double *place = *array;
    *array += n;
    return place;
}

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
        b->attn_w = plain_take(&array, C * C);
        b->attn_b = plain_take(&array, C);
        b->ln2_w = plain_take(&array, C);
        b->ln2_b = plain_take(&array, C);
        b->fc_w = plain_take(&array, C * 4 * C);
        b->fc_b = plain_take(&array, 4 * C);
        b->mlp_w = plain_take(&array, 4 * C * C);
        b->mlp_b = plain_take(&array, C);
    }
    w.lnf_w = plain_take(&array, C);
    w.lnf_b = plain_take(&array, C);
    w.score = plain_take(&array, s->labels * C);
    return w;
}

/* What each step of a block computes, or the gradients of that. */
struct PlainValues {
    double *x, *ln1, *qkv, *att, *x2, *ln2, *fc, *gelu;
};

enum { PLAIN_VALUES_PER_ROW = 16 };     /* times C: 1 + 1 + 3 + 1 + 1 + 1 + 4 + 4 */

static struct PlainValues plain_values(double **array, int N, int C)
{
    const size_t n = (size_t)N * C;
    struct PlainValues v;
    v.x = plain_take(array, n);             /* what enters the block */
    v.ln1 = plain_take(array, n);
    v.qkv = plain_take(array, 3 * n);
    v.att = plain_take(array, n);
    v.x2 = plain_take(array, n);            /* between attention and MLP */
    v.ln2 = plain_take(array, n);
    v.fc = plain_take(array, 4 * n);
    v.gelu = plain_take(array, 4 * n);
    return v;
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
static void plain_block(double *out, struct PlainValues *v, const struct PlainBlock *w,
                        int N, int C, int H)
{
    plain_layernorm(v->ln1, v->x, w->ln1_w, w->ln1_b, N, C);
    plain_linear(v->qkv, v->ln1, w->qkv_w, w->qkv_b, N, C, 3 * C);
    plain_attention(v->att, v->qkv, N, C, H);
    plain_linear(v->x2, v->att, w->attn_w, w->attn_b, N, C, C);
    plain_add(v->x2, v->x, (size_t)N * C);

    plain_layernorm(v->ln2, v->x2, w->ln2_w, w->ln2_b, N, C);
    plain_linear(v->fc, v->ln2, w->fc_w, w->fc_b, N, C, 4 * C);
    for (int i = 0; i < N * 4 * C; i++) v->gelu[i] = plain_gelu(v->fc[i]);
    plain_linear(out, v->gelu, w->mlp_w, w->mlp_b, N, 4 * C, C);
    plain_add(out, v->x2, (size_t)N * C);
}

/* The same lines from last to first. dv are the gradients of the values v, dw of the weights w. */
static void plain_block_backward(struct PlainValues *dv, struct PlainBlock *dw, const double *dout,
                                 const struct PlainValues *v, const struct PlainBlock *w,
                                 int N, int C, int H)
{
    plain_add(dv->x2, dout, (size_t)N * C);
    plain_linear_backward(dv->gelu, dw->mlp_w, dw->mlp_b, dout, v->gelu, w->mlp_w, N, 4 * C, C);
    for (int i = 0; i < N * 4 * C; i++) dv->fc[i] += dv->gelu[i] * plain_gelu_slope(v->fc[i]);
    plain_linear_backward(dv->ln2, dw->fc_w, dw->fc_b, dv->fc, v->ln2, w->fc_w, N, C, 4 * C);
    plain_layernorm_backward(dv->x2, dw->ln2_w, dw->ln2_b, dv->ln2, v->x2, w->ln2_w, N, C);

    plain_add(dv->x, dv->x2, (size_t)N * C);
    plain_linear_backward(dv->att, dw->attn_w, dw->attn_b, dv->x2, v->att, w->attn_w, N, C, C);
    plain_attention_backward(dv->qkv, dv->att, v->qkv, N, C, H);
    plain_linear_backward(dv->ln1, dw->qkv_w, dw->qkv_b, dv->qkv, v->ln1, w->qkv_w, N, C, 3 * C);
    plain_layernorm_backward(dv->x, dw->ln1_w, dw->ln1_b, dv->ln1, v->x, w->ln1_w, N, C);
}

/* One sequence of N tokens through the model, forward and backward.
 *
 *   gradients, weights: arrays as plain_weights lays them out
 *   hidden (N, C): the final states, set
 *   targets (N): the token that follows each row, or -1 where none counts; or NULL
 *   label: the class, which is read at the last row; or -1
 *
 * Returns the sum of -log p over all targets and the label; adds `scale` times its gradient. */
static double plain_gpt2(double *gradients, double *hidden, double *weights, const int *tokens,
                         const int *targets, int label, double scale, int N,
                         const struct PlainShape *s)
{
    const int C = s->channels, L = s->layers, V = s->vocabulary, K = s->labels;
    const size_t n = (size_t)N * C, size = 2 * (L + 1) * PLAIN_VALUES_PER_ROW * n + n;
    const struct PlainWeights w = plain_weights(weights, s);
    struct PlainWeights dw = plain_weights(gradients, s);
    struct PlainValues v[PLAIN_MOST_LAYERS + 1], dv[PLAIN_MOST_LAYERS + 1];
    double *memory = calloc(size, sizeof *memory), *place = memory, p[V + K], loss = 0;
    if (!memory) abort();
    double *dhidden = plain_take(&place, n);
    for (int l = 0; l <= L; l++) {          /* of the last, only x: what enters LN_f */
        v[l] = plain_values(&place, N, C);
        dv[l] = plain_values(&place, N, C);
    }

    plain_embedding(v[0].x, tokens, w.wte, w.wpe, N, C);
    for (int l = 0; l < L; l++) plain_block(v[l + 1].x, &v[l], &w.block[l], N, C, s->heads);
    plain_layernorm(hidden, v[L].x, w.lnf_w, w.lnf_b, N, C);

    for (int i = 0; i < N; i++) {
        const double *h = hidden + i * C;
        if (!targets || targets[i] < 0) continue;
        loss += plain_head(p, h, w.wte, targets[i], V, C);
        plain_head_backward(dhidden + i * C, dw.wte, p, h, w.wte, targets[i], scale, V, C);
    }
    if (label >= 0) {
        const double *h = hidden + (N - 1) * C;
        loss += plain_head(p, h, w.score, label, K, C);
        plain_head_backward(dhidden + (N - 1) * C, dw.score, p, h, w.score, label, scale, K, C);
    }

    plain_layernorm_backward(dv[L].x, dw.lnf_w, dw.lnf_b, dhidden, v[L].x, w.lnf_w, N, C);
    for (int l = L - 1; l >= 0; l--)
        plain_block_backward(&dv[l], &dw.block[l], dv[l + 1].x, &v[l], &w.block[l], N, C, s->heads);
    plain_embedding_backward(dw.wte, dw.wpe, dv[0].x, tokens, N, C);
    free(memory);
    return loss;
}

/* ============================================================================================= */
/* 8. AdamW                                                                                      */
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
