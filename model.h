/* model.h: GPT-2 (Radford et al. 2019) in C. Read it from top to bottom.
 *
 *    I    The model      1 layers, 2 parameters, 3 trunk, 4 heads and losses, 5 AdamW and Muon
 *    II   The engine     6 numbers, 7 memory, 8 matrix products, 9 attention kernels, 10 memory of
 *                        a pass: what makes it fast
 *    III  The program    11 errors, 12 files, 13 JSON, 14 checkpoint, 15 time, 16 settings, runs
 *
 * A text is a sequence of tokens, numbers below V. GPT-2 turns each token into a vector of C
 * channels, lets every vector read itself and those before it, L times, and then scores each of the
 * V tokens as the next one. A batch of N tokens, with the parameters of GPT-2 124M (V = 50257, T =
 * 1024, C = 768, H = 12, L = 12):
 *
 *    tokens (N)                                                     parameters
 *       |
 *    wte[token] + wpe[position]                                     V C + T C     39,383,808
 *       |
 *    x (N, C)                     the residual stream
 *       |----> LayerNorm          (N, C)                            2 C                1,536
 *       |      QKV                (N, 3C)                           3C (C + 1)     1,771,776
 *       |      attention          (N, C)    reads rows up to here                          0
 *       |      projection         (N, C)                            C (C + 1)        590,592
 *       + <------'
 *       |                                                                  this block L times
 *       |----> LayerNorm          (N, C)                            2 C                1,536
 *       |      fc                 (N, 4C)                           4C (C + 1)     2,362,368
 *       |      GELU               (N, 4C)                                                  0
 *       |      projection         (N, C)                            C (4C + 1)     2,360,064
 *       + <------'
 *       |
 *    ln_f -> hidden (N, C)                                          2 C                1,536
 *       |----> logits (N, V) = hidden wte^T            the language model's head, tied to wte: 0
 *       '----> scores (B, K) = last hidden score^T     a classifier's: K C
 *                                                        in all, with 12 blocks  124,439,808
 *
 * Letters: T context length, C channels, H heads, D = C / H, V vocabulary, L layers,
 * N rows (one row is one token), B sequences in a batch, K classes, OC output channels. x is an
 * input, y an output, dx = dLoss/dx. test/reference.h has each layer as plain loops, named plain_
 * and the layer; `make lesson` prints every number of a small model on its way through them, and
 * how closely the functions of this file agree. The matrix w of a linear layer is (C, OC), as at
 * Hugging Face, so that y = x w + b; in llm.c the same matrix is (OC, C). */

#ifndef MODEL_H
#define MODEL_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each program uses a part of this header. Initialisers leave out the members that are 0. */
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#ifdef __clang__
#pragma GCC diagnostic ignored "-Wpass-failed"      /* a loop too short for vectors */
#endif

#ifdef _OPENMP
#include <omp.h>
static int thread_count(void)       /* within a region the maximum is that of one inside it */
{
    return omp_in_parallel() ? omp_get_num_threads() : omp_get_max_threads();
}
static int thread_index(void) { return omp_get_thread_num(); }
#else
#pragma GCC diagnostic ignored "-Wunknown-pragmas"
static int thread_count(void) { return 1; }
static int thread_index(void) { return 0; }
#endif

/* ============================================================================================= */
/* I. THE MODEL                                                                                  */
/* ============================================================================================= */

#ifndef REAL
#define REAL float
#endif
typedef REAL real;          /* -DREAL=double: for comparing gradients with finite differences */

static inline int min_int(int a, int b) { return a < b ? a : b; }
static inline int max_int(int a, int b) { return a > b ? a : b; }
static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

/* ============================================================================================= */
/* 1. Layers                                                                                     */
/* ============================================================================================= */

/* A batch is N rows, one for each token, and a list of sequences: sequence s is the rows
 * starts[s] .. starts[s+1]-1, so starts[0] = 0 and starts[B] = N. Sequences may differ in length,
 * and there is no padding. Only positions and attention depend on where sequences begin.
 *
 * The backward function of a layer comes after its forward function and applies the chain rule.
 * Gradients of parameters are added to (+=): a step sums over batches, and wte is used twice.
 * So are those of the residual stream, which feeds a LayerNorm and also the next +, and of hidden,
 * which may feed two heads. Every other gradient has one source and is set (=). */
struct Batch {
    int rows, sequences;        /* N, B */
    int *tokens;                /* (N) */
    int *starts;                /* (B + 1) */
    int *targets;               /* (N): of each row the next token, or of each sequence its label */
    int max_rows;               /* as many as batch_create took memory for */
};

/* --- Embedding; plain twin: plain_embedding --- */

/* x (C) = wte[token] + wpe[position]: what the token is, and its place in the sequence, from 0.
 *   wte (V, C)   wpe (T, C) */
static inline void embed(real *x, int token, int position, const real *wte, const real *wpe, int C)
{
    const real *what = wte + (size_t)token * C, *where = wpe + (size_t)position * C;
    for (int c = 0; c < C; c++) x[c] = what[c] + where[c];
}

/* x (N, C): all rows of a batch. */
static void embedding_forward(real *x, const struct Batch *batch, const real *wte, const real *wpe,
                              int C)
{
    #pragma omp parallel for schedule(static)
    for (int s = 0; s < batch->sequences; s++)
        for (int start = batch->starts[s], n = start; n < batch->starts[s + 1]; n++)
            embed(x + (size_t)n * C, batch->tokens[n], n - start, wte, wpe, C);
}

/* dwte[token of n] += dx[n]    dwpe[position of n] += dx[n]
 * Rows that share a token add to the same place. Each thread therefore takes some channels of all
 * rows, and adds the rows in their order: no two threads write to one value. */
static void embedding_backward(real *dwte, real *dwpe, const real *dx, const struct Batch *batch,
                               int C)
{
    enum { CHANNELS = 64 };
    #pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < C; c0 += CHANNELS) {
        const int c1 = min_int(C, c0 + CHANNELS);
        for (int n = 0, s = 0; n < batch->rows; n++) {
            while (n == batch->starts[s + 1]) s++;
            real *dtoken = dwte + (size_t)batch->tokens[n] * C,
                 *dposition = dwpe + (size_t)(n - batch->starts[s]) * C;
            const real *dxn = dx + (size_t)n * C;
            for (int c = c0; c < c1; c++) dtoken[c] += dxn[c];
            for (int c = c0; c < c1; c++) dposition[c] += dxn[c];
        }
    }
}

/* --- LayerNorm (Ba, Kiros, Hinton 2016); plain twin: plain_layernorm --- */

#define LAYERNORM_EPS ((real)1e-5)

/* Each row is normalised over its channels to mean 0 and variance 1, then scaled and shifted.
 *   x, y (N, C)   w, b (C)   mean, rstd (N): stored for the backward pass
 *   var(x) = avg((x - mean)^2)               rstd = 1 / sqrt(var(x) + eps)
 *   xhat = (x - mean) rstd                   y = w xhat + b */
static void layernorm_forward(real *y, real *mean, real *rstd, const real *x, const real *w,
                              const real *b, int N, int C)
{
    #pragma omp parallel for schedule(static)
    for (int n = 0; n < N; n++) {
        const real *xn = x + (size_t)n * C;
        real *yn = y + (size_t)n * C, sum = 0, square = 0;
        #pragma omp simd reduction(+: sum)
        for (int c = 0; c < C; c++) sum += xn[c];
        const real m = mean[n] = sum / C;
        #pragma omp simd reduction(+: square)
        for (int c = 0; c < C; c++) square += (xn[c] - m) * (xn[c] - m);
        const real r = rstd[n] = 1 / (real)sqrt(square / C + LAYERNORM_EPS);
        for (int c = 0; c < C; c++) yn[c] = w[c] * ((xn[c] - m) * r) + b[c];
    }
}

/* g = w dy is the gradient at xhat. Mean and rstd depend on the whole row, hence the averages:
 *   dx += rstd (g - avg(g) - xhat avg(g xhat))    dw += sum_n dy xhat    db += sum_n dy
 * Threads share out rows for dx, then channels for dw and db. */
static void layernorm_backward(real *dx, real *dw, real *db, const real *dy, const real *x,
                               const real *w, const real *mean, const real *rstd, int N, int C)
{
    enum { CHANNELS = 32 };
    #pragma omp parallel
    {
        #pragma omp for schedule(static) nowait
        for (int n = 0; n < N; n++) {
            const real *xn = x + (size_t)n * C, *dyn = dy + (size_t)n * C, m = mean[n], r = rstd[n];
            real *dxn = dx + (size_t)n * C, sum = 0, dot = 0;
            #pragma omp simd reduction(+: sum, dot)
            for (int c = 0; c < C; c++) {
                sum += w[c] * dyn[c];
                dot += w[c] * dyn[c] * (xn[c] - m);
            }
            const real average = sum / C, slope = dot * r * r / C;
            for (int c = 0; c < C; c++)
                dxn[c] += r * (w[c] * dyn[c] - average - (xn[c] - m) * slope);
        }
        #pragma omp for schedule(static)
        for (int c0 = 0; c0 < C; c0 += CHANNELS) {
            const int channels = min_int(CHANNELS, C - c0);
            real sum_w[CHANNELS] = {0}, sum_b[CHANNELS] = {0};
            for (int n = 0; n < N; n++) {
                const real *xn = x + (size_t)n * C + c0, *dyn = dy + (size_t)n * C + c0,
                           m = mean[n], r = rstd[n];
                for (int c = 0; c < channels; c++) {
                    sum_w[c] += dyn[c] * ((xn[c] - m) * r);
                    sum_b[c] += dyn[c];
                }
            }
            for (int c = 0; c < channels; c++) { dw[c0 + c] += sum_w[c]; db[c0 + c] += sum_b[c]; }
        }
    }
}

/* --- Linear; plain twin: plain_linear --- */

/* Element (i, j) is at[i * row + j * column]. */
struct Matrix { const real *at; size_t row, column; };
static inline struct Matrix matrix(const real *at, size_t columns)      /* row-major */
{
    return (struct Matrix){at, columns, 1};
}
static inline struct Matrix transposed(struct Matrix a)
{
    return (struct Matrix){a.at, a.column, a.row};
}

/* c (M, N) = start (M, N) + bias (N) + a (M, K) b (K, N). start and bias may be NULL, start may be
 * c. M rows, N columns and K terms are BLAS's letters; they mean this in matrix products alone. A
 * row of c has the same bits for any M and any number of threads. Section 8 has gemm and gemv. */
static void gemm(real *c, struct Matrix a, struct Matrix b, const real *start, const real *bias,
                 int M, int N, int K);

/* The same for one row x (K), faster; the sums are added in another order than gemm's. */
static void gemv(real *y, const real *x, struct Matrix b, const real *start, const real *bias,
                 int N, int K);

/* y = residual + x w + b.   x (N, C)   w (C, OC)   b (OC)   y (N, OC)
 * residual (N, OC): the residual stream that y adds to, or NULL for 0. */
static void linear_forward(real *y, const real *residual, const real *x, const real *w,
                           const real *b, int N, int C, int OC)
{
    gemm(y, matrix(x, C), matrix(w, OC), residual, b, N, OC, C);
}

/* dx = dy w^T */
static void linear_backward_input(real *dx, const real *dy, const real *w, int N, int C, int OC)
{
    gemm(dx, matrix(dy, OC), transposed(matrix(w, OC)), NULL, NULL, N, C, OC);
}

/* dw += x^T dy    db += sum_n dy */
static void linear_backward_weights(real *dw, real *db, const real *dy, const real *x, int N, int C,
                                    int OC)
{
    enum { CHANNELS = 64 };
    gemm(dw, transposed(matrix(x, C)), matrix(dy, OC), dw, NULL, C, OC, N);
    #pragma omp parallel for schedule(static)
    for (int c0 = 0; c0 < OC; c0 += CHANNELS) {
        const int channels = min_int(CHANNELS, OC - c0);
        real sum[CHANNELS] = {0};
        for (int n = 0; n < N; n++)
            for (int c = 0; c < channels; c++) sum[c] += dy[(size_t)n * OC + c0 + c];
        for (int c = 0; c < channels; c++) db[c0 + c] += sum[c];
    }
}

/* --- GELU, tanh form (Hendrycks and Gimpel 2016): x times a gate; plain twin: plain_gelu --- */

static inline real exp_real(real x);    /* exp, which vectorises; NaN stays NaN (section 6) */

/* y = x/2 (1 + tanh u) = x s    u = sqrt(2/pi) (x + 0.044715 x^3)    s = 1 / (1 + exp(-2u))
 * This is s. */
static inline real gelu_gate(real x)
{
    const real u2 = (real)(2 * 0.7978845608028654) * (x + (real)0.044715 * x * x * x);
    return 1 / (1 + exp_real(-u2));
}

/* y, x (n): n = N * 4C values. */
static void gelu_forward(real *y, const real *x, size_t n)
{
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) y[i] = x[i] * gelu_gate(x[i]);
}

/* dx = dy gelu'(x), in place: dx holds dy before.    y = gelu(x), for the gradient of mlp_proj_w.
 *   gelu'(x) = s + x s (1 - s) 2 du/dx      du/dx = sqrt(2/pi) (1 + 3 * 0.044715 x^2) */
static void gelu_backward(real *dx, real *y, const real *x, size_t n)
{
    #pragma omp parallel for simd schedule(static)
    for (size_t i = 0; i < n; i++) {
        const real s = gelu_gate(x[i]);
        const real du2 = (real)(2 * 0.7978845608028654) * (1 + (real)(3 * 0.044715) * x[i] * x[i]);
        y[i] = x[i] * s;
        dx[i] *= s + x[i] * s * (1 - s) * du2;
    }
}

/* --- Dropout (Srivastava et al. 2014): each value is kept with probability 1 - p --- */

/* No mask is stored: each of its factors is a function of a key and of the number of the value, so
 * that the backward pass computes the same mask again. p = 0: no dropout. The key of a pass gives
 * each place of each layer (-1: the embedding) a key of its own. */
struct Dropout { double p; uint64_t key; };
enum { AT_EMBEDDING, AT_ATTENTION, AT_ATTENTION_PROJECTION, AT_MLP_PROJECTION, DROPOUT_PLACES };

static uint64_t mix64(uint64_t x);              /* a hash, which looks random (section 6) */

static struct Dropout dropout_at(struct Dropout pass, int layer, int place)
{
    const uint64_t number = (uint64_t)layer * DROPOUT_PLACES + place + 1;
    return (struct Dropout){pass.p, mix64(pass.key + mix64(number))};
}

/* A hash of 32 bits (Wellons, "Prospecting for Hash Functions", 2018), which vectorises. */
static inline uint32_t mix32(uint32_t x)
{
    x = (x ^ x >> 16) * 0x7FEB352Du;
    x = (x ^ x >> 15) * 0x846CA68Bu;
    return x ^ x >> 16;
}

/* Factor of value number `index`: 0 with probability p, otherwise 1 / (1 - p), on average 1. */
static inline real mask_factor(struct Dropout d, uint32_t index)
{
    const uint32_t bits = mix32(mix32(index) ^ (uint32_t)d.key);
    return bits >= (uint32_t)(d.p * 4294967295.0) ? (real)(1 / (1 - d.p)) : 0;
}

/* y (n) = residual + mask x; residual may be NULL. It serves backward, too: dx = mask dy. */
static void dropout(real *y, const real *residual, const real *x, size_t n, struct Dropout d)
{
    #pragma omp parallel for simd schedule(static) firstprivate(d)
    for (size_t i = 0; i < n; i++)
        y[i] = (residual ? residual[i] : 0) + x[i] * mask_factor(d, (uint32_t)i);
}

/* --- Attention: causal, H heads (Vaswani et al. 2017); plain twin: plain_attention --- */

/* Row i asks with its query q_i; row j answers with its value v_j as much as its key k_j fits:
 *
 *   S_ij = q_i . k_j / sqrt(D)   for j <= i in the same sequence: no row sees a later one (causal)
 *   P_ij = exp(S_ij) / sum_j exp(S_ij) = exp(S_ij - lse_i)        lse_i = log sum_j exp(S_ij)
 *   y_i  = sum_j P_ij v_j
 *
 * qkv (N, 3C): q, k and v of each row; head h has the channels hD .. hD+D-1 of each of the three.
 * y (N, C): the heads side by side. If q and k have independent entries of variance 1, q . k has
 * variance D, and 1 / sqrt(D) makes it 1. */

static inline real dot_product(const real *a, const real *b, int n)
{
    real sum = 0;
    #pragma omp simd reduction(+: sum)
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* x (n) becomes total exp(scale x_i) / sum_j exp(scale x_j), which is positive and sums to `total`.
 * Returns log sum_j exp(scale x_j). To subtract the maximum first changes no quotient, and then exp
 * cannot overflow. */
static inline double softmax(real *x, real scale, real total, int n)
{
    real max = -INFINITY, sum = 0;
    #pragma omp simd reduction(max: max)
    for (int i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
    #pragma omp simd reduction(+: sum)
    for (int i = 0; i < n; i++) { x[i] = exp_real(scale * (x[i] - max)); sum += x[i]; }
    const real factor = total / sum;
    for (int i = 0; i < n; i++) x[i] *= factor;
    return scale * max + log(sum);
}

/* Loads n values into the cache: rows of qkv lie apart, so the processor foresees no next one. */
static inline void prefetch(const real *x, int n)
{
    for (int i = 0; i < n; i += 64 / sizeof(real)) __builtin_prefetch(x + i, 0, 2);
}

/* Heads h0 .. h1 - 1 of one row, the last of n rows of one sequence: its query, and the keys and
 * values of all.   y (C): of that row   qkv (n, 3C)   P (H, n): of each head the row's P
 * The heads of a row lie side by side, so they take turns at each key and at each value. */
static void attention_heads(real *y, real *P, const real *qkv, int n, int C, int D, int h0, int h1)
{
    enum { AHEAD = 4 };                         /* rows */
    const int begin = h0 * D, channels = (h1 - h0) * D;
    const size_t next = 3 * (size_t)C;          /* from a row of qkv to the next */
    const real *q = qkv + (n - 1) * next, *k = qkv + C, *v = qkv + 2 * C;
    for (int j = 0; j < n; j++, k += next) {                            /* q . k_j */
        prefetch(k + AHEAD * next + begin, channels);
        for (int h = h0; h < h1; h++)
            P[(size_t)h * n + j] = dot_product(q + h * D, k + h * D, D);
    }
    for (int h = h0; h < h1; h++) softmax(P + (size_t)h * n, 1 / (real)sqrt(D), 1, n);
    for (int c = begin; c < begin + channels; c++) y[c] = 0;
    for (int j = 0; j < n; j++, v += next) {                            /* y = sum_j P_j v_j */
        prefetch(v + AHEAD * next + begin, channels);
        for (int h = h0; h < h1; h++) {
            const real p = P[(size_t)h * n + j];
            for (int c = h * D; c < (h + 1) * D; c++) y[c] += p * v[c];
        }
    }
}

/* Attention of one row, all heads, as generation computes it: qkv is its key-value cache. */
static void attention_row(real *y, real *P, const real *qkv, int n, int C, int H)
{
    const int share = ceil_div(H, thread_count());          /* heads of a thread */
    #pragma omp parallel for schedule(static)
    for (int h = 0; h < H; h += share)
        attention_heads(y, P, qkv, n, C, C / H, h, min_int(H, h + share));
}

/* Attention of all N rows of a batch, as attention_row computes it for each, but in blocks of rows,
 * whose scores are matrix products (section 9). Dropout multiplies P by a mask before the weighted
 * sum.   y (N, C)   lse (N, H): stored for the backward pass   qkv (N, 3C) */
static void attention_forward(real *y, real *lse, const real *qkv, const struct Batch *batch, int C,
                              int H, struct Dropout d);

/* With dP = dy v^T and delta_i = sum_j P_ij dP_ij, without dropout:
 *   dv = P^T dy    dS_ij = P_ij (dP_ij - delta_i)    dq = dS k / sqrt(D)    dk = dS^T q / sqrt(D)
 * dqkv (N, 3C) is set. P is computed again from lse, as in FlashAttention (Dao et al. 2022). These
 * equations as plain loops: plain_attention_backward in test/reference.h. */
static void attention_backward(real *dqkv, const real *dy, const real *y, const real *qkv,
                               const real *lse, const struct Batch *batch, int C, int H,
                               struct Dropout d);

/* ============================================================================================= */
/* 2. Parameters                                                                                 */
/* ============================================================================================= */

/* In config.json: n_layer, n_head, n_embd, n_positions, vocab_size; id2label has the K names.
 * labels 0: a language model. Otherwise also a classifier. */
struct Config {
    int layers, heads, channels, context, vocabulary, labels;       /* L, H, C, T, V, K */
    char **label_names;             /* (K) */
};

/* The weights of one block, or their gradients. */
struct Block {
    real *ln1_w, *ln1_b;                /* (C) (C) */
    real *qkv_w, *qkv_b;                /* (C, 3C) (3C) */
    real *attn_proj_w, *attn_proj_b;    /* (C, C) (C) */
    real *ln2_w, *ln2_b;                /* (C) (C) */
    real *fc_w, *fc_b;                  /* (C, 4C) (4C) */
    real *mlp_proj_w, *mlp_proj_b;      /* (4C, C) (C) */
};

struct Weights {
    real *wte, *wpe;                /* (V, C) (T, C) */
    struct Block *blocks;           /* (L) */
    real *lnf_w, *lnf_b;            /* (C) (C) */
    real *score_w;                  /* (K, C) */
};

/* One row of the list of parameters. Initialisation, AdamW, checkpoint and tests walk that list. */
struct Tensor {
    char name[64];              /* Hugging Face's */
    size_t offset, size;        /* its first value in weights, grads, m and v; number of values */
    int rows, columns;          /* a vector has 1 row */
    bool decay;                 /* weight decay pulls it towards 0: if it is a matrix */
    enum Init { ZEROS, ONES, NORMAL, RESIDUAL } init;   /* its first values */
    float lr_scale;             /* factor of its learning rate; 0: frozen */
    int layer;                  /* -1: embeddings, 0 .. L-1: blocks, L: ln_f and score */
};

struct Model {
    struct Config config;
    struct Tensor *tensors;     /* (tensor_count): the list of parameters */
    int tensor_count;
    size_t parameter_count;     /* values in all tensors */
    real *weights;              /* (parameter_count) */
    real *grads, *m, *v;        /* (parameter_count) each: gradients, AdamW's two moments */
    struct Weights w, dw;       /* places of the tensors in weights and in grads */
    int first_layer;            /* first block that learns; 0: the embeddings learn, too */
    double beta1, beta2;        /* AdamW's */
    real *muon;                 /* (6 C^2): scratch of muon_step; NULL: AdamW for all */
    double *partial_sums;       /* (chunks): of grad_norm, at most SUM_CHUNK values in each */
};

/* Appends a tensor to the list and returns its place in the array `at`, or NULL if that is NULL. A
 * %d in its name is the number of the block. */
static real *add(struct Model *model, real *at, int layer, int rows, int columns, enum Init init,
                 const char *name)
{
    struct Tensor *t = &model->tensors[model->tensor_count++];
    *t = (struct Tensor){.offset = model->parameter_count, .size = (size_t)rows * columns,
                         .rows = rows, .columns = columns, .decay = init >= NORMAL, .init = init,
                         .lr_scale = 1, .layer = layer};
    snprintf(t->name, sizeof t->name, name, layer);
    model->parameter_count += t->size;
    return at ? at + t->offset : NULL;
}

/* Fills the model's list of parameters, in the order of the file. Sets *w to the places in the
 * array `at`, or to NULL if that is NULL.
 *
 * First values: biases 0, LayerNorm's scales 1, matrices normal with standard deviation 0.02. The
 * two projections of a block add to the residual stream, 2L terms in all, and variances of
 * independent terms add up: RESIDUAL has a deviation smaller by 1 / sqrt(2L), which keeps the
 * stream's variance independent of depth. Weight decay is for matrices only: the neutral value of
 * LayerNorm's scale is 1, not 0, and biases are few. The head of the language model is not in the
 * list: it is wte again (tied, Press and Wolf 2017), so that a token's score is the dot product of
 * hidden with its embedding, and V C parameters are saved. */
static void list_parameters(struct Model *model, struct Weights *w, real *at)
{
    const struct Config *c = &model->config;
    const int C = c->channels, L = c->layers;
    model->tensor_count = 0;
    model->parameter_count = 0;
    w->wte = add(model, at, -1, c->vocabulary, C, NORMAL, "transformer.wte.weight");
    w->wpe = add(model, at, -1, c->context, C, NORMAL, "transformer.wpe.weight");
    for (int l = 0; l < L; l++) {
        struct Block *b = &w->blocks[l];
        b->ln1_w = add(model, at, l, 1, C, ONES, "transformer.h.%d.ln_1.weight");
        b->ln1_b = add(model, at, l, 1, C, ZEROS, "transformer.h.%d.ln_1.bias");
        b->qkv_w = add(model, at, l, C, 3 * C, NORMAL, "transformer.h.%d.attn.c_attn.weight");
        b->qkv_b = add(model, at, l, 1, 3 * C, ZEROS, "transformer.h.%d.attn.c_attn.bias");
        b->attn_proj_w = add(model, at, l, C, C, RESIDUAL, "transformer.h.%d.attn.c_proj.weight");
        b->attn_proj_b = add(model, at, l, 1, C, ZEROS, "transformer.h.%d.attn.c_proj.bias");
        b->ln2_w = add(model, at, l, 1, C, ONES, "transformer.h.%d.ln_2.weight");
        b->ln2_b = add(model, at, l, 1, C, ZEROS, "transformer.h.%d.ln_2.bias");
        b->fc_w = add(model, at, l, C, 4 * C, NORMAL, "transformer.h.%d.mlp.c_fc.weight");
        b->fc_b = add(model, at, l, 1, 4 * C, ZEROS, "transformer.h.%d.mlp.c_fc.bias");
        b->mlp_proj_w = add(model, at, l, 4 * C, C, RESIDUAL, "transformer.h.%d.mlp.c_proj.weight");
        b->mlp_proj_b = add(model, at, l, 1, C, ZEROS, "transformer.h.%d.mlp.c_proj.bias");
    }
    w->lnf_w = add(model, at, L, 1, C, ONES, "transformer.ln_f.weight");
    w->lnf_b = add(model, at, L, 1, C, ZEROS, "transformer.ln_f.bias");
    if (c->labels) w->score_w = add(model, at, L, c->labels, C, NORMAL, "score.weight");
}

/* ============================================================================================= */
/* 3. The trunk: embedding, L blocks, ln_f                                                       */
/* ============================================================================================= */

/* The activations of one block that its backward pass needs: 10 C values a row, and a few more. The
 * outputs of LayerNorm and GELU are cheap and are computed again. */
struct Activations {
    real *x;                    /* (N, C): input of the block */
    real *mean1, *rstd1;        /* (N) (N) */
    real *qkv;                  /* (N, 3C) */
    real *lse;                  /* (N, H) */
    real *att;                  /* (N, C): output of attention */
    real *x2;                   /* (N, C): the residual stream between attention and MLP */
    real *mean2, *rstd2;        /* (N) (N) */
    real *fc;                   /* (N, 4C): input of GELU */
};

/* The memory of a pass over a batch. WORK_EVAL has the activations of one block, which all blocks
 * share; a block then replaces its own input, which it has last read for x2. WORK_CACHE also has
 * the qkv of every block (the key-value cache), WORK_TRAIN all activations of every block that
 * learns. */
struct Workspace {
    enum { WORK_EVAL, WORK_CACHE, WORK_TRAIN } kind;
    int max_rows;                       /* the largest N */
    struct Activations *activations;    /* (L + 1); the last has x, mean1 and rstd1 of ln_f */
    struct Dropout dropout;             /* of the last forward pass: backward has the same masks */
    real *ln, *gelu;            /* (N, C) (N, 4C): scratch within a block */
    real *hidden, *dhidden;     /* (N, C) each: output of the trunk; its gradient, from the heads */
    real *dx;                   /* (N, C): gradient of the residual stream */
    real *dbranch, *dqkv, *dfc; /* (N, C) (N, 3C) (N, 4C): gradients within a block */
    real *logits, *losses;      /* (lm_chunk, V) (N) */
    size_t bytes;               /* of all arrays above: one memory, which begins with activations */
};

/* y = x + mask (a w + b): a (N, in) is projected into the residual stream x (N, C). Since a block
 * adds to x instead of replacing it, the + hands the gradient on to every earlier block. */
static void residual_forward(real *y, const real *x, const real *a, const real *w, const real *b,
                             int N, int in, int C, struct Dropout d)
{
    linear_forward(y, d.p > 0 ? NULL : x, a, w, b, N, in, C);
    if (d.p > 0) dropout(y, x, y, (size_t)N * C, d);
}

/* One block, with weights W1 to W4 and biases b1 to b4 (and dropout on both added terms):
 *   x2 = x + attention(LN1(x) W1 + b1) W2 + b2      out = x2 + GELU(LN2(x2) W3 + b3) W4 + b4
 * Attention moves information between rows. The MLP works on each row. Plain twin: plain_block. */
static void block_forward(real *out, const struct Block *b, struct Activations *a,
                          struct Workspace *ws, const struct Batch *batch, const struct Config *c,
                          int layer)
{
    const int N = batch->rows, C = c->channels;

    layernorm_forward(ws->ln, a->mean1, a->rstd1, a->x, b->ln1_w, b->ln1_b, N, C);
    linear_forward(a->qkv, NULL, ws->ln, b->qkv_w, b->qkv_b, N, C, 3 * C);
    attention_forward(a->att, a->lse, a->qkv, batch, C, c->heads,
                      dropout_at(ws->dropout, layer, AT_ATTENTION));
    residual_forward(a->x2, a->x, a->att, b->attn_proj_w, b->attn_proj_b, N, C, C,
                     dropout_at(ws->dropout, layer, AT_ATTENTION_PROJECTION));

    layernorm_forward(ws->ln, a->mean2, a->rstd2, a->x2, b->ln2_w, b->ln2_b, N, C);
    linear_forward(a->fc, NULL, ws->ln, b->fc_w, b->fc_b, N, C, 4 * C);
    gelu_forward(ws->gelu, a->fc, (size_t)N * 4 * C);
    residual_forward(out, a->x2, ws->gelu, b->mlp_proj_w, b->mlp_proj_b, N, 4 * C, C,
                     dropout_at(ws->dropout, layer, AT_MLP_PROJECTION));
}

/* A batch through blocks from .. to - 1, so that a frozen part can be computed once. from = 0
 * begins with the embedding; otherwise activations[from].x holds the input. The output is
 * activations[to].x. Returns ln_f of it, hidden (N, C), as if the network ended there; dhidden is
 * cleared for the heads. p: the probability of dropout, 0 for evaluation; key names the masks. */
static const real *blocks_forward(const struct Model *model, struct Workspace *ws,
                                  const struct Batch *batch, double p, uint64_t key, int from,
                                  int to)
{
    const struct Config *c = &model->config;
    const struct Weights *w = &model->w;
    const int N = batch->rows, C = c->channels;
    struct Activations *a = ws->activations;
    ws->dropout = (struct Dropout){p, key};
    if (from == 0) embedding_forward(a[0].x, batch, w->wte, w->wpe, C);
    if (from == 0 && p > 0)
        dropout(a[0].x, NULL, a[0].x, (size_t)N * C, dropout_at(ws->dropout, -1, AT_EMBEDDING));
    for (int l = from; l < to; l++)
        block_forward(a[l + 1].x, &w->blocks[l], &a[l], ws, batch, c, l);
    layernorm_forward(ws->hidden, a[to].mean1, a[to].rstd1, a[to].x, w->lnf_w, w->lnf_b, N, C);
    if (ws->kind == WORK_TRAIN) memset(ws->dhidden, 0, (size_t)N * C * sizeof(real));
    return ws->hidden;
}

/* The hidden states (N, C) of a batch: the whole trunk. */
static const real *trunk_forward(const struct Model *model, struct Workspace *ws,
                                 const struct Batch *batch, double p, uint64_t key)
{
    return blocks_forward(model, ws, batch, p, key, 0, model->config.layers);
}

/* --- One more token, for generation --- */

/* The equations of block_forward for one row x (C), which becomes the output. qkv (n + 1, 3C): the
 * cache, which holds the n rows before it. The time goes into reading the weights: gemv. */
static void block_next(real *x, real *qkv, int n, const struct Block *b, struct Workspace *ws,
                       const struct Config *c)
{
    const int C = c->channels;
    const struct Activations *a = &ws->activations[0];          /* scratch */

    layernorm_forward(ws->ln, a->mean1, a->rstd1, x, b->ln1_w, b->ln1_b, 1, C);
    gemv(qkv + (size_t)n * 3 * C, ws->ln, matrix(b->qkv_w, 3 * C), NULL, b->qkv_b, 3 * C, C);
    attention_row(a->att, ws->gelu, qkv, n + 1, C, c->heads);   /* P (H, n + 1): scratch, too */
    gemv(x, a->att, matrix(b->attn_proj_w, C), x, b->attn_proj_b, C, C);

    layernorm_forward(ws->ln, a->mean2, a->rstd2, x, b->ln2_w, b->ln2_b, 1, C);
    gemv(a->fc, ws->ln, matrix(b->fc_w, 4 * C), NULL, b->fc_b, 4 * C, C);
    gelu_forward(ws->gelu, a->fc, 4 * C);
    gemv(x, ws->gelu, matrix(b->mlp_proj_w, C), x, b->mlp_proj_b, C, 4 * C);
}

/* The hidden state (C) of a token after n others, which trunk_forward (one sequence, without
 * dropout) and trunk_next have read with this workspace. Needs WORK_CACHE, n < max_rows, n < T. */
static const real *trunk_next(const struct Model *model, struct Workspace *ws, int token, int n)
{
    const struct Config *c = &model->config;
    const struct Weights *w = &model->w;
    struct Activations *a = ws->activations;
    embed(a[0].x, token, n, w->wte, w->wpe, c->channels);
    for (int l = 0; l < c->layers; l++)
        block_next(a[0].x, a[l].qkv, n, &w->blocks[l], ws, c);
    layernorm_forward(ws->hidden, a[0].mean1, a[0].rstd1, a[0].x, w->lnf_w, w->lnf_b, 1,
                      c->channels);
    return ws->hidden;
}

/* --- Backward: the same lines in reverse --- */

/* The gradient at the input of a dropout, from ws->dx (N, C) at its output: mask dx, in ws->ln, or
 * dx itself if there is no dropout. */
static const real *dropout_backward(struct Workspace *ws, int N, int C, int layer, int place)
{
    if (ws->dropout.p == 0) return ws->dx;
    dropout(ws->ln, NULL, ws->dx, (size_t)N * C, dropout_at(ws->dropout, layer, place));
    return ws->ln;
}

/* ws->dx: from the gradient at the output of the block to that at its input, in place. The + of
 * the residual stream hands it on unchanged, and each branch adds what comes through its LayerNorm.
 * d collects the gradients of the block's weights. ws->gelu and ws->ln are computed again. */
static void block_backward(struct Block *d, const struct Block *b, struct Activations *a,
                           struct Workspace *ws, const struct Batch *batch,
                           const struct Config *c, int layer)
{
    const int N = batch->rows, C = c->channels;

    const real *dproj = dropout_backward(ws, N, C, layer, AT_MLP_PROJECTION);
    linear_backward_input(ws->dfc, dproj, b->mlp_proj_w, N, 4 * C, C);
    gelu_backward(ws->dfc, ws->gelu, a->fc, (size_t)N * 4 * C);
    linear_backward_weights(d->mlp_proj_w, d->mlp_proj_b, dproj, ws->gelu, N, 4 * C, C);
    layernorm_forward(ws->ln, a->mean2, a->rstd2, a->x2, b->ln2_w, b->ln2_b, N, C);
    linear_backward_input(ws->dbranch, ws->dfc, b->fc_w, N, C, 4 * C);
    linear_backward_weights(d->fc_w, d->fc_b, ws->dfc, ws->ln, N, C, 4 * C);
    layernorm_backward(ws->dx, d->ln2_w, d->ln2_b, ws->dbranch, a->x2, b->ln2_w, a->mean2, a->rstd2,
                       N, C);

    dproj = dropout_backward(ws, N, C, layer, AT_ATTENTION_PROJECTION);
    linear_backward_input(ws->dbranch, dproj, b->attn_proj_w, N, C, C);
    linear_backward_weights(d->attn_proj_w, d->attn_proj_b, dproj, a->att, N, C, C);
    attention_backward(ws->dqkv, ws->dbranch, a->att, a->qkv, a->lse, batch, C, c->heads,
                       dropout_at(ws->dropout, layer, AT_ATTENTION));
    layernorm_forward(ws->ln, a->mean1, a->rstd1, a->x, b->ln1_w, b->ln1_b, N, C);
    linear_backward_input(ws->dbranch, ws->dqkv, b->qkv_w, N, C, 3 * C);
    linear_backward_weights(d->qkv_w, d->qkv_b, ws->dqkv, ws->ln, N, C, 3 * C);
    layernorm_backward(ws->dx, d->ln1_w, d->ln1_b, ws->dbranch, a->x, b->ln1_w, a->mean1, a->rstd1,
                       N, C);
}

/* From ws->dhidden, which the heads have filled, to the gradients of ln_f, of the blocks from
 * first_layer on, and, if that is 0, of the embeddings. batch: that of the forward pass. */
static void trunk_backward(struct Model *model, struct Workspace *ws, const struct Batch *batch)
{
    const struct Config *c = &model->config;
    const int N = batch->rows, C = c->channels, L = c->layers;
    const struct Activations *last = &ws->activations[L];
    memset(ws->dx, 0, (size_t)N * C * sizeof(real));
    layernorm_backward(ws->dx, model->dw.lnf_w, model->dw.lnf_b, ws->dhidden, last->x,
                       model->w.lnf_w, last->mean1, last->rstd1, N, C);
    for (int l = L - 1; l >= model->first_layer; l--)
        block_backward(&model->dw.blocks[l], &model->w.blocks[l], &ws->activations[l], ws, batch,
                       c, l);
    if (model->first_layer > 0) return;
    embedding_backward(model->dw.wte, model->dw.wpe,
                       dropout_backward(ws, N, C, -1, AT_EMBEDDING), batch, C);
}

/* ============================================================================================= */
/* 4. Heads and losses                                                                           */
/* ============================================================================================= */

/* Softmax and cross-entropy of one row of logits (V): returns -log p(target) = lse - logit[target].
 * In place of the logits comes the gradient of scale times that, which is scale (p -
 * onehot(target)): softmax gives p times scale. A negative target has no loss, and its gradient is
 * 0 p, in which a NaN stays visible. Plain twin: plain_head. */
static double cross_entropy(real *logits, int target, real scale, int V)
{
    const real wanted = target < 0 ? 0 : logits[target];
    const double lse = softmax(logits, 1, target < 0 ? 0 : scale, V);
    if (target < 0) return 0;
    logits[target] -= scale;
    return lse - wanted;
}

/* The language model's head predicts the next token of each row. Of rows n0 .. n0 + n - 1:
 *   logits = hidden wte^T        losses, and dlogits in the place of logits */
static void lm_rows_forward(const struct Model *model, struct Workspace *ws, const int *targets,
                            real scale, int n0, int n)
{
    const int C = model->config.channels, V = model->config.vocabulary;
    const struct Matrix hidden = matrix(ws->hidden + (size_t)n0 * C, C);
    gemm(ws->logits, hidden, transposed(matrix(model->w.wte, C)), NULL, NULL, n, V, C);
    #pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++)
        ws->losses[n0 + i] = (real)cross_entropy(ws->logits + (size_t)i * V, targets[n0 + i],
                                                 scale, V);
}

/* dhidden += dlogits wte    dwte += dlogits^T hidden */
static void lm_rows_backward(struct Model *model, struct Workspace *ws, int n0, int n)
{
    const int C = model->config.channels, V = model->config.vocabulary;
    const struct Matrix hidden = matrix(ws->hidden + (size_t)n0 * C, C),
                        dlogits = matrix(ws->logits, V);
    real *dhidden = ws->dhidden + (size_t)n0 * C, *dwte = model->dw.wte;
    gemm(dhidden, dlogits, matrix(model->w.wte, C), dhidden, NULL, n, C, V);
    gemm(dwte, transposed(dlogits), hidden, dwte, NULL, V, C, n);
}

/* Rows of logits at a time: about 16 MB, but at least 256 (of GPT-2's 51 MB), for fast products. */
static int lm_chunk(int rows, int V) { return min_int(rows, max_int(256, (4 << 20) / V)); }

/* After trunk_forward. targets (N): the token that follows each row in the text, also after the
 * last row of a sequence; negative: does not count. Returns the sum of -log p(target), and adds the
 * gradient of scale * sum. The loss of a step is the mean, so its scale is 1 / (targets that
 * count); with scale 0 there is no gradient. */
static double lm_head(struct Model *model, struct Workspace *ws, const struct Batch *batch,
                      const int *targets, real scale)
{
    const int chunk = lm_chunk(ws->max_rows, model->config.vocabulary);
    double sum = 0;
    for (int n0 = 0; n0 < batch->rows; n0 += chunk) {
        const int n = min_int(chunk, batch->rows - n0);
        lm_rows_forward(model, ws, targets, scale, n0, n);
        if (scale != 0) lm_rows_backward(model, ws, n0, n);
    }
    for (int n = 0; n < batch->rows; n++) sum += ws->losses[n];
    return sum;
}

/* logits (V) of one hidden state (C), for generation. */
static void lm_logits(real *logits, const struct Model *model, const real *hidden)
{
    const int C = model->config.channels, V = model->config.vocabulary;
    gemv(logits, hidden, transposed(matrix(model->w.wte, C)), NULL, NULL, V, C);
}

/* The classifier's head, after trunk_forward. The class of a sequence is read at its last row, the
 * only one that has read all others.
 *   scores (B, K) = hidden[last] score_w^T      loss_s = -class_weights[label_s] log p_s(label_s)
 *   dscore_sk = scale class_weights[label_s] (p_sk - onehot(label_s)_k)
 * labels (B), negative: no loss, or NULL: none at all. class_weights (K), or NULL: all 1.
 * probabilities (B, K), or NULL. Returns the sum of losses; scale as in lm_head. */
static double class_head(struct Model *model, struct Workspace *ws, const struct Batch *batch,
                         const int *labels, const real *class_weights, real scale,
                         real *probabilities)
{
    const int C = model->config.channels, K = model->config.labels;
    const real *score = model->w.score_w;
    real p[K];
    double sum = 0;
    for (int s = 0; s < batch->sequences; s++) {
        const size_t last = (size_t)(batch->starts[s + 1] - 1) * C;
        const real *h = ws->hidden + last;
        const int label = labels ? labels[s] : -1;
        for (int k = 0; k < K; k++) p[k] = dot_product(h, score + (size_t)k * C, C);
        const real wanted = label < 0 ? 0 : p[label];
        const double lse = softmax(p, 1, 1, K);
        if (probabilities) memcpy(probabilities + (size_t)s * K, p, K * sizeof(real));
        if (label < 0) continue;
        const real weight = class_weights ? class_weights[label] : 1;
        sum += weight * (lse - wanted);
        for (int k = 0; k < K && scale != 0; k++) {
            const real dscore = scale * weight * (p[k] - (k == label));
            real *dh = ws->dhidden + last, *dw = model->dw.score_w + (size_t)k * C;
            for (int c = 0; c < C; c++) {
                dh[c] += dscore * score[(size_t)k * C + c];
                dw[c] += dscore * h[c];
            }
        }
    }
    return sum;
}

/* ============================================================================================= */
/* 5. AdamW and Muon                                                                             */
/* ============================================================================================= */

/* A step of training, as the programs put it together (train_gpt.c, pretrain):
 *   trunk_forward    hidden                       of each batch of the step
 *   lm_head          loss, dhidden
 *   trunk_backward   grads
 *   grad_norm        |grads|; grad_scale = min(1, clip / |grads|), so that no step is too long
 *   adamw_step       weights; grads are 0 again
 *   muon_step        the matrices of the blocks, where they do not learn by AdamW
 * Usual values: lr 1e-3 for small models, b1 0.9, b2 0.95 to 0.999, decay 0.1, clip 1. */

/* Whether Muon (below) moves this tensor: a matrix of a block, if the run has chosen it. */
static bool by_muon(const struct Model *model, const struct Tensor *t)
{
    return model->muon && t->rows > 1 && t->layer >= 0 && t->layer < model->config.layers;
}

/* AdamW (Loshchilov and Hutter 2019; plain_adamw), for every weight that learns; g = grad_scale
 * times its gradient.
 * m averages g, v averages g^2; both begin at 0, and the division by 1 - b^t corrects for that.
 *   m = b1 m + (1 - b1) g          v = b2 v + (1 - b2) g^2             t = step, from 1
 *   w -= lr lr_scale (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay w)
 * The decay of matrices stands outside of m and v: that is the W; of vectors it is 0. While
 * gradients are steady, a weight moves by about lr, whatever their size. The gradients are 0
 * afterwards: they are in cache here, and a pass of its own would read and write them again. Those
 * of weights that do not learn stay: nothing reads them. Of what muon_step moves, b1 is 0.95,
 * v stays 0, and the gradient becomes b1 m + (1 - b1) g, Nesterov's momentum. */
static void adamw_step(struct Model *model, double lr, double grad_scale, double weight_decay,
                       int64_t step)
{
    const real b2 = (real)model->beta2, eps = (real)1e-8, clip = (real)grad_scale;
    const real correct1 = (real)(1 / (1 - pow(model->beta1, step))),
               correct2 = (real)(1 / (1 - pow(model->beta2, step)));
    #pragma omp parallel
    for (int i = 0; i < model->tensor_count; i++) {
        const struct Tensor *t = &model->tensors[i];
        real *w = model->weights + t->offset, *m = model->m + t->offset, *v = model->v + t->offset;
        real *grad = model->grads + t->offset;
        const real rate = (real)(lr * t->lr_scale), decay = t->decay ? (real)weight_decay : 0;
        const bool whole = by_muon(model, t);
        const real b1 = (real)(whole ? 0.95 : model->beta1);
        if (t->lr_scale == 0) continue;
        #pragma omp for simd schedule(static) nowait
        for (size_t k = 0; k < t->size; k++) {
            const real g = clip * grad[k];
            m[k] = b1 * m[k] + (1 - b1) * g;
            grad[k] = whole ? b1 * m[k] + (1 - b1) * g : 0;
            if (whole) continue;
            v[k] = b2 * v[k] + (1 - b2) * g * g;
            w[k] -= rate * (correct1 * m[k] / ((real)sqrt(correct2 * v[k]) + eps) + decay * w[k]);
        }
    }
}

/* --- Muon (Jordan 2024): of pretraining, for the matrices of the blocks, instead of AdamW --- */

/* A gradient has its length in few directions, and AdamW, which looks at each weight alone, leaves
 * most of it there. Muon gives all directions one length: of u = P S Q^T, the singular value
 * decomposition of the averaged gradient, it takes P Q^T, without computing one. Five times
 *   x = (a + b x x^T + c (x x^T)^2) x           a = 3.4445   b = -4.7750   c = 2.0315
 * makes of each singular value s of x the value a s + b s^3 + c s^5. Those of u / |u| are 0 to 1;
 * all that are at least 0.0015 end between 0.68 and 1.21. P and Q stay.
 *
 * x (R, N) is lost, y (R, N) has the result, since 5 is odd. gram (2 n^2), n = min(R, N): scratch
 * for x x^T, or x^T x if that is smaller, and for the bracket. */
static void orthogonalize(real *y, real *x, real *gram, int R, int N)
{
    const int n = min_int(R, N);
    real *sum = gram + (size_t)n * n;
    const struct Matrix g = matrix(gram, n), bracket = matrix(sum, n);
    for (int i = 0; i < 5; i++) {
        real *from = i % 2 ? y : x, *to = i % 2 ? x : y;
        const struct Matrix m = matrix(from, N), wide = R <= N ? m : transposed(m);
        gemm(gram, wide, transposed(wide), NULL, NULL, n, n, max_int(R, N));
        gemm(sum, g, g, NULL, NULL, n, n, n);
        #pragma omp parallel for simd schedule(static)
        for (size_t k = 0; k < (size_t)n * n; k++)
            sum[k] = (real)2.0315 * sum[k] - (real)4.7750 * gram[k];
        for (int k = 0; k < n; k++) sum[(size_t)k * n + k] += (real)3.4445;
        gemm(to, R <= N ? bracket : m, R <= N ? m : bracket, NULL, NULL, R, N, n);
    }
}

/* The values of model.muon: of orthogonalize's y (C, 4C) and gram. */
static size_t muon_scratch(const struct Config *c) { return 6 * (size_t)c->channels * c->channels; }

/* After adamw_step, for whole matrices w (R, N), which all learn, and whose gradients are 0 then:
 *   w -= lr (0.2 sqrt(max(R, N)) P Q^T + decay w)
 * P Q^T has a root mean square of 1 / sqrt(max(R, N)), and AdamW's steps have about 0.2 lr: with
 * the factor both take the same lr and decay (Liu et al. 2025). Only weights `begin` to `end` are
 * wanted: matrices outside stay as they are. */
static void muon_step(struct Model *model, double lr, double weight_decay, size_t begin, size_t end)
{
    for (int i = 0; i < model->tensor_count; i++) {
        const struct Tensor *t = &model->tensors[i];
        if (!by_muon(model, t)) continue;
        real *w = model->weights + t->offset, *u = model->grads + t->offset, *y = model->muon;
        if (t->offset + t->size <= begin || t->offset >= end) {
            memset(u, 0, t->size * sizeof *u);
            continue;
        }
        double squares = 1e-30;                         /* so that 0 stays 0 */
        for (int r = 0; r < t->rows; r++) {
            const real *row = u + (size_t)r * t->columns;
            squares += dot_product(row, row, t->columns);
        }
        const real unit = (real)(1 / sqrt(squares)), decay = (real)(lr * weight_decay),
                   rate = (real)(lr * 0.2 * sqrt(max_int(t->rows, t->columns)));
        #pragma omp parallel for simd schedule(static)
        for (size_t k = 0; k < t->size; k++) u[k] *= unit;
        orthogonalize(y, u, y + t->size, t->rows, t->columns);
        #pragma omp parallel for simd schedule(static)
        for (size_t k = 0; k < t->size; k++) {
            w[k] -= rate * y[k] + decay * w[k];
            u[k] = 0;
        }
    }
}

/* Proximal fine-tuning, after adamw_step: the exact minimum over w of
 *   |w - w_adamw|^2 / (2 rate) + lambda/2 |w - source|^2         rate = lr lr_scale
 * which pulls every weight but the new head's towards where it came from (L2-SP, Li et al. 2018; as
 * a proximal map, Parikh and Boyd 2014), stable for any lambda:
 *   w = source + (w_adamw - source) / (1 + rate lambda)
 * source: the weights of the pretrained model, whose list is the same up to the head. */
static void proximal_step(struct Model *model, const real *source, double lr, double lambda)
{
    #pragma omp parallel
    for (int i = 0; i < model->tensor_count; i++) {
        const struct Tensor *t = &model->tensors[i];
        real *w = model->weights + t->offset;
        const real *origin = source + t->offset, keep = (real)(1 / (1 + lr * t->lr_scale * lambda));
        if (t->lr_scale == 0 || !strcmp(t->name, "score.weight")) continue;
        #pragma omp for simd schedule(static) nowait
        for (size_t k = 0; k < t->size; k++) w[k] = origin[k] + keep * (w[k] - origin[k]);
    }
}

/* The learning rate of a step, 1 .. steps: linear warm-up from lr / warmup to lr, and then lr times
 * r + (1 - r) height, where r = min_ratio, and t goes from 0 to 1 after the warm-up:
 *   constant   height = 1
 *   cosine     height = (1 + cos(pi t)) / 2
 *   wsd        height = 1 while t <= 0.8, then 1 - sqrt((t - 0.8) / 0.2): warm-up, stable, decay
 *              (Hagele et al. 2024) */
static double learning_rate(const char *schedule, int64_t step, int64_t steps, int64_t warmup,
                            double lr, double min_ratio)
{
    if (step <= warmup) return lr * step / warmup;
    double t = steps > warmup ? (double)(step - warmup) / (steps - warmup) : 1, height = 1;
    if (t > 1) t = 1;
    if (!strcmp(schedule, "cosine")) height = (1 + cos(M_PI * t)) / 2;
    if (!strcmp(schedule, "wsd") && t > 0.8) height = 1 - sqrt((t - 0.8) / 0.2);
    return lr * (min_ratio + (1 - min_ratio) * height);
}

enum { SUM_CHUNK = 1 << 14 };

/* The sums of g^2 over chunks of the gradients of all weights that learn, into partial_sums in the
 * order of the list. Returns their number. */
static int square_sums(const struct Model *model)
{
    int count = 0;
    for (int i = 0; i < model->tensor_count; i++) {
        const struct Tensor *t = &model->tensors[i];
        const real *g = model->grads + t->offset;
        const int chunks = (int)((t->size + SUM_CHUNK - 1) / SUM_CHUNK);
        if (t->lr_scale == 0) continue;
        #pragma omp parallel for schedule(static) if(chunks > 1)
        for (int chunk = 0; chunk < chunks; chunk++) {
            const size_t begin = (size_t)chunk * SUM_CHUNK,
                         end = begin + SUM_CHUNK < t->size ? begin + SUM_CHUNK : t->size;
            real sum = 0;
            #pragma omp simd reduction(+: sum)
            for (size_t k = begin; k < end; k++) sum += g[k] * g[k];
            model->partial_sums[count + chunk] = sum;
        }
        count += chunks;
    }
    return count;
}

/* sqrt(sum of g^2); NaN and infinity come through. Threads share out chunks, whose sums are then
 * added in their order: so the norm has the same bits for any number of threads. */
static double grad_norm(const struct Model *model)
{
    const int count = square_sums(model);
    double total = 0;
    for (int i = 0; i < count; i++) total += model->partial_sums[i];
    return sqrt(total);
}

/* ============================================================================================= */
/* II. THE ENGINE                                                                                */
/* ============================================================================================= */

#if defined(__FAST_MATH__) || __FINITE_MATH_ONLY__
#error "build without -ffast-math and -Ofast: they lose NaN, by which a failed step is known"
#endif

/* What only parts II and III need. */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* What part III lends to part II. */
enum { STATUS_FAILED = 1, STATUS_USAGE = 2 };
__attribute__((noreturn)) static void end_with(int status, const char *message);
__attribute__((format(printf, 1, 2))) static char *brief(const char *format, ...);
static char *harmless(char *text);
#define MESSAGE(...) harmless(brief(__VA_ARGS__))
#define die(...) end_with(STATUS_FAILED, MESSAGE(__VA_ARGS__))
static double seconds(void);

/* ============================================================================================= */
/* 6. Numbers                                                                                    */
/* ============================================================================================= */

/* --- Random numbers: value `counter` of stream `key`; the two are the whole state --- */

struct Random { uint64_t key, counter; };

/* splitmix64's output function (Steele, Lea, Flood 2014): a hash in which every bit of x changes
 * every bit of the result with probability 1/2. */
static uint64_t mix64(uint64_t x)
{
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

/* Streams of one seed are independent of each other. */
static struct Random random_stream(uint64_t seed, uint64_t stream)
{
    return (struct Random){mix64(mix64(seed + 0x9E3779B97F4A7C15u) + stream), 0};
}

static uint64_t random_bits(struct Random *r)
{
    return mix64(r->key + 0x9E3779B97F4A7C15u * ++r->counter);
}

static double random_uniform(struct Random *r) { return (random_bits(r) >> 11) * 0x1p-53; }

/* Box and Muller 1958: one coordinate of a point with random radius and angle. */
static double random_normal(struct Random *r)
{
    double u = 1 - random_uniform(r), angle = 2 * M_PI * random_uniform(r);
    return sqrt(-2 * log(u)) * cos(angle);
}

/* 0 .. n-1. Values from the largest multiple of n on are drawn again, so all are equally likely. */
static uint64_t random_below(struct Random *r, uint64_t n)
{
    uint64_t x, beyond = UINT64_MAX - UINT64_MAX % n;
    do x = random_bits(r); while (x >= beyond);
    return x % n;
}

/* Fisher and Yates: every order is equally likely. */
static void shuffle(int *items, int n, struct Random *r)
{
    for (int i = n - 1; i > 0; i--) {
        int j = (int)random_below(r, (uint64_t)i + 1), t = items[i];
        items[i] = items[j];
        items[j] = t;
    }
}

/* --- exp, without branches or calls, so that loops over it vectorise --- */

/* exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln 2 / 2. Relative error below 2e-7.
 *
 * Adding 1.5 * 2^23 rounds to an integer and leaves n in the low bits of the sum, from where it is
 * shifted into the exponent. ln 2 is subtracted in two parts, so that r keeps its digits. exp(r) is
 * a polynomial of degree 6. x below -87 gives about 1e-38, x above 88.3 about 2e38. NaN stays NaN.
 *
 * The bounds are applied to the bits of x, since GCC turns integer minima into vector code:
 * positive floats are ordered like signed integers, negative floats like unsigned integers in
 * reverse. */
static inline float exp_float(float x)
{
    union { float f; int32_t i; uint32_t u; }
        upper = {88.3f}, lower = {-87.0f}, bounded = {x}, n, scale;
    bounded.i = bounded.i < upper.i ? bounded.i : upper.i;
    bounded.u = bounded.u < lower.u ? bounded.u : lower.u;
    n.f = bounded.f * 1.44269504f + 12582912.0f;
    float whole = n.f - 12582912.0f;
    float r = bounded.f - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    scale.u = (n.u + 127) << 23;
    return x == x ? p * scale.f : x;
}

static inline real exp_real(real x)
{
    return sizeof(real) == sizeof(float) ? (real)exp_float((float)x) : (real)exp(x);
}

/* --- Vectors: the types of GCC and Clang, as wide as the machine's registers --- */

/* For what is compiled anew wherever it is called, with the constants of the call. */
#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, TILE_ROWS = 12 };         /* 32 registers: 24 sums, 2 of b, 1 of a */
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, TILE_ROWS = 6 };          /* 16 registers: 12 sums, 2 of b, 1 of a */
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, TILE_ROWS = 10 };         /* 32 registers: 20 sums, 2 of b, 10 of a */
#else
enum { VECTOR_BYTES = 16, TILE_ROWS = 6 };          /* 16 registers, as with AVX */
#endif
enum { LANES = VECTOR_BYTES / sizeof(real), TILE_VECTORS = 2, TILE_COLUMNS = TILE_VECTORS * LANES };
typedef real vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

/* --- Precision --- */

/* Of gemm's products; attention's stay FP32. BF16: factors are rounded to bfloat16, the upper half
 * of a float, with 8 bits of precision. A product of two such numbers is exact in a float, and sums
 * stay floats. BF16_TILES: the same factors, multiplied by the AMX unit of Intel's processors,
 * which adds in another order. */
enum { FP32, BF16, BF16_TILES };
static int product_precision = FP32;

typedef uint32_t word __attribute__((may_alias));
typedef word words __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(word)), may_alias));

/* The upper half of a float's bits, rounded to nearest, ties to even. Infinity and NaN stay. */
static inline word bfloat16(word x)
{
    const bool is_nan = (x & 0x7fffffff) > 0x7f800000;
    return (is_nan ? x | 0x400000 : x + 0x7fff + (x >> 16 & 1)) >> 16;
}

/* sum + a b, for two bfloat16 in each 32 bits of a and b: the upper ones first, each product added
 * in one rounding. That is what the instruction does, but for numbers below 2^-126, which it takes
 * as 0. */
INLINE vec add_pairs(vec sum, words a, words b)
{
#if defined(__AVX512BF16__) && !defined(EMULATE_BF16)
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
    return sum;
#else
    sum += (vec)(a >> 16 << 16) * (vec)(b >> 16 << 16);
    return sum + (vec)(a << 16) * (vec)(b << 16);
#endif
}

/* The AMX unit multiplies matrices in its own registers, each of AMX rows of AMX times 32 bits.
 * amx_exists() asks Linux to let this process use it. A thread calls amx_begin() before its first
 * amx_tile() and amx_end() after its last. */
enum { AMX = 16, AMX_ROWS = 2 * AMX };
#if defined(__AVX512F__) && (defined(__AMX_BF16__) || defined(__AMXBF16__))    /* GCC, Clang */
#define AMX_UNIT
#include <sys/syscall.h>
static bool amx_exists(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA);
}

static void amx_begin(void)
{
    static const struct { uint8_t palette, zeros[15]; uint16_t row_bytes[16]; uint8_t rows[16]; }
        shapes = {1, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
}

static void amx_end(void) { __asm__ volatile("tilerelease"); }
#else
static bool amx_exists(void) { return false; }
static void amx_begin(void) {}
static void amx_end(void) {}
#endif

/* sum (AMX_ROWS, 2 AMX) = a b, of K slots, a multiple of AMX: a is (K / AMX, AMX_ROWS, AMX), b is
 * (K, 2 AMX). Of each AMX slots the products of lower terms are added from 0 on, in order, those of
 * upper terms, too, then the two to each other, and that to the sum so far; the unit takes numbers
 * below 2^-126 as 0. Without it only the test calls this, where vectors are those of AVX-512. */
static void amx_tile(real *sum, const real *a, const real *b, int K)
{
    enum { A_STEP = AMX_ROWS * AMX, B_STEP = AMX * 2 * AMX };
#ifdef AMX_UNIT
    const size_t a_row = AMX * sizeof(real), row = 2 * a_row;
    __asm__ volatile("tilezero %tmm0; tilezero %tmm1; tilezero %tmm2; tilezero %tmm3");
    for (int k = 0; k < K; k += AMX, a += A_STEP, b += B_STEP)
        __asm__ volatile("tileloadd (%0, %4), %%tmm4; tileloadd (%1, %4), %%tmm5;"
                         "tileloadd (%2, %5), %%tmm6; tileloadd (%3, %5), %%tmm7;"
                         "tdpbf16ps %%tmm6, %%tmm4, %%tmm0; tdpbf16ps %%tmm7, %%tmm4, %%tmm1;"
                         "tdpbf16ps %%tmm6, %%tmm5, %%tmm2; tdpbf16ps %%tmm7, %%tmm5, %%tmm3"
                         : : "r"(a), "r"(a + A_STEP / 2), "r"(b), "r"(b + AMX), "r"(a_row), "r"(row)
                         : "memory");
    __asm__ volatile("tilestored %%tmm0, (%0, %2); tilestored %%tmm1, 64(%0, %2);"
                     "tilestored %%tmm2, (%1, %2); tilestored %%tmm3, 64(%1, %2)"
                     : : "r"(sum), "r"(sum + AMX * 2 * AMX), "r"(row) : "memory");
#else
    memset(sum, 0, AMX_ROWS * 2 * AMX * sizeof(real));
    for (int k = 0; k < K; k += AMX, a += A_STEP, b += B_STEP)
        for (int i = 0; i < AMX_ROWS * 2 * AMX; i += LANES) {
            vec lower = {0}, upper = {0};
            for (int t = 0; t < AMX; t++) {
                const words x = (words){0} + *(const word *)(a + i / (2 * AMX) * AMX + t),
                            y = *(const words *)(b + t * 2 * AMX + i % (2 * AMX));
                lower += (vec)(x << 16) * (vec)(y << 16);
                upper += (vec)(x >> 16 << 16) * (vec)(y >> 16 << 16);
            }
            *(vec *)(sum + i) += lower + upper;
        }
#endif
}

/* FLOP/s of multiply-adds on registers, all threads together: the peak that GEMM is compared with.
 * With the AMX unit it is twice that of FP32, about the most that memory lets a training reach: the
 * unit alone does 15 times that of FP32. The best of five attempts, each long enough for the system
 * to give every thread a core. */
static double fma_peak(void)
{
    enum { CHAINS = 12, STEPS = 1 << 23 };
    const bool bf16 = product_precision == BF16;
    double best = 0;
    for (int attempt = 0; attempt < 5; attempt++) {
        double start = seconds();
        #pragma omp parallel
        {
            vec x[CHAINS], factor = {0};
            factor += (real)(1e-7 * (1 + thread_index()));
            for (int c = 0; c < CHAINS; c++) x[c] = factor * (real)c;   /* no two chains alike */
            for (int i = 0; i < STEPS; i++)
                for (int c = 0; c < CHAINS; c++)
                    if (bf16) x[c] = add_pairs(x[c], (words)factor, (words)factor);
                    else x[c] += x[c] * factor;
            vec sum = x[0];
            for (int c = 1; c < CHAINS; c++) sum += x[c];
            __asm__ volatile("" : : "m"(sum));      /* the compiler must not drop the loop */
        }
        double rate = 2.0 * CHAINS * STEPS * LANES * thread_count() / (seconds() - start);
        if (product_precision != FP32) rate *= 2;
        if (rate > best) best = rate;
    }
    return best;
}

/* --- The time of each kind of work, for --profile --- */

/* A lap charges the time since the last one to a kind of work: the matrix products and attention
 * here, the others by the program. What is within one of those counts as that one alone. */
enum { REST, LINEAR, ATTENTION, HEAD, OPTIMIZER, KINDS };
enum { FORWARD, BACKWARD };
static struct { bool on; int within, direction; double last, seconds[KINDS][2]; } profile;

static void lap(int kind)
{
    if (!profile.on) return;
    const double now = seconds();
    if (profile.within) kind = profile.within;
    profile.seconds[kind][profile.direction] += now - profile.last;
    profile.last = now;
}

/* ============================================================================================= */
/* 7. Memory: never NULL, zeroed, aligned to 64 bytes                                            */
/* ============================================================================================= */

/* realloc; for what is not numbers. */
static void *resize(void *old, size_t bytes)
{
    void *p = realloc(old, bytes ? bytes : 1);
    if (!p)
        die("out of memory: %.1f MB more are needed. Use a smaller model, batch or text.",
            bytes / 1e6);
    return p;
}

/* The system provides each page on its first use, so unused parts take no memory. */
static void *allocate_zeroed(size_t bytes)
{
    const size_t size = bytes + 1;              /* no memory at all cannot be mapped */
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
    if (p == MAP_FAILED)
        die("out of memory: %.1f MB are needed. Use a smaller model, batch or text.", bytes / 1e6);
#ifdef MADV_HUGEPAGE
    if (size >= (size_t)2 << 20) madvise(p, size, MADV_HUGEPAGE);
#endif
    return p;
}

/* Frees memory of allocate_zeroed; NULL is allowed. */
static void release(void *p, size_t bytes) { if (p) munmap(p, bytes + 1); }

/* For what gemm and attention pack, one after the other. workspace_create reserves it, after
 * set_threads and before the first product; it only grows. */
static real *scratch;
static size_t scratch_size;             /* values */

static void reserve_scratch(size_t size)
{
    if (size <= scratch_size) return;
    release(scratch, scratch_size * sizeof(real));
    scratch = allocate_zeroed(size * sizeof(real));
    scratch_size = size;
}

/* ============================================================================================= */
/* 8. GEMM                                                                                       */
/* ============================================================================================= */

/* c = start + bias + a b, computed on tiles of c, TILE_ROWS x TILE_COLUMNS, whose sums stay in
 * registers while k runs. First a and b are copied ("packed") into panels, so that step k of a tile
 * reads TILE_ROWS consecutive values of a and TILE_COLUMNS of b, from cache (Goto and van de Geijn
 * 2008). With 6 x 16 tiles:
 *
 *     a, rows 0-5:       a00 a10 a20 a30 a40 a50 | a01 a11 a21 ...     one column after the other
 *     b, columns 0-15:   b00 b01 .. b0,15 | b10 b11 .. b1,15 | ...     one row after the other
 *
 * A matrix is an address and two strides, so packing also transposes. With BF16 it also rounds, and
 * each place of a panel, a slot, holds two terms of 16 bits. K is cut into blocks of at most
 * BLOCK_K slots, which depend on K alone. Threads share out tiles of c, never the terms of a sum: a
 * row of c has the same bits for any M and any number of threads. Plain twin: plain_linear. */
enum {
    BLOCK_K = VECTOR_BYTES == 64 ? 256 : 384,       /* a panel of b fits the first-level cache */
    BLOCK_N = TILE_COLUMNS * 4,                     /* a thread's packed b and a block of .. */
    BLOCK_M = TILE_ROWS * 8,                        /* .. packed a fit the second level */
    TASK_M = BLOCK_M * 16,                          /* most rows of c in a share */
    CHUNK_M = BLOCK_M * 48                          /* all packed rows of a fit the third level */
};

/* --- Slots: what a panel consists of --- */

/* With FP32 a slot is a term. With BF16 two terms of a block, k and k + half, share one:
 *
 *     slot k:   | term k + half | term k |       half = number of slots; the last term may be 0
 *
 * With BF16_TILES the number of slots is a multiple of AMX, and the last ones may be 0. */
static inline int slot_count(int terms, int precision)
{
    if (precision == BF16_TILES) return ceil_div(terms, 2 * AMX) * AMX;
    return precision == FP32 ? terms : ceil_div(terms, 2);
}

/* Of a tile. It has TILE_COLUMNS columns: with AVX-512 the 2 AMX of amx_tile(). */
static inline int tile_rows(int precision)
{
    return precision == BF16_TILES ? AMX_ROWS : TILE_ROWS;
}

/* The slot of the term at x and, if there is one, of that at x + pair; pair 0: the term itself. */
static inline real slot(const real *x, size_t pair, bool both)
{
    if (!pair) return *x;
    const word upper = both ? bfloat16(*(const word *)(x + pair)) : 0;
    const union { word bits; real value; } terms = {bfloat16(*(const word *)x) | upper << 16};
    return terms.value;
}

/* --- Packing --- */

/* What is packed: term k of line i is at[i * line + k * step]. */
struct Lines { const real *at; size_t line, step; int terms, precision; };

enum { SIDE = 16, GROUP = TILE_ROWS % 4 ? 2 : 4 };      /* of the blocks that are transposed */

/* The case of pack() with whole lines of consecutive values: GROUP lines at a time, of which SIDE
 * slots each are written as SIDE groups, which are copied to where they belong. Returns how many k
 * are done; the last ones are left to pack(). What comes next in each line is prefetched into the
 * second level of cache: lines a multiple of 4 KB apart share too few places of the first. */
INLINE int pack_columns(real *panel, const real *x, size_t line, size_t pair, int width, int K)
{
    int k = 0;
    for (; k + SIDE <= K; k += SIDE)
        for (int i0 = 0; i0 < width; i0 += GROUP) {
            real groups[SIDE][GROUP];
            for (int i = 0; i < GROUP; i++) {
                const real *ahead = x + (i0 + i) * line + k + 2 * SIDE;
                __builtin_prefetch(ahead, 0, 2);
                if (pair) __builtin_prefetch(ahead + pair, 0, 2);
            }
            for (int j = 0; j < SIDE; j++)
                for (int i = 0; i < GROUP; i++)
                    groups[j][i] = slot(x + (i0 + i) * line + k + j, pair, true);
            for (int j = 0; j < SIDE; j++)
                memcpy(panel + (size_t)(k + j) * width + i0, groups[j], sizeof groups[j]);
        }
    return k;
}

/* The case of pack() with whole lines side by side in memory (line = 1), so that slots are read as
 * they are written; those ahead are prefetched. Whole vectors are stored: what spills beyond the
 * panel's width is overwritten by the next slot. If any does, the last slot is left to pack(): x
 * may end behind it. */
INLINE int pack_rows(real *panel, const real *x, size_t step, size_t pair, int width, int K)
{
    enum { AHEAD = 16 };
    int k = 0;
    for (; k + (width % LANES != 0) < K; k++, x += step, panel += width)
        for (int i = 0; i < width; i += LANES) {
            __builtin_prefetch(x + AHEAD * step + i);
            if (pair) __builtin_prefetch(x + AHEAD * step + pair + i);
            #pragma omp simd
            for (int j = 0; j < LANES; j++) panel[i + j] = slot(x + i + j, pair, true);
        }
    return k;
}

/* Copies `count` <= width lines into the K slots of one panel: panel[k * width + i] = x(i, k), and
 * 0 for i >= count. pair: from one term of a slot to the other. */
INLINE void pack(real *panel, struct Lines x, size_t pair, int count, int width, int K)
{
    const int whole = pair ? x.terms - K : K;       /* slots with all their terms */
    int k0 = 0;
    if (count < width) memset(panel, 0, (size_t)width * K * sizeof(real));
    else if (x.line == 1) k0 = pack_rows(panel, x.at, x.step, pair, width, whole);
    else if (x.step == 1) k0 = pack_columns(panel, x.at, x.line, pair, width, whole);
    for (int i = 0; i < count; i++)
        for (int k = k0; k < K; k++)
            panel[(size_t)k * width + i] =
                k < x.terms ? slot(x.at + i * x.line + k * x.step, pair, k < whole) : 0;
}

/* Packs the lines of x, in panels one after the other; compiled for each precision. */
INLINE void pack_lines(real *panel, struct Lines x, int lines, int width)
{
    const int K = slot_count(x.terms, x.precision);
    for (; lines > 0; lines -= width, panel += (size_t)width * K, x.at += width * x.line)
        if (x.precision == FP32) pack(panel, x, 0, min_int(width, lines), width, K);
        else pack(panel, x, K * x.step, min_int(width, lines), width, K);
}

/* The same for one panel, of up to AMX_ROWS lines, as amx_tile() reads a: AMX slots of a line stand
 * side by side, so that to pack() these are the lines. */
static void pack_amx(real *panel, struct Lines x, int lines)
{
    const int K = slot_count(x.terms, BF16_TILES);
    const size_t pair = K * x.step;
    for (int k = 0; k < K; k += AMX, panel += AMX_ROWS * AMX, x.at += AMX * x.step)
        if (k + AMX <= x.terms - K)
            pack(panel, (struct Lines){x.at, x.step, x.line, 2 * lines, BF16}, pair, AMX, AMX,
                 lines);
        else for (int n = 0; n < lines * AMX; n++) {
            const int t = k + n % AMX;
            panel[n] = t < x.terms ? slot(x.at + n / AMX * x.line + n % AMX * x.step, pair,
                                          t + K < x.terms) : 0;
        }
}

/* --- Tiles --- */

/* The rows of a that a block of tiles reads: slot (i, k) of the tile that begins at row t is
 * at[t * next + i * row + k * column]. Packed: {panels, 1, TILE_ROWS, K, precision}. In place:
 * {a, a.row, 1, a.row, FP32}. With BF16_TILES at and next alone count: see pack_amx. */
struct Rows { const real *at; size_t row, column, next; int precision; };

/* One whole tile: c = a b, + bias (TILE_COLUMNS) and + start, laid out like c, unless these are
 * NULL. b is a packed panel. The first of each row of c is prefetched, to be in cache when the sums
 * are complete.
 *
 * The pragmas unroll the short loops early enough for GCC to keep `sum` in registers. They also
 * unroll four steps of k, so that loop control does not compete with the multiply-adds on a core
 * that two threads share. The empty asm keeps loads of step k + 1 out of step k, for which there
 * are no registers. */
INLINE void tile(real *c, size_t ldc, const real *a, size_t a_row, size_t a_column, const real *b,
                 const real *start, const real *bias, int K, int precision)
{
    enum { VECTORS = TILE_ROWS * TILE_VECTORS };
    vec sum[VECTORS];
    #pragma GCC unroll 32
    for (int t = 0; t < VECTORS; t++) {
        sum[t] = (vec){0};
        if (t % TILE_VECTORS == 0) __builtin_prefetch(c + t / TILE_VECTORS * ldc, 1);
    }
    #pragma GCC unroll 4
    for (int k = 0; k < K; k++, a += a_column, b += TILE_COLUMNS) {
        vec bk[TILE_VECTORS];
        #pragma GCC unroll 32
        for (int j = 0; j < TILE_VECTORS; j++) bk[j] = *(const vec *)(b + j * LANES);
        #pragma GCC unroll 32
        for (int t = 0; t < VECTORS; t++) {
            const real *at = a + t / TILE_VECTORS * a_row;
            if (precision == FP32) sum[t] += *at * bk[t % TILE_VECTORS];
            else sum[t] = add_pairs(sum[t], (words){0} + *(const word *)at,
                                    (words)bk[t % TILE_VECTORS]);
        }
        __asm__ volatile("" : : : "memory");
    }
    #pragma GCC unroll 32
    for (int t = 0; t < VECTORS; t++) {
        const size_t at = t / TILE_VECTORS * ldc + t % TILE_VECTORS * LANES;
        if (bias) sum[t] += *(const vec *)(bias + t % TILE_VECTORS * LANES);
        if (start) sum[t] += *(const vec *)(start + at);
        *(vec *)(c + at) = sum[t];
    }
}

/* The same, compiled for each precision and for each layout of a. */
static void whole_tile(real *c, size_t ldc, struct Rows a, const real *b, const real *start,
                       const real *bias, int K)
{
    if (a.precision == BF16) tile(c, ldc, a.at, 1, a.column, b, start, bias, K, BF16);
    else if (a.column == 1) tile(c, ldc, a.at, a.row, 1, b, start, bias, K, FP32);
    else tile(c, ldc, a.at, 1, a.column, b, start, bias, K, FP32);
}

/* A tile at the edge of c, of which m rows and n columns exist: the same sums in the same order.
 * And any tile of the AMX unit, which can only store its sums. */
static void tile_at_edge(real *c, size_t ldc, struct Rows a, const real *b, const real *start,
                         const real *bias, int m, int n, int K)
{
    real panel[TILE_ROWS * BLOCK_K], sum[AMX_ROWS * 2 * AMX];
    if (m < TILE_ROWS && a.column == 1) {
        pack(panel, (struct Lines){a.at, a.row, 1, K, FP32}, 0, m, TILE_ROWS, K);
        a = (struct Rows){panel, 1, TILE_ROWS, 0, FP32};
    }
    if (a.precision == BF16_TILES) amx_tile(sum, a.at, b, K);
    else whole_tile(sum, TILE_COLUMNS, a, b, NULL, NULL, K);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            const real with_bias = sum[i * TILE_COLUMNS + j] + (bias ? bias[j] : 0);
            c[i * ldc + j] = with_bias + (start ? start[i * ldc + j] : 0);
        }
}

/* c (m, n), rows ldc apart = start + bias + a b: the product of two blocks. Panels of b begin
 * b_slots x TILE_COLUMNS apart; of their b_slots slots the first K are used. */
static void tiles(real *c, size_t ldc, struct Rows a, const real *b, size_t b_slots,
                  const real *start, const real *bias, int m, int n, int K)
{
    const int most = tile_rows(a.precision);
    for (int j = 0; j < n; j += TILE_COLUMNS)
        for (int i = 0; i < m; i += most) {
            const size_t at = i * ldc + j;
            const int rows = min_int(most, m - i), columns = min_int(TILE_COLUMNS, n - j);
            const struct Rows ai = {a.at + i * a.next, a.row, a.column, 0, a.precision};
            const real *bj = b + j * b_slots, *start_j = start ? start + at : NULL,
                       *bias_j = bias ? bias + j : NULL;
            if (rows == TILE_ROWS && columns == TILE_COLUMNS && most == TILE_ROWS)
                whole_tile(c + at, ldc, ai, bj, start_j, bias_j, K);
            else tile_at_edge(c + at, ldc, ai, bj, start_j, bias_j, rows, columns, K);
        }
}

/* --- Products --- */

/* Packed a (CHUNK_M, BLOCK_K), which all threads share, then a packed b (BLOCK_K, BLOCK_N) for each
 * thread: values of scratch. */
static size_t gemm_scratch(void)
{
    return (CHUNK_M + (size_t)thread_count() * BLOCK_N) * BLOCK_K;
}

/* With so few columns of b, packing a costs more than it saves: with FP32 its rows, if they are
 * consecutive in memory, are read in place. */
enum { FEW_COLUMNS = 12 * TILE_COLUMNS };

/* A part of c (m, N) that a thread takes at a time, such that there are eight for each thread if c
 * is large enough. With few rows, columns are halved first: threads that share columns of b would
 * each pack them. */
struct Share { int rows, columns; };

static struct Share share_size(int m, int N)
{
    struct Share t = {TASK_M, BLOCK_N};
    const bool few_rows = m < thread_count() * BLOCK_M * 4;
    while (ceil_div(m, t.rows) * ceil_div(N, t.columns) < 8 * thread_count())
        if (few_rows && t.columns > TILE_COLUMNS) t.columns /= 2;
        else if (t.rows > BLOCK_M) t.rows /= 2;
        else break;
    return t;
}

/* See part I for the contract. Threads take shares as they become free. Each packs the columns of b
 * that it works on for itself, into its own cache. */
static void gemm(real *c, struct Matrix a, struct Matrix b, const real *start, const real *bias,
                 int M, int N, int K)
{
    lap(REST);
    real *packed_a = scratch;
    const int precision = product_precision, in_slot = precision == FP32 ? 1 : 2,
              blocks = max_int(1, ceil_div(K, BLOCK_K * in_slot)),
              step = max_int(1, ceil_div(ceil_div(K, blocks), in_slot)) * in_slot;
    const bool in_place = a.column == 1 && N <= FEW_COLUMNS && precision == FP32;

    #pragma omp parallel
    for (int k0 = 0, first = 1; k0 < K || first; k0 += step, first = 0)
    for (int m0 = 0; m0 < M; m0 += CHUNK_M) {
        const int terms = min_int(step, K - k0), k = slot_count(terms, precision),
                  m = min_int(CHUNK_M, M - m0);
        const real *ab = a.at + m0 * a.row + k0 * a.column, *bb = b.at + k0 * b.row,
                   *so_far = k0 ? c : start;
        const struct Rows rows = in_place ? (struct Rows){ab, a.row, 1, a.row, FP32}
                                          : (struct Rows){packed_a, 1, TILE_ROWS, k, precision};
        real *packed_b = packed_a + (CHUNK_M + (size_t)thread_index() * BLOCK_N) * BLOCK_K;
        const struct Share share = share_size(m, N);
        int packed_j = -1;
        if (precision == BF16_TILES) amx_begin();
        #pragma omp for schedule(static)
        for (int i = 0; i < (in_place ? 0 : m); i += tile_rows(precision)) {
            const struct Lines lines = {ab + i * a.row, a.row, a.column, terms, precision};
            const int count = min_int(tile_rows(precision), m - i);
            if (precision == BF16_TILES) pack_amx(packed_a + (size_t)i * k, lines, count);
            else pack_lines(packed_a + (size_t)i * k, lines, count, TILE_ROWS);
        }
        #pragma omp for schedule(dynamic) collapse(2)
        for (int j = 0; j < N; j += share.columns)
            for (int i0 = 0; i0 < m; i0 += share.rows) {
                const int n = min_int(share.columns, N - j);
                const struct Lines columns = {bb + j * b.column, b.column, b.row, terms, precision};
                if (packed_j != j) pack_lines(packed_b, columns, n, TILE_COLUMNS);
                packed_j = j;
                for (int i = i0; i < min_int(m, i0 + share.rows); i += BLOCK_M) {
                    const size_t at = (size_t)(m0 + i) * N + j;
                    const struct Rows block = {rows.at + i * rows.next, rows.row, rows.column,
                                               rows.next, precision};
                    tiles(c + at, N, block, packed_b, k, so_far ? so_far + at : NULL,
                          bias && k0 == 0 ? bias + j : NULL, min_int(BLOCK_M, m - i), n, k);
                }
            }
        if (precision == BF16_TILES) amx_end();
    }
    lap(LINEAR);
}

/* --- Products with one row: as fast as b comes from memory --- */

/* With BF16, generation keeps the weights a second time, rounded, in 16 bits, and gemv reads these:
 * half the memory, so up to twice as fast. A row x of one token stays as it is. */
static struct { const real *weights; uint16_t *rounded; size_t count; } kept;

static void keep_rounded(const real *weights, size_t count)
{
    release(kept.rounded, kept.count * sizeof *kept.rounded);
    kept.weights = weights;
    kept.count = count;
    kept.rounded = allocate_zeroed(count * sizeof *kept.rounded);
    #pragma omp parallel for schedule(static)
    for (size_t i = 0; i < count; i++)
        kept.rounded[i] = (uint16_t)bfloat16(*(const word *)(weights + i));
}

/* Values i, i + 1 .. of b, a vector of them; half: b in 16 bits, or NULL. */
INLINE vec values_at(const real *b, const uint16_t *half, size_t i)
{
    typedef uint16_t halves __attribute__((vector_size(VECTOR_BYTES / 2), aligned(2), may_alias));
    if (!half) return *(const vec *)(b + i);
    return (vec)(__builtin_convertvector(*(const halves *)(half + i), words) << 16);
}

INLINE real value_at(const real *b, const uint16_t *half, size_t i)
{
    return half ? ((vec)(words){(word)half[i] << 16})[0] : b[i];
}

/* Into the second level of cache: the first has no room for what is needed that much later. */
INLINE void prefetch_values(const real *b, const uint16_t *half, size_t i)
{
    __builtin_prefetch(half ? (const void *)(half + i) : b + i, 0, 2);
}

/* sum (n) += x (K) b (K, n), rows `row` apart: several rows of b at once, while the next are
 * prefetched. */
INLINE void gemv_rows(real *sum, const real *x, const real *b, const uint16_t *half, size_t row,
                      int n, int K)
{
    enum { ROWS = 16 };
    for (int k0 = 0; k0 < K; k0 += ROWS) {
        const int rows = min_int(ROWS, K - k0);
        const size_t at = k0 * row;
        int j = 0;
        for (; rows == ROWS && j + LANES <= n; j += LANES) {
            vec s = *(const vec *)(sum + j);
            #pragma GCC unroll 16
            for (int k = 0; k < ROWS; k++) {
                prefetch_values(b, half, at + (ROWS + k) * row + j);
                s += x[k0 + k] * values_at(b, half, at + k * row + j);
            }
            *(vec *)(sum + j) = s;
        }
        for (; j < n; j++)
            for (int k = 0; k < rows; k++)
                sum[j] += x[k0 + k] * value_at(b, half, at + k * row + j);
    }
}

/* The sum of x_k b_k: four vectors of sums, and the next line is prefetched. */
INLINE real gemv_dot(const real *x, const real *b, const uint16_t *half, int K)
{
    enum { SUMS = 4 };
    vec sums[SUMS] = {{0}};
    real sum = 0;
    int k = 0;
    for (; k + SUMS * LANES <= K; k += SUMS * LANES)
        #pragma GCC unroll 4
        for (int i = 0; i < SUMS; i++) {
            prefetch_values(b, half, k + i * LANES + (size_t)K);
            sums[i] += *(const vec *)(x + k + i * LANES) * values_at(b, half, k + i * LANES);
        }
    for (; k < K; k++) sum += x[k] * value_at(b, half, k);
    sums[0] += sums[1] + (sums[2] + sums[3]);
    for (int i = 0; i < LANES; i++) sum += sums[0][i];
    return sum;
}

/* y (N) = start + bias + x (K) b (K, N). One of b.row and b.column is 1. y may be start, but
 * not x. Pieces of y begin at multiples of 16, so that a sum has the same bits for any number of
 * threads. */
static void gemv(real *y, const real *x, struct Matrix b, const real *start, const real *bias,
                 int N, int K)
{
    const int columns = ceil_div(ceil_div(N, thread_count()), 16) * 16;
    const size_t from_kept = ((uintptr_t)b.at - (uintptr_t)kept.weights) / sizeof(real);
    const uint16_t *half = from_kept < kept.count ? kept.rounded + from_kept : NULL;
    #pragma omp parallel for schedule(static)
    for (int j0 = 0; j0 < N; j0 += columns) {
        const int n = min_int(columns, N - j0);
        real *sum = y + j0;
        for (int j = j0; j < j0 + n; j++) y[j] = (start ? start[j] : 0) + (bias ? bias[j] : 0);
        if (b.column == 1 && half) gemv_rows(sum, x, b.at, half + j0, b.row, n, K);
        else if (b.column == 1) gemv_rows(sum, x, b.at + j0, NULL, b.row, n, K);
        else for (int j = 0; j < n; j++) {
            const size_t at = (j0 + j) * b.column;
            sum[j] += half ? gemv_dot(x, b.at, half + at, K) : gemv_dot(x, b.at + at, NULL, K);
        }
    }
}

/* ============================================================================================= */
/* 9. Attention kernels                                                                          */
/* ============================================================================================= */

/* A thread takes one head of one sequence and works on blocks of QUERIES rows. It computes only the
 * keys up to the last row of the block. P exists for one block at a time.
 *
 * P is stored transposed, P[j * QUERIES + i] for key j and query i: softmax works on a vector of
 * queries at once, and each product below reads P in place. A panel of TILE_COLUMNS queries has the
 * keys up to its own last query. Keys after a query, and TILE_ROWS more, are set to 0: tiles that
 * lie across the diagonal then read zeros. Plain twin: plain_attention. */
enum { QUERIES = 64 };          /* a multiple of TILE_COLUMNS */

/* Head `number` of one sequence, and what a thread holds of it, packed as GEMM's a (_rows) or as
 * GEMM's b; P and dP are not. */
struct Head {
    int C, H, D, number;            /* channels, heads, D = C / H; 0 .. H - 1 */
    int start, T;                   /* the sequence: its first row, its number of rows */
    struct Dropout dropout;
    real *k_rows, *v_rows;          /* (T, D) */
    real *k_right, *v_right;        /* T terms, D columns */
    real *q, *dy;                   /* of a block: D terms, a column for each query */
    real *q_right, *dy_right;       /* of a block: a term for each query, D columns */
    real *P, *dP;                   /* (T + 2 TILE_ROWS, QUERIES) */
};

/* Values of each of the ten arrays: enough for the largest. What is not used takes no memory. */
static size_t head_array(int T, int D)
{
    return ((size_t)max_int(T, QUERIES) + 2 * TILE_ROWS) * ceil_div(D, QUERIES) * QUERIES;
}

/* Values of scratch that attention needs for sequences of up to `longest` rows. */
static size_t attention_scratch(int longest, int D)
{
    return 10 * head_array(longest, D) * thread_count();
}

/* Head h of sequence s, with the arrays in this thread's part of the scratch. */
static struct Head head_of(const struct Batch *batch, int s, int h, int C, int H, struct Dropout d)
{
    const int start = batch->starts[s], T = batch->starts[s + 1] - start, D = C / H;
    const size_t n = head_array(T, D);
    real *at = scratch + scratch_size / thread_count() / 16 * 16 * thread_index();
    return (struct Head){.C = C, .H = H, .D = D, .number = h, .start = start, .T = T, .dropout = d,
                         .k_rows = at, .v_rows = at + n, .k_right = at + 2 * n,
                         .v_right = at + 3 * n, .q = at + 4 * n, .dy = at + 5 * n,
                         .q_right = at + 6 * n, .dy_right = at + 7 * n, .P = at + 8 * n,
                         .dP = at + 9 * n};
}

/* S (keys, one panel of queries) = rows (keys, D) times a packed panel of D terms. */
static void attention_scores(real *S, const real *rows, const real *panel, int keys, int D)
{
    const int whole = ceil_div(keys, TILE_ROWS) * TILE_ROWS;
    tiles(S, QUERIES, (struct Rows){rows, 1, TILE_ROWS, D, FP32}, panel, D, NULL, NULL, whole,
          TILE_COLUMNS, D);
}

/* The causal mask: sets the scores of keys first + 1 .. keys - 1 that come after the query to
 * `value`, in a panel whose first query is row `first`. */
static void attention_mask(real *S, int first, int keys, real value)
{
    for (int j = first + 1; j < keys; j++) {
        real *s = S + (size_t)j * QUERIES;
        for (int i = 0; i < min_int(j - first, TILE_COLUMNS); i++) s[i] = value;
    }
}

/* P of one panel of queries, from the scores S with keys 0 .. keys-1, in place. Row `first` is the
 * first query. If lse is known, P = exp(scale S - lse). Otherwise sets lse and inverse = 1 / sum,
 * and P still lacks the factor inverse of its query, which the caller applies to y: y has fewer
 * values. */
static void attention_softmax(real *S, real *lse, real *inverse, bool known, real scale, int first,
                              int keys)
{
    real max[TILE_COLUMNS], sum[TILE_COLUMNS] = {0};
    if (!known) {
        for (int i = 0; i < TILE_COLUMNS; i++) max[i] = -INFINITY;
        attention_mask(S, first, keys, -INFINITY);
        for (int j = 0; j < keys; j++) {
            const real *s = S + (size_t)j * QUERIES;
            for (int i = 0; i < TILE_COLUMNS; i++) max[i] = s[i] > max[i] ? s[i] : max[i];
        }
    }
    for (int i = 0; i < TILE_COLUMNS; i++) max[i] = known ? lse[i] : scale * max[i];
    for (int j = 0; j < keys; j++) {
        real *s = S + (size_t)j * QUERIES;
        for (int i = 0; i < TILE_COLUMNS; i++) {
            s[i] = exp_real(scale * s[i] - max[i]);
            sum[i] += s[i];
        }
    }
    attention_mask(S, first, keys + TILE_ROWS, 0);
    for (int i = 0; i < TILE_COLUMNS && !known; i++) {
        lse[i] = max[i] + (real)log(sum[i]);
        inverse[i] = 1 / sum[i];
    }
}

/* Multiplies P of one panel of queries, or its gradient, by the dropout mask: every query has a key
 * of its own, and so a mask over its keys. The first query is row `first`. */
static void attention_dropout(real *P, const struct Head *w, int first, int keys)
{
    if (w->dropout.p == 0) return;
    struct Dropout d = w->dropout;
    uint32_t key[TILE_COLUMNS];
    for (int i = 0; i < TILE_COLUMNS; i++)
        key[i] = mix32((uint32_t)d.key + (uint32_t)((w->start + first + i) * w->H + w->number));
    for (int j = 0; j < keys; j++)
        for (int i = 0; i < TILE_COLUMNS; i++) {
            d.key = key[i];
            P[(size_t)j * QUERIES + i] *= mask_factor(d, j);
        }
}

/* out (n, D), rows ld apart, = P^T (n, keys) right (keys, D packed): query q0 + i of a sequence of
 * T rows needs the keys up to itself. */
static void attention_sum(real *out, size_t ld, const real *P, const real *right, int q0, int n,
                          int T, int D)
{
    for (int i = 0; i < n; i += TILE_ROWS)
        tiles(out + i * ld, ld, (struct Rows){P + i, 1, QUERIES, 0, FP32}, right, T, NULL, NULL,
              min_int(TILE_ROWS, n - i), D, min_int(q0 + n, q0 + i + TILE_ROWS));
}

/* out (keys, D), rows ld apart, = or += P (keys, n) right (n, D packed): key j is used by the
 * queries from itself on. */
static void attention_spread(real *out, size_t ld, const real *P, const real *right, bool add,
                             int q0, int n, int D)
{
    for (int j = 0; j < q0 + n; j += TILE_ROWS) {
        const int first = max_int(0, j - q0);
        tiles(out + j * ld, ld, (struct Rows){P + (size_t)j * QUERIES + first, QUERIES, 1, 0, FP32},
              right + first * TILE_COLUMNS, n, add ? out + j * ld : NULL, NULL,
              min_int(TILE_ROWS, q0 + n - j), D, n - first);
    }
}

/* One head: y, lse and qkv begin at its channels of the first row. */
static void attention_head_forward(real *y, real *lse, const real *qkv, struct Head *w)
{
    const int C = w->C, D = w->D, T = w->T, ld = 3 * C;
    const real scale = 1 / (real)sqrt(D), *q = qkv, *k = q + C, *v = k + C;
    real block_lse[QUERIES], inverse[QUERIES];
    pack_lines(w->k_rows, (struct Lines){k, ld, 1, D, FP32}, T, TILE_ROWS);
    pack_lines(w->v_right, (struct Lines){v, 1, ld, T, FP32}, D, TILE_COLUMNS);
    for (int q0 = 0; q0 < T; q0 += QUERIES, y += (size_t)QUERIES * C) {
        const int n = min_int(QUERIES, T - q0);
        pack_lines(w->q, (struct Lines){q + (size_t)q0 * ld, ld, 1, D, FP32}, n, TILE_COLUMNS);
        for (int i = 0; i < n; i += TILE_COLUMNS) {
            const int first = q0 + i, keys = min_int(q0 + n, first + TILE_COLUMNS);
            attention_scores(w->P + i, w->k_rows, w->q + i * D, keys, D);
            attention_softmax(w->P + i, block_lse + i, inverse + i, false, scale, first, keys);
            attention_dropout(w->P + i, w, first, keys);
        }
        attention_sum(y, C, w->P, w->v_right, q0, n, T, D);
        for (int i = 0; i < n; i++) {
            lse[(size_t)(q0 + i) * w->H] = block_lse[i];
            for (int c = 0; c < D; c++) y[(size_t)i * C + c] *= inverse[i];
        }
    }
}

/* Threads take heads of sequences as they become free. See part I for the contract. */
static void attention_forward(real *y, real *lse, const real *qkv, const struct Batch *batch, int C,
                              int H, struct Dropout d)
{
    lap(REST);
    #pragma omp parallel for schedule(dynamic) collapse(2)
    for (int s = 0; s < batch->sequences; s++)
        for (int h = 0; h < H; h++) {
            struct Head w = head_of(batch, s, h, C, H, d);
            const size_t row = w.start, channel = h * w.D;
            attention_head_forward(y + row * C + channel, lse + row * H + h,
                                   qkv + row * 3 * C + channel, &w);
        }
    lap(ATTENTION);
}

/* The gradient of softmax for one panel of queries, over dP in place: dS = scale P (dP - delta). */
static void attention_softmax_backward(real *dP, const real *P, const real *delta, real scale,
                                       int keys)
{
    for (int j = 0; j < keys; j++)
        for (int i = 0; i < TILE_COLUMNS; i++) {
            const size_t at = (size_t)j * QUERIES + i;
            dP[at] = scale * P[at] * (dP[at] - delta[i]);
        }
}

/* The block of n queries that begins with row q0; w holds the packed keys and values. The arrays
 * begin at the head's channels of the first row.
 *   dq = dS k      dk += dS^T q      dv += P^T dy      delta_i = sum_j P_ij dP_ij = dy_i . y_i
 * The last block reaches all keys, so it comes first and sets dk and dv instead. */
static void attention_block_backward(real *dqkv, const real *dy, const real *y, const real *qkv,
                                     const real *lse, struct Head *w, int q0)
{
    const int C = w->C, D = w->D, T = w->T, ld = 3 * C, n = min_int(QUERIES, T - q0);
    const bool add = q0 + n < T;
    const real scale = 1 / (real)sqrt(D), *q = qkv + (size_t)q0 * ld;
    real *dq = dqkv + (size_t)q0 * ld, *dk = dqkv + C, *dv = dk + C, block_lse[QUERIES] = {0},
         delta[QUERIES] = {0};
    dy += (size_t)q0 * C;
    y += (size_t)q0 * C;
    for (int i = 0; i < n; i++) {
        delta[i] = dot_product(dy + (size_t)i * C, y + (size_t)i * C, D);
        block_lse[i] = lse[(size_t)(q0 + i) * w->H];
    }
    pack_lines(w->q, (struct Lines){q, ld, 1, D, FP32}, n, TILE_COLUMNS);
    pack_lines(w->dy, (struct Lines){dy, C, 1, D, FP32}, n, TILE_COLUMNS);
    pack_lines(w->q_right, (struct Lines){q, 1, ld, n, FP32}, D, TILE_COLUMNS);
    pack_lines(w->dy_right, (struct Lines){dy, 1, C, n, FP32}, D, TILE_COLUMNS);
    for (int i = 0; i < n; i += TILE_COLUMNS) {
        const int first = q0 + i, keys = min_int(q0 + n, first + TILE_COLUMNS);
        attention_scores(w->P + i, w->k_rows, w->q + i * D, keys, D);
        attention_softmax(w->P + i, block_lse + i, NULL, true, scale, first, keys);
        attention_scores(w->dP + i, w->v_rows, w->dy + i * D, keys, D);
        attention_mask(w->dP + i, first, keys + TILE_ROWS, 0);
        attention_dropout(w->dP + i, w, first, keys);
        attention_softmax_backward(w->dP + i, w->P + i, delta + i, scale, keys);
        attention_dropout(w->P + i, w, first, keys);
    }
    attention_sum(dq, ld, w->dP, w->k_right, q0, n, T, D);
    attention_spread(dk, ld, w->dP, w->q_right, add, q0, n, D);
    attention_spread(dv, ld, w->P, w->dy_right, add, q0, n, D);
}

/* Blocks go from the last to the first, see attention_block_backward. */
static void attention_backward(real *dqkv, const real *dy, const real *y, const real *qkv,
                               const real *lse, const struct Batch *batch, int C, int H,
                               struct Dropout d)
{
    lap(REST);
    #pragma omp parallel for schedule(dynamic) collapse(2)
    for (int s = 0; s < batch->sequences; s++)
        for (int h = 0; h < H; h++) {
            struct Head w = head_of(batch, s, h, C, H, d);
            const int D = w.D, T = w.T, ld = 3 * C;
            const size_t row = w.start, at = row * C + h * D, at3 = row * ld + h * D;
            const real *k = qkv + at3 + C, *v = k + C;
            pack_lines(w.k_rows, (struct Lines){k, ld, 1, D, FP32}, T, TILE_ROWS);
            pack_lines(w.v_rows, (struct Lines){v, ld, 1, D, FP32}, T, TILE_ROWS);
            pack_lines(w.k_right, (struct Lines){k, 1, ld, T, FP32}, D, TILE_COLUMNS);
            for (int q0 = (T - 1) / QUERIES * QUERIES; q0 >= 0; q0 -= QUERIES)
                attention_block_backward(dqkv + at3, dy + at, y + at, qkv + at3, lse + row * H + h,
                                         &w, q0);
        }
    lap(ATTENTION);
}

/* ============================================================================================= */
/* 10. Memory of a model and of a pass                                                           */
/* ============================================================================================= */

/* Lists the parameters and counts them, without memory for them. */
static void model_describe(struct Model *model, struct Config config)
{
    *model = (struct Model){.config = config, .beta1 = 0.9, .beta2 = 0.95};
    model->tensors = resize(NULL, (12 * (size_t)config.layers + 5) * sizeof *model->tensors);
    model->w.blocks = resize(NULL, 2 * sizeof(struct Block) * config.layers);
    model->dw.blocks = model->w.blocks + config.layers;
    list_parameters(model, &model->w, NULL);
}

/* Allocates the weights, all 0. */
static void model_allocate(struct Model *model)
{
    model->weights = allocate_zeroed(model->parameter_count * sizeof(real));
    list_parameters(model, &model->w, model->weights);
}

static void model_create(struct Model *model, struct Config config)
{
    model_describe(model, config);
    model_allocate(model);
}

/* The first values of one tensor. They depend on the seed and on its place in the list. */
static void tensor_init(struct Model *model, int number, uint64_t seed)
{
    const struct Tensor *t = &model->tensors[number];
    const double deviation = t->init == RESIDUAL ? 0.02 / sqrt(2.0 * model->config.layers) : 0.02;
    struct Random r = random_stream(seed, number);
    real *w = model->weights + t->offset;
    for (size_t k = 0; k < t->size; k++)
        w[k] = t->init == ZEROS ? 0 : t->init == ONES ? 1 : (real)(deviation * random_normal(&r));
}

static void model_init(struct Model *model, uint64_t seed)
{
    #pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < model->tensor_count; i++) tensor_init(model, i, seed);
}

/* Allocates what training needs. Blocks below first_layer are frozen, and unless it is 0 the
 * embeddings are, too. first_layer = L trains ln_f and the head alone. */
static void model_train_from(struct Model *model, int first_layer)
{
    const size_t bytes = model->parameter_count * sizeof(real);
    model->grads = allocate_zeroed(bytes);
    model->m = allocate_zeroed(bytes);
    model->v = allocate_zeroed(bytes);
    model->partial_sums = resize(NULL, (model->parameter_count / SUM_CHUNK + model->tensor_count)
                                       * sizeof(double));
    list_parameters(model, &model->dw, model->grads);
    model->first_layer = first_layer;
    for (int i = 0; i < model->tensor_count; i++)
        model->tensors[i].lr_scale = first_layer == 0 || model->tensors[i].layer >= first_layer;
}

static void model_free(struct Model *model)
{
    const size_t bytes = model->parameter_count * sizeof(real);
    release(model->weights, bytes);
    release(model->grads, bytes);
    release(model->m, bytes);
    release(model->v, bytes);
    free(model->partial_sums);
    free(model->tensors);
    free(model->w.blocks);
}

/* Gives every array its place, from `memory` on. Returns the bytes needed. memory NULL only counts.
 * a: the arrays of block l; a block that is not stored uses those of the block before it. */
static size_t place_workspace(struct Workspace *ws, const struct Config *c, int first_layer,
                              char *memory)
{
    const size_t N = ws->max_rows, C = c->channels, L = c->layers, V = c->vocabulary;
    const bool train = ws->kind == WORK_TRAIN;
    struct Activations a = {0};
    size_t at = 0;
    #define PLACE(array, count) do {                                        \
        (array) = memory ? (void *)(memory + at) : NULL;                    \
        at += ((size_t)(count) * sizeof *(array) + 63) / 64 * 64;           \
    } while (0)
    PLACE(ws->activations, L + 1);
    for (size_t l = 0; l <= L; l++) {
        const bool own = l == 0 || (train && (int)l >= first_layer);
        if (own) { PLACE(a.x, N * C); PLACE(a.mean1, N); PLACE(a.rstd1, N); }
        if (l < L && (own || ws->kind == WORK_CACHE)) PLACE(a.qkv, N * 3 * C);
        if (l < L && own) {
            PLACE(a.lse, N * c->heads); PLACE(a.att, N * C); PLACE(a.x2, N * C);
            PLACE(a.mean2, N); PLACE(a.rstd2, N); PLACE(a.fc, N * 4 * C);
        }
        if (memory) ws->activations[l] = a;
    }
    PLACE(ws->ln, N * C);
    PLACE(ws->gelu, N * 4 * C);
    PLACE(ws->hidden, N * C);
    PLACE(ws->losses, N);
    PLACE(ws->logits, lm_chunk(ws->max_rows, c->vocabulary) * V);
    if (train) {
        PLACE(ws->dhidden, N * C);
        PLACE(ws->dx, N * C);
        PLACE(ws->dbranch, N * C);
        PLACE(ws->dqkv, N * 3 * C);
        PLACE(ws->dfc, N * 4 * C);
    }
    #undef PLACE
    return at;
}

/* Values of scratch for a pass over up to max_rows rows. */
static size_t pass_scratch(const struct Config *c, int max_rows)
{
    const size_t attention = attention_scratch(min_int(max_rows, c->context),
                                               c->channels / c->heads), gemm = gemm_scratch();
    return attention > gemm ? attention : gemm;
}

/* Memory for forward passes of up to max_rows rows, for backward passes if kind is WORK_TRAIN, and
 * the scratch of both. Before this, model_train_from must have said which layers learn, and
 * set_threads how many threads there are. After it, a step allocates nothing. */
static void workspace_create(struct Workspace *ws, const struct Model *model, int max_rows,
                             int kind)
{
    *ws = (struct Workspace){.kind = kind, .max_rows = max_rows};
    ws->bytes = place_workspace(ws, &model->config, model->first_layer, NULL);
    place_workspace(ws, &model->config, model->first_layer, allocate_zeroed(ws->bytes));
    reserve_scratch(pass_scratch(&model->config, max_rows));
}

/* The bytes that workspace_create would allocate, scratch aside. */
static size_t workspace_bytes(const struct Config *c, int max_rows, int kind)
{
    struct Workspace ws = {.kind = kind, .max_rows = max_rows};
    return place_workspace(&ws, c, 0, NULL);
}

static void workspace_free(struct Workspace *ws) { release(ws->activations, ws->bytes); }

/* --- A batch being put together: sequences back to back --- */

static struct Batch batch_create(int max_rows)
{
    struct Batch b = {.max_rows = max_rows, .tokens = resize(NULL, max_rows * sizeof(int)),
                      .targets = resize(NULL, max_rows * sizeof(int)),
                      .starts = resize(NULL, ((size_t)max_rows + 1) * sizeof(int))};
    b.starts[0] = 0;
    return b;
}

static void batch_free(struct Batch *b)
{
    free(b->tokens);
    free(b->targets);
    free(b->starts);
}

static void batch_clear(struct Batch *b) { b->rows = b->sequences = 0; }

/* Appends a sequence of `length` rows, which must fit. Returns its first row. */
static int batch_add(struct Batch *b, int length)
{
    const int row = b->rows;
    b->rows += length;
    b->starts[++b->sequences] = b->rows;
    return row;
}

/* ============================================================================================= */
/* III. THE PROGRAM                                                                              */
/* ============================================================================================= */

/* ============================================================================================= */
/* 11. Errors and text                                                                           */
/* ============================================================================================= */

struct Bytes { const char *data; size_t size; };
static struct Bytes as_bytes(const char *s) { return (struct Bytes){s, strlen(s)}; }

static const char *program = "gpt";     /* begin_program sets it; messages start with it */
static const char *called = "gpt";      /* as the command line has it */

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static bool failed;                     /* a message has already said why the program ends */

/* The character that begins at p, of which n > 0 bytes are there: returns its length and sets its
 * code point. 0: the n bytes may be the beginning of one. -k: the first k bytes belong to none
 * (Unicode 16, table 3-7: no overlong form, no surrogate, nothing above U+10FFFF). */
static inline int utf8_decode(const unsigned char *p, size_t n, uint32_t *code_point)
{
    const int lead = p[0];
    const int length = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3
                     : lead < 0xF5 ? 4 : 0;
    uint32_t c = length < 2 ? lead : lead & 0x7F >> length;
    if (!length) return -1;
    for (int i = 1; i < length; i++) {
        const int min = i > 1 ? 0x80 : lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        const int max = i > 1 ? 0xBF : lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if ((size_t)i == n) return 0;
        if (p[i] < min || p[i] > max) return -i;
        c = c << 6 | (p[i] & 0x3F);
    }
    *code_point = c;
    return length;
}

/* Whether the n bytes of a word are one of "a|b|c". */
static bool is_choice(const char *word, size_t n, const char *choices)
{
    for (size_t length; ; choices += length + 1) {
        length = strcspn(choices, "|");
        if (length == n && !memcmp(choices, word, n)) return true;
        if (!choices[length]) return false;
    }
}

/* Replaces what a terminal would obey by question marks: control characters but those in `keep`,
 * and bytes that are not UTF-8, which may be such characters in another encoding. */
static void make_harmless(char *text, size_t n, const char *keep)
{
    uint32_t c = 0;
    for (int length; n; text += length, n -= length) {
        length = utf8_decode((const unsigned char *)text, n, &c);
        const bool good = length > 0 && c >= 0x20 && (c < 0x7F || c >= 0xA0);
        length = max_int(length, 1);
        if (!good && !memchr(keep, *text, strlen(keep))) memset(text, '?', length);
    }
}

/* The same for a text on one line: what messages and `info` show may come from hostile files. */
static char *harmless(char *text)
{
    make_harmless(text, strlen(text), "");
    return text;
}

enum { MAX_BRIEF = 4096 };

/* A text for a moment: a message or a path; what is longer is cut. The next 15 calls of a thread
 * keep it. No memory is allocated, as memory may be what is short. */
static char *brief(const char *format, ...)
{
    static _Thread_local char texts[16][MAX_BRIEF];
    static _Thread_local int next;
    char *text = texts[next++ & 15];
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(text, MAX_BRIEF, format, arguments) >= MAX_BRIEF)
        strcpy(text + MAX_BRIEF - 4, "...");
    va_end(arguments);
    return text;
}

/* Writes a message to stderr in one call, so that those of several processes do not mix. On a
 * terminal it replaces the live line. That line itself has no end, and is cut at the terminal's
 * width, since a line that wraps cannot be replaced. */
static void speak(const char *speaker, bool ends, const char *message)
{
    char line[MAX_BRIEF + 100];
    struct winsize terminal;
    const int width = ends || ioctl(2, TIOCGWINSZ, &terminal) || !terminal.ws_col ? MAX_BRIEF
                    : terminal.ws_col;
    const int n = snprintf(line, sizeof line, "%s%.50s%s%.*s%s", isatty(2) ? "\r\033[K" : "",
                           speaker, *speaker ? ": " : "", width, message, ends ? "\n" : "");
    fwrite(line, 1, n, stderr);
}
#define warn(...) speak(program, true, MESSAGE(__VA_ARGS__))

/* Ends the program with one sentence: the file or option, what is wrong with it, what to do. die is
 * for failures (status 1), die_usage for a wrong command line (status 2). Of several threads that
 * fail, one speaks; the others wait here for the end. */
static void end_with(int status, const char *message)
{
#ifdef AT_END                           /* test/hostile.h goes on with another file */
    AT_END(status, message);
#endif
    #pragma omp critical (end_of_program)
    {
        speak(program, true, message);
        failed = true;
        exit(status);
    }
    abort();                            /* not reached */
}
#define die_usage(...) end_with(STATUS_USAGE, MESSAGE(__VA_ARGS__))

/* Text or bytes that grow. data is always followed by a NUL that size does not count. */
struct Buffer { char *data; size_t size, capacity; };

static void reserve(struct Buffer *b, size_t n)
{
    if (n < b->capacity - b->size) return;
    b->capacity = 2 * b->size + n + 1;
    b->data = resize(b->data, b->capacity);
}

static void append_bytes(struct Buffer *b, const void *bytes, size_t n)
{
    reserve(b, n);
    if (n) memcpy(b->data + b->size, bytes, n);
    b->size += n;
    b->data[b->size] = 0;
}

/* What printf would print, as a string that the caller owns. */
__attribute__((format(printf, 1, 2))) static char *text_of(const char *format, ...)
{
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int n = vsnprintf(NULL, 0, format, again);
    char *text = resize(NULL, (size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, format, arguments);
    va_end(again);
    va_end(arguments);
    return text;
}

/* append(buffer, format, ...) adds what printf would print. */
#define append(b, ...) append_text(b, text_of(__VA_ARGS__))
static void append_text(struct Buffer *b, char *text)
{
    append_bytes(b, text, strlen(text));
    free(text);
}

/* A 64-bit hash as files hold it: 16 hex digits. */
static const char *hash_text(uint64_t hash) { return brief("%016llx", (unsigned long long)hash); }

/* A number and its noun: "1 step", "2 steps". */
static const char *counted(int64_t n, const char *noun)
{
    return brief("%lld %s%s", (long long)n, noun, n == 1 ? "" : "s");
}

/* A value: words where printf has only nan, with any sign. */
static const char *value_text(double x) { return isnan(x) ? "not a number" : brief("%g", x); }

static void append_utf8(struct Buffer *b, unsigned c)
{
    const int more = c < 0x80 ? 0 : c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;    /* than one byte */
    unsigned char bytes[4] = {(unsigned char)(more ? 0xFF00 >> (more + 1) | c >> 6 * more : c)};
    for (int i = 1; i <= more; i++) bytes[i] = 0x80 | (c >> 6 * (more - i) & 0x3F);
    append_bytes(b, bytes, more + 1);
}

/* --- A hash table from 64-bit keys to numbers, by open addressing --- */

/* keys holds each key + 1, or 0 in an empty slot. At most half of the slots are used. Keys stand
 * apart from numbers, since most searches are for a key that is not there. No key is 2^64 - 1. */
struct HashTable { uint64_t *keys; int *numbers; size_t count; int bits; };

/* The slot of a key, or the empty one where it belongs (Fibonacci hashing, linear probing). */
static inline size_t hash_slot(const struct HashTable *t, uint64_t key)
{
    const size_t mask = ((size_t)1 << t->bits) - 1;
    size_t i = (size_t)(key * 0x9E3779B97F4A7C15u >> (64 - t->bits));
    while (t->keys[i] && t->keys[i] != key + 1) i = (i + 1) & mask;
    return i;
}

/* An empty table with room for so many keys; it grows beyond them if needed. */
static struct HashTable hash_table(size_t keys)
{
    int bits = 10;
    while ((size_t)1 << bits < 2 * keys) bits++;
    return (struct HashTable){allocate_zeroed(sizeof(uint64_t) << bits),
                              allocate_zeroed(sizeof(int) << bits), 0, bits};
}

static void hash_free(struct HashTable *t)
{
    release(t->keys, sizeof *t->keys << t->bits);
    release(t->numbers, sizeof *t->numbers << t->bits);
}

/* The number of a key; -1: it is not there. */
static inline int hash_get(const struct HashTable *t, uint64_t key)
{
    const size_t slot = hash_slot(t, key);
    return t->keys[slot] ? t->numbers[slot] : -1;
}

/* The number of a key, which is added with this number if it is not there. */
static inline int hash_add(struct HashTable *t, uint64_t key, int number)
{
    const size_t slots = (size_t)1 << t->bits, slot = hash_slot(t, key);
    if (t->keys[slot]) return t->numbers[slot];
    t->keys[slot] = key + 1;
    t->numbers[slot] = number;
    if (2 * ++t->count > slots) {
        struct HashTable larger = hash_table(slots);
        for (size_t i = 0; i < slots; i++)
            if (t->keys[i]) hash_add(&larger, t->keys[i] - 1, t->numbers[i]);
        hash_free(t);
        *t = larger;
    }
    return number;
}

/* ============================================================================================= */
/* 12. Files                                                                                     */
/* ============================================================================================= */

/* What cannot be looked at may be there: it is not replaced, and a reader says what is wrong. */
static bool file_exists(const char *path)
{
    return !access(path, F_OK) || (errno != ENOENT && errno != ENOTDIR);
}

static bool same_file(const char *a, const char *b)
{
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* --- Reading --- */

/* A file open to be read, and how it was then: see refuse_changed. The path must outlive it. */
struct File { const char *path; int fd; size_t size; struct stat status; };

#ifdef __APPLE__
#define st_mtim st_mtimespec
#endif

/* Unless the file may be of `any` kind it must be a regular one: a device may have no end, and a
 * pipe without a writer would have to be waited for. */
static struct File open_file(const char *path, bool any)
{
    struct File f = {path, open(path, O_RDONLY | O_CLOEXEC | (any ? 0 : O_NONBLOCK))};
    if (f.fd < 0 || fstat(f.fd, &f.status) < 0)
        die("%s: cannot be read (%s). Check the name.", *path ? path : "\"\"", strerror(errno));
    if (S_ISDIR(f.status.st_mode) || (!any && !S_ISREG(f.status.st_mode)))
        die("%s: is no regular file, but a directory, a pipe or a device. Name a file.", path);
    f.size = (size_t)f.status.st_size;
    return f;
}

/* Dies if a regular file was written to since it was opened: what was read of it may be a mixture.
 * A new file that has taken its name is another file. */
static void refuse_changed(const struct File *f)
{
    const struct stat *was = &f->status;
    struct stat is;
    if (!S_ISREG(was->st_mode)) return;
    if (fstat(f->fd, &is) || is.st_size != was->st_size
        || is.st_mtim.tv_sec != was->st_mtim.tv_sec || is.st_mtim.tv_nsec != was->st_mtim.tv_nsec)
        die("%s: was cut or rewritten while it was in use, so no result can be trusted. Run again.",
            f->path);
}

/* Returns how many of n bytes a call of read has given. 0: the file has ended. */
static size_t bytes_read(const struct File *f, ssize_t n)
{
    if (n < 0) die("%s: cannot be read (%s). Check its disk.", f->path, strerror(errno));
    return (size_t)n;
}

/* out (n) = bytes at .. at + n - 1 of a regular file, which must have as many. */
static void read_at(const struct File *f, void *out, size_t n, size_t at)
{
    size_t got = 1;
    for (char *to = out; n && got; to += got, at += got, n -= got)
        got = bytes_read(f, pread(f->fd, to, n, (off_t)at));
    refuse_changed(f);
    assert(!n);
}

/* Reads a file whole, at most `max` bytes; the caller frees it. A NUL follows. any: open_file's. */
static struct Bytes read_file(const char *path, size_t max, bool any)
{
    struct File f = open_file(path, any);
    struct Buffer b = {0};
    reserve(&b, f.size < max ? f.size + 1 : 4096);
    for (size_t n = 1; n; b.size += n) {
        if (b.size + 1 >= b.capacity) reserve(&b, b.size);
        n = bytes_read(&f, read(f.fd, b.data + b.size, b.capacity - b.size - 1));
        if (b.size + n > max)
            die("%s: has more than %.4g MB, the most that is read of such a file. Is it the right "
                "one?", path, max / 1e6);
    }
    b.data[b.size] = 0;
    refuse_changed(&f);
    close(f.fd);
    return (struct Bytes){resize(b.data, b.size + 1), b.size};
}

/* Bounds for what is parsed, since a value of a JSON text takes up to 64 bytes of memory for its 2.
 * The config.json of 10,000 labels has about 1 MB, the header of a state of 100 blocks 0.6 MB, and
 * the tokenizer.json of 65,536 tokens, the most that a shard can hold, 5 MB. */
enum { MAX_CONFIG = 4 << 20, MAX_HEADER = 16 << 20, MAX_TOKENIZER = 64 << 20 };

/* --- Directories and locks --- */

/* Creates the directories that a path names before its last slash, unless they exist. */
static void make_parents(const char *path)
{
    struct stat status;
    char *above = brief("%s", path);
    for (char *slash = above; *slash && (slash = strchr(slash + 1, '/')); *slash = '/') {
        *slash = 0;
        const int error = mkdir(above, 0777) ? errno : 0;
        if (error && (stat(above, &status) || !S_ISDIR(status.st_mode)))
            die("%s: cannot be made a directory (%s). Choose another --out.", above,
                strerror(error));
    }
}

static void make_directory(const char *path) { make_parents(brief("%s/", path)); }

/* Opens a file or directory and locks it for this process, until it is closed. Returns -1 if it
 * cannot be opened. Dies if another process has the lock, or had it until the file got another
 * name: a lock belongs to a file. A file system without locks is used without. */
static int open_locked(const char *path, int flags)
{
    struct stat locked, named;
    const int fd = open(path, flags | O_CLOEXEC, 0666);
    if (fd < 0) return -1;
    if ((flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) || fstat(fd, &locked)
        || stat(path, &named) || locked.st_dev != named.st_dev || locked.st_ino != named.st_ino)
        die("%s: another program is writing there. Wait for its end, or choose another --out.",
            path);
    return fd;
}

/* Makes the directory of --out, and keeps other programs from writing there until this one ends:
 * two writers would mix their files. Readers do not wait. No file stays behind. */
static void lock_directory(const char *path)
{
    make_directory(path);
    if (access(path, W_OK))                 /* found now, not when all has been computed */
        die("%s: cannot be written (%s). Choose another --out.", path, strerror(errno));
    open_locked(path, O_RDONLY);
}

/* --- Writing: files that belong together are replaced together ---
 *
 * Each is written under a temporary name beside its own, and locked. When all are complete on disk,
 * commit_outputs renames them in the order in which they were opened. The file that says which
 * others belong to it comes last, so that a crash in between is noticed by who reads them. What a
 * killed process left under a temporary name is overwritten. */

#define UNFINISHED ".unfinished"

struct Output {
    int fd;                                 /* open and locked until it has its name */
    char *path, *temporary;
    struct Output *volatile next;
};
static struct Output *volatile outputs;     /* those that have not got their names yet */

/* Called at the end and by signal handlers. */
static void remove_unfinished(void)
{
    for (struct Output *o = outputs; o; o = o->next) unlink(o->temporary);
}

/* While files get their names, a signal waits: those on disk and those in the list must agree. */
static volatile sig_atomic_t naming, signal_to_come;

static void remove_unfinished_on_signal(int signal_number)
{
    signal_to_come = signal_number;
    if (naming) return;
    remove_unfinished();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void end_naming(void)
{
    naming = false;
    if (signal_to_come) remove_unfinished_on_signal(signal_to_come);
}

/* Removes a file that is not wanted any more, if it is there. Dies if it stays. */
static void remove_file(const char *path)
{
    if (unlink(path) && errno != ENOENT)
        die("%s: is out of date and cannot be removed (%s). Remove it.", path, strerror(errno));
}

static void die_unwritten(const char *path)
{
    die("%s: writing failed (%s). Free some space, then run again or --resume.", path,
        strerror(errno));
}

static struct Output *output_open(const char *path)
{
    struct Output *o = resize(NULL, sizeof *o), *volatile *end = &outputs;
    *o = (struct Output){-1, text_of("%s", path), text_of("%s" UNFINISHED, path)};
    naming = true;
    o->fd = open_locked(o->temporary, O_RDWR | O_CREAT);
    if (o->fd < 0) die("%s: cannot be written (%s). Choose another place.", path, strerror(errno));
    while (*end) end = &(*end)->next;
    *end = o;
    end_naming();
    if (ftruncate(o->fd, 0)) die_unwritten(path);
    return o;
}

static void output_write(const struct Output *o, const void *bytes, size_t n)
{
    const char *from = bytes;
    for (ssize_t written; n; from += written, n -= written)
        if ((written = write(o->fd, from, n)) < 0) die_unwritten(o->path);
}

/* When all files are on disk, gives them their names, one right after the other. */
static void commit_outputs(void)
{
    for (struct Output *o = outputs; o; o = o->next) if (fsync(o->fd)) die_unwritten(o->path);
    naming = true;
    for (struct Output *o = outputs; o; o = o->next)
        if (rename(o->temporary, o->path))
            die("%s: cannot be replaced (%s). Remove what has this name, and run again.", o->path,
                strerror(errno));
    struct Output *done = outputs;
    outputs = NULL;
    end_naming();
    for (struct Output *o; (o = done); free(o)) {
        done = o->next;
        close(o->fd);
        free(o->path);
        free(o->temporary);
    }
}

/* Writes a file of a group, which commit_outputs completes. */
static void stage_file(const char *path, const void *bytes, size_t n)
{
    output_write(output_open(path), bytes, n);
}

/* ============================================================================================= */
/* 13. JSON: a text becomes a tree of nodes                                                      */
/* ============================================================================================= */

struct Json {
    enum { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } kind;
    char *key;                  /* NUL-terminated UTF-8; NULL: no member of an object */
    const char *string;         /* the same; of other kinds the text itself, without a NUL */
    size_t length;              /* of string, in which \u0000 is a NUL, too */
    double number;              /* of a bool: 0 or 1 */
    struct Json *child, *next;  /* first member; next member of the same array or object */
};

struct JsonReader { const char *at, *end, *begin, *path; int depth; };

__attribute__((noreturn)) static void json_error(struct JsonReader *r, const char *what)
{
    die("%s: not valid JSON at byte %zu: %s. Replace the file.", r->path,
        (size_t)(r->at - r->begin), what);
}

/* The next character that is not white space, or -1 at the end. */
static int json_peek(struct JsonReader *r)
{
    while (r->at < r->end && strchr(" \t\r\n", *r->at) && *r->at) r->at++;
    return r->at < r->end ? (unsigned char)*r->at : -1;
}

static unsigned json_hex4(struct JsonReader *r)
{
    char digits[5] = "";
    for (int i = 0; i < 4 && r->at < r->end; i++) digits[i] = *r->at++;
    if (strspn(digits, "0123456789abcdefABCDEF") < 4) json_error(r, "\\u needs four hex digits");
    return (unsigned)strtoul(digits, NULL, 16);
}

/* The code point after \u. Two surrogates, \uD83D\uDE00, make one; a surrogate alone is U+FFFD. */
static unsigned json_code_point(struct JsonReader *r)
{
    const unsigned u = json_hex4(r);
    if (u >= 0xD800 && u < 0xDC00 && r->end - r->at >= 6 && r->at[0] == '\\' && r->at[1] == 'u') {
        const char *back = r->at;
        r->at += 2;
        const unsigned low = json_hex4(r);
        if (low >= 0xDC00 && low < 0xE000) return 0x10000 + ((u - 0xD800) << 10) + (low - 0xDC00);
        r->at = back;
    }
    return u >= 0xD800 && u < 0xE000 ? 0xFFFD : u;
}

/* A string, without its quotes and with its escapes resolved. *length: its bytes; may be NULL. */
static char *json_string(struct JsonReader *r, size_t *length)
{
    static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    struct Buffer b = {0};
    if (json_peek(r) != '"') json_error(r, "a string is expected");
    for (r->at++; ; ) {
        const char *plain = r->at;
        while (r->at < r->end && *r->at != '"' && *r->at != '\\') r->at++;
        append_bytes(&b, plain, r->at - plain);
        if (r->at >= r->end) json_error(r, "a string does not end");
        if (*r->at++ == '"') {
            if (length) *length = b.size;
            return resize(b.data, b.size + 1);
        }
        const int c = r->at < r->end ? *r->at++ : 0;
        const char *found = c ? strchr(escapes, c) : NULL;
        if (found) append_bytes(&b, meanings + (found - escapes), 1);
        else if (c == 'u') append_utf8(&b, json_code_point(r));
        else json_error(r, "unknown escape");
    }
}

static struct Json *json_value(struct JsonReader *r);

/* The members of an array or an object, from its opening bracket to the closing one. */
static void json_members(struct JsonReader *r, struct Json *j)
{
    const int close = j->kind == JSON_OBJECT ? '}' : ']';
    if (++r->depth > 64) json_error(r, "nested too deeply");
    r->at++;
    for (struct Json **tail = &j->child; json_peek(r) != close; tail = &(*tail)->next) {
        char *key = NULL;
        if (j->child && (json_peek(r) != ',' || !r->at++)) json_error(r, "a comma is missing");
        if (j->kind == JSON_OBJECT) {
            key = json_string(r, NULL);
            if (json_peek(r) != ':') json_error(r, "a colon is missing");
            r->at++;
        }
        *tail = json_value(r);
        (*tail)->key = key;
    }
    r->at++;
    r->depth--;
}

/* true, false, null or a number. */
static void json_word(struct JsonReader *r, struct Json *j)
{
    char word[1001], *end;
    size_t n = 0;
    for (; r->at + n < r->end && n < sizeof word - 1
           && (isalnum((unsigned char)r->at[n]) || (r->at[n] && strchr("+-.", r->at[n]))); n++)
        word[n] = r->at[n];
    word[n] = 0;
    j->number = strtod(word, &end);
    if (is_choice(word, n, "true|false")) {
        j->kind = JSON_BOOL;
        j->number = word[0] == 't';
    } else if (n && !*end && strspn(word, "0123456789+-.eE") == n && *word != '+')
        j->kind = JSON_NUMBER;              /* not what strtod reads as well: 0x10, -inf */
    else if (strcmp(word, "null")) json_error(r, "a value is expected");
    r->at += n;
}

static struct Json *json_value(struct JsonReader *r)
{
    struct Json *j = resize(NULL, sizeof *j);
    const int c = json_peek(r);
    *j = (struct Json){.string = r->at};
    j->kind = c == '"' ? JSON_STRING : c == '{' ? JSON_OBJECT : c == '[' ? JSON_ARRAY : JSON_NULL;
    if (j->kind == JSON_STRING) j->string = json_string(r, &j->length);
    else if (j->kind == JSON_NULL) json_word(r, j);
    else json_members(r, j);
    if (j->kind != JSON_STRING) j->length = r->at - j->string;
    return j;
}

/* Dies on text that is not one JSON value, and names path. The text must outlive the tree. */
static struct Json *json_parse(const char *text, size_t n, const char *path)
{
    struct JsonReader r = {text, text + n, text, path, 0};
    struct Json *j = json_value(&r);
    if (json_peek(&r) != -1) json_error(&r, "something follows the value");
    return j;
}

static void json_free(struct Json *j)
{
    while (j) {
        struct Json *next = j->next;
        json_free(j->child);
        free(j->key);
        if (j->kind == JSON_STRING) free((char *)j->string);
        free(j);
        j = next;
    }
}

/* The member of that name, or NULL. */
static const struct Json *json_get(const struct Json *object, const char *key)
{
    for (const struct Json *j = object ? object->child : NULL; j; j = j->next)
        if (j->key && !strcmp(j->key, key)) return j;
    return NULL;
}

static double json_number(const struct Json *object, const char *key, double otherwise)
{
    const struct Json *j = json_get(object, key);
    return j && (j->kind == JSON_NUMBER || j->kind == JSON_BOOL) ? j->number : otherwise;
}

static const char *json_text(const struct Json *object, const char *key, const char *otherwise)
{
    const struct Json *j = json_get(object, key);
    return j && j->kind == JSON_STRING ? j->string : otherwise;
}

/* append_json is append with " for each ', so that JSON stays legible in C. */
#define append_json(b, ...) append_quoted(b, text_of(__VA_ARGS__))
static void append_quoted(struct Buffer *b, char *text)
{
    for (char *s = text; *s; s++) if (*s == '\'') *s = '"';
    append_text(b, text);
}

/* A string with its quotes. Bytes that are not UTF-8 become U+FFFD, since JSON has no others. */
static void append_json_string(struct Buffer *b, struct Bytes s)
{
    uint32_t c = 0;
    append(b, "\"");
    for (int n; s.size; s.data += n, s.size -= n) {
        n = utf8_decode((const unsigned char *)s.data, s.size, &c);
        if (n <= 0) { append(b, "\\ufffd"); n = n ? -n : (int)s.size; }
        else if (c == '"' || c == '\\') append(b, "\\%c", c);
        else if (c < 0x20) append(b, "\\u%04x", c);
        else append_bytes(b, s.data, n);
    }
    append(b, "\"");
}

/* ============================================================================================= */
/* 14. Checkpoint: safetensors and config.json                                                   */
/* ============================================================================================= */

/* The metadata of a checkpoint are an object of strings: step, losses, options, tokenizer hash.
 * metadata_set(meta, key, format, ...): the value is what printf would print. */
#define metadata_set(meta, key, ...) metadata_put(meta, key, text_of(__VA_ARGS__))
static void metadata_put(struct Json *meta, const char *key, char *value)
{
    struct Json **j = &meta->child;
    while (*j && strcmp((*j)->key, key)) j = &(*j)->next;
    if (!*j) {
        *j = resize(NULL, sizeof **j);
        **j = (struct Json){.kind = JSON_STRING, .key = text_of("%s", key)};
    }
    free((char *)(*j)->string);
    (*j)->string = value;
}

/* A hash of bytes, fast enough for every file that is opened: eight independent chains of multiply
 * and xor over each megabyte, then one chain over the results of the megabytes, which begins with
 * the number of bytes. This adds n more bytes to the `sum` of those before, whole megabytes. */
enum { MEGABYTE = 1 << 20 };

static uint64_t checksum_add(uint64_t sum, const void *bytes, size_t n)
{
    enum { CHAINS = 8 };
    for (const char *p = bytes, *end = p + n; p < end; p += MEGABYTE) {
        const size_t length = end - p < MEGABYTE ? (size_t)(end - p) : MEGABYTE;
        uint64_t h[CHAINS] = {1, 2, 3, 4, 5, 6, 7, 8}, word[CHAINS], result = 0;
        for (size_t i = 0; i < length; i += sizeof word) {
            if (length - i < sizeof word) memset(word, 0, sizeof word);
            memcpy(word, p + i, length - i < sizeof word ? length - i : sizeof word);
            for (int k = 0; k < CHAINS; k++) {
                h[k] = (h[k] ^ word[k]) * 0x9E3779B97F4A7C15u;
                h[k] ^= h[k] >> 29;
            }
        }
        for (int k = 0; k < CHAINS; k++) result = mix64(result ^ h[k]);
        sum = mix64(sum ^ result);
    }
    return sum;
}

static uint64_t checksum(const void *bytes, size_t n) { return checksum_add(n, bytes, n); }

/* --- Writing safetensors: u64 length of the header, a JSON header, the tensors' bytes --- */

/* The arrays that a file may hold, in order; a tensor's name begins with the prefix of its array. A
 * model is the weights alone. Resuming also needs both moments of AdamW, and that of a fine-tuning
 * the best weights so far or the mean of the last ones. */
static const char *const PREFIXES[] = {"", "adam_m.", "adam_v.", "best.", "mean."};

/* The JSON header, padded to a multiple of 8 bytes. */
static struct Buffer safetensors_header(const struct Model *model, int array_count,
                                        const struct Json *meta, uint64_t sum)
{
    struct Buffer header = {0};
    size_t at = 0;
    append(&header, "{\"__metadata__\":{\"format\":\"pt\",\"checksum\":\"%s\"", hash_text(sum));
    for (const struct Json *j = meta->child; j; j = j->next) {
        append(&header, ",");
        append_json_string(&header, as_bytes(j->key));
        append(&header, ":");
        append_json_string(&header, as_bytes(j->string));
    }
    append(&header, "}");
    for (int i = 0; i < array_count * model->tensor_count; i++) {
        const struct Tensor *t = &model->tensors[i % model->tensor_count];
        const size_t begin = at;
        at += t->size * sizeof(float);
        append(&header, ",\"%s%s\":{\"dtype\":\"F32\",\"shape\":[",
               PREFIXES[i / model->tensor_count], t->name);
        if (t->init >= NORMAL) append(&header, "%d,", t->rows);
        append(&header, "%d],\"data_offsets\":[%zu,%zu]}", t->columns, begin, at);
    }
    append(&header, "}");
    while (header.size % 8) append(&header, " ");
    return header;
}

/* Writes array_count arrays of model->parameter_count values each, for commit_outputs. */
static void stage_safetensors(const char *path, const struct Model *model, real *const *arrays,
                              int array_count, const struct Json *meta)
{
    const size_t array_bytes = model->parameter_count * sizeof(float);
    uint64_t sum = 0;
    assert(sizeof(real) == sizeof(float));
    for (int a = 0; a < array_count; a++) sum = mix64(sum + checksum(arrays[a], array_bytes));
    struct Buffer header = safetensors_header(model, array_count, meta, sum);
    const uint64_t length = header.size;
    struct Output *o = output_open(path);
    output_write(o, &length, sizeof length);
    output_write(o, header.data, header.size);
    for (int a = 0; a < array_count; a++) output_write(o, arrays[a], array_bytes);
    free(header.data);
}

/* --- Reading safetensors --- */

static char piece[MEGABYTE];        /* of a file's values, so that they are not twice in memory */

struct Safetensors {
    const char *path;
    struct File file;
    size_t begin, size;             /* of the values of all tensors, in the file */
    char *text;                     /* of the header */
    struct Json *header;            /* an entry for each tensor, and __metadata__ */
    struct Json metadata;           /* its members, which stay when the file is closed */
};

/* The numbers in an array of a tensor's entry, such as [768,2304]. Returns how many, at most 3. */
static int entry_numbers(double out[3], const struct Json *t, const char *key)
{
    const struct Json *array = json_get(t, key);
    const char *text = array ? brief("%.*s", (int)array->length, array->string) : "";
    return sscanf(text, "[%lf ,%lf ,%lf", &out[0], &out[1], &out[2]);
}

/* Opens a file, and takes its header apart. The path must outlive it. */
static struct Safetensors open_safetensors(const char *path)
{
    struct Safetensors s = {path, open_file(path, false)};
    uint64_t length = 0;
    if (s.file.size >= 8) read_at(&s.file, &length, 8, 0);
    const bool fits = length >= 2 && length <= s.file.size - 8 && length <= MAX_HEADER;
    s.text = resize(NULL, fits ? length : 1);
    if (fits) read_at(&s.file, s.text, length, 8);
    if (!fits || *s.text != '{')
        die("%s: not a safetensors file, or cut short: it has %zu bytes. Copy or train it again.",
            path, s.file.size);
    s.header = json_parse(s.text, length, path);
    struct Json *metadata = (struct Json *)json_get(s.header, "__metadata__");
    if (metadata) { s.metadata.child = metadata->child; metadata->child = NULL; }
    s.begin = 8 + length;
    s.size = s.file.size - s.begin;
    return s;
}

static void close_safetensors(struct Safetensors *s)
{
    json_free(s->header);
    free(s->text);
    close(s->file.fd);
}

/* IEEE half precision: 1 bit of sign, 5 of exponent, 10 of fraction. */
static float half_to_float(uint16_t h)
{
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    float magnitude = exponent == 0    ? ldexpf((float)fraction, -24)
                      : exponent == 31 ? (fraction ? NAN : INFINITY)
                                       : ldexpf((float)(fraction + 1024), exponent - 25);
    return h & 0x8000 ? -magnitude : magnitude;
}

/* Converts n values of F32, F16 or BF16. Returns whether all are finite. */
static bool convert_values(real *out, const char *bytes, size_t n, const char *dtype)
{
    const bool whole = !strcmp(dtype, "F32"), brain = !strcmp(dtype, "BF16");
    int others = 0;
    #pragma omp parallel for reduction(|: others) schedule(static)
    for (size_t i = 0; i < n; i++) {
        union { float f; uint32_t u; } x = {0};
        if (whole) memcpy(&x, bytes + 4 * i, 4); else memcpy(&x, bytes + 2 * i, 2);
        if (brain) x.u <<= 16; else if (!whole) x.f = half_to_float((uint16_t)x.u);
        out[i] = x.f;
        others |= !isfinite(x.f);
    }
    return !others;
}

/* Whether a name in a file is that of a parameter. Others' files may leave out "transformer.". */
static bool is_name_of(const char *found, const char *name)
{
    return !strcmp(found, name)
           || (!strncmp(name, "transformer.", 12) && !strcmp(found, name + 12));
}

/* The header's entry of a tensor; NULL: the file has none. */
static const struct Json *find_tensor(const struct Safetensors *s, const char *prefix,
                                      const char *name)
{
    const size_t n = strlen(prefix);
    for (const struct Json *t = s->header->child; t; t = t->next)
        if (!strncmp(t->key, prefix, n) && is_name_of(t->key + n, name)) return t;
    return NULL;
}

/* Reads parameter p of the array with this prefix; out NULL: checks only that it can be read. Dies
 * if it is missing, has another shape, lies outside the file or has values that are not finite. */
static void read_tensor(real *out, const struct Safetensors *s, const struct Tensor *p,
                        const char *prefix)
{
    const struct Json *t = find_tensor(s, prefix, p->name), *shape = json_get(t, "shape");
    const char *dtype = json_text(t, "dtype", "?");
    const int width = strcmp(dtype, "F32") ? 2 : 4;
    double sizes[3], place[3];
    if (!t)
        die("%s: tensor %s%s is missing. The file is not a GPT-2 of this config.json.", s->path,
            prefix, p->name);
    const int dimensions = entry_numbers(sizes, t, "shape");
    if (!is_choice(dtype, strlen(dtype), "F32|F16|BF16")
        || (dimensions == 2 ? sizes[0] != p->rows || sizes[1] != p->columns
                            : dimensions != 1 || p->rows != 1 || sizes[0] != p->columns))
        die("%s: tensor %.99s has shape %.*s of %.99s where [%d,%d] of F32, F16 or BF16 is "
            "expected. config.json is of another model, or the matrix must be transposed, as in "
            "files of nanoGPT.", s->path, t->key, shape ? (int)shape->length : 0,
            shape ? shape->string : "", dtype, p->rows, p->columns);
    if (entry_numbers(place, t, "data_offsets") != 2 || !(place[0] >= 0)
        || place[0] != floor(place[0]) || place[1] > (double)s->size
        || place[1] - place[0] != (double)p->size * width)
        die("%s: tensor %.99s does not lie in the %zu bytes of the file as its shape demands. Copy "
            "or train it again.", s->path, t->key, s->size);
    for (size_t k = 0, n; out && k < p->size; k += n) {
        n = p->size - k < MEGABYTE / 4 ? p->size - k : MEGABYTE / 4;
        read_at(&s->file, piece, n * width, s->begin + (size_t)place[0] + k * width);
        if (!convert_values(out + k, piece, n, dtype))
            die("%s: tensor %.99s holds values that are not finite. Copy or train it again.",
                s->path, t->key);
    }
}

/* Reads the array with this prefix; NULL: checks only that it can be read. */
static void read_array(real *array, const struct Safetensors *s, const struct Model *model,
                       const char *prefix)
{
    for (int i = 0; i < model->tensor_count; i++)
        read_tensor(array ? array + model->tensors[i].offset : NULL, s, &model->tensors[i], prefix);
}

/* Dies if the file has a checksum and its bytes, array_count equal parts, have another. */
static void verify_checksum(const struct Safetensors *s, int array_count)
{
    const char *stored = json_text(&s->metadata, "checksum", NULL);
    const size_t part = s->size / array_count;
    uint64_t sum = 0;
    for (int a = 0; stored && a < array_count; a++) {
        uint64_t of_part = part;
        for (size_t k = 0, n; k < part; k += n) {
            n = part - k < MEGABYTE ? part - k : MEGABYTE;
            read_at(&s->file, piece, n, s->begin + part * a + k);
            of_part = checksum_add(of_part, piece, n);
        }
        sum = mix64(sum + of_part);
    }
    if (stored && strcmp(hash_text(sum), stored))
        die("%s: the checksum is %s where the file says %s: it is damaged. Copy or train it again.",
            s->path, hash_text(sum), stored);
}

/* Dies if a file has a tensor that GPT-2 has not. Masks and the tied head, which files from
 * elsewhere may have, follow from the rest. */
static void refuse_strangers(const struct Safetensors *s, const struct Model *model)
{
    for (const struct Json *t = s->header->child; t; t = t->next) {
        const char *attention = strstr(t->key, ".attn.");
        bool known = is_choice(t->key, strlen(t->key), "__metadata__|lm_head.weight")
                     || (attention && is_choice(attention + 6, strlen(attention + 6),
                                                "bias|masked_bias"));
        for (int i = 0; i < model->tensor_count && !known; i++)
            known = is_name_of(t->key, model->tensors[i].name);
        if (!known)
            die("%s: tensor %.99s is not part of a GPT-2 with a tied head. Such a model is not "
                "supported.", s->path, t->key);
    }
}

/* --- config.json --- */

/* The id of byte 0x14 in GPT-2's order, a control character that no text holds. Hugging Face fills
 * rows of unequal length with it. <|endoftext|> cannot serve: transformers of 2024 reads the class
 * before the first pad token of a row, and texts begin with <|endoftext|>. Byte 0 would do as well,
 * but some loaders take the pad token's symbol in a text for the token, and that of byte 0 is a
 * letter of Latvian; this one, U+0114, is hardly ever written. */
enum { PAD_TOKEN = 208 };

/* Bounds for labels. A vector of scores (K) is on the stack, a table (K, K) in memory, and names
 * stand in messages and tables. */
enum { MAX_LABELS = 10000, MAX_LABEL_BYTES = 200 };

/* Writes config.json as transformers has it; returns its checksum. eot: id of <|endoftext|>. */
static uint64_t stage_config(const char *path, const struct Config *c, int eot)
{
    struct Buffer b = {0};
    append_json(&b, "{\n  'architectures': ['%s'],\n  'model_type': 'gpt2',\n"
        "  'activation_function': 'gelu_new',\n  'layer_norm_epsilon': 1e-05,\n"
        "  'n_layer': %d,\n  'n_head': %d,\n  'n_embd': %d,\n  'n_positions': %d,\n"
        "  'n_ctx': %d,\n  'vocab_size': %d,\n  'bos_token_id': %d,\n  'eos_token_id': %d,\n"
        "  'pad_token_id': %d,\n  'attn_pdrop': 0.0,\n  'embd_pdrop': 0.0,\n"
        "  'resid_pdrop': 0.0,\n  'initializer_range': 0.02,\n  'scale_attn_weights': true,\n"
        "  'tie_word_embeddings': true,\n",
        c->labels ? "GPT2ForSequenceClassification" : "GPT2LMHeadModel", c->layers, c->heads,
        c->channels, c->context, c->context, c->vocabulary, eot, eot, PAD_TOKEN);
    for (int k = 0; k < c->labels; k++) {
        append_json(&b, k ? ", '%d': " : "  'id2label': {'%d': ", k);
        append_json_string(&b, as_bytes(c->label_names[k]));
    }
    for (int k = 0; k < c->labels; k++) {
        append_json(&b, k ? ", " : "},\n  'label2id': {");
        append_json_string(&b, as_bytes(c->label_names[k]));
        append(&b, ": %d", k);
    }
    if (c->labels) append_json(&b, "},\n  'problem_type': 'single_label_classification',\n");
    append_json(&b, "  'torch_dtype': 'float32'\n}\n");
    stage_file(path, b.data, b.size);
    const uint64_t sum = checksum(b.data, b.size);
    free(b.data);
    return sum;
}

/* The number of classes and their names from id2label, or LABEL_0 and LABEL_1 without it. Names are
 * printed, so control characters in them become question marks. */
static void read_label_names(struct Config *c, const struct Json *config, const char *path)
{
    const struct Json *names = json_get(config, "id2label");
    for (const struct Json *n = names ? names->child : NULL; n; n = n->next) c->labels++;
    if (!c->labels) { c->labels = 2; names = NULL; }
    if (c->labels == 1 && !json_text(config, "problem_type", NULL))
        die("%s: one class without a problem_type is a regression, which is not supported. Use a "
            "classifier.", path);
    c->label_names = resize(NULL, c->labels * sizeof *c->label_names);
    for (int k = 0; k < c->labels; k++) {
        const char *name = names ? json_text(names, brief("%d", k), NULL) : brief("LABEL_%d", k);
        if (!name || strlen(name) > MAX_LABEL_BYTES || c->labels > MAX_LABELS)
            die("%s: id2label must give each of its %d classes, at most %d, from \"0\" on, a name "
                "of at most %d bytes. Correct it.", path, c->labels, MAX_LABELS, MAX_LABEL_BYTES);
        c->label_names[k] = harmless(text_of("%s", name));
    }
}

/* Dies on a variant of GPT-2 that is not supported, and names it. */
static void refuse_variants(const struct Json *config, const struct Config *c, const char *path)
{
    const struct { const char *name, *must; } needed[] = {
        {"model_type", "gpt2"}, {"activation_function", "gelu_new|gelu_pytorch_tanh"},
        {"layer_norm_epsilon", "1e-05"}, {"n_inner", brief("%d", 4 * c->channels)},
        {"scale_attn_weights", "true"}, {"scale_attn_by_inverse_layer_idx", "false"},
        {"add_cross_attention", "false"}, {"tie_word_embeddings", "true"},
        {"problem_type", "single_label_classification"}};
    for (int i = 0; i < COUNT(needed); i++) {
        const struct Json *j = json_get(config, needed[i].name);
        const char *must = needed[i].must;
        if (!j || j->kind == JSON_NULL) continue;
        if (j->kind == JSON_NUMBER ? !(fabs(j->number / strtod(must, NULL) - 1) <= 1e-4)
                                   : !is_choice(j->string, j->length, must))
            die("%s: %s is %.*s; only %s is supported.", path, needed[i].name, (int)j->length,
                j->string, must);
    }
}

/* Reads config.json and dies on what is not supported here, and if the weights in s say that they
 * belong to another. What it does not say is as in GPT-2 124M. */
static struct Config read_config(const char *path, const struct Safetensors *s)
{
    const struct Bytes file = read_file(path, MAX_CONFIG, false);
    struct Json *j = json_parse(file.data, file.size, path);
    struct Config c = {12, 12, 768, 1024, 50257};
    const struct { const char *name; int *value, max; } sizes[] = {
        {"n_layer", &c.layers, 100}, {"n_head", &c.heads, 1 << 16},
        {"n_embd", &c.channels, 1 << 16}, {"n_ctx", &c.context, 1 << 20},
        {"n_positions", &c.context, 1 << 20}, {"vocab_size", &c.vocabulary, 1 << 24}};
    for (int i = 0; i < COUNT(sizes); i++) {
        const double x = json_number(j, sizes[i].name, *sizes[i].value);
        if (!(x >= 1 && x <= sizes[i].max) || x != floor(x))
            die("%s: %s is %.10g; it must be a whole number from 1 to %d. Correct it.", path,
                sizes[i].name, x, sizes[i].max);
        *sizes[i].value = (int)x;
    }
    if (c.channels % c.heads)
        die("%s: %d channels cannot be shared by %d heads. Correct it.", path, c.channels, c.heads);
    refuse_variants(j, &c, path);
    if (find_tensor(s, "", "score.weight")) read_label_names(&c, j, path);
    const char *sum = hash_text(checksum(file.data, file.size));
    if (strcmp(json_text(&s->metadata, "config_checksum", sum), sum))
        die("%s: does not belong to model.safetensors beside it, or was changed. Put back the one "
            "that was written with it.", path);
    json_free(j);
    free((char *)file.data);
    return c;
}

/* --- Model directories and training states --- */

/* Writes config.json, then model.safetensors, which says which config.json and which tokenizer
 * belong to it, for commit_outputs. eot: the id of <|endoftext|>, the last of the tokenizer, which
 * may have less than V tokens. */
static void stage_model(const char *dir, const struct Model *model, const struct Json *meta,
                        int eot)
{
    make_directory(dir);
    const uint64_t sum = stage_config(brief("%s/config.json", dir), &model->config, eot);
    struct Json first = {.key = "config_checksum", .string = hash_text(sum), .next = meta->child};
    stage_safetensors(brief("%s/model.safetensors", dir), model, (real *const[]){model->weights}, 1,
                      &(struct Json){.child = &first});
}

/* Creates the model from a directory in Hugging Face's layout, ours or from elsewhere. Dies if a
 * tensor is missing or has another shape, before memory is taken for any, and if the file says that
 * another config.json belongs to it. */
static void load_model(struct Model *model, const char *dir, struct Json *meta)
{
    char *config_path = text_of("%s/config.json", dir),
         *path = text_of("%s/model.safetensors", dir);
    if (!file_exists(config_path) || !file_exists(path))
        die("%s: is no directory with config.json and model.safetensors. Name one; dev/manual.md "
            "tells how other formats, such as GGUF, are converted.", dir);
    struct Safetensors s = open_safetensors(path);
    *meta = s.metadata;
    verify_checksum(&s, 1);
    model_describe(model, read_config(config_path, &s));
    refuse_strangers(&s, model);
    read_array(NULL, &s, model, "");    /* before memory is taken */
    model_allocate(model);
    read_array(model->weights, &s, model, "");
    close_safetensors(&s);
    free(config_path);
    free(path);
}

/* What resuming needs: see PREFIXES. Without `best` or `mean` these are NULL. */
static void stage_state(const char *path, const struct Model *model, real *best, real *mean,
                        const struct Json *meta)
{
    real *const arrays[] = {model->weights, model->m, model->v, best, mean};
    stage_safetensors(path, model, arrays, 3 + (best != NULL) + (mean != NULL), meta);
}

static void load_state(const char *path, struct Model *model, real *best, real *mean,
                       struct Json *meta)
{
    struct Safetensors s = open_safetensors(path);
    *meta = s.metadata;
    real *const arrays[] = {model->weights, model->m, model->v, best, mean};
    const int count = 3 + (best != NULL) + (mean != NULL);
    verify_checksum(&s, count);
    for (int a = 0; a < count; a++) read_array(arrays[a], &s, model, PREFIXES[a]);
    close_safetensors(&s);
}

/* The metadata of a model or state alone, which are needed before the model exists. */
static void load_metadata(const char *path, struct Json *meta)
{
    struct Safetensors s = open_safetensors(path);
    *meta = s.metadata;
    close_safetensors(&s);
}

/* ============================================================================================= */
/* 15. Time and progress                                                                         */
/* ============================================================================================= */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* 75 -> "1m15s". The next 15 calls of `brief` keep it. */
static const char *duration(double s)
{
    const long n = s > 0 ? (long)(fmin(s, 1e15) + 0.5) : 0;
    if (n < 60) return brief("%lds", n);
    if (n < 3600) return brief("%ldm%02lds", n / 60, n % 60);
    return brief("%ldh%02ldm", n / 3600, n / 60 % 60);
}

/* A line of progress. On a terminal it replaces the one before; `last` keeps it, whole. Elsewhere
 * every call is a line, so the caller decides how often. */
#define progress(last, ...) speak("", (last) || !isatty(2), MESSAGE(__VA_ARGS__))

/* Whether a line of progress is due: every 0.2 s on a terminal, else every 20 s. *shown is the time
 * of the last one, and becomes now if one is due. */
static bool line_is_due(double *shown)
{
    const double now = seconds();
    if (now - *shown < (isatty(2) ? 0.2 : 20)) return false;
    *shown = now;
    return true;
}

/* The progress of long work. */
struct Timer { double start, shown; };

static struct Timer start_timer(void) { return (struct Timer){seconds(), seconds()}; }

/* Shows, if a line is due, how much of `all` is done: "eval: 120/872 texts  93 texts/s  8s left".
 * all is 0 if it is not known. When all is done, the live line goes: results may take its place. */
static void show_work(struct Timer *t, const char *what, double done, double all, const char *unit)
{
    if (done == all && isatty(2)) speak("", false, "");
    if (done == 0 || done == all || !line_is_due(&t->shown)) return;
    const double rate = done / (t->shown - t->start);
    const char *of_all = all > 0 ? brief("/%.0f", all) : "",
               *left = all > 0 ? brief("  %s left", duration((all - done) / rate)) : "";
    progress(false, "%s: %.0f%s %s  %.*f %s/s%s", what, done, of_all, unit, rate < 100 ? 1 : 0,
             rate, unit, left);
}

/* ============================================================================================= */
/* 16. Programs, settings, runs                                                                  */
/* ============================================================================================= */

/* --- Signals, and readers or terminals that go away --- */

/* A training goes on when its terminal or the reader of its output has gone: what cannot be printed
 * is dropped. SIGINT or SIGTERM ends it between two steps, once it has saved. */
static bool training;
static volatile sig_atomic_t stop_signal;       /* the first of them; 0: none yet. The status of a
                                   training that it stops is 128 + stop_signal, as in a shell */

/* Handles a signal, unless the program was started with the signal ignored, as nohup does with
 * SIGHUP, and a shell with the SIGINT of what runs in its background. */
static void handle_signal(int signal_number, void (*handler)(int))
{
    if (signal(signal_number, handler) == SIG_IGN) signal(signal_number, SIG_IGN);
}

/* Before a training reads its data. */
static void begin_training(void)
{
    training = true;
    signal(SIGHUP, SIG_IGN);
}

/* The first signal asks for the end after the step, the second ends the program at once. */
static void request_stop(int signal_number)
{
    static const char note[] = "\nstopping after this step; once more stops at once\n";
    const int error = errno;
    if (stop_signal) { remove_unfinished_on_signal(signal_number); return; }
    stop_signal = signal_number;
    if (write(2, note, sizeof note - 1) < 0) errno = error;
}

/* From here on, when there is something to save, the steps of a training look at stop_signal. */
static void stop_between_steps(void)
{
    handle_signal(SIGINT, request_stop);
    handle_signal(SIGTERM, request_stop);
}

/* Prints what stdout holds. If that fails, the program does, a training only at its end. If the
 * reader has gone, as `head` goes when it has enough lines, a program that is no training ends as
 * silently as others do, by SIGPIPE. */
static void print_results(bool at_end)
{
    if ((!fflush(stdout) && !ferror(stdout)) || (training && !at_end)) return;
    if (errno == EPIPE && !training) remove_unfinished_on_signal(SIGPIPE);
    warn("standard output: writing failed (%s). Free some space, or keep its reader, and run "
         "again, a training with --resume.", strerror(errno));
    remove_unfinished();
    _exit(STATUS_FAILED);
}

/* Writes a result to standard output. A terminal gets it harmless, a file or a pipe as it is. */
static void show_result(struct Buffer *b)
{
    if (!b->size) return;
    if (isatty(1)) make_harmless(b->data, b->size, "\n\t");
    fwrite(b->data, 1, b->size, stdout);
    print_results(false);
    b->size = 0;
}

static void end_program(void)
{
    remove_unfinished();
    if (!failed) print_results(true);
}

/* Idle OpenMP threads spin for milliseconds by default, which slows two runs on the same cores
 * 30-fold. The runtime reads its settings before main, so we set them and execute ourselves once:
 * spin for microseconds (gcc) or one millisecond (clang), then sleep. Trainings sleep sooner: the
 * system then lets another program's thread and ours change cores, which makes a small model up to
 * a third faster beside a busy program. Short products, as in generation, bear the wait less. If
 * the file that runs is not the one that argv[0] names, but the dynamic loader, threads spin. */
static void calm_threads(char **argv)
{
    const bool trains = argv[0] && argv[1] && is_choice(argv[1], strlen(argv[1]), "train|compare");
    char self[4096] = "";               /* by its path, so that ps and pkill know its name */
    if (!argv[0] || (strchr(argv[0], '/') && !same_file(argv[0], "/proc/self/exe"))) return;
    if (getenv("OMP_WAIT_POLICY") || setenv("OMP_WAIT_POLICY", "passive", 1)) return;
    setenv("GOMP_SPINCOUNT", trains ? "300" : "2000", 0);
    setenv("KMP_BLOCKTIME", "1", 0);
    if (readlink("/proc/self/exe", self, sizeof self - 1) > 0) execv(self, argv);
}

/* First in main. A program that fails or is stopped leaves no temporary file. A file beyond the
 * shell's limit (ulimit -f) is an error, as a full disk is, and so is a pipe without a reader. */
static void begin_program(const char *name, char **argv)
{
    program = name;
    called = argv[0];
    for (int fd = 0; fd < 3; fd++)      /* a closed descriptor must not become a file of ours */
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0)
            exit(STATUS_FAILED);
    calm_threads(argv);
    atexit(end_program);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    handle_signal(SIGHUP, remove_unfinished_on_signal);
    handle_signal(SIGINT, remove_unfinished_on_signal);
    handle_signal(SIGTERM, remove_unfinished_on_signal);
}

/* The least limit of the process's cgroup and those above it: the bytes in memory.max, or the cores
 * that cpu.max allows on average, its quota / period. Infinite if there is none. list: a file with
 * the process's cgroups; group: what stands before the path of the one that is meant, in version 2
 * "0::", in version 1 ":memory:"; root: where they are mounted. */
static double cgroup_limit(const char *list, const char *group, const char *root, const char *file)
{
    char line[4096] = "", *path = NULL, *slash;
    double least = INFINITY, limit, period;
    FILE *f = fopen(list, "r");
    while (f && !path && fgets(line, sizeof line, f)) path = strstr(line, group);
    if (f) fclose(f);
    line[strcspn(line, "\n")] = 0;
    path = path ? path + strlen(group) : strchr(line, 0);
    do {                                /* /a/b, /a, and the root */
        period = 1;
        f = fopen(brief("%s%s/%s", root, path, file), "r");
        if (f && fscanf(f, "%lf %lf", &limit, &period) > 0 && limit > 0 && period > 0)
            least = fmin(least, limit / period);
        if (f) fclose(f);
        if ((slash = strrchr(path, '/'))) *slash = 0;
    } while (slash);
    return least;
}

/* The bytes of memory that the process may use: the machine's, or fewer in a cgroup. */
static double machine_memory(void)
{
    const double machine = (double)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    const char *list = "/proc/self/cgroup", *root = "/sys/fs/cgroup";
    return fmin(machine, fmin(cgroup_limit(list, "0::", root, "memory.max"),
                              cgroup_limit(list, ":memory:", "/sys/fs/cgroup/memory",
                                           "memory.limit_in_bytes")));
}

/* Before memory is allocated. n = 0: as the environment (OMP_NUM_THREADS) says, else as many as the
 * process may use: its affinity, which OpenMP knows, and its cgroup limit them. More are far
 * slower, since those that work wait for those that wait for a core. */
static void set_threads(int n)
{
#ifdef _OPENMP
    const double allowed = cgroup_limit("/proc/self/cgroup", "0::", "/sys/fs/cgroup", "cpu.max");
    const int cores = (int)fmax(1, fmin(omp_get_num_procs(), allowed));
    if (n > 0 || !getenv("OMP_NUM_THREADS")) omp_set_num_threads(n > 0 ? n : cores);
    if (omp_get_max_threads() > cores)
        warn("%s: this process may use only %s, so they are slow. %s.",
             counted(omp_get_max_threads(), "thread"), counted(cores, "core"),
             n > 0 ? "Leave --threads out" : "Unset OMP_NUM_THREADS");
#else
    if (n > 1) warn("--threads %d: built without OpenMP, so one thread works.", n);
#endif
}

static void set_precision(const char *name)
{
    product_precision = strcmp(name, "bf16") ? FP32 : amx_exists() ? BF16_TILES : BF16;
}

/* --- Settings: one table serves the command line, --help, metadata and --resume --- */

/* A row of a table, which ends with a row without a name. INTEGER and LONG also read 64k, 100M, 2G.
 * SECONDS reads 90, 90s, 30m, 2h. CHOICE reads one word of `choices`, "a|b|c". A TEXT is not empty,
 * unless it may be; a required one must be given unless its value is already set. */
struct Option {
    const char *name, *meaning;
    enum { FLAG, INTEGER, LONG, REAL_NUMBER, SECONDS, TEXT, CHOICE } kind;
    void *value;                /* bool, int, int64_t, double, double, const char *, const char * */
    double min, max;
    const char *choices;
    /* On the result. DEFINES: it is stored with a model or state, and --resume must agree with it.
     * EXTENDS: it is stored, too, but --resume may change it. */
    enum { PASSING, DEFINES, EXTENDS } effect;
    const char *idle;           /* "without val|with schedule constant": no effect then */
    bool required, may_be_empty, given;     /* given: set when the command line names it */
};

#define PRECISION_OPTION(place)                                                                \
    {"precision", "of the factors of products; bf16 is faster on AMD's Zen 4 and Intel's AMX", \
     CHOICE, place, .choices = "fp32|bf16", .effect = DEFINES}
#define THREADS_OPTION(place) {"threads", "0: all cores it may use", INTEGER, place, 0, 1024}

/* The row of that name; NULL: there is none. */
static struct Option *find_option(const struct Option *table, const char *name)
{
    while (table->name && strcmp(table->name, name)) table++;
    return table->name ? (struct Option *)table : NULL;
}

/* Whether the command line names the option, which the table must have. */
static bool is_given(const struct Option *table, const char *name)
{
    return find_option(table, name)->given;
}

/* The value as text: of a number the shortest from which it is read back, as `brief` keeps it. NULL
 * for a TEXT without a value and a FLAG that is not set. */
static const char *option_text(const struct Option *o)
{
    if (o->kind == FLAG) return *(bool *)o->value ? "1" : NULL;
    if (o->kind == INTEGER) return brief("%d", *(int *)o->value);
    if (o->kind == LONG) return brief("%lld", (long long)*(int64_t *)o->value);
    if (o->kind == TEXT || o->kind == CHOICE) return *(const char **)o->value;
    const double x = *(double *)o->value;
    const char *text = brief("%g", x);
    return strtod(text, NULL) == x ? text : brief("%.17g", x);
}

/* One line for each option: name, kind of value, meaning, default, unless the meaning tells it. */
static void print_options(const struct Option *table)
{
    static const char *const shown[] = {"", "N", "N", "X", "TIME", "TEXT", ""};
    for (const struct Option *o = table; o->name; o++) {
        const int width = printf("  --%s %s", o->name,
                                 o->kind == CHOICE ? o->choices : shown[o->kind]);
        const char *text = option_text(o);
        printf("%*s %s", width < 30 ? 30 - width : 1, "", o->meaning);
        if (text && o->kind != FLAG && (o->kind != SECONDS || strcmp(text, "0"))
            && !strstr(o->meaning, "if not given"))
            printf(" (%s)", text);
        printf("%s\n", o->required ? " (required)" : "");
    }
}

/* A number and at most one of `letters`, which scales it: 30m is 1,800, 64k is 64,000. */
static bool parse_number(const char *text, const char *letters, const double *scales, double *out)
{
    char *end;
    *out = strtod(text, &end);
    if (end == text || isspace((unsigned char)*text)) return false;
    const char *letter = *end ? strchr(letters, *end) : NULL;
    if (letter) { *out *= scales[letter - letters]; end++; }
    return !*end && isfinite(*out);
}

/* Sets the value from a text, or dies on one that is out of range. where: what messages name, such
 * as "--lr". The text must outlive the value. */
static void set_option(struct Option *o, const char *where, const char *text)
{
    const bool whole = o->kind == INTEGER || o->kind == LONG;
    double x = 0;
    if (o->kind == FLAG) { *(bool *)o->value = true; return; }
    if (o->kind == TEXT && !*text && !o->may_be_empty)
        die_usage("%s: the value is empty. Give one, or leave the option out.", where);
    if (o->kind == CHOICE && !is_choice(text, strlen(text), o->choices))
        die_usage("%s %s: not one of %s.", where, text, o->choices);
    if (o->kind == TEXT || o->kind == CHOICE) { *(const char **)o->value = text; return; }
    if (whole ? !parse_number(text, "kMG", (double[]){1e3, 1e6, 1e9}, &x) || x != floor(x)
              : !parse_number(text, o->kind == SECONDS ? "smh" : "", (double[]){1, 60, 3600}, &x))
        die_usage("%s %s: not a %s.", where, text, whole ? "whole number" : o->kind == SECONDS ?
                  "time such as 90s, 30m or 2h" : "number");
    if (x < o->min || x > o->max)
        die_usage("%s %s: out of range, %.10g to %.10g.", where, text, o->min, o->max);
    if (o->kind == INTEGER) *(int *)o->value = (int)x;
    else if (o->kind == LONG) *(int64_t *)o->value = (int64_t)x;
    else *(double *)o->value = x;
}

/* Reads the options in argv[0 .. argc). Other arguments move to its front, in order. Returns how
 * many. --help prints `usage` and the table, then exits. After "--" nothing is an option. */
static int read_arguments(int argc, char **argv, struct Option *table, const char *usage)
{
    int left = 0, i = 0;
    while (i < argc && strcmp(argv[i], "--")) {
        char *arg = argv[i++], *value = strchr(arg, '=');
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            printf("%s\n", usage);
            print_options(table);
            exit(0);
        }
        if (strncmp(arg, "--", 2)) { argv[left++] = arg; continue; }
        if (value) *value++ = 0;
        struct Option *o = find_option(table, arg + 2);
        if (!o) die_usage("%s: no such option. --help lists them.", arg);
        if (o->kind == FLAG && value) die_usage("%s: takes no value.", arg);
        if (o->kind != FLAG && !value && i == argc) die_usage("%s: needs a value.", arg);
        o->given = true;
        set_option(o, arg, o->kind == FLAG || value ? value : argv[i++]);
    }
    for (i++; i < argc; i++) argv[left++] = argv[i];
    for (const struct Option *o = table; o->name; o++)
        if (o->required && !*(const char **)o->value)
            die_usage("--%s: must be given. --help explains it.", o->name);
    return left;
}

/* The same for a command that has options alone. */
static void read_options(int argc, char **argv, struct Option *table, const char *usage)
{
    if (read_arguments(argc, argv, table, usage) > 0)
        die_usage("%s: not an option. --help lists them.", argv[0]);
}

/* Warns of each option that was given and has no effect: a condition of `idle` ("with NAME", "with
 * NAME VALUE", "without NAME") holds. On are a FLAG that is set, a number other than 0, a TEXT. */
static void warn_idle(const struct Option *table)
{
    for (const struct Option *o = table; o->name; o++)
        for (const char *at = o->given ? o->idle : NULL; at; at = strchr(at, '|')) {
            char word[8], name[32], value[32] = "";
            at += *at == '|';
            sscanf(at, "%7s %31[^ |] %31[^|]", word, name, value);
            const struct Option *other = find_option(table, name);
            if (!other) continue;               /* of a row that several tables share */
            const char *is = option_text(other);
            const bool on = is && (*value ? !strcmp(is, value) : strcmp(is, "0") != 0);
            if (on != !strcmp(word, "with")) continue;
            warn("--%s: has no effect %s --%s%s%s.", o->name, word, name, *value ? " " : "", value);
            break;
        }
}

/* Stores the options that define the result, as PREFIX.NAME. */
static void describe_options(struct Json *meta, const struct Option *table, const char *prefix)
{
    for (const struct Option *o = table; o->name; o++) {
        const char *text = o->effect == PASSING ? NULL : option_text(o);
        if (text) metadata_set(meta, brief("%s.%s", prefix, o->name), "%s", text);
    }
}

/* For --resume: takes the options that were not given from what describe_options stored. Dies if
 * one that was given differs, unless it may. out: the directory of the run. */
static void resume_options(struct Option *table, const struct Json *old, const char *prefix,
                           const char *out)
{
    for (struct Option *o = table; o->name; o++) {
        const char *stored = json_text(old, brief("%s.%s", prefix, o->name), NULL);
        const char *now = option_text(o);
        if (o->effect != PASSING && !o->given && stored)
            set_option(o, brief("--%s", o->name), text_of("%s", stored));
        if (o->effect == DEFINES && o->given && (!now || !stored || strcmp(now, stored)))
            die_usage("--%s %s: the run in %s has %s. Leave it out to resume, or choose another "
                      "--out.", o->name, now ? now : "", out, stored ? stored : "none");
    }
}

/* Notes the hash of what a run has read. Dies if `old`, of the run in `out`, names another one. */
static void describe_input(struct Json *meta, const struct Json *old, const char *name,
                           const char *hash, const char *out)
{
    const char *was = json_text(old, name, NULL);
    if (old->child && (!was || strcmp(was, hash)))
        die("--resume: the run in %s was made with other input: its %s is %s, here %s. Resume with "
            "the same, or choose another --out.", out, name, was ? was : "(none)", hash);
    metadata_set(meta, name, "%s", hash);
}

/* --- The directory of a run: it is locked (lock_directory) and holds a log and a state --- */

/* Refuses an --out with one of the files, whose list NULL ends. remedy: what to do, a sentence. */
static void refuse_existing(const char *out, const char *const *files, const char *remedy)
{
    for (; *files; files++)
        if (file_exists(brief("%s/%s", out, *files)))
            die_usage("--out %s: already holds %s. %s", out, *files, remedy);
}

/* A word as it is typed in a shell, with a backslash before what has a meaning there. */
static const char *typed(const char *word)
{
    struct Buffer b = {0};
    for (; *word; word++)
        append(&b, strchr(" \t\n'\"\\$`&|;<>()*?[]#~!{}", *word) ? "\\%c" : "%c", *word);
    return b.data;
}

/* How to go on with a run that has ended early. done: how far it came. */
static void advise_resume(const char *command, const char *done, const char *out)
{
    progress(true, "stopped after %s and saved. Go on with: %s %s --out %s --resume", done,
             typed(called), command, typed(out));
    failed = stop_signal;
}

/* A journal is a TSV file that gets a row for each step, evaluation or training. Only the last two
 * columns may depend on the time; the others are the same in every run, and their hash is in the
 * state. So a resumed run finds the rows that its state knows, and cuts off those after them. */
struct Journal { struct Output file; uint64_t hash; };

/* Adds a row to the hash, without its last two columns. */
static void journal_hash(struct Journal *j, const char *row)
{
    size_t n = strcspn(row, "\n");
    for (int columns = 0; columns < 2 && n; columns += row[--n] == '\t') ;
    j->hash = mix64(j->hash ^ checksum(row, n));
}

/* The whole rows of a journal, after its header; NULL: the file is no such journal, or not there.
 * The caller frees them. A last line without a newline was cut off by a crash and is left out. So
 * is what follows a NUL byte, as a file system may leave it where it lost data. */
static char *read_journal(const char *path, const char *header)
{
    const size_t n = strlen(header);
    if (!file_exists(path)) return NULL;
    struct Bytes file = read_file(path, SIZE_MAX / 2, false);
    char *text = (char *)file.data, *last = strrchr(text, '\n');
    if (strncmp(text, header, n) || !last) { free(text); return NULL; }
    last[1] = 0;
    return memmove(text, text + n, strlen(text + n) + 1);
}

/* Begins a journal: a new one, or that of a resumed run, whose metadata are `old`, with the rows
 * that its state knows. Dies if the file has others. It gets its name by the next commit_outputs.
 * Returns the rows, which the caller frees. */
static char *journal_open(struct Journal *j, const char *path, const char *header,
                          const struct Json *old)
{
    const char *known = json_text(old, "log_hash", NULL);
    const uint64_t hash = known ? strtoull(known, NULL, 16) : 0;
    char *text = known ? read_journal(path, header) : NULL, *at;
    if (!text) text = text_of("%s", "");
    *j = (struct Journal){{.path = text_of("%s", path)}, 0};
    for (at = text; j->hash != hash && *at; at = strchr(at, '\n') + 1) journal_hash(j, at);
    *at = 0;
    if (j->hash != hash || (old->child && !known))
        die("%s: is not the log of the run beside it. Start again with --overwrite.", path);
    struct Output *o = output_open(path);
    output_write(o, header, strlen(header));
    output_write(o, text, strlen(text));
    j->file.fd = dup(o->fd);
    return text;
}

/* journal_add(journal, format, ...) adds a row, with its newline. */
#define journal_add(j, ...) journal_put(j, text_of(__VA_ARGS__))
static void journal_put(struct Journal *j, char *row)
{
    journal_hash(j, row);
    output_write(&j->file, row, strlen(row));
    free(row);
}

static void journal_flush(const struct Journal *j)
{
    if (fsync(j->file.fd)) die_unwritten(j->file.path);
}

/* Flushes the journal, and notes in a state the hash of its rows. */
static void journal_describe(struct Json *state, const struct Journal *j)
{
    journal_flush(j);
    metadata_set(state, "log_hash", "%s", hash_text(j->hash));
}

/* --- Subcommands --- */

/* A subcommand gets the arguments after its name and returns the exit status. */
struct Command { const char *name; int (*run)(int argc, char **argv); const char *meaning; };

/* The whole of main: runs the subcommand that argv[1] names. --help lists all of them. */
static int run_command(const char *name, int argc, char **argv, const struct Command *commands,
                       int count)
{
    const char *chosen = argc > 1 ? argv[1] : "";
    begin_program(name, argv);
    for (int i = 0; i < count; i++)
        if (!strcmp(chosen, commands[i].name)) return commands[i].run(argc - 2, argv + 2);
    if (!is_choice(chosen, strlen(chosen), "--help|-h|help"))
        die_usage("\"%s\": no such subcommand. %s --help lists them.", chosen, name);
    printf("%s SUBCOMMAND [options]\n", name);
    for (int i = 0; i < count; i++) printf("  %-10s %s\n", commands[i].name, commands[i].meaning);
    printf("%s SUBCOMMAND --help lists the options.\n", name);
    return 0;
}

#endif
