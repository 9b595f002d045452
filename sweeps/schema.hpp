// Tables of the store, and how a file of an older version becomes one of this version.
#pragma once

#include "sweeps/database.hpp"

namespace kvatlas::sweep {

inline constexpr int kSchemaVersion = 4;
inline constexpr int kApplicationId = 0x6b766174;  // "kvat", in the header of every store

/// The version of the code, stored with every run: figures of two versions are not mixed in one store.
const char* code_version();

/// Makes an empty file a store, migrates an older store, refuses a newer one and any other database.
/// throws IoError with one sentence
void prepare_schema(Database& db);

/// throws IoError unless the file is a store of exactly this version
void require_schema(Database& db, const char* schema = "main");

}  // namespace kvatlas::sweep
