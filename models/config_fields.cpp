#include "models/config_fields.hpp"

#include <utility>

#include "core/errors.hpp"

namespace kvatlas::models {

namespace {

// A value as a message shows it: long ones are cut, so that a sentence stays a sentence.
std::string shown(const nlohmann::json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array() && value.size() > 8) return cat("an array of ", value.size(), " entries");
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  if (text.size() > 60) text = cat(text.substr(0, 57), "...");
  return text;
}

std::string range(std::string_view kind, std::int64_t min, std::int64_t max) {
  return cat(kind, " from ", min, " to ", max);
}

bool inside(const nlohmann::json& value, std::int64_t min, std::int64_t max) {
  if (!value.is_number_integer()) return false;
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(INT64_MAX)) return false;
  const auto v = value.get<std::int64_t>();
  return v >= min && v <= max;
}

}  // namespace

Fields::Fields(const nlohmann::json& object, ReadLog& log, std::string where)
    : object_(&object), log_(&log), where_(std::move(where)) {
  if (!object.is_object())
    throw InvalidArgument(cat(where_.empty() ? "config" : where_, " is ", shown(object), ", must be a JSON object"));
}

std::string Fields::full_name(std::string_view field) const {
  return where_.empty() ? std::string(field) : cat(where_, ".", field);
}

bool Fields::has(std::string_view field) const {
  const auto it = object_->find(std::string(field));
  return it != object_->end() && !it->is_null();
}

std::string_view Fields::present(std::initializer_list<std::string_view> spellings) const {
  for (const std::string_view s : spellings)
    if (has(s)) return s;
  return {};
}

const nlohmann::json* Fields::find(std::string_view field) {
  log_->read.insert(full_name(field));
  const auto it = object_->find(std::string(field));
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

void Fields::wrong(std::string_view field, std::string_view allowed) const {
  throw InvalidArgument(cat(full_name(field), " is ", shown(object_->at(std::string(field))), ", must be ", allowed));
}

std::optional<std::int64_t> Fields::integer(std::string_view field, std::int64_t min, std::int64_t max) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!inside(*value, min, max)) wrong(field, range("an integer", min, max));
  return value->get<std::int64_t>();
}

std::optional<double> Fields::number(std::string_view field, double min, double max) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return std::nullopt;
  const bool good = value->is_number() && value->get<double>() >= min && value->get<double>() <= max;
  if (!good) wrong(field, cat("a number from ", min, " to ", max));
  return value->get<double>();
}

std::optional<bool> Fields::boolean(std::string_view field) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) wrong(field, "true or false");
  return value->get<bool>();
}

std::optional<std::string> Fields::text(std::string_view field) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) wrong(field, "a string");
  return value->get<std::string>();
}

std::optional<std::vector<std::int64_t>> Fields::integers(std::string_view field, std::int64_t min, std::int64_t max) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return std::nullopt;
  bool good = value->is_array();
  if (good)
    for (const auto& entry : *value) good = good && inside(entry, min, max);
  if (!good) wrong(field, cat("an array of ", range("integers", min, max)));
  return value->get<std::vector<std::int64_t>>();
}

std::optional<std::vector<std::string>> Fields::texts(std::string_view field) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return std::nullopt;
  bool good = value->is_array();
  if (good)
    for (const auto& entry : *value) good = good && entry.is_string();
  if (!good) wrong(field, "an array of strings");
  return value->get<std::vector<std::string>>();
}

std::optional<Fields> Fields::object(std::string_view field) {
  const nlohmann::json* value = find(field);
  if (value == nullptr) return std::nullopt;
  log_->opened.insert(full_name(field));
  return Fields(*value, *log_, full_name(field));
}

std::optional<std::int64_t> Fields::any(std::initializer_list<std::string_view> spellings, std::int64_t min,
                                        std::int64_t max) {
  std::optional<std::int64_t> found;
  for (const std::string_view s : spellings) {
    const std::optional<std::int64_t> value = integer(s, min, max);
    if (!found) found = value;
  }
  return found;
}

std::int64_t Fields::required(std::initializer_list<std::string_view> spellings, std::int64_t min, std::int64_t max) {
  if (const std::optional<std::int64_t> value = any(spellings, min, max)) return *value;
  throw InvalidArgument(cat(full_name(*spellings.begin()), " is missing, must be ", range("an integer", min, max)));
}

void Fields::ignore(std::string_view field) {
  log_->read.insert(full_name(field));
  log_->opened.erase(full_name(field));
}

std::vector<std::string> Fields::unread() const {
  std::vector<std::string> names;
  for (const auto& [key, value] : object_->items()) {
    const std::string name = full_name(key);
    if (value.is_null()) continue;
    if (!log_->read.contains(name)) {
      names.push_back(name);
    } else if (log_->opened.contains(name)) {
      const std::vector<std::string> nested = Fields(value, *log_, name).unread();
      names.insert(names.end(), nested.begin(), nested.end());
    }
  }
  return names;
}

}  // namespace kvatlas::models
