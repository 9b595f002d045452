#include "models/files/mapped_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "core/errors.hpp"

namespace kvatlas::models {

MappedFile::MappedFile(const std::filesystem::path& path) {
  const auto fail = [&](std::string_view why) { return IoError(cat("cannot read ", path.string(), ": ", why)); };
  // Without O_NONBLOCK a named pipe would wait for its writer before it can be refused.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) throw fail(std::strerror(errno));
  struct stat about {};
  const int known = ::fstat(file, &about);
  const int code = errno;
  void* data = nullptr;
  int mapped = 0;
  if (known == 0 && S_ISREG(about.st_mode) && about.st_size > 0) {
    data = ::mmap(nullptr, static_cast<std::size_t>(about.st_size), PROT_READ, MAP_PRIVATE, file, 0);
    mapped = errno;
  }
  ::close(file);
  if (known != 0) throw fail(std::strerror(code));
  if (!S_ISREG(about.st_mode)) throw fail("it is not a regular file");
  if (data == MAP_FAILED) throw fail(std::strerror(mapped));
  data_ = static_cast<const std::byte*>(data);
  size_ = static_cast<std::size_t>(about.st_size);
}

MappedFile::MappedFile(MappedFile&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace kvatlas::models
