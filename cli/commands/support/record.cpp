#include "cli/commands/support/record.hpp"

#include <ostream>

namespace kvatlas::cli {

void print(const Streams& io, const Json& document) {
  io.out << document.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

}  // namespace kvatlas::cli
