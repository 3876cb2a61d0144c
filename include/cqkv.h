/* The C interface of cqkv: codebooks, codes, and a coded key-value cache with attention on the
 * codes. It knows no inference engine: rows of keys and values come as 32-bit floats, attention
 * goes out as such.
 *
 * Conventions
 *   - Functions that can fail return a cqkv_status; cqkv_last_error() has the words. Outputs are
 *     untouched then, unless said otherwise.
 *   - Objects are opaque. What _open, _create and _load give, _free takes back; null is allowed.
 *   - Codebooks are read-only once made: any number of threads may use one. A cache takes one call
 *     at a time and works with its own threads.
 *   - Options begin with their size, so that later versions may add fields: use the _INIT macros.
 *   - Strings are UTF-8.
 *
 * Words: a row is the keys, or the values, of one token in one layer: n_kv_heads * head_dim floats.
 * Keys are coded before their rotary embedding (RoPE). A code is the number of a centroid.
 */
#ifndef CQKV_H
#define CQKV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define CQKV_API __attribute__((visibility("default")))
#else
#define CQKV_API
#endif

/* ---- errors and versions ---------------------------------------------------------------- */

typedef enum cqkv_status {
  CQKV_OK = 0,
  CQKV_INVALID_ARGUMENT = 1,   /* The caller passed something that cannot work. */
  CQKV_NOT_FOUND = 2,          /* A file does not exist. */
  CQKV_CORRUPT = 3,            /* A file or record contradicts itself. */
  CQKV_MISMATCH = 4,           /* Two valid things do not belong together. */
  CQKV_UNSUPPORTED = 5,        /* Valid, but this version cannot do it. */
  CQKV_RESOURCE_EXHAUSTED = 6, /* Memory, disk space or a limit. */
  CQKV_IO_ERROR = 7,           /* The operating system refused a read or write. */
  CQKV_CANCELLED = 8,
  CQKV_INTERNAL = 9 /* A fault of ours. */
} cqkv_status;

/* What the last failed call of this thread said; "" if none failed. Valid until the next call. */
CQKV_API const char* cqkv_last_error(void);

/* "0.1.0". */
CQKV_API const char* cqkv_version(void);

/* The instruction set in use: "avx2". */
CQKV_API const char* cqkv_isa(void);

/* ---- codebooks -------------------------------------------------------------------------- */

typedef enum cqkv_kind { CQKV_KEY = 0, CQKV_VALUE = 1 } cqkv_kind;

typedef struct cqkv_codebook cqkv_codebook;

/* How the keys or values of a layer are coded. */
typedef struct cqkv_shape {
  int n_kv_heads; /* 0: this side of the layer is not coded. */
  int head_dim;
  int n_codes;   /* Of one row. */
  int code_bits; /* Of one code; codes are below 2^code_bits. */
} cqkv_shape;

/* Reads a codebook file. Any file is safe to pass. */
CQKV_API cqkv_status cqkv_codebook_open(const char* path, cqkv_codebook** codebook);

CQKV_API void cqkv_codebook_free(cqkv_codebook* codebook);

CQKV_API int cqkv_codebook_n_layers(const cqkv_codebook* codebook);

/* Bits of codes a channel, over all layers. */
CQKV_API double cqkv_codebook_bits_per_channel(const cqkv_codebook* codebook);

/* What tells codebooks apart: a hash of all that decides about codes. 0 for null. */
CQKV_API uint64_t cqkv_codebook_identity(const cqkv_codebook* codebook);

/* CQKV_INVALID_ARGUMENT for a layer that is not there. */
CQKV_API cqkv_status cqkv_codebook_shape(const cqkv_codebook* codebook, int layer, cqkv_kind kind,
                                         cqkv_shape* shape);

/* Codes of rows: of each group of channels the nearest centroid, the lowest of equals.
 *   rows   [n_rows][n_kv_heads * head_dim], rows row_stride floats apart; finite. Keys without
 * RoPE. codes  [n_rows][n_codes], overwritten. */
CQKV_API cqkv_status cqkv_encode(const cqkv_codebook* codebook, int layer, cqkv_kind kind,
                                 const float* rows, size_t n_rows, size_t row_stride,
                                 uint16_t* codes);

/* The centroids that codes stand for. Codes of 2^code_bits and above are CQKV_INVALID_ARGUMENT. */
CQKV_API cqkv_status cqkv_decode(const cqkv_codebook* codebook, int layer, cqkv_kind kind,
                                 const uint16_t* codes, size_t n_rows, float* rows,
                                 size_t row_stride);

/* ---- learning --------------------------------------------------------------------------- */

typedef struct cqkv_learn_options {
  size_t size;
  int n_kv_heads;
  int head_dim;
  int group_dim; /* Channels coded together: 1, 2, 4, ... 64. */
  int code_bits; /* 1 to 12. */
  int max_iterations;
  uint64_t seed;
  int n_threads;
  /* [n_rows][n_kv_heads * head_dim / group_dim], at least 0; null: all alike. The paper's are sums
   * over the group of squared gradients of the loss. */
  const float* weights;
} cqkv_learn_options;

#define CQKV_LEARN_OPTIONS_INIT \
  { sizeof(cqkv_learn_options), 0, 0, 8, 8, 100, 1, 1, NULL }

/* An empty codebook of n_layers layers, to be learned layer by layer and then saved.
 *   architecture  Of the model, as its GGUF file has it ("llama"); the KV device compares it.
 *   window, sinks Most recent and first tokens that caches keep exactly by default. */
CQKV_API cqkv_status cqkv_codebook_create(int n_layers, const char* architecture, int window,
                                          int sinks, cqkv_codebook** codebook);

/* Learns one side of a layer by k-means, one problem a group, and puts it into the codebook, in the
 * place of an older one. Not while another thread uses the codebook.
 *   rows     [n_rows][n_kv_heads * head_dim], rows row_stride floats apart; finite, at least as
 *            many as centroids. Keys without RoPE.
 *   error    The share of the variance that is lost, mean over groups; may be null.
 * The result does not depend on the number of threads. Source: arXiv 2405.03917, section 3.2.1. */
CQKV_API cqkv_status cqkv_codebook_learn(cqkv_codebook* codebook, int layer, cqkv_kind kind,
                                         const float* rows, size_t n_rows, size_t row_stride,
                                         const cqkv_learn_options* options, double* error);

/* Writes a codebook file, complete or not at all. */
CQKV_API cqkv_status cqkv_codebook_save(const cqkv_codebook* codebook, const char* path);

/* ---- a cache ---------------------------------------------------------------------------- */

typedef struct cqkv_cache cqkv_cache;

typedef struct cqkv_cache_options {
  size_t size;
  size_t n_cells;   /* Tokens of one stream; rounded up to a multiple of 64. */
  size_t n_streams; /* Sequences that have cells of their own. */
  int n_sequences;  /* Sequences that share the cells of one stream. */
  int window;       /* Most recent tokens kept exactly; -1: as the codebook says. */
  int sinks;        /* First tokens kept exactly; -1: as the codebook says. */
  int n_threads;
} cqkv_cache_options;

#define CQKV_CACHE_OPTIONS_INIT \
  { sizeof(cqkv_cache_options), 0, 1, 1, -1, -1, 1 }

/* A cache of all sides that the codebook codes, which must outlive it. */
CQKV_API cqkv_status cqkv_cache_create(const cqkv_codebook* codebook,
                                       const cqkv_cache_options* options, cqkv_cache** cache);

CQKV_API void cqkv_cache_free(cqkv_cache* cache);

/* Bytes of codes, exact rows and tables. */
CQKV_API size_t cqkv_cache_bytes(const cqkv_cache* cache);

/* A step: plan, then of each layer store_keys, store_values and attend, then commit, or abandon
 * after a failure. Calls in another order are CQKV_INVALID_ARGUMENT and change nothing. */

/* Begins a step of n tokens: token i of the step has positions[i] in its sequence and goes into
 * cell cells[i], counted over all streams: stream * n_cells + the cell in it. */
CQKV_API cqkv_status cqkv_cache_plan(cqkv_cache* cache, const int32_t* positions,
                                     const size_t* cells, size_t n);

/* As in ggml_rope_ext. */
typedef struct cqkv_rope {
  size_t size;
  int n_dims; /* Channels of a head that are rotated. */
  int neox;   /* 0: channels 2 i and 2 i + 1 form a pair; 1: i and i + n_dims / 2. */
  int n_ctx_orig;
  float freq_base;
  float freq_scale;
  float ext_factor;
  float attn_factor;
  float beta_fast;
  float beta_slow;
  const float* freq_factors; /* [n_dims / 2] or null. */
} cqkv_rope;

#define CQKV_ROPE_INIT \
  { sizeof(cqkv_rope), 0, 1, 0, 10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f, NULL }

/* Codes the keys of the step's tokens.
 *   rows  [n][n_kv_heads * head_dim], rows row_stride floats apart, as they come out of the rotary
 *         embedding `rope`, which is undone; null: keys are not rotated, and attention rotates
 *         nothing. */
CQKV_API cqkv_status cqkv_cache_store_keys(cqkv_cache* cache, int layer, const float* rows,
                                           size_t row_stride, const cqkv_rope* rope);

CQKV_API cqkv_status cqkv_cache_store_values(cqkv_cache* cache, int layer, const float* rows,
                                             size_t row_stride);

/* Attention of the step's tokens, in the order of the step, over the cells of their streams. Tokens
 * of one stream stand together, streams in ascending order. */
typedef struct cqkv_attention {
  size_t size;
  int layer;
  int n_heads;          /* Query heads, a multiple of KV heads. */
  float scale;          /* 1 / sqrt(head_dim) as a rule. */
  float softcap;        /* Above 0: a score s becomes softcap tanh(s / softcap). */
  const float* queries; /* [n][n_heads][head_dim], rotated. */
  /* [n][n_cells] 16-bit floats, added to scores; -inf: the token does not see the cell. Null: it
   * sees the cells of its stream with tokens of its own position and before; right only where a
   * stream holds one sequence. */
  const uint16_t* mask;
  float* out; /* [n][n_heads][head_dim], overwritten. */
} cqkv_attention;

#define CQKV_ATTENTION_INIT \
  { sizeof(cqkv_attention), 0, 0, 1.0f, 0.0f, NULL, NULL, NULL }

/* out[i][h] = sum over cells t of softmax(scale <q[i][h], k[t]> + mask[i][t]) v[t]
 * The result does not depend on which tokens share the step, on threads, nor on which cells hold
 * what, to the bit. */
CQKV_API cqkv_status cqkv_cache_attend(cqkv_cache* cache, const cqkv_attention* attention);

CQKV_API cqkv_status cqkv_cache_commit(cqkv_cache* cache);

CQKV_API void cqkv_cache_abandon(cqkv_cache* cache);

/* Between steps. */

/* Adds shifts[i] to the position of cell first + i, where there is a token. */
CQKV_API cqkv_status cqkv_cache_shift(cqkv_cache* cache, size_t first, const int32_t* shifts,
                                      size_t n);

/* Copies n cells, all layers. */
CQKV_API cqkv_status cqkv_cache_copy(cqkv_cache* cache, size_t from, size_t to, size_t n);

/* Bytes that n cells take when they are saved. */
CQKV_API size_t cqkv_cache_saved_bytes(const cqkv_cache* cache, size_t n);

/* Cells out and in, all layers. What is read back must come from a cache with the same codebook;
 * the first damaged or foreign row is reported, and attention to its cell fails until a token is
 * stored there. */
CQKV_API cqkv_status cqkv_cache_save(cqkv_cache* cache, size_t first, size_t n, uint8_t* bytes);
CQKV_API cqkv_status cqkv_cache_load(cqkv_cache* cache, size_t first, size_t n,
                                     const uint8_t* bytes);

/* No cell has a token. */
CQKV_API void cqkv_cache_clear(cqkv_cache* cache);

#ifdef __cplusplus
}
#endif

#endif /* CQKV_H */
