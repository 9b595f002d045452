#include "models/tokenizer/tokenizer_json.hpp"

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using Ids = std::vector<models::TokenId>;

namespace {

const std::string kFolder = KVATLAS_SOURCE_DIR "/tests/tokenizers/";

/// A tokenizer.json of three letters; `change` edits it.
template <class Change>
std::string refusal(const Change& change) {
  nlohmann::json file = nlohmann::json::parse(R"({
    "added_tokens": [{"id": 4, "content": "<s>", "special": true}, {"id": 5, "content": "ba", "special": false}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": false}]},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "abb": 3}, "merges": ["a b", ["ab", "b"]]}})");
  change(file);
  try {
    const auto tokenizer = models::parse_tokenizer_json(file.dump(), "t.json");
    std::string out = "read";
    for (const models::TokenId id : tokenizer->encode("abbabab")) out += cat(' ', id);
    return out;
  } catch (const Error& e) {
    return e.what();
  }
}

}  // namespace

TEST_CASE("a tokenizer.json gives the ids of the package that wrote it", "[golden]") {
  std::ifstream in(kFolder + "cases.json");
  const nlohmann::json cases = nlohmann::json::parse(in);
  for (const char* name : {"smollm", "llama-bpe"}) {
    CAPTURE(name);
    const auto tokenizer = models::load_tokenizer_json(kFolder + name + ".json");
    const nlohmann::json& ids = cases.at("rank").at(name);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::string hex = cases.at("texts")[i];
      std::string text;
      for (std::size_t c = 0; c < hex.size(); c += 2) text += static_cast<char>(std::stoi(hex.substr(c, 2), nullptr, 16));
      CAPTURE(text);
      CHECK(tokenizer->encode(text) == ids[i].get<Ids>());
    }
  }
}

TEST_CASE("added tokens, the begin token and both spellings of merges are read from a tokenizer.json", "[unit]") {
  CHECK(refusal([](auto&) {}) == "read 4 2 5 5 1");  // <s>, then "ba" is cut out twice: ab|ba|ba|b
  CHECK(refusal([](auto& f) { f["post_processor"] = nullptr; }) == "read 2 5 5 1");
  CHECK(refusal([](auto& f) { f["added_tokens"].erase(1), f.erase("post_processor"); }) == "read 3 2 2");
}

TEST_CASE("a tokenizer.json that is broken or of another kind is refused with the reason", "[unit]") {
  CHECK(refusal([](auto& f) { f["model"]["type"] = "Unigram"; }) == "t.json: the model is not BPE");
  CHECK(refusal([](auto& f) { f.erase("model"); }) == "t.json: model must be an object");
  CHECK(refusal([](auto& f) { f["model"]["vocab"]["c"] = 0; }) == "t.json: two tokens have id 0");
  CHECK(refusal([](auto& f) { f["model"]["vocab"]["c"] = -1; }) == "t.json: the id of token \"c\" must be a whole number below 16777216");
  CHECK(refusal([](auto& f) { f["model"]["vocab"]["c"] = 9000000; }) == "t.json: its 7 tokens have ids up to 9000000");
  CHECK(refusal([](auto& f) { f["model"]["merges"] = 1; }) == "t.json: model.merges must be a list");
  CHECK(refusal([](auto& f) { f["model"]["merges"][0] = 1; }) == "t.json: a merge must be a text or a pair of texts");
  CHECK(refusal([](auto& f) { f["model"]["merges"][0] = "b b"; }) == "t.json: merge \"b b\" needs \"bb\", which is no token");
  CHECK(refusal([](auto& f) { f["normalizer"]["type"] = "Lowercase"; }) == "t.json: a normalizer other than NFC");
  CHECK(refusal([](auto& f) { f["pre_tokenizer"] = nullptr; }) == "t.json: its pre-tokenizers are none of gpt-2, smollm, llama-bpe, qwen2 (or a synonym of these)");
  CHECK(refusal([](auto& f) { f["pre_tokenizer"] = {{"type", "Metaspace"}}; }) == "t.json: a pre-tokenizer other than ByteLevel, Digits and Split");
  CHECK(refusal([](auto& f) { f["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Split"}, {"pattern", {{"Regex", "x+"}}}}; }) ==
        "t.json: a pre-tokenizer whose expression is not known");
  CHECK(refusal([](auto& f) { f["post_processor"]["single"][0]["SpecialToken"]["id"] = "<b>"; }) == "t.json: texts begin with \"<b>\", which is no special token");
  CHECK_THROWS_WITH(models::parse_tokenizer_json("[1", "t.json"), "t.json is not JSON");
  CHECK_THROWS_WITH(models::parse_tokenizer_json("[]", "t.json"), "t.json must be a JSON object");
  CHECK_THROWS_WITH(models::parse_tokenizer_json(std::string(40, '['), "t.json"), "t.json nests its values deeper than 32 levels");
  CHECK_THROWS_AS(models::load_tokenizer_json("/nonexistent/t.json"), IoError);
}
