// What tests of sweeps share: a folder that goes away, a small spec, a store as text.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include "core/errors.hpp"
#include "sweeps/store.hpp"

namespace kvatlas::sweep::testing {

class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "kvatlas-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Three recipes that every registry can spell, two GPUs, one small model.
inline std::string small_spec(const std::string& contexts = "\"1K..16Kx2\"", const std::string& batches = "[1, 2, 4, 8]", const std::string& more = "") {
  return "{\"models\": [\"llama-3.2-1b\"], \"gpus\": [\"rtx-4090\", \"h100-sxm\"], \"methods\": [\"full\", \"sinks=4:full;full\", \"recent=16|32:full;full\"],"
         "\"contexts\": " + contexts + ", \"batches\": " + batches + more + "}";
}

inline std::string dump_of(const std::filesystem::path& store) {
  std::optional<Database> db;
  open_for_reading(db, store);
  std::ostringstream out;
  write_dump(*db, out);
  return out.str();
}

inline void write_file(const std::filesystem::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

/// The sentence of the error that f throws; "no error" without one.
template <class F>
std::string sentence_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

}  // namespace kvatlas::sweep::testing
