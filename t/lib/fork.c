/*
 * Loaded before nginx (LD_PRELOAD): makes it one whose structures have a field more, as far as its tables
 * say so, before it loads the module. FORK is "MODULE DIRECTIVE", "variable NAME" or "worker connections".
 * Nothing else changes, so that what the test configures must not be what FORK names.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct { size_t len; char *data; } ngx_str_t;
typedef struct { void *elts; size_t nelts, size, nalloc; void *pool; } ngx_array_t;

typedef struct {
    ngx_str_t    name;
    uintptr_t    type;
    void        *set;
    uintptr_t    conf, offset;
    void        *post;
} ngx_command_t;

typedef struct {
    uintptr_t       ctx_index, index;
    char           *name;
    uintptr_t       spare0, spare1, version;
    char           *signature;
    void           *ctx;
    ngx_command_t  *commands;
    uintptr_t       type;
    void           *init_master, *init_module, *init_process;
} ngx_module_t;

/* Is given an ngx_conf_t, or an ngx_cycle_t. */
typedef intptr_t step(void **);

/* ngx_conf_t, ngx_hash_keys_arrays_t and what follows, as far as they are needed. */
enum { CF_CTX = 7, KEYS = 3 };
typedef struct { ngx_str_t key; uintptr_t hash; void *value; } ngx_hash_key_t;
typedef struct { ngx_str_t name; void *set, *get; uintptr_t data; } ngx_http_variable_t;

static char           module_name[64], entry[64];
static ngx_module_t  *core;
static step          *preconfiguration, *init_process;

static int
is(ngx_str_t *name, const char *text)
{
    return name->len == strlen(text) && memcmp(name->data, text, name->len) == 0;
}

static ngx_command_t *
directive(ngx_module_t *module, const char *name)
{
    ngx_command_t  *command;

    for (command = module->commands; command->name.len && !is(&command->name, name); command++) { }
    return command;
}

/* That of ngx_http_core_module, which makes nginx's own variables known. */
static intptr_t
more(void **cf)
{
    intptr_t              rc = preconfiguration(cf);
    char                 *main_conf = (*(char ***) cf[CF_CTX])[core->ctx_index];
    size_t                keys = directive(core, "variables_hash_bucket_size")->offset + sizeof(uintptr_t);
    ngx_array_t          *array = (ngx_array_t *) (*(void ***) (main_conf + keys) + KEYS);
    ngx_hash_key_t       *key = array->elts;
    ngx_http_variable_t  *variable;
    size_t                n;

    for (n = 0; n < array->nelts; n++) {
        variable = key[n].value;
        if (is(&key[n].key, entry)) {
            variable->data += sizeof(void *);
            fprintf(stderr, "forked\n");
        }
    }
    return rc;
}

static int
is_mapped(void *at)
{
    size_t         page = sysconf(_SC_PAGESIZE);
    unsigned char  vec[2];

    return at != NULL && (uintptr_t) at % sizeof(void *) == 0
        && mincore((void *) ((uintptr_t) at / page * page), 2 * page, vec) == 0;
}

/* That of ngx_event_core_module, which makes a worker's connections: they, and their events, are beside
   each other in the cycle. */
static intptr_t
moved(void **cycle)
{
    intptr_t    rc = init_process(cycle);
    void      **connection;
    size_t      n;

    for (n = 0; n < 128; n++) {
        connection = cycle[n];
        /* No queue, which points to itself. */
        if (is_mapped(connection) && (connection < cycle || connection > cycle + 128)
            && connection[1] != NULL && connection[1] == cycle[n + 1] && connection[2] == cycle[n + 2])
        {
            cycle[n + 1] = (char *) cycle[n + 1] + sizeof(void *);
            fprintf(stderr, "forked\n");
            break;
        }
    }
    return rc;
}

void *
dlopen(const char *file, int mode)
{
    static void    *(*open)(const char *, int);
    static int      done;
    void           *handle;
    ngx_module_t   *module;
    ngx_command_t  *command;

    if (open == NULL) {
        *(void **) &open = dlsym(RTLD_NEXT, "dlopen");
    }
    handle = open(file, mode);
    if (done || getenv("FORK") == NULL || sscanf(getenv("FORK"), "%63s %63s", module_name, entry) != 2) {
        return handle;
    }
    if (strcmp(module_name, "variable") == 0) {
        core = dlsym(RTLD_DEFAULT, "ngx_http_core_module");
        if (core != NULL) {
            done = 1;
            preconfiguration = *(step **) core->ctx;
            *(step **) core->ctx = more;
        }
        return handle;
    }
    if (strcmp(module_name, "worker") == 0) {
        module = dlsym(RTLD_DEFAULT, "ngx_event_core_module");
        if (module != NULL) {
            done = 1;
            init_process = (step *) module->init_process;
            module->init_process = (void *) moved;
        }
        return handle;
    }
    module = dlsym(RTLD_DEFAULT, module_name);
    if (module != NULL) {
        command = directive(module, entry);
        if (command->name.len != 0) {
            done = 1;
            command->offset += sizeof(void *);
            fprintf(stderr, "forked\n");
        }
    }
    return handle;
}
