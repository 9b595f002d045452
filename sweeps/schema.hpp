// Tables of the store, and how a file of an older version becomes one of this version.
#pragma once

#include "sweeps/database.hpp"

namespace kvatlas::sweep {

inline constexpr int kSchemaVersion = 5;
inline constexpr int kApplicationId = 0x6b766174;  // "kvat", in the header of every store

/// The version of the code, stored with every run: figures of two versions are not mixed in one store.
const char* code_version();

/// Makes an empty file a store, migrates an older store, refuses a newer one and any other database.
/// version   the version to reach; an older one than this program's is for tests of what old programs left
/// throws IoError with one sentence
void prepare_schema(Database& db, int version = kSchemaVersion);

/// Readers take older stores as they are: migrations add tables and columns and change none.
/// oldest   the first version with all that the reader asks for
/// throws IoError unless the file is a store of a version from `oldest` to this program's
void require_schema(Database& db, int oldest = 1);

/// Figures of two versions of the code are not mixed in one store. throws IoError when another one wrote it
void require_code_version(Database& db);

}  // namespace kvatlas::sweep
