/* hostile.h: every reader of files as a function of bytes, for test_hostile.c and dev/fuzz/fuzz.c.
 * A reader that dies comes back here, and all memory that it took is freed. What is checked: the
 * message names the file and is one harmless sentence; memory is bounded by the size of the
 * input; what is read holds what the rest of the program relies on. */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* --- Memory: what the readers have, and how much it may be --- */

enum { FIXED_BYTES = 3 << 20, BYTES_FOR_ONE = 100 };   /* allowed: in all, and for each of input */

struct Watched { struct Watched *before, *after; size_t size, unused; };   /* 32 bytes: aligned */
static struct Watched all_blocks = {&all_blocks, &all_blocks, 0, 0};
static struct { void *at; size_t size; } maps[64];
static size_t live_bytes, allowed_bytes = SIZE_MAX;

/* A finding ends the program, and its input is known to whoever runs it. */
static void finding(const char *what)
{
    fprintf(stderr, "FOUND: %s\n", what);
    abort();
}

static void count_bytes(size_t freed, size_t more)
{
    live_bytes += more - freed;
    if (live_bytes > allowed_bytes) finding("more memory than the input justifies");
}

static void watched_free(void *p)
{
    if (!p) return;
    struct Watched *b = (struct Watched *)p - 1;
    count_bytes(b->size, 0);
    b->before->after = b->after;
    b->after->before = b->before;
    free(b);
}

static void *watched_realloc(void *old, size_t size)
{
    struct Watched *was = old ? (struct Watched *)old - 1 : NULL;
    count_bytes(was ? was->size : 0, size);
    struct Watched *b = realloc(was, sizeof *b + size);
    if (!b) finding("out of memory");
    if (!was) { b->before = &all_blocks; b->after = all_blocks.after; }
    b->before->after = b->after->before = b;
    b->size = size;
    return b + 1;
}

static void *watched_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    void *p = mmap(at, size, protection, flags, file, offset);
    int i = 0;
    while (i < 64 && maps[i].at) i++;
    if (i == 64) finding("64 mappings");
    if (!(flags & MAP_ANONYMOUS)) finding("a mapped file");
    if (p == MAP_FAILED) return p;
    maps[i].at = p;
    maps[i].size = size;
    count_bytes(0, size);
    return p;
}

static int watched_munmap(void *p, size_t size)
{
    for (int i = 0; i < 64; i++)
        if (maps[i].at == p) { count_bytes(maps[i].size, 0); maps[i].at = NULL; }
    return munmap(p, size);
}

#define free    watched_free
#define realloc watched_realloc
#define mmap    watched_mmap
#define munmap  watched_munmap

/* --- Death: back to run_reader --- */

static void come_back(int status, const char *text);
#define AT_END come_back

/* The readers of finetune_cls.c, and with it of tokenizer.c and model.h, or what another program
 * reads besides. */
#if defined HOSTILE_TRAIN_GPT
#define TRAIN_GPT_NO_MAIN
#include "../train_gpt.c"
#elif defined HOSTILE_TOKENIZER
#define main tokenizer_main
#include "../tokenizer.c"
#undef main
#else
#define FINETUNE_NO_MAIN
#include "../finetune_cls.c"
#endif

static char hostile_dir[32];
static jmp_buf place_of_death;
static char last_words[MAX_BRIEF];

static void come_back(int status, const char *text)
{
    strcpy(last_words, text);
    const size_t n = strlen(last_words);
    if (status != STATUS_FAILED) finding("another status than 1");
    const bool ends = n > 3 && (strchr(".?", last_words[n - 1])
                                || !strcmp(last_words + n - 4, ">NEW"));       /* a command */
    if (!ends || !strstr(last_words, hostile_dir) || n + 1 > MAX_BRIEF) finding(last_words);
    for (size_t i = 0; i < n; i++) if (iscntrl((unsigned char)last_words[i])) finding("a control");
    longjmp(place_of_death, 1);
}

/* --- Files of the input --- */

static char *in_dir(const char *name) { return text_of("%s/%s", hostile_dir, name); }

/* Some file systems flush a file that is cut to nothing before it is written, so it is cut last. */
static void put(const char *name, const void *bytes, size_t n)
{
    char *path = in_dir(name);
    const int fd = open(path, O_WRONLY | O_CREAT, 0666);
    if (fd < 0 || write(fd, bytes, n) != (ssize_t)n || ftruncate(fd, n) || close(fd))
        finding("the disk is full");
    free(path);
}

/* Two files as one input: the length of the first in 4 bytes, the first, the second. */
static struct Buffer two_files(struct Bytes a, struct Bytes b)
{
    struct Buffer both = {0};
    const uint32_t n = (uint32_t)a.size;
    append_bytes(&both, &n, 4);
    append_bytes(&both, a.data, a.size);
    append_bytes(&both, b.data, b.size);
    return both;
}

static void put_two(const char *first, const char *second, struct Bytes both)
{
    uint32_t n = 0;
    if (both.size >= 4) memcpy(&n, both.data, 4); else both.size = 4;
    if (n > both.size - 4) n = (uint32_t)(both.size - 4);
    put(first, both.data + 4, n);
    put(second, both.data + 4 + n, both.size - 4 - n);
}

/* The input as rows of a journal, after its header. What is read of them is whole lines. */
static char *rows_of(const char *name, const char *header, struct Bytes input)
{
    struct Buffer file = {0};
    append(&file, "%s", header);
    append_bytes(&file, input.data, input.size);
    put(name, file.data, file.size);
    char *rows = read_journal(in_dir(name), header);
    if (!rows || (*rows && rows[strlen(rows) - 1] != '\n')) finding("a cut row");
    return rows;
}

/* --- The readers --- */

static struct Model tiny;               /* what models and states are of, */
static struct Tokenizer *tiny_tokenizer;        /* and texts are encoded with */

#if defined HOSTILE_TRAIN_GPT

static void read_log_file(struct Bytes input)
{
    last_seconds(rows_of("log.tsv", LOG_HEADER, input));
}

static const struct HostileReader { const char *name; void (*read)(struct Bytes input); } readers[] = {
    {"log", read_log_file}};

#elif defined HOSTILE_TOKENIZER

/* Texts, split in all ways. The first byte says how, and how large chunks are. Chunks of another
 * size give the same documents, and their ids give the same bytes. */
static uint64_t hash_of_documents(const char *split, int64_t bytes_of_chunk)
{
    const struct Tokenizer *t = tiny_tokenizer;
    char *paths[] = {in_dir("texts")};
    chunk_bytes = bytes_of_chunk;
    struct Source source = source_open(paths, 1, split, "text");
    struct Chunk chunks[BATCH];
    struct Part p;
    uint64_t hash = 0;
    for (int n; (n = next_chunks(&source, chunks, "reading")); )
        for (int i = 0; i < n; i++)
            while (next_part(&chunks[i], &p)) {
                const size_t size = p.end - p.begin;
                uint16_t *ids = resize(NULL, (size + 16) * sizeof *ids);
                const size_t count = encode_text(t, t->cache, p.begin, p.end, p.readable,
                                                 ids);
                size_t at = 0;
                if (p.starts) hash = mix64(hash + 1);
                for (size_t k = 0; k < count; k++) {
                    const struct Bytes piece = bytes_of_token(t, ids[k]);
                    if (at + piece.size > size || memcmp(p.begin + at, piece.data, piece.size))
                        finding("ids of another text");
                    at += piece.size;
                }
                if (at != size) finding("ids of a shorter text");
                for (size_t k = 0; k < size; k++) hash = mix64(hash ^ p.begin[k]);
                free(ids);
            }
    source_close(&source);
    return hash;
}

static void read_texts(struct Bytes input)
{
    static const char *const splits[] = {"file", "lines", "eot", "jsonl"};
    const int how = input.size ? (unsigned char)*input.data : 0;
    put("texts", input.data + (input.size > 0), input.size - (input.size > 0));
    const uint64_t whole = hash_of_documents(splits[how % 4], 1 << 14);
    if (hash_of_documents(splits[how % 4], 1 + how / 4) != whole)
        finding("chunks change documents");
}

static const struct HostileReader { const char *name; void (*read)(struct Bytes input); } readers[] = {
    {"texts", read_texts}};

#else

static void read_model(struct Bytes input)
{
    struct Model m;
    struct Json meta;
    put_two("config.json", "model.safetensors", input);
    load_model(&m, hostile_dir, &meta);
    for (size_t k = 0; k < m.parameter_count; k++)
        if (!isfinite(m.weights[k])) finding("weights that are not finite");
    for (int k = 0; k < m.config.labels; k++)
        if (!m.config.label_names[k] || strlen(m.config.label_names[k]) > MAX_LABEL_BYTES)
            finding("a wrong label");
    model_free(&m);
}

static void read_state(struct Bytes input)
{
    struct Json meta;
    put("state.safetensors", input.data, input.size);
    load_state(in_dir("state.safetensors"), &tiny, NULL, NULL, &meta);
}

/* Every token is made of two others, and no two are equal in the directory's order. */
static void check_tokenizer(struct Tokenizer *t)
{
    for (int r = 0; r < t->merges; r++) {
        const struct Bytes token = bytes_of_token(t, BYTES + r),
                           left = bytes_of_token(t, t->parts[r][0]),
                           right = bytes_of_token(t, t->parts[r][1]);
        if (token.size != left.size + right.size || memcmp(token.data, left.data, left.size)
            || memcmp(token.data + left.size, right.data, right.size)) finding("a wrong token");
    }
    if (t->eot != t->vocabulary - 1 || t->usage.max_length < 0) finding("a wrong vocabulary");
}

static void read_tokenizer(void)
{
    const struct Json none = {0};
    struct Model m;
    const struct Config config = {1, 1, 1, 1, 300, 0, NULL};
    struct Tokenizer *t = tokenizer_load(hostile_dir);
    for (int i = 0; t->file_ids && i < t->vocabulary; i++)
        for (int k = 0; k < i; k++)
            if (t->file_ids[k] == t->file_ids[i]) finding("two tokens with one id");
    model_create(&m, config);
    check_tokenizer(tokenizer_of_model(hostile_dir, &m, &none));
}

static void read_merges_file(struct Bytes input)
{
    unlink(in_dir("tokenizer_config.json"));
    unlink(in_dir("tokenizer.json"));
    put_two("merges.txt", "vocab.json", input);
    read_tokenizer();
}

static void read_tokenizer_json_file(struct Bytes input)
{
    unlink(in_dir("merges.txt"));
    put_two("tokenizer_config.json", "tokenizer.json", input);
    read_tokenizer();
}

static void read_shard(struct Bytes input)
{
    put("shard.bin", input.data, input.size);
    struct Shard s = open_shard(in_dir("shard.bin"), NULL);
    uint16_t id;
    for (int64_t i = 0; i < s.count; i++) read_block(&id, 1, &s, i);
    if (s.count < 0 || s.file.size != SHARD_HEADER + s.count * sizeof id) finding("a wrong shard");
    close(s.file.fd);
}

/* Labelled texts: as for training, then texts alone, as for prediction. */
static void read_labelled(struct Bytes input)
{
    uint64_t all = 0;                           /* of all bytes of the texts */
    put("data", input.data, input.size);
    for (int alone = 1; alone >= 0; alone--) {
        const struct Columns columns = {.texts_only = alone};
        const struct Examples e = read_examples(in_dir("data"), columns);
        for (int i = 0; i < e.count; i++)
            all ^= checksum(e.items[i].text.data, e.items[i].text.size);
        if (alone) continue;
        int classes;
        char **names = class_names(&e, &classes);
        for (int k = 0; k < classes; k++) free(names[k]);
        free(names);
    }
    memcpy(last_words, &all, sizeof all);       /* so that it is computed */
}

static void read_json(struct Bytes input)
{
    char *path = in_dir("json"), *exact = resize(NULL, input.size);
    memcpy(exact, input.data, input.size);
    struct Json *j = json_parse(exact, input.size, path);
    struct Buffer out = {0};
    for (const struct Json *c = j->child; c; c = c->next)
        if (c->kind == JSON_STRING) append_json_string(&out, (struct Bytes){c->string, c->length});
    json_free(j);
}

/* The rows of a comparison: of two methods, with 8 labels, on two texts. */
static void read_comparison(struct Bytes input)
{
    struct Task methods[] = {{.set = {.tune = "nb"}}, {.set = {.tune = "full"}}};
    int budgets[] = {8};
    struct Cell cells[2] = {{0}};
    struct Compare c = {.methods = methods, .method_count = 2, .seeds = 1, .budgets = budgets,
                        .budget_count = 1, .cells = cells, .task = {.val_count = 2}};
    char *rows = rows_of("compare.tsv", table_header, input);
    for (; *rows; rows = strchr(rows, '\n') + 1) read_cell(&c, rows);
    for (struct Cell *cell = cells; cell < cells + 2; cell++)
        if (cell->right && (strspn(cell->right, "01") != 2 || cell->right[2]))
            finding("a wrong answer");
}

static const struct HostileReader { const char *name; void (*read)(struct Bytes input); } readers[] = {
    {"model", read_model}, {"state", read_state}, {"merges", read_merges_file},
    {"tokenizer", read_tokenizer_json_file}, {"shard", read_shard}, {"tsv", read_labelled},
    {"csv", read_labelled}, {"jsonl", read_labelled}, {"json", read_json},
    {"comparison", read_comparison}};

#endif

/* The descriptor that the next file gets. */
static int next_descriptor(void)
{
    const int fd = open("/dev/null", O_RDONLY);
    if (fd < 0 || close(fd)) finding("no descriptors");
    return fd;
}

/* Reads one input. Returns whether it was good; if not, last_words says why. */
static bool run_reader(const struct HostileReader *r, struct Bytes input)
{
    const struct Watched *kept = all_blocks.after;        /* blocks from before stay */
    const int first = next_descriptor();
    void *maps_kept[64];
    for (int i = 0; i < 64; i++) maps_kept[i] = maps[i].at;
    allowed_bytes = live_bytes + FIXED_BYTES + BYTES_FOR_ONE * input.size;
    volatile bool good = false;
    if (!setjmp(place_of_death)) { r->read(input); good = true; }
    while (all_blocks.after != kept) watched_free(all_blocks.after + 1);
    for (int i = 0; i < 64; i++)
        if (maps[i].at != maps_kept[i] && maps[i].at) watched_munmap(maps[i].at, maps[i].size);
    if (good && next_descriptor() != first) finding("a file stays open");
    for (int fd = first; fd < first + 8; fd++) close(fd);       /* of a reader that died */
    allowed_bytes = SIZE_MAX;
    return good;
}

/* --- Good inputs, made by our own writers --- */

static struct Buffer content(const char *name)
{
    char *path = in_dir(name);
    const struct Bytes b = read_file(path, SIZE_MAX, false);
    free(path);
    return (struct Buffer){(char *)b.data, b.size, b.size + 1};
}

static struct Bytes bytes_of(struct Buffer b) { return (struct Bytes){b.data, b.size}; }

/* The same vocabulary, with <|endoftext|> first. */
static struct Buffer other_order(const struct Tokenizer *t)
{
    struct Buffer b = {0};
    append(&b, "{\"" END_OF_TEXT "\": 0");
    for (int id = 0; id < t->eot; id++) {
        append(&b, ", \"");
        append_token(&b, t, id, true);
        append(&b, "\": %d", id + 1);
    }
    append(&b, "}");
    return b;
}

enum { SEEDS = 3 };

/* Our own files, written to the directory. Returns the tokenizer. */
static struct Tokenizer *write_files(void)
{
    static char *labels[] = {"bad", "good"};
    struct Json meta = {0};
    struct Tokenizer *t = tokenizer_new();
    const int l = id_of_byte['l'], o = id_of_byte['o'], w = id_of_byte['w'];
    add_merge(t, add_merge(t, l, o), w);
    add_merge(t, id_of_byte[' '], l);
    add_end_of_text(t);
    tokenizer_stage(t, hostile_dir);
    metadata_set(&meta, "step", "5");
    if (!tiny.weights) {
        const struct Config config = {1, 1, 2, 2, 3, 2, labels};
        model_create(&tiny, config);
        model_init(&tiny, 1);
        model_train_from(&tiny, 0);
    }
    stage_model(hostile_dir, &tiny, &meta, 2);
    stage_state(in_dir("state.safetensors"), &tiny, NULL, NULL, &meta);
    commit_outputs();
    return t;
}

/* The good inputs of reader `name`: up to SEEDS of them. Returns how many. */
static int seeds_of(const char *name, struct Buffer *seeds)
{
    static const char *const texts[][SEEDS] = {
        {"tsv", "text\tlabel\ngood film\tpos\n\"bad\tfilm\"\tneg\r\n\"two\nlines\"\tpos\n",
         "text\tlabel\na \"quote\"\t1\n\"b\"\t-2.5\n"},
        {"csv", "label,text\npos,\"good, \"\"film\"\"\"\nneg,bad\r\n",
         "__label__a some text\n__label__b other\n"},
        {"jsonl", "{\"text\": \"caf\\u00e9 \\ud83d\\ude00\", \"label\": 1}\n{\"text\": \"\", "
         "\"label\": true, \"x\": [1, {}]}\n", "[{\"text\": \"a\", \"label\": \"b\"},\n"
         "{\"label\": 2.50, \"text\": \"c\"}]"},
        {"json", "{\"a\": [1, -2.5e3, true, null], \"b\": \"\\u00e9\\n\"}", "[\"\\ud800\", {}]"},
        {"log", "1\t3.5\t\t\t1e-3\t1.5\t64\t900.0\t0.1\n"
         "2\t3.25\t3.1\t4.4\t1e-3\t1.5\t128\t900.0\t0.2\n", "1\tnan\n2\t-1e300\t1e300\n"},
        {"comparison", "nb\t8\t1\t0.500000\t0.333333\t0.69\t0.01\tnan\tnan\t01\n"
         "full\t8\t1\t1.000000\t1.000000\t0.25\t1.50\t0.1\t4.5\t11\n",
         "nb\t8\t1\t1\t1\t0\t0\t0\t0\t11\n"},
        {"texts", "\x0DGood film.\r\n\nBad <|endoftext|> film\n", "\x13{\"text\": \"good film\"}\n"
         "\n{\"x\": [1], \"text\": \"caf\\u00e9\"}\r\n"}};
    const struct Tokenizer *t = tiny_tokenizer = write_files();
    tiny_tokenizer->cache = allocate_zeroed(CACHE_BYTES);
    const struct Bytes config = bytes_of(content("config.json")),
                       merges = bytes_of(content("merges.txt"));
    struct Buffer file = content("model.safetensors"), tokenizer = content("tokenizer.json");
    if (!strcmp(name, "model")) {       /* also without hashes, so that other checks are met */
        seeds[0] = two_files(config, bytes_of(file));
        memcpy(strstr(file.data + 8, "checksum"), "nothing!", 8);
        memcpy(strstr(file.data + 8, "config_checksum"), "no_checksum_now", 15);
        seeds[1] = two_files(config, bytes_of(file));
        return 2;
    }
    if (!strcmp(name, "state")) {
        seeds[0] = content("state.safetensors");
        append_bytes(&seeds[1], seeds[0].data, seeds[0].size);
        memcpy(strstr(seeds[1].data + 8, "checksum"), "nothing!", 8);
        return 2;
    }
    if (!strcmp(name, "merges")) {
        seeds[0] = two_files(merges, bytes_of(content("vocab.json")));
        seeds[1] = two_files(merges, bytes_of(other_order(t)));
        return 2;
    }
    if (!strcmp(name, "tokenizer")) {
        seeds[0] = two_files(bytes_of(content("tokenizer_config.json")), bytes_of(tokenizer));
        return 1;
    }
    if (!strcmp(name, "shard")) {
        struct ShardWriter writer = {.prefix = in_dir("seed"), .hash = t->hash, .limit = 100};
        start_shard(&writer);
        write_tokens(&writer, (const uint16_t[]){259, 1, 2, 258, 65535}, 5);
        complete_set(&writer);
        commit_outputs();
        seeds[0] = content("seed_000000.bin");
        return 1;
    }
    for (int i = 0; i < COUNT(texts); i++)
        for (int k = 1; k < SEEDS && !strcmp(texts[i][0], name); k++)
            append_bytes(&seeds[k - 1], texts[i][k], strlen(texts[i][k]));
    return 2;
}

/* Once, before the first reader. */
static void begin_hostile(void)
{
    program = "hostile";
    set_threads(1);
    strcpy(hostile_dir, "/dev/shm/hostile_XXXXXX");     /* in memory, where there is such a place */
    if (mkdtemp(hostile_dir)) return;
    strcpy(hostile_dir, "/tmp/hostile_XXXXXX");
    if (!mkdtemp(hostile_dir)) finding("no temporary directory");
}

static void end_hostile(void)
{
    char *command = text_of("rm -r %s", hostile_dir);
    if (system(command)) finding("the temporary directory stays");
}
