// What `capture` and `evaluate` share: options of weights and text, a loaded model, progress on one line.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/commands/support/options.hpp"
#include "core/layer_graph.hpp"
#include "models/evaluation/session.hpp"

namespace kvatlas::cli {

/// --weights, --text, --dtype, --threads.
std::vector<Option> weight_options();

/// The value of --dtype.
Dtype dtype_option(const Parsed& p);

/// Loads --weights and says what the import had to assume.
models::LoadedModel load_model_weights(const Parsed& p, const Streams& io, const char* command);

/// Rewrites one line on a terminal; elsewhere prints a line every few seconds. The returned function ends the line when called
/// with nothing.
std::function<void(const std::string&)> progress_on(const Streams& io);

}  // namespace kvatlas::cli
