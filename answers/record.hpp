// Records, ledgers and plans as JSON with the keys of the command line's contract.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "core/ledger.hpp"
#include "core/plan.hpp"
#include "reference/claims.hpp"
#include "reference/method.hpp"

namespace kvatlas::answers {

using Json = nlohmann::ordered_json;

/// A text, or null where the record has none.
Json text_or_null(const char* text);

/// The published figure of a claim: a number, or the text where it is none.
Json published_value(const Claim& claim);

/// The whole record of a method: paper, claims, parameters, needs, kernels, serving answers, where it can be deployed.
Json method_record(const Method& method);

/// A value of a parameter in its own JSON type: number, true/false, or the name of a choice.
Json param_value(const ParamSpec& spec, double value);

/// A well-known cache shape that the method serves at its defaults: what `kernels` is read from.
std::optional<CacheShape> example_shape(const Method& method);

Json ledger_rows(const Ledger& ledger, std::string_view provenance);

/// Rows of one kernel and stage, all launches of a step together.
Json plan_rows(const Plan& plan);

}  // namespace kvatlas::answers
