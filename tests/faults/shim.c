/* Fails the n-th operation on files below a folder; for LD_PRELOAD.
 *
 * `faults()` returns the state, which forked processes share. Counted are operations that change
 * what is on the disk: write, pwrite, ftruncate, fsync, rename, mkdir, and open and close of files
 * that are open for writing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { NONE, FAIL, SHORT, KILL };
enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, CLOSE = 16, MAKE = 32 };

struct state {
    int kind;      /* one of the above */
    int number;    /* errno of FAIL */
    int calls;     /* which operations count, a sum */
    int when;      /* the first that is hit, from 1 */
    int for_ever;  /* so are all that follow it */
    int count;     /* so many were there */
    int fired;     /* so many were hit */
    char folder[PATH_MAX];
};

static struct state *state;
static unsigned char of_file[1 << 16]; /* 1: below the folder, 2: open for writing too */

__attribute__((constructor)) static void start(void)
{
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (state == MAP_FAILED)
        abort();
}

struct state *faults(void) { return state; }

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* Whether a file without a name is opened, which tries a folder and leaves nothing there. */
static int is_nameless(int flags)
{
    return (flags & O_TMPFILE) == O_TMPFILE;
}

static int is_below(const char *path)
{
    size_t n = strlen(state->folder);
    return n && path && !strncmp(path, state->folder, n) && (path[n] == '/' || !path[n]);
}

static int flags_of(int file)
{
    return file >= 0 && file < (int)sizeof of_file ? of_file[file] : 0;
}

/* Count an operation; return what is to happen to it. */
static int next(int call)
{
    if (!state->kind || !(state->calls & call))
        return NONE;
    int count = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
    if (count != state->when && !(state->for_ever && count > state->when))
        return NONE;
    __atomic_add_fetch(&state->fired, 1, __ATOMIC_SEQ_CST);
    if (state->kind == KILL)
        kill(getpid(), SIGKILL);
    errno = state->number;
    return state->kind;
}

static int opened(int file, const char *path, int flags)
{
    if (file >= 0 && file < (int)sizeof of_file)
        of_file[file] = !is_below(path) || is_nameless(flags) ? 0 : (flags & O_ACCMODE) == O_RDONLY ? 1 : 3;
    return file;
}

static int is_written(const char *path, int flags)
{
    return is_below(path) && !is_nameless(flags) && (flags & O_ACCMODE) != O_RDONLY;
}

#define OPENING(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        int mode = va_arg(rest, int); \
        va_end(rest); \
        if (is_written(path, flags) && next(OPEN) == FAIL) \
            return -1; \
        return opened(real(path, flags, mode), path, flags); \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name) \
    int name(int folder, const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        int mode = va_arg(rest, int); \
        va_end(rest); \
        if (is_written(path, flags) && next(OPEN) == FAIL) \
            return -1; \
        return opened(real(folder, path, flags, mode), path, flags); \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

ssize_t write(int file, const void *data, size_t n)
{
    REAL(write);
    int hit = flags_of(file) & 2 ? next(WRITE) : NONE;
    return hit == FAIL ? -1 : real(file, data, hit == SHORT && n > 1 ? n / 2 : n);
}

#define WRITING_AT(name, type) \
    ssize_t name(int file, const void *data, size_t n, type at) \
    { \
        REAL(name); \
        int hit = flags_of(file) & 2 ? next(WRITE) : NONE; \
        return hit == FAIL ? -1 : real(file, data, hit == SHORT && n > 1 ? n / 2 : n, at); \
    }
WRITING_AT(pwrite, off_t)
WRITING_AT(pwrite64, off64_t)

#define CUTTING(name, type) \
    int name(int file, type size) \
    { \
        REAL(name); \
        return flags_of(file) & 2 && next(MAKE) == FAIL ? -1 : real(file, size); \
    }
CUTTING(ftruncate, off_t)
CUTTING(ftruncate64, off64_t)

#define SYNCING(name) \
    int name(int file) \
    { \
        REAL(name); \
        return flags_of(file) && next(SYNC) == FAIL ? -1 : real(file); \
    }
SYNCING(fsync)
SYNCING(fdatasync)

int close(int file)
{
    REAL(close);
    int hit = flags_of(file) & 2 ? next(CLOSE) : NONE, number = errno;
    if (flags_of(file))
        of_file[file] = 0;
    int result = real(file);
    if (hit != FAIL)
        return result;
    errno = number;
    return -1;
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    return is_below(to) && next(RENAME) == FAIL ? -1 : real(from, to);
}

int renameat(int old, const char *from, int new, const char *to)
{
    REAL(renameat);
    return is_below(to) && next(RENAME) == FAIL ? -1 : real(old, from, new, to);
}

int renameat2(int old, const char *from, int new, const char *to, unsigned int flags)
{
    REAL(renameat2);
    return is_below(to) && next(RENAME) == FAIL ? -1 : real(old, from, new, to, flags);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    /* that a folder is there already is no fault, whatever this call says */
    int is_new = is_below(path) && access(path, F_OK) != 0;
    return is_new && next(MAKE) == FAIL ? -1 : real(path, mode);
}
