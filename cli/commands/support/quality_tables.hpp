// Whole tables of quality: measured into a CSV that a stopped run goes on with, and those that the program was built with.
#pragma once

#include <optional>

#include "cli/commands/support/options.hpp"
#include "models/model.hpp"

namespace kvatlas::cli {

/// The arguments of evaluate; `--model embedded` without files gets those of the source tree.
Arguments with_embedded_files(const Arguments& args);

/// The record of --model: of the zoo, of a config.json, or the embedded model's beside its weights; none where it is not given.
std::optional<models::Model> model_named(const Parsed& p);

/// --table: measures what --out lacks, a batch of recipes at a time. returns  the exit code
int measure_table(const Parsed& p, const Streams& io);

/// --shipped: prints a table that the program was built with; with --db its figures join a store.
int show_shipped_quality(const Parsed& p, const Streams& io);

}  // namespace kvatlas::cli
