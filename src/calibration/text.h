// Calibration texts: reading .txt and .jsonl files and cutting their tokens into
// sequences. Nothing about models but the tokenizer is known here.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cqkv/status.h"

#include "calibration/tokenizer.h"
#include "model_pass/kv_rows.h"

namespace cqkv {

struct TextOptions {
  /// Read in this order, round robin. Names ending in .jsonl hold one JSON object a
  /// line; all others are plain text.
  std::vector<std::string> files;
  /// Fields of a .jsonl object, separated by commas; their strings are joined by a
  /// line break and objects by an empty line: "question,answer".
  std::string json_field = "text";
  std::size_t n_tokens = 32768;  ///< In all sequences together, BOS included.
  std::size_t n_ctx = 2048;      ///< Of one sequence, BOS included.
  /// Every second sequence of a file says what it says twice, passage by passage: passages of half
  /// a sequence, a quarter, a half, an eighth and so on in turns, each again right after itself.
  /// What a cache loses first is copying from far back, which ordinary texts do too rarely to be
  /// learned from.
  bool repeat = false;
  /// So many whole sequences more, the last of the result, for what is not to be judged by texts
  /// that were learned from. With `repeat` half of them repeat, whatever file they are of.
  std::size_t n_further = 0;
  /// The fields are turns of a conversation, the user's first, and are written as the model's chat
  /// template has them; joined as above if it has none (Tokenizer::chat).
  bool chat = false;
};

/// Tokens of one file in their order, BOS before them if the model adds it.
struct Sequence {
  std::size_t file = 0;  ///< Index into TextOptions::files.
  std::vector<Token> tokens;
  bool repeats = false;  ///< Says everything twice.
};

/// Sequences of n_ctx tokens, of the n_tokens the last one shorter if n_ctx does not divide them;
/// then the further ones.
///
/// Sequence 0 comes from the first file, sequence 1 from the second, and so on in
/// turns; a file that cannot fill a sequence drops out, so that no sequence mixes two
/// files. If the model adds BOS, every sequence begins with it (libllama's programs do
/// the same; the float study of the project did not, which its figures must say).
/// Files are read only as far as needed, in pieces of about 32 KiB cut at line ends, where tokens
/// that would span the cut are split.
///
/// @return kInvalidArgument if the files are too short together (got, want), counts
///   are illegal or no file is given; kNotFound or kIoError for unreadable files;
///   kCorrupt, naming file and line, for bad JSON or a missing field.
Result<std::vector<Sequence>> read_sequences(const Tokenizer& tokenizer,
                                             const TextOptions& options);

}  // namespace cqkv
