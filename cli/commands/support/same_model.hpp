// Whether weights or captured rows can be those of a model of the zoo: figures are stored under its name.
#pragma once

#include <optional>
#include <string>

#include "models/evaluation/captured.hpp"
#include "models/model.hpp"

namespace kvatlas::cli {

/// One sentence naming the first field in which loaded weights differ from the record; none when they can be this model's.
std::optional<std::string> why_not_same(const models::Model& record, const models::Model& loaded);

/// The same of captured rows, which show layers, heads, widths and windows alone.
std::optional<std::string> why_not_same(const models::Model& record, const models::CapturedSet& captured);

}  // namespace kvatlas::cli
