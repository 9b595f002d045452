// Merging the stores of shards into one file, and comparing two stores.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace kvatlas::sweep {

struct MergeReport {
  std::int64_t rows = 0;               // predictions of the merged store
  std::int64_t conflicts = 0;          // keys whose figures differ between inputs: evaluation is deterministic, so a bug or other code
  std::vector<std::string> examples;   // the first few, as sentences
  bool written = false;
};

/// Merges stores into `out`; an `out` that exists is one of the inputs. Any order and repeated inputs give the same points.
/// Without `force` nothing is written when figures conflict; with it the input named first wins.
/// throws IoError for a store, InvalidArgument when versions of the code differ and `force` is not set
MergeReport merge_stores(const std::filesystem::path& out, const std::vector<std::filesystem::path>& inputs, bool force = false);

struct FigureChange {
  std::string figure;
  std::string a, b;          // as texts; "null" is unknown
  double change = 0;         // (b - a) / |a|; infinite where a is 0 or one of the two is unknown
};
struct ChangedPoint {
  std::string key, configuration;
  std::int64_t context = 0;  // of a workload: prompt + output, the longest that it gets
  int batch = 0;             // of a workload: the requests in flight that it asks for, 0 where it leaves them open
  std::vector<FigureChange> figures{};
  double worst = 0;          // largest |change|
  std::optional<std::int64_t> prompt{}, output{};  // of a workload; a point has neither
};
struct DiffReport {
  std::vector<ChangedPoint> changed;   // past the threshold, worst first, at most `limit`
  std::int64_t changed_count = 0;      // all of them
  std::int64_t equal = 0;              // equal within the threshold
  std::int64_t only_a = 0, only_b = 0;
};

/// Points and workloads that both stores hold and whose figures differ by more than `threshold` (relative, 0.01 = 1 %).
/// throws IoError for a store, InvalidArgument for the threshold
DiffReport diff_stores(const std::filesystem::path& a, const std::filesystem::path& b, double threshold = 0, std::size_t limit = 1000);

}  // namespace kvatlas::sweep
