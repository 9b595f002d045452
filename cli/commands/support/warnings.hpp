// Warnings (answers/warnings.hpp) on the streams of a command.
#pragma once

#include "answers/warnings.hpp"
#include "cli/commands/support/options.hpp"
#include "cli/commands/support/record.hpp"

namespace kvatlas::cli {

class Warnings : public answers::Warnings {
 public:
  using answers::Warnings::add_slo;
  void add_slo(const Parsed& p) {
    if (p.has("slo")) add_slo(p.text("slo"));
  }
  /// One line each on standard error.
  void print(const Streams& io, const char* command) const;
  Json json() const { return sentences(); }
};

}  // namespace kvatlas::cli
