#include "cli/commands/support/warnings.hpp"

#include <ostream>

namespace kvatlas::cli {

void Warnings::print(const Streams& io, const char* command) const {
  for (const std::string& s : sentences()) io.err << "kvatlas " << command << ": " << s << "\n";
}

}  // namespace kvatlas::cli
