// Golden cases: recorded outputs of official code (tests/golden/), how each array is compared, and the table of results.
//
// A golden test loops over golden_cases(slug), feeds the input arrays and compares with check_exact, check_bound or check_set;
// each comparison is a Catch check and a row of the table. Arrays may be left out of the committed selection: ask has().
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/safetensors.hpp"
#include "core/view.hpp"

namespace kvatlas::test {

struct IntTensor {
  std::vector<std::int64_t> dims;
  std::vector<std::int64_t> values;
};

/// One recorded case: a safetensors file and its entry of the manifest.
class GoldenCase {
 public:
  GoldenCase(std::string slug, std::string name, nlohmann::json entry, const std::string& path);

  const std::string& slug() const { return slug_; }
  const std::string& name() const { return name_; }
  /// Parameters of the official call, by its own names.
  const nlohmann::json& parameters() const { return entry_.at("parameters"); }
  template <class T>
  T parameter(const char* name) const { return parameters().at(name).get<T>(); }

  bool has(std::string_view array) const;
  bool is_float(std::string_view array) const;
  std::vector<std::string> arrays() const;
  /// "exact", "exact_untied", "set", "bound", "sign" or "none" (select.py says what each means).
  std::string check(std::string_view array) const;
  /// Figures of a bound: atol, rtol, of_max, of_norm, fp16_units; null without one.
  nlohmann::json tolerance(std::string_view array) const;
  bool nonfinite(std::string_view array) const;  // holds NaN or infinity, as the official code produced them
  /// Smallest gap between a kept and a dropped score over the median score; 0: exact ties, chosen arbitrarily there.
  std::optional<double> selection_margin() const;

  /// Float arrays of any width as float32. throws InvalidArgument for an unknown array or an integer type
  NamedTensor floats(std::string_view array) const;
  /// Integer and boolean arrays. throws InvalidArgument for an unknown array or a float type
  IntTensor integers(std::string_view array) const;

 private:
  const io::RawTensor& at(std::string_view array) const;

  std::string slug_, name_;
  nlohmann::json entry_;
  io::SafeTensors content_;
};

/// The committed cases of a method; with KVATLAS_GOLDEN_DIR set, all cases that `select.py SOURCE --all DIR` wrote there.
/// throws IoError when there is none: a test that checks nothing must not pass
std::vector<GoldenCase> golden_cases(const std::string& slug);

/// The values as a view of these axes (up to four; leading axes of one may be left out).
View<const float> view_of(const NamedTensor& tensor, std::initializer_list<std::int64_t> dims);

/// [1, heads, tokens, dim] without its first axis.
Array without_batch(const NamedTensor& tensor);

/// A whole-number parameter of the official call.
std::int64_t whole(const GoldenCase& golden, const char* parameter);

/// Comparisons that went through the functions below, written as Markdown to the path in KVATLAS_GOLDEN_TABLE at exit.
class GoldenTable {
 public:
  /// Records one comparison; kind is exact, bound or set; error and bound are in the unit of the kind (elements that differ,
  /// absolute difference, rows that differ).
  static void row(std::string_view slug, std::string_view name, std::string_view array, std::string_view kind, double error,
                  double bound, bool pass);
};

/// Every element equal; floats by bits, any NaN equals any NaN.
void check_exact(const GoldenCase& golden, std::string_view array, std::span<const std::int64_t> ours);
void check_exact(const GoldenCase& golden, std::string_view array, std::span<const float> ours);

/// |ours - theirs| <= atol + rtol |theirs| for every element, or the same with a bound of another kind.
struct Tolerance {
  double atol = 0, rtol = 0;
  double of_max = 0;      // times the largest |theirs|
  double of_norm = 0;     // times the root of the sum of squares of theirs
  double fp16_units = 0;  // spacings of fp16 at |theirs|
};
/// The manifest's figures. throws InvalidArgument when it has none that this struct can hold
Tolerance tolerance_of(const GoldenCase& golden, std::string_view array);
void check_bound(const GoldenCase& golden, std::string_view array, std::span<const float> ours);
void check_bound(const GoldenCase& golden, std::string_view array, std::span<const float> ours, const Tolerance& tolerance);

/// Rows (innermost axis) hold the same elements in any order.
void check_set(const GoldenCase& golden, std::string_view array, std::span<const std::int64_t> ours);

}  // namespace kvatlas::test
