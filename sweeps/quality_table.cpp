#include "sweeps/quality_table.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fmt/format.h>
#include <span>
#include <tuple>

#include "core/errors.hpp"
#include "core/io/csv.hpp"
#include "reference/compose/recipe.hpp"

namespace kvatlas::detail {
std::span<const std::string_view> quality_tables_text();    // models/evaluation/tables/*.csv, one after another
std::span<const std::string_view> published_quality_text();  // reference/quality.csv
}  // namespace kvatlas::detail

namespace kvatlas::sweep {

namespace {

constexpr std::string_view kTitle = "# kvatlas quality table";
constexpr std::array<std::string_view, 5> kBefore{"context", "recipe", "ran", "grade", "verdict"};
constexpr std::array<std::string_view, 4> kBehind{"stored_bytes", "dense_bytes", "version", "failure"};

std::string whole_text(std::span<const std::string_view> pieces) {
  std::string text;
  for (const std::string_view p : pieces) text += p;
  return text;
}

std::string csv_cell(std::string_view text) {
  if (text.find_first_of(",\"\n") == std::string_view::npos) return std::string(text);
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

template <class T>
T number_in(std::string_view text, std::string_view file, int line, std::string_view what) {
  T v{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) throw InvalidArgument(cat(file, " line ", line, ": ", what, " is \"", text, "\", must be a number"));
  return v;
}

double figure_in(std::string_view text, std::string_view file, int line, std::string_view what) {
  const auto v = number_in<double>(text, file, line, what);
  if (!std::isfinite(v)) throw InvalidArgument(cat(file, " line ", line, ": ", what, " is \"", text, "\", must be finite"));
  return v;
}

/// Calls visit(name, field) for all that a table's comment lines say, in their order.
template <class Table, class Visit>
void for_each_setting(Table& t, const Visit& visit) {
  visit("model", t.model);
  visit("quality_model", t.quality_model);
  visit("weights_hash", t.weights_hash);
  visit("text_hash", t.text_hash);
  visit("protocol", t.protocol);
  visit("dtype", t.dtype);
  visit("scored", t.scored);
  visit("windows", t.windows);
  visit("chunk", t.chunk);
  visit("seed", t.seed);
}

auto place_of(const QualityTableRow& r) { return std::tuple(r.context, r.recipe != "full", std::string_view(r.recipe)); }

QualityTableRow row_in(const CsvRow& csv, std::string_view file) {
  QualityTableRow r{.context = number_in<std::int64_t>(csv.cells[0], file, csv.line, "context"), .recipe = csv.cells[1], .ran = csv.cells[2], .grade = csv.cells[3], .verdict = csv.cells[4],
                    .version = {}, .failure = {}};
  std::size_t at = kBefore.size();
  for (std::size_t i = 0; i < kQualityFigures.size(); ++i, ++at)
    if (!csv.cells[at].empty()) r.figures[i] = figure_in(csv.cells[at], file, csv.line, kQualityFigures[i]);
  for (auto* bytes : {&r.stored_bytes, &r.dense_bytes}) {
    if (!csv.cells[at].empty()) *bytes = number_in<std::int64_t>(csv.cells[at], file, csv.line, kBehind[at - kBefore.size() - kQualityFigures.size()]);
    ++at;
  }
  r.version = csv.cells[at];
  r.failure = csv.cells[at + 1];
  if (r.grade != "M") throw InvalidArgument(cat(file, " line ", csv.line, ": grade is \"", r.grade, "\", must be M: measured on this model"));
  if (r.failure.empty() && (!r.figure("perplexity") || !r.figure("perplexity_full") || !r.figure("n")))
    throw InvalidArgument(cat(file, " line ", csv.line, ": a row without a failure must have n, perplexity and perplexity_full"));
  return r;
}

QualityTable table_in(std::string_view text, std::string_view file) {
  QualityTable t;
  for_each_setting(t, [&]<class T>(std::string_view name, T& field) {
    const std::string key = cat("\n# ", name, ": ");
    const std::size_t at = text.find(key);
    if (at == std::string_view::npos) throw InvalidArgument(cat(file, ": a quality table lacks the line \"# ", name, ": ...\""));
    const std::size_t from = at + key.size();
    const std::string_view value = text.substr(from, text.find('\n', from) - from);
    if constexpr (std::is_same_v<T, std::string>) field = value;
    else field = number_in<std::int64_t>(value, file, 1, name);
  });
  const CsvTable csv = parse_csv(text, file);
  std::vector<std::string_view> columns(kBefore.begin(), kBefore.end());
  columns.insert(columns.end(), kQualityFigures.begin(), kQualityFigures.end());
  columns.insert(columns.end(), kBehind.begin(), kBehind.end());
  if (!std::ranges::equal(csv.header, columns)) throw InvalidArgument(cat(file, ": columns are not those of a quality table of this version"));
  for (const CsvRow& row : csv.rows) t.put(row_in(row, file));
  return t;
}

}  // namespace

std::optional<double> QualityTableRow::figure(std::string_view name) const {
  const auto at = std::ranges::find(kQualityFigures, name) - kQualityFigures.begin();
  KV_ASSERT(at < static_cast<std::ptrdiff_t>(kQualityFigures.size()), "a figure that tables have");
  return figures[static_cast<std::size_t>(at)];
}

const QualityTableRow* QualityTable::find(std::int64_t context, std::string_view recipe) const {
  const auto at = std::ranges::find_if(rows, [&](const QualityTableRow& r) { return r.context == context && r.recipe == recipe; });
  return at == rows.end() ? nullptr : &*at;
}

void QualityTable::put(QualityTableRow row) {
  const auto at = std::ranges::lower_bound(rows, place_of(row), {}, [](const QualityTableRow& r) { return place_of(r); });
  if (at != rows.end() && place_of(*at) == place_of(row)) *at = std::move(row);
  else rows.insert(at, std::move(row));
}

std::optional<std::string> differs_in(const QualityTable& a, const QualityTable& b) {
  std::vector<std::string> values;
  const auto spell = [&](std::string_view, const auto& field) { values.push_back(cat(field)); };
  for_each_setting(a, spell);
  std::optional<std::string> first;
  std::size_t i = 0;
  for_each_setting(b, [&](std::string_view name, const auto& field) {
    const std::string& other = values[i++];
    if (!first && cat(field) != other) first = cat(name, " is ", other, " there and ", cat(field), " here");
  });
  return first;
}

std::vector<QualityTable> read_quality_tables(std::string_view text, std::string_view file) {
  std::vector<QualityTable> out;
  for (std::size_t at = text.find(kTitle); at != std::string_view::npos;) {
    const std::size_t next = text.find(kTitle, at + 1);
    out.push_back(table_in(text.substr(at, next == std::string_view::npos ? next : next - at), file));
    at = next;
  }
  return out;
}

std::string write_quality_table(const QualityTable& table) {
  std::string out = cat(kTitle, ": figures measured by kvatlas evaluate, provenance measured\n");
  for_each_setting(table, [&](std::string_view name, const auto& field) { out += cat("# ", name, ": ", field, "\n"); });
  std::string header;
  for (const auto list : {std::span<const std::string_view>(kBefore), std::span<const std::string_view>(kQualityFigures), std::span<const std::string_view>(kBehind)})
    for (const std::string_view name : list) header += cat(header.empty() ? "" : ",", name);
  out += header + "\n";
  for (const QualityTableRow& r : table.rows) {
    out += cat(r.context, ",", csv_cell(r.recipe), ",", csv_cell(r.ran), ",", r.grade, ",", r.verdict);
    for (const auto& f : r.figures) out += f ? fmt::format(",{:.7g}", *f) : std::string(",");
    for (const auto& bytes : {r.stored_bytes, r.dense_bytes}) out += bytes ? cat(",", *bytes) : std::string(",");
    out += cat(",", csv_cell(r.version), ",", csv_cell(r.failure), "\n");
  }
  return out;
}

std::vector<QualityRow> quality_rows(const QualityTable& t) {
  std::vector<QualityRow> out;
  for (const QualityTableRow& r : t.rows) {
    if (!r.failure.empty()) continue;
    const auto n = static_cast<std::int64_t>(*r.figure("n"));
    const bool evidence = enough_scored(n, t.windows) && r.figure("perplexity_low");
    const auto add = [&](const char* metric, const char* low, const char* high, std::optional<double> retained) {
      if (!r.figure(metric)) return;
      out.push_back({.model = t.model, .recipe = r.ran.empty() ? r.recipe : r.ran, .quality_model = t.quality_model, .metric = metric, .value = *r.figure(metric), .retained = retained,
                     .context = r.context, .protocol = t.protocol, .n = n, .ci95_low = low != nullptr ? r.figure(low) : std::nullopt,
                     .ci95_high = high != nullptr ? r.figure(high) : std::nullopt, .grade = r.grade,
                     .source = cat("kvatlas evaluate ", r.version, ", text ", t.text_hash, ", seed ", t.seed), .dtype = t.dtype, .seed = t.seed, .text_hash = t.text_hash,
                     .scored = t.scored, .windows = t.windows, .chunk = t.chunk});
    };
    add("perplexity", "perplexity_low", "perplexity_high", evidence ? std::optional(std::min(1.0, *r.figure("perplexity_full") / *r.figure("perplexity"))) : std::nullopt);
    add("kl_mean", "kl_low", "kl_high", std::nullopt);
    add("top1_agreement", "top1_low", "top1_high", std::nullopt);
    add("attention_rel_error", nullptr, nullptr, std::nullopt);
  }
  return out;
}

const std::vector<QualityTable>& shipped_quality_tables() {
  static const std::vector<QualityTable> tables = read_quality_tables(whole_text(detail::quality_tables_text()), "shipped quality tables");
  return tables;
}

const std::vector<QualityRow>& shipped_quality() {
  static const std::vector<QualityRow> rows = [] {
    std::vector<QualityRow> out;
    for (const QualityTable& t : shipped_quality_tables())
      for (QualityRow& r : quality_rows(t)) out.push_back(std::move(r));
    constexpr std::string_view kFile = "reference/quality.csv";
    constexpr std::array<std::string_view, 9> kColumns{"recipe", "model", "metric", "published", "full", "better", "context", "setup", "source"};
    for (const CsvRow& row : parse_csv(whole_text(detail::published_quality_text()), kFile, kColumns)) {
      const double value = figure_in(row.cells[3], kFile, row.line, kColumns[3]);
      std::optional<double> full;
      if (!row.cells[4].empty()) full = figure_in(row.cells[4], kFile, row.line, kColumns[4]);
      if (row.cells[5] != "higher" && row.cells[5] != "lower") throw InvalidArgument(cat(kFile, " line ", row.line, ": better is \"", row.cells[5], "\", must be higher or lower"));
      if (value <= 0 || (full && *full <= 0)) throw InvalidArgument(cat(kFile, " line ", row.line, ": published and full must be above 0"));
      std::optional<double> retained;
      if (full) retained = std::min(1.0, row.cells[5] == "higher" ? value / *full : *full / value);
      out.push_back({.model = row.cells[1], .recipe = Recipe::parse(row.cells[0]).canonical(), .quality_model = row.cells[1], .metric = row.cells[2], .value = value,
                     .retained = retained,
                     .context = row.cells[6].empty() ? 0 : number_in<std::int64_t>(row.cells[6], kFile, row.line, kColumns[6]), .protocol = "published", .n = 0, .ci95_low = {}, .ci95_high = {},
                     .grade = "P", .source = cat(row.cells[8], row.cells[7].empty() ? "" : "; ", row.cells[7])});
    }
    return out;
  }();
  return rows;
}

}  // namespace kvatlas::sweep
