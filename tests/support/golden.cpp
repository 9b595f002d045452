#include "tests/support/golden.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <mutex>

#include "core/arith.hpp"
#include "tests/catch.hpp"

namespace kvatlas::test {

namespace {

std::string folder_of(const std::string& slug) {
  const char* whole = std::getenv("KVATLAS_GOLDEN_DIR");
  return (whole != nullptr ? std::string(whole) : std::string(KVATLAS_SOURCE_DIR "/tests/golden")) + "/" + slug;
}

struct Row {
  std::string slug, name, array, kind;
  double error, bound;
  bool pass;
};

/// Rows of this process; written when static objects are destroyed, after the last test under either version of Catch2.
class Rows {
 public:
  static Rows& of_process() {
    static Rows rows;
    return rows;
  }
  void add(Row row) {
    const std::lock_guard lock(mutex_);
    rows_.push_back(std::move(row));
  }
  ~Rows() {
    if (rows_.empty()) return;
    std::stable_sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) { return a.slug < b.slug; });
    std::size_t failed = 0;
    int method_count = 0;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      failed += rows_[i].pass ? 0 : 1;
      if (i == 0 || rows_[i].slug != rows_[i - 1].slug) ++method_count;
    }
    std::printf("golden: %zu comparisons over %d methods, %zu failed\n", rows_.size(), method_count, failed);
    if (const char* path = std::getenv("KVATLAS_GOLDEN_TABLE")) write(path);
  }

 private:
  void write(const char* path) const {
    std::ofstream out(path);
    out << "| method | case | array | check | error | bound | result |\n|---|---|---|---|---|---|---|\n";
    for (const Row& r : rows_)
      out << "| " << r.slug << " | " << r.name << " | " << r.array << " | " << r.kind << " | " << r.error << " | " << r.bound
          << " | " << (r.pass ? "ok" : "FAILED") << " |\n";
    out.flush();
    if (!out) std::fprintf(stderr, "golden: cannot write %s\n", path);
  }

  std::mutex mutex_;
  std::vector<Row> rows_;
};

void record(const GoldenCase& golden, std::string_view array, std::string_view kind, double error, double bound, bool pass) {
  GoldenTable::row(golden.slug(), golden.name(), array, kind, error, bound, pass);
  INFO(golden.slug() << "/" << golden.name() << "/" << array << ": " << kind << " error " << error << ", bound " << bound);
  CHECK(pass);
}

void check_count(const GoldenCase& golden, std::string_view array, std::size_t ours, std::size_t theirs) {
  if (ours != theirs)
    throw InvalidArgument(cat(golden.slug(), "/", golden.name(), "/", array, ": ours has ", ours, " elements, theirs ", theirs));
}

/// Distance of neighbouring fp16 values at |x|.
double fp16_spacing(double x) {
  int exponent = 0;
  std::frexp(x, &exponent);  // |x| in [2^(exponent-1), 2^exponent)
  return std::ldexp(1.0, std::max(exponent - 1, -14) - 10);
}

}  // namespace

GoldenCase::GoldenCase(std::string slug, std::string name, nlohmann::json entry, const std::string& path)
    : slug_(std::move(slug)), name_(std::move(name)), entry_(std::move(entry)), content_(io::read_safetensors(path)) {
  for (const auto& [array, stored] : content_.tensors)
    if (!entry_.at("arrays").contains(array)) throw IoError(cat(path, ": array ", array, " is missing in the manifest"));
}

bool GoldenCase::has(std::string_view array) const { return content_.tensors.find(array) != content_.tensors.end(); }

bool GoldenCase::is_float(std::string_view array) const { return io::is_float(at(array).type); }

std::vector<std::string> GoldenCase::arrays() const {
  std::vector<std::string> names;
  for (const auto& [name, stored] : content_.tensors) names.push_back(name);
  return names;
}

const io::RawTensor& GoldenCase::at(std::string_view array) const {
  const auto found = content_.tensors.find(array);
  if (found == content_.tensors.end()) throw InvalidArgument(cat(slug_, "/", name_, " has no array ", array));
  return found->second;
}

std::string GoldenCase::check(std::string_view array) const {
  return entry_.at("arrays").at(std::string(array)).at("check").get<std::string>();
}

nlohmann::json GoldenCase::tolerance(std::string_view array) const {
  const nlohmann::json& meta = entry_.at("arrays").at(std::string(array));
  return meta.contains("tolerance") ? meta.at("tolerance") : nlohmann::json();
}

bool GoldenCase::nonfinite(std::string_view array) const {
  return entry_.at("arrays").at(std::string(array)).contains("nonfinite");
}

std::optional<double> GoldenCase::selection_margin() const {
  if (!entry_.contains("selection_margin")) return std::nullopt;
  const nlohmann::json& margin = entry_.at("selection_margin");
  if (margin.is_number()) return margin.get<double>();
  std::optional<double> smallest;
  for (const auto& [key, value] : margin.items())
    if (value.is_number()) smallest = std::min(value.get<double>(), smallest.value_or(value.get<double>()));
  return smallest;
}

NamedTensor GoldenCase::floats(std::string_view array) const { return io::to_floats(at(array), cat(slug_, "/", name_, "/", array)); }

IntTensor GoldenCase::integers(std::string_view array) const {
  return {.dims = at(array).dims, .values = io::to_integers(at(array), cat(slug_, "/", name_, "/", array))};
}

std::vector<GoldenCase> golden_cases(const std::string& slug) {
  const std::string folder = folder_of(slug);
  std::ifstream file(folder + "/manifest.json");
  if (!file) throw IoError(cat("cannot read ", folder, "/manifest.json"));
  const nlohmann::json manifest = nlohmann::json::parse(file);
  std::vector<GoldenCase> cases;
  for (const auto& [name, entry] : manifest.at("cases").items())
    cases.emplace_back(slug, name, entry, folder + "/" + name + ".safetensors");
  if (cases.empty()) throw IoError(cat(folder, " holds no golden case"));
  return cases;
}

View<const float> view_of(const NamedTensor& tensor, std::initializer_list<std::int64_t> dims) {
  const View<const float> view(tensor.values.data(), dims);
  if (view.size() != static_cast<std::int64_t>(tensor.values.size()))
    throw InvalidArgument(cat("a view of ", view.size(), " elements over an array of ", tensor.values.size()));
  return view;
}

Array without_batch(const NamedTensor& tensor) {
  Array a({tensor.dims.at(1), tensor.dims.at(2), tensor.dims.at(3)});
  a.values() = tensor.values;
  return a;
}

std::int64_t whole(const GoldenCase& golden, const char* parameter) { return golden.parameter<std::int64_t>(parameter); }

void GoldenTable::row(std::string_view slug, std::string_view name, std::string_view array, std::string_view kind, double error,
                      double bound, bool pass) {
  Rows::of_process().add({std::string(slug), std::string(name), std::string(array), std::string(kind), error, bound, pass});
}

void check_exact(const GoldenCase& golden, std::string_view array, std::span<const std::int64_t> ours) {
  const IntTensor theirs = golden.integers(array);
  check_count(golden, array, ours.size(), theirs.values.size());
  int differ = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) differ += ours[i] != theirs.values[i] ? 1 : 0;
  record(golden, array, "exact", differ, 0, differ == 0);
}

void check_exact(const GoldenCase& golden, std::string_view array, std::span<const float> ours) {
  const NamedTensor theirs = golden.floats(array);
  check_count(golden, array, ours.size(), theirs.values.size());
  int differ = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const bool both_nan = std::isnan(ours[i]) && std::isnan(theirs.values[i]);
    differ += both_nan || num::bits_of(ours[i]) == num::bits_of(theirs.values[i]) ? 0 : 1;
  }
  record(golden, array, "exact", differ, 0, differ == 0);
}

Tolerance tolerance_of(const GoldenCase& golden, std::string_view array) {
  const nlohmann::json given = golden.tolerance(array);
  Tolerance t;
  bool any = false;
  const auto take = [&](const char* key, double& to) {
    if (!given.is_object() || !given.contains(key)) return;
    to = given.at(key).get<double>();
    any = true;
  };
  take("atol", t.atol);
  take("rtol", t.rtol);
  take("of_max", t.of_max);
  take("of_norm", t.of_norm);
  take("fp16_units", t.fp16_units);
  if (!any) throw InvalidArgument(cat(golden.slug(), "/", golden.name(), "/", array, ": the manifest has no figure for a bound"));
  return t;
}

void check_bound(const GoldenCase& golden, std::string_view array, std::span<const float> ours) {
  check_bound(golden, array, ours, tolerance_of(golden, array));
}

void check_bound(const GoldenCase& golden, std::string_view array, std::span<const float> ours, const Tolerance& tolerance) {
  const NamedTensor theirs = golden.floats(array);
  check_count(golden, array, ours.size(), theirs.values.size());
  double largest = 0, squares = 0;
  for (const float f : theirs.values) {
    if (!std::isfinite(f)) continue;
    largest = std::max(largest, std::fabs(static_cast<double>(f)));
    squares += static_cast<double>(f) * static_cast<double>(f);
  }
  const double common = tolerance.atol + tolerance.of_max * largest + tolerance.of_norm * std::sqrt(squares);
  // The recorded pair is the element that uses most of its bound.
  double error = 0, bound = common, share = -1;
  bool pass = true;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    const double b = theirs.values[i], a = ours[i];
    if (!std::isfinite(b)) {  // NaN where they have NaN, the same infinity where they have one
      pass = pass && (std::isnan(b) ? std::isnan(a) : a == b);
      continue;
    }
    const double allowed = common + tolerance.rtol * std::fabs(b) + tolerance.fp16_units * fp16_spacing(b);
    const double distance = std::fabs(a - b);
    pass = pass && distance <= allowed;  // false for NaN
    const double used = allowed > 0 ? distance / allowed : distance;
    if (used > share) share = used, error = distance, bound = allowed;
  }
  record(golden, array, "bound", error, bound, pass);
}

void check_set(const GoldenCase& golden, std::string_view array, std::span<const std::int64_t> ours) {
  IntTensor theirs = golden.integers(array);
  check_count(golden, array, ours.size(), theirs.values.size());
  std::vector<std::int64_t> sorted(ours.begin(), ours.end());
  const std::int64_t width = theirs.dims.empty() ? 1 : theirs.dims.back();
  int differ = 0;
  for (std::int64_t first = 0; width > 0 && first < static_cast<std::int64_t>(sorted.size()); first += width) {
    std::sort(sorted.begin() + first, sorted.begin() + first + width);
    std::sort(theirs.values.begin() + first, theirs.values.begin() + first + width);
    differ += std::equal(sorted.begin() + first, sorted.begin() + first + width, theirs.values.begin() + first) ? 0 : 1;
  }
  record(golden, array, "set", differ, 0, differ == 0);
}

}  // namespace kvatlas::test
