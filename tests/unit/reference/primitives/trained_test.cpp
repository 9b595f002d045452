#include "reference/primitives/trained.hpp"

#include <limits>

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("trained: a tensor is found by layer and part, and refused by name, axes, count and values", "[unit]") {
  TensorMap file;
  file["layer3.book"] = {.dims = {2, 3}, .values = {1, 2, 3, 4, 5, 6}};
  CHECK(trained_tensor(file, 3, "book", {2, 3}).values[4] == 5.0F);
  CHECK(trained_tensor(file, 3, "book", {2, 0}).dims[1] == 3);
  CHECK(trained_values(file, 3, "book", 6).size() == 6);
  CHECK_THROWS_WITH(trained_tensor(file, 2, "book", {2, 3}), "trained file has no tensor \"layer2.book\"");
  CHECK_THROWS_WITH(trained_tensor(file, 3, "book", {3, 0}), "tensor \"layer3.book\" is [2, 3], must be [3, any]");
  CHECK_THROWS_WITH(trained_tensor(file, 3, "book", {6}), "tensor \"layer3.book\" is [2, 3], must be [6]");
  CHECK_THROWS_WITH(trained_values(file, 3, "book", 5), "tensor \"layer3.book\" has 6 values, must have 5");
  file["layer3.book"].values[0] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_WITH(trained_values(file, 3, "book", 6), "tensor \"layer3.book\" must be finite");
}

TEST_CASE("trained: channels are whole, below the width, and once in a head", "[unit]") {
  TensorMap file;
  NamedTensor& t = file["layer0.channels"];
  t = {.dims = {2, 2}, .values = {7, 0, 0, 7}};
  CHECK(trained_channels(file, 0, "channels", 2, 2, 8) == std::vector<std::uint16_t>{7, 0, 0, 7});
  CHECK_THROWS_WITH(trained_channels(file, 0, "channels", 2, 2, 7), "tensor \"layer0.channels\" holds 7, must hold channels below 7");
  CHECK_THROWS_WITH(trained_channels(file, 0, "channels", 1, 4, 8), "tensor \"layer0.channels\" names channel 0 twice");
  t.values[3] = 0;
  CHECK_THROWS_WITH(trained_channels(file, 0, "channels", 2, 2, 8), "tensor \"layer0.channels\" names channel 0 twice in one head");
  t.values[3] = 0.5F;
  CHECK_THROWS_WITH(trained_channels(file, 0, "channels", 2, 2, 8), "tensor \"layer0.channels\" holds 0.5, must hold channels below 8");
}
