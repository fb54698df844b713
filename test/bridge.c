/* bridge.c: from the lesson to the programs. What lesson.c computes on its eight sentences with the
 * plain loops of reference.h is computed again with the functions of model.h, in floats, blocks,
 * vectors and threads, from the same weights. Each line has a quantity, its shape, and the largest
 * difference between the two, relative to the largest plain value. `make lesson` prints them after
 * the lesson; the exit status is 1 if a difference is larger than rounding can make it. */

#include "../model.h"
#define LESSON_NO_MAIN
#include "lesson.c"

static bool all_agree = true;

/* One line: fast and plain (n), and the difference that rounding may make. */
static void compare(const char *name, const char *shape, const real *fast, const double *plain,
                    size_t n, double allowed)
{
    double difference = 0, largest = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = fabs(fast[i] - plain[i]);
        if (!(d <= difference)) difference = d;             /* a NaN stays */
        largest = fmax(largest, fabs(plain[i]));
    }
    const bool agree = difference <= allowed * largest;
    printf("    %-28s %-14s %.1e%s\n", name, shape, difference / largest, agree ? "" : "  WRONG");
    all_agree = all_agree && agree;
}

/* The merges of the lesson's first section, without a word. */
static void learn_quietly(void)
{
    int ids[512], n = paragraph_letters(ids);
    for (int made = base; made < V - 1; made++, merge_count++)
        plain_learn_merge(merges[merge_count], ids, &n, made, made);
}

/* The lesson's model as one of model.h's: the same parameters in the same order. All of them decay,
 * as in the lesson. */
static void model_from(struct Model *m, const struct Net *net)
{
    model_create(m, (struct Config){LAYERS, H, C, T, V, net->shape.labels, NULL});
    for (size_t i = 0; i < m->parameter_count; i++) m->weights[i] = (real)net->weights[i];
    model_train_from(m, 0);
    m->beta2 = BETA2;
    for (int i = 0; i < m->tensor_count; i++) m->tensors[i].decay = true;
}

/* Texts as one batch: their rows back to back, without padding. */
static struct Batch batch_of(const struct Text *texts, int count)
{
    struct Batch b = batch_create(count * T);
    for (int s = 0; s < count; s++) {
        const int N = texts[s].example.N, row = batch_add(&b, N);
        memcpy(b.tokens + row, texts[s].rows, N * sizeof(int));
        memcpy(b.targets + row, texts[s].targets, N * sizeof(int));
    }
    return b;
}

/* Section 2: every value on the way of four tokens, and section 3: every gradient. */
static void compare_text(struct Net *net, const struct Text *text)
{
    const struct PlainExample *e = &text->example;
    const int N = e->N;
    struct PlainValues v = plain_values(N, &net->shape);
    struct Model m;
    struct Workspace ws;
    struct Batch b = batch_of(text, 1);
    real p[V * T];
    model_from(&m, net);
    workspace_create(&ws, &m, N, WORK_TRAIN);
    const double plain_loss = plain_forward(&v, &net->w, e, &net->shape) / N;
    trunk_forward(&m, &ws, &b, 0, 0);
    const struct Activations *a = &ws.activations[0];
    for (int n = 0; n < N; n++) {
        lm_logits(p + n * V, &m, ws.hidden + n * C);
        softmax(p + n * V, 1, 1, V);
    }
    const real loss = (real)(lm_head(&m, &ws, &b, b.targets, (real)1 / N) / N);
    printf("\nForward, \"%s\" (sections 2 and 3 of the lesson):\n", FOUR);
    compare("embedding", "x (N, C)", a->x, v.block[0].x, N * C, 1e-6);
    compare("queries, keys, values", "qkv (N, 3C)", a->qkv, v.block[0].qkv, N * 3 * C, 1e-6);
    compare("attention", "att (N, C)", a->att, v.block[0].att, N * C, 2e-6);
    compare("residual stream between", "x2 (N, C)", a->x2, v.block[0].x2, N * C, 2e-6);
    compare("input of GELU", "fc (N, 4C)", a->fc, v.block[0].fc, N * 4 * C, 2e-6);
    compare("output of the block", "x (N, C)", ws.activations[1].x, v.block[1].x, N * C, 2e-6);
    compare("final states", "hidden (N, C)", ws.hidden, v.hidden, N * C, 2e-6);
    compare("probabilities", "p (N, V)", p, v.p, N * V, 2e-6);
    compare("loss", "", &loss, &plain_loss, 1, 2e-6);
    trunk_backward(&m, &ws, &b);
    mean_loss(net, text, 1, N);
    printf("\nBackward, the gradient of every tensor:\n");
    for (int i = 0; i < m.tensor_count; i++) {
        const struct Tensor *t = &m.tensors[i];
        char shape[32];
        if (t->rows > 1) snprintf(shape, sizeof shape, "(%d, %d)", t->rows, t->columns);
        else snprintf(shape, sizeof shape, "(%d)", t->columns);
        compare(t->name + strlen("transformer."), shape, m.grads + t->offset,
                net->gradients + t->offset, t->size, 1e-5);
    }
    free(v.memory), batch_free(&b), workspace_free(&ws), model_free(&m);
}

/* Section 4: the loss of each step, all sentences as one batch. Leaves both models trained. */
static void compare_training(struct Model *m, struct Net *net, const struct Text *texts)
{
    enum { STEPS = 300 };
    static real losses[STEPS];
    static double plain_losses[STEPS];
    struct Workspace ws;
    struct Batch b = batch_of(texts, SENTENCES);
    const int rows = b.rows;
    workspace_create(&ws, m, rows, WORK_TRAIN);
    for (int t = 1; t <= STEPS; t++) {
        plain_losses[t - 1] = train_step(net, texts, SENTENCES, rows, 0.01, t);
        trunk_forward(m, &ws, &b, 0, 0);
        losses[t - 1] = (real)(lm_head(m, &ws, &b, b.targets, (real)1 / rows) / rows);
        trunk_backward(m, &ws, &b);
        adamw_step(m, 0.01, 1, DECAY, t);
    }
    printf("\nTraining (4); a step begins where the last one ended, so differences grow:\n");
    compare("loss of the first step", "", losses, plain_losses, 1, 2e-6);
    compare("loss of the first 25 steps", "(25)", losses, plain_losses, 25, 1e-4);
    compare("loss of 300 steps", "(300)", losses, plain_losses, STEPS, 1e-2);
    batch_free(&b), workspace_free(&ws);
}

/* Section 5: a sentence token by token, each with the keys and values of those before it in the
 * cache, against the whole sentence at once. The trained weights are taken over, so that only
 * generation is compared. */
static void compare_generation(const struct Net *net, const struct PlainExample *e)
{
    struct PlainValues v = plain_values(e->N, &net->shape);
    struct Model m;
    struct Workspace ws;
    real p[V * T];
    model_from(&m, net);
    workspace_create(&ws, &m, T, WORK_CACHE);
    plain_forward(&v, &net->w, e, &net->shape);
    const struct Batch first = {1, 1, (int[]){e->tokens[0]}, (int[]){0, 1}};
    const real *hidden = trunk_forward(&m, &ws, &first, 0, 0);
    for (int n = 0; n < e->N; n++) {
        if (n > 0) hidden = trunk_next(&m, &ws, e->tokens[n], n);
        lm_logits(p + n * V, &m, hidden);
        softmax(p + n * V, 1, 1, V);
    }
    printf("\nGeneration (5), \"%s\", with a key-value cache:\n", PARAGRAPH[0]);
    compare("probabilities of each token", "p (N, V)", p, v.p, e->N * V, 2e-5);
    free(v.memory), workspace_free(&ws), model_free(&m);
}

/* Section 6: the probability of tea for all texts, after fine-tuning on the labelled ones. */
static void compare_finetuning(const struct Net *trained)
{
    static struct Text texts[TEXTS];
    double before[TEXTS], after[TEXTS];
    real probabilities[TEXTS * CLASSES], tea[TEXTS];
    int labels[TEXTS];
    for (int i = 0; i < TEXTS; i++) {
        text_create(&texts[i], EXAMPLES[i].text, EXAMPLES[i].label);
        labels[i] = EXAMPLES[i].label;
    }
    finetune(before, after, trained, 0.01, texts);
    struct Net net = net_create(CLASSES);
    struct Model m;
    struct Workspace ws;
    struct Batch labelled = batch_of(texts, LABELLED), all = batch_of(texts, TEXTS);
    memcpy(net.weights, trained->weights, trained->size * sizeof(double));
    model_from(&m, &net);
    for (int i = 0; i < m.tensor_count - 1; i++) m.tensors[i].lr_scale = 0.01f;     /* the body */
    workspace_create(&ws, &m, all.rows, WORK_TRAIN);
    for (int t = 1; t <= 60; t++) {
        trunk_forward(&m, &ws, &labelled, 0, 0);
        class_head(&m, &ws, &labelled, labels, NULL, (real)1 / LABELLED, NULL);
        trunk_backward(&m, &ws, &labelled);
        adamw_step(&m, 0.03, 1, DECAY, t);
    }
    trunk_forward(&m, &ws, &all, 0, 0);
    class_head(&m, &ws, &all, NULL, NULL, 0, probabilities);
    for (int i = 0; i < TEXTS; i++) tea[i] = probabilities[i * CLASSES + 1];
    printf("\nFine-tuning (6), 60 steps on %d labelled texts:\n", LABELLED);
    compare("P(tea) of all texts", "(8)", tea, after, TEXTS, 1e-4);
    free(net.weights), batch_free(&labelled), batch_free(&all);
    workspace_free(&ws), model_free(&m);
}

int main(void)
{
    static struct Text sentences[SENTENCES], four;
    program = "bridge";
    find_letters();
    learn_quietly();
    struct Net net = net_create(0);
    struct Model m;
    for (int s = 0; s < SENTENCES; s++) text_create(&sentences[s], PARAGRAPH[s], -1);
    text_create(&four, FOUR, -1);
    four.example.N--;
    printf("\nThe same sentences with the functions of model.h, which the programs use. They "
           "compute in blocks,\nvectors and threads, with numbers of 7 digits instead of 16. The largest "
           "difference of each quantity\nfrom the lesson's, relative to its largest value:\n");
    compare_text(&net, &four);
    model_from(&m, &net);
    compare_training(&m, &net, sentences);
    compare_generation(&net, &sentences[0].example);
    compare_finetuning(&net);
    printf("\n%s\n", all_agree ? "Every number agrees." : "Not every number agrees.");
    free(net.weights), model_free(&m);
    return !all_agree;
}
