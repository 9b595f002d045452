// A regular file mapped into memory, read-only. A file that shrinks while it is mapped is the one thing that cannot be checked.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace kvatlas::models {

class MappedFile {
 public:
  /// throws IoError: missing, unreadable, not a regular file
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace kvatlas::models
