// Headline figures that papers and projects publish about their methods: the rows of reference/claims.csv.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas {

struct Claim {
  std::string method;     // slug
  std::string metric;     // what is claimed: "peak_memory_factor"
  std::string published;  // the figure as published
  std::string unit;
  std::string model, gpu, context, batch;  // of the claim; empty where it does not say
  std::string baseline;   // what it is compared with
  std::string setup;      // the rest of the conditions
  std::string source;     // paper and place in it

  /// All conditions as one text: model, GPU, context, batch, what it is compared with, the rest.
  std::string conditions() const;
};

/// Parses the table: a header with the names of the fields above, then one claim a line; cells may be quoted as in
/// RFC 4180. throws InvalidArgument that names the line
std::vector<Claim> parse_claims(std::string_view csv);

/// The committed table, embedded at build time.
std::span<const Claim> all_claims();

}  // namespace kvatlas
