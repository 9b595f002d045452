// Packed matrix products of the forward pass beside Eigen's GEMM: GFLOP/s on one thread and the ratio, for the shapes of a
// small model's prompt and decode step.
#include <Eigen/Core>
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <vector>

#include "core/parallel.hpp"
#include "models/runtime/packed_matrix.hpp"

namespace {

using namespace kvatlas;
using models::PackedMatrix;
using models::ProductKernel;

/// Processor time of this thread: what others do on the machine counts as little as it can.
double now() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double best_seconds(const auto& body) {
  double best = 1e9, spent = 0;
  while (spent < 0.4) {
    const double start = now();
    body();
    const double s = now() - start;
    best = std::min(best, s);
    spent += s;
  }
  return best;
}

}  // namespace

int main() {
  set_threads(1);
  std::printf("%22s %10s %10s %10s %8s %8s\n", "tokens x out x in", "Eigen", "AVX2", "AVX-512", "AVX2/E", "512/E");
  for (const auto& [tokens, out, in] : {std::tuple{512, 576, 576}, {512, 3072, 576}, {512, 576, 1536}, {512, 4096, 640}, {64, 3072, 576},
                                        {8, 3072, 576}, {1, 3072, 576}, {1, 49152, 576}}) {
    using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Rows w = Rows::Random(out, in), x = Rows::Random(tokens, in);
    Rows y(tokens, out);
    const PackedMatrix packed(out, in, [&](std::int64_t first, std::int64_t count, std::span<float> to) {
      std::copy_n(w.data() + first * in, count * in, to.begin());
    });
    const View<const float> xs(x.data(), {tokens, in});
    const View<float> ys(y.data(), {tokens, out});
    const double flop = 2.0 * tokens * out * in * 1e-9;
    const double eigen = flop / best_seconds([&] { y.noalias() = x * w.transpose(); });
    const double avx2 = flop / best_seconds([&] { packed.multiply(xs, ys, ProductKernel::avx2); });
    const double avx512 =
        available(ProductKernel::avx512) ? flop / best_seconds([&] { packed.multiply(xs, ys, ProductKernel::avx512); }) : 0.0;
    std::printf("%7d x %5d x %5d %10.1f %10.1f %10.1f %8.2f %8.2f\n", tokens, out, in, eigen, avx2, avx512, avx2 / eigen, avx512 / eigen);
  }
}
