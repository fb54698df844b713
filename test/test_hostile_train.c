/* The same for what train_gpt reads besides: its log. */
#define HOSTILE_TRAIN_GPT
#include "test_hostile.c"
