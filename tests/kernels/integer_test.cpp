// The integer kernels of every level against the scalar ones, to the bit, and the scalar ones
// against their formulas: all group sizes, code widths, forms of pairs, numbers of rows and
// blocks, with operands up to the largest that the interface allows.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <gtest/gtest.h>

#include "codec/byte_tables.h"
#include "kernels/kernel_fixture.h"

namespace cqkv::kernels {
namespace {

struct IntegerShape {
  CodecSpec spec{8, 8};
  int head_dim = 64;
  int n_dims = 64;  // rotated
  RopeMode mode = RopeMode::kNeox;
  int n_still = 0;  // of the rotated pairs, the last

  enum { kAsRope, kMixedX, kMixedY } order = kAsRope;  // of the rotated pairs

  int n_rows = 1;
  int n_blocks = 1;
};

// Random operands of one KV head, the second of two, so that offsets count.
class IntegerCase {
 public:
  IntegerCase(const IntegerShape& shape, std::uint64_t seed)
      : shape_(shape),
        rng_(seed),
        n_groups_(shape.head_dim / shape.spec.group_dim),
        codebook_(make_codebook()),
        codes_(static_cast<std::size_t>(shape.n_blocks) * n_groups_ * kBlockCells *
               (shape.spec.code_bits > 8 ? 2 : 1)),
        pairs_(make_pairs()),
        n_padded_((pairs_.pairs.size() + kQueryLanes - 1) / kQueryLanes * kQueryLanes),
        angles_(static_cast<std::size_t>(pairs_.n_turning) * 2 * kBlockCells),
        queries_(n_padded_ * shape.n_rows * shape.n_blocks),
        factors_(shape.n_rows),
        p_(static_cast<std::size_t>(shape.n_rows) * shape.n_blocks * kBlockCells),
        weights_(random_floats(static_cast<std::size_t>(shape.n_rows) * shape.n_blocks, rng_)),
        rescale_(random_floats(static_cast<std::size_t>(shape.n_rows) * shape.n_blocks, rng_)),
        out_start_(random_floats(shape.n_rows * padded_channels(), rng_)) {
    fill_codes();
    for (std::uint32_t& query : queries_) {
      query = random_query();
    }
    for (float& factor : factors_) {
      factor = static_cast<float>(rng_.uniform()) + 0.5F;
    }
    for (std::uint8_t& p : p_) {
      p = static_cast<std::uint8_t>(rng_.uniform() < 0.2 ? kLargestProbability
                                                         : rng_.below(kLargestProbability + 1));
    }
    for (std::size_t i = 0; i < angles_.size(); i++) {
      const double angle = rng_.uniform() * 7;
      angles_[i] = static_cast<float>(i < angles_.size() / 2 ? std::cos(angle) : std::sin(angle));
    }
  }

  std::vector<float> scores(const KernelTable& kernel) {
    const ByteTables tables = ByteTables::keys(codebook_, pairs_, kernel.table_order);
    ExactBuffer<std::int16_t> packed(packed_angle_words(pairs_.n_turning));
    kernel.pack_angles(angles_.data(), angles_.data() + angles_.size() / 2, pairs_.n_turning,
                       4096.0F, packed.data());
    Aligned<float> result(static_cast<std::size_t>(shape_.n_rows) * shape_.n_blocks * kBlockCells);
    ScoreCodes call;
    call.blocks = blocks(tables);
    call.pairs = pairs_.pairs.data();
    call.n_pairs = static_cast<int>(pairs_.pairs.size());
    call.n_rotated = pairs_.n_turning;
    call.rotation = packed.data();
    for (int b = 0; b < shape_.n_blocks; b++) {
      call.queries[b] = queries_.data() + n_padded_ * shape_.n_rows * b;
    }
    call.query_stride = n_padded_;
    call.n_rows = shape_.n_rows;
    call.factors = factors_.data();
    Aligned<std::uint8_t> scratch(
        score_scratch_bytes(shape_.head_dim, static_cast<int>(pairs_.pairs.size())));
    call.scratch = scratch.data();
    call.scores = result.data();
    kernel.score_codes(call);
    return result.values();
  }

  std::vector<float> sums(const KernelTable& kernel) {
    const ByteTables tables = ByteTables::values(codebook_, kernel.table_order);
    AccumulateCodes call;
    call.blocks = blocks(tables);
    Aligned<std::uint8_t> p(p_.size());
    std::copy(p_.begin(), p_.end(), p.data());
    call.p = p.data();
    call.weights = weights_.data();
    call.rescale = rescale_.data();
    call.scales = tables.scales(1);
    call.n_rows = shape_.n_rows;
    ExactBuffer<float> out(out_start_.size());
    std::copy(out_start_.begin(), out_start_.end(), out.begin());
    call.out = out.data();
    call.out_stride = padded_channels();
    kernel.accumulate_codes(call);
    std::vector<float> result;
    for (int r = 0; r < shape_.n_rows; r++) {
      const float* row = out.data() + r * padded_channels();
      result.insert(result.end(), row, row + shape_.head_dim);
    }
    return result;
  }

  // Of the largest sum: rounding once instead of twice, block after block.
  static double sum_tolerance(const std::vector<float>& want) {
    double largest = 0;
    for (const float value : want) {
      largest = std::max(largest, std::abs(static_cast<double>(value)));
    }
    return 2 * kMaxChunk * kEpsilon * largest;
  }

 private:
  // Memory of exactly n elements behind an aligned start.
  template <typename T>
  class Aligned {
   public:
    explicit Aligned(std::size_t n)
        : n_(n), memory_(static_cast<T*>(::operator new (n * sizeof(T), std::align_val_t{64}))) {}

    ~Aligned() { ::operator delete (memory_, std::align_val_t{64}); }

    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;

    T* data() { return memory_; }

    std::vector<T> values() const { return {memory_, memory_ + n_}; }

   private:
    std::size_t n_;
    T* memory_;
  };

  std::size_t padded_channels() const {
    return (static_cast<std::size_t>(shape_.head_dim) + kChannelLanes - 1) / kChannelLanes *
           kChannelLanes;
  }

  TensorCodebook make_codebook() {
    std::vector<float> centroids(static_cast<std::size_t>(2) * shape_.head_dim *
                                 shape_.spec.n_centroids());
    for (float& value : centroids) {
      value = rng_.uniform() < 0.1 ? (rng_.uniform() < 0.5 ? -3.0F : 3.0F)
                                   : static_cast<float>(rng_.normal());
    }
    return TensorCodebook::create(shape_.spec, 2, shape_.head_dim, centroids).value();
  }

  KeyPairs make_pairs() {
    RopeParams rope;
    rope.n_dims = shape_.n_dims;
    rope.mode = shape_.mode;
    KeyPairs result = KeyPairs::of(shape_.head_dim, shape_.n_dims > 0 ? &rope : nullptr);
    result.n_turning = result.n_rotated() - shape_.n_still;
    for (int i = result.n_turning - 1; i > 0 && shape_.order != IntegerShape::kAsRope; i--) {
      ChannelPair& other = result.pairs[rng_.below(static_cast<std::uint64_t>(i) + 1)];
      if (shape_.order == IntegerShape::kMixedX) {
        std::swap(result.pairs[i].x, other.x);
      } else {
        std::swap(result.pairs[i].y, other.y);
      }
    }
    return result;
  }

  void fill_codes() {
    const std::size_t code_bytes = shape_.spec.code_bits > 8 ? 2 : 1;
    for (std::size_t i = 0; i < codes_.size(); i += code_bytes) {
      const auto code = static_cast<std::uint16_t>(
          rng_.below(static_cast<std::uint64_t>(shape_.spec.n_centroids())));
      if (shape_.spec.code_bits > 8) {
        std::memcpy(codes_.data() + i, &code, 2);
      } else {
        codes_[i] = static_cast<std::uint8_t>(code);
      }
    }
  }

  // Small enough that no sum leaves 32 bits: 2^31 / 5750 over all pairs.
  std::uint32_t random_query() {
    const double limit =
        std::min(32766.0, 373000.0 / static_cast<double>(pairs_.pairs.size())) / std::sqrt(2.0);
    const auto part = [&] {
      const double value =
          rng_.uniform() < 0.2 ? (rng_.uniform() < 0.5 ? -1.0 : 1.0) : rng_.uniform() * 2 - 1;
      return static_cast<std::uint32_t>(static_cast<std::int32_t>(value * limit)) & 0xFFFFU;
    };
    return part() | part() << 16U;
  }

  CodedBlocks blocks(const ByteTables& tables) {
    CodedBlocks result;
    result.table = tables.table(1);
    // Groups in parts of an entry each, which have the same codes.
    result.group_dim = tables.entry_dim(shape_.spec.group_dim);
    const int n_parts = shape_.spec.group_dim / result.group_dim;
    const std::size_t group_bytes = codes_.size() / shape_.n_blocks / n_groups_;
    parts_ = ExactBuffer<std::uint8_t>(codes_.size() * n_parts);
    for (std::size_t i = 0; i < parts_.size(); i++) {
      const std::size_t group = i / group_bytes / n_parts;  // of all blocks
      parts_[i] = codes_[group * group_bytes + i % group_bytes];
    }
    result.code_bits = shape_.spec.code_bits;
    result.n_channels = shape_.head_dim;
    result.n_blocks = shape_.n_blocks;
    for (int b = 0; b < shape_.n_blocks; b++) {
      result.codes[b] = parts_.data() + parts_.size() / shape_.n_blocks * b;
    }
    return result;
  }

  IntegerShape shape_;
  Rng rng_;
  int n_groups_;
  TensorCodebook codebook_;
  ExactBuffer<std::uint8_t> codes_;
  ExactBuffer<std::uint8_t> parts_;  // the same, as the tables in use want them
  KeyPairs pairs_;
  std::size_t n_padded_;
  ExactBuffer<float> angles_;
  ExactBuffer<std::uint32_t> queries_;
  ExactBuffer<float> factors_;
  ExactBuffer<std::uint8_t> p_;
  ExactBuffer<float> weights_;
  ExactBuffer<float> rescale_;
  ExactBuffer<float> out_start_;
};

class IntegerKernels : public KernelTest {
 protected:
  // Integer results are equal to the bit; in a sum of values the last step may be fused.
  void expect_equal(const IntegerShape& shape, std::uint64_t seed) {
    if (!ByteTables::usable(shape.spec.code_bits, kernel())) {
      return;
    }
    const KernelTable& level = *integer_kernels(kernel(), shape.spec.code_bits);
    IntegerCase test(shape, seed);
    ASSERT_EQ(test.scores(level), test.scores(kScalarTable))
        << shape.spec.name() << " d" << shape.head_dim << " rows " << shape.n_rows;
    const std::vector<float> got = test.sums(level);
    const std::vector<float> want = test.sums(kScalarTable);
    for (std::size_t i = 0; i < want.size(); i++) {
      ASSERT_NEAR(got[i], want[i], IntegerCase::sum_tolerance(want))
          << shape.spec.name() << " d" << shape.head_dim << " rows " << shape.n_rows << " at " << i;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Levels, IntegerKernels, all_levels(), level_name);

TEST_P(IntegerKernels, EveryCodec) {
  for (const int group_dim : {1, 2, 4, 8, 16}) {
    for (int bits = 1; bits <= kMaxCodeBits; bits++) {
      IntegerShape shape;
      shape.spec = {group_dim, bits};
      shape.n_rows = 3;
      shape.n_blocks = 2;
      expect_equal(shape, static_cast<std::uint64_t>(bits));
    }
  }
}

TEST_P(IntegerKernels, EveryNumberOfRowsAndBlocks) {
  for (int n_rows = 1; n_rows <= 20; n_rows++) {
    for (int n_blocks = 1; n_blocks <= kMaxChunk; n_blocks++) {
      IntegerShape shape;
      shape.n_rows = n_rows;
      shape.n_blocks = n_blocks;
      expect_equal(shape, static_cast<std::uint64_t>(n_rows * 10 + n_blocks));
    }
  }
  IntegerShape shape;
  shape.n_rows = 128;
  expect_equal(shape, 1);
}

TEST_P(IntegerKernels, HeadSizesAndFormsOfPairs) {
  for (const RopeMode mode : {RopeMode::kNeox, RopeMode::kNormal}) {
    for (const int head_dim : {8, 24, 80, 96, 128, 256}) {
      for (const int n_dims : {0, 2, 6, head_dim / 2, head_dim}) {
        if (n_dims > head_dim) {
          continue;
        }
        IntegerShape shape;
        shape.head_dim = head_dim;
        shape.n_dims = n_dims / 2 * 2;
        shape.mode = mode;
        shape.n_rows = head_dim == 80 ? 9 : 2;
        shape.n_blocks = 3;
        expect_equal(shape, static_cast<std::uint64_t>(head_dim + n_dims));
      }
    }
  }
  IntegerShape odd;
  odd.spec = {1, 6};
  odd.head_dim = 33;
  odd.n_dims = 10;
  expect_equal(odd, 5);
}

// Pairs that are not rotated, behind those that are and of the same form.
TEST_P(IntegerKernels, PairsThatStandStill) {
  for (const RopeMode mode : {RopeMode::kNeox, RopeMode::kNormal}) {
    for (const int n_still : {1, 8, 16, 24, 40, 64}) {
      for (const int n_rows : {1, 4, 7, 9, 20}) {
        IntegerShape shape;
        shape.head_dim = shape.n_dims = 128;
        shape.mode = mode;
        shape.n_still = n_still;
        shape.n_rows = n_rows;
        shape.n_blocks = 2;
        expect_equal(shape, static_cast<std::uint64_t>(n_still * 100 + n_rows));
      }
    }
  }
}

// Levels look for channels that stand side by side; where they do not, the result is the same.
TEST_P(IntegerKernels, PairsInAnyOrder) {
  for (const auto order : {IntegerShape::kMixedX, IntegerShape::kMixedY}) {
    for (const int group_dim : {4, 8}) {
      IntegerShape shape;
      shape.spec = {group_dim, 8};
      shape.order = order;
      shape.n_rows = 2;
      expect_equal(shape, 3);
    }
  }
}

// Angles: the order is the level's own, the numbers are rounded to nearest.
TEST_P(IntegerKernels, PackedAnglesAreRounded) {
  constexpr int kPairs = 16;
  Rng rng(1);
  ExactBuffer<float> values(2 * kPairs * kBlockCells);
  std::vector<int> want;
  for (float& value : values) {
    value = static_cast<float>(rng.uniform() * 2 - 1);
    want.push_back(static_cast<int>(std::nearbyint(value * 4096.0F)));
  }
  ExactBuffer<std::int16_t> packed(packed_angle_words(kPairs));
  kernel().pack_angles(values.data(), values.data() + kPairs * kBlockCells, kPairs, 4096.0F,
                       packed.data());
  std::vector<int> got(packed.begin(), packed.begin() + want.size());
  std::sort(got.begin(), got.end());
  std::sort(want.begin(), want.end());
  EXPECT_EQ(got, want);
}

TEST_P(IntegerKernels, RotatedQueriesAreRounded) {
  constexpr int kPadded = 32;
  Rng rng(2);
  ExactBuffer<float> pairs(3 * 2 * kPadded);
  ExactBuffer<float> cosines(kPadded);
  ExactBuffer<float> sines(kPadded);
  for (float& value : pairs) {
    value = static_cast<float>((rng.uniform() * 2 - 1) * 23000);
  }
  for (int i = 0; i < kPadded; i++) {
    const double angle = rng.uniform() * 7;
    cosines[i] = static_cast<float>(std::cos(angle));
    sines[i] = static_cast<float>(std::sin(angle));
  }
  ExactBuffer<std::uint32_t> packed(3 * kPadded);
  kernel().rotate_queries(pairs.data(), 3, kPadded, cosines.data(), sines.data(), packed.data());
  for (int r = 0; r < 3; r++) {
    for (int i = 0; i < kPadded; i++) {
      const double x = pairs[r * 2 * kPadded + i];
      const double y = pairs[r * 2 * kPadded + kPadded + i];
      const std::uint32_t word = packed[r * kPadded + i];
      // Half a unit, and what is rounded before: 2^15 has 2^-8 ulps.
      EXPECT_NEAR(static_cast<std::int16_t>(word), x * cosines[i] + y * sines[i], 0.51);
      EXPECT_NEAR(static_cast<std::int16_t>(word >> 16U), y * cosines[i] - x * sines[i], 0.51);
    }
  }
}

// softmax_bytes against its formula, in double, over two steps.
TEST_P(IntegerKernels, SoftmaxInBytes) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Rng rng(3);
  float maximum = -kInfinity;
  float sum = 0;
  double want_sum = 0;
  double want_maximum = -kInfinity;
  for (int step = 0; step < 3; step++) {
    ExactBuffer<float> scores = random_floats(kBlockCells, rng);
    ExactBuffer<float> mask(kBlockCells);
    double top = -kInfinity;
    for (int t = 0; t < kBlockCells; t++) {
      mask[t] = rng.uniform() < 0.3 ? -kInfinity : 0.25F;
      top = std::max(top, scores[t] * 2.0 + mask[t]);
    }
    float rescale = 0;
    float weight = 0;
    ExactBuffer<std::uint8_t> p(kBlockCells);
    kernel().softmax_bytes(
        {scores.data(), 1, 2.0F, mask.data(), 1, &maximum, &sum, &rescale, &weight, p.data()});
    double p_sum = 0;
    for (int t = 0; t < kBlockCells; t++) {
      EXPECT_NEAR(p[t], 127 * std::exp(scores[t] * 2.0 + mask[t] - top), 0.53) << t;
      p_sum += p[t];
    }
    const double now = std::max(want_maximum, top);
    EXPECT_NEAR(rescale, std::exp(want_maximum - now), 1e-6);
    EXPECT_NEAR(weight, std::exp(top - now) / 127, 1e-8);
    want_sum = want_sum * std::exp(want_maximum - now) + p_sum * std::exp(top - now) / 127;
    want_maximum = now;
    EXPECT_NEAR(maximum, now, 1e-6);
    EXPECT_NEAR(sum, want_sum, 1e-5 * want_sum);
  }
}

// Every exponent that the 16-bit arithmetic tells apart, in rows whose first score is their top.
TEST_P(IntegerKernels, EveryProbability) {
  constexpr int kPerRow = kBlockCells - 1;
  for (int first = -40000; first < 0; first += kPerRow) {
    ExactBuffer<float> scores(kBlockCells);
    ExactBuffer<float> mask(kBlockCells);
    std::fill(mask.begin(), mask.end(), 0.0F);
    const auto exponent = [&](int t) { return std::min(first + t, 0) / 4096.0; };
    scores[0] = 0;
    for (int t = 1; t < kBlockCells; t++) {
      scores[t] = static_cast<float>(exponent(t) * std::log(2.0));
    }
    float state[4] = {-1.0F, 0.0F, 0.0F, 0.0F};
    ExactBuffer<std::uint8_t> got(kBlockCells);
    ExactBuffer<std::uint8_t> want(kBlockCells);
    SoftmaxBytes call = {scores.data(), 1,         1.0F,      mask.data(), 1,
                         &state[0],     &state[1], &state[2], &state[3],   want.data()};
    kScalarTable.softmax_bytes(call);
    call.p = got.data();
    kernel().softmax_bytes(call);
    EXPECT_EQ(got[0], 127);
    for (int t = 1; t < kBlockCells; t++) {
      ASSERT_EQ(got[t], want[t]) << exponent(t);
      ASSERT_NEAR(got[t], 127 * std::exp2(exponent(t)), 0.513) << exponent(t);
    }
  }
}

TEST_P(IntegerKernels, RowThatSeesNothingChangesNothing) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const float before : {-kInfinity, 2.0F}) {
    ExactBuffer<float> scores(kBlockCells);
    ExactBuffer<float> mask(kBlockCells);
    std::fill(mask.begin(), mask.end(), -kInfinity);
    float maximum = before;
    float sum = 3;
    float rescale = 0;
    float weight = 9;
    ExactBuffer<std::uint8_t> p(kBlockCells);
    kernel().softmax_bytes(
        {scores.data(), 1, 2.0F, mask.data(), 1, &maximum, &sum, &rescale, &weight, p.data()});
    EXPECT_EQ(maximum, before);
    EXPECT_EQ(sum, 3.0F);
    EXPECT_EQ(rescale, 1.0F);
    EXPECT_EQ(weight, 0.0F);
    for (const std::uint8_t value : p) {
      EXPECT_EQ(value, 0);
    }
  }
}

}  // namespace
}  // namespace cqkv::kernels
