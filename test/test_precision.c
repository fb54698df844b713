/* test_precision.c: products of bfloat16 factors (--precision bf16) against their definition and
 * against FP32. On a processor with AVX512_BF16 the instruction is compared with the definition,
 * elsewhere the code that stands in for it. Run from the repository root. */

#include "fence.h"
#include "../model.h"
#include "check.h"

static struct Random rng = {5, 0};

#ifdef _OPENMP
enum { MOST_THREADS = 3 };
#else
enum { MOST_THREADS = 1 };
#endif

static real *randoms(size_t n)
{
    real *x = resize(NULL, n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = (real)random_normal(&rng);
    return x;
}

static float float_of(word bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static word bits_of(float x)
{
    word bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* The nearest number with 8 significant bits, the even one of two; by arithmetic, not by bits. */
static float nearest_bf16(float x)
{
    int exponent;
    if (x == 0 || !isfinite(x)) return x;
    frexp(x, &exponent);
    const double unit = ldexp(1, (exponent < -125 ? -125 : exponent) - 8);
    const double y = nearbyint(x / unit) * unit;
    return fabs(y) >= 0x1p128 ? copysignf(INFINITY, x) : (float)y;
}

/* n values, each rounded. The caller frees them. */
static real *nearest(const real *x, size_t n)
{
    real *y = resize(NULL, n * sizeof *y);
    for (size_t i = 0; i < n; i++) y[i] = nearest_bf16(x[i]);
    return y;
}

static void test_rounding(void)
{
    static const word lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    int wrong = 0, nan_lost = 0;
    for (word upper = 0; upper < 1 << 16; upper++)
        for (int i = 0; i < COUNT(lower); i++) {
            const word x = upper << 16 | lower[i], got = bfloat16(x) << 16;
            if (isnan(float_of(x))) nan_lost += !isnan(float_of(got));
            else wrong += got != bits_of(nearest_bf16(float_of(x)));
        }
    check(wrong == 0, "bfloat16() is the nearest of 8 bits, for all upper halves of a float");
    check(nan_lost == 0, "bfloat16() keeps every NaN");
}

/* add_pairs against one multiplication and one addition after the other, bit for bit. */
static void test_instruction(void)
{
    int wrong = 0;
    for (int i = 0; i < 100000; i++) {
        word a = bits_of((float)random_normal(&rng)), b = bits_of((float)random_normal(&rng));
        const float sum = (float)(1e3 * random_normal(&rng) * random_uniform(&rng));
        const float upper = float_of(a >> 16 << 16) * float_of(b >> 16 << 16),
                    lower = float_of(a << 16) * float_of(b << 16);
        volatile float want = sum + upper;      /* volatile: no rounding is left out */
        if (!isnormal(float_of(a << 16)) || !isnormal(float_of(b << 16)) || !isnormal(lower)
            || !isfinite(want + lower)) continue;
        want = want + lower;
        const vec got = add_pairs((vec){sum}, (words){a}, (words){b});
        wrong += bits_of(got[0]) != bits_of(want);
    }
    check(wrong == 0, "two terms of a slot: the upper one is added first, each in one rounding");
}

/* amx_tile against its definition, bit for bit. */
static void test_amx(void)
{
    enum { K = 3 * AMX };
    real *a = randoms(K * AMX_ROWS + 1), *b = randoms(K * AMX_ROWS + 1), got[AMX_ROWS * 2 * AMX];
    int wrong = 0;
    for (int i = 0; i < K * AMX_ROWS; i++) {            /* two numbers in each place */
        a[i] = slot(a + i, 1, true);
        b[i] = slot(b + i, 1, true);
    }
    amx_begin();
    amx_tile(got, a, b, K);
    amx_end();
    for (int i = 0; i < AMX_ROWS; i++)
        for (int j = 0; j < 2 * AMX; j++) {
            volatile float sum = 0;             /* volatile: no rounding is left out */
            for (int k0 = 0; k0 < K; k0 += AMX) {
                volatile float lower = 0, upper = 0;
                for (int k = 0; k < AMX; k++) {
                    const word x = bits_of(a[k0 * AMX_ROWS + i * AMX + k]),
                               y = bits_of(b[(k0 + k) * 2 * AMX + j]);
                    lower += float_of(x << 16) * float_of(y << 16);
                    upper += float_of(x >> 16 << 16) * float_of(y >> 16 << 16);
                }
                lower += upper;
                sum += lower;
            }
            wrong += bits_of(got[i * 2 * AMX + j]) != bits_of(sum);
        }
    check(wrong == 0, "amx_tile adds in the order of its definition");
    free(a), free(b);
}

static struct Matrix stored(const real *at, int rows, int columns, bool is_transposed)
{
    return is_transposed ? transposed(matrix(at, rows)) : matrix(at, columns);
}

/* Relative error of a product against double precision on rounded factors. layout: bit 0 a is
 * stored transposed, bit 1 b is. Infinite if anything beside the result was written to. */
static double product_error(int M, int N, int K, int layout)
{
    enum { GUARD = 64 };
    const size_t size = (size_t)M * N;
    real *a = randoms((size_t)M * K), *b = randoms((size_t)K * N), *all = randoms(size + 2 * GUARD),
         *bias = randoms(N), *c = all + GUARD;
    real *near_a = nearest(a, (size_t)M * K), *near_b = nearest(b, (size_t)K * N);
    double *want = resize(NULL, size * sizeof *want), *got = resize(NULL, size * sizeof *got);
    const struct Matrix ma = stored(near_a, M, K, layout & 1),
                        mb = stored(near_b, K, N, layout & 2);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = (double)c[i * N + j] + bias[j];
            for (int k = 0; k < K; k++)
                sum += (double)ma.at[i * ma.row + k * ma.column]
                     * mb.at[k * mb.row + j * mb.column];
            want[i * N + j] = sum;
        }
    real guards[2 * GUARD];
    memcpy(guards, all, GUARD * sizeof(real));
    memcpy(guards + GUARD, c + size, GUARD * sizeof(real));
    gemm(c, stored(a, M, K, layout & 1), stored(b, K, N, layout & 2), c, bias, M, N, K);
    for (size_t i = 0; i < size; i++) got[i] = c[i];
    double error = relative_error(got, want, size);
    if (memcmp(guards, all, GUARD * sizeof(real))
        || memcmp(guards + GUARD, c + size, GUARD * sizeof(real))) error = INFINITY;
    free(a), free(b), free(all), free(bias), free(near_a), free(near_b), free(want), free(got);
    return error;
}

static void test_products(void)
{
    const int sizes[][3] = {
        {1, 1, 1}, {3, 5, 2}, {TILE_ROWS, TILE_COLUMNS, 33}, {2 * TILE_ROWS + 1, 70, 3 * SIDE},
        {50, TILE_COLUMNS - 1, 2 * SIDE + 1}, {7, 300, 2 * BLOCK_K}, {40, 90, 2 * BLOCK_K + 1},
        {BLOCK_M + 5, BLOCK_N + 9, 4 * BLOCK_K + 7}, {5, 9, 0},
    };
    for (int layout = 0; layout < 4; layout++) {
        double worst = 0;
        for (int i = 0; i < COUNT(sizes); i++) {
            const double error = product_error(sizes[i][0], sizes[i][1], sizes[i][2], layout);
            if (error > worst || isnan(error)) worst = error;
        }
        check(worst < 3e-6, "gemm of rounded factors%s%s: relative error %.1e",
              layout & 1 ? ", a transposed" : "", layout & 2 ? ", b transposed" : "", worst);
    }
}

static void test_bits(void)
{
    enum { M = 215, N = 190, K = 1301 };
    real *a = randoms(M * K), *b = randoms(K * N), *c = randoms(M * N), *again = randoms(M * N);
    int different = 0;
    gemm(c, matrix(a, K), matrix(b, N), NULL, NULL, M, N, K);
    for (int i = 0; i < M; i++) {
        gemm(again, matrix(a + i * K, K), matrix(b, N), NULL, NULL, 1, N, K);
        different += memcmp(again, c + i * N, N * sizeof(real)) != 0;
    }
    check(different == 0, "each row alone has the same bits as in a batch of %d", M);
    for (int threads = 2; threads <= MOST_THREADS; threads++) {
        set_threads(threads);
        reserve_scratch(gemm_scratch());
        gemm(again, matrix(a, K), matrix(b, N), NULL, NULL, M, N, K);
        check(!memcmp(c, again, M * N * sizeof(real)), "the same bits with %d threads", threads);
    }
    set_threads(1);
    a[7 * K + K - 1] = NAN;
    b[11 * N + 33] = -INFINITY;
    gemm(c, matrix(a, K), matrix(b, N), NULL, NULL, M, N, K);
    for (int i = different = 0; i < M * N; i++)
        different += isfinite(c[i]) != (i / N != 7 && i % N != 33) || isnan(c[i]) != (i / N == 7);
    check(different == 0, "NaN in a row of a and infinity in a column of b show there, only there");
    free(a), free(b), free(c), free(again);
}

static double error_of(const real *got, const real *want, int n)
{
    double difference = 0, norm = 0;
    for (int i = 0; i < n; i++) {
        difference += pow((double)got[i] - want[i], 2);
        norm += pow(want[i], 2);
    }
    return sqrt(difference / norm);
}

/* gemv on kept weights against gemv on weights that were rounded before. */
static void test_kept_weights(void)
{
    enum { N = 1003, K = 517, SIZE = N * K, MORE = 100 };
    real *b = randoms(SIZE + MORE), *near = nearest(b, SIZE + MORE), *x = randoms(N),
         *y = randoms(N), *want = randoms(N), *bias = randoms(N);
    for (int i = 0; i < 5; i++) {
        const int at = i % 2 ? MORE : 0;        /* the first and the last of the kept matrices */
        const bool is_transposed = i / 2 == 1;
        if (i == 0) keep_rounded(b, SIZE + MORE);
        if (i == 4) keep_rounded(NULL, 0);
        gemv(want, x, stored(near + at, K, N, is_transposed), NULL, bias, N, K);
        gemv(y, x, stored(b + at, K, N, is_transposed), NULL, bias, N, K);
        const double error = error_of(y, want, N);
        if (i < 4) check(error < 1e-6, "gemv on weights in 16 bits, %s, %s: %.1e",
                         is_transposed ? "transposed" : "row after row", at ? "last" : "first",
                         error);
        else check(error > 1e-4, "gemv on weights that are not kept: as they are (%.1e)", error);
    }
    free(b), free(near), free(x), free(y), free(want), free(bias);
}

/* Gradients of a whole model, dropout and both heads included, beside those of FP32. */
static void test_gradients(void)
{
    enum { ROWS = 90, T = 40, V = 300 };
    static char *names[] = {"a", "b", "c"};
    struct Config config = {3, 4, 96, T, V, 3, names};
    struct Model m;
    struct Workspace ws;
    int tokens[ROWS], targets[ROWS], labels[] = {2, 0, 1}, starts[] = {0, 40, 51, ROWS};
    for (int n = 0; n < ROWS; n++) {
        tokens[n] = (int)random_below(&rng, V);
        targets[n] = (int)random_below(&rng, V);
    }
    const struct Batch batch = {ROWS, 3, tokens, starts};
    model_create(&m, config);
    model_init(&m, 3);
    for (int i = 0; i < m.tensor_count; i++)
        if (m.tensors[i].init != ONES)
            for (size_t k = 0; k < m.tensors[i].size; k++)
                m.weights[m.tensors[i].offset + k] += (real)(0.1 * random_normal(&rng));
    model_train_from(&m, 0);
    workspace_create(&ws, &m, ROWS, WORK_TRAIN);
    double losses[2], *grads[2], worst = 0, least = INFINITY;
    const int bf16 = product_precision;
    for (int p = 0; p < 2; p++) {
        product_precision = p ? bf16 : FP32;
        memset(m.grads, 0, m.parameter_count * sizeof(real));
        trunk_forward(&m, &ws, &batch, 0.1, 9);
        losses[p] = class_head(&m, &ws, &batch, labels, NULL, 1, NULL)
                  + lm_head(&m, &ws, &batch, targets, (real)1 / ROWS);
        trunk_backward(&m, &ws, &batch);
        grads[p] = resize(NULL, m.parameter_count * sizeof(double));
        for (size_t i = 0; i < m.parameter_count; i++) grads[p][i] = m.grads[i];
    }
    for (int i = 0; i < m.tensor_count; i++) {
        const struct Tensor *t = &m.tensors[i];
        if (strstr(t->name, "c_attn.bias")) continue;       /* a third of it, the keys', is 0 */
        const double error = relative_error(grads[1] + t->offset, grads[0] + t->offset,
                                            t->size);
        if (!(error <= worst)) worst = error;
        if (error < least) least = error;
    }
    check(fabs(losses[1] / losses[0] - 1) < 2e-3, "loss %.5f with bf16, %.5f with fp32",
          losses[1], losses[0]);
    check(worst < 0.03, "gradients beside fp32's: relative error of a tensor at most %.4f", worst);
    check(least > 1e-5, "and at least %.5f: bf16 is in effect everywhere", least);
    free(grads[0]), free(grads[1]), workspace_free(&ws), model_free(&m);
}

/* Tiles of the AMX unit are as wide as those of AVX-512. What stands in for the unit is tested
 * where the compiler knows of none; where there is one, the system may not allow it. */
static int last_precision(void)
{
    if (VECTOR_BYTES < 64) return BF16;
#ifdef AMX_UNIT
    if (!amx_exists()) return BF16;
    puts("and by tdpbf16ps");
#endif
    return BF16_TILES;
}

int main(void)
{
    set_threads(1);
    reserve_scratch(gemm_scratch());
#ifdef __AVX512BF16__
    puts("products by vdpbf16ps");
#else
    puts("products by the code that stands in for vdpbf16ps");
#endif
    test_rounding();
    test_instruction();
    test_kept_weights();
    const int last = last_precision();
    for (product_precision = BF16; product_precision <= last; product_precision++) {
        if (product_precision == BF16_TILES) test_amx();
        test_products();
        test_bits();
        test_gradients();
    }
    return report();
}
