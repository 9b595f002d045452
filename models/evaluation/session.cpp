#include "models/evaluation/session.hpp"

#include <fmt/format.h>

#include <array>
#include <fmt/core.h>

#include "core/errors.hpp"
#include "models/tokenizer/tokenizer_json.hpp"

namespace kvatlas::models {

namespace {

constexpr std::int64_t kBytes = 256, kMostSpecial = 16;

std::unique_ptr<Tokenizer> tokenizer_of(const WeightFile& file, std::int64_t vocabulary) {
  if (file.has("tokenizer.ggml.model")) return load_tokenizer(file);
  if (const std::filesystem::path beside = file.path().parent_path() / "tokenizer.json"; std::filesystem::exists(beside)) return load_tokenizer_json(beside);
  if (vocabulary < kBytes || vocabulary > kBytes + kMostSpecial)
    throw Unsupported(cat(file.path().string(), " has no tokenizer.json beside it and its vocabulary of ", vocabulary, " tokens is not that of bytes"));
  std::vector<std::string> names;
  for (std::int64_t i = kBytes; i < vocabulary; ++i) names.push_back(i == kBytes ? "<begin>" : cat("<special", i, ">"));
  const std::vector<std::string_view> views(names.begin(), names.end());
  return make_byte_tokenizer(views, views.empty() ? std::nullopt : std::optional<std::size_t>(0));
}

}  // namespace

std::optional<TokenId> LoadedModel::begin() const {
  const Vocabulary& v = tokenizer->vocabulary();
  return v.add_bos ? v.bos : std::nullopt;
}

std::vector<TokenId> LoadedModel::encode(std::string_view text) const {
  return tokenizer->encode(text, {.add_special = false, .parse_special = false, .drop_unspellable = true});
}

LoadedModel load_weights(const std::filesystem::path& path) {
  WeightFile file = WeightFile::open(path);
  try {
    Architecture architecture = architecture_of(file);
    std::unique_ptr<Tokenizer> tokenizer = tokenizer_of(file, architecture.model.vocabulary);
    std::string name = architecture.model.name;
    return {.transformer = Transformer(std::move(architecture), WeightSet(std::move(file))), .tokenizer = std::move(tokenizer), .name = std::move(name)};
  } catch (const InvalidArgument& e) {
    const std::string_view sentence = e.what();
    throw IoError(sentence.starts_with(path.string()) ? std::string(sentence) : cat(path.string(), ": ", sentence));  // the file's content, not the caller's request
  }
}

Candidate candidate_of(const Recipe& recipe, const CacheShape& shape, const OpenInputs& inputs) {
  Recipe chosen = recipe;
  if (recipe.why_not(shape)) {
    bool windows = false;
    for (const LayerClass& c : shape.classes) windows = windows || c.window.value > 0;
    if (windows && recipe.rules().size() == 1) {
      const Recipe around = Recipe::parse(cat("windowed:full;*:", recipe.canonical()));
      if (!around.why_not(shape)) chosen = around;
    }
  }
  return {.label = chosen.canonical(), .open = [bound = chosen.bind(shape), inputs] { return bound.open(inputs); }};
}

std::string text_hash(std::string_view text) {
  std::uint64_t h = 0xCBF29CE484222325ULL;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
  return fmt::format("{:016x}", h);
}

}  // namespace kvatlas::models
