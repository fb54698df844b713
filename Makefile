# make            the three programs                make demo     the whole story, under three minutes
# make test       all tests, two to three minutes   make lesson   the method on eight sentences, step by step
# make data       real data sets, by download       make bench    how fast this machine trains
# make imdb       a classifier of film reviews, hours   make sst2     of their sentences, with the same model
# make debug      with address and undefined sanitizers
# make MPI=1      train_gpt for mpirun, with mpicc (MPI=1 test: its tests)
# CC=clang works; ARCH=x86-64-v3 builds for another machine than this one; OPENMP= builds without it.

ARCH    = native
CFLAGS  = -O3 -march=$(ARCH) -fno-math-errno -fno-trapping-math -Wall -Wextra
OPENMP := $(if $(findstring musl-gcc,$(CC)),-fopenmp-simd,$(shell echo 'int main(void){return 0;}' \
            | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo -fopenmp || echo -fopenmp-simd))
ifeq ($(shell uname -s),Darwin)         # macOS; OpenMP from `brew install libomp`. Not tested.
LIBOMP := $(shell brew --prefix libomp 2>/dev/null)
OPENMP := $(if $(wildcard $(LIBOMP)/include/omp.h),-Xpreprocessor -fopenmp -I$(LIBOMP)/include \
            -L$(LIBOMP)/lib -lomp,-fopenmp-simd)
endif
BUILD   = $(CC) $(CFLAGS) $(OPENMP) $(EXTRA) -o $@ $< -lm

.DEFAULT_GOAL := all
# A stamp named by the options, so that what was built with other ones is built anew.
KIND := out/options_$(shell echo '$(CC) $(CFLAGS) $(OPENMP) $(EXTRA) $(MPI)' | cksum | cut -d ' ' -f 1)
$(KIND):
	@mkdir -p out/test out/plain && rm -f out/options_* && touch $@

DEPS     = model.h tokenizer.c data/unicode_classes.h $(KIND)
PROGRAMS = tokenizer train_gpt finetune_cls
TESTS    = $(patsubst test/%.c,out/test/%,$(wildcard test/test_*.c)) out/test/test_model_double

all: $(PROGRAMS) data/reviews

$(PROGRAMS): %: %.c $(DEPS)
	$(BUILD)
out/plain/train_gpt: train_gpt.c $(DEPS)    # what the tests compare the one with MPI to
	$(BUILD)

ifdef MPI
train_gpt: private override CC := OMPI_CC='$(CC)' MPICH_CC='$(CC)' mpicc
train_gpt: private override EXTRA += -DMPI
endif
data/reviews: data/reviews.c model.h $(KIND)
	$(BUILD)

out/test/test_model_double: test/test_model.c model.h $(wildcard test/*.h) $(KIND)
	$(BUILD) -DREAL=double
out/test/%: test/%.c $(DEPS) train_gpt.c finetune_cls.c data/reviews.c \
    $(wildcard test/*.h)
	$(BUILD)

# Kernels are tested as they are built for use; what calls them compiles in half the time.
$(filter-out out/test/test_model% out/test/test_precision,$(TESTS)): CFLAGS := $(CFLAGS:-O3=-O1)

out/lesson: test/lesson.c test/reference.h $(KIND)
	$(BUILD)
out/bridge: test/bridge.c test/lesson.c test/reference.h model.h $(KIND)
	$(BUILD)
lesson: out/lesson out/bridge
	@out/lesson && out/bridge

ifdef MPI
test:
	@$(MAKE) --no-print-directory -j2 tokenizer train_gpt out/plain/train_gpt
	@sh test/run.sh test/test_mpi.sh
else
test:
	@$(MAKE) --no-print-directory -j2 all out/lesson out/bridge $(TESTS)
	@sh test/run.sh $(filter-out test/test_mpi.sh,$(wildcard test/test_*.sh)) $(TESTS)
endif

demo: all
	@sh data/demo.sh

debug:
	$(MAKE) all EXTRA="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
	@echo "Memory is left to the end of the program: run with ASAN_OPTIONS=detect_leaks=0."

imdb sst2: all
	data/recipe.sh $@

data:
	data/get_data.sh tinyshakespeare sst2 imdb gpt2-vocab

out/bench: dev/bench.c model.h $(KIND)
	$(BUILD)
bench: out/bench
	out/bench

help:
	@sed -n 's/^# *\(make\|CC\)/\1/p' Makefile

clean:
	rm -rf $(PROGRAMS) data/reviews out/test out/lesson out/bridge out/bench out/plain out/options_*

.PHONY: all lesson test demo debug imdb sst2 data bench help clean
