/* A coded cache in C: learns a codebook from random rows, keeps 256 tokens at 1 bit a channel with
 * the last 16 exact, and attends to them. Usage: attend CODEBOOK.gguf (a file to write). */
#include <cqkv.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { N_KV_HEADS = 2, HEAD_DIM = 32, N_HEADS = 4, N_CHANNELS = N_KV_HEADS * HEAD_DIM };

enum { N_ROWS = 2048, N_TOKENS = 256, N_QUERY = N_HEADS * HEAD_DIM };

static void check(cqkv_status status) {
  if (status != CQKV_OK) {
    fprintf(stderr, "cqkv: %s\n", cqkv_last_error());
    exit(1);
  }
}

/* Two clusters a channel, so that there is something to learn. */
static float* random_rows(size_t n_floats) {
  float* rows = malloc(n_floats * sizeof(float));
  for (size_t i = 0; rows != NULL && i < n_floats; i++) {
    rows[i] = (float)(rand() % 2) - 0.5f + 0.1f * (float)rand() / (float)RAND_MAX;
  }
  return rows;
}

static void learn(const char* path) {
  cqkv_codebook* codebook = NULL;
  cqkv_learn_options options = CQKV_LEARN_OPTIONS_INIT;
  options.n_kv_heads = N_KV_HEADS;
  options.head_dim = HEAD_DIM;
  check(cqkv_codebook_create(1, "example", 16, 4, &codebook));
  float* rows = random_rows((size_t)N_ROWS * N_CHANNELS);
  double error = 0;
  check(cqkv_codebook_learn(codebook, 0, CQKV_KEY, rows, N_ROWS, N_CHANNELS, &options, &error));
  check(cqkv_codebook_learn(codebook, 0, CQKV_VALUE, rows, N_ROWS, N_CHANNELS, &options, NULL));
  printf("learned %d KV heads of %d channels: %.1f %% of the variance lost\n", N_KV_HEADS, HEAD_DIM,
         100 * error);
  check(cqkv_codebook_save(codebook, path));
  cqkv_codebook_free(codebook);
  free(rows);
}

/* One token after the other, as in generation. */
static void generate(cqkv_cache* cache, float* out) {
  cqkv_rope rope = CQKV_ROPE_INIT;
  rope.n_dims = HEAD_DIM;
  for (int32_t position = 0; position < N_TOKENS; position++) {
    const size_t cell = (size_t)position;
    float* keys = random_rows(N_CHANNELS);
    float* values = random_rows(N_CHANNELS);
    float* queries = random_rows(N_QUERY);
    check(cqkv_cache_plan(cache, &position, &cell, 1));
    check(cqkv_cache_store_keys(cache, 0, keys, N_CHANNELS, &rope));
    check(cqkv_cache_store_values(cache, 0, values, N_CHANNELS));
    cqkv_attention attention = CQKV_ATTENTION_INIT;
    attention.n_heads = N_HEADS;
    attention.scale = 1.0f / sqrtf((float)HEAD_DIM);
    attention.queries = queries;
    attention.out = out;
    check(cqkv_cache_attend(cache, &attention));
    check(cqkv_cache_commit(cache));
    free(keys);
    free(values);
    free(queries);
  }
}

int main(int argc, char** argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: attend CODEBOOK.gguf\n");
    return 2;
  }
  learn(argv[1]);
  cqkv_codebook* codebook = NULL;
  check(cqkv_codebook_open(argv[1], &codebook));
  cqkv_cache_options options = CQKV_CACHE_OPTIONS_INIT;
  options.n_cells = N_TOKENS;
  cqkv_cache* cache = NULL;
  check(cqkv_cache_create(codebook, &options, &cache));
  float out[N_QUERY];
  generate(cache, out);
  printf("cqkv %s (%s): %d tokens in %zu bytes, 16-bit floats take %d; first output %.3f\n",
         cqkv_version(), cqkv_isa(), N_TOKENS, cqkv_cache_bytes(cache),
         N_TOKENS * N_CHANNELS * 2 * 2, out[0]);
  cqkv_cache_free(cache);
  cqkv_codebook_free(codebook);
  return 0;
}
