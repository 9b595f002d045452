// Work over independent items on a few threads. Items never share an accumulator, so the count cannot change a bit.
#pragma once

#include <cstdint>
#include <functional>

namespace kvatlas {

/// Threads that parallel_for may use; the hardware's number until set. At least 1.
void set_threads(int threads);
int threads();

/// Calls body(i) for every i in [0, n), each once, in any order, on up to threads() threads. The first exception of a
/// body is rethrown here after all threads have stopped. Calls from inside a body run on the caller's thread.
void parallel_for(std::int64_t n, const std::function<void(std::int64_t)>& body);

}  // namespace kvatlas
