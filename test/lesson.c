/* lesson.c: the whole method on eight sentences, with every number on the way.
 *
 *    1  Tokenizer      eight merges, learned from the sentences
 *    2  Forward        four tokens through the model, every value of it
 *    3  Gradient       one weight moved by hand, then all of them
 *    4  Training       AdamW until the loss has fallen
 *    5  Sampling       what the model writes, draw by draw
 *    6  Fine-tuning    four labelled texts, from this model and from random weights
 *    7  Prompting      no label at all: the model is asked for a word
 *
 * What computes is in reference.h; here it is called and printed. `make lesson` runs it;
 * `out/lesson --weights` prints also the weights of section 2. test_lesson.sh compares the lesson
 * with test/golden/lesson.txt. bridge.c, which includes this file, computes the same with the
 * functions of model.h. */

#include <stdint.h>
#include <stdio.h>
#include "reference.h"

enum { V = 16, C = 8, H = 2, D = C / H, T = 13, LAYERS = 1, SENTENCES = 8 };

/* All that there is to learn from. Who is neat or mad makes tea, who is mean or tame eats meat: so
 * much can be learned without a label. The letters are few, so that 16 tokens are enough. */
static const char *const PARAGRAPH[SENTENCES] = {
    "a neat man made tea", "a mean ant ate meat", "a mad man made tea", "a tame ant ate meat",
    "a mean man ate meat", "a neat ant made tea", "a tame man ate meat", "a mad ant made tea",
};

static const char FOUR[] = "a mad man";         /* of four tokens, for sections 2 and 3 */

/* ============================================================================================= */
/* Random numbers and printing                                                                   */
/* ============================================================================================= */

/* The lesson draws weights and samples with this one generator; it prints the same every time. */
static uint64_t random_state = 42;

/* Between 0 and 1: a linear congruential generator, of which the upper bits are good. */
static double uniform(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return ((random_state >> 11) + 0.5) / 9007199254740992.0;
}

/* Normal numbers (Box and Muller), rounded to two digits, so that what is printed is exact. */
static void fill_normal(double *x, size_t n, double deviation)
{
    for (size_t i = 0; i < n; i++) {
        const double radius = sqrt(-2 * log(uniform())), angle = 2 * M_PI * uniform();
        x[i] = round(100 * deviation * radius * cos(angle)) / 100;
    }
}

/* The title of a section, numbered, with a rule to the 100th column. */
static void heading(const char *title)
{
    static int number;
    const int length = printf("\n%d. %s ", ++number, title) - 1;
    for (int i = length; i < 100; i++) putchar('=');
    printf("\n\n");
}

/* One number; what rounds to 0 has no sign. */
static void print_number(double x, int width, int digits)
{
    printf("%*.*f", width, digits, fabs(x) < 0.5 * pow(10, -digits) ? 0 : x);
}

/* Some columns of a matrix, whose rows are `stride` values apart. */
struct Shown { const char *name; const double *x; int columns, stride; };

/* Matrices side by side, N rows each, under their names, if they have any. */
static void print_beside(const struct Shown *m, int count, int N, int digits)
{
    const int width = digits + 4;
    for (int n = m[0].name ? -1 : 0; n < N; n++) {
        if (n >= 0) printf("%2d", n); else printf("  ");
        for (int i = 0; i < count; i++) {
            const bool last = i == count - 1;
            if (n < 0) printf("  %-*s", last ? 0 : m[i].columns * width - 2, m[i].name);
            for (int c = 0; n >= 0 && c < m[i].columns; c++)
                print_number(m[i].x[n * m[i].stride + c], width, digits);
            printf(last ? "\n" : " |");
        }
    }
}

/* One matrix (N, C). */
static void print_rows(const char *name, const double *x, int N)
{
    print_beside(&(struct Shown){name, x, C, C}, 1, N, 3);
}

/* A matrix with many columns, 16 of them a line. */
static void print_wide(const char *name, const double *x, int N, int columns, int digits)
{
    printf("    %s\n", name);
    for (int n = 0; n < N; n++)
        for (int c = 0; c < columns; c++) {
            if (c == 0) printf("%2d", n);
            else if (c % 16 == 0) printf("\n  ");
            print_number(x[n * columns + c], 6, digits);
            if (c == columns - 1) putchar('\n');
        }
}

/* The sum of a[i] b[i], term by term. */
static void print_products(const char *name, const double *a, const double *b, int b_stride, int n)
{
    const int indent = printf("    %s = ", name);
    for (int i = 0; i < n; i++) {
        if (i > 0 && i % 4 == 0) printf("\n%*s", indent - 2, "");
        if (i > 0) printf(i % 4 == 0 ? "+ " : " + ");
        print_number(a[i], 0, 3);
        printf(" * ");
        print_number(b[i * b_stride], 0, 3);
    }
}

/* ============================================================================================= */
/* 1. Tokenizer                                                                                  */
/* ============================================================================================= */

/* What the tokenizer knows: the text of each token, where a space is written _; how many tokens are
 * single letters; the pairs that were merged, in their order. */
static char token[V][16];
static int base, merges[V][2], merge_count;

/* The letters of the paragraph in ascending order are the first tokens. */
static void find_letters(void)
{
    for (int byte = 1; byte < 128; byte++) {
        bool found = false;
        for (int s = 0; s < SENTENCES; s++) found = found || strchr(PARAGRAPH[s], byte);
        if (found) token[base++][0] = (char)(byte == ' ' ? '_' : byte);
    }
}

/* The text of the token that a merge makes. */
static void name_token(int id, const int *pair)
{
    int n = 0;
    for (int k = 0; k < 2; k++)
        for (const char *p = token[pair[k]]; *p; p++) token[id][n++] = *p;
}

/* The token of a single letter, which must occur in the paragraph. */
static int id_of(char letter)
{
    int id = 0;
    while (token[id][0] != (letter == ' ' ? '_' : letter)) id++;
    return id;
}

/* One id for each letter, and -1 before each space: a word keeps the space before it. */
static int letters(int *ids, const char *text)
{
    int n = 0;
    for (const char *p = text; *p; p++) {
        if (*p == ' ') ids[n++] = -1;
        ids[n++] = id_of(*p);
    }
    return n;
}

/* The paragraph, with -1 after each sentence, too. */
static int paragraph_letters(int *ids)
{
    int n = 0;
    for (int s = 0; s < SENTENCES; s++) {
        n += letters(ids + n, PARAGRAPH[s]);
        ids[n++] = -1;
    }
    return n;
}

/* The tokens of a text; returns their number. */
static int encode(int *tokens, const char *text)
{
    int ids[128], n = letters(ids, text), count = 0;
    n = plain_encode(ids, n, merges, merge_count, base);
    for (int i = 0; i < n; i++)
        if (ids[i] >= 0) tokens[count++] = ids[i];
    return count;
}

/* A line of tokens; -1 is left out. */
static void print_tokens(const int *ids, int n)
{
    for (int i = 0; i < n; i++)
        if (ids[i] >= 0) printf(" %s", token[ids[i]]);
    putchar('\n');
}

/* Row a of the table of pair counts; -1 is the line above it. */
static void print_counts(const int *counts, int a, int known)
{
    printf("    %4s", a < 0 ? "" : token[a]);
    for (int b = 0; b < known; b++)
        if (a < 0) printf("%4s", token[b]);
        else if (counts[a * known + b] == 0) printf("   .");
        else printf("%4d", counts[a * known + b]);
}

/* The counts before the first merge and, beside them, before the second. */
static void show_counts(void)
{
    int ids[512], n = paragraph_letters(ids), pair[2], before[V * V], after[V * V];
    plain_count_pairs(before, ids, n, base);
    const int times = plain_learn_merge(pair, ids, &n, base, base);
    plain_count_pairs(after, ids, n, base + 1);
    name_token(base, pair);
    printf("\nHow often does the column's token stand right after the row's? "
           "Left: at first. The most frequent\npair is %s and then %s, %d times. "
           "It becomes one token, %s, and all is counted again (right).\n\n",
           token[pair[0]], token[pair[1]], times, token[base]);
    for (int a = -1; a <= base; a++) {
        if (a < base) print_counts(before, a, base);
        else printf("    %4s%*s", "", 4 * base, "");
        printf("    ");
        print_counts(after, a, base + 1);
        putchar('\n');
    }
}

/* Learns the merges; beside each stands one sentence as it is then. */
static void learn_merges(void)
{
    int ids[512], n = paragraph_letters(ids), sentence[128];
    int length = letters(sentence, PARAGRAPH[3]);
    printf("\n    merge  pair        times   token    one sentence\n%40s", "");
    print_tokens(sentence, length);
    for (int made = base; made < V - 1; made++, merge_count++) {
        int *pair = merges[merge_count];
        const int times = plain_learn_merge(pair, ids, &n, made, made);
        const char *left = token[pair[0]], *right = token[pair[1]];
        name_token(made, pair);
        length = plain_merge(sentence, length, pair, made);
        printf("    %3d   %4s + %-4s %6d     %2d %-5s ", merge_count, left, right, times, made,
               token[made]);
        print_tokens(sentence, length);
    }
}

/* The sentences, their letters, the first counts, the merges. */
static void show_tokenizer(void)
{
    heading("Tokenizer: pairs of symbols become tokens");
    for (int s = 0; s < SENTENCES; s++)
        printf("    %s%*s", PARAGRAPH[s], s % 4 < 3 ? 20 - (int)strlen(PARAGRAPH[s]) : 0,
               s % 4 < 3 ? "" : "\n");
    find_letters();
    printf("\nThese %d sentences are all that there is to learn from. "
           "They hold %d different bytes, which are the\nfirst tokens:", SENTENCES, base);
    for (int i = 0; i < base; i++) printf(" %s", token[i]);
    printf(", with ids %d to %d (a space is written _). tokenizer.c begins with all\n"
           "%d bytes. A word keeps the space before it, and no pair reaches from one word to the "
           "next.\n", 0, base - 1, 1 << 8);
    show_counts();
    printf("\nSo it goes on until there are %d tokens, of which <|endoftext|>, here <eot>, "
           "is the last. It will\nstand before every text. "
           "Of equally frequent pairs, the one with the smallest ids is taken.\n", V);
    learn_merges();
    strcpy(token[V - 1], "<eot>");
}

/* ============================================================================================= */
/* A model with what it needs to learn, and texts                                                */
/* ============================================================================================= */

/* m and v are AdamW's running averages of the gradient and of its square. All but the class head
 * learns `body` times as fast as that. */
struct Net {
    struct PlainShape shape;
    size_t size;
    double *weights, *gradients, *m, *v;        /* (size) each */
    struct PlainWeights w, dw;                  /* weights and gradients by name */
    double body;
};

/* Random matrices, biases 0, gains 1, a class head of zeros. GPT-2 draws with deviation 0.02; here
 * it is larger, so that the numbers can be read. */
static struct Net net_create(int classes)
{
    struct Net net = {.shape = {LAYERS, H, C, T, V, classes}, .body = 1};
    net.size = plain_size(&net.shape);
    net.weights = calloc(4 * net.size, sizeof(double));
    if (!net.weights) abort();
    net.gradients = net.weights + net.size;
    net.m = net.gradients + net.size;
    net.v = net.m + net.size;
    net.w = plain_weights(net.weights, &net.shape);
    net.dw = plain_weights(net.gradients, &net.shape);
    const struct PlainBlock *b = &net.w.block[0];
    double *const matrices[] = {net.w.wte, net.w.wpe, b->qkv_w, b->attn_proj_w, b->fc_w,
                                b->mlp_proj_w};
    const int sizes[] = {V * C, T * C, C * 3 * C, C * C, C * 4 * C, 4 * C * C};
    for (int i = 0; i < 6; i++) fill_normal(matrices[i], sizes[i], 0.3);
    for (int c = 0; c < C; c++) b->ln1_w[c] = b->ln2_w[c] = net.w.lnf_w[c] = 1;
    return net;
}

/* A text with <|endoftext|> before it, and the token that follows each row. */
struct Text { int rows[T], targets[T]; struct PlainExample example; };

/* With a label, the text is an example for the classifier; with -1, one for the language model,
 * which predicts all its tokens and its end. */
static void text_create(struct Text *t, const char *text, int label)
{
    int n = encode(t->targets, text);
    if (n >= T) abort();
    t->targets[n] = t->rows[0] = V - 1;
    memcpy(t->rows + 1, t->targets, n * sizeof *t->rows);
    t->example = (struct PlainExample){t->rows, label < 0 ? t->targets : NULL, label, n + 1};
}

/* The mean loss of some texts, `terms` losses in all, and its gradient. */
static double mean_loss(struct Net *net, const struct Text *texts, int n, int terms)
{
    double loss = 0;
    memset(net->gradients, 0, net->size * sizeof(double));
    for (int i = 0; i < n; i++) {
        const struct PlainExample *e = &texts[i].example;
        struct PlainValues v = plain_values(e->N, &net->shape);
        struct PlainValues dv = plain_values(e->N, &net->shape);
        loss += plain_forward(&v, &net->w, e, &net->shape) / terms;
        plain_backward(&net->dw, &dv, 1.0 / terms, &v, &net->w, e, &net->shape);
        free(v.memory);
        free(dv.memory);
    }
    return loss;
}

/* AdamW's constants. Often beta2 is 0.999, an average over too many steps for so short a run. */
static const double BETA1 = 0.9, BETA2 = 0.98, DECAY = 0.01;

/* One step with all the texts; returns the loss before it. train_gpt.c lets only matrices decay;
 * here all weights do. */
static double train_step(struct Net *net, const struct Text *texts, int n, int terms, double lr,
                         int t)
{
    const double loss = mean_loss(net, texts, n, terms);
    for (size_t i = 0; i < net->size; i++)
        plain_adamw(&net->weights[i], &net->m[i], &net->v[i], net->gradients[i],
                    &net->weights[i] < net->w.score ? lr * net->body : lr, BETA1, BETA2, DECAY, t);
    return loss;
}

/* ============================================================================================= */
/* 2. Forward                                                                                    */
/* ============================================================================================= */

/* x, y (N, C) and, for the first row, how the one becomes the other. */
static void show_layernorm(const char *name, const double *y, const double *x, int N)
{
    double xhat[C], mean = 0;
    for (int c = 0; c < C; c++) mean += x[c] / C;
    const double rstd = plain_normalize(xhat, x, C);
    printf("\n%s: each row less its mean, times rstd = 1/sqrt(variance + eps). Row %d: mean ",
           name, 0);
    print_number(mean, 0, 3);
    printf(", rstd %.3f.\n", rstd);
    print_rows(NULL, y, N);
}

/* What is needed to compute all of section 2 by hand. */
static void print_weights(const struct PlainWeights *w)
{
    const struct PlainBlock *b = &w->block[0];
    printf("\nAll matrices; the biases are %d, LayerNorm's gains %d. A row is an input.\n", 0, 1);
    print_wide("wte", w->wte, V, C, 2);
    print_wide("wpe", w->wpe, T, C, 2);
    print_wide("qkv_w", b->qkv_w, C, 3 * C, 2);
    print_wide("attn_proj_w", b->attn_proj_w, C, C, 2);
    print_wide("fc_w", b->fc_w, C, 4 * C, 2);
    print_wide("mlp_proj_w", b->mlp_proj_w, 4 * C, C, 2);
}

/* The rows of wte that the tokens choose, the first rows of wpe, and the sums. */
static void show_embedding(const struct PlainValues *v, const struct Net *net, const int *rows,
                           int N)
{
    double vectors[T * C];
    for (int n = 0; n < N; n++)
        memcpy(vectors + n * C, net->w.wte + rows[n] * C, C * sizeof *vectors);
    printf("\nEach token has a vector, and so has each position; x is their sum.\n");
    const struct Shown both[] = {{"wte[id]", vectors, C, C}, {"wpe[row]", net->w.wpe, C, C}};
    print_beside(both, 2, N, 2);
    print_rows("x = wte[id] + wpe[row]", v->block[0].x, N);
}

/* One query, one score, one probability and one y of head 0, row 1, as a product of what stands in
 * the tables above. With the first channel of each, all indices but the row's are 0. */
static void show_attention_by_hand(const struct PlainBlockValues *b, const struct Net *net, int N)
{
    const double *q = b->qkv + 3 * C, *k = b->qkv + C, *v = b->qkv + 2 * C;
    const double *S = b->scores + N, *P = b->P + N;
    printf("By hand, head %d, row %d: a row of ln1 times a column of qkv_w; q . k / sqrt(%d); and "
           "so on.\n", 0, 1, D);
    print_products("q", b->ln1 + C, net->w.block[0].qkv_w, 3 * C, C);
    printf(" = %.3f\n", q[0]);
    print_products("score", q, k, 1, D);
    printf(", / %.3f = %.3f\n", sqrt(D), S[0]);
    printf("    P = exp(%.3f) / (exp(%.3f) + exp(%.3f)) = %.3f\n", S[0], S[0], S[1], P[0]);
    print_products("y", P, v, 3 * C, 2);
    printf(" = %.3f\n", b->att[C]);
}

/* Head h, from queries, keys and values to probabilities. */
static void show_head(const struct PlainBlockValues *b, int h, int N)
{
    const double *q = b->qkv + h * D, *S = b->scores + h * N * N, *P = b->P + h * N * N;
    double masked[T * T];
    memcpy(masked, S, N * N * sizeof *S);
    plain_attention_mask(masked, N);
    char name[32];
    sprintf(name, "q of head %d", h);
    const struct Shown qkv[] = {
        {name, q, D, 3 * C}, {"k", q + C, D, 3 * C}, {"v", q + 2 * C, D, 3 * C}};
    const struct Shown steps[] = {{"scores", S, N, N}, {"masked", masked, N, N}, {"P", P, N, N}};
    print_beside(qkv, 3, N, 3);
    print_beside(steps, 3, N, 3);
}

/* The one step in which a row learns of the others. */
static void show_attention(const struct PlainBlockValues *b, const struct Net *net, int N)
{
    printf("\nAttention: ln1 @ qkv_w + qkv_b gives each row a query, a key and a value of %d "
           "channels in each\nof %d heads. "
           "A score says how well the query of a row fits the key of another. The mask hides\n"
           "what comes later. P = softmax(masked), and y = P v is what a row gathers.\n", D, H);
    for (int h = 0; h < H; h++) show_head(b, h, N);
    show_attention_by_hand(b, net, N);
    print_rows("y of both heads side by side", b->att, N);
}

/* A block changes x twice by adding to it: what attention gathers, and what the MLP makes of each
 * row. Before either, LayerNorm brings the rows to one scale. */
static void show_block(const struct PlainValues *v, const struct Net *net, int N)
{
    const struct PlainBlockValues *b = &v->block[0];
    show_layernorm("ln1", b->ln1, b->x, N);
    show_attention(b, net, N);
    printf("\nA linear map mixes the heads; the result is added to x, the residual stream.\n");
    print_rows("proj = y @ attn_proj_w + attn_proj_b", b->attn_proj, N);
    print_rows("x + proj", b->x2, N);
    show_layernorm("ln2", b->ln2, b->x2, N);
    printf("\nThe MLP works on each row by itself: %d channels become %d, pass through GELU, "
           "which keeps large\nnumbers and almost stops negative ones, and become %d again.\n",
           C, 4 * C, C);
    print_wide("fc = ln2 @ fc_w + fc_b", b->fc, N, 4 * C, 2);
    print_wide("gelu(fc)", b->gelu, N, 4 * C, 2);
    print_rows("proj = gelu @ mlp_proj_w + mlp_proj_b", b->mlp_proj, N);
    print_rows("x + proj, the end of the block", v->block[1].x, N);
}

/* The targets' probabilities and losses; the mean loss. */
static void show_loss(const struct PlainValues *v, const struct PlainExample *e, double loss)
{
    printf("\nThe loss of a row is -log p of the token that really follows:\n");
    for (int n = 0; n < e->N; n++) {
        const double p = v->p[n * V + e->targets[n]];
        printf("%2d  p[%s]%*s = %.4f   -log p = %.4f\n", n, token[e->targets[n]],
               5 - (int)strlen(token[e->targets[n]]), "", p, -log(p));
    }
    printf("The mean is %.4f; to give all %d tokens the same probability would cost log %d = "
           "%.4f.\n", loss / e->N, V, V, log(V));
}

/* One text through the model, from ids to loss. plain_forward computes it all at once and keeps
 * every value; the rest prints them. */
static void show_forward(const struct Net *net, const struct PlainExample *e, bool weights)
{
    const int N = e->N;
    heading("Forward: a text goes through the model");
    printf("The model has %d layer, %d heads, %d channels, room for %d tokens: %zu weights, "
           "drawn at random\nand rounded (out/lesson --weights prints them). The text \"%s\" is "
           "%d tokens; each is\npredicted from those before it.\n\n"
           "    row  token  id   to predict  id\n", LAYERS, H, C, T, net->size, FOUR, N);
    for (int n = 0; n < N; n++)
        printf("%6d   %-5s  %2d   %-5s       %2d\n", n, token[e->tokens[n]], e->tokens[n],
               token[e->targets[n]], e->targets[n]);
    if (weights) print_weights(&net->w);
    struct PlainValues v = plain_values(N, &net->shape);
    const double loss = plain_forward(&v, &net->w, e, &net->shape);
    show_embedding(&v, net, e->tokens, N);
    show_block(&v, net, N);
    show_layernorm("hidden", v.hidden, v.block[LAYERS].x, N);
    printf("\nEach token's score is hidden . wte[token]; softmax makes the %d scores "
           "probabilities.\n  ", V);
    for (int i = 0; i < V; i++) printf("%6s", token[i]);
    putchar('\n');
    print_wide("logits = hidden @ wte^T", v.logits, N, V, 2);
    print_wide("p = softmax(logits)", v.p, N, V, 3);
    show_loss(&v, e, loss);
    free(v.memory);
}

/* ============================================================================================= */
/* 3. Gradient                                                                                   */
/* ============================================================================================= */

/* The mean loss of one text. */
static double loss_at(const struct Net *net, const struct PlainExample *e)
{
    struct PlainValues v = plain_values(e->N, &net->shape);
    const double loss = plain_forward(&v, &net->w, e, &net->shape) / e->N;
    free(v.memory);
    return loss;
}

/* The loss with weight i moved by h. */
static double loss_moved(const struct Net *net, size_t i, double h, const struct PlainExample *e)
{
    const double before = net->weights[i];
    net->weights[i] += h;
    const double loss = loss_at(net, e);
    net->weights[i] = before;
    return loss;
}

/* Moves every weight up and down by h; returns the worst difference from backward's gradients. It
 * is relative to the gradient; one below 0.01 counts as 0.01. */
static double worst_difference(const struct Net *net, const struct PlainExample *e, double h)
{
    double worst = 0;
    for (size_t i = 0; i < net->size; i++) {
        const double g = net->gradients[i];
        const double quotient = (loss_moved(net, i, h, e) - loss_moved(net, i, -h, e)) / (2 * h);
        worst = fmax(worst, fabs(quotient - g) / fmax(fabs(g), 0.01));
    }
    return worst;
}

/* All weights, with h ten times smaller each time, and the gradients that must be 0. */
static void check_all(const struct Net *net, const struct PlainExample *e)
{
    int zeros = 0;
    for (size_t i = 0; i < net->size; i++) zeros += fabs(net->gradients[i]) < 1e-12;
    printf("\nThe same for all %zu weights, where gradients below %.2f count as %.2f. "
           "What is left is the\nquotient's own error, which falls with the square of h:\n",
           net->size, 0.01, 0.01);
    for (double h = 1e-2; h > 1e-5; h /= 10)
        printf("    h = %-6g   worst difference %.1e\n", h, worst_difference(net, e, h));
    printf("%d gradients are %d: those of the %d positions that no row has (%d channels each), and "
           "of the\nkeys' %d biases, which softmax does not see.\n", zeros, 0, T - e->N, C, C);
}

/* The loss on both sides of one weight. The gradient is the slope of the loss, and the slope is
 * nearly the quotient of the differences: the part in h cancels, that in h^2 remains. */
static void show_gradient(struct Net *net, const struct Text *text)
{
    const struct PlainExample *e = &text->example;
    const double h = 1e-2;
    const size_t i = net->w.block[0].qkv_w - net->weights;
    const double w = net->weights[i], above = loss_moved(net, i, h, e),
                 below = loss_moved(net, i, -h, e), quotient = (above - below) / (2 * h);
    mean_loss(net, text, 1, e->N);
    const double gradient = net->gradients[i];
    heading("Gradient: where does the loss go when a weight moves?");
    printf("backward goes through the same lines from last to first and says for every weight how "
           "fast the\nloss grows with it. A test: move one weight, the first of qkv_w, by h = %g."
           "\n\n", h);
    printf("    w     = %9.6f    loss %.9f\n", w, loss_at(net, e));
    printf("    w + h = %9.6f    loss %.9f\n", w + h, above);
    printf("    w - h = %9.6f    loss %.9f\n", w - h, below);
    printf("    (loss(w + h) - loss(w - h)) / 2h = %.9f\n", quotient);
    printf("    the gradient from backward       = %.9f\n", gradient);
    printf("    relative difference                %.1e\n", fabs(quotient / gradient - 1));
    check_all(net, e);
}

/* ============================================================================================= */
/* 4. Training                                                                                   */
/* ============================================================================================= */

/* The loss of one who knows how often each token occurs, and no more. */
static double frequency_loss(const struct Text *texts, int terms)
{
    int counts[V] = {0};
    double loss = 0;
    for (int s = 0; s < SENTENCES; s++)
        for (int n = 0; n < texts[s].example.N; n++) counts[texts[s].targets[n]]++;
    for (int i = 0; i < V; i++)
        if (counts[i] > 0) loss -= counts[i] * log((double)counts[i] / terms) / terms;
    return loss;
}

/* AdamW's arithmetic for one weight i, which was `before`. In the first step the averages hold one
 * gradient only, so m' / sqrt(v') is its sign; m' and v' are m and v, corrected. */
static void show_first_step(const struct Net *net, size_t i, double before, double lr)
{
    const double m = net->m[i] / (1 - BETA1), v = net->v[i] / (1 - BETA2);
    printf("In step %d, the first weight of qkv_w has the gradient g = %.6f.\n", 1,
           net->gradients[i]);
    printf("    m = (1 - %.2f) g   = %.8f   m' = m / (1 - %.2f) = %.8f, the average of g\n", BETA1,
           net->m[i], BETA1, m);
    printf("    v = (1 - %.2f) g^2 = %.8f   v' = v / (1 - %.2f) = %.8f, the average of g^2\n",
           BETA2, net->v[i], BETA2, v);
    printf("    w = %.6f - %g (m' / sqrt(v') + %g w) = %.6f: a step of about lr, whatever g is\n",
           before, lr, DECAY, net->weights[i]);
}

/* The probabilities of a text's tokens, each given those before it. */
static void print_targets(const char *when, const struct Net *net, const struct PlainExample *e)
{
    struct PlainValues v = plain_values(e->N, &net->shape);
    plain_forward(&v, &net->w, e, &net->shape);
    printf("    %s:", when);
    for (int n = 0; n < e->N; n++)
        printf("   p[%s] = %.3f", token[e->targets[n]], v.p[n * V + e->targets[n]]);
    putchar('\n');
    free(v.memory);
}

/* What the loss must be compared with. */
static void show_losses(const struct Text *texts, int terms)
{
    printf("\nGuessing evenly costs %.4f; knowing how often each token occurs, %.4f. "
           "Nobody can know which of\nthe %d sentences comes next, so no model gets below "
           "%d log %d / %d = %.4f. The text from above:\n", log(V), frequency_loss(texts, terms),
           SENTENCES, SENTENCES, SENTENCES, terms, SENTENCES * log(SENTENCES) / terms);
}

/* Trains net on all sentences; shows the first step, the loss as it falls, and what has become of
 * the four tokens of section 2. */
static void show_training(struct Net *net, const struct Text *texts, const struct Text *text)
{
    const double lr = 0.01;
    const size_t i = net->w.block[0].qkv_w - net->weights;
    const double before = net->weights[i];
    struct Net start = net_create(0);
    memcpy(start.weights, net->weights, net->size * sizeof(double));
    int terms = 0;
    for (int s = 0; s < SENTENCES; s++) terms += texts[s].example.N;
    heading("Training: AdamW takes steps down the gradient");
    printf("Each step takes all %d sentences, %d tokens to predict; the learning rate lr is %g.\n",
           SENTENCES, terms, lr);
    for (int t = 1; t <= 300; t++) {
        const double loss = train_step(net, texts, SENTENCES, terms, lr, t);
        if (t == 1) show_first_step(net, i, before, lr);
        if (t > 1 && t % 25 != 0) continue;
        printf("    step %3d   loss %.4f  ", t, loss);
        for (int k = 0; k < 16 * loss; k++) putchar('#');
        putchar('\n');
    }
    show_losses(texts, terms);
    print_targets("before", &start, &text->example);
    print_targets("after ", net, &text->example);
    free(start.weights);
}

/* ============================================================================================= */
/* 5. Sampling                                                                                   */
/* ============================================================================================= */

/* The first token at which the sum of the probabilities passes u. */
static int draw(const double *p, double u)
{
    int i = 0;
    for (double sum = p[0]; sum < u && i < V - 1; sum += p[i]) i++;
    return i;
}

/* The three likeliest tokens. */
static void print_likeliest(const double *p)
{
    double left[V];
    memcpy(left, p, sizeof left);
    for (int k = 0; k < 3; k++) {
        int best = 0;
        for (int i = 1; i < V; i++)
            if (left[i] > left[best]) best = i;
        printf("%-5s %.3f  ", token[best], left[best]);
        left[best] = 0;
    }
}

/* Draws tokens after those in `rows` until <|endoftext|> comes or there is no more room; returns
 * how many rows there are then. */
static int write_on(const struct Net *net, int *rows, int N, bool print)
{
    while (N < T) {
        const struct PlainExample e = {rows, NULL, -1, N};
        struct PlainValues v = plain_values(N, &net->shape);
        plain_forward(&v, &net->w, &e, &net->shape);
        const double *p = v.p + (N - 1) * V, u = uniform();
        rows[N] = draw(p, u);
        if (print) {
            printf("    %-5s ", token[rows[N - 1]]);
            print_likeliest(p);
            printf("  u = %.3f draws %s\n", u, token[rows[N]]);
        }
        free(v.memory);
        if (rows[N] == V - 1) break;
        N++;
    }
    return N;
}

/* One text, draw by draw, then some without the details. */
static void show_sampling(const struct Net *net)
{
    const char *prompt = "a";
    int rows[T + 1] = {V - 1};
    heading("Sampling: the model writes");
    printf("The prompt is \"%s\". A random number u between %d and %d chooses the token at which "
           "the sum of the\nprobabilities, in the order of the ids, passes u. "
           "It is appended, and the model goes on from there.\n\n"
           "    last  the likeliest tokens\n", prompt, 0, 1);
    write_on(net, rows, 1 + encode(rows + 1, prompt), true);
    printf("\nMore of them, from <eot> alone:\n");
    for (int i = 0; i < 3; i++) {
        const int N = write_on(net, rows, 1, false);
        printf("   ");
        print_tokens(rows + 1, N - 1);
    }
}

/* ============================================================================================= */
/* 6. Fine-tuning                                                                                */
/* ============================================================================================= */

enum { LABELLED = 4, TEXTS = 8, CLASSES = 2 };

/* The classes: who makes tea, and who eats meat? Each text ends before it says so. Neat and tame
 * are four tokens each, so it cannot be their length that is learned. */
static const struct { const char *text; int label; } EXAMPLES[TEXTS] = {
    {"a neat man", 1}, {"a neat ant", 1}, {"a tame man", 0}, {"a tame ant", 0},
    {"a mad man", 1}, {"a mad ant", 1}, {"a mean man", 0}, {"a mean ant", 0},
};
static const char *const CLASS_NAMES[CLASSES] = {"meat", "tea"};

/* p (TEXTS): the probability of class 1. */
static void classify(double *p, const struct Net *net, const struct Text *texts)
{
    for (int i = 0; i < TEXTS; i++) {
        struct PlainValues v = plain_values(texts[i].example.N, &net->shape);
        plain_forward(&v, &net->w, &texts[i].example, &net->shape);
        p[i] = v.class_p[1];
        free(v.memory);
    }
}

/* A classifier from a model or, without one, from random weights, fine-tuned on the labelled texts.
 * Sets the probabilities of class 1 before and after (TEXTS each); returns how many of the new
 * texts come out right. */
static int finetune(double *before, double *after, const struct Net *from, double body,
                    const struct Text *texts)
{
    struct Net net = net_create(CLASSES);
    int right = 0;
    if (from) memcpy(net.weights, from->weights, from->size * sizeof(double));
    net.body = body;
    classify(before, &net, texts);
    for (int t = 1; t <= 60; t++) train_step(&net, texts, LABELLED, LABELLED, 0.03, t);
    classify(after, &net, texts);
    for (int i = LABELLED; i < TEXTS; i++) right += (after[i] > 0.5) == EXAMPLES[i].label;
    free(net.weights);
    return right;
}

/* Probabilities before and after, from the model and from random weights. */
static void show_classes(const struct Net *model, const struct Text *texts, double body)
{
    double p[4][TEXTS];
    finetune(p[0], p[1], model, body, texts);
    finetune(p[2], p[3], NULL, body, texts);
    printf("    %38s%26s\n    text         label    before  after%18s\n", "from the trained model",
           "from random weights", "before  after");
    for (int i = 0; i < TEXTS; i++) {
        if (i == LABELLED) printf("    new:\n");
        printf("    %-12s %-5s    %.3f   %.3f     %.3f   %.3f\n", EXAMPLES[i].text,
               CLASS_NAMES[EXAMPLES[i].label], p[0][i], p[1][i], p[2][i], p[3][i]);
    }
}

/* The same fine-tuning from three starts: the trained model; random weights, many times, since one
 * start may be lucky; and the trained model again, with all weights at the rate of the head. */
static void show_finetuning(const struct Net *model)
{
    static struct Text texts[TEXTS];
    double p[2][TEXTS];
    const int starts = 50, new = TEXTS - LABELLED;
    const double gently = 0.01;
    int right = 0;
    for (int i = 0; i < TEXTS; i++) text_create(&texts[i], EXAMPLES[i].text, EXAMPLES[i].label);
    heading("Fine-tuning: a class from few labels");
    printf("A class head (%d, %d) scores the last row's hidden state; it begins with zeros. "
           "The labels: who makes\ntea, who eats meat? %d texts are labelled, %d others are new. "
           "Every weight learns, the head %g times\nas fast as the rest. "
           "The probability of tea:\n\n", CLASSES, C, LABELLED, new, 1 / gently);
    show_classes(model, texts, gently);
    for (int k = 0; k < starts; k++) right += finetune(p[0], p[1], NULL, gently, texts);
    printf("\nNew texts that come out right: %d of %d from the trained model; "
           "%d of %d from %d random starts,\n"
           "where guessing gives %d. No label said that mad is like neat: the sentences did.\n",
           finetune(p[0], p[1], model, gently, texts), new, right, starts * new, starts,
           starts * new / 2);
    printf("If the rest of the trained model learns as fast as the head: %d of %d.\n"
           "\nRead this with care. The sentences, the rates and the number of steps were chosen "
           "after others had\nbeen tried, in some of which random weights did better. It shows "
           "that pretraining can help; how much\nit helps has to be measured on many texts, with "
           "settings that were fixed before.\n", finetune(p[0], p[1], model, 1, texts), new);
}

/* ============================================================================================= */
/* 7. Prompting                                                                                  */
/* ============================================================================================= */

/* What comes after "a mad man" tells the class: who is neat or mad " made tea". */
static const char *const LABEL_WORDS[CLASSES] = {" ate", " made"};

/* What the model expects after a text. */
struct Expected {
    double p[CLASSES], score[CLASSES];      /* of the label words; score: its row of wte . h */
    double constant;                        /* sum_c h_c / w_c */
};

static struct Expected expect(const struct Net *net, const struct Text *text, const int *words)
{
    struct Expected e = {.constant = 0};
    struct PlainValues v = plain_values(text->example.N, &net->shape);
    plain_forward(&v, &net->w, &text->example, &net->shape);
    const int last = text->example.N - 1;
    for (int k = 0; k < CLASSES; k++) {
        e.p[k] = v.p[last * V + words[k]];
        e.score[k] = v.logits[last * V + words[k]];
    }
    for (int c = 0; c < C; c++) e.constant += v.hidden[last * C + c] / net->w.lnf_w[c];
    free(v.memory);
    return e;
}

/* The texts of section 6, answered by what the model expects next; the prior is the mean over them. */
static void show_prompting(const struct Net *net)
{
    static struct Text text;
    struct Expected e[TEXTS];
    double prior = 0, constant = 0;
    int words[CLASSES], right = 0, longer[T];
    heading("Prompting: a class from no label");
    for (int k = 0; k < CLASSES; k++) {
        encode(longer, LABEL_WORDS[k]);
        words[k] = longer[0];
    }
    for (int i = 0; i < TEXTS; i++) {
        text_create(&text, EXAMPLES[i].text, -1);
        e[i] = expect(net, &text, words);
        prior += (e[i].score[1] - e[i].score[0]) / TEXTS;
    }
    for (int c = 0; c < C; c++) constant += net->w.lnf_b[c] / net->w.lnf_w[c];
    printf("Before any label the model knows what it has read. Label words: \"%s\" for %s, \"%s\" "
           "for %s, each\nby its first token. A word's score is its row of wte . h, where h is the "
           "last row's hidden state.\nThe prior, the mean over the texts of score[%s] - "
           "score[%s], is %.3f; it needs no label either.\n\n", LABEL_WORDS[1] + 1,
           CLASS_NAMES[1], LABEL_WORDS[0] + 1, CLASS_NAMES[0], token[words[1]], token[words[0]],
           prior);
    printf("    text          p[%s]   p[%s]   difference - prior          sum of h / w\n",
           token[words[1]], token[words[0]]);
    for (int i = 0; i < TEXTS; i++) {
        const double score = e[i].score[1] - e[i].score[0] - prior;
        right += (score > 0) == EXAMPLES[i].label;
        printf("    %-12s   %.3f    %.3f   %18.3f   %-5s %15.6f\n", EXAMPLES[i].text, e[i].p[1],
               e[i].p[0], score, CLASS_NAMES[score > 0], e[i].constant);
    }
    printf("\nRight: %d of %d, of sentences that it has read. The last column is the same for all: "
           "what LayerNorm\nnormalised adds up to 0, so only sum b / w = %.6f is left. A multiple of "
           "1 / w, added to a row\nof a head, adds a constant to its score: so the prior finds room in "
           "a head without bias.\n", right, TEXTS, constant);
}

#ifndef LESSON_NO_MAIN

/* The sections in their order. Sections 2 to 4 have one model, which 4 trains for 5 to 7. */
int main(int argc, char **argv)
{
    const bool weights = argc > 1 && !strcmp(argv[1], "--weights");
    static struct Text sentences[SENTENCES], four;
    show_tokenizer();
    struct Net net = net_create(0);
    for (int s = 0; s < SENTENCES; s++) text_create(&sentences[s], PARAGRAPH[s], -1);
    text_create(&four, FOUR, -1);
    four.example.N--;                       /* without the end, which is not predicted here */
    show_forward(&net, &four.example, weights);
    show_gradient(&net, &four);
    show_training(&net, sentences, &four);
    show_sampling(&net);
    show_finetuning(&net);
    show_prompting(&net);
    free(net.weights);
    return 0;
}

#endif
