#!/bin/sh
# How the programs depend on where and how they are started: by the dynamic loader, by a link, by a
# name in PATH, without /proc, with another umask or environment. Runs from the repository root.

. test/lib.sh
root=$PWD
tokenizer=$root/tokenizer
printf 'a cat, a cat and a dog' >"$dir/text"
cd "$dir" || exit 1
"$tokenizer" train --vocab 260 --min-frequency 1 --out tok text 2>/dev/null
check $? "a tokenizer"

# Each program executes itself once, unless the environment says how OpenMP's threads wait.
unset OMP_WAIT_POLICY
started() { "$@" show --tokenizer tok 'a cat' 2>&1 | grep -q ' 5 bytes, .* bytes per token'; }

loader=$(head -c 4096 "$tokenizer" | tr '\0' '\n' | grep -a '^/.*/ld-' | head -n 1)
if [ -x "$loader" ]; then
    succeeds "started by the dynamic loader" started "$loader" "$tokenizer"
    if "$loader" --help 2>/dev/null | grep -q argv0; then
        succeeds "by the loader under another name" \
            started "$loader" --argv0 ./text "$tokenizer"
    fi
fi
ln -s "$tokenizer" linked
succeeds "by a link" started ./linked
PATH=$root:$PATH
succeeds "by its name in PATH" started tokenizer
PATH=$dir:$PATH
succeeds "by the name of a link in PATH" started linked

# After that it still has its name, by which ps and pkill find it.
if [ -r /proc/self/environ ]; then
    mkfifo pipe
    "$tokenizer" encode --tokenizer tok --out named - <pipe >/dev/null 2>&1 &
    pid=$!
    exec 3>pipe
    wait_for grep -qa OMP_WAIT_POLICY /proc/$pid/environ
    name=$(cat /proc/$pid/comm)
    exec 3>&-
    wait $pid
    [ "$name" = tokenizer ]
    check $? "its name once it has executed itself: $name"
fi

# Another /proc, where the system allows it.
no_proc() { unshare -m sh -c 'mount -t tmpfs none /proc && [ -z "$(ls /proc)" ] && exec "$@"' sh "$@"; }
if no_proc true 2>/dev/null; then
    succeeds "without /proc" started no_proc "$tokenizer"
    succeeds "without /proc, training" no_proc "$tokenizer" train --vocab 260 --min-frequency 1 \
        --out noproc text 2>/dev/null
    succeeds "without /proc: the same tokenizer" cmp tok/merges.txt noproc/merges.txt
fi

# Files are made as the umask says.
mode() { ls -ld "$1" | cut -c 2-10; }
for pair in 022:rwxr-xr-x:rw-r--r-- 077:rwx------:rw------- 002:rwxrwxr-x:rw-rw-r--; do
    mask=${pair%%:*} modes=${pair#*:}
    (
        umask "$mask"
        "$tokenizer" train --vocab 260 --min-frequency 1 --out "mask$mask" text &&
            "$tokenizer" encode --tokenizer "mask$mask" --out "mask$mask/ids" text
    ) 2>/dev/null
    [ "$(mode "mask$mask"):$(mode "mask$mask/merges.txt")" = "$modes" ] &&
        [ "$(mode "mask$mask/ids_000000.bin")" = "${modes#*:}" ]
    check $? "umask $mask: $(mode "mask$mask") $(mode "mask$mask/merges.txt")"
done

# The environment: only OpenMP's variables are read, and no shell or other program is run.
cd "$root" || exit 1
sources="model.h tokenizer.c train_gpt.c finetune_cls.c"
read=$(cat $sources | grep -o 'getenv([^)]*)' | sort -u | tr '\n' ' ')
[ "$read" = 'getenv("OMP_NUM_THREADS") getenv("OMP_WAIT_POLICY") ' ]
check $? "variables that are read: $read"
! grep -nE '\<(system|popen|fork|vfork|exec[lv]p?e?|posix_spawnp?|socket|connect|setlocale)\(' $sources |
    grep -v 'readlink("/proc/self/exe", self, sizeof self - 1) > 0) execv(self, argv);'
check $? "no shell, no network, no other program, no locale"
MAKEFLAGS= make -n ARCH=x86-64-v2 | grep -q -- '-march=x86-64-v2 .* -o tokenizer '
check $? "make with other options builds anew"
cd "$dir" || exit 1
hostile() { env TMPDIR=/none HOME=/none LC_ALL=tr_TR.UTF-8 LANG=de_DE POSIXLY_CORRECT=1 IFS=x "$@"; }
succeeds "a strange environment" started hostile "$tokenizer"
succeeds "none at all" started env -i "$tokenizer"
exit $failures
