// capture: queries, keys and values of a real model on a text, one safetensors file a layer.
#include <filesystem>
#include <ostream>
#include <set>

#include "cli/commands/command.hpp"
#include "cli/commands/support/evaluation.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "core/io/file.hpp"
#include "models/evaluation/captured.hpp"

namespace kvatlas::cli {

namespace {

const Usage& capture_usage() {
  static const Usage u{
      .command = "capture", .positional = "", .least = 0, .most = 0,
      .example = "kvatlas capture --weights smollm2.gguf --text book.txt --context 2K --layers 0,15,29 --out captured",
      .options = join({weight_options(),
                       {Option::text("out", "DIR", "folder for layer<N>.safetensors and manifest.json").needed(),
                        Option::size("context", 2, 1 << 20, "tokens of the text to run", "1024"),
                        Option::text("layers", "LIST", "layers to write, as 0,5,10-12 (default: all)"),
                        Option::choice("rope", {"before", "after"}, "keys and queries before or after rotary embedding", "after"),
                        Option::flag("outputs", "also write what attention read: out [query heads, tokens, dim]"),
                        Option::size("mass", 1, 1 << 20, "also write attention mass [query heads, tokens] of the last N queries")}}),
      .note = "Each file holds q [query heads, tokens, dim], k and v [kv heads, tokens, dim] as float32, without the score's\n"
              "1/sqrt(dim); `kvatlas compress` takes one, `kvatlas evaluate --capture` the folder."};
  return u;
}

std::vector<int> parse_layers(const std::string& text) {
  std::set<int> layers;
  const auto number = [&](const std::string& s) {
    if (s.empty() || s.size() > 4 || s.find_first_not_of("0123456789") != std::string::npos)
      throw UsageError(cat("--layers is ", text, ", must be a list like 0,5,10-12"));
    return std::stoi(s);
  };
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    const std::string part = text.substr(at, comma - at);
    const std::size_t dash = part.find('-');
    const int a = number(part.substr(0, dash)), b = dash == std::string::npos ? a : number(part.substr(dash + 1));
    if (b < a) throw UsageError(cat("--layers is ", text, ", must have ranges that ascend"));
    for (int l = a; l <= b; ++l) layers.insert(l);
    at = comma + 1;
  }
  return {layers.begin(), layers.end()};
}

}  // namespace

int run_capture(const Arguments& args, const Streams& io) {
  const auto parsed = parse(capture_usage(), args, io);
  if (!parsed) return kDone;
  const Parsed& p = *parsed;
  for (const char* needed : {"weights", "text"})
    if (!p.has(needed)) throw UsageError(cat("--", needed, " is missing"));
  models::CaptureOptions options;
  if (p.has("layers")) options.layers = parse_layers(p.text("layers"));
  options.before_rope = p.text("rope") == "before";
  options.outputs = p.has("outputs");
  if (p.has("mass")) options.mass_queries = p.integer("mass");

  const std::string text = io::read_text(p.text("text"));
  const models::LoadedModel model = load_model_weights(p, io, "capture");
  std::vector<models::TokenId> tokens = model.encode(text);
  if (const auto begin = model.begin()) tokens.insert(tokens.begin(), *begin);
  if (static_cast<std::int64_t>(tokens.size()) < p.integer("context"))
    throw IoError(cat(p.text("text"), " has ", tokens.size(), " tokens, must have ", p.integer("context"), " (--context)"));
  tokens.resize(static_cast<std::size_t>(p.integer("context")));
  CacheShape shape = model.transformer.model().cache;
  shape.dtype = dtype_option(p);
  options.metadata = {{"model", model.name}, {"text_hash", models::text_hash(text)}, {"format", "kvatlas capture 1"}};
  const std::filesystem::path folder = p.text("out");
  const std::vector<std::string> files = models::capture(model.transformer, shape, tokens, folder, options);

  Json manifest{{"format", "kvatlas capture 1"}, {"weights", std::filesystem::path(p.text("weights")).filename().string()}, {"model", model.name},
                {"text", std::filesystem::path(p.text("text")).filename().string()}, {"text_hash", models::text_hash(text)},
                {"context", tokens.size()}, {"dtype", name_of(shape.dtype)}, {"rope", p.text("rope")}, {"files", files},
                {"layers", model.transformer.layers()}, {"tokens", tokens}, {"provenance", "measured"}};
  io::write_text((folder / "manifest.json").string(), manifest.dump(1) + "\n");
  if (p.json()) {
    manifest["out"] = folder.string();
    print(io, manifest);
  } else {
    io.out << model.name << ": " << files.size() << " of " << model.transformer.layers() << " layers, " << tokens.size() << " tokens -> " << folder.string() << "\n";
  }
  return kDone;
}

}  // namespace kvatlas::cli
