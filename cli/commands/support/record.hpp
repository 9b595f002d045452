// Records as JSON (answers/record.hpp), and the one way in which a command prints a document.
#pragma once

#include "answers/record.hpp"
#include "cli/commands/command.hpp"

namespace kvatlas::cli {

using answers::Json;
using answers::ledger_rows;
using answers::method_record;
using answers::param_value;
using answers::plan_rows;
using answers::published_value;
using answers::text_or_null;

/// One JSON document on the result stream.
void print(const Streams& io, const Json& document);

}  // namespace kvatlas::cli
