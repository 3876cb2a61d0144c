// Codes of rows in C++: reads a codebook, codes a row of each layer, and says how far the centroids
// are off. Usage: codes CODEBOOK.gguf
#include <cmath>
#include <cstdio>
#include <vector>

#include <cqkv/codebook.h>
#include <cqkv/codebook_file.h>

namespace {

double error_of(const cqkv::TensorCodebook& tensor) {
  std::vector<float> row(static_cast<std::size_t>(tensor.n_channels()));
  for (std::size_t i = 0; i < row.size(); i++) {
    row[i] = std::sin(static_cast<float>(i));
  }
  std::vector<std::uint16_t> codes(static_cast<std::size_t>(tensor.n_codes()));
  std::vector<float> decoded(row.size());
  tensor.encode(row.data(), 1, row.size(), codes.data());
  tensor.decode(codes.data(), 1, decoded.data(), decoded.size());
  double error = 0;
  for (std::size_t i = 0; i < row.size(); i++) {
    error += (row[i] - decoded[i]) * (row[i] - decoded[i]);
  }
  return std::sqrt(error / static_cast<double>(row.size()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: codes CODEBOOK.gguf\n", stderr);
    return 2;
  }
  const auto codebook = cqkv::read_codebook(argv[1]);
  if (!codebook.ok()) {
    std::fprintf(stderr, "%s\n", codebook.status().message().c_str());
    return 1;
  }
  for (std::size_t layer = 0; layer < codebook->layers.size(); layer++) {
    if (const cqkv::TensorCodebook* keys = codebook->layers[layer].get(cqkv::KvKind::kKey)) {
      std::printf("layer %zu: keys %s, %d codes a token, error %.3f\n", layer,
                  keys->spec().name().c_str(), keys->n_codes(), error_of(*keys));
    }
  }
}
