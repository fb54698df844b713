/* tokenizer.c: byte-level byte-pair encoding (BPE) in GPT-2's layout.
 *
 *    1  Characters    strict UTF-8, and the class of every code point in Unicode 16
 *    2  Pieces        how GPT-2 cuts text into words before any merging
 *    3  Vocabulary    merges.txt, token bytes, the pair table
 *    4  Encoding      merging the bytes of one piece; a cache of words
 *    5  Shards        documents and threads; llm.c's token files
 *    6  Training      counting words, then merging the most frequent pair
 *    7  Commands      train, encode, decode, ids, show
 *
 * A text is cut into pieces; a piece starts as its bytes, each of which is a token; the two neighbours
 * whose pair has the lowest rank become one token, again and again, until no pair is in merges.txt:
 *
 *     " low" + "er"  ->  Ġ l o w | e r  ->  Ġ lo w | er  ->  Ġ low | er  ->  Ġlow | er
 *
 * Ids: the 256 bytes in GPT-2's order, then the merges in the order of merges.txt, then <|endoftext|>.
 * Any bytes can be encoded, and decoding gives them back. Another program that includes this file
 * defines TOKENIZER_NO_MAIN first. */

#include "model.h"

/* ============================================================================================= */
/* 1. Characters                                                                                 */
/* ============================================================================================= */

enum { CLASS_OTHER, CLASS_LETTER, CLASS_NUMBER, CLASS_SPACE };

/* Where the class changes, for all of Unicode 16 (\p{L}, \p{N}, White_Space): code point * 4 + class
 * from there on, as the difference to the entry before. Made by dev/make_unicode_table.py. */
static const int class_changes[] = {
    39, 17, 75, 1, 62, 38, 29, 103, 25, 103, 43, 1, 107, 1, 37, 3, 30, 6, 5, 3, 14, 3, 3, 6, 10, 5,
    91, 5, 123, 5, 1831, 17, 47, 57, 19, 29, 3, 5, 3, 517, 19, 5, 7, 9, 15, 5, 3, 25, 3, 5, 11, 5,
    3, 5, 79, 5, 331, 5, 555, 33, 663, 5, 151, 9, 3, 25, 163, 285, 107, 17, 15, 181, 171, 86, 38,
    17, 7, 5, 395, 5, 3, 61, 7, 29, 9, 39, 11, 9, 3, 65, 3, 5, 119, 117, 355, 45, 3, 58, 39, 131,
    37, 7, 17, 3, 21, 87, 17, 3, 37, 3, 13, 3, 93, 99, 29, 43, 21, 95, 5, 23, 69, 167, 233, 215,
    13, 3, 73, 3, 29, 39, 18, 38, 5, 63, 17, 31, 9, 7, 9, 87, 5, 27, 5, 3, 13, 15, 13, 3, 65, 3,
    53, 7, 5, 11, 18, 39, 7, 10, 22, 9, 3, 33, 23, 17, 7, 9, 87, 5, 27, 5, 7, 5, 7, 5, 7, 125, 15,
    5, 3, 30, 38, 9, 11, 65, 35, 5, 11, 5, 87, 5, 27, 5, 7, 5, 19, 13, 3, 73, 3, 61, 7, 18, 38, 37,
    3, 45, 31, 9, 7, 9, 87, 5, 27, 5, 7, 5, 19, 13, 3, 121, 7, 5, 11, 18, 38, 5, 5, 22, 45, 3, 5,
    23, 13, 11, 5, 15, 13, 7, 5, 3, 5, 7, 13, 7, 13, 11, 13, 47, 89, 3, 86, 50, 73, 31, 5, 11, 5,
    91, 5, 63, 13, 3, 105, 11, 9, 3, 9, 7, 18, 38, 34, 26, 5, 3, 17, 31, 5, 11, 5, 91, 5, 39, 5,
    19, 13, 3, 125, 7, 5, 7, 18, 38, 5, 7, 69, 35, 5, 11, 5, 163, 9, 3, 65, 3, 21, 11, 6, 27, 11,
    18, 74, 5, 23, 21, 71, 13, 95, 5, 35, 5, 3, 9, 27, 126, 38, 69, 191, 5, 7, 49, 27, 38, 38, 157,
    7, 5, 3, 5, 19, 5, 95, 5, 3, 5, 39, 5, 7, 37, 3, 9, 19, 5, 3, 38, 38, 9, 15, 129, 3, 126, 78,
    49, 31, 5, 143, 109, 19, 461, 171, 81, 5, 38, 25, 23, 17, 15, 13, 3, 13, 7, 29, 11, 17, 51, 49,
    3, 6, 38, 25, 151, 5, 3, 21, 3, 9, 171, 5, 1331, 5, 15, 9, 27, 5, 3, 5, 15, 9, 163, 5, 15, 9,
    131, 5, 15, 9, 27, 5, 3, 5, 15, 9, 59, 5, 227, 5, 15, 9, 267, 58, 78, 13, 63, 65, 343, 9, 23,
    13, 2479, 9, 70, 2, 103, 21, 299, 14, 11, 31, 29, 71, 53, 75, 57, 71, 57, 51, 5, 11, 61, 207,
    141, 3, 17, 3, 14, 38, 26, 38, 90, 38, 25, 355, 29, 19, 9, 135, 5, 3, 21, 279, 41, 123, 158,
    39, 119, 9, 19, 45, 175, 17, 103, 26, 42, 149, 91, 37, 211, 174, 38, 26, 38, 53, 3, 373, 187,
    69, 31, 14, 38, 165, 119, 53, 9, 39, 175, 105, 143, 114, 38, 13, 13, 39, 143, 9, 43, 21, 171,
    9, 11, 165, 15, 5, 23, 5, 7, 13, 3, 21, 767, 257, 1111, 9, 23, 9, 151, 9, 23, 9, 31, 5, 3, 5,
    3, 5, 3, 5, 123, 9, 211, 5, 27, 5, 3, 13, 11, 5, 27, 13, 15, 9, 23, 17, 51, 21, 11, 5, 27, 15,
    41, 119, 5, 23, 1, 191, 1, 66, 3, 3, 10, 22, 21, 5, 38, 25, 51, 405, 3, 17, 3, 9, 39, 5, 3, 13,
    19, 25, 3, 5, 3, 5, 3, 5, 15, 5, 43, 9, 15, 21, 19, 17, 3, 6, 203, 9, 18, 2906, 238, 314, 86,
    2522, 118, 4529, 915, 25, 15, 13, 7, 38, 2, 9, 151, 5, 3, 21, 3, 9, 223, 29, 3, 65, 91, 37, 27,
    5, 27, 5, 27, 5, 27, 5, 27, 5, 27, 5, 27, 5, 27, 321, 3, 1859, 1, 17, 9, 2, 102, 34, 29, 19,
    10, 11, 7, 17, 343, 25, 11, 5, 359, 5, 15, 21, 171, 5, 375, 14, 14, 41, 127, 193, 63, 130, 38,
    122, 30, 6, 58, 130, 38, 158, 58, 1281, 26367, 257, 88627, 269, 183, 9, 1075, 13, 65, 39, 7,
    81, 187, 65, 123, 9, 281, 38, 157, 35, 9, 411, 9, 267, 9, 7, 5, 3, 5, 31, 85, 63, 5, 11, 5, 15,
    5, 91, 54, 22, 41, 207, 57, 199, 114, 38, 97, 23, 13, 3, 5, 7, 6, 39, 111, 41, 91, 101, 115,
    29, 187, 113, 5, 38, 25, 19, 5, 41, 39, 19, 5, 163, 93, 11, 5, 31, 18, 38, 25, 91, 13, 3, 13,
    199, 5, 3, 13, 7, 9, 19, 9, 3, 5, 3, 97, 11, 9, 43, 29, 11, 49, 23, 9, 23, 9, 23, 37, 27, 5,
    27, 5, 171, 5, 55, 25, 459, 54, 38, 25, 44687, 49, 91, 17, 195, 33809, 1463, 9, 423, 153, 27,
    49, 19, 21, 3, 5, 39, 5, 51, 5, 19, 5, 3, 5, 7, 5, 7, 5, 431, 133, 1451, 73, 255, 9, 215, 161,
    47, 465, 19, 5, 539, 78, 38, 29, 103, 25, 103, 45, 355, 13, 23, 9, 23, 9, 23, 9, 11, 141, 47,
    5, 103, 5, 75, 5, 7, 5, 59, 9, 55, 137, 491, 50, 178, 50, 226, 70, 6, 977, 115, 13, 195, 66,
    106, 17, 129, 14, 37, 81, 3, 33, 2, 21, 151, 41, 119, 9, 143, 17, 31, 6, 18, 169, 631, 10, 38,
    25, 143, 17, 143, 17, 159, 33, 207, 49, 43, 5, 59, 5, 27, 5, 7, 5, 43, 5, 59, 5, 27, 5, 7, 13,
    207, 49, 1243, 37, 87, 41, 31, 97, 23, 5, 167, 5, 35, 277, 23, 9, 3, 5, 175, 5, 7, 13, 3, 9,
    91, 10, 31, 91, 10, 27, 123, 34, 34, 193, 75, 5, 7, 22, 19, 89, 22, 17, 103, 281, 223, 18, 7,
    9, 62, 10, 183, 3, 61, 15, 5, 11, 5, 115, 42, 34, 93, 117, 6, 5, 117, 10, 129, 31, 5, 111, 26,
    18, 65, 215, 41, 87, 10, 31, 75, 22, 31, 71, 94, 26, 321, 291, 221, 203, 53, 203, 30, 23, 143,
    50, 38, 26, 39, 111, 37, 91, 874, 122, 5, 167, 25, 7, 65, 11, 237, 117, 39, 3, 33, 87, 46, 14,
    109, 71, 185, 85, 26, 81, 91, 49, 211, 106, 118, 5, 7, 9, 3, 53, 179, 129, 99, 30, 38, 37, 143,
    62, 38, 17, 3, 9, 3, 33, 139, 13, 3, 49, 191, 57, 15, 46, 39, 3, 5, 3, 18, 78, 45, 71, 5, 99,
    77, 7, 253, 27, 5, 3, 5, 15, 5, 59, 5, 39, 29, 187, 70, 38, 45, 31, 9, 7, 9, 87, 5, 27, 5, 7,
    5, 19, 13, 3, 73, 3, 49, 19, 121, 39, 5, 3, 9, 3, 5, 151, 5, 3, 101, 3, 5, 3, 177, 211, 73, 15,
    22, 38, 21, 11, 121, 191, 81, 7, 5, 3, 34, 38, 665, 187, 165, 15, 145, 191, 81, 3, 46, 38, 153,
    171, 53, 3, 30, 38, 26, 78, 113, 107, 86, 46, 17, 27, 741, 175, 465, 257, 74, 49, 31, 9, 3, 9,
    31, 5, 7, 5, 95, 61, 3, 5, 3, 58, 38, 281, 31, 9, 155, 65, 3, 5, 3, 113, 3, 41, 159, 29, 3, 85,
    3, 45, 183, 77, 3, 73, 291, 797, 131, 62, 38, 25, 35, 5, 147, 69, 3, 62, 114, 21, 119, 449, 27,
    5, 7, 5, 151, 85, 3, 38, 38, 25, 23, 5, 7, 5, 127, 57, 3, 30, 38, 1241, 75, 61, 3, 5, 51, 5,
    135, 114, 38, 345, 3, 62, 82, 173, 3687, 410, 442, 69, 783, 10545, 387, 61, 4287, 69, 23, 101,
    15979, 21, 2331, 27365, 119, 74, 38, 6937, 2275, 29, 123, 6, 38, 25, 315, 6, 38, 25, 119, 73,
    191, 65, 15, 50, 38, 6, 26, 5, 83, 21, 75, 1729, 179, 14, 38, 793, 257, 90, 421, 299, 21, 3,
    265, 51, 257, 7, 5, 3, 113, 24543, 33, 4951, 165, 39, 35741, 15, 5, 27, 5, 7, 5, 1163, 61, 3,
    117, 11, 9, 3, 57, 15, 33, 1583, 9233, 427, 21, 51, 13, 35, 29, 39, 16730, 38, 5914, 78, 50,
    78, 434, 98, 541, 339, 5, 283, 5, 7, 9, 3, 9, 7, 9, 15, 5, 47, 5, 3, 5, 27, 5, 259, 5, 15, 9,
    31, 5, 27, 5, 111, 5, 15, 5, 19, 5, 3, 13, 27, 5, 1359, 9, 99, 5, 99, 5, 123, 5, 99, 5, 123, 5,
    99, 5, 123, 5, 99, 5, 123, 5, 99, 5, 31, 10, 198, 7169, 123, 25, 23, 1045, 247, 585, 179, 41,
    27, 10, 38, 17, 3, 1285, 119, 73, 175, 18, 38, 1881, 111, 18, 38, 857, 119, 9, 5, 38, 1941, 27,
    5, 15, 5, 7, 5, 59, 5, 787, 10, 34, 193, 271, 29, 3, 18, 38, 3166, 234, 6, 10, 6, 14, 306, 178,
    6, 58, 777, 15, 5, 107, 5, 7, 5, 3, 9, 3, 5, 39, 5, 15, 5, 3, 5, 3, 25, 3, 17, 3, 5, 3, 5, 3,
    5, 11, 5, 7, 5, 3, 9, 3, 5, 3, 5, 3, 5, 3, 5, 3, 5, 7, 5, 3, 9, 15, 5, 27, 5, 15, 5, 15, 5, 3,
    5, 39, 5, 67, 21, 11, 5, 19, 5, 67, 2322, 50, 11150, 38, 4121, 170879, 129, 16615, 25, 887, 9,
    23047, 57, 29891, 61, 2487, 9865, 2167, 6025, 19755, 21, 16767,
};

enum { CLASS_BLOCK = 256, CLASS_BLOCKS = 0x110000 / CLASS_BLOCK };

/* Two stages: the block of 256 code points, of which few differ, then two bits for each code point. */
static unsigned char class_stage1[CLASS_BLOCKS], class_stage2[256][CLASS_BLOCK / 4];

/* Unpacks class_changes. Blocks that are all of one class share the four blocks at the front. */
static void make_class_table(void)
{
    static bool made;
    if (made) return;
    made = true;
    for (int k = 0; k < 4; k++) memset(class_stage2[k], k * 0x55, CLASS_BLOCK / 4);
    int blocks = 4, next = 0, count = sizeof class_changes / sizeof *class_changes, class = 0;
    unsigned change = class_changes[0];
    for (unsigned block = 0; block < CLASS_BLOCKS; block++) {
        unsigned first = block * CLASS_BLOCK;
        if (next >= count || change / 4 >= first + CLASS_BLOCK) { class_stage1[block] = (unsigned char)class; continue; }
        unsigned char *bits = class_stage2[class_stage1[block] = (unsigned char)blocks++];
        for (unsigned c = first; c < first + CLASS_BLOCK; c++) {
            while (next < count && change / 4 <= c) {
                class = change & 3;
                if (++next < count) change += class_changes[next];
            }
            bits[c % CLASS_BLOCK / 4] |= (unsigned char)(class << c % 4 * 2);
        }
    }
}

static int code_class(unsigned code)
{
    return class_stage2[class_stage1[code / CLASS_BLOCK]][code % CLASS_BLOCK / 4] >> code % 4 * 2 & 3;
}

/* The class of the character at s[0 .. n), n > 0, and its length in bytes. A byte that is not part of
 * well-formed UTF-8 (overlong forms, surrogates and values above 10FFFF are not) is a character of its
 * own, of class other. */
static int character(const unsigned char *s, size_t n, int *length)
{
    const unsigned a = s[0], b = n > 1 ? s[1] ^ 0x80 : 64, c = n > 2 ? s[2] ^ 0x80 : 64, d = n > 3 ? s[3] ^ 0x80 : 64;
    unsigned code = a;
    *length = 1;
    if (a < 0x80) return code_class(a);
    if (a >= 0xC2 && a < 0xE0 && b < 64) *length = 2, code = (a & 31) << 6 | b;
    else if (a >= 0xE0 && a < 0xF0 && b < 64 && c < 64) {
        code = (a & 15) << 12 | b << 6 | c;
        if (code < 0x800 || (code >= 0xD800 && code < 0xE000)) return CLASS_OTHER;
        *length = 3;
    } else if (a >= 0xF0 && a < 0xF5 && b < 64 && c < 64 && d < 64) {
        code = (a & 7) << 18 | b << 12 | c << 6 | d;
        if (code < 0x10000 || code > 0x10FFFF) return CLASS_OTHER;
        *length = 4;
    } else return CLASS_OTHER;
    return code_class(code);
}

/* ============================================================================================= */
/* 2. Pieces                                                                                     */
/* ============================================================================================= */

/* The end of the piece that begins at s[i], i < n, as GPT-2's expression finds it:
 *
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * so a space belongs to the word after it, and of a longer run of white space all but the last
 * character stands alone. */
static size_t piece_end(const unsigned char *s, size_t i, size_t n)
{
    int length, class;
    size_t j = i;
    if (s[i] == '\'' && i + 1 < n) {
        const int c = s[i + 1], d = i + 2 < n ? s[i + 2] : 0;
        if (c == 's' || c == 't' || c == 'm' || c == 'd') return i + 2;
        if ((c == 'r' && d == 'e') || (c == 'v' && d == 'e') || (c == 'l' && d == 'l')) return i + 3;
    }
    if (s[i] == ' ' && i + 1 < n) j++;
    class = character(s + j, n - j, &length);
    if (class == CLASS_SPACE) {
        size_t last = j = i;
        do {
            if (character(s + j, n - j, &length) != CLASS_SPACE) return last > i ? last : j;
            last = j;
            j += length;
        } while (j < n);
        return n;
    }
    for (j += length; j < n; j += length) {
        if (class == CLASS_LETTER) while (j < n && (unsigned)((s[j] | 32) - 'a') < 26) j++;
        if (j >= n || character(s + j, n - j, &length) != class) break;
    }
    return j;
}

/* A place where text may be cut without changing any piece: before white space that follows a
 * character other than white space, both ASCII. The first such place at or after i; n if there is none. */
static size_t cut_after(const unsigned char *s, size_t i, size_t n)
{
    for (size_t k = i > 0 ? i : 1; k < n; k++) {
        const bool space = s[k] == ' ' || (s[k] >= 9 && s[k] <= 13);
        const bool before = s[k - 1] == ' ' || (s[k - 1] >= 9 && s[k - 1] <= 13);
        if (space && !before && s[k - 1] < 0x80) return k;
    }
    return n;
}

/* ============================================================================================= */
/* 3. Vocabulary                                                                                 */
/* ============================================================================================= */

enum { BYTES = 256, MOST_MERGES = 65536 - BYTES - 1, MOST_TOKEN_BYTES = 65535 };
#define END_OF_TEXT "<|endoftext|>"

/* The byte with token id k: those that print come first. GPT-2 writes a byte that does not print as
 * the character 256 + (its number among them), so that every token can be shown. */
static unsigned char byte_of_id[BYTES];
static int id_of_byte[BYTES], shown_as[BYTES];

static void make_byte_tables(void)
{
    int id = 0, hidden = 0;
    for (int pass = 0; pass < 2; pass++)
        for (int byte = 0; byte < BYTES; byte++) {
            const bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
            if (prints == pass) continue;
            byte_of_id[id] = (unsigned char)byte;
            id_of_byte[byte] = id++;
            shown_as[byte] = prints ? byte : 256 + hidden++;
        }
}

/* A hash table from (left id, right id) to the id of the merged token. Open addressing; key 0 is free. */
struct PairTable { uint64_t *keys; int *values; size_t mask; };

static uint64_t pair_key(int left, int right) { return ((uint64_t)left << 32 | (uint32_t)right) + 1; }

static struct PairTable pair_table(size_t entries)
{
    struct PairTable t = {NULL, NULL, 1023};
    while (t.mask < 2 * entries) t.mask = 2 * t.mask + 1;
    t.keys = resize(NULL, (t.mask + 1) * sizeof *t.keys);
    t.values = resize(NULL, (t.mask + 1) * sizeof *t.values);
    memset(t.keys, 0, (t.mask + 1) * sizeof *t.keys);
    return t;
}

/* Where the pair is, or would be put. */
static size_t pair_slot(const struct PairTable *t, uint64_t key)
{
    uint64_t h = key * 0x9E3779B97F4A7C15u;
    size_t i = (h ^ h >> 32) & t->mask;
    while (t->keys[i] && t->keys[i] != key) i = (i + 1) & t->mask;
    return i;
}

static int pair_find(const struct PairTable *t, int left, int right)
{
    size_t i = pair_slot(t, pair_key(left, right));
    return t->keys[i] ? t->values[i] : -1;
}

/* Words of up to 15 bytes and 4 tokens, found again by their bytes. One slot for each hash. */
struct CachedWord { uint64_t key[2]; unsigned short ids[4]; int count; };
enum { CACHE_SLOTS = 1 << 16 };

struct Tokenizer {
    int vocabulary, eot;                    /* the number of ids; that of <|endoftext|>, the last */
    uint64_t hash;                          /* of all merges: two equal ones have the same ids */
    int merge_count, (*merges)[2];          /* the two parts of token 256 + k */
    unsigned char *bytes;                   /* of all tokens, one after the other */
    unsigned *begin;                        /* vocabulary + 1: where each one's bytes begin */
    struct PairTable pairs;
    struct CachedWord *cache;               /* of the thread that calls tokenizer_encode */
};

static const unsigned char *tokenizer_piece(const struct Tokenizer *t, int id, int *length)
{
    if (id < 0 || id >= t->vocabulary) { *length = 0; return t->bytes; }
    *length = (int)(t->begin[id + 1] - t->begin[id]);
    return t->bytes + t->begin[id];
}

/* What follows from the merges: bytes, pair table, hash. Merges must be sound. */
static struct Tokenizer *tokenizer_from_merges(int (*merges)[2], int count)
{
    struct Tokenizer *t = resize(NULL, sizeof *t);
    *t = (struct Tokenizer){.vocabulary = BYTES + count + 1, .eot = BYTES + count, .merge_count = count, .merges = merges};
    struct Buffer bytes = {0};
    make_class_table();
    make_byte_tables();
    t->begin = resize(NULL, (t->vocabulary + 1) * sizeof *t->begin);
    t->pairs = pair_table(count);
    t->cache = allocate_zeroed(CACHE_SLOTS * sizeof *t->cache);
    for (int id = 0; id < t->vocabulary; id++) {
        t->begin[id] = (unsigned)bytes.size;
        if (id < BYTES) append_bytes(&bytes, &byte_of_id[id], 1);
        else if (id == t->eot) append(&bytes, END_OF_TEXT);
        else {
            const int left = merges[id - BYTES][0], right = merges[id - BYTES][1];
            append_bytes(&bytes, "", 0);
            char *both = resize(NULL, MOST_TOKEN_BYTES + 1);
            const size_t a = t->begin[left + 1] - t->begin[left], b = t->begin[right + 1] - t->begin[right];
            memcpy(both, bytes.data + t->begin[left], a);
            memcpy(both + a, bytes.data + t->begin[right], b);
            append_bytes(&bytes, both, a + b);
            free(both);
            const size_t slot = pair_slot(&t->pairs, pair_key(left, right));
            t->pairs.keys[slot] = pair_key(left, right);
            t->pairs.values[slot] = id;
            t->hash = mix64(t->hash + pair_key(left, right));
        }
        t->begin[id + 1] = (unsigned)bytes.size;
    }
    t->bytes = (unsigned char *)bytes.data;
    return t;
}

/* --- merges.txt --- */

/* One token as merges.txt shows it, up to a space or the line's end, back to bytes. -1: not such. */
static int shown_token(const char **at, const char *end, unsigned char *bytes)
{
    static int byte_shown_as[512];
    int n = 0;
    if (!byte_shown_as['!'])
        for (int byte = 0; byte < BYTES; byte++) byte_shown_as[shown_as[byte]] = byte + 1;
    while (*at < end && **at != ' ') {
        int c = (unsigned char)*(*at)++;
        if (c >= 0xC0 && *at < end) c = (c & 31) << 6 | (*(*at)++ & 63);
        if (c >= 512 || !byte_shown_as[c] || n == MOST_TOKEN_BYTES) return -1;
        bytes[n++] = (unsigned char)(byte_shown_as[c] - 1);
    }
    return n ? n : -1;
}

/* A hash table from the bytes of a token to its id, for reading merges.txt. */
struct StringTable { int *ids; size_t mask; };

static size_t string_slot(const struct StringTable *s, const unsigned char *all, const size_t *begin,
                          const unsigned char *bytes, size_t n)
{
    uint64_t h = n;
    for (size_t i = 0; i < n; i++) h = (h ^ bytes[i]) * 0x100000001B3u;
    size_t i = (h ^ h >> 29) & s->mask;
    for (; s->ids[i] >= 0; i = (i + 1) & s->mask) {
        const size_t from = begin[s->ids[i]], length = begin[s->ids[i] + 1] - from;
        if (length == n && !memcmp(all + from, bytes, n)) break;
    }
    return i;
}

/* Reads DIR/merges.txt, or the file itself. Dies naming the line that is wrong. */
static struct Tokenizer *tokenizer_load(const char *where)
{
    struct stat status;
    char *path = stat(where, &status) == 0 && S_ISDIR(status.st_mode) ? text_of("%s/merges.txt", where) : text_of("%s", where);
    struct Bytes file = map_file(path);
    const char *at = file.data, *end = at + file.size;
    int (*merges)[2] = resize(NULL, (size_t)MOST_MERGES * sizeof *merges), count = 0;
    size_t *begin = resize(NULL, ((size_t)BYTES + MOST_MERGES + 1) * sizeof *begin);
    struct StringTable table = {resize(NULL, (1 << 18) * sizeof(int)), (1 << 18) - 1};
    struct Buffer all = {0};
    unsigned char *token = resize(NULL, 2 * MOST_TOKEN_BYTES + 2);
    make_byte_tables();
    memset(table.ids, 0xFF, (1 << 18) * sizeof(int));
    for (int id = 0; id < BYTES; id++) {
        begin[id] = all.size;
        append_bytes(&all, &byte_of_id[id], 1);
        begin[id + 1] = all.size;
        table.ids[string_slot(&table, (unsigned char *)all.data, begin, &byte_of_id[id], 1)] = id;
    }
    for (int line = 1; at < end; line++) {
        const char *line_end = memchr(at, '\n', end - at), *next = line_end ? line_end + 1 : end;
        if (!line_end) line_end = end;
        if (line_end > at && line_end[-1] == '\r') line_end--;
        const bool comment = line == 1 && line_end - at >= 8 && !memcmp(at, "#version", 8);
        if (!comment && line_end > at) {
            int part[2], length = 0;
            for (int k = 0; k < 2; k++) {
                int n = shown_token(&at, line_end, token + length);
                if (n < 0 || (k == 0 && at >= line_end) || (k == 1 && at < line_end))
                    die("%s: line %d: two tokens separated by a space are expected. Replace the file.", path, line);
                part[k] = table.ids[string_slot(&table, (unsigned char *)all.data, begin, token + length, n)];
                if (part[k] < 0)
                    die("%s: line %d: part %d is neither a byte nor made by a line before. Replace the file.", path, line, k + 1);
                length += n;
                at++;
            }
            if (count == MOST_MERGES)
                die("%s: line %d: more than 65,536 tokens do not fit the shards' uint16. Train a smaller one.", path, line);
            size_t slot = string_slot(&table, (unsigned char *)all.data, begin, token, length);
            if (table.ids[slot] >= 0) die("%s: line %d: the token exists already. Replace the file.", path, line);
            if (length > MOST_TOKEN_BYTES) die("%s: line %d: a token of %d bytes is too long.", path, line, length);
            append_bytes(&all, token, length);
            begin[BYTES + count + 1] = all.size;
            table.ids[slot] = BYTES + count;
            merges[count][0] = part[0];
            merges[count++][1] = part[1];
        }
        at = next;
    }
    free(begin);
    free(table.ids);
    free(all.data);
    free(token);
    free(path);
    unmap_file(file);
    return tokenizer_from_merges(merges, count);
}

static void append_shown(struct Buffer *b, const struct Tokenizer *t, int id)
{
    int n;
    const unsigned char *bytes = tokenizer_piece(t, id, &n);
    for (int i = 0; i < n; i++) append_utf8(b, id == t->eot ? bytes[i] : shown_as[bytes[i]]);
}

/* merges.txt and vocab.json, as GPT-2's tokenizer has them. */
static void tokenizer_save(const struct Tokenizer *t, const char *dir)
{
    struct Buffer merges = {0}, vocab = {0}, word = {0};
    append(&merges, "#version: 0.2\n");
    for (int k = 0; k < t->merge_count; k++) {
        append_shown(&merges, t, t->merges[k][0]);
        append(&merges, " ");
        append_shown(&merges, t, t->merges[k][1]);
        append(&merges, "\n");
    }
    for (int id = 0; id < t->vocabulary; id++) {
        append(&vocab, id ? ", " : "{");
        word.size = 0;
        append_shown(&word, t, id);
        append_json_string(&vocab, word.data);
        append(&vocab, ": %d", id);
    }
    append(&vocab, "}\n");
    make_directory(dir);
    char *merges_path = text_of("%s/merges.txt", dir), *vocab_path = text_of("%s/vocab.json", dir);
    write_file(merges_path, merges.data, merges.size);
    write_file(vocab_path, vocab.data, vocab.size);
    free(merges_path);
    free(vocab_path);
    free(merges.data);
    free(vocab.data);
    free(word.data);
}

/* ============================================================================================= */
/* 4. Encoding                                                                                   */
/* ============================================================================================= */

/* Lowest rank first, leftmost of equals: the pair with the smallest merged id is replaced until there
 * is none. ids (n) holds the bytes' ids and receives the result; returns its length. */
static int merge_short(const struct Tokenizer *t, int *ids, int n)
{
    int merged[64];
    for (int i = 0; i + 1 < n; i++) merged[i] = pair_find(&t->pairs, ids[i], ids[i + 1]);
    while (n > 1) {
        int best = -1;
        for (int i = 0; i + 1 < n; i++)
            if (merged[i] >= 0 && (best < 0 || merged[i] < merged[best])) best = i;
        if (best < 0) break;
        ids[best] = merged[best];
        for (int i = best + 1; i + 1 < n; i++) ids[i] = ids[i + 1], merged[i] = merged[i + 1];
        n--;
        if (best + 1 < n) merged[best] = pair_find(&t->pairs, ids[best], ids[best + 1]);
        if (best > 0) merged[best - 1] = pair_find(&t->pairs, ids[best - 1], ids[best]);
    }
    return n;
}

/* A heap of (merged id, place) keeps the smallest on top. */
static void heap_push(uint64_t *heap, int *size, uint64_t x)
{
    int i = (*size)++;
    for (; i > 0 && heap[(i - 1) / 2] > x; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = x;
}

static uint64_t heap_pop(uint64_t *heap, int *size)
{
    uint64_t top = heap[0], x = heap[--*size];
    int i = 0;
    for (int child; (child = 2 * i + 1) < *size; i = child) {
        if (child + 1 < *size && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= x) break;
        heap[i] = heap[child];
    }
    heap[i] = x;
    return top;
}

/* The same for a piece of any length, in O(n log n): neighbours are linked, and a heap entry whose
 * pair has changed since is passed over. */
static int merge_long(const struct Tokenizer *t, int *ids, int n)
{
    int *next = resize(NULL, 2 * (size_t)n * sizeof *next), *before = next + n, size = 0, count = 0;
    uint64_t *heap = resize(NULL, 3 * (size_t)n * sizeof *heap);
    for (int i = 0; i < n; i++) {
        next[i] = i + 1;
        before[i] = i - 1;
        int merged = i + 1 < n ? pair_find(&t->pairs, ids[i], ids[i + 1]) : -1;
        if (merged >= 0) heap_push(heap, &size, (uint64_t)merged << 32 | i);
    }
    while (size) {
        uint64_t top = heap_pop(heap, &size);
        int merged = (int)(top >> 32), i = (int)(uint32_t)top, j = ids[i] >= 0 ? next[i] : n;
        if (j >= n || pair_find(&t->pairs, ids[i], ids[j]) != merged) continue;
        ids[i] = merged;
        ids[j] = -1;
        next[i] = next[j];
        if (next[i] < n) {
            before[next[i]] = i;
            merged = pair_find(&t->pairs, ids[i], ids[next[i]]);
            if (merged >= 0) heap_push(heap, &size, (uint64_t)merged << 32 | i);
        }
        if (before[i] >= 0) {
            merged = pair_find(&t->pairs, ids[before[i]], ids[i]);
            if (merged >= 0) heap_push(heap, &size, (uint64_t)merged << 32 | before[i]);
        }
    }
    for (int i = 0; i < n; i = next[i]) ids[count++] = ids[i];
    free(next);
    free(heap);
    return count;
}

/* Tokens of one piece of n bytes: ids has room for n. */
static int encode_piece(const struct Tokenizer *t, const unsigned char *s, size_t n, int *ids)
{
    for (size_t i = 0; i < n; i++) ids[i] = id_of_byte[s[i]];
    return n <= 64 ? merge_short(t, ids, (int)n) : merge_long(t, ids, (int)n);
}

/* Tokens of s[0 .. n), with a cache that no other thread uses at the time. */
static size_t encode_text(const struct Tokenizer *t, struct CachedWord *cache, const unsigned char *s, size_t n, int *ids)
{
    size_t count = 0;
    for (size_t i = 0, end; i < n; i = end) {
        end = piece_end(s, i, n);
        const size_t length = end - i;
        if (length > 15) { count += encode_piece(t, s + i, length, ids + count); continue; }
        uint64_t key[2] = {0, 0};
        if (i + 16 <= n) {
            memcpy(key, s + i, 16);
            if (length < 8) { key[0] &= ((uint64_t)1 << 8 * length) - 1; key[1] = 0; }
            else key[1] &= ((uint64_t)1 << 8 * (length - 8)) - 1;
        } else memcpy(key, s + i, length);
        key[1] |= (uint64_t)length << 56;
        uint64_t h = (key[0] ^ key[1] * 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
        struct CachedWord *word = &cache[(h >> 40) & (CACHE_SLOTS - 1)];
        if (word->key[0] != key[0] || word->key[1] != key[1]) {
            int found = encode_piece(t, s + i, length, ids + count);
            if (found > 4) { count += found; continue; }
            *word = (struct CachedWord){{key[0], key[1]}, {0}, found};
            for (int k = 0; k < found; k++) word->ids[k] = (unsigned short)ids[count + k];
        }
        for (int k = 0; k < word->count; k++) ids[count++] = word->ids[k];
    }
    return count;
}

/* ids (n) receives the tokens of a text of n bytes; <|endoftext|> in it is text like any other. */
static int tokenizer_encode(struct Tokenizer *t, const char *text, size_t n, int *ids)
{
    return (int)encode_text(t, t->cache, (const unsigned char *)text, n, ids);
}

/* ============================================================================================= */
/* 5. Shards                                                                                     */
/* ============================================================================================= */

/* A part of a document, small enough to share out. */
struct Segment { const unsigned char *text; size_t size; bool starts, held_out; };

enum { SEGMENT_BYTES = 1 << 18, BATCH_BYTES = 1 << 24 };

struct Shards {                         /* PREFIX_000000.bin, PREFIX_000001.bin, ... */
    const char *prefix;
    int64_t limit, in_shard, total;
    int index;
    struct Output out;
};

static const int SHARD_MAGIC = 20240520, SHARD_VERSION = 1;

static void shard_close(struct Shards *s)
{
    if (!s->out.file) return;
    int header[256] = {SHARD_MAGIC, SHARD_VERSION, (int)s->in_shard};
    if (fseek(s->out.file, 0, SEEK_SET)) die("%s: writing failed (%s).", s->out.path, strerror(errno));
    output_write(&s->out, header, sizeof header);
    output_commit(&s->out);
    s->out.file = NULL;
    s->in_shard = 0;
    s->index++;
}

static void shard_write(struct Shards *s, const unsigned short *tokens, size_t n)
{
    while (n > 0) {
        if (s->out.file && s->in_shard == s->limit) shard_close(s);
        if (!s->out.file) {
            const int header[256] = {0};
            char *path = text_of("%s_%06d.bin", s->prefix, s->index);
            s->out = output_open(path);
            output_write(&s->out, header, sizeof header);
            free(path);
        }
        size_t part = (size_t)(s->limit - s->in_shard) < n ? (size_t)(s->limit - s->in_shard) : n;
        output_write(&s->out, tokens, part * sizeof *tokens);
        tokens += part;
        n -= part;
        s->in_shard += part;
        s->total += part;
    }
}

struct Encoder {
    const struct Tokenizer *tokenizer;
    struct Shards train, held_out;
    double val_fraction;
    struct Random random;
    struct Segment *segments;           /* of the batch that is being filled */
    size_t segment_count, segment_room, batch_bytes, bytes_done;
    struct CachedWord *caches;          /* of each thread */
    int64_t documents;
    double started;
};

struct Tokens { unsigned short *data; size_t size, room; };

static void append_tokens(struct Tokens *t, const int *ids, size_t n)
{
    if (t->size + n > t->room) t->data = resize(t->data, (t->room = 2 * (t->size + n)) * sizeof *t->data);
    for (size_t i = 0; i < n; i++) t->data[t->size + i] = (unsigned short)ids[i];
    t->size += n;
}

/* Encodes what has been collected. Groups of segments are shared out among threads; their tokens are
 * written in order, so the shards do not depend on the number of threads. */
static void encode_batch(struct Encoder *e)
{
    int *first = resize(NULL, (e->segment_count + 1) * sizeof *first), groups = 0;
    size_t bytes = SEGMENT_BYTES;
    for (size_t k = 0; k < e->segment_count; k++) {
        if (bytes >= SEGMENT_BYTES) { first[groups++] = (int)k; bytes = 0; }
        bytes += e->segments[k].size + 1;
    }
    first[groups] = (int)e->segment_count;
    struct Tokens (*found)[2] = resize(NULL, (groups + 1) * sizeof *found);
    memset(found, 0, groups * sizeof *found);
    #pragma omp parallel
    {
        struct CachedWord *cache = e->caches + (size_t)thread_index() * CACHE_SLOTS;
        int *ids = NULL;
        size_t room = 0;
        #pragma omp for schedule(dynamic)
        for (int g = 0; g < groups; g++)
            for (int k = first[g]; k < first[g + 1]; k++) {
                const struct Segment *s = &e->segments[k];
                if (s->size + 1 > room) ids = resize(ids, (room = 2 * (s->size + 1)) * sizeof *ids);
                ids[0] = e->tokenizer->eot;
                size_t n = encode_text(e->tokenizer, cache, s->text, s->size, ids + 1);
                append_tokens(&found[g][s->held_out], ids + !s->starts, n + s->starts);
            }
        free(ids);
    }
    for (int g = 0; g < groups; g++)
        for (int part = 0; part < 2; part++) {
            shard_write(part ? &e->held_out : &e->train, found[g][part].data, found[g][part].size);
            free(found[g][part].data);
        }
    e->bytes_done += e->batch_bytes;
    e->segment_count = e->batch_bytes = 0;
    free(found);
    free(first);
}

static void add_document(struct Encoder *e, const unsigned char *text, size_t n, size_t total)
{
    static double last;
    bool starts = true, held_out = random_uniform(&e->random) < e->val_fraction;
    e->documents++;
    do {
        size_t cut = n > SEGMENT_BYTES ? cut_after(text, SEGMENT_BYTES, n) : n;
        if (e->segment_count == e->segment_room)
            e->segments = resize(e->segments, (e->segment_room = 2 * e->segment_room + 1024) * sizeof *e->segments);
        e->segments[e->segment_count++] = (struct Segment){text, cut, starts, held_out};
        e->batch_bytes += cut;
        text += cut;
        n -= cut;
        starts = false;
        if (e->batch_bytes >= BATCH_BYTES) {
            encode_batch(e);
            double now = seconds(), rate = e->bytes_done / (now - e->started);
            if (now - last > (live() ? 0.2 : 10)) {
                progress(false, "%.1f of %.1f MB  %.0f MB/s  %s left", e->bytes_done / 1e6, total / 1e6, rate / 1e6,
                         duration((total - e->bytes_done) / rate));
                last = now;
            }
        }
    } while (n > 0);
}

/* Calls visit with each document of a file: all of it, each line, or what <|endoftext|> separates. */
static void for_documents(struct Bytes file, const char *split, void (*visit)(void *, const unsigned char *, size_t), void *context)
{
    const unsigned char *s = (const unsigned char *)file.data;
    const size_t n = file.size, mark = strlen(END_OF_TEXT);
    if (!strcmp(split, "file")) { visit(context, s, n); return; }
    const bool lines = !strcmp(split, "lines");
    for (size_t i = 0, next; i < n; i = next) {
        size_t end = i;
        const unsigned char *found = NULL;
        if (lines) found = memchr(s + i, '\n', n - i);
        else for (const unsigned char *at = s + i; (at = memchr(at, '<', s + n - at)); at++)
            if ((size_t)(s + n - at) >= mark && !memcmp(at, END_OF_TEXT, mark)) { found = at; break; }
        end = found ? (size_t)(found - s) : n;
        next = found ? end + (lines ? 1 : mark) : n;
        if (!lines && next < n && s[next] == '\n') next++;
        if (lines && end > i && s[end - 1] == '\r') end--;
        if (end > i) visit(context, s + i, end - i);
    }
}

struct EncodeVisit { struct Encoder *encoder; size_t total; };

static void encode_visit(void *context, const unsigned char *text, size_t n)
{
    struct EncodeVisit *v = context;
    add_document(v->encoder, text, n, v->total);
}

/* ============================================================================================= */
/* 6. Training                                                                                   */
/* ============================================================================================= */

/* The same word is stored once, with its number of occurrences. text points into the file. */
struct Word { const unsigned char *text; uint64_t hash; unsigned size; int64_t count; };
struct WordTable { struct Word *words; size_t mask, used; };

static uint64_t hash_bytes(const unsigned char *s, size_t n)
{
    uint64_t h = n;
    for (; n >= 8; s += 8, n -= 8) { uint64_t x; memcpy(&x, s, 8); h = (h ^ x) * 0x9E3779B97F4A7C15u; h ^= h >> 32; }
    for (size_t i = 0; i < n; i++) h = (h ^ s[i]) * 0x100000001B3u;
    return mix64(h);
}

static void count_word(struct WordTable *t, const struct Word *w)
{
    if (2 * (t->used + 1) > t->mask) {
        struct WordTable larger = {NULL, t->mask ? 2 * t->mask + 1 : 65535, 0};
        larger.words = resize(NULL, (larger.mask + 1) * sizeof *larger.words);
        memset(larger.words, 0, (larger.mask + 1) * sizeof *larger.words);
        for (size_t i = 0; t->mask && i <= t->mask; i++) if (t->words[i].count) count_word(&larger, &t->words[i]);
        free(t->words);
        *t = larger;
    }
    size_t i = w->hash & t->mask;
    for (; t->words[i].count; i = (i + 1) & t->mask) {
        struct Word *have = &t->words[i];
        if (have->hash == w->hash && have->size == w->size && !memcmp(have->text, w->text, w->size)) {
            have->count += w->count;
            return;
        }
    }
    t->words[i] = *w;
    t->used++;
}

struct SegmentList { struct Segment *list; size_t count, room; };

static void collect_segments(void *context, const unsigned char *text, size_t n)
{
    struct SegmentList *l = context;
    while (n > 0) {
        size_t cut = n > SEGMENT_BYTES ? cut_after(text, SEGMENT_BYTES, n) : n;
        if (l->count == l->room) l->list = resize(l->list, (l->room = 2 * l->room + 1024) * sizeof *l->list);
        l->list[l->count++] = (struct Segment){text, cut, true, false};
        text += cut;
        n -= cut;
    }
}

static int compare_words(const void *a, const void *b)
{
    const struct Word *x = a, *y = b;
    const int order = memcmp(x->text, y->text, x->size < y->size ? x->size : y->size);
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

/* All different words of the segments, in the order of their bytes: the same for any number of threads. */
static struct Word *count_words(const struct SegmentList *segments, size_t *count)
{
    struct WordTable all = {0};
    #pragma omp parallel
    {
        struct WordTable mine = {0};
        #pragma omp for schedule(dynamic, 4)
        for (size_t k = 0; k < segments->count; k++) {
            const struct Segment *s = &segments->list[k];
            for (size_t i = 0, end; i < s->size; i = end) {
                end = piece_end(s->text, i, s->size);
                const struct Word w = {s->text + i, hash_bytes(s->text + i, end - i), (unsigned)(end - i), 1};
                count_word(&mine, &w);
            }
        }
        #pragma omp critical
        for (size_t i = 0; mine.mask && i <= mine.mask; i++) if (mine.words[i].count) count_word(&all, &mine.words[i]);
        free(mine.words);
    }
    *count = 0;
    for (size_t i = 0; all.mask && i <= all.mask; i++) if (all.words[i].count) all.words[(*count)++] = all.words[i];
    if (*count) qsort(all.words, *count, sizeof *all.words, compare_words);
    return all.words;
}

/* A pair of neighbouring tokens: how often it occurs, and the words in which it has occurred. */
struct Pair { int left, right; int64_t count; unsigned *words; unsigned word_count, word_room; };
struct Candidate { int64_t count; int left, right, pair; };

struct Trainer {
    struct Word *words;
    size_t word_count;
    int **symbols, *lengths;                /* of each word, its tokens now */
    struct PairTable index;                 /* pair -> place in pairs */
    struct Pair *pairs;
    int pair_count, pair_room;
    struct Candidate *heap;
    size_t heap_size, heap_room;
    int *touched, touched_count, touched_room;      /* pairs that a merge has made or increased */
};

/* Most frequent first; of equals, the smallest left id, then the smallest right one. */
static bool better(const struct Candidate *a, const struct Candidate *b)
{
    if (a->count != b->count) return a->count > b->count;
    return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static void push_candidate(struct Trainer *t, int pair)
{
    const struct Pair *p = &t->pairs[pair];
    const struct Candidate x = {p->count, p->left, p->right, pair};
    if (t->heap_size == t->heap_room) t->heap = resize(t->heap, (t->heap_room = 2 * t->heap_room + 1024) * sizeof *t->heap);
    size_t i = t->heap_size++;
    for (; i > 0 && better(&x, &t->heap[(i - 1) / 2]); i = (i - 1) / 2) t->heap[i] = t->heap[(i - 1) / 2];
    t->heap[i] = x;
}

static struct Candidate pop_candidate(struct Trainer *t)
{
    const struct Candidate top = t->heap[0], x = t->heap[--t->heap_size];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < t->heap_size; i = child) {
        if (child + 1 < t->heap_size && better(&t->heap[child + 1], &t->heap[child])) child++;
        if (!better(&t->heap[child], &x)) break;
        t->heap[i] = t->heap[child];
    }
    t->heap[i] = x;
    return top;
}

static void grow_index(struct Trainer *t)
{
    struct PairTable larger = pair_table(2 * (size_t)t->pair_count);
    for (int k = 0; k < t->pair_count; k++) {
        const uint64_t key = pair_key(t->pairs[k].left, t->pairs[k].right);
        const size_t slot = pair_slot(&larger, key);
        larger.keys[slot] = key;
        larger.values[slot] = k;
    }
    free(t->index.keys);
    free(t->index.values);
    t->index = larger;
}

/* Adds to the count of a pair in one word. An increase also notes the word. */
static int change_pair(struct Trainer *t, int left, int right, int64_t change, unsigned word)
{
    const uint64_t key = pair_key(left, right);
    size_t slot = pair_slot(&t->index, key);
    if (!t->index.keys[slot]) {
        if (2 * (size_t)t->pair_count > t->index.mask) { grow_index(t); slot = pair_slot(&t->index, key); }
        if (t->pair_count == t->pair_room) t->pairs = resize(t->pairs, (t->pair_room = 2 * t->pair_room + 1024) * sizeof *t->pairs);
        t->pairs[t->pair_count] = (struct Pair){.left = left, .right = right};
        t->index.keys[slot] = key;
        t->index.values[slot] = t->pair_count++;
    }
    struct Pair *p = &t->pairs[t->index.values[slot]];
    p->count += change;
    if (change > 0 && (!p->word_count || p->words[p->word_count - 1] != word)) {
        if (p->word_count == p->word_room) p->words = resize(p->words, (p->word_room = 2 * p->word_room + 4) * sizeof *p->words);
        p->words[p->word_count++] = word;
    }
    return t->index.values[slot];
}

static void touch(struct Trainer *t, int pair)
{
    if (t->touched_count && t->touched[t->touched_count - 1] == pair) return;
    if (t->touched_count == t->touched_room)
        t->touched = resize(t->touched, (t->touched_room = 2 * t->touched_room + 64) * sizeof *t->touched);
    t->touched[t->touched_count++] = pair;
}

/* Replaces (left, right) by `merged` in one word, from the left, and corrects the neighbours' counts. */
static void merge_in_word(struct Trainer *t, unsigned word, int left, int right, int merged)
{
    int *s = t->symbols[word], n = t->lengths[word], out = 0;
    const int64_t count = t->words[word].count;
    for (int i = 0; i < n; out++) {
        if (s[i] != left || i + 1 >= n || s[i + 1] != right) { s[out] = s[i++]; continue; }
        change_pair(t, left, right, -count, word);
        if (out > 0) {
            change_pair(t, s[out - 1], left, -count, word);
            touch(t, change_pair(t, s[out - 1], merged, count, word));
        }
        if (i + 2 < n) {
            change_pair(t, right, s[i + 2], -count, word);
            touch(t, change_pair(t, merged, s[i + 2], count, word));
        }
        s[out] = merged;
        i += 2;
    }
    t->lengths[word] = out;
}

static int compare_ints(const void *a, const void *b) { return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b); }

static void trainer_start(struct Trainer *t)
{
    size_t total = 0;
    for (size_t w = 0; w < t->word_count; w++) total += t->words[w].size;
    int *all = resize(NULL, total * sizeof *all);
    t->symbols = resize(NULL, t->word_count * sizeof *t->symbols);
    t->lengths = resize(NULL, t->word_count * sizeof *t->lengths);
    t->index = pair_table(65536);
    for (size_t w = 0; w < t->word_count; w++, all += t->lengths[w - 1]) {
        t->symbols[w] = all;
        t->lengths[w] = (int)t->words[w].size;
        for (int i = 0; i < t->lengths[w]; i++) all[i] = id_of_byte[t->words[w].text[i]];
        for (int i = 0; i + 1 < t->lengths[w]; i++) change_pair(t, all[i], all[i + 1], t->words[w].count, (unsigned)w);
    }
    for (int k = 0; k < t->pair_count; k++) push_candidate(t, k);
}

/* Merges the most frequent pair `most` times, or until it occurs fewer than min_frequency times. Counts
 * in the heap may be too high: a pair's count only falls once its tokens exist, except in the merge
 * that makes one of them, after which it is pushed. A stale entry is corrected when it is met. */
static int train_merges(struct Trainer *t, int (*merges)[2], int most, int64_t min_frequency, int longest)
{
    int *sizes = resize(NULL, (BYTES + (size_t)most) * sizeof *sizes), count = 0;
    double last = seconds(), started = last;
    for (int id = 0; id < BYTES; id++) sizes[id] = 1;
    while (count < most && t->heap_size) {
        const struct Candidate c = pop_candidate(t);
        struct Pair *p = &t->pairs[c.pair];
        if (p->count != c.count) { if (p->count > 0) push_candidate(t, c.pair); continue; }
        if (c.count < min_frequency || c.count <= 0) break;
        if (sizes[c.left] + sizes[c.right] > longest) continue;
        const int merged = BYTES + count;
        unsigned *words = p->words, word_count = p->word_count;
        sizes[merged] = sizes[c.left] + sizes[c.right];
        merges[count][0] = c.left;
        merges[count++][1] = c.right;
        t->touched_count = 0;
        p->words = NULL;
        p->word_count = p->word_room = 0;
        for (unsigned k = 0; k < word_count; k++) merge_in_word(t, words[k], c.left, c.right, merged);
        free(words);
        qsort(t->touched, t->touched_count, sizeof *t->touched, compare_ints);
        for (int k = 0; k < t->touched_count; k++)
            if (k == 0 || t->touched[k] != t->touched[k - 1]) push_candidate(t, t->touched[k]);
        double now = seconds();
        if (now - last > (live() ? 0.2 : 10)) {
            progress(false, "merge %d of %d  %s left", count, most, duration((now - started) * (most - count) / count));
            last = now;
        }
    }
    free(sizes);
    return count;
}

/* ============================================================================================= */
/* 7. Commands                                                                                   */
/* ============================================================================================= */

#ifndef TOKENIZER_NO_MAIN

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

static int command_train(int argc, char **argv)
{
    int vocabulary = 8192, threads = 0, longest = 255;
    int64_t min_frequency = 2;
    const char *out = NULL, *split = "file";
    bool overwrite = false;
    struct Option options[] = {
        {"vocab", "tokens: 256 bytes, merges, and <|endoftext|>", INTEGER, &vocabulary, .least = BYTES + 1, .most = 65536},
        {"out", "directory for merges.txt and vocab.json", TEXT, &out, .required = true},
        {"split", "what a document is", CHOICE, &split, .choices = "file|lines|eot"},
        {"min-frequency", "a pair must occur this often to be merged", LONG, &min_frequency, .least = 1, .most = 1e15},
        {"max-token-bytes", "no token is longer", INTEGER, &longest, .least = 2, .most = 255},
        {"threads", "threads; 0: as many as the machine has", INTEGER, &threads, .most = 4096},
        {"overwrite", "replace a tokenizer that is there", FLAG, &overwrite},
    };
    const int files = parse_options(argc, argv, options, COUNT(options),
                                    "tokenizer train --vocab N --out DIR FILE...: learn a vocabulary from text");
    if (!files) die_usage("train: no FILE is named to learn from.");
    set_threads(threads);
    char *path = text_of("%s/merges.txt", out);
    if (file_exists(path) && !overwrite) die("%s: exists. Choose another --out, or give --overwrite.", path);
    struct SegmentList segments = {0};
    make_class_table();
    make_byte_tables();
    size_t bytes = 0;
    for (int k = 0; k < files; k++) {
        struct Bytes file = map_file(argv[k]);
        bytes += file.size;
        for_documents(file, split, collect_segments, &segments);
    }
    if (!bytes) die("%s: empty. Give some text to learn from.", argv[0]);
    double start = seconds();
    struct Trainer trainer = {0};
    trainer.words = count_words(&segments, &trainer.word_count);
    trainer_start(&trainer);
    const int most = vocabulary - BYTES - 1;
    int (*merges)[2] = resize(NULL, (size_t)(most + 1) * sizeof *merges);
    const int count = train_merges(&trainer, merges, most, min_frequency, longest);
    struct Tokenizer *t = tokenizer_from_merges(merges, count);
    tokenizer_save(t, out);
    progress(true, "%s: %d tokens from %.1f MB of text, %zu different words, in %.1f s", out, t->vocabulary, bytes / 1e6,
             trainer.word_count, seconds() - start);
    if (count < most)
        warn("%s: %d tokens, fewer than --vocab %d: no other pair occurs %lld times.", out, t->vocabulary, vocabulary,
             (long long)min_frequency);
    return 0;
}

/* Refuses to replace shards; with overwrite, removes those of an earlier, longer run. */
static void clear_shards(const char *prefix, bool overwrite)
{
    for (int k = 0; ; k++) {
        char *path = text_of("%s_%06d.bin", prefix, k);
        const bool exists = file_exists(path);
        if (exists && !overwrite) die("%s: exists. Choose another --out, or give --overwrite.", path);
        if (exists) unlink(path);
        free(path);
        if (!exists) return;
    }
}

static int command_encode(int argc, char **argv)
{
    struct Encoder e = {.started = seconds()};
    const char *tokenizer = NULL, *out = NULL, *split = "file";
    int64_t shard_tokens = 100000000, seed = 1;
    int threads = 0;
    bool overwrite = false;
    struct Option options[] = {
        {"tokenizer", "directory, or merges.txt", TEXT, &tokenizer, .required = true},
        {"out", "PREFIX of the shards PREFIX_000000.bin, ...", TEXT, &out, .required = true},
        {"split", "what a document is", CHOICE, &split, .choices = "file|lines|eot"},
        {"shard-tokens", "tokens in a shard", LONG, &shard_tokens, .least = 1, .most = INT32_MAX},
        {"val-fraction", "share of documents that goes to PREFIX_val_000000.bin, ...", REAL_NUMBER, &e.val_fraction, .most = 1},
        {"seed", "chooses these documents", LONG, &seed, .most = 1e15},
        {"threads", "threads; 0: as many as the machine has", INTEGER, &threads, .most = 4096},
        {"overwrite", "replace shards that are there", FLAG, &overwrite},
    };
    const int files = parse_options(argc, argv, options, COUNT(options),
                                    "tokenizer encode --tokenizer DIR --out PREFIX FILE...: text to token shards");
    if (!files) die_usage("encode: no FILE is named.");
    set_threads(threads);
    const struct Tokenizer *t = e.tokenizer = tokenizer_load(tokenizer);
    struct EncodeVisit visit = {&e, 0};
    char *held_out = text_of("%s_val", out), *slash = strrchr(out, '/');
    clear_shards(out, overwrite);
    clear_shards(held_out, overwrite);
    if (slash && slash > out) make_directory(text_of("%.*s", (int)(slash - out), out));
    e.train = (struct Shards){.prefix = out, .limit = shard_tokens};
    e.held_out = (struct Shards){.prefix = held_out, .limit = shard_tokens};
    e.random = random_stream(seed, 0);
    e.caches = allocate_zeroed((size_t)thread_count() * CACHE_SLOTS * sizeof *e.caches);
    struct Bytes *maps = resize(NULL, files * sizeof *maps);
    for (int k = 0; k < files; k++) visit.total += (maps[k] = map_file(argv[k])).size;
    for (int k = 0; k < files; k++) for_documents(maps[k], split, encode_visit, &visit);
    encode_batch(&e);
    shard_close(&e.train);
    shard_close(&e.held_out);
    const double time = seconds() - e.started;
    const int64_t tokens = e.train.total + e.held_out.total;
    progress(true, "%s: %lld tokens in %d shard%s from %lld documents, %.2f bytes per token, %.1f MB/s", out,
             (long long)tokens, e.train.index + e.held_out.index, e.train.index + e.held_out.index == 1 ? "" : "s",
             (long long)e.documents, (double)visit.total / tokens, visit.total / time / 1e6);
    if (e.val_fraction > 0) progress(true, "%s: %lld tokens set aside", held_out, (long long)e.held_out.total);
    (void)t;
    return 0;
}

static int command_decode(int argc, char **argv)
{
    const char *tokenizer = NULL, *separator = "";
    struct Option options[] = {
        {"tokenizer", "directory, or merges.txt", TEXT, &tokenizer, .required = true},
        {"separator", "printed between documents", TEXT, &separator},
    };
    const int files = parse_options(argc, argv, options, COUNT(options), "tokenizer decode --tokenizer DIR SHARD...: shards to bytes");
    if (!files) die_usage("decode: no SHARD is named.");
    const struct Tokenizer *t = tokenizer_load(tokenizer);
    int64_t documents = 0;
    for (int k = 0; k < files; k++) {
        struct Bytes file = map_file(argv[k]);
        int header[256] = {0};
        if (file.size >= sizeof header) memcpy(header, file.data, sizeof header);
        if (header[0] != SHARD_MAGIC || header[1] != SHARD_VERSION)
            die("%s: not a token shard (magic %d). Name files that 'tokenizer encode' wrote.", argv[k], header[0]);
        if (header[2] < 0 || file.size != sizeof header + 2 * (size_t)header[2])
            die("%s: %zu bytes where its header says %d tokens: cut short. Encode it again.", argv[k], file.size, header[2]);
        const unsigned char *tokens = (const unsigned char *)file.data + sizeof header;
        for (int i = 0; i < header[2]; i++) {
            const int id = tokens[2 * (size_t)i] | tokens[2 * (size_t)i + 1] << 8;
            int n;
            if (id >= t->vocabulary)
                die("%s: byte %zu: token %d is not one of %d. It was made with another tokenizer.", argv[k],
                    sizeof header + 2 * (size_t)i, id, t->vocabulary);
            const unsigned char *bytes = tokenizer_piece(t, id, &n);
            if (id != t->eot) fwrite(bytes, 1, n, stdout);
            else if (documents++) fputs(separator, stdout);
        }
        unmap_file(file);
    }
    if (fflush(stdout)) die("standard output: writing failed (%s).", strerror(errno));
    return 0;
}

/* All tokens of a text, <|endoftext|> as one if special. */
static size_t encode_special(struct Tokenizer *t, const unsigned char *s, size_t n, bool special, int *ids)
{
    const size_t mark = strlen(END_OF_TEXT);
    size_t count = 0, begin = 0;
    for (size_t i = 0; special && i + mark <= n; i++)
        if (s[i] == '<' && !memcmp(s + i, END_OF_TEXT, mark)) {
            count += encode_text(t, t->cache, s + begin, i - begin, ids + count);
            ids[count++] = t->eot;
            begin = i + mark;
            i = begin - 1;
        }
    return count + encode_text(t, t->cache, s + begin, n - begin, ids + count);
}

static int command_ids(int argc, char **argv)
{
    const char *tokenizer = NULL;
    bool special = false;
    struct Option options[] = {
        {"tokenizer", "directory, or merges.txt", TEXT, &tokenizer, .required = true},
        {"special", "<|endoftext|> in the text is the token, not text", FLAG, &special},
    };
    if (parse_options(argc, argv, options, COUNT(options), "tokenizer ids --tokenizer DIR: standard input to token ids"))
        die_usage("ids: reads standard input, not %s.", argv[0]);
    struct Tokenizer *t = tokenizer_load(tokenizer);
    struct Buffer text = {0}, line = {0};
    char block[65536];
    for (size_t n; (n = fread(block, 1, sizeof block, stdin)) > 0; ) append_bytes(&text, block, n);
    int *ids = resize(NULL, (text.size + 1) * sizeof *ids);
    const size_t n = encode_special(t, (unsigned char *)text.data, text.size, special, ids);
    for (size_t i = 0; i < n; i++) append(&line, "%s%d", i ? " " : "", ids[i]);
    append(&line, "\n");
    fwrite(line.data, 1, line.size, stdout);
    return 0;
}

/* The pieces of a text, in alternating colours on a terminal, then each token with its id. */
static int command_show(int argc, char **argv)
{
    const char *tokenizer = NULL;
    struct Option options[] = {{"tokenizer", "directory, or merges.txt", TEXT, &tokenizer, .required = true}};
    const int words = parse_options(argc, argv, options, COUNT(options), "tokenizer show --tokenizer DIR TEXT...: how a text is cut");
    if (!words) die_usage("show: no TEXT is given.");
    struct Tokenizer *t = tokenizer_load(tokenizer);
    struct Buffer text = {0}, line = {0};
    for (int k = 0; k < words; k++) append(&text, "%s%s", k ? " " : "", argv[k]);
    int *ids = resize(NULL, (text.size + 1) * sizeof *ids);
    const int n = tokenizer_encode(t, text.data, text.size, ids);
    const bool colours = isatty(1);
    for (int i = 0; i < n; i++) {
        int length;
        const char *bytes = (const char *)tokenizer_piece(t, ids[i], &length);
        if (colours) append(&line, "\033[%dm%.*s\033[0m", i % 2 ? 44 : 42, length, bytes);
        else { append(&line, "%s", i ? "|" : ""); append_bytes(&line, bytes, length); }
    }
    append(&line, "\n");
    for (int i = 0; i < n; i++) {
        append(&line, "%6d  ", ids[i]);
        append_shown(&line, t, ids[i]);
        append(&line, "\n");
    }
    append(&line, "%zu bytes, %d tokens, %.2f bytes per token\n", text.size, n, n ? (double)text.size / n : 0);
    fwrite(line.data, 1, line.size, stdout);
    return 0;
}

int main(int argc, char **argv)
{
    static const struct { const char *name; int (*run)(int, char **); const char *meaning; } commands[] = {
        {"train", command_train, "learn a vocabulary from text files"},
        {"encode", command_encode, "turn text files into token shards"},
        {"decode", command_decode, "turn shards back into the same bytes"},
        {"ids", command_ids, "print the token ids of standard input"},
        {"show", command_show, "show how a text is cut into tokens"},
    };
    program = "tokenizer";
    clean_up_at_exit();
    for (int k = 0; argc > 1 && k < COUNT(commands); k++)
        if (!strcmp(argv[1], commands[k].name)) return commands[k].run(argc - 2, argv + 2);
    if (argc < 2 || (strcmp(argv[1], "--help") && strcmp(argv[1], "-h")))
        die_usage("%s: not a command. 'tokenizer --help' lists them.", argc > 1 ? argv[1] : "(nothing)");
    printf("tokenizer COMMAND [options]: byte-level BPE. COMMAND --help prints its options.\n");
    for (int k = 0; k < COUNT(commands); k++) printf("  %-8s %s\n", commands[k].name, commands[k].meaning);
    return 0;
}

#endif
