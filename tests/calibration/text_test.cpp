// Reading and cutting texts, with the byte vocabulary of the tiny model, in which a
// token is a byte: lengths and contents can be counted by hand.
#include "calibration/text.h"

#include <fstream>

#include <gtest/gtest.h>

#include "calibration/utf8.h"
#include "model_pass/tiny_model.h"

namespace cqkv {
namespace {

using testing::TinyModel;

class TextTest : public ::testing::Test {
 protected:
  TextTest() {
    llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  }

  static std::string write(const std::string& name, const std::string& text) {
    const auto path = testing::temporary_folder() / name;
    std::ofstream(path, std::ios::binary) << text;
    return path.string();
  }

  static Tokenizer tokenizer(bool add_bos, const std::string& chat_template = "") {
    TinyModel tiny;
    tiny.add_bos = add_bos;
    tiny.chat_template = chat_template;
    auto loaded = Tokenizer::load(tiny.write("model.gguf"));
    EXPECT_TRUE(loaded.ok()) << loaded.status().message();
    return *std::move(loaded);
  }

  // The text behind byte tokens; BOS as "^".
  static std::string text_of(const std::vector<Token>& tokens) {
    std::string text;
    for (const Token token : tokens) {
      text += token == 1 ? '^' : token == 259 ? ' ' : static_cast<char>(token - 3);
    }
    return text;
  }

  static std::vector<std::string> read(const TextOptions& options, bool add_bos = false) {
    const auto sequences = read_sequences(tokenizer(add_bos), options);
    EXPECT_TRUE(sequences.ok()) << sequences.status().message();
    std::vector<std::string> texts;
    for (std::size_t i = 0; sequences.ok() && i < sequences->size(); i++) {
      texts.push_back(text_of((*sequences)[i].tokens));
    }
    return texts;
  }

  static Status read_error(const TextOptions& options) {
    const auto sequences = read_sequences(tokenizer(false), options);
    EXPECT_FALSE(sequences.ok());
    return sequences.status();
  }
};

TEST_F(TextTest, CutsATextIntoSequences) {
  const auto file = write("a.txt", "abcdefghij");
  EXPECT_EQ(read({{file}, "text", 8, 4}), (std::vector<std::string>{"abcd", "efgh"}));
}

TEST_F(TextTest, BeginsEverySequenceWithBosIfTheModelDoes) {
  const auto file = write("a.txt", "abcdefghij");
  EXPECT_EQ(read({{file}, "text", 8, 4}, true), (std::vector<std::string>{"^abc", "^def"}));
}

TEST_F(TextTest, TakesTurnsAndLetsShortFilesDropOut) {
  const auto a = write("a.txt", "abcdefghijklm");
  const auto b = write("b.txt", "ABCDE");
  EXPECT_EQ(read({{a, b}, "text", 16, 4}),
            (std::vector<std::string>{"abcd", "ABCD", "efgh", "ijkl"}));
}

TEST_F(TextTest, MakesTheLastSequenceShorter) {
  const auto file = write("a.txt", "abcdefghij");
  EXPECT_EQ(read({{file}, "text", 6, 4}), (std::vector<std::string>{"abcd", "ef"}));
}

// Every second sequence of each file, whatever the number of files.
TEST_F(TextTest, RepeatsEverySecondSequence) {
  const auto a = write("a.txt", "abcdefghijklmnop");
  const auto b = write("b.txt", "ABCDEFGHIJKLMNOP");
  TextOptions options{{a}, "text", 20, 8};
  options.repeat = true;
  EXPECT_EQ(read(options), (std::vector<std::string>{"abcdefgh", "ijklijkl", "mnop"}));
  options = {{a, b}, "text", 32, 8};
  options.repeat = true;
  EXPECT_EQ(read(options),
            (std::vector<std::string>{"abcdefgh", "ABCDEFGH", "ijklijkl", "IJKLIJKL"}));
}

// From half a sequence back, a quarter, half, an eighth.
TEST_F(TextTest, RepeatsFromSeveralDistances) {
  const auto file = write("a.txt", "........abcd........efgh........ijkl........mnop");
  TextOptions options{{file}, "text", 64, 8};
  options.repeat = true;
  const std::string plain = "........";
  EXPECT_EQ(read(options), (std::vector<std::string>{plain, "abcdabcd", plain, "efefghgh", plain,
                                                     "ijklijkl", plain, "mmnnoopp"}));
}

// Whole ones behind the rest, half of which repeat, of every file some.
TEST_F(TextTest, FurtherSequencesFollow) {
  const auto a = write("a.txt", "abcdefghijklmnopqrstuvwxyz0123456789");
  const auto b = write("b.txt", "ABCDEFGHIJKLMNOPQRSTUVWXYZ");
  TextOptions options{{a, b}, "text", 12, 8};
  options.n_further = 4;
  options.repeat = true;
  EXPECT_EQ(read(options), (std::vector<std::string>{"abcdefgh", "ABCD", "ijklmnop", "EFGHEFGH",
                                                     "qrqrstst", "IJKLMNOP"}));
  options.repeat = false;
  options.n_tokens = 9;  // a rest of one token counts for nothing
  EXPECT_EQ(read(options),
            (std::vector<std::string>{"abcdefgh", "ABCDEFGH", "ijklmnop", "IJKLMNOP", "qrstuvwx"}));
  options.n_further = 9;
  const Status status = read_error(options);
  EXPECT_NE(status.message().find("want 9 to learn from and 72 to choose"), std::string::npos)
      << status.message();
}

// For any number of files, and also if they are few.
TEST_F(TextTest, HalfOfTheFurtherSequencesRepeat) {
  std::string text;
  for (int i = 0; i < 400; i++) {
    text += static_cast<char>('a' + i % 26);
  }
  const Tokenizer tokens = tokenizer(false);
  std::vector<std::string> files;
  for (int n_files = 1; n_files <= 8; n_files++) {
    files.push_back(write(std::to_string(n_files) + ".txt", text));
    for (const std::size_t n_further : {2U, 4U, 8U}) {
      TextOptions options{files, "text", 64, 8};
      options.repeat = true;
      options.n_further = n_further;
      const auto sequences = read_sequences(tokens, options);
      ASSERT_TRUE(sequences.ok()) << sequences.status().message();
      ASSERT_EQ(sequences->size(), 8 + n_further);
      EXPECT_EQ(std::count_if(sequences->begin() + 8, sequences->end(),
                              [](const Sequence& sequence) { return sequence.repeats; }),
                n_further / 2)
          << n_files;
    }
  }
}

TEST_F(TextTest, KeepsLineBreaksOfText) {
  const auto file = write("a.txt", "a\n\nbc\r\nd");
  EXPECT_EQ(read({{file}, "text", 8, 8}), (std::vector<std::string>{"a\n\nbc\r\nd"}));
}

// Markers that the vocabulary has as special tokens are those: here BOS.
TEST_F(TextTest, WritesConversationsAsTheModelDoes) {
  const auto file = write("a.jsonl", R"({"q": "1+1", "a": "2"})"
                                     "\n"
                                     R"({"q": "<s>", "a": "4"})");
  TextOptions options{{file}, "q,a"};
  options.chat = true;
  options.n_tokens = options.n_ctx = 70;
  const Tokenizer chatml = tokenizer(false, "<|im_start|>");
  const std::string wanted =
      "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n";
  EXPECT_EQ(chatml.chat({"1+1", "2"}), wanted);
  auto sequences = read_sequences(chatml, options);
  ASSERT_TRUE(sequences.ok()) << sequences.status().message();
  EXPECT_EQ(text_of((*sequences)[0].tokens), (wanted + "<|im_start|>user").substr(0, 70));
  EXPECT_EQ(text_of(*chatml.tokenize_chat("a<s>b")), "a^b");
  EXPECT_EQ(text_of(*chatml.tokenize("a<s>b")), "a<s>b");
}

// A template that libllama cannot write is as none.
TEST_F(TextTest, ConversationsAreTextWithoutATemplate) {
  const auto file = write("a.jsonl", R"({"q": "1+1", "a": "2"})"
                                     "\n"
                                     R"({"q": "2+2", "a": "4"})");
  TextOptions options{{file}, "q,a"};
  options.chat = true;
  options.n_tokens = options.n_ctx = 12;
  for (const char* chat_template : {"", "{{ something unknown }}"}) {
    const Tokenizer tokens = tokenizer(false, chat_template);
    EXPECT_EQ(tokens.chat({"1+1", "2"}), "");
    auto sequences = read_sequences(tokens, options);
    ASSERT_TRUE(sequences.ok()) << sequences.status().message();
    EXPECT_EQ(text_of((*sequences)[0].tokens), "1+1\n2\n\n2+2\n4");
  }
}

TEST_F(TextTest, JoinsJsonDocumentsAndFields) {
  const auto file =
      write("a.jsonl", "{\"q\": \"1+1\", \"a\": \"2\"}\n\n{\"a\": \"\\u0034\", \"q\": \"2+2\"}\n");
  EXPECT_EQ(read({{file}, "q,a", 12, 12}), (std::vector<std::string>{"1+1\n2\n\n2+2\n4"}));
}

// Nothing may be lost or doubled between pieces.
TEST_F(TextTest, ReadsLongFilesInPieces) {
  std::string text;
  for (int i = 0; text.size() < 200'000; i++) {
    text += std::to_string(i) + (i % 3 == 0 ? "\n" : ",");
  }
  const auto file = write("a.txt", text);
  const std::size_t n = text.size();
  const auto sequences = read({{file}, "text", n, n});
  ASSERT_EQ(sequences.size(), 1U);
  EXPECT_TRUE(sequences[0] == text);
}

TEST_F(TextTest, SaysHowManyTokensAreMissing) {
  const auto file = write("a.txt", "abcdefghij");
  const Status status = read_error({{file}, "text", 100, 4});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("got 8 tokens"), std::string::npos) << status.message();
  EXPECT_NE(status.message().find("want 100"), std::string::npos) << status.message();
}

TEST_F(TextTest, NamesTheLineOfBadJson) {
  const auto file = write("a.jsonl", "{\"text\": \"abc\"}\n{\"text\": \n");
  const Status status = read_error({{file}, "text", 100, 4});
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_NE(status.message().find("a.jsonl, line 2"), std::string::npos) << status.message();
}

TEST_F(TextTest, NamesTheMissingField) {
  const auto file = write("a.jsonl", "{\"text\": \"abc\"}\n{\"test\": \"abc\"}\n");
  const Status status = read_error({{file}, "text", 100, 4});
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_NE(status.message().find("line 2: want a string field 'text'"), std::string::npos)
      << status.message();
}

TEST_F(TextTest, RefusesFieldsThatAreNoStrings) {
  const auto file = write("a.jsonl", "{\"text\": 1}\n");
  EXPECT_NE(read_error({{file}, "text", 100, 4}).message().find("got number"), std::string::npos);
}

TEST_F(TextTest, ToleratesInvalidUtf8) {
  const auto text = write("a.txt", "ab\xFF\xC3(cdef");
  const auto json = write("a.jsonl", "{\"text\": \"ab\xFF\xC3(cdef\"}\n");
  EXPECT_EQ(read({{text}, "text", 4, 2}).size(), 2U);
  EXPECT_EQ(read({{json}, "text", 4, 2}).size(), 2U);
}

TEST_F(TextTest, LeavesSpecialTokensAsText) {
  const auto file = write("a.txt", "<s></s>");
  EXPECT_EQ(read({{file}, "text", 7, 7}), (std::vector<std::string>{"<s></s>"}));
}

TEST_F(TextTest, RefusesMissingFilesAndBadCounts) {
  const auto file = write("a.txt", "abcdefghij");
  EXPECT_EQ(read_error({{"/nonexistent.txt"}, "text", 8, 4}).code(), StatusCode::kNotFound);
  EXPECT_NE(read_error({{"/"}, "text", 8, 4}).message().find("is a folder"), std::string::npos);
  EXPECT_EQ(read_error({{}, "text", 8, 4}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(read_error({{file}, "text", 8, 1}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(read_error({{file}, "text", 0, 4}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(read_error({{file}, "", 8, 4}).code(), StatusCode::kInvalidArgument);
}

TEST(Utf8Test, KeepsWellFormedText) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid_utf8(text), text);
}

TEST(Utf8Test, ReplacesEachBadByte) {
  const std::string bad = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid_utf8("a\xFFz"), "a" + bad + "z");
  EXPECT_EQ(replace_invalid_utf8("\xC0\xAF"), bad + bad);            // overlong
  EXPECT_EQ(replace_invalid_utf8("\xED\xA0\x80"), bad + bad + bad);  // surrogate
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80"), bad + bad + bad + bad);
  EXPECT_EQ(replace_invalid_utf8("\xE2\x82"), bad + bad);  // cut off
}

}  // namespace
}  // namespace cqkv
