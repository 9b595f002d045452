#include "core/errors.hpp"

#include <array>

#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("an unknown name suggests the closest one, or lists what is allowed", "[unit]") {
  constexpr std::array<std::string_view, 3> kNames{"h100-sxm", "a100-80g", "rtx-4090"};
  CHECK(unknown_name("GPU", "h10", kNames) == "\"h10\": unknown GPU; did you mean \"h100-sxm\"?");
  CHECK(unknown_name("GPU", "rtx4090", kNames) == "\"rtx4090\": unknown GPU; did you mean \"rtx-4090\"?");
  CHECK(unknown_name("GPU", "tpu-v5e-litepod", kNames) == "\"tpu-v5e-litepod\": unknown GPU; allowed: h100-sxm, a100-80g, rtx-4090");
}

TEST_CASE("our own bugs name the condition and the place", "[unit]") {
  CHECK_THROWS_WITH([] { KV_ASSERT(1 == 2, "lane tree got 33 lanes"); }(),
                    contains_text("lane tree got 33 lanes") && contains_text("1 == 2"));
}
