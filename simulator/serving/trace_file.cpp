// Trace files: the public Azure LLM inference traces (2023 and 2024) and Mooncake's, told apart by their first line.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/errors.hpp"
#include "core/io/csv.hpp"
#include "core/io/file.hpp"
#include "simulator/serving/request.hpp"

namespace kvatlas::sim {

namespace {

constexpr std::int64_t kLongest = std::int64_t{1} << 26;
constexpr std::int32_t kMooncakeBlock = 512;  // tokens of one hash id: Mooncake's trace description (FAST'25 artifact)

struct TracePlace {
  const std::string& name;
  std::size_t line;
};

[[noreturn]] void refuse(const TracePlace& at, std::string_view what, std::string_view value, std::string_view must) {
  std::string shown(value.substr(0, 40));
  throw InvalidArgument(cat(at.name, " line ", at.line, ": ", what, " is \"", shown, "\", must be ", must));
}

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t' || s.back() == '\r')) s.remove_suffix(1);
  return s;
}

std::int32_t tokens_of(std::string_view text, const TracePlace& at, const char* column, std::int64_t least) {
  double v = 0;  // some exports write 374.0
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (error != std::errc{} || end != text.data() + text.size() || !(v >= static_cast<double>(least)) || v > static_cast<double>(kLongest) || v != std::floor(v))
    refuse(at, column, text, cat("a whole number from ", least, " to ", kLongest));
  return static_cast<std::int32_t>(v);
}

/// Days since 1970-01-01 of the proleptic Gregorian calendar.
std::int64_t days_of(int year, int month, int day) {
  const int y = year - (month <= 2 ? 1 : 0);
  const int era = y / 400, of_era = y - era * 400;
  const int of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return std::int64_t{era} * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

/// Seconds of "2023-11-16 18:15:46.6805900", with an optional "+00:00", or of a plain number of seconds.
double seconds_of(std::string_view text, const TracePlace& at) {
  constexpr std::string_view must = "a time like 2023-11-16 18:15:46.68059 or a number of seconds from 0 on";
  double plain = 0;
  if (const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), plain); error == std::errc{} && end == text.data() + text.size()) {
    if (!(plain >= 0 && std::isfinite(plain))) refuse(at, "TIMESTAMP", text, must);
    return plain;
  }
  const auto part = [&](std::size_t from, std::size_t n, int low, int high) {
    int v = 0;
    if (text.size() < from + n) refuse(at, "TIMESTAMP", text, must);
    const auto [end, error] = std::from_chars(text.data() + from, text.data() + from + n, v);
    if (error != std::errc{} || end != text.data() + from + n || v < low || v > high) refuse(at, "TIMESTAMP", text, must);
    return v;
  };
  const std::int64_t day = days_of(part(0, 4, 1970, 9999), part(5, 2, 1, 12), part(8, 2, 1, 31));
  const int whole = part(11, 2, 0, 23) * 3600 + part(14, 2, 0, 59) * 60 + part(17, 2, 0, 60);
  if (text[4] != '-' || text[7] != '-' || (text[10] != ' ' && text[10] != 'T') || text[13] != ':' || text[16] != ':') refuse(at, "TIMESTAMP", text, must);
  double fraction = 0, place = 0.1;
  std::size_t i = 19;
  if (i < text.size() && text[i] == '.')
    for (++i; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i) fraction += place * (text[i] - '0'), place /= 10;
  double zone = 0;
  if (i < text.size() && (text[i] == '+' || text[i] == '-')) {
    const double sign = text[i] == '+' ? -1 : 1;
    zone = sign * (part(i + 1, 2, 0, 14) * 3600.0 + part(i + 4, 2, 0, 59) * 60.0);
    i += 6;
  } else if (i < text.size() && text[i] == 'Z') {
    ++i;
  }
  if (i != text.size()) refuse(at, "TIMESTAMP", text, must);
  return static_cast<double>(day) * 86400.0 + whole + zone + fraction;
}

class TraceReader {
 public:
  TraceReader(const std::string& text, const std::string& name) : text_(text), name_(name) {}

  Stream read() {
    std::string_view line;
    if (!next(line)) throw InvalidArgument(cat(name_, " is empty, must be an Azure LLM trace (CSV) or a Mooncake trace (JSON lines)"));
    if (line.front() == '{') {
      do mooncake(line);
      while (next(line));
    } else {
      azure();
    }
    if (out_.requests.empty()) throw InvalidArgument(cat(name_, " has no requests below its first line"));
    return std::move(out_);
  }

 private:
  bool next(std::string_view& line) {
    while (at_ < text_.size()) {
      const std::size_t end = std::min(text_.find('\n', at_), text_.size());
      line = trim(std::string_view(text_).substr(at_, end - at_));
      at_ = end + 1;
      ++number_;
      if (!line.empty()) return true;
    }
    return false;
  }

  void azure() {
    const CsvTable table = parse_csv(text_, name_);
    std::size_t column[3];
    constexpr const char* kWanted[] = {"TIMESTAMP", "ContextTokens", "GeneratedTokens"};
    for (int i = 0; i < 3; ++i) {
      const auto found = std::find_if(table.header.begin(), table.header.end(), [&](const std::string& name) { return trim(name) == kWanted[i]; });
      if (found == table.header.end())
        throw InvalidArgument(cat(name_, " lacks column ", kWanted[i],
                                  "; a trace has TIMESTAMP, ContextTokens, GeneratedTokens (Azure) or is JSON lines with timestamp, input_length, output_length (Mooncake)"));
      column[i] = static_cast<std::size_t>(found - table.header.begin());
    }
    for (const CsvRow& row : table.rows) {
      const TracePlace at{name_, static_cast<std::size_t>(row.line)};
      Request q;
      q.arrive_s = seconds_of(trim(row.cells[column[0]]), at);
      q.prompt = std::max(1, tokens_of(trim(row.cells[column[1]]), at, kWanted[1], 0));
      q.output = std::max(1, tokens_of(trim(row.cells[column[2]]), at, kWanted[2], 0));
      out_.requests.push_back(q);
    }
  }

  void mooncake(std::string_view line) {
    const TracePlace at{name_, number_};
    const nlohmann::json row = nlohmann::json::parse(line, nullptr, false);
    if (!row.is_object()) refuse(at, "the line", line, "one JSON object");
    const auto number = [&](const char* key) {
      const auto found = row.find(key);
      if (found == row.end() || !found->is_number()) refuse(at, key, found == row.end() ? std::string("missing") : found->dump(), "a number");
      return found->get<double>();
    };
    Request q;
    q.arrive_s = number("timestamp") * 1e-3;
    if (!(q.arrive_s >= 0)) refuse(at, "timestamp", row["timestamp"].dump(), "milliseconds from 0 on");
    for (const auto& [key, field] : {std::pair{"input_length", &q.prompt}, std::pair{"output_length", &q.output}}) {
      const double v = number(key);
      if (!(v >= 0 && v <= static_cast<double>(kLongest))) refuse(at, key, row[key].dump(), cat("from 0 to ", kLongest));
      *field = std::max(1, static_cast<std::int32_t>(v));
    }
    q.first_segment = static_cast<std::uint32_t>(out_.segments.size());
    if (const auto hashes = row.find("hash_ids"); hashes != row.end()) {
      if (!hashes->is_array()) refuse(at, "hash_ids", hashes->dump(), "an array of numbers");
      std::int64_t left = q.prompt;
      for (const auto& h : *hashes) {
        if (!h.is_number_integer()) refuse(at, "hash_ids", h.dump(), "an array of whole numbers");
        if (left < kMooncakeBlock) break;  // the last, partial block is nobody else's
        out_.segments.push_back({h.get<std::uint64_t>() + 1, kMooncakeBlock});  // 0 means none
        left -= kMooncakeBlock;
      }
    }
    q.segments = static_cast<std::uint32_t>(out_.segments.size()) - q.first_segment;
    out_.requests.push_back(q);
  }

  const std::string& text_;
  const std::string& name_;
  std::size_t at_ = 0, number_ = 0;
  Stream out_;
};

}  // namespace

Stream parse_trace(const std::string& text, const std::string& name, double speed, std::int64_t most) {
  if (!(speed > 0 && std::isfinite(speed))) throw InvalidArgument(cat("trace speed is ", speed, ", must be above 0"));
  Stream s = TraceReader(text, name).read();
  std::stable_sort(s.requests.begin(), s.requests.end(), [](const Request& a, const Request& b) { return a.arrive_s < b.arrive_s; });
  if (most > 0 && static_cast<std::int64_t>(s.requests.size()) > most) s.requests.resize(static_cast<std::size_t>(most));
  const double start = s.requests.front().arrive_s;
  for (Request& q : s.requests) q.arrive_s = (q.arrive_s - start) / speed;
  return s;
}

Stream read_trace(const std::string& path, double speed, std::int64_t most) {
  return parse_trace(io::read_text(path), path, speed, most);
}

}  // namespace kvatlas::sim
