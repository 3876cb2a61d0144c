// LossHead: chunks of tokens outside, pieces of the vocabulary inside; see loss_head.h.
#include "model_pass/loss_head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace cqkv {
namespace {

constexpr std::size_t kRows = 96;
constexpr std::size_t kLogitFloats = std::size_t{64} << 20U;  // 256 MiB
constexpr std::size_t kVocabPiece = 4096;  // rows of the output weights unpacked at a time

}  // namespace

// Tokens [first, first + n) of a sequence.
struct LossHead::Chunk {
  std::size_t first;
  std::size_t n;
};

template <typename Function>
void LossHead::for_rows(const Chunk& chunk, const Function& function) {
  const auto n_strips = static_cast<int>((chunk.n + kRows - 1) / kRows);
  parallel_.run(n_strips, [&](int task, int) {
    const std::size_t first = static_cast<std::size_t>(task) * kRows;
    function(first, std::min(kRows, chunk.n - first));
  });
}

void LossHead::compute_logits(const Chunk& chunk) {
  const std::size_t n_embd = model_.shape.n_embd;
  const std::size_t n_vocab = model_.shape.n_vocab;
  const auto stride = static_cast<std::ptrdiff_t>(n_embd);
  for (std::size_t piece = 0; piece < n_vocab; piece += kVocabPiece) {
    const std::size_t n = std::min(kVocabPiece, n_vocab - piece);
    const PackRequest request{&model_.output.weight, &weights_, piece, n};
    pack_weights({&request, 1}, Direction::kForward, table_, parallel_);
    for_rows(chunk, [&](std::size_t first, std::size_t n_rows) {
      table_.multiply({{norm_.data() + first * n_embd, stride, 1},
                       n_rows,
                       weights_.view(),
                       0,
                       0,
                       logits_.data() + first * n_vocab + piece,
                       n_vocab,
                       false});
    });
  }
}

// Turns logits into probabilities minus one at the target: the gradient by the logits.
double LossHead::compute_losses(const Chunk& chunk, std::span<const Token> tokens,
                                bool with_gradient) {
  const std::size_t n_vocab = model_.shape.n_vocab;
  const std::vector<float>& bias = model_.output.bias;
  losses_.resize(chunk.n);
  for_rows(chunk, [&](std::size_t first, std::size_t n_rows) {
    for (std::size_t i = first; i < first + n_rows; i++) {
      float* row = logits_.data() + i * n_vocab;
      for (std::size_t j = 0; j < bias.size(); j++) {
        row[j] += bias[j];
      }
      const auto target = static_cast<std::size_t>(tokens[chunk.first + i + 1]);
      const float logit = row[target];
      losses_[i] = static_cast<double>(table_.softmax(row, n_vocab, 1.0F)) - logit;
      if (with_gradient) {
        row[target] -= 1.0F;
      }
    }
  });
  return std::accumulate(losses_.begin(), losses_.end(), 0.0);
}

void LossHead::back(const Chunk& chunk, const float* hidden, float* gradient) {
  const std::size_t n_embd = model_.shape.n_embd;
  const std::size_t n_vocab = model_.shape.n_vocab;
  norm_gradient_.resize(chunk.n * n_embd);
  const auto stride = static_cast<std::ptrdiff_t>(n_vocab);
  for (std::size_t piece = 0; piece < n_vocab; piece += kVocabPiece) {
    const std::size_t n = std::min(kVocabPiece, n_vocab - piece);
    const PackRequest request{&model_.output.weight, &weights_, piece, n};
    pack_weights({&request, 1}, Direction::kBackward, table_, parallel_);
    for_rows(chunk, [&](std::size_t first, std::size_t n_rows) {
      table_.multiply({{logits_.data() + first * n_vocab + piece, stride, 1},
                       n_rows,
                       weights_.view(),
                       0,
                       0,
                       norm_gradient_.data() + first * n_embd,
                       n_embd,
                       piece > 0});
    });
  }
  for_rows(chunk, [&](std::size_t first, std::size_t n_rows) {
    for (std::size_t i = first; i < first + n_rows; i++) {
      const std::size_t row = (chunk.first + i) * n_embd;
      std::memset(gradient + row, 0, n_embd * sizeof(float));
      table_.rms_norm_back(hidden + row, model_.output_norm.data(),
                           norm_gradient_.data() + i * n_embd, gradient + row, n_embd,
                           model_.shape.rms_epsilon);
    }
  });
}

double LossHead::run(std::span<const Token> tokens, const float* hidden, float* gradient) {
  const std::size_t n_embd = model_.shape.n_embd;
  const std::size_t n_predicted = tokens.size() - 1;
  const std::size_t most = kLogitFloats / model_.shape.n_vocab / kRows * kRows;
  const std::size_t n_chunk = std::min(std::max(most, kRows), n_predicted);
  norm_.resize(n_chunk * n_embd);
  logits_.resize(n_chunk * model_.shape.n_vocab);
  double loss = 0.0;
  for (std::size_t first = 0; first < n_predicted; first += n_chunk) {
    const Chunk chunk{first, std::min(n_chunk, n_predicted - first)};
    for_rows(chunk, [&](std::size_t row, std::size_t n_rows) {
      for (std::size_t i = row; i < row + n_rows; i++) {
        table_.rms_norm(hidden + (first + i) * n_embd, model_.output_norm.data(),
                        norm_.data() + i * n_embd, n_embd, model_.shape.rms_epsilon);
      }
    });
    compute_logits(chunk);
    loss += compute_losses(chunk, tokens, gradient != nullptr);
    if (gradient != nullptr) {
      back(chunk, hidden, gradient);
    }
  }
  if (gradient != nullptr) {  // nothing follows the last token
    std::memset(gradient + n_predicted * n_embd, 0, n_embd * sizeof(float));
  }
  return loss;
}

}  // namespace cqkv
