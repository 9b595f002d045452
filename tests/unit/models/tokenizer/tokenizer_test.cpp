#include "models/tokenizer/tokenizer.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/support/gguf_writer.hpp"

using namespace kvatlas;
using kvatlas::testing::as_bytes;
using kvatlas::testing::GgufWriter;
using models::TokenId;
using models::Tokenizer;
using models::TokenKind;
using Ids = std::vector<TokenId>;

namespace {

constexpr models::EncodeOptions kPlain{.add_special = false};

std::string file_text(const std::string& name) {
  std::ifstream in(std::string(KVATLAS_SOURCE_DIR "/tests/tokenizers/") + name, std::ios::binary);
  REQUIRE(in);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::unique_ptr<Tokenizer> load(const std::string& file) {
  const std::vector<std::byte> bytes = as_bytes(file);  // a tokenizer keeps nothing of the file
  return models::load_tokenizer(models::parse_gguf(bytes, "m.gguf"));
}

std::string refusal(const GgufWriter& writer) {
  try {
    load(writer.bytes());
  } catch (const Error& e) {
    return e.what();
  }
  return "read";
}

/// A vocabulary with every byte, some letters and words; ids as in the comments.
struct Small {
  std::vector<std::string> texts{"<unk>", "<s>", "</s>", "\n\n"};  // 0 to 3
  std::vector<std::int32_t> kinds{2, 3, 3, 4};
  std::vector<float> scores{0, 0, 0, 0};

  Small() {
    for (int b = 0; b < 256; ++b) add(cat("<0x", "0123456789ABCDEF"[b / 16], "0123456789ABCDEF"[b % 16], ">"), 6, 0);  // 4 to 259
    for (const char* letter : {"\xE2\x96\x81", "a", "b", "c"}) add(letter, 1, -100);                                    // 260 to 263
    add("ab", 1, -2);                // 264
    add("bc", 1, -1);                // 265
    add("abc", 1, -3);               // 266
    add("\xE2\x96\x81" "a", 1, -4);  // 267
    add("aa", 1, -5);                // 268
  }
  void add(const std::string& text, int kind, float score) {
    texts.push_back(text);
    kinds.push_back(kind);
    scores.push_back(score);
  }
  GgufWriter writer() const {
    GgufWriter out;
    out.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", texts).i32s("tokenizer.ggml.token_type", kinds);
    return out.f32s("tokenizer.ggml.scores", scores);
  }
};

Ids bytes_of(std::string_view text) {
  Ids out;
  for (const char c : text) out.push_back(4 + static_cast<unsigned char>(c));
  return out;
}

}  // namespace

TEST_CASE("BPE by score merges the best pair first, the left one of equals, and falls back to bytes", "[unit]") {
  const auto tokenizer = load(Small().writer().boolean("tokenizer.ggml.add_space_prefix", false).boolean("tokenizer.ggml.add_bos_token", false).bytes());
  CHECK(tokenizer->encode("abc") == Ids{266});       // bc before ab, then abc
  CHECK(tokenizer->encode("ab") == Ids{264});
  CHECK(tokenizer->encode("aaa") == Ids{268, 261});  // the left pair of equals
  CHECK(tokenizer->encode(" a") == Ids{267});
  CHECK(tokenizer->encode("a\n\n\nb") == Ids{261, 3, 4 + '\n', 262});  // the user-defined token is cut out first
  CHECK(tokenizer->encode("\xC3\xA9") == bytes_of("\xC3\xA9"));
  CHECK(tokenizer->encode("<s>") == bytes_of("<s>"));  // control tokens are text unless asked for
  CHECK(tokenizer->encode("<s>", {.parse_special = true}) == Ids{1});
  CHECK(tokenizer->encode("<0x41>") == bytes_of("<0x41>"));  // a byte token's name is text too
  CHECK(tokenizer->encode("").empty());
}

TEST_CASE("a space that a broken character might swallow and a written U+2581 both come back", "[unit]") {
  const auto tokenizer = load(Small().writer().bytes());
  for (const std::string_view text : {"\xC3 a", "\xF0\x9F a", "\xE2\x96\x81", "a\xE2\x96\x81 b", "\xE2\x96", " \xE2\x96\x81", "\xC3\xE2\x96\x81", "\xF0\n\n"}) {
    CAPTURE(text);
    CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  }
  CHECK(tokenizer->encode("\xE2\x96\x81", kPlain) == Ids{260, 4 + 0xE2, 4 + 0x96, 4 + 0x81});
}

TEST_CASE("a prefix space opens a text and what follows a special token, and decoding takes it away", "[unit]") {
  const auto tokenizer = load(Small().writer().bytes());  // both default to yes
  CHECK(tokenizer->encode("a") == Ids{1, 267});
  CHECK(tokenizer->encode("ba\n\nab", kPlain) == Ids{260, 262, 261, 3, 260, 264});
  for (const std::string_view text : {"a", " a", "  a", "\n\na", "\n\n", "a\n\n b", ""}) CHECK(tokenizer->decode(tokenizer->encode(text)) == text);
  CHECK(tokenizer->decode(Ids{1, 267}, true) == "<s>a");
}

TEST_CASE("byte-level BPE takes merges in the order of their list and never across pieces", "[unit]") {
  GgufWriter writer;
  writer.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "gpt-2");
  writer.texts("tokenizer.ggml.tokens", {"a", "b", "c", "\xC4\xA0", "bc", "ab", "\xC4\xA0" "a", "\xC4\xA0" "ab", "<|end|>"});  // U+0120 is a space
  writer.i32s("tokenizer.ggml.token_type", {1, 1, 1, 1, 1, 1, 1, 1, 3}).texts("tokenizer.ggml.merges", {"b c", "a b", "\xC4\xA0 a", "\xC4\xA0" "a b"});
  const auto tokenizer = load(writer.bytes());
  CHECK(tokenizer->encode("abc") == Ids{0, 4});
  CHECK(tokenizer->encode("ab") == Ids{5});
  CHECK(tokenizer->encode(" ab") == Ids{3, 5});  // a b comes before its space is joined to a
  CHECK(tokenizer->encode(" a") == Ids{6});
  CHECK(tokenizer->encode("a  a") == Ids{0, 3, 6});
  CHECK(tokenizer->decode(Ids{6, 4, 8}) == " abc");
  CHECK(tokenizer->decode(Ids{6, 4, 8}, true) == " abc<|end|>");
  CHECK(tokenizer->encode("b<|end|>b", {.parse_special = true}) == Ids{1, 8, 1});
  CHECK_THROWS_WITH(tokenizer->encode("ax"), "the text holds byte 120, which no token of this vocabulary spells");
  CHECK(tokenizer->encode("axb", {.drop_unspellable = true}) == Ids{0, 1});  // and nothing is merged across the gap
  CHECK_THROWS_WITH(tokenizer->decode(Ids{9}), "token id 9, must be 0 to 8");
  CHECK_THROWS_AS(tokenizer->decode(Ids{-1}), InvalidArgument);
}

TEST_CASE("a byte tokenizer's tokens are the bytes", "[unit]") {
  const std::vector<std::string_view> names{"<bos>", "<pad>"};
  const auto tokenizer = models::make_byte_tokenizer(names, 0);
  CHECK(tokenizer->encode("A\xFF") == Ids{256, 65, 255});
  CHECK(tokenizer->decode(Ids{256, 65, 255, 257}) == "A\xFF");
  CHECK(tokenizer->encode("<pad>", kPlain).size() == 5);
  CHECK(tokenizer->encode("<pad>", {.add_special = false, .parse_special = true}) == Ids{257});
  CHECK(models::make_byte_tokenizer({}, std::nullopt)->encode("hi") == Ids{'h', 'i'});
  CHECK_THROWS_AS(models::make_byte_tokenizer(names, 2), InvalidArgument);
}

TEST_CASE("special tokens are cut longest first, wherever they stand", "[unit]") {
  models::SpecialTokens special;
  special.add("abc", 1);
  special.add("bcde", 2);
  special.add("aa", 3);
  special.add("a", 4);
  const auto cut = [&](std::string_view text) {
    std::string out, whole;
    for (const models::Fragment& f : special.split(text)) {
      out += cat(out.empty() ? "" : " ", f.id == models::kNoToken ? std::string(f.text) : cat(f.id));
      whole += f.text;
    }
    CHECK(whole == text);
    return out;
  };
  CHECK(cut("abcde") == "4 2");
  CHECK(cut("abcd") == "1 d");
  CHECK(cut("aaa") == "3 4");
  CHECK(cut("xabcx") == "x 1 x");
  CHECK(cut("") == "");
  CHECK(cut("xyz") == "xyz");
}

TEST_CASE("special tokens are cut as repeated searches would cut them", "[property]") {
  const std::uint32_t seed = 20261122;
  CAPTURE(seed);
  std::mt19937 random(seed);
  const auto word = [&](std::size_t most) {
    std::string out;
    const std::size_t n = 1 + random() % most;
    for (std::size_t i = 0; i < n; ++i) out += static_cast<char>('a' + random() % 2);
    return out;
  };
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> tokens;
    models::SpecialTokens special;
    for (int t = 0; t < 6; ++t) {
      const std::string text = word(5);
      if (std::find(tokens.begin(), tokens.end(), text) != tokens.end()) continue;
      special.add(text, static_cast<TokenId>(tokens.size()));
      tokens.push_back(text);
    }
    const std::string text = word(40);
    // The definition: for each length, longest first, cut the leftmost token of that length out of what is left, again and again.
    std::vector<std::size_t> order(text.size(), 0);
    std::string left = text;
    std::size_t cuts = 0;
    for (std::size_t bytes = 5; bytes > 0; --bytes)
      for (std::size_t at = 0; at + bytes <= left.size(); ++at)
        if (std::find(tokens.begin(), tokens.end(), left.substr(at, bytes)) != tokens.end()) {
          left.replace(at, bytes, std::string(bytes, '#'));
          ++cuts;
          order[at] = bytes;
        }
    std::size_t at = 0, found = 0;
    for (const models::Fragment& f : special.split(text)) {
      if (f.id != models::kNoToken) {
        CHECK(order[at] == f.text.size());
        CHECK(tokens[static_cast<std::size_t>(f.id)] == f.text);
        ++found;
      }
      at += f.text.size();
    }
    CHECK(found == cuts);
    CHECK(at == text.size());
  }
}

TEST_CASE("any bytes come back from every tokenizer", "[property]") {
  const std::uint32_t seed = 20261123;
  CAPTURE(seed);
  std::mt19937 random(seed);
  std::vector<std::unique_ptr<Tokenizer>> all;
  for (const char* name : {"rank.gguf", "score.gguf", "score_prefix.gguf"}) all.push_back(load(file_text(name)));
  all.push_back(models::make_byte_tokenizer({}, std::nullopt));
  const std::vector<std::string> parts{" ", "  ", "\n\n", "    ", "<table>", "->", "the", "\xE2\x96\x81", "\xE2\x96", "\xC3", "\xC3\xA9", "\xF0\x9F\x98\x80", "<s>", "<0x41>", "'s", "12", std::string(1, '\0')};
  for (int round = 0; round < 400; ++round) {
    std::string text;
    const std::size_t n = random() % 40;
    for (std::size_t i = 0; i < n; ++i) {
      if (random() % 2 == 0) {
        text += parts[random() % parts.size()];
      } else {
        text += static_cast<char>(random() % 256);
      }
    }
    for (std::size_t t = 0; t < all.size(); ++t) {
      CAPTURE(t, round);
      CHECK(all[t]->decode(all[t]->encode(text)) == text);
    }
  }
}

TEST_CASE("ids of mixed texts are those of independent tokenizers", "[golden]") {
  const nlohmann::json cases = nlohmann::json::parse(file_text("cases.json"));
  std::vector<std::string> texts;
  for (const std::string hex : cases.at("texts")) {
    std::string text;
    for (std::size_t i = 0; i < hex.size(); i += 2) text += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    texts.push_back(text);
  }
  const auto check = [&](const Tokenizer& tokenizer, const nlohmann::json& ids) {
    REQUIRE(ids.size() == texts.size());
    for (std::size_t i = 0; i < texts.size(); ++i) {
      CAPTURE(texts[i]);
      CHECK(tokenizer.encode(texts[i], kPlain) == ids[i].get<Ids>());
      CHECK(tokenizer.decode(ids[i].get<Ids>()) == texts[i]);
    }
  };
  for (const char* name : {"score", "score_prefix"}) {
    CAPTURE(name);
    check(*load(file_text(cat(name, ".gguf"))), cases.at(name));
  }
  const std::vector<std::byte> bytes = as_bytes(file_text("rank.gguf"));
  const models::Gguf file = models::parse_gguf(bytes, "rank.gguf");
  const std::vector<std::string_view> merges = *file.texts("tokenizer.ggml.merges");
  for (const char* pre : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    CAPTURE(pre);
    check(*models::make_rank_tokenizer(models::read_vocabulary(file), merges, pre, std::string_view(pre) == "llama-bpe"), cases.at("rank").at(pre));
  }
}

TEST_CASE("vocabularies that contradict themselves are refused", "[unit]") {
  const auto base = [] { return GgufWriter().text("tokenizer.ggml.model", "llama"); };
  CHECK(refusal(GgufWriter()) == "m.gguf: tokenizer.ggml.model is missing");
  CHECK(refusal(GgufWriter().text("tokenizer.ggml.model", "bert")) ==
        "m.gguf: tokenizer.ggml.model is \"bert\", must be llama (BPE by score) or gpt2 (byte-level BPE)");
  CHECK(refusal(base()) == "m.gguf: tokenizer.ggml.tokens lists 0 tokens, must be 1 to 16777216");
  CHECK(refusal(base().texts("tokenizer.ggml.tokens", {"a"})) == "m.gguf: tokenizer.ggml.scores lists 0 scores, must be as many as there are tokens (1)");
  CHECK(refusal(base().texts("tokenizer.ggml.tokens", {"a"}).i32s("tokenizer.ggml.token_type", {1, 1})) ==
        "m.gguf: tokenizer.ggml.token_type lists 2 kinds, must be as many as there are tokens (1)");
  CHECK(refusal(base().texts("tokenizer.ggml.tokens", {"a"}).i32s("tokenizer.ggml.token_type", {7})) ==
        "m.gguf: tokenizer.ggml.token_type of token 0 is 7, must be 1 to 6");
  CHECK(refusal(base().texts("tokenizer.ggml.tokens", {"a"}).u32("tokenizer.ggml.bos_token_id", 1)) ==
        "m.gguf: \"tokenizer.ggml.bos_token_id\" is 1, must be an id below 1");
  const GgufWriter one = base().texts("tokenizer.ggml.tokens", {"a"});
  CHECK(refusal(GgufWriter(one).f32s("tokenizer.ggml.scores", {std::numeric_limits<float>::quiet_NaN()}).boolean("tokenizer.ggml.add_bos_token", false)) ==
        "m.gguf: the score of token 0 is no number");
  CHECK(refusal(GgufWriter(one).f32s("tokenizer.ggml.scores", {0})) == "m.gguf: the tokenizer asks for a token that begins a text, but names none");
  CHECK(refusal(base().texts("tokenizer.ggml.tokens", {std::string(5000, 'x')}).f32s("tokenizer.ggml.scores", {0}).boolean("tokenizer.ggml.add_bos_token", false)) ==
        "m.gguf: token 0 has 5000 bytes, must be at most 4096");
  const auto ranks = [](const std::vector<std::string>& merges) {
    return GgufWriter().text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "qwen2").texts("tokenizer.ggml.tokens", {"a", "b", "ab"}).texts(
        "tokenizer.ggml.merges", merges);
  };
  CHECK(refusal(ranks({"a b"})) == "read");
  CHECK(refusal(ranks({"ab"})) == "m.gguf: merge 0 is \"ab\", must be two tokens with a space between");
  CHECK(refusal(ranks({"a b", "a "})) == "m.gguf: merge 1 is \"a \", must be two tokens with a space between");
  CHECK(refusal(ranks({"a b c"})) == "m.gguf: merge 0 is \"a b c\", must be two tokens with a space between");
  CHECK(refusal(ranks({"b a"})) == "m.gguf: merge \"b a\" needs \"ba\", which is no token");
  CHECK(refusal(GgufWriter().text("tokenizer.ggml.model", "gpt2").texts("tokenizer.ggml.tokens", {"a"})) == "m.gguf: tokenizer.ggml.merges is missing");
  CHECK(refusal(GgufWriter().text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "tekken").texts("tokenizer.ggml.tokens", {"a"}).texts(
            "tokenizer.ggml.merges", {})) == "pre-tokenizer \"tekken\", must be one of gpt-2, smollm, llama-bpe, qwen2 (or a synonym of these)");
}
