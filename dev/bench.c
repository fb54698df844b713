/* bench.c: how fast this machine trains, generates and classifies, against its own limits.
 *
 * First the limits: multiply-adds on registers, and memory bandwidth. Then, for each shape, whole
 * training steps (forward, backward, clipping, AdamW) on random tokens: the median step, and, since
 * the limit is what the machine reaches at its best, also the best step's part of it. FLOPs of a
 * step are counted by the usual formula, (6 (12 L C^2 + V C) + 12 L C T) B T, causality not
 * subtracted. Memory is the peak resident size of the row. dev/bench_torch.py prints the same rows
 * for PyTorch. */

#include "../model.h"

#include <sys/resource.h>

struct Shape { const char *name; int layers, heads, channels, context, vocabulary, batch; };

static const struct Shape shapes[] = {
    {"A", 12, 12, 768, 64, 50257, 4}, {"B", 6, 6, 384, 256, 65, 16},
    {"C", 6, 4, 256, 256, 8192, 16},  {"D", 4, 4, 128, 64, 65, 12},
    {"E", 4, 4, 128, 128, 4096, 32},  {"F", 12, 12, 768, 1024, 50257, 4},
};

static int compare_doubles(const void *a, const void *b)
{
    return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

/* only: names of rows, "ACgeneration", or NULL, which wants all. */
static bool wanted(const char *only, const char *row) { return !only || strstr(only, row); }

/* Linux forgets the peak of resident memory when a 5 is written here; elsewhere it is the run's so
 * far. */
static void reset_peak_memory(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (f) { fputc('5', f); fclose(f); }
}

static double peak_memory(void)             /* in bytes */
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
    return usage.ru_maxrss;
#else
    return 1024.0 * usage.ru_maxrss;
#endif
}

/* Bytes/s of a[i] = x b[i] + a[i] over two arrays larger than any cache: two reads and a write for
 * each i. The best of five passes. */
static double memory_bandwidth(void)
{
    const size_t n = (size_t)64 << 20, bytes = n * sizeof(float);
    float *a = allocate_zeroed(bytes), *b = allocate_zeroed(bytes);
    double best = 0;
    #pragma omp parallel for simd schedule(static)      /* memory exists from its first use on */
    for (size_t i = 0; i < n; i++) a[i] = b[i] = 1;
    for (int attempt = 0; attempt < 5; attempt++) {
        const double start = seconds();
        #pragma omp parallel for simd schedule(static)
        for (size_t i = 0; i < n; i++) a[i] = 0.5f * b[i] + a[i];
        best = fmax(best, 3.0 * bytes / (seconds() - start));
    }
    release(a, bytes);
    release(b, bytes);
    return best;
}

/* Median and least time of a training step, of at least 3 steps and 4 seconds, after one that is
 * not counted. */
static double time_training(struct Model *model, const struct Shape *s, double *best)
{
    enum { MOST = 40 };
    const int N = s->batch * s->context;
    int *tokens = resize(NULL, N * sizeof *tokens),
        *starts = resize(NULL, (s->batch + 1) * sizeof *starts);
    struct Random random = random_stream(1, 1);
    struct Workspace ws;
    double times[MOST], begin = seconds();
    int steps = 0;
    for (int n = 0; n < N; n++) tokens[n] = (int)random_below(&random, s->vocabulary);
    for (int b = 0; b <= s->batch; b++) starts[b] = b * s->context;
    const struct Batch batch = {N, s->batch, tokens, starts};
    workspace_create(&ws, model, N, WORK_TRAIN);
    for (int step = 1; step <= MOST; step++) {
        const double spent = step > 1 ? seconds() - begin : 0;
        if ((steps >= 3 && spent > 4) || (steps >= 1 && spent > 30)) break;
        double start = seconds();
        trunk_forward(model, &ws, &batch, 0, 0);
        lm_head(model, &ws, &batch, tokens, (real)1 / N);
        trunk_backward(model, &ws, &batch);
        double norm = grad_norm(model);
        adamw_step(model, 1e-4, norm > 1 ? 1 / norm : 1, 0.1, step);
        if (step > 1) times[steps++] = seconds() - start;
    }
    qsort(times, steps, sizeof *times, compare_doubles);
    workspace_free(&ws);
    free(tokens);
    free(starts);
    *best = times[0];
    return times[steps / 2];
}

/* One row: a model of this shape, trained for some steps. Returns the median step's seconds. */
static double measure_row(const struct Shape *s, double *best, double *bytes, size_t *parameters)
{
    struct Model model;
    reset_peak_memory();
    model_create(&model, (struct Config){s->layers, s->heads, s->channels, s->context,
                                         s->vocabulary, 0, NULL});
    model_init(&model, 1);
    model_train_from(&model, 0);
    const double time = time_training(&model, s, best);
    *bytes = peak_memory();
    *parameters = model.parameter_count;
    model_free(&model);
    return time;
}

/* The machine's limit is measured before and after each row. If it was lower than the highest so
 * far by more than a tenth, the machine was slow in between, and the row is measured again, at most
 * twice; the fastest counts. Returns the highest limit. */
static double bench_training(double peak, const char *only)
{
    enum { ATTEMPTS = 3 };
    printf("\n%-42s %9s %9s %9s %7s %7s %8s %8s\n",
           product_precision != FP32 ? "training step, bf16" : "training step, fp32", "ms",
           "tokens/s", "GFLOP/s", "% peak", "best", "MB", "B/param");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct Shape *s = &shapes[i];
        if (!wanted(only, s->name)) continue;
        double time = INFINITY, best = INFINITY, bytes = 0, now = fma_peak();
        size_t parameters = 0;
        peak = fmax(peak, now);
        for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
            double fastest;
            const double before = now;
            time = fmin(time, measure_row(s, &fastest, &bytes, &parameters));
            best = fmin(best, fastest);
            now = fma_peak();
            peak = fmax(peak, now);
            if (fmin(before, now) > 0.9 * peak) break;
        }
        const double L = s->layers, C = s->channels, N = (double)s->batch * s->context,
            flops = (6 * (12 * L * C * C + s->vocabulary * C) + 12 * L * C * s->context) * N;
        char name[64];
        snprintf(name, sizeof name, "%s  L%d H%d C%d T%d V%d B%d", s->name, s->layers, s->heads,
                 s->channels, s->context, s->vocabulary, s->batch);
        printf("%-42s %9.1f %9.0f %9.1f %6.1f%% %6.1f%% %8.0f %8.1f\n", name, 1e3 * time, N / time,
               flops / time / 1e9, 100 * flops / time / peak, 100 * flops / best / peak,
               bytes / 1e6, bytes / parameters);
        fflush(stdout);
    }
    return peak;
}

/* Seconds to read `bytes`, by a sum over the weights, over and over if they are fewer. */
static double time_reading(const struct Model *model, double bytes)
{
    enum { PIECE = 1 << 12 };
    const int pieces = (int)(model->parameter_count / PIECE);
    double total = 0;
    const double start = seconds();
    #pragma omp parallel for schedule(static) reduction(+: total)
    for (int i = 0; i < (int)(bytes / sizeof(real) / PIECE); i++) {
        const real *x = model->weights + (size_t)(i % pieces) * PIECE;
        real sum = 0;
        #pragma omp simd reduction(+: sum)
        for (int k = 0; k < PIECE; k++) sum += x[k];
        total += sum;
    }
    __asm__ volatile("" : : "m"(total));    /* the compiler must assume that it is wanted */
    return seconds() - start;
}

/* One sequence: a prompt of 512 tokens in one pass (or as many as half the context holds), then
 * tokens one by one, each in turn with reading as many bytes as a token needs: its weights, and the
 * keys and values of what came before. Medians. */
static void bench_generation(const struct Shape *s)
{
    enum { TOKENS = 64 };
    const int prompt = min_int(512, s->context / 2);
    struct Model model;
    struct Workspace ws;
    int tokens[512], starts[] = {0, prompt};
    double times[TOKENS], reads[TOKENS], reading = INFINITY;
    model_create(&model, (struct Config){s->layers, s->heads, s->channels, s->context,
                                         s->vocabulary, 0, NULL});
    model_init(&model, 1);
    for (int n = 0; n < prompt; n++) tokens[n] = n % s->vocabulary;
    workspace_create(&ws, &model, s->context, WORK_CACHE);
    if (product_precision != FP32) keep_rounded(model.weights, model.parameter_count);
    real *logits = allocate_zeroed((size_t)model.config.vocabulary * sizeof(real));
    const struct Batch batch = {prompt, 1, tokens, starts};
    for (int i = 0; i < 3; i++) {
        const double start = seconds();
        trunk_forward(&model, &ws, &batch, 0, 0);
        reading = fmin(reading, seconds() - start);
    }
    const double cache = 2.0 * s->layers * s->channels * (prompt + TOKENS / 2) * sizeof(real),
                 bytes = (double)model.parameter_count
                       * (product_precision != FP32 ? 2 : sizeof(real)) + cache;
    for (int n = 0; n < TOKENS; n++) {
        const double start = seconds();
        lm_logits(logits, &model, trunk_next(&model, &ws, n, prompt + n));
        times[n] = seconds() - start;
        reads[n] = time_reading(&model, bytes);
    }
    qsort(times, TOKENS, sizeof *times, compare_doubles);
    qsort(reads, TOKENS, sizeof *reads, compare_doubles);
    const double time = times[TOKENS / 2], read = reads[TOKENS / 2];
    printf("%-16s %10.1f %10.2f %12.1f %14.1f %12.0f%% %13.0f\n", s->name, 1 / time, 1e3 * time,
           bytes / 1e6, bytes / read / 1e9, 100 * read / time, prompt / reading);
    fflush(stdout);
    release(logits, (size_t)model.config.vocabulary * sizeof(real));
    workspace_free(&ws);
    model_free(&model);
}

/* Sentences of 4 to 40 tokens, back to back, about 2,048 rows a batch, on shape C's trunk. */
static void bench_classification(double peak)
{
    enum { ROWS = 2048, ROUNDS = 20 };
    struct Model model;
    struct Workspace ws;
    static int tokens[ROWS], starts[ROWS + 1];
    static real probabilities[ROWS * 2];
    struct Random random = random_stream(2, 2);
    struct Batch batch = {0, 0, tokens, starts};
    model_create(&model, (struct Config){6, 4, 256, 256, 8192, 2, NULL});
    model_init(&model, 1);
    for (int length; batch.rows + (length = 4 + (int)random_below(&random, 37)) <= ROWS; ) {
        for (int n = 0; n < length; n++) tokens[batch.rows++] = (int)random_below(&random, 8192);
        starts[++batch.sequences] = batch.rows;
    }
    workspace_create(&ws, &model, ROWS, WORK_EVAL);
    double start = 0;
    for (int round = -1; round < ROUNDS; round++) {
        if (round == 0) start = seconds();
        trunk_forward(&model, &ws, &batch, 0, 0);
        class_head(&model, &ws, &batch, NULL, NULL, 0, probabilities);
    }
    const double time = (seconds() - start) / ROUNDS, flops = 2.0 * 12 * 6 * 256 * 256 * batch.rows;
    printf("\nclassification, L6 H4 C256, 4 to 40 tokens: %.0f sentences/s, %.0f tokens/s, %.1f "
           "GFLOP/s, %.0f%% of peak\n",
           batch.sequences / time, batch.rows / time, flops / time / 1e9,
           100 * flops / time / peak);
    workspace_free(&ws);
    model_free(&model);
}

/* All rows, with products of one precision. */
static void bench(const char *precision, const char *only)
{
    set_precision(precision);
    double peak = fma_peak();
    printf("\n%s, %d thread%s: %.1f GFLOP/s of multiply-adds on registers, %.1f GB/s of memory\n",
           precision, thread_count(), thread_count() == 1 ? "" : "s", peak / 1e9,
           memory_bandwidth() / 1e9);
    peak = bench_training(peak, only);
    if (wanted(only, "generation")) {
        const struct Shape small = {"C, T1024", 6, 4, 256, 1024, 8192, 1},
                           gpt2 = {"A, T1024", 12, 12, 768, 1024, 50257, 1};
        printf("\n%-16s %10s %10s %12s %14s %13s %13s\n", "generation", "tokens/s", "ms",
               "MB a token", "read at GB/s", "% of reading", "prompt tok/s");
        bench_generation(&gpt2);
        bench_generation(&small);
    }
    if (wanted(only, "classification")) bench_classification(peak);
    printf("\nhighest peak of multiply-adds, %s: %.1f GFLOP/s\n", precision, peak / 1e9);
}

int main(int argc, char **argv)
{
    int threads = 0;
    const char *only = NULL, *precision = "both";
    struct Option options[] = {
        {"threads", "threads; 0: as many as the machine has", INTEGER, &threads, .max = 4096},
        {"only", "these rows: letters of shapes, generation, classification", TEXT, &only},
        {"precision", "both: bf16 only if the processor has AVX512_BF16", CHOICE, &precision,
         .choices = "both|fp32|bf16"},
        {0}
    };
    begin_program("bench", argv);
    read_options(argc - 1, argv + 1, options,
                 "bench [options]: training, generation, classification");
    set_threads(threads);
    if (strcmp(precision, "bf16")) bench("fp32", only);
#ifdef __AVX512BF16__
    if (!strcmp(precision, "both")) bench("bf16", only);
#endif
    if (!strcmp(precision, "bf16")) bench("bf16", only);
    return 0;
}
