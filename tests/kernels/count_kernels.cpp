// Runs one integer kernel a number of times on a fixed shape, for instruction_counts.py to
// count under callgrind:
//
//   count_kernels KERNEL LEVEL REPETITIONS      KERNEL: score_codes or accumulate_codes
//
// Ends with 77 where LEVEL cannot be used here. Whether the results are right is tested in
// integer_test.cpp.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cqkv/isa.h"

#include "codec/byte_tables.h"
#include "core/rng.h"
#include "kernels/dispatch.h"

namespace cqkv::kernels {
namespace {

// A decode step's work on one KV head: four query heads on a full chunk of 8c8b.
// instruction_counts.py divides by kTokens.
constexpr CodecSpec kSpec{8, 8};
constexpr int kHeadDim = 128;
constexpr int kRows = 4;
constexpr int kBlocks = kMaxChunk;
constexpr int kTokens = kBlocks * kBlockCells;
constexpr int kPairs = kHeadDim / 2;
constexpr int kSkipped = 77;

TensorCodebook make_codebook(Rng& rng) {
  std::vector<float> centroids(static_cast<std::size_t>(kHeadDim) * kSpec.n_centroids());
  for (float& value : centroids) {
    value = static_cast<float>(rng.normal());
  }
  return TensorCodebook::create(kSpec, 1, kHeadDim, centroids).value();
}

KeyPairs make_pairs() {
  RopeParams rope;
  rope.n_dims = kHeadDim;
  rope.freq_base = 500000.0F;  // Llama 3's, by which 40 of 64 pairs turn within a block
  return KeyPairs::of(kHeadDim, &rope);
}

class KernelRun {
 public:
  explicit KernelRun(const KernelTable& kernel)
      : kernel_(kernel),
        codebook_(make_codebook(rng_)),
        keys_(ByteTables::keys(codebook_, make_pairs(), kernel.table_order)),
        values_(ByteTables::values(codebook_, kernel.table_order)) {
    for (std::uint8_t& code : codes_) {
      code = static_cast<std::uint8_t>(rng_.below(256));
    }
    for (std::uint32_t& query : queries_) {
      query = static_cast<std::uint32_t>(rng_.below(1U << 12U) | rng_.below(1U << 12U) << 16U);
    }
    for (std::uint8_t& p : p_) {
      p = static_cast<std::uint8_t>(rng_.below(kLargestProbability + 1));
    }
    factors_.fill(1.0F);
    weights_.fill(1.0F / kLargestProbability);
    rescale_.fill(0.5F);  // keeps the sums small however often they are added to
    pack_angles();
  }

  void score_codes(int repetitions) {
    ScoreCodes call;
    call.blocks = blocks(keys_);
    call.pairs = keys_.pairs().pairs.data();
    call.n_pairs = kPairs;
    call.n_rotated = keys_.pairs().n_turning;
    call.rotation = angles_.data();
    for (int b = 0; b < kBlocks; b++) {
      call.queries[b] = queries_.data();
    }
    call.query_stride = kPairs;
    call.n_rows = kRows;
    call.factors = factors_.data();
    call.scratch = scratch_.data();
    call.scores = scores_.data();
    for (int i = 0; i < repetitions; i++) {
      kernel_.score_codes(call);
    }
  }

  void accumulate_codes(int repetitions) {
    AccumulateCodes call;
    call.blocks = blocks(values_);
    call.p = p_.data();
    call.weights = weights_.data();
    call.rescale = rescale_.data();
    call.scales = values_.scales(0);
    call.n_rows = kRows;
    call.out = out_.data();
    call.out_stride = kHeadDim;
    for (int i = 0; i < repetitions; i++) {
      kernel_.accumulate_codes(call);
    }
  }

 private:
  static_assert(kPairs % kQueryLanes == 0 && kHeadDim % kChannelLanes == 0);

  static constexpr int kBlockBytes = kHeadDim / kSpec.group_dim * kBlockCells;

  void pack_angles() {
    std::vector<float> cosines(static_cast<std::size_t>(kPairs) * kBlockCells);
    std::vector<float> sines(cosines.size());
    for (std::size_t i = 0; i < cosines.size(); i++) {
      const double angle = rng_.uniform() * 7;
      cosines[i] = static_cast<float>(std::cos(angle));
      sines[i] = static_cast<float>(std::sin(angle));
    }
    kernel_.pack_angles(cosines.data(), sines.data(), keys_.pairs().n_turning, 4096.0F,
                        angles_.data());
  }

  CodedBlocks blocks(const ByteTables& tables) const {
    CodedBlocks result;
    result.table = tables.table(0);
    result.group_dim = kSpec.group_dim;
    result.code_bits = kSpec.code_bits;
    result.n_channels = kHeadDim;
    result.n_blocks = kBlocks;
    for (int b = 0; b < kBlocks; b++) {
      result.codes[b] = codes_.data() + b * kBlockBytes;
    }
    return result;
  }

  const KernelTable& kernel_;
  Rng rng_{1};
  TensorCodebook codebook_;
  ByteTables keys_;
  ByteTables values_;
  // Whole cache lines, so that what is counted does not depend on where memory is.
  alignas(64) std::array<std::uint8_t, kBlocks * kBlockBytes> codes_{};
  alignas(64) std::array<std::int16_t, packed_angle_words(kPairs)> angles_{};
  alignas(64) std::array<std::uint32_t, kRows * kPairs> queries_{};
  alignas(64) std::array<std::uint8_t, score_scratch_bytes(kHeadDim, kPairs)> scratch_{};
  alignas(64) std::array<float, kRows * kTokens> scores_{};
  alignas(64) std::array<std::uint8_t, kRows * kTokens> p_{};
  alignas(64) std::array<float, kRows * kHeadDim> out_{};
  std::array<float, kRows> factors_{};
  std::array<float, kRows * kBlocks> weights_{};
  std::array<float, kRows * kBlocks> rescale_{};
};

int run(const std::string& kernel, const std::string& level, int repetitions) {
  const Status status = force_isa(level);
  if (!status.ok()) {
    std::fprintf(stderr, "count_kernels: %s\n", status.message().c_str());
    return kSkipped;
  }
  const auto kernel_run = std::make_unique<KernelRun>(active());
  if (kernel == "score_codes") {
    kernel_run->score_codes(repetitions);
  } else if (kernel == "accumulate_codes") {
    kernel_run->accumulate_codes(repetitions);
  } else {
    std::fprintf(stderr, "count_kernels: got kernel '%s', want score_codes or accumulate_codes\n",
                 kernel.c_str());
    return 2;
  }
  std::printf("%d tokens\n", kTokens);
  return 0;
}

}  // namespace
}  // namespace cqkv::kernels

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fputs("count_kernels KERNEL LEVEL REPETITIONS\n", stderr);
    return 2;
  }
  return cqkv::kernels::run(argv[1], argv[2], static_cast<int>(std::strtol(argv[3], nullptr, 10)));
}
