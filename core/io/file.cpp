#include "core/io/file.hpp"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <ios>

#include "core/errors.hpp"

namespace kvatlas::io {

namespace fs = std::filesystem;

std::vector<std::byte> read_file(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) throw IoError(cat("cannot read ", path, ": no such file"));
  if (fs::is_directory(status)) throw IoError(cat("cannot read ", path, ": it is a folder"));
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) throw IoError(cat("cannot read ", path, ": ", std::strerror(errno)));
  std::vector<std::byte> bytes;
  // Read in pieces instead of trusting a size: pipes have none, and files grow.
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  if (const auto size = fs::is_regular_file(status) ? fs::file_size(path, error) : 0; !error) bytes.reserve(size);
  for (;;) {
    const std::size_t had = bytes.size();
    bytes.resize(had + kPiece);
    in.read(reinterpret_cast<char*>(bytes.data() + had), static_cast<std::streamsize>(kPiece));
    bytes.resize(had + static_cast<std::size_t>(in.gcount()));
    if (in.bad()) throw IoError(cat("cannot read ", path, ": ", std::strerror(errno)));
    if (!in) return bytes;
  }
}

std::string read_text(const std::string& path) {
  const std::vector<std::byte> bytes = read_file(path);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void write_file(const std::string& path, std::span<const std::byte> bytes) {
  if (path.empty()) throw IoError("cannot write: the file name is empty");
  if (fs::is_directory(path)) throw IoError(cat("cannot write ", path, ": it is a folder"));
  const std::string draft = cat(path, ".", ::getpid(), ".part");
  const auto fail = [&](int code) {
    std::error_code ignored;
    fs::remove(draft, ignored);
    throw IoError(cat("cannot write ", path, ": ", code != 0 ? std::strerror(code) : "the write failed"));
  };
  errno = 0;
  std::ofstream out(draft, std::ios::binary | std::ios::trunc);
  if (!out) fail(errno);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  out.close();
  if (!out) fail(errno);
  std::error_code error;
  fs::rename(draft, path, error);
  if (error) fail(error.value());
}

void write_text(const std::string& path, std::string_view text) { write_file(path, std::as_bytes(std::span(text))); }

}  // namespace kvatlas::io
