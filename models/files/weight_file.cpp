#include "models/files/weight_file.hpp"

#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "core/errors.hpp"
#include "models/files/gguf.hpp"
#include "models/files/mapped_file.hpp"
#include "models/files/printable.hpp"
#include "models/files/safetensors_weights.hpp"

namespace kvatlas::models {

struct WeightContent {
  std::filesystem::path path;
  std::vector<MappedFile> files;
  Gguf metadata;  // empty for safetensors; its tensors are moved out
  bool is_gguf = false;
  std::vector<TensorInfo> tensors;
  std::vector<std::string> unread;
  std::unordered_map<std::string_view, std::size_t> by_name;  // views of the names in `tensors`
};

namespace {

constexpr std::size_t kMaxIndexBytes = std::size_t{64} << 20;

std::string_view text_of(std::span<const std::byte> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

/// A safetensors file begins with the length of its header, whose upper bytes are zero; no JSON holds such bytes.
bool is_json(std::span<const std::byte> file) {
  const std::string_view text = text_of(file);
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && text[first] == '{' && text.substr(0, 8).find('\0') == std::string_view::npos;
}

void add_file(WeightContent& content, SafetensorsWeights weights) {
  for (TensorInfo& t : weights.tensors) content.tensors.push_back(std::move(t));
  for (std::string& name : weights.unread) content.unread.push_back(std::move(name));
}

void open_shards(WeightContent& content, std::string_view index) {
  const std::string name = content.path.string();
  if (index.size() > kMaxIndexBytes) throw IoError(cat(name, ": an index of ", index.size(), " bytes, must be at most ", kMaxIndexBytes));
  const std::map<std::string, std::string> placed = parse_safetensors_index(index, name);
  std::map<std::string, std::set<std::string>> shards;
  for (const auto& [tensor, file] : placed) shards[file].insert(tensor);
  for (const auto& [file, tensors] : shards) {
    const std::filesystem::path path = content.path.parent_path() / file;
    content.files.emplace_back(path);
    SafetensorsWeights weights = parse_safetensors_weights(content.files.back().bytes(), path.string());
    std::set<std::string> found(weights.unread.begin(), weights.unread.end());
    for (const TensorInfo& t : weights.tensors) found.insert(t.name);
    for (const std::string& tensor : found)
      if (!tensors.contains(tensor)) throw IoError(cat(path.string(), " holds tensor ", printable(tensor), ", which ", name, " does not place there"));
    for (const std::string& tensor : tensors)
      if (!found.contains(tensor)) throw IoError(cat(path.string(), " lacks tensor ", printable(tensor), ", which ", name, " places there"));
    add_file(content, std::move(weights));
  }
}

}  // namespace

WeightFile WeightFile::open(const std::filesystem::path& path) {
  auto content = std::make_unique<WeightContent>();
  content->path = path;
  content->files.emplace_back(path);
  const std::span<const std::byte> file = content->files.back().bytes();
  if (is_gguf(file)) {
    content->metadata = parse_gguf(file, path.string());
    content->tensors = std::move(content->metadata.tensors);
    content->is_gguf = true;
  } else if (is_json(file)) {
    open_shards(*content, text_of(file));
  } else {
    add_file(*content, parse_safetensors_weights(file, path.string()));
  }
  for (std::size_t i = 0; i < content->tensors.size(); ++i) content->by_name.emplace(content->tensors[i].name, i);
  return WeightFile(std::move(content));
}

WeightFile::WeightFile(std::unique_ptr<WeightContent> content) : content_(std::move(content)) {}
WeightFile::WeightFile(WeightFile&&) noexcept = default;
WeightFile& WeightFile::operator=(WeightFile&&) noexcept = default;
WeightFile::~WeightFile() = default;

const std::filesystem::path& WeightFile::path() const { return content_->path; }
std::span<const TensorInfo> WeightFile::tensors() const { return content_->tensors; }
std::span<const std::string> WeightFile::unread() const { return content_->unread; }

const TensorInfo* WeightFile::find(std::string_view name) const {
  const auto found = content_->by_name.find(name);
  return found == content_->by_name.end() ? nullptr : &content_->tensors[found->second];
}

bool WeightFile::has(std::string_view key) const { return content_->metadata.find(key) != nullptr; }
std::vector<std::string_view> WeightFile::keys() const {
  std::vector<std::string_view> out;
  for (const GgufValue& value : content_->metadata.metadata) out.push_back(value.key);
  return out;
}
std::optional<std::string_view> WeightFile::text(std::string_view key) const { return content_->metadata.text(key); }
std::optional<std::int64_t> WeightFile::integer(std::string_view key) const { return content_->metadata.integer(key); }
std::optional<double> WeightFile::number(std::string_view key) const { return content_->metadata.number(key); }
std::optional<bool> WeightFile::boolean(std::string_view key) const { return content_->metadata.boolean(key); }
std::optional<std::vector<std::string_view>> WeightFile::texts(std::string_view key) const { return content_->metadata.texts(key); }
std::optional<std::vector<std::int64_t>> WeightFile::integers(std::string_view key) const { return content_->metadata.integers(key); }
std::optional<std::vector<double>> WeightFile::numbers(std::string_view key) const { return content_->metadata.numbers(key); }

const Gguf* WeightFile::gguf() const { return content_->is_gguf ? &content_->metadata : nullptr; }

}  // namespace kvatlas::models
