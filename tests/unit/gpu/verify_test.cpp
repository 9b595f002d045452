#include "gpu/verify/verify.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;
using namespace kvatlas::gpu;

TEST_CASE("verify takes kernels by name and formats by a part of theirs, and refuses what no case has", "[unit]") {
  const auto some = verify({.kernel = "decode_attention", .format = "mxfp4"});
  REQUIRE(some.size() == 1);
  REQUIRE(some.front().ok());
  REQUIRE(some.front().schedules == 3);
  REQUIRE(some.front().shared_bytes > 0);
  REQUIRE_THROWS_WITH(verify({.kernel = "decode_atention"}), "\"decode_atention\": unknown kernel; did you mean \"decode_attention\"?");
  REQUIRE_THROWS_WITH(verify({.kernel = "quantize_pack", .format = "int9"}), "format is \"int9\", no case of quantize_pack has it");
}

TEST_CASE("the output hash of a case does not depend on the schedule", "[unit]") {
  const DecodeInstance& i = decode_instances().front();
  const std::vector<Schedule> a{{}}, b{{.lanes = LaneOrder::random, .seed = 9}};
  REQUIRE(verify_decode(i, {.contexts = {70}}, a).front().output_hash == verify_decode(i, {.contexts = {70}}, b).front().output_hash);
  REQUIRE(verify_decode(i, {.contexts = {70}}, a).front().output_hash != verify_decode(i, {.contexts = {71}}, a).front().output_hash);
}
