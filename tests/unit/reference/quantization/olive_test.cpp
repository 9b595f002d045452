#include <cmath>

#include "core/errors.hpp"
#include "tests/catch.hpp"
#include "tests/support/side_rows.hpp"

using namespace kvatlas;
using namespace kvatlas::test;

namespace {

/// A row whose scale per token is 1: search_low = search_high fixes the scale at sigmas * deviation, which `sigmas` sets to 28.
StoredSide with_scale_one(std::vector<float> x) {
  double sum = 0, squares = 0;
  for (const float f : x) sum += static_cast<double>(f);
  const double mean = sum / static_cast<double>(x.size());
  for (const float f : x) squares += (static_cast<double>(f) - mean) * (static_cast<double>(f) - mean);
  const double sigma = std::sqrt(squares / static_cast<double>(x.size()));
  return store_rows(cat("olive:scale=token,search_low=100,search_high=100,sigmas=", 28.0 / sigma), Side::key, static_cast<int>(x.size()), x);
}

}  // namespace

TEST_CASE("olive: by hand, outliers take the place of their neighbours", "[unit]") {
  // Opposite halves, so that the mean is 0 and the reach is sigmas times the deviation.
  const StoredSide s = with_scale_one({20, 2, 2, 50, 50, 60, 3, -9, -20, -2, -2, -50, -50, -60, -3, 9});
  CHECK(s.fp16("scales") == std::vector<float>{1});
  CHECK(s.decoded == std::vector<float>{20, 4, 0, 48, 48, 0, 4, -8, -20, 0, 0, -48, -48, 0, -4, 8});
  CHECK(s.bytes("codes") == std::vector<int>{0x15, 0x18, 0x81, 0xE1, 0x0B, 0x98, 0x89, 0x2F});
}

TEST_CASE("olive: ties go to the later of normal and outlier values", "[unit]") {
  // 38 is as far from 28 as from 48.
  const StoredSide s = with_scale_one({38, 0, -38, 0, 6, 0, -6, 0});
  CHECK(s.decoded == std::vector<float>{48, 0, -48, 0, 8, 0, -4, 0});
}

TEST_CASE("olive: a head's scale comes from the first call and is state of the layer", "[unit]") {
  std::vector<float> x;
  for (int i = 0; i < 64; ++i) x.push_back(static_cast<float>(i % 7 - 3));
  const StoredSide s = store_rows("olive", Side::value, 16, x);
  REQUIRE(s.f32("scales").size() == 1);
  CHECK(s.f32("scales")[0] > 0.05F);
  CHECK(s.f32("scales")[0] < 0.3F);
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(s.decoded[i] == Approx(x[i]).margin(0.5));
  CHECK(store_rows("olive", Side::value, 4, {0, 0, 0, 0}).decoded == std::vector<float>{0, 0, 0, 0});
}

TEST_CASE("olive: bits a value; refusals", "[unit]") {
  CHECK(bits_per_value("olive:scale=token", 128, 10) == 4.125);
  CHECK(bits_per_value("olive", 128, 1000) == Approx(4.0).epsilon(1e-3));
  CHECK(refusal("olive:search_low=120,search_high=100", 64) == "search_high is 100, must be at least search_low (120)");
}
