// A worked example of every attention score: 6 tokens, 2 query heads over 1 kv head, 2 channels, no rotation. Expected
// values next to its uses were computed in double precision, six decimals.
#pragma once

#include "tests/support/traced.hpp"

namespace kvatlas::test {

inline Traced fixture_f1() {
  Array q({2, 6, 2}), k({1, 6, 2});
  q.values() = {1, 0, 0, 1, 1, 1, .5F, -.5F, 1, .5F, 0, 1, /* head 1 */ 0, 1, 1, 0, -1, 1, .5F, .5F, .5F, 1, 1, -1};
  k.values() = {1, 0, 0, 1, 1, 1, -1, 0, .5F, .5F, 0, -1};
  return Traced(q.view(), k.view());
}

}  // namespace kvatlas::test
