#include "sweeps/document.hpp"

#include <algorithm>
#include <set>

#include "core/errors.hpp"
#include "sweeps/values.hpp"

namespace kvatlas::sweep {

using nlohmann::json;

namespace {

/// The value as an error message shows it: whole when short, cut when long.
std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

}  // namespace

void Node::refuse(std::string_view allowed) const {
  throw InvalidArgument(cat(path_, " is ", shown(*value_), ", must be ", allowed));
}

void Node::fail(std::string_view sentence) const { throw InvalidArgument(cat(path_, ": ", sentence)); }

Node Node::at(const char* key) const { return {value_->at(key), cat(path_, root_ ? ": " : ".", key)}; }

std::vector<Node> Node::items() const {
  std::vector<Node> out;
  if (!value_->is_array()) return {*this};
  for (std::size_t i = 0; i < value_->size(); ++i) out.emplace_back((*value_)[i], cat(path_, "[", i, "]"));
  return out;
}

void Node::require_keys(std::span<const std::string_view> keys) const {
  if (!value_->is_object()) refuse("an object");
  for (const auto& [key, unused] : value_->items())
    if (std::find(keys.begin(), keys.end(), key) == keys.end())
      throw InvalidArgument(cat(path_, ": ", unknown_name("key", key, keys)));
}

std::string Node::text() const {
  if (!value_->is_string()) refuse("a text in quotes");
  return value_->get<std::string>();
}

std::vector<std::int64_t> Node::sizes(std::int64_t min) const {
  const std::string allowed = cat("a whole number from ", min, ", a size like \"32K\", a range like \"4K..128Kx2\" or \"4K..32K+4K\", or an array of these");
  std::vector<std::int64_t> out;
  for (const Node& item : items()) {
    if (item.value().is_number_integer()) {
      out.push_back(item.value().get<std::int64_t>());
    } else if (item.value().is_string()) {
      for (const std::int64_t v : parse_sizes(item.path(), item.text())) out.push_back(v);
    } else {
      item.refuse(allowed);
    }
    if (out.empty() || *std::min_element(out.begin(), out.end()) < min || out.size() > kMostValues) item.refuse(allowed);
  }
  if (out.empty()) refuse(allowed);
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::int64_t Node::size(std::int64_t min, std::int64_t max) const {
  const std::string allowed = cat("a whole number or a size like \"32K\" from ", min, " to ", max);
  if (value_->is_array()) refuse(allowed);
  const std::vector<std::int64_t> all = sizes(min);
  if (all.size() != 1 || all[0] > max) refuse(allowed);
  return all[0];
}

double Node::number(double min, double max) const {
  if (!value_->is_number() || value_->get<double>() < min || value_->get<double>() > max)
    refuse(cat("a number from ", min, " to ", max));
  return value_->get<double>();
}

json parse_document(std::string_view text, std::string_view origin) {
  constexpr int kMaxDepth = 32;  // copies and prints of deeper JSON would exhaust the stack
  std::vector<std::set<std::string>> seen;
  const json::parser_callback_t watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxDepth) throw InvalidArgument(cat(origin, ": nests its values deeper than ", kMaxDepth, " levels"));
    if (event == json::parse_event_t::object_start) seen.emplace_back();
    if (event == json::parse_event_t::object_end) seen.pop_back();
    if (event == json::parse_event_t::key && !seen.back().insert(parsed.get<std::string>()).second)
      throw InvalidArgument(cat(origin, ": key ", parsed.dump(), " occurs twice in one object"));
    return true;
  };
  try {
    return json::parse(text, watch);
  } catch (const json::parse_error& e) {
    std::string why = e.what();  // "[json.exception.parse_error.101] parse error at line 3, column 5: ..."
    if (const std::size_t at = why.find("line "); at != std::string::npos) why = why.substr(at);
    throw InvalidArgument(cat(origin, ": not JSON: ", why));
  } catch (const json::out_of_range&) {
    throw InvalidArgument(cat(origin, ": holds a number beyond the range of doubles"));
  }
}

}  // namespace kvatlas::sweep
