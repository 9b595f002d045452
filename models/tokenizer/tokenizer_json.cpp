#include "models/tokenizer/tokenizer_json.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/errors.hpp"
#include "models/files/mapped_file.hpp"
#include "models/files/printable.hpp"
#include "models/tokenizer/pretokenizer.hpp"

namespace kvatlas::models {

namespace {

using nlohmann::json;

constexpr int kMaxDepth = 32;  // copies and destructors of deeper JSON would exhaust the stack
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 24;

// How the files of Llama 3 and Qwen 2 write their expressions.
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

class Reader {
 public:
  Reader(const json& file, std::string_view name) : file_(file), name_(name) {}

  std::unique_ptr<Tokenizer> read() const {
    const json& model = object(file_, "model");
    if (const json* type = find(model, "type"); type != nullptr && *type != "BPE") throw Unsupported(cat(name_, ": the model is not BPE"));
    Vocabulary vocabulary = read_tokens(model);
    read_begin(vocabulary);
    std::vector<std::string> merges;
    const json* list = find(model, "merges");
    if (list == nullptr || !list->is_array()) fail("model.merges must be a list");
    for (const json& merge : *list) {
      if (merge.is_string()) {
        merges.push_back(merge.get<std::string>());
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        merges.push_back(cat(merge[0].get<std::string>(), ' ', merge[1].get<std::string>()));
      } else {
        fail("a merge must be a text or a pair of texts");
      }
    }
    const std::vector<std::string_view> views(merges.begin(), merges.end());
    const json* whole = find(model, "ignore_merges");
    return make_rank_tokenizer(std::move(vocabulary), views, pretokenizer(), whole != nullptr && *whole == true);
  }

 private:
  [[noreturn]] void fail(std::string_view why) const { throw IoError(cat(name_, ": ", why)); }
  /// Absent and null are the same.
  static const json* find(const json& parent, const char* key) {
    const auto found = parent.find(key);
    return found == parent.end() || found->is_null() ? nullptr : &*found;
  }
  const json& object(const json& parent, const char* key) const {
    const json* found = find(parent, key);
    if (found == nullptr || !found->is_object()) fail(cat(key, " must be an object"));
    return *found;
  }

  Vocabulary read_tokens(const json& model) const {
    std::vector<std::pair<std::int64_t, std::pair<std::string, TokenKind>>> tokens;
    std::int64_t highest = -1;
    const auto add = [&](const json& id, std::string text, TokenKind kind) {
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= static_cast<std::uint64_t>(kMaxTokens))
        fail(cat("the id of token ", printable(text), " must be a whole number below ", kMaxTokens));
      tokens.emplace_back(id.get<std::int64_t>(), std::pair(std::move(text), kind));
      highest = std::max(highest, tokens.back().first);
    };
    for (const auto& [text, id] : object(model, "vocab").items()) add(id, text, TokenKind::normal);
    if (const json* added = find(file_, "added_tokens")) {
      if (!added->is_array()) fail("added_tokens must be a list");
      for (const json& token : *added) {
        if (!token.is_object() || !token.contains("id") || !token.contains("content") || !token["content"].is_string())
          fail("an added token must have an id and a content");
        const json* special = find(token, "special");
        add(token["id"], token["content"].get<std::string>(), special != nullptr && *special == true ? TokenKind::control : TokenKind::user_defined);
      }
    }
    // A file of few tokens may not ask for room for millions.
    if (tokens.empty() || highest >= 2 * static_cast<std::int64_t>(tokens.size()) + 1024) fail(cat("its ", tokens.size(), " tokens have ids up to ", highest));
    Vocabulary out;
    out.texts.resize(static_cast<std::size_t>(highest) + 1);
    out.kinds.assign(out.texts.size(), TokenKind::unused);
    for (auto& [id, token] : tokens) {  // added tokens stand behind the vocabulary and say what an entry of it is
      const auto i = static_cast<std::size_t>(id);
      if (token.second == TokenKind::normal && out.kinds[i] != TokenKind::unused) fail(cat("two tokens have id ", id));
      out.texts[i] = std::move(token.first);
      out.kinds[i] = token.second;
    }
    return out;
  }

  /// The special token that the post-processor's template puts before a text.
  void read_begin(Vocabulary& vocabulary) const {
    for (const json* step : steps("post_processor", "processors")) {
      const json* single = find(*step, "single");
      if (single == nullptr || !single->is_array() || single->empty()) continue;
      const json& first = single->front();
      const json* special = first.is_object() ? find(first, "SpecialToken") : nullptr;
      const json* id = special != nullptr && special->is_object() ? find(*special, "id") : nullptr;
      if (id == nullptr || !id->is_string()) continue;
      for (TokenId token = 0; token < vocabulary.size() && !vocabulary.bos; ++token)
        if (vocabulary.kind(token) == TokenKind::control && vocabulary.text(token) == id->get<std::string>()) vocabulary.bos = token;
      if (!vocabulary.bos) fail(cat("texts begin with ", printable(id->get<std::string>()), ", which is no special token"));
      vocabulary.add_bos = true;
    }
  }

  /// One step, or the steps of a sequence.
  std::vector<const json*> steps(const char* key, const char* list) const {
    std::vector<const json*> out;
    const json* step = find(file_, key);
    if (step == nullptr) return out;
    if (!step->is_object()) fail(cat(key, " must be an object"));
    const json* several = find(*step, list);
    if (several == nullptr) return {step};
    if (!several->is_array()) fail(cat(key, ".", list, " must be a list"));
    for (const json& s : *several) {
      if (!s.is_object()) fail(cat(key, ".", list, " must hold objects"));
      out.push_back(&s);
    }
    return out;
  }

  std::string_view pretokenizer() const {
    for (const json* step : steps("normalizer", "normalizers"))
      if (const json* type = find(*step, "type"); type == nullptr || *type != "NFC") throw Unsupported(cat(name_, ": a normalizer other than NFC"));
    bool bytes = false, digits = false, gpt2 = false;
    std::string_view split;
    for (const json* step : steps("pre_tokenizer", "pretokenizers")) {
      const json *type = find(*step, "type"), *pattern = find(*step, "pattern");
      if (type != nullptr && *type == "ByteLevel") {
        const json *prefix = find(*step, "add_prefix_space"), *expression = find(*step, "use_regex");
        if (prefix != nullptr && *prefix == true) throw Unsupported(cat(name_, ": a byte-level pre-tokenizer with a prefix space"));
        bytes = true;
        gpt2 = expression == nullptr || *expression == true;
      } else if (type != nullptr && *type == "Digits") {
        const json* single = find(*step, "individual_digits");
        if (single == nullptr || *single != true) throw Unsupported(cat(name_, ": a pre-tokenizer that keeps digits together"));
        digits = true;
      } else if (type != nullptr && *type == "Split" && pattern != nullptr && pattern->is_object() && split.empty()) {
        const json* expression = find(*pattern, "Regex");
        if (expression != nullptr && *expression == kLlama3) split = "llama-bpe";
        if (expression != nullptr && *expression == kQwen2) split = "qwen2";
        if (split.empty()) throw Unsupported(cat(name_, ": a pre-tokenizer whose expression is not known"));
      } else {
        throw Unsupported(cat(name_, ": a pre-tokenizer other than ByteLevel, Digits and Split"));
      }
    }
    if (!bytes || gpt2 == !split.empty() || (digits && !gpt2)) throw Unsupported(cat(name_, ": its pre-tokenizers are none of ", pretokenizer_names()));
    return !split.empty() ? split : digits ? "smollm" : "gpt-2";
  }

  const json& file_;
  std::string_view name_;
};

}  // namespace

std::unique_ptr<Tokenizer> parse_tokenizer_json(std::string_view text, std::string_view name) {
  json file;
  try {
    file = json::parse(text, [&](int depth, json::parse_event_t, json&) {
      if (depth > kMaxDepth) throw IoError(cat(name, " nests its values deeper than ", kMaxDepth, " levels"));
      return true;
    });
  } catch (const json::exception&) {
    throw IoError(cat(name, " is not JSON"));
  }
  if (!file.is_object()) throw IoError(cat(name, " must be a JSON object"));
  try {
    return Reader(file, name).read();
  } catch (const IoError& e) {
    const std::string said = e.what();
    throw IoError(said.starts_with(name) ? said : cat(name, ": ", said));
  }
}

std::unique_ptr<Tokenizer> load_tokenizer_json(const std::filesystem::path& path) {
  const MappedFile file(path);
  return parse_tokenizer_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()}, path.string());
}

}  // namespace kvatlas::models
