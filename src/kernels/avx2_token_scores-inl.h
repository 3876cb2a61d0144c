// AVX2: scores of few rows, two tokens at a time with channels in the lanes, as the groups come
// from memory. What runs once a token is inlined by force: gcc's own choice changes with every
// instance. Part of integer_avx2-inl.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels/avx2_rows-inl.h"
#include "kernels/coded_blocks.h"
#include "kernels/unroll.h"

namespace cqkv::kernels {
namespace {

// Rows that are scored so.
constexpr int kTokenRows = 8;

// Eight pairs, or 32, whose channels lie side by side: all x and all y, or x and y in turn.
struct PairRun {
  int first = 0;      // pair
  int n = 0;          // times kRunPairs
  int n_rotated = 0;  // of these, the first
  int x = 0;
  int y = 0;
  bool alternating = false;
};

constexpr int kRunPairs = 8;
constexpr int kLongRun = 4;  // times kRunPairs
constexpr int kMaxRuns = 32;
// Two tokens stand side by side in the halves of a register, so many are added up together.
constexpr int kTokenGroup = 16;
constexpr int kTokenPairs = kTokenGroup / 2;

// The run of eight that begins with pair `first`; false if these pairs are none.
inline bool find_run(const ScoreCodes& call, int first, PairRun* run) {
  const ChannelPair* pairs = call.pairs + first;
  run->first = first;
  run->n = 1;
  run->x = pairs[0].x;
  run->y = pairs[0].y;
  run->alternating = run->y == run->x + 1;
  run->n_rotated = first < call.n_rotated ? 1 : 0;
  const int step = run->alternating ? 2 : 1;
  for (int i = 0; i < kRunPairs; i++) {
    if (pairs[i].x != run->x + i * step || pairs[i].y != run->y + i * step) {
      return false;
    }
  }
  return run->x % kSlice == 0 && (run->alternating || run->y % kSlice == 0);
}

// Whether the runs from runs[0] on are one long run.
inline bool is_long(const PairRun* runs, int n_runs) {
  const int step = runs[0].alternating ? 2 * kRunPairs : kRunPairs;
  bool result = n_runs >= kLongRun;
  for (int i = 1; i < kLongRun && result; i++) {
    result = runs[i].alternating == runs[0].alternating && runs[i].x == runs[0].x + i * step &&
             runs[i].y == runs[0].y + i * step;
  }
  return result;
}

// The runs of all pairs, long ones where they can be; 0 if they do not fall into such.
inline int find_runs(const ScoreCodes& call, PairRun* runs) {
  if (call.n_pairs % kRunPairs != 0 || call.n_rotated % kRunPairs != 0 ||
      call.n_pairs > kMaxRuns * kRunPairs) {
    return 0;
  }
  const int n_short = call.n_pairs / kRunPairs;
  for (int i = 0; i < n_short; i++) {
    if (!find_run(call, i * kRunPairs, &runs[i])) {
      return 0;
    }
  }
  int n_runs = 0;
  for (int i = 0; i < n_short; i += runs[n_runs++].n) {
    const int n = is_long(runs + i, n_short - i) ? kLongRun : 1;
    int n_rotated = 0;
    for (int j = i; j < i + n; j++) {
      n_rotated += runs[j].n_rotated;
    }
    runs[n_runs] = runs[i];
    runs[n_runs].n = n;
    runs[n_runs].n_rotated = n_rotated;
  }
  return n_runs;
}

// Words of the queries of eight pairs of one row.
constexpr int kQueryWords = 4 * kRunPairs;

// Queries by eight pairs, once for each token of two: [eight, row, x or y, 2, 8].
inline void split_queries(const ScoreCodes& call, int block, std::int16_t* out) {
  const __m256i x_then_y = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
  for (int i = 0; i < call.n_pairs; i += kRunPairs) {
    for (int r = 0; r < call.n_rows; r++, out += kQueryWords) {
      const __m256i pairs = load_bytes(call.queries[block] + r * call.query_stride + i);
      const __m256i both = _mm256_shuffle_epi8(pairs, x_then_y);  // of pairs 0-3, then of 4-7
      store_bytes(out, _mm256_permute4x64_epi64(both, 0x88));
      store_bytes(out + 2 * kRunPairs, _mm256_permute4x64_epi64(both, 0xDD));
    }
  }
}

// Where the channels of a run come from in one block. Their groups follow each other, so that
// two pointers to tables and two to codes say it all.
template <int kDim, typename Code>
struct RunSource {
  static constexpr int kGroups = kSlice / kDim;
  const std::int8_t* x_table;
  const std::int8_t* y_table;
  const Code* x_codes;
  const Code* y_codes;
  std::size_t table_bytes;  // of a group

  RunSource(const CodedBlocks& blocks, int block, const PairRun& run)
      : table_bytes(kDim * table_entries(blocks.code_bits)) {
    const auto* codes = reinterpret_cast<const Code*>(blocks.codes[block]);
    const int y = run.alternating ? run.x : run.y;
    x_table = blocks.table + run.x / kDim * table_bytes;
    y_table = blocks.table + y / kDim * table_bytes;
    x_codes = codes + run.x / kDim * kBlockCells;
    y_codes = codes + y / kDim * kBlockCells;
  }

  // Slice number `slice` of token t, in the lower half.
  [[gnu::always_inline]] __m128i row(const std::int8_t* table, const Code* codes, int slice,
                                     int t) const {
    // A constant where codes are bytes.
    const std::size_t bytes = sizeof(Code) == 1 ? kDim * kByteTableEntries : table_bytes;
    table += slice * kGroups * bytes;
    codes += slice * kGroups * kBlockCells + t;
    return load_groups<kDim>(
        [&](int i) { return table + i * bytes + codes[i * kBlockCells] * std::size_t{kDim}; });
  }

  // The same of tokens t and t + 1, in the lower halves of both lanes.
  [[gnu::always_inline]] __m256i rows(const std::int8_t* table, const Code* codes, int slice,
                                      int t) const {
    return join_halves<kDim == kSlice>(row(table, codes, slice, t),
                                       row(table, codes, slice, t + 1));
  }

  // 256 x and 256 y of pairs [8 eight, 8 eight + 8) of tokens t and t + 1.
  template <bool kAlternating>
  [[gnu::always_inline]] void load(int t, int eight, __m256i* x, __m256i* y) const {
    if constexpr (kAlternating) {
      const __m256i both = _mm256_unpacklo_epi64(rows(x_table, x_codes, 2 * eight, t),
                                                 rows(x_table, x_codes, 2 * eight + 1, t));
      *x = _mm256_slli_epi16(both, 8);
      *y = _mm256_and_si256(both, _mm256_set1_epi16(-256));
    } else {
      const __m256i zero = _mm256_setzero_si256();
      *x = _mm256_unpacklo_epi8(zero, rows(x_table, x_codes, eight, t));
      *y = _mm256_unpacklo_epi8(zero, rows(y_table, y_codes, eight, t));
    }
  }
};

// x' and y' of eight pairs of two tokens; `angles` are theirs: 16 cosines, 16 sines.
[[gnu::always_inline]] inline void rotate_tokens(const std::int16_t* angles, __m256i* x,
                                                 __m256i* y) {
  __m256i cosine = load_bytes(angles);
  __m256i sine = load_bytes(angles + 2 * kRunPairs);
  asm("" : "+x"(cosine), "+x"(sine));  // loaded once, not by each product
  const __m256i turned =
      _mm256_sub_epi16(_mm256_mulhrs_epi16(*x, cosine), _mm256_mulhrs_epi16(*y, sine));
  *y = _mm256_add_epi16(_mm256_mulhrs_epi16(*x, sine), _mm256_mulhrs_epi16(*y, cosine));
  *x = turned;
}

// Eight registers of two tokens each, four lanes a token, to sixteen sums in order.
[[gnu::always_inline]] inline void add_up(const __m256i* sums, __m256i* out) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int half = 0; half < 2; half++, sums += 4) {
    __m256i two[2];
    for (int i = 0; i < 2; i++) {
      two[i] = _mm256_add_epi32(_mm256_unpacklo_epi32(sums[2 * i], sums[2 * i + 1]),
                                _mm256_unpackhi_epi32(sums[2 * i], sums[2 * i + 1]));
    }
    const __m256i one = _mm256_add_epi32(_mm256_unpacklo_epi64(two[0], two[1]),
                                         _mm256_unpackhi_epi64(two[0], two[1]));
    out[half] = _mm256_permutevar8x32_epi32(one, order);
  }
}

// kEights times eight pairs of tokens t and t + 1 of one block, of which the first n_rotated
// eights are rotated, against all rows: lanes to be added up.
template <int kEights, int kRows, bool kAlternating, typename Source>
[[gnu::always_inline]] inline void multiply_tokens(const Source& source, int t, int n_rotated,
                                                   const std::int16_t* angles,
                                                   const std::int16_t* queries,
                                                   __m256i (&sums)[kRows]) {
  // gcc 12 would copy the queries to the stack, for they are loaded again for every two tokens.
  asm("" : "+r"(queries));
  CQKV_UNROLLED
  for (int i = 0; i < kEights; i++) {
    __m256i x;
    __m256i y;
    source.template load<kAlternating>(t, i, &x, &y);
    if (i < n_rotated) {
      rotate_tokens(angles + i * 4 * kRunPairs, &x, &y);
    } else {
      x = _mm256_srai_epi16(x, 3);
      y = _mm256_srai_epi16(y, 3);
    }
    CQKV_UNROLLED
    for (int r = 0; r < kRows; r++) {
      const std::int16_t* query = queries + (i * kRows + r) * kQueryWords;
      const __m256i of_x = _mm256_madd_epi16(x, load_bytes(query));
      __m256i sum = i == 0 ? of_x : _mm256_add_epi32(sums[r], of_x);
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(y, load_bytes(query + 2 * kRunPairs)));
      asm("" : "+x"(sum));  // as in add_token_quad: row after row
      sums[r] = sum;
    }
  }
}

// Adds what kTokenGroup tokens got from some runs to their scores, which until the last runs
// stand there as integers.
inline void add_to_scores(const ScoreCodes& call, const __m256i (*sums)[kTokenPairs], bool first,
                          bool last, float* scores) {
  for (int r = 0; r < call.n_rows; r++, scores += kBlockCells) {
    __m256i added[2];
    add_up(sums[r], added);
    for (int half = 0; half < 2; half++) {
      float* to = scores + half * 8;
      const __m256i sum = first ? added[half] : _mm256_add_epi32(added[half], load_bytes(to));
      if (last) {
        _mm256_storeu_ps(to,
                         _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(call.factors[r])));
      } else {
        store_bytes(to, sum);
      }
    }
  }
}

// Scores of kTokenGroup tokens from t on with the pairs of one run; returns the angles of the next.
template <int kEights, int kRows, bool kAlternating, typename Source>
[[gnu::always_inline]] inline const std::int16_t* multiply_group(
    const Source& source, int t, int n_rotated, const std::int16_t* angles,
    std::size_t angle_stride, const std::int16_t* queries, __m256i (&sums)[kRows][kTokenPairs]) {
  for (int i = 0; i < kTokenPairs; i++, angles += angle_stride) {
    __m256i of_tokens[kRows];
    multiply_tokens<kEights, kRows, kAlternating>(source, t + 2 * i, n_rotated, angles, queries,
                                                  of_tokens);
    for (int r = 0; r < kRows; r++) {
      sums[r][i] = of_tokens[r];
    }
  }
  return angles;
}

// One run of all blocks: its tables and angles stay in the cache over the blocks.
template <int kDim, typename Code, int kRows, int kEights, bool kAlternating>
void score_run(const ScoreCodes& call, const PairRun& run, const std::int16_t* queries) {
  const std::size_t angle_stride = 4 * static_cast<std::size_t>(call.n_rotated);
  const bool last = run.first + run.n * kRunPairs == call.n_pairs;
  const int block_words = kRows * call.n_pairs / kRunPairs * kQueryWords;
  queries += kRows * run.first / kRunPairs * kQueryWords;
  for (int block = 0; block < call.blocks.n_blocks; block++, queries += block_words) {
    if (block + 1 < call.blocks.n_blocks) {
      const RunSource<kDim, Code> next(call.blocks, block + 1, run);
      prefetch_codes(next.x_codes, kEights * (kAlternating ? 2 : 1) * kSlice / kDim);
      if (!kAlternating) {
        prefetch_codes(next.y_codes, kEights * kSlice / kDim);
      }
    }
    const RunSource<kDim, Code> source(call.blocks, block, run);
    const std::int16_t* angles =
        call.rotation + packed_angle_words(call.n_rotated) / 2 + 4 * run.first;
    float* scores = call.scores + static_cast<std::size_t>(block) * kRows * kBlockCells;
    for (int t = 0; t < kBlockCells; t += kTokenGroup) {
      __m256i sums[kRows][kTokenPairs];
      angles = multiply_group<kEights, kRows, kAlternating>(source, t, run.n_rotated, angles,
                                                            angle_stride, queries, sums);
      add_to_scores(call, sums, run.first == 0, last, scores + t);
    }
  }
}

template <int kDim, typename Code, int kRows>
void score_tokens(const ScoreCodes& call, const PairRun* runs, int n_runs) {
  auto* queries = reinterpret_cast<std::int16_t*>(call.scratch);
  for (int block = 0; block < call.blocks.n_blocks; block++) {
    split_queries(call, block,
                  queries + static_cast<std::size_t>(block) * kRows * 4 * call.n_pairs);
  }
  for (int i = 0; i < n_runs; i++) {
    const bool is_long_run = runs[i].n == kLongRun;
    if (runs[i].alternating) {
      (is_long_run ? score_run<kDim, Code, kRows, kLongRun, true>
                   : score_run<kDim, Code, kRows, 1, true>)(call, runs[i], queries);
    } else {
      (is_long_run ? score_run<kDim, Code, kRows, kLongRun, false>
                   : score_run<kDim, Code, kRows, 1, false>)(call, runs[i], queries);
    }
  }
}

using ScoreTokens = void (*)(const ScoreCodes&, const PairRun*, int);

template <int kDim, typename Code>
inline ScoreTokens token_scorer(int n_rows) {
  constexpr ScoreTokens kByRows[kTokenRows] = {
      score_tokens<kDim, Code, 1>, score_tokens<kDim, Code, 2>, score_tokens<kDim, Code, 3>,
      score_tokens<kDim, Code, 4>, score_tokens<kDim, Code, 5>, score_tokens<kDim, Code, 6>,
      score_tokens<kDim, Code, 7>, score_tokens<kDim, Code, 8>};
  return kByRows[n_rows - 1];
}

// Null where tokens in the lanes are better or the only way, or where it is not worth the code:
// more than 8 bits for 2 or 4 channels.
inline ScoreTokens find_token_scorer(const ScoreCodes& call) {
  const bool wide = call.blocks.code_bits > 8;
  if (call.n_rows > kTokenRows) {
    return nullptr;
  }
  switch (call.blocks.group_dim) {
    case 2:
      return wide ? nullptr : token_scorer<2, std::uint8_t>(call.n_rows);
    case 4:
      return wide ? nullptr : token_scorer<4, std::uint8_t>(call.n_rows);
    case 8:
      return wide ? token_scorer<8, std::uint16_t>(call.n_rows)
                  : token_scorer<8, std::uint8_t>(call.n_rows);
    default:
      return nullptr;
  }
}

}  // namespace
}  // namespace cqkv::kernels
