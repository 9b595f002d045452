// A bounded queue between many producers and one consumer.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

namespace kvatlas::sweep {

template <class T>
class BoundedQueue {
 public:
  BoundedQueue(std::size_t capacity, int producers) : capacity_(capacity), producers_(producers) {}

  /// Waits for room; false when the consumer has gone.
  bool push(T value) {
    std::unique_lock lock(mutex_);
    room_.wait(lock, [&] { return items_.size() < capacity_ || closed_; });
    if (closed_) return false;
    items_.push_back(std::move(value));
    filled_.notify_one();
    return true;
  }

  /// A producer will push no more.
  void producer_done() {
    const std::lock_guard lock(mutex_);
    --producers_;
    filled_.notify_one();
  }

  /// Waits up to `limit` for an item. Nothing after the wait, or when all producers are done; ended() tells which.
  std::optional<T> pop(std::chrono::milliseconds limit) {
    std::unique_lock lock(mutex_);
    filled_.wait_for(lock, limit, [&] { return !items_.empty() || producers_ == 0; });
    if (items_.empty()) return std::nullopt;
    std::optional<T> value(std::move(items_.front()));
    items_.pop_front();
    room_.notify_one();
    return value;
  }

  bool ended() {
    const std::lock_guard lock(mutex_);
    return items_.empty() && producers_ == 0;
  }

  /// The consumer goes: producers that wait give up.
  void close() {
    const std::lock_guard lock(mutex_);
    closed_ = true;
    room_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable room_, filled_;
  std::deque<T> items_;
  std::size_t capacity_;
  int producers_;
  bool closed_ = false;
};

}  // namespace kvatlas::sweep
