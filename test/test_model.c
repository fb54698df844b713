/* test_model.c: model.h against the plain loops of reference.h, against finite differences,
 * against PyTorch (test/golden, written by dev/make_golden.py), and against itself: one sequence
 * or many, one thread or three, saved or not. Run from the repository root.
 *
 * The same source is built twice: as test_model with real = float, and as test_model_double with
 * -DREAL=double, where gradients agree with finite differences to seven digits. */

#include "fence.h"
#include "../model.h"
#include "check.h"
#include "reference.h"

static const bool exact = sizeof(real) == sizeof(double);

/* What rounding may do to a sum of some hundred terms, and to a tensor after a whole model. */
static const double SUM_ERROR = sizeof(real) == sizeof(double) ? 2e-14 : 3e-6;
static const double MODEL_ERROR = sizeof(real) == sizeof(double) ? 1e-12 : 2e-5;

static struct Random rng = {1, 0};

static int below(int n) { return (int)random_below(&rng, n); }

static real *randoms(size_t n, double deviation)
{
    real *x = resize(NULL, n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (real)(deviation * random_normal(&rng));
    return x;
}

static double *as_doubles(const real *x, size_t n)
{
    double *y = resize(NULL, n * sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = x[i];
    return y;
}

static double *zeros(size_t n)
{
    double *y = resize(NULL, n * sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = 0;
    return y;
}

static double error_of(const real *got, const double *want, size_t n)
{
    double *all = as_doubles(got, n), error = relative_error(all, want, n);
    free(all);
    return error;
}

/* The larger error; a NaN stays. */
static double worse(double a, double b) { return a > b || isnan(a) ? a : b; }

static bool same_bytes(const real *a, const real *b, size_t n)
{
    return !memcmp(a, b, n * sizeof *a);
}

/* Most tests run on one thread; that any other number gives the same bits has tests of its own. */
#ifdef _OPENMP
enum { MOST_THREADS = 3 };
#else
enum { MOST_THREADS = 1 };
#endif

/* ============================================================================================= */
/* Numbers                                                                                       */
/* ============================================================================================= */

static void test_random(void)
{
    enum { COUNT = 100000 };
    struct Random a = random_stream(1, 2), b = random_stream(1, 3), c = random_stream(2, 2),
        again = a;
    double mean = 0, square = 0, uniform = 0, fourth = 0;
    int equal = 0, counts[7] = {0}, order[50], seen = 0;
    for (int i = 0; i < COUNT; i++) {
        const uint64_t x = random_bits(&a);
        equal += x == random_bits(&b) || x == random_bits(&c) || x != random_bits(&again);
        const double u = random_uniform(&a), z = random_normal(&b);
        uniform += u / COUNT;
        mean += z / COUNT;
        square += z * z / COUNT;
        fourth += z * z * z * z / COUNT;
        counts[random_below(&c, 7)]++;
        again = a;
    }
    check(equal == 0, "random: streams differ, and a copied state continues the same");
    check(fabs(uniform - 0.5) < 0.005, "random_uniform: mean %.4f", uniform);
    check(fabs(mean) < 0.02 && fabs(square - 1) < 0.03 && fabs(fourth - 3) < 0.2,
          "random_normal: moments %.3f %.3f %.3f", mean, square, fourth);
    double most = 0;
    for (int i = 0; i < 7; i++) {       /* not fmax, on which gcc 12 for aarch64 fails here */
        const double off = fabs(counts[i] - COUNT / 7.0);
        if (off > most) most = off;
    }
    check(most < 500, "random_below: all values equally often (off by %.0f)", most);
    for (int i = 0; i < 50; i++) order[i] = i;
    shuffle(order, 50, &a);
    int moved = 0;
    for (int i = 0; i < 50; i++) { seen += order[i] >= 0 && order[i] < 50; moved += order[i] != i; }
    for (int i = 0; i < 50; i++)
        for (int j = 0; j < i; j++) seen -= order[i] == order[j];
    check(seen == 50 && moved > 30, "shuffle: a permutation");
    int orders[27] = {0}, rare = 0;             /* of three items, numbered by their digits */
    for (int i = 0; i < 6000; i++) {
        int items[] = {0, 1, 2};
        shuffle(items, 3, &a);
        orders[9 * items[0] + 3 * items[1] + items[2]]++;
    }
    for (int i = 0; i < 27; i++) rare += orders[i] > 900 && orders[i] < 1100;
    check(rare == 6, "shuffle: each of the 6 orders of 3 items in about a sixth of the cases");
}

static void test_exp(void)
{
    enum { COUNT = 1 << 18 };
    const real bound = exact ? 700 : 87;
    real *x = randoms(COUNT, 1), *y = randoms(COUNT, 1);
    double worst = 0;
    for (int i = 0; i < COUNT; i++) x[i] = bound * (2 * (real)i / COUNT - 1);
    for (int i = 0; i < COUNT; i++) y[i] = exp_real(x[i]);
    for (int i = 0; i < COUNT; i++) worst = worse(fabs(y[i] / exp((double)x[i]) - 1), worst);
    check(worst < (exact ? 1e-15 : 2.5e-7), "exp: largest relative error %.1e", worst);
    check(exp_real(0) == 1, "exp(0) = 1");
    check(exp_real(-1000) < 1e-37 && exp_real(-INFINITY) < 1e-37,
          "exp of very negative values is almost 0");
    check(exp_real(1000) > (real)1e38 && exp_real(INFINITY) > (real)1e38,
          "exp of large values is large");
    check(isnan(exp_real(NAN)), "exp(NaN) is NaN");
    free(x);
    free(y);
}

/* ============================================================================================= */
/* GEMM                                                                                          */
/* ============================================================================================= */

/* A product to try: whether A and B are stored transposed, how far their rows stand apart beyond
 * their length, and what the sum starts from. */
struct Product {
    int M, N, K;
    bool a_transposed, b_transposed, bias;
    int gap;
    enum { FROM_NOTHING, FROM_ITSELF, FROM_ANOTHER } from;
    enum { BY_GEMM, BY_GEMV } by;
};

static struct Matrix stored(const real *at, int rows, int columns, bool is_transposed, int gap)
{
    return is_transposed ? transposed(matrix(at, rows + gap)) : matrix(at, columns + gap);
}

static void multiply(const struct Product *p, real *c, struct Matrix a, struct Matrix b,
                     const real *from, const real *bias)
{
    if (p->by == BY_GEMM) gemm(c, a, b, from, bias, p->M, p->N, p->K);
    if (p->by == BY_GEMV) gemv(c, a.at, b, from, bias, p->N, p->K);
}

/* The relative error against plain loops; infinite if anything beside the result was written to.
 * Nothing beyond the factors may be read. */
static double product_error(struct Product p)
{
    enum { GUARD = 100 };
    const size_t size = (size_t)p.M * p.N, c_size = size + 2 * GUARD,
                 a_size = (size_t)(p.M + p.gap) * (p.K + p.gap),
                 b_size = (size_t)(p.K + p.gap) * (p.N + p.gap);
    real *a = randoms(a_size, 1), *b = randoms(b_size, 1);
    real *all = randoms(c_size, 10), *c = all + GUARD, *other = randoms(size, 10),
         *bias = randoms(p.N, 10);
    const struct Matrix ma = stored(a, p.M, p.K, p.a_transposed, p.gap),
                        mb = stored(b, p.K, p.N, p.b_transposed, p.gap);
    const real *from = p.from == FROM_NOTHING ? NULL : p.from == FROM_ITSELF ? c : other;
    double *want = as_doubles(all, c_size), *start = from ? as_doubles(from, size) : zeros(size);
    for (int i = 0; i < p.M; i++)
        for (int j = 0; j < p.N; j++) {
            double sum = start[i * p.N + j] + (p.bias ? bias[j] : 0);
            for (int k = 0; k < p.K; k++)
                sum += (double)ma.at[i * ma.row + k * ma.column]
                     * mb.at[k * mb.row + j * mb.column];
            want[GUARD + i * p.N + j] = sum;
        }
    multiply(&p, c, ma, mb, from, p.bias ? bias : NULL);
    double error = error_of(c, want + GUARD, size);
    for (int i = 0; i < GUARD; i++)
        if (all[i] != want[i] || c[size + i] != want[GUARD + size + i]) error = INFINITY;
    free(a), free(b);
    free(all), free(other), free(bias), free(want), free(start);
    return error;
}

/* Sizes around those of a tile, a block and a chunk. */
static void test_gemm_shapes(void)
{
    const int sizes[] = {1, 2, 3, 5, 6, 7, 8, 12, 13, 15, 16, 17, 31, 32, 33, 64, 97, 130};
    const int depths[] = {0, 1, 2, 4, 7, 16, 33, 64, 100, 255, 256, 257, 513, 600};
    const char *const names[] = {"gemm", "gemv"};
    for (int by = BY_GEMM; by <= BY_GEMV; by++) {
        double worst = 0;
        for (int i = 0; i < 200; i++) {
            struct Product p = {.M = by == BY_GEMV ? 1 : sizes[below(18)], .N = sizes[below(18)],
                                .K = depths[below(14)], .by = by, .from = below(3),
                                .b_transposed = below(2)};
            if (by != BY_GEMV) { p.a_transposed = below(2); p.gap = 3 * below(2); }
            p.bias = below(2);
            worst = worse(product_error(p), worst);
        }
        check(worst < SUM_ERROR, "%s: 200 shapes, strides and starts; worst relative error %.1e",
              names[by], worst);
    }
    const struct Product large[] = {
        {CHUNK_M + 5, 40, 300, .bias = true, .from = FROM_ITSELF},
        {20, 20 * BLOCK_N + 3, 300, .b_transposed = true},
        {40, 3 * BLOCK_N + 1, 2 * BLOCK_K + 1, .a_transposed = true, .from = FROM_ITSELF},
        {CHUNK_M + 1, 8 * BLOCK_N + 1, 2, .bias = true},
        {1, 5000, 70, .b_transposed = true, .by = BY_GEMV},
    };
    for (int i = 0; i < 5; i++) {
        const double error = product_error(large[i]);
        check(error < SUM_ERROR, "%s (%d, %d, %d): relative error %.1e", names[large[i].by],
              large[i].M, large[i].N, large[i].K, error);
    }
}

static void test_gemm_nan(void)
{
    enum { M = 20, N = 37, K = 30 };
    real *a = randoms(M * K, 1), *b = randoms(K * N, 1), *c = randoms(M * N, 1);
    int wrong = 0;
    a[7 * K + 3] = NAN;
    gemm(c, matrix(a, K), matrix(b, N), NULL, NULL, M, N, K);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) wrong += isnan(c[i * N + j]) != (i == 7);
    check(wrong == 0, "gemm: NaN in a row of A makes that row NaN and no other");
    a[7 * K + 3] = 0;
    b[11 * N + 33] = INFINITY;
    gemm(c, matrix(a, K), matrix(b, N), NULL, NULL, M, N, K);
    wrong = 0;
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) wrong += isfinite(c[i * N + j]) != (j != 33);
    check(wrong == 0, "gemm: infinity in a column of B shows in that column and no other");
    free(a), free(b), free(c);
}

/* A row has the same bits alone (of many, some are tried) and for any number of threads. */
static void test_gemm_bits(int M, int N, int K)
{
    real *a = randoms((size_t)M * K, 1), *b = randoms((size_t)K * N, 1), *bias = randoms(N, 1);
    real *c = randoms((size_t)M * N, 1), *row = randoms(N, 1), *again = randoms((size_t)M * N, 1);
    gemm(c, matrix(a, K), matrix(b, N), NULL, bias, M, N, K);
    int different = 0;
    for (int i = 0; i < M; i += 1 + M / 300) {
        gemm(row, matrix(a + (size_t)i * K, K), matrix(b, N), NULL, bias, 1, N, K);
        different += !same_bytes(row, c + (size_t)i * N, N);
    }
    check(different == 0, "gemm: each row alone has the same bits as in a batch of %d", M);
    for (int threads = 2; threads <= MOST_THREADS; threads++) {
        set_threads(threads);
        reserve_scratch(gemm_scratch());
        gemm(again, matrix(a, K), matrix(b, N), NULL, bias, M, N, K);
        check(same_bytes(c, again, (size_t)M * N),
              "gemm (%d, %d, %d): the same bits with %d threads", M, N, K, threads);
    }
    set_threads(1);
    free(a), free(b), free(bias), free(c), free(row), free(again);
}

/* ============================================================================================= */
/* Layers                                                                                        */
/* ============================================================================================= */

/* With draws of its own: what other tests draw must not decide how close two channels come. */
static void test_layernorm(int N, int C)
{
    rng = random_stream(N, C);
    const size_t n = (size_t)N * C;
    real *x = randoms(n, 2), *w = randoms(C, 1), *b = randoms(C, 1), *y = randoms(n, 1);
    real *dy = randoms(n, 1), *dx = randoms(n, 1), *dw = randoms(C, 1), *db = randoms(C, 1);
    real *mean = randoms(N, 1), *rstd = randoms(N, 1);
    for (size_t i = 0; i < n; i++) x[i] += 3;       /* a mean that must be taken out */
    double *X = as_doubles(x, n), *W = as_doubles(w, C), *B = as_doubles(b, C),
        *DY = as_doubles(dy, n);
    double *Y = zeros(n), *DX = as_doubles(dx, n), *DW = as_doubles(dw, C), *DB = as_doubles(db, C);
    plain_layernorm(Y, X, W, B, N, C);
    plain_layernorm_backward(DX, DW, DB, DY, X, W, N, C);
    layernorm_forward(y, mean, rstd, x, w, b, N, C);
    layernorm_backward(dx, dw, db, dy, x, w, mean, rstd, N, C);
    const double forward = error_of(y, Y, n);
    const double backward = worse(error_of(dx, DX, n),
                                  worse(error_of(dw, DW, C), error_of(db, DB, C)));
    check(forward < SUM_ERROR, "layernorm (%d, %d): relative error %.1e", N, C, forward);
    check(backward < SUM_ERROR, "layernorm backward (%d, %d): adds, relative error %.1e", N, C,
          backward);
    free(x), free(w), free(b), free(y), free(dy), free(dx), free(dw), free(db),
        free(mean), free(rstd);
    free(X), free(W), free(B), free(DY), free(Y), free(DX), free(DW), free(DB);
}

/* Channels far from 0: the mean must be taken out before the squares are summed. */
static void test_layernorm_offset(int N, int C)
{
    const size_t n = (size_t)N * C;
    real *x = randoms(n, 2), *w = randoms(C, 1), *b = randoms(C, 1), *y = randoms(n, 1),
        *mean = randoms(N, 1), *rstd = randoms(N, 1);
    for (size_t i = 0; i < n; i++) x[i] += 1000;
    double *X = as_doubles(x, n), *W = as_doubles(w, C), *B = as_doubles(b, C), *Y = zeros(n);
    plain_layernorm(Y, X, W, B, N, C);
    layernorm_forward(y, mean, rstd, x, w, b, N, C);
    const double error = error_of(y, Y, n);
    check(error < 300 * SUM_ERROR, "layernorm (%d, %d) of channels near 1000: relative error %.1e",
          N, C, error);
    free(x), free(w), free(b), free(y), free(mean), free(rstd);
    free(X), free(W), free(B), free(Y);
}

static void test_linear(int N, int C, int OC)
{
    const size_t n = (size_t)N * C, m = (size_t)N * OC, k = (size_t)C * OC;
    real *x = randoms(n, 1), *w = randoms(k, 1), *b = randoms(OC, 1), *y = randoms(m, 1),
        *from = randoms(m, 1);
    real *dy = randoms(m, 1), *dx = randoms(n, 1), *dw = randoms(k, 1), *db = randoms(OC, 1);
    double *X = as_doubles(x, n), *W = as_doubles(w, k), *B = as_doubles(b, OC),
        *DY = as_doubles(dy, m);
    double *Y = zeros(m), *FROM = as_doubles(from, m);
    double *DX = zeros(n), *DW = as_doubles(dw, k), *DB = as_doubles(db, OC);
    plain_linear(Y, X, W, B, N, C, OC);
    plain_add(Y, FROM, m);
    plain_linear_backward(DX, DW, DB, DY, X, W, N, C, OC);
    linear_forward(y, from, x, w, b, N, C, OC);
    linear_backward_input(dx, dy, w, N, C, OC);
    linear_backward_weights(dw, db, dy, x, N, C, OC);
    const double forward = error_of(y, Y, m);
    const double backward = worse(error_of(dx, DX, n),
                                  worse(error_of(dw, DW, k), error_of(db, DB, OC)));
    check(forward < SUM_ERROR, "linear (%d, %d, %d): relative error %.1e", N, C, OC, forward);
    check(backward < SUM_ERROR,
          "linear backward (%d, %d, %d): sets dx, adds the rest, relative error %.1e",
          N, C, OC, backward);
    free(x), free(w), free(b), free(y), free(from), free(dy), free(dx), free(dw), free(db);
    free(X), free(W), free(B), free(DY), free(Y), free(FROM), free(DX), free(DW), free(DB);
}

static void test_embedding(void)
{
    enum { N = 50, C = 70, V = 9, T = 20 };         /* tokens and positions occur several times */
    real *x = randoms(N * C, 1), *wte = randoms(V * C, 1), *wpe = randoms(T * C, 1),
        *dx = randoms(N * C, 1);
    real *dwte = randoms(V * C, 1), *dwpe = randoms(T * C, 1);
    double *X = zeros(N * C), *WTE = as_doubles(wte, V * C), *WPE = as_doubles(wpe, T * C),
        *DX = as_doubles(dx, N * C);
    double *DWTE = as_doubles(dwte, V * C), *DWPE = as_doubles(dwpe, T * C);
    int tokens[N], starts[] = {0, T, T, 2 * T, N};          /* one is empty */
    const struct Batch batch = {N, 4, tokens, starts};
    for (int n = 0; n < N; n++) tokens[n] = below(V);
    for (int n = 0; n < N; n += T) {
        const int rows = min_int(T, N - n);
        plain_embedding(X + n * C, tokens + n, WTE, WPE, rows, C);
        plain_embedding_backward(DWTE, DWPE, DX + n * C, tokens + n, rows, C);
    }
    embedding_forward(x, &batch, wte, wpe, C);
    embedding_backward(dwte, dwpe, dx, &batch, C);
    check(error_of(x, X, N * C) < SUM_ERROR, "embedding: relative error %.1e",
          error_of(x, X, N * C));
    const double backward = worse(error_of(dwte, DWTE, V * C), error_of(dwpe, DWPE, T * C));
    check(backward < SUM_ERROR, "embedding backward: adds, relative error %.1e", backward);
    free(x), free(wte), free(wpe), free(dx), free(dwte), free(dwpe);
    free(X), free(WTE), free(WPE), free(DX), free(DWTE), free(DWPE);
}

static void test_gelu(void)
{
    enum { COUNT = 40001 };
    real *x = randoms(COUNT, 1), *y = randoms(COUNT, 1), *y2 = randoms(COUNT, 1),
        *d = randoms(COUNT, 1);
    double value = 0, slope = 0;
    for (int i = 0; i < COUNT; i++) { x[i] = (real)(i - COUNT / 2) / 1000; d[i] = 2; }
    gelu_forward(y, x, COUNT);
    gelu_backward(d, y2, x, COUNT);
    for (int i = 0; i < COUNT; i++) {
        value = worse(fabs(y[i] - plain_gelu(x[i])) / (1 + fabs(plain_gelu(x[i]))), value);
        slope = worse(fabs(d[i] - 2 * plain_gelu_slope(x[i])), slope);
    }
    check(value < (exact ? 1e-15 : 3e-7), "gelu on -20 .. 20: largest error %.1e", value);
    check(slope < (exact ? 1e-13 : 1e-5), "gelu backward: largest error %.1e", slope);
    double again = 0;
    for (int i = 0; i < COUNT; i++) again = worse(fabs(y2[i] - y[i]), again);
    check(again < SUM_ERROR, "gelu backward: gelu(x) once more, within %.1e", again);
    x[0] = NAN;
    gelu_forward(y, x, COUNT);
    check(isnan(y[0]) && !isnan(y[1]), "gelu(NaN) is NaN");
    free(x), free(y), free(y2), free(d);
}

static int *starts_of(const int *lengths, int sequences)
{
    int *starts = resize(NULL, (sequences + 1) * sizeof *starts);
    starts[0] = 0;
    for (int s = 0; s < sequences; s++) starts[s + 1] = starts[s] + lengths[s];
    return starts;
}

/* Attention of all rows, and backward. */
static void attention_both(real *y, real *lse, real *dqkv, const real *dy, const real *qkv,
                           const struct Batch *batch, int C, int H)
{
    attention_forward(y, lse, qkv, batch, C, H, (struct Dropout){0});
    attention_backward(dqkv, dy, y, qkv, lse, batch, C, H, (struct Dropout){0});
}

static void test_attention(const int *lengths, int sequences, int C, int H)
{
    int *starts = starts_of(lengths, sequences), N = starts[sequences];
    const struct Batch batch = {N, sequences, NULL, starts};
    const size_t n = (size_t)N * C;
    real *qkv = randoms(3 * n, 1.5), *y = randoms(n, 1), *lse = randoms((size_t)N * H, 1),
        *dy = randoms(n, 1);
    real *dqkv = randoms(3 * n, 1);
    double *QKV = as_doubles(qkv, 3 * n), *Y = zeros(n), *DY = as_doubles(dy, n),
        *DQKV = zeros(3 * n), *S = zeros((size_t)H * N * N), *P = zeros((size_t)H * N * N);
    for (int s = 0; s < sequences; s++) {
        const size_t at = (size_t)starts[s] * C;
        plain_attention(Y + at, P, S, QKV + 3 * at, lengths[s], C, H);
        plain_attention_backward(DQKV + 3 * at, DY + at, P, QKV + 3 * at, lengths[s], C, H);
    }
    reserve_scratch(attention_scratch(N, C / H));
    attention_both(y, lse, dqkv, dy, qkv, &batch, C, H);
    const double forward = error_of(y, Y, n), backward = error_of(dqkv, DQKV, 3 * n);
    check(forward < 2 * SUM_ERROR,
          "attention, %d sequences, first %d, C %d, H %d: relative error %.1e", sequences,
          lengths[0], C, H, forward);
    check(backward < 3 * SUM_ERROR, "attention backward, the same: relative error %.1e", backward);
    real *scores = randoms((size_t)H * N, 1);
    for (int s = 0; s < sequences; s++)
        for (int n = 0; n < lengths[s]; n++) {
            const size_t at = (size_t)starts[s] * C;
            attention_row(y + at + (size_t)n * C, scores, qkv + 3 * at, n + 1, C, H);
        }
    const double rows = error_of(y, Y, n);
    check(rows < 2 * SUM_ERROR, "attention of each row, the same: relative error %.1e", rows);
    free(scores), free(starts), free(qkv), free(y), free(lse), free(dy), free(dqkv);
    free(QKV), free(Y), free(DY), free(DQKV), free(S), free(P);
}

enum { GUARD = 1 << 16 };       /* values after the end of the scratch, which must not change */

static bool guard_whole(const real *guard)
{
    for (int i = 0; i < GUARD; i++)
        if (guard[i] != 12345) return false;
    return true;
}

/* Each thread's scratch is exactly as large as attention_scratch says. */
static void test_attention_scratch(void)
{
    const int widths[] = {1, 16, 64, 65, 68, 80, 130, 260};
    const int lengths[] = {1, 60, 64, 65, 100, 200, 256, 300};
    real *const before = scratch;
    const size_t size_before = scratch_size;
    int overrun = 0;
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 8; k++) {
            const int D = widths[i], T = lengths[k];
            const struct Batch batch = {T, 1, NULL, (int[]){0, T}};
            real *qkv = randoms((size_t)3 * T * D, 1), *y = randoms((size_t)T * D, 1),
                *lse = randoms(T, 1);
            real *dqkv = randoms((size_t)3 * T * D, 1);
            scratch_size = attention_scratch(T, D);
            scratch = resize(NULL, (scratch_size + GUARD) * sizeof(real));
            for (int g = 0; g < GUARD; g++) scratch[scratch_size + g] = 12345;
            attention_both(y, lse, dqkv, y, qkv, &batch, D, 1);
            if (!guard_whole(scratch + scratch_size)) {
                printf("     D %d, T %d: written beyond the scratch\n", D, T);
                overrun++;
            }
            free(scratch), free(qkv), free(y), free(lse), free(dqkv);
        }
    scratch = before;
    scratch_size = size_before;
    check(overrun == 0, "attention: stays within its scratch for %d widths and lengths", 64);
}

static void test_dropout(void)
{
    enum { COUNT = 200000 };
    const double p = 0.3;
    real *ones = randoms(COUNT, 1), *y = randoms(COUNT, 1), *again = randoms(COUNT, 1),
        *other = randoms(COUNT, 1);
    for (int i = 0; i < COUNT; i++) ones[i] = 1;
    const struct Dropout mask = dropout_at((struct Dropout){p, 42}, 0, AT_MLP_PROJECTION);
    dropout(y, NULL, ones, COUNT, mask);
    dropout(again, NULL, ones, COUNT, mask);
    dropout(other, NULL, ones, COUNT, dropout_at((struct Dropout){p, 42}, 1, AT_MLP_PROJECTION));
    int kept = 0, strange = 0, both = 0, runs = 0;
    for (int i = 0; i < COUNT; i++) {
        kept += y[i] != 0;
        strange += y[i] != 0 && fabs(y[i] - 1 / (1 - p)) > 1e-6;
        both += y[i] != 0 && other[i] != 0;
        runs += i > 0 && y[i] != 0 && y[i - 1] != 0;
    }
    const double n = COUNT, keep = 1 - p;
    check(fabs(kept / n - keep) < 0.005 && strange == 0,
          "dropout: keeps %.4f of the values, times 1 / (1 - p)", kept / n);
    check(fabs(both / n - keep * keep) < 0.005 && fabs(runs / n - keep * keep) < 0.005,
          "dropout: layers and neighbours are independent (%.4f, %.4f)", both / n, runs / n);
    check(same_bytes(y, again, COUNT), "dropout: the same key gives the same mask");
    dropout(y, ones, ones, 10, mask);
    check(fabs(y[0] - 1 - again[0]) < 1e-6 && fabs(y[9] - 1 - again[9]) < 1e-6,
          "dropout: adds to the residual stream");
    free(ones), free(y), free(again), free(other);
}

/* Every place of every layer has a mask of its own, the embedding (layer -1) included. */
static void test_dropout_keys(void)
{
    enum { LAYERS = 49 };
    uint32_t keys[LAYERS * DROPOUT_PLACES + 1];
    int same = 0, n = 0;
    const struct Dropout d = {0.1, 42};
    keys[n++] = (uint32_t)dropout_at(d, -1, AT_EMBEDDING).key;
    for (int layer = 0; layer < LAYERS; layer++)
        for (int place = AT_ATTENTION; place < DROPOUT_PLACES; place++)
            keys[n++] = (uint32_t)dropout_at(d, layer, place).key;
    for (int i = 0; i < n; i++) for (int k = 0; k < i; k++) same += keys[i] == keys[k];
    check(same == 0, "dropout: %d places in %d layers have keys of their own", n, LAYERS);
}

/* With all queries 0, attention averages what its dropout leaves of the values; these are all 1, so
 * each sum is 1 on average, and two heads agree only by chance. */
static void test_attention_dropout(void)
{
    enum { T = 150, FIRST = 50, C = 64, H = 4, D = C / H };
    const double count = (T - FIRST) * H;
    const struct Batch batch = {T, 1, NULL, (int[]){0, T}};
    const struct Dropout d = dropout_at((struct Dropout){0.25, 5}, 0, AT_ATTENTION);
    real *qkv = randoms(3 * T * C, 0), *y = randoms(T * C, 1), *lse = randoms(T * H, 1);
    double mean = 0, variance = 0, heads = 0, rows = 0;
    for (int n = 0; n < T; n++)
        for (int c = 0; c < C; c++) qkv[n * 3 * C + 2 * C + c] = 1;
    reserve_scratch(attention_scratch(T, D));
    attention_forward(y, lse, qkv, &batch, C, H, d);
    for (int n = FIRST; n < T; n++)
        for (int h = 0; h < H; h++) {
            const double sum = y[n * C + h * D], before = y[(n - 1) * C + h * D];
            mean += sum / count;
            variance += (sum - 1) * (sum - 1) / count;
            heads += fabs(sum - y[n * C + (h + 1) % H * D]) < 1e-6;
            rows += fabs(sum * (n + 1) - before * n) < 1.4;     /* at most one key more */
        }
    check(fabs(mean - 1) < 0.02 && variance > 1e-3 && variance < 1e-2,
          "attention dropout: what is left sums to %.3f on average", mean);
    check(heads < 0.3 * count && rows < 0.6 * count,
          "attention dropout: heads and rows have masks of their own (%.0f, %.0f of %.0f alike)",
          heads, rows, count);
    free(qkv), free(y), free(lse);
}

static void test_cross_entropy(void)
{
    enum { V = 101 };
    real logits[V], gradient[V], p[V];
    double P[V], want, error = 0, error_p = 0;
    for (int v = 0; v < V; v++)
        logits[v] = (real)(80 * random_normal(&rng));       /* beyond exp's range */
    logits[17] = 150;
    logits[5] = 149;
    for (int v = 0; v < V; v++) P[v] = gradient[v] = p[v] = logits[v];
    plain_softmax(P, V);
    want = -log(P[5]);
    const double loss = cross_entropy(gradient, 5, (real)0.5, V),
        silent = softmax(p, 1, 1, V) - 149;
    for (int v = 0; v < V; v++) {
        error = worse(fabs(gradient[v] - 0.5 * (P[v] - (v == 5))), error);
        error_p = worse(fabs(p[v] - P[v]), error_p);
    }
    check(fabs(loss - want) < 1e-4 * want && loss == silent,
          "cross-entropy of large logits: %.6f, %.6f", loss, want);
    check(error < 1e-6 && error_p < 1e-6, "cross-entropy: gradient and probabilities within %.1e",
          worse(error, error_p));
    const double none = cross_entropy(logits, -1, 1, V);
    for (int v = 0; v < V; v++) error = worse(fabs(logits[v]), error);
    check(none == 0 && error < 1e-6, "cross-entropy: no target, no loss and no gradient");
    logits[3] = NAN;
    check(isnan(cross_entropy(logits, 5, 0, V)),
          "cross-entropy: NaN among the logits makes the loss NaN");
}

/* ============================================================================================= */
/* The whole model                                                                               */
/* ============================================================================================= */

/* Sequences with targets and labels. */
struct Case { struct Batch batch; int *tokens, *starts, *targets, *labels; };

static struct Case case_of(const int *lengths, int sequences, const int *tokens)
{
    struct Case c = {.starts = starts_of(lengths, sequences)};
    const int N = c.starts[sequences];
    c.tokens = resize(NULL, N * sizeof(int));
    c.targets = resize(NULL, N * sizeof(int));
    c.labels = resize(NULL, sequences * sizeof(int));
    memcpy(c.tokens, tokens, N * sizeof(int));
    for (int s = 0; s < sequences; s++)
        for (int n = c.starts[s]; n < c.starts[s + 1]; n++)
            c.targets[n] = n + 1 < c.starts[s + 1] ? c.tokens[n + 1] : -1;
    c.batch = (struct Batch){N, sequences, c.tokens, c.starts};
    return c;
}

static struct Case random_case(const int *lengths, int sequences, const struct Config *config)
{
    int N = 0;
    for (int s = 0; s < sequences; s++) N += lengths[s];
    int tokens[N + 1];                  /* N may be 0 */
    tokens[N] = 0;
    for (int n = 0; n < N; n++) tokens[n] = below(config->vocabulary);
    struct Case c = case_of(lengths, sequences, tokens);
    for (int s = 0; s < sequences; s++) c.labels[s] = below(max_int(1, config->labels));
    return c;
}

static void case_free(struct Case *c)
{
    free(c->tokens), free(c->starts), free(c->targets), free(c->labels);
}

static int targets_in(const struct Case *c)
{
    int count = 0;
    for (int n = 0; n < c->batch.rows; n++) count += c->targets[n] >= 0;
    return count;
}

/* What is minimised: lm * sum over targets + cls * sum over labels, with class weights if there are
 * any, under dropout. Both heads add to the same gradient, so either may come first. */
struct Objective {
    real lm, cls;
    const real *class_weights;
    double dropout;
    uint64_t key;
    bool cls_first;
};

static double loss_of(struct Model *m, struct Workspace *ws, const struct Case *c,
                      const struct Objective *o, bool gradient)
{
    double loss = 0;
    if (gradient) memset(m->grads, 0, m->parameter_count * sizeof(real));
    trunk_forward(m, ws, &c->batch, o->dropout, o->key);
    for (int turn = 0; turn < 2; turn++) {
        const bool classes = turn != o->cls_first;
        if (classes && o->cls != 0)
            loss += o->cls * class_head(m, ws, &c->batch, c->labels, o->class_weights,
                                        gradient ? o->cls : 0, NULL);
        if (!classes && o->lm != 0)
            loss += o->lm * lm_head(m, ws, &c->batch, c->targets, gradient ? o->lm : 0);
    }
    if (gradient) trunk_backward(m, ws, &c->batch);
    return loss;
}

static char *class_names[] = {"zero", "one", "two", "three"};

/* A model ready to learn, whose weights are far from special values: large enough that attention is
 * not uniform, gains not 1, biases not 0. */
static void model_random(struct Model *m, struct Config config, int first_layer)
{
    config.label_names = class_names;
    model_create(m, config);
    for (int i = 0; i < m->tensor_count; i++) {
        const struct Tensor *p = &m->tensors[i];
        for (size_t k = 0; k < p->size; k++)
            m->weights[p->offset + k] =
                (real)(float)((p->init == ONES) + 0.2 * random_normal(&rng));
    }
    model_train_from(m, first_layer);
}

/* A trunk whose weights are all 0, but for the last bias of each of two blocks, which is 1. Dropout
 * doubles it or drops it, so the residual stream holds 0, 2 or 4. If the blocks shared their masks,
 * there would be no 2. */
static void test_layers_own_masks(void)
{
    enum { N = 64, C = 32 };
    const int lengths[] = {N};
    const struct Config config = {2, 2, C, N, 11, 0, NULL};
    struct Model m;
    struct Workspace ws;
    model_create(&m, config);
    for (int l = 0; l < 2; l++)
        for (int c = 0; c < C; c++) m.w.blocks[l].mlp_proj_b[c] = 1;
    struct Case c = random_case(lengths, 1, &config);
    workspace_create(&ws, &m, N, WORK_EVAL);
    trunk_forward(&m, &ws, &c.batch, 0.5, 3);
    const real *x = ws.activations[2].x;
    int counts[3] = {0};
    for (int i = 0; i < N * C; i++) counts[(int)(x[i] / 2 + 0.5)]++;
    check(counts[0] > 400 && counts[0] < 624 && counts[1] > 912 && counts[1] < 1136,
          "dropout: the masks of two blocks are independent (none %d, one %d, both %d of %d)",
          counts[0], counts[1], counts[2], N * C);
    case_free(&c), workspace_free(&ws), model_free(&m);
}

/* A step as the programs take it: clipped to norm 1. Returns the loss before it. */
static double train_step(struct Model *m, struct Workspace *ws, const struct Case *c,
                         const struct Objective *o, double lr, int step)
{
    const double loss = loss_of(m, ws, c, o, true), norm = grad_norm(m);
    adamw_step(m, lr, norm > 1 ? 1 / norm : 1, 0.1, step);
    return loss;
}

static void test_parameters(void)
{
    struct Model m;
    model_create(&m, (struct Config){12, 12, 768, 1024, 50257, 0, NULL});
    check(m.parameter_count == 124439808, "GPT-2 small has %zu parameters", m.parameter_count);
    check(m.tensor_count == 148, "in %d tensors", m.tensor_count);
    model_free(&m);
    model_create(&m, (struct Config){3, 2, 64, 32, 500, 3, class_names});
    model_init(&m, 1);
    size_t offset = 0;
    int wrong = 0, decayed = 0;
    for (int i = 0; i < m.tensor_count; i++) {
        const struct Tensor *p = &m.tensors[i];
        wrong += p->offset != offset || p->size != (size_t)p->rows * p->columns
            || p->decay != (p->rows > 1);
        offset += p->size;
        decayed += p->decay;
        double mean = 0, square = 0;
        for (size_t k = 0; k < p->size; k++) mean += m.weights[p->offset + k] / p->size;
        for (size_t k = 0; k < p->size; k++)
            square += pow(m.weights[p->offset + k] - mean, 2) / p->size;
        const bool bias = strstr(p->name, "bias"), gain = strstr(p->name, "ln_") && !bias;
        const double want = gain || bias ? 0 : strstr(p->name, "c_proj") ? 0.02 / sqrt(6) : 0.02;
        wrong += fabs(mean - (gain ? 1 : 0)) > 0.003 || fabs(sqrt(square) - want) > 0.1 * want;
    }
    check(wrong == 0 && offset == m.parameter_count,
          "parameters lie back to back, initialised as GPT-2's");
    check(decayed == 2 + 4 * 3 + 1, "weight decay on %d matrices, on no vector", decayed);
    struct Model same, other;
    model_create(&same, m.config);
    model_create(&other, m.config);
    model_init(&same, 1);
    model_init(&other, 2);
    check(same_bytes(m.weights, same.weights, m.parameter_count)
          && !same_bytes(m.weights, other.weights, m.parameter_count),
          "the seed determines the initial weights");
    model_free(&m), model_free(&same), model_free(&other);
}

/* Loss, hidden states and all gradients against the plain loops, on sequences longer than a
 * block of queries, shorter, and of one token. */
static void test_against_reference(struct Objective o, const char *what)
{
    const int lengths[] = {70, 1, 13, 66};
    const struct Config config = {3, 3, 48, 72, 61, 4, NULL};
    const struct PlainShape shape = {3, 3, 48, 72, 61, 4};
    struct Model m;
    struct Workspace ws;
    model_random(&m, config, 0);
    struct Case c = random_case(lengths, 4, &config);
    workspace_create(&ws, &m, c.batch.rows, WORK_TRAIN);
    double *weights = as_doubles(m.weights, m.parameter_count),
           *gradients = zeros(m.parameter_count), want = 0;
    double *hidden = zeros((size_t)c.batch.rows * config.channels);
    const struct PlainWeights w = plain_weights(weights, &shape);
    struct PlainWeights dw = plain_weights(gradients, &shape);
    const double loss = loss_of(&m, &ws, &c, &o, true);
    for (int s = 0; s < 4; s++) {
        const int at = c.starts[s], C = config.channels;
        const struct PlainExample e = {c.tokens + at, o.lm != 0 ? c.targets + at : NULL,
                                       o.cls != 0 ? c.labels[s] : -1, lengths[s]};
        struct PlainValues v = plain_values(e.N, &shape), dv = plain_values(e.N, &shape);
        const double scale = o.lm + o.cls;                  /* one of them is 0 */
        want += scale * plain_forward(&v, &w, &e, &shape);
        plain_backward(&dw, &dv, scale, &v, &w, &e, &shape);
        memcpy(hidden + (size_t)at * C, v.hidden, (size_t)e.N * C * sizeof *hidden);
        free(v.memory), free(dv.memory);
    }
    const double error = error_of(ws.hidden, hidden, (size_t)c.batch.rows * config.channels);
    double worst = 0;
    for (int i = 0; i < m.tensor_count; i++) {
        const struct Tensor *p = &m.tensors[i];
        worst = worse(error_of(m.grads + p->offset, gradients + p->offset, p->size), worst);
    }
    check(fabs(loss / want - 1) < MODEL_ERROR, "%s against plain loops: loss %.9f, %.9f", what,
          loss, want);
    check(error < MODEL_ERROR, "%s against plain loops: hidden states, relative error %.1e", what,
          error);
    check(worst < MODEL_ERROR, "%s against plain loops: gradients, worst tensor %.1e", what, worst);
    free(weights), free(gradients), free(hidden);
    case_free(&c), workspace_free(&ws), model_free(&m);
}

/* (loss(w + h) - loss(w - h)) / 2h against the gradient, at every entry of each tensor, or at some
 * chosen at random if there are more than `most`. A few gradients are 0, those of unread positions
 * and of the key biases, hence the 1e-3 below. */
static void test_finite_differences(struct Objective o, int most, const char *what)
{
    const double h = 2e-5;
    const int lengths[] = {5, 9, 1, 7};
    const struct Config config = {2, 2, 12, 9, 23, 3, NULL};
    struct Model m;
    struct Workspace ws;
    model_random(&m, config, 0);
    struct Case c = random_case(lengths, 4, &config);
    workspace_create(&ws, &m, c.batch.rows, WORK_TRAIN);
    loss_of(&m, &ws, &c, &o, true);
    double worst = 0;
    const char *where = "";
    for (int i = 0; i < m.tensor_count; i++) {
        const struct Tensor *p = &m.tensors[i];
        double difference = 0, norm = 0;
        for (int e = 0; e < min_int(most, (int)p->size); e++) {
            const size_t at = p->offset + (most < (int)p->size ? below((int)p->size) : e);
            const real w = m.weights[at];
            m.weights[at] = (real)(w + h);
            const double above = loss_of(&m, &ws, &c, &o, false);
            m.weights[at] = (real)(w - h);
            const double slope = (above - loss_of(&m, &ws, &c, &o, false)) / (2 * h);
            m.weights[at] = w;
            difference += pow(slope - m.grads[at], 2);
            norm += pow(slope, 2);
        }
        const double error = sqrt(difference) / (sqrt(norm) + 1e-3);
        if (error > worst || isnan(error)) { worst = error; where = p->name; }
    }
    check(worst < 1e-7, "finite differences, %s: worst of %d tensors %.1e (%s)", what,
          m.tensor_count, worst, where);
    case_free(&c), workspace_free(&ws), model_free(&m);
}

/* ============================================================================================= */
/* PyTorch                                                                                       */
/* ============================================================================================= */

static int read_integers(int *out, const char *text)
{
    int n = 0;
    char *end;
    for (long x; x = strtol(text, &end, 10), end != text; text = end) out[n++] = (int)x;
    return n;
}

static void read_doubles(double *out, const char *text, int n)
{
    char *end = (char *)text;
    for (int i = 0; i < n; i++) out[i] = strtod(end, &end);
}

static double metadata_number(const struct Json *meta, const char *key)
{
    return strtod(json_text(meta, key, NULL), NULL);
}

/* The worst relative error of a tensor of the model's against `want`, and its name. */
static double worst_tensor(const struct Model *m, const real *got, const real *want,
                           const char **where)
{
    double worst = 0, *all = as_doubles(want, m->parameter_count);
    *where = "";
    for (int i = 0; i < m->tensor_count; i++) {
        const struct Tensor *p = &m->tensors[i];
        const double error = error_of(got + p->offset, all + p->offset, p->size);
        if (error > worst || isnan(error)) { worst = error; *where = p->name; }
    }
    free(all);
    return worst;
}

/* A bias of the keys shifts all scores of a query alike, so its true gradient is 0, and AdamW turns
 * the rounding error that is left into steps of any size: such values say nothing. */
static void forget_key_biases(const struct Model *m, real *array)
{
    const int C = m->config.channels;
    for (int i = 0; i < m->tensor_count; i++)
        if (strstr(m->tensors[i].name, "attn.c_attn.bias"))
            memset(array + m->tensors[i].offset + C, 0, C * sizeof(real));
}

/* A Hugging Face directory, and what PyTorch computed with it in double precision; muon: with
 * torch.optim.Muon for the matrices of blocks. */
static void test_golden(const char *name, bool muon)
{
    struct Model m;
    struct Workspace ws;
    struct Json meta;
    char *dir = text_of("test/golden/%s", name);
    const char *by = muon ? "muon" : name;
    char *file = text_of("test/golden/%s.safetensors", by);
    load_model(&m, dir, &meta);
    struct Safetensors s = open_safetensors(file);
    meta = s.metadata;
    int lengths[16], tokens[256];
    double losses[3], norms[3];
    const int sequences = read_integers(lengths, json_text(&meta, "lengths", NULL));
    read_integers(tokens, json_text(&meta, "tokens", NULL));
    struct Case c = case_of(lengths, sequences, tokens);
    read_integers(c.labels, json_text(&meta, "labels", NULL));
    read_doubles(losses, json_text(&meta, "losses", NULL), 3);
    read_doubles(norms, json_text(&meta, "norms", NULL), 3);

    real *want = randoms(m.parameter_count, 1);
    const char *where;
    const struct Objective o = {m.config.labels ? 0 : (real)1 / targets_in(&c),
                                m.config.labels ? (real)1 / sequences : 0};
    model_train_from(&m, 0);
    m.beta1 = metadata_number(&meta, "beta1");
    m.beta2 = metadata_number(&meta, "beta2");
    if (muon) m.muon = allocate_zeroed(muon_scratch(&m.config) * sizeof(real));
    workspace_create(&ws, &m, c.batch.rows, WORK_TRAIN);
    for (int step = 1; step <= 3; step++) {
        const double loss = loss_of(&m, &ws, &c, &o, true), norm = grad_norm(&m),
            clip = metadata_number(&meta, "clip"), decay = metadata_number(&meta, "weight_decay"),
            lr = metadata_number(&meta, "lr");
        check(fabs(loss / losses[step - 1] - 1) < (exact ? 1e-7 : 1e-5)
              && fabs(norm / norms[step - 1] - 1) < (exact ? 1e-7 : 1e-5),
              "PyTorch, %s: loss %d is %.8f, norm %.8f", by, step, loss, norm);
        if (step == 1) {
            read_array(want, &s, &m, "grad.");
            const double worst = worst_tensor(&m, m.grads, want, &where);
            check(worst < (exact ? 1e-7 : MODEL_ERROR),
                  "PyTorch, %s: gradients, worst tensor %.1e (%s)", by, worst, where);
        }
        adamw_step(&m, lr, norm > clip ? clip / norm : 1, decay, step);
        muon_step(&m, lr, decay, 0, m.parameter_count);
    }
    read_array(want, &s, &m, "step3.");
    if (!exact) forget_key_biases(&m, want), forget_key_biases(&m, m.weights);
    const double worst = worst_tensor(&m, m.weights, want, &where);
    check(worst < (exact ? 2e-7 : MODEL_ERROR),
          "PyTorch, %s: three steps, worst tensor %.1e (%s)", by, worst, where);
    size_t left = 0;
    for (size_t k = 0; k < m.parameter_count; k++) left += m.grads[k] != 0;
    check(left == 0, "PyTorch, %s: a step leaves no gradient", by);
    release(m.muon, muon_scratch(&m.config) * sizeof(real));
    close_safetensors(&s), case_free(&c), workspace_free(&ws), model_free(&m), free(want),
        free(dir), free(file);
}

/* ============================================================================================= */
/* Identities                                                                                    */
/* ============================================================================================= */

/* A batch of sequences of different lengths gives each of them what it gets alone. */
static void test_alone(void)
{
    const int lengths[] = {66, 3, 1, 70, 17, 64}, S = 6;
    const struct Config config = {2, 4, 40, 72, 97, 3, NULL};
    struct Model m;
    struct Workspace many, one;
    model_random(&m, config, 0);
    struct Case c = random_case(lengths, S, &config);
    workspace_create(&many, &m, c.batch.rows, WORK_TRAIN);
    workspace_create(&one, &m, 72, WORK_EVAL);
    real together[6 * 3], alone[3];
    const double loss = loss_of(&m, &many, &c, &(struct Objective){1}, false);
    class_head(&m, &many, &c.batch, NULL, NULL, 0, together);
    double sum = 0;
    int different = 0;
    for (int s = 0; s < S; s++) {
        const struct Batch b = {lengths[s], 1, c.tokens + c.starts[s], (int[]){0, lengths[s]}};
        const real *hidden = trunk_forward(&m, &one, &b, 0, 0);
        different += !same_bytes(hidden, many.hidden + (size_t)c.starts[s] * config.channels,
                                 (size_t)lengths[s] * config.channels);
        class_head(&m, &one, &b, NULL, NULL, 0, alone);
        different += !same_bytes(alone, together + 3 * s, 3);
        sum += lm_head(&m, &one, &b, c.targets + c.starts[s], 0);
        different += !same_bytes(one.losses, many.losses + c.starts[s], lengths[s]);
    }
    check(different == 0,
          "six sequences together and alone: hidden states, losses, classes are the same bits");
    check(fabs(sum / loss - 1) < 1e-12, "the losses add up: %.9f, %.9f", sum, loss);
    case_free(&c), workspace_free(&many), workspace_free(&one), model_free(&m);
}

/* Weights after some steps with everything switched on, with that many threads. */
static real *trained_with(int threads, const struct Model *begin, const struct Case *c)
{
    struct Model m;
    struct Workspace ws;
    set_threads(threads);
    model_create(&m, begin->config);
    memcpy(m.weights, begin->weights, m.parameter_count * sizeof(real));
    model_train_from(&m, 0);
    workspace_create(&ws, &m, c->batch.rows, WORK_TRAIN);
    for (int step = 1; step <= 3; step++)
        train_step(&m, &ws, c, &(struct Objective){.lm = (real)0.01, .cls = (real)0.2,
                                                   .dropout = 0.1, .key = step}, 1e-3, step);
    real *weights = randoms(m.parameter_count, 1);
    memcpy(weights, m.weights, m.parameter_count * sizeof(real));
    workspace_free(&ws), model_free(&m);
    return weights;
}

static void test_threads(void)
{
    const int lengths[] = {80, 5, 100, 1, 33};
    struct Config config = {2, 4, 64, 100, 700, 3, class_names};
    struct Model m;
    model_create(&m, config);
    model_init(&m, 3);
    struct Case c = random_case(lengths, 5, &config);
    real *one = trained_with(1, &m, &c);
    check(!same_bytes(one, m.weights, m.parameter_count),
          "three training steps change the weights");
    for (int threads = 2; threads <= MOST_THREADS; threads++) {
        real *more = trained_with(threads, &m, &c);
        check(same_bytes(one, more, m.parameter_count),
              "1 = %d threads: the same weights, bit for bit",
              threads);
        free(more);
    }
    set_threads(1);
    free(one), case_free(&c), model_free(&m);
}

/* The key-value cache: from each prefix, one token at a time gives what the whole sequence
 * gives. */
static void test_cache(void)
{
    enum { T = 80, C = 36, V = 50 };
    const struct Config config = {3, 3, C, T, V, 0, NULL};
    const int length = T, prefixes[] = {1, 63, 64, 70};
    struct Model m;
    struct Workspace whole, cache;
    model_random(&m, config, 0);
    struct Case c = random_case(&length, 1, &config);
    workspace_create(&whole, &m, T, WORK_EVAL);
    double *want = as_doubles(trunk_forward(&m, &whole, &c.batch, 0, 0), T * C), worst = 0;
    real *one = randoms(V, 1);
    for (int i = 0; i < 4; i++) {
        const int n = prefixes[i];
        set_threads(i < 3 ? 1 : MOST_THREADS);
        workspace_create(&cache, &m, T, WORK_CACHE);
        trunk_forward(&m, &cache, &(struct Batch){n, 1, c.tokens, (int[]){0, n}}, 0, 0);
        for (int t = n; t < T; t++)
            worst = worse(error_of(trunk_next(&m, &cache, c.tokens[t], t), want + (size_t)t * C, C),
                          worst);
        if (i < 3) workspace_free(&cache);
    }
    set_threads(1);
    check(worst < 5 * SUM_ERROR, "key-value cache: worst relative error of a hidden state %.1e",
          worst);
    lm_logits(one, &m, cache.hidden);
    double *hidden = as_doubles(cache.hidden, C), *wte = as_doubles(m.w.wte, V * C);
    double p[V], logits[V];
    plain_head(logits, p, hidden, wte, -1, V, C);
    check(error_of(one, logits, V) < 5 * SUM_ERROR,
          "lm_logits against plain_head: relative error %.1e", error_of(one, logits, V));
    free(want), free(one), free(hidden), free(wte), case_free(&c), workspace_free(&whole),
        workspace_free(&cache), model_free(&m);
}

/* ============================================================================================= */
/* Learning                                                                                      */
/* ============================================================================================= */

static void test_overfit(struct Objective o, const char *what)
{
    const int lengths[] = {16, 9, 12, 5};
    const struct Config config = {2, 4, 32, 16, 40, 3, NULL};
    struct Model m;
    struct Workspace ws;
    double loss = 0, first = 0;
    model_random(&m, config, 0);
    model_init(&m, 5);
    struct Case c = random_case(lengths, 4, &config);
    for (int s = 0; s < 4; s++) c.labels[s] = s % 3;
    workspace_create(&ws, &m, c.batch.rows, WORK_TRAIN);
    for (int step = 1; step <= 150; step++) {
        loss = train_step(&m, &ws, &c, &o, 5e-3, step);
        if (step == 1) first = loss;
    }
    check(loss < 0.05 && first > 1, "one batch is learned by heart, %s: %.3f -> %.4f", what, first,
          loss);
    case_free(&c), workspace_free(&ws), model_free(&m);
}

/* A NaN in any parameter reaches the loss and the norm of the gradient. */
static void test_nan(void)
{
    const int length = 9;
    const struct Config config = {2, 2, 12, 9, 23, 3, NULL};
    const struct Objective o = {.lm = 1, .cls = 1};
    struct Model m;
    struct Workspace ws;
    model_random(&m, config, 0);
    struct Case c = random_case(&length, 1, &config);
    workspace_create(&ws, &m, length, WORK_TRAIN);
    int hidden = 0;
    for (int i = 0; i < m.tensor_count; i++) {
        const int used = i == 0 ? c.tokens[0] * config.channels : 0;
        real *w = m.weights + m.tensors[i].offset + used, before = *w;
        *w = NAN;
        if (!isnan(loss_of(&m, &ws, &c, &o, true)) || !isnan(grad_norm(&m))) {
            printf("     %s\n", m.tensors[i].name);
            hidden++;
        }
        *w = before;
    }
    check(hidden == 0, "a NaN in any of %d parameters makes loss and gradient norm NaN",
          m.tensor_count);
    check(isfinite(loss_of(&m, &ws, &c, &o, true)) && isfinite(grad_norm(&m)),
          "without it both are finite");
    case_free(&c), workspace_free(&ws), model_free(&m);
}

/* Blocks below first_layer, and the embeddings, keep their bytes; the gradients of the others
 * are the same as when all learn. */
static void test_frozen(int first_layer)
{
    const int lengths[] = {7, 12, 1};
    const struct Config config = {3, 2, 16, 12, 23, 3, NULL};
    const struct Objective o = {.cls = (real)0.3, .dropout = 0.1, .key = 3};
    struct Model m;
    struct Workspace ws;
    model_random(&m, config, 0);
    struct Case c = random_case(lengths, 3, &config);
    workspace_create(&ws, &m, c.batch.rows, WORK_TRAIN);
    loss_of(&m, &ws, &c, &o, true);
    real *before = randoms(m.parameter_count, 1), *gradients = randoms(m.parameter_count, 1);
    memcpy(before, m.weights, m.parameter_count * sizeof(real));
    memcpy(gradients, m.grads, m.parameter_count * sizeof(real));
    workspace_free(&ws), model_free(&m);
    model_create(&m, config);
    memcpy(m.weights, before, m.parameter_count * sizeof(real));
    model_train_from(&m, first_layer);
    workspace_create(&ws, &m, c.batch.rows, WORK_TRAIN);
    loss_of(&m, &ws, &c, &o, true);
    int moved = 0, still = 0, other = 0;
    double square = 0;
    const double norm = grad_norm(&m);
    for (int i = 0; i < m.tensor_count; i++) {
        const struct Tensor *p = &m.tensors[i];
        if (first_layer > 0 && p->layer < first_layer) continue;
        other += !same_bytes(m.grads + p->offset, gradients + p->offset, p->size);
        for (size_t k = 0; k < p->size; k++) square += pow(m.grads[p->offset + k], 2);
    }
    adamw_step(&m, 0.01, 1, 0.1, 1);
    for (int i = 0; i < m.tensor_count; i++) {
        const struct Tensor *p = &m.tensors[i];
        const bool same = same_bytes(m.weights + p->offset, before + p->offset, p->size);
        const bool learns = first_layer == 0 || p->layer >= first_layer;
        moved += same && learns;
        still += !same && !learns;
    }
    check(moved == 0 && still == 0, "from layer %d of 3 on, all weights learn, and none below",
          first_layer);
    check(other == 0, "from layer %d on: the gradients are the same bits as in full training",
          first_layer);
    check(fabs(norm / sqrt(square) - 1) < 1e-5,
          "from layer %d on: the norm is theirs alone", first_layer);
    free(before), free(gradients), case_free(&c), workspace_free(&ws), model_free(&m);
}

/* Five steps with gradients of all sizes against the plain formula, with a rate of its own for each
 * tensor and decay where the list says so. */
static void test_adamw(void)
{
    const struct Config config = {1, 1, 20, 7, 11, 2, NULL};
    struct Model m;
    model_random(&m, config, 0);
    m.beta2 = 0.98;
    double *w = as_doubles(m.weights, m.parameter_count), *v = zeros(m.parameter_count),
           *mm = zeros(m.parameter_count), worst = 0, total = 0;
    for (int i = 0; i < m.tensor_count; i++) m.tensors[i].lr_scale = (float)(i % 4) / 2;
    for (int step = 1; step <= 5; step++) {
        const double lr = 0.01 * step, clip = 0.5;
        total = 0;
        for (int i = 0; i < m.tensor_count; i++) {
            const struct Tensor *p = &m.tensors[i];
            for (size_t k = p->offset; k < p->offset + p->size; k++) {
                m.grads[k] = (real)(random_normal(&rng) * pow(10, below(6) - 4));
                if (p->lr_scale == 0) continue;
                total += pow(m.grads[k], 2);
                plain_adamw(&w[k], &mm[k], &v[k], clip * m.grads[k], lr * p->lr_scale, 0.9, 0.98,
                            p->rows > 1 ? 0.1 : 0, step);
            }
        }
        const double norm = grad_norm(&m);
        worst = worse(fabs(norm / sqrt(total) - 1), worst);
        adamw_step(&m, lr, clip, 0.1, step);
    }
    check(worst < (exact ? 1e-12 : 1e-5), "gradient norm: relative error %.1e", worst);
    worst = total = 0;
    for (int i = 0; i < m.tensor_count; i++)
        worst = worse(error_of(m.weights + m.tensors[i].offset, w + m.tensors[i].offset,
                               m.tensors[i].size), worst);
    check(worst < SUM_ERROR, "AdamW, five steps: worst tensor %.1e", worst);
    for (int i = 0; i < m.tensor_count; i++)
        for (size_t k = 0; k < m.tensors[i].size && m.tensors[i].lr_scale > 0; k++)
            total += m.grads[m.tensors[i].offset + k] != 0;
    check(total == 0, "AdamW leaves no gradient of a weight that learns");
    free(w), free(v), free(mm), model_free(&m);
}

static void test_schedules(void)
{
    const struct { const char *name; int step; double want; } values[] = {
        {"cosine", 1, 0.1}, {"cosine", 5, 0.5}, {"cosine", 10, 1},
        {"cosine", 35, 0.1 + 0.9 * (1 + M_SQRT1_2) / 2}, {"cosine", 60, 0.1 + 0.9 / 2},
        {"cosine", 110, 0.1}, {"cosine", 500, 0.1},
        {"constant", 1, 0.1}, {"constant", 10, 1}, {"constant", 110, 1},
        {"wsd", 3, 0.3}, {"wsd", 10, 1}, {"wsd", 90, 1}, {"wsd", 95, 0.1 + 0.9 * 0.5},
        {"wsd", 110, 0.1},
    };
    int wrong = 0;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        const double got = learning_rate(values[i].name, values[i].step, 110, 10, 2, 0.1);
        if (fabs(got - 2 * values[i].want) < 1e-12) continue;
        printf("     %s, step %d: %.9f, not %.9f\n", values[i].name, values[i].step, got,
               2 * values[i].want);
        wrong++;
    }
    check(wrong == 0, "learning rates: %zu values of all schedules",
          sizeof values / sizeof *values);
    check(learning_rate("cosine", 1, 100, 0, 1, 0) > 0.999,
          "learning rate without warm-up begins at the top");
    check(learning_rate("cosine", 7, 7, 7, 1, 0) == 1,
          "learning rate of a run that is all warm-up ends at the top");
}

/* ============================================================================================= */
/* Checkpoints                                                                                   */
/* ============================================================================================= */

static void test_save_and_load(const char *dir)
{
    const int lengths[] = {7, 12, 1};
    const struct Config config = {2, 2, 16, 12, 23, 3, NULL};
    static char *names[] = {"very \"good\"", "a \\ and caf\xC3\xA9", ""};
    struct Model m, n;
    struct Workspace ws;
    struct Json meta = {0}, read;
    model_random(&m, config, 0);
    m.config.label_names = names;
    metadata_set(&meta, "step", "%d", 41);
    metadata_set(&meta, "note", "line\nbreak, \"quote\", caf\xC3\xA9");
    metadata_set(&meta, "step", "%d", 42);
    stage_model(dir, &m, &meta, m.config.vocabulary - 1);
    commit_outputs();
    load_model(&n, dir, &read);
    check(n.parameter_count == m.parameter_count
          && same_bytes(m.weights, n.weights, m.parameter_count),
          "a saved and loaded model has the same bytes");
    check(!strcmp(json_text(&read, "step", NULL), "42")
          && json_text(&read, "nothing", NULL) == NULL
          && !strcmp(json_text(&read, "note", NULL), json_text(&meta, "note", NULL)),
          "and the same metadata");
    check(n.config.layers == 2 && n.config.heads == 2 && n.config.channels == 16
          && n.config.context == 12 && n.config.vocabulary == 23 && n.config.labels == 3,
          "and the same configuration");
    int wrong = 0;
    for (int k = 0; k < 3; k++) wrong += strcmp(n.config.label_names[k], names[k]) != 0;
    check(wrong == 0, "and the same names of labels, whatever they hold");
    struct Case c = random_case(lengths, 3, &config);
    workspace_create(&ws, &m, c.batch.rows, WORK_EVAL);
    const struct Objective o = {.lm = 1, .cls = 1};
    const double before = loss_of(&m, &ws, &c, &o, false), after = loss_of(&n, &ws, &c, &o, false);
    check(before == after, "and the same loss");
    case_free(&c), workspace_free(&ws), model_free(&m), model_free(&n);
}

/* Six steps without a stop, and three, a state written and read into a new model, and three
 * more. */
static void test_resume(const char *dir)
{
    const int lengths[] = {7, 12, 1};
    const struct Config config = {2, 2, 16, 12, 23, 3, NULL};
    char *path = text_of("%s/state.safetensors", dir);
    struct Model m, n;
    struct Workspace ws;
    struct Json meta = {0}, read;
    model_random(&m, config, 0);
    model_random(&n, config, 0);
    struct Case c = random_case(lengths, 3, &config);
    workspace_create(&ws, &m, c.batch.rows, WORK_TRAIN);
    for (int step = 1; step <= 6; step++) {
        const struct Objective o = {.lm = (real)0.1, .cls = (real)0.1, .dropout = 0.1, .key = step};
        train_step(&m, &ws, &c, &o, 0.01, step);
        if (step < 3) continue;
        if (step > 3) train_step(&n, &ws, &c, &o, 0.01, step);
        if (step > 3) continue;
        metadata_set(&meta, "step", "%d", step);
        stage_state(path, &m, NULL, NULL, &meta);
        commit_outputs();
        load_state(path, &n, NULL, NULL, &read);
        check(!strcmp(json_text(&read, "step", NULL), "3"), "state: its metadata come back");
    }
    check(same_bytes(m.weights, n.weights, m.parameter_count)
          && same_bytes(m.m, n.m, m.parameter_count) && same_bytes(m.v, n.v, m.parameter_count),
          "resumed = not interrupted: weights and both moments are the same bits");
    free(path), case_free(&c), workspace_free(&ws), model_free(&m), model_free(&n);
}

static void test_workspace(void)
{
    const struct Config config = {3, 2, 16, 12, 23, 3, NULL};
    struct Model m;
    struct Workspace ws;
    size_t bytes[3];
    model_random(&m, config, 0);
    for (int kind = WORK_EVAL; kind <= WORK_TRAIN; kind++) {
        workspace_create(&ws, &m, 100, kind);
        bytes[kind] = ws.bytes;
        check(workspace_bytes(&config, 100, kind) == ws.bytes,
              "workspace_bytes says what is taken: %zu", ws.bytes);
        workspace_free(&ws);
    }
    check(bytes[WORK_EVAL] < bytes[WORK_CACHE] && bytes[WORK_CACHE] < bytes[WORK_TRAIN],
          "evaluation needs least memory");
    model_free(&m);
}

/* Where an array of a workspace should lie, and the bytes that its shape demands. */
struct Array { const char *at; size_t bytes; };

static int list_places(struct Array *list, const struct Workspace *ws, const struct Config *c)
{
    const size_t N = ws->max_rows, C = c->channels, H = c->heads;
    const size_t shapes[] = {N * C, N, N, N * 3 * C, N * H, N * C, N * C, N, N, N * 4 * C};
    struct Array *p = list;
    for (int l = 0; l <= c->layers; l++) {
        const struct Activations *a = &ws->activations[l], *before = l ? a - 1 : a;
        const real *const now[] = {a->x, a->mean1, a->rstd1, a->qkv, a->lse, a->att, a->x2,
                                   a->mean2, a->rstd2, a->fc},
            *const last[] = {before->x, before->mean1, before->rstd1, before->qkv, before->lse,
                             before->att, before->x2, before->mean2, before->rstd2, before->fc};
        for (int i = 0; i < (l < c->layers ? 10 : 3); i++)
            if (!l || now[i] != last[i])
                *p++ = (struct Array){(const char *)now[i], shapes[i] * sizeof(real)};
    }
    const struct Array others[] = {
        {(char *)ws->ln, N * C}, {(char *)ws->gelu, N * 4 * C},
        {(char *)ws->hidden, N * C}, {(char *)ws->losses, N},
        {(char *)ws->logits, (size_t)lm_chunk((int)N, c->vocabulary) * c->vocabulary},
        {(char *)ws->dhidden, N * C}, {(char *)ws->dx, N * C},
        {(char *)ws->dbranch, N * C}, {(char *)ws->dqkv, N * 3 * C}, {(char *)ws->dfc, N * 4 * C}};
    for (int i = 0; i < (ws->kind == WORK_TRAIN ? 10 : 5); i++)
        *p++ = (struct Array){others[i].at, others[i].bytes * sizeof(real)};
    return (int)(p - list);
}

/* No array of a workspace reaches into another one, nor beyond the memory of all. The blocks that
 * learn have activations of their own, as kind and first_layer demand. */
static void test_places(int kind, int first_layer, int want)
{
    const struct Config config = {3, 2, 16, 12, 23, 3, NULL};
    struct Model m;
    struct Workspace ws;
    struct Array list[60];
    model_random(&m, config, first_layer);
    set_threads(MOST_THREADS);
    workspace_create(&ws, &m, 100, kind);
    const int n = list_places(list, &ws, &config);
    const char *memory = (const char *)ws.activations;
    int wrong = 0;
    for (int i = 0; i < n; i++) {
        wrong += list[i].at < memory || list[i].at + list[i].bytes > memory + ws.bytes;
        for (int k = 0; k < i; k++)
            wrong += list[i].at < list[k].at + list[k].bytes
                     && list[k].at < list[i].at + list[i].bytes;
    }
    check(wrong == 0 && n == want,
          "%d arrays of a workspace lie apart, each as large as its shape", n);
    set_threads(1);
    workspace_free(&ws), model_free(&m);
}

static void test_layers(void)
{
    test_layernorm(5, 2), test_layernorm(7, 48), test_layernorm(33, 257);
    test_layernorm_offset(33, 257);
    test_linear(1, 5, 3), test_linear(37, 48, 150), test_linear(260, 33, 65);
    test_embedding();
    test_gelu();
    test_attention((int[]){1}, 1, 4, 1);
    test_attention((int[]){2, 1, 3}, 3, 6, 3);
    test_attention((int[]){63, 64, 65}, 3, 32, 2);
    test_attention((int[]){130, 1, 200, 17}, 4, 48, 3);
    test_attention((int[]){300}, 1, 64, 1);
    test_attention_scratch();
    test_dropout();
    test_dropout_keys();
    test_attention_dropout();
    test_cross_entropy();
}

int main(void)
{
    char dir[] = "/tmp/test_model_XXXXXX";
    const real class_weights[] = {(real)0.5, 2, 1};
    program = "test_model";
    set_threads(1);
    reserve_scratch(gemm_scratch());
    test_random();
    test_exp();
    test_gemm_shapes();
    test_gemm_nan();
    test_gemm_bits(215, 190, 600);
    test_gemm_bits(CHUNK_M, FEW_COLUMNS + 5, 2 * BLOCK_K);      /* packed a fills its buffer */
    test_layers();
    test_parameters();
    test_layers_own_masks();
    test_against_reference((struct Objective){.lm = (real)0.01}, "language model");
    test_against_reference((struct Objective){.cls = (real)0.25}, "classifier");
    if (exact) {
        test_finite_differences((struct Objective){.lm = 0.1}, 12, "language model");
        test_finite_differences((struct Objective){.cls = 0.5, .class_weights = class_weights}, 12,
                                "classifier");
        test_finite_differences((struct Objective){.lm = 0.1, .dropout = 0.2, .key = 9}, 12,
                                "language model, dropout");
        test_finite_differences((struct Objective){.lm = 0.1, .cls = 0.5, .dropout = 0.2, .key = 4,
                                                   .class_weights = class_weights}, 1 << 30,
                                "all weights, both heads, dropout");
        test_finite_differences((struct Objective){.lm = 0.1, .cls = 0.5, .cls_first = true}, 12,
                                "both heads, the classifier first");
    }
    test_golden("lm", false);
    test_golden("lm", true);
    test_golden("classifier", false);
    test_alone();
    test_threads();
    test_cache();
    test_overfit((struct Objective){.lm = (real)1 / 38}, "language model");
    test_overfit((struct Objective){.cls = (real)0.25}, "classifier");
    test_nan();
    for (int first_layer = 0; first_layer <= 3; first_layer++) test_frozen(first_layer);
    test_adamw();
    test_schedules();
    test_workspace();
    test_places(WORK_EVAL, 0, 15);
    test_places(WORK_CACHE, 0, 17);
    test_places(WORK_TRAIN, 0, 43);
    test_places(WORK_TRAIN, 2, 33);
    if (exact) return report();             /* files are written by builds in floats */
    if (!mkdtemp(dir)) die("%s: cannot be made.", dir);
    test_save_and_load(dir);
    test_resume(dir);
    const char *const files[] = {"model.safetensors", "config.json", "state.safetensors"};
    for (int i = 0; i < 3; i++) unlink(text_of("%s/%s", dir, files[i]));
    rmdir(dir);
    return report();
}
