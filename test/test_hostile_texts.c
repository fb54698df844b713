/* The same for the texts that tokenizer reads. */
#define HOSTILE_TOKENIZER
#include "test_hostile.c"
