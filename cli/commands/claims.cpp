// claims: published figures of the methods, each with its source; ours join with the calibrated simulator.
#include "reference/claims.hpp"

#include <ostream>

#include "cli/commands/command.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"
#include "cli/commands/support/table.hpp"
#include "reference/method.hpp"
#include "reference/registry.hpp"

namespace kvatlas::cli {

namespace {

constexpr const char* kWhy = "evaluation of claims joins with the calibrated simulator";

const Usage& usage() {
  static const Usage u{.command = "claims", .positional = "", .example = "kvatlas claims --method kivi",
                       .options = {Option::text("method", "M", "only claims about this method")}};
  return u;
}

}  // namespace

int run_claims(const Arguments& args, const Streams& io) {
  const auto parsed = parse(usage(), args, io);
  if (!parsed) return kDone;
  const std::string only = parsed->has("method") ? find_method(parsed->text("method")).slug : "";
  Json rows = Json::array();
  Table table({{"method"}, {"metric"}, {"published"}, {"setup"}});
  for (const Claim& c : all_claims()) {
    if (!only.empty() && c.method != only) continue;
    rows.push_back({{"method", c.method}, {"metric", c.metric}, {"published", published_value(c)}, {"unit", text_or_null(c.unit.c_str())}, {"ours", nullptr}, {"ours_if", nullptr},
                    {"change", nullptr}, {"ratio", nullptr}, {"provenance", "published"}, {"verdict", "undetermined"}, {"why", kWhy},
                    {"setup", c.conditions()}, {"source", c.source}});
    table.add({c.method, c.metric, cat(c.published, c.unit == "x" ? "" : " ", c.unit), cat(c.conditions(), " [", c.source, "]")});
  }
  if (parsed->json()) {
    print(io, rows);
  } else {
    table.print(io.out);
    io.out << "\n" << rows.size() << " published figures; verdict of all: undetermined (" << kWhy << ")\n";
  }
  return kDone;
}

}  // namespace kvatlas::cli
