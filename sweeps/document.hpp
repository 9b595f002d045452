// Reading a JSON document with errors that name the place: file, path inside it, value, what is allowed.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvatlas::sweep {

/// A value inside a document and the path that leads to it.
class Node {
 public:
  /// root: `path` is the document's name, which a colon parts from the path inside
  Node(const nlohmann::json& value, std::string path, bool root = false) : value_(&value), path_(std::move(path)), root_(root) {}

  const nlohmann::json& value() const { return *value_; }
  const std::string& path() const { return path_; }

  bool has(const char* key) const { return value_->contains(key); }
  Node at(const char* key) const;           // the member must exist
  std::vector<Node> items() const;          // of an array; a value that is no array is its own only item

  /// throws InvalidArgument unless this is an object with no other keys than these; an unknown key gets a suggestion
  void require_keys(std::span<const std::string_view> keys) const;
  std::string text() const;                 // must be a string
  std::vector<std::int64_t> sizes(std::int64_t min) const;  // a number, "32K", "A..BxC", or an array of these; sorted, each once
  std::int64_t size(std::int64_t min, std::int64_t max) const;  // one of them
  double number(double min, double max) const;

  /// throws InvalidArgument "PATH is VALUE, must be ALLOWED"
  [[noreturn]] void refuse(std::string_view allowed) const;
  /// throws InvalidArgument "PATH: SENTENCE"
  [[noreturn]] void fail(std::string_view sentence) const;

 private:
  const nlohmann::json* value_;
  std::string path_;
  bool root_;
};

/// Parses a document; duplicate keys are refused.
/// throws InvalidArgument "ORIGIN: not JSON: ..."
nlohmann::json parse_document(std::string_view text, std::string_view origin);

}  // namespace kvatlas::sweep
