/* test_checkpoint.c: model directories that are damaged, contradictory, or written by others.
 * Each is opened in a child process. A bad one must end it with status 1 and one sentence that
 * names the file; a good one must give the same weights. */

#include "fence.h"
#include "../model.h"
#include "check.h"
#include <sys/socket.h>
#include <sys/wait.h>

static char directory[] = "/tmp/test_checkpoint_XXXXXX";

static const char *path_of(const char *name)
{
    static char path[4][128];
    static int next;
    char *p = path[next++ & 3];
    snprintf(p, sizeof path[0], "%s/%s", directory, name);
    return p;
}

static const char *model_path(void) { return path_of("model.safetensors"); }
static const char *config_path(void) { return path_of("config.json"); }

/* --- A child process that opens something --- */

enum { SAME_WEIGHTS = 0, OTHER_WEIGHTS = 3 };

static struct Model original;

static int open_directory(void)
{
    struct Model m;
    struct Json meta;
    load_model(&m, directory, &meta);
    if (m.parameter_count != original.parameter_count) return OTHER_WEIGHTS;
    const size_t bytes = m.parameter_count * sizeof(real);
    return memcmp(m.weights, original.weights, bytes) ? OTHER_WEIGHTS : SAME_WEIGHTS;
}

/* The function's result, or the status of exit if it died; -1 after a signal. What it wrote to
 * stderr goes to message. */
static int in_child(int (*function)(void), char *message, size_t size)
{
    int channel[2], status;
    size_t used = 0;
    message[0] = 0;
    if (pipe(channel)) return -1;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(channel[1], 2);
        alarm(60);
        _exit(function());
    }
    close(channel[1]);
    ssize_t n;
    while ((n = read(channel[0], message + used, size - 1 - used)) > 0) used += n;
    message[used] = 0;
    close(channel[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool one_sentence(const char *message)
{
    const char *end = strchr(message, '\n');
    return !strncmp(message, "test_checkpoint: ", 17) && end && !end[1] && end > message
        && end[-1] == '.';
}

/* words: what the message must hold besides the file's name; NULL: the function must succeed. */
static void expect(int (*function)(void), const char *words, const char *what)
{
    char message[2000];
    const int status = in_child(function, message, sizeof message);
    const bool good = words ? status == 1 && one_sentence(message) && strstr(message, directory)
                              && strstr(message, words)
                            : status == SAME_WEIGHTS && !message[0];
    check(good, "%s: %s", what, words ? "refused" : "read");
    if (!good)
        printf("     status %d, wanted \"%s\", got: %s\n", status, words ? words : "", message);
}

/* --- Files to spoil --- */

static void put_file(const char *path, const void *bytes, size_t n)
{
    stage_file(path, bytes, n);
    commit_outputs();
}

static struct Buffer read_whole(const char *path)
{
    struct Buffer b = {0};
    struct Bytes bytes = read_file(path, SIZE_MAX / 2, false);
    append_bytes(&b, bytes.data, bytes.size);
    free((char *)bytes.data);
    return b;
}

static void save_original(void)
{
    const struct Json none = {0};
    stage_model(directory, &original, &none, original.config.vocabulary - 1);
    commit_outputs();
}

/* Every `from` in the text becomes `to`; how many there were. */
static int replace_all(struct Buffer *text, const char *from, const char *to)
{
    struct Buffer out = {0};
    int count = 0;
    append_bytes(&out, "", 0);
    for (const char *at = text->data, *end = at + text->size; at < end; ) {
        const bool match = !strncmp(at, from, strlen(from));
        if (match) append_bytes(&out, to, strlen(to)); else append_bytes(&out, at, 1);
        at += match ? strlen(from) : 1;
        count += match;
    }
    free(text->data);
    *text = out;
    return count;
}

/* model.safetensors from its parts; the length may lie. */
static void write_parts(const struct Buffer *header, uint64_t length, const char *data, size_t size)
{
    struct Buffer file = {0};
    append_bytes(&file, &length, 8);
    append_bytes(&file, header->data, header->size);
    append_bytes(&file, data, size);
    put_file(model_path(), file.data, file.size);
    free(file.data);
}

/* Takes the file apart. */
static struct Buffer split_file(struct Buffer *header)
{
    struct Buffer file = read_whole(model_path()), data = {0};
    uint64_t length;
    memcpy(&length, file.data, 8);
    *header = (struct Buffer){0};
    append_bytes(header, file.data + 8, length);
    append_bytes(&data, file.data + 8 + length, file.size - 8 - length);
    free(file.data);
    return data;
}

enum Part { HEADER, CONFIG };

/* The original, with `to` for every `from` in one of its texts. As in files from elsewhere, nothing
 * says which config.json belongs to it. */
static void write_changed(enum Part part, const char *from, const char *to)
{
    save_original();
    struct Buffer header, data = split_file(&header), config = read_whole(config_path());
    if (!replace_all(part == HEADER ? &header : &config, from, to))
        check(0, "\"%s\" is not in the original", from);
    replace_all(&header, "\"config_checksum\"", "\"other\"");
    write_parts(&header, header.size, data.data, data.size);
    put_file(config_path(), config.data, config.size);
    free(header.data), free(data.data), free(config.data);
}

/* --- The tests --- */

/* The original has 1 block, 2 heads, 4 channels, 6 positions, 9 tokens, 2 labels: wte comes
 * first, 144 bytes, then wpe, 96 bytes. */
static void test_texts(void)
{
    #define TENSOR(name, dtype, shape, place) \
        "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" place "]}"
    #define WTE TENSOR("transformer.wte.weight", "F32", "9,4", "0,144")
    static const struct { enum Part part; const char *from, *to, *words, *what; } cases[] = {
        {HEADER, "\"transformer.", "\"", NULL, "names without transformer."},
        {HEADER, WTE, TENSOR("transformer.h.0.attn.bias", "U8", "1,1,2,2", "0,4") "," WTE, NULL,
         "a mask attn.bias"},
        {HEADER, WTE, TENSOR("h.0.attn.masked_bias", "F32", "", "0,4") "," WTE, NULL,
         "a mask attn.masked_bias"},
        {HEADER, WTE, TENSOR("lm_head.weight", "F32", "9,4", "0,144") "," WTE, NULL,
         "a head that equals the embedding"},
        {HEADER, WTE, TENSOR("lm_head.weight", "F32", "9,4", "4,148") "," WTE, NULL,
         "a head of its own, which a tied model does not use"},
        {HEADER, WTE, TENSOR("transformer.adapter", "F32", "0", "144,144") "," WTE,
         "transformer.adapter", "a tensor that GPT-2 has not"},
        {HEADER, "\"transformer.ln_f.bias\"", "\"transformer.ln_f.bias2\"",
         "transformer.ln_f.bias2 is not part", "a tensor of another name"},
        {HEADER, "\"score.weight\"", "\"score.bias\"", "score.bias", "a classifier with a bias"},
        {HEADER, "[4,12]", "[12,4]",
         "c_attn.weight has shape [12,4] of F32 where [4,12] of F32", "a transposed matrix"},
        {HEADER, "[9,4]", "[36]", "wte.weight has shape [36]", "one dimension too few"},
        {HEADER, "[9,4]", "[9,4,1]", "wte.weight has shape [9,4,1]", "one dimension too many"},
        {HEADER, "[9,4]", "[-9,-4]", "wte.weight", "a negative shape"},
        {HEADER, "[9,4]", "\"9x4\"", "wte.weight", "a shape that is a string"},
        {HEADER, "\"F32\",\"shape\":[9,4]", "\"F64\",\"shape\":[9,4]", "of F64",
         "an unknown dtype"},
        {HEADER, "\"F32\",\"shape\":[9,4]", "\"F16\",\"shape\":[9,4]", "wte.weight",
         "a dtype that does not fit the bytes"},
        {HEADER, "\"dtype\":\"F32\",\"shape\":[9,4]", "\"shape\":[9,4]", "wte.weight", "no dtype"},
        {HEADER, "[0,144]", "[1000000,1000144]", "wte.weight", "a place beyond the end"},
        {HEADER, "[0,144]", "[-144,0]", "wte.weight", "a place before the beginning"},
        {HEADER, "[0,144]", "[144,0]", "wte.weight", "an end before the beginning"},
        {HEADER, "[0,144]", "[0,140]", "wte.weight", "a place that is too short"},
        {HEADER, "[0,144]", "[0.5,144.5]", "wte.weight", "a place between bytes"},
        {HEADER, "[0,144]", "[0,1e300]", "wte.weight", "a place that no integer holds"},
        {HEADER, "[0,144]", "[]", "wte.weight", "no place"},
        {HEADER, "\"data_offsets\":[0,144]", "\"data_offset\":[0,144]", "wte.weight",
         "no data_offsets"},
        {HEADER, WTE, "\"transformer.wte.weight\":7", "wte.weight", "a number for a tensor"},
        {HEADER, "\"checksum\":\"", "\"checksum\":\"0", "checksum", "a checksum of other bytes"},
        {HEADER, "\"__metadata__\":{", "\"__metadata__\":{,", "JSON", "bad JSON in the header"},
        {HEADER, "\"__metadata__\":{", "\"__metadata__\":[\"a\"],\"other\":{",
         "other is not part", "metadata without names"},
        {HEADER, "{\"__metadata__\"", "[{\"__metadata__\"", "not a safetensors file",
         "a header that begins with a bracket"},
        {CONFIG, "{", "", "JSON", "a config.json that is not JSON"},
        {CONFIG, "\"n_layer\": 1", "\"n_layer\": 2", "transformer.h.1.ln_1.weight is missing",
         "more layers than the file"},
        {CONFIG, "\"n_layer\": 1", "\"n_layer\": 0", "config.json", "no layers"},
        {CONFIG, "\"n_layer\": 1", "\"n_layer\": 1.5", "config.json", "one layer and a half"},
        {CONFIG, "\"n_layer\": 1", "\"n_layer\": 0x1", "not valid JSON", "a hexadecimal number"},
        {CONFIG, "\"n_head\": 2", "\"n_head\": 3", "config.json",
         "heads that do not divide the channels"},
        {CONFIG, "\"n_head\": 2", "\"n_head\": -2", "config.json", "a negative number of heads"},
        {CONFIG, "\"n_embd\": 4", "\"n_embd\": 8", "has shape", "more channels than the file"},
        {CONFIG, "\"n_positions\": 6", "\"n_positions\": 7", "wpe.weight has shape [6,4]",
         "more positions than the file"},
        {CONFIG, "\"vocab_size\": 9", "\"vocab_size\": 8", "wte.weight has shape [9,4]",
         "fewer tokens than the file"},
        {CONFIG, "\"vocab_size\": 9", "\"vocab_size\": 16000000", "", "more tokens than memory"},
        {CONFIG, "\"n_embd\": 4", "\"n_embd\": 65536", "", "more channels than memory"},
        {CONFIG, "\"vocab_size\": 9", "\"vocab_size\": 1e30", "config.json",
         "more tokens than integers"},
        {CONFIG, "gelu_new", "relu", "activation_function is relu", "another activation"},
        {CONFIG, "1e-05", "1e-06", "layer_norm_epsilon is 1e-06; only 1e-05", "another epsilon"},
        {CONFIG, "1e-05", "1e400", "layer_norm_epsilon is 1e400", "an infinite epsilon"},
        {CONFIG, "\"scale_attn_weights\": true", "\"scale_attn_weights\": 0",
         "scale_attn_weights is 0; only true", "a number in place of a word"},
        {CONFIG, ", \"1\": \"good\"},\n  \"label2id\": {\"bad\": 0, \"good\": 1},\n  \"problem_type\"",
         "},\n  \"problem\"", "one class without a problem_type", "a regression"},
        {CONFIG, "\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false",
         "tie_word_embeddings", "an untied head"},
        {CONFIG, "\"n_embd\"", "\"n_inner\": 8, \"n_embd\"", "n_inner is 8; only 16",
         "a narrow MLP"},
        {CONFIG, "\"n_embd\"", "\"add_cross_attention\": true, \"n_embd\"",
         "add_cross_attention is true; only false", "an encoder's attention"},
        {CONFIG, "\"n_embd\"", "\"scale_attn_by_inverse_layer_idx\": true, \"n_embd\"",
         "scale_attn_by_inverse_layer_idx is true", "attention scaled by layer"},
        {CONFIG, "single_label_classification", "regression", "problem_type is regression",
         "a head that is no classifier"},
        {CONFIG, "\"n_embd\"", "\"n_inner\": null, \"n_embd\"", NULL, "the usual MLP"},
        {CONFIG, "\"gpt2\"", "\"llama\"", "model_type is llama", "another architecture"},
        {CONFIG, "\"1\": \"good\"", "\"2\": \"good\"", "id2label", "a class without a name"},
        {CONFIG, "\"1\": \"good\"", "\"1\": \"good\", \"2\": \"best\"",
         "score.weight has shape [2,4]", "more labels than the file"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_changed(cases[i].part, cases[i].from, cases[i].to);
        expect(open_directory, cases[i].words, cases[i].what);
    }
}

/* The file's bytes: cut anywhere, longer, one bit changed, a length that lies. */
static void test_bytes(void)
{
    save_original();
    struct Buffer header, data = split_file(&header), file = read_whole(model_path());
    const size_t cuts[] = {0, 1, 7, 8, 9, 100, 8 + header.size, file.size - 4, file.size - 1};
    for (int i = 0; i < 9; i++) {
        put_file(model_path(), file.data, cuts[i]);
        char *what = text_of("cut to %zu of %zu bytes", cuts[i], file.size);
        expect(open_directory, "", what);
        free(what);
    }
    const uint64_t lengths[] = {0, 1, header.size - 1, header.size + 8, file.size, 50 << 20,
                                1ull << 40, UINT64_MAX - 7, UINT64_MAX};
    for (int i = 0; i < 9; i++) {
        write_parts(&header, lengths[i], data.data, data.size);
        char *what = text_of("a header length of %llu instead of %zu",
                             (unsigned long long)lengths[i], header.size);
        expect(open_directory, "", what);
        free(what);
    }
    data.data[data.size / 2] ^= 1;
    write_parts(&header, header.size, data.data, data.size);
    expect(open_directory, "checksum", "one bit changed");
    data.data[data.size / 2] ^= 1;
    append_bytes(&data, "more", 4);
    write_parts(&header, header.size, data.data, data.size);
    expect(open_directory, "checksum", "four bytes more");
    replace_all(&header, "\"checksum\"", "\"no checksum\"");
    write_parts(&header, header.size, data.data, data.size);
    expect(open_directory, NULL, "four bytes that nothing uses, without a checksum");
    write_parts(&header, header.size, data.data, data.size - 4);
    expect(open_directory, NULL, "a file without a checksum");
    free(header.data), free(data.data), free(file.data);
}

/* The original with another config.json, as an interrupted replacement leaves it. */
static void test_config_of_another(void)
{
    static const struct { const char *from, *to; } rows[] = {
        {"\"n_head\": 2", "\"n_head\": 1"}, {"\"n_layer\": 1", "\"n_layer\": 2"},
        {"\"0\": \"", "\"0\": \"other "}, {"\"eos_token_id\": 8", "\"eos_token_id\": 7"},
        {"{\n", "{\"foreign\": 1,\n"}};
    for (int i = 0; i < COUNT(rows); i++) {
        save_original();
        struct Buffer config = read_whole(config_path());
        if (!replace_all(&config, rows[i].from, rows[i].to)) check(0, "\"%s\" is", rows[i].from);
        put_file(config_path(), config.data, config.size);
        expect(open_directory, "config.json: does not belong to model.saf", rows[i].from);
        free(config.data);
    }
}

/* A header nested so deeply that recursion would run out of stack. */
static void test_deep_header(void)
{
    enum { DEPTH = 1000000 };
    struct Buffer header = {0};
    append(&header, "{\"a\":");
    for (int i = 0; i < DEPTH; i++) append_bytes(&header, "[", 1);
    for (int i = 0; i < DEPTH; i++) append_bytes(&header, "]", 1);
    append(&header, "}");
    write_parts(&header, header.size, "", 0);
    expect(open_directory, "nested", "a header of a million brackets");
    free(header.data);
}

/* A header that lists nothing: the undefined sanitizer watches what is done with no tensor at all. */
static void test_no_tensor(void)
{
    put_file(model_path(), "\2\0\0\0\0\0\0\0{}", 10);
    expect(open_directory, "is missing", "a header without a tensor");
}

/* --- Half precision --- */

/* Of a value that both hold exactly: |x| < 4, a multiple of 1/32. With frexp,
 * |x| = fraction * 2^exponent and 1/2 <= fraction < 1. */
static uint16_t to_half(float x)
{
    int exponent;
    const float fraction = frexpf(fabsf(x), &exponent);
    const int magnitude = x == 0 ? 0 : (exponent + 14) << 10 | ((int)ldexpf(fraction, 11) & 1023);
    return (uint16_t)((x < 0) << 15 | magnitude);
}

static uint16_t to_bfloat(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (uint16_t)(bits >> 16);
}

static void test_half(const char *dtype, uint16_t (*convert)(float))
{
    struct Buffer header = {0}, data = {0};
    save_original();
    for (int i = 0; i < original.tensor_count; i++) {
        const struct Tensor *p = &original.tensors[i];
        append(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", i ? "," : "{", p->name, dtype);
        if (p->rows > 1) append(&header, "%d,", p->rows);
        append(&header, "%d],\"data_offsets\":[%zu,%zu]}", p->columns, 2 * p->offset,
               2 * (p->offset + p->size));
    }
    append(&header, "}");
    for (size_t k = 0; k < original.parameter_count; k++) {
        const uint16_t half = convert((float)original.weights[k]);
        append_bytes(&data, &half, 2);
    }
    write_parts(&header, header.size, data.data, data.size);
    expect(open_directory, NULL, dtype);
    write_parts(&header, header.size, data.data, data.size - 2);
    expect(open_directory, "score.weight", "the same, cut short");
    free(header.data), free(data.data);
}

static void test_half_values(void)
{
    static const struct { uint16_t half; float value; } values[] = {
        {0x0000, 0}, {0x8000, -0.0f}, {0x3C00, 1}, {0xC000, -2}, {0x3555, 0x1.554p-2f},
        {0x7BFF, 65504}, {0x0400, 0x1p-14f}, {0x0001, 0x1p-24f}, {0x83FF, -0x1.FF8p-15f},
        {0x7C00, INFINITY}, {0xFC00, -INFINITY},
    };
    int wrong = 0;
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        const float x = half_to_float(values[i].half);
        wrong += memcmp(&x, &values[i].value, sizeof x) != 0;
    }
    check(wrong == 0 && isnan(half_to_float(0x7E00)) && isnan(half_to_float(0xFC01)),
          "half precision: zeros, subnormal numbers, the largest, infinities, NaN");
}

/* --- Values that are no numbers, under a checksum that is right --- */

static void test_not_finite(void)
{
    static const double values[] = {NAN, INFINITY, -INFINITY};
    real *last = &original.weights[original.parameter_count - 1];
    const real before = *last;
    for (int i = 0; i < 3; i++) {
        char what[64];
        *last = (real)values[i];
        save_original();
        snprintf(what, sizeof what, "a weight that is %g", values[i]);
        expect(open_directory, "score.weight holds values that are not finite", what);
    }
    *last = before;
}

/* --- Directories and states --- */

static int open_state(void)
{
    struct Model m;
    struct Json meta;
    model_create(&m, original.config);
    model_train_from(&m, 0);
    load_state(path_of("state.safetensors"), &m, NULL, NULL, &meta);
    const size_t bytes = m.parameter_count * sizeof(real);
    return memcmp(m.weights, original.weights, bytes) ? OTHER_WEIGHTS : SAME_WEIGHTS;
}

static int open_larger_state(void)
{
    original.config.channels = 8;
    return open_state();
}

static void test_state(void)
{
    const struct Json none = {0};
    const char *path = path_of("state.safetensors");
    stage_state(path, &original, NULL, NULL, &none);
    commit_outputs();
    expect(open_state, NULL, "a state");
    expect(open_larger_state, "has shape", "a state of another model");
    struct Buffer file = read_whole(path);
    file.data[file.size - 2] ^= 4;
    put_file(path, file.data, file.size);
    expect(open_state, "checksum", "a state with one bit changed in the last moment");
    put_file(path, file.data, file.size - 40);
    expect(open_state, "", "a state that is cut short");
    save_original();
    struct Buffer model = read_whole(model_path());
    put_file(path, model.data, model.size);
    expect(open_state, "", "a model in place of a state");
    free(file.data), free(model.data);
    unlink(path);
}

/* What stands in the directory beside the right files, and what is missing. */
static void test_directory(void)
{
    save_original();
    expect(open_directory, NULL, "the original");
    unlink(config_path());
    expect(open_directory, "is no directory with config.json", "no config.json");
    save_original();
    unlink(model_path());
    expect(open_directory, "model.safetensors", "no model.safetensors");
    mkdir(model_path(), 0777);
    expect(open_directory, "directory", "a directory named model.safetensors");
    rmdir(model_path());
    write_changed(HEADER, "\"score.weight\"", "\"score.weight\"");
    struct Buffer config = read_whole(config_path());
    *strstr(config.data, "id2label") = 'I';
    put_file(config_path(), config.data, config.size);
    expect(open_directory, NULL, "a classifier of two labels whose names are not given");
    free(config.data);
}

/* A message is one write, so that those of two processes do not mix: through a socket that keeps
 * writes apart it comes whole. */
static void test_one_write(void)
{
    int ends[2];
    char got[MAX_BRIEF] = "";
    const int before = dup(2);
    if (before < 0 || socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) || dup2(ends[1], 2) < 0) exit(1);
    warn("%s: a message of %d words, which is longer than what some libraries write at once: %s.",
         "file", 12, "more than eighty bytes");
    dup2(before, 2);
    const ssize_t n = recv(ends[0], got, sizeof got - 1, MSG_DONTWAIT);
    check(n > 0 && got[n - 1] == '\n' && !strncmp(got, program, strlen(program))
          && recv(ends[0], got, sizeof got, MSG_DONTWAIT) < 0, "a message is one write");
    close(ends[0]), close(ends[1]), close(before);
}

/* A signal asks for the end and says so once; a second one ends the process, and says nothing. */
static int stop_twice(void)
{
    stop_between_steps();
    raise(SIGTERM);
    raise(SIGTERM);
    return 0;
}

static void test_second_signal(void)
{
    char message[200];
    const int status = in_child(stop_twice, message, sizeof message);
    check(status == -1 && !strcmp(message, "\nstopping after this step; once more stops at once\n"),
          "a second SIGTERM ends the program, without another word");
}

int main(void)
{
    static char *names[] = {"bad", "good"};
    program = "test_checkpoint";
    set_threads(1);             /* a child of a process with threads could not start its own */
    if (!mkdtemp(directory)) die("%s: cannot be made.", directory);
    model_create(&original, (struct Config){1, 2, 4, 6, 9, 2, names});
    model_train_from(&original, 0);
    struct Random r = random_stream(1, 1);
    for (size_t k = 0; k < original.parameter_count; k++)
        original.weights[k] = (real)((int)random_below(&r, 255) - 127) / 32;
    test_one_write();
    test_second_signal();
    test_directory();
    test_texts();
    test_bytes();
    test_config_of_another();
    test_deep_header();
    test_no_tensor();
    test_half_values();
    test_half("F16", to_half);
    test_half("BF16", to_bfloat);
    test_not_finite();
    test_state();
    unlink(model_path());
    unlink(config_path());
    check(rmdir(directory) == 0, "no other file is left behind");
    model_free(&original);
    return report();
}
