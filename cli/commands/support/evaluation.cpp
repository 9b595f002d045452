#include "cli/commands/support/evaluation.hpp"

#include <chrono>
#include <memory>
#include <ostream>

#include "cli/commands/support/warnings.hpp"
#include "core/parallel.hpp"

namespace kvatlas::cli {

std::vector<Option> weight_options() {
  return {Option::text("weights", "FILE", "GGUF file, or safetensors with config.json beside it"),
          Option::text("text", "FILE", "text to read"),
          Option::choice("dtype", {"bf16", "fp16", "f32"}, "dtype of the uncompressed cache", "bf16"),
          Option::integer("threads", 1, 256, "threads (default: all of the machine); no figure depends on it")};
}

Dtype dtype_option(const Parsed& p) {
  return p.text("dtype") == "f32" ? Dtype::f32 : p.text("dtype") == "fp16" ? Dtype::f16 : Dtype::bf16;
}

models::LoadedModel load_model_weights(const Parsed& p, const Streams& io, const char* command) {
  if (p.has("threads")) set_threads(static_cast<int>(p.integer("threads")));
  models::LoadedModel model = models::load_weights(p.text("weights"));
  Warnings warnings;
  for (const std::string& w : model.transformer.model().warnings) warnings.add(w);
  warnings.print(io, command);
  return model;
}

std::function<void(const std::string&)> progress_on(const Streams& io) {
  using Clock = std::chrono::steady_clock;
  return [&io, last = Clock::time_point{}, width = std::size_t{0}](const std::string& line) mutable {
    if (line.empty()) {
      if (io.progress && width > 0) io.err << "\r" << std::string(width, ' ') << "\r" << std::flush;
      width = 0;
      return;
    }
    const auto now = Clock::now();
    if (now - last < (io.progress ? std::chrono::milliseconds(200) : std::chrono::seconds(10))) return;
    last = now;
    if (!io.progress) {
      io.err << line << "\n";
      return;
    }
    io.err << "\r" << line << std::string(width > line.size() ? width - line.size() : 0, ' ') << std::flush;
    width = std::max(width, line.size());
  };
}

}  // namespace kvatlas::cli
