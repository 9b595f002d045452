#include "reference/primitives/nearest_keys.hpp"

#include "core/errors.hpp"
#include "tests/catch.hpp"

using namespace kvatlas;

TEST_CASE("nearest_keys: the largest cosine, of equal ones the lower slot; a key of zeros is no NaN", "[unit]") {
  Array keys({5, 2});
  keys.values() = {1, 0, 0, 2, 3, 4, 0, 0, 0, 5};
  const Nearest n = nearest_keys(keys.view(), {0, 1, 4}, {2, 3});
  CHECK(n.cosine[0] == Approx(0.8));  // (3, 4) with (0, 2) and (0, 5) alike
  CHECK(n.target == Slots{1, 0});
  CHECK(n.cosine[1] == 0);
  CHECK(nearest_keys(keys.view(), {0}, {1}).cosine[0] == 0);
  CHECK(nearest_keys(keys.view(), {}, {}).target.empty());
  CHECK_THROWS_WITH(nearest_keys(keys.view(), {}, {0}), "no row is kept: there is nothing to merge into");
}
