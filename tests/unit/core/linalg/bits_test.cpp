// Rotations, random numbers, transforms and decompositions must return the same bits with every compiler, flag and
// machine: hashes recorded in tests/hashes/numerics.txt by one build, compared by all.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/dct.hpp"
#include "core/linalg/cholesky.hpp"
#include "core/linalg/kmeans.hpp"
#include "core/linalg/qr.hpp"
#include "core/linalg/svd.hpp"
#include "core/linalg/symmetric_eigen.hpp"
#include "core/philox.hpp"
#include "core/rope.hpp"
#include "tests/catch.hpp"

namespace {

using namespace kvatlas;
using namespace kvatlas::linalg;

class Hash {
 public:
  template <class T>
  Hash& add(const std::vector<T>& values) {  // FNV-1a
    for (const T& x : values) {
      unsigned char bytes[sizeof x];
      std::memcpy(bytes, &x, sizeof x);
      for (const unsigned char b : bytes) value_ = (value_ ^ b) * 1099511628211ULL;
    }
    return *this;
  }
  Hash& add(const Matrix& a) { return add(a.values()); }
  Hash& add(const Svd& svd) { return add(svd.u).add(svd.sigma).add(svd.v); }
  std::string hex() const { return fmt::format("{:016x}", value_); }

 private:
  std::uint64_t value_ = 14695981039346656037ULL;
};

std::map<std::string, std::string> recorded() {
  std::ifstream file(KVATLAS_SOURCE_DIR "/tests/hashes/numerics.txt");
  REQUIRE(file.is_open());
  std::map<std::string, std::string> out;
  std::string name, hash;
  while (file >> name >> hash) out[name] = hash;
  return out;
}

/// Float32 values whose columns fall off, as keys do.
Matrix falling(std::size_t rows, std::size_t cols) {
  Matrix a(rows, cols);
  for (std::size_t i = 0; i < rows; ++i)
    for (std::size_t j = 0; j < cols; ++j)
      a(i, j) = (static_cast<double>(random_uniform({.seed = 1}, i * cols + j)) - 0.5) / (1.0 + 0.25 * static_cast<double>(j));
  return a;
}

TEST_CASE("rotations, transforms and decompositions return the bits that every build returns", "[unit]") {
  const auto want = recorded();
  const auto compare = [&](const std::string& name, const Hash& hash) {
    CAPTURE(name);
    REQUIRE(want.count(name) == 1);
    CHECK(hash.hex() == want.at(name));
  };
  const RopeSpec rope{.base = 1e6, .rotary_dim = 64, .scaling = RopeScaling::yarn, .factor = 8.0, .original_context = 4096.0};
  Array rows = to_array(falling(64, 64));
  const RopeTable table(rope);
  for (std::int64_t i = 0; i < 64; ++i) table.apply(rows.view().row(i), i * 1777);
  compare("rope", Hash().add(rows.values()));

  std::vector<double> normal;
  for (std::uint64_t i = 0; i < 4000; ++i) normal.push_back(random_normal({.seed = 3, .layer = 2, .head = 1, .step = 4}, i));
  compare("random_normal", Hash().add(normal));

  Array resampled({31, 64});
  const LowPass low(64_tok, 31_tok);
  low.apply(rows.view(), resampled.view());
  compare("low_pass", Hash().add(resampled.values()));

  const Matrix a = falling(150, 60);
  const Matrix gram = matmul(transpose(a), a);
  compare("matmul", Hash().add(gram));
  compare("cholesky", Hash().add(cholesky(gram).value()));
  const Qr qr = householder_qr(a);
  compare("householder_qr", Hash().add(qr.q).add(qr.r));
  compare("jacobi_svd", Hash().add(jacobi_svd(a)));
  compare("truncated_svd", Hash().add(truncated_svd(a, {.rank = 10})));
  const SymmetricEigen eigen = symmetric_eigen(gram);
  compare("symmetric_eigen", Hash().add(eigen.values).add(eigen.vectors));
  const KMeans clusters = kmeans(a, {.clusters = 9});
  compare("kmeans", Hash().add(clusters.centers).add(clusters.labels));
}

}  // namespace
