/*
 * Loaded before nginx (LD_PRELOAD): makes it one whose structures have a field more, as far as its tables
 * say so, before it loads the module. FORK is "MODULE DIRECTIVE" or "variable NAME". Nothing else changes,
 * so that what the test configures must not be what FORK names.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
} ngx_module_t;

typedef intptr_t step(void **cf);

/* ngx_conf_t, ngx_hash_keys_arrays_t and what follows, as far as they are needed. */
enum { CF_CTX = 7, KEYS = 3 };
typedef struct { ngx_str_t key; uintptr_t hash; void *value; } ngx_hash_key_t;
typedef struct { ngx_str_t name; void *set, *get; uintptr_t data; } ngx_http_variable_t;

static char           module_name[64], entry[64];
static ngx_module_t  *core;
static step          *preconfiguration;

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
