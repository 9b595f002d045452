// The program run in-process: what it prints, and its exit code.
#pragma once

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "cli/commands/command.hpp"

namespace kvatlas::testing {

struct Run {
  int code = 0;
  std::string out, err;
  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

inline Run kvatlas_run(const cli::Arguments& args) {
  std::ostringstream out, err;
  const int code = cli::run(args, {.out = out, .err = err, .progress = false});
  return {.code = code, .out = out.str(), .err = err.str()};
}

}  // namespace kvatlas::testing
