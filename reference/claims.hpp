// Headline figures that papers and projects publish about their methods: the rows of reference/claims.csv.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas {

struct Claim {
  std::string method;     // slug
  std::string metric;     // what is claimed: "peak_memory_ratio"
  std::string published;  // the figure as published
  std::string setup;      // model, GPU, sizes, compared with what
  std::string source;     // paper and place in it
};

/// Parses the table: a header "method,metric,published,setup,source", then one claim a line; cells may be quoted as in
/// RFC 4180. throws InvalidArgument that names the line
std::vector<Claim> parse_claims(std::string_view csv);

/// The committed table, embedded at build time.
std::span<const Claim> all_claims();

}  // namespace kvatlas
