#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/interruption.hpp"

namespace kvatlas {

namespace {
std::atomic<int> g_threads{0};
thread_local bool t_inside = false;
}  // namespace

void set_threads(int n) { g_threads.store(std::max(1, n)); }

int threads() {
  static const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));  // asking opens files
  const int n = g_threads.load();
  return n > 0 ? n : cores;
}

void parallel_for(std::int64_t n, const std::function<void(std::int64_t)>& body) {
  const std::int64_t workers = std::min<std::int64_t>(n, threads());
  if (workers <= 1 || t_inside) {
    for (std::int64_t i = 0; i < n; ++i) {
      interruption_point();
      body(i);
    }
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto work = [&, flag = interruption_flag()] {
    const Interruptible lent(flag);
    t_inside = true;
    try {
      for (std::int64_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) {
        interruption_point();
        body(i);
      }
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next.store(n);
    }
    t_inside = false;
  };
  {
    std::vector<std::jthread> pool;
    for (std::int64_t w = 1; w < workers; ++w) pool.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace kvatlas
